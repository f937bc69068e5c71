/* Attention of the encoder: queries, keys and values in 8 bits, softmax in float32.
 *
 * Keys are centred (that moves all scores of a query alike) and rounded one by one, queries too, values by
 * channel in blocks of 128 after their mean is taken out (the weights sum to one, so it is given back). Weights of
 * a block of keys are rounded in steps of 1/255 of the largest in it: so what is far less than the loudest key
 * of all, but much by being many, is not lost.
 */
#include "kernels.h"

#include <math.h>
#include <stdlib.h>

#include "tile.h"

enum {
  BLOCK = 128,   /* keys whose weights share a step */
  QUERIES = 60,  /* of one task */
  VECTORS = HEAD / LANES,
};
static const float PER_OCTAVE = 0.125f * 1.44269504f; /* scores are divided by 8 and in powers of two */

/* What the queries of one head read. */
typedef struct Heard {
  int8_t *keys;      /* panels of 64 keys: [n / 64][16][64][4] */
  int8_t *values;    /* [n / 4][64][4] */
  int32_t *sums;     /* [n], -128 times the sum of a key */
  float *key_step;   /* [n] */
  float *added;      /* [n], to the score; less than everything where there is no key */
  float *value_step; /* [n / BLOCK][64] */
  float *mean;       /* [64], of the values */
} Heard;

typedef struct Job {
  const Attention *what;
  int64_t n;      /* keys, rounded up to whole blocks */
  int64_t groups; /* tasks of one head */
  size_t stride;  /* bytes of one head */
  uint8_t *heads;
} Job;

static Heard heard_at(const Job *job, int64_t head) {
  uint8_t *at = job->heads + head * job->stride;
  Heard heard;
  heard.keys = (int8_t *)at;
  heard.values = heard.keys + job->n * HEAD;
  heard.sums = (int32_t *)(heard.values + job->n * HEAD);
  heard.key_step = (float *)(heard.sums + job->n);
  heard.added = heard.key_step + job->n;
  heard.value_step = heard.added + job->n;
  heard.mean = heard.value_step + job->n / BLOCK * HEAD;
  return heard;
}

static size_t bytes_of_head(int64_t n) {
  return n * (2 * HEAD + 3 * sizeof(float)) + (n / BLOCK + 1) * HEAD * sizeof(float);
}

VNNI static void mean_of(const float *x, int64_t stride, int64_t n, float *to) {
  for (int j = 0; j < HEAD; j += LANES) {
    __m512 sum = _mm512_setzero_ps();
    for (int64_t t = 0; t < n; t++) sum = _mm512_add_ps(sum, _mm512_loadu_ps(x + t * stride + j));
    _mm512_storeu_ps(to + j, _mm512_div_ps(sum, _mm512_set1_ps((float)n)));
  }
}

VNNI static void pack_key(const float *key, const float *mean, const Heard *heard, int64_t t) {
  int8_t *to = heard->keys + t / PANEL * PANEL * HEAD + t % PANEL * 4;
  __m512 centred[VECTORS], most = _mm512_set1_ps(1e-20f);
  for (int j = 0; j < VECTORS; j++) {
    centred[j] = _mm512_sub_ps(_mm512_loadu_ps(key + LANES * j), _mm512_loadu_ps(mean + LANES * j));
    most = _mm512_max_ps(most, _mm512_abs_ps(centred[j]));
  }
  const float step = _mm512_reduce_max_ps(most) / 127;
  const __m512 factor = _mm512_set1_ps(1 / step);
  __m512i sum = _mm512_setzero_si512();
  for (int j = 0; j < VECTORS; j++) {
    const __m512i integers = _mm512_cvtps_epi32(_mm512_mul_ps(centred[j], factor));
    int8_t bytes[LANES];
    _mm_storeu_si128((void *)bytes, _mm512_cvtsepi32_epi8(integers));
    for (int i = 0; i < LANES; i += 4) memcpy(to + (LANES * j + i) * PANEL, bytes + i, 4);
    sum = _mm512_add_epi32(sum, integers);
  }
  heard->sums[t] = -128 * _mm512_reduce_add_epi32(sum);
  heard->key_step[t] = step;
}

