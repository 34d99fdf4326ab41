/* transcript.c - a conversation on disk.  See transcript.h. */
#define _GNU_SOURCE
#include "transcript.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "json.h"

/* ---- files that replace others ---- */

typedef struct {
    Buf path, beside;
    FILE *f;
} NewFile;

static int failed(const NewFile *n, Error *err) { return fail(err, "%s: %s", n->path.data, strerror(errno)); }

static int new_open(NewFile *n, const char *path, const char *tail, Error *err) {
    buf_printf(&n->path, "%s%s", path, tail);
    buf_printf(&n->beside, "%s.%ld.tmp", n->path.data, (long)getpid());
    int fd = open(n->beside.data, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    if (fd < 0 || !(n->f = fdopen(fd, "w"))) return failed(n, err);
    return 0;
}

/* All of it is on the disk. */
static int new_sync(NewFile *n, Error *err) {
    int bad = fflush(n->f) || fsync(fileno(n->f)), why = errno;
    if (fclose(n->f) && !bad) bad = 1, why = errno;
    n->f = NULL;
    errno = why;
    return bad ? failed(n, err) : 0;
}

static int new_rename(NewFile *n, Error *err) {
    if (rename(n->beside.data, n->path.data)) return failed(n, err);
    n->beside.len = 0;
    return 0;
}

static void new_free(NewFile *n) {
    if (n->f) (void)fclose(n->f);
    if (n->beside.len) unlink(n->beside.data);
    buf_free(&n->path);
    buf_free(&n->beside);
}

/* The new names are on the disk, too. */
static int sync_directory(const char *path, Error *err) {
    const char *slash = strrchr(path, '/');
    Buf dir = {0};
    buf_add(&dir, slash ? path : ".", slash ? (size_t)(slash - path) + 1 : 1);
    int fd = open(dir.data, O_RDONLY | O_DIRECTORY | O_CLOEXEC), bad = fd < 0 || fsync(fd);
    if (bad) fail(err, "%s: %s", dir.data, strerror(errno));
    if (fd >= 0) close(fd);
    buf_free(&dir);
    return bad ? -1 : 0;
}

/* ---- saving ---- */

/* The conversation as a request, a line; the caller frees it. */
static char *request_of(const Engine *e, const cJSON *messages) {
    cJSON *o = cJSON_CreateObject(), *kwargs = cJSON_AddObjectToObject(o, "chat_template_kwargs");
    cJSON_AddBoolToObject(kwargs, "enable_thinking", e->thinking);
    if (e->tools) cJSON_AddItemToObject(o, "tools", cJSON_Duplicate(e->tools, 1));
    cJSON_AddItemToObject(o, "messages", cJSON_Duplicate(messages, 1));
    char *text = json_text(o);
    cJSON_Delete(o);
    return text;
}

/* What of the cache belongs to this conversation; nothing when that cannot be told, as a picture's file is gone. */
static int save_cache(const Engine *e, const cJSON *messages, uint64_t of, FILE *f) {
    Prompt prompt = {0};
    int known = !media_load(e->media, messages, &prompt, NULL) &&
                !chat_render(e->tokenizer, messages, e->tools, (ChatOptions){.thinking = e->thinking}, &prompt, NULL);
    session_pictures(e->session, prompt.span, prompt.n_spans);
    int bad = session_save(e->session, prompt.ids.id, known ? prompt.ids.n : 0, of, f);
    session_pictures(e->session, NULL, 0);
    prompt_free(&prompt);
    return bad;
}

int transcript_save(const Engine *e, const cJSON *messages, const char *path, Error *err) {
    NewFile text = {0}, cache = {0};
    char *request = request_of(e, messages);
    int bad = new_open(&text, path, "", err) || new_open(&cache, path, ".kv", err);
    if (!bad && fprintf(text.f, "%s\n", request) < 0) bad = failed(&text, err);
    if (!bad && save_cache(e, messages, hash_bytes(request, strlen(request), 0), cache.f)) bad = failed(&cache, err);
    bad = bad || new_sync(&text, err) || new_sync(&cache, err) || new_rename(&text, err) || new_rename(&cache, err) ||
          sync_directory(path, err);
    new_free(&text);
    new_free(&cache);
    free(request);
    return bad ? -1 : 0;
}

/* ---- loading ---- */

/* A file that is not there is no reason for words: the conversation was written by hand, or by another program. */
static void load_cache(const Engine *e, const char *path, uint64_t of) {
    Buf name = {0};
    Error why;
    buf_printf(&name, "%s.kv", path);
    int fd = open(name.data, O_RDONLY | O_CLOEXEC | O_NONBLOCK);       /* a FIFO must not hold us */
    FILE *f = fd < 0 ? NULL : fdopen(fd, "r");
    int bad = f ? session_load(e->session, of, f, &why) : errno == ENOENT ? 0 : fail(&why, "%s", strerror(errno));
    if (bad) note("gemma4: %s: %s: the conversation will be read again\n", name.data, why.text);
    if (f) (void)fclose(f);
    buf_free(&name);
}

cJSON *transcript_load(Engine *e, const char *path, Error *err) {
    Buf text = {0};
    Prompt prompt = {0};
    Error why;
    if (read_file(path, &text, err)) return NULL;
    cJSON *o = json_object(text.data, text.len, &why), *messages = cJSON_DetachItemFromObjectCaseSensitive(o, "messages");
    const cJSON *thinking = json_field(json_field(o, "chat_template_kwargs"), "enable_thinking");
    int bad = 0;
    if (!o) bad = fail(err, "%s: %s", path, why.text);
    else if (!cJSON_IsArray(messages)) bad = fail(err, "%s: no messages", path);
    else if (cJSON_GetArraySize(messages) &&
             (media_load(e->media, messages, &prompt, &why) || chat_render(e->tokenizer, messages, NULL, (ChatOptions){0}, &prompt, &why)))
        bad = fail(err, "%s: %s", path, why.text);
    if (!bad) {
        if (cJSON_IsBool(thinking)) e->thinking = cJSON_IsTrue(thinking);
        load_cache(e, path, hash_bytes(text.data, text.len - (text.data[text.len - 1] == '\n'), 0));
    } else {
        cJSON_Delete(messages);
        messages = NULL;
    }
    cJSON_Delete(o);
    prompt_free(&prompt);
    buf_free(&text);
    return messages;
}
