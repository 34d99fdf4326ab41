/* cache.h - what a session remembers: the keys and values of all layers, the tokens and pictures
 * that they belong to, and the positions to which the session can go back.
 *
 * A global layer keeps every position of the context.  A sliding layer keeps a ring of positions:
 * the window and one step.  Therefore a session that goes back to a position whose window the rings
 * no longer hold needs a mark: a copy of that window. */
#ifndef CACHE_H
#define CACHE_H

#include "model.h"

/* What decides the size of a cache, beside the model. */
typedef struct {
    DType dtype;                        /* of keys and values */
    int64_t context;                    /* positions */
    int max_step;                       /* tokens of the largest step */
} CacheShape;

/* A picture in the cache: n soft tokens from position pos on.  Saved caches hold this struct as it
 * is. */
typedef struct {
    int pos, n;
    uint64_t hash;                      /* as in Picture */
} CachedPicture;

/* A position to which the session may want to return although the rings have gone on. */
typedef struct {
    int64_t pos;                        /* 0: no mark */
    /* The window before pos, copied when the first slot of it is about to be overwritten: of each
     * sliding layer the keys, then the values, position p in row p % window.  NULL: not copied
     * yet. */
    uint8_t *window;
} Mark;

enum {
    NEXT_TURN,                          /* the mark where the next prompt will probably go on */
    SHARED_PREFIX,                      /* the mark where two prompts parted that begin alike: set
                                         * by session_sync when the rings cannot go back there */
    N_MARKS
};

typedef struct {
    const Model *m;
    const Ops *ops;
    CacheShape shape;
    KvCache *kv;                        /* [n_layers] */
    Ids ids;                            /* the tokens whose keys and values are held */
    CachedPicture *picture;             /* the pictures among them, by position */
    int n_pictures, cap_pictures;
    int64_t low;                        /* all rings hold positions low .. ids.n - 1 */
    Mark mark[N_MARKS];
} Cache;

/* Bytes of a cache of this shape; *per_token: what one position writes in all layers together. */
int64_t cache_bytes(const Model *m, const CacheShape *shape, int64_t *per_token);

/* Bytes that the copies of all marks take. */
int64_t cache_mark_bytes(const Model *m, const CacheShape *shape);

/* Fills in *c, an empty cache in the memory of the device.  Returns 0, or -1 when the device has no
 * memory for it.  cache_close frees it, also after -1. */
int cache_open(Cache *c, const Model *m, const Ops *ops, const CacheShape *shape);
void cache_close(Cache *c);

/* Forgets all tokens, pictures and marks, and keeps the memory of the rings. */
void cache_clear(Cache *c);

/* How many of ids[0..n), with the pictures span[0..n_spans) in them, the cache holds.  A picture
 * counts as a whole or not at all, since its tokens have seen the later ones of it.  The result is
 * less than n: somebody wants the logits of the last token, which is evaluated again. */
int cache_common(const Cache *c, const int *ids, int n, const PictureSpan *span, int n_spans);

/* Goes back to pos, or as near below it as the rings and the marks allow.  Returns where that
 * is. */
int64_t cache_rewind(Cache *c, int64_t pos);

/* Moves a mark to pos; its copy, if it has one, is freed. */
void cache_set_mark(Cache *c, int which, int64_t pos);

/* The rings are about to be written up to position `end`: copies the windows of marks that this
 * would spoil.  Returns 0, or -1 with err. */
int cache_make_room(Cache *c, int64_t end, Error *err);

void cache_add_picture(Cache *c, int pos, int n, uint64_t hash);

/* The picture of which position pos is inside (not its first token), or NULL. */
const PictureSpan *picture_at(const PictureSpan *span, int n_spans, int64_t pos);

/* ---- for saved.c ---- */

/* Bytes of one position's keys, and of its values.  In a sliding layer the two are equal. */
int64_t key_bytes(const Layer *l, const KvCache *kv);
int64_t value_bytes(const Layer *l, const KvCache *kv);

/* The first position that a token at pos, or at a later one, sees in a sliding layer: as
 * first_visible in plain.c. */
int64_t first_visible(const Cache *c, int64_t pos);

/* The first position that all rings still hold once they are written up to `end`: the shortest
 * ring decides. */
int64_t first_held(const Cache *c, int64_t end);

/* The last copied mark at or below pos, or NULL. */
const Mark *mark_below(const Cache *c, int64_t pos);

#endif
