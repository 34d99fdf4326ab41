/* chat.c - renders a conversation as a prompt.  See chat.h.
 *
 * The reference is the chat template that Google published on 2026-07-09 (chat_template.jinja of
 * the instruction-tuned checkpoints, sha256 ae53464b…); comments give its macros and variables by
 * name.  The reference for images and videos is transformers' processing_gemma4.py.
 *
 * This file goes on in one place where the template fails with an error.  Arguments of a call that
 * come as a string of JSON, as in OpenAI's API, are read as JSON; arguments that are no object are
 * written as they came, so that a conversation can continue after a call that was cut off. */
#define _GNU_SOURCE
#include "chat.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "declare.h"
#include "json.h"
#include "media.h"

/* ---- the prompt while it is written ---- */

/* The template's macros have no result, so the functions that render them have none either: they
 * set w->bad, which put_prompt checks at the end.  Other functions return -1 with err. */
typedef struct {
    const Tokenizer *t;
    Prompt *out;
    ChatOptions options;
    Buf plain;                          /* text since the last control token, not encoded yet */
    int i;                              /* number of the message being written, for errors */
    int last_user;                      /* number of the last user message, -1: none
                                         * (ns_turn.last_user_idx) */
    enum { OTHER, CALL, RESPONSE } last;        /* what was written last (ns.prev_message_type) */
    int has_thought;                    /* 1: the turn has a thought that the next user message
                                         * drops */
    int bad;                            /* 1: a control token is missing, err is set */
    Error *err;
} Writer;

static void put_text(Writer *w, const char *s, size_t n) {
    buf_add(&w->plain, s, n);
    buf_add(&w->out->text, s, n);
}

static void put_string(Writer *w, const char *s) { put_text(w, s, strlen(s)); }

/* Encodes the text since the last control token.  It is encoded as one string, the template's words
 * together with the user's, because a token may span both.  A `<turn|>` in a message is encoded as
 * seven characters, never as the control token: nobody can end a turn by writing its name. */
static void encode_plain(Writer *w) {
    if (w->plain.len) tokenizer_encode(w->t, w->plain.data, w->plain.len, 0, &w->out->ids);
    buf_drop(&w->plain, w->plain.len);
}

static int put_control(Writer *w, const char *name) {
    int id = tokenizer_control(w->t, name);
    if (id < 0) return fail(w->err, "%s: no control token %s", tokenizer_file(w->t), name);
    encode_plain(w);
    ids_add(&w->out->ids, id);
    buf_puts(&w->out->text, name);
    return 0;
}

/* ---- trimming and stripping ---- */

/* Whether the n bytes (1 to 3) are one character of white space.  The template's `trim` is Python's
 * str.strip(), which removes Unicode's white space and the four separators U+001C..U+001F. */
static int is_space(const unsigned char *s, size_t n) {
    if (n == 1) return (s[0] >= 9 && s[0] <= 13) || (s[0] >= 0x1c && s[0] <= ' ');
    /* U+0085, U+00A0 */
    if (n == 2) return s[0] == 0xc2 && (s[1] == 0x85 || s[1] == 0xa0);
    /* U+2000..U+200A, U+2028, U+2029, U+202F */
    if (s[0] == 0xe2 && s[1] == 0x80)
        return (s[2] >= 0x80 && s[2] <= 0x8a) || s[2] == 0xa8 || s[2] == 0xa9 || s[2] == 0xaf;
    /* U+205F, U+3000, U+1680 */
    return !memcmp(s, "\xe2\x81\x9f", 3) || !memcmp(s, "\xe3\x80\x80", 3) ||
           !memcmp(s, "\xe1\x9a\x80", 3);
}

/* The length in bytes of the white space character that s[0..n) begins with; 0: none. */
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

/* The template's strip_thinking: adds to out what stands outside of `<|channel>` … `<channel|>`.  A
 * thought without end reaches to the end of the text; a lone `<channel|>` is dropped. */
static void strip_thinking(const char *s, Buf *out) {
    int in_thought = 0;
    while (*s) {
        if (begins(s, "<channel|>")) {
            in_thought = 0;
            s += strlen("<channel|>");
        } else if (begins(s, "<|channel>")) {
            in_thought = 1;
            s += strlen("<|channel>");
        } else {
            if (!in_thought) buf_add(out, s, 1);
            s++;
        }
    }
}

/* Writes the text of a message: trimmed, and for the model's own messages without thoughts. */
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

/* ---- errors ---- */

/* Fails with a message about the message that is being written. */
static int bad_message(Writer *w, const char *where, const char *what) {
    return fail(w->err, "messages[%d]%s: %s", w->i, where, what);
}

/* Fails with a message about part j of message i. */
static int bad_part(Writer *w, int i, int j, const char *where, const char *what) {
    return fail(w->err, "messages[%d].content[%d]%s: %s", i, j, where, what);
}

/* ---- the parts of a content ---- */

