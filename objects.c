/* objects.c - what a schema says of objects: which names, in which order, how many.  See compile.h. */
#include "compile.h"

#include <stdlib.h>
#include <string.h>

#include "json.h"

#define MAX_PROPERTIES 4000             /* of an object: as many calls stand one in the other */
#define MAX_PATTERNS 4                  /* patternProperties at a place: each doubles the kinds of names */
#define MAX_FLAGS 10                    /* names in dependentRequired */

/* Names that no schema declares, of one kind: the routines of a name and of its value. */
typedef struct {
    int name, value;
} Others;

/* name `flag` must not be written without those of the mask `needs`. */
typedef struct {
    int flag, needs;
} Dependency;

typedef struct {
    Compiler *c;
    const Place *place;
    Property *p;
    int n, min, max;                    /* declared ones; properties to be written */
    int counted;                        /* up to so many are counted */
    Others *others;
    int n_others;
    Dependency *dependency;
    int n_dependencies, n_flags;
    int *key, *more;                    /* places that have been made, by property, count and flags; -1: not yet */
    int end;
} Object;

static int memo_at(const Object *o, int i, int count, int flags) {
    return ((i * (o->counted + 1) + count) << o->n_flags) + flags;
}

/* Whether some name that has been written needs the property. */
static int is_needed(const Object *o, int i, int flags) {
    for (int k = 0; k < o->n_dependencies; k++) {
        const Dependency *d = &o->dependency[k];
        if (flags >> d->flag & 1 && o->p[i].flag >= 0 && d->needs >> o->p[i].flag & 1) return 1;
    }
    return 0;
}

static int may_skip(const Object *o, int i, int flags) { return !o->p[i].required && !is_needed(o, i, flags); }

/* Whether the property may be written now: what it needs has been written, or comes later. */
static int may_write(const Object *o, int i, int count, int flags) {
    if (o->p[i].routine < 0 || count >= o->max) return 0;
    for (int k = 0; k < o->n_dependencies; k++) {
        if (o->p[i].flag < 0 || o->dependency[k].flag != o->p[i].flag) continue;
        for (int j = 0; j < i; j++)
            if (o->p[j].flag >= 0 && o->dependency[k].needs >> o->p[j].flag & 1 && !(flags >> o->p[j].flag & 1)) return 0;
    }
    return 1;
}

static int may_end(const Object *o, int i, int count, int flags) {
    for (; i < o->n; i++)
        if (!may_skip(o, i, flags)) return 0;
    return count >= o->min;
}

static int more_from(Object *o, int i, int count, int flags);

static int one_more(const Object *o, int count) { return count < o->counted ? count + 1 : count; }

/* A name that is not declared, its colon and its value. */
static int other_member(Object *o, const Others *x, int next) {
    Schema *s = o->c->s;
    return put_call(s, x->name, put_range(s, ':', ':', spaced(o->c, put_call(s, x->value, next))));
}

/* The routine of a name of the set (NULL: of all), which it takes over. */
static int name_routine(Compiler *c, Strings *names) {
    Schema *s = c->s;
    int routine = new_routine(s), ret = states_ret(s);
    if (!states_in_calls(s)) {
        int text = names ? put_strings(s, names, 0, NO_LIMIT, KEY_TEXT, ret) : put_text(s, 0, NO_LIMIT, KEY_TEXT, ret);
        set_entry(s, routine, put_range(s, '"', '"', text));
        return routine;
    }
    Error why;
    Strings *word = strings_of_pattern("^[$./0-9@A-Z_a-z-]+$", &why), *bare = names ? strings_both(names, word, &why) : word;
    set_entry(s, routine, bare ? put_bare(s, bare, ret) : states_fail(s));
    if (bare != word) strings_free(bare);
    strings_free(word);
    strings_free(names);
    return routine;
}

