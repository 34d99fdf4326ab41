/* media.c - loads the images and videos of messages.  See media.h.
 *
 * The choice of a video's frames and their timestamps follow transformers'
 * video_processing_gemma4.py (frames i * total / n) and video_utils.py (frame / rate).  Animated
 * GIFs are decoded here, other videos by ffmpeg.c: the file is opened but never read into memory,
 * so that it may have any size. */
#define _GNU_SOURCE
#include "media.h"

#include <ctype.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/stat.h>
#include <unistd.h>

#include "image.h"
#include "json.h"

#define KEEP_BYTES (1ll << 29)          /* of loaded pictures: some 150 images of 280 soft tokens.
                                         * Chosen as little beside the model, and more than a
                                         * conversation shows */

/* ---- from a URL to bytes ---- */

void url_decode(const char *text, size_t n, Buf *out) {
    for (size_t i = 0; i < n; i++) {
        int is_escape = text[i] == '%' && i + 2 < n;
        int high = is_escape ? hex_digit(text[i + 1]) : -1;
        int low = high >= 0 ? hex_digit(text[i + 2]) : -1;
        char c = low >= 0 ? (char)(high * 16 + low) : text[i];
        buf_add(out, &c, 1);
        if (low >= 0) i += 2;
    }
}

/* Adds to path the path in a URL file://[localhost]/path, with %xx decoded; or url itself if it is
 * a plain path. */
static void file_path(const char *url, Buf *path) {
    if (strncasecmp(url, "file://", 7)) {
        buf_puts(path, url);
        return;
    }
    url += 7;
    if (!strncasecmp(url, "localhost/", 10)) url += 9;
    url_decode(url, strlen(url), path);
}

static const char digits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

/* Decodes base64, also that of URLs, which has - and _ for + and /. */
static int base64(const char *s, Buf *out, Error *err) {
    unsigned v = 0;
    int bits = 0;                       /* how many bits of v are not in out yet */
    for (; *s && *s != '='; s++) {
        char c = *s;
        if (isspace((unsigned char)c)) continue;
        if (c == '-') c = '+';
        if (c == '_') c = '/';
        const char *at = strchr(digits, c);
        if (!at) return fail(err, "'%c' is no base64", *s);
        v = v << 6 | (unsigned)(at - digits);
        if ((bits += 6) < 8) continue;
        bits -= 8;
        buf_add(out, &(uint8_t){v >> bits & 255}, 1);
    }
    return 0;
}

static void add_base64(const Buf *in, Buf *out) {
    for (size_t i = 0; i < in->len; i += 3) {
        uint8_t three[3] = {0};
        size_t n = in->len - i < 3 ? in->len - i : 3;
        memcpy(three, in->data + i, n);
        uint32_t v = number_at(three, 3, 1);
        char four[] = {digits[v >> 18], digits[v >> 12 & 63], digits[v >> 6 & 63], digits[v & 63]};
        memset(four + n + 1, '=', 3 - n);
        buf_add(out, four, 4);
    }
}

/* How the URL begins in which media_stdin puts what it has read. */
#define STDIN_URL "data:;name=stdin;base64,"

/* Finds what a URL names.  name, for messages: the path, "stdin" or "data: URL".  Returns 1 with
 * the bytes of a data: URL; 0 where `name` is the path of a file; -1 with err. */
static int find_url(const char *url, Buf *name, Buf *bytes, Error *err) {
    Error why;
    const char *colon = strstr(url, "://");
    if (!strncasecmp(url, "data:", 5)) {
        const char *comma = strchr(url, ',');
        buf_puts(name, begins(url, STDIN_URL) ? "stdin" : "data: URL");
        if (!comma || comma - url < 12 || strncasecmp(comma - 7, ";base64", 7))
            return fail(err, "data: URL: not data:…;base64,…");
        return base64(comma + 1, bytes, &why) ? fail(err, "data: URL: %s", why.text) : 1;
    }
    if (colon && strncasecmp(url, "file://", 7))
        return fail(err, "%.200s: only file:// and data: URLs and paths are read", url);
    file_path(url, name);
    return name->len ? 0 : fail(err, "a URL without a path");
}

/* The content of an image or a video: its bytes in memory or, for a film in a regular file, the
 * open file. */
typedef struct {
    Buf bytes;
    int fd;                             /* -1: the content is in bytes */
    uint64_t hash;                      /* of the bytes or, of a file, of what tells it from all
                                         * others and from its own earlier contents */
} Source;

