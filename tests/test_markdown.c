/* test_markdown.c - Markdown for a terminal: what each mark becomes, and that the pieces in which a text comes change nothing. */
#include "../markdown.h"                /* before cmocka.h, whose macro fail() would hide util.h's function */

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <locale.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define B "\033[1m"
#define U "\033[4m"
#define S "\033[9m"
#define C "\033[36m"
#define D "\033[2m"
#define E "\033[0m"

/* What comes out of the text in two pieces, of which the first has `cut` bytes; each byte of them alone where `singly`. */
static void shown(const char *text, size_t n, size_t cut, int singly, Buf *out) {
    Markdown m = {.columns = 80};
    size_t step = singly ? 1 : n + 1;
    for (size_t i = 0; i < n;) {
        size_t end = i < cut ? cut : n, part = end - i < step ? end - i : step;
        char *piece = malloc(part);     /* so that a sanitizer sees a read beyond its end */
        memcpy(piece, text + i, part);
        markdown_feed(&m, piece, part, out);
        free(piece);
        i += part;
    }
    markdown_end(&m, out);
    assert_int_equal(m.held.len + m.table.len, 0);
    markdown_free(&m);
}

static void check(const char *text, const char *want) {
    size_t n = strlen(text);
    for (size_t cut = 0; cut <= n + 1; cut++) {
        Buf out = {0};
        buf_add(&out, "", 0);
        shown(text, n, cut, cut > n, &out);
        if (strcmp(out.data, want)) print_error("%s\ncut at %zu\n", text, cut);
        assert_string_equal(out.data, want);
        buf_free(&out);
    }
}

static void same(const char *text) { check(text, text); }

static void test_plain_text(void **state) {
    (void)state;
    same("");
    same("one line");
    same("two\n\nlines\n");
    same("日本語 🙂 é\n");
    same("\n\n\n");
    same("   indented\n\ttab\n");
}

static void test_emphasis(void **state) {
    (void)state;
    check("a **b** c", "a " B "b" E " c");
    check("**b**", B "b" E);
    check("*e* and _e_\n", U "e" E " and " U "e" E "\n");
    check("***both***", B U "both" E);
    check("**a *b* c**", B "a " U "b" E B " c" E);
    check("~~x~~", S "x" E);
    check("**bold: ** no, **yes**", "**bold: ** no, " B "yes" E);
    check("foo**bar**", "foo" B "bar" E);
    check("**a `*` b**", B "a " C "*" E B " b" E);
}

static void test_marks_over_the_end_of_a_line(void **state) {
    (void)state;
    check("a **b\nc** d\n*e\nf\ng*\n", "a " B "b\nc" E " d\n" U "e\nf\ng" E "\n");
    check("- **a\n  b** `c\nd`", "  • " B "a\n  b" E " " C "c\nd" E);
    check("**a\n- b**\n**a\n# b**\n", "**a\n  • b**\n**a\n" B U "b**" E "\n");
    check("**a\n> b**\n\n**a\n---\nb**", "**a\n│ " D "b**" E "\n\n**a\n" D "---" E "\nb**");
    same("**a\n| b** |\n");
    check("> **a\n> b** c\n", "│ " D B "a" E "\n│ " B D "b" E D " c" E "\n");
    check("> > `a\n>> b`\n>> c", "│ │ " D C "a" E "\n│ │ " C D "b" E D E "\n│ │ " D "c" E);
    check("> **a\n>> b**\n> **a\n>\n> b**\n> **a\nb**\n> **a\n> - b**", "│ " D "**a" E "\n│ │ " D "b**" E "\n│ " D "**a" E "\n│ " D E "\n│ " D "b**" E
          "\n│ " D "**a" E "\nb**\n│ " D "**a" E "\n│ " D "- b**" E);
}

static void test_stars_that_are_no_emphasis(void **state) {
    (void)state;
    same("2 * 3 * 4 = 24");
    same("2*3*4");
    same("snake_case_name and _x");
    same("a ** b ** c");
    same("**never closed\n\nand the next paragraph**");
    same("*");
    same("**");
    same("*a\n*b\n");
    same("5* and 6*");
    same("~a~ ~ ~~ b");
    same("****four****");
    same("\\( x \\) and \\[ y \\]");
    check("\\*a\\* \\_b\\_", "*a* _b_");
    check("1\\. a \\- b \\> c", "1. a - b > c");
}

