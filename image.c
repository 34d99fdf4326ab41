/* image.c - decodes images and cuts them into patches.  See image.h.
 *
 * stb_image decodes, but for PPM and PGM.  Files may come from anywhere, so this file guards it:
 * the declared size is checked before any memory is allocated; no allocation may be larger than
 * that size needs; a read beyond the end of the file is noticed, where stb_image itself would
 * continue with zeros. */
#include "image.h"
#include "orient.h"

#include <ctype.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static _Thread_local size_t largest;    /* limit of one allocation of stb_image, in bytes */

/* malloc and realloc for stb_image.  New memory is zero, because stb_image reads tables that a
 * damaged JPEG never defined. */
static void *limited(void *p, size_t n) {
    if (n > largest) return NULL;
    if (!n) n = 1;
    return p ? realloc(p, n) : calloc(n, 1);
}

#define STB_IMAGE_IMPLEMENTATION
#define STB_IMAGE_STATIC
#define STBI_NO_STDIO
#define STBI_NO_LINEAR
#define STBI_NO_HDR
#define STBI_NO_PSD
#define STBI_NO_PIC
#define STBI_FAILURE_USERMSG
#define STBI_MALLOC(n) limited(NULL, n)
#define STBI_REALLOC(p, n) limited(p, n)
#define STBI_FREE(p) free(p)
#pragma GCC diagnostic ignored "-Wunused-function"
#pragma GCC diagnostic ignored "-Wunused-but-set-variable"
#pragma GCC diagnostic ignored "-Wsign-compare"
#include <stb/stb_image.h>

#ifndef MAX_PIXELS
#define MAX_PIXELS (1 << 28)            /* of one image: more than cameras take, and 4 GB to decode;
                                         * check_size lowers it on a small machine */
#endif
#define MAX_GIF_WORK (1ll << 33)        /* frames x pixels of an animation.  stb_image copies all
                                         * pixels for each frame, so that a small file could keep it
                                         * busy for hours; this limit is 34 GB for each copy,
                                         * seconds to a minute */

/* ---- reading from memory: stb_image's callbacks ---- */

typedef struct {
    const uint8_t *p;
    size_t left;                        /* bytes */
    int past_end;                       /* 1: stb_image wanted to read more than there is */
} ImageBytes;

/* stb_image fills its buffer of 128 bytes ahead of need.  So a read of 128 bytes may go beyond the
 * end, but not begin there. */
static int source_read(void *user, char *out, int n) {
    ImageBytes *s = user;
    if (!s->left || ((size_t)n > s->left && n != 128)) s->past_end = 1;
    if ((size_t)n > s->left) n = (int)s->left;
    memcpy(out, s->p, (size_t)n);
    s->p += n;
    s->left -= (size_t)n;
    return n;
}

static void source_skip(void *user, int n) {
    ImageBytes *s = user;
    if (n < 0 || (size_t)n > s->left) {
        s->past_end = 1;
        n = (int)s->left;
    }
    s->p += n;
    s->left -= (size_t)n;
}

static int source_eof(void *user) { return ((ImageBytes *)user)->left == 0; }

static const stbi_io_callbacks source_io = {source_read, source_skip, source_eof};

/* Checks the size that the file declares, and sets `largest` accordingly.  Decoding takes at most
 * 16 bytes a pixel; images whose decoding would take more than the machine's memory are refused.
 * Returns as image_decode. */
static int check_size(const void *bytes, size_t n, Error *err) {
    int w, h, channels;
    double limit = (double)sysconf(_SC_PHYS_PAGES) * (double)sysconf(_SC_PAGESIZE) / 16;
    if (limit > MAX_PIXELS) limit = MAX_PIXELS;
    if (n > INT32_MAX) return fail(err, "an image of %.1f GB", (double)n * 1e-9);
    largest = 1 << 20;
    if (!stbi_info_from_memory(bytes, (int)n, &w, &h, &channels)) {
        fail(err, "not an image, or damaged");
        return NOT_DECODED;
    }
    if (w < 1 || h < 1) return fail(err, "an image of %d x %d pixels", w, h);
    if ((double)w * h > limit)
        return fail(err, "an image of %d x %d pixels: more than %.0f million are not read", w, h,
                    limit * 1e-6);
    /* 4 channels of 16 bits, twice; the file's compressed data, twice; the decoder's tables. */
    largest = (size_t)w * (size_t)h * 16 + 2 * n + (1 << 20);
    return 0;
}

