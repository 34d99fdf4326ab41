/* textfile.c - reads text files.  See textfile.h. */
#define _GNU_SOURCE
#include "textfile.h"

#include <stdint.h>
#include <string.h>

#include "sniff.h"

/* ---- what is no text ---- */

/* A file's name in the command that helps: what came through stdin has a name of its own. */
static const char *in_command(const char *name) { return strcmp(name, "stdin") ? name : "FILE"; }

/* Fails with what a file of that format is, and what helps. */
static int refuse_format(const char *name, const Format *f, Error *err) {
    const char *place = f->converter ? strstr(f->converter, "%s") : NULL;
    if (f->kind == PICTURE || f->kind == FFMPEG_PICTURE || f->kind == OTHER_PICTURE)
        return fail(err, "%s: %s, not text; pictures go with -i, or /image", name, f->name);
    if (f->kind == FILM)
        return fail(err, "%s: %s, not text; videos go with --video, or /video", name, f->name);
    if (!place) return fail(err, "%s: %s, not text", name, f->name);
    return fail(err, "%s: %s, not text: %.*s%s%s makes text of it", name, f->name,
                (int)(place - f->converter), f->converter, in_command(name), place + 2);
}

/* Guesses the encoding of a text that is not UTF-8.  Of the two that are usual, only Windows-1252
 * has characters from 0x80 to 0x9f. */
static const char *likely_encoding(const char *s, size_t n) {
    for (size_t i = 0; i < n; i++)
        if ((s[i] & 0xe0) == 0x80) return "WINDOWS-1252";
    return "LATIN1";
}

/* Recognises UTF-16 without a byte order mark: more than half of the high bytes are 0, but no low
 * byte is.  Returns the encoding's name, or NULL. */
static const char *bare_utf16(const char *s, size_t n) {
    size_t zeros[2] = {0};
    for (size_t i = 0; i < n; i++) zeros[i % 2] += !s[i];
    if (n < 2 || n % 2) return NULL;
    if (!zeros[0] && zeros[1] > n / 4) return "UTF-16LE";
    return !zeros[1] && zeros[0] > n / 4 ? "UTF-16BE" : NULL;
}

/* Returns 0 where the bytes are UTF-8 text; else -1 with err, which says what they may be. */
static int check_text(const char *name, const char *s, size_t n, Error *err) {
    size_t good = utf8_until(s, n);
    int has_nul = memchr(s, 0, n) != NULL;
    const Format *f = sniff(s, n);
    int is_pdf = n > 4 && !memcmp(s, "%PDF-", 5);
    if (good == n && !has_nul && !is_pdf) return 0;
    if (f) return refuse_format(name, f, err);
    const char *wide = bare_utf16(s, n);
    if (wide)
        return fail(err, "%s: %s without a byte order mark: iconv -f %s -t UTF-8 %s", name, wide,
                    wide, in_command(name));
    if (has_nul) return fail(err, "%s: a NUL byte: a message is text", name);
    const char *likely = likely_encoding(s, n);
    return fail(err, "%s: not UTF-8 (byte 0x%02X at %zu), perhaps %s: iconv -f %s -t UTF-8 %s",
                name, (unsigned char)s[good], good, likely, likely,
                in_command(name));
}

/* ---- UTF-16 ---- */

/* Adds UTF-16 to out as UTF-8, without the byte order mark that it begins with.  big: the first
 * byte of a unit is the higher one.  Half a pair of surrogates is an error. */
static int from_utf16(const char *name, const Buf *in, int big, Buf *out, Error *err) {
    const uint8_t *p = (const uint8_t *)in->data;
    if (in->len % 2) return fail(err, "%s: UTF-16 of an odd number of bytes", name);
    for (size_t i = 2; i < in->len; i += 2) {
        unsigned c = number_at(p + i, 2, big), low = 0;
        if (c >> 11 == 0x1b) {          /* D800 to DFFF: a surrogate */
            if (i + 2 < in->len) low = number_at(p + i + 2, 2, big);
            if (c >> 10 != 0x36 || low >> 10 != 0x37)
                return fail(err, "%s: UTF-16 with half a pair of surrogates at byte %zu", name, i);
            c = 0x10000 + ((c & 0x3ff) << 10 | (low & 0x3ff));
            i += 2;
        }
        uint8_t bytes[4];
        buf_add(out, bytes, utf8_encode(c, bytes));
    }
    return 0;
}

/* ---- files ---- */

/* Adds the bytes of a file to *b as UTF-8.  Returns as read_text does. */
static int decode(const char *name, const Buf *in, Buf *b, Error *err) {
    const char *s = in->data;
    int little = in->len >= 2 && !memcmp(s, "\xff\xfe", 2);
    int big = in->len >= 2 && !memcmp(s, "\xfe\xff", 2);
    if (little && in->len >= 4 && !s[2] && !s[3])
        return fail(err, "%s: UTF-32: iconv -f UTF-32 -t UTF-8 %s", name, in_command(name));
    Buf text = {0};
    buf_puts(&text, "");
    size_t mark = in->len >= 3 && !memcmp(s, "\xef\xbb\xbf", 3) ? 3 : 0;
    int bad = 0;
    if (little || big) bad = from_utf16(name, in, big, &text, err);
    else buf_add(&text, s + mark, in->len - mark);
    if (!bad) bad = check_text(name, text.data, text.len, err);
    if (!bad) buf_add(b, text.data, text.len);
    buf_free(&text);
    return bad;
}

int read_text(const char *path, Buf *b, Error *err) {
    Buf in = {0};
    int bad = read_file(path, &in, err) || decode(file_name(path), &in, b, err);
    buf_free(&in);
    return bad ? -1 : 0;
}

/* Returns the length of the longest run of backticks. */
static int longest_run(const Buf *text) {
    int run = 0, longest = 0;
    for (size_t i = 0; i < text->len; i++) {
        run = text->data[i] == '`' ? run + 1 : 0;
        if (run > longest) longest = run;
    }
    return longest;
}

int attach_text(const char *path, Buf *b, Error *err) {
    Buf text = {0}, fence = {0};
    if (read_text(path, &text, err)) return -1;
    if (!text.len) {
        buf_free(&text);
        return fail(err, "%s: the file is empty", file_name(path));
    }
    int n_run = longest_run(&text);
    for (int i = 0; i < 3 || i <= n_run; i++) buf_puts(&fence, "`");
    int has_newline = text.data[text.len - 1] == '\n';
    if (b->len) buf_puts(b, "\n\n");
    /* A line end in a name would end the line that holds it. */
    for (const char *p = file_name(path); *p; p++)
        buf_add(b, *p == '\n' || *p == '\r' ? "?" : p, 1);
    buf_printf(b, "\n%s\n", fence.data);
    buf_add(b, text.data, text.len);
    buf_printf(b, "%s%s", has_newline ? "" : "\n", fence.data);
    buf_free(&text);
    buf_free(&fence);
    return 0;
}
