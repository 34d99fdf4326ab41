/* dropped.h - the files that a line names, as people type paths and as terminals paste them. */
#ifndef DROPPED_H
#define DROPPED_H

#include "util.h"

/* Decodes a text that is one path: perhaps in quotes, with \ before blanks, with blanks around it,
 * with ~ for the home directory, or as a URL (file:///a%20b.png).  Adds it to path, which the
 * caller frees. */
void path_of(const char *text, size_t n, Buf *path);

/* Looks for the next picture or video in a line: from *at on, words that name an existing file, by
 * the ending of its name.  A word may be a path of any form that path_of takes, with a comma, a
 * full stop, brackets and the like around it.  Makes path the decoded path and moves *at behind the
 * word.  *only becomes 0 where a word that is none stands before it.  Returns what media_kind says
 * of the file, or 0 where there is none any more. */
int next_dropped(const char **at, Buf *path, int *only);

#endif
