/* test_emu.cpp - the emulation of CUDA: that right kernels are right on it, and that wrong ones show.
 *
 * Built with -fsanitize=address it also tests that AddressSanitizer sees what it should. */
#include "emu.h"

#include <chrono>
#include <set>
#include <string>
#include <vector>

#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csetjmp>
#include <cstdarg>
extern "C" {
#include <cmocka.h>
}

#define OK(call) assert_string_equal(cudaGetErrorName(call), "cudaSuccess")

/* ---- helpers ---- */

/* Device memory that a test fills and reads as a vector. */
template <class T> struct Buffer {
    T *p;
    size_t n;
    explicit Buffer(size_t n) : n(n) { OK(cudaMalloc(&p, n * sizeof(T))); }
    explicit Buffer(const std::vector<T> &v) : Buffer(v.size()) { OK(cudaMemcpy(p, v.data(), n * sizeof(T), cudaMemcpyHostToDevice)); }
    Buffer(const Buffer &) = delete;
    ~Buffer() { cudaFree(p); }
    std::vector<T> get() const {
        std::vector<T> v(n);
        OK(cudaMemcpy(v.data(), p, n * sizeof(T), cudaMemcpyDeviceToHost));
        return v;
    }
};

/* What f writes to stderr before it kills the process; "" when it does not. */
template <class F> static std::string death(F f) {
    int end[2];
    fflush(stdout);
    if (pipe(end)) abort();
    pid_t child = fork();
    if (child == 0) {
        rlimit none = {0, 0};
        setrlimit(RLIMIT_CORE, &none);
        dup2(end[1], 2);
        close(end[0]);
        f();
        _exit(0);
    }
    close(end[1]);
    std::string text;
    char part[4096];
    for (ssize_t n; (n = read(end[0], part, sizeof part)) > 0;) text.append(part, (size_t)n);
    close(end[0]);
    int status;
    waitpid(child, &status, 0);
    return status ? text : "";
}

static void assert_says(const std::string &text, const char *part) {
    if (text.find(part) == std::string::npos) fail_msg("no \"%s\" in: %s", part, text.c_str());
}

/* The different results of f under 20 seeds. */
template <class F> static auto outcomes(F f) {
    std::set<decltype(f())> all;
    for (int s = 1; s <= 20; s++) {
        emu::seed((unsigned)s);
        all.insert(f());
    }
    emu::seed(1);
    return all;
}

static float noise(unsigned i) {                        /* -1 … 1 */
    i = i * 747796405u + 2891336453u;
    i = ((i >> ((i >> 28) + 4)) ^ i) * 277803737u;
    return (float)((i >> 22 ^ i) & 0xffff) / 32768 - 1;
}

/* ---- threads and barriers ---- */

__global__ void where(int *out) {
    int block = blockIdx.x + gridDim.x * (blockIdx.y + gridDim.y * blockIdx.z);
    int thread = threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z);
    int size = blockDim.x * blockDim.y * blockDim.z;
    out[block * size + thread] += block * 1000 + threadIdx.x * 100 + threadIdx.y * 10 + threadIdx.z;
}

static void test_every_thread_once(void **) {
    Buffer<int> out(std::vector<int>(24 * 30));
    OK(GPU_LAUNCH(where, dim3(2, 3, 4), dim3(5, 3, 2), 0, 0, out.p));
    std::vector<int> v = out.get();
    for (int b = 0; b < 24; b++)
        for (int t = 0; t < 30; t++) assert_int_equal(v[b * 30 + t], b * 1000 + t % 5 * 100 + t / 5 % 3 * 10 + t / 15);
}

template <bool BARRIER, bool AGAIN> __global__ void reverse(int *p, int rounds) {
    SHARED(int, tile, [1024]);
    int i = threadIdx.x, n = blockDim.x, v = p[i];
    for (int r = 0; r < rounds; r++) {
        tile[i] = v + 1;
        if (BARRIER) __syncthreads();
        v = tile[n - 1 - i];
        if (AGAIN) __syncthreads();
    }
    p[i] = v;
}

template <bool BARRIER, bool AGAIN> static std::vector<int> reversed(int n, int rounds) {
    std::vector<int> v(n);
    for (int i = 0; i < n; i++) v[i] = 10 * i;
    Buffer<int> p(v);
    OK(GPU_LAUNCH((reverse<BARRIER, AGAIN>), 1, n, 0, 0, p.p, rounds));
    return p.get();
}

static void test_barriers(void **) {
    for (int n : {1, 31, 32, 100, 1024}) {
        auto all = outcomes([&] { return reversed<true, true>(n, 7); });
        assert_int_equal(all.size(), 1);
        for (int i = 0; i < n; i++) assert_int_equal((*all.begin())[i], 10 * (n - 1 - i) + 7);
    }
}

static void test_missing_barrier_shows(void **) {
    auto first = outcomes([] { return reversed<false, true>(64, 1); });
    assert_true(first.size() > 10);
    auto second = outcomes([] { return reversed<true, false>(64, 2); });       /* filled again while still read */
    assert_true(second.size() > 10);
}

__global__ void votes(int *out) {
    int i = threadIdx.x;
    int count = __syncthreads_count(i % 3 == 0), any = __syncthreads_or(i == 17), all = __syncthreads_and(i < 99), none = __syncthreads_or(0);
    out[i] = count * 1000 + any * 100 + all * 10 + none;
}

static void test_barriers_that_vote(void **) {
    Buffer<int> out(100);
    OK(GPU_LAUNCH(votes, 1, 100, 0, 0, out.p));
    for (int v : out.get()) assert_int_equal(v, 34 * 1000 + 100);
}

__global__ void leave_early(int *out, int living) {
    SHARED(int, sum, [1]);
    if (threadIdx.x == 0) *sum = 0;
    __syncthreads();
    if ((int)threadIdx.x >= living) return;
    atomicAdd(sum, 1);
    __syncthreads();
    int lanes = __popc(__ballot_sync(0xffffffff, 1));
    out[threadIdx.x] = *sum * 100 + lanes;
}

static void test_threads_that_have_returned(void **) {
    Buffer<int> out(50);
    OK(GPU_LAUNCH(leave_early, 1, 256, 0, 0, out.p, 50));
    std::vector<int> v = out.get();
    for (int i = 0; i < 50; i++) assert_int_equal(v[i], 5000 + (i < 32 ? 32 : 18));
}

/* Two warps fill two slots, two others empty them; a barrier says that a slot is full, another that it is empty. */
__global__ void producer(int *out, int rounds) {
    SHARED(int, slot, [2][64]);
    int i = threadIdx.x % 64;
    if (threadIdx.x < 64) {
        for (int r = 0; r < rounds; r++) {
            if (r >= 2) ptx_bar_sync(3 + r % 2, 128);
            slot[r % 2][i] = r * i;
            ptx_bar_arrive(1 + r % 2, 128);
        }
    } else {
        int sum = 0;
        for (int r = 0; r < rounds; r++) {
            ptx_bar_sync(1 + r % 2, 128);
            sum += slot[r % 2][63 - i];
            if (r + 2 < rounds) ptx_bar_arrive(3 + r % 2, 128);
        }
        out[i] = sum;
    }
}

static void test_named_barriers(void **) {
    Buffer<int> out(64);
    OK(GPU_LAUNCH(producer, 1, 128, 0, 0, out.p, 9));
    std::vector<int> v = out.get();
    for (int i = 0; i < 64; i++) assert_int_equal(v[i], 36 * (63 - i));
}

/* ---- warps ---- */

template <class T> __global__ void shuffles(T *out, int arg, int width) {
    int i = threadIdx.x, n = blockDim.x;
    T v = (T)(i * 3 + 1);
    out[i] = __shfl_sync(~0u, v, arg, width);
    out[n + i] = __shfl_up_sync(~0u, v, arg, width);
    out[2 * n + i] = __shfl_down_sync(~0u, v, arg, width);
    out[3 * n + i] = __shfl_xor_sync(~0u, v, arg, width);
}

template <class T> static void check_shuffles() {
    for (int width : {2, 8, 16, 32})
        for (int arg = 0; arg < 32; arg++) {
            Buffer<T> out(4 * 64);
            OK(GPU_LAUNCH(shuffles<T>, 1, 64, 0, 0, out.p, arg, width));
            std::vector<T> v = out.get();
            for (int i = 0; i < 64; i++) {
                int first = i / width * width, in = i - first;
                assert_true(v[i] == (T)((first + arg % width) * 3 + 1));
                assert_true(v[64 + i] == (T)((in >= arg ? i - arg : i) * 3 + 1));
                assert_true(v[128 + i] == (T)((in + arg < width ? i + arg : i) * 3 + 1));
                assert_true(v[192 + i] == (T)(((i % 32 ^ arg) < first % 32 + width ? i ^ arg : i) * 3 + 1));
            }
        }
}

static void test_shuffles(void **) {
    check_shuffles<int>();
    check_shuffles<unsigned>();
    check_shuffles<float>();
    check_shuffles<long long>();
    check_shuffles<double>();
}

__global__ void diverge(unsigned *out) {
    unsigned lane = threadIdx.x % 32;
    const unsigned thirds = 0x49249249;                 /* every third lane */
    unsigned v;
    if (lane % 3 == 0) {
        v = __ballot_sync(thirds, lane % 2) ^ __shfl_xor_sync(thirds, lane, 3);
    } else {
        __syncwarp(~thirds);
        v = __ballot_sync(~thirds, lane > 15);
    }
    __syncwarp();
    out[threadIdx.x] = v;
    out[64 + threadIdx.x] = __reduce_add_sync(~0u, lane) + 1000 * __reduce_max_sync(~0u, lane + 1) + 100000 * __reduce_min_sync(~0u, lane + 2);
    out[128 + threadIdx.x] = __any_sync(~0u, lane == 5) + 2 * __all_sync(~0u, lane < 32) + 4 * __any_sync(~0u, 0) + 8 * __all_sync(~0u, lane != 9);
    out[192 + threadIdx.x] = __match_any_sync(~0u, lane / 4);
    out[256 + threadIdx.x] = (unsigned)__reduce_max_sync(~0u, -(int)lane - 1);
}

static void test_divergence_and_votes(void **) {
    Buffer<unsigned> out(5 * 64);
    OK(GPU_LAUNCH(diverge, 1, 64, 0, 0, out.p));
    std::vector<unsigned> v = out.get();
    for (unsigned i = 0; i < 64; i++) {
        unsigned lane = i % 32, other = lane ^ 3;
        if (lane % 3) assert_int_equal(v[i], 0xffff0000 & ~0x49249249);
        else assert_int_equal(v[i], (0x49249249 & 0xaaaaaaaa) ^ (other % 3 ? 0xffffffff : other));     /* not of the mask: undefined */
        assert_int_equal(v[64 + i], 496 + 32000 + 200000);
        assert_int_equal(v[128 + i], 3);
        assert_int_equal(v[192 + i], 0xfu << lane / 4 * 4);
        assert_true((int)v[256 + i] == -1);
    }
}