/* Whether jinja2 takes item for true.  item may be NULL (undefined). */
static int is_true(const cJSON *item) {
    if (cJSON_IsString(item)) return *item->valuestring != 0;
    if (cJSON_IsNumber(item)) return item->valuedouble != 0;
    return cJSON_IsTrue(item) || ((cJSON_IsArray(item) || cJSON_IsObject(item)) && item->child);
}

typedef enum { TEXT_PART, IMAGE_PART, VIDEO_PART, THOUGHT_PART, NO_PART } PartKind;

/* The kind of a part by its type: the names of OpenAI's chat-completions and Responses APIs,
 * transformers and Anthropic. */
static PartKind part_kind(const char *type) {
    static const struct { const char *type; PartKind kind; } known[] = {
        {"text", TEXT_PART}, {"input_text", TEXT_PART}, {"output_text", TEXT_PART},
        {"refusal", TEXT_PART},
        {"image", IMAGE_PART}, {"image_url", IMAGE_PART}, {"input_image", IMAGE_PART},
        {"video", VIDEO_PART}, {"video_url", VIDEO_PART},
        {"thinking", THOUGHT_PART}, {"reasoning", THOUGHT_PART},
        {"reasoning.text", THOUGHT_PART}, {"reasoning.summary", THOUGHT_PART},
    };
    for (size_t i = 0; i < sizeof known / sizeof *known; i++)
        if (!strcmp(type, known[i].type)) return known[i].kind;
    return NO_PART;
}

/* Fails, because part j of message i has a type that part_kind does not know.  Types that other
 * programs accept get a message of their own. */
static int bad_part_type(Writer *w, int i, int j, const char *type) {
    static const char *const known[] = {"audio", "input_audio", "audio_url", "file", "input_file",
                                        "redacted_thinking", "resource", NULL};
    if (!is_in(type, known))
        return bad_part(w, i, j, ".type", "must be text, image_url, image or video_url");
    return fail(w->err, "messages[%d].content[%d].type: %s parts are not supported", i, j, type);
}

/* The kind of part j of message i; NO_PART with err when the part cannot be read. */
static PartKind read_part(Writer *w, int i, int j, const cJSON *part) {
    if (!cJSON_IsObject(part)) return bad_part(w, i, j, "", "must be an object"), NO_PART;
    const char *type = json_string(part, "type");
    if (!type) return bad_part(w, i, j, ".type", "must be a string"), NO_PART;
    PartKind kind = part_kind(type);
    if (kind == NO_PART) bad_part_type(w, i, j, type);
    return kind;
}

/* The text of a TEXT_PART: the field `text`, or else the field named like the type ({"type":
 * "refusal", "refusal": …}).  NULL with err when there is none. */
static const char *part_text(Writer *w, int i, int j, const cJSON *part) {
    const cJSON *text = json_field(part, "text");
    const char *type = json_string(part, "type");
    if (!text) text = json_field(part, type);
    if (!cJSON_IsString(text)) return bad_part(w, i, j, ".text", "must be a string"), NULL;
    return text->valuestring;
}

/* The image or video of a part as media_load has loaded it; NULL: there is none. */
static const Media *media_of(const Writer *w, const cJSON *part) {
    for (int i = 0; i < w->out->n_media; i++)
        if (w->out->media[i].part == part) return w->out->media[i].media;
    return NULL;
}

/* Writes an image: <|image>, as many <|image|> as it has soft tokens, <image|>.  A video: for each
 * frame mm:ss, <|image>, as many <|video|>, <image|>; frames are joined by spaces
 * (replace_image_token, replace_video_token).  Where nothing was loaded, the template's
 * placeholder: one token. */
static int put_media(Writer *w, const cJSON *part, int is_video) {
    const char *token = is_video ? "<|video|>" : "<|image|>";
    const Media *m = media_of(w, part);
    if (!m) return put_control(w, token);
    for (int i = 0; i < m->n; i++) {
        char time[32];
        int seconds = (int)fmin(m->seconds[i], 1e9);
        snprintf(time, sizeof time, "%s%02d:%02d ", i ? " " : "", seconds / 60, seconds % 60);
        if (is_video) put_string(w, time);
        if (put_control(w, "<|image>")) return -1;
        w->out->span = xrealloc(w->out->span, w->out->n_spans + 1, sizeof *w->out->span);
        w->out->span[w->out->n_spans++] = (PictureSpan){w->out->ids.n, &m->picture[i]};
        for (int k = 0; k < m->picture[i].n; k++)
            if (put_control(w, token)) return -1;
        if (put_control(w, "<image|>")) return -1;
    }
    return 0;
}

/* ---- messages ---- */

/* Writes a part of a message.  Like the template, it trims each text alone and puts nothing between
 * them.  Thoughts are not written here: put_thought writes them. */
