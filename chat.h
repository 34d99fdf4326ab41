/* chat.h - the conversation's grammar: messages to prompt tokens.  (answer.h is the way back.)
 *
 * The grammar is that of the published chat template of 2026-07-09:
 *     <bos> [<|turn>system\n [<|think|>\n] SYSTEM TOOLS <turn|>\n]
 *     (<|turn>user\n TEXT <turn|>\n <|turn>model\n ANSWER <turn|>\n)* …
 * TOOLS = (<|tool>declaration:NAME{…}<tool|>)*; an ANSWER is one or more of
 *     [<|channel>thought\n THOUGHT \n<channel|>] (<|tool_call>call:NAME{…}<tool_call|>)*
 *     (<|tool_response>response:NAME{…}<tool_response|>)* TEXT
 * Only this file writes control tokens; text from outside is always encoded as text. */
#ifndef CHAT_H
#define CHAT_H

#include <cjson/cJSON.h>

#include "model.h"
#include "tokenizer.h"

#define THOUGHT_NAME "thought\n"        /* the name of a thought's channel, behind <|channel> */
#define QUOTE "<|\"|>"                  /* both ends of a string, in all that is about tools */

/* How a conversation is rendered, under the names of a request's fields. */
typedef struct {
    /* enable_thinking: 1 asks for a thought, 0 closes an empty thought in the prompt. */
    int thinking;
    int preserve_thinking;              /* 1: thoughts stay beside the calls of earlier turns */
    /* continue_final_message: the model goes on with the last message, which is the assistant's. */
    int continue_final;
    int is_checked;                     /* 1: the messages were rendered before, with the warnings
                                         * of missing content and bad arguments */
} ChatOptions;

/* A part of a message that is an image or a video, and what media_load has made of it. */
typedef struct {
    const cJSON *part;
    const struct Media *media;
} PartMedia;

/* A prompt ready for the model. */
typedef struct {
    /* [n_media] given to chat_render, see media.h.  A part that is not among them becomes the
     * template's placeholder. */
    PartMedia *media;
    int n_media;
    Ids ids;
    /* How many of the ids the next turn's prompt will begin with: those up to and with the last
     * `<|turn>model\n`, or the last result of a tool.  What follows (an empty thought when thinking
     * is off, a thought that the next question drops, and the answer) is rendered differently once
     * it is history.  One prompt breaks the promise: an assistant's message at the end is closed,
     * but where another message of the assistant follows, the template does not close it. */
    int n_stable;
    int in_thought;                     /* 1: the prompt ends inside of a thought, which goes on */
    size_t continued;                   /* with continue_final: where in the text the content of the
                                         * last message begins */
    Buf text;                           /* the prompt as text, with the names of control tokens */
    PictureSpan *span;                  /* [n_spans] the pictures among the ids */
    int n_spans;
    Buf warnings;                       /* a line for each flaw of a file, from media_load,
                                         * and for arguments of calls that are no object */
} Prompt;
void prompt_free(Prompt *p);

/* Returns a new message of a conversation, {role, content}, which the caller puts into its list.
 * text NULL: the caller adds the content. */
cJSON *chat_message(const char *role, const char *text);

/* Whether a message is of that role.  A message that is NULL is not. */
int has_role(const cJSON *message, const char *role);

/* The name of the tool whose result a message contains: the name in the call with the message's
 * tool_call_id, or else the message's own `name`, which Ollama calls `tool_name`.  NULL: it has
 * none, and the model reads "unknown". */
const char *chat_result_name(const cJSON *calls, const cJSON *message);

/* Renders messages and opens the model's turn, or with continue_final leaves it open.
 * messages: a JSON array as in an OpenAI chat request: role system|developer|user|assistant|tool,
 *     content a string or a list of parts: texts ({"type": "text", "text": …}, input_text,
 *     output_text, refusal), pictures and videos (image_url, video_url …), thoughts (thinking,
 *     reasoning).  A thought inside an assistant's text is dropped, as the template does it; one in
 *     `reasoning`, `reasoning_content`, `thinking` or parts stays until the next question.
 * tools: NULL or a list from tools_read (declare.h).
 * out is all zero but for its media; the caller frees it with prompt_free, also after an error.
 * Returns 0, or -1 with err, which names the message and the field ("messages[2].content: …"). */
int chat_render(const Tokenizer *t, const cJSON *messages, const cJSON *tools, ChatOptions options,
                Prompt *out, Error *err);

#endif
