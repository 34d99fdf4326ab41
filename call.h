/* call.h - a tool call as the model writes it, read, and mended where only one reading is possible.
 *
 *     call:NAME{key:value,…}
 * with values <|"|>text<|"|> (no escapes), numbers, true, false, null, [list] and {object}.  In the
 * texts of this file the control token <|"|> is the byte CALL_QUOTE, which no text holds. */
#ifndef CALL_H
#define CALL_H

#include <cjson/cJSON.h>

#include "util.h"

#define CALL_QUOTE '\xff'

/* A call of a tool. */
typedef struct {
    char *name, *arguments;             /* the arguments as a JSON object */
    int mended;                         /* 1: the model wrote it in another way, see call_read */
} ToolCall;
void calls_free(ToolCall *calls, int n);

/* Adds a line to the warnings for the first of the calls that is none of the tools (NULL: there are none). */
void calls_check(const ToolCall *calls, int n, const cJSON *tools, Buf *warnings);

/* Adds calls as a JSON list of OpenAI's tool_calls.  n_prompt: tokens of the prompt, which make the ids
 * differ along a conversation. */
void calls_put(Buf *out, const ToolCall *calls, int n, int n_prompt);

/* Adds the id of call i, as calls_put writes it, between quotes. */
void call_put_id(Buf *out, int i, int n_prompt);

/* Reads the call in text[0..n).
 * tools: those of the request, from tools_read, or NULL.  The schema of a named tool decides whether
 *     True or 5 without quotes is a literal or a string; without one it is a literal.
 * how: CALL_CLOSED when the model ended the call itself, as only then closing brackets may be missing;
 *     CALL_HELD when it was written under the tool's schema, so that a literal is one.
 * Mended are round brackets, `=`, colons too many, quotes of other kinds, words without quotes, True,
 * False and None, a comma that is missing behind a string, missing closing brackets, a comma at the
 * end, and a missing `call:`.  Adds a line to *mends for each kind of mend that was needed.
 * Returns NULL and fills in *call, which the caller frees with calls_free, or returns why the call
 * cannot be read, or cannot be read in one way alone. */
enum { CALL_CLOSED = 1, CALL_HELD = 2 };
const char *call_read(const char *text, size_t n, const cJSON *tools, int how, ToolCall *call, Buf *mends);

/* Whether text[0..n) begins a call without its opening token: 1 a call of one of the tools, 2 of none of
 * them, 0 it may when more comes, -1 it does not. */
int call_begins(const char *text, size_t n, const cJSON *tools);

/* How far a call that is still being written has been handed on.  Such a call needs no mending. */
typedef struct {
    size_t at;                          /* bytes of its text that have been handed on */
    int in_arguments, in_string;
    int depth;                          /* of the brackets that are open */
    char open[128];                     /* [depth] which ones */
    int at_key;                         /* 1: a key comes next */
} CallDelta;

/* Goes on reading text[0..n), the whole call so far.  Adds to *name the tool's name, once it is
 * complete, and to *arguments the JSON that has become certain since the last time: in the end, all
 * deltas together are what call_read makes of the call.  *p begins as all zero. */
void call_delta(CallDelta *p, const char *text, size_t n, Buf *name, Buf *arguments);

#endif
