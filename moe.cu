/* moe.cu - the dense MLP, the router and the experts on the GPU.
 *
 * One token takes three launches: gate and up of the dense MLP beside the router's scores; the choice of experts, their gate
 * and up beside the dense down; the experts' down.  Several tokens are sorted by expert, so that an expert's weights are
 * read once for all of its tokens. */

/* One token, what only needs x: gate, up of the dense MLP -> gate_up[2][intermediate], and the router's scores.  Both see the
 * same norm of x with different weights.  shared: floats [hidden], a vector of 2 * hidden. */
__global__ static void __launch_bounds__(THREADS)
    mlp_rows_kernel(const __grid_constant__ Layer l, const __grid_constant__ Residual r, int n_experts, int parts, float *gate_up, float *score) {
    DYNAMIC_SHARED(float, x);
    SHARED(float, red, [32]);
    int hidden = l.gate.cols, rows = l.gate.rows, tiles = tiles_of(rows);
    ptx_grid_launch_dependents();
    auto find = [&](int tile, int step) {
        if (tile < tiles) return source_of(l.gate, tile * 8, step, 0);
        if (tile < 2 * tiles) return source_of(l.up, (tile - tiles) * 8, step, 0);
        return source_of(l.router, (tile - 2 * tiles) * 8, step, padded(hidden));
    };
    auto steps = [&](int tile) { return tile < tiles ? steps_of(l.gate) : tile < 2 * tiles ? steps_of(l.up) : steps_of(l.router); };
    Piece piece[PIECES];
    load_first(piece, blockIdx.x, steps(blockIdx.x), find);
    ptx_grid_wait();
    Vector y = vector_at(x + padded(hidden), 2 * padded(hidden), parts);
    settle(r, 0, hidden, x, red);
    if (blockIdx.x == 0)
        for (int i = threadIdx.x; i < hidden; i += blockDim.x) r.to[i] = x[i];
    float scale = rms_scale(x, hidden, r.eps, red);
    put_norm(y, 0, x, hidden, scale, l.pre_mlp_norm);
    if (n_experts) put_norm(y, padded(hidden), x, hidden, scale / sqrtf(hidden), l.router_scale);
    __syncthreads();
    auto done = [&](int tile, int i, float sum) {
        int which = tile / tiles, row = tile % tiles * 8 + i;
        if (which >= 2) {
            row = (tile - 2 * tiles) * 8 + i;
            if (row < n_experts) score[row] = sum * factor(l.router);
        } else if (row < rows) gate_up[which * rows + row] = sum * factor(which ? l.up : l.gate);
    };
    stream_rows(piece, 2 * tiles + tiles_of(n_experts), steps, find, done, y);
}

/* The softmax of a token's scores [n_experts], its top_k experts by falling probability, the lower index first on a tie, and
 * their weights: probabilities divided by their sum, times per_expert_scale.  All threads of a block; p: floats [n_experts] of
 * shared memory.  Ends with a barrier. */
__device__ static void choose(const float *score, int n_experts, int top_k, const float *per_expert_scale, float *p, float *red, int *expert,
                              float *weight) {
    float max = -INFINITY, sum = 0;
    for (int e = threadIdx.x % 32; e < n_experts; e += 32) max = fmaxf(max, score[e]);
    for (int w = 16; w; w /= 2) max = fmaxf(max, __shfl_xor_sync(0xffffffffu, max, w));
    for (int e = threadIdx.x; e < n_experts; e += blockDim.x) sum += p[e] = expf(score[e] - max);
    sum = block_sum(sum, red);
    for (int e = threadIdx.x; e < n_experts; e += blockDim.x) p[e] = p[e] / sum >= 0 ? p[e] / sum : -1;         /* NaN comes last */
    __syncthreads();
    for (int e = threadIdx.x; e < n_experts; e += blockDim.x) {
        int rank = 0;
        for (int o = 0; o < n_experts; o++) rank += p[o] > p[e] || (p[o] == p[e] && o < e);
        if (rank < top_k) expert[rank] = e, weight[rank] = p[e];
    }
    __syncthreads();
    sum = 0;
    for (int k = 0; k < top_k; k++) sum += weight[k];
    __syncthreads();
    for (int k = threadIdx.x; k < top_k; k += blockDim.x) weight[k] = weight[k] / sum * per_expert_scale[expert[k]];
    __syncthreads();
}

