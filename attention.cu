/* attention.cu - norms, RoPE, the KV cache and attention on the GPU.
 *
 * Three kernels compute softmax(q . K) V.  attend_kernel runs on tensor cores, whatever the
 * number of tokens and keys, and prompt_kernel too, for many tokens whose numbers may be
 * rounded.  plain_attend_kernel is the one to read first and to compare with: the same running
 * softmax in a page of CUDA C++, for float32 caches and for sizes that do not fit the others. */

/* q, k, v of one token, one after the other: [n_heads + 2 * n_kv_heads][head_dim]; without
 * v_proj the k is there twice. shared: the ring, a vector of hidden, spare_floats. */
template <int DEPTH>
__global__ static void __launch_bounds__(STREAM_THREADS, RESIDENT(DEPTH))
    qkv_kernel(const __grid_constant__ Layer l, const __grid_constant__ Residual r, float *qkv) {
    DYNAMIC_SHARED(uint8_t, shared);
    SHARED(Strip, strip, [3]);
    SHARED(float, red, [32]);
    const int hidden = l.q.cols, n_strips = l.v.data ? 3 : 2;
    const int packed = l.q.dtype == DT_U8 && l.k.dtype == DT_U8 && (!l.v.data || l.v.dtype == DT_U8);
    auto matrix = [&](int i) -> const Weight & { return i == 0 ? l.q : i == 1 ? l.k : l.v; };
    if ((int)threadIdx.x < n_strips) strip[threadIdx.x] = share_of(matrix(threadIdx.x), 0, packed);
    __syncthreads();
    Feed feed = begin_stream<DEPTH>(shared, strip, n_strips);
    Vector y = vector_at(shared + ring_bytes(DEPTH), hidden);
    settle_and_norm(r, hidden, y, {l.input_norm, NULL, 0, packed}, red, (float *)behind(y), [](int) {});
    __syncthreads();
    auto done = [&](int i, int row, float sum) {
        const Weight &w = matrix(i);
        float *to = qkv + (i == 0 ? 0 : i == 1 ? l.q.rows : l.q.rows + l.k.rows) + share_begin(w.rows) + row;
        *to = sum;
        if (i && !l.v.data) to[l.k.rows] = sum;
    };
    stream<DEPTH>(feed, strip, y, y, done);
}

/* One element into the cache, and out of it. */
__device__ static void cache_store(uint8_t *cache, size_t i, DType dtype, float scale, float v) {
    if (dtype == DT_F32) ((float *)cache)[i] = v;
    else if (dtype == DT_BF16) {
        uint32_t u = __float_as_uint(v);
        ((uint16_t *)cache)[i] = (u + 0x7fff + (u >> 16 & 1)) >> 16;        /* nearest, ties to even */
    } else cache[i] = float_to_e4m3(v / scale);
}

__device__ static float cache_load(const uint8_t *cache, size_t i, DType dtype, float scale) {
    if (dtype == DT_F32) return ((const float *)cache)[i];
    if (dtype == DT_BF16) return __uint_as_float((uint32_t)((const uint16_t *)cache)[i] << 16);
    return e4m3_to_float(cache[i]) * scale;
}

/* Dimension i of a row of K is in k_column(i) of what the cache stores of it; from k_dim on that
 * is k_dim + i, in the same row of V, times k_norm: see KvCache in ops.h. */
__device__ static inline int k_column(int head_dim, int k_dim, int i) {
    int half = head_dim / 2, turning = k_dim / 2, pair = i < half ? i : i - half;
    return pair >= turning ? k_dim + i : i < half ? pair : turning + pair;
}

__device__ static float key_load(const Layer &l, const KvCache &kv, size_t row, int i) {
    int column = k_column(l.head_dim, kv.k_dim, i);
    if (column >= kv.k_dim) return l.k_norm[i] * cache_load(kv.v, row * l.head_dim + i, kv.dtype, l.v_scale);
    return cache_load(kv.k, row * kv.k_dim + column, kv.dtype, l.k_scale);
}

/* Does a token at position `query`, which sees nothing beyond position `last`, see position
 * `key`? */
__device__ static inline bool sees(const Layer &l, int window, int query, int last, int key) {
    return key <= last && (l.global || key > query - window);
}

__device__ static inline int first_seen(const Layer &l, int window, int query) { return l.global || query < window ? 0 : query - window + 1; }

/* ---- norms and RoPE, a warp for a head's vector ---- */

__device__ static inline float warp_rms_scale(const float *v, int n, float eps) {
    float sum = 0;
#pragma unroll 8
    for (int i = threadIdx.x % 32; i < n; i += 32) sum += v[i] * v[i];
    return 1 / sqrtf(warp_sum(sum) / n + eps);
}

#define AT_ONCE 8                       /* numbers that a lane loads before it waits for the first of them: 256 of a warp */

/* put(i, number) gets the numbers of v [head_dim], normed and turned by `turn` [head_dim / 2],
 * see Turns. */
template <class Put>
__device__ static inline void norm_rope(const Layer &l, const float *v, const float *norm, float eps, const float2 *turn, Put put) {
    const int half = l.head_dim / 2, lane = threadIdx.x % 32;
    float a[AT_ONCE], b[AT_ONCE], norm_a[AT_ONCE], norm_b[AT_ONCE], sum = 0;
    float2 by[AT_ONCE];
    auto load = [&](int from) {
#pragma unroll
        for (int k = 0; k < AT_ONCE; k++) {
            int i = from + lane + 32 * k;
            bool inside = i < half;
            a[k] = inside ? v[i] : 0;
            b[k] = inside ? v[i + half] : 0;
            norm_a[k] = inside ? norm[i] : 0;
            norm_b[k] = inside ? norm[i + half] : 0;
            by[k] = inside ? turn[i] : make_float2(0, 0);
        }
    };
    for (int from = 0; from < half; from += 32 * AT_ONCE) {
        load(from);
#pragma unroll
        for (int k = 0; k < AT_ONCE; k++) sum += a[k] * a[k] + b[k] * b[k];
    }
    const float s = 1 / sqrtf(warp_sum(sum) / l.head_dim + eps);
    for (int from = 0; from < half; from += 32 * AT_ONCE) {
        if (half > 32 * AT_ONCE) load(from);
#pragma unroll
        for (int k = 0; k < AT_ONCE; k++) {
            int i = from + lane + 32 * k;
            if (i >= half) break;
            const float x = a[k] * s * norm_a[k], y = b[k] * s * norm_b[k];
            put(i, x * by[k].x - y * by[k].y);
            put(i + half, y * by[k].x + x * by[k].y);
        }
    }
}

/* K and V of the token at position pos, as the projections gave them, into the cache. */
__device__ static inline void store_key(const Layer &l, const KvCache &kv, float eps, int pos, const float2 *turn, int h, const float *k) {
    size_t row = (size_t)(pos % kv.slots) * l.n_kv_heads + h;
    norm_rope(l, k, l.k_norm, eps, turn, [&](int i, float x) {
        int column = k_column(l.head_dim, kv.k_dim, i);
        if (column < kv.k_dim) cache_store(kv.k, row * kv.k_dim + column, kv.dtype, l.k_scale, x);
    });
}

