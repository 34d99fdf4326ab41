/* repl.h - the chat prompt on a terminal. */
#ifndef REPL_H
#define REPL_H

#include "generate.h"

/* Runs the chat prompt until Ctrl-D or /quit.  It begins with the conversation in `file`, as /load
 * does; NULL: with a new one.  media (a list of parts, or NULL) and text (or NULL) go with the
 * first question; the caller owns both.  Returns 0, or -1 with err when the chat cannot begin. */
int run_repl(Engine *e, const char *file, const cJSON *media, const char *text, Error *err);

/* Restores the terminal's settings from before run_repl, and plain text.  Does nothing outside of
 * run_repl.  Safe in signal handlers, which call it before they end the program. */
void repl_leave(void);

#endif
