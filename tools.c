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

#include "declare.h"
#include "json.h"

#define MAX_ROUNDS 32                   /* of calls for one question: then the model goes in circles */

/* ---- one tool ---- */

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

/* Asks on the terminal, whatever stdin and stdout are.  Once interrupted, the answer is no.  Returns 1 or 0, or -1 when
 * there is no terminal to ask on. */
static int is_allowed(const Engine *e, const ToolCall *call) {
    if (e->interrupted && *e->interrupted) return 0;
    FILE *terminal = fopen("/dev/tty", "r+e");
    char answer[16] = "";
    if (!terminal) return -1;
    Buf question = {0};
    const char *how = call->mended ? ", which had to be mended" : "";
    buf_printf(&question, "run %s %s%s? [y/N] ", call->name, call->arguments, how);
    write_text(fileno(terminal), question.data, question.len);
    buf_free(&question);
    int got = fgets(answer, sizeof answer, terminal) != NULL;
    (void)fclose(terminal);
    return got && (answer[0] == 'y' || answer[0] == 'Y');
}

/* ---- a turn ---- */

/* The answer as a message.  A thought stays beside the calls that it led to, and goes otherwise. */
static void add_answer(cJSON *messages, const Generation *g) {
    cJSON *m = chat_message("assistant", g->content.data ? g->content.data : "");
    if (g->n_calls) {
        Buf calls = {0};
        calls_put(&calls, g->calls, g->n_calls, g->n_ids);
        cJSON_AddItemToObject(m, "tool_calls", cJSON_Parse(calls.data));
        if (g->thought.len) cJSON_AddStringToObject(m, "reasoning_content", g->thought.data);
        buf_free(&calls);
    }
    cJSON_AddItemToArray(messages, m);
}

static void add_result(cJSON *messages, const cJSON *call, const ToolCall *c, const Buf *result) {
    cJSON *m = chat_message("tool", NULL);
    cJSON_AddStringToObject(m, "tool_call_id", cJSON_GetStringValue(json_field(call, "id")));
    cJSON_AddStringToObject(m, "name", c->name);
    cJSON_AddStringToObject(m, "content", result->data);
    cJSON_AddItemToArray(messages, m);
}

/* Runs one call, if it may be run; its result, or why there is none, in *result.  A call that was mended is run only when
 * somebody has said yes to it, since the model may have meant another one. */
static void run_call(const Engine *e, const ToolRunner *runner, const ToolCall *call, Buf *result) {
    int allowed = 1;
    if (!tool_named(e->tools, call->name)) buf_puts(result, "error: no such tool");
    else if (call->mended || !e->run_unasked) allowed = is_allowed(e, call);
    if (result->len) return;
    if (allowed > 0) tool_run(runner, call->name, call->arguments, result);
    else if (allowed < 0 && call->mended) {
        note("gemma4: a call of %s was not run: it had to be mended, and nobody could be asked\n", call->name);
        buf_puts(result, "error: not run: this call was miswritten and had to be mended, and nobody could be asked "
                 "whether it is right; call again, written as it should be");
    } else buf_puts(result, "error: the user did not allow this call");
}

static void run_calls(const Engine *e, cJSON *messages, const Generation *g) {
    const ToolRunner runner = {.dir = e->tool_dir, .seconds = 60, .max_output = 1 << 16, .cancel = e->interrupted};
    const cJSON *call = json_field(cJSON_GetArrayItem(messages, cJSON_GetArraySize(messages) - 1), "tool_calls")->child;
    for (int i = 0; i < g->n_calls; i++, call = call->next) {
        Buf result = {0};
        run_call(e, &runner, &g->calls[i], &result);
        add_result(messages, call, &g->calls[i], &result);
        buf_free(&result);
    }
}

void warn_of_answer(const Generation *g) {
    if (!g->tools && (g->content.len || !g->thought.len)) return;
    const char *line = g->warnings.len ? g->warnings.data : "";
    for (size_t n; *line; line += n + (line[n] == '\n')) {
        n = strcspn(line, "\n");
        note("gemma4: warning: %.*s\n", (int)n, line);
    }
}

int converse(Engine *e, cJSON *messages, Generation *g, Error *err) {
    const Generation asked = *g;
    for (int round = 0;; round++) {
        Prompt prompt = {0};
        generation_free(g);
        *g = asked;
        g->tools = e->tools;
        engine_hold_calls(e, g);
        int bad = engine_prompt(e, messages, g, &prompt, err);
        if (!bad && g->n_dropped)
            note("gemma4: warning: the context of %lld tokens (-c) is full: the oldest %d messages are dropped\n",
                 (long long)session_context(e->session), g->n_dropped);
        if (!bad) bad = generate(e, g, err);
        if (!bad) add_answer(messages, g);
        g->ids = NULL;                  /* the prompt goes with this round */
        g->span = NULL;
        prompt_free(&prompt);
        if (bad) return -1;
        if (!g->n_calls || !e->tool_dir || g->finish == FINISH_INTERRUPTED) return 0;
        if (round == MAX_ROUNDS) return fail(err, "the model has called tools %d times for one answer", MAX_ROUNDS);
        warn_of_answer(g);
        run_calls(e, messages, g);
        if (e->interrupted && *e->interrupted) {
            g->finish = FINISH_INTERRUPTED;
            return 0;
        }
    }
}
