/* compile.h - what the files share that compile a schema: schema.c (places of schemas that hold at once, and their
 * alternatives), formats.c (strings), constants.c (numbers, enum and const), objects.c, arrays.c.
 *
 * Each compile_… function returns the place of the program (states.h) that writes such a value and then returns, or
 * states_fail where nothing satisfies it or an error has been noted. */
#ifndef COMPILE_H
#define COMPILE_H

#include <cjson/cJSON.h>

#include "json.h"
#include "numbers.h"
#include "states.h"

#define MAX_DEPTH 200                   /* of places inside of places */
#define N_BUCKETS 1024

/* Keywords of a schema that have been taken care of, and whether it is negated.  Three bits are
 * inherited by all that a schema names: TESTS, it stands in `if` or `not` and closes no object or
 * array to what it does not mention; DENIED, it comes out of something negated and evaluates nothing
 * in the sense of unevaluatedProperties; and ASIDE, it is an alternative of oneOf that must not hold,
 * and nor does it declare properties. */
enum { REF = 1, ALL_OF = 2, ANY_OF = 4, ONE_OF = 8, IF = 16, NOT = 32, NULLABLE = 64, NEGATED = 128,
       LEAF = 256, DEPENDENT = 512, TESTS = 1024, DENIED = 2048, ASIDE = 4096,
       INHERITED = TESTS | DENIED | ASIDE };

typedef struct {
    const cJSON *schema;
    int done;
} Part;

typedef struct {
    Part *part;
    int n;
} Place;

typedef struct {
    char *key;
    int routine;                        /* -1: there are none */
} Known;

/* The set of strings that a key stands for. */
typedef struct {
    char *key;
    Strings *set;                       /* NULL: all */
} KnownStrings;

/* The values of an enum, each by a text that is the same for the same value, sorted. */
typedef struct {
    const cJSON *list;
    char **text;
    int n;
} KnownValues;

/* A place, its routine, and the next one that has the same hash, + 1. */
typedef struct {
    Place place;
    int routine, next;
} KnownPlace;

/* Where a $ref leads. */
typedef struct {
    const char *ref;                    /* its text, as it lies in the document */
    const cJSON *there;
} Resolved;

/* A schema that schema.c makes, and from what. */
typedef struct {
    const void *from, *beside;
    int bits;
    cJSON *schema;
} Made;

typedef struct {
    Schema *s;
    const cJSON *root;
    Made *made;                         /* [n_made] */
    int n_made;
    KnownPlace *place;                  /* [n_places] those that have a routine */
    int bucket[N_BUCKETS];              /* and the first of those that have the same hash, + 1 */
    int n_places, depth, bad;
    Resolved *resolved;                 /* [N_BUCKETS + 1] one of each hash, the last about the document */
    const cJSON *checked[N_BUCKETS];    /* schemas whose keywords have been checked, one of each hash */
    int left;                           /* so many schemas more are compared */
    Known *known;                       /* routines by what they write: strings with the same bounds are one */
    int n_known;
    KnownStrings *strings;              /* with which constants and names have been compared */
    int n_strings;
    KnownValues *values;                /* of long enums that have been searched */
    int n_values;
    int space;                          /* the routine of white space */
    Buf prefix;                         /* in front of errors: whose schema it is */
    Error *err;
} Compiler;

/* Types of values; T_FRACTION: a number that is not whole. */
enum { T_STRING = 1, T_FRACTION = 2, T_INTEGER = 4, T_BOOLEAN = 8, T_NULL = 16, T_ARRAY = 32, T_OBJECT = 64,
       T_ALL = 127 };

/* A member of an object: one that a schema declares, or one of a constant. */
typedef struct {
    const char *name;
    int at;                             /* its place in the schema */
    int required, routine;              /* of a declared one; -1: it must not be written */
    int flag;                           /* dependentRequired names it: its number there, -1 */
    const cJSON *value;                 /* of a constant's */
} Property;

/* ---- schema.c ---- */

/* Notes the error about a keyword of a schema (NULL: about the schema itself) and returns states_fail.  The first one counts. */
int wrong(Compiler *c, const cJSON *schema, const char *keyword, const char *what);

/* The schema of the place that has the keyword; where none has, the first. */
const cJSON *holder_of(const Place *p, const char *keyword);

/* Whether a node is in the tree. */
int is_inside(const cJSON *tree, const cJSON *node);

static inline int is_nullable(const cJSON *schema) {
    return cJSON_IsTrue(json_field(schema, "nullable"));
}

/* Where a $ref leads, whose text lies in the document; NULL: nowhere in it. */
const cJSON *resolve(const Compiler *c, const char *ref);

/* Whether `from` asks the same value to satisfy `to`, by $ref, allOf and their like. */
int leads_to(const Compiler *c, const cJSON *from, const cJSON *to);

/* Whether what a part says of names or items counts for unevaluatedProperties or unevaluatedItems of
 * a schema. */
