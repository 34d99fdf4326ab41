/* objects.c - what a schema says of objects: which names, in which order, how many.  See compile.h.
 *
 * Declared properties are written in order, and each one is written or skipped; other names come
 * last.  What may follow depends on the next property (i), on how many properties have been
 * written (count) and on which names of dependentRequired have been written (flags).  So the
 * program has an address for each such triple in front of a name (`key`) and behind a value
 * (`more`). */
#include "compile.h"

#include <stdlib.h>
#include <string.h>

#include "json.h"

/* Limits, chosen by judgement above what real schemas have. */
#define MAX_PROPERTIES 4000             /* in an object: key_from calls itself once for each */
#define MAX_NAME 1000                   /* bytes of a declared name */
#define MAX_PATTERNS 4                  /* of patternProperties: each doubles the other names */
#define MAX_FLAGS 10                    /* names in dependentRequired: each doubles the program */

/* A kind of names that no schema declares: the routines that write a name and its value. */
typedef struct {
    int name, value;
} Others;

/* The name number `flag` must not be written without those of the mask `needs`. */
typedef struct {
    int flag, needs;
} Dependency;

typedef struct {
    Compiler *c;
    const Place *place;
    Property *p;                        /* [n] the declared properties, in order */
    int n;
    int min, max;                       /* how many properties are written */
    int counted;                        /* count stops here: more make no difference */
    Others *others;                     /* [n_others] */
    int n_others;
    Dependency *dependency;             /* [n_dependencies] */
    int n_dependencies;
    int n_flags;                        /* names of dependentRequired; `flags` has a bit for each */
    int *key, *more;                    /* [n + 1][counted + 1][1 << n_flags], -1: not yet */
    int end;                            /* the address of the closing brace */
} Object;

/* The index of a triple in o->key and o->more. */
static int memo_at(const Object *o, int i, int count, int flags) {
    return ((i * (o->counted + 1) + count) << o->n_flags) + flags;
}

/* Whether a name that has been written needs property i. */
static int is_needed(const Object *o, int i, int flags) {
    for (int k = 0; k < o->n_dependencies; k++) {
        const Dependency *d = &o->dependency[k];
        if (flags >> d->flag & 1 && o->p[i].flag >= 0 && d->needs >> o->p[i].flag & 1) return 1;
    }
    return 0;
}

static int may_skip(const Object *o, int i, int flags) {
    return !o->p[i].required && !is_needed(o, i, flags);
}

/* Whether property i may be written now: each name that it needs has been written or comes
 * later. */
static int may_write(const Object *o, int i, int count, int flags) {
    if (o->p[i].routine < 0 || count >= o->max) return 0;
    for (int k = 0; k < o->n_dependencies; k++) {
        if (o->p[i].flag < 0 || o->dependency[k].flag != o->p[i].flag) continue;
        int missing = o->dependency[k].needs & ~flags;
        for (int j = 0; j < i; j++)
            if (o->p[j].flag >= 0 && missing >> o->p[j].flag & 1) return 0;
    }
    return 1;
}

/* Whether the object may end in front of property i. */
static int may_end(const Object *o, int i, int count, int flags) {
    for (; i < o->n; i++)
        if (!may_skip(o, i, flags)) return 0;
    return count >= o->min;
}

static int more_from(Object *o, int i, int count, int flags);

static int one_more(const Object *o, int count) { return count < o->counted ? count + 1 : count; }

/* A name that is not declared, its colon and its value, then `next`. */
static int other_member(Object *o, const Others *x, int next) {
    Schema *s = o->c->s;
    return put_call(s, x->name, put_range(s, ':', ':', spaced(o->c, put_call(s, x->value, next))));
}

/* The routine of a name of the set (NULL: of any name).  Takes the set over.  In calls a name
 * has no quotes and consists of characters that call.c reads without them. */
