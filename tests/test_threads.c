/* The threads' jobs, by counting what is done for them, never by time; and how many cores a
 * container's quota leaves.  The same program runs under ThreadSanitizer as tsan_threads. */
#include <limits.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdatomic.h>
#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>

/* threads.c itself, whose calls are counted; where `starts_threads` is 0 no worker ever comes. */
static int starts_threads = 1;
static atomic_int n_wakes, n_sleeps;

static int counted_create(pthread_t *t, const pthread_attr_t *a, void *(*run)(void *), void *arg) {
    return starts_threads ? pthread_create(t, a, run, arg) : 0;
}
static int counted_join(pthread_t t, void **result) {
    return starts_threads ? pthread_join(t, result) : 0;
}
static int counted_signal(pthread_cond_t *c) {
    atomic_fetch_add(&n_wakes, 1);
    return pthread_cond_signal(c);
}
static int counted_wait(pthread_cond_t *c, pthread_mutex_t *m) {
    atomic_fetch_add(&n_sleeps, 1);
    return pthread_cond_wait(c, m);
}
#define pthread_create counted_create
#define pthread_join counted_join
#define pthread_cond_signal counted_signal
#define pthread_cond_wait counted_wait
#include "../threads.c"

#include <cmocka.h>                     /* last: its macro fail() would hide util.h's function */

enum { MOST_TASKS = 300 };

/* A job that knows itself: `magic` is gone when the job is. */
typedef struct {
    int magic, n_threads;
    atomic_int runs[MOST_TASKS];
    int written[MOST_TASKS];            /* by the task, without an atomic */
    atomic_int bad;
} Job;

static void task_of_job(void *arg, int task, int thread) {
    Job *j = arg;
    if (j->magic != 77 || thread < 0 || thread >= j->n_threads) atomic_fetch_add(&j->bad, 1);
    atomic_fetch_add(&j->runs[task], 1);
    j->written[task] = task + 1;
}

/* Runs a job of n tasks: each once, their writes visible. */
static void run_job(Device *d, int n) {
    Job *j = xcalloc(1, sizeof *j);
    j->magic = 77;
    j->n_threads = d->pool.n_threads;
    parallel(d, n, task_of_job, j);
    for (int i = 0; i < MOST_TASKS; i++) {
        assert_int_equal(atomic_load(&j->runs[i]), i < n);
        assert_int_equal(j->written[i], i < n ? i + 1 : 0);
    }
    assert_int_equal(atomic_load(&j->bad), 0);
    j->magic = 0;
    free(j);
}

static int n_awake(Pool *p) { return p->n_threads - 1 - atomic_load(&p->sleeping); }

static void test_every_task_once(void **state) {
    const int sizes[][2] = {{1, 1}, {2, 2}, {3, 2}, {5, 5}, {8, 8}, {64, 2}, {64, 64}, {300, 3}};
    (void)state;
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        Device *d = xcalloc(1, sizeof *d);
        Error err;
        assert_int_equal(pool_open(&d->pool, sizes[i][0], sizes[i][1], &err), 0);
        for (int n = 0; n < MOST_TASKS; n += 1 + n / 9) run_job(d, n);
        for (int k = 0; k < 500; k++) run_job(d, 2 + k % 40);
        pool_close(&d->pool);
        free(d);
    }
}

/* A job wakes at most one worker for each task but the caller's first, whoever is still awake; and
 * there are never more threads awake than there are cores. */
static void test_wakes_are_bounded(void **state) {
    const int cores[] = {1, 2, 16, 64};
    (void)state;
    for (int i = 0; i < 4; i++) {
        Device *d = xcalloc(1, sizeof *d);
        Error err;
        assert_int_equal(pool_open(&d->pool, 64, cores[i], &err), 0);
        for (int k = 0; k < 400; k++) {
            int n = 1 + k % 90, most = n < cores[i] ? n : cores[i];
            atomic_store(&n_wakes, 0);
            run_job(d, n);
            /* One more: the worker that does the last task may wake the caller. */
            assert_in_range(atomic_load(&n_wakes), 0, most);
            assert_in_range(n_awake(&d->pool), 0, cores[i] - 1);
            if (k % 50 == 0) usleep(2000);              /* now and then all of them sleep */
        }
        pool_close(&d->pool);
        free(d);
    }
}

