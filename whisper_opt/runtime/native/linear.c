/* Matrix products with 8-bit weights, and the quantization of their inputs. */
#include "aligned.h"
#include "kernels.h"

#include <math.h>
#include <stdlib.h>

#include "tile.h"

enum {
  TASK_ROWS = 48,  /* rows per task of a product */
  TASK_PANELS = 8, /* panels per task, at most */
  SERIAL_ROWS = 8, /* up to this many rows are quantized in the calling thread: tasks would cost more */
  ROUND_ROWS = 32, /* rows per task of the quantization */
};

static const float GELU_LEAST = GELU_LOW * GELU_STEPS / GELU_ZERO;

int pack_weight(Packed *packed, const int8_t *weight, int64_t n_in, int64_t n_out) {
  const int64_t n_panels = (n_out + PANEL - 1) / PANEL;
  packed->n_in = n_in;
  packed->n_out = n_out;
  packed->panels = alloc_aligned(n_panels * PANEL * n_in);
  packed->sums = alloc_aligned(n_panels * PANEL * sizeof(int32_t));
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
  free_aligned(packed->panels);
  free_aligned(packed->sums);
  packed->panels = NULL;
  packed->sums = NULL;
}

/* Exact GELU: erf by Abramowitz and Stegun, Handbook of Mathematical Functions, 7.1.28 (error 3e-7). */
VNNI_INLINE __m512 gelu(__m512 x) {
  const __m512 one = _mm512_set1_ps(1);
  const __m512 clamp = _mm512_set1_ps(10); /* erf is 1 there, and the powers below are still finite */
  const __m512 z = _mm512_min_ps(clamp, _mm512_mul_ps(_mm512_abs_ps(x), _mm512_set1_ps(0.707106781f)));
  __m512 sum = _mm512_set1_ps(0.0000430638f);
  sum = _mm512_fmadd_ps(sum, z, _mm512_set1_ps(0.0002765672f));
  sum = _mm512_fmadd_ps(sum, z, _mm512_set1_ps(0.0001520143f));
  sum = _mm512_fmadd_ps(sum, z, _mm512_set1_ps(0.0092705272f));
  sum = _mm512_fmadd_ps(sum, z, _mm512_set1_ps(0.0422820123f));
  sum = _mm512_fmadd_ps(sum, z, _mm512_set1_ps(0.0705230784f));
  sum = _mm512_fmadd_ps(sum, z, one);
  __m512 rest = _mm512_rcp14_ps(sum); /* then one Newton step, and the 16th power */
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
  __m512i max = _mm512_setzero_si512();
  for (int64_t i = 0; i < n; i += WIDTH) {
    const __m512 value = gelu(_mm512_loadu_ps(x + i));
    _mm512_store_ps(to + i, value);
    max = max_bits(max, value);
  }
  return reduce_max_bits(max);
}

/* Layer normalization of a row; returns the largest magnitude. */
VNNI static float norm_row(const float *x, int64_t n, const float *gain, const float *shift, float *to) {
  __m512 sum = _mm512_setzero_ps(), squares = _mm512_setzero_ps();
  __m512i max = _mm512_setzero_si512();
  for (int64_t i = 0; i < n; i += WIDTH) sum = _mm512_add_ps(sum, _mm512_loadu_ps(x + i));
  const __m512 mean = _mm512_set1_ps(_mm512_reduce_add_ps(sum) / n);
  for (int64_t i = 0; i < n; i += WIDTH) {
    const __m512 centred = _mm512_sub_ps(_mm512_loadu_ps(x + i), mean);
    _mm512_store_ps(to + i, centred);
    squares = _mm512_fmadd_ps(centred, centred, squares);
  }
  const __m512 factor = _mm512_set1_ps(1 / sqrtf(_mm512_reduce_add_ps(squares) / n + 1e-5f));
  for (int64_t i = 0; i < n; i += WIDTH) {
    const __m512 even = _mm512_mul_ps(_mm512_load_ps(to + i), factor);
    const __m512 value = _mm512_fmadd_ps(even, _mm512_loadu_ps(gain + i), _mm512_loadu_ps(shift + i));
    _mm512_store_ps(to + i, value);
    max = max_bits(max, _mm512_abs_ps(value));
  }
  return reduce_max_bits(max);
}

