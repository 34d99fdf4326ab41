/* edit.c - the line at the chat prompt.  See edit.h.
 *
 * libedit edits the line and draws it.  This file makes up for two of its weaknesses.  First,
 * libedit would type the tail of an escape sequence that it does not know into the line.  Therefore
 * read_key decodes all escape sequences and gives libedit one character for each key.  Second,
 * libedit cannot draw on a terminal that cannot go up a row (TERM=dumb).  There libedit draws into
 * /dev/null, and draw_row shows the line on one row that scrolls. */
#define _GNU_SOURCE
#include "edit.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#define Tokenizer EditTokenizer         /* libedit's header defines another Tokenizer */
#include <histedit.h>
#undef Tokenizer
#include <langinfo.h>
#include <limits.h>
#include <locale.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <termios.h>
#include <unistd.h>
#include <wchar.h>

struct Editor {
    EditLine *edit;
    History *history;
    const char *const *commands;        /* for completion; the list ends with NULL */
    const char *const *settings;        /* likewise, for the word behind /set */
    const char *prompt;                 /* what stands before the line */
    volatile sig_atomic_t *interrupted; /* see editor_open */
    LineEnd end;                        /* how the line ends, set by the key that ends it */
    int next;                           /* the key that read_key gives next; 0: none */
    int after_escape;                   /* 1: the last key was Escape alone */
    int after_quote;                    /* 1: the last key was Ctrl-V: the next one is text */
    Buf pasted;                         /* what KEY_PASTE inserts */
    FILE *nowhere;                      /* /dev/null, where the terminal is dumb; else NULL */
    /* The row of a dumb terminal. */
    int first;                          /* which character of the line is the first of the row */
    int is_drawn;                       /* 1: the prompt is there */
    int shown;                          /* columns that the row fills behind the prompt */
};

/* ---- keys ---- */

/* One character for each key that has several bytes.  Nobody types the control characters
 * U+0080 .. U+009F, and libedit's table of keys has room for them. */
enum {
    KEY_UP = 0x80, KEY_DOWN, KEY_LEFT, KEY_RIGHT, KEY_HOME, KEY_END, KEY_WORD_LEFT, KEY_WORD_RIGHT,
    KEY_DELETE, KEY_DELETE_WORD, KEY_ERASE_WORD, KEY_PASTE, KEY_REDRAW,
    KEY_DROPPED, KEY_OUTSIDE,           /* no terminal sends these two: see go_behind */
};

/* Keys of one character. */
enum { CTRL_C = 3, CTRL_R = 18, CTRL_V = 22, ESCAPE = 27, BACKSPACE = 127 };

/* What read_byte and its callers return in place of a byte or a character. */
enum { NO_KEY = -1, INPUT_END = -2, INPUT_BROKEN = -3, RESIZED = -4 };

/* How many milliseconds may lie between Escape and the next byte of a sequence, and between two
 * later bytes.  Both were chosen, not measured: the key alone should not seem to hang, and a slow
 * line may deliver a sequence in pieces. */
enum { ESCAPE_MS = 100, SEQUENCE_MS = 500 };

static volatile sig_atomic_t resized;   /* SIGWINCH has come */

static void on_resize(int signal_number) {
    (void)signal_number;
    resized = 1;
}

/* Returns the next byte of the input, for which it waits so many milliseconds (-1: for ever).
 * Returns NO_KEY when no byte came in time, INPUT_BROKEN when SIGINT came, RESIZED when the
 * terminal got another size, and INPUT_END when nothing more can be read. */
static int read_byte(const Editor *e, int milliseconds) {
    struct pollfd p = {.fd = STDIN_FILENO, .events = POLLIN};
    unsigned char c;
    for (;;) {
        int ready = poll(&p, 1, milliseconds);
        if (!ready) return NO_KEY;
        if (ready < 0 && errno != EINTR) return INPUT_END;
        if (ready < 0 && resized) {
            resized = 0;
            return RESIZED;
        }
        if (ready < 0 && *e->interrupted) return INPUT_BROKEN;
        if (ready < 0) continue;
        ssize_t n = read(STDIN_FILENO, &c, 1);
        if (n == 1) return c;
        if (!n || (errno != EINTR && errno != EAGAIN)) return INPUT_END;
    }
}

