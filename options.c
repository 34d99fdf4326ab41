/* options.c - reads the command line.  See options.h. */
#define _GNU_SOURCE
#include "options.h"

#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "bench.h"
#include "directory.h"
#include "json.h"
#include "kernels.h"
#include "media.h"

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
    "  -m MODEL        directory or hub name[@revision]; else $GEMMA4_MODEL, the demo\n"
    "  -p TEXT         the question            -s, --system TEXT     system prompt\n"
    "  -f, -i FILE     texts, images (several) --image-tokens N  70 to 1120 (280)\n"
    "  --video FILE    GIF; others by ffmpeg   --video-frames N  at most (32)\n"
    "  -n, --max-tokens N  answer at most      -c, --context N       (32768)\n"
    "  --temp X --top-k N --top-p X --min-p X --repeat-penalty X --seed N\n"
    "                  sampling, else as the checkpoint says; --temp 0 is greedy\n"
    "  --kv TYPE       auto, f32, bf16, fp8    --exact       float32 throughout\n"
    "  --activations 8|16|32  bits, CPU (16)   --fp4-activations  RTX 50, GB10 only\n"
    "  -t, --threads N (cores, or CPU quota)   --chunk N     prefill (512, GPU 2048)\n"
    "  --gpu-memory GB  at most  --cpu-experts N  layers   --expert-slots N  of each\n"
    "  --draft MODEL   a drafter: the same answer, faster    --draft-tokens N\n"
    "  --draft-log FILE  a line a round    --lora DIR[:SCALE]  LoRA adapters (peft)\n"
    "  --device NAME   auto (a GPU if any), cpu, cuda, plain; else $GEMMA4_DEVICE\n"
    "  --think         a thought first         --think-tokens N  of at most N tokens\n"
    "  --tools FILE|JSON  functions it may call, as in an OpenAI request or from MCP\n"
    "  --run-tools DIR run its calls: executables there; asked for unless --yes\n"
    "  --json-schema FILE|JSON  an answer that satisfies it\n"
    "  --stream        --jsonl in chunks       --print-ids   the answer as token ids\n"
    "  --stats         rates, on stderr        --ignore-eos  never end a turn\n"
    "  -q, --quiet     errors alone on stderr  --cache FILE  a document, read once\n"
    "  --load FILE --save FILE                 a conversation over several calls\n"
    "  --context-overflow stop|slide           slide: a full one drops oldest turns\n"
    "  --no-markdown   a terminal shows Markdown in answers as it is\n"
    "  --raw-output    control characters to a terminal as they are   -h, --version\n"
    "\n"
    "Exit status: 0, 1 failure, 2 wrong usage, 128 + the signal that ended it (130).\n";

static const char *const commands[] = {"tokenize", "render", "parse", "check", "score", "bench",
                                       "info"};

int usage(const char *format, ...) {
    char text[1024];
    va_list ap;
    va_start(ap, format);
    vsnprintf(text, sizeof text, format, ap);
    va_end(ap);
    note("gemma4: %s (gemma4 --help)\n", text);
    return 2;
}

int is_command(const Options *o, const char *name) {
    return o->command && !strcmp(o->command, name);
}

/* ---- values ---- */

/* Whether a text may be a decimal number: the functions of C also take 0x10, inf, nan, and blanks
 * in front. */
static int is_decimal(const char *text) { return !text[strspn(text, "0123456789+-.eE")]; }

/* Each of these functions reads a decimal number from the whole text.  Returns 0; or -1 with err,
 * which calls the number `name`, and *out as it was. */

static int read_whole(const char *name, const char *text, double min, double max, int *out,
                      Error *err) {
    char *end;
    errno = 0;
    long long v = strtoll(text, &end, 10);
    int is_number = is_decimal(text) && end > text && !*end && !errno;
    if (!is_number || (double)v < min || (double)v > max)
        return fail(err, "%s %s: not a whole number from %.0f to %.0f", name, text, min, max);
    *out = (int)v;
    return 0;
}

static int read_real(const char *name, const char *text, double min, double max, float *out,
                     Error *err) {
    char *end;
    double v = strtod(text, &end);
    if (!is_decimal(text) || end == text || *end || !(v >= min && v <= max))
        return fail(err, "%s %s: not a number from %g to %g", name, text, min, max);
    *out = (float)v;
    return 0;
}

static int read_seed(const char *name, const char *text, uint64_t *out, Error *err) {
    char *end;
    errno = 0;
    uint64_t v = strtoull(text, &end, 10);
    if (!is_decimal(text) || end == text || *end || errno)
        return fail(err, "%s %s: not a whole number", name, text);
    *out = v;
    return 0;
}

