/* main.c - options, and what each call of the program does.
 *
 * The way of a token: main -> chat.c (text to ids) -> model.c (session, forward) -> cpu.c -> sampler.c -> chat.c (ids to
 * text) -> main.  generate.c holds the loop; repl.c the chat prompt; jsonl.c the JSON requests. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <unistd.h>

#include "bench.h"
#include "check.h"
#include "conversation.h"
#include "declare.h"
#include "find.h"
#include "generate.h"
#include "json.h"
#include "jsonl.h"
#include "options.h"
#include "repl.h"
#include "request.h"
#include "score.h"
#include "tools.h"

static volatile sig_atomic_t interrupted;   /* set by Ctrl-C at the chat prompt: stops an answer */
static int stderr_is_terminal, dims;   /* dims: thoughts are shown dimmed there */

/* SIGINT (outside the chat prompt, which has a handler of its own), SIGTERM and SIGHUP end the program at once: whatever was
 * answered is on stdout already.  A tool goes with it; the terminal is left as it was, and not dimmed. */
static void on_signal(int number) {
    tool_kill();
    repl_leave();
    ssize_t done = dims ? write(STDERR_FILENO, "\033[0m\n", 5) : 0;
    (void)done;
    _exit(128 + number);
}

static void catch_signals(void) {
    struct sigaction old;
    signal(SIGPIPE, SIG_IGN);           /* put_stdout sees EPIPE instead */
    sigaction(SIGINT, &(struct sigaction){.sa_handler = on_signal}, NULL);
    sigaction(SIGTERM, &(struct sigaction){.sa_handler = on_signal}, NULL);
    sigaction(SIGHUP, &(struct sigaction){.sa_handler = on_signal}, &old);
    if (old.sa_handler == SIG_IGN) signal(SIGHUP, SIG_IGN);         /* nohup */
}

/* ---- opening the engine ---- */

/* -m, $GEMMA4_MODEL or the demo, as a directory. */
static int find_model(Options *o, Buf *dir, Error *err) {
    if (!o->model) o->model = getenv("GEMMA4_MODEL");
    if (o->model && *o->model) return find_checkpoint(o->model, dir, err);
    o->model = "demo";
    return find_demo(dir, err);
}

/* On a terminal, when reading the prompt takes longer than a second. */
static void show_progress(void *arg, int n, double done) {
    static double start;
    static int shown;
    double now = seconds();
    (void)arg;
    if (n <= MAX_VIEW) return;          /* a token, or a few that were drafted */
    if (start == 0) start = now;
    if (now - start > 1 && done < 1) {
        fprintf(stderr, "\rreading the prompt: %3.0f %% of %d tokens, %.0f s left ", 100 * done, n, (now - start) * (1 - done) / done);
        shown = 1;
    }
    if (done >= 1) {
        if (shown) fputs("\r\033[K", stderr);
        start = shown = 0;
    }
}

/* On a terminal, when it takes longer than a second. */
static void show_loading(double done) {
    static double start;
    static int shown;
    if (start == 0) start = seconds();
    if (seconds() - start > 1 && done < 1) shown = fprintf(stderr, "\rloading the weights: %3.0f %% ", 100 * done);
    else if (shown) shown = 0, fputs("\r\033[K", stderr);
}

/* The GPU's operations, or NULL with err, which says why there are none. */
static const Ops *gpu_ops(Error *err) {
#ifdef HAVE_CUDA
    return cuda_found(err) ? &cuda_ops : NULL;
#else
    fail(err, "this program was built without CUDA");
    return NULL;
#endif
}

static SessionOptions session_options(const Options *o, const Model *m) {
    ModelInfo info;
    model_info(m, &info);
    SessionOptions s = {.ops = &cpu_ops, .chunk = o->chunk, .picture = o->image_tokens, .kv = o->kv,
                        .n_threads = o->threads ? o->threads : n_cpus(), .exact = o->exact,
                        .fp4_activations = o->fp4_activations, .cancel = &interrupted};
    if (o->exact && s.kv == KV_AUTO) s.kv = KV_F32;
    s.context = o->context > 0 ? o->context : is_command(o, "bench") ? BENCH_ROOM : 32768;
    if (s.context > info.config->max_context && o->context < 0) s.context = info.config->max_context;
    if (stderr_is_terminal) s.progress = show_progress, s.loading = show_loading;
    return s;
}

