/* stream.cu - matrices times one token (decode) or a few: the weights stream through shared memory.
 *
 * The time of a token is the time to read its weights, so the reading must never pause.  Each block
 * takes an equal share of the rows of every matrix; such a run of rows is a Strip.  The warps of
 * the block share the strips' units.  A unit is 128 bytes of each of eight rows, and each warp gets
 * one run of units (Span).  A warp copies its units with cp.async into a ring of its own in shared
 * memory, DEPTH - 1 units ahead of the one that it multiplies (Feed), and waits for no other warp.
 * A kernel begins to copy before the kernel ahead of it has ended (programmatic dependent launch,
 * see gpu.h), as weights are always there.  So the memory stays busy while the kernel ahead
 * finishes and while this kernel makes its vector.
 *
 * A kernel goes like this: describe the strips; begin_stream; make the vector (settle_and_norm, or
 * copy_vector); a barrier; stream, which multiplies and gives each sum to `done`.
 *
 * The products are mma.m16n8k16, BF16 in and float32 out.  A is the weights, B the tokens.  One
 * token takes three of B's eight columns: the three BF16 numbers that add up to each of its float32
 * numbers, so that the products are exact at no cost.  It takes them twice, for the two halves of a
 * unit (see Vector).  few.cu uses the columns for several tokens. */
#ifndef STREAM_CU
#define STREAM_CU

#include "gpu.h"
#include "product.h"
#include "residual.cu"

/* The BF16 numbers that add up to a token's float32, exactly: 3 times 8 bits of mantissa are its
 * 24.  Each is a column of B in the mma. */
#define ROW_PARTS 3
/* The most tokens at once: an mma has so many columns of B for them. */
#define STREAMED_TOKENS 8
/* Where eight rows of a unit have their scales and their zero points in shared memory.  Of a row's
 * 16 bytes of scales the second and the third four change places, so that a lane's scales in both
 * halves of the unit (see Vector) are neighbours.  The 128 bytes of a unit are a line of the L2
 * cache, and of them each of a row's four lanes copies twice 16 bytes, the most that cp.async
 * takes. */
#define UNIT_SCALES (8 * UNIT_BYTES)
#define UNIT_ZEROS (UNIT_SCALES + 8 * 16)
/* Units that each warp has in shared memory.  DEEP keeps 48 KB under way in each multiprocessor (4
 * units of 1 KB for each of 12 warps), enough for the bandwidth of data centres, and two kernels
 * still fit on a multiprocessor at once.  SHALLOW is for chips on which a block has no more than 99
 * KB.  Both come from these counts, not from a comparison.  To tune them, compare bench/gpusim
 * --step decode. */
#define DEEP 5
#define SHALLOW 3
/* DEPTH of a kernel is DEEP or SHALLOW and, if the kernel multiplies matrices of every StripKind,
 * so much more.  Without it a kernel multiplies BF16, float32 and NVFP4 alone, as the others' code
 * would take registers from NVFP4's: one token of the 26B-A4B would take 1.5 % longer (predicted by
 * bench/gpusim). */
#define EVERY_KIND 16
/* Kernels that a multiprocessor has registers for at once: the one under way, and the next one,
 * which begins to copy. */
#define RESIDENT(depth) ((depth) % EVERY_KIND == DEEP ? 2 : 1)

/* Units that a warp has in a ring of DEPTH `depth`, and the shared memory of each. */
__host__ __device__ static constexpr int units_of_ring(int depth) { return depth % EVERY_KIND; }
__host__ __device__ static constexpr int unit_shared(int depth) {
    return depth < EVERY_KIND ? UNIT_ZEROS : UNIT_ZEROS + 8 * 4;
}

/* How a strip is multiplied: by the format of its numbers and, where two of them share a byte, by
 * the order of its vector (see Vector). */
typedef enum {
    KIND_BF16, KIND_F16, KIND_F32, KIND_NVFP4, KIND_NVFP4_PACKED, KIND_FP8, KIND_INT8, KIND_INT4,
    KIND_INT4_PACKED,
    KIND_INT4_ZEROS                     /* packed, with zero points; in a Strip KIND_INT4_PACKED */
} StripKind;

__device__ static inline StripKind kind_of(const Weight &w, int packed) {
    switch (w.dtype) {
    case DT_BF16: return KIND_BF16;
    case DT_F16: return KIND_F16;
    case DT_F8_E4M3: return KIND_FP8;
    case DT_U8: return packed ? KIND_NVFP4_PACKED : KIND_NVFP4;
    case DT_I32: break;
    default: return KIND_F32;
    }
    if (!is_int4(w)) return KIND_INT8;
    return packed ? KIND_INT4_PACKED : KIND_INT4;
}

/* A run of rows of a matrix, which a block multiplies with the numbers of the vector from column y
 * on.  (On the CPU a strip is something else: 16 tokens, cpu.h.) */
typedef struct {
    const uint8_t *data, *block_scale;  /* of the first row */
    uint8_t kind, scale_step;           /* StripKind; scale_step in product.h */
    uint16_t units;                     /* of each row, how much is multiplied; in bytes: `bytes` */
    int rows, pitch, scale_pitch;       /* bytes from a row to the next, and from its scales */
    int bytes, y;
    int least;                          /* Feed.least of lane 0 of a row */
    float factor;                       /* of the matrix: see factor in product.h */
} Strip;

/* Strip.least.  There are no scales; a lane of NVFP4 has no scales beyond the end of a row; the
 * other formats have scales for the whole of the last unit of each row.  NO_ROW is the Feed.rest of
 * a lane that has no row. */
enum { NO_SCALES = INT_MAX - 64, SCALES_OF_ROW = 0, SCALES_OF_UNITS = -(1 << 29),
       NO_ROW = -(1 << 30) };

/* Rows from … to - 1 of w, with all of their columns.  packed: the order of the vector.  Nothing
 * streams before its Strip is there, so the formats that matter most have fewer instructions. */
__device__ static inline Strip strip_of(const Weight &w, int from, int to, int y, int packed) {
    Strip s;
    s.rows = to - from;
    s.y = y;
    if (w.dtype == DT_BF16 || w.dtype == DT_U8) {
        const bool nvfp4 = w.dtype == DT_U8;
        const int nvfp4_kind = KIND_NVFP4 + (packed != 0);
        s.kind = (uint8_t)(nvfp4 ? nvfp4_kind : KIND_BF16);
        s.bytes = padded(w.cols) * (nvfp4 ? 1 : 4) / 2;
        s.scale_step = 16;
        s.scale_pitch = s.bytes / 8;
        s.factor = nvfp4 ? w.scale * 128 : 1;                       /* as factor in product.h */
    } else {
        s.kind = (uint8_t)kind_of(w, packed);
        s.bytes = row_bytes(w);
        s.scale_step = (uint8_t)scale_step(w);
        s.scale_pitch = scale_pitch(w);
        s.factor = 1;
    }
    const int least = w.dtype == DT_U8 ? SCALES_OF_ROW : SCALES_OF_UNITS;
    const uint8_t *scales = w.block_scale ? w.block_scale : w.data;
    s.least = w.block_scale ? least : NO_SCALES;
    s.units = (uint16_t)((s.bytes + UNIT_BYTES - 1) / UNIT_BYTES);
    s.pitch = s.bytes;
    s.data = w.data + (size_t)from * s.bytes;
    s.block_scale = scales + (size_t)from * s.scale_pitch;
    return s;
}