/* ---- decoding ---- */

static int truncated(Error *err) {
    fail(err, "the image is truncated");
    return TRUNCATED;
}

static int damaged(Error *err, const char *why) {
    fail(err, "the image is damaged (%s)", why);
    return NOT_DECODED;
}

/* One channel of a pixel over white, rounded as PIL's alpha_composite does. */
static uint8_t over_white(unsigned v, unsigned alpha) {
    unsigned t = (v * alpha + 255 * (255 - alpha) + 128) << 7;
    return (uint8_t)(((t >> 8) + t) >> 8 >> 7);
}

int image_from_pixels(const uint8_t *in, int w, int h, int channels, int orientation, Image *out) {
    int o = orientation, turned = o > 4;
    int mirrored = o == 2 || o == 3 || o == 6 || o == 7;
    int upside_down = o == 3 || o == 4 || o == 7 || o == 8;
    *out = (Image){w, h, malloc((size_t)w * (size_t)h * 3)};
    if (turned) out->width = h, out->height = w;
    if (!out->rgb) return -1;
    uint8_t *p = out->rgb;
    for (int y = 0; y < out->height; y++)
        for (int x = 0; x < out->width; x++, p += 3) {
            int column = mirrored ? out->width - 1 - x : x;
            int row = upside_down ? out->height - 1 - y : y;
            int64_t at = turned ? (int64_t)column * w + row : (int64_t)row * w + column;
            const uint8_t *q = in + at * channels;
            int grey = channels < 3;
            for (int c = 0; c < 3; c++) {
                p[c] = q[grey ? 0 : c];
                if (channels % 2 == 0) p[c] = over_white(p[c], q[channels - 1]);
            }
        }
    return 0;
}

/* stb_image 2.27 writes beyond its tables when a DHT segment (Huffman tables: FF C4, length, tables
 * of 17 bytes plus their codes) declares more than 256 codes in a table.  So this function gives
 * length 0 to every place in the file that looks like such a segment.  If stb_image reads it as
 * one, length 0 is an error; if the bytes are something else, too few of them change to matter.  It
 * goes from the end to the beginning, because a length that it changes may also count the codes of
 * an earlier segment. */
static void defuse_jpeg(uint8_t *p, size_t n) {
    for (size_t i = n; i-- > 0;) {
        if (i + 4 > n || p[i] != 0xff || p[i + 1] != 0xc4) continue;
        size_t at = i + 4;
        for (long left = (long)(p[i + 2] << 8 | p[i + 3]) - 2; left > 0 && at < n;) {
            size_t codes = 0;
            for (size_t k = at + 1; k < at + 17 && k < n; k++) codes += p[k];
            if (codes > 256) p[i + 2] = p[i + 3] = 0;
            if (codes > 256) break;
            at += 17 + codes;
            left -= 17 + (long)codes;
        }
    }
}

/* ---- PPM and PGM ---- */

static int is_pnm(const uint8_t *bytes, size_t n) {
    return n > 2 && bytes[0] == 'P' && (bytes[1] == '5' || bytes[1] == '6');
}

/* The next number of a PNM's header, behind white space and comments.  *at moves behind it. */
static int pnm_number(const uint8_t *bytes, size_t n, size_t *at) {
    int number = 0, in_comment = 0;
    for (; *at < n && (in_comment || isspace(bytes[*at]) || bytes[*at] == '#'); ++*at) {
        if (bytes[*at] == '#') in_comment = 1;
        if (bytes[*at] == '\n' || bytes[*at] == '\r') in_comment = 0;
    }
    for (; *at < n && isdigit(bytes[*at]) && number < 100000000; ++*at)
        number = number * 10 + (bytes[*at] - '0');
    return number;
}

/* Decodes a PNM.  stb_image cannot do it: it ignores the header's largest value, which stands for
 * white, and takes samples of two bytes, which have the high byte first, in the order of the
 * machine.  Returns as image_decode. */
