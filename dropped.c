/* dropped.c - finds the paths of files in a line.  See dropped.h. */
#define _GNU_SOURCE
#include "dropped.h"

#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "media.h"

static int is_blank(char c) { return c == ' ' || c == '\t' || c == '\n'; }

/* Adds the path of a URL, file:///… or file://host/…, with each %xx decoded. */
static void add_url_path(const char *text, size_t n, Buf *path) {
    size_t at = strlen("file://");
    while (at < n && text[at] != '/') at++;
    url_decode(text + at, n - at, path);
}

/* Adds what a shell makes of a word that begins with a quote, as terminals write dropped files:
 * 'it'\''s', 'it'"'"'s', "a \"b\"".  Returns 1; or 0, and adds nothing, where a quote is left open,
 * as in 'it's'. */
static int add_unquoted(const char *text, size_t n, Buf *word) {
    size_t before = word->len;
    char quote = 0;
    for (size_t i = 0; i < n; i++) {
        int escapes = text[i] == '\\' && i + 1 < n && quote != '\'';
        if (escapes && quote) escapes = text[i + 1] == '"' || text[i + 1] == '\\';
        if (escapes) buf_add(word, text + ++i, 1);
        else if (text[i] == quote) quote = 0;
        else if (!quote && (text[i] == '\'' || text[i] == '"')) quote = text[i];
        else buf_add(word, text + i, 1);
    }
    if (quote) word->len = before;
    return !quote;
}

/* path_of for a word without quotes around it. */
static void add_bare(const char *text, size_t n, Buf *path) {
    const char *home = getenv("HOME");
    if (n > 1 && text[0] == '~' && text[1] == '/' && home) {
        buf_puts(path, home);
        text++, n--;
    }
    for (size_t i = 0; i < n; i++) {
        if (text[i] == '\\' && i + 1 < n) i++;
        buf_add(path, text + i, 1);
    }
}

void path_of(const char *text, size_t n, Buf *path) {
    Buf word = {0};
    while (n && is_blank(text[0])) text++, n--;
    while (n && is_blank(text[n - 1]) && !(n > 1 && text[n - 2] == '\\')) n--;
    int is_quoted = n > 1 && (text[0] == '\'' || text[0] == '"') && text[n - 1] == text[0];
    buf_add(path, "", 0);
    if (is_quoted && !add_unquoted(text, n, &word)) buf_add(&word, text + 1, n - 2);
    if (is_quoted) text = word.data ? word.data : "", n = word.len;
    if (n > 7 && !strncmp(text, "file://", 7)) add_url_path(text, n, path);
    else if (is_quoted) buf_add(path, text, n);
    else add_bare(text, n, path);
    buf_free(&word);
}

/* Decodes the text into *path.  Returns what media_kind says of the path, or 0 where it is not that
 * of an existing regular file. */
static int kind_of(const char *text, size_t n, Buf *path) {
    struct stat info;
    path->len = 0;
    path_of(text, n, path);
    if (!path->len || strlen(path->data) != path->len || strchr(path->data, '\n')) return 0;
    if (stat(path->data, &info) || !S_ISREG(info.st_mode)) return 0;
    return media_kind(path->data);
}

/* Returns the length of the word at the beginning of text.  A word in quotes ends with the first
 * such quote in front of a blank, punctuation or the end.  Another word ends at a blank without a \
 * in front. */
static size_t word_length(const char *text) {
    static const char after[] = " \t\n.,;:!?)]}";
    if (*text == '\'' || *text == '"')
        for (const char *end = text + 1; (end = strchr(end, *text)); end++)
            if (!end[1] || strchr(after, end[1])) return (size_t)(end + 1 - text);
    size_t n = 0;
    for (; text[n] && !is_blank(text[n]); n++)
        if (text[n] == '\\' && text[n + 1]) n++;
    return n;
}

/* As kind_of.  Where the whole word names no file, brackets and punctuation around it are taken
 * away. */
static int kind_of_word(const char *word, size_t n, Buf *path) {
    int kind = kind_of(word, n, path);
    if (kind || !n) return kind;
    if (strchr("([{<", word[0])) {
        word++, n--;
        kind = kind_of(word, n, path);
    }
    while (!kind && n && strchr(".,;:!?)]}>", word[n - 1])) kind = kind_of(word, --n, path);
    return kind;
}

int next_dropped(const char **at, Buf *path, int *only) {
    const char *text = *at;
    int kind = 0;
    while (!kind) {
        while (is_blank(*text)) text++;
        if (!*text) break;
        if (strchr("([{<", *text) && (text[1] == '\'' || text[1] == '"')) text++, *only = 0;
        size_t n = word_length(text);
        kind = kind_of_word(text, n, path);
        if (!kind) *only = 0;
        text += n;
    }
    *at = text;
    return kind;
}
