/* markdown.c - Markdown for a terminal.  See markdown.h.
 *
 * The text is taken line by line.  line_begin finds the kind of a line as soon as its first bytes
 * tell.  From there on put_inline puts out all that no later byte can change.  The end of a line of
 * plain style waits until the next line tells whether the paragraph goes on there, or whether a
 * table without outer bars has begun. */
#define _GNU_SOURCE
#include "markdown.h"

#include <ctype.h>
#include <stdlib.h>
#include <string.h>

/* What characters look like, as bits that can be combined.  QUOTED stands beside DIM in a quote,
 * which has marks in it, and changes nothing by itself. */
enum { BOLD = 1, UNDERLINED = 2, STRUCK = 4, CODE = 8, DIM = 16, QUOTED = 32 };

static void put_style(unsigned style, Buf *out) {
    static const struct { unsigned bit; const char *sequence; } known[] = {
        {BOLD, "\033[1m"}, {UNDERLINED, "\033[4m"}, {STRUCK, "\033[9m"}, {CODE, "\033[36m"},
        {DIM, "\033[2m"},
    };
    for (size_t i = 0; i < sizeof known / sizeof *known; i++)
        if (style & known[i].bit) buf_puts(out, known[i].sequence);
}

/* Goes from one style to another. */
static void change_style(unsigned from, unsigned to, Buf *out) {
    if (from == to) return;
    if (from & ~to) {
        buf_puts(out, "\033[0m");
        from = 0;
    }
    put_style(to & ~from, out);
}

/* ---- inside a line ---- */

/* A piece of a line. */
typedef struct {
    const char *text;
    size_t n;                           /* bytes of text */
    int is_whole;                       /* 1: the line ends with the piece; 0: it may go on */
    char before;                        /* the byte in front of text[0], 0: none */
} Piece;

/* Bytes of characters beyond ASCII count as letters. */
static int is_letter(char c) { return isalnum((unsigned char)c) || (c & 0x80); }
static int is_blank(char c) { return c == ' ' || c == '\t' || c == '\n' || c == 0; }

/* How many bytes equal to text[at] stand together from there on. */
static size_t run_length(const Piece *p, size_t at) {
    size_t n = 1;
    while (at + n < p->n && p->text[at + n] == p->text[at]) n++;
    return n;
}

/* What a find_… function finds: there is no mark, there is one, or more bytes must decide. */
typedef enum { IS_TEXT, IS_MARK, UNDECIDED } Finding;

/* A pair of marks with the text between them, by offsets into the Piece. */
typedef struct {
    size_t inside, n_inside;            /* the text: where it begins, its bytes */
    size_t url, n_url;                  /* the URL of a link; n_url 0: it is no link */
    size_t end;                         /* behind the closing mark */
    unsigned style;
} Marked;

/* *end becomes the offset at which the search for the closing mark of a mark at `at` stops: after
 * MARKDOWN_HELD bytes, or where the piece ends.  Returns 1 when the piece may go on there. */
static int search_end(const Piece *p, size_t at, size_t *end) {
    *end = p->n < at + MARKDOWN_HELD ? p->n : at + MARKDOWN_HELD;
    return p->n < at + MARKDOWN_HELD && !p->is_whole;
}

/* Finds `code` between two runs of equally many backticks, the first at `at`. */
static Finding find_code(const Piece *p, size_t at, Marked *m) {
    size_t end, n = run_length(p, at);
    int may_grow = search_end(p, at, &end);
    for (size_t i = at + n; i < end;) {
        if (p->text[i] != '`') {
            i++;
            continue;
        }
        size_t closing = run_length(p, i);
        if (i + closing >= end && may_grow) return UNDECIDED;
        if (closing == n && i + closing < at + MARKDOWN_HELD) {
            *m = (Marked){.inside = at + n, .n_inside = i - at - n, .end = i + n, .style = CODE};
            int is_padded = m->n_inside > 2 && p->text[m->inside] == ' ' && p->text[i - 1] == ' ';
            if (is_padded) m->inside++, m->n_inside -= 2;
            return IS_MARK;
        }
        i += closing;
    }
    return may_grow ? UNDECIDED : IS_TEXT;
}

/* Whether the run of n marks at `at`, behind which a byte follows, may open emphasis: no blank
 * follows, and the run does not stand in the middle of a word (snake_case, 2*3). */
static int can_open(const Piece *p, size_t at, size_t n) {
    char mark = p->text[at], before = at ? p->text[at - 1] : p->before, next = p->text[at + n];
    if (is_blank(next)) return 0;
    if (mark == '_' || n == 1) return !is_letter(before);
    return 1;
}

