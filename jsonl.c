/* jsonl.c - requests as JSON lines (request.c reads them), answers as JSON lines.  See jsonl.h. */
#define _GNU_SOURCE
#include "jsonl.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "json.h"
#include "request.h"

/* ---- how far the lines are, on a terminal ---- */

typedef struct {
    int on;                             /* stderr is a terminal, and not --quiet */
    int width;                          /* of the line that stands there now, 0: none */
    long done, total;                   /* requests; total -1: nobody knows */
    long tokens;                        /* of all answers */
    double start;                       /* seconds, when the first request began */
    double shown;                       /* seconds, when the line was written as it stands now */
} Progress;

/* How many lines of the file, from where it stands, are requests: those that are not blank.  -1
 * where `in` is no file. */
static long count_requests(FILE *in) {
    struct stat info;
    int fd = fileno(in), is_blank = 1;
    off_t at = lseek(fd, 0, SEEK_CUR);
    char bytes[65536];
    long n = 0;
    if (at < 0 || fstat(fd, &info) || !S_ISREG(info.st_mode)) return -1;
    for (ssize_t got; (got = pread(fd, bytes, sizeof bytes, at)) > 0; at += got)
        for (ssize_t i = 0; i < got; i++) {
            if (bytes[i] == '\n') {
                n += !is_blank;
                is_blank = 1;
            } else if (!strchr(" \t\r", bytes[i])) is_blank = 0;
        }
    return n + !is_blank;
}

/* Takes the line away, so that something else can be written there. */
static void progress_clear(Progress *p) {
    if (p->width) fprintf(stderr, "\r%*s\r", p->width, "");
    p->width = 0;
}

/* Shows the line: anew once a request is done, else once a second. */
static void progress_show(Progress *p, int done) {
    double now = seconds(), past = now - p->start;
    p->done += done;
    if (!p->on || (!done && now - p->shown < 1)) return;
    progress_clear(p);
    p->shown = now;
    p->width = fprintf(stderr, "%ld", p->done);
    if (p->total >= 0) p->width += fprintf(stderr, " of %ld", p->total);
    p->width += fprintf(stderr, " done, %.1f tokens/s", (double)p->tokens / (past > 0 ? past : 1));
    if (p->total > p->done && p->done) {
        long left = (long)(past / (double)p->done * (double)(p->total - p->done));
        p->width += fprintf(stderr, ", %ld:%02ld left", left / 60, left % 60);
    }
    (void)fflush(stderr);
}

/* ---- writing answers ---- */

/* Writes the answer to one request. */
typedef struct {
    const Engine *e;
    const Request *r;
    Progress *progress;
    long line, created;                 /* of the request, from 1; seconds since 1970 */
    int n_vocab;
    int n_answer, n_thought;            /* tokens of all choices, and of their thoughts */
    int n_reused;                       /* of the prompt, what the cache held at first */
    Buf choices;                        /* those that are complete, when they come all at once */
    Buf out;                            /* the line that is being written */
    /* The choice that is being made. */
    int index;
    int opened;                         /* 1: its first chunk is out */
    int streamed;                       /* calls whose names are out */
    Buf logprobs;                       /* entries of logprobs.content that no chunk has yet */
} AnswerWriter;

static void begin(AnswerWriter *w, const char *object) {
    w->out.len = 0;
    buf_printf(&w->out, "{\"id\": \"chatcmpl-%ld\", \"object\": \"%s\", ", w->line, object);
    buf_printf(&w->out, "\"created\": %ld, \"model\": ", w->created);
    json_quote_text(&w->out, w->e->name);
    buf_puts(&w->out, ", \"choices\": [");
}

static void put_usage(AnswerWriter *w) {
    int n = w->r->prompt.ids.n;
    buf_printf(&w->out, ", \"usage\": {\"prompt_tokens\": %d, \"completion_tokens\": %d, "
               "\"total_tokens\": %d, \"prompt_tokens_details\": {\"cached_tokens\": %d}, "
               "\"completion_tokens_details\": {\"reasoning_tokens\": %d}}",
               n, w->n_answer, n + w->n_answer, w->n_reused, w->n_thought);
}

