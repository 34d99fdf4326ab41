/* tokenizer.h - text to token ids and back, as SentencePiece (tokenizer.model) and transformers
 * (tokenizer.json) do it: byte-pair encoding, with byte tokens for unknown characters. */
#ifndef TOKENIZER_H
#define TOKENIZER_H

#include "util.h"

typedef struct Tokenizer Tokenizer;

/* Reads DIR/tokenizer.json or, if there is none, DIR/tokenizer.model.  The caller frees the result
 * with tokenizer_free.  Returns NULL with err, which names file and field, when there is neither or
 * the file is damaged. */
Tokenizer *tokenizer_open(const char *dir, Error *err);
void tokenizer_free(Tokenizer *t);              /* t may be NULL */

/* The path of the file that t was read from, for messages.  Belongs to t. */
const char *tokenizer_file(const Tokenizer *t);

/* The number of ids, 0 .. n-1. */
int tokenizer_n_vocab(const Tokenizer *t);

/* Adds the ids of text[0..n) to out.  Adds no BOS.  controls = 1: control tokens such as <|turn> in
 * the text become their ids, as in the reference tokenizer; controls = 0: they are ordinary text,
 * for what users write.  Any bytes are accepted; bytes that are not UTF-8 become byte tokens.
 * Takes O(n log n). */
void tokenizer_encode(const Tokenizer *t, const char *text, size_t n, int controls, Ids *out);

/* The id of the control token with that name ("<|turn>"); -1 when the vocabulary has none. */
int tokenizer_control(const Tokenizer *t, const char *name);

/* 1 when id is a control token: an added token of tokenizer.json; a control piece, or a
 * user-defined piece `<…>`, of tokenizer.model. */
int tokenizer_is_control(const Tokenizer *t, int id);

/* The text of id: *n bytes, not 0-terminated, valid until tokenizer_free.  U+2581 becomes a space,
 * <0x0A> that byte, a control token its name.  An id outside the vocabulary has no text (*n = 0).
 * To decode, join the texts of ids: that of a single one may be a part of a UTF-8 character. */
const char *tokenizer_text(const Tokenizer *t, int id, size_t *n);

#endif