/* Whether the run of n marks at `at` may close emphasis.  next: the byte behind it, 0: none. */
static int can_close(const Piece *p, size_t at, size_t n, char next) {
    char mark = p->text[at];
    if (is_blank(p->text[at - 1])) return 0;
    return !((mark == '_' || n == 1) && is_letter(next));
}

/* Finds the end of the emphasis that a run of n marks at `at` opens: a run of as many marks, or of
 * three.  Skips code and \ with the next character. */
static Finding find_close(const Piece *p, size_t at, size_t n, Marked *m) {
    size_t end;
    int may_grow = search_end(p, at, &end);
    const Piece within = {p->text, end, !may_grow, p->before};
    for (size_t i = at + n; i < end;) {
        Marked code;
        Finding found = IS_TEXT;
        if (p->text[i] == '`') found = find_code(&within, i, &code);
        if (found == UNDECIDED) return UNDECIDED;
        if (found == IS_MARK || p->text[i] != p->text[at]) {
            int is_escape = found == IS_TEXT && p->text[i] == '\\';
            i = found == IS_MARK ? code.end : i + 1 + (size_t)is_escape;
            continue;
        }
        size_t length = run_length(p, i);
        if (i + length >= end && may_grow) return UNDECIDED;
        char next = i + length < p->n ? p->text[i + length] : 0;
        int is_near = i + length < at + MARKDOWN_HELD;
        if ((length == n || length == 3) && is_near && can_close(p, i, n, next)) {
            m->inside = at + n;
            m->end = i + length;
            m->n_inside = m->end - n - m->inside;
            return IS_MARK;
        }
        /* The same mark opens once more: the next closing mark belongs to that one. */
        if (length == n && is_near && i + n < p->n && can_open(p, i, n)) return IS_TEXT;
        i += length;
    }
    return may_grow ? UNDECIDED : IS_TEXT;
}

/* Finds *emphasis*, **strong**, ***both***, the same with _, or ~~struck~~. */
static Finding find_emphasis(const Piece *p, size_t at, Marked *m) {
    static const unsigned styles[] = {0, UNDERLINED, BOLD, BOLD | UNDERLINED};
    size_t end, n = run_length(p, at);
    int may_grow = search_end(p, at, &end);
    if (at + n >= end) return may_grow ? UNDECIDED : IS_TEXT;
    if (n > 3 || (p->text[at] == '~' && n != 2) || !can_open(p, at, n)) return IS_TEXT;
    Finding found = find_close(p, at, n, m);
    m->style = p->text[at] == '~' ? STRUCK : styles[n];
    return found;
}

/* Finds [text](url) or ![text](url).  Behind a \ there is none: it may begin a formula. */
static Finding find_link(const Piece *p, size_t at, Marked *m) {
    if ((at ? p->text[at - 1] : p->before) == '\\') return IS_TEXT;
    size_t end, i = at + 1 + (p->text[at] == '!'), depth = 1;
    int may_grow = search_end(p, at, &end);
    if (i > end) return may_grow ? UNDECIDED : IS_TEXT;
    if (p->text[i - 1] != '[') return IS_TEXT;
    m->inside = i;
    for (; i < end && depth; i++) {
        if (p->text[i] == '[') depth++;
        if (p->text[i] == ']') depth--;
    }
    if (depth || i >= end) return may_grow ? UNDECIDED : IS_TEXT;
    if (p->text[i] != '(') return IS_TEXT;
    m->n_inside = i - 1 - m->inside;
    m->url = ++i;
    for (depth = 1; i < end && depth; i++) {
        if (p->text[i] == '(') depth++;
        if (p->text[i] == ')') depth--;
        if (is_blank(p->text[i])) return IS_TEXT;
    }
    if (depth) return may_grow ? UNDECIDED : IS_TEXT;
    m->n_url = i - 1 - m->url;
    m->end = i;
    m->style = UNDERLINED;
    return m->n_inside && m->n_url ? IS_MARK : IS_TEXT;
}

/* Finds \* and the like, which stand for the mark as text. */
static Finding find_escape(const Piece *p, size_t at, Marked *m) {
    if (at + 1 >= p->n) return p->is_whole ? IS_TEXT : UNDECIDED;
    if (!p->text[at + 1] || !strchr("*_`#|~-+.>", p->text[at + 1])) return IS_TEXT;
    *m = (Marked){.inside = at + 1, .n_inside = 1, .end = at + 2};
    return IS_MARK;
}

