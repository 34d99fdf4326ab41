/* tools.h - running what the model calls: an executable for each tool. */
#ifndef TOOLS_H
#define TOOLS_H

#include <signal.h>

#include "util.h"

typedef struct {
    const char *dir;                    /* of the executables, each named as its tool */
    double seconds;                     /* limit: then the tool is killed, and all it has started */
    size_t max_output;                  /* bytes of its output that are kept; more end it */
    volatile sig_atomic_t *cancel;      /* nonzero: kill it; may be NULL */
} ToolRunner;

/* Whether the directory has an executable for the tool of that name. */
int tool_is_there(const char *dir, const char *name);

/* Runs DIR/name, without a shell: `arguments` (JSON) on its stdin, an environment of PATH, HOME and
 * LANG alone, a session of its own without the terminal; stderr is this program's.  *result gets
 * what it wrote to stdout as valid UTF-8 without its last newline.  Returns 0; or -1 when there is
 * no such tool, it failed or was killed: *result then begins with "error: " (the model reads it and
 * may do better). */
int tool_run(const ToolRunner *r, const char *name, const char *arguments, Buf *result);

/* Kills the tool that is running, with all it has started; nothing when none is.  For signal
 * handlers that end the program. */
void tool_kill(void);

#endif
