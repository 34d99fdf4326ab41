/* saved.h - a cache in a file, so that a session can go on where another one ended. */
#ifndef SAVED_H
#define SAVED_H

#include <stdio.h>

#include "cache.h"

/* What a saved cache belongs to; the file names both, and only a session with the same two reads
 * it. */
typedef struct {
    uint64_t conversation;              /* a hash of the text of the conversation */
    int numbers;                        /* exact + 2 * fp4_activations of SessionOptions, and 4 *
                                         * activations but for 16 */
} SavedFor;

/* Writes the first n tokens of the cache to f, or fewer where the rings and marks do not reach back
 * so far.  Returns 0, or -1 with errno. */
int cache_save(const Cache *c, int64_t n, SavedFor what, FILE *f);

/* Whether f, at its beginning, holds what cache_save of some version has written. */
int cache_is_saved(FILE *f);

/* Fills the cache from f, a regular file that may hold anything; the cache takes no memory beyond
 * its own.  Returns 0; or -1 with err, which says why not and leaves out the name of the file: the
 * cache is then empty or unchanged. */
int cache_load(Cache *c, SavedFor what, FILE *f, Error *err);

#endif