__device__ static inline void store_value(const Layer &l, const KvCache &kv, float eps, int pos, int h, const float *v) {
    size_t row = (size_t)(pos % kv.slots) * l.n_kv_heads + h;
    float s = warp_rms_scale(v, l.head_dim, eps);
#pragma unroll 8
    for (int i = threadIdx.x % 32; i < l.head_dim; i += 32) cache_store(kv.v, row * l.head_dim + i, kv.dtype, l.v_scale, v[i] * s);
}

/* All of it for n tokens: q in place, k and v into the cache.  grid (heads of q, k and v by
 * WARPS, n); pos: of the first. */
__global__ static void __launch_bounds__(THREADS)
    norm_rope_kernel(const __grid_constant__ Layer l, const __grid_constant__ KvCache kv, float eps, int n_heads, const int64_t *pos,
                     const float2 *turn, float *qkv) {
    int h = blockIdx.x * WARPS + threadIdx.x / 32, all = n_heads + (l.k.data ? 2 * l.n_kv_heads : 0);
    float *v = qkv + ((size_t)blockIdx.y * all + h) * l.head_dim;
    ptx_grid_wait();
    ptx_grid_launch_dependents();
    int at = (int)*pos + blockIdx.y;
    turn += (size_t)blockIdx.y * (l.head_dim / 2);
    if (h < n_heads) norm_rope(l, v, l.q_norm, eps, turn, [&](int i, float x) { v[i] = x; });
    else if (h < n_heads + l.n_kv_heads) store_key(l, kv, eps, at, turn, h - n_heads, v);
    else if (h < all) store_value(l, kv, eps, at, h - n_heads - l.n_kv_heads, v);
}

/* ---- attention: what both kernels are given ---- */

typedef struct {
    Layer l;
    KvCache kv;
    float eps;
    int n_heads, window, n;
    const int64_t *pos;                 /* of the first of the n tokens */
    const float2 *turn;                 /* [n][head_dim / 2]: see Turns */
    const int *last;                    /* [n] the last of the n tokens that each sees in a sliding layer; NULL: itself */
    const float *qkv;                   /* [n][n_heads + 2 * n_kv_heads][head_dim], after norm_rope_kernel but for FUSED */
    int splits;                         /* the keys are shared by so many blocks */
    int whole;                          /* … but for so many tiles of rows and heads: see prompt_kernel */
    float *part;                        /* see attend_kernel */
    unsigned *ticket;
    float *out;                         /* [n][n_heads][head_dim], or, unless NULL, … */
    uint16_t *vector;                   /* … split for o_proj, of up to 8 tokens: see stream.cu */
    int packed, vector_parts;           /* of `vector`: its order, a token's rows */
} Attend;

/* Columns c .. c + 3 of a token's heads; c is a multiple of 4. */
__device__ static inline void store_out(const Attend &a, int token, int c, float4 v) {
    const int cols = a.n_heads * a.l.head_dim, stride = vector_stride(cols);
    if (!a.vector) *(float4 *)(a.out + (size_t)token * cols + c) = v;
    else
        put4_global(a.vector + token * a.vector_parts * stride, stride, c, v, a.packed,
                    a.vector_parts);
}

/* The last of the n tokens that token t sees: itself, or in a sliding layer the end of its
 * picture.  A drafter's, which have no keys: the one before, which is its target's. */
__device__ static inline int last_seen(const Attend &a, int t) { return (a.l.global || !a.last ? t : a.last[t]) - (a.l.k.data == NULL); }

/* ---- plain ---- */

#define PLAIN_KEYS 64                   /* keys of a tile */

/* A block takes one token and one key/value head with its group of query heads, and goes through
 * the keys tile by tile with a running maximum and sum.  grid (n_kv_heads, tokens).  shared:
 * floats q [group][dim], score [group][PLAIN_KEYS], acc [group][dim], and max, sum, factor
 * [group]. */
__global__ static void plain_attend_kernel(const __grid_constant__ Attend a) {
    DYNAMIC_SHARED(float, shared);
    const Layer &l = a.l;
    const KvCache &kv = a.kv;
    int dim = l.head_dim, group = a.n_heads / l.n_kv_heads, h = blockIdx.x, t = blockIdx.y;
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32, n_warps = blockDim.x / 32;
    float *q = shared, *score = q + group * dim, *acc = score + group * PLAIN_KEYS, *max = acc + group * dim, *sum = max + group;
    float *factor = sum + group;
    ptx_grid_wait();
    const float *from_q = a.qkv + ((size_t)t * (a.n_heads + 2 * l.n_kv_heads) + h * group) * dim;
    for (int i = threadIdx.x; i < group * dim; i += blockDim.x) q[i] = from_q[i], acc[i] = 0;
    for (int g = threadIdx.x; g < group; g += blockDim.x) max[g] = -INFINITY, sum[g] = 0;

    int query = (int)*a.pos + t, last = (int)*a.pos + last_seen(a, t);
    for (int tile = first_seen(l, a.window, query); tile <= last; tile += PLAIN_KEYS) {
        int keys = last + 1 - tile < PLAIN_KEYS ? last + 1 - tile : PLAIN_KEYS;
        __syncthreads();
        for (int k = warp; k < keys; k += n_warps) {            /* a warp takes a key and all heads of the group */
            size_t row = ((tile + k) % kv.slots) * l.n_kv_heads + h;
            for (int g = 0; g < group; g++) {
                float s = 0;
                for (int i = lane; i < dim; i += 32) s += key_load(l, kv, row, i) * q[g * dim + i];
                s = warp_sum(s);
                if (lane == 0) score[g * PLAIN_KEYS + k] = s;
            }
        }
        __syncthreads();
        for (int g = warp; g < group; g += n_warps) {           /* a warp takes a head: new maximum, exponentials, sum */
            float m = max[g], total = 0;
            for (int k = lane; k < keys; k += 32) m = fmaxf(m, score[g * PLAIN_KEYS + k]);
            for (int w = 16; w; w /= 2) m = fmaxf(m, __shfl_xor_sync(0xffffffffu, m, w));
            for (int k = lane; k < keys; k += 32) total += score[g * PLAIN_KEYS + k] = expf(score[g * PLAIN_KEYS + k] - m);
            total = warp_sum(total);
            if (lane == 0) {
                factor[g] = expf(max[g] - m);
                sum[g] = sum[g] * factor[g] + total;
                max[g] = m;
            }
        }
        __syncthreads();
        for (int i = threadIdx.x; i < dim; i += blockDim.x) {   /* a thread takes a dimension: each V is read once */
            for (int g = 0; g < group; g++) acc[g * dim + i] *= factor[g];
            for (int k = 0; k < keys; k++) {
                float v = cache_load(kv.v, (((tile + k) % kv.slots) * l.n_kv_heads + h) * dim + i, kv.dtype, l.v_scale);
                for (int g = 0; g < group; g++) acc[g * dim + i] += score[g * PLAIN_KEYS + k] * v;
            }
        }
    }
    __syncthreads();
    const int first = h * group * dim, stride = vector_stride(a.n_heads * dim);
    for (int i = threadIdx.x; i < group * dim; i += blockDim.x) {
        const float v = acc[i] / sum[i / dim];
        if (a.vector)
            put_global(a.vector + t * a.vector_parts * stride, stride, first + i, v, a.packed,
                       a.vector_parts);
        else a.out[(size_t)t * a.n_heads * dim + first + i] = v;
    }
}