/* What the client should know about this choice beside its text; nothing when there is nothing. */
static void put_warnings(Buf *out, const Engine *e, const Generation *g) {
    long long context = session_context(e->session);
    Buf lines = {0};
    if (g->n_dropped)
        buf_printf(&lines, "the context of %lld tokens (-c) is full: the oldest %d messages were "
                   "dropped\n", context, g->n_dropped);
    if (g->full)
        buf_printf(&lines, "the answer was cut: the context of %lld tokens (-c) is full\n",
                   context);
    buf_add(&lines, g->warnings.data ? g->warnings.data : "", g->warnings.len);
    if (lines.len) {
        buf_puts(out, ", \"warnings\": ");
        json_quote_lines(out, lines.data);
    }
    buf_free(&lines);
}

static void put_string_field(Buf *out, const char *before, const char *name, const Buf *text) {
    buf_printf(out, "%s\"%s\": ", before, name);
    json_quote(out, text->data, text->len);
}

static void put_logprobs(AnswerWriter *w, Buf *out) {
    buf_puts(out, ", \"logprobs\": ");
    if (!w->r->logprobs) buf_puts(out, "null");
    else buf_printf(out, "{\"content\": [%s]}", w->logprobs.len ? w->logprobs.data : "");
    w->logprobs.len = 0;
}

static void end_line(AnswerWriter *w) {
    buf_puts(&w->out, "}\n");
    progress_clear(w->progress);
    put_stdout(w->out.data, w->out.len);
}

/* "token", "logprob" and "bytes" of one candidate. */
static void put_candidate(AnswerWriter *w, int id, double logprob) {
    size_t n;
    const char *text = tokenizer_text(w->e->tokenizer, id, &n);
    buf_puts(&w->logprobs, "\"token\": ");
    json_quote(&w->logprobs, text, n);
    double finite = logprob < -9999 ? -9999 : logprob;
    buf_printf(&w->logprobs, ", \"logprob\": %.6g, \"bytes\": [", finite);
    for (size_t i = 0; i < n; i++)
        buf_printf(&w->logprobs, "%s%d", i ? ", " : "", (unsigned char)text[i]);
    buf_puts(&w->logprobs, "]");
}

/* Writes a chunk of the choice.  delta: the members of its "delta", as JSON without braces.
 * finish: why the choice g ends with this chunk; both NULL: it goes on. */
static void put_chunk(AnswerWriter *w, const char *delta, const Generation *g, const char *finish) {
    begin(w, "chat.completion.chunk");
    buf_printf(&w->out, "{\"index\": %d, \"delta\": {%s}", w->index, delta);
    put_logprobs(w, &w->out);
    buf_puts(&w->out, ", \"finish_reason\": ");
    if (finish) buf_printf(&w->out, "\"%s\"", finish);
    else buf_puts(&w->out, "null");
    if (g) put_warnings(&w->out, w->e, g);
    buf_puts(&w->out, "}]");
    if (w->r->include_usage) buf_puts(&w->out, ", \"usage\": null");
    end_line(w);
}

/* The first chunk says who speaks; it waits for the first token, so that an error stands alone. */
static void open_stream(AnswerWriter *w) {
    if (w->r->stream && !w->opened)
        put_chunk(w, "\"role\": \"assistant\", \"content\": \"\"", NULL, NULL);
    w->opened = 1;
}

