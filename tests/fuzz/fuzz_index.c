/* fuzz_index.c - libFuzzer on model.safetensors.index.json, beside two files that it may name. */
#include "files.h"

#include "../../safetensors.h"

static void put_shard(const char *file, const char *tensor) {
    Buf b = {0};
    buf_add(&b, "\0\0\0\0\0\0\0", 8);
    buf_printf(&b, "{\"%s\":{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":[0,4]}}", tensor);
    b.data[0] = b.len - 8;
    put_file(file, b.data, b.len, "data", 4);
    buf_free(&b);
}

int LLVMFuzzerInitialize(int *argc, char ***argv) {
    (void)argc, (void)argv;
    make_dir();
    put_shard("a.safetensors", "one");
    put_shard("b.safetensors", "two");
    return 0;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    Error err = {""};
    put_file("model.safetensors.index.json", data, size, "", 0);
    SafeTensors *st = safetensors_open(dir, &err);
    if (!st && (!*err.text || strchr(err.text, '\n'))) abort();
    safetensors_close(st);
    return 0;
}
