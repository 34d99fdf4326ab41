/* states.c - programs of states, and their masks.  See states.h. */
#include "states.h"

#include <stdlib.h>
#include <string.h>

#define MAX_MASKS 1024                  /* kept; 32 KB each with 262,144 tokens */
#define MAX_PICKS (64 << 16)            /* sets of values of all PICKs, 13 bytes each: 64 choices of 16 values */

/* ---- the program ---- */

enum { RANGE, SPLIT, CALL, RET, TEXT, STRINGS, PICK, BEHIND_PICK, FAIL };

typedef struct {
    uint8_t op, lo, hi;                 /* RANGE: a byte from lo to hi; TEXT: lo is how it is written */
    int next;
    /* RANGE: `b` tokens lead to place a, at least; SPLIT: a is the other way; CALL: subroutine a; TEXT: a to b
     * characters and the byte that ends it; STRINGS: one of set a and the byte that ends it; PICK and
     * BEHIND_PICK: in front of a value of choice a and behind one. */
    int a, b;
} Instruction;

/* A set of strings with bounds of its own. */
typedef struct {
    Strings *strings;
    TextStyle style;
    int min, max;                       /* characters */
    /* [n][columns] tokens from each state to the end of the string.  Where there is a max: with exactly so many more
     * characters; else where there is a min: with at least so many; else one column. */
    int *cost, columns;
    int most;                           /* of all costs that are no FAR */
    /* [n][columns] so many characters may follow, whichever a plain token has; at most the longest token's. */
    uint8_t *safe;
} TextSet;

/* Values that each come once.  What may follow depends on which have been written: that set is no
 * place of the program, as there would be one for each, but stands in the frame to return to. */
typedef struct {
    Choice of;
    int end, *cost;                     /* [2][1 << n] tokens in front of a value, and behind one */
} Picks;

/* Inside a TEXT: between two characters, in a UTF-8 character, after a backslash, in the digits of \uXXXX. */
enum { BETWEEN, U1, U2, U3, U2_E0, U2_ED, U3_F0, U3_F4, ESCAPE, HEX4, HEX3, HEX2, HEX1, ZERO3, ZERO2, ZERO1, SURROGATE };
static const int to_finish[] = {0, 1, 2, 3, 2, 2, 3, 3, 1, 4, 3, 2, 1, 3, 2, 1, 3};

typedef struct {
    int pc, stack;
    /* In a TEXT: how many characters must and may follow.  In STRINGS: the state, and the bits so far of the character
     * that is being read.  In both: where in a character it is. */
    int a, b, inside;
    int count;                          /* in STRINGS: characters so far, up to what still matters */
} Thread;

typedef struct {
    int pc, parent;                     /* where to return to; the stack below, 0: none */
    unsigned used;                      /* at a PICK or BEHIND_PICK: the values that have been written */
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
    int *routine;                       /* their entries */
    int n_routines, cap_routines;
    TextSet *set;
    int n_sets;
    Picks *picks;
    int n_picks, n_pick_sets;
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
    Ids todo;                           /* of closure(): places, stacks and sets of values, by turns */

    int ret, fail, full;                /* places that all share; 1: the program has become too large */
};

#define HASH 65536

/* ---- running it ---- */

/* The least number of tokens from a PICK or BEHIND_PICK to its RET, with those values written. */
static int cost_of_pick(const Schema *s, int pc, unsigned used) {
    const Instruction *c = &s->code[pc];
    const Picks *p = &s->picks[c->a];
    return p->cost[used + ((size_t)(c->op == BEHIND_PICK) << p->of.n)];
}

static int push_frame(Schema *s, int pc, unsigned used, int parent) {
    unsigned h = ((unsigned)pc * 2654435761u ^ (unsigned)parent * 40503u ^ used * 2246822519u) % HASH;
    for (int i = s->frame_hash[h]; i >= 0; i = s->frame[i].next)
        if (s->frame[i].pc == pc && s->frame[i].parent == parent && s->frame[i].used == used)
            return i;
    if (s->n_frames == s->cap_frames) s->frame = xrealloc(s->frame, s->cap_frames = 2 * s->cap_frames + 64, sizeof(Frame));
    int op = s->code[pc].op, is_pick = op == PICK || op == BEHIND_PICK;
    int own = is_pick ? cost_of_pick(s, pc, used) : s->cost[pc];
    long long cost = (long long)own + s->frame[parent].cost;
    s->frame[s->n_frames] = (Frame){pc, parent, used, cost < FAR ? (int)cost : FAR,
        s->frame_hash[h]};
    return s->frame_hash[h] = s->n_frames++;
}