static int decode_pnm(const uint8_t *bytes, size_t n, Image *out, Error *err) {
    size_t at = 2;
    int bad = check_size(bytes, n, err);
    if (bad) return bad;
    int w = pnm_number(bytes, n, &at), h = pnm_number(bytes, n, &at);
    unsigned white = (unsigned)pnm_number(bytes, n, &at);
    int channels = bytes[1] == '6' ? 3 : 1;
    size_t size = white > 255 ? 2 : 1, n_samples = (size_t)w * (size_t)h * (size_t)channels;
    at++;                               /* one white space stands before the samples */
    if (!white || white > UINT16_MAX)
        return fail(err, "the image is damaged (a largest value of %u)", white);
    if (at > n || (n - at) / size < n_samples) return truncated(err);
    uint8_t *pixels = malloc(n_samples + 1);
    for (size_t i = 0; pixels && i < n_samples; i++) {
        const uint8_t *p = bytes + at + i * size;
        unsigned v = size == 2 ? (unsigned)(p[0] << 8 | p[1]) : p[0];
        pixels[i] = (uint8_t)(((v < white ? v : white) * 255 + white / 2) / white);
    }
    bad = !pixels || image_from_pixels(pixels, w, h, channels, 1, out);
    free(pixels);
    return bad ? fail(err, "no memory for an image of %d x %d pixels", w, h) : 0;
}

int image_is_gif(const void *bytes, size_t n) {
    return n >= 6 && (!memcmp(bytes, "GIF87a", 6) || !memcmp(bytes, "GIF89a", 6));
}

static uint32_t png_number(const uint8_t *p) {
    return (uint32_t)p[0] << 24 | (uint32_t)p[1] << 16 | (uint32_t)p[2] << 8 | p[3];
}

/* Returns 1 where a chunk of a PNG that says something of its pixels has a wrong checksum (the CRC
 * of the PNG specification, annex D).  stb_image looks at none, nor at zlib's. */
static int is_damaged_png(const uint8_t *bytes, size_t n) {
    uint32_t table[256];
    if (n < 8 || memcmp(bytes, "\x89PNG\r\n\x1a\n", 8)) return 0;
    for (uint32_t i = 0; i < 256; i++) {
        table[i] = i;
        for (int bit = 0; bit < 8; bit++)
            table[i] = table[i] >> 1 ^ (table[i] & 1 ? 0xedb88320u : 0);
    }
    for (size_t at = 8; n - at >= 12;) {
        const uint8_t *type = bytes + at + 4;
        size_t size = png_number(bytes + at);
        if (size > n - at - 12) return 0;
        uint32_t crc = ~0u;
        for (size_t i = 0; i < 4 + size; i++) crc = crc >> 8 ^ table[(crc ^ type[i]) & 255];
        int is_critical = !(type[0] & 0x20);            /* its first letter is a capital */
        if (is_critical || !memcmp(type, "tRNS", 4))
            if (~crc != png_number(type + 4 + size)) return 1;
        if (!memcmp(type, "IEND", 4)) return 0;
        at += 12 + size;
    }
    return 0;
}

/* Whether bytes[0..n) is a BMP of 32 bits for a pixel without masks (compression 0).  The fourth
 * byte of its pixels then has no meaning; stb_image would take it for alpha. */
static int is_bmp_without_alpha(const uint8_t *bytes, size_t n) {
    static const uint8_t no_compression[4];
    if (n < 34 || memcmp(bytes, "BM", 2) || bytes[14] < 40) return 0;
    return bytes[28] == 32 && !memcmp(bytes + 30, no_compression, 4);
}

/* Decodes bytes[0..n), whose size has been checked.  Returns as image_decode. */
static int decode(const uint8_t *bytes, size_t n, int orientation, Image *out, Error *err) {
    ImageBytes source = {bytes, n, 0};
    int wanted = is_bmp_without_alpha(bytes, n) ? 3 : 0;        /* 0: as many as the file has */
    int w, h, channels, bad = 0;
    uint8_t *pixels = stbi_load_from_callbacks(&source_io, &source, &w, &h, &channels, wanted);
    if (wanted) channels = wanted;
    const char *why = stbi_failure_reason();
    /* About a JPEG with bad tables stb_image says nothing: `why` is then left from trying PNG. */
    if (!strcmp(why ? why : "", "Not a PNG")) why = "Corrupt JPEG";
    if (source.past_end) bad = truncated(err);
    else if (!pixels) bad = damaged(err, why);
    else if (is_damaged_png(bytes, n)) {
        damaged(err, "a wrong checksum");
        bad = TRUNCATED;
    } else if (image_from_pixels(pixels, w, h, channels, orientation, out))
        bad = fail(err, "no memory for an image of %d x %d pixels", w, h);
    free(pixels);
    return bad;
}