/* 1000 threads on two cores: all but one sleep from the beginning to the end. */
static void test_threads_without_a_core_sleep(void **state) {
    Device *d = xcalloc(1, sizeof *d);
    Error err;
    (void)state;
    atomic_store(&n_sleeps, 0);
    assert_int_equal(pool_open(&d->pool, 1000, 2, &err), 0);
    for (int k = 0; k < 200; k++) run_job(d, 100);
    /* Each has gone to sleep once; beyond that, at most two threads in each job, now and then more
     * often as wake-ups may be spurious. */
    assert_in_range(atomic_load(&n_sleeps), 0, 999 + 2 * 200 + 100);
    pool_close(&d->pool);
    free(d);
}

/* The caller waits for tasks, not for workers: it ends every job alone where none ever comes. */
static void test_no_worker_is_waited_for(void **state) {
    Device *d = xcalloc(1, sizeof *d);
    Error err;
    (void)state;
    starts_threads = 0;
    assert_int_equal(pool_open(&d->pool, 64, 64, &err), 0);
    for (int n = 0; n < MOST_TASKS; n++) run_job(d, n);
    pool_close(&d->pool);
    starts_threads = 1;
    free(d);
}

static void no_task(void *arg, int task, int thread) {
    (void)task, (void)thread;
    atomic_fetch_add((atomic_int *)arg, 1);
}

/* A worker that comes when the job is over finds no task, however many queues it has in mind. */
static void test_late_worker(void **state) {
    Device *d = xcalloc(1, sizeof *d);
    atomic_int *runs = xcalloc(1, sizeof *runs);
    Error err;
    (void)state;
    starts_threads = 0;
    assert_int_equal(pool_open(&d->pool, 8, 8, &err), 0);
    parallel(d, 50, no_task, runs);
    assert_int_equal(atomic_load(runs), 50);
    for (int i = 0; i < 8; i++) {
        work(&d->pool, i);
        assert_int_equal(take(&d->pool.queue[i]), -1);
    }
    parallel(d, 3, no_task, runs);      /* a job with fewer queues */
    atomic_store(&d->pool.n_queues, 8);
    for (int i = 0; i < 8; i++) work(&d->pool, i);
    assert_int_equal(atomic_load(runs), 53);
    assert_int_equal(atomic_load(&d->pool.left), 0);
    pool_close(&d->pool);
    starts_threads = 1;
    free(runs);
    free(d);
}

typedef struct {
    Pool *pool;
    atomic_int stop;
} Looker;

static void *look_for_tasks(void *arg) {
    Looker *l = arg;
    while (!atomic_load(&l->stop)) work(l->pool, 1);
    return NULL;
}

/* A thread that looks for tasks all the time, also while a job is written: as a late worker might
 * at any moment. */
static void test_worker_that_always_looks(void **state) {
    Device *d = xcalloc(1, sizeof *d);
    Looker l = {.pool = &d->pool};
    Error err;
    pthread_t thread;
    (void)state;
    starts_threads = 0;
    assert_int_equal(pool_open(&d->pool, 4, 4, &err), 0);
    starts_threads = 1;
    assert_int_equal(pthread_create(&thread, NULL, look_for_tasks, &l), 0);
    for (int k = 0; k < 3000; k++) run_job(d, 2 + k % 20);
    atomic_store(&l.stop, 1);
    pthread_join(thread, NULL);
    starts_threads = 0;
    pool_close(&d->pool);
    starts_threads = 1;
    free(d);
}

/* Every task lies in one queue, neighbours in the same, none of two sizes that differ by more than
 * one. */
static void test_queues(void **state) {
    Device *d = xcalloc(1, sizeof *d);
    Error err;
    (void)state;
    starts_threads = 0;
    assert_int_equal(pool_open(&d->pool, 64, 16, &err), 0);
    for (int n = 2; n < 100; n++) {
        int queues = n < 16 ? n : 16;
        run_job(d, n);
        assert_int_equal(atomic_load(&d->pool.n_queues), queues);
        for (int i = 0, from = 0; i < queues; i++) {
            int end = (int)(atomic_load(&d->pool.queue[i].word) >> 32);
            assert_in_range(end - from, n / queues, (n + queues - 1) / queues);
            from = end;
        }
    }
    pool_close(&d->pool);
    starts_threads = 1;
    free(d);
}

/* ---- the quota of a container ---- */

