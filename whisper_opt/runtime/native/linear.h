/* Matrix products with 8-bit weights, and the quantization of their inputs. Every variant includes this file once,
 * after its vectors. */
#include <math.h>
#include <stdlib.h>

enum {
  TASK_ROWS = 48,  /* rows per task of a product */
  TASK_PANELS = 8, /* panels per task, at most */
  SERIAL_ROWS = 8, /* up to this many rows are quantized in the calling thread: tasks would cost more */
  ROUND_ROWS = 32, /* rows per task of the quantization, and of the layer normalization */
};

static const float GELU_LEAST = GELU_LOW * GELU_STEPS / GELU_ZERO;

/* Exact GELU: erf by Abramowitz and Stegun, Handbook of Mathematical Functions, 7.1.28 (error 3e-7). */
INLINE vf gelu(vf x) {
  const vf one = vf_set1(1);
  const vf clamp = vf_set1(10); /* erf is 1 there, and the powers below are still finite */
  const vf z = vf_min(clamp, vf_mul(vf_abs(x), vf_set1(0.707106781f)));
  vf sum = vf_set1(0.0000430638f);
  sum = vf_fma(sum, z, vf_set1(0.0002765672f));
  sum = vf_fma(sum, z, vf_set1(0.0001520143f));
  sum = vf_fma(sum, z, vf_set1(0.0092705272f));
  sum = vf_fma(sum, z, vf_set1(0.0422820123f));
  sum = vf_fma(sum, z, vf_set1(0.0705230784f));
  sum = vf_fma(sum, z, one);
  vf rest = vf_reciprocal_estimate(sum); /* then one Newton step, and the 16th power */
  rest = vf_mul(rest, vf_fnma(sum, rest, vf_set1(2)));
  rest = vf_mul(rest, rest);
  rest = vf_mul(rest, rest);
  rest = vf_mul(rest, rest);
  const vf half = vf_mul(x, vf_set1(0.5f));
  return vf_fma(vf_abs(half), vf_fnma(rest, rest, one), half);
}

/* GELU of a row; returns the largest magnitude. That of a negative value is less than GELU_LEAST, so it does not matter,
 * but a NaN may be negative. */
static float gelu_row(const float *x, int64_t n, float *to) {
  vi max = vi_set1(0);
  for (int64_t i = 0; i < n; i += WIDTH) {
    const vf value = gelu(vf_load(x + i));
    vf_store(to + i, value);
    max = max_bits(max, vf_abs(value));
  }
  return reduce_max_bits(max);
}

/* Layer normalization of a row; returns the largest magnitude. */
static float norm_row(const float *x, int64_t n, const float *gain, const float *shift, float *to) {
  vf sum = vf_set1(0), squares = vf_set1(0);
  vi max = vi_set1(0);
  for (int64_t i = 0; i < n; i += WIDTH) sum = vf_add(sum, vf_load(x + i));
  const vf mean = vf_set1(vf_reduce_add(sum) / n);
  for (int64_t i = 0; i < n; i += WIDTH) {
    const vf centred = vf_sub(vf_load(x + i), mean);
    vf_store(to + i, centred);
    squares = vf_fma(centred, centred, squares);
  }
  const vf factor = vf_set1(1 / sqrtf(vf_reduce_add(squares) / n + 1e-5f));
  for (int64_t i = 0; i < n; i += WIDTH) {
    const vf even = vf_mul(vf_load(to + i), factor);
    const vf value = vf_fma(even, vf_load(gain + i), vf_load(shift + i));
    vf_store(to + i, value);
    max = max_bits(max, vf_abs(value));
  }
  return reduce_max_bits(max);
}

static void norm_rows(void *data, size_t task) {
  const LayerNorm *args = data;
  const int64_t first = (int64_t)task * ROUND_ROWS, end = min64(first + ROUND_ROWS, args->n_rows);
  for (int64_t row = first; row < end; row++)
    norm_row(args->x + row * args->n, args->n, args->gain, args->shift, args->y + row * args->n);
}

