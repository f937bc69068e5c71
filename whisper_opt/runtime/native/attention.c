/* Attention in 8 bits: self-attention of the encoder and cross-attention of the decoder. Softmax is in float32.
 *
 * Quantization: values per channel, queries per row, softmax weights per block of 128 keys in steps of 1/255 of the
 * largest weight of the block. Many small weights that matter together are therefore not rounded to zero. The encoder's
 * keys are quantized per row and its values per channel, both after their means are subtracted. The mean of the keys
 * shifts all scores of a query alike; the mean of the values is added to the result, since weights sum to one. The
 * decoder's keys are quantized per channel, and their steps are multiplied into the queries: fewer bytes are read.
 */
#include "aligned.h"
#include "kernels.h"

#include <math.h>

#include "tile.h"

enum {
  TASK_QUERIES = 60, /* per task */
  VECTORS = HEAD / WIDTH,
};
static const float LOG2_E = 1.44269504f; /* scores are multiplied by it: softmax is computed with powers of two */

/* Quantized keys and values of one head. */
typedef struct KeysValues {
  uint8_t *keys;       /* panels of 64 keys: [n / 64][16][64][4], 128 is zero */
  int8_t *values;      /* [n / 4][64][4] */
  float *key_step;     /* encoder: [n], one per key; decoder: NULL */
  float *channel_step; /* decoder: [64], one per channel of the keys; encoder: NULL */
  float *value_step;   /* [64] */
  float *mean;         /* [64], of the values, or NULL */
} KeysValues;

VNNI static void mean_of(const float *x, int64_t stride, int64_t n, float *to) {
  for (int j = 0; j < HEAD; j += WIDTH) {
    __m512 sum = _mm512_setzero_ps();
    for (int64_t t = 0; t < n; t++) sum = _mm512_add_ps(sum, _mm512_loadu_ps(x + t * stride + j));
    _mm512_storeu_ps(to + j, _mm512_div_ps(sum, _mm512_set1_ps((float)n)));
  }
}

/* The quantization step of every channel of x [n, 64] after a mean is subtracted. */
VNNI static void step_of(const float *x, int64_t stride, int64_t n, const float *mean, float *step) {
  for (int j = 0; j < HEAD; j += WIDTH) {
    const __m512 middle = mean ? _mm512_loadu_ps(mean + j) : _mm512_setzero_ps();
    __m512i max = _mm512_castps_si512(_mm512_set1_ps(LEAST));
    for (int64_t t = 0; t < n; t++)
      max = max_bits(max, _mm512_abs_ps(_mm512_sub_ps(_mm512_loadu_ps(x + t * stride + j), middle)));
    _mm512_storeu_ps(step + j, _mm512_div_ps(_mm512_castsi512_ps(max), _mm512_set1_ps(STEPS)));
  }
}

/* The largest magnitude in x [64] after a mean is subtracted. */
VNNI static float absmax(const float *x, const float *mean) {
  __m512i max = _mm512_castps_si512(_mm512_set1_ps(LEAST));
  for (int j = 0; j < HEAD; j += WIDTH)
    max = max_bits(max, _mm512_abs_ps(_mm512_sub_ps(_mm512_loadu_ps(x + j), _mm512_loadu_ps(mean + j))));
  return reduce_max_bits(max);
}

VNNI_INLINE __m512i rounded(const float *x, const float *mean, const float *step, int j) {
  __m512 value = _mm512_loadu_ps(x + j);
  if (mean) value = _mm512_sub_ps(value, _mm512_loadu_ps(mean + j));
  return _mm512_cvtps_epi32(_mm512_div_ps(value, _mm512_loadu_ps(step + j)));
}

