/* pattern.h - regular expressions, as JSON schemas have them in `pattern`: text to a tree. */
#ifndef PATTERN_H
#define PATTERN_H

#include "util.h"

typedef enum { R_EMPTY, R_CLASS, R_CAT, R_ALT, R_REPEAT, R_BEGIN /* ^ */, R_END /* $ */,
               R_EDGE /* \b, with a min of -1 \B */,
               R_AHEAD /* (?=a), with a min of -1 (?!a); max 1: at the front behind a ^ */ } RegexKind;

typedef struct Regex {
    RegexKind kind;
    struct Regex *a, *b;                /* R_CAT: a, then b; R_ALT: either; R_REPEAT: a */
    int min, max;                       /* R_REPEAT; max -1: no end */
    int (*range)[2], n;                 /* R_CLASS: ranges of characters, by number, apart from each other */
    struct Regex *made;                 /* the node that was made before */
} Regex;

typedef struct {
    Regex *root, *made;                 /* made: the node that was made last */
} Pattern;

/* What regular expressions of JavaScript and Python have in common, without groups that look behind
 * or are referred to; where they differ, JavaScript's with the flag u count.  Chains of R_CAT and
 * R_ALT grow to the left.  Returns 0, or -1 with err; pattern_free either way. */
int pattern_parse(const char *source, Pattern *out, Error *err);
void pattern_free(Pattern *p);

#endif