static void source_free(Source *s) {
    buf_free(&s->bytes);
    if (s->fd >= 0) close(s->fd);
}

/* Opens a film in a regular file.  s->fd stays -1 for anything else: a GIF, a pipe, a file that
 * cannot be opened, about which read_file has something to say. */
static void open_film(const char *path, Source *s) {
    struct stat info;
    char head[6];
    int fd = open(path, O_RDONLY | O_NONBLOCK);
    if (fd < 0) return;
    int is_film = !fstat(fd, &info) && S_ISREG(info.st_mode) &&
                  pread(fd, head, sizeof head, 0) == sizeof head && !image_is_gif(head, 6);
    if (!is_film) {
        close(fd);
        return;
    }
    int64_t identity[] = {(int64_t)info.st_dev, (int64_t)info.st_ino, info.st_size,
                          info.st_mtim.tv_sec, info.st_mtim.tv_nsec,
                          info.st_ctim.tv_sec, info.st_ctim.tv_nsec};
    s->fd = fd;
    s->hash = hash_bytes(identity, sizeof identity, 0);
}

/* Opens or reads what a URL names.  The caller frees *s with source_free, also after an error. */
static int open_url(const char *url, int is_video, Buf *name, Source *s, Error *err) {
    *s = (Source){.fd = -1};
    int found = find_url(url, name, &s->bytes, err);
    if (found < 0) return -1;
    if (!found && is_video) open_film(name->data, s);
    if (s->fd >= 0) return 0;
    /* To read_file, "-" would be stdin. */
    const char *path = strcmp(name->data, "-") ? name->data : "./-";
    if (!found && read_file(path, &s->bytes, err)) return -1;
    s->hash = hash_bytes(s->bytes.data, s->bytes.len, 0);
    return 0;
}

/* ---- videos ---- */

/* Adds an image, or a frame of a video at that time, to m as a Picture. */
static int add_frame(Media *m, const Image *image, int max_soft, double seconds, Error *err) {
    m->picture = xrealloc(m->picture, m->n + 1, sizeof *m->picture);
    m->seconds = xrealloc(m->seconds, m->n + 1, sizeof *m->seconds);
    if (image_to_picture(image, max_soft, &m->picture[m->n]))
        return fail(err, "no memory for an image of %d x %d pixels", image->width, image->height);
    m->seconds[m->n++] = seconds;
    return 0;
}

/* Chooses at most max of `total` frames, evenly.  Returns their *n indices in rising order; the
 * caller frees them. */
static int *sample(int total, int max, int *n) {
    *n = total < max ? total : max;
    int *index = xcalloc(*n, sizeof *index);
    for (int i = 0; i < *n; i++) index[i] = (int)((int64_t)i * total / *n);
    return index;
}

/* Returns as image_decode. */
static int load_gif(Media *m, const Buf *bytes, int max_frames, Error *err) {
    int total, n = 0, *index = NULL;
    double duration;
    int bad = gif_scan(bytes->data, bytes->len, &total, &duration, err);
    if (bad) return bad;
    index = sample(total, max_frames, &n);
    Image *frame = xcalloc(n, sizeof *frame);
    bad = gif_frames(bytes->data, bytes->len, index, n, frame, err);
    for (int i = 0; i < n; i++) {
        if (!bad) bad = add_frame(m, &frame[i], VIDEO_TOKENS, index[i] * duration / total, err);
        free(frame[i].rgb);
    }
    free(frame);
    free(index);
    return bad;
}

/* Loads the film in the open file fd. */
static int load_film(Media *m, int fd, int max_frames, Error *err) {
    int n, bad = 0, more = 1;
    VideoInfo film;
    Frames frames;
    Image frame;
    if (video_scan(fd, &film, &m->flaws, err)) return -1;
    int *index = sample(film.frames, max_frames, &n);
    bad = frames_open(&frames, fd, &film, index, n, &m->flaws, err);
    while (!bad && m->n < n && (more = frames_next(&frames, &frame, err)) != 0) {
        double time = index[m->n] * film.duration / film.frames;
        bad = more < 0 || add_frame(m, &frame, VIDEO_TOKENS, time, err) ? -1 : 0;
        free(frame.rgb);
    }
    frames_close(&frames);
    if (!bad && !m->n) bad = fail(err, "ffmpeg gives no frames of it");
    free(index);
    return bad;
}

