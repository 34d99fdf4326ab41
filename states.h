/* states.h - what may be written under a schema, as a small language of states: programs of a few instructions, like those
 * of a regular expression's virtual machine, with subroutines for nested values, and the masks of their states.
 *
 * A program is written from its end to its front: each of the functions below is given the place that comes next, and
 * returns the place that it has made.  A thread of a running program is a place and a stack of places to return to; a
 * *state* is the set of threads that are alive after the bytes so far.  States and stacks are kept in tables and never
 * twice, and each state remembers where each byte leads: after a while the program is deterministic where it has been.
 *
 * The mask of a state is found by walking the tree of all tokens' bytes with it, and is kept.  Most tokens of a big
 * vocabulary are plain text, and where any text may stand all of them are allowed that are not too long: their masks are
 * made once for each length (Pieces.fitting), and only the few tokens with quotes, backslashes or control characters
 * are walked.
 *
 * Each place knows how many tokens lead from it to the end of its subroutine at least (`cost`), so each state knows how
 * far from a complete value it is, and no way leads to where a value cannot be completed. */
#ifndef STATES_H
#define STATES_H

#include "schema.h"
#include "stringset.h"

#define NO_LIMIT 0x7fffffff
#define MAX_CODE 2000000

/* How the characters of a text are written: in JSON, with its escapes; in JSON without them; as they are, to a MARK. */
typedef enum { JSON_TEXT, KEY_TEXT, CALL_TEXT } TextStyle;

/* A program with nothing but two places: `fail`, from which nothing leads on, and `ret`, the end of a subroutine; and
 * with routine 0, the whole, which has no entry yet.  in_calls: in the notation of calls, else JSON. */
Schema *states_new(const Pieces *p, int in_calls);
int states_fail(const Schema *s);
int states_ret(const Schema *s);
int states_in_calls(const Schema *s);
int states_size(const Schema *s);       /* instructions so far */
int states_is_full(const Schema *s);    /* 1: more than MAX_CODE were wanted */

/* A byte from lo to hi. */
int put_range(Schema *s, int lo, int hi, int next);
/* One way or the other. */
int put_either(Schema *s, int one, int two);
/* These bytes. */
int put_literal(Schema *s, const char *text, size_t n, int next);
/* One of these texts, which are sorted by strcmp and all different, then next. */
int put_literals(Schema *s, char *const *texts, int n, int next);
/* A place that leads to `next`, or on round a loop that set_loop gives it later. */
int put_loop(Schema *s, int next);
void set_loop(Schema *s, int loop, int again);
/* Subroutine `routine`, then next. */
int put_call(Schema *s, int routine, int next);
int new_routine(Schema *s);             /* whose entry is `fail` until set_entry */
void set_entry(Schema *s, int routine, int entry);
/* The opening quote of a string; min to max characters of text with the closing quote; those of a set of strings, which
 * the program takes over, likewise. */
int put_quote(Schema *s, int next);
int put_text(Schema *s, int min, int max, TextStyle style, int next);
int put_strings(Schema *s, Strings *strings, int min, int max, TextStyle style, int next);

/* Values that are written one behind another, with a comma between two, each once at most. */
typedef struct {
    int n, *value, comma;               /* [n] routines, each of one value; the comma's */
    unsigned *next;                     /* [1 << n] by the set of those that have been written: which may come next, */
    uint8_t *may_end;                   /* [1 << n] and whether it may be the last */
} Choice;

/* The first value of a choice, which the program takes over, and what comes behind it, then `end`. */
int put_picks(Schema *s, Choice choice, int end);

/* The names of a set of strings, of characters of ASCII, without quotes: what follows must begin with another character. */
int put_bare(Schema *s, const Strings *strings, int next);

/* The program is complete: 0, or -1 with a reason in err, and in *routine one that leads back to itself,
 * 0 where no way leads to the end, else -1. */
int states_finish(Schema *s, int *routine, Error *err);

/* In a program where no way leads to the end of a routine: another routine of which the same is true
 * and for which alone the first one does not end, so that it is to blame; -1: there is none. */
int states_dead_end(const Schema *s, int routine);

#endif
