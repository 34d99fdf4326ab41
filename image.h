/* image.h - file bytes to pixels, pixels to the patches that the vision tower takes.  Sizes, resize and order of patches are
 * those of transformers' image_processing_gemma4.py. */
#ifndef IMAGE_H
#define IMAGE_H

#include "model.h"

/* Eight bits a channel, [height][width][3]: red, green, blue; upright.  The owner frees rgb. */
typedef struct {
    int width, height;
    uint8_t *rgb;
} Image;

/* Decodes bytes[0..n): JPEG, PNG, GIF (its first frame), BMP, PPM or PGM, TGA.  EXIF orientation (of a JPEG or PNG) is undone,
 * what is transparent shows white, of 16 bits the high byte counts.  Returns 0, or -1 with err: not an image, damaged,
 * truncated, or too large for this machine. */
int image_decode(const void *bytes, size_t n, Image *out, Error *err);

int image_is_gif(const void *bytes, size_t n);

/* The frames of an animated GIF: how many, and how long they last together. */
int gif_scan(const void *bytes, size_t n, int *n_frames, double *duration, Error *err);

/* Its frames index[0..n_index), in rising order, into out[0..n_index), which the caller frees, also after an error. */
int gif_frames(const void *bytes, size_t n, const int *index, int n_index, Image *out, Error *err);

/* Resizes in to out (whose width and height are given, and whose rgb has room), bit for bit as torchvision does it on 8-bit
 * data: bicubic, with antialiasing.  Returns 0, or -1 when there is no memory. */
int image_resize(const Image *in, const Image *out);

/* The picture that the tower gets: in its proportions as large as max_soft soft tokens allow, sides multiples of
 * PATCH * POOL.  Fills in all but hash and soft.  Returns 0, or -1 when there is no memory. */
int image_to_picture(const Image *in, int max_soft, Picture *out);

#endif
