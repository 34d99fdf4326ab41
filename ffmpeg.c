/* ffmpeg.c - videos, and pictures that stb_image cannot read, through ffmpeg.  See ffmpeg.h.
 *
 * ffmpeg gets the input as an open file, under the name file:/dev/fd/N.  So no name from a request
 * becomes a part of a command, and ffmpeg gives no meaning to a colon or a percent sign in a name.
 * ffmpeg writes PAM images, whose headers say how large they are.  The calls use only options that
 * all of ffmpeg 4.1 to 8 have. */
#define _GNU_SOURCE
#include "ffmpeg.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "orient.h"
#include "sniff.h"

/* ---- the program ---- */

/* In the child: becomes ffmpeg, with `out` as its stdout and `says` as its stderr.  If that fails,
 * it writes errno to `why`.  The kernel kills ffmpeg when this program ends, however it ends. */
static void be_ffmpeg(char *const *argv, int out, int says, int why, pid_t parent) {
    int null = open("/dev/null", O_RDWR);
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (getppid() != parent) _exit(1);
    signal(SIGPIPE, SIG_DFL);
    if (null >= 0 && dup2(null, 0) == 0 && dup2(out, 1) == 1 && dup2(says, 2) == 2)
        execvp("ffmpeg", argv);
    ssize_t done = write(why, &errno, sizeof errno);
    (void)done;
    _exit(1);
}

/* Makes the pipe for ffmpeg's stderr, which nobody reads before ffmpeg ends.  Writing to it never
 * waits: what it has no room for is lost.  It has 1 MB where the system permits, and 64 KB else.
 * Returns 0, or -1 with errno. */
static int pipe_for_stderr(int says[2]) {
    if (pipe2(says, O_CLOEXEC)) return -1;
    fcntl(says[1], F_SETPIPE_SZ, 1 << 20);
    return fcntl(says[1], F_SETFL, O_NONBLOCK) < 0 ? -1 : 0;
}

static void close_pipe(const int end[2]) {
    if (end[0] >= 0) close(end[0]);
    if (end[1] >= 0) close(end[1]);
}

/* Starts ffmpeg on the open file fd.  before: options in front of the input; more: arguments behind
 * it; both lists end with NULL.  ffmpeg describes the file on stderr, each line with its level, for
 * `hear`.  `finish` or frames_close ends ffmpeg.  Returns 0, or -1 with err. */
static int start(Frames *f, int fd, char *const *before, char *const *more, Flaws *flaws,
                 Error *err) {
    char input[64];
    char *argv[48] = {"ffmpeg", "-nostdin", "-nostats", "-hide_banner", "-v", "level+info",
                      "-protocol_whitelist", "file"};
    int n = 8, out[2], says[2] = {-1, -1}, report[2] = {-1, -1}, why = 0;
    snprintf(input, sizeof input, "file:/dev/fd/%d", fd);
    while (*before) argv[n++] = *before++;
    argv[n++] = "-i";
    argv[n++] = input;
    while (*more) argv[n++] = *more++;
    if (pipe2(out, O_CLOEXEC)) return fail(err, "ffmpeg: %s", strerror(errno));
    pid_t parent = getpid();
    pid_t pid = pipe_for_stderr(says) || pipe2(report, O_CLOEXEC) ? -1 : fork();
    if (pid < 0) why = errno;
    if (pid == 0) be_ffmpeg(argv, out[1], says[1], report[1], parent);
    close(out[1]);
    if (pid > 0) {
        close(says[1]);
        close(report[1]);
        /* Nothing comes from a child that has become ffmpeg: execvp closes the pipe. */
        if (read(report[0], &why, sizeof why) != sizeof why) why = 0;
        says[1] = report[1] = -1;
    }
    if (!why) {
        close(report[0]);
        *f = (Frames){pid, 1, fdopen(out[0], "r"), says[0], flaws};
        return 0;
    }
    close_pipe(report);
    close_pipe(says);
    close(out[0]);
    if (pid > 0) wait_for(pid);
    if (why == ENOENT) return fail(err, "ffmpeg is not installed (apt install ffmpeg)");
    return fail(err, "ffmpeg: %s", strerror(why));
}

