/* chat.h - the conversation's grammar: messages to prompt tokens, answer tokens to content and thought.
 *
 * The grammar is that of the published chat template:
 *     <bos> [<|turn>system\n [<|think|>\n] SYSTEM <turn|>\n] (<|turn>user\n TEXT <turn|>\n <|turn>model\n TEXT <turn|>\n)* …
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

/* Renders messages (a JSON array as in an OpenAI chat request: role system|developer|user|assistant, content
 * a string or a list of parts {"type": "text", "text": …}, {"type": "image_url" …}, {"type": "video_url" …}; reasoning_content and a
 * thought inside an assistant's content are dropped from history as the template does) and opens the model's
 * turn.  thinking: 1 asks for a thought, 0 closes an empty one in the prompt.
 * out must be all zero but for its media; the caller frees it with prompt_free, also after an error.
 * Returns 0, or -1 with err, which names the message and the field ("messages[2].content: …"). */
int chat_render(const Tokenizer *t, const cJSON *messages, int thinking, Prompt *out, Error *err);

/* The answer as it streams in, token by token, taken apart. */
typedef struct {
    const Tokenizer *t;
    int channel, channel_end;           /* ids of <|channel> and <channel|> (-1: the vocabulary has none) */
    int state;                          /* see chat.c */
    int thoughts;                       /* 1: a thought was asked for, or one came */
    int newline;                        /* 1: a thought's newline is held back, as it may be its end */
    Buf name;                           /* the channel's name while it is being read */
    Buf partial;                        /* the bytes of a UTF-8 character that is not whole yet */
    int raw;                            /* no chat: all is content, control tokens by their names */
} ChatStream;

/* thinking as in chat_render. */
void chat_stream_open(ChatStream *s, const Tokenizer *t, int thinking);

/* Takes the next id (not the one that ends the turn) and adds what became whole to content (the answer) or
 * thought (the channel named "thought").  Never splits a UTF-8 character; bytes that are no UTF-8 come out
 * as U+FFFD. */
void chat_stream_feed(ChatStream *s, int id, Buf *content, Buf *thought);

/* At the end: adds what was held back. */
void chat_stream_end(ChatStream *s, Buf *content, Buf *thought);
void chat_stream_free(ChatStream *s);

#endif