/* As above, but with an error on stderr: 0, or the exit status. */

static int parse_whole(const char *name, const char *text, double min, double max, int *out) {
    Error err;
    return read_whole(name, text, min, max, out, &err) ? usage("%s", err.text) : 0;
}

static int parse_real(const char *name, const char *text, double min, double max, float *out) {
    Error err;
    return read_real(name, text, min, max, out, &err) ? usage("%s", err.text) : 0;
}

/* Returns which of the words `text` is.  They end with NULL.  -1 after an error on stderr, which
 * names them. */
static int parse_word(const char *name, const char *text, const char *const *words) {
    Buf all = {0};
    for (int i = 0; words[i]; i++) {
        if (!strcmp(text, words[i])) {
            buf_free(&all);
            return i;
        }
        const char *between = words[i + 1] ? ", " : " or ";
        buf_printf(&all, "%s%s", i ? between : "", words[i]);
    }
    usage("%s %s: not %s", name, text, all.data);
    buf_free(&all);
    return -1;
}

/* The take_… functions take the value of an option that is more than a number or a text.  They
 * return as parse_options does. */

static int take_system(Options *o, const char *text) {
    if (o->system) return usage("-s is given twice");
    o->system = *text ? text : NULL;
    return 0;
}

static void add_media(Options *o, const char *path, int is_video) {
    if (!o->media) o->media = cJSON_CreateArray();
    cJSON_AddItemToArray(o->media, media_part(path, is_video));
}

static int take_image(Options *o, const char *path) {
    add_media(o, path, 0);
    return 0;
}

static int take_video(Options *o, const char *path) {
    add_media(o, path, 1);
    return 0;
}

static int take_file(Options *o, const char *path) {
    o->file = xrealloc(o->file, o->n_files + 1, sizeof *o->file);
    o->file[o->n_files++] = path;
    return 0;
}

int split_lora(const char *text, Buf *dir, float *scale, Error *err) {
    const char *colon = strrchr(text, ':');
    buf_add(dir, text, colon ? (size_t)(colon - text) : strlen(text));
    return colon ? read_real("--lora's SCALE", colon + 1, -1000, 1000, scale, err) : 0;
}

/* Refuses a bad scale behind a directory.  Other names are looked up when the model is open. */
static int take_lora(Options *o, const char *text) {
    float scale;
    Error why;
    Buf dir = {0};
    int is_bad = !is_directory(text) && split_lora(text, &dir, &scale, &why) &&
                 is_directory(dir.data);
    buf_free(&dir);
    if (is_bad) return usage("%s", why.text);
    o->lora = xrealloc(o->lora, o->n_loras + 1, sizeof *o->lora);
    o->lora[o->n_loras++] = text;
    return 0;
}

static int take_image_tokens(Options *o, const char *text) {
    o->image_tokens = atoi(text);
    return parse_word("--image-tokens", text, image_token_words) < 0 ? 2 : 0;
}

static int take_seed(Options *o, const char *text) {
    Error err;
    o->have_seed = 1;
    return read_seed("--seed", text, &o->sampling.seed, &err) ? usage("%s", err.text) : 0;
}

static int take_kv(Options *o, const char *text) {
    static const char *const known[] = {"auto", "f32", "bf16", "fp8", NULL};
    int i = parse_word("--kv", text, known);
    if (i < 0) return 2;
    o->kv = (KvType)i;
    return 0;
}

static int take_activations(Options *o, const char *text) {
    static const char *const known[] = {"8", "16", "32", NULL};
    int i = parse_word("--activations", text, known);
    if (i < 0) return 2;
    o->activations = 8 << i;
    return 0;
}

/* The longest budget of a thought, in tokens. */
#define MAX_THINK_TOKENS (1 << 30)

static int take_think_tokens(Options *o, const char *text) {
    o->think = 1;
    return parse_whole("--think-tokens", text, 0, MAX_THINK_TOKENS, &o->think_tokens);
}

static int take_context_overflow(Options *o, const char *text) {
    static const char *const known[] = {"stop", "slide", NULL};
    int i = parse_word("--context-overflow", text, known);
    if (i < 0) return 2;
    o->slide = i;
    return 0;
}

static int take_quiet(Options *o, const char *text) {
    (void)o, (void)text;
    quiet = 1;
    return 0;
}