/* What the options leave open the checkpoint says. */
static void fill_sampling(const Options *o, const GenerationConfig *g, SamplerParams *p) {
    *p = o->sampling;
    if (p->temperature < 0) p->temperature = g->temperature;
    if (p->top_k < 0) p->top_k = g->top_k;
    if (p->top_p < 0) p->top_p = g->top_p;
    if (p->min_p < 0) p->min_p = 0;
    if (p->repeat_penalty < 0) p->repeat_penalty = 1;
    if (!o->have_seed && getrandom(&p->seed, sizeof p->seed, 0) < 0) p->seed = 0;
}

static void warn_of_memory(const Model *m) {
    ModelInfo info;
    model_info(m, &info);
    double have = (double)sysconf(_SC_PHYS_PAGES) * (double)sysconf(_SC_PAGESIZE);
    if ((double)info.bytes_on_disk > have)
        fprintf(stderr, "gemma4: warning: the weights (%.1f GB) exceed this machine's memory (%.1f GB): they are read from disk again and again\n",
                (double)info.bytes_on_disk * 1e-9, have * 1e-9);
}

/* What messages call an option's value: the file, or the option where it is the JSON itself. */
static const char *json_name(const char *option, const char *value) {
    return *value == '{' || *value == '[' ? option : value;
}

/* The JSON that is an option's value or stands in the file of that name.  NULL with err. */
static cJSON *read_json(const char *option, const char *value, Error *err) {
    const char *name = json_name(option, value);
    Buf text = {0};
    Error why;
    if (name == option) buf_puts(&text, value);
    else if (read_file(value, &text, err)) return NULL;
    cJSON *json = json_value(text.data, text.len, &why);
    if (!json) fail(err, "%s: %s", name, why.text);
    buf_free(&text);
    return json;
}

/* --tools and --json-schema; what is wrong with them is said before anything is generated. */
static int read_tools(const Options *o, Engine *e, Error *err) {
    Error why;
    if (o->tools) {
        cJSON *json = read_json("--tools", o->tools, err);
        if (!json) return -1;
        Buf unknown = {0};
        e->tools = tools_read(json, &why);
        if (e->tools) tools_unknown(json, &unknown);
        if (unknown.len)
            note("gemma4: warning: %s: unknown fields have no effect: %s\n",
                 json_name("--tools", o->tools), unknown.data);
        buf_free(&unknown);
        cJSON_Delete(json);
        if (!e->tools) return fail(err, "%s: %s", json_name("--tools", o->tools), why.text);
    }
    if (!o->json_schema) return 0;
    if (!(e->json_schema = read_json("--json-schema", o->json_schema, err))) return -1;
    if (e->model && !engine_schema(e, e->json_schema, &why))
        return fail(err, "%s: %s", json_name("--json-schema", o->json_schema), why.text);
    return 0;
}

/* On the GPU, if it can be; otherwise, unless the GPU was asked for by name, on the CPU. */
static int open_session(const Options *o, Engine *e, Error *err) {
    SessionOptions s = session_options(o, e->model);
    Error why;
    if (o->fp4_activations) {           /* for which the CPU is no substitute */
        if (strcmp(o->device, "cpu")) s.ops = gpu_ops(&why);
        if (s.ops && (e->session = session_new(e->model, &s, &why))) return 0;
        return fail(err, "--fp4-activations: %s", why.text);
    }
    if (strcmp(o->device, "cpu")) {
        if ((s.ops = gpu_ops(&why)) && (e->session = session_new(e->model, &s, &why))) return 0;
        if (!strcmp(o->device, "cuda")) return fail(err, "--device cuda: %s", why.text);
#ifdef HAVE_CUDA
        note("gemma4: %s: using the CPU\n", why.text);
#endif
    }
    s.ops = &cpu_ops;
    warn_of_memory(e->model);
    return (e->session = session_new(e->model, &s, err)) ? 0 : -1;
}

