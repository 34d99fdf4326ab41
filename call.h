/* call.h - reads a tool call as the model writes it, and mends it where it can be read in one way
 * only.
 *
 *     call:NAME{key:value,…}
 * A value is a string <|"|>text<|"|> (without escapes), a number, true, false, null, a [list] or an
 * {object}.  In the texts of this file the byte CALL_QUOTE represents the control token <|"|>; it
 * occurs in no UTF-8 text. */
#ifndef CALL_H
#define CALL_H

#include <cjson/cJSON.h>

#include "util.h"

#define CALL_QUOTE '\xff'

/* A call of a tool.  Owns its strings. */
typedef struct {
    char *name, *arguments;             /* the arguments as a JSON object */
    int mended;                         /* 1: the model wrote something else, see call_read */
} ToolCall;
void calls_free(ToolCall *calls, int n);        /* the n calls and the array itself */

/* Adds a line to the warnings for the first call that names none of the tools (NULL: there are no
 * tools). */
void calls_check(const ToolCall *calls, int n, const cJSON *tools, Buf *warnings);

/* Adds calls to out, as the JSON list `tool_calls` of OpenAI's API.  n_prompt: number of tokens of
 * the prompt, which makes the ids of calls differ within a conversation. */
void calls_put(Buf *out, const ToolCall *calls, int n, int n_prompt);

/* Adds the id of call i to out, as calls_put writes it, with quotes. */
void call_put_id(Buf *out, int i, int n_prompt);

/* Reads the call in text[0..n).
 * tools: the request's, from tools_read, or NULL.  True or 5 without quotes may be a literal or a
 *     string: the schema of the tool decides; without a schema it is a literal.
 * how: CALL_CLOSED when the model ended the call itself: only then are missing closing brackets
 *     added.  CALL_CONSTRAINED when sampling was constrained by the tool's schema: then what looks
 *     like a literal is one.
 * used: becomes the length of the text up to a second call in it, whose opening token is missing,
 *     or n.
 * Mends: round brackets, `=` for a colon, colons too many, quotes of other kinds, words without
 * quotes, a missing opening quote, quotes inside of a string, True, False and None, a missing
 * comma, missing brackets, brackets and a comma too many at the end, a missing `call:`, a name in
 * letters of the other case, values in strings, a call in the form of JSON.  Adds one line to
 * *mends for each kind of mend.
 * Returns NULL and fills in *call, whose strings the caller owns; or returns why the call cannot be
 * read, or can be read in two ways. */
enum { CALL_CLOSED = 1, CALL_CONSTRAINED = 2 };
const char *call_read(const char *text, size_t n, const cJSON *tools, int how, ToolCall *call,
                      Buf *mends, size_t *used);

/* Whether text[0..n) begins with a call without its opening token.  1: with a call of one of the
 * tools; 2: with a call of another name; 0: more text must come to tell; -1: it does not. */
int call_begins(const char *text, size_t n, const cJSON *tools);

/* The state of a call that streams while the model writes it.  Its sampling is constrained, so that
 * it needs no mends. */
typedef struct {
    size_t at;                          /* bytes of the call's text that have been handed on */
    int in_arguments, in_string;        /* where the next byte stands */
    int depth;                          /* number of open brackets */
    char open[128];                     /* [depth] the open brackets, innermost last */
    int at_key;                         /* 1: a key comes next */
} CallDelta;

/* Continues with text[0..n), which is the whole call so far.  Adds the tool's name to *name once it
 * is complete, and to *arguments the JSON that has become certain since the last time.  All that is
 * added to *arguments is what call_read makes of the call.  *p is all zero at the beginning. */
void call_delta(CallDelta *p, const char *text, size_t n, Buf *name, Buf *arguments);

#endif
