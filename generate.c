/* generate.c - from prompt ids to an answer: the loop that all modes share; and the schema that an
 * Engine keeps.  See generate.h. */
#include "generate.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>

#include "guide.h"
#include "json.h"

static int is_stop_id(const Generation *g, int id) {
    for (int i = 0; i < g->n_stop_ids; i++)
        if (g->stop_ids[i] == id) return 1;
    return 0;
}

/* Hands on what the last token added to a call that a schema holds. */
static void pass_delta(Guide *guide) {
    Generation *g = guide->g;
    const Answer *stream = guide->stream;
    Buf name = {0}, arguments = {0};
    int is_sure = guide->call_state >= 0 || (g->schema_is_calls && guide->state >= 0);
    if (!g->on_call_delta || !is_sure || stream->part != ANSWER_CALL) return;
    call_delta(&guide->delta, stream->call.data, stream->call.len, &name, &arguments);
    if (name.len || arguments.len) g->on_call_delta(g->arg, stream->n_calls, &name, &arguments);
    buf_free(&name);
    buf_free(&arguments);
}

/* Hands on the calls that the last token made complete. */
static void pass_calls(Generation *g, Answer *stream) {
    for (; g->n_calls < stream->n_calls; g->n_calls++)
        if (g->on_call) g->on_call(g->arg, g->n_calls, &stream->calls[g->n_calls]);
}

/* Hands on what the last token made whole.  Stop strings act on the content alone.  Returns 1 when
 * one was found. */
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
    int left = MAX_DRAFTS + 1;          /* no limit: more than a round can draft */
    if (g->max_tokens >= 0) left = g->max_tokens - g->answer.n;
    if (e->drafter) return drafter_eval(e->drafter, id, left, err);
    return session_eval(e->session, &id, 1, NULL, NULL, err);
}

/* A token whose logit is not above this is never drawn: -inf and NaN. */
#define NO_LOGIT (-1e38f)

/* Keeps those of n ids that are below n_ids and that the mask (NULL: none) allows, with their
 * logits.  Returns how many these are. */
static int keep_allowed(const uint64_t *mask, int n_ids, int *ids, float *logits, int n) {
    int kept = 0;
    for (int i = 0; i < n; i++) {
        int is_allowed = !mask || (mask[ids[i] / 64] >> ids[i] % 64 & 1 && logits[i] > NO_LOGIT);
        if (!is_allowed || ids[i] >= n_ids) continue;
        ids[kept] = ids[i];
        logits[kept++] = logits[i];
    }
    return kept;
}

/* How many of the largest logits surely have k allowed ones among them: k, and one for each of the
 * ids 0 .. n_ids - 1 that the mask (NULL: none) rules out; at most MAX_TOP. */
static int top_for(const uint64_t *mask, int n_ids, int k) {
    for (int i = 0; mask && i < n_ids && k < MAX_TOP; i += 64) {
        uint64_t in_word = n_ids - i < 64 ? ((uint64_t)1 << (n_ids - i)) - 1 : ~(uint64_t)0;
        k += __builtin_popcountll(~mask[i / 64] & in_word);
    }
    return k < MAX_TOP ? k : MAX_TOP;
}

/* Draws the next id from a few of the largest logits, where those decide and the device can tell
 * them.  Returns -1 where somebody needs all logits. */
static int next_of_top(const Generation *g, Session *session, Sampler *sampler,
                       const uint64_t *mask, int n_ids) {
    int ids[MAX_TOP], k = g->all_logits ? 0 : sampler_wants(sampler);
    float logits[MAX_TOP];
    if (k <= 0 || k > MAX_TOP) return -1;
    int n = session_top(session, top_for(mask, n_ids, k), ids, logits);
    if (n > 0 && !are_numbers(logits, 1)) return -1;
    int kept = n > 0 ? keep_allowed(mask, n_ids, ids, logits, n) : 0;
    /* What is left are the largest of the allowed logits, so k of them are enough. */
    if (kept < n && kept < k) return -1;
    return kept > 0 ? sampler_next_top(sampler, ids, logits, kept) : -1;
}

