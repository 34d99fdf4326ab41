/* saved.c - a cache in a file.  See saved.h.
 *
 * The file holds a header, the ids, the pictures among them, and for each layer the rows of K, then
 * those of V: in global layers of all positions, in sliding layers of positions low .. n - 1.
 * Numbers stand as they are in memory (little endian). */
#include "saved.h"

#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "checkpoint.h"

/* What all files begin with; a digit behind it counts the forms of the file. */
#define MAGIC "gemma4k"

typedef struct {
    char magic[8], version[16];
    uint64_t model, conversation;       /* fingerprints */
    int32_t dtype, numbers;             /* of the cache; as in SavedFor */
    int64_t n, n_pictures, low;         /* positions; pictures; as in Cache */
    uint64_t adapters;                  /* fingerprint; 0: none */
    char names[200];                    /* of the adapters, ends in 0; a longer list is cut */
} Header;

enum { SAVE, LOAD };

/* Bytes on their way between the cache and the file.  A megabyte makes the calls of copy and fwrite
 * few; it was not tuned.  To tune it, time /save and /load of a long conversation. */
#define ROWS_AT_ONCE (1 << 20)

/* A hash of what the cache depends on: shapes, names and sizes of all tensors, the scales, and 64
 * bytes of each of some 250 tensors. */
static uint64_t fingerprint(const Model *m) {
    int n;
    const Tensor *t = safetensors_all(m->st, &n);
    uint64_t hash = hash_bytes(&m->config, sizeof m->config, 0);
    for (int i = 0; i < m->config.n_layers; i++) {
        const Layer *l = &m->w.layer[i];
        hash = hash_bytes(&l->global, sizeof l->global, hash);
        hash = hash_bytes(l->inv_freq, sizeof(float) * (size_t)l->head_dim / 2, hash);
        hash = hash_bytes((float[]){l->k_scale, l->v_scale}, 2 * sizeof(float), hash);
    }
    int step = n / 250 + 1;
    for (int i = 0; i < n; i++) {
        hash = hash_bytes(t[i].name, strlen(t[i].name), hash);
        hash = hash_bytes(&t[i].n_bytes, sizeof t[i].n_bytes, hash);
        if (i % step) continue;
        size_t some = t[i].n_bytes < 64 ? t[i].n_bytes : 64;
        hash = hash_bytes(t[i].data + (t[i].n_bytes - some) / 2, some, hash);
    }
    return hash;
}

static Header header_for(const Cache *c, SavedFor what) {
    Header h = {.magic = MAGIC "2", .version = VERSION, .model = fingerprint(c->m),
                .conversation = what.conversation, .dtype = (int32_t)c->shape.dtype,
                .numbers = what.numbers};
    for (int i = 0; i < c->m->n_loras; i++)
        h.adapters = hash_bytes(&c->m->lora[i].hash, sizeof h.adapters, h.adapters);
    const char *names = model_adapters(c->m);
    snprintf(h.names, sizeof h.names, "%s", names ? names : "");
    return h;
}

/* The first position of which the file has rows of this layer. */
static int64_t first_row(const Header *h, const Layer *l) { return l->global ? 0 : h->low; }

/* Bytes of a file that begins with this header.  The header's n is at most the context. */
static int64_t file_size(const Cache *c, const Header *h) {
    int64_t size = (int64_t)sizeof *h + h->n * (int64_t)sizeof(int);
    size += h->n_pictures * (int64_t)sizeof(CachedPicture);
    for (int i = 0; i < c->m->config.n_layers; i++) {
        const Layer *l = &c->m->w.layer[i];
        const KvCache *kv = &c->kv[i];
        size += (h->n - first_row(h, l)) * (key_bytes(l, kv) + value_bytes(l, kv));
    }
    return size;
}

/* Rows of the cache that go to a file or come from it. */
typedef struct {
    const Ops *ops;
    int direction;
    uint8_t *buffer;                    /* [ROWS_AT_ONCE + the widest row] */
    FILE *f;
} Transfer;

/* Takes the rows of positions from .. to - 1 from the ring `rows`, which has `slots` rows, to the
 * file, or from the file to the ring.  Returns 0, or -1. */
static int transfer_rows(const Transfer *t, uint8_t *rows, int64_t slots, int64_t row, int64_t from,
                         int64_t to) {
    while (from < to) {
        int64_t at = from % slots, n = ROWS_AT_ONCE / row + 1;
        if (n > slots - at) n = slots - at;
        if (n > to - from) n = to - from;
        size_t bytes = (size_t)(n * row);
        if (t->direction == SAVE) {
            t->ops->copy(t->buffer, rows + at * row, bytes);
            if (fwrite(t->buffer, 1, bytes, t->f) != bytes) return -1;
        } else {
            if (fread(t->buffer, 1, bytes, t->f) != bytes) return -1;
            t->ops->copy(rows + at * row, t->buffer, bytes);
        }
        from += n;
    }
    return 0;
}

static int64_t widest_row(const Cache *c) {
    int64_t widest = 0;
    for (int i = 0; i < c->m->config.n_layers; i++) {
        int64_t bytes = value_bytes(&c->m->w.layer[i], &c->kv[i]);
        if (bytes > widest) widest = bytes;
    }
    return widest;
}

/* Transfers the rows of all layers.  Those of sliding layers are in the mark, if there is one, else
 * in the rings. */
