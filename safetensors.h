/* safetensors.h - the files of a checkpoint as named, checked, mapped tensors.
 *
 * A file is: 8 bytes little-endian header length n; n bytes of JSON
 * {"NAME": {"dtype": "BF16", "shape": [4, 2], "data_offsets": [from, to]}, …, "__metadata__": {…}};
 * then the data, to which the offsets are relative.  Tensors stand in the mapping wherever they fell:
 * BF16 may be only 2-byte aligned, U8 data not at all. */
#ifndef SAFETENSORS_H
#define SAFETENSORS_H

#include "util.h"

typedef enum { DT_OTHER, DT_F32, DT_BF16, DT_F16, DT_F8_E4M3, DT_U8, DT_N } DType;
extern const char *const dtype_name[DT_N];
extern const int dtype_size[DT_N];     /* bytes */

typedef struct {
    const char *name;                   /* owned by the SafeTensors */
    const char *file;                   /* path of its file, likewise */
    DType dtype;
    int n_dims;                         /* 0 for a scalar */
    int64_t shape[4];
    const uint8_t *data;                /* in the mapping; check alignment before any cast */
    size_t n_bytes;
} Tensor;

typedef struct SafeTensors SafeTensors;

/* Maps DIR/model.safetensors.index.json's shards, or DIR/model.safetensors, or, where dir ends in ".safetensors", that
 * one file; and checks every header against its file: lengths, offsets, sizes, overlaps, holes, names.  Nothing but the
 * headers is read.
 * The caller closes it with safetensors_close.  Returns NULL with err. */
SafeTensors *safetensors_open(const char *dir, Error *err);
void safetensors_close(SafeTensors *st);

/* The tensor of that name, or NULL. */
const Tensor *safetensors_find(const SafeTensors *st, const char *name);

/* All tensors: *n and the array. */
const Tensor *safetensors_all(const SafeTensors *st, int *n);

/* Bytes of all files; the first file's path (for messages about what is missing). */
size_t safetensors_bytes(const SafeTensors *st);
const char *safetensors_file(const SafeTensors *st);

#endif
