/* main.c - signals, opening the engine, and what each command does.
 *
 * The way of a token: options.c -> main.c -> conversation.c (a turn) -> chat.c (text to ids) ->
 * generate.c (the loop) -> session.c -> model.c (the forward pass) -> cpu.c, cuda.cu or plain.c ->
 * sampler.c (the next id) -> answer.c (ids to text) -> main.c.  repl.c is the chat prompt; jsonl.c
 * answers JSON requests. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <unistd.h>

#include "bench.h"
#include "check.h"
#include "conversation.h"
#include "declare.h"
#include "directory.h"
#include "edit.h"
#include "find.h"
#include "generate.h"
#include "info.h"
#include "json.h"
#include "jsonl.h"
#include "markdown.h"
#include "newfile.h"
#include "options.h"
#include "repl.h"
#include "request.h"
#include "score.h"
#include "textfile.h"
#include "tools.h"
#include "transcript.h"

/* interrupted: 1, or a signal's number: an answer stops.  Ctrl-C at the chat prompt sets it.  Where
 * `saves` is 1, so does the first signal that would end the program; the answer is saved then, and
 * the program ends. */
static volatile sig_atomic_t interrupted, saves;
static int stderr_is_terminal, dims;            /* dims: thoughts are shown dimmed on stderr */
static volatile sig_atomic_t is_styled;         /* 1: Markdown may be styled on stdout */

/* SIGHUP, SIGINT (outside of the chat prompt, which has a handler of its own), SIGQUIT and SIGTERM
 * end the program at once, or with --save when the answer so far is saved; whatever was answered is
 * on stdout already.  A running tool ends with the program.  The terminal gets its settings from
 * before the chat prompt, and plain text. */
static void on_signal(int number) {
    /* A terminal that vanishes sends SIGHUP more than once. */
    if (saves && (!interrupted || number == SIGHUP)) {
        interrupted = number;
        return;
    }
    tool_kill();
    editor_leave();
    new_leave();
    ssize_t done = 0;
    if (is_styled) done = write(STDOUT_FILENO, "\033[0m", 4);
    if (dims) done = write(STDERR_FILENO, "\033[0m\n", 5);
    (void)done;
    _exit(128 + number);
}

static void catch_signals(void) {
    const struct sigaction action = {.sa_handler = on_signal};
    struct sigaction old;
    signal(SIGPIPE, SIG_IGN);           /* put_stdout sees EPIPE instead */
    signal(SIGXFSZ, SIG_IGN);           /* a write beyond `ulimit -f` fails, as on a full disk */
    /* A parent may have left SIGCHLD ignored: then waitpid would not tell how a child ended. */
    signal(SIGCHLD, SIG_DFL);
    sigaction(SIGINT, &action, NULL);
    sigaction(SIGQUIT, &action, NULL);
    sigaction(SIGTERM, &action, NULL);
    sigaction(SIGHUP, &action, &old);
    if (old.sa_handler == SIG_IGN) signal(SIGHUP, SIG_IGN);         /* nohup */
}

/* ---- opening the engine ---- */

/* Finds the directory of -m, of $GEMMA4_MODEL, or of the demo.  Offers to download a model that is
 * not there.  Returns as find_checkpoint does. */
static int find_model(Options *o, Buf *dir, Error *err) {
    Error why;
    o->model_from_variable = !o->model && (o->model = getenv("GEMMA4_MODEL"));
    if (!o->model || !*o->model) {
        o->model = "demo";
        o->model_from_variable = 0;
        return find_demo(dir, err);
    }
    int status = find_checkpoint(o->model, dir, err);
    if (status != NOT_CACHED) return status;
    int offered = offer_download(o->model, &why);
    if (offered < 0) return fail(err, "%s", why.text);
    return offered ? status : find_checkpoint(o->model, dir, err);
}

/* Erases the row of the terminal that shows a progress. */
static void erase_progress(void) {
    if (is_dumb_terminal()) fprintf(stderr, "\r%*s\r", 79, "");
    else fputs("\r\033[K", stderr);
}

/* SessionOptions.progress: shows on a terminal how far the prompt is read, once that has taken a
 * second. */
static void show_progress(void *arg, int n, double done) {
    static double start, done_before;   /* start: when this prompt began */
    static int shown, n_before;
    double now = seconds();
    (void)arg;
    if (n <= MAX_VIEW) return;          /* no prompt: a token, or a few that were drafted */
    int is_other = n != n_before || done < done_before;     /* the prompt before was stopped */
    if (start == 0 || is_other) start = now;
    n_before = n;
    done_before = done;
    if (now - start > 1 && done < 1) {
        double left = (now - start) * (1 - done) / done;
        fprintf(stderr, "\rreading the prompt: %3.0f %% of %d tokens, %.0f s left ", 100 * done, n,
                left);
        shown = 1;
    }
    if (done >= 1) {
        if (shown) erase_progress();
        start = shown = 0;
    }
}

/* SessionOptions.loading: shows on a terminal how far the weights are loaded, once that has taken a
 * second. */
static void show_loading(double done) {
    static double start;
    static int shown;
    if (start == 0) start = seconds();
    if (seconds() - start > 1 && done < 1) {
        fprintf(stderr, "\rloading the weights: %3.0f %% ", 100 * done);
        shown = 1;
    } else if (shown) {
        erase_progress();
        shown = 0;
    }
}

