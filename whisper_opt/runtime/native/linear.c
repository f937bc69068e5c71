/* Products with weights in 8 bits, and what rounds their inputs. */
#include "kernels.h"

#include <math.h>
#include <stdlib.h>

#include "tile.h"

enum {
  TASK_ROWS = 48,  /* that one task multiplies */
  PANELS = 8,      /* panels that one task reads, at most */
  FEW = 8,         /* rows that are rounded at once: handing them out would cost more */
  ROUNDED = 32,    /* rows that one task rounds */
};

static const float GELU_LEAST = GELU_LOW * GELU_STEPS / GELU_ZERO;

int pack_weight(Packed *packed, const int8_t *weight, int64_t n_in, int64_t n_out) {
  const int64_t n_panels = (n_out + PANEL - 1) / PANEL;
  packed->n_in = n_in;
  packed->n_out = n_out;
  packed->panels = aligned_alloc(64, n_panels * PANEL * n_in);
  packed->sums = aligned_alloc(64, n_panels * PANEL * sizeof(int32_t));
  if (!packed->panels || !packed->sums) {
    free_weight(packed);
    return -1;
  }
  memset(packed->panels, 0, n_panels * PANEL * n_in);
  memset(packed->sums, 0, n_panels * PANEL * sizeof(int32_t));
  for (int64_t row = 0; row < n_in; row++) {
    int8_t *to = packed->panels + row / 4 * 4 * PANEL + row % 4;
    const int8_t *from = weight + row * n_out;
    for (int64_t column = 0; column < n_out; column++) {
      to[column / PANEL * PANEL * n_in + column % PANEL * 4] = from[column];
      packed->sums[column] += from[column];
    }
  }
  return 0;
}

void free_weight(Packed *packed) {
  free(packed->panels);
  free(packed->sums);
  packed->panels = NULL;
  packed->sums = NULL;
}

/* Exact GELU: erf by Abramowitz and Stegun, Handbook of Mathematical Functions, 7.1.28 (error 3e-7). */
VNNI_INLINE __m512 gelu(__m512 x) {
  const __m512 one = _mm512_set1_ps(1);
  const __m512 far = _mm512_set1_ps(10); /* where erf is 1 and its powers are not infinite yet */
  const __m512 z = _mm512_min_ps(far, _mm512_mul_ps(_mm512_abs_ps(x), _mm512_set1_ps(0.707106781f)));
  __m512 sum = _mm512_set1_ps(0.0000430638f);
  sum = _mm512_fmadd_ps(sum, z, _mm512_set1_ps(0.0002765672f));
  sum = _mm512_fmadd_ps(sum, z, _mm512_set1_ps(0.0001520143f));
  sum = _mm512_fmadd_ps(sum, z, _mm512_set1_ps(0.0092705272f));
  sum = _mm512_fmadd_ps(sum, z, _mm512_set1_ps(0.0422820123f));
  sum = _mm512_fmadd_ps(sum, z, _mm512_set1_ps(0.0705230784f));
  sum = _mm512_fmadd_ps(sum, z, one);
  __m512 rest = _mm512_rcp14_ps(sum); /* then one step of Newton's, and to the 16th power */
  rest = _mm512_mul_ps(rest, _mm512_fnmadd_ps(sum, rest, _mm512_set1_ps(2)));
  rest = _mm512_mul_ps(rest, rest);
  rest = _mm512_mul_ps(rest, rest);
  rest = _mm512_mul_ps(rest, rest);
  rest = _mm512_mul_ps(rest, rest);
  const __m512 half = _mm512_mul_ps(x, _mm512_set1_ps(0.5f));
  return _mm512_fmadd_ps(_mm512_abs_ps(half), _mm512_sub_ps(one, rest), half);
}

/* GELU of a row; returns the largest of its values. */
VNNI static float gelu_row(const float *x, int64_t n, float *to) {
  __m512i most = _mm512_setzero_si512();
  for (int64_t i = 0; i < n; i += LANES) {
    const __m512 value = gelu(_mm512_loadu_ps(x + i));
    _mm512_store_ps(to + i, value);
    most = larger(most, value);
  }
  return largest(most);
}