/* Returns the key of a sequence whose last byte is `final`; NO_KEY: the key does not edit a line.
 * first: the sequence's first number, 0: it has none.  modifier: which keys were held down (1:
 * none, 2: Shift, more: Alt, Ctrl and so on). */
static int key_of(int final, int first, int modifier) {
    int by_word = modifier > 2;
    switch (final) {
    case 'A': return KEY_UP;
    case 'B': return KEY_DOWN;
    case 'C': return by_word ? KEY_WORD_RIGHT : KEY_RIGHT;
    case 'D': return by_word ? KEY_WORD_LEFT : KEY_LEFT;
    case 'H': return KEY_HOME;
    case 'F': return KEY_END;
    case '~': break;
    default: return NO_KEY;
    }
    switch (first) {
    case 1: case 7: return KEY_HOME;
    case 4: case 8: return KEY_END;
    case 3: return by_word ? KEY_DELETE_WORD : KEY_DELETE;
    case 200: return KEY_PASTE;
    default: return NO_KEY;
    }
}

/* Reads the rest of a sequence behind ESC and the introducer, [ or O, up to its final byte
 * (ECMA-48, 5.4).  Returns its key.  has_alt: two Escapes stood in front. */
static int read_sequence(const Editor *e, int introducer, int has_alt) {
    int number[2] = {0, 0}, n = 0, c;
    for (;;) {
        c = read_byte(e, SEQUENCE_MS);
        if (c < ' ' || c > '~') return c < 0 ? c : NO_KEY;
        if (c == ';') n++;
        else if (c >= '0' && c <= '9' && n < 2 && number[n] < 1000)
            number[n] = number[n] * 10 + c - '0';
        else if (c >= '@') break;
    }
    if (introducer == '[' && c == '[') {                /* F1 .. F5 of the console of Linux */
        c = read_byte(e, SEQUENCE_MS);
        return c < 0 ? c : NO_KEY;
    }
    if (introducer == 'O' && c == 'c') return KEY_WORD_RIGHT;           /* Ctrl in rxvt */
    if (introducer == 'O' && c == 'd') return KEY_WORD_LEFT;
    int modifier = n ? number[1] : 1;
    if (!n && c != '~' && number[0]) modifier = number[0];              /* ESC [ 5 D */
    if (has_alt) modifier = 3;
    return key_of(c, number[0], modifier);
}

/* Skips a text that the terminal reports (ESC ] … and the like), up to BEL or ESC \.  Returns
 * NO_KEY, or what read_byte returns in place of a byte. */
static int skip_report(const Editor *e) {
    int c = 0, before;
    do {
        before = c;
        c = read_byte(e, SEQUENCE_MS);
    } while (c >= 0 && c != '\a' && !(before == ESCAPE && c == '\\'));
    return c < 0 ? c : NO_KEY;
}

/* Reads what stands behind an Escape and returns the key.  The key is ESCAPE itself where nothing
 * follows at once, or where a character follows that makes no sequence: e->next becomes that
 * one. */
static int read_escape(Editor *e) {
    int has_alt = 0, c = read_byte(e, ESCAPE_MS);
    while (c == ESCAPE) {               /* Alt with a key that has a sequence */
        has_alt = 1;
        c = read_byte(e, ESCAPE_MS);
    }
    switch (c) {
    case NO_KEY: e->after_escape = 1; return ESCAPE;
    case '[': case 'O': return read_sequence(e, c, has_alt);
    case ']': case 'P': case '_': case '^': case 'X': return skip_report(e);
    case 'b': case 'B': return KEY_WORD_LEFT;
    case 'f': case 'F': return KEY_WORD_RIGHT;
    case 'd': case 'D': return KEY_DELETE_WORD;
    case BACKSPACE: case '\b': return KEY_ERASE_WORD;
    case INPUT_END: case INPUT_BROKEN: case RESIZED: return c;
    default: e->next = c; return ESCAPE;
    }
}

/* Reads a paste up to its end, \033[201~, into e->pasted.  Carriage returns become newlines.  Bytes
 * that are not UTF-8, and NUL, are dropped.  Ctrl-C ends the paste, too, because the user may give
 * up waiting for its end.  Returns KEY_PASTE, or what read_byte returns in place of a byte. */