/* The operations of the device that is named, cpu or plain.  NULL: the device is cuda or auto. */
static const Ops *host_ops(const Options *o) {
    if (!strcmp(o->device, plain_ops.name)) return &plain_ops;
    return strcmp(o->device, cpu_ops.name) ? NULL : &cpu_ops;
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
    const int64_t most = model_config(m)->max_context;
    SessionOptions s = {.ops = &cpu_ops, .chunk = o->chunk, .picture = o->image_tokens, .kv = o->kv,
                        .n_threads = o->threads ? o->threads : n_cpus(), .exact = o->exact,
                        .fp4_activations = o->fp4_activations, .activations = o->activations,
                        .memory_limit = (int64_t)(o->gpu_memory * 1e9),
                        .cpu_experts = o->cpu_experts, .expert_slots = o->expert_slots,
                        .cancel = &interrupted};
    if (o->exact && s.kv == KV_AUTO) s.kv = KV_F32;
    if (host_ops(o) == &plain_ops) s.ops = &plain_ops, s.n_threads = 1;
    s.context = is_command(o, "bench") ? BENCH_ROOM : 32768;
    if (s.context > most) s.context = most;
    if (o->context > 0) s.context = o->context;
    if (stderr_is_terminal && !quiet) s.progress = show_progress, s.loading = show_loading;
    return s;
}

/* The options decide how an answer is sampled.  The checkpoint decides what they leave open. */
static void fill_sampling(const Options *o, const GenerationConfig *g, SamplerParams *p) {
    *p = o->sampling;
    if (p->temperature < 0) p->temperature = g->temperature;
    if (p->top_k < 0) p->top_k = g->top_k;
    if (p->top_p < 0) p->top_p = g->top_p;
    if (p->min_p < 0) p->min_p = g->min_p;
    if (p->repeat_penalty < 0) p->repeat_penalty = g->repeat_penalty;
    if (!o->have_seed && getrandom(&p->seed, sizeof p->seed, 0) < 0) p->seed = 0;
}

static void warn_of_memory(const Model *m) {
    ModelInfo info;
    model_info(m, &info);
    double have = (double)sysconf(_SC_PHYS_PAGES) * (double)sysconf(_SC_PAGESIZE);
    if ((double)info.bytes_on_disk > have)
        remark("gemma4: warning: the weights (%.1f GB) exceed this machine's memory (%.1f GB): "
               "they are read from disk again and again\n", (double)info.bytes_on_disk * 1e-9,
               have * 1e-9);
}

/* How error messages name the value of an option: by the file or, if the value is the JSON itself,
 * perhaps behind white space, by the option. */
static const char *json_name(const char *option, const char *value) {
    const char *begin = value + strspn(value, " \t\r\n");
    if (*begin == '{' || *begin == '[') return option;
    return file_name(value);
}

/* The JSON that is the value of an option or stands in the file of that name.  NULL with err. */
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

static int read_tools(const Options *o, Engine *e, Error *err) {
    const char *name = json_name("--tools", o->tools);
    cJSON *json = read_json("--tools", o->tools, err);
    Buf unknown = {0};
    Error why;
    if (!json) return -1;
    const char *twice = json_key_twice(json);
    if (twice) fail(&why, "%s stands twice", twice);
    else e->tools = tools_read(json, &why);
    if (e->tools) tools_unknown(json, &unknown);
    if (unknown.len)
        remark("gemma4: warning: %s: unknown fields have no effect: %s\n", name, unknown.data);
    buf_free(&unknown);
    cJSON_Delete(json);
    return e->tools ? 0 : fail(err, "%s: %s", name, why.text);
}

static int read_schema(const Options *o, Engine *e, Error *err) {
    const char *name = json_name("--json-schema", o->json_schema);
    Error why;
    if (!(e->json_schema = read_json("--json-schema", o->json_schema, err))) return -1;
    if (!e->model || engine_schema(e, e->json_schema, &why)) return 0;
    return fail(err, "%s: %s", name, why.text);
}

/* Reads --tools and --json-schema, so that an error in them is reported before anything is
 * generated. */
static int read_declarations(const Options *o, Engine *e, Error *err) {
    if (o->tools && read_tools(o, e, err)) return -1;
    if (o->tools && o->json_schema && !o->command && !o->jsonl)
        remark("gemma4: warning: the tools had no effect: beside a schema nothing is called\n");
    return o->json_schema ? read_schema(o, e, err) : 0;
}

/* Returns how many bytes of the GPU's memory the drafter will want; 0: no GPU, or no drafter. */
static int64_t room_for_drafter(const Options *o, const Model *m) {
    Buf dir = {0};
    int64_t bytes = 0;
    Error err;
    int is_wanted = o->draft && gpu_ops(&err);
    if (is_wanted && !find_checkpoint(o->draft, &dir, NULL)) bytes = drafter_size(dir.data, m);
    buf_free(&dir);
    return bytes;
}

/* Opens a session on the GPU, and writes to stderr where the experts are if some stay on the CPU.
 * Returns 0, or -1 with err. */
static int open_on_gpu(Engine *e, SessionOptions *s, Error *err) {
    char text[PLACEMENT];
    if (!(s->ops = gpu_ops(err)) || !(e->session = session_new(e->model, s, err))) return -1;
    placement(e->model, session_takes(e->session), text);
    if (*text) remark("gemma4: %s\n", text);
    return 0;
}

/* Refuses --activations 8 and 32 for a session on a GPU that leaves no experts to the CPU: they
 * would have no effect.  Returns 0, or -1 with err. */
static int check_activations(const Options *o, const Model *m, const SessionOptions *s,
                             Error *err) {
    Memory takes;
    if (o->activations != 8 && o->activations != 32) return 0;
    int has_room = !session_memory(m, s, &takes, NULL) && !session_fits(m, s, &takes, NULL);
    if (!has_room || takes.cpu_experts) return 0;
    return fail(err, "--activations %d: for the CPU alone (--device cpu), and the GPU computes all",
                o->activations);
}

