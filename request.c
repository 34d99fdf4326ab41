/* request.c - reads a request.  See request.h.
 *
 * The get_… functions read fields of the request o.  A field that is missing leaves the value as it
 * is, the default.  They return 0, or -1 with err. */
#include "request.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "conversation.h"
#include "declare.h"
#include "json.h"

#define MAX_COUNT (1 << 30)             /* tokens: more than any context has, and an int */

/* ---- single fields ---- */

/* A number from min to max; whole = 1: it must be a whole number. */
static int get_number(const cJSON *o, const char *name, double min, double max, int whole,
                      double *out, Error *err) {
    const cJSON *v = json_field(o, name);
    if (!v) return 0;
    double x = v->valuedouble;
    if (!cJSON_IsNumber(v)) return fail(err, "%s: not a number", name);
    if (!(x >= min && x <= max))
        return fail(err, "%s: %.40s is not between %.10g and %.10g", name, v->valuestring, min,
                    max);
    if (whole && x != floor(x))
        return fail(err, "%s: %.40s is not a whole number", name, v->valuestring);
    *out = x;
    return 0;
}

/* A whole number from min to max. */
static int get_whole(const cJSON *o, const char *name, int min, int max, int *out, Error *err) {
    double x = *out;
    if (get_number(o, name, min, max, 1, &x, err)) return -1;
    *out = (int)x;
    return 0;
}

static int get_count(const cJSON *o, const char *name, int min, int *out, Error *err) {
    return get_whole(o, name, min, MAX_COUNT, out, err);
}

static int get_float(const cJSON *o, const char *name, double min, double max, float *out,
                     Error *err) {
    double x = *out;
    if (get_number(o, name, min, max, 0, &x, err)) return -1;
    *out = (float)x;
    return 0;
}

static int get_bool(const cJSON *o, const char *name, int *out, Error *err) {
    const cJSON *v = json_field(o, name);
    if (!v) return 0;
    if (!cJSON_IsBool(v)) return fail(err, "%s: not true or false", name);
    *out = cJSON_IsTrue(v);
    return 0;
}

/* ---- fields that are not supported, fields that are not known ---- */

/* Does the value of an unsupported field ask for what this program does anyway?  neutral: the
 * number that does so, beside 0; of a boolean, 1 if true does so. */
static int is_neutral(const cJSON *v, double neutral) {
    if (cJSON_IsNumber(v)) return v->valuedouble == 0 || v->valuedouble == neutral;
    if (cJSON_IsString(v)) {
        static const char *const neutral_words[] = {"", "none", "auto", "medium", "default"};
        for (size_t i = 0; i < sizeof neutral_words / sizeof *neutral_words; i++)
            if (!strcmp(v->valuestring, neutral_words[i])) return 1;
        return 0;
    }
    if (cJSON_IsBool(v)) return cJSON_IsTrue(v) == (neutral == 1);
    return cJSON_IsNull(v) || ((cJSON_IsArray(v) || cJSON_IsObject(v)) && !v->child);
}

/* Fields of OpenAI, vLLM, llama.cpp, Ollama and others that would change the answer and are not
 * supported: name, see is_neutral, what to use instead.  To ignore one of them would silently give
 * another answer than the client asked for. */
