/* ptx.h - the instructions CUDA C++ has no name for, one small function each.
 *
 * Named as in the PTX ISA manual (chapter "Instruction Set", given with each).  tests/emu/emu_ptx.h has their host
 * twins: whoever changes one changes the other.
 *
 * Fragments.  A warp holds a matrix in pieces.  In lane `lane`, g = lane / 4 and t = lane % 4; a register of 32 bits holds
 * neighbours along K, the lower index in the lower bits.
 *   accumulator [16][8]   d0: (g, 2t)   d1: (g, 2t + 1)   d2: (g + 8, 2t)   d3: (g + 8, 2t + 1)
 *   16-bit elements, A [16][16]   a0: (g, 2t…)   a1: (g + 8, 2t…)   a2: (g, 2t + 8…)   a3: (g + 8, 2t + 8…)
 *                    B [16][8]    b0: (2t…, g)   b1: (2t + 8…, g)                        two elements each
 *   8-bit elements,  A [16][32]   a0: (g, 4t…)   a1: (g + 8, 4t…)   a2: (g, 4t + 16…)   a3: (g + 8, 4t + 16…)
 *                    B [32][8]    b0: (4t…, g)   b1: (4t + 16…, g)                       four elements each
 *   4-bit elements,  A [16][64]   a0: (g, 8t…)   a1: (g + 8, 8t…)   a2: (g, 8t + 32…)   a3: (g + 8, 8t + 32…)
 *                    B [64][8]    b0: (8t…, g)   b1: (8t + 32…, g)                       eight elements each */
#ifndef PTX_H
#define PTX_H
#ifdef __CUDACC__

#include <cstdint>
#include <cuda_fp16.h>

#define PTX static __device__ __forceinline__

PTX unsigned ptx_shared(const void *smem) { return (unsigned)__cvta_generic_to_shared(smem); }

/* ---- copies from global to shared memory that go on by themselves; sm_80 ---- "Data Movement
 * and Conversion Instructions: cp.async".  Both addresses are multiples of the size.  A thread's
 * copies since its last commit form a group; wait<N> waits until at most the N newest of its own
 * groups are under way; other threads' copies need a barrier after their wait.  16 bytes go past
 * the L1 cache. */

PTX void ptx_cp_async4(void *smem, const void *global) {
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4;" :: "r"(ptx_shared(smem)), "l"(global) : "memory");
}
PTX void ptx_cp_async8(void *smem, const void *global) {
    asm volatile("cp.async.ca.shared.global [%0], [%1], 8;" :: "r"(ptx_shared(smem)), "l"(global) : "memory");
}
PTX void ptx_cp_async16(void *smem, const void *global) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" :: "r"(ptx_shared(smem)), "l"(global) : "memory");
}
/* Reads `bytes` (0 … 16), the rest becomes zero; with 0 nothing is read, but the address must
 * still be aligned. */
PTX void ptx_cp_async16_zfill(void *smem, const void *global, int bytes) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" :: "r"(ptx_shared(smem)), "l"(global), "r"(bytes) : "memory");
}
/* The same, with how the L2 cache shall treat the bytes; a policy from ptx_evict_first
 * ("createpolicy"): to be dropped before others. */
PTX uint64_t ptx_evict_first() {
    uint64_t policy;
    asm("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
    return policy;
}
PTX void ptx_cp_async16_once(void *smem, const void *global, int bytes, uint64_t policy) {
    asm volatile("cp.async.cg.shared.global.L2::cache_hint [%0], [%1], 16, %2, %3;"
                 :: "r"(ptx_shared(smem)), "l"(global), "r"(bytes), "l"(policy) : "memory");
}
PTX void ptx_cp_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int N> PTX void ptx_cp_async_wait() { asm volatile("cp.async.wait_group %0;" :: "n"(N) : "memory"); }

/* ---- matrices out of shared memory; sm_75 ---- "Warp-level matrix load instruction:
 * ldmatrix".  8 x 8 elements of 16 bits each; lane l gives the address of row l % 8 of matrix l
 * / 8 (16 bytes, aligned); lanes beyond the last matrix give any valid one.  r[i] of matrix i is
 * (g, 2t) and (g, 2t + 1), or, transposed, (2t, g) and (2t + 1, g). */

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
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(ptx_shared(smem_row)) : "memory");
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
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(ptx_shared(smem_row)) : "memory");
}

/* ---- tensor cores, d += a b; all 32 lanes ----
 * "Multiply-and-Accumulate Instruction: mma"; fragments above. */

