/* bandwidth.cu - the highest rates of the GPU's memory and bus, as one JSON line.  gpu_bench.py
 * compares the program with them.
 *
 * In 10^9 bytes a second, each the best of ten:
 *   read_gbs  a kernel that only reads memory
 *   copy_gbs  cudaMemcpy within the GPU's memory; bytes read and bytes written both count
 *   bus_gbs   cudaMemcpy from pinned memory of the host to the GPU */
#include <cuda_runtime.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

/* Ends the program when a call of CUDA has failed.  what: of the operation, for the message. */
static void check(cudaError_t e, const char *what) {
    if (e == cudaSuccess) return;
    fprintf(stderr, "bandwidth: %s: %s\n", what, cudaGetErrorString(e));
    exit(1);
}

__device__ static inline unsigned mixed(uint4 v) { return v.x ^ v.y ^ v.z ^ v.w; }

/* Reads p [n].  Each thread has four loads of 16 bytes under way.  Without any use of what was read
 * the compiler would leave the loads out: so the sum is written, but only if it has one improbable
 * value. */
__global__ void read_kernel(const uint4 *p, size_t n, unsigned *out) {
    size_t step = (size_t)gridDim.x * blockDim.x, first = (size_t)blockIdx.x * blockDim.x;
    unsigned sum = 0;
    for (size_t i = first + threadIdx.x; i + 3 * step < n; i += 4 * step) {
        uint4 a = __ldcs(p + i), b = __ldcs(p + i + step);
        uint4 c = __ldcs(p + i + 2 * step), d = __ldcs(p + i + 3 * step);
        sum += mixed(a) ^ mixed(b) ^ mixed(c) ^ mixed(d);
    }
    if (sum == 0x12345678) *out = sum;
}

enum { READ, COPY, BUS };

/* 10^9 bytes a second of READ (of `from`), COPY (`from` to `to`) or BUS (host to `to`) with `bytes`
 * bytes, timed with events.  blocks: of read_kernel. */
static double best_of_ten(int what, uint8_t *to, uint8_t *from, const uint8_t *host, size_t bytes,
                          int blocks) {
    cudaEvent_t begin, end;
    float best = 1e30f, ms;
    check(cudaEventCreate(&begin), "event");
    check(cudaEventCreate(&end), "event");
    for (int i = 0; i < 10; i++) {
        check(cudaEventRecord(begin), "event");
        if (what == READ)
            read_kernel<<<blocks, 512>>>((const uint4 *)from, bytes / 16, (unsigned *)to);
        else if (what == COPY)
            check(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToDevice), "copying");
        else
            check(cudaMemcpyAsync(to, host, bytes, cudaMemcpyHostToDevice), "copying");
        check(cudaGetLastError(), "launching");
        check(cudaEventRecord(end), "event");
        check(cudaEventSynchronize(end), "running");
        check(cudaEventElapsedTime(&ms, begin, end), "event");
        if (ms < best) best = ms;
    }
    return (what == COPY ? 2 : 1) * (double)bytes / best * 1e-6;        /* best: milliseconds */
}

int main(void) {
    cudaDeviceProp gpu;
    /* 2 GB are far more than any L2 cache holds; where memory is short, a quarter of what is free.
     * Over the bus 256 MB take some 10 ms. */
    size_t free_bytes, total, bytes = (size_t)2 << 30, bus_bytes = (size_t)256 << 20;
    uint8_t *a, *b, *host;
    char pci[16] = "";
    int clock = 0, memory_clock = 0, driver = 0, runtime = 0;
    check(cudaGetDeviceProperties(&gpu, 0), "no GPU");
    check(cudaMemGetInfo(&free_bytes, &total), "memory");
    double free_gb = (double)free_bytes * 1e-9;
    check(cudaDeviceGetPCIBusId(pci, sizeof pci, 0), "no GPU");
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
    int blocks = 16 * gpu.multiProcessorCount;      /* four turns of 2048 threads each */
    double read = best_of_ten(READ, b, a, host, bytes, blocks);
    double copy = best_of_ten(COPY, b, a, host, bytes, blocks);
    double bus = best_of_ten(BUS, b, a, host, bus_bytes, blocks);
    printf("{\"name\": \"%s\", ", gpu.name);
    printf("\"compute_capability\": \"%d.%d\", ", gpu.major, gpu.minor);
    printf("\"multiprocessors\": %d, ", gpu.multiProcessorCount);
    printf("\"memory_gb\": %.1f, ", total * 1e-9);
    printf("\"free_gb\": %.1f, \"pci\": \"%s\", ", free_gb, pci);
    printf("\"clock_mhz\": %d, ", clock / 1000);
    printf("\"memory_clock_mhz\": %d, ", memory_clock / 1000);
    printf("\"driver_cuda\": \"%d.%d\", ", driver / 1000, driver % 100 / 10);
    printf("\"cuda\": \"%d.%d\", ", runtime / 1000, runtime % 100 / 10);
    printf("\"read_gbs\": %.0f, \"copy_gbs\": %.0f, \"bus_gbs\": %.1f}\n", read, copy, bus);
    return 0;
}
