/* handover.c - the CPU's side of a hand-over: signals, and the end of the program.  See
 * handover.h. */
#include "handover.h"

#include <time.h>

#include "cpu.h"

/* Pauses between two looks at the GPU: 25 to 100 microseconds, as MAX_SPINS (threads.c).  A look
 * takes some microseconds, in which a signal is not seen.  After LONG_WAIT looks without a signal
 * the CPU also sleeps for NAP nanoseconds before each look, as what a GPU computes between two
 * signals should take less than a millisecond.  All three are guesses.  To tune them, compare
 * decode with --cpu-experts 30 on a GPU, and the CPU time it takes. */
#define LOOK_SPINS 2000
#define LONG_WAIT 20
#define NAP 50000

/* All hand-overs that are open, for the end of the program; guarded by the lock. */
static HandOver *open_hand_overs;
static pthread_mutex_t open_lock = PTHREAD_MUTEX_INITIALIZER;

static void set_signal(Signal *s, unsigned count) {
    __atomic_store_n(&s->count, count, __ATOMIC_RELEASE);
}

/* exit calls it before the GPU's own handlers, which were registered earlier: those may wait for a
 * kernel, and so that kernel must not wait for the CPU. */
static void quit_hand_overs(void) {
    pthread_mutex_lock(&open_lock);
    for (HandOver *h = open_hand_overs; h; h = h->next) set_signal(&h->signal[QUIT], 1);
    pthread_mutex_unlock(&open_lock);
}

void hand_over_open(HandOver *h) {
    static int is_registered;
    for (int i = 0; i < SIGNALS; i++) set_signal(&h->signal[i], 0);
    pthread_mutex_lock(&open_lock);
    if (!is_registered) is_registered = !atexit(quit_hand_overs);
    h->next = open_hand_overs;
    open_hand_overs = h;
    pthread_mutex_unlock(&open_lock);
}

void hand_over_close(HandOver *h) {
    pthread_mutex_lock(&open_lock);
    HandOver **at = &open_hand_overs;
    while (*at && *at != h) at = &(*at)->next;
    if (*at) *at = h->next;
    pthread_mutex_unlock(&open_lock);
}

static int is_given(const HandOver *h, unsigned count) {
    return __atomic_load_n(&h->signal[GIVEN].count, __ATOMIC_ACQUIRE) == count;
}

int hand_over_await(const HandOver *h, unsigned count, LookFn *look, void *arg) {
    int looks = 0;
    for (int spins = 1; !is_given(h, count); spins++) {
        cpu_pause();
        if (spins < LOOK_SPINS) continue;
        spins = 0;
        if (looks < LONG_WAIT) looks++;
        else nanosleep(&(struct timespec){.tv_nsec = NAP}, NULL);
        if (look(arg) && !is_given(h, count)) return -1;
    }
    return 0;
}

void hand_over_answer(const HandOver *h, unsigned count) {
    set_signal(&h->signal[SUMMED], count);
}
