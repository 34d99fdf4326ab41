/* safetensors.c - maps the files of a checkpoint and checks their tensors.  See safetensors.h. */
#include "safetensors.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "directory.h"
#include "json.h"

#define MAX_FILES 1024                  /* far more than any checkpoint of this model has */
#define MAX_HEADER 100000000            /* bytes; the limit of the safetensors library */

const char *const dtype_name[DT_N] = {"other", "F32", "BF16", "F16", "F8_E4M3", "U8",
                                       "I32", "I64"};
const int dtype_size[DT_N] = {0, 4, 2, 2, 1, 1, 4, 8};

typedef struct {
    char *path;
    const uint8_t *map;
    size_t size;                        /* bytes of the file */
    size_t data;                        /* byte at which the data begins */
    size_t used;                        /* bytes of data that belong to tensors */
    char *names;                        /* the tensors' names, 0-terminated, one after the other */
} File;

struct SafeTensors {
    File file[MAX_FILES];
    int n_files;
    Tensor *tensor;                     /* sorted by name */
    int n_tensors, cap;
    int stale;                          /* 1: the index names what is not there, or lacks a shard */
    Buf warning;                        /* see safetensors_warning */
};

/* Reads a list of numbers of at least 0.  *n is their number; the first max of them go to out. */
static int scan_ints(Scan *s, int64_t *out, int max, int *n) {
    int more = 0;
    *n = 0;
    if (scan_take(s, '[')) return -1;
    for (int i = 0; (more = scan_next(s, i, ']')) > 0; i++) {
        int64_t v;
        if (scan_int(s, &v)) return -1;
        if (v < 0) return scan_fail(s, "negative number");
        if (i < max) out[i] = v;
        *n = i + 1;
    }
    return more;
}

static DType dtype_of(Str s) {
    for (DType t = DT_F32; t < DT_N; t++)
        if (str_is(s, dtype_name[t])) return t;
    return DT_OTHER;
}

/* Checks the tensor's place in the file and its size, and fills in the rest of *t, whose dtype is
 * set.  A tensor of another dtype, or of more than 4 dimensions, becomes DT_OTHER: binding it is an
 * error, but not its mere presence. */
static int place_tensor(const File *f, Tensor *t, const int64_t dims[4], int n_dims,
                        const int64_t offset[2], Error *err) {
    size_t room = f->size - f->data;
    if (offset[0] > offset[1] || (uint64_t)offset[1] > room) {
        char what[600];
        snprintf(what, sizeof what, "tensor %.300s: data_offsets [%lld, %lld] lie outside the "
                 "file's %zu bytes of data", t->name, (long long)offset[0], (long long)offset[1],
                 room);
        return refuse_incomplete(f->path, what, err);
    }
    t->data = f->map + f->data + offset[0];
    t->n_bytes = (size_t)(offset[1] - offset[0]);
    t->n_dims = n_dims;
    if (n_dims > 4) t->dtype = DT_OTHER, t->n_dims = 4;
    memcpy(t->shape, dims, sizeof t->shape);
    if (t->dtype == DT_OTHER) return 0;
    uint64_t bytes = (uint64_t)dtype_size[t->dtype];
    for (int i = 0; i < n_dims; i++)
        if (__builtin_mul_overflow(bytes, (uint64_t)dims[i], &bytes))
            return fail(err, "%s: tensor %s: shape overflows", f->path, t->name);
    if (bytes == t->n_bytes) return 0;
    return fail(err, "%s: tensor %s: shape and dtype need %llu bytes, data_offsets give %zu",
                f->path, t->name, (unsigned long long)bytes, t->n_bytes);
}

