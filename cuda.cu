/* cuda.cu - the operations of ops.h on an NVIDIA GPU, and their table.
 *
 * One token takes seven launches a layer: six in a dense layer, one more with a float32 cache, and
 * one less in a sliding layer where launches do not overlap (JOINED_BY_BLOCK in attention.cu).  A
 * sum over a whole vector, which every RMSNorm needs, ends a launch, and each block of the next
 * launch takes the norm for itself.  So attn_out and join only note what is still to be added to
 * the residual stream (`rest`), and the next operation adds it.  The tokens of a longer step are
 * normed once, by kernels of their own.  Then 2 to 8 tokens stream the weights as one token does
 * (few.cu), and more are multiplied in tiles (nvfp4.cu).  In a model with LoRA adapters one token
 * is computed as 2 to 8 are, and the adapters have launches of their own (lora.cu).  A layer whose
 * experts the CPU computes takes eight launches for one token (handover.cu). */
#include "launch.cu"
#include "open.cu"
#include "vision.cu"

static void *cuda_alloc(size_t bytes) { return gpu_malloc(bytes); }
static void cuda_release(void *p, size_t bytes) { gpu_free(p, bytes); }

static void cuda_copy(void *to, const void *from, size_t bytes) {
    check(cudaMemcpy(to, from, bytes, cudaMemcpyDefault), "copying the cache");
}

/* ---- a few tokens ---- */

/* Whether the step is of one token that takes the kernels of its own (stream.cu, moe.cu).  In a
 * model with adapters one token is a step of few tokens: see lora.cu. */
static bool is_one(const Device *d) { return d->n == 1 && !d->adapters.layer; }

/* BF16 numbers that make one of a token's in a vector.  One token has room for exact ones. */
static int vector_parts(const Device *d) { return d->n == 1 ? ROW_PARTS : d->y_parts; }

/* This step's tokens as the rows of a vector. */
static Tokens few_tokens(const Device *d) { return {d->n, vector_parts(d)}; }

/* What both kernels of the MLP and the experts get. */
static FewMlp few_mlp(const Device *d, const Layer *l, const ExpertFormats *formats) {
    const Config *c = d->c;
    FewMlp m = {};
    m.tokens = few_tokens(d);
    m.n_experts = c->n_experts;
    m.top_k = c->top_k;
    m.size = c->expert_size;
    m.dense = 1;
    m.packed = is_nibbles(l->gate) && is_nibbles(l->up);
    m.packed_down = is_nibbles(l->down);
    m.packed_experts = formats->packed_up;
    m.packed_experts_down = formats->packed_down;
    m.score = d->score;
    m.y = d->few_y;
    m.y_experts = d->few_y_experts;
    m.sums = d->few_sums;
    m.expert_sums = d->few_expert_sums;
    m.act = d->act_vector;
    m.expert_act = d->few_expert_act;
    m.expert = d->expert;
    m.weight = d->expert_weight;
    m.routes = d->few_routes;
    m.h1 = d->h1;
    m.expert_out = d->expert_out;
    return m;
}

/* Shared memory of few_up_kernel and few_down_kernel, besides the ring. */
static size_t few_up_bytes(const Device *d, const FewMlp &m) {
    int rows = m.tokens.n * m.tokens.parts * ((m.dense != 0) + (m.n_experts > 0));
    return rows_bytes(rows, d->c->hidden) + few_bytes(m, d->stream_blocks);
}
static size_t few_down_bytes(const Device *d, const FewMlp &m) {
    int rows = m.tokens.n * m.tokens.parts;
    return rows_bytes(m.dense ? rows : 0, d->c->intermediate) + few_bytes(m, d->stream_blocks) +
           rows_bytes(rows * most_experts(m, d->stream_blocks), d->c->expert_size);
}

/* Whether the dense MLP and the experts share launches: there are experts, and room for both. */
static bool few_together(const Device *d, FewMlp m) {
    const size_t room = stream_room(d);
    return m.n_experts && few_up_bytes(d, m) <= room && few_down_bytes(d, m) <= room;
}

/* Whether this step's tokens stream the weights: if they are at most eight rows of an mma, and
 * fit into the shared memory at least where the dense MLP has launches of its own. */
static bool is_few(const Device *d) {
    if (is_one(d) || d->n * vector_parts(d) > STREAMED_TOKENS) return false;
    FewMlp dense = few_mlp(d, &d->layer[0], &d->expert_formats[0]), experts = dense;
    dense.n_experts = experts.dense = 0;
    const size_t room = stream_room(d);
    if (few_up_bytes(d, dense) > room) return false;
    return !experts.n_experts ||
           (few_up_bytes(d, experts) <= room && few_down_bytes(d, experts) <= room);
}

/* Launches few_norm_kernel: settles r, the residual stream of n tokens, makes norms of it, and the
 * router's scores.  next: the matrix that is read next. */
static void few_norms_of(Device *d, const Residual &r, int n, int parts, const VectorTo &a,
                         const VectorTo &b, const Router &router, const Weight &next) {
    const int hidden = d->c->hidden;
    const int idle = d->stream_blocks > n ? d->stream_blocks / n : 1;
    const int shares = router.w.data ? (router.w.rows + ROUTER_ROWS - 1) / ROUTER_ROWS : idle;
    GPU_LAUNCH(few_norm_kernel, dim3(n, shares), dim3(STREAM_THREADS), 4 * (size_t)hidden,
               d->stream, r, hidden, parts, a, b, router, next, d->ahead / (n * shares));
    launched("norms");
}
static void few_norms(Device *d, const VectorTo &a, const VectorTo &b, const Router &router,
                      const Weight &next) {
    few_norms_of(d, residual(d, 0), d->n, vector_parts(d), a, b, router, next);
    settled(d, 0);
}

/* Launches few_rows_kernel: p's matrices times the vector p.from, whose order is p.packed. */
static void few_rows(Device *d, Rows p, const char *what) {
    p.tokens = few_tokens(d);
    const int rows = p.tokens.n * p.tokens.parts;
    const size_t edges = n_edges(p.tokens.n) * sizeof(Edge);
    p.columns = columns_at_once(d, p.w[0].cols, rows, edges);
    STREAM(d, few_rows_kernel, ring_shared(d) + rows_bytes(rows, p.columns) + edges, p);
    launched(what);
}

