/* find.c - where a checkpoint lies on this machine.  See find.h. */
#define _GNU_SOURCE
#include "find.h"

#include <dirent.h>
#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "directory.h"

/* ---- the cache of the hub ---- */

/* The directory of the cache, as huggingface_hub chooses it (constants.py). */
static void hub_root(Buf *root) {
    const char *hub = getenv("HF_HUB_CACHE"), *home = getenv("HF_HOME");
    if (!hub || !*hub) hub = getenv("HUGGINGFACE_HUB_CACHE");   /* its older name */
    const char *cache = getenv("XDG_CACHE_HOME"), *user = getenv("HOME");
    if (hub && *hub) buf_puts(root, hub);
    else if (home && *home) buf_printf(root, "%s/hub", home);
    else if (cache && *cache) buf_printf(root, "%s/huggingface/hub", cache);
    else buf_printf(root, "%s/.cache/huggingface/hub", user ? user : "");
}

/* A model of the hub, ORG/MODEL or ORG/MODEL@REVISION. */
typedef struct {
    int n_name;                         /* bytes of ORG/MODEL */
    const char *revision;               /* NULL: none is named */
} HubName;

/* Takes a name apart.  Returns 1 when it is one of the hub. */
static int parse_hub_name(const char *name, HubName *h) {
    const char *at = strchr(name, '@'), *slash = strchr(name, '/');
    int n = at ? (int)(at - name) : (int)strlen(name);
    *h = (HubName){n, at ? at + 1 : NULL};
    if (strchr(".~-", name[0]) || (at && (!at[1] || at[1] == '-'))) return 0;
    if (!slash || slash == name || slash + 1 >= name + n) return 0;
    return !memchr(slash + 1, '/', (size_t)(name + n - slash - 1));
}

/* Reads the commit that the branch or tag names: repo/refs/REVISION.  Returns 1 when there is such
 * a file. */
static int read_ref(const char *repo, const char *revision, Buf *commit) {
    Buf path = {0};
    commit->len = 0;
    buf_printf(&path, "%s/refs/%s", repo, revision);
    int found = !strstr(revision, "..") && !is_directory(path.data) &&
                !read_file(path.data, commit, NULL);
    if (found) {
        commit->len = strcspn(commit->data, "\r\n ");
        commit->data[commit->len] = 0;
    }
    buf_free(&path);
    return found;
}

/* Looks through repo/snapshots for commits that begin with `prefix`.  Returns how many there are;
 * *commit becomes the last of them, and *all lists `-m NAME@COMMIT` for each. */
static int match_commits(const char *repo, const char *name, const char *prefix, Buf *commit,
                         Buf *all) {
    Buf path = {0};
    const struct dirent *entry;
    int n = 0;
    buf_printf(&path, "%s/snapshots", repo);
    DIR *d = opendir(path.data);
    while (d && (entry = readdir(d))) {
        if (entry->d_name[0] == '.' || !begins(entry->d_name, prefix)) continue;
        commit->len = 0;
        buf_puts(commit, entry->d_name);
        buf_printf(all, "%s-m %s@%s", n++ ? " or " : "", name, entry->d_name);
    }
    if (d) closedir(d);
    buf_free(&path);
    return n;
}

/* Adds the directory of a snapshot to *dir: that of the revision; of main where none is named; the
 * only one where there is no main.  Returns 0; 1 where there is none; -1 with err where it is not
 * clear which. */
static int find_snapshot(const char *repo, const char *name, const char *revision, Buf *dir,
                         Error *err) {
    Buf commit = {0}, all = {0};
    int n = 1, bad = 1;
    if (!read_ref(repo, revision ? revision : "main", &commit))
        n = match_commits(repo, name, revision ? revision : "", &commit, &all);
    if (n > 1 && revision)
        bad = fail(err, "%s@%s: several snapshots begin so; write %s", name, revision, all.data);
    else if (n > 1)
        bad = fail(err, "%s: several snapshots and no refs/main; write %s", name, all.data);
    else if (n && commit.len) {
        size_t len = dir->len;
        buf_printf(dir, "%s/snapshots/%s", repo, commit.data);
        bad = !is_directory(dir->data + len);
        if (bad) dir->len = len;
    }
    buf_free(&commit);
    buf_free(&all);
    return bad;
}

