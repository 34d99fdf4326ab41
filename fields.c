/* fields.c - the fields of a configuration file.  See fields.h. */
#include "fields.h"

#include <math.h>
#include <string.h>
#include <unistd.h>

#include "json.h"

#define MAX_CONFIG (4 << 20)            /* bytes; known files have less than a tenth, and cJSON
                                         * takes many times as much memory */

cJSON *load_json(const char *dir, const char *name, Buf *path, int optional, Error *err) {
    path->len = 0;
    buf_printf(path, "%s/%s", dir, name);
    if (optional && access(path->data, F_OK)) return cJSON_CreateObject();
    Error why;
    cJSON *json = NULL;
    size_t n;
    const uint8_t *map = map_file(path->data, &n, err);
    if (!map) return NULL;
    if (n > MAX_CONFIG) fail(err, "%s: %zu bytes are too many for a configuration", path->data, n);
    else {
        Buf text = {0};                 /* a copy that ends in 0, which cJSON may read */
        buf_add(&text, map, n);
        if (!(json = json_object(text.data, n, &why))) fail(err, "%s: %s", path->data, why.text);
        buf_free(&text);
    }
    unmap_file(map, n);
    return json;
}

int typed(const Fields *f, const char *name, int type, const cJSON **out) {
    const cJSON *v = *out = json_field(f->json, name);
    const char *what = "true or false";
    if (!v || (v->type & 0xff) == type || (type == cJSON_True && cJSON_IsFalse(v))) return 0;
    if (type == cJSON_String) what = "a string";
    if (type == cJSON_Object) what = "an object";
    if (type == cJSON_Array) what = "a list";
    return fail(f->err, "%s: %s%s is not %s", f->file, f->where, name, what);
}

int string(const Fields *f, const char *name, const char **out) {
    const cJSON *v;
    if (typed(f, name, cJSON_String, &v)) return -1;
    if (v) *out = v->valuestring;
    return 0;
}

int boolean(const Fields *f, const char *name, int *out) {
    const cJSON *v;
    if (typed(f, name, cJSON_True, &v)) return -1;
    *out = cJSON_IsTrue(v);
    return 0;
}

int object(const Fields *f, const char *name, const char *where, Fields *out) {
    const cJSON *v;
    if (typed(f, name, cJSON_Object, &v)) return -1;
    *out = (Fields){f->file, v, where, f->err};
    return 0;
}

int one_of(const Fields *f, const char *name, const char *a, const char *b) {
    const char *is = NULL;
    if (string(f, name, &is)) return -1;
    if (!is || !strcmp(is, a) || (b && !strcmp(is, b))) return 0;
    return fail(f->err, "%s: %s%s \"%s\" is not supported", f->file, f->where, name, is);
}

int number(const Fields *f, const char *name, double min, double max, double otherwise,
           double *out) {
    const cJSON *v = json_field(f->json, name);
    *out = otherwise;
    if (!v && isnan(otherwise)) return fail(f->err, "%s: %s%s is missing", f->file, f->where, name);
    if (!v) return 0;
    if (!cJSON_IsNumber(v))
        return fail(f->err, "%s: %s%s is not a number", f->file, f->where, name);
    double x = v->valuedouble;
    if (min == max && x != min)
        return fail(f->err, "%s: %s%s is %.40s, must be %.10g", f->file, f->where, name,
                    v->valuestring, min);
    if (!(x >= min && x <= max))
        return fail(f->err, "%s: %s%s is %.40s, must be %.10g to %.10g", f->file, f->where, name,
                    v->valuestring, min, max);
    *out = x;
    return 0;
}

int integer(const Fields *f, const char *name, int min, int max, double otherwise, int *out) {
    double v;
    if (number(f, name, min, max, otherwise, &v)) return -1;
    *out = (int)v;
    if (v == *out) return 0;
    return fail(f->err, "%s: %s%s is not a whole number", f->file, f->where, name);
}

int refuse(const Fields *f, const char *name, const char *why) {
    const cJSON *v = json_field(f->json, name);
    if (!v || cJSON_IsFalse(v) || (cJSON_IsNumber(v) && v->valuedouble == 0)) return 0;
    return fail(f->err, "%s: %s%s: %s", f->file, f->where, name, why);
}
