/* util.c - errors, growing buffers, files, stdout, time, UTF-8.  See util.h. */
#define _GNU_SOURCE
#include "util.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <math.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>
#include <wchar.h>

int fail(Error *err, const char *format, ...) {
    if (err) {
        va_list ap;
        va_start(ap, format);
        vsnprintf(err->text, sizeof err->text, format, ap);
        va_end(ap);
        /* The line may quote names from files; whatever they hold, it must stay one line. */
        for (char *p = err->text; *p; p++)
            if ((unsigned char)*p < 32 || *p == 127) *p = '?';
    }
    return -1;
}

void (*before_exit)(void);

/* Ends the program on the spot, also from a signal handler. */
_Noreturn static void leave(int status) {
    if (before_exit) before_exit();
    _exit(status);
}

static void *checked(void *p) {
    if (!p) {
        fputs("gemma4: out of memory\n", stderr);
        if (before_exit) before_exit();
        exit(1);
    }
    return p;
}

void *xmalloc(size_t n) { return checked(malloc(n ? n : 1)); }
void *xcalloc(int64_t n, size_t size) { return checked(calloc(n ? (size_t)n : 1, size)); }
void *xrealloc(void *p, int64_t n, size_t size) {
    return checked(reallocarray(p, n ? (size_t)n : 1, size));
}

void *xgrow(void *p, int n, int *cap, size_t size) {
    if (n < *cap) return p;
    *cap = 2 * *cap + 64;
    return xrealloc(p, *cap, size);
}

void *xaligned(int64_t n) {
    void *p;
    return checked(posix_memalign(&p, 64, (size_t)n) ? NULL : p);
}

char *xstrdup(const char *s) { return checked(strdup(s)); }

int by_text(const void *a, const void *b) {
    return strcmp(*(char *const *)a, *(char *const *)b);
}

static void buf_reserve(Buf *b, size_t more) {
    if (b->cap - b->len > more) return; /* > and not >=: one byte is for the closing 0 */
    size_t cap = b->cap ? b->cap : 64;
    while (cap - b->len <= more) cap *= 2;
    b->data = checked(realloc(b->data, cap));
    b->cap = cap;
}

void buf_add(Buf *b, const void *bytes, size_t n) {
    buf_reserve(b, n);
    if (n) memcpy(b->data + b->len, bytes, n);
    b->len += n;
    b->data[b->len] = 0;
}

void buf_puts(Buf *b, const char *s) { buf_add(b, s, strlen(s)); }

void buf_printf(Buf *b, const char *format, ...) {
    va_list ap;
    va_start(ap, format);
    size_t n = (size_t)vsnprintf(NULL, 0, format, ap);
    va_end(ap);
    buf_reserve(b, n + 1);
    va_start(ap, format);
    vsnprintf(b->data + b->len, n + 1, format, ap);
    va_end(ap);
    b->len += n;
}

void buf_drop(Buf *b, size_t n) {
    if (!n) return;
    memmove(b->data, b->data + n, b->len - n + 1);
    b->len -= n;
}

void buf_free(Buf *b) {
    free(b->data);
    *b = (Buf){0};
}

void ids_add(Ids *ids, int id) {
    ids->id = xgrow(ids->id, ids->n, &ids->cap, sizeof *ids->id);
    ids->id[ids->n++] = id;
}

void ids_free(Ids *ids) {
    free(ids->id);
    *ids = (Ids){0};
}

const char *file_name(const char *path) { return strcmp(path, "-") ? path : "stdin"; }

int read_file(const char *path, Buf *b, Error *err) {
    const char *name = file_name(path);
    int from_stdin = name != path;
    FILE *f = from_stdin ? stdin : fopen(path, "rb");
    if (!f) return fail(err, "%s: %s", path, strerror(errno));
    buf_add(b, "", 0);
    size_t n;
    do {
        buf_reserve(b, 1 << 16);
        n = fread(b->data + b->len, 1, 1 << 16, f);
        b->len += n;
        b->data[b->len] = 0;
        /* Fewer bytes are the last ones.  A terminal would have to be told so once more. */
    } while (n == 1 << 16 && b->len <= INPUT_LIMIT);
    int bad = b->len > INPUT_LIMIT ? EFBIG : 0;
    if (ferror(f)) bad = errno;
    if (!from_stdin) (void)fclose(f);
    if (!bad) return 0;
    buf_free(b);
    if (bad == EFBIG) return fail(err, "%s: more than %zu MB", name, INPUT_LIMIT >> 20);
    return fail(err, "%s: %s", name, strerror(bad));
}

