/* directory.h - what lies in the directory of a checkpoint: its *.safetensors, or what somebody
 * took for a checkpoint. */
#ifndef DIRECTORY_H
#define DIRECTORY_H

#include "util.h"

typedef struct {
    char **name;                        /* [n] file names without the directory, sorted */
    int n;
} Names;

/* Refuses a directory that is no checkpoint, or not a whole one, with a line that tells the user
 * what to do: a LoRA adapter, GGUF files alone, a download that has not ended.  Returns 0, or -1
 * with err. */
int directory_check(const char *dir, Error *err);

/* The names of the weights, *.safetensors without a LoRA adapter's.  Checks that no shard is
 * missing.  The caller frees *out with names_free, also after a failure.  Returns 0, or -1 with
 * err. */
int directory_weights(const char *dir, Names *out, Error *err);
void names_free(Names *names);

/* Whether the file is a shard, STEM-00001-of-00002.safetensors. */
int is_shard(const char *name);

/* Whether both files are shards of one set: of the same STEM and the same number of shards. */
int are_siblings(const char *a, const char *b);

/* Whether there is a directory of that name. */
int is_directory(const char *path);

/* Refuses a checkpoint that lacks files, or one of its *.safetensors that is cut short: `path` is
 * the directory or the file, `what` says what is wrong.  The line says how to download it again.
 * Returns -1 with err. */
int refuse_incomplete(const char *path, const char *what, Error *err);

/* Whether there is a regular file that begins with these bytes, at most 64. */
int file_begins(const char *path, const char *magic);

/* Refuses the GGUF file (or directory) `path`.  Returns -1 with err. */
int refuse_gguf(const char *path, Error *err);

#endif
