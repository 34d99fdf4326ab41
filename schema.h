/* schema.h - structured output: a JSON schema as an automaton over bytes, and the tokens that it
 * allows next.
 *
 * Tokens that are chosen under a schema's masks make one JSON value that parses and validates,
 * and nothing else: no control tokens, no text around it.  Where the schema leaves a choice,
 * this program decides:
 * - Order.  Properties come in the order of the schema: first a schema's own, then those of what
 *   its $ref, allOf and alternatives name.  Then come those that are required and not declared,
 *   then others.  No property comes twice.
 * - White space.  Between two elements stands nothing, one space, or a newline and up to 16
 *   spaces.
 * - Numbers have no superfluous zeros in front.  Whole numbers have at most 20 digits, or as
 *   many as a bound has; others at most 17 behind the point; numbers that must not be whole at
 *   most 15 in all.  An exponent, up to 308, is written where the bounds say at most the sign, or
 *   have more than 100 digits: the number then stays below such a bound.
 * - Strings hold no NUL and no surrogates.  Where a maxLength of more than 1000 stands beside a
 *   pattern or format of many states, they may be held to fewer characters.
 * - Objects with `properties` and without `additionalProperties` have no other properties.  (The
 *   `properties` in `if`, in `not` and in an alternative of oneOf that must not hold do not
 *   count.)
 * - Arrays without `items` and `contains` have no more items than `prefixItems` or minItems
 *   names.
 * - Type.  A keyword of one type without `type`, `enum` and `const` makes the value be of that
 *   type.
 * - Regular expressions.  Where those of JavaScript and Python differ, JavaScript counts.
 *
 * The arguments of tool calls are written the same way in the model's own notation (see call.h),
 * but in another order.  In a call the properties that an object's schema names, in `properties`
 * or in `required`, come sorted by their names in lower case, equal names as in the schema; so
 * do the members of a constant, and those of nested objects.  The reason is that the model reads
 * the declaration in that order and writes its calls so.  An optional property keeps its sorted
 * place and may be left out.  Properties that the schema does not name, where it allows any,
 * come last. */
#ifndef SCHEMA_H
#define SCHEMA_H

#include <cjson/cJSON.h>

#include "vocabulary.h"

/* A compiled schema with the states and masks that it has needed so far.  One thread at a time
 * may use it.  A state is a number; schema_begin may make all older numbers invalid. */
typedef struct Schema Schema;

/* Compiles a JSON Schema of drafts 4 to 2020-12, with the keywords that README.md lists.  Notes
 * (title, default, x-… and the like) say nothing about the value.  `schema` may be freed
 * afterwards; p must outlive the result, which the caller frees with schema_free.  NULL with err
 * for any other keyword, for what cannot be decided while a value is written, and for a schema
 * that nothing satisfies.  err is the JSON pointer of the keyword and the reason,
 * "#/properties/x/format: …". */
Schema *schema_new(const Pieces *p, const cJSON *schema, Error *err);

/* Compiles a call of one of `tools` (a list from tools_read, which may be freed afterwards) in
 * the model's notation, from <|tool_call> to <tool_call|>.  With `several` one call or more are
 * written.  name: only this tool, NULL: any.  A tool whose parameters are missing or null takes
 * no arguments.  uncompiled says what becomes of a tool whose parameters do not compile:
 * - NULL: the result is NULL with err.  A tool whose parameters compile and nothing satisfies is
 *   never called; it is an error where no other tool is left.
 * - Else the arguments of either kind of tool may be any object, and a sentence that says so and
 *   why is added to *uncompiled, behind "; " where one stands there already. */
Schema *schema_calls(const Pieces *p, const cJSON *tools, const char *name, int several,
                     Buf *uncompiled, Error *err);
void schema_free(Schema *s);            /* s may be NULL */

/* The state in front of the first byte. */
int schema_begin(Schema *s);

/* The state after token id, or -1 where the token is not allowed. */
int schema_next(Schema *s, int state, int id);

/* The state after a single byte, or -1 where the byte is not allowed. */
int schema_step(Schema *s, int state, int byte);

/* Whether the value may end here; whether it must, because nothing can follow. */
int schema_may_end(const Schema *s, int state);
int schema_must_end(Schema *s, int state);

/* The mask of the tokens that may come next: bit id % 64 of word id / 64, with the ends of the
 * turn where the value may end.  left: how many tokens may still be written, this one included,
 * at least schema_distance(state).  Only tokens are in the mask after which the value can be
 * completed in time; *forced (may be NULL) is set to 1 where that excludes tokens.  At least one
 * bit is set.  The schema owns the mask, which is valid until the next call. */
const uint64_t *schema_mask(Schema *s, int state, int left, int *forced);

/* How many tokens are enough to complete the value from here.  Sometimes fewer would do, where a
 * token spans two parts of the value. */
int schema_distance(const Schema *s, int state);

#endif
