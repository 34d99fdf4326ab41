/* numbers.c - decimal numbers, and programs that write the numbers of a range.  See numbers.h.
 *
 * A program must accept exactly the digit strings between two bounds.  It compares from the
 * front: as long as the digits so far are those of a bound (the number is *tight* to it), the
 * bound's next digit limits the next digit; once a digit differs, all digits are free.  For
 * `multipleOf` the program also tracks the remainder that the digits so far leave. */
#include "numbers.h"

#include <stdlib.h>
#include <string.h>

#define WHOLE_DIGITS 20                 /* digits before the point: the largest uint64_t has 20 */
#define PART_DIGITS 17                  /* digits behind the point: a double has 17 that matter */
#define MAX_EXPONENT 308                /* in front of more, readers see infinity, or zero */
/* Digits of a number that must not be whole.  Every decimal of up to 15 digits survives the way
 * through a double, so that no reader rounds it to a whole number. */
#define SAFE_DIGITS 15

/* Limits of multipleOf p / 10^digits.  The program has instructions for each of the p
 * remainders: about 20 * p * (digits + 1) instructions without bounds, and that for each
 * position and tightness with bounds.  The limits were chosen so that a step of few digits stays
 * below MAX_CODE; to tune them, look at program_size of the largest step with four digits behind
 * the point. */
#define MAX_STEP 10000                  /* p, without bounds */
#define MAX_BOUNDED_STEP 1000           /* p beside bounds, for more than MAX_VALUES values */
#define MAX_VALUES 5000                 /* multiples between two bounds, listed one by one */

/* ---- numbers by their digits ---- */

int decimal_read(const char *text, Decimal *out) {
    char digits[2 * MAX_DIGITS + 4] = "";
    *out = (Decimal){.negative = *text == '-'};
    text += *text == '-';
    /* 1. The digits without their point, which stands before digits[point]; the exponent. */
    int n = 0, point = -1;
    for (; *text && strchr("0123456789.", *text); text++) {
        if (*text == '.') point = n;
        else if (n > 2 * MAX_DIGITS) return -1;
        else digits[n++] = *text;
    }
    if (point < 0) point = n;
    long exponent = *text ? strtol(text + 1, NULL, 10) : 0;
    /* 2. Without zeros on both sides digits[from..to) is left; the exponent moves the point,
     * which may then stand before `from` or behind `to`. */
    int from = 0, to = n;
    while (from < to && digits[from] == '0') from++;
    while (to > from && digits[to - 1] == '0') to--;
    if (from == to) {                   /* zero, however it is written */
        *out = (Decimal){.whole = "0"};
        return 0;
    }
    if (exponent > 1000 || exponent < -1000) return -1;
    point += (int)exponent;
    /* 3. The digits before the point and those behind it, with zeros between them and the point. */
    int n_whole = 0, n_part = 0;
    for (int i = from; i < point; i++) {
        if (n_whole == MAX_DIGITS) return -1;
        out->whole[n_whole++] = i < to ? digits[i] : '0';
    }
    if (!n_whole) out->whole[n_whole++] = '0';
    for (int i = point; i < to; i++) {
        if (n_part == MAX_DIGITS) return -1;
        out->part[n_part++] = i < from ? '0' : digits[i];
    }
    return 0;
}

int decimal_power(const char *text) {
    const char *digits = text + (*text == '-'), *e = strpbrk(text, "eE");
    long exponent = e ? strtol(e + 1, NULL, 10) : 0;
    int n = 0, zeros = 0;               /* digits before the point; zeros right behind it */
    if (exponent > 100000 || exponent < -100000) exponent = exponent > 0 ? 100000 : -100000;
    for (; *digits >= '0' && *digits <= '9'; digits++) n++;
    if (n == 1 && digits[-1] == '0') {  /* 0.…: the first digit stands behind the point */
        for (n = 0; digits[1 + zeros] == '0';) zeros++;
        if (*digits != '.' || digits[1 + zeros] < '1' || digits[1 + zeros] > '9') return 0;
    }
    return n - zeros - 1 + (int)exponent;
}

