/* bench.c - `gemma4 bench`.  See bench.h.
 *
 * Requests run one at a time, with greedy sampling; the end of a turn is ignored, so that every
 * answer has the length that its scenario demands.  Prompts are made from the text below, within
 * the chat template, and have an exact number of tokens.  Each prompt begins with another number,
 * so that no run finds its prompt in the session's cache. */
#define _GNU_SOURCE
#include "bench.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "json.h"
#include "newfile.h"

/* The scenarios: up to three lengths of the prompt, and the length of the answer, in tokens.  In
 * MULTITURN they are the lengths of one of TURNS turns. */
enum { CHAT, RAG, LONG, CONTEXT, MULTITURN, REASONING, N_SCENARIOS, TURNS = 10 };
const char *const bench_scenarios[] = {"chat", "rag", "long", "context", "multiturn", "reasoning",
                                       "all", NULL};
static const int prompt_of[N_SCENARIOS][3] = {
    {64}, {8192}, {64}, {4096, 25000, BENCH_CONTEXT}, {64}, {128},
};
static const int answer_of[N_SCENARIOS] = {128, 128, 1000, 64, 64, 2000};

static const char text[] =
    "The harbour keeps a book of every boat that comes in, with the hour, the wind and the name of "
    "whoever held the tiller. On calm days the entries are short. After a storm they fill two "
    "pages, and somebody adds a drawing of what was found on the beach: a crate of lemons, half an "
    "oar, a letter that the sea had washed blank. The children read it aloud in winter. They ask "
    "why the ferry was late in March, who repaired the bell, and whether a whale counts as a "
    "visitor. It does. ";
static const char question[] =
    "\n\nWhat does this text say about the harbour and its book? Answer in full sentences.";

/* One line of the table. */
typedef struct {
    int scenario, drafting;
    int prompt, answer;                 /* tokens; in MULTITURN the last prompt, all answers */
    double first;                       /* seconds to the first token */
    double prefill, decode;             /* tokens a second */
    double tokens_per_pass;
    double bytes;                       /* of weights and cache, read for one token */
    double share;                       /* of the memory's bandwidth, 0 to 1; 0: not known */
    double memory;                      /* bytes in use after the run, with those of the GPU */
} Row;

typedef struct {
    const Engine *e;
    const BenchOptions *o;
    const SessionOptions *session;
    double bandwidth;                   /* bytes a second; 0: not measured */
    int n_prompts;                      /* made so far */
    Row *row;                           /* [n] */
    int n;
    NewFile plot;                       /* of --plot */
} Bench;

/* ---- how fast the memory is ---- */
/* The block is read so often that one reading is undisturbed. */
enum { LEAST_BLOCK = 256 << 20, MOST_BLOCK = 1 << 30, READ_TIMES = 5 };

/* Bytes of the block: twice the third-level cache, as far as the C library knows its size. */
static int64_t block_bytes(void) {
    int64_t bytes = LEAST_BLOCK;
#ifdef _SC_LEVEL3_CACHE_SIZE
    while (bytes < 2 * sysconf(_SC_LEVEL3_CACHE_SIZE) && bytes < MOST_BLOCK) bytes *= 2;
#endif
    return bytes;
}

/* One thread's share of the block. */
typedef struct {
    pthread_t thread;
    const uint64_t *from;
    int64_t n;
    volatile uint64_t sum;              /* keeps the compiler from dropping the reads */
} ReadThread;

/* Reads at four places at once, with prefetch, as sum_rows (multiply.c) reads weights.  Reading one
 * place after the other was a third slower. */
static void *read_all(void *arg) {
    ReadThread *r = arg;
    uint64_t s[8] = {0};
    int64_t quarter = r->n / 4;
    for (int64_t i = 0; i + 8 <= quarter; i += 8)
        for (int part = 0; part < 4; part++) {
            const uint64_t *from = r->from + part * quarter + i;
            __builtin_prefetch(from + 256);
            for (int k = 0; k < 8; k++) s[k] += from[k];
        }
    r->sum = s[0] + s[1] + s[2] + s[3] + s[4] + s[5] + s[6] + s[7];
    return NULL;
}

/* The bandwidth of the memory in bytes a second: all threads read the block; the best of READ_TIMES
 * times counts. */