static const struct { const char *name; double neutral; const char *instead; } unsupported[] = {
    {"functions", 0, "tools"}, {"function_call", 0, "tool_choice"}, {"audio", 0, NULL},
    {"web_search_options", 0, NULL}, {"verbosity", 0, NULL},
    {"prompt", 0, "messages"}, {"input", 0, "messages"}, {"suffix", 0, NULL},
    {"template", 0, NULL}, {"chat_template", 0, NULL}, {"documents", 0, NULL},
    {"options", 0, "temperature, seed and others beside messages"}, {"text", 0, "response_format"},
    {"instructions", 0, "messages"}, {"system", 0, "messages"}, {"raw", 0, NULL},
    {"num_ctx", 0, "-c"}, {"num_predict", 0, "max_tokens"}, {"max_output_tokens", 0, "max_tokens"},
    {"max_new_tokens", 0, "max_tokens"}, {"max_tokens_to_sample", 0, "max_tokens"},
    {"maxOutputTokens", 0, "max_tokens"}, {"max_tool_calls", 0, "parallel_tool_calls"},
    {"stop_sequences", 0, "stop"}, {"stopSequences", 0, "stop"}, {"stop_regex", 0, "stop"},
    {"extra_body", 0, "its fields beside messages"},
    {"generation_config", 0, "its fields beside messages"},
    {"generationConfig", 0, "its fields beside messages"},
    {"response_schema", 0, "response_format"}, {"responseSchema", 0, "response_format"},
    {"response_json_schema", 0, "response_format"}, {"responseJsonSchema", 0, "response_format"},
    {"response_mime_type", 0, "response_format"}, {"output_config", 0, "response_format"},
    {"output_format", 0, "response_format"}, {"guided_decoding", 0, "response_format"},
    {"nvext", 0, "response_format"},
    {"previous_response_id", 0, "messages"}, {"conversation", 0, "messages"},
    {"grammar", 0, "response_format"}, {"grammar_lazy", 0, NULL},
    {"guided_regex", 0, "response_format"}, {"guided_choice", 0, "response_format"},
    {"guided_grammar", 0, "response_format"}, {"guided_whitespace_pattern", 0, NULL},
    {"structural_tag", 0, "tools"}, {"regex", 0, "response_format"}, {"ebnf", 0, "response_format"},
    {"choice", 0, "response_format"}, {"preset", 0, NULL}, {"best_of", 1, "n"},
    {"use_beam_search", 0, NULL}, {"length_penalty", 1, NULL}, {"early_stopping", 0, NULL},
    {"echo", 0, NULL}, {"bad_words", 0, "logit_bias"}, {"allowed_token_ids", 0, "logit_bias"},
    {"logits_processors", 0, NULL}, {"prompt_logprobs", 0, NULL}, {"n_probs", 0, "top_logprobs"},
    {"return_token_ids", 0, NULL}, {"return_tokens", 0, NULL},
    {"return_tokens_as_token_ids", 0, NULL}, {"truncate_prompt_tokens", -1, NULL},
    {"include_stop_str_in_output", 0, NULL}, {"skip_special_tokens", 1, NULL},
    {"add_special_tokens", 0, NULL}, {"include_reasoning", 1, NULL},
    {"separate_reasoning", 1, NULL}, {"mm_processor_kwargs", 0, NULL},
    {"do_sample", 1, "temperature"},
    {"num_beams", 1, NULL}, {"watermark", 0, NULL}, {"typical", 1, NULL}, {"truncate", 0, NULL},
    {"lora", 0, NULL}, {"lora_path", 0, NULL},
    {"vllm_xargs", 0, NULL}, {"typical_p", 1, NULL}, {"typ_p", 1, NULL}, {"tfs_z", 1, NULL},
    {"top_a", 0, NULL}, {"top_n_sigma", -1, NULL}, {"epsilon_cutoff", 0, NULL},
    {"eta_cutoff", 0, NULL}, {"mirostat", 0, NULL}, {"mirostat_mode", 0, NULL},
    {"dynatemp_range", 0, NULL}, {"dynamic_temperature", 0, NULL}, {"smoothing_factor", 0, NULL},
    {"dry_multiplier", 0, NULL}, {"xtc_probability", 0, NULL}, {"samplers", 0, NULL},
    {"sampler_seq", 0, NULL}, {"no_repeat_ngram_size", 0, NULL},
    {"encoder_repetition_penalty", 1, NULL}, {"repeat_last_n", -1, NULL},
    {"penalty_last_n", -1, NULL}, {"repetition_penalty_range", 0, NULL},
    {"banned_tokens", 0, "logit_bias"}, {"banned_strings", 0, NULL},
    {"t_max_predict_ms", 0, "max_tokens"}, {"time_limit", 0, "max_tokens"},
    {"guidance_scale", 1, NULL}, {"negative_prompt", 0, NULL}, {"transforms", 0, NULL},
    {"plugins", 0, NULL}, {"post_sampling_probs", 0, NULL},
};

/* Fields that this file reads; then fields without effect on the answer: who asks, how a request is
 * filed, how another server distributes its work, and parameters of features that are off. */
static const char *const known[] = {
    "messages", "max_tokens", "max_completion_tokens", "n_predict", "min_tokens", "temperature",
    "top_p", "top_k", "min_p", "repetition_penalty", "repeat_penalty", "frequency_penalty",
    "presence_penalty", "logit_bias", "seed", "stop", "stop_token_ids", "ignore_eos", "logprobs",
    "top_logprobs", "stream", "stream_options", "n", "tools", "tool_choice", "parallel_tool_calls",
    "response_format", "guided_json", "structured_outputs", "json_schema", "format",
    "thinking_token_budget", "thinking_budget_tokens", "thinking_budget", "reasoning_budget",
    "chat_template_kwargs", "enable_thinking", "reasoning_effort", "think", "reasoning", "thinking",
    "reasoning_format",
    "continue_final_message", "add_generation_prompt", "modalities",

    "model", "user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key",
    "prompt_cache_retention", "prompt_cache_options", "moderation", "prediction", "id",
    "request_id", "priority", "keep_alive", "cache_prompt", "id_slot", "slot_id", "n_keep",
    "n_discard", "n_cache_reuse", "timings_per_token", "guided_decoding_backend", "cache_salt",
    "spaces_between_special_tokens", "provider", "route", "models", "usage", "extra_headers",
    "mirostat_tau", "mirostat_eta", "dynatemp_exponent", "dry_base", "dry_allowed_length",
    "dry_penalty_last_n", "dry_sequence_breakers", "xtc_threshold", "min_keep", NULL,
};

/* The known fields of objects within a request. */
static const char *const known_of_kwargs[] = {"enable_thinking", "preserve_thinking", NULL};
static const char *const known_of_stream[] = {"include_usage", "include_obfuscation", NULL};
static const char *const known_of_format[] = {"type", "json_schema", "schema", NULL};
static const char *const known_of_json_schema[] = {"name", "description", "schema", "strict", NULL};
static const char *const known_of_structured[] = {
    "json", "json_object", "regex", "choice", "grammar", "structural_tag", "whitespace_pattern",
    "disable_any_whitespace", "disable_fallback", "disable_additional_properties", NULL,
};
static const char *const known_of_reasoning[] = {"effort", "enabled", "max_tokens", "exclude",
                                                 "summary", "generate_summary", NULL};
