/* emu_runtime.h - the host's side of CUDA: memory, streams, events, graphs, launches.  Part of emu.h; include that. */
#ifndef EMU_RUNTIME_H
#define EMU_RUNTIME_H

enum cudaError_t {
    cudaSuccess = 0, cudaErrorInvalidValue = 1, cudaErrorMemoryAllocation = 2, cudaErrorInitializationError = 3,
    cudaErrorInvalidConfiguration = 9, cudaErrorInvalidMemcpyDirection = 21, cudaErrorInsufficientDriver = 35,
    cudaErrorInvalidDeviceFunction = 98, cudaErrorNoDevice = 100, cudaErrorInvalidDevice = 101,
    cudaErrorNoKernelImageForDevice = 209, cudaErrorInvalidResourceHandle = 400, cudaErrorNotReady = 600,
    cudaErrorIllegalAddress = 700, cudaErrorLaunchOutOfResources = 701, cudaErrorLaunchFailure = 719,
    cudaErrorNotSupported = 801, cudaErrorStreamCaptureUnsupported = 900, cudaErrorStreamCaptureInvalidated = 901,
    cudaErrorStreamCaptureUnjoined = 904, cudaErrorStreamCaptureImplicit = 906, cudaErrorUnknown = 999
};
enum cudaDriverEntryPointQueryResult {
    cudaDriverEntryPointSuccess, cudaDriverEntryPointSymbolNotFound, cudaDriverEntryPointVersionNotSufficent
};
enum { cudaEnableDefault = 0 };
enum cudaMemcpyKind { cudaMemcpyHostToHost, cudaMemcpyHostToDevice, cudaMemcpyDeviceToHost, cudaMemcpyDeviceToDevice, cudaMemcpyDefault };
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize = 8, cudaFuncAttributePreferredSharedMemoryCarveout = 9 };
enum cudaStreamCaptureMode { cudaStreamCaptureModeGlobal, cudaStreamCaptureModeThreadLocal, cudaStreamCaptureModeRelaxed };
enum cudaStreamCaptureStatus { cudaStreamCaptureStatusNone, cudaStreamCaptureStatusActive, cudaStreamCaptureStatusInvalidated };
enum cudaDeviceAttr {
    cudaDevAttrMaxThreadsPerBlock = 1, cudaDevAttrMaxSharedMemoryPerBlock = 8, cudaDevAttrWarpSize = 10,
    cudaDevAttrMultiProcessorCount = 16, cudaDevAttrKernelExecTimeout = 17,
    cudaDevAttrIntegrated = 18, cudaDevAttrL2CacheSize = 38, cudaDevAttrComputeCapabilityMajor = 75,
    cudaDevAttrComputeCapabilityMinor = 76, cudaDevAttrMaxSharedMemoryPerMultiprocessor = 81,
    cudaDevAttrPageableMemoryAccess = 88, cudaDevAttrCooperativeLaunch = 95, cudaDevAttrMaxSharedMemoryPerBlockOptin = 97
};
enum { cudaStreamDefault = 0, cudaStreamNonBlocking = 1 };
enum { cudaEventDefault = 0, cudaEventBlockingSync = 1, cudaEventDisableTiming = 2 };
enum { cudaHostAllocDefault = 0, cudaHostAllocPortable = 1, cudaHostAllocMapped = 2, cudaHostAllocWriteCombined = 4 };
enum { cudaHostRegisterDefault = 0, cudaHostRegisterPortable = 1, cudaHostRegisterMapped = 2, cudaHostRegisterReadOnly = 8 };
enum { cudaGraphInstantiateFlagAutoFreeOnLaunch = 1 };

typedef struct CUstream_st *cudaStream_t;
typedef struct CUevent_st *cudaEvent_t;
typedef struct CUgraph_st *cudaGraph_t;
typedef struct CUgraphExec_st *cudaGraphExec_t;
typedef void (*cudaHostFn_t)(void *);
static const cudaStream_t cudaStreamLegacy = (cudaStream_t)1;

