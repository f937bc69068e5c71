/* Products with 8-bit and 4-bit weights, convolutions, layer normalization, attention in 8 bits, and log-mel.
 *
 * Every variant, the same code compiled for one instruction set, is a table of these functions; all variants read the
 * same layouts and compute the same bits.
 *
 * All tensors are row-major and of float32 unless noted. Functions return 0, or -1 if memory cannot be allocated.
 */
#ifndef WHISPER_OPT_KERNELS_H
#define WHISPER_OPT_KERNELS_H

#include <stdint.h>
#include <stddef.h>

#include "layout.h"

static inline int64_t min64(int64_t a, int64_t b) { return a < b ? a : b; }
static inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

/* run() calls work(data, i) for every i below count, on several threads, and returns when all calls are done. */
typedef struct Threads {
  void *context;
  void (*run)(void *context, void (*work)(void *data, size_t i), size_t count, void *data);
} Threads;

/* Weights of a product in the order in which the kernel reads them. */
typedef struct Packed {
  int64_t n_in, n_out;
  int64_t width;        /* columns per panel: those of a tile of the variant, a divisor of 64 */
  const int8_t *panels; /* [ceil(n_out / 64) * 64 / width][n_in / 4][width][4] */
  int8_t *copy;         /* the same, if it was made for this; NULL: the panels are those of the engine's file */
  int32_t *sums;        /* [n_out, rounded up to 64], of every column; NULL if weights have 4 or 16 bits */
  /* True: of the inputs 8 i + {0, 1, 4, 5} and 8 i + {2, 3, 6, 7} of every column, neither the positive nor the negative
   * weights add up to more than FOUR_LIMIT, so four products with unsigned bytes fit 16 bits. Only copies are checked. */
  int four_fit;
} Packed;

static const float SCORE_SCALE = 0.125f; /* 1 / sqrt(HEAD) */

/* Weights in panels of 64 columns, which must stay where they are if `width` is 64; n_in must be a multiple of 16. */
int use_panels(Packed *packed, const int8_t *panels, int64_t n_in, int64_t n_out, int64_t width);
/* Packs int8 [n_in, n_out], the layout of engines before format 5. */
int pack_weight(Packed *packed, const int8_t *weight, int64_t n_in, int64_t n_out, int64_t width);
/* Packs 4-bit weights [n_out, n_in / 32, 16], two per byte, the first in the low half, and float16 scales
 * [n_out, n_in / 32]: panels of 16 columns, in which a block of 32 inputs has NIBBLE_BYTES bytes. Its first 64 bytes
 * hold inputs 0 to 3 of every column in the low halves, and inputs 4 to 7 in the high halves. */
int pack_nibbles(Packed *packed, const uint8_t *weight, const uint16_t *scale, int64_t n_in, int64_t n_out);
/* Packs float16 weights [n_out, n_in] in panels of 16 columns, two inputs of a column side by side; n_in is even. */
int pack_halves(Packed *packed, const uint16_t *weight, int64_t n_in, int64_t n_out);
void free_weight(Packed *packed);
float half_as_float(uint16_t half); /* a float16 number */

/* The first column of a panel. */
static inline const int8_t *columns_at(const Packed *weight, int64_t column) {
  return weight->panels + column * weight->n_in;
}

/* y [n_rows, n_out] = (residual +) x' @ weight * scale + bias, where x' is x, its layer normalization or its
 * GELU, quantized to 8 bits per row (whisper_opt/export/quantization/int8.py). With 4-bit weights, which have their
 * scales beside them, x' is quantized per block. */
typedef struct Linear {
  const Packed *weight;
  int64_t n_rows;
  const float *x;            /* [n_rows, n_in] */
  const float *gain, *shift; /* [n_in] of the normalization, or NULL */
  int gelu;                  /* true: GELU instead of the normalization */
  const float *scale, *bias; /* [n_out]; scale is not used with 4-bit weights */
  const float *residual;     /* [n_rows, n_out] or NULL */
  float *y;
} Linear;

/* y [n_rows, n_out] = (x * shrink) @ weight * scale + x . mean: the output head. Every input is
 * quantized to two rows of 8 bits, the second of which is the rounding error of the first
 * (whisper_opt/export/graphs/head.py). With 4-bit weights inputs are quantized per block, and y is
 * [n_rows, n_out + n_special]: the scores of special tokens, x @ special, follow. */
typedef struct Output {
  const Packed *weight;
  int64_t n_rows;
  const float *x;             /* [n_rows, n_in] */
  const float *shrink, *mean; /* [n_in] */
  const float *scale;         /* [n_out], or NULL */
  const Packed *special;      /* float16, or NULL */
  float *y;
} Output;

/* Layer normalization of rows, float32. The products above normalize their inputs themselves. */
typedef struct LayerNorm {
  int64_t n_rows, n;
  const float *x;            /* [n_rows, n] */
  const float *gain, *shift; /* [n] */
  float *y;                  /* [n_rows, n] */
} LayerNorm;