/* Draws the next id, one of 0 .. n_ids-1.  Returns -1 with err where the logits are no numbers. */
static int next_id(const Generation *g, const Engine *e, Sampler *sampler, const uint64_t *mask,
                   int n_ids, Error *err) {
    int n_seen;
    sampler_mask(sampler, mask);
    int id = next_of_top(g, e->session, sampler, mask, n_ids);
    if (id >= 0) return id;
    const float *logits = session_logits(e->session);
    if (!are_numbers(logits, n_ids)) {
        session_forget(e->session);
        return fail(err, "%s: the logits are no numbers (NaN): a weight or a loaded kv cache is "
                    "damaged", e->name);
    }
    /* The session shows the prompt, then the whole answer so far, and no draft beyond it. */
    const int *seen = session_ids(e->session, &n_seen);
    return sampler_next(sampler, logits, seen, n_seen, g->answer.n);
}

/* Whether the limits have room for the shortest answer that satisfies the schema: 0, or -1 with
 * err. */
static int leave_room(const Engine *e, const Generation *g, Error *err) {
    int state = guide_begin(g);
    if (state < 0)
        return fail(err, "continue_final_message: no answer that the schema allows begins with "
                    "this message");
    int needed = schema_distance(g->schema, state);
    int64_t room = session_context(e->session) - g->n_ids + 1;
    if (g->max_tokens >= 0 && g->max_tokens < needed)
        return fail(err, "max_tokens is %d: this schema needs at least %d", g->max_tokens, needed);
    if (room > 0 && room < needed)
        return fail(err, "the context leaves room for %lld tokens (-c): this schema needs at least "
                    "%d", (long long)room, needed);
    return 0;
}

/* An answer that is being made. */
typedef struct {
    const Engine *e;
    Generation *g;
    Sampler *sampler;
    int n_ids;                          /* ids that may be drawn: 0 .. n_ids-1 */
    Guide guide;
    Answer stream;                      /* tokens to text */
    StopFilter stop;
    Buf content, thought;               /* whole, and not handed on yet */
    int stopped;                        /* 1: a stop string was found */
    int lost_call;                      /* 1: warn_of_lost_call has warned */
    double start;                       /* seconds, before the prompt */
    int64_t chosen, slot_hits;          /* of the session, before the prompt */
} Run;

static void run_open(Run *r, const Engine *e, Generation *g) {
    AnswerStart how = {.thinking = g->chat.thinking, .in_thought = g->in_thought,
                       .in_content = g->chat.continue_final,
                       .constrained = g->call_schema || g->schema_is_calls, .raw = g->raw,
                       .tools = g->tools};
    /* An embedding that was resized may have rows beyond the tokenizer's ids.  They mean nothing,
     * and fine-tuning leaves them as they were. */
    r->n_ids = tokenizer_n_vocab(e->tokenizer);
    r->sampler = sampler_new(r->n_ids, g->sampling);
    r->stop = (StopFilter){.strings = g->stop, .n = g->n_stop};
    guide_open(&r->guide, e, g, &r->stream);
    answer_open(&r->stream, e->tokenizer, how);
    if (e->drafter) drafter_begin(e->drafter);
}

/* The session evaluates the prompt.  Returns as session_sync does. */
static int read_prompt(const Engine *e, Generation *g, Error *err) {
    session_pictures(e->session, g->span, g->n_spans);
    int bad = session_sync(e->session, g->ids, g->n_ids, g->n_stable, &g->n_reused, err);
    session_pictures(e->session, NULL, 0);
    return bad;
}

/* How many tokens the context still has room for. */
static int room_left(const Run *r) {
    int n_held;
    session_ids(r->e->session, &n_held);
    return (int)session_context(r->e->session) - n_held;
}

/* How many tokens the limits leave to the answer.  The last token needs no room in the context:
 * nothing follows it. */
static int tokens_left(const Run *r) {
    const Generation *g = r->g;
    int left = room_left(r) + 1, more = g->max_tokens - g->answer.n;
    return g->max_tokens >= 0 && more < left ? more : left;
}

/* Warns, once an answer, where the most likely token begins a call that the limits have no room
 * for: what comes in its place may be an answer that the model has made up. */
static void warn_of_lost_call(Run *r) {
    Session *session = r->e->session;
    int id;
    float logit;
    if (!r->guide.no_room || r->lost_call) return;
    if (session_top(session, 1, &id, &logit) < 1)
        top_logits(session_logits(session), r->n_ids, 1, &id);
    r->lost_call = id == r->stream.call_begin;
    if (r->lost_call)
        buf_puts(&r->stream.warnings, "the model would have called a tool here: the limit of the "
                 "answer has no room for a call\n");
}