static int put_part(Writer *w, const cJSON *part, int j, int is_model) {
    PartKind kind = read_part(w, w->i, j, part);
    if (kind == NO_PART) return -1;
    if (kind == IMAGE_PART || kind == VIDEO_PART) return put_media(w, part, kind == VIDEO_PART);
    if (kind == THOUGHT_PART && is_model) return 0;
    if (kind == THOUGHT_PART)
        return bad_part(w, w->i, j, ".type", "only the assistant has thoughts");
    const char *text = part_text(w, w->i, j, part);
    if (!text) return -1;
    put_message_text(w, text, is_model);
    return 0;
}

/* Writes the content of a message.  A content that is missing or null is an empty text, as in the
 * template; but if the assistant's message has OpenAI's field `refusal`, that is its text.  Only
 * the assistant's messages, and those with results, have a reason to have none. */
static int put_content(Writer *w, const cJSON *message, int is_model) {
    const cJSON *content = json_field(message, "content"), *part;
    const cJSON *refusal = json_field(message, "refusal");
    if (!content && is_model && cJSON_IsString(refusal)) content = refusal;
    int may_lack = is_model || is_true(json_field(message, "tool_responses"));
    if (!content && !may_lack && !w->options.is_checked)
        buf_printf(&w->out->warnings, "messages[%d].content is missing: the message is empty\n",
                   w->i);
    if (!content) return 0;
    if (cJSON_IsString(content)) {
        put_message_text(w, content->valuestring, is_model);
        return 0;
    }
    if (!cJSON_IsArray(content))
        return bad_message(w, ".content", "must be a string or a list of parts");
    int j = 0;
    cJSON_ArrayForEach(part, content)
        if (put_part(w, part, j++, is_model)) return -1;
    return 0;
}

/* Writes the content of the system message.  In a list of parts each text is trimmed and followed
 * by a space. */
static int put_system_content(Writer *w, const cJSON *message) {
    const cJSON *content = json_field(message, "content"), *part;
    int j = 0;
    if (!cJSON_IsArray(content)) return put_content(w, message, 0);
    cJSON_ArrayForEach(part, content) {
        PartKind kind = read_part(w, w->i, j, part);
        if (kind == NO_PART) return -1;
        if (kind != TEXT_PART)
            return bad_part(w, w->i, j, ".type", "must be text in a system message");
        const char *text = part_text(w, w->i, j++, part);
        if (!text) return -1;
        put_trimmed(w, text, strlen(text));
        put_string(w, " ");
    }
    return 0;
}

/* The role as the template writes it; NULL with err when the message has none, or an unknown one.
 * (The template itself writes any word as a role.) */
static const char *message_role(Writer *w, const cJSON *message) {
    if (!cJSON_IsObject(message)) return bad_message(w, "", "must be an object"), NULL;
    const char *role = json_string(message, "role");
    if (!role) return bad_message(w, ".role", "must be a string"), NULL;
    static const char *known[][2] = {
        {"system", "system"}, {"developer", "developer"}, {"user", "user"},
        {"assistant", "model"}, {"tool", "tool"},
    };
    for (size_t i = 0; i < sizeof known / sizeof *known; i++)
        if (!strcmp(role, known[i][0])) return known[i][1];
    return bad_message(w, ".role", "must be system, developer, user, assistant or tool"), NULL;
}

/* ---- tools: values, declarations, calls, responses ---- */

static void put_quoted(Writer *w, const char *s, size_t n) {
    w->bad |= put_control(w, QUOTE);
    put_text(w, s, n);
    w->bad |= put_control(w, QUOTE);
}

typedef struct {
    const cJSON *item;
    int i;                              /* its place in the object */
} Member;

/* The order of jinja2's dictsort: by the key in lower case, equal keys as in the object. */
static int compare_members(const void *x, const void *y) {
    const Member *a = x, *b = y;
    int order = strcasecmp(a->item->string, b->item->string);
    return order ? order : a->i - b->i;
}

/* The *n members of an object in the order of dictsort.  The caller frees the array; the items
 * remain the object's. */
static Member *sorted(const cJSON *o, int *n) {
    Member *m = xcalloc(cJSON_GetArraySize(o) + 1, sizeof *m);
    const cJSON *item;
    *n = 0;
    cJSON_ArrayForEach(item, o) {
        m[*n] = (Member){item, *n};
        ++*n;
    }
    qsort(m, (size_t)*n, sizeof *m, compare_members);
    return m;
}

/* Writes a number exactly as the JSON spells it, so that a call in the history has the very
 * characters that the model wrote. */
static void put_number(Writer *w, const cJSON *v) {
    char *text = json_text(v);
    put_string(w, text);
    free(text);
}

static void put_value(Writer *w, const cJSON *v, int quote_keys);

/* Writes the members of an object, without braces: a:1,b:2.  quote_keys: as in put_value. */
static void put_members(Writer *w, const cJSON *o, int quote_keys) {
    int n;
    Member *m = sorted(o, &n);
    for (int i = 0; i < n; i++) {
        const char *key = m[i].item->string;
        if (i) put_string(w, ",");
        if (quote_keys) put_quoted(w, key, strlen(key));
        else put_string(w, key);
        put_string(w, ":");
        put_value(w, m[i].item, quote_keys);
    }
    free(m);
}

