/* repl.c - the chat prompt on a terminal.  See repl.h.
 *
 * edit.c reads the lines.  The conversation is a list of messages as in a JSON request.  Each turn
 * renders the whole list; the session evaluates only the tokens that it does not hold yet. */
#define _GNU_SOURCE
#include "repl.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "conversation.h"
#include "dropped.h"
#include "edit.h"
#include "json.h"
#include "markdown.h"
#include "settings.h"
#include "textfile.h"
#include "transcript.h"

static const char help[] =
    "  /new, /clear         begin a new conversation\n"
    "  /retry, /regenerate  answer the last message again\n"
    "  /undo                take the last message back\n"
    "  /edit [TEXT]         write the next message in $VISUAL or $EDITOR\n"
    "  /system TEXT         set the system prompt (/system off: none)\n"
    "  /think on|off        let the model think first\n"
    "  /set [NAME VALUE]    show or change sampling, limits, how thoughts are shown\n"
    "  /image FILE          an image for the next question; /video FILE: a video\n"
    "  /read FILE           its text goes with the next message\n"
    "  /save FILE           write the conversation\n"
    "  /load FILE           read one and go on with it\n"
    "  /tools               what the model may call\n"
    "  /stats               rates of the last answer, room left\n"
    "  /history [N]         the last N lines that were typed (20)\n"
    "  /quit, /exit, /bye   leave (or Ctrl-D)\n"
    "  /help, /?            this\n"
    "  The path of an image or a video in a message goes with it.  A line that\n"
    "  ends in \\ goes on in the next; pasted lines stay together.  Tab completes\n"
    "  commands and files; Ctrl-R searches; Ctrl-X Ctrl-E opens $EDITOR.  Ctrl-C\n"
    "  stops an answer, or drops the line.\n";

typedef struct {
    Engine *e;
    cJSON *messages;                    /* the conversation */
    cJSON *media;                       /* parts for the next question: images and videos */
    Buf system;                         /* the system prompt; empty: none */
    Buf attached;                       /* text of /read that goes with the next question */
    Editor *editor;
    Generation last;                    /* the last answer */
    int used;                           /* tokens of the context that the conversation takes */
    Thoughts thoughts;                  /* how they are shown */
    int quit;
} Repl;

static volatile sig_atomic_t *interrupted;      /* the Engine's, for the signal handler */
static pthread_t chat_thread;                   /* that reads lines */

/* Passes the signal on to the thread that reads lines: see on_resize in edit.c. */
static void on_interrupt(int signal_number) {
    if (pthread_equal(pthread_self(), chat_thread)) *interrupted = 1;
    else pthread_kill(chat_thread, signal_number);
}

/* ---- the conversation ---- */

/* Makes r->system the conversation's system message, instead of the one that it may have. */
static void set_system(Repl *r) {
    if (has_role(r->messages->child, "system")) cJSON_DeleteItemFromArray(r->messages, 0);
    if (r->system.len)
        cJSON_InsertItemInArray(r->messages, 0, chat_message("system", r->system.data));
}

/* Counts the tokens of a conversation that a command has changed, at most what the context holds.
 * The session does not know them: it keeps what it has read until the next question.  Where a
 * picture's file is gone, the old count stays. */
static void count_used(Repl *r) {
    Prompt prompt = {0};
    ChatOptions chat = {.thinking = r->e->thinking};
    if (!r->messages->child) r->used = 0;
    else if (!conversation_render(r->e, r->messages, r->e->tools, chat, &prompt, NULL))
        r->used = prompt.ids.n;
    int room = (int)session_context(r->e->session);
    if (r->used > room) r->used = room;
    prompt_free(&prompt);
}

static void drop_media(Repl *r) {
    cJSON_Delete(r->media);
    r->media = cJSON_CreateArray();
}

/* Begins a conversation that has nothing but the system prompt.  What was attached is dropped. */
static void new_conversation(Repl *r) {
    drop_media(r);
    buf_free(&r->attached);
    cJSON_Delete(r->messages);
    r->messages = cJSON_CreateArray();
    set_system(r);
    count_used(r);
}

static void dim(int on) {
    if (has_colours(STDOUT_FILENO)) put_escape(on ? "\033[2m" : "\033[0m");
}

/* The part of an answer that is on the screen. */
typedef struct {
    Thoughts thoughts;
    int in_thought;                     /* 1: a thought is on the screen, and goes on */
    int can_fold;                       /* 1: the terminal can go up and erase rows */
    Buf thought;                        /* what is shown of the thought */
    double since;                       /* when the thought began */
    Markdown markdown;                  /* the content passes through it */
} Show;