struct cudaDeviceProp {
    char name[256];
    size_t totalGlobalMem, sharedMemPerBlock, sharedMemPerBlockOptin, sharedMemPerMultiprocessor, reservedSharedMemPerBlock;
    int regsPerBlock, regsPerMultiprocessor, warpSize, maxThreadsPerBlock, maxThreadsPerMultiProcessor, maxBlocksPerMultiProcessor;
    int maxThreadsDim[3], maxGridSize[3];
    size_t totalConstMem;
    int major, minor, multiProcessorCount, l2CacheSize, persistingL2CacheMaxSize, memoryBusWidth;
    int kernelExecTimeoutEnabled;
    int integrated, pageableMemoryAccess, canMapHostMemory, concurrentKernels, asyncEngineCount, unifiedAddressing, cooperativeLaunch, ECCEnabled;
    int pciDomainID, pciBusID, pciDeviceID;
};
struct cudaFuncAttributes {
    size_t sharedSizeBytes, constSizeBytes, localSizeBytes;
    int maxThreadsPerBlock, numRegs, ptxVersion, binaryVersion, maxDynamicSharedSizeBytes;
};

const char *cudaGetErrorString(cudaError_t e);
const char *cudaGetErrorName(cudaError_t e);
cudaError_t cudaGetLastError();
cudaError_t cudaPeekAtLastError();

cudaError_t cudaGetDeviceCount(int *n);
cudaError_t cudaGetDevice(int *device);
cudaError_t cudaSetDevice(int device);
cudaError_t cudaGetDeviceProperties(cudaDeviceProp *p, int device);
cudaError_t cudaDeviceGetAttribute(int *value, cudaDeviceAttr a, int device);
cudaError_t cudaRuntimeGetVersion(int *version);
cudaError_t cudaDriverGetVersion(int *version);
cudaError_t cudaGetDriverEntryPointByVersion(const char *symbol, void **function, unsigned version, unsigned long long flags,
                                             cudaDriverEntryPointQueryResult *found = nullptr);
cudaError_t cudaDeviceSynchronize();
cudaError_t cudaDeviceReset();
cudaError_t cudaMemGetInfo(size_t *free_bytes, size_t *total);

cudaError_t cudaMalloc(void **p, size_t bytes);
cudaError_t cudaFree(void *p);
cudaError_t cudaMallocHost(void **p, size_t bytes, unsigned flags = 0);
cudaError_t cudaFreeHost(void *p);
cudaError_t cudaHostRegister(void *p, size_t bytes, unsigned flags);
cudaError_t cudaHostUnregister(void *p);
template <class T> inline cudaError_t cudaMalloc(T **p, size_t bytes) { return cudaMalloc((void **)p, bytes); }
template <class T> inline cudaError_t cudaMallocHost(T **p, size_t bytes, unsigned flags = 0) { return cudaMallocHost((void **)p, bytes, flags); }
template <class T> inline cudaError_t cudaHostAlloc(T **p, size_t bytes, unsigned flags) { return cudaMallocHost((void **)p, bytes, flags); }

/* Async: from and to memory of the host that is not cudaMallocHost's, a copy happens, by chance, before the call returns or later, as
 * CUDA promises neither ("API synchronization behavior"). */
cudaError_t cudaMemcpy(void *to, const void *from, size_t bytes, cudaMemcpyKind kind);
cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t bytes, cudaMemcpyKind kind, cudaStream_t s = 0);
cudaError_t cudaMemcpy2D(void *to, size_t to_pitch, const void *from, size_t from_pitch, size_t width, size_t height, cudaMemcpyKind kind);
cudaError_t cudaMemcpy2DAsync(void *to, size_t to_pitch, const void *from, size_t from_pitch, size_t width, size_t height,
                              cudaMemcpyKind kind, cudaStream_t s = 0);
