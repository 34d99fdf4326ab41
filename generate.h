/* generate.h - from prompt ids to an answer: the loop that all modes share. */
#ifndef GENERATE_H
#define GENERATE_H

#include "answer.h"
#include "chat.h"
#include "draft.h"
#include "media.h"
#include "model.h"
#include "sampler.h"
#include "schema.h"

/* What a run of the program works with: opened once by main.c, used by one-shot, JSON lines and the chat prompt. */
typedef struct {
    const char *name;                   /* of the model, as the user gave it */
    Model *model;
    Tokenizer *tokenizer;
    Session *session;
    MediaStore *media;                  /* images and videos that were loaded */
    Drafter *drafter;                   /* NULL: none */
    FILE *draft_log;                    /* NULL: none */
    volatile sig_atomic_t *interrupted; /* the session's cancel flag: the chat prompt sets it on Ctrl-C */
    /* what the options ask for; a JSON request may say otherwise */
    SamplerParams sampling;
    int max_tokens;                     /* -1: to the end of the context */
    int thinking;
    int think_tokens;                   /* a thought is closed after so many, -1: never */
    const char *system;                 /* NULL: none */
    cJSON *tools;                       /* NULL: none */
    cJSON *json_schema;                 /* of every answer, NULL: none */
    Pieces *pieces;                     /* made by the first schema; see engine_schema */
    Schema *schema;                     /* the last one that was compiled, */
    char *schema_text;                  /* what from, */
    Buf schema_warning;                 /* and a line about tools that were not held to their schemas */
    const char *tool_dir;               /* executables that calls run, NULL: calls are shown */
    int run_unasked;
    int slide;                          /* where the context is full, the oldest turns go */
    int stats;                          /* print_stats after each answer */
    int stream;                         /* JSON answers come in chunks unless the request says otherwise */
} Engine;

typedef enum { FINISH_STOP, FINISH_LENGTH, FINISH_INTERRUPTED } Finish;

/* One answer: fill in the first part, the rest zero; generation_free at the end. */
typedef struct {
    const int *ids;                     /* the prompt; n_stable as in chat.h, 0 when there is no next turn */
    int n_ids, n_stable;
    const PictureSpan *span;                   /* the pictures among them */
    int n_spans;
    SamplerParams sampling;
    int max_tokens;                     /* -1: to the end of the context */
    int min_tokens;                     /* before so many tokens nothing ends the turn, unless a schema does */
    char **stop;                        /* stop strings; they end the answer and are not part of it */
    int n_stop;
    int *stop_ids;                      /* ids that end the answer beside the checkpoint's, but not inside of what a schema
                                         * holds; not part of it */
    int n_stop_ids;
    ChatOptions chat;                   /* as in chat_render */
    int in_thought;                     /* as in Prompt */
    const cJSON *tools;                 /* that the model may call, from tools_read; NULL: none */
    int think_tokens;                   /* a thought is closed after so many, at the end of a line if one comes in
                                         * the last eighth of them; -1: never */
    Schema *schema;                     /* what the content (or the calls) must satisfy, NULL: anything; a thought is free */
    int schema_is_calls;                /* 1: the schema is of calls that have to be made */
    Schema *call_schema;                /* what a call must be, once its opening token was drawn; NULL: anything */
    int one_call;                       /* 1: the answer ends with its first call */
    int raw;                            /* no chat: every token is content, control tokens by their names */
    int ignore_eos;
    int all_logits;                     /* on_token will ask for session_logits */
    /* Called with every token, the one that ends the turn included; session_logits are those it was drawn from. */
    void (*on_token)(void *arg, int id, int is_end);
    /* Called with what became whole after each token: more content, more thought; one of them may be empty. */
    void (*on_text)(void *arg, const Buf *content, const Buf *thought);
    /* Called with every call of a tool that is complete; i counts them. */
    void (*on_call)(void *arg, int i, const ToolCall *call);
    /* Called, if not NULL, while a call that a schema holds is being written: once with its name, then with pieces of its
     * arguments' JSON, and on_call last.  Calls that may need mending come whole, to on_call alone. */
    void (*on_call_delta)(void *arg, int i, const Buf *name, const Buf *arguments);
    void *arg;

    Ids answer;                         /* all tokens, the one that ended the turn included */
    Buf content, thought;
    ToolCall *calls;
    int n_calls;
    Buf warnings;                       /* a line for each thing that the user should know of the answer; empty: none */
    int n_thought;                      /* tokens of the answer that are thought */
    Finish finish;                      /* FINISH_LENGTH also when the limit forced a schema to its shortest end */
    int full;                           /* 1: the end of the context cut the answer */
    int n_dropped;                      /* messages that conversation_prompt dropped */
    int n_reused;                       /* of the prompt, positions that the cache held already */
    double prefill_seconds;             /* until the first token is drawn */
    double decode_seconds;              /* from there to the end */
    DraftStats drafts;                  /* all 0 without a drafter */
    int64_t device_bytes;               /* what the session takes of the GPU's memory; 0 on the CPU */
} Generation;

/* Runs it.  Returns 0, or -1 with err (also where the limits leave no room for what the schema asks for); what was generated
 * until then is in g either way. */
int generate(const Engine *e, Generation *g, Error *err);
void generation_free(Generation *g);

/* The schema compiled for this engine, or the calls of its tools (a list; name as in schema_calls): the last one is
 * kept, with its masks.  The engine owns the result; it is good until the next call.  NULL with err. */
Schema *engine_schema(Engine *e, const cJSON *schema, Error *err);
Schema *engine_calls(Engine *e, const cJSON *tools, const char *name, int several, Error *err);

/* Holds the calls that the model may make in g to g->tools; a tool whose schema cannot be compiled keeps its name, and
 * a line about it is added to g->warnings. */
void engine_hold_calls(Engine *e, Generation *g);

/* One line on stderr: prompt tokens and rate, time to the first token, generated tokens and rate, memory. */
void print_stats(const Generation *g);

#endif
