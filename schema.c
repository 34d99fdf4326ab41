/* schema.c - structured output.  See schema.h.
 *
 * A schema is compiled to a program of a few instructions, like those of a regular expression's virtual machine, with
 * subroutines (CALL, RET) for nested values, so that a schema may refer to itself.  A thread of it is a place in the
 * program and a stack of places to return to; a *state* is the set of threads that are alive after the bytes so far.
 * States and stacks are kept in tables and never twice, and each state remembers where each byte leads: after a while
 * the automaton is deterministic where it has been.
 *
 * The mask of a state is found by walking the tree of all tokens' bytes with it, and is kept.  Most tokens of a big
 * vocabulary are plain text, and inside a string all of them are allowed that are not too long: their masks are made
 * once for each length (Pieces.fitting), and only the few tokens with quotes, backslashes or control characters are
 * walked.
 *
 * Each place in the program knows how many tokens lead from it to the end of its subroutine at least (`cost`), so each
 * state knows how far from a complete value it is. */
#include "schema.h"

#include <limits.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "json.h"
#include "pattern.h"

#define FAR 1000000000                  /* no way leads there */
#define NO_LIMIT INT_MAX
#define MAX_CODE 2000000
#define MAX_MASKS 1024                  /* kept; 32 KB each with 262,144 tokens */

/* Control tokens that a call may hold are two bytes that no text has: MARK and which one. */
#define MARK 0xff
enum { QUOTE_MARK = 1, CALL_MARK, CALL_END_MARK };

/* ---- the vocabulary ---- */

typedef struct {
    uint8_t byte;
    uint8_t depth;                      /* 1 for the first byte of a token */
    int skip;                           /* the next node that is not below this one */
    int id;                             /* of the token that ends here, -1: none */
} Node;

typedef struct {
    Node *node;
    int n;
} Tree;

struct Pieces {
    const Tokenizer *t;
    int n_vocab, words;                 /* words of a mask */
    int *same;                          /* [n_vocab] another id with the same bytes, -1: none */
    Tree plain, other;                  /* tokens that are plain inside a JSON string, and all others */
    int longest;                        /* characters in the longest token */
    /* [2][longest + 1] masks: tokens that are the beginning of text of at most that many characters, [0] in a JSON
     * string (plain), [1] anywhere. */
    uint64_t **fitting[2];
    int *ends, n_ends;
    int mark_id[4];                     /* ids of the control tokens behind MARK */
};

static void set_bit(uint64_t *mask, int id) { mask[id / 64] |= 1ull << id % 64; }

/* The bytes of a token: a control token has none but its mark. */
static const uint8_t *bytes_of(const Pieces *p, int id, size_t *n) {
    static const uint8_t mark[4][2] = {{0}, {MARK, QUOTE_MARK}, {MARK, CALL_MARK}, {MARK, CALL_END_MARK}};
    for (int i = 1; i < 4; i++)
        if (p->mark_id[i] == id) {
            *n = 2;
            return mark[i];
        }
    const uint8_t *text = (const uint8_t *)tokenizer_text(p->t, id, n);
    if (*n && (tokenizer_is_control(p->t, id) || memchr(text, MARK, *n) || memchr(text, 0, *n) || *n > 255)) *n = 0;
    return text;
}

/* How many characters of text the bytes begin, the last one perhaps unfinished; -1 when they are no such beginning. */
static int count_characters(const uint8_t *s, size_t n) {
    int count = 0;
    for (size_t i = 0; i < n; count++) {
        int len = utf8_char((const char *)s + i, n - i);
        if (len == 0) return -1;
        if (len < 0) return count + 1;
        i += (size_t)len;
    }
    return count;
}

static int is_plain(const uint8_t *s, size_t n) {
    for (size_t i = 0; i < n; i++)
        if (s[i] < 0x20 || s[i] == '"' || s[i] == '\\') return 0;
    return 1;
}

typedef struct {
    const uint8_t *s;
    size_t n;
    int id;
} Token;

static int compare_tokens(const void *x, const void *y) {
    const Token *a = x, *b = y;
    int order = memcmp(a->s, b->s, a->n < b->n ? a->n : b->n);
    return order ? order : a->n != b->n ? (a->n < b->n ? -1 : 1) : a->id - b->id;
}

/* The tree of sorted tokens, each node followed by those below it. */
static Tree make_tree(const Token *token, int n, int *same) {
    Tree tree = {0};
    size_t total = 0;
    int path[256] = {0};
    for (int i = 0; i < n; i++) total += token[i].n;
    tree.node = xmalloc((total + 1) * sizeof(Node));
    size_t depth = 0;
    for (int i = 0; i < n; i++) {
        size_t common = 0;
        while (i && common < token[i - 1].n && common < token[i].n && token[i].s[common] == token[i - 1].s[common]) common++;
        if (i && common == token[i].n) {            /* the same bytes again */
            Node *last = &tree.node[path[common]];
            same[token[i].id] = last->id;
            last->id = token[i].id;
            continue;
        }
        for (; depth > common; depth--) tree.node[path[depth]].skip = tree.n;
        for (; depth < token[i].n; depth++) {
            path[depth + 1] = tree.n;
            tree.node[tree.n++] = (Node){token[i].s[depth], (uint8_t)(depth + 1), 0, -1};
        }
        tree.node[path[depth]].id = token[i].id;
    }
    for (; depth > 0; depth--) tree.node[path[depth]].skip = tree.n;
    return tree;
}

Pieces *pieces_new(const Tokenizer *t, int n_vocab, const int *ends, int n_ends) {
    static const char *const marks[] = {"", "<|\"|>", "<|tool_call>", "<tool_call|>"};
    Pieces *p = xcalloc(1, sizeof *p);
    p->t = t;
    p->n_vocab = n_vocab;
    p->words = (n_vocab + 63) / 64;
    for (int i = 0; i < 4; i++) p->mark_id[i] = i ? tokenizer_control(t, marks[i]) : -1;
    p->ends = xcalloc(n_ends + 1, sizeof(int));
    for (int i = 0; i < n_ends; i++)
        if (ends[i] >= 0 && ends[i] < n_vocab) p->ends[p->n_ends++] = ends[i];

    int n[2] = {0}, n_ids = tokenizer_n_vocab(t) < n_vocab ? tokenizer_n_vocab(t) : n_vocab;
    Token *token[2];
    int *length = xcalloc(n_vocab + 1, sizeof(int));     /* characters; -1: not the beginning of text */
    p->same = xcalloc(n_vocab + 1, sizeof(int));
    for (int k = 0; k < 2; k++) token[k] = xcalloc(n_ids + 1, sizeof(Token));
    for (int id = 0; id < n_vocab; id++) {
        size_t len = 0;
        const uint8_t *s = id < n_ids ? bytes_of(p, id, &len) : NULL;
        length[id] = p->same[id] = -1;
        if (!len) continue;
        length[id] = count_characters(s, len);
        if (length[id] > p->longest) p->longest = length[id];
        int plain = length[id] >= 0 && is_plain(s, len);
        token[!plain][n[!plain]++] = (Token){s, len, id};
    }
    for (int k = 0; k < 2; k++) qsort(token[k], (size_t)n[k], sizeof(Token), compare_tokens);
    p->plain = make_tree(token[0], n[0], p->same);
    p->other = make_tree(token[1], n[1], p->same);
    for (int k = 0; k < 2; k++) {
        p->fitting[k] = xcalloc(p->longest + 1, sizeof(uint64_t *));
        for (int c = 0; c <= p->longest; c++) {
            p->fitting[k][c] = xcalloc(p->words, 8);
            if (c) memcpy(p->fitting[k][c], p->fitting[k][c - 1], (size_t)p->words * 8);
            for (int kind = 0; kind <= k; kind++)
                for (int i = 0; i < n[kind]; i++)
                    if (length[token[kind][i].id] == c) set_bit(p->fitting[k][c], token[kind][i].id);
        }
    }
    for (int k = 0; k < 2; k++) free(token[k]);
    free(length);
    return p;
}

void pieces_free(Pieces *p) {
    if (!p) return;
    for (int k = 0; k < 2; k++) {
        for (int c = 0; c <= p->longest; c++) free(p->fitting[k][c]);
        free(p->fitting[k]);
    }
    free(p->plain.node);
    free(p->other.node);
    free(p->same);
    free(p->ends);
    free(p);
}

/* The node of byte b among those that begin at node i and end before `end`, or -1. */
static int find_child(const Tree *tree, int i, int end, int b) {
    for (; i < end; i = tree->node[i].skip)
        if (tree->node[i].byte == b) return i;
    return -1;
}

/* cover[i]: how many tokens at least make up s[i..n), FAR: none do. */
static void cover_literal(const Pieces *p, const uint8_t *s, int n, int *cover) {
    cover[n] = 0;
    for (int i = n - 1; i >= 0; i--) {
        cover[i] = FAR;
        for (int k = 0; k < 2; k++) {
            const Tree *tree = k ? &p->other : &p->plain;
            int at = 0, end = tree->n;
            for (int j = i; j < n && (at = find_child(tree, at, end, s[j])) >= 0; j++) {
                if (tree->node[at].id >= 0 && cover[j + 1] + 1 < cover[i]) cover[i] = cover[j + 1] + 1;
                end = tree->node[at].skip;
                at++;
            }
        }
    }
}

/* ---- the program ---- */

enum { RANGE, SPLIT, CALL, RET, TEXT, FAIL };

/* How the characters of a TEXT are written. */
enum { JSON_TEXT, KEY_TEXT /* JSON without escapes */, CALL_TEXT /* as they are, to the next MARK */ };

typedef struct {
    uint8_t op, lo, hi;                 /* RANGE: a byte from lo to hi; TEXT: lo is how it is written */
    int next;
    /* RANGE: `b` tokens lead to place a, at least; SPLIT: a is the other way; CALL: subroutine a; TEXT: a to b
     * characters and the byte that ends it. */
    int a, b;
} Instruction;

typedef struct {
    const cJSON *schema;                /* what it was made from, or NULL */
    int entry;                          /* -1: not compiled yet */
} Routine;

