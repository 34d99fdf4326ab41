/* constants.c - the values of enum and const, written as JSON or in the notation of calls.  See
 * compile.h. */
#include "compile.h"

#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "json.h"

/* Whether call.c reads the name, which has no quotes in a call, as it is. */
static int is_bare_name(const char *name) {
    return *name && !strchr("'`)", *name) && !strpbrk(name, ":=,{}[]\" \n\t\xff");
}

void put_name(Compiler *c, const cJSON *schema, const char *keyword, const char *name, Buf *out) {
    if (!program_in_calls(c->s)) json_quote_text(out, name);
    else if (is_bare_name(name)) buf_puts(out, name);
    else {
        Buf what = {0};
        buf_puts(&what, "the name ");
        json_quote_text(&what, name);
        buf_puts(&what, " cannot be written in a call");
        wrong(c, schema, keyword, what.data);
        buf_free(&what);
    }
    buf_puts(out, ":");
}

static int compare_in_calls(const void *x, const void *y) {
    const Property *a = x, *b = y;
    int order = strcasecmp(a->name, b->name);
    return order ? order : a->at - b->at;
}

/* A call has its members in the order of jinja2's dictsort, in which the chat template declares
 * them: the model has read them in that order and writes them so.  JSON keeps the schema's
 * order. */
void put_in_order(const Compiler *c, Property *p, int n) {
    for (int i = 0; i < n; i++) p[i].at = i;
    if (program_in_calls(c->s) && n) qsort(p, (size_t)n, sizeof *p, compare_in_calls);
}

/* Adds the members of an object v, a constant, to a literal. */
static void put_members(Compiler *c, const cJSON *schema, const cJSON *v, Buf *out) {
    const cJSON *item;
    int n = 0;
    Property *p = xcalloc(cJSON_GetArraySize(v) + 1, sizeof *p);
    cJSON_ArrayForEach(item, v) p[n++] = (Property){.name = item->string, .value = item};
    put_in_order(c, p, n);
    for (int i = 0; i < n; i++) {
        if (i) buf_puts(out, ",");
        put_name(c, schema, "enum", p[i].name, out);
        put_constant(c, schema, p[i].value, out);
    }
    free(p);
}

void put_constant(Compiler *c, const cJSON *schema, const cJSON *v, Buf *out) {
    const cJSON *item;
    if (cJSON_IsString(v)) {
        int in_calls = program_in_calls(c->s);
        if (in_calls && strchr(v->valuestring, MARK))
            wrong(c, schema, "enum", "a string that is not UTF-8");
        if (!in_calls) json_quote_text(out, v->valuestring);
        else buf_printf(out, "\xff\x01%s\xff\x01", v->valuestring);
    } else if (cJSON_IsNumber(v)) {
        char *number = json_text(v);
        buf_puts(out, number);
        free(number);
    } else if (cJSON_IsArray(v)) {
        buf_puts(out, "[");
        cJSON_ArrayForEach(item, v) {
            if (item != v->child) buf_puts(out, ",");
            put_constant(c, schema, item, out);
        }
        buf_puts(out, "]");
    } else if (cJSON_IsObject(v)) {
        buf_puts(out, "{");
        put_members(c, schema, v, out);
        buf_puts(out, "}");
    } else buf_puts(out, text_of_word(v));
}

int compile_constants(Compiler *c, const Place *p, const cJSON *schema) {
    const cJSON *list = json_field(schema, "enum"), *v;
    if (list && !cJSON_IsArray(list)) return wrong(c, schema, "enum", "must be a list");
    int n = 0, kept = 0;
    char **text = xcalloc(cJSON_GetArraySize(list) + 2, sizeof *text);
    for (v = constants_of(schema); v && !c->bad; v = next_constant(schema, v)) {
        Buf out = {0};
        if (!place_holds(c, p, v)) continue;
        put_constant(c, schema, v, &out);
        text[n++] = out.data;
    }
    if (n) qsort(text, (size_t)n, sizeof *text, by_text);
    for (int i = 0; i < n; i++) {
        if (kept && !strcmp(text[i], text[kept - 1])) free(text[i]);
        else text[kept++] = text[i];
    }
    int pc = put_literals(c->s, text, kept, program_ret(c->s));
    while (kept) free(text[--kept]);
    free(text);
    return pc;
}
