/* repl.c - the chat prompt on a terminal: libedit reads the lines, the conversation is a list of messages as in a JSON
 * request.  Every turn renders the whole list; the session evaluates only what it does not hold already. */
#define _GNU_SOURCE
#include "repl.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#define Tokenizer EditTokenizer         /* libedit has one of its own */
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
#include "transcript.h"

static const char help[] =
    "  /new            begin a new conversation     /system TEXT  set the system prompt (/system off: none)\n"
    "  /think on|off   let the model think first    /stats        rates of the last answer, room left\n"
    "  /save FILE      write the conversation       /load FILE    read one and go on with it\n"
    "  /image FILE     an image, or with /video a video, for the next question; so does its path alone on a line\n"
    "  /read FILE      its text goes with the next message\n"
    "  /retry          answer the last message again /undo        take it back\n"
    "  /quit           leave (or Ctrl-D)            /help         this\n"
    "  A line that ends in \\ goes on in the next; pasted lines stay together.  Tab completes commands and files.\n"
    "  Ctrl-C stops an answer, or drops the line.\n";

static const char *const commands[] = {"/help", "/image", "/load", "/new", "/quit", "/read", "/retry", "/save", "/stats", "/system",
                                       "/think", "/undo", "/video"};

typedef struct {
    Engine *e;
    cJSON *messages;
    cJSON *media;                       /* images and videos that go with the next question */
    Buf system;
    Buf attached;                       /* of /read: goes with the next message */
    EditLine *edit;
    History *history;
    const char *prompt;
    int line_dropped;                   /* Ctrl-C while editing */
    Generation last;
    int quit;
} Repl;

static volatile sig_atomic_t *interrupted;
static void on_interrupt(int signal_number) {
    (void)signal_number;
    *interrupted = 1;
}

/* ------------------------------------------------------------------------------------------------------------
 * The conversation */

