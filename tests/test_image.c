/* test_image.c - from the bytes of a file to patches and soft tokens, against transformers (tests/make_images.py), and files
 * that are broken in all ways. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../image.h"
#include "../json.h"
#include "../session.h"
#include "device.h"

#include <cmocka.h>                     /* after ours: it makes `fail` a macro */

#define DIR "tests/fixtures/images/"

static cJSON *cases;

static int number(const cJSON *o, const char *name) { return json_field(o, name)->valueint; }

static Buf read(const char *name) {
    Buf path = {0}, bytes = {0};
    Error err;
    buf_printf(&path, DIR "%s", name);
    if (read_file(path.data, &bytes, &err)) fail_msg("%s", err.text);
    buf_free(&path);
    return bytes;
}

static Image decode(const char *name) {
    Buf bytes = read(name);
    Image image;
    Error err;
    if (image_decode(bytes.data, bytes.len, &image, &err)) fail_msg("%s: %s", name, err.text);
    buf_free(&bytes);
    return image;
}

/* Size and patches as the case has them; the hash where there is one. */
static void check_picture(const cJSON *c, const char *name, const Image *image) {
    Picture p;
    const char *want = cJSON_GetStringValue(json_field(c, "hash"));
    char is[32];
    if (image->width != number(c, "width") || image->height != number(c, "height")) fail_msg("%s: %d x %d", name, image->width, image->height);
    assert_int_equal(image_to_picture(image, number(c, "tokens"), &p), 0);
    if (p.columns != number(c, "columns") || p.rows != number(c, "rows")) fail_msg("%s: %d x %d patches", name, p.columns, p.rows);
    assert_int_equal(p.n, p.columns * p.rows / (POOL * POOL));
    size_t n = (size_t)p.columns * p.rows * PATCH_SIZE;
    uint8_t *bytes = xmalloc(n);
    for (size_t i = 0; i < n; i++) bytes[i] = lroundf(p.pixels[i] * 255);
    snprintf(is, sizeof is, "%016llx", (unsigned long long)hash_bytes(bytes, n, 0));
    if (want && strcmp(is, want)) fail_msg("%s: other patches than the reference's", name);
    free(bytes);
    free(p.pixels);
}

static void files(void **state) {
    const cJSON *c;
    (void)state;
    int n = 0;
    cJSON_ArrayForEach(c, json_field(cases, "files")) {
        const char *name = cJSON_GetStringValue(json_field(c, "file"));
        Image image = decode(name);
        check_picture(c, name, &image);
        free(image.rgb);
        n++;
    }
    assert_true(n > 25);
}

/* make_images.py's formula */
static void sizes(void **state) {
    const cJSON *c;
    (void)state;
    cJSON_ArrayForEach(c, json_field(cases, "sizes")) {
        Image image = {number(c, "width"), number(c, "height"), NULL};
        uint8_t *p = image.rgb = xmalloc((size_t)image.width * image.height * 3);
        char name[64];
        for (int y = 0; y < image.height; y++)
            for (int x = 0; x < image.width; x++)
                for (int k = 0; k < 3; k++) *p++ = (x / 8 + y / 8) % 2 ? x * 5 + y * 3 + k * 40 : x * 37 + y * 101 + k * 53 + x * y * 7;
        snprintf(name, sizeof name, "%d x %d", image.width, image.height);
        check_picture(c, name, &image);
        free(image.rgb);
    }
}

/* Decoders of JPEG round in their own way, and stb_image draws colour differences wider: some units, on average little. */
static void jpegs(void **state) {
    const cJSON *c;
    (void)state;
    int n = 0;
    cJSON_ArrayForEach(c, json_field(cases, "files")) {
        const char *name = cJSON_GetStringValue(json_field(c, "file"));
        char pillow[64];
        if (!strstr(name, ".jpg")) continue;
        snprintf(pillow, sizeof pillow, "%s.png", name);
        Image a = decode(name), b = decode(pillow);
        long sum = 0, largest = 0, size = (long)a.width * a.height * 3;
        assert_int_equal(a.width, b.width);
        assert_int_equal(a.height, b.height);
        for (long i = 0; i < size; i++) {
            long d = labs((long)a.rgb[i] - b.rgb[i]);
            sum += d;
            if (d > largest) largest = d;
        }
        if (largest > 48 || sum > size) fail_msg("%s: off by %ld, %.2f on average", name, largest, (double)sum / size);
        free(a.rgb);
        free(b.rgb);
        n++;
    }
    assert_int_equal(n, 11);
}

