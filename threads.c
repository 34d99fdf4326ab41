/* threads.c - the CPU's threads, and how they get their tasks.
 *
 * A decoded token is some 250 jobs of several tasks (eight a layer), one after the other; most of
 * them read a matrix from memory, within tens of microseconds to a few milliseconds.  So a job must
 * begin and end fast, no thread may idle while another one still reads, and a thread that has
 * nothing to do must cost nothing.
 *
 * Tasks.  The tasks of a job are numbered.  They lie in queues, at most one for each core: a queue
 * is a run of neighbours, so that what a kernel fetches ahead at the end of a task is what the same
 * thread's next task begins with.  A thread begins with the queue of its own number.  When that is
 * empty, the thread goes through the other queues and takes tasks from them (work stealing): so a
 * thread that the system interrupts delays the job by one task, not by its share.  Which thread
 * runs a task differs from run to run.  No result depends on it: tasks write to places of their
 * own, or into a list of their thread whose order does not matter once the lists are merged
 * (`lower` in head.c).
 *
 * Why a late thread does no harm.  The caller waits until all tasks are done (`left`), never for a
 * thread.  So a thread may still go through the queues when the job has ended, or when the next one
 * has begun.  A queue is one word, its next task and its end, and a thread takes a task by
 * replacing the whole word.  A replacement that succeeds takes a task of the job at hand, whatever
 * the thread has seen before.  Only then does the thread read what the job is, and the job cannot
 * end before that task is counted in `left`.  `parallel` writes the job before its queues.
 *
 * Waiting.  Waking a sleeping thread costs more than most jobs take.  So a worker spins after a
 * job, and sleeps only after MAX_SPINS: then the program is reading its input, or sampling, or
 * done.  The caller spins likewise before it sleeps until the last task is done.
 *
 * How many threads are awake.  A job wakes no more workers than it has tasks, and never so many
 * that more threads are awake than there are cores: a thread without a core could only delay the
 * others.  So further threads, as with -t 64 on two cores, sleep for ever.  A worker that nobody
 * woke for want of cores is not missed, as the others do its tasks.
 *
 * No wake-up is lost.  A worker counts itself in `sleeping` before it looks at `round` once more;
 * `post` changes `round` before it looks at `sleeping`.  All these are sequentially consistent, so
 * at least one of the two sees the other; and the lock keeps the wake-up from falling between a
 * worker's look and its sleep.  `waiting` and `left` guard the caller's sleep in the same way.  A
 * wake-up is a permit that one worker takes, so that the next job knows who is still asleep before
 * the woken ones have run. */
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

/* Takes the next task of the queue.  Returns -1 when there is none. */
static int take(Queue *q) {
    uint64_t word = atomic_load_explicit(&q->word, memory_order_acquire);
    for (;;) {
        uint32_t next = (uint32_t)word, end = (uint32_t)(word >> 32);
        if (next == end) return -1;
        if (atomic_compare_exchange_weak(&q->word, &word, word + 1)) return (int)next;
    }
}

static void wake_caller(Pool *p) {
    pthread_mutex_lock(&p->lock);
    pthread_cond_signal(&p->finish);
    pthread_mutex_unlock(&p->lock);
}

/* Runs tasks until all queues have been seen empty: first those of its own queue, then those of the
 * others. */
static void work(Pool *p, int index) {
    int n = atomic_load_explicit(&p->n_queues, memory_order_relaxed);
    for (int i = 0; i < n; i++) {
        Queue *q = &p->queue[(index + i) % n];
        int done = 0;
        for (int task; (task = take(q)) >= 0; done++) p->fn(p->arg, task, index);
        if (!done) continue;
        if (atomic_fetch_sub(&p->left, done) == done && atomic_load(&p->waiting)) wake_caller(p);
    }
}

/* Pauses for the i-th time.  Returns 0 when it is time to sleep. */
static int spin(int i) {
    cpu_pause();
    return i < MAX_SPINS;
}

/* Sleeps until there is a permit, and takes it.  The worker holds the lock and is counted in
 * `sleeping`; who gave the permit has counted it out. */
static void take_permit(Pool *p) {
    while (!p->permits) pthread_cond_wait(&p->start, &p->lock);
    p->permits--;
}