/* Adds to the flaws what a line of ffmpeg's stderr says: that there is an error or, of a stream,
 * which curve (its "transfer characteristics") codes brightness.  AVI's reader calls a missing end
 * a warning.  Errors in EXIF and in lists of chapters concern no picture. */
static void take_remark(Flaws *flaws, const char *line) {
    int is_error = strstr(line, "[error] ") || strstr(line, "[fatal] ") ||
                   strstr(line, "corrupt input packet");
    if (is_error && !strcasestr(line, "exif") && !strstr(line, "chapter")) flaws->is_damaged = 1;
    if (strstr(line, "/smpte2084") || strstr(line, "/arib-std-b67")) flaws->is_hdr = 1;
}

/* Takes what ffmpeg, which has ended, has written to stderr. */
static void hear(Frames *f) {
    FILE *says = fdopen(f->says, "r");
    char *line = NULL;
    size_t room = 0;
    while (says && getline(&line, &room, says) > 0) take_remark(f->flaws, line);
    if (says) (void)fclose(says);
    free(line);
}

void frames_close(Frames *f) {
    if (!f->runs) return;
    (void)fclose(f->out);
    kill(f->pid, SIGKILL);
    wait_for(f->pid);
    hear(f);
    *f = (Frames){0};
}

/* Waits for the end of ffmpeg, whose output has been read as far as it is wanted.  Returns the exit
 * status, or -1 with err where ffmpeg's output may be incomplete.  A Ctrl-C at the chat prompt has
 * two such effects: it ends our read early, and it reaches ffmpeg, which then ends by the signal or
 * with status 255. */
static int finish(Frames *f, Error *err) {
    int cut = ferror(f->out);
    (void)fclose(f->out);
    int status = wait_for(f->pid);
    hear(f);
    *f = (Frames){0};
    if (cut || !WIFEXITED(status) || WEXITSTATUS(status) == 255)
        return fail(err, "ffmpeg was interrupted");
    return WEXITSTATUS(status);
}

int file_in_memory(const void *bytes, size_t n, Error *err) {
    int fd = memfd_create("input", 0);
    if (fd < 0) return fail(err, "memfd_create: %s", strerror(errno));
    if (!write_whole(fd, bytes, n)) return fd;
    close(fd);
    return fail(err, "no memory for a file of %.1f MB", (double)n * 1e-6);
}

/* ---- the list of frames ---- */

/* A video stream, as framecrc lists it.  Times are in units of `unit` seconds. */
typedef struct {
    int width, height;                  /* pixels */
    int n;                              /* packets, each of which holds a frame */
    int n_timed;                        /* packets with a time */
    double first, last;                 /* the earliest and the latest time of a packet */
    double end;                         /* the latest end of a packet: its time and its duration */
    double unit;
} Track;

/* How many of a file's video streams are looked at.  Few files have more than two.  A HEIC has one
 * for each tile, and is no video. */
#define MAX_TRACKS 16

/* Reads a time of framecrc.  Returns 0 where the packet has none: it is NOPTS or, in older versions
 * of ffmpeg, the number -2^63. */
static int read_time(const char *text, double *time) {
    return sscanf(text, "%lf", time) == 1 && *time > -0x1p63;
}

/* Takes a line of framecrc: "#tb 0: 1/12800" (a unit of time), "#dimensions 0: 64x48", or for a
 * packet "stream, dts, pts, duration, …".  The time of a packet is its pts (when it is shown) or,
 * without one, its dts (when it is decoded). */
static void take_line(Track *tracks, const char *line) {
    int i = 0, w, h;
    double up, down, time, length = 0;
    char dts[32], pts[32];
    if (sscanf(line, "#tb %d: %lf/%lf", &i, &up, &down) == 3 && i >= 0 && i < MAX_TRACKS)
        tracks[i].unit = down > 0 ? up / down : 0;
    if (sscanf(line, "#dimensions %d: %dx%d", &i, &w, &h) == 3 && i >= 0 && i < MAX_TRACKS)
        tracks[i].width = w, tracks[i].height = h;
    if (sscanf(line, "%d, %31[^,], %31[^,], %lf", &i, dts, pts, &length) < 3) return;
    if (i < 0 || i >= MAX_TRACKS) return;
    Track *t = &tracks[i];
    t->n++;
    if (!read_time(pts, &time) && !read_time(dts, &time)) return;
    if (!t->n_timed || time < t->first) t->first = time;
    if (!t->n_timed || time > t->last) t->last = time;
    if (!t->n_timed || time + length > t->end) t->end = time + length;
    t->n_timed++;
}

