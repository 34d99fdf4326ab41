/* panels.h - panels (PanelKernels in kernels.h) with vectors of one width.
 *
 * kernels_x86.c includes this file once for each set of kernels that has panels.  Before that it
 * defines these macros, which this file takes back at its end:
 *
 *     SET             the target attribute of the set's functions
 *     NAME(f)         what function f is called in this set
 *     LANES           32-bit lanes of a vector, which are rows of W: 16 or 8
 *     SHORT_SUMS      1: with 8 bits, products are first added up in 16 bits, those of 16 columns
 *
 * It also defines the functions that differ: NAME(dot), and for LANES lanes load_some, transpose,
 * join_halves, put_words and put_block_scales. */

/* BY_LANES(f): what function f is called for vectors of so many lanes.  V(add_epi32) is an
 * intrinsic, WHOLE(or) one that takes the vector as a whole.
 *
 * TILE_TOKENS: tokens that meet two vectors of rows at a time.  AVX-512 has 32 registers: with 4
 * tokens 24 of them are the three sums of panel_tile.  AVX2 has 16: 8 of them are integer sums,
 * three have words of the rows and of a token, and the other sums lie in memory.  With 6 tokens
 * NVFP4 of 16 bits was 2 to 10 % slower with AVX2, with AVX-VNNI and without, from 32 tokens on,
 * and a fifth slower with 8; with 8 bits and AVX-VNNI 256 tokens were 6 % faster (Zen 5). */
#define TILE_TOKENS 4
#if LANES == 16
#define BY_LANES(f) f##16
#define Ints __m512i
#define Floats __m512
#define V(op) _mm512_##op
#define WHOLE(op) _mm512_##op##_si512
#else
#define BY_LANES(f) f##8
#define Ints __m256i
#define Floats __m256
#define V(op) _mm256_##op
#define WHOLE(op) _mm256_##op##_si256
#endif

/* Puts the scales of group k of LANES rows into a panel, and returns the rows' zero points, each
 * repeated in every BITS bits of its lane. */
SET INLINE Ints NAME(put_group)(int BITS, const Groups *from, int k, float *scale) {
    _Alignas(64) int32_t zero[LANES];
    for (int r = 0; r < LANES; r++) {
        scale[r] = from->scale[r][k];
        zero[r] = from->zero[r][k];
    }
    Ints z = *(const Ints *)zero;
    z = WHOLE(or)(z, V(slli_epi32)(z, 16));
    return BITS == 16 ? z : WHOLE(or)(z, V(slli_epi32)(z, 8));
}

/* 16 columns of BF16 of LANES rows, two to a word, as integers of 13 bits, and their scales, which
 * are powers of 2.  A NaN or an infinity makes the scale NaN. */
SET INLINE void NAME(put_bf16)(const Ints v[8], uint32_t (*word)[PANEL_ROWS], float *scale) {
    const Ints no_sign = V(set1_epi16)(0x7fff), least = V(set1_epi32)(12), one = V(set1_epi32)(1);
    Ints most = WHOLE(setzero)();
    UNROLL for (int i = 0; i < 8; i++) most = V(max_epu16)(most, WHOLE(and)(v[i], no_sign));
    most = V(max_epu16)(most, V(srli_epi32)(most, 16));
    /* The largest exponent becomes that of 2048.  255 is that of a NaN or an infinity: then all
     * bits of the scale become 1, which is NaN. */
    Ints exponent = WHOLE(and)(V(srli_epi32)(most, 7), V(set1_epi32)(255));
    Ints is_nan = V(srli_epi32)(V(add_epi32)(exponent, one), 8);
    exponent = V(max_epi32)(exponent, least);
    Ints down = V(slli_epi32)(V(sub_epi32)(exponent, V(set1_epi32)(11)), 23);
    Ints up = V(slli_epi32)(V(sub_epi32)(V(set1_epi32)(265), exponent), 23);
    *(Ints *)scale = WHOLE(or)(down, V(sub_epi32)(WHOLE(setzero)(), is_nan));
    UNROLL for (int i = 0; i < 8; i++) {
        Ints odd = WHOLE(and)(v[i], V(set1_epi32)((int)0xffff0000));
        Floats even = (Floats)V(slli_epi32)(v[i], 16);
        even = V(mul_ps)(even, (Floats)up);
        odd = V(cvtps_epi32)(V(mul_ps)((Floats)odd, (Floats)up));
        *(Ints *)word[i] = BY_LANES(join_halves)(V(cvtps_epi32)(even), V(slli_epi32)(odd, 16));
    }
}

/* Columns c .. c + columns - 1 of all rows, PANEL_COLS at most, and zeros up to a multiple of
 * BLOCK. */