/* In front of a name: that of property i or a later one. */
static int key_from(Object *o, int i, int count, int flags) {
    int *memo = &o->key[memo_at(o, i, count, flags)], pc = states_fail(o->c->s);
    if (*memo >= 0) return *memo;
    if (i == o->n) {
        int next = count < o->max && o->n_others ? more_from(o, i, one_more(o, count), flags) : pc;
        for (int k = 0; k < o->n_others && count < o->max; k++) pc = put_either(o->c->s, pc, other_member(o, &o->others[k], next));
        return *memo = pc;
    }
    const Property *p = &o->p[i];
    if (may_write(o, i, count, flags)) {
        int with = p->flag >= 0 ? flags | 1 << p->flag : flags;
        Buf name = {0};
        put_name(o->c, o->place->part[0].schema, "properties", p->name, &name);
        int value = spaced(o->c, put_call(o->c->s, p->routine, more_from(o, i + 1, one_more(o, count), with)));
        pc = put_literal(o->c->s, name.data, name.len, value);
        buf_free(&name);
    }
    if (may_skip(o, i, flags)) pc = put_either(o->c->s, pc, key_from(o, i + 1, count, flags));
    return *memo = pc;
}

/* Behind a value, where property i or a later one comes next. */
static int more_from(Object *o, int i, int count, int flags) {
    int *memo = &o->more[memo_at(o, i, count, flags)];
    Schema *s = o->c->s;
    if (*memo >= 0) return *memo;
    int end = may_end(o, i, count, flags) ? o->end : states_fail(s);
    if (i < o->n) return *memo = put_either(s, end, put_range(s, ',', ',', spaced(o->c, key_from(o, i, count, flags))));
    if (!o->n_others) return *memo = end;
    int loop = *memo = put_loop(s, end);            /* others come round and round */
    set_loop(s, loop, put_range(s, ',', ',', spaced(o->c, key_from(o, i, count, flags))));
    return loop;
}

/* Whether unevaluatedProperties: false of a schema lets names pass that are not in `properties`. */
static int is_half_open(const Compiler *c, const Place *p, const cJSON *closed) {
    for (int i = 0; i < p->n; i++) {
        const cJSON *schema = p->part[i].schema,
            *additional = json_field(schema, "additionalProperties");
        int names = cJSON_GetArraySize(json_field(schema, "patternProperties"));
        if (!(names || additional) || cJSON_IsFalse(additional)) continue;
        if (evaluates(c, closed, &p->part[i])) return 1;
    }
    return 0;
}

/* Names may be written that no schema mentions where one asks for them, or none declares any, and
 * none forbids them. */
int place_is_open(const Compiler *c, const Place *p) {
    int asked = 0, declared = 0;
    for (int i = 0; i < p->n; i++) {
        const cJSON *schema = p->part[i].schema,
            *additional = json_field(schema, "additionalProperties");
        int n_patterns = cJSON_GetArraySize(json_field(schema, "patternProperties"));
        if (p->part[i].marks & NEGATED) continue;
        if (cJSON_IsFalse(additional) && !n_patterns) return 0;
        if (cJSON_IsFalse(json_field(schema, "unevaluatedProperties")) &&
            !is_half_open(c, p, schema)) return 0;
        if (p->part[i].marks & TESTS) continue;
        asked |= (additional && !cJSON_IsFalse(additional)) || n_patterns;
        declared |= cJSON_GetArraySize(json_field(schema, "properties")) > 0;
    }
    return asked || !declared;
}

/* Adds a name to a list unless it is there. */
static int add_name(const char ***names, int n, const char *name) {
    for (int i = 0; i < n; i++)
        if (!strcmp((*names)[i], name)) return n;
    *names = xrealloc(*names, n + 1, sizeof **names);
    (*names)[n] = name;
    return n + 1;
}

int names_at(const Place *p, const char ***names) {
    static const char *const kinds[] = {"dependentRequired", "dependencies"};
    const cJSON *item, *k;
    int n = 0;
    *names = NULL;
    for (int i = 0; i < p->n; i++) {
        const cJSON *schema = p->part[i].schema;
        if (p->part[i].marks & (NEGATED | ASIDE)) continue;
        cJSON_ArrayForEach(item, json_field(schema, "properties"))
            n = add_name(names, n, item->string);
        cJSON_ArrayForEach(item, json_field(schema, "required"))
            if (cJSON_IsString(item)) n = add_name(names, n, item->valuestring);
        for (int j = 0; j < 2; j++)
            cJSON_ArrayForEach(k, json_field(schema, kinds[j])) {
                n = add_name(names, n, k->string);
                for (item = cJSON_IsArray(k) ? k->child : NULL; item; item = item->next)
                    if (cJSON_IsString(item)) n = add_name(names, n, item->valuestring);
            }
    }
    return n;
}

