/* Attention in 8 bits: the encoder's, and the decoder's to what the encoder heard. Softmax is in float32.
 *
 * Values are rounded by channel, queries one by one, weights in steps of 1/255 of the largest of 128 keys: so what is
 * far less than the loudest key of all, but much by being many, is not lost. The encoder's keys are rounded one by one,
 * after means are taken out of them, which moves all scores of a query alike, and of values, which is given back, for
 * weights sum to one. The decoder's keys are rounded by channel, and their steps multiplied into queries: they
 * cost less to read.
 */
#include "kernels.h"

#include <math.h>
#include <stdlib.h>

#include "tile.h"

enum {
  QUERIES = 60, /* of one task */
  VECTORS = HEAD / LANES,
};
static const float OCTAVES = 1.44269504f; /* of a factor of e: weights are powers of two here */

/* Keys and values of a head. */
typedef struct Heard {
  uint8_t *keys;      /* panels of 64 keys: [n / 64][16][64][4], 128 is zero */
  int8_t *values;     /* [n / 4][64][4] */
  float *key_step;    /* the encoder's, [n]; the decoder's NULL */
  float *channel_step; /* of keys: the decoder's, [64]; the encoder's NULL */
  float *value_step;  /* [64] */
  float *mean;        /* [64], of the values, or NULL */
} Heard;

VNNI static void mean_of(const float *x, int64_t stride, int64_t n, float *to) {
  for (int j = 0; j < HEAD; j += LANES) {
    __m512 sum = _mm512_setzero_ps();
    for (int64_t t = 0; t < n; t++) sum = _mm512_add_ps(sum, _mm512_loadu_ps(x + t * stride + j));
    _mm512_storeu_ps(to + j, _mm512_div_ps(sum, _mm512_set1_ps((float)n)));
  }
}

/* What a step of every channel of x [n, 64], less a mean, is worth. */
VNNI static void step_of(const float *x, int64_t stride, int64_t n, const float *mean, float *step) {
  for (int j = 0; j < HEAD; j += LANES) {
    const __m512 middle = mean ? _mm512_loadu_ps(mean + j) : _mm512_setzero_ps();
    __m512i most = _mm512_castps_si512(_mm512_set1_ps(LEAST));
    for (int64_t t = 0; t < n; t++)
      most = larger(most, _mm512_abs_ps(_mm512_sub_ps(_mm512_loadu_ps(x + t * stride + j), middle)));
    _mm512_storeu_ps(step + j, _mm512_div_ps(_mm512_castsi512_ps(most), _mm512_set1_ps(STEPS)));
  }
}

/* The largest magnitude in x [64], less a mean. */
VNNI static float loudest(const float *x, const float *mean) {
  __m512i most = _mm512_castps_si512(_mm512_set1_ps(LEAST));
  for (int j = 0; j < HEAD; j += LANES)
    most = larger(most, _mm512_abs_ps(_mm512_sub_ps(_mm512_loadu_ps(x + j), _mm512_loadu_ps(mean + j))));
  return largest(most);
}

VNNI_INLINE __m512i rounded(const float *x, const float *mean, const float *step, int j) {
  __m512 value = _mm512_loadu_ps(x + j);
  if (mean) value = _mm512_sub_ps(value, _mm512_loadu_ps(mean + j));
  return _mm512_cvtps_epi32(_mm512_div_ps(value, _mm512_loadu_ps(step + j)));
}

/* Packs keys [n, 64] as [n_all, 64], each one or each channel in steps of its own. */
VNNI static void pack_keys(const float *keys, int64_t stride, int64_t n, int64_t n_all, const float *mean,
                           float *key_step, float *channel_step, uint8_t *packed) {
  float step[HEAD];
  if (channel_step) step_of(keys, stride, n, NULL, channel_step);
  for (int64_t t = 0; t < n_all; t++) {
    uint8_t *to = packed + t / PANEL * PANEL * HEAD + t % PANEL * 4;
    if (key_step) {
      key_step[t] = t < n ? loudest(keys + t * stride, mean) / STEPS : 0;
      for (int j = 0; j < HEAD; j++) step[j] = key_step[t];
    }
    for (int j = 0; j < HEAD; j += LANES) {
      uint8_t bytes[LANES] = {0};
      if (t < n) {
        const __m512i integers = rounded(keys + t * stride, mean, channel_step ? channel_step : step, j);
        const __m512i shifted = _mm512_add_epi32(integers, _mm512_set1_epi32(ZERO));
        _mm_storeu_si128((void *)bytes, _mm512_cvtepi32_epi8(shifted));
      }
      for (int i = 0; i < LANES; i += 4) memcpy(to + (j + i) * PANEL, bytes + i, 4);
    }
  }
}

