/* stream.cu - matrices times one token (decode) or a few: the weights stream through shared memory.
 *
 * The time of a token is the time to read its weights, so the reading must never pause.  Each block
 * takes an equal share of the rows of every matrix, as strips; its warps share the strips' units,
 * 128 bytes of each of eight rows, one run of units for each warp.  A warp copies its units with
 * cp.async into a ring of its own in shared memory, DEPTH - 1 of them ahead of the one that it
 * multiplies, and waits for nobody else.  A kernel begins to copy before the kernel ahead of it has
 * ended (programmatic dependent launch), as weights are always there: while that one finishes, and
 * while this one makes its vector, the memory stays busy.
 *
 * The products are mma.m16n8k16, BF16 in and float32 out, as for many tokens: see nvfp4.cu.  One
 * token has 16 rows of A for itself, and three of them, the BF16 numbers that add up to one
 * float32, make its numbers exact at no cost.  few.cu uses the rows for several tokens. */
#ifndef STREAM_CU
#define STREAM_CU

#include "gpu.h"
#include "product.h"
#include "residual.cu"

#define ROW_PARTS 3                     /* BF16 numbers that make one of the token's: exactly */
#define FEW_TOKENS 8                    /* the most at once: rows of A that one mma has for them */
#define UNIT_BYTES 128                  /* of a row */
#define UNIT_SHARED (8 * UNIT_BYTES + 8 * UNIT_BYTES / 8)       /* with the block scales that NVFP4 has: 4 bytes for a lane */
/* Units of a warp in shared memory.  Deep: 48 KB under way in each multiprocessor, for the
 * bandwidth of data centres, and still two kernels fit at once.  Shallow: where a block has no
 * more than 99 KB. */
#define DEEP 5
#define SHALLOW 3
/* Kernels that a multiprocessor has registers for at once: the one under way, and the next one,
 * which begins to copy. */
#define RESIDENT(depth) ((depth) == DEEP ? 2 : 1)

/* Rows of a matrix that a block multiplies with the numbers of the vector from column y on. */
typedef struct {
    const uint8_t *data, *block_scale;  /* of the first row */
    DType dtype;
    int rows, pitch, bytes, units;      /* bytes from a row to the next; bytes and units of a row that are multiplied */
    int y, packed;                      /* the order of those numbers, see Vector */
    float factor;                       /* of the matrix */
} Strip;

__device__ static inline Strip strip_of(const Weight &w, int from, int to, int y, int packed) {
    int bytes = row_bytes(w);
    return {w.data + (size_t)from * bytes, w.block_scale ? w.block_scale + (size_t)from * (bytes / 8) : NULL, w.dtype, to - from, bytes,
            bytes, (bytes + UNIT_BYTES - 1) / UNIT_BYTES, y, packed, factor(w)};
}

/* The block's share of n rows. */
__device__ static inline int share_begin(int n) { return (int)((long long)n * blockIdx.x / gridDim.x); }
__device__ static inline int share_end(int n) { return (int)((long long)n * (blockIdx.x + 1) / gridDim.x); }
__device__ static inline Strip share_of(const Weight &w, int y, int packed) {
    return strip_of(w, share_begin(w.rows), share_end(w.rows), y, packed);
}

/* ---- the vector ---- */

/* A token's numbers in shared memory: ROW_PARTS times BF16, `stride` apart, in chunks of eight
 * columns.  A matrix's numbers begin at a multiple of 256 columns.
 *
 * Order.  Lane t of a row's four multiplies a chunk with two mma, whose B are two pairs of
 * neighbouring words of the weights.  It reads the chunk as the four registers of A, of which
 * the first mma needs the first and the third (rows 0 to 7), the second mma the others (rows 8
 * to 15); what each of them makes of the other half is thrown away.  So the columns of a chunk
 * lie in the order 0 1 4 5 2 3 6 7; or, `packed`, 0 4 2 6 1 5 3 7, if all the weights are NVFP4,
 * of which a mask takes columns 0 and 4, 1 and 5 … out of a word.  Chunk j lies at j ^ (j / 4 %
 * 4), so that four lanes that read chunks 4 apart read from different banks. */
