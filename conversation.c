/* conversation.c - turns: the prompt of a conversation, the answer, and the calls in it.  See
 * conversation.h. */
#include "conversation.h"

#include <poll.h>
#include <stdio.h>

#include "declare.h"
#include "json.h"
#include "tools.h"

/* Rounds of calls for one question.  A model that wants more goes in circles; the value was chosen,
 * not measured. */
#define MAX_ROUNDS 32

/* What a tool may take: seconds, and bytes of its output.  Both values were chosen, not
 * measured. */
enum { TOOL_SECONDS = 60, TOOL_OUTPUT = 1 << 16 };

/* ---- the prompt ---- */

/* Turns of the user: each begins with a message of the user's. */
static int count_turns(const cJSON *messages) {
    int n = 0;
    for (const cJSON *m = messages->child; m; m = m->next) n += has_role(m, "user");
    return n;
}

/* Removes the oldest half of the turns, but never the last turn, nor the system prompt.  Returns
 * how many messages it removed. */
static int drop_turns(cJSON *messages) {
    int n_turns = count_turns(messages), keep = n_turns - n_turns / 2, n = 0;
    if (n_turns < 2) return 0;
    int at = has_role(messages->child, "system") || has_role(messages->child, "developer");
    for (;;) {
        int begins_turn = has_role(cJSON_GetArrayItem(messages, at), "user");
        if (begins_turn && n_turns <= keep) return n;
        n_turns -= begins_turn;
        cJSON_DeleteItemFromArray(messages, at);
        n++;
    }
}

int conversation_render(const Engine *e, const cJSON *messages, const cJSON *tools,
                        ChatOptions chat, Prompt *p, Error *err) {
    if (media_load(e->media, messages, p, err)) return -1;
    return chat_render(e->tokenizer, messages, tools, chat, p, err);
}

/* Renders as many messages as take `room` tokens into *p.  *kept becomes a copy of these, or
 * `messages` itself where none had to go.  Returns how many messages went, or -1 with err. */
static int render_what_fits(const Engine *e, cJSON *messages, const Generation *g, int64_t room,
                            Prompt *p, cJSON **kept, Error *err) {
    int n_dropped = 0;
    *kept = messages;
    for (;;) {
        if (conversation_render(e, *kept, g->tools, g->chat, p, err)) return -1;
        if (!e->slide || p->ids.n <= room) return n_dropped;
        if (*kept == messages) *kept = cJSON_Duplicate(messages, 1);
        int n = drop_turns(*kept);
        if (!n) return n_dropped;
        n_dropped += n;
        prompt_free(p);
    }
}

/* Exchanges the items of two lists; the lists stay where they are. */
static void exchange(cJSON *a, cJSON *b) {
    cJSON *items = a->child;
    a->child = b->child;
    b->child = items;
}

int conversation_prompt(const Engine *e, cJSON *messages, Generation *g, Prompt *p, Error *err) {
    int64_t context = e->session ? session_context(e->session) : INT64_MAX, answer = context / 4;
    cJSON *kept;
    if (g->max_tokens >= 0 && g->max_tokens < answer) answer = g->max_tokens;
    int n = render_what_fits(e, messages, g, context - answer, p, &kept, err);
    if (n >= 0 && p->ids.n > context) {
        int can_slide = !e->slide && count_turns(messages) > 1;
        int has_longer = context < model_config(e->model)->max_context;
        const char *how = has_longer ? "-c" : "the model has no longer one";
        n = fail(err, "the prompt has %d tokens, more than the context of %lld (%s)%s", p->ids.n,
                 (long long)context, how,
                 can_slide ? "; --context-overflow slide drops the oldest turns" : "");
    }
    if (n > 0) exchange(messages, kept);
    if (kept != messages) cJSON_Delete(kept);
    if (n < 0) return -1;
    g->n_dropped = n;
    g->ids = p->ids.id;
    g->n_ids = p->ids.n;
    g->n_stable = p->n_stable;
    g->in_thought = p->in_thought;
    g->begun = g->chat.continue_final ? p->text.data + p->continued : NULL;
    g->span = p->span;
    g->n_spans = p->n_spans;
    return 0;
}

/* ---- a turn ---- */

/* Adds the answer as a message.  A thought stays beside the calls that it led to, and goes
 * otherwise. */
static void add_answer(cJSON *messages, const Generation *g) {
    cJSON *m = chat_message("assistant", g->content.data ? g->content.data : "");
    if (g->n_calls) {
        Buf calls = {0};
        calls_put(&calls, g->calls, g->n_calls, g->n_ids);
        cJSON_AddItemToObject(m, "tool_calls", cJSON_Parse(calls.data));
        if (g->thought.len) cJSON_AddStringToObject(m, "reasoning_content", g->thought.data);
        buf_free(&calls);
    }
    cJSON_AddItemToArray(messages, m);
}

static void add_result(cJSON *messages, const cJSON *call, const ToolCall *c, const Buf *result) {
    cJSON *m = chat_message("tool", NULL);
    cJSON_AddStringToObject(m, "tool_call_id", json_string(call, "id"));
    cJSON_AddStringToObject(m, "name", c->name);
    cJSON_AddStringToObject(m, "content", result->data);
    cJSON_AddItemToArray(messages, m);
}

static int is_interrupted(const Engine *e) { return e->interrupted && *e->interrupted; }

