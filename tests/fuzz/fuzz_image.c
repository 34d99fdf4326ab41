/* fuzz_image.c - libFuzzer on the way from a file's bytes to patches.  `make fuzz-run`. */
#include <stdlib.h>

#include "../../image.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    Error err;
    Image image = {0};
    Picture p;
    if (!image_decode(data, size, &image, &err) && !image_to_picture(&image, 4, &p)) free(p.pixels);
    free(image.rgb);
    int n;
    double duration;
    if (gif_scan(data, size, &n, &duration, &err)) return 0;
    Image frame[3] = {0};
    gif_frames(data, size, (int[]){0, n / 2, n - 1}, 3, frame, &err);
    for (int i = 0; i < 3; i++) free(frame[i].rgb);
    return 0;
}
