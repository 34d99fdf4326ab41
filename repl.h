/* repl.h - the chat prompt on a terminal. */
#ifndef REPL_H
#define REPL_H

#include "generate.h"

/* Runs the chat prompt until Ctrl-D or /quit.  It begins with the conversation in `file`, as /load
 * does; NULL: with a new one.  media (a list of parts, or NULL) and text (or NULL) go with the
 * first question; the caller owns both.  Returns 0, or -1 with err when the chat cannot begin. */
int run_repl(Engine *e, const char *file, const cJSON *media, const char *text, Error *err);

#endif