/* Inside a TEXT: between two characters, in a UTF-8 character, after a backslash, in the digits of \uXXXX. */
enum { BETWEEN, U1, U2, U3, U2_E0, U2_ED, U3_F0, U3_F4, ESCAPE, HEX4, HEX3, HEX2, HEX1, ZERO3, ZERO2, ZERO1, SURROGATE };
static const int to_finish[] = {0, 1, 2, 3, 2, 2, 3, 3, 1, 4, 3, 2, 1, 3, 2, 1, 3};

typedef struct {
    int pc, stack;
    int a, b, inside;                   /* in a TEXT: how many characters must and may follow, and where in one it is */
} Thread;

typedef struct {
    int pc, parent;                     /* where to return to; the stack below, 0: none */
    int cost;                           /* from there to the end of everything */
    int next;                           /* in the hash table */
} Frame;

typedef struct {
    Thread *thread;
    int n;
    int end;                            /* 1: the value may end here */
    int distance;
    int *to;                            /* [256] the state after each byte, -1: none, -2: not known yet; NULL: none known */
    uint64_t *mask;                     /* kept, or NULL */
    int farthest;                       /* of the states after the tokens in mask */
    int next;                           /* in the hash table */
} State;

struct Schema {
    const Pieces *p;
    int in_calls;                       /* the notation of calls, else JSON */
    Instruction *code;
    int n_code, cap_code;
    int *cost;                          /* [n_code] tokens from here to RET */
    Routine *routine;
    int n_routines, cap_routines;
    Frame *frame;                       /* [0] is the empty stack */
    int n_frames, cap_frames;
    State *state;
    int n_states, cap_states;
    int *frame_hash, *state_hash;       /* [HASH] the first of each chain, -1: none */
    int masked[MAX_MASKS], n_masked;    /* states with a mask, in the order in which they got it, round and round */
    uint64_t *scratch;                  /* a mask that is not kept */
    int *seen;                          /* [n_code] the stack with which closure() was at a SPLIT, */
    unsigned *when;                     /* [n_code] and in which call of it */
    unsigned now;
    Thread *list;                       /* of closure() */
    int n_list, cap_list;
    Ids todo;                           /* of closure(): places and stacks, by turns */

    /* while it is compiled */
    const cJSON *root;
    Buf path;
    Error *err;
    int bad, ret, fail, any, space;     /* error; places and routines that all share */
};

#define HASH 65536

/* ---- running it ---- */

static int push_frame(Schema *s, int pc, int parent) {
    unsigned h = ((unsigned)pc * 2654435761u ^ (unsigned)parent * 40503u) % HASH;
    for (int i = s->frame_hash[h]; i >= 0; i = s->frame[i].next)
        if (s->frame[i].pc == pc && s->frame[i].parent == parent) return i;
    if (s->n_frames == s->cap_frames) s->frame = xrealloc(s->frame, s->cap_frames = 2 * s->cap_frames + 64, sizeof(Frame));
    long long cost = (long long)s->cost[pc] + s->frame[parent].cost;
    s->frame[s->n_frames] = (Frame){pc, parent, cost < FAR ? (int)cost : FAR, s->frame_hash[h]};
    return s->frame_hash[h] = s->n_frames++;
}

static void add_thread(Schema *s, Thread t) {
    if (s->n_list == s->cap_list) s->list = xrealloc(s->list, s->cap_list = 2 * s->cap_list + 64, sizeof(Thread));
    s->list[s->n_list++] = t;
}

/* Follows one that has come to pc until it stands at a byte (or at the end: pc -1); other ways go to s->todo. */
static void follow_thread(Schema *s, int pc, int stack) {
    for (;;) {
        const Instruction *c = &s->code[pc];
        switch (c->op) {
        case SPLIT:
            if (s->when[pc] == s->now && s->seen[pc] == stack) return;      /* round an empty loop */
            s->when[pc] = s->now;
            s->seen[pc] = stack;
            ids_add(&s->todo, c->a);
            ids_add(&s->todo, stack);
            pc = c->next;
            continue;
        case CALL:
            if (s->code[c->next].op != RET) stack = push_frame(s, c->next, stack);
            pc = s->routine[s->code[pc].a].entry;
            continue;
        case RET:
            if (stack) {
                pc = s->frame[stack].pc;
                stack = s->frame[stack].parent;
                continue;
            }
            pc = -1;
            break;
        case FAIL:
            return;
        }
        Thread t = {.pc = pc, .stack = stack};
        if (pc >= 0 && s->code[pc].op == TEXT) t.a = s->code[pc].a, t.b = s->code[pc].b;
        add_thread(s, t);
        return;
    }
}

/* Adds the threads that stand at a byte or at the end when one has come to pc. */
static void closure(Schema *s, int pc, int stack) {
    follow_thread(s, pc, stack);
    while (s->todo.n) {
        s->todo.n -= 2;
        follow_thread(s, s->todo.id[s->todo.n], s->todo.id[s->todo.n + 1]);
    }
}

static int thread_cost(const Schema *s, const Thread *t) {
    if (t->pc < 0) return 0;
    long long cost = s->frame[t->stack].cost;
    if (s->code[t->pc].op == TEXT) cost += t->a + to_finish[t->inside] + 1 + s->cost[s->code[t->pc].next];
    else cost += s->cost[t->pc];
    return cost < FAR ? (int)cost : FAR;
}

static int compare_threads(const void *x, const void *y) { return memcmp(x, y, sizeof(Thread)); }

/* The state that is made of list[0..n): sorted, none twice, none without a way to the end.  -1 when none is left. */
static int find_state(Schema *s, Thread *list, int n) {
    int kept = 0;
    for (int i = 0; i < n; i++)
        if (list[i].pc < 0 || s->code[list[i].pc].op == RANGE || thread_cost(s, &list[i]) < FAR) list[kept++] = list[i];
    if (!kept) return -1;
    if (kept > 1) qsort(list, (size_t)kept, sizeof *list, compare_threads);
    n = 1;
    for (int i = 1; i < kept; i++)
        if (compare_threads(&list[i], &list[n - 1])) list[n++] = list[i];
    size_t bytes = (size_t)n * sizeof *list;
    unsigned h = 2166136261u;
    for (size_t i = 0; i < bytes / 4; i++) h = (h ^ ((const unsigned *)list)[i]) * 16777619u;
    h = (h ^ h >> 16) % HASH;
    for (int i = s->state_hash[h]; i >= 0; i = s->state[i].next)
        if (s->state[i].n == n && !memcmp(s->state[i].thread, list, bytes)) return i;
    if (s->n_states == s->cap_states) s->state = xrealloc(s->state, s->cap_states = 2 * s->cap_states + 64, sizeof(State));
    State *st = &s->state[s->n_states];
    *st = (State){.thread = xmalloc(bytes), .n = n, .distance = FAR, .next = s->state_hash[h]};
    memcpy(st->thread, list, bytes);
    for (int i = 0; i < n; i++) {
        int cost = thread_cost(s, &list[i]);
        if (cost < st->distance) st->distance = cost;
        st->end |= list[i].pc < 0;
    }
    return s->state_hash[h] = s->n_states++;
}

/* What follows `inside` after a byte in a TEXT, -1: nothing.  The byte that ends it is not asked here. */
static int next_inside(int inside, int style, int b) {
    int hex = (b >= '0' && b <= '9') || ((b | 32) >= 'a' && (b | 32) <= 'f');
    switch (inside) {
    case BETWEEN:
        if (style == JSON_TEXT && b == '\\') return ESCAPE;
        if (style != CALL_TEXT && (b < 0x20 || b == '"' || b == '\\')) return -1;
        if (b && b < 0x80) return BETWEEN;
        if (b >= 0xc2 && b <= 0xdf) return U1;
        if (b == 0xe0) return U2_E0;
        if (b == 0xed) return U2_ED;
        if (b >= 0xe1 && b <= 0xef) return U2;
        if (b == 0xf0) return U3_F0;
        if (b == 0xf4) return U3_F4;
        return b >= 0xf1 && b <= 0xf3 ? U3 : -1;
    case U1: return b >= 0x80 && b <= 0xbf ? BETWEEN : -1;
    case U2: return b >= 0x80 && b <= 0xbf ? U1 : -1;
    case U3: return b >= 0x80 && b <= 0xbf ? U2 : -1;
    case U2_E0: return b >= 0xa0 && b <= 0xbf ? U1 : -1;
    case U2_ED: return b >= 0x80 && b <= 0x9f ? U1 : -1;
    case U3_F0: return b >= 0x90 && b <= 0xbf ? U2 : -1;
    case U3_F4: return b >= 0x80 && b <= 0x8f ? U2 : -1;
    case ESCAPE: return b == 'u' ? HEX4 : b && strchr("\"\\/bfnrt", b) ? BETWEEN : -1;
    case HEX4: return !hex ? -1 : b == '0' ? ZERO3 : (b | 32) == 'd' ? SURROGATE : HEX3;
    case ZERO3: return !hex ? -1 : b == '0' ? ZERO2 : HEX2;
    case ZERO2: return !hex ? -1 : b == '0' ? ZERO1 : HEX1;
    case ZERO1: return hex && b != '0' ? BETWEEN : -1;          /* \u0000 is not written */
    case SURROGATE: return b >= '0' && b <= '7' ? HEX2 : -1;    /* nor half a pair */
    case HEX3: return hex ? HEX2 : -1;
    case HEX2: return hex ? HEX1 : -1;
    default: return hex ? BETWEEN : -1;
    }
}

static int follow(Schema *s, int state, int b) {
    s->n_list = 0;
    s->now++;
    for (int i = 0; i < s->state[state].n; i++) {
        Thread t = s->state[state].thread[i];
        if (t.pc < 0) continue;
        const Instruction *c = &s->code[t.pc];
        if (c->op == RANGE) {
            if (b >= c->lo && b <= c->hi) closure(s, c->next, t.stack);
            continue;
        }
        if (!t.inside && t.a == 0 && b == (c->lo == CALL_TEXT ? MARK : '"')) {
            closure(s, c->next, t.stack);
            continue;
        }
        int began = !t.inside, inside = began && t.b == 0 ? -1 : next_inside(t.inside, c->lo, b);
        if (inside < 0) continue;
        if (began && t.a) t.a--;
        if (began && t.b != NO_LIMIT) t.b--;
        t.inside = inside;
        add_thread(s, t);
    }
    return find_state(s, s->list, s->n_list);
}

