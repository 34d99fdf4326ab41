/* dropped.h - finds the paths of files in a line, as people type them and as terminals insert them
 * when a file is dropped on the window. */
#ifndef DROPPED_H
#define DROPPED_H

#include "util.h"

/* Decodes text[0..n), which is one path, and adds it to path, which the caller frees.  The text may
 * have quotes or blanks around it, \ in front of characters, and ~/ for the home directory; or it
 * may be a URL (file:///a%20b.png). */
void path_of(const char *text, size_t n, Buf *path);

/* Finds the next word, from *at on, that is the path of a picture or a video: the file exists, and
 * media_kind knows the ending of its name.  The path may have any form that path_of takes, with a
 * comma, a full stop, brackets and the like around it.  *path becomes the decoded path, and *at
 * moves behind the word.  *only becomes 0 when another word is passed.  Returns what media_kind
 * says of the file, or 0 where the line has no further such word. */
int next_dropped(const char **at, Buf *path, int *only);

#endif
