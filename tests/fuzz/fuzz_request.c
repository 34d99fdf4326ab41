/* fuzz_request.c - libFuzzer on a line of JSON: from its bytes to a prompt.  `make fuzz-run`. */
#include <stdlib.h>
#include <unistd.h>

#include "../../request.h"

static Engine engine;
static MediaStore media = {.image_tokens = 70, .video_frames = 2, .placeholders = 1};

int LLVMFuzzerInitialize(int *argc, char ***argv) {
    Error err;
    (void)argc, (void)argv;
    engine = (Engine){.max_tokens = -1, .think_tokens = -1, .media = &media};
    if (!(engine.tokenizer = tokenizer_open("tests/fixtures/odd-bf16", &err)) || chdir("tests/fixtures/images")) abort();
    return setenv("PATH", "", 1);       /* no ffmpeg: a process for each input would be slow */
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    Error err;
    Request r;
    if (!request_parse(&engine, (const char *)data, size, &r, &err))
        for (int i = 0; i < r.prompt.n_spans; i++)
            if (r.prompt.span[i].pos + r.prompt.span[i].picture->n > r.prompt.ids.n) abort();
    request_free(&r);
    media_free(&media);
    return 0;
}
