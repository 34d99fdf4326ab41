/* load.cu - the GPU's memory, and how the weights come into it.
 *
 * The weights' memory is counted first, then taken in one piece, then filled front to back, a block
 * of LOAD_BLOCK bytes at a time.  Reader threads put the blocks together in pinned memory of the
 * host, each block's rows from their places in the mapped files.  The readers also bring the scales
 * and zero points of FP8 and integers into the form that the kernels read (MakeRow).  The GPU
 * fetches finished blocks from there by itself (cudaMemcpyAsync), while the readers prepare the
 * next ones.
 *
 * The readers use memcpy on the mapped file.  madvise tells the operating system ahead which pages
 * will be wanted, so that a disk has many requests to work on.  From the page cache each thread
 * brings some GB/s, and all of them more than the bus to the GPU takes.
 *
 * A GPU that shares the machine's memory (GB10, Jetson) must not hold the weights twice.  Where it
 * can read the mapped file itself, matrices stay there whose rows the kernels can read as they are
 * (put_matrix).  All others are copied as on any GPU, and the pages of the file that held them are
 * dropped behind the copy (forget). */
#ifndef LOAD_CU
#define LOAD_CU

#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "gpu.h"
#include "product.h"

/* Ends the program when a call of CUDA has failed, as what the GPU does cannot be undone.  what: of
 * the operation, for the message. */
static void check(cudaError_t e, const char *what) {
    if (e == cudaSuccess) return;
    fprintf(stderr, "gemma4: GPU: %s: %s\n", what, cudaGetErrorString(e));
    exit(1);
}

/* One piece of the GPU's memory, handed out front to back.  Whoever wants one calls take for all
 * pieces twice: first with base NULL, to count the bytes, and again with base pointing to memory
 * of `used` bytes. */
typedef struct {
    uint8_t *base;
    size_t used;
} Arena;

/* The next `bytes` bytes, at a multiple of 256; NULL while base is NULL. */
static void *take(Arena *a, size_t bytes) {
    void *p = a->base ? a->base + a->used : NULL;
    a->used += (bytes + 255) / 256 * 256;
    return p;
}

/* Writes row `row` of an array that is made from the matrix w of the file. */
typedef void MakeRow(const Weight &w, size_t row, uint8_t *to);

/* A matrix, or another array, in the weights' memory: see put_rows. */
typedef struct {
    size_t at;                          /* bytes from the beginning of the weights' memory */
    const uint8_t *host;                /* its bytes on the host */
    size_t rows, bytes, pitch;
    size_t host_bytes;                  /* of a row on the host; 0: the host has no such rows */
    MakeRow *make;                      /* NULL: a row is copied as it is */
    Weight w;                           /* with `make` */
    int is_e4m3;                        /* 1: no byte may be NaN, as the kernels read it as 480 */
} Extent;

/* The weights' memory on the GPU, and what load_store shall copy into it. */
typedef struct {
    Arena memory;
    Extent *extent;                     /* [n] by rising `at`; NULL after load_store */
    int n, room;                        /* room: Extents that *extent has memory for */
    /* load_store fills bytes 0 … from_file - 1.  The memory behind them is for what the GPU
     * computes from the weights. */
    size_t from_file;
    int in_place;                       /* 1: matrices stay in the mapped file where they can */
    size_t left;                        /* the bytes of those that do */
    int forgets;                        /* 1: the file's pages are dropped behind the copy */
} Store;

/* Returns room in the GPU's memory for the rows of e (NULL while s->memory only counts), and notes
 * e for load_store.  e.at is set here. */
static void *put_extent(Store *s, Extent e) {
    void *p = take(&s->memory, e.rows * e.pitch);
    if (!p) return NULL;
    if (s->n == s->room) {
        s->room = s->room ? 2 * s->room : 1024;
        s->extent = (Extent *)xrealloc(s->extent, s->room, sizeof *s->extent);
    }
    e.at = (size_t)((uint8_t *)p - s->memory.base);
    s->extent[s->n++] = e;
    return p;
}

/* put_extent for `rows` rows that begin every `pitch` bytes.  load_store copies the rows' first
 * `bytes` bytes from host, where the rows lie without gaps, and fills the rest with zeros.  host is
 * the caller's and must stay as it is until then. */