template <bool BARRIER> __global__ void neighbours(int *out) {
    SHARED(int, s, [32]);
    s[threadIdx.x] = threadIdx.x;
    if (BARRIER) __syncwarp();
    out[threadIdx.x] = s[(threadIdx.x + 1) % 32];
}

static void test_missing_syncwarp_shows(void **) {
    Buffer<int> out(32);
    auto run = [&](void (*kernel)(int *)) { return outcomes([&] { OK(GPU_LAUNCH(kernel, 1, 32, 0, 0, out.p)); return out.get(); }).size(); };
    assert_int_equal(run(neighbours<true>), 1);
    assert_true(run(neighbours<false>) > 10);
}

/* ---- what is reported ---- */

__global__ void lost_lane(int) {
    if (threadIdx.x == 40) __syncthreads();
    else __shfl_sync(0xffffffff, 1, 0);
}
__global__ void wrong_warp_mask(int) {
    if (threadIdx.x < 16) __syncwarp(0x000fffff);
    else __syncwarp(0xfffffff0);
}
__global__ void circle(int) {                           /* 0 waits for 1, 1 for 2, 2 for 0 */
    if (threadIdx.x < 3) __syncwarp(threadIdx.x == 0 ? 0x3 : threadIdx.x == 1 ? 0x6 : 0x5);
    __syncthreads();
}
__global__ void two_places(int) {
    if (threadIdx.x < 32) __syncthreads();
    else __syncthreads();
}
__global__ void own_lane(int) { __syncwarp(0xfffffffe); }
__global__ void few_at_barrier(int) {
    if (threadIdx.x < 32) ptx_bar_sync(2, 96);
}
__global__ void spin(volatile int *p) {
    while (*p != 12345) __nanosleep(10);
}
__global__ void unaligned_row(int) {
    SHARED(unsigned short, m, [8][12]);
    unsigned r[1];
    ptx_ldmatrix_x1(r, m[threadIdx.x % 8]);
}
__global__ void global_row(const unsigned short *m) {
    unsigned r[1];
    ptx_ldmatrix_x1(r, m);
}

__global__ void unaligned_load(const char *p) {
    volatile float sink = ((const float4 *)(p + 8))->x;
    (void)sink;
}
__global__ void unaligned_store(char *p) { *(float2 *)(p + 4) = make_float2(1, 2); }
__global__ void unaligned_shared(int) {
    SHARED(float, s, [8]);
    *(float4 *)(s + threadIdx.x % 2) = make_float4(0, 0, 0, 0);
}
__global__ void unaligned_copy(const char *p) {
    SHARED(uint4, s, [1]);
    ptx_cp_async8(s, p + 4);
}
__global__ void unaligned_once(const char *p) {
    volatile unsigned sink = ptx_load_once16(p + 8).x;
    (void)sink;
}

template <class K, class A> static std::string fate(K kernel, int threads, A argument) {
    return death([&] {
        emu::launch("the_kernel", kernel, 3, threads, 0, 0, argument);
        cudaDeviceSynchronize();
    });
}

static void test_reports(void **) {
    std::string text = fate(lost_lane, 64, 0);
    assert_says(text, "emu: kernel the_kernel, block (");
    assert_says(text, ",0,0), thread (");
    assert_says(text, "EMU_SEED=1");
    assert_says(text, "__shfl_sync");
    assert_says(text, "__syncthreads");
    assert_says(text, "test_emu.cpp:");
    assert_says(fate(wrong_warp_mask, 32, 0), "with another mask");
    text = fate(circle, 64, 0);
    assert_says(text, "no thread can go on");
    assert_says(text, "  thread 0: in __syncwarp of ");
    assert_says(text, "mask 00000003, for lanes 00000002 of warp 0");
    assert_says(text, "  threads 3-63: at __syncthreads of ");
    assert_says(text, "for 3 more");
    assert_says(fate(two_places, 64, 0), "but other threads of the block are at the one in ");
    assert_says(fate(own_lane, 32, 0), "does not name its own lane, 0");
    text = fate(few_at_barrier, 64, 0);
    assert_says(text, "threads 0-31: at bar.sync of ");
    assert_says(text, "barrier 2, for 64 more");
    assert_says(text, "threads 32-63: returned");
    Buffer<int> zero(std::vector<int>(1));
    assert_says(fate(spin, 64, (volatile int *)zero.p), "spins for ever");
    assert_says(fate(unaligned_row, 32, 0), "unaligned row");
    assert_says(fate(global_row, 32, (const unsigned short *)zero.p), "is not in shared memory");
    Buffer<char> bytes(32);
    text = fate(unaligned_load, 1, (const char *)bytes.p);
    assert_says(text, "emu: kernel the_kernel, block (");
    assert_says(text, "in tests/emu/test_emu.cpp:");
    assert_says(text, "which is no multiple of 16");
    assert_says(fate(unaligned_store, 1, bytes.p), "which is no multiple of 8");
    assert_says(fate(unaligned_shared, 2, 0), "which is no multiple of 16");
    assert_says(fate(unaligned_copy, 1, (const char *)bytes.p), "cp.async of 8 bytes");
    assert_says(fate(unaligned_once, 1, (const char *)bytes.p), "unaligned address");
}

/* ---- shared memory ---- */

__global__ void garbage(unsigned *out, int bytes) {
    SHARED(unsigned, fixed, [3][5]);
    SHARED(unsigned char, single);
    DYNAMIC_SHARED(unsigned char, dynamic);
    unsigned v = single == 0xff;
    for (int i = 0; i < 15; i++) v &= fixed[i / 5][i % 5] == 0xffffffff;
    for (int i = 0; i < bytes; i++) v &= dynamic[i] == 0xff;
    out[blockIdx.x] = v;
    for (int i = 0; i < 15; i++) fixed[i / 5][i % 5] = 0;
    for (int i = 0; i < bytes; i++) dynamic[i] = 0;
    single = 0;
}

static void test_shared_memory_begins_as_garbage(void **) {
    Buffer<unsigned> out(5);
    for (int bytes : {0, 1, 77, 40 * 1024}) {
        OK(GPU_LAUNCH(garbage, 5, 1, (size_t)bytes, 0, out.p, bytes));
        for (unsigned v : out.get()) assert_int_equal(v, 1);
    }
    Buffer<float> fresh(10);
    for (float f : fresh.get()) assert_true(std::isnan(f));
}

__global__ void touch_dynamic(int i) {
    DYNAMIC_SHARED(volatile char, d);
    if (threadIdx.x == 5) d[i] = 1;
}
__global__ void touch_fixed(int i) {
    SHARED(float, s, [33]);
    volatile float *p = s;
    __syncthreads();
    if (threadIdx.x == 5) p[i] = 1;
}
__global__ void touch_global(volatile char *p) { *p = 1; }
__global__ void copy_beyond(const char *p) {
    SHARED(uint4, s, [1]);
    ptx_cp_async16(s, p);
}

static void test_address_sanitizer(void **) {
#ifdef EMU_ASAN
    auto dynamic = [](int i) {
        return death([=] { GPU_LAUNCH(touch_dynamic, 1, 32, 101, 0, i); cudaDeviceSynchronize(); });
    };
    assert_string_equal(dynamic(100).c_str(), "");
    assert_says(dynamic(101), "heap-buffer-overflow");
    assert_says(dynamic(101), "emu: kernel touch_dynamic, block (0,0,0), thread (5,0,0)");
    assert_says(dynamic(-1), "heap-buffer-overflow");
    assert_string_equal(fate(touch_fixed, 64, 32).c_str(), "");
    assert_says(fate(touch_fixed, 64, 33), "heap-buffer-overflow");
    Buffer<char> p(32);
    assert_string_equal(fate(touch_global, 32, (volatile char *)p.p + 31).c_str(), "");
    assert_says(fate(touch_global, 32, (volatile char *)p.p + 32), "heap-buffer-overflow");
    assert_string_equal(fate(copy_beyond, 32, (const char *)p.p + 16).c_str(), "");
    assert_says(fate(copy_beyond, 32, (const char *)p.p + 32), "heap-buffer-overflow");
    volatile char *host_view = p.p;
    assert_says(death([&] { *host_view = 1; }), "use-after-poison");
#else
    skip();
#endif
}

/* ---- cp.async ---- */

template <int WAIT> __global__ void pipeline(const int4 *in, int4 *out, int stages) {
    SHARED(int4, ring, [3][32]);
    int i = threadIdx.x;
    for (int s = 0; s < 2; s++) {
        ptx_cp_async16(&ring[s][i], in + s * 32 + i);
        ptx_cp_async_commit();
    }
    for (int s = 0; s < stages; s++) {
        if (s + 2 < stages) ptx_cp_async16(&ring[(s + 2) % 3][i], in + (s + 2) * 32 + i);
        ptx_cp_async_commit();
        ptx_cp_async_wait<WAIT>();
        __syncthreads();
        out[s * 32 + i] = ring[s % 3][31 - i];
        __syncthreads();
    }
}
__global__ void small_copies(const char *in, char *out) {
    SHARED(char, s, [64]);
    int i = threadIdx.x;
    for (int k = 0; k < 64; k++)
        if (i == 0) s[k] = 'x';
    __syncwarp();
    if (i == 0) {
        ptx_cp_async4(s, in + 4);
        ptx_cp_async8(s + 8, in + 8);
        ptx_cp_async16_zfill(s + 16, in + 16, 5);
        ptx_cp_async16_zfill(s + 32, in, 0);
        ptx_cp_async_commit();
        ptx_cp_async_wait<0>();
    }
    __syncwarp();
    for (int k = i; k < 64; k += 32) out[k] = s[k];
}

