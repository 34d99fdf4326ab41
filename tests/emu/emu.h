/* emu.h - CUDA on the CPU, for tests: compiles a .cu file with the host compiler and runs its kernels.
 *
 * Included in place of <cuda_runtime.h>, <cuda_bf16.h>, <cuda_fp16.h>, <cuda_fp8.h>, <cuda_fp4.h> and ptx.h when a .cu
 * file is built with `g++ -x c++ -std=c++17 -DGEMMA4_EMU -Wno-unknown-pragmas` (for #pragma unroll) and linked with
 * emu.cpp, emu_runtime.cpp and emu_watch.cpp.  Best with -fsanitize=address,undefined.
 *
 * How it works
 *   A block's threads are fibers with stacks of their own.  A thread runs until it waits: at __syncthreads, or at an
 *   operation of its warp (shuffle, vote, __syncwarp, ldmatrix, mma), whose last lane to arrive computes the result for
 *   all.  Who runs next is drawn at random from all threads that can (EMU_SEED), so a missing barrier shows.  Threads
 *   that never wait share one stack and are plain calls.  Blocks run one after another in shuffled order.
 *   Shared memory - SHARED(type, name, dims) and DYNAMIC_SHARED(type, name) - is allocated with exactly its size and
 *   filled with 0xff (NaN, -1) for each block; so is what cudaMalloc gives.  AddressSanitizer therefore sees one byte
 *   too many, in shared memory as well.  With it, device memory is also out of bounds for the host (EMU_GUARD=0: not).
 *   Streams are lazy: launches and asynchronous copies run when the host waits for them, in random order where streams
 *   and events leave one, so a missing synchronisation shows (EMU_SYNC=1: at once).  Graphs replay what was captured.
 *   A kernel may wait for the host, if it looks at the host's memory by ptx_load_acquire_sys.  The
 *   kernel then stays as it is until the host waits or queries again (cudaStreamQuery), and no
 *   other kernel begins before it has ended.  So EMU_SEED alone still decides the order.
 *   cp.async copies at once or not before the wait, by chance, so that both a missing wait and a buffer refilled too
 *   early show.  So do wgmma's products, bulk copies of boxes, and arrivals at an mbarrier that wait for copies.
 *
 * What it reports, by kernel, block and thread, and aborts
 *   threads that wait for ever, and for what; an operation of a warp whose mask names a lane that waits elsewhere;
 *   __syncthreads in different lines (EMU_LOOSE=1: allowed); cp.async and ldmatrix on unaligned or not shared memory; boxes that
 *   a tensor map cannot have, more bytes than an mbarrier expects, a block that ends before its bulk copies have; any other
 *   access to an unaligned address, compiled with -fsanitize=alignment; in a kernel
 *   that is launched with programmatic dependent launch, threads that do not call ptx_grid_wait, or only after
 *   ptx_grid_launch_dependents; a host that waits for a kernel that waits for the host.
 *   Compiled with -fsanitize=thread: races, see emu_watch.cpp.
 *   More shared memory than was allowed, wrong launch sizes, copies beyond an allocation: errors of the API, as in CUDA.
 *
 * What it does not do
 *   Nothing runs at the same time: no data race inside one statement, no memory model (every write is seen at once; a
 *   missing volatile does not show, a missing __threadfence only to emu_watch.cpp), no timing.  A thread is only interrupted where it waits.
 *   A block never runs beside another one that is not of its cluster: no grid barrier, no spinning on what a later block
 *   writes (the last-block-done pattern is fine).  A cluster has 1024 threads at most, and no SHARED.  Programmatic dependent launch is plain stream order: what a kernel reads before
 *   ptx_grid_wait is never too old, but emu_watch.cpp reports it where it could be.
 *   No reconvergence: lanes are only together at operations with a mask, hence __activemask() is the caller alone.
 *   Approximate functions (__expf) are exact, tensor cores add in float in their own order, rounded (EMU_MMA=truncate: cut off, as
 *   emu.cpp says): compare with a tolerance.
 *   Kernels can read host memory unpunished.  __launch_bounds__, registers and bank conflicts are not looked at; so
 *   cudaOccupancyMaxActiveBlocksPerMultiprocessor knows threads and shared memory alone.
 *   assert() works in a kernel; a test framework's assertions, which longjmp off the fiber, do not.
 *   Plain __shared__ is refused: only SHARED() can be refilled for every block.
 *
 * Environment: EMU_SEED (1), EMU_CC (12.0) compute capability, EMU_SMS (8) multiprocessors, EMU_SHARED
 * (KB of shared memory of each, by default the compute capability's), EMU_MEMORY (bytes, 8 GB),
 * EMU_FILES (bytes, 0: of it that hold files' pages, on a device that shares the machine's memory),
 * EMU_PAGEABLE (1: the device says that it reads all of the machine's memory),
 * EMU_DEVICES (1; 0: cudaErrorNoDevice), EMU_SYNC, EMU_GUARD, EMU_LOOSE, EMU_MMA, EMU_STACK (KB per
 * thread), EMU_TIMEOUT (1: the device says that it ends kernels that run long, as one does that
 * draws a desktop), EMU_PATIENCE (20): seconds after which a host is reported that waits for a
 * kernel that waits for the host. */
