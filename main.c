/* main.c - options, and what each call of the program does.
 *
 * The way of a token: main -> chat.c (text to ids) -> model.c (session, forward) -> cpu.c -> sampler.c -> chat.c (ids to
 * text) -> main.  generate.c holds the loop; repl.c the chat prompt; jsonl.c the JSON requests. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>

#include "bench.h"
#include "check.h"
#include "declare.h"
#include "generate.h"
#include "json.h"
#include "jsonl.h"
#include "repl.h"
#include "request.h"
#include "score.h"
#include "tools.h"

static const char help[] =
    "gemma4 - run Gemma 4 from its published checkpoint, on one machine\n"
    "\n"
    "  gemma4                                 chat, on a terminal (/help there)\n"
    "  gemma4 \"question\" [< file]             one shot: the answer alone on stdout\n"
    "  gemma4 --raw -p TEXT  |  --ids FILE    continue text or token ids, no template\n"
    "  gemma4 --jsonl < requests > answers    OpenAI chat requests, a JSON line each\n"
    "  gemma4 tokenize [--plain] [--decode]   stdin to token ids, or back\n"
    "  gemma4 render [--ids] < request.json   the prompt that a request becomes\n"
    "  gemma4 parse [--open-thought] < answer what becomes of an answer\n"
    "        [--tools FILE] [--think]         content, thought, calls as JSON\n"
    "  gemma4 check --json-schema F [< text]  does it compile, and allow the text\n"
    "  gemma4 score (--ids FILE | --raw -p TEXT | --text FILE | --request FILE)\n"
    "        [--top N] [--logits FILE]        log probabilities, a JSON line a token\n"
    "        [--summary] [--reference FILE]   perplexity; distance from stored logits\n"
    "  gemma4 bench [--scenario NAME] [--json] [--plot FILE.svg]  how fast it is\n"
    "  gemma4 info [--json]                   the model: layouts, bytes, memory\n"
    "\n"
    "  -m MODEL        checkpoint directory or hub name; else $GEMMA4_MODEL, the demo\n"
    "  -p TEXT         the question            -s, --system TEXT     system prompt\n"
    "  -i FILE         an image, or several    --image-tokens N  70 to 1120 (280)\n"
    "  --video FILE    GIF; others by ffmpeg   --video-frames N  at most (32)\n"
    "  -n, --max-tokens N  answer at most      -c, --context N       (32768)\n"
    "  --temp X --top-k N --top-p X --min-p X --repeat-penalty X --seed N\n"
    "                  sampling, else as the checkpoint says; --temp 0 is greedy\n"
    "  --kv TYPE       cache: f32, bf16, fp8   --exact       float32 throughout\n"
    "  --fp4-activations  prompts rounded to FP4: other numbers (RTX 50, GB10 only)\n"
    "  -t, --threads N                         --chunk N     prefill (512, GPU 2048)\n"
    "  --draft MODEL   a drafter: the same answer, faster    --draft-tokens N\n"
    "  --draft-log FILE                                      a JSON line a round\n"
    "  --device NAME   auto (a GPU if there is one), cpu, cuda; else $GEMMA4_DEVICE\n"
    "  --think         a thought first         --think-tokens N  of at most N tokens\n"
    "  --tools FILE|JSON  functions it may call, as in an OpenAI request or from MCP\n"
    "  --run-tools DIR run its calls: executables there; asked for unless --yes\n"
    "  --json-schema FILE|JSON  an answer that satisfies it\n"
    "  --stream        --jsonl in chunks       --print-ids   the answer as token ids\n"
    "  --stats         rates, on stderr        --ignore-eos  never end a turn\n"
    "  --context-overflow stop|slide           slide: a full one drops oldest turns\n"
    "  --raw-output    control characters to a terminal as they are   -h, --version\n"
    "\n"
    "Exit status: 0, 1 failure, 2 wrong usage, 128 + the signal that ended it (130).\n";

typedef struct {
    const char *command;                /* NULL, or one of `commands` */
    const char *model, *prompt, *ids_file, *request_file, *logits_file, *system, *device, *draft, *draft_log, *text_file;
    const char *reference_file, *scenario, *plot_file;
    Buf question;                       /* positional arguments, joined by spaces */
    cJSON *media;                       /* parts of the question: images and videos, or NULL */
    int image_tokens, video_frames;     /* 0 image_tokens: as config.json says */
    const char *tools, *json_schema;    /* a file, or JSON */
    const char *run_tools;
    int raw, jsonl, plain, decode, open_thought, json, ids, print_ids, ignore_eos, exact, stats, think, yes, stream, summary, slide;
    int fp4_activations;
    int think_tokens;                   /* -1: no limit */
    int max_tokens, context, threads, chunk, top, draft_tokens;
    KvType kv;
    SamplerParams sampling;             /* negative: not given */
    int have_seed;
} Options;

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