static void test_code(void **state) {
    (void)state;
    check("a `b_c_d` e", "a " C "b_c_d" E " e");
    check("`` a ` b ``", C "a ` b" E);
    check("`**not bold**`", C "**not bold**" E);
    same("a ` b");
    same("``");
    check("`a` `b", C "a" E " `b");
}

static void test_code_blocks(void **state) {
    (void)state;
    check("```c\nint *p, **q; /* _x_ */\n# no heading\n- no item\n\n```\n**b**\n",
          D "```c" E "\n" C "int *p, **q; /* _x_ */" E "\n" C "# no heading" E "\n" C "- no item" E "\n" C E "\n" D "```" E "\n" B "b" E "\n");
    check("~~~~\n~~~\n```\n| a |\n~~~~\nx", D "~~~~" E "\n" C "~~~" E "\n" C "```" E "\n" C "| a |" E "\n" D "~~~~" E "\nx");
    check("```\nnever closed", D "```" E "\n" C "never closed" E);
    check("```", D "```" E);
    check("  ```\n  x\n  ```", D "  ```" E "\n" C "  x" E "\n" D "  ```" E);
    check("```code``` x", C "code" E " x");
}

static void test_headings(void **state) {
    (void)state;
    check("# One\n## Two *x*\n### Three\n", B U "One" E "\n" B U "Two x" E "\n" B "Three" E "\n");
    same("#hash\n####### seven\n#\n# \n");
    check("# a **b** c", B U "a b c" E);
    check("#   a", B U "a" E);
}

static void test_lists(void **state) {
    (void)state;
    check("- a\n* b\n+ **c**\n  - d\n1. e\n12) f\n", "  • a\n  • b\n  • " B "c" E "\n    • d\n  1. e\n  12) f\n");
    same("-5 degrees\n1.5 litres\n-\n2024\n");
    check("---\n***\n- - -\n", D "---" E "\n" D "***" E "\n" D "- - -" E "\n");
    check("--\n- -\n* *a*\n", "--\n  • -\n  • " U "a" E "\n");
}

static void test_quotes_and_links(void **state) {
    (void)state;
    check("> said *so* `x`\n>\nx", "│ " D "said " U "so" E D " " C "x" E D E "\n│ " D E "\nx");
    check("> > a\n>>b", "│ │ " D "a" E "\n│ │ " D "b" E);
    same("\\[ y \\](x)");
    check("[a](http://b/c_d_e)", U "a" E " (http://b/c_d_e)");
    check("[http://a](http://a)", U "http://a" E);
    check("![pic](x.png)!", U "pic" E " (x.png)!");
    check("[**a**](b(c))", U B "a" E U E " (b(c))");
    same("[1] and [x] (y) a[0](no url) [a]\n[");
}

static void test_tables(void **state) {
    (void)state;
    check("| a | long head | c |\n|---|:-:|--:|\n| **x** | y | 1 |\n| 日本 | `|` | 22 |\nend",
          B "a" E "    │ " B "long head" E " │ " B "c" E " │ " B E "\n─────┼───────────┼───┼───\n" B "x" E "    │     y     │ 1 │ \n日本 │     `     │ ` │ 22\nend");
    check("| a | long head | c |\n|---|:-:|--:|\n| **x** | y | 1 |\n| 日本 | `z` | 22 |\nend",
          B "a" E "    │ " B "long head" E " │  " B "c" E "\n─────┼───────────┼───\n" B "x" E "    │     y     │  1\n日本 │     " C "z" E "     │ 22\nend");
    check("|a|b|\n|-|-|", B "a" E " │ " B "b" E "\n──┼──");
    check("|a|b|\n|-|-|\n|1|", B "a" E " │ " B "b" E "\n──┼──\n1 │ ");
    check("|a|b|\n|-|-|\n|✔️|x|\n|日|y|", B "a" E "  │ " B "b" E "\n───┼──\n✔️\033[3G │ x\n日 │ y");
    check("|a|\n|-|\n\nx", B "a" E "\n─\n\nx");
    same("| no table |\n");
    same("| a | b |\n|---|\n| c |\n");
    same("|\n|\n||\n| |");
    check("| *a* |\n| b |\n|-|\n", "| " U "a" E " |\n" B "b" E "\n─\n");
    same("| a | b |\n|---|---|\n| wide wide wide wide wide wide wide wide wide | wide wide wide wide wide wide wide wide wide |\n");
}

