/* chat.c - the conversation's grammar.  See chat.h.
 *
 * The law is the published chat template (chat_template.jinja of the instruction-tuned checkpoints); its
 * macros and variables are cited by name; what becomes of an image or a video is transformers' processing_gemma4.py.  Left
 * out for now: tools.  Where a list or null as the system message would print Python's notation of it (the template only
 * trims it), it is read here as in any other message. */
#include "chat.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "json.h"
#include "media.h"

#define HEADER "thought\n"              /* what follows the `<|channel>` of a thought: the channel's name */

/* ---- the prompt as it is written ---- */

typedef struct {
    const Tokenizer *t;
    Prompt *out;
    Buf plain;                          /* text since the last control token */
    int media;                          /* parts with images or videos so far */
    int i;                              /* number of the message that is being written, for errors */
    Error *err;
} Writer;

static void put_text(Writer *w, const char *s, size_t n) {
    buf_add(&w->plain, s, n);
    buf_add(&w->out->text, s, n);
}

static void put_string(Writer *w, const char *s) { put_text(w, s, strlen(s)); }

/* Between two control tokens everything is one piece for the tokenizer, the template's words and the user's
 * alike, since a token may span both.  Controls are off: `<turn|>` in a message is seven characters. */
static void encode_plain(Writer *w) {
    if (w->plain.len) tokenizer_encode(w->t, w->plain.data, w->plain.len, 0, &w->out->ids);
    buf_drop(&w->plain, w->plain.len);
}

static int put_control(Writer *w, const char *name) {
    int id = tokenizer_control(w->t, name);
    if (id < 0) return fail(w->err, "the vocabulary has no control token %s", name);
    encode_plain(w);
    ids_add(&w->out->ids, id);
    buf_puts(&w->out->text, name);
    return 0;
}

/* ---- trimming and stripping ---- */

/* The template's `trim` is Python's str.strip(): it takes off what Unicode calls white space, and the four
 * separators 1c..1f.  1 when the n bytes (1 to 3) are such a character. */
static int is_space(const unsigned char *s, size_t n) {
    if (n == 1) return (s[0] >= 9 && s[0] <= 13) || (s[0] >= 0x1c && s[0] <= ' ');
    if (n == 2) return s[0] == 0xc2 && (s[1] == 0x85 || s[1] == 0xa0);              /* U+0085 U+00A0 */
    if (s[0] == 0xe2 && s[1] == 0x80)                           /* U+2000..U+200A U+2028 U+2029 U+202F */
        return (s[2] >= 0x80 && s[2] <= 0x8a) || s[2] == 0xa8 || s[2] == 0xa9 || s[2] == 0xaf;
    return !memcmp(s, "\xe2\x81\x9f", 3) || !memcmp(s, "\xe3\x80\x80", 3)           /* U+205F U+3000 */
        || !memcmp(s, "\xe1\x9a\x80", 3);                                           /* U+1680 */
}

static size_t space_at_front(const char *s, size_t n) {
    for (size_t k = 1; k <= 3 && k <= n; k++)
        if (is_space((const unsigned char *)s, k)) return k;
    return 0;
}

static size_t space_at_end(const char *s, size_t n) {
    for (size_t k = 1; k <= 3 && k <= n; k++)
        if (is_space((const unsigned char *)s + n - k, k)) return k;
    return 0;
}

static void put_trimmed(Writer *w, const char *s, size_t n) {
    size_t k;
    while ((k = space_at_front(s, n))) s += k, n -= k;
    while ((k = space_at_end(s, n))) n -= k;
    put_text(w, s, n);
}

static int starts_with(const char *s, const char *prefix) { return !strncmp(s, prefix, strlen(prefix)); }

/* The template's strip_thinking: of each piece before a `<channel|>` only what stands before its first
 * `<|channel>` stays.  So a thought without end takes the rest with it, and a `<channel|>` alone vanishes. */
