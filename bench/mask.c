/* mask.c - how long the masks of structured output take, with the real vocabulary and without a model.
 *
 *     make build/bench_mask && build/bench_mask DIR_WITH_TOKENIZER_JSON
 *
 * Follows the tokens of a plausible answer to each schema and times schema_mask before each of them: first with nothing
 * cached, then again as in the next answer, in microseconds. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../json.h"
#include "../schema.h"

static const struct { const char *name, *schema, *answer; } cases[] = {
    {"a record",
     "{\"type\":\"object\",\"properties\":{\"name\":{\"type\":\"string\",\"maxLength\":60},\"age\":{\"type\":\"integer\",\"minimum\":0,\"maximum\":150},"
     "\"email\":{\"type\":\"string\",\"format\":\"email\"},\"tags\":{\"type\":\"array\",\"items\":{\"enum\":[\"new\",\"regular\",\"lost\"]},\"maxItems\":5},"
     "\"note\":{\"type\":\"string\"}},\"required\":[\"name\",\"age\",\"note\"],\"additionalProperties\":false}",
     "{\"name\": \"Margarete Steiff\", \"age\": 62, \"email\": \"m.steiff@example.com\", \"tags\": [\"regular\", \"new\"], \"note\": \"She asked twice whether "
     "the blue one, which is \\\"sold out\\\", will be back before Christmas; promised to call.\"}"},
    {"a list of records",
     "{\"type\":\"array\",\"items\":{\"type\":\"object\",\"properties\":{\"city\":{\"type\":\"string\"},\"population\":{\"type\":\"integer\",\"minimum\":1},"
     "\"area\":{\"type\":\"number\",\"minimum\":0},\"capital\":{\"type\":\"boolean\"}},\"required\":[\"city\",\"population\",\"area\",\"capital\"]}}",
     "[\n  {\"city\": \"Oslo\", \"population\": 709037, \"area\": 454.1, \"capital\": true},\n  {\"city\": \"Bergen\", \"population\": 291940, \"area\": 464.7, "
     "\"capital\": false},\n  {\"city\": \"Trondheim\", \"population\": 212660, \"area\": 342.2, \"capital\": false},\n  {\"city\": \"Stavanger\", "
     "\"population\": 148682, \"area\": 262.5, \"capital\": false}\n]"},
    {"any object", "{\"type\":\"object\"}",
     "{\"question\": \"What is a mixture of experts?\", \"answer\": {\"short\": \"A network that uses a few of its parts for each token.\", \"parts\": "
     "[\"router\", \"experts\"], \"year\": 1991, \"sure\": true}, \"sources\": [{\"title\": \"Adaptive mixtures of local experts\", \"pages\": \"79-87\"}]}"},
    {"a tree",
     "{\"$ref\":\"#/$defs/node\",\"$defs\":{\"node\":{\"type\":\"object\",\"properties\":{\"value\":{\"type\":\"string\"},\"children\":{\"type\":\"array\","
     "\"items\":{\"$ref\":\"#/$defs/node\"}}},\"required\":[\"value\"]}}}",
     "{\"value\": \"animals\", \"children\": [{\"value\": \"mammals\", \"children\": [{\"value\": \"whales\"}, {\"value\": \"bats\"}]}, {\"value\": \"birds\", "
     "\"children\": [{\"value\": \"owls and their relatives\"}]}]}"},
};

static int by_size(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return x < y ? -1 : x > y;
}

int main(int argc, char **argv) {
    Error err;
    Tokenizer *t = argc == 2 ? tokenizer_open(argv[1], &err) : NULL;
    if (!t) return fprintf(stderr, "%s\n", argc == 2 ? err.text : "usage: bench_mask DIR"), 1;
    int end = tokenizer_control(t, "<turn|>");
    double start = seconds();
    Pieces *p = pieces_new(t, tokenizer_n_vocab(t), &end, 1);
    printf("%d tokens, tree built in %.0f ms\n\n", tokenizer_n_vocab(t), 1e3 * (seconds() - start));
    printf("| schema | compiled | tokens | first answer: median | p90 | all | later answers: median | p90 | all |\n| --- | --- | --- | --- | --- | --- | --- | --- | --- |\n");
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        cJSON *json = cJSON_Parse(cases[i].schema);
        Ids ids = {0};
        start = seconds();
        Schema *s = schema_new(p, json, &err);
        double compiled = seconds() - start;
        if (!s) return fprintf(stderr, "%s\n", err.text), 1;
        tokenizer_encode(t, cases[i].answer, strlen(cases[i].answer), 0, &ids);
        printf("| %s | %.2f ms | %d", cases[i].name, 1e3 * compiled, ids.n);
        for (int round = 0; round < 2; round++) {
            double *took = xmalloc(ids.n * sizeof *took), all = 0;
            int state = schema_begin(s);
            for (int k = 0; k < ids.n; k++) {
                start = seconds();
                const uint64_t *mask = schema_mask(s, state, 10000, NULL);
                int next = schema_next(s, state, ids.id[k]);
                all += took[k] = seconds() - start;
                if (!(mask[ids.id[k] / 64] >> ids.id[k] % 64 & 1) || next < 0) return fprintf(stderr, "%s: token %d is not allowed\n", cases[i].name, k), 1;
                state = next;
            }
            qsort(took, ids.n, sizeof *took, by_size);
            printf(" | %.1f µs | %.1f µs | %.1f ms", 1e6 * took[ids.n / 2], 1e6 * took[ids.n * 9 / 10], 1e3 * all);
            free(took);
        }
        printf(" |\n");
        schema_free(s);
        ids_free(&ids);
        cJSON_Delete(json);
    }
    pieces_free(p);
    tokenizer_free(t);
    return 0;
}