#ifndef EMU_H
#define EMU_H

#include <cassert>
#include <cstddef>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <memory>
#include <tuple>
#include <utility>
#include <vector>

#include "emu_types.h"

#ifdef __SANITIZE_ADDRESS__
#define EMU_ASAN 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define EMU_ASAN 1
#endif
#endif

/* ---- qualifiers ---- */

#define __global__
#define __device__
#define __host__
#define __constant__
#define __managed__
#define __grid_constant__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __align__(n) __attribute__((aligned(n)))
#define __shared__ emu_cannot_refill_this_for_every_block_write_SHARED

/* SHARED(float, tile, [16][17]);  under nvcc: __shared__ __align__(16) type name __VA_ARGS__ */
#define SHARED(type, name, ...) \
    typedef type name##_type __VA_ARGS__; \
    static emu::Shared name##_place; \
    name##_type &name = *(name##_type *)emu::shared(name##_place, sizeof(name##_type), alignof(name##_type))

/* DYNAMIC_SHARED(float, buffer);  under nvcc: extern __shared__ __align__(128) unsigned char dynamic_shared[];
 * type *const name = (type *)dynamic_shared */
#define DYNAMIC_SHARED(type, name) type *const name = (type *)emu::dynamic_shared

/* GPU_LAUNCH(kernel, grid, block, shared bytes, stream, arguments);  a template in parentheses: GPU_LAUNCH((f<8, true>), ... */
#define GPU_LAUNCH(kernel, ...) emu::launch(#kernel, kernel, __VA_ARGS__)
/* The same in clusters of `cluster` blocks. */
#define GPU_LAUNCH_CLUSTERS(cluster, kernel, ...) emu::launch_clusters(cluster, #kernel, kernel, __VA_ARGS__)

/* ---- where a thread is ---- */

namespace emu {

struct Thread {
    uint3 index;                        /* threadIdx */
    unsigned linear;                    /* its number in the cluster, where each block has a multiple of 32 */
    bool waited;                        /* ptx_grid_wait was called */
};
extern Thread *self;                    /* the running thread; NULL on the host */

struct Shared { void *p; unsigned long long epoch; size_t bytes; };
extern unsigned long long epoch;        /* another one for each block */
extern unsigned char *dynamic_shared;
void *shared_new(Shared *s, size_t bytes, size_t align);
inline void *shared(Shared &s, size_t bytes, size_t align) { return s.epoch == epoch ? s.p : shared_new(&s, bytes, align); }
bool is_shared(const void *p, size_t bytes);            /* inside the running block's shared memory? */

/* Where in the source a thread waits. */
#define EMU_HERE const char *file = __builtin_FILE(), int line = __builtin_LINE()
#define EMU_AT file, line

/* Waits until all living lanes of mask have called this with the same mask and finish; the last to come runs finish once,
 * which finds every arrived lane's frame. */
typedef void WarpFinish(unsigned lanes, void *const frame[32]);
void warp_call(const char *what, WarpFinish *finish, unsigned mask, void *frame, const char *file, int line);

/* Waits until `count` threads (0: all living ones) are at barrier id; the number of them whose vote was not 0. */
int barrier(const char *what, int id, int count, bool vote, const char *file, int line);
void barrier_arrive(const char *what, int id, int count, const char *file, int line);          /* counts, does not wait */

void yield();                           /* lets others of the block run, if any can */
void let_host();                        /* by chance lets them, or where there are none the host */
unsigned random(unsigned n);            /* 0 … n - 1 */
inline long long setting(const char *name, long long otherwise) {       /* from the environment */
    const char *s = getenv(name);
    return s && *s ? atoll(s) : otherwise;
}
void seed(unsigned long long seed);
[[noreturn]] void fail(const char *format, ...) __attribute__((format(printf, 1, 2)));
unsigned long long switches();          /* between fibers, so far */
void grid_wait();
void grid_launch_dependents(const char *file, int line);

/* ---- what emu_watch.cpp sees, where the kernels were compiled with -fsanitize=thread ---- */

extern bool watching;
enum Access { READ, WRITE, ATOMIC, ONCE };              /* ONCE: a load that takes the memory for constant while the kernel runs */
void watch_access(const void *p, size_t bytes, Access kind);
void watch_fence();
inline void watch(const void *p, size_t bytes, Access kind) { if (watching) watch_access(p, bytes, kind); }

/* Of a function that tells emu_watch.cpp by itself what it does to memory. */
#define EMU_UNSEEN __attribute__((no_sanitize("thread")))

}

