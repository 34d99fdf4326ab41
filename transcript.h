/* transcript.h - a conversation on disk.  FILE is a JSON request on one line, which `gemma4
 * --jsonl` and `gemma4 render` read too.  FILE.kv is the session's kv cache of the conversation, so
 * that a long conversation can go on without being evaluated again.  The cache of a document
 * (--cache) has the form of FILE.kv. */
#ifndef TRANSCRIPT_H
#define TRANSCRIPT_H

#include "generate.h"

/* Writes both files with mode 0600.  The new files are written beside the old ones and synced to
 * the disk, and then take their names: so the old ones survive a failure.  Returns 0, or -1 with
 * err, which names the file. */
int transcript_save(const Engine *e, const cJSON *messages, const char *path, Error *err);

/* Whether transcript_save can write there, as far as that can be told before the answer: writes
 * nothing.  Returns as transcript_save does. */
int transcript_check(const char *path, Error *err);

/* Reads the file `path` and returns its messages, which can be rendered and which the caller frees.
 * Sets e->thinking and, unless --tools has given some, e->tools as the file says; lines on stderr
 * name the fields that have no effect, the calls whose arguments are no object, and the tools that
 * --run-tools cannot run.  Loads path.kv into the session, unless path is -, stdin.  If path.kv
 * belongs to another conversation or another run, a line on stderr says why, and the session will
 * evaluate the next prompt from its beginning.  Returns NULL with err, which names the file. */
cJSON *transcript_load(Engine *e, const char *path, Error *err);

/* --cache: makes the session hold the beginning of a conversation's prompt.  The beginning ends
 * where the prompt of `document`, the same conversation without its question, parts from it;
 * document NULL: in front of the last token.  The session takes as much of it as it can from the
 * file `path`, and evaluates the rest: *n_read tokens.  If there was a rest, the file is replaced,
 * as transcript_save does it.
 * Returns 0, or -1 with err, which names the file.  A file that is neither empty nor a saved cache
 * is an error, and stays as it is.  If the file cannot be written, a line on stderr says so. */
int transcript_cache(const Engine *e, const cJSON *messages, const cJSON *document,
                     const char *path, int *n_read, Error *err);

#endif