/* The template's format_argument: a value in the notation of calls.  quote_keys: keys stand between
 * quotes, too (escape_keys). */
static void put_value(Writer *w, const cJSON *v, int quote_keys) {
    const cJSON *item;
    if (cJSON_IsString(v)) put_quoted(w, v->valuestring, strlen(v->valuestring));
    else if (cJSON_IsBool(v)) put_string(w, cJSON_IsTrue(v) ? "true" : "false");
    else if (cJSON_IsNumber(v)) put_number(w, v);
    else if (cJSON_IsNull(v)) put_string(w, "null");
    else if (cJSON_IsArray(v)) {
        put_string(w, "[");
        cJSON_ArrayForEach(item, v) {
            if (item != v->child) put_string(w, ",");
            put_value(w, item, quote_keys);
        }
        put_string(w, "]");
    } else if (cJSON_IsObject(v)) {
        put_string(w, "{");
        put_members(w, v, quote_keys);
        put_string(w, "}");
    }
}

/* The template's {{ v }}: a string without quotes, any other value as put_value writes it. */
static void put_plain(Writer *w, const cJSON *v) {
    if (cJSON_IsString(v)) put_string(w, v->valuestring);
    else put_value(w, v, 0);
}

static void put_quoted_plain(Writer *w, const cJSON *v) {
    w->bad |= put_control(w, QUOTE);
    put_plain(w, v);
    w->bad |= put_control(w, QUOTE);
}

static void put_upper_text(Writer *w, const char *s) {
    for (; *s; s++) put_text(w, (char[]){*s >= 'a' && *s <= 'z' ? *s - 32 : *s}, 1);
}

/* The template's <|"|>{{ type | upper }}<|"|>.  Jinja writes a list of types in Python's notation:
 * ['STRING', 'NULL']. */
static void put_type(Writer *w, const cJSON *type) {
    const cJSON *item;
    w->bad |= put_control(w, QUOTE);
    if (cJSON_IsString(type)) put_upper_text(w, type->valuestring);
    if (cJSON_IsArray(type)) {
        put_string(w, "[");
        cJSON_ArrayForEach(item, type) {
            put_string(w, item == type->child ? "'" : ", '");
            put_upper_text(w, cJSON_IsString(item) ? item->valuestring : "");
            put_string(w, "'");
        }
        put_string(w, "]");
    }
    w->bad |= put_control(w, QUOTE);
}

static int is_type(const cJSON *schema, const char *type) {
    const char *s = json_string(schema, "type");
    return s && !strcasecmp(s, type);
}

/* Writes a list, each item by `put`: [<|"|>a<|"|>,<|"|>b<|"|>]. */
static void put_list(Writer *w, const cJSON *list, void (*put)(Writer *w, const cJSON *item)) {
    const cJSON *item;
    put_string(w, "[");
    cJSON_ArrayForEach(item, list) {
        if (item != list->child) put_string(w, ",");
        put(w, item);
    }
    put_string(w, "]");
}

static void put_parameters(Writer *w, const cJSON *properties, int filter_keys);

/* Writes "key:" behind a comma, but the first time without one (the template's add_comma). */
static void put_key(Writer *w, int *add_comma, const char *key) {
    if (*add_comma) put_string(w, ",");
    *add_comma = 1;
    put_string(w, key);
    put_string(w, ":");
}

/* Writes the value of a member of the schema of an ARRAY's items. */
static void put_items_value(Writer *w, const cJSON *v) {
    int is_the_type = !strcmp(v->string, "type");
    if (!strcmp(v->string, "properties")) {
        put_string(w, "{");
        if (cJSON_IsObject(v)) put_parameters(w, v, 0);
        put_string(w, "}");
    } else if (!strcmp(v->string, "required")) put_list(w, v, put_quoted_plain);
    else if (is_the_type && cJSON_IsString(v)) put_type(w, v);
    else if (is_the_type) put_list(w, v, put_type);
    else put_value(w, v, 1);
}

/* Writes the schema of an ARRAY's items: every member that is not null. */
static void put_items(Writer *w, const cJSON *items) {
    int n, add_comma = 0;
    Member *m = sorted(items, &n);
    for (int i = 0; i < n; i++) {
        const cJSON *v = m[i].item;
        if (cJSON_IsNull(v)) continue;
        put_key(w, &add_comma, v->string);
        put_items_value(w, v);
    }
    free(m);
}