/* Chooses the next token.  Returns its id, or -1 with err. */
static int choose(Run *r, Error *err) {
    Generation *g = r->g;
    int left = tokens_left(r), id = guide_forced(&r->guide, left);
    if (id < 0) {
        id = next_id(g, r->e, r->sampler, guide_allowed(&r->guide, left), r->n_ids, err);
        if (id < 0) return -1;
        warn_of_lost_call(r);
    }
    /* The prompt counts until here, because the head is computed when somebody asks for logits. */
    if (!g->answer.n) g->prefill_seconds = seconds() - r->start;
    ids_add(&g->answer, id);
    return id;
}

/* Whether a token ends the answer: one of the request's stop_ids, one of the checkpoint's eos, or
 * one behind which the model's turn is over (answer_ends). */
static int ends_answer(const Run *r, int id) {
    const Generation *g = r->g;
    if (!guide_holds(&r->guide) && is_stop_id(g, id)) return 1;
    if (g->ignore_eos && !g->schema) return 0;
    return is_eos(r->e->model, id) || answer_ends(&r->stream, id);
}

/* Adds a token to the text, and hands on what became whole.  Returns 1 when the answer is
 * complete. */
static int add_token(Run *r, int id) {
    Generation *g = r->g;
    int is_complete = guide_advance(&r->guide, id);
    answer_feed(&r->stream, id, &r->content, &r->thought);
    pass_delta(&r->guide);
    if (r->content.len || r->thought.len)
        r->stopped = pass_on(g, &r->stop, &r->content, &r->thought, 0);
    pass_calls(g, &r->stream);
    return is_complete || r->stopped;
}

/* One token of the answer.  Returns 0; 1 when the answer ends here, g->finish saying why; -1 with
 * err. */
static int next_token(Run *r, Error *err) {
    Generation *g = r->g;
    g->finish = FINISH_LENGTH;
    if (g->max_tokens >= 0 && g->answer.n >= g->max_tokens) return 1;
    int id = choose(r, err);
    if (id < 0) return -1;
    int ends = ends_answer(r, id);
    g->finish = FINISH_STOP;
    if (g->on_token) g->on_token(g->arg, id, ends);
    if (ends || add_token(r, id)) return 1;
    if (!room_left(r)) {
        g->finish = FINISH_LENGTH;
        g->full = g->answer.n != g->max_tokens;
        return 1;
    }
    g->finish = FINISH_INTERRUPTED;
    return take_in(r->e, g, id, err);
}

/* Hands on what was held back, and moves what the stream has found into g. */
static void finish(Run *r) {
    Generation *g = r->g;
    if (!r->stopped) {
        answer_end(&r->stream, &r->content, &r->thought);
        if (r->content.len || r->thought.len || r->stop.held.len)
            pass_on(g, &r->stop, &r->content, &r->thought, 1);
    }
    pass_calls(g, &r->stream);
    if (r->guide.forced && g->finish == FINISH_STOP) g->finish = FINISH_LENGTH;
    calls_check(r->stream.calls, r->stream.n_calls, g->tools, &r->stream.warnings);
    g->calls = r->stream.calls;
    r->stream.calls = NULL;
    r->stream.n_calls = 0;
    g->n_thought = r->stream.n_thought;
    buf_add(&g->warnings, r->stream.warnings.data, r->stream.warnings.len);
    g->decode_seconds = seconds() - r->start - g->prefill_seconds;
    session_slot_hits(r->e->session, &g->chosen, &g->slot_hits);
    g->chosen -= r->chosen;
    g->slot_hits -= r->slot_hits;
    if (r->e->drafter) {
        drafter_end(r->e->drafter);
        g->drafts = *drafter_stats(r->e->drafter);
    }
}

static void run_close(Run *r) {
    guide_close(&r->guide);
    answer_free(&r->stream);
    stop_free(&r->stop);
    sampler_free(r->sampler);
    buf_free(&r->content);
    buf_free(&r->thought);
}

int generate(const Engine *e, Generation *g, Error *err) {
    Run r = {.e = e, .g = g, .start = seconds()};
    session_slot_hits(e->session, &r.chosen, &r.slot_hits);
    buf_add(&g->content, "", 0);
    buf_add(&g->thought, "", 0);
    if (g->schema && leave_room(e, g, err)) return -1;
    int bad = read_prompt(e, g, err);
    g->prefill_seconds = seconds() - r.start;
    g->finish = FINISH_INTERRUPTED;
    if (bad) return bad < 0 ? -1 : 0;
    run_open(&r, e, g);
    while (!bad) bad = next_token(&r, err);
    finish(&r);
    run_close(&r);
    return bad < 0 ? -1 : 0;
}

