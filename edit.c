/* edit.c - the line at the chat prompt.  See edit.h.
 *
 * libedit edits the line.  This file makes up for two of its weaknesses.  First, libedit would type
 * the tail of an escape sequence that it does not know into the line.  Therefore read_key decodes
 * all escape sequences and gives libedit one character for each key.  Second, libedit loses rows,
 * accents and emoji when it draws.  Therefore it draws into /dev/null, and `draw` shows the line:
 * on a terminal that knows no escape sequences (TERM=dumb) on one row that scrolls. */
#define _GNU_SOURCE
#include "edit.h"

#include "textfile.h"

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
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
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
    FILE *nowhere;                      /* /dev/null, where libedit draws */
    /* The drawing. */
    int is_dumb;                        /* 1: the terminal knows no escape sequences */
    int is_drawn;                       /* 1: the prompt is there */
    int first;                          /* the first row on the screen; dumb: the first character */
    int above, below;                   /* rows on the screen above the cursor's, and below */
    Buf drawn;                          /* what is drawn, if the cursor is behind it; or empty */
    int rows, columns;                  /* of the drawing; of the screen */
    int shown;                          /* dumb: columns that the row fills behind the prompt */
};

/* ---- keys ---- */

/* One character for each key that has several bytes.  Nobody types the control characters
 * U+0080 .. U+009F, and libedit's table of keys has room for them. */
enum {
    KEY_UP = 0x80, KEY_DOWN, KEY_LEFT, KEY_RIGHT, KEY_HOME, KEY_END, KEY_WORD_LEFT, KEY_WORD_RIGHT,
    KEY_DELETE, KEY_DELETE_WORD, KEY_ERASE_WORD, KEY_PASTE,
};

/* Keys of one character. */
enum {
    CTRL_C = 3, CTRL_G = 7, CTRL_L = 12, CTRL_R = 18, CTRL_V = 22, CTRL_Z = 26, ESCAPE = 27,
    BACKSPACE = 127,
};

/* What read_byte and its callers return in place of a byte or a character. */
enum { NO_KEY = -1, INPUT_END = -2, INPUT_BROKEN = -3, RESIZED = -4 };

/* How many milliseconds may lie between Escape and the next byte of a sequence, and between two
 * later bytes.  Both were chosen, not measured: the key alone should not seem to hang, and a slow
 * line may deliver a sequence in pieces. */
enum { ESCAPE_MS = 100, SEQUENCE_MS = 500 };

static volatile sig_atomic_t resized;   /* SIGWINCH has come */
static pthread_t reader;                /* the thread that reads lines */

/* The system gives the signal to any thread that does not block it: only in the one that reads
 * lines does it end the wait for a key. */
static void on_resize(int signal_number) {
    if (pthread_equal(pthread_self(), reader)) resized = 1;
    else pthread_kill(reader, signal_number);
}

/* Waits until the input can be read or a signal comes.  SIGWINCH and SIGINT may come at any time;
 * while they are blocked, none is lost between the question and the wait.  Returns as poll. */
static int wait_for_input(const Editor *e, int milliseconds) {
    struct pollfd p = {.fd = STDIN_FILENO, .events = POLLIN};
    struct timespec limit = {milliseconds / 1000, milliseconds % 1000 * 1000000L};
    sigset_t block, normal;
    int ready = -1;
    sigemptyset(&block);
    sigaddset(&block, SIGWINCH);
    sigaddset(&block, SIGINT);
    sigprocmask(SIG_BLOCK, &block, &normal);
    errno = EINTR;
    if (!resized && !*e->interrupted)
        ready = ppoll(&p, 1, milliseconds < 0 ? NULL : &limit, &normal);
    int why = errno;
    sigprocmask(SIG_SETMASK, &normal, NULL);
    errno = why;
    return ready;
}

