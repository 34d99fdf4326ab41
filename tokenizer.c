/* tokenizer.c - text to token ids and back.  See tokenizer.h.
 *
 * Both files describe the same thing: pieces (strings with ids) and the order in which neighbours
 * are joined.  tokenizer.json lists the joins ("merges") by rank; tokenizer.model gives each piece
 * a score, and two neighbours are joined where their concatenation is a piece.  A character that is
 * no piece becomes byte tokens <0x00> … <0xFF>.
 *
 * SentencePiece replaces every space of a text by U+2581 before anything else, so that it cannot
 * tell "a b" from "a▁b".  This file does the opposite: pieces and text have a space where the
 * files have U+2581.  A token decodes to this canonical form, so that the same bytes serve
 * encoding and decoding. */
#include "tokenizer.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "directory.h"
#include "json.h"

#define NONE (-1)
#define MAX_ID (1 << 24)                /* ids are below: far more than any vocabulary has */
#define MAX_TEXT (1u << 30)             /* bytes encoded at once: positions have 32 bits */

/* What a piece is.  HOLE: no piece has this id.  UNUSED: a step on the way to longer pieces that
 * is taken apart again where it remains.  USER, CONTROL: see Name.  Text consists of NORMAL and
 * UNUSED pieces; text_piece relies on their being the smallest. */
enum { HOLE, NORMAL, UNUSED, USER, BYTE, CONTROL };

typedef struct {
    const char *s;                      /* canonical, in the arena, not 0-terminated */
    uint64_t hash;                      /* see hash_add */
    uint32_t len;
    uint8_t kind;
    uint8_t control;                    /* 1: tokenizer_is_control says so */
    uint8_t spaced;                     /* the file spells it with a real space, which no text
                                         * contains: every space of a text becomes U+2581 */
} Piece;

/* Slot and MergeSlot are the entries of the two hash tables: open addressing, linear probing, a
 * power of two of slots, at most half of them full. */
typedef struct {
    uint32_t tag;                       /* low bits of the hash: spares most comparisons of bytes */
    int id;
    uint32_t at;                        /* the bytes of the piece are arena[at .. at + len) */
    uint32_t len;                       /* 0: an empty slot */
} Slot;

typedef struct {
    int left, right, id;                /* the neighbours left and right are joined to id */
} Merge;

typedef struct {
    uint32_t tag;
    uint32_t rank1;                     /* rank + 1; 0: empty slot */
} MergeSlot;

/* A string that is one token wherever it stands in the text. */
typedef struct {
    const char *s;
    uint32_t len;
    int id;
    int control;                        /* 1: only sought when the caller asks for control tokens */
} Name;

typedef struct {
    Name *name;                         /* [n] sorted by their bytes, all different */
    int n, cap;
    uint8_t first[256];                 /* [b] 1: some name begins with byte b */
} NameSet;

struct Tokenizer {
    char *path;                         /* of the file that it was read from */
    char *arena;                        /* the bytes of pieces and names; [2 * bytes of the file],
                                         * so that it never moves: unused pages take no memory */
    size_t arena_len;                   /* bytes in use */
    Piece *piece;                       /* [n] by id */
    int n, cap;
    uint64_t *power;                    /* [longest + 1] powers of HASH_BASE */
    uint32_t longest;                   /* bytes of the longest piece */
    Slot *slot;                         /* hash table: canonical bytes -> id */
    int slot_bits;
    Merge *merge;                       /* [n_merge] by rank; tokenizer.json only */
    int n_merge, cap_merge;
    MergeSlot *merge_slot;              /* hash table: (left, right) -> rank; NULL for
                                         * tokenizer.model */
    int merge_bits;
    uint32_t *rank;                     /* [cap] by id, lowest first; tokenizer.model only */
    int has_unused;                     /* some piece is UNUSED */
    NameSet raw;                        /* sought first, in the text as the caller wrote it */
    NameSet plain;                      /* sought then, in the canonical text between raw names */
    uint8_t joins[256][32];             /* bit [a][b]: some piece that ends in byte a can be joined
                                         * with some piece that begins with byte b */
    int byte_id[256];                   /* the id of the byte token <0x..> */
    int ascii_id[128];                  /* the piece that is this one character, or NONE */
    char bytes[256];                    /* bytes[b] = b: what byte tokens decode to */
};

/* ---- pieces and their table ---- */

/* The hash of a string is the sum of (byte + 1) * HASH_BASE^(number of bytes after it) modulo
 * 2^64.  So the hash of a concatenation follows from the hashes of its parts, without reading
 * their bytes again.  Both constants are arbitrary odd numbers whose bits are well mixed;
 * HASH_BASE is 2^64 / golden ratio. */