static const char *const known_of_thinking[] = {"type", "budget_tokens", "display", NULL};
static const char *const thoughts_apart[] = {"auto", "deepseek", "parsed", NULL};
static const char *const known_of_batch[] = {"custom_id", "method", "url", "body", NULL};
static const char *const known_of_message[] = {
    "role", "content", "name", "tool_calls", "tool_call_id", "tool_name", "tool_responses",
    "reasoning", "reasoning_content", "thinking", "refusal", "annotations", "audio",
    "function_call", "images", "id", "type", "status", "phase", "weight", "cache_control",
    "reasoning_details", "provider_specific_fields", "thinking_blocks", "warnings", "partial",
    "prefix", NULL,
};

static int is_known(const char *name) {
    for (size_t i = 0; i < sizeof unsupported / sizeof *unsupported; i++)
        if (!strcmp(name, unsupported[i].name)) return 1;
    return is_in(name, known);
}

/* Adds the name of a field to a list.  inside: the path of the object that it is in
 * ("messages[0].").  A name that could be misread in the list is written as a JSON string. */
static void add_unknown(Buf *names, const char *inside, const char *name) {
    int is_plain = *name != 0;
    for (const char *p = name; *p; p++)
        is_plain &= (unsigned char)*p > ' ' && *p != 127 && *p != ',' && *p != '"';
    buf_puts(names, names->len ? ", " : "");
    buf_puts(names, inside);
    if (is_plain) buf_puts(names, name);
    else json_quote(names, name, strlen(name));
}

/* Adds the names of all fields of o that are not in known_there. */
static void add_unknowns(Buf *names, const cJSON *o, const char *inside,
                         const char *const *known_there) {
    const cJSON *item;
    if (cJSON_IsObject(o)) cJSON_ArrayForEach(item, o)
        if (!is_in(item->string, known_there)) add_unknown(names, inside, item->string);
}

static int check_messages(const cJSON *messages, Buf *names, Error *err) {
    static const struct { const char *name, *instead; } other[] = {
        {"function_call", "tool_calls"}, {"images", "parts of type image_url"},
        {"audio", "the text of what was said"},
    };
    const cJSON *m;
    int i = 0;
    if (cJSON_IsArray(messages)) cJSON_ArrayForEach(m, messages) {
        char inside[32];
        snprintf(inside, sizeof inside, "messages[%d].", i++);
        add_unknowns(names, m, inside, known_of_message);
        for (size_t k = 0; k < sizeof other / sizeof *other; k++)
            if (json_field(m, other[k].name) && !is_neutral(json_field(m, other[k].name), 0))
                return fail(err, "%s%s: not supported (%s may do)", inside, other[k].name,
                            other[k].instead);
    }
    return 0;
}

/* Warns of results that belong to no call: the model reads "unknown" in the place of the tool's
 * name. */
static void warn_of_results(const cJSON *messages, Buf *warnings) {
    const cJSON *m, *calls = NULL;
    int i = 0;
    cJSON_ArrayForEach(m, messages) {
        if (!has_role(m, "tool")) calls = json_field(m, "tool_calls");
        else if (!chat_result_name(calls, m))
            buf_printf(warnings, "messages[%d].tool_call_id: no call has this id\n", i);
        i++;
    }
}

/* Refuses requests for what this program cannot do, and warns of fields that it does not know
 * (misspelt ones, for example). */
static int check_fields(const cJSON *o, Request *r, Error *err) {
    const cJSON *item;
    Buf names = {0};                    /* of unknown fields */
    for (size_t i = 0; i < sizeof unsupported / sizeof *unsupported; i++) {
        const char *name = unsupported[i].name, *instead = unsupported[i].instead;
        const cJSON *v = json_field(o, name);
        if (!v || is_neutral(v, unsupported[i].neutral)) continue;
        if (instead) return fail(err, "%s: not supported (%s may do)", name, instead);
        return fail(err, "%s: not supported", name);
    }
    if (cJSON_IsObject(json_field(o, "web_search_options")))    /* {} asks for a search, too */
        return fail(err, "web_search_options: not supported");
    const char *thoughts = cJSON_GetStringValue(json_field(o, "reasoning_format"));
    if (thoughts && *thoughts && !is_in(thoughts, thoughts_apart))
        return fail(err, "reasoning_format: must be auto, deepseek or parsed: thoughts are apart");
    cJSON_ArrayForEach(item, json_field(o, "modalities"))
        if (strcmp(cJSON_IsString(item) ? item->valuestring : "", "text"))
            return fail(err, "modalities: only text is supported");
    cJSON_ArrayForEach(item, o)
        if (!is_known(item->string)) add_unknown(&names, "", item->string);
    const cJSON *format = json_field(o, "response_format");
    const struct { const cJSON *o; const char *inside; const char *const *known; } part[] = {
        {json_field(o, "chat_template_kwargs"), "chat_template_kwargs.", known_of_kwargs},
        {json_field(o, "stream_options"), "stream_options.", known_of_stream},
        {format, "response_format.", known_of_format},
        {json_field(format, "json_schema"), "response_format.json_schema.", known_of_json_schema},
        {json_field(o, "structured_outputs"), "structured_outputs.", known_of_structured},
        {json_field(o, "reasoning"), "reasoning.", known_of_reasoning},
        {json_field(o, "thinking"), "thinking.", known_of_thinking},
        {r->custom_id ? r->json : NULL, "", known_of_batch},
    };
    for (size_t i = 0; i < sizeof part / sizeof *part; i++)
        add_unknowns(&names, part[i].o, part[i].inside, part[i].known);
    tools_unknown(json_field(o, "tools"), &names);
    int bad = check_messages(json_field(o, "messages"), &names, err);
    if (names.len) buf_printf(&r->warnings, "unknown fields had no effect: %s\n", names.data);
    buf_free(&names);
    warn_of_results(json_field(o, "messages"), &r->warnings);
    return bad;
}

