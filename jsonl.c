/* jsonl.c - requests as JSON lines, answers as JSON lines.  See jsonl.h. */
#define _GNU_SOURCE
#include "jsonl.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "json.h"

/* ------------------------------------------------------------------------------------------------------------
 * Reading a request */

/* A number in [min, max] if it is there; whole where `whole` is set. */
static int get_number(const cJSON *o, const char *name, double min, double max, int whole, double *out, Error *err) {
    const cJSON *v = json_field(o, name);
    if (!v) return 0;
    if (!cJSON_IsNumber(v)) return fail(err, "%s: not a number", name);
    if (!(v->valuedouble >= min && v->valuedouble <= max)) return fail(err, "%s: %g is not between %g and %g", name, v->valuedouble, min, max);
    if (whole && v->valuedouble != floor(v->valuedouble)) return fail(err, "%s: %g is not a whole number", name, v->valuedouble);
    *out = v->valuedouble;
    return 0;
}

static int get_bool(const cJSON *o, const char *name, int *out, Error *err) {
    const cJSON *v = json_field(o, name);
    if (!v) return 0;
    if (!cJSON_IsBool(v)) return fail(err, "%s: not true or false", name);
    *out = cJSON_IsTrue(v);
    return 0;
}

static int get_stop(const cJSON *o, Generation *g, Error *err) {
    const cJSON *stop = json_field(o, "stop"), *s;
    if (!stop) return 0;
    int n = cJSON_IsArray(stop) ? cJSON_GetArraySize(stop) : 1;
    g->stop = xcalloc(n, sizeof *g->stop);
    s = cJSON_IsArray(stop) ? stop->child : stop;
    for (int i = 0; i < n; i++, s = s->next) {
        if (!cJSON_IsString(s) || !*s->valuestring) return fail(err, "stop: not a string or a list of strings that are not empty");
        g->stop[g->n_stop++] = s->valuestring;
    }
    return 0;
}

/* What is asked for and cannot be done is an error, never passed over. */
static int refuse_unsupported(const cJSON *o, Error *err) {
    static const char *const lists[] = {"tools", "functions", "logit_bias"};
    static const char *const numbers[] = {"presence_penalty", "frequency_penalty"};
    const cJSON *modality;
    for (size_t i = 0; i < sizeof lists / sizeof *lists; i++) {
        if (cJSON_GetArraySize(json_field(o, lists[i]))) return fail(err, "%s: not supported", lists[i]);
    }
    cJSON_ArrayForEach(modality, json_field(o, "modalities"))
        if (strcmp(cJSON_IsString(modality) ? modality->valuestring : "", "text")) return fail(err, "modalities: only text is supported");
    for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++) {
        const cJSON *v = json_field(o, numbers[i]);
        if (v && !(cJSON_IsNumber(v) && v->valuedouble == 0)) return fail(err, "%s: not supported (repetition_penalty is)", numbers[i]);
    }
    const cJSON *n = json_field(o, "n"), *format = json_field(json_field(o, "response_format"), "type");
    if (n && !(cJSON_IsNumber(n) && n->valuedouble == 1)) return fail(err, "n: only 1 is supported");
    if (format && strcmp(cJSON_IsString(format) ? format->valuestring : "", "text")) return fail(err, "response_format: only text is supported");
    return 0;
}

/* -s, where the request brings no system message of its own. */
static void add_system(const Engine *e, cJSON *messages) {
    const char *role = cJSON_GetStringValue(json_field(cJSON_GetArrayItem(messages, 0), "role"));
    if (!e->system || !cJSON_IsArray(messages) || (role && (!strcmp(role, "system") || !strcmp(role, "developer")))) return;
    cJSON *m = cJSON_CreateObject();
    cJSON_AddStringToObject(m, "role", "system");
    cJSON_AddStringToObject(m, "content", e->system);
    cJSON_InsertItemInArray(messages, 0, m);
}

int count_media(const cJSON *messages) {
    const cJSON *m, *part;
    int n = 0;
    cJSON_ArrayForEach(m, messages) cJSON_ArrayForEach(part, json_field(m, "content")) {
        const char *type = cJSON_GetStringValue(json_field(part, "type"));
        n += type && strcmp(type, "text");
    }
    return n;
}

