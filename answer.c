/* answer.c - parts an answer while it streams.  See answer.h.
 *
 * The template's form of an answer is `<|channel>thought\n…\n<channel|>`, then content, calls, or
 * both.  Models do not always keep to it.  All of these occur: `<|channel>` twice, or alone in
 * front of content; `<channel|>` where no channel is open; a second thought, an empty one at the
 * end, one without end; a `thought\n…<channel|>` whose opening token is missing; a call without its
 * opening token or its end; a channel inside a call; the header of a turn.  The user must never see
 * these marks, and no content may be lost: an unreadable call becomes content, with a warning. */
#define _GNU_SOURCE
#include "answer.h"

#include <string.h>

#include "chat.h"
#include "json.h"

#define MAX_CHANNEL_NAME 32             /* bytes of a channel's name; a longer word is text.  The
                                         * only name in use is "thought" */
#define ROLE "model\n"                  /* what follows the `<|turn>` of the model's turn */

void answer_open(Answer *a, const Tokenizer *t, AnswerStart start) {
    *a = (Answer){
        .start = start, .t = t, .thoughts = start.thinking || start.in_thought, .header = -1,
        .channel = tokenizer_control(t, "<|channel>"),
        .channel_end = tokenizer_control(t, "<channel|>"),
        .call_begin = tokenizer_control(t, "<|tool_call>"),
        .call_end = tokenizer_control(t, "<tool_call|>"),
        .quote = tokenizer_control(t, QUOTE),
        .response = tokenizer_control(t, "<|tool_response>"),
        .turn = tokenizer_control(t, "<|turn>"),
        .turn_end = tokenizer_control(t, "<turn|>"),
    };
    a->echo = start.in_thought;
    if (start.raw || start.in_content) a->part = ANSWER_CONTENT;
    else a->part = start.in_thought ? ANSWER_THOUGHT : ANSWER_BEGIN;
}

void answer_free(Answer *a) {
    buf_free(&a->held);
    buf_free(&a->call);
    buf_free(&a->line);
    buf_free(&a->partial);
    buf_free(&a->warnings);
    calls_free(a->calls, a->n_calls);
}

int answer_ends(const Answer *a, int id) {
    if (a->start.raw || id < 0) return 0;
    return id == a->response || id == a->turn_end ||
           (id == a->turn && a->shown && a->part != ANSWER_CALL);
}

/* Adds a line to the warnings, unless they contain it already. */
static void warn(Answer *a, const char *line) {
    const char *at = a->warnings.len ? strstr(a->warnings.data, line) : NULL;
    if (!at) buf_puts(&a->warnings, line);
}

#define LEFT_AS_TEXT "what reads like a tool call, but has no opening token, was left as text\n"

/* Warns of a line of the content that begins with a call of one of the request's tools. */
static void look_for_call(Answer *a, const char *text, size_t n) {
    const size_t most = 256;            /* bytes of a line: more than the name of a tool has */
    for (size_t i = 0; i < n && a->start.tools && !a->start.raw; i++) {
        if (text[i] == '\n') buf_drop(&a->line, a->line.len);
        else if (a->line.len < most) {
            buf_add(&a->line, text + i, 1);
            if (call_begins(a->line.data, a->line.len, a->start.tools) == 1) warn(a, LEFT_AS_TEXT);
        }
    }
}

/* Whether s[0..n) is a beginning of `whole`, or begins with `whole`. */
static int begins_like(const char *s, size_t n, const char *whole) {
    size_t len = strlen(whole);
    return !memcmp(s, whole, n < len ? n : len);
}

/* Adds text to the content or, if a thought is open, to the thought.  A newline at the end of a
 * thought belongs to the `<channel|>` that may follow, so it is held back until more comes. */
static void put_answer(Answer *a, const char *text, size_t n, Buf *content, Buf *thought) {
    if (!n) return;
    if (a->part == ANSWER_CONTENT) {
        buf_add(content, text, n);
        if (a->stray) warn(a, "what stands in front of <channel|> may be a thought\n");
        look_for_call(a, text, n);
        a->shown = 1;
        return;
    }
    if (a->newline) buf_puts(thought, "\n");
    a->newline = text[n - 1] == '\n';
    buf_add(thought, text, a->newline ? n - 1 : n);
}

/* The held text turned out to be no header, name, role or call.  It becomes the first text of
 * `part`. */
static void release(Answer *a, AnswerPart part, Buf *content, Buf *thought) {
    Buf held = a->held;
    a->held = (Buf){0};
    a->n_held = 0;
    a->part = part;
    put_answer(a, held.data, held.len, content, thought);
    buf_free(&held);
}

/* The held text turned out to be the header of a thought.  It is dropped, and the thought
 * begins. */
