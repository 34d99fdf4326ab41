/* stringset.c - sets of strings.  See stringset.h.
 *
 * A regular expression becomes a graph whose nodes take a character, branch, or stand for ^ and
 * $ (Thompson's construction).  Sets of these nodes become the states of the automaton (the
 * subset construction of Rabin and Scott).  A lookahead is an intersection: the automaton of all
 * that follows it is cut with the automaton of the lookahead, and the result becomes nodes in
 * place of what follows. */
#include "stringset.h"

#include <stdlib.h>
#include <string.h>

#include "pattern.h"

/* Limits of one automaton; what would exceed them is refused.  MAX_WORK is the one that bounds
 * the time: 20 million steps took a second when measured.  To tune it, time the pattern of the
 * test that is refused.  The others bound the memory: 16 MB for the cells, 2.4 MB for the nodes. */
#define MAX_STATES 20000
#define MAX_CELLS 4000000               /* states times classes */
#define MAX_NODES 200000                /* of a graph */
#define MAX_WORK 20000000               /* for each state and class, the nodes in the state */

#define END_OF_CHARACTERS 0x110000      /* one more than the last code point */

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

/* The i with edge[i] <= character < edge[i + 1]. */
static int edge_at(const Strings *s, int character) {
    int lo = 0, hi = s->n_edges - 1;
    while (lo < hi) {
        int middle = (lo + hi + 1) / 2;
        if (s->edge[middle] <= character) lo = middle;
        else hi = middle - 1;
    }
    return lo;
}

int strings_next(const Strings *s, int state, int character) {
    int class = s->class_of[edge_at(s, character)];
    return s->to[(size_t)state * (size_t)s->n_classes + (size_t)class];
}

/* The code point of a UTF-8 character of len bytes. */
static int decode(const char *text, int len) {
    int c = (uint8_t)*text;
    if (len > 1) c &= 0xff >> (len + 1);
    for (int k = 1; k < len; k++) c = c << 6 | (text[k] & 63);
    return c;
}

int strings_hold(const Strings *s, const char *text, size_t n) {
    int state = s->n ? 0 : -1;
    for (size_t i = 0; i < n && state >= 0;) {
        int len = utf8_char(text + i, n - i);
        if (len <= 0) return 0;
        state = strings_next(s, state, decode(text + i, len));
        i += (size_t)len;
    }
    return state >= 0 && s->accepts[state];
}

/* Adds a state without transitions.  *room: how many states are allocated. */
static void add_state(Strings *s, int *room, int accepts) {
    size_t row = (size_t)s->n_classes;
    if (s->n == *room) {
        *room = 2 * *room + 64;
        s->to = xrealloc(s->to, (int64_t)((size_t)*room * row) + 1, sizeof(int));
        s->accepts = xrealloc(s->accepts, *room, 1);
    }
    for (size_t i = 0; i < row; i++) s->to[(size_t)s->n * row + i] = -1;
    s->accepts[s->n++] = (uint8_t)accepts;
}

static int is_too_large(const Strings *s) {
    return s->n > MAX_STATES || (int64_t)s->n * s->n_classes > MAX_CELLS;
}

/* Removes the states from which no way leads to a state that accepts, as every set is promised
 * to be (stringset.h).  The others keep their order. */
