/* emu_runtime.cpp - the host's side of CUDA: memory, streams, events, graphs.  See emu.h.
 *
 * What is put on a stream is kept as a closure and runs when the host waits for it (or at once: EMU_SYNC). */
#include "emu.h"
#include "emu_watch.h"

#include <algorithm>
#include <chrono>
#include <deque>
#include <map>
#include <mutex>
#include <thread>
#include <utility>
#include <vector>

#include <sys/mman.h>

#ifdef EMU_ASAN
#include <sanitizer/asan_interface.h>
#endif

namespace emu {

static std::recursive_mutex api;        /* one host thread at a time */
#define API std::lock_guard<std::recursive_mutex> lock(api)

static cudaError_t last_error;
static cudaError_t result(cudaError_t e) {
    if (e != cudaSuccess) last_error = e;
    return e;
}
/* An error that a correct program never meets: says why. */
bool quiet;
static cudaError_t wrong(cudaError_t e, const char *call, const char *why) {
    if (!quiet) fprintf(stderr, "emu: %s: %s\n", call, why);
    return result(e);
}

/* ---- the device ---- */

static bool at_once() { return setting("EMU_SYNC", 0) != 0; }
static bool no_device() { return setting("EMU_DEVICES", 1) < 1; }
#define DEVICE API; if (no_device()) return result(cudaErrorNoDevice)

static void capability(int *major, int *minor) {
    const char *s = getenv("EMU_CC");
    if (!s || sscanf(s, "%d.%d", major, minor) != 2) *major = 12, *minor = 0;
}
bool can_overlap() {
    int major, minor;
    capability(&major, &minor);
    return major >= 9;
}
/* Shared memory that a multiprocessor has and that a block can have, 1 KB less.  CUDA C++ Programming Guide, "Technical Specifications
 * per Compute Capability". */
static size_t shared_of_sm() {
    int major, minor;
    capability(&major, &minor);
    return (size_t)setting("EMU_SHARED", major == 8 && (minor == 0 || minor == 7) ? 164 : major == 8 || major == 12 ? 100 : 228) * 1024;
}
static size_t shared_optin() { return shared_of_sm() - 1024; }
static size_t total_memory() { return (size_t)setting("EMU_MEMORY", 8ll << 30); }

/* ---- memory ---- */

enum Kind { DEVICE_MEMORY, PINNED, REGISTERED, SYMBOL };
struct Block { size_t bytes; Kind kind; };
static std::map<uintptr_t, Block> blocks;               /* by their first address */
static size_t in_use;

size_t allocated() { API; return in_use; }

static std::map<uintptr_t, Block>::iterator block_of(const void *p) {
    auto i = blocks.upper_bound((uintptr_t)p);
    if (i == blocks.begin()) return blocks.end();
    --i;
    return (uintptr_t)p < i->first + std::max<size_t>(i->second.bytes, 1) ? i : blocks.end();
}

/* Device memory is only within the bounds of the device. */
static int open_depth;
static void guard(void *p, size_t bytes, bool closed) {
#ifdef EMU_ASAN
    static const bool on = setting("EMU_GUARD", 1) != 0;
    if (!on) return;
    if (closed) ASAN_POISON_MEMORY_REGION(p, bytes);
    else ASAN_UNPOISON_MEMORY_REGION(p, bytes);
#else
    (void)p, (void)bytes, (void)closed;
#endif
}
static void guard_all(bool closed) {
#ifdef EMU_ASAN
    for (auto &b : blocks)
        if (b.second.kind == DEVICE_MEMORY) guard((void *)b.first, b.second.bytes, closed);
#else
    (void)closed;
#endif
}
struct Opened {
    Opened() { if (open_depth++ == 0) guard_all(false); }
    ~Opened() { if (--open_depth == 0) guard_all(true); }
};

/* ---- streams ---- */

struct Progress { uint64_t pushed, done; };
struct After { std::shared_ptr<Progress> who; uint64_t n; };            /* when who->done >= n */
/* Behind a KERNEL another one may begin before it has ended; a MARK changes nothing about that. */
enum WorkKind { OTHER, KERNEL, MARK, GRAPH };
struct Work { std::function<void()> run; std::vector<After> after; WorkKind kind; };
struct Node { std::function<void()> run; std::vector<int> after; WorkKind kind; };      /* of a graph */

}

struct CUgraph_st { std::vector<emu::Node> nodes; bool broken; cudaStreamCaptureMode mode; };
struct CUgraphExec_st { std::shared_ptr<std::vector<emu::Node>> nodes; };
struct CUstream_st {
    std::deque<emu::Work> queue;
    std::shared_ptr<emu::Progress> progress = std::make_shared<emu::Progress>();
    bool blocking;                      /* ordered with the default stream */
    std::vector<unsigned> ahead;        /* the kernel at its end, if it is one */
    CUgraph_st *graph;                  /* being captured, */
    bool origin;                        /* begun here, */
    std::vector<int> tail;              /* after these nodes */
};
struct CUevent_st {
    emu::After after;
    std::shared_ptr<double> time = std::make_shared<double>(0);
    CUgraph_st *graph;
    std::vector<int> nodes;
};

