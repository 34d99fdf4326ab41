/* guide.c - which tokens may come next: what a schema, a call's schema, a thought's budget and
 * min_tokens leave of the vocabulary.  See guide.h. */
#include "guide.h"

#include <stdlib.h>
#include <string.h>

int is_eos(const Model *m, int id) {
    const GenerationConfig *c = model_generation(m);
    for (int i = 0; i < c->n_eos; i++)
        if (c->eos[i] == id) return 1;
    return 0;
}

void guide_open(Guide *guide, const Engine *e, Generation *g, const Answer *stream) {
    *guide = (Guide){.e = e, .g = g, .stream = stream, .state = -1, .call_state = -1,
                     .words = (model_config(e->model)->vocab + 63) / 64,
                     .had_thought = g->in_thought};
    if (g->schema && g->begun) guide->state = guide_begin(g);
}

int guide_begin(const Generation *g) {
    int state = schema_begin(g->schema);
    for (const char *p = g->begun ? g->begun : ""; *p && state >= 0; p++)
        state = schema_step(g->schema, state, (unsigned char)*p);
    return state;
}

void guide_close(Guide *guide) {
    free(guide->mask);
    free(guide->in_thought);
}

static int is_thought(const Guide *guide) {
    AnswerPart part = guide->stream->part;
    return part == ANSWER_NAME || part == ANSWER_THOUGHT;
}

int guide_holds(const Guide *guide) { return guide->state >= 0 || guide->call_state >= 0; }

int guide_forced(const Guide *guide, int left) {
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
        int is_special = tokenizer_is_control(t, id) || is_eos(guide->e->model, id);
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
    guide->no_room = left < schema_distance(calls, schema_begin(calls));
    if (!guide->no_room) return NULL;
    uint64_t *own = own_mask(guide, NULL);
    forbid(own, guide->stream->call_begin);
    return own;
}

/* `own`, from which tokens were taken, or, where it allows none any more, `mask`. */
static const uint64_t *unless_empty(const Guide *guide, const uint64_t *own, const uint64_t *mask) {
    uint64_t any = 0;
    for (int i = 0; i < guide->words; i++) any |= own[i];
    return any ? own : mask;
}

/* The mask without what ends the turn, where that leaves anything. */
static const uint64_t *without_ends(Guide *guide, const uint64_t *mask) {
    const GenerationConfig *c = model_generation(guide->e->model);
    const Generation *g = guide->g;
    uint64_t *own = own_mask(guide, mask);
    for (int i = 0; i < c->n_eos; i++) forbid(own, c->eos[i]);
    for (int i = 0; i < g->n_stop_ids; i++) forbid(own, g->stop_ids[i]);
    forbid(own, guide->stream->response);
    forbid(own, guide->stream->turn_end);
    return unless_empty(guide, own, mask);
}

/* The mask without the tokens that the checkpoint suppresses, where that leaves anything. */
static const uint64_t *without_suppressed(Guide *guide, const uint64_t *mask) {
    const GenerationConfig *c = model_generation(guide->e->model);
    uint64_t *own = own_mask(guide, mask);
    for (int i = 0; i < c->n_suppress; i++) forbid(own, c->suppress[i]);
    return unless_empty(guide, own, mask);
}

const uint64_t *guide_allowed(Guide *guide, int left) {
    const Generation *g = guide->g;
    const uint64_t *mask = NULL;
    guide->no_room = 0;
    if (g->schema && is_thought(guide))
        mask = guide->in_thought ? guide->in_thought : (guide->in_thought = thought_mask(guide));
    else if (g->schema) mask = allowed_by_schema(guide, left);
    else if (g->call_schema) mask = allowed_by_calls(guide, left);
    if (model_generation(guide->e->model)->n_suppress) mask = without_suppressed(guide, mask);
    return g->answer.n < g->min_tokens && !guide_holds(guide) ? without_ends(guide, mask) : mask;
}

int guide_advance(Guide *guide, int id) {
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
