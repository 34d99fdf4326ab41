/* tokenizer.c - text to token ids and back.  See tokenizer.h.
 *
 * Both files describe the same thing: pieces (strings with ids) and the order in which neighbours are
 * joined.  tokenizer.json lists the joins ("merges") by rank; tokenizer.model gives each piece a score, and
 * two neighbours are joined where their concatenation is a piece.  A character that is no piece becomes
 * byte tokens <0x00> … <0xFF>.
 *
 * SentencePiece writes a space as U+2581 before anything else, so that "a b" and "a▁b" are the same text to
 * it.  In here it is the other way round: pieces and text hold a space where the files have U+2581.  This
 * canonical form is what a token decodes to, so one arena of bytes serves both ways. */
#include "tokenizer.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "json.h"

#define NONE (-1)
#define MAX_ID (1 << 24)
#define MAX_TEXT (1u << 30)             /* bytes encoded at once: positions have 32 bits */

enum { HOLE, NORMAL, UNUSED, USER, BYTE, CONTROL };

typedef struct {
    const char *s;                      /* canonical, in the arena, not 0-terminated */
    uint64_t hash;                      /* see hash_add */
    uint32_t len;
    uint8_t kind;
    uint8_t control;                    /* tokenizer_is_control */
    uint8_t spaced;                     /* the file has a real space in it: cannot be made from text */
} Piece;

/* The two hash tables: open addressing, linear probing, a power of two of slots, at most half of them full. */
typedef struct {
    uint32_t tag;                       /* more bits of the hash: saves comparing most of the wrong pieces */
    int id;
    uint32_t at, len;                   /* its bytes, arena[at .. at + len); len 0 = empty */
} Slot;

typedef struct {
    int left, right, id;                /* neighbours `left` and `right` become `id` */
} Merge;

typedef struct {
    uint32_t tag;
    uint32_t rank1;                     /* rank + 1; 0 = empty */
} MergeSlot;

/* A string that is one token wherever it stands in the text. */
typedef struct {
    const char *s;
    uint32_t len;
    int id;
    int control;                        /* only looked for when control tokens are asked for */
} Name;

typedef struct {
    Name *name;                         /* sorted by bytes, no two alike */
    int n, cap;
    uint8_t first[256];                 /* not 0 where a name begins with that byte */
} Names;

struct Tokenizer {
    char *path;                         /* of its file */
    char *arena;                        /* twice as large as the file, of which only what is used becomes memory */
    size_t arena_len;
    Piece *piece;                       /* [n] by id */
    int n, cap;
    uint64_t *power;                    /* [longest + 1] powers of HASH_BASE */
    uint32_t longest;                   /* bytes of the longest piece */
    Slot *slot;                         /* canonical bytes -> id */
    int slot_bits;
    Merge *merge;                       /* [n_merge] by rank; tokenizer.json only */
    int64_t n_merge, cap_merge;
    MergeSlot *merge_slot;              /* (left, right) -> rank; NULL for tokenizer.model */
    int merge_bits;
    uint32_t *rank;                     /* [cap] by id, lowest first; tokenizer.model only */
    int has_unused;
    Names raw, plain;                   /* sought in the text as it is; then, between those, in canonical text */
    uint8_t joins[256][32];             /* bit [a][b]: something that ends in byte a joins something that begins with b */
    int byte_id[256];
    int ascii_id[128];                  /* the piece that is this one character, or NONE */
    char bytes[256];                    /* bytes[b] = b: what byte tokens decode to */
};

/* ---- pieces and their table ---- */

/* The hash of a string is the sum of (byte + 1) * HASH_BASE^(number of bytes after it) modulo 2^64: the hash
 * of a concatenation follows from those of its parts, and no byte is read twice. */
#define HASH_BASE 0x9e3779b97f4a7c15u
#define HASH_MIX 0xd6e8feb86659fd93u    /* spreads the sum over the high bits, which choose the slot */

static uint64_t hash_add(uint64_t h, uint8_t byte) { return h * HASH_BASE + byte + 1; }

static uint64_t hash_of(const char *s, size_t n) {
    uint64_t h = 0;
    for (size_t i = 0; i < n; i++) h = hash_add(h, (uint8_t)s[i]);
    return h;
}

/* The canonical form of s[0..n) into out (room for n bytes), as a piece without a kind. */
static Piece canonical(char *out, const char *s, size_t n) {
    Piece p = {.s = out};
    for (size_t i = 0; i < n; i++) {
        uint8_t c = (uint8_t)s[i];
        if (c == 0xe2 && n - i >= 3 && (uint8_t)s[i + 1] == 0x96 && (uint8_t)s[i + 2] == 0x81) c = ' ', i += 2;
        else if (c == ' ') p.spaced = 1;
        *out++ = (char)c;
        p.hash = hash_add(p.hash, c);
    }
    p.len = (uint32_t)(out - p.s);
    return p;
}

/* The slot from which on a piece with that hash is sought. */
static Slot *home_slot(const Tokenizer *t, uint64_t hash) { return &t->slot[hash * HASH_MIX >> (64 - t->slot_bits)]; }

/* The slot of the piece s[0..n), whose hash is given: an empty one when there is none. */
static Slot *find_slot(const Tokenizer *t, uint64_t hash, const char *s, size_t n) {
    Slot *slot = home_slot(t, hash), *end = t->slot + ((size_t)1 << t->slot_bits);
    while (slot->len && (slot->tag != (uint32_t)hash || slot->len != n || memcmp(t->arena + slot->at, s, n)))
        if (++slot == end) slot = t->slot;
    return slot;
}

/* The id of the piece s[0..n), whose hash is given, or NONE. */
static int find_piece(const Tokenizer *t, uint64_t hash, const char *s, size_t n) {
    const Slot *slot = find_slot(t, hash, s, n);
    return slot->len ? slot->id : NONE;
}