/* Layer normalization of a row; returns the largest magnitude. */
VNNI static float norm_row(const float *x, int64_t n, const float *gain, const float *shift, float *to) {
  __m512 sum = _mm512_setzero_ps(), squares = _mm512_setzero_ps();
  __m512i most = _mm512_setzero_si512();
  for (int64_t i = 0; i < n; i += LANES) sum = _mm512_add_ps(sum, _mm512_loadu_ps(x + i));
  const __m512 mean = _mm512_set1_ps(_mm512_reduce_add_ps(sum) / n);
  for (int64_t i = 0; i < n; i += LANES) {
    const __m512 centred = _mm512_sub_ps(_mm512_loadu_ps(x + i), mean);
    _mm512_store_ps(to + i, centred);
    squares = _mm512_fmadd_ps(centred, centred, squares);
  }
  const __m512 factor = _mm512_set1_ps(1 / sqrtf(_mm512_reduce_add_ps(squares) / n + 1e-5f));
  for (int64_t i = 0; i < n; i += LANES) {
    const __m512 even = _mm512_mul_ps(_mm512_load_ps(to + i), factor);
    const __m512 value = _mm512_fmadd_ps(even, _mm512_loadu_ps(gain + i), _mm512_loadu_ps(shift + i));
    _mm512_store_ps(to + i, value);
    most = larger(most, _mm512_abs_ps(value));
  }
  return largest(most);
}

VNNI static float loudest_of_row(const float *x, int64_t n) {
  __m512i most = _mm512_setzero_si512();
  for (int64_t i = 0; i < n; i += LANES) most = larger(most, _mm512_abs_ps(_mm512_loadu_ps(x + i)));
  return largest(most);
}

/* One call of `linear`: its inputs, rounded, and how its product is divided. */
typedef struct Job {
  const Linear *what;
  uint8_t *bytes; /* [n_rows, n_in] */
  float *step;    /* [n_rows], what a step of a row is worth */
  int64_t panels; /* of one task */
} Job;

VNNI static void round_row(const Job *job, int64_t row) {
  const Linear *what = job->what;
  const int64_t n = what->weight->n_in;
  const float *x = what->x + row * n;
  float changed[n] __attribute__((aligned(64)));
  float loudest;
  if (what->gelu) {
    loudest = gelu_row(x, n, changed);
    x = changed;
  } else if (what->gain) {
    loudest = norm_row(x, n, what->gain, what->shift, changed);
    x = changed;
  } else {
    loudest = loudest_of_row(x, n);
  }
  const float least = what->gelu ? GELU_LEAST : LEAST;
  if (loudest < least) loudest = least; /* and a NaN stays, so that it is seen in the product */
  const float steps = what->gelu ? GELU_STEPS : STEPS;
  const __m512 factor = _mm512_set1_ps(steps / loudest);
  const __m512i zero = _mm512_set1_epi32(what->gelu ? GELU_ZERO : ZERO);
  uint8_t *to = job->bytes + row * n;
  for (int64_t i = 0; i < n; i += LANES) {
    const __m512i integers = _mm512_cvtps_epi32(_mm512_mul_ps(_mm512_loadu_ps(x + i), factor));
    const __m512i bytes = _mm512_max_epi32(_mm512_add_epi32(integers, zero), _mm512_setzero_si512());
    _mm_storeu_si128((void *)(to + i), _mm512_cvtusepi32_epi8(bytes));
  }
  job->step[row] = loudest / steps;
}

static void round_rows(void *data, size_t task) {
  const Job *job = data;
  const int64_t first = (int64_t)task * ROUNDED, n_rows = job->what->n_rows;
  for (int64_t row = first; row < first + ROUNDED && row < n_rows; row++) round_row(job, row);
}