SET INLINE void NAME(fill_panel)(int BITS, int KIND, const PanelRows *w, int c, int columns,
                                 Panel *p) {
    int size = KIND ? KIND : 4, at_once = 32 * LANES / size;
    int end = (columns + BLOCK - 1) / BLOCK * BLOCK;
    for (int r = 0; r < PANEL_ROWS; r += LANES) {
        Ints less = WHOLE(setzero)();
        Groups groups;
        float (*scale)[PANEL_ROWS] = (float (*)[PANEL_ROWS])&p->scale[0][r];
        int log2 = KIND == 4 || KIND == 8 ? group_log2(w->four) : 0;
        if (log2) load_groups(LANES, KIND, w, r, c >> log2, &groups);
        if (!KIND) BY_LANES(put_block_scales)(w, r, c, columns / 16, scale);
        for (int from = 0; from < end; from += at_once) {
            Ints v[LANES];
            int bytes = (columns - from) * size / 8;
            UNROLL for (int i = 0; i < LANES; i++)
                v[i] = BY_LANES(load_some)(row_of(w, r + i) + (c + from) * size / 8, bytes);
            BY_LANES(transpose)(v);
            for (int i = 0; KIND == 16 && i < LANES / 8; i++)
                NAME(put_bf16)(v + 8 * i, (uint32_t (*)[PANEL_ROWS])&p->word[from / 2 + 8 * i][r],
                               scale[from / 16 + i]);
            UNROLL for (int i = 0; KIND != 16 && i < LANES; i++) {
                int at = from + i * 32 / size;
                if (KIND && at % BLOCK == 0 && at < columns)
                    less = NAME(put_group)(BITS, &groups, at >> log2, scale[at / BLOCK]);
                BY_LANES(put_words)(BITS, KIND, v[i], less,
                                (uint32_t (*)[PANEL_ROWS])&p->word[at * BITS / 32][r]);
            }
        }
    }
}

/* What the sum of 16 columns of a token begins with: with 8 bits, whose weights are too large by 16
 * or 128, that many times the activations, negative.  `record` is that of these columns. */
SET INLINE Ints NAME(first_sum)(int BITS, int KIND, int half, const uint8_t *record) {
    if (BITS == 16) return WHOLE(setzero)();
    Ints less = V(set1_epi32)(((const int *)(record + BLOCK + 4))[half]);
    return KIND == 8 ? V(slli_epi32)(less, 3) : less;
}

/* `groups` times 32 columns of 2 * LANES rows, `first` and the next ones, into the sums of T
 * tokens. */
SET INLINE void NAME(panel_tile)(int BITS, int KIND, int T, const Panel *p, int first, int groups,
                                 const uint8_t *const *x, float (*sum)[PANEL_ROWS]) {
    int WIDE = KIND == 4 || KIND == 8;  /* a scale is that of 32 columns */
    int SHORT = SHORT_SUMS && BITS == 8;
    Floats s[TILE_TOKENS][2], part[TILE_TOKENS][2];
    Ints n[TILE_TOKENS][2];
    UNROLL for (int t = 0; t < T; t++)
        UNROLL for (int v = 0; v < 2; v++) s[t][v] = V(loadu_ps)(sum[t] + first + LANES * v);
    for (int g = 0; g < groups; g++) {
        const uint8_t *a[TILE_TOKENS];
        UNROLL for (int t = 0; t < T; t++) a[t] = x[t] + g * RECORD(BITS);
        UNROLL for (int half = 0; half < 2; half++) {
            const uint32_t (*word)[PANEL_ROWS] = p->word + (2 * g + half) * BITS / 2;
            Ints some[TILE_TOKENS][2];
            UNROLL for (int t = 0; t < T; t++)
                UNROLL for (int v = 0; v < 2; v++) {
                    Ints first = NAME(first_sum)(BITS, KIND, half, a[t]);
                    if (half && WIDE) first = V(add_epi32)(n[t][v], first);
                    some[t][v] = SHORT ? WHOLE(setzero)() : first;
                }
            UNROLL for (int i = 0; i < BITS / 2; i++) {
                Ints w[2];
                UNROLL for (int v = 0; v < 2; v++)
                    w[v] = *(const Ints *)(word[i] + first + LANES * v);
                UNROLL for (int t = 0; t < T; t++) {
                    const int *own = (const int *)(a[t] + half * BLOCK * BITS / 16);
                    Ints y = V(set1_epi32)(own[i]);
                    UNROLL for (int v = 0; v < 2; v++)
                        some[t][v] = NAME(dot)(BITS, some[t][v], w[v], y);
                }
            }
            UNROLL for (int t = 0; t < T; t++)
                UNROLL for (int v = 0; v < 2; v++) {
                    if (SHORT) {
                        Ints first = NAME(first_sum)(BITS, KIND, half, a[t]);
                        if (half && WIDE) first = V(add_epi32)(n[t][v], first);
                        some[t][v] = V(madd_epi16)(some[t][v], V(set1_epi16)(1));
                        some[t][v] = V(add_epi32)(some[t][v], first);
                    }
                    n[t][v] = some[t][v];
                }
            if (WIDE && !half) continue;
            UNROLL for (int v = 0; v < 2; v++) {
                int k = WIDE ? g : 2 * g + half;
                Floats scale = V(load_ps)(p->scale[k] + first + LANES * v);
                UNROLL for (int t = 0; t < T; t++) {
                    Floats whole = V(cvtepi32_ps)(n[t][v]);
                    part[t][v] = half && !WIDE ? V(fmadd_ps)(whole, scale, part[t][v])
                                               : V(mul_ps)(whole, scale);
                }
            }
        }
        UNROLL for (int t = 0; t < T; t++) {
            Floats own = V(set1_ps)(*(const float *)(a[t] + BLOCK * BITS / 8));
            UNROLL for (int v = 0; v < 2; v++) s[t][v] = V(fmadd_ps)(part[t][v], own, s[t][v]);
        }
    }
    UNROLL for (int t = 0; t < T; t++)
        UNROLL for (int v = 0; v < 2; v++) V(storeu_ps)(sum[t] + first + LANES * v, s[t][v]);
}

