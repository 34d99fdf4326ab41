/* fetch.cu - in a step of many tokens, experts that lie with the CPU are fetched to the GPU.
 *
 * Many tokens want nearly all experts of a layer.  The CPU would need more time to multiply them
 * than the bus needs to bring their weights, while a few tokens want so few that the CPU is done
 * first.  The GPU has two rooms for fetched layers, which take turns: while it multiplies with what
 * one room holds, a thread of the host fills the other.  A room is filled as the weights' memory
 * is (load.cu), through pinned memory that is kept.  A fetched layer is computed as one whose
 * experts lie on the GPU. */
#ifndef FETCH_CU
#define FETCH_CU

#include "gpu.h"
#include "load.cu"

/* The fewest tokens of a step that fetches.  Computed from bytes and bandwidths, not measured: a
 * layer of the 26B-A4B is 0.43 GB, 36 ms on a bus of 12 GB/s.  A CPU of eight cores with AVX2
 * multiplies 128 tokens in 20 ms, 256 in 40.  On a bus of 24 GB/s the two meet at 128.  To tune it,
 * compare prompts of 64 to 512 tokens with --cpu-experts 30 and --chunk of the prompt's length.
 * The tests have short prompts. */
#ifndef FETCH_TOKENS
#define FETCH_TOKENS 128
#endif

/* The layers that are fetched are the first n_layers of the model; layer i's room is room[i % 2].
 * thread.lock guards what stands below it. */
typedef struct {
    Store *layer;                       /* host [layers of the model]: each one's place in a room */
    int n_layers;                       /* 0: nothing is fetched */
    Arena room[2];                      /* of the GPU's memory */
    uint8_t *buffer;                    /* host, pinned: see fill_store */
    size_t readers;                     /* threads that fill it */
    cudaStream_t stream;                /* which copies from there */
    cudaEvent_t used[2];                /* the GPU has multiplied with what the room held */
    Bringer thread;
    int fetched;                        /* so many layers of this step have been fetched */
    int end;                            /* the first layer that may not be fetched yet */
    int busy;                           /* the thread fills a room */
} Fetch;

/* The thread: fetches layer after layer, as far as it may. */
static void *fetch_layers(void *arg) {
    Fetch *f = (Fetch *)arg;
    Error err;
    pthread_mutex_lock(&f->thread.lock);
    while (!f->thread.quit) {
        const int i = f->fetched;
        if (i >= f->end) {
            pthread_cond_wait(&f->thread.changed, &f->thread.lock);
            continue;
        }
        f->busy = 1;
        pthread_mutex_unlock(&f->thread.lock);
        check(cudaEventSynchronize(f->used[i % 2]), "fetching experts");
        if (fill_store(&f->layer[i], f->buffer, f->readers, f->stream, NULL, &err))
            bringing_failed(&err);
        pthread_mutex_lock(&f->thread.lock);
        f->fetched++;
        f->busy = 0;
        pthread_cond_broadcast(&f->thread.changed);
    }
    pthread_mutex_unlock(&f->thread.lock);
    return NULL;
}

/* Lets the thread fetch the layers before `end`.  f->thread.lock is held. */
static void may_fetch(Fetch *f, int end) {
    f->end = end < f->n_layers ? end : f->n_layers;
    pthread_cond_broadcast(&f->thread.changed);
}

/* Waits until the thread fetches nothing.  What an abandoned step had fetched is forgotten, and
 * f->layer may be changed until fetch_begin. */
static void fetch_halt(Fetch *f) {
    pthread_mutex_lock(&f->thread.lock);
    f->end = 0;
    while (f->busy) pthread_cond_wait(&f->thread.changed, &f->thread.lock);
    f->fetched = 0;
    pthread_mutex_unlock(&f->thread.lock);
}

/* A step begins that fetches. */
static void fetch_begin(Fetch *f) {
    fetch_halt(f);
    pthread_mutex_lock(&f->thread.lock);
    may_fetch(f, 2);
    pthread_mutex_unlock(&f->thread.lock);
}

/* Waits until layer i of this step is in its room. */
static void fetch_await(Fetch *f, int i) {
    pthread_mutex_lock(&f->thread.lock);
    while (f->fetched <= i) pthread_cond_wait(&f->thread.changed, &f->thread.lock);
    pthread_mutex_unlock(&f->thread.lock);
}

/* All that reads layer i has been launched on `stream`: its room is free for layer i + 2 when that
 * has ended. */
static void fetch_leave(Fetch *f, int i, cudaStream_t stream) {
    check(cudaEventRecord(f->used[i % 2], stream), "fetching experts");
    pthread_mutex_lock(&f->thread.lock);
    may_fetch(f, i + 3);
    pthread_mutex_unlock(&f->thread.lock);
}

/* Takes memory for the rooms, whose sizes room[] has counted, and for the buffers.  Returns 0, or
 * -1 with err; fetch_close frees all of it in either case. */
static int fetch_take(Fetch *f, int n_threads, Error *err) {
    f->readers = smaller_of(n_threads, READERS);
    for (int k = 0; k < 2; k++)
        if (f->room[k].used && take_memory(&f->room[k], "experts of long prompts", err)) return -1;
    cudaError_t e = cudaStreamCreate(&f->stream);
    for (int k = 0; k < 2; k++)
        if (e == cudaSuccess) e = cudaEventCreateWithFlags(&f->used[k], cudaEventDisableTiming);
    if (e != cudaSuccess) return fail(err, "GPU: %s", cudaGetErrorString(e));
    return take_buffers(&f->buffer, f->readers, err);
}

/* Starts the thread.  f->layer says what lies where, and f must not move.  Returns 0, or -1 with
 * err. */
static int fetch_start(Fetch *f, Error *err) {
    return bringer_start(&f->thread, fetch_layers, f, err);
}

static void fetch_close(Fetch *f, int n_layers) {
    bringer_close(&f->thread);
    for (int k = 0; k < 2; k++) {
        give(&f->room[k]);
        if (f->used[k]) cudaEventDestroy(f->used[k]);
    }
    if (f->stream) cudaStreamDestroy(f->stream);
    if (f->buffer) cudaFreeHost(f->buffer);
    for (int i = 0; f->layer && i < n_layers; i++) free(f->layer[i].extent);
    free(f->layer);
}

#endif