static void open_thought(Answer *a) {
    buf_free(&a->held);
    a->thoughts = 1;
    a->part = ANSWER_THOUGHT;
    a->n_thought += a->n_held;
    a->n_held = 0;
}

/* Returns the length of the header "thought\n" that s[0..n) begins with; 0: more text must come to
 * tell; -1: it begins otherwise.  White space may stand before the header, and \r before its
 * newline. */
static int header_length(const char *s, size_t n) {
    static const char word[] = "thought";
    size_t i = 0, k = 0;
    while (i < n && (s[i] == ' ' || s[i] == '\n' || s[i] == '\r')) i++;
    while (i < n && word[k] && s[i] == word[k]) i++, k++;
    if (i == n) return 0;
    if (word[k]) return -1;
    if (s[i] == '\r' && ++i == n) return 0;
    return s[i] == '\n' ? (int)i + 1 : -1;
}

/* The take_in_… functions take the next character c[0..n) in one state of a->part.
 *
 * ANSWER_BEGIN: content begins, unless the text is one of two things whose opening token models
 * leave out.  First, the header of a thought, before any content.  If a thought was asked for and
 * none has come yet, the header opens it.  Otherwise the text may be an answer that reads like a
 * header: it is held until a `<channel|>` shows that it was a thought, or the answer ends.  Second,
 * a call of one of the request's tools. */
static void take_in_begin(Answer *a, const char *c, size_t n, Buf *content, Buf *thought) {
    buf_add(&a->held, c, n);
    int header = a->shown ? -1 : header_length(a->held.data, a->held.len), is_header = header >= 0;
    int is_call = call_begins(a->held.data, a->held.len, a->start.tools);
    if (is_call == 2) warn(a, LEFT_AS_TEXT);
    if (is_call == 1) {
        buf_add(&a->call, a->held.data, a->held.len);
        buf_free(&a->held);
        a->part = ANSWER_CALL;
        a->bare = 1;
    } else if (header > 0 && a->thoughts && !a->n_thought) open_thought(a);
    else if (!is_header && is_call) release(a, ANSWER_CONTENT, content, thought);
}

static int is_name_char(char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') ||
           c == '_' || c == '-';
}

/* ANSWER_NAME: the name of a channel, one word and a newline, is dropped; the text of any channel
 * counts as thought.  A `<|channel>` without a name opens a thought if thoughts are expected;
 * otherwise it is a stray token in front of content. */
static void take_in_name(Answer *a, const char *c, size_t n, Buf *content, Buf *thought) {
    int is_header = a->held.len && is_text(a->held.data, a->held.len, "thought");
    if (*c == '\r' && a->held.len) return;
    if ((*c == '\n' && a->held.len) || (is_header && (*c == ' ' || *c == ':'))) {
        open_thought(a);
    } else if (is_name_char(*c) && a->held.len < MAX_CHANNEL_NAME) {
        buf_add(&a->held, c, n);
    } else {
        release(a, a->thoughts ? ANSWER_THOUGHT : ANSWER_CONTENT, content, thought);
        if (*c != '\n') put_answer(a, c, n, content, thought);
    }
}

/* ANSWER_THOUGHT, when the prompt opened the thought: the model may write the header again at its
 * beginning; the repetition is dropped. */
static void take_in_open_thought(Answer *a, const char *c, size_t n, Buf *content, Buf *thought) {
    buf_add(&a->held, c, n);
    a->echo = header_length(a->held.data, a->held.len) == 0;
    if (a->echo) return;
    if (header_length(a->held.data, a->held.len) > 0) buf_free(&a->held);
    else release(a, ANSWER_THOUGHT, content, thought);
}

/* ANSWER_TURN: the header of the model's turn is dropped, and the answer begins again behind it. */
static void take_in_turn(Answer *a, const char *c, size_t n, Buf *content, Buf *thought) {
    buf_add(&a->held, c, n);
    if (!begins_like(a->held.data, a->held.len, ROLE)) release(a, ANSWER_CONTENT, content, thought);
    else if (a->held.len == strlen(ROLE)) {
        buf_free(&a->held);
        a->part = ANSWER_BEGIN;
    }
}

/* Takes the next character, whose bytes are c[0..n). */
static void take_char(Answer *a, const char *c, size_t n, Buf *content, Buf *thought) {
    switch (a->part) {
    case ANSWER_BEGIN: take_in_begin(a, c, n, content, thought); break;
    case ANSWER_NAME: take_in_name(a, c, n, content, thought); break;
    case ANSWER_TURN: take_in_turn(a, c, n, content, thought); break;
    case ANSWER_CALL: buf_add(&a->call, c, n); break;
    case ANSWER_THOUGHT:
        if (a->echo) {
            take_in_open_thought(a, c, n, content, thought);
            break;
        }
        put_answer(a, c, n, content, thought);
        break;
    default: put_answer(a, c, n, content, thought);
    }
}

