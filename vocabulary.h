/* vocabulary.h - the tokens as trees of their bytes, in which the masks of structured output are found. */
#ifndef VOCABULARY_H
#define VOCABULARY_H

#include "tokenizer.h"

#define FAR 1000000000                  /* so many tokens: no way leads there */

/* Control tokens that a call may hold are two bytes that no text has: MARK and which one. */
#define MARK 0xff
enum { QUOTE_MARK = 1, CALL_MARK, CALL_END_MARK };

/* A byte of a token.  The nodes below a node follow it. */
typedef struct {
    uint8_t byte;
    uint8_t depth;                      /* 1 for the first byte of a token */
    int skip;                           /* the next node that is not below this one */
    int id;                             /* of the token that ends here, -1: none */
} TokenNode;

typedef struct {
    TokenNode *node;
    int n;
} TokenTree;

/* Puts a token into a mask. */
static inline void set_bit(uint64_t *mask, int id) { mask[id / 64] |= 1ull << id % 64; }

typedef struct Pieces {
    const Tokenizer *t;
    int n_vocab, words;                 /* words of a mask */
    int *same;                          /* [n_vocab] another id with the same bytes, -1: none */
    TokenTree plain, other;             /* tokens that are plain inside a JSON string, and all others */
    int longest;                        /* characters in the longest token */
    /* [2][longest + 1] masks: tokens that are the beginning of text of at most that many characters, [0] in a JSON
     * string (plain), [1] anywhere. */
    uint64_t **fitting[2];
    int *ends, n_ends;
    int mark_id[4];                     /* ids of the control tokens behind MARK */
} Pieces;

/* The vocabulary, built once (0.2 s for 262,144 tokens).  n_vocab: number of logits; ends[0..n_ends): the ids that may
 * end a turn.  t must outlive it.  The caller frees it with pieces_free. */
Pieces *pieces_new(const Tokenizer *t, int n_vocab, const int *ends, int n_ends);
void pieces_free(Pieces *p);

/* The *n bytes of a token: a control token has none but its mark. */
const uint8_t *piece_bytes(const Pieces *p, int id, size_t *n);

/* cover[i], i up to n: how many tokens at least make up s[i..n), FAR: none do. */
void pieces_cover(const Pieces *p, const uint8_t *s, int n, int *cover);

#endif
