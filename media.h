/* media.h - pictures and videos in messages: from what a request names to the Pictures of a prompt, and a memory of them. */
#ifndef MEDIA_H
#define MEDIA_H

#include <cjson/cJSON.h>

#include "chat.h"

/* One image, or the frames of one video. */
typedef struct Media {
    uint64_t key;                       /* of the file's content and of how it was taken apart */
    int is_video;
    int n;                              /* pictures: 1, or the video's sampled frames */
    Picture *picture;                   /* [n], with their pixels or, once a session wanted them, soft tokens */
    double *seconds;                    /* [n] a video's timestamps; NULL */
    unsigned long used;                 /* when it was last wanted */
} Media;

/* What was loaded stays until it has not been used for long, so that a conversation decodes and encodes nothing twice. */
typedef struct {
    int image_tokens;                   /* soft tokens of an image at most: 70, 140, 280, 560 or 1120 */
    int video_frames;                   /* frames of a video at most; each has VIDEO_TOKENS soft tokens at most */
    int placeholders;                   /* 1: a part that names no file stays a placeholder, else it is an error */
    Media **item;
    int n;
    unsigned long now;
} MediaStore;

#define VIDEO_TOKENS 70

/* Loads what the messages' parts {"type": "image_url" | "video_url", "image_url": {"url": …}} name, or bring as {"type": "image",
 * "data": base64, "mimeType"}, for chat_render: fills in p->media.  A URL is file://…, a path, or data:…;base64,….  Returns 0, or -1 with err, which names the file and
 * what is wrong with it.  What it gave stays valid until the next call. */
int media_load(MediaStore *s, const cJSON *messages, Prompt *p, Error *err);

/* Loads one file, as a check: the same error as later. */
int media_check(MediaStore *s, const char *url, int is_video, Error *err);

/* {"type": "image_url", "image_url": {"url": path}}, or the same for a video; the caller frees it. */
cJSON *media_part(const char *path, int is_video);

/* A message's content: the text alone, or copies of parts (a list, or NULL) and after them the text. */
void media_content(cJSON *message, const cJSON *parts, const char *text);

/* How the name of a file ends: 1 an image's, 2 a video's, 0 neither's. */
int media_kind(const char *path);

void media_free(MediaStore *s);

#endif