/* A vector of `cols` numbers for each of this step's tokens. */
static SplitRows few_vectors(const Device *d, uint16_t *at, int cols, int packed) {
    return vector_rows(at, cols, vector_parts(d), packed);
}

/* out[n][w.rows] = w . from. */
static void few_product(Device *d, const Weight &w, const uint16_t *from, float *out,
                        const char *what) {
    Rows p = {};
    p.w[0] = w;
    p.packed = is_nibbles(w);
    p.from = from;
    p.out = out;
    p.pitch = w.rows;
    few_rows(d, p, what);
}

static void few_qkv(Device *d, const Layer *l) {
    Rows p = {};
    const int of_k = l->q.rows, of_v = of_k + l->k.rows;
    p.w[0] = l->q;
    p.w[1] = l->k;
    p.w[2] = l->v;
    p.at[1] = of_k;
    p.at[2] = of_v;
    p.again = l->v.data ? 0 : l->k.rows;
    p.packed = is_nibbles(l->q) && is_nibbles(l->k) && (!l->v.data || is_nibbles(l->v));
    p.from = d->few_y;
    p.out = d->qkv;
    p.pitch = of_v + l->k.rows;
    few_norms(d, {l->input_norm, d->few_y, p.packed}, {}, {}, l->q);
    few_rows(d, p, "qkv");
    const SplitRows in = few_vectors(d, d->few_y, d->c->hidden, p.packed);
    adapt_tokens(d, adapters_of(d, l).qkv, in, d->qkv, p.pitch);
}

/* h1 += what the adapters of the dense MLP's down add. */
static void few_adapt_down(Device *d, const Layer *l) {
    const SplitRows in = few_vectors(d, d->act_vector, d->c->intermediate, is_nibbles(l->down));
    adapt_tokens(d, adapters_of(d, l).down, in, d->h1, d->c->hidden);
}

/* Adds the adapters to what few_up_kernel left in m.sums and m.expert_sums, and computes act and
 * expert_act from it again. */
static void few_adapt_up(Device *d, const Layer *l, const FewMlp &m) {
    const LayerAdapters adapters = adapters_of(d, l);
    const int hidden = d->c->hidden, inner = d->c->intermediate, parts = vector_parts(d);
    if (m.dense && adapters.gate_up.n) {
        const SplitRows in = few_vectors(d, d->few_y, hidden, m.packed);
        adapt_tokens(d, adapters.gate_up, in, m.sums, 2 * inner);
        gelu_of(d, m.sums, d->n, inner, vector_rows(m.act, inner, parts, m.packed_down));
    }
    if (m.n_experts && adapters.expert_gate_up.n) {
        const SplitRows in = few_vectors(d, d->few_y_experts, hidden, m.packed_experts);
        const SplitRows act = vector_rows(m.expert_act, m.size, parts, m.packed_experts_down);
        adapt_experts(d, l, adapters.expert_gate_up, NULL, m.top_k, in, m.expert_sums, 2 * m.size);
        gelu_of(d, m.expert_sums, d->n * m.top_k, m.size, act);
    }
}

static void few_up(Device *d, const Layer *l, const FewMlp &m) {
    STREAM(d, few_up_kernel, ring_shared(d) + few_up_bytes(d, m), *l, m);
    launched(m.n_experts ? "experts' gate and up" : "mlp");
    few_adapt_up(d, l, m);
}

/* score += what the router's adapters add.  few_norm_kernel takes the router's norm without writing
 * it, so it is written here. */
static void few_adapt_router(Device *d, const Layer *l) {
    const AdapterGroup router = adapters_of(d, l).router;
    const int hidden = d->c->hidden;
    if (!router.n) return;
    Residual r = residual(d, 1);
    r.to = NULL;
    norms_of(d, r, d->n, hidden, {l->router_scale, 1 / sqrtf(hidden), 3, d->y_router}, {}, {});
    const SplitRows in = tile_rows(d->y_router, d->n, hidden, 3);
    adapt_tokens(d, router, in, d->score, d->c->n_experts);
}

/* The norms of the MLP and the experts, and the router. */
static void few_mlp_norms(Device *d, const Layer *l, const FewMlp &m) {
    const Config *c = d->c;
    Router router = {};
    if (c->n_experts) router = {l->router, l->router_scale, 1 / sqrtf(c->hidden), d->score};
    few_norms(d, {l->pre_mlp_norm, d->few_y, m.packed},
              {l->pre_experts_norm, c->n_experts ? d->few_y_experts : NULL, m.packed_experts},
              router, l->gate);
    few_adapt_router(d, l);
}

/* The dense MLP alone. */
static void few_dense(Device *d, const Layer *l, FewMlp m) {
    m.n_experts = 0;
    few_up(d, l, m);
    few_product(d, l->down, d->act_vector, d->h1, "mlp down");
    few_adapt_down(d, l);
}

static void few_experts(Device *d, const Layer *l, FewMlp m) {
    m.dense = few_together(d, m);
    few_up(d, l, m);
    STREAM(d, few_down_kernel, ring_shared(d) + few_down_bytes(d, m), *l, m);
    launched("experts' down");
    if (m.dense) few_adapt_down(d, l);
    const SplitRows in = vector_rows(m.expert_act, m.size, vector_parts(d), m.packed_experts_down);
    adapt_experts(d, l, adapters_of(d, l).expert_down, NULL, 0, in, d->expert_out, d->c->hidden);
}

/* ---- steps of few tokens, recorded ----
 *
 * The launches of a step of n tokens are always the same.  What changes is the tokens, their
 * position and how many of the largest logits are wanted (Step), which the kernels read from the
 * GPU's memory (step.cu).  So a step is recorded as a CUDA graph and replayed afterwards: one
 * launch instead of hundreds.  A step of one token is recorded when the session begins, a longer
 * one when its length comes for the second time.  The addresses of the caches are part of the
 * graph; they are those of the device's one session, and last as long as the session.
 *
 * A step with experts on the CPU is recorded, too: the host launches it, and then serves one layer
 * after the other. */

