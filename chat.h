/* chat.h - the conversation's grammar: messages to prompt tokens, answer tokens to content and thought.
 *
 * The grammar is that of the published chat template:
 *     <bos> [<|turn>system\n [<|think|>\n] SYSTEM TOOLS <turn|>\n] (<|turn>user\n TEXT <turn|>\n <|turn>model\n TEXT <turn|>\n)* …
 *     TOOLS = (<|tool>declaration:NAME{…}<tool|>)*; a model's turn that calls:
 *     <|turn>model\n (<|tool_call>call:NAME{…}<tool_call|>)+ (<|tool_response>response:NAME{…}<tool_response|>)+ TEXT <turn|>\n
 * Only this file writes control tokens; text from outside is always encoded as text. */
#ifndef CHAT_H
#define CHAT_H

#include <cjson/cJSON.h>

#include "model.h"
#include "tokenizer.h"

/* A prompt ready for the model. */
typedef struct {
    /* Given to chat_render (see media.h): what each part of the messages that is an image or a video becomes, in order; NULL
     * leaves the part a placeholder, and so does a part beyond n_media. */
    const struct Media **media;
    int n_media;
    Ids ids;
    /* How many of the ids the next turn's prompt will begin with: up to and with the last `<|turn>model\n`.
     * What follows (an empty thought when thinking is off, and the answer) is rendered differently once it is
     * history.  (One prompt breaks the promise: after an assistant's message the template lets the next one go
     * on without this opening.) */
    int n_stable;
    Buf text;                           /* the same with control tokens visible */
    Span *span;                         /* the pictures among the ids */
    int n_spans;
} Prompt;
void prompt_free(Prompt *p);

/* A message of a conversation, {role, content}, which the caller puts into its list; text NULL: its content is still to come. */
cJSON *chat_message(const char *role, const char *text);

/* Whether a message (NULL: no) is of that role. */
int has_role(const cJSON *message, const char *role);

/* Renders messages (a JSON array as in an OpenAI chat request: role system|developer|user|assistant|tool, content
 * a string or a list of parts {"type": "text", "text": …}, {"type": "image_url" …}, {"type": "video_url" …}; a thought inside an
 * assistant's content is dropped as the template does, reasoning_content is kept between a call and its result alone) and
 * opens the model's turn.  After results of tools the model goes on in the turn in which it called.
 * tools: NULL or a JSON array as in an OpenAI request.
 * thinking: 1 asks for a thought, 0 closes an empty one in the prompt.
 * out must be all zero but for its media; the caller frees it with prompt_free, also after an error.
 * Returns 0, or -1 with err, which names the message and the field ("messages[2].content: …"). */
int chat_render(const Tokenizer *t, const cJSON *messages, const cJSON *tools, int thinking, Prompt *out, Error *err);

/* A call of a tool. */
typedef struct {
    char *name, *arguments;             /* the arguments as a JSON object */
} ToolCall;
void calls_free(ToolCall *calls, int n);

/* The answer as it streams in, token by token, taken apart. */
typedef struct {
    const Tokenizer *t;
    int channel, channel_end, call, call_end, quote, response;     /* ids of control tokens (-1: the vocabulary has none) */
    int state;                          /* see chat.c */
    int thoughts;                       /* 1: a thought was asked for, or one came */
    int newline;                        /* 1: a thought's newline is held back, as it may be its end */
    Buf name;                           /* the channel's name, or the call, while it is being read */
    Buf partial;                        /* the bytes of a UTF-8 character that is not whole yet */
    int raw;                            /* no chat: all is content, control tokens by their names */
    ToolCall *calls;                    /* those that are complete */
    int n_calls;
    Buf warning;                        /* one line about the last call that could not be read; its text is content */
} ChatStream;

/* thinking as in chat_render. */
void chat_stream_open(ChatStream *s, const Tokenizer *t, int thinking);

/* Takes the next id (not the one that ends the turn) and adds what became whole to content (the answer), to
 * thought (the channel named "thought") or to s->calls.  Never splits a UTF-8 character; bytes that are no UTF-8, and
 * NUL, come out as U+FFFD. */
void chat_stream_feed(ChatStream *s, int id, Buf *content, Buf *thought);

/* In which part of the answer the next token stands. */
typedef enum { CHAT_BEGIN, CHAT_CONTENT, CHAT_NAME /* of a channel */, CHAT_THOUGHT, CHAT_CALL } ChatPart;
ChatPart chat_stream_part(const ChatStream *s);

/* 1 when id ends the answer whatever the checkpoint says: <|tool_response>, where the results have to follow. */
int chat_stream_ends(const ChatStream *s, int id);

/* At the end: adds what was held back. */
void chat_stream_end(ChatStream *s, Buf *content, Buf *thought);
void chat_stream_free(ChatStream *s);

#endif
