/* guide.h - which tokens may come next in an answer.  generate.c asks a Guide before it chooses a
 * token, and tells it which token it has chosen. */
#ifndef GUIDE_H
#define GUIDE_H

#include "generate.h"

/* What stands in the way of a free choice in one answer: a schema, and a thought's budget. */
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
    int no_room;                        /* 1: no call may begin now: the limit cannot hold it */
    int words;                          /* of a mask: a bit for each token of the vocabulary */
    uint64_t *mask;                     /* [words] scratch; NULL: not made yet */
    uint64_t *in_thought;               /* [words] allowed in a thought before a schema, or NULL */
} Guide;

/* Whether the token is one of those that end an answer by generation_config.json. */
int is_eos(const Model *m, int id);

/* Fills in *guide for the answer g, of which `stream` has the text so far.  All three must outlive
 * the guide.  guide_close frees its masks. */
void guide_open(Guide *guide, const Engine *e, Generation *g, const Answer *stream);
void guide_close(Guide *guide);

/* The state of g->schema behind what the prompt has of its value (g->begun); -1: no value begins
 * so.  Makes older states invalid. */
int guide_begin(const Generation *g);

/* Whether the next token stands inside of a value or a call that a schema holds. */
int guide_holds(const Guide *guide);

/* The token that has to come now, or -1: a thought is closed at the end of its budget, and when
 * what is left is just enough for the schema.  left: tokens that the limits leave. */
int guide_forced(const Guide *guide, int left);

/* The mask of what may be drawn, a bit for each token; NULL: everything.  The mask is the guide's
 * or the schema's, until the next call. */
const uint64_t *guide_allowed(Guide *guide, int left);

/* Takes the token that was chosen, before the stream does.  Returns 1 when the value, or the only
 * call, is complete. */
int guide_advance(Guide *guide, int id);

#endif
