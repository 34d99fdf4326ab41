/* media.c - pictures and videos in messages.  See media.h.
 *
 * Sampling and timestamps of videos follow transformers' video_processing_gemma4.py (frames i * total / n) and video_utils.py
 * (frame / rate).  GIFs are read here, everything else by an ffmpeg program, if there is one: it is asked twice, for the
 * list of frames, which needs no decoding, and for those wanted, as a stream of PPM images. */
#define _GNU_SOURCE
#include "media.h"

#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "image.h"
#include "json.h"

#define KEEP_BYTES (1ll << 29)          /* of pictures that no prompt uses */

extern char **environ;

/* ------------------------------------------------------------------------------------------------------------
 * From a URL to bytes */

static int hex(int c) { return isdigit(c) ? c - '0' : isxdigit(c) ? tolower(c) - 'a' + 10 : -1; }

/* file://[localhost]/path with %xx, or a plain path. */
static void file_path(const char *url, Buf *path) {
    int is_url = !strncasecmp(url, "file://", 7);
    if (is_url) url += 7;
    if (is_url && !strncasecmp(url, "localhost/", 10)) url += 9;
    for (; *url; url++) {
        int high = is_url && *url == '%' ? hex((unsigned char)url[1]) : -1, low = high >= 0 ? hex((unsigned char)url[2]) : -1;
        char c = low >= 0 ? (char)(high * 16 + low) : *url;
        buf_add(path, &c, 1);
        if (low >= 0) url += 2;
    }
}

static int base64(const char *s, Buf *out, Error *err) {
    static const char digits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    unsigned v = 0;
    int bits = 0;
    for (; *s && *s != '='; s++) {
        if (isspace((unsigned char)*s)) continue;
        const char *at = strchr(digits, *s == '-' ? '+' : *s == '_' ? '/' : *s);
        if (!at) return fail(err, "'%c' is no base64", *s);
        v = v << 6 | (unsigned)(at - digits);
        if ((bits += 6) < 8) continue;
        bits -= 8;
        buf_add(out, &(uint8_t){v >> bits & 255}, 1);
    }
    return 0;
}

/* The bytes, and for messages a name.  name is the path where there is one, else "data: URL". */
static int read_url(const char *url, Buf *name, Buf *bytes, Error *err) {
    Error why;
    const char *colon = strstr(url, "://");
    if (!strncasecmp(url, "data:", 5)) {
        const char *comma = strchr(url, ',');
        buf_puts(name, "data: URL");
        if (!comma || comma - url < 12 || strncasecmp(comma - 7, ";base64", 7)) return fail(err, "data: URL: not data:…;base64,…");
        return base64(comma + 1, bytes, &why) ? fail(err, "data: URL: %s", why.text) : 0;
    }
    if (colon && strncasecmp(url, "file://", 7)) return fail(err, "%.200s: only file:// and data: URLs and paths are read", url);
    file_path(url, name);
    if (!name->len) return fail(err, "a URL without a path");
    return read_file(strcmp(name->data, "-") ? name->data : "./-", bytes, err);      /* not stdin */
}

/* ------------------------------------------------------------------------------------------------------------
 * Videos */

/* Takes one frame in, as a Picture. */
static int add_frame(Media *m, const Image *image, int max_soft, double seconds, Error *err) {
    m->picture = xrealloc(m->picture, m->n + 1, sizeof *m->picture);
    m->seconds = xrealloc(m->seconds, m->n + 1, sizeof *m->seconds);
    if (image_to_picture(image, max_soft, &m->picture[m->n])) return fail(err, "no memory for an image of %d x %d pixels", image->width, image->height);
    m->seconds[m->n++] = seconds;
    return 0;
}

/* The frames to take, of `total`: n of them in index, which the caller frees. */
static int *sample(int total, int max, int *n) {
    *n = total < max ? total : max;
    int *index = xcalloc(*n, sizeof *index);
    for (int i = 0; i < *n; i++) index[i] = (int)((int64_t)i * total / *n);
    return index;
}

static int load_gif(Media *m, const Buf *bytes, int max_frames, Error *err) {
    int total, n = 0, *index = NULL;
    double duration;
    if (gif_scan(bytes->data, bytes->len, &total, &duration, err)) return -1;
    index = sample(total, max_frames, &n);
    Image *frame = xcalloc(n, sizeof *frame);
    int bad = gif_frames(bytes->data, bytes->len, index, n, frame, err);
    for (int i = 0; i < n; i++) {
        if (!bad) bad = add_frame(m, &frame[i], VIDEO_TOKENS, index[i] * duration / total, err);
        free(frame[i].rgb);
    }
    free(frame);
    free(index);
    return bad;
}

typedef struct {
    pid_t pid;
    FILE *out;                          /* what it writes to stdout */
} Child;