static void strip_thinking(const char *s, Buf *out) {
    int in_thought = 0;
    while (*s) {
        if (starts_with(s, "<channel|>")) {
            in_thought = 0;
            s += strlen("<channel|>");
        } else if (starts_with(s, "<|channel>")) {
            in_thought = 1;
            s += strlen("<|channel>");
        } else {
            if (!in_thought) buf_add(out, s, 1);
            s++;
        }
    }
}

static void put_message_text(Writer *w, const char *s, int is_model) {
    if (!is_model) {
        put_trimmed(w, s, strlen(s));
        return;
    }
    Buf answer = {0};
    strip_thinking(s, &answer);
    put_trimmed(w, answer.data, answer.len);
    buf_free(&answer);
}

/* ---- messages ---- */

static int bad_message(Writer *w, const char *where, const char *what) {
    return fail(w->err, "messages[%d]%s: %s", w->i, where, what);
}

static int bad_part(Writer *w, int j, const char *where, const char *what) {
    return fail(w->err, "messages[%d].content[%d]%s: %s", w->i, j, where, what);
}

/* Types of parts that OpenAI's or transformers' requests know and this program does not. */
static int bad_part_type(Writer *w, int j, const char *type) {
    static const char *known[] = {"audio", "input_audio", "file"};
    for (size_t i = 0; i < sizeof known / sizeof *known; i++)
        if (!strcmp(type, known[i]))
            return fail(w->err, "messages[%d].content[%d].type: %s parts are not supported", w->i, j, type);
    return bad_part(w, j, ".type", "must be text, image_url or video_url");
}

/* An image or a video: <|image> n x <|image|> <image|>, or for each frame mm:ss <|image> n x <|video|> <image|>, joined by
 * spaces (replace_image_token, replace_video_token).  Without its file it stays the template's placeholder. */
static int put_media(Writer *w, int is_video) {
    const char *token = is_video ? "<|video|>" : "<|image|>";
    const Media *m = w->media < w->out->n_media ? w->out->media[w->media] : NULL;
    w->media++;
    if (!m) return put_control(w, token);
    for (int i = 0; i < m->n; i++) {
        char time[32];
        int seconds = m->seconds[i];
        snprintf(time, sizeof time, "%s%02d:%02d ", i ? " " : "", seconds / 60, seconds % 60);
        if (is_video) put_string(w, time);
        if (put_control(w, "<|image>")) return -1;
        w->out->span = xrealloc(w->out->span, (w->out->n_spans + 1) * sizeof *w->out->span);
        w->out->span[w->out->n_spans++] = (Span){w->out->ids.n, &m->picture[i]};
        for (int k = 0; k < m->picture[i].n; k++)
            if (put_control(w, token)) return -1;
        if (put_control(w, "<image|>")) return -1;
    }
    return 0;
}

/* The template trims each text part alone and joins them with nothing between. */
static int put_part(Writer *w, const cJSON *part, int j, int is_model) {
    if (!cJSON_IsObject(part)) return bad_part(w, j, "", "must be an object");
    const char *type = cJSON_GetStringValue(json_field(part, "type"));
    if (!type) return bad_part(w, j, ".type", "must be a string");
    if (!strcmp(type, "image") || !strcmp(type, "image_url")) return put_media(w, 0);
    if (!strcmp(type, "video") || !strcmp(type, "video_url")) return put_media(w, 1);
    if (strcmp(type, "text")) return bad_part_type(w, j, type);
    const char *text = cJSON_GetStringValue(json_field(part, "text"));
    if (!text) return bad_part(w, j, ".text", "must be a string");
    put_message_text(w, text, is_model);
    return 0;
}

/* No content and null are an empty text, as in the template.  (cJSON ends a string at \u0000.) */
static int put_content(Writer *w, const cJSON *message, int is_model) {
    const cJSON *content = json_field(message, "content"), *part;
    if (!content) return 0;
    if (cJSON_IsString(content)) {
        put_message_text(w, content->valuestring, is_model);
        return 0;
    }
    if (!cJSON_IsArray(content)) return bad_message(w, ".content", "must be a string or a list of parts");
    int j = 0;
    cJSON_ArrayForEach(part, content)
        if (put_part(w, part, j++, is_model)) return -1;
    return 0;
}

