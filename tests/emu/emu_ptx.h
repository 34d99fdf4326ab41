/* emu_ptx.h - the host twins of ptx.h: what the instructions do, in C++.  Part of emu.h; include that.
 * ptx.h says what each takes and how the fragments lie in the lanes. */
#ifndef EMU_PTX_H
#define EMU_PTX_H

namespace emu {

void cp_async(void *smem, const void *global, int size, int bytes, const char *file, int line);
void cp_async_commit();
void cp_async_wait(int pending);

struct Matrix { const void *row; unsigned *r; int count; bool trans; const char *file; int line; };
struct Product { void *d; const unsigned *a, *b; };
struct Scaled : Product { unsigned scale_a, scale_b; int pair, lane; };
WarpFinish finish_ldmatrix, finish_mma_bf16, finish_mma_f16, finish_mma_s8, finish_mma_e4m3, finish_mma_nvf4;

inline void ldmatrix(const char *what, unsigned *r, const void *row, int count, bool trans, EMU_HERE) {
    Matrix m = {row, r, count, trans, EMU_AT};
    warp_call(what, finish_ldmatrix, 0xffffffff, &m, EMU_AT);
}
inline void mma(const char *what, WarpFinish *finish, void *d, const unsigned *a, const unsigned *b, EMU_HERE) {
    Product p = {d, a, b};
    warp_call(what, finish, 0xffffffff, &p, EMU_AT);
}

unsigned shared_address(const void *p);
void mbarrier_init(uint64_t *b, int count, const char *file, int line);
void mbarrier_arrive(uint64_t *b, const char *file, int line);
void mbarrier_arrive_at(uint64_t *b, int rank, const char *file, int line);
void mbarrier_expect(uint64_t *b, int bytes, const char *file, int line);
void mbarrier_arrive_copies(uint64_t *b, const char *file, int line);
void mbarrier_wait(uint64_t *b, int parity, const char *file, int line);

void copy_box(void *smem, const void *map, int x, int y, uint64_t *b, unsigned blocks, const char *file, int line);
int cluster_rank();
void cluster_sync(const char *file, int line);

/* A product of a warpgroup is done warp by warp: each has rows of its own. */
struct Wgmma {
    float *d;
    const unsigned *a;
    uint64_t b;
    int n, pending;                     /* columns; groups that wait_group leaves under way */
    const char *file;
    int line;
};
WarpFinish finish_wgmma, finish_wgmma_fence, finish_wgmma_commit, finish_wgmma_wait;

inline void wgmma(const char *what, WarpFinish *finish, Wgmma w, EMU_HERE) {
    w.file = file, w.line = line;
    warp_call(what, finish, 0xffffffff, &w, EMU_AT);
}

}

/* ---- copies from global to shared memory ---- */

static inline void ptx_cp_async4(void *smem, const void *global, EMU_HERE) { emu::cp_async(smem, global, 4, 4, EMU_AT); }
static inline void ptx_cp_async8(void *smem, const void *global, EMU_HERE) { emu::cp_async(smem, global, 8, 8, EMU_AT); }
static inline void ptx_cp_async16(void *smem, const void *global, EMU_HERE) { emu::cp_async(smem, global, 16, 16, EMU_AT); }
static inline void ptx_cp_async16_zfill(void *smem, const void *global, int bytes, EMU_HERE) { emu::cp_async(smem, global, 16, bytes, EMU_AT); }
static inline void ptx_cp_async4_zfill(void *smem, const void *global, int bytes, EMU_HERE) { emu::cp_async(smem, global, 4, bytes, EMU_AT); }
static inline uint64_t ptx_evict_first() { return 0; }
static inline void ptx_cp_async16_once(void *smem, const void *global, int bytes, uint64_t, EMU_HERE) { emu::cp_async(smem, global, 16, bytes, EMU_AT); }
static inline void ptx_cp_async_commit() { emu::cp_async_commit(); }
template <int N> inline void ptx_cp_async_wait() { emu::cp_async_wait(N); }

/* ---- matrices ---- */