/* Reads the line that the user types.  Returns 0 where Ctrl-C or the end of the terminal comes
 * first.  It waits in short turns, because a Ctrl-C between the question and the wait must end it,
 * too. */
static int read_reply(const Engine *e, FILE *terminal, char *reply, int size) {
    struct pollfd p = {.fd = fileno(terminal), .events = POLLIN};
    while (!is_interrupted(e) && poll(&p, 1, 50) <= 0) continue;
    return !is_interrupted(e) && fgets(reply, size, terminal);
}

/* Asks on the terminal, whatever stdin and stdout are.  Once interrupted, the answer is no.
 * Returns 1 or 0, or -1 when there is no terminal to ask on. */
static int is_allowed(const Engine *e, const ToolCall *call) {
    if (is_interrupted(e)) return 0;
    FILE *terminal = fopen("/dev/tty", "r+e");
    char reply[16] = "";
    if (!terminal) return -1;
    Buf question = {0};
    const char *how = call->mended ? ", which had to be mended" : "";
    buf_printf(&question, "run %s %s%s? [y/N] ", call->name, call->arguments, how);
    write_text(fileno(terminal), question.data, question.len);
    buf_free(&question);
    int got = read_reply(e, terminal, reply, sizeof reply);
    (void)fclose(terminal);
    return got && (reply[0] == 'y' || reply[0] == 'Y');
}

void warn_of_tools(const Engine *e) {
    const cJSON *tool;
    if (e->tool_dir) cJSON_ArrayForEach(tool, e->tools) {
        const char *name = json_string(json_field(tool, "function"), "name");
        if (!tool_is_there(e->tool_dir, name))
            remark("gemma4: warning: --run-tools %s: no executable for the tool %s\n", e->tool_dir,
                   name);
    }
}

/* Runs one call, if it may be run.  *result: its result, or why there is none.  A call that was
 * mended is run only once somebody has said yes to it, since the model may have meant another
 * one. */
static void run_call(const Engine *e, const ToolRunner *runner, const ToolCall *call, Buf *result) {
    int allowed = 1;
    if (!tool_named(e->tools, call->name)) buf_puts(result, "error: no such tool");
    else if (call->mended || !e->run_unasked) allowed = is_allowed(e, call);
    if (result->len) return;
    if (allowed > 0 && tool_run(runner, call->name, call->arguments, result)) {
        const char *why = result->data + strlen("error: ");
        remark("gemma4: warning: %s/%s: %.*s\n", runner->dir, call->name, (int)strcspn(why, "\n"),
               why);
    } else if (allowed < 0 && call->mended) {
        remark("gemma4: a call of %s was not run: it had to be mended, and nobody could be asked\n",
             call->name);
        buf_puts(result, "error: not run: this call was miswritten and had to be mended, and "
                 "nobody could be asked whether it is right; call again, written as it should be");
    } else if (allowed <= 0) buf_puts(result, "error: the user did not allow this call");
}

/* Runs the calls of the last message, and adds their results. */
static void run_calls(const Engine *e, cJSON *messages, const Generation *g) {
    const ToolRunner runner = {.dir = e->tool_dir, .seconds = TOOL_SECONDS,
                               .max_output = TOOL_OUTPUT, .cancel = e->interrupted};
    const cJSON *last = cJSON_GetArrayItem(messages, cJSON_GetArraySize(messages) - 1);
    const cJSON *call = json_field(last, "tool_calls")->child;
    for (int i = 0; i < g->n_calls; i++, call = call->next) {
        Buf result = {0};
        run_call(e, &runner, &g->calls[i], &result);
        add_result(messages, call, &g->calls[i], &result);
        buf_free(&result);
    }
}

void warn_of_answer(const Generation *g) {
    if (!g->tools && (g->content.len || !g->thought.len)) return;
    remark_lines(&g->warnings);
}

/* One answer of the model, which is added to messages. */
static int answer_once(Engine *e, cJSON *messages, Generation *g, Error *err) {
    Prompt prompt = {0};
    g->tools = e->tools;
    g->chat.is_checked = 1;             /* the calls are the model's, or transcript_load's */
    engine_hold_calls(e, g);
    int bad = conversation_prompt(e, messages, g, &prompt, err);
    if (!bad && g->n_dropped)
        remark("gemma4: warning: the context of %lld tokens (-c) is full: the oldest %d messages "
               "are dropped\n", (long long)session_context(e->session), g->n_dropped);
    remark_lines(&prompt.warnings);
    if (!bad) bad = generate(e, g, err);
    if (!bad) add_answer(messages, g);
    g->ids = NULL;                      /* the prompt, of which these are parts, goes now */
    g->span = NULL;
    prompt_free(&prompt);
    return bad;
}

int converse(Engine *e, cJSON *messages, Generation *g, Error *err) {
    const Generation asked = *g;
    for (int round = 0;; round++) {
        generation_free(g);
        *g = asked;
        if (answer_once(e, messages, g, err)) return -1;
        if (!g->n_calls || !e->tool_dir || g->finish == FINISH_INTERRUPTED) return 0;
        if (round == MAX_ROUNDS)
            return fail(err, "the model has called tools %d times for one answer", MAX_ROUNDS);
        warn_of_answer(g);
        run_calls(e, messages, g);
        if (is_interrupted(e)) {
            g->finish = FINISH_INTERRUPTED;
            return 0;
        }
    }
}