static size_t plain_attend_shared(const Layer *l, int n_heads) { return 4 * (size_t)(n_heads / l->n_kv_heads) * (2 * l->head_dim + PLAIN_KEYS + 3); }

/* ---- on tensor cores ----
 *
 * The rows of a tile are 16 * ROW_WARPS pairs of a token and a query head of one key/value head's
 * group, so that all of them share each load of K and V: row r is token r / group, head r %
 * group.  The keys come in tiles, and while one of them is in use in shared memory the next is on
 * its way; a row of the tile is a key's row of K and of V, side by side, as the cache has them.
 *
 * COL_WARPS warps share 16 rows and take every COL_WARPS-th block of 16 dimensions each, in both
 * products.  So the queries stay in registers, as fragments; each warp multiplies its dimensions of
 * q and K, and the warps add up their scores through shared memory, all of them to the same
 * bits.  What comes out of the first product lies in the lanes as the second one wants its A, and
 * each warp goes on with its dimensions of V.
 *
 * BF16 caches are multiplied as BF16.  FP8 ones become FP16, exactly, on the way from shared memory
 * to the tensor cores, where the order of the 16 dimensions is free as long as both sides agree: a
 * lane takes four neighbours at once.  The float32 numbers that K and V meet, q and the
 * exponentials, are rounded to that format (PARTS 1), or are the sum of two such numbers (PARTS 2),
 * which leaves an error of 2^-17 (BF16) or 2^-22.
 *
 * attend_kernel takes any head_dim and is exact (PARTS 2).  prompt_kernel rounds, and is for more
 * than 16 tokens and the head_dims that the models have.
 *
 * Flash decoding: `splits` blocks share the keys of a tile of rows, each one a run of
 * tiles.  Which they are follows from the position in the GPU's memory, and the grid does not,
 * so that a captured step serves every position.  The last block to finish joins the parts, in
 * order. */

#define KEYS 32                         /* of a tile, in attend_kernel */
#define LEAST_KEYS 64                   /* of a block: fewer blocks, fewer parts to join */
#define JOIN 17                         /* parts that are joined at once: those of a window of 1024 keys */

/* What a block does. */
typedef struct {
    int h, group;                       /* a key/value head, and how many query heads it has */
    int first, rows;                    /* of the tile of rows */
    int pos;                            /* of the first of the n tokens */
    int begin, end;                     /* the keys in the cache that some row sees: begin … end - 1 */
    int slot;                           /* where begin is in the cache */
    int all_from, all_to;               /* each row sees the keys all_from … all_to */
    int from, to;                       /* the block's tiles of keys */
    int tiles;                          /* all of them */
    int split, splits;                  /* which run of tiles it has, of how many that have any */
    size_t part;                        /* the first part of this tile of rows and head */
} Work;

/* The block's work: `split` of a.splits of tile `tile` of n_rows rows, whose keys come in tiles of
 * n_keys.  adds: the n new keys are a tile of their own, not yet in the cache. */
__device__ static inline Work work_of(const Attend &a, int h, int tile, int n_rows, int n_keys, int split, int splits,
                                      bool fused) {
    const Layer &l = a.l;
    Work w;
    w.h = h;
    w.group = a.n_heads / l.n_kv_heads;
    w.first = tile * n_rows;
    w.rows = min(n_rows, a.n * w.group - w.first);
    int first_token = w.first / w.group, last_token = (w.first + w.rows - 1) / w.group;
    w.pos = (int)*a.pos;
    w.begin = first_seen(l, a.window, w.pos + first_token);
    w.end = fused ? w.pos : w.pos + last_seen(a, last_token) + 1;
    w.slot = w.begin % (int)a.kv.slots;
    w.all_from = l.global ? 0 : w.pos + last_token - a.window + 1;
    w.all_to = w.pos + last_seen(a, first_token);
    w.tiles = (w.end - w.begin + n_keys - 1) / n_keys + (fused && l.k.data);
    int each = max((w.tiles + splits - 1) / splits, LEAST_KEYS / n_keys);
    w.split = split;
    w.splits = max((w.tiles + each - 1) / each, 1);
    w.from = min(split * each, w.tiles);
    w.to = min(w.from + each, w.tiles);
    return w;
}

template <bool FP8> __device__ static inline unsigned pair_of(float a, float b) {
    if (!FP8) return ptx_cvt_bf16x2_f32(a, b);
    __half2 x = __floats2half2_rn(a, b);
    unsigned r;
    memcpy(&r, &x, sizeof r);
    return r;
}

template <bool FP8> __device__ static inline float2 floats_of(unsigned pair) {
    if (!FP8) return make_float2(__uint_as_float(pair << 16), __uint_as_float(pair & 0xffff0000));
    __half2 x;
    memcpy((void *)&x, &pair, sizeof x);
    return __half22float2(x);
}

/* a and b as sums of PARTS pairs of numbers of 16 bits, the large ones first. */
template <bool FP8, int PARTS> __device__ static inline void split_pair(float a, float b, unsigned part[PARTS]) {
    part[0] = pair_of<FP8>(a, b);
    if (PARTS == 1) return;
    float2 rounded = floats_of<FP8>(part[0]);
    part[PARTS - 1] = pair_of<FP8>(a - rounded.x, b - rounded.y);
}

template <bool FP8> __device__ static inline void multiply_add(float d[4], const unsigned a[4], unsigned b0, unsigned b1) {
    unsigned b[2] = {b0, b1};
    if (FP8) ptx_mma_f16_16816(d, a, b);
    else ptx_mma_bf16_16816(d, a, b);
}

/* Of 16 dimensions lane 4g + t has two pairs of neighbours, as columns of A and of the result. */
template <bool FP8> __device__ static inline int lane_column(int pair) {
    int t = threadIdx.x % 4;
    return FP8 ? 4 * t + 2 * pair : 2 * t + 8 * pair;
}

/* The lane's rows are g and g + 8 of its warp's 16: i is 0 or 1. */
__device__ static inline int lane_row(int row_warp, int i) { return 16 * row_warp + threadIdx.x % 32 / 4 + 8 * i; }

/* Row i of the lane, from `from` on: its numbers of the block of dimensions that begins at
 * `block`. */
template <bool FP8, int PARTS>
__device__ static inline void load_query(unsigned q[PARTS][4], int i, const float *from, int block, const float *k_norm) {
    for (int pair = 0; pair < 2; pair++) {
        unsigned part[PARTS] = {};
        if (from) {
            int at = block + lane_column<FP8>(pair);
            float2 x = *(const float2 *)(from + at), w = make_float2(1, 1);
            if (k_norm) w = *(const float2 *)(k_norm + at);
            split_pair<FP8, PARTS>(x.x * w.x, x.y * w.y, part);
        }
        for (int p = 0; p < PARTS; p++) q[p][2 * pair + i] = part[p];
    }
}