/* Writes the schema v of one parameter, with braces. */
static void put_parameter(Writer *w, const cJSON *v) {
    const cJSON *items = json_field(v, "items"), *inner = json_field(v, "properties");
    int add_comma = 0;
    put_string(w, "{");
    if (is_true(json_field(v, "description"))) {
        put_key(w, &add_comma, "description");
        put_quoted_plain(w, json_field(v, "description"));
    }
    if (is_type(v, "STRING") && is_true(json_field(v, "enum"))) {
        put_key(w, &add_comma, "enum");
        put_value(w, json_field(v, "enum"), 1);
    } else if (is_type(v, "ARRAY") && cJSON_IsObject(items) && items->child) {
        put_key(w, &add_comma, "items");
        put_string(w, "{");
        put_items(w, items);
        put_string(w, "}");
    }
    if (is_true(json_field(v, "nullable"))) {
        put_key(w, &add_comma, "nullable");
        put_string(w, "true");
    }
    if (is_type(v, "OBJECT")) {
        put_key(w, &add_comma, "properties");
        put_string(w, "{");
        if (cJSON_IsObject(inner)) put_parameters(w, inner, 0);
        else put_parameters(w, v, 1);
        put_string(w, "}");
        if (is_true(json_field(v, "required"))) {
            put_key(w, &add_comma, "required");
            put_list(w, json_field(v, "required"), put_quoted_plain);
        }
    }
    put_key(w, &add_comma, "type");
    put_type(w, json_field(v, "type"));
    put_string(w, "}");
}

/* The template's format_parameters.  filter_keys leaves out keywords of a schema: the template
 * writes an object without `properties` as if its other fields were its properties. */
static void put_parameters(Writer *w, const cJSON *properties, int filter_keys) {
    static const char *const standard[] = {"description", "type", "properties", "required",
                                           "nullable", NULL};
    int n, add_comma = 0;
    Member *m = sorted(properties, &n);
    for (int i = 0; i < n; i++) {
        const cJSON *v = m[i].item;
        if (filter_keys && is_in(v->string, standard)) continue;
        put_key(w, &add_comma, v->string);
        put_parameter(w, v);
    }
    free(m);
}

/* ",parameters:{…}".  The template closes the brace only behind a type. */
static void put_declared_parameters(Writer *w, const cJSON *params) {
    put_string(w, ",parameters:{");
    if (is_true(json_field(params, "properties"))) {
        put_string(w, "properties:{");
        put_parameters(w, json_field(params, "properties"), 0);
        put_string(w, "},");
    }
    if (is_true(json_field(params, "required"))) {
        put_string(w, "required:");
        put_list(w, json_field(params, "required"), put_quoted_plain);
        put_string(w, ",");
    }
    if (is_true(json_field(params, "type"))) {
        put_string(w, "type:");
        put_type(w, json_field(params, "type"));
        put_string(w, "}");
    }
}

/* ",response:{…}".  The template closes the brace only behind the type OBJECT. */
static void put_declared_response(Writer *w, const cJSON *response) {
    put_string(w, ",response:{");
    if (is_true(json_field(response, "description"))) {
        put_string(w, "description:");
        put_quoted_plain(w, json_field(response, "description"));
        put_string(w, ",");
    }
    if (is_type(response, "OBJECT")) {
        put_string(w, "type:");
        put_type(w, json_field(response, "type"));
        put_string(w, "}");
    }
}

/* The template's format_function_declaration. */
static void put_declaration(Writer *w, const cJSON *function) {
    const cJSON *given = json_field(function, "parameters");
    const cJSON *response = json_field(function, "response");
    cJSON *params = given ? declared_parameters(given) : NULL;
    put_string(w, "declaration:");
    put_plain(w, json_field(function, "name"));
    put_string(w, "{description:");
    put_quoted_plain(w, json_field(function, "description"));
    if (is_true(params)) put_declared_parameters(w, params);
    if (response) put_declared_response(w, response);
    put_string(w, "}");
    cJSON_Delete(params);
}

static int put_tools(Writer *w, const cJSON *tools) {
    const cJSON *tool;
    cJSON_ArrayForEach(tool, tools) {
        if (put_control(w, "<|tool>")) return -1;
        put_declaration(w, json_field(tool, "function"));
        if (put_control(w, "<tool|>")) return -1;
    }
    return 0;
}

/* Parses the arguments of a call that are a string: JSON, or JSON in a string of JSON, as some
 * clients send it.  NULL: it is none.  The caller deletes the tree. */
static cJSON *parse_arguments(const char *text) {
    char *mended = json_without_nul(text, strlen(text));
    cJSON *v = json_value(mended ? mended : text, strlen(text), NULL), *inner = NULL;
    free(mended);
    if (cJSON_IsString(v)) inner = json_value(v->valuestring, strlen(v->valuestring), NULL);
    if (!cJSON_IsObject(inner)) {
        cJSON_Delete(inner);
        return v;
    }
    cJSON_Delete(v);
    return inner;
}

/* Writes the arguments of a call in the history: a JSON object, or a string that contains one, or a
 * string that does.  Null and an empty string become {}.  Anything else (arguments that were cut
 * off, or no object) is written as it came, with a warning.  j: the number of the call in its
 * message. */