/* Loads a video that is in memory and no GIF. */
static int load_film_bytes(Media *m, const Buf *bytes, int max_frames, Error *err) {
    int fd = file_in_memory(bytes->data, bytes->len, err);
    if (fd < 0) return -1;
    int bad = load_film(m, fd, max_frames, err);
    close(fd);
    return bad;
}

/* Loads a GIF.  Of a damaged one ffmpeg takes the frames in front of the damage. */
static int load_animation(Media *m, const Buf *bytes, int max_frames, Error *err) {
    Error why;
    int bad = load_gif(m, bytes, max_frames, err);
    if (bad <= 0) return bad;
    m->flaws.is_damaged = 1;
    if (!load_film_bytes(m, bytes, max_frames, &why)) return 0;
    return fail(err, "%s; %s", err->text, why.text);
}

/* ---- the store ---- */

static void free_item(Media *m) {
    for (int i = 0; i < m->n; i++) {
        free(m->picture[i].pixels);
        free(m->picture[i].soft);
    }
    free(m->picture);
    free(m->seconds);
    free(m);
}

void media_free(MediaStore *s) {
    for (int i = 0; i < s->n; i++) free_item(s->item[i]);
    free(s->item);
    s->item = NULL;
    s->n = 0;
}

/* The bytes that m takes, nearly: for each soft token the pixels of its patches or, once it is
 * encoded, its numbers.  Their count is the width of the model, which is not known here: 2816 in
 * the 26B model. */
static int64_t item_bytes(const Media *m) {
    int64_t n = 0;
    for (int i = 0; i < m->n; i++) {
        const Picture *p = &m->picture[i];
        n += (int64_t)sizeof(float) * p->n * (p->soft ? 3000 : POOL * POOL * PATCH_SIZE);
    }
    return n;
}

/* Frees what was not used for longest, until the rest has at most KEEP_BYTES. */
static void forget_old(MediaStore *s) {
    int64_t bytes = 0;
    for (int i = 0; i < s->n; i++) bytes += item_bytes(s->item[i]);
    while (bytes > KEEP_BYTES) {
        int oldest = 0;
        for (int i = 1; i < s->n; i++)
            if (s->item[i]->used < s->item[oldest]->used) oldest = i;
        bytes -= item_bytes(s->item[oldest]);
        free_item(s->item[oldest]);
        s->item[oldest] = s->item[--s->n];
    }
}

static int load_image(Media *m, const Buf *bytes, int max_soft, Error *err) {
    Image image = {0};
    Error why;
    int bad = image_decode(bytes->data, bytes->len, &image, &why);
    m->flaws.is_damaged = bad == TRUNCATED;
    if (bad < 0) fail(err, "%s", why.text);
    else if (bad)
        bad = picture_by_ffmpeg(bytes->data, bytes->len, &why, &image, &m->flaws, err);
    if (!bad) bad = add_frame(m, &image, max_soft, 0, err);
    free(image.rgb);
    return bad;
}

/* Loads what the source holds. */
static int load_source(Media *m, const MediaStore *s, const Source *from, Error *err) {
    const Buf *bytes = &from->bytes;
    if (!m->is_video) return load_image(m, bytes, s->image_tokens, err);
    if (from->fd >= 0) return load_film(m, from->fd, s->video_frames, err);
    if (image_is_gif(bytes->data, bytes->len))
        return load_animation(m, bytes, s->video_frames, err);
    return load_film_bytes(m, bytes, s->video_frames, err);
}

/* The hash of a picture's content: of its pixels for a frame of a film, whose file was not read;
 * otherwise of the file's bytes and the number of the frame. */
static uint64_t content_hash(const Picture *p, int i, const Source *from, uint64_t key) {
    if (from->fd < 0) return hash_bytes(&i, sizeof i, key);
    int shape[] = {i, p->columns, p->rows};
    size_t n = (size_t)p->columns * (size_t)p->rows * PATCH_SIZE;
    return hash_bytes(p->pixels, n * sizeof *p->pixels, hash_bytes(shape, sizeof shape, 0));
}

/* Decodes a source and adds the result to the store, under its key.  NULL with err, which does not
 * name the file. */
static Media *decode(MediaStore *s, const Source *from, int is_video, uint64_t key, Error *err) {
    Media *m = xcalloc(1, sizeof *m);
    m->key = key;
    m->is_video = is_video;
    if (load_source(m, s, from, err)) {
        free_item(m);
        return NULL;
    }
    for (int i = 0; i < m->n; i++)
        m->picture[i].hash = content_hash(&m->picture[i], i, from, key);
    s->item = xrealloc(s->item, s->n + 1, sizeof *s->item);
    s->item[s->n++] = m;
    return m;
}

