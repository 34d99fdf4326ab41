/* newfile.c - files that take the place of others when they are whole.  See newfile.h. */
#define _GNU_SOURCE
#include "newfile.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* The names of files that are being written, for new_leave; NULL: none. */
static char *volatile unfinished[2];

void new_leave(void) {
    for (int i = 0; i < 2; i++)
        if (unfinished[i]) unlink(unfinished[i]);
}

int new_failed(const NewFile *n, Error *err) {
    return fail(err, "%s: %s", n->path.data, strerror(errno));
}

/* Sets the path of the file that is replaced in the end.  A symbolic link stays, and what it leads
 * to is replaced; one that leads nowhere is refused.  A device or a FIFO is refused: a file would
 * take its place (of /dev/stdout, for example).  Returns 0, or -1 with err. */
static int new_path(NewFile *n, const char *path, const char *tail, Error *err) {
    struct stat info;
    buf_printf(&n->path, "%s%s", path, tail);
    if (lstat(n->path.data, &info)) return 0;
    if (S_ISLNK(info.st_mode)) {
        char *target = realpath(n->path.data, NULL);
        n->path.len = 0;
        if (!target)
            return fail(err, "%s%s: the symbolic link leads nowhere: %s", path, tail,
                        strerror(errno));
        buf_puts(&n->path, target);
        free(target);
    }
    if (stat(n->path.data, &info) || S_ISREG(info.st_mode)) return 0;
    n->path.len = 0;
    if (S_ISDIR(info.st_mode)) return fail(err, "%s%s: %s", path, tail, strerror(EISDIR));
    return fail(err, "%s%s: no regular file, so it is not replaced", path, tail);
}

/* mkostemps makes the name, with mode 0600: a name made of the process's number may be taken by a
 * process in another container, or be left from one that was killed. */
int new_open(NewFile *n, const char *path, const char *tail, Error *err) {
    if (new_path(n, path, tail, err)) return -1;
    buf_printf(&n->beside, "%s.XXXXXX.tmp", n->path.data);
    before_exit = new_leave;
    n->place = unfinished[0] != NULL;
    unfinished[n->place] = n->beside.data;
    int fd = mkostemps(n->beside.data, (int)strlen(".tmp"), O_CLOEXEC);
    if (fd < 0) n->beside.len = 0;
    if (fd < 0 || !(n->f = fdopen(fd, "w"))) return new_failed(n, err);
    return 0;
}

int new_open_output(NewFile *n, const char *path, Error *err) {
    struct stat info;
    if (stat(path, &info) || S_ISREG(info.st_mode) || S_ISDIR(info.st_mode)) {
        if (new_open(n, path, "", err)) return -1;
        mode_t mask = umask(0);
        umask(mask);
        return fchmod(fileno(n->f), 0666 & ~mask) ? new_failed(n, err) : 0;
    }
    buf_puts(&n->path, path);
    return (n->f = fopen(path, "w")) ? 0 : new_failed(n, err);
}

int new_sync(NewFile *n, Error *err) {
    int bad = fflush(n->f) || (n->beside.len && fsync(fileno(n->f))), why = errno;
    if (fclose(n->f) && !bad) {
        bad = 1;
        why = errno;
    }
    n->f = NULL;
    errno = why;
    return bad ? new_failed(n, err) : 0;
}

void new_free(NewFile *n) {
    if (n->f) (void)fclose(n->f);
    if (n->beside.len) unlink(n->beside.data);
    if (n->beside.data) unfinished[n->place] = NULL;
    buf_free(&n->path);
    buf_free(&n->beside);
}

/* Syncs the directory of the file to the disk, which has the new name. */
static int sync_directory(const NewFile *n, Error *err) {
    const char *path = n->path.data, *slash = strrchr(path, '/');
    Buf dir = {0};
    if (slash) buf_add(&dir, path, (size_t)(slash - path) + 1);
    else buf_puts(&dir, ".");
    int fd = open(dir.data, O_RDONLY | O_DIRECTORY | O_CLOEXEC), bad = fd < 0 || fsync(fd);
    if (bad) fail(err, "%s: %s", dir.data, strerror(errno));
    if (fd >= 0) close(fd);
    buf_free(&dir);
    return bad ? -1 : 0;
}

int new_finish(NewFile *n, Error *err) {
    if (n->f && new_sync(n, err)) return -1;
    if (!n->beside.len) return 0;       /* a device or a FIFO */
    if (rename(n->beside.data, n->path.data)) return new_failed(n, err);
    n->beside.len = 0;
    return sync_directory(n, err);
}