/* Returns how many rows below the row of its beginning a text ends, on a terminal of so many
 * columns. */
static int rows_below(const Buf *text, int columns) {
    int row = 0, column = 0, width;
    for (size_t i = 0; i < text->len;) {
        const char *c = text->data + i;
        i += char_columns(c, text->len - i, &width);
        if (width < 0) width = 1;       /* a control character is shown as its picture */
        if (*c == '\t') {               /* stops at the last column at the latest */
            column += 8 - column % 8;
            if (column >= columns) column = columns - 1;
        } else {
            if (*c == '\n' || column + width > columns) row++, column = 0;
            if (*c != '\n') column += width;
        }
    }
    return row;
}

/* Puts one dim line in the place of the thought.  Rows that have left the screen at its top cannot
 * be erased. */
static void fold_thought(Show *s) {
    struct winsize size;
    Buf line = {0};
    if (ioctl(STDOUT_FILENO, TIOCGWINSZ, &size) || !size.ws_col || !size.ws_row) return;
    int up = rows_below(&s->thought, size.ws_col);
    if (up >= size.ws_row) up = size.ws_row - 1;
    if (up) buf_printf(&line, "\033[%dA", up);
    buf_printf(&line, "\r\033[J\033[2mthought for %.0f s", seconds() - s->since);
    put_escape(line.data);
    buf_free(&line);
}

/* Ends a dimmed thought, if one is being shown, and writes `lines` behind it: some line ends, or
 * nothing.  Without line ends the answer was stopped, and the thought is not folded. */
static void end_thought(Show *s, const char *lines) {
    if (!s->in_thought) return;
    if (s->thoughts == THOUGHTS_FOLDED && s->can_fold && *lines) fold_thought(s);
    dim(0);
    put_stdout(lines, strlen(lines));
    s->in_thought = 0;
    s->thought.len = 0;
}

static void show_thought(Show *s, const Buf *thought) {
    if (!thought->len || s->thoughts == THOUGHTS_OFF) return;
    if (!s->in_thought) {
        dim(1);
        s->since = seconds();
    }
    put_stdout(thought->data, thought->len);
    buf_add(&s->thought, thought->data, thought->len);
    s->in_thought = 1;
}

/* Generation.on_text: shows thoughts dimmed. */
static void show(void *arg, const Buf *content, const Buf *thought) {
    Show *s = arg;
    show_thought(s, thought);
    if (!content->len) return;
    end_thought(s, "\n\n");
    markdown_show(&s->markdown, content);
}

/* Generation.on_call: shows a call on a dimmed line. */
static void show_call(void *arg, int i, const ToolCall *call) {
    Show *s = arg;
    Buf line = {0};
    (void)i;
    end_thought(s, "\n\n");
    markdown_show_end(&s->markdown);
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
    if (r->last.finish == FINISH_INTERRUPTED) remark("(stopped)\n");
    if (r->last.full)
        remark("(the answer was cut: the context of %lld tokens (-c) is full; /new begins a "
               "new conversation, --context-overflow slide drops the oldest turns)\n", context);
    else if (r->last.finish == FINISH_LENGTH)
        remark("(the answer was cut: /set max-tokens says how long it may be)\n");
    warn_of_answer(&r->last);
    if (e->stats) print_stats(e, &r->last);
    session_ids(e->session, &r->used);
    if (r->used > context / 4 * 3)
        remark("(%lld %% of the context are used; /new begins a new conversation)\n",
               100LL * r->used / context);
}

/* Answers the conversation, whose last message is a question, and adds the answer to it, also one
 * that Ctrl-C has stopped.  After an error the question is removed. */