/* The same among the pieces that text is made of; the others only have names. */
static int text_piece(const Tokenizer *t, uint64_t hash, const char *s, size_t n) {
    int id = find_piece(t, hash, s, n);
    return id != NONE && t->piece[id].kind <= UNUSED ? id : NONE;
}

static uint64_t merge_hash(int left, int right) {
    uint64_t h = ((uint64_t)left << 32 | (uint32_t)right) * HASH_BASE;
    return (h ^ h >> 29) * HASH_MIX;
}

/* The slot of a merge of left and right: an empty one when there is none. */
static MergeSlot *merge_slot(const Tokenizer *t, int left, int right) {
    uint64_t h = merge_hash(left, right);
    size_t mask = ((size_t)1 << t->merge_bits) - 1;
    for (size_t i = h >> (64 - t->merge_bits);; i = (i + 1) & mask) {
        MergeSlot *slot = &t->merge_slot[i];
        if (!slot->rank1) return slot;
        const Merge *m = &t->merge[slot->rank1 - 1];
        if (slot->tag == (uint32_t)h && m->left == left && m->right == right) return slot;
    }
}

static void set_joins(Tokenizer *t, uint8_t a, uint8_t b) { t->joins[a][b / 8] |= 1 << b % 8; }

static int may_join(const Tokenizer *t, int a, int b) {
    /* Which parts an UNUSED piece is taken apart into may depend on the whole text. */
    return t->has_unused || (a != NONE && b != NONE && t->joins[a][b / 8] >> b % 8 & 1);
}

/* Bits of the index of the smallest table that is at most half full with n entries. */
static int table_bits(int64_t n) {
    int bits = 4;
    while ((int64_t)1 << bits < 2 * n) bits++;
    return bits;
}

/* <0x00> … <0xFF> -> 0 … 255; anything else -> NONE. */
static int byte_of_name(const char *s, size_t n) {
    static const char hex[] = "0123456789ABCDEF";
    if (n != 6 || memcmp(s, "<0x", 3) || s[5] != '>') return NONE;
    const char *high = memchr(hex, s[3], 16), *low = memchr(hex, s[4], 16);
    return high && low ? (int)(high - hex) << 4 | (int)(low - hex) : NONE;
}

/* ---- names: control tokens and user-defined pieces ---- */

static int by_bytes(const void *a, const void *b) {
    const Name *x = a, *y = b;
    int order = memcmp(x->s, y->s, x->len < y->len ? x->len : y->len);
    return order ? order : (x->len > y->len) - (x->len < y->len);
}

static void add_name(Names *set, Name name) {
    if (set->n == set->cap) {
        set->cap = set->cap ? set->cap * 2 : 32;
        set->name = xrealloc(set->name, set->cap, sizeof *set->name);
    }
    set->name[set->n++] = name;
    set->first[(uint8_t)name.s[0]] = 1;
}

/* The first of the sorted names lo..hi-1 whose byte number `at` is not below c. */
static int first_from(const Names *set, int lo, int hi, size_t at, int c) {
    while (lo < hi) {
        int mid = lo + (hi - lo) / 2;
        if ((uint8_t)set->name[mid].s[at] < c) lo = mid + 1;
        else hi = mid;
    }
    return lo;
}

/* The longest name that s[0..n) begins with, or NULL.  The names that agree with the text so far are a range
 * of the sorted list, which each further byte narrows. */
static const Name *longest_name(const Names *set, const char *s, size_t n, int controls) {
    const Name *best = NULL;
    if (!n || !set->first[(uint8_t)s[0]]) return NULL;
    int lo = 0, hi = set->n;
    for (size_t at = 0; lo < hi; at++) {
        const Name *shortest = &set->name[lo];
        if (shortest->len == at) {
            if (controls || !shortest->control) best = shortest;
            lo++;
        }
        if (at == n) break;
        int c = (uint8_t)s[at];
        lo = first_from(set, lo, hi, at, c);
        hi = first_from(set, lo, hi, at, c + 1);
    }
    return best;
}

/* ---- reading: what both files share ---- */

typedef struct {
    Tokenizer *t;
    const char *path;
    Error *err;
    int n_ids;                          /* ids are below this */
    char where[600];                    /* "PATH: FIELD", for messages */
    Scan scan;                          /* tokenizer.json; names errors by `where` */
    int made;                           /* what the last merge makes */
    const char *merges_at;              /* where they stand, if before the vocabulary */
    int is_bpe, is_replace, has_fallback, has_vocab;
    Name *added;                        /* added_tokens, s still as in the file */
    int n_added, cap_added;
} Reader;

/* Sets the place that errors from here on name. */
static void in_field(Reader *r, const char *field) {
    snprintf(r->where, sizeof r->where, "%.500s: %s", r->path, field);
}

/* How much of a string from a file is shown in a message. */
static int shown(size_t n) { return n < 40 ? (int)n : 40; }

static char *arena_end(Tokenizer *t) { return t->arena + t->arena_len; }

/* Adds the piece s, spelled as in the file, under id. */
static int add_piece(Reader *r, int64_t id, Str s, uint8_t kind) {
    Tokenizer *t = r->t;
    if (!s.n) return fail(r->err, "%s: empty string with id %lld", r->where, (long long)id);
    if (id < 0 || id >= r->n_ids)
        return fail(r->err, "%s: id %lld of '%.*s' out of range", r->where, (long long)id, shown(s.n), s.s);
    if (id >= t->cap) {
        int cap = t->cap ? t->cap : 1024;
        while (cap <= id) cap *= 2;
        t->piece = xrealloc(t->piece, cap, sizeof *t->piece);
        t->cap = cap;
    }
    while (t->n <= id) t->piece[t->n++] = (Piece){.s = "", .kind = HOLE};
    if (t->piece[id].kind != HOLE)
        return fail(r->err, "%s: id %lld of '%.*s' is taken", r->where, (long long)id, shown(s.n), s.s);
    Piece p = canonical(arena_end(t), s.s, s.n);
    p.kind = kind;
    t->piece[id] = p;
    t->arena_len += p.len;
    if (p.len > t->longest) t->longest = p.len;
    return 0;
}