/* Packs keys [n, 64] as [n_all, 64], with one step per key or per channel. */
VNNI static void pack_keys(const float *keys, int64_t stride, int64_t n, int64_t n_all, const float *mean,
                           float *key_step, float *channel_step, uint8_t *packed) {
  float step[HEAD];
  if (channel_step) step_of(keys, stride, n, NULL, channel_step);
  for (int64_t t = 0; t < n_all; t++) {
    uint8_t *to = packed + t / PANEL * PANEL * HEAD + t % PANEL * 4;
    if (key_step) {
      key_step[t] = t < n ? absmax(keys + t * stride, mean) / STEPS : 0;
      for (int j = 0; j < HEAD; j++) step[j] = key_step[t];
    }
    for (int j = 0; j < HEAD; j += WIDTH) {
      uint8_t bytes[WIDTH] = {0};
      if (t < n) {
        const __m512i integers = rounded(keys + t * stride, mean, channel_step ? channel_step : step, j);
        const __m512i shifted = _mm512_add_epi32(integers, _mm512_set1_epi32(ZERO));
        _mm_storeu_si128((void *)bytes, _mm512_cvtepi32_epi8(shifted));
      }
      for (int i = 0; i < WIDTH; i += 4) memcpy(to + (j + i) * PANEL, bytes + i, 4);
    }
  }
}

/* Packs values [n, 64] as [n_all, 64], with one step per channel. */
VNNI static void pack_values(const float *values, int64_t stride, int64_t n, int64_t n_all, const float *mean,
                             float *step, int8_t *packed) {
  step_of(values, stride, n, mean, step);
  for (int64_t t = 0; t < n_all; t += 4)
    for (int j = 0; j < HEAD; j += WIDTH) {
      __m512i quads = _mm512_setzero_si512();
      for (int i = 0; i < 4 && t + i < n; i++) {
        const __m512i integers = rounded(values + (t + i) * stride, mean, step, j);
        const __m512i byte = _mm512_and_si512(integers, _mm512_set1_epi32(255));
        quads = _mm512_or_si512(quads, _mm512_sllv_epi32(byte, _mm512_set1_epi32(8 * i)));
      }
      _mm512_storeu_si512(packed + t * HEAD + 4 * j, quads);
    }
}

/* Queries of one tile, with the state of their softmax and their results, per row. */
typedef struct Tile {
  int8_t queries[TILE][HEAD] __attribute__((aligned(64)));
  uint8_t weights[TILE][BLOCK] __attribute__((aligned(64)));
  float block_max[TILE][WIDTH] __attribute__((aligned(64))); /* of the scores, per vector element */
  float mixed[TILE][HEAD] __attribute__((aligned(64)));
  float step[TILE];         /* of the query, times the scale of the scores */
  int32_t zero_sum[TILE];   /* sum of the query times -128: removes the zero point of the keys */
  float max[TILE];          /* largest score of all keys */
  float block_weight[TILE]; /* 2 ^ (largest score of the block - largest score of all keys) */
  float total[TILE];        /* sum of the weights */
} Tile;

VNNI static void round_query(const float *query, const float *channel_step, float scale, Tile *tile, int row) {
  __m512 x[VECTORS];
  __m512i max = _mm512_castps_si512(_mm512_set1_ps(LEAST));
  for (int j = 0; j < VECTORS; j++) {
    x[j] = _mm512_loadu_ps(query + WIDTH * j);
    if (channel_step) x[j] = _mm512_mul_ps(x[j], _mm512_loadu_ps(channel_step + WIDTH * j));
    max = max_bits(max, _mm512_abs_ps(x[j]));
  }
  const float step = reduce_max_bits(max) / STEPS;
  if (!isfinite(step)) { /* no integers represent it: the whole result of the query is NaN */
    memset(tile->queries[row], 0, HEAD);
    tile->zero_sum[row] = 0;
    tile->step[row] = NAN;
    return;
  }
  __m512i sum = _mm512_setzero_si512();
  for (int j = 0; j < VECTORS; j++) {
    const __m512i integers = _mm512_cvtps_epi32(_mm512_div_ps(x[j], _mm512_set1_ps(step)));
    _mm_store_si128((void *)(tile->queries[row] + WIDTH * j), _mm512_cvtepi32_epi8(integers));
    sum = _mm512_add_epi32(sum, integers);
  }
  tile->zero_sum[row] = -ZERO * _mm512_reduce_add_epi32(sum);
  tile->step[row] = step * scale;
}

