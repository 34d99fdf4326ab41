/* test_hand_over.cpp - handover.cu and handover.c alone: a model of few numbers, of which the CPU
 * computes a part of each layer.
 *
 * As tsan_hand_over it is compiled with -fsanitize=thread, and looks for races between the kernels
 * and the CPU.  The kernels then run in one thread of the host, the one that waits for the stream,
 * while another one is the CPU. */
#include "../../handover.cu"

#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <thread>
#include <vector>

#ifdef __SANITIZE_THREAD__
#include <sanitizer/common_interface_defs.h>
#endif

extern "C" {
#include <cmocka.h>
}

#define OK(call) assert_string_equal(cudaGetErrorName(call), "cudaSuccess")

enum { LAYERS = 3, HIDDEN = 37, TOKENS = 2, TOP_K = 3, THREADS_EACH = 64 };
enum { X = HIDDEN * TOKENS, CHOICES = TOP_K * TOKENS };

/* What the GPU computes of a layer: x from the sum of the layer before, and a choice.  These are
 * whole numbers, so that nothing is rounded. */
static inline float next_x(float x, float sum, int i) {
    return (float)(((int)x * 3 + (int)sum + i) % 1009);
}
static inline int next_expert(int expert) { return (expert * 5 + 1) % 128; }

__global__ static void layer_kernel(float *x, int *expert, float *weight, const float *sum) {
    ptx_grid_wait();
    ptx_grid_launch_dependents();
    for (int i = threadIdx.x; i < X; i += blockDim.x) x[i] = next_x(x[i], sum[i], i);
    for (int i = threadIdx.x; i < CHOICES; i += blockDim.x) {
        expert[i] = next_expert(expert[i]);
        weight[i] = (float)(expert[i] % 7);
    }
}

/* What the CPU computes of a layer. */
static void sum_of(const float *x, const int *expert, const float *weight, float *sum) {
    for (int i = 0; i < X; i++) {
        float s = x[i];
        for (int k = i / HIDDEN * TOP_K; k < (i / HIDDEN + 1) * TOP_K; k++)
            s += (float)expert[k] * weight[k];
        sum[i] = (float)((int)s % 1009);
    }
}

/* The model without a GPU. */
struct Oracle {
    float x[X] = {}, weight[CHOICES] = {}, sum[X] = {};
    int expert[CHOICES] = {};

    void step() {
        for (int l = 0; l < LAYERS; l++) {
            for (int i = 0; i < X; i++) x[i] = next_x(x[i], sum[i], i);
            for (int i = 0; i < CHOICES; i++) {
                expert[i] = next_expert(expert[i]);
                weight[i] = (float)(expert[i] % 7);
            }
            sum_of(x, expert, weight, sum);
        }
    }
};

static int look(void *stream) {
    if (cudaStreamQuery((cudaStream_t)stream) == cudaSuccess) return 1;
    assert_int_equal(cudaGetLastError(), cudaErrorNotReady);
    return 0;
}
static int look_away(void *) { return 0; }

/* The model with one; a step is a graph.  `n` hand-overs were before. */
struct Rig {
    HandOver h = {};
    cudaStream_t stream;
    cudaGraphExec_t graph;
    float *x, *weight, *sum, *seen;
    int *expert;
    unsigned *given, n;