static int usage(const char *format, ...) __attribute__((format(printf, 1, 2)));
static int usage(const char *format, ...) {
    char text[1024];
    va_list ap;
    va_start(ap, format);
    vsnprintf(text, sizeof text, format, ap);
    va_end(ap);
    note("gemma4: %s (gemma4 --help)\n", text);
    return 2;
}

/* ------------------------------------------------------------------------------------------------------------
 * Options */

enum { OPT_RAW = 256, OPT_IDS, OPT_JSONL, OPT_PRINT_IDS, OPT_IGNORE_EOS, OPT_PLAIN, OPT_DECODE, OPT_TOP, OPT_LOGITS,
       OPT_REQUEST, OPT_JSON, OPT_TEMP, OPT_TOP_K, OPT_TOP_P, OPT_MIN_P, OPT_PENALTY, OPT_SEED, OPT_DEVICE, OPT_KV, OPT_EXACT,
       OPT_STATS, OPT_CHUNK, OPT_THINK, OPT_THINK_TOKENS, OPT_TOOLS, OPT_RUN_TOOLS, OPT_YES, OPT_JSON_SCHEMA, OPT_STREAM, OPT_VERSION,
       OPT_VIDEO, OPT_IMAGE_TOKENS, OPT_VIDEO_FRAMES, OPT_DRAFT, OPT_DRAFT_TOKENS, OPT_DRAFT_LOG, OPT_TEXT,
       OPT_SUMMARY, OPT_REFERENCE, OPT_SCENARIO, OPT_PLOT, OPT_CONTEXT_OVERFLOW, OPT_RAW_OUTPUT, OPT_OPEN_THOUGHT,
       OPT_FP4_ACTIVATIONS };

static const struct option long_options[] = {
    {"max-tokens", 1, 0, 'n'}, {"context", 1, 0, 'c'}, {"system", 1, 0, 's'}, {"threads", 1, 0, 't'}, {"model", 1, 0, 'm'},
    {"prompt", 1, 0, 'p'}, {"raw", 0, 0, OPT_RAW}, {"ids", 2, 0, OPT_IDS}, {"jsonl", 0, 0, OPT_JSONL},
    {"print-ids", 0, 0, OPT_PRINT_IDS}, {"ignore-eos", 0, 0, OPT_IGNORE_EOS}, {"plain", 0, 0, OPT_PLAIN},
    {"decode", 0, 0, OPT_DECODE}, {"top", 1, 0, OPT_TOP}, {"logits", 1, 0, OPT_LOGITS}, {"request", 1, 0, OPT_REQUEST},
    {"json", 0, 0, OPT_JSON}, {"temp", 1, 0, OPT_TEMP}, {"top-k", 1, 0, OPT_TOP_K}, {"top-p", 1, 0, OPT_TOP_P},
    {"min-p", 1, 0, OPT_MIN_P}, {"repeat-penalty", 1, 0, OPT_PENALTY}, {"seed", 1, 0, OPT_SEED}, {"device", 1, 0, OPT_DEVICE},
    {"kv", 1, 0, OPT_KV}, {"exact", 0, 0, OPT_EXACT}, {"stats", 0, 0, OPT_STATS}, {"chunk", 1, 0, OPT_CHUNK},
    {"image", 1, 0, 'i'}, {"video", 1, 0, OPT_VIDEO}, {"image-tokens", 1, 0, OPT_IMAGE_TOKENS}, {"video-frames", 1, 0, OPT_VIDEO_FRAMES},
    {"think", 0, 0, OPT_THINK}, {"think-tokens", 1, 0, OPT_THINK_TOKENS}, {"tools", 1, 0, OPT_TOOLS}, {"run-tools", 1, 0, OPT_RUN_TOOLS},
    {"yes", 0, 0, OPT_YES}, {"json-schema", 1, 0, OPT_JSON_SCHEMA}, {"stream", 0, 0, OPT_STREAM}, {"help", 0, 0, 'h'}, {"version", 0, 0, OPT_VERSION},
    {"draft", 1, 0, OPT_DRAFT}, {"draft-tokens", 1, 0, OPT_DRAFT_TOKENS}, {"draft-log", 1, 0, OPT_DRAFT_LOG}, {"text", 1, 0, OPT_TEXT},
    {"summary", 0, 0, OPT_SUMMARY}, {"reference", 1, 0, OPT_REFERENCE},
    {"scenario", 1, 0, OPT_SCENARIO}, {"plot", 1, 0, OPT_PLOT}, {"context-overflow", 1, 0, OPT_CONTEXT_OVERFLOW},
    {"raw-output", 0, 0, OPT_RAW_OUTPUT}, {"open-thought", 0, 0, OPT_OPEN_THOUGHT},
    {"fp4-activations", 0, 0, OPT_FP4_ACTIVATIONS}, {0},
};