/* Reads the header's entry of a tensor into *t. */
static int scan_tensor(Scan *s, const File *f, const char *name, Tensor *t) {
    Str key, value;
    int64_t dims[4] = {0}, offset[2] = {0};
    int more, n_dims = -1, n_offsets = -1, have_dtype = 0, twice = 0;
    *t = (Tensor){.name = name, .file = f->path};
    if (scan_take(s, '{')) return -1;
    for (int i = 0; (more = scan_next(s, i, '}')) > 0; i++) {
        if (scan_key(s, &key)) return -1;
        if (str_is(key, "dtype")) {
            if (scan_string(s, &value)) return -1;
            t->dtype = dtype_of(value);
            snprintf(t->called, sizeof t->called, "%.*s", (int)value.n, value.s);
            twice |= have_dtype++;
        } else if (str_is(key, "shape")) {
            twice |= n_dims >= 0;
            if (scan_ints(s, dims, 4, &n_dims)) return -1;
        } else if (str_is(key, "data_offsets")) {
            twice |= n_offsets >= 0;
            if (scan_ints(s, offset, 2, &n_offsets)) return -1;
        } else if (scan_skip(s)) return -1;
    }
    if (more < 0) return -1;
    if (twice)
        return fail(s->err, "%s: tensor %s: dtype, shape or data_offsets stand twice", f->path,
                    name);
    if (!have_dtype) return fail(s->err, "%s: tensor %s: no dtype", f->path, name);
    if (n_dims < 0) return fail(s->err, "%s: tensor %s: no shape", f->path, name);
    if (n_offsets != 2)
        return fail(s->err, "%s: tensor %s: data_offsets must be two numbers", f->path, name);
    return place_tensor(f, t, dims, n_dims, offset, s->err);
}

/* Reads the value of a key of the header.  *name: where in f->names the key goes; moves on. */
static int scan_entry(SafeTensors *st, File *f, Scan *s, Str key, char **name) {
    if (str_is(key, "__metadata__")) return scan_skip(s);
    if (memchr(key.s, 0, key.n)) return scan_fail(s, "a NUL character in a tensor's name");
    memcpy(*name, key.s, key.n);
    (*name)[key.n] = 0;
    st->tensor = xgrow(st->tensor, st->n_tensors, &st->cap, sizeof *st->tensor);
    if (scan_tensor(s, f, *name, &st->tensor[st->n_tensors])) return -1;
    f->used += st->tensor[st->n_tensors++].n_bytes;
    *name += key.n + 1;
    return 0;
}

/* Reads the header of a file and adds its tensors. */
static int scan_header(SafeTensors *st, File *f, Error *err) {
    uint64_t n = 0;
    if (f->size < 8) return refuse_incomplete(f->path, "too short for a safetensors header", err);
    if (!memcmp(f->map, "GGUF", 4)) return refuse_gguf(f->path, err);
    for (int i = 7; i >= 0; i--) n = n << 8 | f->map[i];
    if (n > MAX_HEADER)
        return fail(err, "%s: header length %llu is more than %d: this is no safetensors file",
                    f->path, (unsigned long long)n, MAX_HEADER);
    if (n > f->size - 8) {
        char what[100];
        snprintf(what, sizeof what, "header length %llu is beyond the file's %zu bytes",
                 (unsigned long long)n, f->size);
        return refuse_incomplete(f->path, what, err);
    }
    f->data = 8 + n;
    f->names = xmalloc(n + 1);          /* the JSON around a name is longer than its closing 0 */
    char *name = f->names;
    Scan s = scan_open((const char *)f->map + 8, n, f->path, err);
    int more = scan_take(&s, '{') ? -1 : 1;
    for (int i = 0; more > 0 && (more = scan_next(&s, i, '}')) > 0; i++) {
        Str key;
        if (scan_key(&s, &key) || scan_entry(st, f, &s, key, &name)) more = -1;
    }
    if (!more && scan_peek(&s)) more = scan_fail(&s, "text after the header");
    scan_close(&s);
    return more;
}

static int by_name(const void *a, const void *b) {
    return strcmp(((const Tensor *)a)->name, ((const Tensor *)b)->name);
}

static int by_data(const void *a, const void *b) {
    const Tensor *x = *(Tensor *const *)a, *y = *(Tensor *const *)b;
    if (x->data != y->data) return x->data < y->data ? -1 : 1;
    return x->n_bytes < y->n_bytes ? -1 : x->n_bytes > y->n_bytes;
}

