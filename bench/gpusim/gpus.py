"""The GPUs.  Cycles are of the multiprocessor's clock.  Sources and what is only assumed: README.md, "Constants"."""
_PER_QUARTER = dict(alu_interval=2, fma_interval=1, imad_interval=2, half_interval=1, mufu_interval=4, branch=6)    # cycles a warp's instruction takes of a pipe


def _gpu(arch, sms, ghz, bandwidth, efficiency, **more):
    g = dict(_PER_QUARTER, arch=arch, sms=sms, ghz=ghz, bandwidth=bandwidth, efficiency=efficiency)
    g.update(l1_latency=36, shared_latency=29, l2_latency=270, dram_latency=800, l2_bytes=40, tma_latency=60, tma_interval=1, cluster_latency=180, l1_bytes=128 << 10, mma_interval=32, mma_latency=33,
             shared_sm=100 << 10, shared_limit=101376, l2_size=96 << 20, regs=65536, warps=48, blocks=24, block_start_us=.3, lead_us=3, gap_us=1.1, serial_us=.8, step_us=15)
    g.update(more)
    return g


GPUS = {
    'H100': _gpu('90', 132, 1.755, 3.35e12, .92, mma_interval=6.5, wgmma_interval=4, gap_us=.65, lead_us=8, shared_sm=228 << 10, shared_limit=232448, l1_bytes=256 << 10, l2_size=50 << 20, warps=64, blocks=32),
    'H200': _gpu('90', 132, 1.98, 4.8e12, .97, mma_interval=6.5, wgmma_interval=4, gap_us=.65, lead_us=8, shared_sm=228 << 10, shared_limit=232448, l1_bytes=256 << 10, l2_size=50 << 20, warps=64, blocks=32),
    '5090': _gpu('120', 170, 2.41, 1.792e12, .92, l1_latency=38, l2_latency=330, dram_latency=950, l2_bytes=24, fp4_interval=16),
    'GB10': _gpu('120', 48, 2.4, 273e9, .85, l1_latency=38, l2_latency=330, dram_latency=1000, l2_bytes=24, l2_size=24 << 20, mma_interval=16, fp4_interval=16),
    '4090': _gpu('80', 128, 2.52, 1.008e12, .92, l2_latency=290, dram_latency=700, l2_bytes=24, l2_size=72 << 20),
    '3090': _gpu('80', 82, 1.70, 936e9, .90, l1_latency=34, l2_latency=260, dram_latency=620, l2_bytes=24, l2_size=6 << 20, blocks=16),
}