/* All rows of a panel with T tokens. */
SET INLINE void NAME(panel_rows)(int BITS, int KIND, int T, const Panel *p, int groups,
                                 const uint8_t *const *x, float (*sum)[PANEL_ROWS]) {
    for (int r = 0; r < PANEL_ROWS; r += 2 * LANES)
        NAME(panel_tile)(BITS, KIND, T, p, r, groups, x, sum);
}

/* A panel meets all tokens.  x.x: the first record that it meets, of token 0. */
SET INLINE void NAME(panel_tokens)(int BITS, int KIND, const Panel *p, int groups, PanelTokens x,
                                   float (*sum)[PANEL_ROWS]) {
    for (int t = 0; t < x.n; t += TILE_TOKENS) {
        const uint8_t *a[TILE_TOKENS];
        for (int i = 0; i < TILE_TOKENS && t + i < x.n; i++)
            a[i] = x.x + (x.token ? x.token[t + i] : t + i) * x.size;
        switch (x.n - t) {
        case 1: NAME(panel_rows)(BITS, KIND, 1, p, groups, a, sum + t); break;
        case 2: NAME(panel_rows)(BITS, KIND, 2, p, groups, a, sum + t); break;
        case 3: NAME(panel_rows)(BITS, KIND, 3, p, groups, a, sum + t); break;
        default: NAME(panel_rows)(BITS, KIND, TILE_TOKENS, p, groups, a, sum + t);
        }
    }
}

/* A panel is filled, stays in the nearest cache, and meets all tokens.  x.x: the first record of
 * token 0 that has BITS bits. */
SET INLINE void NAME(multiply_panels)(int BITS, const PanelRows *w, PanelTokens x,
                                      float (*sum)[PANEL_ROWS]) {
    Panel p;
    int kind = kind_of(w);
    memset(sum, 0, (size_t)x.n * sizeof *sum);
    for (int c = 0; c < w->cols; c += PANEL_COLS, x.x += PANEL_COLS / BLOCK * RECORD(BITS)) {
        int columns = w->cols - c < PANEL_COLS ? w->cols - c : PANEL_COLS;
        int groups = (columns + BLOCK - 1) / BLOCK;
        /* NVFP4 can end in the middle of 32 columns. */
        if (!kind && columns % BLOCK) memset(p.scale[columns / 16], 0, sizeof p.scale[0]);
        if (kind == 0) NAME(fill_panel)(BITS, 0, w, c, columns, &p);
        else if (kind == 4) NAME(fill_panel)(BITS, 4, w, c, columns, &p);
        else if (kind == 8) NAME(fill_panel)(BITS, 8, w, c, columns, &p);
        else if (BITS == 16) NAME(fill_panel)(BITS, 16, w, c, columns, &p);
        fetch_panel(kind, w, c);
        /* With 16 bits, INT8 is multiplied as INT4 is, and BF16 as NVFP4. */
        if (BITS == 8 && kind == 8) NAME(panel_tokens)(BITS, 8, &p, groups, x, sum);
        else if (kind == 4 || kind == 8) NAME(panel_tokens)(BITS, 4, &p, groups, x, sum);
        else NAME(panel_tokens)(BITS, 0, &p, groups, x, sum);
    }
}

SET static void NAME(panels)(const PanelRows *w, PanelTokens x, float (*sum)[PANEL_ROWS]) {
    NAME(multiply_panels)(16, w, x, sum);
}

/* Activations of 8 bits, but for BF16, and for INT8 where 16 bits do not hold its sums. */
SET static void NAME(panels8)(const PanelRows *w, PanelTokens x, float (*sum)[PANEL_ROWS]) {
    int kind = kind_of(w);
    if (kind != 16 && !(kind == 8 && SHORT_SUMS)) {
        NAME(multiply_panels)(8, w, x, sum);
        return;
    }
    x.x += records8(w->cols);
    NAME(panels)(w, x, sum);
}

#undef SET
#undef NAME
#undef LANES
#undef SHORT_SUMS
#undef BY_LANES
#undef TILE_TOKENS
#undef Ints
#undef Floats
#undef V
#undef WHOLE
