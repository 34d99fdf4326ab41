/* image.c - file bytes to pixels, pixels to patches.  See image.h.
 *
 * stb_image decodes.  Nothing is allocated before the declared size was looked at, no allocation may exceed what that
 * size explains, and reading beyond the end is seen here, since stb_image itself would go on with zeros. */
#include "image.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static _Thread_local size_t largest;    /* what one allocation of stb_image may take */

/* New memory is zero: stb_image reads tables that a damaged JPEG never defined. */
static void *limited(void *p, size_t n) { return n > largest ? NULL : p ? realloc(p, n ? n : 1) : calloc(n ? n : 1, 1); }

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
#define MAX_PIXELS (1 << 28)            /* of one image; less on a machine with less memory */
#endif
#define MAX_GIF_WORK (1ll << 33)        /* frames x pixels: stb_image copies the whole canvas for each frame */

/* ------------------------------------------------------------------------------------------------------------
 * Reading from memory, with an eye on the end */

typedef struct {
    const uint8_t *p;
    size_t left;
    int past_end;                       /* more was wanted than there is */
} ImageBytes;

/* stb_image fills its buffer of 128 bytes ahead of need: such a request may go beyond the end, not begin there. */
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

/* Looks at the declared size, and sets the limit for what decoding may allocate. */
static int check_size(const void *bytes, size_t n, Error *err) {
    int w, h, channels;
    double limit = (double)sysconf(_SC_PHYS_PAGES) * (double)sysconf(_SC_PAGESIZE) / 16;
    if (limit > MAX_PIXELS) limit = MAX_PIXELS;
    if (n > INT32_MAX) return fail(err, "an image of %.1f GB", (double)n * 1e-9);
    largest = 1 << 20;
    if (!stbi_info_from_memory(bytes, (int)n, &w, &h, &channels))
        return fail(err, "not an image, or damaged (JPEG, PNG, GIF, BMP, PPM and TGA are read)");
    if (w < 1 || h < 1) return fail(err, "an image of %d x %d pixels", w, h);
    if ((double)w * h > limit) return fail(err, "an image of %d x %d pixels: more than %.0f million are not read", w, h, limit * 1e-6);
    largest = (size_t)w * (size_t)h * 16 + 2 * n + (1 << 20);   /* 16 bits of four channels, twice; and the file's own parts */
    return 0;
}

/* ------------------------------------------------------------------------------------------------------------
 * EXIF orientation: 1 upright; 2 mirrored; 3 half a turn; 4 both; 5 to 8 the same with columns for rows. */

static unsigned tiff(const uint8_t *p, int bytes, int big) {
    unsigned v = 0;
    for (int i = 0; i < bytes; i++) v |= (unsigned)p[i] << 8 * (big ? bytes - 1 - i : i);
    return v;
}

/* Tag 0x112, a SHORT, in the first directory. */
static int tiff_orientation(const uint8_t *p, size_t n) {
    if (n < 8 || (memcmp(p, "II*\0", 4) && memcmp(p, "MM\0*", 4))) return 1;
    int big = p[0] == 'M';
    size_t at = tiff(p + 4, 4, big);
    if (at > n - 2) return 1;
    unsigned count = tiff(p + at, 2, big);
    for (at += 2; count-- && at + 12 <= n; at += 12)
        if (tiff(p + at, 2, big) == 0x112) {
            unsigned v = tiff(p + at + 8, 2, big);
            return tiff(p + at + 2, 2, big) == 3 && v >= 1 && v <= 8 ? (int)v : 1;
        }
    return 1;
}

static int exif_orientation(const uint8_t *p, size_t n) {
    size_t at = 2, size;
    if (n > 4 && p[0] == 0xff && p[1] == 0xd8) {        /* JPEG: segments FF xx, length (its own two bytes included) */
        for (; at + 4 <= n && p[at] == 0xff && p[at + 1] != 0xda; at += 2 + size) {
            size = tiff(p + at + 2, 2, 1);
            if (size < 2 || at + 2 + size > n) return 1;
            if (p[at + 1] == 0xe1 && size >= 8 && !memcmp(p + at + 4, "Exif\0", 6)) return tiff_orientation(p + at + 10, size - 8);
        }
    } else if (n > 8 && !memcmp(p, "\x89PNG", 4))       /* PNG: length, name, data, checksum */
        for (at = 8; at + 12 <= n; at += 12 + size) {
            size = tiff(p + at, 4, 1);
            if (size > n - at - 12) return 1;
            if (!memcmp(p + at + 4, "eXIf", 4)) return tiff_orientation(p + at + 8, size);
        }
    return 1;
}

