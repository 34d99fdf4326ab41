/* compile.h - what the files share that compile a schema into a program (program.h).
 *
 * What is compiled is a *place*: a list of schemas that one value must satisfy together, some of
 * them negated.  A compile_ function takes a place and returns the address of instructions that
 * write a value of one type and then return; program_fail where nothing satisfies the place, or
 * where it has noted an error.
 *
 * The files stand below in their order, the lowest first: each calls only those above it in this
 * header.  At the top of all is schema.c, which splits places into alternatives. */
#ifndef COMPILE_H
#define COMPILE_H

#include <cjson/cJSON.h>

#include "json.h"
#include "numbers.h"
#include "program.h"

/* Limit of places inside of places.  It bounds the recursion, and was chosen by judgement. */
#define MAX_DEPTH 200
#define N_BUCKETS 1024                  /* of each hash table below */

/* The marks of a schema in a place: the bits of Part.marks.  (A session's Mark is something else:
 * cache.h.) */
enum {
    /* A keyword of the schema has been replaced, by other schemas of the place or by
     * alternatives. */
    REF = 1, ALL_OF = 2, ANY_OF = 4, ONE_OF = 8, IF = 16, NOT = 32, NULLABLE = 64, DEPENDENT = 512,
    NEGATED = 128,                      /* the value must not satisfy the schema */
    LEAF = 256,                         /* with NEGATED: is not split further; the compile_ function
                                         * of the type negates its one keyword */

    /* Marks that are inherited by every schema that a schema names. */
    TESTS = 1024,                       /* stands in `if` or `not`: does not close objects and
                                         * arrays to what it does not mention */
    DENIED = 2048,                      /* comes out of something negated: evaluates nothing, in the
                                         * sense of unevaluatedProperties */
    ASIDE = 4096,                       /* is an alternative of oneOf that must not hold: declares
                                         * no properties.  make_types needs all higher bits */
    INHERITED = TESTS | DENIED | ASIDE
};

typedef struct {
    const cJSON *schema;                /* borrowed, of the document or of Compiler.made */
    int marks;
} Part;

/* Schemas that one value must satisfy together, in the order in which their properties are
 * written. */
typedef struct {
    Part *part;                         /* [n] */
    int n;
} Place;

/* The routine of the strings that a key (strings_at) describes. */
typedef struct {
    char *key;
    int routine;                        /* -1: there are no such strings */
} Known;

/* The set of strings that a key describes. */
typedef struct {
    char *key;
    Strings *set;                       /* NULL: all strings */
} KnownStrings;

/* The values of an enum as sorted texts, the same text for the same value (values.c). */
typedef struct {
    const cJSON *list;
    char **text;                        /* [n] */
    int n;
} KnownValues;

/* A place that is or has been compiled, and its routine. */
typedef struct {
    Place place;
    int routine;
    int next;                           /* the next index of the same hash + 1, 0: none */
} KnownPlace;

/* Where a $ref leads. */
typedef struct {
    const char *ref;                    /* the address of its text in the document */
    const cJSON *there;                 /* NULL: nowhere */
} Resolved;

/* A schema that schema.c has made of nodes of other schemas, so that the same nodes give it
 * again. */
typedef struct {
    const void *from, *beside;
    int bits;
    cJSON *schema;
} Made;

/* What one compilation knows.  All that it holds but the program ends with close_compiler. */
typedef struct Compiler Compiler;
struct Compiler {
    Schema *s;                          /* the program */

    /* The routine that writes a value of the place, compiled once for equal places.  Takes p.part
     * over.  The function stands in schema.c, which calls objects.c and arrays.c; these call it for
     * the places inside of their own.  A call up the order of the files would close a circle, so
     * this one goes through a pointer. */
    int (*routine_for)(Compiler *c, Place p);

    const cJSON *root;                  /* the document, borrowed */
    int bad;                            /* 1: an error has been noted in *err */
    Error *err;
    Buf prefix;                         /* begins each error: which tool's schema it is about */
    int space;                          /* the routine of white space */
    int depth;                          /* places that are being compiled now */

    Made *made;                         /* [n_made] */
    int n_made;
    KnownPlace *place;                  /* [n_places] */
    int n_places;
    int bucket[N_BUCKETS];              /* the first index in `place` of each hash + 1, 0: none */

