/* generate.c - from prompt ids to an answer: the loop that all modes share.  See generate.h. */
#include "generate.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>

#include "json.h"

static int ends_turn(const Model *m, int id) {
    const GenerationConfig *c = model_generation(m);
    for (int i = 0; i < c->n_eos; i++)
        if (c->eos[i] == id) return 1;
    return 0;
}

static int is_stop_id(const Generation *g, int id) {
    for (int i = 0; i < g->n_stop_ids; i++)
        if (g->stop_ids[i] == id) return 1;
    return 0;
}

/* ---- what stands in the way of a free choice: a schema, and a thought's budget ---- */

/* Says which tokens may come next. */
typedef struct {
    const Engine *e;
    Generation *g;
    const Answer *stream;
    int state;                          /* of the schema, -1: its value has not begun */
    int call_state;                     /* of the call_schema, -1: no call of its kind is open */
    CallDelta delta;                    /* of the call that is open */
    int n_thought;                      /* tokens of the thought so far, its header aside */
    int had_thought;                    /* 1: a thought has begun: no second one before a schema */
    int forced;                         /* 1: the limit took tokens away */
    int words;                          /* of a mask: a bit for each token of the vocabulary */
    uint64_t *mask;                     /* [words] scratch; NULL: not made yet */
    uint64_t *in_thought;               /* [words] allowed in a thought before a schema, or NULL */
} Guide;

static int is_thought(const Guide *guide) {
    AnswerPart part = guide->stream->part;
    return part == ANSWER_NAME || part == ANSWER_THOUGHT;
}

/* Whether the next token stands inside of a value or a call that a schema holds. */
static int is_held(const Guide *guide) { return guide->state >= 0 || guide->call_state >= 0; }

/* The token that has to come now, or -1: a thought is closed at the end of its budget, and when
 * what is left is just enough for the schema. */
static int forced_token(const Guide *guide, int left) {
    const Generation *g = guide->g;
    int n = guide->n_thought, budget = g->think_tokens;
    if (!is_thought(guide) || guide->stream->channel_end < 0) return -1;
    int end = guide->stream->channel_end, ends_line = guide->stream->newline;
    if (g->schema && left <= schema_distance(g->schema, schema_begin(g->schema)) + 1) return end;
    if (guide->stream->part == ANSWER_NAME) return -1;
    if (budget < 0 || n < budget - budget / 8 || (n < budget && !ends_line)) return -1;
    if (ends_line) return end;
    Ids line_end = {0};
    tokenizer_encode(guide->e->tokenizer, "\n", 1, 0, &line_end);
    int id = line_end.n == 1 ? line_end.id[0] : end;
    ids_free(&line_end);
    return id;
}

static void forbid(uint64_t *mask, int id) {
    if (id >= 0) mask[id / 64] &= ~(1ull << id % 64);
}

/* Inside a thought before a schema: no control token but the one that closes it. */
static uint64_t *thought_mask(const Guide *guide) {
    const Tokenizer *t = guide->e->tokenizer;
    size_t bytes = (size_t)guide->words * 8;
    uint64_t *mask = memset(xmalloc(bytes), 0xff, bytes);
    for (int id = 0; id < tokenizer_n_vocab(t) && id < 64 * guide->words; id++) {
        int is_special = tokenizer_is_control(t, id) || ends_turn(guide->e->model, id);
        if (is_special && id != guide->stream->channel_end) forbid(mask, id);
    }
    return mask;
}

/* A copy of the mask that can be changed; NULL: of one that allows everything. */
static uint64_t *own_mask(Guide *guide, const uint64_t *mask) {
    size_t bytes = (size_t)guide->words * 8;
    if (!guide->mask) guide->mask = xmalloc(bytes);
    if (mask == guide->mask) return guide->mask;
    return mask ? memcpy(guide->mask, mask, bytes) : memset(guide->mask, 0xff, bytes);
}

/* Before and in the value of the schema.  In front of the value a thought may begin where one was
 * asked for. */
