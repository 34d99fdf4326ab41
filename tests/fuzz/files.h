/* files.h - what fuzzers of a directory's files share.  Each process has a directory of its own, in memory where it can be. */
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "../../util.h"

static char dir[] = "/dev/shm/gemma4_fuzz.XXXXXX";

static const char *in_dir(const char *name) {
    static char path[256];
    snprintf(path, sizeof path, "%s/%s", dir, name);
    return path;
}

static void remove_dir(void) {
    char command[256];
    snprintf(command, sizeof command, "rm -rf %s", dir);
    if (system(command)) perror(dir);
}

static void make_dir(void) {
    if (!mkdtemp(dir)) perror(dir), exit(1);
    atexit(remove_dir);
}

/* DIR/name holds head[0..n) and then tail[0..n_tail). */
static void put_file(const char *name, const void *head, size_t n, const void *tail, size_t n_tail) {
    int fd = open(in_dir(name), O_WRONLY | O_CREAT | O_TRUNC, 0600);
    if (fd < 0 || write(fd, head, n) != (ssize_t)n || write(fd, tail, n_tail) != (ssize_t)n_tail) perror(name), exit(1);
    close(fd);
}

/* The file of a fixture, as it is; the fuzzer runs in the project's directory. */
static inline Buf fixture(const char *path) {
    Buf b = {0};
    Error err;
    if (read_file(path, &b, &err)) fprintf(stderr, "%s\n", err.text), exit(1);
    return b;
}