static int is_empty(const cJSON *item) {
    return !item || (cJSON_IsArray(item) && !item->child);
}

/* The role as the template writes it, or NULL with err when the message has none or one that is unknown.
 * The template would take any word as a role; here that is an error. */
static const char *message_role(Writer *w, const cJSON *message) {
    if (!cJSON_IsObject(message)) return bad_message(w, "", "must be an object"), NULL;
    const char *role = cJSON_GetStringValue(json_field(message, "role"));
    if (!role) return bad_message(w, ".role", "must be a string"), NULL;
    if (!strcmp(role, "tool")) return bad_message(w, ".role", "tool messages are not supported yet"), NULL;
    if (!is_empty(json_field(message, "tool_calls")))
        return bad_message(w, ".tool_calls", "tool calls are not supported yet"), NULL;
    if (!is_empty(json_field(message, "tool_responses")))
        return bad_message(w, ".tool_responses", "tool responses are not supported yet"), NULL;

    static const char *known[][2] = {
        {"system", "system"}, {"developer", "developer"}, {"user", "user"}, {"assistant", "model"},
    };
    for (size_t i = 0; i < sizeof known / sizeof *known; i++)
        if (!strcmp(role, known[i][0])) return known[i][1];
    return bad_message(w, ".role", "must be system, developer, user or assistant"), NULL;
}

static int open_turn(Writer *w, const char *role) {
    if (put_control(w, "<|turn>")) return -1;
    put_string(w, role);
    put_string(w, "\n");
    return 0;
}

static int close_turn(Writer *w) {
    if (put_control(w, "<turn|>")) return -1;
    put_string(w, "\n");
    return 0;
}

/* The system turn in front.  message: the system message, or NULL when thinking alone asks for the turn. */
static int put_system(Writer *w, const cJSON *message, int thinking) {
    if (open_turn(w, "system")) return -1;
    if (thinking) {
        if (put_control(w, "<|think|>")) return -1;
        put_string(w, "\n");
    }
    if (message && put_content(w, message, 0)) return -1;
    return close_turn(w);
}

/* A second assistant message in a row goes on after the first one's `<turn|>` without a `<|turn>model` of its
 * own (continue_same_model_turn).  reasoning_content stands in the template only beside tool calls. */
static int put_message(Writer *w, const cJSON *message, const char *role, const char *role_before) {
    int is_model = !strcmp(role, "model");
    int goes_on = is_model && !strcmp(role_before, "model");
    if (!goes_on && open_turn(w, role)) return -1;
    if (put_content(w, message, is_model)) return -1;
    return close_turn(w);
}

/* The template opens the model's turn whatever the last message is, an assistant's too. */
static int put_generation_prompt(Writer *w, int thinking) {
    if (open_turn(w, "model")) return -1;
    encode_plain(w);
    w->out->n_stable = w->out->ids.n;
    if (thinking) return 0;
    if (put_control(w, "<|channel>")) return -1;
    put_string(w, HEADER);
    return put_control(w, "<channel|>");
}

static int put_prompt(Writer *w, const cJSON *messages, int thinking) {
    if (!cJSON_IsArray(messages) || !messages->child)
        return fail(w->err, "messages: must be a list of at least one message");
    const cJSON *m = messages->child;
    const char *role = message_role(w, m), *role_before = "";
    if (!role || put_control(w, "<bos>")) return -1;

    /* Only the first message is the system's; further ones are turns in their place, and a developer's is
     * then called by its own name. */
    int has_system = !strcmp(role, "system") || !strcmp(role, "developer");
    if ((has_system || thinking) && put_system(w, has_system ? m : NULL, thinking)) return -1;
    if (has_system) m = m->next, w->i++;

    for (; m; m = m->next, w->i++, role_before = role)
        if (!(role = message_role(w, m)) || put_message(w, m, role, role_before)) return -1;
    return put_generation_prompt(w, thinking);
}