/* Returns how many of the invalid bytes at s one U+FFFD replaces: as many as could have begun a
 * character, at least one.  Unicode calls that a maximal subpart; Python's errors="replace" does
 * the same. */
static size_t bad_utf8(const char *s, size_t n) {
    size_t len = 1;
    while (len < n && utf8_char(s, len + 1) < 0) len++;
    return len;
}

/* Takes all whole characters from a->partial.  all: 1: nothing follows, so an incomplete character
 * at the end is invalid. */
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

/* Adds text of a call to content or thought, with ordinary quotes. */
static void put_call_text(Buf *out, const char *text, size_t n) {
    for (size_t i = 0; i < n; i++) buf_add(out, text[i] == CALL_QUOTE ? "\"" : text + i, 1);
}

/* A channel inside a call ends.  Its text begins at byte a->header of the call.  If the text begins
 * with the header of a channel, the header is removed from the call.  If the channel is a thought,
 * its text moves from the call to the thought. */
static void end_channel_in_call(Answer *a, Buf *thought) {
    size_t from = (size_t)a->header, n = a->call.len - from, name = 0;
    const char *text = a->call.data ? a->call.data + from : "";
    while (name < n && is_name_char(text[name])) name++;
    int is_header = name && (name == n ? is_text(text, n, "thought") : text[name] == '\n');
    int ends_line = n && text[n - 1] == '\n';
    size_t skip = name == n ? name : name + 1;
    a->header = -1;
    if (!is_header) return;
    a->cut_in_call = 1;
    if (!is_text(text, name, "thought")) {
        memmove(a->call.data + from, text + skip, n - skip);
        a->call.len -= skip;
        return;
    }
    if (n > skip) put_call_text(thought, text + skip, n - skip - (size_t)ends_line);
    a->call.len = from;
}

/* Adds each line of `lines` to the warnings. */
static void warn_each(Answer *a, const Buf *lines) {
    for (size_t i = 0, n; i < lines->len; i += n + 1) {
        Buf line = {0};
        n = strcspn(lines->data + i, "\n");
        buf_add(&line, lines->data + i, n + 1);
        warn(a, line.data);
        buf_free(&line);
    }
}

/* Adds a line for each mend that was made here, around the call, and notes the mends in the
 * call. */
static void note_mends(const Answer *a, int bare, int closed, ToolCall *call, Buf *lines) {
    const struct { int is; const char *what; } mend[] = {
        {bare, "its opening token was missing"}, {!closed, "its end was missing"},
        {a->cut_in_call, "a channel inside of it was taken out"},
    };
    for (int i = 0; i < 3; i++) {
        if (!mend[i].is) continue;
        buf_printf(lines, "the call of %s was mended: %s\n", call->name, mend[i].what);
        call->mended = 1;
    }
}

/* The call is complete, or the answer goes on without its end.  Adds the call to a->calls or, if it
 * cannot be read, to the content as text.  closed: 1 if the model ended the call. */
static void end_call(Answer *a, int closed, Buf *content, Buf *thought) {
    ToolCall call;
    Buf lines = {0};
    size_t at = 0, used;
    int how = closed ? CALL_CLOSED : 0;
    if (a->start.constrained && !a->bare) how |= CALL_CONSTRAINED;
    if (a->header >= 0) end_channel_in_call(a, thought);
    a->shown = 1;
    buf_add(&a->call, "", 0);           /* a call without a token is an empty text, and not NULL */
    do {                                /* once, unless tokens between two calls are missing */
        const char *text = a->call.data + at;
        size_t n = a->call.len - at;
        const char *why = call_read(text, n, a->start.tools, how, &call, &lines, &used);
        if (why) {
            buf_printf(&lines, "a tool call could not be read and was left as text: %s\n", why);
            put_call_text(content, text, n);
            a->part = ANSWER_CONTENT;
            break;
        }
        note_mends(a, a->bare || at, closed && used == n, &call, &lines);
        a->calls = xrealloc(a->calls, a->n_calls + 1, sizeof *a->calls);
        a->calls[a->n_calls++] = call;
        a->part = ANSWER_BEGIN;         /* content, or a call without its opening token */
        at += used;
    } while (at < a->call.len);
    warn_each(a, &lines);
    a->cut_in_call = 0;
    a->bare = 0;
    buf_free(&lines);
    buf_free(&a->call);
}

static void open_call(Answer *a) {
    a->part = ANSWER_CALL;
    a->header = -1;
}

/* ---- control tokens ---- */

/* Returns the length of the header that the held text begins with, "thought\n", or "thought" where
 * that is all of the text; or 0. */
static size_t held_header(const Answer *a) {
    size_t len = a->held.len, name = strlen("thought");
    if (a->shown || a->part != ANSWER_BEGIN || !len) return 0;
    int n = header_length(a->held.data, len);
    if (n > 0) return (size_t)n;
    return n == 0 && len >= name && is_text(a->held.data + len - name, name, "thought") ? len : 0;
}

