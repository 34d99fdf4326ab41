/* ptx.h - the instructions for which CUDA C++ has no function, one small function each.
 *
 * Each function has the name of its instruction in the PTX ISA manual.  The comments name the
 * section of the manual (in its chapter "Instruction Set") and the first chip that has the
 * instruction (sm_80, …).  tests/emu/emu_ptx.h has the same functions for the emulation on the CPU:
 * whoever changes a function here changes that one, too.
 *
 * Fragments.  A matrix of an mma is spread over the registers of a warp's 32 lanes.  In lane
 * `lane`, g = lane / 4 and t = lane % 4.  A register of 32 bits holds neighbours along K, the lower
 * index in the lower bits: (g, 2t…) is the element in row g and column 2t, and those after it.
 *   accumulator      d [16][8]    d0: (g, 2t)     d1: (g, 2t + 1)
 *                                 d2: (g + 8, 2t) d3: (g + 8, 2t + 1)      one float each
 *   16-bit elements  A [16][16]   a0: (g, 2t…)      a1: (g + 8, 2t…)
 *                                 a2: (g, 2t + 8…)  a3: (g + 8, 2t + 8…)
 *                    B [16][8]    b0: (2t…, g)      b1: (2t + 8…, g)       two elements each
 *   8-bit elements   A [16][32]   a0: (g, 4t…)      a1: (g + 8, 4t…)
 *                                 a2: (g, 4t + 16…) a3: (g + 8, 4t + 16…)
 *                    B [32][8]    b0: (4t…, g)      b1: (4t + 16…, g)      four elements each
 *   4-bit elements   A [16][64]   a0: (g, 8t…)      a1: (g + 8, 8t…)
 *                                 a2: (g, 8t + 32…) a3: (g + 8, 8t + 32…)
 *                    B [64][8]    b0: (8t…, g)      b1: (8t + 32…, g)      eight elements each */
#ifndef PTX_H
#define PTX_H
#ifdef __CUDACC__

#include <cstdint>
#include <cuda_fp16.h>

#define PTX static __device__ __forceinline__

/* The address of shared memory as instructions want it: 32 bits, from the start of the block's. */
PTX unsigned ptx_shared(const void *smem) { return (unsigned)__cvta_generic_to_shared(smem); }

/* ---- asynchronous copies from global to shared memory; sm_80 ----
 * "Data Movement and Conversion Instructions: cp.async".  A copy of 4, 8 or 16 bytes is begun and
 * goes on by itself; both addresses are multiples of its size.  The copies that a thread began
 * since its last commit form a group.  ptx_cp_async_wait<N> waits until at most the N newest groups
 * of the calling thread are under way.  To read what other threads copied, a thread needs a
 * barrier after their wait.  Copies of 16 bytes go past the L1 cache. */

PTX void ptx_cp_async4(void *smem, const void *global) {
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4;"
                 :: "r"(ptx_shared(smem)), "l"(global) : "memory");
}
PTX void ptx_cp_async8(void *smem, const void *global) {
    asm volatile("cp.async.ca.shared.global [%0], [%1], 8;"
                 :: "r"(ptx_shared(smem)), "l"(global) : "memory");
}
PTX void ptx_cp_async16(void *smem, const void *global) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;"
                 :: "r"(ptx_shared(smem)), "l"(global) : "memory");
}
/* Copies `bytes` (0 … 16) bytes; the rest of the 16 in shared memory become zero.  With 0 nothing
 * is read, but the address must still be aligned. */
