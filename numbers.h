/* numbers.h - the numbers between two bounds, as they may be written under a schema. */
#ifndef NUMBERS_H
#define NUMBERS_H

#include "states.h"

#define MAX_DIGITS 100                  /* of a bound, before and behind its point */

/* A number by its digits, as doubles do not hold all of them. */
typedef struct {
    int negative;
    char whole[MAX_DIGITS + 2], part[MAX_DIGITS + 2];   /* before the point without zeros in front ("0" alone); behind
                                                         * it without zeros at the end */
} Decimal;

/* The number that JSON's text stands for: 0, or -1 when it has more than MAX_DIGITS. */
int decimal_read(const char *text, Decimal *out);

/* The number of its first digit's place: 2 of 123, -1 of 0.5; 0 of 0. */
int decimal_power(const char *text);

/* -1, 0 or 1, as a is below b, equal, or above. */
int decimal_compare(const Decimal *a, const Decimal *b);

int decimal_is_whole(const Decimal *a);

/* Whether a is a whole number of times b, which is not 0.  Both are taken to their last digit.  -1: b has too many. */
int decimal_is_multiple(const Decimal *a, const Decimal *b);

/* What `minimum`, `maximum`, their exclusive relatives, `multipleOf` and type integer say together. */
typedef struct {
    int has_lo, has_hi, lo_open, hi_open;       /* open: the bound itself is out */
    Decimal lo, hi;
    int far;                                    /* not 0: no other bound is nearer than 10^far */
    int whole, is_fraction;                     /* the number is whole; it is not */
    int has_step;
    Decimal step;
} Range;

/* The numbers of the range: whole ones of up to 20 digits, or as many as a bound has; others with up to 17 digits
 * behind the point, and with an exponent where nothing but their sign is bounded, or by far.
 * Returns the place, or states_fail where there is none; *why is set where that cannot be decided. */
int put_numbers(Schema *s, const Range *range, int next, const char **why);

#endif
