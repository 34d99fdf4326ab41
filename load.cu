/* load.cu - the GPU's memory, and how the weights come into it.
 *
 * The memory is counted first, then taken in one piece and filled front to back, a block at a
 * time.  Threads put blocks together in pinned memory, which the GPU fetches by itself while
 * they prepare the next ones.  They read the mapped file by memcpy: the kernel is told ahead
 * what of it is wanted, so that a disk has many requests to work on; from the page cache each
 * thread brings some GB/s, together more than the bus takes. */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

/* An operation that fails on the GPU cannot be undone: the program says which, and ends. */
static void check(cudaError_t e, const char *what) {
    if (e == cudaSuccess) return;
    fprintf(stderr, "gemma4: GPU: %s: %s\n", what, cudaGetErrorString(e));
    exit(1);
}

/* One piece of the GPU's memory, handed out front to back.  With base NULL it only counts. */
typedef struct {
    uint8_t *base;
    size_t used;
} Arena;

static void *take(Arena *a, size_t bytes) {
    void *p = a->base ? a->base + a->used : NULL;
    a->used += (bytes + 255) / 256 * 256;
    return p;
}

/* What lies at `at` in the weights' memory: see put_rows. */
typedef struct {
    size_t at;
    const uint8_t *host;
    size_t rows, bytes, pitch;
} Extent;

/* The weights' memory, and what of the files shall be in it. */
typedef struct {
    Arena memory;
    Extent *extent;                     /* [n] in the order of their places, until they are loaded */
    int n, room;
    size_t from_file;                   /* bytes that load_store brings; what is made of them lies behind */
} Store;

/* Room for `rows` runs of `bytes` bytes each that lie one after another at host; on the GPU they
 * begin every `pitch` bytes. They are copied by load_store: until then they must stay where they
 * are. */
static void *put_rows(Store *s, const void *host, size_t rows, size_t bytes, size_t pitch) {
    void *p = take(&s->memory, rows * pitch);
    if (!p) return NULL;
    if (s->n == s->room) {
        s->room = s->room ? 2 * s->room : 1024;
        s->extent = (Extent *)xrealloc(s->extent, s->room, sizeof *s->extent);
    }
    s->extent[s->n++] = (Extent){(size_t)((uint8_t *)p - s->memory.base), (const uint8_t *)host, rows, bytes, pitch};
    return p;
}

#ifndef LOAD_BLOCK
#define LOAD_BLOCK ((size_t)16 << 20)
#endif
#define READERS 8

typedef struct {
    const Store *s;
    size_t n_blocks, next, copied;      /* all; the first that no thread has begun; the first that is not on the GPU */
    uint8_t *buffer;                    /* [n_buffers][LOAD_BLOCK]; block i is in i % n_buffers */
    size_t n_buffers;
    char full[READERS + 2];
    pthread_mutex_t lock;
    pthread_cond_t changed;
} Loader;

/* What shall be in the weights' memory from `from` to `to`, into out; between the extents is
 * zero. */
static void gather(const Store *s, size_t from, size_t to, uint8_t *out) {
    const uintptr_t page_bytes = (uintptr_t)sysconf(_SC_PAGESIZE);         /* 4, 16 or 64 KB on ARM */
    int first = 0, end = s->n;
    while (first < end) {               /* the first extent that ends behind `from` */
        int i = (first + end) / 2;
        if (s->extent[i].at + s->extent[i].rows * s->extent[i].pitch > from) end = i;
        else first = i + 1;
    }
    for (int i = first; i < s->n && s->extent[i].at < to; i++) {
        const Extent *p = &s->extent[i];
        size_t skipped = from > p->at ? (from - p->at) / p->pitch : 0;
        size_t rows = (to - p->at + p->pitch - 1) / p->pitch;
        if (rows > p->rows) rows = p->rows;
        uintptr_t page = (uintptr_t)(p->host + skipped * p->bytes) / page_bytes * page_bytes;
        madvise((void *)page, (uintptr_t)(p->host + rows * p->bytes) - page, MADV_WILLNEED);
    }
    size_t done = from;
    for (int i = first; i < s->n && s->extent[i].at < to; i++) {
        const Extent *p = &s->extent[i];
        for (size_t r = from > p->at ? (from - p->at) / p->pitch : 0; r < p->rows && p->at + r * p->pitch < to; r++) {
            size_t row = p->at + r * p->pitch, a = row > from ? row : from, b = row + p->bytes < to ? row + p->bytes : to;
            if (a >= b) continue;
            memset(out + (done - from), 0, a - done);
            memcpy(out + (a - from), p->host + r * p->bytes + (a - row), b - a);
            done = b;
        }
    }
    memset(out + (done - from), 0, to - done);
}