PTX void ptx_cp_async16_zfill(void *smem, const void *global, int bytes) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;"
                 :: "r"(ptx_shared(smem)), "l"(global), "r"(bytes) : "memory");
}
/* The same for 4 bytes. */
PTX void ptx_cp_async4_zfill(void *smem, const void *global, int bytes) {
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;"
                 :: "r"(ptx_shared(smem)), "l"(global), "r"(bytes) : "memory");
}
/* "createpolicy": the L2 cache drops bytes of this policy before others. */
PTX uint64_t ptx_evict_first() {
    uint64_t policy;
    asm("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
    return policy;
}
/* ptx_cp_async16_zfill, whose bytes the L2 cache treats by a policy from ptx_evict_first. */
PTX void ptx_cp_async16_once(void *smem, const void *global, int bytes, uint64_t policy) {
    asm volatile("cp.async.cg.shared.global.L2::cache_hint [%0], [%1], 16, %2, %3;"
                 :: "r"(ptx_shared(smem)), "l"(global), "r"(bytes), "l"(policy) : "memory");
}
PTX void ptx_cp_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int N> PTX void ptx_cp_async_wait() {
    asm volatile("cp.async.wait_group %0;" :: "n"(N) : "memory");
}

/* ---- matrices from shared memory to registers; sm_75 ----
 * "Warp-level matrix load instruction: ldmatrix".  x1, x2, x4: so many matrices of 8 x 8 elements
 * of 16 bits.  Lane l gives the address of row l % 8 of matrix l / 8, which is 16 bytes, aligned;
 * lanes behind the last matrix's give any valid address.  Each lane gets in r[i] of matrix i the
 * elements (g, 2t) and (g, 2t + 1) or, transposed (_trans), (2t, g) and (2t + 1, g). */

PTX void ptx_ldmatrix_x1(unsigned r[1], const void *smem_row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x1.shared.b16 {%0}, [%1];"
                 : "=r"(r[0]) : "r"(ptx_shared(smem_row)) : "memory");
}
PTX void ptx_ldmatrix_x2(unsigned r[2], const void *smem_row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];"
                 : "=r"(r[0]), "=r"(r[1]) : "r"(ptx_shared(smem_row)) : "memory");
}
PTX void ptx_ldmatrix_x4(unsigned r[4], const void *smem_row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(ptx_shared(smem_row)) : "memory");
}
PTX void ptx_ldmatrix_x1_trans(unsigned r[1], const void *smem_row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x1.trans.shared.b16 {%0}, [%1];"
                 : "=r"(r[0]) : "r"(ptx_shared(smem_row)) : "memory");
}
PTX void ptx_ldmatrix_x2_trans(unsigned r[2], const void *smem_row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0, %1}, [%2];"
                 : "=r"(r[0]), "=r"(r[1]) : "r"(ptx_shared(smem_row)) : "memory");
}
PTX void ptx_ldmatrix_x4_trans(unsigned r[4], const void *smem_row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(ptx_shared(smem_row)) : "memory");
}

/* ---- tensor cores of a warp: d += a b; all 32 lanes ----
 * "Multiply-and-Accumulate Instruction: mma".  The fragments are those at the top of this file.
 * ptx_mma_TYPE_16NK: a [16][K], b [K][8], both of TYPE. */

/* BF16; sm_80; "Matrix Fragments for mma.m16n8k16 with floating point type". */
PTX void ptx_mma_bf16_16816(float d[4], const unsigned a[4], const unsigned b[2]) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
                 "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
/* FP16; sm_80; the same section. */
PTX void ptx_mma_f16_16816(float d[4], const unsigned a[4], const unsigned b[2]) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
                 "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