namespace emu {

static CUstream_st *default_stream() {
    static CUstream_st *s = new CUstream_st();
    s->blocking = true;
    return s;
}
static std::vector<CUstream_st *> streams = {default_stream()};
static CUstream_st *stream(cudaStream_t s) { return s == nullptr || s == cudaStreamLegacy ? default_stream() : s; }

/* The stream whose kernel waits for the host, NULL: none does; and whether that kernel is part of a
 * graph. */
static CUstream_st *waiting;
static WorkKind waiting_in;

static bool is_of_device(WorkKind kind) { return kind == KERNEL || kind == GRAPH; }

static bool can_run(const CUstream_st *s) {
    if (s == waiting) return true;
    if (s->queue.empty() || (waiting && is_of_device(s->queue.front().kind))) return false;
    for (const After &a : s->queue.front().after)
        if (a.who->done < a.n) return false;
    return true;
}

static unsigned long long n_launches;
unsigned long long launches() { return n_launches; }
static std::vector<unsigned> ahead;     /* of the kernel that runs next: see run_grid */

/* Runs the next piece of work of s as far as it comes without the host, or goes on with the one
 * that has waited for the host.  True: it has ended. */
static bool run(CUstream_st *s, WorkKind *kind) {
    if (s == waiting) {
        *kind = waiting_in;
    } else {
        Work w = std::move(s->queue.front());
        s->queue.pop_front();
        ahead = s->ahead;
        *kind = w.kind;
        if (!is_of_device(w.kind)) return w.run(), true;
        device_begin(std::move(w.run));
    }
    waiting = device_run() ? nullptr : s;
    waiting_in = *kind;
    return !waiting;
}

/* The next piece of work of any stream that can go on. */
static bool step() {
    std::vector<CUstream_st *> able;
    for (CUstream_st *s : streams)
        if (can_run(s)) able.push_back(s);
    if (able.empty()) return false;
    CUstream_st *s = able[random((unsigned)able.size())];
    WorkKind kind;
    if (!run(s, &kind)) return true;
    if (kind == KERNEL) s->ahead = {(unsigned)n_launches};
    else if (kind != MARK) s->ahead.clear();
    s->progress->done++;
    return true;
}

/* While the host waits for a kernel that waits for the host, another thread of the host may answer:
 * but not for ever. */
struct Patience {
    std::chrono::steady_clock::time_point begin = std::chrono::steady_clock::now();
    void spend() const {
        if (!waiting) return;
        api.unlock();
        std::this_thread::sleep_for(std::chrono::microseconds(20));
        api.lock();
        const auto limit = std::chrono::seconds(setting("EMU_PATIENCE", 20));
        if (std::chrono::steady_clock::now() - begin > limit)
            fail("the host waits for a kernel that waits for the host");
    }
};

static void drain(const After &target) {
    if (target.who->done >= target.n) return;
    Opened opened;
    const Patience patience;
    while (target.who->done < target.n) {
        if (!step()) fail("streams wait for each other");
        patience.spend();
    }
}
static void drain_all() {
    Opened opened;
    const Patience patience;
    while (step()) patience.spend();
}
/* As far as the device comes without the host. */
static void drain_now(const After &target) {
    Opened opened;
    while (target.who->done < target.n && !waiting)
        if (!step()) fail("streams wait for each other");
}
/* As CUDA's runtime does when the process ends by exit: it waits for the kernel that runs. */
static void drain_at_exit() {
    API;
    if (waiting) drain_all();
}
static After end_of(const CUstream_st *s) { return {s->progress, s->progress->pushed}; }

static bool capturing() {
    return std::any_of(streams.begin(), streams.end(), [](CUstream_st *s) { return s->graph && s->graph->mode != cudaStreamCaptureModeRelaxed; });
}
/* Calls that wait, or touch the whole device, spoil a capture. */
static bool spoils(const char *call, cudaError_t *e) {
    if (!capturing()) return false;
    for (CUstream_st *s : streams)
        if (s->graph) s->graph->broken = true;
    *e = wrong(cudaErrorStreamCaptureUnsupported, call, "not while a stream is captured");
    return true;
}
/* In every mode: work that waits for a captured stream, or comes after it because it is on the default stream. */
static bool waits_for_capture(const char *call, const CUstream_st *s, cudaError_t *e) {
    bool waits = false;
    for (CUstream_st *other : streams)
        if (other->graph && (other == s || (s == default_stream() && other->blocking))) waits = other->graph->broken = true;
    if (waits) *e = wrong(s == default_stream() ? cudaErrorStreamCaptureImplicit : cudaErrorStreamCaptureUnsupported, call, "this stream is captured, or one it waits for");
    return waits;
}
#define NOT_IN_CAPTURE(call) do { cudaError_t spoiled; if (spoils(call, &spoiled)) return spoiled; } while (0)

static cudaError_t push(CUstream_st *s, std::function<void()> run, std::vector<After> after = {}, WorkKind kind = OTHER) {
    if (s->graph) {
        s->graph->nodes.push_back({std::move(run), s->tail, kind});
        s->tail = {(int)s->graph->nodes.size() - 1};
        return cudaSuccess;
    }
    if (s == default_stream()) {
        NOT_IN_CAPTURE("work on the default stream");
        cudaError_t implicit;
        if (waits_for_capture("work on the default stream", s, &implicit)) return implicit;
        for (CUstream_st *other : streams)
            if (other != s && other->blocking) after.push_back(end_of(other));
    } else if (s->blocking) {
        after.push_back(end_of(default_stream()));
    }
    s->queue.push_back({std::move(run), std::move(after), kind});
    s->progress->pushed++;
    if (at_once()) drain_now(end_of(s));
    return cudaSuccess;
}

/* ---- launches ---- */

static std::map<const void *, int> dynamic_limit;       /* by kernel */
std::vector<Launch> *plan;
unsigned long long emu_waits, emu_graphs;

cudaError_t func_set_attribute(const void *f, cudaFuncAttribute a, int value) {
    DEVICE;
    if (a != cudaFuncAttributeMaxDynamicSharedMemorySize) return cudaSuccess;
    /* CUDA refuses what leaves no room for the kernel's static shared memory; that is not known here: 512 bytes are taken for it. */
    if (value < 0 || (size_t)value + 512 > shared_optin()) return result(cudaErrorInvalidValue);
    dynamic_limit[f] = value;
    return cudaSuccess;
}

static size_t limit_of(const void *f) {
    auto i = dynamic_limit.find(f);
    return i == dynamic_limit.end() ? 48 * 1024 : (size_t)i->second;
}

cudaError_t func_get_attributes(cudaFuncAttributes *a, const void *f) {
    DEVICE;
    *a = {};
    a->maxThreadsPerBlock = 1024;
    a->numRegs = 64;
    int major, minor;
    capability(&major, &minor);
    a->ptxVersion = a->binaryVersion = 10 * major + minor;
    a->maxDynamicSharedSizeBytes = (int)limit_of(f);
    return cudaSuccess;
}

cudaError_t occupancy(int *blocks_per_sm, const void *f, int threads, size_t shared) {
    DEVICE;
    if (threads < 1 || threads > 1024 || shared > limit_of(f)) return *blocks_per_sm = 0, cudaSuccess;
    /* SHARED's are known only when the kernel runs: before, what is left beside the dynamic limit that the program has set. */
    const size_t fixed = dynamic_limit.count(f) ? shared_optin() - limit_of(f) : 0, by_shared = shared_of_sm() / (shared + fixed + 1024);
    *blocks_per_sm = (int)std::min<size_t>({by_shared, (size_t)(1536 / ((threads + 31) / 32 * 32)), 16});
    return cudaSuccess;
}

cudaError_t enqueue(const Launch &launch, cudaStream_t s) {
    DEVICE;
    Launch l = launch;
    if (l.grid.x < 1 || l.grid.y < 1 || l.grid.z < 1 || l.grid.x > 0x7fffffff || l.grid.y > 65535 || l.grid.z > 65535 ||
        l.block.x < 1 || l.block.y < 1 || l.block.z < 1 || l.block.x > 1024 || l.block.y > 1024 || l.block.z > 64 ||
        l.block.x * l.block.y * l.block.z > 1024)
        return result(cudaErrorInvalidConfiguration);
    if ((unsigned long long)l.grid.x * l.grid.y * l.grid.z > 0xffffffff)
        return wrong(cudaErrorInvalidConfiguration, l.name, "more blocks than can be emulated");
    if (l.shared > limit_of(l.kernel)) return result(cudaErrorInvalidValue);
    if (l.cluster < 1 || l.cluster > 8 || l.grid.x % l.cluster || (l.cluster > 1 && !can_overlap()))
        return wrong(cudaErrorInvalidConfiguration, l.name, "clusters that the grid is no multiple of, or before sm_90");
    if (l.cluster > 1 && (l.cluster * l.block.x * l.block.y * l.block.z > 1024 || l.block.x * l.block.y * l.block.z % 32))
        return wrong(cudaErrorInvalidConfiguration, l.name, "a larger cluster than can be emulated");
    l.shared_limit = dynamic_limit.count(l.kernel) ? shared_optin() : 48 * 1024;
    if (plan) return plan->push_back(l), cudaSuccess;
    return result(push(stream(s), [l] { n_launches++; run_grid(l, ahead); }, {}, KERNEL));
}

/* ---- copies ---- */

/* Device memory, all of it inside one allocation?  -1: overlaps one without being inside. */
static int on_device(const void *p, size_t bytes, bool *pinned) {
    auto i = block_of(p);
    *pinned = false;
    if (i == blocks.end()) {
        auto next = blocks.upper_bound((uintptr_t)p);
        return next != blocks.end() && next->first < (uintptr_t)p + bytes && next->second.kind == DEVICE_MEMORY ? -1 : 0;
    }
    bool inside = (uintptr_t)p + bytes <= i->first + i->second.bytes;
    if (i->second.kind == PINNED || i->second.kind == REGISTERED) return *pinned = inside, i->second.kind == PINNED && !inside ? -1 : 0;
    return inside ? 1 : -1;
}

static cudaError_t copy(const char *call, void *to, size_t to_pitch, const void *from, size_t from_pitch, size_t width, size_t height,
                        cudaMemcpyKind kind, cudaStream_t handle, bool wait) {
    DEVICE;
    CUstream_st *s = stream(handle);
    if (wait) NOT_IN_CAPTURE(call);
    if (width == 0 || height == 0) return cudaSuccess;
    if (to_pitch < width || from_pitch < width) return wrong(cudaErrorInvalidValue, call, "rows that overlap");
    size_t to_bytes = (height - 1) * to_pitch + width, from_bytes = (height - 1) * from_pitch + width;
    bool to_pinned, from_pinned;
    int to_device = on_device(to, to_bytes, &to_pinned), from_device = on_device(from, from_bytes, &from_pinned);
    if (to_device < 0) return wrong(cudaErrorInvalidValue, call, "the destination reaches beyond its allocation");
    if (from_device < 0) return wrong(cudaErrorInvalidValue, call, "the source reaches beyond its allocation");
    bool want_to = kind == cudaMemcpyHostToDevice || kind == cudaMemcpyDeviceToDevice;
    bool want_from = kind == cudaMemcpyDeviceToHost || kind == cudaMemcpyDeviceToDevice;
    if (kind != cudaMemcpyDefault && (want_to != (to_device == 1) || want_from != (from_device == 1)))
        return wrong(cudaErrorInvalidValue, call, "the kind does not fit the pointers");
    if (plan) return cudaSuccess;
    auto run = [=] {
        for (size_t i = 0; i < height; i++) memcpy((char *)to + i * to_pitch, (const char *)from + i * from_pitch, width);
    };
    /* Memory that is not page-locked: the call may be through with it when it returns, or not, "might be synchronous". */
    bool late = !s->graph && !wait && random(2);
    if (!s->graph && !wait && to_device && !from_device && !from_pinned && !late) {
        auto kept = std::make_shared<std::vector<char>>(from_bytes);
        memcpy(kept->data(), from, from_bytes);
        return result(push(s, [=] {
            for (size_t i = 0; i < height; i++) memcpy((char *)to + i * to_pitch, kept->data() + i * from_pitch, width);
        }));
    }
    cudaError_t e = push(s, run);
    if (e == cudaSuccess && !s->graph && (wait || (!to_device && !to_pinned && !late))) drain(end_of(s));
    return result(e);
}

cudaError_t copy_symbol(void *symbol, size_t size, void *host, size_t bytes, size_t offset, bool to_symbol, bool wait, cudaStream_t s) {
    API;
    if (offset + bytes > size) return wrong(cudaErrorInvalidValue, "cudaMemcpyToSymbol", "beyond the symbol");
    know_symbol(symbol, size);
    char *p = (char *)symbol + offset;
    return to_symbol ? copy("cudaMemcpyToSymbol", p, bytes, host, bytes, bytes, 1, cudaMemcpyHostToDevice, s, wait)
                     : copy("cudaMemcpyFromSymbol", host, bytes, p, bytes, bytes, 1, cudaMemcpyDeviceToHost, s, wait);
}

void know_symbol(void *symbol, size_t size) {
    API;
    blocks[(uintptr_t)symbol] = {size, SYMBOL};
}

static cudaError_t set(const char *call, void *p, int byte, size_t bytes, cudaStream_t s) {
    DEVICE;
    bool pinned;
    if (bytes == 0) return cudaSuccess;
    if (on_device(p, bytes, &pinned) != 1) return wrong(cudaErrorInvalidValue, call, "not inside device memory");
    return plan ? cudaSuccess : result(push(stream(s), [=] { memset(p, byte, bytes); }));
}

}

