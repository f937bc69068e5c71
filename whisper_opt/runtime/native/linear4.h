/* Matrix products with 4-bit weights. Every variant includes this file once, after linear.h.
 *
 * Each block of 32 inputs is quantized to signed bytes with a step of its own, and each column of weights has a scale
 * per block (whisper_opt/export/graphs/int4_operators.py). Sums of a block are exact integers; blocks are added in
 * float32, one after the other, so that all variants compute the same bits.
 *
 * The vectors of a variant define:
 *   SignedQuad      four signed bytes of a row, repeated for all columns; read_signed_quad() reads them
 *   dot_nibbles()   adds their products with four numbers of every column, each from 0 to 15 in a byte
 *   nibble_sums()   the sums of 32 bits after at most 8 calls of dot_nibbles()
 */

/* One call of `linear4` or `output_head4`. */
typedef struct NibbleCall {
  const Packed *weight;
  int64_t n_rows, panels; /* per task */
  int64_t stride;         /* columns of y */
  int8_t *integers;       /* [n_rows, n_in] */
  float *step;            /* [n_rows, n_in / 32] */
  int32_t *zero;          /* [n_rows, n_in / 32], minus the zero point of the weights times the sum of a block */
  const Linear *linear;   /* either of them */
  const Output *output;
  const float *offset; /* [n_rows], added to the row */
} NibbleCall;

/* Quantizes a row. A NaN stays and appears in the product. */
static void round_blocks(const NibbleCall *call, int64_t row, const float *x) {
  const int64_t n = call->weight->n_in, blocks = n / NIBBLE_BLOCK;
  for (int64_t block = 0; block < blocks; block++) {
    const vf first = vf_load(x + block * NIBBLE_BLOCK), second = vf_load(x + block * NIBBLE_BLOCK + WIDTH);
    float absmax = reduce_max_bits(max_bits(max_bits(vi_set1(0), vf_abs(first)), vf_abs(second)));
    if (absmax < LEAST) absmax = LEAST;
    const vf factor = vf_set1(STEPS / absmax);
    const vi low = vf_to_int(vf_mul(first, factor)), high = vf_to_int(vf_mul(second, factor));
    uint8_t *to = (uint8_t *)call->integers + row * n + block * NIBBLE_BLOCK;
    store_low_bytes(to, low);
    store_low_bytes(to + WIDTH, high);
    call->step[row * blocks + block] = absmax / STEPS;
    call->zero[row * blocks + block] = (int32_t)((uint32_t)vi_reduce_add(vi_add(low, high)) * -NIBBLE_ZERO);
  }
}

/* Stores the product of a row with 16 columns, and what is added to it. */
INLINE void store_total(const NibbleCall *call, int64_t row, int64_t column, vf total) {
  const int64_t left = call->weight->n_out - column, at = row * call->stride + column;
  const Linear *args = call->linear;
  if (!args) {
    vf_store_tail(call->output->y + at, left, vf_add(total, vf_set1(call->offset[row])));
    return;
  }
  total = vf_add(total, vf_load_tail(args->bias + column, left));
  if (args->residual) total = vf_add(total, vf_load_tail(args->residual + at, left));
  vf_store_tail(args->y + at, left, total);
}

#define EACH_ROW(DO) DO(0) DO(1) DO(2) DO(3) DO(4) DO(5)

/* With 16 registers, totals are in memory: GCC 12 would keep sums there, in the inner loop. */
#if FEW_REGISTERS
#define TOTALS_IN_MEMORY(totals) __asm__ volatile("" : : "r"(totals) : "memory");
#else
#define TOTALS_IN_MEMORY(totals)
#endif

