/* options.h - reads the command line. */
#ifndef OPTIONS_H
#define OPTIONS_H

#include "sampler.h"
#include "session.h"

#include <cjson/cJSON.h>

/* Pointers are into argv or the environment, NULL where nothing was given; flags are 0 or 1. */
typedef struct {
    const char *command;                /* NULL, or "tokenize", "render", ...: see options.c */
    const char *model, *device, *draft, *draft_log;
    int model_from_variable;            /* 1: `model` is $GEMMA4_MODEL */
    const char *device_from;            /* what names the device: "--device" or "GEMMA4_DEVICE" */
    const char *prompt, *ids_file, *text_file, *request_file, *system;
    const char *logits_file, *reference_file, *scenario, *plot_file;
    const char *cache, *load, *save;    /* files of --cache, --load, --save */
    const char *tools, *json_schema;    /* a file, or JSON */
    const char *run_tools;
    const char **lora;                  /* [n_loras] directories of adapters, or DIR:SCALE */
    int n_loras;
    const char **file;                  /* [n_files] text files that go with the question: -f */
    int n_files;
    Buf question;                       /* positional arguments, joined by spaces */
    cJSON *media;                       /* parts of the question: images and videos */
    int media_takes_stdin;              /* 1: one of them was read from stdin */
    int image_tokens, video_frames;     /* image_tokens 0: as config.json says */
    int raw, jsonl, plain, decode, open_thought, json, ids, print_ids, ignore_eos, exact, stats;
    int think, yes, stream, summary, slide, fp4_activations, no_markdown;
    int activations;                    /* --activations: 8, 16, 32; 0: not given */
    int think_tokens, max_tokens;       /* -1: no limit */
    int context, draft_tokens;          /* -1: not given */
    int threads, chunk;                 /* 0: not given */
    float gpu_memory;                   /* GB; 0: not given */
    int cpu_experts;                    /* layers; CPU_EXPERTS_AUTO: not given */
    int expert_slots;                   /* EXPERT_SLOTS_AUTO: not given */
    int top;                            /* -1: not given */
    KvType kv;
    SamplerParams sampling;             /* negative: not given */
    int have_seed;
} Options;

/* Reads the arguments of main into *o, which the caller frees with options_free in any case.
 * Returns 0; the exit status with which the program should end, after an error line on stderr; or
 * -1: help or the version was printed, and the program should end with status 0. */
int parse_options(int argc, char **argv, Options *o);

/* Checks that the options can be combined, and fills in the device.  Returns 0; or the exit status,
 * after an error line on stderr. */
int check_options(Options *o);

void options_free(Options *o);

/* Reads a number in the range of the option --`option` (temp, top-k, top-p, min-p, repeat-penalty,
 * seed, max-tokens or think-tokens) into *value: an int, a float or, for seed, a uint64_t.  Returns
 * 0; or -1 with *value unchanged and err, which calls the number `name`. */
int option_number(const char *option, const char *name, const char *text, void *value,
                  Error *err);

/* Parts a --lora of DIR:SCALE at the last colon, which may also be one of DIR's own: adds DIR, or a
 * text without a colon, to *dir, and *scale becomes SCALE if there is one.  Returns 0; or -1 with
 * *scale unchanged and err, where what follows the colon is no scale. */
int split_lora(const char *text, Buf *dir, float *scale, Error *err);

/* Whether the command is this one. */
int is_command(const Options *o, const char *name);

/* Writes to stderr what is wrong with the command line.  Returns the exit status, 2. */
int usage(const char *format, ...) __attribute__((format(printf, 1, 2)));

#endif