/* Signed 8-bit integers; sm_80; "Matrix Fragments for mma.m16n8k32". */
PTX void ptx_mma_s8_16832(int d[4], const unsigned a[4], const unsigned b[2]) {
    asm volatile("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 "
                 "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                 : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 890
/* E4M3; sm_89; the same section. */
PTX void ptx_mma_e4m3_16832(float d[4], const unsigned a[4], const unsigned b[2]) {
    asm volatile("mma.sync.aligned.m16n8k32.row.col.f32.e4m3.e4m3.f32 "
                 "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
#endif
#if !defined(__CUDA_ARCH__) || defined(__CUDA_ARCH_SPECIFIC__)
/* E2M1 with block scales; sm_120a, sm_121a; "Block Scaling for mma.sync", "Matrix Fragments for
 * mma.m16n8k64".  Each 16 numbers along K are multiplied by their scale.  A register of scales
 * holds the four scales along K, in UE4M3 (E4M3 whose sign, bit 7, is 0), the lower index in the
 * lower bits.  Which lanes' registers count, of those with the same g:
 *   scale_a: lane t = 2 PAIR has the scales of A's row g, lane t = 2 PAIR + 1 those of row g + 8;
 *   scale_b: lane t = LANE has the scales of B's column g.
 * The other lanes' registers are not looked at. */
template <int PAIR, int LANE>
PTX void ptx_mma_nvf4_16864(float d[4], const unsigned a[4], const unsigned b[2],
                            unsigned scale_a, unsigned scale_b) {
    asm volatile("mma.sync.aligned.kind::mxf4nvf4.block_scale.scale_vec::4X"
                 ".m16n8k64.row.col.f32.e2m1.e2m1.f32.ue4m3 "
                 "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3}, "
                 "%10, {0, %11}, %12, {0, %13};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]),
                   "r"(scale_a), "n"(PAIR), "r"(scale_b), "n"(LANE));
}
#endif

/* ---- conversions ----
 * "Data Movement and Conversion Instructions: cvt". */

/* Two E4M3 as two FP16, exactly, the lower byte to the lower half.  One instruction from sm_89
 * on. */
PTX unsigned ptx_cvt_f16x2_e4m3x2(unsigned short v) {
#if __CUDA_ARCH__ >= 890
    unsigned r;
    asm("cvt.rn.f16x2.e4m3x2 %0, %1;" : "=r"(r) : "h"(v));
    return r;
#else
    /* E4M3's exponent and mantissa go to bits 7 to 13 of an FP16, which has one bit of exponent
     * more.  The exponents' biases differ by 8, so the result is multiplied by 2^8.  NaN (0x7f)
     * becomes 480. */
    unsigned both = __byte_perm(v, 0, 0x1404);
    unsigned r = (both & 0x80008000) | (both & 0x7f007f00) >> 1;
    __half2 x = __hmul2(*(__half2 *)&r, __float2half2_rn(256.f));
    return *(unsigned *)&x;
#endif
}
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 890
/* Two floats as two E4M3, rounded to nearest, ties to even, saturated at 448, `lo` in the lower
 * byte; sm_89. */
PTX unsigned short ptx_cvt_e4m3x2_f32(float lo, float hi) {
    unsigned short r;
    asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(r) : "f"(hi), "f"(lo));
    return r;
}
#endif
#if !defined(__CUDA_ARCH__) || defined(__CUDA_ARCH_SPECIFIC__)
/* Two floats as two E2M1, rounded to nearest, ties to even, saturated at 6, `lo` in the lower
 * nibble; sm_100a, 110a, 120a, 121a. */
PTX unsigned ptx_cvt_e2m1x2_f32(float lo, float hi) {
    unsigned short r;
    asm("{ .reg .b8 v; cvt.rn.satfinite.e2m1x2.f32 v, %1, %2; cvt.u16.u8 %0, v; }"
        : "=h"(r) : "f"(hi), "f"(lo));
    return r;
}
#endif

/* Two floats as two BF16, rounded to nearest, ties to even, `lo` in the lower half; sm_80. */
PTX unsigned ptx_cvt_bf16x2_f32(float lo, float hi) {
    unsigned r;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(hi), "f"(lo));
    return r;
}

/* ---- arithmetic ---- */

/* Two products of BF16, subnormals as well, as a * b + (-0); sm_80.  "Half Precision Floating Point
 * Instructions: fma". */
PTX unsigned ptx_mul_bf16x2(unsigned a, unsigned b) {
    unsigned r;
    asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(r) : "r"(a), "r"(b), "r"(0x80008000));
    return r;
}

/* ptx_mul_bf16x2 of both numbers of a with the lower (HALF 0) or the upper (1) number of b. */
template <int HALF> PTX unsigned ptx_mul_bf16x2_by(unsigned a, unsigned b) {
    unsigned r;
    asm("{ .reg .b16 half<2>; .reg .b32 both; mov.b32 {half0, half1}, %2; "
        "mov.b32 both, {half%4, half%4}; fma.rn.bf16x2 %0, %1, both, %3; }"
        : "=r"(r) : "r"(a), "r"(b), "r"(0x80008000), "n"(HALF));
    return r;
}

/* Two sums of BF16, as a * 1 + b; sm_80.  The same section. */
PTX unsigned ptx_add_bf16x2(unsigned a, unsigned b) {
    unsigned r;
    asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(r) : "r"(a), "r"(0x3f803f80), "r"(b));
    return r;
}