/* Finds what a mark at `at` marks.  The end of a line is none; but where the piece ends with it,
 * the next line must decide. */
static Finding find_mark(const Piece *p, size_t at, Marked *m) {
    int is_run = p->text[at] && strchr("*_`~", p->text[at]);
    if (is_run && !p->is_whole && at + run_length(p, at) == p->n) return UNDECIDED;
    switch (p->text[at]) {
    case '`': return find_code(p, at, m);
    case '*': case '_': case '~': return find_emphasis(p, at, m);
    case '[': case '!': return find_link(p, at, m);
    case '\\': return find_escape(p, at, m);
    case '\n': return p->is_whole || at + 1 < p->n ? IS_TEXT : UNDECIDED;
    default: return IS_TEXT;
    }
}

/* How many bytes at the beginning of the line are marks of quotes, > perhaps with a blank.
 * *depth: how many marks. */
static size_t count_quotes(const char *line, size_t n, int *depth) {
    size_t at = 0;
    for (*depth = 0; at < n && line[at] == '>'; ++*depth)
        at += 1 + (size_t)(at + 1 < n && line[at + 1] == ' ');
    return at;
}

static void put_bars(int depth, Buf *out) {
    for (; depth > 0; depth--) buf_puts(out, "│ ");
}

/* Puts out the newline text[0] and, in a quote, bars in place of the marks at the beginning of the
 * next line.  Returns how many of the n bytes it took. */
static size_t put_newline(const char *text, size_t n, unsigned style, Buf *out) {
    size_t used = 1;
    int depth = 0;
    if (style & QUOTED) {
        used += count_quotes(text + 1, n - 1, &depth);
        change_style(style, 0, out);
    }
    buf_puts(out, "\n");
    put_bars(depth, out);
    if (style & QUOTED) put_style(style, out);
    return used;
}

/* Puts out text without marks but those of a quote. */
static void put_text(const char *text, size_t n, unsigned style, Buf *out) {
    for (size_t i = 0; i < n;) {
        const char *newline = memchr(text + i, '\n', n - i);
        size_t part = newline ? (size_t)(newline - text) - i : n - i;
        buf_add(out, text + i, part);
        i += part;
        if (newline) i += put_newline(newline, n - i, style, out);
    }
}

static size_t put_inline(const Piece *p, unsigned style, Buf *out);

/* Puts out the marked text.  style: of the text around it. */
static void put_marked(const Piece *p, const Marked *m, unsigned style, Buf *out) {
    const Piece inside = {p->text + m->inside, m->n_inside, 1, p->text[m->inside - 1]};
    int is_plain = m->style == CODE || !m->style;
    change_style(style, style | m->style, out);
    if (is_plain) put_text(inside.text, inside.n, style | m->style, out);
    else put_inline(&inside, style | m->style, out);
    change_style(style | m->style, style, out);
    if (!m->n_url) return;
    const char *url = p->text + m->url;
    if (m->n_url == m->n_inside && !memcmp(url, inside.text, m->n_url)) return;
    buf_puts(out, " (");
    buf_add(out, url, m->n_url);
    buf_puts(out, ")");
}

/* Puts out the piece up to the first mark that is undecided.  Returns how many bytes it took. */
static size_t put_inline(const Piece *p, unsigned style, Buf *out) {
    for (size_t i = 0; i < p->n;) {
        Marked m = {0};
        Finding found = find_mark(p, i, &m);
        if (found == UNDECIDED) return i;
        if (found == IS_MARK) {
            put_marked(p, &m, style, out);
            i = m.end;
            continue;
        }
        if (p->text[i] == '\n') {
            i += put_newline(p->text + i, p->n - i, style, out);
            continue;
        }
        /* Where a run of marks is text, all of it is. */
        size_t n = strchr("*_`~", p->text[i]) ? run_length(p, i) : 1;
        buf_add(out, p->text + i, n);
        i += n;
    }
    return p->n;
}

/* ---- tables ---- */

/* A cell of a table, as it is shown. */
typedef struct {
    Buf text;
    int width;                          /* columns */
    int is_unsure;                      /* 1: terminals disagree on its width */
} Cell;

/* How many columns a text with escape sequences takes.  *is_unsure becomes 1 where an emoji is made
 * of several characters: joined by U+200D, or by U+FE0F behind a character that is narrow without
 * it. */