/* Computes scores [TILE, stride] of a panel of keys, times LOG2_E, and updates block_max. */
VNNI_INLINE void score_panel(const int rows, const uint8_t *keys, const float *key_step, const float *added,
                             Tile *tile, float *scores, int64_t stride) {
#define DECLARE(r, j) __m512i sum##r##j = _mm512_set1_epi32(rows > r ? tile->zero_sum[r] : 0);
  EACH(DECLARE)
#undef DECLARE
  TILE_PRODUCTS(tile->queries[0], HEAD, keys, HEAD / 4, SIGNED_ROW)
#define STORE_SCORE(r, j)                                                                          \
  if (rows > r) {                                                                                  \
    const __m512 plus = _mm512_mul_ps(_mm512_loadu_ps(added + WIDTH * j), _mm512_set1_ps(LOG2_E)); \
    __m512 scale = _mm512_set1_ps(tile->step[r]);                                                  \
    if (key_step) scale = _mm512_mul_ps(scale, _mm512_loadu_ps(key_step + WIDTH * j));             \
    const __m512 score = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum##r##j), scale, plus);              \
    _mm512_store_ps(scores + r * stride + WIDTH * j, score);                                       \
    max = _mm512_max_ps(j ? max : _mm512_load_ps(tile->block_max[r]), score);                      \
    if (j == VECTORS - 1) _mm512_store_ps(tile->block_max[r], max);                                \
  }
  __m512 max;
  EACH(STORE_SCORE)
#undef STORE_SCORE
}

/* Adds the weighted values of a block; their steps are multiplied in at the end. */
VNNI_INLINE void mix_block(const int rows, const int8_t *values, Tile *tile) {
#define DECLARE(r, j) __m512i sum##r##j = _mm512_setzero_si512();
  EACH(DECLARE)
#undef DECLARE
  TILE_PRODUCTS(tile->weights[0], BLOCK, values, BLOCK / 4, SIGNED_PANEL)
#define ADD_VALUES(r, j)                                                                                   \
  if (rows > r) {                                                                                          \
    float *mixed = tile->mixed[r] + WIDTH * j;                                                             \
    const __m512 weight = _mm512_set1_ps(tile->block_weight[r]);                                           \
    _mm512_store_ps(mixed, _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum##r##j), weight, _mm512_load_ps(mixed))); \
  }
  EACH(ADD_VALUES)
#undef ADD_VALUES
}

/* Separate functions, so that the compiler has enough registers. */
typedef void (*ScorePanel)(const uint8_t *, const float *, const float *, Tile *, float *, int64_t);
typedef void (*MixBlock)(const int8_t *, Tile *);
#define SIZES(n)                                                                                            \
  VNNI __attribute__((noinline)) static void score_panel_##n(const uint8_t *keys, const float *key_step,    \
                                                             const float *added, Tile *tile, float *scores, \
                                                             int64_t stride) {                              \
    score_panel(n, keys, key_step, added, tile, scores, stride);                                            \
  }                                                                                                         \
  VNNI __attribute__((noinline)) static void mix_block_##n(const int8_t *values, Tile *tile) {              \
    mix_block(n, values, tile);                                                                             \
  }
SIZES(1) SIZES(2) SIZES(3) SIZES(4) SIZES(5) SIZES(6)
static const ScorePanel SCORE_PANELS[] = {NULL,          score_panel_1, score_panel_2, score_panel_3,
                                         score_panel_4, score_panel_5, score_panel_6};
static const MixBlock MIX_BLOCKS[] = {NULL,        mix_block_1, mix_block_2, mix_block_3,
                                     mix_block_4, mix_block_5, mix_block_6};