/* This block's share of n rows: share_begin(n) … share_end(n) - 1.  n times the number of blocks
 * fits into 32 bits: Span.tile allows 2^23 rows, and a GPU has fewer than 2^9 multiprocessors.  (A
 * division of 64 bits takes half a microsecond, and all warps wait for it.) */
__device__ static inline int share_begin(int n) { return (unsigned)n * blockIdx.x / gridDim.x; }
__device__ static inline int share_end(int n) {
    return (unsigned)n * (blockIdx.x + 1) / gridDim.x;
}
/* This block's share of w's rows. */
__device__ static inline Strip share_of(const Weight &w, int y, int packed) {
    return strip_of(w, share_begin(w.rows), share_end(w.rows), y, packed);
}

/* ---- the vector ---- */

/* The numbers of one token or a few in shared memory, as BF16: rows of `stride` numbers, ROW_PARTS
 * of them for one token (its first parts, second parts, third parts), or `parts` for each of
 * several tokens.  A row is chunks of eight columns.  The numbers for one matrix begin at a
 * multiple of 256 columns.
 *
 * Order.  Lane t of a row's four takes eight columns x of the first half of a unit and eight
 * columns y of its second half, and multiplies them with two mma (multiply_chunk):
 *   1. Rows 0 to 7 of A are x of the unit's eight rows, and rows 8 to 15 are y of the same rows.
 *      The first mma has four of the eight columns, the second one the other four.
 *   2. Columns 0 to 3 of B are up to four rows of the vector, at x's columns.  Columns 4 to 7 are
 *      the same rows at y's columns.  Lane 4 i + t reads the chunk of column i.
 *   3. So x times columns 0 to 3, and y times columns 4 to 7, are what is wanted.  What an mma
 *      makes of x and y's columns, and of y and x's, is thrown away.
 *   4. With more than four rows (`full`) columns 0 to 7 of B are eight rows of the vector at x's
 *      columns, and two further mma have them at y's columns.
 * The columns of a row lie as they are numbered, unless all the weights are nibbles (NVFP4, INT4;
 * `packed`): then the columns of a chunk lie in the order 0 4 1 5 2 6 3 7, as one mask takes
 * columns 0 and 4 out of a word of eight numbers, the next one columns 1 and 5, and so on
 * (packed_e2m1, int4_pairs).  And chunk j lies at j ^ (j / 4 % 4), so that four lanes that read
 * chunks 4 apart read from different banks. */
typedef struct {
    uint16_t *at;
    int stride;
} Vector;

/* Columns of the vector for a matrix of `cols` columns: units of nibbles have 256 columns. */
__host__ __device__ static inline int wide(int cols) { return (cols + 255) / 256 * 256; }
/* Numbers from a row of the vector to the next: 64 bytes more than the columns, so that two
 * neighbouring rows lie in different banks. */
__host__ __device__ static inline int vector_stride(int cols) { return wide(cols) + 32; }
/* Bytes of one token's vector. */
__host__ static inline size_t vector_bytes(int cols) {
    return (size_t)2 * ROW_PARTS * vector_stride(cols);
}

__device__ static inline Vector vector_at(void *shared, int cols) {
    return {(uint16_t *)shared, vector_stride(cols)};
}

/* The memory behind one token's vector. */
__device__ static inline uint16_t *behind(const Vector &y) { return y.at + ROW_PARTS * y.stride; }

/* Where chunk j of a row of the vector lies, in chunks. */
__device__ static inline unsigned chunk_place(unsigned j, int packed) {
    return packed ? j ^ j / 4 % 4 : j;
}

/* Where the thread puts columns 4 * threadIdx.x … 4 * threadIdx.x + 3.  The thread's next four
 * columns, 4 * STREAM_THREADS further, lie just as much further. */
__device__ static inline uint32_t *place4(const Vector &y, int packed) {
    return (uint32_t *)(y.at + 8 * chunk_place(threadIdx.x / 2, packed)) + threadIdx.x % 2 * 2;
}

/* Puts four columns into the vector: their first parts at `to`, which is from place4, each further
 * part `stride` words on.  All lanes of the warp call it. */
__device__ static inline void put4(uint32_t *to, int stride, float4 v, int packed,
                                   int parts = ROW_PARTS) {
    const int odd = threadIdx.x % 2;
#pragma unroll
    for (int p = 0; p < parts; p++, to += stride) {
        uint32_t a = take_bf16(v.x, v.y), b = take_bf16(v.z, v.w);
        if (packed) {                   /* the neighbour has the chunk's other half */
            const uint32_t other = __shfl_xor_sync(0xffffffffu, odd ? a : b, 1);
            const uint32_t low = odd ? other : a;
            const uint32_t high = odd ? b : other;
            a = __byte_perm(low, high, 0x5410);
            b = __byte_perm(low, high, 0x7632);
        }
        *(uint2 *)to = make_uint2(a, b);
    }
}

/* y = in [n], zeros up to wide(n).  The whole block. */
__device__ static inline void put_vector(const Vector &y, const float *in, int n, int packed) {
    uint32_t *to = place4(y, packed);
#pragma unroll 1
    for (int i = 4 * threadIdx.x; i < wide(n); i += 4 * STREAM_THREADS, to += 2 * STREAM_THREADS)
        put4(to, y.stride / 2, load4<false>(in, i, n), packed);
}

/* The place of column c in a row of the vector: see Vector. */
__device__ static inline int place_of(int c, int packed) {
    const int i = c % 8;
    return 8 * chunk_place(c / 8, packed) + (packed ? 2 * (i % 4) + i / 4 : i);
}

/* Writes column c of a vector in the GPU's memory.  A kernel that computes a vector for the next
 * one splits it into its parts there, once for all blocks. */
__device__ static inline void put_global(uint16_t *to, int stride, int c, float v, int packed,
                                         int parts = ROW_PARTS) {
    put_parts(to + place_of(c, packed), stride, parts, v);
}

/* Writes columns c … c + 3 of such a vector. */
__device__ static inline void put4_global(uint16_t *to, int stride, int c, float4 v, int packed,
                                          int parts) {
    const int place[4] = {place_of(c, packed), place_of(c + 1, packed), place_of(c + 2, packed),
                          place_of(c + 3, packed)};
#pragma unroll
    for (int p = 0; p < parts; p++, to += stride) {
        uint32_t a = take_bf16(v.x, v.y), b = take_bf16(v.z, v.w);
        to[place[0]] = (uint16_t)a;
        to[place[1]] = (uint16_t)(a >> 16);
        to[place[2]] = (uint16_t)b;
        to[place[3]] = (uint16_t)(b >> 16);
    }
}

/* Begins to copy columns c … c + n - 1 of `rows` rows of such a vector to y, or fewer columns at
 * its end.  c and n are multiples of 32.  The rows of `from` are `stride` numbers apart.  The
 * copies are one group of cp.async, as in the two functions below. */
__device__ static inline void copy_columns(const Vector &y, const uint16_t *from, int stride, int c,
                                           int n, int rows = ROW_PARTS) {
    for (int p = 0; p < rows; p++)
#pragma unroll 1
        for (int i = 8 * threadIdx.x; i < n && c + i < stride; i += 8 * STREAM_THREADS)
            ptx_cp_async16(y.at + p * y.stride + i, from + p * stride + c + i);
    ptx_cp_async_commit();
}
/* Begins to copy one token's vector. */
__device__ static inline void copy_vector(const Vector &y, const uint16_t *from) {
    copy_columns(y, from, y.stride, 0, y.stride);
}