static int transfer_cache(const Cache *c, const Header *h, const Mark *mark, FILE *f,
                          int direction) {
    Transfer t = {.ops = c->ops, .direction = direction, .f = f};
    t.buffer = xmalloc((size_t)(ROWS_AT_ONCE + widest_row(c)));
    uint8_t *next = mark ? mark->window : NULL;
    int bad = 0;
    for (int i = 0; i < c->m->config.n_layers; i++) {
        const Layer *l = &c->m->w.layer[i];
        const KvCache *kv = &c->kv[i];
        uint8_t *side[] = {kv->k, kv->v};
        int64_t row[] = {key_bytes(l, kv), value_bytes(l, kv)};
        for (int k = 0; !bad && k < 2; k++) {
            if (mark && !l->global) {
                int64_t window = c->m->config.window;
                bad = transfer_rows(&t, next, window, row[k], h->low, h->n);
                next += window * row[k];
            } else bad = transfer_rows(&t, side[k], kv->slots, row[k], first_row(h, l), h->n);
        }
    }
    free(t.buffer);
    return bad;
}

int cache_save(const Cache *c, int64_t n, SavedFor what, FILE *f) {
    Header h = header_for(c, what);
    const Mark *mark = NULL;
    h.n = n;
    h.low = c->low;
    if (first_visible(c, n) < c->low) {
        mark = mark_below(c, n);
        h.n = mark ? mark->pos : 0;
        h.low = first_visible(c, h.n);
    }
    while (h.n_pictures < c->n_pictures && c->picture[h.n_pictures].pos < h.n) h.n_pictures++;
    size_t n_ids = (size_t)h.n, n_pictures = (size_t)h.n_pictures;
    if (fwrite(&h, sizeof h, 1, f) != 1 || fwrite(c->ids.id, sizeof(int), n_ids, f) != n_ids ||
        fwrite(c->picture, sizeof *c->picture, n_pictures, f) != n_pictures)
        return -1;
    return transfer_cache(c, &h, mark, f, SAVE);
}

/* Reads the ids and the pictures of a file whose size is right.  Returns 0, or -1 when they cannot
 * be true. */
static int load_ids(Cache *c, const Header *h, FILE *f) {
    int64_t end = 0;                    /* of the picture before */
    for (int64_t i = 0; i < h->n; i++) {
        int32_t id;
        if (fread(&id, sizeof id, 1, f) != 1 || id < 0 || id >= c->m->config.vocab) return -1;
        ids_add(&c->ids, id);
    }
    for (int64_t i = 0; i < h->n_pictures; i++) {
        CachedPicture p;
        if (fread(&p, sizeof p, 1, f) != 1) return -1;
        if (p.pos < end || p.n < 1 || p.n > h->n - p.pos) return -1;
        end = p.pos + p.n;
        cache_add_picture(c, p.pos, p.n, p.hash);
    }
    return 0;
}

/* Whether the numbers of a header are possible in this cache. */
static int is_possible(const Cache *c, const Header *h) {
    return h->n >= 0 && h->n_pictures >= 0 && h->n_pictures <= h->n && h->low >= 0 &&
           h->low <= first_visible(c, h->n);
}

/* Says which adapters the file and this session have. */
static int refuse_adapters(const Header *h, const Header *own, Error *err) {
    char names[sizeof h->names];
    snprintf(names, sizeof names, "%.*s", (int)sizeof names - 1, h->names);
    const char *was = *names ? names : "none";
    const char *is = *own->names ? own->names : "none";
    return fail(err, "of a run with other adapters (--lora): %s; this run's: %s", was, is);
}

/* Whether this session can go on with the file that begins with the header: 0, or -1 with err. */
static int check_header(const Cache *c, const Header *h, const Header *own, Error *err) {
    long long n = h->n, context = c->shape.context;
    if (memcmp(h->magic, own->magic, sizeof h->magic)) return fail(err, "no saved cache");
    if (memcmp(h->version, own->version, sizeof h->version))
        return fail(err, "of another version of this program");
    if (h->model != own->model) return fail(err, "of another model");
    if (h->adapters != own->adapters) return refuse_adapters(h, own, err);
    if (h->dtype != own->dtype || h->numbers != own->numbers)
        return fail(err, "of a run with another --kv, --exact, --activations or --fp4-activations");
    if (h->conversation != own->conversation)
        return fail(err, "of another state of the conversation");
    if (n > context)
        return fail(err, "%lld tokens are more than the context of %lld (-c)", n, context);
    return is_possible(c, h) ? 0 : fail(err, "damaged");
}

int cache_is_saved(FILE *f) {
    char begin[sizeof MAGIC - 1];
    size_t n = fread(begin, 1, sizeof begin, f);
    rewind(f);
    return n == sizeof begin && !memcmp(begin, MAGIC, n);
}

int cache_load(Cache *c, SavedFor what, FILE *f, Error *err) {
    Header h, own = header_for(c, what);
    struct stat info;
    if (fstat(fileno(f), &info) || !S_ISREG(info.st_mode)) return fail(err, "no regular file");
    if (fread(&h, sizeof h, 1, f) != 1) return fail(err, "no saved cache");
    if (check_header(c, &h, &own, err)) return -1;
    if (info.st_size != file_size(c, &h)) return fail(err, "damaged");
    cache_clear(c);
    if (load_ids(c, &h, f) || transfer_cache(c, &h, NULL, f, LOAD)) {
        cache_clear(c);
        return fail(err, "damaged");
    }
    c->low = first_held(c, h.n);
    if (c->low < h.low) c->low = h.low;
    return 0;
}