/* One token, what needs the routes: gate, up of the chosen experts -> expert_gate_up[top_k][2][size], and the dense MLP's down of
 * gate_up -> h1.  Every block makes the choice for itself; the first one writes it down.
 * shared: floats [hidden], [n_experts], [top_k], ints [top_k], a vector of hidden and intermediate. */
__global__ static void __launch_bounds__(THREADS)
    experts_up_kernel(const __grid_constant__ Layer l, float eps, int n_experts, int top_k, int size, int parts, const float *x, const float *score,
                      const float *gate_up, int *expert, float *weight, float *expert_gate_up, float *h1) {
    DYNAMIC_SHARED(float, xs);
    SHARED(float, red, [32]);
    int hidden = l.down.rows, inner = l.down.cols, down_tiles = tiles_of(hidden), tiles = tiles_of(size);
    float *p = xs + padded(hidden), *chosen_weight = p + padded(n_experts);
    int *chosen = (int *)(chosen_weight + padded(top_k));
    ptx_grid_launch_dependents();
    auto matrix = [&](int tile) -> const Weight & {         /* down's tiles first: they need not wait for the choice */
        if (tile < down_tiles) return l.down;
        int i = (tile - down_tiles) / tiles;
        const Weight *experts = i % 2 ? l.expert_up : l.expert_gate;
        return experts[chosen[i / 2]];
    };
    auto find = [&](int tile, int step) {
        if (tile < down_tiles) return source_of(l.down, tile * 8, step, padded(hidden));
        return source_of(matrix(tile), (tile - down_tiles) % tiles * 8, step, 0);
    };
    auto steps = [&](int tile) { return steps_of(matrix(tile)); };
    Piece piece[PIECES];
    if ((int)blockIdx.x < down_tiles) load_first(piece, blockIdx.x, steps_of(l.down), find);
    ptx_grid_wait();
    Vector y = vector_at(chosen + padded(top_k), padded(hidden) + padded(inner), parts);
    choose(score, n_experts, top_k, l.per_expert_scale, p, red, chosen, chosen_weight);
    if ((int)blockIdx.x >= down_tiles) load_first(piece, blockIdx.x, steps(blockIdx.x), find);
    if (blockIdx.x == 0)
        for (int k = threadIdx.x; k < top_k; k += blockDim.x) expert[k] = chosen[k], weight[k] = chosen_weight[k];
    put_norm(y, 0, x, hidden, rms_scale(x, hidden, eps, red), l.pre_experts_norm);
    for (int i = threadIdx.x; i < padded(inner); i += blockDim.x) put(y, padded(hidden) + i, i < inner ? gelu_times(gate_up[i], gate_up[inner + i]) : 0);
    __syncthreads();
    auto done = [&](int tile, int i, float sum) {
        sum *= factor(matrix(tile));
        if (tile < down_tiles) {
            if (tile * 8 + i < hidden) h1[tile * 8 + i] = sum;
        } else {
            int row = (tile - down_tiles) % tiles * 8 + i;
            if (row < size) expert_gate_up[(tile - down_tiles) / tiles * size + row] = sum;
        }
    };
    stream_rows(piece, down_tiles + 2 * top_k * tiles, steps, find, done, y);
}

/* One token: h2 = sum over the chosen experts of weight * down . (gelu(gate) * up).  A warp takes an expert (or every eighth).
 * groups: of 64 bytes, in a row of the widest down.  shared: a vector of top_k * size. */