static void test_cp_async(void **) {
    const int stages = 9;
    std::vector<int4> in(stages * 32);
    for (int i = 0; i < stages * 32; i++) in[i] = make_int4(i, i + 1, i + 2, i + 3);
    Buffer<int4> from(in), to(in.size());
    auto run = [&](void (*kernel)(const int4 *, int4 *, int)) {
        return outcomes([&] {
            OK(GPU_LAUNCH(kernel, 1, 32, 0, 0, from.p, to.p, stages));
            std::vector<int> x;
            for (int4 v : to.get()) x.push_back(v.w);
            return x;
        });
    };
    auto right = run(pipeline<2>);
    assert_int_equal(right.size(), 1);
    for (int i = 0; i < stages * 32; i++) assert_int_equal((*right.begin())[i], i / 32 * 32 + 31 - i % 32 + 3);
    assert_true(run(pipeline<3>).size() > 10);          /* one group too few waited for: stale data */

    Buffer<char> text(std::vector<char>{'a', 'b', 'c', 'd', 'e', 'f', 'g', 'h', 'i', 'j', 'k', 'l', 'm', 'n', 'o', 'p', 'q', 'r', 's', 't', 'u', 'v', 'w', 'x',
                                        'y', 'z', 'A', 'B', 'C', 'D', 'E', 'F'}), out(64);
    OK(GPU_LAUNCH(small_copies, 1, 32, 0, 0, text.p, out.p));
    std::vector<char> v = out.get();
    for (char &c : v)
        if (!c) c = '.';
    assert_string_equal(std::string(v.begin(), v.end()).c_str(), "efghxxxxijklmnopqrstu...........................xxxxxxxxxxxxxxxx");
}

/* ---- tensor cores ---- */

/* As the PTX manual writes the fragments down: element i of a lane's A, B and C. */
static void place_a(int lane, int i, int per_register, int *row, int *col) {
    int group = lane >> 2, in_group = lane % 4;
    if (per_register == 2) {                            /* m16n8k16 */
        *row = (0 <= i && i < 2) || (4 <= i && i < 6) ? group : group + 8;
        *col = i < 4 ? in_group * 2 + (i & 1) : in_group * 2 + (i & 1) + 8;
    } else if (per_register == 4) {                     /* m16n8k32 */
        *row = (0 <= i && i < 4) || (8 <= i && i < 12) ? group : group + 8;
        *col = i < 8 ? in_group * 4 + (i & 3) : in_group * 4 + (i & 3) + 16;
    } else {                                            /* m16n8k64 */
        *row = (0 <= i && i < 8) || (16 <= i && i < 24) ? group : group + 8;
        *col = i < 16 ? in_group * 8 + (i & 7) : in_group * 8 + (i & 7) + 32;
    }
}
static void place_b(int lane, int i, int per_register, int *row, int *col) {
    int in_group = lane % 4;
    if (per_register == 2) *row = i < 2 ? in_group * 2 + (i & 1) : in_group * 2 + (i & 1) + 8;
    else if (per_register == 4) *row = i < 4 ? in_group * 4 + (i & 3) : in_group * 4 + (i & 3) + 16;
    else *row = i < 8 ? in_group * 8 + (i & 7) : in_group * 8 + (i & 7) + 32;
    *col = lane >> 2;
}
static void place_c(int lane, int i, int *row, int *col) {
    *row = i < 2 ? lane >> 2 : (lane >> 2) + 8;
    *col = lane % 4 * 2 + (i & 1);
}

template <class T> __global__ void product(void (*mma)(T *, const unsigned *, const unsigned *), const unsigned *a, const unsigned *b, T *c) {
    ptx_grid_wait();
    mma(c + threadIdx.x * 4, a + threadIdx.x * 4, b + threadIdx.x * 2);
}
static void mma_bf16(float *d, const unsigned *a, const unsigned *b) { ptx_mma_bf16_16816(d, a, b); }
static void mma_f16(float *d, const unsigned *a, const unsigned *b) { ptx_mma_f16_16816(d, a, b); }
static void mma_s8(int *d, const unsigned *a, const unsigned *b) { ptx_mma_s8_16832(d, a, b); }
static void mma_e4m3(float *d, const unsigned *a, const unsigned *b) { ptx_mma_e4m3_16832(d, a, b); }

template <class T, class Encode, class Decode>
static void check_mma(void (*mma)(T *, const unsigned *, const unsigned *), int K, Encode encode, Decode decode) {
    const int E = K / 8, width = 32 / E;
    std::vector<unsigned> a(16 * K), b(K * 8), fa(128), fb(64);
    std::vector<T> c(128), fc(128);
    for (size_t i = 0; i < a.size(); i++) a[i] = encode(noise((unsigned)i));
    for (size_t i = 0; i < b.size(); i++) b[i] = encode(noise((unsigned)i + 5000));
    for (int i = 0; i < 128; i++) c[i] = (T)(100 * noise((unsigned)i + 9000));
    int r, k;
    for (int lane = 0; lane < 32; lane++) {
        for (int i = 0; i < 4 * E; i++) place_a(lane, i, E, &r, &k), fa[lane * 4 + i / E] |= a[r * K + k] << i % E * width;
        for (int i = 0; i < 2 * E; i++) place_b(lane, i, E, &r, &k), fb[lane * 2 + i / E] |= b[r * 8 + k] << i % E * width;
        for (int i = 0; i < 4; i++) place_c(lane, i, &r, &k), fc[lane * 4 + i] = c[r * 8 + k];
    }
    Buffer<unsigned> da(fa), db(fb);
    Buffer<T> dc(fc);
    OK(GPU_LAUNCH(product<T>, 1, 32, 0, 0, mma, da.p, db.p, dc.p));
    fc = dc.get();
    for (int lane = 0; lane < 32; lane++)
        for (int i = 0; i < 4; i++) {
            place_c(lane, i, &r, &k);
            double sum = c[r * 8 + k];
            for (int j = 0; j < K; j++) sum += (double)decode(a[r * K + j]) * decode(b[j * 8 + k]);
            assert_true(fabs(sum - fc[lane * 4 + i]) < 1e-4);
        }
}

static void test_mma(void **) {
    check_mma<float>(mma_bf16, 16, [](float x) { return (unsigned)emu::float_to_bf16(x); }, [](unsigned v) { return emu::bf16_to_float((uint16_t)v); });
    check_mma<float>(mma_f16, 16, [](float x) { return (unsigned)emu::float_to_half(x); }, [](unsigned v) { return emu::half_to_float((uint16_t)v); });
    check_mma<int>(mma_s8, 32, [](float x) { return (unsigned)(int)(x * 127) & 255; }, [](unsigned v) { return (int8_t)v; });
    check_mma<float>(mma_e4m3, 32, [](float x) { return (unsigned)emu::float_to_fp8(x, false, true); }, [](unsigned v) { return emu::fp8_to_float((uint8_t)v); });
}

/* With scales: four for each row of A and each column of B, in the lanes that the manual's {0, PAIR} and {0, LANE} select; NaN in
 * all others. */
template <int PAIR, int LANE>
__global__ void scaled_product(const unsigned *a, const unsigned *b, const unsigned *scale_a, const unsigned *scale_b, float *c) {
    int t = threadIdx.x;
    ptx_mma_nvf4_16864<PAIR, LANE>(c + t * 4, a + t * 4, b + t * 2, scale_a[t], scale_b[t]);
}

template <int PAIR, int LANE> static void check_scaled_mma() {
    std::vector<unsigned> a(16 * 64), b(64 * 8), sa(16), sb(8), fa(128), fb(64), fsa(32, 0x7f7f7f7f), fsb(32, 0x7f7f7f7f);
    std::vector<float> fc(128, 7);
    unsigned seed = 1;
    auto draw = [&](unsigned n) { return (seed = seed * 1664525 + 1013904223) / 65536 % n; };
    for (auto &v : a) v = draw(16);
    for (auto &v : b) v = draw(16);
    for (auto &v : sa) v = draw(0x7f) | draw(0x7f) << 8 | draw(0x7f) << 16 | draw(0x7f) << 24;
    for (auto &v : sb) v = draw(0x7f) | draw(0x7f) << 8 | draw(0x7f) << 16 | draw(0x7f) << 24;
    auto scale = [](unsigned four, int j) { return (double)emu::fp8_to_float((uint8_t)(four >> j / 16 * 8)); };
    int r, k;
    for (int lane = 0; lane < 32; lane++) {
        for (int i = 0; i < 32; i++) place_a(lane, i, 8, &r, &k), fa[lane * 4 + i / 8] |= a[r * 64 + k] << i % 8 * 4;
        for (int i = 0; i < 16; i++) place_b(lane, i, 8, &r, &k), fb[lane * 2 + i / 8] |= b[r * 8 + k] << i % 8 * 4;
    }
    for (int row = 0; row < 16; row++) fsa[row % 8 * 4 + 2 * PAIR + row / 8] = sa[row];
    for (int col = 0; col < 8; col++) fsb[col * 4 + LANE] = sb[col];
    Buffer<unsigned> da(fa), db(fb), dsa(fsa), dsb(fsb);
    Buffer<float> dc(fc);
    OK(GPU_LAUNCH((scaled_product<PAIR, LANE>), 1, 32, 0, 0, da.p, db.p, dsa.p, dsb.p, dc.p));
    fc = dc.get();
    for (int lane = 0; lane < 32; lane++)
        for (int i = 0; i < 4; i++) {
            place_c(lane, i, &r, &k);
            double sum = 7, size = 7;
            for (int j = 0; j < 64; j++) {
                double x = emu::fp4_to_float(a[r * 64 + j]) * scale(sa[r], j);
                x *= emu::fp4_to_float(b[j * 8 + k]) * scale(sb[k], j);
                sum += x, size += fabs(x);
            }
            assert_true(fabs(sum - fc[lane * 4 + i]) <= 1e-5 * size);
        }
    fsb[LANE] = 0x38b83838;
    Buffer<unsigned> negative(fsb);
    assert_says(death([&] {
        GPU_LAUNCH((scaled_product<PAIR, LANE>), 1, 32, 0, 0, da.p, db.p, dsa.p, negative.p, dc.p);
        cudaDeviceSynchronize();
    }), "UE4M3 has no sign");
}

static void test_scaled_mma(void **) {
    check_scaled_mma<0, 0>();
    check_scaled_mma<0, 1>();
    check_scaled_mma<1, 2>();
    check_scaled_mma<1, 3>();
}

/* What a row of A and a column of B, and what they are added to, become where sums are cut off: on sm_80, on sm_90. */
static void check_cut(const char *cc, std::vector<float> a, float c, float want) {
    setenv("EMU_CC", cc, 1);
    setenv("EMU_MMA", "truncate", 1);
    std::string text = death([&] {
        std::vector<unsigned> fa(128), fb(64, 0x3f803f80);
        for (int k = 0; k < 16; k++) fa[k % 8 / 2 * 4 + k / 8 * 2] |= (unsigned)emu::float_to_bf16(k < (int)a.size() ? a[k] : 0) << k % 2 * 16;
        Buffer<unsigned> da(fa), db(fb);
        Buffer<float> dc(std::vector<float>(128, c));
        OK(GPU_LAUNCH(product<float>, 1, 32, 0, 0, mma_bf16, da.p, db.p, dc.p));
        float got = dc.get()[0];
        if (got != want) fprintf(stderr, "%a, not %a\n", got, want), _exit(1);
    });
    assert_string_equal(text.c_str(), "");
    unsetenv("EMU_MMA");
    setenv("EMU_CC", "8.6", 1);
}

