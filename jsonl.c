/* jsonl.c - requests as JSON lines, answers as JSON lines.  See jsonl.h. */
#define _GNU_SOURCE
#include "jsonl.h"

#include <errno.h>
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
    static const char *const lists[] = {"functions", "logit_bias"};
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
    return 0;
}

/* tools, tool_choice, parallel_tool_calls. */
static int get_tools(const Engine *e, const cJSON *o, Request *r, Error *err) {
    const cJSON *choice = json_field(o, "tool_choice");
    const char *word = cJSON_GetStringValue(choice);
    r->tools = json_field(o, "tools") ? json_field(o, "tools") : e->tools;
    r->several = 1;
    if (r->tools && !cJSON_IsArray(r->tools)) return fail(err, "tools: must be a list");
    if (get_bool(o, "parallel_tool_calls", &r->several, err)) return -1;
    if (!cJSON_GetArraySize(r->tools)) r->tools = NULL;
    if (!choice || (word && !strcmp(word, "auto"))) return 0;
    if (word && !strcmp(word, "none")) {
        r->tools = NULL;
        return 0;
    }
    r->must_call = 1;
    r->tool = cJSON_GetStringValue(json_field(json_field(choice, "function"), "name"));
    if (r->tool) r->several = 0;
    else if (!word || strcmp(word, "required")) return fail(err, "tool_choice: must be none, auto, required or name a function");
    if (r->tools && (!r->tool || is_tool(r->tools, r->tool))) return 0;
    return fail(err, "tool_choice: no such tool");
}

static int get_format(const Engine *e, const cJSON *o, Request *r, Error *err) {
    const cJSON *format = json_field(o, "response_format");
    const char *type = cJSON_GetStringValue(json_field(format, "type"));
    r->schema = r->must_call ? NULL : e->json_schema;
    if (!format) return 0;
    if (type && !strcmp(type, "json_schema")) {
        r->schema = json_field(json_field(format, "json_schema"), "schema");
        if (!r->schema) return fail(err, "response_format.json_schema.schema: missing");
    } else if (type && !strcmp(type, "json_object")) {
        r->schema = cJSON_AddObjectToObject(r->json, " any object");
        cJSON_AddStringToObject((cJSON *)r->schema, "type", "object");
    } else if (type && !strcmp(type, "text")) r->schema = NULL;
    else return fail(err, "response_format.type: must be text, json_object or json_schema");
    if (r->schema && r->must_call) return fail(err, "response_format: a schema beside a tool_choice that demands a call");
    return 0;
}

/* -s, where the request brings no system message of its own. */
static void add_system(const Engine *e, cJSON *messages) {
    const cJSON *first = cJSON_GetArrayItem(messages, 0);
    if (!e->system || !cJSON_IsArray(messages) || has_role(first, "system") || has_role(first, "developer")) return;
    cJSON_InsertItemInArray(messages, 0, chat_message("system", e->system));
}