static int name_routine(Compiler *c, Strings *names) {
    Schema *s = c->s;
    int routine = new_routine(s), ret = program_ret(s), text;
    if (!program_in_calls(s)) {
        if (names) text = put_strings(s, names, 0, NO_LIMIT, KEY_TEXT, ret);
        else text = put_text(s, 0, NO_LIMIT, KEY_TEXT, ret);
        set_entry(s, routine, put_range(s, '"', '"', text));
        return routine;
    }
    Error why;
    Strings *word = strings_of_pattern("^[$./0-9@A-Z_a-z-]+$", &why);
    Strings *bare = names ? strings_both(names, word, &why) : word;
    set_entry(s, routine, bare ? put_bare(s, bare, ret) : program_fail(s));
    if (bare != word) strings_free(bare);
    strings_free(word);
    strings_free(names);
    return routine;
}

/* Property i: its name, its value, and what follows. */
static int declared_member(Object *o, int i, int count, int flags) {
    const Property *p = &o->p[i];
    int with = p->flag >= 0 ? flags | 1 << p->flag : flags;
    Buf name = {0};
    put_name(o->c, o->place->part[0].schema, "properties", p->name, &name);
    int more = more_from(o, i + 1, one_more(o, count), with);
    int value = spaced(o->c, put_call(o->c->s, p->routine, more));
    int pc = put_literal(o->c->s, name.data, name.len, value);
    buf_free(&name);
    return pc;
}

/* The address in front of a name, which is that of property i, of a later one, or another name. */
static int key_from(Object *o, int i, int count, int flags) {
    int *memo = &o->key[memo_at(o, i, count, flags)], pc = program_fail(o->c->s);
    if (*memo >= 0) return *memo;
    if (i == o->n) {
        if (count >= o->max || !o->n_others) return *memo = pc;
        int next = more_from(o, i, one_more(o, count), flags);
        for (int k = 0; k < o->n_others; k++)
            pc = put_either(o->c->s, pc, other_member(o, &o->others[k], next));
        return *memo = pc;
    }
    if (may_write(o, i, count, flags)) pc = declared_member(o, i, count, flags);
    if (may_skip(o, i, flags)) pc = put_either(o->c->s, pc, key_from(o, i + 1, count, flags));
    return *memo = pc;
}

/* The address behind a value: the object ends, or a comma and key_from follow. */
static int more_from(Object *o, int i, int count, int flags) {
    int *memo = &o->more[memo_at(o, i, count, flags)];
    Schema *s = o->c->s;
    if (*memo >= 0) return *memo;
    int end = may_end(o, i, count, flags) ? o->end : program_fail(s);
    if (i == o->n && !o->n_others) return *memo = end;
    if (i < o->n) {
        int key = spaced(o->c, key_from(o, i, count, flags));
        return *memo = put_either(s, end, put_range(s, ',', ',', key));
    }
    int loop = *memo = put_loop(s, end);            /* known before key_from comes back to it */
    int key = spaced(o->c, key_from(o, i, count, flags));
    set_loop(s, loop, put_range(s, ',', ',', key));
    return loop;
}

/* ---- what the schemas of a place say of a name ---- */

/* Whether unevaluatedProperties: false of the schema `closed` allows the name, because that
 * schema or one that it leads to evaluates it. */
static int is_evaluated(Compiler *c, const Place *p, const cJSON *closed, const char *name) {
    const cJSON *k;
    for (int i = 0; i < p->n; i++) {
        const cJSON *schema = p->part[i].schema;
        if (!evaluates(c, closed, &p->part[i])) continue;
        if (json_field(schema, "additionalProperties")) return 1;
        if (cJSON_GetObjectItemCaseSensitive(json_field(schema, "properties"), name)) return 1;
        cJSON_ArrayForEach(k, json_field(schema, "patternProperties"))
            if (name_matches(c, k, name)) return 1;
    }
    return 0;
}