/* Begins to copy `rows` whole rows, which follow each other as in y. */
__device__ static inline void copy_rows(const Vector &y, const uint16_t *from, int rows) {
#pragma unroll 1
    for (int i = 8 * threadIdx.x; i < rows * y.stride; i += 8 * STREAM_THREADS)
        ptx_cp_async16(y.at + i, from + i);
    ptx_cp_async_commit();
}

/* ---- how a kernel begins: the residual stream of one token, and its norm ---- */

/* y from column `at` on = x * scale * norm, numbers [n] in the block's registers; zeros up to
 * wide(n). */
__device__ static inline void put_fours(const Vector &y, int at, const Fours &x, float scale,
                                        const Fours &norm, int n, int packed,
                                        int parts = ROW_PARTS) {
    uint32_t *to = place4(y, packed) + at / 2;
#pragma unroll
    for (int k = 0; k < FOURS; k++)
        if (4 * (int)(threadIdx.x + k * STREAM_THREADS) < wide(n))
            put4(to + 2 * k * STREAM_THREADS, y.stride / 2, times(x.v[k], scale, norm.v[k]), packed,
                 parts);
}

/* What settle_and_norm puts into the vector: RMSNorm(x, norm) and, from column wide(hidden) on,
 * RMSNorm(x, norm2) * factor, which is never in the packed order.  norm2 NULL: the first alone. */
typedef struct {
    const float *norm, *norm2;
    float factor;
    int packed;
} Normed;

/* Begins to bring the weights of settle_and_norm's norms into the L2 cache.  A kernel calls it
 * before begin_stream, as they would come after the whole ring otherwise; with EVERY_KIND behind
 * it, as registers are few there. */
__device__ static inline void prefetch_norms(const Residual &r, int hidden, const Normed &n) {
    prefetch(r.norm_a, hidden);
    prefetch(r.norm_b, hidden);
    prefetch(r.a ? r.norm : NULL, hidden);
    prefetch(n.norm, hidden);
    prefetch(n.norm2, hidden);
}

/* settle_and_norm for a vector that fits into the block's registers (spare_floats is 0).  Loads are
 * begun as early as they may be, so that the block waits for memory as few times as it can:
 *   1. Before ptx_grid_wait the weights of the norms, which are always there.  prefetch_norms has
 *      begun to bring all of them; the two that are needed first go to registers.
 *   2. After it x and what is to be added to x.
 *   3. The sum of squares of the two MLPs' outputs, and their norms, at the end of a layer with
 *      experts.
 *   4. x' itself, and block 0 writes it.
 *   5. The norms of x' become the vector. */