using namespace emu;

/* ---- errors ---- */

static const struct { cudaError_t e; const char *name, *text; } errors[] = {
    {cudaSuccess, "cudaSuccess", "no error"},
    {cudaErrorInvalidValue, "cudaErrorInvalidValue", "invalid argument"},
    {cudaErrorMemoryAllocation, "cudaErrorMemoryAllocation", "out of memory"},
    {cudaErrorInvalidConfiguration, "cudaErrorInvalidConfiguration", "invalid configuration argument"},
    {cudaErrorNoDevice, "cudaErrorNoDevice", "no CUDA-capable device is detected"},
    {cudaErrorInvalidDevice, "cudaErrorInvalidDevice", "invalid device ordinal"},
    {cudaErrorInvalidResourceHandle, "cudaErrorInvalidResourceHandle", "invalid resource handle"},
    {cudaErrorNotReady, "cudaErrorNotReady", "device not ready"},
    {cudaErrorNotSupported, "cudaErrorNotSupported", "operation not supported"},
    {cudaErrorStreamCaptureUnsupported, "cudaErrorStreamCaptureUnsupported", "operation not permitted when stream is capturing"},
    {cudaErrorStreamCaptureInvalidated, "cudaErrorStreamCaptureInvalidated", "operation failed due to a previous error during capture"},
    {cudaErrorStreamCaptureImplicit, "cudaErrorStreamCaptureImplicit", "operation would make the legacy stream depend on a capturing blocking stream"},
    {cudaErrorStreamCaptureUnjoined, "cudaErrorStreamCaptureUnjoined", "capturing stream has unjoined work"},
};
const char *cudaGetErrorString(cudaError_t e) {
    for (auto &x : errors)
        if (x.e == e) return x.text;
    return "unrecognized error code";
}
const char *cudaGetErrorName(cudaError_t e) {
    for (auto &x : errors)
        if (x.e == e) return x.name;
    return "unrecognized error code";
}
cudaError_t cudaGetLastError() { API; return std::exchange(last_error, cudaSuccess); }
cudaError_t cudaPeekAtLastError() { API; return last_error; }