/* A mapped file, in a list of all of them that the handler of SIGBUS searches. */
typedef struct Mapping Mapping;
struct Mapping {
    char *line;                         /* the line for stderr when the file fails, made in advance:
                                         * a signal handler cannot format */
    const uint8_t *from;                /* the mapped bytes [from, from + n) */
    size_t n;
    int fd;                             /* of the file, for forget_pages */
    Mapping *next;
};
static Mapping *mappings;
/* Guards the list.  Who holds it reads no mapped byte, so the handler can take it. */
static pthread_mutex_t mappings_lock = PTHREAD_MUTEX_INITIALIZER;

/* The kernel sends SIGBUS when a mapped page has no file behind it any more.  An address outside of
 * all mappings is a defect of the program: the default action then ends it with a core dump.
 * Several threads may meet such pages at once: the first one says so, the others wait for the
 * lock, and so for the end. */
static void on_bus_error(int signal_number, siginfo_t *info, void *context) {
    const uint8_t *at = info->si_addr;
    (void)context;
    pthread_mutex_lock(&mappings_lock);
    for (const Mapping *m = mappings; m; m = m->next)
        if (at >= m->from && at < m->from + m->n) {
            ssize_t done = write(STDERR_FILENO, m->line, strlen(m->line));
            (void)done;
            leave(1);
        }
    pthread_mutex_unlock(&mappings_lock);
    signal(signal_number, SIG_DFL);
}

/* Whether the file holds only where git-lfs finds its content. */
static int is_lfs_pointer(const char *bytes, off_t n) {
    static const char start[] = LFS_MAGIC;
    return n >= (off_t)sizeof start - 1 && !memcmp(bytes, start, sizeof start - 1);
}

const uint8_t *map_file(const char *path, size_t *n, Error *err) {
    struct stat info;
    void *bytes = MAP_FAILED;
    /* Without O_NONBLOCK, open would wait for ever on a named pipe that nobody writes. */
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0 || fstat(fd, &info)) fail(err, "%s: %s", path, strerror(errno));
    else if (!S_ISREG(info.st_mode)) fail(err, "%s: not a regular file", path);
    else if (!info.st_size) fail(err, "%s: empty", path);
    else if ((bytes = mmap(NULL, (size_t)info.st_size, PROT_READ, MAP_SHARED, fd, 0)) == MAP_FAILED)
        fail(err, "%s: cannot map %lld bytes: %s", path, (long long)info.st_size, strerror(errno));
    if (bytes != MAP_FAILED && is_lfs_pointer(bytes, info.st_size)) {
        munmap(bytes, (size_t)info.st_size);
        bytes = MAP_FAILED;
        fail(err, "%s: is a git-lfs pointer: run git lfs pull", path);
    }
    if (bytes == MAP_FAILED) {
        if (fd >= 0) close(fd);
        return NULL;
    }
    const struct sigaction action = {.sa_sigaction = on_bus_error, .sa_flags = SA_SIGINFO};
    Buf line = {0};
    buf_printf(&line, "gemma4: %s: cannot be read any more: cut short, or its disk fails\n", path);
    Mapping *m = xmalloc(sizeof *m);
    *n = (size_t)info.st_size;
    pthread_mutex_lock(&mappings_lock);
    if (!mappings) sigaction(SIGBUS, &action, NULL);
    *m = (Mapping){line.data, bytes, *n, fd, mappings};
    mappings = m;
    pthread_mutex_unlock(&mappings_lock);
    return bytes;
}

/* The bytes of a mapping that threads take out of the page tables, a piece at a time. */
typedef struct {
    uint8_t *from;
    size_t n;
    atomic_size_t next;                 /* where the next piece begins */
} Pages;

/* Bytes of a piece: 1.6 ms, where starting a thread takes 0.1 ms. */
#define PIECE ((size_t)64 << 20)

static void *drop_pages(void *arg) {
    Pages *p = arg;
    for (size_t at; (at = atomic_fetch_add(&p->next, PIECE)) < p->n;)
        madvise(p->from + at, p->n - at < PIECE ? p->n - at : PIECE, MADV_DONTNEED);
    return NULL;
}