/* Whether the model takes pictures so wide and high: 0, or -1 with err. */
static int check_sides(const MediaStore *s, const Media *m, Error *err) {
    const Picture *p = m->picture;      /* the frames of a video have the same size */
    if (!s->most_patches || (p->columns <= s->most_patches && p->rows <= s->most_patches)) return 0;
    return fail(err, "a picture of %d x %d patches: this model has positions for %d a side",
                p->columns, p->rows, s->most_patches);
}

/* The image or video that a URL names, from the store or the file.  The store owns it.  The name of
 * the file, for messages, is added to *name.  NULL with err. */
static Media *load(MediaStore *s, const char *url, int is_video, Buf *name, Error *err) {
    Source from;
    Media *m = NULL;
    Error why;
    int how[2] = {is_video, is_video ? s->video_frames : s->image_tokens};
    if (!open_url(url, is_video, name, &from, err)) {
        uint64_t key = hash_bytes(how, sizeof how, from.hash);
        for (int i = 0; i < s->n; i++)
            if (s->item[i]->key == key) m = s->item[i];
        if (!m) m = decode(s, &from, is_video, key, &why);
        if (m && check_sides(s, m, &why)) m = NULL;
        if (!m) fail(err, "%s: %s", name->data, why.text);
    }
    if (m) m->used = s->now++;
    source_free(&from);
    return m;
}

/* The URL of an image or video part: "image_url": {"url": …}, as in OpenAI's API, or "image_url":
 * "…"; Anthropic's "source": {"url": …}, or {"media_type": …, "data": base64} as a data: URL; or
 * MCP's {"data": base64, "mimeType": …}.  An empty Buf if it names nothing; the caller frees it. */
static Buf part_url(const cJSON *part, const char *type) {
    const cJSON *theirs = json_field(part, "source");
    const cJSON *ours = json_field(part, strcmp(type, "input_image") ? type : "image_url");
    const cJSON *source = theirs ? theirs : ours, *url = json_field(source, "url");
    const char *name = cJSON_GetStringValue(url ? url : source);
    const char *data = json_string(theirs ? theirs : part, "data");
    const char *mime = cJSON_GetStringValue(theirs ? json_field(theirs, "media_type")
                                                   : json_field(part, "mimeType"));
    Buf found = {0};
    if (name) buf_puts(&found, name);
    else if (data) buf_printf(&found, "data:%s;base64,%s", mime ? mime : "", data);
    return found;
}

static void add_warnings(const Media *m, const char *name, Buf *warnings) {
    if (m->flaws.is_damaged)
        buf_printf(warnings, "%s: the file is damaged: part of %s may be missing\n", name,
                   m->is_video ? "the video" : "the picture");
    if (m->flaws.is_hdr)
        buf_printf(warnings, "%s: HDR is not mapped to the range of a normal screen: the model "
                   "sees pale colours\n", name);
}

/* Loads part j of message i, if it is an image or a video, and adds it to p->media.  is_new: the
 * message is none that the assistant has answered. */
static int load_part(MediaStore *s, const cJSON *part, int i, int j, int is_new, Prompt *p,
                     Error *err) {
    const char *type = json_string(part, "type");
    int is_image = type && (begins(type, "image") || !strcmp(type, "input_image"));
    int is_video = type && begins(type, "video");
    if (!is_image && !is_video) return 0;
    Buf url = part_url(part, type), name = {0};
    int named = url.data != NULL;
    Error why;
    const Media *m = named ? load(s, url.data, is_video, &name, &why) : NULL;
    if (m && is_new) add_warnings(m, name.data, &p->warnings);
    buf_free(&url);
    buf_free(&name);
    if (named && !m) return fail(err, "messages[%d].content[%d]: %s", i, j, why.text);
    if (!named && json_field(part, "source"))
        return fail(err, "messages[%d].content[%d].source: must have the type base64 or url", i, j);
    if (!named && !s->placeholders)
        return fail(err, "messages[%d].content[%d]: names no file (\"%s_url\": {\"url\": …})", i, j,
                    is_video ? "video" : "image");
    if (!named) return 0;
    p->media = xrealloc(p->media, p->n_media + 1, sizeof *p->media);
    p->media[p->n_media++] = (PartMedia){part, m};
    return 0;
}