static inline int step(Schema *s, int state, int b) {
    if (!s->state[state].to) {
        s->state[state].to = xmalloc(256 * sizeof(int));
        for (int i = 0; i < 256; i++) s->state[state].to[i] = -2;
    }
    int to = s->state[state].to[b];
    if (to != -2) return to;
    to = follow(s, state, b);
    return s->state[state].to[b] = to;
}

/* ---- masks ---- */

/* Adds to mask the tokens of the tree that lead from the state to one at most `limit` from the end; *farthest (may be NULL)
 * becomes the largest distance of these states, if it is larger. */
static void walk(Schema *s, const Tree *tree, int state, int limit, uint64_t *mask, int *farthest) {
    int at[256];
    at[0] = state;
    for (int i = 0; i < tree->n;) {
        const Node *node = &tree->node[i];
        int to = step(s, at[node->depth - 1], node->byte);
        if (to < 0) {
            i = node->skip;
            continue;
        }
        at[node->depth] = to;
        i++;
        if (node->id < 0) continue;
        int distance = s->state[to].distance;
        if (distance > limit || distance >= FAR) continue;
        if (farthest && distance > *farthest) *farthest = distance;
        for (int id = node->id; id >= 0; id = s->p->same[id]) set_bit(mask, id);
    }
}

static int is_free(const Schema *s, const Thread *t) { return t->pc >= 0 && s->code[t->pc].op == TEXT && !t->inside; }

/* All tokens that the state allows. */
static void fill_mask(Schema *s, int state, uint64_t *mask, int *farthest) {
    const Pieces *p = s->p;
    int n = s->state[state].n, n_others = 0, other = state;
    Thread *others = xcalloc(n, sizeof *others);
    for (int i = 0; i < n; i++) {
        const Thread *t = &s->state[state].thread[i];
        if (!is_free(s, t)) {
            others[n_others++] = *t;
            continue;
        }
        const uint64_t *fitting = p->fitting[s->code[t->pc].lo == CALL_TEXT][t->b < p->longest ? t->b : p->longest];
        for (int w = 0; w < p->words; w++) mask[w] |= fitting[w];
        int far = thread_cost(s, t) + 3;            /* a token may end inside a character */
        if (far > *farthest) *farthest = far;
        other = -1;
    }
    walk(s, &p->other, state, FAR, mask, farthest);
    if (other < 0) other = n_others ? find_state(s, others, n_others) : -1;
    if (other >= 0) walk(s, &p->plain, other, FAR, mask, farthest);
    free(others);
}

/* The state that has the same mask: no token is long enough to tell counts apart that are longer than all of them.
 * *more: how much farther from the end the given one may be. */
static int with_small_counts(Schema *s, int state, int *more) {
    int n = s->state[state].n, changed = 0, enough = s->p->longest + 1;
    *more = 0;
    for (int i = 0; i < n; i++) {
        const Thread *t = &s->state[state].thread[i];
        changed |= t->a > enough || (t->b > enough && t->b != NO_LIMIT);
    }
    if (!changed) return state;
    Thread *list = xcalloc(n, sizeof *list);
    memcpy(list, s->state[state].thread, (size_t)n * sizeof *list);
    for (int i = 0; i < n; i++) {
        if (list[i].a - enough > *more) *more = list[i].a - enough;
        if (list[i].a > enough) list[i].a = enough;
        if (list[i].b > enough) list[i].b = NO_LIMIT;
    }
    int small = find_state(s, list, n);
    free(list);
    return small;
}

static void allow_ends(const Schema *s, int state, uint64_t *mask) {
    for (int i = 0; s->state[state].end && i < s->p->n_ends; i++) set_bit(mask, s->p->ends[i]);
}

const uint64_t *schema_mask(Schema *s, int state, int left, int *forced) {
    size_t bytes = (size_t)s->p->words * 8;
    int more, small = with_small_counts(s, state, &more);
    if (!s->state[small].mask) {
        int *slot = &s->masked[s->n_masked++ % MAX_MASKS];
        uint64_t *mask = NULL;
        if (s->n_masked > MAX_MASKS) {
            mask = s->state[*slot].mask;
            s->state[*slot].mask = NULL;
        }
        if (!mask) mask = xmalloc(bytes);
        memset(mask, 0, bytes);
        int farthest = 0;               /* s->state moves while it grows */
        fill_mask(s, small, mask, &farthest);
        allow_ends(s, small, mask);
        s->state[small].mask = mask;
        s->state[small].farthest = farthest;
        *slot = small;
    }
    if (s->state[small].farthest + (long long)more <= left - 1) return s->state[small].mask;

    /* Near the limit each token is judged by itself. */
    memset(s->scratch, 0, bytes);
    walk(s, &s->p->plain, state, left - 1, s->scratch, NULL);
    walk(s, &s->p->other, state, left - 1, s->scratch, NULL);
    allow_ends(s, state, s->scratch);
    if (forced && memcmp(s->scratch, s->state[small].mask, bytes)) *forced = 1;
    return s->scratch;
}

/* Between two requests the tables may be emptied, when they have grown. */
int schema_begin(Schema *s) {
    if (s->n_states > 50000 || s->n_frames > 200000) {
        for (int i = 0; i < s->n_states; i++) {
            free(s->state[i].thread);
            free(s->state[i].to);
            free(s->state[i].mask);
        }
        s->n_states = s->n_masked = 0;
        s->n_frames = 1;
        memset(s->frame_hash, 0xff, HASH * sizeof(int));
        memset(s->state_hash, 0xff, HASH * sizeof(int));
    }
    s->n_list = 0;
    s->now++;
    closure(s, s->routine[0].entry, 0);
    return find_state(s, s->list, s->n_list);
}

int schema_next(Schema *s, int state, int id) {
    size_t n = 0;
    const uint8_t *text = bytes_of(s->p, id, &n);
    if (!n) return -1;
    for (size_t i = 0; i < n && state >= 0; i++) state = step(s, state, text[i]);
    return state >= 0 && s->state[state].distance < FAR ? state : -1;
}

int schema_may_end(const Schema *s, int state) { return s->state[state].end; }

int schema_must_end(Schema *s, int state) { return s->state[state].end && s->state[state].n == 1; }

int schema_distance(const Schema *s, int state) { return s->state[state].distance; }

/* ---- compiling: instructions, always written with what follows them ---- */

static int bad_schema(Schema *s, const char *what) {
    if (!s->bad) fail(s->err, "$%s: %s", s->path.data ? s->path.data : "", what);
    s->bad = 1;
    return -1;
}

static int emit(Schema *s, Instruction i) {
    if (s->n_code >= MAX_CODE) {
        bad_schema(s, "the schema is too large");
        return 0;
    }
    if (s->n_code == s->cap_code) s->code = xrealloc(s->code, s->cap_code = 2 * s->cap_code + 256, sizeof i);
    s->code[s->n_code] = i;
    return s->n_code++;
}

static int range(Schema *s, int lo, int hi, int next) { return emit(s, (Instruction){RANGE, (uint8_t)lo, (uint8_t)hi, next, next, 1}); }

static int either(Schema *s, int one, int two) {
    if (one == s->fail || one == two) return two;
    if (two == s->fail) return one;
    return emit(s, (Instruction){SPLIT, 0, 0, one, two, 0});
}

static int call(Schema *s, int routine, int next) { return emit(s, (Instruction){CALL, 0, 0, next, routine, 0}); }

static int literal(Schema *s, const char *text, size_t n, int next) {
    int *cover = xmalloc((n + 1) * sizeof(int)), pc = next;
    cover_literal(s->p, (const uint8_t *)text, (int)n, cover);
    for (size_t i = n; i-- > 0;) {
        uint8_t c = (uint8_t)text[i];
        pc = emit(s, (Instruction){RANGE, c, c, pc, next, cover[i]});
    }
    free(cover);
    return pc;
}

static int word(Schema *s, const char *text, int next) { return literal(s, text, strlen(text), next); }

static int quote(Schema *s, int next) { return s->in_calls ? literal(s, "\xff\x01", 2, next) : range(s, '"', '"', next); }

/* A TEXT ends with `"`, or with a MARK, whose second byte follows. */
static int text(Schema *s, int min, int max, int style, int next) {
    if (style == CALL_TEXT) next = emit(s, (Instruction){RANGE, QUOTE_MARK, QUOTE_MARK, next, next, 0});
    return emit(s, (Instruction){TEXT, (uint8_t)style, 0, next, min, max});
}

static int spaced(Schema *s, int next) { return s->in_calls ? next : call(s, s->space, next); }

static int new_routine(Schema *s, const cJSON *schema) {
    if (s->n_routines == s->cap_routines) s->routine = xrealloc(s->routine, s->cap_routines = 2 * s->cap_routines + 64, sizeof(Routine));
    s->routine[s->n_routines] = (Routine){schema, s->fail};
    return s->n_routines++;
}

/* ---- numbers ---- */

/* A magnitude as decimal digits: whole part without leading zeros ("0" alone), fraction. */
typedef struct {
    char whole[20], part[24];
    int open;                           /* 1: the bound itself is out */
} Decimal;

#define UNBOUNDED 999999999999999.0     /* 15 digits, where nothing asks for more */
#define LARGEST 1e18