/* ---- sampling, limits and ends ---- */

static int get_bias(const Engine *e, const cJSON *o, Request *r, Error *err) {
    const cJSON *bias = json_field(o, "logit_bias"), *item;
    int vocab = tokenizer_n_vocab(e->tokenizer), n = 0;
    if (!bias) return 0;
    if (!cJSON_IsObject(bias))
        return fail(err, "logit_bias: not an object of token ids and numbers");
    r->bias = xcalloc(cJSON_GetArraySize(bias) + 1, sizeof *r->bias);
    cJSON_ArrayForEach(item, bias) {
        size_t digits = strspn(item->string, "0123456789"), len = strlen(item->string);
        int id = len && len < 10 && digits == len ? atoi(item->string) : -1;
        if (id < 0 || id >= vocab)
            return fail(err, "logit_bias.%s: not a token id below %d", item->string, vocab);
        if (!cJSON_IsNumber(item) || !(fabs(item->valuedouble) <= 100))
            return fail(err, "logit_bias.%s: not a number from -100 to 100", item->string);
        r->bias[n++] = (LogitBias){id, (float)item->valuedouble};
    }
    r->g.sampling.bias = r->bias;
    r->g.sampling.n_bias = n;
    return 0;
}

/* The seed has 64 bits, which a double would round: it is read from the number's text.  As with
 * --seed a negative number stands for the one above 2^63 that has the same bits. */
static int get_seed(const cJSON *o, SamplerParams *p, Error *err) {
    const cJSON *v = json_field(o, "seed");
    char *end;
    if (!v) return 0;
    if (!cJSON_IsNumber(v)) return fail(err, "seed: not a number");
    errno = 0;
    p->seed = strtoull(v->valuestring, &end, 10);
    if (errno || *end)
        return fail(err, "seed: %.40s is not a whole number of 64 bits", v->valuestring);
    return 0;
}

static int get_sampling(const Engine *e, const cJSON *o, Request *r, Error *err) {
    SamplerParams *p = &r->g.sampling;
    *p = e->sampling;
    double top_k = p->top_k;
    if (get_float(o, "temperature", 0, 100, &p->temperature, err) ||
        get_float(o, "top_p", 0, 1, &p->top_p, err) ||
        get_float(o, "min_p", 0, 1, &p->min_p, err) ||
        get_number(o, "top_k", -1, 1 << 24, 1, &top_k, err) ||
        get_float(o, "repeat_penalty", 0.01, 100, &p->repeat_penalty, err) ||
        get_float(o, "repetition_penalty", 0.01, 100, &p->repeat_penalty, err) ||
        get_float(o, "frequency_penalty", -100, 100, &p->frequency_penalty, err) ||
        get_float(o, "presence_penalty", -100, 100, &p->presence_penalty, err) ||
        get_bias(e, o, r, err) || get_seed(o, p, err))
        return -1;
    p->top_k = top_k < 0 ? 0 : (int)top_k;              /* -1 and 0 both mean all tokens */
    const cJSON *a = json_field(o, "repeat_penalty"), *b = json_field(o, "repetition_penalty");
    if (a && b && a->valuedouble != b->valuedouble)
        return fail(err, "repeat_penalty: contradicts repetition_penalty");
    return 0;
}

static int get_stop(const cJSON *o, Generation *g, Error *err) {
    const cJSON *stop = json_field(o, "stop"), *s;
    if (!stop) return 0;
    int n = cJSON_IsArray(stop) ? cJSON_GetArraySize(stop) : 1;
    g->stop = xcalloc(n, sizeof *g->stop);
    s = cJSON_IsArray(stop) ? stop->child : stop;
    for (int i = 0; i < n; i++, s = s->next) {
        if (!cJSON_IsString(s) || !*s->valuestring)
            return fail(err, "stop: not a string or a list of strings that are not empty");
        g->stop[g->n_stop++] = s->valuestring;
    }
    return 0;
}

static int get_stop_ids(const Engine *e, const cJSON *o, Generation *g, Error *err) {
    const cJSON *list = json_field(o, "stop_token_ids"), *item;
    int vocab = tokenizer_n_vocab(e->tokenizer);
    if (!list) return 0;
    if (!cJSON_IsArray(list)) return fail(err, "stop_token_ids: not a list");
    g->stop_ids = xcalloc(cJSON_GetArraySize(list) + 1, sizeof *g->stop_ids);
    cJSON_ArrayForEach(item, list) {
        double id = cJSON_IsNumber(item) ? item->valuedouble : -1;
        if (!(id >= 0 && id < vocab) || id != floor(id))
            return fail(err, "stop_token_ids: not token ids below %d", vocab);
        g->stop_ids[g->n_stop_ids++] = (int)id;
    }
    return 0;
}