/* Finds a model of the hub.  Returns as find_checkpoint does. */
static int find_name(const char *name, const HubName *h, Buf *dir, Error *err) {
    Buf root = {0}, repo = {0}, plain = {0};
    const char *slash = strchr(name, '/');
    hub_root(&root);
    buf_add(&plain, name, (size_t)h->n_name);
    buf_printf(&repo, "%s/models--%.*s--%s", root.data, (int)(slash - name), name,
               plain.data + (slash - name) + 1);
    int status = find_snapshot(repo.data, plain.data, h->revision, dir, err);
    if (status > 0 && h->revision)
        fail(err, "%s is not in the Hugging Face cache (%s); get it with: hf download %s "
             "--revision %s", name, root.data, plain.data, h->revision);
    else if (status > 0)
        fail(err, "%s is not in the Hugging Face cache (%s); get it with: hf download %s", name,
             root.data, name);
    buf_free(&root);
    buf_free(&repo);
    buf_free(&plain);
    return status > 0 ? NOT_CACHED : status;
}

int find_in_hub(const char *name, Buf *dir, Error *err) {
    HubName h;
    return parse_hub_name(name, &h) ? find_name(name, &h, dir, err) : -1;
}

/* ---- directories and files ---- */

/* Whether a directory is the cache's own of a model, models--ORG--NAME. */
static int is_repo(const char *path) {
    Buf snapshots = {0};
    buf_printf(&snapshots, "%s/snapshots", path);
    int found = is_directory(snapshots.data);
    buf_free(&snapshots);
    return found;
}

/* A directory.  The cache's own stands for a snapshot in it. */
static int find_in_dir(const char *path, Buf *dir, Error *err) {
    int status = 0;
    if (!is_repo(path)) buf_puts(dir, path);
    else status = find_snapshot(path, path, NULL, dir, err);
    return status > 0 ? fail(err, "%s: no snapshot: download it again", path) : status;
}

/* The directory of a `.safetensors` file.  The file stands for all of its checkpoint, so that it
 * must be clear which files these are. */
static int find_beside(const char *path, Buf *dir, Error *err) {
    const char *slash = strrchr(path, '/');
    const char *name = slash ? slash + 1 : path;
    Buf parent = {0};
    Names names;
    if (slash) buf_add(&parent, path, (size_t)(slash + !(slash - path) - path));
    else buf_puts(&parent, ".");
    int bad = 0;
    if (!is_shard(name)) {
        (void)directory_weights(parent.data, &names, NULL);         /* opening it says of gaps */
        if (names.n > 1)
            bad = fail(err, "%s: one of %d *.safetensors, and no shard; give the directory", path,
                       names.n);
        names_free(&names);
    }
    if (!bad) buf_puts(dir, parent.data);
    buf_free(&parent);
    return bad;
}

/* REPO@REVISION, where REPO is the cache's own directory of a model.  Returns 1 when it is none. */
static int find_in_repo(const char *name, Buf *dir, Error *err) {
    const char *at = strrchr(name, '@');
    if (!at || !at[1]) return 1;
    Buf repo = {0};
    buf_add(&repo, name, (size_t)(at - name));
    int status = 1;
    if (is_repo(repo.data)) {
        status = find_snapshot(repo.data, repo.data, at + 1, dir, err);
        if (status > 0) status = fail(err, "%s: no such snapshot", name);
    }
    buf_free(&repo);
    return status;
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
        if (is_directory(dir->data)) return 0;
    }
    return fail(err, "no model: give one with -m, or set GEMMA4_MODEL");
}

int find_checkpoint(const char *name, Buf *dir, Error *err) {
    HubName h;
    if (is_directory(name)) return find_in_dir(name, dir, err);
    int status = find_in_repo(name, dir, err);
    if (status <= 0) return status;
    if (parse_hub_name(name, &h) && access(name, F_OK)) return find_name(name, &h, dir, err);
    if (access(name, F_OK)) return fail(err, "%s: no such directory", name);
    if (has_ending(name, ".gguf") || file_begins(name, "GGUF")) return refuse_gguf(name, err);
    if (has_ending(name, ".safetensors")) return find_beside(name, dir, err);
    if (file_begins(name, LFS_MAGIC))
        return fail(err, "%s: is a git-lfs pointer: run git lfs pull", name);
    return fail(err, "%s: not a checkpoint directory", name);
}

