/* emu_types.h - CUDA's vector types, BF16, FP16, FP8 and FP4, and the arithmetic that only nvcc brings.
 * Part of emu.h; include that. */
#ifndef EMU_TYPES_H
#define EMU_TYPES_H

#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>

/* ---- vectors, aligned as nvcc aligns them ---- */

#define EMU_VECTORS(type, name, align2, align4) \
    struct name##1 { type x; }; \
    struct alignas(align2) name##2 { type x, y; }; \
    struct name##3 { type x, y, z; }; \
    struct alignas(align4) name##4 { type x, y, z, w; }; \
    static inline name##1 make_##name##1(type x) { return {x}; } \
    static inline name##2 make_##name##2(type x, type y) { return {x, y}; } \
    static inline name##3 make_##name##3(type x, type y, type z) { return {x, y, z}; } \
    static inline name##4 make_##name##4(type x, type y, type z, type w) { return {x, y, z, w}; }
EMU_VECTORS(signed char, char, 2, 4)
EMU_VECTORS(unsigned char, uchar, 2, 4)
EMU_VECTORS(short, short, 4, 8)
EMU_VECTORS(unsigned short, ushort, 4, 8)
EMU_VECTORS(int, int, 8, 16)
EMU_VECTORS(unsigned int, uint, 8, 16)
EMU_VECTORS(long long, longlong, 16, 16)
EMU_VECTORS(unsigned long long, ulonglong, 16, 16)
EMU_VECTORS(float, float, 8, 16)
EMU_VECTORS(double, double, 16, 16)
#undef EMU_VECTORS

struct dim3 {
    unsigned int x, y, z;
    constexpr dim3(unsigned int x = 1, unsigned int y = 1, unsigned int z = 1) : x(x), y(y), z(z) {}
    constexpr dim3(uint3 v) : x(v.x), y(v.y), z(v.z) {}
    constexpr operator uint3() const { return {x, y, z}; }
};

/* ---- bits ---- */

namespace emu {
template <class To, class From> inline To bits(From from) {
    static_assert(sizeof(To) == sizeof(From), "bits: sizes differ");
    To to;
    memcpy(&to, &from, sizeof to);
    return to;
}
}

static inline int __float_as_int(float x) { return emu::bits<int>(x); }
static inline unsigned __float_as_uint(float x) { return emu::bits<unsigned>(x); }
static inline float __int_as_float(int x) { return emu::bits<float>(x); }
static inline float __uint_as_float(unsigned x) { return emu::bits<float>(x); }
static inline long long __double_as_longlong(double x) { return emu::bits<long long>(x); }
static inline double __longlong_as_double(long long x) { return emu::bits<double>(x); }

static inline int __popc(unsigned x) { return __builtin_popcount(x); }
static inline int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
static inline int __clz(int x) { return x ? __builtin_clz((unsigned)x) : 32; }
static inline int __clzll(long long x) { return x ? __builtin_clzll((unsigned long long)x) : 64; }
static inline int __ffs(int x) { return __builtin_ffs(x); }
static inline int __ffsll(long long x) { return __builtin_ffsll(x); }
static inline unsigned __brev(unsigned x) {
    unsigned r = 0;
    for (int i = 0; i < 32; i++) r |= (x >> i & 1) << (31 - i);
    return r;
}
/* The instruction prmt.  nvcc's __byte_perm clears the 8 of each nibble of s, as the guide says. */
static inline unsigned ptx_prmt(unsigned x, unsigned y, unsigned s) {
    uint64_t both = (uint64_t)y << 32 | x;
    unsigned r = 0;
    for (int i = 0; i < 4; i++) {
        unsigned sel = s >> 4 * i & 15, byte = both >> 8 * (sel & 7) & 255;
        if (sel & 8) byte = byte & 128 ? 255 : 0;           /* the sign, spread */
        r |= byte << 8 * i;
    }
    return r;
}
static inline unsigned __byte_perm(unsigned x, unsigned y, unsigned s) { return ptx_prmt(x, y, s & 0x7777); }
static inline unsigned __funnelshift_l(unsigned lo, unsigned hi, unsigned n) { return (((uint64_t)hi << 32 | lo) << (n & 31)) >> 32; }
static inline unsigned __funnelshift_r(unsigned lo, unsigned hi, unsigned n) { return ((uint64_t)hi << 32 | lo) >> (n & 31); }
static inline unsigned __umulhi(unsigned a, unsigned b) { return (uint64_t)a * b >> 32; }
static inline int __mulhi(int a, int b) { return (int64_t)a * b >> 32; }
static inline unsigned long long __umul64hi(unsigned long long a, unsigned long long b) { return (unsigned __int128)a * b >> 64; }
static inline int __dp4a(int a, int b, int c) {
    for (int i = 0; i < 4; i++) c = (int)((unsigned)c + (unsigned)((int8_t)(a >> 8 * i) * (int8_t)(b >> 8 * i)));
    return c;
}
static inline unsigned __dp4a(unsigned a, unsigned b, unsigned c) {
    for (int i = 0; i < 4; i++) c += (uint8_t)(a >> 8 * i) * (uint8_t)(b >> 8 * i);
    return c;
}

