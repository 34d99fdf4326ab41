/* routes.c - prints which experts a model chooses, for bench/expert_cache.py --routes.
 *
 *     make build/bench_routes; build/bench_routes MODEL < ids > routes
 *
 * ids: token ids with white space between, read one by one as in an answer.  A line for each token and layer: the layer, then the chosen
 * experts. */
#include <stdio.h>

#include "../model.h"
#include "../session.h"

static void print_route(void *arg, int layer, int64_t pos, int n, const float *x, const int *expert, const float *weight) {
    const int top_k = *(const int *)arg;
    (void)pos, (void)x, (void)weight;
    if (!expert) return;
    for (int t = 0; t < n; t++) {
        printf("%d", layer);
        for (int k = 0; k < top_k; k++) printf(" %d", expert[t * top_k + k]);
        printf("\n");
    }
}

static int failed(const Error *err) {
    fprintf(stderr, "bench_routes: %s\n", err->text);
    return 1;
}

int main(int argc, char **argv) {
    Error err;
    ModelInfo info;
    if (argc != 2) return fprintf(stderr, "usage: bench_routes MODEL < ids\n"), 1;
    Model *m = model_open(argv[1], &err);
    if (!m) return failed(&err);
    model_info(m, &info);
    SessionOptions o = {.ops = &cpu_ops, .context = info.config->max_context, .n_threads = n_cpus()};
    Session *s = session_new(m, &o, &err);
    if (!s) return failed(&err);
    int id, top_k = info.config->top_k;
    session_trace(s, print_route, &top_k);
    while (scanf("%d", &id) == 1)
        if (session_eval(s, &id, 1, NULL, NULL, &err)) return failed(&err);
    session_free(s);
    model_close(m);
    return 0;
}