static int take_raw_output(Options *o, const char *text) {
    (void)o, (void)text;
    raw_output = 1;
    return 0;
}

static int take_help(Options *o, const char *text) {
    (void)o, (void)text;
    put_stdout(help, strlen(help));
    return -1;
}

static int take_version(Options *o, const char *text) {
    static const char version[] = "gemma4 " VERSION "\n";
    (void)o, (void)text;
    put_stdout(version, strlen(version));
    return -1;
}

/* ---- the table of all options ---- */

typedef enum {
    FLAG,                               /* without a value: an int becomes 1 */
    TEXT,                               /* with a value, which a const char * points to */
    ONCE,                               /* TEXT of which a second one is refused */
    WHOLE, REAL,                        /* with a value from min to max: an int, a float */
    ASKS, TAKES,                        /* without a value, with one: `take` is called */
    FILE_OR_FLAG,                       /* --ids, the only one: see take_ids */
} OptionKind;

typedef struct {
    const char *name;                   /* --name */
    char letter;                        /* -letter, 0: none */
    OptionKind kind;
    size_t at;                          /* the value's offset in Options */
    double min, max;
    int (*take)(Options *o, const char *text);
} OptionRow;

#define AT(field) offsetof(Options, field)

static const OptionRow rows[] = {
    {"model", 'm', TEXT, AT(model), 0, 0, NULL},
    {"lora", 0, TAKES, 0, 0, 0, take_lora},
    {"prompt", 'p', ONCE, AT(prompt), 0, 0, NULL},
    {"system", 's', TAKES, 0, 0, 0, take_system},
    {"file", 'f', TAKES, 0, 0, 0, take_file},
    {"image", 'i', TAKES, 0, 0, 0, take_image},
    {"image-tokens", 0, TAKES, 0, 0, 0, take_image_tokens},
    {"video", 0, TAKES, 0, 0, 0, take_video},
    {"video-frames", 0, WHOLE, AT(video_frames), 1, 100000, NULL},
    {"max-tokens", 'n', WHOLE, AT(max_tokens), -1, 1 << 30, NULL},
    {"context", 'c', WHOLE, AT(context), 1, 1 << 30, NULL},
    {"context-overflow", 0, TAKES, 0, 0, 0, take_context_overflow},
    {"temp", 0, REAL, AT(sampling.temperature), 0, 100, NULL},
    {"temperature", 0, REAL, AT(sampling.temperature), 0, 100, NULL},
    {"top-k", 0, WHOLE, AT(sampling.top_k), 0, 1 << 24, NULL},
    {"top-p", 0, REAL, AT(sampling.top_p), 0, 1, NULL},
    {"min-p", 0, REAL, AT(sampling.min_p), 0, 1, NULL},
    {"repeat-penalty", 0, REAL, AT(sampling.repeat_penalty), 0.01, 100, NULL},
    {"seed", 0, TAKES, 0, 0, 0, take_seed},
    {"device", 0, TEXT, AT(device), 0, 0, NULL},
    {"gpu-memory", 0, REAL, AT(gpu_memory), 0.001, 100000, NULL},
    {"cpu-experts", 0, WHOLE, AT(cpu_experts), 0, 1000, NULL},
    {"expert-slots", 0, WHOLE, AT(expert_slots), 0, 1000, NULL},
    {"threads", 't', WHOLE, AT(threads), 1, 1024, NULL},
    {"kv", 0, TAKES, 0, 0, 0, take_kv},
    {"chunk", 0, WHOLE, AT(chunk), 1, 8192, NULL},
    {"exact", 0, FLAG, AT(exact), 0, 0, NULL},
    {"activations", 0, TAKES, 0, 0, 0, take_activations},
    {"fp4-activations", 0, FLAG, AT(fp4_activations), 0, 0, NULL},
    {"draft", 0, TEXT, AT(draft), 0, 0, NULL},
    {"draft-tokens", 0, WHOLE, AT(draft_tokens), 0, MAX_DRAFTS, NULL},
    {"draft-log", 0, ONCE, AT(draft_log), 0, 0, NULL},
    {"think", 0, FLAG, AT(think), 0, 0, NULL},
    {"think-tokens", 0, TAKES, 0, 0, 0, take_think_tokens},
    {"tools", 0, ONCE, AT(tools), 0, 0, NULL},
    {"run-tools", 0, ONCE, AT(run_tools), 0, 0, NULL},
    {"yes", 0, FLAG, AT(yes), 0, 0, NULL},
    {"json-schema", 0, ONCE, AT(json_schema), 0, 0, NULL},
    {"raw", 0, FLAG, AT(raw), 0, 0, NULL},
    {"ids", 0, FILE_OR_FLAG, 0, 0, 0, NULL},
    {"print-ids", 0, FLAG, AT(print_ids), 0, 0, NULL},
    {"ignore-eos", 0, FLAG, AT(ignore_eos), 0, 0, NULL},
    {"stats", 0, FLAG, AT(stats), 0, 0, NULL},
    {"cache", 0, ONCE, AT(cache), 0, 0, NULL},
    {"load", 0, ONCE, AT(load), 0, 0, NULL},
    {"save", 0, ONCE, AT(save), 0, 0, NULL},
    {"quiet", 'q', ASKS, 0, 0, 0, take_quiet},
    {"no-markdown", 0, FLAG, AT(no_markdown), 0, 0, NULL},
    {"raw-output", 0, ASKS, 0, 0, 0, take_raw_output},
    {"jsonl", 0, FLAG, AT(jsonl), 0, 0, NULL},
    {"stream", 0, FLAG, AT(stream), 0, 0, NULL},
    /* of commands */
    {"plain", 0, FLAG, AT(plain), 0, 0, NULL},
    {"decode", 0, FLAG, AT(decode), 0, 0, NULL},
    {"open-thought", 0, FLAG, AT(open_thought), 0, 0, NULL},
    {"text", 0, ONCE, AT(text_file), 0, 0, NULL},
    {"request", 0, ONCE, AT(request_file), 0, 0, NULL},
    {"top", 0, WHOLE, AT(top), 0, 1000, NULL},
    {"logits", 0, ONCE, AT(logits_file), 0, 0, NULL},
    {"summary", 0, FLAG, AT(summary), 0, 0, NULL},
    {"reference", 0, ONCE, AT(reference_file), 0, 0, NULL},
    {"scenario", 0, TEXT, AT(scenario), 0, 0, NULL},
    {"plot", 0, ONCE, AT(plot_file), 0, 0, NULL},
    {"json", 0, FLAG, AT(json), 0, 0, NULL},
    {"help", 'h', ASKS, 0, 0, 0, take_help},
    {"version", 0, ASKS, 0, 0, 0, take_version},
};
enum { N_ROWS = sizeof rows / sizeof *rows };

