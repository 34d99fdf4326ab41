/* safetensors.h - maps the files of a checkpoint and checks their tensors.
 *
 * A file is: 8 bytes little-endian header length n; n bytes of JSON {"NAME": {"dtype": "BF16",
 * "shape": [4, 2], "data_offsets": [from, to]}, …, "__metadata__": {…}}; the data, from whose
 * beginning the offsets count.  The format does not align tensors: BF16 may be at any even address,
 * U8 at any address. */
#ifndef SAFETENSORS_H
#define SAFETENSORS_H

#include "util.h"

/* DT_OTHER: a tensor that this program cannot use. */
typedef enum {
    DT_OTHER, DT_F32, DT_BF16, DT_F16, DT_F8_E4M3, DT_U8, DT_I32, DT_I64, DT_N
} DType;
extern const char *const dtype_name[DT_N];
extern const int dtype_size[DT_N];     /* bytes */

typedef struct {
    const char *name;                   /* owned by the SafeTensors */
    const char *file;                   /* path of its file, owned by the SafeTensors */
    DType dtype;
    char called[16];                    /* the dtype as the file says it, cut off */
    int n_dims;                         /* 0 for a scalar */
    int64_t shape[4];
    const uint8_t *data;                /* in the mapping; check alignment before any cast */
    size_t n_bytes;
} Tensor;

/* Check that a tensor's shape is the first n_dims of [d0, d1, d2]; that its numbers are F32, BF16
 * or F16.  Return 0, or -1 with err. */
int check_shape(const Tensor *t, int n_dims, int64_t d0, int64_t d1, int64_t d2, Error *err);
int check_float(const Tensor *t, Error *err);

/* Adds a shape to out, as "[4, 2]". */
void put_shape(Buf *out, const int64_t *shape, int n_dims);

typedef struct SafeTensors SafeTensors;

/* Maps the files of a checkpoint: DIR/model.safetensors; without it, those that
 * DIR/model.safetensors.index.json names (the order of transformers, modeling_utils.py); if dir is
 * itself a file, that file.  Where neither is there, or the index names files or tensors that are
 * not there or lacks a shard, all *.safetensors of DIR are mapped, and safetensors_warning says so:
 * no shard may be missing, no tensor stand twice.  Checks every header against its file: lengths,
 * offsets, sizes, overlaps, gaps, names.  Reads nothing but the headers.  The caller closes the
 * result with safetensors_close.  Returns NULL with err. */
SafeTensors *safetensors_open(const char *dir, Error *err);
void safetensors_close(SafeTensors *st);

/* The tensor of that name, or NULL. */
const Tensor *safetensors_find(const SafeTensors *st, const char *name);

/* The array of all tensors, sorted by name; *n is their number.  It belongs to st. */
const Tensor *safetensors_all(const SafeTensors *st, int *n);

/* A line for the user that says why all *.safetensors were taken, or that shards were not, which
 * belongs to st; NULL: the files are those that the index names, or a single one. */
const char *safetensors_warning(const SafeTensors *st);

/* The bytes of all files together; the path of the first one, for messages. */
size_t safetensors_bytes(const SafeTensors *st);
const char *safetensors_file(const SafeTensors *st);

#endif
