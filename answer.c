/* answer.c - the answer as it streams in.  See answer.h.
 *
 * What is asked for is `<|channel>thought\n…\n<channel|>` and then content, calls, or both.  What
 * comes is less orderly: a `<|channel>` twice, or alone in front of content; a `<channel|>` with nothing
 * open; a second thought, an empty one at the end, one without end; a `thought\n…<channel|>` whose
 * opening is missing; a call without its opening or its end; a channel inside of a call; a turn's header.
 * None of these marks may reach the reader, and no content may be lost: a call that cannot be read
 * becomes content, with a warning. */
#include "answer.h"

#include <stdlib.h>
#include <string.h>

#include "chat.h"
#include "json.h"

#define MAX_NAME 32                     /* characters of a channel's name; longer words are text */
#define ROLE "model\n"                  /* what follows the `<|turn>` of the model's turn */

void answer_open(Answer *a, const Tokenizer *t, AnswerStart start) {
    *a = (Answer){
        .start = start, .t = t, .thoughts = start.thinking || start.in_thought, .first = 1, .header = -1,
        .channel = tokenizer_control(t, "<|channel>"), .channel_end = tokenizer_control(t, "<channel|>"),
        .call_begin = tokenizer_control(t, "<|tool_call>"), .call_end = tokenizer_control(t, "<tool_call|>"),
        .quote = tokenizer_control(t, QUOTE), .response = tokenizer_control(t, "<|tool_response>"),
        .turn = tokenizer_control(t, "<|turn>"), .turn_end = tokenizer_control(t, "<turn|>"),
    };
    a->part = start.raw || start.in_content ? ANSWER_CONTENT : start.in_thought ? ANSWER_THOUGHT : ANSWER_BEGIN;
}

void answer_free(Answer *a) {
    buf_free(&a->held);
    buf_free(&a->call);
    buf_free(&a->partial);
    buf_free(&a->warnings);
    calls_free(a->calls, a->n_calls);
}

int answer_ends(const Answer *a, int id) {
    if (a->start.raw || id < 0) return 0;
    return id == a->response || id == a->turn_end || (id == a->turn && a->shown && a->part != ANSWER_CALL);
}

static int is_text(const char *s, size_t n, const char *text) { return n == strlen(text) && !memcmp(s, text, n); }

/* Whether s[0..n) can become `whole` when more comes, or begins with it. */
static int begins_like(const char *s, size_t n, const char *whole) {
    size_t len = strlen(whole);
    return !memcmp(s, whole, n < len ? n : len);
}

/* Adds text to the part that is open.  A newline at the end of a thought belongs to the `<channel|>` that
 * may follow, so it is held back until more of the thought comes. */
static void put_answer(Answer *a, const char *text, size_t n, Buf *content, Buf *thought) {
    if (!n) return;
    a->first = 0;
    if (a->part == ANSWER_CONTENT) {
        buf_add(content, text, n);
        a->shown = 1;
        return;
    }
    if (a->newline) buf_puts(thought, "\n");
    a->newline = text[n - 1] == '\n';
    buf_add(thought, text, a->newline ? n - 1 : n);
}

/* What was held as a header was none: it is the beginning of the text of `part`. */
static void release(Answer *a, AnswerPart part, Buf *content, Buf *thought) {
    Buf held = a->held;
    a->held = (Buf){0};
    a->n_held = 0;
    a->part = part;
    put_answer(a, held.data, held.len, content, thought);
    buf_free(&held);
}

static void open_thought(Answer *a) {
    buf_free(&a->held);
    a->first = 0;
    a->thoughts = 1;
    a->part = ANSWER_THOUGHT;
    a->n_thought += a->n_held;
    a->n_held = 0;
}

/* Content begins.  Two things that the model leaves the opening token out of are looked for:
 * - At the very beginning, the header of a thought.  With thinking on, a thought follows it.  With
 *   thinking off the text may be an answer: it is held until a `<channel|>` shows that it was none.
 * - A call of one of the request's tools. */
static void take_in_begin(Answer *a, const char *c, size_t n, Buf *content, Buf *thought) {
    buf_add(&a->held, c, n);
    int is_header = a->first && begins_like(a->held.data, a->held.len, THOUGHT_NAME);
    int is_call = call_begins(a->held.data, a->held.len, a->start.tools);
    if (is_call == 2) buf_puts(&a->warnings, "what reads like a tool call, but has no opening token, was left as text\n");
    if (is_call == 1) {
        buf_add(&a->call, a->held.data, a->held.len);
        buf_free(&a->held);
        a->part = ANSWER_CALL;
        a->bare = 1;
    } else if (is_header && a->thoughts && a->held.len == strlen(THOUGHT_NAME)) open_thought(a);
    else if (!is_header && is_call) release(a, ANSWER_CONTENT, content, thought);
}

static int is_name_char(char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '_' || c == '-';
}

/* A name is one word and a newline, and it is dropped; the text of any channel counts as thought.  A
 * `<|channel>` with no name behind it opens a thought where thoughts are expected; elsewhere it is a stray
 * token in front of content. */