/* |v|: as it is written, where that is digits alone; else to 15 digits or, where they do not say it exactly, 17. */
static Decimal decimal(double v, const char *text, int open) {
    char digits[64];
    Decimal d = {.open = open};
    if (text && *text == '-') text++;
    if (text && strlen(text) < 40 && strspn(text, "0123456789.") == strlen(text)) snprintf(digits, sizeof digits, "%s", text);
    else if (fabs(v) >= 1e15 && v == floor(v)) snprintf(digits, sizeof digits, "%.0f", fabs(v));
    else
        for (int precision = 15; precision <= 17; precision++) {
            snprintf(digits, sizeof digits, "%.*g", precision, fabs(v));
            if (strtod(digits, NULL) == fabs(v)) break;
        }
    char *e = strchr(digits, 'e'), *point = strchr(digits, '.');
    if (e) {                            /* below 1e-4: zeros in front */
        int zeros = -atoi(e + 1) - 1;
        *e = 0;
        snprintf(d.whole, sizeof d.whole, "0");
        for (int i = 0; i < zeros && i < 20; i++) d.part[i] = '0';
        size_t at = strlen(d.part);
        for (const char *c = digits; *c && at < sizeof d.part - 1; c++)
            if (*c != '.') d.part[at++] = *c;
    } else {
        snprintf(d.whole, sizeof d.whole, "%.*s", (int)(point ? point - digits : (int)strlen(digits)), digits);
        if (point) snprintf(d.part, sizeof d.part, "%.20s", point + 1);
    }
    return d;
}

typedef struct {
    Schema *s;
    Decimal lo, hi;
    int n, max_part, next;              /* digits before the point, at most behind it */
    int memo[48][4];                    /* places by position and tightness, -1: not made */
} Digits;

/* The digit of a bound at a position, the fraction going on in zeros. */
static int digit_of(const Digits *d, const Decimal *b, int at) {
    if (at < d->n) return b->whole[at] - '0';
    return at - d->n < (int)strlen(b->part) ? b->part[at - d->n] - '0' : 0;
}

static int zeros_from(const Digits *d, const Decimal *b, int at) {
    for (int end = d->n + (int)strlen(b->part); at < end; at++)
        if (digit_of(d, b, at)) return 0;
    return 1;
}

/* What may follow when `at` digits are written; lo_tight, hi_tight: they are those of the bound so far. */
static int digits_from(Digits *d, int at, int lo_tight, int hi_tight);

static int one_digit(Digits *d, int at, int lo_tight, int hi_tight) {
    int from = lo_tight ? digit_of(d, &d->lo, at) : at == 0 && d->n > 1 ? 1 : 0, to = hi_tight ? digit_of(d, &d->hi, at) : 9;
    int pc = d->s->fail;
    for (int i = from; i <= to;) {
        int low = lo_tight && i == from, high = hi_tight && i == to, last = i;
        if (!low && !high) last = hi_tight ? to - 1 : 9;
        int next = digits_from(d, at + 1, low, high);
        pc = either(d->s, pc, next == d->s->fail ? next : range(d->s, '0' + i, '0' + last, next));
        i = last + 1;
    }
    return pc;
}

static int digits_from(Digits *d, int at, int lo_tight, int hi_tight) {
    int *memo = &d->memo[at][2 * lo_tight + hi_tight], pc = d->s->fail;
    if (*memo >= 0) return *memo;
    if (at < d->n) return *memo = one_digit(d, at, lo_tight, hi_tight);
    int high_enough = !lo_tight || (zeros_from(d, &d->lo, at) && !d->lo.open);
    int low_enough = !hi_tight || !d->hi.open || !zeros_from(d, &d->hi, at);
    if (at < d->n + d->max_part) {
        pc = one_digit(d, at, lo_tight, hi_tight);
        if (at == d->n && pc != d->s->fail) pc = range(d->s, '.', '.', pc);
    }
    if (high_enough && low_enough) pc = either(d->s, d->next, pc);
    return *memo = pc;
}

/* Numbers from lo to hi, both >= 0, with up to max_part digits behind the point, and 15 in all that are not zeros in front. */
static int magnitudes(Schema *s, Decimal lo, Decimal hi, int max_part, int next) {
    int pc = s->fail, from = (int)strlen(lo.whole), to = (int)strlen(hi.whole);
    int zeros = strcmp(hi.whole, "0") ? 0 : (int)strspn(hi.part, "0");
    for (int n = to; n >= from; n--) {
        int most = n > 15 ? 0 : 15 - n + zeros;
        Digits d = {.s = s, .lo = lo, .hi = hi, .n = n, .max_part = max_part < most ? max_part : most, .next = next};
        memset(d.memo, 0xff, sizeof d.memo);
        pc = either(s, digits_from(&d, 0, n == from, n == to), pc);
    }
    return pc;
}

/* A bound and its text, NULL: as the double says; open: it is out itself. */
typedef struct {
    double v;
    const char *text;
    int open;
} Bound;

static int bounded_number(Schema *s, Bound lo, Bound hi, int whole, int next) {
    const Decimal zero = {.whole = "0"}, above_zero = {.whole = "0", .open = 1};
    Decimal a = decimal(lo.v, lo.text, lo.open), b = decimal(hi.v, hi.text, hi.open);
    int part = 0, pc = s->fail;
    /* One more where a bound is out: 0.15 is between 0.1 and 0.2. */
    if (!whole) part = (int)strlen(strlen(a.part) > strlen(b.part) ? a.part : b.part) + (lo.open || hi.open);
    if (!whole && part < 6) part = 6;
    if (lo.v < 0) pc = range(s, '-', '-', magnitudes(s, hi.v < 0 ? b : above_zero, a, part, next));
    if (hi.v < 0) return pc;
    return either(s, magnitudes(s, lo.v < 0 ? zero : a, b, part, next), pc);
}

/* count digits at most, one at least. */
static int some_digits(Schema *s, int count, int next) {
    int pc = next;
    for (int i = 0; i < count; i++) pc = range(s, '0', '9', i ? either(s, next, pc) : next);
    return pc;
}

static int any_number(Schema *s, int next) {
    int digits = some_digits(s, 2, next), sign = either(s, digits, either(s, range(s, '+', '+', digits), range(s, '-', '-', digits)));
    int exponent = either(s, next, either(s, range(s, 'e', 'e', sign), range(s, 'E', 'E', sign)));
    int fraction = either(s, exponent, range(s, '.', '.', some_digits(s, 15, exponent)));
    int more = either(s, fraction, some_digits(s, 14, fraction));
    int whole = either(s, range(s, '0', '0', fraction), range(s, '1', '9', more));
    return either(s, whole, range(s, '-', '-', whole));
}

/* ---- patterns ---- */

/* The UTF-8 of the characters lo to hi: split where the number of bytes changes, and until every byte but the first
 * that differs takes all its values. */
static int utf8_range(Schema *s, int lo, int hi, int next) {
    static const int edge[] = {0x7f, 0x7ff, 0xd7ff, 0xdfff, 0xffff};
    if (lo > hi) return s->fail;
    for (int i = 0; i < 5; i++)
        if (lo <= edge[i] && hi > edge[i]) return either(s, utf8_range(s, lo, edge[i], next), utf8_range(s, edge[i] + 1, hi, next));
    if (lo >= 0xd800 && hi <= 0xdfff) return s->fail;
    uint8_t a[4], b[4];
    int n = (int)utf8_encode((unsigned)lo, a);
    for (int i = 1; i < n; i++) {
        int m = (1 << 6 * i) - 1;
        if ((lo & ~m) == (hi & ~m)) continue;
        if (lo & m) return either(s, utf8_range(s, lo, lo | m, next), utf8_range(s, (lo | m) + 1, hi, next));
        if ((hi & m) != m) return either(s, utf8_range(s, lo, (hi & ~m) - 1, next), utf8_range(s, hi & ~m, hi, next));
    }
    utf8_encode((unsigned)hi, b);
    for (int i = n - 1; i >= 0; i--) next = range(s, a[i], b[i], next);
    return next;
}

/* The characters from lo to hi as they stand in a string: those that JSON escapes in their shortest way. */
static int characters(Schema *s, int lo, int hi, int next) {
    int pc = s->fail;
    if (lo == 0) lo = 1;
    if (s->in_calls) return utf8_range(s, lo, hi, next);
    for (int c = lo; c <= hi && c < 128; c++) {
        if (c >= 0x20 && c != '"' && c != '\\') continue;
        Buf quoted = {0};
        json_quote(&quoted, (char[]){(char)c}, 1);
        pc = either(s, pc, literal(s, quoted.data + 1, quoted.len - 2, next));
        buf_free(&quoted);
    }
    static const int plain[][2] = {{0x20, 0x21}, {0x23, 0x5b}, {0x5d, 0x10ffff}};
    for (int i = 0; i < 3; i++) {
        int from = lo > plain[i][0] ? lo : plain[i][0], to = hi < plain[i][1] ? hi : plain[i][1];
        pc = either(s, pc, utf8_range(s, from, to, next));
    }
    return pc;
}

static int emit_regex(Schema *s, const Regex *x, int next) {
    int pc = s->fail, loop, end;
    if (s->bad) return pc;
    switch (x->kind) {
    case R_EMPTY: return next;
    case R_CLASS:
        for (int i = 0; i < x->n; i++) pc = either(s, pc, characters(s, x->range[i][0], x->range[i][1], next));
        return pc;
    case R_CAT: return emit_regex(s, x->a, emit_regex(s, x->b, next));
    case R_ALT: return either(s, emit_regex(s, x->a, next), emit_regex(s, x->b, next));
    case R_REPEAT:
        if (x->max < 0) {
            loop = emit(s, (Instruction){SPLIT, 0, 0, next, next, 0});
            int again = emit_regex(s, x->a, loop);
            s->code[loop].a = again;
            next = loop;
        }
        end = next;
        for (int i = 0; i < (x->max > x->min ? x->max : x->min); i++) {     /* the last comes first */
            int one = emit_regex(s, x->a, next);
            if (one == next) break;     /* nothing: once is enough */
            next = i < x->max - x->min ? either(s, one, end) : one;
        }
        return next;
    default:
        bad_schema(s, "pattern: ^ and $ are supported at the ends of an alternative only");
        return pc;
    }
}

/* Any characters, any number of them. */
static int anything(Schema *s, int next) {
    int loop = emit(s, (Instruction){SPLIT, 0, 0, next, next, 0});
    int again = characters(s, 0, 0x10ffff, loop);
    s->code[loop].a = again;
    return loop;
}

