/* stringset.c - sets of strings.  See stringset.h.
 *
 * A regular expression becomes a graph whose nodes take a character, branch, or stand for ^ and $ (Thompson's
 * construction); sets of its nodes become the states of the automaton (Rabin and Scott's).  A lookahead makes the
 * automaton of what follows it, cuts that with its own, and the result takes the place of what follows. */
#include "stringset.h"

#include <stdlib.h>
#include <string.h>

#include "pattern.h"

#define MAX_STATES 20000
#define MAX_CELLS 4000000               /* states times classes */
#define MAX_NODES 200000                /* of a graph */
#define MAX_WORK 20000000               /* nodes in all states times classes: a second, measured */
#define END_OF_CHARACTERS 0x110000

/* ---- automata ---- */

static Strings *new_strings(int n_classes) {
    Strings *s = xcalloc(1, sizeof *s);
    s->n_classes = n_classes;
    return s;
}

void strings_free(Strings *s) {
    if (!s) return;
    free(s->edge);
    free(s->class_of);
    free(s->to);
    free(s->accepts);
    free(s);
}

static int class_at(const Strings *s, int character) {
    int lo = 0, hi = s->n_edges - 1;
    while (lo < hi) {
        int middle = (lo + hi + 1) / 2;
        if (s->edge[middle] <= character) lo = middle;
        else hi = middle - 1;
    }
    return lo;
}

int strings_next(const Strings *s, int state, int character) {
    return s->to[(size_t)state * (size_t)s->n_classes + (size_t)s->class_of[class_at(s, character)]];
}

int strings_has(const Strings *s, int state, int lo, int hi) {
    for (int i = class_at(s, lo); i < s->n_edges && s->edge[i] <= hi; i++)
        if (s->to[(size_t)state * (size_t)s->n_classes + (size_t)s->class_of[i]] >= 0) return 1;
    return 0;
}

int strings_hold(const Strings *s, const char *text, size_t n) {
    int state = s->n ? 0 : -1;
    for (size_t i = 0; i < n && state >= 0;) {
        int len = utf8_char(text + i, n - i), c = (uint8_t)text[i];
        if (len <= 0) return 0;
        if (len > 1) c &= 0xff >> (len + 1);
        for (int k = 1; k < len; k++) c = c << 6 | (text[i + (size_t)k] & 63);
        state = strings_next(s, state, c);
        i += (size_t)len;
    }
    return state >= 0 && s->accepts[state];
}

/* One more state, without transitions. */
static int add_state(Strings *s, int *room, int accepts) {
    size_t row = (size_t)s->n_classes;
    if (s->n == *room) {
        *room = 2 * *room + 64;
        s->to = xrealloc(s->to, (int64_t)((size_t)*room * row) + 1, sizeof(int));
        s->accepts = xrealloc(s->accepts, *room, 1);
    }
    for (size_t i = 0; i < row; i++) s->to[(size_t)s->n * row + i] = -1;
    s->accepts[s->n] = (uint8_t)accepts;
    return s->n++;
}

static int is_too_large(const Strings *s) {
    return s->n > MAX_STATES || (int64_t)s->n * s->n_classes > MAX_CELLS;
}

/* Takes out the states from which no string of the set ends.  The others keep their order. */
static void trim(Strings *s) {
    size_t row = (size_t)s->n_classes;
    uint8_t *live = xcalloc(s->n + 1, 1);
    int *number = xcalloc(s->n + 1, sizeof(int)), n = 0;
    if (s->n) memcpy(live, s->accepts, (size_t)s->n);
    for (int changed = 1; changed;) {   /* most automata need a few rounds, from the end to the front */
        changed = 0;
        for (int i = s->n - 1; i >= 0; i--)
            for (size_t k = 0; k < row && !live[i]; k++) {
                int to = s->to[(size_t)i * row + k];
                if (to >= 0 && live[to]) live[i] = 1, changed = 1;
            }
    }
    for (int i = 0; i < s->n; i++) number[i] = live[i] ? n++ : -1;
    if (!s->n || number[0] != 0) n = 0;
    for (int i = 0; i < s->n && n; i++) {
        if (number[i] < 0) continue;
        for (size_t k = 0; k < row; k++) {
            int to = s->to[(size_t)i * row + k];
            s->to[(size_t)number[i] * row + k] = to < 0 ? -1 : number[to];
        }
        s->accepts[number[i]] = s->accepts[i];
    }
    s->n = n;
    free(live);
    free(number);
}

