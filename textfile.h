/* textfile.h - reads the text files of -f and /read, and text that is piped in. */
#ifndef TEXTFILE_H
#define TEXTFILE_H

#include "util.h"

/* Adds the text of a file to *b as UTF-8.  path "-" is stdin.  UTF-16 with a byte order mark is
 * converted, and a byte order mark of UTF-8 is dropped.  Anything else that is no UTF-8 text
 * (another encoding, a NUL byte, a PDF, a picture) is an error that says which program helps.
 * Returns 0, or -1 with err and *b as it was.  An empty file is no error here. */
int read_text(const char *path, Buf *b, Error *err);

/* Adds a file to *b as people paste one into a question: a line with its name, then its text
 * between two fences of backticks.  A fence is longer than each run of backticks in the text.  If
 * *b is not empty, a blank line comes first.  Returns as read_text does; an empty file is an
 * error. */
int attach_text(const char *path, Buf *b, Error *err);

#endif
