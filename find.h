/* find.h - where a checkpoint lies on this machine.
 *
 * Each find_ function adds the directory to *dir, which the caller frees.  It returns 0, or -1 with
 * err, which tells the user what to do. */
#ifndef FIND_H
#define FIND_H

#include "util.h"

/* What find_checkpoint and find_in_hub return, with err, for a model of the hub that is not in the
 * cache. */
#define NOT_CACHED (-2)

/* A checkpoint by its directory; by one of its *.safetensors; by the cache's own directory of a
 * model, models--ORG--MODEL; or by its name on the hub.  Behind the last two may stand @REVISION:
 * a branch, a tag or the beginning of a commit. */
int find_checkpoint(const char *name, Buf *dir, Error *err);

/* A checkpoint by its name on the hub, ORG/MODEL or ORG/MODEL@REVISION, in the cache of Hugging
 * Face's own programs.  Without a revision it is main's snapshot, or the only one there is. */
int find_in_hub(const char *name, Buf *dir, Error *err);

/* The demo checkpoint.  It lies beside the program or, once installed, in ../share/gemma4. */
int find_demo(Buf *dir, Error *err);

/* Offers to run `hf download` for a model of the hub, where hf is on the PATH and the user sits at
 * a terminal.  Returns 0 when hf has run; 1 when it was not to be; -1 with err when hf failed. */
int offer_download(const char *name, Error *err);

#endif