static int get_limits(const Engine *e, const cJSON *o, Request *r, Error *err) {
    static const char *const names[] = {"max_completion_tokens", "max_tokens", "n_predict"};
    const char *by = NULL;              /* the field that has set the limit */
    Generation *g = &r->g;
    g->max_tokens = e->max_tokens;
    for (int i = 0; i < 3; i++) {
        int n = g->max_tokens;
        if (get_count(o, names[i], -1, &n, err)) return -1;
        if (!json_field(o, names[i])) continue;
        if (by && n != g->max_tokens) return fail(err, "%s: contradicts %s", names[i], by);
        g->max_tokens = n;
        by = names[i];
    }
    if (get_count(o, "min_tokens", 0, &g->min_tokens, err)) return -1;
    if (get_bool(o, "ignore_eos", &g->ignore_eos, err)) return -1;
    if (g->max_tokens >= 0 && g->min_tokens > g->max_tokens)
        return fail(err, "min_tokens: %d is more than max_tokens, %d", g->min_tokens,
                    g->max_tokens);
    return get_stop(o, g, err) || get_stop_ids(e, o, g, err) ? -1 : 0;
}

/* ---- thinking ---- */

/* What an effort means: 1 when a thought is asked for, and how many tokens the thought may have
 * (-1: any number).  No API defines these numbers.  They are round powers of two, each step four
 * times the last; README states them.  To tune them, measure how long the model's thoughts are when
 * nothing limits them. */
static const struct { const char *name; int thinking, budget; } efforts[] = {
    {"none", 0, -1}, {"minimal", 0, -1}, {"low", 1, 1024}, {"medium", 1, 4096},
    {"high", 1, 16384}, {"xhigh", 1, -1}, {"max", 1, -1},
};

#define NO_EFFORT (-2)                  /* as a budget: no field has named an effort */

/* A field asks for thinking (1) or for none (0).  *asked: what earlier fields said; -1: nothing. */
static int set_thinking(const char *field, int thinking, int *asked, Error *err) {
    if (*asked >= 0 && *asked != thinking)
        return fail(err, "%s: contradicts another field about thinking", field);
    *asked = thinking;
    return 0;
}

/* OpenAI's reasoning_effort, or Ollama's think, which may also be true or false.  *budget: that of
 * an effort in an earlier field, or NO_EFFORT. */
static int get_effort(const cJSON *o, const char *name, int *budget, int *asked, Error *err) {
    const cJSON *v = json_field(o, name);
    const char *word = cJSON_GetStringValue(v);
    const char *also = strcmp(name, "think") ? "" : "true, false, ";
    if (!v) return 0;
    if (cJSON_IsBool(v) && *also) return set_thinking(name, cJSON_IsTrue(v), asked, err);
    for (size_t i = 0; word && i < sizeof efforts / sizeof *efforts; i++) {
        if (strcmp(word, efforts[i].name)) continue;
        if (*budget != NO_EFFORT && *budget != efforts[i].budget)
            return fail(err, "%s: contradicts reasoning_effort", name);
        *budget = efforts[i].budget;
        return set_thinking(name, efforts[i].thinking, asked, err);
    }
    return fail(err, "%s: must be %snone, minimal, low, medium, high, xhigh or max", name, also);
}

/* A budget of tokens for the thought.  *tokens: that of an earlier field, or NO_EFFORT. */
static int get_budget(const cJSON *o, const char *name, int *tokens, Error *err) {
    int n = -1;
    if (!json_field(o, name)) return 0;
    if (get_count(o, name, -1, &n, err)) return -1;
    if (*tokens != NO_EFFORT && *tokens != n)
        return fail(err, "%s: contradicts another budget of the thought", name);
    *tokens = n;
    return 0;
}

/* The object `reasoning` of OpenRouter and of OpenAI's Responses API. */
static int get_reasoning(const cJSON *v, int *budget, int *asked, int *tokens, Error *err) {
    Error why;
    int on = 1, is_told = json_field(v, "enabled") || json_field(v, "max_tokens");
    if (!v) return 0;
    if (!cJSON_IsObject(v)) return fail(err, "reasoning: not an object");
    if (cJSON_IsTrue(json_field(v, "exclude")))
        return fail(err, "reasoning.exclude: not supported");
    if (get_effort(v, "effort", budget, asked, &why) || get_bool(v, "enabled", &on, &why) ||
        get_budget(v, "max_tokens", tokens, &why) ||
        (is_told && set_thinking("enabled", on, asked, &why)))
        return fail(err, "reasoning.%s", why.text);
    return 0;
}

/* Anthropic's object `thinking`, which may also be true or false. */
static int get_thinking_object(const cJSON *v, int *asked, int *tokens, Error *err) {
    static const char *const types[] = {"disabled", "enabled", "adaptive", NULL};
    const char *type = cJSON_GetStringValue(json_field(v, "type"));
    Error why;
    if (!v) return 0;
    if (cJSON_IsBool(v)) return set_thinking("thinking", cJSON_IsTrue(v), asked, err);
    if (!type || !is_in(type, types))
        return fail(err, "thinking.type: must be enabled, adaptive or disabled");
    if (get_budget(v, "budget_tokens", tokens, &why)) return fail(err, "thinking.%s", why.text);
    return set_thinking("thinking.type", strcmp(type, types[0]) != 0, asked, err);
}