/* Makes the place of a property's value, whose `part` the caller frees: from each schema what
 * stands under the property's name and under the patterns that match it, or, where there is
 * neither, additionalProperties.  Returns 0 where a schema forbids the property, else 1. */
static int member_place(Compiler *c, const Place *p, const char *name, Place *member) {
    const cJSON *k;
    int allowed = 1;
    *member = (Place){0};
    for (int i = 0; i < p->n; i++) {
        const cJSON *schema = p->part[i].schema, *names = json_field(schema, "propertyNames");
        const cJSON *own = cJSON_GetObjectItemCaseSensitive(json_field(schema, "properties"), name);
        const cJSON *additional = json_field(schema, "additionalProperties");
        int found = own != NULL;
        if (p->part[i].marks & NEGATED) continue;
        if (own) add_part(member, own, 0);
        cJSON_ArrayForEach(k, json_field(schema, "patternProperties")) {
            if (!name_matches(c, k, name)) continue;
            add_part(member, k, 0);
            found = 1;
        }
        if (!found && additional) add_part(member, additional, 0);
        if (cJSON_IsFalse(json_field(schema, "unevaluatedProperties")))
            allowed &= is_evaluated(c, p, schema, name);
        if (names) {
            cJSON *text = cJSON_CreateString(name);
            allowed &= holds(c, text, names, 0);
            cJSON_Delete(text);
        }
    }
    for (int i = 0; i < member->n; i++) allowed &= !cJSON_IsFalse(member->part[i].schema);
    return allowed;
}

/* ---- reading the schemas of a place ---- */

static int find_property(const Object *o, const char *name) {
    for (int i = 0; i < o->n; i++)
        if (!strcmp(o->p[i].name, name)) return i;
    return -1;
}

/* Adds a property unless it is there, and returns its index. */
static int add_property(Object *o, const char *name) {
    int i = find_property(o, name);
    if (i >= 0) return i;
    if (o->n > MAX_PROPERTIES) return 0;        /* read_properties refuses the object for it */
    o->p = xrealloc(o->p, o->n + 1, sizeof *o->p);
    o->p[o->n] = (Property){.name = name, .flag = -1};
    return o->n++;
}

/* Adds the names in dependentRequired, and in dependencies that are lists.  Returns 0, or -1
 * with the error. */
static int read_dependent_names(Object *o, const cJSON *schema) {
    static const char *const kinds[] = {"dependentRequired", "dependencies"};
    const cJSON *item, *k;
    for (int j = 0; j < 2; j++)
        cJSON_ArrayForEach(k, json_field(schema, kinds[j])) {
            if (j && (cJSON_IsObject(k) || cJSON_IsBool(k))) continue;  /* schema.c splits it */
            if (!cJSON_IsArray(k))
                return wrong(o->c, schema, kinds[j], "supported for lists of names only"), -1;
            add_property(o, k->string);
            cJSON_ArrayForEach(item, k)
                if (cJSON_IsString(item)) add_property(o, item->valuestring);
        }
    return 0;
}

/* Adds the names that a schema requires.  only_allowed: only names that the place may have.
 * Returns 0, 1 where a name is required and not allowed, or -1 with the error. */
static int read_required(Object *o, const cJSON *schema, int only_allowed) {
    const cJSON *item, *required = json_field(schema, "required");
    if (required && !cJSON_IsArray(required))
        return wrong(o->c, schema, "required", "must be a list"), -1;
    cJSON_ArrayForEach(item, required) {
        if (!cJSON_IsString(item))
            return wrong(o->c, schema, "required", "must be a list of names"), -1;
        if (only_allowed && !may_have(o->c, o->place, item->valuestring)) return 1;
        int at = add_property(o, item->valuestring);
        o->p[at].required = 1;
    }
    return 0;
}

/* Fills o->p, o->min and o->max: first the names that schemas declare, then the required ones.
 * A schema that is ASIDE adds names only where the place is open.  Returns 0, 1 where nothing
 * satisfies the place, or -1 with the error. */