typedef struct {
    uint16_t *at;
    int stride;
} Vector;

/* Columns of the vector for a matrix with so many: units of NVFP4 have 256. */
__host__ __device__ static inline int wide(int cols) { return (cols + 255) / 256 * 256; }
__host__ __device__ static inline int vector_stride(int cols) { return wide(cols) + 32; }
__host__ static inline size_t vector_bytes(int cols) { return (size_t)2 * ROW_PARTS * vector_stride(cols); }

__device__ static inline Vector vector_at(void *shared, int cols) { return {(uint16_t *)shared, vector_stride(cols)}; }

/* What lies behind it. */
__device__ static inline uint16_t *behind(const Vector &y) { return y.at + ROW_PARTS * y.stride; }

/* Where the thread puts the four columns from 4 * threadIdx.x on; those 4 * STREAM_THREADS
 * further lie as much further. */
__device__ static inline uint32_t *place4(const Vector &y) {
    const unsigned chunk = threadIdx.x / 2;
    return (uint32_t *)(y.at + 8 * (chunk ^ (chunk / 4 % 4))) + threadIdx.x % 2;
}

/* Four columns to `to` and, of each further part, `stride` words on.  All lanes of the warp. */
__device__ static inline void put4(uint32_t *to, int stride, float4 v, int packed,
                                   int parts = ROW_PARTS) {
    const int odd = threadIdx.x % 2;
#pragma unroll
    for (int p = 0; p < parts; p++, to += stride) {
        uint32_t a = take_bf16(v.x, v.y), b = take_bf16(v.z, v.w);
        if (packed) {                   /* the neighbour has the chunk's other half */
            uint32_t other = __shfl_xor_sync(0xffffffffu, odd ? a : b, 1), low = odd ? other : a, high = odd ? b : other;
            a = __byte_perm(low, high, 0x5410);
            b = __byte_perm(low, high, 0x7632);
        }
        to[0] = a;
        to[2] = b;
    }
}

/* y = in[0..n). */
__device__ static inline void put_vector(const Vector &y, const float *in, int n, int packed) {
    uint32_t *to = place4(y);
#pragma unroll 1
    for (int i = 4 * threadIdx.x; i < wide(n); i += 4 * STREAM_THREADS, to += 2 * STREAM_THREADS)
        put4(to, y.stride / 2, load4<false>(in, i, n), packed);
}

/* Where column c is among those of the vector. */
__device__ static inline int place_of(int c, int packed) {
    const int chunk = c / 8, i = c % 8;
    return 8 * (chunk ^ (chunk / 4 % 4)) + ((packed ? 0x73516240 : 0x76325410) >> 4 * i & 7);
}

/* A vector that a kernel writes to the GPU's memory for the next one is split into its parts
 * there, once for all blocks: column c. */
__device__ static inline void put_global(uint16_t *to, int stride, int c, float v, int packed,
                                         int parts = ROW_PARTS) {
    put_parts(to + place_of(c, packed), stride, parts, v);
}

/* Columns c .. c + 3. */
__device__ static inline void put4_global(uint16_t *to, int stride, int c, float4 v, int packed,
                                          int parts) {
    const int place[4] = {place_of(c, packed), place_of(c + 1, packed), place_of(c + 2, packed), place_of(c + 3, packed)};
#pragma unroll
    for (int p = 0; p < parts; p++, to += stride) {
        uint32_t a = take_bf16(v.x, v.y), b = take_bf16(v.z, v.w);
        to[place[0]] = (uint16_t)a, to[place[1]] = (uint16_t)(a >> 16);
        to[place[2]] = (uint16_t)b, to[place[3]] = (uint16_t)(b >> 16);
    }
}

/* Begins to copy columns c .. c + n - 1 of `rows` rows of such a vector, or fewer columns at its
 * end.  c and n are multiples of 32.  Rows of `from` are `stride` numbers apart. */
