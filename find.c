/* find.c - where a checkpoint lies on this machine.  See find.h. */
#define _GNU_SOURCE
#include "find.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static int is_dir(const char *path) {
    struct stat info;
    return !stat(path, &info) && S_ISDIR(info.st_mode);
}

/* The hub's cache keeps NAME at models--ORG--MODEL/snapshots/COMMIT, and the commit in
 * refs/main. */
int find_in_hub(const char *name, Buf *dir, Error *err) {
    const char *hub = getenv("HF_HUB_CACHE"), *home = getenv("HF_HOME"), *user = getenv("HOME");
    Buf root = {0}, path = {0}, commit = {0};
    if (hub && *hub) buf_puts(&root, hub);
    else if (home && *home) buf_printf(&root, "%s/hub", home);
    else buf_printf(&root, "%s/.cache/huggingface/hub", user ? user : "");
    const char *slash = strchr(name, '/');
    buf_printf(&path, "%s/models--%.*s--%s", root.data, (int)(slash - name), name, slash + 1);
    buf_printf(dir, "%s/refs/main", path.data);
    int found = !read_file(dir->data, &commit, NULL);
    dir->len = 0;
    buf_puts(dir, path.data);
    if (found) buf_printf(dir, "/snapshots/%.*s", (int)strcspn(commit.data, "\r\n "), commit.data);
    found = found && is_dir(dir->data);
    if (!found)
        fail(err, "%s is not in the Hugging Face cache (%s); get it with: hf download %s", name,
             root.data, name);
    buf_free(&root);
    buf_free(&path);
    buf_free(&commit);
    return found ? 0 : -1;
}

int find_demo(Buf *dir, Error *err) {
    char exe[4096];
    ssize_t n = readlink("/proc/self/exe", exe, sizeof exe - 1);
    exe[n > 0 ? n : 0] = 0;
    char *slash = strrchr(exe, '/');
    if (slash) *slash = 0;
    const char *const where[] = {"demo", "../share/gemma4/demo"};
    for (int i = 0; i < 2; i++) {
        dir->len = 0;
        buf_printf(dir, "%s/%s", exe, where[i]);
        if (is_dir(dir->data)) return 0;
    }
    return fail(err, "no model: give one with -m, or set GEMMA4_MODEL");
}

int find_checkpoint(const char *name, Buf *dir, Error *err) {
    const char *slash = strchr(name, '/');
    if (is_dir(name)) {
        buf_puts(dir, name);
        return 0;
    }
    int has_two_parts = slash && slash != name && slash[1] && !strchr(slash + 1, '/');
    int is_name = has_two_parts && name[0] != '.' && name[0] != '~';
    if (is_name) return find_in_hub(name, dir, err);
    if (access(name, F_OK)) return fail(err, "%s: no such directory", name);
    return fail(err, "%s: not a checkpoint directory", name);
}
