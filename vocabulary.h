/* vocabulary.h - the tokens as tries of their bytes, which structured output walks to find
 * masks. */
#ifndef VOCABULARY_H
#define VOCABULARY_H

#include "tokenizer.h"

/* A cost in tokens that means: no way leads there.  No real cost reaches it, and the sum of two
 * such costs still fits an int. */
#define FAR 1000000000

/* A control token that a call may hold is written as two bytes: MARK, which occurs in no UTF-8
 * text, and one of these. */
#define MARK 0xff
enum { QUOTE_MARK = 1, CALL_MARK, CALL_END_MARK };

/* A byte of a token, as a node of a trie.  The nodes below a node follow it in the array. */
typedef struct {
    uint8_t byte;
    uint8_t depth;                      /* 1 for the first byte of a token */
    int skip;                           /* the next node that is not below this one */
    int id;                             /* the token that ends at this node, -1: none */
} TokenNode;

typedef struct {
    TokenNode *node;                    /* [n] in preorder */
    int n;
} TokenTree;

/* Puts a token into a mask. */
static inline void set_bit(uint64_t *mask, int id) { mask[id / 64] |= 1ull << id % 64; }

/* The vocabulary.  A mask has a bit for each id: bit id % 64 of word id / 64.  A token is plain
 * when it may stand inside a JSON string as it is: it holds no quote, no backslash, no control
 * character, and neither U+2028 nor U+2029. */
typedef struct Pieces {
    const Tokenizer *t;
    int n_vocab, words;                 /* logits; 64-bit words of a mask */
    int *same;                          /* [n_vocab] the next id with the same bytes, -1: none */
    TokenTree plain, other;             /* the plain tokens, and all others */
    int longest;                        /* characters in the longest token */
    /* [2][longest + 1] masks: fitting[0][c] has the plain tokens of at most c characters,
     * fitting[1][c] has these and all other text.  The last character of a token may be
     * incomplete. */
    uint64_t **fitting[2];
    int *ends, n_ends;                  /* the ids that may end a turn */
    int mark_id[4];                     /* [mark] its control token, -1: the tokenizer has none */
} Pieces;

/* The vocabulary, built once (0.2 s for 262,144 tokens).  n_vocab: number of logits;
 * ends[0..n_ends): the ids that may end a turn.  t must outlive the result, which the caller
 * frees with pieces_free. */
Pieces *pieces_new(const Tokenizer *t, int n_vocab, const int *ends, int n_ends);
void pieces_free(Pieces *p);

/* The *n bytes of a token, which p or its tokenizer owns.  *n is 0 for a token that no grammar
 * may write: a control token without a mark, a token that holds a NUL or a MARK, one longer than
 * 255 bytes. */
const uint8_t *piece_bytes(const Pieces *p, int id, size_t *n);

/* Fills cover[0..n]: cover[i] is the least number of tokens that make up s[i..n), FAR where none
 * do. */
void pieces_cover(const Pieces *p, const uint8_t *s, int n, int *cover);

#endif