__device__ static inline void copy_columns(const Vector &y, const uint16_t *from, int stride, int c,
                                           int n, int rows = ROW_PARTS) {
    for (int p = 0; p < rows; p++)
#pragma unroll 1
        for (int i = 8 * threadIdx.x; i < n && c + i < stride; i += 8 * STREAM_THREADS)
            ptx_cp_async16(y.at + p * y.stride + i, from + p * stride + c + i);
    ptx_cp_async_commit();
}
__device__ static inline void copy_vector(const Vector &y, const uint16_t *from) { copy_columns(y, from, y.stride, 0, y.stride); }

/* The same of `rows` whole rows. */
__device__ static inline void copy_rows(const Vector &y, const uint16_t *from, int rows) {
#pragma unroll 1
    for (int i = 8 * threadIdx.x; i < rows * y.stride; i += 8 * STREAM_THREADS)
        ptx_cp_async16(y.at + i, from + i);
    ptx_cp_async_commit();
}

/* ---- how a kernel begins: the residual stream of one token, and its norm ---- */

/* y from column `at` on = x * scale * norm, zero up to wide(n). */
__device__ static inline void put_fours(const Vector &y, int at, const Fours &x, float scale,
                                        const Fours &norm, int n, int packed,
                                        int parts = ROW_PARTS) {
    uint32_t *to = place4(y) + at / 2;
#pragma unroll
    for (int k = 0; k < FOURS; k++)
        if (4 * (int)(threadIdx.x + k * STREAM_THREADS) < wide(n))
            put4(to + 2 * k * STREAM_THREADS, y.stride / 2, times(x.v[k], scale, norm.v[k]), packed,
                 parts);
}

/* What settle_and_norm makes: RMSNorm(x, norm) and, behind it, unless norm2 is NULL, RMSNorm(x,
 * norm2) times `factor`, which is not packed. */
typedef struct {
    const float *norm, *norm2;
    float factor;
    int packed;
} Normed;

/* A vector that fits into the threads' registers; see settle_and_norm. */
template <class Meanwhile>
__device__ static inline void settle_narrow(const Residual &r, int hidden, const Vector &y, const Normed &n, float *red,
                                            Meanwhile meanwhile) {
    Fours norm_a, norm_b, h, b;
    if (r.norm_a) norm_a = load_fours(r.norm_a, hidden), norm_b = load_fours(r.norm_b, hidden);
    prefetch(r.a ? r.norm : NULL, hidden);
    prefetch(n.norm, hidden);
    prefetch(n.norm2, hidden);
    ptx_grid_wait();
    ptx_grid_launch_dependents();
    Fours x = load_fours(r.x, hidden);
    if (r.a) h = load_fours(r.a, hidden);
    if (r.norm_a) b = load_fours(r.b, hidden);
    meanwhile(0);
    if (r.norm_a) {
        float2 sum = block_sum2(squares(h), squares(b), red);
        float scale_a = rms_of(sum.x, hidden, r.eps), scale_b = rms_of(sum.y, hidden, r.eps);
#pragma unroll
        for (int k = 0; k < FOURS; k++) h.v[k] = plus(times(h.v[k], scale_a, norm_a.v[k]), times(b.v[k], scale_b, norm_b.v[k]));
    }
    Fours norm = load_fours(n.norm, hidden), norm2 = {};
    if (n.norm2) norm2 = load_fours(n.norm2, hidden);
    if (r.a) {
        Fours after = load_fours(r.norm, hidden);
        float scale = rms_of(block_sum2(squares(h), 0, red).x, hidden, r.eps);
#pragma unroll
        for (int k = 0; k < FOURS; k++) {
            float4 v = plus(x.v[k], times(h.v[k], scale, after.v[k]));
            x.v[k] = make_float4(v.x * r.scalar, v.y * r.scalar, v.z * r.scalar, v.w * r.scalar);
        }
    }
    if (r.to && blockIdx.x == 0) {
#pragma unroll
        for (int k = 0; k < FOURS; k++) {
            int i = 4 * (threadIdx.x + k * STREAM_THREADS);
            if (i < hidden) *(float4 *)(r.to + i) = x.v[k];
        }
    }
    float scale = rms_of(block_sum2(squares(x), 0, red).x, hidden, r.eps);
    meanwhile(1);
    put_fours(y, 0, x, scale, norm, hidden, n.packed);
    if (n.norm2) put_fours(y, wide(hidden), x, scale * n.factor, norm2, hidden, 0);
}

