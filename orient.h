/* orient.h - how a picture in a file must be turned so that it stands upright. */
#ifndef ORIENT_H
#define ORIENT_H

#include <stddef.h>

/* Returns how the picture in the file bytes[0..n) lies, by EXIF's numbers.  1: it is upright (also
 * where the file says nothing); 2: left and right are exchanged; 3: it is turned by half a turn; 4:
 * both; 5 to 8: as 1 to 4, with rows and columns exchanged.  Formats: JPEG, PNG, WebP, TIFF, HEIC
 * and AVIF. */
int picture_orientation(const void *bytes, size_t n);

/* Whether a HEIC or AVIF says that its picture is larger than width x height pixels: what was
 * decoded is then one tile of it. */
int picture_is_in_tiles(const void *bytes, size_t n, int width, int height);

#endif