/* ---- the device ---- */

cudaError_t cudaGetDeviceCount(int *n) {
    API;
    *n = no_device() ? 0 : 1;
    return *n ? cudaSuccess : result(cudaErrorNoDevice);
}
cudaError_t cudaGetDevice(int *device) { DEVICE; return *device = 0, cudaSuccess; }
cudaError_t cudaSetDevice(int device) { DEVICE; return device == 0 ? cudaSuccess : result(cudaErrorInvalidDevice); }

cudaError_t cudaGetDeviceProperties(cudaDeviceProp *p, int device) {
    DEVICE;
    if (device != 0) return result(cudaErrorInvalidDevice);
    *p = {};
    strcpy(p->name, "emulated GPU");
    p->totalGlobalMem = total_memory();
    p->sharedMemPerBlock = 48 * 1024;
    p->sharedMemPerBlockOptin = shared_optin();
    p->sharedMemPerMultiprocessor = shared_of_sm();
    p->reservedSharedMemPerBlock = 1024;
    p->regsPerBlock = p->regsPerMultiprocessor = 65536;
    p->warpSize = 32;
    p->maxThreadsPerBlock = 1024;
    p->maxThreadsPerMultiProcessor = 1536;
    p->maxBlocksPerMultiProcessor = 16;
    p->maxThreadsDim[0] = p->maxThreadsDim[1] = 1024, p->maxThreadsDim[2] = 64;
    p->maxGridSize[0] = 0x7fffffff, p->maxGridSize[1] = p->maxGridSize[2] = 65535;
    p->totalConstMem = 65536;
    capability(&p->major, &p->minor);
    p->multiProcessorCount = (int)setting("EMU_SMS", 8);
    p->l2CacheSize = 6 << 20;
    p->memoryBusWidth = 384;
    p->integrated = setting("EMU_FILES", 0) > 0;
    p->pageableMemoryAccess = (int)setting("EMU_PAGEABLE", 0);
    p->canMapHostMemory = p->concurrentKernels = p->unifiedAddressing = 1;
    p->kernelExecTimeoutEnabled = (int)setting("EMU_TIMEOUT", 0);
    p->asyncEngineCount = 2;
    return cudaSuccess;
}
cudaError_t cudaDeviceGetAttribute(int *value, cudaDeviceAttr a, int device) {
    cudaDeviceProp p;
    cudaError_t e = cudaGetDeviceProperties(&p, device);
    if (e != cudaSuccess) return e;
    switch (a) {
    case cudaDevAttrMaxThreadsPerBlock: *value = p.maxThreadsPerBlock; break;
    case cudaDevAttrMaxSharedMemoryPerBlock: *value = (int)p.sharedMemPerBlock; break;
    case cudaDevAttrWarpSize: *value = p.warpSize; break;
    case cudaDevAttrMultiProcessorCount: *value = p.multiProcessorCount; break;
    case cudaDevAttrKernelExecTimeout: *value = p.kernelExecTimeoutEnabled; break;
    case cudaDevAttrIntegrated: *value = p.integrated; break;
    case cudaDevAttrPageableMemoryAccess: *value = p.pageableMemoryAccess; break;
    case cudaDevAttrL2CacheSize: *value = p.l2CacheSize; break;
    case cudaDevAttrComputeCapabilityMajor: *value = p.major; break;
    case cudaDevAttrComputeCapabilityMinor: *value = p.minor; break;
    case cudaDevAttrMaxSharedMemoryPerMultiprocessor: *value = (int)p.sharedMemPerMultiprocessor; break;
    case cudaDevAttrCooperativeLaunch: *value = 0; break;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin: *value = (int)p.sharedMemPerBlockOptin; break;
    default: return result(cudaErrorInvalidValue);
    }
    return cudaSuccess;
}
cudaError_t cudaRuntimeGetVersion(int *version) { return *version = 13000, cudaSuccess; }
cudaError_t cudaDriverGetVersion(int *version) { return *version = no_device() ? 0 : 13000, cudaSuccess; }
cudaError_t cudaDeviceSynchronize() {
    DEVICE;
    NOT_IN_CAPTURE("cudaDeviceSynchronize");
    emu_waits++;
    drain_all();
    return cudaSuccess;
}
/* Refuses what the driver API's reference forbids in "Tensor Map Object Management", and memory that is not the device's. */
CUresult cuTensorMapEncodeTiled(CUtensorMap *map, CUtensorMapDataType, cuuint32_t rank, void *data, const cuuint64_t *size,
                                const cuuint64_t *pitch, const cuuint32_t *box, const cuuint32_t *step, CUtensorMapInterleave,
                                CUtensorMapSwizzle swizzle, CUtensorMapL2promotion, CUtensorMapFloatOOBfill) {
    API;
    bool pinned;
    const char *why = rank != 2 ? "a matrix has two dimensions"
        : (uintptr_t)data % 16 || pitch[0] % 16 || pitch[0] >> 40 ? "unaligned"
        : !size[0] || !size[1] || (size[0] - 1) >> 32 || (size[1] - 1) >> 32 || pitch[0] < size[0] ? "the size"
        : !box[0] || !box[1] || box[0] > 256 || box[1] > 256 || box[0] % 16 || step[0] != 1 || step[1] != 1 ? "the box"
        : swizzle == CU_TENSOR_MAP_SWIZZLE_128B && box[0] > 128 ? "a box wider than the swizzle"
        : on_device(data, (size[1] - 1) * pitch[0] + size[0], &pinned) != 1 ? "not inside device memory" : nullptr;
    if (why) {
        if (!quiet) fprintf(stderr, "emu: cuTensorMapEncodeTiled: %s\n", why);
        return CUDA_ERROR_INVALID_VALUE;
    }
    *map = {IS_MAP, (const unsigned char *)data, size[0], size[1], pitch[0], box[0], box[1], swizzle};
    return CUDA_SUCCESS;
}
cudaError_t cudaGetDriverEntryPointByVersion(const char *symbol, void **function, unsigned, unsigned long long,
                                             cudaDriverEntryPointQueryResult *found) {
    DEVICE;
    const bool known = !strcmp(symbol, "cuTensorMapEncodeTiled");
    *function = known ? (void *)cuTensorMapEncodeTiled : nullptr;
    if (found) *found = known ? cudaDriverEntryPointSuccess : cudaDriverEntryPointSymbolNotFound;
    return cudaSuccess;
}
cudaError_t cudaDeviceReset() { return cudaDeviceSynchronize(); }
cudaError_t cudaMemGetInfo(size_t *free_bytes, size_t *total) {
    DEVICE;
    size_t used = in_use + (size_t)setting("EMU_FILES", 0);
    *total = total_memory();
    *free_bytes = *total > used ? *total - used : 0;
    return cudaSuccess;
}