/* 255 * 2 ^ x for x <= 0; relative error 1e-4. */
VNNI_INLINE __m512 power(__m512 x) {
  const __m512 whole = _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  const __m512 part = _mm512_sub_ps(x, whole);
  __m512 sum = _mm512_set1_ps(255 * 0.0558011f);
  sum = _mm512_fmadd_ps(sum, part, _mm512_set1_ps(255 * 0.2402265f));
  sum = _mm512_fmadd_ps(sum, part, _mm512_set1_ps(255 * 0.6931472f));
  sum = _mm512_fmadd_ps(sum, part, _mm512_set1_ps(255));
  return _mm512_scalef_ps(sum, whole);
}

/* Softmax weights of a block of keys in steps of 1/255 of the largest. Returns the sum of the rounded weights, so that
 * they sum to one after the division; NaN if any score is NaN. */
VNNI static float weigh(const float *scores, float max, uint8_t *weights) {
  __m512i sum = _mm512_setzero_si512(), all = _mm512_setzero_si512();
  for (int t = 0; t < BLOCK; t += WIDTH) {
    const __m512 weight = power(_mm512_sub_ps(_mm512_load_ps(scores + t), _mm512_set1_ps(max)));
    const __m512i integers = _mm512_cvtps_epi32(weight);
    _mm_store_si128((void *)(weights + t), _mm512_cvtepi32_epi8(integers));
    sum = _mm512_add_epi32(sum, integers);
    all = _mm512_or_si512(all, integers); /* a NaN becomes the most negative integer */
  }
  return _mm512_movepi32_mask(all) ? NAN : (float)_mm512_reduce_add_epi32(sum);
}

/* Attention of `rows` queries to n keys, a multiple of BLOCK; scores: working memory for [TILE, n]. */
VNNI static void attend_tile(const KeysValues *kv, const float *added, int64_t n, float scale, int rows,
                             const float *const *queries, float *const *y, float *scores) {
  Tile tile;
  float block_max[n / BLOCK][TILE];
  for (int r = 0; r < rows; r++) {
    round_query(queries[r], kv->channel_step, scale, &tile, r);
    tile.max[r] = -INFINITY;
    tile.total[r] = 0;
    for (int j = 0; j < HEAD; j += WIDTH) _mm512_store_ps(tile.mixed[r] + j, _mm512_setzero_ps());
  }
  for (int64_t key = 0; key < n; key += BLOCK) {
    for (int r = 0; r < rows; r++) _mm512_store_ps(tile.block_max[r], _mm512_set1_ps(-INFINITY));
    for (int64_t panel = key; panel < key + BLOCK; panel += PANEL)
      SCORE_PANELS[rows](kv->keys + panel * HEAD, kv->key_step ? kv->key_step + panel : NULL,
                        added + panel, &tile, scores + panel, n);
    for (int r = 0; r < rows; r++) {
      block_max[key / BLOCK][r] = _mm512_reduce_max_ps(_mm512_load_ps(tile.block_max[r]));
      tile.max[r] = fmaxf(tile.max[r], block_max[key / BLOCK][r]);
    }
  }
  for (int64_t key = 0; key < n; key += BLOCK) {
    for (int r = 0; r < rows; r++) {
      const float max = block_max[key / BLOCK][r];
      tile.block_weight[r] = exp2f(max - tile.max[r]);
      tile.total[r] += tile.block_weight[r] * weigh(scores + r * n + key, max, tile.weights[r]);
    }
    MIX_BLOCKS[rows](kv->values + key * HEAD, &tile);
  }
  for (int r = 0; r < rows; r++) {
    const __m512 factor = _mm512_set1_ps(1 / tile.total[r]);
    for (int j = 0; j < HEAD; j += WIDTH) {
      const __m512 mean = kv->mean ? _mm512_loadu_ps(kv->mean + j) : _mm512_setzero_ps();
      const __m512 step = _mm512_mul_ps(_mm512_loadu_ps(kv->value_step + j), factor);
      _mm512_storeu_ps(y[r] + j, _mm512_fmadd_ps(_mm512_load_ps(tile.mixed[r] + j), step, mean));
    }
  }
}

