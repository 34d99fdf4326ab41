/* stringset.h - sets of strings, as deterministic automata over characters: what `pattern`, `format` and their
 * like mean together.
 *
 * A set is made from a regular expression, from words, or from other sets: both, not.  Characters are
 * Unicode's, by number; NUL and surrogates are in no string. */
#ifndef STRINGSET_H
#define STRINGSET_H

#include "util.h"

typedef struct {
    int n;                              /* states, of which 0 is the first; 0: the set is empty */
    int n_classes;
    int n_edges;
    int *edge;                          /* [n_edges + 1] ascending from 0 to 0x110000: characters from edge[i] to
                                         * edge[i + 1] - 1 are of one class, */
    int *class_of;                      /* [n_edges] this one */
    int *to;                            /* [n][n_classes] the next state, -1: none, from which nothing is in the set */
    uint8_t *accepts;                   /* [n] whether a string may end there */
} Strings;

/* The strings in which the regular expression matches, as JavaScript and Python agree: anywhere, unless ^ and $ say
 * otherwise.  Lookaheads are taken where they are not repeated.  Returns NULL with err ("it is too long", …). */
Strings *strings_of_pattern(const char *source, Error *err);

/* The n words themselves. */
Strings *strings_of_words(const char *const *words, int n);

/* Strings in both sets; those not in the set.  NULL with err where the automaton grows too large. */
Strings *strings_both(const Strings *a, const Strings *b, Error *err);
Strings *strings_not(const Strings *a);
void strings_free(Strings *s);

/* The state after a character, -1: none. */
int strings_next(const Strings *s, int state, int character);

/* Whether any character from lo to hi leads on from the state. */
int strings_has(const Strings *s, int state, int lo, int hi);

/* Whether s[0..n), UTF-8, is in the set. */
int strings_hold(const Strings *s, const char *text, size_t n);

#endif