#define HASH_BASE 0x9e3779b97f4a7c15u
#define HASH_MIX 0xd6e8feb86659fd93u    /* spreads the sum over the high bits: the slot's index */

static uint64_t hash_add(uint64_t h, uint8_t byte) { return h * HASH_BASE + byte + 1; }

static uint64_t hash_of(const char *s, size_t n) {
    uint64_t h = 0;
    for (size_t i = 0; i < n; i++) h = hash_add(h, (uint8_t)s[i]);
    return h;
}

/* Writes the canonical form of s[0..n) to out (room for n bytes) and returns it as a piece
 * without kind. */
static Piece canonical(char *out, const char *s, size_t n) {
    Piece p = {.s = out};
    for (size_t i = 0; i < n; i++) {
        uint8_t c = (uint8_t)s[i];
        if (n - i >= 3 && !memcmp(s + i, "\xe2\x96\x81", 3)) c = ' ', i += 2;     /* U+2581 */
        else if (c == ' ') p.spaced = 1;
        *out++ = (char)c;
        p.hash = hash_add(p.hash, c);
    }
    p.len = (uint32_t)(out - p.s);
    return p;
}

/* The first slot to look at for a piece with that hash. */
static Slot *home_slot(const Tokenizer *t, uint64_t hash) {
    return &t->slot[hash * HASH_MIX >> (64 - t->slot_bits)];
}

static int in_slot(const Tokenizer *t, const Slot *slot, uint64_t hash, const char *s, size_t n) {
    return slot->tag == (uint32_t)hash && slot->len == n && !memcmp(t->arena + slot->at, s, n);
}

/* The slot of the piece s[0..n), whose hash is given; where there is no such piece, the empty
 * slot in which it would be entered. */
static Slot *find_slot(const Tokenizer *t, uint64_t hash, const char *s, size_t n) {
    Slot *slot = home_slot(t, hash), *end = t->slot + ((size_t)1 << t->slot_bits);
    while (slot->len && !in_slot(t, slot, hash, s, n))
        if (++slot == end) slot = t->slot;
    return slot;
}

/* The id of the piece s[0..n), whose hash is given, or NONE. */
static int find_piece(const Tokenizer *t, uint64_t hash, const char *s, size_t n) {
    const Slot *slot = find_slot(t, hash, s, n);
    return slot->len ? slot->id : NONE;
}

/* The id of the piece s[0..n), or NONE, if text may be made of it: the spelling of a byte token,
 * a control token or a user-defined piece is no piece of text. */
static int text_piece(const Tokenizer *t, uint64_t hash, const char *s, size_t n) {
    int id = find_piece(t, hash, s, n);
    return id != NONE && t->piece[id].kind <= UNUSED ? id : NONE;
}

static uint64_t merge_hash(int left, int right) {
    uint64_t h = ((uint64_t)left << 32 | (uint32_t)right) * HASH_BASE;
    return (h ^ h >> 29) * HASH_MIX;
}