/* ---- memory ---- */

static cudaError_t only_addresses(void **p, size_t bytes) {
    *p = mmap(nullptr, bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (*p == MAP_FAILED) return *p = nullptr, cudaErrorMemoryAllocation;
    blocks[(uintptr_t)*p] = {bytes, DEVICE_MEMORY};
    in_use += bytes;
    return cudaSuccess;
}

static cudaError_t allocate(void **p, size_t bytes, Kind kind) {
    *p = nullptr;
    if (bytes == 0) return cudaSuccess;
    if (kind == DEVICE_MEMORY && (in_use > total_memory() || bytes > total_memory() - in_use)) return result(cudaErrorMemoryAllocation);
    if (kind == DEVICE_MEMORY && plan) return result(only_addresses(p, bytes));
    if (kind == DEVICE_MEMORY && watching) *p = watched_memory(bytes);
    else if (posix_memalign(p, kind == DEVICE_MEMORY ? 256 : 64, bytes)) *p = nullptr;
    if (!*p) return result(cudaErrorMemoryAllocation);
    memset(*p, 0xff, bytes);
    blocks[(uintptr_t)*p] = {bytes, kind};
    if (kind == DEVICE_MEMORY) {
        in_use += bytes;
        if (open_depth == 0) guard(*p, bytes, true);
    }
    return cudaSuccess;
}
static cudaError_t release(const char *call, void *p, Kind kind) {
    if (!p) return cudaSuccess;
    auto i = blocks.find((uintptr_t)p);
    if (i == blocks.end() || i->second.kind != kind) return wrong(cudaErrorInvalidValue, call, "not allocated, or freed before");
    drain_all();
    if (kind == DEVICE_MEMORY) {
        in_use -= i->second.bytes;
        if (!plan) guard(p, i->second.bytes, false);
    }
    size_t bytes = i->second.bytes;
    blocks.erase(i);
    if (kind == DEVICE_MEMORY && plan) munmap(p, bytes);
    else if (kind == DEVICE_MEMORY && watching) forget_memory(p, bytes);
    else if (kind != REGISTERED) free(p);
    return cudaSuccess;
}
cudaError_t cudaMalloc(void **p, size_t bytes) { DEVICE; NOT_IN_CAPTURE("cudaMalloc"); return allocate(p, bytes, DEVICE_MEMORY); }
cudaError_t cudaFree(void *p) { DEVICE; NOT_IN_CAPTURE("cudaFree"); return release("cudaFree", p, DEVICE_MEMORY); }
cudaError_t cudaMallocHost(void **p, size_t bytes, unsigned) { DEVICE; NOT_IN_CAPTURE("cudaMallocHost"); return allocate(p, bytes, PINNED); }
cudaError_t cudaFreeHost(void *p) { DEVICE; NOT_IN_CAPTURE("cudaFreeHost"); return release("cudaFreeHost", p, PINNED); }
cudaError_t cudaHostRegister(void *p, size_t bytes, unsigned) {
    DEVICE;
    if (!p || !bytes || block_of(p) != blocks.end()) return result(cudaErrorInvalidValue);
    blocks[(uintptr_t)p] = {bytes, REGISTERED};
    return cudaSuccess;
}
cudaError_t cudaHostUnregister(void *p) { DEVICE; return release("cudaHostUnregister", p, REGISTERED); }

cudaError_t cudaMemcpy(void *to, const void *from, size_t bytes, cudaMemcpyKind kind) {
    return copy("cudaMemcpy", to, bytes, from, bytes, bytes, 1, kind, nullptr, true);
}
cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t bytes, cudaMemcpyKind kind, cudaStream_t s) {
    return copy("cudaMemcpyAsync", to, bytes, from, bytes, bytes, 1, kind, s, false);
}
cudaError_t cudaMemcpy2D(void *to, size_t to_pitch, const void *from, size_t from_pitch, size_t width, size_t height, cudaMemcpyKind kind) {
    return copy("cudaMemcpy2D", to, to_pitch, from, from_pitch, width, height, kind, nullptr, true);
}
cudaError_t cudaMemcpy2DAsync(void *to, size_t to_pitch, const void *from, size_t from_pitch, size_t width, size_t height,
                              cudaMemcpyKind kind, cudaStream_t s) {
    return copy("cudaMemcpy2DAsync", to, to_pitch, from, from_pitch, width, height, kind, s, false);
}
cudaError_t cudaMemset(void *p, int byte, size_t bytes) { return set("cudaMemset", p, byte, bytes, nullptr); }
cudaError_t cudaMemsetAsync(void *p, int byte, size_t bytes, cudaStream_t s) { return set("cudaMemsetAsync", p, byte, bytes, s); }