/* Puts r->system in front, in the place of the one that may be there. */
static void set_system(Repl *r) {
    if (has_role(r->messages->child, "system")) cJSON_DeleteItemFromArray(r->messages, 0);
    if (r->system.len) cJSON_InsertItemInArray(r->messages, 0, chat_message("system", r->system.data));
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

/* Ends what was written dimmed, and leaves n lines behind it. */
static void end_thought(int *in_thought, const char *lines) {
    if (!*in_thought) return;
    dim(0);
    put_stdout(lines, strlen(lines));
    *in_thought = 0;
}

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

static void forget_from(Repl *r, int n) {
    while (cJSON_GetArraySize(r->messages) > n) cJSON_DeleteItemFromArray(r->messages, cJSON_GetArraySize(r->messages) - 1);
}

/* The number of the last question, -1: none. */
static int last_question(const Repl *r) {
    int i = cJSON_GetArraySize(r->messages) - 1;
    while (i >= 0 && !has_role(cJSON_GetArrayItem(r->messages, i), "user")) i--;
    return i;
}

/* Answers the conversation, whose last message is a question.  What was answered until Ctrl-C stays in it; after an error
 * nothing does, nor the question. */
static void answer(Repl *r) {
    Engine *e = r->e;
    Error err;
    int in_thought = 0;
    generation_free(&r->last);
    r->last = (Generation){.sampling = e->sampling, .max_tokens = e->max_tokens, .chat.thinking = e->thinking, .think_tokens = e->think_tokens, .on_text = show,
                           .on_call = show_call, .schema = e->schema, .arg = &in_thought};
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
    if (r->last.finish == FINISH_INTERRUPTED) fputs("(stopped)\n", stderr);
    if (r->last.full)
        fprintf(stderr, "(the answer was cut: the context of %lld tokens (-c) is full; /new begins a new conversation, "
                "--context-overflow slide drops the oldest turns)\n", (long long)session_context(e->session));
    else if (r->last.finish == FINISH_LENGTH) fputs("(the answer was cut: -n)\n", stderr);
    warn_of_answer(&r->last);
    if (e->stats) print_stats(&r->last);
    int held;
    session_ids(e->session, &held);
    if (held > session_context(e->session) / 4 * 3)
        fprintf(stderr, "(%lld %% of the context are used; /new begins a new conversation)\n", 100LL * held / (long long)session_context(e->session));
    e->sampling.seed++;                 /* the same question twice may get two answers; --seed still decides which */
}

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

/* ------------------------------------------------------------------------------------------------------------
 * Commands */

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

static int load(Repl *r, const char *path, Error *err) {
    cJSON *messages = transcript_load(r->e, path, err);
    if (!messages) return -1;
    cJSON_Delete(r->messages);
    r->messages = messages;
    const char *system = has_role(messages->child, "system") ? cJSON_GetStringValue(json_field(messages->child, "content")) : NULL;
    r->system.len = 0;
    if (system) buf_puts(&r->system, system);
    return 0;
}

/* A file for the next question: by its whole path, so that a saved conversation finds it from anywhere. */
static int attach_media(Repl *r, const char *path, int is_video, Error *err) {
    char *whole = realpath(path, NULL);
    int bad = whole ? media_check(r->e->media, whole, is_video, err) : fail(err, "%s: %s", path, strerror(errno));
    if (!bad) {
        cJSON_AddItemToArray(r->media, media_part(whole, is_video));
        note("(%s goes with the next question)\n", whole);
    }
    free(whole);
    return bad;
}

/* A line that is the path of an image or a video and nothing else, as terminals paste it: perhaps in quotes, with \ before
 * blanks, a blank behind it, or ~ for the home directory.  Returns its kind, as media_kind does, and the path. */
static int pasted_path(const char *line, Buf *path) {
    size_t n = strlen(line);
    while (n && (line[n - 1] == ' ' || line[n - 1] == '\n')) n--;
    if (n > 1 && (line[0] == '\'' || line[0] == '"') && line[n - 1] == line[0]) buf_add(path, line + 1, n - 2);
    else
        for (size_t i = 0; i < n; i++)
            if (line[i] != '\\' || i + 1 == n) buf_add(path, line + i, 1);
            else buf_add(path, line + ++i, 1);
    const char *home = getenv("HOME");
    if (path->len > 1 && !memcmp(path->data, "~/", 2) && home) {
        Buf full = {0};
        buf_printf(&full, "%s%s", home, path->data + 1);
        buf_free(path);
        *path = full;
    }
    return path->len && !strchr(path->data, '\n') && !access(path->data, R_OK) ? media_kind(path->data) : 0;
}

static void show_stats(const Repl *r) {
    int held;
    long long room = session_context(r->e->session);
    session_ids(r->e->session, &held);
    if (r->last.answer.n) print_stats(&r->last);
    int filled = (int)(20LL * held / room);
    fprintf(stderr, "context: %d of %lld tokens used [%.*s%.*s]\n", held, room, filled, "####################", 20 - filled, "....................");
}

static void command(Repl *r, char *line) {
    char *rest = line + strcspn(line, " \t");
    if (*rest) *rest++ = 0;
    rest += strspn(rest, " \t");
    for (size_t n = strlen(rest); n && (rest[n - 1] == ' ' || rest[n - 1] == '\t'); n--) rest[n - 1] = 0;
    Error err = {""};
    if (!strcmp(line, "/quit") || !strcmp(line, "/exit")) r->quit = 1;
    else if (!strcmp(line, "/help")) put_stdout(help, strlen(help));
    else if (!strcmp(line, "/stats")) show_stats(r);
    else if (!strcmp(line, "/new")) {
        new_conversation(r);
        fputs("(a new conversation)\n", stderr);
    } else if (!strcmp(line, "/system")) {
        if (*rest) {
            r->system.len = 0;
            buf_puts(&r->system, strcmp(rest, "off") ? rest : "");
            set_system(r);
        }
        note("(system prompt: %s)\n", r->system.len ? r->system.data : "none");
    } else if (!strcmp(line, "/think")) {
        if (!*rest) r->e->thinking = !r->e->thinking;
        else if (!strcmp(rest, "on") || !strcmp(rest, "off")) r->e->thinking = !strcmp(rest, "on");
        else fail(&err, "/think on or /think off");
        if (!*err.text) fprintf(stderr, "(thinking is %s)\n", r->e->thinking ? "on" : "off");
    } else if (!strcmp(line, "/save") || !strcmp(line, "/load")) {
        if (!*rest) fail(&err, "%s needs a file", line);
        else if (line[1] == 's' ? !transcript_save(r->e, r->messages, rest, &err)
                                : !load(r, rest, &err))
            note("(%d messages %s %s)\n", cJSON_GetArraySize(r->messages), line[1] == 's' ? "in" : "from", rest);
    } else if (!strcmp(line, "/image") || !strcmp(line, "/video")) {
        Buf path = {0};
        if (!*rest) fail(&err, "%s needs a file", line);
        else {
            pasted_path(rest, &path);
            attach_media(r, path.data, line[1] == 'v', &err);
        }
        buf_free(&path);
    } else if (!strcmp(line, "/read")) {
        if (!*rest) fail(&err, "/read needs a file");
        else if (!attach(r, rest, &err)) fprintf(stderr, "(%zu bytes go with the next message)\n", r->attached.len);
    } else if (!strcmp(line, "/undo") || !strcmp(line, "/retry")) {
        int i = last_question(r);
        if (i < 0) fail(&err, "nothing to %s", line + 1);
        else if (line[1] == 'u') {
            forget_from(r, i);
            fputs("(the last message is taken back)\n", stderr);
        } else {
            forget_from(r, i + 1);
            answer(r);
        }
    } else fail(&err, "%s: no such command; /help lists them", line);
    if (*err.text) note("gemma4: %s\n", err.text);
}

/* ------------------------------------------------------------------------------------------------------------
 * The terminal */

static char *prompt_text(EditLine *edit) {
    Repl *r;
    el_get(edit, EL_CLIENTDATA, &r);
    return (char *)r->prompt;
}

/* Ctrl-C while editing arrives as a key (see open_terminal): the line ends, and read_question drops it. */
static unsigned char drop_line(EditLine *edit, int key) {
    Repl *r;
    (void)key;
    el_get(edit, EL_CLIENTDATA, &r);
    r->line_dropped = 1;
    put_stdout("^C\n", 3);
    return CC_NEWLINE;
}

/* A paste arrives between \033[200~ (which is bound to this) and \033[201~: its line ends do not end the message. */
static unsigned char paste(EditLine *edit, int key) {
    static const wchar_t end[] = L"\033[201~";
    wchar_t *text = NULL, c;
    size_t n = 0, n_end = sizeof end / sizeof *end - 1;
    (void)key;
    while (el_wgetc(edit, &c) == 1) {
        text = xrealloc(text, (int64_t)n + 2, sizeof *text);
        text[n++] = c == '\r' ? '\n' : c;
        text[n] = 0;
        if (c == 3) break;              /* Ctrl-C: the end did not come */
        if (n < n_end || wmemcmp(text + n - n_end, end, n_end)) continue;
        text[n - n_end] = 0;
        el_winsertstr(edit, text);
        break;
    }
    free(text);
    return CC_REFRESH;
}

/* Tab.  Candidates are commands, or the files of a directory. */
typedef struct {
    const char *word;                   /* what is typed of it */
    int n;
    Buf common, list;                   /* what all candidates begin with; all of them */
} Completion;

static void add_candidate(Completion *c, const char *name, const char *tail) {
    if (strncmp(name, c->word, strlen(c->word))) return;
    Buf whole = {0};
    size_t same = 0;
    buf_printf(&whole, "%s%s", name, tail);
    if (c->n++) while (same < c->common.len && same < whole.len && c->common.data[same] == whole.data[same]) same++;
    else same = whole.len;
    c->common.len = 0;
    buf_add(&c->common, whole.data, same);
    buf_printf(&c->list, "%s  ", whole.data);
    buf_free(&whole);
}

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
        add_candidate(c, f->d_name, !stat(full.data, &info) && S_ISDIR(info.st_mode) ? "/" : " ");
    }
    if (d) closedir(d);
    buf_free(&dir);
    buf_free(&full);
}