template <class Meanwhile>
__device__ static inline void settle_narrow(const Residual &r, int hidden, const Vector &y,
                                            const Normed &n, float *red, Meanwhile meanwhile) {
    Fours norm_a, norm_b, h, b;
    if (r.norm_a) {
        norm_a = load_fours(r.norm_a, hidden);
        norm_b = load_fours(r.norm_b, hidden);
    }
    ptx_grid_wait();
    ptx_grid_launch_dependents();
    Fours x = load_fours(r.x, hidden);
    if (r.a) h = load_fours(r.a, hidden);
    if (r.norm_a) b = load_fours(r.b, hidden);
    meanwhile();
    if (r.norm_a) {
        const float2 sum = block_sum2(squares(h), squares(b), red);
        const float scale_a = rms_of(sum.x, hidden, r.eps);
        const float scale_b = rms_of(sum.y, hidden, r.eps);
#pragma unroll
        for (int k = 0; k < FOURS; k++)
            h.v[k] = plus(times(h.v[k], scale_a, norm_a.v[k]), times(b.v[k], scale_b, norm_b.v[k]));
    }
    Fours norm = load_fours(n.norm, hidden), norm2 = {};
    if (n.norm2) norm2 = load_fours(n.norm2, hidden);
    if (r.a) {
        const Fours after = load_fours(r.norm, hidden);
        const float scale = rms_of(block_sum2(squares(h), 0, red).x, hidden, r.eps);
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
    const float scale = rms_of(block_sum2(squares(x), 0, red).x, hidden, r.eps);
    put_fours(y, 0, x, scale, norm, hidden, n.packed);
    if (n.norm2) put_fours(y, wide(hidden), x, scale * n.factor, norm2, hidden, 0);
}

/* settle_and_norm for any other vector, which is in x [hidden] in shared memory meanwhile. */
template <class Meanwhile>
__device__ static inline void settle_wide(const Residual &r, int hidden, const Vector &y,
                                          const Normed &n, float *red, float *x,
                                          Meanwhile meanwhile) {
    ptx_grid_wait();
    ptx_grid_launch_dependents();
    meanwhile();
    settle(r, 0, hidden, x, red);
    if (r.to && blockIdx.x == 0)
        for (int i = threadIdx.x; i < hidden; i += STREAM_THREADS) r.to[i] = x[i];
    const float scale = rms_scale(x, hidden, r.eps, red);
    uint32_t *to = place4(y, n.packed), *to2 = place4(y, 0) + wide(hidden) / 2;
#pragma unroll 1
    for (int i = 4 * threadIdx.x; i < wide(hidden); i += 4 * STREAM_THREADS) {
        const float4 v = load4<false>(x, i, hidden);
        put4(to, y.stride / 2, times(v, scale, load4<false>(n.norm, i, hidden)), n.packed);
        if (n.norm2) {
            const float4 second = times(v, scale * n.factor, load4<false>(n.norm2, i, hidden));
            put4(to2, y.stride / 2, second, 0);
        }
        to += 2 * STREAM_THREADS;
        to2 += 2 * STREAM_THREADS;
    }
}

/* Every kernel of one token that needs a norm begins so: the block waits for the kernel ahead,
 * settles the residual stream (see Residual; block 0 alone writes it to r.to), and puts what n asks
 * for into y.  The vector may be read after the next barrier.  meanwhile() is called while the
 * loads are under way, right after ptx_grid_wait.  spare: floats [spare_floats(hidden)] of shared
 * memory; red: 32 floats of shared memory.  The whole block calls it. */
template <class Meanwhile>
__device__ static inline void settle_and_norm(const Residual &r, int hidden, const Vector &y,
                                              const Normed &n, float *red, float *spare,
                                              Meanwhile meanwhile) {
    if (spare_floats(hidden)) settle_wide(r, hidden, y, n, red, spare, meanwhile);
    else settle_narrow(r, hidden, y, n, red, meanwhile);
}

/* ---- which units are a warp's, and fetching them ---- */

/* A run of units: `left` of them, beginning with unit `unit` of eight rows, tile `tile` of strip
 * `strip`.  Units follow each other along a row, then come the next eight rows, then the next
 * strip.  The numbers are packed so that a Span takes two registers. */
typedef struct {
    unsigned strip : 10, left : 22, unit : 12, tile : 20;
} Span;

__device__ static inline int units_in(const Strip &s) { return (s.rows + 7) / 8 * s.units; }

/* This warp's share of the units of strips first … end - 1.  whole: a warp always gets all units of
 * eight rows, so that a sum is added up in the same order in whichever tile its row is; all strips
 * are of one matrix then. */
__device__ static inline Span span_of(const Strip *strip, int first, int end, bool whole) {
    unsigned all = 0, warp = threadIdx.x / 32;
    const unsigned least = whole && first < end ? strip[first].units : 1;
    for (int i = first; i < end; i++) all += units_in(strip[i]);
    if (whole) all /= least;
    unsigned from = all * warp / STREAM_WARPS * least;
    const unsigned to = all * (warp + 1) / STREAM_WARPS * least;
    Span s = {(unsigned)first, to - from, 0, 0};
    if (!s.left) return s;
    for (unsigned n; from >= (n = units_in(strip[s.strip])); s.strip++) from -= n;
    const unsigned units = strip[s.strip].units;
    s.tile = from / units;
    s.unit = from - s.tile * units;
    return s;
}

/* Moves s to the first unit of the next eight rows, perhaps of the next strip that has rows. */
__device__ static inline void next_rows(Span &s, const Strip *strip) {
    s.unit = 0;
    s.tile++;
    if (8 * (int)s.tile < strip[s.strip].rows) return;
    s.tile = 0;
    do s.strip++;
    while (s.left && !strip[s.strip].rows);
}

/* What a warp fetches, and how far it has come.  It has up to two spans: strips that it knows when
 * the kernel begins, and others that are found later (also_stream).  It fetches them run by run; a
 * run is units of the same eight rows. */
typedef struct {
    Span now, then;                     /* what is left to be fetched of a span; the second span */
    Span all[2];                        /* both spans from their beginnings, to be multiplied */
    const uint8_t *data, *block_scale;  /* this lane's bytes of the next unit */
    int run;                            /* units of the run that are still to be fetched */
    int rest;                           /* bytes from `data` to the end of the row */
    int least;                          /* with no more than so many the lane has no scales */
    int scale_step;                     /* of the strip */
    int fetched;                        /* units fetched before the multiplication began */
    uint8_t *ring;                      /* this warp's, [units_of_ring(DEPTH)] */
} Feed;

/* Where the last unit of a warp's ring begins, in bytes from feed.ring. */
__device__ static constexpr int last_slot(int depth) {
    return (units_of_ring(depth) - 1) * unit_shared(depth);
}

/* Points f to the next run of f.now or, when that is done, of f.then.  again: f has fetched a run
 * before.  Then the next one is mostly the next eight rows of the same strip, and the pointers move
 * on from where they are. */
template <int DEPTH>
__device__ static inline void aim(Feed &f, const Strip *strip, bool again = true) {
    if (!f.now.left) {
        f.now = f.then;
        f.then.left = 0;
        again = false;
    }
    f.run = 0;
    if (!f.now.left) {
        f.rest = NO_ROW;                /* fetch brings nothing */
        return;
    }
    const Strip &s = strip[f.now.strip];
    const int lane = threadIdx.x % 32, row = 8 * f.now.tile + lane / 4, t = lane % 4;
    const bool next = again && f.now.tile && !f.now.unit;
    f.run = min(s.units - (int)f.now.unit, (int)f.now.left);
    if (next) {
        f.data += 8 * s.pitch - UNIT_BYTES * s.units;
        f.block_scale += 8 * s.scale_pitch - f.scale_step * s.units;
        f.rest = row < s.rows ? f.rest + UNIT_BYTES * s.units : NO_ROW;
    } else {
        f.data = s.data + (size_t)row * s.pitch + UNIT_BYTES * (int)f.now.unit + 16 * t;
        f.scale_step = DEPTH < EVERY_KIND ? 16 : s.scale_step;
        f.block_scale = s.block_scale + (size_t)row * s.scale_pitch;
        f.block_scale += f.scale_step * (int)f.now.unit;
        if (DEPTH < EVERY_KIND || s.kind != KIND_FP8) f.block_scale += 4 * t;
        f.rest = row < s.rows ? s.bytes - UNIT_BYTES * (int)f.now.unit - 16 * t : NO_ROW;
        f.least = s.least + 16 * t;
    }
    f.now.left -= f.run;
    f.now.unit += f.run;
    if ((int)f.now.unit == s.units) next_rows(f.now, strip);
}

/* Where 16 bytes of row g's unit lie in a slot of the ring, bytes 16 t … 16 t + 15; 64 bytes
 * further in the row is 512 bytes further in the slot.  A row's four pieces change places by the
 * bits of g, so that lanes that read 4 bytes of one piece of each row read from different banks of
 * shared memory, and so do lanes that read 8 bytes of two pieces of each of four rows. */
__device__ static inline int piece_at(int g, int t) {
    return 64 * g + 16 * (t ^ (g / 4 | (g / 2 % 2 * 2)));
}

/* Begins to copy a unit to `slot` of the ring, or nothing when all is fetched.  A lane copies twice
 * 16 bytes of row lane / 4: from byte 16 (lane % 4) on, and 64 bytes further; and four bytes of the
 * row's scales.  Bytes beyond the end of a row, or beyond the last row, become zero, and so do
 * scales where there are none.  policy: from ptx_evict_first; the weights leave
 * the L2 cache first, so that what all blocks read stays there. */
template <int DEPTH>
__device__ static inline void fetch(Feed &f, uint8_t *slot, uint64_t policy) {
    const int lane = threadIdx.x % 32;
    uint8_t *to = slot + piece_at(lane / 4, lane % 4);
    ptx_cp_async16_once(to, f.data, f.rest > 0 ? 16 : 0, policy);
    ptx_cp_async16_once(to + 512, f.data + 64, f.rest > 64 ? 16 : 0, policy);
    uint8_t *scale = slot + UNIT_SCALES + 16 * (lane / 4) + 4 * (lane % 4 / 2 + lane % 2 * 2);
    ptx_cp_async4_zfill(scale, f.block_scale, f.rest > f.least ? 4 : 0);
    if (DEPTH > EVERY_KIND && lane % 4 == 0 && f.scale_step > 16 && f.rest > f.least)
        ptx_cp_async4(slot + UNIT_ZEROS + lane, f.block_scale + 16);
    f.data += UNIT_BYTES;
    f.block_scale += DEPTH < EVERY_KIND ? 16 : f.scale_step;
    f.rest -= UNIT_BYTES;
}

/* Fetches as far ahead as the ring allows.  more: only as far as the first span reaches, as a
 * second one is to come. */
template <int DEPTH> __device__ static inline void fill(Feed &f, const Strip *strip, bool more) {
#pragma unroll 1
    for (; f.fetched < units_of_ring(DEPTH) - 1 && (f.run || !more); f.fetched++) {
        if (f.run) {
            fetch<DEPTH>(f, f.ring + f.fetched * unit_shared(DEPTH), ptx_evict_first());
            if (!--f.run) aim<DEPTH>(f, strip);
        }
        ptx_cp_async_commit();
    }
}

/* Shared memory of the rings of all warps. */
__host__ __device__ static inline size_t ring_bytes(int depth) {
    return (size_t)STREAM_WARPS * units_of_ring(depth) * unit_shared(depth);
}

/* Begins to fetch the warp's share of strips 0 … n - 1.  rings: ring_bytes(DEPTH) of shared memory.
 * strip: in shared memory, with a barrier since it was written.  more: other strips follow, see
 * also_stream.  whole: see span_of. */
template <int DEPTH>
__device__ static inline Feed begin_stream(uint8_t *rings, const Strip *strip, int n,
                                           bool more = false, bool whole = false) {
    Feed f = {};
    f.now = f.all[0] = span_of(strip, 0, n, whole);
    f.ring = rings + threadIdx.x / 32 * units_of_ring(DEPTH) * unit_shared(DEPTH);
    aim<DEPTH>(f, strip, false);
    fill<DEPTH>(f, strip, more);
    /* The ring is full: the next four units of the run come as far as the L2 cache. */
    const int t = threadIdx.x % 4;
    if (t < f.run && f.rest > 0) ptx_prefetch_l2(f.data + (UNIT_BYTES - 16) * t);
    return f;
}

/* The warp also fetches its share of strips first … end - 1, after what it has.  Where little of
 * that is left the ring may be full, so the first four units come as far as the L2 cache. */
template <int DEPTH>
__device__ static inline void also_stream(Feed &f, const Strip *strip, int first, int end) {
    f.then = f.all[1] = span_of(strip, first, end, false);
    if (f.then.left && !f.now.left && f.run <= 4) {
        const Strip &s = strip[f.then.strip];
        const int lane = threadIdx.x % 32, row = 8 * f.then.tile + lane / 4;
        const int unit = f.then.unit + lane % 4;
        if (row < s.rows && unit < s.units)
            ptx_prefetch_l2(s.data + (size_t)row * s.pitch + UNIT_BYTES * unit);
    }
    if (!f.run) aim<DEPTH>(f, strip);
    fill<DEPTH>(f, strip, false);
}

/* ---- multiplying them ---- */

/* The eight E2M1 of a word times their block's scale, which is number HALF of `scales`, as
 * scaled_e2m1 makes them, but in the order of columns 0 4, 1 5, 2 6, 3 7: one mask takes two
 * numbers that lie 16 bits apart.  The sign must go 6 bits further than the other three bits.  One
 * multiplication shifts both ways at once (0x1040 = 2^12 + 2^6), and a second mask keeps of the two
 * copies what is in its place.  With two shifts and two masks instead, the pipe of shifts and masks
 * had more to do, and it is what the loop over NVFP4 units waits for. */
template <int HALF>
__device__ static inline void packed_e2m1(uint32_t word, uint32_t scales, uint32_t b[4]) {
    const uint32_t even = 0x000f000f, odd = 0x00f000f0, kept = 0x81c081c0;
    const uint32_t next = __byte_perm(word, 0, 0x0321);             /* columns 2 6 are 0 4 here */
    b[0] = ptx_mul_bf16x2_by<HALF>((word & even) * 0x1040 & kept, scales);
    b[1] = ptx_mul_bf16x2_by<HALF>((word & odd) * 0x0104 & kept, scales);
    b[2] = ptx_mul_bf16x2_by<HALF>((next & even) * 0x1040 & kept, scales);
    b[3] = ptx_mul_bf16x2_by<HALF>((next & odd) * 0x0104 & kept, scales);
}

/* Columns of half a unit. */
__device__ static constexpr int half_of(int kind) {
    switch (kind) {
    case KIND_F32: return 16;
    case KIND_BF16: case KIND_F16: return 32;
    case KIND_FP8: case KIND_INT8: return 64;
    default: return 128;
    }
}

/* acc += the eight columns x of a unit's first half and y of its second half, as four pairs each,
 * times the vector: see Vector.  chunk: this lane's.  With APART 1 each of the two mma has
 * accumulators of its own, as a tensor core needs a while before it can add to the same one again;
 * with APART 0 acc[1] and acc[3] are not used. */
template <int KIND, int APART = 1>
__device__ static inline void multiply_chunk(float acc[4][4], const uint16_t *chunk,
                                             const uint32_t x[4], const uint32_t y[4], bool full) {
    const uint32_t first[4] = {x[0], y[0], x[1], y[1]}, second[4] = {x[2], y[2], x[3], y[3]};
    const uint4 n = *(const uint4 *)chunk;
    const uint32_t a[4] = {n.x, n.y, n.z, n.w};
    ptx_mma_bf16_16816(acc[0], first, a);
    ptx_mma_bf16_16816(acc[APART], second, a + 2);
    if (!full) return;
    const uint4 m = *(const uint4 *)(chunk + half_of(KIND));
    const uint32_t b[4] = {m.x, m.y, m.z, m.w};
    ptx_mma_bf16_16816(acc[2], first, b);
    ptx_mma_bf16_16816(acc[2 + APART], second, b + 2);
}

/* acc += sum, a product with APART 0 of columns of both halves of a unit, times their scales in
 * this lane's row of weights: `scale` in the first half, scale2 in the second. */
__device__ static inline void add_scaled(float acc[4][4], const float sum[4][4], float scale,
                                         float scale2, bool full) {
#pragma unroll
    for (int i = 0; i < 4; i += 2) {
        if (i && !full) continue;
        acc[i][0] += scale * sum[i][0];
        acc[i][1] += scale * sum[i][1];
        acc[i][2] += scale2 * sum[i][2];
        acc[i][3] += scale2 * sum[i][3];
    }
}

/* ---- formats whose scales are not multiplied into the weights ----
 *
 * A number of FP8, INT8 or INT4 is a BF16 exactly, but not with its scale.  So the columns that
 * share a scale, 32 or of FP8 128, are multiplied into accumulators of their own, which are then
 * scaled.  Each of a row's four lanes takes 8 of 32 columns, and they are a chunk of the vector. */

/* The eight INT4 of a word less their zero point as pairs of BF16, in the packed order of columns,
 * 0 4, 1 5, 2 6, 3 7, or in the other one. */
template <bool PACKED>
__device__ static inline void int4_pairs(uint32_t word, uint32_t less, uint32_t b[4]) {
    if constexpr (PACKED) {
#pragma unroll
        for (int j = 0; j < 4; j++) b[j] = int4_to_bf16(word >> 4 * j, less);
    } else int4_in_order(word, less, b);
}

/* acc += a unit of INT4 times the vector: 256 columns.  ldmatrix deals the 16 bytes of 32 columns
 * of each row out to the row's lanes, of four times 32 columns at once. */
template <int KIND, class Meanwhile>
__device__ static inline void multiply_int4(float acc[4][4], const uint8_t *slot, const uint16_t *x,
                                            int lane, bool has_zeros, bool full,
                                            Meanwhile meanwhile) {
    const int g = lane / 4, t = lane % 4;
    uint32_t zeros = INT4_MIDDLE;
    if (KIND == KIND_INT4_ZEROS || (KIND == KIND_INT4 && has_zeros))
        zeros = *(const uint32_t *)(slot + UNIT_ZEROS + 4 * g);
    meanwhile();
    const uint8_t *row = slot + piece_at(lane % 8, lane / 8);
    const uint4 s = *(const uint4 *)(slot + UNIT_SCALES + 16 * g);
    const uint32_t even = zeros & 0x0f0f0f0f, odd = zeros >> 4 & 0x0f0f0f0f;
    uint32_t word[2][4];
    ptx_ldmatrix_x4(word[0], row);
    ptx_ldmatrix_x4(word[1], row + 512);
#pragma unroll
    for (int j = 0; j < 4; j++) {       /* 32 columns of each half */
        const uint32_t s0 = j < 2 ? s.x : s.z;
        const uint32_t s1 = j < 2 ? s.y : s.w;
        uint32_t a[4], b[4];
        int4_pairs<KIND != KIND_INT4>(word[0][j], int4_zero(j % 2 ? odd : even, j / 2), a);
        int4_pairs<KIND != KIND_INT4>(word[1][j], int4_zero(j % 2 ? odd : even, 2 + j / 2), b);
        float sum[4][4] = {};
        const uint16_t *chunk = x + 8 * (4 * j + (KIND != KIND_INT4 ? t ^ j : t));
        multiply_chunk<KIND, 0>(sum, chunk, a, b, full);
        add_scaled(acc, sum, j % 2 ? bf16_high(s0) : bf16_low(s0),
                   j % 2 ? bf16_high(s1) : bf16_low(s1), full);
    }
}

/* acc += a unit of FP8 or INT8 times the vector: 128 columns, which share a scale in FP8. */
template <int KIND, class Meanwhile>
__device__ static inline void multiply_bytes(float acc[4][4], const uint8_t *slot,
                                             const uint16_t *x, int lane, bool full,
                                             Meanwhile meanwhile) {
    const int g = lane / 4, t = lane % 4;
    const float *scale = (const float *)(slot + UNIT_SCALES + 16 * g);
    meanwhile();
    float sum[4][4] = {};
    /* INT8 is seldom met, so it may take more time for less code. */
    [[maybe_unused]] constexpr int TURNS = KIND == KIND_FP8 ? 2 : 1;
#pragma unroll TURNS
    for (int j = 0; j < 2; j++) {       /* 32 columns of each half */
        const uint8_t *at = slot + piece_at(g, 2 * j + t / 2) + 8 * (t % 2);
        uint32_t a[4], b[4];
#pragma unroll
        for (int k = 0; k < 2; k++) {
            const uint2 own = *(const uint2 *)(at + 512 * k);
            bytes_to_bf16(own.x, KIND == KIND_FP8, k ? b : a);
            bytes_to_bf16(own.y, KIND == KIND_FP8, (k ? b : a) + 2);
        }
        multiply_chunk<KIND, 0>(sum, x + 8 * (4 * j + t), a, b, full);
        if (KIND == KIND_FP8) continue;
        add_scaled(acc, sum, scale[2 * j], scale[2 * j + 1], full);
        for (int k = 0; k < 16; k++) sum[k / 4][k % 4] = 0;
    }
    if (KIND == KIND_FP8) add_scaled(acc, sum, scale[0], scale[0], full);
}

/* The scales of a lane's 16 bytes in both halves of a unit of NVFP4: the first half's two in bytes
 * 0 and 2, the other's in bytes 1 and 3. */
__device__ static inline uint32_t own_scales(const uint8_t *slot) {
    const int lane = threadIdx.x % 32, t = lane % 4;
    const uint2 both = *(const uint2 *)(slot + UNIT_SCALES + 16 * (lane / 4) + 8 * (t / 2));
    return __byte_perm(both.x, both.y, t % 2 ? 0x7362 : 0x5140);
}

/* Where a lane reads the vector for the next unit.  x: the unit's first column or, in the lanes
 * that take the second half, that half's first column.  chunk: of packed NVFP4, the chunks of the
 * lane's four words. */
typedef struct {
    const uint16_t *x, *chunk[4];
} Columns;

__device__ static inline Columns columns_at(const uint16_t *x) {
    const int t = threadIdx.x % 4;
    Columns c = {x, {}};
#pragma unroll
    for (int k = 0; k < 4; k++) c.chunk[k] = x + 8 * (4 * t + (k ^ t));
    return c;
}

template <int KIND> __device__ static inline void next_columns(Columns &c) {
    c.x += 2 * half_of(KIND);
#pragma unroll
    for (int k = 0; k < 4; k++) c.chunk[k] += 2 * half_of(KIND);
}

/* acc += a unit of its rows times the columns `at` of the vector.  Of acc[0] and acc[1], which an
 * mma each adds to, x times columns 0 to 3 and y times columns 4 to 7 count; when full, x times all
 * columns, and in acc[2] and acc[3] y times all columns (see Vector).  A lane whose row the vector
 * does not have reads another row, and its sums are thrown away.  here: the lane, from which the
 * code for FP8, INT8 and INT4 computes its addresses where it needs them (ptx_opaque).
 * meanwhile() is called once: of the kinds that matter most while the lane's numbers are on their
 * way from shared memory. */
template <int KIND, class Meanwhile>
__device__ static inline void multiply_unit(float acc[4][4], const uint8_t *slot,
                                            const Columns &at, int here, bool has_zeros, bool full,
                                            Meanwhile meanwhile) {
    const uint16_t *x = at.x;
    if constexpr (KIND == KIND_FP8 || KIND == KIND_INT8)
        return multiply_bytes<KIND>(acc, slot, x, here, full, meanwhile);
    if constexpr (KIND >= KIND_INT4)
        return multiply_int4<KIND>(acc, slot, x, here, has_zeros, full, meanwhile);
    const int lane = threadIdx.x % 32, t = lane % 4;
    const uint8_t *piece = slot + piece_at(lane / 4, t);
    if constexpr (KIND == KIND_BF16) {
        const uint4 u = *(const uint4 *)piece, v = *(const uint4 *)(piece + 512);
        const uint32_t a[4] = {u.x, u.y, u.z, u.w}, b[4] = {v.x, v.y, v.z, v.w};
        meanwhile();
        return multiply_chunk<KIND>(acc, x + 8 * t, a, b, full);
    }
    if constexpr (KIND == KIND_NVFP4_PACKED) {
        const uint4 u = *(const uint4 *)piece, v = *(const uint4 *)(piece + 512);
        const uint32_t own = own_scales(slot);
        const uint32_t word[4] = {u.x, u.y, u.z, u.w}, word2[4] = {v.x, v.y, v.z, v.w};
        meanwhile();
        const uint32_t scale = scales_of(own << 4), scale2 = scales_of(own >> 4);
#pragma unroll
        for (int k = 0; k < 4; k++) {
            uint32_t a[4], b[4];
            if (k < 2) {
                packed_e2m1<0>(word[k], scale, a);
                packed_e2m1<0>(word2[k], scale2, b);
            } else {
                packed_e2m1<1>(word[k], scale, a);
                packed_e2m1<1>(word2[k], scale2, b);
            }
            multiply_chunk<KIND>(acc, at.chunk[k], a, b, full);
        }
        return;
    }
    meanwhile();
    if constexpr (KIND == KIND_F16) {                   /* two BF16 that add up to each weight */
        float f[16];
        for (int k = 0; k < 16; k++) f[k] = f16_at(piece + 512 * (k / 8), k % 8);
        for (int part = 0; part < 2; part++) {
            uint32_t b[8];
            for (int k = 0; k < 8; k++) b[k] = take_bf16(f[2 * k], f[2 * k + 1]);
            multiply_chunk<KIND>(acc, x + 8 * t, b, b + 4, full);
        }
    } else if constexpr (KIND == KIND_NVFP4) {
        const uint32_t own = own_scales(slot);
        const uint32_t scale = scales_of(own << 4), scale2 = scales_of(own >> 4);
#pragma unroll 1
        for (int k = 0; k < 4; k++) {
            const int half = k < 2 ? 0x1010 : 0x3232;
            uint32_t a[4], b[4];
            scaled_e2m1(*(const uint32_t *)(piece + 4 * k), __byte_perm(scale, 0, half), a);
            scaled_e2m1(*(const uint32_t *)(piece + 4 * k + 512), __byte_perm(scale2, 0, half), b);
            multiply_chunk<KIND>(acc, x + 8 * (4 * t + k), a, b, full);
        }
    } else {                            /* float32: three BF16 that add up to each weight */
        const uint2 n = *(const uint2 *)(x + 4 * t);
        const uint2 m = *(const uint2 *)(x + 4 * t + (full ? half_of(KIND) : 0));
        float f[8];
        for (int k = 0; k < 8; k++) f[k] = *(const float *)(piece + 512 * (k / 4) + 4 * (k % 4));
        for (int k = 0; k < 3; k++) {
            const uint32_t a[4] = {take_bf16(f[0], f[1]), take_bf16(f[4], f[5]),
                                   take_bf16(f[2], f[3]), take_bf16(f[6], f[7])};
            const uint32_t b[2] = {n.x, n.y}, c[2] = {m.x, m.y};
            ptx_mma_bf16_16816(acc[0], a, b);
            if (full) ptx_mma_bf16_16816(acc[2], a, c);
        }
    }
}

/* acc += unit `unit` of BF16 rows times 16 rows of the vector, of which x and x2 are this lane's,
 * in the order of sums that multiply_unit has.  Here the vector is A: rows 0 to 7 from x, 8 to 15
 * from x2. */
template <class Meanwhile>
__device__ static inline void multiply_bf16_twice(float acc[4][4], const uint8_t *slot,
                                                  const uint16_t *x, const uint16_t *x2, int unit,
                                                  Meanwhile meanwhile) {
    const int lane = threadIdx.x % 32;
    const uint8_t *piece = slot + piece_at(lane / 4, lane % 4);
    const uint4 own[2] = {*(const uint4 *)piece, *(const uint4 *)(piece + 512)};
    meanwhile();
#pragma unroll
    for (int i = 0; i < 2; i++) {
        const int at = 64 * unit + 32 * i + 8 * (lane % 4);
        const uint4 n = *(const uint4 *)(x + at), m = *(const uint4 *)(x2 + at);
        const uint32_t first[4] = {n.x, m.x, n.y, m.y}, second[4] = {n.z, m.z, n.w, m.w};
        const uint32_t b[4] = {own[i].x, own[i].y, own[i].z, own[i].w};
        ptx_mma_bf16_16816(acc[i], first, b);
        ptx_mma_bf16_16816(acc[2 + i], second, b + 2);
    }
}

/* The partial sums of rows row … row + 7 of a strip for one token, over some of their columns:
 * where a warp's span begins or ends in the middle of a row. */
typedef struct {
    int strip, row;                     /* strip -1: none */
    int ends;                           /* these columns reach the end of the rows */
    float sum[8];
} Edge;

/* The number of Edges of a block that multiplies n tokens: [2 spans][STREAM_WARPS][2][n]. */
__host__ __device__ static inline int n_edges(int n) { return 2 * STREAM_WARPS * 2 * n; }

/* The edge of a warp's span for a token, of n tokens.  begun: of the rows that the warp began, not
 * of those that another one began. */
__device__ static inline Edge &edge_of(Edge *edges, int n, int span, int warp, int begun,
                                       int token) {
    return edges[((span * STREAM_WARPS + warp) * 2 + begun) * n + token];
}

/* The tokens of a vector: its row token * parts + p is part p of that token.  parts is 1 or
 * ROW_PARTS; n * parts is at most eight, as an mma has so many columns of B for them. */
typedef struct {
    int n, parts;
} Tokens;

/* Calls multiply(where, unit, meanwhile) for the next m units of eight rows, from unit `unit` of
 * the rows on; `where` is where a unit lies in shared memory.  For each unit that is multiplied one
 * is fetched by `meanwhile`, unless all units are.  slot: where the next unit to be multiplied lies
 * in the ring; free: where the next one that is fetched goes; in bytes from feed.ring.  Both move
 * on. */
template <int DEPTH, class Multiply>
__device__ static inline void multiply_run(Feed &feed, int &slot, int &free, int unit,
                                           int m, Multiply multiply) {
    const uint64_t policy = ptx_evict_first();
    int now = slot, before = free;
#pragma unroll 1
    for (const int end = unit + m; unit < end; unit++) {
        ptx_cp_async_wait<units_of_ring(DEPTH) - 2>();
        __syncwarp();                   /* all lanes' copies are there, and `before` is read */
        multiply(feed.ring + now, unit, [&] {
            fetch<DEPTH>(feed, feed.ring + before, policy);
            ptx_cp_async_commit();
        });
        before = now;
        now = now == last_slot(DEPTH) ? 0 : now + unit_shared(DEPTH);
    }
    slot = now;
    free = before;
}

/* ---- what the next kernel reads first ---- */

/* Bytes that a block of a kernel that streams weights brings into the L2 cache for the next kernel.
 * The memory would rest from the end of the one kernel's loads to the beginning of the next one's,
 * which takes 3 to 4 microseconds where two kernels do not fit on a multiprocessor; 32 KB of each
 * multiprocessor are what an RTX 3090 reads in 3 and a 4090 in 4, and at most half of a GPU's L2
 * cache.  Of the dense MLP's down fewer: until the experts are chosen, its kernel has nothing else
 * to read.  To tune them, compare bench/gpusim --gpu 3090,4090,5090 --step decode. */
#define AHEAD (32 << 10)
#define AHEAD_OF_DOWN (24 << 10)

/* v becomes this lane's sums of eight rows of weights, from the accumulators of multiply_unit: lane
 * 4 * r + t gets those of row r with two rows of the vector, 2t and 2t + 1 when full, otherwise
 * 2 (t % 2) and 2 (t % 2) + 1.  Of tokens with ROW_PARTS parts the parts are added up: lane t = 0
 * has the sum of the first token in v[0], t = 1 that of the second one in v[1]. */
__device__ static inline void row_sums(float v[2], const float acc[4][4], bool full, int parts) {
    const bool of_first = threadIdx.x % 4 < 2;
#pragma unroll
    for (int k = 0; k < 2; k++) {
        if (full) v[k] = (acc[0][k] + acc[1][k]) + (acc[2][2 + k] + acc[3][2 + k]);
        else {
            v[k] = of_first ? acc[0][k] + acc[1][k] : acc[0][2 + k] + acc[1][2 + k];
            v[k] += __shfl_xor_sync(0xffffffffu, v[k], 2);
        }
    }
    if (parts == 1) return;
    const float next = __shfl_down_sync(0xffffffffu, v[0], 1);
    const float after = __shfl_down_sync(0xffffffffu, v[1], 1);
    v[0] = v[0] + v[1] + next;
    v[1] = v[1] + next + after;
}

/* Adds up the edges of each row of the strips for n tokens, in the order of the warps, and gives
 * the sums to done. */
template <class Done>
__device__ static inline void join_edges(Edge *edges, const Strip *strip, int n, Done done) {
    for (int i = threadIdx.x; i < 2 * STREAM_WARPS * 8 * n; i += STREAM_THREADS) {
        const int r = i % 8, first = i / 8 % STREAM_WARPS, span = i / 8 / STREAM_WARPS % 2;
        const int token = i / 8 / STREAM_WARPS / 2;
        const Edge &begun = edge_of(edges, n, span, first, 1, token);
        if (begun.strip < 0 || begun.row + r >= strip[begun.strip].rows) continue;
        float sum = begun.sum[r];
        for (int w = first + 1; w < STREAM_WARPS; w++) {
            const Edge &more = edge_of(edges, n, span, w, 0, token);
            if (more.strip < 0) continue;
            if (more.strip != begun.strip || more.row != begun.row) break;
            sum += more.sum[r];
            if (more.ends) break;
        }
        done(begun.strip, begun.row + r, token, sum * strip[begun.strip].factor);
    }
}

/* Multiplies all that the feed fetches, from the beginning.  done(strip, row, token, sum) gets the
 * sum of each row of each strip for each token, once, in one thread.  y and then_y are the vectors
 * of the two spans.
 *   1. Each warp multiplies its spans.  If it has all units of eight rows, their sums are done.
 *      The first and the last eight rows of a span may be shared with other warps: those sums go to
 *      `edges`.
 *   2. ahead(), which brings what the next kernel reads first.
 *   3. After a barrier the partial sums of such rows are added up, in the order of the warps, so
 *      that the bits are the same in every run.
 * edges: [n_edges(tokens.n)] in shared memory.  The whole block calls it, after a barrier behind
 * the writing of the vectors.  What `done` wrote to shared memory may be read after another
 * barrier. */
template <int DEPTH, class Done, class Ahead>
__device__ static inline void stream(Feed &feed, const Strip *strip, const Vector &y,
                                     const Vector &then_y, const Tokens &tokens, Edge *edges,
                                     Done done, Ahead ahead) {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    /* The row of the vector that this lane reads, and at which half of a unit: see Vector.  A lane
     * that has no row of its own reads one whose banks its neighbours do not need. */
    const int n_rows = tokens.n * tokens.parts, t = lane % 4;
    const bool full = n_rows > 4;
    const int row = full ? lane / 4 : lane / 4 % 4;
    const int half = full ? 0 : lane / 16;
    const int part = row < n_rows ? row : row % 2 % n_rows;
    int slot = 0, free = last_slot(DEPTH);
    for (int i = lane; i < 4 * tokens.n; i += 32)
        edge_of(edges, tokens.n, i % 2, warp, i / 2 % 2, i / 4).strip = -1;
    __syncwarp();
#pragma unroll 1
    for (int span = 0; span < 2; span++) {
        const Span all = span ? feed.all[1] : feed.all[0];
        int which = all.strip, tile = all.tile, of = all.unit;
        for (int left = all.left; left;) {
            const Strip &s = strip[which];
            const int n = min(left, s.units - of), rows = s.rows;
            const float by = s.factor;
            int kind = s.kind;
            if (DEPTH > EVERY_KIND && kind == KIND_INT4_PACKED && s.scale_step > 16)
                kind = KIND_INT4_ZEROS;
            const uint16_t *x = span ? then_y.at + part * then_y.stride : y.at + part * y.stride;
            x += s.y;
            float acc[4][4] = {};
            for (int at = 0, m; at < n; at += m) {
                m = feed.run ? min(feed.run, n - at) : n - at;
                const int unit = of + at, here = DEPTH < EVERY_KIND ? lane : ptx_opaque(lane);
#define RUN(KIND, WIDE)                                                                          \
    do {                                                                                         \
        Columns columns = columns_at(x + half_of(KIND) * (2 * unit + half));                     \
        multiply_run<DEPTH>(feed, slot, free, unit, m, [&](const uint8_t *where, int, auto next) { \
            multiply_unit<KIND>(acc, where, columns, here, s.scale_step > 16, WIDE, next);       \
            next_columns<KIND>(columns);                                                         \
        });                                                                                      \
    } while (0)
#define RUN_OTHER(KIND) if (kind == KIND) RUN((DEPTH < EVERY_KIND ? KIND_F32 : KIND), full)
                if (kind == KIND_BF16 && full) RUN(KIND_BF16, true);
                else if (kind == KIND_BF16) RUN(KIND_BF16, false);
                else if (kind == KIND_NVFP4_PACKED && full) RUN(KIND_NVFP4_PACKED, true);
                else if (kind == KIND_NVFP4_PACKED) RUN(KIND_NVFP4_PACKED, false);
                else if (kind == KIND_NVFP4) RUN(KIND_NVFP4, full);
                else if (DEPTH < EVERY_KIND || kind == KIND_F32) RUN(KIND_F32, full);
                else RUN_OTHER(KIND_INT4_PACKED);
                else RUN_OTHER(KIND_FP8);
                else RUN_OTHER(KIND_INT8);
                else RUN_OTHER(KIND_INT4);
                else RUN_OTHER(KIND_INT4_ZEROS);
                else RUN_OTHER(KIND_F16);
#undef RUN
#undef RUN_OTHER
                if (feed.run && !(feed.run -= m)) aim<DEPTH>(feed, strip);
            }
            const bool whole = n == s.units, begun = of > 0, ends = of + n == s.units;
            float v[2];
            row_sums(v, acc, full, tokens.parts);
#pragma unroll
            for (int k = 0; k < 2; k++) {
                const int token = tokens.parts == 3 ? k : 2 * t + k, r = lane / 4;
                const bool has = tokens.parts == 3 ? t == k : t < 2 || full;
                if (!has || token >= tokens.n) continue;
                if (whole) {
                    if (8 * tile + r < rows) done(which, 8 * tile + r, token, v[k] * by);
                    continue;
                }
                Edge &e = edge_of(edges, tokens.n, span, warp, !begun, token);
                e.sum[r] = v[k];
                e.strip = which;
                e.row = 8 * tile;
                e.ends = ends;
            }
            /* The next units: of these rows, or of the next eight, perhaps of the next strip. */
            left -= n;
            of += n;
            if (!ends) continue;
            of = 0;
            if (8 * ++tile < rows) continue;
            tile = 0;
            do which++;
            while (left && !strip[which].rows);
        }
    }
    ahead();
    /* What fetch began when all was fetched must end before the copies of a next begin_stream. */
    ptx_cp_async_wait<0>();
    __syncthreads();
    join_edges(edges, strip, tokens.n, done);
}

/* One token: done(strip, row, sum). */
template <int DEPTH, class Done, class Ahead>
__device__ static inline void stream(Feed &feed, const Strip *strip, const Vector &y,
                                     const Vector &then_y, Done done, Ahead ahead) {
    SHARED(Edge, edges, [2 * STREAM_WARPS * 2]);
    stream<DEPTH>(feed, strip, y, then_y, {1, ROW_PARTS}, edges,
                  [&](int i, int row, int, float sum) { done(i, row, sum); }, ahead);
}

/* s, a strip of w's rows, cut down to columns c … c + columns - 1, or fewer at the rows' end.  c
 * and columns are multiples of 256. */
__device__ static inline Strip columns_of(Strip s, const Weight &w, int c, int columns) {
    const int bytes = row_bytes(w);
    const int of_each = columns / 64 * (bytes / (padded(w.cols) / 64));
    const int skipped = c / columns * of_each;
    s.data += skipped;
    s.block_scale += skipped / UNIT_BYTES * s.scale_step;
    s.bytes = min(bytes - skipped, of_each);
    s.units = (s.bytes + UNIT_BYTES - 1) / UNIT_BYTES;
    return s;
}

/* out [w.rows] = w . in, one token.  in [w.cols] comes as float32 or, if `from` is not NULL, as a
 * vector that the kernel ahead has split; it is read after ptx_grid_wait.  columns: a multiple of
 * 256, as many columns as there is room for in shared memory.  If that is not all of them, the rows
 * are read in several turns, and sums are added up in `out`.
 * grid: a block for each multiprocessor; STREAM_THREADS threads; dynamic shared memory: the ring, a
 * Vector of min(columns, w.cols) columns. */
template <int DEPTH>
__global__ static void __launch_bounds__(STREAM_THREADS, RESIDENT(DEPTH))
    row_kernel(const __grid_constant__ Weight w, const uint16_t *from, const float *in,
               int columns, float *out, const __grid_constant__ Weight next) {
    DYNAMIC_SHARED(uint8_t, shared);
    SHARED(Strip, strip, [1]);
    const int packed = is_nibbles(w), first = share_begin(w.rows);
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
        auto done = [&](int, int row, float sum) {
            out[first + row] = c ? out[first + row] + sum : sum;
        };
        stream<DEPTH>(feed, strip, y, y, done,
                      [&] { bring_ahead(next, AHEAD); });
        __syncthreads();
    }
}

#endif