static int read_properties(Object *o) {
    Compiler *c = o->c;
    const cJSON *item;
    int open = place_is_open(c, o->place);
    for (int i = 0; i < o->place->n; i++) {
        const cJSON *schema = o->place->part[i].schema;
        const cJSON *properties = json_field(schema, "properties");
        int marks = o->place->part[i].marks;
        if (properties && !cJSON_IsObject(properties))
            return wrong(c, schema, "properties", "must be an object"), -1;
        if (marks & NEGATED || (marks & ASIDE && !open)) continue;
        cJSON_ArrayForEach(item, json_field(schema, "propertyOrdering"))
            if (cJSON_GetObjectItemCaseSensitive(properties, item->valuestring))
                add_property(o, item->valuestring);
        cJSON_ArrayForEach(item, properties) add_property(o, item->string);
    }
    for (int i = 0; i < o->place->n; i++) {
        const cJSON *schema = o->place->part[i].schema;
        int marks = o->place->part[i].marks;
        if (marks & NEGATED) continue;
        int bad = read_required(o, schema, marks & ASIDE && !open);
        if (bad || read_dependent_names(o, schema)) return bad ? bad : -1;
        int lo = count_of(c, schema, "minProperties", 0);
        int hi = count_of(c, schema, "maxProperties", NO_LIMIT);
        if (lo > o->min) o->min = lo;
        if (hi < o->max) o->max = hi;
    }
    if (o->n > MAX_PROPERTIES)
        wrong(c, holder_of(o->place, "properties"), "properties",
            "more than 4000 are not supported");
    return c->bad ? -1 : 0;
}

/* The number of a name in dependentRequired; a new name gets the next one. */
static int flag_of(Object *o, const char *name) {
    Property *p = &o->p[find_property(o, name)];
    if (p->flag < 0) p->flag = o->n_flags++;
    return p->flag;
}

/* Fills o->dependency.  Returns 0, or -1 with the error. */
static int read_dependencies(Object *o) {
    static const char *const kinds[] = {"dependentRequired", "dependencies"};
    const cJSON *k, *item;
    for (int i = 0; i < o->place->n; i++)
        for (int j = 0; j < 2; j++)
            cJSON_ArrayForEach(k, json_field(o->place->part[i].schema, kinds[j])) {
                if (!cJSON_IsArray(k)) continue;
                if (o->n_flags + cJSON_GetArraySize(k) >= MAX_FLAGS)
                    return wrong(o->c, o->place->part[i].schema, kinds[j],
                                 "more than 10 names are not supported"), -1;
                Dependency d = {flag_of(o, k->string), 0};
                cJSON_ArrayForEach(item, k)
                    if (cJSON_IsString(item)) d.needs |= 1 << flag_of(o, item->valuestring);
                o->dependency = xrealloc(o->dependency, o->n_dependencies + 1, sizeof d);
                o->dependency[o->n_dependencies++] = d;
            }
    return 0;
}

/* ---- names that no schema declares ---- */

/* Cuts *set (NULL: all strings) with the set `one`, which it takes over.  Returns 0, or -1 with
 * an error about the propertyNames of the schema. */
static int cut(Compiler *c, const cJSON *schema, Strings **set, Strings *one) {
    Error why;
    Strings *was = *set;
    *set = was && one ? strings_both(was, one, &why) : one;
    if (was) strings_free(was);
    if (was && one) strings_free(one);
    if (!*set) return wrong(c, schema, "propertyNames", "too many names"), -1;
    return 0;
}

/* Fills *names with the names that no schema declares (NULL: all).  Returns 0, or -1 with the
 * error. */