static unsigned char complete(EditLine *edit, int key) {
    const LineInfo *info = el_line(edit);
    Buf line = {0};
    Completion c = {0};
    (void)key;
    buf_add(&line, info->buffer, (size_t)(info->cursor - info->buffer));
    char *space = strchr(line.data, ' ');
    c.word = line.data;
    if (line.data[0] == '/' && !space) {
        for (size_t i = 0; i < sizeof commands / sizeof *commands; i++) add_candidate(&c, commands[i], " ");
    } else if (line.data[0] == '/') add_files(&c, space + 1);
    size_t typed = strlen(c.word);
    int grew = c.common.len > typed && !el_insertstr(edit, c.common.data + typed);
    if (!grew && c.n > 1) {
        put_stdout("\n", 1);
        put_stdout(c.list.data, c.list.len);
        put_stdout("\n", 1);
    }
    unsigned char result = grew ? CC_REFRESH : c.n > 1 ? CC_REDISPLAY : CC_REFRESH_BEEP;
    buf_free(&line);
    buf_free(&c.common);
    buf_free(&c.list);
    return result;
}

static void history_path(Buf *path) {
    const char *home = getenv("HOME");
    buf_printf(path, "%s/.gemma4_history", home ? home : ".");
}

/* Written after every line, as the program may end at any: 0600, for it holds what people typed. Nowhere to write it is no
 * failure, and what is no plain file (a link to /dev/null) stays as it is. */
