/* fuzz_lora.c - libFuzzer on a LoRA adapter beside a fixture: adapter_config.json and, behind a NUL byte, adapter_model.safetensors. */
#include "files.h"

#include "../../model.h"

#define FIXTURE "tests/fixtures/odd-experts"

int LLVMFuzzerInitialize(int *argc, char ***argv) {
    (void)argc, (void)argv;
    make_dir();
    return 0;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    const uint8_t *nul = memchr(data, 0, size), *end = data + size, *to = nul ? nul : end, *tensors = nul ? nul + 1 : end;
    Error err = {""};
    Model *m = model_open(FIXTURE, NULL);
    if (!m) abort();
    put_file("adapter_config.json", data, to - data, "", 0);
    put_file("adapter_model.safetensors", tensors, end - tensors, "", 0);
    int bad = model_adapt(m, "it", dir, 1, &err);
    if (bad ? !*err.text || strchr(err.text, '\n') != NULL : model_adapter(m, 0)->n < 1) abort();
    model_close(m);
    return 0;
}