/* ---- numbers ---- */

#define EMU_MINMAX(type) \
    static inline type min(type a, type b) { return b < a ? b : a; } \
    static inline type max(type a, type b) { return a < b ? b : a; }
EMU_MINMAX(int)
EMU_MINMAX(unsigned int)
EMU_MINMAX(long)
EMU_MINMAX(unsigned long)
EMU_MINMAX(long long)
EMU_MINMAX(unsigned long long)
#undef EMU_MINMAX
static inline unsigned min(int a, unsigned b) { return min((unsigned)a, b); }
static inline unsigned min(unsigned a, int b) { return min(a, (unsigned)b); }
static inline unsigned max(int a, unsigned b) { return max((unsigned)a, b); }
static inline unsigned max(unsigned a, int b) { return max(a, (unsigned)b); }
/* A NaN loses against a number, as on the GPU. */
static inline float min(float a, float b) { return fminf(a, b); }
static inline float max(float a, float b) { return fmaxf(a, b); }
static inline double min(double a, double b) { return fmin(a, b); }
static inline double max(double a, double b) { return fmax(a, b); }
static inline double min(float a, double b) { return fmin(a, b); }
static inline double max(float a, double b) { return fmax(a, b); }
static inline double min(double a, float b) { return fmin(a, b); }
static inline double max(double a, float b) { return fmax(a, b); }

static inline float rsqrtf(float x) { return 1.f / sqrtf(x); }
static inline double rsqrt(double x) { return 1 / sqrt(x); }
static inline float __saturatef(float x) { return x > 0 ? x < 1 ? x : 1 : 0; }
static inline float __fdividef(float a, float b) { return a / b; }
static inline float __fdiv_rn(float a, float b) { return a / b; }
static inline float __frcp_rn(float x) { return 1.f / x; }
static inline float __fsqrt_rn(float x) { return sqrtf(x); }
static inline float __frsqrt_rn(float x) { return (float)(1 / sqrt((double)x)); }
static inline float __fadd_rn(float a, float b) { return a + b; }
static inline float __fsub_rn(float a, float b) { return a - b; }
static inline float __fmul_rn(float a, float b) { return a * b; }
static inline float __fmaf_rn(float a, float b, float c) { return fmaf(a, b, c); }

namespace emu {
inline float fast_expf(float x) { return expf(x); }
inline float fast_exp10f(float x) { return powf(10, x); }
inline float fast_logf(float x) { return logf(x); }
inline float fast_log2f(float x) { return log2f(x); }
inline float fast_log10f(float x) { return log10f(x); }
inline float fast_powf(float x, float y) { return powf(x, y); }
inline float fast_sinf(float x) { return sinf(x); }
inline float fast_cosf(float x) { return cosf(x); }
inline float fast_tanf(float x) { return tanf(x); }
inline float fast_tanhf(float x) { return tanhf(x); }
inline void fast_sincosf(float x, float *s, float *c) { *s = sinf(x); *c = cosf(x); }
}
/* Macros, because glibc's <math.h> declares some of these names for itself. */
#define __expf(x) emu::fast_expf(x)
#define __exp10f(x) emu::fast_exp10f(x)
#define __logf(x) emu::fast_logf(x)
#define __log2f(x) emu::fast_log2f(x)
#define __log10f(x) emu::fast_log10f(x)
#define __powf(x, y) emu::fast_powf(x, y)
#define __sinf(x) emu::fast_sinf(x)
#define __cosf(x) emu::fast_cosf(x)
#define __tanf(x) emu::fast_tanf(x)
#define __tanhf(x) emu::fast_tanhf(x)
#define __sincosf(x, s, c) emu::fast_sincosf(x, s, c)