static const uint64_t *allowed_by_schema(Guide *guide, int left) {
    Schema *schema = guide->g->schema;
    int channel = guide->stream->channel;
    if (guide->state >= 0) return schema_mask(schema, guide->state, left, &guide->forced);
    const uint64_t *mask = schema_mask(schema, schema_begin(schema), left, &guide->forced);
    int asked = guide->g->chat.thinking && !guide->g->raw;
    int may_think = asked && !guide->had_thought && channel >= 0;
    /* Room for the token that begins the thought, and for the one that closes it. */
    int has_room = left > schema_distance(schema, schema_begin(schema)) + 1;
    if (!may_think || !has_room) return mask;
    uint64_t *own = own_mask(guide, mask);
    own[channel / 64] |= 1ull << channel % 64;
    return own;
}

/* A call may begin where there is room for the shortest one, and is then held to the request's
 * tools. */
static const uint64_t *allowed_by_calls(Guide *guide, int left) {
    Schema *calls = guide->g->call_schema;
    if (guide->call_state >= 0) return schema_mask(calls, guide->call_state, left, &guide->forced);
    if (left >= schema_distance(calls, schema_begin(calls))) return NULL;
    uint64_t *own = own_mask(guide, NULL);
    forbid(own, guide->stream->call_begin);
    return own;
}

/* The mask without what ends the turn, where that leaves anything. */
static const uint64_t *without_ends(Guide *guide, const uint64_t *mask) {
    const GenerationConfig *c = model_generation(guide->e->model);
    const Generation *g = guide->g;
    uint64_t any = 0, *own = own_mask(guide, mask);
    for (int i = 0; i < c->n_eos; i++) forbid(own, c->eos[i]);
    for (int i = 0; i < g->n_stop_ids; i++) forbid(own, g->stop_ids[i]);
    forbid(own, guide->stream->response);
    forbid(own, guide->stream->turn_end);
    for (int i = 0; i < guide->words; i++) any |= own[i];
    return any ? own : mask;
}

/* The mask without the tokens that the checkpoint suppresses, where that leaves anything. */
static const uint64_t *without_suppressed(Guide *guide, const uint64_t *mask) {
    const GenerationConfig *c = model_generation(guide->e->model);
    uint64_t any = 0, *own = own_mask(guide, mask);
    for (int i = 0; i < c->n_suppress; i++) forbid(own, c->suppress[i]);
    for (int i = 0; i < guide->words; i++) any |= own[i];
    return any ? own : mask;
}

/* What may be drawn, NULL: everything. */
static const uint64_t *allowed(Guide *guide, int left) {
    const Generation *g = guide->g;
    const uint64_t *mask = NULL;
    if (g->schema && is_thought(guide))
        mask = guide->in_thought ? guide->in_thought : (guide->in_thought = thought_mask(guide));
    else if (g->schema) mask = allowed_by_schema(guide, left);
    else if (g->call_schema) mask = allowed_by_calls(guide, left);
    if (model_generation(guide->e->model)->n_suppress) mask = without_suppressed(guide, mask);
    return g->answer.n < g->min_tokens && !is_held(guide) ? without_ends(guide, mask) : mask;
}

/* The schemas and the budget hear of the token that was chosen, before the stream does.  Returns 1
 * when the value is complete. */
static int advance(Guide *guide, int id) {
    Schema *schema = guide->g->schema, *calls = schema ? NULL : guide->g->call_schema;
    int in_call = guide->call_state >= 0;
    if (calls && (in_call || id == guide->stream->call_begin)) {
        int state = in_call ? guide->call_state : schema_begin(calls);
        guide->call_state = schema_next(calls, state, id);
        if (!in_call) guide->delta = (CallDelta){0};
        if (guide->call_state < 0 || !schema_must_end(calls, guide->call_state)) return 0;
        guide->call_state = -1;
        return guide->g->one_call;
    }
    if (is_thought(guide) || id == guide->stream->channel) {
        guide->had_thought = 1;
        guide->n_thought += guide->stream->part == ANSWER_THOUGHT;
        return 0;
    }
    if (!schema) return 0;
    if (id == guide->stream->call_begin) guide->delta = (CallDelta){0};
    int state = guide->state >= 0 ? guide->state : schema_begin(schema);
    guide->state = schema_next(schema, state, id);
    return guide->state >= 0 && schema_must_end(schema, guide->state);
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
    int left = g->max_tokens >= 0 ? g->max_tokens - g->answer.n : MAX_DRAFTS + 1;
    if (e->drafter) return drafter_eval(e->drafter, id, left, err);
    return session_eval(e->session, &id, 1, NULL, NULL, err);
}