static inline void ptx_ldmatrix_x1(unsigned r[1], const void *smem_row, EMU_HERE) { emu::ldmatrix("ldmatrix.x1", r, smem_row, 1, false, EMU_AT); }
static inline void ptx_ldmatrix_x2(unsigned r[2], const void *smem_row, EMU_HERE) { emu::ldmatrix("ldmatrix.x2", r, smem_row, 2, false, EMU_AT); }
static inline void ptx_ldmatrix_x4(unsigned r[4], const void *smem_row, EMU_HERE) { emu::ldmatrix("ldmatrix.x4", r, smem_row, 4, false, EMU_AT); }
static inline void ptx_ldmatrix_x1_trans(unsigned r[1], const void *smem_row, EMU_HERE) { emu::ldmatrix("ldmatrix.x1.trans", r, smem_row, 1, true, EMU_AT); }
static inline void ptx_ldmatrix_x2_trans(unsigned r[2], const void *smem_row, EMU_HERE) { emu::ldmatrix("ldmatrix.x2.trans", r, smem_row, 2, true, EMU_AT); }
static inline void ptx_ldmatrix_x4_trans(unsigned r[4], const void *smem_row, EMU_HERE) { emu::ldmatrix("ldmatrix.x4.trans", r, smem_row, 4, true, EMU_AT); }

static inline void ptx_mma_bf16_16816(float d[4], const unsigned a[4], const unsigned b[2], EMU_HERE) {
    emu::mma("mma.m16n8k16.bf16", emu::finish_mma_bf16, d, a, b, EMU_AT);
}
static inline void ptx_mma_f16_16816(float d[4], const unsigned a[4], const unsigned b[2], EMU_HERE) {
    emu::mma("mma.m16n8k16.f16", emu::finish_mma_f16, d, a, b, EMU_AT);
}
static inline void ptx_mma_s8_16832(int d[4], const unsigned a[4], const unsigned b[2], EMU_HERE) {
    emu::mma("mma.m16n8k32.s8", emu::finish_mma_s8, d, a, b, EMU_AT);
}
static inline void ptx_mma_e4m3_16832(float d[4], const unsigned a[4], const unsigned b[2], EMU_HERE) {
    emu::mma("mma.m16n8k32.e4m3", emu::finish_mma_e4m3, d, a, b, EMU_AT);
}
template <int PAIR, int LANE>
inline void ptx_mma_nvf4_16864(float d[4], const unsigned a[4], const unsigned b[2], unsigned scale_a, unsigned scale_b,
                               EMU_HERE) {
    static_assert(PAIR >= 0 && PAIR < 2 && LANE >= 0 && LANE < 4, "a pair and a lane of four");
    emu::Scaled p = {{d, a, b}, scale_a, scale_b, PAIR, LANE};
    emu::warp_call("mma.m16n8k64.nvf4", emu::finish_mma_nvf4, 0xffffffff, &p, EMU_AT);
}

/* ---- conversions, bits, hints ---- */

static inline unsigned ptx_cvt_f16x2_e4m3x2(unsigned short v) {
    return emu::fp8_to_half(v & 255, false) | (unsigned)emu::fp8_to_half(v >> 8, false) << 16;
}
static inline unsigned short ptx_cvt_e4m3x2_f32(float lo, float hi) {
    return (unsigned short)(emu::float_to_fp8(lo, false, true) | emu::float_to_fp8(hi, false, true) << 8);
}
static inline unsigned ptx_cvt_e2m1x2_f32(float lo, float hi) {
    return emu::float_to_fp4(lo) | (unsigned)emu::float_to_fp4(hi) << 4;
}
static inline unsigned ptx_cvt_bf16x2_f32(float lo, float hi) {
    return emu::float_to_bf16(lo) | (unsigned)emu::float_to_bf16(hi) << 16;
}
static inline unsigned ptx_mul_bf16x2(unsigned a, unsigned b) {
    return ptx_cvt_bf16x2_f32(emu::bf16_to_float(a & 0xffff) * emu::bf16_to_float(b & 0xffff),
                              emu::bf16_to_float(a >> 16) * emu::bf16_to_float(b >> 16));
}
template <int HALF> inline unsigned ptx_mul_bf16x2_by(unsigned a, unsigned b) {
    return ptx_mul_bf16x2(a, (b >> 16 * HALF & 0xffff) * 0x10001);
}
static inline unsigned ptx_add_bf16x2(unsigned a, unsigned b) {
    return ptx_cvt_bf16x2_f32(emu::bf16_to_float(a & 0xffff) + emu::bf16_to_float(b & 0xffff),
                              emu::bf16_to_float(a >> 16) + emu::bf16_to_float(b >> 16));
}
static inline float ptx_exp2(float x) { return exp2f(x); }
static inline float ptx_tanh(float x) { return tanhf(x); }
static inline int ptx_opaque(int v) { return v; }
template <int TABLE> inline unsigned ptx_lop3(unsigned a, unsigned b, unsigned c) {
    unsigned r = 0;
    for (int i = 0; i < 8; i++)
        if (TABLE >> i & 1) r |= (i & 4 ? a : ~a) & (i & 2 ? b : ~b) & (i & 1 ? c : ~c);
    return r;
}
EMU_UNSEEN static inline uint4 ptx_load_once16(const void *global) {
    if ((uintptr_t)global % 16) emu::fail("a load of 16 bytes from an unaligned address %p", global);
    emu::watch(global, 16, emu::ONCE);
    return *(const uint4 *)global;
}
static inline void ptx_prefetch_l2(const void *) {}
static inline void ptx_bar_sync(int id, int threads, EMU_HERE) { emu::barrier("bar.sync", id, threads, false, EMU_AT); }
static inline void ptx_bar_arrive(int id, int threads, EMU_HERE) { emu::barrier_arrive("bar.arrive", id, threads, EMU_AT); }
static inline void ptx_grid_wait() { emu::grid_wait(); }
static inline void ptx_grid_launch_dependents(EMU_HERE) { emu::grid_launch_dependents(EMU_AT); }
static inline unsigned ptx_load_acquire_sys(const unsigned *p) {
    emu::let_host();
    return __atomic_load_n(p, __ATOMIC_ACQUIRE);
}
static inline void ptx_store_release_sys(unsigned *p, unsigned v) {
    __atomic_store_n(p, v, __ATOMIC_RELEASE);
}

