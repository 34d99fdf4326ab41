/* check.c - does a schema compile, and would it have allowed a text?  See check.h. */
#include "check.h"

#include <ctype.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "json.h"

#define WIDTH 120                       /* columns of the line that says why: the list is cut */
#define FEW 6                           /* "any … but": at most so many exceptions are listed */

static int may_come(Schema *s, int state, int byte) { return schema_step(s, state, byte) >= 0; }

/* May one of the bytes from `first` to `last` come? */
static int may_one(Schema *s, int state, int first, int last) {
    while (first <= last && !may_come(s, state, first)) first++;
    return first <= last;
}

static void add_item(Buf *list, const char *item) {
    if (list->len) buf_puts(list, ", ");
    buf_puts(list, item);
}

/* Digits, capitals and small letters form ranges; a range of other characters would tell nobody
 * what is in it. */
static int is_one_range(int a, int b) {
    return (isdigit(a) && isdigit(b)) || (isupper(a) && isupper(b)) || (islower(a) && islower(b));
}

/* Where at most FEW printable ASCII characters may not come, adds "any printable ASCII character"
 * with those that may not, and returns 1.  Where more may not come, adds nothing and returns 0. */
static int add_nearly_all(Buf *list, Schema *s, int state) {
    char missing[FEW + 1];
    int n = 0;
    for (int c = ' '; c <= '~'; c++)
        if (!may_come(s, state, c)) {
            if (n == FEW) return 0;
            missing[n++] = (char)c;
        }
    add_item(list, "any printable ASCII character");
    for (int i = 0; i < n; i++) buf_printf(list, "%s`%c`", i ? " " : " (not ", missing[i]);
    if (n) buf_puts(list, ")");
    return 1;
}

/* Adds the printable ASCII characters that may come, without the space, one by one and as ranges.
 * When the list would grow longer than `room` bytes, "…" ends it. */
static void add_ascii(Buf *list, Schema *s, int state, size_t room) {
    for (int c = '!', last; c <= '~'; c = last + 1) {
        char item[8];
        last = c;
        if (!may_come(s, state, c)) continue;
        while (is_one_range(c, last + 1) && may_come(s, state, last + 1)) last++;
        if (last < c + 2) last = c;     /* `a`, `b` reads better than `a-b` */
        if (last > c) (void)snprintf(item, sizeof item, "`%c-%c`", c, last);
        else (void)snprintf(item, sizeof item, "`%c`", c);
        if (list->len && list->len + strlen(", ") + strlen(item) > room) {
            add_item(list, "…");
            return;
        }
        add_item(list, item);
    }
}

/* Adds the list with its last ", " replaced by " or ".  An item never holds ", ": an item that is
 * itself a comma is written `,` without a space behind it. */
static void add_list(Buf *out, const Buf *list) {
    const char *text = list->data ? list->data : "", *comma = NULL;
    for (const char *p = text; (p = strstr(p, ", ")); p++) comma = p;
    int n = (int)(comma ? comma - text : 0);
    if (comma && strcmp(comma, ", …")) buf_printf(out, "%.*s or %s", n, text, comma + 2);
    else buf_puts(out, text);
}

/* Adds what may come in this state, in about `room` bytes: `list` holds the ASCII characters, which
 * may be cut to fit, and `words` holds the rest, which may not. */
static void add_expected(Buf *out, Schema *s, int state, size_t room) {
    Buf list = {0}, words = {0};
    int nearly_all = add_nearly_all(&list, s, state);
    if (may_one(s, state, 0xc2, 0xf4)) add_item(&words, "other characters");
    else if (may_one(s, state, 0x80, 0xbf)) add_item(&words, "the rest of a character");
    if (may_come(s, state, '\n')) add_item(&words, "white space");
    else if (may_come(s, state, ' ') && !nearly_all) add_item(&words, "a space");
    if (schema_may_end(s, state)) add_item(&words, "the end");
    size_t rest = words.len + strlen(", …") + strlen(" or ");
    if (!nearly_all) add_ascii(&list, s, state, room > rest ? room - rest : 0);
    if (words.len) add_item(&list, words.data);
    add_list(out, &list);
    buf_free(&list);
    buf_free(&words);
}