static void test_mma_that_cuts_off(void **) {
    check_cut("8.0", {3, 0.5f}, -1, 2.5f);
    check_cut("8.0", {1, 0x1p-24f, 0x1p-24f}, 0, 1 + 0x1p-23f);         /* one bit more than float's is kept, … */
    check_cut("8.0", {1, 0x1p-25f, 0x1p-25f, 0x1p-25f, 0x1p-25f}, 0, 1);
    check_cut("9.0", {1, 0x1p-25f, 0x1p-25f, 0x1p-25f, 0x1p-25f}, 0, 1 + 0x1p-23f);       /* … or two */
    check_cut("8.0", {1, 0x1.8p-23f}, 0, 1 + 0x1p-23f);                 /* a rounded sum would be 1 + 2^-22 */
    check_cut("8.0", {-1, -0x1.8p-23f}, 0, -1 - 0x1p-23f);
    check_cut("8.0", {0x1p-24f, 0x1p-24f, 0, 0, 0, 0, 0, 0, 1}, 0, 1 + 0x1p-23f);         /* eight at once; then what they gave, and eight */
    check_cut("8.0", {0x1p-25f, 0, 0, 0, 0, 0, 0, 0, 1, 0x1p-25f}, 0x1p-25f, 1);
    check_cut("8.0", {INFINITY, 1}, 0, INFINITY);
}

/* C [16][8] = A [16][16] B [16][8], both row major in shared memory: A by ldmatrix, B transposed on the way. */
__global__ void tile_product(const __nv_bfloat16 *a, const __nv_bfloat16 *b, float *c, int way) {
    SHARED(__nv_bfloat16, ta, [16][24]);
    SHARED(__nv_bfloat16, tb, [16][8]);
    SHARED(__nv_bfloat16, tbt, [8][16]);
    int lane = threadIdx.x;
    for (int i = lane; i < 256; i += 32) ta[i / 16][i % 16] = a[i];
    for (int i = lane; i < 128; i += 32) tb[i / 8][i % 8] = tbt[i % 8][i / 8] = b[i];
    __syncwarp();
    unsigned fa[4], fb[2];
    float d[4] = {0, 0, 0, 0};
    ptx_ldmatrix_x4(fa, &ta[lane % 16][lane / 16 * 8]);
    if (way == 0) {
        ptx_ldmatrix_x2_trans(fb, tb[lane % 16]);
    } else if (way == 1) {
        ptx_ldmatrix_x2(fb, &tbt[lane % 8][lane / 8 % 2 * 8]);
    } else {
        ptx_ldmatrix_x1_trans(fb, tb[lane % 8]);
        ptx_ldmatrix_x1(fb + 1, &tbt[lane % 8][8]);
    }
    ptx_mma_bf16_16816(d, fa, fb);
    for (int i = 0; i < 4; i++) c[(lane / 4 + i / 2 * 8) * 8 + lane % 4 * 2 + i % 2] = d[i];
}

static void test_ldmatrix(void **) {
    std::vector<__nv_bfloat16> a(256), b(128);
    for (int i = 0; i < 256; i++) a[i] = noise(i);
    for (int i = 0; i < 128; i++) b[i] = noise(i + 300);
    Buffer<__nv_bfloat16> da(a), db(b);
    Buffer<float> dc(128);
    for (int way = 0; way < 3; way++) {
        OK(GPU_LAUNCH(tile_product, 1, 32, 0, 0, da.p, db.p, dc.p, way));
        std::vector<float> c = dc.get();
        for (int i = 0; i < 128; i++) {
            double sum = 0;
            for (int k = 0; k < 16; k++) sum += (double)(float)a[i / 8 * 16 + k] * (float)b[k * 8 + i % 8];
            assert_true(fabs(sum - c[i]) < 1e-5);
        }
    }
}

/* ---- mbarrier, wgmma ---- */

/* y [64 tokens][rows of 64] = w [64][cols] times x [64][cols], BF16; cols is a multiple of 64.  Warps 0 to
 * 3 multiply, and warp 4 brings tiles of 64 columns by turns into two places.  WRONG: 1 who multiplies does
 * not wait for a tile, 2 who brings does not wait until a place is free, 3 a place is given back before its
 * product has ended, 4 the sums are read before that, 5 the swizzle is forgotten, 6 the fence is. */
template <int WRONG>
__global__ void warpgroup(const uint16_t *w, const uint16_t *x, float *y, int cols) {
    DYNAMIC_SHARED(unsigned char, shared);
    unsigned char *place = shared + (1024 - ptx_shared(shared) % 1024) % 1024;
    uint64_t *full = (uint64_t *)(place + 2 * 8192), *free = full + 2;
    if (threadIdx.x < 2) {
        ptx_mbarrier_init(full + threadIdx.x, 32);
        ptx_mbarrier_init(free + threadIdx.x, 4);
    }
    ptx_grid_wait();
    __syncthreads();
    const int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    if (threadIdx.x >= 128) {
        for (int i = 0; i < cols / 64; i++) {
            if (WRONG != 2) ptx_mbarrier_wait(free + i % 2, (i / 2 & 1) ^ 1);
            for (int k = lane; k < 512; k += 32) {
                int row = k / 8, c = k % 8, to = WRONG == 5 ? c : c ^ row % 8;
                ptx_cp_async16(place + i % 2 * 8192 + row * 128 + to * 16,
                               x + row * cols + i * 64 + c * 8);
            }
            ptx_mbarrier_arrive_copies(full + i % 2);
        }
        return;
    }
    float d[32] = {};
    for (int i = 0; i < cols / 64; i++) {
        if (WRONG != 1) ptx_mbarrier_wait(full + i % 2, i / 2 & 1);
        unsigned a[4][4];
        for (int k = 0; k < 16; k++) {
            int row = threadIdx.x / 32 * 16 + g + k % 2 * 8;
            int col = i * 64 + k / 4 * 16 + 2 * t + k / 2 % 2 * 8;
            memcpy(&a[k / 4][k % 4], w + row * cols + col, 4);
        }
        if (WRONG != 6) ptx_wgmma_fence();
        const uint64_t b = ptx_wgmma_matrix(place + i % 2 * 8192);
        for (int k = 0; k < 4; k++) ptx_wgmma_bf16(d, a[k], b + 2 * k);
        ptx_wgmma_commit();
        if (WRONG == 3 && lane == 0) ptx_mbarrier_arrive(free + i % 2);
        if (WRONG != 4) ptx_wgmma_wait<0>();
        __syncwarp();
        if (WRONG != 3 && lane == 0) ptx_mbarrier_arrive(free + i % 2);
    }
    for (int i = 0; i < 32; i++) {
        int token = i / 4 * 8 + 2 * t + i % 2, row = threadIdx.x / 32 * 16 + g + i / 2 % 2 * 8;
        y[token * 64 + row] = d[i];
    }
}

/* Whether the product is right with seed `seed`. */
template <int WRONG> static bool multiplies(int seed) {
    const int cols = 320;
    std::vector<uint16_t> w(64 * cols), x(64 * cols);
    for (int i = 0; i < 64 * cols; i++) {
        w[i] = emu::float_to_bf16((float)(i * 31 % 23 - 11));
        x[i] = emu::float_to_bf16((float)(i * 17 % 13 - 6));
    }
    Buffer<uint16_t> dw(w), dx(x);
    Buffer<float> dy(64 * 64);
    emu::seed((unsigned long long)seed);
    OK(GPU_LAUNCH(warpgroup<WRONG>, 1, 160, 2 * 8192 + 32 + 1024, 0, dw.p, dx.p, dy.p, cols));
    OK(cudaDeviceSynchronize());
    std::vector<float> y = dy.get();
    for (int token = 0; token < 64; token++)
        for (int row = 0; row < 64; row++) {
            float sum = 0;
            for (int i = 0; i < cols; i++)
                sum += emu::bf16_to_float(w[row * cols + i]) * emu::bf16_to_float(x[token * cols + i]);
            if (y[token * 64 + row] != sum) return false;
        }
    return true;
}

__global__ void no_mbarrier() {
    DYNAMIC_SHARED(uint64_t, b);
    ptx_mbarrier_arrive(b);
}

/* Whether it goes wrong with one of some seeds: another result, or threads that wait for ever. */
template <int WRONG> static bool shows() {
    for (int seed = 1; seed <= 10; seed++)
        if (!death([=] { if (!multiplies<WRONG>(seed)) __trap(); }).empty()) return true;
    return false;
}

static void test_warpgroup(void **) {
    for (int seed = 1; seed <= 10; seed++) assert_true(multiplies<0>(seed));
    assert_true(shows<1>() && shows<2>() && shows<3>() && shows<4>() && shows<5>());
    assert_says(death([] { multiplies<6>(1); }), "without a wgmma.fence");
    assert_says(death([] {
        GPU_LAUNCH(no_mbarrier, 1, 32, 8, 0);
        cudaDeviceSynchronize();
    }), "is no mbarrier");
}

/* ---- bulk copies, clusters ---- */

/* out [2 blocks][32 rows][128 bytes]: both blocks of a cluster get the box in column x of row y, of which each brings 16 rows to
 * both.  WRONG: 1 fewer bytes are expected than come, 2 more, 3 nobody waits, 4 the box is unaligned, 5 a block ends while the
 * other one may still arrive at its barrier. */
template <int WRONG> __global__ void boxes(const __grid_constant__ CUtensorMap map, unsigned char *out, int x, int y) {
    DYNAMIC_SHARED(unsigned char, shared);
    unsigned char *place = shared + (1024 - ptx_shared(shared) % 1024) % 1024;
    uint64_t *full = (uint64_t *)(place + 4096), *read = full + 1;
    const int rank = ptx_cluster_rank();
    if (threadIdx.x == 0) {
        ptx_mbarrier_init(full, 1);
        ptx_mbarrier_init(read, 1);
        ptx_fence_mbarrier_init();
    }
    ptx_grid_wait();
    ptx_cluster_sync();
    if (threadIdx.x == 0) {
        ptx_mbarrier_expect(full, WRONG == 1 ? 4080 : WRONG == 2 ? 4112 : 4096);
        ptx_copy_box_to(place + rank * 2048 + (WRONG == 4 ? 128 : 0), &map, x, y + 16 * rank, full, 3);
        ptx_mbarrier_arrive(full);
    }
    if (WRONG != 3) ptx_mbarrier_wait(full, 0);
    for (unsigned i = threadIdx.x; i < 4096; i += 64) out[blockIdx.x * 4096 + i] = place[i];
    if (threadIdx.x == 0) ptx_mbarrier_arrive_at(read, rank ^ 1);
    if (WRONG != 5) ptx_cluster_sync();
}

