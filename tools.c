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
    static const char allowed[] = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-.";
    size_t n = strlen(name);
    return n > 0 && n <= 128 && name[0] != '.' && name[0] != '-' && strspn(name, allowed) == n;
}

static void be_tool(const char *path, int in, int out, pid_t parent) {
    const char *home = getenv("HOME");
    Buf home_is = {0};
    buf_printf(&home_is, "HOME=%s", home ? home : "/");
    char *const argv[] = {(char *)path, NULL}, *const env[] = {"PATH=/usr/local/bin:/usr/bin:/bin", "LANG=C.UTF-8", home_is.data, NULL};
    setsid();
    prctl(PR_SET_PDEATHSIG, SIGKILL);   /* it goes with this program, however that ends */
    if (getppid() != parent) _exit(127);
    signal(SIGPIPE, SIG_DFL);
    signal(SIGHUP, SIG_DFL);            /* which nohup may have us ignore */
    if (dup2(in, STDIN_FILENO) < 0 || dup2(out, STDOUT_FILENO) < 0 || close_range(3, ~0u, 0)) _exit(127);
    execve(path, argv, env);
    _exit(127);
}

/* Writes `text` to in and reads from out until the tool has ended, or must.  Returns NULL, or why it was killed. */
static const char *talk(const ToolRunner *r, pid_t pid, int in, int out, const char *text, Buf *result, int *status) {
    double end = seconds() + r->seconds;
    size_t n = strlen(text);
    int ended = 0, open_out = 1;
    fcntl(in, F_SETFL, O_NONBLOCK);
    fcntl(out, F_SETFL, O_NONBLOCK);
    for (;;) {
        struct pollfd p[] = {{open_out ? out : -1, POLLIN, 0}, {in, POLLOUT, 0}};
        char bytes[4096];
        ssize_t got = 0;
        poll(p, 2, 20);
        if (in >= 0 && p[1].revents) {
            ssize_t done = n ? write(in, text, n) : 0;
            if (done > 0) text += done, n -= (size_t)done;
            if (!n || (done < 0 && errno != EAGAIN && errno != EINTR)) close(in), in = -1;     /* it need not read */
        }
        while (open_out && result->len <= r->max_output && (got = read(out, bytes, sizeof bytes)) > 0) buf_add(result, bytes, (size_t)got);
        if (open_out && got == 0) open_out = 0;
        const char *why = result->len > r->max_output ? "too much output" : r->cancel && *r->cancel ? "interrupted" :
                          seconds() > end ? "no answer in time" : NULL;
        /* What it left in the background may keep the pipe open: its own end counts. */
        if (why || ended) {
            if (in >= 0) close(in);
            return why;
        }
        ended = waitpid(pid, status, WNOHANG) == pid;
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

int tool_run(const ToolRunner *r, const char *name, const char *arguments, Buf *result) {
    Buf path = {0};
    struct stat info;
    char why[80];
    int in[2], out[2] = {-1, -1}, status = 0;
    *result = (Buf){0};
    buf_printf(&path, "%s/%s", r->dir, name);
    int found = is_safe(name) && !stat(path.data, &info) && S_ISREG(info.st_mode) && !access(path.data, X_OK);
    if (!found || pipe2(in, O_CLOEXEC)) {
        buf_free(&path);
        return tool_failed(result, found ? strerror(errno) : "no such tool");
    }
    pid_t parent = getpid(), pid = running = pipe2(out, O_CLOEXEC) ? -1 : fork();
    if (pid == 0) be_tool(path.data, in[0], out[1], parent);
    buf_free(&path);
    int bad = errno;
    close(in[0]);
    close(out[1]);
    if (pid < 0) {
        close(in[1]);
        close(out[0]);
        return tool_failed(result, strerror(bad));
    }
    const char *killed = talk(r, pid, in[1], out[0], arguments, result, &status);
    tool_kill();
    running = 0;
    if (killed) {
        while (waitpid(pid, &status, 0) < 0 && errno == EINTR) continue;
    }
    close(out[0]);
    if (result->len > r->max_output) result->len = r->max_output;
    clean(result);
    if (killed) return tool_failed(result, killed);
    if (WIFEXITED(status) && WEXITSTATUS(status) == 0) return 0;
    if (WIFEXITED(status)) snprintf(why, sizeof why, "exit status %d", WEXITSTATUS(status));
    else snprintf(why, sizeof why, "killed by signal %d", WTERMSIG(status));
    return tool_failed(result, why);
}