static void *read_blocks(void *arg) {
    Loader *l = (Loader *)arg;
    pthread_mutex_lock(&l->lock);
    while (l->next < l->n_blocks) {
        size_t i = l->next++, from = i * LOAD_BLOCK, to = from + LOAD_BLOCK;
        if (to > l->s->from_file) to = l->s->from_file;
        while (i >= l->copied + l->n_buffers) pthread_cond_wait(&l->changed, &l->lock);
        pthread_mutex_unlock(&l->lock);
        gather(l->s, from, to, l->buffer + i % l->n_buffers * LOAD_BLOCK);
        pthread_mutex_lock(&l->lock);
        l->full[i % l->n_buffers] = 1;
        pthread_cond_broadcast(&l->changed);
    }
    pthread_mutex_unlock(&l->lock);
    return NULL;
}

/* Fills the memory with what put_rows has noted.  n_threads read; loading: see
 * DeviceOptions.  0, or -1 with err. */
static int load_store(Store *s, cudaStream_t stream, int n_threads, void (*loading)(double done), Error *err) {
    size_t used = s->from_file, n_blocks = (used + LOAD_BLOCK - 1) / LOAD_BLOCK;
    size_t readers = n_threads < READERS ? n_threads : READERS, started = 0;
    if (readers > n_blocks) readers = n_blocks;
    Loader l = {s, n_blocks, 0, 0, NULL, readers + 2, {0}, PTHREAD_MUTEX_INITIALIZER, PTHREAD_COND_INITIALIZER};
    pthread_t thread[READERS];
    cudaEvent_t copied[2];
    if (cudaMallocHost((void **)&l.buffer, l.n_buffers * LOAD_BLOCK) != cudaSuccess) {
        cudaGetLastError();
        return fail(err, "GPU: no %zu MB of pinned memory to load the weights through", (l.n_buffers * LOAD_BLOCK) >> 20);
    }
    while (started < readers && !pthread_create(&thread[started], NULL, read_blocks, &l)) started++;
    for (int k = 0; k < 2; k++) check(cudaEventCreateWithFlags(&copied[k], cudaEventDisableTiming), "loading the weights");
    for (size_t i = 0; started && i < n_blocks; i++) {
        size_t from = i * LOAD_BLOCK, slot = i % l.n_buffers;
        pthread_mutex_lock(&l.lock);
        while (!l.full[slot]) pthread_cond_wait(&l.changed, &l.lock);
        l.full[slot] = 0;
        pthread_mutex_unlock(&l.lock);
        check(cudaMemcpyAsync(s->memory.base + from, l.buffer + slot * LOAD_BLOCK, used - from < LOAD_BLOCK ? used - from : LOAD_BLOCK,
                              cudaMemcpyHostToDevice, stream), "loading the weights");
        check(cudaEventRecord(copied[i % 2], stream), "loading the weights");
        if (i) {                        /* while this block travels, the buffer of the one before it becomes free */
            check(cudaEventSynchronize(copied[(i - 1) % 2]), "loading the weights");
            pthread_mutex_lock(&l.lock);
            l.copied = i;
            pthread_cond_broadcast(&l.changed);
            pthread_mutex_unlock(&l.lock);
        }
        if (loading) loading((double)(i + 1) / n_blocks);
    }
    check(cudaStreamSynchronize(stream), "loading the weights");
    for (size_t k = 0; k < started; k++) pthread_join(thread[k], NULL);
    for (int k = 0; k < 2; k++) cudaEventDestroy(copied[k]);
    cudaFreeHost(l.buffer);
    free(s->extent);
    s->extent = NULL;
    s->n = s->room = 0;
    return started ? 0 : fail(err, "no thread to load the weights");
}
