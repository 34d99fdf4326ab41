/* answer.h - parts an answer into content, thought and calls while it streams. */
#ifndef ANSWER_H
#define ANSWER_H

#include "call.h"
#include "tokenizer.h"

/* How the prompt ended, and what the answer may hold. */
typedef struct {
    int thinking;                       /* 1: a thought was asked for */
    int in_thought;                     /* 1: the prompt ended inside a thought */
    int in_content;                     /* 1: the prompt ended inside the content, which goes on */
    int constrained;                    /* 1: sampling was constrained: calls fit their schemas */
    int raw;                            /* 1: no chat: even names of control tokens are content */
    const cJSON *tools;                 /* the request's, from tools_read; NULL: none.  The caller
                                         * owns them; they must outlive the answer */
} AnswerStart;

/* The part of the answer that the next token belongs to. */
typedef enum {
    ANSWER_BEGIN,                       /* not certain: content, or the header of a thought or a
                                         * call without its opening token */
    ANSWER_CONTENT,
    ANSWER_NAME,                        /* behind <|channel>, while it may be a channel's name */
    ANSWER_THOUGHT,
    ANSWER_CALL,                        /* behind <|tool_call> */
    ANSWER_TURN,                        /* behind <|turn>, while it may be the model's role */
} AnswerPart;

typedef struct {
    AnswerStart start;
    const Tokenizer *t;
    /* Ids of control tokens; -1: not in the vocabulary. */
    int channel, channel_end, call_begin, call_end, quote, response, turn, turn_end;
    AnswerPart part;
    int thoughts;                       /* 1: a thought was asked for, or one has come */
    int echo;                           /* 1: the prompt opened a thought, whose header the model
                                         * may write again */
    int shown;                          /* 1: content or a call has come */
    int newline;                        /* 1: a newline, perhaps the thought's last, is held back */
    int bare;                           /* 1: the open call has no opening token */
    long header;                        /* where in the open call a <|channel> stood; -1: nowhere */
    int stray;                          /* 1: a channel ended in the content that had not begun */
    int cut;                            /* 1: a turn began inside a thought */
    int cut_in_call;                    /* 1: a channel was removed from the open call */
    int n_thought;                      /* number of tokens of thoughts, with their headers */
    int n_held;                         /* number of tokens in `held`: perhaps a thought's header */
    Buf held;                           /* text that is held back until it is certain what it is:
                                         * in the parts BEGIN, NAME and TURN, and with `echo` */
    Buf call;                           /* the open call, in the notation of call.h */
    Buf line;                           /* the beginning of the content's last line */
    Buf partial;                        /* the first bytes of an incomplete UTF-8 character */
    ToolCall *calls;                    /* [n_calls] the complete ones */
    int n_calls;
    Buf warnings;                       /* a line for each kind of mend, and for unreadable calls */
} Answer;

/* Sets up an answer: *a needs no initialization.  t must outlive the answer.  answer_free frees
 * what the answer owns: all Bufs and calls. */
void answer_open(Answer *a, const Tokenizer *t, AnswerStart start);
void answer_free(Answer *a);

/* Takes the next id, except the one that ends the turn.  Adds text to content or thought as soon as
 * it is certain to which of them the text belongs, and a complete call to a->calls.  Never splits a
 * UTF-8 character.  Bytes that are not UTF-8, and NUL unless the text is raw, become U+FFFD. */
void answer_feed(Answer *a, int id, Buf *content, Buf *thought);

/* Returns 1 when id ends the answer, even if generation_config.json does not list it: <turn|>;
 * <|tool_response>, because the caller has to write the results; <|turn> behind content or calls,
 * because the next turn does not belong to this answer. */
int answer_ends(const Answer *a, int id);

/* The answer is over: adds what was held back, and warns if the answer consists of a thought
 * without end. */
void answer_end(Answer *a, Buf *content, Buf *thought);

/* Adds an assistant message to out: a JSON object without its closing brace, so that the caller can
 * add fields.  It has role, content (null if there are only calls) and, if there are any,
 * reasoning_content and tool_calls.  n_prompt as in calls_put. */
void message_begin(Buf *out, const Buf *content, const Buf *thought, const ToolCall *calls,
                   int n_calls, int n_prompt);

#endif
