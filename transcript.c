/* transcript.c - a conversation on disk.  See transcript.h. */
#define _GNU_SOURCE
#include "transcript.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "conversation.h"
#include "declare.h"
#include "json.h"
#include "newfile.h"
#include "saved.h"

/* ---- saving ---- */

/* Returns the conversation as a request on one line, which the caller frees. */
static char *request_of(const Engine *e, const cJSON *messages) {
    cJSON *o = cJSON_CreateObject(), *kwargs = cJSON_AddObjectToObject(o, "chat_template_kwargs");
    cJSON_AddBoolToObject(kwargs, "enable_thinking", e->thinking);
    if (e->tools) cJSON_AddItemToObject(o, "tools", cJSON_Duplicate(e->tools, 1));
    cJSON_AddItemToObject(o, "messages", cJSON_Duplicate(messages, 1));
    char *text = json_text(o);
    cJSON_Delete(o);
    return text;
}

static int prompt_of(const Engine *e, const cJSON *messages, Prompt *p, Error *err) {
    ChatOptions chat = {.thinking = e->thinking};
    return conversation_render(e, messages, e->tools, chat, p, err);
}

/* Writes what the session holds of this conversation to f.  That is nothing when the prompt cannot
 * be rendered any more, because the file of a picture is gone.  Returns as session_save does. */
static int save_cache(const Engine *e, const cJSON *messages, uint64_t of, FILE *f) {
    Prompt prompt = {0};
    int known = !prompt_of(e, messages, &prompt, NULL);
    session_pictures(e->session, prompt.span, prompt.n_spans);
    int bad = session_save(e->session, prompt.ids.id, known ? prompt.ids.n : 0, of, f);
    session_pictures(e->session, NULL, 0);
    prompt_free(&prompt);
    return bad;
}

int transcript_check(const char *path, Error *err) {
    NewFile text = {0}, cache = {0};
    int bad = new_open(&text, path, "", err) || new_open(&cache, path, ".kv", err);
    new_free(&text);
    new_free(&cache);
    return bad ? -1 : 0;
}

int transcript_save(const Engine *e, const cJSON *messages, const char *path, Error *err) {
    NewFile text = {0}, cache = {0};
    char *request = request_of(e, messages);
    int bad = new_open(&text, path, "", err) || new_open(&cache, path, ".kv", err);
    if (!bad && fprintf(text.f, "%s\n", request) < 0) bad = new_failed(&text, err);
    uint64_t conversation = hash_bytes(request, strlen(request), 0);
    if (!bad && save_cache(e, messages, conversation, cache.f))
        bad = new_failed(&cache, err);
    bad = bad || new_sync(&text, err) || new_sync(&cache, err) || new_finish(&text, err) ||
          new_finish(&cache, err);
    new_free(&text);
    new_free(&cache);
    free(request);
    return bad ? -1 : 0;
}

/* ---- loading ---- */

