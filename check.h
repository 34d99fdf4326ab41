/* check.h - `gemma4 check`: does a schema compile, and would it have allowed a text? */
#ifndef CHECK_H
#define CHECK_H

#include "schema.h"

/* Compiles a schema; `name`, its file or option, is how errors call it.  On stdin, unless that is a
 * terminal, stands a text; a newline at its end is the file's.  Prints `compiles` where the input
 * is empty, otherwise `yes`, or where and why the schema forbids the text.  Returns 0, 1 where the
 * text is forbidden, or -1 with err. */
int check_schema(const Pieces *p, const cJSON *schema, const char *name, Error *err);

/* Compiles the parameters of each tool of a list from tools_read.  Says on stderr what is wrong, a
 * line for each that does not compile, and returns 1; else prints `compiles` and returns 0. */
int check_tools(const Pieces *p, const cJSON *tools, const char *name);

#endif
