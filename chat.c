/* chat.c - the conversation's grammar.  See chat.h.
 *
 * The law is the published chat template (chat_template.jinja of the instruction-tuned checkpoints); its
 * macros and variables are cited by name; what becomes of an image or a video is transformers' processing_gemma4.py.  Beside the
 * template: a list or null as the system message would print Python's notation of it (the template only trims
 * it), it is read here as in any other message; arguments of a call that come as a string of JSON, as in
 * OpenAI's API, are read as JSON; a model's turn that was closed after tool responses is followed by a new one. */
#define _GNU_SOURCE
#include "chat.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "json.h"
#include "media.h"

#define HEADER "thought\n"              /* what follows the `<|channel>` of a thought: the channel's name */
#define QUOTE "<|\"|>"                  /* both ends of a string in a declaration, a call or a response */

/* ---- the prompt as it is written ---- */

typedef struct {
    const Tokenizer *t;
    Prompt *out;
    Buf plain;                          /* text since the last control token */
    int media;                          /* parts with images or videos so far */
    int i;                              /* number of the message that is being written, for errors */
    int last_user;                      /* number of the last user's message (ns_turn.last_user_idx), -1: none */
    enum { OTHER, CALL, RESPONSE } last;        /* what was written last (ns.prev_message_type) */
    int thought_stays;                  /* 1: a thought stands in the model's turn that is being written */
    int bad;                            /* 1: a control token is missing, err is set */
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
    if (id < 0) return fail(w->err, "%s: no control token %s", tokenizer_file(w->t), name);
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
        int seconds = (int)fmin(m->seconds[i], 1e9);
        snprintf(time, sizeof time, "%s%02d:%02d ", i ? " " : "", seconds / 60, seconds % 60);
        if (is_video) put_string(w, time);
        if (put_control(w, "<|image>")) return -1;
        w->out->span = xrealloc(w->out->span, w->out->n_spans + 1, sizeof *w->out->span);
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
    w->last = OTHER;
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

/* The role as the template writes it, or NULL with err when the message has none or one that is unknown.
 * The template would take any word as a role; here that is an error. */
static const char *message_role(Writer *w, const cJSON *message) {
    if (!cJSON_IsObject(message)) return bad_message(w, "", "must be an object"), NULL;
    const char *role = cJSON_GetStringValue(json_field(message, "role"));
    if (!role) return bad_message(w, ".role", "must be a string"), NULL;
    static const char *known[][2] = {
        {"system", "system"}, {"developer", "developer"}, {"user", "user"}, {"assistant", "model"}, {"tool", "tool"},
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

/* What counts as true in a template; item may be NULL (undefined). */
static int is_true(const cJSON *item) {
    if (cJSON_IsString(item)) return *item->valuestring != 0;
    if (cJSON_IsNumber(item)) return item->valuedouble != 0;
    return cJSON_IsTrue(item) || ((cJSON_IsArray(item) || cJSON_IsObject(item)) && item->child);
}

typedef struct {
    const cJSON *item;
    int i;
} Member;

/* jinja2's dictsort: by the key in lower case, equal ones as they stand. */
static int compare_members(const void *x, const void *y) {
    const Member *a = x, *b = y;
    int order = strcasecmp(a->item->string, b->item->string);
    return order ? order : a->i - b->i;
}

/* The members of an object in that order: *n of them, which the caller frees. */
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

/* As it is written: in a call that the model made it is what the model wrote. */
static void put_number(Writer *w, const cJSON *v) {
    char *text = json_text(v);
    put_string(w, text);
    free(text);
}

/* format_argument.  Python's None is what the template makes of null. */
static void put_value(Writer *w, const cJSON *v, int quote_keys) {
    const cJSON *item;
    if (cJSON_IsString(v)) put_quoted(w, v->valuestring, strlen(v->valuestring));
    else if (cJSON_IsBool(v)) put_string(w, cJSON_IsTrue(v) ? "true" : "false");
    else if (cJSON_IsNumber(v)) put_number(w, v);
    else if (cJSON_IsNull(v)) put_string(w, "None");
    else if (cJSON_IsArray(v)) {
        put_string(w, "[");
        cJSON_ArrayForEach(item, v) {
            if (item != v->child) put_string(w, ",");
            put_value(w, item, quote_keys);
        }
        put_string(w, "]");
    } else if (cJSON_IsObject(v)) {
        int n;
        Member *m = sorted(v, &n);
        put_string(w, "{");
        for (int i = 0; i < n; i++) {
            const char *key = m[i].item->string;
            if (i) put_string(w, ",");
            if (quote_keys) put_quoted(w, key, strlen(key));
            else put_string(w, key);
            put_string(w, ":");
            put_value(w, m[i].item, quote_keys);
        }
        put_string(w, "}");
        free(m);
    }
}

/* {{ v }}: a string without quotes. */
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

/* <|"|>{{ type | upper }}<|"|>; a list of types comes out in Python's notation. */
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
    const char *s = cJSON_GetStringValue(json_field(schema, "type"));
    return s && !strcasecmp(s, type);
}

/* [<|"|>a<|"|>,<|"|>b<|"|>], each item between quotes as it prints. */
static void put_names(Writer *w, const cJSON *list) {
    const cJSON *item;
    put_string(w, "[");
    cJSON_ArrayForEach(item, list) {
        if (item != list->child) put_string(w, ",");
        put_quoted_plain(w, item);
    }
    put_string(w, "]");
}

static void put_parameters(Writer *w, const cJSON *properties);

/* The items of an ARRAY: every member that is not null. */
static void put_items(Writer *w, const cJSON *items) {
    int n, first = 1;
    Member *m = sorted(items, &n);
    for (int i = 0; i < n; i++) {
        const cJSON *v = m[i].item, *item;
        if (cJSON_IsNull(v)) continue;
        if (!first) put_string(w, ",");
        first = 0;
        put_string(w, v->string);
        put_string(w, ":");
        if (!strcmp(v->string, "properties")) {
            put_string(w, "{");
            if (cJSON_IsObject(v)) put_parameters(w, v);
            put_string(w, "}");
        } else if (!strcmp(v->string, "required")) put_names(w, v);
        else if (!strcmp(v->string, "type") && cJSON_IsString(v)) put_type(w, v);
        else if (!strcmp(v->string, "type")) {
            put_string(w, "[");
            cJSON_ArrayForEach(item, v) {
                if (item != v->child) put_string(w, ",");
                put_type(w, item);
            }
            put_string(w, "]");
        } else put_value(w, v, 1);
    }
    free(m);
}

static void put_comma(Writer *w, int *add_comma) {
    if (*add_comma) put_string(w, ",");
    *add_comma = 1;
}

/* format_parameters.  (It leaves out properties that are called like one of its standard_keys.) */
static void put_parameters(Writer *w, const cJSON *properties) {
    static const char *const standard[] = {"description", "type", "properties", "required", "nullable"};
    int n, first = 1;
    Member *m = sorted(properties, &n);
    for (int i = 0; i < n; i++) {
        const cJSON *v = m[i].item, *items = json_field(v, "items"), *inner = json_field(v, "properties");
        int add_comma = 0, is_standard = 0;
        for (int k = 0; k < 5; k++) is_standard |= !strcmp(v->string, standard[k]);
        if (is_standard) continue;
        if (!first) put_string(w, ",");
        first = 0;
        put_string(w, v->string);
        put_string(w, ":{");
        if (is_true(json_field(v, "description"))) {
            put_string(w, "description:");
            put_quoted_plain(w, json_field(v, "description"));
            add_comma = 1;
        }
        if (is_type(v, "STRING") && is_true(json_field(v, "enum"))) {
            put_comma(w, &add_comma);
            put_string(w, "enum:");
            put_value(w, json_field(v, "enum"), 1);
        } else if (is_type(v, "ARRAY") && cJSON_IsObject(items) && items->child) {
            put_comma(w, &add_comma);
            put_string(w, "items:{");
            put_items(w, items);
            put_string(w, "}");
        }
        if (is_true(json_field(v, "nullable"))) {
            put_comma(w, &add_comma);
            put_string(w, "nullable:true");
        }
        if (is_type(v, "OBJECT")) {
            put_comma(w, &add_comma);
            put_string(w, "properties:{");
            put_parameters(w, cJSON_IsObject(inner) ? inner : v);
            put_string(w, "}");
            if (is_true(json_field(v, "required"))) {
                put_string(w, ",required:");
                put_names(w, json_field(v, "required"));
            }
        }
        put_comma(w, &add_comma);
        put_string(w, "type:");
        put_type(w, json_field(v, "type"));
        put_string(w, "}");
    }
    free(m);
}

/* format_function_declaration.  Without a type the template leaves the parameters' brace open. */
static void put_declaration(Writer *w, const cJSON *function) {
    const cJSON *params = json_field(function, "parameters"), *response = json_field(function, "response");
    put_string(w, "declaration:");
    put_plain(w, json_field(function, "name"));
    put_string(w, "{description:");
    put_quoted_plain(w, json_field(function, "description"));
    if (is_true(params)) {
        put_string(w, ",parameters:{");
        if (is_true(json_field(params, "properties"))) {
            put_string(w, "properties:{");
            put_parameters(w, json_field(params, "properties"));
            put_string(w, "},");
        }
        if (is_true(json_field(params, "required"))) {
            put_string(w, "required:");
            put_names(w, json_field(params, "required"));
            put_string(w, ",");
        }
        if (is_true(json_field(params, "type"))) {
            put_string(w, "type:");
            put_type(w, json_field(params, "type"));
            put_string(w, "}");
        }
    }
    if (response) {
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
    put_string(w, "}");
}

static int put_tools(Writer *w, const cJSON *tools) {
    const cJSON *tool;
    int i = 0;
    if (tools && !cJSON_IsArray(tools)) return fail(w->err, "tools: must be a list");
    cJSON_ArrayForEach(tool, tools) {
        const char *type = cJSON_GetStringValue(json_field(tool, "type")), *name;
        const cJSON *function = json_field(tool, "function"), *params = json_field(function, "parameters");
        if (type && strcmp(type, "function")) return fail(w->err, "tools[%d].type: must be function", i);
        if (!cJSON_IsObject(function)) return fail(w->err, "tools[%d].function: must be an object", i);
        name = cJSON_GetStringValue(json_field(function, "name"));
        if (!name || !*name || strpbrk(name, "{}")) return fail(w->err, "tools[%d].function.name: must be a name", i);
        if (params && !cJSON_IsObject(params)) return fail(w->err, "tools[%d].function.parameters: must be an object", i);
        if (put_control(w, "<|tool>")) return -1;
        put_declaration(w, function);
        if (put_control(w, "<tool|>")) return -1;
        i++;
    }
    return 0;
}

/* {a:1,b:2} without the braces. */
static void put_members(Writer *w, const cJSON *o) {
    int n;
    Member *m = sorted(o, &n);
    for (int i = 0; i < n; i++) {
        if (i) put_string(w, ",");
        put_string(w, m[i].item->string);
        put_string(w, ":");
        put_value(w, m[i].item, 0);
    }
    free(m);
}

static int put_calls(Writer *w, const cJSON *calls) {
    const cJSON *call;
    int j = 0;
    if (calls && !cJSON_IsArray(calls)) return bad_message(w, ".tool_calls", "must be a list");
    cJSON_ArrayForEach(call, calls) {
        const cJSON *function = json_field(call, "function"), *arguments = json_field(function, "arguments");
        const char *name = cJSON_GetStringValue(json_field(function, "name")), *text = cJSON_GetStringValue(arguments);
        if (!name) return fail(w->err, "messages[%d].tool_calls[%d].function.name: must be a string", w->i, j);
        cJSON *parsed = text && *text ? json_object(text, strlen(text), NULL) : NULL;
        int bad = text ? *text && !parsed : arguments && !cJSON_IsObject(arguments);
        if (bad) return fail(w->err, "messages[%d].tool_calls[%d].function.arguments: not a JSON object", w->i, j);
        w->bad |= put_control(w, "<|tool_call>");
        put_string(w, "call:");
        put_string(w, name);
        put_string(w, "{");
        put_members(w, text ? parsed : arguments);
        put_string(w, "}");
        w->bad |= put_control(w, "<tool_call|>");
        w->last = CALL;
        cJSON_Delete(parsed);
        j++;
    }
    return 0;
}

/* format_tool_response_block. */
static void put_response(Writer *w, const char *name, const cJSON *body) {
    w->bad |= put_control(w, "<|tool_response>");
    put_string(w, "response:");
    put_string(w, name);
    put_string(w, "{");
    if (cJSON_IsObject(body)) put_members(w, body);
    else {
        put_string(w, "value:");
        put_value(w, body, 0);
    }
    put_string(w, "}");
    w->bad |= put_control(w, "<tool_response|>");
    w->last = RESPONSE;
}

static int same_id(const cJSON *a, const cJSON *b) {
    if (!a || !b) return a == b;
    return cJSON_IsString(a) && cJSON_IsString(b) && !strcmp(a->valuestring, b->valuestring);
}

/* The tool messages that follow a message with calls, or its own tool_responses.  Returns how many. */
static int put_responses(Writer *w, const cJSON *message) {
    const cJSON *calls = json_field(message, "tool_calls"), *own = json_field(message, "tool_responses"), *item, *call;
    int n = 0;
    if (is_true(own)) {
        cJSON_ArrayForEach(item, own) {
            const char *name = cJSON_GetStringValue(json_field(item, "name"));
            put_response(w, name ? name : "unknown", cJSON_GetObjectItemCaseSensitive(item, "response"));
            n++;
        }
        return n;
    }
    for (const cJSON *m = message->next; is_true(calls) && has_role(m, "tool"); m = m->next, n++) {
        const cJSON *body = cJSON_GetObjectItemCaseSensitive(m, "content"), *id = json_field(m, "tool_call_id");
        const char *name = cJSON_GetStringValue(json_field(m, "name"));
        cJSON_ArrayForEach(call, calls)
            if (same_id(json_field(call, "id"), id)) name = cJSON_GetStringValue(json_field(json_field(call, "function"), "name"));
        if (!cJSON_IsArray(body)) {
            put_response(w, name ? name : "unknown", body);
            continue;
        }
        Buf text = {0};
        buf_add(&text, "", 0);
        cJSON_ArrayForEach(item, body) {
            const char *type = cJSON_GetStringValue(json_field(item, "type")), *s = cJSON_GetStringValue(json_field(item, "text"));
            if (type && s && !strcmp(type, "text")) buf_puts(&text, s);
        }
        cJSON *joined = cJSON_CreateString(text.data);
        put_response(w, name ? name : "unknown", joined);
        cJSON_Delete(joined);
        buf_free(&text);
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

/* The system turn in front.  message: the system message, or NULL when thinking or tools ask for the turn. */
static int put_system(Writer *w, const cJSON *message, const cJSON *tools, int thinking) {
    if (open_turn(w, "system")) return -1;
    if (thinking) {
        if (put_control(w, "<|think|>")) return -1;
        put_string(w, "\n");
    }
    if ((message && put_content(w, message, 0)) || put_tools(w, tools)) return -1;
    return close_turn(w);
}

/* Where the model begins to write: the next turn's prompt will hold everything up to here. */
static void mark_stable(Writer *w) {
    encode_plain(w);
    w->out->n_stable = w->out->ids.n;
}

/* A second assistant message in a row goes on after the first one's `<turn|>` without a `<|turn>model` of its
 * own (continue_same_model_turn); the tool messages between them are part of the first.  A thought stays in the
 * history beside the calls that it led to, until the next user's message; the responses stand before the content. */
static int put_message(Writer *w, const cJSON *message, const char *role, const char *role_before) {
    int is_model = !strcmp(role, "model"), n_responses;
    int goes_on = is_model && !strcmp(role_before, "model");
    const cJSON *calls = json_field(message, "tool_calls"), *content = json_field(message, "content");
    const char *thought = cJSON_GetStringValue(json_field(message, "reasoning"));
    if (!thought || !*thought) thought = cJSON_GetStringValue(json_field(message, "reasoning_content"));
    w->last = OTHER;
    if (!goes_on) {
        if (open_turn(w, role)) return -1;
        w->thought_stays = 0;
        if (is_model) mark_stable(w);
    }
    if (thought && *thought && is_true(calls) && w->i > w->last_user) {
        if (put_control(w, "<|channel>")) return -1;
        put_string(w, HEADER);
        put_string(w, thought);
        put_string(w, "\n");
        if (put_control(w, "<channel|>")) return -1;
        w->thought_stays = 1;
    }
    if (put_calls(w, calls)) return -1;
    n_responses = put_responses(w, message);
    if (put_content(w, message, is_model)) return -1;
    if (w->last == CALL && !n_responses) return put_control(w, "<|tool_response>");
    if (n_responses && !is_true(content)) return 0;
    if (w->last == RESPONSE) w->last = OTHER;           /* the turn is closed: the model needs a new one */
    return close_turn(w);
}

/* Opens the model's turn whatever the last message is, an assistant's too; but after a response the model goes
 * on in the turn in which it called. */
static int put_generation_prompt(Writer *w, int thinking) {
    if (w->last != OTHER) {
        if (!w->thought_stays) mark_stable(w);
        encode_plain(w);
        return 0;
    }
    if (open_turn(w, "model")) return -1;
    mark_stable(w);
    if (thinking) return 0;
    if (put_control(w, "<|channel>")) return -1;
    put_string(w, HEADER);
    return put_control(w, "<channel|>");
}

static int put_prompt(Writer *w, const cJSON *messages, const cJSON *tools, int thinking) {
    if (!cJSON_IsArray(messages) || !messages->child)
        return fail(w->err, "messages: must be a list of at least one message");
    const cJSON *m = messages->child;
    const char *role = message_role(w, m), *role_before = "";
    if (!role || put_control(w, "<bos>")) return -1;
    int i = 0;
    w->last_user = -1;
    for (const cJSON *u = m; u; u = u->next, i++)
        if (has_role(u, "user")) w->last_user = i;

    /* Only the first message is the system's; further ones are turns in their place, and a developer's is
     * then called by its own name. */
    int has_system = !strcmp(role, "system") || !strcmp(role, "developer");
    int needs_system = has_system || thinking || cJSON_GetArraySize(tools);
    if (needs_system && put_system(w, has_system ? m : NULL, tools, thinking)) return -1;
    if (has_system) m = m->next, w->i++;

    const cJSON *caller = NULL;         /* the message that tool messages belong to */
    for (; m; m = m->next, w->i++) {
        if (!(role = message_role(w, m))) return -1;
        if (!strcmp(role, "tool")) {
            if (!caller) return bad_message(w, "", "a tool message must follow an assistant's message with tool_calls");
            continue;                   /* put_responses has written it */
        }
        if (put_message(w, m, role, role_before)) return -1;
        caller = is_true(json_field(m, "tool_calls")) && !is_true(json_field(m, "tool_responses")) ? m : NULL;
        role_before = role;
    }
    return w->bad ? -1 : put_generation_prompt(w, thinking);
}

int chat_render(const Tokenizer *t, const cJSON *messages, const cJSON *tools, int thinking, Prompt *out, Error *err) {
    Writer w = {.t = t, .out = out, .err = err};
    int bad = put_prompt(&w, messages, tools, thinking);
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
    const char *its = cJSON_GetStringValue(json_field(message, "role"));
    return its && !strcmp(its, role);
}

void prompt_free(Prompt *p) {
    ids_free(&p->ids);
    buf_free(&p->text);
    free(p->media);
    free(p->span);
    *p = (Prompt){0};
}

void calls_free(ToolCall *calls, int n) {
    for (int i = 0; i < n; i++) {
        free(calls[i].name);
        free(calls[i].arguments);
    }
    free(calls);
}

/* ---- the answer as it streams in ----
 *
 * What is asked for is `<|channel>thought\n…\n<channel|>` and then the answer, calls, or both.  What
 * comes is less orderly: a `<|channel>` twice, or alone before an answer; a `<channel|>` with nothing open;
 * a second thought, an empty one at the end, one without end; a `thought\n<channel|>` whose opening is
 * missing; a call without end.  Nothing of these marks may reach the reader, and nothing that is answer may be
 * lost: a call that cannot be read becomes content, with a warning. */

enum {
    BEGIN,                              /* of the whole answer, while it reads like a thought's header */
    CONTENT,
    NAME,                               /* after <|channel>, while what comes can be a channel's name */
    THOUGHT,
    IN_CALL,                            /* after <|tool_call> */
};

#define MAX_NAME 32

void chat_stream_open(ChatStream *s, const Tokenizer *t, int thinking) {
    *s = (ChatStream){
        .t = t, .state = BEGIN, .thoughts = thinking != 0,
        .channel = tokenizer_control(t, "<|channel>"), .channel_end = tokenizer_control(t, "<channel|>"),
        .call = tokenizer_control(t, "<|tool_call>"), .call_end = tokenizer_control(t, "<tool_call|>"),
        .quote = tokenizer_control(t, QUOTE), .response = tokenizer_control(t, "<|tool_response>"),
    };
}

ChatPart chat_stream_part(const ChatStream *s) {
    static const ChatPart part[] = {CHAT_BEGIN, CHAT_CONTENT, CHAT_NAME, CHAT_THOUGHT, CHAT_CALL};
    return part[s->state];
}

int chat_stream_ends(const ChatStream *s, int id) { return !s->raw && id == s->response && id >= 0; }

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
    buf_add(thought, text, s->newline ? n - 1 : n);
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
static void take_in_begin(ChatStream *s, const char *c, size_t n, Buf *content, Buf *thought) {
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
static void take_in_name(ChatStream *s, const char *c, size_t n, Buf *content, Buf *thought) {
    if (*c == '\n' && s->name.len) {
        open_thought(s);
    } else if (is_name_char(*c) && s->name.len < MAX_NAME) {
        buf_add(&s->name, c, n);
    } else {
        unread_name(s, s->thoughts ? THOUGHT : CONTENT, content, thought);
        if (*c != '\n') put_answer(s, c, n, content, thought);
    }
}

static void take_char(ChatStream *s, const char *c, size_t n, Buf *content, Buf *thought) {
    if (s->state == BEGIN) take_in_begin(s, c, n, content, thought);
    else if (s->state == NAME) take_in_name(s, c, n, content, thought);
    else if (s->state == IN_CALL) buf_add(&s->name, c, n);
    else put_answer(s, c, n, content, thought);
}

/* ---- calls ----
 *
 * call:NAME{key:value,…} with values <|"|>text<|"|> (no escapes), numbers, true, false, null, [list], {object}.
 * Here a QUOTE is the byte 0xff, which no text holds.  Also read: keys between quotes, strings between plain
 * quotes with JSON's escapes, white space, None, and a call without `call:`. */

#define Q '\xff'
#define MAX_DEPTH 100

typedef struct {
    const char *p, *end;
    Buf *out;                           /* the arguments as JSON */
    const char *why;                    /* what is wrong */
} CallReader;

static int bad_call(CallReader *r, const char *why) {
    r->why = why;
    return -1;
}

static char peek(CallReader *r) {
    while (r->p < r->end && (*r->p == ' ' || *r->p == '\n' || *r->p == '\t' || *r->p == '\r')) r->p++;
    return r->p < r->end ? *r->p : 0;
}

/* A string that begins here, if one does: 1; 0 when none does; -1. */
static int read_string(CallReader *r) {
    char c = peek(r);
    if (c == Q) {
        const char *from = r->p + 1, *end = memchr(from, Q, (size_t)(r->end - from));
        if (!end) return bad_call(r, "a string without an end");
        json_quote(r->out, from, (size_t)(end - from));
        r->p = end + 1;
        return 1;
    }
    if (c != '"') return 0;
    Str text;
    Scan scan = scan_open(r->p, (size_t)(r->end - r->p), "", NULL);
    int bad = scan_string(&scan, &text);
    int nul = !bad && memchr(text.s, 0, text.n);    /* nobody could read it back */
    if (!bad) json_quote(r->out, text.s, text.n);
    r->p = scan.p;
    scan_close(&scan);
    return bad ? bad_call(r, "a string without an end") : nul ? bad_call(r, "a NUL character") : 1;
}

static int read_members(CallReader *r, char close, int depth);

static int read_value(CallReader *r, int depth) {
    char c = peek(r);
    int is_string = read_string(r);
    if (is_string) return is_string < 0 ? -1 : 0;
    if (c == '{' || c == '[') {
        if (depth == MAX_DEPTH) return bad_call(r, "nested too deep");
        r->p++;
        buf_add(r->out, &c, 1);
        return read_members(r, c == '{' ? '}' : ']', depth + 1);
    }
    const char *from = r->p;
    while (r->p < r->end && !strchr(",]} \n\t\r", *r->p)) r->p++;
    size_t n = (size_t)(r->p - from);
    int is_number = n && n < 64 && json_number(from, n) == n;       /* cJSON reads numbers of up to 63 characters */
    if (is_number || (n == 4 && (!memcmp(from, "true", n) || !memcmp(from, "null", n))) || (n == 5 && !memcmp(from, "false", n)))
        buf_add(r->out, from, n);
    else if (n == 4 && !memcmp(from, "None", n)) buf_puts(r->out, "null");
    else return bad_call(r, "a value that is none");
    return 0;
}

static int read_key(CallReader *r) {
    int is_string = read_string(r);
    if (is_string < 0) return -1;
    if (!is_string) {
        const char *from = r->p;
        while (r->p < r->end && !strchr(":,{}[]", *r->p) && *r->p != Q) r->p++;
        size_t n = (size_t)(r->p - from);
        while (n && from[n - 1] == ' ') n--;
        if (!n) return bad_call(r, "a key is missing");
        json_quote(r->out, from, n);
    }
    if (peek(r) != ':') return bad_call(r, "a key without a value");
    r->p++;
    buf_puts(r->out, ":");
    return 0;
}

/* What stands between the brackets of an object or a list, and the closing one. */
static int read_members(CallReader *r, char close, int depth) {
    for (int i = 0;; i++) {
        char c = peek(r);
        if (!c) return bad_call(r, "it has no end");
        if (c == close) break;
        if (i) {
            if (c != ',') return bad_call(r, "a comma is missing");
            r->p++;
            buf_puts(r->out, ",");
        }
        if ((close == '}' && read_key(r)) || read_value(r, depth)) return -1;
    }
    r->p++;
    buf_add(r->out, &close, 1);
    return 0;
}

/* NULL, or what is wrong with the call in text[0..n). */
static const char *read_call(const char *text, size_t n, Buf *name, Buf *arguments) {
    if (!n) return "nothing in it";
    CallReader r = {.p = text, .end = text + n, .out = arguments};
    peek(&r);
    if (r.end - r.p >= 5 && !memcmp(r.p, "call:", 5)) r.p += 5;
    const char *brace = memchr(r.p, '{', (size_t)(r.end - r.p));
    if (!brace) return "no arguments";
    size_t len = (size_t)(brace - r.p);
    while (len && r.p[len - 1] == ' ') len--;
    for (size_t i = 0; i < len; i++)
        if ((unsigned char)r.p[i] <= ' ' || r.p[i] == Q || strchr("\"}[],", r.p[i])) return "no name";
    if (!len) return "no name";
    buf_add(name, r.p, len);
    r.p = brace + 1;
    buf_puts(arguments, "{");
    if (read_members(&r, '}', 0)) return r.why;
    return peek(&r) ? "something behind it" : NULL;
}

/* The call is complete, or nothing more of it comes: into s->calls, or into the content. */
static void end_call(ChatStream *s, Buf *content) {
    Buf name = {0}, arguments = {0};
    const char *why = read_call(s->name.data, s->name.len, &name, &arguments);
    s->state = CONTENT;
    if (why) {
        s->warning.len = 0;
        buf_printf(&s->warning, "a tool call could not be read and was left as text: %s", why);
        for (size_t i = 0; i < s->name.len; i++) buf_add(content, s->name.data[i] == Q ? "\"" : s->name.data + i, 1);
        buf_free(&name);
        buf_free(&arguments);
    } else {
        s->calls = xrealloc(s->calls, s->n_calls + 1, sizeof *s->calls);
        s->calls[s->n_calls++] = (ToolCall){name.data, arguments.data};
    }
    buf_free(&s->name);
}

/* Length of the bytes at s that U+FFFD stands for once: the longest that could have begun a character, or
 * one byte (Unicode's "maximal subpart", as Python's errors="replace" does it). */
static size_t bad_utf8(const char *s, size_t n) {
    size_t len = 1;
    while (len < n && utf8_char(s, len + 1) < 0) len++;
    return len;
}

/* Takes the whole characters from s->partial; with `all` also the beginning of one at the end. */
static void take_partial(ChatStream *s, int all, Buf *content, Buf *thought) {
    const char *p = s->partial.data;
    size_t i = 0, len = s->partial.len;
    while (i < len) {
        int n = utf8_char(p + i, len - i);
        if (n < 0 && !all) break;
        if (n > 0 && (p[i] || s->raw)) {
            take_char(s, p + i, (size_t)n, content, thought);
            i += (size_t)n;
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
    if (s->state == IN_CALL) end_call(s, content);
    int is_header = s->name.len >= strlen(HEADER) - 1;          /* in BEGIN: with or without its newline */
    if (s->state == BEGIN && !is_header) unread_name(s, CONTENT, content, thought);
    buf_free(&s->name);
    s->state = CONTENT;
}

static int is_name(const char *s, size_t n, const char *name) { return n == strlen(name) && !memcmp(s, name, n); }

/* Whether a control token shows in an answer: those of the template do not.  Names of any other shape come from
 * a tokenizer.model, which lists pieces such as <table> the same way: they are text. */
static int is_shown(const char *name, size_t n) {
    static const char *hidden[] = {"<pad>", "<eos>", "<bos>", "<unk>", "<mask>"};
    for (size_t i = 0; i < sizeof hidden / sizeof *hidden; i++)
        if (is_name(name, n, hidden[i])) return 0;
    return n < 2 || (memcmp(name, "<|", 2) && memcmp(name + n - 2, "|>", 2));
}

/* A control token, other than in raw text.  A call ends a thought; a QUOTE outside of a call is a quote; the marks
 * of a channel inside of a call are noise.  Returns 1 when its name is text. */
static int take_control(ChatStream *s, int id, const char *name, size_t n, Buf *content, Buf *thought) {
    if (s->state == IN_CALL) {
        take_partial(s, 1, content, thought);
        if (id == s->quote) buf_add(&s->name, (char[]){Q}, 1);
        else if (id == s->call_end || id == s->response) end_call(s, content);
        else if (id == s->call) end_channel(s, content, thought), s->state = IN_CALL;
        return 0;
    }
    if (id == s->channel || id == s->channel_end || id == s->call) {
        end_channel(s, content, thought);
        if (id != s->channel_end) s->state = id == s->call ? IN_CALL : NAME;
    } else if (id == s->quote) {
        take_partial(s, 1, content, thought);
        take_char(s, "\"", 1, content, thought);
    } else return is_shown(name, n);
    return 0;
}

void chat_stream_feed(ChatStream *s, int id, Buf *content, Buf *thought) {
    size_t n;
    const char *text = tokenizer_text(s->t, id, &n);
    if (!n) return;
    if (s->raw) s->state = CONTENT;
    else if (tokenizer_is_control(s->t, id) && !take_control(s, id, text, n, content, thought)) return;
    buf_add(&s->partial, text, n);
    take_partial(s, 0, content, thought);
}

void chat_stream_end(ChatStream *s, Buf *content, Buf *thought) {
    take_partial(s, 1, content, thought);
    if (s->state == IN_CALL) end_call(s, content);
    if (s->state == BEGIN) unread_name(s, CONTENT, content, thought);
    if (s->state == THOUGHT && s->newline) buf_puts(thought, "\n");
    s->newline = 0;
}

void chat_stream_free(ChatStream *s) {
    buf_free(&s->name);
    buf_free(&s->partial);
    buf_free(&s->warning);
    calls_free(s->calls, s->n_calls);
}