static void *put_rows(Store *s, const void *host, size_t rows, size_t bytes, size_t pitch) {
    return put_extent(s, {0, (const uint8_t *)host, rows, bytes, pitch, bytes, NULL, {}, 0});
}

/* Populates the page tables with a range of the mapped file; since Linux 5.14. */
#ifndef MADV_POPULATE_READ
#define MADV_POPULATE_READ 22
#endif

/* put_extent for rows of a matrix, which may also stay in the file.  There a matrix begins at any
 * multiple of 2 or 4 bytes, while the kernels read 16 bytes at once: so it is luck where one can
 * stay.  FP8 is copied because its numbers are checked on the way.  The pages are read in here: if
 * the GPU met a page that is not there, it would wait for each one by itself. */
static const uint8_t *put_matrix(Store *s, const Extent &e) {
    const size_t bytes = e.rows * e.pitch;
    const uintptr_t at = (uintptr_t)e.host, page = at - at % (uintptr_t)sysconf(_SC_PAGESIZE);
    if (!s->in_place || e.make || e.is_e4m3 || e.bytes != e.pitch || at % 16)
        return (const uint8_t *)put_extent(s, e);
    s->left += bytes;
    if (s->memory.base) madvise((void *)page, at + bytes - page, MADV_POPULATE_READ);
    return e.host;
}

/* Bytes of a block, and the most threads that read.  Guesses: nobody has timed other values.  To
 * tune them, time how long `gemma4` takes until the first token, with the files in the page cache
 * and after `echo 3 > /proc/sys/vm/drop_caches`.  The tests have small blocks, so that there are
 * many. */
#ifndef LOAD_BLOCK
#define LOAD_BLOCK ((size_t)16 << 20)
#endif
#define READERS 8

/* What the readers and load_store share.  lock guards all but what a buffer holds.  Buffer i %
 * n_buffers is for block i: a reader fills it once block i - n_buffers is on the GPU, then `full`
 * is 1 until load_store has begun to copy it. */
typedef struct {
    const Store *s;
    size_t n_blocks;
    size_t next;                        /* the first block that no reader has begun */
    size_t copied;                      /* the first block that is not on the GPU yet */
    uint8_t *buffer;                    /* [n_buffers][LOAD_BLOCK], pinned */
    size_t n_buffers;
    char full[READERS + 2];             /* [n_buffers] */
    pthread_mutex_t lock;
    pthread_cond_t changed;             /* told whenever `copied` or `full` changes */
    int found_nan;                      /* 1: a weight of FP8 is NaN */
} Loader;

static size_t smaller_of(size_t a, size_t b) { return a < b ? a : b; }

/* The first row of p that ends behind byte `from` of the weights' memory. */
static size_t first_row(const Extent *p, size_t from) {
    return from > p->at ? (from - p->at) / p->pitch : 0;
}

/* The index of the first extent that ends behind byte `from`, by binary search; n: none does. */
static int first_extent(const Store *s, size_t from) {
    int first = 0, end = s->n;
    while (first < end) {
        int i = (first + end) / 2;
        if (s->extent[i].at + s->extent[i].rows * s->extent[i].pitch > from) end = i;
        else first = i + 1;
    }
    return first;
}

/* Tells the operating system that the rows of p between bytes `from` and `to` of the weights'
 * memory will be read. */
static void want(const Extent *p, size_t from, size_t to) {
    const uintptr_t page_bytes = (uintptr_t)sysconf(_SC_PAGESIZE);  /* 4, 16 or 64 KB on ARM */
    size_t rows = smaller_of(p->rows, (to - p->at + p->pitch - 1) / p->pitch);
    uintptr_t begin = (uintptr_t)(p->host + first_row(p, from) * p->host_bytes);
    uintptr_t page = begin / page_bytes * page_bytes;
    madvise((void *)page, (uintptr_t)(p->host + rows * p->host_bytes) - page, MADV_WILLNEED);
}

/* Drops the pages of the file that hold the rows which end between bytes `from` and `to` of the
 * weights' memory. */
static void forget(const Store *s, size_t from, size_t to) {
    for (int i = first_extent(s, from); i < s->n && s->extent[i].at < to; i++) {
        const Extent *p = &s->extent[i];
        const size_t first = first_row(p, from), end = smaller_of(p->rows, (to - p->at) / p->pitch);
        if (end <= first) continue;
        forget_pages(p->host + first * p->host_bytes, (end - first) * p->host_bytes);
    }
}