/* Whether a is rather the film than b. */
static int is_better(const Track *a, const Track *b) {
    if (!a->n || !b->n) return a->n > b->n;
    if ((a->n > 1) != (b->n > 1)) return a->n > 1;
    return (int64_t)a->width * a->height > (int64_t)b->width * b->height;
}

/* Frames a second of a file without times, as in transformers' processing_gemma4.py. */
#define ASSUMED_RATE 24

/* Seconds from the first frame of the track to the end of the last.  A last frame of unknown length
 * counts as long as the others are on average. */
static double track_seconds(const Track *t) {
    double span = (t->last - t->first) * t->unit, whole = (t->end - t->first) * t->unit;
    if (t->n == 1) return whole;
    if (t->n_timed < t->n || !(span > 0)) return (double)t->n / ASSUMED_RATE;
    return t->end > t->last ? whole : span * t->n / (t->n - 1);
}

/* Whether bytes are missing of an AVI or a WebP, which say in their heads how long they are.  n:
 * the bytes of the file, of which `head` are the first 12. */
static int is_truncated_riff(const uint8_t *head, size_t n) {
    return !memcmp(head, "RIFF", 4) && number_at(head + 4, 4, 0) > n - 8;
}

int video_scan(int fd, VideoInfo *out, Flaws *flaws, Error *err) {
    char *const no_options[] = {NULL};
    char *const args[] = {"-map", "0:V", "-c", "copy", "-f", "framecrc", "-", NULL};
    Track tracks[MAX_TRACKS] = {0};
    char line[512];
    int best = 0;
    Frames f = {0};
    uint8_t head[12] = {0};
    struct stat info;
    if (pread(fd, head, sizeof head, 0) == sizeof head && !fstat(fd, &info))
        flaws->is_damaged |= is_truncated_riff(head, (size_t)info.st_size);
    if (start(&f, fd, no_options, args, flaws, err)) return -1;
    while (fgets(line, sizeof line, f.out)) take_line(tracks, line);
    if (finish(&f, err) < 0) return -1;
    for (int i = 1; i < MAX_TRACKS; i++)
        if (is_better(&tracks[i], &tracks[best])) best = i;
    if (!tracks[best].n) {
        const Format *format = sniff(head, sizeof head);
        if (!format) return fail(err, "ffmpeg finds no video in it");
        return fail(err, "%s: ffmpeg finds no video in it%s", format->name,
                    format->kind == FILM ? " (it is damaged, or has only sound)" : "");
    }
    *out = (VideoInfo){best, tracks[best].n, track_seconds(&tracks[best])};
    return 0;
}

/* ---- frames ---- */

/* Reads the next PAM image, of `channels` bytes a pixel.  Returns as frames_next does. */
static int read_pam(Frames *f, int channels, Image *frame, Error *err) {
    int w, h, depth;
    frame->rgb = NULL;
    if (fscanf(f->out, "P7 WIDTH %d HEIGHT %d DEPTH %d MAXVAL 255 TUPLTYPE %*s ENDHDR%*c", &w, &h,
               &depth) != 3)
        return 0;
    size_t size = (size_t)w * (size_t)h * (size_t)channels;
    if (w > 0 && h > 0 && w < 1 << 15 && h < 1 << 15 && depth == channels)
        frame->rgb = malloc(size);
    if (!frame->rgb) return fail(err, "no memory for frames of %d x %d pixels", w, h);
    frame->width = w;
    frame->height = h;
    if (fread(frame->rgb, 1, size, f->out) == size) return 1;
    return fail(err, "ffmpeg stopped within a frame");
}

/* The filter lets the chosen frames pass, and gives them new times at a constant rate of 25 frames
 * a second.  ffmpeg's writer of images wants a constant rate: with the old times it would drop
 * frames or repeat them.  The option that forbids this has different names in different versions
 * (-vsync, later -fps_mode). */