/* 2^x, with an error of 2 ulp at most.  "Floating Point Instructions: ex2". */
PTX float ptx_exp2(float x) {
    float r;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(x));
    return r;
}
/* tanh(x), with a relative error of 2^-11 at most; sm_75.  "Floating Point Instructions: tanh". */
PTX float ptx_tanh(float x) {
    float r;
    asm("tanh.approx.f32 %0, %1;" : "=f"(r) : "f"(x));
    return r;
}
/* As __byte_perm, but where 8 is added to a byte's number in `selector` the byte's sign fills all
 * eight bits; __byte_perm ignores the 8.  "Data Movement and Conversion Instructions: prmt". */
PTX unsigned ptx_prmt(unsigned a, unsigned b, unsigned selector) {
    unsigned r;
    asm("prmt.b32 %0, %1, %2, %3;" : "=r"(r) : "r"(a), "r"(b), "r"(selector));
    return r;
}
/* v, of which the compiler knows nothing: what follows from it is not computed ahead of the loop
 * that this stands in, to be kept in registers. */
PTX int ptx_opaque(int v) {
    asm volatile("" : "+r"(v));
    return v;
}
/* Any function f of three bits, for each bit of a, b, c: TABLE is f(0xf0, 0xcc, 0xaa).  "Logic and
 * Shift Instructions: lop3". */
template <int TABLE> PTX unsigned ptx_lop3(unsigned a, unsigned b, unsigned c) {
    unsigned r;
    asm("lop3.b32 %0, %1, %2, %3, %4;" : "=r"(r) : "r"(a), "r"(b), "r"(c), "n"(TABLE));
    return r;
}

/* ---- hints to the caches ----
 * "Data Movement and Conversion Instructions: ld.global.nc, prefetch". */

/* Loads 16 aligned bytes, which nobody may write while the kernel runs, and does not keep them in
 * the L1 cache: for bytes that are read once; sm_80. */
PTX uint4 ptx_load_once16(const void *global) {
    uint4 v;
    asm volatile("ld.global.nc.L1::no_allocate.L2::256B.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "l"(global));
    return v;
}
/* Brings the cache line of this address into the L2 cache. */
PTX void ptx_prefetch_l2(const void *global) {
    asm volatile("prefetch.global.L2 [%0];" :: "l"(global));
}

/* ---- who waits for whom ---- */

/* A barrier of some of the block's warps: number 1 … 15 (0 is __syncthreads), of `threads` threads,
 * a multiple of 32.  ptx_bar_sync waits until so many threads have called either function;
 * ptx_bar_arrive counts, but does not wait; sm_70.  "Parallel Synchronization: bar.sync,
 * bar.arrive". */
PTX void ptx_bar_sync(int id, int threads) {
    asm volatile("bar.sync %0, %1;" :: "r"(id), "r"(threads) : "memory");
}
PTX void ptx_bar_arrive(int id, int threads) {
    asm volatile("bar.arrive %0, %1;" :: "r"(id), "r"(threads) : "memory");
}

/* Programmatic dependent launch; gpu_launch in gpu.h has the rules.  ptx_grid_wait waits until the
 * kernel before this one has ended and its writes are visible.  ptx_grid_launch_dependents lets the
 * next kernel begin, once every block of this one has called it or has ended.  sm_90; on older
 * chips a kernel begins when the one before has ended, and both do nothing.  "Parallel
 * Synchronization: griddepcontrol". */
PTX void ptx_grid_wait() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}
PTX void ptx_grid_launch_dependents() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