/* From files to soft tokens; what the decoder of a JPEG changes is more than what arithmetic does. */
typedef struct {
    const char *name, *cpu;
    int exact;
    float most;                         /* off by so much of the range */
    const Ops *ops;
} How;

#ifdef GPU
static How hows[] = {
    {"soft tokens, rounded", "", 0, 1e-2f, &cuda_ops},
    {"soft tokens, exact", "", 1, 1e-4f, &cuda_ops},
};
#else
static How hows[] = {
    {"soft tokens, c", "c", 0, 1e-4f, &cpu_ops},
#if defined(__aarch64__)
    {"soft tokens, neon", "neon", 0, 1e-4f, &cpu_ops},
    {"soft tokens, neon-bf16", "neon-bf16", 0, 1e-4f, &cpu_ops},
#else
    {"soft tokens, avx2", "avx2", 0, 5e-4f, &cpu_ops},
    {"soft tokens, avx2-vnni", "avx2-vnni", 0, 5e-4f, &cpu_ops},
    {"soft tokens, avx512", "avx512", 0, 5e-4f, &cpu_ops},
    {"soft tokens, amx", "amx", 0, 5e-4f, &cpu_ops},
#endif
    {"soft tokens, exact", "", 1, 1e-4f, &cpu_ops},
    {"soft tokens, plain", "", 1, 1e-4f, &plain_ops},
};
#endif

/* What the tower makes of a picture: p->soft, which is the caller's. */
static void see(const Model *m, const Ops *ops, int exact, Picture *p) {
    static int n_seen;
    Error err;
    SessionOptions o = {.ops = ops, .context = 512, .chunk = 64, .picture = 140, .kv = KV_F32, .n_threads = 2, .exact = exact};
    Session *s = session_new(m, &o, &err);
    if (!s) fail_msg("%s", err.text);
    int *ids = xcalloc(p->n + 1, sizeof *ids);
    p->hash = ++n_seen;
    session_pictures(s, &(PictureSpan){0, p}, 1);
    if (session_sync(s, ids, p->n + 1, 0, NULL, &err)) fail_msg("%s", err.text);
    free(ids);
    session_free(s);
}

static void assert_near(const float *soft, const float *want, int n, float most, const char *what) {
    float low = want[0], high = want[0], worst = 0;
    for (int i = 0; i < n; i++) {
        low = fminf(low, want[i]), high = fmaxf(high, want[i]);
        worst = fmaxf(worst, fabsf(want[i] - soft[i]));
    }
    if (!(worst <= most * (high - low))) fail_msg("%s: soft tokens off by %.1e of the range", what, worst / (high - low));
}

static void soft_tokens(void **state) {
    const How *how = *state;
    const cJSON *c;
    Error err;
    if (*how->cpu) setenv("GEMMA4_CPU", how->cpu, 1);
    else unsetenv("GEMMA4_CPU");
    SafeTensors *ref = safetensors_open(DIR "ref.safetensors", &err);
    Model *m = ref ? model_open(DIR "seeing", &err) : NULL;
    if (!m) fail_msg("%s", err.text);
    ModelInfo info;
    model_info(m, &info);
    int n = 0;
    cJSON_ArrayForEach(c, json_field(cases, "files")) {
        const char *file = cJSON_GetStringValue(json_field(c, "file"));
        char name[64];
        snprintf(name, sizeof name, "%s_features_f32", file);
        const Tensor *want = safetensors_find(ref, name);
        if (!want) continue;
        n++;
        if (ON_GPU && how->exact && strcmp(file, "rgb.bmp")) continue;         /* seconds each, where the GPU is emulated */
        Image image = decode(file);
        Picture p;
        assert_int_equal(image_to_picture(&image, number(c, "tokens"), &p), 0);
        see(m, how->ops, how->exact, &p);
        assert_int_equal(want->shape[0], p.n);
        assert_int_equal(want->shape[1], info.config->hidden);
        assert_near(p.soft, (const float *)want->data, p.n * info.config->hidden, strstr(file, ".jpg") ? 5e-2f : how->most, file);
        free(p.soft);
        free(image.rgb);
    }
    assert_int_equal(n, 10);
    model_close(m);
    safetensors_close(ref);
}

