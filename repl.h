/* repl.h - the chat prompt on a terminal. */
#ifndef REPL_H
#define REPL_H

#include "generate.h"

/* Talks until Ctrl-D or /quit.  Returns 0, or -1 with err when it cannot begin. */
int run_repl(Engine *e, Error *err);

#endif
