/* tokenizer.h - text to token ids and back, as SentencePiece (tokenizer.model) and transformers
 * (tokenizer.json) do it: BPE over SentencePiece's alphabet, with byte fallback. */
#ifndef TOKENIZER_H
#define TOKENIZER_H

#include "util.h"

typedef struct Tokenizer Tokenizer;

/* Reads DIR/tokenizer.json, or DIR/tokenizer.model where there is no JSON.  The caller frees the result
 * with tokenizer_free.  Returns NULL with err (file and field) when neither is there or one is broken. */
Tokenizer *tokenizer_open(const char *dir, Error *err);
void tokenizer_free(Tokenizer *t);

/* Its file, for messages about what is missing. */
const char *tokenizer_file(const Tokenizer *t);

/* Number of ids, 0 .. n-1. */
int tokenizer_n_vocab(const Tokenizer *t);

/* Adds the ids of text[0..n) to out.  No BOS is put in front.
 * controls != 0: control tokens such as <|turn> in the text become their ids, as the reference tokenizer
 * does it; controls == 0: they are ordinary text (what users write).
 * Any bytes are accepted; bytes that are not UTF-8 become byte tokens.  O(n log n). */
void tokenizer_encode(const Tokenizer *t, const char *text, size_t n, int controls, Ids *out);

/* The id of a control token by its name ("<|turn>"), or -1 when the vocabulary has none of that name. */
int tokenizer_control(const Tokenizer *t, const char *name);

/* 1 when id is a control token (an added token of tokenizer.json, a control or user-defined `<…>` piece
 * of tokenizer.model). */
int tokenizer_is_control(const Tokenizer *t, int id);

/* The bytes that id stands for in text: U+2581 written as a space, <0x0A> as that byte, a control token as
 * its name.  *n is their number.  Valid until tokenizer_free; not 0-terminated.  An id outside the
 * vocabulary stands for nothing (*n = 0).  A text is decoded by joining the bytes of its ids; a single token
 * may end inside a UTF-8 character. */
const char *tokenizer_text(const Tokenizer *t, int id, size_t *n);

#endif
