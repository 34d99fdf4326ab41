/* transcript.h - a conversation on disk.  FILE is a JSON request on one line, which `gemma4
 * --jsonl` and `gemma4 render` read too.  FILE.kv is what the session holds of it, so that a long
 * conversation goes on without being read again.  The cache of a document (--cache) is such a file
 * alone. */
#ifndef TRANSCRIPT_H
#define TRANSCRIPT_H

#include "generate.h"

/* Writes both files with mode 0600: beside the old ones, then to the disk, then in their place, so
 * that the old ones survive a failure.  Returns 0, or -1 with err, which names the file. */
int transcript_save(const Engine *e, const cJSON *messages, const char *path, Error *err);

/* Reads the messages of the file `path`, checked, which the caller frees, and sets e->thinking as
 * the file says.  The session takes what path.kv holds; where that belongs to something else, a
 * line on stderr says why, and the session will evaluate the next prompt from its beginning.
 * Returns NULL with err, which names the file. */
cJSON *transcript_load(Engine *e, const char *path, Error *err);

/* --cache: makes the session hold the beginning of a conversation's prompt, from the file `path` as
 * far as it belongs to it, and reads the rest.  The beginning is what the prompt of `document` has
 * in common with it: the same conversation without its question.  document NULL: all but the last
 * token.  Where tokens had to be read, the file is written anew, with mode 0600, as transcript_save
 * writes.  *n_read: so many.  Returns 0, or -1 with err, which names the file.  A file in which no
 * cache was saved is left as it is: that is an error.  A file that cannot be written is said on
 * stderr. */
int transcript_cache(const Engine *e, const cJSON *messages, const cJSON *document,
                     const char *path, int *n_read, Error *err);

/* Removes files that are not written to their end.  For signal handlers that end the program. */
void transcript_leave(void);

#endif