    explicit Rig(unsigned n) : n(n) {
        Error err;
        Config c = {};
        c.hidden = HIDDEN;
        c.top_k = TOP_K;
        OK(cudaStreamCreate(&stream));
        OK(cudaMalloc(&x, sizeof(float) * X));
        OK(cudaMalloc(&sum, sizeof(float) * X));
        OK(cudaMalloc(&weight, sizeof(float) * CHOICES));
        OK(cudaMalloc(&expert, sizeof(int) * CHOICES));
        OK(cudaMalloc(&given, sizeof(unsigned)));
        OK(cudaMallocHost(&seen, sizeof(float) * X));
        OK(cudaMemset(x, 0, sizeof(float) * X));
        OK(cudaMemset(sum, 0, sizeof(float) * X));
        OK(cudaMemset(expert, 0, sizeof(int) * CHOICES));
        OK(cudaMemcpy(given, &n, sizeof n, cudaMemcpyHostToDevice));
        assert_int_equal(hand_over_take(&h, TOKENS, &c, &err), 0);
        record();
    }
    void launch() {
        const dim3 one(1), threads(THREADS_EACH);
        for (int l = 0; l < LAYERS; l++) {
            GPU_LAUNCH(layer_kernel, one, threads, 0, stream, x, expert, weight, sum);
            GPU_LAUNCH(hand_over_kernel, one, threads, 0, stream, x, X, expert, weight, CHOICES, h,
                       given);
            GPU_LAUNCH(take_sum_kernel, one, threads, 0, stream, h, given, sum, X);
        }
        OK(cudaMemcpyAsync(seen, x, sizeof(float) * X, cudaMemcpyDeviceToHost, stream));
    }
    void record() {
        cudaGraph_t recorded;
        OK(cudaStreamBeginCapture(stream, cudaStreamCaptureModeRelaxed));
        launch();
        OK(cudaStreamEndCapture(stream, &recorded));
        OK(cudaGraphInstantiate(&graph, recorded, 0));
        OK(cudaGraphDestroy(recorded));
    }
    void serve(LookFn *looks) {
        for (int l = 0; l < LAYERS; l++) {
            if (hand_over_await(&h, ++n, looks, stream)) abort();
            sum_of(h.x, h.expert, h.weight, h.sum);
            hand_over_answer(&h, n);
        }
    }
    ~Rig() {
        cudaGraphExecDestroy(graph);
        cudaStreamDestroy(stream);
        hand_over_give(&h);
        for (float *p : {x, sum, weight}) cudaFree(p);
        cudaFree(expert);
        cudaFree(given);
        cudaFreeHost(seen);
    }
};

/* One thread launches a step as one graph, serves its layers, and then waits, once. */
static void test_steps(void **) {
    for (unsigned begin : {0u, 0u - 4}) {               /* the counts wrap around */
        Rig rig(begin);
        Oracle oracle;
        for (int step = 0; step < 20; step++) {
            const unsigned long long waits = emu::emu_waits, graphs = emu::emu_graphs;
            OK(cudaGraphLaunch(rig.graph, rig.stream));
            rig.serve(look);
            assert_int_equal(emu::emu_waits - waits, 0);
            OK(cudaStreamSynchronize(rig.stream));
            assert_int_equal(emu::emu_graphs - graphs, 1);
            oracle.step();
            assert_memory_equal(rig.seen, oracle.x, sizeof oracle.x);
        }
        /* A GPU that has ended all it had to do hands nothing over any more. */
        assert_int_equal(hand_over_await(&rig.h, rig.n + 1, look, rig.stream), -1);
    }
}

/* One thread waits for the GPU, and another one serves it without calling CUDA. */
static void test_two_threads(void **) {
    Rig rig(0);
    Oracle oracle;
    enum { STEPS = 30 };
    std::thread cpu([&] { for (int step = 0; step < STEPS; step++) rig.serve(look_away); });
    for (int step = 0; step < STEPS; step++) {
        OK(cudaGraphLaunch(rig.graph, rig.stream));
        OK(cudaStreamSynchronize(rig.stream));
        oracle.step();
        assert_memory_equal(rig.seen, oracle.x, sizeof oracle.x);
    }
    cpu.join();
}

#ifdef __SANITIZE_THREAD__
/* ---- races that ThreadSanitizer finds ---- */

static int n_reports;
static bool is_wanted;                  /* races are: see test_missing_order_shows */

/* Called before a report is shown.  One that is not wanted is enough, and there may be thousands. */
extern "C" void __tsan_on_report(void *) {
    if (n_reports++ && !is_wanted) _exit(66);
}
extern "C" const char *__tsan_default_options() { return "exitcode=0"; }

