/* sampler.h - logits to the next id, and the stop strings that end an answer. */
#ifndef SAMPLER_H
#define SAMPLER_H

#include "util.h"

/* What a request adds to the logit of one id. */
typedef struct {
    int id;
    float bias;
} LogitBias;

/* They act in this order: bias, repeat_penalty, frequency_penalty, presence_penalty, temperature,
 * top_k, top_p, min_p.  Up to the temperature this is the order of vLLM 0.22 (v1/sample/sampler.py,
 * class Sampler).  From the repetition penalty on it is also that of transformers
 * (generation/utils.py, _get_logits_processor), which has no frequency and presence penalties; vLLM
 * differs in that its min_p comes before top_k and top_p. */
typedef struct {
    float repeat_penalty;               /* 1 = off; ids seen (prompt and answer): l > 0 ? l / p : l * p */
    float temperature;                  /* 0 = greedy: the largest logit, the lowest id on a tie */
    int top_k;                          /* 0 = off; ties with the k-th are kept, as in transformers */
    float top_p;                        /* 1 = off */
    float min_p;                        /* 0 = off */
    uint64_t seed;
    float frequency_penalty;            /* 0 = off; ids of the answer alone: l - p * how often */
    float presence_penalty;             /* 0 = off; the same ids: l - p; both as in OpenAI's API */
    const LogitBias *bias;              /* l + bias; borrowed: must outlive the Sampler; an id */
    int n_bias;                         /* out of range is ignored, one listed twice gets both */
} SamplerParams;

typedef struct Sampler Sampler;

/* Scratch for n_vocab logits and the generator's state.  The caller frees with sampler_free. */
Sampler *sampler_new(int n_vocab, SamplerParams params);
void sampler_free(Sampler *s);

/* From now on only ids whose bit is set in mask (bit id % 64 of word id / 64) are drawn; NULL: all.  The mask is
 * borrowed and must hold at least one id. */
void sampler_mask(Sampler *s, const uint64_t *mask);

/* The next id.  logits: float32 [n_vocab], not changed; seen[0..n_seen): the ids before it (for the
 * penalties); the last n_answer of them (0 <= n_answer <= n_seen) are the answer's, its thought
 * included, and the others the prompt's.  The same logits, parameters, seed and number of calls
 * give the same id on every machine: one random number is drawn a call (none when greedy), and no
 * function of libm takes part. */
int sampler_next(Sampler *s, const float *logits, const int *seen, int n_seen, int n_answer);

/* How many of the largest logits sampler_next_top should be given; 0 when it takes all of them (a
 * penalty, a bias, no top-k). */
int sampler_wants(const Sampler *s);

/* The same id as from all logits, with the same random number, from the n largest alone, n >= 1, by
 * falling value, ties by rising id; without a penalty and a bias; with a mask: when the list holds
 * allowed ids alone.  -1, and nothing drawn, when they do not decide: others may be tied with the
 * k-th. */
int sampler_next_top(Sampler *s, const int *ids, const float *logits, int n);

/* What sampler_next draws from: writes up to max (id, probability) pairs that are left after all filters,
 * by falling probability, ties by rising id; returns how many are left in all. */
int sampler_distribution(Sampler *s, const float *logits, const int *seen, int n_seen, int n_answer,
                         int *ids, float *probs, int max);

/* Natural logarithm of the softmax of logits[0..n) at id. */
double log_prob(const float *logits, int n, int id);

/* The k largest of logits[0..n) by falling value, ties by rising id: ids[k].  k <= n. */
void top_logits(const float *logits, int n, int k, int *ids);

/* Stop strings over a stream of text: what might be the beginning of one is held back. */
typedef struct {
    char **strings;                     /* borrowed: must outlive the StopFilter */
    int n;
    Buf held;
} StopFilter;

/* Adds `text` to the stream and moves to out what can no longer be part of a stop string.  Returns 1 when a
 * stop string was completed (out then ends before the earliest one, and the rest is dropped), else 0. */
int stop_feed(StopFilter *f, const char *text, size_t n, Buf *out);
/* At the end of the stream: moves what is still held to out. */
void stop_flush(StopFilter *f, Buf *out);
void stop_free(StopFilter *f);

#endif