/* `<channel|>`, or another token that ends every open channel and call.  The name of a channel
 * without text is dropped.  A header in the held text, whose `<|channel>` was missing, is dropped,
 * too: the text behind it is a thought. */
static void end_channel(Answer *a, Buf *content, Buf *thought) {
    take_partial(a, 1, content, thought);
    if (a->part == ANSWER_THOUGHT && a->held.len) release(a, ANSWER_THOUGHT, content, thought);
    a->echo = 0;
    if (a->part == ANSWER_CALL) end_call(a, 0, content, thought);
    size_t header = held_header(a);
    if (header) {
        Buf text = a->held;
        a->held = (Buf){0};
        open_thought(a);
        put_answer(a, text.data + header, text.len - header, content, thought);
        buf_free(&text);
    } else if (a->part == ANSWER_BEGIN || a->part == ANSWER_TURN) {
        release(a, ANSWER_CONTENT, content, thought);
    }
    buf_free(&a->held);
    a->n_held = 0;
    a->part = ANSWER_CONTENT;
}

/* Whether the name of a control token belongs to the answer's text.  The control tokens of the
 * template do not.  A tokenizer.model also lists pieces such as <table> as control tokens: those
 * do. */
static int is_shown(const char *name, size_t n) {
    static const char *const hidden[] = {"<pad>", "<eos>", "<bos>", "<unk>", "<mask>"};
    for (size_t i = 0; i < sizeof hidden / sizeof *hidden; i++)
        if (is_text(name, n, hidden[i])) return 0;
    return n < 2 || (memcmp(name, "<|", 2) && memcmp(name + n - 2, "|>", 2));
}

/* Takes a control token inside a call, and drops one that has no meaning there. */
static void take_control_in_call(Answer *a, int id, Buf *content, Buf *thought) {
    take_partial(a, 1, content, thought);
    if (id == a->quote) buf_add(&a->call, (char[]){CALL_QUOTE}, 1);
    else if (id == a->call_end) end_call(a, 1, content, thought);
    else if (id == a->response) end_call(a, 0, content, thought);
    else if (id == a->channel) a->header = (long)a->call.len;
    else if (id == a->channel_end && a->header >= 0) end_channel_in_call(a, thought);
    else if (id == a->call_begin) {
        end_call(a, 0, content, thought);
        open_call(a);
    }
}

/* Takes a control token (not called for raw text).  A call ends a thought; <|"|> outside a call is
 * an ordinary quote.  Returns 1 when the token's name is text, which the caller then takes. */
static int take_control(Answer *a, int id, const char *name, size_t n, Buf *content, Buf *thought) {
    int in_content = a->part == ANSWER_CONTENT && a->shown;
    a->stray |= in_content && id == a->channel_end;
    if (in_content && a->start.tools && (id == a->quote || id == a->call_end))
        warn(a, LEFT_AS_TEXT);
    if (a->part == ANSWER_CALL) {
        take_control_in_call(a, id, content, thought);
    } else if (id == a->channel || id == a->channel_end || id == a->call_begin) {
        end_channel(a, content, thought);
        if (id == a->call_begin) open_call(a);
        else a->part = id == a->channel ? ANSWER_NAME : ANSWER_BEGIN;
    } else if (id == a->turn) {
        a->cut |= a->part == ANSWER_THOUGHT;
        end_channel(a, content, thought);
        a->part = ANSWER_TURN;
    } else if (id == a->quote) {
        take_partial(a, 1, content, thought);
        take_char(a, "\"", 1, content, thought);
    } else return is_shown(name, n);
    return 0;
}

static int is_thought(const Answer *a) {
    return a->part == ANSWER_NAME || a->part == ANSWER_THOUGHT;
}

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
    int may_be_header = a->part == ANSWER_BEGIN && !a->shown && a->held.len &&
                        header_length(a->held.data, a->held.len) > 0;
    if (may_be_header) warn(a, "the answer may be a thought: it begins with the header of one\n");
    if (a->part == ANSWER_BEGIN) release(a, ANSWER_CONTENT, content, thought);
    if (a->part == ANSWER_THOUGHT && a->held.len) release(a, ANSWER_THOUGHT, content, thought);
    if (a->part == ANSWER_THOUGHT && a->newline) buf_puts(thought, "\n");
    if ((is_thought(a) || a->cut) && !a->shown)
        warn(a, "the thought did not end: there is no answer\n");
    else if (a->n_thought && !a->shown)
        warn(a, "nothing follows the thought: there is no answer\n");
    a->newline = 0;
}

void message_begin(Buf *out, const Buf *content, const Buf *thought, const ToolCall *calls,
                   int n_calls, int n_prompt) {
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