int request_parse(const Engine *e, const char *text, size_t n, Request *r, Error *err) {
    Generation *g = &r->g;
    SamplerParams *p = &g->sampling;
    *r = (Request){.json = json_object(text, n, err)};
    const cJSON *o = r->json;
    if (!o) return -1;
    *p = e->sampling;
    g->max_tokens = e->max_tokens;
    g->thinking = e->thinking;
    double temperature = p->temperature, top_k = p->top_k, top_p = p->top_p, min_p = p->min_p, penalty = p->repeat_penalty;
    double seed = -1, max_tokens = g->max_tokens, top_logprobs = 0;
    if (refuse_unsupported(o, err) || get_number(o, "temperature", 0, 100, 0, &temperature, err) ||
        get_number(o, "top_k", -1, 1 << 24, 1, &top_k, err) || get_number(o, "top_p", 0, 1, 0, &top_p, err) ||
        get_number(o, "min_p", 0, 1, 0, &min_p, err) || get_number(o, "repetition_penalty", 0.01, 100, 0, &penalty, err) ||
        get_number(o, "seed", -9007199254740992.0, 9007199254740992.0, 1, &seed, err) ||
        get_number(o, "max_tokens", 0, 1 << 30, 1, &max_tokens, err) ||
        get_number(o, "max_completion_tokens", 0, 1 << 30, 1, &max_tokens, err) ||
        get_number(o, "top_logprobs", 0, 100, 1, &top_logprobs, err) || get_bool(o, "logprobs", &r->logprobs, err) ||
        get_bool(o, "stream", &r->stream, err) || get_bool(json_field(o, "stream_options"), "include_usage", &r->include_usage, err) ||
        get_bool(json_field(o, "chat_template_kwargs"), "enable_thinking", &g->thinking, err) || get_stop(o, g, err))
        return -1;
    if (top_logprobs && !r->logprobs) return fail(err, "top_logprobs: needs logprobs: true");
    *p = (SamplerParams){penalty, temperature, top_k < 0 ? 0 : top_k, top_p, min_p, json_field(o, "seed") ? (uint64_t)(int64_t)seed : p->seed};
    g->max_tokens = max_tokens;
    r->top_logprobs = top_logprobs;
    cJSON *messages = cJSON_GetObjectItemCaseSensitive(o, "messages");
    if (!cJSON_IsArray(messages)) return fail(err, "messages: %s", messages ? "not a list" : "missing");
    add_system(e, messages);
    if (chat_render(e->tokenizer, messages, json_field(o, "tools"), g->thinking, &r->prompt, err)) return -1;
    r->n_media = count_media(messages);
    g->ids = r->prompt.ids.id;
    g->n_ids = r->prompt.ids.n;
    g->n_stable = r->prompt.n_stable;
    return 0;
}

void request_free(Request *r) {
    free(r->g.stop);
    generation_free(&r->g);
    prompt_free(&r->prompt);
    cJSON_Delete(r->json);
}

/* ------------------------------------------------------------------------------------------------------------
 * Writing answers */

typedef struct {
    const Engine *e;
    const Request *r;
    long line, created;
    int n_vocab, opened;
    Buf logprobs;                       /* entries of logprobs.content that no chunk has carried yet */
    Buf out;
} Writer;

static void begin(Writer *w, const char *object) {
    w->out.len = 0;
    buf_printf(&w->out, "{\"id\": \"chatcmpl-%ld\", \"object\": \"%s\", \"created\": %ld, \"model\": ", w->line, object, w->created);
    json_quote(&w->out, w->e->name, strlen(w->e->name));
    buf_puts(&w->out, ", \"choices\": [");
}

static void put_usage(Writer *w, const Generation *g) {
    buf_printf(&w->out, ", \"usage\": {\"prompt_tokens\": %d, \"completion_tokens\": %d, \"total_tokens\": %d, "
               "\"prompt_tokens_details\": {\"cached_tokens\": %d}}", g->n_ids, g->answer.n, g->n_ids + g->answer.n, g->n_reused);
}

static void put_string_field(Buf *out, const char *before, const char *name, const Buf *text) {
    buf_printf(out, "%s\"%s\": ", before, name);
    json_quote(out, text->data, text->len);
}

static void put_logprobs(Writer *w) {
    buf_puts(&w->out, ", \"logprobs\": ");
    if (!w->r->logprobs) buf_puts(&w->out, "null");
    else buf_printf(&w->out, "{\"content\": [%s]}", w->logprobs.len ? w->logprobs.data : "");
    w->logprobs.len = 0;
}

static void end_line(Writer *w) {
    buf_puts(&w->out, "}\n");
    put_stdout(w->out.data, w->out.len);
}

/* "token", "logprob" and "bytes" of one candidate. */
static void put_candidate(Writer *w, int id, double logprob) {
    size_t n;
    const char *text = tokenizer_text(w->e->tokenizer, id, &n);
    buf_puts(&w->logprobs, "\"token\": ");
    json_quote(&w->logprobs, text, n);
    buf_printf(&w->logprobs, ", \"logprob\": %.6g, \"bytes\": [", logprob < -9999 ? -9999 : logprob);
    for (size_t i = 0; i < n; i++) buf_printf(&w->logprobs, "%s%d", i ? ", " : "", (unsigned char)text[i]);
    buf_puts(&w->logprobs, "]");
}