int frames_open(Frames *f, int fd, const VideoInfo *v, const int *index, int n, Flaws *flaws,
                Error *err) {
    char stream[32], count[16];
    char *const no_options[] = {NULL};
    Buf filter = {0};
    for (int i = 0; i < n; i++)
        buf_printf(&filter, "%seq(n\\,%d)", i ? "+" : "select=", index[i]);
    buf_puts(&filter, ",settb=1/25,setpts=N");
    snprintf(stream, sizeof stream, "0:V:%d", v->stream);
    snprintf(count, sizeof count, "%d", n);
    char *const args[] = {"-map", stream, "-vf", filter.data, "-r", "25", "-frames:v", count,
                          "-pix_fmt", "rgb24", "-f", "image2pipe", "-c:v", "pam", "-", NULL};
    *f = (Frames){0};
    int bad = start(f, fd, no_options, args, flaws, err);
    buf_free(&filter);
    return bad;
}

int frames_next(Frames *f, Image *frame, Error *err) {
    int more = read_pam(f, 3, frame, err);
    if (more) return more;
    return finish(f, err) < 0 ? -1 : 0;
}

/* ---- pictures ---- */

/* Adds a chunk of a WebP: its name, its length in 4 bytes, its data, padded to an even length. */
static void add_chunk(Buf *b, const char *name, const void *data, size_t n) {
    uint8_t length[4] = {n & 255, n >> 8 & 255, n >> 16 & 255, n >> 24 & 255};
    buf_add(b, name, 4);
    buf_add(b, length, 4);
    buf_add(b, data, n);
    if (n % 2) buf_add(b, "", 1);
}

/* Makes a still WebP of the first frame of an animated WebP, which ffmpeg does not decode.  A frame
 * (the chunk ANMF) is its place x and y, its width - 1 and its height - 1, of 3 bytes each, 4 more
 * bytes, and the chunks of a still picture.  Leaves *out empty for a WebP without animation, and
 * where the first frame is smaller than the whole picture, whose size is in the chunk VP8X (4 bytes
 * of flags, width - 1, height - 1). */
static void still_webp(const uint8_t *p, size_t n, Buf *out) {
    static const uint8_t origin[6] = {0};
    size_t size;
    if (n < 30 || memcmp(p + 8, "WEBPVP8X", 8)) return;
    for (size_t at = 12; at + 8 <= n; at += 8 + size + size % 2) {
        size = number_at(p + at + 4, 4, 0);
        if (size > n - at - 8) return;
        if (memcmp(p + at, "ANMF", 4)) continue;
        const uint8_t *frame = p + at + 8;
        if (size < 16 || memcmp(frame, origin, 6) || memcmp(frame + 6, p + 24, 6)) return;
        uint8_t head[10] = {p[20] & 0x10};      /* of the flags, that of alpha alone */
        Buf body = {0};
        memcpy(head + 4, p + 24, 6);
        buf_puts(&body, "WEBP");
        add_chunk(&body, "VP8X", head, sizeof head);
        buf_add(&body, frame + 16, size - 16);
        add_chunk(out, "RIFF", body.data, body.len);
        buf_free(&body);
        return;
    }
}

/* Which streams of a file make its picture. */
typedef enum { FIRST_STREAM, WITH_ALPHA, AS_FFMPEG_CHOOSES } Streams;

/* Decodes the picture in fd to rgba->rgb, [height][width][4].  FIRST_STREAM: as it lies in the
 * file.  WITH_ALPHA: likewise; the file's second stream is the alpha of the first.
 * AS_FFMPEG_CHOOSES: ffmpeg turns it upright.  Newer versions of ffmpeg put tiles together, but not
 * where the caller chooses a stream.  Returns 0, or -1 with err. */
