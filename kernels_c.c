/* kernels_c.c - the tables of number formats, and the kernels of kernels.h in plain C. */
#include "kernels.h"

#include <math.h>
#include <string.h>

/* ---- tables of number formats (minifloat.h) ---- */

float e4m3[256];
_Alignas(32) uint16_t nvfp4_bf16[256][16];
uint8_t e4m3_bytes[2][128];
static float e2m1_pair[256][2];         /* both numbers of a byte: low nibble, high nibble */

void fill_tables(void) {
    for (int i = 0; i < 256; i++) {
        e4m3[i] = e4m3_to_float((uint8_t)i);
        e2m1_pair[i][0] = e2m1[i & 15];
        e2m1_pair[i][1] = e2m1[i >> 4];
        /* A product of 4 and 4 bits is exact. */
        for (int k = 0; k < 16; k++) nvfp4_bf16[i][k] = float_to_bf16(e4m3[i] * e2m1[k]);
        for (int k = 0; k < 2; k++)
            e4m3_bytes[k][i & 127] = (uint8_t)(e4m3_bf16((uint8_t)(i & 127)) >> 8 * k);
    }
}

/* ---- plain C ---- */

static void expand_bf16_c(const uint8_t *data, int n, float *out) {
    for (int i = 0; i < n; i++) {
        uint16_t u;
        memcpy(&u, data + 2 * i, 2);
        out[i] = bf16_to_float(u);
    }
}

static void expand_nvfp4_c(const uint8_t *data, const uint8_t *block_scale, float scale, int n,
                           float *out) {
    for (int i = 0; i < n; i += 16) {
        float s = e4m3[block_scale[i / 16]] * scale;
        for (int k = 0; k < 8; k++) {
            const float *pair = e2m1_pair[data[i / 2 + k]];
            out[i + 2 * k] = pair[0] * s;
            out[i + 2 * k + 1] = pair[1] * s;
        }
    }
}

static void expand_e4m3_c(const uint8_t *data, float scale, int n, float *out) {
    for (int i = 0; i < n; i++) out[i] = e4m3[data[i]] * scale;
}

static void expand_f16_c(const uint8_t *data, int n, float *out) {
    for (int i = 0; i < n; i++) out[i] = float_at(DT_F16, data, i);
}

static void expand_int8_c(const uint8_t *data, int zero, float scale, int n, float *out) {
    for (int i = 0; i < n; i++) out[i] = (float)(data[i] - zero) * scale;
}

static void expand_int4_c(const uint8_t *data, int zero, float scale, int n, float *out) {
    for (int i = 0; i < n / 2; i++) {
        out[2 * i] = (float)((data[i] & 15) - zero) * scale;
        out[2 * i + 1] = (float)((data[i] >> 4) - zero) * scale;
    }
}

float dot_rest(float sum, const float *a, const float *b, int from, int n) {
    for (int i = from; i < n; i++) sum += a[i] * b[i];
    return sum;
}

static void dot4_c(const float *a, const float *const b[4], int n, float out[4]) {
    for (int r = 0; r < 4; r++) {
        float lane[16] = {0};
        int i = 0;
        for (; i + 16 <= n; i += 16)
            for (int k = 0; k < 16; k++) lane[k] += a[i + k] * b[r][i + k];
        for (int w = 8; w > 0; w /= 2)
            for (int k = 0; k < w; k++) lane[k] += lane[k + w];
        out[r] = dot_rest(lane[0], a, b[r], i, n);
    }
}

static void axpy4_c(float *y, const float *const x[4], const float s[4], int n) {
    for (int i = 0; i < n; i++)
        for (int k = 0; k < 4; k++) y[i] += s[k] * x[k][i];
}

static void tile_c(const float *a, int lda, int n_rows, const float *b, int ldb, int n, float *c,
                   int ldc, int add) {
    for (int r = 0; r < n_rows; r++) {
        float sum[16] = {0};
        if (add) memcpy(sum, c + (int64_t)r * ldc, sizeof sum);
        for (int i = 0; i < n; i++)
            for (int k = 0; k < 16; k++)
                sum[k] += a[(int64_t)r * lda + i] * b[(int64_t)i * ldb + k];
        memcpy(c + (int64_t)r * ldc, sum, sizeof sum);
    }
}

static float exp_less_c(const float *s, int n, float most, float *out) {
    float sum = 0;
    for (int i = 0; i < n; i++) sum += out[i] = expf(s[i] - most);
    return sum;
}

static void softmax_c(float *s, int n) {
    float max = s[0];
    for (int i = 1; i < n; i++)
        if (s[i] > max) max = s[i];
    float sum = exp_less_c(s, n, max, s);
    for (int i = 0; i < n; i++) s[i] /= sum;
}

const Kernels kernels_c = {
    .name = "c", .expand_bf16 = expand_bf16_c, .expand_nvfp4 = expand_nvfp4_c,
    .expand_e4m3 = expand_e4m3_c, .expand_f16 = expand_f16_c, .expand_int8 = expand_int8_c,
    .expand_int4 = expand_int4_c, .dot4 = dot4_c, .axpy4 = axpy4_c, .tile = tile_c,
    .softmax = softmax_c, .exp_less = exp_less_c,
};