/* Any other: x, floats [hidden] of shared memory, holds it. */
template <class Meanwhile>
__device__ static inline void settle_wide(const Residual &r, int hidden, const Vector &y, const Normed &n, float *red, float *x,
                                          Meanwhile meanwhile) {
    ptx_grid_wait();
    ptx_grid_launch_dependents();
    meanwhile(0);
    settle(r, 0, hidden, x, red);
    if (r.to && blockIdx.x == 0)
        for (int i = threadIdx.x; i < hidden; i += STREAM_THREADS) r.to[i] = x[i];
    float scale = rms_scale(x, hidden, r.eps, red);
    meanwhile(1);
    uint32_t *to = place4(y);
#pragma unroll 1
    for (int i = 4 * threadIdx.x; i < wide(hidden); i += 4 * STREAM_THREADS, to += 2 * STREAM_THREADS) {
        float4 v = load4<false>(x, i, hidden);
        put4(to, y.stride / 2, times(v, scale, load4<false>(n.norm, i, hidden)), n.packed);
        if (n.norm2) put4(to + wide(hidden) / 2, y.stride / 2, times(v, scale * n.factor, load4<false>(n.norm2, i, hidden)), 0);
    }
}

/* A kernel waits for the one ahead of it, settles the residual stream (see Residual; block 0
 * writes it to r.to), and puts n into y. meanwhile(0) is called while the loads are under way,
 * meanwhile(1) two barriers later, before y is written.  spare: of shared memory,
 * spare_floats(hidden); red: 32 floats. */
template <class Meanwhile>
__device__ static inline void settle_and_norm(const Residual &r, int hidden, const Vector &y, const Normed &n, float *red, float *spare,
                                              Meanwhile meanwhile) {
    if (spare_floats(hidden)) settle_wide(r, hidden, y, n, red, spare, meanwhile);
    else settle_narrow(r, hidden, y, n, red, meanwhile);
}

/* ---- which units are a warp's, and fetching them ---- */

/* `left` units from this one on, in the order of units, of tiles of eight rows, and of
 * strips.  In two registers. */
typedef struct {
    unsigned strip : 10, left : 22, unit : 12, tile : 20;
} Span;

__device__ static inline int units_in(const Strip &s) { return (s.rows + 7) / 8 * s.units; }

/* The warp's share of strips first .. end - 1.  whole: never a part of eight rows' columns, so
 * that a sum is added up in the same order wherever its rows are; the strips are of one matrix. */
__device__ static inline Span span_of(const Strip *strip, int first, int end, bool whole) {
    unsigned all = 0, warp = threadIdx.x / 32, least = whole && first < end ? strip[first].units : 1;
    for (int i = first; i < end; i++) all += units_in(strip[i]);
    if (whole) all /= least;
    unsigned from = all * warp / STREAM_WARPS * least, to = all * (warp + 1) / STREAM_WARPS * least;
    Span s = {(unsigned)first, to - from, 0, 0};
    if (!s.left) return s;
    for (unsigned n; from >= (n = units_in(strip[s.strip])); s.strip++) from -= n;
    const unsigned units = strip[s.strip].units;
    s.tile = from / units;
    s.unit = from - s.tile * units;
    return s;
}

/* The first unit of the next eight rows. */
__device__ static inline void next_rows(Span &s, const Strip *strip) {
    s.unit = 0;
    s.tile++;
    if (8 * (int)s.tile < strip[s.strip].rows) return;
    s.tile = 0;
    do s.strip++;
    while (s.left && !strip[s.strip].rows);
}

/* What a warp fetches: a run of units of the same eight rows, then what is left of a span, then
 * another span. */
typedef struct {
    Span now, then;
    Span all[2];                        /* both spans from their beginnings: what is to be multiplied */
    const uint8_t *data, *block_scale;  /* of the lane, in the next unit */
    int run, rest, least;               /* units; bytes from the lane's first to the row's end; with fewer it has no block scales */
    int fetched;
    uint8_t *ring;
} Feed;

