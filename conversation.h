/* conversation.h - a conversation: its messages, and the turn in which the model answers them. */
#ifndef CONVERSATION_H
#define CONVERSATION_H

#include "generate.h"

/* Renders messages, with their pictures, into *p, which the caller frees in any case.  tools and
 * chat are as in chat_render.  Returns 0, or -1 with err. */
int conversation_render(const Engine *e, const cJSON *messages, const cJSON *tools,
                        ChatOptions chat, Prompt *p, Error *err);

/* Renders messages, with their pictures, into *p and makes this the prompt of g.  The caller has
 * filled in g->chat, g->tools and g->max_tokens, and frees p once it is done with g. With e->slide,
 * where the prompt leaves less than a quarter of the context to the answer (or less than
 * max_tokens, if that is less), the oldest half of the turns goes from messages, again and again;
 * so the following prompts begin alike for a while.  The system prompt and the last turn stay.
 * Returns 0, or -1 with err and messages as they were. */
int conversation_prompt(const Engine *e, cJSON *messages, Generation *g, Prompt *p, Error *err);

/* The turn of the model: renders messages with e->tools, generates, and adds the answer to
 * messages.  With an e->tool_dir the calls of e->tools are run there (60 s and 64 KB each), their
 * results are added, and the model goes on until an answer holds no call.  The user is asked on the
 * terminal before each call unless e->run_unasked; before a call that had to be mended, always.
 * The caller has filled in g but for the prompt.  g holds the last answer afterwards; the answers
 * before it are in messages alone.  Returns 0, or -1 with err: messages then hold what was
 * complete. */
int converse(Engine *e, cJSON *messages, Generation *g, Error *err);

/* Says on stderr which of e->tools have no executable in e->tool_dir, if there is one. */
void warn_of_tools(const Engine *e);

/* Says on stderr what the user should know of an answer, a line each.  Where there are no tools, it
 * says nothing of calls: their text stands in the answer. */
void warn_of_answer(const Generation *g);

#endif
