/* handover.h - how a GPU and the CPU hand a layer's tokens over to each other in the middle of a
 * step, without the host waiting for the GPU's stream.
 *
 * All that travels lies in page-locked memory of the host, which the GPU reads and writes itself.
 * A signal each way says that it is there.  handover.cu is the GPU's side, handover.c the CPU's;
 * offload.c computes what the CPU answers with. */
#ifndef HANDOVER_H
#define HANDOVER_H

/* A counter that one side writes, with release order, and the other reads, with acquire order.  No
 * two of them share a cache line, of which the longest has 128 bytes. */
typedef struct {
    unsigned count, unused[31];
} Signal;

/* GIVEN: how many layers the GPU has handed over since the device was opened.  SUMMED: how many of
 * these the CPU has answered.  Both wrap around after 2^32.  QUIT: 1 when the program ends, so that
 * no kernel waits for the CPU any more. */
enum { GIVEN, SUMMED, QUIT, SIGNALS };

/* What travels for one layer, for a step of n tokens; float32.  The arrays are page-locked memory
 * of the host that is mapped into the GPU's addresses. */
typedef struct HandOver HandOver;
struct HandOver {
    float *x;                           /* [n][hidden] the residual stream behind attention */
    int *expert;                        /* [n][top_k] the router's choice, and */
    float *weight;                      /* [n][top_k] its weights */
    float *sum;                         /* [n][hidden] what the CPU computes */
    Signal *signal;                     /* [SIGNALS] */
    HandOver *next;                     /* of those that are open; the GPU does not read it */
};

/* Sets all signals of *h to 0, and from now on QUIT when the program ends by exit.  *h must not
 * move, and its memory must stay, until hand_over_close; that does nothing for one that is not
 * open. */
void hand_over_open(HandOver *h);
void hand_over_close(HandOver *h);

/* Asks the GPU how it is: 1 when it has nothing left to do, 0 when it has.  It may end the program
 * if the GPU has failed. */
typedef int LookFn(void *arg);

/* Waits for the signal GIVEN of hand-over number `count`, and calls look(arg) now and then.
 * Returns 0: what the GPU wrote before that signal can be read.  Returns -1 when the GPU has
 * nothing left to do and gave no signal. */
int hand_over_await(const HandOver *h, unsigned count, LookFn *look, void *arg);

/* Tells the GPU that h->sum of hand-over number `count` is there. */
void hand_over_answer(const HandOver *h, unsigned count);

#endif