/* Builds the table of the pieces added so far. */
static int index_pieces(Reader *r) {
    Tokenizer *t = r->t;
    t->slot_bits = table_bits(t->n);
    t->slot = xcalloc((int64_t)1 << t->slot_bits, sizeof *t->slot);
    for (int id = 0; id < t->n; id++) {
        const Piece *p = &t->piece[id];
        if (p->kind == HOLE || p->spaced) continue;
        Slot *slot = find_slot(t, p->hash, p->s, p->len);
        if (slot->len) return fail(r->err, "%s: '%.*s' appears twice", r->where, shown(p->len), p->s);
        *slot = (Slot){(uint32_t)p->hash, id, (uint32_t)(p->s - t->arena), p->len};
    }
    t->power = xcalloc((int64_t)t->longest + 1, sizeof *t->power);
    t->power[0] = 1;
    for (uint32_t i = 0; i < t->longest; i++) t->power[i + 1] = t->power[i] * HASH_BASE;
    return 0;
}

static int sort_names(Reader *r, Names *set) {
    if (set->n) qsort(set->name, (size_t)set->n, sizeof *set->name, by_bytes);
    for (int i = 1; i < set->n; i++)
        if (!by_bytes(&set->name[i - 1], &set->name[i]))
            return fail(r->err, "%s: '%.*s' appears twice", r->where, shown(set->name[i].len), set->name[i].s);
    return 0;
}

/* Checks and tables for which all pieces must be known. */
static int finish(Reader *r) {
    Tokenizer *t = r->t;
    for (int b = 0; b < 256; b++) t->byte_id[b] = NONE, t->bytes[b] = (char)b;
    for (int id = 0; id < t->n; id++)
        if (t->piece[id].kind == BYTE) t->byte_id[byte_of_name(t->piece[id].s, t->piece[id].len)] = id;
    for (int b = 0; b < 256; b++)
        if (t->byte_id[b] == NONE) return fail(r->err, "%s: no byte piece <0x%02X>", r->where, b);
    for (int c = 0; c < 128; c++) {
        char s = (char)c;
        t->ascii_id[c] = text_piece(t, hash_of(&s, 1), &s, 1);
    }
    if (t->ascii_id[' '] == NONE || t->piece[t->ascii_id[' ']].kind != NORMAL)
        return fail(r->err, "%s: no piece U+2581 (the space)", r->where);
    return 0;
}

/* ---- tokenizer.json ---- */

/* An object whose values are read by on_key; errors in it name `field`. */
static int read_object(Reader *r, const char *field, int (*on_key)(Reader *r, Str key)) {
    Str key;
    int more;
    in_field(r, field);
    if (scan_take(&r->scan, '{')) return -1;
    for (int i = 0; (more = scan_next(&r->scan, i, '}')) > 0; i++) {
        if (scan_key(&r->scan, &key) || on_key(r, key)) return -1;
        in_field(r, field);
    }
    return more;
}

/* Passes over a value that must be null, "" or (where may_be_false is set) false. */
static int read_unset(Reader *r, int may_be_false) {
    char c = scan_peek(&r->scan);
    Str s = {0};
    if (c == '"' ? scan_string(&r->scan, &s) : scan_skip(&r->scan)) return -1;
    int unset = c == 'n' || (may_be_false && c == 'f') || (c == '"' && !s.n);
    return unset ? 0 : fail(r->err, "%s is not supported", r->where);
}

static int on_added_key(Reader *r, Str key) {
    Scan *s = &r->scan;
    Name *name = &r->added[r->n_added];
    int64_t id;
    Str content;
    if (str_is(key, "id")) {
        if (scan_int(s, &id)) return -1;
        name->id = id < 0 || id >= r->n_ids ? r->n_ids : (int)id;
    } else if (str_is(key, "content")) {
        if (scan_string(s, &content)) return -1;
        name->s = memcpy(arena_end(r->t), content.s, content.n);
        name->len = (uint32_t)content.n;
        r->t->arena_len += content.n;
    } else if (str_is(key, "normalized")) return scan_bool(s, &name->control);
    else if (str_is(key, "single_word")) return in_field(r, "added_tokens[].single_word"), read_unset(r, 1);
    else if (str_is(key, "lstrip")) return in_field(r, "added_tokens[].lstrip"), read_unset(r, 1);
    else if (str_is(key, "rstrip")) return in_field(r, "added_tokens[].rstrip"), read_unset(r, 1);
    else return scan_skip(s);
    return 0;
}

/* added_tokens: kept in r->added, with `control` standing for `normalized`, until the pieces are known. */
static int read_added(Reader *r) {
    int more;
    in_field(r, "added_tokens");
    if (scan_take(&r->scan, '[')) return -1;
    for (int i = 0; (more = scan_next(&r->scan, i, ']')) > 0; i++) {
        if (r->n_added == r->cap_added) {
            r->cap_added = r->cap_added ? r->cap_added * 2 : 32;
            r->added = xrealloc(r->added, r->cap_added, sizeof *r->added);
        }
        Name *name = &r->added[r->n_added];
        *name = (Name){.id = NONE};
        if (read_object(r, "added_tokens", on_added_key)) return -1;
        if (!name->len) return fail(r->err, "%s: number %d has no content", r->where, i);
        if (name->id < 0 || name->id >= r->n_ids)
            return fail(r->err, "%s: id of '%.*s' missing or out of range", r->where, shown(name->len), name->s);
        r->n_added++;
    }
    return more;
}

static int on_pattern_key(Reader *r, Str key) {
    Str s;
    if (!str_is(key, "String")) return scan_skip(&r->scan);
    if (scan_string(&r->scan, &s)) return -1;
    r->is_replace += str_is(s, " ");
    return 0;
}