int option_number(const char *option, const char *name, const char *text, void *value,
                  Error *err) {
    const OptionRow *row = rows;
    while (strcmp(row->name, option)) row++;
    if (row->take == take_seed) return read_seed(name, text, value, err);
    if (row->take == take_think_tokens)
        return read_whole(name, text, 0, MAX_THINK_TOKENS, value, err);
    if (row->kind == REAL) return read_real(name, text, row->min, row->max, value, err);
    return read_whole(name, text, row->min, row->max, value, err);
}

/* getopt_long returns the letter of an option or, where it has none, LONG_ONLY + its row. */
enum { LONG_ONLY = 256 };

/* The options that have a letter, as getopt_long wants them.  With the colon in front, it returns :
 * for a missing value and ? for an unknown option. */
static const char letters[] = ":m:p:n:c:s:t:i:f:qh";

/* The table as getopt_long wants it. */
static void make_long_options(struct option *out) {
    for (int i = 0; i < N_ROWS; i++) {
        const OptionRow *row = &rows[i];
        int value = required_argument;
        if (row->kind == FLAG || row->kind == ASKS) value = no_argument;
        if (row->kind == FILE_OR_FLAG) value = optional_argument;
        int code = row->letter ? row->letter : LONG_ONLY + i;
        out[i] = (struct option){row->name, value, NULL, code};
    }
    out[N_ROWS] = (struct option){0};
}

/* Returns the row of what getopt_long returned, or NULL. */
static const OptionRow *row_of(int c) {
    if (c >= LONG_ONLY) return &rows[c - LONG_ONLY];
    for (int i = 0; i < N_ROWS; i++)
        if (rows[i].letter == c) return &rows[i];
    return NULL;
}

/* --ids has a value, a file, in an argument of its own or behind `=`.  With the command `render` it
 * has none, and asks for ids. */
static int take_ids(Options *o, int argc, char **argv) {
    o->ids = 1;
    if (is_command(o, "render")) return 0;
    if (o->ids_file) return usage("--ids is given twice");
    o->ids_file = optarg;
    if (!optarg && optind < argc) o->ids_file = argv[optind++];
    return o->ids_file ? 0 : usage("--ids needs a file");
}