VNNI static float absmax_row(const float *x, int64_t n) {
  __m512i max = _mm512_setzero_si512();
  for (int64_t i = 0; i < n; i += WIDTH) max = max_bits(max, _mm512_abs_ps(_mm512_loadu_ps(x + i)));
  return reduce_max_bits(max);
}

/* One call of `linear`: the quantized inputs and the division into tasks. */
typedef struct LinearCall {
  const Linear *args;
  uint8_t *bytes; /* [n_rows, n_in] */
  float *step;    /* [n_rows], quantization step of each row */
  int64_t panels; /* per task */
} LinearCall;

VNNI static void round_row(const LinearCall *call, int64_t row) {
  const Linear *args = call->args;
  const int64_t n = args->weight->n_in;
  const float *x = args->x + row * n;
  float changed[n] __attribute__((aligned(64)));
  float absmax;
  if (args->gelu) {
    absmax = gelu_row(x, n, changed);
    x = changed;
  } else if (args->gain) {
    absmax = norm_row(x, n, args->gain, args->shift, changed);
    x = changed;
  } else {
    absmax = absmax_row(x, n);
  }
  const float least = args->gelu ? GELU_LEAST : LEAST;
  if (absmax < least) absmax = least; /* a NaN stays and appears in the product */
  const float steps = args->gelu ? GELU_STEPS : STEPS;
  const __m512 factor = _mm512_set1_ps(steps / absmax);
  const __m512i zero = _mm512_set1_epi32(args->gelu ? GELU_ZERO : ZERO);
  uint8_t *to = call->bytes + row * n;
  for (int64_t i = 0; i < n; i += WIDTH) {
    const __m512i integers = _mm512_cvtps_epi32(_mm512_mul_ps(_mm512_loadu_ps(x + i), factor));
    const __m512i bytes = _mm512_max_epi32(_mm512_add_epi32(integers, zero), _mm512_setzero_si512());
    _mm_storeu_si128((void *)(to + i), _mm512_cvtusepi32_epi8(bytes));
  }
  call->step[row] = absmax / steps;
}

static void round_rows(void *data, size_t task) {
  const LinearCall *call = data;
  const int64_t first = (int64_t)task * ROUND_ROWS, n_rows = call->args->n_rows;
  for (int64_t row = first; row < first + ROUND_ROWS && row < n_rows; row++) round_row(call, row);
}

