/* test_tools.c - running executables as tools: what they get, what comes back, and that none can outstay. */
#include "../tools.h"                   /* before cmocka.h, whose macro fail() would hide util.h's function */

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

static char dir[] = "/tmp/test_tools_XXXXXX";
static volatile sig_atomic_t cancel;

static void write_tool(const char *name, const char *script, int mode) {
    char path[256];
    snprintf(path, sizeof path, "%s/%s", dir, name);
    FILE *f = fopen(path, "w");
    assert_non_null(f);
    fprintf(f, "#!/bin/sh\n%s\n", script);
    fclose(f);
    chmod(path, mode);
}

static int make_dir(void **state) {
    (void)state;
    signal(SIGPIPE, SIG_IGN);
    return mkdtemp(dir) ? 0 : -1;
}

static int remove_dir(void **state) {
    (void)state;
    char command[256];
    snprintf(command, sizeof command, "rm -rf %s", dir);
    return system(command);
}

/* Runs the script as a tool, with a time limit of `seconds` and 1000 bytes of output. */
static void check(const char *script, const char *arguments, double limit, int status, const char *expected) {
    ToolRunner r = {.dir = dir, .seconds = limit, .max_output = 1000, .cancel = &cancel};
    Buf result;
    write_tool("tool", script, 0755);
    double start = seconds();
    assert_int_equal(tool_run(&r, "tool", arguments, &result), status);
    assert_string_equal(result.data, expected);
    assert_true(seconds() - start < 20);            /* those that hang would take a minute */
    buf_free(&result);
}

static void test_answers(void **state) {
    (void)state;
    check("cat", "{\"x\":\"$(echo no) `no` ; no\"}", 20, 0, "{\"x\":\"$(echo no) `no` ; no\"}");
    check("printf 'one\\ntwo\\n\\n'", "{}", 20, 0, "one\ntwo\n");
    check("true", "{}", 20, 0, "");
    check("printf 'a\\377\\000b\\303'", "{}", 20, 0, "a\xef\xbf\xbd\xef\xbf\xbd" "b\xef\xbf\xbd");
    check("echo \"$# $0\" | sed \"s:$(dirname $0)/::\"", "{}", 20, 0, "0 tool");
    check("echo no >&2; echo yes", "{}", 20, 0, "yes");
}

static void test_environment(void **state) {
    (void)state;
    setenv("SECRET_OF_TEST", "1", 1);
    setenv("HOME", "/home/of test", 1);
    check("env | grep -v -e ^_= -e ^PWD= -e ^SHLVL= -e ^OLDPWD= | sort", "{}", 20, 0,
          "HOME=/home/of test\nLANG=C.UTF-8\nPATH=/usr/local/bin:/usr/bin:/bin");
    check("for f in 3 4 5 6 7 8 9; do ( : >&$f ) 2>/dev/null && echo $f is open; done; true", "{}", 20, 0, "");
    check("( : </dev/tty ) 2>/dev/null && echo terminal || echo none", "{}", 20, 0, "none");
}

static void test_failures(void **state) {
    (void)state;
    check("echo because; exit 3", "{}", 20, -1, "error: exit status 3\nbecause");
    check("kill -SEGV $$", "{}", 20, -1, "error: killed by signal 11");
    check("echo begun; sleep 60", "{}", 0.3, -1, "error: no answer in time\nbegun");
    check("trap '' TERM INT HUP; exec >&-; sleep 60", "{}", 0.3, -1, "error: no answer in time");
    check("sleep 60 & echo done", "{}", 20, 0, "done");         /* what is left in the background keeps the pipe open */
    cancel = 1;
    check("sleep 60", "{}", 20, -1, "error: interrupted");
    cancel = 0;
}

/* Not enough of them for its pipes; those that there were are free again. */
static void test_no_descriptors(void **state) {
    (void)state;
    ToolRunner r = {.dir = dir, .seconds = 20, .max_output = 1000};
    struct rlimit before, few;
    write_tool("tool", "echo ran", 0755);
    getrlimit(RLIMIT_NOFILE, &before);
    int lowest = dup(0);
    close(lowest);
    for (int n = 0; n < 6; n++) {
        Buf result;
        few = (struct rlimit){(rlim_t)(lowest + n), before.rlim_max};
        setrlimit(RLIMIT_NOFILE, &few);
        assert_int_equal(tool_run(&r, "tool", "{}", &result), -1);
        setrlimit(RLIMIT_NOFILE, &before);
        assert_string_equal(result.data, "error: Too many open files");
        buf_free(&result);
        int now = dup(0);
        close(now);
        assert_int_equal(now, lowest);
    }
}

static void test_limits(void **state) {
    (void)state;
    Buf expected = {0}, arguments = {0};
    buf_puts(&expected, "error: too much output\n");
    for (int i = 0; i < 500; i++) buf_puts(&expected, "y\n");
    expected.data[--expected.len] = 0;              /* the newline at the end goes */
    check("yes", "{}", 20, -1, expected.data);
    /* Arguments that the tool does not read, and many that it does. */
    while (arguments.len < 1 << 20) buf_puts(&arguments, "0123456789abcdef");
    check("echo unread", arguments.data, 20, 0, "unread");
    check("wc -c | tr -d ' '", arguments.data, 20, 0, "1048576");
    buf_free(&expected);
    buf_free(&arguments);
}

/* Nothing of what it has started is left. */
static void test_no_child_survives(void **state) {
    (void)state;
    char path[256], script[512];
    struct stat info;
    snprintf(path, sizeof path, "%s/survived", dir);
    snprintf(script, sizeof script, "(sleep 1; touch %s) & sleep 60", path);
    check(script, "{}", 0.2, -1, "error: no answer in time");
    sleep(2);
    assert_int_equal(stat(path, &info), -1);
}

static void test_names(void **state) {
    (void)state;
    static const char *names[] = {
        "", ".", "..", "../tool", "/bin/ls", "./tool", "sub/tool", "tool ", "tool\n", "tool;ls", "$HOME", "t\xc3\xb6ol", "sub", "plain", "none",
        ".hidden", "tool/../tool", "-tool", "--help",
    };
    ToolRunner r = {.dir = dir, .seconds = 20, .max_output = 1000};
    char path[256];
    write_tool("tool", "echo ran", 0755);
    write_tool(".hidden", "echo ran", 0755);
    write_tool("-tool", "echo ran", 0755);
    write_tool("plain", "echo ran", 0644);
    snprintf(path, sizeof path, "%s/sub", dir);
    mkdir(path, 0755);
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        Buf result;
        assert_int_equal(tool_run(&r, names[i], "{}", &result), -1);
        assert_string_equal(result.data, "error: no such tool");
        buf_free(&result);
    }
    Buf result;
    write_tool("a-B_2.sh", "echo ran", 0755);
    assert_int_equal(tool_run(&r, "a-B_2.sh", "{}", &result), 0);
    assert_string_equal(result.data, "ran");
    buf_free(&result);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_answers),           cmocka_unit_test(test_environment), cmocka_unit_test(test_failures),
        cmocka_unit_test(test_limits),            cmocka_unit_test(test_names),       cmocka_unit_test(test_no_child_survives),
        cmocka_unit_test(test_no_descriptors),
    };
    return cmocka_run_group_tests_name("tools", tests, make_dir, remove_dir);
}
