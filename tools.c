/* tools.c - running what the model calls.  See tools.h. */
#define _GNU_SOURCE
#include "tools.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

static volatile sig_atomic_t running;   /* the tool's process, which leads a group; 0: none */

void tool_kill(void) {
    if (running <= 0) return;
    kill(-running, SIGKILL);
    kill(running, SIGKILL);             /* it may not lead its group yet */
}

/* A name that cannot leave its directory, and looks like no option. */
static int is_safe(const char *name) {
    static const char allowed[] = "abcdefghijklmnopqrstuvwxyz"
                                  "ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-.";
    size_t n = strlen(name);
    return n > 0 && n <= 128 && name[0] != '.' && name[0] != '-' && strspn(name, allowed) == n;
}

/* Becomes the executable.  Where that fails, `failed` gets the errno. */
static void be_tool(const char *path, int in, int out, int failed, pid_t parent) {
    const char *home = getenv("HOME");
    Buf home_is = {0};
    buf_printf(&home_is, "HOME=%s", home ? home : "/");
    char *const argv[] = {(char *)path, NULL};
    char *const env[] = {"PATH=/usr/local/bin:/usr/bin:/bin", "LANG=C.UTF-8", home_is.data, NULL};
    setsid();
    prctl(PR_SET_PDEATHSIG, SIGKILL);   /* it goes with this program, however that ends */
    if (getppid() != parent) _exit(127);
    signal(SIGPIPE, SIG_DFL);
    signal(SIGHUP, SIG_DFL);            /* which nohup may have us ignore */
    if (dup2(in, STDIN_FILENO) < 0 || dup2(out, STDOUT_FILENO) < 0) _exit(127);
    if (dup3(failed, 3, O_CLOEXEC) < 0 || close_range(4, ~0u, 0)) _exit(127);
    execve(path, argv, env);
    int why = errno;
    (void)!write(3, &why, sizeof why);
    _exit(127);
}

/* A tool that is running. */
typedef struct {
    pid_t pid;
    int in, out;                        /* pipes to its stdin and from its stdout; -1: closed */
    int status;                         /* as waitpid tells it, once the tool has ended */
} Tool;

/* Writes as much of the input as the tool takes now.  Closes the pipe once there is no more, or
 * when the tool does not read: it need not. */
static void feed(Tool *t, const char **text, size_t *n) {
    ssize_t done = *n ? write(t->in, *text, *n) : 0;
    int goes_on = done >= 0 || errno == EAGAIN || errno == EINTR;
    if (done > 0) {
        *text += done;
        *n -= (size_t)done;
    }
    if (*n && goes_on) return;
    close(t->in);
    t->in = -1;
}

/* Reads what the tool has written, up to a little more than `most` bytes in all.  Closes the pipe
 * at its end. */
static void drain(Tool *t, size_t most, Buf *result) {
    char bytes[4096];
    while (result->len <= most) {
        ssize_t got = read(t->out, bytes, sizeof bytes);
        if (got < 0) return;
        if (!got) {
            close(t->out);
            t->out = -1;
            return;
        }
        buf_add(result, bytes, (size_t)got);
    }
}

/* Why the tool must end now, or NULL.  `end`: of its time, on the clock of seconds(). */
static const char *why_end(const ToolRunner *r, const Buf *result, double end) {
    if (result->len > r->max_output) return "too much output";
    if (r->cancel && *r->cancel) return "interrupted";
    return seconds() > end ? "no answer in time" : NULL;
}

/* Writes `text` to the tool and reads its output until it has ended, or must.  Returns NULL, or why
 * it must.  The end of the tool counts, not the end of its output: what it left in the background
 * may keep the pipe open. */
static const char *talk(const ToolRunner *r, Tool *t, const char *text, Buf *result) {
    double end = seconds() + r->seconds;
    size_t n = strlen(text);
    int has_ended = 0;
    fcntl(t->in, F_SETFL, O_NONBLOCK);
    fcntl(t->out, F_SETFL, O_NONBLOCK);
    for (;;) {
        struct pollfd p[] = {{t->out, POLLIN, 0}, {t->in, POLLOUT, 0}};
        poll(p, 2, 20);
        if (t->in >= 0 && p[1].revents) feed(t, &text, &n);
        if (t->out >= 0) drain(t, r->max_output, result);
        const char *why = why_end(r, result, end);
        if (why || has_ended) return why;
        has_ended = waitpid(t->pid, &t->status, WNOHANG) == t->pid;
    }
}

