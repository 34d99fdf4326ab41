/* ranges.c - what a schema says of numbers: minimum, maximum, multipleOf and their kin.  See
 * compile.h. */
#include "compile.h"

#include <stdlib.h>
#include <string.h>

#include "json.h"

/* A keyword's number with all of its digits.  Returns 1, 0 where the keyword is missing or true
 * or false (as exclusiveMinimum in draft 4), or -1 with the error. */
static int number_of(Compiler *c, const cJSON *schema, const char *name, Decimal *out) {
    const cJSON *v = json_field(schema, name);
    if (!v || cJSON_IsBool(v)) return 0;
    if (!cJSON_IsNumber(v)) return wrong(c, schema, name, "must be a number"), -1;
    static const char many[] = "must be a number of at most 100 digits before and behind the point";
    if (decimal_of(v, out)) return wrong(c, schema, name, many), -1;
    return 1;
}

/* Narrows the range by a bound; sign: 1 for a lower bound, -1 for an upper one. */
static void bound(Range *r, const Decimal *d, int open, int sign) {
    int *has = sign > 0 ? &r->has_lo : &r->has_hi;
    int *is_open = sign > 0 ? &r->lo_open : &r->hi_open;
    Decimal *old = sign > 0 ? &r->lo : &r->hi;
    int order = *has ? sign * decimal_compare(d, old) : 1;
    if (order < 0) return;
    *is_open = order ? open : *is_open | open;
    *old = *d;
    *has = 1;
}

/* Narrows r->far by a bound that has too many digits for a Decimal and only excludes large
 * numbers: a maximum above 0 (sign -1) or a minimum below 0 (sign 1).  Returns 1, or 0 where it
 * is no such bound. */
static int far_bound(const cJSON *schema, const char *name, Range *r, int sign) {
    const cJSON *v = json_field(schema, name);
    Decimal d;
    if (!cJSON_IsNumber(v) || !decimal_of(v, &d)) return 0;
    char *text = json_text(v);
    int power = decimal_power(text), is_far = power >= MAX_DIGITS && (*text == '-') == (sign > 0);
    if (is_far && (!r->far || power < r->far)) r->far = power;
    free(text);
    return is_far;
}

int add_range(Compiler *c, const cJSON *schema, Range *r) {
    static const char *const names[][2] = {{"minimum", "exclusiveMinimum"},
                                           {"maximum", "exclusiveMaximum"}};
    Decimal d;
    for (int i = 0; i < 2; i++) {
        int sign = i ? -1 : 1;
        /* In draft 4 exclusiveMinimum: true excludes the `minimum` beside it. */
        int old_style = cJSON_IsTrue(json_field(schema, names[i][1]));
        if (old_style && !json_field(schema, names[i][0]))
            wrong(c, schema, names[i][1], "true needs a bound beside it");
        for (int k = 0; k < 2; k++) {
            if (far_bound(schema, names[i][k], r, sign)) continue;
            if (number_of(c, schema, names[i][k], &d) > 0) bound(r, &d, k || old_style, sign);
        }
    }
    if (number_of(c, schema, "multipleOf", &d) > 0) {
        if (r->has_step && decimal_compare(&r->step, &d) && !decimal_is_multiple(&d, &r->step))
            wrong(c, schema, "multipleOf", "beside another multipleOf is not supported");
        if (d.negative || (!strcmp(d.whole, "0") && !*d.part))
            wrong(c, schema, "multipleOf", "must be a number above 0");
        r->has_step = 1;
        r->step = d;
    }
    return c->bad ? -1 : 0;
}

static int compare_decimals(const void *a, const void *b) { return decimal_compare(a, b); }

/* The range is cut at each excluded number: between two of them lies an open range. */
int compile_number(Compiler *c, const Place *p, Range r) {
    const char *why = NULL;
    Decimal *out = NULL;                /* [n] the excluded numbers */
    int n = 0, pc = program_fail(c->s);
    for (int i = 0; i < p->n && !c->bad; i++) {
        const cJSON *schema = p->part[i].schema, *v;
        if (!(p->part[i].marks & NEGATED)) continue;
        for (v = constants_of(schema); v; v = next_constant(schema, v)) {
            if (!cJSON_IsNumber(v) || !(type_of_value(v) == T_INTEGER || !r.whole)) continue;
            out = xrealloc(out, n + 1, sizeof *out);
            if (decimal_of(v, &out[n++]))
                wrong(c, schema, "not", "a number of more than 100 digits is not supported");
        }
    }
    if (n) qsort(out, (size_t)n, sizeof *out, compare_decimals);
    for (int i = 0; i <= n && !c->bad && !why; i++) {
        Range some = r;
        if (i) bound(&some, &out[i - 1], 1, 1);
        if (i < n) bound(&some, &out[i], 1, -1);
        pc = put_either(c->s, pc, put_numbers(c->s, &some, program_ret(c->s), &why));
    }
    free(out);
    return why ? wrong(c, holder_of(p, "multipleOf"), "multipleOf", why) : pc;
}