/* --draft.  Where none was asked for but the one of Google's is at hand, that is said to who sits before it. */
static int open_drafter(const Options *o, Engine *e, Error *err) {
    static const char google[] = "google/gemma-4-26B-A4B-it-assistant";
    Buf dir = {0};
    int bad = 0;
    if (o->draft) {
        if (o->draft_log && !(e->draft_log = fopen(o->draft_log, "w"))) bad = fail(err, "%s: %s", o->draft_log, strerror(errno));
        bad = bad || find_checkpoint(o->draft, &dir, err);
        if (!bad) bad = !(e->drafter = drafter_open(dir.data, e->model, e->session, o->draft_tokens, e->draft_log, err));
    } else if (stderr_is_terminal && strstr(o->model, "26B-A4B") && !find_in_hub(google, &dir, NULL))
        fprintf(stderr, "gemma4: a drafter is at hand: --draft %s may be faster\n", google);
    buf_free(&dir);
    return bad ? -1 : 0;
}

/* Opens the tokenizer, the model, a session and perhaps a drafter. */
static int open_engine(Options *o, const char *dir, Engine *e, Error *err) {
    *e = (Engine){.name = o->model, .interrupted = &interrupted, .max_tokens = o->max_tokens, .thinking = o->think,
                  .think_tokens = o->think_tokens, .system = o->system, .stats = o->stats, .stream = o->stream,
                  .tool_dir = o->run_tools, .run_unasked = o->yes, .slide = o->slide};
    if (!(e->model = model_open(dir, err)) || !(e->tokenizer = tokenizer_open(dir, err)) || model_check(e->model, err)) return -1;
    ModelInfo info;
    model_info(e->model, &info);
    if (tokenizer_n_vocab(e->tokenizer) > info.config->vocab)
        return fail(err, "%s: %d ids, config.json's vocab_size is %d", tokenizer_file(e->tokenizer), tokenizer_n_vocab(e->tokenizer),
                    info.config->vocab);
    if (o->context > info.config->max_context) return fail(err, "-c %d: the model's context is %d", o->context, info.config->max_context);
    fill_sampling(o, model_generation(e->model), &e->sampling);
    if (read_tools(o, e, err)) return -1;
    return open_session(o, e, err) || open_drafter(o, e, err) ? -1 : 0;
}

static void close_engine(Engine *e) {
    drafter_close(e->drafter);
    if (e->draft_log) {
        int lost = ferror(e->draft_log);
        if (fclose(e->draft_log) || lost) fputs("gemma4: warning: --draft-log: lines are lost\n", stderr);
    }
    cJSON_Delete(e->tools);
    cJSON_Delete(e->json_schema);
    schema_free(e->schema);
    free(e->schema_text);
    buf_free(&e->schema_warning);
    pieces_free(e->pieces);
    session_free(e->session);
    model_close(e->model);
    tokenizer_free(e->tokenizer);
}

/* ---- the commands ---- */

static void put_ids(const Ids *ids) {
    Buf out = {0};
    for (int i = 0; i < ids->n; i++) buf_printf(&out, "%s%d", i ? " " : "", ids->id[i]);
    buf_puts(&out, "\n");
    put_stdout(out.data, out.len);
    buf_free(&out);
}

/* Whitespace separated ids below n_vocab. */
static int parse_ids(const char *file, const Buf *text, int n_vocab, Ids *ids, Error *err) {
    const char *p = text->data, *end = text->data + text->len;
    for (;;) {
        while (p < end && (*p == ' ' || (*p >= '\t' && *p <= '\r'))) p++;
        if (p == end) return 0;
        const char *from = p;
        long long v = 0;
        while (p < end && *p >= '0' && *p <= '9' && v < n_vocab) v = v * 10 + (*p++ - '0');
        int at_end = p == end || *p == ' ' || (*p >= '\t' && *p <= '\r');
        if (v >= n_vocab || (p > from && !at_end && *p >= '0' && *p <= '9'))
            return fail(err, "%s: id %.*s is outside the vocabulary of %d", file, (int)strspn(from, "0123456789") % 30, from, n_vocab);
        if (p == from || !at_end) return fail(err, "%s: byte %zu is no token id", file, (size_t)(p - text->data));
        ids_add(ids, (int)v);
    }
}