int image_decode(const void *bytes, size_t n, Image *out, Error *err) {
    *out = (Image){0};
    if (image_is_gif(bytes, n)) return gif_frames(bytes, n, (int[]){0}, 1, out, err);
    if (is_pnm(bytes, n)) return decode_pnm(bytes, n, out, err);
    uint8_t *copy = malloc(n ? n : 1);
    if (!copy) return fail(err, "no memory for an image of %.1f MB", (double)n * 1e-6);
    if (n) memcpy(copy, bytes, n);
    if (n && copy[0] == 0xff) defuse_jpeg(copy, n);
    int bad = check_size(copy, n, err);
    if (!bad) bad = decode(copy, n, picture_orientation(bytes, n), out, err);
    free(copy);
    return bad;
}

/* ---- animated GIFs, frame by frame ---- */

typedef struct {
    ImageBytes source;
    stbi__context context;
    stbi__gif gif;                      /* owns out, background and history */
    long long work;                     /* pixels of all frames so far, see MAX_GIF_WORK */
} GifReader;

static int gif_open(GifReader *r, const void *bytes, size_t n, Error *err) {
    memset(r, 0, sizeof *r);
    if (!image_is_gif(bytes, n)) return fail(err, "not a GIF");
    int bad = check_size(bytes, n, err);
    if (bad) return bad;
    r->source = (ImageBytes){bytes, n, 0};
    stbi__start_callbacks(&r->context, (stbi_io_callbacks *)&source_io, &r->source);
    return 0;
}

static void gif_close(GifReader *r) {
    free(r->gif.out);
    free(r->gif.background);
    free(r->gif.history);
}

/* Decodes the next frame: *rgba is it, [height][width][4], valid until the next call, or NULL where
 * there are no more frames.  Returns as image_decode. */
static int gif_next(GifReader *r, const uint8_t **rgba, Error *err) {
    int channels, is_first = !r->gif.out;
    stbi__gif *g = &r->gif;
    /* Disposal method 2, "restore to background": what the last frame drew must become transparent.
     * stb_image copies these pixels from `background`, which holds what was there before the last
     * frame; so `background` is made transparent first. */
    if (g->out && (g->eflags >> 2 & 7) == 2)
        memset(g->background, 0, (size_t)g->w * (size_t)g->h * 4);
    *rgba = stbi__gif_load_next(&r->context, g, &channels, 4, NULL);
    r->work += (long long)g->w * g->h;
    if (*rgba == (uint8_t *)&r->context) {
        *rgba = NULL;
        return 0;
    }
    if (r->source.past_end) return truncated(err);
    if (!*rgba) return damaged(err, stbi_failure_reason());
    /* What the first frame leaves free is transparent in browsers, whatever background colour the
     * header names.  stb_image fills it with that colour. */
    for (int i = 0; is_first && i < g->w * g->h; i++)
        if (!g->history[i]) memset(g->out + 4 * (size_t)i, 0, 4);
    if (r->work > MAX_GIF_WORK)
        return fail(err, "an animation with too many frames of %d x %d pixels", g->w, g->h);
    return 0;
}

int gif_scan(const void *bytes, size_t n, int *n_frames, double *duration, Error *err) {
    GifReader r;
    const uint8_t *rgba;
    *n_frames = 0;
    *duration = 0;
    int bad = gif_open(&r, bytes, n, err);
    while (!bad && !(bad = gif_next(&r, &rgba, err)) && rgba) {
        ++*n_frames;
        /* Milliseconds.  Less than 20 counts as a tenth of a second, as in ffmpeg and browsers. */
        *duration += r.gif.delay >= 20 ? r.gif.delay * 1e-3 : 0.1;
    }
    gif_close(&r);
    return !bad && !*n_frames ? fail(err, "a GIF without an image") : bad;
}