/* Returns the next byte of the input, for which it waits so many milliseconds (-1: for ever).
 * Returns NO_KEY when no byte came in time, INPUT_BROKEN when SIGINT came, RESIZED when the
 * terminal got another size, and INPUT_END when nothing more can be read. */
static int read_byte(const Editor *e, int milliseconds) {
    unsigned char c;
    for (;;) {
        int ready = wait_for_input(e, milliseconds);
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

/* ---- drawing ---- */

/* Whether the terminal goes on in the next row behind a row that is full. */
#define WRAPPING "\033[?7h"
#define NO_WRAPPING "\033[?7l"

int terminal_columns(void) {
    struct winsize size;
    if (ioctl(STDOUT_FILENO, TIOCGWINSZ, &size) || !size.ws_col) return 80;
    return size.ws_col;
}

static int terminal_rows(void) {
    struct winsize size;
    if (ioctl(STDOUT_FILENO, TIOCGWINSZ, &size) || !size.ws_row) return 24;
    return size.ws_row;
}

/* The prompt and the line as rows of the screen. */
typedef struct {
    Buf text;                           /* all rows, one behind the other */
    size_t *begin;                      /* [n] where each row begins in text */
    int n;
    int columns, used;                  /* of the terminal, and of the last row */
    /* Of the character that was added last: its row, and where it begins in text. */
    int last_row;
    size_t last;
} Rows;

static void begin_row(Rows *r) {
    r->begin = xrealloc(r->begin, r->n + 1, sizeof *r->begin);
    r->begin[r->n++] = r->text.len;
    r->used = 0;
}

/* Adds bytes[0..n), of so many columns, in a new row where the last has no room for them. */
static void add_shown(Rows *r, const void *bytes, size_t n, int width) {
    if (r->used + width > r->columns) begin_row(r);
    r->last_row = r->n - 1;
    r->last = r->text.len;
    buf_add(&r->text, bytes, n);
    r->used += width;
}

/* Adds a character of the line: a control character as ^ and a letter, what the locale does not
 * know as a question mark. */
static void add_character(Rows *r, wchar_t c) {
    uint8_t utf8[4];
    int width = wcwidth(c), to_stop = 8 - r->used % 8, left = r->columns - r->used;
    if (c == '\n') {
        add_shown(r, "", 0, 0);
        begin_row(r);
    } else if (c == '\t') {
        if (left > 0 && to_stop > left) to_stop = left;
        add_shown(r, "        ", (size_t)to_stop, to_stop);
    } else if (c < ' ' || c == BACKSPACE) add_shown(r, (char[]){'^', (char)(c ^ 64)}, 2, 2);
    else if (width < 0) add_shown(r, "?", 1, 1);
    else add_shown(r, utf8, utf8_encode((unsigned)c, utf8), width);
}

/* Moves e->first, the first row on the screen, so that the row of the cursor is among the rows that
 * the screen has room for.  Returns the row behind the last of these. */
static int scroll(Editor *e, int cursor_row, int n_rows) {
    int height = terminal_rows();
    if (e->first > n_rows - height) e->first = n_rows - height;
    if (e->first < cursor_row - height + 1) e->first = cursor_row - height + 1;
    if (e->first > cursor_row) e->first = cursor_row;
    if (e->first < 0) e->first = 0;
    return e->first + height < n_rows ? e->first + height : n_rows;
}

/* Goes back to where the drawing began, and erases it. */
static void put_erasure(const Editor *e, Buf *out) {
    if (!e->is_drawn) return;
    if (e->above) buf_printf(out, "\033[%dA", e->above);
    buf_puts(out, "\r\033[J");
}

/* Returns how many bytes of the rows stand on the screen already, with the cursor behind them; 0
 * where all must be drawn anew. */
static size_t drawn_before(const Editor *e, const Rows *r) {
    size_t n = e->drawn.len;
    if (!e->is_drawn || !n || e->rows != r->n || e->columns != r->columns) return 0;
    return n <= r->text.len && !memcmp(e->drawn.data, r->text.data, n) ? n : 0;
}

/* Draws the prompt and the line, and the cursor in its place.
 *
 * Terminals disagree on how wide some characters are (emoji that are joined, for example).  So
 * nothing is left to their own wrapping: rows end with line ends, what is wider than this program
 * thinks is cut at the edge, and the cursor comes into its place because its row is written once
 * more as far as there.  Rows that end so also stay as they are when the terminal's size
 * changes. */
static void draw_rows(Editor *e) {
    const LineInfoW *info = el_wline(e->edit);
    const wchar_t *line = info->buffer;
    int cursor = (int)(info->cursor - line), n = (int)(info->lastchar - line), cursor_row = 0;
    size_t cursor_at = 0;
    Rows r = {.columns = terminal_columns()};
    Buf out = {0};
    /* 1. The cursor stands behind all that shares a place on the screen with what is before it:
     * accents, and what a zero width joiner joins. */
    while (cursor > 0 && cursor < n && (!wcwidth(line[cursor]) || line[cursor - 1] == 0x200d))
        cursor++;
    /* 2. All rows.  Behind the line the cursor needs a place, too. */
    begin_row(&r);
    for (const char *c = e->prompt; *c; c++) add_character(&r, (unsigned char)*c);
    for (int i = 0; i <= n; i++) {
        add_character(&r, i < n ? line[i] : ' ');
        if (i == cursor) cursor_row = r.last_row, cursor_at = r.last;
    }
    r.text.len = r.last;
    /* 3. What the screen shows of them. */
    int end = scroll(e, cursor_row, r.n);
    int may_wrap = r.n > 1 || r.used > r.columns / 2;   /* no character is wider than two columns */
    if (may_wrap) buf_puts(&out, NO_WRAPPING);
    size_t same = cursor == n ? drawn_before(e, &r) : 0;
    if (same) buf_add(&out, r.text.data + same, r.text.len - same);
    else put_erasure(e, &out);
    for (int row = e->first; row < end && !same; row++) {
        size_t row_end = row + 1 < r.n ? r.begin[row + 1] : r.text.len;
        if (row > e->first) buf_puts(&out, "\r\n");
        buf_add(&out, r.text.data + r.begin[row], row_end - r.begin[row]);
    }
    e->above = cursor_row - e->first;
    e->below = end - 1 - cursor_row;
    if (e->below) buf_printf(&out, "\033[%dA", e->below);
    if (e->below || cursor < n) {
        buf_puts(&out, "\r");
        buf_add(&out, r.text.data + r.begin[cursor_row], cursor_at - r.begin[cursor_row]);
    }
    if (may_wrap) buf_puts(&out, WRAPPING);
    put_escape(out.data);
    e->drawn.len = 0;
    if (cursor == n) buf_add(&e->drawn, r.text.data, r.text.len);
    e->rows = r.n;
    e->columns = r.columns;
    buf_free(&out);
    buf_free(&r.text);
    free(r.begin);
}

/* Adds as much of line[from..to) to out as `room` columns hold, without control characters.
 * Returns how many columns it takes. */
static int add_columns(Buf *out, const wchar_t *line, int from, int to, int room) {
    int used = 0;
    for (int i = from; i < to; i++) {
        int width = wcwidth(line[i]);
        uint8_t utf8[4];
        wchar_t c = line[i];
        if (width < 0) c = c == '\n' || c == '\t' ? ' ' : '?', width = 1;
        if (used + width > room) break;
        buf_add(out, utf8, utf8_encode((unsigned)c, utf8));
        used += width;
    }
    return used;
}

/* On a terminal that knows no escape sequences: draws the part of the line around the cursor on the
 * row of the prompt, with nothing but carriage returns and blanks. */
static void draw_one_row(Editor *e) {
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
    e->shown = used;
    buf_free(&whole);
    buf_free(&before);
}

/* Shows the line as it is now; later, while more keys are waiting. */
static void draw(Editor *e) {
    struct pollfd p = {.fd = STDIN_FILENO, .events = POLLIN};
    if (e->is_drawn && poll(&p, 1, 0) > 0) return;
    if (e->is_dumb) draw_one_row(e);
    else draw_rows(e);
    e->is_drawn = 1;
}

/* Writes the line once more when it has ended, whole and wrapped by the terminal, unless it stands
 * so already; and `behind` and a line end behind it. */
static void finish(Editor *e, const char *line, size_t n, const char *behind) {
    int columns, blanks = e->shown;
    Buf erasure = {0}, whole = {0};
    put_erasure(e, &erasure);
    buf_puts(&whole, e->prompt);
    buf_add(&whole, line, n);
    int stands = e->rows == 1 && e->drawn.len == whole.len &&
                 !memcmp(e->drawn.data, whole.data, whole.len);
    for (size_t i = 0; i < n; blanks -= abs(columns)) i += char_columns(line + i, n - i, &columns);
    if (!stands) {
        put_escape(e->is_dumb || !erasure.len ? "\r" : erasure.data);
        put_stdout(whole.data, whole.len);
        for (; blanks > 0; blanks--) put_stdout(" ", 1);
    }
    put_stdout(behind, strlen(behind));
    put_stdout("\n", 1);
    buf_free(&erasure);
    buf_free(&whole);
}

/* Goes below the drawing, for other text.  The line will be drawn anew behind that. */
static void leave_drawing(Editor *e) {
    for (int i = 0; i <= e->below; i++) put_stdout("\n", 1);
    e->above = e->below = e->shown = e->is_drawn = 0;
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
    draw(e);
    while (!c || c == NO_KEY || c == RESIZED) {         /* NUL (Ctrl-Space) is no key, either */
        c = read_one_key(e);
        if (c == RESIZED) draw(e);
        /* Where a search has found nothing, libedit's first Ctrl-G ends what was typed in vain, and
         * only the second the search. */
        if (c == CTRL_G) e->next = CTRL_G;
    }
    *key = (wchar_t)c;
    if (c == INPUT_BROKEN) errno = EINTR;
    if (c < 0) return c == INPUT_END ? 0 : -1;
    return 1;
}

/* ---- functions that libedit calls for keys ---- */

/* Ctrl-C, which is a key and sends no signal while a line is edited.  It ends the line, which
 * editor_read then drops. */
static unsigned char drop_line(EditLine *edit, int key) {
    (void)key;
    editor_of(edit)->end = LINE_DROPPED;
    return CC_NEWLINE;
}

/* Ctrl-X Ctrl-E ends the line, which goes on in $EDITOR. */
static unsigned char go_outside(EditLine *edit, int key) {
    (void)key;
    editor_of(edit)->end = LINE_OUTSIDE;
    return CC_NEWLINE;
}

/* Ctrl-L */
static unsigned char clear_screen(EditLine *edit, int key) {
    Editor *e = editor_of(edit);
    (void)key;
    if (e->is_dumb) return CC_NORM;
    put_escape("\033[H\033[2J");
    e->is_drawn = 0;
    return CC_NORM;
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
    if (!begins(name, c->word)) return;
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
    const char *home = strncmp(path, "~/", 2) ? NULL : getenv("HOME");
    Buf dir = {0}, full = {0};
    if (home) {
        buf_puts(&dir, home);
        path++;
    }
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
    else if (!begins(line, "/set ")) add_files(c, blank + 1);
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
    if (!grew && c.n > 1) {
        leave_drawing(editor_of(edit));
        put_stdout(c.list.data, c.list.len);
        put_stdout("\n", 1);
    }
    buf_free(&line);
    buf_free(&c.common);
    buf_free(&c.list);
    return CC_NORM;
}

/* ---- the history ---- */

static void history_path(Buf *path) {
    const char *home = getenv("HOME");
    buf_printf(path, "%s/.gemma4_history", home ? home : ".");
}

/* Reads the history's file.  Opening a pipe would wait, so only a plain file is read. */
static void load_history(History *h) {
    HistEvent event;
    struct stat info;
    Buf path = {0};
    history(h, &event, H_SETSIZE, 1000);
    history(h, &event, H_SETUNIQUE, 1);
    history_path(&path);
    if (!stat(path.data, &info) && S_ISREG(info.st_mode)) history(h, &event, H_LOAD, path.data);
    buf_free(&path);
}

/* Adds a line to the history's file, behind what it has by now, perhaps from other chats.  This
 * happens after every line, since the program may be killed at any time.  The file's mode is 0600,
 * because it contains what the user has typed.  A failure is not reported.  A file that is not
 * regular (a link to /dev/null) stays as it is. */
static void save_line(const char *text) {
    HistEvent event;
    struct stat info;
    Buf path = {0};
    FILE *f = NULL;
    History *h = history_init();
    history_path(&path);
    int fd = open(path.data, O_WRONLY | O_CREAT | O_NONBLOCK | O_CLOEXEC, 0600);
    int is_regular = fd >= 0 && !fstat(fd, &info) && S_ISREG(info.st_mode);
    if (h && is_regular && !flock(fd, LOCK_EX)) {
        load_history(h);
        history(h, &event, H_ENTER, text);
        if (!fchmod(fd, 0600) && !ftruncate(fd, 0)) f = fdopen(fd, "w");
    }
    if (f) history(h, &event, H_SAVE_FP, f);
    if (f) (void)fclose(f);
    else if (fd >= 0) close(fd);
    if (h) history_end(h);
    buf_free(&path);
}

void editor_remember(Editor *e, const char *text) {
    HistEvent event;
    history(e->history, &event, H_ENTER, text);
    save_line(text);
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
    static const char plain[] = NO_BRACKETED_PASTE WRAPPING "\033[0m";
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

/* Ctrl-Z, which is a key and sends no signal while a line is edited, stops the program and what
 * runs with it.  When the shell lets it go on (fg), the line is drawn anew. */
static unsigned char stop_program(EditLine *edit, int key) {
    struct termios editing;
    int has_terminal = !tcgetattr(STDIN_FILENO, &editing);
    (void)key;
    leave_drawing(editor_of(edit));
    editor_leave();
    kill(0, SIGTSTP);
    if (has_terminal) tcsetattr(STDIN_FILENO, TCSADRAIN, &editing);
    signal(SIGTTOU, SIG_DFL);
    return CC_NORM;
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
        {CTRL_C, L"drop-line"},
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
    el_wset(edit, EL_ADDFN, L"clear", L"Clear the screen", clear_screen);
    el_wset(edit, EL_ADDFN, L"stop", L"Stop the program", stop_program);
    el_wset(edit, EL_ADDFN, L"complete", L"Complete a command or a file", complete);
    bind_key(edit, '\t', L"complete");
    bind_key(edit, CTRL_R, L"em-inc-search-prev");
    bind_key(edit, CTRL_L, L"clear");
    bind_key(edit, CTRL_Z, L"stop");
    el_wset(edit, EL_BIND, L"\030\005", L"outside", NULL);
    /* Alt-X would open libedit's own prompt for commands, which takes what is typed next. */
    el_wset(edit, EL_BIND, L"\033x", L"ed-unassigned", NULL);
    el_wset(edit, EL_BIND, L"\033X", L"ed-unassigned", NULL);
}

/* Whether the terminal does not go up a row at an escape sequence: neither does it know ours.  Such
 * a terminal gets nothing but text. */
static int is_dumb(EditLine *edit) {
    const char *up = NULL;
    return is_dumb_terminal() || el_get(edit, EL_GETTC, "up", &up) || !up || *up != ESCAPE;
}

/* Sets up libedit: keys, history. */
static int set_up(Editor *e, Error *err) {
    e->history = history_init();
    e->nowhere = fopen("/dev/null", "we");
    if (e->history && e->nowhere)
        e->edit = el_init_fd("gemma4", stdin, e->nowhere, stderr, STDIN_FILENO, STDOUT_FILENO,
                             STDERR_FILENO);
    if (!e->edit) return fail(err, "cannot set up the terminal");
    e->is_dumb = is_dumb(e->edit);
    el_set(e->edit, EL_CLIENTDATA, e);
    el_set(e->edit, EL_EDITOR, "emacs");
    el_set(e->edit, EL_HIST, history, e->history);
    el_wset(e->edit, EL_GETCFN, read_key);
    bind_keys(e->edit);
    el_set(e->edit, EL_SETTY, "-d", "-isig", NULL);
    el_source(e->edit, NULL);           /* ~/.editrc, which may go over to vi's keys */
    bind_own_keys(e->edit);
    load_history(e->history);
    return 0;
}

Editor *editor_open(const char *const *commands, const char *const *settings,
                    volatile sig_atomic_t *interrupted, Error *err) {
    Editor *e = xcalloc(1, sizeof *e);
    e->commands = commands;
    e->settings = settings;
    e->interrupted = interrupted;
    e->prompt = "> ";
    reader = pthread_self();
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
    if (e->is_dumb) return e;
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
    buf_free(&e->drawn);
    free(e);
    is_open = 0;
}

LineEnd editor_read(Editor *e, const char *prompt, Buf *line) {
    int n;
    line->len = 0;
    buf_add(line, "", 0);
    e->prompt = prompt;
    e->end = LINE_GIVEN;
    e->first = e->above = e->below = e->shown = e->is_drawn = 0;
    e->drawn.len = 0;
    const char *text = el_gets(e->edit, &n);
    /* SIGINT from another process (the key Ctrl-C sends no signal here) drops the line, unless the
     * line was complete. */
    int was_interrupted = *e->interrupted;
    *e->interrupted = 0;
    if (!text || n <= 0) {
        text = "";
        n = 0;
    }
    if (n == 0 && e->end == LINE_GIVEN) {
        leave_drawing(e);
        return was_interrupted ? LINE_DROPPED : LINE_END;
    }
    if (n && e->end == LINE_GIVEN && text[n - 1] == '\n') n--;
    finish(e, text, (size_t)n, e->end == LINE_DROPPED ? "^C" : "");
    if (e->end == LINE_DROPPED) return LINE_DROPPED;
    buf_add(line, text, (size_t)n);
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
    if (read_text(path, &result, err)) return -1;
    while (result.len && strchr("\r\n", result.data[result.len - 1])) result.len--;
    text->len = 0;
    buf_add(text, result.data, result.len);
    buf_free(&result);
    return 0;
}

int editor_outside(const Editor *e, Buf *text, Error *err) {
    const char *directory = getenv("TMPDIR");
    Buf path = {0};
    if (!directory || !*directory) directory = "/tmp";
    buf_printf(&path, "%s/gemma4.XXXXXX.md", directory);
    int fd = mkostemps(path.data, 3, O_CLOEXEC), bad;           /* mode 0600 */
    if (fd < 0 || fill_file(fd, text)) bad = fail(err, "%s: %s", path.data, strerror(errno));
    else {
        if (!e->is_dumb) put_escape(NO_BRACKETED_PASTE);
        bad = run_editor(path.data, err);
        if (!e->is_dumb) put_escape(BRACKETED_PASTE);
        /* A file that is no text stays, since the user wrote it; the error names it. */
        if (!bad && take_back(path.data, text, err)) fd = -1, bad = -1;
    }
    if (fd >= 0) unlink(path.data);
    buf_free(&path);
    return bad;
}