int chat_render(const Tokenizer *t, const cJSON *messages, int thinking, Prompt *out, Error *err) {
    Writer w = {.t = t, .out = out, .err = err};
    int bad = put_prompt(&w, messages, thinking);
    buf_free(&w.plain);
    return bad;
}

void prompt_free(Prompt *p) {
    ids_free(&p->ids);
    buf_free(&p->text);
    free(p->media);
    free(p->span);
    *p = (Prompt){0};
}

/* ---- the answer as it streams in ----
 *
 * What is asked for is `<|channel>thought\n…\n<channel|>` and then the answer, or the answer alone.  What
 * comes is less orderly: a `<|channel>` twice, or alone before an answer; a `<channel|>` with nothing open;
 * a second thought, an empty one at the end, one without end; a `thought\n<channel|>` whose opening is
 * missing.  Nothing of these marks may reach the reader, and nothing that is answer may be lost. */

enum {
    BEGIN,                              /* of the whole answer, while it reads like a thought's header */
    CONTENT,
    NAME,                               /* after <|channel>, while what comes can be a channel's name */
    THOUGHT,
};

#define MAX_NAME 32

void chat_stream_open(ChatStream *s, const Tokenizer *t, int thinking) {
    *s = (ChatStream){
        .t = t, .state = BEGIN, .thoughts = thinking != 0,
        .channel = tokenizer_control(t, "<|channel>"), .channel_end = tokenizer_control(t, "<channel|>"),
    };
}

/* Adds text to the channel that is open.  A newline at the end of a thought belongs to the `<channel|>` that
 * may follow, so it is held back until more of a thought comes. */
static void put_answer(ChatStream *s, const char *text, size_t n, Buf *content, Buf *thought) {
    if (!n) return;
    if (s->state == CONTENT) {
        buf_add(content, text, n);
        return;
    }
    if (s->newline) buf_puts(thought, "\n");
    s->newline = text[n - 1] == '\n';
    buf_add(thought, text, n - s->newline);
}

/* What was read as a header was none: it is the beginning of the text. */
static void unread_name(ChatStream *s, int state, Buf *content, Buf *thought) {
    s->state = state;
    put_answer(s, s->name.data, s->name.len, content, thought);
    buf_free(&s->name);
}

static void open_thought(ChatStream *s) {
    buf_free(&s->name);
    s->thoughts = 1;
    s->state = THOUGHT;
}

/* With thinking on, an answer that begins with the header of a thought is a thought whose `<|channel>` is
 * missing.  With thinking off it may be an answer: only a `<channel|>` right behind it shows that it is not. */
static void take_in_begin(ChatStream *s, const char *c, int n, Buf *content, Buf *thought) {
    buf_add(&s->name, c, n);
    if (s->name.len > strlen(HEADER) || memcmp(s->name.data, HEADER, s->name.len))
        unread_name(s, CONTENT, content, thought);
    else if (s->thoughts && s->name.len == strlen(HEADER))
        open_thought(s);
}

static int is_name_char(char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '_' || c == '-';
}

/* A name is one word and a newline, and it is dropped; the text of any channel counts as thought.  A
 * `<|channel>` with no name behind it opens a thought where thoughts are expected; elsewhere it is a stray
 * token in front of an answer. */
static void take_in_name(ChatStream *s, const char *c, int n, Buf *content, Buf *thought) {
    if (*c == '\n' && s->name.len) {
        open_thought(s);
    } else if (is_name_char(*c) && s->name.len < MAX_NAME) {
        buf_add(&s->name, c, n);
    } else {
        unread_name(s, s->thoughts ? THOUGHT : CONTENT, content, thought);
        if (*c != '\n') put_answer(s, c, n, content, thought);
    }
}