static void trim(Strings *s) {
    size_t row = (size_t)s->n_classes;
    uint8_t *live = xcalloc(s->n + 1, 1);
    int *number = xcalloc(s->n + 1, sizeof(int)), n = 0;
    if (s->n) memcpy(live, s->accepts, (size_t)s->n);
    /* From the last state to the first: most ways go to later states, so that few rounds are
     * needed. */
    for (int changed = 1; changed;) {
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

#define BUCKETS 4096

/* A hash table that gives each different list of numbers an id, from 0 in the order of arrival. */
typedef struct {
    int **list, *length;                /* [n] by id */
    int *next;                          /* [n] the next id of the same hash, -1: none */
    int *bucket;                        /* [BUCKETS] the first id of each hash, -1: none; or NULL */
    int n, room;
} Lists;

/* The id of list[length], which is copied where it is new. */
static int list_id(Lists *l, const int *list, int length, int *is_new) {
    unsigned h = 2166136261u;
    for (int i = 0; i < length; i++) h = (h ^ (unsigned)list[i]) * 16777619u;
    h = (h ^ h >> 15) % BUCKETS;
    if (!l->bucket) l->bucket = memset(xmalloc(BUCKETS * sizeof(int)), 0xff, BUCKETS * sizeof(int));
    *is_new = 0;
    for (int i = l->bucket[h]; i >= 0; i = l->next[i])
        if (l->length[i] == length && !memcmp(l->list[i], list, (size_t)length * sizeof(int)))
            return i;
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

/* Sorts list[0..n) and removes doubles.  Returns how many numbers are left. */
static int tidy(int *list, int n) {
    int kept = 0;
    if (n > 1) qsort(list, (size_t)n, sizeof(int), compare_ints);
    for (int i = 0; i < n; i++)
        if (!i || list[i] != list[kept - 1]) list[kept++] = list[i];
    return kept;
}

/* A set without states whose edges are those of a and b together.  Its classes are the pairs of
 * a class of a and a class of b that occur: *pair [n_classes], which the caller frees. */
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
        int both[] = {a->class_of[edge_at(a, edge[i])], b->class_of[edge_at(b, edge[i])]};
        s->class_of[i] = list_id(&pairs, both, 2, &is_new);
    }
    s->n_classes = pairs.n;
    *pair = xcalloc(pairs.n + 1, sizeof **pair);
    for (int i = 0; i < pairs.n; i++) memcpy((*pair)[i], pairs.list[i], sizeof **pair);
    lists_free(&pairs);
    return s;
}

static int too_large(Error *err) {
    return fail(err, "the automaton would have more than %d states", MAX_STATES);
}

/* The product automaton: its states are the pairs of states that can be reached. */
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

/* Each state accepts where the state of a does not.  Where a has no next state the complement
 * has one more state, a->n, which accepts and leads to itself. */
Strings *strings_not(const Strings *a) {
    Strings *s = new_strings(a->n_classes);
    size_t row = (size_t)a->n_classes;
    int room = 0;
    s->n_edges = a->n_edges;
    size_t edges = (size_t)a->n_edges;
    s->edge = memcpy(xmalloc((edges + 1) * sizeof(int)), a->edge, (edges + 1) * sizeof(int));
    s->class_of = memcpy(xmalloc((edges + 1) * sizeof(int)), a->class_of, edges * sizeof(int));
    for (int i = 0; i <= a->n; i++) add_state(s, &room, i == a->n || !a->accepts[i]);
    for (int i = 0; i <= a->n; i++)
        for (size_t k = 0; k < row; k++) {
            int to = i < a->n ? a->to[(size_t)i * row + k] : -1;
            s->to[(size_t)i * row + k] = to < 0 ? a->n : to;
        }
    trim(s);
    return s;
}

/* ---- the graph of a regular expression ---- */

/* What a node does before it goes on at node a. */
typedef enum {
    TAKE,                               /* takes a character of set b */
    BRANCH,                             /* nothing; may go on at b, too */
    BEGIN_ANCHOR,                       /* ^: nothing, at the beginning alone */
    END_ANCHOR,                         /* $: nothing, at the end alone */
    EDGE,                               /* \b: nothing, at the edge of a word; b 1, \B: elsewhere */
    FOUND,                              /* the match is complete: any characters may follow */
    ACCEPT,                             /* the string ends here */
    NOTHING                             /* no way leads on */
} NodeKind;

typedef struct {
    NodeKind kind;
    int a, b;
} Node;

/* A state of the automaton is a list of items.  An item is PER_NODE times the number of a node,
 * plus flags: BEHIND_END where $ has matched, so that no character may follow; for an EDGE,
 * which waits in the state for the next character, AFTER_WORD where the character before it is
 * of a word, and AT_BEGIN where ^ would match. */
enum { BEHIND_END = 1, AFTER_WORD = 2, AT_BEGIN = 4, PER_NODE = 8 };

/* The one item of the state in which a match has been found: it accepts, and any character
 * stays. */
#define ALL_MATCHED (-1)

typedef struct {
    Node *node;
    int n, room;
    Lists sets;                         /* of characters: first and last of each range */
    int in_loop;                        /* 1: inside a loop: what follows is not complete yet */
    int has_edge;                       /* 1: the graph has an EDGE */
    Error *err;
    int bad;                            /* 1: the error has been noted */

    /* Scratch of closure(). */
    unsigned *seen;                     /* [2 n] `now` when node id / 2 was met; id + 1: behind $ */
    unsigned now;
    int *list, n_list, room_list;       /* items of the state that is being made */
} Graph;

static void refuse(Graph *g, const char *what) {
    if (!g->bad) fail(g->err, "%s", what);
    g->bad = 1;
}

/* Adds a node and returns its number. */
static int add_node(Graph *g, NodeKind kind, int a, int b) {
    if (g->n == MAX_NODES) {
        refuse(g, "it is too long");
        return 0;
    }
    if (g->n == g->room) {
        g->room = 2 * g->room + 256;
        g->node = xrealloc(g->node, g->room, sizeof(Node));
    }
    g->node[g->n] = (Node){kind, a, b};
    return g->n++;
}

/* The number of a set of characters: n ranges, each of a first and a last character. */
static int set_of(Graph *g, const int *ranges, int n) {
    int is_new;
    return list_id(&g->sets, ranges, 2 * n, &is_new);
}

static Strings *determine(Graph *g, int start, int at_begin);

/* Adds the automaton to the graph as nodes and returns its first node.  The nodes end at ACCEPT:
 * what follows a lookahead is part of the automaton. */
static int embed(Graph *g, const Strings *s) {
    int nothing = add_node(g, NOTHING, 0, 0), *entry = xcalloc(s->n + 1, sizeof(int));
    if (!s->n) {
        free(entry);
        return nothing;
    }
    int accept = add_node(g, ACCEPT, 0, 0);
    /* 1. A BRANCH for each state: b is its end, and a will lead to its characters. */
    for (int i = 0; i < s->n; i++)
        entry[i] = add_node(g, BRANCH, nothing, s->accepts[i] ? accept : nothing);
    /* 2. A TAKE for each class that leads on, in a chain of BRANCHes. */
    for (int i = 0; i < s->n && !g->bad; i++)
        for (int k = 0; k < s->n_classes; k++) {
            int to = s->to[(size_t)i * (size_t)s->n_classes + (size_t)k], n = 0;
            int *ranges = xcalloc(2 * s->n_edges + 2, sizeof(int));
            for (int e = 0; e < s->n_edges && to >= 0; e++) {
                if (s->class_of[e] != k) continue;
                ranges[2 * n] = s->edge[e];
                ranges[2 * n++ + 1] = s->edge[e + 1] - 1;
            }
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

/* Whether a regular expression holds a ^. */
static int has_begin(const Regex *x) {
    for (; x; x = x->a)
        if (x->kind == R_BEGIN || (x->b && has_begin(x->b))) return 1;
    return 0;
}

/* Sets `max` to 1 in the lookaheads that stand at the front right behind a ^.  Chains of R_CAT
 * grow to the left: the front of a chain is reached by going to x->a until that is no R_CAT. */
static void mark_front(Regex *x) {
    Regex **link = NULL;                /* [n] the R_CATs of the chain, from its end to its front */
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

/* The nodes of a lookahead and of all that follows it, the intersection of two sets: strings
 * that match from `next` on, and strings in which the lookahead matches at their beginning. */
static int emit_lookahead(Graph *g, const Regex *x, int next) {
    int at_front = x->max == 1;
    if (!at_front && has_begin(x->a))
        refuse(g, "^ inside of a lookahead is supported behind a ^ only");
    if (g->in_loop) refuse(g, "a lookahead inside of a repetition is not supported");
    int found = add_node(g, FOUND, 0, 0), inside = emit(g, x->a, found);
    if (!at_front && g->has_edge)
        refuse(g, "\\b in or behind a lookahead is supported behind a ^ only");
    Strings *rest = NULL, *ahead = NULL, *both = NULL;
    if (!g->bad) rest = determine(g, next, at_front);
    if (!g->bad) ahead = determine(g, inside, at_front);
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

/* x repeated: min copies in a row, then max - min copies that may be left out, or without a max
 * a loop.  The copies are made from the last to the first. */
static int emit_repeat(Graph *g, const Regex *x, int next) {
    if (x->max < 0) {                   /* the loop, whose node goes on at `next` or at x->a */
        int loop = add_node(g, BRANCH, next, next), was = g->in_loop;
        g->in_loop = 1;
        int again = emit(g, x->a, loop);
        g->in_loop = was;
        g->node[loop].a = again;
        next = loop;
    }
    int end = next, copies = x->max > x->min ? x->max : x->min;
    for (int i = 0; i < copies && !g->bad; i++) {
        int one = emit(g, x->a, next);
        if (one == next) break;         /* x->a matches the empty string alone */
        next = i < x->max - x->min ? add_node(g, BRANCH, one, end) : one;
    }
    return next;
}

/* The characters of a word: \b stands between one of them and another character. */
static const int word_ranges[] = {'0', '9', 'A', 'Z', '_', '_', 'a', 'z'};

static int is_word(int c) {
    for (int i = 0; i < 8; i += 2)
        if (c >= word_ranges[i] && c <= word_ranges[i + 1]) return 1;
    return 0;
}

/* Adds the nodes of x and returns the first one.  Behind x they go on at node `next`. */
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
        set_of(g, word_ranges, 4);      /* no class then mixes word characters and others */
        return add_node(g, EDGE, next, x->min < 0);
    case R_AHEAD: return emit_lookahead(g, x, next);
    default: return emit_repeat(g, x, next);
    }
}

/* ---- from the graph to the automaton ---- */

/* What comes next behind a place between two characters. */
enum { OTHER_NEXT = 0, WORD_NEXT = 1, END_NEXT = 2, UNKNOWN_NEXT = -1 };

/* What is known about a place between two characters. */
typedef struct {
    int at_begin;                       /* 1: ^ matches there */
    int behind_word;                    /* 1: the character before it is of a word */
    int next;
} Around;

static void add_item(Graph *g, int item) {
    if (g->n_list == g->room_list) {
        g->room_list = 2 * g->room_list + 64;
        g->list = xrealloc(g->list, g->room_list, sizeof(int));
    }
    g->list[g->n_list++] = item;
}

/* Adds to g->list all nodes that take a character, end the string or wait for the next
 * character, and that can be reached from `node` without taking one. */
static void closure(Graph *g, int node, Around at) {
    Ids todo = {0};                     /* ids: 2 * node, + 1 behind $ */
    ids_add(&todo, 2 * node);
    while (todo.n) {
        int id = todo.id[--todo.n], ended = id & 1, next = ended ? END_NEXT : at.next;
        const Node *x = &g->node[id / 2];
        int item = PER_NODE * (id / 2) + (ended ? BEHIND_END : 0);
        if (g->seen[id] == g->now) continue;
        g->seen[id] = g->now;
        switch (x->kind) {
        case BRANCH:
            ids_add(&todo, 2 * x->a + ended);
            ids_add(&todo, 2 * x->b + ended);
            break;
        case BEGIN_ANCHOR:
            if (at.at_begin) ids_add(&todo, 2 * x->a + ended);
            break;
        case END_ANCHOR:
            if (next == UNKNOWN_NEXT || next == END_NEXT) ids_add(&todo, 2 * x->a + 1);
            break;
        case EDGE:
            if (next == UNKNOWN_NEXT)
                add_item(g, item + AFTER_WORD * at.behind_word + AT_BEGIN * at.at_begin);
            else if ((at.behind_word != (next == WORD_NEXT)) != x->b)
                ids_add(&todo, 2 * x->a + ended);
            break;
        case TAKE:
            if (!ended) add_item(g, item);
            break;
        case NOTHING: break;
        case FOUND:
        case ACCEPT: add_item(g, item);
        }
    }
    ids_free(&todo);
}

/* The node of an item that is not ALL_MATCHED. */
static const Node *node_of(const Graph *g, int item) { return &g->node[item / PER_NODE]; }

/* g->list = what the EDGEs of the state list[n] lead to, now that `next` is known. */
static void pass_edges(Graph *g, const int *list, int n, int next) {
    g->now++;
    g->n_list = 0;
    for (int i = 0; i < n; i++) {
        if (list[i] == ALL_MATCHED || node_of(g, list[i])->kind != EDGE) continue;
        int at_begin = (list[i] & AT_BEGIN) != 0, behind_word = (list[i] & AFTER_WORD) != 0;
        closure(g, list[i] / PER_NODE, (Around){at_begin, behind_word, next});
    }
}

static int is_in_set(const Lists *sets, int set, int character) {
    const int *r = sets->list[set];
    for (int i = 0; i < sets->length[set]; i += 2)
        if (character >= r[i] && character <= r[i + 1]) return 1;
    return 0;
}

/* A set without states whose edges are those of all sets of characters in the graph.  Characters
 * are of one class where they are in the same sets. */
static Strings *classes_of(const Graph *g) {
    Strings *s = new_strings(0);
    Lists kinds = {0};                  /* lists of sets: each different list is a class */
    int n = 1, room = 1, is_new;        /* edge[0] is 0 */
    for (int i = 0; i < g->sets.n; i++) room += g->sets.length[i];
    int *edge = xcalloc(room + 1, sizeof(int)), *kind = xcalloc(g->sets.n + 1, sizeof(int));
    for (int i = 0; i < g->sets.n; i++)
        for (int k = 0; k < g->sets.length[i]; k++)
            edge[n++] = g->sets.list[i][k] + (k & 1);   /* behind a last character */
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

/* The id of the state that consists of the items in g->list.  All states in which a match has been
 * found are one, ALL_MATCHED, as any characters may follow. */
static int state_of(Graph *g, Lists *states) {
    int is_new;
    g->n_list = tidy(g->list, g->n_list);
    for (int i = 0; i < g->n_list; i++)
        if (node_of(g, g->list[i])->kind == FOUND && !(g->list[i] & BEHIND_END)) {
            g->list[0] = ALL_MATCHED;
            g->n_list = 1;
            break;
        }
    return list_id(states, g->list, g->n_list, &is_new);
}

/* Whether one of the items list[n] lets the string end. */
static int has_end(const Graph *g, const int *list, int n) {
    for (int i = 0; i < n; i++) {
        if (list[i] == ALL_MATCHED) return 1;
        NodeKind kind = node_of(g, list[i])->kind;
        if (kind == FOUND || kind == ACCEPT) return 1;
    }
    return 0;
}

/* Whether a string may end in the state list[n], at once or behind a \b.  Overwrites g->list. */
static int state_accepts(Graph *g, const int *list, int n) {
    if (has_end(g, list, n)) return 1;
    if (g->has_edge) pass_edges(g, list, n, END_NEXT);
    return g->has_edge && has_end(g, g->list, g->n_list);
}

/* Adds to g->list what follows the items of list[n] that take the character. */
static void take(Graph *g, const int *list, int n, int character) {
    for (int i = 0; i < n; i++) {
        const Node *x = node_of(g, list[i]);
        if (x->kind == TAKE && is_in_set(&g->sets, x->b, character))
            closure(g, x->a, (Around){0, is_word(character), UNKNOWN_NEXT});
    }
}

/* g->list = the items after a character in the state list[n], which is not ALL_MATCHED.  Its
 * EDGEs are passed first; a match that is found behind one of them stays found, whatever the
 * character is. */
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
        if (node_of(g, passed.id[i])->kind == FOUND)
            closure(g, passed.id[i] / PER_NODE, (Around){0, 0, UNKNOWN_NEXT});
    ids_free(&passed);
}

/* The automaton of the strings that match from node `start` on; at_begin: ^ matches there.  NULL
 * with g->bad.  The subset construction: the states that are found so far are in `states`, and s
 * gets a row for each. */
static Strings *determine(Graph *g, int start, int at_begin) {
    Strings *s = classes_of(g);
    Lists states = {0};
    long work = 0;
    int room = 0, *first = xcalloc(s->n_classes + 1, sizeof(int));
    /* 1. Scratch for the graph, which may have grown; first[k]: a character of class k. */
    g->seen = xrealloc(g->seen, 2 * g->n + 2, sizeof *g->seen);
    memset(g->seen, 0, (2 * (size_t)g->n + 2) * sizeof *g->seen);
    g->now = 1;
    g->n_list = 0;
    if (!g->list) g->list = xmalloc((size_t)(g->room_list = 64) * sizeof(int));
    for (int i = s->n_edges - 1; i >= 0; i--) first[s->class_of[i]] = s->edge[i];
    /* 2. The first state, and from each state the one behind each class. */
    closure(g, start, (Around){at_begin, 0, UNKNOWN_NEXT});
    if (g->n_list) state_of(g, &states);
    for (int i = 0; i < states.n && !is_too_large(s) && work <= MAX_WORK; i++) {
        add_state(s, &room, state_accepts(g, states.list[i], states.length[i]));
        for (int k = 0; k < s->n_classes; k++) {
            int *to = &s->to[(size_t)i * (size_t)s->n_classes + (size_t)k];
            if (states.list[i][0] == ALL_MATCHED) {
                *to = i;
                continue;
            }
            if ((work += states.length[i]) > MAX_WORK) break;
            step(g, states.list[i], states.length[i], first[k]);
            if (g->n_list) *to = state_of(g, &states);
        }
    }
    if (is_too_large(s) || work > MAX_WORK) {
        g->bad = 1;
        too_large(g->err);
    }
    lists_free(&states);
    free(first);
    if (g->bad) {
        strings_free(s);
        return NULL;
    }
    trim(s);
    return s;
}

static void graph_free(Graph *g) {
    free(g->node);
    free(g->seen);
    free(g->list);
    lists_free(&g->sets);
}

/* The graph: begin either matches the expression or skips any character and begins again. */
Strings *strings_of_pattern(const char *source, Error *err) {
    Pattern p;
    Graph g = {.err = err};
    Strings *s = NULL;
    if (!pattern_parse(source, &p, err)) {
        mark_front(p.root);
        set_of(&g, (int[]){0, END_OF_CHARACTERS - 1}, 1);       /* set 0: any character */
        int match = emit(&g, p.root, add_node(&g, FOUND, 0, 0));
        int begin = add_node(&g, BRANCH, match, 0), skip = add_node(&g, TAKE, begin, 0);
        if (!g.bad) g.node[begin].b = skip;
        if (!g.bad) s = determine(&g, begin, 1);
    }
    pattern_free(&p);
    graph_free(&g);
    return s;
}

/* Adds the nodes of a word, from its last character to its first, and returns the first one.  A
 * word that is not UTF-8 leads to `nothing`, as no text can be it. */
static int add_word(Graph *g, const char *word, int accept, int nothing) {
    int at = accept;
    for (size_t end = strlen(word), from; end > 0; end = from) {
        from = end - 1;
        while (from && ((uint8_t)word[from] & 0xc0) == 0x80) from--;
        int bytes = (int)(end - from);
        if (utf8_char(word + from, (size_t)bytes) != bytes) return nothing;
        int c = decode(word + from, bytes);
        at = add_node(g, TAKE, at, set_of(g, (int[]){c, c}, 1));
    }
    return at;
}

Strings *strings_of_words(const char *const *words, int n) {
    Graph g = {0};
    int accept = add_node(&g, ACCEPT, 0, 0), nothing = add_node(&g, NOTHING, 0, 0), any = nothing;
    set_of(&g, (int[]){0, END_OF_CHARACTERS - 1}, 1);
    for (int i = 0; i < n; i++)
        any = add_node(&g, BRANCH, add_word(&g, words[i], accept, nothing), any);
    Strings *s = g.bad ? NULL : determine(&g, any, 0);
    graph_free(&g);
    return s;
}