static void answer(Repl *r) {
    Engine *e = r->e;
    Error err;
    int escapes = has_colours(STDOUT_FILENO);
    Show shown = {.thoughts = r->thoughts, .can_fold = escapes};
    if (escapes && e->markdown) shown.markdown.columns = terminal_columns();
    generation_free(&r->last);
    r->last = (Generation){
        .sampling = e->sampling, .max_tokens = e->max_tokens, .chat.thinking = e->thinking,
        .think_tokens = e->think_tokens, .on_text = show, .on_call = show_call,
        .schema = e->schema, .arg = &shown,
    };
    int bad = converse(e, r->messages, &r->last, &err);
    end_thought(&shown, "");
    markdown_show_end(&shown.markdown);
    buf_free(&shown.thought);
    markdown_free(&shown.markdown);
    *interrupted = 0;
    if (bad) {
        forget_from(r, last_question(r));
        note("gemma4: %s; /new begins a new conversation\n", err.text);
        return;
    }
    drop_media(r);
    put_stdout("\n\n", 2);
    put_remarks(r);
    /* The next answer to the same question may be another one.  --seed still decides which. */
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

/* /load: the conversation in a file, with its system prompt, replaces this one. */
static int load(Repl *r, const char *path, Error *err) {
    cJSON *messages = transcript_load(r->e, path, err);
    if (!messages) return -1;
    cJSON_Delete(r->messages);
    r->messages = messages;
    const cJSON *first = messages->child;
    const char *system = NULL;
    if (has_role(first, "system")) system = json_string(first, "content");
    r->system.len = 0;
    if (system) buf_puts(&r->system, system);
    count_used(r);
    return 0;
}

static int is_attached(const Repl *r, const char *path) {
    const cJSON *part;
    int is_video;
    cJSON_ArrayForEach(part, r->media)
        if (!strcmp(media_path(part, &is_video), path)) return 1;
    return 0;
}

/* Adds an image or a video to what goes with the next question, unless it is there already.  The
 * message gets the file's absolute path, so that a saved conversation finds it from any
 * directory. */
static int attach_media(Repl *r, const char *path, int is_video, Error *err) {
    char *whole = realpath(path, NULL);
    if (!whole) return fail(err, "%s: %s", path, strerror(errno));
    int is_new = !is_attached(r, whole), bad = 0;
    if (!is_new) note("(%s goes with the next question already)\n", whole);
    if (is_new) bad = media_check(r->e->media, whole, is_video, err);
    if (is_new && !bad) {
        cJSON_AddItemToArray(r->media, media_part(whole, is_video));
        note("(%s goes with the next question)\n", whole);
    }
    free(whole);
    return bad;
}

static void show_stats(const Repl *r) {
    long long room = session_context(r->e->session);
    if (r->last.answer.n) print_stats(r->e, &r->last);
    int filled = (int)(20LL * r->used / room);
    fprintf(stderr, "context: %d of %lld tokens used [%.*s%.*s]\n", r->used, room,
            filled, "####################", 20 - filled, "....................");
}

/* The functions of commands.  rest, path: what follows the command's name. */

static void command_system(Repl *r, const char *rest) {
    if (*rest) {
        r->system.len = 0;
        buf_puts(&r->system, strcmp(rest, "off") ? rest : "");
        set_system(r);
        count_used(r);
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

static void show_attached(const Repl *r) {
    fprintf(stderr, "(%zu bytes go with the next message)\n", r->attached.len);
}

static int command_read(Repl *r, const char *path, Error *err) {
    if (attach_text(path, &r->attached, err)) return -1;
    show_attached(r);
    return 0;
}

static int command_set(Repl *r, const char *rest, Error *err) {
    Buf out = {0};
    int bad = 0;
    if (*rest) bad = settings_change(r->e, &r->thoughts, rest, &out, err);
    else settings_list(r->e, r->thoughts, &out);
    if (!*rest) put_stdout(out.data, out.len);
    else if (!bad) note("(%.*s)\n", (int)out.len - 1, out.data);
    buf_free(&out);
    return bad;
}

/* /tools: the name of each, and the first line of its description. */
static void command_tools(const Repl *r) {
    const Engine *e = r->e;
    const cJSON *tool;
    Buf out = {0};
    cJSON_ArrayForEach(tool, e->tools) {
        const cJSON *function = json_field(tool, "function");
        const char *text = json_string(function, "description");
        buf_printf(&out, "  %s", json_string(function, "name"));
        if (text) buf_printf(&out, "  %.*s", (int)strcspn(text, "\n"), text);
        buf_puts(&out, "\n");
    }
    if (!out.len) buf_puts(&out, "(the model may call nothing: --tools FILE says what)\n");
    else if (!e->tool_dir) buf_puts(&out, "(calls are shown and not run: --run-tools DIR)\n");
    else
        buf_printf(&out, "(calls run the programs in %s%s)\n", e->tool_dir,
                   e->run_unasked ? "" : ", once you say yes");
    put_stdout(out.data, out.len);
    buf_free(&out);
}

static int command_history(Repl *r, const char *rest, Error *err) {
    char *end;
    long n = *rest ? strtol(rest, &end, 10) : 20;
    if (n < 1 || n > 1000 || (*rest && *end))
        return fail(err, "/history %s: not a whole number from 1 to 1000", rest);
    Buf out = {0};
    editor_history(r->editor, (int)n, &out);
    put_stdout(out.data ? out.data : "", out.len);
    buf_free(&out);
    return 0;
}

static int command_undo(Repl *r, Error *err) {
    int i = last_question(r);
    if (i < 0) return fail(err, "nothing to undo");
    forget_from(r, i);
    count_used(r);
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

/* Lets the user edit the text in $EDITOR, and shows the result.  After a failure *text is empty,
 * and the history has what it was. */
static void compose(Repl *r, Buf *text) {
    Error err;
    if (editor_outside(r->editor, text, &err)) {
        if (text->len) editor_remember(r->editor, text->data);
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

/* media_kind of the file that the whole text names, with plain blanks in its path perhaps; or 0.
 * *path becomes the decoded path. */
static int whole_is_path(const char *text, Buf *path) {
    path_of(text, strlen(text), path);
    return access(path->data, R_OK) ? 0 : media_kind(path->data);
}

/* Attaches the pictures and videos that the text names, and reports those that cannot be read.
 * Returns 1 where the text is nothing but their paths. */
static int take_paths(Repl *r, const char *text) {
    Buf path = {0};
    Error why;
    int only = 1, n = 0, kind = whole_is_path(text, &path);
    if (kind) text += strlen(text);
    else kind = next_dropped(&text, &path, &only);
    for (; kind; kind = next_dropped(&text, &path, &only), n++)
        if (attach_media(r, path.data, kind == 2, &why)) note("gemma4: %s\n", why.text);
    buf_free(&path);
    return n && only;
}

/* Takes a text that is no command: paths of pictures and videos, or a question. */
static void take_text(Repl *r, const char *text) {
    if (text[strspn(text, " \t\n")] && !take_paths(r, text)) ask(r, text);
}

static void command_edit(Repl *r, const char *rest) {
    Buf text = {0};
    buf_puts(&text, rest);
    compose(r, &text);
    take_text(r, text.data);
    buf_free(&text);
}

/* ---- which command ---- */

typedef enum { NEW, RETRY, UNDO, EDIT, SYSTEM, THINK, SET, IMAGE, VIDEO, READ, SAVE, LOAD, TOOLS,
               STATS, HISTORY, QUIT, HELP, UNKNOWN } Command;

/* All names of each command.  Some are names that other programs have for it. */
static const struct { const char *name; Command command; } named[] = {
    {"/new", NEW}, {"/clear", NEW}, {"/reset", NEW}, {"/retry", RETRY}, {"/regenerate", RETRY},
    {"/regen", RETRY}, {"/undo", UNDO}, {"/edit", EDIT}, {"/system", SYSTEM}, {"/think", THINK},
    {"/set", SET}, {"/image", IMAGE}, {"/video", VIDEO}, {"/read", READ}, {"/save", SAVE},
    {"/load", LOAD}, {"/tools", TOOLS}, {"/stats", STATS}, {"/history", HISTORY}, {"/quit", QUIT},
    {"/exit", QUIT}, {"/bye", QUIT}, {"/q", QUIT}, {"/help", HELP}, {"/?", HELP},
};

/* The names that Tab completes. */
static const char *const commands[] = {
    "/bye", "/clear", "/edit", "/exit", "/help", "/history", "/image", "/load", "/new", "/quit",
    "/read", "/regenerate", "/retry", "/save", "/set", "/stats", "/system", "/think", "/tools",
    "/undo", "/video", NULL,
};

static Command command_named(const char *name) {
    for (size_t i = 0; i < sizeof named / sizeof *named; i++)
        if (!strcmp(named[i].name, name)) return named[i].command;
    return UNKNOWN;
}

/* The command that a line begins with. */
static Command command_of(const char *line) {
    Buf word = {0};
    buf_add(&word, line, strcspn(line, " \t"));
    Command command = command_named(word.data);
    buf_free(&word);
    return command;
}

/* Cuts a line behind its first word, the name of a command.  Returns the rest of the line, without
 * the blanks around it. */
static char *split_command(char *line) {
    char *rest = line + strcspn(line, " \t");
    if (*rest) *rest++ = 0;
    rest += strspn(rest, " \t");
    size_t n = strlen(rest);
    while (n && (rest[n - 1] == ' ' || rest[n - 1] == '\t')) rest[--n] = 0;
    return rest;
}

/* Runs a command that takes a file.  name: the command's; text: the file's path, as it is typed.
 * Returns 0, or -1 with err. */
static int command_with_file(Repl *r, Command command, const char *name, const char *text,
                             Error *err) {
    Buf path = {0};
    int bad;
    path_of(text, strlen(text), &path);
    if (!path.len) bad = fail(err, "%s needs a file", name);
    else if (!strcmp(path.data, "-")) bad = fail(err, "%s -: stdin is the chat", name);
    else if (command == READ) bad = command_read(r, path.data, err);
    else if (command == SAVE) bad = command_save(r, path.data, err);
    else if (command == LOAD) bad = command_load(r, path.data, err);
    else bad = attach_media(r, path.data, command == VIDEO, err);
    buf_free(&path);
    return bad;
}

/* Runs a line that begins with /. */
static void run_command(Repl *r, char *line) {
    const char *rest = split_command(line);
    Command command = command_named(line);
    int takes_none = command == NEW || command == RETRY || command == UNDO || command == TOOLS ||
                     command == STATS || command == QUIT || command == HELP;
    int bad = 0;
    Error err;
    if (takes_none && *rest) {
        note("gemma4: %s takes nothing behind it: %s\n", line, rest);
        return;
    }
    switch (command) {
    case NEW:
        new_conversation(r);
        fputs("(a new conversation)\n", stderr);
        break;
    case RETRY: bad = command_retry(r, &err); break;
    case UNDO: bad = command_undo(r, &err); break;
    case EDIT: command_edit(r, rest); break;
    case SYSTEM: command_system(r, rest); break;
    case THINK: bad = command_think(r, rest, &err); break;
    case SET: bad = command_set(r, rest, &err); break;
    case IMAGE: case VIDEO: case READ: case SAVE: case LOAD:
        bad = command_with_file(r, command, line, rest, &err);
        break;
    case TOOLS: command_tools(r); break;
    case STATS: show_stats(r); break;
    case HISTORY: bad = command_history(r, rest, &err); break;
    case QUIT: r->quit = 1; break;
    case HELP: put_stdout(help, strlen(help)); break;
    default: bad = fail(&err, "%s: no such command; /help lists them", line);
    }
    if (bad) note("gemma4: %s\n", err.text);
}

/* ---- lines ---- */

/* Makes the prompt, with the share of the context that is used if that is more than half. */
static void put_meter(const Repl *r, char prompt[32]) {
    long long room = session_context(r->e->session);
    if (r->used > room / 2) snprintf(prompt, 32, "[%d %%] > ", (int)(100LL * r->used / room));
    else snprintf(prompt, 32, "> ");
}

/* Reads a question or a command: a line, and a further line after each that ends in \.  With Ctrl-X
 * Ctrl-E it goes on in $EDITOR.  Returns 0 when the input has ended. */
static int read_question(Repl *r, Buf *question) {
    char meter[32];
    const char *prompt = meter;
    Buf line = {0};
    put_meter(r, meter);
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
        int is_video;
        const char *path = media_path(part, &is_video);
        if (attach_media(r, path, is_video, err)) return -1;
    }
    return 0;
}

/* Whether a line is a command: it begins with /, and not with the path of a picture or video. */
static int is_command_line(const char *line) {
    Buf path = {0};
    int only = 1;
    if (line[0] != '/') return 0;
    int is_path = whole_is_path(line, &path) != 0;
    if (!is_path && command_of(line) == UNKNOWN)
        is_path = next_dropped(&line, &path, &only) && only;
    buf_free(&path);
    return !is_path;
}

int run_repl(Engine *e, const char *file, const cJSON *media, const char *text, Error *err) {
    Repl r = {.e = e, .thoughts = THOUGHTS_FOLDED};
    Buf question = {0};
    interrupted = e->interrupted;
    chat_thread = pthread_self();
    sigaction(SIGINT, &(struct sigaction){.sa_handler = on_interrupt}, NULL);
    buf_puts(&r.system, e->system ? e->system : "");
    new_conversation(&r);
    buf_puts(&r.attached, text ? text : "");
    const int thinks = e->thinking;     /* --think counts beside a file that says no */
    int bad = (file && command_load(&r, file, err)) || attach_parts(&r, media, err) ? -1 : 0;
    e->thinking |= thinks;
    if (!bad) {
        r.editor = editor_open(commands, setting_names, interrupted, err);
        bad = r.editor ? 0 : -1;
    }
    if (!bad) remark("%s. /help lists the commands, Ctrl-D leaves.\n", e->name);
    if (!bad && r.attached.len) show_attached(&r);
    while (!bad && !r.quit && read_question(&r, &question)) {
        if (is_command_line(question.data)) run_command(&r, question.data);
        else take_text(&r, question.data);
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