static void take_char(ChatStream *s, const char *c, int n, Buf *content, Buf *thought) {
    if (s->state == BEGIN) take_in_begin(s, c, n, content, thought);
    else if (s->state == NAME) take_in_name(s, c, n, content, thought);
    else put_answer(s, c, n, content, thought);
}

/* Length of the bytes at s that U+FFFD stands for once: the longest that could have begun a character, or
 * one byte (Unicode's "maximal subpart", as Python's errors="replace" does it). */
static int bad_utf8(const char *s, size_t n) {
    int len = 1;
    while ((size_t)len < n && utf8_char(s, len + 1) < 0) len++;
    return len;
}

/* Takes the whole characters from s->partial; with `all` also the beginning of one at the end. */
static void take_partial(ChatStream *s, int all, Buf *content, Buf *thought) {
    const char *p = s->partial.data;
    size_t i = 0, len = s->partial.len;
    while (i < len) {
        int n = utf8_char(p + i, len - i);
        if (n < 0 && !all) break;
        if (n > 0) {
            take_char(s, p + i, n, content, thought);
            i += n;
        } else {
            take_char(s, "\xef\xbf\xbd", 3, content, thought);
            i += bad_utf8(p + i, len - i);
        }
    }
    buf_drop(&s->partial, i);
}

/* `<channel|>`, or something else that no channel goes beyond.  The name of a channel without text goes, and
 * so does a header at the beginning whose `<|channel>` is missing. */
static void end_channel(ChatStream *s, Buf *content, Buf *thought) {
    take_partial(s, 1, content, thought);
    int is_header = s->name.len >= strlen(HEADER) - 1;          /* in BEGIN: with or without its newline */
    if (s->state == BEGIN && !is_header) unread_name(s, CONTENT, content, thought);
    buf_free(&s->name);
    s->state = CONTENT;
}

static int is_name(const char *s, size_t n, const char *name) { return n == strlen(name) && !memcmp(s, name, n); }

/* Whether a control token shows in an answer.  Those of tool calls do, as long as nobody reads them; those
 * that frame turns and media do not.  Names of any other shape come from a tokenizer.model, which lists
 * pieces such as <table> the same way: they are text. */
static int is_shown(const char *name, size_t n) {
    static const char *shown[] = {
        "<|tool>", "<tool|>", "<|tool_call>", "<tool_call|>", "<|tool_response>", "<tool_response|>", "<|\"|>",
    };
    static const char *hidden[] = {"<pad>", "<eos>", "<bos>", "<unk>", "<mask>"};
    for (size_t i = 0; i < sizeof shown / sizeof *shown; i++)
        if (is_name(name, n, shown[i])) return 1;
    for (size_t i = 0; i < sizeof hidden / sizeof *hidden; i++)
        if (is_name(name, n, hidden[i])) return 0;
    return n < 2 || (memcmp(name, "<|", 2) && memcmp(name + n - 2, "|>", 2));
}

void chat_stream_feed(ChatStream *s, int id, Buf *content, Buf *thought) {
    size_t n;
    const char *text = tokenizer_text(s->t, id, &n);
    if (!n) return;
    if (s->raw) {
        s->state = CONTENT;
    } else if (id == s->channel || id == s->channel_end) {
        end_channel(s, content, thought);
        if (id == s->channel) s->state = NAME;
        return;
    } else if (tokenizer_is_control(s->t, id)) {
        if (!is_shown(text, n)) return;
        if (is_name(text, n, "<|tool_call>")) end_channel(s, content, thought);    /* a call ends the thought */
    }
    buf_add(&s->partial, text, n);
    take_partial(s, 0, content, thought);
}

void chat_stream_end(ChatStream *s, Buf *content, Buf *thought) {
    take_partial(s, 1, content, thought);
    if (s->state == BEGIN) unread_name(s, CONTENT, content, thought);
    if (s->state == THOUGHT && s->newline) buf_puts(thought, "\n");
    s->newline = 0;
}

void chat_stream_free(ChatStream *s) {
    buf_free(&s->name);
    buf_free(&s->partial);
}