/* Takes one option with its value, NULL: none.  Returns as parse_options does. */
static int take_option(Options *o, const OptionRow *row, const char *text) {
    char letter[] = {'-', row->letter, 0}, name[64];
    void *value = (char *)o + row->at;
    snprintf(name, sizeof name, "--%s", row->name);
    const char *called = row->letter ? letter : name;
    int may_be_empty = row->letter == 'p' || row->letter == 's';
    if (text && !*text && !may_be_empty) return usage("%s needs a value", called);
    if (row->kind == ONCE && *(const char **)value) return usage("%s is given twice", called);
    switch (row->kind) {
    case FLAG: *(int *)value = 1; return 0;
    case ONCE:
    case TEXT: *(const char **)value = text; return 0;
    case WHOLE: return parse_whole(called, text, row->min, row->max, value);
    case REAL: return parse_real(called, text, row->min, row->max, value);
    default: return row->take(o, text);
    }
}

/* ---- the command line ---- */

/* o->command becomes the word if that is a command. */
static void take_command(Options *o, const char *word) {
    for (size_t i = 0; i < sizeof commands / sizeof *commands; i++)
        if (!strcmp(word, commands[i])) o->command = commands[i];
}

/* How many letters of a must be added, removed, changed, or swapped with the next one, to make b;
 * most + 1 where these are more than `most`. */
static int distance(const char *a, const char *b, int most) {
    while (*a && *a == *b) a++, b++;
    if (!*a && !*b) return 0;
    if (!most) return 1;
    int is_swapped = *a && *b && a[0] == b[1] && a[1] == b[0];
    const int way[] = {distance(a + !!*a, b + !!*b, most - 1), distance(a + !!*a, b, most - 1),
                       distance(a, b + !!*b, most - 1),
                       is_swapped ? distance(a + 2, b + 2, most - 1) : most};
    int least = most;
    for (int i = 0; i < 4; i++) least = way[i] < least ? way[i] : least;
    return 1 + least;
}

/* Makes *name the known word where it is the nearest to `word` so far, *least letters off: at most
 * two, and fewer than half of the word's. */
static void try_word(const char *word, const char *known, const char **name, int *least) {
    int off = distance(word, known, 2);
    if (off >= *least || 2 * (size_t)off >= strlen(word)) return;
    *name = known;
    *least = off;
}

/* Refuses what getopt_long does not know.  That is the letter optopt; or the last argument: a long
 * option, which may be known (then optopt is its code) but has a value that it does not take. */
static int refuse(char **argv) {
    Buf word = {0};
    const char *name = NULL, *argument = argv[optind - 1];
    int least = 3;
    if (optopt && !row_of(optopt)) return usage("unknown option -%c", optopt);
    buf_add(&word, argument + 2, strcspn(argument + 2, "="));
    for (int i = 0; i < N_ROWS; i++) try_word(word.data, rows[i].name, &name, &least);
    buf_free(&word);
    if (!name) return usage("unknown option %s", argument);
    return usage("unknown option %s: did you mean --%s?", argument, name);
}

/* Beside -i, -f or --video a word of the question that is a file was meant for the option, as with
 * `-i *.png`: the shell gives it the first of the files alone.  Returns 0, or the exit status. */
static int refuse_file(const char *word) {
    struct stat info;
    if (stat(word, &info) || !S_ISREG(info.st_mode)) return 0;
    return usage("%s is a file: each file needs a -i, -f or --video of its own (as text: -p)",
                 word);
}

/* Takes the only word behind options: a command, or a question, unless it looks like a command.
 * Returns 0, or the exit status. */
static int take_word(Options *o, const char *word) {
    const char *name = NULL;
    int least = 3;
    take_command(o, word);
    if (!strcmp(word, "help")) return usage("help is no command; -p help asks the model");
    if (o->command || o->media || o->n_files) return 0;
    for (size_t i = 0; i < sizeof commands / sizeof *commands; i++)
        try_word(word, commands[i], &name, &least);
    if (!name) return 0;
    return usage("%s: did you mean the command %s? -p %s asks the model", word, name, word);
}