static void put(const char *root, const char *file, const char *text) {
    char path[512];
    snprintf(path, sizeof path, "%s%s", root, file);
    for (char *at = path + strlen(root) + 1; (at = strchr(at, '/')); *at++ = '/') {
        *at = 0;
        mkdir(path, 0755);
    }
    FILE *f = fopen(path, "w");
    assert_non_null(f);
    fputs(text, f);
    fclose(f);
}

typedef struct {
    const char *name;
    int cores;                          /* 0: no quota */
    const char *file[8];                /* path, text, path, text, … */
} Container;

static const Container containers[] = {
    {"nothing at all", 0, {NULL}},
    {"version 2, no quota", 0, {"/proc/self/cgroup", "0::/a\n",
                                "/sys/fs/cgroup/a/cpu.max", "max 100000\n"}},
    {"version 2, the container's own", 3, {"/proc/self/cgroup", "0::/\n",
                                           "/sys/fs/cgroup/cpu.max", "250000 100000\n"}},
    {"half a core", 1, {"/proc/self/cgroup", "0::/\n",
                        "/sys/fs/cgroup/cpu.max", "50000 100000\n"}},
    {"a whole number is not rounded up", 4, {"/proc/self/cgroup", "0::/\n",
                                             "/sys/fs/cgroup/cpu.max", "400000 100000\n"}},
    {"the cgroup above has less", 2, {"/proc/self/cgroup", "0::/a/b/c\n",
                                      "/sys/fs/cgroup/a/b/c/cpu.max", "max 100000\n",
                                      "/sys/fs/cgroup/a/b/cpu.max", "800000 100000\n",
                                      "/sys/fs/cgroup/a/cpu.max", "150000 100000\n"}},
    {"the path is the host's", 5, {"/proc/self/cgroup", "0::/system.slice/docker-1.scope\n",
                                   "/sys/fs/cgroup/cpu.max", "500000 100000\n"}},
    {"version 1", 2, {"/proc/self/cgroup", "9:memory:/x\n4:cpu,cpuacct:/docker/1\n",
                      "/sys/fs/cgroup/cpu/docker/1/cpu.cfs_quota_us", "120000\n",
                      "/sys/fs/cgroup/cpu/docker/1/cpu.cfs_period_us", "100000\n"}},
    {"version 1 in its other place", 1, {"/proc/self/cgroup", "4:cpu,cpuacct:/\n",
                                         "/sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us", "1000\n",
                                         "/sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us", "5000\n"}},
    {"version 1, no quota", 0, {"/proc/self/cgroup", "4:cpu,cpuacct:/\n",
                                "/sys/fs/cgroup/cpu/cpu.cfs_quota_us", "-1\n",
                                "/sys/fs/cgroup/cpu/cpu.cfs_period_us", "100000\n"}},
    {"another controller's group does not count", 0,
     {"/proc/self/cgroup", "4:cpuset:/a\n3:cpu:/b\n",
      "/sys/fs/cgroup/cpu/a/cpu.cfs_quota_us", "100000\n",
      "/sys/fs/cgroup/cpu/a/cpu.cfs_period_us", "100000\n"}},
    {"what is no number is no quota", 0, {"/proc/self/cgroup", "0::/\n:\n\nx",
                                          "/sys/fs/cgroup/cpu.max", "?\n"}},
    {"a period of 0", 0, {"/proc/self/cgroup", "0::/\n", "/sys/fs/cgroup/cpu.max", "100000 0\n"}},
};

static void test_quota(void **state) {
    (void)state;
    for (size_t i = 0; i < sizeof containers / sizeof *containers; i++) {
        const Container *c = &containers[i];
        char root[] = "/tmp/threads-XXXXXX", remove[64];
        assert_non_null(mkdtemp(root));
        for (int k = 0; k < 8 && c->file[k]; k += 2) put(root, c->file[k], c->file[k + 1]);
        int got = quota_cores(root), want = c->cores ? c->cores : INT_MAX;
        if (got != want) fail_msg("%s: %d cores, not %d", c->name, got, want);
        snprintf(remove, sizeof remove, "rm -r %s", root);
        assert_int_equal(system(remove), 0);
    }
    assert_in_range(n_cpus(), 1, n_cores());
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_every_task_once), cmocka_unit_test(test_wakes_are_bounded),
        cmocka_unit_test(test_threads_without_a_core_sleep),
        cmocka_unit_test(test_no_worker_is_waited_for), cmocka_unit_test(test_late_worker),
        cmocka_unit_test(test_worker_that_always_looks),
        cmocka_unit_test(test_queues), cmocka_unit_test(test_quota),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