static int is_listed(const cJSON *list, const char *name) {
    const cJSON *item;
    cJSON_ArrayForEach(item, list)
        if (cJSON_IsString(item) && !strcmp(item->valuestring, name)) return 1;
    return 0;
}

/* Whether a schema declares the name, or requires it where another is. */
static int mentions(const cJSON *schema, const char *name) {
    static const char *const kinds[] = {"dependentRequired", "dependencies"};
    const cJSON *k;
    if (cJSON_GetObjectItemCaseSensitive(json_field(schema, "properties"), name)) return 1;
    if (is_listed(json_field(schema, "required"), name)) return 1;
    for (int i = 0; i < 2; i++)
        cJSON_ArrayForEach(k, json_field(schema, kinds[i]))
            if (!strcmp(k->string, name) || is_listed(k, name)) return 1;
    return 0;
}

int may_have(const Compiler *c, const Place *p, const char *name) {
    int found = place_is_open(c, p);
    for (int i = 0; i < p->n; i++) {
        const cJSON *schema = p->part[i].schema;
        const cJSON *own = cJSON_GetObjectItemCaseSensitive(json_field(schema, "properties"), name);
        int is_closed = cJSON_IsFalse(json_field(schema, "additionalProperties"));
        if (p->part[i].marks & NEGATED) continue;
        if (cJSON_IsFalse(own)) return 0;
        if (is_closed && !own && !json_field(schema, "patternProperties")) return 0;
        found |= !(p->part[i].marks & ASIDE) && mentions(schema, name);
    }
    return found;
}

/* Whether unevaluatedProperties: false of one schema allows the name: that schema, or one that it leads to, speaks of it. */
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

/* What holds of a property in all schemas of the place: those under its name, under patterns that match it, and where there
 * are neither additionalProperties.  *allowed: 0 when one of them forbids it. */
static Place member_place(Compiler *c, const Place *p, const char *name, int *allowed) {
    Place member = {0};
    const cJSON *k;
    *allowed = 1;
    for (int i = 0; i < p->n; i++) {
        const cJSON *schema = p->part[i].schema, *own = cJSON_GetObjectItemCaseSensitive(json_field(schema, "properties"), name);
        const cJSON *names = json_field(schema, "propertyNames"), *additional = json_field(schema, "additionalProperties");
        int found = own != NULL;
        if (p->part[i].marks & NEGATED) continue;
        if (own) add_part(&member, own, 0);
        cJSON_ArrayForEach(k, json_field(schema, "patternProperties")) {
            if (!name_matches(c, k, name)) continue;
            add_part(&member, k, 0);
            found = 1;
        }
        if (!found && additional) add_part(&member, additional, 0);
        if (cJSON_IsFalse(json_field(schema, "unevaluatedProperties"))) *allowed &= is_evaluated(c, p, schema, name);
        if (names) {
            cJSON *text = cJSON_CreateString(name);
            *allowed &= holds(c, text, names, 0);
            cJSON_Delete(text);
        }
    }
    for (int i = 0; i < member.n; i++) *allowed &= !cJSON_IsFalse(member.part[i].schema);
    return member;
}

static int find_property(const Object *o, const char *name) {
    for (int i = 0; i < o->n; i++)
        if (!strcmp(o->p[i].name, name)) return i;
    return -1;
}

static int add_property(Object *o, const char *name) {
    int i = find_property(o, name);
    if (i >= 0) return i;
    if (o->n > MAX_PROPERTIES) return 0;        /* which is an error, whatever the others are */
    o->p = xrealloc(o->p, o->n + 1, sizeof *o->p);
    o->p[o->n] = (Property){.name = name, .flag = -1};
    return o->n++;
}

