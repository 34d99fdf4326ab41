/* program.h - the program of a schema: instructions that say which bytes the schema lets through.
 *
 * A schema compiles into a program of a few kinds of instructions, like those of a regular
 * expression's virtual machine (Thompson's automaton), with subroutines, called *routines*, for
 * nested values.  The number of an instruction is its *address*.  A program is written from its end
 * to its front: each put_ function takes the address that comes next and returns the address that
 * it has made.
 *
 * The *cost* of an address is the least number of tokens from it to the end of its routine; FAR:
 * no way leads there.  states.h says how a program runs. */
#ifndef PROGRAM_H
#define PROGRAM_H

#include "schema.h"
#include "stringset.h"

#define NO_LIMIT 0x7fffffff             /* a maximum that means: any number */

/* Limit of a program's instructions, which take 16 bytes each, and 12 more while the program runs.
 * Chosen by judgement to bound the memory and the time to compile; a larger schema is refused. */
#define MAX_CODE 2000000

/* How the characters of a text are written. */
typedef enum {
    JSON_TEXT,                          /* as JSON, up to a quote; escapes are allowed */
    KEY_TEXT,                           /* as JSON, up to a quote; without escapes */
    CALL_TEXT                           /* in a call: as they are, up to a MARK */
} TextStyle;

/* A new program, freed with schema_free.  It has two addresses, `fail`, from which nothing leads
 * on, and `ret`, the end of a routine, and routine 0, the whole value, whose entry is still to
 * be set.  in_calls: values are written in the notation of calls, else as JSON. */
Schema *program_new(const Pieces *p, int in_calls);
int program_fail(const Schema *s);
int program_ret(const Schema *s);
int program_in_calls(const Schema *s);
int program_size(const Schema *s);      /* instructions so far */
int program_is_full(const Schema *s);   /* 1: more than MAX_CODE were wanted */

/* Each put_ function adds instructions that write what its comment says and then go on at
 * `next`, and returns their first address; `fail` where it is plain that no way leads on, as
 * when `next` is `fail`. */

/* A byte from lo to hi. */
int put_range(Schema *s, int lo, int hi, int next);

/* What address `one` writes, or what address `two` writes. */
int put_either(Schema *s, int one, int two);

/* The bytes text[0..n). */
int put_literal(Schema *s, const char *text, size_t n, int next);

/* One of n texts, which are sorted by strcmp and all different. */
int put_literals(Schema *s, char *const *texts, int n, int next);

/* Nothing, or what address `again` writes, which set_loop sets later: `again` may lead back to the
 * loop. */
int put_loop(Schema *s, int next);
void set_loop(Schema *s, int loop, int again);

/* What a routine writes.  new_routine: its entry is `fail` until set_entry. */
int put_call(Schema *s, int routine, int next);
int new_routine(Schema *s);
void set_entry(Schema *s, int routine, int entry);

/* An array of n addresses that are not known yet, each -1.  The caller frees it. */
int *new_memo(int64_t n);

/* The opening quote of a string. */
int put_quote(Schema *s, int next);

/* The rest of a string behind its opening quote: any text of min to max characters and the closing
 * quote.  put_strings: only a text of the set, which the program takes over. */
int put_text(Schema *s, int min, int max, TextStyle style, int next);
int put_strings(Schema *s, Strings *strings, int min, int max, TextStyle style, int next);

/* Values that are written in any order with a comma between two, each at most once, as the
 * properties of an object whose order is free.  A set of values has bit i for value i. */
typedef struct {
    int n;
    int *value;                         /* [n] the routine that writes each value */
    int comma;                          /* the routine of the comma */
    unsigned *next;                     /* [1 << n] by the written set: which may come next */
    uint8_t *may_end;                   /* [1 << n] by the written set: may it be complete? */
} Choice;

/* The values of a choice, at least one.  The program takes over the choice's arrays. */
int put_picks(Schema *s, Choice choice, int end);

/* A text of the set, without quotes, written with its ASCII characters alone.  No text of the
 * set may go on with the byte that `next` begins with: that byte ends the text. */
int put_bare(Schema *s, const Strings *strings, int next);

/* For a routine without a way to its end: finds a routine that blocks it all by itself, one
 * without a way to its end for which the first would not end even if all others did.  -1: there
 * is none. */
int program_dead_end(const Schema *s, int routine);

/* ---- states.c ---- */

/* Ends the writing of a program and prepares to run it.  Returns 0, or -1 with err where it
 * cannot run.  *routine is then a routine that calls itself before anything is written; 0 where
 * no way leads to the end of the whole; -1 where the program is too large. */
int states_finish(Schema *s, int *routine, Error *err);

#endif
