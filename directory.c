/* directory.c - what lies in the directory of a checkpoint.  See directory.h. */
#define _GNU_SOURCE
#include "directory.h"

#include <dirent.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

static const char weights[] = ".safetensors";

int is_directory(const char *path) {
    struct stat info;
    return !stat(path, &info) && S_ISDIR(info.st_mode);
}

int file_begins(const char *path, const char *magic) {
    char bytes[64];
    struct stat info;
    size_t n = strlen(magic);
    if (stat(path, &info) || !S_ISREG(info.st_mode)) return 0;  /* opening a pipe could wait */
    FILE *f = fopen(path, "re");
    int found = f && fread(bytes, 1, n, f) == n && !memcmp(bytes, magic, n);
    if (f) (void)fclose(f);
    return found;
}

int refuse_gguf(const char *path, Error *err) {
    const char *what = file_begins(path, LFS_MAGIC) ? "a git-lfs pointer to a GGUF" : "a GGUF";
    return fail(err, "%s: is %s: gemma4 reads safetensors; "
                "hf download nvidia/Gemma-4-26B-A4B-NVFP4", path, what);
}

/* ---- lists of names ---- */

/* The sorted names of the files in dir.  A directory that cannot be read has none. */
static void list(const char *dir, Names *out) {
    DIR *d = opendir(dir);
    const struct dirent *entry;
    *out = (Names){0};
    while (d && (entry = readdir(d))) {
        if (entry->d_name[0] == '.') continue;
        out->name = xrealloc(out->name, out->n + 1, sizeof *out->name);
        out->name[out->n++] = xstrdup(entry->d_name);
    }
    if (d) closedir(d);
    if (out->n) qsort(out->name, (size_t)out->n, sizeof *out->name, by_text);
}

void names_free(Names *names) {
    for (int i = 0; i < names->n; i++) free(names->name[i]);
    free(names->name);
    *names = (Names){0};
}

/* ---- shards ---- */

/* A file name STEM-00001-of-00002.safetensors. */
typedef struct {
    int stem;                           /* bytes of STEM and its dash */
    int digits;                         /* of the first number */
    int i, n;                           /* the two numbers */
    const char *rest;                   /* from "-of-" on */
} Shard;

/* Takes the name apart.  Returns 1 when the file is a shard. */
static int parse_shard(const char *name, Shard *s) {
    const char *of = NULL, *at = name;
    while ((at = strstr(at, "-of-"))) of = at++;
    if (!of) return 0;
    const char *digits = of;
    while (digits > name && digits[-1] >= '0' && digits[-1] <= '9') digits--;
    size_t n_last = strspn(of + 4, "0123456789");
    int has_dash = digits > name && digits[-1] == '-';
    if (!has_dash || digits == of || of - digits > 6 || !n_last || n_last > 6) return 0;
    if (strcmp(of + 4 + n_last, weights)) return 0;
    *s = (Shard){(int)(digits - name), (int)(of - digits), atoi(digits), atoi(of + 4), of};
    return s->i >= 1 && s->i <= s->n;
}

int is_shard(const char *name) {
    Shard s;
    return parse_shard(name, &s);
}

int are_siblings(const char *a, const char *b) {
    Shard s, t;
    if (!parse_shard(a, &s) || !parse_shard(b, &t)) return 0;
    return s.stem == t.stem && !strncmp(a, b, (size_t)s.stem) && !strcmp(s.rest, t.rest);
}

static int has_name(const Names *names, const char *name) {
    return names->n && bsearch(&name, names->name, (size_t)names->n, sizeof name, by_text) != NULL;
}

/* ---- what is wrong, and what to do ---- */

/* A path in the hub's cache, …/models--ORG--NAME/snapshots/COMMIT, tells the model's name. */
int refuse_incomplete(const char *path, const char *what, Error *err) {
    const char *at = strstr(path, "/models--");
    const char *org = at ? at + 9 : "", *dashes = strstr(org, "--");
    int n_name = dashes ? (int)strcspn(dashes + 2, "/") : 0;
    int is_file = has_ending(path, weights) && !is_directory(path);
    const char *slash = strrchr(path, '/');
    Buf again = {0};                    /* hf takes a file that is there for whole, unless forced */
    if (is_file) buf_printf(&again, " %s --force-download", slash ? slash + 1 : path);
    else buf_puts(&again, "");
    if (!n_name || memchr(org, '/', (size_t)(dashes - org)))
        fail(err, "%s: %s: the download is incomplete: download it again: hf download ORG/NAME%s "
             "--local-dir DIR", path, what, again.data);
    else
        fail(err, "%s: %s: the download is incomplete: run hf download %.*s/%.*s%s", path, what,
             (int)(dashes - org), org, n_name, dashes + 2, again.data);
    buf_free(&again);
    return -1;
}

/* Checks that the shards before and after a shard are there.  Where that holds for every shard,
 * none is missing. */