/* scores [16][N] += q . K over 16 dimensions, which begin at column `k` of the tile. */
template <bool FP8, int PARTS, int N>
__device__ static inline void add_scores(float s[N / 8][4], const unsigned q[PARTS][4], const uint8_t *k, int pitch) {
    int lane = threadIdx.x % 32;
    unsigned r[4];
    if constexpr (FP8)                  /* four matrices of 8 keys: a lane has four dimensions of a key of each */
#pragma unroll
        for (int i = 0; i < N / 8; i++) {
            if (i % 4 == 0) ptx_ldmatrix_x4(r, k + (8 * i + lane) * pitch);
            unsigned b0 = ptx_cvt_f16x2_e4m3x2(r[i % 4] & 0xffff), b1 = ptx_cvt_f16x2_e4m3x2(r[i % 4] >> 16);
            for (int p = 0; p < PARTS; p++) multiply_add<FP8>(s[i], q[p], b0, b1);
        }
    else
#pragma unroll
        for (int i = 0; i < N / 16; i++) {          /* four of 8 keys by 8 dimensions */
            ptx_ldmatrix_x4(r, k + (16 * i + lane / 16 * 8 + lane % 8) * pitch + lane / 8 % 2 * 16);
            for (int p = 0; p < PARTS; p++) {
                multiply_add<FP8>(s[2 * i], q[p], r[0], r[1]);
                multiply_add<FP8>(s[2 * i + 1], q[p], r[2], r[3]);
            }
        }
}

/* o [16][16] += e . V over N keys and 16 dimensions, which begin at column `v` of the tile. */
template <bool FP8, int PARTS, int N>
__device__ static inline void add_values(float o[2][4], const unsigned e[N / 16][PARTS][4], const uint8_t *v, int pitch) {
    int lane = threadIdx.x % 32;
    unsigned r[4];
    if constexpr (FP8)                  /* four matrices of 8 keys; an element is two dimensions of a key, taken apart here */
#pragma unroll
        for (int i = 0; i < N / 16; i++) {
            if (i % 2 == 0) ptx_ldmatrix_x4_trans(r, v + (16 * i + lane) * pitch);
            unsigned low = __byte_perm(r[i % 2 * 2], 0, 0x3120), high = __byte_perm(r[i % 2 * 2 + 1], 0, 0x3120);
            for (int u = 0; u < 2; u++) {
                unsigned b0 = ptx_cvt_f16x2_e4m3x2(low >> 16 * u & 0xffff), b1 = ptx_cvt_f16x2_e4m3x2(high >> 16 * u & 0xffff);
                for (int p = 0; p < PARTS; p++) multiply_add<FP8>(o[u], e[i][p], b0, b1);
            }
        }
    else
#pragma unroll
        for (int i = 0; i < N / 16; i++) {          /* two of 8 keys, by two of 8 dimensions */
            ptx_ldmatrix_x4_trans(r, v + (16 * i + lane % 16) * pitch + lane / 16 * 16);
            for (int p = 0; p < PARTS; p++) {
                multiply_add<FP8>(o[0], e[i][p], r[0], r[1]);
                multiply_add<FP8>(o[1], e[i][p], r[2], r[3]);
            }
        }
}

/* The scores of COL_WARPS warps are added up, for all of them, and become exponents of 2.
 * exchange: [COL_WARPS][N / 8][32], for these warps alone. */
template <int COL_WARPS, int N>
__device__ static inline void finish_scores(float s[N / 8][4], float4 *exchange, int barrier, int col, float scale) {
    int lane = threadIdx.x % 32;
    if (COL_WARPS > 1) {
        for (int i = 0; i < N / 8; i++)
            exchange[(col * (N / 8) + i) * 32 + lane] = make_float4(s[i][0], s[i][1], s[i][2], s[i][3]);
        ptx_bar_sync(barrier, 32 * COL_WARPS);
    }
    for (int i = 0; i < N / 8; i++) {
        float4 all = make_float4(s[i][0], s[i][1], s[i][2], s[i][3]);
        if (COL_WARPS > 2) all = exchange[i * 32 + lane];
        for (int c = 1; c < COL_WARPS; c++) {
            float4 x = exchange[((COL_WARPS == 2 ? 1 - col : c) * (N / 8) + i) * 32 + lane];
            all.x += x.x, all.y += x.y, all.z += x.z, all.w += x.w;
        }
        s[i][0] = all.x * scale, s[i][1] = all.y * scale, s[i][2] = all.z * scale, s[i][3] = all.w * scale;
    }
}

/* Of `count` keys from `start` on a row keeps the scores of those that it sees. */
template <int N>
__device__ static inline void mask_scores(float s[N / 8][4], const Attend &a, const Work &w, int row_warp, int start, int count) {
    if (count >= N && start >= w.all_from && start + N - 1 <= w.all_to) return;
    for (int i = 0; i < 2; i++) {
        int t = min((w.first + lane_row(row_warp, i)) / w.group, a.n - 1);
        int low = a.l.global ? 0 : w.pos + t - a.window + 1, high = min(w.pos + last_seen(a, t), start + count - 1);
        for (int k = 0; k < N / 4; k++) {
            int key = start + k / 2 * 8 + threadIdx.x % 4 * 2 + k % 2;
            if (key < low || key > high) s[k / 2][2 * i + k % 2] = -INFINITY;
        }
    }
}

/* The running softmax: exponents become exponentials, whose base is the row's maximum, or one
 * that is at most 2^slack below it.  What was added up before is to be multiplied by
 * factor.  sum: of the lane's keys alone. */
template <int N>
__device__ static inline void exponentials(float s[N / 8][4], float max[2], float sum[2], float factor[2], float slack) {
    for (int i = 0; i < 2; i++) {
        float m = -INFINITY;
        for (int n = 0; n < N / 8; n++) m = fmaxf(m, fmaxf(s[n][2 * i], s[n][2 * i + 1]));
        m = fmaxf(m, __shfl_xor_sync(0xffffffffu, m, 1));
        m = fmaxf(m, __shfl_xor_sync(0xffffffffu, m, 2));
        if (!(m > max[i] + slack)) m = max[i];
        float base = m == -INFINITY ? 0 : m;    /* nothing seen yet */
        factor[i] = ptx_exp2(max[i] - base);
        max[i] = m;
        sum[i] *= factor[i];
        for (int n = 0; n < N / 8; n++)
            for (int c = 2 * i; c < 2 * i + 2; c++) sum[i] += s[n][c] = ptx_exp2(s[n][c] - base);
    }
}

/* The exponentials as fragments of A. */
template <bool FP8, int PARTS, int N>
__device__ static inline void split_exponentials(unsigned e[N / 16][PARTS][4], const float s[N / 8][4]) {
    for (int i = 0; i < N / 8; i++)
        for (int c = 0; c < 2; c++) {
            unsigned part[PARTS];
            split_pair<FP8, PARTS>(s[i][2 * c], s[i][2 * c + 1], part);
            for (int p = 0; p < PARTS; p++) e[i / 2][p][2 * (i % 2) + c] = part[p];
        }
}

/* What a warp has of its 16 rows: to a.out, when nothing is to be joined, or to the block's
 * part. */