static int on_normalizer_key(Reader *r, Str key) {
    Str s;
    if (str_is(key, "pattern")) return read_object(r, "normalizer.pattern", on_pattern_key);
    if (!str_is(key, "type") && !str_is(key, "content")) return scan_skip(&r->scan);
    int is_type = str_is(key, "type");
    if (scan_string(&r->scan, &s)) return -1;
    r->is_replace += str_is(s, is_type ? "Replace" : "\xe2\x96\x81");
    return 0;
}

static int read_vocab(Reader *r) {
    Scan *s = &r->scan;
    Str piece;
    int64_t id;
    int more;
    in_field(r, "model.vocab");
    if (r->has_vocab) return fail(r->err, "%s appears twice", r->where);
    if (scan_take(s, '{')) return -1;
    for (int i = 0; (more = scan_next(s, i, '}')) > 0; i++) {
        /* The id stands after the string, which with escapes lives in s->text: no string comes between. */
        if (scan_key(s, &piece) || scan_int(s, &id)) return -1;
        if (add_piece(r, id, piece, byte_of_name(piece.s, piece.n) == NONE ? NORMAL : BYTE)) return -1;
    }
    if (more < 0) return -1;
    r->has_vocab = 1;
    return index_pieces(r);
}

/* Merges are read and looked up in batches, for the time goes into waiting for memory: what a batch needs is
 * asked for at once. */
#define BATCH 32

/* The two sides of a merge: ["a", "b"], or "a b" in older files.  Their bytes go to out, which is moved. */
static int read_merge(Reader *r, Piece side[2], char **out) {
    Scan *s = &r->scan;
    Str str[2];
    int is_list = scan_peek(s) == '[';
    if (is_list) s->p++;
    for (int i = 0; i < 2; i++) {
        if (is_list) {
            if ((i && scan_take(s, ',')) || scan_string(s, &str[i])) return -1;
        } else if (i == 0) {
            if (scan_string(s, &str[0])) return -1;
            const char *space = memchr(str[0].s, ' ', str[0].n);
            if (!space) return fail(r->err, "%s: '%.*s' is not two strings", r->where, shown(str[0].n), str[0].s);
            str[1] = (Str){space + 1, (size_t)(str[0].s + str[0].n - space - 1)};
            str[0].n = (size_t)(space - str[0].s);
        }
        side[i] = canonical(*out, str[i].s, str[i].n);
        *out += side[i].len;
        __builtin_prefetch(home_slot(r->t, side[i].hash));
    }
    return is_list ? scan_take(s, ']') : 0;
}

static int find_side(Reader *r, const Piece *p) {
    int id = p->spaced ? NONE : find_piece(r->t, p->hash, p->s, p->len);
    if (id == NONE)
        fail(r->err, "%s: number %lld: '%.*s' is not in model.vocab", r->where, (long long)r->t->n_merge, shown(p->len), p->s);
    return id;
}

/* Is piece id the concatenation of p and q? */
static int is_joined(const Tokenizer *t, int id, const Piece *p, const Piece *q) {
    const Piece *both = &t->piece[id];
    return id < t->n && both->len == p->len + q->len && !memcmp(both->s, p->s, p->len) &&
           !memcmp(both->s + p->len, q->s, q->len);
}

/* Adds a merge of pieces whose bytes stand one after the other. */
static int add_merge(Reader *r, const Piece *p, const Piece *q) {
    Tokenizer *t = r->t;
    int left = find_side(r, p), right = left == NONE ? NONE : find_side(r, q), id = r->made;
    if (right == NONE) return -1;
    /* Merges usually stand in the order of the pieces they make, all ways to make one together. */
    if (!is_joined(t, id, p, q) && !is_joined(t, ++id, p, q))
        id = find_piece(t, p->hash * t->power[q->len] + q->hash, p->s, p->len + q->len);
    if (id == NONE)
        return fail(r->err, "%s: number %lld: '%.*s' is not in model.vocab", r->where, (long long)t->n_merge,
                    shown(p->len + q->len), p->s);
    if (t->n_merge == t->cap_merge) {
        t->cap_merge = t->cap_merge ? t->cap_merge * 2 : 1024;
        t->merge = xrealloc(t->merge, t->cap_merge, sizeof *t->merge);
    }
    t->merge[t->n_merge++] = (Merge){left, right, id};
    set_joins(t, (uint8_t)p->s[p->len - 1], (uint8_t)q->s[0]);
    r->made = id;
    return 0;
}

static int read_merges(Reader *r) {
    Tokenizer *t = r->t;
    Piece side[BATCH][2];
    int more = 1, i = 0;
    in_field(r, "model.merges");
    if (scan_take(&r->scan, '[')) return -1;
    while (more) {
        char *out = arena_end(t);
        int n = 0;
        for (; n < BATCH && (more = scan_next(&r->scan, i, ']')) > 0; n++, i++)
            if (read_merge(r, side[n], &out)) return -1;
        if (more < 0) return -1;
        for (int k = 0; k < 2 * n; k++) __builtin_prefetch(t->arena + home_slot(t, side[k / 2][k % 2].hash)->at);
        for (int k = 0; k < n; k++)
            if (add_merge(r, &side[k][0], &side[k][1])) return -1;
    }
    return 0;
}

/* Builds the table of the merges.  Where a pair appears twice, the later one holds, as in transformers. */
static void index_merges(Tokenizer *t) {
    t->merge_bits = table_bits(t->n_merge);
    t->merge_slot = xcalloc((int64_t)1 << t->merge_bits, sizeof *t->merge_slot);
    for (int64_t i = 0; i < t->n_merge; i++) {
        const Merge *m = &t->merge[i], *ahead = &t->merge[i + 16 < t->n_merge ? i + 16 : i];
        __builtin_prefetch(&t->merge_slot[merge_hash(ahead->left, ahead->right) >> (64 - t->merge_bits)]);
        *merge_slot(t, m->left, m->right) = (MergeSlot){(uint32_t)merge_hash(m->left, m->right), (uint32_t)i + 1};
    }
}

