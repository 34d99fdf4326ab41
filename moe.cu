/* moe.cu - the dense MLP, the router and the experts on the GPU. */

/* x += RMSNorm(o, post_attention_norm), one block a token. */
__global__ static void add_attention_kernel(const float *o, const float *norm, float eps, int hidden, float *x) {
    SHARED(float, red, [32]);
    const float *from = o + (size_t)blockIdx.x * hidden;
    float *to = x + (size_t)blockIdx.x * hidden, s = rms_scale(from, hidden, eps, red);
    for (int i = threadIdx.x; i < hidden; i += blockDim.x) to[i] += from[i] * s * norm[i];
}

/* One launch for what only needs x: gelu(gate) * up of the dense MLP, and the router's scores.  The two see the same norm of x
 * with different weights.  grid (blocks of rows of gate and router, tokens); shared: 8 * hidden bytes. */
__global__ static void mlp_up_kernel(Layer l, float eps, int n_experts, const float *x, float *act, float *score) {
    DYNAMIC_SHARED(float, y);
    SHARED(float, red, [32]);
    int hidden = l.gate.cols, r = blockIdx.x * WARPS + threadIdx.x / 32;
    const float *from = x + (size_t)blockIdx.y * hidden;
    float *for_router = y + hidden, s = rms_scale(from, hidden, eps, red), root = 1 / sqrtf(hidden);
    for (int i = threadIdx.x; i < hidden; i += blockDim.x) {
        y[i] = from[i] * s * l.pre_mlp_norm[i];
        if (n_experts) for_router[i] = from[i] * s * l.router_scale[i] * root;
    }
    __syncthreads();
    if (r < l.gate.rows) {
        float g = dot_row(l.gate, r, y), up = dot_row(l.up, r, y);
        if (threadIdx.x % 32 == 0) act[(size_t)blockIdx.y * l.gate.rows + r] = gelu_times(g, up);
    } else if (r < l.gate.rows + n_experts) {
        float p = dot_row(l.router, r - l.gate.rows, for_router);
        if (threadIdx.x % 32 == 0) score[(size_t)blockIdx.y * n_experts + r - l.gate.rows] = p;
    }
}

/* softmax of a token's scores, its top_k experts, and their weights.  One warp a token: the softmax in float32, then top_k
 * times the largest that is left, the lower index on a tie. */
__global__ static void route_kernel(Layer l, int n_experts, int top_k, float *score, int *expert, float *weight) {
    int t = blockIdx.x, lane = threadIdx.x;
    float *p = score + (size_t)t * n_experts, max = -INFINITY, sum = 0, chosen = 0;
    for (int e = lane; e < n_experts; e += 32) max = fmaxf(max, p[e]);
    for (int w = 16; w; w /= 2) max = fmaxf(max, __shfl_xor_sync(0xffffffffu, max, w));
    for (int e = lane; e < n_experts; e += 32) sum += p[e] = expf(p[e] - max);
    sum = warp_sum(sum);
    for (int e = lane; e < n_experts; e += 32) p[e] /= sum;
    for (int k = 0; k < top_k; k++) {
        float best = -1;
        int at = n_experts;
        for (int e = lane; e < n_experts; e += 32)
            if (p[e] > best) best = p[e], at = e;
        for (int w = 16; w; w /= 2) {
            float other = __shfl_xor_sync(0xffffffffu, best, w);
            int its = __shfl_xor_sync(0xffffffffu, at, w);
            if (other > best || (other == best && its < at)) best = other, at = its;
        }
        if (at == n_experts) at = 0;                /* only NaN is left */
        if (lane == 0) expert[t * top_k + k] = at, weight[t * top_k + k] = best;
        if (at % 32 == lane) p[at] = -2;            /* taken; a lane only ever reads its own */
        chosen += best;
    }
    __syncwarp();
    for (int k = lane; k < top_k; k += 32) weight[t * top_k + k] = weight[t * top_k + k] / chosen * l.per_expert_scale[expert[t * top_k + k]];
}