static int whole(const char *name, const char *text, long long min, long long max, int *out) {
    char *end;
    errno = 0;
    long long v = strtoll(text, &end, 10);
    if (end == text || *end || errno || v < min || v > max) return usage("%s %s: not a whole number from %lld to %lld", name, text, min, max);
    *out = (int)v;
    return 0;
}

static int real(const char *name, const char *text, double min, double max, float *out) {
    char *end;
    double v = strtod(text, &end);
    if (end == text || *end || !(v >= min && v <= max)) return usage("%s %s: not a number from %g to %g", name, text, min, max);
    *out = (float)v;
    return 0;
}

static int parse_seed(const char *text, Options *o) {
    char *end;
    errno = 0;
    o->sampling.seed = strtoull(text, &end, 10);
    o->have_seed = 1;
    return end == text || *end || errno ? usage("--seed %s: not a whole number", text) : 0;
}

static int parse_kv(const char *text, KvType *kv) {
    static const char *const name[] = {"auto", "f32", "bf16", "fp8"};
    for (int i = 0; i < 4; i++)
        if (!strcmp(text, name[i])) {
            *kv = (KvType)i;
            return 0;
        }
    return usage("--kv %s: not auto, f32, bf16 or fp8", text);
}

static int parse_image_tokens(const char *text, int *n) {
    static const int known[] = {70, 140, 280, 560, 1120};
    if (whole("--image-tokens", text, 0, 1 << 30, n)) return 2;
    for (int i = 0; i < 5; i++)
        if (*n == known[i]) return 0;
    return usage("--image-tokens %s: not 70, 140, 280, 560 or 1120", text);
}