int media_load(MediaStore *s, const cJSON *messages, Prompt *p, Error *err) {
    const cJSON *message, *part;
    int i = 0, last_answer = -1;
    forget_old(s);
    cJSON_ArrayForEach(message, messages) {
        if (has_role(message, "assistant")) last_answer = i;
        i++;
    }
    i = 0;
    cJSON_ArrayForEach(message, messages) {
        const cJSON *content = json_field(message, "content");
        int j = 0;
        if (cJSON_IsArray(content)) cJSON_ArrayForEach(part, content)
            if (load_part(s, part, i, j++, i > last_answer, p, err)) return -1;
        i++;
    }
    return 0;
}

int media_check(MediaStore *s, const char *url, int is_video, Error *err) {
    Buf name = {0};
    const Media *m = load(s, url, is_video, &name, err);
    buf_free(&name);
    return m ? 0 : -1;
}

cJSON *media_part(const char *path, int is_video) {
    const char *type = is_video ? "video_url" : "image_url";
    cJSON *part = cJSON_CreateObject();
    cJSON_AddStringToObject(part, "type", type);
    cJSON_AddStringToObject(cJSON_AddObjectToObject(part, type), "url", path);
    return part;
}

/* The URL of a part that media_part has made. */
static cJSON *own_url(const cJSON *part) {
    const cJSON *image = json_field(part, "image_url"), *video = json_field(part, "video_url");
    return cJSON_GetObjectItemCaseSensitive(video ? video : image, "url");
}

const char *media_path(const cJSON *part, int *is_video) {
    *is_video = json_field(part, "video_url") != NULL;
    return cJSON_GetStringValue(own_url(part));
}

int media_stdin(const cJSON *parts, Error *err) {
    const cJSON *part;
    int found = 0;
    cJSON_ArrayForEach(part, parts) {
        Buf bytes = {0}, url = {0};
        if (strcmp(cJSON_GetStringValue(own_url(part)), "-")) continue;
        if (found++) return fail(err, "-i and --video: stdin (-) can be one file, not two");
        if (isatty(STDIN_FILENO)) return fail(err, "-i -: stdin is a terminal, and no file");
        int bad = read_file("-", &bytes, err);
        buf_puts(&url, STDIN_URL);
        if (!bad) add_base64(&bytes, &url);
        cJSON_SetValuestring(own_url(part), url.data);
        buf_free(&bytes);
        buf_free(&url);
        if (bad) return -1;
    }
    return found;
}

void media_absolute(cJSON *parts) {
    const cJSON *part;
    cJSON_ArrayForEach(part, parts) {
        cJSON *url = own_url(part);
        char *whole = realpath(cJSON_GetStringValue(url), NULL);
        if (whole) cJSON_SetValuestring(url, whole);
        free(whole);
    }
}

void media_content(cJSON *message, const cJSON *parts, const char *text) {
    if (!cJSON_GetArraySize(parts)) {
        cJSON_AddStringToObject(message, "content", text);
        return;
    }
    cJSON *content = cJSON_Duplicate(parts, 1), *last = cJSON_CreateObject();
    cJSON_AddStringToObject(last, "type", "text");
    cJSON_AddStringToObject(last, "text", text);
    cJSON_AddItemToArray(content, last);
    cJSON_AddItemToObject(message, "content", content);
}

int media_kind(const char *path) {
    static const struct { const char *name; int kind; } known[] = {
        {"jpg", 1}, {"jpeg", 1}, {"png", 1}, {"gif", 1}, {"bmp", 1}, {"ppm", 1}, {"pgm", 1},
        {"pnm", 1}, {"tga", 1}, {"mp4", 2}, {"mov", 2}, {"mkv", 2}, {"webm", 2}, {"avi", 2},
        {"m4v", 2}, {"mpg", 2}, {"mpeg", 2}, {"ogv", 2}, {"wmv", 2}, {"flv", 2}, {"3gp", 2},
        {"webp", 1}, {"heic", 1}, {"heif", 1}, {"avif", 1}, {"tif", 1}, {"tiff", 1}, {"jxl", 1},
        {"jp2", 1}, {"svg", 1}, {"psd", 1},
    };
    const char *dot = strrchr(path, '.');
    for (size_t i = 0; dot && i < sizeof known / sizeof *known; i++)
        if (!strcasecmp(dot + 1, known[i].name)) return known[i].kind;
    return 0;
}
