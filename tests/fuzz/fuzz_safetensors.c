/* fuzz_safetensors.c - libFuzzer on the header of model.safetensors: the input is a file's first 8 bytes and its header, to which
 * a fixture's data are added; then the model is opened, whose config.json is as it should be.  The mutator knows what a header
 * is made of: it exchanges numbers, strings and entries, and mostly sets the length right. */
#include "files.h"

#include "../../model.h"

#define FIXTURE "tests/fixtures/images/seeing/"

size_t LLVMFuzzerMutate(uint8_t *data, size_t size, size_t max_size);

static Buf weights;
static size_t data_at;

int LLVMFuzzerInitialize(int *argc, char ***argv) {
    (void)argc, (void)argv;
    make_dir();
    Buf config = fixture(FIXTURE "config.json");
    put_file("config.json", config.data, config.len, "", 0);
    buf_free(&config);
    weights = fixture(FIXTURE "model.safetensors");
    uint64_t n;
    memcpy(&n, weights.data, 8);
    data_at = 8 + n;
    return 0;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    Error err = {""};
    put_file("model.safetensors", data, size, weights.data + data_at, weights.len - data_at);
    Model *m = model_open(dir, &err);
    if (m) {
        ModelInfo info;
        model_info(m, &info);
        model_check(m, &err);
        model_close(m);
    } else if (!*err.text || strchr(err.text, '\n')) abort();
    return 0;
}

/* ---- the mutator ---- */

typedef struct {
    size_t at, n;
} Part;

static uint64_t chance;

static uint64_t below(uint64_t n) {
    chance ^= chance << 13, chance ^= chance >> 7, chance ^= chance << 17;
    return n ? chance % n : 0;
}

/* One of the header's numbers, strings (without quotes) or entries; n = 0: there is none. */
static Part pick(const char *s, size_t n, char kind) {
    Part part = {0, 0};
    size_t seen = 0;
    for (size_t i = 0, end; i < n; i = end) {
        end = i + 1;
        if (kind == '0' && s[i] >= '0' && s[i] <= '9') {
            while (end < n && s[end] >= '0' && s[end] <= '9') end++;
        } else if (kind == '"' && s[i] == '"') {
            while (end < n && s[end] != '"') end++;
            i++;
        } else if (kind == '{' && s[i] == '"' && i && (s[i - 1] == ',' || s[i - 1] == '{')) {
            while (end < n && s[end] != '}') end++;
            end = end < n ? end + 1 : n;
        } else continue;
        if (below(++seen) == 0) part = (Part){i, end - i};
        if (kind == '"') end++;
    }
    return part;
}

/* s[at .. at + n) becomes with[0 .. n_with).  Returns the new length. */
static size_t replace(char *s, size_t len, size_t max, Part old, const char *with, size_t n_with) {
    if (len - old.n + n_with > max) return len;
    memmove(s + old.at + n_with, s + old.at + old.n, len - old.at - old.n);
    memcpy(s + old.at, with, n_with);
    return len - old.n + n_with;
}

static size_t mutate(char *s, size_t n, size_t max) {
    static const char *const numbers[] = {"0", "1", "2", "4", "4294967295", "4294967296", "9223372036854775807", "9223372036854775808",
                                          "18446744073709551615", "18446744073709551616", "-1", "1e3", "0.5"};
    static const char *const words[] = {"F32", "BF16", "F16", "F8_E4M3", "U8", "I64", "__metadata__", "dtype", "shape", "data_offsets"};
    char text[4096];
    Part from, to;
    switch (below(8)) {
    case 0:
        to = pick(s, n, '0');
        const char *number = numbers[below(sizeof numbers / sizeof *numbers)];
        return to.n ? replace(s, n, max, to, number, strlen(number)) : n;
    case 1:                             /* another number of the header, or one near it */
        from = pick(s, n, '0'), to = pick(s, n, '0');
        if (!to.n || from.n > 20) return n;
        snprintf(text, sizeof text, "%.*s", (int)from.n, s + from.at);
        snprintf(text, sizeof text, "%lld", (long long)((unsigned long long)strtoll(text, NULL, 10) + below(5) - 2));
        return replace(s, n, max, to, text, strlen(text));
    case 2:
        to = pick(s, n, '"');
        const char *word = words[below(sizeof words / sizeof *words)];
        return to.n ? replace(s, n, max, to, word, strlen(word)) : n;
    case 3: case 4:                     /* an entry or a string in another one's place */
        from = pick(s, n, below(2) ? '{' : '"'), to = pick(s, n, s[from.at] == '"' ? '{' : '"');
        if (from.n > sizeof text || !from.n || !to.n) return n;
        memcpy(text, s + from.at, from.n);
        return replace(s, n, max, to, text, from.n);
    case 5:                             /* an entry less, or once more */
        from = pick(s, n, '{');
        if (from.n >= sizeof text || !from.n) return n;
        memcpy(text, s + from.at, from.n);
        text[from.n] = ',';
        return below(2) ? replace(s, n, max, from, "", 0) : replace(s, n, max, (Part){from.at, 0}, text, from.n + 1);
    default: return LLVMFuzzerMutate((uint8_t *)s, n, max);
    }
}

size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t max_size, unsigned seed) {
    static const uint64_t lengths[] = {0, 1, 7, 1 << 20, 100000000, 100000001, 1ull << 32, 1ull << 63, UINT64_MAX - 8, UINT64_MAX};
    chance = seed + 0x9e3779b97f4a7c15u;
    if (max_size < 10) return size;
    if (size < 8) memset(data + size, 0, 8 - size), size = 8;
    uint64_t n = size - 8;
    for (int i = 1 + below(3); i > 0; i--) n = mutate((char *)data + 8, n, max_size - 8);
    size = 8 + n;
    if (!below(16)) n = lengths[below(sizeof lengths / sizeof *lengths)];
    if (!below(16)) n += below(40) - 20;
    memcpy(data, &n, 8);
    return size;
}
