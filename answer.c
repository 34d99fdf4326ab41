/* answer.c - the answer as it streams in.  See answer.h.
 *
 * What is asked for is `<|channel>thought\n…\n<channel|>` and then content, calls, or both.  What
 * comes is less orderly: a `<|channel>` twice, or alone in front of content; a `<channel|>` with nothing
 * open; a second thought, an empty one at the end, one without end; a `thought\n…<channel|>` whose
 * opening is missing; a call without its opening or its end; a channel inside of a call; a turn's header.
 * None of these marks may reach the reader, and no content may be lost: a call that cannot be read
 * becomes content, with a warning. */
#define _GNU_SOURCE
#include "answer.h"

#include <stdlib.h>
#include <string.h>

#include "chat.h"
#include "json.h"

#define MAX_NAME 32                     /* characters of a channel's name; longer words are text */
#define ROLE "model\n"                  /* what follows the `<|turn>` of the model's turn */

void answer_open(Answer *a, const Tokenizer *t, AnswerStart start) {
    *a = (Answer){
        .start = start, .t = t, .thoughts = start.thinking || start.in_thought, .header = -1,
        .channel = tokenizer_control(t, "<|channel>"), .channel_end = tokenizer_control(t, "<channel|>"),
        .call_begin = tokenizer_control(t, "<|tool_call>"), .call_end = tokenizer_control(t, "<tool_call|>"),
        .quote = tokenizer_control(t, QUOTE), .response = tokenizer_control(t, "<|tool_response>"),
        .turn = tokenizer_control(t, "<|turn>"), .turn_end = tokenizer_control(t, "<turn|>"),
    };
    a->echo = start.in_thought;
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

/* Adds a line to the warnings, unless it stands there already. */
static void warn(Answer *a, const char *line) {
    const char *at = a->warnings.len ? strstr(a->warnings.data, line) : NULL;
    if (!at) buf_puts(&a->warnings, line);
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
    a->thoughts = 1;
    a->part = ANSWER_THOUGHT;
    a->n_thought += a->n_held;
    a->n_held = 0;
}

/* The header of a thought without its token at s[0..n): its length, 0 when it may become one, -1 when it is none.  White space
 * may stand in front of it, and a carriage return before its newline. */
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

/* Content begins.  Two things that the model leaves the opening token out of are looked for:
 * - The header of a thought, before any content.  With thinking on, a thought follows the first one.
 *   Otherwise the text may be an answer: it is held until a `<channel|>` shows that it was none.
 * - A call of one of the request's tools. */
static void take_in_begin(Answer *a, const char *c, size_t n, Buf *content, Buf *thought) {
    buf_add(&a->held, c, n);
    int header = a->shown ? -1 : header_length(a->held.data, a->held.len), is_header = header >= 0;
    int is_call = call_begins(a->held.data, a->held.len, a->start.tools);
    if (is_call == 2) warn(a, "what reads like a tool call, but has no opening token, was left as text\n");
    if (is_call == 1) {
        buf_add(&a->call, a->held.data, a->held.len);
        buf_free(&a->held);
        a->part = ANSWER_CALL;
        a->bare = 1;
    } else if (header > 0 && a->thoughts && !a->n_thought) open_thought(a);
    else if (!is_header && is_call) release(a, ANSWER_CONTENT, content, thought);
}

static int is_name_char(char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '_' || c == '-';
}

/* A name is one word and a newline, and it is dropped; the text of any channel counts as thought.  A
 * `<|channel>` with no name behind it opens a thought where thoughts are expected; elsewhere it is a stray
 * token in front of content. */
static void take_in_name(Answer *a, const char *c, size_t n, Buf *content, Buf *thought) {
    int is_header = a->held.len && is_text(a->held.data, a->held.len, "thought");
    if (*c == '\r' && a->held.len) return;
    if ((*c == '\n' && a->held.len) || (is_header && (*c == ' ' || *c == ':'))) {
        open_thought(a);
    } else if (is_name_char(*c) && a->held.len < MAX_NAME) {
        buf_add(&a->held, c, n);
    } else {
        release(a, a->thoughts ? ANSWER_THOUGHT : ANSWER_CONTENT, content, thought);
        if (*c != '\n') put_answer(a, c, n, content, thought);
    }
}

/* Where the prompt ended inside of a thought the model may write the header again: it is dropped. */
static void take_in_open_thought(Answer *a, const char *c, size_t n, Buf *content, Buf *thought) {
    buf_add(&a->held, c, n);
    a->echo = header_length(a->held.data, a->held.len) == 0;
    if (a->echo) return;
    if (header_length(a->held.data, a->held.len) > 0) buf_free(&a->held);
    else release(a, ANSWER_THOUGHT, content, thought);
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

/* A channel inside of a call ends: its name goes, and what a thought holds is thought, not call. */
static void end_channel_in_call(Answer *a, Buf *thought) {
    size_t from = (size_t)a->header, n = a->call.len - from, name = 0;
    const char *text = a->call.data ? a->call.data + from : "";
    while (name < n && is_name_char(text[name])) name++;
    int is_header = name && (name == n ? is_text(text, n, "thought") : text[name] == '\n'), ends_line = n && text[n - 1] == '\n';
    size_t skip = name == n ? name : name + 1;
    a->header = -1;
    if (!is_header) return;
    a->cut_in_call = 1;
    if (!is_text(text, name, "thought")) {
        memmove(a->call.data + from, text + skip, n - skip);
        a->call.len -= skip;
        return;
    }
    if (n > skip) put_call_text(thought, text + skip, n - skip - (size_t)(ends_line && n - skip > 0));
    a->call.len = from;
}

/* The call is complete, or nothing more of it comes: it goes into a->calls, or into the content.
 * closed: 1 when the model ended the call itself. */
static void end_call(Answer *a, int closed, Buf *content, Buf *thought) {
    ToolCall call;
    if (a->header >= 0) end_channel_in_call(a, thought);
    int how = (closed ? CALL_CLOSED : 0) | (a->start.held && !a->bare ? CALL_HELD : 0);
    Buf mends = {0};
    const char *why = call_read(a->call.data, a->call.len, a->start.tools, how, &call, &mends);
    for (char *rest = mends.data, *one; rest && (one = strsep(&rest, "\n")) && *one;) {
        Buf mend = {0};
        buf_printf(&mend, "%s\n", one);
        warn(a, mend.data);
        buf_free(&mend);
    }
    buf_free(&mends);
    a->part = ANSWER_CONTENT;
    a->shown = 1;
    Buf line = {0};
    if (why) {
        buf_printf(&line, "a tool call could not be read and was left as text: %s\n", why);
        warn(a, line.data);
        put_call_text(content, a->call.data, a->call.len);
    } else {
        const struct { int is; const char *what; } own[] = {
            {a->bare, "its opening token was missing"}, {!closed, "its end was missing"},
            {a->cut_in_call, "a channel inside of it was taken out"},
        };
        for (int i = 0; i < 3; i++) {
            line.len = 0;
            buf_printf(&line, "the call of %s was mended: %s\n", call.name, own[i].what);
            if (own[i].is) warn(a, line.data);
            call.mended |= own[i].is;
        }
        a->calls = xrealloc(a->calls, a->n_calls + 1, sizeof *a->calls);
        a->calls[a->n_calls++] = call;
        a->part = ANSWER_BEGIN;         /* of content, or of a call whose opening token is missing */
    }
    buf_free(&line);
    a->cut_in_call = 0;
    a->bare = 0;
    buf_free(&a->call);
}

static void open_call(Answer *a) {
    a->part = ANSWER_CALL;
    a->header = -1;
}

/* ---- control tokens ---- */

/* The length of a header in what is held, with or without its newline; 0: there is none. */
static size_t held_header(const Answer *a) {
    int n = a->shown || a->part != ANSWER_BEGIN || !a->held.len ? -1 : header_length(a->held.data, a->held.len);
    if (n > 0) return (size_t)n;
    size_t len = a->held.len, name = strlen("thought");
    return n == 0 && len >= name && !memcmp(a->held.data + len - name, "thought", name) ? len : 0;
}

/* `<channel|>`, or something else that no channel goes beyond.  The name of a channel without text goes, and
 * so does a header at the beginning whose `<|channel>` is missing; what follows that is a thought. */
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
    if (a->part == ANSWER_THOUGHT && a->held.len) release(a, ANSWER_THOUGHT, content, thought);
    if (a->part == ANSWER_THOUGHT && a->newline) buf_puts(thought, "\n");
    if ((is_thought(a) || a->cut) && !a->shown) warn(a, "the thought did not end: there is no answer\n");
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
