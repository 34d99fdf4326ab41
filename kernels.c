/* kernels.c - the choice of the kernels that the machine gets.  See kernels.h. */
#include "kernels.h"

#include <stdlib.h>
#include <string.h>
#if defined(__x86_64__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#elif defined(__aarch64__)
#include <sys/auxv.h>
#endif

#if defined(__x86_64__)
/* Tiles are 8 KB that Linux saves for a process only when that asks for it. */
static int may_use_amx(void) {
    unsigned a, b, c, d = 0;
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d)) return 0;
    int amx_bf16 = d >> 22 & 1, amx_tile = d >> 24 & 1;         /* CPUID leaf 7, EDX */
    return amx_bf16 && amx_tile && __builtin_cpu_supports("avx512bf16") &&
           !syscall(SYS_arch_prctl, 0x1023 /* ARCH_REQ_XCOMP_PERM */, 18 /* XFEATURE_XTILEDATA */);
}

static int has_avx_vnni(void) {
    unsigned a = 0, b, c, d;
    return __get_cpuid_count(7, 1, &a, &b, &c, &d) && a >> 4 & 1;
}

/* The best set for x86, at most number `level` of KERNEL_NAMES. */
static const Kernels *choose_x86(int level) {
    unsigned a, b, c = 0, d;                            /* clang 14 has no name for F16C */
    __get_cpuid(1, &a, &b, &c, &d);
    if (level < 1 || !__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma") ||
        !(c & bit_F16C))
        return &kernels_c;
    if (level >= 3 && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
        __builtin_cpu_supports("avx512vbmi") && __builtin_cpu_supports("avx512vnni"))
        return level >= 4 && may_use_amx() ? &kernels_amx : &kernels_avx512;
    return level >= 2 && has_avx_vnni() ? &kernels_avx2_vnni : &kernels_avx2;
}
#endif

const Kernels *choose_kernels(void) {
    const char *most = getenv("GEMMA4_CPU");
    static const char *const names[] = {KERNEL_NAMES};
    int last = sizeof names / sizeof *names - 1;
    int level = 0;                      /* names[level] is the most that may be used */
    while (level < last && (!most || strcmp(most, names[level]))) level++;
    fill_tables();
    (void)level;
#if defined(__x86_64__)
    return choose_x86(level);
#elif defined(__aarch64__)
    int bf16 = level >= 2 && getauxval(AT_HWCAP2) & HWCAP2_BF16;
    if (level >= 1 && getauxval(AT_HWCAP) & HWCAP_ASIMDDP)
        return bf16 ? &kernels_neon_bf16 : &kernels_neon;
#endif
    return &kernels_c;
}