/* The next run. */
__device__ static inline void aim(Feed &f, const Strip *strip) {
    if (!f.now.left) {
        f.now = f.then;
        f.then.left = 0;
    }
    f.run = 0;
    if (!f.now.left) return;
    const Strip &s = strip[f.now.strip];
    const int lane = threadIdx.x % 32, row = 8 * f.now.tile + lane / 4, t = lane % 4;
    f.run = min(s.units - (int)f.now.unit, (int)f.now.left);
    f.data = s.data + (size_t)row * s.pitch + UNIT_BYTES * (int)f.now.unit + 16 * t;
    f.block_scale = (s.block_scale ? s.block_scale : s.data) + (size_t)row * (s.pitch / 8) + UNIT_BYTES / 8 * (int)f.now.unit + 4 * t;
    f.rest = row < s.rows ? s.bytes - UNIT_BYTES * (int)f.now.unit - 16 * t : 0;
    f.least = s.block_scale ? 16 * t : INT_MAX;
    f.now.left -= f.run;
    f.now.unit += f.run;
    if ((int)f.now.unit == s.units) next_rows(f.now, strip);
}

/* Begins to copy a unit to `slot` of the ring.  A lane's 16 bytes are those of row lane / 4 at
 * 16 (lane % 4), and 64 bytes on; what lies beyond the end of a row, or the last row, becomes
 * zero.  policy: weights leave the L2 cache first, so that what all blocks share stays. */
__device__ static inline void fetch(Feed &f, uint8_t *slot, uint64_t policy) {
    const int lane = threadIdx.x % 32;
    ptx_cp_async16_once(slot + 16 * lane, f.data, f.rest > 0 ? 16 : 0, policy);
    ptx_cp_async16_once(slot + 512 + 16 * lane, f.data + 64, f.rest > 64 ? 16 : 0, policy);
    if (f.rest > f.least) ptx_cp_async4(slot + 1024 + 4 * lane, f.block_scale);
    f.data += UNIT_BYTES;
    f.block_scale += UNIT_BYTES / 8;
    f.rest -= UNIT_BYTES;
}

/* Fetches as far ahead as the ring allows, or, with `more` to come, as the first span reaches. */
template <int DEPTH> __device__ static inline void fill(Feed &f, const Strip *strip, bool more) {
#pragma unroll 1
    for (; f.fetched < DEPTH - 1 && (f.run || !more); f.fetched++) {
        if (f.run) {
            fetch(f, f.ring + f.fetched * UNIT_SHARED, ptx_evict_first());
            if (!--f.run) aim(f, strip);
        }
        ptx_cp_async_commit();
    }
}

__host__ __device__ static inline size_t ring_bytes(int depth) { return (size_t)STREAM_WARPS * depth * UNIT_SHARED; }

/* Begins with the warp's share of strips 0 .. n - 1.  more: others follow, see also_stream;
 * whole: see span_of. */
template <int DEPTH>
__device__ static inline Feed begin_stream(uint8_t *rings, const Strip *strip, int n, bool more = false, bool whole = false) {
    Feed f = {};
    f.now = f.all[0] = span_of(strip, 0, n, whole);
    f.ring = rings + threadIdx.x / 32 * DEPTH * UNIT_SHARED;
    aim(f, strip);
    fill<DEPTH>(f, strip, more);
    return f;
}

/* The warp's share of strips first .. end - 1 comes after what it has. */
template <int DEPTH> __device__ static inline void also_stream(Feed &f, const Strip *strip, int first, int end) {
    f.then = f.all[1] = span_of(strip, first, end, false);
    if (!f.run) aim(f, strip);
    fill<DEPTH>(f, strip, false);
}

/* ---- multiplying them ---- */

#define PACKED 100                      /* how a strip is multiplied: by its DType, or, NVFP4 with a vector that is packed, by this */

/* Eight E2M1 of a word times their block's scale, as scaled_e2m1 but columns 0 and 4, 1 and 5, 2
 * and 6, 3 and 7. */