/* Conversions saturate and take NaN to 0, as the hardware's do. */
namespace emu {
template <class Int> inline Int to_integer(double x) {
    if (std::isnan(x)) return 0;
    const double low = (double)std::numeric_limits<Int>::min(), high = std::ldexp(1.0, std::numeric_limits<Int>::digits);
    return x <= low ? std::numeric_limits<Int>::min() : x >= high ? std::numeric_limits<Int>::max() : (Int)x;
}
}
static inline int __float2int_rn(float x) { return emu::to_integer<int>(nearbyintf(x)); }
static inline int __float2int_rz(float x) { return emu::to_integer<int>(truncf(x)); }
static inline int __float2int_rd(float x) { return emu::to_integer<int>(floorf(x)); }
static inline int __float2int_ru(float x) { return emu::to_integer<int>(ceilf(x)); }
static inline unsigned __float2uint_rn(float x) { return emu::to_integer<unsigned>(nearbyintf(x)); }
static inline unsigned __float2uint_rz(float x) { return emu::to_integer<unsigned>(truncf(x)); }
static inline unsigned __float2uint_rd(float x) { return emu::to_integer<unsigned>(floorf(x)); }
static inline unsigned __float2uint_ru(float x) { return emu::to_integer<unsigned>(ceilf(x)); }
static inline long long __float2ll_rn(float x) { return emu::to_integer<long long>(nearbyintf(x)); }
static inline float __int2float_rn(int x) { return (float)x; }
static inline float __uint2float_rn(unsigned x) { return (float)x; }
static inline float __ll2float_rn(long long x) { return (float)x; }
static inline float __double2float_rn(double x) { return (float)x; }

/* ---- small floats: sign, `exponent` bits, `mantissa` bits; round to nearest, ties to even ---- */

namespace emu {
inline uint16_t float_to_bf16(float x) {
    uint32_t u = bits<uint32_t>(x);
    if (std::isnan(x)) return 0x7fff;
    return (uint16_t)((u + 0x7fff + (u >> 16 & 1)) >> 16);
}
inline float bf16_to_float(uint16_t h) { return bits<float>((uint32_t)h << 16); }

inline uint16_t float_to_half(float x) {
    uint32_t u = bits<uint32_t>(x), sign = u >> 16 & 0x8000, a = u & 0x7fffffff;
    if (a > 0x7f800000) return 0x7fff;
    if (a >= 0x477ff000) return (uint16_t)(sign | 0x7c00);              /* from 65520 on: infinity */
    if (a < 0x38800000) {                                               /* below 2^-14: subnormal, in steps of 2^-24 */
        float steps = nearbyintf(bits<float>(a) * 16777216.f);
        return (uint16_t)(sign | (uint32_t)steps);
    }
    a += 0xfff + (a >> 13 & 1);
    return (uint16_t)(sign | ((a - 0x38000000) >> 13));
}
inline float half_to_float(uint16_t h) {
    uint32_t sign = (uint32_t)(h & 0x8000) << 16, e = h >> 10 & 31, m = h & 1023;
    if (e == 31) return bits<float>(sign | 0x7f800000 | m << 13);
    if (e) return bits<float>(sign | (e + 112) << 23 | m << 13);
    return bits<float>(sign | bits<uint32_t>((float)m * (1 / 16777216.f)));
}

/* E4M3: no infinity, 0x7f is NaN, the largest number is 448.  E5M2: as half with 8 bits, the largest is 57344. */
uint8_t float_to_fp8(float x, bool e5m2, bool saturate);
uint16_t fp8_to_half(uint8_t b, bool e5m2);
/* E2M1: 0, 0.5, 1, 1.5, 2, 3, 4, 6 and their negatives; always saturates. */
uint8_t float_to_fp4(float x);
inline float fp4_to_float(unsigned nibble) {
    static const float value[16] = {0, .5f, 1, 1.5f, 2, 3, 4, 6, -0.f, -.5f, -1, -1.5f, -2, -3, -4, -6};
    return value[nibble & 15];
}
inline float fp8_to_float(uint8_t b, bool e5m2 = false) { return half_to_float(fp8_to_half(b, e5m2)); }
}

/* ---- __nv_bfloat16, __half ---- */

