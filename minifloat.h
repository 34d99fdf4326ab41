/* minifloat.h - the small number formats of weights and caches, E2M1, E4M3 and BF16, for plain.c
 * and for the CPU's kernels.  ops.h has bf16_to_float, because the tests of the .cu files use it
 * too; gpu.h has the conversions that a GPU does itself. */
#ifndef MINIFLOAT_H
#define MINIFLOAT_H

#include <math.h>
#include <stdint.h>

/* E2M1, the nibbles of NVFP4: sign, two bits of exponent, one of mantissa. */
static const float e2m1[16] = {0, .5, 1, 1.5, 2, 3, 4, 6, -0., -.5, -1, -1.5, -2, -3, -4, -6};

/* E4M3FN: a sign, an exponent of 4 bits with bias 7, a mantissa of 3 bits.  Subnormals go in steps
 * of 2^-9; 0x7f and 0xff are NaN; there is no infinity. */
static inline float e4m3_to_float(uint8_t v) {
    int exponent = v >> 3 & 15, mantissa = v & 7;
    if ((v & 127) == 127) return NAN;
    float f = (float)mantissa * 0x1p-9f;
    if (exponent) f = (float)(8 + mantissa) * (float)(1 << exponent) * 0x1p-10f;
    return v & 128 ? -f : f;
}

/* To the nearest, of two equally near the even one; saturates at 448.  This is torch's
 * float8_e4m3fn after a clamp. */
static inline uint8_t float_to_e4m3(float f) {
    uint8_t sign = signbit(f) ? 128 : 0;
    float a = fabsf(f);
    if (isnan(f)) return sign | 127;
    if (a >= 448) return sign | 126;
    if (a < 0x1p-6f) return sign | (uint8_t)nearbyintf(a * 512);    /* 0, a subnormal, or 2^-6 */
    int e, m = (int)nearbyintf(16 * frexpf(a, &e));     /* 8 .. 16: a is about m / 16 * 2^e */
    return sign | (uint8_t)(((e + 6) << 3) + m - 8);
}

/* To the nearest, of two equally near the even one. */
static inline uint16_t float_to_bf16(float f) {
    union { float f; uint32_t u; } x = {f};
    if (isnan(f)) return 0x7fc0;
    return (uint16_t)((x.u + 0x7fff + (x.u >> 16 & 1)) >> 16);
}

#endif