/* One launch for what needs the routes: gelu(gate) * up of the chosen experts, and the dense MLP's down.
 * grid (blocks of rows of top_k experts and of down, tokens); shared: 4 * max(hidden, intermediate) bytes. */
__global__ static void experts_up_kernel(Layer l, float eps, int top_k, int size, const float *x, const int *expert, const float *act, float *expert_act,
                                         float *h1) {
    DYNAMIC_SHARED(float, y);
    SHARED(float, red, [32]);
    int hidden = l.down.rows, per_expert = (size + WARPS - 1) / WARPS, t = blockIdx.y;
    int k = per_expert ? blockIdx.x / per_expert : 0;
    if (top_k && k < top_k) {
        const float *from = x + (size_t)t * hidden;
        float s = rms_scale(from, hidden, eps, red);
        for (int i = threadIdx.x; i < hidden; i += blockDim.x) y[i] = from[i] * s * l.pre_experts_norm[i];
        __syncthreads();
        int e = expert[t * top_k + k], r = (blockIdx.x % per_expert) * WARPS + threadIdx.x / 32;
        if (r >= size) return;
        float g = dot_row(l.expert_gate[e], r, y), up = dot_row(l.expert_up[e], r, y);
        if (threadIdx.x % 32 == 0) expert_act[((size_t)t * top_k + k) * size + r] = gelu_times(g, up);
        return;
    }
    const float *from = act + (size_t)t * l.down.cols;
    for (int i = threadIdx.x; i < l.down.cols; i += blockDim.x) y[i] = from[i];
    __syncthreads();
    int r = (blockIdx.x - top_k * per_expert) * WARPS + threadIdx.x / 32;
    if (r >= hidden) return;
    float sum = dot_row(l.down, r, y);
    if (threadIdx.x % 32 == 0) h1[(size_t)t * hidden + r] = sum;
}

/* h2 = sum over the chosen experts of weight * down . act.  grid (blocks of rows, tokens); shared: 4 * top_k * size bytes. */
__global__ static void experts_down_kernel(Layer l, int top_k, int size, const int *expert, const float *weight, const float *expert_act, float *h2) {
    DYNAMIC_SHARED(float, y);
    int hidden = l.down.rows, t = blockIdx.y, r = blockIdx.x * WARPS + threadIdx.x / 32;
    const float *from = expert_act + (size_t)t * top_k * size;
    for (int i = threadIdx.x; i < top_k * size; i += blockDim.x) y[i] = from[i];
    __syncthreads();
    if (r >= hidden) return;
    float sum = 0;
    for (int k = 0; k < top_k; k++) sum += weight[t * top_k + k] * dot_row(l.expert_down[expert[t * top_k + k]], r, y + k * size);
    if (threadIdx.x % 32 == 0) h2[(size_t)t * hidden + r] = sum;
}

/* x = (x + RMSNorm(h, post_ffn_norm)) * layer_scalar, h = RMSNorm(h1, post_mlp_norm) + RMSNorm(h2, post_experts_norm), or h1 alone
 * in a dense model.  One block a token; shared: 4 * hidden bytes. */
__global__ static void join_kernel(Layer l, float eps, int hidden, const float *h1, const float *h2, float *x) {
    DYNAMIC_SHARED(float, h);
    SHARED(float, red, [32]);
    const float *a = h1 + (size_t)blockIdx.x * hidden, *b = h2 + (size_t)blockIdx.x * hidden;
    float *to = x + (size_t)blockIdx.x * hidden;
    if (l.router.data) {
        float sa = rms_scale(a, hidden, eps, red), sb = rms_scale(b, hidden, eps, red);
        for (int i = threadIdx.x; i < hidden; i += blockDim.x) h[i] = a[i] * sa * l.post_mlp_norm[i] + b[i] * sb * l.post_experts_norm[i];
    } else
        for (int i = threadIdx.x; i < hidden; i += blockDim.x) h[i] = a[i];
    __syncthreads();
    float s = rms_scale(h, hidden, eps, red);
    for (int i = threadIdx.x; i < hidden; i += blockDim.x) to[i] = (to[i] + h[i] * s * l.post_ffn_norm[i]) * l.layer_scalar;
}