static int on_model_key(Reader *r, Str key) {
    Scan *s = &r->scan;
    Str type;
    if (str_is(key, "type")) {
        if (in_field(r, "model.type"), scan_string(s, &type)) return -1;
        r->is_bpe = str_is(type, "BPE");
        return r->is_bpe ? 0 : fail(r->err, "%s is '%.*s', not BPE", r->where, shown(type.n), type.s);
    }
    if (str_is(key, "byte_fallback")) return in_field(r, "model.byte_fallback"), scan_bool(s, &r->has_fallback);
    if (str_is(key, "ignore_merges")) return in_field(r, "model.ignore_merges"), read_unset(r, 1);
    if (str_is(key, "continuing_subword_prefix"))
        return in_field(r, "model.continuing_subword_prefix"), read_unset(r, 0);
    if (str_is(key, "end_of_word_suffix")) return in_field(r, "model.end_of_word_suffix"), read_unset(r, 0);
    if (str_is(key, "vocab")) return read_vocab(r);
    if (str_is(key, "merges") && r->has_vocab) return read_merges(r);
    if (str_is(key, "merges")) scan_peek(s), r->merges_at = s->p;
    return scan_skip(s);
}

static int read_model(Reader *r) {
    if (r->t->merge_slot) return fail(r->err, "%s: model appears twice", r->path);
    if (read_object(r, "model", on_model_key)) return -1;
    if (!r->is_bpe) return fail(r->err, "%s.type missing", r->where);
    if (!r->has_fallback) return fail(r->err, "%s.byte_fallback is not true", r->where);
    if (!r->has_vocab) return fail(r->err, "%s.vocab missing", r->where);
    if (r->merges_at) {
        const char *after = r->scan.p;
        r->scan.p = r->merges_at;
        if (read_merges(r)) return -1;
        r->scan.p = after;
    }
    index_merges(r->t);
    return 0;
}

static int on_top_key(Reader *r, Str key) {
    if (str_is(key, "added_tokens")) return read_added(r);
    if (str_is(key, "model")) return read_model(r);
    if (!str_is(key, "normalizer")) return scan_skip(&r->scan);
    if (scan_peek(&r->scan) == '{' && read_object(r, "normalizer", on_normalizer_key)) return -1;
    return r->is_replace == 3 ? 0 : fail(r->err, "%s: normalizer is not Replace ' ' -> U+2581", r->path);
}

/* Turns r->added into names: each is the piece of its id, or a new one. */
static int name_added(Reader *r) {
    Tokenizer *t = r->t;
    for (int i = 0; i < r->n_added; i++) {
        Name name = r->added[i];
        int normalized = name.control;
        Piece p = canonical(arena_end(t), name.s, name.len);
        if (name.id < t->n && t->piece[name.id].kind != HOLE) {
            Piece *q = &t->piece[name.id];
            if (q->len != p.len || memcmp(q->s, p.s, p.len))
                return fail(r->err, "%s: '%.*s' has id %d, which is '%.*s' in model.vocab", r->where,
                            shown(name.len), name.s, name.id, shown(q->len), q->s);
        } else {
            if (!p.spaced && find_piece(t, p.hash, p.s, p.len) != NONE)
                return fail(r->err, "%s: '%.*s' has another id in model.vocab", r->where, shown(name.len), name.s);
            if (add_piece(r, name.id, (Str){name.s, name.len}, CONTROL)) return -1;
        }
        t->piece[name.id].control = 1;
        name.control = 1;
        if (normalized) name.s = t->piece[name.id].s, name.len = t->piece[name.id].len;
        add_name(normalized ? &t->plain : &t->raw, name);
    }
    return 0;
}

static int read_json(Reader *r, Str file) {
    r->scan = scan_open(file.s, file.n, r->where, r->err);
    if (read_object(r, "top level", on_top_key)) return -1;
    if (scan_peek(&r->scan)) return scan_fail(&r->scan, "not valid JSON: more text after the end");
    if (!r->t->merge_slot) return fail(r->err, "%s: model missing", r->path);
    if (!r->is_replace) return fail(r->err, "%s: normalizer missing", r->path);
    in_field(r, "added_tokens");
    if (name_added(r) || sort_names(r, &r->t->raw) || sort_names(r, &r->t->plain)) return -1;
    in_field(r, "model.vocab");
    return finish(r);
}

/* ---- tokenizer.model: a SentencePiece ModelProto, read from protobuf's wire format ---- */

typedef struct {
    const uint8_t *p, *end;
} Wire;

typedef struct {
    int number;
    uint64_t value;                     /* of numbers; floats as their bits */
    Wire bytes;                         /* of strings and messages */
} Field;

static int read_varint(Wire *w, uint64_t *v) {
    *v = 0;
    for (int shift = 0; shift < 64 && w->p < w->end; shift += 7) {
        uint8_t byte = *w->p++;
        *v |= (uint64_t)(byte & 127) << shift;
        if (byte < 128) return 0;
    }
    return -1;
}

/* 1: a field was read; 0: the end; -1: these bytes are no protobuf message. */
static int next_field(Wire *w, Field *f) {
    uint64_t key;
    *f = (Field){0};
    if (w->p == w->end) return 0;
    if (read_varint(w, &key)) return -1;
    f->number = key >> 3 < 1 << 29 ? (int)(key >> 3) : 0;
    int type = key & 7, n = type == 1 ? 8 : 4;
    if (type == 0) return read_varint(w, &f->value) ? -1 : 1;
    if (type == 2) {
        uint64_t len;
        if (read_varint(w, &len) || len > (uint64_t)(w->end - w->p)) return -1;
        f->bytes = (Wire){w->p, w->p + len};
        w->p += len;
        return 1;
    }
    if ((type != 1 && type != 5) || w->end - w->p < n) return -1;
    for (int i = 0; i < n; i++) f->value |= (uint64_t)*w->p++ << 8 * i;
    return 1;
}

/* Scores order pieces, highest first: as an unsigned number whose order is the opposite. */
static uint32_t rank_of_score(uint32_t bits) {
    return bits & 0x80000000 ? bits : ~(bits | 0x80000000);
}