/* Serves without the order that a signal gives: of the GPU's one, or of the CPU's.  A template, as
 * ThreadSanitizer reports a race of the same two functions once. */
template <bool acquires, bool releases> static void serve_loosely(Rig *rig) {
    for (int l = 0; l < LAYERS; l++) {
        unsigned *given = &rig->h.signal[GIVEN].count, *summed = &rig->h.signal[SUMMED].count;
        rig->n++;
        while (__atomic_load_n(given, __ATOMIC_RELAXED) != rig->n) {}
        if (acquires) (void)__atomic_load_n(given, __ATOMIC_ACQUIRE);
        sum_of(rig->h.x, rig->h.expert, rig->h.weight, rig->h.sum);
        if (releases) __atomic_store_n(summed, rig->n, __ATOMIC_RELEASE);
        else __atomic_store_n(summed, rig->n, __ATOMIC_RELAXED);
    }
}

/* How many races are found in a step. */
static int races(Rig *rig, void (*serve)(Rig *)) {
    const int before = n_reports;
    std::thread cpu(serve, rig);
    OK(cudaGraphLaunch(rig->graph, rig->stream));
    OK(cudaStreamSynchronize(rig->stream));
    cpu.join();
    return n_reports - before;
}

static void test_no_race(void **) {
    Rig rig(0);
    assert_int_equal(n_reports, 0);
    assert_int_equal(races(&rig, serve_loosely<true, true>), 0);
}
static void test_missing_order_shows(void **) {
    __sanitizer_set_report_fd((void *)(intptr_t)open("/dev/null", O_WRONLY));
    is_wanted = true;
    Rig first(0), second(0);            /* an address is reported once, too */
    assert_true(races(&first, serve_loosely<false, true>) > 0);
    assert_true(races(&second, serve_loosely<true, false>) > 0);
}
#endif

/* ---- the end of the program ---- */

/* The status of a process that does f, as waitpid has it. */
template <class F> static int status_of(F f) {
    fflush(stdout);
    const pid_t child = fork();
    if (child == 0) {
        const rlimit none = {0, 0};
        setrlimit(RLIMIT_CORE, &none);
        dup2(open("/dev/null", O_WRONLY), STDERR_FILENO);
        f();
        _exit(99);
    }
    int status = 0;
    waitpid(child, &status, 0);
    return status;
}

/* Until a kernel waits for the CPU. */
static void begin_step(Rig *rig) {
    cudaGraphLaunch(rig->graph, rig->stream);
    hand_over_await(&rig->h, 1, look, rig->stream);
}

/* exit waits for the kernel, as with CUDA, and the kernel ends; _exit waits for nothing.  Who waits
 * without serving is reported. */
static void test_exit(void **) {
    setenv("EMU_PATIENCE", "1", 1);
    Rig rig(0);
    int status = status_of([&] { begin_step(&rig); exit(7); });
    assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 7);
    status = status_of([&] { begin_step(&rig); _exit(8); });
    assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 8);
    status = status_of([&] { begin_step(&rig); hand_over_close(&rig.h); exit(7); });
    assert_true(WIFSIGNALED(status) && WTERMSIG(status) == SIGABRT);
    status = status_of([&] { begin_step(&rig); cudaStreamSynchronize(rig.stream); });
    assert_true(WIFSIGNALED(status) && WTERMSIG(status) == SIGABRT);
    unsetenv("EMU_PATIENCE");
}

int main() {
    const CMUnitTest tests[] = {
#ifdef __SANITIZE_THREAD__
        cmocka_unit_test(test_two_threads), cmocka_unit_test(test_no_race),
        cmocka_unit_test(test_missing_order_shows),
#else
        cmocka_unit_test(test_steps), cmocka_unit_test(test_two_threads),
        cmocka_unit_test(test_exit),
#endif
    };
    return cmocka_run_group_tests_name("hand-over", tests, NULL, NULL);
}