/* Returns 0, or the exit status with which the program should end, or -1: end with 0 (help was given). */
static int parse_options(int argc, char **argv, Options *o) {
    static const char *const commands[] = {"tokenize", "render", "parse", "check", "score", "bench",
                                           "info"};
    *o = (Options){.max_tokens = -1, .context = -1, .top = 5, .think_tokens = -1, .video_frames = 32, .draft_tokens = -1,
                   .sampling = {.repeat_penalty = -1, .temperature = -1, .top_k = -1, .top_p = -1, .min_p = -1}};
    for (size_t i = 0; argc > 1 && i < sizeof commands / sizeof *commands; i++)
        if (!strcmp(argv[1], commands[i])) o->command = commands[i];
    if (o->command) argc--, argv++;
    /* --ids names a file, except for `render`, where it asks for ids. */
    int renders = o->command && !strcmp(o->command, "render"), c;
    opterr = 0;
    while ((c = getopt_long(argc, argv, ":m:p:n:c:s:t:i:h", long_options, NULL)) != -1) {
        int bad = 0;
        switch (c) {
        case 'm': o->model = optarg; break;
        case 'p': o->prompt = optarg; break;
        case 'n': bad = whole("-n", optarg, 0, 1 << 30, &o->max_tokens); break;
        case 'c': bad = whole("-c", optarg, 1, 1 << 30, &o->context); break;
        case 's': o->system = *optarg ? optarg : NULL; break;
        case 't': bad = whole("-t", optarg, 1, 1024, &o->threads); break;
        case 'i': case OPT_VIDEO:
            if (!o->media) o->media = cJSON_CreateArray();
            cJSON_AddItemToArray(o->media, media_part(optarg, c == OPT_VIDEO));
            break;
        case OPT_IMAGE_TOKENS: bad = parse_image_tokens(optarg, &o->image_tokens); break;
        case OPT_VIDEO_FRAMES: bad = whole("--video-frames", optarg, 1, 100000, &o->video_frames); break;
        case OPT_RAW: o->raw = 1; break;
        case OPT_IDS:
            o->ids = 1;
            if (renders) break;
            o->ids_file = optarg ? optarg : optind < argc ? argv[optind++] : NULL;
            if (!o->ids_file) bad = usage("--ids needs a file");
            break;
        case OPT_JSONL: o->jsonl = 1; break;
        case OPT_PRINT_IDS: o->print_ids = 1; break;
        case OPT_IGNORE_EOS: o->ignore_eos = 1; break;
        case OPT_PLAIN: o->plain = 1; break;
        case OPT_DECODE: o->decode = 1; break;
        case OPT_TOP: bad = whole("--top", optarg, 0, 1000, &o->top); break;
        case OPT_LOGITS: o->logits_file = optarg; break;
        case OPT_REQUEST: o->request_file = optarg; break;
        case OPT_JSON: o->json = 1; break;
        case OPT_TEMP: bad = real("--temp", optarg, 0, 100, &o->sampling.temperature); break;
        case OPT_TOP_K: bad = whole("--top-k", optarg, 0, 1 << 24, &o->sampling.top_k); break;
        case OPT_TOP_P: bad = real("--top-p", optarg, 0, 1, &o->sampling.top_p); break;
        case OPT_MIN_P: bad = real("--min-p", optarg, 0, 1, &o->sampling.min_p); break;
        case OPT_PENALTY: bad = real("--repeat-penalty", optarg, 0.01, 100, &o->sampling.repeat_penalty); break;
        case OPT_SEED: bad = parse_seed(optarg, o); break;
        case OPT_DEVICE: o->device = optarg; break;
        case OPT_KV: bad = parse_kv(optarg, &o->kv); break;
        case OPT_EXACT: o->exact = 1; break;
        case OPT_FP4_ACTIVATIONS: o->fp4_activations = 1; break;
        case OPT_STATS: o->stats = 1; break;
        case OPT_CHUNK: bad = whole("--chunk", optarg, 1, 8192, &o->chunk); break;
        case OPT_THINK: o->think = 1; break;
        case OPT_THINK_TOKENS:
            o->think = 1;
            bad = whole("--think-tokens", optarg, 0, 1 << 30, &o->think_tokens);
            break;
        case OPT_TOOLS: o->tools = optarg; break;
        case OPT_RUN_TOOLS: o->run_tools = optarg; break;
        case OPT_YES: o->yes = 1; break;
        case OPT_JSON_SCHEMA: o->json_schema = optarg; break;
        case OPT_STREAM: o->stream = 1; break;
        case OPT_DRAFT: o->draft = optarg; break;
        case OPT_DRAFT_TOKENS: bad = whole("--draft-tokens", optarg, 0, MAX_DRAFTS, &o->draft_tokens); break;
        case OPT_DRAFT_LOG: o->draft_log = optarg; break;
        case OPT_SCENARIO: o->scenario = optarg; break;
        case OPT_PLOT: o->plot_file = optarg; break;
        case OPT_TEXT: o->text_file = optarg; break;
        case OPT_CONTEXT_OVERFLOW:
            o->slide = !strcmp(optarg, "slide");
            if (!o->slide && strcmp(optarg, "stop")) bad = usage("--context-overflow %s: not stop or slide", optarg);
            break;
        case OPT_RAW_OUTPUT: raw_output = 1; break;
        case OPT_OPEN_THOUGHT: o->open_thought = 1; break;
        case OPT_SUMMARY: o->summary = 1; break;
        case OPT_REFERENCE: o->reference_file = optarg; break;
        case 'h': put_stdout(help, strlen(help)); return -1;
        case OPT_VERSION: put_stdout("gemma4 " VERSION "\n", strlen("gemma4 " VERSION "\n")); return -1;
        case ':': return usage("%s needs a value", argv[optind - 1]);
        default: {
            const char *last = argv[optind - 1];
            int is_long = !strncmp(last, "--", 2);      /* else one letter of a group */
            return usage("unknown option %s", is_long || !optopt ? last : (char[]){'-', (char)optopt, 0});
        }
        }
        if (bad) return bad;
    }
    for (; optind < argc; optind++) {
        if (o->question.len) buf_puts(&o->question, " ");
        buf_puts(&o->question, argv[optind]);
    }
    return 0;
}

static int is_scenario(const char *name) {
    int found = !strcmp(name, "all");
    for (int i = 0; bench_scenarios[i]; i++) found |= !strcmp(name, bench_scenarios[i]);
    return found;
}