/* Writes what the step will fetch into d->next. */
static void set_step(Device *d, const int *ids, int n, int64_t pos) {
    if (d->under_way) wait(d, "the step before");
    *d->next = {};
    d->next->pos = pos;
    d->next->k = d->wanted;
    memcpy(step_ids(d->next), ids, n * sizeof *ids);
}

static_assert(MAX_RECORDED < FETCH_TOKENS, "the host acts in the middle of a step that fetches");

static int cuda_record(Device *d, int n) {
    if (gpu_no_graph || gpu_sync || d->serves_first) return 0;
    if (n > 1 && !d->recorded[n].used++) return 0;      /* this length may never come again */
    check(cudaStreamBeginCapture(d->stream, cudaStreamCaptureModeRelaxed), "recording");
    return d->recording = 1;
}

static bool is_for_all(const Device *d);
static void rank(Device *d, int token, int k);
static void serve(Device *d, const Layer *host);

/* A recorded step of several tokens ends with the largest logits of each token, because the tokens
 * are drafts or the end of a prompt. */
static void cuda_recorded(Device *d) {
    cudaGraph_t graph;
    Recorded *r = &d->recorded[d->n];
    if (is_for_all(d)) rank(d, 0, 0);
    d->recording = 0;
    check(cudaStreamEndCapture(d->stream, &graph), "recording");
    check(cudaGraphInstantiate(&r->graph, graph, 0), "recording");
    check(cudaGraphDestroy(graph), "recording");
    check(cudaGraphUpload(r->graph, d->stream), "recording");
    r->at = d->at;
    r->rest = d->rest;
    r->all_logits = d->all_logits;
}

static int cuda_replay(Device *d, const int *ids, int n, int64_t pos) {
    const Recorded *r = &d->recorded[n];
    if (!r->graph) return 0;
    cached_begin(&d->cached, d->stream, false);
    if (ids) set_step(d, ids, n, pos);
    d->n = n;
    d->at = r->at;
    d->rest = r->rest;
    d->pictures = 0;
    d->all_logits = r->all_logits;
    d->ranked = is_for_all(d) ? d->next->k : 0;
    check(cudaGraphLaunch(r->graph, d->stream), "a step");
    d->under_way = 1;
    for (int i = 0; i < d->cpu_experts; i++) serve(d, &d->w->layer[i]);
    return 1;
}

/* ---- the operations ---- */

/* A step of n tokens begins: nothing of the step before counts any more, and x[0] is about to be
 * written. */
static void begin_step(Device *d, int n) {
    d->n = n;
    d->at = 0;
    d->rest = {};
    d->pictures = d->all_logits = d->ranked = 0;
}

/* The step's ids and position go to the GPU.  While a step is recorded d->next is left alone: the
 * copy becomes part of the graph, and reads what d->next holds when the graph is replayed. */
static void send_step(Device *d, const int *ids, int n, int64_t pos) {
    if (!d->recording) set_step(d, ids, n, pos);
    fetch_step(d->step, d->next, n, d->stream);
    if (!d->recording) d->under_way = 1;
}

/* x [n][backbone or hidden] = the embeddings of this step's tokens. */
static void launch_embed(Device *d, int n, float *x) {
    const int cols = d->embed.cols;
    const int blocks = n > STREAMED_TOKENS ? 1 : (cols + THREADS - 1) / THREADS;
    GPU_LAUNCH(embed_kernel, dim3(n, blocks), dim3(THREADS), 0, d->stream, d->embed, d->ids, x,
               sqrtf(cols), d->turns);
    launched("embed");
}

static void cuda_embed(Device *d, const int *ids, int n, int64_t pos) {
    begin_step(d, n);
    if (!d->recording) cached_begin(&d->cached, d->stream, fetches(d));
    if (fetches(d)) begin_fetching(d);
    send_step(d, ids, n, pos);
    launch_embed(d, n, d->x[0]);
}

static void cuda_embed_soft(Device *d, int first, int count, const float *soft) {
    size_t hidden = d->c->hidden, bytes = 4 * count * hidden;
    for (int t = 0; !d->pictures && t < d->n; t++) d->host_last[t] = t;
    for (int t = first; t < first + count; t++) d->host_last[t] = first + count - 1;
    d->pictures = 1;
    float *to = d->x[0] + first * hidden;
    check(cudaMemcpyAsync(to, soft, bytes, cudaMemcpyHostToDevice, d->stream),
          "copying a picture");
    bytes = 4 * (size_t)d->n;
    check(cudaMemcpyAsync(d->last, d->host_last, bytes, cudaMemcpyHostToDevice, d->stream),
          "copying a picture");
    wait(d, "copying a picture");       /* `soft` may go away then */
}

static void many_qkv(Device *d, const Layer *l) {
    size_t ahead = d->ahead;
    norms(d, {l->input_norm, 1, d->y_parts, d->y}, {}, {}, next_of({l->q}, 0, &ahead, d->n));
    const Product qkv = qkv_product(l->q, l->k, l->v, d->qkv);
    layer_dense(d, qkv, d->y, "q, k, v");
    const SplitRows in = tile_rows(d->y, d->n, d->c->hidden, d->y_parts);
    adapt_tokens(d, adapters_of(d, l).qkv, in, d->qkv, qkv.pitch);
}

static void cuda_qkv(Device *d, const Layer *host, KvCache *kv) {
    const Layer *l = on_gpu(d, host);
    if (is_one(d)) {
        STREAM(d, qkv_kernel, normed_shared(d), *l, residual(d, 0), d->qkv);
        launched("qkv");
        settled(d, 0);
    } else if (is_few(d)) few_qkv(d, l);
    else many_qkv(d, l);
    /* Norms, RoPE and the cache: attend_kernel does them if it is fused. */
    if (plan_attention(d, l, kv).fused) return;
    int heads = d->c->n_heads + (l->k.data ? 2 * l->n_kv_heads : 0);
    const dim3 grid((heads + WARPS - 1) / WARPS, d->n);
    GPU_LAUNCH(norm_rope_kernel, grid, dim3(THREADS), 0, d->stream, *l, *kv, d->c->eps,
               d->c->n_heads, d->where, d->turns.turn[l->global], d->qkv);
    launched("norm and rope");
}