static void layer_norm(const LayerNorm *args, Threads threads) {
  if (args->n_rows <= ROUND_ROWS)
    norm_rows((void *)args, 0);
  else
    threads.run(threads.context, norm_rows, ceil_div(args->n_rows, ROUND_ROWS), (void *)args);
}

static float absmax_row(const float *x, int64_t n) {
  vi max = vi_set1(0);
  for (int64_t i = 0; i < n; i += WIDTH) max = max_bits(max, vf_abs(vf_load(x + i)));
  return reduce_max_bits(max);
}

/* One call of `linear`: the quantized inputs and the division into tasks. */
typedef struct LinearCall {
  const Linear *args;
  Unsigned *integers; /* [n_rows, n_in] */
  uint8_t *bytes;     /* the same in bytes, or NULL; then `integers` is NULL */
  float *step;        /* [n_rows], quantization step of each row */
  int64_t panels;     /* per task */
} LinearCall;

static void round_row(const LinearCall *call, int64_t row) {
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
  const vf factor = vf_set1(steps / absmax);
  const vi zero = vi_set1(args->gelu ? GELU_ZERO : ZERO);
  call->step[row] = absmax / steps;
#ifdef BYTE_TILE
  if (call->bytes) {
    uint8_t *to = call->bytes + row * n;
    for (int64_t i = 0; i < n; i += WIDTH)
      store_saturated_bytes(to + i, vi_add(vf_to_int(vf_mul(vf_load(x + i), factor)), zero));
    return;
  }
#endif
  Unsigned *to = call->integers + row * n;
  for (int64_t i = 0; i < n; i += WIDTH)
    store_saturated(to + i, vi_add(vf_to_int(vf_mul(vf_load(x + i), factor)), zero));
}

static void round_rows(void *data, size_t task) {
  const LinearCall *call = data;
  const int64_t first = (int64_t)task * ROUND_ROWS, n_rows = call->args->n_rows;
  for (int64_t row = first; row < first + ROUND_ROWS && row < n_rows; row++) round_row(call, row);
}

/* How a tile is computed: many rows, few rows, or rows of bytes. */
enum { MANY, FEW, BYTES };