/* The values of a block: [n, 64] of which there are n <= BLOCK. */
VNNI static void pack_values(const float *values, int64_t stride, int64_t n, const float *mean, int8_t *to,
                             float *step) {
  for (int j = 0; j < VECTORS; j++, values += LANES, mean += LANES, step += LANES) {
    const __m512 middle = _mm512_loadu_ps(mean);
    __m512 most = _mm512_set1_ps(1e-20f);
    for (int64_t t = 0; t < n; t++)
      most = _mm512_max_ps(most, _mm512_abs_ps(_mm512_sub_ps(_mm512_loadu_ps(values + t * stride), middle)));
    const __m512 factor = _mm512_div_ps(_mm512_set1_ps(127), most);
    _mm512_storeu_ps(step, _mm512_div_ps(most, _mm512_set1_ps(127)));
    for (int64_t t = 0; t < BLOCK; t += 4) {
      __m512i quads = _mm512_setzero_si512();
      for (int64_t i = 0; i < 4 && t + i < n; i++) {
        const __m512 centred = _mm512_sub_ps(_mm512_loadu_ps(values + (t + i) * stride), middle);
        const __m512i integers = _mm512_cvtps_epi32(_mm512_mul_ps(centred, factor));
        const __m512i byte = _mm512_and_si512(integers, _mm512_set1_epi32(255));
        quads = _mm512_or_si512(quads, _mm512_sllv_epi32(byte, _mm512_set1_epi32((int)(8 * i))));
      }
      _mm512_store_si512(to + t * HEAD + LANES * 4 * j, quads);
    }
  }
}

static void pack_head(void *data, size_t task) {
  const Job *job = data;
  const Attention *what = job->what;
  const int64_t state = what->n_head * HEAD, stride = 3 * state, n = what->n_keys;
  const Heard heard = heard_at(job, task);
  const float *keys =
      what->qkv + (int64_t)task / what->n_head * n * stride + state + (int64_t)task % what->n_head * HEAD;
  const float *values = keys + state;
  float mean[HEAD];
  mean_of(keys, stride, n, mean);
  for (int64_t t = 0; t < n; t++) {
    pack_key(keys + t * stride, mean, &heard, t);
    heard.added[t] = what->unscaled ? what->unscaled[t] * PER_OCTAVE : 0;
  }
  for (int64_t t = n; t < job->n; t++) { /* no key */
    int8_t *to = heard.keys + t / PANEL * PANEL * HEAD + t % PANEL * 4;
    for (int i = 0; i < HEAD; i += 4) memset(to + i * PANEL, 0, 4);
    heard.sums[t] = 0;
    heard.key_step[t] = 0;
    heard.added[t] = -INFINITY;
  }
  mean_of(values, stride, n, heard.mean);
  for (int64_t t = 0; t < n; t += BLOCK)
    pack_values(values + t * stride, stride, n - t < BLOCK ? n - t : BLOCK, heard.mean, heard.values + t * HEAD,
                heard.value_step + t / BLOCK * HEAD);
}

/* Queries of one tile and what is known of them, by row. */
typedef struct Tile {
  uint8_t queries[TILE][HEAD] __attribute__((aligned(64)));
  uint8_t weights[TILE][BLOCK] __attribute__((aligned(64)));
  float most[TILE][LANES] __attribute__((aligned(64))); /* scores of a block, by lane */
  float mixed[TILE][HEAD] __attribute__((aligned(64)));
  float step[TILE];  /* of the query, in octaves */
  float top[TILE];   /* largest score of all */
  float share[TILE]; /* two to the power of: largest of the block less largest of all */
  float total[TILE]; /* of the weights */
} Tile;

VNNI static void round_query(const float *query, Tile *tile, int row) {
  const float least = 1e-20f;
  __m512 x[VECTORS], most = _mm512_set1_ps(least);
  for (int j = 0; j < VECTORS; j++) {
    x[j] = _mm512_loadu_ps(query + LANES * j);
    most = _mm512_max_ps(most, _mm512_abs_ps(x[j]));
  }
  const float step = _mm512_reduce_max_ps(most) / 127;
  const __m512 factor = _mm512_set1_ps(1 / step);
  for (int j = 0; j < VECTORS; j++) {
    const __m512i integers = _mm512_cvtps_epi32(_mm512_mul_ps(x[j], factor));
    const __m512i bytes = _mm512_add_epi32(integers, _mm512_set1_epi32(128));
    _mm_store_si128((void *)(tile->queries[row] + LANES * j), _mm512_cvtusepi32_epi8(bytes));
  }
  tile->step[row] = step * PER_OCTAVE;
}