/* The slot of the merge of left and right; where there is none, the empty slot to enter it in. */
static MergeSlot *find_merge(const Tokenizer *t, int left, int right) {
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

/* Can a join cross the place between bytes a and b?  NONE: nothing joins there.  Where the
 * vocabulary has UNUSED pieces the answer is always yes, for the text must not be cut: the parts
 * of an UNUSED piece follow from where it was made last, anywhere in the text (Encoder.split). */
static int may_join(const Tokenizer *t, int a, int b) {
    return t->has_unused || (a != NONE && b != NONE && t->joins[a][b / 8] >> b % 8 & 1);
}

/* The number of bits of an index into the smallest table that n entries fill at most half. */
static int table_bits(int64_t n) {
    int bits = 4;
    while ((int64_t)1 << bits < 2 * n) bits++;
    return bits;
}

/* The byte that a name <0x00> … <0xFF> stands for; NONE for any other name. */
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

static void add_name(NameSet *set, Name name) {
    set->name = xgrow(set->name, set->n, &set->cap, sizeof *set->name);
    set->name[set->n++] = name;
    set->first[(uint8_t)name.s[0]] = 1;
}

/* The first of the sorted names lo..hi-1 whose byte number `at` is at least c; hi if there is
 * none.  The names are longer than `at` and agree in the bytes before it. */
static int first_from(const NameSet *set, int lo, int hi, size_t at, int c) {
    while (lo < hi) {
        int mid = lo + (hi - lo) / 2;
        if ((uint8_t)set->name[mid].s[at] < c) lo = mid + 1;
        else hi = mid;
    }
    return lo;
}

/* The longest name that s[0..n) begins with, or NULL; control tokens only if `controls` is
 * set.  The names that agree with the first `at` bytes of the text are the range lo..hi-1 of the
 * sorted list; each further byte narrows this range. */
static const Name *longest_name(const NameSet *set, const char *s, size_t n, int controls) {
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
    char where[600];                    /* "PATH: FIELD", which error messages begin with */
    /* The rest is for tokenizer.json only. */
    Scan scan;                          /* its error messages begin with `where`, too */
    int made;                           /* the id of the piece that the last merge makes */
    const char *merges_at;              /* where model.merges begins, if before model.vocab */
    int is_bpe, has_fallback, has_vocab;
    int n_replace;                      /* how many of the normalizer's 3 strings are right */
    Name *added;                        /* added_tokens; name.s is spelled as in the file */
    int n_added, cap_added;
} Reader;

/* From here on error messages name this field. */
static void in_field(Reader *r, const char *field) {
    snprintf(r->where, sizeof r->where, "%.500s: %s", r->path, field);
}

/* How many bytes of a string from the file an error message shows. */
static int shown(size_t n) { return n < 40 ? (int)n : 40; }

static char *arena_end(Tokenizer *t) { return t->arena + t->arena_len; }

/* Adds the piece s, spelled as in the file, under id.  Its canonical bytes go into the arena. */
static int add_piece(Reader *r, int64_t id, Str s, uint8_t kind) {
    Tokenizer *t = r->t;
    if (!s.n) return fail(r->err, "%s: empty string with id %lld", r->where, (long long)id);
    if (id < 0 || id >= r->n_ids)
        return fail(r->err, "%s: id %lld of '%.*s' out of range", r->where, (long long)id,
                    shown(s.n), s.s);
    if (id >= t->cap) {
        int cap = t->cap ? t->cap : 1024;
        while (cap <= id) cap *= 2;
        t->piece = xrealloc(t->piece, cap, sizeof *t->piece);
        t->cap = cap;
    }
    while (t->n <= id) t->piece[t->n++] = (Piece){.s = "", .kind = HOLE};
    if (t->piece[id].kind != HOLE)
        return fail(r->err, "%s: id %lld of '%.*s' is taken", r->where, (long long)id,
                    shown(s.n), s.s);
    Piece p = canonical(arena_end(t), s.s, s.n);
    p.kind = kind;
    t->piece[id] = p;
    t->arena_len += p.len;
    if (p.len > t->longest) t->longest = p.len;
    return 0;
}

/* n bytes of zeros that have been written.  A page of xcalloc's memory that is first read, as
 * find_slot does, is replaced when it is first written, and each time all cores that run this
 * program are interrupted. */
static void *zeros(int64_t n) { return memset(xaligned(n), 0, (size_t)n); }

/* Builds the hash table of the pieces added so far, and the powers of HASH_BASE. */
static int index_pieces(Reader *r) {
    Tokenizer *t = r->t;
    t->slot_bits = table_bits(t->n);
    t->slot = zeros((int64_t)sizeof *t->slot << t->slot_bits);
    for (int id = 0; id < t->n; id++) {
        const Piece *p = &t->piece[id];
        if (p->kind == HOLE || p->spaced) continue;
        Slot *slot = find_slot(t, p->hash, p->s, p->len);
        if (slot->len)
            return fail(r->err, "%s: '%.*s' appears twice", r->where, shown(p->len), p->s);
        *slot = (Slot){(uint32_t)p->hash, id, (uint32_t)(p->s - t->arena), p->len};
    }
    t->power = xcalloc((int64_t)t->longest + 1, sizeof *t->power);
    t->power[0] = 1;
    for (uint32_t i = 0; i < t->longest; i++) t->power[i + 1] = t->power[i] * HASH_BASE;
    return 0;
}

static int sort_names(Reader *r, NameSet *set) {
    if (set->n) qsort(set->name, (size_t)set->n, sizeof *set->name, by_bytes);
    for (int i = 1; i < set->n; i++)
        if (!by_bytes(&set->name[i - 1], &set->name[i]))
            return fail(r->err, "%s: '%.*s' appears twice", r->where, shown(set->name[i].len),
                        set->name[i].s);
    return 0;
}

/* The last step of reading: checks and tables for which all pieces must be known. */
static int finish(Reader *r) {
    Tokenizer *t = r->t;
    for (int b = 0; b < 256; b++) t->byte_id[b] = NONE, t->bytes[b] = (char)b;
    for (int id = 0; id < t->n; id++) {
        const Piece *p = &t->piece[id];
        if (p->kind == BYTE) t->byte_id[byte_of_name(p->s, p->len)] = id;
    }
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

/* Reads an object: on_key reads the value of each key.  Error messages name `field`. */
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

/* Skips the value of a field that must be null, "" or (if may_be_false is set) false. */
static int read_unset(Reader *r, const char *field, int may_be_false) {
    char c = scan_peek(&r->scan);
    Str s = {0};
    in_field(r, field);
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
        return 0;
    }
    if (str_is(key, "content")) {
        if (scan_string(s, &content)) return -1;
        name->s = memcpy(arena_end(r->t), content.s, content.n);
        name->len = (uint32_t)content.n;
        r->t->arena_len += content.n;
        return 0;
    }
    if (str_is(key, "normalized")) return scan_bool(s, &name->control);
    if (str_is(key, "single_word")) return read_unset(r, "added_tokens[].single_word", 1);
    if (str_is(key, "lstrip")) return read_unset(r, "added_tokens[].lstrip", 1);
    if (str_is(key, "rstrip")) return read_unset(r, "added_tokens[].rstrip", 1);
    return scan_skip(s);
}

/* Reads added_tokens into r->added; name_added makes names of them once all pieces are
 * known.  Until then Name.control holds the field `normalized`. */
static int read_added(Reader *r) {
    int more;
    in_field(r, "added_tokens");
    if (scan_take(&r->scan, '[')) return -1;
    for (int i = 0; (more = scan_next(&r->scan, i, ']')) > 0; i++) {
        r->added = xgrow(r->added, r->n_added, &r->cap_added, sizeof *r->added);
        Name *name = &r->added[r->n_added];
        *name = (Name){.id = NONE};
        if (read_object(r, "added_tokens", on_added_key)) return -1;
        if (!name->len) return fail(r->err, "%s: number %d has no content", r->where, i);
        if (name->id < 0 || name->id >= r->n_ids)
            return fail(r->err, "%s: id of '%.*s' missing or out of range", r->where,
                        shown(name->len), name->s);
        r->n_added++;
    }
    return more;
}

static int on_pattern_key(Reader *r, Str key) {
    Str s;
    if (!str_is(key, "String")) return scan_skip(&r->scan);
    if (scan_string(&r->scan, &s)) return -1;
    r->n_replace += str_is(s, " ");
    return 0;
}

static int on_normalizer_key(Reader *r, Str key) {
    Str s;
    if (str_is(key, "pattern")) return read_object(r, "normalizer.pattern", on_pattern_key);
    if (!str_is(key, "type") && !str_is(key, "content")) return scan_skip(&r->scan);
    int is_type = str_is(key, "type");
    if (scan_string(&r->scan, &s)) return -1;
    r->n_replace += str_is(s, is_type ? "Replace" : "\xe2\x96\x81");
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
        /* A string with escapes is decoded into s->text and valid until the next string is read:
         * reading a number leaves `piece` alone. */
        if (scan_key(s, &piece) || scan_int(s, &id)) return -1;
        uint8_t kind = byte_of_name(piece.s, piece.n) == NONE ? NORMAL : BYTE;
        if (add_piece(r, id, piece, kind)) return -1;
    }
    if (more < 0) return -1;
    r->has_vocab = 1;
    return index_pieces(r);
}