/* The same of values. */
VNNI static void pack_values(const float *values, int64_t stride, int64_t n, int64_t n_all, const float *mean,
                             float *step, int8_t *packed) {
  step_of(values, stride, n, mean, step);
  for (int64_t t = 0; t < n_all; t += 4)
    for (int j = 0; j < HEAD; j += LANES) {
      __m512i quads = _mm512_setzero_si512();
      for (int i = 0; i < 4 && t + i < n; i++) {
        const __m512i integers = rounded(values + (t + i) * stride, mean, step, j);
        const __m512i byte = _mm512_and_si512(integers, _mm512_set1_epi32(255));
        quads = _mm512_or_si512(quads, _mm512_sllv_epi32(byte, _mm512_set1_epi32(8 * i)));
      }
      _mm512_storeu_si512(packed + t * HEAD + 4 * j, quads);
    }
}

/* Queries of one tile and what is known of them, by row. */
typedef struct Tile {
  int8_t queries[TILE][HEAD] __attribute__((aligned(64)));
  uint8_t weights[TILE][BLOCK] __attribute__((aligned(64)));
  float most[TILE][LANES] __attribute__((aligned(64))); /* scores of a block, by lane */
  float mixed[TILE][HEAD] __attribute__((aligned(64)));
  float step[TILE];  /* of the query, in octaves */
  int32_t sum[TILE]; /* of the query, times -128: what the zero of the keys adds */
  float top[TILE];   /* largest score of all */
  float share[TILE]; /* two to the power of: largest of the block less largest of all */
  float total[TILE]; /* of the weights */
} Tile;

VNNI static void round_query(const float *query, const float *channel_step, float scale, Tile *tile, int row) {
  __m512 x[VECTORS];
  __m512i most = _mm512_castps_si512(_mm512_set1_ps(LEAST));
  for (int j = 0; j < VECTORS; j++) {
    x[j] = _mm512_loadu_ps(query + LANES * j);
    if (channel_step) x[j] = _mm512_mul_ps(x[j], _mm512_loadu_ps(channel_step + LANES * j));
    most = larger(most, _mm512_abs_ps(x[j]));
  }
  const float step = largest(most) / STEPS;
  if (!isfinite(step)) { /* no integers stand for it: all that the query gives is NaN */
    memset(tile->queries[row], 0, HEAD);
    tile->sum[row] = 0;
    tile->step[row] = NAN;
    return;
  }
  __m512i sum = _mm512_setzero_si512();
  for (int j = 0; j < VECTORS; j++) {
    const __m512i integers = _mm512_cvtps_epi32(_mm512_div_ps(x[j], _mm512_set1_ps(step)));
    _mm_store_si128((void *)(tile->queries[row] + LANES * j), _mm512_cvtepi32_epi8(integers));
    sum = _mm512_add_epi32(sum, integers);
  }
  tile->sum[row] = -ZERO * _mm512_reduce_add_epi32(sum);
  tile->step[row] = step * scale;
}

/* Scores of a panel of keys in octaves [TILE, stride], and the largest so far. */
VNNI_INLINE void score_panel(const int rows, const uint8_t *keys, const float *key_step, const float *added,
                             Tile *tile, float *scores, int64_t stride) {
#define DECLARE(r, j) __m512i sum##r##j = _mm512_set1_epi32(rows > r ? tile->sum[r] : 0);
  EACH(DECLARE)
#undef DECLARE
  TILE_PRODUCTS(tile->queries[0], HEAD, keys, HEAD / 4, SIGNED_ROW)
#define SCORE(r, j)                                                                                  \
  if (rows > r) {                                                                                    \
    const __m512 plus = _mm512_mul_ps(_mm512_loadu_ps(added + LANES * j), _mm512_set1_ps(OCTAVES));  \
    __m512 worth = _mm512_set1_ps(tile->step[r]);                                                    \
    if (key_step) worth = _mm512_mul_ps(worth, _mm512_loadu_ps(key_step + LANES * j));               \
    const __m512 score = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum##r##j), worth, plus);                \
    _mm512_store_ps(scores + r * stride + LANES * j, score);                                         \
    most = _mm512_max_ps(j ? most : _mm512_load_ps(tile->most[r]), score);                           \
    if (j == VECTORS - 1) _mm512_store_ps(tile->most[r], most);                                      \
  }
  __m512 most;
  EACH(SCORE)
#undef SCORE
}