    /* Caches of what would be slow to find again. */
    Resolved *resolved;                 /* [N_BUCKETS + 1] the last $ref of each hash; the last one
                                         * is about the document, see find_ref */
    const cJSON *checked[N_BUCKETS];    /* the last schema of each hash that check_keywords saw */
    Known *known;                       /* [n_known] */
    int n_known;
    KnownStrings *strings;              /* [n_strings] that constants and names were held against */
    int n_strings;
    KnownValues *values;                /* [n_values] of long enums */
    int n_values;
    int left;                           /* comparisons of schemas that all_apart may still make */
};

/* The types of values, as bits; T_FRACTION is a number that is not whole. */
enum { T_STRING = 1, T_FRACTION = 2, T_INTEGER = 4, T_BOOLEAN = 8, T_NULL = 16, T_ARRAY = 32,
       T_OBJECT = 64, T_ALL = 127 };

/* A member of an object, which a schema declares or a constant holds. */
typedef struct {
    const char *name;
    int at;                             /* its index in the schema's order */
    /* Only of a member that a schema declares: */
    int required;
    int routine;                        /* of its value; -1: it must not be written */
    int flag;                           /* its number in dependentRequired (objects.c), -1: none */
    /* Only of a member of a constant: */
    const cJSON *value;
} Property;

/* ---- document.c ---- */

/* Notes an error about a keyword of a schema (keyword NULL: about the schema itself), unless one
 * has been noted before.  Returns program_fail. */
int wrong(Compiler *c, const cJSON *schema, const char *keyword, const char *what);

/* Adds the JSON pointer of a schema and returns 1.  For a schema that make_schema (schema.c) made,
 * adds the pointer of the node from which that was made, and returns 0. */
int add_pointer(const Compiler *c, const cJSON *schema, Buf *path);

/* Whether the node is the tree or in it. */
int is_inside(const cJSON *tree, const cJSON *node);

/* What a $ref names; NULL: nothing in the document.  ref: its text in the document itself, as the
 * address says in which part of the document it stands. */
const cJSON *resolve(const Compiler *c, const char *ref);

#define BAD_REF "must lead to a place in this document, by JSON pointer, $anchor or $id"

/* Whether `from` applies `to` to the same value, by $ref, allOf and the like, at any depth. */
int leads_to(const Compiler *c, const cJSON *from, const cJSON *to);

/* ---- values.c ---- */

/* The type of a value, one of the T_ bits. */
int type_of_value(const cJSON *v);

/* A number with all of its digits.  Returns 0, or -1 where it has too many (decimal_read). */
int decimal_of(const cJSON *v, Decimal *out);

/* Whether two values are equal; numbers are compared by their value, so that 1 equals 1.0. */
int same_value(const cJSON *a, const cJSON *b);

/* The text of true, false or null. */
const char *text_of_word(const cJSON *v);

/* Whether a value is in an enum (list). */
int is_among(Compiler *c, const cJSON *list, const cJSON *v);

/* Whether an object has all members that a list names. */
int has_all(const cJSON *object, const cJSON *names);

/* The first value of a schema's enum or const, NULL: it has neither.  The value behind v among
 * them, NULL: v is the last. */
const cJSON *constants_of(const cJSON *schema);
const cJSON *next_constant(const cJSON *schema, const cJSON *v);

/* ---- keywords.c ---- */

/* Whether a keyword says something to people, or to other programs, and nothing about the value. */
int is_note(const char *keyword);

/* Whether a keyword is acted upon, because it says something about the value. */
int is_keyword(const char *name);

/* The keywords that say something of values of one type alone, as a list that ends with NULL.
 * type: T_OBJECT, T_ARRAY, T_STRING, or T_INTEGER | T_FRACTION for numbers. */
const char *const *keywords_of(int type);

/* Returns 0, or -1 with the error where the schema has an unknown keyword, or a keyword with a
 * value of the wrong kind. */
int check_keywords(Compiler *c, const cJSON *schema);

/* A keyword's count (a whole number from 0), or `otherwise` where the keyword is missing.
 * NO_LIMIT for a maximum that no value can reach.  Notes an error for anything else. */
int count_of(Compiler *c, const cJSON *schema, const char *name, int otherwise);

/* The mask of the types that the value of a `type` names; 0 where it names something else. */
int mask_of(const cJSON *type);

/* Adds the names of all types in the mask to the end of a list. */
void add_type_names(int mask, cJSON *list);

static inline int is_nullable(const cJSON *schema) {
    return cJSON_IsTrue(json_field(schema, "nullable"));
}

/* ---- places.c ---- */

/* A copy of the place, whose `part` the caller frees. */
Place copy_place(const Place *p);