static int run_tokenize(const Options *o, const char *dir, Error *err) {
    Tokenizer *t = tokenizer_open(dir, err);
    Buf in = {0}, out = {0};
    Ids ids = {0};
    int bad = !t || read_file("-", &in, err);
    if (!bad && o->decode) bad = parse_ids("stdin", &in, tokenizer_n_vocab(t), &ids, err);
    else if (!bad) tokenizer_encode(t, in.data, in.len, !o->plain, &ids);
    for (int i = 0; !bad && o->decode && i < ids.n; i++) {
        size_t n;
        const char *text = tokenizer_text(t, ids.id[i], &n);
        buf_add(&out, text, n);
    }
    if (!bad && o->decode) put_stdout(out.data, out.len);
    else if (!bad) put_ids(&ids);
    buf_free(&in);
    buf_free(&out);
    ids_free(&ids);
    tokenizer_free(t);
    return bad ? -1 : 0;
}

static int run_render(const Options *o, const char *dir, Error *err) {
    MediaStore media = {.image_tokens = o->image_tokens, .video_frames = o->video_frames, .placeholders = 1};
    Engine e = {.thinking = o->think, .think_tokens = -1, .system = o->system, .max_tokens = -1, .media = &media};
    Request r = {0};
    Buf in = {0};
    Error why;
    int bad = !(e.tokenizer = tokenizer_open(dir, err)) || read_tools(o, &e, err) || read_file("-", &in, err);
    if (!bad && request_parse(&e, in.data, in.len, &r, &why)) bad = fail(err, "stdin: %s", why.text);
    if (!bad && o->ids) put_ids(&r.prompt.ids);
    else if (!bad) put_stdout(r.prompt.text.data, r.prompt.text.len);
    request_free(&r);
    buf_free(&in);
    media_free(&media);
    tokenizer_free(e.tokenizer);
    cJSON_Delete(e.tools);
    cJSON_Delete(e.json_schema);
    return bad ? -1 : 0;
}