/* sm_80; "Matrix Fragments for mma.m16n8k16 with floating point type" */
PTX void ptx_mma_bf16_16816(float d[4], const unsigned a[4], const unsigned b[2]) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]) : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
/* sm_80; the same */
PTX void ptx_mma_f16_16816(float d[4], const unsigned a[4], const unsigned b[2]) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]) : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
/* sm_80; "Matrix Fragments for mma.m16n8k32" */
PTX void ptx_mma_s8_16832(int d[4], const unsigned a[4], const unsigned b[2]) {
    asm volatile("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                 : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3]) : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 890
/* sm_89; the same */
PTX void ptx_mma_e4m3_16832(float d[4], const unsigned a[4], const unsigned b[2]) {
    asm volatile("mma.sync.aligned.m16n8k32.row.col.f32.e4m3.e4m3.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]) : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
#endif
#if !defined(__CUDA_ARCH__) || defined(__CUDA_ARCH_SPECIFIC__)
/* sm_120a, sm_121a; "Block Scaling for mma.sync", "Matrix Fragments for mma.m16n8k64".  E2M1,
 * each 16 along K times their scale.  A register of scales holds four along K in UE4M3 (E4M3
 * without its sign: bit 7 is 0), the lower index in the lower bits; those of A's row g are read
 * in lane t = 2 PAIR, those of row g + 8 in lane t = 2 PAIR + 1, those of B's column g in lane t
 * = LANE, and the other lanes' are not. */
template <int PAIR, int LANE>
PTX void ptx_mma_nvf4_16864(float d[4], const unsigned a[4], const unsigned b[2], unsigned scale_a, unsigned scale_b) {
    asm volatile("mma.sync.aligned.kind::mxf4nvf4.block_scale.scale_vec::4X.m16n8k64.row.col.f32.e2m1.e2m1.f32.ue4m3 "
                 "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3}, %10, {0, %11}, %12, {0, %13};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]), "r"(scale_a), "n"(PAIR),
                   "r"(scale_b), "n"(LANE));
}
#endif

/* ---- conversions ----
 * "Data Movement and Conversion Instructions: cvt". */

/* Two E4M3, the lower byte first, as two FP16, exactly; one instruction from sm_89 on. */
PTX unsigned ptx_cvt_f16x2_e4m3x2(unsigned short v) {
#if __CUDA_ARCH__ >= 890
    unsigned r;
    asm("cvt.rn.f16x2.e4m3x2 %0, %1;" : "=r"(r) : "h"(v));
    return r;
#else
    /* Exponent and mantissa fall into FP16's 7 bits below the sign's neighbour; the biases
     * differ by 8.  NaN (0x7f) comes out as 480. */
    unsigned both = __byte_perm(v, 0, 0x1404);
    unsigned r = (both & 0x80008000) | (both & 0x7f007f00) >> 1;
    __half2 x = __hmul2(*(__half2 *)&r, __float2half2_rn(256.f));
    return *(unsigned *)&x;
#endif
}
/* Two E2M1, the lower nibble first, as two FP16, exactly; one instruction on sm_100a, 101a,
 * 103a, 110a, 120a, 121a. */
PTX unsigned ptx_cvt_f16x2_e2m1x2(unsigned char v) {
#if __CUDA_ARCH__ >= 1000 && (defined(__CUDA_ARCH_SPECIFIC__) || defined(__CUDA_ARCH_FAMILY_SPECIFIC__))
    unsigned r;
    asm("{ .reg .b8 v; cvt.u8.u16 v, %1; cvt.rn.f16x2.e2m1x2 %0, v; }" : "=r"(r) : "h"((unsigned short)v));
    return r;
#else
    /* The lower exponent bits and the upper mantissa bit of FP16; the biases differ by 14. */
    unsigned both = v | (unsigned)v << 12;
    unsigned r = (both & 0x00080008) << 12 | (both & 0x00070007) << 9;
    __half2 x = __hmul2(*(__half2 *)&r, __float2half2_rn(16384.f));
    return *(unsigned *)&x;
#endif
}
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 890
/* Two E4M3, saturated at 448, `lo` in the lower byte; sm_89. */
PTX unsigned short ptx_cvt_e4m3x2_f32(float lo, float hi) {
    unsigned short r;
    asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(r) : "f"(hi), "f"(lo));
    return r;
}
#endif
#if !defined(__CUDA_ARCH__) || defined(__CUDA_ARCH_SPECIFIC__)
/* Two E2M1, rounded to nearest, ties to even, saturated at 6, `lo` in the lower nibble; sm_100a,
 * 110a, 120a, 121a. */
PTX unsigned ptx_cvt_e2m1x2_f32(float lo, float hi) {
    unsigned short r;
    asm("{ .reg .b8 v; cvt.rn.satfinite.e2m1x2.f32 v, %1, %2; cvt.u16.u8 %0, v; }" : "=h"(r) : "f"(hi), "f"(lo));
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

/* "Half Precision Floating Point Instructions: fma": two products of BF16, subnormals as well;
 * sm_80. */
PTX unsigned ptx_mul_bf16x2(unsigned a, unsigned b) {
    unsigned r;
    asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(r) : "r"(a), "r"(b), "r"(0x80008000));
    return r;
}

/* "Floating Point Instructions: ex2, tanh": 2^x, error 2 ulp; tanh, relative error 2^-11, sm_75. */
PTX float ptx_exp2(float x) {
    float r;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(x));
    return r;
}
PTX float ptx_tanh(float x) {
    float r;
    asm("tanh.approx.f32 %0, %1;" : "=f"(r) : "f"(x));
    return r;
}
/* "Logic and Shift Instructions: lop3": any function of three bits; its table is that function
 * of 0xf0, 0xcc, 0xaa. */
template <int TABLE> PTX unsigned ptx_lop3(unsigned a, unsigned b, unsigned c) {
    unsigned r;
    asm("lop3.b32 %0, %1, %2, %3, %4;" : "=r"(r) : "r"(a), "r"(b), "r"(c), "n"(TABLE));
    return r;
}

/* ---- hints to the caches ----
 * "Data Movement and Conversion Instructions: ld.global.nc, prefetch". */

/* 16 aligned bytes that nothing writes while the kernel runs and nobody needs again; sm_80. */
PTX uint4 ptx_load_once16(const void *global) {
    uint4 v;
    asm volatile("ld.global.nc.L1::no_allocate.L2::256B.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "l"(global));
    return v;
}
PTX void ptx_prefetch_l2(const void *global) { asm volatile("prefetch.global.L2 [%0];" :: "l"(global)); }

/* ---- who waits for whom ---- */

/* "Parallel Synchronization: bar.sync, bar.arrive": barrier 1 … 15 for `threads` of the block, a
 * multiple of 32, in whole warps; sm_70.  Who arrives does not wait, but counts. */
PTX void ptx_bar_sync(int id, int threads) { asm volatile("bar.sync %0, %1;" :: "r"(id), "r"(threads) : "memory"); }
PTX void ptx_bar_arrive(int id, int threads) { asm volatile("bar.arrive %0, %1;" :: "r"(id), "r"(threads) : "memory"); }

/* "Parallel Synchronization: griddepcontrol"; sm_90, below it nothing.  In a kernel launched
 * with programmatic dependent launch: wait until the kernels before it have finished and their
 * writes are seen; let the kernels after it begin. */
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

/* ---- barriers in shared memory; sm_80, sm_90 ----
 * "Parallel Synchronization: mbarrier".  A phase ends when `count` arrivals have come, and the next
 * one begins.  ptx_mbarrier_wait waits until the phase of that parity has ended.  The first phase's
 * parity is 0; until it ends, a phase of parity 1 counts as ended. */

PTX void ptx_mbarrier_init(uint64_t *b, int count) {
    asm volatile("mbarrier.init.shared.b64 [%0], %1;" :: "r"(ptx_shared(b)), "r"(count) : "memory");
}
PTX void ptx_mbarrier_arrive(uint64_t *b) {
    asm volatile("{ .reg .b64 t; mbarrier.arrive.shared.b64 t, [%0]; }"
                 :: "r"(ptx_shared(b)) : "memory");
}
/* An arrival that comes when all cp.async of this thread so far have ended. */
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
/* "Memory Consistency Model: Proxies": a wgmma after it sees what was written before it. */
PTX void ptx_fence_async() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }
#endif

/* ---- tensor cores, a warpgroup; sm_90a alone ---- "Asynchronous Warpgroup Level Matrix
 * Instructions".  A warpgroup is four warps, the first of which has a multiple of 4 as its
 * number.  d [64][N] += a [64][16] b [16][N] goes on by itself.  Warp i of the four has rows 16
 * i … 16 i + 15 of a and d as fragments of mma.m16n8k16, those of d one after the other: d[4 j
 * …] are columns 8 j … 8 j + 7.  b lies in shared memory: a column of it has a row of 128 bytes,
 * 64 neighbours along K, and eight such rows are 1024 bytes at a multiple of 1024.  The 16 bytes
 * number c of row r are at place c ^ r % 8: this is the 128-byte swizzle. ptx_wgmma_fence lets
 * what follows see registers that were written.  ptx_wgmma_commit makes a group of what was
 * begun since the last one, and ptx_wgmma_wait<N> waits until at most the N newest groups are
 * under way.  Nothing may touch d and a before that. */
#if !defined(__CUDA_ARCH__) || defined(__CUDA_ARCH_FEAT_SM90_ALL)
/* "Miscellaneous Instructions: setmaxnreg": how many registers each thread of the warpgroup has
 * from here on, a multiple of 8. */
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

/* "Matrix Descriptor Format": b of columns 0 … 15; those of columns 16 i and on are 2 i more.
 * Eight rows are 1024 bytes. */
PTX uint64_t ptx_wgmma_matrix(const void *smem) {
    const uint64_t swizzle_128 = 1ull << 62, eight_rows = 1024ull >> 4 << 32, unused = 1ull << 16;
    return swizzle_128 | eight_rows | unused | (ptx_shared(smem) & 0x3ffff) >> 4;
}
/* The compiler keeps what uses d after this behind the waiting that came before. */
template <int N> PTX void ptx_wgmma_keep(float (&d)[N]) {
#pragma unroll
    for (int i = 0; i < N; i++) asm volatile("" : "+f"(d[i]) :: "memory");
}
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