static int width_of(const Buf *text, int *is_unsure) {
    int width = 0, columns, before = 0;
    for (size_t i = 0; i < text->len;) {
        if (text->data[i] == '\033') {
            while (i < text->len && text->data[i] != 'm') i++;
            i++;
            continue;
        }
        int is_wide_form = !strncmp(text->data + i, "\xef\xb8\x8f", 3);
        if (is_wide_form || !strncmp(text->data + i, "\xe2\x80\x8d", 3)) *is_unsure = 1;
        i += char_columns(text->data + i, text->len - i, &columns);
        if (is_wide_form && before == 1) columns = 1;
        if (columns > 0) width += columns;
        before = columns;
    }
    return width;
}

/* Finds cell number i of a row, "| a | b |" without its newline, or without the bars at its ends.
 * *begin and *end become the cell's offsets, without the blanks around its text.  Returns 0 where
 * there is no such cell. */
static int cell_at(const char *row, size_t n, int i, size_t *begin, size_t *end) {
    size_t at = 0;
    while (at < n && is_blank(row[at])) at++;
    while (n > at && is_blank(row[n - 1])) n--;
    if (at < n && row[at] == '|') at++;
    if (n > at && row[n - 1] == '|' && row[n - 2] != '\\') n--;
    for (; at <= n; i--) {
        size_t bar = at;
        while (bar < n && !(row[bar] == '|' && row[bar - 1] != '\\')) bar++;
        if (!i) {
            *begin = at, *end = bar;
            while (*begin < *end && is_blank(row[*begin])) ++*begin;
            while (*end > *begin && is_blank(row[*end - 1])) --*end;
            return 1;
        }
        at = bar + 1;
    }
    return 0;
}

static int count_cells(const char *row, size_t n) {
    size_t begin, end;
    int count = 0;
    while (cell_at(row, n, count, &begin, &end)) count++;
    return count;
}

/* Whether the row is the delimiter row below the head: hyphens in each cell, perhaps with a colon
 * at either end. */
static int is_delimiter(const char *row, size_t n) {
    size_t begin, end;
    int i = 0;
    for (; cell_at(row, n, i, &begin, &end); i++) {
        if (begin < end && row[begin] == ':') begin++;
        if (begin < end && row[end - 1] == ':') end--;
        if (begin == end) return 0;
        for (; begin < end; begin++)
            if (row[begin] != '-') return 0;
    }
    return i > 0;
}

/* Whether a line may be part of a table: it begins with a bar. */
static int is_row(const char *line, size_t n) {
    size_t at = 0;
    while (at < n && line[at] == ' ') at++;
    return at < n && line[at] == '|';
}

/* How the delimiter row aligns column i.  -1: to the left, 0: in the middle, 1: to the right. */
static int alignment(const char *delimiter, size_t n, int i) {
    size_t begin, end;
    if (!cell_at(delimiter, n, i, &begin, &end) || delimiter[end - 1] != ':') return -1;
    return delimiter[begin] == ':' ? 0 : 1;
}

static void put_blanks(int n, Buf *out) {
    for (; n > 0; n--) buf_puts(out, " ");
}

typedef struct {
    const char **line;                  /* [rows] the lines, without newlines */
    size_t *n;                          /* [rows] their bytes */
    int rows, columns;                  /* columns: as many as the row with most cells has */
    Cell *cell;                         /* [rows][columns]; row 1, the delimiter row, is empty */
    int *width;                         /* [columns] the widest cell */
} Table;

static void fill_cells(Table *t) {
    for (int row = 0; row < t->rows; row++)
        for (int i = 0; i < t->columns; i++) {
            size_t begin, end;
            Cell *cell = &t->cell[row * t->columns + i];
            if (row == 1 || !cell_at(t->line[row], t->n[row], i, &begin, &end)) continue;
            const Piece piece = {t->line[row] + begin, end - begin, 1, ' '};
            put_inline(&piece, row ? 0 : BOLD, &cell->text);
            cell->width = width_of(&cell->text, &cell->is_unsure);
            if (cell->width > t->width[i]) t->width[i] = cell->width;
        }
}

/* Behind a cell of unsure width the cursor goes to the column where the next cell begins. */
static void put_row(const Table *t, int row, Buf *out) {
    int column = 1;
    for (int i = 0; i < t->columns; i++) {
        const Cell *cell = &t->cell[row * t->columns + i];
        int room = t->width[i] - cell->width, left = 0, side = alignment(t->line[1], t->n[1], i);
        if (side >= 0) left = side ? room : room / 2;
        if (i) buf_puts(out, " │ ");
        put_blanks(left, out);
        if (!row) put_style(BOLD, out);
        buf_add(out, cell->text.data ? cell->text.data : "", cell->text.len);
        if (!row) change_style(BOLD, 0, out);
        if (i + 1 == t->columns) break;
        put_blanks(room - left, out);
        column += t->width[i];
        if (cell->is_unsure) buf_printf(out, "\033[%dG", column);
        column += 3;
    }
}