int request_parse(const Engine *e, const char *text, size_t n, Request *r, Error *err) {
    Generation *g = &r->g;
    SamplerParams *p = &g->sampling;
    *r = (Request){.json = json_object(text, n, err)};
    const cJSON *o = r->json, *id = json_field(o, "custom_id");
    if (!o) return -1;
    if (json_field(o, "body") && !json_field(o, "messages")) {
        r->custom_id = cJSON_IsString(id) ? id->valuestring : "";
        if (!cJSON_IsObject(o = json_field(o, "body"))) return fail(err, "body: not an object");
    }
    *p = e->sampling;
    g->max_tokens = e->max_tokens;
    g->thinking = e->thinking;
    r->stream = e->stream;
    double temperature = p->temperature, top_k = p->top_k, top_p = p->top_p, min_p = p->min_p, penalty = p->repeat_penalty;
    double seed = -1, max_tokens = g->max_tokens, top_logprobs = 0, n_choices = 1, think_tokens = g->think_tokens = e->think_tokens;
    if (refuse_unsupported(o, err) || get_number(o, "temperature", 0, 100, 0, &temperature, err) ||
        get_number(o, "top_k", -1, 1 << 24, 1, &top_k, err) || get_number(o, "top_p", 0, 1, 0, &top_p, err) ||
        get_number(o, "min_p", 0, 1, 0, &min_p, err) || get_number(o, "repetition_penalty", 0.01, 100, 0, &penalty, err) ||
        get_number(o, "seed", -9007199254740992.0, 9007199254740992.0, 1, &seed, err) ||
        get_number(o, "max_tokens", 0, 1 << 30, 1, &max_tokens, err) ||
        get_number(o, "max_completion_tokens", 0, 1 << 30, 1, &max_tokens, err) ||
        get_number(o, "n", 1, 128, 1, &n_choices, err) || get_number(o, "thinking_token_budget", -1, 1 << 30, 1, &think_tokens, err) ||
        get_tools(e, o, r, err) || get_format(e, o, r, err) ||
        get_number(o, "top_logprobs", 0, 100, 1, &top_logprobs, err) || get_bool(o, "logprobs", &r->logprobs, err) ||
        get_bool(o, "stream", &r->stream, err) || get_bool(json_field(o, "stream_options"), "include_usage", &r->include_usage, err) ||
        get_bool(json_field(o, "chat_template_kwargs"), "enable_thinking", &g->thinking, err) || get_stop(o, g, err))
        return -1;
    if (top_logprobs > 0 && !r->logprobs) return fail(err, "top_logprobs: needs logprobs: true");
    *p = (SamplerParams){(float)penalty, (float)temperature, top_k < 0 ? 0 : (int)top_k, (float)top_p, (float)min_p,
                         json_field(o, "seed") ? (uint64_t)(int64_t)seed : p->seed};
    g->max_tokens = (int)max_tokens;
    g->think_tokens = (int)think_tokens;
    r->n = (int)n_choices;
    if (r->stream && r->custom_id) return fail(err, "stream: not in a batch");
    r->top_logprobs = (int)top_logprobs;
    cJSON *messages = cJSON_GetObjectItemCaseSensitive(o, "messages");
    if (!cJSON_IsArray(messages)) return fail(err, "messages: %s", messages ? "not a list" : "missing");
    add_system(e, messages);
    return engine_prompt(e, messages, r->tools, g, &r->prompt, err);
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
    int n_vocab, opened;                /* opened: the first chunk of this choice is out */
    int index;                          /* of the choice that is being made */
    int n_answer, n_reused;             /* tokens of all choices; of the prompt in the cache at first */
    Buf choices;                        /* those that are complete, when they come all at once */
    Buf logprobs;                       /* entries of logprobs.content that no chunk has carried yet */
    Buf out;
} Writer;

static void begin(Writer *w, const char *object) {
    w->out.len = 0;
    buf_printf(&w->out, "{\"id\": \"chatcmpl-%ld\", \"object\": \"%s\", \"created\": %ld, \"model\": ", w->line, object, w->created);
    json_quote(&w->out, w->e->name, strlen(w->e->name));
    buf_puts(&w->out, ", \"choices\": [");
}

static void put_usage(Writer *w) {
    int n = w->r->prompt.ids.n;
    buf_printf(&w->out, ", \"usage\": {\"prompt_tokens\": %d, \"completion_tokens\": %d, \"total_tokens\": %d, "
               "\"prompt_tokens_details\": {\"cached_tokens\": %d}}", n, w->n_answer, n + w->n_answer, w->n_reused);
}

void put_tool_calls(Buf *out, const ToolCall *calls, int n, int n_prompt, int numbered, int first) {
    buf_puts(out, "[");
    for (int i = 0; i < n; i++) {
        buf_puts(out, i ? ", {" : "{");
        if (numbered) buf_printf(out, "\"index\": %d, ", first + i);
        buf_printf(out, "\"id\": \"call_%d_%d\", \"type\": \"function\", \"function\": {\"name\": ", n_prompt, first + i);
        json_quote(out, calls[i].name, strlen(calls[i].name));
        buf_puts(out, ", \"arguments\": ");
        json_quote(out, calls[i].arguments, strlen(calls[i].arguments));
        buf_puts(out, "}}");
    }
    buf_puts(out, "]");
}

int is_tool(const cJSON *tools, const char *name) {
    const cJSON *tool;
    cJSON_ArrayForEach(tool, tools) {
        const char *known = cJSON_GetStringValue(json_field(json_field(tool, "function"), "name"));
        if (known && !strcmp(known, name)) return 1;
    }
    return 0;
}

const char *unknown_call(const Generation *g, const cJSON *tools) {
    for (int i = 0; i < g->n_calls; i++)
        if (!is_tool(tools, g->calls[i].name)) return g->calls[i].name;
    return NULL;
}