/* Ids for lists of numbers, each list once. */
typedef struct {
    int **list, *length, *next, *bucket;
    int n, room;
} Lists;

#define BUCKETS 4096

static int list_id(Lists *l, const int *list, int length, int *is_new) {
    unsigned h = 2166136261u;
    for (int i = 0; i < length; i++) h = (h ^ (unsigned)list[i]) * 16777619u;
    h = (h ^ h >> 15) % BUCKETS;
    if (!l->bucket) l->bucket = memset(xmalloc(BUCKETS * sizeof(int)), 0xff, BUCKETS * sizeof(int));
    *is_new = 0;
    for (int i = l->bucket[h]; i >= 0; i = l->next[i])
        if (l->length[i] == length && !memcmp(l->list[i], list, (size_t)length * sizeof(int))) return i;
    if (l->n == l->room) {
        l->room = 2 * l->room + 64;
        l->list = xrealloc(l->list, l->room, sizeof *l->list);
        l->length = xrealloc(l->length, l->room, sizeof(int));
        l->next = xrealloc(l->next, l->room, sizeof(int));
    }
    *is_new = 1;
    l->list[l->n] = memcpy(xcalloc(length + 1, sizeof(int)), list, (size_t)length * sizeof(int));
    l->length[l->n] = length;
    l->next[l->n] = l->bucket[h];
    return l->bucket[h] = l->n++;
}

static void lists_free(Lists *l) {
    for (int i = 0; i < l->n; i++) free(l->list[i]);
    free(l->list);
    free(l->length);
    free(l->next);
    free(l->bucket);
}

static int compare_ints(const void *x, const void *y) { return *(const int *)x - *(const int *)y; }

/* Sorts and keeps each once. */
static int tidy(int *list, int n) {
    int kept = 0;
    if (n > 1) qsort(list, (size_t)n, sizeof(int), compare_ints);
    for (int i = 0; i < n; i++)
        if (!i || list[i] != list[kept - 1]) list[kept++] = list[i];
    return kept;
}

/* The edges of both, and the pairs of classes between them as classes. */
static Strings *common_classes(const Strings *a, const Strings *b, int (**pair)[2]) {
    Strings *s = new_strings(0);
    Lists pairs = {0};
    int n = 0, is_new, *edge = xcalloc(a->n_edges + b->n_edges + 2, sizeof(int));
    memcpy(edge, a->edge, (size_t)a->n_edges * sizeof(int));
    memcpy(edge + a->n_edges, b->edge, (size_t)b->n_edges * sizeof(int));
    n = tidy(edge, a->n_edges + b->n_edges);
    edge[n] = END_OF_CHARACTERS;
    s->edge = edge;
    s->n_edges = n;
    s->class_of = xcalloc(n + 1, sizeof(int));
    for (int i = 0; i < n; i++) {
        int both[] = {a->class_of[class_at(a, edge[i])], b->class_of[class_at(b, edge[i])]};
        s->class_of[i] = list_id(&pairs, both, 2, &is_new);
    }
    s->n_classes = pairs.n;
    *pair = xcalloc(pairs.n + 1, sizeof **pair);
    for (int i = 0; i < pairs.n; i++) memcpy((*pair)[i], pairs.list[i], sizeof **pair);
    lists_free(&pairs);
    return s;
}

static int too_large(Error *err) { return fail(err, "the automaton would have more than %d states", MAX_STATES); }