/* One tile of a product: some rows by a panel of 16 columns, which is one stream of memory. */
INLINE void nibble_tile(const int rows, const NibbleCall *call, int64_t row, int64_t column) {
  const int64_t n_in = call->weight->n_in, blocks = n_in / NIBBLE_BLOCK;
  const char *columns = (const char *)call->weight->panels + column / WIDTH * blocks * NIBBLE_BYTES;
  const int8_t *x = call->integers + row * n_in;
  const float *step = call->step + row * blocks;
  const int32_t *zero = call->zero + row * blocks;
  const vi mask = vi_set1(0x0f0f0f0f);
  vf totals[TILE];
  for (int r = 0; r < rows; r++) totals[r] = vf_set1(0);
  for (int64_t block = 0; block < blocks; block++) {
#define DECLARE(r) vi sum##r = vi_set1(0);
    EACH_ROW(DECLARE)
#undef DECLARE
    for (int octet = 0; octet < NIBBLE_BLOCK / 8; octet++, x += 8, columns += 4 * WIDTH) {
      const vi both = vi_load(columns), low = vi_and(both, mask), high = vi_and(vi_shift_right_4(both), mask);
#define DOT_LOW(r) \
  if (rows > r) sum##r = dot_nibbles(sum##r, read_signed_quad(x + r * n_in), low);
#define DOT_HIGH(r) \
  if (rows > r) sum##r = dot_nibbles(sum##r, read_signed_quad(x + r * n_in + 4), high);
      EACH_ROW(DOT_LOW) EACH_ROW(DOT_HIGH)
#undef DOT_HIGH
#undef DOT_LOW
    }
    const vf scale = vf_load((const float *)columns);
    columns += sizeof(float) * WIDTH;
    TOTALS_IN_MEMORY(totals)
#define ADD(r)                                                                           \
  if (rows > r) {                                                                        \
    const vi sum = vi_add(nibble_sums(sum##r), vi_set1(zero[r * blocks + block]));       \
    const vf factor = vf_mul(scale, vf_set1(step[r * blocks + block]));                  \
    totals[r] = vf_fma(vi_to_float(sum), factor, totals[r]);                             \
  }
    EACH_ROW(ADD)
#undef ADD
  }
  for (int r = 0; r < rows; r++) store_total(call, row + r, column, totals[r]);
}

typedef void (*NibbleTile)(const NibbleCall *call, int64_t row, int64_t column);
#define NIBBLE_TILE(n)                                                                    \
  static void nibble_tile_##n(const NibbleCall *call, int64_t row, int64_t column) {      \
    nibble_tile(n, call, row, column);                                                    \
  }
NIBBLE_TILE(1) NIBBLE_TILE(2) NIBBLE_TILE(3) NIBBLE_TILE(4) NIBBLE_TILE(5) NIBBLE_TILE(6)
static const NibbleTile NIBBLE_TILES[] = {NULL,          nibble_tile_1, nibble_tile_2, nibble_tile_3,
                                          nibble_tile_4, nibble_tile_5, nibble_tile_6};

/* Tiles of about equal height: weights are unpacked once per tile. */
static int64_t tile_height(int64_t n_rows) { return ceil_div(n_rows, ceil_div(n_rows, TILE)); }

static void nibble_block(void *data, size_t task) {
  const NibbleCall *call = data;
  const int64_t n_out = call->weight->n_out, width = call->panels * PANEL, groups = ceil_div(n_out, width);
  const int64_t first_column = (int64_t)task % groups * width, end_column = min64(first_column + width, n_out);
  const int64_t first = (int64_t)task / groups * TASK_ROWS, end = min64(first + TASK_ROWS, call->n_rows);
  const int64_t height = tile_height(end - first);
  for (int64_t column = first_column; column < end_column; column += WIDTH)
    for (int64_t row = first; row < end; row += height) NIBBLE_TILES[min64(height, end - row)](call, row, column);
}

/* Memory for the quantized inputs; NULL if there is none. */
static void *alloc_nibbles(NibbleCall *call) {
  const int64_t n_in = call->weight->n_in, blocks = call->n_rows * (n_in / NIBBLE_BLOCK);
  call->step = malloc(blocks * (sizeof(float) + sizeof(int32_t)) + call->n_rows * n_in);
  call->zero = (int32_t *)(call->step + blocks);
  call->integers = (int8_t *)(call->zero + blocks);
  return call->step;
}

static void multiply_nibbles(NibbleCall *call, Threads threads) {
  const int64_t n_out = call->weight->n_out;
  call->panels = panels_per_task(n_out, call->n_rows);
  const int64_t tasks = ceil_div(call->n_rows, TASK_ROWS) * ceil_div(n_out, call->panels * PANEL);
  threads.run(threads.context, nibble_block, tasks, call);
}

static void round_nibble_row(const NibbleCall *call, int64_t row) {
  const Linear *args = call->linear;
  const int64_t n = args->weight->n_in;
  const float *x = args->x + row * n;
  float changed[n] __attribute__((aligned(64)));
  if (args->gelu)
    gelu_row(x, n, changed);
  else if (args->gain)
    norm_row(x, n, args->gain, args->shift, changed);
  round_blocks(call, row, args->gelu || args->gain ? changed : x);
}

static void round_nibble_rows(void *data, size_t task) {
  const NibbleCall *call = data;
  const int64_t first = (int64_t)task * ROUND_ROWS;
  for (int64_t row = first; row < first + ROUND_ROWS && row < call->n_rows; row++) round_nibble_row(call, row);
}

static int linear4(const Linear *args, Threads threads) {
  if (args->n_rows == 0) return 0;
  NibbleCall call = {.weight = args->weight, .n_rows = args->n_rows, .stride = args->weight->n_out, .linear = args};
  void *memory = alloc_nibbles(&call);
  if (!memory) return -1;
  if (args->n_rows <= SERIAL_ROWS)
    for (int64_t row = 0; row < args->n_rows; row++) round_nibble_row(&call, row);
  else
    threads.run(threads.context, round_nibble_rows, ceil_div(args->n_rows, ROUND_ROWS), &call);
  multiply_nibbles(&call, threads);
  free(memory);
  return 0;
}

/* --- the output head ---------------------------------------------------------------------------------------------- */

/* Two float16 numbers per element, as float32. Neither infinities nor NaN are stored. */
INLINE vf half_to_float(vi high) { /* in the high half; the low half is 0 */
  const vi magnitude = vi_shift_right_3(vi_and(high, vi_set1(0x7fff0000)));
  const vf value = vf_mul(vi_as_float(magnitude), vf_set1(0x1p112f));
  return vi_as_float(vi_or(vf_bits(value), vi_and(high, vi_set1(INT32_MIN))));
}

/* Products with float16 weights, y [rows, columns] = x @ weight, added up in the order of the inputs. */
INLINE void half_tile(const int rows, const int vectors, const NibbleCall *call, int64_t row, int64_t column) {
  const Packed *weight = call->output->special;
  const int64_t n_in = weight->n_in, beside = n_in / 2 * WIDTH * 4;
  const char *columns = (const char *)weight->panels + column / WIDTH * beside;
  const float *x = call->output->x + row * n_in;
#define DECLARE(r, j) vf total##r##j = vf_set1(0);
  EACH(DECLARE)
#undef DECLARE
  for (int64_t i = 0; i < n_in; i += 2, columns += 4 * WIDTH) {
#define COLUMN(j)                                                                     \
  const vi pair##j = vectors > j ? vi_load(columns + beside * j) : vi_set1(0);        \
  const vf first##j = half_to_float(vi_shift_left(pair##j, 16));                      \
  const vf second##j = half_to_float(vi_and(pair##j, vi_set1((int32_t)0xffff0000)));
    EACH_COLUMN(COLUMN)
#undef COLUMN
#define ADD(r, j)                                                                          \
  if (USED(r, j)) {                                                                        \
    total##r##j = vf_fma(vf_set1(x[r * n_in + i]), first##j, total##r##j);                 \
    total##r##j = vf_fma(vf_set1(x[r * n_in + i + 1]), second##j, total##r##j);            \
  }
    EACH(ADD)
#undef ADD
  }
#define STORE(r, j)                                                                                              \
  if (USED(r, j))                                                                                                \
    vf_store_tail(call->output->y + (row + r) * call->stride + call->weight->n_out + column + WIDTH * j,         \
                  weight->n_out - column - WIDTH * j, total##r##j);
  EACH(STORE)
#undef STORE
}

#define HALF_VECTORS(rows) ((rows) == 1 ? 4 : (rows) == 2 ? 2 : 1)
#define HALF_TILE(n)                                                                   \
  static void half_tile_##n(const NibbleCall *call, int64_t row, int64_t column) {     \
    half_tile(n, HALF_VECTORS(n), call, row, column);                                  \
  }
HALF_TILE(1) HALF_TILE(2) HALF_TILE(3) HALF_TILE(4) HALF_TILE(5) HALF_TILE(6)
static const NibbleTile HALF_TILES[] = {NULL,        half_tile_1, half_tile_2, half_tile_3,
                                        half_tile_4, half_tile_5, half_tile_6};

static void half_block(const NibbleCall *call, int64_t task) {
  const int64_t first = task * TASK_PANELS * PANEL, n_out = call->output->special->n_out;
  const int64_t end = min64(first + TASK_PANELS * PANEL, n_out), height = tile_height(call->n_rows);
  for (int64_t row = 0; row < call->n_rows; row += height) {
    const int64_t n = min64(height, call->n_rows - row);
    for (int64_t column = first; column < end; column += HALF_VECTORS(n) * WIDTH) HALF_TILES[n](call, row, column);
  }
}

/* Tasks of the words, then those of the special tokens. */
static void head_of_nibbles(void *data, size_t task) {
  const NibbleCall *call = data;
  const int64_t groups = ceil_div(ceil_div(call->weight->n_out, PANEL), TASK_PANELS);
  const int64_t words = groups * ceil_div(call->n_rows, TASK_ROWS);
  if ((int64_t)task < words)
    nibble_block(data, task);
  else
    half_block(call, (int64_t)task - words);
}

static void round_head_row(const NibbleCall *call, int64_t row, float *offset) {
  const Output *args = call->output;
  const int64_t n = args->weight->n_in;
  const float *x = args->x + row * n;
  float shrunk[n] __attribute__((aligned(64)));
  vf sum = vf_set1(0);
  for (int64_t i = 0; i < n; i += WIDTH) {
    vf_store(shrunk + i, vf_mul(vf_load(x + i), vf_load(args->shrink + i)));
    sum = vf_fma(vf_load(x + i), vf_load(args->mean + i), sum);
  }
  *offset = vf_reduce_add(sum);
  round_blocks(call, row, shrunk);
}

static int output_head4(const Output *args, Threads threads) {
  if (args->n_rows == 0) return 0;
  const int64_t n_out = args->weight->n_out, n_special = args->special->n_out;
  float *offset = malloc(args->n_rows * sizeof(float));
  NibbleCall call = {.weight = args->weight, .n_rows = args->n_rows, .panels = TASK_PANELS, .output = args};
  void *memory = offset ? alloc_nibbles(&call) : NULL;
  if (memory) {
    call.stride = n_out + n_special;
    call.offset = offset;
    for (int64_t row = 0; row < args->n_rows; row++) round_head_row(&call, row, offset + row);
    const int64_t words = ceil_div(ceil_div(n_out, PANEL), TASK_PANELS) * ceil_div(args->n_rows, TASK_ROWS);
    const int64_t specials = ceil_div(n_special, TASK_PANELS * PANEL);
    threads.run(threads.context, head_of_nibbles, words + specials, &call);
    free(memory);
  }
  free(offset);
  return memory ? 0 : -1;
}