/* What the client should know about this choice beside its text; nothing when there is nothing. */
static void put_warnings(Buf *out, const Engine *e, const Generation *g, const cJSON *tools) {
    const char *name = unknown_call(g, tools);
    long long context = session_context(e->session);
    int n = 0;
    Buf text[4] = {{0}};
    if (g->n_dropped)
        buf_printf(&text[n++], "the context of %lld tokens (-c) is full: the oldest %d messages were dropped", context, g->n_dropped);
    if (g->full) buf_printf(&text[n++], "the answer was cut: the context of %lld tokens (-c) is full", context);
    if (g->warning.len) buf_add(&text[n++], g->warning.data, g->warning.len);
    if (name) buf_printf(&text[n++], "a call of %s, which is no tool of this request", name);
    for (int i = 0; i < n; i++) {
        buf_puts(out, i ? ", " : ", \"warnings\": [");
        json_quote(out, text[i].data, text[i].len);
        buf_free(&text[i]);
    }
    if (n) buf_puts(out, "]");
}

static void put_string_field(Buf *out, const char *before, const char *name, const Buf *text) {
    buf_printf(out, "%s\"%s\": ", before, name);
    json_quote(out, text->data, text->len);
}

static void put_logprobs(Writer *w, Buf *out) {
    buf_puts(out, ", \"logprobs\": ");
    if (!w->r->logprobs) buf_puts(out, "null");
    else buf_printf(out, "{\"content\": [%s]}", w->logprobs.len ? w->logprobs.data : "");
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

/* Of a role, text, a call, or a finish; g: the choice that is finished. */
static void put_chunk(Writer *w, const char *role, const Buf *content, const Buf *thought, const Buf *calls, const Generation *g, const char *finish) {
    begin(w, "chat.completion.chunk");
    buf_printf(&w->out, "{\"index\": %d, \"delta\": {", w->index);
    if (calls) buf_printf(&w->out, "\"tool_calls\": %s", calls->data);
    if (role) buf_printf(&w->out, "\"role\": \"%s\", \"content\": \"\"", role);
    if (thought && thought->len) put_string_field(&w->out, "", "reasoning_content", thought);
    if (content && content->len) put_string_field(&w->out, thought && thought->len ? ", " : "", "content", content);
    buf_puts(&w->out, "}");
    put_logprobs(w, &w->out);
    buf_puts(&w->out, ", \"finish_reason\": ");
    if (finish) buf_printf(&w->out, "\"%s\"", finish);
    else buf_puts(&w->out, "null");
    if (g) put_warnings(&w->out, w->e, g, w->r->tools);
    buf_puts(&w->out, "}]");
    if (w->r->include_usage) buf_puts(&w->out, ", \"usage\": null");
    end_line(w);
}

/* The first chunk says who speaks; it waits for the first token, so that an error stands alone. */
static void open_stream(Writer *w) {
    if (w->r->stream && !w->opened) put_chunk(w, "assistant", NULL, NULL, NULL, NULL, NULL);
    w->opened = 1;
}

/* Before temperature and penalties, as in `score`. */
static void on_token(void *arg, int id, int is_end) {
    Writer *w = arg;
    int top[100], n = w->r->top_logprobs < w->n_vocab ? w->r->top_logprobs : w->n_vocab;
    open_stream(w);
    if (!w->r->logprobs || is_end) return;
    const float *logits = session_logits(w->e->session);
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

static void on_text(void *arg, const Buf *content, const Buf *thought) { put_chunk(arg, NULL, content, thought, NULL, NULL, NULL); }

static void on_call(void *arg, int i, const ToolCall *call) {
    Writer *w = arg;
    Buf calls = {0};
    put_tool_calls(&calls, call, 1, w->r->prompt.ids.n, 1, i);
    put_chunk(w, NULL, NULL, NULL, &calls, NULL, NULL);
    buf_free(&calls);
}

static void put_choice(Writer *w, const Generation *g, const char *finish) {
    Buf *out = &w->choices;
    buf_printf(out, "%s{\"index\": %d, \"message\": {\"role\": \"assistant\"", w->index ? ", " : "", w->index);
    if (g->n_calls && !g->content.len) buf_puts(out, ", \"content\": null");
    else put_string_field(out, ", ", "content", &g->content);
    if (g->thought.len) put_string_field(out, ", ", "reasoning_content", &g->thought);
    if (g->n_calls) {
        buf_puts(out, ", \"tool_calls\": ");
        put_tool_calls(out, g->calls, g->n_calls, g->n_ids, 0, 0);
    }
    buf_puts(out, "}");
    put_logprobs(w, out);
    buf_printf(out, ", \"finish_reason\": \"%s\"", finish);
    put_warnings(out, w->e, g, w->r->tools);
    buf_puts(out, "}");
}

/* In a batch the completion is the body of a response. */
static void put_completion(Writer *w) {
    begin(w, "chat.completion");
    buf_add(&w->out, w->choices.data, w->choices.len);
    buf_puts(&w->out, "]");
    put_usage(w);
    if (w->r->custom_id) {
        Buf body = w->out;
        w->out = (Buf){0};
        buf_printf(&w->out, "{\"id\": \"batch_req_%ld\", \"custom_id\": ", w->line);
        json_quote(&w->out, w->r->custom_id, strlen(w->r->custom_id));
        buf_printf(&w->out, ", \"response\": {\"status_code\": 200, \"request_id\": \"req_%ld\", \"body\": %s}}, \"error\": null", w->line, body.data);
        buf_free(&body);
    }
    end_line(w);
}

static void put_error(const Request *r, long line, const char *message) {
    Buf out = {0};
    buf_puts(&out, "{");
    if (r->custom_id) {
        buf_printf(&out, "\"id\": \"batch_req_%ld\", \"custom_id\": ", line);
        json_quote(&out, r->custom_id, strlen(r->custom_id));
        buf_puts(&out, ", \"response\": null, ");
    }
    buf_puts(&out, "\"error\": {\"message\": ");
    json_quote(&out, message, strlen(message));
    buf_printf(&out, ", \"type\": \"invalid_request_error\", \"line\": %ld}}\n", line);
    put_stdout(out.data, out.len);
    buf_free(&out);
}

/* One choice after the other; a seed of its own for each. */
static int answer_choices(const Engine *e, Request *r, Writer *w, Error *err) {
    int bad = 0;
    for (w->index = 0; w->index < r->n && !bad; w->index++) {
        Generation g = r->g;
        g.sampling.seed += (uint64_t)w->index;
        g.arg = w;
        g.on_token = on_token;
        g.all_logits = r->logprobs;
        g.on_text = r->stream ? on_text : NULL;
        g.on_call = r->stream ? on_call : NULL;
        w->opened = 0;
        bad = generate(e, &g, err);
        w->n_answer += g.answer.n;
        if (!w->index) w->n_reused = g.n_reused;
        const char *finish = g.finish == FINISH_LENGTH ? "length" : g.n_calls ? "tool_calls" : "stop";
        if (!bad && r->stream) {
            open_stream(w);
            put_chunk(w, NULL, NULL, NULL, NULL, &g, finish);
        } else if (!bad) put_choice(w, &g, finish);
        if (e->stats && !bad) print_stats(&g);
        generation_free(&g);
    }
    return bad;
}

/* Returns 0, or -1 when the line became an error object. */
static int answer(Engine *e, const char *text, size_t n, long line) {
    Error err, why;
    Request r;
    int bad = request_parse(e, text, n, &r, &err);
    if (!bad && r.must_call && !(r.g.schema = engine_calls(e, r.tools, r.tool, r.several, &why))) bad = fail(&err, "tools: %s", why.text);
    if (!bad && r.schema && !(r.g.schema = engine_schema(e, r.schema, &why))) bad = fail(&err, "response_format: %s", why.text);
    ModelInfo info;
    model_info(e->model, &info);
    Writer w = {.e = e, .r = &r, .line = line, .created = time(NULL), .n_vocab = info.config->vocab};
    if (!bad) bad = answer_choices(e, &r, &w, &err);
    if (bad) put_error(&r, line, err.text);
    else if (!r.stream) put_completion(&w);
    else if (r.include_usage) {
        begin(&w, "chat.completion.chunk");
        buf_puts(&w.out, "]");
        put_usage(&w);
        end_line(&w);
    }
    buf_free(&w.choices);
    buf_free(&w.logprobs);
    buf_free(&w.out);
    request_free(&r);
    return bad;
}

/* The next line, without its end; of one longer than INPUT_LIMIT that much and a byte.  Returns 0 at the end of input. */
static int read_line(FILE *in, Buf *text) {
    int c;
    text->len = 0;
    buf_add(text, "", 0);
    while ((c = getc_unlocked(in)) != EOF && c != '\n' && text->len <= INPUT_LIMIT) buf_add(text, &(char){(char)c}, 1);
    return c != EOF || text->len;
}

int run_jsonl(Engine *e, FILE *in) {
    Buf text = {0};
    Error err;
    int status = 0;
    for (long line = 1; read_line(in, &text); line++) {
        if (text.len > INPUT_LIMIT) {
            fail(&err, "the line has more than %zu MB", INPUT_LIMIT >> 20);
            put_error(&(Request){0}, line, err.text);
            for (int c = 0; c != EOF && c != '\n';) c = getc_unlocked(in);
            buf_free(&text);
            status = 1;
        } else if (strspn(text.data, " \t\r") < text.len && answer(e, text.data, text.len, line)) status = 1;
    }
    if (ferror(in)) {
        note("gemma4: stdin: %s\n", strerror(errno));
        status = 1;
    }
    buf_free(&text);
    return status;
}