static int run_info(Options *o, const char *dir, Error *err) {
    static const char *const group[] = {"attention", "mlp", "experts", "embedding"};
    Model *m = model_open(dir, err);
    if (!m) return -1;
    ModelInfo i;
    model_info(m, &i);
    if (o->context > i.config->max_context) {
        model_close(m);
        return fail(err, "-c %d: the model's context is %d", o->context, i.config->max_context);
    }
    SessionOptions s = session_options(o, m);
    Memory gpu;
    Error why;
    const Ops *ops = strcmp(o->device, "cpu") ? gpu_ops(&why) : &cpu_ops;
    int bad = !ops && !strcmp(o->device, "cuda") ? fail(err, "--device cuda: %s", why.text) : 0;
    if (ops) s.ops = ops;
    if (!bad && o->fp4_activations && s.ops == &cpu_ops)
        bad = fail(err, "--fp4-activations needs a GPU of compute capability 12.0 or 12.1");
    if (!bad) bad = session_memory(m, &s, &gpu, err);
    if (bad) {
        model_close(m);
        return -1;
    }
    int64_t per_token, context_bytes = kv_bytes(m, &s, &per_token);
    Buf out = {0};
    const Config *c = i.config;
    if (o->json) {
        buf_puts(&out, "{\"model\": ");
        json_quote(&out, o->model, strlen(o->model));
        buf_printf(&out, ", \"layers\": %d, \"global_layers\": %d, \"hidden_size\": %d, \"heads\": %d, \"kv_heads\": %d, "
                   "\"global_kv_heads\": %d, \"experts\": %d, \"experts_per_token\": %d, \"sliding_window\": %d, "
                   "\"context_length\": %d, \"vocab_size\": %d, \"layouts\": {",
                   c->n_layers, i.n_global, c->hidden, c->n_heads, i.kv_heads, i.global_kv_heads, c->n_experts, c->top_k, c->window,
                   c->max_context, c->vocab);
        for (int g = 0, n = 0; g < 4; g++)
            if (i.layout[g]) buf_printf(&out, "%s\"%s\": \"%s\"", n++ ? ", " : "", group[g], i.layout[g]);
        buf_printf(&out, "}, \"parameters\": %lld, \"bytes_on_disk\": %lld, \"bytes_per_token\": %lld, \"kv_bytes_per_token\": %lld, "
                   "\"context\": %lld, \"context_bytes\": %lld",
                   (long long)i.parameters, (long long)i.bytes_on_disk, (long long)i.bytes_per_token, (long long)per_token,
                   (long long)s.context, (long long)context_bytes);
        if (gpu.total) {
            buf_puts(&out, ", \"gpu\": {\"name\": ");
            json_quote(&out, gpu.name, strlen(gpu.name));
            buf_printf(&out, ", \"weights\": %lld, \"activations\": %lld, \"cache\": %lld, \"free\": %lld, \"total\": %lld}",
                       (long long)gpu.weights, (long long)gpu.activations, (long long)gpu.cache, (long long)gpu.free, (long long)gpu.total);
        }
        buf_puts(&out, "}\n");
    } else {
        buf_printf(&out, "model        %s\n", o->model);
        buf_printf(&out, "parameters   %.3f B, %.3f GB on disk\n", (double)i.parameters * 1e-9, (double)i.bytes_on_disk * 1e-9);
        buf_printf(&out, "layers       %d, %d of them global; hidden size %d; vocabulary %d\n", c->n_layers, i.n_global, c->hidden, c->vocab);
        buf_printf(&out, "attention    %d heads, %d key/value heads (global layers %d), window %d\n", c->n_heads, i.kv_heads,
                   i.global_kv_heads, c->window);
        if (c->n_experts) buf_printf(&out, "experts      %d, %d for each token, beside a dense MLP\n", c->n_experts, c->top_k);
        else buf_puts(&out, "experts      none: a dense model\n");
        buf_printf(&out, "vision       %s\n", i.has_vision ? "it takes images and videos" : "none");
        for (int g = 0; g < 4; g++)
            if (i.layout[g]) buf_printf(&out, "layout       %s: %s\n", group[g], i.layout[g]);
        buf_printf(&out, "each token   reads %.3f GB of weights, adds %lld bytes of keys and values\n", (double)i.bytes_per_token * 1e-9,
                   (long long)per_token);
        buf_printf(&out, "context      %d at most; %lld take %.3f GB (%s)\n", c->max_context, (long long)s.context,
                   (double)context_bytes * 1e-9, s.kv == KV_F32 ? "F32" : s.kv == KV_FP8 || (s.kv == KV_AUTO && i.fp8_kv) ? "FP8" : "BF16");
        if (gpu.total)
            buf_printf(&out, "GPU          %s: weights %.3f GB + activations %.3f GB + cache %.3f GB, of %.3f GB free\n", gpu.name,
                       (double)gpu.weights * 1e-9, (double)gpu.activations * 1e-9, (double)gpu.cache * 1e-9, (double)gpu.free * 1e-9);
    }
    put_stdout(out.data, out.len);
    buf_free(&out);
    model_close(m);
    return 0;
}

/* The way back from `render`: the text of an answer, control tokens spelt out, as a message on one line.
 * A newline at its end is the file's, not the answer's. */