#define EMU_SMALL_FLOAT(scalar, pair, to, from) \
    struct alignas(2) scalar { \
        unsigned short __x; \
        scalar() = default; \
        scalar(float f) : __x(emu::to(f)) {} \
        operator float() const { return emu::from(__x); } \
    }; \
    struct alignas(4) pair { \
        scalar x, y; \
        pair() = default; \
        pair(scalar x, scalar y) : x(x), y(y) {} \
    }; \
    static inline scalar operator+(scalar a, scalar b) { return scalar((float)a + (float)b); } \
    static inline scalar operator-(scalar a, scalar b) { return scalar((float)a - (float)b); } \
    static inline scalar operator*(scalar a, scalar b) { return scalar((float)a * (float)b); } \
    static inline scalar __hadd(scalar a, scalar b) { return a + b; } \
    static inline scalar __hsub(scalar a, scalar b) { return a - b; } \
    static inline scalar __hmul(scalar a, scalar b) { return a * b; } \
    static inline scalar __hfma(scalar a, scalar b, scalar c) { return scalar(fmaf(a, b, c)); } \
    static inline scalar __hmax(scalar a, scalar b) { return scalar(fmaxf(a, b)); } \
    static inline scalar __hmin(scalar a, scalar b) { return scalar(fminf(a, b)); } \
    static inline scalar __habs(scalar a) { a.__x &= 0x7fff; return a; } \
    static inline scalar __hneg(scalar a) { a.__x ^= 0x8000; return a; } \
    static inline pair __hadd2(pair a, pair b) { return {a.x + b.x, a.y + b.y}; } \
    static inline pair __hsub2(pair a, pair b) { return {a.x - b.x, a.y - b.y}; } \
    static inline pair __hmul2(pair a, pair b) { return {a.x * b.x, a.y * b.y}; } \
    static inline pair __hfma2(pair a, pair b, pair c) { return {__hfma(a.x, b.x, c.x), __hfma(a.y, b.y, c.y)}; } \
    static inline pair __hmax2(pair a, pair b) { return {__hmax(a.x, b.x), __hmax(a.y, b.y)}; } \
    static inline float __low2float(pair v) { return v.x; } \
    static inline float __high2float(pair v) { return v.y; }
EMU_SMALL_FLOAT(__nv_bfloat16, __nv_bfloat162, float_to_bf16, bf16_to_float)
EMU_SMALL_FLOAT(__half, __half2, float_to_half, half_to_float)
#undef EMU_SMALL_FLOAT
typedef __nv_bfloat16 nv_bfloat16;
typedef __nv_bfloat162 nv_bfloat162;
typedef __half half;
typedef __half2 half2;

static inline __nv_bfloat16 __float2bfloat16(float x) { return __nv_bfloat16(x); }
static inline __nv_bfloat16 __float2bfloat16_rn(float x) { return __nv_bfloat16(x); }
static inline float __bfloat162float(__nv_bfloat16 x) { return x; }
static inline __nv_bfloat162 __floats2bfloat162_rn(float lo, float hi) { return {__nv_bfloat16(lo), __nv_bfloat16(hi)}; }
static inline __nv_bfloat162 __float22bfloat162_rn(float2 v) { return __floats2bfloat162_rn(v.x, v.y); }
static inline __nv_bfloat162 __float2bfloat162_rn(float x) { return __floats2bfloat162_rn(x, x); }
static inline __nv_bfloat162 __bfloat162bfloat162(__nv_bfloat16 x) { return {x, x}; }
static inline __nv_bfloat162 __halves2bfloat162(__nv_bfloat16 lo, __nv_bfloat16 hi) { return {lo, hi}; }
static inline float2 __bfloat1622float2(__nv_bfloat162 v) { return make_float2(v.x, v.y); }
static inline __nv_bfloat16 __low2bfloat16(__nv_bfloat162 v) { return v.x; }
static inline __nv_bfloat16 __high2bfloat16(__nv_bfloat162 v) { return v.y; }
static inline unsigned short __bfloat16_as_ushort(__nv_bfloat16 x) { return x.__x; }
static inline short __bfloat16_as_short(__nv_bfloat16 x) { return (short)x.__x; }
static inline __nv_bfloat16 __ushort_as_bfloat16(unsigned short x) { return emu::bits<__nv_bfloat16>(x); }
static inline __nv_bfloat16 __short_as_bfloat16(short x) { return emu::bits<__nv_bfloat16>(x); }

