#define FILE_NAME "tokenizer.model"
#include "fuzz_tokenizer.h"