/* A sequence without its anchors. */
static int emit_inner(Schema *s, const Regex *x, int begins, int ends, int next) {
    for (; x->kind == R_CAT; x = x->a, ends = 0)
        if (!ends) next = emit_regex(s, x->b, next);
    return begins || ends ? next : emit_regex(s, x, next);
}

/* The alternatives of a pattern; without an anchor they may stand anywhere in the string. */
static int emit_pattern(Schema *s, const Regex *all, int next) {
    int anchored = s->fail, anywhere = s->fail, after = anything(s, next);
    for (; all; all = all->kind == R_ALT ? all->a : NULL) {
        const Regex *x = all->kind == R_ALT ? all->b : all, *first = x, *last = x->kind == R_CAT ? x->b : x;
        while (first->kind == R_CAT) first = first->a;
        int begins = first->kind == R_BEGIN, ends = last->kind == R_END;
        int pc = emit_inner(s, x, begins, ends, ends ? next : after);
        if (begins) anchored = either(s, anchored, pc);
        else anywhere = either(s, anywhere, pc);
    }
    return either(s, anchored, anywhere == s->fail ? anywhere : anything(s, anywhere));
}

static int pattern(Schema *s, const char *source, int next) {
    Pattern p;
    Error why;
    int pc = s->fail;
    if (pattern_parse(source, &p, &why)) bad_schema(s, why.text);
    else pc = emit_pattern(s, p.root, next);
    pattern_free(&p);
    return pc;
}

/* ---- schemas ---- */

static const char *const formats[][2] = {
    {"date", "^\\d{4}-(0[1-9]|1[0-2])-(0[1-9]|1\\d|2[0-8])$"},
    {"time", "^([01]\\d|2[0-3]):[0-5]\\d:[0-5]\\d(\\.\\d{1,6})?(Z|[+-]([01]\\d|2[0-3]):[0-5]\\d)$"},
    {"date-time", "^\\d{4}-(0[1-9]|1[0-2])-(0[1-9]|1\\d|2[0-8])"
                  "T([01]\\d|2[0-3]):[0-5]\\d:[0-5]\\d(\\.\\d{1,6})?(Z|[+-]([01]\\d|2[0-3]):[0-5]\\d)$"},
    {"uuid", "^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$"},
    {"ipv4", "^((25[0-5]|2[0-4]\\d|1\\d\\d|[1-9]?\\d)\\.){3}(25[0-5]|2[0-4]\\d|1\\d\\d|[1-9]?\\d)$"},
    {"email", "^[A-Za-z0-9_+-]{1,32}(\\.[A-Za-z0-9_+-]{1,32}){0,2}@[A-Za-z0-9]([A-Za-z0-9-]{0,30}[A-Za-z0-9])?(\\.[A-Za-z]{2,16}){1,3}$"},
};

static int routine_for(Schema *s, const cJSON *schema);

/* A name and its colon.  In a call nothing quotes it; keyword: where one stands that cannot be written so. */
static void put_name(Schema *s, const char *name, const char *keyword, Buf *out) {
    if (!s->in_calls) json_quote(out, name, strlen(name));
    else if (*name && !strpbrk(name, ":,{}[]\" \n\t\xff")) buf_puts(out, name);
    else {
        Buf wrong = {0};
        buf_printf(&wrong, "%s: the name ", keyword);
        json_quote(&wrong, name, strlen(name));
        buf_puts(&wrong, " cannot be written in a call");
        bad_schema(s, wrong.data);
        buf_free(&wrong);
    }
    buf_puts(out, ":");
}

/* A member of an object: one that a schema declares, or one of a constant. */
typedef struct {
    const char *name;
    int at;                             /* its place in the schema */
    int required, routine;              /* of a declared one */
    const cJSON *value;                 /* of a constant's */
} Property;

static int compare_properties(const void *x, const void *y) {
    const Property *a = x, *b = y;
    int order = strcasecmp(a->name, b->name);
    return order ? order : a->at - b->at;
}

/* A call has its members in the order of jinja2's dictsort, as the declaration in the prompt does:
 * the model has read them in that order and writes them so.  JSON keeps the schema's order. */
static void put_in_order(const Schema *s, Property *p, int n) {
    for (int i = 0; i < n; i++) p[i].at = i;
    if (s->in_calls && n) qsort(p, (size_t)n, sizeof *p, compare_properties);
}

static void put_constant(Schema *s, const cJSON *v, Buf *out);

static void put_members(Schema *s, const cJSON *v, Buf *out) {
    const cJSON *item;
    int n = 0;
    Property *p = xcalloc(cJSON_GetArraySize(v) + 1, sizeof *p);
    cJSON_ArrayForEach(item, v) p[n++] = (Property){.name = item->string, .value = item};
    put_in_order(s, p, n);
    for (int i = 0; i < n; i++) {
        if (i) buf_puts(out, ",");
        put_name(s, p[i].name, "enum, const", out);
        put_constant(s, p[i].value, out);
    }
    free(p);
}

/* A value in the notation of what is written, to be a literal. */
static void put_constant(Schema *s, const cJSON *v, Buf *out) {
    const cJSON *item;
    if (cJSON_IsString(v)) {
        if (s->in_calls && strchr(v->valuestring, MARK)) bad_schema(s, "enum, const: a string that is not UTF-8");
        if (!s->in_calls) json_quote(out, v->valuestring, strlen(v->valuestring));
        else buf_printf(out, "\xff\x01%s\xff\x01", v->valuestring);
    } else if (cJSON_IsNumber(v)) {
        char *number = json_text(v);
        buf_puts(out, number);
        free(number);
    } else if (cJSON_IsArray(v)) {
        buf_puts(out, "[");
        cJSON_ArrayForEach(item, v) {
            if (item != v->child) buf_puts(out, ",");
            put_constant(s, item, out);
        }
        buf_puts(out, "]");
    } else if (cJSON_IsObject(v)) {
        buf_puts(out, "{");
        put_members(s, v, out);
        buf_puts(out, "}");
    } else buf_puts(out, cJSON_IsTrue(v) ? "true" : cJSON_IsFalse(v) ? "false" : "null");
}

static int constant(Schema *s, const cJSON *v, int next) {
    Buf out = {0};
    put_constant(s, v, &out);
    int pc = literal(s, out.data, out.len, next);
    buf_free(&out);
    return pc;
}

static int has_type(const cJSON *v, const char *type) {
    if (!strcmp(type, "string")) return cJSON_IsString(v);
    if (!strcmp(type, "number")) return cJSON_IsNumber(v);
    if (!strcmp(type, "integer")) return cJSON_IsNumber(v) && v->valuedouble == floor(v->valuedouble);
    if (!strcmp(type, "boolean")) return cJSON_IsBool(v);
    if (!strcmp(type, "null")) return cJSON_IsNull(v);
    return !strcmp(type, "array") ? cJSON_IsArray(v) : cJSON_IsObject(v);
}

/* Calls f for each name in `type`, a string or a list of strings. */
static int for_types(Schema *s, const cJSON *type, const cJSON *arg, int (*f)(Schema *, const char *, const cJSON *)) {
    static const char *const known[] = {"string", "number", "integer", "boolean", "null", "array", "object"};
    int result = 0;
    for (const cJSON *t = cJSON_IsArray(type) ? type->child : type; t; t = cJSON_IsArray(type) ? t->next : NULL) {
        int is_known = 0;
        for (int i = 0; i < 7; i++) is_known |= cJSON_IsString(t) && !strcmp(t->valuestring, known[i]);
        if (!is_known) return bad_schema(s, "type: must name string, number, integer, boolean, null, array or object");
        result |= f(s, t->valuestring, arg);
    }
    return result;
}

static int value_has_type(Schema *s, const char *type, const cJSON *v) {
    (void)s;
    return has_type(v, type);
}

/* A keyword's whole number >= 0, or `otherwise` where it is missing. */
static int count_of(Schema *s, const cJSON *schema, const char *name, int otherwise) {
    const cJSON *v = json_field(schema, name);
    char what[80];
    if (!v) return otherwise;
    if (cJSON_IsNumber(v) && v->valuedouble >= 0 && v->valuedouble <= 1e9 && v->valuedouble == floor(v->valuedouble))
        return (int)v->valuedouble;
    snprintf(what, sizeof what, "%s: must be a whole number from 0", name);
    bad_schema(s, what);
    return otherwise;
}

/* The bound of a number that `name` and its exclusive relative make, or `otherwise`; sign: 1 for the lower ones, -1. */
static Bound bound_of(Schema *s, const cJSON *schema, const char *name, const char *exclusive, int sign, double otherwise) {
    const cJSON *v[] = {json_field(schema, name), json_field(schema, exclusive)};
    Bound b = {otherwise, NULL, 0};
    for (int i = 0; i < 2; i++) {
        char what[80];
        snprintf(what, sizeof what, "%s: must be a number%s", i ? exclusive : name, cJSON_IsNumber(v[i]) ? " of at most 18 digits" : "");
        if (!v[i]) continue;
        if (!cJSON_IsNumber(v[i]) || !(fabs(v[i]->valuedouble) < LARGEST)) bad_schema(s, what);
        else if (b.v == otherwise || sign * v[i]->valuedouble >= sign * b.v) b = (Bound){v[i]->valuedouble, v[i]->valuestring, i};
    }
    return b;
}

static int number(Schema *s, const cJSON *schema, int whole, int next) {
    Bound lo = bound_of(s, schema, "minimum", "exclusiveMinimum", 1, -INFINITY);
    Bound hi = bound_of(s, schema, "maximum", "exclusiveMaximum", -1, INFINITY);
    if (!whole && lo.v == -INFINITY && hi.v == INFINITY) return any_number(s, next);
    if (lo.v == -INFINITY) lo.v = hi.v < -UNBOUNDED ? -LARGEST : -UNBOUNDED;
    if (hi.v == INFINITY) hi.v = lo.v > UNBOUNDED ? LARGEST : UNBOUNDED;
    return lo.v > hi.v ? s->fail : bounded_number(s, lo, hi, whole, next);
}