static int check_options(Options *o) {
    int takes_prompt = !o->command || !strcmp(o->command, "score");
    int benches = o->command && !strcmp(o->command, "bench");
    int tokenizes = o->command && !strcmp(o->command, "tokenize"), scores = o->command && !strcmp(o->command, "score");
    if (o->question.len && o->command) return usage("%s takes no argument \"%s\"", o->command, o->question.data);
    if (o->question.len && (o->prompt || o->jsonl || o->ids_file))
        return usage("unexpected argument \"%s\"", o->question.data);
    if (!takes_prompt && (o->prompt || o->raw || o->ids_file)) return usage("%s takes no prompt", o->command);
    if (o->jsonl && (o->command || o->prompt || o->raw || o->ids_file)) return usage("--jsonl reads its requests from stdin");
    if (o->media && (o->command || o->jsonl || o->raw || o->ids_file)) return usage("-i and --video belong to a question or the chat");
    if (o->ids_file && o->prompt) return usage("--ids and -p exclude each other");
    if ((o->plain || o->decode) && !tokenizes) return usage("--plain and --decode belong to tokenize");
    if ((o->request_file || o->logits_file) && !scores) return usage("--request and --logits belong to score");
    int parses = o->command && !strcmp(o->command, "parse"), renders = o->command && !strcmp(o->command, "render");
    int checks = o->command && !strcmp(o->command, "check");
    int takes_none = o->command && !renders && !checks;
    if (takes_none && (o->json_schema || (o->tools && !parses)))
        return usage("%s takes neither tools nor a schema", o->command);
    if (checks && !o->tools == !o->json_schema)
        return usage("check needs one of --json-schema and --tools");
    if (o->open_thought && !parses) return usage("--open-thought belongs to parse");
    if (o->tools && (o->raw || o->ids_file)) return usage("--tools needs the chat template");
    if (o->run_tools && (!o->tools || o->jsonl || o->command)) return usage("--run-tools needs --tools, and neither --jsonl nor a command");
    if (o->yes && !o->run_tools) return usage("--yes belongs to --run-tools");
    if (o->run_tools && !o->yes) {
        int terminal = open("/dev/tty", O_RDWR | O_CLOEXEC);
        if (terminal < 0) return usage("--run-tools: no terminal to ask on; --yes runs every call");
        close(terminal);
    }
    if (o->stream && !o->jsonl) return usage("--stream belongs to --jsonl");
    if (o->slide && (o->command || o->raw || o->ids_file)) return usage("--context-overflow belongs to conversations");
    if (o->json_schema && o->ignore_eos) return usage("--json-schema and --ignore-eos exclude each other");
    if ((o->text_file || o->summary || o->reference_file) && !scores) return usage("--text, --summary and --reference belong to score");
    if (o->json && !benches && !(o->command && !strcmp(o->command, "info")))
        return usage("--json belongs to info and bench (--jsonl answers requests)");
    if ((o->scenario || o->plot_file) && !benches) return usage("--scenario and --plot belong to bench");
    if (o->scenario && !is_scenario(o->scenario)) return usage("--scenario %s: not all, chat, rag, long, context, multiturn or reasoning", o->scenario);
    if (o->exact && o->fp4_activations) return usage("--exact and --fp4-activations exclude each other");
    if (o->ids_file && o->raw) return usage("--ids and --raw exclude each other");
    if (scores && (!!o->ids_file + !!o->request_file + !!o->text_file + !!o->prompt != 1 || o->raw != !!o->prompt))
        return usage("score needs one of --ids FILE, --raw -p TEXT, --text FILE, --request FILE");
    if (!o->draft && (o->draft_tokens >= 0 || o->draft_log)) return usage("--draft-tokens and --draft-log need --draft");
    if (o->draft && o->command && !benches) return usage("--draft: %s drafts nothing", o->command);
    const char *named = o->device ? "--device" : "GEMMA4_DEVICE";
    if (!o->device) o->device = getenv("GEMMA4_DEVICE");
    if (!o->device || !*o->device) o->device = "auto";
    if (strcmp(o->device, "auto") && strcmp(o->device, "cpu") && strcmp(o->device, "cuda"))
        return usage("%s %s: not auto, cpu or cuda", named, o->device);
    return 0;
}

/* ------------------------------------------------------------------------------------------------------------
 * Finding and opening the model */

static int is_dir(const char *path) {
    struct stat info;
    return !stat(path, &info) && S_ISDIR(info.st_mode);
}