static void put_rule(const Table *t, Buf *out) {
    for (int i = 0; i < t->columns; i++) {
        if (i) buf_puts(out, "─┼─");
        for (int j = 0; j < t->width[i]; j++) buf_puts(out, "─");
    }
}

/* Finds the lines of the text, which is not empty. */
static void find_lines(Table *t, const Buf *text) {
    size_t at = 0;
    do {
        size_t n = strcspn(text->data + at, "\n");
        t->line = xrealloc(t->line, t->rows + 1, sizeof *t->line);
        t->n = xrealloc(t->n, t->rows + 1, sizeof *t->n);
        t->line[t->rows] = text->data + at;
        t->n[t->rows++] = n;
        at += n + 1;
    } while (at < text->len);
}

/* Puts out the table.  Its lines come out as they are where the table is wider than the
 * terminal. */
static void put_table(const Buf *text, int columns, Buf *out) {
    Table t = {0};
    find_lines(&t, text);
    for (int i = 0; i < t.rows; i++) {
        int n = count_cells(t.line[i], t.n[i]);
        if (n > t.columns) t.columns = n;
    }
    int width = 3 * (t.columns - 1), n_cells = width > columns ? 0 : t.rows * t.columns;
    if (n_cells) {
        t.cell = xcalloc(n_cells, sizeof *t.cell);
        t.width = xcalloc(t.columns, sizeof *t.width);
        fill_cells(&t);
        for (int i = 0; i < t.columns; i++) width += t.width[i];
    }
    for (int row = 0; row < t.rows && width <= columns; row++) {
        if (row) buf_puts(out, "\n");
        if (row == 1) put_rule(&t, out);
        else put_row(&t, row, out);
    }
    if (width > columns) buf_add(out, text->data, text->len);
    else if (text->data[text->len - 1] == '\n') buf_puts(out, "\n");
    for (int i = 0; i < n_cells; i++) buf_free(&t.cell[i].text);
    free(t.line);
    free(t.n);
    free(t.cell);
    free(t.width);
}

/* ---- the beginning of a line ---- */

/* How many bytes c stand together in the line from `at` on. */
static size_t count(const char *line, size_t n, size_t at, char c) {
    size_t i = at;
    while (i < n && line[i] == c) i++;
    return i - at;
}

/* Whether line[at..n) is blank. */
static int is_empty(const char *line, size_t n, size_t at) {
    while (at < n && is_blank(line[at])) at++;
    return at == n;
}

/* Opens a code block if the line is a fence: three or more ` or ~.  Behind `, no other ` may stand
 * in the line: it would be code in a line.  So only a whole line tells. */
static Finding find_fence(Markdown *m, const char *line, size_t n, int is_whole) {
    size_t at = count(line, n, 0, ' ');
    char c = at < n ? line[at] : 0;
    if (c != '`' && c != '~') return IS_TEXT;
    size_t length = count(line, n, at, c);
    if (!is_whole && (length >= 3 || at + length == n)) return UNDECIDED;
    if (length < 3 || (c == '`' && memchr(line + at + length, '`', n - at - length)))
        return IS_TEXT;
    m->fence = c;
    m->fence_length = (int)length;
    m->style = DIM;
    return IS_MARK;
}

/* A line in a code block: code, or the fence that closes the block, at least as long as the one
 * that opened it. */
static Finding line_in_block(Markdown *m, const char *line, size_t n, int is_whole) {
    size_t at = count(line, n, 0, ' '), length = count(line, n, at, m->fence);
    m->style = CODE;
    if (!is_empty(line, n, at + length)) return IS_TEXT;
    if (!is_whole) return UNDECIDED;
    if (length >= (size_t)m->fence_length) m->fence = 0, m->style = DIM;
    return IS_TEXT;
}

/* A heading: # to ######, and a blank.  *used: bytes of the line that are the mark. */
static Finding find_heading(const char *line, size_t n, size_t *used) {
    size_t marks = count(line, n, 0, '#');
    if (!marks || marks > 6) return IS_TEXT;
    if (marks == n) return UNDECIDED;
    if (line[marks] != ' ') return IS_TEXT;
    *used = marks + count(line, n, marks, ' ');
    return *used == n ? UNDECIDED : IS_MARK;
}