/* ---- downloading ---- */

/* Whether the user can start the program by its name. */
static int is_on_path(const char *program) {
    const char *at = getenv("PATH");
    int found = 0;
    while (at && *at && !found) {
        Buf path = {0};
        size_t n = strcspn(at, ":");
        buf_printf(&path, "%.*s/%s", (int)n, at, program);
        found = n && !is_directory(path.data) && !access(path.data, X_OK);
        buf_free(&path);
        at += n + (at[n] == ':');
    }
    return found;
}

/* The size of a download, in words.  The hub knows it; without the network only those sizes are
 * known that README.md lists. */
static const char *download_size(const char *name) {
    static const struct { const char *name, *size; } known[] = {
        {"nvidia/Gemma-4-26B-A4B-NVFP4", "18.8 GB"},
        {"RedHatAI/gemma-4-26B-A4B-it-NVFP4", "about 16.5 GB"},
        {"bg-digitalservices/Gemma-4-26B-A4B-it-NVFP4", "16.5 GB"},
        {"google/gemma-4-26B-A4B-it", "about 52 GB"},
        {"unsloth/gemma-4-26B-A4B-it-NVFP4", "about 19 GB"},
        {"RedHatAI/gemma-4-26B-A4B-it-FP8-Dynamic", "about 27 GB"},
        {"RedHatAI/gemma-4-31B-it-FP8-Dynamic", "about 33 GB"},
        {"RedHatAI/gemma-4-31B-it-FP8-block", "about 33 GB"},
        {"google/gemma-4-31B-it-qat-w4a16-ct", "about 20 GB"},
        {"google/gemma-4-12B-it-qat-w4a16-ct", "about 8 GB"},
        {"google/gemma-4-12B-it", "about 24 GB"},
        {"cyankiwi/gemma-4-26B-A4B-it-AWQ-4bit", "about 17 GB"},
        {"cyankiwi/gemma-4-31B-it-AWQ-4bit", "about 21 GB"},
        {"cyankiwi/gemma-4-31B-it-AWQ-8bit", "about 35 GB"},
    };
    for (size_t i = 0; i < sizeof known / sizeof *known; i++)
        if (!strcmp(name, known[i].name)) return known[i].size;
    return "size unknown";
}

/* Reads a line from the terminal.  Returns 1 when it begins with y. */
static int says_yes(void) {
    char line[16] = "", c;
    size_t n = 0;
    while (read(STDIN_FILENO, &c, 1) == 1 && c != '\n')
        if (n + 1 < sizeof line) line[n++] = c;
    return line[0] == 'y' || line[0] == 'Y';
}

/* Runs `hf download` and waits for its end.  The path that hf prints goes to stderr, because stdout
 * is for answers alone. */
static int run_hf(const char *name, const char *revision, Error *err) {
    char *argv[] = {"hf", "download", (char *)name, NULL, NULL, NULL};
    if (revision) argv[3] = "--revision", argv[4] = (char *)revision;
    pid_t child = fork();
    if (child < 0) return fail(err, "hf download %s: %s", name, strerror(errno));
    if (!child) {
        signal(SIGPIPE, SIG_DFL);       /* the program ignores it */
        dup2(STDERR_FILENO, STDOUT_FILENO);
        execvp(argv[0], argv);
        _exit(127);
    }
    int status = wait_for(child);
    if (WIFEXITED(status) && !WEXITSTATUS(status)) return 0;
    return fail(err, "hf download %s has failed", name);
}

int offer_download(const char *name, Error *err) {
    HubName h;
    if (!isatty(STDIN_FILENO) || !isatty(STDERR_FILENO) || !is_on_path("hf")) return 1;
    if (!parse_hub_name(name, &h)) return 1;
    Buf plain = {0};
    buf_add(&plain, name, (size_t)h.n_name);
    const char *option = h.revision ? " --revision " : "";
    const char *revision = h.revision ? h.revision : "";
    note("gemma4: %s is not in the Hugging Face cache. Run hf download %s%s%s (%s)? [y/N] ", name,
         plain.data, option, revision, download_size(plain.data));
    int status = says_yes() ? run_hf(plain.data, h.revision, err) : 1;
    buf_free(&plain);
    return status;
}