/* One tile of a product. */
INLINE void multiply(const int rows, const int vectors, const int how, const LinearCall *call, int64_t row,
                     int64_t column, const void *columns) {
  const Linear *args = call->args;
  const int64_t n_in = args->weight->n_in, n_out = args->weight->n_out;
  const int few = how == FEW;
  TILE_FROM_ZERO(args->weight->sums + column, args->gelu ? GELU_ZERO : ZERO)
#ifdef BYTE_TILE
  if (how == BYTES)
    TILE_BYTES(call->bytes + row * n_in, n_in, columns, n_in / 4)
  else
#endif
    TILE_PRODUCTS(COLUMNS, call->integers + row * n_in, n_in, columns, n_in / 4, WEIGHT_NEXT, WEIGHT_BESIDE(n_in))
#define COLUMN(j)                                                              \
  const int64_t left##j = vectors > j ? n_out - column - WIDTH * j : 0;        \
  const vf scale##j = vf_load_tail(args->scale + column + WIDTH * j, left##j); \
  const vf bias##j = vf_load_tail(args->bias + column + WIDTH * j, left##j);
  EACH_COLUMN(COLUMN)
#undef COLUMN
#define STORE(r, j)                                                                         \
  if (USED(r, j)) {                                                                         \
    const int64_t at = (row + r) * n_out + column + WIDTH * j;                              \
    const vf factor = vf_mul(scale##j, vf_set1(call->step[row + r]));                       \
    vf value = vf_fma(vi_to_float(sum##r##j), factor, bias##j);                             \
    if (args->residual) value = vf_add(value, vf_load_tail(args->residual + at, left##j)); \
    vf_store_tail(args->y + at, left##j, value);                                            \
  }
  EACH(STORE)
#undef STORE
}

typedef void (*Multiply)(const LinearCall *call, int64_t row, int64_t column, const void *columns);
#define MULTIPLY(name, rows, vectors, how)                                                                \
  static void name(const LinearCall *call, int64_t row, int64_t column, const void *columns) {            \
    multiply(rows, vectors, how, call, row, column, columns);                                             \
  }
#define MULTIPLY_MANY(n) MULTIPLY(multiply_##n, n, TILE_COLUMNS / WIDTH, MANY)
MULTIPLY_MANY(1) MULTIPLY_MANY(2) MULTIPLY_MANY(3) MULTIPLY_MANY(4) MULTIPLY_MANY(5) MULTIPLY_MANY(6)
static const Multiply MULTIPLIES[] = {NULL,       multiply_1, multiply_2, multiply_3,
                                      multiply_4, multiply_5, multiply_6};
#if FEW_ROWS
MULTIPLY(multiply_one, 1, FEW_VECTORS(1), FEW)
MULTIPLY(multiply_two, 2, FEW_VECTORS(2), FEW)
static const Multiply MULTIPLY_FEW[] = {NULL, multiply_one, multiply_two};
#endif
#ifdef BYTE_TILE
#define MULTIPLY_BYTES(n) MULTIPLY(multiply_bytes_##n, n, 1, BYTES)
MULTIPLY_BYTES(1) MULTIPLY_BYTES(2) MULTIPLY_BYTES(3) MULTIPLY_BYTES(4)
static const Multiply MULTIPLIES_BYTES[] = {NULL, multiply_bytes_1, multiply_bytes_2, multiply_bytes_3,
                                            multiply_bytes_4};
#endif

/* A product of rows from `first` to `end` with some columns. */
static void multiply_rows(const LinearCall *call, int64_t first, int64_t end, int64_t column, int64_t end_column) {
  const Packed *weight = call->args->weight;
#ifdef BYTE_TILE
  if (call->bytes) {
    for (; column < end_column; column += TILE_COLUMNS)
      for (int64_t row = first; row < end; row += BYTE_TILE)
        MULTIPLIES_BYTES[min64(BYTE_TILE, end - row)](call, row, column, columns_at(weight, column));
    return;
  }
#endif
#if FEW_ROWS
  const int64_t n = end - first;
  if (n <= FEW_ROWS) {
    for (; column < end_column; column += FEW_VECTORS(n) * WIDTH)
      MULTIPLY_FEW[n](call, first, column, columns_at(weight, column));
    return;
  }
#endif
  char buffer[PREPARED_SIZE(weight->n_in / 4) + 64] __attribute__((aligned(64)));
  for (; column < end_column; column += TILE_COLUMNS) {
    const void *columns = prepare_signed(columns_at(weight, column), weight->n_in / 4, WEIGHT_NEXT, buffer);
    for (int64_t row = first, rows; row < end; row += rows) {
      rows = rows_of_tile(end - row);
      MULTIPLIES[rows](call, row, column, columns);
    }
  }
}

/* Panels per task. With few rows tasks are smaller, so that there are at least about eight. */
static int64_t panels_per_task(int64_t n_out, int64_t n_rows) {
  return min64(TASK_PANELS, ceil_div(ceil_div(n_out, PANEL) * ceil_div(n_rows, TASK_ROWS), 8));
}

static void multiply_block(void *data, size_t task) {
  const LinearCall *call = data;
  const int64_t n_out = call->args->weight->n_out, width = call->panels * PANEL, groups = ceil_div(n_out, width);
  const int64_t column = (int64_t)task % groups * width, first = (int64_t)task / groups * TASK_ROWS;
  multiply_rows(call, first, min64(first + TASK_ROWS, call->args->n_rows), column, min64(column + width, n_out));
}

static int linear(const Linear *args, Threads threads) {
  const int64_t n_rows = args->n_rows, n_in = args->weight->n_in;
  if (n_rows == 0) return 0;
#ifdef BYTE_TILE
  const int bytes = args->weight->four_fit && n_rows > FEW_ROWS;
#else
  const int bytes = 0;
#endif
  const size_t size = bytes ? 1 : sizeof(Unsigned);
  char *integers = malloc(n_rows * (n_in * size + sizeof(float)));
  if (!integers) return -1;
  const int64_t n_out = args->weight->n_out, panels = panels_per_task(n_out, n_rows);
  LinearCall call = {.args = args, .step = (float *)(integers + n_rows * n_in * size), .panels = panels};
  if (bytes)
    call.bytes = (uint8_t *)integers;
  else
    call.integers = (Unsigned *)integers;
  if (n_rows <= SERIAL_ROWS)
    round_rows(&call, 0);
  else
    threads.run(threads.context, round_rows, ceil_div(n_rows, ROUND_ROWS), &call);
  const int64_t tasks = ceil_div(n_rows, TASK_ROWS) * ceil_div(n_out, panels * PANEL);
  threads.run(threads.context, multiply_block, tasks, &call);
  free(integers);
  return 0;
}

/* The output head: every input is a pair of rows of integers from 1 to 127. */

#if SEVEN_BITS
typedef uint8_t Small;
#define SMALL_PAIRS 2 /* per tile */
#define store_small store_low_bytes
#else
typedef Unsigned Small;
#define SMALL_PAIRS (TILE / 2)
#define store_small store_unsigned
#endif

/* One call of `output_head`. */
typedef struct HeadCall {
  const Output *args;
  Small *integers; /* [n_rows, 2, n_in] */
  float *step;        /* [n_rows, 2], quantization steps of both rows */
  float *offset;      /* [n_rows], dot product with the mean */
} HeadCall;

static void round_pair(const HeadCall *call, int64_t row) {
  const Output *args = call->args;
  const int64_t n = args->weight->n_in;
  const float *x = args->x + row * n;
  Small *high = call->integers + 2 * row * n, *low = high + n;
  vf max = vf_set1(1e-30f), sum = vf_set1(0);
  for (int64_t i = 0; i < n; i += WIDTH) {
    const vf value = vf_load(x + i);
    max = vf_max(max, vf_abs(vf_mul(value, vf_load(args->shrink + i))));
    sum = vf_fma(value, vf_load(args->mean + i), sum);
  }
  const float step = vf_reduce_max(max) / HEAD_STEPS;
  const vi zero = vi_set1(HEAD_ZERO);
  for (int64_t i = 0; i < n; i += WIDTH) {
    const vf shrunk = vf_mul(vf_load(x + i), vf_load(args->shrink + i));
    const vf steps = vf_div(shrunk, vf_set1(step));
    const vi whole = vf_to_int(steps);
    const vf left = vf_sub(steps, vi_to_float(whole));
    const vi rest = vf_to_int(vf_mul(left, vf_set1(2 * HEAD_STEPS)));
    store_small(high + i, vi_add(whole, zero));
    store_small(low + i, vi_add(rest, zero));
  }
  call->step[2 * row] = step;
  call->step[2 * row + 1] = step / (2 * HEAD_STEPS);
  call->offset[row] = vf_reduce_add(sum);
}

INLINE void head_tile(const int rows, const int vectors, const int few, const HeadCall *call, int64_t row,
                      int64_t column, const void *columns) {
  const Output *args = call->args;
  const int64_t n_in = args->weight->n_in, n_out = args->weight->n_out;
  TILE_FROM_ZERO(args->weight->sums + column, HEAD_ZERO)
  const Small *integers = call->integers + 2 * row * n_in;
#if SEVEN_BITS
  TILE_SEVEN_BITS(integers, n_in, columns, n_in / 4, WEIGHT_BESIDE(n_in))
#else
  TILE_PRODUCTS(COLUMNS, integers, n_in, columns, n_in / 4, WEIGHT_NEXT, WEIGHT_BESIDE(n_in))
#endif
#define STORE(pair, high, low, j)                                                  \
  if (USED(low, j)) {                                                              \
    const int64_t left = n_out - column - WIDTH * j;                               \
    const float *step = call->step + 2 * (row + pair);                             \
    const vf rest = vf_mul(vi_to_float(sum##low##j), vf_set1(step[1]));            \
    const vf all = vf_fma(vi_to_float(sum##high##j), vf_set1(step[0]), rest);      \
    const vf scale = vf_load_tail(args->scale + column + WIDTH * j, left);         \
    const vf y = vf_fma(all, scale, vf_set1(call->offset[row + pair]));            \
    vf_store_tail(args->y + (row + pair) * n_out + column + WIDTH * j, left, y);   \
  }
#define PAIRS(j) STORE(0, 0, 1, j) STORE(1, 2, 3, j) STORE(2, 4, 5, j)
  EACH_COLUMN(PAIRS)
#undef PAIRS
#undef STORE
}

typedef void (*HeadTile)(const HeadCall *call, int64_t row, int64_t column, const void *columns);
#define HEAD_TILE(name, n, vectors, few)                                                                  \
  static void name(const HeadCall *call, int64_t row, int64_t column, const void *columns) {              \
    head_tile(2 * n, vectors, few, call, row, column, columns);                                           \
  }
#define HEAD_MANY(n) HEAD_TILE(head_tile_##n, n, TILE_COLUMNS / WIDTH, 0)
HEAD_MANY(1) HEAD_MANY(2) HEAD_MANY(3)
static const HeadTile HEAD_TILES[] = {NULL, head_tile_1, head_tile_2, head_tile_3};
#if FEW_ROWS && !SEVEN_BITS
HEAD_TILE(head_tile_one, 1, FEW_VECTORS(2), 1)
#endif

static void head_block(void *data, size_t task) {
  const HeadCall *call = data;
  const Packed *weight = call->args->weight;
  const int64_t n_rows = call->args->n_rows, first = (int64_t)task * TASK_PANELS * PANEL;
  const int64_t end = min64(first + TASK_PANELS * PANEL, weight->n_out);
#if FEW_ROWS && !SEVEN_BITS
  if (n_rows == 1) { /* a pair */
    for (int64_t column = first; column < end; column += FEW_VECTORS(2) * WIDTH)
      head_tile_one(call, 0, column, columns_at(weight, column));
    return;
  }
#endif
#if !SEVEN_BITS
  char buffer[PREPARED_SIZE(weight->n_in / 4) + 64] __attribute__((aligned(64)));
#endif
  for (int64_t column = first; column < end; column += TILE_COLUMNS) {
    const void *columns = columns_at(weight, column);
#if !SEVEN_BITS
    columns = prepare_signed(columns, weight->n_in / 4, WEIGHT_NEXT, buffer);
#endif
    for (int64_t row = 0; row < n_rows; row += SMALL_PAIRS)
      HEAD_TILES[min64(SMALL_PAIRS, n_rows - row)](call, row, column, columns);
  }
}

static int output_head(const Output *args, Threads threads) {
  const int64_t n_rows = args->n_rows, n_in = args->weight->n_in;
  if (n_rows == 0) return 0;
  Small *integers = malloc(n_rows * (2 * n_in * sizeof(Small) + 3 * sizeof(float)));
  if (!integers) return -1;
  float *step = (float *)(integers + 2 * n_rows * n_in);
  HeadCall call = {args, integers, step, step + 2 * n_rows};
  for (int64_t row = 0; row < n_rows; row++) round_pair(&call, row);
  const int64_t n_panels = ceil_div(args->weight->n_out, PANEL);
  threads.run(threads.context, head_block, ceil_div(n_panels, TASK_PANELS), &call);
  free(integers);
  return 0;
}
