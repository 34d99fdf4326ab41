/* attention.cu - norms, RoPE, the KV cache and attention on the GPU. */

/* q, k, v of one token, one after the other: [n_heads + 2 * n_kv_heads][head_dim]; without v_proj the k is there twice.
 * shared: floats [hidden], a vector of hidden. */
__global__ static void __launch_bounds__(THREADS)
    qkv_kernel(const __grid_constant__ Layer l, const __grid_constant__ Residual r, int parts, float *qkv) {
    DYNAMIC_SHARED(float, x);
    SHARED(float, red, [32]);
    int hidden = l.q.cols, q_tiles = tiles_of(l.q.rows), k_tiles = tiles_of(l.k.rows), n_tiles = q_tiles + k_tiles * (l.v.data ? 2 : 1);
    ptx_grid_launch_dependents();
    auto matrix = [&](int tile) -> const Weight & { return tile < q_tiles ? l.q : tile < q_tiles + k_tiles ? l.k : l.v; };
    auto row_in = [&](int tile) { return 8 * (tile < q_tiles ? tile : (tile - q_tiles) % k_tiles); };
    auto find = [&](int tile, int step) { return source_of(matrix(tile), row_in(tile), step, 0); };
    auto steps = [&](int tile) { return steps_of(matrix(tile)); };
    Piece piece[PIECES];
    load_first(piece, blockIdx.x, steps(blockIdx.x), find);
    ptx_grid_wait();
    Vector y = vector_at(x + padded(hidden), hidden, parts);
    settle(r, 0, hidden, x, red);
    if (blockIdx.x == 0)
        for (int i = threadIdx.x; i < hidden; i += blockDim.x) r.to[i] = x[i];
    put_norm(y, 0, x, hidden, rms_scale(x, hidden, r.eps, red), l.input_norm);
    __syncthreads();
    auto done = [&](int tile, int i, float sum) {
        const Weight &w = matrix(tile);
        int row = row_in(tile) + i, at = row + (tile < q_tiles ? 0 : tile < q_tiles + k_tiles ? l.q.rows : l.q.rows + l.k.rows);
        if (row >= w.rows) return;
        qkv[at] = sum * factor(w);
        if (!l.v.data && tile >= q_tiles) qkv[at + l.k.rows] = sum * factor(w);
    };
    stream_rows(piece, n_tiles, steps, find, done, y);
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

/* Dimension i of a row of K, which may have to be made from V: see KvCache in ops.h. */
__device__ static float key_load(const Layer &l, const KvCache &kv, size_t row, int i) {
    int half = l.head_dim / 2, turning = kv.k_dim / 2, pair = i % half;
    if (pair >= turning) return l.k_norm[i] * cache_load(kv.v, row * l.head_dim + i, kv.dtype, l.v_scale);
    return cache_load(kv.k, row * kv.k_dim + (i < half ? pair : turning + pair), kv.dtype, l.k_scale);
}

/* Norms and RoPE, one block a head: q in place, k and v into the cache.  grid (n_heads + n_kv_heads, tokens);
 * shared: 4 * head_dim bytes. */
__global__ static void norm_rope_kernel(Layer l, KvCache kv, float eps, int n_heads, int64_t pos, float *qkv) {
    DYNAMIC_SHARED(float, y);
    SHARED(float, red, [32]);
    ptx_grid_wait();
    int dim = l.head_dim, half = dim / 2, h = blockIdx.x, t = blockIdx.y, is_k = h >= n_heads;
    float *v = qkv + ((size_t)t * (n_heads + 2 * l.n_kv_heads) + h) * dim;
    const float *norm = is_k ? l.k_norm : l.q_norm;
    float s = rms_scale(v, dim, eps, red);
    for (int i = threadIdx.x; i < dim; i += blockDim.x) y[i] = v[i] * s * norm[i];
    __syncthreads();
    size_t row = ((pos + t) % kv.slots) * l.n_kv_heads + h - n_heads;
    int turning = kv.k_dim / 2;         /* pairs of dimensions of K that the cache keeps */
    for (int i = threadIdx.x; i < half; i += blockDim.x) {
        float angle = (float)(pos + t) * l.inv_freq[i], c = cosf(angle), n = sinf(angle);
        float a = y[i] * c - y[i + half] * n, b = y[i + half] * c + y[i] * n;
        if (!is_k) v[i] = a, v[i + half] = b;
        else if (i < turning) {
            cache_store(kv.k, row * kv.k_dim + i, kv.dtype, l.k_scale, a);
            cache_store(kv.k, row * kv.k_dim + i + turning, kv.dtype, l.k_scale, b);
        }
    }
    if (!is_k) return;
    v += l.n_kv_heads * dim;            /* V of the same head: normed without a weight */
    s = rms_scale(v, dim, eps, red);
    for (int i = threadIdx.x; i < dim; i += blockDim.x) cache_store(kv.v, row * dim + i, kv.dtype, l.v_scale, v[i] * s);
}

#define KEYS 64                         /* keys of a tile */

/* Flash decoding: a block takes one token, one key/value head with its group of query heads, and one of `splits` parts of the
 * keys, tile by tile, with a running maximum and sum.  The block that finishes last for its head joins the parts, in order.
 * grid (n_kv_heads * splits, tokens).  shared: floats q [group][dim], score [group][KEYS], acc [group][dim], and max, sum,
 * factor [group].  part [tokens][n_kv_heads][splits][group][dim + 2]; ticket [tokens][n_kv_heads], zero before and after. */
__global__ static void attend_kernel(Layer l, KvCache kv, int n_heads, int window, int64_t pos, int splits, const float *qkv,
                                     float *part, unsigned *ticket, float *out) {
    DYNAMIC_SHARED(float, shared);
    SHARED(unsigned, arrived);
    ptx_grid_wait();
    int dim = l.head_dim, group = n_heads / l.n_kv_heads, h = blockIdx.x / splits, split = blockIdx.x % splits, t = blockIdx.y;
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32, n_warps = blockDim.x / 32;
    float *q = shared, *score = q + group * dim, *acc = score + group * KEYS, *max = acc + group * dim, *sum = max + group, *factor = sum + group;
    const float *from_q = qkv + ((size_t)t * (n_heads + 2 * l.n_kv_heads) + h * group) * dim;
    for (int i = threadIdx.x; i < group * dim; i += blockDim.x) q[i] = from_q[i], acc[i] = 0;
    for (int g = threadIdx.x; g < group; g += blockDim.x) max[g] = -INFINITY, sum[g] = 0;

    int64_t last = pos + t, first = l.global || last < window ? 0 : last - window + 1;
    int64_t n = (last + 1 - first + splits - 1) / splits, from = first + split * n, to = from + n < last + 1 ? from + n : last + 1;
    for (int64_t tile = from; tile < to; tile += KEYS) {
        int keys = to - tile < KEYS ? (int)(to - tile) : KEYS;
        __syncthreads();
        for (int k = warp; k < keys; k += n_warps) {            /* a warp takes a key and all heads of the group */
            size_t row = ((tile + k) % kv.slots) * l.n_kv_heads + h;
            for (int g = 0; g < group; g++) {
                float s = 0;
                for (int i = lane; i < dim; i += 32) s += key_load(l, kv, row, i) * q[g * dim + i];
                s = warp_sum(s);
                if (lane == 0) score[g * KEYS + k] = s;
            }
        }
        __syncthreads();
        for (int g = warp; g < group; g += n_warps) {           /* a warp takes a head: new maximum, exponentials, sum */
            float m = max[g], total = 0;
            for (int k = lane; k < keys; k += 32) m = fmaxf(m, score[g * KEYS + k]);
            for (int w = 16; w; w /= 2) m = fmaxf(m, __shfl_xor_sync(0xffffffffu, m, w));
            for (int k = lane; k < keys; k += 32) total += score[g * KEYS + k] = expf(score[g * KEYS + k] - m);
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
                for (int g = 0; g < group; g++) acc[g * dim + i] += score[g * KEYS + k] * v;
            }
        }
    }
    __syncthreads();

    float *to_part = part + (((size_t)t * l.n_kv_heads + h) * splits + split) * group * (dim + 2);
    for (int i = threadIdx.x; i < group * dim; i += blockDim.x) to_part[i] = acc[i];
    for (int g = threadIdx.x; g < group; g += blockDim.x) to_part[group * dim + 2 * g] = max[g], to_part[group * dim + 2 * g + 1] = sum[g];
    __threadfence();
    __syncthreads();
    if (threadIdx.x == 0) arrived = atomicAdd(&ticket[t * l.n_kv_heads + h], 1u);
    __syncthreads();
    if (arrived != (unsigned)splits - 1) return;
    __threadfence();
    const float *parts = part + ((size_t)t * l.n_kv_heads + h) * splits * group * (dim + 2);
    for (int i = threadIdx.x; i < group * dim; i += blockDim.x) {
        int g = i / dim;
        float m = -INFINITY, total = 0, o = 0;
        for (int s = 0; s < splits; s++) m = fmaxf(m, parts[(size_t)s * group * (dim + 2) + group * dim + 2 * g]);
        for (int s = 0; s < splits; s++) {
            const float *p = parts + (size_t)s * group * (dim + 2);
            float f = expf(p[group * dim + 2 * g] - m);         /* 0 for a part without keys */
            total += p[group * dim + 2 * g + 1] * f;
            o += p[i] * f;
        }
        out[((size_t)t * n_heads + h * group) * dim + i] = o / total;
    }
    if (threadIdx.x == 0) ticket[t * l.n_kv_heads + h] = 0;
}