/* Keeps those of n ids that the mask allows, with their logits.  Returns how many these are. */
static int keep_allowed(const uint64_t *mask, int *ids, float *logits, int n) {
    int kept = 0;
    for (int i = 0; i < n; i++) {
        int is_allowed = mask[ids[i] / 64] >> ids[i] % 64 & 1;
        if (!is_allowed || !(logits[i] > -1e38f)) continue;
        ids[kept] = ids[i];
        logits[kept++] = logits[i];
    }
    return kept;
}

/* Draws the next id from a few of the largest logits, where those decide and the device can tell
 * them.
 * Returns -1 where somebody needs all logits. */
static int next_of_top(const Generation *g, Session *session, Sampler *sampler,
                       const uint64_t *mask) {
    int ids[MAX_TOP], k = g->all_logits ? 0 : sampler_wants(sampler);
    float logits[MAX_TOP];
    if (k <= 0 || k > MAX_TOP) return -1;
    int n = session_top(session, mask ? MAX_TOP : k, ids, logits);
    if (n > 0 && mask) {
        /* What is left are the largest of the allowed logits, so k of them are enough. */
        n = keep_allowed(mask, ids, logits, n);
        if (n < k) return -1;
    }
    return n > 0 ? sampler_next_top(sampler, ids, logits, n) : -1;
}

/* Draws the next id. */
static int next_id(const Generation *g, Session *session, Sampler *sampler, const uint64_t *mask) {
    int n_seen;
    sampler_mask(sampler, mask);
    int id = next_of_top(g, session, sampler, mask);
    if (id >= 0) return id;
    /* The session shows the prompt, then the whole answer so far, and no draft beyond it. */
    const int *seen = session_ids(session, &n_seen);
    return sampler_next(sampler, session_logits(session), seen, n_seen, g->answer.n);
}

/* Whether the limits have room for the shortest answer that satisfies the schema: 0, or -1 with
 * err. */
static int leave_room(const Engine *e, const Generation *g, Error *err) {
    int needed = schema_distance(g->schema, schema_begin(g->schema));
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
    Guide guide;
    Answer stream;                      /* tokens to text */
    StopFilter stop;
    Buf content, thought;               /* whole, and not handed on yet */
    int stopped;                        /* 1: a stop string was found */
    double start;                       /* seconds, before the prompt */
} Run;

static void run_open(Run *r, const Engine *e, Generation *g) {
    AnswerStart how = {.thinking = g->chat.thinking, .in_thought = g->in_thought,
                       .in_content = g->chat.continue_final,
                       .held = g->call_schema || g->schema_is_calls, .raw = g->raw,
                       .tools = g->tools};
    ModelInfo info;
    model_info(e->model, &info);
    int n_vocab = info.config->vocab;
    r->sampler = sampler_new(n_vocab, g->sampling);
    r->stop = (StopFilter){.strings = g->stop, .n = g->n_stop};
    r->guide = (Guide){.e = e, .g = g, .stream = &r->stream, .state = -1, .call_state = -1,
                       .words = (n_vocab + 63) / 64, .had_thought = g->in_thought};
    answer_open(&r->stream, e->tokenizer, how);
    if (e->drafter) drafter_begin(e->drafter);
}

/* The session evaluates the prompt.  Returns as session_sync does. */
static int read_prompt(const Engine *e, Generation *g, Error *err) {
    session_pictures(e->session, g->span, g->n_spans);
    int bad = session_sync(e->session, g->ids, g->n_ids, g->n_stable, &g->n_reused, err);
    session_pictures(e->session, NULL, 0);
    g->device_bytes = session_device_bytes(e->session);
    return bad;
}

/* How many tokens the limits leave to the answer.  The last token needs no room in the context:
 * nothing follows it. */
static int tokens_left(const Run *r) {
    const Generation *g = r->g;
    int n_held;
    session_ids(r->e->session, &n_held);
    int left = (int)session_context(r->e->session) - n_held + 1, more = g->max_tokens - g->answer.n;
    return g->max_tokens >= 0 && more < left ? more : left;
}

