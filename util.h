/* util.h - what every room of the house needs: errors, growing buffers, files, time, UTF-8.
 *
 * Errors: a function that can fail takes an Error, puts one line into it that names the file and the
 * field, and returns -1 or NULL.  Two things end the program on the spot: no memory for small things (xmalloc), and
 * a stdout that cannot be written (put_stdout). */
#ifndef UTIL_H
#define UTIL_H

#include <stddef.h>
#include <stdint.h>

typedef struct {
    char text[1024];                    /* one line, no newline at its end */
} Error;

/* Writes the line into err (which may be NULL).  Returns -1, so that a caller can `return fail(…)`. */
int fail(Error *err, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* malloc, calloc, realloc (of n things of that size), strdup that never return NULL; xaligned: not initialised, at a multiple of 64,
 * for vectors that are read 64 bytes at a time and should not lie in two lines of the cache. */
void *xmalloc(size_t n);
void *xcalloc(int64_t n, size_t size);
void *xrealloc(void *p, int64_t n, size_t size);
void *xaligned(int64_t n);
char *xstrdup(const char *s);

/* A growing string of bytes.  All zero is an empty one.  data[len] is always 0 once anything was added. */
typedef struct {
    char *data;
    size_t len, cap;
} Buf;
void buf_add(Buf *b, const void *bytes, size_t n);
void buf_puts(Buf *b, const char *s);
void buf_printf(Buf *b, const char *format, ...) __attribute__((format(printf, 2, 3)));
void buf_drop(Buf *b, size_t n);        /* removes the first n bytes */
void buf_free(Buf *b);                  /* frees the bytes and makes b empty again */

/* A growing list of token ids.  All zero is an empty one. */
typedef struct {
    int *id;
    int n, cap;
} Ids;
void ids_add(Ids *ids, int id);
void ids_free(Ids *ids);

#define INPUT_LIMIT ((size_t)64 << 20)    /* bytes of a file that is read whole, of stdin, of a line of JSON: more may be without end */

/* The whole file into *b (added to what is there), which the caller frees.  path "-" is stdin.
 * Returns 0, or -1 with err and *b empty: so also for one of more than INPUT_LIMIT bytes. */
int read_file(const char *path, Buf *b, Error *err);

/* The bytes of a regular file, read only, and their number *n, at least 1; given back with unmap_file.  Nothing else is opened: a
 * pipe could not be waited for.  Where the file is cut short, or its disk fails, while it is mapped, whoever reads there ends
 * the program with status 1 and a line that names it.  NULL with err. */
const uint8_t *map_file(const char *path, size_t *n, Error *err);
void unmap_file(const void *bytes, size_t n);           /* bytes may be NULL */

extern int raw_output;                  /* --raw-output: control characters go to a terminal as they are */

/* Writes text to a file descriptor, at once.  It may come from anywhere (a model, a file): on a terminal, its control characters,
 * those beside line end and tab, are shown as pictures (U+2400 for 0, …), C1 and bytes that are no UTF-8 as U+FFFD. */
void write_text(int fd, const char *text, size_t n);

/* The same for stdout.  When nobody reads any more (EPIPE) the program ends quietly, with status 0; any other failure (a full
 * disk) is said on stderr and ends it with status 1: an answer must not be lost silently. */
void put_stdout(const char *text, size_t n);

/* Escape sequences of this program's own, to stdout. */
void put_escape(const char *sequence);

/* Formatted text to stderr, as write_text writes it. */
void note(const char *format, ...) __attribute__((format(printf, 1, 2)));

/* Length in bytes of the UTF-8 character at s[0..n), 1 to 4; 0 when the bytes are not valid UTF-8;
 * -1 when they are the beginning of a character that needs more bytes than n. */
int utf8_char(const char *s, size_t n);

/* The character c, below 0x110000, as UTF-8 to out; returns its length. */
size_t utf8_encode(unsigned c, uint8_t out[4]);

/* 1 when the file is a terminal and the user has not asked for plain text (NO_COLOR). */
int has_colours(int fd);

/* To know content again: FNV-1a, 64 bits, going on from `hash` (0 to begin). */
uint64_t hash_bytes(const void *bytes, size_t n, uint64_t hash);

/* The cores that this process may use. */
int n_cpus(void);

/* Seconds of a clock that only goes forward. */
double seconds(void);

#endif