static int compare_magnitudes(const Decimal *a, const Decimal *b) {
    size_t n = strlen(a->whole), m = strlen(b->whole);
    if (n != m) return n < m ? -1 : 1;
    int order = strcmp(a->whole, b->whole);
    if (!order) order = strcmp(a->part, b->part);
    return order < 0 ? -1 : order > 0;
}

int decimal_compare(const Decimal *a, const Decimal *b) {
    if (a->negative != b->negative) return a->negative ? -1 : 1;
    int order = compare_magnitudes(a, b);
    return a->negative ? -order : order;
}

int decimal_is_whole(const Decimal *a) { return !*a->part; }

/* Writes the step as p / 10^digits: *digits is the number of its digits behind the point.
 * Returns p, or -1 when p is above MAX_STEP. */
static long long numerator(const Decimal *step, int *digits) {
    long long p = 0;
    *digits = (int)strlen(step->part);
    for (const char *c = step->whole; *c; c++)
        if ((p = 10 * p + *c - '0') > MAX_STEP) return -1;
    for (const char *c = step->part; *c; c++)
        if ((p = 10 * p + *c - '0') > MAX_STEP) return -1;
    return p;
}

/* With b = p / 10^digits: a is a multiple of b where a * 10^digits is a multiple of p.  The
 * remainder of a * 10^digits is found digit by digit. */
int decimal_is_multiple(const Decimal *a, const Decimal *b) {
    int digits, n = 0;
    long long p = numerator(b, &digits), rest = 0;
    if (p <= 0) return -1;
    for (const char *c = a->whole; *c; c++) rest = (10 * rest + *c - '0') % p;
    for (const char *c = a->part; n < digits || *c; n++) {
        if (n >= digits && *c != '0') return 0;         /* a has more digits behind the point */
        if (n < digits) rest = (10 * rest + (*c ? *c - '0' : 0)) % p;
        c += *c != 0;
    }
    return rest == 0;
}

/* Moves d by one away from zero. */
static void grow(Decimal *d) {
    int i = (int)strlen(d->whole) - 1;
    while (i >= 0 && d->whole[i] == '9') d->whole[i--] = '0';
    if (i >= 0) d->whole[i]++;
    else {
        memmove(d->whole + 1, d->whole, strlen(d->whole) + 1);
        d->whole[0] = '1';
    }
}

/* Moves d, a whole number other than 0, by one towards zero. */
static void shrink(Decimal *d) {
    int i = (int)strlen(d->whole) - 1;
    while (i >= 0 && d->whole[i] == '0') d->whole[i--] = '9';
    if (i >= 0) d->whole[i]--;
    if (d->whole[0] == '0' && d->whole[1]) memmove(d->whole, d->whole + 1, strlen(d->whole));
    if (!strcmp(d->whole, "0") && !*d->part) d->negative = 0;
}

/* Moves a bound to the next whole number of the range: the first one above it (up: a lower
 * bound) or below it (an upper bound).  A bound that is whole and not open stays where it is. */
static void make_whole(Decimal *d, int open, int up) {
    int had_part = *d->part != 0, outward = up ? !d->negative : d->negative;
    *d->part = 0;                       /* a bound that had a part has moved towards zero by this */
    if (up && !strcmp(d->whole, "0") && d->negative && had_part) {      /* -0.5, up: 0 */
        d->negative = 0;
        outward = 0;
    }
    if (!had_part && !open) return;
    if (outward) grow(d);
    else if (!had_part && !strcmp(d->whole, "0")) { /* an open bound of 0: -1 or 1 */
        d->negative = !up;
        grow(d);
    } else if (!had_part) shrink(d);
}

/* ---- digits between two bounds ---- */

/* What all digits together must be. */
typedef struct {
    int is_fraction;                    /* 1: some digit behind the point is not 0 */
    int p, digits;                      /* p not 0: the number is a multiple of p / 10^digits */
} Kind;

