/* stringset.h - sets of strings, as deterministic automata over characters.  They say what
 * `pattern`, `format` and their like allow together.
 *
 * A set is made from a regular expression, from words, as the intersection of two sets, or as
 * the complement of a set.  Characters are Unicode code points; no string holds NUL or
 * surrogates. */
#ifndef STRINGSET_H
#define STRINGSET_H

#include "util.h"

/* An automaton.  Characters that lead to the same state everywhere are one class.  From every state
 * some way leads to a state that accepts. */
typedef struct {
    int n;                              /* states; state 0 is the first; 0 states: the empty set */
    int n_classes;
    int n_edges;
    int *edge;                          /* [n_edges + 1] ascending, from 0 to 0x110000 */
    int *class_of;                      /* [n_edges] the class of edge[i] to edge[i + 1] - 1 */
    int *to;                            /* [n][n_classes] the next state, -1: none */
    uint8_t *accepts;                   /* [n] whether a string may end there */
} Strings;

/* Each function that makes a set returns a new one, which the caller frees with strings_free. */

/* The strings in which the regular expression matches, anywhere unless ^ and $ say otherwise.  See
 * pattern.h for the dialect.  NULL with err, a clause about the pattern ("it is too long", …). */
Strings *strings_of_pattern(const char *source, Error *err);

/* The n words themselves, in UTF-8; NULL where they are too many. */
Strings *strings_of_words(const char *const *words, int n);

/* The strings that are in both sets.  NULL with err where the automaton grows too large. */
Strings *strings_both(const Strings *a, const Strings *b, Error *err);

/* The strings that are not in the set. */
Strings *strings_not(const Strings *a);

void strings_free(Strings *s);          /* s may be NULL */

/* The state after a character, -1: none. */
int strings_next(const Strings *s, int state, int character);

/* Whether text[0..n), UTF-8, is in the set. */
int strings_hold(const Strings *s, const char *text, size_t n);

#endif