/* Sorts the tensors by name and checks what the format demands: no two tensors have the same name;
 * in each file they lie one after the other, without overlaps and without gaps. */
static int check_tensors(SafeTensors *st, Error *err) {
    int n = st->n_tensors, bad = 0;
    if (n) qsort(st->tensor, (size_t)n, sizeof *st->tensor, by_name);
    for (int i = 1; i < n && !bad; i++)
        if (!strcmp(st->tensor[i - 1].name, st->tensor[i].name))
            bad = fail(err, "%s: tensor %s stands twice (also in %s)", st->tensor[i].file,
                       st->tensor[i].name, st->tensor[i - 1].file);
    const Tensor **at = xcalloc(n, sizeof *at);
    for (int i = 0; i < n; i++) at[i] = &st->tensor[i];
    if (n) qsort(at, (size_t)n, sizeof *at, by_data);
    for (int i = 1; i < n && !bad; i++)
        if (at[i - 1]->data + at[i - 1]->n_bytes > at[i]->data)
            bad = fail(err, "%s: tensors %s and %s overlap", at[i]->file, at[i - 1]->name,
                       at[i]->name);
    free(at);
    for (int i = 0; i < st->n_files && !bad; i++) {
        const File *f = &st->file[i];
        if (f->used != f->size - f->data)
            bad = fail(err, "%s: its tensors' data_offsets cover %zu of %zu bytes of data",
                       f->path, f->used, f->size - f->data);
    }
    return bad;
}

/* Maps a file and adds its tensors. */
static int add_file(SafeTensors *st, const char *path, Error *err) {
    size_t size;
    struct stat info;
    if (st->n_files == MAX_FILES) return fail(err, "%s: more than %d files", path, MAX_FILES);
    if (!stat(path, &info) && S_ISREG(info.st_mode) && !info.st_size)
        return refuse_incomplete(path, "empty", err);
    const uint8_t *map = map_file(path, &size, err);
    if (!map) return -1;
    File *f = &st->file[st->n_files++];
    *f = (File){.path = xstrdup(path), .map = map, .size = size};
    return scan_header(st, f, err);
}

/* One entry of weight_map: path is that of the file.  added: see scan_weight_map. */
static int take_weight_entry(SafeTensors *st, const char *name, const char *path, Str file,
                             int added, Scan *s) {
    if (added) {
        const Tensor *t = safetensors_find(st, name);
        if (t && !strcmp(t->file, path)) return 0;
        st->stale = 1;
        return fail(s->err, "tensor %s is not in %.*s, where the index has it", name, (int)file.n,
                    file.s);
    }
    for (int k = st->n_files - 1; k >= 0; k--)
        if (!strcmp(st->file[k].path, path)) return 0;
    if (!access(path, F_OK)) return add_file(st, path, s->err);
    st->stale = 1;
    return fail(s->err, "%.*s is not there, but in the index", (int)file.n, file.s);
}

/* Reads weight_map, {"NAME": "model-00001-of-00002.safetensors", …}.  It is read twice.  added = 0:
 * adds the files that it names, each once.  added = 1, when all files have been added: checks that
 * every tensor is in the file that weight_map says. */
static int scan_weight_map(SafeTensors *st, const char *dir, Scan *s, int added) {
    Str key, file;
    Buf name = {0}, path = {0};
    int more = scan_take(s, '{') ? -1 : 1;
    for (int i = 0; more > 0 && (more = scan_next(s, i, '}')) > 0; i++) {
        more = -1;
        if (scan_key(s, &key)) break;
        name.len = path.len = 0;
        buf_add(&name, key.s, key.n);
        file.n = 0;
        if (scan_peek(s) == '"' && scan_string(s, &file)) break;
        if (!file.n || memchr(file.s, '/', file.n) || memchr(file.s, 0, file.n)) {
            fail(s->err, "%s: weight_map.%s is not the name of a file in the directory", s->file,
                 name.data);
            break;
        }
        buf_printf(&path, "%s/%.*s", dir, (int)file.n, file.s);
        if (take_weight_entry(st, name.data, path.data, file, added, s)) break;
        more = 1;
    }
    buf_free(&name);
    buf_free(&path);
    return more;
}

