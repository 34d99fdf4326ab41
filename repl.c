/* repl.c - the chat prompt on a terminal.  See repl.h.
 *
 * edit.c reads the lines.  The conversation is a list of messages as in a JSON request.  Every
 * turn renders the whole list; the session evaluates only the tokens that it does not hold yet. */
#define _GNU_SOURCE
#include "repl.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "conversation.h"
#include "edit.h"
#include "json.h"
#include "transcript.h"

static const char help[] =
    "  /new            begin a new conversation     "
    "/system TEXT  set the system prompt (/system off: none)\n"
    "  /think on|off   let the model think first    "
    "/stats        rates of the last answer, room left\n"
    "  /save FILE      write the conversation       /load FILE    read one and go on with it\n"
    "  /image FILE     an image, or with /video a video, for the next question; "
    "so does its path alone on a line\n"
    "  /read FILE      its text goes with the next message\n"
    "  /retry          answer the last message again /undo        take it back\n"
    "  /quit           leave (or Ctrl-D)            /help         this\n"
    "  A line that ends in \\ goes on in the next; pasted lines stay together.  "
    "Tab completes commands and files.\n"
    "  Ctrl-C stops an answer, or drops the line.  Ctrl-X Ctrl-E continues the line in $EDITOR.\n";

/* For completion. */
static const char *const commands[] = {"/help", "/image", "/load", "/new", "/quit", "/read",
                                       "/retry", "/save", "/stats", "/system", "/think", "/undo",
                                       "/video", NULL};

typedef struct {
    Engine *e;
    cJSON *messages;                    /* the conversation */
    cJSON *media;                       /* parts for the next question: images and videos */
    Buf system;                         /* the system prompt; empty: none */
    Buf attached;                       /* text of /read that goes with the next question */
    Editor *editor;
    Generation last;                    /* the last answer */
    int quit;
} Repl;

static volatile sig_atomic_t *interrupted;      /* the Engine's, for the signal handler */

static void on_interrupt(int signal_number) {
    (void)signal_number;
    *interrupted = 1;
}

/* ---- the conversation ---- */

/* Makes r->system the conversation's system message, instead of the one that it may have. */
static void set_system(Repl *r) {
    if (has_role(r->messages->child, "system")) cJSON_DeleteItemFromArray(r->messages, 0);
    if (r->system.len)
        cJSON_InsertItemInArray(r->messages, 0, chat_message("system", r->system.data));
}

static void drop_media(Repl *r) {
    cJSON_Delete(r->media);
    r->media = cJSON_CreateArray();
}

static void new_conversation(Repl *r) {
    drop_media(r);
    cJSON_Delete(r->messages);
    r->messages = cJSON_CreateArray();
    set_system(r);
}

static void dim(int on) {
    if (has_colours(STDOUT_FILENO)) put_escape(on ? "\033[2m" : "\033[0m");
}

/* Ends a dimmed thought, if one is being shown, and writes `lines` (line ends) behind it. */
static void end_thought(int *in_thought, const char *lines) {
    if (!*in_thought) return;
    dim(0);
    put_stdout(lines, strlen(lines));
    *in_thought = 0;
}

/* Generation.on_text: shows thoughts dimmed.  arg: 1 while a thought is shown. */
static void show(void *arg, const Buf *content, const Buf *thought) {
    int *in_thought = arg;
    if (thought->len) {
        if (!*in_thought) dim(1);
        put_stdout(thought->data, thought->len);
        *in_thought = 1;
    }
    if (!content->len) return;
    end_thought(in_thought, "\n\n");
    put_stdout(content->data, content->len);
}

static void show_call(void *arg, int i, const ToolCall *call) {
    Buf line = {0};
    (void)i;
    end_thought(arg, "\n\n");
    buf_printf(&line, "[%s %s]\n", call->name, call->arguments);
    dim(1);
    put_stdout(line.data, line.len);
    dim(0);
    buf_free(&line);
}

/* Removes all messages from number n on. */
static void forget_from(Repl *r, int n) {
    for (int i = cJSON_GetArraySize(r->messages); i > n; i--)
        cJSON_DeleteItemFromArray(r->messages, i - 1);
}

/* The number of the last user message; -1: there is none. */
static int last_question(const Repl *r) {
    int i = cJSON_GetArraySize(r->messages) - 1;
    while (i >= 0 && !has_role(cJSON_GetArrayItem(r->messages, i), "user")) i--;
    return i;
}

