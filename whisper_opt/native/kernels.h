/* Products and attention in 8 bits for processors with AVX-512 VNNI.
 *
 * All tensors are row-major and of float32 unless said otherwise. Functions return 0, or -1 where there is
 * no memory.
 */
#ifndef WHISPER_OPT_KERNELS_H
#define WHISPER_OPT_KERNELS_H

#include <stdint.h>
#include <stddef.h>

/* Calls work(data, i) for every i below count, on several threads, and returns when all are done. */
typedef struct Threads {
  const void *context;
  void (*run)(const void *context, void (*work)(void *data, size_t i), size_t count, void *data);
} Threads;

/* Weights of a product in the order in which they are read. */
typedef struct Packed {
  int64_t n_in, n_out;
  int8_t *panels;     /* [ceil(n_out / 64)][n_in / 4][64][4] */
  int32_t *sums;      /* [n_out, rounded up to 64], of every column */
} Packed;

enum { HEAD = 64 };

/* Packs int8 [n_in, n_out]; n_in must be a multiple of 16. */
int pack_weight(Packed *packed, const int8_t *weight, int64_t n_in, int64_t n_out);
void free_weight(Packed *packed);

/* y [n_rows, n_out] = (residual +) x' @ weight * scale + bias, where x' are x, its layer normalization or its
 * GELU, rounded row by row to 8 bits as whisper_opt/export/quantize.py says. */
typedef struct Linear {
  const Packed *weight;
  int64_t n_rows;
  const float *x;            /* [n_rows, n_in] */
  const float *gain, *shift; /* [n_in] of the normalization, or NULL */
  int gelu;                  /* instead of the normalization */
  const float *scale, *bias; /* [n_out] */
  const float *residual;     /* [n_rows, n_out] or NULL */
  float *y;
} Linear;
int linear(const Linear *what, Threads threads);

/* y [n_audio, n_queries, n_head * 64]: every query attends to all keys of its audio. */
typedef struct Attention {
  int64_t n_audio, n_head, n_keys, n_queries;
  const float *qkv;          /* [n_audio, n_keys, 3 * n_head * 64]: queries, keys, values */
  const int64_t *positions;  /* [n_queries], whose queries are meant, or NULL: all */
  const float *unscaled;     /* [n_keys], added to scores before they are divided by 8, or NULL */
  float *y;
} Attention;
int attention(const Attention *what, Threads threads);

#endif
