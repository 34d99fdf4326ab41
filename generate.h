/* generate.h - from prompt ids to an answer: the loop that all modes share. */
#ifndef GENERATE_H
#define GENERATE_H

#include "answer.h"
#include "chat.h"
#include "draft.h"
#include "media.h"
#include "sampler.h"
#include "schema.h"
#include "session.h"

/* Everything that answers need: a model with its tokenizer, session and drafter, and what the
 * options ask of every answer.  main.c opens it once; one shot, JSON lines and the chat prompt work
 * with it. */
typedef struct {
    const char *name;                   /* of the model, as the user gave it */
    Model *model;
    Tokenizer *tokenizer;
    Session *session;
    MediaStore *media;                  /* images and videos that were loaded */
    Drafter *drafter;                   /* NULL: none */
    FILE *draft_log;                    /* NULL: none */
    volatile sig_atomic_t *interrupted; /* the session's cancel flag, which Ctrl-C sets */
    /* What the options ask for.  A JSON request may say otherwise. */
    SamplerParams sampling;
    int max_tokens;                     /* -1: to the end of the context */
    int thinking;                       /* 1: a thought first */
    int think_tokens;                   /* a thought is closed after so many, -1: never */
    const char *system;                 /* NULL: none */
    cJSON *tools;                       /* NULL: none */
    int tools_of_file;                  /* 1: they came with the conversation of transcript_load */
    cJSON *json_schema;                 /* of every answer, NULL: none */
    const char *tool_dir;               /* executables that calls run; NULL: calls are shown */
    int run_unasked;                    /* 1: calls are run without asking */
    int slide;                          /* 1: where the context is full, the oldest turns go */
    int stats;                          /* 1: print_stats after each answer */
    int markdown;                       /* 1: a terminal shows the Markdown of answers */
    int stream;                         /* 1: JSON answers come in chunks, as the default */
    /* The schema that was compiled last, see engine_schema. */
    Pieces *pieces;                     /* of the vocabulary; made for the first schema */
    Schema *schema;
    char *schema_text;                  /* what the schema was compiled from */
    Buf schema_warning;                 /* a line about tools that were not held to their schemas */
} Engine;

typedef enum { FINISH_STOP, FINISH_LENGTH, FINISH_INTERRUPTED } Finish;

/* One answer.  The caller fills in the first part, leaves the rest zero, and calls generation_free
 * at the end. */
typedef struct {
    const int *ids;                     /* the prompt [n_ids] */
    int n_ids, n_stable;                /* n_stable as in chat.h; 0 where no turn follows */
    const PictureSpan *span;            /* the pictures among the ids [n_spans] */
    int n_spans;
    SamplerParams sampling;
    int max_tokens;                     /* -1: to the end of the context */
    int min_tokens;                     /* so many before anything but a schema ends the turn */
    char **stop;                        /* stop strings: they end the answer, no part of it */
    int n_stop;
    /* Ids that end the answer beside the checkpoint's, and are no part of it.  Inside of what a
     * schema holds they do not end it. */
    int *stop_ids;
    int n_stop_ids;
    ChatOptions chat;                   /* as in chat_render */
    int in_thought;                     /* as in Prompt */
    const cJSON *tools;                 /* that the model may call, from tools_read; NULL: none */
    /* A thought is closed after so many tokens, at the end of a line if one comes in the last
     * eighth of them; -1: never. */
    int think_tokens;
    Schema *schema;                     /* of the content, or of the calls; NULL: anything */
    const char *begun;                  /* the beginning of the content that stands in the prompt;
                                         * NULL: none.  Borrowed from the Prompt */
    int schema_is_calls;                /* 1: the schema is of calls that have to be made */
    Schema *call_schema;                /* of a call, behind its opening token; NULL: anything */
    int one_call;                       /* 1: the answer ends with its first call */
    int raw;                            /* 1: no chat: all tokens are content, control ones too */
    int ignore_eos;
    int all_logits;                     /* 1: on_token will ask for session_logits */

    /* Called with every token, the one that ends the turn included.  session_logits are those that
     * the token was drawn from. */
    void (*on_token)(void *arg, int id, int is_end);
    /* Called, if not NULL, with what became whole after a token: more content, more thought.  One
     * of the two may be empty. */
    void (*on_text)(void *arg, const Buf *content, const Buf *thought);
    /* Called, if not NULL, with every call of a tool that is complete; i counts them. */
    void (*on_call)(void *arg, int i, const ToolCall *call);
    /* Called, if not NULL, while a call that a schema holds is being written: once with its name,
     * then with more and more of its arguments' JSON; on_call comes last.  A call that may need
     * mending comes whole, to on_call alone. */
    void (*on_call_delta)(void *arg, int i, const Buf *name, const Buf *arguments);
    void *arg;

    /* The answer. */
    Ids answer;                         /* all tokens, the one that ended the turn included */
    Buf content, thought;
    ToolCall *calls;
    int n_calls;
    Buf warnings;                       /* a line for each thing that the user should know */
    int n_thought;                      /* tokens of the answer that are thought */
    Finish finish;                      /* LENGTH also where the limit cut a schema's value short */
    int full;                           /* 1: the end of the context cut the answer */
    int n_dropped;                      /* messages that conversation_prompt dropped */
    int n_reused;                       /* of the prompt, positions that the cache held already */
    double prefill_seconds;             /* until the first token is drawn */
    double decode_seconds;              /* from there to the end */
    DraftStats drafts;                  /* all 0 without a drafter */
    int64_t chosen, slot_hits;          /* by prompt and answer: see session_slot_hits */
} Generation;

/* Generates the answer.  Returns 0, or -1 with err (also where the limits leave no room for what
 * the schema asks for).  What was generated until then is in g either way. */
int generate(const Engine *e, Generation *g, Error *err);
void generation_free(Generation *g);

/* The schema compiled for this engine; or the calls of these tools (a list; name and several as in
 * schema_calls).  The engine keeps the last result, with its masks, and owns it; the next call of
 * one of these functions may free it.  Returns NULL with err. */
Schema *engine_schema(Engine *e, const cJSON *schema, Error *err);
Schema *engine_calls(Engine *e, const cJSON *tools, const char *name, int several, Error *err);

/* Holds the calls that the model may make in g to g->tools.  Of a tool whose schema cannot be
 * compiled, only the name is held, and a line about it is added to g->warnings. */
void engine_hold_calls(Engine *e, Generation *g);

/* Prints one line on stderr: tokens and rate of the prompt, time to the first token, tokens and
 * rate of the answer, memory. */
void print_stats(const Engine *e, const Generation *g);

#endif