int parse_options(int argc, char **argv, Options *o) {
    struct option long_options[N_ROWS + 1];
    int c, status = 0;
    make_long_options(long_options);
    *o = (Options){.max_tokens = -1, .context = -1, .top = -1, .think_tokens = -1,
                   .video_frames = 32, .draft_tokens = -1, .cpu_experts = CPU_EXPERTS_AUTO,
                   .expert_slots = EXPERT_SLOTS_AUTO,
                   .sampling = {.repeat_penalty = -1, .temperature = -1, .top_k = -1, .top_p = -1,
                                .min_p = -1}};
    take_command(o, argc > 1 ? argv[1] : "");
    if (o->command) argc--, argv++;
    opterr = 0;
    while (!status && (c = getopt_long(argc, argv, letters, long_options, NULL)) != -1) {
        if (c == ':') return usage("%s needs a value", argv[optind - 1]);
        const OptionRow *row = row_of(c);
        if (!row) return refuse(argv);  /* '?' */
        if (row->kind == FILE_OR_FLAG) status = take_ids(o, argc, argv);
        else status = take_option(o, row, optarg);
    }
    /* The only word behind options may also be the command, or -, which stands for stdin, but not
     * behind "--". */
    int is_only = optind + 1 == argc && strcmp(argv[optind - 1], "--");
    int is_stdin = is_only && !strcmp(argv[optind], "-"), had_command = o->command != NULL;
    if (is_only && !had_command && !status) status = take_word(o, argv[optind]);
    if (is_stdin || (is_only && o->command && !had_command)) optind++;
    for (; !status && optind < argc; optind++) {
        if (o->media || o->n_files) status = refuse_file(argv[optind]);
        if (o->question.len) buf_puts(&o->question, " ");
        buf_puts(&o->question, argv[optind]);
    }
    return status;
}

void options_free(Options *o) {
    buf_free(&o->question);
    cJSON_Delete(o->media);
    free(o->lora);
    free(o->file);
}

/* ---- what belongs together ---- */

/* Refuses an argument in another encoding than UTF-8, as text on stdin is refused. */
static int check_utf8(const char *called, const char *text) {
    size_t n = text ? strlen(text) : 0, good = utf8_until(text, n);
    return good == n ? 0 : usage("%s: not UTF-8 at byte %zu", called, good);
}

static int check_prompt(const Options *o) {
    int tokenizes = is_command(o, "tokenize"), scores = is_command(o, "score");
    if (o->question.len && o->command)
        return usage("%s takes no argument \"%s\"", o->command, o->question.data);
    if (o->question.len && (o->prompt || o->jsonl || o->ids_file))
        return usage("unexpected argument \"%s\"", o->question.data);
    if (!o->raw && (check_utf8("the question", o->question.data) || check_utf8("-p", o->prompt) ||
                    check_utf8("-s", o->system)))
        return 2;
    if (o->prompt && !o->raw && !strcmp(o->prompt, "-"))
        return usage("-p -: is a text, no file; without -p the question is read from stdin");
    if (o->system && !strcmp(o->system, "-")) return usage("-s -: is a text, no file");
    if (o->command && !scores && (o->prompt || o->raw || o->ids_file))
        return usage("%s takes no prompt", o->command);
    if (o->jsonl && o->command) return usage("%s and --jsonl exclude each other", o->command);
    if (o->jsonl && (o->prompt || o->raw || o->ids_file))
        return usage("--jsonl reads its requests from stdin");
    if (o->media && (o->command || o->jsonl || o->raw || o->ids_file))
        return usage("-i and --video belong to a question or the chat");
    if (o->n_files && (o->command || o->jsonl || o->raw || o->ids_file))
        return usage("-f belongs to a question or the chat");
    if ((o->cache || o->load || o->save) && (o->command || o->jsonl || o->raw || o->ids_file))
        return usage("--cache, --load and --save belong to a question");
    if (o->load && o->system)
        return usage("--load and -s exclude each other: the file may have a system prompt");
    if (o->ids_file && o->prompt) return usage("--ids and -p exclude each other");
    if ((o->system || o->think) && (o->raw || o->ids_file || o->text_file))
        return usage("-s, --think and --think-tokens need the chat template");
    if ((o->ignore_eos || o->print_ids) && (o->jsonl || o->command))
        return usage("--ignore-eos and --print-ids belong to a question (a request has "
                     "ignore_eos)");
    if ((o->plain || o->decode) && !tokenizes)
        return usage("--plain and --decode belong to tokenize");
    if ((o->request_file || o->logits_file) && !scores)
        return usage("--request and --logits belong to score");
    return 0;
}

/* Whether an option says how tokens are drawn. */
static int samples(const Options *o) {
    const SamplerParams *p = &o->sampling;
    return p->temperature >= 0 || p->top_k >= 0 || p->top_p >= 0 || p->min_p >= 0 ||
           p->repeat_penalty >= 0 || o->have_seed;
}