static int run_parse(const Options *o, const char *dir, Error *err) {
    Engine e = {0};
    Buf in = {0}, content = {0}, thought = {0}, out = {0};
    Ids ids = {0};
    Answer a = {0};
    int bad = !(e.tokenizer = tokenizer_open(dir, err)) || read_tools(o, &e, err) || read_file("-", &in, err), i = 0;
    if (!bad) {
        size_t n = in.len && in.data[in.len - 1] == '\n' ? in.len - 1 : in.len;
        tokenizer_encode(e.tokenizer, in.data, n, 1, &ids);
        answer_open(&a, e.tokenizer, (AnswerStart){.thinking = o->think, .in_thought = o->open_thought, .tools = e.tools});
        while (i < ids.n && !answer_ends(&a, ids.id[i])) answer_feed(&a, ids.id[i++], &content, &thought);
        answer_end(&a, &content, &thought);
        if (e.tools) calls_check(a.calls, a.n_calls, e.tools, &a.warnings);
        if (i + 1 < ids.n) buf_puts(&a.warnings, "text behind the end of the answer was left out\n");
        message_begin(&out, &content, &thought, a.calls, a.n_calls, 0);
        if (a.warnings.len) {
            buf_puts(&out, ", \"warnings\": ");
            json_quote_lines(&out, a.warnings.data);
        }
        buf_puts(&out, "}\n");
        put_stdout(out.data, out.len);
    }
    answer_free(&a);
    buf_free(&in);
    buf_free(&content);
    buf_free(&thought);
    buf_free(&out);
    ids_free(&ids);
    tokenizer_free(e.tokenizer);
    cJSON_Delete(e.tools);
    return bad ? -1 : 0;
}

/* --json-schema, perhaps with a text on stdin, or --tools.  It needs the tokenizer alone. */
static int run_check(const Options *o, const char *dir, Error *err) {
    Engine e = {0};
    int status = !(e.tokenizer = tokenizer_open(dir, err)) || read_tools(o, &e, err) ? -1 : 0;
    if (!status) {
        e.pieces = pieces_new(e.tokenizer, tokenizer_n_vocab(e.tokenizer), NULL, 0);
        const char *name = o->tools ? json_name("--tools", o->tools)
                                    : json_name("--json-schema", o->json_schema);
        if (o->tools) status = check_tools(e.pieces, e.tools, name);
        else status = check_schema(e.pieces, e.json_schema, name, err);
    }
    pieces_free(e.pieces);
    tokenizer_free(e.tokenizer);
    cJSON_Delete(e.tools);
    cJSON_Delete(e.json_schema);
    return status;
}

/* --raw TEXT or --ids FILE as ids: control tokens recognised, <bos> in front unless it is there; ids verbatim. */
static int raw_ids(const Options *o, const Engine *e, const char *text, size_t n, Ids *ids, Error *err) {
    if (o->ids_file) {
        ModelInfo info;
        Buf in = {0};
        model_info(e->model, &info);
        int bad = read_file(o->ids_file, &in, err) || parse_ids(o->ids_file, &in, info.config->vocab, ids, err);
        buf_free(&in);
        if (!bad && !ids->n) bad = fail(err, "%s: no token ids", o->ids_file);
        return bad ? -1 : 0;
    }
    int bos = tokenizer_control(e->tokenizer, "<bos>");
    tokenizer_encode(e->tokenizer, text, n, 1, ids);
    if (bos < 0 || (ids->n && ids->id[0] == bos)) return 0;
    ids_add(ids, bos);
    memmove(ids->id + 1, ids->id, (size_t)(ids->n - 1) * sizeof(int));
    ids->id[0] = bos;
    return 0;
}

static int run_score(const Options *o, const Engine *e, Error *err) {
    Ids ids = {0};
    Request r = {0};
    Buf in = {0};
    Error why;
    int bad = 0;
    if (o->request_file) {
        bad = read_file(o->request_file, &in, err);
        if (!bad && request_parse(e, in.data, in.len, &r, &why)) bad = fail(err, "%s: %s", o->request_file, why.text);
        for (int i = 0; !bad && i < r.prompt.ids.n; i++) ids_add(&ids, r.prompt.ids.id[i]);
    } else {
        bad = o->text_file && read_file(o->text_file, &in, err);
        const char *text = o->text_file ? in.data : o->prompt;
        if (!bad) bad = raw_ids(o, e, text ? text : "", o->text_file ? in.len : text ? strlen(text) : 0, &ids, err);
    }
    ScoreOptions how = {.top = o->top, .summary = o->summary, .logits_file = o->logits_file, .reference_file = o->reference_file};
    session_pictures(e->session, r.prompt.span, r.prompt.n_spans);
    if (!bad) bad = score(e, ids.id, ids.n, &how, err);
    session_pictures(e->session, NULL, 0);
    request_free(&r);
    buf_free(&in);
    ids_free(&ids);
    return bad;
}