void unmap_file(const void *bytes, size_t n) {
    Mapping **m = &mappings, *gone;
    if (!bytes) return;
    pthread_mutex_lock(&mappings_lock);
    while ((*m)->from != bytes) m = &(*m)->next;
    gone = *m;
    *m = gone->next;
    pthread_mutex_unlock(&mappings_lock);
    /* munmap alone would do this in one thread, 25 ms for each GB that was read. */
    Pages pages = {.from = (uint8_t *)bytes, .n = n};
    if (n > PIECE) in_threads(4, drop_pages, &pages);
    munmap((void *)bytes, n);
    close(gone->fd);
    free(gone->line);
    free(gone);
}

void forget_pages(const void *from, size_t n) {
    const uint8_t *begin = from;
    pthread_mutex_lock(&mappings_lock);
    const Mapping *m = mappings;
    while (m && (begin < m->from || begin + n > m->from + m->n)) m = m->next;
    pthread_mutex_unlock(&mappings_lock);
    if (!m) return;
    /* The system drops whole pages, and only those that no process has in its page tables. */
    const size_t page = (size_t)sysconf(_SC_PAGESIZE);
    const size_t at = (size_t)(begin - m->from);
    const size_t first = (at + page - 1) / page * page, end = (at + n) / page * page;
    if (first >= end) return;
    madvise((void *)(m->from + first), end - first, MADV_DONTNEED);
    posix_fadvise(m->fd, (off_t)first, (off_t)(end - first), POSIX_FADV_DONTNEED);
}

/* ---- writing ---- */

int quiet, raw_output;
int outlives_reader, reader_is_gone;

int write_whole(int fd, const void *bytes, size_t n) {
    for (size_t written = 0; written < n;) {
        ssize_t done = write(fd, (const char *)bytes + written, n - written);
        if (done < 0 && errno == EAGAIN) poll(&(struct pollfd){fd, POLLOUT, 0}, 1, -1);
        else if (done < 0 && errno != EINTR) return -1;
        if (done > 0) written += (size_t)done;
    }
    return 0;
}

/* write_whole; stdout that cannot be written ends the program.  A terminal that has vanished gives
 * EIO a moment before its SIGHUP comes (__tty_hangup in Linux): which of the two the program meets
 * first makes no difference. */
static void write_all(int fd, const char *bytes, size_t n) {
    struct stat of;
    if (!write_whole(fd, bytes, n) || fd != STDOUT_FILENO) return;
    const int error = errno;
    int vanished = error == EIO && !fstat(fd, &of) && S_ISCHR(of.st_mode);
    if (vanished) raise(SIGHUP);        /* returns where it is ignored, or the answer is saved */
    if (error == EPIPE && !outlives_reader) leave(READER_GONE);
    if (outlives_reader && (vanished || error == EPIPE)) {
        reader_is_gone = 1;
        return;
    }
    fprintf(stderr, "gemma4: stdout: %s\n", strerror(error));
    leave(1);
}

/* The code point that a terminal gets in place of the character at s, which has len bytes (<= 0: it
 * is not UTF-8); 0: the character itself. */
static unsigned shown_as(const unsigned char *s, int len) {
    if (len <= 0) return 0xfffd;
    if (len == 2 && s[0] == 0xc2 && s[1] < 0xa0) return 0xfffd;         /* U+0080 to U+009F */
    if (s[0] == 127) return 0x2421;                                     /* the picture of DEL */
    return s[0] < 32 && s[0] != '\n' && s[0] != '\t' ? 0x2400u + s[0] : 0;
}

void safe_text(const char *text, size_t n, Buf *shown) {
    for (size_t i = 0; i < n;) {
        int len = utf8_char(text + i, n - i);
        unsigned instead = shown_as((const unsigned char *)text + i, len);
        if (len <= 0) len = 1;
        if (instead && !raw_output) {
            uint8_t utf8[4];
            size_t n_bytes = utf8_encode(instead, utf8);
            buf_add(shown, utf8, n_bytes);
        } else buf_add(shown, text + i, (size_t)len);
        i += (size_t)len;
    }
}

void write_text(int fd, const char *text, size_t n) {
    Buf shown = {0};
    if (raw_output || !isatty(fd)) {
        write_all(fd, text, n);
        return;
    }
    safe_text(text, n, &shown);
    write_all(fd, shown.data, shown.len);
    buf_free(&shown);
}

void put_stdout(const char *text, size_t n) { write_text(STDOUT_FILENO, text, n); }

void put_escape(const char *sequence) { write_all(STDOUT_FILENO, sequence, strlen(sequence)); }

