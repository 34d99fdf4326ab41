/* score.c - log probabilities of given tokens, perplexity, and the distance from another run.  See
 * score.h.
 *
 * The distance at a position is the Kullback-Leibler divergence of the two distributions of the
 * next token, in nats: the sum of p log(p / q), with p the reference's probabilities and q this
 * run's.  Beside it, `same_top` says whether both runs find the same token the most likely. */
#include "score.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "json.h"
#include "newfile.h"

typedef struct {
    const Engine *e;
    const ScoreOptions *o;
    const int *ids;
    int n, n_vocab;
    double next_logprob;                /* of the next token, from the last position's logits */
    NewFile logits;                     /* its f is NULL: not asked for */
    FILE *reference;                    /* NULL: not asked for */
    float *row;                         /* [n_vocab] the reference's logits of one position */
    double sum_logprob, sum_kl, max_kl;
    int max_pos;                        /* the position of max_kl */
    int n_same;                         /* positions with the same most likely token */
    int n_damaged;                      /* positions whose logits are no numbers */
    const char *failed;                 /* the file that could not be read or written; NULL: none */
    int why;                            /* errno of that; 0: the file is too short */
    Buf out;
} Score;

/* log(sum of exp(l[i])). */
static double log_sum(const float *l, int n) {
    double max = l[0], sum = 0;
    for (int i = 1; i < n; i++) max = fmax(max, l[i]);
    for (int i = 0; i < n; i++) sum += exp(l[i] - max);
    return max + log(sum);
}

/* The Kullback-Leibler divergence of two rows of logits.  Only rounding can make it negative. */
static double divergence(const float *p, const float *q, int n) {
    double p_sum = log_sum(p, n), q_sum = log_sum(q, n), kl = 0;
    for (int i = 0; i < n; i++) kl += exp(p[i] - p_sum) * ((p[i] - p_sum) - (q[i] - q_sum));
    return kl > 0 ? kl : 0;
}

/* Compares the logits of a position with those of the reference. */
static void compare(Score *s, int64_t pos, const float *logits) {
    int mine, theirs;
    errno = 0;
    if (fread(s->row, sizeof(float), (size_t)s->n_vocab, s->reference) != (size_t)s->n_vocab) {
        if (!s->failed) s->failed = file_name(s->o->reference_file), s->why = errno;
        return;
    }
    double kl = divergence(s->row, logits, s->n_vocab);
    top_logits(logits, s->n_vocab, 1, &mine);
    top_logits(s->row, s->n_vocab, 1, &theirs);
    s->sum_kl += kl;
    if (kl > s->max_kl || !pos) s->max_kl = kl, s->max_pos = (int)pos;
    s->n_same += mine == theirs;
    if (!s->o->summary)
        buf_printf(&s->out, ", \"kl\": %.4g, \"same_top\": %s", kl,
                   mine == theirs ? "true" : "false");
}

/* Begins the line of a position: `logprob` is the log probability of its token after those before
 * it; `top` are the most likely tokens after it. */
static void put_line(Score *s, int64_t pos, const float *logits) {
    size_t n;
    int top[1000];                      /* main.c lets --top be at most 1000 */
    int id = s->ids[pos], n_top = s->o->top < s->n_vocab ? s->o->top : s->n_vocab;
    const char *text = tokenizer_text(s->e->tokenizer, id, &n);
    buf_printf(&s->out, "{\"pos\": %lld, \"id\": %d, \"token\": ", (long long)pos, id);
    json_quote(&s->out, text, n);
    if (pos) buf_printf(&s->out, ", \"logprob\": %.7g, \"top\": [", s->next_logprob);
    else buf_puts(&s->out, ", \"logprob\": null, \"top\": [");
    top_logits(logits, s->n_vocab, n_top, top);
    for (int i = 0; i < n_top; i++)
        buf_printf(&s->out, "%s[%d, %.7g]", i ? ", " : "", top[i],
                   log_prob(logits, s->n_vocab, top[i]));
    buf_puts(&s->out, "]");
}