VNNI_INLINE void multiply(const int rows, const LinearCall *call, int64_t row, int64_t panel) {
  const Linear *args = call->args;
  const int64_t n_in = args->weight->n_in, n_out = args->weight->n_out, column = panel * PANEL;
  const int32_t *sums = args->weight->sums + column;
  TILE_FROM_ZERO(sums, args->gelu ? GELU_ZERO : ZERO)
  TILE_PRODUCTS(call->bytes + row * n_in, n_in, args->weight->panels + column * n_in, n_in / 4, SIGNED_PANEL)
#define COLUMN(j)                                                                           \
  const int64_t left##j = n_out - column - WIDTH * j;                                       \
  const __mmask16 some##j = TAIL_MASK(left##j);                                             \
  const __m512 scale##j = _mm512_maskz_loadu_ps(some##j, args->scale + column + WIDTH * j); \
  const __m512 bias##j = _mm512_maskz_loadu_ps(some##j, args->bias + column + WIDTH * j);
  COLUMN(0) COLUMN(1) COLUMN(2) COLUMN(3)
#undef COLUMN
#define STORE(r, j)                                                                      \
  if (rows > r) {                                                                        \
    const int64_t at = (row + r) * n_out + column + WIDTH * j;                           \
    const __m512 factor = _mm512_mul_ps(scale##j, _mm512_set1_ps(call->step[row + r]));  \
    __m512 value = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum##r##j), factor, bias##j);      \
    if (args->residual)                                                                  \
      value = _mm512_add_ps(value, _mm512_maskz_loadu_ps(some##j, args->residual + at)); \
    _mm512_mask_storeu_ps(args->y + at, some##j, value);                                 \
  }
  EACH(STORE)
#undef STORE
}

typedef void (*Multiply)(const LinearCall *call, int64_t row, int64_t panel);
#define MULTIPLY(n) \
  VNNI static void multiply_##n(const LinearCall *call, int64_t row, int64_t panel) { multiply(n, call, row, panel); }
MULTIPLY(1) MULTIPLY(2) MULTIPLY(3) MULTIPLY(4) MULTIPLY(5) MULTIPLY(6)
static const Multiply MULTIPLIES[] = {NULL,       multiply_1, multiply_2, multiply_3,
                                      multiply_4, multiply_5, multiply_6};

static void multiply_block(void *data, size_t task) {
  const LinearCall *call = data;
  const int64_t n_panels = ceil_div(call->args->weight->n_out, PANEL);
  const int64_t groups = ceil_div(n_panels, call->panels);
  const int64_t first_panel = (int64_t)task % groups * call->panels;
  const int64_t end_panel = min64(first_panel + call->panels, n_panels);
  const int64_t first = (int64_t)task / groups * TASK_ROWS, end = min64(first + TASK_ROWS, call->args->n_rows);
  for (int64_t panel = first_panel; panel < end_panel; panel++)
    for (int64_t row = first; row < end; row += TILE) MULTIPLIES[min64(TILE, end - row)](call, row, panel);
}

int linear(const Linear *args, Threads threads) {
  const int64_t n_rows = args->n_rows, n_in = args->weight->n_in;
  if (n_rows == 0) return 0;
  uint8_t *bytes = malloc(n_rows * (n_in + sizeof(float)));
  if (!bytes) return -1;
  LinearCall call = {args, bytes, (float *)(bytes + n_rows * n_in), TASK_PANELS};
  if (n_rows <= SERIAL_ROWS)
    round_rows(&call, 0);
  else
    threads.run(threads.context, round_rows, ceil_div(n_rows, ROUND_ROWS), &call);
  const int64_t blocks = ceil_div(n_rows, TASK_ROWS), n_panels = ceil_div(args->weight->n_out, PANEL);
  /* few rows: smaller tasks, so that there are at least about eight */
  call.panels = min64(TASK_PANELS, ceil_div(n_panels * blocks, 8));
  threads.run(threads.context, multiply_block, blocks * ceil_div(n_panels, call.panels), &call);
  free(bytes);
  return 0;
}

/* The output head: every input is a pair of rows of bytes. */

/* One call of `output_head`. */
typedef struct HeadCall {
  const Output *args;
  uint8_t *bytes; /* [n_rows, 2, n_in] */
  float *step;    /* [n_rows, 2], quantization steps of both rows */
  float *offset;  /* [n_rows], dot product with the mean */
} HeadCall;

VNNI static void round_pair(const HeadCall *call, int64_t row) {
  const Output *args = call->args;
  const int64_t n = args->weight->n_in;
  const float *x = args->x + row * n;
  uint8_t *high = call->bytes + 2 * row * n, *low = high + n;
  __m512 max = _mm512_set1_ps(1e-30f), sum = _mm512_setzero_ps();
  for (int64_t i = 0; i < n; i += WIDTH) {
    const __m512 value = _mm512_loadu_ps(x + i);
    max = _mm512_max_ps(max, _mm512_abs_ps(_mm512_mul_ps(value, _mm512_loadu_ps(args->shrink + i))));
    sum = _mm512_fmadd_ps(value, _mm512_loadu_ps(args->mean + i), sum);
  }
  const float step = _mm512_reduce_max_ps(max) / HEAD_STEPS;
  const __m512i zero = _mm512_set1_epi32(HEAD_ZERO);
  for (int64_t i = 0; i < n; i += WIDTH) {
    const __m512 shrunk = _mm512_mul_ps(_mm512_loadu_ps(x + i), _mm512_loadu_ps(args->shrink + i));
    const __m512 steps = _mm512_div_ps(shrunk, _mm512_set1_ps(step));
    const __m512i whole = _mm512_cvtps_epi32(steps);
    const __m512 left = _mm512_sub_ps(steps, _mm512_cvtepi32_ps(whole));
    const __m512i rest = _mm512_cvtps_epi32(_mm512_mul_ps(left, _mm512_set1_ps(2 * HEAD_STEPS)));
    _mm_storeu_si128((void *)(high + i), _mm512_cvtepi32_epi8(_mm512_add_epi32(whole, zero)));
    _mm_storeu_si128((void *)(low + i), _mm512_cvtepi32_epi8(_mm512_add_epi32(rest, zero)));
  }
  call->step[2 * row] = step;
  call->step[2 * row + 1] = step / (2 * HEAD_STEPS);
  call->offset[row] = _mm512_reduce_add_ps(sum);
}

VNNI_INLINE void head_tile(const int rows, const HeadCall *call, int64_t row, int64_t panel) {
  const Output *args = call->args;
  const int64_t n_in = args->weight->n_in, n_out = args->weight->n_out, column = panel * PANEL;
  const int32_t *sums = args->weight->sums + column;
  TILE_FROM_ZERO(sums, HEAD_ZERO)
  TILE_PRODUCTS(call->bytes + 2 * row * n_in, n_in, args->weight->panels + column * n_in, n_in / 4, SIGNED_PANEL)
#define STORE(pair, high, low, j)                                                                        \
  if (rows > low) {                                                                                      \
    const int64_t left = n_out - column - WIDTH * j;                                                     \
    const __mmask16 some = TAIL_MASK(left);                                                              \
    const float *step = call->step + 2 * (row + pair);                                                   \
    const __m512 rest = _mm512_mul_ps(_mm512_cvtepi32_ps(sum##low##j), _mm512_set1_ps(step[1]));         \
    const __m512 all = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum##high##j), _mm512_set1_ps(step[0]), rest); \
    const __m512 scale = _mm512_maskz_loadu_ps(some, args->scale + column + WIDTH * j);                  \
    const __m512 y = _mm512_fmadd_ps(all, scale, _mm512_set1_ps(call->offset[row + pair]));              \
    _mm512_mask_storeu_ps(args->y + (row + pair) * n_out + column + WIDTH * j, some, y);                 \
  }
#define PAIR(pair, high, low) \
  STORE(pair, high, low, 0) STORE(pair, high, low, 1) STORE(pair, high, low, 2) STORE(pair, high, low, 3)
  PAIR(0, 0, 1) PAIR(1, 2, 3) PAIR(2, 4, 5)
#undef PAIR
#undef STORE
}

typedef void (*HeadTile)(const HeadCall *call, int64_t row, int64_t panel);
#define HEAD_TILE(n)                                                                       \
  VNNI static void head_tile_##n(const HeadCall *call, int64_t row, int64_t panel) {       \
    head_tile(2 * n, call, row, panel);                                                    \
  }
HEAD_TILE(1) HEAD_TILE(2) HEAD_TILE(3)
static const HeadTile HEAD_TILES[] = {NULL, head_tile_1, head_tile_2, head_tile_3};

static void head_block(void *data, size_t task) {
  const HeadCall *call = data;
  const int64_t n_rows = call->args->n_rows, n_panels = ceil_div(call->args->weight->n_out, PANEL);
  const int64_t first = (int64_t)task * TASK_PANELS, end = min64(first + TASK_PANELS, n_panels);
  for (int64_t panel = first; panel < end; panel++)
    for (int64_t row = 0; row < n_rows; row += TILE / 2) HEAD_TILES[min64(TILE / 2, n_rows - row)](call, row, panel);
}

int output_head(const Output *args, Threads threads) {
  const int64_t n_rows = args->n_rows, n_in = args->weight->n_in;
  if (n_rows == 0) return 0;
  uint8_t *bytes = malloc(n_rows * (2 * n_in + 3 * sizeof(float)));
  if (!bytes) return -1;
  float *step = (float *)(bytes + 2 * n_rows * n_in);
  HeadCall call = {args, bytes, step, step + 2 * n_rows};
  for (int64_t row = 0; row < n_rows; row++) round_pair(&call, row);
  const int64_t n_panels = ceil_div(args->weight->n_out, PANEL);
  threads.run(threads.context, head_block, ceil_div(n_panels, TASK_PANELS), &call);
  free(bytes);
  return 0;
}