/* Warns where --activations 8 has no effect on this CPU.  It is asked for as a matter of speed, so
 * the program answers all the same. */
static void warn_of_activations(const Options *o, const Model *m, const Ops *ops) {
    const char *why = NULL;
    if (o->activations != 8) return;
    if (ops == &plain_ops) why = "--device plain computes with float32";
    else if (!cpu_rounds_to_8(model_config(m), model_weights(m)))
        why = "this CPU's kernels have none for the formats of this model, so it has no effect";
    if (why) remark("gemma4: warning: --activations %d: %s\n", o->activations, why);
}

/* Warns of settings of a GPU, which have no effect on the CPU. */
static void warn_of_gpu_settings(const Options *o) {
    const char *switches = getenv("GEMMA4_CUDA"), *head = getenv("GEMMA4_HEAD");
    const struct { const char *name; int is_given; } setting[] = {
        {"--gpu-memory", o->gpu_memory > 0},
        {"--cpu-experts", o->cpu_experts != CPU_EXPERTS_AUTO},
        {"--expert-slots", o->expert_slots != EXPERT_SLOTS_AUTO},
        {"GEMMA4_CUDA", switches && *switches},
        {"GEMMA4_HEAD", head && *head},
    };
    for (size_t i = 0; i < sizeof setting / sizeof *setting; i++)
        if (setting[i].is_given)
            remark("gemma4: warning: on the CPU %s has no effect\n", setting[i].name);
}

/* Opens a session on the device that is named.  For `auto` that is the GPU, if there is one that
 * has room for the session, and else the CPU. */
static int open_session(const Options *o, Engine *e, Error *err) {
    SessionOptions s = session_options(o, e->model);
    Error why;
    if (!host_ops(o)) s.drafter_room = room_for_drafter(o, e->model);
    if (o->fp4_activations) {           /* the CPU cannot take the GPU's place */
        int bad = host_ops(o) ? !(e->session = session_new(e->model, &s, &why))
                              : open_on_gpu(e, &s, &why);
        return bad ? fail(err, "--fp4-activations: %s", why.text) : 0;
    }
    if (!host_ops(o)) {
        if ((s.ops = gpu_ops(&why)) && check_activations(o, e->model, &s, err)) return -1;
        if (!open_on_gpu(e, &s, &why)) {
            warn_of_activations(o, e->model, &cpu_ops);
            return 0;
        }
        if (!strcmp(o->device, "cuda")) return fail(err, "%s cuda: %s", o->device_from, why.text);
#ifdef HAVE_CUDA
        /* With stderr in a file, as in a script, a missing GPU is not worth a line for each
         * call. */
        if (s.ops || stderr_is_terminal) remark("gemma4: %s: using the CPU\n", why.text);
#endif
    }
    /* Where a GPU has no room for the session, its settings had the effect to say so. */
    if (host_ops(o) || !s.ops) warn_of_gpu_settings(o);
    s.ops = host_ops(o) ? host_ops(o) : &cpu_ops;
    warn_of_activations(o, e->model, s.ops);
    warn_of_memory(e->model);
    return (e->session = session_new(e->model, &s, err)) ? 0 : -1;
}

/* Opens the drafter of --draft, and the file of --draft-log. */
static int open_drafter(const Options *o, Engine *e, Error *err) {
    Buf dir = {0};
    Error why;
    if (o->draft_log && !(e->draft_log = fopen(o->draft_log, "w")))
        return fail(err, "%s: %s", o->draft_log, strerror(errno));
    if (find_checkpoint(o->draft, &dir, &why)) fail(err, "--draft: %s", why.text);
    else
        e->drafter = drafter_open(dir.data, e->model, e->session, o->draft_tokens, e->draft_log,
                                  err);
    buf_free(&dir);
    return e->drafter ? 0 : -1;
}

/* Suggests Google's drafter if it has been downloaded and is not in use. */
static void suggest_drafter(const Options *o) {
    static const char google[] = "google/gemma-4-26B-A4B-it-assistant";
    Buf dir = {0};
    if (stderr_is_terminal && strstr(o->model, "26B-A4B") && !find_in_hub(google, &dir, NULL))
        remark("gemma4: a drafter is at hand: --draft %s may be faster\n", google);
    buf_free(&dir);
}

static void warn_of_files(const Model *m) {
    if (model_warning(m)) remark("gemma4: warning: %s\n", model_warning(m));
}

/* Adds the adapter of one --lora, DIR or DIR:SCALE; DIR is found as a checkpoint is.  A colon may
 * be part of DIR's name: so the whole text is looked up first. */
static int add_adapter(Model *m, const char *text, Error *err) {
    Buf name = {0}, dir = {0};
    Error why;
    float scale = 1;
    int bad = find_checkpoint(text, &dir, &why) != 0;
    if (bad && strchr(text, ':') && !split_lora(text, &name, &scale, NULL))
        bad = find_checkpoint(name.data, &dir, &why) != 0;
    if (bad) fail(err, "--lora %s: %s", text, why.text);
    else bad = model_adapt(m, text, dir.data, scale, err);
    buf_free(&name);
    buf_free(&dir);
    return bad ? -1 : 0;
}

static int add_adapters(const Options *o, Model *m, Error *err) {
    for (int i = 0; i < o->n_loras; i++)
        if (add_adapter(m, o->lora[i], err)) return -1;
    return 0;
}