/* Whether the last message is marked as the beginning of the answer, as in DeepSeek's, Mistral's
 * (prefix) and Moonshot's (partial) APIs. */
static int is_prefix(const cJSON *messages) {
    const cJSON *last = cJSON_GetArrayItem(messages, cJSON_GetArraySize(messages) - 1);
    return cJSON_IsTrue(json_field(last, "prefix")) || cJSON_IsTrue(json_field(last, "partial"));
}

static int get_thinking(const Engine *e, const cJSON *o, Request *r, Error *err) {
    static const char *const budgets[] = {"thinking_token_budget", "thinking_budget_tokens",
                                          "thinking_budget", "reasoning_budget"};
    Generation *g = &r->g;
    const cJSON *kwargs = json_field(o, "chat_template_kwargs");
    const cJSON *from[] = {kwargs, o};
    static const char *const inside[] = {"chat_template_kwargs.", ""};
    Error why;
    int asked = -1, yes = 1, budget = NO_EFFORT, tokens = NO_EFFORT;
    if (kwargs && !cJSON_IsObject(kwargs)) return fail(err, "chat_template_kwargs: not an object");
    g->think_tokens = e->think_tokens;
    for (int i = 0; i < 2; i++) {
        int on = e->thinking;
        if (get_bool(from[i], "enable_thinking", &on, &why))
            return fail(err, "%s%s", inside[i], why.text);
        if (json_field(from[i], "enable_thinking") &&
            set_thinking("enable_thinking", on, &asked, err))
            return -1;
    }
    if (get_bool(kwargs, "preserve_thinking", &g->chat.preserve_thinking, &why))
        return fail(err, "%s%s", *inside, why.text);
    if (get_effort(o, "reasoning_effort", &budget, &asked, err)) return -1;
    if (get_effort(o, "think", &budget, &asked, err)) return -1;
    for (size_t i = 0; i < sizeof budgets / sizeof *budgets; i++)
        if (get_budget(o, budgets[i], &tokens, err)) return -1;
    if (get_reasoning(json_field(o, "reasoning"), &budget, &asked, &tokens, err) ||
        get_thinking_object(json_field(o, "thinking"), &asked, &tokens, err))
        return -1;
    if (budget != NO_EFFORT) g->think_tokens = budget;
    if (tokens != NO_EFFORT) g->think_tokens = tokens;
    g->chat.continue_final = is_prefix(json_field(o, "messages"));
    if (get_bool(o, "continue_final_message", &g->chat.continue_final, err) ||
        get_bool(o, "add_generation_prompt", &yes, err))
        return -1;
    g->chat.thinking = asked >= 0 ? asked : e->thinking;
    if (!yes && !g->chat.continue_final)
        return fail(err, "add_generation_prompt: false needs continue_final_message");
    if (yes && g->chat.continue_final && json_field(o, "add_generation_prompt"))
        return fail(err, "add_generation_prompt: contradicts continue_final_message");
    return 0;
}

/* ---- tools and schemas ---- */

/* Reads tools, tool_choice and parallel_tool_calls. */
static int get_tools(const Engine *e, const cJSON *o, Request *r, Error *err) {
    static const char *const words[] = {"auto", "none", "required", "any", NULL};
    const cJSON *choice = json_field(o, "tool_choice"), *function = json_field(choice, "function");
    const char *word = cJSON_GetStringValue(choice), *type;
    Generation *g = &r->g;
    r->several = 1;
    const cJSON *tools = json_field(o, "tools");
    if (tools && !(r->own_tools = tools_read(tools, err))) return -1;
    g->tools = r->own_tools ? r->own_tools : e->tools;
    if (get_bool(o, "parallel_tool_calls", &r->several, err)) return -1;
    if (!cJSON_GetArraySize(g->tools)) g->tools = NULL;
    /* Anthropic's {"type": "auto", "disable_parallel_tool_use": true} and its like. */
    type = cJSON_GetStringValue(json_field(choice, "type"));
    if (type && is_in(type, words)) word = type;
    if (cJSON_IsTrue(json_field(choice, "disable_parallel_tool_use"))) r->several = 0;
    if (!choice || (word && !strcmp(word, "auto"))) return 0;
    if (word && !strcmp(word, "none")) {
        g->tools = NULL;
        return 0;
    }
    r->must_call = 1;
    r->tool = cJSON_GetStringValue(json_field(function ? function : choice, "name"));
    if (r->tool) r->several = 0;
    else if (!word || (strcmp(word, "required") && strcmp(word, "any")))
        return fail(err, "tool_choice: must be none, auto, required or name a function");
    if (!g->tools) return fail(err, "tool_choice: there are no tools");
    if (r->tool && !tool_named(g->tools, r->tool))
        return fail(err, "tool_choice: no tool %.100s", r->tool);
    return 0;
}

/* Makes the schema in a field the schema of the answer.  schema: a tree or, as in vLLM, the text of
 * one.  is_own = 1: the tree was made here; r owns it if it becomes the answer's schema. */