static int read_piece(Reader *r, Wire w, int id) {
    static const uint8_t kinds[] = {0, NORMAL, CONTROL /* unknown */, CONTROL, USER, UNUSED, BYTE};
    Tokenizer *t = r->t;
    Field f;
    Str s = {"", 0};
    uint64_t score = 0, type = 1;
    int more;
    while ((more = next_field(&w, &f)) > 0) {
        if (f.number == 1 && f.bytes.p) s = (Str){(const char *)f.bytes.p, (size_t)(f.bytes.end - f.bytes.p)};
        if (f.number == 2) score = f.value;
        if (f.number == 3) type = f.value;
    }
    if (more < 0) return fail(r->err, "%s: number %d is broken", r->where, id);
    if (type < 1 || type > 6)
        return fail(r->err, "%s: number %d: type %llu unknown", r->where, id, (unsigned long long)type);
    if ((score & 0x7fffffff) > 0x7f800000) return fail(r->err, "%s: number %d: score is not a number", r->where, id);
    if (type == 6 && byte_of_name(s.s, s.n) == NONE)
        return fail(r->err, "%s: number %d: '%.*s' names no byte", r->where, id, shown(s.n), s.s);
    int cap = t->cap;
    if (add_piece(r, id, s, kinds[type])) return -1;
    if (t->cap > cap) t->rank = xrealloc(t->rank, t->cap, sizeof *t->rank);
    Piece *p = &t->piece[id];
    t->rank[id] = rank_of_score((uint32_t)score);
    t->has_unused |= p->kind == UNUSED;
    if (p->kind == NORMAL)
        for (uint32_t i = 1; i < p->len; i++) set_joins(t, (uint8_t)p->s[i - 1], (uint8_t)p->s[i]);
    int bracketed = p->len > 2 && p->s[0] == '<' && p->s[p->len - 1] == '>';
    p->control = p->kind == CONTROL || (p->kind == USER && bracketed);
    /* Control pieces are sought first and in the text as it is, as transformers does; SentencePiece itself
     * only knows user-defined pieces in text. */
    Name name = {p->s, p->len, id, p->control};
    if (p->kind == CONTROL) add_name(&t->raw, name);
    if (p->kind == USER && !p->spaced) add_name(&t->plain, name);
    return 0;
}

static int read_trainer_spec(Reader *r, Wire w) {
    Field f;
    uint64_t model_type = 1, byte_fallback = 0;
    int more;
    while ((more = next_field(&w, &f)) > 0) {
        if (f.number == 3) model_type = f.value;
        if (f.number == 35) byte_fallback = f.value;
    }
    if (more < 0) return fail(r->err, "%s: trainer_spec is broken", r->path);
    if (model_type != 2)
        return fail(r->err, "%s: trainer_spec.model_type is %llu, not 2 (BPE)", r->path, (unsigned long long)model_type);
    if (!byte_fallback) return fail(r->err, "%s: trainer_spec.byte_fallback is not true", r->path);
    return 0;
}

static int read_normalizer_spec(Reader *r, Wire w) {
    Field f;
    uint64_t charsmap = 0, dummy_prefix = 1, remove_extra = 1, escape = 1;
    int more;
    while ((more = next_field(&w, &f)) > 0) {
        if (f.number == 2) charsmap = (uint64_t)(f.bytes.end - f.bytes.p);
        if (f.number == 3) dummy_prefix = f.value;
        if (f.number == 4) remove_extra = f.value;
        if (f.number == 5) escape = f.value;
    }
    if (more < 0) return fail(r->err, "%s: normalizer_spec is broken", r->path);
    if (charsmap) return fail(r->err, "%s: normalizer_spec.precompiled_charsmap is not empty", r->path);
    if (dummy_prefix) return fail(r->err, "%s: normalizer_spec.add_dummy_prefix is not false", r->path);
    if (remove_extra) return fail(r->err, "%s: normalizer_spec.remove_extra_whitespaces is not false", r->path);
    if (!escape) return fail(r->err, "%s: normalizer_spec.escape_whitespaces is not true", r->path);
    return 0;
}

static int read_proto(Reader *r, Str file) {
    Wire w = {(const uint8_t *)file.s, (const uint8_t *)file.s + file.n}, trainer = {0}, normalizer = {0};
    Field f;
    int more, id = 0;
    in_field(r, "pieces");
    while ((more = next_field(&w, &f)) > 0) {
        if (f.number == 1 && read_piece(r, f.bytes, id++)) return -1;
        if (f.number == 2) trainer = f.bytes;
        if (f.number == 3) normalizer = f.bytes;
    }
    if (more < 0) return fail(r->err, "%s: not a SentencePiece model: broken after pieces[%d]", r->path, id - 1);
    if (!id) return fail(r->err, "%s: no pieces", r->path);
    if (read_trainer_spec(r, trainer) || read_normalizer_spec(r, normalizer) || index_pieces(r)) return -1;
    return sort_names(r, &r->t->raw) || sort_names(r, &r->t->plain) ? -1 : finish(r);
}

/* ---- opening ---- */

static Tokenizer *open_file(const char *path, int (*read)(Reader *, Str), Error *err) {
    Str file = {0};
    file.s = (const char *)map_file(path, &file.n, err);
    if (!file.s) return NULL;
    /* Shorter than 4 bytes no piece is in either file: a lone large id in a broken one makes us allocate no more than that. */
    Reader r = {.t = xcalloc(1, sizeof *r.t), .path = path, .err = err, .n_ids = file.n / 4 < MAX_ID ? (int)(file.n / 4) : MAX_ID};
    int bad = file.n > INT32_MAX ? fail(err, "%s: too large", path) : 0;
    if (!bad) {
        r.t->path = xstrdup(path);
        r.t->arena = xmalloc(2 * file.n);
        bad = read(&r, file);
    }
    scan_close(&r.scan);
    free(r.added);
    unmap_file(file.s, file.n);
    if (!bad) return r.t;
    tokenizer_free(r.t);
    return NULL;
}