/* Whether the model has what the options ask for.  Returns 0, or -1 with err. */
static int check_config(const Options *o, const Config *c, Error *err) {
    if (o->context > c->max_context)
        return fail(err, "-c %d: the model's context is %d", o->context, c->max_context);
    if (o->cpu_experts > 0 && !c->n_experts)
        return fail(err, "--cpu-experts %d: a dense model has no experts", o->cpu_experts);
    if (o->cpu_experts > c->n_layers)
        return fail(err, "--cpu-experts %d: the model has %d layers", o->cpu_experts, c->n_layers);
    if (o->expert_slots > 0 && !c->n_experts)
        return fail(err, "--expert-slots %d: a dense model has no experts", o->expert_slots);
    if (o->expert_slots > c->n_experts)
        return fail(err, "--expert-slots %d: a layer has %d experts", o->expert_slots,
                    c->n_experts);
    return 0;
}

/* A tokenizer that a thread of its own opens. */
typedef struct {
    const char *dir;
    Tokenizer *tokenizer;               /* NULL: err says why */
    Error err;
} Opening;

static void *open_tokenizer(void *arg) {
    Opening *o = arg;
    o->tokenizer = tokenizer_open(o->dir, &o->err);
    return NULL;
}

/* Opens the model and its tokenizer, and checks that they belong together.  The tokenizer takes one
 * thread a tenth of a second, as long as opening and checking the model takes the others. */
static int open_model(const Options *o, const char *dir, Engine *e, Error *err) {
    ModelInfo info;
    Opening opening = {.dir = dir};
    pthread_t thread;
    int has_thread = !pthread_create(&thread, NULL, open_tokenizer, &opening);
    e->model = model_open(dir, err);
    int bad = e->model && model_check(e->model, err);
    if (has_thread) pthread_join(thread, NULL);
    else open_tokenizer(&opening);
    e->tokenizer = opening.tokenizer;
    if (!e->model) return -1;
    if (!e->tokenizer) return fail(err, "%s", opening.err.text);
    warn_of_files(e->model);
    if (bad || add_adapters(o, e->model, err)) return -1;
    model_info(e->model, &info);
    if (info.text_alone)
        remark("gemma4: %s: the parts for pictures and sound are not supported: text alone\n",
               dir);
    int n_ids = tokenizer_n_vocab(e->tokenizer), vocab = info.config->vocab;
    if (n_ids > vocab)
        return fail(err, "%s: %d ids, config.json's vocab_size is %d",
                    tokenizer_file(e->tokenizer), n_ids, vocab);
    return check_config(o, info.config, err);
}

/* Refuses a --run-tools that is no directory, and says which tools have no executable there. */
static int check_tool_dir(const Engine *e, Error *err) {
    if (e->tool_dir && !is_directory(e->tool_dir))
        return fail(err, "--run-tools %s: no directory", e->tool_dir);
    warn_of_tools(e);
    return 0;
}

/* Opens all that the commands work with: model, tokenizer, session, drafter. */
static int open_engine(const Options *o, const char *dir, Engine *e, Error *err) {
    *e = (Engine){.name = o->model, .interrupted = &interrupted, .max_tokens = o->max_tokens,
                  .thinking = o->think, .think_tokens = o->think_tokens, .system = o->system,
                  .stats = o->stats, .markdown = !o->no_markdown, .stream = o->stream,
                  .tool_dir = o->run_tools, .run_unasked = o->yes, .slide = o->slide};
    if (open_model(o, dir, e, err)) return -1;
    fill_sampling(o, model_generation(e->model), &e->sampling);
    if (read_declarations(o, e, err) || check_tool_dir(e, err)) return -1;
    if (open_session(o, e, err)) return -1;
    if (o->draft) return open_drafter(o, e, err);
    suggest_drafter(o);
    return 0;
}

