/* Attention in 8 bits: self-attention of the encoder and cross-attention of the decoder. Softmax is in float32.
 *
 * Quantization: values per channel, queries per row, softmax weights per block of 128 keys in steps of 1/255 of the
 * largest weight of the block. Many small weights that matter together are therefore not rounded to zero. The encoder's
 * keys are quantized per row and its values per channel, both after their means are subtracted. The mean of the keys
 * shifts all scores of a query alike; the mean of the values is added to the result, since weights sum to one. The
 * decoder's keys are quantized per channel, and their steps are multiplied into the queries: fewer bytes are read.
 * Every variant includes this file once, after its vectors.
 */
#include <math.h>

#include "aligned.h"

enum {
  TASK_QUERIES = 60, /* per task */
  VECTORS = HEAD / WIDTH,
};
static const float LOG2_E = 1.44269504f; /* scores are multiplied by it: softmax is computed with powers of two */

/* Quantized keys and values of one head. */
typedef struct KeysValues {
  uint8_t *keys;       /* panels of 64 keys: [n / 64][16][64][4], 128 is zero */
  int8_t *values;      /* [n / 4][64][4] */
  char *prepared;      /* encoder: both for TILE_PRODUCTS, if they must be converted; otherwise NULL */
  float *key_step;     /* encoder: [n], one per key; decoder: NULL */
  float *channel_step; /* decoder: [64], one per channel of the keys; encoder: NULL */
  float *value_step;   /* [64] */
  float *mean;         /* [64], of the values, or NULL */
} KeysValues;

static void mean_of(const float *x, int64_t stride, int64_t n, float *to) {
  for (int j = 0; j < HEAD; j += WIDTH) {
    vf sum = vf_set1(0);
    for (int64_t t = 0; t < n; t++) sum = vf_add(sum, vf_load(x + t * stride + j));
    vf_store(to + j, vf_div(sum, vf_set1((float)n)));
  }
}

/* The quantization step of every channel of x [n, 64] after a mean is subtracted. */
static void step_of(const float *x, int64_t stride, int64_t n, const float *mean, float *step) {
  for (int j = 0; j < HEAD; j += WIDTH) {
    const vf middle = mean ? vf_load(mean + j) : vf_set1(0);
    vi max = vf_bits(vf_set1(LEAST));
    for (int64_t t = 0; t < n; t++)
      max = max_bits(max, vf_abs(vf_sub(vf_load(x + t * stride + j), middle)));
    vf_store(step + j, vf_div(vi_as_float(max), vf_set1(STEPS)));
  }
}

/* The largest magnitude in x [64] after a mean is subtracted. */
static float absmax(const float *x, const float *mean) {
  vi max = vf_bits(vf_set1(LEAST));
  for (int j = 0; j < HEAD; j += WIDTH)
    max = max_bits(max, vf_abs(vf_sub(vf_load(x + j), vf_load(mean + j))));
  return reduce_max_bits(max);
}

INLINE vi rounded(const float *x, const float *mean, const float *step, int j) {
  vf value = vf_load(x + j);
  if (mean) value = vf_sub(value, vf_load(mean + j));
  return vf_to_int(vf_div(value, vf_load(step + j)));
}

/* Packs keys [n, 64] as [n_all, 64], with one step per key or per channel. */
static void pack_keys(const float *keys, int64_t stride, int64_t n, int64_t n_all, const float *mean,
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
        const vi integers = rounded(keys + t * stride, mean, channel_step ? channel_step : step, j);
        const vi shifted = vi_add(integers, vi_set1(ZERO));
        store_low_bytes(bytes, shifted);
      }
      for (int i = 0; i < WIDTH; i += 4) memcpy(to + (j + i) * PANEL, bytes + i, 4);
    }
  }
}