static void add_thread(Schema *s, Thread t) {
    if (s->n_list == s->cap_list) s->list = xrealloc(s->list, s->cap_list = 2 * s->cap_list + 64, sizeof(Thread));
    s->list[s->n_list++] = t;
}

static void add_todo(Schema *s, int pc, int stack, unsigned used) {
    ids_add(&s->todo, pc);
    ids_add(&s->todo, stack);
    ids_add(&s->todo, (int)used);
}

/* The ways on from a PICK: each value that may come, to be followed by its BEHIND_PICK. */
static void follow_pick(Schema *s, int pc, int stack, unsigned used) {
    const Choice *choice = &s->picks[s->code[pc].a].of;
    for (int i = 0; i < choice->n; i++) {
        if (!(choice->next[used] >> i & 1)) continue;
        int behind = push_frame(s, pc + 1, used | 1u << i, stack);
        if (s->frame[behind].cost < FAR) add_todo(s, s->routine[choice->value[i]], behind, 0);
    }
}

/* Follows one that has come to pc until it stands at a byte (or at the end: pc -1); other ways go to s->todo. */
static void follow_thread(Schema *s, int pc, int stack, unsigned used) {
    for (;;) {
        const Instruction *c = &s->code[pc];
        const Picks *p;
        switch (c->op) {
        case SPLIT:
            if (s->when[pc] == s->now && s->seen[pc] == stack) return;      /* round an empty loop */
            s->when[pc] = s->now;
            s->seen[pc] = stack;
            add_todo(s, c->a, stack, 0);
            pc = c->next;
            continue;
        case CALL:
            if (s->code[c->next].op != RET) stack = push_frame(s, c->next, 0, stack);
            pc = s->routine[s->code[pc].a];
            continue;
        case PICK:
            follow_pick(s, pc, stack, used);
            return;
        case BEHIND_PICK:
            p = &s->picks[c->a];
            if (p->of.next[used])
                add_todo(s, s->routine[p->of.comma], push_frame(s, pc - 1, used, stack), 0);
            if (!p->of.may_end[used]) return;
            pc = p->end;
            continue;
        case RET:
            if (stack) {
                pc = s->frame[stack].pc;
                used = s->frame[stack].used;
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
    follow_thread(s, pc, stack, 0);
    while (s->todo.n) {
        s->todo.n -= 3;
        const int *way = s->todo.id + s->todo.n;
        follow_thread(s, way[0], way[1], (unsigned)way[2]);
    }
}

/* What the bits of a character that is being read can still become: from *lo to *hi. */
static void possible(const Thread *t, int *lo, int *hi) {
    int left = to_finish[t->inside], shift = left * (t->inside < ESCAPE ? 6 : 4);
    *lo = t->b << shift;
    *hi = *lo | ((1 << shift) - 1);
    if (t->inside == U2_E0) *lo |= 0x800;
    if (t->inside == U3_F0) *lo |= 0x10000;
    if (t->inside == U2_ED || t->inside == SURROGATE) *hi = 0xd7ff;
    if (t->inside == U3_F4) *hi = 0x10ffff;
    if (*lo < 1) *lo = 1;
}

static const char escaped[] = "\"\\/bfnrt", escape_of[] = "\"\\/\b\f\n\r\t";

/* Tokens from a state of the set, `count` characters in, to the end of the string; FAR: none lead there. */
static int cost_in_set(const TextSet *x, int state, int count) {
    const int *cost = x->cost + (size_t)state * (size_t)x->columns;
    int more = count < x->min ? x->min - count : 0;
    if (x->max == NO_LIMIT) return cost[x->columns > 1 ? more : 0];
    for (int n = more; n <= x->max - count; n++)
        if (cost[n] < FAR) return cost[n];
    return FAR;
}

static int cost_after(const TextSet *x, int state, int count, int lo, int hi) {
    int least = FAR;
    const Strings *z = x->strings;
    for (int i = 0; i < z->n_edges && z->edge[i] <= hi; i++) {
        if (z->edge[i + 1] <= lo) continue;
        int to = z->to[(size_t)state * (size_t)z->n_classes + (size_t)z->class_of[i]];
        int cost = to < 0 ? FAR : cost_in_set(x, to, count + 1);
        if (cost < least) least = cost;
    }
    return least;
}

static int strings_cost(const TextSet *x, const Thread *t) {
    int lo, hi, least;
    if (!t->inside) return cost_in_set(x, t->a, t->count);
    if (t->inside != ESCAPE) {
        possible(t, &lo, &hi);
        return cost_after(x, t->a, t->count, lo, hi) + to_finish[t->inside];
    }
    least = cost_after(x, t->a, t->count, 1, 0xffff) + 4;                  /* \uXXXX */
    for (const char *c = escape_of; *c; c++) {
        int cost = cost_after(x, t->a, t->count, *c, *c);
        if (cost < least) least = cost;
    }
    return least + 1;
}

static int thread_cost(const Schema *s, const Thread *t) {
    if (t->pc < 0) return 0;
    const Instruction *c = &s->code[t->pc];
    long long cost = s->frame[t->stack].cost;
    if (c->op == TEXT) cost += t->a + to_finish[t->inside] + 1 + s->cost[c->next];
    else if (c->op == STRINGS) cost += (long long)strings_cost(&s->set[c->a], t) + 1 + s->cost[c->next];
    else cost += s->cost[t->pc];
    return cost < FAR ? (int)cost : FAR;
}

static int compare_threads(const void *x, const void *y) { return memcmp(x, y, sizeof(Thread)); }

/* Whether the thread has a way to the end.  In the middle of a literal no token may go on from it,
 * and one that began before may still span it: there what follows the literal counts. */
static int is_alive(const Schema *s, const Thread *t) {
    if (t->pc < 0 || s->code[t->pc].op != RANGE) return thread_cost(s, t) < FAR;
    return (long long)s->cost[s->code[t->pc].a] + s->frame[t->stack].cost < FAR;
}

/* The state that is made of list[0..n): sorted, none twice, none without a way to the end.  -1 when none is left. */
static int find_state(Schema *s, Thread *list, int n) {
    int kept = 0;
    for (int i = 0; i < n; i++)
        if (is_alive(s, &list[i])) list[kept++] = list[i];
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

/* The bits of the character that is being read after byte b, which led from `inside` to `then`. */
static int bits_after(int bits, int inside, int then, int b) {
    if (inside == ESCAPE) return b == 'u' ? 0 : escape_of[strchr(escaped, b) - escaped];
    if (inside > ESCAPE) return bits << 4 | (b <= '9' ? b - '0' : (b | 32) - 'a' + 10);
    if (inside) return bits << 6 | (b & 63);
    if (then == BETWEEN || then == ESCAPE) return b;
    return b & (b < 0xe0 ? 0x1f : b < 0xf0 ? 0x0f : 0x07);
}

/* The thread in STRINGS after a byte that does not end them: 1, or 0 when it dies. */
static int follow_strings(const TextSet *x, Thread *t, int b) {
    int began = !t->inside, then = began && t->count == x->max ? -1 : next_inside(t->inside, (int)x->style, b);
    if (then < 0) return 0;
    t->b = bits_after(t->b, t->inside, then, b);
    t->inside = then;
    if (then != BETWEEN) return 1;
    t->a = strings_next(x->strings, t->a, t->b);
    t->b = 0;
    if (x->max != NO_LIMIT || t->count < x->min) t->count++;
    return t->a >= 0;
}

/* The thread in a TEXT, likewise. */
static int follow_text(const Instruction *c, Thread *t, int b) {
    int began = !t->inside, then = began && t->b == 0 ? -1 : next_inside(t->inside, c->lo, b);
    if (then < 0) return 0;
    if (began && t->a) t->a--;
    if (began && t->b != NO_LIMIT) t->b--;
    t->inside = then;
    return 1;
}

/* Whether the text may end where the thread is. */
static int may_close(const Schema *s, const Thread *t) {
    const Instruction *c = &s->code[t->pc];
    if (t->inside) return 0;
    if (c->op == TEXT) return t->a == 0;
    return s->set[c->a].strings->accepts[t->a] && t->count >= s->set[c->a].min;
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
        if (b == (c->lo == CALL_TEXT ? MARK : '"') && may_close(s, &t)) {
            closure(s, c->next, t.stack);
            continue;
        }
        if (c->op == TEXT ? follow_text(c, &t, b) : follow_strings(&s->set[c->a], &t, b)) add_thread(s, t);
    }
    return find_state(s, s->list, s->n_list);
}

int schema_step(Schema *s, int state, int b) {
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
static void walk(Schema *s, const TokenTree *tree, int state, int limit, uint64_t *mask, int *farthest) {
    int at[256];
    at[0] = state;
    for (int i = 0; i < tree->n;) {
        const TokenNode *node = &tree->node[i];
        int to = schema_step(s, at[node->depth - 1], node->byte);
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

/* How many characters may follow the thread, whichever they are; at most those of the longest token. */
static int free_characters(const Schema *s, const Thread *t) {
    if (t->pc < 0 || t->inside) return 0;
    const Instruction *c = &s->code[t->pc];
    int longest = s->p->longest;
    if (c->op == TEXT) return t->b < longest ? t->b : longest;
    if (c->op != STRINGS) return 0;
    const TextSet *x = &s->set[c->a];
    int column = x->max != NO_LIMIT ? x->max - t->count : t->count < x->min ? x->min - t->count : 0;
    return x->safe[(size_t)t->a * (size_t)x->columns + (size_t)column];
}

/* All tokens that the state allows. */
static void fill_mask(Schema *s, int state, uint64_t *mask, int *farthest) {
    const Pieces *p = s->p;
    int n = s->state[state].n, n_others = 0, other = state;
    Thread *others = xcalloc(n, sizeof *others);
    for (int i = 0; i < n; i++) {
        const Thread *t = &s->state[state].thread[i];
        int free_count = free_characters(s, t), is_text = t->pc >= 0 && s->code[t->pc].op == TEXT && !t->inside;
        if (free_count) {
            const Instruction *c = &s->code[t->pc];
            const uint64_t *fitting = p->fitting[c->lo == CALL_TEXT][free_count];
            for (int w = 0; w < p->words; w++) mask[w] |= fitting[w];
            int far = thread_cost(s, t) + 3;        /* a token may end inside a character */
            if (c->op == STRINGS) far = s->frame[t->stack].cost + s->set[c->a].most + 4 + s->cost[c->next];
            if (far > *farthest) *farthest = far;
        }
        /* What fits is all that a TEXT takes of plain tokens; a set may take longer ones. */
        int is_full = free_count && t->pc >= 0 && s->code[t->pc].op == STRINGS &&
                      s->set[s->code[t->pc].a].max != NO_LIMIT && free_count == s->set[s->code[t->pc].a].max - t->count;
        if (is_text || is_full || (free_count && free_count == p->longest)) other = -1;
        else others[n_others++] = *t;
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
        if (t->pc < 0 || s->code[t->pc].op != TEXT) continue;
        changed |= t->a > enough || (t->b > enough && t->b != NO_LIMIT);
    }
    if (!changed) return state;
    Thread *list = xcalloc(n, sizeof *list);
    memcpy(list, s->state[state].thread, (size_t)n * sizeof *list);
    for (int i = 0; i < n; i++) {
        if (list[i].pc < 0 || s->code[list[i].pc].op != TEXT) continue;
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
    closure(s, s->routine[0], 0);
    return find_state(s, s->list, s->n_list);
}

int schema_next(Schema *s, int state, int id) {
    size_t n = 0;
    const uint8_t *text = piece_bytes(s->p, id, &n);
    if (!n) return -1;
    for (size_t i = 0; i < n && state >= 0; i++) state = schema_step(s, state, text[i]);
    return state >= 0 && s->state[state].distance < FAR ? state : -1;
}

int schema_may_end(const Schema *s, int state) { return s->state[state].end; }

int schema_must_end(Schema *s, int state) { return s->state[state].end && s->state[state].n == 1; }

int schema_distance(const Schema *s, int state) { return s->state[state].distance; }

/* ---- writing a program ---- */

static int emit(Schema *s, Instruction i) {
    if (s->n_code >= MAX_CODE) {
        s->full = 1;
        return s->fail;
    }
    if (s->n_code == s->cap_code) s->code = xrealloc(s->code, s->cap_code = 2 * s->cap_code + 256, sizeof i);
    s->code[s->n_code] = i;
    return s->n_code++;
}

Schema *states_new(const Pieces *p, int in_calls) {
    Schema *s = xcalloc(1, sizeof *s);
    s->p = p;
    s->in_calls = in_calls;
    s->fail = emit(s, (Instruction){FAIL, 0, 0, 0, 0, 0});
    s->ret = emit(s, (Instruction){RET, 0, 0, 0, 0, 0});
    new_routine(s);                     /* 0: the whole */
    return s;
}

int states_fail(const Schema *s) { return s->fail; }
int states_ret(const Schema *s) { return s->ret; }
int states_in_calls(const Schema *s) { return s->in_calls; }
int states_size(const Schema *s) { return s->n_code; }
int states_is_full(const Schema *s) { return s->full; }

int put_range(Schema *s, int lo, int hi, int next) {
    if (next == s->fail) return next;
    return emit(s, (Instruction){RANGE, (uint8_t)lo, (uint8_t)hi, next, next, 1});
}

int put_either(Schema *s, int one, int two) {
    if (one == s->fail || one == two) return two;
    if (two == s->fail) return one;
    return emit(s, (Instruction){SPLIT, 0, 0, one, two, 0});
}

int put_literal(Schema *s, const char *text, size_t n, int next) {
    int *cover = xmalloc((n + 1) * sizeof(int)), pc = next;
    pieces_cover(s->p, (const uint8_t *)text, (int)n, cover);
    for (size_t i = n; i-- > 0 && next != s->fail;) {
        uint8_t c = (uint8_t)text[i];
        pc = emit(s, (Instruction){RANGE, c, c, pc, next, cover[i]});
    }
    free(cover);
    return pc;
}

/* Those of texts[0..n), which agree in their first `at` bytes, from there on. */
static int put_branches(Schema *s, char *const *texts, int n, size_t at, int next) {
    if (n == 1) return put_literal(s, texts[0] + at, strlen(texts[0]) - at, next);
    int pc = s->fail;
    for (int i = 0; i < n;) {
        int same = 1;
        char c = texts[i][at];
        while (i + same < n && texts[i + same][at] == c) same++;
        int rest = c ? put_branches(s, texts + i, same, same > 1 ? at + 1 : at, next) : next;
        pc = put_either(s, pc, c && same > 1 ? put_range(s, (uint8_t)c, (uint8_t)c, rest) : rest);
        i += same;
    }
    return pc;
}

int put_literals(Schema *s, char *const *texts, int n, int next) { return n ? put_branches(s, texts, n, 0, next) : s->fail; }

int put_loop(Schema *s, int next) { return emit(s, (Instruction){SPLIT, 0, 0, next, s->fail, 0}); }

void set_loop(Schema *s, int loop, int again) { s->code[loop].a = again; }

int put_call(Schema *s, int routine, int next) {
    return next == s->fail ? next : emit(s, (Instruction){CALL, 0, 0, next, routine, 0});
}

int new_routine(Schema *s) {
    if (s->n_routines == s->cap_routines) s->routine = xrealloc(s->routine, s->cap_routines = 2 * s->cap_routines + 64, sizeof(int));
    s->routine[s->n_routines] = s->fail;
    return s->n_routines++;
}

void set_entry(Schema *s, int routine, int entry) { s->routine[routine] = entry; }

int put_quote(Schema *s, int next) {
    if (next == s->fail) return next;
    return s->in_calls ? put_literal(s, "\xff\x01", 2, next) : put_range(s, '"', '"', next);
}

/* What stands behind a text: `"` ends it, or a MARK, whose second byte follows. */
static int behind_text(Schema *s, TextStyle style, int next) {
    return style == CALL_TEXT ? emit(s, (Instruction){RANGE, QUOTE_MARK, QUOTE_MARK, next, next, 0}) : next;
}

int put_text(Schema *s, int min, int max, TextStyle style, int next) {
    if (min > max || next == s->fail) return s->fail;
    next = behind_text(s, style, next);
    return emit(s, (Instruction){TEXT, (uint8_t)style, 0, next, min, max});
}

/* The fewest tokens for a character from lo to hi; FAR: none can be written. */
static int character_cost(TextStyle style, int lo, int hi) {
    static const int plain[][2] = {{0x20, 0x21}, {0x23, 0x5b}, {0x5d, 0x7f}};
    if (lo < 1) lo = 1;
    if (style == CALL_TEXT && lo <= hi && lo < 0x80) return 1;
    for (int i = 0; i < 3; i++)
        if (lo <= plain[i][1] && hi >= plain[i][0]) return 1;
    for (const char *c = escape_of; style == JSON_TEXT && *c; c++)
        if (*c >= lo && *c <= hi) return 2;
    if (style == JSON_TEXT && lo <= hi && lo < 0x20) return 6;
    if (lo < 0x80) lo = 0x80;
    if (lo >= 0xd800 && lo <= 0xdfff) lo = 0xe000;
    return lo > hi ? FAR : lo < 0x800 ? 2 : lo < 0x10000 ? 3 : 4;
}

/* The fewest tokens that lead from a state over one character to what `cost` says of the next, a column of x->cost. */
static int cost_over(const TextSet *x, const int *weight, int state, int column) {
    const Strings *z = x->strings;
    int least = FAR;
    for (int k = 0; k < z->n_classes; k++) {
        int to = z->to[(size_t)state * (size_t)z->n_classes + (size_t)k];
        if (to < 0 || weight[k] >= FAR) continue;
        int cost = x->cost[(size_t)to * (size_t)x->columns + (size_t)column];
        if (cost < FAR && cost + weight[k] < least) least = cost + weight[k];
    }
    return least;
}

static void fill_costs(TextSet *x) {
    const Strings *z = x->strings;
    size_t columns = (size_t)x->columns;
    int *weight = xcalloc(z->n_classes + 1, sizeof(int));
    for (int k = 0; k < z->n_classes; k++) weight[k] = FAR;
    for (int i = 0; i < z->n_edges; i++) {
        int cost = character_cost(x->style, z->edge[i], z->edge[i + 1] - 1);
        if (cost < weight[z->class_of[i]]) weight[z->class_of[i]] = cost;
    }
    for (int i = 0; i < z->n; i++) x->cost[(size_t)i * columns] = z->accepts[i] ? 0 : FAR;
    for (int changed = x->max == NO_LIMIT; changed;) {
        changed = 0;
        for (int i = z->n - 1; i >= 0; i--) {
            int cost = cost_over(x, weight, i, 0);
            if (cost < x->cost[(size_t)i * columns]) x->cost[(size_t)i * columns] = cost, changed = 1;
        }
    }
    for (int c = 1; c < x->columns; c++)
        for (int i = 0; i < z->n; i++) x->cost[(size_t)i * columns + (size_t)c] = cost_over(x, weight, i, c - 1);
    for (size_t i = 0; i < (size_t)z->n * columns; i++)
        if (x->cost[i] < FAR && x->cost[i] > x->most) x->most = x->cost[i];
    free(weight);
}

/* Whether a string may come to the state in that column of x->cost, and be completed. */
static int is_open(const TextSet *x, int state, int column) {
    if (x->max != NO_LIMIT) return cost_in_set(x, state, x->max - column) < FAR;
    return x->cost[(size_t)state * (size_t)x->columns + (size_t)column] < FAR;
}

/* Characters that may follow the state, whichever of a plain token's they are: one more than from
 * the states after each of them, in `column`; 0: one of them leads nowhere. */
static int safe_before(const TextSet *x, const uint8_t *is_plain, int state, int column, int longest) {
    const Strings *z = x->strings;
    int least = longest - 1;
    for (int k = 0; k < z->n_classes && least >= 0; k++) {
        int to = is_plain[k] ? z->to[(size_t)state * (size_t)z->n_classes + (size_t)k] : 0;
        if (!is_plain[k]) continue;
        if (to < 0 || !is_open(x, to, column)) return 0;
        int safe = x->safe[(size_t)to * (size_t)x->columns + (size_t)column];
        if (safe < least) least = safe;
    }
    return least + 1;
}

static void fill_safe(TextSet *x, int longest) {
    const Strings *z = x->strings;
    size_t columns = (size_t)x->columns;
    uint8_t *is_plain = xcalloc(z->n_classes + 1, 1);
    TextStyle style = x->style == CALL_TEXT ? CALL_TEXT : KEY_TEXT;
    for (int i = 0; i < z->n_edges; i++) {
        /* U+2028 and U+2029, which `.` does not match, are in no plain token (vocabulary.c). */
        if (style == KEY_TEXT && z->edge[i] >= 0x2028 && z->edge[i + 1] <= 0x202a) continue;
        if (character_cost(style, z->edge[i], z->edge[i + 1] - 1) < FAR) is_plain[z->class_of[i]] = 1;
    }
    x->safe = xcalloc((int64_t)z->n * x->columns + 1, 1);
    /* Without a max all states begin as free and become less so until nothing changes. */
    for (int i = 0; x->max == NO_LIMIT && i < z->n; i++) x->safe[(size_t)i * columns] = (uint8_t)longest;
    for (int changed = x->max == NO_LIMIT; changed;) {
        changed = 0;
        for (int i = z->n - 1; i >= 0; i--) {
            int safe = safe_before(x, is_plain, i, 0, longest);
            if (safe < x->safe[(size_t)i * columns]) x->safe[(size_t)i * columns] = (uint8_t)safe, changed = 1;
        }
    }
    for (int c = 1; c < x->columns; c++)
        for (int i = 0; i < z->n; i++)
            x->safe[(size_t)i * columns + (size_t)c] = (uint8_t)safe_before(x, is_plain, i, c - 1, longest);
    free(is_plain);
}

int put_strings(Schema *s, Strings *strings, int min, int max, TextStyle style, int next) {
    TextSet x = {.strings = strings, .style = style, .min = min, .max = max};
    s->set = xrealloc(s->set, s->n_sets + 1, sizeof *s->set);
    x.columns = 1 + (max == NO_LIMIT ? min : max);
    x.cost = xcalloc((int64_t)strings->n * x.columns + 1, sizeof(int));
    fill_costs(&x);
    fill_safe(&x, s->p->longest);
    s->set[s->n_sets++] = x;
    if (!strings->n || next == s->fail || cost_in_set(&x, 0, 0) >= FAR) return s->fail;
    next = behind_text(s, style, next);
    return emit(s, (Instruction){STRINGS, (uint8_t)style, 0, next, s->n_sets - 1, 0});
}

int put_bare(Schema *s, const Strings *z, int next) {
    int *place = xcalloc(z->n + 1, sizeof(int)), first = s->fail;
    for (int i = 0; i < z->n; i++) place[i] = put_loop(s, z->accepts[i] ? next : s->fail);
    for (int i = 0; i < z->n; i++) {
        int pc = s->fail;
        for (int e = 0; e < z->n_edges && z->edge[e] < 0x80; e++) {
            int to = z->to[(size_t)i * (size_t)z->n_classes + (size_t)z->class_of[e]], last = z->edge[e + 1] - 1;
            if (to >= 0) pc = put_either(s, pc, put_range(s, z->edge[e], last < 0x7f ? last : 0x7f, place[to]));
        }
        set_loop(s, place[i], pc);
    }
    if (z->n) first = place[0];
    free(place);
    return first;
}

int put_picks(Schema *s, Choice choice, int end) {
    s->picks = xrealloc(s->picks, s->n_picks + 1, sizeof *s->picks);
    s->picks[s->n_picks++] = (Picks){.of = choice, .end = end};
    if ((s->n_pick_sets += 1 << choice.n) > MAX_PICKS) s->full = 1;
    int pc = emit(s, (Instruction){PICK, 0, 0, end, s->n_picks - 1, 0});
    emit(s, (Instruction){BEHIND_PICK, 0, 0, end, s->n_picks - 1, 0});
    return pc;
}

/* ---- a program as a whole ---- */

/* The costs of a choice, from the largest set of values to the empty one.  All that it calls was
 * written before it, and has its costs. */
static int *costs_of_picks(const Schema *s, const Picks *p) {
    size_t sets = (size_t)1 << p->of.n;
    int *in_front = xcalloc((int64_t)(2 * sets), sizeof(int)), *behind = in_front + sets;
    for (size_t used = sets; used-- > 0;) {
        long long least = FAR;
        for (int i = 0; i < p->of.n; i++) {
            if (!(p->of.next[used] >> i & 1)) continue;
            long long cost = (long long)s->cost[s->routine[p->of.value[i]]] + behind[used | (size_t)1 << i];
            if (cost < least) least = cost;
        }
        in_front[used] = (int)least;
        least += s->cost[s->routine[p->of.comma]];
        if (p->of.may_end[used] && s->cost[p->end] < least) least = s->cost[p->end];
        behind[used] = least < FAR ? (int)least : FAR;
    }
    return in_front;
}

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
            else if (c->op == CALL) cost = (long long)s->cost[s->routine[c->a]] + s->cost[c->next];
            else if (c->op == TEXT) cost = (long long)c->a + 1 + s->cost[c->next];
            else if (c->op == STRINGS) cost = (long long)cost_in_set(&s->set[c->a], 0, 0) + 1 + s->cost[c->next];
            else if (c->op == PICK) {
                Picks *p = &s->picks[c->a];
                if (!p->cost) p->cost = costs_of_picks(s, p);
                cost = p->cost[0];
            }
            if (cost < s->cost[pc]) s->cost[pc] = (int)cost, changed = 1;
        }
    }
}

/* Whether a routine may end without a byte: only white space does. */
static int may_be_empty(const Schema *s, int routine) { return s->cost[s->routine[routine]] == 0; }

/* A routine that comes back to itself before it has read a byte (`$ref` to itself, directly or by anyOf); -1: none.
 * colour: of the routines (1: on the way, 2: done); seen: of the places. */
static int comes_back(const Schema *s, int pc, uint8_t *colour, uint8_t *seen) {
    Ids todo = {0};
    int found = -1;
    ids_add(&todo, pc);
    while (todo.n && found < 0) {
        pc = todo.id[--todo.n];
        const Instruction *c = &s->code[pc];
        if (seen[pc]) continue;
        seen[pc] = 1;
        if (c->op == SPLIT) ids_add(&todo, c->a);
        if (c->op == SPLIT || (c->op == CALL && may_be_empty(s, c->a))) ids_add(&todo, c->next);
        if (c->op != CALL || colour[c->a] == 2) continue;
        if (colour[c->a] == 1) {
            found = c->a;
            break;
        }
        colour[c->a] = 1;
        found = comes_back(s, s->routine[c->a], colour, seen);
        colour[c->a] = 2;
    }
    ids_free(&todo);
    return found;
}

static int left_recursive(const Schema *s) {
    uint8_t *colour = xcalloc(s->n_routines, 1), *seen = xcalloc(s->n_code, 1);
    int found = -1;
    for (int i = 0; i < s->n_routines && found < 0; i++) {
        if (colour[i]) continue;
        colour[i] = 1;
        found = comes_back(s, s->routine[i], colour, seen);
        colour[i] = 2;
    }
    free(colour);
    free(seen);
    return found;
}

static int has_end(const Schema *s, int routine) { return s->cost[s->routine[routine]] < FAR; }

/* Whether a routine would end if all that it calls did, but for `out` where that has none.  Adds
 * those without an end to *dead (may be NULL).  seen[n_code]: zeros, and afterwards again. */
static int would_end(const Schema *s, int routine, int out, Ids *dead, uint8_t *seen) {
    Ids todo = {0};
    int ends = 0;
    ids_add(&todo, s->routine[routine]);
    for (int i = 0; i < todo.n; i++) {
        int pc = todo.id[i];
        const Instruction *c = &s->code[pc];
        if (seen[pc]) continue;
        seen[pc] = 1;
        ends |= c->op == RET;
        if (c->op == RET || c->op == FAIL || (c->op == PICK && s->cost[pc] >= FAR)) continue;
        if (c->op == SPLIT) ids_add(&todo, c->a);
        if (c->op == CALL && dead && !has_end(s, c->a)) ids_add(dead, c->a);
        if (c->op != CALL || c->a != out || has_end(s, out)) ids_add(&todo, c->next);
    }
    for (int i = 0; i < todo.n; i++) seen[todo.id[i]] = 0;
    ids_free(&todo);
    return ends;
}

int states_dead_end(const Schema *s, int routine) {
    Ids dead = {0};
    uint8_t *seen = xcalloc(s->n_code, 1);
    int found = -1, ends = would_end(s, routine, -1, &dead, seen);
    for (int i = 0; i < dead.n && ends && found < 0; i++)
        if (!would_end(s, routine, dead.id[i], NULL, seen)) found = dead.id[i];
    ids_free(&dead);
    free(seen);
    return found;
}

int states_finish(Schema *s, int *routine, Error *err) {
    *routine = -1;
    if (s->full) return fail(err, "the schema is too large");
    find_costs(s);
    if ((*routine = left_recursive(s)) >= 0)
        return fail(err, "a $ref leads back to it before anything is written");
    if (!has_end(s, 0)) return *routine = 0, fail(err, "nothing satisfies this schema");
    s->frame = xcalloc(s->cap_frames = 64, sizeof(Frame));
    s->n_frames = 1;
    s->frame_hash = xmalloc(HASH * sizeof(int));
    s->state_hash = xmalloc(HASH * sizeof(int));
    memset(s->frame_hash, 0xff, HASH * sizeof(int));
    memset(s->state_hash, 0xff, HASH * sizeof(int));
    s->seen = xcalloc(s->n_code, sizeof(int));
    s->when = xcalloc(s->n_code, sizeof(unsigned));
    s->scratch = xcalloc(s->p->words, 8);
    return 0;
}

void schema_free(Schema *s) {
    if (!s) return;
    for (int i = 0; i < s->n_states; i++) {
        free(s->state[i].thread);
        free(s->state[i].to);
        free(s->state[i].mask);
    }
    for (int i = 0; i < s->n_sets; i++) {
        strings_free(s->set[i].strings);
        free(s->set[i].cost);
        free(s->set[i].safe);
    }
    for (int i = 0; i < s->n_picks; i++) {
        free(s->picks[i].of.value);
        free(s->picks[i].of.next);
        free(s->picks[i].of.may_end);
        free(s->picks[i].cost);
    }
    free(s->picks);
    free(s->set);
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
