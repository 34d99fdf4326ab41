/* orient.c - how a picture in a file must be turned.  See orient.h.
 *
 * transformers calls Pillow's exif_transpose, and this file follows it: the orientation in EXIF
 * counts, or that in XMP where EXIF has none.  HEIC and AVIF have properties of their own
 * (ISO 23008-12) that count instead of their EXIF. */
#define _GNU_SOURCE
#include "orient.h"

#include <string.h>

#include "util.h"

/* Returns the orientation in the TIFF structure p[0..n), perhaps with EXIF's name in front: tag
 * 0x112, of type SHORT (3), in the first directory, whose entries have 12 bytes.  0: there is
 * none. */
static int from_tiff(const uint8_t *p, size_t n) {
    if (n > 6 && !memcmp(p, "Exif\0", 6)) p += 6, n -= 6;
    if (n < 8 || (memcmp(p, "II*\0", 4) && memcmp(p, "MM\0*", 4))) return 0;
    int big = p[0] == 'M';
    size_t at = number_at(p + 4, 4, big);
    if (at > n - 2) return 0;
    unsigned count = number_at(p + at, 2, big);
    for (at += 2; count-- && at + 12 <= n; at += 12)
        if (number_at(p + at, 2, big) == 0x112) {
            unsigned v = number_at(p + at + 8, 2, big);
            return number_at(p + at + 2, 2, big) == 3 && v >= 1 && v <= 8 ? (int)v : 0;
        }
    return 0;
}

/* Returns the orientation in XMP, which is XML: tiff:Orientation="6" or <tiff:Orientation>6<.  0:
 * there is none. */
static int from_xmp(const uint8_t *p, size_t n) {
    static const char name[] = "tiff:Orientation";
    const size_t length = sizeof name - 1;
    const uint8_t *end = p + n;
    for (const uint8_t *q = p; q && (q = memmem(q, (size_t)(end - q), name, length));) {
        q += length;
        if (end - q > 1 && q[0] == '>' && q[1] >= '1' && q[1] <= '8') return q[1] - '0';
        if (end - q > 2 && q[0] == '=' && (q[1] == '"' || q[1] == '\'') && q[2] >= '1' &&
            q[2] <= '8')
            return q[2] - '0';
    }
    return 0;
}

/* The orientations that were found in a file's EXIF and XMP; 0: none yet. */
typedef struct { int exif, xmp; } Said;

static void take_exif(Said *s, const uint8_t *p, size_t n) {
    if (!s->exif) s->exif = from_tiff(p, n);
}

static void take_xmp(Said *s, const uint8_t *p, size_t n) {
    if (!s->xmp) s->xmp = from_xmp(p, n);
}

/* A JPEG is segments: FF, type, length of 2 bytes (which counts itself), data.  More bytes FF may
 * stand in front of a segment.  Only the segments before the picture's data (type DA) matter. */
static void read_jpeg(Said *s, const uint8_t *p, size_t n) {
    static const char xmp[] = "http://ns.adobe.com/xap/1.0/";
    size_t size;
    for (size_t at = 2; at + 4 <= n && p[at] == 0xff && p[at + 1] != 0xda; at += size) {
        size = 1;
        if (p[at + 1] == 0xff) continue;
        size = 2 + (size_t)number_at(p + at + 2, 2, 1);
        if (size < 4 || at + size > n) return;
        if (p[at + 1] != 0xe1) continue;
        const uint8_t *data = p + at + 4;
        if (size >= 10 && !memcmp(data, "Exif\0", 6)) take_exif(s, data, size - 4);
        else if (size >= 4 + sizeof xmp && !memcmp(data, xmp, sizeof xmp))
            take_xmp(s, data, size - 4);
    }
}

/* A PNG is chunks: length of 4 bytes, name, data, checksum. */
static void read_png(Said *s, const uint8_t *p, size_t n) {
    static const char xmp[] = "XML:com.adobe.xmp";
    size_t size;
    for (size_t at = 8; at + 12 <= n; at += 12 + size) {
        size = number_at(p + at, 4, 1);
        if (size > n - at - 12) return;
        const uint8_t *data = p + at + 8;
        if (!memcmp(p + at + 4, "eXIf", 4)) take_exif(s, data, size);
        if (!memcmp(p + at + 4, "iTXt", 4) && size > sizeof xmp && !memcmp(data, xmp, sizeof xmp))
            take_xmp(s, data, size);
    }
}

/* A WebP is RIFF: chunks of a name, a length of 4 bytes, data, padded to an even length. */
static void read_webp(Said *s, const uint8_t *p, size_t n) {
    size_t size;
    for (size_t at = 12; at + 8 <= n; at += 8 + size + size % 2) {
        size = number_at(p + at + 4, 4, 0);
        if (size > n - at - 8) return;
        if (!memcmp(p + at, "EXIF", 4)) take_exif(s, p + at + 8, size);
        if (!memcmp(p + at, "XMP ", 4)) take_xmp(s, p + at + 8, size);
    }
}

/* Returns the data of the first box of that name with a byte of data, in a HEIC or AVIF.  A box is
 * its length in 4 bytes, all included, its name and its data.  NULL: there is none. */
static const uint8_t *find_box(const uint8_t *p, size_t n, const char *name) {
    const uint8_t *end = p + n;
    for (const uint8_t *q = p; (q = memmem(q, (size_t)(end - q), name, 4)); q += 4)
        if (q - p >= 4 && end - q >= 5 && number_at(q - 4, 4, 1) == 9) return q + 4;
    return NULL;
}

/* The orientation that the properties of a HEIC or AVIF stand for.  irot: so many quarter turns
 * against the clock.  imir, afterwards: 0 exchanges top and bottom, 1 left and right. */
static int from_properties(const uint8_t *p, size_t n) {
    static const int turned[3][4] = {{1, 8, 3, 6}, {4, 5, 2, 7}, {2, 7, 4, 5}};
    const uint8_t *turn = find_box(p, n, "irot"), *mirror = find_box(p, n, "imir");
    int turns = turn ? *turn & 3 : 0, row = 0;
    if (mirror) row = 1 + (*mirror & 1);
    return turned[row][turns];
}

int picture_orientation(const void *bytes, size_t n) {
    const uint8_t *p = bytes;
    Said said = {0};
    if (n > 12 && !memcmp(p + 4, "ftyp", 4)) return from_properties(p, n);
    if (n > 4 && p[0] == 0xff && p[1] == 0xd8) read_jpeg(&said, p, n);
    else if (n > 8 && !memcmp(p, "\x89PNG", 4)) read_png(&said, p, n);
    else if (n > 12 && !memcmp(p + 8, "WEBP", 4)) read_webp(&said, p, n);
    else take_exif(&said, p, n);
    if (said.exif) return said.exif;
    return said.xmp ? said.xmp : 1;
}

int picture_is_in_tiles(const void *bytes, size_t n, int width, int height) {
    const uint8_t *p = bytes, *end = p + n;
    if (n < 12 || memcmp(p + 4, "ftyp", 4)) return 0;
    for (const uint8_t *q = p; (q = memmem(q, (size_t)(end - q), "ispe", 4)); q += 4) {
        if (q - p < 4 || end - q < 16 || number_at(q - 4, 4, 1) != 20) continue;
        if (number_at(q + 8, 4, 1) > (unsigned)width || number_at(q + 12, 4, 1) > (unsigned)height)
            return 1;
    }
    return 0;
}
