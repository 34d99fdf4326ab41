/* markdown.h - Markdown, as models write it, for a terminal: text in, text with escape sequences
 * out, while it streams.
 *
 * Headings are bold and underlined, **strong** text bold, *emphasis* underlined, ~~text~~ struck
 * through, code cyan, fences and quotes dim; lists are indented, the rows of a table aligned once
 * the table is complete.  Everything else, and markup that is never closed, comes out as it came
 * in. */
#ifndef MARKDOWN_H
#define MARKDOWN_H

#include "util.h"

/* An all-zero Markdown but for `columns` is at the beginning of a text. */
typedef struct {
    int columns;                        /* of the terminal: a wider table comes as it is.  0:
                                         * markdown_show changes nothing */
    Buf held;                           /* of the line: what comes out depends on what follows */
    Buf table;                          /* complete lines that may be a table */
    int in_line;                        /* 1: the beginning of the line is out */
    unsigned style;                     /* of the whole line, see markdown.c */
    char fence;                         /* inside of a code block: ` or ~; 0: outside */
    int fence_length;
    char before;                        /* the last byte of the line that is out */
} Markdown;

/* Takes the next n bytes of the text and adds to out what is certain.  It holds back an open table,
 * and of other lines the beginning up to the kind of line, or the part from an open mark on, at
 * most MARKDOWN_HELD bytes.  How the text is cut into pieces changes nothing.  The text should hold
 * no control characters (see safe_text). */
void markdown_feed(Markdown *m, const char *text, size_t n, Buf *out);

/* The text has ended: adds what is held back, and makes m ready for the next text. */
void markdown_end(Markdown *m, Buf *out);
void markdown_free(Markdown *m);

/* markdown_feed and markdown_end to stdout, a terminal unless m->columns is 0.  The text may hold
 * control characters: put_stdout and safe_text say what is shown in their place. */
void markdown_show(Markdown *m, const Buf *text);
void markdown_show_end(Markdown *m);

/* Marks that lie further apart than this mark nothing.  The value was chosen: a paragraph's length,
 * so that a lone star does not hold back the answer. */
#define MARKDOWN_HELD 400

#endif