static void take_in_name(Answer *a, const char *c, size_t n, Buf *content, Buf *thought) {
    if (*c == '\n' && a->held.len) {
        open_thought(a);
    } else if (is_name_char(*c) && a->held.len < MAX_NAME) {
        buf_add(&a->held, c, n);
    } else {
        release(a, a->thoughts ? ANSWER_THOUGHT : ANSWER_CONTENT, content, thought);
        if (*c != '\n') put_answer(a, c, n, content, thought);
    }
}

/* The header of the model's turn is dropped, and the answer begins behind it. */
static void take_in_turn(Answer *a, const char *c, size_t n, Buf *content, Buf *thought) {
    buf_add(&a->held, c, n);
    if (!begins_like(a->held.data, a->held.len, ROLE)) release(a, ANSWER_CONTENT, content, thought);
    else if (a->held.len == strlen(ROLE)) {
        buf_free(&a->held);
        a->part = ANSWER_BEGIN;
    }
}

static void take_char(Answer *a, const char *c, size_t n, Buf *content, Buf *thought) {
    switch (a->part) {
    case ANSWER_BEGIN: take_in_begin(a, c, n, content, thought); break;
    case ANSWER_NAME: take_in_name(a, c, n, content, thought); break;
    case ANSWER_TURN: take_in_turn(a, c, n, content, thought); break;
    case ANSWER_CALL: buf_add(&a->call, c, n); break;
    default: put_answer(a, c, n, content, thought);
    }
}

/* Length of the bytes at s that U+FFFD stands for once: the longest that could have begun a character, or
 * one byte (Unicode's "maximal subpart", as Python's errors="replace" does it). */
static size_t bad_utf8(const char *s, size_t n) {
    size_t len = 1;
    while (len < n && utf8_char(s, len + 1) < 0) len++;
    return len;
}

/* Takes the whole characters from a->partial; with `all` also the beginning of one at the end. */
static void take_partial(Answer *a, int all, Buf *content, Buf *thought) {
    const char *p = a->partial.data;
    size_t i = 0, len = a->partial.len;
    while (i < len) {
        int n = utf8_char(p + i, len - i);
        if (n < 0 && !all) break;
        if (n > 0 && (p[i] || a->start.raw)) {
            take_char(a, p + i, (size_t)n, content, thought);
            i += (size_t)n;
        } else {
            take_char(a, "\xef\xbf\xbd", 3, content, thought);
            i += bad_utf8(p + i, len - i);
        }
    }
    buf_drop(&a->partial, i);
}

/* ---- calls ---- */

/* Adds the text of a call as it is read outside of one. */
static void put_call_text(Buf *out, const char *text, size_t n) {
    for (size_t i = 0; i < n; i++) buf_add(out, text[i] == CALL_QUOTE ? "\"" : text + i, 1);
}

/* A channel inside of a call ends: what it holds behind the name of a thought is thought, not call. */
static void end_channel_in_call(Answer *a, Buf *thought) {
    size_t from = (size_t)a->header, n = a->call.len - from, name = strlen(THOUGHT_NAME);
    const char *text = a->call.data + from;
    int is_thought = a->header >= 0 && (n < name ? is_text(text, n, "thought") : begins_like(text, n, THOUGHT_NAME));
    if (is_thought && n > name) put_call_text(thought, text + name, n - name - (text[n - 1] == '\n'));
    if (is_thought) a->call.len = from;
    a->header = -1;
}

/* The call is complete, or nothing more of it comes: it goes into a->calls, or into the content.
 * closed: 1 when the model ended the call itself. */
static void end_call(Answer *a, int closed, Buf *content, Buf *thought) {
    ToolCall call;
    if (a->header >= 0) end_channel_in_call(a, thought);
    int how = (closed ? CALL_CLOSED : 0) | (a->start.held && !a->bare ? CALL_HELD : 0);
    const char *why = call_read(a->call.data, a->call.len, a->start.tools, how, &call, &a->warnings);
    a->part = ANSWER_CONTENT;
    a->shown = 1;
    if (why) {
        buf_printf(&a->warnings, "a tool call could not be read and was left as text: %s\n", why);
        put_call_text(content, a->call.data, a->call.len);
    } else {
        if (a->bare) buf_printf(&a->warnings, "the call of %s was mended: its opening token was missing\n", call.name);
        call.mended |= a->bare;
        a->calls = xrealloc(a->calls, a->n_calls + 1, sizeof *a->calls);
        a->calls[a->n_calls++] = call;
    }
    a->bare = 0;
    buf_free(&a->call);
}

static void open_call(Answer *a) {
    a->part = ANSWER_CALL;
    a->header = -1;
}

/* ---- control tokens ---- */

/* A header that began the answer without its token, with or without its newline. */
static int is_held_header(const Answer *a) {
    return a->first && a->held.len >= strlen(THOUGHT_NAME) - 1 && begins_like(a->held.data, a->held.len, THOUGHT_NAME);
}