template <bool FP8, int BLOCKS, int COL_WARPS>
__device__ static inline void store_rows(const Attend &a, const Work &w, int row_warp, int col, const float o[BLOCKS][2][4],
                                         const float max[2], const float sum[2], int dim, size_t step, bool direct) {
#pragma unroll
    for (int i = 0; i < 2; i++) {
        int r = lane_row(row_warp, i);
        float all = sum[i] + __shfl_xor_sync(0xffffffffu, sum[i], 1), scale = 1;
        all += __shfl_xor_sync(0xffffffffu, all, 2);
        if (r >= w.rows) continue;
        float *to_row;
        if (direct) {
            int row = w.first + r;
            to_row = a.out + ((size_t)(row / w.group) * a.n_heads + w.h * w.group + row % w.group) * dim;
            scale = (FP8 ? a.l.v_scale : 1) / all;
        } else {
            float *part = a.part + (w.part + w.split) * step;
            to_row = part + r * dim;
            if (col == 0 && threadIdx.x % 4 == 0) *(float2 *)(part + w.rows * dim + 2 * r) = make_float2(max[i], all);
        }
        if (max[i] == -INFINITY) continue;
#pragma unroll
        for (int b = 0; b < BLOCKS; b++)
            for (int pair = 0; pair < 2; pair++) {
                int block = 16 * (col + b * COL_WARPS);
                float x = FP8 ? o[b][0][2 * i + pair] : o[b][pair][2 * i], y = FP8 ? o[b][1][2 * i + pair] : o[b][pair][2 * i + 1];
                if (block < dim) *(float2 *)(to_row + block + lane_column<FP8>(pair)) = make_float2(x * scale, y * scale);
            }
    }
}

/* Joins `count` parts, `step` floats apart, of `rows` rows: put(i, max, sum, o) gets four
 * neighbours each of [rows][dim], from index i on, and the maximum and the sum of their row. */
template <class Put>
__device__ static inline void join_parts(const float *part, size_t step, int count, int rows, int dim, Put put) {
    for (int i = 4 * threadIdx.x; i < rows * dim; i += 4 * blockDim.x) {
        const float *ends = part + rows * dim + i / dim * 2;    /* of the row: maximum, sum */
        float2 end[JOIN];
        float4 x[JOIN], o = make_float4(0, 0, 0, 0);
        float max = -INFINITY, sum = 0;
#pragma unroll
        for (int k = 0; k < JOIN; k++) {
            if (k >= count) break;
            end[k] = __ldcg((const float2 *)(ends + k * step));
            x[k] = __ldcg((const float4 *)(part + k * step + i));
        }
#pragma unroll
        for (int k = 0; k < JOIN; k++) max = k < count ? fmaxf(max, end[k].x) : max;
#pragma unroll
        for (int k = 0; k < JOIN; k++) {
            if (k >= count) break;
            if (end[k].x == -INFINITY) continue;    /* no keys: nothing was written but this */
            float f = ptx_exp2(end[k].x - max);
            sum += f * end[k].y;
            o.x += f * x[k].x, o.y += f * x[k].y, o.z += f * x[k].z, o.w += f * x[k].w;
        }
        put(i, max, sum, o);
    }
}

/* Parts of all steps of joining together: the splits', then those made of JOIN of them each, and
 * so on. */
__host__ __device__ static inline int parts_of(int splits) {
    int all = splits;
    while (splits > JOIN) all += splits = (splits + JOIN - 1) / JOIN;
    return all;
}

/* The last of up to JOIN blocks joins their parts, and goes on as one of the blocks of the next
 * step. */
__device__ static inline void join(const Attend &a, const Work &w, size_t step, float v_scale, unsigned *arrived) {
    const int dim = a.l.head_dim;
    size_t first_part = w.part;
    for (int count = w.splits, index = w.split;;) {
        int joined = index / JOIN, n_joined = (count + JOIN - 1) / JOIN, members = min(JOIN, count - joined * JOIN);
        unsigned *ticket = a.ticket + first_part + joined;
        __threadfence();
        __syncthreads();
        if (threadIdx.x == 0) *arrived = atomicAdd(ticket, 1u);
        __syncthreads();
        if (*arrived != (unsigned)members - 1) return;
        if (threadIdx.x == 0) *ticket = 0;
        __threadfence();
        const float *part = a.part + (first_part + joined * JOIN) * step;
        float *next = a.part + (first_part + count + joined) * step;
        join_parts(part, step, members, w.rows, dim, [&](int i, float max, float sum, float4 x) {
            const int row = w.first + i / dim, column = (w.h * w.group + row % w.group) * dim + i % dim;
            const float scale = v_scale / sum;
            if (n_joined == 1) {
                store_out(a, row / w.group, column, make_float4(x.x * scale, x.y * scale, x.z * scale, x.w * scale));
                return;
            }
            if (i % dim == 0) *(float2 *)(next + w.rows * dim + 2 * (i / dim)) = make_float2(max, sum);
            *(float4 *)(next + i) = x;
        });
        if (n_joined == 1) return;
        first_part += count;
        count = n_joined;
        index = joined;
    }
}

/* Begins to copy keys start .. start + count - 1 of head h into a tile; zeros after them. */
__device__ static inline void load_tile(uint8_t *tile, const Attend &a, int size, int h, int start, int count) {
    int k_bytes = a.kv.k_dim * size, v_bytes = a.l.head_dim * size, pitch = k_bytes + v_bytes + 16, slots = (int)a.kv.slots;
    int first = start % slots, lane = threadIdx.x % 32;
    for (int key = threadIdx.x / 32; key < KEYS; key += blockDim.x / 32) {
        int slot = first + (key < count ? key : 0);
        size_t row = (size_t)(slot < slots ? slot : slot - slots) * a.l.n_kv_heads + h;
        const uint8_t *k = a.kv.k + row * k_bytes, *v = a.kv.v + row * v_bytes - k_bytes;
        for (int i = 16 * lane; i < k_bytes + v_bytes; i += 16 * 32)
            ptx_cp_async16_zfill(tile + key * pitch + i, (i < k_bytes ? k : v) + i, key < count ? 16 : 0);
    }
    ptx_cp_async_commit();
}

/* FUSED: of the warp's share of the rows q comes to `to` [rows][head_dim]; and with owns_new the
 * new keys and values come into the cache. */
__device__ static inline void prepare_rows(const Attend &a, const Work &w, bool owns_new, float *to) {
    const Layer &l = a.l;
    int dim = l.head_dim, heads = a.n_heads + 2 * l.n_kv_heads;
    for (int r = threadIdx.x / 32; r < w.rows + (owns_new ? 2 * a.n : 0); r += blockDim.x / 32) {
        int t = r < w.rows ? r / w.group : (r - w.rows) % a.n, is_v = r >= w.rows + a.n;
        const float *token = a.qkv + (size_t)t * heads * dim, *k = token + (a.n_heads + w.h) * dim;
        const float2 *turn = a.turn + t * (dim / 2);
        auto keep = [&](int i, float x) { to[r * dim + i] = x; };
        if (r < w.rows) norm_rope(l, token + (w.h * w.group + r % w.group) * dim, l.q_norm, a.eps, turn, keep);
        else if (is_v) store_value(l, a.kv, a.eps, w.pos + t, w.h, k + l.n_kv_heads * dim);
        else store_key(l, a.kv, a.eps, w.pos + t, turn, w.h, k);
    }
    __syncthreads();
}