typedef struct {
    int dim;                            /* stderr shows colours */
    int run_tools;                      /* calls are run; else they are the answer */
    char last;                          /* the last character on stdout */
    int in_thought;
} OneShot;

/* Content to stdout; the thought to stderr, dimmed on a terminal. */
static void show_text(void *arg, const Buf *content, const Buf *thought) {
    OneShot *s = arg;
    if (thought->len) {
        if (s->dim && !s->in_thought) fputs("\033[2m", stderr);
        write_text(STDERR_FILENO, thought->data, thought->len);
        s->in_thought = 1;
    }
    if (!content->len) return;
    if (s->in_thought) fputs(s->dim ? "\033[0m\n" : "\n", stderr);
    s->in_thought = 0;
    put_stdout(content->data, content->len);
    s->last = content->data[content->len - 1];
}

/* A call to stdout as a JSON line, or, when it is run, to stderr. */
static void show_call(void *arg, int i, const ToolCall *call) {
    OneShot *s = arg;
    Buf line = {0};
    (void)i;
    if (s->in_thought) fputs(s->dim ? "\033[0m\n" : "\n", stderr);
    s->in_thought = 0;
    if (s->last && s->last != '\n') put_stdout("\n", 1);
    s->last = '\n';
    if (s->run_tools) {
        if (s->dim) fputs("\033[2m", stderr);
        note("[%s %s]", call->name, call->arguments);
        fputs(s->dim ? "\033[0m\n" : "\n", stderr);
        return;
    }
    buf_puts(&line, "{\"name\": ");
    json_quote(&line, call->name, strlen(call->name));
    buf_printf(&line, ", \"arguments\": %s}\n", call->arguments);
    put_stdout(line.data, line.len);
    buf_free(&line);
}

/* The question as a conversation of one turn, which the caller frees; what was given with -i and --video stands before the text. */
static cJSON *first_turn(const Options *o, const Engine *e, const char *text) {
    cJSON *messages = cJSON_CreateArray(), *m = chat_message("user", NULL);
    if (e->system) cJSON_AddItemToArray(messages, chat_message("system", e->system));
    cJSON_AddItemToArray(messages, m);
    media_content(m, o->media, text);
    return messages;
}

static int run_one_shot(const Options *o, Engine *e, const Buf *question, Error *err) {
    Ids ids = {0};
    OneShot show = {.dim = dims, .run_tools = o->run_tools != NULL};
    Generation g = {.sampling = e->sampling, .max_tokens = e->max_tokens, .chat.thinking = e->thinking, .think_tokens = e->think_tokens,
                    .raw = o->raw || o->ids_file, .ignore_eos = o->ignore_eos, .on_text = o->print_ids ? NULL : show_text,
                    .on_call = o->print_ids ? NULL : show_call, .schema = e->schema, .arg = &show};
    int bad;
    if (g.raw) {
        bad = raw_ids(o, e, question->data, question->len, &ids, err);
        g.ids = ids.id;
        g.n_ids = ids.n;
        if (!bad) bad = generate(e, &g, err);
    } else if (memchr(question->data, 0, question->len)) bad = fail(err, "stdin: a NUL byte: a message is text");
    else {
        cJSON *messages = first_turn(o, e, question->data);
        bad = converse(e, messages, &g, err);
        cJSON_Delete(messages);
    }
    if (show.in_thought) fputs(show.dim ? "\033[0m\n" : "\n", stderr);
    if (!bad && o->print_ids) put_ids(&g.answer);
    else if (!bad && show.last != '\n') put_stdout("\n", 1);
    if (!bad && e->stats) print_stats(&g);
    if (!bad && g.full)
        note("gemma4: warning: the answer was cut: the context of %lld tokens (-c) is full\n", (long long)session_context(e->session));
    if (!bad && !o->print_ids) warn_of_answer(&g);
    generation_free(&g);
    ids_free(&ids);
    return bad;
}