/* ---- signals between the GPU and the host; sm_70 ----
 * "Data Movement and Conversion Instructions: ld, st" and the chapter "Memory Consistency Model".
 * p is in page-locked memory of the host.  Who reads by an acquire what a release wrote also sees
 * all that the releasing thread had written before, or had seen behind a barrier of its block. */
PTX unsigned ptx_load_acquire_sys(const unsigned *p) {
    unsigned v;
    asm volatile("ld.acquire.sys.global.u32 %0, [%1];" : "=r"(v) : "l"(p) : "memory");
    return v;
}
PTX void ptx_store_release_sys(unsigned *p, unsigned v) {
    asm volatile("st.release.sys.global.u32 [%0], %1;" :: "l"(p), "r"(v) : "memory");
}

/* ---- clusters; sm_90 ----
 * "Parallel Synchronization: barrier.cluster".  The blocks of a cluster run at the same time; a
 * kernel that is launched without clusters has clusters of one block.  ptx_cluster_sync waits until
 * all threads of the cluster have called it or have ended; it shows nobody what was written. */
PTX int ptx_cluster_rank() {
    int rank;
    asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
    return rank;
}
PTX void ptx_cluster_sync() {
    asm volatile("barrier.cluster.arrive.relaxed.aligned; "
                 "barrier.cluster.wait.aligned;" ::: "memory");
}

/* ---- barriers in shared memory; sm_80, ptx_mbarrier_wait sm_90 ----
 * "Parallel Synchronization: mbarrier".  A phase of the barrier ends when `count` arrivals have
 * come; then the next phase begins.  Phases have the parities 0, 1, 0, 1, ….  ptx_mbarrier_wait
 * waits until the phase of the given parity has ended.  While the first phase (parity 0) goes on, a
 * wait for parity 1 returns at once. */

PTX void ptx_mbarrier_init(uint64_t *b, int count) {
    asm volatile("mbarrier.init.shared.b64 [%0], %1;" :: "r"(ptx_shared(b)), "r"(count) : "memory");
}
PTX void ptx_mbarrier_arrive(uint64_t *b) {
    asm volatile("{ .reg .b64 t; mbarrier.arrive.shared.b64 t, [%0]; }"
                 :: "r"(ptx_shared(b)) : "memory");
}
/* The same at the barrier that lies at the same place in the shared memory of the cluster's block
 * `rank`; sm_90. */
PTX void ptx_mbarrier_arrive_at(uint64_t *b, int rank) {
    asm volatile("{ .reg .b32 at; mapa.shared::cluster.u32 at, %0, %1; "
                 "mbarrier.arrive.shared::cluster.b64 _, [at]; }"
                 :: "r"(ptx_shared(b)), "r"(rank) : "memory");
}
/* The current phase ends only when so many bytes more have come by ptx_copy_box; sm_90. */
PTX void ptx_mbarrier_expect(uint64_t *b, int bytes) {
    asm volatile("mbarrier.expect_tx.relaxed.cta.shared::cta.b64 [%0], %1;"
                 :: "r"(ptx_shared(b)), "r"(bytes) : "memory");
}
/* Shows the cluster's other blocks, and bulk copies, the barriers that this thread has initialised,
 * if a ptx_cluster_sync follows; sm_90. */