static void cuda_attend(Device *d, const Layer *host, const KvCache *kv) {
    const Layer *l = on_gpu(d, host);
    AttendPlan p = plan_attention(d, l, kv);
    Attend a = {};
    a.l = *l;
    a.kv = *kv;
    a.eps = d->c->eps;
    a.n_heads = d->c->n_heads;
    a.window = d->c->window;
    a.n = d->n;
    a.pos = d->where;
    a.turn = d->turns.turn[l->global];
    a.last = d->pictures ? d->last : NULL;
    a.qkv = d->qkv;
    a.splits = p.splits;
    a.unsplit = p.unsplit;
    a.partial = d->partial;
    a.ticket = d->ticket;
    a.joined_apart = p.joined_apart;
    a.out = d->att;
    if (is_one(d) || is_few(d)) {
        a.vector = d->att_vector[l->global];
        a.vector_parts = vector_parts(d);
        a.packed = is_nibbles(l->o);
    }
    launch_attend(d, a, p);
}

static void cuda_attn_out(Device *d, const Layer *host) {
    const Layer *l = on_gpu(d, host);
    uint16_t *vector = d->att_vector[l->global];
    const int cols = l->o.cols;
    if (is_one(d)) {
        STREAM(d, row_kernel, row_shared(d, cols), l->o, vector, (const float *)NULL,
               row_columns(d, cols), d->o, l->gate);
        launched("o_proj");
    } else if (is_few(d)) few_product(d, l->o, vector, d->o, "o_proj");
    else {
        split(d, d->att, d->n, cols, cols, cols, d->y_parts, d->y_att);
        layer_dense(d, product_of(l->o, d->o, l->o.rows), d->y_att, "o_proj");
    }
    const SplitRows in = is_few(d) ? few_vectors(d, vector, cols, is_nibbles(l->o))
                                   : tile_rows(d->y_att, d->n, cols, d->y_parts);
    adapt_tokens(d, adapters_of(d, l).o, in, d->o, l->o.rows);
    d->rest = {};
    d->rest.a = d->o;
    d->rest.norm = l->post_attention_norm;
    d->rest.scalar = 1;
}

/* q of the layer behind `host`; of the last layer nothing. */
static Weight next_q(const Device *d, const Layer *host) {
    const ptrdiff_t i = host - d->w->layer + 1;
    return i < d->c->n_layers ? d->layer[i].q : Weight();
}

/* One token: down of the dense MLP. */
static void one_down(Device *d, const Layer *host) {
    const Layer *l = on_gpu(d, host);
    const int inner = d->c->intermediate;
    STREAM(d, row_kernel, row_shared(d, inner), l->down, d->act_vector, (const float *)NULL,
           row_columns(d, inner), d->h1, next_q(d, host));
    launched("mlp down");
}

/* Many tokens: the dense MLP behind its norm. */
static void many_dense(Device *d, const Layer *l) {
    const LayerAdapters adapters = adapters_of(d, l);
    const int inner = d->c->intermediate, hidden = d->c->hidden;
    const SplitRows act = tile_rows(d->act, d->n, inner, d->y_parts);
    if (adapters.gate_up.n) {
        float *sums = d->adapters.sums;
        layer_dense(d, product_of(l->gate, sums, 2 * inner), d->y, "gate");
        layer_dense(d, product_of(l->up, sums + inner, 2 * inner), d->y, "up");
        adapt_tokens(d, adapters.gate_up, tile_rows(d->y, d->n, hidden, d->y_parts), sums,
                     2 * inner);
        gelu_of(d, sums, d->n, inner, act);
    } else layer_dense(d, gated_product(l->gate, l->up, d->act), d->y, "mlp");
    layer_dense(d, product_of(l->down, d->h1, hidden), d->act, "mlp down");
    adapt_tokens(d, adapters.down, act, d->h1, hidden);
}

/* For one token the router's scores come with the MLP's gate and up, and the MLP's down comes with
 * the experts' gate and up.  Without experts the MLP's down is here.  Where the CPU has the experts
 * only what it waits for is here: meanwhile_dense has the rest of the MLP.  Of many tokens
 * cuda_experts has it: while the router computes, which reads little, the memory brings what the
 * MLP and then the experts read. */
static void cuda_mlp(Device *d, const Layer *host) {
    const Layer *l = on_gpu(d, host);
    const Config *c = d->c;
    if (is_one(d)) {
        STREAM(d, mlp_rows_kernel, mlp_shared(d), *l, residual(d, 0), c->n_experts,
               d->act_vector, d->score);
        launched("mlp");
        settled(d, 0);
        if (!c->n_experts) one_down(d, host);
        return;
    }
    if (is_few(d)) {
        const FewMlp m = few_mlp(d, l, &d->expert_formats[host - d->w->layer]);
        few_mlp_norms(d, l, m);
        if (!on_cpu(d, host) && !few_together(d, m)) few_dense(d, l, m);
        return;
    }
    uint16_t *y_experts = c->n_experts ? d->y_experts : NULL;
    uint16_t *y_router = c->n_experts ? d->y_router : NULL;
    size_t ahead = ahead_of_mlp(d);
    norms(d, {l->pre_mlp_norm, 1, d->y_parts, d->y},
          {l->pre_experts_norm, 1, d->y_parts, y_experts},
          {l->router_scale, 1 / sqrtf(c->hidden), 3, y_router},
          next_of({l->router, l->gate, l->up, l->down}, 0, &ahead, d->n));
    if (!c->n_experts) many_dense(d, l);
}

/* expert: [n][top_k] d->expert, or only some of it. */
static void sort_by_expert(Device *d, const Layer *host, const int *expert) {
    const Config *c = d->c;
    const Layer *l = on_gpu(d, host);
    size_t ahead = d->cache / 8 * 3;
    Next next = {};
    if (!on_cpu(d, host))               /* else the dense MLP has been computed */
        next = next_of({l->router, l->gate, l->up, l->down}, ahead_of_mlp(d), &ahead,
                       c->n_experts);
    GPU_LAUNCH(sort_kernel, dim3(c->n_experts), dim3(THREADS), 0, d->stream, d->n * c->top_k,
               32 * expert_tiles(d, host), expert, d->list, d->place, d->first, d->count,
               d->sort_ticket, d->tile, d->n_tiles, l->expert_gate, l->expert_up,
               (int)(ahead / (2 * c->n_experts)), next);
    launched("sorting by expert");
}

