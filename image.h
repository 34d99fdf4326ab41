/* image.h - decodes images and cuts them into the patches that the vision tower takes.  Sizes,
 * resizing and the order of patches are those of transformers' image_processing_gemma4.py. */
#ifndef IMAGE_H
#define IMAGE_H

#include "model.h"

/* rgb [height][width][3]: 8 bits for each of red, green and blue; upright.  The owner frees rgb. */
typedef struct {
    int width, height;
    uint8_t *rgb;
} Image;

/* Decodes bytes[0..n): JPEG, PNG, GIF (its first frame), BMP, PPM, PGM or TGA.  Turns the image
 * upright (picture_orientation); puts it on white where it is transparent; takes the high byte of
 * 16 bits.  The caller frees out->rgb, also after an error.  Returns 0; or with err -1: too large
 * for this machine; or NOT_DECODED: not an image or damaged, as stb_image sees it, while another
 * decoder may read it; or TRUNCATED, where another decoder may read what there is. */
enum { NOT_DECODED = 1, TRUNCATED };
int image_decode(const void *bytes, size_t n, Image *out, Error *err);

/* Makes *out of pixels in[h][w][channels]: upright, RGB over white.  Channels: 1 grey; 2 grey,
 * alpha; 3 RGB; 4 RGB, alpha.  orientation: as EXIF numbers it.  The caller frees out->rgb.
 * Returns 0, or -1 when there is no memory. */
int image_from_pixels(const uint8_t *in, int w, int h, int channels, int orientation, Image *out);

int image_is_gif(const void *bytes, size_t n);

/* Counts the frames of an animated GIF, and their duration in seconds.  Returns as image_decode. */
int gif_scan(const void *bytes, size_t n, int *n_frames, double *duration, Error *err);

/* Decodes the frames number index[0..n_index), in rising order, into out[0..n_index), all zero
 * before.  The caller frees out[].rgb, also after an error.  Returns as image_decode. */
int gif_frames(const void *bytes, size_t n, const int *index, int n_index, Image *out, Error *err);

/* Makes the Picture for the tower: resized to as many pixels as max_soft soft tokens have, in the
 * image's proportions, with sides that are multiples of PATCH * POOL.  Sets all fields but hash and
 * soft; the caller frees pixels.  Returns 0, or -1 when there is no memory. */
int image_to_picture(const Image *in, int max_soft, Picture *out);

#endif