static int undeclared_names(const Object *o, Strings **names) {
    *names = NULL;
    if (!o->n) return 0;
    const char **declared = xcalloc(o->n, sizeof *declared);
    for (int i = 0; i < o->n; i++) declared[i] = o->p[i].name;
    Strings *words = strings_of_words(declared, o->n);
    free(declared);
    if (!words)
        return wrong(o->c, holder_of(o->place, "properties"), "properties", "too many names"), -1;
    *names = strings_not(words);
    strings_free(words);
    return 0;
}

/* Cuts *names with the strings among the constants of `of`, if it has any.  Returns 0, or -1
 * with an error about the propertyNames of the schema. */
static int cut_constants(Compiler *c, const cJSON *schema, const cJSON *of, Strings **names) {
    const cJSON *list = json_field(of, "enum");
    const cJSON *v = list ? list->child : json_field(of, "const");
    int n = 0;
    if (!v) return 0;
    const char **words = xcalloc(cJSON_GetArraySize(list) + 2, sizeof *words);
    for (; v; v = next_constant(of, v))
        if (cJSON_IsString(v)) words[n++] = v->valuestring;
    int bad = cut(c, schema, names, strings_of_words(words, n));
    free(words);
    return bad;
}

/* Cuts *names with the strings of min to max characters; as cut_constants. */
static int cut_lengths(Compiler *c, const cJSON *schema, int min, int max, Strings **names) {
    static const char any[] = "(?:.|[\\n\\r\\u2028\\u2029])";
    Buf pattern = {0};
    Error why;
    if (max == NO_LIMIT) buf_printf(&pattern, "^%s{%d,}$", any, min);
    else buf_printf(&pattern, "^%s{%d,%d}$", any, min, max);
    Strings *fit = strings_of_pattern(pattern.data, &why);
    buf_free(&pattern);
    if (!fit) return wrong(c, schema, "propertyNames", why.text), -1;
    return cut(c, schema, names, fit);
}

static int cut_property_names(Compiler *c, const cJSON *schema, const cJSON *rule,
                              Strings **names);

/* Puts the names that `rule` excludes into *others.  Returns 0, or -1 with the error. */
static int excluded_names(Compiler *c, const cJSON *schema, const cJSON *rule, Strings **others) {
    Strings *names = NULL;
    int bad = cut_property_names(c, schema, rule, &names);
    if (!bad) *others = names ? strings_not(names) : strings_of_words(NULL, 0);
    strings_free(names);
    return bad;
}

/* Cuts *names with anyOf, oneOf or not of `rule`: not A and not B excludes what A or B allows.
 * Returns 0, or -1 with the error. */
static int cut_alternatives(Compiler *c, const cJSON *schema, const cJSON *rule,
                            Strings **names) {
    const cJSON *any = json_field(rule, "anyOf"), *one = json_field(rule, "oneOf"), *item;
    const cJSON *not = json_field(rule, "not"), *list = any ? any : one;
    Strings *others = NULL, *neither = NULL;
    int bad = 0;
    if (json_field(rule, "if") || (any && one) || (one && !all_apart(c, one)))
        return wrong(c, schema, "propertyNames", "such alternatives are not supported"), -1;
    cJSON_ArrayForEach(item, list)
        if (!bad && !(bad = excluded_names(c, schema, item, &others)))
            bad = cut(c, schema, &neither, others);
    if (neither && !bad) bad = cut(c, schema, names, strings_not(neither));
    strings_free(neither);
    if (not && !bad && !(bad = excluded_names(c, schema, not, &others)))
        bad = cut(c, schema, names, others);
    return bad;
}

/* Cuts *names with what `rule`, the propertyNames of a schema, says of strings.  Returns 0, or -1
 * with the error. */