/* Looking up merges mostly waits for memory.  So they are read in batches, and the slots for a
 * whole batch are prefetched at once.  A batch should have more slots (two to a merge) than a
 * core has loads in flight, 10 to 50.  To tune it, time tokenizer_open with the model's
 * tokenizer.json. */
#define BATCH 32

/* Reads the two sides of a merge: ["a", "b"], or "a b" in older files.  Their canonical bytes go
 * to *out, which then points behind them. */
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
            if (!space)
                return fail(r->err, "%s: '%.*s' is not two strings", r->where, shown(str[0].n),
                            str[0].s);
            str[1] = (Str){space + 1, (size_t)(str[0].s + str[0].n - space - 1)};
            str[0].n = (size_t)(space - str[0].s);
        }
        side[i] = canonical(*out, str[i].s, str[i].n);
        *out += side[i].len;
        __builtin_prefetch(home_slot(r->t, side[i].hash));
    }
    return is_list ? scan_take(s, ']') : 0;
}

static int not_in_vocab(Reader *r, const char *s, uint32_t len) {
    return fail(r->err, "%s: number %d: '%.*s' is not in model.vocab", r->where, r->t->n_merge,
                shown(len), s);
}

/* The id of one side of a merge; NONE with an error. */
static int find_side(Reader *r, const Piece *p) {
    int id = p->spaced ? NONE : find_piece(r->t, p->hash, p->s, p->len);
    if (id == NONE) not_in_vocab(r, p->s, p->len);
    return id;
}