Tokenizer *tokenizer_open(const char *dir, Error *err) {
    Buf json = {0}, model = {0};
    Tokenizer *t = NULL;
    buf_printf(&json, "%s/tokenizer.json", dir);
    buf_printf(&model, "%s/tokenizer.model", dir);
    if (!access(json.data, F_OK)) t = open_file(json.data, read_json, err);
    else if (!access(model.data, F_OK)) t = open_file(model.data, read_proto, err);
    else fail(err, "%s: neither tokenizer.json nor tokenizer.model there", dir);
    buf_free(&json);
    buf_free(&model);
    return t;
}

void tokenizer_free(Tokenizer *t) {
    if (!t) return;
    free(t->path);
    free(t->arena);
    free(t->piece);
    free(t->power);
    free(t->slot);
    free(t->merge);
    free(t->merge_slot);
    free(t->rank);
    free(t->raw.name);
    free(t->plain.name);
    free(t);
}

/* ---- encoding ----
 *
 * Byte-pair encoding: the text is a linked list of symbols, first one for each character, and of all pairs
 * of neighbours that can be joined the one with the lowest rank is, the leftmost of equals, until none is
 * left.  A heap holds the candidates; those that a join has overtaken are dropped when they come up. */

typedef struct {
    uint32_t prev, next;                /* byte positions in the text; NO_SYMBOL before the first, n after the last */
    int id;                             /* or NONE: a character that is no piece (tokenizer.model only) */
    int makes;                          /* the piece that it and its right neighbour make, or NONE; FROZEN: it is never joined */
} Symbol;
#define FROZEN (-2)
#define NO_SYMBOL UINT32_MAX

typedef struct {
    uint64_t key;                       /* rank << 32 | position of the left symbol */
    int id;                             /* what the two make */
} Candidate;

typedef struct {
    const Tokenizer *t;
    int controls;
    Ids *out;
    const char *text;                   /* canonical, from the run on */
    Symbol *symbol;                     /* [n], a symbol stands where its first byte does */
    uint32_t n, cap_symbol;             /* bytes of the run */
    uint32_t last;                      /* while cutting: where the last symbol is */
    Candidate *heap;                    /* 4-ary: the children of i are 4i + 1 … 4i + 4 */
    size_t n_heap, cap_heap;
    uint32_t *split;                    /* [t->n] by id of an UNUSED piece: length of the left part it was made of */
} Encoder;

static void sift_up(Encoder *e, size_t i) {
    Candidate c = e->heap[i];
    for (; i && c.key < e->heap[(i - 1) / 4].key; i = (i - 1) / 4) e->heap[i] = e->heap[(i - 1) / 4];
    e->heap[i] = c;
}

static void sift_down(Encoder *e, size_t i) {
    Candidate c = e->heap[i];
    for (size_t child; (child = 4 * i + 1) < e->n_heap;) {
        size_t end = child + 4 < e->n_heap ? child + 4 : e->n_heap, least = child;
        while (++child < end)
            if (e->heap[child].key < e->heap[least].key) least = child;
        if (c.key <= e->heap[least].key) break;
        e->heap[i] = e->heap[least];
        i = least;
    }
    e->heap[i] = c;
}

/* tokenizer.model: what the symbols at left and right make together. */
static int join_by_text(const Encoder *e, uint32_t left, uint32_t right) {
    const Tokenizer *t = e->t;
    const Symbol *a = &e->symbol[left], *b = &e->symbol[right];
    const char *s = e->text + left;
    uint32_t n = right - left, m = b->next - right;
    if (n + m > t->longest) return NONE;
    uint64_t hash_a = a->id == NONE ? hash_of(s, n) : t->piece[a->id].hash;
    uint64_t hash_b = b->id == NONE ? hash_of(s + n, m) : t->piece[b->id].hash;
    int id = text_piece(t, hash_a * t->power[m] + hash_b, s, n + m);
    if (id != NONE && t->piece[id].kind == UNUSED) e->split[id] = n;
    return id;
}

/* Looks up what the symbol at left and its neighbour make; if anything, adds it to the end of the heap (yet
 * to be sifted) and returns 1. */
static int propose(Encoder *e, uint32_t left) {
    const Tokenizer *t = e->t;
    Symbol *a = &e->symbol[left];
    uint32_t rank = 0;
    if (a->makes == FROZEN) return 0;
    a->makes = NONE;
    if (a->next == e->n || e->symbol[a->next].makes == FROZEN) return 0;
    if (t->merge_slot) {
        rank = merge_slot(t, a->id, e->symbol[a->next].id)->rank1;
        if (!rank) return 0;
        a->makes = t->merge[rank - 1].id;
    } else {
        if ((a->makes = join_by_text(e, left, a->next)) == NONE) return 0;
        rank = t->rank[a->makes];
    }
    if (e->n_heap == e->cap_heap) {
        e->cap_heap = e->cap_heap ? e->cap_heap * 2 : 256;
        e->heap = xrealloc(e->heap, (int64_t)e->cap_heap, sizeof *e->heap);
    }
    e->heap[e->n_heap++] = (Candidate){(uint64_t)rank << 32 | left, a->makes};
    return 1;
}

static void join_all(Encoder *e) {
    e->n_heap = 0;
    for (uint32_t i = 0; i < e->n; i = e->symbol[i].next) propose(e, i);
    for (size_t i = e->n_heap / 4 + 1; i-- > 0;)
        if (i < e->n_heap) sift_down(e, i);
    while (e->n_heap) {
        Candidate c = e->heap[0];
        e->heap[0] = e->heap[--e->n_heap];
        if (e->n_heap) sift_down(e, 0);
        uint32_t left = (uint32_t)c.key;
        Symbol *a = &e->symbol[left];
        if (a->makes != c.id) continue;             /* overtaken */
        Symbol *b = &e->symbol[a->next];
        a->id = c.id;
        a->next = b->next;
        b->makes = NONE;
        if (a->next != e->n) e->symbol[a->next].prev = left;
        if (propose(e, left)) sift_up(e, e->n_heap - 1);
        if (a->prev != NO_SYMBOL && propose(e, a->prev)) sift_up(e, e->n_heap - 1);
    }
}

