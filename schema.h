/* schema.h - structured output: a JSON schema as an automaton over bytes, and the tokens that it allows next.
 *
 * What is written under a mask is one JSON value that parses and validates, and nothing else: no
 * control tokens, no text around it.  Decided here, since a schema leaves it open: properties come
 * in the order of the schema (of each schema in it first its own, then those of what its $ref,
 * allOf and alternatives name), without duplicates, then those that are required and not declared, then
 * others; between two elements stands nothing, one space, or a newline and up to 16 spaces; numbers
 * have no superfluous zeros in front, whole ones at most 20 digits (or as many as a bound has),
 * others at most 17 behind the point, and an exponent where nothing but their sign is bounded, or
 * where a bound has more than 100 digits, which they then keep away from; a number that must not be
 * whole has at most 15 digits; strings hold no NUL and no surrogates; where `properties` are given
 * and `additionalProperties` is not, there are no others (what stands in `if`, `not` and in an
 * alternative of oneOf that must not hold gives none), and no more items than `prefixItems` or
 * minItems where `items` and `contains` are not given; where a keyword of one type stands without
 * `type`, `enum` and `const`, the value is of that type.  Where regular expressions of JavaScript
 * and Python differ, those of JavaScript count.
 *
 * The arguments of tool calls are written the same way in the model's own notation (see call.h),
 * but for the order.  In a call the properties that an object's schema names, in `properties` or in
 * `required`, come sorted by their names in lower case, equal ones as in the schema, and so do the
 * members of a constant; nested objects are no exception.  The reason is that the model reads the
 * declaration in that order and writes its calls so.  An optional property keeps its sorted place
 * and may be left out; properties that the schema does not name, where it allows any, come last. */
#ifndef SCHEMA_H
#define SCHEMA_H

#include <cjson/cJSON.h>

#include "vocabulary.h"

/* A schema, compiled, with the masks that it has needed so far.  One thread at a time may use it. */
typedef struct Schema Schema;

/* JSON Schema, drafts 4 to 2020-12: what README.md lists; notes (title, default, x-… and their like) say nothing about
 * the value.  `schema` may be freed afterwards; p must outlive the result, which the caller frees with schema_free.
 * NULL with err for any other keyword, for what cannot be decided while a value is written, and for a schema that nothing
 * satisfies: the JSON pointer of the keyword and why, "#/properties/x/format: …". */
Schema *schema_new(const Pieces *p, const cJSON *schema, Error *err);

/* One or, with `several`, more calls of `tools` (a checked list as in an OpenAI request), in the
 * model's notation, each from <|tool_call> to <tool_call|>.  name: only this tool, NULL: any.
 * uncompiled says what becomes of a tool whose parameters do not compile.  NULL: the result is NULL
 * with err.  Else the tool is held to its name alone, its arguments may be any object, and a line
 * is added to *uncompiled that says so and why, behind "; " where one stands there already.  The
 * same then holds for a tool whose parameters nothing satisfies; without uncompiled such a tool is
 * never called, and it is an error where no other is left.  A tool without parameters (or null)
 * takes none. */
Schema *schema_calls(const Pieces *p, const cJSON *tools, const char *name, int several,
                     Buf *uncompiled, Error *err);
void schema_free(Schema *s);

/* The state in front of the first byte; the one after token id, or -1 when it is not allowed there. */
int schema_begin(Schema *s);
int schema_next(Schema *s, int state, int id);

/* The state after a single byte, -1: it is not allowed there. */
int schema_step(Schema *s, int state, int byte);

/* May the value end here?  Must it, as nothing can follow? */
int schema_may_end(const Schema *s, int state);
int schema_must_end(Schema *s, int state);

/* The tokens that may come next: bit id % 64 of word id / 64, the ends of the turn included where the value may end.
 * left: how many tokens may still be written, this one included, at least schema_distance(state): only those are allowed from
 * which the value can be completed in time.  *forced (may be NULL) is set to 1 when that takes tokens away.  At least one bit
 * is set.  Valid until the next call. */
const uint64_t *schema_mask(Schema *s, int state, int left, int *forced);

/* So many tokens are enough to complete the value from here.  (Now and then fewer would do, where a token spans two parts of it.) */
int schema_distance(const Schema *s, int state);

#endif