/* The argument and piped text, joined by a blank line.  Returns 1 when there is a question, 0 when not, -1 with err. */
static int collect_question(const Options *o, Buf *question, Error *err) {
    const char *given = o->prompt ? o->prompt : o->question.data;
    Buf piped = {0};
    if (!isatty(STDIN_FILENO) && !o->ids_file && read_file("-", &piped, err)) return -1;
    if (given) buf_puts(question, given);
    if (given && piped.len) buf_puts(question, "\n\n");
    buf_add(question, piped.data ? piped.data : "", piped.len);
    buf_free(&piped);
    return question->len > 0 || o->prompt || o->ids_file;
}

static int run(Options *o, const char *dir, Error *err) {
    if (!o->image_tokens) o->image_tokens = model_image_tokens(dir);
    if (is_command(o, "tokenize")) return run_tokenize(o, dir, err);
    if (is_command(o, "render")) return run_render(o, dir, err);
    if (is_command(o, "parse")) return run_parse(o, dir, err);
    if (is_command(o, "check")) return run_check(o, dir, err);
    if (is_command(o, "info")) return run_info(o, dir, err);
    MediaStore media = {.image_tokens = o->image_tokens, .video_frames = o->video_frames};
    Engine e = {0};
    Buf question = {0};
    int chat = !o->command && !o->jsonl && !o->prompt && !o->question.len && !o->raw && !o->ids_file && isatty(STDIN_FILENO) &&
               isatty(STDOUT_FILENO);
    int one_shot = !o->command && !o->jsonl && !chat, bad = 0;
    if (one_shot) bad = collect_question(o, &question, err);
    if (one_shot && !bad) {
        buf_free(&question);
        return usage("nothing to ask: stdin is empty");
    }
    bad = bad < 0 || open_engine(o, dir, &e, err) ? -1 : 0;
    e.media = &media;
    if (!bad && chat) bad = run_repl(&e, o->media, err);
    else if (!bad && o->jsonl) bad = run_jsonl(&e, stdin);
    else if (!bad && is_command(o, "bench"))
        bad = run_bench(&e, &(BenchOptions){o->scenario ? o->scenario : "all", o->json, o->plot_file, o->max_tokens}, err);
    else if (!bad && o->command) bad = run_score(o, &e, err);
    else if (!bad) bad = run_one_shot(o, &e, &question, err);
    close_engine(&e);
    media_free(&media);
    buf_free(&question);
    return bad;
}

/* Where one of the three standard files is closed, the next file opened would take its place: /dev/null does, opened so
 * that writing to it as stdout still fails. */
static void hold_standard_files(void) {
    for (int fd = 0; fd < 3; fd++)
        if (fcntl(fd, F_GETFD) < 0 && open("/dev/null", fd == 2 ? O_WRONLY : O_RDONLY) < 0) _exit(1);
}

int main(int argc, char **argv) {
    Options o;
    Error err;
    Buf dir = {0};
    hold_standard_files();
    cJSON_InitHooks(&(cJSON_Hooks){xmalloc, free});
    catch_signals();
    int status = parse_options(argc, argv, &o);
    if (!status) status = check_options(&o);
    if (!status) {
        stderr_is_terminal = isatty(STDERR_FILENO);
        dims = has_colours(STDERR_FILENO);
        status = find_model(&o, &dir, &err) ? -1 : run(&o, dir.data, &err);
        if (status < 0) {
            note("gemma4: %s\n", err.text);
            status = 1;
        }
    } else if (status < 0) status = 0;
    buf_free(&dir);
    options_free(&o);
    return status;
}
