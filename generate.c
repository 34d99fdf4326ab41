/* generate.c - from prompt ids to an answer: the loop that all modes share.  See generate.h. */
#include "generate.h"

#include <stdio.h>
#include <sys/resource.h>

static int ends_turn(const Model *m, int id) {
    const GenerationConfig *c = model_generation(m);
    for (int i = 0; i < c->n_eos; i++)
        if (c->eos[i] == id) return 1;
    return 0;
}

/* Hands on what the last token made whole.  Stop strings act on the content alone.  Returns 1 when one was found. */
static int pass_on(Generation *g, StopFilter *stop, Buf *content, Buf *thought, int at_end) {
    Buf shown = {0};
    int found = stop_feed(stop, content->data, content->len, &shown);
    if (at_end && !found) stop_flush(stop, &shown);
    if (g->on_text && (shown.len || thought->len)) g->on_text(g->arg, &shown, thought);
    buf_add(&g->content, shown.data, shown.len);
    buf_add(&g->thought, thought->data, thought->len);
    content->len = thought->len = 0;
    buf_free(&shown);
    return found;
}

/* The session takes id in, and perhaps guesses what follows. */
static int take_in(const Engine *e, const Generation *g, int id, Error *err) {
    int left = g->max_tokens >= 0 ? g->max_tokens - g->answer.n : MAX_DRAFTS + 1;
    return e->drafter ? drafter_eval(e->drafter, id, left, err) : session_eval(e->session, &id, 1, NULL, NULL, err);
}

/* The next id: drawn from a few of the largest logits where those decide and the device can tell them, else from all. */
static int next_id(const Generation *g, Session *session, Sampler *sampler) {
    int ids[MAX_TOP], k = g->all_logits ? 0 : sampler_wants(sampler), n_seen;
    float logits[MAX_TOP];
    int n = k > 0 && k <= MAX_TOP ? session_top(session, k, ids, logits) : -1;
    int id = n > 0 ? sampler_next_top(sampler, ids, logits, n) : -1;
    if (id >= 0) return id;
    const int *seen = session_ids(session, &n_seen);
    return sampler_next(sampler, session_logits(session), seen, n_seen);
}

int generate(const Engine *e, Generation *g, Error *err) {
    double start = seconds();
    ModelInfo info;
    model_info(e->model, &info);
    buf_add(&g->content, "", 0);
    buf_add(&g->thought, "", 0);
    int bad = session_sync(e->session, g->ids, g->n_ids, g->n_stable, &g->n_reused, err);
    g->prefill_seconds = seconds() - start;
    g->finish = FINISH_INTERRUPTED;
    g->device_bytes = session_device_bytes(e->session);
    if (bad) return bad < 0 ? -1 : 0;

    Sampler *sampler = sampler_new(info.config->vocab, g->sampling);
    StopFilter stop = {.strings = g->stop, .n = g->n_stop};
    ChatStream stream;
    Buf content = {0}, thought = {0};
    int found = 0;
    chat_stream_open(&stream, e->tokenizer, g->thinking);
    stream.raw = g->raw;
    if (e->drafter) drafter_begin(e->drafter);
    for (;;) {
        int n_held;
        g->finish = FINISH_LENGTH;
        if (g->max_tokens >= 0 && g->answer.n >= g->max_tokens) break;
        int id = next_id(g, e->session, sampler);
        if (!g->answer.n) g->prefill_seconds = seconds() - start;       /* the head is computed when it is asked for */
        ids_add(&g->answer, id);
        g->finish = FINISH_STOP;
        int end = !g->ignore_eos && ends_turn(e->model, id);
        if (g->on_token) g->on_token(g->arg, id, end);
        if (end) break;
        chat_stream_feed(&stream, id, &content, &thought);
        if (content.len || thought.len) found = pass_on(g, &stop, &content, &thought, 0);
        if (found) break;
        g->finish = FINISH_LENGTH;
        session_ids(e->session, &n_held);
        if (n_held == session_context(e->session)) break;
        bad = take_in(e, g, id, err);
        g->finish = FINISH_INTERRUPTED;
        if (bad) break;
    }
    if (!found) chat_stream_end(&stream, &content, &thought);
    if (!found && (content.len || thought.len || stop.held.len)) pass_on(g, &stop, &content, &thought, 1);
    g->decode_seconds = seconds() - start - g->prefill_seconds;
    if (e->drafter) {
        drafter_end(e->drafter);
        g->drafts = *drafter_stats(e->drafter);
    }
    chat_stream_free(&stream);
    stop_free(&stop);
    sampler_free(sampler);
    buf_free(&content);
    buf_free(&thought);
    return bad < 0 ? -1 : 0;
}

void generation_free(Generation *g) {
    ids_free(&g->answer);
    buf_free(&g->content);
    buf_free(&g->thought);
}

void print_stats(const Generation *g) {
    struct rusage usage;
    getrusage(RUSAGE_SELF, &usage);
    int evaluated = g->n_ids - g->n_reused, n = g->answer.n;
    double first = g->prefill_seconds;
    fprintf(stderr, "prompt: %d tokens", g->n_ids);
    if (g->n_reused) fprintf(stderr, " (%d reused)", g->n_reused);
    fprintf(stderr, ", %.1f tokens/s; first token after %.3f s; answer: %d tokens", evaluated / (first > 0 ? first : 1e-9), first, n);
    /* The first token comes out of the prefill; each of the others costs one step. */
    if (n > 1 && g->decode_seconds > 0) fprintf(stderr, ", %.1f tokens/s", (n - 1) / g->decode_seconds);
    fprintf(stderr, "; peak memory %.0f MB", usage.ru_maxrss / 1024.0);
    if (g->device_bytes) fprintf(stderr, ", GPU memory %.2f GB", g->device_bytes * 1e-9);
    if (g->drafts.passes) fprintf(stderr, "; drafts: %.2f tokens a pass, accepted", (double)g->drafts.tokens / g->drafts.passes);
    for (int i = 0; i < MAX_DRAFTS && g->drafts.drafted[i]; i++)
        fprintf(stderr, " %.2f", (double)g->drafts.accepted[i] / g->drafts.drafted[i]);
    fputs("\n", stderr);
}