/* Whether one of n E4M3 numbers is NaN. */
static int has_nan(const uint8_t *v, size_t n) {
    int found = 0;
    for (size_t i = 0; i < n; i++) found |= (v[i] & 0x7f) == 0x7f;
    return found;
}

/* Writes to `out` what shall be in bytes from … to - 1 of the weights' memory: the rows of the
 * extents, and zeros between them.  Returns 1 where a number of FP8 is NaN, else 0. */
static int gather(const Store *s, size_t from, size_t to, uint8_t *out) {
    const int first = first_extent(s, from);
    size_t longest = 0;                 /* of the rows that are made */
    for (int i = first; i < s->n && s->extent[i].at < to; i++) {
        const Extent *p = &s->extent[i];
        if (p->host_bytes) want(p, from, to);
        if (p->make && p->bytes > longest) longest = p->bytes;
    }
    uint8_t *made = longest ? (uint8_t *)xmalloc(longest) : NULL;
    size_t done = from;
    int found_nan = 0;
    for (int i = first; i < s->n && s->extent[i].at < to; i++) {
        const Extent *p = &s->extent[i];
        for (size_t r = first_row(p, from); r < p->rows && p->at + r * p->pitch < to; r++) {
            size_t row = p->at + r * p->pitch, a = row > from ? row : from;
            size_t b = smaller_of(row + p->bytes, to);
            if (a >= b) continue;
            memset(out + (done - from), 0, a - done);
            const uint8_t *is = p->host + r * p->host_bytes;
            if (p->make) {
                p->make(p->w, r, made);
                is = made;
            }
            memcpy(out + (a - from), is + (a - row), b - a);
            if (p->is_e4m3) found_nan |= has_nan(is + (a - row), b - a);
            done = b;
        }
    }
    memset(out + (done - from), 0, to - done);
    free(made);
    return found_nan;
}

/* A reader thread: takes one block after the other, until all are taken. */
static void *read_blocks(void *arg) {
    Loader *l = (Loader *)arg;
    pthread_mutex_lock(&l->lock);
    while (l->next < l->n_blocks) {
        size_t i = l->next++, from = i * LOAD_BLOCK;
        size_t to = smaller_of(from + LOAD_BLOCK, l->s->from_file);
        while (i >= l->copied + l->n_buffers) pthread_cond_wait(&l->changed, &l->lock);
        pthread_mutex_unlock(&l->lock);
        int found_nan = gather(l->s, from, to, l->buffer + i % l->n_buffers * LOAD_BLOCK);
        if (l->s->forgets) forget(l->s, from, to);
        pthread_mutex_lock(&l->lock);
        l->found_nan |= found_nan;
        l->full[i % l->n_buffers] = 1;
        pthread_cond_broadcast(&l->changed);
    }
    pthread_mutex_unlock(&l->lock);
    return NULL;
}

/* Waits until block i is in its buffer, and takes it. */
static void await_block(Loader *l, size_t i) {
    const size_t slot = i % l->n_buffers;
    pthread_mutex_lock(&l->lock);
    while (!l->full[slot]) pthread_cond_wait(&l->changed, &l->lock);
    l->full[slot] = 0;
    pthread_mutex_unlock(&l->lock);
}

/* Tells the readers that the blocks before block `copied` are on the GPU. */
static void tell_copied(Loader *l, size_t copied) {
    pthread_mutex_lock(&l->lock);
    l->copied = copied;
    pthread_cond_broadcast(&l->changed);
    pthread_mutex_unlock(&l->lock);
}

/* Copies the blocks to the GPU as the readers finish them.  While block i travels, the buffer of
 * block i - 1 becomes free.  Returns when all are there. */