#define threadIdx (emu::self->index)
extern uint3 blockIdx;
extern dim3 blockDim, gridDim;
static const int warpSize = 32;

/* ---- barriers and fences ---- */

static inline void __syncthreads(EMU_HERE) { emu::barrier("__syncthreads", 0, 0, false, EMU_AT); }
static inline int __syncthreads_count(int p, EMU_HERE) { return emu::barrier("__syncthreads_count", 0, 0, p, EMU_AT); }
static inline int __syncthreads_or(int p, EMU_HERE) { return emu::barrier("__syncthreads_or", 0, 0, p, EMU_AT) != 0; }
static inline int __syncthreads_and(int p, EMU_HERE) { return emu::barrier("__syncthreads_and", 0, 0, !p, EMU_AT) == 0; }
static inline void __threadfence() { if (emu::watching) emu::watch_fence(); }
static inline void __threadfence_block() {}
static inline void __threadfence_system() { __threadfence(); }
static inline void __nanosleep(unsigned) { emu::yield(); }
static inline void __trap() { emu::fail("__trap"); }
static inline long long clock64() { return (long long)emu::switches(); }
static inline unsigned __activemask() { return 1u << emu::self->linear % 32; }

/* ---- shuffles, votes, reductions ---- */

namespace emu {

struct Operand { uint64_t value, result; int arg, width; };
WarpFinish finish_sync, finish_index, finish_up, finish_down, finish_xor, finish_ballot, finish_all, finish_match,
    finish_add, finish_min, finish_max, finish_min_signed, finish_max_signed, finish_and, finish_or, finish_exclusive_or;

template <class T>
inline T exchange(const char *what, WarpFinish *finish, unsigned mask, T value, int arg, int width, EMU_HERE) {
    static_assert(sizeof(T) <= 8 && std::is_trivially_copyable<T>::value, "exchanged between lanes: numbers");
    Operand o = {0, 0, arg, width};
    memcpy(&o.value, &value, sizeof value);
    warp_call(what, finish, mask, &o, EMU_AT);
    memcpy((void *)&value, &o.result, sizeof value);
    return value;
}
inline uint64_t vote(const char *what, WarpFinish *finish, unsigned mask, uint64_t value, EMU_HERE) {
    Operand o = {value, 0, 0, 32};
    warp_call(what, finish, mask, &o, EMU_AT);
    return o.result;
}

}