static void put_arguments(Writer *w, const cJSON *arguments, int j) {
    const char *text = cJSON_GetStringValue(arguments);
    cJSON *parsed = text ? parse_arguments(text) : NULL;
    const cJSON *value = text ? parsed : arguments;
    if (cJSON_IsObject(value)) put_members(w, value, 0);
    else if (text && !cJSON_IsNull(parsed)) put_string(w, text);
    else if (value && !cJSON_IsNull(value)) put_value(w, value, 0);
    int is_none = text ? !*text || cJSON_IsNull(parsed) : !value || cJSON_IsNull(value);
    if (!is_none && !cJSON_IsObject(value) && !w->options.is_checked)
        buf_printf(&w->out->warnings, "messages[%d].tool_calls[%d].function.arguments: no JSON "
                   "object: the model reads them as they are\n", w->i, j);
    cJSON_Delete(parsed);
}

static int put_calls(Writer *w, const cJSON *calls) {
    const cJSON *call;
    int j = 0;
    if (calls && !cJSON_IsArray(calls)) return bad_message(w, ".tool_calls", "must be a list");
    cJSON_ArrayForEach(call, calls) {
        const cJSON *function = json_field(call, "function");
        const char *name = json_string(function, "name");
        if (!name)
            return fail(w->err, "messages[%d].tool_calls[%d].function.name: must be a string",
                        w->i, j);
        w->bad |= put_control(w, "<|tool_call>");
        put_string(w, "call:");
        put_string(w, name);
        put_string(w, "{");
        put_arguments(w, json_field(function, "arguments"), j);
        put_string(w, "}");
        w->bad |= put_control(w, "<tool_call|>");
        w->last = CALL;
        j++;
    }
    return 0;
}

/* The template's format_tool_response_block. */
static void put_response(Writer *w, const char *name, const cJSON *body) {
    w->bad |= put_control(w, "<|tool_response>");
    put_string(w, "response:");
    put_string(w, name && *name ? name : "unknown");
    put_string(w, "{");
    if (cJSON_IsObject(body)) put_members(w, body, 0);
    else {
        put_string(w, "value:");
        put_value(w, body, 0);
    }
    put_string(w, "}");
    w->bad |= put_control(w, "<tool_response|>");
    w->last = RESPONSE;
}

/* Checks the parts of a tool's result, the content of message i, and adds their texts to *text. */
static int read_response_parts(Writer *w, const cJSON *parts, int i, Buf *text) {
    const cJSON *part;
    int j = 0;
    cJSON_ArrayForEach(part, parts) {
        PartKind kind = read_part(w, i, j, part);
        if (kind == NO_PART) return -1;
        if (kind == THOUGHT_PART)
            return bad_part(w, i, j, ".type", "only the assistant has thoughts");
        const char *s = kind == TEXT_PART ? part_text(w, i, j, part) : "";
        if (!s) return -1;
        buf_puts(text, s);
        j++;
    }
    return 0;
}

/* Writes the result of a tool that comes as a list of parts, the content of message i.  All texts,
 * joined, are the response; pictures and videos follow behind it. */
static int put_response_in_parts(Writer *w, const char *name, const cJSON *parts, int i) {
    const cJSON *part;
    Buf text = {0};
    buf_add(&text, "", 0);              /* so that text.data is a string in any case */
    int bad = read_response_parts(w, parts, i, &text);
    cJSON *joined = cJSON_CreateString(text.data);
    if (!bad) put_response(w, name, joined);
    cJSON_Delete(joined);
    buf_free(&text);
    if (bad) return -1;
    cJSON_ArrayForEach(part, parts) {
        PartKind kind = part_kind(json_string(part, "type"));
        int is_media = kind == IMAGE_PART || kind == VIDEO_PART;
        if (is_media && put_media(w, part, kind == VIDEO_PART)) return -1;
    }
    return 0;
}

static int same_id(const cJSON *a, const cJSON *b) {
    if (!a || !b) return a == b;
    return cJSON_IsString(a) && cJSON_IsString(b) && !strcmp(a->valuestring, b->valuestring);
}

const char *chat_result_name(const cJSON *calls, const cJSON *message) {
    const cJSON *own = json_field(message, "name"), *call;
    const char *name = cJSON_GetStringValue(own ? own : json_field(message, "tool_name"));
    cJSON_ArrayForEach(call, calls)
        if (same_id(json_field(call, "id"), json_field(message, "tool_call_id")))
            name = json_string(json_field(call, "function"), "name");
    return name;
}

/* Writes the results of the calls of a message: the message's own field tool_responses or, without
 * one, the tool messages that follow it.  Returns the number of results, or -1 with err. */