static void copy_blocks(Loader *l, cudaStream_t stream, void (*loading)(double done)) {
    const char *what = "loading the weights";
    const Store *s = l->s;
    cudaEvent_t copied[2];              /* of the blocks with an even number, and an odd one */
    for (int k = 0; k < 2; k++)
        check(cudaEventCreateWithFlags(&copied[k], cudaEventDisableTiming), what);
    for (size_t i = 0; i < l->n_blocks; i++) {
        const size_t from = i * LOAD_BLOCK, bytes = smaller_of(s->from_file - from, LOAD_BLOCK);
        await_block(l, i);
        check(cudaMemcpyAsync(s->memory.base + from, l->buffer + i % l->n_buffers * LOAD_BLOCK,
                              bytes, cudaMemcpyHostToDevice, stream), what);
        check(cudaEventRecord(copied[i % 2], stream), what);
        if (i) {
            check(cudaEventSynchronize(copied[(i - 1) % 2]), what);
            tell_copied(l, i);
        }
        if (loading) loading((double)(i + 1) / l->n_blocks);
    }
    check(cudaStreamSynchronize(stream), what);
    for (int k = 0; k < 2; k++) cudaEventDestroy(copied[k]);
}

/* Pinned memory for so many readers, which the caller frees with cudaFreeHost.  It has two buffers
 * more than readers: one block travels, and one is ready to.  Returns 0, or -1 with err. */
static int take_buffers(uint8_t **buffer, size_t readers, Error *err) {
    const size_t bytes = (readers + 2) * LOAD_BLOCK;
    if (cudaMallocHost((void **)buffer, bytes) == cudaSuccess) return 0;
    cudaGetLastError();                 /* the error is dealt with here */
    *buffer = NULL;
    return fail(err, "GPU: no %zu MB of pinned memory to load the weights through", bytes >> 20);
}

/* Fails: gather has found a NaN. */
static int fail_of_nan(Error *err) {
    return fail(err, "GPU: a weight of FP8 is NaN: the checkpoint is damaged");
}

/* Fills the weights' memory with what put_extent has noted, by so many readers, through a buffer
 * that take_buffers has made for as many.  loading: see DeviceOptions; may be NULL.  Returns when
 * all is on the GPU: 0, or -1 with err (no thread, NaN). */
static int fill_store(const Store *s, uint8_t *buffer, size_t readers, cudaStream_t stream,
                      void (*loading)(double done), Error *err) {
    size_t n_blocks = (s->from_file + LOAD_BLOCK - 1) / LOAD_BLOCK, started = 0;
    Loader l = {s, n_blocks, 0, 0, buffer, readers + 2, {0}, PTHREAD_MUTEX_INITIALIZER,
                PTHREAD_COND_INITIALIZER, 0};
    pthread_t thread[READERS];
    while (started < readers && !pthread_create(&thread[started], NULL, read_blocks, &l)) started++;
    if (started) copy_blocks(&l, stream, loading);
    for (size_t k = 0; k < started; k++) pthread_join(thread[k], NULL);
    if (l.found_nan) return fail_of_nan(err);
    return started ? 0 : fail(err, "no thread to load the weights");
}

/* fill_store with at most n_threads readers; forgets the notes.  Returns 0, or -1 with err. */
static int load_store(Store *s, cudaStream_t stream, int n_threads, void (*loading)(double done),
                      Error *err) {
    const size_t n_blocks = (s->from_file + LOAD_BLOCK - 1) / LOAD_BLOCK;
    const size_t readers = smaller_of(n_threads < READERS ? n_threads : READERS, n_blocks);
    uint8_t *buffer;
    check(cudaDeviceGetAttribute(&s->forgets, cudaDevAttrIntegrated, 0), "loading the weights");
    int bad = take_buffers(&buffer, readers, err);
    if (!bad) {
        bad = fill_store(s, buffer, readers, stream, loading, err);
        cudaFreeHost(buffer);
        /* Reading a block has brought some pages of its neighbours back. */
        if (s->forgets) forget(s, 0, s->from_file);
    }
    free(s->extent);
    s->extent = NULL;
    s->n = s->room = 0;
    return bad;
}

/* ---- what a device puts into it ---- */

/* Puts `bytes` bytes of the host's memory into the GPU's; returns where they are there. */
static void *upload(Store *s, const void *host, size_t bytes) {
    return put_rows(s, host, 1, bytes, bytes);
}

/* *v [n] becomes a pointer to its copy on the GPU. */
static void upload_vector(Store *s, float **v, int n) {
    if (*v) *v = (float *)upload(s, *v, n * sizeof(float));
}

/* Scale number i of row `row` of w, FP8 or integers. */
static float scale_of(const Weight &w, size_t row, int i) {
    return float_at(w.scale_dtype, w.block_scale,
                    row / w.scale_rows * n_blocks(w.cols, w.scale_cols) + i);
}

