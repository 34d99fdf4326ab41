/* fields.h - the fields of a configuration file in JSON, each checked as it is read.
 *
 * The functions read a field of an object by its name.  They return 0, or -1 with err, which names
 * the file and the field. */
#ifndef FIELDS_H
#define FIELDS_H

#include <cjson/cJSON.h>

#include "util.h"

/* An object of a configuration file.  json may be NULL: the object is missing, all its fields have
 * their defaults. */
typedef struct {
    const char *file;                   /* path */
    const cJSON *json;
    const char *where;                  /* "text_config." or "": messages put it before a field */
    Error *err;
} Fields;

/* The JSON of DIR/NAME, which the caller deletes; an empty object if it is `optional` and missing.
 * NULL with err.  *path becomes the file's path. */
cJSON *load_json(const char *dir, const char *name, Buf *path, int optional, Error *err);

/* A field that, if it is there, must be of a type: cJSON_String, cJSON_Object, cJSON_Array, or
 * cJSON_True for true and false.  *out becomes the field, or NULL. */
int typed(const Fields *f, const char *name, int type, const cJSON **out);

/* A string; if the field is missing, *out stays as it is. */
int string(const Fields *f, const char *name, const char **out);

/* *out: 1 for true; 0 for false, and if the field is missing. */
int boolean(const Fields *f, const char *name, int *out);

/* The object `name` in f; `where`: what messages put before its fields. */
int object(const Fields *f, const char *name, const char *where, Fields *out);

/* A string that, if it is there, must be a or b (b may be NULL). */
int one_of(const Fields *f, const char *name, const char *a, const char *b);

/* A number from min to max.  otherwise: its value if the field is missing; NAN: it must not be. */
int number(const Fields *f, const char *name, double min, double max, double otherwise,
           double *out);

/* A whole number, likewise. */
int integer(const Fields *f, const char *name, int min, int max, double otherwise, int *out);

/* Refuses a feature that this program does not have, unless the field says that it is off. */
int refuse(const Fields *f, const char *name, const char *why);

#endif
