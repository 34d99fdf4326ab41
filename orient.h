/* orient.h - how a picture lies in its file. */
#ifndef ORIENT_H
#define ORIENT_H

#include <stddef.h>
#include <stdint.h>

/* The orientation, as EXIF numbers it, that the file bytes[0..n) asks for: 1 upright (also where it
 * says nothing); 2 mirrored; 3 half a turn; 4 both; 5 to 8 the same, rows and columns exchanged.
 * Of JPEG, PNG, WebP, TIFF, HEIC and AVIF. */
int picture_orientation(const void *bytes, size_t n);

/* Whether a HEIC or AVIF says that its picture is larger than width x height pixels: what was
 * decoded is then one tile of it. */
int picture_is_in_tiles(const void *bytes, size_t n, int width, int height);

#endif