/* The map of `rows` rows, with the swizzle. */
static CUresult encode(CUtensorMap *map, const void *data, unsigned long long bytes, unsigned long long rows, unsigned long long pitch,
                       unsigned box_bytes, unsigned box_rows) {
    decltype(&cuTensorMapEncodeTiled) function;
    cudaDriverEntryPointQueryResult found;
    OK(cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", (void **)&function, 12000, cudaEnableDefault, &found));
    assert_int_equal(found, cudaDriverEntryPointSuccess);
    const cuuint64_t size[] = {bytes, rows};
    const cuuint32_t box[] = {box_bytes, box_rows}, step[] = {1, 1};
    return function(map, CU_TENSOR_MAP_DATA_TYPE_UINT8, 2, (void *)data, size, &pitch, box, step, CU_TENSOR_MAP_INTERLEAVE_NONE,
                    CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_NONE, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
}

/* Whether both blocks get what they should of 40 rows of 176 bytes. */
template <int WRONG> static bool brings(int seed) {
    const int rows = 40, bytes = 176, pitch = 192, x = 64, y = 20;
    std::vector<unsigned char> m(rows * pitch);
    for (size_t i = 0; i < m.size(); i++) m[i] = (unsigned char)(i % 251 + 1);
    Buffer<unsigned char> dm(m), out(std::vector<unsigned char>(8192, 99));
    CUtensorMap map;
    assert_int_equal(encode(&map, dm.p, bytes, rows, pitch, 128, 16), CUDA_SUCCESS);
    emu::seed((unsigned long long)seed);
    OK(GPU_LAUNCH_CLUSTERS(2, boxes<WRONG>, 2, 64, 4096 + 16 + 1024, 0, map, out.p, x, y));
    OK(cudaDeviceSynchronize());
    std::vector<unsigned char> got = out.get();
    for (int i = 0; i < 8192; i++) {
        const int r = i % 4096 / 128, b = i % 128, row = y + r, col = x + (b / 16 ^ r % 8) * 16 + b % 16;
        if (got[i] != (row < rows && col < bytes ? m[row * pitch + col] : 0)) return false;
    }
    return true;
}

template <int WRONG> static bool brings_wrong() {
    for (int seed = 1; seed <= 10; seed++)
        if (!death([=] { if (!brings<WRONG>(seed)) __trap(); }).empty()) return true;
    return false;
}

static void test_boxes(void **) {
    setenv("EMU_CC", "9.0", 1);
    for (int seed = 1; seed <= 10; seed++) assert_true(brings<0>(seed));
    assert_says(death([] { brings<1>(1); }), "more arrivals or bytes than the mbarrier's phase has");
    assert_says(death([] { brings<2>(1); }), "for 0 more and 16 bytes");
    assert_true(brings_wrong<3>());
    assert_says(death([] { brings<4>(1); }), "unaligned or not shared memory");
    assert_true(brings_wrong<5>());

    Buffer<unsigned char> m(4096);
    CUtensorMap map;
    emu::quiet = true;
    assert_int_equal(encode(&map, m.p, 128, 16, 128, 128, 16), CUDA_SUCCESS);
    assert_int_equal(encode(&map, m.p + 8, 128, 16, 128, 128, 16), CUDA_ERROR_INVALID_VALUE);
    assert_int_equal(encode(&map, m.p, 128, 16, 136, 128, 16), CUDA_ERROR_INVALID_VALUE);
    assert_int_equal(encode(&map, m.p, 256, 16, 256, 144, 16), CUDA_ERROR_INVALID_VALUE);
    assert_int_equal(encode(&map, m.p, 16, 256, 16, 16, 257), CUDA_ERROR_INVALID_VALUE);
    assert_int_equal(encode(&map, m.p, 128, 33, 128, 128, 16), CUDA_ERROR_INVALID_VALUE);
    assert_int_equal(GPU_LAUNCH_CLUSTERS(2, boxes<0>, 3, 64, 8192, 0, map, m.p, 0, 0), cudaErrorInvalidConfiguration);
    setenv("EMU_CC", "8.6", 1);
    assert_int_equal(GPU_LAUNCH_CLUSTERS(2, boxes<0>, 2, 64, 8192, 0, map, m.p, 0, 0), cudaErrorInvalidConfiguration);
    emu::quiet = false;
}

/* ---- atomics ---- */

__global__ void atomic_zoo(int *i, unsigned *u, float *f, unsigned long long *l) {
    atomicAdd(i, 2);
    atomicMax(u, threadIdx.x * 7 % 64);
    atomicAdd(l, 1ull << 33);
    atomicMin(i + 1, -(int)threadIdx.x);
    atomicExch(i + 2, 77);
    int old = __float_as_int(*f), seen;                 /* a float's addition by compare and swap */
    do seen = old, old = atomicCAS((int *)f, seen, __float_as_int(__int_as_float(seen) + 0.5f));
    while (old != seen);
}
__global__ void locked(int *lock, int *count) {
    while (atomicCAS(lock, 0, 1)) {}
    int v = *count;
    __nanosleep(1);                                     /* others come, and find it locked */
    *count = v + 1;
    atomicExch(lock, 0);
}
__global__ void last_block(const int *in, int *sum, unsigned *done) {
    SHARED(bool, last);
    if (threadIdx.x == 0) {
        atomicAdd(sum, in[blockIdx.x]);
        __threadfence();
        last = atomicAdd(done, 1u) == gridDim.x - 1;
    }
    __syncthreads();
    if (last && threadIdx.x == 0) *sum = -*sum;
}

static void test_atomics(void **) {
    Buffer<int> i(std::vector<int>{0, 0, 0});
    Buffer<unsigned> u(std::vector<unsigned>{0, 0});
    Buffer<float> f(std::vector<float>{1});
    Buffer<unsigned long long> l(std::vector<unsigned long long>{5});
    OK(GPU_LAUNCH(atomic_zoo, 3, 100, 0, 0, i.p, u.p, f.p, l.p));
    assert_int_equal(i.get()[0], 600);
    assert_int_equal(i.get()[1], -99);
    assert_int_equal(i.get()[2], 77);
    assert_int_equal(u.get()[0], 63);
    assert_true(f.get()[0] == 151);
    assert_true(l.get()[0] == 5 + (300ull << 33));
    Buffer<int> lock(std::vector<int>{0, 0});
    OK(GPU_LAUNCH(locked, 2, 64, 0, 0, lock.p, lock.p + 1));
    assert_int_equal(lock.get()[1], 128);
    Buffer<int> in(std::vector<int>{1, 2, 3, 4, 5}), sum(std::vector<int>{0});
    OK(GPU_LAUNCH(last_block, 5, 64, 0, 0, in.p, sum.p, u.p + 1));
    assert_int_equal(sum.get()[0], -15);
}

/* ---- streams, events, graphs ---- */

__global__ void add(int *p, int v) { *p += v; }
__global__ void times(int *p, int v) { *p *= v; }

static void test_streams_are_lazy(void **) {
    cudaStream_t s, t;
    cudaEvent_t e;
    OK(cudaStreamCreate(&s));
    OK(cudaStreamCreateWithFlags(&t, cudaStreamNonBlocking));
    OK(cudaEventCreateWithFlags(&e, cudaEventDisableTiming));
    Buffer<int> p(std::vector<int>{1});
    int *pinned;
    OK(cudaMallocHost(&pinned, sizeof *pinned));
    *pinned = 5;
    OK(GPU_LAUNCH(add, 1, 1, 0, s, p.p, 41));
    OK(cudaMemcpyAsync(pinned, p.p, sizeof(int), cudaMemcpyDeviceToHost, s));
    assert_int_equal(*pinned, 5);                       /* nobody has waited yet */
    OK(cudaStreamSynchronize(s));
    assert_int_equal(*pinned, 42);

    /* Without an event both orders happen, with one only the right one. */
    auto run = [&](bool ordered) {
        return outcomes([&] {
            cudaMemset(p.p, 0, sizeof(int));
            GPU_LAUNCH(add, 1, 1, 0, s, p.p, 3);
            if (ordered) cudaEventRecord(e, s), cudaStreamWaitEvent(t, e, 0);
            GPU_LAUNCH(times, 1, 1, 0, t, p.p, 10);
            cudaDeviceSynchronize();
            return p.get()[0];
        });
    };
    assert_true(run(true) == std::set<int>({30}));
    assert_true(run(false) == std::set<int>({3, 30}));

    /* The default stream comes after everything before it on blocking streams. */
    OK(cudaMemset(p.p, 0, sizeof(int)));
    OK(GPU_LAUNCH(add, 1, 1, 0, s, p.p, 3));
    OK(GPU_LAUNCH(times, 1, 1, 0, 0, p.p, 10));
    OK(GPU_LAUNCH(add, 1, 1, 0, s, p.p, 4));
    assert_int_equal(p.get()[0], 34);

    /* Neither ordinary nor pinned memory may be reused before the copy is done, but the former's may be done at once. */
    Buffer<int> q(2);
    OK(cudaMemcpyAsync(q.p, pinned, sizeof *pinned, cudaMemcpyHostToDevice, s));
    *pinned = 8;
    OK(cudaEventRecord(e, s));
    assert_int_equal(cudaEventQuery(e), cudaErrorNotReady);
    OK(cudaEventSynchronize(e));
    OK(cudaEventQuery(e));
    assert_int_equal(q.get()[0], 8);
    assert_true(outcomes([&] {
        int plain = 7;
        cudaMemcpyAsync(q.p, &plain, sizeof plain, cudaMemcpyHostToDevice, s);
        plain = 8;
        cudaStreamSynchronize(s);
        return q.get()[0];
    }) == std::set<int>({7, 8}));
    assert_true(outcomes([&] {
        int plain = 6, seen;
        cudaMemcpyAsync(&plain, q.p, sizeof plain, cudaMemcpyDeviceToHost, s);
        seen = plain == 6;
        cudaStreamSynchronize(s);
        return seen;
    }) == std::set<int>({0, 1}));
    OK(cudaFreeHost(pinned));
    OK(cudaEventDestroy(e));
    OK(cudaStreamDestroy(s));
    OK(cudaStreamDestroy(t));
}

static void test_graphs(void **) {
    cudaStream_t s, t;
    cudaEvent_t fork, join;
    OK(cudaStreamCreateWithFlags(&s, cudaStreamNonBlocking));
    OK(cudaStreamCreateWithFlags(&t, cudaStreamNonBlocking));
    OK(cudaEventCreate(&fork));
    OK(cudaEventCreate(&join));
    int *pinned;
    OK(cudaMallocHost(&pinned, sizeof *pinned));
    Buffer<int> p(std::vector<int>{1, 1});
    OK(cudaStreamBeginCapture(s, cudaStreamCaptureModeGlobal));
    int v = 2;
    OK(cudaMemcpyAsync(p.p, pinned, sizeof v, cudaMemcpyHostToDevice, s));
    OK(GPU_LAUNCH(add, 1, 1, 0, s, p.p, v));
    v = 100;                                            /* the graph has its own copy of the argument */
    OK(cudaEventRecord(fork, s));
    OK(cudaStreamWaitEvent(t, fork, 0));
    OK(GPU_LAUNCH(times, 1, 1, 0, t, p.p + 1, 3));
    OK(GPU_LAUNCH(times, 1, 1, 0, s, p.p, 10));
    OK(cudaEventRecord(join, t));
    OK(cudaStreamWaitEvent(s, join, 0));
    OK(GPU_LAUNCH(add, 1, 1, 0, s, p.p + 1, 1));
    cudaGraph_t g;
    cudaGraphExec_t x;
    OK(cudaStreamEndCapture(s, &g));
    OK(cudaGraphInstantiate(&x, g, 0));
    OK(cudaGraphDestroy(g));
    assert_int_equal(p.get()[0], 1);                    /* nothing ran */
    unsigned long long before = emu::launches();
    for (int i = 0; i < 5; i++) {
        *pinned = i;
        OK(cudaGraphLaunch(x, s));
        OK(cudaStreamSynchronize(s));
        assert_int_equal(p.get()[0], (i + 2) * 10);
    }
    assert_int_equal(p.get()[1], ((((1 * 3 + 1) * 3 + 1) * 3 + 1) * 3 + 1) * 3 + 1);
    assert_int_equal(emu::launches() - before, 20);
    OK(cudaGraphExecDestroy(x));

    /* Waiting inside a capture spoils it; so does a branch that is not joined. */
    emu::quiet = true;
    OK(cudaStreamBeginCapture(s, cudaStreamCaptureModeGlobal));
    assert_int_equal(cudaStreamSynchronize(s), cudaErrorStreamCaptureUnsupported);
    assert_int_equal(cudaStreamEndCapture(s, &g), cudaErrorStreamCaptureInvalidated);
    OK(cudaStreamBeginCapture(s, cudaStreamCaptureModeGlobal));
    OK(cudaEventRecord(fork, s));
    OK(cudaStreamWaitEvent(t, fork, 0));
    OK(GPU_LAUNCH(add, 1, 1, 0, t, p.p, 1));
    assert_int_equal(cudaStreamEndCapture(s, &g), cudaErrorStreamCaptureUnjoined);
    assert_null(g);
    /* In a relaxed capture as well; and the default stream would come after a blocking one, though not after this one. */
    cudaStream_t blocking;
    OK(cudaStreamCreate(&blocking));
    for (int way = 0; way < 3; way++) {
        cudaStream_t captured = way == 1 ? blocking : s;
        OK(cudaStreamBeginCapture(captured, cudaStreamCaptureModeRelaxed));
        if (way == 0) assert_int_equal(cudaStreamSynchronize(s), cudaErrorStreamCaptureUnsupported);
        else assert_int_equal(cudaMemset(p.p, 0, sizeof(int)), way == 1 ? cudaErrorStreamCaptureImplicit : cudaSuccess);
        assert_int_equal(cudaStreamEndCapture(captured, &g), way < 2 ? cudaErrorStreamCaptureInvalidated : cudaSuccess);
    }
    OK(cudaGraphDestroy(g));
    OK(cudaStreamDestroy(blocking));
    cudaGetLastError();
    emu::quiet = false;
    OK(cudaFreeHost(pinned));
    OK(cudaEventDestroy(fork));
    OK(cudaEventDestroy(join));
    OK(cudaStreamDestroy(s));
    OK(cudaStreamDestroy(t));
}

__global__ void await_host(const unsigned *flag, int *p) {
    if (threadIdx.x == 0)
        while (!ptx_load_acquire_sys(flag)) __nanosleep(100);
    __syncthreads();
    atomicAdd(p, 1);
}

/* A kernel that waits for the host goes on when the host has answered.  Until then no other kernel
 * begins, but copies do. */
static void test_kernels_that_wait_for_the_host(void **) {
    cudaStream_t s, t;
    OK(cudaStreamCreateWithFlags(&s, cudaStreamNonBlocking));
    OK(cudaStreamCreateWithFlags(&t, cudaStreamNonBlocking));
    unsigned *flag;
    int *pinned;
    OK(cudaMallocHost(&flag, sizeof *flag));
    OK(cudaMallocHost(&pinned, 2 * sizeof *pinned));
    Buffer<int> p(std::vector<int>{0}), q(std::vector<int>{7});
    for (unsigned long long seed = 1; seed < 20; seed++) {
        emu::seed(seed);
        *flag = 0;
        pinned[0] = pinned[1] = 0;
        OK(cudaMemsetAsync(p.p, 0, sizeof(int), s));
        OK(GPU_LAUNCH(await_host, 2, 64, 0, s, flag, p.p));
        OK(cudaMemcpyAsync(pinned, p.p, sizeof(int), cudaMemcpyDeviceToHost, s));
        for (int i = 0; i < 20; i++) assert_int_equal(cudaStreamQuery(s), cudaErrorNotReady);
        assert_int_equal(cudaGetLastError(), cudaErrorNotReady);
        OK(cudaMemcpyAsync(pinned + 1, q.p, sizeof(int), cudaMemcpyDeviceToHost, t));
        OK(cudaStreamSynchronize(t));
        assert_int_equal(pinned[1], 7);
        const unsigned long long before = emu::launches();
        OK(GPU_LAUNCH(add, 1, 1, 0, t, q.p, 0));
        for (int i = 0; i < 20; i++) assert_int_equal(cudaStreamQuery(t), cudaErrorNotReady);
        assert_int_equal(emu::launches(), before);
        __atomic_store_n(flag, 1u, __ATOMIC_RELEASE);
        OK(cudaStreamSynchronize(s));
        OK(cudaStreamSynchronize(t));
        assert_int_equal(pinned[0], 128);
        assert_true(emu::launches() > before);
    }
    cudaGetLastError();
    setenv("EMU_PATIENCE", "0", 1);
    *flag = 0;
    const std::string said = death([&] {
        GPU_LAUNCH(await_host, 1, 32, 0, s, flag, p.p);
        cudaStreamSynchronize(s);
    });
    assert_says(said, "the host waits for a kernel that waits for the host");
    unsetenv("EMU_PATIENCE");
    OK(cudaStreamDestroy(s));
    OK(cudaStreamDestroy(t));
    OK(cudaFreeHost(flag));
    OK(cudaFreeHost(pinned));
}

__global__ void dependent(int *p, unsigned waiting) {
    if (threadIdx.x < waiting) {
        ptx_grid_wait();
        ptx_grid_launch_dependents();
    }
    atomicAdd(p, 1);
}
__global__ void waits_late(int *p) {
    ptx_grid_launch_dependents();
    ptx_grid_wait();
    atomicAdd(p, 1);
}

static void test_dependent_launch(void **) {
    Buffer<int> p(std::vector<int>{0});
    cudaLaunchAttribute attribute;
    attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attribute.val.programmaticStreamSerializationAllowed = 1;
    cudaLaunchConfig_t config = {};
    config.gridDim = 3;
    config.blockDim = dim3(32);
    config.attrs = &attribute;
    config.numAttrs = 1;
    OK(cudaLaunchKernelEx(&config, dependent, p.p, 32u));
    assert_int_equal(p.get()[0], 96);
    assert_says(death([&] { cudaLaunchKernelEx(&config, dependent, p.p, 31u); cudaDeviceSynchronize(); }), "some do not call ptx_grid_wait");
    OK(GPU_LAUNCH(dependent, 3, 32, 0, 0, p.p, 0u));    /* not before sm_90 */
    OK(cudaDeviceSynchronize());
    setenv("EMU_CC", "9.0", 1);
    assert_says(death([&] { GPU_LAUNCH(dependent, 3, 32, 0, 0, p.p, 0u); cudaDeviceSynchronize(); }), "some do not call ptx_grid_wait");
    assert_says(death([&] { GPU_LAUNCH(waits_late, 3, 32, 0, 0, p.p); cudaDeviceSynchronize(); }), "before ptx_grid_wait: the next kernel could begin");
    setenv("EMU_CC", "8.6", 1);
    setenv("EMU_SYNC", "1", 1);
    unsigned long long before = emu::launches();
    OK(cudaLaunchKernelEx(&config, dependent, p.p, 32u));
    assert_int_equal(emu::launches() - before, 1);      /* nobody waited for it */
    unsetenv("EMU_SYNC");
}

/* ---- races: what emu_watch.cpp sees (`make race`) ---- */

__global__ void write_late(int *p) {
    ptx_grid_wait();
    p[threadIdx.x] = (int)threadIdx.x;
}
__global__ void read_late(const int *p, int *out) {
    ptx_grid_wait();
    out[threadIdx.x] = p[threadIdx.x];
}
__global__ void write_early(int *p) {
    p[threadIdx.x] = 5;
    ptx_grid_wait();
}
__global__ void read_early(const int *p, int *out) {
    int v = p[threadIdx.x];
    ptx_grid_wait();
    out[threadIdx.x] = v;
}
__global__ void copy_early(const int *p, int *out) {
    SHARED(int4, s, [8]);
    if (threadIdx.x < 8) ptx_cp_async16(&s[threadIdx.x], p + 4 * threadIdx.x);
    ptx_cp_async_commit();
    ptx_grid_wait();
    ptx_cp_async_wait<0>();
    __syncthreads();
    out[threadIdx.x] = s[threadIdx.x / 4].x;
}
__global__ void load_once(int *p, int *out, int write) {
    ptx_grid_wait();
    if (write && threadIdx.x == 9) p[threadIdx.x] = 7;
    out[threadIdx.x] = (int)ptx_load_once16(p + threadIdx.x / 4 * 4).x;
}

/* What becomes of a few launches, one behind the other in a stream, on a chip where they overlap. */
template <class F> static std::string overlapping(F f) {
    return death([&] {
        cudaStream_t s;
        setenv("EMU_CC", "9.0", 1);
        cudaStreamCreate(&s);
        f(s);
        cudaDeviceSynchronize();
    });
}

static void test_before_the_grid_wait(void **) {
    Buffer<int> p(std::vector<int>(32)), out(std::vector<int>(32)), other(std::vector<int>(32));
    int *a = p.p, *b = out.p, *c = other.p;
    auto none = [&](cudaStream_t) {};
    auto write = [&](cudaStream_t s) { GPU_LAUNCH(write_late, 1, 32, 0, s, a); };
    auto read = [&](cudaStream_t s) { GPU_LAUNCH(read_late, 1, 32, 0, s, a, b); };
    auto elsewhere = [&](cudaStream_t s) { GPU_LAUNCH(write_late, 1, 32, 0, s, c); };
    auto memory = [&](cudaStream_t s) { cudaMemsetAsync(c, 0, 4, s); };
    auto event = [&](cudaStream_t s) {
        cudaEvent_t e;
        cudaEventCreate(&e);
        cudaEventRecord(e, s);
    };
    auto then = [&](auto first, auto between, void (*kernel)(const int *, int *)) {
        return overlapping([&](cudaStream_t s) { first(s), between(s), GPU_LAUNCH(kernel, 1, 32, 0, s, a, b); });
    };
    auto then_write = [&](auto first, auto between) {
        return overlapping([&](cudaStream_t s) { first(s), between(s), GPU_LAUNCH(write_early, 1, 32, 0, s, a); });
    };
    std::string text = then(write, none, read_early);
    assert_says(text, "emu: kernel kernel, block (0,0,0), thread (");
    assert_says(text, "reads 0x");
    assert_says(text, "before ptx_grid_wait, and the kernel ahead writes it: write_late (addr2line -ie ");
    assert_says(then(write, none, copy_early), "before ptx_grid_wait, and the kernel ahead writes it: write_late");
    assert_says(then(write, event, read_early), "the kernel ahead writes it: write_late");
    assert_string_equal(then(write, none, read_late).c_str(), "");
    assert_string_equal(then(read, none, read_early).c_str(), "");
    /* The kernel ahead of that one has ended, and a copy lets no kernel overlap. */
    assert_string_equal(then(write, elsewhere, read_early).c_str(), "");
    assert_string_equal(then(write, memory, read_early).c_str(), "");

    assert_says(then_write(write, none), "writes 0x");
    assert_says(then_write(read, none), "before ptx_grid_wait, and the kernel ahead reads it: read_late");
    assert_string_equal(then_write(read, elsewhere).c_str(), "");

    /* In a graph as well. */
    assert_says(overlapping([&](cudaStream_t s) {
        cudaGraph_t g;
        cudaGraphExec_t x;
        cudaStreamBeginCapture(s, cudaStreamCaptureModeRelaxed);
        write(s), GPU_LAUNCH(read_early, 1, 32, 0, s, a, b);
        cudaStreamEndCapture(s, &g), cudaGraphInstantiate(&x, g, 0), cudaGraphLaunch(x, s);
    }), "the kernel ahead writes it: write_late");
}

static void test_loads_of_constants(void **) {
    Buffer<int> p(std::vector<int>(32)), out(std::vector<int>(32));
    int *a = p.p, *b = out.p;
    auto loaded = [&](bool written, int write) {
        return overlapping([&](cudaStream_t s) {
            if (written) GPU_LAUNCH(write_late, 1, 32, 0, s, a);
            GPU_LAUNCH(load_once, 1, 32, 0, s, a, b, write);
        });
    };
    assert_string_equal(loaded(false, 0).c_str(), "");
    assert_says(loaded(true, 0), "reads as constant 0x");
    assert_says(loaded(true, 0), "and the kernel ahead, which may run then, writes it: write_late");
    assert_says(loaded(false, 1), "constant");
}

/* Each warp writes, and reads what another one has written.  way 1: without a barrier between; 2: written again without one; 3: with one
 * to which only two of the four warps come; 4: its own, which needs none. */
__global__ void passes(int way, int *out) {
    SHARED(unsigned char, s, [128]);
    unsigned char *mine = &s[threadIdx.x], *its = &s[(threadIdx.x + (way == 4 ? 0 : 32)) % 128];
    *mine = 1;
    if (way == 3) ptx_bar_sync(1 + threadIdx.x / 64, 64);
    else if (way != 1 && way != 4) __syncthreads();
    out[threadIdx.x] = *its;
    if (way == 0) __syncthreads();
    if (way != 4) *mine = 2;
}
/* Copied, waited for, and read by another warp.  way 1: the barrier is before the wait; 2: the next copy begins before all have read. */
__global__ void passes_copies(const int4 *in, int way, int *out) {
    SHARED(int4, s, [64]);
    for (int round = 0; round < 2; round++) {
        ptx_cp_async16(&s[threadIdx.x], in + threadIdx.x);
        ptx_cp_async_commit();
        if (way == 1) __syncthreads();
        ptx_cp_async_wait<0>();
        if (way != 1) __syncthreads();
        out[threadIdx.x] = s[63 - threadIdx.x].x;
        if (way != 2) __syncthreads();
    }
}

static void test_races_of_warps(void **) {
    Buffer<int> out(128);
    Buffer<int4> in(std::vector<int4>(64));
    auto fate = [&](int way) { return death([&] { GPU_LAUNCH(passes, 1, 128, 0, 0, way, out.p); cudaDeviceSynchronize(); }); };
    auto fate_of_copies = [&](int way) { return death([&] { GPU_LAUNCH(passes_copies, 1, 64, 0, 0, in.p, way, out.p); cudaDeviceSynchronize(); }); };
    assert_string_equal(fate(0).c_str(), "");
    for (int way : {1, 2, 3}) assert_says(fate(way), "shared memory which another warp has ");
    assert_string_equal(fate(4).c_str(), "");
    assert_string_equal(fate_of_copies(0).c_str(), "");
    for (int way : {1, 2}) assert_says(fate_of_copies(way), "shared memory which another warp has ");
    assert_string_equal(death([&] { GPU_LAUNCH(producer, 1, 128, 0, 0, out.p, 9); cudaDeviceSynchronize(); }).c_str(), "");
}

/* The last block adds what the others have written.  way 1, 2: without the fence before, behind the ticket; 3: it does not ask for it. */
__global__ void last_adds(int way, int *part, unsigned *ticket, int *sum) {
    SHARED(unsigned, before);
    part[blockIdx.x * 64 + threadIdx.x] = 1;
    if (way != 1) __threadfence();
    __syncthreads();
    if (threadIdx.x == 0) before = way == 3 ? blockIdx.x : atomicAdd(ticket, 1u);
    __syncthreads();
    if (before != gridDim.x - 1) return;
    if (way != 2) __threadfence();
    int all = 0;
    for (unsigned b = 0; b < gridDim.x; b++) all += part[b * 64 + 63 - threadIdx.x];
    if (threadIdx.x == 0) *sum = all;
}
__global__ void same_place(int *p, bool atomic) {
    if (threadIdx.x) return;
    if (atomic) atomicAdd(p, 1);
    else *p = 1;
}

/* The kernels of test_warpgroup and test_boxes: a place that is read before it is full, written before it is empty. */
static void test_races_at_mbarriers(void **) {
    setenv("EMU_CC", "9.0", 1);
    for (int seed = 1; seed <= 3; seed++) assert_true(multiplies<0>(seed) && brings<0>(seed));
    assert_says(death([] { multiplies<1>(1); }), "shared memory which another warp has written since the last barrier");
    assert_says(death([] { multiplies<2>(1); }), "shared memory which another warp has ");
    assert_says(death([] { brings<3>(1); }), "shared memory which another warp has ");
}

static void test_races_of_blocks(void **) {
    Buffer<int> part(4 * 64), sum(1);
    Buffer<unsigned> ticket(std::vector<unsigned>(1));
    auto fate = [&](int way) {
        return death([&] { GPU_LAUNCH(last_adds, 4, 64, 0, 0, way, part.p, ticket.p, sum.p); cudaDeviceSynchronize(); });
    };
    assert_string_equal(fate(0).c_str(), "");
    for (int way : {1, 2, 3}) {
        std::set<bool> seen = outcomes([&] { return fate(way).find("which another block has ") != std::string::npos; });
        assert_int_equal(seen.count(true), 1);
        if (way < 3) assert_int_equal(seen.size(), 1);  /* 3: not where that block runs first */
    }
    auto place = [&](bool atomic) { return death([&] { GPU_LAUNCH(same_place, 4, 32, 0, 0, sum.p, atomic); cudaDeviceSynchronize(); }); };
    assert_string_equal(place(true).c_str(), "");
    assert_says(place(false), "writes 0x");
    assert_says(place(false), "which another block has written");
}

/* ---- errors of the API ---- */

__global__ void fill(char *p) {
    DYNAMIC_SHARED(char, d);
    d[0] = 1;
    if (p) *p = d[0];
}
__global__ void both_kinds(int) {
    SHARED(char, s, [1024]);
    DYNAMIC_SHARED(char, d);
    s[threadIdx.x] = d[threadIdx.x];
}
__constant__ float table[4];
__global__ void read_table(float *out) { out[threadIdx.x] = table[threadIdx.x] * 2; }

static void test_api_errors(void **) {
    emu::quiet = true;
    assert_int_equal(GPU_LAUNCH(fill, 1, 1, 48 * 1024 + 1, 0, (char *)nullptr), cudaErrorInvalidValue);
    assert_int_equal(cudaGetLastError(), cudaErrorInvalidValue);
    OK(cudaGetLastError());
    OK(cudaFuncSetAttribute(fill, cudaFuncAttributeMaxDynamicSharedMemorySize, 98 * 1024));
    OK(GPU_LAUNCH(fill, 1, 1, 98 * 1024, 0, (char *)nullptr));
    assert_int_equal(cudaFuncSetAttribute(fill, cudaFuncAttributeMaxDynamicSharedMemorySize, 99 * 1024), cudaErrorInvalidValue);
    assert_int_equal(GPU_LAUNCH(add, 1, 1025, 0, 0, nullptr, 1), cudaErrorInvalidConfiguration);
    assert_int_equal(GPU_LAUNCH(add, 0, 32, 0, 0, nullptr, 1), cudaErrorInvalidConfiguration);
    assert_int_equal(GPU_LAUNCH(add, dim3(1, 65536), 32, 0, 0, nullptr, 1), cudaErrorInvalidConfiguration);
    OK(cudaDeviceSynchronize());

    assert_string_equal(death([] { GPU_LAUNCH(both_kinds, 1, 32, 47 * 1024, 0, 0); cudaDeviceSynchronize(); }).c_str(), "");
    assert_says(death([] { GPU_LAUNCH(both_kinds, 1, 32, 48 * 1024, 0, 0); cudaDeviceSynchronize(); }), "1024 bytes of SHARED and 49152 of dynamic");

    setenv("EMU_MEMORY", "1000", 1);
    size_t before = emu::allocated(), free_bytes, total;
    char *p = nullptr, *q = nullptr, host[64] = "";
    OK(cudaMalloc(&p, 600 - before));
    assert_int_equal(cudaMalloc(&q, 401), cudaErrorMemoryAllocation);
    OK(cudaMemGetInfo(&free_bytes, &total));
    assert_int_equal(free_bytes, 400);
    assert_int_equal(total, 1000);
    unsetenv("EMU_MEMORY");
    size_t n = 600 - before;
    assert_int_equal(cudaMemcpy(p + n - 10, host, 11, cudaMemcpyHostToDevice), cudaErrorInvalidValue);
    OK(cudaMemcpy(p + n - 10, host, 10, cudaMemcpyHostToDevice));
    assert_int_equal(cudaMemcpy(p, host, 10, cudaMemcpyDeviceToHost), cudaErrorInvalidValue);
    assert_int_equal(cudaMemset(p + 1, 0, n), cudaErrorInvalidValue);
    OK(cudaFree(p));
    assert_int_equal(cudaFree(p), cudaErrorInvalidValue);
    assert_int_equal(emu::allocated(), before);

    setenv("EMU_DEVICES", "0", 1);
    int count;
    assert_int_equal(cudaGetDeviceCount(&count), cudaErrorNoDevice);
    assert_int_equal(count, 0);
    assert_int_equal(cudaMalloc(&p, 10), cudaErrorNoDevice);
    unsetenv("EMU_DEVICES");
    setenv("EMU_CC", "12.1", 1);
    setenv("EMU_SMS", "48", 1);
    cudaDeviceProp prop;
    OK(cudaGetDeviceProperties(&prop, 0));
    assert_true(prop.major == 12 && prop.minor == 1 && prop.multiProcessorCount == 48 && prop.sharedMemPerBlockOptin == 99 * 1024);
    setenv("EMU_CC", "8.6", 1);
    unsetenv("EMU_SMS");

    float values[4] = {1, 2, 3, 4};
    OK(cudaMemcpyToSymbol(table, values, sizeof values));
    Buffer<float> out(4);
    OK(GPU_LAUNCH(read_table, 1, 4, 0, 0, out.p));
    for (int i = 0; i < 4; i++) assert_true(out.get()[i] == 2 * values[i]);
    cudaGetLastError();
    emu::quiet = false;
}

/* ---- numbers ---- */

static void test_numbers(void **) {
    for (unsigned i = 0; i < 65536; i++) {              /* every 16-bit float survives */
        float b = emu::bf16_to_float((uint16_t)i), h = emu::half_to_float((uint16_t)i);
        if (b == b) assert_int_equal(emu::float_to_bf16(b), i);
        if (h == h) assert_int_equal(emu::float_to_half(h), i);
    }
    for (unsigned i = 0; i < 256; i++) {
        float e4 = emu::fp8_to_float((uint8_t)i), e5 = emu::fp8_to_float((uint8_t)i, true);
        if (e4 == e4) assert_int_equal(emu::float_to_fp8(e4, false, false), i);
        if (e5 == e5) assert_int_equal(emu::float_to_fp8(e5, true, false), i);
        if (i < 16) assert_int_equal(emu::float_to_fp4(emu::fp4_to_float(i)), i);
        /* Halfway to the next: to the even one. */
        if (i < 0x7e) assert_int_equal(emu::float_to_fp8((e4 + emu::fp8_to_float((uint8_t)(i + 1))) / 2, false, true), i + i % 2);
        if (i < 7) assert_int_equal(emu::float_to_fp4((emu::fp4_to_float(i) + emu::fp4_to_float(i + 1)) / 2), i + i % 2);
    }
    assert_int_equal(__nv_cvt_float_to_fp8(449.f, __NV_SATFINITE, __NV_E4M3), 0x7e);
    assert_int_equal(__nv_cvt_float_to_fp8(-1e30f, __NV_SATFINITE, __NV_E4M3), 0xfe);
    assert_int_equal(__nv_cvt_float_to_fp8(464.f, __NV_NOSAT, __NV_E4M3), 0x7e);
    assert_int_equal(__nv_cvt_float_to_fp8(465.f, __NV_NOSAT, __NV_E4M3), 0x7f);
    assert_int_equal(__nv_cvt_float_to_fp8(NAN, __NV_SATFINITE, __NV_E4M3), 0x7f);
    __half2 two = __nv_cvt_fp8x2_to_halfraw2(0xb840, __NV_E4M3);
    assert_true(__low2float(two) == 2 && __high2float(two) == -1);
    assert_int_equal(ptx_cvt_f16x2_e4m3x2(0xb840), 0xbc004000);
    assert_int_equal(ptx_cvt_e4m3x2_f32(2, -1), 0xb840);
    assert_int_equal(ptx_cvt_e2m1x2_f32(2.5f, -100), 0xf4);
    assert_true(__bfloat1622float2(__floats2bfloat162_rn(1.5f, -3)).y == -3);
    assert_int_equal(ptx_prmt(0x33221180, 0x77665544, 0x8470), 0xff447780);
    assert_int_equal(__byte_perm(0x33221180, 0x77665544, 0x8470), 0x80447780);
    assert_int_equal(__dp4a(0x01ff027f, 0x020301ff, 10), 10 + 2 - 3 + 2 - 127);
    assert_int_equal(__float2int_rn(2.5f), 2);
    assert_int_equal(__float2int_rn(3e9f), 0x7fffffff);
    assert_int_equal(__float2int_rz(-2.9f), -2);
    assert_int_equal(__float2uint_rn(-5), 0);
    assert_int_equal(__clz(1), 31);
    assert_int_equal(__ffs(8), 4);
    assert_int_equal(ptx_lop3<0xea>(0xf0, 0xcc, 0xaa), 0xea);
    assert_true(max(1, 2u) == 2u && min(NAN, 3.f) == 3 && max(1.f, 2.) == 2);
    assert_true(fabsf(__expf(1) - 2.7182818f) < 1e-5f && rsqrtf(4) == .5f && __fdividef(1, 4) == .25f);
}

/* ---- speed ---- */

template <int UNROLL> __global__ void matvec(const float *__restrict__ w, const float *__restrict__ x, float *y, int cols) {
    SHARED(float, part, [32]);
    int row = blockIdx.x;
    float sum = 0;
#pragma unroll UNROLL
    for (int i = threadIdx.x; i < cols; i += blockDim.x) sum += w[(size_t)row * cols + i] * __ldg(x + i);
    for (int o = 16; o; o /= 2) sum += __shfl_xor_sync(0xffffffff, sum, o);
    if (threadIdx.x % 32 == 0) part[threadIdx.x / 32] = sum;
    __syncthreads();
    if (threadIdx.x < 32) {
        sum = threadIdx.x < blockDim.x / 32 ? part[threadIdx.x] : 0;
        for (int o = 16; o; o /= 2) sum += __shfl_xor_sync(0xffffffff, sum, o);
        if (threadIdx.x == 0) y[row] = sum;
    }
}

static void test_speed(void **) {
    const int n = 4096;
    std::vector<float> w((size_t)n * n), x(n);
    for (size_t i = 0; i < w.size(); i++) w[i] = (float)((int)(i * 7919 % 17) - 8);
    for (int i = 0; i < n; i++) x[i] = (float)(i % 5 - 2);
    Buffer<float> dw(w), dx(x), dy(n);
    auto begin = std::chrono::steady_clock::now();
    unsigned long long switches = emu::switches();
    OK(GPU_LAUNCH(matvec<4>, n, 256, 0, 0, dw.p, dx.p, dy.p, n));
    OK(cudaDeviceSynchronize());
    double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
    print_message("4096 x 4096, 256 threads: %.2f s, %.0f million switches a second\n", seconds, (double)(emu::switches() - switches) / seconds / 1e6);
    assert_true(seconds < 30);
    std::vector<float> y = dy.get();
    for (int r = 0; r < n; r += 97) {
        float sum = 0;
        for (int i = 0; i < n; i++) sum += w[(size_t)r * n + i] * x[i];
        assert_true(y[r] == sum);
    }
}

int main() {
    setenv("EMU_CC", "8.6", 1);                        /* few of these kernels call ptx_grid_wait */
    if (emu::watching) {
        const CMUnitTest races[] = {
            cmocka_unit_test(test_before_the_grid_wait), cmocka_unit_test(test_loads_of_constants), cmocka_unit_test(test_races_of_warps),
            cmocka_unit_test(test_races_of_blocks), cmocka_unit_test(test_races_at_mbarriers),
        };
        return cmocka_run_group_tests(races, nullptr, nullptr);
    }
    const CMUnitTest tests[] = {
        cmocka_unit_test(test_every_thread_once), cmocka_unit_test(test_barriers), cmocka_unit_test(test_missing_barrier_shows),
        cmocka_unit_test(test_barriers_that_vote), cmocka_unit_test(test_threads_that_have_returned), cmocka_unit_test(test_named_barriers),
        cmocka_unit_test(test_shuffles), cmocka_unit_test(test_divergence_and_votes), cmocka_unit_test(test_missing_syncwarp_shows),
        cmocka_unit_test(test_reports), cmocka_unit_test(test_shared_memory_begins_as_garbage), cmocka_unit_test(test_address_sanitizer),
        cmocka_unit_test(test_cp_async), cmocka_unit_test(test_mma), cmocka_unit_test(test_scaled_mma),
        cmocka_unit_test(test_mma_that_cuts_off),
        cmocka_unit_test(test_ldmatrix),
        cmocka_unit_test(test_warpgroup), cmocka_unit_test(test_boxes),
        cmocka_unit_test(test_atomics),
        cmocka_unit_test(test_streams_are_lazy), cmocka_unit_test(test_graphs),
        cmocka_unit_test(test_kernels_that_wait_for_the_host),
        cmocka_unit_test(test_dependent_launch),
        cmocka_unit_test(test_api_errors),
        cmocka_unit_test(test_numbers), cmocka_unit_test(test_speed),
    };
    return cmocka_run_group_tests(tests, nullptr, nullptr);
}