cudaError_t cudaMemset(void *p, int byte, size_t bytes);
cudaError_t cudaMemsetAsync(void *p, int byte, size_t bytes, cudaStream_t s = 0);

namespace emu {
cudaError_t copy_symbol(void *symbol, size_t size, void *host, size_t bytes, size_t offset, bool to_symbol, bool wait, cudaStream_t s);
void know_symbol(void *symbol, size_t size);
}
template <class T> inline cudaError_t cudaMemcpyToSymbol(T &symbol, const void *from, size_t bytes, size_t offset = 0, cudaMemcpyKind = cudaMemcpyHostToDevice) {
    return emu::copy_symbol((void *)&symbol, sizeof symbol, (void *)from, bytes, offset, true, true, 0);
}
template <class T> inline cudaError_t cudaMemcpyToSymbolAsync(T &symbol, const void *from, size_t bytes, size_t offset, cudaMemcpyKind, cudaStream_t s = 0) {
    return emu::copy_symbol((void *)&symbol, sizeof symbol, (void *)from, bytes, offset, true, false, s);
}
template <class T> inline cudaError_t cudaMemcpyFromSymbol(void *to, T &symbol, size_t bytes, size_t offset = 0, cudaMemcpyKind = cudaMemcpyDeviceToHost) {
    return emu::copy_symbol((void *)&symbol, sizeof symbol, to, bytes, offset, false, true, 0);
}
template <class T> inline cudaError_t cudaGetSymbolAddress(void **p, T &symbol) {
    emu::know_symbol(*p = (void *)&symbol, sizeof symbol);
    return cudaSuccess;
}

cudaError_t cudaStreamCreate(cudaStream_t *s);
cudaError_t cudaStreamCreateWithFlags(cudaStream_t *s, unsigned flags);
cudaError_t cudaStreamCreateWithPriority(cudaStream_t *s, unsigned flags, int priority);
cudaError_t cudaStreamDestroy(cudaStream_t s);
cudaError_t cudaStreamSynchronize(cudaStream_t s);
cudaError_t cudaStreamQuery(cudaStream_t s);
cudaError_t cudaStreamWaitEvent(cudaStream_t s, cudaEvent_t e, unsigned flags = 0);
cudaError_t cudaLaunchHostFunc(cudaStream_t s, cudaHostFn_t f, void *data);

cudaError_t cudaEventCreate(cudaEvent_t *e);
cudaError_t cudaEventCreateWithFlags(cudaEvent_t *e, unsigned flags);
cudaError_t cudaEventDestroy(cudaEvent_t e);
cudaError_t cudaEventRecord(cudaEvent_t e, cudaStream_t s = 0);
cudaError_t cudaEventSynchronize(cudaEvent_t e);
cudaError_t cudaEventQuery(cudaEvent_t e);
cudaError_t cudaEventElapsedTime(float *ms, cudaEvent_t from, cudaEvent_t to);

cudaError_t cudaStreamBeginCapture(cudaStream_t s, cudaStreamCaptureMode mode);
cudaError_t cudaStreamEndCapture(cudaStream_t s, cudaGraph_t *g);
cudaError_t cudaStreamIsCapturing(cudaStream_t s, cudaStreamCaptureStatus *status);
cudaError_t cudaGraphInstantiate(cudaGraphExec_t *x, cudaGraph_t g, unsigned long long flags = 0);
cudaError_t cudaGraphLaunch(cudaGraphExec_t x, cudaStream_t s);
cudaError_t cudaGraphUpload(cudaGraphExec_t x, cudaStream_t s);
cudaError_t cudaGraphDestroy(cudaGraph_t g);
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t x);