__device__ static inline void packed_e2m1(uint32_t word, uint32_t scale, uint32_t b[4]) {
    const uint32_t sign = 0x80008000, number = 0x01c001c0;
    b[0] = ptx_mul_bf16x2((word << 12 & sign) | (word << 6 & number), scale);
    b[1] = ptx_mul_bf16x2((word << 8 & sign) | (word << 2 & number), scale);
    b[2] = ptx_mul_bf16x2((word << 4 & sign) | (word >> 2 & number), scale);
    b[3] = ptx_mul_bf16x2((word & sign) | (word >> 6 & number), scale);
}

/* acc += unit `unit` times the vector, whose numbers for the row begin at x, in the lane's own
 * part.  Four accumulators, as a tensor core needs a while; of the even ones rows 0 to 7 count,
 * of the odd ones the others.  Rows beyond the parts are read as the first one: their sums are
 * thrown away. */
template <int KIND> __device__ static inline void multiply_unit(float acc[4][4], const uint8_t *slot, const uint16_t *x, int unit) {
    int lane = threadIdx.x % 32, t = lane % 4;
    auto multiply = [&](int turn, int chunk, const uint32_t b[4]) {
        const uint4 n = *(const uint4 *)(x + 8 * chunk);
        const uint32_t a[4] = {n.x, n.y, n.z, n.w};
        ptx_mma_bf16_16816(acc[2 * turn], a, b);
        ptx_mma_bf16_16816(acc[2 * turn + 1], a, b + 2);
    };
    [[maybe_unused]] constexpr int TURNS = KIND == DT_BF16 || KIND == PACKED ? 2 : 1;     /* the others are rare: less code */
#pragma unroll TURNS
    for (int i = 0; i < 2; i++) {
        const uint4 own = *(const uint4 *)(slot + 512 * i + 16 * lane);
        const uint32_t word[4] = {own.x, own.y, own.z, own.w};
        if constexpr (KIND == DT_BF16) multiply(i, 8 * unit + 4 * i + (t ^ i ^ (unit % 2 * 2)), word);
        else if constexpr (KIND == DT_U8 || KIND == PACKED) {
            uint32_t scales = block_scales(*(const uint16_t *)(slot + 1024 + 16 * (lane / 4) + 8 * i + 2 * t));
#pragma unroll TURNS * TURNS
            for (int k = 0; k < 4; k++) {
                uint32_t b[4], scale = __byte_perm(scales, 0, k < 2 ? 0x1010 : 0x3232);
                if (KIND == PACKED) packed_e2m1(word[k], scale, b);
                else scaled_e2m1(((const uint32_t *)(slot + 512 * i + 16 * lane))[k], scale, b);
                multiply(KIND == PACKED ? k % 2 : 0, 32 * unit + 16 * i + 4 * t + (k ^ t), b);
            }
        } else {
            const uint4 n = *(const uint4 *)(x + 8 * (4 * unit + ((2 * i + t / 2) ^ (unit & 3))));
            const uint32_t a[4] = {t % 2 ? n.y : n.x, 0, t % 2 ? n.w : n.z, 0};
            float f[4];
            for (int k = 0; k < 4; k++) f[k] = __uint_as_float(word[k]);
            for (int k = 0; k < 3; k++) {
                uint32_t b[2];
                b[0] = take_bf16(f[0], f[1]);
                b[1] = take_bf16(f[2], f[3]);
                ptx_mma_bf16_16816(acc[0], a, b);
            }
        }
    }
}

/* The sums of eight rows over a part of their columns, for one token. */
typedef struct {
    int strip, row, ends;               /* strip -1: none; ends: the columns reach the rows' end */
    float sum[8];
} Edge;

/* The edges of a block that multiplies with n tokens: [2 spans][STREAM_WARPS][2][n]. */
__host__ __device__ static inline int n_edges(int n) { return 2 * STREAM_WARPS * 2 * n; }

/* The tokens of a vector: row token * parts + p of it is part p of that token.  All rows together
 * are at most eight, as an mma has so many for them. */
typedef struct {
    int n, parts;
} Tokens;

/* acc += the next m units, from `unit` of their row on; as many are fetched, unless none is
 * left. */
