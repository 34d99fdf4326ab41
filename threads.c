/* threads.c - the CPU's threads, and how they get their tasks.
 *
 * A decoded token is some 250 jobs of several tasks (eight a layer), one after the other; most of
 * them read a matrix from memory, within tens of microseconds to a few milliseconds.  So a job must
 * begin and end fast, and no thread may idle while another one still reads.
 *
 * Tasks.  The tasks of a job are numbered, and each thread has a queue: a run of neighbours, so
 * that what a kernel fetches ahead at the end of a task is what the same thread's next task begins
 * with.  A thread takes a task by one atomic increment of `next`.  When its own queue is empty, it
 * goes through the queues of the others and takes from those in the same way (work stealing): so a
 * thread that the system interrupts delays the job by one task, not by its share.  `next` runs past
 * `end` by at most one for each thread, which costs nothing.  No thread can take a task of the next
 * job by mistake: a thread leaves `work` before it counts itself out of `busy`, and `parallel` sets
 * the next job's queues only after `busy` was 0.  Which thread runs a task differs from run to run.
 * No result depends on it: tasks write to places of their own, or into a list of their thread whose
 * order does not matter once the lists are merged (`lower` in head.c).
 *
 * Waiting.  Waking a sleeping thread costs more than most jobs take.  So who waits, a thread for
 * the next job or the caller for the end of this one, spins first, and sleeps only after MAX_SPINS:
 * then the program is reading its input, or sampling, or done.
 *
 * No wake-up is lost.  A thread counts itself in `sleeping` before it looks at `round` once more;
 * `post` changes `round` before it looks at `sleeping`.  All these are sequentially consistent, so
 * at least one of the two sees the other; and the lock keeps the wake-up from falling between a
 * thread's look and its sleep.  `waiting` and `busy` guard the caller's sleep in the same way. */
#include <string.h>

#include "cpu.h"

/* PAUSE takes 40 to 140 cycles on current x86 CPUs, so these take 25 to 100 microseconds: longer
 * than what one thread does alone between two jobs of a token.  A guess; no comparison with other
 * values is recorded.  To tune it again, compare decode with all threads and with one thread more
 * than there are cores. */
#define MAX_SPINS 2000

struct Worker {
    Pool *pool;
    int index;
    pthread_t thread;
};

/* Runs tasks until no queue has any: first those of its own queue, then those of the others. */
static void work(Pool *p, int index) {
    for (int i = 0; i < p->n_threads; i++) {
        Queue *q = &p->queue[(index + i) % p->n_threads];
        for (int task; (task = atomic_fetch_add(&q->next, 1)) < q->end;) p->fn(p->arg, task, index);
    }
}

/* Pauses for the i-th time.  Returns 0 when it is time to sleep. */
static int spin(int i) {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    /* ISB takes some 50 cycles, as in Rust's spin_loop; YIELD does nothing on most cores. */
    __asm__ volatile("isb");
#endif
    return i < MAX_SPINS;
}

static void *worker_main(void *arg) {
    Worker *w = arg;
    Pool *p = w->pool;
    for (unsigned done = 0;; done++) {                  /* rounds that this thread has finished */
        for (int i = 0; spin(i) && atomic_load(&p->round) == done; i++)
            ;
        if (atomic_load(&p->round) == done) {
            pthread_mutex_lock(&p->lock);
            atomic_fetch_add(&p->sleeping, 1);          /* before it looks at round: see above */
            while (atomic_load(&p->round) == done) pthread_cond_wait(&p->start, &p->lock);
            atomic_fetch_sub(&p->sleeping, 1);
            pthread_mutex_unlock(&p->lock);
        }
        if (p->quit) return NULL;
        work(p, w->index);
        if (atomic_fetch_sub(&p->busy, 1) == 1 && atomic_load(&p->waiting)) {
            pthread_mutex_lock(&p->lock);
            pthread_cond_signal(&p->finish);
            pthread_mutex_unlock(&p->lock);
        }
    }
}

/* Begins a round: the threads that spin see it, those that sleep are woken. */
static void post(Pool *p) {
    atomic_fetch_add(&p->round, 1);
    if (!atomic_load(&p->sleeping)) return;
    pthread_mutex_lock(&p->lock);
    pthread_cond_broadcast(&p->start);
    pthread_mutex_unlock(&p->lock);
}

void parallel(Device *d, int n_tasks, TaskFn *fn, void *arg) {
    Pool *p = &d->pool;
    if (n_tasks <= 1 || p->n_threads == 1) {
        for (int i = 0; i < n_tasks; i++) fn(arg, i, 0);
        return;
    }
    p->fn = fn;
    p->arg = arg;
    for (int i = 0; i < p->n_threads; i++) {
        atomic_store(&p->queue[i].next, (int)((int64_t)n_tasks * i / p->n_threads));
        p->queue[i].end = (int)((int64_t)n_tasks * (i + 1) / p->n_threads);
    }
    atomic_store(&p->busy, p->n_threads - 1);
    post(p);
    work(p, 0);
    for (int i = 0; spin(i) && atomic_load(&p->busy); i++)
        ;
    if (!atomic_load(&p->busy)) return;
    pthread_mutex_lock(&p->lock);
    atomic_store(&p->waiting, 1);
    while (atomic_load(&p->busy)) pthread_cond_wait(&p->finish, &p->lock);
    atomic_store(&p->waiting, 0);
    pthread_mutex_unlock(&p->lock);
}

int pool_open(Pool *p, int n_threads, Error *err) {
    pthread_mutex_init(&p->lock, NULL);
    pthread_cond_init(&p->start, NULL);
    pthread_cond_init(&p->finish, NULL);
    p->queue = xaligned(n_threads * (int64_t)sizeof *p->queue);
    p->worker = xcalloc(n_threads, sizeof *p->worker);
    p->n_threads = 1;                                   /* those that run: what pool_close ends */
    for (int i = 1; i < n_threads; i++) {
        p->worker[i] = (Worker){.pool = p, .index = i};
        int why = pthread_create(&p->worker[i].thread, NULL, worker_main, &p->worker[i]);
        if (why) return fail(err, "cannot start thread %d: %s", i, strerror(why));
        p->n_threads++;
    }
    return 0;
}

void pool_close(Pool *p) {
    p->quit = 1;
    post(p);
    for (int i = 1; i < p->n_threads; i++) pthread_join(p->worker[i].thread, NULL);
    pthread_mutex_destroy(&p->lock);
    pthread_cond_destroy(&p->start);
    pthread_cond_destroy(&p->finish);
    free(p->worker);
    free(p->queue);
}