/* Refuses what has no effect on a command. */
static int check_command(const Options *o) {
    int benches = is_command(o, "bench");
    int makes_prompt = is_command(o, "render") || is_command(o, "score");
    if (!o->command) return 0;
    if (samples(o) || (o->max_tokens >= 0 && !benches))
        return usage("%s draws no tokens: %sthe options of sampling have no effect", o->command,
                     benches ? "" : "-n and ");
    if (o->max_tokens == 0 || o->max_tokens == 1)
        return usage("bench -n %d: a rate of decoding needs two tokens", o->max_tokens);
    if (o->system && !makes_prompt) return usage("-s: %s makes no prompt", o->command);
    if (o->think && !makes_prompt && !is_command(o, "parse"))
        return usage("--think: %s makes no prompt", o->command);
    return 0;
}

/* Whether there is a terminal on which the user can be asked. */
static int can_ask(void) {
    int terminal = open("/dev/tty", O_RDWR | O_CLOEXEC);
    if (terminal >= 0) close(terminal);
    return terminal >= 0;
}

static int check_tool_options(const Options *o) {
    int parses = is_command(o, "parse"), checks = is_command(o, "check");
    int takes_none = o->command && !is_command(o, "render") && !checks;
    if (takes_none && (o->json_schema || (o->tools && !parses)))
        return usage("%s takes neither tools nor a schema", o->command);
    if (checks && !o->tools == !o->json_schema)
        return usage("check needs one of --json-schema and --tools%s",
                     o->tools ? ", not both" : "");
    if (o->open_thought && !parses) return usage("--open-thought belongs to parse");
    if (o->tools && (o->raw || o->ids_file)) return usage("--tools needs the chat template");
    if (o->run_tools && ((!o->tools && !o->load) || o->jsonl || o->command))
        return usage("--run-tools needs --tools, or --load of a conversation that has some, and "
                     "neither --jsonl nor a command");
    if (o->yes && !o->run_tools) return usage("--yes belongs to --run-tools");
    if (o->run_tools && !o->yes && !can_ask())
        return usage("--run-tools: no terminal to ask on; --yes runs every call");
    return 0;
}

/* Whether two names are those of one regular file, or the same name of one that is not there. */
static int is_same_file(const char *a, const char *b) {
    struct stat of_a, of_b;
    int has_a = !stat(a, &of_a), has_b = !stat(b, &of_b);
    if (!has_a || !has_b) return !has_a && !has_b && !strcmp(a, b);
    return S_ISREG(of_a.st_mode) && of_a.st_dev == of_b.st_dev && of_a.st_ino == of_b.st_ino;
}

typedef struct { const char *option, *file; } NamedFile;

/* Refuses a file that is written under the name of another option's, which it would replace.
 * file: NULL where the option is not given. */
static int check_apart(NamedFile written, NamedFile other) {
    if (!written.file || !other.file || !is_same_file(written.file, other.file)) return 0;
    return usage("%s %s: %s names this file, too", written.option, written.file, other.option);
}

/* check_apart for the files of -f, -i and --video. */
static int check_attached(const Options *o, NamedFile written) {
    const cJSON *part;
    for (int i = 0; i < o->n_files; i++)
        if (check_apart(written, (NamedFile){"-f", o->file[i]})) return 2;
    cJSON_ArrayForEach(part, o->media) {
        int is_video;
        const char *path = media_path(part, &is_video);
        if (check_apart(written, (NamedFile){is_video ? "--video" : "-i", path})) return 2;
    }
    return 0;
}

/* Refuses - as a file that is written (it would not mean stdout, which has the answer) and as two
 * files that are read.  Refuses a file for two purposes, of which one may be stdout's, unless it is
 * the conversation that --load reads and --save writes. */
