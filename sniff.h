/* sniff.h - recognises the format of a file by its first bytes. */
#ifndef SNIFF_H
#define SNIFF_H

#include <stddef.h>

typedef enum {
    PICTURE,                            /* a picture that stb_image reads */
    FFMPEG_PICTURE,                     /* a picture that ffmpeg reads */
    OTHER_PICTURE,                      /* a picture that no part of this program reads rightly */
    FILM,                               /* a video that ffmpeg reads */
    SOUND,                              /* no part of this program reads it */
    DOCUMENT,                           /* another program converts it to text */
    BINARY,                             /* an archive, a program, data */
} FormatKind;

typedef struct {
    FormatKind kind;
    const char *name;                   /* with its article, for messages: "a PNG", "an SVG" */
    const char *converter;              /* the command that makes a picture or text of it, with one
                                         * %s for the file's name; NULL: none is known */
} Format;

/* Returns the format of bytes[0..n), or NULL where it is not known.  Of formats that are text, only
 * SVG is known. */
const Format *sniff(const void *bytes, size_t n);

#endif