static void cuda_route(Device *d, const Layer *host) {
    const Layer *l = on_gpu(d, host);
    const Config *c = d->c;
    const bool streams = is_one(d) || is_few(d);        /* cuda_mlp has made the scores */
    if (streams && !on_cpu(d, host)) return;    /* the experts' kernels make the choice */
    if (!streams) {
        dense(d, product_of(l->router, d->score, c->n_experts), d->n, d->y_router, 3, "router");
        const SplitRows in = tile_rows(d->y_router, d->n, c->hidden, 3);
        adapt_tokens(d, adapters_of(d, l).router, in, d->score, c->n_experts);
    }
    GPU_LAUNCH(route_kernel, dim3((d->n + WARPS - 1) / WARPS), dim3(THREADS), 0, d->stream, d->n,
               c->n_experts, c->top_k, d->score, l->per_expert_scale, d->expert,
               d->expert_weight);
    launched("route");
    if (!on_cpu(d, host)) sort_by_expert(d, host, d->expert);
    if (learns(d, host)) cached_count(&d->cached, d->count, d->stream);
}

/* The experts of one token, and the dense MLP's down.  slots: only the experts that have one. */
static void one_experts(Device *d, const Layer *host, int slots) {
    const Layer *l = on_gpu(d, host);
    const ExpertFormats *formats = &d->expert_formats[host - d->w->layer];
    const Config *c = d->c;
    const int packed = formats->packed_up, down_packed = formats->packed_down;
    STREAM(d, experts_up_kernel, up_shared(d), *l, c->eps, c->n_experts, c->top_k, c->expert_size,
           packed, down_packed, slots, d->x[d->at], d->score, d->act_vector, d->expert,
           d->expert_weight, d->expert_vector, d->h1);
    launched("experts' gate and up");
    const int *chosen = slots || gpu_overlap ? NULL : d->expert;
    STREAM(d, experts_down_kernel, down_shared(d), *l, c->n_experts, c->top_k, c->expert_size,
           down_packed, slots, d->score, chosen, d->expert_vector, d->h2, next_q(d, host));
    launched("experts' down");
}

/* expert_act = gelu(gate) * up of the sorted pairs of token and expert, of many tokens. */
static void many_experts_up(Device *d, const Layer *host, TileFormat format) {
    const Layer *l = on_gpu(d, host);
    const Config *c = d->c;
    const Weight &gate = host->expert_gate[0], &up = host->expert_up[0];
    const AdapterGroup adapters = adapters_of(d, l).expert_gate_up;
    const int pairs = d->n * c->top_k, size = c->expert_size;
    Product p = {};
    p.expert_w = l->expert_gate;
    p.list = d->list;
    p.top_k = c->top_k;
    p.n = d->n;
    p.y = d->y_experts;
    if (!adapters.n) {
        p.expert_up = l->expert_up;
        p.act = d->expert_act;
        p.n_act = pairs;
        return expert_product(d, host, p, gate, up, format, "experts' gate and up");
    }
    float *sums = d->adapters.sums;
    p.pitch = 2 * size;
    p.out = sums;
    expert_product(d, host, p, gate, {}, format, "experts' gate");
    p.expert_w = l->expert_up;
    p.out = sums + size;
    expert_product(d, host, p, up, {}, format, "experts' up");
    const SplitRows in = tile_rows(d->y_experts, d->n, c->hidden, d->y_parts);
    adapt_experts(d, l, adapters, d->place, c->top_k, in, sums, p.pitch);
    gelu_of(d, sums, pairs, size, tile_rows(d->expert_act, pairs, size, d->y_parts));
}

/* The experts of many tokens: gate and up, and down of expert_act -> expert_out. */
static void many_experts(Device *d, const Layer *host, const ExpertFormats *formats) {
    const Layer *l = on_gpu(d, host);
    const int pairs = d->n * d->c->top_k, hidden = d->c->hidden;
    many_experts_up(d, host, formats->up);
    Product p = {};
    p.expert_w = l->expert_down;
    p.top_k = d->c->top_k;
    p.n = pairs;
    p.y = d->expert_act;
    p.out = d->expert_out;
    p.pitch = hidden;
    expert_product(d, host, p, host->expert_down[0], {}, formats->down, "experts' down");
    const SplitRows in = tile_rows(d->expert_act, pairs, d->c->expert_size, d->y_parts);
    adapt_experts(d, l, adapters_of(d, l).expert_down, d->place, 0, in, d->expert_out, hidden);
}

/* ---- experts on the CPU ----
 *
 * The experts of the first cpu_experts layers stay in the mapped file, and the CPU computes them
 * (offload.c).  In such a layer the GPU hands the residual stream and the router's choice over to
 * the CPU (handover.cu), and computes the dense MLP while the CPU computes the sum of the experts.
 * Their weights are most of the model, but a token reads few of them.
 *
 * A step of many tokens fetches such layers instead (fetch.cu), and computes them as the others.
 *
 * In a recorded step take_sum_kernel waits for the CPU.  In a step that is not recorded the host
 * serves a layer before it launches that kernel, which then finds the sum: such a step may be given
 * up behind any layer, and GEMMA4_CUDA=sync waits for every launch.
 *
 * A GPU that draws a desktop ends a kernel after some seconds, and with it the program.  So long
 * would the kernel wait if the process is stopped (SIGSTOP) or its disk is slow.  Therefore such a
 * GPU records no step with experts on the CPU (serves_first). */

/* [n][hidden] where the CPU's sum of the experts goes.  With slots expert_out has what the GPU
 * computes of them; o is free then, as cuda_mlp has settled it. */
static float *sum_on_cpu(const Device *d) {
    return d->cached.slots.n_slots ? d->o : d->expert_out;
}

/* What cuda_mlp has left out. */
static void meanwhile_dense(Device *d, const Layer *host) {
    const Layer *l = on_gpu(d, host);
    if (is_one(d)) one_down(d, host);
    else if (is_few(d)) few_dense(d, l, few_mlp(d, l, &d->expert_formats[host - d->w->layer]));
    else many_dense(d, l);
}