/* What is subtracted from the integers of w's row `row` in its group of columns `group`. */
static int zero_of(const Weight &w, size_t row, int group) {
    if (!w.zero) return w.bits == 4 ? 8 : 128;
    const size_t word = row / 8 * (w.cols / w.scale_cols) + group;
    return w.zero[4 * word + row % 8 / 2] >> (row % 2 ? 4 : 0) & 15;
}

/* The scales of a row of FP8: float32 [units], or a single one. */
static void make_fp8_scales(const Weight &w, size_t row, uint8_t *to) {
    for (int i = 0; i < scale_pitch(w) / 4; i++) {
        const float scale = scale_of(w, row, i);
        memcpy(to + 4 * i, &scale, sizeof scale);
    }
}

/* The scales of a row of INT8: float32 [cols / 32]. */
static void make_int8_scales(const Weight &w, size_t row, uint8_t *to) {
    for (int i = 0; i < w.cols / 32; i++) {
        const float scale = scale_of(w, row, i / (w.scale_cols / 32));
        memcpy(to + 4 * i, &scale, sizeof scale);
    }
}

/* The scales of a row of INT4, and its zero points: see product.h. */
static void make_int4_scales(const Weight &w, size_t row, uint8_t *to) {
    const int step = scale_step(w), of_scale = w.scale_cols / 32, groups = w.cols / w.scale_cols;
    memset(to, 0, scale_pitch(w));
    for (int i = 0; i < w.cols / 32; i++) {
        uint8_t *unit = to + i / 8 * step;
        memcpy(unit + i % 8 * 2, w.block_scale + 2 * (row * groups + i / of_scale), 2);
        if (w.zero) unit[16 + i % 8 / 2] |= zero_of(w, row, i / of_scale) << 4 * (i % 2);
    }
}

/* A row of INT4 as INT8: 128 + the number without its zero point. */
static void make_int8(const Weight &w, size_t row, uint8_t *to) {
    const uint8_t *from = w.data + row * w.cols / 2;
    for (int i = 0; i < w.cols; i++)
        to[i] = 128 + (from[i / 2] >> 4 * (i % 2) & 15) - zero_of(w, row, i / w.scale_cols);
}

/* Puts the scales of `file`, a matrix of FP8 or integers, into the GPU's memory, with a row for
 * each row.  w: the matrix as it is there. */
static void *put_scales(Store *s, const Weight &file, const Weight &w) {
    MakeRow *make = is_int4(w) ? make_int4_scales : make_int8_scales;
    size_t pitch = scale_pitch(w), bytes = w.dtype == DT_I32 ? w.cols / 8 : pitch;
    if (w.dtype == DT_F8_E4M3) make = make_fp8_scales;
    if (is_int4(w)) bytes = pitch;
    size_t host_bytes = n_blocks(w.cols, file.scale_cols) * dtype_size[file.scale_dtype];
    if (file.scale_rows > 1) host_bytes = 0;
    return put_extent(s, {0, file.block_scale, (size_t)w.rows, bytes, pitch, host_bytes, make,
                          file, 0});
}

/* *w becomes the same matrix in the GPU's memory: see product.h. */
static void upload_weight(Store *s, Weight *w) {
    if (!w->data) return;
    const Weight file = *w;
    const size_t rows = w->rows, pitch = row_bytes(*w);
    const size_t bytes = stored_row_bytes(w);
    if (w->dtype == DT_I32 && w->bits == 4 && !is_int4(*w)) {
        w->bits = 8;
        w->zero = NULL;
        w->data = (const uint8_t *)put_extent(s, {0, file.data, rows, (size_t)w->cols, pitch, bytes,
                                                  make_int8, file, 0});
    } else
        w->data = put_matrix(s, {0, file.data, rows, bytes, pitch, bytes, NULL, {},
                                 w->dtype == DT_F8_E4M3});
    if (w->dtype == DT_U8) {
        const size_t scales = w->cols / 16, its_pitch = scale_pitch(*w);
        w->block_scale = put_matrix(s, {0, file.block_scale, rows, scales, its_pitch, scales, NULL,
                                        {}, 0});
    }
    else if (w->block_scale) w->block_scale = (const uint8_t *)put_scales(s, file, *w);
}