/* Says on stderr why the answer ended early, and how full the context is. */
static void put_remarks(Repl *r) {
    Engine *e = r->e;
    long long context = session_context(e->session);
    int held;
    if (r->last.finish == FINISH_INTERRUPTED) fputs("(stopped)\n", stderr);
    if (r->last.full)
        fprintf(stderr, "(the answer was cut: the context of %lld tokens (-c) is full; /new begins "
                "a new conversation, --context-overflow slide drops the oldest turns)\n", context);
    else if (r->last.finish == FINISH_LENGTH) fputs("(the answer was cut: -n)\n", stderr);
    warn_of_answer(&r->last);
    if (e->stats) print_stats(&r->last);
    session_ids(e->session, &held);
    if (held > context / 4 * 3)
        fprintf(stderr, "(%lld %% of the context are used; /new begins a new conversation)\n",
                100LL * held / context);
}

/* Answers the conversation, whose last message is a question, and adds the answer to it.  An answer
 * stopped by Ctrl-C is added, too; after an error the question is removed. */
static void answer(Repl *r) {
    Engine *e = r->e;
    Error err;
    int in_thought = 0;
    generation_free(&r->last);
    r->last = (Generation){
        .sampling = e->sampling, .max_tokens = e->max_tokens, .chat.thinking = e->thinking,
        .think_tokens = e->think_tokens, .on_text = show, .on_call = show_call,
        .schema = e->schema, .arg = &in_thought,
    };
    int bad = converse(e, r->messages, &r->last, &err);
    end_thought(&in_thought, "");
    *interrupted = 0;
    if (bad) {
        forget_from(r, last_question(r));
        note("gemma4: %s; /new begins a new conversation\n", err.text);
        return;
    }
    drop_media(r);
    put_stdout("\n\n", 2);
    put_remarks(r);
    /* The same question asked again may get another answer; --seed still decides which. */
    e->sampling.seed++;
}

/* Adds a question, with what is attached, and answers it. */
static void ask(Repl *r, const char *question) {
    Buf whole = {0};
    buf_puts(&whole, question);
    if (r->attached.len) buf_printf(&whole, "\n\n%s", r->attached.data);
    buf_free(&r->attached);
    cJSON *m = chat_message("user", NULL);
    media_content(m, r->media, whole.data);
    cJSON_AddItemToArray(r->messages, m);
    buf_free(&whole);
    answer(r);
}

/* ---- commands ---- */

/* /read: adds the text of a file to what goes with the next question. */
static int attach(Repl *r, const char *path, Error *err) {
    Buf text = {0};
    if (read_file(path, &text, err)) return -1;
    if (memchr(text.data, 0, text.len)) {
        buf_free(&text);
        return fail(err, "%s: a NUL byte: a message is text", path);
    }
    if (r->attached.len) buf_puts(&r->attached, "\n\n");
    buf_add(&r->attached, text.data, text.len);
    buf_free(&text);
    return 0;
}

/* /load: the conversation in a file, with its system prompt, replaces this one. */
static int load(Repl *r, const char *path, Error *err) {
    cJSON *messages = transcript_load(r->e, path, err);
    if (!messages) return -1;
    cJSON_Delete(r->messages);
    r->messages = messages;
    const cJSON *first = messages->child;
    const char *system = NULL;
    if (has_role(first, "system")) system = cJSON_GetStringValue(json_field(first, "content"));
    r->system.len = 0;
    if (system) buf_puts(&r->system, system);
    return 0;
}

/* Adds an image or a video to what goes with the next question.  The message gets the file's
 * absolute path, so that a saved conversation finds it from any directory. */
static int attach_media(Repl *r, const char *path, int is_video, Error *err) {
    char *whole = realpath(path, NULL);
    if (!whole) return fail(err, "%s: %s", path, strerror(errno));
    int bad = media_check(r->e->media, whole, is_video, err);
    if (!bad) {
        cJSON_AddItemToArray(r->media, media_part(whole, is_video));
        note("(%s goes with the next question)\n", whole);
    }
    free(whole);
    return bad;
}

/* Decodes a path as terminals paste it: perhaps in quotes, with \ before blanks, with a blank at
 * the end, or with ~ for the home directory.  Adds it to path, which the caller frees.  Returns
 * what media_kind says of it; 0 if there is no such file. */