PTX void ptx_fence_mbarrier_init() {
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}
/* Arrives by itself when all cp.async that this thread has begun so far have ended. */
PTX void ptx_mbarrier_arrive_copies(uint64_t *b) {
    asm volatile("cp.async.mbarrier.arrive.noinc.shared.b64 [%0];"
                 :: "r"(ptx_shared(b)) : "memory");
}
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
PTX void ptx_mbarrier_wait(uint64_t *b, int parity) {
    unsigned done;
    do
        asm volatile("{ .reg .pred p; mbarrier.try_wait.parity.shared.b64 p, [%1], %2; "
                     "selp.u32 %0, 1, 0, p; }"
                     : "=r"(done) : "r"(ptx_shared(b)), "r"(parity) : "memory");
    while (!done);
}
/* ---- bulk copies of boxes (TMA); sm_90 ----
 * "Data Movement and Conversion Instructions: cp.async.bulk.tensor".  `map`, a CUtensorMap, says
 * where a matrix lies and how large a box of it is; it is a parameter of the kernel, declared
 * __grid_constant__.  One thread begins the copy of the box whose first element is in column x of
 * row y to smem.  What lies behind the matrix's last row comes as zeros.  When all bytes of the box
 * have come, so many less are waited for at barrier b, which is in shared memory, too.  A box
 * begins at a multiple of 128 bytes there, of 1024 if the map has the 128-byte swizzle.
 * ptx_copy_box_to copies it to all blocks of the cluster whose bits are set in `blocks`, in each
 * to the same place, and for each its own barrier at b's place counts the bytes. */
PTX void ptx_copy_box(void *smem, const void *map, int x, int y, uint64_t *b) {
    asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes "
                 "[%0], [%1, {%2, %3}], [%4];"
                 :: "r"(ptx_shared(smem)), "l"(map), "r"(x), "r"(y), "r"(ptx_shared(b))
                 : "memory");
}
PTX void ptx_copy_box_to(void *smem, const void *map, int x, int y, uint64_t *b, int blocks) {
    asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes"
                 ".multicast::cluster [%0], [%1, {%2, %3}], [%4], %5;"
                 :: "r"(ptx_shared(smem)), "l"(map), "r"(x), "r"(y), "r"(ptx_shared(b)),
                    "h"((unsigned short)blocks)
                 : "memory");
}

/* A wgmma after this sees what was written to shared memory before this.  "Memory Consistency
 * Model: Proxies". */
PTX void ptx_fence_async() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }
#endif

/* ---- tensor cores of a warpgroup; sm_90a alone ----
 * "Asynchronous Warpgroup Level Matrix Instructions".  A warpgroup is four warps, the first of
 * which has a multiple of 4 as its number.  All of its threads call these functions.
 *
 * A wgmma is d [64][N] += a [64][16] b [16][N]; it is begun and goes on by itself.  a and d are in
 * registers: warp i of the four has rows 16 i … 16 i + 15, as fragments of mma.m16n8k16.  The
 * fragments of d follow each other: d[4 j …] are columns 8 j … 8 j + 7.  b is in shared memory:
 * each column of b is a row of 128 bytes there, 64 neighbours along K, and eight such rows are 1024
 * bytes, at a multiple of 1024.  Piece c of 16 bytes of row r lies at piece c ^ (r % 8) of its row:
 * this is the 128-byte swizzle.
 *
 * ptx_wgmma_fence: wgmma after it see the registers that were written before it.
 * ptx_wgmma_commit: the wgmma that were begun since the last commit form a group.
 * ptx_wgmma_wait<N>: waits until at most the N newest groups are under way.  Until then nothing may
 * touch the registers d and a of those wgmma. */
#if !defined(__CUDA_ARCH__) || defined(__CUDA_ARCH_FEAT_SM90_ALL)
/* From here on each thread of the warpgroup has N registers, a multiple of 8: fewer than before or,
 * once other warps of the block have given so many back, more.  "Miscellaneous Instructions:
 * setmaxnreg". */
template <int N> PTX void ptx_fewer_registers() {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" :: "n"(N));
}
template <int N> PTX void ptx_more_registers() {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" :: "n"(N));
}

PTX void ptx_wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
PTX void ptx_wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
template <int N> PTX void ptx_wgmma_wait() {
    asm volatile("wgmma.wait_group.sync.aligned %0;" :: "n"(N) : "memory");
}