static double cpu_bandwidth(int n_threads) {
    size_t bytes = (size_t)block_bytes();
    uint64_t *block = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (block == MAP_FAILED) return 0;
    memset(block, 1, bytes);
    ReadThread *reader = xcalloc(n_threads, sizeof *reader);
    double best = 0;
    for (int i = 0; i < READ_TIMES; i++) {
        double start = seconds();
        int n = 0, bad = 0;
        for (; n < n_threads && !bad; n += !bad) {
            int64_t words = (int64_t)bytes / 8 / n_threads;
            reader[n] = (ReadThread){.from = block + n * words, .n = words};
            bad = pthread_create(&reader[n].thread, NULL, read_all, &reader[n]);
        }
        for (int k = 0; k < n; k++) pthread_join(reader[k].thread, NULL);
        double rate = (double)bytes / (seconds() - start);
        if (!bad && rate > best) best = rate;
    }
    free(reader);
    munmap(block, bytes);
    return best;
}

/* ---- one run ---- */

/* Makes a prompt of exactly n tokens: a conversation of one turn, the text again and again and then
 * the question.  The caller frees *prompt. */
static int make_prompt(Bench *b, int n, int thinking, Prompt *prompt, Error *err) {
    cJSON *messages = cJSON_CreateArray();
    Buf content = {0};
    Ids tail = {0};
    buf_printf(&content, "Entry %d. ", ++b->n_prompts);
    /* 1. More than n tokens: the text has fewer than 8 bytes a token. */
    while (content.len < 8 * (size_t)n) buf_puts(&content, text);
    buf_puts(&content, question);
    cJSON_AddItemToArray(messages, chat_message("user", content.data));
    ChatOptions options = {.thinking = thinking};
    int bad = chat_render(b->e->tokenizer, messages, NULL, options, prompt, err);
    cJSON_Delete(messages);
    buf_free(&content);
    if (bad) return -1;
    /* 2. The tokens that are too many are removed before the question and the template's end (at
     * most 8 tokens). */
    tokenizer_encode(b->e->tokenizer, question, strlen(question), 0, &tail);
    int keep = tail.n + 8, extra = prompt->ids.n - n;
    ids_free(&tail);
    if (keep > n / 2) keep = n / 2;
    if (extra < 0) return fail(err, "bench: a prompt of %d tokens cannot be made", n);
    int *ids = prompt->ids.id;
    memmove(ids + n - keep, ids + prompt->ids.n - keep, (size_t)keep * sizeof *ids);
    prompt->ids.n = n;
    return 0;
}

/* The resident memory in bytes, now.  The peak would be misleading: the block of cpu_bandwidth may
 * have set it.  A session never gives memory back, so that now is the session's peak. */
static double resident_memory(void) {
    long size, resident = 0;
    FILE *f = fopen("/proc/self/statm", "r");
    if (f && fscanf(f, "%ld %ld", &size, &resident) != 2) resident = 0;
    if (f) (void)fclose(f);
    return (double)resident * (double)sysconf(_SC_PAGESIZE);
}

/* The bytes of weights and cache that are read for one token at position pos.  With drafting, those
 * of all passes and drafts, divided by the tokens. */
static double bytes_read(const Bench *b, int64_t pos, const DraftStats *drafts) {
    ModelInfo info;
    int64_t per_token;
    model_info(b->e->model, &info);
    SessionOptions o = *b->session;
    o.context = pos;
    o.chunk = 1;
    double pass = (double)(info.bytes_per_token + kv_bytes(b->e->model, &o, &per_token));
    double n_drafts = 0;
    /* The CPU does not read all of a BF16 head, but an int8 copy of half the size; few rows are
     * read in BF16 (see HeadCopy in head.c).  A GPU with a copy does so in steps of one to four
     * tokens, which are rounds of up to three drafts. */
    const Weight *head = &model_weights(b->e->model)->head;
    const double saved = (double)head->rows * head->cols;
    int on_cpu = o.ops == &cpu_ops && head->dtype == DT_BF16;
    int on_gpu = session_takes(b->e->session)->head_copy > 0;
    if (on_cpu || on_gpu) pass -= saved;
    if (!drafts->passes) return pass;
    if (on_gpu) pass += saved * drafts->drafted[3] / drafts->passes;
    for (int i = 0; i < MAX_DRAFTS; i++) n_drafts += drafts->drafted[i];
    double all_drafts = n_drafts * (double)drafter_bytes(b->e->drafter);
    return (pass * drafts->passes + all_drafts) / drafts->tokens;
}

/* Generates one answer of `answer` tokens and puts its rates into the row.  content (may be NULL)
 * gets its text. */
