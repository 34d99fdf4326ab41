/* test_fetch.cpp - fetch.cu alone: what a step finds in the rooms, whatever the order in which the emulation works off its streams.
 *
 * Compiled with -fsanitize=thread it looks for races between the host's threads, too: without emu_watch.cpp, which takes the sanitizer's
 * place, the emulation's other files being compiled likewise. */
#include "../../fetch.cu"

#include <setjmp.h>
#include <stdarg.h>

#include <vector>

extern "C" {
#include <cmocka.h>
}

enum { LAYERS = 5, ROWS = 700, COLS = 333, PITCH = 384 };

/* A fetch of so many layers, each a matrix of bytes. */
struct Rig {
    Fetch f = {};
    std::vector<uint8_t> host[LAYERS];
    uint8_t *place[LAYERS] = {};        /* in the GPU's memory */

    void put() {
        for (int i = 0; i < f.n_layers; i++) {
            Store *s = &f.layer[i];
            Arena *room = &f.room[i % 2];
            s->memory = {room->base, 0};
            place[i] = (uint8_t *)put_rows(s, host[i].data(), ROWS, COLS, PITCH);
            s->from_file = s->memory.used;
            if (!room->base) room->used = s->memory.used;
        }
    }
    explicit Rig(int n_layers) {
        Error err;
        f.n_layers = n_layers;
        f.layer = (Store *)xcalloc(LAYERS, sizeof *f.layer);
        for (int i = 0; i < LAYERS; i++)
            for (int k = 0; k < ROWS * COLS; k++) host[i].push_back((uint8_t)(k * 7 + i * 31 + k / 1000));
        put();
        assert_int_equal(fetch_take(&f, 4, &err), 0);
        put();
        assert_int_equal(fetch_start(&f, &err), 0);
    }
    ~Rig() { fetch_close(&f, LAYERS); }
};

/* Steps through all layers; every third one is abandoned behind one to all of them.  The GPU reads a room long after it was launched to. */
static void steps(int n_layers) {
    Rig rig(n_layers);
    cudaStream_t stream;
    uint8_t *seen;
    const size_t layer = ROWS * PITCH;
    assert_int_equal(cudaStreamCreate(&stream), cudaSuccess);
    assert_int_equal(cudaMallocHost((void **)&seen, LAYERS * layer), cudaSuccess);
    for (int step = 0; step < 20; step++) {
        const int end = step % 3 == 1 ? 1 + step % n_layers : n_layers;
        fetch_begin(&rig.f);
        for (int i = 0; i < end; i++) {
            fetch_await(&rig.f, i);
            assert_int_equal(cudaMemcpyAsync(seen + i * layer, rig.place[i], layer, cudaMemcpyDeviceToHost, stream), cudaSuccess);
            fetch_leave(&rig.f, i, stream);
        }
        assert_int_equal(cudaStreamSynchronize(stream), cudaSuccess);
        for (int i = 0; i < end; i++)
            for (int r = 0; r < ROWS; r++) assert_memory_equal(seen + i * layer + r * PITCH, &rig.host[i][(size_t)r * COLS], COLS);
    }
    cudaFreeHost(seen);
    cudaStreamDestroy(stream);
}

static void test_steps(void **) {
    for (int n : {1, 2, 3, (int)LAYERS}) steps(n);
}

/* Closed before the first step, and while layers are fetched that nobody waits for. */
static void test_closed(void **) {
    { Rig rig(LAYERS); }
    {
        Rig rig(LAYERS);
        fetch_begin(&rig.f);
    }
    assert_int_equal(gpu_taken, 0);
}

int main() {
    const CMUnitTest tests[] = {cmocka_unit_test(test_steps), cmocka_unit_test(test_closed)};
    return cmocka_run_group_tests_name("fetch", tests, NULL, NULL);
}
