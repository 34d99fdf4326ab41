/* edit.h - the line at the chat prompt: keys, history, completion, pastes, an outside editor. */
#ifndef EDIT_H
#define EDIT_H

#include <signal.h>

#include "util.h"

typedef struct Editor Editor;

/* What ended a line. */
typedef enum {
    LINE_END,                           /* Ctrl-D or the end of the input: there is no line */
    LINE_GIVEN,                         /* Enter */
    LINE_DROPPED,                       /* Ctrl-C */
    LINE_OUTSIDE,                       /* Ctrl-X Ctrl-E: the line goes on in $EDITOR */
} LineEnd;

/* Sets up the terminal (stdin and stdout) and reads the history.  editor_close restores the
 * terminal and frees the editor.  commands, and the names of settings behind /set: lists that end
 * with NULL, for completion; they must outlive the editor.  *interrupted becomes nonzero when
 * another process sends SIGINT, which drops the line; editor_read makes it 0 again.  Returns NULL
 * with err. */
Editor *editor_open(const char *const *commands, const char *const *settings,
                    volatile sig_atomic_t *interrupted, Error *err);
void editor_close(Editor *e);           /* e may be NULL */

/* Restores the terminal's settings from before editor_open, and plain text.  Does nothing without
 * an editor.  Safe in signal handlers that end the program. */
void editor_leave(void);

/* Reads a line into *line, without its newline.  A line that was given is added to the history.  A
 * line may contain newlines that were pasted. */
LineEnd editor_read(Editor *e, const char *prompt, Buf *line);

/* Adds a text to the history and writes the history to its file. */
void editor_remember(Editor *e, const char *text);

/* Adds the last `most` entries of the history to out, the oldest first, each with its number in
 * front and a newline behind it. */
void editor_history(Editor *e, int most, Buf *out);

/* Columns of the terminal that is stdout; 80 where it does not say. */
int terminal_columns(void);

/* Runs $VISUAL, $EDITOR or vi on a file of mode 0600 that holds *text, and makes *text what the
 * file holds afterwards, see read_text, without line ends at its end.  Removes the file, unless it
 * holds no text: then the error names it.  Returns 0, or -1 with err and *text as it was. */
int editor_outside(const Editor *e, Buf *text, Error *err);

#endif