/* The dense MLP, and the experts that have a slot: of one token -> h2, of several -> expert_out. */
static void meanwhile_slots(Device *d, const Layer *host) {
    const Layer *l = on_gpu(d, host);
    const ExpertFormats *formats = &d->expert_formats[host - d->w->layer];
    const int pairs = d->n * d->c->top_k;
    int *with_slot = (int *)d->score;   /* the choice has been made: score is free */
    if (is_one(d)) return one_experts(d, host, 1);
    if (is_few(d)) {
        FewMlp m = few_mlp(d, l, formats);
        m.slots = 1;
        if (!few_together(d, m)) few_dense(d, l, m);
        return few_experts(d, l, m);
    }
    many_dense(d, l);
    GPU_LAUNCH(slots_only_kernel, dim3((pairs + THREADS - 1) / THREADS), dim3(THREADS), 0,
               d->stream, pairs, l->expert_gate, d->expert, with_slot);
    launched("experts that have slots");
    sort_by_expert(d, host, with_slot);
    many_experts(d, host, formats);
}

/* sum_on_cpu += what meanwhile_slots has computed of the experts. */
static void add_slots(Device *d, const Layer *host) {
    const bool one = is_one(d);
    const int hidden = d->c->hidden;
    const dim3 grid(d->n, (hidden + THREADS - 1) / THREADS);
    const float *weight = one ? NULL : d->expert_weight;
    const float *out = one ? d->h2 : d->expert_out;
    const int *place = is_few(d) ? NULL : d->place;
    GPU_LAUNCH(add_slots_kernel, grid, dim3(THREADS), 0, d->stream, hidden, d->c->top_k,
               on_gpu(d, host)->expert_gate, d->expert, weight, place, out, sum_on_cpu(d));
    launched("adding the experts that have slots");
}

/* See LookFn; arg: the device. */
static int look_at_gpu(void *arg) {
    const cudaError_t e = cudaStreamQuery(((Device *)arg)->stream);
    if (e == cudaErrorNotReady) cudaGetLastError();     /* it is no error */
    else check(e, "experts on the CPU");
    return e == cudaSuccess;
}

/* The CPU's part of a layer that has been launched. */
static void serve(Device *d, const Layer *host) {
    if (offload_await(d->offload, look_at_gpu, d)) {
        fprintf(stderr, "gemma4: GPU: a step has ended without its experts on the CPU\n");
        exit(1);
    }
    if (has_slots(d, host)) {
        const int layer = (int)(host - d->w->layer);
        slots_use(&d->cached.slots, layer, d->hand_over.expert, d->n, d->c->top_k);
    }
    offload_experts(d->offload, host, d->n);
}

/* sum_on_cpu [n][hidden] = the experts' weighted sum. */
static void experts_on_cpu(Device *d, const Layer *host) {
    const int numbers = d->n * d->c->hidden, choices = d->n * d->c->top_k;
    GPU_LAUNCH(hand_over_kernel, dim3(1), dim3(HAND_OVER_THREADS), 0, d->stream, d->x[d->at],
               numbers, d->expert, d->expert_weight, choices, d->hand_over, d->given);
    launched("handing over to the CPU");
    if (has_slots(d, host)) meanwhile_slots(d, host);
    else meanwhile_dense(d, host);
    if (!d->recording) serve(d, host);
    GPU_LAUNCH(take_sum_kernel, dim3(1), dim3(HAND_OVER_THREADS), 0, d->stream, d->hand_over,
               d->given, sum_on_cpu(d), numbers);
    launched("experts on the CPU");
    if (has_slots(d, host)) add_slots(d, host);
}

static void cuda_experts(Device *d, const Layer *host) {
    if (on_cpu(d, host)) return experts_on_cpu(d, host);
    const Layer *l = on_gpu(d, host);
    const ExpertFormats *formats = &d->expert_formats[host - d->w->layer];
    const int layer = (int)(host - d->w->layer);
    if (!is_one(d) && !is_few(d)) many_dense(d, l);
    if (is_offloaded(d, host)) fetch_await(&d->fetch, layer);
    if (is_one(d)) one_experts(d, host, 0);
    else if (is_few(d)) few_experts(d, l, few_mlp(d, l, formats));
    else many_experts(d, host, formats);
    if (learns(d, host)) {
        const Weight *list = d->experts + (size_t)3 * layer * d->c->n_experts;
        cached_learn(&d->cached, layer, d->n, list, d->stream);
    }
    if (is_offloaded(d, host)) fetch_leave(&d->fetch, layer, d->stream);
}

static void cuda_join(Device *d, const Layer *host) {
    const Layer *l = on_gpu(d, host);
    Residual r = {};
    r.a = d->h1;
    r.norm = l->post_ffn_norm;
    r.scalar = l->layer_scalar;
    if (d->c->n_experts) {
        r.norm_a = l->post_mlp_norm;
        r.norm_b = l->post_experts_norm;
        const bool one = is_one(d), summed = one || on_cpu(d, host);
        r.b = one ? d->h2 : d->expert_out;
        if (on_cpu(d, host)) r.b = sum_on_cpu(d);
        r.weight = summed ? NULL : d->expert_weight;
        r.place = is_few(d) ? NULL : d->place;
        r.top_k = d->c->top_k;
    }
    d->rest = r;
}

/* Blocks of a kernel that looks at all logits of a token. */
static int top_blocks(const Device *d) {
    int blocks = (d->c->vocab + TOP_THREADS - 1) / TOP_THREADS;
    return blocks < TOP_BLOCKS ? blocks : TOP_BLOCKS;
}

/* x of `token` as the last layer left it, before the final norm.  Several tokens, a model with
 * adapters, or a screened head, which reads x in several kernels: x' is written first.  Otherwise
 * the next kernel settles x. */
static Residual last_x(Device *d, int token) {
    if (d->rest.a && (!is_one(d) || d->screened)) norms(d, {}, {}, {});
    Residual r = residual(d, 1);
    r.x += (size_t)token * d->c->hidden;
    r.to = NULL;
    return r;
}