static int read_paste(Editor *e) {
    static const char end[] = "\033[201~";
    Buf raw = {0};
    size_t n_end = strlen(end);
    int c;
    e->pasted.len = 0;
    while ((c = read_byte(e, -1)) != CTRL_C) {
        if (c == RESIZED) continue;
        if (c < 0) break;
        buf_add(&raw, (char[]){c == '\r' ? '\n' : (char)c}, 1);
        if (raw.len < n_end || memcmp(raw.data + raw.len - n_end, end, n_end)) continue;
        raw.len -= n_end;
        break;
    }
    for (size_t i = 0; i < raw.len;) {
        int n = utf8_char(raw.data + i, raw.len - i);
        if (n > 0 && raw.data[i]) buf_add(&e->pasted, raw.data + i, (size_t)n);
        i += n > 0 ? (size_t)n : 1;
    }
    buf_free(&raw);
    return c < 0 ? c : KEY_PASTE;
}

/* Returns the character that begins with the byte c; NO_KEY for bytes that are not UTF-8, and for
 * U+0080 .. U+009F. */
static int read_character(const Editor *e, int c) {
    char bytes[4] = {(char)c};
    wchar_t wide;
    mbstate_t state = {0};
    int n = 1;
    if (c < 0x80) return c;
    while (n < 4 && utf8_char(bytes, (size_t)n) < 0) {
        int next = read_byte(e, SEQUENCE_MS);
        if (next < 0) return next;
        bytes[n++] = (char)next;
    }
    if (utf8_char(bytes, (size_t)n) != n) return NO_KEY;
    if (mbrtowc(&wide, bytes, (size_t)n, &state) != (size_t)n || wide < 0xa0) return NO_KEY;
    return (int)wide;
}

/* Reads a key.  Returns a character, one of the KEY_…, or what read_byte returns in place of a
 * byte. */
static int read_one_key(Editor *e) {
    int was_escape = e->after_escape, is_quoted = e->after_quote;
    e->after_escape = e->after_quote = 0;
    int c = read_byte(e, -1);
    if (c < 0) return c;
    if (is_quoted) return read_character(e, c);
    if (was_escape && (c == '[' || c == 'O')) c = read_sequence(e, c, 0);
    else if (c == ESCAPE) c = read_escape(e);
    else c = read_character(e, c);
    e->after_quote = c == CTRL_V;
    return c == KEY_PASTE ? read_paste(e) : c;
}

/* ---- a terminal that cannot go up a row ---- */

int terminal_columns(void) {
    struct winsize size;
    if (ioctl(STDOUT_FILENO, TIOCGWINSZ, &size) || !size.ws_col) return 80;
    return size.ws_col;
}

/* Returns what draw_row shows for a character of the line; *width becomes its columns. */
static wchar_t shown_as(wchar_t c, int *width) {
    *width = wcwidth(c);
    if (c == '\n' || c == '\t') c = ' ';
    else if (*width < 0) c = '?';
    if (*width < 0) *width = 1;
    return c;
}

/* Adds as much of line[from..to) to out as `room` columns hold.  Returns how many columns it
 * takes. */
static int add_columns(Buf *out, const wchar_t *line, int from, int to, int room) {
    int used = 0;
    for (int i = from; i < to; i++) {
        int width;
        uint8_t utf8[4];
        wchar_t c = shown_as(line[i], &width);
        if (used + width > room) break;
        buf_add(out, utf8, utf8_encode((unsigned)c, utf8));
        used += width;
    }
    return used;
}

/* Draws the part of the line around the cursor on the row of the prompt, with nothing but carriage
 * returns and blanks.  Nothing is drawn while more keys are waiting. */
static void draw_row(Editor *e) {
    struct pollfd p = {.fd = STDIN_FILENO, .events = POLLIN};
    if (e->is_drawn && poll(&p, 1, 0) > 0) return;
    const LineInfoW *info = el_wline(e->edit);
    int cursor = (int)(info->cursor - info->buffer), n = (int)(info->lastchar - info->buffer);
    int room = terminal_columns() - (int)strlen(e->prompt) - 1, used, behind;
    Buf whole = {0}, before = {0};
    /* 1. Scroll, so that the row has room for what stands in front of the cursor. */
    if (cursor < e->first) e->first = cursor > room / 2 ? cursor - room / 2 : 0;
    for (;; e->first++) {
        before.len = 0;
        used = add_columns(&before, info->buffer, e->first, cursor, INT_MAX);
        if (used <= room || e->first >= cursor) break;
    }
    buf_add(&before, "", 0);
    /* 2. Draw the row, and blanks over what the last drawing leaves behind it.  Then draw it again
     * up to the cursor, which ends up in its place. */
    buf_printf(&whole, "%s%s%s", e->is_drawn ? "\r" : "", e->prompt, before.data);
    used += add_columns(&whole, info->buffer, cursor, n, room - used);
    behind = e->shown > used ? e->shown - used : 0;
    if (behind || cursor < n) buf_printf(&whole, "%*s\r%s%s", behind, "", e->prompt, before.data);
    put_escape(whole.data);
    e->is_drawn = 1;
    e->shown = used;
    buf_free(&whole);
    buf_free(&before);
}

