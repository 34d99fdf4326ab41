/* sniff.c - recognises the format of a file by its first bytes.  See sniff.h. */
#define _GNU_SOURCE
#include "sniff.h"

#include <string.h>

#define TO_PNG "magick %s out.png"
#define TO_TEXT "pandoc -t plain %s"

/* How a format is recognised. */
typedef struct {
    size_t at;                          /* the file has the bytes `magic` at this offset */
    const char *magic;
    size_t n;                           /* bytes of magic, which may contain 0 */
    const char *also;                   /* unless NULL, the file has this text, too … */
    size_t within;                      /* … in its first so many bytes; 0: anywhere */
    Format format;
} Magic;

#define BYTES(text) text, sizeof(text) - 1

/* The first row that fits counts.  So a special format stands before the general one, as an EPUB
 * before a ZIP archive. */
static const Magic table[] = {
    {0, BYTES("\xff\xd8\xff"), NULL, 0, {PICTURE, "a JPEG", TO_PNG}},
    {0, BYTES("\x89PNG\r\n\x1a\n"), NULL, 0, {PICTURE, "a PNG", TO_PNG}},
    {0, BYTES("GIF8"), NULL, 0, {PICTURE, "a GIF", TO_PNG}},
    {0, BYTES("BM"), NULL, 0, {PICTURE, "a BMP", TO_PNG}},
    {8, BYTES("WEBP"), NULL, 0, {FFMPEG_PICTURE, "a WebP", "dwebp %s -o out.png"}},
    {4, BYTES("ftypavi"), NULL, 0, {FFMPEG_PICTURE, "an AVIF", "avifdec %s out.png"}},
    {4, BYTES("ftyphe"), NULL, 0, {FFMPEG_PICTURE, "a HEIC", "heif-convert %s out.png"}},
    {4, BYTES("ftypmif1"), "avif", 64, {FFMPEG_PICTURE, "an AVIF", "avifdec %s out.png"}},
    {4, BYTES("ftypm"), "heic", 64, {FFMPEG_PICTURE, "a HEIC", "heif-convert %s out.png"}},
    {0, BYTES("II*\0"), NULL, 0, {FFMPEG_PICTURE, "a TIFF", TO_PNG}},
    {0, BYTES("MM\0*"), NULL, 0, {FFMPEG_PICTURE, "a TIFF", TO_PNG}},
    {0, BYTES("\xff\x0a"), NULL, 0, {FFMPEG_PICTURE, "a JPEG XL", "djxl %s out.png"}},
    {0, BYTES("\0\0\0\x0cJXL "), NULL, 0, {FFMPEG_PICTURE, "a JPEG XL", "djxl %s out.png"}},
    {0, BYTES("\0\0\0\x0cjP  "), NULL, 0, {FFMPEG_PICTURE, "a JPEG 2000", TO_PNG}},
    {0, BYTES("\xff\x4f\xff\x51"), NULL, 0, {FFMPEG_PICTURE, "a JPEG 2000", TO_PNG}},
    {0, BYTES("8BPS"), NULL, 0, {FFMPEG_PICTURE, "a PSD", TO_PNG}},
    /* Of an OpenEXR ffmpeg shows linear light, too dark, and says nothing where the end is
     * missing. */
    {0, BYTES("v/1\1"), NULL, 0, {OTHER_PICTURE, "an OpenEXR", TO_PNG}},
    {0, BYTES("qoif"), NULL, 0, {FFMPEG_PICTURE, "a QOI", TO_PNG}},
    {0, BYTES("P1\n"), NULL, 0, {FFMPEG_PICTURE, "a PBM in text", TO_PNG}},
    {0, BYTES("P2\n"), NULL, 0, {FFMPEG_PICTURE, "a PGM in text", TO_PNG}},
    {0, BYTES("P3\n"), NULL, 0, {FFMPEG_PICTURE, "a PPM in text", TO_PNG}},
    {0, BYTES("P4\n"), NULL, 0, {FFMPEG_PICTURE, "a PBM", TO_PNG}},
    {0, BYTES("P7\n"), NULL, 0, {FFMPEG_PICTURE, "a PAM", TO_PNG}},
    {0, BYTES("\0\0\1\0"), NULL, 0, {FFMPEG_PICTURE, "an ICO", TO_PNG}},
    {0, BYTES("\x0a\5\1\x08"), NULL, 0, {FFMPEG_PICTURE, "a PCX", TO_PNG}},
    {0, BYTES("\1\xda"), NULL, 0, {FFMPEG_PICTURE, "an SGI image", TO_PNG}},
    {0, BYTES("SDPX"), NULL, 0, {FFMPEG_PICTURE, "a DPX", TO_PNG}},
    {0, BYTES("XPDS"), NULL, 0, {FFMPEG_PICTURE, "a DPX", TO_PNG}},
    {0, BYTES("DDS "), NULL, 0, {FFMPEG_PICTURE, "a DDS", TO_PNG}},
    {0, BYTES("<svg"), NULL, 0, {FFMPEG_PICTURE, "an SVG", "rsvg-convert %s -o out.png"}},
    {0, BYTES("<?xml"), "<svg", 4096, {FFMPEG_PICTURE, "an SVG", "rsvg-convert %s -o out.png"}},
    {0, BYTES("<!"), "<svg", 4096, {FFMPEG_PICTURE, "an SVG", "rsvg-convert %s -o out.png"}},
    {4, BYTES("ftypM4A"), NULL, 0, {SOUND, "a recording of sound", NULL}},
    {4, BYTES("ftyp"), NULL, 0, {FILM, "an MP4 or QuickTime video", NULL}},
    {0, BYTES("\x1a\x45\xdf\xa3"), NULL, 0, {FILM, "a Matroska or WebM video", NULL}},
    {8, BYTES("AVI "), NULL, 0, {FILM, "an AVI video", NULL}},
    {8, BYTES("WAVE"), NULL, 0, {SOUND, "a recording of sound", NULL}},
    {0, BYTES("ID3"), NULL, 0, {SOUND, "a recording of sound", NULL}},
    {0, BYTES("fLaC"), NULL, 0, {SOUND, "a recording of sound", NULL}},
    {0, BYTES("OggS"), NULL, 0, {SOUND, "a recording of sound", NULL}},
    {0, BYTES("%PDF-"), NULL, 0, {DOCUMENT, "a PDF", "pdftotext -layout %s -"}},
    {0, BYTES("PK\3\4"), "application/epub+zip", 128, {DOCUMENT, "an EPUB", TO_TEXT}},
    {0, BYTES("PK\3\4"), "opendocument.text", 128, {DOCUMENT, "an ODT", TO_TEXT}},
    {0, BYTES("PK\3\4"), "opendocument", 128,
     {DOCUMENT, "an OpenDocument file", "libreoffice --headless --convert-to pdf %s"}},
    {0, BYTES("PK\3\4"), "word/", 0, {DOCUMENT, "a DOCX", TO_TEXT}},
    {0, BYTES("PK\3\4"), "xl/", 0,
     {DOCUMENT, "an XLSX", "libreoffice --headless --convert-to csv %s"}},
    {0, BYTES("PK\3\4"), "ppt/", 0,
     {DOCUMENT, "a PPTX", "libreoffice --headless --convert-to pdf %s"}},
    {0, BYTES("PK\3\4"), NULL, 0, {BINARY, "a ZIP archive", "unzip -p %s"}},
    {0, BYTES("\xd0\xcf\x11\xe0"), NULL, 0,
     {DOCUMENT, "an old Office document", "libreoffice --headless --convert-to txt:Text %s"}},
    {0, BYTES("\x1f\x8b"), NULL, 0, {BINARY, "compressed by gzip", "zcat %s"}},
    {0, BYTES("\xfd" "7zXZ"), NULL, 0, {BINARY, "compressed by xz", "xzcat %s"}},
    {0, BYTES("(\xb5/\xfd"), NULL, 0, {BINARY, "compressed by zstd", "zstdcat %s"}},
    {0, BYTES("BZh"), NULL, 0, {BINARY, "compressed by bzip2", "bzcat %s"}},
    {0, BYTES("\x7f" "ELF"), NULL, 0, {BINARY, "a program", NULL}},
    {0, BYTES("SQLite format 3"), NULL, 0, {BINARY, "an SQLite database", "sqlite3 %s .dump"}},
};

/* Whether the bytes contain the text `also`: see Magic. */
static int has(const char *bytes, size_t n, const char *also, size_t within) {
    if (!also) return 1;
    if (within && n > within) n = within;
    return memmem(bytes, n, also, strlen(also)) != NULL;
}

const Format *sniff(const void *bytes, size_t n) {
    for (size_t i = 0; i < sizeof table / sizeof *table; i++) {
        const Magic *m = &table[i];
        if (n < m->at + m->n || memcmp((const char *)bytes + m->at, m->magic, m->n)) continue;
        if (has(bytes, n, m->also, m->within)) return &m->format;
    }
    return NULL;
}