/* Scores of a panel of keys in octaves [TILE, stride], and the largest so far. */
VNNI_INLINE void score_panel(const int rows, const Heard *heard, int64_t key, Tile *tile, float *scores,
                             int64_t stride) {
  const int32_t *sums = heard->sums + key;
  const __m512i from0 = _mm512_load_si512(sums), from1 = _mm512_load_si512(sums + 16);
  const __m512i from2 = _mm512_load_si512(sums + 32), from3 = _mm512_load_si512(sums + 48);
  TILE_PRODUCTS(tile->queries[0], HEAD, heard->keys + key * HEAD, HEAD / 4)
  const float *step = heard->key_step + key, *added = heard->added + key;
#define SCORE(r, j)                                                                                  \
  if (rows > r) {                                                                                    \
    const __m512 worth = _mm512_mul_ps(_mm512_load_ps(step + LANES * j), _mm512_set1_ps(tile->step[r])); \
    const __m512 score =                                                                             \
        _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum##r##j), worth, _mm512_load_ps(added + LANES * j));    \
    _mm512_store_ps(scores + key + r * stride + LANES * j, score);                                   \
    most = j ? _mm512_max_ps(most, score) : _mm512_max_ps(_mm512_load_ps(tile->most[r]), score);     \
    if (j == VECTORS - 1) _mm512_store_ps(tile->most[r], most);                                      \
  }
  __m512 most;
  EACH(SCORE)
#undef SCORE
}

/* Adds the values of a block, weighted. */
VNNI_INLINE void mix_block(const int rows, const Heard *heard, int64_t key, Tile *tile) {
  const __m512i from0 = _mm512_setzero_si512(), from1 = from0, from2 = from0, from3 = from0;
  TILE_PRODUCTS(tile->weights[0], BLOCK, heard->values + key * HEAD, BLOCK / 4)
  const float *step = heard->value_step + key / BLOCK * HEAD;
#define MIX(r, j)                                                                                       \
  if (rows > r) {                                                                                       \
    float *mixed = tile->mixed[r] + LANES * j;                                                          \
    const __m512 worth = _mm512_mul_ps(_mm512_load_ps(step + LANES * j), _mm512_set1_ps(tile->share[r])); \
    _mm512_store_ps(mixed, _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum##r##j), worth, _mm512_load_ps(mixed))); \
  }
  EACH(MIX)
#undef MIX
}

/* Functions of their own, so that a compiler has registers enough. */
typedef void (*ScorePanel)(const Heard *, int64_t, Tile *, float *, int64_t);
typedef void (*MixBlock)(const Heard *, int64_t, Tile *);
#define SIZES(n)                                                                                            \
  VNNI __attribute__((noinline)) static void score_panel_##n(const Heard *heard, int64_t key, Tile *tile,   \
                                                             float *scores, int64_t stride) {               \
    score_panel(n, heard, key, tile, scores, stride);                                                       \
  }                                                                                                         \
  VNNI __attribute__((noinline)) static void mix_block_##n(const Heard *heard, int64_t key, Tile *tile) {   \
    mix_block(n, heard, key, tile);                                                                         \
  }
SIZES(1) SIZES(2) SIZES(3) SIZES(4) SIZES(5) SIZES(6)
static const ScorePanel SCORE_PANEL[] = {NULL,          score_panel_1, score_panel_2, score_panel_3,
                                         score_panel_4, score_panel_5, score_panel_6};
static const MixBlock MIX_BLOCK[] = {NULL,        mix_block_1, mix_block_2, mix_block_3,
                                     mix_block_4, mix_block_5, mix_block_6};

/* Two to the power of x, which is not above 0; error 1e-4. */
VNNI_INLINE __m512 power(__m512 x) {
  const __m512 whole = _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  const __m512 part = _mm512_sub_ps(x, whole);
  __m512 sum = _mm512_set1_ps(0.0558011f);
  sum = _mm512_fmadd_ps(sum, part, _mm512_set1_ps(0.2402265f));
  sum = _mm512_fmadd_ps(sum, part, _mm512_set1_ps(0.6931472f));
  sum = _mm512_fmadd_ps(sum, part, _mm512_set1_ps(1));
  return _mm512_scalef_ps(sum, whole);
}