/* GELU of a convolution of three frames. Sums are exact: see CONV_LIMIT. */
typedef struct Conv {
  int64_t n_audio, n_frames, n_channels, n_out, stride; /* n_channels: a multiple of 16, n_out: of 64 */
  const float *x;            /* [n_audio, n_frames, n_channels] */
  const int16_t *weight;     /* [n_out / 16, 3 * n_channels / 2, 16, 2] */
  const float *scale, *bias; /* [n_out] */
  float *y;                  /* [n_audio, ceil(n_frames / stride), n_out] */
} Conv;

/* Self-attention of the encoder, y [n_audio, n_queries, n_head * 64]; queries attend to all keys of their audio. */
typedef struct Attention {
  int64_t n_audio, n_head, n_keys, n_queries;
  const float *qkv;         /* [n_audio, n_keys, 3 * n_head * 64]: queries, keys, values */
  const int64_t *positions; /* [n_queries], positions of the queries, or NULL: all */
  const float *added;       /* [n_keys], added to the scores, or NULL */
  float *y;
} Attention;

/* Self-attention of the decoder, y [n_seq, n_new, n_head * 64]: the new tokens of a row are at the positions from its
 * start on; each attends to all positions up to its own. */
typedef struct SelfAttention {
  int64_t n_seq, n_head, n_new, capacity;
  const float *qkv;     /* [n_seq, n_new, 3 * n_head * 64] */
  const int64_t *start; /* [n_seq], from 0 to capacity */
  float *keys, *values; /* [n_seq, n_head, capacity, 64]; those of the new tokens are written */
  float *y;
} SelfAttention;

/* Quantizes keys or values of the cross-attention per channel. */
typedef struct Pack {
  int64_t n_audio, n_head, n;
  const float *x;  /* [n_audio, n, n_head * 64] */
  int keys;
  uint8_t *packed; /* keys [n_audio, n_head, n' / 64, 16, 64, 4] with zero point 128, or signed values
                      [n_audio, n_head, n' / 4, 64, 4]; n' is n rounded up to whole blocks */
  float *step;     /* [n_audio, n_head, 64] */
} Pack;

/* Cross-attention of the decoder: y [n_audio, n_queries, n_head * 64]. */
typedef struct Cross {
  int64_t n_audio, n_head, n_keys, n_queries; /* n_keys: a multiple of BLOCK */
  int64_t n_layer, layer;
  const float *queries; /* [n_audio, n_queries, n_head * 64] */
  const uint8_t *keys;  /* of one layer, as `pack_heads` writes them */
  const int8_t *values;
  const float *steps;   /* [n_audio, n_layer, 2, n_head, 64], of keys and values */
  const float *added;   /* [n_audio, n_keys], added to the scores; MASKED if there is no key */
  float *y;
} Cross;

/* Log-mel spectrogram: frames [n_mels, n_frames] and the clamp, 8 below their maximum, before they are scaled
 * (whisper_opt/audio/features.py). Returns 1 if a power is not finite. Frames are centred at multiples of HOP_LENGTH;
 * samples are reflected at the first one and followed by zeros. */
typedef struct LogMel {
  int64_t n_samples, n_frames, n_mels;
  const float *samples;
  const float *window;                 /* [N_FFT] */
  const float *turns;                  /* [N_FFT, 2]: exp(-2 pi i n / N_FFT) */
  const int32_t *first_bin, *n_bins;   /* [n_mels]: where the filters are not zero */
  const float *weights;                /* [sum of n_bins] */
  float *frames, *floor;
} LogMel;

/* One variant. */
typedef struct Kernels {
  const char *name; /* of WHISPER_OPT_KERNELS */
  int64_t width;    /* columns per panel of weights */
  int (*linear)(const Linear *args, Threads threads);
  int (*output_head)(const Output *args, Threads threads);
  int (*linear4)(const Linear *args, Threads threads); /* with 4-bit weights */
  int (*output_head4)(const Output *args, Threads threads);
  void (*layer_norm)(const LayerNorm *args, Threads threads);
  void (*convolution)(const Conv *args, Threads threads);
  int (*attention)(const Attention *args, Threads threads);
  void (*self_attention)(const SelfAttention *args, Threads threads);
  void (*pack_heads)(const Pack *args, Threads threads);
  void (*cross_attention)(const Cross *args, Threads threads);
  int (*log_mel)(const LogMel *args);
  /* Scores of the cross-attention, y [n_audio, n_heads, n_rows, n_keys], of some heads and queries. */
  void (*cross_scores)(const Cross *args, const int64_t *heads, int64_t n_heads, const int64_t *rows, int64_t n_rows);
} Kernels;

#define KERNELS(label)                                                                                       \
  {label, TILE_COLUMNS, linear, output_head, linear4, output_head4, layer_norm, convolution, attention,      \
   self_attention, pack_heads, cross_attention, log_mel, cross_scores}

#endif