static int run_once(Bench *b, const Prompt *prompt, int thinking, int answer, Row *row,
                    Buf *content, Error *err) {
    Engine e = *b->e;
    if (!row->drafting) e.drafter = NULL;
    Generation g = {.ids = prompt->ids.id, .n_ids = prompt->ids.n, .n_stable = prompt->n_stable,
                    .sampling = e.sampling, .max_tokens = answer, .chat.thinking = thinking,
                    .ignore_eos = 1};
    g.sampling.temperature = 0;
    int bad = generate(&e, &g, err);
    if (!bad && g.finish == FINISH_INTERRUPTED) bad = fail(err, "bench: interrupted");
    if (!bad) {
        double rate = g.decode_seconds > 0 ? (g.answer.n - 1) / g.decode_seconds : 0;
        row->prompt = g.n_ids;
        row->answer += g.answer.n;
        row->first = g.prefill_seconds;
        row->prefill = (g.n_ids - g.n_reused) / g.prefill_seconds;
        row->decode = rate;
        row->tokens_per_pass = g.drafts.passes ? (double)g.drafts.tokens / g.drafts.passes : 1;
        row->bytes = bytes_read(b, g.n_ids + g.answer.n / 2, &g.drafts);
        row->share = b->bandwidth > 0 ? rate * row->bytes / b->bandwidth : 0;
        row->memory = resident_memory() + (double)session_device_bytes(b->e->session);
        if (content) buf_add(content, g.content.data, g.content.len);
    }
    generation_free(&g);
    return bad;
}

/* Runs a conversation of at most TURNS turns, as many as the context has room for.  The row's rates
 * are means over the turns; its time to the first token is that of the last turn. */
static int run_conversation(Bench *b, int question_tokens, int answer, Row *row, Error *err) {
    cJSON *messages = cJSON_CreateArray();
    double prefill = 0, decode = 0, per_pass = 0;
    int bad = 0, turns = 0, full = 0, context = (int)session_context(b->e->session);
    int letters = 4 * question_tokens;          /* a token of the text has some 4 letters */
    if (letters > context / 2) letters = context / 2;
    while (!bad && turns < TURNS) {
        Prompt prompt = {0};
        Buf content = {0};
        buf_printf(&content, "Entry %d. %.*s", ++b->n_prompts, letters, text);
        cJSON_AddItemToArray(messages, chat_message("user", content.data));
        content.len = 0;
        bad = chat_render(b->e->tokenizer, messages, NULL, (ChatOptions){0}, &prompt, err);
        full = !bad && turns && prompt.ids.n + answer > context;
        if (!bad && !full) bad = run_once(b, &prompt, 0, answer, row, &content, err);
        prompt_free(&prompt);
        if (!full) {
            buf_add(&content, "", 0);
            cJSON_AddItemToArray(messages, chat_message("assistant", content.data));
        }
        buf_free(&content);
        if (full) break;
        prefill += row->prefill;
        decode += row->decode;
        per_pass += row->tokens_per_pass;
        turns++;
    }
    cJSON_Delete(messages);
    row->prefill = prefill / turns;
    row->decode = decode / turns;
    row->tokens_per_pass = per_pass / turns;
    row->share = b->bandwidth > 0 ? row->decode * row->bytes / b->bandwidth : 0;
    return bad;
}

/* ---- printing ---- */

static const char *in_words(const Row *row, char name[64]) {
    snprintf(name, 64, "%s%s", bench_scenarios[row->scenario], row->drafting ? ", drafting" : "");
    return name;
}

static void put_header(const Bench *b, Buf *out) {
    const SessionOptions *s = b->session;
    ModelInfo info;
    int64_t per_token;
    model_info(b->e->model, &info);
    double gb = (double)info.bytes_per_token * 1e-9, bandwidth = b->bandwidth * 1e-9;
    kv_bytes(b->e->model, s, &per_token);
    const char *kernels = s->ops == &cpu_ops ? cpu_kernel_name() : NULL;
    if (b->o->json) {
        buf_puts(out, "{\"model\": ");
        json_quote_text(out, b->e->name);
        buf_printf(out, ", \"device\": \"%s\"", s->ops->name);
        if (kernels) buf_printf(out, ", \"kernels\": \"%s\"", kernels);
        buf_printf(out, ", \"threads\": %d, \"context\": %lld, "
                   "\"weight_bytes_per_token\": %lld, \"kv_bytes_per_token\": %lld, "
                   "\"bandwidth\": ", s->n_threads, (long long)s->context,
                   (long long)info.bytes_per_token, (long long)per_token);
        buf_printf(out, bandwidth > 0 ? "%.4g" : "null", b->bandwidth);
        buf_puts(out, ", \"scenarios\": [");
        return;
    }
    buf_printf(out, "%s on %s", b->e->name, s->ops->name);
    if (kernels) buf_printf(out, " (%s)", kernels);
    buf_printf(out, ", %d threads; %.3g GB of weights for a token", s->n_threads, gb);
    if (bandwidth > 0) buf_printf(out, "; memory reads %.1f GB/s", bandwidth);
    buf_puts(out, "\n\n"
             "| scenario            | prompt | answer | first token | prefill t/s | decode t/s "
             "| t/pass | MB/token | bandwidth | memory      |\n"
             "| ------------------- | -----: | -----: | ----------: | ----------: | ---------: "
             "| -----: | -------: | --------: | ----------: |\n");
}