Strings *strings_both(const Strings *a, const Strings *b, Error *err) {
    int (*pair)[2], room = 0, is_new;
    Strings *s = common_classes(a, b, &pair);
    Lists states = {0};
    if (a->n && b->n) list_id(&states, (int[]){0, 0}, 2, &is_new);
    for (int i = 0; i < states.n && !is_too_large(s); i++) {
        int x = states.list[i][0], y = states.list[i][1];
        add_state(s, &room, a->accepts[x] && b->accepts[y]);
        for (int k = 0; k < s->n_classes; k++) {
            int to[] = {a->to[(size_t)x * (size_t)a->n_classes + (size_t)pair[k][0]],
                        b->to[(size_t)y * (size_t)b->n_classes + (size_t)pair[k][1]]};
            if (to[0] < 0 || to[1] < 0) continue;
            s->to[(size_t)i * (size_t)s->n_classes + (size_t)k] = list_id(&states, to, 2, &is_new);
        }
    }
    int bad = is_too_large(s) ? too_large(err) : 0;
    lists_free(&states);
    free(pair);
    if (bad) {
        strings_free(s);
        return NULL;
    }
    trim(s);
    return s;
}

Strings *strings_not(const Strings *a) {
    Strings *s = new_strings(a->n_classes);
    size_t row = (size_t)a->n_classes;
    int room = 0;
    s->n_edges = a->n_edges;
    s->edge = memcpy(xcalloc(a->n_edges + 1, sizeof(int)), a->edge, ((size_t)a->n_edges + 1) * sizeof(int));
    s->class_of = memcpy(xcalloc(a->n_edges + 1, sizeof(int)), a->class_of, (size_t)a->n_edges * sizeof(int));
    for (int i = 0; i <= a->n; i++) add_state(s, &room, i == a->n || !a->accepts[i]);
    for (int i = 0; i <= a->n; i++)     /* the last state is where a has none */
        for (size_t k = 0; k < row; k++) {
            int to = i < a->n ? a->to[(size_t)i * row + k] : -1;
            s->to[(size_t)i * row + k] = to < 0 ? a->n : to;
        }
    trim(s);
    return s;
}

/* ---- the graph of a regular expression ---- */

typedef enum { TAKE, BRANCH, BEGIN_ANCHOR, END_ANCHOR, EDGE /* \b; with a b of 1 \B */,
               FOUND /* the match ends: anything may follow */, ACCEPT, NOTHING } NodeKind;

typedef struct {
    NodeKind kind;
    int a, b;                           /* the next nodes; TAKE: a, and b the number of its set of characters */
} Node;

typedef struct {
    Node *node;
    int n, room;
    Lists sets;                         /* of characters: ranges, first and last by turns */
    int in_loop;                        /* what follows is not complete yet */
    int has_edge;
    Error *err;
    int bad;
    unsigned *seen, now;                /* [2 n] of closure(): when a node was met, before or behind $ */
    /* Nodes of the state that is being made: 8 * node, + 1 behind $.  An EDGE waits there for the
     * next character, + 2 behind a letter, + 4 where ^ would hold. */
    int *list, n_list, room_list;
} Graph;

static int add_node(Graph *g, NodeKind kind, int a, int b) {
    if (g->n == MAX_NODES) {
        if (!g->bad) fail(g->err, "it is too long");
        g->bad = 1;
        return 0;
    }
    if (g->n == g->room) g->node = xrealloc(g->node, g->room = 2 * g->room + 256, sizeof(Node));
    g->node[g->n] = (Node){kind, a, b};
    return g->n++;
}

static int set_of(Graph *g, const int *ranges, int n) {
    int is_new;
    return list_id(&g->sets, ranges, 2 * n, &is_new);
}

static Strings *determine(Graph *g, int start, int at_begin);