/* ---- barriers in shared memory, products of a warpgroup ---- */

static inline unsigned ptx_shared(const void *smem) { return emu::shared_address(smem); }
static inline void ptx_mbarrier_init(uint64_t *b, int count, EMU_HERE) {
    emu::mbarrier_init(b, count, EMU_AT);
}
static inline void ptx_mbarrier_arrive(uint64_t *b, EMU_HERE) { emu::mbarrier_arrive(b, EMU_AT); }
static inline void ptx_mbarrier_arrive_at(uint64_t *b, int rank, EMU_HERE) { emu::mbarrier_arrive_at(b, rank, EMU_AT); }
static inline void ptx_mbarrier_expect(uint64_t *b, int bytes, EMU_HERE) { emu::mbarrier_expect(b, bytes, EMU_AT); }
static inline void ptx_fence_mbarrier_init() {}
static inline void ptx_copy_box(void *smem, const void *map, int x, int y, uint64_t *b, EMU_HERE) {
    emu::copy_box(smem, map, x, y, b, 1u << emu::cluster_rank(), EMU_AT);
}
static inline void ptx_copy_box_to(void *smem, const void *map, int x, int y, uint64_t *b, int blocks, EMU_HERE) {
    emu::copy_box(smem, map, x, y, b, (unsigned)blocks, EMU_AT);
}
static inline int ptx_cluster_rank() { return emu::cluster_rank(); }
static inline void ptx_cluster_sync(EMU_HERE) { emu::cluster_sync(EMU_AT); }
static inline void ptx_mbarrier_arrive_copies(uint64_t *b, EMU_HERE) {
    emu::mbarrier_arrive_copies(b, EMU_AT);
}
static inline void ptx_mbarrier_wait(uint64_t *b, int parity, EMU_HERE) {
    emu::mbarrier_wait(b, parity, EMU_AT);
}
static inline void ptx_fence_async() {}
template <int N> inline void ptx_fewer_registers() {}
template <int N> inline void ptx_more_registers() {}
static inline void ptx_wgmma_fence(EMU_HERE) {
    emu::wgmma("wgmma.fence", emu::finish_wgmma_fence, {}, EMU_AT);
}
static inline void ptx_wgmma_commit(EMU_HERE) {
    emu::wgmma("wgmma.commit_group", emu::finish_wgmma_commit, {}, EMU_AT);
}
template <int N> inline void ptx_wgmma_wait(EMU_HERE) {
    emu::Wgmma w = {};
    w.pending = N;
    emu::wgmma("wgmma.wait_group", emu::finish_wgmma_wait, w, EMU_AT);
}
static inline uint64_t ptx_wgmma_matrix(const void *smem) {
    const uint64_t swizzle_128 = 1ull << 62, eight_rows = 1024ull >> 4 << 32;
    return swizzle_128 | eight_rows | (ptx_shared(smem) & 0x3ffff) >> 4;
}
template <int N> inline void ptx_wgmma_keep(float (&)[N]) {}
template <int N>
inline void ptx_wgmma_bf16(float (&d)[N], const unsigned a[4], uint64_t b, EMU_HERE) {
    emu::Wgmma w = {};
    w.d = d, w.a = a, w.b = b, w.n = 2 * N;
    emu::wgmma("wgmma.mma_async", emu::finish_wgmma, w, EMU_AT);
}

#endif