template <int KIND, int DEPTH>
__device__ static inline void multiply_run(float acc[4][4], Feed &feed, uint8_t *&slot, uint8_t *&free, const uint16_t *x, int unit, int m) {
    const bool fetching = feed.run > 0;
    const uint64_t policy = ptx_evict_first();
#pragma unroll 1
    for (const int end = unit + m; unit < end; unit++) {
        ptx_cp_async_wait<DEPTH - 2>();
        __syncwarp();                   /* all lanes' copies are there, and the unit before is not needed any more */
        if (fetching) fetch(feed, free, policy);
        ptx_cp_async_commit();
        multiply_unit<KIND>(acc, slot, x, unit);
        free = slot;
        slot = slot == feed.ring + (DEPTH - 1) * UNIT_SHARED ? feed.ring : slot + UNIT_SHARED;
    }
}

/* Multiplies all that the feed fetches, from the beginning; done(strip, row, token, sum) gets each
 * sum once, in one thread: of row `row` of the strip.  y and then_y are the vectors of the two
 * spans.  A warp that has all units of eight rows is done with them; what it has of others, at
 * most of the first and of the last of a span, is added up in the end, in the order of the
 * warps.  edges: n_edges(tokens.n) of shared memory.  All threads of the block; the vectors must
 * be there, and a barrier after them. */
template <int DEPTH, class Done>
__device__ static inline void stream(Feed &feed, const Strip *strip, const Vector &y,
                                     const Vector &then_y, const Tokens &tokens, Edge *edges,
                                     Done done) {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const int part = lane / 4 < tokens.n * tokens.parts ? lane / 4 : 0;
    const int token = lane / 4 / tokens.parts;
    /* This lane has the token's first part, and adds the others to it. */
    const bool adds = token < tokens.n && token * tokens.parts == lane / 4;
    uint8_t *slot = feed.ring, *free = feed.ring + (DEPTH - 1) * UNIT_SHARED;
    /* `begun`: of the rows that this warp began, not of those that another one began. */
    auto edge = [&](int span, int of_warp, int begun, int of_token) -> Edge & {
        return edges[((span * STREAM_WARPS + of_warp) * 2 + begun) * tokens.n + of_token];
    };
    for (int i = lane; i < 4 * tokens.n; i += 32) edge(i % 2, warp, i / 2 % 2, i / 4).strip = -1;
    __syncwarp();
#pragma unroll 1
    for (int span = 0; span < 2; span++)
        for (Span now = span ? feed.all[1] : feed.all[0]; now.left;) {
            const Strip &s = strip[now.strip];
            const int of = now.unit, n = min((int)now.left, s.units - of), rows = s.rows;
            const float by = s.factor;
            const int kind = s.dtype == DT_U8 && s.packed ? PACKED : s.dtype;
            const uint16_t *x = (span ? then_y.at + part * then_y.stride : y.at + part * y.stride) + s.y;
            float acc[4][4] = {};
            for (int at = 0, m; at < n; at += m) {
                m = feed.run ? min(feed.run, n - at) : n - at;
                if (kind == DT_BF16) multiply_run<DT_BF16, DEPTH>(acc, feed, slot, free, x, of + at, m);
                else if (kind == PACKED) multiply_run<PACKED, DEPTH>(acc, feed, slot, free, x, of + at, m);
                else if (kind == DT_U8) multiply_run<DT_U8, DEPTH>(acc, feed, slot, free, x, of + at, m);
                else multiply_run<DT_F32, DEPTH>(acc, feed, slot, free, x, of + at, m);
                if (feed.run && !(feed.run -= m)) aim(feed, strip);
            }
            const bool whole = n == s.units, begun = of > 0, ends = of + n == s.units;
            const int row = 8 * now.tile, which = now.strip;
            now.left -= n;
            now.unit += n;
            if ((int)now.unit == s.units) next_rows(now, strip);
            /* Lane 4 * (row of the vector) + t has the sums of rows 2t and 2t + 1. */
#pragma unroll
            for (int k = 0; k < 2; k++) {
                float v = (acc[0][k] + acc[2][k]) + (acc[1][2 + k] + acc[3][2 + k]);
                if (tokens.parts == 3) {
                    const float second = __shfl_down_sync(0xffffffffu, v, 4);
                    const float third = __shfl_down_sync(0xffffffffu, v, 8);
                    v = v + second + third;
                }
                if (!adds) continue;
                const int r = 2 * (lane % 4) + k;
                Edge &e = edge(span, warp, !begun, token);
                if (!whole) e.sum[r] = v, e.strip = which, e.row = row, e.ends = ends;
                else if (row + r < rows) done(which, row + r, token, v * by);
            }
        }
    __syncthreads();
    for (int i = threadIdx.x; i < 2 * STREAM_WARPS * 8 * tokens.n; i += STREAM_THREADS) {
        const int r = i % 8, first = i / 8 % STREAM_WARPS, span = i / 8 / STREAM_WARPS % 2;
        const int of_token = i / 8 / STREAM_WARPS / 2;
        const Edge &begun = edge(span, first, 1, of_token);
        if (begun.strip < 0 || begun.row + r >= strip[begun.strip].rows) continue;
        float sum = begun.sum[r];
        for (int w = first + 1; w < STREAM_WARPS; w++) {
            const Edge &more = edge(span, w, 0, of_token);
            if (more.strip < 0) continue;
            if (more.strip != begun.strip || more.row != begun.row) break;
            sum += more.sum[r];
            if (more.ends) break;
        }
        done(begun.strip, begun.row + r, of_token, sum * strip[begun.strip].factor);
    }
}