/* d->logits = the logits of tokens first … first + n - 1.  few: NULL, or see head_kernel. */
static void launch_head(Device *d, int first, int n, const int *few) {
    const Config *c = d->c;
    Residual r = last_x(d, first);
    if (n == 1)
        STREAM(d, head_kernel, normed_shared(d), d->head, r, d->final_norm, c->softcap, few,
               d->logits);
    else if (has_few_head(d, n)) {
        const VectorTo to = {d->final_norm, d->few_head_y, 0}, none = {};
        few_norms_of(d, r, n, ROW_PARTS, to, none, Router(), few ? Weight() : d->head);
        STREAM(d, few_head_kernel, few_head_shared(d), d->head, d->few_head_y, n, c->softcap, few,
               d->logits);
    } else {
        norms_of(d, r, n, c->hidden, {d->final_norm, 1, 3, d->y_router}, {}, {});
        Product p = product_of(d->head, d->logits, c->vocab);
        p.softcap = c->softcap;
        dense(d, p, n, d->y_router, 3, "head");
    }
    launched("head");
}

/* Whether this step's logits are computed for all tokens at once: it has more than one, and
 * d->logits has room for all.  Whoever asks for one token's logits may ask for the next token's,
 * and so the head is read once for all. */
static bool is_for_all(const Device *d) { return d->n > 1 && d->n <= d->n_logits; }

/* Computes all logits of all of this step's tokens if is_for_all, which is returned. */
static int head_of_all(Device *d) {
    if (!is_for_all(d)) return 0;
    if (!d->all_logits) launch_head(d, 0, d->n, NULL);
    return d->all_logits = 1;
}

/* Launches count_kernel for n tokens. */
static void launch_count(Device *d, int n, int k, const int *skip) {
    GPU_LAUNCH(count_kernel, dim3(top_blocks(d), n), dim3(TOP_THREADS), 0, d->stream, d->logits,
               d->c->vocab, k, d->step, skip, d->selection);
    launched("count");
}

/* Two blocks on a multiprocessor, or as many as fit, of a kernel that reads a copy of the head. */
static dim3 copy_blocks(const Device *d, const void *kernel, size_t shared) {
    return dim3(gpu_fits(kernel, THREADS, shared, 2) * d->stream_blocks);
}

/* Whether a screened head serves n tokens. */
static bool is_screened(const Device *d, int n) {
    return d->screened && (n == 1 || has_few_head(d, n));
}

/* d->logits = the logits of tokens first … first + n - 1, of a screened head: only logits that can
 * be among the k largest are computed, perhaps; the others are -inf. */
static void launch_screened(Device *d, int first, int n, int k) {
    const Config *c = d->c;
    const size_t planes = 2 * (size_t)n * plane_bytes(d->screen.cols);
    GPU_LAUNCH(screen_kernel, copy_blocks(d, (const void *)screen_kernel, planes), dim3(THREADS),
               planes, d->stream, d->head, d->screen, last_x(d, first).x, n, d->final_norm, c->eps,
               c->softcap, d->logits);
    launched("screen");
    launch_count(d, n, k, &d->screen.habit->skip);         /* of the lower bounds */
    int blocks = (tiles_of(c->vocab) + THREADS - 1) / THREADS;
    GPU_LAUNCH(pick_kernel, dim3(blocks), dim3(THREADS), 0, d->stream, d->screen, c->vocab, n,
               d->selection, d->logits);
    launched("picking rows");
    launch_head(d, first, n, d->screen.few);
}

/* Launches everything between x and d->back, without waiting.  If is_for_all, back [n] becomes the
 * k largest logits of each of this step's tokens; otherwise back[0] becomes those of `token`. */
static void rank(Device *d, int token, int k) {
    const int all = is_for_all(d), n = all ? d->n : 1;
    const int first = all ? 0 : token;
    if (!d->all_logits && is_screened(d, n)) launch_screened(d, first, n, k);
    else if (!head_of_all(d)) launch_head(d, first, 1, NULL);
    launch_count(d, n, k, NULL);
    GPU_LAUNCH(collect_kernel, dim3(top_blocks(d), n), dim3(TOP_THREADS), 0, d->stream, d->logits,
               d->c->vocab, k, d->step, d->selection, d->top);
    launched("collect");
    check(cudaMemcpyAsync(d->back, d->top, n * sizeof *d->top, cudaMemcpyDeviceToHost, d->stream),
          "copying the largest logits");
    d->ranked = all ? k : 0;
    if (!d->recording) d->under_way = 1;
}

static int cuda_top(Device *d, int token, int k, int *ids, float *logits) {
    if (k > d->c->vocab) k = d->c->vocab;
    d->wanted = k;
    if (d->ranked < k) rank(d, token, k);
    if (d->under_way) wait(d, "waiting for the largest logits");
    const Top *top = &d->back[d->ranked ? token : 0];
    int n = top->n < k ? top->n : k;
    for (int i = 0; i < n; i++) {
        ids[i] = top->id[i];
        logits[i] = top->logit[i];
    }
    return n;
}

static void cuda_head(Device *d, int first, int count, float *logits) {
    size_t row = d->c->vocab;
    int all = head_of_all(d);           /* to the same bits as `top` */
    for (int i = 0; i < count; i += d->n_logits) {
        int n = count - i < d->n_logits ? count - i : d->n_logits;
        if (!all) launch_head(d, first + i, n, NULL);
        const float *from = d->logits + (all ? first * row : 0);
        check(cudaMemcpyAsync(logits + i * row, from, 4 * n * row, cudaMemcpyDeviceToHost,
                              d->stream), "copying logits");
    }
    wait(d, "waiting for the logits");
}

/* ---- drafts ----
 *
 * A drafter launches in its target's stream and reads its target's memory.  The stream's order sees
 * to it that the target has written what the drafter reads. */

/* h [hidden] = RMSNorm(x[token], final_norm). */
static void launch_hidden(Device *d, int token, float *h) {
    int hidden = d->c->hidden;
    GPU_LAUNCH(hidden_kernel, dim3(1), dim3(THREADS), 4 * (size_t)hidden, d->stream,
               last_x(d, token), hidden, d->final_norm, h);
    launched("hidden state");
}

/* The drafter's h [backbone], behind the embedding in d->pair: combine reads both as one vector. */
static float *draft_h(const Device *d) { return d->pair + d->c->backbone; }

