/* states.c - the program of a schema, its states and their masks.  See states.h. */
#include "states.h"

#include <stdlib.h>
#include <string.h>

/* Limits of memory, chosen by judgement.  An answer visits few states with a mask of their own,
 * and again and again the same ones; a mask that was dropped costs a walk of the tries to make
 * again. */
#define MAX_MASKS 1024                  /* kept masks: 32 KB each with 262,144 tokens */
#define MAX_PICKS (64 << 16)            /* sets of values: 13 bytes each; 64 choices of 16 values */
#define MAX_STATES 50000                /* when a value begins, more states or frames than these */
#define MAX_FRAMES 200000               /* are forgotten: up to 100 MB */

#define HASH 65536                      /* chains of a hash table: about 3 entries each at most */

/* ---- the program ---- */

/* What an instruction writes before it goes on at `next`; its a and b mean:
 *   RANGE        a byte from lo to hi.  b: the least number of tokens from here to address a, which
 *                is `next`, or, inside a literal, the address behind the literal.
 *   SPLIT        nothing.  Goes on at `next` or at a.
 *   CALL         what routine a writes.
 *   RET          nothing.  Returns from the routine.
 *   TEXT         any text of a to b characters and the byte that ends it.  lo: its TextStyle.
 *   STRINGS      a text of TextSet a and the byte that ends it.  lo: its TextStyle.
 *   PICK         a value of Picks a, then goes on at its BEHIND_PICK.
 *   BEHIND_PICK  a comma, then goes on at its PICK; or nothing, then goes on at Picks.end.
 *   FAIL         nothing, and goes on nowhere. */
enum { RANGE, SPLIT, CALL, RET, TEXT, STRINGS, PICK, BEHIND_PICK, FAIL };

typedef struct {
    uint8_t op, lo, hi;
    int next;
    int a, b;
} Instruction;

/* A set of strings with bounds on their length.  A row is a state of the set's automaton.  A
 * column says how many more characters may or must come: with a max, exactly `column` more may
 * come; without a max but with a min, at least `column` more must come; with neither there is
 * only column 0. */
typedef struct {
    Strings *strings;
    TextStyle style;
    int min, max;                       /* characters */
    int columns;
    int *cost;                          /* [n][columns] tokens to the end of the string, or FAR */
    int most;                           /* the largest cost below FAR */
    /* [n][columns] so many characters of plain tokens may follow, whichever they are; at most as
     * many as the longest token has. */
    uint8_t *safe;
} TextSet;

/* Values that each come once.  What may follow depends on the set of values that have been written.
 * The set stands in the thread's frame: 1 << n copies of the code, one for each set, would be too
 * many. */
typedef struct {
    Choice of;
    int end;                            /* the address behind the last value */
    int *cost;                          /* [2][1 << n] by set: cost of PICK, and of BEHIND_PICK */
} Picks;

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
typedef struct {
    int pc, stack;                      /* the address, -1: the end of the value; the top frame */
    int a;                              /* TEXT: characters that must follow; STRINGS: the state */
    int b;                              /* TEXT: characters that may follow, or NO_LIMIT;
                                         * STRINGS: the bits so far of the current character */
    int inside;                         /* TEXT, STRINGS: where in a character */
    int count;                          /* STRINGS: characters so far; without a max at most min */
} Thread;

/* An entry of a stack; the stacks of all threads form a tree. */
typedef struct {
    int pc;                             /* where to return to */
    int parent;                         /* the frame below, 0: none */
    unsigned used;                      /* at a PICK or BEHIND_PICK: the set of written values */
    int cost;                           /* tokens from pc to the end of the whole value */
    int next;                           /* of the same hash, -1: none */
} Frame;

typedef struct {
    Thread *thread;                     /* [n] sorted */
    int n;
    int end;                            /* 1: the value may end here */
    int distance;                       /* tokens to the end of the value, at least */
    int *to;                            /* [256] the state after each byte, -1: none, -2: not known
                                         * yet; NULL: none is known */
    uint64_t *mask;                     /* kept, or NULL */
    int farthest;                       /* upper bound of the distance after a token of the mask */
    int next;                           /* of the same hash, -1: none */
} State;

struct Schema {
    const Pieces *p;                    /* borrowed */
    int in_calls;                       /* the notation of calls, else JSON */

