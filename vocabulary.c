/* vocabulary.c - the tokens as tries of their bytes.  See vocabulary.h. */
#include "vocabulary.h"

#include <stdlib.h>
#include <string.h>

#define MAX_TOKEN 255                   /* bytes: TokenNode.depth counts them in 8 bits */

const uint8_t *piece_bytes(const Pieces *p, int id, size_t *n) {
    static const uint8_t mark[4][2] = {
        {0}, {MARK, QUOTE_MARK}, {MARK, CALL_MARK}, {MARK, CALL_END_MARK}};
    for (int i = 1; i < 4; i++)
        if (p->mark_id[i] == id) {
            *n = 2;
            return mark[i];
        }
    const uint8_t *text = (const uint8_t *)tokenizer_text(p->t, id, n);
    if (!*n) return text;
    if (tokenizer_is_control(p->t, id) || *n > MAX_TOKEN) *n = 0;
    else if (memchr(text, MARK, *n) || memchr(text, 0, *n)) *n = 0;
    return text;
}

/* How many characters s[0..n) holds, the last one perhaps incomplete; -1 where s[0..n) is not the
 * beginning of any UTF-8 text. */
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

/* Whether a text is plain (vocabulary.h).  U+2028 and U+2029 are not, because `.` in a pattern does
 * not match them: states.c relies on a `.` that matches all plain tokens. */
static int is_plain(const uint8_t *s, size_t n) {
    for (size_t i = 0; i < n; i++) {
        if (s[i] < 0x20 || s[i] == '"' || s[i] == '\\') return 0;
        if (n - i > 2 && s[i] == 0xe2 && s[i + 1] == 0x80 && (s[i + 2] | 1) == 0xa9) return 0;
    }
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
    if (order) return order;
    if (a->n != b->n) return a->n < b->n ? -1 : 1;
    return a->id - b->id;
}

/* How many bytes two tokens have in common at their front. */
static size_t common_front(const Token *a, const Token *b) {
    size_t n = 0;
    while (n < a->n && n < b->n && a->s[n] == b->s[n]) n++;
    return n;
}

/* The trie of n tokens that compare_tokens has sorted.  Tokens with the same bytes share a node,
 * which names the last of them; same[] links each to the one before it.  path[d] is the node of
 * the current token's byte d, from 1; `depth` bytes are open, that is, their `skip` is not known
 * yet. */
static TokenTree make_tree(const Token *token, int n, int *same) {
    TokenTree tree = {0};
    size_t total = 0;
    int path[256] = {0};
    for (int i = 0; i < n; i++) total += token[i].n;
    tree.node = xmalloc((total + 1) * sizeof(TokenNode));
    size_t depth = 0;
    for (int i = 0; i < n; i++) {
        size_t common = i ? common_front(&token[i - 1], &token[i]) : 0;
        if (i && common == token[i].n) {            /* the same bytes again */
            TokenNode *last = &tree.node[path[common]];
            same[token[i].id] = last->id;
            last->id = token[i].id;
            continue;
        }
        for (; depth > common; depth--) tree.node[path[depth]].skip = tree.n;
        for (; depth < token[i].n; depth++) {
            path[depth + 1] = tree.n;
            tree.node[tree.n++] = (TokenNode){token[i].s[depth], (uint8_t)(depth + 1), 0, -1};
        }
        tree.node[path[depth]].id = token[i].id;
    }
    for (; depth > 0; depth--) tree.node[path[depth]].skip = tree.n;
    return tree;
}

/* fitting[k][c] for every c: the masks of the tokens of at most c characters, plain ones (k = 0)
 * or all text (k = 1).  token[kind][n[kind]]: the plain tokens and the others; length[id]:
 * characters. */
static void fill_fitting(Pieces *p, Token *const token[2], const int n[2], const int *length) {
    for (int k = 0; k < 2; k++) {
        p->fitting[k] = xcalloc(p->longest + 1, sizeof(uint64_t *));
        for (int c = 0; c <= p->longest; c++) {
            uint64_t *mask = p->fitting[k][c] = xcalloc(p->words, 8);
            if (c) memcpy(mask, p->fitting[k][c - 1], (size_t)p->words * 8);
            for (int kind = 0; kind <= k; kind++)
                for (int i = 0; i < n[kind]; i++)
                    if (length[token[kind][i].id] == c) set_bit(mask, token[kind][i].id);
        }
    }
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

    /* 1. The tokens, plain ones in token[0] and others in token[1], with their lengths. */
    int n[2] = {0}, n_ids = tokenizer_n_vocab(t) < n_vocab ? tokenizer_n_vocab(t) : n_vocab;
    Token *token[2];
    int *length = xcalloc(n_vocab + 1, sizeof(int));    /* in characters; -1: not text */
    p->same = xcalloc(n_vocab + 1, sizeof(int));
    for (int k = 0; k < 2; k++) token[k] = xcalloc(n_ids + 1, sizeof(Token));
    for (int id = 0; id < n_vocab; id++) {
        size_t len = 0;
        const uint8_t *s = id < n_ids ? piece_bytes(p, id, &len) : NULL;
        length[id] = p->same[id] = -1;
        if (!len) continue;
        length[id] = count_characters(s, len);
        if (length[id] > p->longest) p->longest = length[id];
        int plain = length[id] >= 0 && s && is_plain(s, len);
        token[!plain][n[!plain]++] = (Token){s, len, id};
    }

    /* 2. Their tries and masks. */
    for (int k = 0; k < 2; k++) qsort(token[k], (size_t)n[k], sizeof(Token), compare_tokens);
    p->plain = make_tree(token[0], n[0], p->same);
    p->other = make_tree(token[1], n[1], p->same);
    fill_fitting(p, token, n, length);
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
static int find_child(const TokenTree *tree, int i, int end, int b) {
    for (; i < end; i = tree->node[i].skip)
        if (tree->node[i].byte == b) return i;
    return -1;
}

/* From the end to the front: a token that covers s[i..j] costs one more than cover[j + 1]. */
void pieces_cover(const Pieces *p, const uint8_t *s, int n, int *cover) {
    cover[n] = 0;
    for (int i = n - 1; i >= 0; i--) {
        cover[i] = FAR;
        for (int k = 0; k < 2; k++) {
            const TokenTree *tree = k ? &p->other : &p->plain;
            int at = 0, end = tree->n;
            for (int j = i; j < n && (at = find_child(tree, at, end, s[j])) >= 0; j++) {
                if (tree->node[at].id >= 0 && cover[j + 1] + 1 < cover[i])
                    cover[i] = cover[j + 1] + 1;
                end = tree->node[at].skip;
                at++;
            }
        }
    }
}