/* draft_h = post_projection of the drafter's own final norm: as a head, without a cap. */
static void launch_post(Device *d) {
    STREAM(d, head_kernel, normed_shared(d), d->post, residual(d, 0), d->final_norm, 0.f,
           (const int *)NULL, draft_h(d));
    launched("post_projection");
    settled(d, 0);
}

static void cuda_draft_from(Device *d, int token, int id, int64_t pos, const float *given) {
    send_step(d, &id, 1, pos);
    if (!given) return launch_hidden(d->target, token, draft_h(d));
    size_t bytes = 4 * (size_t)d->c->backbone;
    check(cudaMemcpyAsync(draft_h(d), given, bytes, cudaMemcpyHostToDevice, d->stream),
          "copying the hidden state");
    wait(d, "copying the hidden state");        /* `given` may go away then */
}

static void cuda_combine(Device *d) {
    begin_step(d, 1);
    int cols = d->pre.cols;
    launch_embed(d, 1, d->pair);
    STREAM(d, row_kernel, row_shared(d, cols), d->pre, (const uint16_t *)NULL, d->pair,
           row_columns(d, cols), d->x[0], d->layer[0].q);
    launched("pre_projection");
}

static void cuda_guess(Device *d) {
    launch_post(d);
    const size_t shared = d->draft_head.cols;
    if (d->screened)
        GPU_LAUNCH(draft_kernel, copy_blocks(d, (const void *)draft_kernel, shared), dim3(THREADS),
                   shared, d->stream, d->draft_head, d->c->vocab, d->x[d->at], d->final_norm,
                   d->c->hidden, d->selection, d->step, d->ids);
    else {
        launch_head(d, 0, 1, NULL);
        GPU_LAUNCH(best_kernel, dim3(top_blocks(d)), dim3(TOP_THREADS), 0, d->stream, d->logits,
                   d->c->vocab, d->selection, d->step, d->ids);
    }
    launched("the draft");
}

static void cuda_drafts(Device *d, int n, int *ids) {
    check(cudaMemcpyAsync(d->next, d->step, sizeof *d->step, cudaMemcpyDeviceToHost, d->stream),
          "copying drafts");
    wait(d, "waiting for drafts");
    memcpy(ids, d->next->draft, n * sizeof *ids);
}

static void cuda_hidden(Device *d, int token, float *h) {
    if (d->c->backbone) launch_post(d);
    else launch_hidden(d, token, d->h);
    if (d->c->backbone) read_back(d, h, draft_h(d), 4 * (size_t)d->c->backbone);
    else read_back(d, h, d->h, 4 * (size_t)d->c->hidden);
}

static void cuda_read_x(Device *d, float *x) {
    if (d->rest.a) norms(d, {}, {}, {});
    read_back(d, x, d->x[d->at], 4 * (size_t)d->n * d->c->hidden);
}

static void cuda_read_route(Device *d, int *expert, float *weight) {
    read_back(d, expert, d->expert, 4 * (size_t)d->n * d->c->top_k);
    read_back(d, weight, d->expert_weight, 4 * (size_t)d->n * d->c->top_k);
}

static void cuda_slot_hits(const Device *d, int64_t *chosen, int64_t *hits) {
    *chosen = d->cached.slots.chosen;
    *hits = d->cached.slots.hits;
}

/* ---- the table ---- */

extern "C" int cuda_found(Error *err) {
    int n = 0, driver = 0, runtime = 0;
    cudaDeviceProp gpu;
    cudaDriverGetVersion(&driver);      /* 0 where there is none; 13000 is CUDA 13.0 */
    cudaRuntimeGetVersion(&runtime);
    cudaError_t e = cudaGetDeviceCount(&n);
    if (e == cudaSuccess && n > 0) e = cudaGetDeviceProperties(&gpu, 0);
    if (!driver) fail(err, "no GPU (no NVIDIA driver)");
    else if (e == cudaErrorInsufficientDriver)
        fail(err, "no GPU (the driver is for CUDA %d.%d, this program needs %d.%d)",
             driver / 1000, driver % 100 / 10, runtime / 1000, runtime % 100 / 10);
    else if (e != cudaSuccess) fail(err, "no GPU (%s)", cudaGetErrorString(e));
    else if (!n) fail(err, "no GPU (none is there)");
    else if (gpu.major < 8)
        fail(err, "no GPU (%s is of compute capability %d.%d, at least 8.0 is needed)", gpu.name,
             gpu.major, gpu.minor);
    else return 1;
    cudaGetLastError();                 /* it is dealt with */
    return 0;
}

/* The entries by their names, which C++ has no initializer for before C++20. */
static constexpr Ops named_ops() {
    Ops o = {};
    o.name = "cuda";
    /* Chosen by judgement: it trades reads of the experts' weights against memory for activations.
     * To tune it, compare a prompt of 8192 tokens with --chunk 1024, 2048, 4096. */
    o.chunk = 2048;
    o.memory = cuda_memory;
    o.open = cuda_open;
    o.close = cuda_close;
    o.alloc = cuda_alloc;
    o.release = cuda_release;
    o.copy = cuda_copy;
    o.record = cuda_record;
    o.recorded = cuda_recorded;
    o.replay = cuda_replay;
    o.embed = cuda_embed;
    o.qkv = cuda_qkv;
    o.attend = cuda_attend;
    o.attn_out = cuda_attn_out;
    o.mlp = cuda_mlp;
    o.route = cuda_route;
    o.experts = cuda_experts;
    o.join = cuda_join;
    o.head = cuda_head;
    o.top = cuda_top;
    o.draft_from = cuda_draft_from;
    o.combine = cuda_combine;
    o.guess = cuda_guess;
    o.drafts = cuda_drafts;
    o.read_x = cuda_read_x;
    o.read_route = cuda_read_route;
    o.hidden = cuda_hidden;
    o.slot_hits = cuda_slot_hits;
    o.embed_soft = cuda_embed_soft;
    o.see = cuda_see;
    o.see_layer = cuda_see_layer;
    o.see_pool = cuda_see_pool;
    return o;
}

extern "C" const Ops cuda_ops = named_ops();