/* The names that the schemas of the place declare or require; and those of ASIDE ones where any
 * name may stand.  1: one of these requires a name that cannot. */
static int read_properties(Object *o) {
    static const char *const kinds[] = {"dependentRequired", "dependencies"};
    Compiler *c = o->c;
    const cJSON *item, *k;
    int open = place_is_open(c, o->place);
    for (int i = 0; i < o->place->n; i++) {
        const cJSON *schema = o->place->part[i].schema, *properties = json_field(schema, "properties");
        if (properties && !cJSON_IsObject(properties)) return wrong(c, schema, "properties", "must be an object"), -1;
        if (o->place->part[i].marks & NEGATED || (o->place->part[i].marks & ASIDE && !open)) continue;
        cJSON_ArrayForEach(item, properties) add_property(o, item->string);
    }
    for (int i = 0; i < o->place->n; i++) {
        const cJSON *schema = o->place->part[i].schema, *required = json_field(schema, "required");
        int aside = o->place->part[i].marks & ASIDE;
        if (o->place->part[i].marks & NEGATED) continue;
        if (required && !cJSON_IsArray(required)) return wrong(c, schema, "required", "must be a list"), -1;
        cJSON_ArrayForEach(item, required) {
            if (!cJSON_IsString(item)) return wrong(c, schema, "required", "must be a list of names"), -1;
            if (aside && !open && !may_have(c, o->place, item->valuestring)) return 1;
            int at = add_property(o, item->valuestring);
            o->p[at].required = 1;
        }
        for (int j = 0; j < 2; j++)
            cJSON_ArrayForEach(k, json_field(schema, kinds[j])) {
                if (j && (cJSON_IsObject(k) || cJSON_IsBool(k))) continue;  /* an alternative now */
                if (!cJSON_IsArray(k)) return wrong(c, schema, kinds[j], "supported for lists of names only"), -1;
                add_property(o, k->string);
                cJSON_ArrayForEach(item, k)
                    if (cJSON_IsString(item)) add_property(o, item->valuestring);
            }
        int lo = count_of(c, schema, "minProperties", 0), hi = count_of(c, schema, "maxProperties", NO_LIMIT);
        if (lo > o->min) o->min = lo;
        if (hi < o->max) o->max = hi;
    }
    if (o->n > MAX_PROPERTIES)
        wrong(c, holder_of(o->place, "properties"), "properties",
            "more than 4000 are not supported");
    return c->bad ? -1 : 0;
}

static int flag_of(Object *o, const char *name) {
    Property *p = &o->p[find_property(o, name)];
    if (p->flag < 0) p->flag = o->n_flags++;
    return p->flag;
}

static int read_dependencies(Object *o) {
    static const char *const kinds[] = {"dependentRequired", "dependencies"};
    const cJSON *k, *item;
    for (int i = 0; i < o->place->n; i++)
        for (int j = 0; j < 2; j++)
            cJSON_ArrayForEach(k, json_field(o->place->part[i].schema, kinds[j])) {
                if (!cJSON_IsArray(k)) continue;
                if (o->n_flags + cJSON_GetArraySize(k) >= MAX_FLAGS)
                    return wrong(o->c, o->place->part[i].schema, kinds[j], "more than 10 names are not supported"), -1;
                Dependency d = {flag_of(o, k->string), 0};
                cJSON_ArrayForEach(item, k)
                    if (cJSON_IsString(item)) d.needs |= 1 << flag_of(o, item->valuestring);
                o->dependency = xrealloc(o->dependency, o->n_dependencies + 1, sizeof d);
                o->dependency[o->n_dependencies++] = d;
            }
    return 0;
}

/* Takes from *set (NULL: all) what is not in one; takes one over.  0, or -1 with the error, which is
 * about the propertyNames of a schema. */