/* Pictures of a few patches, for which products and attention have ways of their own, as plain.c
 * sees them. */
static void small_pictures(void **state) {
    Error err;
    (void)state;
    Model *m = model_open(DIR "seeing", &err);
    if (!m) fail_msg("%s", err.text);
    ModelInfo info;
    model_info(m, &info);
    Image image = decode("rgb.png");
    for (int tokens = 1; tokens <= 6; tokens++)
        for (int exact = 0; exact < 2; exact++) {
            Picture want, p;
            assert_int_equal(image_to_picture(&image, tokens, &want), 0);
            assert_int_equal(image_to_picture(&image, tokens, &p), 0);
            see(m, &plain_ops, 1, &want);
            see(m, &DEVICE, exact, &p);
            assert_near(p.soft, want.soft, p.n * info.config->hidden, exact ? 1e-5f : ON_GPU ? 1e-2f : 5e-4f, exact ? "exact" : "rounded");
            free(want.soft);
            free(p.soft);
        }
    free(image.rgb);
    model_close(m);
}

/* moving.gif has nine frames, one of them of a fiftieth of a second. */
static void animation(void **state) {
    Buf bytes = read("moving.gif");
    Image frame[3] = {0};
    Error err;
    int n;
    double duration;
    (void)state;
    assert_int_equal(gif_scan(bytes.data, bytes.len, &n, &duration, &err), 0);
    assert_int_equal(n, 9);
    assert_true(fabs(duration - 7.28) < 1e-9);
    assert_int_equal(gif_frames(bytes.data, bytes.len, (int[]){0, 4, 8}, 3, frame, &err), 0);
    for (int i = 0; i < 3; i++) {
        assert_int_equal(frame[i].width, 44);
        const uint8_t *p = frame[i].rgb + (10 * 44 + 16 * i + 2) * 3;       /* in the block that moves by four pixels a frame */
        int red = i ? 80 * i : 255;     /* the first frame has none */
        assert_true(abs(p[0] - red) <= 8);
        free(frame[i].rgb);
    }
    assert_int_equal(gif_frames(bytes.data, bytes.len, (int[]){9}, 1, frame, &err), -1);
    buf_free(&bytes);
    bytes = read("rgb.png");
    assert_int_equal(gif_scan(bytes.data, bytes.len, &n, &duration, &err), -1);
    buf_free(&bytes);
}

/* The picture bytes[0..n) has the pixels want[0..n_want). */
static void decodes_to(const char *bytes, size_t n, const char *want, size_t n_want) {
    Error err;
    Image image;
    assert_int_equal(image_decode(bytes, n, &image, &err), 0);
    assert_memory_equal(image.rgb, want, n_want);
    free(image.rgb);
}

/* A GIF of 2 x 1 whose frame is its left pixel, the colour of index 1 of red and green.  The other
 * pixel is transparent, hence white, although the header names green as the background. */
static void what_a_gif_leaves_free(void **state) {
    static const char gif[] = "GIF89a\2\0\1\0\x80\1\0" "\xff\0\0\0\xff\0" "\x2c\0\0\0\0\1\0\1\0\0" "\2\2\x4c\1\0;";
    (void)state;
    decodes_to(gif, sizeof gif - 1, "\0\xff\0\xff\xff\xff", 6);
}

/* A BMP of one pixel of 32 bits without masks: its fourth byte is no alpha. */
static void bmp_without_alpha(void **state) {
    static const char bmp[] = "BM\72\0\0\0\0\0\0\0\66\0\0\0" "\50\0\0\0\1\0\0\0\1\0\0\0\1\0\40\0\0\0\0\0\4\0\0\0"
                              "\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0" "\x30\x20\x10\x80";
    (void)state;
    decodes_to(bmp, sizeof bmp - 1, "\x10\x20\x30", 3);
}

