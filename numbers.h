/* numbers.h - the numbers of a range, as digits that a schema's program (program.h) may write. */
#ifndef NUMBERS_H
#define NUMBERS_H

#include "program.h"

/* Limit of a bound's digits before its point, and behind it, chosen by judgement: arrays of digits
 * stay small, and a bound beyond 10^100, as the largest double, only excludes (Range.far). */
#define MAX_DIGITS 100

/* A decimal number by its digits, because a double does not hold all of them. */
typedef struct {
    int negative;
    char whole[MAX_DIGITS + 2];         /* digits before the point: "0", or no 0 in front */
    char part[MAX_DIGITS + 2];          /* digits behind the point, no 0 at the end; "": none */
} Decimal;

/* Reads the text of a JSON number.  Returns 0, or -1 when it has more than MAX_DIGITS digits
 * before or behind the point. */
int decimal_read(const char *text, Decimal *out);

/* The power of ten of the number's first digit: 2 for 123, -1 for 0.5; 0 for 0. */
int decimal_power(const char *text);

/* -1 where a < b, 0 where a == b, 1 where a > b. */
int decimal_compare(const Decimal *a, const Decimal *b);

int decimal_is_whole(const Decimal *a);

/* Whether a is a whole multiple of b, which is not 0; exact to the last digit.  -1: b, its point
 * left out, is a number above 10,000. */
int decimal_is_multiple(const Decimal *a, const Decimal *b);

/* What `minimum`, `maximum`, `exclusiveMinimum`, `exclusiveMaximum`, `multipleOf` and the type
 * integer say of a number together. */
typedef struct {
    int has_lo, has_hi, lo_open, hi_open;       /* open: the bound itself is excluded */
    Decimal lo, hi;
    int far;                            /* not 0: further bounds, too large for lo and hi, have
                                         * magnitudes of 10^far or more; the numbers stay below */
    int whole, is_fraction;                     /* must be whole; must not be whole */
    int has_step;
    Decimal step;                               /* of multipleOf */
} Range;

/* Adds the numbers of the range to the program, followed by `next`.  Whole numbers have up to 20
 * digits, or as many as a bound has.  Others have up to 17 digits behind the point, and may have
 * an exponent where at most their sign and `far` bound them.  Returns the address.  Returns
 * program_fail where the range is empty, or where it is not supported: *why then says the reason,
 * and is NULL otherwise. */
int put_numbers(Schema *s, const Range *range, int next, const char **why);

#endif