/* Chooses the next token. */
static int choose(Run *r) {
    Generation *g = r->g;
    int left = tokens_left(r), id = forced_token(&r->guide, left);
    if (id < 0) id = next_id(g, r->e->session, r->sampler, allowed(&r->guide, left));
    /* The prompt counts until here, because the head is computed when somebody asks for logits. */
    if (!g->answer.n) g->prefill_seconds = seconds() - r->start;
    ids_add(&g->answer, id);
    return id;
}

/* Whether a token ends the turn. */
static int is_end(const Run *r, int id) {
    const Generation *g = r->g;
    if (!is_held(&r->guide) && is_stop_id(g, id)) return 1;
    if (g->ignore_eos && !g->schema) return 0;
    return ends_turn(r->e->model, id) || answer_ends(&r->stream, id);
}

/* Adds a token to the text, and hands on what became whole.  Returns 1 when the answer is
 * complete. */
static int add_token(Run *r, int id) {
    Generation *g = r->g;
    int is_complete = advance(&r->guide, id);
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
    int id = choose(r), ends = is_end(r, id);
    g->finish = FINISH_STOP;
    if (g->on_token) g->on_token(g->arg, id, ends);
    if (ends || add_token(r, id)) return 1;
    int n_held;
    session_ids(r->e->session, &n_held);
    if (n_held == session_context(r->e->session)) {
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
    if (r->e->drafter) {
        drafter_end(r->e->drafter);
        g->drafts = *drafter_stats(r->e->drafter);
    }
}

static void run_close(Run *r) {
    free(r->guide.mask);
    free(r->guide.in_thought);
    answer_free(&r->stream);
    stop_free(&r->stop);
    sampler_free(r->sampler);
    buf_free(&r->content);
    buf_free(&r->thought);
}

int generate(const Engine *e, Generation *g, Error *err) {
    Run r = {.e = e, .g = g, .start = seconds()};
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

/* Whether the schema that is made from `key` is the one that is kept.  If not, its place is made
 * free; the engine takes the key over. */
static int is_kept(Engine *e, char *key) {
    if (e->schema && !strcmp(key, e->schema_text)) {
        free(key);
        return 1;
    }
    ModelInfo info;
    model_info(e->model, &info);
    const GenerationConfig *c = model_generation(e->model);
    if (!e->pieces) e->pieces = pieces_new(e->tokenizer, info.config->vocab, c->eos, c->n_eos);
    schema_free(e->schema);
    e->schema = NULL;
    e->schema_warning.len = 0;
    free(e->schema_text);
    e->schema_text = key;
    return 0;
}

Schema *engine_schema(Engine *e, const cJSON *schema, Error *err) {
    if (!is_kept(e, json_text(schema))) e->schema = schema_new(e->pieces, schema, err);
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
    if (!is_kept(e, calls_key(tools, several ? "calls" : "call", name)))
        e->schema = schema_calls(e->pieces, tools, name, several, NULL, err);
    return e->schema;
}

void engine_hold_calls(Engine *e, Generation *g) {
    Error err;
    if (!cJSON_GetArraySize(g->tools) || g->schema || g->raw) return;
    if (!is_kept(e, calls_key(g->tools, "any call", NULL)))
        e->schema = schema_calls(e->pieces, g->tools, NULL, 0, &e->schema_warning, &err);
    g->call_schema = e->schema;
    if (e->schema_warning.len) buf_printf(&g->warnings, "%s\n", e->schema_warning.data);
}

void print_stats(const Generation *g) {
    struct rusage usage;
    getrusage(RUSAGE_SELF, &usage);
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
    if (g->device_bytes) fprintf(stderr, ", GPU memory %.2f GB", (double)g->device_bytes * 1e-9);
    if (g->drafts.passes)
        fprintf(stderr, "; drafts: %.2f tokens a pass, accepted",
                (double)g->drafts.tokens / g->drafts.passes);
    for (int i = 0; i < MAX_DRAFTS && g->drafts.drafted[i]; i++)
        fprintf(stderr, " %.2f", (double)g->drafts.accepted[i] / g->drafts.drafted[i]);
    fputs("\n", stderr);
}
