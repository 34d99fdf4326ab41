/* markdown.h - turns Markdown, as models write it, into text with escape sequences for a terminal,
 * while it streams.
 *
 * Headings are bold, those of the first two levels underlined, too; **strong** text is bold,
 * *emphasis* underlined, ~~text~~ struck through, code cyan, fences and quotes are dim.  Lists are
 * indented.  The columns of a table are aligned once the table is complete.  A pair of marks may
 * stand in different lines of a paragraph.  Everything else, and markup that is never closed, comes
 * out as it came in. */
#ifndef MARKDOWN_H
#define MARKDOWN_H

#include "util.h"

/* The state between two pieces of a text.  For a new text all is zero but `columns`. */
typedef struct {
    int columns;                        /* of the terminal: a table that is wider comes out as it
                                         * came in; 0: markdown_show changes nothing */
    Buf held;                           /* the end of the line so far, not put out yet */
    Buf table;                          /* complete lines that may be a table, not put out yet */
    size_t next;                        /* where in held the next line begins, while the end of the
                                         * line waits for it; 0: none waits */
    Buf line;                           /* the bytes of the line that have been put out */
    int in_line;                        /* 1: the beginning of the line has been put out */
    int is_bare;                        /* 1: the head of the table has no bar in front, and has
                                         * been put out as a line */
    unsigned style;                     /* of the whole line, bits of markdown.c */
    char fence;                         /* ` or ~: inside a code block between such fences; 0:
                                         * outside */
    int fence_length;                   /* marks of the fence that opened the block */
} Markdown;

/* Takes the next n bytes of the text and adds to out whatever no later byte can change.  It holds
 * back a table until the table ends.  Of another line it holds back the beginning until that tells
 * the kind of the line, then what stands behind an open mark, at most MARKDOWN_HELD bytes, and the
 * end of the line until the next one begins.  The head of a table without outer bars comes out as a
 * line, which the table replaces.  The result does not depend on how the text is cut into pieces.
 * The text should contain no control characters (see safe_text). */
void markdown_feed(Markdown *m, const char *text, size_t n, Buf *out);

/* The text has ended: adds what was held back, and makes m ready for the next text. */
void markdown_end(Markdown *m, Buf *out);
void markdown_free(Markdown *m);

/* markdown_show writes what markdown_feed adds to stdout, which must be a terminal, and
 * markdown_show_end what markdown_end adds.  With m->columns 0 the text is written as it is, to any
 * stdout.  The text may hold control characters: safe_text and put_stdout say what is shown in
 * their place. */
void markdown_show(Markdown *m, const Buf *text);
void markdown_show_end(Markdown *m);

/* Bytes from the beginning of an opening mark to the end of its closing mark; marks further apart
 * are text.  The value was chosen as about a paragraph's length, so that a lone star does not hold
 * back the answer. */
#define MARKDOWN_HELD 400

#endif