/* Weights of a block of keys in steps of 1/255 of the largest; returns their sum. */
VNNI static int32_t weigh(const float *scores, float most, uint8_t *weights) {
  __m512i sum = _mm512_setzero_si512();
  for (int t = 0; t < BLOCK; t += LANES) {
    const __m512 weight = power(_mm512_sub_ps(_mm512_load_ps(scores + t), _mm512_set1_ps(most)));
    const __m512i integers = _mm512_cvtps_epi32(_mm512_mul_ps(weight, _mm512_set1_ps(255)));
    _mm_store_si128((void *)(weights + t), _mm512_cvtepi32_epi8(integers));
    sum = _mm512_add_epi32(sum, integers);
  }
  return _mm512_reduce_add_epi32(sum);
}

VNNI static void attend_tile(const Job *job, const Heard *heard, int rows, const float *const *queries,
                             float *const *y, float *scores) {
  const int64_t n = job->n;
  Tile tile;
  float most[n / BLOCK][TILE];
  for (int r = 0; r < rows; r++) {
    round_query(queries[r], &tile, r);
    tile.top[r] = -INFINITY;
    tile.total[r] = 0;
    for (int j = 0; j < HEAD; j += LANES) _mm512_store_ps(tile.mixed[r] + j, _mm512_setzero_ps());
  }
  for (int64_t key = 0; key < n; key += BLOCK) {
    for (int r = 0; r < rows; r++) _mm512_store_ps(tile.most[r], _mm512_set1_ps(-INFINITY));
    for (int64_t panel = key; panel < key + BLOCK; panel += PANEL)
      SCORE_PANEL[rows](heard, panel, &tile, scores, n);
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
    MIX_BLOCK[rows](heard, key, &tile);
  }
  for (int r = 0; r < rows; r++) {
    const __m512 factor = _mm512_set1_ps(1 / tile.total[r]);
    for (int j = 0; j < HEAD; j += LANES) {
      const __m512 mean = _mm512_loadu_ps(heard->mean + j);
      _mm512_storeu_ps(y[r] + j, _mm512_fmadd_ps(_mm512_load_ps(tile.mixed[r] + j), factor, mean));
    }
  }
}

VNNI static void attend(void *data, size_t task) {
  const Job *job = data;
  const Attention *what = job->what;
  const int64_t index = (int64_t)task / job->groups, state = what->n_head * HEAD;
  const int64_t audio = index / what->n_head, head = index % what->n_head;
  const int64_t first = (int64_t)task % job->groups * QUERIES;
  const int64_t end = first + QUERIES < what->n_queries ? first + QUERIES : what->n_queries;
  const Heard heard = heard_at(job, index);
  float scores[TILE * job->n] __attribute__((aligned(64)));
  for (int64_t row = first; row < end; row += TILE) {
    const float *queries[TILE];
    float *y[TILE];
    const int rows = end - row < TILE ? (int)(end - row) : TILE;
    for (int r = 0; r < rows; r++) {
      const int64_t position = what->positions ? what->positions[row + r] : row + r;
      queries[r] = what->qkv + (audio * what->n_keys + position) * 3 * state + head * HEAD;
      y[r] = what->y + (audio * what->n_queries + row + r) * state + head * HEAD;
    }
    attend_tile(job, &heard, rows, queries, y, scores);
  }
}

int attention(const Attention *what, Threads threads) {
  Job job = {what, (what->n_keys + BLOCK - 1) / BLOCK * BLOCK, (what->n_queries + QUERIES - 1) / QUERIES, 0, NULL};
  const int64_t heads = what->n_audio * what->n_head;
  if (heads == 0 || what->n_keys == 0 || what->n_queries == 0) return 0;
  job.stride = bytes_of_head(job.n); /* a multiple of 64: n is one of 128 */
  job.heads = aligned_alloc(64, job.stride * heads);
  if (!job.heads) return -1;
  threads.run(threads.context, pack_head, heads, &job);
  threads.run(threads.context, attend, heads * job.groups, &job);
  free(job.heads);
  return 0;
}
