/* fuzz_session.c - libFuzzer on saved conversations.  The input changes a good pair of files: 2 bytes that say how long the cache
 * is, then 8 bytes for each change, where and what; an odd place is one of the conversation, an even one of the cache, mostly of
 * its beginning.  What is loaded is gone on with.  `make fuzz-run`. */
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "../../json.h"
#include "../../transcript.h"

#define PICTURE "{\"type\":\"image_url\",\"image_url\":{\"url\":\"tests/fixtures/images/rgb.png\"}}"

static MediaStore media = {.image_tokens = 70, .video_frames = 2};
static Engine engine = {.max_tokens = 3, .think_tokens = -1, .media = &media};
static char dir[] = "/tmp/fuzz_session.XXXXXX", path[64], cache_path[64];
static Buf text, cache;

/* Renders and evaluates. */
static void go_on(const cJSON *messages) {
    Prompt p = {0};
    Error err;
    int reused;
    if (!media_load(&media, messages, &p, &err) && !chat_render(engine.tokenizer, messages, NULL, (ChatOptions){0}, &p, &err)) {
        session_pictures(engine.session, p.span, p.n_spans);
        if (!session_sync(engine.session, p.ids.id, p.ids.n, p.n_stable, &reused, &err)) session_logits(engine.session);
        session_pictures(engine.session, NULL, 0);
    }
    prompt_free(&p);
}

int LLVMFuzzerInitialize(int *argc, char ***argv) {
    static const char first[] = "[{\"role\":\"user\",\"content\":[" PICTURE ",{\"type\":\"text\",\"text\":\"What is this?\"}]}]";
    static const char model[] = "tests/fixtures/images/seeing";
    Error err;
    (void)argc, (void)argv;
    engine.model = model_open(model, &err);
    engine.tokenizer = tokenizer_open(model, &err);
    SessionOptions o = {.ops = &cpu_ops, .context = 300, .chunk = 16, .picture = 70, .n_threads = 1};
    cJSON *messages = json_value(first, strlen(first), &err);
    if (!engine.model || !engine.tokenizer || !(engine.session = session_new(engine.model, &o, &err)) || !mkdtemp(dir)) abort();
    snprintf(path, sizeof path, "%s/a", dir);
    snprintf(cache_path, sizeof cache_path, "%s.kv", path);
    go_on(messages);
    if (transcript_save(&engine, messages, path, &err)) abort();
    if (read_file(path, &text, &err) || read_file(cache_path, &cache, &err)) abort();
    cJSON_Delete(messages);
    stderr = fopen("/dev/null", "w");   /* what is said of a bad cache */
    return 0;
}

static void write_file(const char *name, const char *bytes, size_t n) {
    FILE *f = fopen(name, "w");
    if (!f || fwrite(bytes, 1, n, f) != n || fclose(f)) abort();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    Buf parts[2] = {{0}, {0}};
    Error err;
    if (size < 2) return 0;
    buf_add(&parts[0], cache.data, cache.len);
    buf_add(&parts[1], text.data, text.len);
    size_t n = data[0] & 1 ? cache.len : (data[0] << 8 | data[1]) % (cache.len + 20);
    if (n > cache.len) buf_add(&parts[0], cache.data, n - cache.len);
    parts[0].len = n;
    for (data += 2, size -= 2; size >= 8; data += 8, size -= 8) {
        uint32_t where;
        memcpy(&where, data, 4);
        Buf *part = &parts[where & 1];
        size_t at = (where >> 1) % (where & 1 ? part->len : where & 2 ? 400 : part->len + 1);
        for (int i = 0; i < (where & 1 ? 1 : 4); i++)
            if (at + i < part->len) part->data[at + i] ^= data[4 + i];
    }
    write_file(cache_path, parts[0].data, parts[0].len);
    write_file(path, parts[1].data, parts[1].len);
    cJSON *messages = transcript_load(&engine, path, &err);
    if (messages) {
        int held;
        ModelInfo info;
        const int *ids = session_ids(engine.session, &held);
        model_info(engine.model, &info);
        for (int i = 0; i < held; i++)
            if (ids[i] < 0 || ids[i] >= info.config->vocab) abort();
        if (held) go_on(messages);
    }
    cJSON_Delete(messages);
    buf_free(&parts[0]);
    buf_free(&parts[1]);
    return 0;
}