int evaluates(const Compiler *c, const cJSON *closed, const Part *part);

/* Adds a schema to the place, unless it is there.  A copy, whose `part` the caller frees. */
void add_part(Place *p, const cJSON *schema, int done);
Place copy_place(const Place *p);

/* Takes what allOf and $ref name into the place: 0; 1 when nothing satisfies it; -1 with the error. */
int spread(Compiler *c, Place *p);

/* The routine that writes what the place allows.  It takes the place over. */
int routine_for(Compiler *c, Place p);

/* The place of white space, and then next; in calls none is written. */
static inline int spaced(Compiler *c, int next) { return states_in_calls(c->s) ? next : put_call(c->s, c->space, next); }

/* ---- keywords.c ---- */

/* Whether a word is in a list that ends with NULL. */
int is_in(const char *word, const char *const *list);

/* Whether a keyword says something to people, or to other programs, and nothing about the value. */
int is_note(const char *keyword);

/* Whether it says something about the value. */
int is_keyword(const char *name);

/* Those that do so of values of one type alone, a list that ends with NULL: T_OBJECT, T_ARRAY,
 * T_STRING, or, for numbers, T_INTEGER | T_FRACTION. */
const char *const *keywords_of(int type);

/* 0, or -1 with the error where the schema has a keyword that is not acted upon, or whose value is
 * not what it must be. */
int check_keywords(Compiler *c, const cJSON *schema);

/* A keyword's whole number from 0, or `otherwise` where it is missing. */
int count_of(Compiler *c, const cJSON *schema, const char *name, int otherwise);

/* The types that a `type` names, 0: it is no such keyword; and the names of all types in a mask, at
 * the end of a list. */
int mask_of(const cJSON *type);
void add_type_names(int mask, cJSON *list);

/* ---- formats.c ---- */

/* Adds what a regular expression asks for to *set (NULL: all strings); `not`: its opposite.  0, or -1 with the error. */
int cut_pattern(Compiler *c, const cJSON *schema, const char *keyword, const char *source, int not, Strings **set);

/* The strings of the place as a set, NULL: all, which the caller frees; their lengths in *min, *max; and a text in *key that
 * is the same for the same strings.  set NULL: only the others.  0, or -1 with the error. */
int strings_at(Compiler *c, const Place *p, Strings **set, int *min, int *max, Buf *key);

/* Whether a format says what a value is for, and nothing about how it is written. */
int is_annotation(const char *format);

int compile_string(Compiler *c, const Place *p);

/* ---- constants.c ---- */

/* The type of a value. */
int type_of_value(const cJSON *v);

/* A number with all of its digits: 0, or -1 when it has too many. */
int decimal_of(const cJSON *v, Decimal *out);

/* Whether two values are the same, numbers by their worth. */
int same_value(const cJSON *a, const cJSON *b);

/* Frees what was kept to compare values with. */
void free_known_values(Compiler *c);

/* The first value of a schema's enum or const, NULL: it has none; and the one after another. */
const cJSON *constants_of(const cJSON *schema);
const cJSON *next_constant(const cJSON *schema, const cJSON *v);

/* Takes the bounds and multipleOf of a schema into the range.  0, or -1 with the error. */
int add_range(Compiler *c, const cJSON *schema, Range *r);

/* Numbers of the range, without those that the negated parts of the place name. */
int compile_number(Compiler *c, const Place *p, Range r);

/* Does the value satisfy the schema; all schemas of the place?  Does a name match a pattern of patternProperties? */
int holds(Compiler *c, const cJSON *v, const cJSON *schema, int depth);
int place_holds(Compiler *c, const Place *p, const cJSON *v);
int name_matches(Compiler *c, const cJSON *patterns, const char *name);

/* Whether no two schemas of a list have a value in common, as far as that can be told; and whether
 * nothing that is written at the place, whose values are of the types in the mask, satisfies the
 * schema. */
int all_apart(Compiler *c, const cJSON *list);
int never_holds(Compiler *c, const Place *p, const cJSON *schema, int mask);

/* Adds a name and its colon, or a value, to a literal in the notation of what is written. */
void put_name(Compiler *c, const cJSON *schema, const char *keyword, const char *name, Buf *out);
void put_constant(Compiler *c, const cJSON *schema, const cJSON *v, Buf *out);

/* Brings members into the order in which they are written. */
void put_in_order(const Compiler *c, Property *p, int n);

/* The values of the enum or const of one schema of the place that satisfy all of them. */
int compile_constants(Compiler *c, const Place *p, const cJSON *schema);

/* ---- objects.c, arrays.c ---- */

/* Whether names may be written that no schema of the place mentions; those that are mentioned, as a
 * list that the caller frees; and whether a name may be written. */
int place_is_open(const Compiler *c, const Place *p);
int names_at(const Place *p, const char ***names);
int may_have(const Compiler *c, const Place *p, const char *name);

int compile_object(Compiler *c, const Place *p);
int compile_array(Compiler *c, const Place *p);

#endif
