/* fuzz_config.c - libFuzzer on config.json, generation_config.json and hf_quant_config.json (the input, parted by NUL bytes), beside
 * the weights of a fixture: also the tensors are looked for as these files say. */
#include "files.h"

#include "../../cpu.h"
#include "../../session.h"

#define FIXTURE "tests/fixtures/odd-experts/"

int LLVMFuzzerInitialize(int *argc, char ***argv) {
    (void)argc, (void)argv;
    make_dir();
    Buf weights = fixture(FIXTURE "model.safetensors");
    put_file("model.safetensors", weights.data, weights.len, "", 0);
    buf_free(&weights);
    return 0;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    static const char *const name[] = {"config.json", "generation_config.json", "hf_quant_config.json"};
    const uint8_t *end = data + size;
    Error err = {""};
    for (int i = 0; i < 3; i++) {
        const uint8_t *nul = i < 2 ? memchr(data, 0, end - data) : NULL, *to = nul ? nul : end;
        put_file(name[i], data, to - data, "", 0);
        data = nul ? nul + 1 : end;
    }
    Model *m = model_open(dir, &err), *drafter;
    if (m) {
        ModelInfo info;
        model_info(m, &info);
        int64_t per_token;
        kv_bytes(m, &(SessionOptions){.ops = &cpu_ops, .context = info.config->max_context}, &per_token);
        if ((drafter = model_open_drafter("tests/fixtures/odd-assistant", m, &err))) model_close(drafter);
        model_close(m);
    } else if (!*err.text || strchr(err.text, '\n')) abort();
    model_image_tokens(dir, &err);
    return 0;
}