static int set_schema(Request *r, const char *field, const cJSON *schema, int is_own, Error *err) {
    Error why;
    cJSON *parsed = NULL;
    if (cJSON_IsString(schema)) {
        parsed = json_value(schema->valuestring, strlen(schema->valuestring), &why);
        if (!parsed) return fail(err, "%s: %s", field, why.text);
    }
    const cJSON *tree = parsed ? parsed : schema;
    int bad = 0;
    if (!cJSON_IsObject(tree) && !cJSON_IsBool(tree)) bad = fail(err, "%s: not a schema", field);
    else if (r->schema && !cJSON_Compare(r->schema, tree, 1))
        bad = fail(err, "%s: another schema beside this one", field);
    if (!bad && !r->schema) {
        r->schema_field = field;
        if (parsed || is_own) r->own_schema = parsed ? parsed : (cJSON *)schema;
        r->schema = tree;
    }
    if (parsed && r->own_schema != parsed) cJSON_Delete(parsed);
    return bad;
}

/* A field asks for JSON without a schema: any object. */
static int set_any_object(Request *r, const char *field, Error *err) {
    cJSON *any = cJSON_CreateObject();
    cJSON_AddStringToObject(any, "type", "object");
    int bad = set_schema(r, field, any, 1, err);
    if (r->own_schema != any) cJSON_Delete(any);
    return bad;
}

static int get_response_format(const cJSON *format, Request *r, Error *err) {
    const char *type = cJSON_GetStringValue(json_field(format, "type"));
    const cJSON *inner = json_field(format, "json_schema");
    const cJSON *outer = json_field(format, "schema");
    const cJSON *schema = inner ? json_field(inner, "schema") : outer;
    if (inner && outer && !(schema && cJSON_Compare(schema, outer, 1)))
        return fail(err, "response_format.schema: beside another in json_schema");
    if (type && !strcmp(type, "text")) {
        if (inner || schema) return fail(err, "response_format.type: text beside a schema");
        return 0;
    }
    if (type && (!strcmp(type, "json_schema") || inner)) {
        if (!schema) return fail(err, "response_format.json_schema.schema: missing");
        return set_schema(r, "response_format", schema, 0, err);
    }
    if (!type || strcmp(type, "json_object"))
        return fail(err, "response_format.type: must be text, json_object or json_schema");
    if (schema) return set_schema(r, "response_format.schema", schema, 0, err);
    return set_any_object(r, "response_format", err);
}

/* vLLM's structured_outputs: {"json": schema} or {"json_object": true}, but nothing else. */
static int get_structured_outputs(const cJSON *o, Request *r, Error *err) {
    static const char *const other[] = {"regex", "choice", "grammar", "structural_tag",
                                        "whitespace_pattern"};
    static const char *const flags[] = {"disable_any_whitespace", "disable_additional_properties"};
    if (!cJSON_IsObject(o)) return fail(err, "structured_outputs: not an object");
    for (size_t i = 0; i < sizeof other / sizeof *other; i++)
        if (json_field(o, other[i]))
            return fail(err, "structured_outputs.%s: not supported", other[i]);
    for (size_t i = 0; i < sizeof flags / sizeof *flags; i++)
        if (cJSON_IsTrue(json_field(o, flags[i])))
            return fail(err, "structured_outputs.%s: not supported", flags[i]);
    const cJSON *schema = json_field(o, "json");
    if (schema) return set_schema(r, "structured_outputs.json", schema, 0, err);
    if (cJSON_IsTrue(json_field(o, "json_object")))
        return set_any_object(r, "structured_outputs", err);
    return 0;
}

/* Ollama's format: "json" or a schema; or what OpenAI has in response_format. */
static int get_ollama_format(const cJSON *format, Request *r, Error *err) {
    const char *word = cJSON_GetStringValue(format);
    if (word && !*word) return 0;
    if (word && strcmp(word, "json")) return fail(err, "format: must be json or a schema");
    const char *type = cJSON_GetStringValue(json_field(format, "type"));
    if (type && !strcmp(type, "json_schema")) return get_response_format(format, r, err);
    return word ? set_any_object(r, "format", err) : set_schema(r, "format", format, 0, err);
}

/* llama.cpp's json_schema: the schema itself, or OpenAI's {"name": …, "schema": the schema}. */
static const cJSON *schema_inside(const cJSON *json_schema) {
    const cJSON *schema = json_field(json_schema, "schema"), *item;
    if (!cJSON_IsObject(schema)) return json_schema;
    cJSON_ArrayForEach(item, json_schema)
        if (!is_in(item->string, known_of_json_schema)) return json_schema;
    return schema;
}

/* The schema of the content, from any of the fields that servers have for it, or else from the
 * option --json-schema. */
static int get_schema(const Engine *e, const cJSON *o, Request *r, Error *err) {
    const cJSON *format = json_field(o, "response_format");
    const cJSON *guided = json_field(o, "guided_json");
    const cJSON *structured = json_field(o, "structured_outputs");
    const cJSON *llama = schema_inside(json_field(o, "json_schema"));
    const cJSON *ollama = json_field(o, "format");
    if (format && get_response_format(format, r, err)) return -1;
    if (guided && set_schema(r, "guided_json", guided, 0, err)) return -1;
    if (structured && get_structured_outputs(structured, r, err)) return -1;
    if (llama && set_schema(r, "json_schema", llama, 0, err)) return -1;
    if (ollama && get_ollama_format(ollama, r, err)) return -1;
    if (r->schema && r->must_call)
        return fail(err, "%s: a schema beside a tool_choice that demands a call", r->schema_field);
    if (!format && !r->schema && !r->must_call && e->json_schema) {
        r->schema = e->json_schema;
        r->schema_field = "--json-schema";
    }
    if (r->schema && r->g.tools)
        buf_puts(&r->warnings, "the tools had no effect: beside a schema nothing is called\n");
    if ((r->schema || r->must_call) && (r->g.min_tokens || r->g.ignore_eos))
        buf_printf(&r->warnings, "%s had no effect: a schema ends the answer\n",
                   r->g.min_tokens ? "min_tokens" : "ignore_eos");
    if (r->g.chat.continue_final && r->must_call)
        return fail(err, "continue_final_message: not beside a demanded call");
    return 0;
}

