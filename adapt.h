/* adapt.h - how many drafts a round of speculative decoding makes: as many as promise the most
 * tokens a second, by what the rounds so far have cost and yielded. */
#ifndef ADAPT_H
#define ADAPT_H

/* Most drafts of a round when their number is adapted.  A draft counts only if all before it were
 * accepted: at 70 % each, the seventh is accepted in one round of twelve.  To tune it, compare the
 * rates with fixed numbers (--draft-tokens) on texts that draft well. */
#define MAX_ADAPTED 6

/* What the rounds so far have cost and yielded: the next number of drafts is chosen by it.  Costs
 * are relative times, seconds at the beginning; see adaption_cost. */
typedef struct {
    double cost[MAX_ADAPTED + 1];       /* [k] a round of k drafts to its first token; 0: unknown */
    double further;                     /* each further token that a round yields */
    double pace;                        /* the last round's time, divided by its cost */
    double rate[MAX_ADAPTED];           /* [i] how often draft number i is accepted when those
                                         * before it were, 0 to 1 */
    long rounds, next_trial, trials;    /* rounds so far; when another k is tried next; how often */
    int trial_gap;                      /* rounds between two trials */
    int last;                           /* k of the last round */
} Adaption;

Adaption adaption_new(void);

/* Returns k, the number of drafts (0 .. MAX_ADAPTED) of the next round. */
int adaption_choose(Adaption *a);

/* What that round was like is then reported.  adaption_cost: it had k drafts, and its first token
 * came after so many seconds.  adaption_further: each further token of it took so many seconds.
 * adaption_rate: of its k drafts so many were accepted. */
void adaption_cost(Adaption *a, int k, double seconds);
void adaption_further(Adaption *a, double seconds);
void adaption_rate(Adaption *a, int k, int accepted);

#endif