/* Runs ffmpeg on the file open as fd, without a shell, nothing on its stdin, its complaints dropped. */
static int start_ffmpeg(int fd, char *const *more, Child *c, Error *err) {
    char input[64];
    char *argv[32] = {"ffmpeg", "-nostdin", "-v", "quiet", "-protocol_whitelist", "file", "-i", input, "-map", "0:v:0"};
    int n = 10, pipes[2];
    snprintf(input, sizeof input, "file:/dev/fd/%d", fd);
    while (*more) argv[n++] = *more++;
    if (pipe(pipes)) return fail(err, "ffmpeg: %s", strerror(errno));
    posix_spawn_file_actions_t actions;
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_addopen(&actions, 0, "/dev/null", O_RDONLY, 0);
    posix_spawn_file_actions_adddup2(&actions, pipes[1], 1);
    posix_spawn_file_actions_addopen(&actions, 2, "/dev/null", O_WRONLY, 0);
    posix_spawn_file_actions_addclose(&actions, pipes[0]);
    posix_spawn_file_actions_addclose(&actions, pipes[1]);
    int why = posix_spawnp(&c->pid, "ffmpeg", &actions, NULL, argv, environ);
    posix_spawn_file_actions_destroy(&actions);
    close(pipes[1]);
    if (!why) {
        c->out = fdopen(pipes[0], "r");
        return 0;
    }
    close(pipes[0]);
    if (why == ENOENT) return fail(err, "videos other than GIF need the program ffmpeg, which is not installed");
    return fail(err, "ffmpeg: %s", strerror(why));
}

static void end_ffmpeg(Child *c) {
    (void)fclose(c->out);
    waitpid(c->pid, NULL, 0);
}

/* How many frames there are and how long they last: one line a packet, "stream, dts, pts, duration, …", in units that a line
 * "#tb 0: 1/12800" names. */
static int scan_video(int fd, int *total, double *duration, Error *err) {
    char *const args[] = {"-c", "copy", "-f", "framecrc", "-", NULL};
    char line[256];
    double from = INFINITY, to = -INFINITY, pts, length, up = 0, down = 1;
    Child c;
    if (start_ffmpeg(fd, args, &c, err)) return -1;
    *total = 0;
    while (fgets(line, sizeof line, c.out)) {
        sscanf(line, "#tb 0: %lf/%lf", &up, &down);
        if (sscanf(line, "%*d, %*d, %lf, %lf,", &pts, &length) != 2) continue;
        if (pts < from) from = pts;
        if (pts + length > to) to = pts + length;
        ++*total;
    }
    end_ffmpeg(&c);
    *duration = *total && down != 0 ? (to - from) * up / down : 0;
    return *total && *duration > 0 ? 0 : fail(err, "ffmpeg finds no video in it");
}

static int load_video(Media *m, int fd, int max_frames, Error *err) {
    int total, n, bad = 0;
    double duration;
    Buf select = {0};
    Child c;
    if (scan_video(fd, &total, &duration, err)) return -1;
    int *index = sample(total, max_frames, &n);
    for (int i = 0; i < n; i++) buf_printf(&select, "%seq(n\\,%d)", i ? "+" : "select=", index[i]);
    char *const args[] = {"-vf", select.data, "-fps_mode", "passthrough", "-f", "image2pipe", "-c:v", "ppm", "-", NULL};
    if (!(bad = start_ffmpeg(fd, args, &c, err))) {
        Image frame;
        while (!bad && m->n < n && fscanf(c.out, "P6 %d %d 255%*c", &frame.width, &frame.height) == 2) {
            size_t size = (size_t)frame.width * (size_t)frame.height * 3;
            frame.rgb = frame.width > 0 && frame.height > 0 && frame.width < 1 << 15 && frame.height < 1 << 15 ? malloc(size) : NULL;
            if (!frame.rgb) bad = fail(err, "no memory for frames of %d x %d pixels", frame.width, frame.height);
            else if (fread(frame.rgb, 1, size, c.out) != size) bad = fail(err, "ffmpeg stopped within a frame");
            else bad = add_frame(m, &frame, VIDEO_TOKENS, index[m->n] * duration / total, err);
            free(frame.rgb);
        }
        end_ffmpeg(&c);
        if (!bad && !m->n) bad = fail(err, "ffmpeg gives no frames of it");
    }
    free(index);
    buf_free(&select);
    return bad;
}

/* ffmpeg gets the file as an inherited descriptor: no name of it is ever a word of a command. */
static int load_by_ffmpeg(Media *m, const Buf *bytes, int max_frames, Error *err) {
    int fd = memfd_create("video", 0);
    if (fd < 0) return fail(err, "memfd_create: %s", strerror(errno));
    size_t done = 0;
    for (ssize_t n; done < bytes->len && (n = write(fd, bytes->data + done, bytes->len - done)) > 0;) done += (size_t)n;
    int bad = done < bytes->len ? fail(err, "no memory for a video of %.1f MB", (double)bytes->len * 1e-6) : load_video(m, fd, max_frames, err);
    close(fd);
    return bad;
}

/* ------------------------------------------------------------------------------------------------------------
 * The store */

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

/* A soft token of the large models has some 3000 numbers, the pixels it comes from 6912. */
static int64_t item_bytes(const Media *m) {
    int64_t n = 0;
    for (int i = 0; i < m->n; i++) n += (int64_t)4 * m->picture[i].n * (m->picture[i].soft ? 3000 : POOL * POOL * PATCH_SIZE);
    return n;
}