/* ---- the request as a whole ---- */

/* Adds the system message of option -s, unless the request has one of its own. */
static void add_system(const Engine *e, cJSON *messages) {
    const cJSON *first = cJSON_GetArrayItem(messages, 0);
    if (!e->system || has_role(first, "system") || has_role(first, "developer")) return;
    cJSON_InsertItemInArray(messages, 0, chat_message("system", e->system));
}

/* If *o is a line of a batch file, with a custom_id or a body: makes *o its body, the request. */
static int get_batch(const cJSON **o, Request *r, Error *err) {
    const cJSON *id = json_field(*o, "custom_id"), *body = json_field(*o, "body");
    if ((!id && !body) || json_field(*o, "messages")) return 0;
    r->custom_id = id ? json_text(id) : xstrdup("null");
    if (id && !cJSON_IsString(id) && !cJSON_IsNumber(id))
        return fail(err, "custom_id: not a string or a number");
    const char *url = json_string(*o, "url");
    if (url && !strstr(url, "chat/completions"))
        return fail(err, "url: must be /v1/chat/completions");
    *o = body;
    if (cJSON_IsObject(body)) return 0;
    return fail(err, "body: %s", body ? "not an object" : "missing");
}

/* Whether U+FFFD stands in a string or a key of v, but for those in the tree `messages`. */
static int has_replacement(const cJSON *v, const cJSON *messages) {
    static const char replacement[] = "\xef\xbf\xbd";
    const cJSON *child;
    if (v == messages) return 0;
    if (v->string && strstr(v->string, replacement)) return 1;
    if (cJSON_IsString(v) && strstr(v->valuestring, replacement)) return 1;
    cJSON_ArrayForEach(child, v)
        if (has_replacement(child, messages)) return 1;
    return 0;
}

/* Parses a request's text.  In messages, as in the output of a tool, a NUL character becomes
 * U+FFFD, with a warning; it is an error elsewhere, as in a schema.  Then a U+FFFD there is refused
 * as well: it may have been a NUL. */
static cJSON *parse_text(const char *text, size_t n, Buf *warnings, Error *err) {
    char *mended = json_without_nul(text, n);
    cJSON *o = json_object(mended ? mended : text, n, err);
    const cJSON *body = json_field(o, "body"), *messages = json_field(o, "messages");
    if (!messages) messages = json_field(body, "messages");
    if (mended && o && has_replacement(o, messages)) {
        fail(err, "a NUL character outside of messages");
        cJSON_Delete(o);
        o = NULL;
    }
    if (mended) buf_puts(warnings, "a NUL character (\\u0000) became U+FFFD\n");
    free(mended);
    return o;
}

int request_parse(const Engine *e, const char *text, size_t n, Request *r, Error *err) {
    *r = (Request){.n = 1, .stream = e->stream};
    r->json = parse_text(text, n, &r->warnings, err);
    const cJSON *o = r->json;
    if (!o || get_batch(&o, r, err)) return -1;
    if (check_fields(o, r, err) || get_sampling(e, o, r, err) || get_limits(e, o, r, err) ||
        get_thinking(e, o, r, err) || get_tools(e, o, r, err) || get_schema(e, o, r, err) ||
        get_bool(o, "logprobs", &r->logprobs, err) ||
        get_whole(o, "top_logprobs", 0, 100, &r->top_logprobs, err) ||
        get_whole(o, "n", 1, 128, &r->n, err) || get_bool(o, "stream", &r->stream, err) ||
        get_bool(json_field(o, "stream_options"), "include_usage", &r->include_usage, err))
        return -1;
    if (r->top_logprobs > 0 && !r->logprobs)
        return fail(err, "top_logprobs: needs logprobs: true");
    if (r->stream && r->custom_id) return fail(err, "stream: not in a batch");
    cJSON *messages = cJSON_GetObjectItemCaseSensitive(o, "messages");
    if (!cJSON_IsArray(messages))
        return fail(err, "messages: %s", messages ? "not a list" : "missing");
    if (json_has_lone_surrogate(text, n))
        buf_puts(&r->warnings, "half of a surrogate pair (as \\ud800) became U+FFFD\n");
    add_system(e, messages);
    return conversation_prompt(e, messages, &r->g, &r->prompt, err);
}

void request_free(Request *r) {
    free(r->g.stop);
    free(r->g.stop_ids);
    free(r->bias);
    free(r->custom_id);
    generation_free(&r->g);
    prompt_free(&r->prompt);
    buf_free(&r->warnings);
    cJSON_Delete(r->own_tools);
    cJSON_Delete(r->own_schema);
    cJSON_Delete(r->json);
}