/* Adds the values of a block, weighted; their steps are multiplied in at the end. */
VNNI_INLINE void mix_block(const int rows, const int8_t *values, Tile *tile) {
#define DECLARE(r, j) __m512i sum##r##j = _mm512_setzero_si512();
  EACH(DECLARE)
#undef DECLARE
  TILE_PRODUCTS(tile->weights[0], BLOCK, values, BLOCK / 4, SIGNED_PANEL)
#define MIX(r, j)                                                                                       \
  if (rows > r) {                                                                                       \
    float *mixed = tile->mixed[r] + LANES * j;                                                          \
    const __m512 share = _mm512_set1_ps(tile->share[r]);                                                \
    _mm512_store_ps(mixed, _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum##r##j), share, _mm512_load_ps(mixed))); \
  }
  EACH(MIX)
#undef MIX
}

/* Functions of their own, so that a compiler has registers enough. */
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
static const ScorePanel SCORE_PANEL[] = {NULL,          score_panel_1, score_panel_2, score_panel_3,
                                         score_panel_4, score_panel_5, score_panel_6};
static const MixBlock MIX_BLOCK[] = {NULL,        mix_block_1, mix_block_2, mix_block_3,
                                     mix_block_4, mix_block_5, mix_block_6};

/* 255 times two to the power of x, which is not above 0; error 1e-4 of it. */
VNNI_INLINE __m512 power(__m512 x) {
  const __m512 whole = _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  const __m512 part = _mm512_sub_ps(x, whole);
  __m512 sum = _mm512_set1_ps(255 * 0.0558011f);
  sum = _mm512_fmadd_ps(sum, part, _mm512_set1_ps(255 * 0.2402265f));
  sum = _mm512_fmadd_ps(sum, part, _mm512_set1_ps(255 * 0.6931472f));
  sum = _mm512_fmadd_ps(sum, part, _mm512_set1_ps(255));
  return _mm512_scalef_ps(sum, whole);
}

/* Weights of a block of keys in steps of 1/255 of the largest; returns their sum: of the steps, so that weights
 * still sum to one. NaN if one of the scores is. */
VNNI static float weigh(const float *scores, float most, uint8_t *weights) {
  __m512i sum = _mm512_setzero_si512(), all = _mm512_setzero_si512();
  for (int t = 0; t < BLOCK; t += LANES) {
    const __m512 weight = power(_mm512_sub_ps(_mm512_load_ps(scores + t), _mm512_set1_ps(most)));
    const __m512i integers = _mm512_cvtps_epi32(weight);
    _mm_store_si128((void *)(weights + t), _mm512_cvtepi32_epi8(integers));
    sum = _mm512_add_epi32(sum, integers);
    all = _mm512_or_si512(all, integers); /* of a NaN it is the most negative one */
  }
  return _mm512_movepi32_mask(all) ? NAN : (float)_mm512_reduce_add_epi32(sum);
}

/* What `rows` queries make of the values of n keys, a multiple of BLOCK; scores: room for [TILE, n]. */
VNNI static void attend_tile(const Heard *heard, const float *added, int64_t n, float scale, int rows,
                             const float *const *queries, float *const *y, float *scores) {
  Tile tile;
  float most[n / BLOCK][TILE];
  for (int r = 0; r < rows; r++) {
    round_query(queries[r], heard->channel_step, scale, &tile, r);
    tile.top[r] = -INFINITY;
    tile.total[r] = 0;
    for (int j = 0; j < HEAD; j += LANES) _mm512_store_ps(tile.mixed[r] + j, _mm512_setzero_ps());
  }
  for (int64_t key = 0; key < n; key += BLOCK) {
    for (int r = 0; r < rows; r++) _mm512_store_ps(tile.most[r], _mm512_set1_ps(-INFINITY));
    for (int64_t panel = key; panel < key + BLOCK; panel += PANEL)
      SCORE_PANEL[rows](heard->keys + panel * HEAD, heard->key_step ? heard->key_step + panel : NULL,
                        added + panel, &tile, scores + panel, n);
    for (int r = 0; r < rows; r++) {
      most[key / BLOCK][r] = _mm512_reduce_max_ps(_mm512_load_ps(tile.most[r]));
      tile.top[r] = fmaxf(tile.top[r], most[key / BLOCK][r]);
    }
  }
  for (int64_t key = 0; key < n; key += BLOCK) {
    for (int r = 0; r < rows; r++) {
      const float largest = most[key / BLOCK][r];
      tile.share[r] = exp2f(largest - tile.top[r]);
      tile.total[r] += tile.share[r] * weigh(scores + r * n + key, largest, tile.weights[r]);
    }
    MIX_BLOCK[rows](heard->values + key * HEAD, &tile);
  }
  for (int r = 0; r < rows; r++) {
    const __m512 factor = _mm512_set1_ps(1 / tile.total[r]);
    for (int j = 0; j < HEAD; j += LANES) {
      const __m512 mean = heard->mean ? _mm512_loadu_ps(heard->mean + j) : _mm512_setzero_ps();
      const __m512 step = _mm512_mul_ps(_mm512_loadu_ps(heard->value_step + j), factor);
      _mm512_storeu_ps(y[r] + j, _mm512_fmadd_ps(_mm512_load_ps(tile.mixed[r] + j), step, mean));
    }
  }
}

/* The encoder. */

typedef struct Job {
  const Attention *what;
  int64_t n;      /* keys, rounded up to whole blocks */
  int64_t groups; /* tasks of one head */
  size_t stride;  /* bytes of one head */
  uint8_t *heads;
  float *added;   /* [n] */
} Job;

static Heard heard_at(const Job *job, int64_t head) {
  Heard heard;
  heard.keys = job->heads + head * job->stride;
  heard.values = (int8_t *)(heard.keys + job->n * HEAD);
  heard.key_step = (float *)(heard.values + job->n * HEAD);
  heard.channel_step = NULL;
  heard.value_step = heard.key_step + job->n;
  heard.mean = heard.value_step + HEAD;
  return heard;
}

VNNI static void pack_head(void *data, size_t task) {
  const Job *job = data;
  const Attention *what = job->what;
  const int64_t state = what->n_head * HEAD, stride = 3 * state, n = what->n_keys;
  const int64_t audio = (int64_t)task / what->n_head, head = (int64_t)task % what->n_head;
  const Heard heard = heard_at(job, task);
  const float *keys = what->qkv + audio * n * stride + state + head * HEAD, *values = keys + state;
  float mean[HEAD];
  mean_of(keys, stride, n, mean);
  pack_keys(keys, stride, n, job->n, mean, heard.key_step, NULL, heard.keys);
  mean_of(values, stride, n, heard.mean);
  pack_values(values, stride, n, job->n, heard.mean, heard.value_step, heard.values);
}

VNNI static void attend(void *data, size_t task) {
  const Job *job = data;
  const Attention *what = job->what;
  const int64_t index = (int64_t)task / job->groups, state = what->n_head * HEAD;
  const int64_t audio = index / what->n_head, head = index % what->n_head;
  const int64_t first = (int64_t)task % job->groups * QUERIES, end = at_most(first + QUERIES, what->n_queries);
  const Heard heard = heard_at(job, index);
  float scores[TILE * job->n] __attribute__((aligned(64)));
  for (int64_t row = first; row < end; row += TILE) {
    const float *queries[TILE];
    float *y[TILE];
    const int rows = (int)at_most(end - row, TILE);
    for (int r = 0; r < rows; r++) {
      const int64_t position = what->positions ? what->positions[row + r] : row + r;
      queries[r] = what->qkv + (audio * what->n_keys + position) * 3 * state + head * HEAD;
      y[r] = what->y + (audio * what->n_queries + row + r) * state + head * HEAD;
    }
    attend_tile(&heard, job->added, job->n, SCALE * OCTAVES, rows, queries, y, scores);
  }
}

int attention(const Attention *what, Threads threads) {
  const int64_t heads = what->n_audio * what->n_head, n = divided_up(what->n_keys, BLOCK) * BLOCK;
  if (heads == 0 || what->n_keys == 0 || what->n_queries == 0) return 0;
  Job job = {what, n, divided_up(what->n_queries, QUERIES), 0, NULL, NULL};
  job.stride = 2 * n * HEAD + (n + 2 * HEAD) * sizeof(float); /* a multiple of 64: n is one of 128 */
  job.heads = aligned_alloc(64, job.stride * heads + divided_up(n * sizeof(float), 64) * 64);
  if (!job.heads) return -1;
  job.added = (float *)(job.heads + job.stride * heads);
  for (int64_t t = 0; t < n; t++)
    job.added[t] = t >= what->n_keys ? MASKED : what->added ? what->added[t] : 0;
  threads.run(threads.context, pack_head, heads, &job);
  threads.run(threads.context, attend, heads * job.groups, &job);
  free(job.heads);
  return 0;
}

/* The decoder. */

VNNI static void pack_one(void *data, size_t task) {
  const Pack *what = data;
  const int64_t state = what->n_head * HEAD, n = divided_up(what->n, BLOCK) * BLOCK;
  const int64_t audio = (int64_t)task / what->n_head, head = (int64_t)task % what->n_head;
  const float *x = what->x + audio * what->n * state + head * HEAD;
  uint8_t *packed = what->packed + task * n * HEAD;
  float *step = what->step + task * HEAD;
  if (what->keys)
    pack_keys(x, state, what->n, n, NULL, NULL, step, packed);
  else
    pack_values(x, state, what->n, n, NULL, step, (int8_t *)packed);
}

void pack_heads(const Pack *what, Threads threads) {
  threads.run(threads.context, pack_one, what->n_audio * what->n_head, (void *)what);
}

static Heard cross_at(const Cross *what, int64_t audio, int64_t head) {
  const int64_t index = audio * what->n_head + head;
  Heard heard;
  heard.keys = (uint8_t *)what->keys + index * what->n_keys * HEAD;
  heard.values = what->values ? (int8_t *)what->values + index * what->n_keys * HEAD : NULL;
  heard.key_step = NULL;
  heard.channel_step =
      (float *)what->steps + (((audio * what->n_layer + what->layer) * 2) * what->n_head + head) * HEAD;
  heard.value_step = heard.channel_step + what->n_head * HEAD;
  heard.mean = NULL;
  return heard;
}

VNNI static void attend_cross(void *data, size_t task) {
  const Cross *what = data;
  const int64_t groups = divided_up(what->n_queries, QUERIES), state = what->n_head * HEAD;
  const int64_t audio = (int64_t)task / groups / what->n_head, head = (int64_t)task / groups % what->n_head;
  const int64_t first = (int64_t)task % groups * QUERIES, end = at_most(first + QUERIES, what->n_queries);
  const Heard heard = cross_at(what, audio, head);
  float scores[TILE * what->n_keys] __attribute__((aligned(64)));
  for (int64_t row = first; row < end; row += TILE) {
    const float *queries[TILE];
    float *y[TILE];
    const int rows = (int)at_most(end - row, TILE);
    for (int r = 0; r < rows; r++) {
      const int64_t at = (audio * what->n_queries + row + r) * state + head * HEAD;
      queries[r] = what->queries + at;
      y[r] = what->y + at;
    }
    attend_tile(&heard, what->added + audio * what->n_keys, what->n_keys, SCALE * OCTAVES, rows, queries, y, scores);
  }
}

void cross_attention(const Cross *what, Threads threads) {
  const int64_t tasks = what->n_audio * what->n_head * divided_up(what->n_queries, QUERIES);
  if (tasks && what->n_keys) threads.run(threads.context, attend_cross, tasks, (void *)what);
}

VNNI void cross_scores(const Cross *what, const int64_t *heads, int64_t n_heads, const int64_t *rows,
                       int64_t n_rows) {
  const int64_t state = what->n_head * HEAD;
  float *y = what->y;
  for (int64_t audio = 0; audio < what->n_audio; audio++)
    for (int64_t h = 0; h < n_heads; h++) {
      const Heard heard = cross_at(what, audio, heads[h]);
      for (int64_t i = 0; i < n_rows; i++, y += what->n_keys) {
        Tile tile;
        const float *query = what->queries + (audio * what->n_queries + rows[i]) * state + heads[h] * HEAD;
        float scores[PANEL] __attribute__((aligned(64)));
        round_query(query, heard.channel_step, SCALE * OCTAVES, &tile, 0);
        _mm512_store_ps(tile.most[0], _mm512_setzero_ps());
        for (int64_t key = 0; key < what->n_keys; key += PANEL) {
          score_panel_1(heard.keys + key * HEAD, NULL, what->added + audio * what->n_keys + key, &tile, scores, PANEL);
          for (int t = 0; t < PANEL; t++) y[key + t] = scores[t] / OCTAVES;
        }
      }
    }
}
