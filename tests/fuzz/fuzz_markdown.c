/* fuzz_markdown.c - libFuzzer on an answer in Markdown: however it is cut into pieces, the same comes out. */
#include "../../markdown.h"

#include <stdlib.h>
#include <string.h>

/* What comes out of text[0..n) in pieces: the first byte decides their lengths; 0: one piece. */
static void shown(const char *text, size_t n, unsigned pieces, Buf *out) {
    Markdown m = {.columns = 40};
    for (size_t i = 0; i < n;) {
        size_t part = pieces ? 1 + pieces % 7 : n;
        if (part > n - i) part = n - i;
        markdown_feed(&m, text + i, part, out);
        i += part;
        pieces = pieces * 5 / 4;
    }
    markdown_end(&m, out);
    markdown_free(&m);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n) {
    Buf whole = {0}, parts = {0}, bytes = {0};
    if (!n || n > 20000) return 0;
    char *text = malloc(n);             /* so that a read beyond the end is seen */
    memcpy(text, data + 1, n - 1);
    shown(text, n - 1, 0, &whole);
    shown(text, n - 1, data[0] + 1u, &parts);
    shown(text, n - 1, 7, &bytes);
    if (whole.len != parts.len || (whole.len && memcmp(whole.data, parts.data, whole.len))) abort();
    if (whole.len != bytes.len || (whole.len && memcmp(whole.data, bytes.data, whole.len))) abort();
    buf_free(&whole);
    buf_free(&parts);
    buf_free(&bytes);
    free(text);
    return 0;
}