/* The magnitudes (numbers without a sign) that are written with n digits before the point.  A
 * position counts the digits from the front: 0 is the first digit, n the first behind the
 * point.  The rest is what the kind has to remember of the digits so far: for multiples the
 * remainder modulo p, for fractions whether a digit behind the point was not 0, for any other
 * number always 0. */
typedef struct {
    Schema *s;
    const Decimal *lo, *hi;             /* magnitudes */
    int lo_open, hi_open;
    int n, max_part;                    /* digits before the point; at most so many behind it */
    int next;                           /* the address behind the number */
    Kind kind;
    int rests;                          /* how many values a rest has */
    /* [digits to come][lo_tight][hi_tight][rest] what digits_from has returned, -1: nothing yet. */
    int *memo;
} Digits;

/* The digit of a bound at a position; behind its last digit a bound goes on in zeros. */
static int digit_of(const Digits *d, const Decimal *b, int at) {
    if (at < d->n) return b->whole[at] - '0';
    return at - d->n < (int)strlen(b->part) ? b->part[at - d->n] - '0' : 0;
}

/* Whether the bound has only zeros from a position on. */
static int zeros_from(const Digits *d, const Decimal *b, int at) {
    for (int end = d->n + (int)strlen(b->part); at < end; at++)
        if (digit_of(d, b, at)) return 0;
    return 1;
}

/* The rest after one more digit, at a position, when the digits before it left `rest`. */
static int rest_after(const Digits *d, int at, int rest, int digit) {
    if (d->kind.p) return (10 * rest + digit) % d->kind.p;
    return rest || (d->kind.is_fraction && at >= d->n && digit);
}

/* Whether a number of `at` digits that leave that rest is of the kind. */
static int is_complete(const Digits *d, int at, int rest) {
    if (!d->kind.p) return rest == d->kind.is_fraction;
    for (; at < d->n + d->kind.digits; at++) rest = 10 * rest % d->kind.p;
    return rest == 0;
}

/* The address behind `at` digits that leave that rest: writes the other digits, then d->next.
 * lo_tight: the digits so far are those of d->lo; hi_tight: those of d->hi. */
static int digits_from(Digits *d, int at, int lo_tight, int hi_tight, int rest);

/* The address behind `at` digits where another digit must come: writes that digit, then what
 * follows it.  Neighbouring digits that lead to the same address share one range of bytes. */
static int one_digit(Digits *d, int at, int lo_tight, int hi_tight, int rest) {
    int from = at == 0 && d->n > 1, to = 9;         /* no 0 in front of other digits */
    if (lo_tight) from = digit_of(d, d->lo, at);
    if (hi_tight) to = digit_of(d, d->hi, at);
    int pc = program_fail(d->s);
    for (int i = from; i <= to;) {
        int low = lo_tight && i == from, high = hi_tight && i == to;    /* stays tight after i */
        int last = i, then = rest_after(d, at, rest, i);
        while (!low && last < 9 && !(hi_tight && last + 1 >= to) && !high &&
               rest_after(d, at, rest, last + 1) == then)
            last++;
        int next = digits_from(d, at + 1, low, high, then);
        pc = put_either(d->s, pc, put_range(d->s, '0' + i, '0' + last, next));
        i = last + 1;
    }
    return pc;
}

static int digits_from(Digits *d, int at, int lo_tight, int hi_tight, int rest) {
    int to_come = d->n + d->max_part - at, pc = program_fail(d->s);
    int *memo = &d->memo[(4 * to_come + 2 * lo_tight + hi_tight) * d->rests + rest];
    if (!at) return one_digit(d, at, lo_tight, hi_tight, rest);     /* once: no memo for it */
    if (*memo >= 0) return *memo;
    if (at < d->n) return *memo = one_digit(d, at, lo_tight, hi_tight, rest);
    /* The number may end here: is it above lo and below hi, and of the kind? */
    int high_enough = !lo_tight || (zeros_from(d, d->lo, at) && !d->lo_open);
    int low_enough = !hi_tight || !d->hi_open || !zeros_from(d, d->hi, at);
    if (at < d->n + d->max_part) {
        pc = one_digit(d, at, lo_tight, hi_tight, rest);
        if (at == d->n) pc = put_range(d->s, '.', '.', pc);
    }
    if (high_enough && low_enough && is_complete(d, at, rest)) pc = put_either(d->s, d->next, pc);
    return *memo = pc;
}

