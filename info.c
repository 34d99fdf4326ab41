/* info.c - what `gemma4 info` prints.  See info.h. */
#include "info.h"

#include "json.h"

static const char *const layout_of[] = {"attention", "mlp", "experts", "embedding"};

static double gb(int64_t bytes) { return (double)bytes * 1e-9; }

static void put_adapters_json(const Info *i, Buf *out) {
    for (int k = 0; k < i->model.n_adapters; k++) {
        const AdapterInfo *a = model_adapter(i->m, k);
        buf_puts(out, k ? ", {\"name\": " : ", \"adapters\": [{\"name\": ");
        json_quote_text(out, a->name);
        buf_printf(out, ", \"scale\": %g, \"rank\": %d, \"matrices\": %d, \"base\": ", a->scale,
                   a->rank, a->n);
        if (a->base) json_quote_text(out, a->base);
        else buf_puts(out, "null");
        buf_puts(out, "}");
    }
    if (i->model.n_adapters) buf_puts(out, "]");
}

static void put_gpu_json(const Info *i, Buf *out) {
    const Memory *gpu = &i->gpu;
    if (!gpu->total) return;
    buf_puts(out, ", \"gpu\": {\"name\": ");
    json_quote_text(out, gpu->name);
    buf_printf(out, ", \"weights\": %lld, \"activations\": %lld, \"cache\": %lld, "
               "\"head_copy\": %lld, \"expert_room\": %lld, \"free\": %lld, \"total\": %lld, "
               "\"cpu_experts\": %d, \"expert_slots\": %d, \"chunk\": %d, \"fits\": %s}",
               (long long)gpu->weights, (long long)gpu->activations, (long long)gpu->cache,
               (long long)gpu->head_copy, (long long)gpu->expert_room, (long long)gpu->free,
               (long long)gpu->total, gpu->cpu_experts, gpu->expert_slots, gpu->chunk,
               session_fits(i->m, &i->session, gpu, NULL) ? "false" : "true");
}

void info_put_json(const Info *i, Buf *out) {
    const Config *c = i->model.config;
    buf_puts(out, "{\"model\": ");
    json_quote_text(out, i->name);
    buf_printf(out, ", \"layers\": %d, \"global_layers\": %d, \"hidden_size\": %d, \"heads\": %d, "
               "\"kv_heads\": %d, \"global_kv_heads\": %d, ", c->n_layers, i->model.n_global,
               c->hidden, c->n_heads, i->model.kv_heads, i->model.global_kv_heads);
    buf_printf(out, "\"experts\": %d, \"experts_per_token\": %d, \"sliding_window\": %d, "
               "\"context_length\": %d, \"vocab_size\": %d, \"layouts\": {", c->n_experts,
               c->top_k, c->window, c->max_context, c->vocab);
    for (int g = 0, n = 0; g < 4; g++) {
        if (!i->model.layout[g]) continue;
        buf_printf(out, "%s\"%s\": \"%s\"", n++ ? ", " : "", layout_of[g], i->model.layout[g]);
    }
    buf_printf(out, "}, \"parameters\": %lld, \"bytes_on_disk\": %lld, \"bytes_per_token\": %lld, ",
               (long long)i->model.parameters, (long long)i->model.bytes_on_disk,
               (long long)i->model.bytes_per_token);
    buf_printf(out, "\"kv_bytes_per_token\": %lld, \"context\": %lld, \"context_bytes\": %lld",
               (long long)i->per_token, (long long)i->session.context, (long long)i->cache);
    put_adapters_json(i, out);
    put_gpu_json(i, out);
    buf_puts(out, "}\n");
}

/* The format of the cache, in words. */
static const char *cache_format(const Info *i) {
    if (i->session.kv == KV_F32) return "F32";
    int announced = i->session.kv == KV_AUTO && i->model.fp8_kv;
    return i->session.kv == KV_FP8 || announced ? "FP8" : "BF16";
}

static void put_gpu_text(const Info *i, Buf *out) {
    const Memory *gpu = &i->gpu;
    char text[PLACEMENT];
    Error why;
    if (!gpu->total) return;
    buf_printf(out, "GPU          %s: weights %.3f GB + activations %.3f GB + cache %.3f GB",
               gpu->name, gb(gpu->weights), gb(gpu->activations), gb(gpu->cache));
    if (gpu->head_copy) buf_printf(out, " + int8 copy of the head %.3f GB", gb(gpu->head_copy));
    if (gpu->expert_room)
        buf_printf(out, " + room for experts of long prompts %.3f GB", gb(gpu->expert_room));
    buf_printf(out, ", of %.3f GB free\n", gb(gpu->free));
    placement(i->m, gpu, text);
    if (session_fits(i->m, &i->session, gpu, &why))
        buf_printf(out, "             not used: %s\n", why.text);
    else if (*text) buf_printf(out, "             %s\n", text);
}

void info_put_text(const Info *i, Buf *out) {
    const Config *c = i->model.config;
    buf_printf(out, "model        %s\n", i->name);
    buf_printf(out, "parameters   %.3f B, %.3f GB on disk\n", (double)i->model.parameters * 1e-9,
               gb(i->model.bytes_on_disk));
    buf_printf(out, "layers       %d, %d of them global; hidden size %d; vocabulary %d\n",
               c->n_layers, i->model.n_global, c->hidden, c->vocab);
    buf_printf(out, "attention    %d heads, %d key/value heads (global layers %d), window %d\n",
               c->n_heads, i->model.kv_heads, i->model.global_kv_heads, c->window);
    if (c->n_experts)
        buf_printf(out, "experts      %d, %d for each token, beside a dense MLP\n", c->n_experts,
                   c->top_k);
    else buf_puts(out, "experts      none: a dense model\n");
    const char *vision = i->model.has_vision ? "it takes images and videos" : "none";
    buf_printf(out, "vision       %s\n", vision);
    for (int g = 0; g < 4; g++) {
        const char *layout = i->model.layout[g];
        if (layout) buf_printf(out, "layout       %s: %s\n", layout_of[g], layout);
    }
    for (int k = 0; k < i->model.n_adapters; k++) {
        const AdapterInfo *a = model_adapter(i->m, k);
        buf_printf(out, "adapter      %s: rank %d, %d matrices, scale %g, trained on %s\n", a->name,
                   a->rank, a->n, a->scale, a->base ? a->base : "a model that it does not name");
    }
    buf_printf(out, "each token   reads %.3f GB of weights, adds %lld bytes of keys and values\n",
               gb(i->model.bytes_per_token), (long long)i->per_token);
    buf_printf(out, "context      %d at most; %lld take %.3f GB (%s)\n", c->max_context,
               (long long)i->session.context, gb(i->cache), cache_format(i));
    put_gpu_text(i, out);
}