/* The program's share of the GPU's memory in bytes: what it may take (DeviceOptions.memory_limit;
 * 0: no limit) and what it has taken. */
static size_t gpu_limit, gpu_taken;

/* cudaMalloc and cudaFree, which count.  gpu_malloc returns NULL where there is no memory. */
static void *gpu_malloc(size_t bytes) {
    void *p;
    if (cudaMalloc(&p, bytes) == cudaSuccess) {
        gpu_taken += bytes;
        return p;
    }
    cudaGetLastError();                 /* it is dealt with */
    return NULL;
}
static void gpu_free(void *p, size_t bytes) {
    if (!p) return;
    gpu_taken -= bytes;
    cudaFree(p);
}

static int take_memory(Arena *a, const char *what, Error *err) {
    size_t bytes = a->used, free_bytes = 0, total = 0;
    if ((a->base = (uint8_t *)gpu_malloc(bytes))) return 0;
    cudaMemGetInfo(&free_bytes, &total);
    return fail(err, "GPU: no room for %s: %.2f GB wanted, %.2f of %.2f GB free", what,
                bytes * 1e-9, free_bytes * 1e-9, total * 1e-9);
}

/* ---- how much there is of it ---- */

/* Bytes of the machine's memory that are there for who wants them, files that it keeps included;
 * 0: not known. */
static size_t machine_available(void) {
    FILE *f = fopen("/proc/meminfo", "r");
    size_t kb = 0;
    char line[256];
    while (f && fgets(line, sizeof line, f))
        if (sscanf(line, "MemAvailable: %zu kB", &kb) == 1) break;
    if (f) fclose(f);
    return kb * 1024;
}

/* Gives the memory of an arena back. */
static void give(Arena *a) {
    gpu_free(a->base, a->used);
    *a = {};
}

/* What may be taken of the GPU's memory: a fiftieth stays free, as the kernels and graphs take
 * some, and every cudaMalloc is rounded up to 2 MB.  gpu_limit may leave less. */
static cudaError_t free_memory(size_t *room, size_t *total) {
    int shares = 0;
    size_t free_bytes = 0;
    cudaError_t e = cudaMemGetInfo(&free_bytes, total);
    if (e == cudaSuccess) e = cudaDeviceGetAttribute(&shares, cudaDevAttrIntegrated, 0);
    /* A GPU that shares the machine's memory (GB10) calls "free" only what holds no file's pages
     * either, the checkpoint's for one. */
    size_t available = shares ? machine_available() : 0;
    if (available > free_bytes) free_bytes = available < *total ? available : *total;
    *room = free_bytes > *total / 50 ? free_bytes - *total / 50 : 0;
    const size_t left = gpu_limit > gpu_taken ? gpu_limit - gpu_taken : 0;
    if (gpu_limit && *room > left) *room = left;
    return e;
}

/* ---- weights that come during a step ---- */

/* A thread of the host that brings weights while the GPU computes.  lock guards what the thread
 * shares with the rest of the program, which is told of each change by `changed`. */
typedef struct {
    pthread_t thread;
    int has_thread;
    pthread_mutex_t lock;
    pthread_cond_t changed;
    int quit;                           /* 1: the thread shall end */
} Bringer;

/* Starts the thread, which runs work(arg) until b->quit.  Returns 0, or -1 with err. */
static int bringer_start(Bringer *b, void *(*work)(void *), void *arg, Error *err) {
    pthread_mutex_init(&b->lock, NULL);
    pthread_cond_init(&b->changed, NULL);
    b->has_thread = !pthread_create(&b->thread, NULL, work, arg);
    return b->has_thread ? 0 : fail(err, "no thread to bring experts to the GPU");
}

/* Ends the thread, if it was started. */
static void bringer_close(Bringer *b) {
    if (!b->has_thread) return;
    pthread_mutex_lock(&b->lock);
    b->quit = 1;
    pthread_cond_broadcast(&b->changed);
    pthread_mutex_unlock(&b->lock);
    pthread_join(b->thread, NULL);
    pthread_mutex_destroy(&b->lock);
    pthread_cond_destroy(&b->changed);
}

/* Ends the program: a step that has begun cannot go on without its weights. */
static void bringing_failed(const Error *err) {
    fprintf(stderr, "gemma4: %s\n", err->text);
    exit(1);
}

#endif
