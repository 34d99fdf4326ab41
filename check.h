/* check.h - `gemma4 check`: does a schema compile, and would it have allowed a text? */
#ifndef CHECK_H
#define CHECK_H

#include "schema.h"

/* Compiles a schema and holds the text on stdin against it, unless stdin is a terminal.  A
 * newline at the end of the text belongs to the file and is ignored.  Prints `compiles` where
 * stdin is empty or a terminal; otherwise `yes`, or where and why the schema forbids the text.
 * `name` is what errors call the schema: its file or option.  Returns 0; 1 where the text is
 * forbidden; -1 with err where the schema does not compile or stdin cannot be read. */
int check_schema(const Pieces *p, const cJSON *schema, const char *name, Error *err);

/* Compiles the parameters of each tool of a list from tools_read.  Prints `compiles` and returns 0,
 * or writes a line to stderr for each tool that does not compile and returns 1.  `name` is what the
 * lines call the list: its file or option. */
int check_tools(const Pieces *p, const cJSON *tools, const char *name);

#endif