void generation_free(Generation *g) {
    ids_free(&g->answer);
    buf_free(&g->content);
    buf_free(&g->thought);
    buf_free(&g->warnings);
    calls_free(g->calls, g->n_calls);
    g->calls = NULL;
    g->n_calls = 0;
}

/* ---- the schema that the engine keeps ---- */

/* Makes room for the schema that is compiled from `key`, which the engine takes over.  Returns 0
 * where this schema is the one that is kept, and has to be compiled no more. */
static int make_room(Engine *e, char *key) {
    if (e->schema && !strcmp(key, e->schema_text)) {
        free(key);
        return 0;
    }
    if (!e->pieces) {
        const GenerationConfig *c = model_generation(e->model);
        /* <turn|> ends an answer of a chat, also where eos_token_id does not list it. */
        int ends[MAX_EOS + 1];
        memcpy(ends, c->eos, sizeof c->eos);
        ends[c->n_eos] = tokenizer_control(e->tokenizer, "<turn|>");
        int vocab = model_config(e->model)->vocab;
        e->pieces = pieces_new(e->tokenizer, vocab, ends, c->n_eos + 1);
    }
    schema_free(e->schema);
    e->schema = NULL;
    e->schema_warning.len = 0;
    free(e->schema_text);
    e->schema_text = key;
    return 1;
}

Schema *engine_schema(Engine *e, const cJSON *schema, Error *err) {
    if (make_room(e, json_text(schema))) e->schema = schema_new(e->pieces, schema, err);
    return e->schema;
}

/* What calls of these tools are compiled from; the caller frees it. */
static char *calls_key(const cJSON *tools, const char *kind, const char *name) {
    Buf key = {0};
    char *text = json_text(tools);
    buf_printf(&key, "%s %s %s", kind, name ? name : "", text);
    free(text);
    return key.data;
}

Schema *engine_calls(Engine *e, const cJSON *tools, const char *name, int several, Error *err) {
    if (make_room(e, calls_key(tools, several ? "calls" : "call", name)))
        e->schema = schema_calls(e->pieces, tools, name, several, NULL, err);
    return e->schema;
}

void engine_hold_calls(Engine *e, Generation *g) {
    Error err;
    if (!cJSON_GetArraySize(g->tools) || g->schema || g->raw) return;
    if (make_room(e, calls_key(g->tools, "any call", NULL)))
        e->schema = schema_calls(e->pieces, g->tools, NULL, 0, &e->schema_warning, &err);
    g->call_schema = e->schema;
    if (e->schema_warning.len) buf_printf(&g->warnings, "%s\n", e->schema_warning.data);
}

void print_stats(const Engine *e, const Generation *g) {
    struct rusage usage;
    char experts[PLACEMENT];
    int64_t device_bytes = session_device_bytes(e->session);
    const char *adapters = model_adapters(e->model);
    getrusage(RUSAGE_SELF, &usage);
    placement(e->model, session_takes(e->session), experts);
    int evaluated = g->n_ids - g->n_reused, n = g->answer.n;
    double first = g->prefill_seconds;
    fprintf(stderr, "prompt: %d tokens", g->n_ids);
    if (g->n_reused) fprintf(stderr, " (%d reused)", g->n_reused);
    double rate = evaluated / (first > 0 ? first : 1e-9);
    fprintf(stderr, ", %.1f tokens/s; first token after %.3f s; answer: %d tokens", rate, first, n);
    /* The first token comes out of the prefill; each of the others costs one step. */
    if (n > 1 && g->decode_seconds > 0)
        fprintf(stderr, ", %.1f tokens/s", (n - 1) / g->decode_seconds);
    fprintf(stderr, "; peak memory %.0f MB", (double)usage.ru_maxrss / 1024);
    if (device_bytes) fprintf(stderr, ", GPU memory %.2f GB", (double)device_bytes * 1e-9);
    if (*experts) fprintf(stderr, "; %s", experts);
    if (g->chosen > 0)
        fprintf(stderr, ", used by %.1f %% of choices",
                100 * (double)g->slot_hits / (double)g->chosen);
    if (adapters) note("; adapters: %s", adapters);
    if (g->drafts.passes)
        fprintf(stderr, "; drafts: %.2f tokens a pass, accepted",
                (double)g->drafts.tokens / g->drafts.passes);
    for (int i = 0; i < MAX_DRAFTS && g->drafts.drafted[i]; i++)
        fprintf(stderr, " %.2f", (double)g->drafts.accepted[i] / g->drafts.drafted[i]);
    fputs("\n", stderr);
}
