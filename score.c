/* score.c - log probabilities of given tokens, perplexity, and the distance from another run.  See score.h.
 *
 * The distance is the Kullback-Leibler divergence of the two distributions of the next token, in nats: sum of p log(p / q), p the
 * reference's, q this run's; and whether both think the same token the most likely. */
#include "score.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "json.h"

typedef struct {
    const Engine *e;
    const ScoreOptions *o;
    const int *ids;
    int n, n_vocab;
    double next_logprob;                /* of the token that follows, known one position before */
    FILE *logits, *reference;
    float *row;                         /* the reference's logits of one position */
    double sum_logprob, sum_kl, max_kl;
    int max_pos, n_same;
    const char *failed;                 /* the file that could not be read or written, and errno; 0: it is too short */
    int why;
    Buf out;
} Score;

static double log_sum(const float *l, int n) {
    double max = l[0], sum = 0;
    for (int i = 1; i < n; i++) max = fmax(max, l[i]);
    for (int i = 0; i < n; i++) sum += exp(l[i] - max);
    return max + log(sum);
}

static double divergence(const float *p, const float *q, int n) {
    double p_sum = log_sum(p, n), q_sum = log_sum(q, n), kl = 0;
    for (int i = 0; i < n; i++) kl += exp(p[i] - p_sum) * ((p[i] - p_sum) - (q[i] - q_sum));
    return kl > 0 ? kl : 0;             /* below 0 by rounding alone */
}

static void compare(Score *s, int64_t pos, const float *logits) {
    int mine, theirs;
    errno = 0;
    if (fread(s->row, sizeof(float), (size_t)s->n_vocab, s->reference) != (size_t)s->n_vocab) {
        if (!s->failed) s->failed = s->o->reference_file, s->why = errno;
        return;
    }
    double kl = divergence(s->row, logits, s->n_vocab);
    top_logits(logits, s->n_vocab, 1, &mine);
    top_logits(s->row, s->n_vocab, 1, &theirs);
    s->sum_kl += kl;
    if (kl > s->max_kl || !pos) s->max_kl = kl, s->max_pos = (int)pos;
    s->n_same += mine == theirs;
    if (!s->o->summary) buf_printf(&s->out, ", \"kl\": %.4g, \"same_top\": %s", kl, mine == theirs ? "true" : "false");
}

/* `logprob` is the token's own, given those before it; `top` what the model expects after it. */
static void put_line(Score *s, int64_t pos, const float *logits) {
    size_t n;
    int top[1000], id = s->ids[pos], n_top = s->o->top < s->n_vocab ? s->o->top : s->n_vocab;
    const char *text = tokenizer_text(s->e->tokenizer, id, &n);
    buf_printf(&s->out, "{\"pos\": %lld, \"id\": %d, \"token\": ", (long long)pos, id);
    json_quote(&s->out, text, n);
    if (pos) buf_printf(&s->out, ", \"logprob\": %.7g, \"top\": [", s->next_logprob);
    else buf_puts(&s->out, ", \"logprob\": null, \"top\": [");
    top_logits(logits, s->n_vocab, n_top, top);
    for (int i = 0; i < n_top; i++) buf_printf(&s->out, "%s[%d, %.7g]", i ? ", " : "", top[i], log_prob(logits, s->n_vocab, top[i]));
    buf_puts(&s->out, "]");
}

static void score_position(void *arg, int64_t pos, const float *logits) {
    Score *s = arg;
    if (s->logits && fwrite(logits, sizeof(float), (size_t)s->n_vocab, s->logits) != (size_t)s->n_vocab && !s->failed)
        s->failed = s->o->logits_file, s->why = errno;
    s->out.len = 0;
    if (!s->o->summary) put_line(s, pos, logits);
    if (s->reference) compare(s, pos, logits);
    if (!s->o->summary) {
        buf_puts(&s->out, "}\n");
        put_stdout(s->out.data, s->out.len);
    }
    if (pos + 1 < s->n) s->sum_logprob += s->next_logprob = log_prob(logits, s->n_vocab, s->ids[pos + 1]);
}

static void put_summary(Score *s) {
    s->out.len = 0;
    buf_printf(&s->out, "{\"tokens\": %d", s->n);
    if (s->n > 1) buf_printf(&s->out, ", \"perplexity\": %.6g", exp(-s->sum_logprob / (s->n - 1)));
    if (s->reference)
        buf_printf(&s->out, ", \"kl_mean\": %.4g, \"kl_max\": %.4g, \"kl_max_pos\": %d, \"same_top\": %.6g", s->sum_kl / s->n, s->max_kl,
                   s->max_pos, (double)s->n_same / s->n);
    buf_puts(&s->out, "}\n");
    put_stdout(s->out.data, s->out.len);
}

int score(const Engine *e, const int *ids, int n, const ScoreOptions *o, Error *err) {
    ModelInfo info;
    model_info(e->model, &info);
    Score s = {.e = e, .o = o, .ids = ids, .n = n, .n_vocab = info.config->vocab};
    int bad = 0;
    s.row = xcalloc(s.n_vocab, sizeof *s.row);
    if (o->reference_file && !(s.reference = fopen(o->reference_file, "rb"))) bad = fail(err, "%s: %s", o->reference_file, strerror(errno));
    if (!bad && o->logits_file && !(s.logits = fopen(o->logits_file, "wb"))) bad = fail(err, "%s: %s", o->logits_file, strerror(errno));
    if (!bad) bad = session_eval(e->session, ids, n, score_position, &s, err);
    if (s.logits && fclose(s.logits) && !s.failed) s.failed = o->logits_file, s.why = errno;
    if (!bad && s.reference && !s.failed && fgetc(s.reference) != EOF)
        bad = fail(err, "%s: more than %d positions of %d logits", o->reference_file, n, s.n_vocab);
    if (!bad && s.failed)
        bad = s.why ? fail(err, "%s: %s", s.failed, strerror(s.why))
                    : fail(err, "%s: less than %d positions of %d logits", s.failed, n, s.n_vocab);
    if (!bad && o->summary) put_summary(&s);
    if (s.reference) (void)fclose(s.reference);
    free(s.row);
    buf_free(&s.out);
    return bad;
}