static int cut_property_names(Compiler *c, const cJSON *schema, const cJSON *rule,
                              Strings **names) {
    Place name = {0};
    Buf key = {0};
    int min = 0, max = NO_LIMIT, bad = 0;
    add_part(&name, rule, 0);
    int nothing = spread(c, &name);
    if (!nothing && !(types_at(&name) & T_STRING)) {
        wrong(c, schema, "propertyNames", "its type excludes strings, which all names are");
        bad = -1;
    }
    for (int k = 0; k < name.n && !nothing; k++) {
        bad |= cut_alternatives(c, schema, name.part[k].schema, names);
        bad |= cut_constants(c, schema, name.part[k].schema, names);
    }
    if (!nothing) bad |= strings_at(c, &name, names, &min, &max, &key);
    bad |= nothing < 0;
    if (!bad && (nothing || min > max)) bad = cut(c, schema, names, strings_of_words(NULL, 0));
    else if (!bad && (min || max != NO_LIMIT)) bad = cut_lengths(c, schema, min, max, names);
    buf_free(&key);
    free(name.part);
    return bad;
}

/* The members of patternProperties at a place, and the part that each belongs to. */
typedef struct {
    const cJSON *pattern[MAX_PATTERNS];
    const Part *of[MAX_PATTERNS];
    int n;
} Patterns;

/* Whether unevaluatedProperties: false of the schema `closed` allows names that no schema
 * declares and that match the patterns of the mask `which`. */
static int are_evaluated(const Object *o, const cJSON *closed, const Patterns *t, int which) {
    for (int k = 0; k < t->n; k++)
        if (which >> k & 1 && evaluates(o->c, closed, t->of[k])) return 1;
    for (int k = 0; k < o->place->n; k++) {
        const Part *part = &o->place->part[k];
        if (!json_field(part->schema, "additionalProperties")) continue;
        if (evaluates(o->c, closed, part)) return 1;
    }
    return 0;
}

/* Adds to o->others the names that no schema declares and that match exactly the patterns of the
 * mask `which`, unless they are forbidden.  Returns 0, or -1 with the error. */
static int add_others(Object *o, const Patterns *t, int which) {
    Compiler *c = o->c;
    Place value = {0};
    Strings *names;
    int bad = undeclared_names(o, &names), forbidden = 0;
    /* 1. Names and values by the patterns. */
    for (int i = 0; i < t->n && !bad; i++) {
        int matches = which >> i & 1;
        bad = cut_pattern(c, t->pattern[i], NULL, t->pattern[i]->string, !matches, &names);
        if (matches) add_part(&value, t->pattern[i], 0);
    }
    /* 2. Names and values by the other keywords of each schema. */
    for (int i = 0; i < o->place->n && !bad; i++) {
        const Part *part = &o->place->part[i];
        const cJSON *additional = json_field(part->schema, "additionalProperties");
        int matched = 0;
        if (part->marks & NEGATED) continue;
        for (int k = 0; k < t->n; k++) matched |= t->of[k] == part && which >> k & 1;
        if (cJSON_IsFalse(json_field(part->schema, "unevaluatedProperties")))
            forbidden |= !are_evaluated(o, part->schema, t, which);
        if (additional && !matched) add_part(&value, additional, 0);
        if (json_field(part->schema, "propertyNames"))
            bad = cut_property_names(c, part->schema, json_field(part->schema, "propertyNames"),
                                     &names);
    }
    /* 3. Their routines. */
    forbidden |= names && !names->n;
    for (int i = 0; i < value.n; i++) forbidden |= cJSON_IsFalse(value.part[i].schema);
    if (bad || forbidden) {
        strings_free(names);
        free(value.part);
        return bad;
    }
    o->others = xrealloc(o->others, o->n_others + 1, sizeof *o->others);
    int name = name_routine(c, names);
    o->others[o->n_others++] = (Others){name, c->routine_for(c, value)};
    return 0;
}