/* A worker begins asleep, as a job may need none. */
static void *worker_main(void *arg) {
    Worker *w = arg;
    Pool *p = w->pool;
    pthread_mutex_lock(&p->lock);
    take_permit(p);
    pthread_mutex_unlock(&p->lock);
    while (!atomic_load(&p->quit)) {
        unsigned seen = atomic_load(&p->round);
        work(p, w->index);
        for (int i = 0; spin(i) && atomic_load(&p->round) == seen; i++)
            ;
        if (atomic_load(&p->round) != seen) continue;
        pthread_mutex_lock(&p->lock);
        atomic_fetch_add(&p->sleeping, 1);              /* before it looks at round: see above */
        if (atomic_load(&p->round) == seen) take_permit(p);
        else atomic_fetch_sub(&p->sleeping, 1);
        pthread_mutex_unlock(&p->lock);
    }
    return NULL;
}

/* Begins a round that `wanted` workers are to see: those that are awake see it, and as many of the
 * others are woken as are missing. */
static void post(Pool *p, int wanted) {
    int n_workers = p->n_threads - 1;
    atomic_fetch_add(&p->round, 1);
    if (wanted <= n_workers - atomic_load(&p->sleeping)) return;
    pthread_mutex_lock(&p->lock);
    int sleeping = atomic_load(&p->sleeping), missing = wanted - (n_workers - sleeping);
    if (missing > sleeping) missing = sleeping;
    for (int i = 0; i < missing; i++) pthread_cond_signal(&p->start);
    if (missing > 0) p->permits += missing, atomic_fetch_sub(&p->sleeping, missing);
    pthread_mutex_unlock(&p->lock);
}

/* A queue's word: its next task, and above it its end. */
static uint64_t queue_word(int64_t next, int64_t end) {
    return (uint64_t)next | (uint64_t)end << 32;
}

void parallel(Device *d, int n_tasks, TaskFn *fn, void *arg) {
    Pool *p = &d->pool;
    int n = n_tasks < p->n_running ? n_tasks : p->n_running;
    if (n <= 1) {
        for (int i = 0; i < n_tasks; i++) fn(arg, i, 0);
        return;
    }
    p->fn = fn;
    p->arg = arg;
    atomic_store_explicit(&p->left, n_tasks, memory_order_relaxed);
    atomic_store_explicit(&p->n_queues, n, memory_order_relaxed);
    for (int64_t i = 0; i < n; i++)                     /* release: the job comes before them */
        atomic_store_explicit(&p->queue[i].word,
                              queue_word(n_tasks * i / n, n_tasks * (i + 1) / n),
                              memory_order_release);
    post(p, n - 1);
    work(p, 0);
    for (int i = 0; spin(i) && atomic_load(&p->left); i++)
        ;
    if (!atomic_load(&p->left)) return;
    pthread_mutex_lock(&p->lock);
    atomic_store(&p->waiting, 1);
    while (atomic_load(&p->left)) pthread_cond_wait(&p->finish, &p->lock);
    atomic_store(&p->waiting, 0);
    pthread_mutex_unlock(&p->lock);
}

int pool_open(Pool *p, int n_threads, int n_running, Error *err) {
    pthread_mutex_init(&p->lock, NULL);
    pthread_cond_init(&p->start, NULL);
    pthread_cond_init(&p->finish, NULL);
    int64_t bytes = n_threads * (int64_t)sizeof *p->queue;
    p->queue = memset(xaligned(bytes), 0, (size_t)bytes);
    p->worker = xcalloc(n_threads, sizeof *p->worker);
    p->n_running = n_running < n_threads ? n_running : n_threads;
    p->n_threads = 1;                                   /* those that run: what pool_close ends */
    for (int i = 1; i < n_threads; i++) {
        p->worker[i] = (Worker){.pool = p, .index = i};
        int why = pthread_create(&p->worker[i].thread, NULL, worker_main, &p->worker[i]);
        if (why) return fail(err, "cannot start thread %d: %s", i, strerror(why));
        p->n_threads++;
        atomic_fetch_add(&p->sleeping, 1);
    }
    return 0;
}

void pool_close(Pool *p) {
    atomic_store(&p->quit, 1);
    atomic_fetch_add(&p->round, 1);
    pthread_mutex_lock(&p->lock);
    p->permits = p->n_threads;                          /* one for everybody */
    pthread_cond_broadcast(&p->start);
    pthread_mutex_unlock(&p->lock);
    for (int i = 1; i < p->n_threads; i++) pthread_join(p->worker[i].thread, NULL);
    pthread_mutex_destroy(&p->lock);
    pthread_cond_destroy(&p->start);
    pthread_cond_destroy(&p->finish);
    free(p->worker);
    free(p->queue);
}