static int decode_picture(int fd, const Format *f, Streams streams, Image *rgba, Flaws *flaws,
                          Error *err) {
    /* ffmpeg does not recognise an SVG that begins without <?xml. */
    char *const svg[] = {"-f", "svg_pipe", NULL};
    char *const as_it_lies[] = {"-noautorotate", NULL};
    char *const *before = strcmp(f->name, "an SVG") ? as_it_lies : svg;
    static char *const choice[][2] = {
        [FIRST_STREAM] = {"-map", "0:v:0"},
        [WITH_ALPHA] = {"-filter_complex", "[0:v:0][0:v:1]alphamerge"},
        [AS_FFMPEG_CHOOSES] = {"-an", "-sn"},   /* neither sound nor subtitles: there are none */
    };
    if (streams == AS_FFMPEG_CHOOSES) before++;
    char *const args[] = {choice[streams][0], choice[streams][1], "-frames:v", "1", "-pix_fmt",
                          "rgba", "-f", "image2pipe", "-c:v", "pam", "-", NULL};
    Frames run = {0};
    free(rgba->rgb);
    *rgba = (Image){0};
    if (start(&run, fd, before, args, flaws, err)) return -1;
    if (read_pam(&run, 4, rgba, err) < 0) {
        frames_close(&run);
        return -1;
    }
    if (finish(&run, err) < 0) return -1;
    if (rgba->rgb) return 0;
    if (f->kind == PICTURE) return fail(err, "ffmpeg makes no picture of it");
    return fail(err, "this ffmpeg does not read it");
}

/* Decodes the picture p[0..n), n >= 12.  *orientation becomes how it lies, see picture_orientation.
 * Returns as decode_picture does. */
static int decode_bytes(const uint8_t *p, size_t n, const Format *f, Image *rgba, int *orientation,
                        Flaws *flaws, Error *err) {
    static const char alpha[] = "urn:mpeg:mpegB:cicp:systems:auxiliary:alpha";
    int has_alpha = memcmp(p + 4, "ftyp", 4) == 0 && memmem(p, n, alpha, sizeof alpha);
    Buf still = {0};
    still_webp(p, n, &still);
    int fd = still.len ? file_in_memory(still.data, still.len, err) : file_in_memory(p, n, err);
    buf_free(&still);
    if (fd < 0) return -1;
    int bad = decode_picture(fd, f, has_alpha ? WITH_ALPHA : FIRST_STREAM, rgba, flaws, err);
    *orientation = picture_orientation(p, n);
    if (!bad && picture_is_in_tiles(p, n, rgba->width, rgba->height)) {
        *flaws = (Flaws){0};
        *orientation = 1;
        bad = decode_picture(fd, f, AS_FFMPEG_CHOOSES, rgba, flaws, err);
        if (bad || (picture_is_in_tiles(p, n, rgba->width, rgba->height) &&
                    picture_is_in_tiles(p, n, rgba->height, rgba->width)))
            bad = fail(err, "it is made of tiles, which this ffmpeg does not put together");
    }
    close(fd);
    return bad;
}

/* Whether bytes of a WebP or a QOI are missing, about which ffmpeg says nothing.  A QOI ends with
 * seven bytes 0 and a byte 1. */
static int is_truncated(const uint8_t *p, size_t n) {
    return is_truncated_riff(p, n) ||
           (!memcmp(p, "qoif", 4) && memcmp(p + n - 8, "\0\0\0\0\0\0\0\1", 8));
}

int picture_by_ffmpeg(const void *bytes, size_t n, const Error *why, Image *out, Flaws *flaws,
                      Error *err) {
    const Format *f = n < 12 ? NULL : sniff(bytes, n);
    Image rgba = {0};
    Error failure;
    *out = (Image){0};
    if (!f) return fail(err, "%s", why->text);
    if (f->kind == FILM) return fail(err, "%s, not an image: --video takes it", f->name);
    if (f->kind != PICTURE && f->kind != FFMPEG_PICTURE && f->kind != OTHER_PICTURE)
        return fail(err, "%s, not an image", f->name);
    int is_cut = is_truncated(bytes, n), orientation = 1, bad;
    flaws->is_damaged |= is_cut;
    if (f->kind == OTHER_PICTURE) bad = fail(&failure, "ffmpeg does not read it rightly");
    else bad = decode_bytes(bytes, n, f, &rgba, &orientation, flaws, &failure);
    if (!bad && image_from_pixels(rgba.rgb, rgba.width, rgba.height, 4, orientation, out))
        bad = fail(&failure, "no memory for %d x %d pixels", rgba.width, rgba.height);
    free(rgba.rgb);
    if (!bad) return 0;
    const char *what = f->kind == PICTURE ? why->text : f->name;
    const char *place = strstr(f->converter, "%s");
    return fail(err, "%s: %s%s; %.*sFILE%s makes a PNG of it", what, failure.text,
                is_cut ? " (it is truncated)" : "", (int)(place - f->converter), f->converter,
                place + 2);
}