/* Shows the whole line once it is given, on as many rows as it takes, and blanks over what the row
 * showed behind it. */
static void finish_row(Editor *e, const Buf *line) {
    int columns, behind = e->shown;
    for (size_t i = 0; i < line->len; behind -= abs(columns))
        i += char_columns(line->data + i, line->len - i, &columns);
    put_escape("\r");
    put_stdout(e->prompt, strlen(e->prompt));
    put_stdout(line->data, line->len);
    for (; behind > 0; behind--) put_stdout(" ", 1);
    put_stdout("\n", 1);
}

/* ---- what libedit reads ---- */

static Editor *editor_of(EditLine *edit) {
    Editor *e;
    el_get(edit, EL_CLIENTDATA, &e);
    return e;
}

/* EL_GETCFN: the next key for libedit.  Returns 1, 0 at the end of the input, or -1. */
static int read_key(EditLine *edit, wchar_t *key) {
    Editor *e = editor_of(edit);
    int c = e->next;
    e->next = 0;
    if (e->nowhere) draw_row(e);
    while (!c || c == NO_KEY) c = read_one_key(e);      /* NUL (Ctrl-Space) is no key, either */
    if (c == RESIZED) {
        el_resize(edit);
        c = KEY_REDRAW;
    }
    *key = (wchar_t)c;
    if (c == INPUT_BROKEN) errno = EINTR;
    if (c < 0) return c == INPUT_END ? 0 : -1;
    return 1;
}

/* ---- functions that libedit calls for keys ---- */

static char *prompt_text(EditLine *edit) { return (char *)editor_of(edit)->prompt; }

/* Moves the cursor behind the line, so that the text written next stands there, and makes `next`
 * the next key.  The text must wait for that key, because libedit moves the terminal's cursor only
 * between two keys.  (EL_REFRESH would draw the line a second time.) */
static unsigned char go_behind(EditLine *edit, int next) {
    const LineInfoW *info = el_wline(edit);
    if (info->cursor < info->lastchar) el_cursor(edit, (int)(info->lastchar - info->cursor));
    editor_of(edit)->next = next;
    return CC_CURSOR;
}

/* Ends the line and writes `text` behind it. */
static unsigned char end_line(EditLine *edit, LineEnd end, const char *text) {
    editor_of(edit)->end = end;
    put_stdout(text, strlen(text));
    return CC_NEWLINE;
}

/* Ctrl-C, which is a key and sends no signal while a line is edited.  It ends the line, which
 * editor_read then drops. */
static unsigned char drop_line(EditLine *edit, int key) {
    if (key != KEY_DROPPED) return go_behind(edit, KEY_DROPPED);
    return end_line(edit, LINE_DROPPED, "^C\n");
}

/* The key End, and below it the arrow to the right.  With vi's keys, libedit's own functions for
 * them stop in front of the last character. */
static unsigned char go_to_end(EditLine *edit, int key) {
    const LineInfoW *info = el_wline(edit);
    (void)key;
    el_cursor(edit, (int)(info->lastchar - info->cursor));
    return CC_CURSOR;
}

static unsigned char go_right(EditLine *edit, int key) {
    const LineInfoW *info = el_wline(edit);
    (void)key;
    if (info->cursor < info->lastchar) el_cursor(edit, 1);
    return CC_CURSOR;
}

/* Ctrl-X Ctrl-E ends the line, which goes on in $EDITOR. */
static unsigned char go_outside(EditLine *edit, int key) {
    if (key != KEY_OUTSIDE) return go_behind(edit, KEY_OUTSIDE);
    return end_line(edit, LINE_OUTSIDE, "\n");
}