/* The descriptor of b for K = 0 … 15, when b's first row is at smem.  The descriptor for K = 16 i …
 * 16 i + 15 is this one plus 2 i.  "Matrix Descriptor Format". */
PTX uint64_t ptx_wgmma_matrix(const void *smem) {
    const uint64_t swizzle_128 = 1ull << 62, eight_rows = 1024ull >> 4 << 32, unused = 1ull << 16;
    return swizzle_128 | eight_rows | unused | (ptx_shared(smem) & 0x3ffff) >> 4;
}
/* Keeps the compiler from moving what uses d after this call ahead of the ptx_wgmma_wait before it.
 * No instruction. */
template <int N> PTX void ptx_wgmma_keep(float (&d)[N]) {
#pragma unroll
    for (int i = 0; i < N; i++) asm volatile("" : "+f"(d[i]) :: "memory");
}
/* wgmma of BF16: N = 64, 128 or 256 columns, N / 2 numbers of d in each thread. */
PTX void ptx_wgmma_bf16(float (&d)[32], const unsigned a[4], uint64_t b) {
    asm volatile("{ .reg .pred p; setp.eq.b32 p, 0, 0; "
                 "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {"
                 "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, "
                 "%18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
                 "}, {%32, %33, %34, %35}, %36, p, 1, 1, 0; }"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]),
                   "+f"(d[6]), "+f"(d[7]), "+f"(d[8]), "+f"(d[9]), "+f"(d[10]), "+f"(d[11]),
                   "+f"(d[12]), "+f"(d[13]), "+f"(d[14]), "+f"(d[15]), "+f"(d[16]), "+f"(d[17]),
                   "+f"(d[18]), "+f"(d[19]), "+f"(d[20]), "+f"(d[21]), "+f"(d[22]), "+f"(d[23]),
                   "+f"(d[24]), "+f"(d[25]), "+f"(d[26]), "+f"(d[27]), "+f"(d[28]), "+f"(d[29]),
                   "+f"(d[30]), "+f"(d[31])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
}
PTX void ptx_wgmma_bf16(float (&d)[64], const unsigned a[4], uint64_t b) {
    asm volatile("{ .reg .pred p; setp.eq.b32 p, 0, 0; "
                 "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {"
                 "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, "
                 "%18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, %32, %33, "
                 "%34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, %48, %49, "
                 "%50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
                 "}, {%64, %65, %66, %67}, %68, p, 1, 1, 0; }"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]),
                   "+f"(d[6]), "+f"(d[7]), "+f"(d[8]), "+f"(d[9]), "+f"(d[10]), "+f"(d[11]),
                   "+f"(d[12]), "+f"(d[13]), "+f"(d[14]), "+f"(d[15]), "+f"(d[16]), "+f"(d[17]),
                   "+f"(d[18]), "+f"(d[19]), "+f"(d[20]), "+f"(d[21]), "+f"(d[22]), "+f"(d[23]),
                   "+f"(d[24]), "+f"(d[25]), "+f"(d[26]), "+f"(d[27]), "+f"(d[28]), "+f"(d[29]),
                   "+f"(d[30]), "+f"(d[31]), "+f"(d[32]), "+f"(d[33]), "+f"(d[34]), "+f"(d[35]),
                   "+f"(d[36]), "+f"(d[37]), "+f"(d[38]), "+f"(d[39]), "+f"(d[40]), "+f"(d[41]),
                   "+f"(d[42]), "+f"(d[43]), "+f"(d[44]), "+f"(d[45]), "+f"(d[46]), "+f"(d[47]),
                   "+f"(d[48]), "+f"(d[49]), "+f"(d[50]), "+f"(d[51]), "+f"(d[52]), "+f"(d[53]),
                   "+f"(d[54]), "+f"(d[55]), "+f"(d[56]), "+f"(d[57]), "+f"(d[58]), "+f"(d[59]),
                   "+f"(d[60]), "+f"(d[61]), "+f"(d[62]), "+f"(d[63])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
}
PTX void ptx_wgmma_bf16(float (&d)[128], const unsigned a[4], uint64_t b) {
    asm volatile("{ .reg .pred p; setp.eq.b32 p, 0, 0; "
                 "wgmma.mma_async.sync.aligned.m64n256k16.f32.bf16.bf16 {"
                 "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, "
                 "%18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, %32, %33, "
                 "%34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, %48, %49, "
                 "%50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63, %64, %65, "
                 "%66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, %80, %81, "
                 "%82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95, %96, %97, "
                 "%98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, "
                 "%111, %112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, "
                 "%124, %125, %126, %127"
                 "}, {%128, %129, %130, %131}, %132, p, 1, 1, 0; }"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]),
                   "+f"(d[6]), "+f"(d[7]), "+f"(d[8]), "+f"(d[9]), "+f"(d[10]), "+f"(d[11]),
                   "+f"(d[12]), "+f"(d[13]), "+f"(d[14]), "+f"(d[15]), "+f"(d[16]), "+f"(d[17]),
                   "+f"(d[18]), "+f"(d[19]), "+f"(d[20]), "+f"(d[21]), "+f"(d[22]), "+f"(d[23]),
                   "+f"(d[24]), "+f"(d[25]), "+f"(d[26]), "+f"(d[27]), "+f"(d[28]), "+f"(d[29]),
                   "+f"(d[30]), "+f"(d[31]), "+f"(d[32]), "+f"(d[33]), "+f"(d[34]), "+f"(d[35]),
                   "+f"(d[36]), "+f"(d[37]), "+f"(d[38]), "+f"(d[39]), "+f"(d[40]), "+f"(d[41]),
                   "+f"(d[42]), "+f"(d[43]), "+f"(d[44]), "+f"(d[45]), "+f"(d[46]), "+f"(d[47]),
                   "+f"(d[48]), "+f"(d[49]), "+f"(d[50]), "+f"(d[51]), "+f"(d[52]), "+f"(d[53]),
                   "+f"(d[54]), "+f"(d[55]), "+f"(d[56]), "+f"(d[57]), "+f"(d[58]), "+f"(d[59]),
                   "+f"(d[60]), "+f"(d[61]), "+f"(d[62]), "+f"(d[63]), "+f"(d[64]), "+f"(d[65]),
                   "+f"(d[66]), "+f"(d[67]), "+f"(d[68]), "+f"(d[69]), "+f"(d[70]), "+f"(d[71]),
                   "+f"(d[72]), "+f"(d[73]), "+f"(d[74]), "+f"(d[75]), "+f"(d[76]), "+f"(d[77]),
                   "+f"(d[78]), "+f"(d[79]), "+f"(d[80]), "+f"(d[81]), "+f"(d[82]), "+f"(d[83]),
                   "+f"(d[84]), "+f"(d[85]), "+f"(d[86]), "+f"(d[87]), "+f"(d[88]), "+f"(d[89]),
                   "+f"(d[90]), "+f"(d[91]), "+f"(d[92]), "+f"(d[93]), "+f"(d[94]), "+f"(d[95]),
                   "+f"(d[96]), "+f"(d[97]), "+f"(d[98]), "+f"(d[99]), "+f"(d[100]),
                   "+f"(d[101]), "+f"(d[102]), "+f"(d[103]), "+f"(d[104]), "+f"(d[105]),
                   "+f"(d[106]), "+f"(d[107]), "+f"(d[108]), "+f"(d[109]), "+f"(d[110]),
                   "+f"(d[111]), "+f"(d[112]), "+f"(d[113]), "+f"(d[114]), "+f"(d[115]),
                   "+f"(d[116]), "+f"(d[117]), "+f"(d[118]), "+f"(d[119]), "+f"(d[120]),
                   "+f"(d[121]), "+f"(d[122]), "+f"(d[123]), "+f"(d[124]), "+f"(d[125]),
                   "+f"(d[126]), "+f"(d[127])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
}
#endif

#undef PTX

#endif
#endif