/* The hub's cache keeps NAME at models--ORG--MODEL/snapshots/COMMIT, and the commit in refs/main. */
static int find_in_hub(const char *name, Buf *dir, Error *err) {
    const char *hub = getenv("HF_HUB_CACHE"), *home = getenv("HF_HOME"), *user = getenv("HOME");
    Buf root = {0}, path = {0}, commit = {0};
    if (hub && *hub) buf_puts(&root, hub);
    else if (home && *home) buf_printf(&root, "%s/hub", home);
    else buf_printf(&root, "%s/.cache/huggingface/hub", user ? user : "");
    const char *slash = strchr(name, '/');
    buf_printf(&path, "%s/models--%.*s--%s", root.data, (int)(slash - name), name, slash + 1);
    buf_printf(dir, "%s/refs/main", path.data);
    int found = !read_file(dir->data, &commit, NULL);
    dir->len = 0;
    buf_puts(dir, path.data);
    if (found) buf_printf(dir, "/snapshots/%.*s", (int)strcspn(commit.data, "\r\n "), commit.data);
    found = found && is_dir(dir->data);
    if (!found) fail(err, "%s is not in the Hugging Face cache (%s); get it with: hf download %s", name, root.data, name);
    buf_free(&root);
    buf_free(&path);
    buf_free(&commit);
    return found ? 0 : -1;
}

/* The demo checkpoint lies beside the program, or, installed, in ../share/gemma4. */
static int find_demo(Buf *dir, Error *err) {
    char exe[4096];
    ssize_t n = readlink("/proc/self/exe", exe, sizeof exe - 1);
    exe[n > 0 ? n : 0] = 0;
    char *slash = strrchr(exe, '/');
    if (slash) *slash = 0;
    const char *const where[] = {"demo", "../share/gemma4/demo"};
    for (int i = 0; i < 2; i++) {
        dir->len = 0;
        buf_printf(dir, "%s/%s", exe, where[i]);
        if (is_dir(dir->data)) return 0;
    }
    return fail(err, "no model: give one with -m, or set GEMMA4_MODEL");
}

/* A checkpoint by its directory or its name on the hub. */
static int find_checkpoint(const char *name, Buf *dir, Error *err) {
    const char *slash = strchr(name, '/');
    if (is_dir(name)) {
        buf_puts(dir, name);
        return 0;
    }
    int is_name = slash && slash != name && slash[1] && !strchr(slash + 1, '/') && name[0] != '.' && name[0] != '~';
    if (is_name) return find_in_hub(name, dir, err);
    return fail(err, "%s: %s", name, access(name, F_OK) ? "no such directory" : "not a checkpoint directory");
}

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
    s.context = o->context > 0 ? o->context : o->command && !strcmp(o->command, "bench") ? BENCH_ROOM : 32768;
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
    Buf drafter = {0};
    if (o->draft && !find_checkpoint(o->draft, &drafter, NULL))
        s.beside = drafter_size(drafter.data, e->model);
    buf_free(&drafter);
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

/* ------------------------------------------------------------------------------------------------------------
 * The calls */

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
            buf_printf(&out, ", \"weights\": %lld, \"activations\": %lld, \"cache\": %lld, "
                       "\"head_copy\": %lld, \"free\": %lld, \"total\": %lld}",
                       (long long)gpu.weights, (long long)gpu.activations, (long long)gpu.cache,
                       (long long)gpu.head_copy, (long long)gpu.free, (long long)gpu.total);
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
        if (gpu.total) {
            buf_printf(&out, "GPU          %s: weights %.3f GB + activations %.3f GB", gpu.name,
                       (double)gpu.weights * 1e-9, (double)gpu.activations * 1e-9);
            buf_printf(&out, " + cache %.3f GB", (double)gpu.cache * 1e-9);
            if (gpu.head_copy)
                buf_printf(&out, " + int8 copy of the head %.3f GB", (double)gpu.head_copy * 1e-9);
            buf_printf(&out, ", of %.3f GB free\n", (double)gpu.free * 1e-9);
        }
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
    if (o->command && !strcmp(o->command, "tokenize")) return run_tokenize(o, dir, err);
    if (o->command && !strcmp(o->command, "render")) return run_render(o, dir, err);
    if (o->command && !strcmp(o->command, "parse")) return run_parse(o, dir, err);
    if (o->command && !strcmp(o->command, "check")) return run_check(o, dir, err);
    if (o->command && !strcmp(o->command, "info")) return run_info(o, dir, err);
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
    else if (!bad && o->command && !strcmp(o->command, "bench"))
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
    buf_free(&o.question);
    cJSON_Delete(o.media);
    return status;
}