/* grid (n_kv_heads * splits, tiles of rows); shared: AttendPlan's.  For each tile of rows and
 * key/value head: part [parts_of(splits)] of ROWS * (head_dim + 2) floats each, numbers
 * [rows][head_dim], then maximum and sum of each row; ticket [parts_of(splits)], zero before and
 * after.  With a tile of 16 rows, which then is the only one (FUSED), q, k and v come as the
 * projections gave them: what norm_rope_kernel does for more rows is done here. */
template <bool FP8, int ROW_WARPS, int COL_WARPS, int MAX_DIM>
__global__ static void __launch_bounds__(32 * ROW_WARPS * COL_WARPS, 1) attend_kernel(const __grid_constant__ Attend a) {
    constexpr int ROWS = 16 * ROW_WARPS, BLOCKS = MAX_DIM / 16 / COL_WARPS, PARTS = 2, SIZE = FP8 ? 1 : 2, FUSED = ROW_WARPS == 1;
    DYNAMIC_SHARED(uint8_t, shared);
    SHARED(unsigned, arrived);
    const Layer &l = a.l;
    const KvCache &kv = a.kv;
    int dim = l.head_dim, pitch = (kv.k_dim + dim) * SIZE + 16, heads = a.n_heads + 2 * l.n_kv_heads;
    int warp = threadIdx.x / 32, col = warp % COL_WARPS, row_warp = warp / COL_WARPS;
    int tile_of_rows = gridDim.y - 1 - blockIdx.y;  /* the last tokens have the most keys: they come first */
    float4 *exchange = (float4 *)(shared + 2 * KEYS * pitch) + row_warp * COL_WARPS * (KEYS / 8) * 32;
    /* What only earlier steps wrote, the position and, fused, the keys in the cache, need not be
     * waited for: see gpu_launch. */
    if (!FUSED) ptx_grid_wait();
    Work w = work_of(a, blockIdx.x / a.splits, tile_of_rows, ROWS, KEYS, blockIdx.x % a.splits, a.splits, FUSED);
    w.part = ((size_t)tile_of_rows * l.n_kv_heads + w.h) * parts_of(a.splits);

    /* Tiles of keys: those that are in the cache, then, fused, the n new ones, which no other
     * block must touch before they are there. */
    bool adds = FUSED && l.k.data;
    int old_tiles = w.tiles - adds;
    auto start_of = [&](int tile) { return tile < old_tiles ? w.begin + tile * KEYS : w.pos; };
    auto count_of = [&](int tile) { return tile < old_tiles ? min(KEYS, w.end - start_of(tile)) : a.n; };
    auto tile_at = [&](int tile) { return shared + (tile - w.from) % 2 * KEYS * pitch; };
    auto load = [&](int tile) { load_tile(tile_at(tile), a, SIZE, w.h, start_of(tile), count_of(tile)); };
    bool owns_new = adds && w.from < w.to && w.to == w.tiles;
    if (w.from < w.to && !owns_new) load(w.from);
    if (FUSED) ptx_grid_wait();
    ptx_grid_launch_dependents();
    if (w.split >= w.splits) return;

    float *fresh_q = (float *)(shared + KEYS * pitch);          /* fused: q [16][dim], where the second tile will be */
    if constexpr (FUSED) if (w.from < w.to) {
        prepare_rows(a, w, owns_new, fresh_q);
        if (owns_new) load(w.from);
    }
    unsigned q[BLOCKS][PARTS][4];
    float o[BLOCKS][2][4] = {}, max[2] = {-INFINITY, -INFINITY}, sum[2] = {0, 0};
#pragma unroll
    for (int i = 0; i < 2; i++) {
        int r = lane_row(row_warp, i), row = w.first + r;
        const float *token = a.qkv + ((size_t)min(row / w.group, a.n - 1) * heads + w.h * w.group) * dim;
        const float *from = FUSED ? fresh_q + r * dim : token + row % w.group * dim;
#pragma unroll
        for (int b = 0; b < BLOCKS; b++) {
            int block = 16 * (col + b * COL_WARPS);
            bool none = block >= dim || r >= w.rows || w.from >= w.to;
            load_query<FP8, PARTS>(q[b], i, none ? NULL : from, block, k_column(dim, kv.k_dim, block) >= kv.k_dim ? l.k_norm : NULL);
        }
    }

    float k_scale = 1.44269504f * (FP8 ? l.k_scale : 1);        /* exponentials are powers of 2 */
    for (int tile = w.from; tile < w.to; tile++) {
        const uint8_t *k = tile_at(tile), *v = k + kv.k_dim * SIZE;
        ptx_cp_async_wait<0>();
        __syncthreads();                /* this tile is there, and nobody needs the one before any more */
        if (tile + 1 < w.to) load(tile + 1);

        float s[KEYS / 8][4] = {}, factor[2];
        unsigned e[KEYS / 16][PARTS][4];
#pragma unroll
        for (int b = 0; b < BLOCKS; b++) {
            int block = 16 * (col + b * COL_WARPS);
            if (block < dim) add_scores<FP8, PARTS, KEYS>(s, q[b], k + k_column(dim, kv.k_dim, block) * SIZE, pitch);
        }
        finish_scores<COL_WARPS, KEYS>(s, exchange, 1 + row_warp, col, k_scale);
        mask_scores<KEYS>(s, a, w, row_warp, start_of(tile), count_of(tile));
        exponentials<KEYS>(s, max, sum, factor, 0);
        split_exponentials<FP8, PARTS, KEYS>(e, s);
#pragma unroll
        for (int b = 0; b < BLOCKS; b++) {
            int block = 16 * (col + b * COL_WARPS);
            if (block >= dim) continue;
            for (int i = 0; i < 8; i++) o[b][i / 4][i % 4] *= factor[i % 4 / 2];
            add_values<FP8, PARTS, KEYS>(o[b], e, v + block * SIZE, pitch);
        }
    }

    bool direct = !FUSED && !a.vector && w.splits == 1;         /* neither joined nor split */
    size_t step = ROWS * (dim + 2);
    store_rows<FP8, BLOCKS, COL_WARPS>(a, w, row_warp, col, o, max, sum, dim, step, direct);
    if (!direct) join(a, w, step, FP8 ? l.v_scale : 1, &arrived);
}

/* ---- a prompt ----
 *
 * Each warp has 16 rows and up to 256 dimensions, in registers: with tiles of 64 keys (FP8) it
 * has 256 products between two barriers and reads each number of K and V for 16 rows.  Nothing
 * depends on head_dim or k_dim at run time but where K is made of V (SHARED_V: BF16, head_dim
 * 512).  Otherwise K and V have one buffer each, and one is filled while the other is in use: 64
 * keys of head_dim 512 and the scores fit into the 99 KB of a block on sm_86, 89 and 12x.  The
 * figures are in bench/gpu-predicted.md. */

#define PROMPT_ROWS 64                  /* of a tile: four warps, or four pairs of them */
#define SLACK 8                         /* how far below its maximum a row's base may be, so that sums need seldom be scaled */

/* Begins to copy rows of BYTES of head h to a tile of N, `pitch` bytes apart: those of `count`
 * keys, the first of which is in `slot`; zeros after them. */