static void put_row(const Bench *b, const Row *r, Buf *out) {
    char name[64], share[16];
    if (b->o->json) {
        if (b->n) buf_puts(out, ", ");
        buf_printf(out, "{\"scenario\": \"%s\", \"drafting\": %s, \"prompt_tokens\": %d, "
                   "\"answer_tokens\": %d, \"first_token_seconds\": %.4g, \"prefill_rate\": %.4g, "
                   "\"decode_rate\": %.4g, \"tokens_per_pass\": %.3f, \"bytes_per_token\": %.0f, "
                   "\"bandwidth_share\": ", bench_scenarios[r->scenario],
                   r->drafting ? "true" : "false", r->prompt, r->answer, r->first, r->prefill,
                   r->decode, r->tokens_per_pass, r->bytes);
        buf_printf(out, r->share > 0 ? "%.3g" : "null", r->share);
        buf_printf(out, ", \"memory\": %.0f}", r->memory);
        return;
    }
    snprintf(share, sizeof share, r->share > 0 ? "%.0f %%" : "-", 100 * r->share);
    buf_printf(out, "| %-19s | %6d | %6d | %9.2f s | %11.1f | %10.1f ", in_words(r, name),
               r->prompt, r->answer, r->first, r->prefill, r->decode);
    buf_printf(out, "| %6.2f | %8.1f | %9s | %8.0f MB |\n", r->tokens_per_pass, r->bytes * 1e-6,
               share, r->memory * 1e-6);
}

/* ---- the plot: two panels, decode and prefill rate against the prompt's length ---- */

enum { PANEL_W = 330, PANEL_H = 200, LEFT = 56, TOP = 66, GAP = 84 };           /* pixels */

static const char svg_head[] =
    "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 820 330\" "
    "font-family=\"system-ui, sans-serif\" font-size=\"12\">\n"
    "<style>\n"
    "  .back { fill: #ffffff } .text { fill: #1f2328 } .faint { fill: #59636e } "
    ".grid { stroke: #d1d9e0; stroke-width: 1 }\n"
    "  .plain { stroke: #1f6feb; fill: #1f6feb } .draft { stroke: #bc4c00; fill: #bc4c00 } "
    "polyline { fill: none !important; stroke-width: 2 }\n"
    "  @media (prefers-color-scheme: dark) {\n"
    "    .back { fill: #0d1117 } .text { fill: #f0f6fc } .faint { fill: #9198a1 } "
    ".grid { stroke: #3d444d }\n"
    "    .plain { stroke: #58a6ff; fill: #58a6ff } .draft { stroke: #f0883e; fill: #f0883e }\n"
    "  }\n"
    "</style>\n"
    "<rect class=\"back\" width=\"820\" height=\"330\"/>\n";

/* The step of an axis up to v: the smallest number of the form 1, 2 or 5 times a power of ten that
 * is at least v / 4. */
static double step_for(double v) {
    double step = 1e-3;
    for (int i = 0; step < v / 4; i++) step *= i % 3 == 1 ? 2.5 : 2;
    return step;
}

/* Adds a text of the user's, the model's name, to XML. */
static void put_escaped(Buf *out, const char *s) {
    for (; *s; s++) {
        if (*s == '<' || *s == '&' || *s == '>') buf_printf(out, "&#%d;", *s);
        else buf_add(out, s, 1);
    }
}

/* Panel 0 shows decode rates, panel 1 prefill rates. */
static double rate_of(const Row *r, int panel) { return panel ? r->prefill : r->decode; }

/* Is the row a point of the curve?  Only scenarios of one prompt with a short answer are, in which
 * the context hardly grows. */
