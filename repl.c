/* repl.c - the chat prompt on a terminal.  See repl.h.
 *
 * libedit reads the lines.  The conversation is a list of messages as in a JSON request.  Every
 * turn renders the whole list; the session evaluates only the tokens that it does not hold yet. */
#define _GNU_SOURCE
#include "repl.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#define Tokenizer EditTokenizer         /* libedit's header defines another Tokenizer */
#include <histedit.h>
#undef Tokenizer
#include <langinfo.h>
#include <locale.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <termios.h>
#include <unistd.h>
#include <wchar.h>

#include "conversation.h"
#include "json.h"
#include "textfile.h"
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
    "  Ctrl-C stops an answer, or drops the line.\n";

/* For completion. */
static const char *const commands[] = {"/help", "/image", "/load", "/new", "/quit", "/read",
                                       "/retry", "/save", "/stats", "/system", "/think", "/undo",
                                       "/video"};

typedef struct {
    Engine *e;
    cJSON *messages;                    /* the conversation */
    cJSON *media;                       /* parts for the next question: images and videos */
    Buf system;                         /* the system prompt; empty: none */
    Buf attached;                       /* text of /read that goes with the next question */
    EditLine *edit;
    History *history;
    const char *prompt;                 /* what libedit shows before the line */
    int line_dropped;                   /* 1: Ctrl-C was pressed while editing */
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
    if (attach_text(path, &r->attached, err)) return -1;
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

/* ---- the terminal ---- */

static char *prompt_text(EditLine *edit) {
    Repl *r;
    el_get(edit, EL_CLIENTDATA, &r);
    return (char *)r->prompt;
}

/* Ctrl-C.  While a line is edited it is no signal but a key that is bound to this function (see
 * open_terminal).  It ends the line; read_question then drops it. */
static unsigned char drop_line(EditLine *edit, int key) {
    Repl *r;
    (void)key;
    el_get(edit, EL_CLIENTDATA, &r);
    r->line_dropped = 1;
    put_stdout("^C\n", 3);
    return CC_NEWLINE;
}

/* A paste.  The terminal sends it between \033[200~, which is bound to this function, and
 * \033[201~.  Its line ends are inserted as text, so that they do not end the message. */
static unsigned char paste(EditLine *edit, int key) {
    static const wchar_t end[] = L"\033[201~";
    wchar_t *text = NULL, c;
    size_t n = 0, n_end = sizeof end / sizeof *end - 1;
    (void)key;
    while (el_wgetc(edit, &c) == 1) {
        text = xrealloc(text, (int64_t)n + 2, sizeof *text);
        text[n++] = c == '\r' ? '\n' : c;
        text[n] = 0;
        if (c == 3) break;              /* Ctrl-C: the user gave up waiting for the end */
        if (n < n_end || wmemcmp(text + n - n_end, end, n_end)) continue;
        text[n - n_end] = 0;
        el_winsertstr(edit, text);
        break;
    }
    free(text);
    return CC_REFRESH;
}

/* Completion by Tab.  Candidates are commands, or the files of a directory. */
typedef struct {
    const char *word;                   /* the part that has been typed */
    int n;                              /* number of candidates */
    Buf common;                         /* what all candidates begin with */
    Buf list;                           /* all candidates, to be shown */
} Completion;

/* Adds name, with `tail` behind it, if it begins with the word. */

static void add_candidate(Completion *c, const char *name, const char *tail) {
    if (strncmp(name, c->word, strlen(c->word))) return;
    Buf whole = {0};
    size_t same = 0;
    buf_printf(&whole, "%s%s", name, tail);
    if (c->n++ == 0) same = whole.len;
    else
        while (same < c->common.len && same < whole.len &&
               c->common.data[same] == whole.data[same])
            same++;
    c->common.len = 0;
    buf_add(&c->common, whole.data, same);
    buf_printf(&c->list, "%s  ", whole.data);
    buf_free(&whole);
}

/* Adds the files that a typed path may become. */
static void add_files(Completion *c, const char *path) {
    const char *slash = strrchr(path, '/');
    Buf dir = {0}, full = {0};
    if (slash) buf_add(&dir, path, (size_t)(slash - path) + 1);
    else buf_puts(&dir, "./");
    c->word = slash ? slash + 1 : path;
    DIR *d = opendir(dir.data);
    for (struct dirent *f; d && (f = readdir(d));) {
        struct stat info;
        if (f->d_name[0] == '.' && c->word[0] != '.') continue;
        full.len = 0;
        buf_printf(&full, "%s%s", dir.data, f->d_name);
        int is_directory = !stat(full.data, &info) && S_ISDIR(info.st_mode);
        add_candidate(c, f->d_name, is_directory ? "/" : " ");
    }
    if (d) closedir(d);
    buf_free(&dir);
    buf_free(&full);
}

/* Tab: inserts what all candidates have in common or, if that is nothing new, lists them. */
static unsigned char complete(EditLine *edit, int key) {
    const LineInfo *info = el_line(edit);
    Buf line = {0};
    Completion c = {0};
    (void)key;
    buf_add(&line, info->buffer, (size_t)(info->cursor - info->buffer));
    char *space = strchr(line.data, ' ');
    c.word = line.data;
    if (line.data[0] == '/' && !space) {
        for (size_t i = 0; i < sizeof commands / sizeof *commands; i++)
            add_candidate(&c, commands[i], " ");
    } else if (line.data[0] == '/') add_files(&c, space + 1);
    size_t typed = strlen(c.word);
    int grew = c.common.len > typed && !el_insertstr(edit, c.common.data + typed);
    if (!grew && c.n > 1) {
        put_stdout("\n", 1);
        put_stdout(c.list.data, c.list.len);
        put_stdout("\n", 1);
    }
    unsigned char result = grew ? CC_REFRESH : CC_REFRESH_BEEP;
    if (!grew && c.n > 1) result = CC_REDISPLAY;
    buf_free(&line);
    buf_free(&c.common);
    buf_free(&c.list);
    return result;
}

static void history_path(Buf *path) {
    const char *home = getenv("HOME");
    buf_printf(path, "%s/.gemma4_history", home ? home : ".");
}

/* Writes the history to its file, after every line, since the program may be killed at any time.
 * Only the user may read it: it contains what was typed.  If it cannot be written, nothing is said;
 * a file that is not regular (a link to /dev/null) stays as it is. */
static void save_history(Repl *r) {
    HistEvent event;
    struct stat info;
    Buf path = {0};
    FILE *f = NULL;
    history_path(&path);
    int fd = open(path.data, O_WRONLY | O_CREAT | O_NONBLOCK | O_CLOEXEC, 0600);
    int is_regular = fd >= 0 && !fstat(fd, &info) && S_ISREG(info.st_mode);
    if (is_regular && !fchmod(fd, 0600) && !ftruncate(fd, 0)) f = fdopen(fd, "w");
    if (f) history(r->history, &event, H_SAVE_FP, f);
    if (f) (void)fclose(f);
    else if (fd >= 0) close(fd);
    buf_free(&path);
}

static struct termios before;           /* the terminal's settings before open_terminal */
static volatile sig_atomic_t is_open;   /* 1: `before` is set */

void repl_leave(void) {
    if (!is_open) return;
    signal(SIGTTOU, SIG_IGN);           /* in the background, tcsetattr would stop the program */
    tcsetattr(STDIN_FILENO, TCSANOW, &before);
    if (write(STDOUT_FILENO, "\033[?2004l", 8) < 0) return;         /* no more bracketed pastes */
}

/* Sets up libedit: keys, history, bracketed pastes. */
static int open_terminal(Repl *r, Error *err) {
    HistEvent event;
    Buf path = {0};
    is_open = !tcgetattr(STDIN_FILENO, &before);
    setlocale(LC_CTYPE, "");
    if (strcmp(nl_langinfo(CODESET), "UTF-8")) setlocale(LC_CTYPE, "C.UTF-8");
    r->edit = el_init("gemma4", stdin, stdout, stderr);
    r->history = history_init();
    if (!r->edit || !r->history) return fail(err, "cannot set up the terminal");
    el_set(r->edit, EL_CLIENTDATA, r);
    el_set(r->edit, EL_PROMPT, prompt_text);
    el_set(r->edit, EL_EDITOR, "emacs");
    el_set(r->edit, EL_HIST, history, r->history);
    /* el_wset, because el_set would copy the names and leak the copies. */
    el_wset(r->edit, EL_ADDFN, L"drop-line", L"Drop the line", drop_line);
    el_wset(r->edit, EL_ADDFN, L"paste", L"Insert pasted text", paste);
    el_wset(r->edit, EL_ADDFN, L"complete", L"Complete a command or a file", complete);
    el_set(r->edit, EL_BIND, "^C", "drop-line", NULL);
    el_set(r->edit, EL_BIND, "^I", "complete", NULL);
    el_set(r->edit, EL_BIND, "\033[200~", "paste", NULL);
    el_set(r->edit, EL_BIND, "^R", "em-inc-search-prev", NULL);
    el_set(r->edit, EL_SETTY, "-d", "-isig", NULL);
    el_source(r->edit, NULL);           /* ~/.editrc */
    history(r->history, &event, H_SETSIZE, 1000);
    history(r->history, &event, H_SETUNIQUE, 1);
    history_path(&path);
    struct stat info;
    if (!stat(path.data, &info) && S_ISREG(info.st_mode))       /* opening a pipe would wait */
        history(r->history, &event, H_LOAD, path.data);
    buf_free(&path);
    put_escape("\033[?2004h");          /* bracketed pastes, see paste */
    return 0;
}

static void close_terminal(Repl *r) {
    repl_leave();
    if (r->edit) el_end(r->edit);
    if (r->history) history_end(r->history);
    is_open = 0;
}

/* Adds a line of n characters to the history. */
static void remember(Repl *r, const char *line, int n) {
    HistEvent event;
    Buf entry = {0};
    buf_add(&entry, line, (size_t)n);
    history(r->history, &event, H_ENTER, entry.data);
    save_history(r);
    buf_free(&entry);
}

/* Reads a question: a line, and further lines while they end in \.  0: the input has ended. */
static int read_question(Repl *r, Buf *question) {
    question->len = 0;
    buf_add(question, "", 0);
    r->prompt = "> ";
    for (;;) {
        int n;
        r->line_dropped = 0;
        errno = 0;
        const char *line = el_gets(r->edit, &n);
        /* A signal, sent by another process: the key Ctrl-C sends none here.  It drops the line,
         * unless the line was complete. */
        int was_interrupted = *interrupted;
        *interrupted = 0;
        if (r->line_dropped || (was_interrupted && !line)) {
            question->len = 0;
            question->data[0] = 0;
            return 1;
        }
        if (!line || n <= 0) {
            put_stdout("\n", 1);
            return 0;
        }
        if (n && line[n - 1] == '\n') n--;
        if (n) remember(r, line, n);
        int goes_on = n && line[n - 1] == '\\';
        buf_add(question, line, (size_t)(n - goes_on));
        if (!goes_on) return 1;
        buf_puts(question, "\n");
        r->prompt = ". ";
    }
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

int run_repl(Engine *e, const cJSON *media, const char *text, Error *err) {
    Repl r = {.e = e};
    Buf question = {0};
    interrupted = e->interrupted;
    sigaction(SIGINT, &(struct sigaction){.sa_handler = on_interrupt}, NULL);
    buf_puts(&r.system, e->system ? e->system : "");
    buf_puts(&r.attached, text ? text : "");
    new_conversation(&r);
    int bad = attach_parts(&r, media, err);
    if (!bad) bad = open_terminal(&r, err);
    if (!bad) note("%s. /help lists the commands, Ctrl-D leaves.\n", e->name);
    while (!bad && !r.quit && read_question(&r, &question)) {
        if (!question.data[strspn(question.data, " \t\n")]) continue;
        if (take_path(&r, question.data)) continue;
        if (question.data[0] == '/') command(&r, question.data);
        else ask(&r, question.data);
    }
    close_terminal(&r);
    generation_free(&r.last);
    cJSON_Delete(r.messages);
    cJSON_Delete(r.media);
    buf_free(&r.system);
    buf_free(&r.attached);
    buf_free(&question);
    return bad;
}