/* ---- streams and events ---- */

cudaError_t cudaStreamCreateWithFlags(cudaStream_t *s, unsigned flags) {
    DEVICE;
    static const int drains = atexit(drain_at_exit);
    (void)drains;
    *s = new CUstream_st();
    (*s)->blocking = !(flags & cudaStreamNonBlocking);
    streams.push_back(*s);
    return cudaSuccess;
}
cudaError_t cudaStreamCreate(cudaStream_t *s) { return cudaStreamCreateWithFlags(s, cudaStreamDefault); }
cudaError_t cudaStreamCreateWithPriority(cudaStream_t *s, unsigned flags, int) { return cudaStreamCreateWithFlags(s, flags); }
cudaError_t cudaStreamDestroy(cudaStream_t s) {
    DEVICE;
    auto i = std::find(streams.begin(), streams.end(), s);
    if (!s || i == streams.end() || s->graph) return result(cudaErrorInvalidResourceHandle);
    drain(end_of(s));
    streams.erase(i);
    delete s;
    return cudaSuccess;
}
cudaError_t cudaStreamSynchronize(cudaStream_t s) {
    DEVICE;
    NOT_IN_CAPTURE("cudaStreamSynchronize");
    cudaError_t e;
    if (waits_for_capture("cudaStreamSynchronize", stream(s), &e)) return e;
    emu_waits++;
    drain(end_of(stream(s)));
    return cudaSuccess;
}
static cudaError_t query(const After &a) {
    if (a.who && a.who->done < a.n) {
        Opened opened;
        step();
    }
    return a.who && a.who->done < a.n ? result(cudaErrorNotReady) : cudaSuccess;
}
cudaError_t cudaStreamQuery(cudaStream_t s) {
    DEVICE;
    NOT_IN_CAPTURE("cudaStreamQuery");
    return query(end_of(stream(s)));
}
cudaError_t cudaLaunchHostFunc(cudaStream_t s, cudaHostFn_t f, void *data) {
    DEVICE;
    return result(push(stream(s), [=] {
        guard_all(true);
        f(data);
        guard_all(false);
    }));
}