static int cut(Compiler *c, const cJSON *schema, Strings **set, Strings *one) {
    Error why;
    Strings *was = *set;
    *set = was && one ? strings_both(was, one, &why) : one;
    if (was) strings_free(was);
    if (was && one) strings_free(one);
    return *set ? 0 : (wrong(c, schema, "propertyNames", "too many names"), -1);
}

/* The undeclared names that match those patterns of `which` and no others, and their values. */
static int add_others(Object *o, const cJSON **pattern, const Part **of, int n_patterns, int which) {
    Compiler *c = o->c;
    Place value = {0};
    Strings *names = NULL;
    const char **declared = xcalloc(o->n + 1, sizeof *declared);
    int bad = 0, forbidden = 0;
    for (int i = 0; i < o->n; i++) declared[i] = o->p[i].name;
    if (o->n) {
        Strings *words = strings_of_words(declared, o->n);
        names = words ? strings_not(words) : NULL;
        if (!words)
            bad = (wrong(c, holder_of(o->place, "properties"), "properties", "too many names"), -1);
        strings_free(words);
    }
    free(declared);
    for (int i = 0; i < n_patterns && !bad; i++) {
        bad = cut_pattern(c, pattern[i], NULL, pattern[i]->string, !(which >> i & 1), &names);
        if (which >> i & 1) add_part(&value, pattern[i], 0);
    }
    for (int i = 0; i < o->place->n && !bad; i++) {
        const Part *part = &o->place->part[i];
        const cJSON *additional = json_field(part->schema, "additionalProperties"), *asked = json_field(part->schema, "propertyNames");
        int matched = 0;
        if (part->marks & NEGATED) continue;
        for (int k = 0; k < n_patterns; k++) matched |= of[k] == part && which >> k & 1;
        if (cJSON_IsFalse(json_field(part->schema, "unevaluatedProperties"))) {
            int evaluated = 0;
            for (int k = 0; k < n_patterns; k++)
                evaluated |= which >> k & 1 && evaluates(c, part->schema, of[k]);
            for (int k = 0; k < o->place->n; k++) {
                const Part *other = &o->place->part[k];
                if (!json_field(other->schema, "additionalProperties")) continue;
                evaluated |= evaluates(c, part->schema, other);
            }
            forbidden |= !evaluated;
        }
        if (additional && !matched) add_part(&value, additional, 0);
        if (asked) {                    /* a schema of strings */
            Place name = {0};
            Buf key = {0};
            int min = 0, max = NO_LIMIT;
            add_part(&name, asked, 0);
            int nothing = spread(c, &name);
            for (int k = 0; k < name.n && !nothing; k++) {
                const cJSON *list = json_field(name.part[k].schema, "enum"), *v = list ? list->child : json_field(name.part[k].schema, "const");
                static const char *const alternatives[] = {"anyOf", "oneOf", "not", "if", NULL};
                for (const char *const *a = alternatives; *a; a++)
                    if (json_field(name.part[k].schema, *a)) bad = (wrong(c, part->schema, "propertyNames", "alternatives are not supported"), -1);
                if (!v) continue;
                const char **words = xcalloc(cJSON_GetArraySize(list) + 2, sizeof *words);
                int n = 0;
                for (; v; v = list ? v->next : NULL)
                    if (cJSON_IsString(v)) words[n++] = v->valuestring;
                bad |= cut(c, part->schema, &names, strings_of_words(words, n));
                free(words);
            }
            if (!nothing) bad |= strings_at(c, &name, &names, &min, &max, &key);
            bad |= nothing < 0;
            if (!bad && (nothing || min > max))
                bad |= cut(c, part->schema, &names, strings_of_words(NULL, 0));
            else if (!bad && (min || max != NO_LIMIT)) {
                Buf length = {0};
                Error why;
                if (max == NO_LIMIT) buf_printf(&length, "^(?:.|[\\n\\r\\u2028\\u2029]){%d,}$", min);
                else buf_printf(&length, "^(?:.|[\\n\\r\\u2028\\u2029]){%d,%d}$", min, max);
                Strings *fit = strings_of_pattern(length.data, &why);
                bad = fit ? cut(c, part->schema, &names, fit)
                    : (wrong(c, part->schema, "propertyNames", why.text), -1);
                buf_free(&length);
            }
            buf_free(&key);
            free(name.part);
        }
    }
    forbidden |= names && !names->n;
    for (int i = 0; i < value.n; i++) forbidden |= cJSON_IsFalse(value.part[i].schema);
    if (bad || forbidden) {
        strings_free(names);
        free(value.part);
        return bad;
    }
    o->others = xrealloc(o->others, o->n_others + 1, sizeof *o->others);
    int name = name_routine(c, names);
    o->others[o->n_others++] = (Others){name, routine_for(c, value)};
    return 0;
}

