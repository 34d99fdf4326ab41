/* nvfp4.cu - rows of BF16 and NVFP4 matrices times a vector, on the GPU.
 *
 * Decoding reads every weight once and does almost nothing with it: the time is the time to read it.  A warp takes a row,
 * its lanes take neighbouring pieces of 16 or 8 bytes, so that all reads are whole and coalesced, and NVFP4 is expanded in
 * registers.  The vector lies in shared memory, as float32. */

/* Lane's part of row . y, BF16.  cols is a multiple of 8, or the columns are taken one by one. */
__device__ static inline float dot_bf16(const uint8_t *row, int cols, const float *y, int lane) {
    float sum = 0;
    if (cols % 8) {
        for (int c = lane; c < cols; c += 32) sum += __uint_as_float((uint32_t)((const uint16_t *)row)[c] << 16) * y[c];
        return sum;
    }
    for (int c = lane * 8; c < cols; c += 32 * 8) {
        uint4 w = *(const uint4 *)(row + 2 * c);
        const uint32_t pair[4] = {w.x, w.y, w.z, w.w};
        for (int k = 0; k < 4; k++) {
            sum += __uint_as_float(pair[k] << 16) * y[c + 2 * k];
            sum += __uint_as_float(pair[k] & 0xffff0000u) * y[c + 2 * k + 1];
        }
    }
    return sum;
}

/* A nibble's E2M1 (sign, two bits of exponent, one of mantissa) as float: its bits moved to float's place, then the bias
 * corrected by a multiplication, which makes 0.5, a subnormal, right too. */
__device__ static inline float e2m1_to_float(uint32_t nibble) {
    return __uint_as_float((nibble & 8) << 28 | (nibble & 7) << 22) * 0x1p126f;
}

/* Lane's part of row . y for one block of 16 columns: 8 bytes of nibbles, y from the block's first column on. */
__device__ static inline float dot_block(const uint8_t *nibbles, const float *y, float scale) {
    uint2 w = *(const uint2 *)nibbles;
    const uint32_t half[2] = {w.x, w.y};
    float sum = 0;
    for (int h = 0; h < 2; h++)
        for (int k = 0; k < 8; k++) sum += e2m1_to_float(half[h] >> 4 * k & 15) * scale * y[8 * h + k];
    return sum;
}

/* row r of w . y[0..cols), for all lanes of the warp. */
__device__ static inline float dot_row(const Weight &w, int r, const float *y) {
    int lane = threadIdx.x % 32;
    float sum = 0;
    if (w.dtype == DT_BF16) sum = dot_bf16(w.data + (size_t)r * w.cols * 2, w.cols, y, lane);
    else if (w.dtype == DT_U8) {
        const uint8_t *row = w.data + (size_t)r * (w.cols / 2), *scales = w.block_scale + (size_t)r * (w.cols / 16);
        for (int b = lane; b < w.cols / 16; b += 32) sum += dot_block(row + 8 * b, y + 16 * b, e4m3_to_float(scales[b]) * w.scale);
    } else
        for (int c = lane; c < w.cols; c += 32) sum += ((const float *)w.data)[(size_t)r * w.cols + c] * y[c];
    return warp_sum(sum);
}

/* out[t][r] = w[r] . x[t]: the plain product.  grid (blocks of rows, tokens); shared: 4 * cols bytes. */
__global__ static void multiply_kernel(Weight w, const float *x, float *out) {
    DYNAMIC_SHARED(float, y);
    const float *from = x + (size_t)blockIdx.y * w.cols;
    for (int i = threadIdx.x; i < w.cols; i += blockDim.x) y[i] = from[i];
    __syncthreads();
    int r = blockIdx.x * WARPS + threadIdx.x / 32;
    if (r >= w.rows) return;
    float sum = dot_row(w, r, y);
    if (threadIdx.x % 32 == 0) out[(size_t)blockIdx.y * w.rows + r] = sum;
}

/* x[t] = a row of the embedding * scale.  grid tokens. */
__global__ static void embed_kernel(Weight table, const int *ids, float *x, float scale) {
    int t = blockIdx.x;
    size_t row = (size_t)ids[t] * table.cols;
    for (int i = threadIdx.x; i < table.cols; i += blockDim.x) {
        float v;
        if (table.dtype == DT_F32) v = ((const float *)table.data)[row + i];
        else if (table.dtype == DT_BF16) v = __uint_as_float((uint32_t)((const uint16_t *)table.data)[row + i] << 16);
        else v = e2m1_to_float(table.data[(row + i) / 2] >> 4 * (i % 2) & 15) * (e4m3_to_float(table.block_scale[(row + i) / 16]) * table.scale);
        x[(size_t)t * table.cols + i] = v * scale;
    }
}