/* The automaton as nodes of the graph, which go on to nothing: what follows a lookahead is in it. */
static int embed(Graph *g, const Strings *s) {
    int nothing = add_node(g, NOTHING, 0, 0), *entry = xcalloc(s->n + 1, sizeof(int));
    if (!s->n) {
        free(entry);
        return nothing;
    }
    int accept = add_node(g, ACCEPT, 0, 0);
    for (int i = 0; i < s->n; i++) entry[i] = add_node(g, BRANCH, nothing, s->accepts[i] ? accept : nothing);
    for (int i = 0; i < s->n && !g->bad; i++)
        for (int k = 0; k < s->n_classes; k++) {
            int to = s->to[(size_t)i * (size_t)s->n_classes + (size_t)k], n = 0;
            int *ranges = xcalloc(2 * s->n_edges + 2, sizeof(int));
            for (int e = 0; e < s->n_edges && to >= 0; e++)
                if (s->class_of[e] == k) ranges[2 * n] = s->edge[e], ranges[2 * n++ + 1] = s->edge[e + 1] - 1;
            if (n) {
                int take = add_node(g, TAKE, entry[to], set_of(g, ranges, n));
                int more = add_node(g, BRANCH, take, g->node[entry[i]].a);
                g->node[entry[i]].a = more;
            }
            free(ranges);
        }
    int at = entry[0];
    free(entry);
    return at;
}

static int emit(Graph *g, const Regex *x, int next);

static int has_begin(const Regex *x) {
    for (; x; x = x->a)
        if (x->kind == R_BEGIN || (x->b && has_begin(x->b))) return 1;
    return 0;
}

/* Marks the lookaheads that stand at the front behind a ^.  Chains of R_CAT grow to the left: the front is the end of x->a. */
static void mark_front(Regex *x) {
    Regex **link = NULL;                /* the R_CATs of the chain, from its end */
    int n = 0;
    if (x->kind == R_ALT) {
        mark_front(x->a);
        mark_front(x->b);
    }
    for (; x->kind == R_CAT; x = x->a) {
        if (!(n & (n - 1))) link = xrealloc(link, n ? 2 * n : 1, sizeof *link);
        link[n++] = x;
    }
    int is_front = x->kind == R_BEGIN;
    while (n-- > 0 && is_front) {
        is_front = link[n]->b->kind == R_AHEAD;
        if (is_front) link[n]->b->max = 1;
    }
    free(link);
}

/* What follows, cut with what the lookahead asks for. */
static int emit_lookahead(Graph *g, const Regex *x, int next) {
    int at_front = x->max == 1;
    if (!at_front && has_begin(x->a) && !g->bad) g->bad = 1, fail(g->err, "^ inside of a lookahead is supported behind a ^ only");
    if (g->in_loop && !g->bad) g->bad = 1, fail(g->err, "a lookahead inside of a repetition is not supported");
    int found = add_node(g, FOUND, 0, 0), inside = emit(g, x->a, found);
    if (!at_front && g->has_edge && !g->bad)
        g->bad = 1, fail(g->err, "\\b in or behind a lookahead is supported behind a ^ only");
    Strings *rest = g->bad ? NULL : determine(g, next, at_front), *ahead = g->bad ? NULL
        : determine(g, inside, at_front), *both = NULL;
    if (ahead && x->min < 0) {          /* (?!…) */
        Strings *opposite = strings_not(ahead);
        strings_free(ahead);
        ahead = opposite;
    }
    if (rest && ahead && !(both = strings_both(rest, ahead, g->err))) g->bad = 1;
    int at = both ? embed(g, both) : 0;
    strings_free(rest);
    strings_free(ahead);
    strings_free(both);
    return at;
}

static int emit_repeat(Graph *g, const Regex *x, int next) {
    if (x->max < 0) {
        int loop = add_node(g, BRANCH, next, next), was = g->in_loop;
        g->in_loop = 1;
        int again = emit(g, x->a, loop);
        g->in_loop = was;
        g->node[loop].a = again;
        next = loop;
    }
    int end = next;
    for (int i = 0; i < (x->max > x->min ? x->max : x->min) && !g->bad; i++) {    /* the last comes first */
        int one = emit(g, x->a, next);
        if (one == next) break;         /* nothing: once is enough */
        next = i < x->max - x->min ? add_node(g, BRANCH, one, end) : one;
    }
    return next;
}