int gif_frames(const void *bytes, size_t n, const int *index, int n_index, Image *out, Error *err) {
    GifReader r;
    const uint8_t *rgba;
    int bad = gif_open(&r, bytes, n, err);
    for (int i = 0, k = 0; !bad && k < n_index; i++) {
        bad = gif_next(&r, &rgba, err);
        if (!bad && !rgba) bad = fail(err, "a GIF without an image");
        for (; !bad && k < n_index && index[k] == i; k++)
            if (image_from_pixels(rgba, r.gif.w, r.gif.h, 4, 1, &out[k]))
                bad = fail(err, "no memory for %d frames of %d x %d pixels", n_index, r.gif.w,
                           r.gif.h);
    }
    gif_close(&r);
    return bad;
}

/* ---- resizing ----
 *
 * As torch's upsample_bicubic2d_aa does on bytes (aten/src/ATen/native/cpu/UpSampleKernel.cpp):
 * first along the rows, then along the columns; the result of each pass is rounded to bytes.  The
 * weights are fixed-point numbers of 16 bits, with as many bits behind the point as the largest
 * weight permits. */

/* One pass from n inputs to n outputs in a row (or column): output i is the sum of weight[i][k] *
 * input[first[i] + k] over count[i] inputs, divided by 2^precision. */
typedef struct {
    int *first, *count;                 /* [number of outputs] */
    int16_t *weight;                    /* [number of outputs][size] */
    int size, precision;
} Taps;

/* The cubic filter of Keys with a = -0.5, as in PIL. */
static double cubic(double x) {
    const double a = -0.5;
    x = fabs(x);
    if (x < 1) return ((a + 2) * x - (a + 3)) * x * x + 1;
    if (x < 2) return (((x - 5) * x + 8) * x - 4) * a;
    return 0;
}

static void taps_free(Taps *t) {
    free(t->first);
    free(t->count);
    free(t->weight);
}

/* Computes the weights of all outputs as doubles, w [to][t->size], each row with the sum 1; sets
 * first and count.  Returns the largest weight. */
static double fill_weights(Taps *t, int from, int to, double *w) {
    double scale = (double)from / to, max = 0;
    double support = scale >= 1 ? 2 * scale : 2;        /* the filter's radius, in inputs */
    double inverse = scale >= 1 ? 1 / scale : 1;
    for (int i = 0; i < to; i++) {
        double center = scale * (i + 0.5), sum = 0, *row = w + (int64_t)i * t->size;
        int first = (int)(center - support + 0.5), last = (int)(center + support + 0.5);
        if (first < 0) first = 0;
        if (last > from) last = from;
        int count = last - first > t->size ? t->size : last - first;
        for (int k = 0; k < count; k++) sum += row[k] = cubic((k + first - center + 0.5) * inverse);
        for (int k = 0; k < t->size; k++) {
            row[k] = k < count && sum != 0 ? row[k] / sum : 0;
            if (row[k] > max) max = row[k];
        }
        t->first[i] = first;
        t->count[i] = count;
    }
    return max;
}

/* The taps from `from` inputs to `to` outputs; taps_free frees them.  -1: no memory. */
static int taps_open(Taps *t, int from, int to) {
    double scale = (double)from / to;
    int size = (int)ceil(scale >= 1 ? 2 * scale : 2) * 2 + 1;
    size_t n = (size_t)to, n_weights = n * (size_t)size;
    double *w = calloc(n_weights, sizeof *w);
    *t = (Taps){malloc(n * sizeof(int)), malloc(n * sizeof(int)),
                malloc(n_weights * sizeof(int16_t)), size, 0};
    if (!w || !t->first || !t->count || !t->weight) {
        free(w);
        taps_free(t);
        return -1;
    }
    double max = fill_weights(t, from, to, w);
    while (t->precision < 22 && (int)(0.5 + max * (1 << (t->precision + 1))) < 1 << 15)
        t->precision++;
    for (size_t i = 0; i < n_weights; i++)
        t->weight[i] = (int16_t)(w[i] * (1 << t->precision) + (w[i] < 0 ? -0.5 : 0.5));
    free(w);
    return 0;
}