static void write_note(const char *format, va_list ap) {
    char *text = NULL;
    int n = vasprintf(&text, format, ap);
    if (n > 0) write_text(STDERR_FILENO, text, (size_t)n);
    free(text);
}

void note(const char *format, ...) {
    va_list ap;
    va_start(ap, format);
    write_note(format, ap);
    va_end(ap);
}

void remark(const char *format, ...) {
    va_list ap;
    va_start(ap, format);
    if (!quiet) write_note(format, ap);
    va_end(ap);
}

void remark_lines(const Buf *lines) {
    const char *line = lines->len ? lines->data : "";
    for (size_t n; *line; line += n + (line[n] == '\n')) {
        n = strcspn(line, "\n");
        remark("gemma4: warning: %.*s\n", (int)n, line);
    }
}

/* Table 3-7 of the Unicode standard: no overlong forms, no surrogates, nothing above U+10FFFF.
 * The first byte says the length, and four first bytes narrow the range of the second byte. */
int utf8_char(const char *str, size_t n) {
    const unsigned char *s = (const unsigned char *)str;
    if (n == 0) return -1;
    if (s[0] < 0x80) return 1;
    if (s[0] < 0xc2 || s[0] > 0xf4) return 0;
    int len = 2 + (s[0] >= 0xe0) + (s[0] >= 0xf0);
    int low = 0x80, high = 0xbf;
    if (s[0] == 0xe0) low = 0xa0;                   /* below: overlong */
    if (s[0] == 0xed) high = 0x9f;                  /* above: surrogates */
    if (s[0] == 0xf0) low = 0x90;                   /* below: overlong */
    if (s[0] == 0xf4) high = 0x8f;                  /* above: beyond U+10FFFF */
    for (int i = 1; i < len; i++) {
        if ((size_t)i >= n) return -1;
        if (s[i] < low || s[i] > high) return 0;
        low = 0x80, high = 0xbf;
    }
    return len;
}

size_t utf8_until(const char *s, size_t n) {
    size_t i = 0;
    while (i < n) {
        int length = utf8_char(s + i, n - i);
        if (length <= 0) break;
        i += (size_t)length;
    }
    return i;
}