static void save_history(Repl *r) {
    HistEvent event;
    struct stat info;
    Buf path = {0};
    history_path(&path);
    int fd = open(path.data, O_WRONLY | O_CREAT | O_NONBLOCK | O_CLOEXEC, 0600);
    FILE *f = fd >= 0 && !fstat(fd, &info) && S_ISREG(info.st_mode) && !fchmod(fd, 0600) && !ftruncate(fd, 0) ? fdopen(fd, "w") : NULL;
    if (f) history(r->history, &event, H_SAVE_FP, f);
    if (f) (void)fclose(f);
    else if (fd >= 0) close(fd);
    buf_free(&path);
}

static struct termios before;           /* how the terminal was found */
static volatile sig_atomic_t is_open;

void repl_leave(void) {
    if (!is_open) return;
    signal(SIGTTOU, SIG_IGN);           /* which would stop the program in the background */
    tcsetattr(STDIN_FILENO, TCSANOW, &before);
    if (write(STDOUT_FILENO, "\033[?2004l", 8) < 0) return;         /* nobody is there any more */
}

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
    el_wset(r->edit, EL_ADDFN, L"drop-line", L"Drop the line", drop_line);      /* el_set would copy the names and leak them */
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
    if (!stat(path.data, &info) && S_ISREG(info.st_mode)) history(r->history, &event, H_LOAD, path.data);   /* no pipe, which waits */
    buf_free(&path);
    put_escape("\033[?2004h");          /* the terminal brackets what is pasted */
    return 0;
}

static void close_terminal(Repl *r) {
    repl_leave();
    if (r->edit) el_end(r->edit);
    if (r->history) history_end(r->history);
    is_open = 0;
}

/* A question of one or, with a trailing \, several lines.  Returns 0 at the end of input. */
static int read_question(Repl *r, Buf *question) {
    HistEvent event;
    question->len = 0;
    buf_add(question, "", 0);
    r->prompt = "> ";
    for (;;) {
        int n;
        r->line_dropped = 0;
        errno = 0;
        const char *line = el_gets(r->edit, &n);
        int was_interrupted = *interrupted;     /* by no key (see drop_line): a line that came all the same counts */
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
        if (n) {
            Buf entry = {0};
            buf_add(&entry, line, (size_t)n);
            history(r->history, &event, H_ENTER, entry.data);
            save_history(r);
            buf_free(&entry);
        }
        int goes_on = n && line[n - 1] == '\\';
        buf_add(question, line, (size_t)(n - goes_on));
        if (!goes_on) return 1;
        buf_puts(question, "\n");
        r->prompt = ". ";
    }
}

int run_repl(Engine *e, const cJSON *media, Error *err) {
    Repl r = {.e = e};
    const cJSON *part;
    Buf question = {0};
    interrupted = e->interrupted;
    sigaction(SIGINT, &(struct sigaction){.sa_handler = on_interrupt}, NULL);
    buf_puts(&r.system, e->system ? e->system : "");
    new_conversation(&r);
    int bad = 0;
    cJSON_ArrayForEach(part, media) if (!bad) {
        int is_video = json_field(part, "video_url") != NULL;
        bad = attach_media(&r, cJSON_GetStringValue(json_field(json_field(part, is_video ? "video_url" : "image_url"), "url")), is_video, err);
    }
    if (!bad) bad = open_terminal(&r, err);
    if (!bad) note("%s. /help lists the commands, Ctrl-D leaves.\n", e->name);
    while (!bad && !r.quit && read_question(&r, &question)) {
        if (!question.data[strspn(question.data, " \t\n")]) continue;
        Buf path = {0};
        int kind = pasted_path(question.data, &path);
        Error why;
        if (kind && attach_media(&r, path.data, kind == 2, &why)) note("gemma4: %s\n", why.text);
        buf_free(&path);
        if (kind) continue;
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