/* The piece that is the character s[0..n), or NONE. */
static int char_id(const Tokenizer *t, const char *s, int n) {
    return n == 1 ? t->ascii_id[(uint8_t)s[0]] : text_piece(t, hash_of(s, (size_t)n), s, (size_t)n);
}

static void add_symbol(Encoder *e, uint32_t len, int id, int frozen) {
    if (e->n + len > e->cap_symbol) {
        e->cap_symbol = 2 * (e->n + len);
        e->symbol = xrealloc(e->symbol, e->cap_symbol, sizeof *e->symbol);
    }
    e->symbol[e->n] = (Symbol){e->last, e->n + len, id, frozen ? FROZEN : NONE};
    e->last = e->n;
    e->n += len;
}

/* Makes the symbols to begin with of a run: of text[0..n) up to the first place that no join can cross.
 * Between words there mostly is one, and short runs are fast.  To tokenizer.json the bytes of a character
 * that is no piece are symbols like any other; to SentencePiece the character is one symbol, which may still
 * become a part of a piece. */
static void cut(Encoder *e, size_t n) {
    const Tokenizer *t = e->t;
    int tail = NONE;                    /* the last byte so far, as it is in pieces; NONE where nothing joins */
    e->n = 0;
    e->last = NO_SYMBOL;
    while (e->n < n) {
        const char *s = e->text + e->n;
        const Name *name = longest_name(&t->plain, s, n - e->n, e->controls);
        int len = name ? (int)name->len : utf8_char(s, n - e->n);
        int id = name ? name->id : len > 0 ? char_id(t, s, len) : NONE;
        int as_bytes = !name && (len <= 0 || (id == NONE && t->merge_slot));
        int frozen = name || (as_bytes && !t->merge_slot);
        if (len <= 0) len = 1;
        int head = frozen ? NONE : as_bytes ? '<' : (uint8_t)s[0];
        if (e->n && !may_join(t, tail, head)) break;
        if (!as_bytes) add_symbol(e, (uint32_t)len, id, frozen);
        else
            for (int k = 0; k < len; k++) add_symbol(e, 1, t->byte_id[(uint8_t)s[k]], frozen);
        tail = frozen ? NONE : as_bytes ? '>' : (uint8_t)s[len - 1];
    }
}

/* Adds the ids of a symbol, s[0..n).  A piece that is UNUSED is taken apart again the way it was made, and a
 * single UNUSED character counts as unknown. */
static void emit(Encoder *e, int id, const char *s, uint32_t n) {
    const Tokenizer *t = e->t;
    int unused = id != NONE && t->piece[id].kind == UNUSED;
    uint32_t half = unused ? e->split[id] : 0;
    if (half) {
        emit(e, text_piece(t, hash_of(s, half), s, half), s, half);
        emit(e, text_piece(t, hash_of(s + half, n - half), s + half, n - half), s + half, n - half);
    } else if (id == NONE || unused) {
        for (uint32_t i = 0; i < n; i++) ids_add(e->out, t->byte_id[(uint8_t)s[i]]);
    } else ids_add(e->out, id);
}

/* Adds the ids of s[0..n), in which no raw name is sought any more. */
static void encode_plain(Encoder *e, const char *s, size_t n) {
    if (!n) return;
    while (n > MAX_TEXT) {
        size_t part = MAX_TEXT;
        while (part > MAX_TEXT - 3 && (s[part] & 0xc0) == 0x80) part--;     /* not within a character */
        encode_plain(e, s, part);
        s += part;
        n -= part;
    }
    char *text = xmalloc(n);
    n = canonical(text, s, n).len;
    e->text = text;
    for (; n; n -= e->n, e->text += e->n) {
        cut(e, n);
        join_all(e);
        for (uint32_t i = 0; i < e->n; i = e->symbol[i].next)
            emit(e, e->symbol[i].id, e->text + i, e->symbol[i].next - i);
    }
    free(text);
}

void tokenizer_encode(const Tokenizer *t, const char *text, size_t n, int controls, Ids *out) {
    Encoder e = {.t = t, .controls = controls, .out = out};
    if (!n) return;
    if (t->has_unused) e.split = xcalloc(t->n, sizeof *e.split);
    size_t from = 0;
    for (size_t i = 0; controls && i < n;) {
        const Name *name = longest_name(&t->raw, text + i, n - i, controls);
        if (!name) {
            i++;
            continue;
        }
        encode_plain(&e, text + from, i - from);
        ids_add(out, name->id);
        from = i += name->len;
    }
    encode_plain(&e, text + from, n - from);
    free(e.symbol);
    free(e.heap);
    free(e.split);
}

/* ---- looking things up ---- */

const char *tokenizer_file(const Tokenizer *t) { return t->path; }

int tokenizer_n_vocab(const Tokenizer *t) { return t->n; }

int tokenizer_control(const Tokenizer *t, const char *name) {
    const Names *sets[] = {&t->raw, &t->plain};
    size_t n = strlen(name);
    for (int k = 0; k < 2; k++) {
        const Name *found = longest_name(sets[k], name, n, 1);
        if (found && found->len == n && found->control) return found->id;
    }
    return NONE;
}

int tokenizer_is_control(const Tokenizer *t, int id) { return id >= 0 && id < t->n && t->piece[id].control; }

const char *tokenizer_text(const Tokenizer *t, int id, size_t *n) {
    *n = 0;
    if (id < 0 || id >= t->n) return "";
    const Piece *p = &t->piece[id];
    *n = p->kind == BYTE ? 1 : p->len;
    return p->kind == BYTE ? &t->bytes[byte_of_name(p->s, p->len)] : p->s;
}
