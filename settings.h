/* settings.h - the settings that /set at the chat prompt shows and changes. */
#ifndef SETTINGS_H
#define SETTINGS_H

#include "generate.h"

/* How the chat prompt shows thoughts. */
typedef enum {
    THOUGHTS_OFF,                       /* not at all */
    THOUGHTS_ON,                        /* as they come; they stay on the screen */
    THOUGHTS_FOLDED,                    /* as they come; one line takes their place afterwards */
} Thoughts;

/* The names of all settings, for completion; the list ends with NULL. */
extern const char *const setting_names[];

/* Adds every setting with its value to out, a line each. */
void settings_list(const Engine *e, Thoughts thoughts, Buf *out);

/* Does what the text behind /set asks for: "temperature 0" changes a setting, "temperature" shows
 * it.  A value has the range of the command-line option.  A name may have _ in place of -, and may
 * be that of another program (num_predict).  Adds a line with the setting and its present value to
 * out.  Returns 0, or -1 with err and nothing changed. */
int settings_change(Engine *e, Thoughts *thoughts, const char *what, Buf *out, Error *err);

#endif