/* Inserts a schema into the place at index `at`, unless it is there.  Returns the index at which
 * the next schema is to be inserted. */
int put_part(Place *p, int at, const cJSON *schema, int marks);

/* Adds a schema to the end of the place, unless it is there. */
void add_part(Place *p, const cJSON *schema, int marks);

/* The first schema of the place that has the keyword; where none has it, the first of all. */
const cJSON *holder_of(const Place *p, const char *keyword);

/* Whether the names or items that a schema of the place (part) mentions count as evaluated for
 * unevaluatedProperties or unevaluatedItems of the schema `closed`. */
int evaluates(const Compiler *c, const cJSON *closed, const Part *part);

/* Adds the schemas that allOf and $ref name to the place, and removes those that say nothing.
 * Returns 0, 1 where nothing satisfies the place, or -1 with the error. */
int spread(Compiler *c, Place *p);

/* The mask of the types that all schemas of the place admit. */
int types_at(const Place *p);

/* Whether names may be written that no schema of the place mentions. */
int place_is_open(const Compiler *c, const Place *p);

/* Lists the names that schemas of the place mention, in an array that the caller frees (the
 * names are borrowed).  Returns how many. */
int names_at(const Place *p, const char ***names);

/* Whether a member of that name may be written. */
int may_have(const Compiler *c, const Place *p, const char *name);

/* ---- strings.c ---- */

/* Cuts *set (NULL: all strings) with the strings that a regular expression (source) matches, or
 * with all others (not).  Takes *set over and replaces it.  Returns 0, or -1 with an error about
 * the keyword of the schema. */
int cut_pattern(Compiler *c, const cJSON *schema, const char *keyword, const char *source, int not,
                Strings **set);

/* Cuts *set (NULL: all strings) with the patterns and formats of the place; the caller frees
 * it.  Narrows *min and *max to the lengths in characters.  Adds to *key a text that is the same
 * only for the same strings.  set NULL: only *min, *max and *key.  Returns 0, or -1 with the
 * error. */
int strings_at(Compiler *c, const Place *p, Strings **set, int *min, int *max, Buf *key);

/* Whether a format only says what a value is for, and nothing about its characters. */
int is_annotation(const char *format);

/* Strings of the place. */
int compile_string(Compiler *c, const Place *p);

/* ---- ranges.c ---- */

/* Narrows the range by the bounds and multipleOf of a schema.  Returns 0, or -1 with the error. */
int add_range(Compiler *c, const cJSON *schema, Range *r);

/* Numbers of the range, without those that negated constants of the place exclude. */
int compile_number(Compiler *c, const Place *p, Range r);

/* ---- holds.c ---- */

/* Whether the value satisfies the schema.  depth: schemas around this one, 0 for the first. */
int holds(Compiler *c, const cJSON *v, const cJSON *schema, int depth);

/* Whether the value satisfies the place. */
int place_holds(Compiler *c, const Place *p, const cJSON *v);

/* Whether a name matches the pattern that is the name of `pattern`, a member of
 * patternProperties. */
int name_matches(Compiler *c, const cJSON *pattern, const char *name);

/* ---- apart.c ---- */

/* Whether no two schemas of the list have a value in common.  0 also where that cannot be told. */
int all_apart(Compiler *c, const cJSON *list);

/* Whether no value of the place, of the types in the mask, satisfies the schema.  0 also where that
 * cannot be told. */
int never_holds(Compiler *c, const Place *p, const cJSON *schema, int mask);

/* ---- constants.c ---- */

/* Adds a name and its colon to a literal, as JSON or in the notation of calls.  Notes an error
 * about the keyword where a call cannot hold the name. */
void put_name(Compiler *c, const cJSON *schema, const char *keyword, const char *name, Buf *out);

/* Adds a value to a literal, as JSON or in the notation of calls. */
void put_constant(Compiler *c, const cJSON *schema, const cJSON *v, Buf *out);

/* Sorts members into the order in which they are written. */
void put_in_order(const Compiler *c, Property *p, int n);

/* The values of the enum or const of `schema`, one of the place, that satisfy the whole place. */
int compile_constants(Compiler *c, const Place *p, const cJSON *schema);

/* ---- objects.c, arrays.c ---- */

/* White space and then `next`; in calls, which have no white space, just `next`. */
static inline int spaced(Compiler *c, int next) {
    return program_in_calls(c->s) ? next : put_call(c->s, c->space, next);
}

/* Objects and arrays of the place. */
int compile_object(Compiler *c, const Place *p);
int compile_array(Compiler *c, const Place *p);

#endif