/* The characters between which and others \b stands. */
static const int word_ranges[] = {'0', '9', 'A', 'Z', '_', '_', 'a', 'z'};

static int is_word(int c) {
    for (int i = 0; i < 8; i += 2)
        if (c >= word_ranges[i] && c <= word_ranges[i + 1]) return 1;
    return 0;
}

/* The node from which x matches and `next` goes on. */
static int emit(Graph *g, const Regex *x, int next) {
    if (g->bad) return next;
    switch (x->kind) {
    case R_EMPTY: return next;
    case R_CLASS: return add_node(g, TAKE, next, set_of(g, x->range ? x->range[0] : NULL, x->n));
    case R_CAT: return emit(g, x->a, emit(g, x->b, next));
    case R_ALT: {
        int one = emit(g, x->a, next), two = emit(g, x->b, next);
        return add_node(g, BRANCH, one, two);
    }
    case R_BEGIN: return add_node(g, BEGIN_ANCHOR, next, 0);
    case R_END: return add_node(g, END_ANCHOR, next, 0);
    case R_EDGE:
        g->has_edge = 1;
        set_of(g, word_ranges, 4);      /* so that no class has letters and others */
        return add_node(g, EDGE, next, x->min < 0);
    case R_AHEAD: return emit_lookahead(g, x, next);
    default: return emit_repeat(g, x, next);
    }
}

/* ---- from the graph to the automaton ---- */

/* What stands before and behind a place between two characters: whether ^ holds there, whether a
 * letter comes before; and what comes next: a letter (1), another character (0), the end, or what
 * is not known yet. */
enum { AT_END = 2, UNKNOWN = -1 };

typedef struct {
    int at_begin, behind_word, next;
} Around;

/* Adds to g->list the nodes that take a character, or end, and can be reached from `node` without one. */
static void closure(Graph *g, int node, Around at) {
    Ids todo = {0};
    ids_add(&todo, 2 * node);
    while (todo.n) {
        int id = todo.id[--todo.n], ended = id & 1, next = ended ? AT_END : at.next;
        const Node *x = &g->node[id / 2];
        if (g->seen[id] == g->now) continue;
        g->seen[id] = g->now;
        int is_open = x->kind == EDGE && next == UNKNOWN;
        if (x->kind == BRANCH) {
            ids_add(&todo, 2 * x->a + ended);
            ids_add(&todo, 2 * x->b + ended);
        } else if (x->kind == BEGIN_ANCHOR) {
            if (at.at_begin) ids_add(&todo, 2 * x->a + ended);
        } else if (x->kind == END_ANCHOR) {
            if (next == UNKNOWN || next == AT_END) ids_add(&todo, 2 * x->a + 1);
        } else if (x->kind == EDGE && !is_open) {
            if ((at.behind_word != (next == 1)) != x->b) ids_add(&todo, 2 * x->a + ended);
        } else if (x->kind != NOTHING && (x->kind != TAKE || !ended)) {
            if (g->n_list == g->room_list) g->list = xrealloc(g->list, g->room_list = 2 * g->room_list + 64, sizeof(int));
            g->list[g->n_list++] = 8 * (id / 2) + ended + (is_open
                                                           ? 2 * at.behind_word + 4 * at.at_begin
                                                               : 0);
        }
    }
    ids_free(&todo);
}

/* Goes on from the EDGEs of a state, to g->list, now that it is known what comes next. */
static void pass_edges(Graph *g, const int *list, int n, int next) {
    g->now++;
    g->n_list = 0;
    for (int i = 0; i < n; i++)
        if (list[i] >= 0 && g->node[list[i] / 8].kind == EDGE)
            closure(g, list[i] / 8, (Around){list[i] >> 2 & 1, list[i] >> 1 & 1, next});
}

