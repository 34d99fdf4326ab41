/* adapt.c - how many drafts pay.  See adapt.h.
 *
 * A round of k drafts costs a time that is measured, and yields 1 + r0 + r0 r1 + … tokens, where
 * r0, r1 … are the rates at which draft number 0, 1 … is accepted.  adaption_choose takes the k
 * with the most tokens a second.
 *
 * The constants below were chosen by judgement; nobody has compared others on a real model.
 * test_draft.c (never_slower) simulates times and drafts and holds that drafting costs at most 3 %
 * where it does not pay.  To tune one, run that test, and compare the rates of `gemma4 bench` with
 * a drafter and with fixed numbers (--draft-tokens), on texts that draft well and badly. */
#include "adapt.h"

#include <math.h>
#include <stdlib.h>

/* The first rounds of a drafter have 2 drafts and none, in turns: three costs of each, of which the
 * least counts.  More rounds trade short answers for costs that are known better. */
#define FIRST 6

/* The rate of acceptance that is taken for true before the first round. */
#define FIRST_RATE 0.7

/* Rounds between two trials of another k: at first, and about at most.  Each gap is half as long
 * again as the one before.  Short gaps notice a change sooner; each trial costs what drafting costs
 * where it does not pay. */
#define FIRST_GAP 16
#define LONGEST_GAP 100

/* Drafts are made only where they promise this much more speed: less is within the noise of the
 * times. */
#define LEAST_GAIN 1.02

/* How far one round moves the cost of its k: by this share of the difference, which counts as at
 * most so large.  One disturbed round then moves it by 5 % at most. */
#define COST_SHARE 0.2
#define MOST_CHANGE 0.25

/* How far one token moves the time of a further token, and one draft the rate of acceptance: the
 * last 10 and the last 20 count most. */
#define FURTHER_SHARE 0.1
#define RATE_SHARE 0.05

Adaption adaption_new(void) {
    Adaption a = {.next_trial = FIRST_GAP, .trial_gap = FIRST_GAP, .pace = 1};
    for (int i = 0; i < MAX_ADAPTED; i++) a.rate[i] = FIRST_RATE;
    return a;
}

/* What a round with k drafts costs, to its first token.  Where k was never tried, the cost lies on
 * the line through the costs of 0 drafts and of the number nearest to k that was tried. */
static double cost(const Adaption *a, int k) {
    int j = 0;
    for (int i = 1; i <= MAX_ADAPTED; i++)
        if (a->cost[i] > 0 && (!j || abs(i - k) < abs(j - k))) j = i;
    if (a->cost[k] > 0 || !j) return a->cost[k];
    return a->cost[0] + k * (a->cost[j] - a->cost[0]) / j;
}

/* Returns the k that promises the most tokens a second, or 0 where no k is LEAST_GAIN better than
 * no drafts.  Now and then it returns another k, a neighbour or 0, so that the costs which are
 * known stay true. */
int adaption_choose(Adaption *a) {
    if (a->rounds < FIRST) return a->rounds % 2 ? 0 : 2;
    int best = 0;
    double most = LEAST_GAIN / cost(a, 0), further = 0, product = 1;
    for (int k = 1; k <= MAX_ADAPTED; k++) {
        further += product *= a->rate[k - 1];           /* drafts accepted in a round, on average */
        double speed = (1 + further) / (cost(a, k) + further * a->further);
        if (speed > most) most = speed, best = k;
    }
    if (a->rounds < a->next_trial) return best;
    if (a->trial_gap < LONGEST_GAP) a->trial_gap += a->trial_gap / 2;
    else a->trial_gap = LONGEST_GAP;
    a->next_trial = a->rounds + a->trial_gap;
    const int others[] = {best < MAX_ADAPTED ? best + 1 : best - 1, 0, best - 1};
    return best == 0 ? 1 : others[a->trials++ % 3];
}

static void blend(double *mean, double x, double share) { *mean += (x - *mean) * share; }

/* The context and the machine change the time of every round.  So costs are relative: `pace` is the
 * last round's time divided by its cost.
 * 1. The first rounds, and the first round of any k: the least time is the cost.
 * 2. Later, a round with another k than the one before: its time is held against what its k should
 *    cost at the pace of the round before, and corrects the cost a little.
 * 3. Every round sets the pace. */
void adaption_cost(Adaption *a, int k, double t) {
    double expected = cost(a, k) * a->pace;
    if (a->rounds++ < FIRST || expected == 0) {
        if (a->cost[k] == 0 || t < a->cost[k]) a->cost[k] = t;
    } else if (k != a->last) {
        double change = fmin(fmax(t / expected - 1, -MOST_CHANGE), MOST_CHANGE);
        a->cost[k] = cost(a, k) * (1 + COST_SHARE * change);
    }
    a->pace = t / a->cost[k];
    a->last = k;
}

void adaption_further(Adaption *a, double t) {
    double x = t / a->pace;
    if (a->further > 0) blend(&a->further, fmin(x, 2 * a->further), FURTHER_SHARE);
    else a->further = x;
}

void adaption_rate(Adaption *a, int k, int accepted) {
    for (int i = 0; i < k && i <= accepted && i < MAX_ADAPTED; i++)
        blend(&a->rate[i], i < accepted, RATE_SHARE);
}