/* Packs values [n, 64] as [n_all, 64], with one step per channel. */
static void pack_values(const float *values, int64_t stride, int64_t n, int64_t n_all, const float *mean,
                             float *step, int8_t *packed) {
  step_of(values, stride, n, mean, step);
  for (int64_t t = 0; t < n_all; t += 4)
    for (int j = 0; j < HEAD; j += WIDTH) {
      vi quads = vi_set1(0);
      for (int i = 0; i < 4 && t + i < n; i++) {
        const vi integers = rounded(values + (t + i) * stride, mean, step, j);
        const vi byte = vi_and(integers, vi_set1(255));
        quads = vi_or(quads, vi_shift_left(byte, 8 * i));
      }
      vi_store(packed + t * HEAD + 4 * j, quads);
    }
}

/* Queries of one tile, with the state of their softmax and their results, per row. */
typedef struct Tile {
  Signed queries[TILE][HEAD] __attribute__((aligned(64)));
  Unsigned weights[TILE][BLOCK] __attribute__((aligned(64)));
  float block_max[TILE][WIDTH] __attribute__((aligned(64))); /* of the scores, per vector element */
  float mixed[TILE][HEAD] __attribute__((aligned(64)));
  float step[TILE];         /* of the query, times the scale of the scores */
  int32_t zero_sum[TILE];   /* sum of the query times -128: removes the zero point of the keys */
  float max[TILE];          /* largest score of all keys */
  float block_weight[TILE]; /* 2 ^ (largest score of the block - largest score of all keys) */
  float total[TILE];        /* sum of the weights */
} Tile;

static void round_query(const float *query, const float *channel_step, float scale, Tile *tile, int row) {
  vf x[VECTORS];
  vi max = vf_bits(vf_set1(LEAST));
  for (int j = 0; j < VECTORS; j++) {
    x[j] = vf_load(query + WIDTH * j);
    if (channel_step) x[j] = vf_mul(x[j], vf_load(channel_step + WIDTH * j));
    max = max_bits(max, vf_abs(x[j]));
  }
  const float step = reduce_max_bits(max) / STEPS;
  if (!isfinite(step)) { /* no integers represent it: the whole result of the query is NaN */
    memset(tile->queries[row], 0, sizeof tile->queries[row]);
    tile->zero_sum[row] = 0;
    tile->step[row] = NAN;
    return;
  }
  vi sum = vi_set1(0);
  for (int j = 0; j < VECTORS; j++) {
    const vi integers = vf_to_int(vf_div(x[j], vf_set1(step)));
    store_signed(tile->queries[row] + WIDTH * j, integers);
    sum = vi_add(sum, integers);
  }
  tile->zero_sum[row] = (UNSIGNED_OFFSET - ZERO) * vi_reduce_add(sum);
  tile->step[row] = step * scale;
}