/* An item of a list: blanks; -, *, + or a number with a dot or a bracket; and a blank.  *used:
 * bytes of the line that are the mark. */
static Finding find_item(const char *line, size_t n, size_t *used) {
    size_t indent = count(line, n, 0, ' '), at = indent;
    if (at == n) return UNDECIDED;
    while (at < n && at < indent + 9 && isdigit((unsigned char)line[at])) at++;
    if (at == n) return UNDECIDED;
    const char *marks = at > indent ? ".)" : "-*+";
    if (!line[at] || !strchr(marks, line[at])) return IS_TEXT;
    if (at + 1 == n) return UNDECIDED;
    *used = at + 2;
    return line[at + 1] == ' ' ? IS_MARK : IS_TEXT;
}

/* A rule: three or more of -, * or _, perhaps with blanks between, and nothing else.  Only a whole
 * line tells. */
static Finding find_rule(const char *line, size_t n, int is_whole) {
    char c = n ? line[0] : 0;
    int marks = 0;
    if (c != '-' && c != '*' && c != '_') return IS_TEXT;
    for (size_t i = 0; i < n; i++) {
        if (line[i] != c && !is_blank(line[i])) return IS_TEXT;
        marks += line[i] == c;
    }
    if (!is_whole) return UNDECIDED;
    return marks >= 3 ? IS_MARK : IS_TEXT;
}

/* Puts out the mark of an item, two columns further in: a number as it is, else a bullet. */
static void put_item(const char *line, size_t used, Buf *out) {
    size_t indent = count(line, used, 0, ' ');
    put_blanks((int)indent + 2, out);
    if (isdigit((unsigned char)line[indent])) buf_add(out, line + indent, used - indent);
    else buf_puts(out, "• ");
}

/* Finds the kind of the line, sets its style, and puts out what stands in place of its mark.
 * *used: bytes of the line that are the mark.  is_whole: no more of the line will come.
 * Returns IS_TEXT: the rest of the line is text of that style; or UNDECIDED: more bytes are needed,
 * and nothing was put out. */
static Finding line_begin(Markdown *m, const char *line, size_t n, int is_whole, size_t *used,
                          Buf *out) {
    *used = 0;
    m->style = 0;
    if (m->fence) return line_in_block(m, line, n, is_whole);
    Finding found = find_fence(m, line, n, is_whole);
    if (found == IS_TEXT) found = find_rule(line, n, is_whole);
    if (found == UNDECIDED) return found;
    if (found == IS_MARK) {
        m->style = DIM;
        return IS_TEXT;
    }
    found = find_heading(line, n, used);
    if (found == IS_MARK) {
        m->style = count(line, n, 0, '#') <= 2 ? BOLD | UNDERLINED : BOLD;
        return IS_TEXT;
    }
    if (found == IS_TEXT) found = find_item(line, n, used);
    if (found == IS_MARK) {
        put_item(line, *used, out);
        return IS_TEXT;
    }
    *used = 0;
    if (n && line[0] == '>') {
        int depth;
        size_t at = count_quotes(line, n, &depth);
        if (at == n && !is_whole) return UNDECIDED;
        *used = at;
        put_bars(depth, out);
        m->style = DIM | QUOTED;
        return IS_TEXT;
    }
    return found == UNDECIDED && !is_whole ? UNDECIDED : IS_TEXT;
}

/* Whether the line is one of a paragraph: neither a bar nor the mark of another kind of line stands
 * at its beginning. */
static Finding find_paragraph(const char *line, size_t n, int is_whole) {
    Markdown probe = {0};
    Buf nothing = {0};
    size_t used;
    if (is_empty(line, n, 0)) return is_whole ? IS_TEXT : UNDECIDED;
    Finding found = line_begin(&probe, line, n, is_whole, &used, &nothing);
    buf_free(&nothing);
    if (found == UNDECIDED) return UNDECIDED;
    return used || probe.style || is_row(line, n) ? IS_TEXT : IS_MARK;
}

/* ---- the text ---- */

/* Puts out what stands in place of the mark at the beginning of the line in m->held, as soon as
 * that is decided.  is_whole: no more of the line will come.  Returns whether it is decided. */
