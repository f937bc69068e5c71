/* GELU of the encoder's convolutions of three frames, with 16-bit weights. Row t of the product is frames t * stride - 1,
 * t * stride and t * stride + 1, rounded together. */

enum { TASK_POSITIONS = 24 };

/* Some positions of an audio: rounded rows, and the step of each. */
typedef struct ConvRows {
  const Conv *args;
  const int16_t *integers; /* [n, n_in] */
  const float *step;       /* [n] */
  float *y;                /* [n, n_out] */
} ConvRows;

/* One tile: rows from `row` on, columns from `column` on. */
INLINE void convolve(const int rows, const int vectors, const ConvRows *of, int64_t row, int64_t column) {
  const Conv *args = of->args;
  const int64_t n_in = 3 * args->n_channels, n_out = args->n_out;
  const vi from0 = vi_set1(0), from1 = from0, from2 = from0, from3 = from0;
  EACH(TILE_DECLARE_)
  TILE_WORDS(of->integers + row * n_in, n_in, args->weight + column * n_in, n_in / 2, 2 * WIDTH * n_in)
#define COLUMN(j)                                                                                  \
  const vf scale##j = vectors > j ? vf_load(args->scale + column + WIDTH * j) : vf_set1(0);        \
  const vf bias##j = vectors > j ? vf_load(args->bias + column + WIDTH * j) : vf_set1(0);
  EACH_COLUMN(COLUMN)
#undef COLUMN
#define STORE(r, j)                                                                \
  if (USED(r, j)) {                                                                \
    const vf factor = vf_mul(scale##j, vf_set1(of->step[row + r]));                \
    const vf value = vf_fma(vi_to_float(sum##r##j), factor, bias##j);              \
    vf_store(of->y + (row + r) * n_out + column + WIDTH * j, gelu(value));         \
  }
  EACH(STORE)
#undef STORE
}

typedef void (*Convolve)(const ConvRows *of, int64_t row, int64_t column);
#define CONVOLVE(rows)                                                              \
  static void convolve_##rows(const ConvRows *of, int64_t row, int64_t column) {    \
    convolve(rows, TILE_COLUMNS / WIDTH, of, row, column);                          \
  }
CONVOLVE(1) CONVOLVE(2) CONVOLVE(3) CONVOLVE(4) CONVOLVE(5) CONVOLVE(6)
static const Convolve CONVOLVES[] = {NULL,       convolve_1, convolve_2, convolve_3,
                                     convolve_4, convolve_5, convolve_6};

/* Rounds the frames of a position; returns the step. */
static float round_position(const Conv *args, const float *x, int64_t position, int16_t *to) {
  const int64_t n = args->n_channels, first = position * args->stride - 1;
  float rows[3 * n] __attribute__((aligned(64)));
  for (int64_t i = 0; i < 3; i++) {
    if (first + i >= 0 && first + i < args->n_frames)
      memcpy(rows + i * n, x + (first + i) * n, n * sizeof *x);
    else
      memset(rows + i * n, 0, n * sizeof *x);
  }
  float absmax = absmax_row(rows, 3 * n);
  if (absmax < LEAST) absmax = LEAST; /* a NaN stays and appears in the product */
  const vf factor = vf_set1(CONV_STEPS / absmax);
  for (int64_t i = 0; i < 3 * n; i += WIDTH) store_words(to + i, vf_to_int(vf_mul(vf_load(rows + i), factor)));
  return absmax / CONV_STEPS;
}

/* The positions of all tasks of an audio. */
static int64_t conv_positions(const Conv *args) { return args->n_frames ? (args->n_frames - 1) / args->stride + 1 : 0; }

static void convolve_positions(void *data, size_t task) {
  const Conv *args = data;
  const int64_t n_in = 3 * args->n_channels, n_positions = conv_positions(args);
  const int64_t tasks = ceil_div(n_positions, TASK_POSITIONS), audio = (int64_t)task / tasks;
  const int64_t first = (int64_t)task % tasks * TASK_POSITIONS, n = min64(TASK_POSITIONS, n_positions - first);
  const float *x = args->x + audio * args->n_frames * args->n_channels;
  int16_t integers[TASK_POSITIONS * n_in] __attribute__((aligned(64)));
  float step[TASK_POSITIONS];
  for (int64_t i = 0; i < n; i++) step[i] = round_position(args, x, first + i, integers + i * n_in);
  const ConvRows of = {args, integers, step, args->y + (audio * n_positions + first) * args->n_out};
  for (int64_t column = 0; column < args->n_out; column += TILE_COLUMNS)
    for (int64_t row = 0, rows; row < n; row += rows) {
      rows = rows_of_tile(n - row);
      CONVOLVES[rows](&of, row, column);
    }
}

static void convolution(const Conv *args, Threads threads) {
  const int64_t tasks = args->n_audio * ceil_div(conv_positions(args), TASK_POSITIONS);
  threads.run(threads.context, convolve_positions, tasks, (void *)args);
}