/* The head of a table without outer bars is put out as a line, and the table takes its place. */
static void test_tables_without_outer_bars(void **state) {
    (void)state;
    check("a | long\n--- | --:\n**x** | 1\n| 日 | 22 |\n\nend | x",
          "a | long\r\033[K" B "a" E "  │ " B "long" E "\n───┼─────\n" B "x" E "  │    1\n日 │   22\n\nend | x");
    check("a | b\n-|-\n1 | 2 | 3\n4 | 5\n", "a | b\r\033[K" B "a" E " │ " B "b" E " │ " B E "\n──┼───┼──\n1 │ 2 │ 3\n4 │ 5 │ \n");
    check("text\na | b\n- | -", "text\na | b\r\033[K" B "a" E " │ " B "b" E "\n──┼──");
    check("a | b\n|-|-|\nx\n- y | z", "a | b\r\033[K" B "a" E " │ " B "b" E "\n──┼──\nx\n  • y | z");
    check("_a | b\n-|-\n", "_a | b\r\033[K" B "_a" E " │ " B "b" E "\n───┼──\n");
    check("a | b\n---\n", "a | b\n" D "---" E "\n");
    check("- a | b\n--- | ---\n", "  • a | b\n--- | ---\n");
    same("a | b | c\n--- | ---\n");
    same("a | b\n--- x | ---\n");
    same("a wide wide wide wide wide wide wide wide | wide wide wide wide wide wide wide wide b\n-|-\n");
}

static void test_that_little_is_held(void **state) {
    (void)state;
    Markdown m = {.columns = 80};
    Buf out = {0};
    markdown_feed(&m, "Hello, wor", 10, &out);
    assert_string_equal(out.data, "Hello, wor");
    markdown_feed(&m, "ld *x", 5, &out);
    assert_string_equal(out.data, "Hello, world ");
    for (int i = 0; i < MARKDOWN_HELD; i++) markdown_feed(&m, "y", 1, &out);
    assert_int_equal(m.held.len, 0);
    markdown_end(&m, &out);
    assert_int_equal(out.len, 13 + 2 + MARKDOWN_HELD);
    buf_free(&out);
    markdown_free(&m);
}

/* Texts of marks at random: no piece changes what comes out. */
static void test_any_cut(void **state) {
    static const char *const parts[] = {"*", "**", "_", "`", "```", "~~", "[", "](", ")", "|", "|-|", "\n", "\n", " ", "a", "b c", "# ", "- ", "\\",
                                        "!", "1. ", "> ", "日", "---", ":", "a | b\n", "-|-"};
    (void)state;
    srand(1);
    for (int i = 0; i < 3000; i++) {
        Buf text = {0}, whole = {0}, singly = {0}, cut = {0};
        buf_add(&whole, "", 0), buf_add(&singly, "", 0), buf_add(&cut, "", 0);
        for (int j = rand() % 40 + 1; j > 0; j--) buf_puts(&text, parts[(size_t)rand() % (sizeof parts / sizeof *parts)]);
        shown(text.data, text.len, 0, 0, &whole);
        shown(text.data, text.len, 0, 1, &singly);
        shown(text.data, text.len, (size_t)rand() % text.len, 0, &cut);
        if (strcmp(whole.data, singly.data) || strcmp(whole.data, cut.data)) print_error("%s\n", text.data);
        assert_string_equal(whole.data, singly.data);
        assert_string_equal(whole.data, cut.data);
        buf_free(&text), buf_free(&whole), buf_free(&singly), buf_free(&cut);
    }
}

int main(void) {
    setlocale(LC_CTYPE, "C.UTF-8");
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_plain_text), cmocka_unit_test(test_emphasis), cmocka_unit_test(test_marks_over_the_end_of_a_line),
        cmocka_unit_test(test_stars_that_are_no_emphasis),
        cmocka_unit_test(test_code), cmocka_unit_test(test_code_blocks), cmocka_unit_test(test_headings), cmocka_unit_test(test_lists),
        cmocka_unit_test(test_quotes_and_links), cmocka_unit_test(test_tables),
        cmocka_unit_test(test_tables_without_outer_bars), cmocka_unit_test(test_that_little_is_held),
        cmocka_unit_test(test_any_cut),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