static int string(Schema *s, const cJSON *schema, int next) {
    int min = count_of(s, schema, "minLength", 0), max = count_of(s, schema, "maxLength", NO_LIMIT);
    const cJSON *p = json_field(schema, "pattern"), *format = json_field(schema, "format");
    const char *source = cJSON_GetStringValue(p);
    if (p && !source) return bad_schema(s, "pattern: must be a string"), s->fail;
    if (format) {
        if (p) return bad_schema(s, "format beside pattern is not supported"), s->fail;
        for (int i = 0; i < 6; i++)
            if (cJSON_IsString(format) && !strcmp(format->valuestring, formats[i][0])) source = formats[i][1];
        if (!source) return bad_schema(s, "format: only date, time, date-time, uuid, ipv4 and email are supported"), s->fail;
    }
    if (source && (json_field(schema, "minLength") || json_field(schema, "maxLength")))
        return bad_schema(s, "minLength and maxLength beside a pattern are not supported: say it in the pattern"), s->fail;
    if (source) return quote(s, pattern(s, source, quote(s, next)));
    return min > max ? s->fail : quote(s, text(s, min, max, s->in_calls ? CALL_TEXT : JSON_TEXT, next));
}

/* The rest of a name that is none of `names`, after its first n bytes, which some of them have too; in JSON also the
 * quote behind it.  In a call, where nothing quotes it, a name is a word of letters, digits and the marks in `word`. */
static int other_name(Schema *s, const cJSON *names, const char *begin, size_t n, int next) {
    static const char word[] = "$-./0123456789@ABCDEFGHIJKLMNOPQRSTUVWXYZ_abcdefghijklmnopqrstuvwxyz";
    const cJSON *p;
    int taken[256] = {0}, beyond_ascii = 0, pc = s->fail, rest;
    cJSON_ArrayForEach(p, names) {
        if (strncmp(p->string, begin, n)) continue;
        taken[(uint8_t)p->string[n]] = 1;
        beyond_ascii |= (uint8_t)p->string[n] >= 0x80;
    }
    if (s->in_calls) {
        rest = emit(s, (Instruction){SPLIT, 0, 0, next, s->fail, 0});
        int again = s->fail;
        for (const char *c = word; *c; c++) again = either(s, again, range(s, *c, *c, rest));
        s->code[rest].a = again;
    } else rest = text(s, 0, NO_LIMIT, KEY_TEXT, next);
    size_t last = n;                    /* where the last character of `begin` begins */
    while (last && ((uint8_t)begin[last - 1] & 0xc0) == 0x80) last--;
    int is_whole = !n || (uint8_t)begin[n - 1] < 0x80 || (last && utf8_char(begin + last - 1, n - last + 1) > 0);
    for (int c = 0x20; c < 0x100; c++) {
        if (s->in_calls ? c >= 0x80 || !strchr(word, c) : c == '"' || c == '\\') continue;
        if (!taken[c]) {
            if (c < 0x80 && is_whole) pc = either(s, pc, range(s, c, c, rest));
            continue;
        }
        Buf longer = {0};
        buf_add(&longer, begin, n);
        buf_add(&longer, (char[]){(char)c}, 1);
        pc = either(s, pc, range(s, c, c, other_name(s, names, longer.data, n + 1, next)));
        buf_free(&longer);
    }
    if (!s->in_calls && is_whole && !beyond_ascii) pc = either(s, pc, utf8_range(s, 0x80, 0x10ffff, rest));
    if (taken[0] || !is_whole) return pc;
    return either(s, pc, !s->in_calls ? range(s, '"', '"', next) : n ? next : s->fail);
}

/* The schema of a property, of the others (`*`) or of an item (`[]`): the name is for errors. */
static int compile_property(Schema *s, const char *name, const cJSON *schema) {
    size_t was = s->path.len;
    buf_printf(&s->path, ".%s", name);
    int routine = routine_for(s, schema);
    s->path.len = was;
    if (s->path.data) s->path.data[was] = 0;
    return routine;
}

static int object(Schema *s, const cJSON *schema, int next) {
    const cJSON *properties = json_field(schema, "properties"), *required = json_field(schema, "required"), *item;
    const cJSON *additional = json_field(schema, "additionalProperties");
    if (properties && !cJSON_IsObject(properties)) return bad_schema(s, "properties: must be an object"), s->fail;
    if (required && !cJSON_IsArray(required)) return bad_schema(s, "required: must be a list"), s->fail;
    /* Others come where they are asked for, or where nothing is declared. */
    int open = additional ? !cJSON_IsFalse(additional) : !cJSON_GetArraySize(properties);
    int others = open ? (cJSON_IsObject(additional) ? compile_property(s, "*", additional) : s->any) : -1;
    int n = 0, first_end = s->fail;
    Property *p = xcalloc(cJSON_GetArraySize(properties) + cJSON_GetArraySize(required) + 1, sizeof *p);
    cJSON_ArrayForEach(item, properties) {
        int routine = compile_property(s, item->string, item);
        p[n++] = (Property){.name = item->string, .routine = routine};
    }
    cJSON_ArrayForEach(item, required) {
        int known = 0;
        if (!cJSON_IsString(item)) {
            bad_schema(s, "required: must be a list of names");
            break;
        }
        for (int i = 0; i < n; i++)
            if (!strcmp(p[i].name, item->valuestring)) known = p[i].required = 1;
        if (known) continue;
        if (cJSON_IsFalse(additional)) bad_schema(s, "required: names a property that is not allowed");
        int routine = cJSON_IsObject(additional) ? others : s->any;
        p[n++] = (Property){.name = item->valuestring, .required = 1, .routine = routine};
    }
    put_in_order(s, p, n);
    for (int i = 0; i < n; i++)
        if (strlen(p[i].name) > 1000) bad_schema(s, "properties: names of more than 1000 bytes are not supported");
    int end = spaced(s, range(s, '}', '}', next)), key = s->fail;
    /* more: after a property, before a comma; key: before a name. */
    int more = end;
    if (others >= 0 && !s->bad) {
        more = emit(s, (Instruction){SPLIT, 0, 0, end, s->fail, 0});
        int value = spaced(s, call(s, others, more));
        cJSON *names = cJSON_CreateObject();
        for (int i = 0; i < n; i++) cJSON_AddNullToObject(names, p[i].name);
        int colon = range(s, ':', ':', value);
        key = other_name(s, names, "", 0, colon);
        if (!s->in_calls) key = range(s, '"', '"', key);
        cJSON_Delete(names);
        s->code[more].a = range(s, ',', ',', spaced(s, key));
    }
    int can_end = 1;
    for (int i = n - 1; i >= 0; i--) {
        Buf name = {0};
        put_name(s, p[i].name, "properties", &name);
        int this = literal(s, name.data, name.len, spaced(s, call(s, p[i].routine, more)));
        buf_free(&name);
        can_end &= !p[i].required;
        key = p[i].required ? this : either(s, this, key);
        more = range(s, ',', ',', spaced(s, key));
        if (can_end) more = either(s, end, more);
    }
    free(p);
    if (can_end) first_end = end;
    return range(s, '{', '{', either(s, key == s->fail ? key : spaced(s, key), first_end));
}

static int array(Schema *s, const cJSON *schema, int next) {
    const cJSON *items = json_field(schema, "items"), *prefix = json_field(schema, "prefixItems"), *item;
    int min = count_of(s, schema, "minItems", 0), max = count_of(s, schema, "maxItems", NO_LIMIT), n = cJSON_GetArraySize(prefix);
    if (prefix && !cJSON_IsArray(prefix)) return bad_schema(s, "prefixItems: must be a list"), s->fail;
    if (cJSON_IsArray(items)) return bad_schema(s, "items: a list is called prefixItems"), s->fail;
    int rest = cJSON_IsFalse(items) ? -1 : items ? compile_property(s, "[]", items) : s->any;
    if (prefix && !items && min <= n) rest = -1;            /* nobody asks for more */
    if (rest < 0 && max > n) max = n;
    if (max < min) return s->fail;
    int *routine = xcalloc(n + 1, sizeof(int)), i = 0;
    cJSON_ArrayForEach(item, prefix) routine[i++] = compile_property(s, "[]", item);
    int end = spaced(s, range(s, ']', ']', next)), more = end, last = max != NO_LIMIT ? max : min > n ? min : n;
    if (max == NO_LIMIT) {                                  /* after `last` items any number of them */
        more = emit(s, (Instruction){SPLIT, 0, 0, end, s->fail, 0});
        int again = range(s, ',', ',', spaced(s, call(s, rest, more)));
        s->code[more].a = again;
    }
    /* more: after item i + 1. */
    int first = max == NO_LIMIT && !last ? spaced(s, call(s, rest, more)) : s->fail;
    for (i = last - 1; i >= 0 && !s->bad; i--) {
        first = spaced(s, call(s, i < n ? routine[i] : rest, more));
        more = range(s, ',', ',', first);
        if (i >= min) more = either(s, end, more);
    }
    free(routine);
    return range(s, '[', '[', either(s, first, min == 0 ? end : s->fail));
}

static int of_type(Schema *s, const char *type, const cJSON *schema) {
    if (!strcmp(type, "object")) return object(s, schema, s->ret);
    if (!strcmp(type, "array")) return array(s, schema, s->ret);
    if (!strcmp(type, "string")) return string(s, schema, s->ret);
    if (!strcmp(type, "boolean")) return either(s, word(s, "true", s->ret), word(s, "false", s->ret));
    if (!strcmp(type, "null")) return word(s, "null", s->ret);
    return number(s, schema, !strcmp(type, "integer"), s->ret);
}

static int is_note(const char *keyword) {
    static const char *const notes[] = {
        "title", "description", "default", "examples", "$schema", "$id", "$comment", "$defs", "definitions", "deprecated", "readOnly",
        "writeOnly", " merged",                      /* see copy_document */
    };
    for (size_t i = 0; i < sizeof notes / sizeof *notes; i++)
        if (!strcmp(keyword, notes[i])) return 1;
    return 0;
}