static inline __half __float2half(float x) { return __half(x); }
static inline __half __float2half_rn(float x) { return __half(x); }
static inline float __half2float(__half x) { return x; }
static inline __half2 __floats2half2_rn(float lo, float hi) { return {__half(lo), __half(hi)}; }
static inline __half2 __float22half2_rn(float2 v) { return __floats2half2_rn(v.x, v.y); }
static inline __half2 __float2half2_rn(float x) { return __floats2half2_rn(x, x); }
static inline __half2 __half2half2(__half x) { return {x, x}; }
static inline __half2 __halves2half2(__half lo, __half hi) { return {lo, hi}; }
static inline float2 __half22float2(__half2 v) { return make_float2(v.x, v.y); }
static inline __half __low2half(__half2 v) { return v.x; }
static inline __half __high2half(__half2 v) { return v.y; }
static inline unsigned short __half_as_ushort(__half x) { return x.__x; }
static inline __half __ushort_as_half(unsigned short x) { return emu::bits<__half>(x); }

/* ---- FP8, FP4 ---- */

struct __half_raw { unsigned short x; operator __half() const { return __ushort_as_half(x); } };
struct alignas(4) __half2_raw { unsigned short x, y; operator __half2() const { return {__ushort_as_half(x), __ushort_as_half(y)}; } };
typedef unsigned char __nv_fp8_storage_t, __nv_fp4_storage_t, __nv_fp4x2_storage_t;
typedef unsigned short __nv_fp8x2_storage_t, __nv_fp4x4_storage_t;
typedef unsigned int __nv_fp8x4_storage_t;
enum __nv_saturation_t { __NV_NOSAT, __NV_SATFINITE };
enum __nv_fp8_interpretation_t { __NV_E4M3, __NV_E5M2 };
enum __nv_fp4_interpretation_t { __NV_E2M1 };
enum cudaRoundMode { cudaRoundNearest, cudaRoundZero, cudaRoundPosInf, cudaRoundMinInf };

static inline __nv_fp8_storage_t __nv_cvt_float_to_fp8(float x, __nv_saturation_t s, __nv_fp8_interpretation_t f) {
    return emu::float_to_fp8(x, f == __NV_E5M2, s == __NV_SATFINITE);
}
static inline __nv_fp8x2_storage_t __nv_cvt_float2_to_fp8x2(float2 v, __nv_saturation_t s, __nv_fp8_interpretation_t f) {
    return (unsigned short)(__nv_cvt_float_to_fp8(v.x, s, f) | __nv_cvt_float_to_fp8(v.y, s, f) << 8);
}
static inline __half_raw __nv_cvt_fp8_to_halfraw(__nv_fp8_storage_t b, __nv_fp8_interpretation_t f) {
    return {emu::fp8_to_half(b, f == __NV_E5M2)};
}
static inline __half2_raw __nv_cvt_fp8x2_to_halfraw2(__nv_fp8x2_storage_t b, __nv_fp8_interpretation_t f) {
    return {emu::fp8_to_half(b & 255, f == __NV_E5M2), emu::fp8_to_half(b >> 8, f == __NV_E5M2)};
}
static inline __half_raw __nv_cvt_fp4_to_halfraw(__nv_fp4_storage_t b, __nv_fp4_interpretation_t) {
    return {emu::float_to_half(emu::fp4_to_float(b))};
}
static inline __half2_raw __nv_cvt_fp4x2_to_halfraw2(__nv_fp4x2_storage_t b, __nv_fp4_interpretation_t) {
    return {emu::float_to_half(emu::fp4_to_float(b)), emu::float_to_half(emu::fp4_to_float(b >> 4))};
}
static inline __nv_fp4_storage_t __nv_cvt_float_to_fp4(float x, __nv_fp4_interpretation_t, cudaRoundMode) {
    return emu::float_to_fp4(x);
}
static inline __nv_fp4x2_storage_t __nv_cvt_float2_to_fp4x2(float2 v, __nv_fp4_interpretation_t, cudaRoundMode) {
    return (unsigned char)(emu::float_to_fp4(v.x) | emu::float_to_fp4(v.y) << 4);
}
struct __nv_fp8_e4m3 {
    __nv_fp8_storage_t __x;
    __nv_fp8_e4m3() = default;
    explicit __nv_fp8_e4m3(float f) : __x(emu::float_to_fp8(f, false, true)) {}
    explicit operator float() const { return emu::fp8_to_float(__x); }
};

#endif