/* Magnitudes from lo to hi with up to max_part digits behind the point, a fraction with up to
 * SAFE_DIGITS digits in all.  The memo is shared by all numbers of digits n before the point:
 * addresses depend on the digits to come, and only the largest and the smallest n begin tight. */
static int magnitudes(Schema *s, const Decimal *lo, int lo_open, const Decimal *hi, int hi_open,
                      int max_part, Kind kind, int next) {
    int pc = program_fail(s), from = (int)strlen(lo->whole), to = (int)strlen(hi->whole);
    int rests = kind.p ? kind.p : 1 + kind.is_fraction;
    size_t memo_size = (size_t)((to + max_part + 1) * 4 * rests) * sizeof(int);
    int *memo = memset(xmalloc(memo_size), 0xff, memo_size);
    for (int n = to; n >= from; n--) {
        Digits d = {.s = s, .lo = lo, .hi = hi, .lo_open = lo_open, .hi_open = hi_open, .n = n,
                    .max_part = max_part, .next = next, .kind = kind, .rests = rests, .memo = memo};
        if (kind.is_fraction) {         /* max_part depends on n: no sharing */
            d.max_part = n < SAFE_DIGITS ? SAFE_DIGITS - n : 0;
            memset(memo, 0xff, memo_size);
        }
        pc = put_either(s, digits_from(&d, 0, n == from, n == to, 0), pc);
    }
    free(memo);
    return pc;
}

/* The largest number of n digits. */
static Decimal nines(size_t n) {
    Decimal d = {0};
    if (n > MAX_DIGITS) n = MAX_DIGITS;
    memset(d.whole, '9', n);
    return d;
}

/* How many digits the missing bound of a range gets: more than the other bound has, so that the
 * range is not empty. */
static size_t digits_where_unbounded(const Decimal *other) {
    size_t n = strlen(other->whole);
    return n < WHOLE_DIGITS ? WHOLE_DIGITS : n + 1;
}

/* Numbers of the range and kind with up to max_part digits behind the point. */
static int put_bounded(Schema *s, Range r, int max_part, Kind kind, int next) {
    const Decimal zero = {.whole = "0"};
    /* 1. Both bounds, whole ones where the number is. */
    if (r.whole && r.has_lo) make_whole(&r.lo, r.lo_open, 1);
    if (r.whole && r.has_hi) make_whole(&r.hi, r.hi_open, 0);
    if (r.whole) r.lo_open = r.hi_open = 0;
    if (!r.has_lo) {
        r.lo = nines(r.has_hi && r.hi.negative ? digits_where_unbounded(&r.hi) : WHOLE_DIGITS);
        r.lo.negative = 1;
    }
    if (!r.has_hi)
        r.hi = nines(r.has_lo && !r.lo.negative ? digits_where_unbounded(&r.lo) : WHOLE_DIGITS);
    int order = decimal_compare(&r.lo, &r.hi), pc = program_fail(s);
    if (order > 0 || (order == 0 && (r.lo_open || r.hi_open))) return pc;
    /* 2. Numbers below zero: the bounds change places, and 0 itself is not written as -0. */
    if (r.lo.negative) {
        const Decimal *nearest = r.hi.negative ? &r.hi : &zero;
        int nearest_open = r.hi.negative ? r.hi_open : 1;
        pc = put_range(s, '-', '-', magnitudes(s, nearest, nearest_open, &r.lo, r.lo_open,
                                               max_part, kind, next));
    }
    /* 3. Numbers from zero on. */
    if (r.hi.negative) return pc;
    const Decimal *least = r.lo.negative ? &zero : &r.lo;
    int least_open = r.lo.negative ? 0 : r.lo_open;
    int positive = magnitudes(s, least, least_open, &r.hi, r.hi_open, max_part, kind, next);
    return put_either(s, positive, pc);
}