/* Reads DIR/model.safetensors.index.json, an object with a weight_map. */
static int scan_index(SafeTensors *st, const char *dir, Scan *s) {
    const char *map = NULL;
    int more = scan_take(s, '{') ? -1 : 1;
    Str key;
    for (int i = 0; more > 0 && (more = scan_next(s, i, '}')) > 0; i++) {
        if (scan_key(s, &key)) return -1;
        int is_map = str_is(key, "weight_map");
        if (is_map && map) return scan_fail(s, "a second weight_map");
        if (is_map) map = s->p;
        if (is_map ? scan_weight_map(st, dir, s, 0) : scan_skip(s)) return -1;
    }
    if (!more && scan_peek(s)) more = scan_fail(s, "text after the object");
    if (more < 0) return -1;
    if (!st->n_files) return fail(s->err, "%s: no weight_map", s->file);
    if (check_tensors(st, s->err)) return -1;
    s->p = map;
    return scan_weight_map(st, dir, s, 1);
}

/* Whether one of the files is st's. */
static int has_file(const SafeTensors *st, const char *dir, const char *name) {
    Buf path = {0};
    int found = 0;
    buf_printf(&path, "%s/%s", dir, name);
    for (int i = 0; i < st->n_files && !found; i++) found = !strcmp(st->file[i].path, path.data);
    buf_free(&path);
    return found;
}

/* Checks that the index names all shards of the set that it names. */
static int check_siblings(SafeTensors *st, const char *dir, Error *err) {
    Names names;
    int bad = 0;
    (void)directory_weights(dir, &names, NULL);         /* a gap is for open_all to say */
    const char *named = strrchr(st->file[0].path, '/') + 1;
    for (int i = 0; i < names.n && !bad; i++) {
        if (!are_siblings(named, names.name[i]) || has_file(st, dir, names.name[i])) continue;
        st->stale = 1;
        bad = fail(err, "the index lacks %s", names.name[i]);
    }
    names_free(&names);
    return bad;
}

/* Opens the files that an index names.  Returns 0, or -1 with err; st->stale says whether the
 * index is at fault and not a file. */
static int open_index(SafeTensors *st, const char *dir, const char *index, Error *err) {
    size_t n;
    const char *text = (const char *)map_file(index, &n, err);
    if (!text) return -1;
    Scan s = scan_open(text, n, index, err);
    int bad = scan_index(st, dir, &s);
    scan_close(&s);
    unmap_file(text, n);
    return bad ? -1 : check_siblings(st, dir, err);
}

/* Closes all files. */
static void forget(SafeTensors *st) {
    for (int i = 0; i < st->n_files; i++) {
        unmap_file(st->file[i].map, st->file[i].size);
        free(st->file[i].path);
        free(st->file[i].names);
    }
    st->n_files = st->n_tensors = 0;
}

/* Opens all weights in the directory, because there is no index, or a stale one, as `why` says. */
static int open_all(SafeTensors *st, const char *dir, const char *why, Error *err) {
    Names names;
    Buf path = {0};
    forget(st);
    int bad = directory_weights(dir, &names, err);
    for (int i = 0; i < names.n && !bad; i++) {
        path.len = 0;
        buf_printf(&path, "%s/%s", dir, names.name[i]);
        bad = add_file(st, path.data, err);
    }
    if (!bad && !names.n) bad = refuse_incomplete(dir, why, err);
    if (!bad) bad = check_tensors(st, err);
    if (!bad)
        buf_printf(&st->warning, "%s: %s: taking all %d *.safetensors there", dir, why, names.n);
    names_free(&names);
    buf_free(&path);
    return bad;
}