/* Is piece id the concatenation of p and q? */
static int is_joined(const Tokenizer *t, int id, const Piece *p, const Piece *q) {
    const Piece *both = &t->piece[id];
    return id < t->n && both->len == p->len + q->len && !memcmp(both->s, p->s, p->len) &&
           !memcmp(both->s + p->len, q->s, q->len);
}

/* Adds the merge of p and q.  The bytes of q stand behind those of p. */
static int add_merge(Reader *r, const Piece *p, const Piece *q) {
    Tokenizer *t = r->t;
    int left = find_side(r, p), right = left == NONE ? NONE : find_side(r, q), id = r->made;
    if (right == NONE) return -1;
    /* Files usually list the merges by the id of the piece that they make.  So this merge probably
     * makes the same piece as the last one, or the next: most searches are spared. */
    if (!is_joined(t, id, p, q) && !is_joined(t, ++id, p, q))
        id = find_piece(t, p->hash * t->power[q->len] + q->hash, p->s, p->len + q->len);
    if (id == NONE) return not_in_vocab(r, p->s, p->len + q->len);
    t->merge = xgrow(t->merge, t->n_merge, &t->cap_merge, sizeof *t->merge);
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
        for (int k = 0; k < 2 * n; k++)
            __builtin_prefetch(t->arena + home_slot(t, side[k / 2][k % 2].hash)->at);
        for (int k = 0; k < n; k++)
            if (add_merge(r, &side[k][0], &side[k][1])) return -1;
    }
    return 0;
}

/* While a merge goes into the hash table, the slot of the merge so far ahead is prefetched: about
 * as many loads as a core has in flight.  Chosen by judgement: it trades loads in flight against
 * cache lines that are lost before they are used.  To tune it, time tokenizer_open. */
#define MERGES_AHEAD 16

/* Builds the hash table of the merges.  If a pair appears twice, the later one counts, as in
 * transformers. */
static void index_merges(Tokenizer *t) {
    t->merge_bits = table_bits(t->n_merge);
    t->merge_slot = zeros((int64_t)sizeof *t->merge_slot << t->merge_bits);
    for (int i = 0; i < t->n_merge; i++) {
        const Merge *m = &t->merge[i], *ahead = m;
        if (i + MERGES_AHEAD < t->n_merge) ahead += MERGES_AHEAD;
        uint64_t hash_ahead = merge_hash(ahead->left, ahead->right);
        __builtin_prefetch(&t->merge_slot[hash_ahead >> (64 - t->merge_bits)]);
        uint32_t tag = (uint32_t)merge_hash(m->left, m->right);
        *find_merge(t, m->left, m->right) = (MergeSlot){tag, (uint32_t)i + 1};
    }
}

static int on_model_key(Reader *r, Str key) {
    Scan *s = &r->scan;
    Str type;
    if (str_is(key, "type")) {
        in_field(r, "model.type");
        if (scan_string(s, &type)) return -1;
        r->is_bpe = str_is(type, "BPE");
        if (r->is_bpe) return 0;
        return fail(r->err, "%s is '%.*s', not BPE", r->where, shown(type.n), type.s);
    }
    if (str_is(key, "byte_fallback")) {
        in_field(r, "model.byte_fallback");
        return scan_bool(s, &r->has_fallback);
    }
    if (str_is(key, "ignore_merges")) return read_unset(r, "model.ignore_merges", 1);
    if (str_is(key, "continuing_subword_prefix"))
        return read_unset(r, "model.continuing_subword_prefix", 0);
    if (str_is(key, "end_of_word_suffix")) return read_unset(r, "model.end_of_word_suffix", 0);
    if (str_is(key, "vocab")) return read_vocab(r);
    if (str_is(key, "merges") && r->has_vocab) return read_merges(r);
    /* Merges before the vocabulary cannot be looked up yet: read_model comes back to them. */
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
    if (r->n_replace == 3) return 0;
    return fail(r->err, "%s: normalizer is not Replace ' ' -> U+2581", r->path);
}

/* Makes names of r->added.  Each must be the very piece that the vocabulary has under its id;
 * where the id is free, the name becomes a new piece. */
