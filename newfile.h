/* newfile.h - files that take the place of others when they are whole.  Until then a new file has
 * another name, beside the one that it will have: so the old file survives a failure, and no half
 * file is left that looks whole.  Functions that return an int return 0, or -1 with err, which
 * names the file. */
#ifndef NEWFILE_H
#define NEWFILE_H

#include <stdio.h>

#include "util.h"

typedef struct {
    Buf path;                           /* the name that the file gets in the end */
    Buf beside;                         /* the name that it has until then; len 0: there is none */
    FILE *f;
    int place;                          /* the index of that name in `unfinished` (newfile.c) */
} NewFile;

/* Opens n->f for writing what becomes the file path + tail, with mode 0600.  *n is all zero before;
 * the caller frees it with new_free, also after an error.  A device or a FIFO is refused. */
int new_open(NewFile *n, const char *path, const char *tail, Error *err);

/* Likewise for a file that anyone may read whom umask lets.  A device or a FIFO is written at
 * once. */
int new_open_output(NewFile *n, const char *path, Error *err);

/* Puts errno into err, of a file that could not be written.  Returns -1. */
int new_failed(const NewFile *n, Error *err);

/* Closes n->f once all of it is on the disk: then new_finish does not fail for want of room. */
int new_sync(NewFile *n, Error *err);

/* Closes n->f likewise if it is open, and gives the file its name. */
int new_finish(NewFile *n, Error *err);

/* Frees *n.  A file that was not finished is removed. */
void new_free(NewFile *n);

/* Removes files that are only partly written.  For signal handlers that end the program; util.c's
 * ends of the program call it. */
void new_leave(void);

#endif