/* Opens a file for reading, a FIFO without waiting for a writer. */
static FILE *open_now(const char *name) {
    int fd = open(name, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    return fd < 0 ? NULL : fdopen(fd, "r");
}

/* Loads the cache beside the transcript into the session.  A missing file is no reason for a
 * message: a person or another program may have written the conversation. */
static void load_cache(const Engine *e, const char *path, uint64_t conversation) {
    Buf name = {0};
    Error why;
    int bad = 0;
    buf_printf(&name, "%s.kv", path);
    FILE *f = open_now(name.data);
    if (f) bad = session_load(e->session, conversation, f, &why);
    else if (errno != ENOENT) bad = fail(&why, "%s", strerror(errno));
    if (bad) remark("gemma4: %s: %s: the conversation will be read again\n", name.data, why.text);
    if (f) (void)fclose(f);
    buf_free(&name);
}

/* Whether messages can be rendered: 0, or -1 with err.  Says on stderr what is wrong with them all
 * the same. */
static int check_messages(const Engine *e, const cJSON *messages, Error *err) {
    Prompt prompt = {0};
    int bad = conversation_render(e, messages, NULL, (ChatOptions){0}, &prompt, err);
    if (!bad) remark_lines(&prompt.warnings);
    prompt_free(&prompt);
    return bad;
}

/* The tools of a file's conversation take the place of those of the file before; those of --tools
 * stay.  Returns 0, or -1 with err. */
static int take_tools(Engine *e, const cJSON *given, Error *err) {
    cJSON *tools = NULL;
    if (e->tools && !e->tools_of_file) return 0;
    if (given && !(tools = tools_read(given, err))) return -1;
    cJSON_Delete(e->tools);
    e->tools = tools;
    e->tools_of_file = 1;
    if (e->tool_dir && !tools)
        remark("gemma4: warning: --run-tools has no effect: the conversation has no tools\n");
    warn_of_tools(e);
    return 0;
}

/* Names the fields of a file that say how to answer a request: here the options say that. */
static void warn_of_fields(const cJSON *o, const char *path) {
    static const char *const known[] = {"chat_template_kwargs", "model", "tools", NULL};
    const cJSON *field;
    Buf names = {0};
    cJSON_ArrayForEach(field, o)
        if (!is_in(field->string, known))
            buf_printf(&names, "%s%s", names.len ? ", " : "", field->string);
    if (names.len)
        remark("gemma4: warning: %s: of a loaded conversation these have no effect: %s\n", path,
               names.data);
    buf_free(&names);
}

/* Returns the messages in a file's text, and sets e->thinking and e->tools.  NULL with err. */
static cJSON *parse_transcript(Engine *e, const char *path, const Buf *text, Error *err) {
    Error why;
    cJSON *o = json_object(text->data, text->len, &why);
    cJSON *messages = cJSON_DetachItemFromObjectCaseSensitive(o, "messages");
    const cJSON *thinking = json_field(json_field(o, "chat_template_kwargs"), "enable_thinking");
    int bad = 0;
    if (!o) bad = fail(err, "%s: %s", path, why.text);
    else if (!cJSON_IsArray(messages)) bad = fail(err, "%s: no messages", path);
    else if ((cJSON_GetArraySize(messages) && check_messages(e, messages, &why)) ||
             take_tools(e, json_field(o, "tools"), &why))
        bad = fail(err, "%s: %s", path, why.text);
    if (!bad) warn_of_fields(o, path);
    if (!bad && cJSON_IsBool(thinking)) e->thinking = cJSON_IsTrue(thinking);
    cJSON_Delete(o);
    if (!bad) return messages;
    cJSON_Delete(messages);
    return NULL;
}

cJSON *transcript_load(Engine *e, const char *path, Error *err) {
    Buf text = {0};
    if (read_file(path, &text, err)) return NULL;
    cJSON *messages = parse_transcript(e, file_name(path), &text, err);
    if (messages && strcmp(path, "-")) {
        int has_newline = text.data[text.len - 1] == '\n';
        load_cache(e, path, hash_bytes(text.data, text.len - (size_t)has_newline, 0));
    }
    buf_free(&text);
    return messages;
}

/* ---- the cache of a document ---- */

/* The cache of a document has this in place of the hash of a conversation: any conversation may
 * begin with the document. */
#define ANY_CONVERSATION 0

/* Loads the file into the session.  A file that is missing or empty is no error.  Returns 0, or -1
 * with err where the file must not be replaced. */
static int load_document(const Engine *e, const char *path, Error *err) {
    FILE *f = open_now(path);
    struct stat info;
    Error why;
    if (!f) return errno == ENOENT ? 0 : fail(err, "%s: %s", path, strerror(errno));
    int is_new = !fstat(fileno(f), &info) && S_ISREG(info.st_mode) && !info.st_size;
    int is_cache = is_new || cache_is_saved(f);
    if (!is_cache) fail(err, "%s: no saved cache, so it is not replaced", path);
    else if (!is_new && session_load(e->session, ANY_CONVERSATION, f, &why))
        remark("gemma4: %s: %s: the prompt is read from its beginning\n", path, why.text);
    (void)fclose(f);
    return is_cache ? 0 : -1;
}

/* Replaces the file by what the session holds of ids[0..n), at most n - 1 of them. */
static int write_document(const Engine *e, const int *ids, int n, const char *path, Error *err) {
    NewFile cache = {0};
    int bad = new_open(&cache, path, "", err);
    if (!bad && session_save(e->session, ids, n, ANY_CONVERSATION, cache.f))
        bad = new_failed(&cache, err);
    if (!bad) bad = new_finish(&cache, err);
    new_free(&cache);
    return bad;
}

/* How many ids the beginnings of two prompts have in common. */
static int n_alike(const Ids *a, const Ids *b) {
    int n = 0;
    while (n < a->n && n < b->n && a->id[n] == b->id[n]) n++;
    return n;
}

int transcript_cache(const Engine *e, const cJSON *messages, const cJSON *document,
                     const char *path, int *n_read, Error *err) {
    Prompt whole = {0}, part = {0};
    Error why;
    *n_read = 0;
    int bad = prompt_of(e, messages, &whole, err) ||
              (document && prompt_of(e, document, &part, err)) || load_document(e, path, err);
    /* n: tokens of the beginning; held: of these, what the session has. */
    int n = document ? n_alike(&whole.ids, &part.ids) : whole.ids.n - 1;
    session_pictures(e->session, whole.span, whole.n_spans);
    int held = bad ? 0 : session_common(e->session, whole.ids.id, whole.ids.n);
    if (!bad && held < n && whole.ids.n <= session_context(e->session)) {
        bad = session_sync(e->session, whole.ids.id, n, n, &held, err);
        *n_read = n - held;
        if (!bad && write_document(e, whole.ids.id, n + 1, path, &why))
            note("gemma4: %s: the next run reads the prompt again\n", why.text);
    }
    session_pictures(e->session, NULL, 0);
    prompt_free(&whole);
    prompt_free(&part);
    return bad;
}