static int check_neighbours(const char *dir, const Names *names, const char *name, Error *err) {
    Shard s;
    if (!parse_shard(name, &s)) return 0;
    for (int step = -1; step <= 1; step += 2) {
        char other[300], what[400];
        int i = s.i + step;
        if (i < 1 || i > s.n) continue;
        snprintf(other, sizeof other, "%.*s%0*d%s", s.stem, name, s.digits, i, s.rest);
        if (has_name(names, other)) continue;
        snprintf(what, sizeof what, "%s is missing", other);
        return refuse_incomplete(dir, what, err);
    }
    return 0;
}

int directory_weights(const char *dir, Names *out, Error *err) {
    Names all;
    int bad = 0;
    *out = (Names){0};
    list(dir, &all);
    for (int i = 0; i < all.n; i++) {
        if (!has_ending(all.name[i], weights) || begins(all.name[i], "adapter_")) continue;
        out->name = xrealloc(out->name, out->n + 1, sizeof *out->name);
        out->name[out->n++] = xstrdup(all.name[i]);
    }
    names_free(&all);
    for (int i = 0; i < out->n && !bad; i++)
        bad = check_neighbours(dir, out, out->name[i], err);
    return bad;
}

/* Whether the file is a symbolic link to nothing. */
static int dangles(const char *dir, const char *name) {
    Buf path = {0};
    struct stat info;
    buf_printf(&path, "%s/%s", dir, name);
    int is_link = !lstat(path.data, &info) && S_ISLNK(info.st_mode);
    int result = is_link && stat(path.data, &info) && errno == ENOENT;
    buf_free(&path);
    return result;
}

/* Whether a directory beside the checkpoint holds files that `hf download` has begun. */
static int has_begun(const char *dir, const char *beside) {
    Buf path = {0};
    Names names;
    int found = 0;
    buf_printf(&path, "%s/%s", dir, beside);
    list(path.data, &names);
    for (int i = 0; i < names.n; i++) found |= has_ending(names.name[i], ".incomplete");
    names_free(&names);
    buf_free(&path);
    return found;
}

static int is_gguf(const char *dir, const char *name) {
    Buf path = {0};
    buf_printf(&path, "%s/%s", dir, name);
    int result = has_ending(name, ".gguf") || file_begins(path.data, "GGUF");
    buf_free(&path);
    return result;
}

/* What a directory holds.  The names belong to the list that was looked through. */
typedef struct {
    int n_weights, has_config, has_adapter;
    int has_torch;                      /* pytorch_model.bin, or its shards' index */
    const char *gguf;                   /* a GGUF file, or NULL */
    const char *dangling;               /* a link to nothing that would be read, or NULL */
    const char *unfinished;             /* what aria2 leaves beside a file until that is whole */
} Found;

static Found look_through(const char *dir, const Names *all) {
    Found f = {0};
    for (int i = 0; i < all->n; i++) {
        const char *name = all->name[i];
        int is_weights = has_ending(name, weights), is_json = has_ending(name, ".json");
        int is_adapter = begins(name, "adapter_") && (is_weights || is_json);
        int is_read = is_weights || is_json || !strcmp(name, "tokenizer.model");
        f.n_weights += is_weights && !is_adapter;
        f.has_adapter |= is_adapter;
        f.has_config |= !strcmp(name, "config.json");
        f.has_torch |= begins(name, "pytorch_model.bin");
        if (is_gguf(dir, name)) f.gguf = name;
        if (is_read && dangles(dir, name)) f.dangling = name;
        if (has_ending(name, ".safetensors.aria2")) f.unfinished = name;
    }
    return f;
}

/* Refuses what look_through has found, if it is no checkpoint. */
static int refuse_found(const char *dir, const Found *f, Error *err) {
    if (f->dangling) {
        char what[300];
        snprintf(what, sizeof what, "%s is a link to a file that is not there", f->dangling);
        return refuse_incomplete(dir, what, err);
    }
    if (f->unfinished) return refuse_incomplete(dir, f->unfinished, err);
    if (f->has_adapter && !f->n_weights)
        return fail(err, "%s: is a LoRA adapter, not a checkpoint: give it beside its model, "
                    "-m BASE --lora %s", dir, dir);
    if (f->gguf && !f->n_weights) return refuse_gguf(dir, err);
    if (f->has_torch && !f->n_weights)
        return fail(err, "%s: weights as pytorch_model.bin: gemma4 reads safetensors, which "
                    "transformers' save_pretrained writes", dir);
    if (f->has_config && f->n_weights) return 0;
    if (f->n_weights) return refuse_incomplete(dir, "config.json is missing", err);
    if (has_begun(dir, "../../blobs") || has_begun(dir, ".cache/huggingface/download"))
        return refuse_incomplete(dir, "the weights are missing", err);
    if (f->has_config) return 0;        /* safetensors_open says what it has looked for */
    return fail(err, "%s: is no checkpoint: neither config.json nor *.safetensors is there", dir);
}

int directory_check(const char *dir, Error *err) {
    Names all;
    list(dir, &all);
    Found found = look_through(dir, &all);
    int bad = refuse_found(dir, &found, err);
    names_free(&all);
    return bad;
}