/* Called by session_eval with the logits of every position, in order. */
static void score_position(void *arg, int64_t pos, const float *logits) {
    Score *s = arg;
    size_t n = (size_t)s->n_vocab;
    if (s->logits.f && fwrite(logits, sizeof(float), n, s->logits.f) != n && !s->failed)
        s->failed = s->o->logits_file, s->why = errno;
    if (!are_numbers(logits, s->n_vocab)) s->n_damaged++;
    s->out.len = 0;
    if (!s->o->summary) put_line(s, pos, logits);
    if (s->reference) compare(s, pos, logits);
    if (!s->o->summary) {
        buf_puts(&s->out, "}\n");
        put_stdout(s->out.data, s->out.len);
    }
    if (pos + 1 == s->n) return;
    s->next_logprob = log_prob(logits, s->n_vocab, s->ids[pos + 1]);
    s->sum_logprob += s->next_logprob;
}

static void put_summary(Score *s) {
    s->out.len = 0;
    buf_printf(&s->out, "{\"tokens\": %d", s->n);
    if (s->n > 1) buf_printf(&s->out, ", \"perplexity\": %.6g", exp(-s->sum_logprob / (s->n - 1)));
    if (s->reference)
        buf_printf(&s->out, ", \"kl_mean\": %.4g, \"kl_max\": %.4g, \"kl_max_pos\": %d, "
                   "\"same_top\": %.6g", s->sum_kl / s->n, s->max_kl, s->max_pos,
                   (double)s->n_same / s->n);
    buf_puts(&s->out, "}\n");
    put_stdout(s->out.data, s->out.len);
}

/* Opens the reference, and refuses one of another length before anything is computed.  A pipe has
 * no length: then check_files notices it in the end. */
static int open_reference(Score *s, Error *err) {
    const char *name = s->o->reference_file;
    struct stat info;
    off_t want = (off_t)s->n * s->n_vocab * (off_t)sizeof *s->row;
    if (!name) return 0;
    s->reference = strcmp(name, "-") ? fopen(name, "rb") : stdin;
    if (!s->reference) return fail(err, "%s: %s", name, strerror(errno));
    if (fstat(fileno(s->reference), &info) || !S_ISREG(info.st_mode)) return 0;
    if (info.st_size == want) return 0;
    return fail(err, "%s: %s than %d positions of %d logits", file_name(name),
                info.st_size < want ? "less" : "more", s->n, s->n_vocab);
}

/* Finishes the file of logits, and says what went wrong with the files, if anything did. */
static int check_files(Score *s, Error *err) {
    if (s->failed && s->why) return fail(err, "%s: %s", s->failed, strerror(s->why));
    if (s->failed)
        return fail(err, "%s: less than %d positions of %d logits", s->failed, s->n, s->n_vocab);
    if (s->reference && fgetc(s->reference) != EOF)
        return fail(err, "%s: more than %d positions of %d logits",
                    file_name(s->o->reference_file), s->n, s->n_vocab);
    return s->logits.f ? new_finish(&s->logits, err) : 0;
}

int score(const Engine *e, const int *ids, int n, const ScoreOptions *o, Error *err) {
    Score s = {.e = e, .o = o, .ids = ids, .n = n, .n_vocab = model_config(e->model)->vocab};
    s.row = xcalloc(s.n_vocab, sizeof *s.row);
    int bad = open_reference(&s, err);
    if (!bad && o->logits_file) bad = new_open_output(&s.logits, o->logits_file, err);
    if (!bad) bad = session_eval(e->session, ids, n, score_position, &s, err);
    if (!bad) bad = check_files(&s, err);
    if (!bad && s.n_damaged)
        bad = fail(err, "%s: the logits of %d positions are no numbers (NaN): a weight is damaged",
                   e->name, s.n_damaged);
    if (!bad && o->summary) put_summary(&s);
    new_free(&s.logits);
    if (s.reference) (void)fclose(s.reference);
    free(s.row);
    buf_free(&s.out);
    return bad;
}