static int put_responses(Writer *w, const cJSON *message) {
    const cJSON *calls = json_field(message, "tool_calls"), *item;
    const cJSON *own = json_field(message, "tool_responses");
    int n = 0;
    if (is_true(own)) {
        cJSON_ArrayForEach(item, own) {
            const char *name = json_string(item, "name");
            put_response(w, name, cJSON_GetObjectItemCaseSensitive(item, "response"));
            n++;
        }
        return n;
    }
    for (const cJSON *m = message->next; is_true(calls) && has_role(m, "tool"); m = m->next) {
        const cJSON *body = cJSON_GetObjectItemCaseSensitive(m, "content");
        const char *name = chat_result_name(calls, m);
        n++;
        if (!cJSON_IsArray(body)) put_response(w, name, body);
        else if (put_response_in_parts(w, name, body, w->i + n)) return -1;
    }
    return n;
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

/* Writes the system turn.  message: the system message; NULL: there is none, and the turn is there
 * only for <|think|> or for tools. */
static int put_system(Writer *w, const cJSON *message, const cJSON *tools) {
    if (open_turn(w, "system")) return -1;
    if (w->options.thinking) {
        if (put_control(w, "<|think|>")) return -1;
        put_string(w, "\n");
    }
    if ((message && put_system_content(w, message)) || put_tools(w, tools)) return -1;
    return close_turn(w);
}

/* Promises that the next turn's prompt begins with everything written so far: see
 * Prompt.n_stable. */
static void mark_stable(Writer *w) {
    encode_plain(w);
    w->out->n_stable = w->out->ids.n;
}

/* Adds the thought of a THOUGHT_PART.  It is the first of four fields that is not empty; each may
 * be a text or a list of texts (content and summary are the Responses API's). */
static void add_thought(Buf *thought, const cJSON *part) {
    const char *type = json_string(part, "type");
    const char *const fields[] = {type, "text", "content", "summary"};
    const cJSON *item;
    size_t before = thought->len;
    for (int k = 0; k < 4 && thought->len == before; k++) {
        const cJSON *field = json_field(part, fields[k]);
        if (cJSON_IsString(field)) buf_puts(thought, field->valuestring);
        if (cJSON_IsArray(field)) cJSON_ArrayForEach(item, field) {
            const char *text = json_string(item, "text");
            if (text) buf_puts(thought, text);
        }
    }
}

/* Adds the thoughts among the parts in a list. */
static void add_thoughts(Buf *thought, const cJSON *parts) {
    const cJSON *part;
    if (cJSON_IsArray(parts)) cJSON_ArrayForEach(part, parts) {
        const char *type = json_string(part, "type");
        if (type && part_kind(type) == THOUGHT_PART) add_thought(thought, part);
    }
}

/* The thought of a message; the caller frees it.  Clients send it in a field of the message, in
 * parts of its content, or in both: then the second is added only if it differs from the first.
 * OpenRouter's and LiteLLM's lists repeat what such a field says; they count where none does. */
static Buf thought_of(const cJSON *message) {
    static const char *const fields[] = {"reasoning", "reasoning_content", "thinking"};
    static const char *const lists[] = {"reasoning_details", "thinking_blocks"};
    Buf thought = {0}, in_parts = {0};
    for (int k = 0; k < 3 && !thought.len; k++) {
        const char *text = json_string(message, fields[k]);
        if (text) buf_puts(&thought, text);
    }
    add_thoughts(&in_parts, json_field(message, "content"));
    for (int k = 0; k < 2 && !thought.len && !in_parts.len; k++)
        add_thoughts(&thought, json_field(message, lists[k]));
    if (in_parts.len && (!thought.len || strcmp(in_parts.data, thought.data)))
        buf_puts(&thought, in_parts.data);
    buf_free(&in_parts);
    return thought;
}

/* Writes the thought of a message.  The template drops it once another user message follows
 * (thinking_gate), except, with preserve_thinking, in messages that call tools. */
static int put_thought(Writer *w, const cJSON *message) {
    int is_kept = w->options.preserve_thinking && is_true(json_field(message, "tool_calls"));
    int bad = 0;
    Buf thought = thought_of(message);
    if (thought.len && (is_kept || w->i > w->last_user)) {
        bad = put_control(w, "<|channel>");
        put_string(w, THOUGHT_NAME);
        put_text(w, thought.data, thought.len);
        put_string(w, "\n");
        bad |= put_control(w, "<channel|>");
        w->has_thought |= !is_kept;
    }
    buf_free(&thought);
    return bad;
}

/* Whether the prompt has anything but white space behind its first text_before bytes
 * (has_content). */
static int has_content(const Writer *w, size_t text_before) {
    const Buf *text = &w->out->text;
    for (size_t i = text_before; i < text->len;) {
        size_t n = space_at_front(text->data + i, text->len - i);
        if (!n) return 1;
        i += n;
    }
    return 0;
}

static int is_continued(const Writer *w, const cJSON *message) {
    return w->options.continue_final && !message->next;
}

/* Writes a message and the results of its calls.  Consecutive assistant messages are one turn, with
 * nothing between them (continue_same_model_turn, continues_into_next). */
static int put_message(Writer *w, const cJSON *message, const char *role, const char *role_before) {
    int is_model = !strcmp(role, "model");
    const cJSON *calls = json_field(message, "tool_calls"), *next = message->next;
    w->last = OTHER;
    /* 1. The turn's header. */
    if (!is_model || strcmp(role_before, "model")) {
        if (open_turn(w, role)) return -1;
        w->has_thought = 0;
        if (is_model) mark_stable(w);
    }
    /* 2. Thought, calls, results, content. */
    if (put_thought(w, message) || put_calls(w, calls)) return -1;
    int n_responses = put_responses(w, message);
    if (n_responses < 0) return -1;
    if (n_responses && !w->has_thought) mark_stable(w);
    size_t text_before = w->out->text.len;
    if (put_content(w, message, is_model)) return -1;
    int has = has_content(w, text_before);
    /* 3. The turn's end, unless the turn goes on: with the rest of a last message, the results that
     * the calls wait for, another assistant message, or the answer to the results. */
    while (has_role(next, "tool")) next = next->next;
    if (is_continued(w, message)) {
        w->out->continued = text_before;
        return 0;
    }
    if (w->last == CALL && !n_responses) return put_control(w, "<|tool_response>");
    if (is_model && has_role(next, "assistant")) return 0;
    if (n_responses && !has && !next) return 0;
    return close_turn(w);
}

/* Writes what comes before the answer.  Normally that is the header of a model's turn, with an
 * empty thought when none is asked for.  After a call or the result of one the model's turn is
 * still open and goes on; after a result the prompt opens a thought, when thinking is asked for. */
static int put_generation_prompt(Writer *w) {
    if (w->last == OTHER) {
        if (open_turn(w, "model")) return -1;
        mark_stable(w);
        if (w->options.thinking) return 0;
        if (put_control(w, "<|channel>")) return -1;
        put_string(w, THOUGHT_NAME);
        return put_control(w, "<channel|>");
    }
    if (w->last == RESPONSE && w->options.thinking) {
        if (put_control(w, "<|channel>")) return -1;
        put_string(w, THOUGHT_NAME);
        w->out->in_thought = 1;
    }
    encode_plain(w);
    return 0;
}

static int check_continued(Writer *w, const cJSON *messages) {
    int n = cJSON_GetArraySize(messages);
    const cJSON *last = cJSON_GetArrayItem(messages, n - 1);
    if (!has_role(last, "assistant"))
        return fail(w->err, "continue_final_message: messages[%d] is not the assistant's", n - 1);
    if (is_true(json_field(last, "tool_calls")) || is_true(json_field(last, "tool_responses")))
        return fail(w->err, "continue_final_message: messages[%d] calls tools", n - 1);
    return 0;
}

static int put_prompt(Writer *w, const cJSON *messages, const cJSON *tools) {
    if (!cJSON_IsArray(messages) || !messages->child)
        return fail(w->err, "messages: must be a list of at least one message");
    const cJSON *m = messages->child;
    const char *role = message_role(w, m), *role_before = "";
    if (!role || put_control(w, "<bos>")) return -1;
    if (w->options.continue_final && check_continued(w, messages)) return -1;
    int i = 0;
    w->last_user = -1;
    for (const cJSON *u = m; u; u = u->next, i++)
        if (has_role(u, "user")) w->last_user = i;

    /* 1. The system turn.  Only the first message can be part of it.  Later system and developer
     * messages are turns of their own, where they stand, under their own role. */
    int has_system = !strcmp(role, "system") || !strcmp(role, "developer");
    int needs_system = has_system || w->options.thinking || cJSON_GetArraySize(tools);
    if (needs_system && put_system(w, has_system ? m : NULL, tools)) return -1;
    if (has_system) m = m->next, w->i++;

    /* 2. The other messages.  Tool messages have been written with the message that called. */
    int takes_results = 0;              /* 1: tool messages may follow */
    for (; m; m = m->next, w->i++) {
        if (!(role = message_role(w, m))) return -1;
        if (!strcmp(role, "tool")) {
            if (takes_results) continue;
            return bad_message(w, "",
                               "a tool message must follow an assistant's message with tool_calls");
        }
        if (put_message(w, m, role, role_before)) return -1;
        takes_results = is_true(json_field(m, "tool_calls")) &&
                        !is_true(json_field(m, "tool_responses"));
        role_before = role;
    }

    /* 3. What comes before the answer. */
    if (w->bad) return -1;
    if (!w->options.continue_final) return put_generation_prompt(w);
    encode_plain(w);
    return 0;
}

int chat_render(const Tokenizer *t, const cJSON *messages, const cJSON *tools, ChatOptions options,
                Prompt *out, Error *err) {
    Writer w = {.t = t, .options = options, .out = out, .err = err};
    int bad = put_prompt(&w, messages, tools);
    buf_free(&w.plain);
    return bad;
}

cJSON *chat_message(const char *role, const char *text) {
    cJSON *m = cJSON_CreateObject();
    cJSON_AddStringToObject(m, "role", role);
    if (text) cJSON_AddStringToObject(m, "content", text);
    return m;
}

int has_role(const cJSON *message, const char *role) {
    const char *own = json_string(message, "role");
    return own && !strcmp(own, role);
}

void prompt_free(Prompt *p) {
    ids_free(&p->ids);
    buf_free(&p->text);
    free(p->media);
    free(p->span);
    buf_free(&p->warnings);
    *p = (Prompt){0};
}
