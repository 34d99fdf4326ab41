/* pattern.h - parses the regular expressions that JSON schemas have in `pattern`. */
#ifndef PATTERN_H
#define PATTERN_H

#include "util.h"

/* What a node of the tree matches. */
typedef enum {
    R_EMPTY,                            /* the empty string */
    R_CLASS,                            /* one character of the ranges */
    R_CAT,                              /* a, then b */
    R_ALT,                              /* a or b */
    R_REPEAT,                           /* a, from min to max times; max -1: any number */
    R_BEGIN,                            /* ^ */
    R_END,                              /* $ */
    R_EDGE,                             /* \b; with a min of -1 \B */
    R_AHEAD                             /* (?=a); with a min of -1 (?!a).  A max of 1, which
                                         * stringset.c sets, means: right behind a leading ^ */
} RegexKind;

typedef struct Regex {
    RegexKind kind;
    struct Regex *a, *b;
    int min, max;
    int (*range)[2], n;                 /* [n] first and last code points: ascending, with gaps */
    struct Regex *made;                 /* the node that was made before this one */
} Regex;

typedef struct {
    Regex *root, *made;                 /* made: the node that was made last, to free all nodes */
} Pattern;

/* Parses the regular expressions that JavaScript and Python have in common, except lookbehinds
 * and references to groups.  Where the two languages differ, JavaScript with the flag u counts.
 * Chains of R_CAT and R_ALT grow to the left, ((a b) c) d.  Returns 0, or -1 with err, a clause
 * about the pattern; the caller calls pattern_free in both cases. */
int pattern_parse(const char *source, Pattern *out, Error *err);
void pattern_free(Pattern *p);

#endif