static int pasted_path(const char *line, Buf *path) {
    size_t n = strlen(line);
    while (n && (line[n - 1] == ' ' || line[n - 1] == '\n')) n--;
    int is_quoted = n > 1 && (line[0] == '\'' || line[0] == '"') && line[n - 1] == line[0];
    if (is_quoted) buf_add(path, line + 1, n - 2);
    for (size_t i = 0; i < n && !is_quoted; i++) {
        if (line[i] == '\\' && i + 1 < n) i++;
        buf_add(path, line + i, 1);
    }
    const char *home = getenv("HOME");
    if (path->len > 1 && !memcmp(path->data, "~/", 2) && home) {
        Buf full = {0};
        buf_printf(&full, "%s%s", home, path->data + 1);
        buf_free(path);
        *path = full;
    }
    int is_file = path->len && !strchr(path->data, '\n') && !access(path->data, R_OK);
    return is_file ? media_kind(path->data) : 0;
}

static void show_stats(const Repl *r) {
    int held;
    long long room = session_context(r->e->session);
    session_ids(r->e->session, &held);
    if (r->last.answer.n) print_stats(&r->last);
    int filled = (int)(20LL * held / room);
    fprintf(stderr, "context: %d of %lld tokens used [%.*s%.*s]\n", held, room,
            filled, "####################", 20 - filled, "....................");
}

/* The commands that need a function of their own.  rest: what follows the command's name. */

static void command_system(Repl *r, const char *rest) {
    if (*rest) {
        r->system.len = 0;
        buf_puts(&r->system, strcmp(rest, "off") ? rest : "");
        set_system(r);
    }
    note("(system prompt: %s)\n", r->system.len ? r->system.data : "none");
}

static int command_think(Repl *r, const char *rest, Error *err) {
    if (!*rest) r->e->thinking = !r->e->thinking;
    else if (!strcmp(rest, "on") || !strcmp(rest, "off")) r->e->thinking = !strcmp(rest, "on");
    else return fail(err, "/think on or /think off");
    fprintf(stderr, "(thinking is %s)\n", r->e->thinking ? "on" : "off");
    return 0;
}

static int command_save(Repl *r, const char *path, Error *err) {
    if (transcript_save(r->e, r->messages, path, err)) return -1;
    note("(%d messages in %s)\n", cJSON_GetArraySize(r->messages), path);
    return 0;
}

static int command_load(Repl *r, const char *path, Error *err) {
    if (load(r, path, err)) return -1;
    note("(%d messages from %s)\n", cJSON_GetArraySize(r->messages), path);
    return 0;
}

static int command_media(Repl *r, const char *rest, int is_video, Error *err) {
    Buf path = {0};
    pasted_path(rest, &path);
    int bad = attach_media(r, path.data, is_video, err);
    buf_free(&path);
    return bad;
}

static int command_read(Repl *r, const char *path, Error *err) {
    if (attach(r, path, err)) return -1;
    fprintf(stderr, "(%zu bytes go with the next message)\n", r->attached.len);
    return 0;
}

static int command_undo(Repl *r, Error *err) {
    int i = last_question(r);
    if (i < 0) return fail(err, "nothing to undo");
    forget_from(r, i);
    fputs("(the last message is taken back)\n", stderr);
    return 0;
}

static int command_retry(Repl *r, Error *err) {
    int i = last_question(r);
    if (i < 0) return fail(err, "nothing to retry");
    forget_from(r, i + 1);
    answer(r);
    return 0;
}

/* Runs a line that begins with /. */
static void command(Repl *r, char *line) {
    char *rest = line + strcspn(line, " \t");
    if (*rest) *rest++ = 0;
    rest += strspn(rest, " \t");
    size_t n = strlen(rest);
    while (n && (rest[n - 1] == ' ' || rest[n - 1] == '\t')) rest[--n] = 0;
    static const char *const with_file[] = {"/save", "/load", "/image", "/video", "/read"};
    Error err = {""};
    int lacks_file = 0;
    for (size_t i = 0; i < sizeof with_file / sizeof *with_file; i++)
        lacks_file |= !*rest && !strcmp(line, with_file[i]);
    if (lacks_file) fail(&err, "%s needs a file", line);
    else if (!strcmp(line, "/quit") || !strcmp(line, "/exit")) r->quit = 1;
    else if (!strcmp(line, "/help")) put_stdout(help, strlen(help));
    else if (!strcmp(line, "/stats")) show_stats(r);
    else if (!strcmp(line, "/new")) {
        new_conversation(r);
        fputs("(a new conversation)\n", stderr);
    } else if (!strcmp(line, "/system")) command_system(r, rest);
    else if (!strcmp(line, "/think")) command_think(r, rest, &err);
    else if (!strcmp(line, "/save")) command_save(r, rest, &err);
    else if (!strcmp(line, "/load")) command_load(r, rest, &err);
    else if (!strcmp(line, "/image")) command_media(r, rest, 0, &err);
    else if (!strcmp(line, "/video")) command_media(r, rest, 1, &err);
    else if (!strcmp(line, "/read")) command_read(r, rest, &err);
    else if (!strcmp(line, "/undo")) command_undo(r, &err);
    else if (!strcmp(line, "/retry")) command_retry(r, &err);
    else fail(&err, "%s: no such command; /help lists them", line);
    if (*err.text) note("gemma4: %s\n", err.text);
}