/* Fills o->others: a kind of names for each set of patterns.  Returns 0, or -1 with the error. */
static int read_others(Object *o) {
    Patterns t = {.n = 0};
    const cJSON *k;
    int bad = 0;
    if (!place_is_open(o->c, o->place)) return 0;
    for (int i = 0; i < o->place->n; i++)
        cJSON_ArrayForEach(k, json_field(o->place->part[i].schema, "patternProperties")) {
            if (o->place->part[i].marks & NEGATED) continue;
            if (t.n == MAX_PATTERNS)
                return wrong(o->c, o->place->part[i].schema, "patternProperties",
                             "more than 4 patterns are not supported"), -1;
            t.pattern[t.n] = k;
            t.of[t.n++] = &o->place->part[i];
        }
    for (int which = 0; which < 1 << t.n && !bad; which++) bad = add_others(o, &t, which);
    return bad;
}

/* Notes an error about the object, at the first schema of the place that has the keyword.
 * Returns -1. */
static int refuse(const Object *o, const char *keyword, const char *what) {
    return wrong(o->c, holder_of(o->place, keyword), keyword, what), -1;
}

/* The routine of a declared property's value; -1: it must not be written, or there is an error. */
static int member_routine(const Object *o, const char *name) {
    Place member;
    int allowed = member_place(o->c, o->place, name, &member);
    if (strlen(name) > MAX_NAME)
        refuse(o, "properties", "names of more than 1000 bytes are not supported");
    if (allowed && !o->c->bad) return o->c->routine_for(o->c, member);
    free(member.part);
    return -1;
}

/* Finds the routine of each declared property.  Returns 0, or -1 with the error. */
static int compile_members(Object *o) {
    for (int i = 0; i < o->n; i++) o->p[i].routine = member_routine(o, o->p[i].name);
    return o->c->bad ? -1 : 0;
}

/* Whether the counts are supported: 0, or -1 with the error.  Names that no schema declares may
 * come twice, which readers count once; so only one of them may be needed to reach the minimum. */
static int check_counts(const Object *o) {
    int n_required = 0;
    for (int i = 0; i < o->n; i++) n_required += o->p[i].required;
    if (o->n_others && o->min > n_required + 1)
        return refuse(o, "minProperties", "so many names that are not declared are not supported");
    if (o->max != NO_LIMIT && o->max > MAX_PROPERTIES)
        return refuse(o, "maxProperties", "above 4000 is not supported");
    return 0;
}


/* Writes the program of an object whose schemas have been read. */
static int put_object(Object *o) {
    Schema *s = o->c->s;
    int fail = program_fail(s);
    put_in_order(o->c, o->p, o->n);
    o->counted = o->max != NO_LIMIT ? o->max : o->min;
    /* Without other names there are at most n properties, and then a larger maximum says
     * nothing. */
    if (o->counted > o->n && !o->n_others && o->max != NO_LIMIT && o->min <= o->n)
        o->counted = o->n;
    int64_t addresses = (int64_t)(o->n + 1) * (o->counted + 1) << o->n_flags;
    const char *what = o->max != NO_LIMIT ? "maxProperties" : "minProperties";
    if (o->n_flags) what = "dependentRequired";
    if (addresses > MAX_CODE) return refuse(o, what, "the schema is too large"), fail;
    o->key = new_memo(addresses);
    o->more = new_memo(addresses);
    o->end = spaced(o->c, put_range(s, '}', '}', program_ret(s)));
    int empty = may_end(o, 0, 0, 0) ? o->end : fail, key = key_from(o, 0, 0, 0);
    if (key != fail) key = spaced(o->c, key);
    return put_range(s, '{', '{', put_either(s, key, empty));
}

int compile_object(Compiler *c, const Place *p) {
    Object o = {.c = c, .place = p, .max = NO_LIMIT};
    int pc = program_fail(c->s);
    int bad = read_properties(&o) || read_dependencies(&o) || compile_members(&o) ||
              read_others(&o) || check_counts(&o);
    if (!bad) pc = put_object(&o);
    free(o.others);
    free(o.dependency);
    free(o.key);
    free(o.more);
    free(o.p);
    return pc;
}