static int begin_line(Markdown *m, int is_whole, Buf *out) {
    size_t used;
    if (m->in_line) return 1;
    buf_add(&m->held, "", 0);
    if (line_begin(m, m->held.data, m->held.len, is_whole, &used, out) == UNDECIDED) return 0;
    m->in_line = 1;
    m->line.len = 0;
    buf_add(&m->line, m->held.data, used);
    buf_drop(&m->held, used);
    put_style(m->style, out);
    return 1;
}

/* Puts out what is decided of the line whose end so far is in m->held.  is_whole: no more of it
 * will come. */
static void put_line(Markdown *m, int is_whole, Buf *out) {
    if (!begin_line(m, is_whole, out)) return;
    char before = m->line.len ? m->line.data[m->line.len - 1] : 0;
    const Piece piece = {m->held.data, m->held.len, is_whole, before};
    size_t n = piece.n;
    int is_plain = (m->style & CODE) || (m->style & (DIM | QUOTED)) == DIM;
    if (is_plain) buf_add(out, piece.text, n);
    else n = put_inline(&piece, m->style, out);
    buf_add(&m->line, piece.text, n);
    buf_drop(&m->held, n);
}

/* Puts out the rest of the line. */
static void finish_line(Markdown *m, int has_newline, Buf *out) {
    put_line(m, 1, out);
    if (m->style) buf_puts(out, "\033[0m");
    if (has_newline) buf_puts(out, "\n");
    m->in_line = 0;
    m->style = 0;
    m->next = 0;
}

/* The line in m->held is complete.  Where it is plain or in a quote, its end, and what stands
 * behind an open mark, wait in m->held for the next line. */
static void end_line(Markdown *m, Buf *out) {
    begin_line(m, 1, out);
    if (m->style && !(m->style & QUOTED)) {
        finish_line(m, 1, out);
        return;
    }
    buf_puts(&m->held, "\n");
    put_line(m, 0, out);
    m->next = m->held.len;
}

/* Puts out complete lines that begin with bars and turned out to be no table.  m->held is empty. */
static void put_lines(Markdown *m, const Buf *text, Buf *out) {
    for (size_t at = 0; at < text->len;) {
        size_t n = strcspn(text->data + at, "\n");
        buf_add(&m->held, text->data + at, n);
        finish_line(m, text->data[at + n] == '\n', out);
        at += n + 1;
    }
}

/* The lines in m->table are complete: puts them out, as a table if they are one. */
static void end_table(Markdown *m, Buf *out) {
    Buf text = m->table, line = m->held;
    if (!text.len) return;
    m->table = m->held = (Buf){0};
    size_t first = strcspn(text.data, "\n") + 1;
    size_t second = first < text.len ? strcspn(text.data + first, "\n") : 0;
    /* The head without outer bars stands in the cursor's row: the table takes its place. */
    if (m->is_bare) buf_puts(out, "\r\033[K");
    if (second && is_delimiter(text.data + first, second)) put_table(&text, m->columns, out);
    else put_lines(m, &text, out);
    m->is_bare = 0;
    buf_free(&text);
    buf_free(&m->held);
    m->held = line;
}

/* Whether the line in m->held is held back as a whole, because it may be a row of a table. */
static int is_held(const Markdown *m) {
    if (m->in_line || m->fence) return 0;
    return m->is_bare || is_row(m->held.data, m->held.len);
}

/* Adds the complete line in m->held, which begins with a bar or follows a table without outer bars,
 * to the lines that may be a table.  The second line tells: the first two are a table where the
 * second is a delimiter row with as many cells.  Returns 0 where the line is no row of such a table
 * without outer bars. */
static int take_row(Markdown *m, int has_newline, Buf *out) {
    const char *row = m->held.data, *head = m->table.data;
    size_t n = m->held.len, n_head = head ? m->table.len : 0;
    int is_second = n_head && !memchr(head, '\n', n_head - 1), fits = 1;
    if (m->is_bare && !is_second && !is_row(row, n) &&
        (count_cells(row, n) < 2 || find_paragraph(row, n, 1) != IS_MARK))
        return 0;
    if (is_second) fits = count_cells(head, n_head - 1) == count_cells(row, n);
    if (is_second && !(fits && is_delimiter(row, n))) end_table(m, out);
    buf_add(&m->table, m->held.data, n);
    if (has_newline) buf_puts(&m->table, "\n");
    m->held.len = 0;
    return 1;
}

/* Whether a line that has been put out but for what is in m->held is the head of a table of which
 * row[0..n) is the delimiter row.  If so, *head becomes the line with its newline.  A head that
 * takes more than one row of the terminal is none: it cannot be replaced. */
