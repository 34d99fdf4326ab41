/* ffmpeg.h - videos, and pictures that stb_image cannot read, through the program ffmpeg.  Nothing
 * here links with its libraries: the program runs as a child that may only open files. */
#ifndef FFMPEG_H
#define FFMPEG_H

#include "image.h"

/* What ffmpeg finds in a file with a video. */
typedef struct {
    int stream;                         /* which of its streams is the film: ffmpeg's 0:V:stream */
    int frames;                         /* frames of that stream */
    double duration;                    /* seconds from the first frame to the end of the last */
} VideoInfo;

/* Lists the streams of the open file fd, without decoding, and chooses the film: a stream of more
 * than one frame before one of a single frame, which may be a cover, then the largest, then the
 * first.  Pictures that the file declares as covers do not count.
 * 0, or -1 with err: no video in it, or no ffmpeg. */
int video_scan(int fd, VideoInfo *out, Error *err);

/* A run of ffmpeg that decodes frames.  An all-zero Frames is none. */
typedef struct {
    int pid, runs;
    void *out;                          /* its stdout: a FILE */
} Frames;

/* Begins to decode the frames number index[0..n), in rising order, of the film in fd.
 * frames_close ends it, also after an error.  0, or -1 with err. */
int frames_open(Frames *f, int fd, const VideoInfo *v, const int *index, int n, Error *err);

/* The next frame, 8 bits of RGB without alpha, turned as a player shows it.  1: *frame is it;
 * 0: there is none; -1 with err.  The caller frees frame->rgb in each case. */
int frames_next(Frames *f, Image *frame, Error *err);

/* Ends ffmpeg, also when it still runs. */
void frames_close(Frames *f);

/* Decodes the first picture in bytes[0..n), which stb_image could not read: upright, laid over
 * white.  why: what stb_image said.  The caller frees out->rgb, also after an error.  0, or -1 with
 * err, which names the format and what helps. */
int picture_by_ffmpeg(const void *bytes, size_t n, const Error *why, Image *out, Error *err);

/* An open file in memory with bytes[0..n), or -1 with err.  The caller closes it. */
int file_in_memory(const void *bytes, size_t n, Error *err);

#endif