/* Before temperature and penalties, as in `score`. */
static void on_token(void *arg, int id, int is_end) {
    AnswerWriter *w = arg;
    int top[100], n = w->r->top_logprobs < w->n_vocab ? w->r->top_logprobs : w->n_vocab;
    open_stream(w);
    w->progress->tokens++;
    progress_show(w->progress, 0);
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

static void on_text(void *arg, const Buf *content, const Buf *thought) {
    Buf delta = {0};
    if (thought->len) put_string_field(&delta, "", "reasoning_content", thought);
    if (content->len) put_string_field(&delta, delta.len ? ", " : "", "content", content);
    put_chunk(arg, delta.data, NULL, NULL);
    buf_free(&delta);
}

/* Writes a chunk with the name of a call, with more of its arguments, or with both. */
static void put_call_chunk(AnswerWriter *w, int i, const Buf *name, const Buf *arguments) {
    Buf delta = {0};
    buf_printf(&delta, "\"tool_calls\": [{\"index\": %d, ", i);
    if (name->len) {
        buf_puts(&delta, "\"id\": ");
        call_put_id(&delta, i, w->r->prompt.ids.n);
        buf_puts(&delta, ", \"type\": \"function\", ");
    }
    buf_puts(&delta, "\"function\": {");
    if (name->len) put_string_field(&delta, "", "name", name);
    put_string_field(&delta, name->len ? ", " : "", "arguments", arguments);
    buf_puts(&delta, "}}]");
    put_chunk(w, delta.data, NULL, NULL);
    buf_free(&delta);
}

static void on_call_delta(void *arg, int i, const Buf *name, const Buf *arguments) {
    AnswerWriter *w = arg;
    if (name->len) w->streamed = i + 1;
    put_call_chunk(w, i, name, arguments);
}

/* Writes a whole call, unless its deltas have been written. */
static void on_call(void *arg, int i, const ToolCall *call) {
    AnswerWriter *w = arg;
    Buf name = {0}, arguments = {0};
    if (i < w->streamed) return;
    buf_puts(&name, call->name);
    buf_puts(&arguments, call->arguments);
    put_call_chunk(w, i, &name, &arguments);
    buf_free(&name);
    buf_free(&arguments);
}

static void put_choice(AnswerWriter *w, const Generation *g, const char *finish) {
    Buf *out = &w->choices;
    buf_printf(out, "%s{\"index\": %d, \"message\": ", w->index ? ", " : "", w->index);
    message_begin(out, &g->content, &g->thought, g->calls, g->n_calls, g->n_ids);
    buf_puts(out, "}");
    put_logprobs(w, out);
    buf_printf(out, ", \"finish_reason\": \"%s\"", finish);
    put_warnings(out, w->e, g);
    buf_puts(out, "}");
}

/* In a batch the completion is the body of a response. */
static void put_completion(AnswerWriter *w) {
    begin(w, "chat.completion");
    buf_add(&w->out, w->choices.data, w->choices.len);
    buf_puts(&w->out, "]");
    put_usage(w);
    if (w->r->custom_id) {
        Buf body = w->out;
        w->out = (Buf){0};
        buf_printf(&w->out, "{\"id\": \"batch_req_%ld\", \"custom_id\": ", w->line);
        buf_puts(&w->out, w->r->custom_id);
        buf_printf(&w->out, ", \"response\": {\"status_code\": 200, \"request_id\": \"req_%ld\", "
                   "\"body\": %s}}, \"error\": null", w->line, body.data);
        buf_free(&body);
    }
    end_line(w);
}

static void put_error(const Request *r, long line, const char *message) {
    Buf out = {0};
    buf_puts(&out, "{");
    if (r->custom_id) {
        buf_printf(&out, "\"id\": \"batch_req_%ld\", \"custom_id\": ", line);
        buf_puts(&out, r->custom_id);
        buf_puts(&out, ", \"response\": null, ");
    }
    buf_puts(&out, "\"error\": {\"message\": ");
    json_quote_text(&out, message);
    buf_printf(&out, ", \"type\": \"invalid_request_error\", \"line\": %ld}}\n", line);
    put_stdout(out.data, out.len);
    buf_free(&out);
}

static const char *finish_reason(const Generation *g) {
    if (g->finish == FINISH_LENGTH) return "length";
    return g->n_calls ? "tool_calls" : "stop";
}

/* Makes the choice w->index, and writes it. */
static int answer_choice(Engine *e, const Request *r, AnswerWriter *w, Error *err) {
    Generation g = r->g;
    g.warnings = (Buf){0};
    buf_add(&g.warnings, r->warnings.data ? r->warnings.data : "", r->warnings.len);
    const Buf *flaws = &r->prompt.warnings;
    buf_add(&g.warnings, flaws->data ? flaws->data : "", flaws->len);
    engine_hold_calls(e, &g);
    g.sampling.seed += (uint64_t)w->index;      /* each choice has a seed of its own */
    g.arg = w;
    g.on_token = on_token;
    g.all_logits = r->logprobs;
    if (r->stream) {
        g.on_text = on_text;
        g.on_call = on_call;
        g.on_call_delta = on_call_delta;
    }
    w->opened = w->streamed = 0;
    int bad = generate(e, &g, err);
    w->n_answer += g.answer.n;
    w->n_thought += g.n_thought;
    if (!w->index) w->n_reused = g.n_reused;
    if (!bad && r->stream) {
        open_stream(w);
        put_chunk(w, "", &g, finish_reason(&g));
    } else if (!bad) put_choice(w, &g, finish_reason(&g));
    if (e->stats && !bad) print_stats(e, &g);
    generation_free(&g);
    return bad;
}

/* Compiles what the answer is held to: a schema, or the calls that it must make. */
static int hold(Engine *e, Request *r, Error *err) {
    Error why;
    r->g.schema_is_calls = r->must_call;
    r->g.one_call = !r->several;
    if (r->must_call && !(r->g.schema = engine_calls(e, r->g.tools, r->tool, r->several, &why)))
        return fail(err, "tools: %s", why.text);
    if (r->schema && !(r->g.schema = engine_schema(e, r->schema, &why)))
        return fail(err, "%s: %s", r->schema_field, why.text);
    return 0;
}

/* Answers the request of a line.  Returns 0, or -1 when the answer is an error object. */
static int answer_line(Engine *e, const char *text, size_t n, long line, Progress *progress) {
    Error err;
    Request r;
    AnswerWriter w = {.e = e, .r = &r, .progress = progress, .line = line, .created = time(NULL),
                      .n_vocab = model_config(e->model)->vocab};
    int bad = request_parse(e, text, n, &r, &err) || hold(e, &r, &err) ? -1 : 0;
    for (; !bad && w.index < r.n; w.index++) bad = answer_choice(e, &r, &w, &err);
    if (bad) {
        progress_clear(progress);
        put_error(&r, line, err.text);
    } else if (!r.stream) put_completion(&w);
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

/* Reads the next line, without its end; of a line that is longer than INPUT_LIMIT that much and a
 * byte.  Returns 0 at the end of input. */
static int read_line(FILE *in, Buf *text) {
    int c;
    text->len = 0;
    buf_add(text, "", 0);
    while ((c = getc_unlocked(in)) != EOF && c != '\n' && text->len <= INPUT_LIMIT)
        buf_add(text, &(char){(char)c}, 1);
    return c != EOF || text->len;
}

int run_jsonl(Engine *e, FILE *in) {
    Buf text = {0};
    Error err;
    int status = 0;
    /* Where requests are typed, the line would be written into what is typed. */
    int is_typed = isatty(fileno(in));
    Progress progress = {.on = isatty(STDERR_FILENO) && !is_typed && !quiet, .start = seconds()};
    progress.shown = progress.start;
    progress.total = progress.on ? count_requests(in) : -1;
    for (long line = 1; read_line(in, &text); line++) {
        if (strspn(text.data, " \t\r") == text.len) continue;
        if (text.len > INPUT_LIMIT) {
            fail(&err, "the line has more than %zu MB", INPUT_LIMIT >> 20);
            put_error(&(Request){0}, line, err.text);
            for (int c = 0; c != EOF && c != '\n';) c = getc_unlocked(in);
            buf_free(&text);
            status = 1;
        } else if (answer_line(e, text.data, text.len, line, &progress)) status = 1;
        progress_show(&progress, 1);
    }
    if (progress.width) fputs("\n", stderr);
    if (ferror(in)) {
        note("gemma4: stdin: %s\n", strerror(errno));
        status = 1;
    }
    buf_free(&text);
    return status;
}