cudaError_t cudaEventCreateWithFlags(cudaEvent_t *e, unsigned) { DEVICE; *e = new CUevent_st(); return cudaSuccess; }
cudaError_t cudaEventCreate(cudaEvent_t *e) { return cudaEventCreateWithFlags(e, cudaEventDefault); }
cudaError_t cudaEventDestroy(cudaEvent_t e) { DEVICE; delete e; return cudaSuccess; }
cudaError_t cudaEventRecord(cudaEvent_t e, cudaStream_t handle) {
    DEVICE;
    CUstream_st *s = stream(handle);
    e->graph = s->graph;
    e->nodes = s->tail;
    if (s->graph) return cudaSuccess;
    std::shared_ptr<double> time = e->time;
    cudaError_t error = push(s, [time] {
        *time = std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now().time_since_epoch()).count();
    }, {}, MARK);
    e->after = end_of(s);
    return result(error);
}
cudaError_t cudaStreamWaitEvent(cudaStream_t handle, cudaEvent_t e, unsigned) {
    DEVICE;
    CUstream_st *s = stream(handle);
    if (e->graph) {                     /* a fork or a join inside a capture */
        if (s->graph && s->graph != e->graph) return wrong(cudaErrorStreamCaptureInvalidated, "cudaStreamWaitEvent", "an event of another capture");
        s->graph = e->graph;
        s->tail.insert(s->tail.end(), e->nodes.begin(), e->nodes.end());
        return cudaSuccess;
    }
    if (s->graph) return wrong(cudaErrorStreamCaptureInvalidated, "cudaStreamWaitEvent", "a captured stream waits for an event outside");
    if (!e->after.who) return cudaSuccess;                              /* never recorded */
    return result(push(s, [] {}, {e->after}, MARK));
}
cudaError_t cudaEventSynchronize(cudaEvent_t e) {
    DEVICE;
    if (e->graph) return wrong(cudaErrorStreamCaptureUnsupported, "cudaEventSynchronize", "the event was recorded in a capture");
    emu_waits++;
    if (e->after.who) drain(e->after);
    return cudaSuccess;
}
cudaError_t cudaEventQuery(cudaEvent_t e) {
    DEVICE;
    if (e->graph) return wrong(cudaErrorStreamCaptureUnsupported, "cudaEventQuery", "the event was recorded in a capture");
    return query(e->after);
}
cudaError_t cudaEventElapsedTime(float *ms, cudaEvent_t from, cudaEvent_t to) {
    DEVICE;
    if (!from->after.who || !to->after.who) return result(cudaErrorInvalidResourceHandle);
    if (from->after.who->done < from->after.n || to->after.who->done < to->after.n) return result(cudaErrorNotReady);
    *ms = (float)(*to->time - *from->time);
    return cudaSuccess;
}