/* ------------------------------------------------------------------------------------------------------------
 * Decoding */

/* One channel over white, as PIL's alpha_composite rounds it. */
static uint8_t over_white(unsigned v, unsigned alpha) {
    unsigned t = (v * alpha + 255 * (255 - alpha) + 128) << 7;
    return (uint8_t)(((t >> 8) + t) >> 8 >> 7);
}

/* Pixels of 1 (grey), 2 (grey, alpha), 3 or 4 channels to RGB over white, turned upright. */
static int to_rgb(const uint8_t *in, int w, int h, int channels, int orientation, Image *out) {
    int turned = orientation > 4, mirrored = orientation == 2 || orientation == 3 || orientation == 6 || orientation == 7;
    int upside_down = orientation == 3 || orientation == 4 || orientation == 7 || orientation == 8;
    *out = (Image){turned ? h : w, turned ? w : h, malloc((size_t)w * (size_t)h * 3)};
    if (!out->rgb) return -1;
    uint8_t *p = out->rgb;
    for (int y = 0; y < out->height; y++)
        for (int x = 0; x < out->width; x++, p += 3) {
            int a = mirrored ? out->width - 1 - x : x, b = upside_down ? out->height - 1 - y : y;
            const uint8_t *q = in + ((int64_t)(turned ? a : b) * w + (turned ? b : a)) * channels;
            int grey = channels < 3;
            for (int c = 0; c < 3; c++) {
                p[c] = q[grey ? 0 : c];
                if (channels % 2 == 0) p[c] = over_white(p[c], q[channels - 1]);
            }
        }
    return 0;
}

/* stb_image 2.27 writes beyond its tables where a JPEG's DHT segment declares more than 256 codes.  Each place that could be
 * taken for such a segment gets an impossible length: an error where stb_image comes by, nothing to it elsewhere.  From the end to
 * the beginning, as that length may also be a count of codes, of an earlier segment around this one. */
static void defuse_jpeg(uint8_t *p, size_t n) {
    for (size_t i = n; i-- > 0;) {
        if (i + 4 > n || p[i] != 0xff || p[i + 1] != 0xc4) continue;
        size_t at = i + 4;
        for (long left = (long)tiff(p + i + 2, 2, 1) - 2; left > 0 && at < n;) {
            size_t codes = 0;
            for (size_t k = at + 1; k < at + 17 && k < n; k++) codes += p[k];
            if (codes > 256) p[i + 2] = p[i + 3] = 0;
            if (codes > 256) break;
            at += 17 + codes;
            left -= 17 + (long)codes;
        }
    }
}

int image_is_gif(const void *bytes, size_t n) { return n >= 6 && (!memcmp(bytes, "GIF87a", 6) || !memcmp(bytes, "GIF89a", 6)); }

int image_decode(const void *bytes, size_t n, Image *out, Error *err) {
    *out = (Image){0};
    if (image_is_gif(bytes, n)) return gif_frames(bytes, n, (int[]){0}, 1, out, err);
    uint8_t *copy = malloc(n ? n : 1), *pixels = NULL;
    if (!copy) return fail(err, "no memory for an image of %.1f MB", (double)n * 1e-6);
    if (n) memcpy(copy, bytes, n);
    if (n && copy[0] == 0xff) defuse_jpeg(copy, n);
    ImageBytes source = {copy, n, 0};
    int w, h, channels, bad = check_size(copy, n, err);
    if (!bad) {
        pixels = stbi_load_from_callbacks(&source_io, &source, &w, &h, &channels, 0);
        const char *why = stbi_failure_reason();        /* of a JPEG with bad tables: what the format tried before has said */
        if (source.past_end) bad = fail(err, "the image is truncated");
        else if (!pixels) bad = fail(err, "the image is damaged (%s)", strcmp(why, "Not a PNG") ? why : "Corrupt JPEG");
        else if (to_rgb(pixels, w, h, channels, exif_orientation(bytes, n), out)) bad = fail(err, "no memory for an image of %d x %d pixels", w, h);
    }
    free(pixels);
    free(copy);
    return bad;
}