    /* The program. */
    Instruction *code;
    int n_code, cap_code;
    int *cost;                          /* [n_code] of each address */
    int *routine;                       /* [n_routines] the entry of each */
    int n_routines, cap_routines;
    TextSet *set;
    int n_sets;
    Picks *picks;
    int n_picks, n_pick_sets;
    int ret, fail;                      /* the addresses that all share */
    int full;                           /* 1: the program has become too large */

    /* Its states so far.  A state's number is its index; adding a state may move the array. */
    Frame *frame;                       /* [0] is the empty stack */
    int n_frames, cap_frames;
    State *state;
    int n_states, cap_states;
    int *frame_hash, *state_hash;       /* [HASH] the first of each chain, -1: none */
    int masked[MAX_MASKS], n_masked;    /* a ring of the states that have a mask, oldest first */
    uint64_t *scratch;                  /* a mask that is not kept */

    /* Scratch of closure(). */
    int *seen;                          /* [n_code] the stack with which it was last at a SPLIT */
    unsigned *when;                     /* [n_code] `now` of that visit */
    unsigned now;                       /* the number of the current step */
    Thread *list;                       /* what it has found */
    int n_list, cap_list;
    Ids todo;                           /* ways still to follow: address, stack, set; and so on */
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
    if (s->n_frames == s->cap_frames) {
        s->cap_frames = 2 * s->cap_frames + 64;
        s->frame = xrealloc(s->frame, s->cap_frames, sizeof(Frame));
    }
    int op = s->code[pc].op, is_pick = op == PICK || op == BEHIND_PICK;
    int own = is_pick ? cost_of_pick(s, pc, used) : s->cost[pc];
    long long cost = (long long)own + s->frame[parent].cost;
    if (cost > FAR) cost = FAR;
    s->frame[s->n_frames] = (Frame){pc, parent, used, (int)cost, s->frame_hash[h]};
    return s->frame_hash[h] = s->n_frames++;
}

static void add_thread(Schema *s, Thread t) {
    if (s->n_list == s->cap_list) {
        s->cap_list = 2 * s->cap_list + 64;
        s->list = xrealloc(s->list, s->cap_list, sizeof(Thread));
    }
    s->list[s->n_list++] = t;
}

static void add_todo(Schema *s, int pc, int stack, unsigned used) {
    ids_add(&s->todo, pc);
    ids_add(&s->todo, stack);
    ids_add(&s->todo, (int)used);
}

/* Adds the ways on from a PICK: each value that may come, with its BEHIND_PICK to return to. */
static void follow_pick(Schema *s, int pc, int stack, unsigned used) {
    const Choice *choice = &s->picks[s->code[pc].a].of;
    for (int i = 0; i < choice->n; i++) {
        if (!(choice->next[used] >> i & 1)) continue;
        int behind = push_frame(s, pc + 1, used | 1u << i, stack);
        if (s->frame[behind].cost < FAR) add_todo(s, s->routine[choice->value[i]], behind, 0);
    }
}

/* Follows a thread that has come to pc until it stands at an instruction that reads a byte, or
 * at the end (pc -1), and adds it to s->list.  Where its way forks, the other ways go to
 * s->todo. */