template <int BYTES, int N, int N_THREADS>
__device__ static inline void load_rows(uint8_t *to, int pitch, const uint8_t *cache, const Attend &a, int h, int slot, int count) {
    constexpr int IN_ROW = BYTES / 16, AT_ONCE_ROWS = N_THREADS / IN_ROW;
    const int slots = (int)a.kv.slots, at = threadIdx.x % IN_ROW * 16;
    const size_t row = (size_t)a.l.n_kv_heads * BYTES;
    int key = threadIdx.x / IN_ROW;
    if (key >= AT_ONCE_ROWS) return;
    to += key * pitch + at;
    cache += h * BYTES + at;
    if (N % AT_ONCE_ROWS == 0 && count >= N && slot + N <= slots) {
        cache += (slot + key) * row;
#pragma unroll
        for (int i = 0; i < N; i += AT_ONCE_ROWS, cache += AT_ONCE_ROWS * row) ptx_cp_async16(to + i * pitch, cache);
        return;
    }
#pragma unroll 1
    for (; key < N; key += AT_ONCE_ROWS, to += AT_ONCE_ROWS * pitch) {
        int of = slot + (key < count ? key : 0);
        ptx_cp_async16_zfill(to, cache + (of < slots ? of : of - slots) * row, key < count ? 16 : 0);
    }
}

/* grid: a.whole blocks with a tile of rows and a head each, then a.splits for each of the
 * others; parts as for attend_kernel. */
template <bool FP8, int DIM, int N>
__global__ static void __launch_bounds__(DIM > 256 ? 256 : 128, 1) prompt_kernel(const __grid_constant__ Attend a) {
    constexpr int COLS = DIM > 256 ? 2 : 1, BLOCKS = DIM / 16 / COLS, SIZE = FP8 ? 1 : 2, N_THREADS = 128 * COLS;
    constexpr bool SHARED_V = !FP8 && DIM > 256;
    DYNAMIC_SHARED(uint8_t, shared);
    SHARED(unsigned, arrived);
    SHARED(Work, w);                    /* these are here because registers are few */
    SHARED(float, row_max, [COLS][PROMPT_ROWS]);
    SHARED(float, row_sum, [PROMPT_ROWS]);
    const Layer &l = a.l;
    const int k_dim = SHARED_V ? a.kv.k_dim : DIM, k_bytes = k_dim * SIZE, pitch = k_bytes + DIM * SIZE + 16;
    const int warp = threadIdx.x / 32, col = warp % COLS, row_warp = warp / COLS, slots = (int)a.kv.slots;
    ptx_grid_wait();
    ptx_grid_launch_dependents();
    if (threadIdx.x == 0) {
        int x = blockIdx.x, rest = max(x - a.whole, 0), splits = x < a.whole ? 1 : a.splits;
        int unit = min(x, a.whole) + rest / splits;     /* the last tokens have the most keys: they come first */
        int tiles = (a.n * (a.n_heads / l.n_kv_heads) + PROMPT_ROWS - 1) / PROMPT_ROWS;
        w = work_of(a, unit % l.n_kv_heads, tiles - 1 - unit / l.n_kv_heads, PROMPT_ROWS, N, rest % splits, splits, false);
        w.part = (size_t)max(unit - a.whole, 0) * parts_of(splits);
    }
    if (threadIdx.x < PROMPT_ROWS) {
        row_sum[threadIdx.x] = 0;
        for (int c = 0; c < COLS; c++) row_max[c][threadIdx.x] = -INFINITY;
    }
    __syncthreads();
    if (w.split >= w.splits) return;
    float4 *exchange = (float4 *)(shared + (SHARED_V ? 2 : 1) * N * pitch) + row_warp * COLS * (N / 8) * 32;
    auto tile_at = [&](int tile) { return shared + (SHARED_V ? (tile - w.from) % 2 * N * pitch : 0); };
    auto slot_of = [&](int tile) { return w.slot + tile * N - (w.slot + tile * N < slots ? 0 : slots); };
    auto count_of = [&](int tile) { return w.end - w.begin - tile * N; };
    auto load_v = [&](int tile) {
        load_rows<DIM * SIZE, N, N_THREADS>(tile_at(tile) + k_bytes, pitch, a.kv.v, a, w.h, slot_of(tile), count_of(tile));
        ptx_cp_async_commit();
    };
    auto load_k = [&](int tile) {       /* SHARED_V: and V; N is KEYS there */
        if (SHARED_V) return load_tile(tile_at(tile), a, SIZE, w.h, w.begin + tile * N, count_of(tile));
        load_rows<DIM * SIZE, N, N_THREADS>(tile_at(tile), pitch, a.kv.k, a, w.h, slot_of(tile), count_of(tile));
        ptx_cp_async_commit();
    };
    if (w.from < w.to) load_k(w.from);

    unsigned q[BLOCKS][1][4];
    float o[BLOCKS][2][4] = {}, max[2], sum[2];
#pragma unroll
    for (int i = 0; i < 2; i++) {
        int row = w.first + min(lane_row(row_warp, i), w.rows - 1);
        const float *from = a.qkv + ((size_t)(row / w.group) * (a.n_heads + 2 * l.n_kv_heads) + w.h * w.group + row % w.group) * DIM;
#pragma unroll
        for (int b = 0; b < BLOCKS; b++) {
            int block = 16 * (col + b * COLS);
            load_query<FP8, 1>(q[b], i, from, block, k_column(DIM, k_dim, block) >= k_dim ? l.k_norm : NULL);
        }
    }

    for (int tile = w.from; tile < w.to; tile++) {
        const uint8_t *k = tile_at(tile), *v = k + k_bytes;
        ptx_cp_async_wait<0>();
        __syncthreads();                /* K is there, and nobody needs the last tile's V any more */
        if (!SHARED_V) load_v(tile);
        else if (tile + 1 < w.to) load_k(tile + 1);

        float s[N / 8][4] = {}, factor[2];
        unsigned e[N / 16][1][4];
#pragma unroll
        for (int b = 0; b < BLOCKS; b++) add_scores<FP8, 1, N>(s, q[b], k + k_column(DIM, k_dim, 16 * (col + b * COLS)) * SIZE, pitch);
        finish_scores<COLS, N>(s, exchange, 1 + row_warp, col, 1.44269504f * (FP8 ? l.k_scale : 1));
        mask_scores<N>(s, a, w, row_warp, w.begin + tile * N, count_of(tile));
        for (int i = 0; i < 2; i++) max[i] = row_max[col][lane_row(row_warp, i)], sum[i] = 0;
        exponentials<N>(s, max, sum, factor, SLACK);
        for (int i = 0; i < 2; i++) {
            float all = sum[i] + __shfl_xor_sync(0xffffffffu, sum[i], 1);
            int r = lane_row(row_warp, i);
            all += __shfl_xor_sync(0xffffffffu, all, 2);
            row_max[col][r] = max[i];
            if (threadIdx.x % 4 == 0 && col == 0) row_sum[r] = row_sum[r] * factor[i] + all;
        }
        split_exponentials<FP8, 1, N>(e, s);
        if (__any_sync(0xffffffffu, factor[0] != 1 || factor[1] != 1))
#pragma unroll
            for (int b = 0; b < BLOCKS; b++)
                for (int i = 0; i < 8; i++) o[b][i / 4][i % 4] *= factor[i % 4 / 2];

        if (!SHARED_V) {
            ptx_cp_async_wait<0>();
            __syncthreads();            /* V is there, and nobody needs K any more */
            if (tile + 1 < w.to) load_k(tile + 1);
        }
#pragma unroll
        for (int b = 0; b < BLOCKS; b++) {
            __syncwarp();               /* here a compiler that loads all of V ahead would run out of registers */
            add_values<FP8, 1, N>(o[b], e, v + 16 * (col + b * COLS) * SIZE, pitch);
        }
    }
    __syncthreads();
    for (int i = 0; i < 2; i++) {
        int r = lane_row(row_warp, i);
        max[i] = row_max[col][r];
        sum[i] = threadIdx.x % 4 ? 0 : row_sum[r];
    }
    const size_t step = PROMPT_ROWS * (DIM + 2);
    store_rows<FP8, BLOCKS, COLS>(a, w, row_warp, col, o, max, sum, DIM, step, w.splits == 1);
    if (w.splits > 1) join(a, w, step, FP8 ? l.v_scale : 1, &arrived);
}