int hex_digit(char c) {
    if (c >= '0' && c <= '9') return c - '0';
    c |= 32;
    return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

size_t char_columns(const char *s, size_t n, int *columns) {
    wchar_t c;
    mbstate_t state = {0};
    size_t length = mbrtowc(&c, s, n, &state);
    int is_character = length > 0 && length <= n;
    *columns = is_character ? wcwidth(c) : 1;
    return is_character ? length : 1;
}

size_t utf8_encode(unsigned c, uint8_t out[4]) {
    if (c < 0x80) return out[0] = (uint8_t)c, 1;
    size_t n = 2 + (size_t)(c >= 0x800) + (size_t)(c >= 0x10000);
    for (size_t i = n - 1; i > 0; i--, c >>= 6) out[i] = (uint8_t)(0x80 | (c & 63));
    out[0] = (uint8_t)(0xf00 >> n | c);             /* n ones in front: 0xc0, 0xe0, 0xf0 */
    return n;
}

int is_dumb_terminal(void) {
    const char *name = getenv("TERM");
    return !name || !*name || !strcmp(name, "dumb");
}

int has_colours(int fd) {
    const char *plain = getenv("NO_COLOR");
    return isatty(fd) && !is_dumb_terminal() && !(plain && *plain);
}

int is_in(const char *word, const char *const *list) {
    for (; *list; list++)
        if (!strcmp(word, *list)) return 1;
    return 0;
}

int begins(const char *s, const char *start) { return !strncmp(s, start, strlen(start)); }

int has_ending(const char *s, const char *ending) {
    size_t n = strlen(s), k = strlen(ending);
    return n >= k && !strcmp(s + n - k, ending);
}

int is_text(const char *s, size_t n, const char *text) {
    return n == strlen(text) && !memcmp(s, text, n);
}

int wait_for(int child) {
    int status;
    while (waitpid(child, &status, 0) < 0)
        if (errno != EINTR) return -1;
    return status;
}

uint64_t hash_bytes(const void *bytes, size_t n, uint64_t hash) {
    const uint8_t *p = bytes;
    if (!hash) hash = 0xcbf29ce484222325;
    for (size_t i = 0; i < n; i++) hash = (hash ^ p[i]) * 0x100000001b3;
    return hash;
}

/* ---- cores ---- */

/* More cores than cpu_set_t has room for are counted as all that are online. */
int n_cores(void) {
    cpu_set_t set;
    if (!sched_getaffinity(0, sizeof set, &set)) return CPU_COUNT(&set);
    return (int)sysconf(_SC_NPROCESSORS_ONLN);
}

/* The first line of root/dir/name.  Returns whether there is one. */
static int read_line(const char *root, const char *dir, const char *name, char line[64]) {
    char path[4096];
    if (snprintf(path, sizeof path, "%s%s/%s", root, dir, name) >= (int)sizeof path) return 0;
    FILE *f = fopen(path, "r");
    int there = f && fgets(line, 64, f);
    if (f) (void)fclose(f);             /* nothing was written */
    return there;
}

/* The quota of one cgroup, the directory `dir`, in cores; INFINITY where it has none. */
static double quota_of(const char *root, const char *dir) {
    char line[64], period[64];
    double used = 0, of = 0;            /* microseconds */
    if (read_line(root, dir, "cpu.max", line)) sscanf(line, "%lf %lf", &used, &of);
    else if (read_line(root, dir, "cpu.cfs_quota_us", line) &&
             read_line(root, dir, "cpu.cfs_period_us", period)) {
        sscanf(line, "%lf", &used);     /* -1: none */
        sscanf(period, "%lf", &of);
    }
    return used > 0 && of > 0 ? used / of : INFINITY;
}

/* The smallest quota of the cgroup `group` and of those above it, where the hierarchy is mounted at
 * `mount`.  A container may see its own cgroup as the mount's root although /proc names the path
 * outside of it; therefore levels that are not there are passed over. */
static double least_quota(const char *root, const char *mount, const char *group) {
    char dir[4096];
    double least = INFINITY;
    if (snprintf(dir, sizeof dir, "%s%s", mount, group) >= (int)sizeof dir) return least;
    for (char *end = dir + strlen(dir);; *end = 0) {
        double quota = quota_of(root, dir);
        if (quota < least) least = quota;
        if (strlen(dir) <= strlen(mount)) return least;
        end = strrchr(dir, '/');
    }
}

/* Whether a list with commas has the word. */
static int has_word(const char *list, const char *word) {
    for (size_t n; *list; list += n + (list[n] == ',')) {
        n = strcspn(list, ",");
        if (is_text(list, n, word)) return 1;
    }
    return 0;
}

/* A line of /proc/self/cgroup is "0::/GROUP" in version 2 and "N:CONTROLLERS:/GROUP" in version 1;
 * the mount points are those that systemd and container runtimes use. */
int quota_cores(const char *root) {
    char path[4096], line[4096];
    double least = INFINITY;
    int n = snprintf(path, sizeof path, "%s/proc/self/cgroup", root);
    if (n >= (int)sizeof path) return INT_MAX;
    FILE *f = fopen(path, "r");
    while (f && fgets(line, sizeof line, f)) {
        const char *mounts[2] = {"/sys/fs/cgroup", "/sys/fs/cgroup/unified"};
        char *kinds = strchr(line, ':'), *group = kinds ? strchr(kinds + 1, ':') : NULL;
        if (!group) continue;
        *group++ = 0;                   /* kinds is ":CONTROLLERS" now */
        group[strcspn(group, "\n")] = 0;
        if (kinds[1] != 0) {            /* version 1 */
            if (!has_word(kinds + 1, "cpu")) continue;
            mounts[0] = "/sys/fs/cgroup/cpu";
            mounts[1] = "/sys/fs/cgroup/cpu,cpuacct";
        }
        for (int i = 0; i < 2; i++) {
            double quota = least_quota(root, mounts[i], group);
            if (quota < least) least = quota;
        }
    }
    if (f) (void)fclose(f);
    return least < 1e6 ? (int)ceil(least) : INT_MAX;
}

int n_cpus(void) {
    int cores = n_cores(), quota = quota_cores("");
    return cores < quota ? cores : quota;
}

void in_threads(int most, void *(*fn)(void *), void *arg) {
    const int cpus = n_cpus(), n = cpus < most ? cpus : most;
    pthread_t *thread = xcalloc(n, sizeof *thread);
    int started = 1;
    while (started < n && !pthread_create(&thread[started], NULL, fn, arg)) started++;
    fn(arg);
    for (int i = 1; i < started; i++) pthread_join(thread[i], NULL);
    free(thread);
}

double seconds(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}
