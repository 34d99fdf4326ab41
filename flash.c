/* flash.c - flash attention: the softmax of some queries, taken as their keys come.  See Flash in
 * cpu.h.
 *
 * It serves many tokens (`uses_flash` in cpu.h).  With AMX and neon-bf16 all products are of BF16
 * numbers, two for each activation (kernels.h).  With AVX2, AVX-512 and NEON they are of float32
 * (strips.c). */
#include "cpu.h"

#include <math.h>
#include <string.h>

Flash *flash_new(Device *d, int64_t dim) {
    Flash *f = own(d, xaligned(sizeof *f));
    f->query = floats(d, STRIP_TOKENS, 2 * dim);
    f->key = floats(d, MANY_ROWS / 2, 2 * dim);
    f->out = floats(d, FLASH_QUERIES, dim);
    f->strips = own(d, xaligned(FLASH_QUERIES / STRIP_TOKENS * strip_size(2 * dim)));
    return f;
}

void flash_begin(Flash *f, int n, int v_wide) {
    clear(f->out, FLASH_QUERIES * v_wide);
    for (int i = 0; i < n; i++) f->most[i] = -INFINITY, f->sum[i] = 0;
}

/* f->score [n][count]: the scores of n queries with `count` keys. */
static void score_keys(const Kernels *kn, Flash *f, int n, const uint16_t *rows, int stride,
                       int count, int wide, float scale) {
    enum { KEYS = MANY_ROWS / 2 };      /* that become float32 at a time */
    if (kn->gemm) {
        float scales[FLASH_KEYS];
        for (int k = 0; k < count; k++) scales[k] = scale;
        StripRows keys = {.upper = rows, .stride = stride, .cols = wide, .n = count,
                          .scale = scales};
        kn->gemm(&keys, f->strips, n, f->score[0], FLASH_KEYS);
        return;
    }
    for (int k = 0; k < count; k += KEYS) {
        int some = count - k < KEYS ? count - k : KEYS;
        for (int i = 0; i < some; i++)
            kn->expand_bf16((const uint8_t *)(rows + (int64_t)(k + i) * stride), wide,
                            f->key + (int64_t)i * wide);
        multiply_float_strips(kn, f->key, wide, wide, (const float *)f->strips, wide, n, some,
                              scale, f->score[0] + k, FLASH_KEYS);
    }
}

/* The weights of query q's keys; returns their sum.  f->most[q] rises to the largest score. */
static float soften_keys(const Kernels *kn, Flash *f, int q) {
    int from = f->first[q], to = f->last[q];
    float *p = f->weight.whole[q];
    const float *s = f->score[q];
    if (kn->gemm)
        return kn->soften(s, from, to, &f->most[q], f->weight.half[0][q], f->weight.half[1][q]);
    memset(p, 0, sizeof f->weight.whole[q]);
    if (from >= to) return 0;
    for (int i = from; i < to; i++)
        if (s[i] > f->most[q]) f->most[q] = s[i];
    return kn->exp_less(s + from, to - from, f->most[q], p + from);
}

/* f->out [n][v_wide] += weights . V; with strips of float32 16 columns of V at a time. */
static void add_values(const Kernels *kn, Flash *f, int n, const uint16_t *v, int stride, int count,
                       int v_wide) {
    _Alignas(64) float column[FLASH_KEYS][16];
    if (kn->gemm) {
        kn->add_values(v, stride, round_up(count, 32), v_wide, f->weight.half, n, f->out, v_wide);
        return;
    }
    for (int i = 0; i < v_wide; i += 16) {
        for (int k = 0; k < count; k++)
            kn->expand_bf16((const uint8_t *)(v + (int64_t)k * stride + i), 16, column[k]);
        for (int q = 0; q < n; q += TILE_ROWS) {
            int some = n - q < TILE_ROWS ? n - q : TILE_ROWS;
            kn->tile(f->weight.whole[q], FLASH_KEYS, some, column[0], 16, count,
                     f->out + (int64_t)q * v_wide + i, v_wide, 1);
        }
    }
}

/* Where a query's largest score grows, what it has summed up so far shrinks by e^(before - now). */
void flash_keys(const Kernels *kn, Flash *f, int n, const uint16_t *rows, int stride, int count,
                int wide, int v_at, int v_wide, float scale) {
    score_keys(kn, f, n, rows, stride, count, wide, scale);
    for (int q = 0; q < n; q++) {
        float before = f->most[q], sum = soften_keys(kn, f, q), *out = f->out + q * v_wide;
        if (f->most[q] > before && f->sum[q] > 0) {
            float less = expf(before - f->most[q]);
            f->sum[q] *= less;
            for (int k = 0; k < v_wide; k++) out[k] *= less;
        }
        f->sum[q] += sum;
    }
    add_values(kn, f, n, rows + v_at, stride, count, v_wide);
}
