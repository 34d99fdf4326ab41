/* values.c - values in JSON: their types, which of them are equal, and those of enum and const.
 * See compile.h. */
#include "compile.h"

#include <stdlib.h>
#include <string.h>

#include "json.h"

#define FEW_VALUES 8                    /* values of an enum that are compared one by one; by
                                         * judgement */

int decimal_of(const cJSON *v, Decimal *out) {
    char *text = json_text(v);
    int bad = decimal_read(text, out);
    free(text);
    return bad;
}

static int is_whole_number(const cJSON *v) {
    Decimal d;
    return cJSON_IsNumber(v) && !decimal_of(v, &d) && decimal_is_whole(&d);
}

int type_of_value(const cJSON *v) {
    if (cJSON_IsString(v)) return T_STRING;
    if (cJSON_IsNumber(v)) return is_whole_number(v) ? T_INTEGER : T_FRACTION;
    if (cJSON_IsBool(v)) return T_BOOLEAN;
    if (cJSON_IsArray(v)) return T_ARRAY;
    return cJSON_IsObject(v) ? T_OBJECT : T_NULL;
}

/* Whether two numbers are equal; where one has too many digits, whether their texts are. */
static int same_number(const cJSON *a, const cJSON *b) {
    Decimal x, y;
    int bad = decimal_of(a, &x) | decimal_of(b, &y);
    if (!bad) return !decimal_compare(&x, &y);
    return a->valuestring && b->valuestring && !strcmp(a->valuestring, b->valuestring);
}

int same_value(const cJSON *a, const cJSON *b) {
    if (cJSON_IsNumber(a) && cJSON_IsNumber(b)) return same_number(a, b);
    if ((cJSON_IsArray(a) && cJSON_IsArray(b)) || (cJSON_IsObject(a) && cJSON_IsObject(b))) {
        if (cJSON_GetArraySize(a) != cJSON_GetArraySize(b)) return 0;
        const cJSON *x, *y = b->child;
        cJSON_ArrayForEach(x, a) {
            if (cJSON_IsObject(a)) y = cJSON_GetObjectItemCaseSensitive(b, x->string);
            if (!y || !same_value(x, y)) return 0;
            if (cJSON_IsArray(a)) y = y->next;
        }
        return 1;
    }
    return cJSON_Compare(a, b, 1);
}

static void put_decimal(Buf *out, const cJSON *v) {
    Decimal d;
    char *text = json_text(v);
    if (decimal_read(text, &d)) buf_puts(out, text);    /* too many digits: the text itself */
    else buf_printf(out, "%s%s.%s", d.negative ? "-" : "", d.whole, d.part);
    free(text);
}

const char *text_of_word(const cJSON *v) {
    if (cJSON_IsBool(v)) return cJSON_IsTrue(v) ? "true" : "false";
    return "null";
}

static int compare_properties(const void *x, const void *y) {
    const Property *a = x, *b = y;
    return strcmp(a->name, b->name);
}

/* Adds a text that is the same for two values exactly where same_value holds. */
static void put_value(Buf *out, const cJSON *v) {
    const cJSON *item;
    Property *p = NULL;
    int n = 0;
    if (cJSON_IsString(v)) json_quote_text(out, v->valuestring);
    else if (cJSON_IsNumber(v)) put_decimal(out, v);
    else if (cJSON_IsArray(v)) {
        buf_puts(out, "[");
        cJSON_ArrayForEach(item, v) {
            put_value(out, item);
            buf_puts(out, ",");
        }
    } else if (cJSON_IsObject(v)) {
        buf_puts(out, "{");
        p = xcalloc(cJSON_GetArraySize(v) + 1, sizeof *p);
        cJSON_ArrayForEach(item, v) p[n++] = (Property){.name = item->string, .value = item};
        if (n) qsort(p, (size_t)n, sizeof *p, compare_properties);
        for (int i = 0; i < n; i++) {
            json_quote_text(out, p[i].name);
            put_value(out, p[i].value);
        }
        free(p);
    } else buf_puts(out, text_of_word(v));
    if (cJSON_IsArray(v) || cJSON_IsObject(v)) buf_puts(out, "]");
}

/* The sorted texts of an enum's values, made once for each enum. */
static const KnownValues *known_values(Compiler *c, const cJSON *list) {
    const cJSON *item;
    for (int i = c->n_values - 1; i >= 0; i--)
        if (c->values[i].list == list) return &c->values[i];
    KnownValues k = {list, xcalloc(cJSON_GetArraySize(list) + 1, sizeof *k.text), 0};
    cJSON_ArrayForEach(item, list) {
        Buf text = {0};
        put_value(&text, item);
        k.text[k.n++] = text.data;
    }
    if (k.n) qsort(k.text, (size_t)k.n, sizeof *k.text, by_text);
    c->values = xrealloc(c->values, c->n_values + 1, sizeof *c->values);
    c->values[c->n_values] = k;
    return &c->values[c->n_values++];
}

/* A long enum is searched by bisection: comparing each of its values with each of another long enum
 * would take too long. */
int is_among(Compiler *c, const cJSON *list, const cJSON *v) {
    const cJSON *item;
    int n = 0, found = 0;
    cJSON_ArrayForEach(item, list) {
        if (++n > FEW_VALUES) break;
        if (same_value(item, v)) return 1;
    }
    if (n <= FEW_VALUES) return 0;
    const KnownValues *k = known_values(c, list);
    Buf text = {0};
    put_value(&text, v);
    found = bsearch(&text.data, k->text, (size_t)k->n, sizeof *k->text, by_text) != NULL;
    buf_free(&text);
    return found;
}

int has_all(const cJSON *object, const cJSON *names) {
    const cJSON *name;
    cJSON_ArrayForEach(name, names)
        if (cJSON_IsString(name) && !cJSON_GetObjectItemCaseSensitive(object, name->valuestring))
            return 0;
    return 1;
}

const cJSON *constants_of(const cJSON *schema) {
    const cJSON *list = json_field(schema, "enum");
    return list ? list->child : cJSON_GetObjectItemCaseSensitive(schema, "const");
}

const cJSON *next_constant(const cJSON *schema, const cJSON *v) {
    return json_field(schema, "enum") ? v->next : NULL;
}