static void close_engine(Engine *e) {
    drafter_close(e->drafter);
    if (e->draft_log) {
        int lost = ferror(e->draft_log);
        if (fclose(e->draft_log)) lost = 1;
        if (lost) remark("gemma4: warning: --draft-log: lines are lost\n");
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

/* Adds the ids in a text, which are separated by white space.  Returns 0, or -1 with err, which
 * names the file. */
static int parse_ids(const char *file, const Buf *text, int n_vocab, Ids *ids, Error *err) {
    static const char space[] = " \t\n\v\f\r";
    size_t at = strspn(text->data, space);
    while (at < text->len) {
        const char *from = text->data + at;
        size_t n = strspn(from, "0123456789");
        long long id = n ? strtoll(from, NULL, 10) : 0;         /* at most LLONG_MAX */
        if (id >= n_vocab)
            return fail(err, "%s: id %.*s is outside the vocabulary of %d", file,
                        n < 30 ? (int)n : 30, from, n_vocab);
        at += n;
        size_t n_space = strspn(from + n, space);
        if (!n || (!n_space && at < text->len))
            return fail(err, "%s: byte %zu is no token id", file, at);
        ids_add(ids, (int)id);
        at += n_space;
    }
    return 0;
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
    MediaStore media = {.image_tokens = o->image_tokens, .video_frames = o->video_frames,
                        .placeholders = 1};
    Engine e = {.thinking = o->think, .think_tokens = -1, .system = o->system, .max_tokens = -1,
                .media = &media};
    Request r = {0};
    Buf in = {0};
    Error why;
    int bad = !(e.tokenizer = tokenizer_open(dir, err)) || read_declarations(o, &e, err) ||
              read_file("-", &in, err);
    if (!bad && request_parse(&e, in.data, in.len, &r, &why))
        bad = fail(err, "stdin: %s", why.text);
    remark_lines(&r.prompt.warnings);
    if (!bad && o->ids) put_ids(&r.prompt.ids);
    else if (!bad) put_stdout(r.prompt.text.data, r.prompt.text.len);
    request_free(&r);
    buf_free(&in);
    media_free(&media);
    close_engine(&e);
    return bad ? -1 : 0;
}

/* Collects what `info` prints of the model on the device that was asked for.  Returns 0, or -1 with
 * err. */
static int collect_info(const Options *o, const Model *m, Info *i, Error *err) {
    model_info(m, &i->model);
    if (check_config(o, i->model.config, err)) return -1;
    i->session = session_options(o, m);
    Error why;
    const Ops *ops = host_ops(o) ? host_ops(o) : gpu_ops(&why);
    if (!ops && !strcmp(o->device, "cuda"))
        return fail(err, "%s cuda: %s", o->device_from, why.text);
    if (ops) i->session.ops = ops;
    if (ops && !host_ops(o) && check_activations(o, m, &i->session, err)) return -1;
    if (o->fp4_activations && !i->session.ops->memory)
        return fail(err, "--fp4-activations needs a GPU of compute capability 12.0 or 12.1");
    if (session_memory(m, &i->session, &i->gpu, err)) return -1;
    if (i->gpu.chunk) i->session.chunk = i->gpu.chunk;
    i->cache = kv_bytes(m, &i->session, &i->per_token);
    return 0;
}

static int run_info(const Options *o, const char *dir, Error *err) {
    Model *m = model_open(dir, err);
    if (!m) return -1;
    warn_of_files(m);
    Info i = {.name = o->model, .m = m};
    Buf out = {0};
    int bad = add_adapters(o, m, err) || collect_info(o, m, &i, err);
    if (!bad && o->json) info_put_json(&i, &out);
    else if (!bad) info_put_text(&i, &out);
    if (!bad) put_stdout(out.data, out.len);
    buf_free(&out);
    model_close(m);
    return bad ? -1 : 0;
}

/* Prints the answer text[0..n), in which control tokens stand by their names, as a message on one
 * line. */
static void put_parsed(const Engine *e, AnswerStart start, const char *text, size_t n) {
    Buf content = {0}, thought = {0}, out = {0};
    Ids ids = {0};
    Answer a = {0};
    int i = 0;
    tokenizer_encode(e->tokenizer, text, n, 1, &ids);
    answer_open(&a, e->tokenizer, start);
    for (; i < ids.n && !answer_ends(&a, ids.id[i]); i++)
        answer_feed(&a, ids.id[i], &content, &thought);
    answer_end(&a, &content, &thought);
    if (e->tools) calls_check(a.calls, a.n_calls, e->tools, &a.warnings);
    if (i + 1 < ids.n) buf_puts(&a.warnings, "text behind the end of the answer was left out\n");
    message_begin(&out, &content, &thought, a.calls, a.n_calls, 0);
    if (a.warnings.len) {
        buf_puts(&out, ", \"warnings\": ");
        json_quote_lines(&out, a.warnings.data);
    }
    buf_puts(&out, "}\n");
    put_stdout(out.data, out.len);
    answer_free(&a);
    buf_free(&content);
    buf_free(&thought);
    buf_free(&out);
    ids_free(&ids);
}

/* The way back from `render`.  A newline at the end of the input is the file's, not the
 * answer's. */
static int run_parse(const Options *o, const char *dir, Error *err) {
    Engine e = {0};
    Buf in = {0};
    int bad = !(e.tokenizer = tokenizer_open(dir, err)) || read_declarations(o, &e, err) ||
              read_file("-", &in, err);
    if (!bad) {
        AnswerStart start = {.thinking = o->think, .in_thought = o->open_thought, .tools = e.tools};
        int has_newline = in.len && in.data[in.len - 1] == '\n';
        put_parsed(&e, start, in.data, in.len - (size_t)has_newline);
    }
    buf_free(&in);
    close_engine(&e);
    return bad ? -1 : 0;
}

/* Checks --json-schema, perhaps with a text on stdin, or --tools.  The check needs no model, only a
 * tokenizer. */
static int run_check(const Options *o, const char *dir, Error *err) {
    Engine e = {0};
    int status = 0;
    if (!(e.tokenizer = tokenizer_open(dir, err)) || read_declarations(o, &e, err)) status = -1;
    if (!status) {
        e.pieces = pieces_new(e.tokenizer, tokenizer_n_vocab(e.tokenizer), NULL, 0);
        const char *name = o->tools ? json_name("--tools", o->tools)
                                    : json_name("--json-schema", o->json_schema);
        if (o->tools) status = check_tools(e.pieces, e.tools, name);
        else status = check_schema(e.pieces, e.json_schema, name, err);
    }
    close_engine(&e);
    return status;
}

/* The ids of --ids FILE, as they are. */
static int file_ids(const char *file, const Engine *e, Ids *ids, Error *err) {
    Buf in = {0};
    int bad = read_file(file, &in, err) ||
              parse_ids(file_name(file), &in, model_config(e->model)->vocab, ids, err);
    buf_free(&in);
    if (!bad && !ids->n) bad = fail(err, "%s: no token ids", file_name(file));
    return bad ? -1 : 0;
}

/* Adds the ids of --raw TEXT, in which control tokens are recognised, with <bos> in front. */
static void text_ids(const Engine *e, const Buf *text, Ids *ids) {
    int bos = tokenizer_control(e->tokenizer, "<bos>");
    tokenizer_encode(e->tokenizer, text->data, text->len, 1, ids);
    if (bos < 0 || (ids->n && ids->id[0] == bos)) return;
    ids_add(ids, bos);
    memmove(ids->id + 1, ids->id, (size_t)(ids->n - 1) * sizeof(int));
    ids->id[0] = bos;
}

/* The prompt of the request in a file, with its pictures, which stay r's. */
static int request_ids(const Engine *e, const char *file, Request *r, Ids *ids, Error *err) {
    Buf in = {0};
    Error why;
    int bad = read_file(file, &in, err);
    if (!bad && request_parse(e, in.data, in.len, r, &why))
        bad = fail(err, "%s: %s", file_name(file), why.text);
    for (int i = 0; !bad && i < r->prompt.ids.n; i++) ids_add(ids, r->prompt.ids.id[i]);
    buf_free(&in);
    return bad;
}

/* Adds the ids that `score` is given.  Returns 0, or -1 with err. */
static int score_ids(const Options *o, const Engine *e, Request *r, Ids *ids, Error *err) {
    Buf text = {0};
    if (o->request_file) return request_ids(e, o->request_file, r, ids, err);
    if (o->ids_file) return file_ids(o->ids_file, e, ids, err);
    if (o->text_file && read_file(o->text_file, &text, err)) return -1;
    buf_puts(&text, o->prompt ? o->prompt : "");
    text_ids(e, &text, ids);
    buf_free(&text);
    return 0;
}

static int run_score(const Options *o, const Engine *e, Error *err) {
    ScoreOptions how = {.top = o->top < 0 ? 5 : o->top, .summary = o->summary,
                        .logits_file = o->logits_file, .reference_file = o->reference_file};
    Ids ids = {0};
    Request r = {0};
    int bad = score_ids(o, e, &r, &ids, err);
    remark_lines(&r.prompt.warnings);
    session_pictures(e->session, r.prompt.span, r.prompt.n_spans);
    if (!bad) bad = score(e, ids.id, ids.n, &how, err);
    session_pictures(e->session, NULL, 0);
    request_free(&r);
    ids_free(&ids);
    return bad;
}

/* ---- one shot ---- */

/* The state of printing the answer of a one shot. */
typedef struct {
    int run_tools;                      /* 1: calls are run; 0: they are the answer */
    char last;                          /* the last character on stdout */
    int in_thought;                     /* 1: stderr is in a line of a thought */
    Markdown markdown;                  /* content passes through it */
} OneShot;

static void end_line_of_stderr(void) { fputs(dims ? "\033[0m\n" : "\n", stderr); }

static void end_thought(OneShot *s) {
    if (s->in_thought) end_line_of_stderr();
    s->in_thought = 0;
}

/* Content goes to stdout; the thought to stderr, dimmed on a terminal. */
static void show_text(void *arg, const Buf *content, const Buf *thought) {
    OneShot *s = arg;
    if (thought->len && !quiet) {
        if (dims && !s->in_thought) fputs("\033[2m", stderr);
        write_text(STDERR_FILENO, thought->data, thought->len);
        s->in_thought = 1;
    }
    if (!content->len) return;
    end_thought(s);
    markdown_show(&s->markdown, content);
    s->last = content->data[content->len - 1];
}

/* A call that is run goes to stderr; else it is the answer, and goes to stdout as a JSON line. */
static void show_call(void *arg, int i, const ToolCall *call) {
    OneShot *s = arg;
    Buf line = {0};
    (void)i;
    end_thought(s);
    markdown_show_end(&s->markdown);
    if (s->last && s->last != '\n') put_stdout("\n", 1);
    s->last = '\n';
    if (s->run_tools) {
        if (quiet) return;
        if (dims) fputs("\033[2m", stderr);
        note("[%s %s]", call->name, call->arguments);
        end_line_of_stderr();
        return;
    }
    buf_puts(&line, "{\"name\": ");
    json_quote_text(&line, call->name);
    buf_printf(&line, ", \"arguments\": %s}\n", call->arguments);
    put_stdout(line.data, line.len);
    buf_free(&line);
}

/* What the user asks. */
typedef struct {
    Buf text;                           /* the question, with the text of files and of stdin */
    size_t n_document;                  /* with --cache, bytes of text that are the document: they
                                         * stand in front */
} Question;

/* Returns the conversation of --load, or a new one, which the caller frees.  NULL with err. */
static cJSON *earlier_turns(const Options *o, Engine *e, Error *err) {
    if (o->load) {
        cJSON *messages = transcript_load(e, o->load, err);
        if (o->think) e->thinking = 1;
        return messages;
    }
    cJSON *messages = cJSON_CreateArray();
    if (e->system) cJSON_AddItemToArray(messages, chat_message("system", e->system));
    return messages;
}

/* Adds a message with the images and videos of -i and --video, and behind them the text. */
static void add_question(const Options *o, cJSON *messages, const char *text) {
    cJSON *m = chat_message("user", NULL);
    media_content(m, o->media, text);
    cJSON_AddItemToArray(messages, m);
}

/* --cache: makes the session hold the document or, if there is none, the prompt.  messages: with
 * the question.  *n_read becomes the number of tokens that had to be evaluated.  Returns 0, or -1
 * with err. */
static int read_ahead(const Options *o, const Engine *e, const Question *q, const cJSON *messages,
                      int *n_read, Error *err) {
    cJSON *document = NULL;
    if (q->n_document || o->media) {
        char *text = strndup(q->text.data, q->n_document);
        document = cJSON_Duplicate(messages, 1);
        cJSON_DeleteItemFromArray(document, cJSON_GetArraySize(document) - 1);
        add_question(o, document, text);
        free(text);
    }
    int bad = transcript_cache(e, messages, document, o->cache, n_read, err);
    cJSON_Delete(document);
    return bad;
}

static int answer_raw(const Options *o, const Engine *e, const Buf *question, Generation *g,
                      Error *err) {
    Ids ids = {0};
    int bad = 0;
    if (o->ids_file) bad = file_ids(o->ids_file, e, &ids, err);
    else text_ids(e, question, &ids);
    g->ids = ids.id;
    g->n_ids = ids.n;
    if (!bad) bad = generate(e, g, err);
    g->ids = NULL;
    ids_free(&ids);
    return bad;
}

/* *messages becomes a conversation with the question and its answer, which the caller frees.
 * Returns 0, or -1 with err. */
static int answer_question(const Options *o, Engine *e, const Question *q, cJSON **messages,
                           Generation *g, Error *err) {
    double start = seconds();
    int n_read = 0;
    if (!(*messages = earlier_turns(o, e, err))) return -1;
    add_question(o, *messages, q->text.data);
    g->chat.thinking = e->thinking;
    if (o->cache && read_ahead(o, e, q, *messages, &n_read, err)) return -1;
    double ahead = seconds() - start;
    if (converse(e, *messages, g, err)) return -1;
    g->n_reused -= n_read;              /* they were read in this run, too */
    g->prefill_seconds += ahead;
    return 0;
}

/* Ends the line on stdout, and writes to stderr the rates of the answer and what was wrong with
 * it. */
static void finish_answer(const Options *o, const Engine *e, const OneShot *show,
                          const Generation *g) {
    long long context = session_context(e->session);
    if (o->print_ids) put_ids(&g->answer);
    else if (show->last != '\n') put_stdout("\n", 1);
    if (e->stats) print_stats(e, g);
    if (g->full)
        remark("gemma4: warning: the answer was cut: the context of %lld tokens (-c) is full\n",
               context);
    else if (g->finish == FINISH_LENGTH && g->max_tokens > 0 && !g->raw && !o->ignore_eos &&
             !o->print_ids)
        remark("gemma4: warning: the answer was cut: -n %d\n", g->max_tokens);
    if (!o->print_ids) warn_of_answer(g);
}

static int run_one_shot(const Options *o, Engine *e, const Question *question, Error *err) {
    OneShot show = {.run_tools = o->run_tools != NULL};
    Generation g = {.sampling = e->sampling, .max_tokens = e->max_tokens,
                    .chat.thinking = e->thinking, .think_tokens = e->think_tokens,
                    .raw = o->raw || o->ids_file, .ignore_eos = o->ignore_eos,
                    .schema = e->schema, .arg = &show};
    if (!o->print_ids) g.on_text = show_text, g.on_call = show_call;
    is_styled = e->markdown && !g.raw && !e->schema && has_colours(STDOUT_FILENO);
    if (is_styled) show.markdown.columns = terminal_columns();
    cJSON *messages = NULL;
    int bad;
    outlives_reader = o->save != NULL;  /* the file gets the whole answer */
    saves = o->save != NULL;
    if (g.raw) bad = answer_raw(o, e, &question->text, &g, err);
    else bad = answer_question(o, e, question, &messages, &g, err);
    end_thought(&show);
    markdown_show_end(&show.markdown);
    markdown_free(&show.markdown);
    if (!bad) finish_answer(o, e, &show, &g);
    /* Nothing takes the place of the file when a signal came before the first token. */
    if (!bad && o->save && (!interrupted || g.answer.n))
        bad = transcript_save(e, messages, o->save, err);
    saves = 0;
    if (!bad && interrupted) on_signal(interrupted);
    cJSON_Delete(messages);
    generation_free(&g);
    return bad;
}

/* Adds the files of -f, each with its name. */
static int add_files(const Options *o, Buf *text, Error *err) {
    int bad = 0;
    for (int i = 0; i < o->n_files && !bad; i++) bad = attach_text(o->file[i], text, err);
    return bad;
}

/* Adds what is piped in: text, or with --raw any bytes. */
static int add_piped(const Options *o, Buf *text, Error *err) {
    Buf piped = {0};
    int bad = o->raw ? read_file("-", &piped, err) : read_text("-", &piped, err);
    if (!bad && text->len && piped.len) buf_puts(text, "\n\n");
    if (!bad) buf_add(text, piped.data ? piped.data : "", piped.len);
    buf_free(&piped);
    return bad;
}

/* Reports after a second that the program waits for stdin, which is open but silent.  A caller may
 * have left stdin open by mistake. */
static void explain_waiting(void) {
    struct pollfd in = {.fd = STDIN_FILENO, .events = POLLIN};
    if (!poll(&in, 1, 1000)) remark("gemma4: reading stdin (end it, or </dev/null)\n");
}

/* Whether an option reads stdin, which then is no part of the question. */
static int option_takes_stdin(const Options *o) {
    const char *file[] = {o->load, o->tools, o->json_schema};
    int takes = o->media_takes_stdin;
    for (int i = 0; i < 3; i++) takes |= file[i] && !strcmp(file[i], "-");
    return takes;
}

/* Joins the question by blank lines from the argument and the document: the files of -f, and the
 * piped text.  The argument stands first; with --cache the document does, without the line ends at
 * its end.  Returns 1 when there is a question, 0 when there is none, -1 with err. */
static int collect_question(const Options *o, Question *q, Error *err) {
    const char *given = o->prompt ? o->prompt : o->question.data;
    Buf document = {0};
    int is_piped = !isatty(STDIN_FILENO) && !o->ids_file && !option_takes_stdin(o);
    if (is_piped && (given || o->n_files)) explain_waiting();
    int bad = add_files(o, &document, err) || (is_piped && add_piped(o, &document, err));
    if (!given) given = "";
    if (o->cache) {
        while (document.len && document.data[document.len - 1] == '\n') document.len--;
        q->n_document = document.len;
    }
    const char *text = document.data ? document.data : "";
    const char *between = *given && document.len ? "\n\n" : "";
    if (!o->cache) buf_printf(&q->text, "%s%s", given, between);
    buf_add(&q->text, text, document.len);
    if (o->cache) buf_printf(&q->text, "%s%s", between, given);
    buf_free(&document);
    if (bad) return -1;
    /* A text of white space asks nothing, unless it stands beside a picture or is continued by
     * --raw: the template drops it. */
    size_t n_blank = q->text.len ? strspn(q->text.data, " \t\r\n") : 0;
    int asks = n_blank < q->text.len || (o->raw && q->text.len);
    return asks || o->ids_file || (o->prompt && (o->media || o->raw));
}

/* ---- which command ---- */

/* Whether the user sits at a terminal and has asked nothing yet. */
static int is_chat(const Options *o) {
    int asks = o->command || o->jsonl || o->prompt || o->question.len || o->raw || o->ids_file;
    return !asks && isatty(STDIN_FILENO) && isatty(STDOUT_FILENO);
}

/* Loads the files of -i and --video of a question: before the model, so that what is wrong with
 * one is said at once.  Returns 0, or -1 with err. */
static int check_media(const Options *o, MediaStore *media, Error *err) {
    const cJSON *part;
    if (o->save) media_absolute(o->media);
    cJSON_ArrayForEach(part, o->media) {
        int is_video;
        const char *path = media_path(part, &is_video);
        if (media_check(media, path, is_video, err)) return -1;
    }
    return 0;
}

/* Runs what needs the engine.  question: that of the one shot, or the text that goes with the first
 * question of a chat.  Returns as `run` does. */
static int run_with_engine(const Options *o, const char *dir, const Question *question,
                           Error *err) {
    MediaStore media = {.image_tokens = o->image_tokens, .video_frames = o->video_frames};
    Engine e = {0};
    int bad = (!is_chat(o) && check_media(o, &media, err)) || open_engine(o, dir, &e, err);
    e.media = &media;
    if (!bad) media.most_patches = model_weights(e.model)->tower.n_positions;
    if (bad) bad = -1;
    else if (is_chat(o)) bad = run_repl(&e, o->load, o->media, question->text.data, err);
    else if (o->jsonl) bad = run_jsonl(&e, stdin);
    else if (is_command(o, "bench")) {
        BenchOptions how = {"all", o->json, o->plot_file, o->max_tokens};
        if (o->scenario) how.scenario = o->scenario;
        bad = run_bench(&e, &how, err);
    } else if (is_command(o, "score")) bad = run_score(o, &e, err);
    else bad = run_one_shot(o, &e, question, err);
    close_engine(&e);
    media_free(&media);
    return bad;
}

/* Says on a terminal that the user is waited for, where nothing else does. */
static void explain_terminal(const Options *o) {
    int reads = is_command(o, "tokenize") || is_command(o, "render") || is_command(o, "parse");
    if ((reads || o->jsonl) && isatty(STDIN_FILENO))
        remark("gemma4: reading stdin%s (Ctrl-D ends it)\n", reads ? "" : ", a request a line");
}

/* Runs what the command line asks for.  Returns the exit status, or -1 with err. */
static int run(Options *o, const char *dir, Error *err) {
    explain_terminal(o);
    if (!o->image_tokens && (o->image_tokens = model_image_tokens(dir, err)) < 0) return -1;
    if (is_command(o, "tokenize")) return run_tokenize(o, dir, err);
    if (is_command(o, "render")) return run_render(o, dir, err);
    if (is_command(o, "parse")) return run_parse(o, dir, err);
    if (is_command(o, "check")) return run_check(o, dir, err);
    if (is_command(o, "info")) return run_info(o, dir, err);
    Question question = {0};
    int status = 1, chats = is_chat(o);
    if ((o->media_takes_stdin = media_stdin(o->media, err)) < 0) return -1;
    if (chats && (o->cache || o->save))
        return usage("--cache and --save belong to a question; the chat has /save");
    if (chats && (o->ignore_eos || o->print_ids))
        return usage("--ignore-eos and --print-ids belong to a question");
    if (o->save && transcript_check(o->save, err)) return -1;
    if (chats) status = add_files(o, &question.text, err) ? -1 : 1;
    else if (!o->command && !o->jsonl) status = collect_question(o, &question, err);
    if (status > 0) status = run_with_engine(o, dir, &question, err);
    else if (!status && !o->prompt && isatty(STDIN_FILENO))
        status = usage("nothing to ask: give a text with -p (the chat needs stdin and stdout to be "
                       "a terminal)");
    else if (!status) {
        const char *what = o->question.len ? "the question" : "stdin";
        status = usage("nothing to ask: %s is empty", o->prompt ? "-p" : what);
    }
    buf_free(&question.text);
    return status;
}

/* Opens /dev/null in place of each standard file that is closed: otherwise the next file that is
 * opened would take its place.  /dev/null is opened for reading as stdout, so that an answer
 * written there still fails. */
static void hold_standard_files(void) {
    for (int fd = 0; fd < 3; fd++) {
        int mode = fd == 2 ? O_WRONLY : O_RDONLY;
        if (fcntl(fd, F_GETFD) < 0 && open("/dev/null", mode) < 0) _exit(1);
    }
}

/* Whether an error is about the model that $GEMMA4_MODEL names, which the call does not show.  dir:
 * its directory, or NULL where none was found. */
static int is_of_variable(const Options *o, const char *dir, const char *error) {
    return o->model_from_variable && (begins(error, o->model) || (dir && begins(error, dir)));
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
        status = find_model(&o, &dir, &err);
        if (!status) status = run(&o, dir.data, &err);
        if (status < 0) {
            const char *from = is_of_variable(&o, dir.data, err.text) ? "GEMMA4_MODEL: " : "";
            note("gemma4: %s%s\n", from, err.text);
            status = 1;
        }
        if (!status && reader_is_gone) status = READER_GONE;
    } else if (status < 0) status = 0;
    buf_free(&dir);
    options_free(&o);
    return status;
}