/* ---- numbers of which at most the sign is bounded ---- */

/* From 1 to `count` digits. */
static int some_digits(Schema *s, int count, int next) {
    int pc = next;
    for (int i = 0; i < count; i++) pc = put_range(s, '0', '9', i ? put_either(s, next, pc) : next);
    return pc;
}

/* From 0 to `count` digits. */
static int maybe_digits(Schema *s, int count, int next) {
    return count ? put_either(s, next, some_digits(s, count, next)) : next;
}

/* 0, or 0.0 as many languages print it. */
static int zero(Schema *s, int next) {
    int part = put_range(s, '.', '.', put_range(s, '0', '0', next));
    return put_range(s, '0', '0', put_either(s, next, part));
}

/* Exactly n digits, leading zeros included, that make a number of at most `limit`. */
static int digits_up_to(Schema *s, int n, int limit, int next) {
    int power = 1, pc = program_fail(s);
    for (int i = 1; i < n; i++) power *= 10;
    if (!n) return next;
    int top = limit / power, rest = limit % power;
    if (top > 9) top = 9, rest = power - 1;
    if (top > 0) pc = put_range(s, '0', '0' + top - 1, digits_up_to(s, n - 1, power - 1, next));
    return put_either(s, pc,
                      put_range(s, '0' + top, '0' + top, digits_up_to(s, n - 1, rest, next)));
}

/* The digits of an exponent up to `limit`. */
static int exponent_up_to(Schema *s, int limit, int next) {
    int pc = program_fail(s);
    for (int n = 1; n <= 3; n++) pc = put_either(s, pc, digits_up_to(s, n, limit, next));
    return pc;
}

/* A magnitude above 0, and where `far` is not 0 below 10^far.  As a program is written from its
 * end to its front, the exponent comes first.  The digits before the point make a number below
 * 10^WHOLE_DIGITS, so an exponent of at most far - WHOLE_DIGITS keeps the magnitude below
 * 10^far. */
static int any_magnitude(Schema *s, int far, int next) {
    /* 1. The digits of a negative exponent (down) and of a positive one (up). */
    int down = exponent_up_to(s, MAX_EXPONENT, next), up = down;
    if (far && far - WHOLE_DIGITS < MAX_EXPONENT)
        up = exponent_up_to(s, far - WHOLE_DIGITS, next);
    /* 2. The exponent, which may be left out. */
    int sign = put_either(s, put_range(s, '+', '+', up), put_range(s, '-', '-', down));
    int power = put_either(s, up, sign), part = program_fail(s);
    int e = put_either(s, put_range(s, 'e', 'e', power), put_range(s, 'E', 'E', power));
    int exponent = put_either(s, next, e);
    /* 3. Magnitudes from 1 on: the point and its digits may be left out. */
    int point = put_range(s, '.', '.', some_digits(s, PART_DIGITS, exponent));
    int fraction = put_either(s, exponent, point);
    int whole = put_range(s, '1', '9', maybe_digits(s, WHOLE_DIGITS - 1, fraction));
    /* 4. Magnitudes below 1, 0.00…1…: at least one digit behind the point is not 0.  Up to 3
     * zeros may stand before the PART_DIGITS digits that count. */
    for (int i = 0; i < PART_DIGITS + 3; i++) {
        int more = maybe_digits(s, i < PART_DIGITS ? i : PART_DIGITS - 1, exponent);
        int digit = put_range(s, '1', '9', more);
        part = put_either(s, digit, put_range(s, '0', '0', part));
    }
    return put_either(s, whole, put_range(s, '0', '0', put_range(s, '.', '.', part)));
}

static int is_zero(const Decimal *d) { return !strcmp(d->whole, "0") && !*d->part; }