static void follow_thread(Schema *s, int pc, int stack, unsigned used) {
    for (;;) {
        const Instruction *c = &s->code[pc];
        const Picks *p;
        switch (c->op) {
        case SPLIT:
            if (s->when[pc] == s->now && s->seen[pc] == stack) return;      /* has been here */
            s->when[pc] = s->now;
            s->seen[pc] = stack;
            add_todo(s, c->a, stack, 0);
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
    follow_thread(s, pc, stack, 0);
    while (s->todo.n) {
        s->todo.n -= 3;
        const int *way = s->todo.id + s->todo.n;
        follow_thread(s, way[0], way[1], (unsigned)way[2]);
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

/* The letters behind a backslash, and what each stands for. */
static const char escaped[] = "\"\\/bfnrt", escape_of[] = "\"\\/\b\f\n\r\t";

/* The least number of tokens from a state of the set, with `count` characters written, to the
 * end of the string, or FAR. */
static int cost_in_set(const TextSet *x, int state, int count) {
    const int *cost = x->cost + (size_t)state * (size_t)x->columns;
    int more = count < x->min ? x->min - count : 0;
    if (x->max == NO_LIMIT) return cost[x->columns > 1 ? more : 0];
    for (int n = more; n <= x->max - count; n++)
        if (cost[n] < FAR) return cost[n];
    return FAR;
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
    if (s->n_states == s->cap_states) {
        s->cap_states = 2 * s->cap_states + 64;
        s->state = xrealloc(s->state, s->cap_states, sizeof(State));
    }
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

/* ---- writing a program ---- */

/* Adds an instruction and returns its address; `fail` where the program is full. */
static int emit(Schema *s, Instruction i) {
    if (s->n_code >= MAX_CODE) {
        s->full = 1;
        return s->fail;
    }
    if (s->n_code == s->cap_code) {
        s->cap_code = 2 * s->cap_code + 256;
        s->code = xrealloc(s->code, s->cap_code, sizeof i);
    }
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

/* Each byte's instruction knows how few tokens cover the rest of the literal: its cost is that of
 * `next` plus these, and not that of one token for each byte. */
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

/* The texts[0..n), which agree in their first `at` bytes, without these bytes: a trie of them. */
static int put_branches(Schema *s, char *const *texts, int n, size_t at, int next) {
    if (n == 1) return put_literal(s, texts[0] + at, strlen(texts[0]) - at, next);
    int pc = s->fail;
    for (int i = 0; i < n;) {
        int same = 1, rest = next;      /* so many texts go on with byte c; c 0: one ends here */
        char c = texts[i][at];
        while (i + same < n && texts[i + same][at] == c) same++;
        if (c && same == 1) rest = put_branches(s, texts + i, 1, at, next);
        if (c && same > 1) {
            rest = put_branches(s, texts + i, same, at + 1, next);
            rest = put_range(s, (uint8_t)c, (uint8_t)c, rest);
        }
        pc = put_either(s, pc, rest);
        i += same;
    }
    return pc;
}

int put_literals(Schema *s, char *const *texts, int n, int next) {
    return n ? put_branches(s, texts, n, 0, next) : s->fail;
}

int put_loop(Schema *s, int next) { return emit(s, (Instruction){SPLIT, 0, 0, next, s->fail, 0}); }

void set_loop(Schema *s, int loop, int again) { s->code[loop].a = again; }

int put_call(Schema *s, int routine, int next) {
    return next == s->fail ? next : emit(s, (Instruction){CALL, 0, 0, next, routine, 0});
}

int new_routine(Schema *s) {
    if (s->n_routines == s->cap_routines) {
        s->cap_routines = 2 * s->cap_routines + 64;
        s->routine = xrealloc(s->routine, s->cap_routines, sizeof(int));
    }
    s->routine[s->n_routines] = s->fail;
    return s->n_routines++;
}

void set_entry(Schema *s, int routine, int entry) { s->routine[routine] = entry; }

int *new_memo(int64_t n) {
    return memset(xmalloc((size_t)n * sizeof(int)), 0xff, (size_t)n * sizeof(int));
}

int put_quote(Schema *s, int next) {
    if (next == s->fail) return next;
    return s->in_calls ? put_literal(s, "\xff\x01", 2, next) : put_range(s, '"', '"', next);
}

/* What stands behind the byte that ends a text: nothing behind a `"`; behind a MARK its second
 * byte, which costs no token of its own. */
static int behind_text(Schema *s, TextStyle style, int next) {
    if (style != CALL_TEXT) return next;
    return emit(s, (Instruction){RANGE, QUOTE_MARK, QUOTE_MARK, next, next, 0});
}

int put_text(Schema *s, int min, int max, TextStyle style, int next) {
    if (min > max || next == s->fail) return s->fail;
    next = behind_text(s, style, next);
    return emit(s, (Instruction){TEXT, (uint8_t)style, 0, next, min, max});
}

/* An upper bound of the tokens for the cheapest character from lo to hi, each byte a token; FAR:
 * none can be written. */
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
    if (lo > hi) return FAR;
    return 2 + (lo >= 0x800) + (lo >= 0x10000);
}

/* The least cost from a state over one character: weight[n_classes], the tokens of a character
 * of each class, plus the cost of the state behind it in that column. */
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

/* Fills x->cost and x->most. */
static void fill_costs(TextSet *x) {
    const Strings *z = x->strings;
    size_t columns = (size_t)x->columns;
    /* 1. The tokens of the cheapest character of each class. */
    int *weight = xcalloc(z->n_classes + 1, sizeof(int));
    for (int k = 0; k < z->n_classes; k++) weight[k] = FAR;
    for (int i = 0; i < z->n_edges; i++) {
        int cost = character_cost(x->style, z->edge[i], z->edge[i + 1] - 1);
        if (cost < weight[z->class_of[i]]) weight[z->class_of[i]] = cost;
    }
    /* 2. Column 0: no more characters; without a max any number, relaxed until nothing changes. */
    for (int i = 0; i < z->n; i++) x->cost[(size_t)i * columns] = z->accepts[i] ? 0 : FAR;
    for (int changed = x->max == NO_LIMIT; changed;) {
        changed = 0;
        for (int i = z->n - 1; i >= 0; i--) {
            int cost = cost_over(x, weight, i, 0);
            if (cost >= x->cost[(size_t)i * columns]) continue;
            x->cost[(size_t)i * columns] = cost;
            changed = 1;
        }
    }
    /* 3. Each other column from the one before. */
    for (int c = 1; c < x->columns; c++)
        for (int i = 0; i < z->n; i++)
            x->cost[(size_t)i * columns + (size_t)c] = cost_over(x, weight, i, c - 1);
    for (size_t i = 0; i < (size_t)z->n * columns; i++)
        if (x->cost[i] < FAR && x->cost[i] > x->most) x->most = x->cost[i];
    free(weight);
}

/* Whether a string that has come to the state, in that column, can be completed. */
static int is_open(const TextSet *x, int state, int column) {
    if (x->max != NO_LIMIT) return cost_in_set(x, state, x->max - column) < FAR;
    return x->cost[(size_t)state * (size_t)x->columns + (size_t)column] < FAR;
}

/* How many plain characters may follow the state, whichever they are: one more than the least of
 * the states behind them in `column`; 0 where one of them leads nowhere.  is_plain[n_classes]:
 * whether the class has a character of plain tokens. */
static int safe_before(const TextSet *x, const uint8_t *is_plain, int state, int column,
                       int longest) {
    const Strings *z = x->strings;
    int least = longest - 1;
    for (int k = 0; k < z->n_classes && least >= 0; k++) {
        if (!is_plain[k]) continue;
        int to = z->to[(size_t)state * (size_t)z->n_classes + (size_t)k];
        if (to < 0 || !is_open(x, to, column)) return 0;
        int safe = x->safe[(size_t)to * (size_t)x->columns + (size_t)column];
        if (safe < least) least = safe;
    }
    return least + 1;
}

/* Fills x->safe.  longest: the characters of the longest token. */
static void fill_safe(TextSet *x, int longest) {
    const Strings *z = x->strings;
    size_t columns = (size_t)x->columns;
    /* 1. The classes with characters of plain tokens, which hold no escapes. */
    uint8_t *is_plain = xcalloc(z->n_classes + 1, 1);
    TextStyle style = x->style == CALL_TEXT ? CALL_TEXT : KEY_TEXT;
    for (int i = 0; i < z->n_edges; i++) {
        /* No plain token holds U+2028 or U+2029 (vocabulary.c), which `.` does not match. */
        if (style == KEY_TEXT && z->edge[i] >= 0x2028 && z->edge[i + 1] <= 0x202a) continue;
        if (character_cost(style, z->edge[i], z->edge[i + 1] - 1) < FAR)
            is_plain[z->class_of[i]] = 1;
    }
    x->safe = xcalloc((int64_t)z->n * x->columns + 1, 1);
    /* 2. Column 0: with a max no character may follow.  Without a max all states begin with the
     * most and get fewer until nothing changes. */
    for (int i = 0; x->max == NO_LIMIT && i < z->n; i++)
        x->safe[(size_t)i * columns] = (uint8_t)longest;
    for (int changed = x->max == NO_LIMIT; changed;) {
        changed = 0;
        for (int i = z->n - 1; i >= 0; i--) {
            int safe = safe_before(x, is_plain, i, 0, longest);
            if (safe >= x->safe[(size_t)i * columns]) continue;
            x->safe[(size_t)i * columns] = (uint8_t)safe;
            changed = 1;
        }
    }
    /* 3. Each other column from the one before. */
    for (int c = 1; c < x->columns; c++)
        for (int i = 0; i < z->n; i++) {
            int safe = safe_before(x, is_plain, i, c - 1, longest);
            x->safe[(size_t)i * columns + (size_t)c] = (uint8_t)safe;
        }
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

/* A loop for each state of the set: it ends with `next`, or goes on to another state's loop. */
int put_bare(Schema *s, const Strings *z, int next) {
    int *address = xcalloc(z->n + 1, sizeof(int)), first = s->fail;
    for (int i = 0; i < z->n; i++) address[i] = put_loop(s, z->accepts[i] ? next : s->fail);
    for (int i = 0; i < z->n; i++) {
        int pc = s->fail;
        for (int e = 0; e < z->n_edges && z->edge[e] < 0x80; e++) {
            int to = z->to[(size_t)i * (size_t)z->n_classes + (size_t)z->class_of[e]];
            int last = z->edge[e + 1] - 1 < 0x7f ? z->edge[e + 1] - 1 : 0x7f;
            if (to >= 0) pc = put_either(s, pc, put_range(s, z->edge[e], last, address[to]));
        }
        set_loop(s, address[i], pc);
    }
    if (z->n) first = address[0];
    free(address);
    return first;
}

int put_picks(Schema *s, Choice choice, int end) {
    s->picks = xrealloc(s->picks, s->n_picks + 1, sizeof *s->picks);
    s->picks[s->n_picks++] = (Picks){.of = choice, .end = end};
    if ((s->n_pick_sets += 1 << choice.n) > MAX_PICKS) s->full = 1;
    /* The BEHIND_PICK stands right behind its PICK: follow_pick and follow_thread rely on it. */
    int pc = emit(s, (Instruction){PICK, 0, 0, end, s->n_picks - 1, 0});
    emit(s, (Instruction){BEHIND_PICK, 0, 0, end, s->n_picks - 1, 0});
    return pc;
}

/* ---- a program as a whole ---- */

/* Picks.cost, which the caller frees, from the largest set of values to the empty one.  All
 * routines that the choice calls were written before it, and have their costs. */
static int *costs_of_picks(const Schema *s, const Picks *p) {
    size_t sets = (size_t)1 << p->of.n;
    int *in_front = xcalloc((int64_t)(2 * sets), sizeof(int)), *behind = in_front + sets;
    for (size_t used = sets; used-- > 0;) {
        long long least = FAR;
        for (int i = 0; i < p->of.n; i++) {
            if (!(p->of.next[used] >> i & 1)) continue;
            long long cost = s->cost[s->routine[p->of.value[i]]];
            cost += behind[used | (size_t)1 << i];
            if (cost < least) least = cost;
        }
        in_front[used] = (int)least;
        least += s->cost[s->routine[p->of.comma]];
        if (p->of.may_end[used] && s->cost[p->end] < least) least = s->cost[p->end];
        behind[used] = least < FAR ? (int)least : FAR;
    }
    return in_front;
}

/* The cost of an address by the costs of the addresses that it leads to. */
static long long cost_at(Schema *s, int pc) {
    const Instruction *c = &s->code[pc];
    const int *cost = s->cost;
    switch (c->op) {
    case RET: return 0;
    case RANGE: return (long long)c->b + cost[c->a];
    case SPLIT: return cost[c->next] < cost[c->a] ? cost[c->next] : cost[c->a];
    case CALL: return (long long)cost[s->routine[c->a]] + cost[c->next];
    case TEXT: return (long long)c->a + 1 + cost[c->next];
    case STRINGS: return (long long)cost_in_set(&s->set[c->a], 0, 0) + 1 + cost[c->next];
    case PICK: {
        Picks *p = &s->picks[c->a];
        if (!p->cost) p->cost = costs_of_picks(s, p);
        return p->cost[0];
    }
    default: return FAR;
    }
}

/* Fills s->cost: all costs fall from FAR until nothing changes.  Most instructions were written
 * after what follows them, so a few rounds are enough. */
static void find_costs(Schema *s) {
    s->cost = xcalloc(s->n_code, sizeof(int));
    for (int pc = 0; pc < s->n_code; pc++) s->cost[pc] = FAR;
    for (int changed = 1; changed;) {
        changed = 0;
        for (int pc = 0; pc < s->n_code; pc++) {
            long long cost = cost_at(s, pc);
            if (cost >= s->cost[pc]) continue;
            s->cost[pc] = (int)cost;
            changed = 1;
        }
    }
}

/* Whether a routine may end without writing a byte, as that of white space does. */
static int may_be_empty(const Schema *s, int routine) { return s->cost[s->routine[routine]] == 0; }

/* A routine that can be called again from pc, while it is on the way, before a byte is written (a
 * `$ref` to itself, directly or by anyOf); -1: none.  A depth-first search.
 * colour[n_routines]: 1: on the way, 2: done.  seen[n_code]: addresses that were visited. */
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

/* A routine that calls itself before it has written a byte, or -1.  Such a program would never
 * come to a byte. */
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

/* Whether a routine would end if all routines that it calls did, except routine `out` where that
 * has no end (-1: no exception).  Adds the called routines without an end to *dead (may be
 * NULL).  seen[n_code]: scratch, all 0 before and after. */
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
    free_states(s);
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