namespace emu {

struct Launch {
    const char *name;
    const void *kernel;
    dim3 grid, block;
    size_t shared, shared_limit;        /* dynamic; with SHARED's */
    unsigned cluster;                   /* blocks of one */
    bool dependent;                     /* launched with programmatic dependent launch: from sm_90 on, GPU_LAUNCH's are */
    std::shared_ptr<void> call;         /* the kernel and its arguments */
    void (*thread)(void *call);         /* runs one thread */
};
/* Runs it now: what a stream does when its turn has come.  ahead: by their numbers, the kernels that may still run when this one begins. */
void run_grid(const Launch &launch, const std::vector<unsigned> &ahead);
cudaError_t enqueue(const Launch &launch, cudaStream_t s);
bool can_overlap();                     /* from sm_90 on */
cudaError_t func_set_attribute(const void *f, cudaFuncAttribute a, int value);
cudaError_t func_get_attributes(cudaFuncAttributes *a, const void *f);
cudaError_t occupancy(int *blocks, const void *f, int threads, size_t shared);
/* Unless NULL: launches and copies are checked, as ever, and launches noted here, but nothing runs, and device memory is addresses
 * only.  To be set before any is taken. */
extern std::vector<Launch> *plan;
size_t allocated();                     /* bytes of device memory not freed yet */
extern bool quiet;                      /* no line on stderr when a call is wrong: for tests that make it so */
unsigned long long launches();          /* grids run so far, graphs' included; the running one's number */
/* So far: calls of cudaStreamSynchronize, cudaEventSynchronize and cudaDeviceSynchronize; launches
 * of graphs. */
extern "C" unsigned long long emu_waits, emu_graphs;
/* device_begin says what the device does next.  device_run begins it, or goes on with it, as far as
 * the device comes without the host.  True: it has ended. */
void device_begin(std::function<void()> work);
bool device_run();

template <class... P> struct Call {
    void (*kernel)(P...);
    std::tuple<P...> arguments;
    static void thread(void *call) {
        const Call *c = (const Call *)call;
        std::apply(c->kernel, c->arguments);
    }
};

template <class... P, class... A>
inline Launch prepare(const char *name, void (*kernel)(P...), dim3 grid, dim3 block, size_t shared, A &&...a) {
    static_assert(sizeof...(P) == sizeof...(A), "the kernel takes another number of arguments");
    static_assert((std::is_trivially_copyable<P>::value && ...), "a kernel's arguments are copied as bytes");
    std::shared_ptr<void> call(new Call<P...>{kernel, std::tuple<P...>(static_cast<P>(a)...)}, [](void *p) { delete (Call<P...> *)p; });
    return {name, (const void *)kernel, grid, block, shared, 0, 1, false, call, Call<P...>::thread};
}
template <class... P, class... A>
inline cudaError_t launch_clusters(int cluster, const char *name, void (*kernel)(P...), dim3 grid, dim3 block, size_t shared, cudaStream_t s, A &&...a) {
    Launch l = prepare(name, kernel, grid, block, shared, std::forward<A>(a)...);
    l.cluster = (unsigned)cluster;
    l.dependent = can_overlap();
    return enqueue(l, s);
}
template <class... P, class... A>
inline cudaError_t launch(const char *name, void (*kernel)(P...), dim3 grid, dim3 block, size_t shared, cudaStream_t s, A &&...a) {
    return launch_clusters(1, name, kernel, grid, block, shared, s, std::forward<A>(a)...);
}

}

template <class... P> inline cudaError_t cudaFuncSetAttribute(void (*f)(P...), cudaFuncAttribute a, int value) {
    return emu::func_set_attribute((const void *)f, a, value);
}
static inline cudaError_t cudaFuncSetAttribute(const void *f, cudaFuncAttribute a, int value) { return emu::func_set_attribute(f, a, value); }
static inline cudaError_t cudaFuncGetAttributes(cudaFuncAttributes *a, const void *f) {
    return emu::func_get_attributes(a, f);
}
template <class... P> inline cudaError_t cudaFuncGetAttributes(cudaFuncAttributes *a, void (*f)(P...)) {
    return emu::func_get_attributes(a, (const void *)f);
}
template <class... P> inline cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int *blocks, void (*f)(P...), int threads, size_t shared) {
    return emu::occupancy(blocks, (const void *)f, threads, shared);
}
static inline cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int *blocks, const void *f, int threads, size_t shared) {
    return emu::occupancy(blocks, f, threads, shared);
}