/* Whether the bounds say at most which sign a number has. */
static int bounds_sign_alone(const Range *r) {
    return (!r->has_lo || is_zero(&r->lo)) && (!r->has_hi || is_zero(&r->hi));
}

/* Numbers of a range whose bounds say at most the sign.  zero, above_zero: the addresses that write
 * 0 and a magnitude above 0. */
static int put_signs(Schema *s, const Range *r, int above_zero, int zero) {
    int zero_is_out = (r->has_lo && r->lo_open) || (r->has_hi && r->hi_open);
    int pc = zero_is_out ? program_fail(s) : zero;
    if (!r->has_hi) pc = put_either(s, pc, above_zero);
    return r->has_lo ? pc : put_either(s, pc, put_range(s, '-', '-', above_zero));
}

/* ---- multiples of a step p / 10^digits ---- */

/* One digit after digits that leave remainder r; address[p]: what follows each remainder. */
static int any_digit(Schema *s, const int *address, int p, int r) {
    int pc = program_fail(s);
    for (int c = 0; c < 10; c++)
        pc = put_either(s, pc, put_range(s, '0' + c, '0' + c, address[(10 * r + c) % p]));
    return pc;
}

/* Magnitudes that are multiples of p / 10^digits; without_zero: only those that do not begin
 * with 0.  The program has an address for each remainder that the digits so far leave modulo p. */
static int multiples(Schema *s, int p, int digits, int without_zero, int next) {
    int *whole = xcalloc(p, sizeof(int)), *part = xcalloc(p, sizeof(int));
    int *before = xcalloc(p, sizeof(int)), power = 1;
    /* 1. part[r]: what follows the last digit behind the point. */
    for (int r = 0; r < p; r++) part[r] = r ? program_fail(s) : next;
    /* 2. part[r]: what follows d digits behind the point, from the last one to the point.  The
     * number may end where zeros in place of the missing digits, power = 10^(digits - d), leave
     * no rest. */
    for (int d = digits - 1; d >= 0; d--) {
        power = (int)(power * 10LL % p);
        for (int r = 0; r < p; r++) {
            int more = any_digit(s, part, p, r);
            int end = (long long)r * power % p ? program_fail(s) : next;
            if (!d) more = put_range(s, '.', '.', more);
            before[r] = put_either(s, end, more);
        }
        memcpy(part, before, (size_t)p * sizeof(int));
    }
    /* 3. whole[r]: what follows the digits before the point, which may be any number. */
    for (int r = 0; r < p; r++) whole[r] = put_loop(s, part[r]);
    for (int r = 0; r < p; r++) set_loop(s, whole[r], any_digit(s, whole, p, r));
    /* 4. The first digit. */
    int pc = without_zero ? program_fail(s) : put_range(s, '0', '0', part[0]);
    for (int c = 1; c < 10; c++)
        pc = put_either(s, pc, put_range(s, '0' + c, '0' + c, whole[c % p]));
    free(whole);
    free(part);
    free(before);
    return pc;
}

/* Writes the bound times 10^digits to *out, rounded to the next whole number inside the range
 * (up: a lower bound).  Returns 0, or -1 when the result may not fit a long long. */
static int scaled(const Decimal *d, int open, int up, int digits, long long *out) {
    char text[2 * MAX_DIGITS + 8];
    size_t n = strlen(d->whole), m = strlen(d->part);
    if (n + (size_t)digits > 17) return -1;
    memcpy(text, d->whole, n);
    for (size_t i = 0; i < (size_t)digits; i++) text[n + i] = i < m ? d->part[i] : '0';
    text[n + (size_t)digits] = 0;
    long long v = strtoll(text, NULL, 10) * (d->negative ? -1 : 1);
    int is_cut = m > (size_t)digits;
    if (up && ((is_cut && !d->negative) || (open && !is_cut))) v++;
    if (!up && ((is_cut && d->negative) || (open && !is_cut))) v--;
    *out = v;
    return 0;
}

/* Lists the multiples of p / 10^digits between two bounds one by one.  Returns the address, or -1
 * where they are too many. */
