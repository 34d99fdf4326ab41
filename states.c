/* states.c - runs the program of a schema: its states and their masks.  See states.h. */
#include "states.h"

#include <stdlib.h>
#include <string.h>

/* Limits of memory, chosen by judgement: when a value begins, more states or frames than these are
 * forgotten.  They take up to 100 MB. */
#define MAX_STATES 50000
#define MAX_FRAMES 200000

#define HASH 65536                      /* chains of a hash table: about 3 entries each at most */

/* Where in a character a thread is that reads a TEXT or STRINGS. */
enum {
    BETWEEN,                            /* between two characters */
    U1, U2, U3,                         /* in UTF-8: 1, 2 or 3 more bytes, */
    U2_E0, U2_ED, U3_F0, U3_F4,         /* of which the first byte (E0 …) narrows the next one */
    ESCAPE,                             /* behind a backslash */
    HEX4, HEX3, HEX2, HEX1,             /* in \uXXXX: so many more digits, */
    ZERO3, ZERO2, ZERO1,                /* after zeros alone, as \u0000 is not written, */
    SURROGATE                           /* after a d: 3 more, of which the first is at most 7 */
};

/* How many bytes each of them is from BETWEEN. */
static const int to_finish[] = {0, 1, 2, 3, 2, 2, 3, 3, 1, 4, 3, 2, 1, 3, 2, 1, 3};

/* compare_threads and find_state compare and hash the bytes of a Thread: it must have no
 * padding. */
struct Thread {
    int pc, stack;                      /* the address, -1: the end of the value; the top frame */
    int a;                              /* TEXT: characters that must follow; STRINGS: the state */
    int b;                              /* TEXT: characters that may follow, or NO_LIMIT;
                                         * STRINGS: the bits so far of the current character */
    int inside;                         /* TEXT, STRINGS: where in a character */
    int count;                          /* STRINGS: characters so far; without a max at most min */
};

/* An entry of a stack; the stacks of all threads form a tree. */
struct Frame {
    int pc;                             /* where to return to */
    int parent;                         /* the frame below, 0: none */
    unsigned used;                      /* at a PICK or BEHIND_PICK: the set of written values */
    int cost;                           /* tokens from pc to the end of the whole value */
    int next;                           /* of the same hash, -1: none */
};

struct State {
    Thread *thread;                     /* [n] sorted */
    int n;
    int end;                            /* 1: the value may end here */
    int distance;                       /* tokens to the end of the value, at least */
    int *to;                            /* [256] the state after each byte, -1: none, -2: not known
                                         * yet; NULL: none is known */
    uint64_t *mask;                     /* kept, or NULL */
    int farthest;                       /* upper bound of the distance after a token of the mask */
    int next;                           /* of the same hash, -1: none */
};

/* ---- running the program ---- */

/* The least number of tokens from a PICK or BEHIND_PICK to its RET once the set `used` is
 * written. */
static int cost_of_pick(const Schema *s, int pc, unsigned used) {
    const Instruction *c = &s->code[pc];
    const Picks *p = &s->picks[c->a];
    return p->cost[used + ((size_t)(c->op == BEHIND_PICK) << p->of.n)];
}

/* The frame with that content: the known one, or a new one. */
static int push_frame(Schema *s, int pc, unsigned used, int parent) {
    unsigned h = (unsigned)pc * 2654435761u ^ (unsigned)parent * 40503u ^ used * 2246822519u;
    h %= HASH;
    for (int i = s->frame_hash[h]; i >= 0; i = s->frame[i].next)
        if (s->frame[i].pc == pc && s->frame[i].parent == parent && s->frame[i].used == used)
            return i;
    s->frame = xgrow(s->frame, s->n_frames, &s->cap_frames, sizeof(Frame));
    int op = s->code[pc].op, is_pick = op == PICK || op == BEHIND_PICK;
    int own = is_pick ? cost_of_pick(s, pc, used) : s->cost[pc];
    long long cost = (long long)own + s->frame[parent].cost;
    if (cost > FAR) cost = FAR;
    s->frame[s->n_frames] = (Frame){pc, parent, used, (int)cost, s->frame_hash[h]};
    return s->frame_hash[h] = s->n_frames++;
}

