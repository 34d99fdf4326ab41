/* sniff.h - what the first bytes of a file say of its format. */
#ifndef SNIFF_H
#define SNIFF_H

#include <stddef.h>

typedef enum {
    PICTURE,                            /* stb_image reads it */
    FFMPEG_PICTURE,                     /* ffmpeg reads it */
    FILM,                               /* ffmpeg reads it, as a video */
    SOUND,
    DOCUMENT,                           /* another program makes text of it */
    BINARY,                             /* an archive, a program, data */
} FormatKind;

typedef struct {
    FormatKind kind;
    const char *name;                   /* "a PNG", "an SVG" */
    const char *converter;              /* the command that makes a picture or text of it, with one
                                         * %s for the file's name; NULL: none is known */
} Format;

/* The format of bytes[0..n), or NULL for one that is not known.  Text has none, but for SVG. */
const Format *sniff(const void *bytes, size_t n);

#endif