VNNI_INLINE void multiply(const int rows, const Job *job, int64_t row, int64_t panel) {
  const Linear *what = job->what;
  const int64_t n_in = what->weight->n_in, n_out = what->weight->n_out, column = panel * PANEL;
  const int32_t *sums = what->weight->sums + column;
  TILE_FROM_ZERO(sums, what->gelu ? GELU_ZERO : ZERO)
  TILE_PRODUCTS(job->bytes + row * n_in, n_in, what->weight->panels + column * n_in, n_in / 4, SIGNED_PANEL)
#define COLUMN(j)                                                                                 \
  const int64_t left##j = n_out - column - LANES * j;                                             \
  const __mmask16 some##j = left##j >= LANES ? 0xffff : left##j > 0 ? (1u << left##j) - 1 : 0;     \
  const __m512 scale##j = _mm512_maskz_loadu_ps(some##j, what->scale + column + LANES * j);        \
  const __m512 bias##j = _mm512_maskz_loadu_ps(some##j, what->bias + column + LANES * j);
  COLUMN(0) COLUMN(1) COLUMN(2) COLUMN(3)
#undef COLUMN
#define STORE(r, j)                                                                               \
  if (rows > r) {                                                                                 \
    const int64_t at = (row + r) * n_out + column + LANES * j;                                    \
    const __m512 worth = _mm512_mul_ps(scale##j, _mm512_set1_ps(job->step[row + r]));             \
    __m512 value = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum##r##j), worth, bias##j);                \
    if (what->residual)                                                                           \
      value = _mm512_add_ps(value, _mm512_maskz_loadu_ps(some##j, what->residual + at));          \
    _mm512_mask_storeu_ps(what->y + at, some##j, value);                                          \
  }
  EACH(STORE)
#undef STORE
}

typedef void (*Multiply)(const Job *job, int64_t row, int64_t panel);
#define MULTIPLY(n) \
  VNNI static void multiply_##n(const Job *job, int64_t row, int64_t panel) { multiply(n, job, row, panel); }
MULTIPLY(1) MULTIPLY(2) MULTIPLY(3) MULTIPLY(4) MULTIPLY(5) MULTIPLY(6)
static const Multiply MULTIPLIES[] = {NULL,       multiply_1, multiply_2, multiply_3,
                                      multiply_4, multiply_5, multiply_6};

static void multiply_block(void *data, size_t task) {
  const Job *job = data;
  const int64_t n_panels = divided_up(job->what->weight->n_out, PANEL);
  const int64_t groups = divided_up(n_panels, job->panels);
  const int64_t first_panel = (int64_t)task % groups * job->panels;
  const int64_t end_panel = at_most(first_panel + job->panels, n_panels);
  const int64_t first = (int64_t)task / groups * TASK_ROWS, end = at_most(first + TASK_ROWS, job->what->n_rows);
  for (int64_t panel = first_panel; panel < end_panel; panel++)
    for (int64_t row = first; row < end; row += TILE) MULTIPLIES[at_most(TILE, end - row)](job, row, panel);
}

int linear(const Linear *what, Threads threads) {
  const int64_t n_rows = what->n_rows, n_in = what->weight->n_in;
  if (n_rows == 0) return 0;
  uint8_t *bytes = malloc(n_rows * (n_in + sizeof(float)));
  if (!bytes) return -1;
  Job job = {what, bytes, (float *)(bytes + n_rows * n_in), PANELS};
  if (n_rows <= FEW)
    round_rows(&job, 0);
  else
    threads.run(threads.context, round_rows, divided_up(n_rows, ROUNDED), &job);
  const int64_t blocks = divided_up(n_rows, TASK_ROWS), n_panels = divided_up(what->weight->n_out, PANEL);
  /* few rows: smaller tasks, so that there are about eight at least */
  job.panels = at_most(PANELS, divided_up(n_panels * blocks, 8));
  threads.run(threads.context, multiply_block, blocks * divided_up(n_panels, job.panels), &job);
  free(bytes);
  return 0;
}

/* The output head: rows of bytes come in pairs. */

typedef struct Pairs {
  const Output *what;
  uint8_t *bytes; /* [n_rows, 2, n_in] */
  float *worth;   /* [n_rows, 2], of a step of either row */
  float *offset;  /* [n_rows], what the mean adds */
} Pairs;

VNNI static void round_pair(const Pairs *pairs, int64_t row) {
  const Output *what = pairs->what;
  const int64_t n = what->weight->n_in;
  const float *x = what->x + row * n;
  uint8_t *high = pairs->bytes + 2 * row * n, *low = high + n;
  __m512 most = _mm512_set1_ps(1e-30f), sum = _mm512_setzero_ps();
  for (int64_t i = 0; i < n; i += LANES) {
    const __m512 value = _mm512_loadu_ps(x + i);
    most = _mm512_max_ps(most, _mm512_abs_ps(_mm512_mul_ps(value, _mm512_loadu_ps(what->shrink + i))));
    sum = _mm512_fmadd_ps(value, _mm512_loadu_ps(what->mean + i), sum);
  }
  const float step = _mm512_reduce_max_ps(most) / HEAD_STEPS;
  const __m512i zero = _mm512_set1_epi32(HEAD_ZERO);
  for (int64_t i = 0; i < n; i += LANES) {
    const __m512 shrunk = _mm512_mul_ps(_mm512_loadu_ps(x + i), _mm512_loadu_ps(what->shrink + i));
    const __m512 steps = _mm512_div_ps(shrunk, _mm512_set1_ps(step));
    const __m512i whole = _mm512_cvtps_epi32(steps);
    const __m512 left = _mm512_sub_ps(steps, _mm512_cvtepi32_ps(whole));
    const __m512i rest = _mm512_cvtps_epi32(_mm512_mul_ps(left, _mm512_set1_ps(2 * HEAD_STEPS)));
    _mm_storeu_si128((void *)(high + i), _mm512_cvtepi32_epi8(_mm512_add_epi32(whole, zero)));
    _mm_storeu_si128((void *)(low + i), _mm512_cvtepi32_epi8(_mm512_add_epi32(rest, zero)));
  }
  pairs->worth[2 * row] = step;
  pairs->worth[2 * row + 1] = step / (2 * HEAD_STEPS);
  pairs->offset[row] = _mm512_reduce_add_ps(sum);
}

VNNI_INLINE void score(const int rows, const Pairs *pairs, int64_t row, int64_t panel) {
  const Output *what = pairs->what;
  const int64_t n_in = what->weight->n_in, n_out = what->weight->n_out, column = panel * PANEL;
  const int32_t *sums = what->weight->sums + column;
  TILE_FROM_ZERO(sums, HEAD_ZERO)
  TILE_PRODUCTS(pairs->bytes + 2 * row * n_in, n_in, what->weight->panels + column * n_in, n_in / 4, SIGNED_PANEL)
#define SCORE(pair, high, low, j)                                                                        \
  if (rows > low) {                                                                                      \
    const int64_t left = n_out - column - LANES * j;                                                     \
    const __mmask16 some = left >= LANES ? 0xffff : left > 0 ? (1u << left) - 1 : 0;                     \
    const float *worth = pairs->worth + 2 * (row + pair);                                                \
    const __m512 rest = _mm512_mul_ps(_mm512_cvtepi32_ps(sum##low##j), _mm512_set1_ps(worth[1]));        \
    const __m512 all = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum##high##j), _mm512_set1_ps(worth[0]), rest); \
    const __m512 scale = _mm512_maskz_loadu_ps(some, what->scale + column + LANES * j);                  \
    const __m512 y = _mm512_fmadd_ps(all, scale, _mm512_set1_ps(pairs->offset[row + pair]));             \
    _mm512_mask_storeu_ps(what->y + (row + pair) * n_out + column + LANES * j, some, y);                 \
  }
#define PAIR(pair, high, low) \
  SCORE(pair, high, low, 0) SCORE(pair, high, low, 1) SCORE(pair, high, low, 2) SCORE(pair, high, low, 3)
  PAIR(0, 0, 1) PAIR(1, 2, 3) PAIR(2, 4, 5)
#undef PAIR
#undef SCORE
}

typedef void (*Score)(const Pairs *pairs, int64_t row, int64_t panel);
#define SCORE_PAIRS(n) \
  VNNI static void score_##n(const Pairs *pairs, int64_t row, int64_t panel) { score(2 * n, pairs, row, panel); }
SCORE_PAIRS(1) SCORE_PAIRS(2) SCORE_PAIRS(3)
static const Score SCORES[] = {NULL, score_1, score_2, score_3};

static void score_block(void *data, size_t task) {
  const Pairs *pairs = data;
  const int64_t n_rows = pairs->what->n_rows, n_panels = divided_up(pairs->what->weight->n_out, PANEL);
  const int64_t first = (int64_t)task * PANELS, end = at_most(first + PANELS, n_panels);
  for (int64_t panel = first; panel < end; panel++)
    for (int64_t row = 0; row < n_rows; row += TILE / 2) SCORES[at_most(TILE / 2, n_rows - row)](pairs, row, panel);
}

int output_head(const Output *what, Threads threads) {
  const int64_t n_rows = what->n_rows, n_in = what->weight->n_in;
  if (n_rows == 0) return 0;
  uint8_t *bytes = malloc(n_rows * (2 * n_in + 3 * sizeof(float)));
  if (!bytes) return -1;
  float *worth = (float *)(bytes + 2 * n_rows * n_in);
  Pairs pairs = {what, bytes, worth, worth + 2 * n_rows};
  for (int64_t row = 0; row < n_rows; row++) round_pair(&pairs, row);
  const int64_t n_panels = divided_up(what->weight->n_out, PANEL);
  threads.run(threads.context, score_block, divided_up(n_panels, PANELS), &pairs);
  free(bytes);
  return 0;
}