static unsigned char insert_paste(EditLine *edit, int key) {
    Editor *e = editor_of(edit);
    (void)key;
    if (e->pasted.len) el_insertstr(edit, e->pasted.data);
    return CC_REFRESH;
}

/* Completion by Tab.  Candidates are commands, settings, or the files of a directory. */
typedef struct {
    const char *word;                   /* the part that has been typed */
    int n;                              /* number of candidates */
    Buf common;                         /* the whole characters that all candidates begin with */
    Buf list;                           /* all candidates, to be shown */
} Completion;

/* Adds the candidate `name`, with `tail` behind it, if it begins with the word. */
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
    while (same && (whole.data[same] & 0xc0) == 0x80) same--;   /* within a character of UTF-8 */
    c->common.len = 0;
    buf_add(&c->common, whole.data, same);
    buf_printf(&c->list, "%s  ", whole.data);
    buf_free(&whole);
}

static void add_names(Completion *c, const char *const *name) {
    for (; *name; name++) add_candidate(c, *name, " ");
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

/* Finds the candidates for the last word of the line. */
static void add_candidates(Completion *c, const Editor *e, const char *line) {
    const char *blank = strchr(line, ' ');
    c->word = line;
    if (line[0] != '/') return;
    if (!blank) add_names(c, e->commands);
    else if (strncmp(line, "/set ", 5)) add_files(c, blank + 1);
    else {
        c->word = blank + 1;
        add_names(c, e->settings);
    }
}

/* Tab: inserts what all candidates have in common or, if that is nothing new, lists them. */
static unsigned char complete(EditLine *edit, int key) {
    const LineInfo *info = el_line(edit);
    Buf line = {0};
    Completion c = {0};
    (void)key;
    buf_add(&line, info->buffer, (size_t)(info->cursor - info->buffer));
    add_candidates(&c, editor_of(edit), line.data);
    size_t typed = strlen(c.word);
    int grew = c.common.len > typed && !el_insertstr(edit, c.common.data + typed);
    unsigned char result = grew ? CC_REFRESH : CC_REFRESH_BEEP;
    if (!grew && c.n > 1) {
        put_stdout("\n", 1);
        put_stdout(c.list.data, c.list.len);
        put_stdout("\n", 1);
        result = CC_REDISPLAY;
    }
    buf_free(&line);
    buf_free(&c.common);
    buf_free(&c.list);
    return result;
}

/* ---- the history ---- */

static void history_path(Buf *path) {
    const char *home = getenv("HOME");
    buf_printf(path, "%s/.gemma4_history", home ? home : ".");
}

/* Writes the history to its file.  This happens after every line, since the program may be killed
 * at any time.  The file's mode is 0600, because it contains what the user has typed.  A failure is
 * not reported.  A file that is not regular (a link to /dev/null) stays as it is. */
static void save_history(Editor *e) {
    HistEvent event;
    struct stat info;
    Buf path = {0};
    FILE *f = NULL;
    history_path(&path);
    int fd = open(path.data, O_WRONLY | O_CREAT | O_NONBLOCK | O_CLOEXEC, 0600);
    int is_regular = fd >= 0 && !fstat(fd, &info) && S_ISREG(info.st_mode);
    if (is_regular && !fchmod(fd, 0600) && !ftruncate(fd, 0)) f = fdopen(fd, "w");
    if (f) history(e->history, &event, H_SAVE_FP, f);
    if (f) (void)fclose(f);
    else if (fd >= 0) close(fd);
    buf_free(&path);
}

/* Reads the history's file.  Opening a pipe would wait, so only a plain file is read. */
static void load_history(Editor *e) {
    HistEvent event;
    struct stat info;
    Buf path = {0};
    history(e->history, &event, H_SETSIZE, 1000);
    history(e->history, &event, H_SETUNIQUE, 1);
    history_path(&path);
    if (!stat(path.data, &info) && S_ISREG(info.st_mode))
        history(e->history, &event, H_LOAD, path.data);
    buf_free(&path);
}

void editor_remember(Editor *e, const char *text) {
    HistEvent event;
    history(e->history, &event, H_ENTER, text);
    save_history(e);
}

/* Goes back from the newest entry (H_FIRST) to the oldest that is wanted, and from there to the
 * newest again.  history returns -1 where there is no such entry. */
void editor_history(Editor *e, int most, Buf *out) {
    HistEvent event;
    int n = 0, missing = history(e->history, &event, H_FIRST);
    while (!missing && ++n < most) missing = history(e->history, &event, H_NEXT);
    if (missing) missing = history(e->history, &event, H_LAST);
    for (; !missing && n; n--) {
        buf_printf(out, "%5d  %s\n", event.num, event.str);
        missing = history(e->history, &event, H_PREV);
    }
}

/* ---- the terminal ---- */

/* In a bracketed paste, the terminal tells where pasted text begins and ends: see read_paste. */
#define BRACKETED_PASTE "\033[?2004h"
#define NO_BRACKETED_PASTE "\033[?2004l"

static struct termios before;           /* the terminal's settings before editor_open */
static volatile sig_atomic_t is_open;   /* 1: `before` is set; 2: pastes are bracketed, too */

/* write to stdout in a signal handler, which can do nothing about a failure. */
static void write_now(const char *sequence, size_t n) {
    ssize_t done = write(STDOUT_FILENO, sequence, n);
    (void)done;
}

/* An answer may be cut short within a dimmed thought or a bold word.  So the terminal goes back to
 * plain text, too. */
void editor_leave(void) {
    static const char plain[] = NO_BRACKETED_PASTE "\033[0m";
    if (!is_open) return;
    signal(SIGTTOU, SIG_IGN);           /* in the background, tcsetattr would stop the program */
    tcsetattr(STDIN_FILENO, TCSANOW, &before);
    if (is_open == 2) write_now(plain, sizeof plain - 1);
}

/* SIGCONT: the program goes on after Ctrl-Z.  Meanwhile a shell has read lines of its own on the
 * terminal, and has switched bracketed pastes off. */
static void on_continue(int signal_number) {
    int why = errno;
    (void)signal_number;
    if (is_open == 2) write_now(BRACKETED_PASTE, sizeof BRACKETED_PASTE - 1);
    errno = why;
}

/* Has libedit draw rows again instead of inserting and deleting characters on the terminal: when it
 * inserts in front of a line that fills several rows, it loses one of them.
 * libedit also believes that the cursor can stand behind the last column.  Where the terminal
 * cannot go to a column by its number (ch), libedit would go back from there by a number of columns
 * (LE), which is one too many.  So it must do without LE there. */
static void draw_anew(EditLine *edit) {
    static const char *const capability[] = {"ic", "IC", "im", "ei", "dc", "DC", "dm", "ed"};
    for (size_t i = 0; i < sizeof capability / sizeof *capability; i++)
        el_set(edit, EL_SETTC, capability[i], "", NULL);
    const char *to_column = NULL;
    el_get(edit, EL_GETTC, "ch", &to_column);
    if (!to_column || !*to_column) el_set(edit, EL_SETTC, "LE", "", NULL);
}

/* Binds a key to a function of libedit's or ours, also in the command mode of vi's keys.  el_wset
 * serves, because el_set leaks a copy of each name. */
static void bind_key(EditLine *edit, int key, const wchar_t *function) {
    wchar_t keys[] = {(wchar_t)key, 0};
    el_wset(edit, EL_BIND, keys, function, NULL);
    el_wset(edit, EL_BIND, L"-a", keys, function, NULL);
}

/* Binds the keys that ~/.editrc cannot name, and Ctrl-C, which it may not bind otherwise. */
static void bind_own_keys(EditLine *edit) {
    static const struct { int key; const wchar_t *function; } own[] = {
        {KEY_UP, L"ed-prev-history"}, {KEY_DOWN, L"ed-next-history"}, {KEY_LEFT, L"ed-prev-char"},
        {KEY_RIGHT, L"go-right"}, {KEY_HOME, L"ed-move-to-beg"}, {KEY_END, L"go-to-end"},
        {KEY_WORD_LEFT, L"ed-prev-word"}, {KEY_WORD_RIGHT, L"em-next-word"},
        {KEY_DELETE, L"ed-delete-next-char"}, {KEY_DELETE_WORD, L"em-delete-next-word"},
        {KEY_ERASE_WORD, L"ed-delete-prev-word"}, {KEY_PASTE, L"paste"},
        {KEY_REDRAW, L"ed-redisplay"}, {CTRL_C, L"drop-line"},
        {KEY_DROPPED, L"drop-line"}, {KEY_OUTSIDE, L"outside"},
    };
    for (size_t i = 0; i < sizeof own / sizeof *own; i++)
        bind_key(edit, own[i].key, own[i].function);
}

/* Binds the keys that ~/.editrc may bind otherwise, and makes our functions known to it. */
static void bind_keys(EditLine *edit) {
    el_wset(edit, EL_ADDFN, L"drop-line", L"Drop the line", drop_line);
    el_wset(edit, EL_ADDFN, L"paste", L"Insert pasted text", insert_paste);
    el_wset(edit, EL_ADDFN, L"outside", L"Go on in $EDITOR", go_outside);
    el_wset(edit, EL_ADDFN, L"go-to-end", L"Go behind the line", go_to_end);
    el_wset(edit, EL_ADDFN, L"go-right", L"Go behind the next character", go_right);
    el_wset(edit, EL_ADDFN, L"complete", L"Complete a command or a file", complete);
    bind_key(edit, '\t', L"complete");
    bind_key(edit, CTRL_R, L"em-inc-search-prev");
    el_wset(edit, EL_BIND, L"\030\005", L"outside", NULL);
    /* Alt-X would open libedit's own prompt for commands, which takes what is typed next. */
    el_wset(edit, EL_BIND, L"\033x", L"ed-unassigned", NULL);
    el_wset(edit, EL_BIND, L"\033X", L"ed-unassigned", NULL);
}

/* Whether the terminal cannot go up a row.  Such a terminal gets nothing but text. */
static int is_dumb(EditLine *edit) {
    const char *up = NULL;
    return is_dumb_terminal() || el_get(edit, EL_GETTC, "up", &up) || !up || !*up;
}

/* Returns a libedit that draws on `out`, or NULL. */
static EditLine *new_edit(Editor *e, FILE *out) {
    EditLine *edit = el_init_fd("gemma4", stdin, out, stderr, STDIN_FILENO, STDOUT_FILENO,
                                STDERR_FILENO);
    if (!edit) return NULL;
    el_set(edit, EL_CLIENTDATA, e);
    el_set(edit, EL_PROMPT, prompt_text);
    el_set(edit, EL_EDITOR, "emacs");
    el_set(edit, EL_HIST, history, e->history);
    el_wset(edit, EL_GETCFN, read_key);
    draw_anew(edit);
    bind_keys(edit);
    el_set(edit, EL_SETTY, "-d", "-isig", NULL);
    return edit;
}

/* Sets up libedit: keys, history, where it draws. */
static int set_up(Editor *e, Error *err) {
    e->history = history_init();
    if (e->history) e->edit = new_edit(e, stdout);
    if (e->edit && is_dumb(e->edit)) {
        el_end(e->edit);
        e->edit = NULL;
        e->nowhere = fopen("/dev/null", "w");
        if (e->nowhere) e->edit = new_edit(e, e->nowhere);
    }
    if (!e->edit) return fail(err, "cannot set up the terminal");
    el_source(e->edit, NULL);           /* ~/.editrc, which may go over to vi's keys */
    bind_own_keys(e->edit);
    load_history(e);
    return 0;
}

Editor *editor_open(const char *const *commands, const char *const *settings,
                    volatile sig_atomic_t *interrupted, Error *err) {
    Editor *e = xcalloc(1, sizeof *e);
    e->commands = commands;
    e->settings = settings;
    e->interrupted = interrupted;
    e->prompt = "> ";
    is_open = !tcgetattr(STDIN_FILENO, &before);
    setlocale(LC_CTYPE, "");
    if (strcmp(nl_langinfo(CODESET), "UTF-8")) setlocale(LC_CTYPE, "C.UTF-8");
    if (set_up(e, err)) {
        editor_close(e);
        return NULL;
    }
    /* SA_RESTART: these signals interrupt poll, as in read_byte, but no read or write elsewhere. */
    struct sigaction action = {.sa_handler = on_resize, .sa_flags = SA_RESTART};
    sigaction(SIGWINCH, &action, NULL);
    if (e->nowhere) return e;
    action.sa_handler = on_continue;
    sigaction(SIGCONT, &action, NULL);
    if (is_open) is_open = 2;
    put_escape(BRACKETED_PASTE);
    return e;
}

void editor_close(Editor *e) {
    if (!e) return;
    editor_leave();
    if (e->edit) el_end(e->edit);
    if (e->history) history_end(e->history);
    if (e->nowhere) (void)fclose(e->nowhere);
    buf_free(&e->pasted);
    free(e);
    is_open = 0;
}

LineEnd editor_read(Editor *e, const char *prompt, Buf *line) {
    int n;
    line->len = 0;
    buf_add(line, "", 0);
    e->prompt = prompt;
    e->end = LINE_GIVEN;
    e->first = e->shown = e->is_drawn = 0;
    const char *text = el_gets(e->edit, &n);
    /* SIGINT from another process (the key Ctrl-C sends no signal here) drops the line, unless the
     * line was complete. */
    int was_interrupted = *e->interrupted;
    *e->interrupted = 0;
    if (e->end == LINE_DROPPED || (was_interrupted && !text)) return LINE_DROPPED;
    if (!text) n = 0;
    if (n <= 0 && e->end == LINE_GIVEN) {
        put_stdout("\n", 1);
        return LINE_END;
    }
    if (n && text[n - 1] == '\n') n--;
    buf_add(line, n ? text : "", (size_t)n);
    if (e->nowhere && e->end == LINE_GIVEN) finish_row(e, line);
    if (n && e->end == LINE_GIVEN) editor_remember(e, line->data);
    return e->end;
}

/* ---- $EDITOR ---- */

/* Runs the editor on a file and waits for its end.  The shell splits the variable's value into
 * words, as it does for git.  Meanwhile Ctrl-C reaches the editor alone.  Returns 0, or -1 with
 * err. */
static int run_editor(const char *path, Error *err) {
    const char *visual = getenv("VISUAL"), *editor = getenv("EDITOR");
    struct sigaction ignore = {.sa_handler = SIG_IGN}, old;
    Buf command = {0};
    if (!editor || !*editor) editor = "vi";
    if (visual && *visual) editor = visual;
    buf_printf(&command, "%s \"$1\"", editor);
    sigaction(SIGINT, &ignore, &old);
    pid_t child = fork();
    if (!child) {
        signal(SIGINT, SIG_DFL);
        signal(SIGPIPE, SIG_DFL);
        execl("/bin/sh", "sh", "-c", command.data, "sh", path, (char *)NULL);
        _exit(127);
    }
    int status = child < 0 ? errno : wait_for(child);
    sigaction(SIGINT, &old, NULL);
    buf_free(&command);
    if (child < 0) return fail(err, "%s: %s", editor, strerror(status));
    if (status) return fail(err, "%s failed: nothing is sent", editor);
    return 0;
}

/* Writes the whole text and closes fd.  Returns 0, or -1 with errno. */
static int fill_file(int fd, const Buf *text) {
    int bad = write_whole(fd, text->data, text->len) ? errno : 0;
    if (close(fd) && !bad) bad = errno;
    errno = bad;
    return bad ? -1 : 0;
}

/* Makes *text what the file holds, without line ends at its end.  Returns 0, or -1 with err and
 * *text as it was. */
static int take_back(const char *path, Buf *text, Error *err) {
    Buf result = {0};
    if (read_file(path, &result, err)) return -1;
    int bad = memchr(result.data, 0, result.len) != NULL;
    if (bad) fail(err, "a NUL byte: a message is text");
    else {
        while (result.len && strchr("\r\n", result.data[result.len - 1])) result.len--;
        text->len = 0;
        buf_add(text, result.data, result.len);
    }
    buf_free(&result);
    return bad ? -1 : 0;
}

int editor_outside(const Editor *e, Buf *text, Error *err) {
    const char *directory = getenv("TMPDIR");
    Buf path = {0};
    if (!directory || !*directory) directory = "/tmp";
    buf_printf(&path, "%s/gemma4.XXXXXX.md", directory);
    int fd = mkostemps(path.data, 3, O_CLOEXEC), bad;           /* mode 0600 */
    if (fd < 0 || fill_file(fd, text)) bad = fail(err, "%s: %s", path.data, strerror(errno));
    else {
        if (!e->nowhere) put_escape(NO_BRACKETED_PASTE);
        bad = run_editor(path.data, err);
        if (!e->nowhere) put_escape(BRACKETED_PASTE);
        if (!bad) bad = take_back(path.data, text, err);
    }
    if (fd >= 0) unlink(path.data);
    buf_free(&path);
    return bad;
}