static int is_in_set(const Lists *sets, int set, int character) {
    const int *r = sets->list[set];
    for (int i = 0; i < sets->length[set]; i += 2)
        if (character >= r[i] && character <= r[i + 1]) return 1;
    return 0;
}

/* The edges of all sets of characters that the graph has, and the classes between them. */
static Strings *classes_of(const Graph *g) {
    Strings *s = new_strings(0);
    Lists kinds = {0};
    int n = 1, room = 1, is_new;
    for (int i = 0; i < g->sets.n; i++) room += g->sets.length[i];
    int *edge = xcalloc(room + 1, sizeof(int)), *kind = xcalloc(g->sets.n + 1, sizeof(int));
    for (int i = 0; i < g->sets.n; i++)
        for (int k = 0; k < g->sets.length[i]; k++) edge[n++] = g->sets.list[i][k] + (k & 1);
    s->n_edges = n = tidy(edge, n);
    if (edge[n - 1] >= END_OF_CHARACTERS) s->n_edges = --n;
    edge[n] = END_OF_CHARACTERS;
    s->edge = edge;
    s->class_of = xcalloc(n + 1, sizeof(int));
    for (int i = 0; i < n; i++) {
        int length = 0;
        for (int k = 0; k < g->sets.n; k++)
            if (is_in_set(&g->sets, k, edge[i])) kind[length++] = k;
        s->class_of[i] = list_id(&kinds, kind, length, &is_new);
    }
    s->n_classes = kinds.n;
    lists_free(&kinds);
    free(kind);
    return s;
}

/* The id of the state that is the set of nodes in g->list.  Where a match has been found, anything may follow: all such
 * states are one. */
static int state_of(Graph *g, Lists *states) {
    int is_new;
    g->n_list = tidy(g->list, g->n_list);
    for (int i = 0; i < g->n_list; i++)
        if (g->node[g->list[i] / 8].kind == FOUND && !(g->list[i] & 1)) {
            g->list[0] = -1;
            g->n_list = 1;
            break;
        }
    return list_id(states, g->list, g->n_list, &is_new);
}

static int has_end(const Graph *g, const int *list, int n) {
    for (int i = 0; i < n; i++)
        if (list[i] < 0 || g->node[list[i] / 8].kind == FOUND ||
            g->node[list[i] / 8].kind == ACCEPT) return 1;
    return 0;
}

static int state_accepts(Graph *g, const int *list, int n) {
    if (has_end(g, list, n)) return 1;
    if (g->has_edge) pass_edges(g, list, n, AT_END);
    return g->has_edge && has_end(g, g->list, g->n_list);
}

/* Adds to g->list what follows the nodes of the list that take the character. */
static void take(Graph *g, const int *list, int n, int character) {
    for (int i = 0; i < n; i++) {
        const Node *x = &g->node[list[i] / 8];
        if (x->kind == TAKE && is_in_set(&g->sets, x->b, character))
            closure(g, x->a, (Around){0, is_word(character), UNKNOWN});
    }
}

/* What is in g->list after a character in a state, which has an EDGE perhaps.  Where a match has
 * been found behind it, that stays there: the character may be any. */
static void step(Graph *g, const int *list, int n, int character) {
    Ids passed = {0};
    if (g->has_edge) {
        pass_edges(g, list, n, is_word(character));
        for (int i = 0; i < g->n_list; i++) ids_add(&passed, g->list[i]);
    }
    g->now++;
    g->n_list = 0;
    take(g, list, n, character);
    take(g, passed.id, passed.n, character);
    for (int i = 0; i < passed.n; i++)
        if (g->node[passed.id[i] / 8].kind == FOUND)
            closure(g, passed.id[i] / 8, (Around){0, 0, UNKNOWN});
    ids_free(&passed);
}