static void put_chunk(Writer *w, const char *role, const Buf *content, const Buf *thought, const char *finish) {
    begin(w, "chat.completion.chunk");
    buf_puts(&w->out, "{\"index\": 0, \"delta\": {");
    if (role) buf_printf(&w->out, "\"role\": \"%s\", \"content\": \"\"", role);
    if (thought && thought->len) put_string_field(&w->out, "", "reasoning_content", thought);
    if (content && content->len) put_string_field(&w->out, thought && thought->len ? ", " : "", "content", content);
    buf_puts(&w->out, "}");
    put_logprobs(w);
    buf_puts(&w->out, ", \"finish_reason\": ");
    if (finish) buf_printf(&w->out, "\"%s\"}]", finish);
    else buf_puts(&w->out, "null}]");
    if (w->r->include_usage) buf_puts(&w->out, ", \"usage\": null");
    end_line(w);
}

/* The first chunk says who speaks; it waits for the first token, so that an error stands alone. */
static void open_stream(Writer *w) {
    if (w->r->stream && !w->opened) put_chunk(w, "assistant", NULL, NULL, NULL);
    w->opened = 1;
}

/* Before temperature and penalties, as in `score`. */
static void on_token(void *arg, int id, const float *logits, int is_end) {
    Writer *w = arg;
    int top[100], n = w->r->top_logprobs < w->n_vocab ? w->r->top_logprobs : w->n_vocab;
    open_stream(w);
    if (!w->r->logprobs || is_end) return;
    if (w->logprobs.len) buf_puts(&w->logprobs, ", ");
    buf_puts(&w->logprobs, "{");
    put_candidate(w, id, log_prob(logits, w->n_vocab, id));
    buf_puts(&w->logprobs, ", \"top_logprobs\": [");
    top_logits(logits, w->n_vocab, n, top);
    for (int i = 0; i < n; i++) {
        buf_puts(&w->logprobs, i ? ", {" : "{");
        put_candidate(w, top[i], log_prob(logits, w->n_vocab, top[i]));
        buf_puts(&w->logprobs, "}");
    }
    buf_puts(&w->logprobs, "]}");
}

static void on_text(void *arg, const Buf *content, const Buf *thought) { put_chunk(arg, NULL, content, thought, NULL); }

static void put_completion(Writer *w, const Generation *g, const char *finish) {
    begin(w, "chat.completion");
    buf_puts(&w->out, "{\"index\": 0, \"message\": {\"role\": \"assistant\"");
    put_string_field(&w->out, ", ", "content", &g->content);
    if (g->thought.len) put_string_field(&w->out, ", ", "reasoning_content", &g->thought);
    buf_puts(&w->out, "}");
    put_logprobs(w);
    buf_printf(&w->out, ", \"finish_reason\": \"%s\"}]", finish);
    put_usage(w, g);
    end_line(w);
}

static void put_error(long line, const char *message) {
    Buf out = {0};
    buf_puts(&out, "{\"error\": {\"message\": ");
    json_quote(&out, message, strlen(message));
    buf_printf(&out, ", \"type\": \"invalid_request_error\", \"line\": %ld}}\n", line);
    put_stdout(out.data, out.len);
    buf_free(&out);
}

/* Returns 0, or -1 when the line became an error object. */
static int answer(const Engine *e, const char *text, size_t n, long line) {
    Error err;
    Request r;
    int bad = request_parse(e, text, n, &r, &err);
    if (!bad && r.n_media) bad = fail(&err, "messages: image parts are not supported yet");
    if (bad) {
        put_error(line, err.text);
        request_free(&r);
        return -1;
    }
    ModelInfo info;
    model_info(e->model, &info);
    Writer w = {.e = e, .r = &r, .line = line, .created = time(NULL), .n_vocab = info.config->vocab};
    r.g.arg = &w;
    r.g.on_token = on_token;
    r.g.on_text = r.stream ? on_text : NULL;
    bad = generate(e, &r.g, &err);
    const char *finish = r.g.finish == FINISH_LENGTH ? "length" : "stop";
    if (bad) put_error(line, err.text);
    else if (!r.stream) put_completion(&w, &r.g, finish);
    else {
        open_stream(&w);
        put_chunk(&w, NULL, NULL, NULL, finish);
        if (r.include_usage) {
            begin(&w, "chat.completion.chunk");
            buf_puts(&w.out, "]");
            put_usage(&w, &r.g);
            end_line(&w);
        }
    }
    if (e->stats && !bad) print_stats(&r.g);
    buf_free(&w.logprobs);
    buf_free(&w.out);
    request_free(&r);
    return bad;
}

int run_jsonl(const Engine *e, FILE *in) {
    char *text = NULL;
    size_t cap = 0;
    int status = 0;
    ssize_t n;
    for (long line = 1; (n = getline(&text, &cap, in)) >= 0; line++) {
        if (strspn(text, " \t\r\n") == (size_t)n) continue;
        if (answer(e, text, n, line)) status = 1;
    }
    free(text);
    return status;
}
