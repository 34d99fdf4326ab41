#define FILE_NAME "tokenizer.json"
#include "fuzz_tokenizer.h"