/* Self-attention of the encoder. */

/* One call of `attention`. */
typedef struct SelfCall {
  const Attention *args;
  int64_t n;      /* keys, rounded up to whole blocks */
  int64_t groups; /* tasks per head */
  size_t stride;  /* bytes per head */
  uint8_t *heads;
  float *added;   /* [n] */
} SelfCall;

static KeysValues kv_at(const SelfCall *call, int64_t head) {
  KeysValues kv;
  kv.keys = call->heads + head * call->stride;
  kv.values = (int8_t *)(kv.keys + call->n * HEAD);
  kv.key_step = (float *)(kv.values + call->n * HEAD);
  kv.channel_step = NULL;
  kv.value_step = kv.key_step + call->n;
  kv.mean = kv.value_step + HEAD;
  return kv;
}

VNNI static void pack_head(void *data, size_t task) {
  const SelfCall *call = data;
  const Attention *args = call->args;
  const int64_t state = args->n_head * HEAD, stride = 3 * state, n = args->n_keys;
  const int64_t audio = (int64_t)task / args->n_head, head = (int64_t)task % args->n_head;
  const KeysValues kv = kv_at(call, task);
  const float *keys = args->qkv + audio * n * stride + state + head * HEAD, *values = keys + state;
  float mean[HEAD];
  mean_of(keys, stride, n, mean);
  pack_keys(keys, stride, n, call->n, mean, kv.key_step, NULL, kv.keys);
  mean_of(values, stride, n, kv.mean);
  pack_values(values, stride, n, call->n, kv.mean, kv.value_step, kv.values);
}

VNNI static void attend(void *data, size_t task) {
  const SelfCall *call = data;
  const Attention *args = call->args;
  const int64_t index = (int64_t)task / call->groups, state = args->n_head * HEAD;
  const int64_t audio = index / args->n_head, head = index % args->n_head;
  const int64_t first = (int64_t)task % call->groups * TASK_QUERIES, end = min64(first + TASK_QUERIES, args->n_queries);
  const KeysValues kv = kv_at(call, index);
  float scores[TILE * call->n] __attribute__((aligned(64)));
  for (int64_t row = first; row < end; row += TILE) {
    const float *queries[TILE];
    float *y[TILE];
    const int rows = (int)min64(end - row, TILE);
    for (int r = 0; r < rows; r++) {
      const int64_t position = args->positions ? args->positions[row + r] : row + r;
      queries[r] = args->qkv + (audio * args->n_keys + position) * 3 * state + head * HEAD;
      y[r] = args->y + (audio * args->n_queries + row + r) * state + head * HEAD;
    }
    attend_tile(&kv, call->added, call->n, SCORE_SCALE * LOG2_E, rows, queries, y, scores);
  }
}

int attention(const Attention *args, Threads threads) {
  const int64_t heads = args->n_audio * args->n_head, n = ceil_div(args->n_keys, BLOCK) * BLOCK;
  if (heads == 0 || args->n_keys == 0 || args->n_queries == 0) return 0;
  SelfCall call = {args, n, ceil_div(args->n_queries, TASK_QUERIES), 0, NULL, NULL};
  call.stride = 2 * n * HEAD + (n + 2 * HEAD) * sizeof(float); /* a multiple of 64: n is one of 128 */
  call.heads = alloc_aligned(call.stride * heads + ceil_div(n * sizeof(float), 64) * 64);
  if (!call.heads) return -1;
  call.added = (float *)(call.heads + call.stride * heads);
  for (int64_t t = 0; t < n; t++)
    call.added[t] = t >= args->n_keys ? MASKED : args->added ? args->added[t] : 0;
  threads.run(threads.context, pack_head, heads, &call);
  threads.run(threads.context, attend, heads * call.groups, &call);
  free_aligned(call.heads);
  return 0;
}

/* Cross-attention of the decoder. */