/* Lets go what was not used for longest, until the rest is small enough. */
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

/* What the URL names, from the store or the file.  NULL with err. */
static Media *load(MediaStore *s, const char *url, int is_video, Error *err) {
    Buf name = {0}, bytes = {0};
    Media *m = NULL;
    Image image = {0};
    Error why;
    int how[2] = {is_video, is_video ? s->video_frames : s->image_tokens}, bad = read_url(url, &name, &bytes, err);
    if (!bad) {
        uint64_t key = hash_bytes(how, sizeof how, hash_bytes(bytes.data, bytes.len, 0));
        for (int i = 0; i < s->n; i++)
            if (s->item[i]->key == key) m = s->item[i];
        if (!m) {
            m = xcalloc(1, sizeof *m);
            m->key = key;
            m->is_video = is_video;
            if (!is_video) bad = image_decode(bytes.data, bytes.len, &image, &why) || add_frame(m, &image, s->image_tokens, 0, &why);
            else if (image_is_gif(bytes.data, bytes.len)) bad = load_gif(m, &bytes, s->video_frames, &why);
            else bad = load_by_ffmpeg(m, &bytes, s->video_frames, &why);
            for (int i = 0; i < m->n; i++) m->picture[i].hash = hash_bytes(&i, sizeof i, key);
            if (bad) {
                fail(err, "%s: %s", name.data, why.text);
                free_item(m);
                m = NULL;
            } else {
                s->item = xrealloc(s->item, s->n + 1, sizeof *s->item);
                s->item[s->n++] = m;
            }
            free(image.rgb);
        }
    }
    if (m) m->used = s->now++;
    buf_free(&name);
    buf_free(&bytes);
    return m;
}

/* The file that a part names: "image_url": {"url": …}, as OpenAI has it, or "image_url": "…"; or the
 * bytes that it brings, as MCP has it, {"type": "image", "data": base64, "mimeType": …}.  Without data: none. */
static Buf part_url(const cJSON *part, const char *type) {
    const cJSON *source = json_field(part, strcmp(type, "input_image") ? type : "image_url"), *url = json_field(source, "url");
    const char *name = cJSON_GetStringValue(url ? url : source), *data = cJSON_GetStringValue(json_field(part, "data"));
    const char *mime = cJSON_GetStringValue(json_field(part, "mimeType"));
    Buf found = {0};
    if (name) buf_puts(&found, name);
    else if (data) buf_printf(&found, "data:%s;base64,%s", mime ? mime : "", data);
    return found;
}

/* The media of one part, which is number j of message i, if it is an image or a video. */
static int load_part(MediaStore *s, const cJSON *part, int i, int j, Prompt *p, Error *err) {
    const char *type = cJSON_GetStringValue(json_field(part, "type"));
    int is_image = type && (!strncmp(type, "image", 5) || !strcmp(type, "input_image"));
    int is_video = type && !strncmp(type, "video", 5);
    if (!is_image && !is_video) return 0;
    Buf url = part_url(part, type);
    int named = url.data != NULL;
    Error why;
    const Media *m = named ? load(s, url.data, is_video, &why) : NULL;
    buf_free(&url);
    if (named && !m) return fail(err, "messages[%d].content[%d]: %s", i, j, why.text);
    if (!named && !s->placeholders)
        return fail(err, "messages[%d].content[%d]: names no file (\"%s_url\": {\"url\": …})", i, j, is_video ? "video" : "image");
    if (!named) return 0;
    p->media = xrealloc(p->media, p->n_media + 1, sizeof *p->media);
    p->media[p->n_media++] = (PartMedia){part, m};
    return 0;
}

int media_load(MediaStore *s, const cJSON *messages, Prompt *p, Error *err) {
    const cJSON *message, *part;
    int i = 0;
    forget_old(s);
    cJSON_ArrayForEach(message, messages) {
        int j = 0;
        if (cJSON_IsArray(json_field(message, "content"))) cJSON_ArrayForEach(part, json_field(message, "content"))
            if (load_part(s, part, i, j++, p, err)) return -1;
        i++;
    }
    return 0;
}

int media_check(MediaStore *s, const char *url, int is_video, Error *err) { return load(s, url, is_video, err) ? 0 : -1; }

cJSON *media_part(const char *path, int is_video) {
    const char *type = is_video ? "video_url" : "image_url";
    cJSON *part = cJSON_CreateObject();
    cJSON_AddStringToObject(part, "type", type);
    cJSON_AddStringToObject(cJSON_AddObjectToObject(part, type), "url", path);
    return part;
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
    static const char *const names[] = {"jpg", "jpeg", "png", "gif", "bmp", "ppm", "pgm", "pnm", "tga", "mp4", "mov", "mkv", "webm", "avi", "m4v"};
    const char *dot = strrchr(path, '.');
    for (int i = 0; dot && i < 15; i++)
        if (!strcasecmp(dot + 1, names[i])) return i < 9 ? 1 : 2;
    return 0;
}
