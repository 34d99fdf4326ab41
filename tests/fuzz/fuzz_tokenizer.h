/* fuzz_tokenizer.h - libFuzzer on a tokenizer's file, FILE_NAME: opening it, and, where it opens, text to ids and back. */
#include "files.h"

#include "../../tokenizer.h"

int LLVMFuzzerInitialize(int *argc, char ***argv) {
    (void)argc, (void)argv;
    make_dir();
    return 0;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    static const char text[] = "Hello there: 12 + 7 = 19, <|turn>user<turn|> the then they fa\xc3\xa7"
                               "ade  \xe2\x80\xa6\n\n\xe6\x97\xa5 \xff\xfe";
    Error err = {""};
    put_file(FILE_NAME, data, size, "", 0);
    Tokenizer *t = tokenizer_open(dir, &err);
    if (!t) {
        if (!*err.text || strchr(err.text, '\n')) abort();
        return 0;
    }
    for (int controls = 0; controls <= 1; controls++) {
        Ids ids = {0};
        tokenizer_encode(t, text, sizeof text - 1, controls, &ids);
        for (int i = 0; i < ids.n; i++) {
            size_t n;
            if (ids.id[i] < 0 || ids.id[i] >= tokenizer_n_vocab(t)) abort();
            const char *s = tokenizer_text(t, ids.id[i], &n);
            for (size_t k = 0; k < n; k++) (void)*(volatile const char *)(s + k);
        }
        ids_free(&ids);
    }
    tokenizer_control(t, "<|turn>");
    tokenizer_free(t);
    return 0;
}
