/* states.h - how the program of a schema (program.h) lies in memory, and how it runs.  program.c,
 * which writes the program, and states.c, which runs it, share this header.
 *
 * A *thread* of the running program is an address and a stack of addresses to return to.  A *state*
 * is the set of threads that are alive after the bytes so far.  Each state and each stack is stored
 * once, in a hash table, and each state remembers to which state a byte leads: so where the program
 * has been before, it runs as a deterministic automaton.
 *
 * The mask of a state is found by walking the tries of all tokens from the state, and is kept.
 * Most tokens of a big vocabulary are plain text.  Where any text may stand, all plain tokens are
 * allowed that are not too long: their masks are made once for each length (Pieces.fitting), and
 * only the few tokens with quotes, backslashes or control characters are walked.
 *
 * The costs along a thread's stack add up to the thread's distance from a complete value.  A thread
 * without a way to the end is dropped, so that every value that was begun can be completed. */
#ifndef STATES_H
#define STATES_H

#include "program.h"

/* Limit of memory, chosen by judgement: kept masks, 32 KB each with 262,144 tokens.  An answer
 * visits few states with a mask of their own, and again and again the same ones; a mask that was
 * dropped costs a walk of the tries to make again. */
#define MAX_MASKS 1024

/* ---- the program ---- */

/* What an instruction writes before it goes on at `next`; its a and b mean:
 *   RANGE        a byte from lo to hi.  b: the least number of tokens from here to address a, which
 *                is `next`, or, inside a literal, the address behind the literal.
 *   SPLIT        nothing.  Goes on at `next` or at a.
 *   CALL         what routine a writes.
 *   RET          nothing.  Returns from the routine.
 *   TEXT         any text of a to b characters and the byte that ends it.  lo: its TextStyle.
 *   STRINGS      a text of TextSet a and the byte that ends it.  lo: its TextStyle.
 *   PICK         a value of Picks a, then goes on at its BEHIND_PICK.
 *   BEHIND_PICK  a comma, then goes on at its PICK; or nothing, then goes on at Picks.end.
 *   FAIL         nothing, and goes on nowhere. */
enum { RANGE, SPLIT, CALL, RET, TEXT, STRINGS, PICK, BEHIND_PICK, FAIL };

typedef struct {
    uint8_t op, lo, hi;
    int next;
    int a, b;
} Instruction;

/* A set of strings with bounds on their length.  A row is a state of the set's automaton.  A
 * column says how many more characters may or must come: with a max, exactly `column` more may
 * come; without a max but with a min, at least `column` more must come; with neither there is
 * only column 0. */
typedef struct {
    Strings *strings;
    TextStyle style;
    int min, max;                       /* characters */
    int columns;
    int *cost;                          /* [n][columns] tokens to the end of the string, or FAR */
    int most;                           /* the largest cost below FAR */
    /* [n][columns] so many characters of plain tokens may follow, whichever they are; at most as
     * many as the longest token has. */
    uint8_t *safe;
} TextSet;

/* Values that each come once.  What may follow depends on the set of values that have been written.
 * The set stands in the thread's frame: 1 << n copies of the code, one for each set, would be too
 * many. */
typedef struct {
    Choice of;
    int end;                            /* the address behind the last value */
    int *cost;                          /* [2][1 << n] by set: cost of PICK, and of BEHIND_PICK */
} Picks;

/* The letters behind a backslash, and what each stands for. */
static const char escaped[] = "\"\\/bfnrt", escape_of[] = "\"\\/\b\f\n\r\t";

/* ---- its states ---- */

/* Only states.c looks into these three. */
typedef struct Thread Thread;
typedef struct Frame Frame;
typedef struct State State;

struct Schema {
    const Pieces *p;                    /* borrowed */
    int in_calls;                       /* the notation of calls, else JSON */

    /* The program. */
    Instruction *code;
    int n_code, cap_code;
    int *cost;                          /* [n_code] of each address */
    int *routine;                       /* [n_routines] the entry of each */
    int n_routines, cap_routines;
    TextSet *set;
    int n_sets;
    Picks *picks;
    int n_picks, n_pick_sets;
    int ret, fail;                      /* the addresses that all share */
    int full;                           /* 1: the program has become too large */

    /* Its states so far.  A state's number is its index; adding a state may move the array. */
    Frame *frame;                       /* [0] is the empty stack */
    int n_frames, cap_frames;
    State *state;
    int n_states, cap_states;
    int *frame_hash, *state_hash;       /* [HASH] the first of each chain, -1: none */
    int masked[MAX_MASKS], n_masked;    /* a ring of the states that have a mask, oldest first */
    uint64_t *scratch;                  /* a mask that is not kept */

    /* Scratch of closure(). */
    int *seen;                          /* [n_code] the stack with which it was last at a SPLIT */
    unsigned *when;                     /* [n_code] `now` of that visit */
    unsigned now;                       /* the number of the current step */
    Thread *list;                       /* what it has found */
    int n_list, cap_list;
    Ids todo;                           /* ways still to follow: address, stack; and so on */
};

/* The least number of tokens from a state of the set, with `count` characters written, to the end
 * of the string, or FAR. */
int cost_in_set(const TextSet *x, int state, int count);

/* Finds the costs of a program that has been written.  Returns 0, or -1 with err where the program
 * cannot run, with *routine as of states_finish. */
int program_check(Schema *s, int *routine, Error *err);

/* Frees the program and the Schema itself; schema_free frees the states before. */
void program_free(Schema *s);

#endif