static int on_curve(const Row *r, int drafting) {
    int s = r->scenario;
    return (s == CHAT || s == RAG || s == CONTEXT) && r->drafting == drafting;
}

static int by_prompt(const void *a, const void *b) {
    return ((const Row *)a)->prompt - ((const Row *)b)->prompt;
}

/* Where a panel is and what its axes show. */
typedef struct {
    int number, left;                   /* left: pixels */
    double max_x, max_y;                /* the largest prompt and rate among the rows */
    double top;                         /* the rate at the panel's upper edge */
} Panel;

static double x_of(const Panel *p, double prompt) { return p->left + prompt / p->max_x * PANEL_W; }
static double y_of(const Panel *p, double rate) { return TOP + PANEL_H - rate / p->top * PANEL_H; }

static void put_axes(const Panel *p, Buf *out) {
    double step_x = step_for(p->max_x), step_y = step_for(p->max_y);
    buf_printf(out, "<text class=\"text\" x=\"%d\" y=\"%d\" font-weight=\"600\">%s, tokens a second"
               "</text>\n", p->left, TOP - 14, p->number ? "Prefill" : "Decode");
    for (int i = 0; i * step_y <= p->top; i++) {
        double y = y_of(p, i * step_y);
        buf_printf(out, "<line class=\"grid\" x1=\"%d\" x2=\"%d\" y1=\"%.1f\" y2=\"%.1f\"/>",
                   p->left, p->left + PANEL_W, y, y);
        buf_printf(out, "<text class=\"faint\" x=\"%d\" y=\"%.1f\" text-anchor=\"end\">%g</text>\n",
                   p->left - 8, y + 4, i * step_y);
    }
    for (int i = 0; i * step_x <= p->max_x * 1.001; i++)
        buf_printf(out, "<text class=\"faint\" x=\"%.1f\" y=\"%d\" text-anchor=\"middle\">%g"
                   "</text>\n", x_of(p, i * step_x), TOP + PANEL_H + 20, i * step_x);
    buf_printf(out, "<text class=\"faint\" x=\"%d\" y=\"%d\" text-anchor=\"middle\">"
               "tokens in the prompt</text>\n", p->left + PANEL_W / 2, TOP + PANEL_H + 40);
}

/* A line through the points of a curve, and a circle with a tooltip at each of them. */
static void put_curve(const Bench *b, const Panel *p, int drafting, Buf *out) {
    const char *class = drafting ? "draft" : "plain";
    buf_printf(out, "<polyline class=\"%s\" points=\"", class);
    for (int i = 0; i < b->n; i++) {
        const Row *r = &b->row[i];
        if (!on_curve(r, drafting)) continue;
        buf_printf(out, "%.1f,%.1f ", x_of(p, r->prompt), y_of(p, rate_of(r, p->number)));
    }
    buf_puts(out, "\"/>\n");
    for (int i = 0; i < b->n; i++) {
        const Row *r = &b->row[i];
        if (!on_curve(r, drafting)) continue;
        double rate = rate_of(r, p->number);
        buf_printf(out, "<circle class=\"%s\" cx=\"%.1f\" cy=\"%.1f\" r=\"4\">"
                   "<title>%s, %d tokens: %.4g tokens a second</title></circle>\n", class,
                   x_of(p, r->prompt), y_of(p, rate), bench_scenarios[r->scenario], r->prompt,
                   rate);
    }
}

/* The entry of a curve in the legend, which is there only if there are two curves. */
static void put_legend(const Panel *p, int drafting, Buf *out) {
    int x = p->left + PANEL_W - 160 + 90 * drafting;
    const char *class = drafting ? "draft" : "plain";
    const char *name = drafting ? "drafter" : "alone";
    buf_printf(out, "<rect class=\"%s\" x=\"%d\" y=\"%d\" width=\"12\" height=\"3\"/>"
               "<text class=\"text\" x=\"%d\" y=\"%d\">%s</text>\n", class,
               x, TOP - 20, x + 18, TOP - 14, name);
}

static void put_panel(const Bench *b, int number, Buf *out) {
    Panel p = {number, LEFT + number * (PANEL_W + GAP), 1, 1e-3, 0};
    int drafts = 0;
    for (int i = 0; i < b->n; i++) {
        double rate = rate_of(&b->row[i], number);
        if (b->row[i].prompt > p.max_x) p.max_x = b->row[i].prompt;
        if (rate > p.max_y) p.max_y = rate;
        drafts |= b->row[i].drafting;
    }
    p.top = p.max_y + step_for(p.max_y) / 4;
    put_axes(&p, out);
    for (int drafting = 0; drafting <= drafts; drafting++) {
        put_curve(b, &p, drafting, out);
        if (drafts) put_legend(&p, drafting, out);
    }
}