static int read_others(Object *o) {
    const cJSON *pattern[MAX_PATTERNS + 1], *k;
    const Part *of[MAX_PATTERNS + 1];
    int n = 0, bad = 0;
    if (!place_is_open(o->c, o->place)) return 0;
    for (int i = 0; i < o->place->n; i++)
        cJSON_ArrayForEach(k, json_field(o->place->part[i].schema, "patternProperties")) {
            if (o->place->part[i].marks & NEGATED) continue;
            if (n == MAX_PATTERNS) return wrong(o->c, o->place->part[i].schema, "patternProperties", "more than 4 patterns are not supported"), -1;
            pattern[n] = k;
            of[n++] = &o->place->part[i];
        }
    for (int which = 0; which < 1 << n && !bad; which++) bad = add_others(o, pattern, of, n, which);
    return bad;
}

int compile_object(Compiler *c, const Place *p) {
    Object o = {.c = c, .place = p, .max = NO_LIMIT};
    int pc = states_fail(c->s), bad = read_properties(&o) || read_dependencies(&o);
    for (int i = 0; i < o.n && !bad; i++) {
        int allowed;
        Place member = member_place(c, p, o.p[i].name, &allowed);
        if (strlen(o.p[i].name) > 1000)
            wrong(c, holder_of(p, "properties"), "properties",
                "names of more than 1000 bytes are not supported");
        o.p[i].routine = -1;
        if (allowed && !c->bad) o.p[i].routine = routine_for(c, member);
        else free(member.part);
    }
    bad = bad || c->bad || read_others(&o);
    int n_required = 0;
    for (int i = 0; i < o.n; i++) n_required += o.p[i].required;
    if (!bad && o.n_others && o.min > n_required + 1)           /* their names may come twice */
        bad = (wrong(c, holder_of(p, "minProperties"), "minProperties",
            "so many names that are not declared are not supported"), -1);
    if (!bad && o.max != NO_LIMIT && o.max > MAX_PROPERTIES)
        bad = (wrong(c, holder_of(p, "maxProperties"), "maxProperties",
            "above 4000 is not supported"), -1);
    put_in_order(c, o.p, o.n);
    o.counted = o.max != NO_LIMIT ? o.max : o.min;
    if (o.counted > o.n && !o.n_others) o.counted = o.max != NO_LIMIT && o.min <= o.n ? o.n : o.counted;
    int64_t places = (int64_t)(o.n + 1) * (o.counted + 1) << o.n_flags;
    const char *what = o.n_flags ? "dependentRequired" : o.max != NO_LIMIT ? "maxProperties"
        : "minProperties";
    if (!bad && places > MAX_CODE)
        bad = (wrong(c, holder_of(p, what), what, "the schema is too large"), -1);
    if (!bad) {
        o.key = memset(xmalloc((size_t)places * sizeof(int)), 0xff, (size_t)places * sizeof(int));
        o.more = memset(xmalloc((size_t)places * sizeof(int)), 0xff, (size_t)places * sizeof(int));
        o.end = spaced(c, put_range(c->s, '}', '}', states_ret(c->s)));
        int first = may_end(&o, 0, 0, 0) ? o.end : pc, key = key_from(&o, 0, 0, 0);
        pc = put_range(c->s, '{', '{', put_either(c->s, key == pc ? key : spaced(c, key), first));
    }
    free(o.others);
    free(o.dependency);
    free(o.key);
    free(o.more);
    free(o.p);
    return pc;
}