static inline void __syncwarp(unsigned mask = 0xffffffff, EMU_HERE) {
    emu::warp_call("__syncwarp", emu::finish_sync, mask, nullptr, EMU_AT);
}
template <class T> inline T __shfl_sync(unsigned mask, T v, int lane, int width = 32, EMU_HERE) {
    return emu::exchange("__shfl_sync", emu::finish_index, mask, v, lane, width, EMU_AT);
}
template <class T> inline T __shfl_up_sync(unsigned mask, T v, unsigned delta, int width = 32, EMU_HERE) {
    return emu::exchange("__shfl_up_sync", emu::finish_up, mask, v, (int)delta, width, EMU_AT);
}
template <class T> inline T __shfl_down_sync(unsigned mask, T v, unsigned delta, int width = 32, EMU_HERE) {
    return emu::exchange("__shfl_down_sync", emu::finish_down, mask, v, (int)delta, width, EMU_AT);
}
template <class T> inline T __shfl_xor_sync(unsigned mask, T v, int lanes, int width = 32, EMU_HERE) {
    return emu::exchange("__shfl_xor_sync", emu::finish_xor, mask, v, lanes, width, EMU_AT);
}
static inline unsigned __ballot_sync(unsigned mask, int p, EMU_HERE) {
    return (unsigned)emu::vote("__ballot_sync", emu::finish_ballot, mask, p != 0, EMU_AT);
}
static inline int __any_sync(unsigned mask, int p, EMU_HERE) {
    return emu::vote("__any_sync", emu::finish_ballot, mask, p != 0, EMU_AT) != 0;
}
static inline int __all_sync(unsigned mask, int p, EMU_HERE) {
    return (int)emu::vote("__all_sync", emu::finish_all, mask, p != 0, EMU_AT);
}
template <class T> inline unsigned __match_any_sync(unsigned mask, T v, EMU_HERE) {
    uint64_t value = 0;
    memcpy(&value, &v, sizeof v);
    return (unsigned)emu::vote("__match_any_sync", emu::finish_match, mask, value, EMU_AT);
}
#define EMU_REDUCE(name, type, finish) \
    static inline type name(unsigned mask, type v, EMU_HERE) { \
        return (type)emu::vote(#name, emu::finish, mask, (unsigned)v, EMU_AT); \
    }
EMU_REDUCE(__reduce_add_sync, unsigned, finish_add)
EMU_REDUCE(__reduce_add_sync, int, finish_add)
EMU_REDUCE(__reduce_min_sync, unsigned, finish_min)
EMU_REDUCE(__reduce_min_sync, int, finish_min_signed)
EMU_REDUCE(__reduce_max_sync, unsigned, finish_max)
EMU_REDUCE(__reduce_max_sync, int, finish_max_signed)
EMU_REDUCE(__reduce_and_sync, unsigned, finish_and)
EMU_REDUCE(__reduce_or_sync, unsigned, finish_or)
EMU_REDUCE(__reduce_xor_sync, unsigned, finish_exclusive_or)
#undef EMU_REDUCE

/* ---- loads and stores with a cache hint ---- */

template <class T> EMU_UNSEEN inline T __ldg(const T *p) { return emu::watch(p, sizeof *p, emu::ONCE), *p; }
#define EMU_LOAD(name) template <class T> inline T name(const T *p) { return *p; }
EMU_LOAD(__ldca) EMU_LOAD(__ldcg) EMU_LOAD(__ldcs) EMU_LOAD(__ldlu) EMU_LOAD(__ldcv)
#undef EMU_LOAD
#define EMU_STORE(name) template <class T> inline void name(T *p, T v) { *p = v; }
EMU_STORE(__stwb) EMU_STORE(__stcg) EMU_STORE(__stcs) EMU_STORE(__stwt)
#undef EMU_STORE
static inline size_t __cvta_generic_to_shared(const void *p) { return (size_t)p; }
static inline unsigned __isShared(const void *p) { return emu::is_shared(p, 1); }

/* ---- atomics: a thread is never interrupted, so these are plain; a thread that spins on one lets the others run ---- */

namespace emu {
extern unsigned atomics;
inline void atomic_done() { if (++atomics % 1024 == 0) yield(); }
template <class T> EMU_UNSEEN inline T atomic(T *p, T v) {
    watch(p, sizeof *p, ATOMIC);
    T old = *p;
    *p = v;
    atomic_done();
    return old;
}
}
#define EMU_ATOMIC(name, type, expression) \
    EMU_UNSEEN static inline type name(type *p, type v) { type old = *p; return emu::atomic(p, (type)(expression)); }
#define EMU_ATOMICS(type) \
    EMU_ATOMIC(atomicAdd, type, old + v) \
    EMU_ATOMIC(atomicMax, type, old < v ? v : old) \
    EMU_ATOMIC(atomicMin, type, v < old ? v : old) \
    EMU_ATOMIC(atomicExch, type, ((void)old, v)) \
    EMU_ATOMIC(atomicAnd, type, old & v) \
    EMU_ATOMIC(atomicOr, type, old | v) \
    EMU_ATOMIC(atomicXor, type, old ^ v) \
    EMU_UNSEEN static inline type atomicCAS(type *p, type expected, type v) { type old = *p; return emu::atomic(p, old == expected ? v : old); }
EMU_ATOMICS(int)
EMU_ATOMICS(unsigned int)
EMU_ATOMICS(unsigned long long)
EMU_ATOMIC(atomicSub, int, old - v)
EMU_ATOMIC(atomicSub, unsigned int, old - v)
EMU_ATOMIC(atomicInc, unsigned int, old >= v ? 0 : old + 1)
EMU_ATOMIC(atomicDec, unsigned int, old == 0 || old > v ? v : old - 1)
EMU_ATOMIC(atomicAdd, float, old + v)
EMU_ATOMIC(atomicAdd, double, old + v)
EMU_ATOMIC(atomicExch, float, ((void)old, v))
EMU_ATOMIC(atomicAdd, __nv_bfloat162, __hadd2(old, v))
EMU_ATOMIC(atomicAdd, __half2, __hadd2(old, v))
#undef EMU_ATOMICS
#undef EMU_ATOMIC

#include "emu_runtime.h"
#include "emu_ptx.h"

#endif