/* Adds the first character of text[0..n) in a form that a reader can see. */
static void add_character(Buf *out, const char *text, size_t n) {
    int len = n ? utf8_char(text, n) : 0;
    Buf quoted = {0};
    if (!n) buf_puts(out, "the end of the text");
    else if (*text == ' ') buf_puts(out, "a space");
    else if (len <= 0) buf_printf(out, "the byte 0x%02x", (unsigned char)*text);
    else if (*text == '"' || *text == '\\') buf_printf(out, "`%c`", *text);
    else {
        json_quote(&quoted, text, (size_t)len);
        buf_printf(out, "`%.*s`", (int)quoted.len - 2, quoted.data + 1);
    }
    buf_free(&quoted);
}

/* Walks through text[0..n) byte by byte and adds the line that says whether the schema allows it.
 * Returns 0 where it does, else 1.  The schema may refuse a byte in the middle of a character; the
 * line then names the whole character, and what may come at the character's first byte. */
static int walk_text(Schema *s, const char *text, size_t n, Buf *out) {
    int state = schema_begin(s), before = state, to = state;    /* before: at `from` */
    size_t at = 0, from = 0, next = 0;  /* the character [from, next) holds byte `at` */
    Buf not = {0};
    for (; at < n; at++, state = to) {
        if (at == next) {
            int len = utf8_char(text + at, n - at);
            before = state;
            from = at;
            next = at + (len > 0 ? (size_t)len : 1);
        }
        if ((to = schema_step(s, state, (unsigned char)text[at])) < 0) break;
    }
    if (at == n && schema_may_end(s, state)) {
        buf_puts(out, "yes\n");
        return 0;
    }
    if (at == n) before = state, from = n;
    add_character(&not, text + from, n - from);
    buf_printf(out, "no: byte %zu: expected ", at);
    add_expected(out, s, before, WIDTH - strlen(", not ") - out->len - not.len);
    buf_printf(out, ", not %s\n", not.data);
    buf_free(&not);
    return 1;
}

int check_schema(const Pieces *p, const cJSON *schema, const char *name, Error *err) {
    Error why;
    Buf in = {0}, out = {0};
    Schema *s = schema_new(p, schema, &why);
    int status = s ? 0 : fail(err, "%s: %s", name, why.text);
    if (s && !isatty(STDIN_FILENO)) status = read_file("-", &in, err);
    if (!status && !in.len) buf_puts(&out, "compiles\n");
    else if (!status) status = walk_text(s, in.data, in.len - (in.data[in.len - 1] == '\n'), &out);
    if (out.len) put_stdout(out.data, out.len);
    schema_free(s);
    buf_free(&in);
    buf_free(&out);
    return status;
}

/* Compiles a tool alone, so that its error hides no other tool's error, not even that of a tool of
 * the same name.  Returns 0, or 1 after a line with the tool's error on stderr. */
static int check_tool(const Pieces *p, cJSON *tool, const char *name) {
    static const char of[] = "parameters of ";
    cJSON *alone = cJSON_CreateArray();
    Error why;
    cJSON_AddItemReferenceToArray(alone, tool);
    Schema *s = schema_calls(p, alone, NULL, 0, NULL, &why);
    /* schema_calls names the tool in every error but one: that nothing satisfies any of the
     * tools. */
    int named = s || begins(why.text, of);
    const char *tool_name = json_string(json_field(tool, "function"), "name");
    if (!s && named) note("gemma4: %s: %s\n", name, why.text);
    else if (!s) note("gemma4: %s: %s%s: %s\n", name, of, tool_name, why.text);
    int bad = !s;
    schema_free(s);
    cJSON_Delete(alone);
    return bad;
}

int check_tools(const Pieces *p, const cJSON *tools, const char *name) {
    int bad = 0;
    cJSON *tool;
    cJSON_ArrayForEach(tool, tools) bad |= check_tool(p, tool, name);
    if (!bad) put_stdout("compiles\n", strlen("compiles\n"));
    return bad;
}