__global__ static void __launch_bounds__(THREADS)
    experts_down_kernel(const __grid_constant__ Layer l, int top_k, int groups, int parts, const int *expert, const float *weight,
                        const float *expert_gate_up, float *h2) {
    DYNAMIC_SHARED(uint8_t, shared);
    ptx_grid_launch_dependents();
    ptx_grid_wait();
    int hidden = l.down.rows, size = l.expert_down[0].cols, width = padded(size);
    auto find = [&](int tile, int step) {
        int k = step / groups * WARPS + threadIdx.x / 32;
        if (k >= top_k) return Source{};
        return Source{&l.expert_down[expert[k]], tile * 8, step % groups, k * width};
    };
    auto steps = [&](int) { return (top_k + WARPS - 1) / WARPS * groups; };
    Piece piece[PIECES];
    load_first(piece, blockIdx.x, steps(0), find);
    Vector y = vector_at(shared, top_k * width, parts);
    for (int k = 0; k < top_k; k++) {
        const float *gate = expert_gate_up + (size_t)k * 2 * size, by = weight[k] * factor(l.expert_down[expert[k]]);
        for (int i = threadIdx.x; i < width; i += blockDim.x) put(y, k * width + i, i < size ? gelu_times(gate[i], gate[size + i]) * by : 0);
    }
    __syncthreads();
    auto done = [&](int tile, int r, float sum) {
        if (tile * 8 + r < hidden) h2[tile * 8 + r] = sum;
    };
    stream_rows(piece, tiles_of(hidden), steps, find, done, y);
}

/* ---- several tokens ---- */

/* The choice for each token: expert [n][top_k], weight [n][top_k].  grid tokens; shared: floats [n_experts]. */
__global__ static void route_kernel(int n_experts, int top_k, const float *score, const float *per_expert_scale, int *expert, float *weight) {
    DYNAMIC_SHARED(float, p);
    SHARED(float, red, [32]);
    ptx_grid_wait();
    size_t t = blockIdx.x;
    choose(score + t * n_experts, n_experts, top_k, per_expert_scale, p, red, expert + t * top_k, weight + t * top_k);
}

/* Sorts the n * top_k pairs of token and choice by expert, by token among the same: list[place] = pair, place[pair] = where it is.
 * Block e finds its expert's pairs, and where they begin by counting those of lower experts.  The last block cuts each expert's
 * places into tiles of tile_size.  grid experts; ticket zero before and after; counts [n_experts]. */
__global__ static void sort_kernel(int n_pairs, int tile_size, const int *expert, int *list, int *place, int *first, int *count, unsigned *ticket,
                                   Tile *tile, int *n_tiles) {
    SHARED(int, found, [2][WARPS]);
    SHARED(unsigned, arrived);
    ptx_grid_wait();
    int e = blockIdx.x, lane = threadIdx.x % 32, warp = threadIdx.x / 32, lower = 0, own = 0;
    for (int i = threadIdx.x; i < n_pairs; i += blockDim.x) lower += expert[i] < e;
    int begin = (int)block_sum((float)lower, (float *)found[0]);               /* exact below 2^24 */
    __syncthreads();
    for (int from = 0, turn = 0; from < n_pairs; from += THREADS, turn ^= 1) {
        int i = from + threadIdx.x, mine = i < n_pairs && expert[i] == e;
        unsigned votes = __ballot_sync(0xffffffffu, mine);
        if (lane == 0) found[turn][warp] = __popc(votes);
        __syncthreads();
        int at = begin + own + __popc(votes & ((1u << lane) - 1));
        for (int w = 0; w < WARPS; w++) {
            if (w < warp) at += found[turn][w];
            own += found[turn][w];
        }
        if (mine) list[at] = i, place[i] = at;
    }
    if (threadIdx.x == 0) {
        first[e] = begin;
        count[e] = own;
        __threadfence();
        arrived = atomicAdd(ticket, 1u);
    }
    __syncthreads();
    if (arrived != gridDim.x - 1 || threadIdx.x) return;
    __threadfence();
    int n = 0;
    for (unsigned i = 0; i < gridDim.x; i++)
        for (int at = 0, all = *(volatile int *)&count[i], from = *(volatile int *)&first[i]; at < all; at += tile_size)
            tile[n++] = {(int)i, from + at, all - at < tile_size ? all - at : tile_size};
    *n_tiles = n;
    *ticket = 0;
}