/* Output i of a pass.  in: the first input of the row or column; inputs are `step` bytes apart. */
static uint8_t apply(const Taps *t, int i, const uint8_t *in, int64_t step) {
    int sum = 1 << (t->precision - 1);
    const int16_t *w = t->weight + (int64_t)i * t->size;
    in += t->first[i] * step;
    for (int k = 0; k < t->count[i]; k++) sum += in[k * step] * w[k];
    sum >>= t->precision;
    if (sum < 0) return 0;
    return (uint8_t)(sum > 255 ? 255 : sum);
}

/* Resizes along the rows, from in to out, which is as high as in.  -1: no memory. */
static int resize_rows(const Image *in, const Image *out) {
    Taps t;
    if (taps_open(&t, in->width, out->width)) return -1;
    uint8_t *p = out->rgb;
    for (int y = 0; y < in->height; y++) {
        const uint8_t *row = in->rgb + (int64_t)y * in->width * 3;
        for (int x = 0; x < out->width; x++)
            for (int c = 0; c < 3; c++) *p++ = apply(&t, x, row + c, 3);
    }
    taps_free(&t);
    return 0;
}

/* Resizes along the columns, from in to out, which is as wide as in.  -1: no memory. */
static int resize_columns(const Image *in, const Image *out) {
    Taps t;
    int64_t row = (int64_t)out->width * 3;
    if (taps_open(&t, in->height, out->height)) return -1;
    for (int y = 0; y < out->height; y++)
        for (int64_t x = 0; x < row; x++) out->rgb[y * row + x] = apply(&t, y, in->rgb + x, row);
    taps_free(&t);
    return 0;
}

/* Resizes in to the width and height of out, whose rgb has room: bicubic, with antialiasing, bit
 * for bit as torchvision does on 8-bit data.  Returns 0, or -1 when there is no memory. */
static int resize(const Image *in, const Image *out) {
    Image middle = *in;                 /* as wide as out, as high as in */
    size_t size = (size_t)in->height * (size_t)out->width * 3;
    int bad = 0;
    if (in->width != out->width) {
        middle.width = out->width;
        middle.rgb = malloc(size);
        bad = !middle.rgb || resize_rows(in, &middle);
    }
    if (!bad && in->height == out->height) memcpy(out->rgb, middle.rgb, size);
    else if (!bad) bad = resize_columns(&middle, out);
    if (in->width != out->width) free(middle.rgb);
    return bad ? -1 : 0;
}

/* ---- patches ---- */

/* The size of the resized image, *wide x *high soft tokens (get_aspect_ratio_preserving_size). */
static void fit(int width, int height, int max_soft, int *wide, int *high) {
    double factor = sqrt((double)max_soft * POOL * POOL * PATCH * PATCH / ((double)height * width));
    *high = (int)floor(factor * height / (POOL * PATCH));
    *wide = (int)floor(factor * width / (POOL * PATCH));
    if (*high == 0) {
        *high = 1;
        *wide = width / height < max_soft ? width / height : max_soft;
    } else if (*wide == 0) {
        *wide = 1;
        *high = height / width < max_soft ? height / width : max_soft;
    }
}

int image_to_picture(const Image *in, int max_soft, Picture *out) {
    int wide, high;
    fit(in->width, in->height, max_soft, &wide, &high);
    *out = (Picture){.columns = wide * POOL, .rows = high * POOL, .n = wide * high};
    Image image = {wide * POOL * PATCH, high * POOL * PATCH, NULL};
    size_t n = (size_t)image.width * (size_t)image.height * 3;
    image.rgb = malloc(n);
    out->pixels = malloc(n * sizeof(float));
    int bad = !image.rgb || !out->pixels || resize(in, &image);
    float *p = out->pixels;
    for (int t = 0; !bad && t < out->columns * out->rows; t++)
        for (int k = 0; k < PATCH; k++) {
            int x = t % out->columns * PATCH, y = t / out->columns * PATCH + k;
            const uint8_t *row = image.rgb + ((int64_t)y * image.width + x) * 3;
            for (int i = 0; i < 3 * PATCH; i++) *p++ = row[i] * (1 / 255.0f);
        }
    free(image.rgb);
    if (bad) {
        free(out->pixels);
        out->pixels = NULL;
    }
    return bad ? -1 : 0;
}
