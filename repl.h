/* repl.h - the chat prompt on a terminal. */
#ifndef REPL_H
#define REPL_H

#include "generate.h"

/* Talks until Ctrl-D or /quit.  media: parts that go with the first question (a list, or NULL).  Returns 0, or -1 with err when it
 * cannot begin. */
int run_repl(Engine *e, const cJSON *media, Error *err);

/* Leaves the terminal as it was before run_repl; nothing outside of it.  For signal handlers that end the program. */
void repl_leave(void);

#endif
