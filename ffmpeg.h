/* ffmpeg.h - videos, and pictures that stb_image cannot read, through the program ffmpeg.  ffmpeg
 * runs as a child that may only open files; its libraries are not linked. */
#ifndef FFMPEG_H
#define FFMPEG_H

#include <stdio.h>

#include "image.h"

/* What a decoder has noticed in a file that it decodes all the same. */
typedef struct {
    int is_damaged;                     /* 1: a part of the picture or the film may be missing */
    int is_hdr;                         /* 1: brightness is coded for an HDR screen (PQ or HLG) */
} Flaws;

/* What ffmpeg finds in a file with a video. */
typedef struct {
    int stream;                         /* the film is ffmpeg's stream 0:V:stream */
    int frames;                         /* frames of that stream */
    double duration;                    /* seconds from the first frame to the end of the last */
} VideoInfo;

/* Lists the video streams of the open file fd, without decoding, and chooses the film.  A stream of
 * several frames is preferred to one of a single frame, which may be a cover; then the larger
 * picture, then the stream that comes first.  Pictures that the file declares as covers do not
 * count.  Adds to *flaws.  Returns 0, or -1 with err: there is no video in it, or no ffmpeg. */
int video_scan(int fd, VideoInfo *out, Flaws *flaws, Error *err);

/* A run of ffmpeg.  All zero: ffmpeg does not run. */
typedef struct {
    int pid, runs;                      /* runs: 1 until its end was waited for */
    FILE *out;                          /* ffmpeg's stdout */
    int says;                           /* ffmpeg's stderr */
    Flaws *flaws;                       /* what ffmpeg says of the file goes here */
} Frames;

/* Begins to decode n frames of the film in fd: those whose numbers are in index [n], rising.  The
 * caller ends it with frames_close, also after an error; flaws are added to until then.  Returns 0,
 * or -1 with err. */
int frames_open(Frames *f, int fd, const VideoInfo *v, const int *index, int n, Flaws *flaws,
                Error *err);

/* Reads the next frame: RGB of 8 bits each without alpha, turned as a player shows it.  Returns 1
 * with the frame in *frame, 0 where there is no further frame, or -1 with err.  The caller frees
 * frame->rgb in each case. */
int frames_next(Frames *f, Image *frame, Error *err);

/* Ends ffmpeg, also when it still runs. */
void frames_close(Frames *f);

/* Decodes the first picture in bytes[0..n), which stb_image could not read, to out->rgb: turned
 * upright and laid over white.  Of a damaged file ffmpeg decodes what it can; flaws->is_damaged
 * says so.  why: what stb_image said.  The caller frees out->rgb, also after an error.  Returns 0,
 * or -1 with err, which names the format and a program that converts it. */
int picture_by_ffmpeg(const void *bytes, size_t n, const Error *why, Image *out, Flaws *flaws,
                      Error *err);

/* Returns an open file in memory that holds bytes[0..n), which the caller closes; or -1 with
 * err. */
int file_in_memory(const void *bytes, size_t n, Error *err);

#endif