/* ---- lines ---- */

/* Has the text go on in $EDITOR, and shows what comes back.  After a failure nothing is left of
 * it. */
static void compose(Repl *r, Buf *text) {
    Error err;
    if (editor_outside(r->editor, text, &err)) {
        text->len = 0;
        note("gemma4: %s\n", err.text);
    } else if (!text->len) fputs("(nothing to send)\n", stderr);
    else {
        editor_remember(r->editor, text->data);
        put_stdout(text->data, text->len);
        put_stdout("\n", 1);
    }
    buf_add(text, "", 0);
}

void repl_leave(void) { editor_leave(); }

/* Reads a question: a line, and further lines while they end in \.  With Ctrl-X Ctrl-E it goes on
 * in $EDITOR.  0: the input has ended. */
static int read_question(Repl *r, Buf *question) {
    const char *prompt = "> ";
    Buf line = {0};
    LineEnd end = LINE_GIVEN;
    int goes_on = 1;
    question->len = 0;
    buf_add(question, "", 0);
    while (goes_on) {
        end = editor_read(r->editor, prompt, &line);
        goes_on = end == LINE_GIVEN && line.len && line.data[line.len - 1] == '\\';
        if (end == LINE_GIVEN || end == LINE_OUTSIDE)
            buf_add(question, line.data, line.len - (size_t)goes_on);
        if (goes_on) buf_puts(question, "\n");
        prompt = ". ";
    }
    buf_free(&line);
    if (end == LINE_OUTSIDE) compose(r, question);
    if (end == LINE_DROPPED) {
        question->len = 0;
        question->data[0] = 0;
    }
    return end != LINE_END;
}

/* Attaches the parts that options have given for the first question. */
static int attach_parts(Repl *r, const cJSON *media, Error *err) {
    const cJSON *part;
    cJSON_ArrayForEach(part, media) {
        const cJSON *image = json_field(part, "image_url"), *video = json_field(part, "video_url");
        const char *path = cJSON_GetStringValue(json_field(video ? video : image, "url"));
        if (attach_media(r, path, video != NULL, err)) return -1;
    }
    return 0;
}

/* A line that is nothing but the path of an image or a video attaches it.  1: it was one; 0. */
static int take_path(Repl *r, const char *line) {
    Buf path = {0};
    Error why;
    int kind = pasted_path(line, &path);
    if (kind && attach_media(r, path.data, kind == 2, &why)) note("gemma4: %s\n", why.text);
    buf_free(&path);
    return kind != 0;
}

int run_repl(Engine *e, const cJSON *media, Error *err) {
    Repl r = {.e = e};
    Buf question = {0};
    interrupted = e->interrupted;
    sigaction(SIGINT, &(struct sigaction){.sa_handler = on_interrupt}, NULL);
    buf_puts(&r.system, e->system ? e->system : "");
    new_conversation(&r);
    int bad = attach_parts(&r, media, err);
    if (!bad) {
        r.editor = editor_open(commands, interrupted, err);
        bad = r.editor ? 0 : -1;
    }
    if (!bad) note("%s. /help lists the commands, Ctrl-D leaves.\n", e->name);
    while (!bad && !r.quit && read_question(&r, &question)) {
        if (!question.data[strspn(question.data, " \t\n")]) continue;
        if (take_path(&r, question.data)) continue;
        if (question.data[0] == '/') command(&r, question.data);
        else ask(&r, question.data);
    }
    editor_close(r.editor);
    generation_free(&r.last);
    cJSON_Delete(r.messages);
    cJSON_Delete(r.media);
    buf_free(&r.system);
    buf_free(&r.attached);
    buf_free(&question);
    return bad;
}
