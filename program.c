/* program.c - writes the program of a schema, and finds what it costs to come to its end.  See
 * program.h. */
#include "program.h"

#include <stdlib.h>
#include <string.h>

#include "states.h"

/* Limit of memory, chosen by judgement: sets of values, 13 bytes each; 64 choices of 16 values. */
#define MAX_PICKS (64 << 16)

/* ---- instructions ---- */

/* Adds an instruction and returns its address; `fail` where the program is full. */
static int emit(Schema *s, Instruction i) {
    if (s->n_code >= MAX_CODE) {
        s->full = 1;
        return s->fail;
    }
    s->code = xgrow(s->code, s->n_code, &s->cap_code, sizeof i);
    s->code[s->n_code] = i;
    return s->n_code++;
}

Schema *program_new(const Pieces *p, int in_calls) {
    Schema *s = xcalloc(1, sizeof *s);
    s->p = p;
    s->in_calls = in_calls;
    s->fail = emit(s, (Instruction){FAIL, 0, 0, 0, 0, 0});
    s->ret = emit(s, (Instruction){RET, 0, 0, 0, 0, 0});
    new_routine(s);                     /* 0: the whole */
    return s;
}

int program_fail(const Schema *s) { return s->fail; }
int program_ret(const Schema *s) { return s->ret; }
int program_in_calls(const Schema *s) { return s->in_calls; }
int program_size(const Schema *s) { return s->n_code; }
int program_is_full(const Schema *s) { return s->full; }

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
    s->routine = xgrow(s->routine, s->n_routines, &s->cap_routines, sizeof(int));
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

/* ---- texts of a set ---- */

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

int cost_in_set(const TextSet *x, int state, int count) {
    const int *cost = x->cost + (size_t)state * (size_t)x->columns;
    int more = count < x->min ? x->min - count : 0;
    if (x->max == NO_LIMIT) return cost[x->columns > 1 ? more : 0];
    for (int n = more; n <= x->max - count; n++)
        if (cost[n] < FAR) return cost[n];
    return FAR;
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

int program_dead_end(const Schema *s, int routine) {
    Ids dead = {0};
    uint8_t *seen = xcalloc(s->n_code, 1);
    int found = -1, ends = would_end(s, routine, -1, &dead, seen);
    for (int i = 0; i < dead.n && ends && found < 0; i++)
        if (!would_end(s, routine, dead.id[i], NULL, seen)) found = dead.id[i];
    ids_free(&dead);
    free(seen);
    return found;
}

int program_check(Schema *s, int *routine, Error *err) {
    *routine = -1;
    if (s->full) return fail(err, "the schema is too large");
    find_costs(s);
    if ((*routine = left_recursive(s)) >= 0)
        return fail(err, "a $ref leads back to it before anything is written");
    if (!has_end(s, 0)) return *routine = 0, fail(err, "nothing satisfies this schema");
    return 0;
}

void program_free(Schema *s) {
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
    free(s->code);
    free(s->cost);
    free(s->routine);
    free(s);
}