static int find_head(const Markdown *m, const char *row, size_t n, Buf *head) {
    Cell whole = {0};
    buf_add(head, m->line.data, m->line.len);
    buf_add(head, m->held.data, m->next);
    const char *before = memrchr(head->data, '\n', head->len - 1);
    if (before) buf_drop(head, (size_t)(before + 1 - head->data));
    const Piece piece = {head->data, head->len - 1, 1, 0};
    put_inline(&piece, 0, &whole.text);
    int cells = count_cells(piece.text, piece.n);
    int is_head = cells > 1 && cells == count_cells(row, n) && is_delimiter(row, n) &&
                  find_paragraph(piece.text, piece.n, 1) == IS_MARK &&
                  width_of(&whole.text, &whole.is_unsure) <= m->columns;
    buf_free(&whole.text);
    return is_head;
}

/* Whether a paragraph may go on in this line: in a quote behind as many marks as in its first
 * line. */
static Finding find_further(const Markdown *m, const char *line, size_t n, int is_whole) {
    int depth, wanted;
    if (!(m->style & QUOTED)) return find_paragraph(line, n, is_whole);
    size_t used = count_quotes(line, n, &depth);
    (void)count_quotes(m->line.data, m->line.len, &wanted);
    if (depth < wanted && used == n && !is_whole) return UNDECIDED;
    if (depth != wanted) return IS_TEXT;
    return find_paragraph(line + used, n - used, is_whole);
}

/* Decides what the line that begins at m->next is to the line before it: its paragraph goes on, or
 * it was the head of a table, or it has ended.  is_whole: no more of the line will come.
 * Returns 0 where more bytes are needed. */
static int join_line(Markdown *m, int is_whole, Buf *out) {
    Buf line = {0}, head = {0};
    Finding found = UNDECIDED;
    buf_add(&line, m->held.data + m->next, m->held.len - m->next);
    int may_be_delimiter = strspn(line.data, "-:| \t") == line.len;
    int is_head = is_whole && may_be_delimiter && find_head(m, line.data, line.len, &head);
    if (is_whole || !may_be_delimiter) found = find_further(m, line.data, line.len, is_whole);
    if (is_head || found == IS_TEXT) {
        m->held.len = m->next - 1;
        finish_line(m, !is_head, out);
        buf_add(&m->held, line.data, line.len);
        m->is_bare = is_head;
        if (is_head) buf_add(&m->table, head.data, head.len);
    }
    if (found == IS_MARK) m->next = 0;
    buf_free(&line);
    buf_free(&head);
    return is_head || found != UNDECIDED;
}

/* Takes what has come to m->held.  ends: the line is complete. */
static void take(Markdown *m, int ends, Buf *out) {
    if (m->next && !join_line(m, ends, out)) return;
    if (is_held(m) && (!ends || take_row(m, 1, out))) return;
    /* A line that has nothing but blanks so far may become a row of a table. */
    int may_be_row = !m->in_line && !m->fence &&
                     count(m->held.data, m->held.len, 0, ' ') == m->held.len;
    if (may_be_row && !ends) return;
    end_table(m, out);
    if (ends) end_line(m, out);
    else put_line(m, 0, out);
}

void markdown_feed(Markdown *m, const char *text, size_t n, Buf *out) {
    for (size_t i = 0; i < n;) {
        const char *newline = memchr(text + i, '\n', n - i);
        size_t part = newline ? (size_t)(newline - text) - i : n - i;
        buf_add(&m->held, part ? text + i : "", part);
        i += part + (newline != NULL);
        take(m, newline != NULL, out);
    }
}

void markdown_end(Markdown *m, Buf *out) {
    if (m->next) join_line(m, 1, out);
    if (m->held.len && is_held(m)) take_row(m, 0, out);
    end_table(m, out);
    if (m->held.len || m->in_line) finish_line(m, 0, out);
    m->fence = 0;
}

void markdown_free(Markdown *m) {
    buf_free(&m->held);
    buf_free(&m->table);
    buf_free(&m->line);
}

void markdown_show(Markdown *m, const Buf *text) {
    Buf safe = {0}, out = {0};
    if (!m->columns) {
        put_stdout(text->data, text->len);
        return;
    }
    safe_text(text->data, text->len, &safe);
    markdown_feed(m, safe.data, safe.len, &out);
    if (out.len) put_escape(out.data);
    buf_free(&safe);
    buf_free(&out);
}

void markdown_show_end(Markdown *m) {
    Buf out = {0};
    markdown_end(m, &out);
    if (out.len) put_escape(out.data);
    buf_free(&out);
}
