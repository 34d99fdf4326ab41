/* settings.h - what /set at the chat prompt shows and changes. */
#ifndef SETTINGS_H
#define SETTINGS_H

#include "generate.h"

/* How the chat prompt shows thoughts. */
typedef enum {
    THOUGHTS_OFF,                       /* not at all */
    THOUGHTS_ON,                        /* as they come, and they stay */
    THOUGHTS_FOLDED,                    /* as they come; one line takes their place afterwards */
} Thoughts;

/* Names that end with NULL, for completion. */
extern const char *const setting_names[];

/* Adds every setting with its value to out, a line each. */
void settings_list(const Engine *e, Thoughts thoughts, Buf *out);

/* Does what stands behind /set: a name and a value, "temperature 0".  The ranges are those of the
 * options.  Names may have _ in place of -, and be those of other programs (num_predict).  Adds a
 * line that says what holds now to out.  Returns 0, or -1 with err and nothing changed. */
int settings_change(Engine *e, Thoughts *thoughts, const char *what, Buf *out, Error *err);

#endif