static int list_multiples(Schema *s, const Range *r, int p, int digits, int next) {
    long long lo, hi, power = 1;        /* bounds and values times power, 10^digits */
    int n = 0, pc;
    char *text[MAX_VALUES];
    if (scaled(&r->lo, r->lo_open, 1, digits, &lo) || scaled(&r->hi, r->hi_open, 0, digits, &hi))
        return -1;
    if (hi >= lo && (hi - lo) / p >= MAX_VALUES) return -1;
    for (int i = 0; i < digits; i++) power *= 10;
    long long first = lo >= 0 ? (lo + p - 1) / p * p : lo / p * p;
    for (long long v = first; v <= hi && n < MAX_VALUES; v += p) {
        Buf b = {0};
        long long m = v < 0 ? -v : v;
        buf_printf(&b, "%s%lld", v < 0 ? "-" : "", m / power);
        if (m % power) {
            buf_printf(&b, ".%0*lld", digits, m % power);
            while (b.data[b.len - 1] == '0') b.data[--b.len] = 0;
        }
        text[n++] = b.data;
    }
    if (n) qsort(text, (size_t)n, sizeof *text, by_text);
    pc = put_literals(s, text, n, next);
    while (n) free(text[--n]);
    return pc;
}

static int greatest_common_divisor(int a, int b) {
    return b ? greatest_common_divisor(b, a % b) : a;
}

/* Multiples of r.step in the range.  The first way that fits is taken. */
static int put_multiples(Schema *s, Range r, int next, const char **why) {
    int digits;
    long long p = numerator(&r.step, &digits);
    if (p <= 0) {
        *why = "its digits must make a number from 1 to 10000";
        return program_fail(s);
    }
    /* Whole multiples of p / 10^digits are the multiples of p / gcd(p, 10^digits). */
    for (; r.whole && digits; digits--) p /= greatest_common_divisor((int)p, 10);
    /* 1. Multiples of 1, 0.1, 0.01 …: all numbers with so many digits behind the point. */
    if (p == 1) {
        r.whole = r.whole || !digits;
        return put_bounded(s, r, digits, (Kind){0, 0, 0}, next);
    }
    /* 2. Few multiples between two bounds. */
    if (r.has_lo && r.has_hi && !(is_zero(&r.lo) && is_zero(&r.hi))) {
        int pc = list_multiples(s, &r, (int)p, digits, next);
        if (pc >= 0) return pc;
    }
    /* 3. No bounds but the sign.  Where 0 is excluded, `multiples` only leaves out what begins
     * with 0, which would lose 0.5: so whole multiples only. */
    int zero_is_out = (r.has_lo && r.lo_open) || (r.has_hi && r.hi_open);
    if (bounds_sign_alone(&r) && !r.far && !(zero_is_out && digits))
        return put_signs(s, &r, multiples(s, (int)p, digits, zero_is_out, next),
                         put_range(s, '0', '0', next));
    /* 4. Digits that are compared with the bounds and tracked modulo p. */
    if (p > MAX_BOUNDED_STEP) {
        *why = "beside bounds it is supported up to 1000, its point left out, "
               "or for up to 5000 values";
        return program_fail(s);
    }
    return put_bounded(s, r, digits, (Kind){0, (int)p, digits}, next);
}

int put_numbers(Schema *s, const Range *r, int next, const char **why) {
    const Kind any = {0, 0, 0}, fraction = {1, 0, 0};
    *why = NULL;
    if (r->has_step && r->is_fraction) {
        *why = "where a number must not be whole it is not supported";
        return program_fail(s);
    }
    if (r->is_fraction) return put_bounded(s, *r, PART_DIGITS, fraction, next);
    if (r->has_step) return put_multiples(s, *r, next, why);
    if (r->whole) return put_bounded(s, *r, 0, any, next);
    if (bounds_sign_alone(r)) return put_signs(s, r, any_magnitude(s, r->far, next), zero(s, next));
    return put_bounded(s, *r, PART_DIGITS, any, next);
}