/* The automaton of what matches from the node on.  NULL with g->bad. */
static Strings *determine(Graph *g, int start, int at_begin) {
    Strings *s = classes_of(g);
    Lists states = {0};
    long work = 0;
    int room = 0, *first = xcalloc(s->n_classes + 1, sizeof(int));
    g->seen = xrealloc(g->seen, 2 * g->n + 2, sizeof *g->seen);
    memset(g->seen, 0, (2 * (size_t)g->n + 2) * sizeof *g->seen);
    g->now = 1;
    g->n_list = 0;
    if (!g->list) g->list = xmalloc((size_t)(g->room_list = 64) * sizeof(int));
    for (int i = s->n_edges - 1; i >= 0; i--) first[s->class_of[i]] = s->edge[i];
    closure(g, start, (Around){at_begin, 0, UNKNOWN});
    if (g->n_list) state_of(g, &states);
    for (int i = 0; i < states.n && !is_too_large(s) && work <= MAX_WORK; i++) {
        add_state(s, &room, state_accepts(g, states.list[i], states.length[i]));
        for (int k = 0; k < s->n_classes; k++) {
            int *to = &s->to[(size_t)i * (size_t)s->n_classes + (size_t)k];
            if (states.list[i][0] < 0) {
                *to = i;
                continue;
            }
            if ((work += states.length[i]) > MAX_WORK) break;
            step(g, states.list[i], states.length[i], first[k]);
            if (g->n_list) *to = state_of(g, &states);
        }
    }
    if (is_too_large(s) || work > MAX_WORK) g->bad = 1, too_large(g->err);
    lists_free(&states);
    free(first);
    if (g->bad) {
        strings_free(s);
        return NULL;
    }
    trim(s);
    return s;
}

Strings *strings_of_pattern(const char *source, Error *err) {
    Pattern p;
    Graph g = {.err = err};
    Strings *s = NULL;
    if (!pattern_parse(source, &p, err)) {
        mark_front(p.root);
        set_of(&g, (int[]){0, END_OF_CHARACTERS - 1}, 1);
        int match = emit(&g, p.root, add_node(&g, FOUND, 0, 0)), begin = add_node(&g, BRANCH, match, 0);
        int skip = add_node(&g, TAKE, begin, 0);                /* the match may begin anywhere */
        if (!g.bad) g.node[begin].b = skip;
        if (!g.bad) s = determine(&g, begin, 1);
    }
    pattern_free(&p);
    free(g.node);
    free(g.seen);
    free(g.list);
    lists_free(&g.sets);
    return s;
}

Strings *strings_of_words(const char *const *words, int n) {
    Graph g = {0};
    int accept = add_node(&g, ACCEPT, 0, 0), nothing = add_node(&g, NOTHING, 0, 0), any = nothing;
    set_of(&g, (int[]){0, END_OF_CHARACTERS - 1}, 1);
    for (int i = 0; i < n; i++) {
        size_t len = strlen(words[i]);
        int at = accept;
        for (size_t end = len; end > 0;) {          /* the last character first */
            size_t from = end - 1;
            while (from && ((uint8_t)words[i][from] & 0xc0) == 0x80) from--;
            int c = (uint8_t)words[i][from], bytes = (int)(end - from);
            if (utf8_char(words[i] + from, (size_t)bytes) != bytes) {       /* no text: nobody can write the word */
                at = nothing;
                break;
            }
            if (bytes > 1) c &= 0xff >> (bytes + 1);
            for (int k = 1; k < bytes; k++) c = c << 6 | (words[i][from + (size_t)k] & 63);
            at = add_node(&g, TAKE, at, set_of(&g, (int[]){c, c}, 1));
            end = from;
        }
        any = add_node(&g, BRANCH, at, any);
    }
    Strings *s = g.bad ? NULL : determine(&g, any, 0);
    free(g.node);
    free(g.seen);
    free(g.list);
    lists_free(&g.sets);
    return s;
}