/* ------------------------------------------------------------------------------------------------------------
 * Animated GIFs, a frame at a time */

typedef struct {
    ImageBytes source;
    stbi__context context;
    stbi__gif gif;
    long long work;
} GifReader;

static int gif_open(GifReader *r, const void *bytes, size_t n, Error *err) {
    memset(r, 0, sizeof *r);
    if (!image_is_gif(bytes, n)) return fail(err, "not a GIF");
    if (check_size(bytes, n, err)) return -1;
    r->source = (ImageBytes){bytes, n, 0};
    stbi__start_callbacks(&r->context, (stbi_io_callbacks *)&source_io, &r->source);
    return 0;
}

static void gif_close(GifReader *r) {
    free(r->gif.out);
    free(r->gif.background);
    free(r->gif.history);
}

/* The next frame, RGBA, valid until the next call: 1; 0 after the last; -1 with err. */
static int gif_next(GifReader *r, const uint8_t **rgba, Error *err) {
    int channels;
    stbi__gif *g = &r->gif;
    /* Where a frame asks for "restore to background", what it drew becomes transparent: stb_image restores it from
     * `background`, which otherwise is what was there before that frame. */
    if (g->out && (g->eflags >> 2 & 7) == 2) memset(g->background, 0, (size_t)g->w * (size_t)g->h * 4);
    *rgba = stbi__gif_load_next(&r->context, g, &channels, 4, NULL);
    r->work += (long long)g->w * g->h;
    if (*rgba == (uint8_t *)&r->context) return 0;
    if (r->source.past_end) return fail(err, "the image is truncated");
    if (!*rgba) return fail(err, "the image is damaged (%s)", stbi_failure_reason());
    if (r->work > MAX_GIF_WORK) return fail(err, "an animation with too many frames of %d x %d pixels", g->w, g->h);
    return 1;
}

int gif_scan(const void *bytes, size_t n, int *n_frames, double *duration, Error *err) {
    GifReader r;
    const uint8_t *rgba;
    int more;
    *n_frames = 0;
    *duration = 0;
    if (gif_open(&r, bytes, n, err)) return -1;
    while ((more = gif_next(&r, &rgba, err)) > 0) {
        ++*n_frames;
        *duration += r.gif.delay >= 20 ? r.gif.delay * 1e-3 : 0.1;     /* no delay means a tenth of a second, as in ffmpeg */
    }
    gif_close(&r);
    if (!more && !*n_frames) return fail(err, "a GIF without an image");
    return more;
}

int gif_frames(const void *bytes, size_t n, const int *index, int n_index, Image *out, Error *err) {
    GifReader r;
    const uint8_t *rgba;
    int bad = gif_open(&r, bytes, n, err);
    for (int i = 0, k = 0; !bad && k < n_index; i++) {
        int more = gif_next(&r, &rgba, err);
        if (more <= 0) bad = more ? -1 : fail(err, "a GIF without an image");
        for (; !bad && k < n_index && index[k] == i; k++)
            if (to_rgb(rgba, r.gif.w, r.gif.h, 4, 1, &out[k])) bad = fail(err, "no memory for %d frames of %d x %d pixels", n_index, r.gif.w, r.gif.h);
    }
    gif_close(&r);
    return bad;
}

/* ------------------------------------------------------------------------------------------------------------
 * Resize: torch's upsample_bicubic2d_aa on bytes (aten/src/ATen/native/cpu/UpSampleKernel.cpp), first along the rows, then
 * along the columns, each pass rounded to bytes.  The weights are whole numbers of as many bits as fit 16 with a sign. */

typedef struct {
    int *first, *count;                 /* for each output: where its inputs begin, and how many */
    int16_t *weight;                    /* [n][size] */
    int size, precision;                /* the sum is scaled by 2^precision */
} Taps;

/* Keys' cubic with a = -0.5, as PIL has it. */
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