/* `<channel|>`, or something else that no channel goes beyond.  The name of a channel without text goes, and
 * so does a header at the beginning whose `<|channel>` is missing; what follows that is a thought. */
static void end_channel(Answer *a, Buf *content, Buf *thought) {
    take_partial(a, 1, content, thought);
    if (a->part == ANSWER_CALL) end_call(a, 0, content, thought);
    if (a->part == ANSWER_BEGIN && is_held_header(a)) {
        Buf text = a->held;
        size_t name = strlen(THOUGHT_NAME);
        a->held = (Buf){0};
        open_thought(a);
        if (text.len > name) put_answer(a, text.data + name, text.len - name, content, thought);
        buf_free(&text);
    } else if (a->part == ANSWER_BEGIN || a->part == ANSWER_TURN) release(a, ANSWER_CONTENT, content, thought);
    buf_free(&a->held);
    a->n_held = 0;
    a->part = ANSWER_CONTENT;
}

/* Whether a control token shows in an answer: those of the template do not.  Names of any other shape come from
 * a tokenizer.model, which lists pieces such as <table> the same way: they are text. */
static int is_shown(const char *name, size_t n) {
    static const char *hidden[] = {"<pad>", "<eos>", "<bos>", "<unk>", "<mask>"};
    for (size_t i = 0; i < sizeof hidden / sizeof *hidden; i++)
        if (is_text(name, n, hidden[i])) return 0;
    return n < 2 || (memcmp(name, "<|", 2) && memcmp(name + n - 2, "|>", 2));
}

/* A control token inside of a call. */
static void take_control_in_call(Answer *a, int id, Buf *content, Buf *thought) {
    take_partial(a, 1, content, thought);
    if (id == a->quote) buf_add(&a->call, (char[]){CALL_QUOTE}, 1);
    else if (id == a->call_end || id == a->response) end_call(a, id == a->call_end, content, thought);
    else if (id == a->channel) a->header = (long)a->call.len;
    else if (id == a->channel_end && a->header >= 0) end_channel_in_call(a, thought);
    else if (id == a->call_begin) {
        end_call(a, 0, content, thought);
        open_call(a);
    }
}

/* A control token, other than in raw text.  A call ends a thought; a quote outside of a call is a quote.
 * Returns 1 when its name is text. */
static int take_control(Answer *a, int id, const char *name, size_t n, Buf *content, Buf *thought) {
    if (a->part == ANSWER_CALL) {
        take_control_in_call(a, id, content, thought);
    } else if (id == a->channel || id == a->channel_end || id == a->call_begin) {
        end_channel(a, content, thought);
        a->first = 0;
        if (id == a->call_begin) open_call(a);
        else a->part = id == a->channel ? ANSWER_NAME : ANSWER_BEGIN;
    } else if (id == a->turn) {
        end_channel(a, content, thought);
        a->part = ANSWER_TURN;
    } else if (id == a->quote) {
        take_partial(a, 1, content, thought);
        take_char(a, "\"", 1, content, thought);
    } else return is_shown(name, n);
    return 0;
}

static int is_thought(const Answer *a) { return a->part == ANSWER_NAME || a->part == ANSWER_THOUGHT; }

void answer_feed(Answer *a, int id, Buf *content, Buf *thought) {
    size_t n;
    const char *text = tokenizer_text(a->t, id, &n);
    int was_thought = is_thought(a);
    if (!n) return;
    int is_control = !a->start.raw && tokenizer_is_control(a->t, id);
    if (!is_control || take_control(a, id, text, n, content, thought)) {
        buf_add(&a->partial, text, n);
        take_partial(a, 0, content, thought);
    }
    if (was_thought || is_thought(a)) a->n_thought++;
    else if (a->part == ANSWER_BEGIN) a->n_held += a->held.len > 0;
}

void answer_end(Answer *a, Buf *content, Buf *thought) {
    take_partial(a, 1, content, thought);
    if (a->part == ANSWER_CALL) end_call(a, 0, content, thought);
    if (a->part == ANSWER_BEGIN) release(a, ANSWER_CONTENT, content, thought);
    if (a->part == ANSWER_THOUGHT && a->newline) buf_puts(thought, "\n");
    if (is_thought(a) && !a->shown) buf_puts(&a->warnings, "the thought did not end: there is no answer\n");
    a->newline = 0;
}

void message_begin(Buf *out, const Buf *content, const Buf *thought, const ToolCall *calls, int n_calls, int n_prompt) {
    buf_puts(out, "{\"role\": \"assistant\", \"content\": ");
    if (n_calls && !content->len) buf_puts(out, "null");
    else json_quote(out, content->data, content->len);
    if (thought->len) {
        buf_puts(out, ", \"reasoning_content\": ");
        json_quote(out, thought->data, thought->len);
    }
    if (!n_calls) return;
    buf_puts(out, ", \"tool_calls\": ");
    calls_put(out, calls, n_calls, n_prompt);
}