VNNI static void pack_one(void *data, size_t task) {
  const Pack *args = data;
  const int64_t state = args->n_head * HEAD, n = ceil_div(args->n, BLOCK) * BLOCK;
  const int64_t audio = (int64_t)task / args->n_head, head = (int64_t)task % args->n_head;
  const float *x = args->x + audio * args->n * state + head * HEAD;
  uint8_t *packed = args->packed + task * n * HEAD;
  float *step = args->step + task * HEAD;
  if (args->keys)
    pack_keys(x, state, args->n, n, NULL, NULL, step, packed);
  else
    pack_values(x, state, args->n, n, NULL, step, (int8_t *)packed);
}

void pack_heads(const Pack *args, Threads threads) {
  threads.run(threads.context, pack_one, args->n_audio * args->n_head, (void *)args);
}

static KeysValues cross_kv_at(const Cross *args, int64_t audio, int64_t head) {
  const int64_t index = audio * args->n_head + head;
  KeysValues kv;
  kv.keys = (uint8_t *)args->keys + index * args->n_keys * HEAD;
  kv.values = args->values ? (int8_t *)args->values + index * args->n_keys * HEAD : NULL;
  kv.key_step = NULL;
  kv.channel_step =
      (float *)args->steps + (((audio * args->n_layer + args->layer) * 2) * args->n_head + head) * HEAD;
  kv.value_step = kv.channel_step + args->n_head * HEAD;
  kv.mean = NULL;
  return kv;
}

VNNI static void attend_cross(void *data, size_t task) {
  const Cross *args = data;
  const int64_t groups = ceil_div(args->n_queries, TASK_QUERIES), state = args->n_head * HEAD;
  const int64_t audio = (int64_t)task / groups / args->n_head, head = (int64_t)task / groups % args->n_head;
  const int64_t first = (int64_t)task % groups * TASK_QUERIES, end = min64(first + TASK_QUERIES, args->n_queries);
  const KeysValues kv = cross_kv_at(args, audio, head);
  float scores[TILE * args->n_keys] __attribute__((aligned(64)));
  for (int64_t row = first; row < end; row += TILE) {
    const float *queries[TILE];
    float *y[TILE];
    const int rows = (int)min64(end - row, TILE);
    for (int r = 0; r < rows; r++) {
      const int64_t at = (audio * args->n_queries + row + r) * state + head * HEAD;
      queries[r] = args->queries + at;
      y[r] = args->y + at;
    }
    attend_tile(&kv, args->added + audio * args->n_keys, args->n_keys, SCORE_SCALE * LOG2_E, rows, queries, y, scores);
  }
}

void cross_attention(const Cross *args, Threads threads) {
  const int64_t tasks = args->n_audio * args->n_head * ceil_div(args->n_queries, TASK_QUERIES);
  if (tasks && args->n_keys) threads.run(threads.context, attend_cross, tasks, (void *)args);
}

VNNI void cross_scores(const Cross *args, const int64_t *heads, int64_t n_heads, const int64_t *rows,
                       int64_t n_rows) {
  const int64_t state = args->n_head * HEAD;
  float *y = args->y;
  for (int64_t audio = 0; audio < args->n_audio; audio++)
    for (int64_t h = 0; h < n_heads; h++) {
      const KeysValues kv = cross_kv_at(args, audio, heads[h]);
      for (int64_t i = 0; i < n_rows; i++, y += args->n_keys) {
        Tile tile;
        const float *query = args->queries + (audio * args->n_queries + rows[i]) * state + heads[h] * HEAD;
        float scores[PANEL] __attribute__((aligned(64)));
        round_query(query, kv.channel_step, SCORE_SCALE * LOG2_E, &tile, 0);
        _mm512_store_ps(tile.block_max[0], _mm512_setzero_ps());
        for (int64_t key = 0; key < args->n_keys; key += PANEL) {
          score_panel_1(kv.keys + key * HEAD, NULL, args->added + audio * args->n_keys + key, &tile, scores, PANEL);
          for (int t = 0; t < PANEL; t++) y[key + t] = scores[t] / LOG2_E;
        }
      }
    }
}
