/* textfile.h - text files that the user gives: -f, /read, and text that is piped in. */
#ifndef TEXTFILE_H
#define TEXTFILE_H

#include "util.h"

/* Adds the text of a file to *b as UTF-8.  path "-" is stdin.  UTF-16 with a byte order mark is
 * converted, and a byte order mark of UTF-8 is dropped.  Anything else that is no UTF-8 text
 * (another encoding, a NUL byte, a PDF, a picture) is an error that says which program helps.
 * Returns 0, or -1 with err and *b as it was.  An empty file is no error here. */
int read_text(const char *path, Buf *b, Error *err);

/* Adds a file to *b as people paste one: a line with its name, then the text in a fence of
 * backticks, of which the text has no run as long; a blank line in front if *b is not empty.
 * Returns as read_text; an empty file is an error. */
int attach_text(const char *path, Buf *b, Error *err);

#endif
