/* media.h - loads the images and videos that messages name, as Pictures for a prompt, and keeps
 * them for later prompts. */
#ifndef MEDIA_H
#define MEDIA_H

#include <cjson/cJSON.h>

#include "chat.h"
#include "ffmpeg.h"

/* One image, or the frames of one video. */
typedef struct Media {
    uint64_t key;                       /* hash of the file's bytes, its kind and its limit */
    int is_video;
    int n;                              /* number of pictures: 1, or the chosen frames of a video */
    Picture *picture;                   /* [n], owned, with pixels or, once a session has encoded
                                         * them, soft tokens */
    double *seconds;                    /* [n] the frames' timestamps */
    Flaws flaws;                        /* of the file */
    unsigned long used;                 /* MediaStore.now when it was last used */
} Media;

/* All images and videos that were loaded.  A conversation repeats its messages with every request:
 * what is kept here is not decoded and encoded again.  The oldest are freed, see media_load. */
typedef struct {
    int image_tokens;                   /* most soft tokens of an image, see image_token_words */
    int video_frames;                   /* most frames of a video, of VIDEO_TOKENS at most each */
    int most_patches;                   /* most a side of a picture, 0: not known yet */
    int placeholders;                   /* a part without a file: 1: one placeholder; 0: an error */
    Media **item;                       /* [n], owned */
    int n;
    unsigned long now;                  /* counts uses */
} MediaStore;

#define VIDEO_TOKENS 70                 /* soft tokens of a frame, as in transformers'
                                         * video_processing_gemma4.py */

/* Loads the images and videos of all messages and adds them to p->media, for chat_render.  A part
 * names its file, {"type": "image_url" | "video_url", "image_url": {"url": …}}, where the URL is
 * file://…, a path, or data:…;base64,…; or contains it, {"type": "image", "data": base64,
 * "mimeType": …} (MCP); or has a "source" that does so (Anthropic).  Adds to p->warnings a line for
 * each flaw of a file that came behind the last message of the assistant's.  Returns 0, or -1 with
 * err, which names the file.  The media belong to the store and stay valid until the next call of
 * media_load, which may free old ones. */
int media_load(MediaStore *s, const cJSON *messages, Prompt *p, Error *err);

/* Loads one file in advance, so that an error is reported at once: 0, or -1 with err. */
int media_check(MediaStore *s, const char *url, int is_video, Error *err);

/* A new part {"type": "image_url", "image_url": {"url": path}}, or for a video; the caller owns
 * it. */
cJSON *media_part(const char *path, int is_video);

/* Returns the path or URL in such a part, which belongs to the part; *is_video becomes 1 for a
 * video, 0 for an image. */
const char *media_path(const cJSON *part, int *is_video);

/* Replaces the path "-" in such parts, which means stdin, by a data: URL of what stdin has.
 * Returns 1 where it did, 0 where no part names stdin, or -1 with err. */
int media_stdin(const cJSON *parts, Error *err);

/* Makes the paths of such parts absolute, where the files are there, so that a saved conversation
 * finds them from any directory. */
void media_absolute(cJSON *parts);

/* Adds text[0..n) of a URL to out, each %xx as the byte that it means. */
void url_decode(const char *text, size_t n, Buf *out);

/* Sets the content of a message: text; or, if there are parts (a list, or NULL), a list of copies
 * of them and the text. */
void media_content(cJSON *message, const cJSON *parts, const char *text);

/* What the ending of a file's name says: 1 an image, 2 a video, 0 neither. */
int media_kind(const char *path);

void media_free(MediaStore *s);

#endif