/* Computes scores [TILE, stride] of 16 * vectors keys, times LOG2_E, and updates block_max. */
INLINE void score_keys(const int rows, const int vectors, const int few, const void *keys, const float *key_step,
                       const float *added, Tile *tile, float *scores, int64_t stride) {
#define DECLARE(r, j) vi sum##r##j = vi_set1(rows > r ? tile->zero_sum[r] : 0);
  EACH(DECLARE)
#undef DECLARE
  TILE_PRODUCTS(ROWS, tile->queries[0], HEAD, keys, HEAD / 4, PANEL_NEXT, PANEL_BESIDE)
#define STORE_SCORE(r, j)                                                                  \
  if (USED(r, j)) {                                                                        \
    const vf plus = vf_mul(vf_load(added + WIDTH * j), vf_set1(LOG2_E));                   \
    vf scale = vf_set1(tile->step[r]);                                                     \
    if (key_step) scale = vf_mul(scale, vf_load(key_step + WIDTH * j));                    \
    const vf score = vf_fma(vi_to_float(sum##r##j), scale, plus);                          \
    vf_store(scores + r * stride + WIDTH * j, score);                                      \
    max = vf_max(j ? max : vf_load(tile->block_max[r]), score);                            \
    if (j == vectors - 1) vf_store(tile->block_max[r], max);                               \
  }
  vf max;
  EACH(STORE_SCORE)
#undef STORE_SCORE
}

/* Adds the weighted values of a block, of 16 * vectors channels; their steps are multiplied in at the end. */
INLINE void mix_values(const int rows, const int vectors, const int few, const void *values, Tile *tile, int channel) {
#define COLUMN(j) \
  const int8_t *first##j = (const int8_t *)values + PANEL_BESIDE * j; \
  const vi from##j = vectors > j ? from_offset(first##j, BLOCK / 4, PANEL_NEXT) : vi_set1(0);
#define DECLARE(r, j) vi sum##r##j = from##j;
  EACH_COLUMN(COLUMN) EACH(DECLARE)
#undef DECLARE
#undef COLUMN
  TILE_PRODUCTS(COLUMNS, tile->weights[0], BLOCK, values, BLOCK / 4, PANEL_NEXT, PANEL_BESIDE)
#define ADD_VALUES(r, j)                                                                   \
  if (USED(r, j)) {                                                                        \
    float *mixed = tile->mixed[r] + channel + WIDTH * j;                                   \
    const vf weight = vf_set1(tile->block_weight[r]);                                      \
    vf_store(mixed, vf_fma(vi_to_float(sum##r##j), weight, vf_load(mixed)));               \
  }
  EACH(ADD_VALUES)
#undef ADD_VALUES
}

/* Separate functions, so that the compiler has enough registers. */
typedef void (*ScoreKeys)(const void *, const float *, const float *, Tile *, float *, int64_t);
typedef void (*MixValues)(const void *, Tile *, int);
#define SIZES(suffix, rows, vectors, few)                                                                     \
  __attribute__((noinline)) static void score_keys_##suffix(const void *keys, const float *key_step,          \
                                                            const float *added, Tile *tile, float *scores,    \
                                                            int64_t stride) {                                 \
    score_keys(rows, vectors, few, keys, key_step, added, tile, scores, stride);                              \
  }                                                                                                           \
  __attribute__((noinline)) static void mix_values_##suffix(const void *values, Tile *tile, int channel) {    \
    mix_values(rows, vectors, few, values, tile, channel);                                                    \
  }
#define MANY(n) SIZES(n, n, TILE_COLUMNS / WIDTH, 0)
MANY(1) MANY(2) MANY(3) MANY(4) MANY(5) MANY(6)
static const ScoreKeys SCORE_KEYS[] = {NULL,         score_keys_1, score_keys_2, score_keys_3,
                                       score_keys_4, score_keys_5, score_keys_6};
static const MixValues MIX_VALUES[] = {NULL,         mix_values_1, mix_values_2, mix_values_3,
                                       mix_values_4, mix_values_5, mix_values_6};
#if FEW_ROWS
SIZES(one, 1, FEW_VECTORS(1), 1)
SIZES(two, 2, FEW_VECTORS(2), 1)
static const ScoreKeys SCORE_FEW[] = {NULL, score_keys_one, score_keys_two};
static const MixValues MIX_FEW[] = {NULL, mix_values_one, mix_values_two};
#endif

/* Keys and values for TILE_PRODUCTS that are converted once for all queries: values of each block after all keys. */
enum { PREPARED_KEYS = PREPARED_SIZE(HEAD / 4), PREPARED_VALUES = PREPARED_SIZE(BLOCK / 4) };

static void prepare_keys_values(const KeysValues *kv, int64_t n) {
  char *to = kv->prepared;
  for (int64_t key = 0; key < n; key += TILE_COLUMNS, to += PREPARED_KEYS)
    prepare_unsigned(kv->keys + key / PANEL * PANEL * HEAD + key % PANEL * 4, HEAD / 4, PANEL_NEXT, to);
  for (int64_t key = 0; key < n; key += BLOCK)
    for (int channel = 0; channel < HEAD; channel += TILE_COLUMNS, to += PREPARED_VALUES)
      prepare_signed(kv->values + key * HEAD + channel * 4, BLOCK / 4, PANEL_NEXT, to);
}

/* Scores of a panel of keys. */
static void score_panel(const int rows, const KeysValues *kv, int64_t panel, const float *added, Tile *tile,
                        float *scores, int64_t stride) {
#if FEW_ROWS
  if (rows <= FEW_ROWS && !kv->prepared) {
    for (int64_t key = panel; key < panel + PANEL; key += FEW_VECTORS(rows) * WIDTH)
      SCORE_FEW[rows](kv->keys + panel * HEAD + (key - panel) * 4, kv->key_step ? kv->key_step + key : NULL,
                      added + key, tile, scores + key - panel, stride);
    return;
  }
#endif
  char buffer[PREPARED_KEYS + 64] __attribute__((aligned(64)));
  for (int64_t key = panel; key < panel + PANEL; key += TILE_COLUMNS) {
    const uint8_t *packed = kv->keys + panel * HEAD + (key - panel) * 4;
    const void *keys = kv->prepared ? kv->prepared + key / TILE_COLUMNS * PREPARED_KEYS
                                    : prepare_unsigned(packed, HEAD / 4, PANEL_NEXT, buffer);
    SCORE_KEYS[rows](keys, kv->key_step ? kv->key_step + key : NULL, added + key, tile, scores + key - panel, stride);
  }
}

/* Adds the weighted values of a block of n keys in all. */
static void mix_block(const int rows, const KeysValues *kv, int64_t key, int64_t n, Tile *tile) {
#if FEW_ROWS
  if (rows <= FEW_ROWS && !kv->prepared) {
    for (int channel = 0; channel < HEAD; channel += FEW_VECTORS(rows) * WIDTH)
      MIX_FEW[rows](kv->values + key * HEAD + channel * 4, tile, channel);
    return;
  }
#endif
  char buffer[PREPARED_VALUES + 64] __attribute__((aligned(64)));
  const int64_t first = n / TILE_COLUMNS * PREPARED_KEYS + key / BLOCK * (HEAD / TILE_COLUMNS) * PREPARED_VALUES;
  for (int channel = 0; channel < HEAD; channel += TILE_COLUMNS) {
    const void *values =
        kv->prepared ? kv->prepared + first + channel / TILE_COLUMNS * PREPARED_VALUES
                     : prepare_signed(kv->values + key * HEAD + channel * 4, BLOCK / 4, PANEL_NEXT, buffer);
    MIX_VALUES[rows](values, tile, channel);
  }
}

/* 255 * 2 ^ x for x <= 0; relative error 1e-4. */
INLINE vf power(vf x) {
  const vf whole = vf_round(x);
  const vf part = vf_sub(x, whole);
  vf sum = vf_set1(255 * 0.0558011f);
  sum = vf_fma(sum, part, vf_set1(255 * 0.2402265f));
  sum = vf_fma(sum, part, vf_set1(255 * 0.6931472f));
  sum = vf_fma(sum, part, vf_set1(255));
  return vf_scale(sum, whole);
}

/* 2 ^ x for x <= 0, or NaN; relative error 2e-7. C libraries differ in the last bit of theirs. */
static float power_of_block(float x) {
  if (!(x > -126)) return x == x ? 0 : x;
  const int whole = (int)(x - 0.5f), bits = (whole + 127) << 23;
  const float part = x - (float)whole; /* -1/2 to 1/2 */
  float sum = 1.540353e-4f, scale;
  sum = fused(sum, part, 1.3333558e-3f);
  sum = fused(sum, part, 9.618129e-3f);
  sum = fused(sum, part, 5.550411e-2f);
  sum = fused(sum, part, 2.4022651e-1f);
  sum = fused(sum, part, 6.931472e-1f);
  sum = fused(sum, part, 1);
  memcpy(&scale, &bits, sizeof scale);
  return sum * scale;
}

/* Softmax weights of a block of keys in steps of 1/255 of the largest. Returns the sum of the rounded weights, so that
 * they sum to one after the division; NaN if any score is NaN. */
static float weigh(const float *scores, float max, Unsigned *weights) {
  vi sum = vi_set1(0), all = vi_set1(0);
  for (int t = 0; t < BLOCK; t += WIDTH) {
    const vf weight = power(vf_sub(vf_load(scores + t), vf_set1(max)));
    const vi integers = vf_to_int(weight);
    store_unsigned(weights + t, integers);
    sum = vi_add(sum, integers);
    all = vi_or(all, integers); /* a NaN becomes the most negative integer */
  }
  return vi_any_negative(all) ? NAN : (float)vi_reduce_add(sum);
}

/* Attention of `rows` queries to n keys, a multiple of BLOCK; scores: working memory for [TILE, n]. */
static void attend_tile(const KeysValues *kv, const float *added, int64_t n, float scale, int rows,
                             const float *const *queries, float *const *y, float *scores) {
  Tile tile;
  float block_max[n / BLOCK][TILE];
  for (int r = 0; r < rows; r++) {
    round_query(queries[r], kv->channel_step, scale, &tile, r);
    tile.max[r] = -INFINITY;
    tile.total[r] = 0;
    for (int j = 0; j < HEAD; j += WIDTH) vf_store(tile.mixed[r] + j, vf_set1(0));
  }
  for (int64_t key = 0; key < n; key += BLOCK) {
    for (int r = 0; r < rows; r++) vf_store(tile.block_max[r], vf_set1(-INFINITY));
    for (int64_t panel = key; panel < key + BLOCK; panel += PANEL)
      score_panel(rows, kv, panel, added, &tile, scores + panel, n);
    for (int r = 0; r < rows; r++) {
      block_max[key / BLOCK][r] = vf_reduce_max(vf_load(tile.block_max[r]));
      tile.max[r] = fmaxf(tile.max[r], block_max[key / BLOCK][r]);
    }
  }
  for (int64_t key = 0; key < n; key += BLOCK) {
    for (int r = 0; r < rows; r++) {
      const float max = block_max[key / BLOCK][r];
      tile.block_weight[r] = power_of_block(max - tile.max[r]);
      const float weight = weigh(scores + r * n + key, max, tile.weights[r]);
      tile.total[r] = fused(tile.block_weight[r], weight, tile.total[r]);
    }
    mix_block(rows, kv, key, n, &tile);
  }
  for (int r = 0; r < rows; r++) {
    const vf factor = vf_set1(1 / tile.total[r]);
    for (int j = 0; j < HEAD; j += WIDTH) {
      const vf mean = kv->mean ? vf_load(kv->mean + j) : vf_set1(0);
      const vf step = vf_mul(vf_load(kv->value_step + j), factor);
      vf_store(y[r] + j, vf_fma(vf_load(tile.mixed[r] + j), step, mean));
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
  kv.prepared = GROUPS == 1 ? NULL : (char *)(kv.mean + HEAD);
  return kv;
}

static void pack_head(void *data, size_t task) {
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
  if (kv.prepared) prepare_keys_values(&kv, call->n);
}

static void attend(void *data, size_t task) {
  const SelfCall *call = data;
  const Attention *args = call->args;
  const int64_t index = (int64_t)task / call->groups, state = args->n_head * HEAD;
  const int64_t audio = index / args->n_head, head = index % args->n_head;
  const int64_t first = (int64_t)task % call->groups * TASK_QUERIES, end = min64(first + TASK_QUERIES, args->n_queries);
  const KeysValues kv = kv_at(call, index);
  float scores[TILE * call->n] __attribute__((aligned(64)));
  for (int64_t row = first, rows; row < end; row += rows) {
    const float *queries[TILE];
    float *y[TILE];
    rows = rows_of_tile(end - row);
    for (int r = 0; r < rows; r++) {
      const int64_t position = args->positions ? args->positions[row + r] : row + r;
      queries[r] = args->qkv + (audio * args->n_keys + position) * 3 * state + head * HEAD;
      y[r] = args->y + (audio * args->n_queries + row + r) * state + head * HEAD;
    }
    attend_tile(&kv, call->added, call->n, SCORE_SCALE * LOG2_E, (int)rows, queries, y, scores);
  }
}

static int attention(const Attention *args, Threads threads) {
  const int64_t heads = args->n_audio * args->n_head, n = ceil_div(args->n_keys, BLOCK) * BLOCK;
  if (heads == 0 || args->n_keys == 0 || args->n_queries == 0) return 0;
  SelfCall call = {args, n, ceil_div(args->n_queries, TASK_QUERIES), 0, NULL, NULL};
  call.stride = 2 * n * HEAD + (n + 2 * HEAD) * sizeof(float) + n / TILE_COLUMNS * PREPARED_KEYS +
                n / BLOCK * (HEAD / TILE_COLUMNS) * PREPARED_VALUES; /* a multiple of 64: n is one of 128 */
  call.heads = alloc_aligned(call.stride * heads + n * sizeof(float));
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

static void pack_one(void *data, size_t task) {
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

static void pack_heads(const Pack *args, Threads threads) {
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
  kv.prepared = NULL;
  return kv;
}

/* Keys of an audio without whole blocks of padding at the end: a batch is as wide as its longest audio. Beside others,
 * they have weights of exactly 0. */
static int64_t count_keys(const float *added, int64_t n) {
  for (int64_t end = n; end > 0; end -= BLOCK) {
    const float *block = added + end - BLOCK;
    const int all_equal = !memcmp(block, block + 1, (BLOCK - 1) * sizeof *block);
    if (block[0] != MASKED || !all_equal) return end;
  }
  return n;
}

static void attend_cross(void *data, size_t task) {
  const Cross *args = data;
  const int64_t groups = ceil_div(args->n_queries, TASK_QUERIES), state = args->n_head * HEAD;
  const int64_t audio = (int64_t)task / groups / args->n_head, head = (int64_t)task / groups % args->n_head;
  const int64_t first = (int64_t)task % groups * TASK_QUERIES, end = min64(first + TASK_QUERIES, args->n_queries);
  const KeysValues kv = cross_kv_at(args, audio, head);
  const float *added = args->added + audio * args->n_keys;
  const int64_t n = count_keys(added, args->n_keys);
  float scores[TILE * n] __attribute__((aligned(64)));
  for (int64_t row = first, rows; row < end; row += rows) {
    const float *queries[TILE];
    float *y[TILE];
    rows = rows_of_tile(end - row);
    for (int r = 0; r < rows; r++) {
      const int64_t at = (audio * args->n_queries + row + r) * state + head * HEAD;
      queries[r] = args->queries + at;
      y[r] = args->y + at;
    }
    attend_tile(&kv, added, n, SCORE_SCALE * LOG2_E, (int)rows, queries, y, scores);
  }
}

static void cross_attention(const Cross *args, Threads threads) {
  const int64_t tasks = args->n_audio * args->n_head * ceil_div(args->n_queries, TASK_QUERIES);
  if (tasks && args->n_keys) threads.run(threads.context, attend_cross, tasks, (void *)args);
}

static void cross_scores(const Cross *args, const int64_t *heads, int64_t n_heads, const int64_t *rows,
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
        vf_store(tile.block_max[0], vf_set1(0));
        for (int64_t key = 0; key < args->n_keys; key += PANEL) {
          score_panel(1, &kv, key, args->added + audio * args->n_keys, &tile, scores, PANEL);
          for (int t = 0; t < PANEL; t++) y[key + t] = scores[t] / LOG2_E;
        }
      }
    }
}