static int check_written(const Options *o) {
    Buf save_cache = {0}, load_cache = {0};
    if (o->save) buf_printf(&save_cache, "%s.kv", o->save);
    if (o->load && strcmp(o->load, "-")) buf_printf(&load_cache, "%s.kv", o->load);
    enum { N_WRITTEN = 6 };             /* the others are read */
    const NamedFile files[] = {
        {"--save", o->save}, {"--save", save_cache.data}, {"--cache", o->cache},
        {"--logits", o->logits_file}, {"--plot", o->plot_file}, {"--draft-log", o->draft_log},
        {"--load", o->load}, {"--load", load_cache.data}, {"--ids", o->ids_file},
        {"--text", o->text_file}, {"--request", o->request_file},
        {"--reference", o->reference_file}, {"--tools", o->tools},
        {"--json-schema", o->json_schema}, {"stdout", "/dev/stdout"},
    };
    int n = sizeof files / sizeof *files, status = 0;
    for (int i = 0; i < N_WRITTEN && !status; i++) {
        if (files[i].file && !strcmp(files[i].file, "-"))
            status = usage("%s -: needs the name of a file", files[i].option);
        for (int j = i + 1; j < n && !status; j++)
            if (i > 1 || j != N_WRITTEN + i) status = check_apart(files[i], files[j]);
        if (!status) status = check_attached(o, files[i]);
    }
    int n_stdin = 0;
    for (int i = N_WRITTEN; i < n; i++) n_stdin += files[i].file && !strcmp(files[i].file, "-");
    for (int i = 0; i < o->n_files; i++) n_stdin += !strcmp(o->file[i], "-");
    if (!status && n_stdin > 1) status = usage("only one option can read stdin (the file -)");
    buf_free(&save_cache);
    buf_free(&load_cache);
    return status;
}

static int check_output(const Options *o) {
    int benches = is_command(o, "bench"), scores = is_command(o, "score");
    if (o->stream && !o->jsonl) return usage("--stream belongs to --jsonl");
    if (o->slide && (o->command || o->raw || o->ids_file))
        return usage("--context-overflow belongs to conversations");
    if (o->json_schema && o->ignore_eos)
        return usage("--json-schema and --ignore-eos exclude each other");
    if ((o->text_file || o->summary || o->reference_file || o->top >= 0) && !scores)
        return usage("--text, --top, --summary and --reference belong to score");
    if (o->json && !benches && !is_command(o, "info"))
        return usage("--json belongs to info and bench (--jsonl answers requests)");
    if ((o->scenario || o->plot_file) && !benches)
        return usage("--scenario and --plot belong to bench");
    return o->scenario && parse_word("--scenario", o->scenario, bench_scenarios) < 0 ? 2 : 0;
}

static int check_model_options(const Options *o) {
    int scores = is_command(o, "score");
    int runs = !o->command || scores || is_command(o, "bench") || is_command(o, "info");
    int n_given = !!o->ids_file + !!o->request_file + !!o->text_file + !!o->prompt;
    if (o->exact && o->fp4_activations)
        return usage("--exact and --fp4-activations exclude each other");
    if (o->activations && o->activations < 32 && o->exact)
        return usage("--exact and --activations %d exclude each other", o->activations);
    if (o->activations == 8 && o->fp4_activations)
        return usage("--activations is for the CPU, --fp4-activations for a GPU");
    if (o->ids_file && o->raw) return usage("--ids and --raw exclude each other");
    if (scores && (n_given != 1 || o->raw != !!o->prompt))
        return usage("score needs one of --ids FILE, --raw -p TEXT, --text FILE, --request FILE%s",
                     n_given > 1 ? ", not several" : "");
    if (!o->draft && (o->draft_tokens >= 0 || o->draft_log))
        return usage("--draft-tokens and --draft-log need --draft");
    if (o->draft && o->command && !is_command(o, "bench"))
        return usage("--draft: %s drafts nothing", o->command);
    if (o->n_loras && !runs) return usage("--lora: %s runs no model", o->command);
    return 0;
}

/* Takes the device from --device or $GEMMA4_DEVICE; else it is auto. */
static int choose_device(Options *o) {
    static const char *const known[] = {"auto", "cpu", "cuda", "plain", NULL};
    const char *set = getenv("GEMMA4_DEVICE");
    o->device_from = o->device || !set ? "--device" : "GEMMA4_DEVICE";
    if (!o->device) o->device = set && *set ? set : "auto";
    return parse_word(o->device_from, o->device, known) < 0 ? 2 : 0;
}

/* Checks $GEMMA4_CPU, see choose_kernels (kernels.c).  It may name any set for this kind of
 * machine, also one that this machine cannot run. */
static int check_kernels(void) {
    static const char *const known[] = {KERNEL_NAMES, NULL};
    const char *set = getenv("GEMMA4_CPU");
    return set && *set && parse_word("GEMMA4_CPU", set, known) < 0 ? 2 : 0;
}

int check_options(Options *o) {
    if (check_kernels()) return 2;
    int status = check_prompt(o);
    if (!status) status = check_command(o);
    if (!status) status = check_tool_options(o);
    if (!status) status = check_output(o);
    if (!status) status = check_written(o);
    if (!status) status = check_model_options(o);
    return status ? status : choose_device(o);
}