/* Every keyword must be one that is acted upon. */
static int check_keywords(Schema *s, const cJSON *schema) {
    static const char *const known[] = {
        "type", "enum", "const", "properties", "required", "additionalProperties", "items", "prefixItems", "minItems", "maxItems",
        "minLength", "maxLength", "pattern", "format", "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "anyOf", "allOf",
        "oneOf", "$ref",
    };
    const cJSON *k;
    char what[200];
    cJSON_ArrayForEach(k, schema) {
        int is_known = is_note(k->string) || (!strcmp(k->string, "uniqueItems") && cJSON_IsFalse(k));
        for (size_t i = 0; i < sizeof known / sizeof *known; i++) is_known |= !strcmp(k->string, known[i]);
        if (is_known) continue;
        snprintf(what, sizeof what, "%.100s is not supported", k->string);
        return bad_schema(s, what);
    }
    return 0;
}

/* Adds the keywords of `more` to `to`.  Two of the same name must agree, or be `required` or disjoint `properties`. */
static int merge(Schema *s, cJSON *to, const cJSON *more) {
    const cJSON *k, *item;
    cJSON_ArrayForEach(k, more) {
        cJSON *have = cJSON_GetObjectItemCaseSensitive(to, k->string);
        if (is_note(k->string)) continue;
        if (!have) cJSON_AddItemToObject(to, k->string, cJSON_Duplicate(k, 1));
        else if (cJSON_Compare(have, k, 1)) continue;
        else if (!strcmp(k->string, "required")) {
            cJSON_ArrayForEach(item, k) cJSON_AddItemToArray(have, cJSON_Duplicate(item, 1));
        } else if (!strcmp(k->string, "properties")) {
            if (merge(s, have, k)) return -1;
        } else return bad_schema(s, "anyOf, oneOf or allOf: the same keyword twice is not supported");
    }
    return 0;
}

/* The schema behind its $refs, for oneOf. */
static const cJSON *behind_refs(const Schema *s, const cJSON *schema) {
    const cJSON *ref;
    for (int i = 0; i < 100 && (ref = json_field(schema, "$ref")) && cJSON_IsString(ref); i++) schema = json_pointer(s->root, ref->valuestring);
    return schema;
}

static int names_type(const cJSON *type, const char *name) {
    const cJSON *t;
    if (cJSON_IsString(type)) return !strcmp(type->valuestring, name);
    cJSON_ArrayForEach(t, type)
        if (cJSON_IsString(t) && !strcmp(t->valuestring, name)) return 1;
    return 0;
}

/* Can nothing satisfy both?  By their types, their constants, or the constants of a property that both require. */
static int exclusive(const Schema *s, const cJSON *a, const cJSON *b, int depth) {
    static const char *const all[] = {"string", "boolean", "null", "array", "object", "number"};
    a = behind_refs(s, a);
    b = behind_refs(s, b);
    const cJSON *ta = json_field(a, "type"), *tb = json_field(b, "type"), *x, *y;
    if (ta && tb) {
        int common = 0;
        for (int i = 0; i < 6; i++) {
            int in_a = names_type(ta, all[i]) || (i == 5 && names_type(ta, "integer"));
            common |= in_a && (names_type(tb, all[i]) || (i == 5 && names_type(tb, "integer")));
        }
        if (!common) return 1;
    }
    const cJSON *ea = json_field(a, "enum"), *eb = json_field(b, "enum"), *ca = json_field(a, "const"), *cb = json_field(b, "const");
    if ((ea || ca) && (eb || cb)) {
        for (x = ea ? ea->child : ca; x; x = ea ? x->next : NULL)
            for (y = eb ? eb->child : cb; y; y = eb ? y->next : NULL)
                if (cJSON_Compare(x, y, 1)) return 0;
        return 1;
    }
    if (depth || !names_type(ta, "object") || !names_type(tb, "object")) return 0;
    cJSON_ArrayForEach(x, json_field(a, "required")) cJSON_ArrayForEach(y, json_field(b, "required")) {
        if (!cJSON_Compare(x, y, 1) || !cJSON_IsString(x)) continue;
        const cJSON *pa = json_field(json_field(a, "properties"), x->valuestring);
        const cJSON *pb = json_field(json_field(b, "properties"), x->valuestring);
        if (pa && pb && exclusive(s, pa, pb, 1)) return 1;
    }
    return 0;
}

/* anyOf, oneOf, allOf: the other keywords hold beside each alternative.  The merged schemas live until the end of the
 * compilation, since routines are known by them. */
static int combination(Schema *s, const cJSON *schema, const char *kind) {
    const cJSON *list = json_field(schema, kind), *item, *other;
    int pc = s->fail, all = !strcmp(kind, "allOf");
    if (!cJSON_IsArray(list) || !list->child) return bad_schema(s, "anyOf, oneOf, allOf: must be a list that is not empty"), pc;
    if (!strcmp(kind, "oneOf"))
        cJSON_ArrayForEach(item, list)
            for (other = item->next; other; other = other->next)
                if (!exclusive(s, item, other, 0))
                    return bad_schema(s, "oneOf: alternatives that may hold at once are not supported (anyOf is)"), pc;
    cJSON *common = cJSON_Duplicate(schema, 1), *merged = NULL;
    cJSON_DeleteItemFromObjectCaseSensitive(common, kind);
    int alone = 1;
    cJSON_ArrayForEach(item, common) alone &= is_note(item->string);
    cJSON_ArrayForEach(item, list) {
        if (alone && !all) {
            pc = either(s, pc, call(s, routine_for(s, item), s->ret));
            continue;
        }
        const cJSON *real = behind_refs(s, item);
        if (!cJSON_IsObject(real)) {
            bad_schema(s, "anyOf, oneOf, allOf: must be a list of objects here");
            break;
        }
        if (!merged) merged = cJSON_Duplicate(common, 1);
        if (merge(s, merged, real)) break;
        if (all && item->next) continue;
        cJSON_AddItemToArray(cJSON_GetObjectItemCaseSensitive(s->root, " merged"), merged);    /* freed with the document's copy */
        pc = either(s, pc, call(s, routine_for(s, merged), s->ret));
        merged = NULL;
    }
    cJSON_Delete(merged);
    cJSON_Delete(common);
    return pc;
}

static int values(Schema *s, const cJSON *schema) {
    const cJSON *list = json_field(schema, "enum"), *one = cJSON_GetObjectItemCaseSensitive(schema, "const"), *k, *v;
    const cJSON *type = json_field(schema, "type");
    int pc = s->fail;
    cJSON_ArrayForEach(k, schema)
        if (!is_note(k->string) && strcmp(k->string, "enum") && strcmp(k->string, "const") && strcmp(k->string, "type"))
            return bad_schema(s, "enum and const are supported alone and beside type"), pc;
    if (list && one) return bad_schema(s, "enum beside const is not supported"), pc;
    if (list && !cJSON_IsArray(list)) return bad_schema(s, "enum: must be a list"), pc;
    for (v = list ? list->child : one; v; v = list ? v->next : NULL)
        if (!type || for_types(s, type, v, value_has_type)) pc = either(s, pc, constant(s, v, s->ret));
    return pc;
}

static int has_any(const cJSON *schema, const char *const *names) {
    for (; *names; names++)
        if (json_field(schema, *names)) return 1;
    return 0;
}

static int compile(Schema *s, const cJSON *schema) {
    static const char *const of_objects[] = {"properties", "required", "additionalProperties", NULL};
    static const char *const of_arrays[] = {"items", "prefixItems", "minItems", "maxItems", NULL};
    static const char *const of_strings[] = {"pattern", "format", "minLength", "maxLength", NULL};
    static const char *const of_numbers[] = {"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", NULL};
    const cJSON *type = json_field(schema, "type"), *ref = json_field(schema, "$ref"), *k;
    int pc = s->fail;
    if (cJSON_IsTrue(schema)) return call(s, s->any, s->ret);
    if (cJSON_IsFalse(schema)) return pc;
    if (!cJSON_IsObject(schema)) return bad_schema(s, "must be an object, true or false"), pc;
    if (check_keywords(s, schema)) return pc;
    if (ref) {
        cJSON_ArrayForEach(k, schema)
            if (strcmp(k->string, "$ref") && !is_note(k->string)) return bad_schema(s, "keywords beside $ref are not supported"), pc;
        const cJSON *there = cJSON_IsString(ref) ? json_pointer(s->root, ref->valuestring) : NULL;
        if (!there) return bad_schema(s, "$ref: must lead to a place in this document"), pc;
        return call(s, routine_for(s, there), s->ret);
    }
    static const char *const kinds[] = {"allOf", "anyOf", "oneOf"};
    for (int i = 0; i < 3; i++)
        if (json_field(schema, kinds[i])) return combination(s, schema, kinds[i]);
    if (cJSON_HasObjectItem(schema, "enum") || cJSON_HasObjectItem(schema, "const")) return values(s, schema);
    if (type) {
        for (const cJSON *t = cJSON_IsArray(type) ? type->child : type; t && !s->bad; t = cJSON_IsArray(type) ? t->next : NULL) {
            if (for_types(s, t, schema, value_has_type) < 0) break;
            pc = either(s, pc, of_type(s, t->valuestring, schema));
        }
        return pc;
    }
    /* Keywords of one type without its name leave all other types open: it is enough to write that one. */
    if (has_any(schema, of_objects)) return object(s, schema, s->ret);
    if (has_any(schema, of_arrays)) return array(s, schema, s->ret);
    if (has_any(schema, of_strings)) return string(s, schema, s->ret);
    if (has_any(schema, of_numbers)) return number(s, schema, 0, s->ret);
    return call(s, s->any, s->ret);
}

static int routine_for(Schema *s, const cJSON *schema) {
    static int depth;
    for (int i = 0; i < s->n_routines; i++)
        if (s->routine[i].schema == schema) return i;
    int i = new_routine(s, schema);
    if (s->bad) return i;
    if (depth >= 200) return bad_schema(s, "nested too deep"), i;
    depth++;
    int entry = compile(s, schema);
    depth--;
    s->routine[i].entry = entry;
    return i;
}