/* ---- graphs ---- */

cudaError_t cudaStreamBeginCapture(cudaStream_t handle, cudaStreamCaptureMode mode) {
    DEVICE;
    CUstream_st *s = stream(handle);
    if (s == default_stream()) return wrong(cudaErrorStreamCaptureUnsupported, "cudaStreamBeginCapture", "the default stream");
    if (s->graph) return wrong(cudaErrorInvalidValue, "cudaStreamBeginCapture", "already capturing");
    s->graph = new CUgraph_st();
    s->graph->mode = mode;
    s->origin = true;
    s->tail.clear();
    return cudaSuccess;
}
cudaError_t cudaStreamEndCapture(cudaStream_t s, cudaGraph_t *g) {
    DEVICE;
    *g = nullptr;
    if (!s || !s->graph || !s->origin) return wrong(cudaErrorInvalidValue, "cudaStreamEndCapture", "no capture began here");
    CUgraph_st *graph = s->graph;
    /* What the end of this stream comes after, nodes being in an order that respects their dependencies. */
    std::vector<bool> joined(graph->nodes.size());
    for (int n : s->tail) joined[(size_t)n] = true;
    for (size_t i = graph->nodes.size(); i-- > 0;)
        if (joined[i])
            for (int n : graph->nodes[i].after) joined[(size_t)n] = true;
    bool all = std::all_of(joined.begin(), joined.end(), [](bool b) { return b; });
    for (CUstream_st *other : streams)
        if (other->graph == graph) other->graph = nullptr, other->origin = false, other->tail.clear();
    if (graph->broken || !all) {
        bool broken = graph->broken;
        delete graph;
        return broken ? result(cudaErrorStreamCaptureInvalidated) : wrong(cudaErrorStreamCaptureUnjoined, "cudaStreamEndCapture", "another stream was not joined");
    }
    *g = graph;
    return cudaSuccess;
}
cudaError_t cudaStreamIsCapturing(cudaStream_t s, cudaStreamCaptureStatus *status) {
    DEVICE;
    CUgraph_st *g = stream(s)->graph;
    *status = !g ? cudaStreamCaptureStatusNone : g->broken ? cudaStreamCaptureStatusInvalidated : cudaStreamCaptureStatusActive;
    return cudaSuccess;
}
cudaError_t cudaGraphInstantiate(cudaGraphExec_t *x, cudaGraph_t g, unsigned long long) {
    DEVICE;
    *x = new CUgraphExec_st{std::make_shared<std::vector<Node>>(g->nodes)};
    return cudaSuccess;
}
cudaError_t cudaGraphLaunch(cudaGraphExec_t x, cudaStream_t s) {
    DEVICE;
    auto nodes = x->nodes;
    emu_graphs++;
    return result(push(stream(s), [nodes] {
        /* In any order that the dependencies allow. */
        size_t n = nodes->size();
        std::vector<int> missing(n), able;
        std::vector<unsigned> number(n);        /* of those that are kernels */
        std::vector<std::vector<int>> then(n);
        for (size_t i = 0; i < n; i++) {
            missing[i] = (int)(*nodes)[i].after.size();
            for (int before : (*nodes)[i].after) then[(size_t)before].push_back((int)i);
            if (!missing[i]) able.push_back((int)i);
        }
        while (!able.empty()) {
            size_t k = random((unsigned)able.size()), i = (size_t)able[k];
            able[k] = able.back();
            able.pop_back();
            ahead.clear();
            for (int before : (*nodes)[i].after)
                if ((*nodes)[(size_t)before].kind == KERNEL) ahead.push_back(number[(size_t)before]);
            (*nodes)[i].run();
            number[i] = (unsigned)n_launches;
            for (int next : then[i])
                if (--missing[(size_t)next] == 0) able.push_back(next);
        }
    }, {}, GRAPH));
}
cudaError_t cudaGraphUpload(cudaGraphExec_t, cudaStream_t) { DEVICE; return cudaSuccess; }
cudaError_t cudaGraphDestroy(cudaGraph_t g) { DEVICE; delete g; return cudaSuccess; }
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t x) { DEVICE; delete x; return cudaSuccess; }