static int name_added(Reader *r) {
    Tokenizer *t = r->t;
    for (int i = 0; i < r->n_added; i++) {
        Name name = r->added[i];
        int normalized = name.control;
        Piece p = canonical(arena_end(t), name.s, name.len);
        if (name.id < t->n && t->piece[name.id].kind != HOLE) {
            Piece *q = &t->piece[name.id];
            if (q->len != p.len || memcmp(q->s, p.s, p.len))
                return fail(r->err, "%s: '%.*s' has id %d, which is '%.*s' in model.vocab",
                            r->where, shown(name.len), name.s, name.id, shown(q->len), q->s);
        } else {
            if (!p.spaced && find_piece(t, p.hash, p.s, p.len) != NONE)
                return fail(r->err, "%s: '%.*s' has another id in model.vocab", r->where,
                            shown(name.len), name.s);
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
    if (!r->n_replace) return fail(r->err, "%s: normalizer missing", r->path);
    in_field(r, "added_tokens");
    if (name_added(r) || sort_names(r, &r->t->raw) || sort_names(r, &r->t->plain)) return -1;
    in_field(r, "model.vocab");
    return finish(r);
}

/* ---- tokenizer.model: a SentencePiece ModelProto, read from protobuf's wire format ---- */

/* What is left to read of a message. */
typedef struct {
    const uint8_t *p, *end;
} Wire;

typedef struct {
    int number;                         /* of the field; 0: out of range */
    uint64_t value;                     /* of a numeric field; the bits of a float */
    Wire bytes;                         /* of a string or a message */
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

/* Reads the next field of a message.  1: it is in *f; 0: the message ends; -1: this is not
 * protobuf.  Wire types: 0 a varint, 1 8 bytes, 5 4 bytes, 2 a length and that many bytes. */
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

/* The bits of a float score as an unsigned rank: the higher the score, the lower the rank. */
static uint32_t rank_of_score(uint32_t bits) {
    return bits & 0x80000000 ? bits : ~(bits | 0x80000000);
}

/* Reads the fields of a piece: 1 its string, 2 the bits of its score, 3 SentencePiece's type. */
static int read_piece_fields(Reader *r, Wire w, int id, Str *s, uint64_t *type, uint64_t *score) {
    Field f;
    int more;
    *s = (Str){"", 0};
    *type = 1;
    *score = 0;
    while ((more = next_field(&w, &f)) > 0) {
        size_t n = (size_t)(f.bytes.end - f.bytes.p);
        if (f.number == 1 && f.bytes.p) *s = (Str){(const char *)f.bytes.p, n};
        if (f.number == 2) *score = f.value;
        if (f.number == 3) *type = f.value;
    }
    if (more < 0) return fail(r->err, "%s: number %d is broken", r->where, id);
    if (*type < 1 || *type > 6)
        return fail(r->err, "%s: number %d: type %llu unknown", r->where, id,
                    (unsigned long long)*type);
    if ((*score & 0x7fffffff) > 0x7f800000)                     /* a NaN */
        return fail(r->err, "%s: number %d: score is not a number", r->where, id);
    if (*type == 6 && byte_of_name(s->s, s->n) == NONE)
        return fail(r->err, "%s: number %d: '%.*s' names no byte", r->where, id, shown(s->n), s->s);
    return 0;
}

/* Reads a piece and adds it under id, its place among the pieces. */
static int read_piece(Reader *r, Wire w, int id) {
    /* By SentencePiece's type.  Type 2 is the piece <unk>, which is treated as a control token. */
    static const uint8_t kinds[] = {0, NORMAL, CONTROL, CONTROL, USER, UNUSED, BYTE};
    Tokenizer *t = r->t;
    Str s;
    uint64_t type, score;
    if (read_piece_fields(r, w, id, &s, &type, &score)) return -1;
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
    /* Control pieces are sought before all else, in the text as the caller wrote it, as
     * transformers does; SentencePiece itself recognizes only user-defined pieces in text. */
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
        return fail(r->err, "%s: trainer_spec.model_type is %llu, not 2 (BPE)", r->path,
                    (unsigned long long)model_type);
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
    if (charsmap)
        return fail(r->err, "%s: normalizer_spec.precompiled_charsmap is not empty", r->path);
    if (dummy_prefix)
        return fail(r->err, "%s: normalizer_spec.add_dummy_prefix is not false", r->path);
    if (remove_extra)
        return fail(r->err, "%s: normalizer_spec.remove_extra_whitespaces is not false", r->path);
    if (!escape)
        return fail(r->err, "%s: normalizer_spec.escape_whitespaces is not true", r->path);
    return 0;
}

static int read_proto(Reader *r, Str file) {
    const uint8_t *bytes = (const uint8_t *)file.s;
    Wire w = {bytes, bytes + file.n}, trainer = {0}, normalizer = {0};
    Field f;
    int more, id = 0;
    in_field(r, "pieces");
    while ((more = next_field(&w, &f)) > 0) {
        if (f.number == 1 && read_piece(r, f.bytes, id++)) return -1;
        if (f.number == 2) trainer = f.bytes;
        if (f.number == 3) normalizer = f.bytes;
    }
    if (more < 0)
        return fail(r->err, "%s: not a SentencePiece model: broken after pieces[%d]", r->path,
                    id - 1);
    if (!id) return fail(r->err, "%s: no pieces", r->path);
    if (read_trainer_spec(r, trainer) || read_normalizer_spec(r, normalizer)) return -1;
    if (index_pieces(r)) return -1;
    return sort_names(r, &r->t->raw) || sort_names(r, &r->t->plain) ? -1 : finish(r);
}

/* ---- opening ---- */

static Tokenizer *open_file(const char *path, int (*read)(Reader *, Str), Error *err) {
    Str file = {0};
    file.s = (const char *)map_file(path, &file.n, err);
    if (!file.s) return NULL;
    /* Every piece takes at least 4 bytes of either file, so ids are below file.n / 4.  This
     * keeps a single huge id in a damaged file from allocating gigabytes. */
    int n_ids = file.n / 4 < MAX_ID ? (int)(file.n / 4) : MAX_ID;
    Reader r = {.t = xcalloc(1, sizeof *r.t), .path = path, .err = err, .n_ids = n_ids};
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
    else refuse_incomplete(dir, "neither tokenizer.json nor tokenizer.model is there", err);
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
 * Byte-pair encoding.  The text is a linked list of symbols, one for each character to begin
 * with.  Step by step two neighbours become one symbol: of all pairs that can be joined the one
 * of lowest rank, of equal ranks the leftmost, until no pair can be joined.  A heap holds the
 * candidates.  A join makes the candidates obsolete that contain one of its two symbols: they
 * stay in the heap and are dropped when they reach its top. */

typedef struct {
    uint32_t prev;                      /* position of the symbol before, or NO_SYMBOL */
    uint32_t next;                      /* position of the symbol after; n at the end of the text */
    int id;                             /* NONE (tokenizer.model only): this is no piece */
    int makes;                          /* the piece that this symbol and the next one make, or
                                         * NONE; FROZEN: this symbol is never joined */
} Symbol;
#define FROZEN (-2)
#define NO_SYMBOL UINT32_MAX

typedef struct {
    uint64_t key;                       /* rank << 32 | position of the left symbol */
    int id;                             /* what the two make */
} Candidate;

typedef struct {
    const Tokenizer *t;
    int controls;                       /* control tokens in the text become their ids */
    Ids *out;                           /* the caller's */
    /* The text is encoded in runs (see cut): positions are bytes from the beginning of the run. */
    const char *text;                   /* the run and what follows it, canonical */
    Symbol *symbol;                     /* [n], by the position of the symbol's first byte */
    uint32_t n, cap_symbol;             /* bytes of the run */
    uint32_t last;                      /* in add_symbol: position of the symbol added last */
    Candidate *heap;                    /* 4-ary: the children of i are 4i + 1 … 4i + 4 */
    size_t n_heap, cap_heap;
    uint32_t *split;                    /* [t->n] by id of an UNUSED piece: bytes of the left one of
                                         * the two parts of which it was made last; 0: never made */
} Encoder;

static void sift_up(Encoder *e, size_t i) {
    Candidate c = e->heap[i];
    for (; i && c.key < e->heap[(i - 1) / 4].key; i = (i - 1) / 4)
        e->heap[i] = e->heap[(i - 1) / 4];
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

/* tokenizer.model: the piece that the symbols at left and right make, or NONE. */
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

/* Looks up the piece that the symbol at left and the next one make.  If there is one, adds a
 * candidate to the end of the heap and returns 1: the caller has to sift it. */
static int propose(Encoder *e, uint32_t left) {
    const Tokenizer *t = e->t;
    Symbol *a = &e->symbol[left];
    uint32_t rank = 0;
    if (a->makes == FROZEN) return 0;
    a->makes = NONE;
    if (a->next == e->n || e->symbol[a->next].makes == FROZEN) return 0;
    if (t->merge_slot) {
        rank = find_merge(t, a->id, e->symbol[a->next].id)->rank1;
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

/* Joins the symbols of the run until no two neighbours can be joined. */
static void join_all(Encoder *e) {
    /* 1. A heap of all pairs that can be joined. */
    e->n_heap = 0;
    for (uint32_t i = 0; i < e->n; i = e->symbol[i].next) propose(e, i);
    for (size_t i = e->n_heap / 4 + 1; i-- > 0;)
        if (i < e->n_heap) sift_down(e, i);
    while (e->n_heap) {
        /* 2. The best candidate, unless an earlier join has made it obsolete. */
        Candidate c = e->heap[0];
        e->heap[0] = e->heap[--e->n_heap];
        if (e->n_heap) sift_down(e, 0);
        uint32_t left = (uint32_t)c.key;
        Symbol *a = &e->symbol[left];
        if (a->makes != c.id) continue;
        /* 3. Symbol a swallows b, and makes new pairs with both of its neighbours. */
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

/* Adds a symbol of len bytes to the end of the run. */
static void add_symbol(Encoder *e, uint32_t len, int id, int frozen) {
    if (e->n + len > e->cap_symbol) {
        e->cap_symbol = 2 * (e->n + len);
        e->symbol = xrealloc(e->symbol, e->cap_symbol, sizeof *e->symbol);
    }
    e->symbol[e->n] = (Symbol){e->last, e->n + len, id, frozen ? FROZEN : NONE};
    e->last = e->n;
    e->n += len;
}

/* Cuts the next run off text[0..n) and makes its first symbols.  A run ends at the first place
 * that no join can cross, mostly between two words: short runs keep the heap small, hence fast.
 * A character that is no piece differs between the two files.  tokenizer.json: its bytes are
 * byte tokens, which join like other symbols.  tokenizer.model: the character is one symbol
 * without id, which may still become a part of a piece; bytes that are not UTF-8 are byte tokens
 * that never join. */
static void cut(Encoder *e, size_t n) {
    const Tokenizer *t = e->t;
    int tail = NONE;                    /* last byte of the last piece; NONE: it never joins */
    e->n = 0;
    e->last = NO_SYMBOL;
    while (e->n < n) {
        /* 1. The next symbol: a name, a character that is a piece, or bytes. */
        const char *s = e->text + e->n;
        const Name *name = longest_name(&t->plain, s, n - e->n, e->controls);
        int len = name ? (int)name->len : utf8_char(s, n - e->n);
        int id = NONE;
        if (name) id = name->id;
        else if (len > 0) id = char_id(t, s, len);
        int as_bytes = !name && (len <= 0 || (id == NONE && t->merge_slot));
        int frozen = name || (as_bytes && !t->merge_slot);
        if (len <= 0) len = 1;
        /* 2. The first and the last byte of its piece decide where the run ends.  The pieces of
         * byte tokens are <0x00> … <0xFF>. */
        int head = as_bytes ? '<' : (uint8_t)s[0];
        if (e->n && !may_join(t, tail, frozen ? NONE : head)) break;
        tail = as_bytes ? '>' : (uint8_t)s[len - 1];
        if (frozen) tail = NONE;
        /* 3. Into the run with it. */
        if (!as_bytes) add_symbol(e, (uint32_t)len, id, frozen);
        else
            for (int k = 0; k < len; k++) add_symbol(e, 1, t->byte_id[(uint8_t)s[k]], frozen);
    }
}

/* Adds the ids of the symbol whose bytes are s[0..n).  An UNUSED piece is taken apart again into
 * the two parts of which it was made; a single UNUSED character counts as unknown and becomes
 * byte tokens. */
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

/* Adds the ids of s[0..n), text between raw names. */
static void encode_plain(Encoder *e, const char *s, size_t n) {
    if (!n) return;
    while (n > MAX_TEXT) {
        size_t part = MAX_TEXT;
        while (part > MAX_TEXT - 3 && (s[part] & 0xc0) == 0x80) part--;   /* at a whole character */
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
    size_t from = 0;                    /* everything before is encoded */
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
    const NameSet *sets[] = {&t->raw, &t->plain};
    size_t n = strlen(name);
    for (int k = 0; k < 2; k++) {
        const Name *found = longest_name(sets[k], name, n, 1);
        if (found && found->len == n && found->control) return found->id;
    }
    return NONE;
}

int tokenizer_is_control(const Tokenizer *t, int id) {
    return id >= 0 && id < t->n && t->piece[id].control;
}

const char *tokenizer_text(const Tokenizer *t, int id, size_t *n) {
    *n = 0;
    if (id < 0 || id >= t->n) return "";
    const Piece *p = &t->piece[id];
    *n = p->kind == BYTE ? 1 : p->len;
    return p->kind == BYTE ? &t->bytes[byte_of_name(p->s, p->len)] : p->s;
}