/* Every file, cut at every length: an error and never a crash; all of it but the last few bytes is not enough either. */
static void truncated(void **state) {
    const cJSON *c;
    Error err;
    Image image;
    (void)state;
    cJSON_ArrayForEach(c, json_field(cases, "files")) {
        const char *name = cJSON_GetStringValue(json_field(c, "file"));
        Buf bytes = read(name);
        for (size_t n = 0; n < bytes.len; n += n < 100 || n + 40 > bytes.len ? 1 : 37) {
            char *exact = xmalloc(n + 1);           /* so that a sanitizer sees the end */
            memcpy(exact, bytes.data, n);
            strcpy(err.text, "");
            int bad = image_decode(exact, n, &image, &err);
            /* A TGA may end in a footer, a GIF in its terminator, a PNG in its last checksum. */
            if (!bad && n + 26 < bytes.len && !strstr(name, ".bmp")) fail_msg("%s: %zu of %zu bytes are taken for all", name, n, bytes.len);
            assert_true(!bad || *err.text);
            if (bad) assert_null(image.rgb);
            free(image.rgb);
            free(exact);
        }
        buf_free(&bytes);
    }
}

static void hostile(void **state) {
    static const struct { const char *bytes; size_t n; const char *says; } bad[] = {
        {"", 0, "not an image"},
        {"Once upon a time there was no image", 35, "not an image"},
        {"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\0\0\0\0\0\0\x05\x08\x02\0\0\0\0\0\0\0", 33, "not an image"},
        {"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\xff\xff\xff\0\xff\xff\xff\x08\x02\0\0\0\0\0\0\0", 33, ""},
        {"P6 30000 30000 255\n", 19, "more than"},
        {"P6 0 5 255\n", 11, ""},
        {"P6 5 5 255\nabc", 14, "truncated"},
        {"GIF89a\xff\xff\xff\xff\x80\0\0", 13, "more than"},
        {"GIF89a\x05\0\x05\0\0\0\0;", 14, "without an image"},
        {"BM\x36\0\0\0\0\0\0\0\x36\0\0\0\x28\0\0\0\xff\xff\xff\x7f\xff\xff\xff\x7f\x01\0\x18\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0", 54, ""},
        {"\xff\xd8\xff\xe0\0\x10JFIF\0\x01", 12, ""},
    };
    Error err;
    Image image;
    (void)state;
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        char *exact = xmalloc(bad[i].n + 1);
        memcpy(exact, bad[i].bytes, bad[i].n);
        strcpy(err.text, "");
        assert_int_not_equal(image_decode(exact, bad[i].n, &image, &err), 0);
        if (!*err.text || !strstr(err.text, bad[i].says) || strchr(err.text, '\n')) fail_msg("%zu: %s", i, err.text);
        free(exact);
    }
}

int main(void) {
    Buf text = {0};
    Error err;
    if (read_file(DIR "cases.json", &text, &err) || !(cases = json_object(text.data, text.len, &err))) {
        fprintf(stderr, "%s\n", err.text);
        return 1;
    }
    buf_free(&text);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(files), cmocka_unit_test(sizes), cmocka_unit_test(jpegs), cmocka_unit_test(animation),
        cmocka_unit_test(what_a_gif_leaves_free), cmocka_unit_test(bmp_without_alpha),
        cmocka_unit_test(truncated), cmocka_unit_test(hostile),
    };
    struct CMUnitTest towers[1 + sizeof hows / sizeof *hows] = {cmocka_unit_test(small_pictures)};
    for (size_t i = 0; i < sizeof hows / sizeof *hows; i++) towers[1 + i] = (struct CMUnitTest){hows[i].name, soft_tokens, NULL, NULL, &hows[i]};
    int failed = (ON_GPU ? 0 : cmocka_run_group_tests(tests, NULL, NULL)) + cmocka_run_group_tests(towers, NULL, NULL);
    cJSON_Delete(cases);
    return failed;
}