/* The launch that can carry attributes.  Programmatic dependent launch is plain stream order here, but its kernel must call
 * ptx_grid_wait: else it could finish, and let the next one begin, before the one ahead of it has.  Clusters lie along x. */
enum cudaLaunchAttributeID { cudaLaunchAttributeIgnore = 0, cudaLaunchAttributeClusterDimension = 4, cudaLaunchAttributeProgrammaticStreamSerialization = 6 };
union cudaLaunchAttributeValue {
    int programmaticStreamSerializationAllowed;
    struct { unsigned x, y, z; } clusterDim;
};
struct cudaLaunchAttribute { cudaLaunchAttributeID id; cudaLaunchAttributeValue val; };
struct cudaLaunchConfig_t {
    dim3 gridDim, blockDim;
    size_t dynamicSmemBytes;
    cudaStream_t stream;
    cudaLaunchAttribute *attrs;
    unsigned numAttrs;
};
namespace emu {
template <class... P, class... A>
inline cudaError_t launch_with(const char *text, const cudaLaunchConfig_t *c, void (*kernel)(P...), A &&...a) {
    Launch l = prepare(text, kernel, c->gridDim, c->blockDim, c->dynamicSmemBytes, std::forward<A>(a)...);
    for (unsigned i = 0; i < c->numAttrs; i++) {
        if (c->attrs[i].id == cudaLaunchAttributeClusterDimension) {
            if (c->attrs[i].val.clusterDim.y != 1 || c->attrs[i].val.clusterDim.z != 1) return cudaErrorNotSupported;
            l.cluster = c->attrs[i].val.clusterDim.x;
        }
        if (c->attrs[i].id == cudaLaunchAttributeProgrammaticStreamSerialization) l.dependent = c->attrs[i].val.programmaticStreamSerializationAllowed;
    }
    return enqueue(l, c->stream);
}
}
/* Of libcuda: tensor maps, of matrices of bytes alone.  What the map has in it is the emulation's own. */
typedef unsigned cuuint32_t;
typedef unsigned long long cuuint64_t;
enum CUresult { CUDA_SUCCESS = 0, CUDA_ERROR_INVALID_VALUE = 1 };
enum CUtensorMapDataType { CU_TENSOR_MAP_DATA_TYPE_UINT8 };
enum CUtensorMapInterleave { CU_TENSOR_MAP_INTERLEAVE_NONE };
enum CUtensorMapSwizzle { CU_TENSOR_MAP_SWIZZLE_NONE, CU_TENSOR_MAP_SWIZZLE_128B = 3 };
enum CUtensorMapL2promotion { CU_TENSOR_MAP_L2_PROMOTION_NONE, CU_TENSOR_MAP_L2_PROMOTION_L2_256B = 3 };
enum CUtensorMapFloatOOBfill { CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE };
struct CUtensorMap {
    uint64_t mark;
    const unsigned char *data;
    unsigned long long bytes, rows, pitch;              /* of a row; how many; from one to the next */
    unsigned box_bytes, box_rows, swizzle;
};
CUresult cuTensorMapEncodeTiled(CUtensorMap *map, CUtensorMapDataType type, cuuint32_t rank, void *data, const cuuint64_t *size,
                                const cuuint64_t *pitch, const cuuint32_t *box, const cuuint32_t *step, CUtensorMapInterleave interleave,
                                CUtensorMapSwizzle swizzle, CUtensorMapL2promotion promotion, CUtensorMapFloatOOBfill fill);
namespace emu { static const uint64_t IS_MAP = 0x70616d726f736e65; }

#define cudaLaunchKernelEx(...) emu::launch_with(#__VA_ARGS__, __VA_ARGS__)

#endif