/* One token: done(strip, row, sum). */
template <int DEPTH, class Done>
__device__ static inline void stream(Feed &feed, const Strip *strip, const Vector &y,
                                     const Vector &then_y, Done done) {
    SHARED(Edge, edges, [2 * STREAM_WARPS * 2]);
    stream<DEPTH>(feed, strip, y, then_y, {1, ROW_PARTS}, edges,
                  [&](int i, int row, int, float sum) { done(i, row, sum); });
}

/* Of a strip of w's rows, columns c .. c + columns - 1, or fewer at the rows' end; both are
 * multiples of 256. */
__device__ static inline Strip columns_of(Strip s, const Weight &w, int c, int columns) {
    const int bytes = row_bytes(w), of_each = (int)((long long)columns * bytes / padded(w.cols));
    const int skipped = c / columns * of_each;
    s.data += skipped;
    if (s.block_scale) s.block_scale += skipped / 8;
    s.bytes = min(bytes - skipped, of_each);
    s.units = (s.bytes + UNIT_BYTES - 1) / UNIT_BYTES;
    return s;
}

/* out = w . in, one token.  The vector comes split (from), or as float32 (in).  columns: as many
 * of it as there is room for, a multiple of 256; where that is not all of them, the rows are
 * read in several goes.  shared: the ring, a vector of min(columns, w.cols). */
template <int DEPTH>
__global__ static void __launch_bounds__(STREAM_THREADS, RESIDENT(DEPTH))
    row_kernel(const __grid_constant__ Weight w, const uint16_t *from, const float *in, int columns, float *out) {
    DYNAMIC_SHARED(uint8_t, shared);
    SHARED(Strip, strip, [1]);
    const int packed = w.dtype == DT_U8, first = share_begin(w.rows);
    for (int c = 0; c < w.cols; c += columns) {
        if (threadIdx.x == 0) strip[0] = columns_of(share_of(w, 0, packed), w, c, columns);
        __syncthreads();
        Feed feed = begin_stream<DEPTH>(shared, strip, 1);
        if (c == 0) {
            ptx_grid_wait();
            ptx_grid_launch_dependents();
        }
        const int n = min(w.cols - c, columns);
        Vector y = vector_at(shared + ring_bytes(DEPTH), n);
        if (from) copy_columns(y, from, vector_stride(w.cols), c, wide(n));
        else put_vector(y, in + c, n, packed);
        ptx_cp_async_wait<0>();
        __syncthreads();
        auto done = [&](int, int row, float sum) { out[first + row] = c ? out[first + row] + sum : sum; };
        stream<DEPTH>(feed, strip, y, y, done);
        __syncthreads();
    }
}

#endif
