/* bandwidth.cu - what the GPU's memory and bus do at best, as one JSON line: the measure for gpu_bench.py.
 *
 * read_gbs: a kernel that reads and adds nothing but that; copy_gbs: cudaMemcpy within the GPU, bytes read and written;
 * bus_gbs: from pinned memory of the host.  10^9 bytes a second, each the best of ten. */
#include <cuda_runtime.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

static void check(cudaError_t e, const char *what) {
    if (e == cudaSuccess) return;
    fprintf(stderr, "bandwidth: %s: %s\n", what, cudaGetErrorString(e));
    exit(1);
}

/* Four loads of 16 bytes are under way in each thread.  The sum is only written where it is improbable: for the compiler. */
__global__ void read_kernel(const uint4 *p, size_t n, unsigned *out) {
    size_t step = (size_t)gridDim.x * blockDim.x;
    unsigned sum = 0;
    for (size_t i = (size_t)blockIdx.x * blockDim.x + threadIdx.x; i + 3 * step < n; i += 4 * step) {
        uint4 a = __ldcs(p + i), b = __ldcs(p + i + step), c = __ldcs(p + i + 2 * step), d = __ldcs(p + i + 3 * step);
        sum += a.x ^ a.y ^ a.z ^ a.w ^ b.x ^ b.y ^ b.z ^ b.w ^ c.x ^ c.y ^ c.z ^ c.w ^ d.x ^ d.y ^ d.z ^ d.w;
    }
    if (sum == 0x12345678) *out = sum;
}

enum { READ, COPY, BUS };

static double best_of_ten(int what, uint8_t *to, uint8_t *from, const uint8_t *host, size_t bytes, int blocks) {
    cudaEvent_t begin, end;
    float best = 1e30f, ms;
    check(cudaEventCreate(&begin), "event");
    check(cudaEventCreate(&end), "event");
    for (int i = 0; i < 10; i++) {
        check(cudaEventRecord(begin), "event");
        if (what == READ) read_kernel<<<blocks, 512>>>((const uint4 *)from, bytes / 16, (unsigned *)to);
        else if (what == COPY) check(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToDevice), "copying");
        else check(cudaMemcpyAsync(to, host, bytes, cudaMemcpyHostToDevice), "copying");
        check(cudaGetLastError(), "launching");
        check(cudaEventRecord(end), "event");
        check(cudaEventSynchronize(end), "running");
        check(cudaEventElapsedTime(&ms, begin, end), "event");
        if (ms < best) best = ms;
    }
    return (what == COPY ? 2 : 1) * (double)bytes / best * 1e-6;
}

int main(void) {
    cudaDeviceProp gpu;
    size_t free_bytes, total, bytes = (size_t)2 << 30, bus_bytes = (size_t)256 << 20;
    uint8_t *a, *b, *host;
    int clock = 0, memory_clock = 0, driver = 0, runtime = 0;
    check(cudaGetDeviceProperties(&gpu, 0), "no GPU");
    check(cudaMemGetInfo(&free_bytes, &total), "memory");
    while (bytes > free_bytes / 4) bytes /= 2;
    if (bus_bytes > bytes) bus_bytes = bytes;
    cudaDeviceGetAttribute(&clock, cudaDevAttrClockRate, 0);
    cudaDeviceGetAttribute(&memory_clock, cudaDevAttrMemoryClockRate, 0);
    cudaDriverGetVersion(&driver);
    cudaRuntimeGetVersion(&runtime);
    check(cudaMalloc((void **)&a, bytes), "memory");
    check(cudaMalloc((void **)&b, bytes), "memory");
    check(cudaMallocHost((void **)&host, bus_bytes), "pinned memory");
    check(cudaMemset(a, 1, bytes), "memory");
    int blocks = 16 * gpu.multiProcessorCount;
    double read = best_of_ten(READ, b, a, host, bytes, blocks), copy = best_of_ten(COPY, b, a, host, bytes, blocks);
    double bus = best_of_ten(BUS, b, a, host, bus_bytes, blocks);
    printf("{\"name\": \"%s\", \"compute_capability\": \"%d.%d\", \"multiprocessors\": %d, \"memory_gb\": %.1f, ", gpu.name, gpu.major,
           gpu.minor, gpu.multiProcessorCount, total * 1e-9);
    printf("\"clock_mhz\": %d, \"memory_clock_mhz\": %d, \"driver_cuda\": \"%d.%d\", \"cuda\": \"%d.%d\", ", clock / 1000,
           memory_clock / 1000, driver / 1000, driver % 100 / 10, runtime / 1000, runtime % 100 / 10);
    printf("\"read_gbs\": %.0f, \"copy_gbs\": %.0f, \"bus_gbs\": %.1f}\n", read, copy, bus);
    return 0;
}
