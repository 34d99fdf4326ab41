/* conversation.h - a conversation on disk: FILE is a JSON request on one line, which `gemma4 --jsonl` and `gemma4 render` read too;
 * FILE.kv is what the session holds of it, so that a long one continues without being read again. */
#ifndef CONVERSATION_H
#define CONVERSATION_H

#include "generate.h"

/* Writes both files, mode 0600: beside the old ones, to the disk, and then in their place, so that these survive a failure.
 * Returns 0, or -1 with err, which names the file. */
int conversation_save(const Engine *e, const cJSON *messages, const char *path, Error *err);

/* The messages of FILE, checked, which the caller frees; e->thinking as it was.  The session takes FILE.kv; where that is
 * of something else, a line on stderr says why, and the next prompt is read from its beginning.  NULL with err. */
cJSON *conversation_load(Engine *e, const char *path, Error *err);

#endif