/* Text for the model: valid UTF-8 without NUL, and without the newline at its end. */
static void clean(Buf *b) {
    Buf text = {0};
    buf_add(&text, "", 0);
    if (b->len && b->data[b->len - 1] == '\n') b->len--;
    for (size_t i = 0; i < b->len;) {
        int n = b->data[i] ? utf8_char(b->data + i, b->len - i) : 0;
        if (n > 0) buf_add(&text, b->data + i, (size_t)n);
        else buf_puts(&text, "\xef\xbf\xbd");
        i += n > 0 ? (size_t)n : 1;
    }
    buf_free(b);
    *b = text;
}

static int tool_failed(Buf *result, const char *why) {
    Buf said = *result;
    *result = (Buf){0};
    buf_printf(result, "error: %s", why);
    if (said.len) buf_printf(result, "\n%s", said.data);
    buf_free(&said);
    return -1;
}

/* Starts the executable `path` as a tool.  Returns 0, or an errno. */
static int start(const char *path, Tool *t) {
    int in[2], out[2] = {-1, -1}, failed[2] = {-1, -1}, bad = 0;
    if (pipe2(in, O_CLOEXEC)) return errno;
    pid_t parent = getpid();
    t->pid = -1;
    if (!pipe2(out, O_CLOEXEC) && !pipe2(failed, O_CLOEXEC)) t->pid = running = fork();
    if (t->pid < 0) bad = errno;
    if (t->pid == 0) be_tool(path, in[0], out[1], failed[1], parent);
    close(in[0]);
    close(out[1]);
    close(failed[1]);
    /* The pipe ends without a byte as soon as the executable runs. */
    if (!bad && read(failed[0], &bad, sizeof bad) > 0) {
        running = 0;
        wait_for(t->pid);
    }
    close(failed[0]);
    t->in = in[1];
    t->out = out[0];
    return bad;
}

/* What an errno of execve means for a file that is there and executable. */
static const char *why_not(int bad) {
    if (bad == ENOENT) return "the interpreter that its first line names is missing";
    if (bad == ENOEXEC) return "is neither a program nor a script that begins with #!";
    return strerror(bad);
}

/* Ends the tool, with all it has started; killed: it has not ended by itself. */
static void end_tool(Tool *t, int killed) {
    tool_kill();
    running = 0;
    if (killed) t->status = wait_for(t->pid);
}

static void close_pipes(const Tool *t) {
    if (t->in >= 0) close(t->in);
    if (t->out >= 0) close(t->out);
}

/* Puts the path of a tool's executable into *path.  Returns whether there is one. */
static int find_tool(const char *dir, const char *name, Buf *path) {
    struct stat info;
    buf_printf(path, "%s/%s", dir, name);
    return is_safe(name) && !stat(path->data, &info) && S_ISREG(info.st_mode) &&
           !access(path->data, X_OK);
}

int tool_is_there(const char *dir, const char *name) {
    Buf path = {0};
    int found = find_tool(dir, name, &path);
    buf_free(&path);
    return found;
}

int tool_run(const ToolRunner *r, const char *name, const char *arguments, Buf *result) {
    Buf path = {0};
    Tool t = {.in = -1, .out = -1};
    char why[80];
    *result = (Buf){0};
    int found = find_tool(r->dir, name, &path);
    int bad = found ? start(path.data, &t) : 0;
    buf_free(&path);
    if (!found) return tool_failed(result, "no such tool");
    if (bad) {
        close_pipes(&t);
        return tool_failed(result, why_not(bad));
    }
    const char *killed = talk(r, &t, arguments, result);
    end_tool(&t, killed != NULL);
    close_pipes(&t);
    if (result->len > r->max_output) result->len = r->max_output;
    clean(result);
    if (killed) return tool_failed(result, killed);
    if (WIFEXITED(t.status) && WEXITSTATUS(t.status) == 0) return 0;
    if (WIFEXITED(t.status)) snprintf(why, sizeof why, "exit status %d", WEXITSTATUS(t.status));
    else snprintf(why, sizeof why, "killed by signal %d", WTERMSIG(t.status));
    return tool_failed(result, why);
}
