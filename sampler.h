/* sampler.h - logits to the next id, and the stop strings that end an answer. */
#ifndef SAMPLER_H
#define SAMPLER_H

#include "util.h"

/* What a request adds to the logit of one id. */
typedef struct {
    int id;
    float bias;
} LogitBias;

/* The parameters of sampling.  A logit l passes through them in this order: bias,
 * repeat_penalty, frequency_penalty, presence_penalty, temperature, top_k, top_p, min_p.  Up to
 * the temperature this is the order of vLLM 0.22 (v1/sample/sampler.py, class Sampler).  From
 * the repetition penalty on it is also the order of transformers (generation/utils.py,
 * _get_logits_processor), which has no frequency and presence penalties.  vLLM differs in that
 * its min_p comes before top_k and top_p. */
typedef struct {
    /* The ids of prompt and answer: l becomes l / p where l > 0, else l * p.  1 = off. */
    float repeat_penalty;
    float temperature;                  /* 0 = greedy: the largest logit, the lowest id on a tie */
    int top_k;                          /* 0 = off; keeps ties with the k-th, as transformers */
    float top_p;                        /* 1 = off */
    float min_p;                        /* 0 = off */
    uint64_t seed;
    /* The ids of the answer alone, as in OpenAI's API; 0 = off. */
    float frequency_penalty;            /* l becomes l - p * (how often the answer holds the id) */
    float presence_penalty;             /* l becomes l - p */
    /* [n_bias] l becomes l + bias.  Borrowed: must outlive the Sampler.  An id out of range is
     * ignored; an id that is listed twice gets both. */
    const LogitBias *bias;
    int n_bias;
} SamplerParams;

typedef struct Sampler Sampler;

/* Scratch for n_vocab logits and the generator's state.  The caller frees it with sampler_free. */
Sampler *sampler_new(int n_vocab, SamplerParams params);
void sampler_free(Sampler *s);

/* From now on only the ids whose bit is set in mask (bit id % 64 of word id / 64) may be drawn;
 * NULL: all ids.  The mask must hold at least one id.  It is borrowed until sampler_mask is
 * called again. */
void sampler_mask(Sampler *s, const uint64_t *mask);

/* The next id.  logits: float32 [n_vocab], not changed.  seen[0..n_seen): all ids so far, for the
 * penalties; the last n_answer of them (0 <= n_answer <= n_seen) are the answer's, its thought
 * included, and the others the prompt's.  The same logits, parameters, seed and number of calls
 * give the same id on every machine: each call draws one random number (none when greedy), and no
 * function of libm takes part. */
int sampler_next(Sampler *s, const float *logits, const int *seen, int n_seen, int n_answer);

/* How many of the largest logits sampler_next_top should be given; 0: it cannot be used, because a
 * penalty, a bias or a missing top-k makes the choice depend on all logits. */
int sampler_wants(const Sampler *s);

/* The id that sampler_next would give, with the same random number, from the n largest logits alone
 * (n >= 1, by falling value, ties by rising id).  Only where sampler_wants is not 0; with a mask,
 * only where the mask allows every id of the list.  Returns -1 and draws nothing when the list does
 * not decide, because logits that are not listed may be tied with the k-th. */
int sampler_next_top(Sampler *s, const int *ids, const float *logits, int n);

/* For tests: the distribution that sampler_next draws from.  Writes the ids that all filters have
 * left, by rising id, and their probabilities to arrays [n_vocab].  Returns how many they are. */
int sampler_distribution(Sampler *s, const float *logits, const int *seen, int n_seen, int n_answer,
                         int *ids, float *probs);

/* Natural logarithm of the softmax of logits[0..n) at id. */
double log_prob(const float *logits, int n, int id);

/* Whether none of n logits is NaN, and one of them more than -inf. */
int are_numbers(const float *logits, int n);

/* Writes the ids of the k largest of logits[0..n) to ids[k], by falling value, ties by rising id.
 * k <= n. */
void top_logits(const float *logits, int n, int k, int *ids);

/* Looks for stop strings in a stream of text.  Text that might be the beginning of a stop string is
 * held back until it is decided. */
typedef struct {
    char **strings;                     /* [n] borrowed: must outlive the StopFilter */
    int n;
    Buf held;                           /* freed with stop_free */
} StopFilter;

/* Adds text[0..n) to the stream, and adds to out what can no longer be part of a stop string.
 * Returns 1 when a stop string was completed: out then ends before the earliest stop string, and
 * the rest is dropped.  Else returns 0. */
int stop_feed(StopFilter *f, const char *text, size_t n, Buf *out);

/* At the end of the stream: adds the text that is still held to out. */
void stop_flush(StopFilter *f, Buf *out);
void stop_free(StopFilter *f);

#endif
