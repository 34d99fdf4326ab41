/* info.h - what `gemma4 info` prints of a model and of the memory that a session would take. */
#ifndef INFO_H
#define INFO_H

#include "session.h"

/* A model, and a session of it on the device that was asked for. */
typedef struct {
    const char *name;
    const Model *m;
    ModelInfo model;
    SessionOptions session;
    Memory gpu;                         /* total 0: there is none */
    int64_t per_token, cache;           /* bytes of one position, of the session's context */
} Info;

/* Add it to out: as a JSON object on a line; as lines for people. */
void info_put_json(const Info *i, Buf *out);
void info_put_text(const Info *i, Buf *out);

#endif
