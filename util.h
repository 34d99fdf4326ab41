/* util.h - helpers that the whole program uses: errors, growing buffers, files, time, UTF-8.
 *
 * Errors: a function that can fail takes an Error, puts one line into it that names the file and
 * the field, and returns -1 or NULL.  Only two failures end the program on the spot: xmalloc and
 * its relatives get no memory, or put_stdout cannot write. */
#ifndef UTIL_H
#define UTIL_H

#include <stddef.h>
#include <stdint.h>

typedef struct {
    char text[1024];                    /* one line, no newline at its end */
} Error;

/* Writes the line into err, which may be NULL; a control character in it becomes a ?.
 * Returns -1, so that a caller can `return fail(…)`. */
int fail(Error *err, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* What is called before this file ends the program, also in a signal handler; NULL: nothing. */
extern void (*before_exit)(void);

/* malloc, calloc, realloc and strdup that never return NULL: without memory they end the program.
 * xrealloc resizes to n elements of `size` bytes.  The caller frees all results with free. */
void *xmalloc(size_t n);
void *xcalloc(int64_t n, size_t size);
void *xrealloc(void *p, int64_t n, size_t size);
char *xstrdup(const char *s);

/* Returns the array p, which has n elements of `size` bytes, with room for one more.  *cap: for how
 * many elements there is room; where these are n, the array moves to more than twice the room. */
void *xgrow(void *p, int n, int *cap, size_t size);

/* The order of two texts by strcmp, each given by the address of its pointer, for qsort and
 * bsearch. */
int by_text(const void *a, const void *b);

/* n bytes, not initialised, at an address that is a multiple of 64: a vector register of 64 bytes
 * that is loaded from there never straddles two cache lines. */
void *xaligned(int64_t n);

/* A growing string of bytes.  An all-zero Buf is empty.  Once anything was added, data[len] is 0,
 * so that data is also a C string. */
typedef struct {
    char *data;
    size_t len, cap;
} Buf;
void buf_add(Buf *b, const void *bytes, size_t n);
void buf_puts(Buf *b, const char *s);
void buf_printf(Buf *b, const char *format, ...) __attribute__((format(printf, 2, 3)));
void buf_drop(Buf *b, size_t n);        /* removes the first n bytes */
void buf_free(Buf *b);                  /* frees the bytes and makes b empty again */

/* A growing list of token ids.  An all-zero Ids is empty. */
typedef struct {
    int *id;
    int n, cap;
} Ids;
void ids_add(Ids *ids, int id);
void ids_free(Ids *ids);

/* Limit in bytes of whatever is read whole: a file, stdin, a line of JSON.  An input without an
 * end, as of a device, must not fill the memory; no request or picture comes near the limit. */
#define INPUT_LIMIT ((size_t)64 << 20)

/* How messages name the file `path`, which is read: "-" is stdin. */
const char *file_name(const char *path);

/* Adds the whole file to *b, which the caller frees.  path "-" is stdin.
 * Returns 0, or -1 with err and *b empty; a file of more than INPUT_LIMIT bytes is an error. */
int read_file(const char *path, Buf *b, Error *err);

/* How the file begins that git-lfs leaves in place of a large one. */
#define LFS_MAGIC "version https://git-lfs.github.com/"

/* Maps a regular file for reading and returns its *n bytes (n >= 1); the caller releases them with
 * unmap_file.  NULL with err, also for what is no regular file: opening a pipe could wait for ever.
 * A git-lfs pointer, which only names its content, is an error, too.
 * If the file is truncated or its disk fails while it is mapped, the next read of the lost bytes
 * ends the program with status 1 and a line on stderr that names the file. */
const uint8_t *map_file(const char *path, size_t *n, Error *err);
void unmap_file(const void *bytes, size_t n);           /* bytes may be NULL */

/* The caller has read the bytes [from, from + n) of a mapped file and will hardly read them again:
 * the memory that keeps their pages becomes free.  Who reads them again waits for the disk.
 * Nothing happens to bytes that lie in no mapped file. */
void forget_pages(const void *from, size_t n);

extern int quiet;                        /* --quiet: stderr gets errors alone */
extern int raw_output;                  /* --raw-output: a terminal gets bytes as they are */

/* Adds text[0..n) to shown as a terminal may get it: see write_text.  With --raw-output, as it
 * is. */
void safe_text(const char *text, size_t n, Buf *shown);

/* Writes text[0..n) to a file descriptor at once, without a buffer.  The text may come from a
 * model or a file, and its control characters could take over a terminal.  So on a terminal
 * every control character but newline and tab is shown as its picture (U+2400 for 0, …), and C1
 * controls and bytes that are not UTF-8 are shown as U+FFFD. */
void write_text(int fd, const char *text, size_t n);

/* write_text to stdout.  When stdout's reader has gone (EPIPE) the program ends quietly with
 * READER_GONE, as one that SIGPIPE ends; with outlives_reader what is written is dropped instead,
 * and reader_is_gone becomes 1.  A terminal that has vanished counts as SIGHUP.  After any other
 * failure (a full disk) the program says so on stderr and ends with status 1, since an answer must
 * not be lost in silence. */
void put_stdout(const char *text, size_t n);

#define READER_GONE (128 + SIGPIPE)
extern int outlives_reader, reader_is_gone;

/* Writes one of the program's own escape sequences to stdout as it is. */
void put_escape(const char *sequence);

/* Writes bytes [n] to fd as they are, also where another program that shares the file has set
 * O_NONBLOCK.  Returns 0, or -1 with errno. */
int write_whole(int fd, const void *bytes, size_t n);

/* Writes formatted text to stderr with write_text: an error, or an answer to a command. */
void note(const char *format, ...) __attribute__((format(printf, 1, 2)));

/* Writes as note does what is no error; nothing when `quiet`. */
void remark(const char *format, ...) __attribute__((format(printf, 1, 2)));

/* A remark for each of the lines: "gemma4: warning: LINE". */
void remark_lines(const Buf *lines);

/* Length in bytes of the UTF-8 character at s[0..n), 1 to 4; 0 when the bytes are not valid UTF-8;
 * -1 when they are the beginning of a character that needs more bytes than n. */
int utf8_char(const char *s, size_t n);

/* The offset of the first byte of s[0..n) that is not UTF-8; n where all are. */
size_t utf8_until(const char *s, size_t n);

/* Writes the character c (below 0x110000) as UTF-8 to out; returns its length in bytes, 1 to 4. */
size_t utf8_encode(unsigned c, uint8_t out[4]);

/* The columns that the character at s[0..n), n >= 1, takes on a terminal, in the locale's encoding;
 * -1: it is a control character; 1 where the byte begins no character.  Returns its bytes. */
size_t char_columns(const char *s, size_t n, int *columns);

/* The value of a hexadecimal digit; -1: it is none. */
int hex_digit(char c);

/* The number of so many bytes (at most 4) at p; big: the first byte is the highest. */
static inline unsigned number_at(const uint8_t *p, int bytes, int big) {
    unsigned v = 0;
    for (int i = 0; i < bytes; i++) v |= (unsigned)p[i] << 8 * (big ? bytes - 1 - i : i);
    return v;
}

/* Whether a word is in a list that ends with NULL. */
int is_in(const char *word, const char *const *list);

/* Whether s begins with `start`; whether it ends with `ending`. */
int begins(const char *s, const char *start);
int has_ending(const char *s, const char *ending);

/* Whether s[0..n) is the text. */
int is_text(const char *s, size_t n, const char *text);

/* Waits for the end of a child.  Returns its status as waitpid gives it, or -1 with errno, which no
 * status equals. */
int wait_for(int child);

/* 1 when TERM is unset or "dumb": the terminal knows no escape sequences. */
int is_dumb_terminal(void);

/* 1 when the file descriptor is a terminal that can dim, and NO_COLOR does not ask for plain
 * text. */
int has_colours(int fd);

/* The 64-bit FNV-1a hash of the bytes, to recognise content that was seen before.  `hash` is 0 for
 * the first piece of the content and the last result for the next piece. */
uint64_t hash_bytes(const void *bytes, size_t n, uint64_t hash);

/* How many cores this process may run on: those of its affinity mask. */
int n_cores(void);

/* As many cores as the CPU quota of a container (its cgroup and those above it, version 1 or 2)
 * allows, rounded up; INT_MAX where there is none.  The files lie under root, "" but in tests. */
int quota_cores(const char *root);

/* How many threads are worth having: the smaller of the two. */
int n_cpus(void);

/* Calls fn(arg) in several threads at once, of which the caller's is one, and returns when all have
 * returned: for an fn that takes its next task by a counter in arg.  There are `most` threads, or
 * n_cpus(), or as many as are to be had, whichever is least. */
void in_threads(int most, void *(*fn)(void *), void *arg);

/* Seconds of the monotonic clock. */
double seconds(void);

#endif
