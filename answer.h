/* answer.h - the answer as it streams in, token by token, taken apart into content, thought and calls. */
#ifndef ANSWER_H
#define ANSWER_H

#include "call.h"
#include "tokenizer.h"

/* How the prompt ended, and what the answer may hold. */
typedef struct {
    int thinking;                       /* 1: a thought was asked for */
    int in_thought;                     /* 1: the prompt ended inside of a thought */
    int in_content;                     /* 1: the prompt ended inside of the content, which goes on */
    int held;                           /* 1: calls are written under the schemas of their tools */
    int raw;                            /* 1: no chat: all is content, control tokens by their names */
    const cJSON *tools;                 /* of the request, from tools_read; NULL: none.  Borrowed */
} AnswerStart;

/* In which part of the answer the next token stands. */
typedef enum {
    ANSWER_BEGIN,                       /* of the content, while it reads like a header or a call without its token */
    ANSWER_CONTENT,
    ANSWER_NAME,                        /* behind <|channel>, while what comes can be a channel's name */
    ANSWER_THOUGHT,
    ANSWER_CALL,                        /* behind <|tool_call> */
    ANSWER_TURN,                        /* behind <|turn>, while what comes can be the model's role */
} AnswerPart;

typedef struct {
    AnswerStart start;
    const Tokenizer *t;
    int channel, channel_end, call_begin, call_end, quote, response, turn, turn_end;   /* ids, -1: not in the vocabulary */
    AnswerPart part;
    int thoughts;                       /* 1: a thought was asked for, or one came */
    int echo;                           /* 1: the header of the thought that the prompt opened may come again */
    int shown;                          /* 1: content or a call has come */
    int newline;                        /* 1: a thought's newline is held back, as it may be its end */
    int bare;                           /* 1: the call that is being read has no opening token */
    long header;                        /* where in the call a <|channel> stood, -1: nowhere */
    int cut, cut_in_call;               /* 1: a turn began inside of a thought; a channel was taken out of the call */
    int n_thought, n_held;              /* tokens of thoughts, headers included; those that may be some yet */
    Buf held;                           /* a header, a name, a role or a beginning that is being read */
    Buf call;                           /* the call that is being read, see call.h */
    Buf partial;                        /* the bytes of a UTF-8 character that is not whole yet */
    ToolCall *calls;                    /* those that are complete */
    int n_calls;
    Buf warnings;                       /* a line for all that was mended, or could not be read */
} Answer;

/* t must outlive the answer.  answer_free frees what it holds. */
void answer_open(Answer *a, const Tokenizer *t, AnswerStart start);
void answer_free(Answer *a);

/* Takes the next id (not the one that ends the turn) and adds what became whole to content, to thought
 * (the text of the channel named "thought") or to a->calls.  Never splits a UTF-8 character; bytes that
 * are no UTF-8, and NUL, come out as U+FFFD. */
void answer_feed(Answer *a, int id, Buf *content, Buf *thought);

/* 1 when id ends the answer whatever the checkpoint says: <|tool_response>, behind which results have to
 * stand; <turn|>; and a <|turn> behind content or calls, as another turn is no part of this answer. */
int answer_ends(const Answer *a, int id);

/* At the end: adds what was held back, and a warning where the answer is a thought without an end. */
void answer_end(Answer *a, Buf *content, Buf *thought);

/* Adds an assistant's message as a JSON object without its closing brace: role, content (null beside calls alone), and where
 * there are any, reasoning_content and tool_calls.  n_prompt as in calls_put. */
void message_begin(Buf *out, const Buf *content, const Buf *thought, const ToolCall *calls, int n_calls, int n_prompt);

#endif