static int plot(Bench *b, Error *err) {
    Buf out = {0};
    qsort(b->row, (size_t)b->n, sizeof *b->row, by_prompt);
    buf_puts(&out, svg_head);
    buf_printf(&out, "<text class=\"text\" x=\"%d\" y=\"26\" font-size=\"15\" font-weight=\"600\">",
               LEFT);
    put_escaped(&out, b->e->name);
    buf_printf(&out, " on %s, %d threads</text>\n", b->session->ops->name, b->session->n_threads);
    put_panel(b, 0, &out);
    put_panel(b, 1, &out);
    buf_puts(&out, "</svg>\n");
    int bad = fwrite(out.data, 1, out.len, b->plot.f) == out.len ? 0 : new_failed(&b->plot, err);
    buf_free(&out);
    return bad ? bad : new_finish(&b->plot, err);
}

/* ---- the benchmark ---- */

/* Runs a scenario at each length of its prompt.  If the context has no room for the longest, all
 * lengths shrink in proportion; no answer takes more than half of the context. */
static int run_scenario(Bench *b, int scenario, int drafting, Error *err) {
    const int *lengths = prompt_of[scenario];
    int context = (int)session_context(b->e->session), answer = answer_of[scenario];
    int thinking = scenario == REASONING, bad = 0;
    if (b->o->max_tokens >= 0 && b->o->max_tokens < answer) answer = b->o->max_tokens;
    if (answer > context / 2) answer = context / 2;
    for (int i = 0; !bad && i < 3 && lengths[i]; i++) {
        double longest = lengths[2] ? lengths[2] : lengths[0], room = context - answer;
        int n = room < longest ? (int)(lengths[i] * room / longest) : lengths[i];
        if (n < 48) n = 48;             /* the question and the template have to fit */
        Row row = {.scenario = scenario, .drafting = drafting};
        Prompt prompt = {0};
        Buf out = {0};
        if (scenario == MULTITURN) bad = run_conversation(b, n, answer, &row, err);
        else bad = make_prompt(b, n, thinking, &prompt, err) ||
                   run_once(b, &prompt, thinking, answer, &row, NULL, err);
        prompt_free(&prompt);
        if (bad) return -1;
        put_row(b, &row, &out);
        put_stdout(out.data, out.len);
        buf_free(&out);
        b->row[b->n++] = row;
    }
    return 0;
}

int run_bench(const Engine *e, const BenchOptions *o, Error *err) {
    Row rows[N_SCENARIOS * 3 * 2], warm = {0};
    Bench b = {.e = e, .o = o, .session = session_given(e->session), .row = rows};
    Prompt prompt = {0};
    Buf out = {0};
    if (b.session->context < 128)
        return fail(err, "bench: a context of %lld is too small: 128 at least (-c)",
                    (long long)b.session->context);
    /* The plot's file is opened before the benchmark, which may take an hour. */
    int bad = o->plot_file ? new_open_output(&b.plot, o->plot_file, err) : 0;
    if (!bad && b.session->ops == &cpu_ops) b.bandwidth = cpu_bandwidth(b.session->n_threads);
    /* A first answer, which does not count, reads the weights from the disk.  256 tokens with 8
     * experts each choose nearly all of 128 experts in every layer. */
    int n_warm = b.session->context < 512 ? (int)b.session->context / 2 : 256;
    if (!bad) bad = make_prompt(&b, n_warm, 0, &prompt, err);
    if (!bad) bad = run_once(&b, &prompt, 0, 4, &warm, NULL, err);
    prompt_free(&prompt);
    put_header(&b, &out);
    if (!bad) put_stdout(out.data, out.len);
    buf_free(&out);
    for (int s = 0; !bad && s < N_SCENARIOS; s++) {
        if (strcmp(o->scenario, "all") && strcmp(o->scenario, bench_scenarios[s])) continue;
        bad = run_scenario(&b, s, 0, err);
        if (!bad && e->drafter) bad = run_scenario(&b, s, 1, err);
    }
    if (!bad && o->json) put_stdout("]}\n", 3);
    if (!bad && o->plot_file) bad = plot(&b, err);
    new_free(&b.plot);
    return bad;
}
