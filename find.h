/* find.h - where a checkpoint lies on this machine.
 *
 * Each function adds the directory to *dir, which the caller frees.  It returns 0, or -1 with err,
 * which tells the user what to do. */
#ifndef FIND_H
#define FIND_H

#include "util.h"

/* A checkpoint by its directory or by its name on the hub, ORG/MODEL. */
int find_checkpoint(const char *name, Buf *dir, Error *err);

/* A checkpoint by its name on the hub, in the cache of Hugging Face's own programs. */
int find_in_hub(const char *name, Buf *dir, Error *err);

/* The demo checkpoint.  It lies beside the program or, once installed, in ../share/gemma4. */
int find_demo(Buf *dir, Error *err);

#endif