/* Warns of shards beside model.safetensors, which is taken alone. */
static void warn_of_shards(SafeTensors *st, const char *dir) {
    Names names;
    int n = 0;
    (void)directory_weights(dir, &names, NULL);
    for (int i = 0; i < names.n; i++) n += is_shard(names.name[i]);
    if (n)
        buf_printf(&st->warning, "%s: model.safetensors is taken, as transformers does, and not "
                   "the %d shards beside it", dir, n);
    names_free(&names);
}

/* Opens the files in a directory. */
static int open_directory(SafeTensors *st, const char *dir, Error *err) {
    Buf index = {0}, single = {0};
    Error why;
    int bad = 0;
    buf_printf(&index, "%s/model.safetensors.index.json", dir);
    buf_printf(&single, "%s/model.safetensors", dir);
    if (!access(single.data, F_OK)) {
        bad = add_file(st, single.data, err) || check_tensors(st, err) ? -1 : 0;
        if (!bad) warn_of_shards(st, dir);
    } else if (!access(index.data, F_OK)) {
        bad = open_index(st, dir, index.data, &why);
        if (bad && !st->stale) fail(err, "%s", why.text);
    } else {
        st->stale = 1;
        bad = fail(&why, "neither model.safetensors nor an index");
    }
    if (bad && st->stale) bad = open_all(st, dir, why.text, err);
    buf_free(&index);
    buf_free(&single);
    return bad;
}

SafeTensors *safetensors_open(const char *dir, Error *err) {
    SafeTensors *st = xcalloc(1, sizeof *st);
    int bad;
    if (has_ending(dir, ".safetensors") && !is_directory(dir))
        bad = add_file(st, dir, err) || check_tensors(st, err);
    else bad = open_directory(st, dir, err);
    if (!bad) return st;
    safetensors_close(st);
    return NULL;
}

void safetensors_close(SafeTensors *st) {
    if (!st) return;
    forget(st);
    buf_free(&st->warning);
    free(st->tensor);
    free(st);
}

const Tensor *safetensors_find(const SafeTensors *st, const char *name) {
    Tensor key = {.name = name};
    if (!st->n_tensors) return NULL;
    return bsearch(&key, st->tensor, (size_t)st->n_tensors, sizeof key, by_name);
}

const Tensor *safetensors_all(const SafeTensors *st, int *n) {
    *n = st->n_tensors;
    return st->tensor;
}

size_t safetensors_bytes(const SafeTensors *st) {
    size_t n = 0;
    for (int i = 0; i < st->n_files; i++) n += st->file[i].size;
    return n;
}

const char *safetensors_warning(const SafeTensors *st) { return st->warning.data; }

const char *safetensors_file(const SafeTensors *st) { return st->file[0].path; }

/* ---- what others check of a tensor ---- */

void put_shape(Buf *out, const int64_t *shape, int n_dims) {
    buf_puts(out, "[");
    for (int i = 0; i < n_dims; i++)
        buf_printf(out, "%s%lld", i ? ", " : "", (long long)shape[i]);
    buf_puts(out, "]");
}

int check_shape(const Tensor *t, int n_dims, int64_t d0, int64_t d1, int64_t d2, Error *err) {
    int64_t want[3] = {d0, d1, d2};
    int same = t->n_dims == n_dims;
    Buf is = {0}, must = {0};
    for (int i = 0; i < n_dims && same; i++) same = t->shape[i] == want[i];
    if (same) return 0;
    put_shape(&is, t->shape, t->n_dims);
    put_shape(&must, want, n_dims);
    fail(err, "%s: tensor %s: shape is %s, must be %s", t->file, t->name, is.data, must.data);
    buf_free(&is);
    buf_free(&must);
    return -1;
}

int check_float(const Tensor *t, Error *err) {
    if (t->dtype == DT_F32 || t->dtype == DT_BF16 || t->dtype == DT_F16) return 0;
    return fail(err, "%s: tensor %s: dtype is %s, must be BF16, F16 or F32", t->file, t->name,
                t->called);
}