static void add_thread(Schema *s, Thread t) {
    s->list = xgrow(s->list, s->n_list, &s->cap_list, sizeof(Thread));
    s->list[s->n_list++] = t;
}

static void add_todo(Schema *s, int pc, int stack) {
    ids_add(&s->todo, pc);
    ids_add(&s->todo, stack);
}

/* Adds the ways on from a PICK: each value that may come, with its BEHIND_PICK to return to. */
static void follow_pick(Schema *s, int pc, int stack, unsigned used) {
    const Choice *choice = &s->picks[s->code[pc].a].of;
    for (int i = 0; i < choice->n; i++) {
        if (!(choice->next[used] >> i & 1)) continue;
        int behind = push_frame(s, pc + 1, used | 1u << i, stack);
        if (s->frame[behind].cost < FAR) add_todo(s, s->routine[choice->value[i]], behind);
    }
}

/* Follows a thread that has come to pc until it stands at an instruction that reads a byte, or
 * at the end (pc -1), and adds it to s->list.  Where its way forks, the other ways go to
 * s->todo. */
static void follow_thread(Schema *s, int pc, int stack) {
    unsigned used = 0;                  /* of the frame that a RET has come back to */
    for (;;) {
        const Instruction *c = &s->code[pc];
        const Picks *p;
        switch (c->op) {
        case SPLIT:
            if (s->when[pc] == s->now && s->seen[pc] == stack) return;      /* has been here */
            s->when[pc] = s->now;
            s->seen[pc] = stack;
            add_todo(s, c->a, stack);
            pc = c->next;
            continue;
        case CALL:
            /* A call right before RET is a tail call, which needs no frame. */
            if (s->code[c->next].op != RET) stack = push_frame(s, c->next, 0, stack);
            pc = s->routine[s->code[pc].a];
            continue;
        case PICK:
            follow_pick(s, pc, stack, used);
            return;
        case BEHIND_PICK:
            p = &s->picks[c->a];
            if (p->of.next[used])
                add_todo(s, s->routine[p->of.comma], push_frame(s, pc - 1, used, stack));
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
        if (pc >= 0 && s->code[pc].op == TEXT) {
            t.a = s->code[pc].a;
            t.b = s->code[pc].b;
        }
        add_thread(s, t);
        return;
    }
}

/* Adds to s->list all threads, each at a byte or at the end, that a thread at pc becomes. */
static void closure(Schema *s, int pc, int stack) {
    follow_thread(s, pc, stack);
    while (s->todo.n) {
        s->todo.n -= 2;
        const int *way = s->todo.id + s->todo.n;
        follow_thread(s, way[0], way[1]);
    }
}

/* The range of characters that a thread's incomplete character can still become. */
static void possible_characters(const Thread *t, int *lo, int *hi) {
    int left = to_finish[t->inside], shift = left * (t->inside < ESCAPE ? 6 : 4);
    *lo = t->b << shift;
    *hi = *lo | ((1 << shift) - 1);
    if (t->inside == U2_E0) *lo |= 0x800;
    if (t->inside == U3_F0) *lo |= 0x10000;
    if (t->inside == U2_ED || t->inside == SURROGATE) *hi = 0xd7ff;
    if (t->inside == U3_F4) *hi = 0x10ffff;
    if (*lo < 1) *lo = 1;
}

/* The least cost_in_set after one more character from lo to hi. */
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

/* The least number of tokens to the end of the string for a thread in STRINGS.  Each byte that the
 * current character still needs counts as a token. */
static int strings_cost(const TextSet *x, const Thread *t) {
    int lo, hi, least;
    if (!t->inside) return cost_in_set(x, t->a, t->count);
    if (t->inside != ESCAPE) {
        possible_characters(t, &lo, &hi);
        return cost_after(x, t->a, t->count, lo, hi) + to_finish[t->inside];
    }
    least = cost_after(x, t->a, t->count, 1, 0xffff) + 4;       /* the digits of \uXXXX */
    for (const char *c = escape_of; *c; c++) {
        int cost = cost_after(x, t->a, t->count, *c, *c);
        if (cost < least) least = cost;
    }
    return least + 1;
}

/* The least number of tokens from a thread to the end of the whole value, or FAR. */
static int thread_cost(const Schema *s, const Thread *t) {
    if (t->pc < 0) return 0;
    const Instruction *c = &s->code[t->pc];
    long long cost = s->frame[t->stack].cost;
    if (c->op == TEXT) cost += t->a + to_finish[t->inside] + 1 + s->cost[c->next];
    else if (c->op == STRINGS)
        cost += (long long)strings_cost(&s->set[c->a], t) + 1 + s->cost[c->next];
    else cost += s->cost[t->pc];
    return cost < FAR ? (int)cost : FAR;
}

static int compare_threads(const void *x, const void *y) { return memcmp(x, y, sizeof(Thread)); }

/* Whether the thread has a way to the end.  In the middle of a literal perhaps no token begins,
 * but a token that began before may still be going on.  So in a literal the address behind it
 * decides. */
static int is_alive(const Schema *s, const Thread *t) {
    if (t->pc < 0 || s->code[t->pc].op != RANGE) return thread_cost(s, t) < FAR;
    return (long long)s->cost[s->code[t->pc].a] + s->frame[t->stack].cost < FAR;
}

/* The state that consists of list[0..n), which it reorders: the known one, or a new one.  Threads
 * without a way to the end are left out; returns -1 where none is left. */
static int find_state(Schema *s, Thread *list, int n) {
    /* 1. Canonical: sorted, each thread once. */
    int kept = 0;
    for (int i = 0; i < n; i++)
        if (is_alive(s, &list[i])) list[kept++] = list[i];
    if (!kept) return -1;
    if (kept > 1) qsort(list, (size_t)kept, sizeof *list, compare_threads);
    n = 1;
    for (int i = 1; i < kept; i++)
        if (compare_threads(&list[i], &list[n - 1])) list[n++] = list[i];
    /* 2. Is it known? */
    size_t bytes = (size_t)n * sizeof *list;
    unsigned h = 2166136261u;
    for (size_t i = 0; i < bytes / 4; i++) h = (h ^ ((const unsigned *)list)[i]) * 16777619u;
    h = (h ^ h >> 16) % HASH;
    for (int i = s->state_hash[h]; i >= 0; i = s->state[i].next)
        if (s->state[i].n == n && !memcmp(s->state[i].thread, list, bytes)) return i;
    /* 3. A new state. */
    s->state = xgrow(s->state, s->n_states, &s->cap_states, sizeof(State));
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

/* What follows BETWEEN after byte b, or -1: a whole character, or the first byte of one. */
static int begin_character(int style, int b) {
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
}

/* What follows `inside`, a place in the digits of \uXXXX, after the hexadecimal digit b, or -1. */
static int next_digit(int inside, int b) {
    switch (inside) {
    case HEX4:
        if (b == '0') return ZERO3;
        return (b | 32) == 'd' ? SURROGATE : HEX3;
    case HEX3: return HEX2;
    case HEX2: return HEX1;
    case ZERO3: return b == '0' ? ZERO2 : HEX2;
    case ZERO2: return b == '0' ? ZERO1 : HEX1;
    case ZERO1: return b == '0' ? -1 : BETWEEN;
    case SURROGATE: return b >= '0' && b <= '7' ? HEX2 : -1;
    default: return BETWEEN;
    }
}

/* What follows `inside`, a place in a character of that style, after byte b, or -1.  The caller has
 * looked at the byte that ends the text. */
static int next_inside(int inside, int style, int b) {
    int is_digit = (b >= '0' && b <= '9') || ((b | 32) >= 'a' && (b | 32) <= 'f');
    switch (inside) {
    case BETWEEN: return begin_character(style, b);
    case U1: return b >= 0x80 && b <= 0xbf ? BETWEEN : -1;
    case U2: return b >= 0x80 && b <= 0xbf ? U1 : -1;
    case U3: return b >= 0x80 && b <= 0xbf ? U2 : -1;
    case U2_E0: return b >= 0xa0 && b <= 0xbf ? U1 : -1;
    case U2_ED: return b >= 0x80 && b <= 0x9f ? U1 : -1;
    case U3_F0: return b >= 0x90 && b <= 0xbf ? U2 : -1;
    case U3_F4: return b >= 0x80 && b <= 0x8f ? U2 : -1;
    case ESCAPE:
        if (b == 'u') return HEX4;
        return b && strchr(escaped, b) ? BETWEEN : -1;
    default: return is_digit ? next_digit(inside, b) : -1;
    }
}

/* The bits of the current character after byte b, which led from `inside` to `then`. */
static int bits_after(int bits, int inside, int then, int b) {
    if (inside == ESCAPE) return b == 'u' ? 0 : escape_of[strchr(escaped, b) - escaped];
    if (inside > ESCAPE) return bits << 4 | (b <= '9' ? b - '0' : (b | 32) - 'a' + 10);
    if (inside) return bits << 6 | (b & 63);
    if (then == BETWEEN || then == ESCAPE) return b;
    if (b < 0xe0) return b & 0x1f;
    return b & (b < 0xf0 ? 0x0f : 0x07);
}

/* Moves a thread in STRINGS over a byte that does not end the string.  Returns 0 when it dies. */
static int follow_strings(const TextSet *x, Thread *t, int b) {
    int is_full = !t->inside && t->count == x->max;
    int then = is_full ? -1 : next_inside(t->inside, (int)x->style, b);
    if (then < 0) return 0;
    t->b = bits_after(t->b, t->inside, then, b);
    t->inside = then;
    if (then != BETWEEN) return 1;
    t->a = strings_next(x->strings, t->a, t->b);
    t->b = 0;
    if (x->max != NO_LIMIT || t->count < x->min) t->count++;
    return t->a >= 0;
}

/* Moves a thread in a TEXT over a byte that does not end the text.  Returns 0 when it dies. */
static int follow_text(const Instruction *c, Thread *t, int b) {
    int began = !t->inside, then = began && t->b == 0 ? -1 : next_inside(t->inside, c->lo, b);
    if (then < 0) return 0;
    if (began && t->a) t->a--;
    if (began && t->b != NO_LIMIT) t->b--;
    t->inside = then;
    return 1;
}

/* Whether the TEXT or STRINGS may end where the thread is. */
static int may_close(const Schema *s, const Thread *t) {
    const Instruction *c = &s->code[t->pc];
    if (t->inside) return 0;
    if (c->op == TEXT) return t->a == 0;
    return s->set[c->a].strings->accepts[t->a] && t->count >= s->set[c->a].min;
}

/* The state after byte b, or -1. */
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
        int lives = c->op == TEXT ? follow_text(c, &t, b) : follow_strings(&s->set[c->a], &t, b);
        if (lives) add_thread(s, t);
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

/* Adds to mask the tokens of the trie that lead from the state to a state at most `limit` from
 * the end.  Raises *farthest (may be NULL) to the largest distance of these states. */
static void walk(Schema *s, const TokenTree *tree, int state, int limit, uint64_t *mask,
                 int *farthest) {
    int at[256];                        /* the state after each byte of the current token */
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

/* How many characters of plain tokens may follow the thread, whichever they are; at most as many
 * as the longest token has. */
static int free_characters(const Schema *s, const Thread *t) {
    if (t->pc < 0 || t->inside) return 0;
    const Instruction *c = &s->code[t->pc];
    int longest = s->p->longest;
    if (c->op == TEXT) return t->b < longest ? t->b : longest;
    if (c->op != STRINGS) return 0;
    const TextSet *x = &s->set[c->a];
    int column = t->count < x->min ? x->min - t->count : 0;
    if (x->max != NO_LIMIT) column = x->max - t->count;
    return x->safe[(size_t)t->a * (size_t)x->columns + (size_t)column];
}

/* Adds the plain tokens of up to free_count characters, all of which may follow the thread. */
static void add_fitting(const Schema *s, const Thread *t, int free_count, uint64_t *mask,
                        int *farthest) {
    const Instruction *c = &s->code[t->pc];
    const uint64_t *fitting = s->p->fitting[c->lo == CALL_TEXT][free_count];
    for (int w = 0; w < s->p->words; w++) mask[w] |= fitting[w];
    /* An upper bound of the distance after such a token, which may end inside a character: 3
     * bytes. */
    int far = thread_cost(s, t) + 3;
    if (c->op == STRINGS) far = s->frame[t->stack].cost + s->set[c->a].most + 4 + s->cost[c->next];
    if (far > *farthest) *farthest = far;
}

/* Whether the plain tokens of up to free_count characters are all plain tokens that the thread
 * allows.  That is so in a TEXT; in STRINGS only where no longer token fits in. */
static int fitting_is_all(const Schema *s, const Thread *t, int free_count) {
    const Instruction *c = t->pc >= 0 ? &s->code[t->pc] : NULL;
    if (c && c->op == TEXT && !t->inside) return 1;
    if (!free_count) return 0;
    if (free_count == s->p->longest) return 1;
    int max = s->set[c->a].max;         /* only TEXT and STRINGS have free characters */
    return max != NO_LIMIT && free_count == max - t->count;
}

/* Adds all tokens that the state allows to mask, and raises *farthest to their largest distance or
 * more. */
static void fill_mask(Schema *s, int state, uint64_t *mask, int *farthest) {
    /* 1. Threads in free text add their plain tokens from a table; the others are left to walk. */
    int n = s->state[state].n, n_others = 0, other = state;
    Thread *others = xcalloc(n, sizeof *others);
    for (int i = 0; i < n; i++) {
        const Thread *t = &s->state[state].thread[i];
        int free_count = free_characters(s, t);
        if (free_count) add_fitting(s, t, free_count, mask, farthest);
        if (fitting_is_all(s, t, free_count)) other = -1;
        else others[n_others++] = *t;
    }
    /* 2. Tokens that are not plain, from all threads. */
    walk(s, &s->p->other, state, FAR, mask, farthest);
    /* 3. Plain tokens, from the other threads alone. */
    if (other < 0) other = n_others ? find_state(s, others, n_others) : -1;
    if (other >= 0) walk(s, &s->p->plain, other, FAR, mask, farthest);
    free(others);
}

/* The state with the same mask whose threads in a TEXT have small counts, so that all positions
 * in a long text share a mask.  A count above the characters of the longest token makes no
 * difference to any token.  *more: by how much the given state may be farther from the end than
 * the result. */
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

/* Fills the state's mask.  The MAX_MASKS newest masks are kept; the oldest gives its memory
 * away. */
static void make_mask(Schema *s, int state) {
    size_t bytes = (size_t)s->p->words * 8;
    int *slot = &s->masked[s->n_masked++ % MAX_MASKS], farthest = 0;
    uint64_t *mask = NULL;
    if (s->n_masked > MAX_MASKS) {
        mask = s->state[*slot].mask;
        s->state[*slot].mask = NULL;
    }
    if (!mask) mask = xmalloc(bytes);
    memset(mask, 0, bytes);
    fill_mask(s, state, mask, &farthest);       /* adds states: s->state may move */
    allow_ends(s, state, mask);
    s->state[state].mask = mask;
    s->state[state].farthest = farthest;
    *slot = state;
}

const uint64_t *schema_mask(Schema *s, int state, int left, int *forced) {
    size_t bytes = (size_t)s->p->words * 8;
    int more, small = with_small_counts(s, state, &more);
    if (!s->state[small].mask) make_mask(s, small);
    if (s->state[small].farthest + (long long)more <= left - 1) return s->state[small].mask;

    /* Near the limit some tokens of the mask lead too far from the end: each one is judged. */
    memset(s->scratch, 0, bytes);
    walk(s, &s->p->plain, state, left - 1, s->scratch, NULL);
    walk(s, &s->p->other, state, left - 1, s->scratch, NULL);
    allow_ends(s, state, s->scratch);
    if (forced && memcmp(s->scratch, s->state[small].mask, bytes)) *forced = 1;
    return s->scratch;
}

/* ---- beginning and ending ---- */

int states_finish(Schema *s, int *routine, Error *err) {
    if (program_check(s, routine, err)) return -1;
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

static void free_states(Schema *s) {
    for (int i = 0; i < s->n_states; i++) {
        free(s->state[i].thread);
        free(s->state[i].to);
        free(s->state[i].mask);
    }
}

/* Only here, where no state is in use, tables that have grown too large may be emptied. */
int schema_begin(Schema *s) {
    if (s->n_states > MAX_STATES || s->n_frames > MAX_FRAMES) {
        free_states(s);
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

void schema_free(Schema *s) {
    if (!s) return;
    free_states(s);
    free(s->state);
    free(s->frame);
    free(s->frame_hash);
    free(s->state_hash);
    free(s->scratch);
    free(s->seen);
    free(s->when);
    free(s->list);
    ids_free(&s->todo);
    program_free(s);
}