/* ---- which kernel, and how ---- */

typedef struct {
    void (*kernel)(Attend);
    int row_warps, col_warps, keys;
    int head_dim, per_sm;               /* prompt_kernel's, for just this head_dim; its blocks that fit on a multiprocessor */
} AttendVariant;

/* attend_kernel: BF16, then FP8; of each head_dim up to 256, then 512; of each up to 16 rows,
 * then more.  Then prompt_kernel: BF16 (80: the tower that sees pictures), then FP8. */
enum { ATTEND_VARIANTS = 13, PROMPT_VARIANTS = 8, PROMPT_VARIANTS_FP8 = 11 };
static const AttendVariant attend_variant[ATTEND_VARIANTS] = {
    {attend_kernel<false, 1, 4, 256>, 1, 4, KEYS, 0, 0}, {attend_kernel<false, 4, 2, 256>, 4, 2, KEYS, 0, 0},
    {attend_kernel<false, 1, 8, 512>, 1, 8, KEYS, 0, 0}, {attend_kernel<false, 2, 4, 512>, 2, 4, KEYS, 0, 0},
    {attend_kernel<true, 1, 4, 256>, 1, 4, KEYS, 0, 0},  {attend_kernel<true, 4, 2, 256>, 4, 2, KEYS, 0, 0},
    {attend_kernel<true, 1, 8, 512>, 1, 8, KEYS, 0, 0},  {attend_kernel<true, 2, 4, 512>, 2, 4, KEYS, 0, 0},
    {prompt_kernel<false, 80, 64>, 4, 1, 64, 80, 2},     {prompt_kernel<false, 256, 32>, 4, 1, 32, 256, 2},
    {prompt_kernel<false, 512, 32>, 4, 2, 32, 512, 1},
    {prompt_kernel<true, 256, 64>, 4, 1, 64, 256, 2},    {prompt_kernel<true, 512, 64>, 4, 2, 64, 512, 1},
};

/* How n tokens are attended to.  It depends on n and the layer, never on the position. */
typedef struct {
    const AttendVariant *variant;       /* NULL: plain_attend_kernel */
    int fused, tiles, splits;
    int whole;                          /* prompt_kernel: tiles of rows and heads that are not split */
    size_t shared;                      /* bytes */
    size_t parts;                       /* tickets; and parts, of part_floats each */
    size_t part_floats;
} AttendPlan;

/* The variant of prompt_kernel for a layer, or NULL. */
static const AttendVariant *prompt_variant(const Layer *l, const KvCache *kv) {
    int fp8 = kv->dtype == DT_F8_E4M3, shares_v = !fp8 && l->head_dim > 256;
    if (shares_v != (kv->k_dim < l->head_dim)) return NULL;
    int end = fp8 ? ATTEND_VARIANTS : PROMPT_VARIANTS_FP8;
    for (int i = fp8 ? PROMPT_VARIANTS_FP8 : PROMPT_VARIANTS; i < end; i++)
        if (attend_variant[i].head_dim == l->head_dim) return &attend_variant[i];
    return NULL;
}

/* prompt_kernel's `units`, tiles of rows and heads, take turns on the places of the GPU.  Those
 * that are left for the last turn are split, into as many as end soonest, in at most two shorter
 * turns; but not where two blocks fit on a multiprocessor, on which one that is left alone is
 * faster. */
static void share_out(AttendPlan *p, int units, int blocks, int per_sm, int64_t most) {
    int slots = blocks * per_sm / 2, rest = units < slots ? units : per_sm == 1 && slots ? units % slots : 0, turns = 1;
    p->splits = 1;
    for (int s = 2; rest && s <= most && rest * s <= 2 * slots; s++) {
        int t = (rest * s + slots - 1) / slots;
        if (t * p->splits < turns * s) p->splits = s, turns = t;
    }
    p->whole = p->splits > 1 ? units - rest : units;
}

/* parts: PARTS for more than 16 tokens; for fewer it is 2, which costs nothing there.  blocks:
 * how many fill the GPU, two on a multiprocessor; 0: nothing is split.  limit: of shared memory
 * for a block. */
static AttendPlan attend_plan(const Layer *l, const KvCache *kv, int n_heads, int n, int parts, int blocks, size_t limit) {
    int dim = l->head_dim, group = n_heads / l->n_kv_heads, rows = n * group, turning = kv->k_dim / 2, fp8 = kv->dtype == DT_F8_E4M3;
    AttendPlan p = {};
    p.shared = plain_attend_shared(l, n_heads);
    if (kv->dtype == DT_F32 || dim % 16 || dim > 512) return p;
    if (kv->k_dim < dim && (turning % 16 || dim % 32)) return p;        /* a block of dimensions turns as a whole, or not */
    const AttendVariant *prompt = n > 16 && parts == 1 ? prompt_variant(l, kv) : NULL;
    const AttendVariant *v = prompt ? prompt : &attend_variant[fp8 * 4 + (dim > 256) * 2 + (rows > 16)];
    int buffers = prompt && kv->k_dim == dim ? 1 : 2, n_rows = 16 * v->row_warps;
    size_t shared = buffers * v->keys * ((size_t)(kv->k_dim + dim) * (fp8 ? 1 : 2) + 16);
    if (v->col_warps > 1) shared += n_rows * v->col_warps * v->keys * 4;
    if (shared > limit) return p;
    p.variant = v;
    p.shared = shared;
    p.fused = rows <= 16;
    p.tiles = (rows + n_rows - 1) / n_rows;
    p.part_floats = n_rows * (dim + 2);
    int units = l->n_kv_heads * p.tiles;
    int64_t key_tiles = (kv->slots + v->keys - 1) / v->keys + 1;
    if (prompt) {
        share_out(&p, units, blocks, v->per_sm, key_tiles);
        p.parts = (size_t)(units - p.whole) * parts_of(p.splits);
        return p;
    }
    p.splits = blocks / units;
    if (p.splits > key_tiles) p.splits = (int)key_tiles;
    if (p.splits < 1) p.splits = 1;
    p.parts = p.splits > 1 || p.fused || n <= FEW_TOKENS ? (size_t)units * parts_of(p.splits) : 0;
    return p;
}