static int taps_open(Taps *t, int from, int to) {
    double scale = (double)from / to, support = scale >= 1 ? 2 * scale : 2, inverse = scale >= 1 ? 1 / scale : 1, max = 0;
    int size = (int)ceil(support) * 2 + 1;
    size_t n = (size_t)to, n_weights = n * (size_t)size;
    double *w = malloc(n_weights * sizeof *w);
    *t = (Taps){malloc(n * sizeof(int)), malloc(n * sizeof(int)), malloc(n_weights * sizeof(int16_t)), size, 0};
    if (!w || !t->first || !t->count || !t->weight) {
        free(w);
        taps_free(t);
        return -1;
    }
    for (int i = 0; i < to; i++) {
        double center = scale * (i + 0.5), sum = 0, *row = w + (int64_t)i * size;
        int first = (int)(center - support + 0.5), last = (int)(center + support + 0.5);
        if (first < 0) first = 0;
        if (last > from) last = from;
        int count = last - first > size ? size : last - first;
        for (int k = 0; k < count; k++) sum += row[k] = cubic((k + first - center + 0.5) * inverse);
        for (int k = 0; k < size; k++) {
            row[k] = k < count && sum != 0 ? row[k] / sum : 0;
            if (row[k] > max) max = row[k];
        }
        t->first[i] = first;
        t->count[i] = count;
    }
    while (t->precision < 22 && (int)(0.5 + max * (1 << (t->precision + 1))) < 1 << 15) t->precision++;
    for (size_t i = 0; i < n_weights; i++) t->weight[i] = (int16_t)(w[i] * (1 << t->precision) + (w[i] < 0 ? -0.5 : 0.5));
    free(w);
    return 0;
}

/* One output of one pass: its inputs are `step` bytes apart. */
static uint8_t apply(const Taps *t, int i, const uint8_t *in, int64_t step) {
    int sum = 1 << (t->precision - 1);
    const int16_t *w = t->weight + (int64_t)i * t->size;
    in += t->first[i] * step;
    for (int k = 0; k < t->count[i]; k++) sum += in[k * step] * w[k];
    sum >>= t->precision;
    return (uint8_t)(sum < 0 ? 0 : sum > 255 ? 255 : sum);
}

int image_resize(const Image *in, const Image *out) {
    Taps across, down;
    uint8_t *middle = NULL;
    const uint8_t *rows = in->rgb;
    int bad = 0;
    if (in->width != out->width) {
        middle = malloc((size_t)in->height * (size_t)out->width * 3);
        bad = !middle || taps_open(&across, in->width, out->width);
        for (int y = 0; !bad && y < in->height; y++)
            for (int x = 0; x < out->width; x++)
                for (int c = 0; c < 3; c++)
                    middle[((int64_t)y * out->width + x) * 3 + c] = apply(&across, x, in->rgb + (int64_t)y * in->width * 3 + c, 3);
        if (!bad) taps_free(&across);
        rows = middle;
    }
    if (!bad && in->height == out->height) memcpy(out->rgb, rows, (size_t)out->height * (size_t)out->width * 3);
    else if (!bad && !(bad = taps_open(&down, in->height, out->height))) {
        int64_t row = (int64_t)out->width * 3;
        for (int y = 0; y < out->height; y++)
            for (int64_t x = 0; x < row; x++) out->rgb[y * row + x] = apply(&down, y, rows + x, row);
        taps_free(&down);
    }
    free(middle);
    return bad ? -1 : 0;
}

/* ------------------------------------------------------------------------------------------------------------
 * Patches */

/* get_aspect_ratio_preserving_size: in steps of one soft token's side. */
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
    int bad = !image.rgb || !out->pixels || image_resize(in, &image);
    float *p = out->pixels;
    for (int t = 0; !bad && t < out->columns * out->rows; t++)
        for (int y = 0; y < PATCH; y++) {
            const uint8_t *row = image.rgb + ((int64_t)(t / out->columns * PATCH + y) * image.width + t % out->columns * PATCH) * 3;
            for (int i = 0; i < 3 * PATCH; i++) *p++ = row[i] * (1 / 255.0f);
        }
    free(image.rgb);
    if (bad) {
        free(out->pixels);
        out->pixels = NULL;
    }
    return bad ? -1 : 0;
}