/* ---- a schema as a whole ---- */

/* The least number of tokens from each place to its RET.  What follows an instruction was mostly written before it,
 * so a few rounds are enough. */
static void find_costs(Schema *s) {
    s->cost = xcalloc(s->n_code, sizeof(int));
    for (int pc = 0; pc < s->n_code; pc++) s->cost[pc] = FAR;
    for (int changed = 1; changed;) {
        changed = 0;
        for (int pc = 0; pc < s->n_code; pc++) {
            const Instruction *c = &s->code[pc];
            long long cost = FAR;
            if (c->op == RET) cost = 0;
            else if (c->op == RANGE) cost = (long long)c->b + s->cost[c->a];
            else if (c->op == SPLIT) cost = s->cost[c->next] < s->cost[c->a] ? s->cost[c->next] : s->cost[c->a];
            else if (c->op == CALL) cost = (long long)s->cost[s->routine[c->a].entry] + s->cost[c->next];
            else if (c->op == TEXT) cost = (long long)c->a + 1 + s->cost[c->next];
            if (cost < s->cost[pc]) s->cost[pc] = (int)cost, changed = 1;
        }
    }
}

/* Does a routine come back to itself before it has read a byte?  (`$ref` to itself, directly or by anyOf.)
 * colour: of the routines (1: on the way, 2: done); seen: of the places. */
static int comes_back(const Schema *s, int pc, uint8_t *colour, uint8_t *seen) {
    Ids todo = {0};
    int found = 0;
    ids_add(&todo, pc);
    while (todo.n && !found) {
        pc = todo.id[--todo.n];
        const Instruction *c = &s->code[pc];
        if (seen[pc]) continue;
        seen[pc] = 1;
        if (c->op == SPLIT) ids_add(&todo, c->a);
        if (c->op == SPLIT || (c->op == CALL && c->a == s->space)) ids_add(&todo, c->next);
        if (c->op != CALL || colour[c->a] == 2) continue;
        found = colour[c->a] == 1;
        if (found) break;
        colour[c->a] = 1;
        found = comes_back(s, s->routine[c->a].entry, colour, seen);
        colour[c->a] = 2;
    }
    ids_free(&todo);
    return found;
}

static int is_left_recursive(const Schema *s) {
    uint8_t *colour = xcalloc(s->n_routines, 1), *seen = xcalloc(s->n_code, 1);
    int found = 0;
    for (int i = 0; i < s->n_routines && !found; i++) {
        if (colour[i]) continue;
        colour[i] = 1;
        found = comes_back(s, s->routine[i].entry, colour, seen);
        colour[i] = 2;
    }
    free(colour);
    free(seen);
    return found;
}

static Schema *new_schema(const Pieces *p, int in_calls, Error *err) {
    Schema *s = xcalloc(1, sizeof *s);
    s->p = p;
    s->in_calls = in_calls;
    s->err = err;
    s->fail = emit(s, (Instruction){FAIL, 0, 0, 0, 0, 0});
    s->ret = emit(s, (Instruction){RET, 0, 0, 0, 0, 0});
    new_routine(s, NULL);               /* 0: the whole */
    s->space = new_routine(s, NULL);
    int spaces = s->ret;
    for (int i = 0; i < 16; i++) spaces = either(s, s->ret, range(s, ' ', ' ', spaces));
    s->routine[s->space].entry = either(s, s->ret, either(s, range(s, ' ', ' ', s->ret), range(s, '\n', '\n', spaces)));
    s->any = new_routine(s, NULL);
    return s;
}

/* The routine for any value, made once, as others call it. */
static void make_any(Schema *s) {
    static const char *const types[] = {"object", "array", "string", "number", "boolean", "null"};
    cJSON *nothing = cJSON_CreateObject();
    int pc = s->fail;
    for (int i = 0; i < 6; i++) pc = either(s, pc, of_type(s, types[i], nothing));
    s->routine[s->any].entry = pc;
    cJSON_Delete(nothing);
}

/* The program is complete: entry 0 is the whole.  Can it be run? */
static void check_program(Schema *s) {
    if (!s->bad && is_left_recursive(s)) bad_schema(s, "$ref: leads to itself");
    if (s->bad) return;
    find_costs(s);
    if (s->cost[s->routine[0].entry] >= FAR) bad_schema(s, "nothing satisfies this schema");
}

/* Returns s, or NULL (and s is freed). */
static Schema *finish(Schema *s) {
    check_program(s);
    buf_free(&s->path);
    s->root = NULL;
    if (s->bad) {
        schema_free(s);
        return NULL;
    }
    s->frame = xcalloc(s->cap_frames = 64, sizeof(Frame));
    s->n_frames = 1;
    s->frame_hash = xmalloc(HASH * sizeof(int));
    s->state_hash = xmalloc(HASH * sizeof(int));
    memset(s->frame_hash, 0xff, HASH * sizeof(int));
    memset(s->state_hash, 0xff, HASH * sizeof(int));
    s->seen = xcalloc(s->n_code, sizeof(int));
    s->when = xcalloc(s->n_code, sizeof(unsigned));
    s->scratch = xcalloc(s->p->words, 8);
    return s;
}

/* A copy of the document, with room for the schemas that merge() makes. */
static cJSON *copy_document(const cJSON *schema) {
    cJSON *root = cJSON_Duplicate(schema, 1);
    if (cJSON_IsObject(root)) cJSON_AddArrayToObject(root, " merged");
    return root;
}

Schema *schema_new(const Pieces *p, const cJSON *schema, Error *err) {
    Schema *s = new_schema(p, 0, err);
    cJSON *root = copy_document(schema);
    s->root = root;
    make_any(s);
    s->routine[0].entry = call(s, routine_for(s, root), s->ret);
    s = finish(s);
    cJSON_Delete(root);
    return s;
}

/* The schema of a tool's arguments.  A tool that declares none (NULL) takes none, as in OpenAI's API. */
static cJSON *copy_parameters(const cJSON *parameters) {
    cJSON *root = parameters ? copy_document(parameters) : cJSON_CreateObject();
    if (!parameters) cJSON_AddFalseToObject(root, "additionalProperties");
    if (cJSON_IsObject(root) && !json_field(root, "type"))
        cJSON_AddStringToObject(root, "type", "object");
    return root;
}

static int routine_for_parameters(Schema *s, const char *tool, const cJSON *root) {
    const char *type = cJSON_GetStringValue(json_field(root, "type"));
    s->root = root;
    s->path.len = 0;
    buf_printf(&s->path, " (parameters of %s)", tool);
    if (!type || strcmp(type, "object")) bad_schema(s, "must be of type object");
    return routine_for(s, root);
}

/* Does a tool's schema compile, and into what s has room for?  It is tried in a program of its own,
 * so that nothing of a failure stays in s. */
static int compiles(const Schema *s, const char *tool, const cJSON *root, Error *why) {
    const int reserve = MAX_CODE / 20;  /* for the names of tools */
    Schema *alone = new_schema(s->p, 1, why);
    make_any(alone);
    int routine = routine_for_parameters(alone, tool, root);
    alone->routine[0].entry = call(alone, routine, alone->ret);
    check_program(alone);
    int room = MAX_CODE - reserve - s->n_code;
    if (alone->n_code > room) bad_schema(alone, "the schema is too large");
    int bad = alone->bad;
    buf_free(&alone->path);
    schema_free(alone);
    return !bad;
}

/* The routine for a tool's arguments.  The first of copies is the schema of any object, which takes
 * the place of one that does not compile. */
static int arguments_of(Schema *s, const char *tool, const cJSON *parameters, cJSON *copies,
                        Buf *uncompiled) {
    cJSON *root = copy_parameters(parameters);
    Error why;
    cJSON_AddItemToArray(copies, root);
    if (uncompiled && !compiles(s, tool, root, &why)) {
        buf_printf(uncompiled, "%sthe arguments of %s are not held to its schema: %s",
                   uncompiled->len ? "; " : "", tool, why.text);
        root = copies->child;
    }
    return routine_for_parameters(s, tool, root);
}

Schema *schema_calls(const Pieces *p, const cJSON *tools, const char *name, int several,
                     Buf *uncompiled, Error *err) {
    Schema *s = new_schema(p, 1, err);
    const cJSON *tool;
    int n = 0;
    cJSON *copies = cJSON_CreateArray();
    cJSON *any = cJSON_CreateObject();
    cJSON_AddItemToArray(copies, copy_parameters(any));
    cJSON_Delete(any);
    make_any(s);
    int end = emit(s, (Instruction){SPLIT, 0, 0, s->ret, s->fail, 0}), which = s->fail;
    int close = literal(s, "\xff\x03", 2, end);
    cJSON_ArrayForEach(tool, tools) {
        const cJSON *function = json_field(tool, "function");
        const cJSON *parameters = json_field(function, "parameters");
        const char *this = cJSON_GetStringValue(json_field(function, "name"));
        if (!this || (name && strcmp(this, name))) continue;
        int arguments = arguments_of(s, this, parameters, copies, uncompiled);
        Buf begin = {0};
        buf_printf(&begin, "call:%s", this);
        which = either(s, which, literal(s, begin.data, begin.len, call(s, arguments, close)));
        buf_free(&begin);
        n++;
    }
    int all = literal(s, "\xff\x02", 2, which);
    if (several) s->code[end].a = all;
    s->routine[0].entry = all;
    if (!n) bad_schema(s, "no such tool");
    s = finish(s);
    cJSON_Delete(copies);
    return s;
}

void schema_free(Schema *s) {
    if (!s) return;
    for (int i = 0; i < s->n_states; i++) {
        free(s->state[i].thread);
        free(s->state[i].to);
        free(s->state[i].mask);
    }
    free(s->state);
    free(s->frame);
    free(s->frame_hash);
    free(s->state_hash);
    free(s->code);
    free(s->cost);
    free(s->routine);
    free(s->scratch);
    free(s->seen);
    free(s->when);
    free(s->list);
    ids_free(&s->todo);
    free(s);
}
