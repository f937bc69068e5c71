/* Self-attention of the decoder, in float32, over a cache that is updated in place.
 *
 * Each query is computed by itself and in one order: the sum of a score over vectors of channels and then within the
 * vector, the sum of the weights over vectors of keys, the weighted sum of values over even and over odd keys. Its
 * result depends on the query and on the keys up to its own position only, whatever other rows, queries or positions
 * there are: a prompt in one call equals single steps bit for bit. Every variant includes this file once, after
 * attention.h.
 */

enum {
  TASK_TOKENS = 32,    /* queries per task */
  SERIAL_PAIRS = 2048, /* queries times keys that take less time than starting threads */
};

/* 2 ^ x for x <= 0, at least 2 ^ -120; relative error 1e-7. */
INLINE vf exp2_of(vf x) {
  x = vf_max(vf_set1(-120), x); /* minus infinity has no fraction; NaN stays */
  const vf whole = vf_round(x);
  const vf part = vf_sub(x, whole);
  vf sum = vf_set1(0.000153455928f);
  sum = vf_fma(sum, part, vf_set1(0.00133999294f));
  sum = vf_fma(sum, part, vf_set1(0.00961848977f));
  sum = vf_fma(sum, part, vf_set1(0.0555032878f));
  sum = vf_fma(sum, part, vf_set1(0.240226469f));
  sum = vf_fma(sum, part, vf_set1(0.693147206f));
  sum = vf_fma(sum, part, vf_set1(1));
  return vf_scale(sum, whole);
}

/* Turns n scores (times LOG2_E; MASKED after the last, up to a whole vector) into weights; returns their sum. */
static float soften(float *scores, int64_t n) {
  vf max = vf_load(scores), total = vf_set1(0);
  for (int64_t t = WIDTH; t < n; t += WIDTH) max = vf_max(max, vf_load(scores + t));
  const vf most = vf_set1(vf_reduce_max(max));
  for (int64_t t = 0; t < n; t += WIDTH) {
    const vf weight = exp2_of(vf_sub(vf_load(scores + t), most));
    vf_store(scores + t, weight);
    total = vf_add(total, weight);
  }
  return vf_reduce_add(total);
}

/* Attention of a query to n keys; scores: working memory for n, rounded up to whole vectors. */
static void attend_past(const float *query, const float *keys, const float *values, int64_t n, float *scores,
                        float *y) {
  vf q[VECTORS], even[VECTORS], odd[VECTORS];
  for (int j = 0; j < VECTORS; j++) {
    q[j] = vf_mul(vf_load(query + WIDTH * j), vf_set1(SCORE_SCALE * LOG2_E));
    even[j] = odd[j] = vf_set1(0);
  }
  for (int64_t t = 0; t < n; t++) {
    vf sum = vf_mul(q[0], vf_load(keys + t * HEAD));
    for (int j = 1; j < VECTORS; j++) sum = vf_fma(q[j], vf_load(keys + t * HEAD + WIDTH * j), sum);
    scores[t] = vf_reduce_add(sum);
  }
  for (int64_t t = n; t % WIDTH; t++) scores[t] = MASKED;
  const vf total = vf_set1(soften(scores, n));
  for (int64_t t = 0; t + 1 < n; t += 2, values += 2 * HEAD)
    for (int j = 0; j < VECTORS; j++) {
      even[j] = vf_fma(vf_set1(scores[t]), vf_load(values + WIDTH * j), even[j]);
      odd[j] = vf_fma(vf_set1(scores[t + 1]), vf_load(values + HEAD + WIDTH * j), odd[j]);
    }
  for (int j = 0; j < VECTORS; j++) {
    if (n % 2) even[j] = vf_fma(vf_set1(scores[n - 1]), vf_load(values + WIDTH * j), even[j]);
    vf_store(y + WIDTH * j, vf_div(vf_add(even[j], odd[j]), total));
  }
}

/* Appends the new keys and values of one head of one row to its cache; positions beyond its capacity are padding. */
static void append_head(void *data, size_t task) {
  const SelfAttention *args = data;
  const int64_t state = args->n_head * HEAD, row = (int64_t)task / args->n_head, head = (int64_t)task % args->n_head;
  const float *from = args->qkv + row * args->n_new * 3 * state + state + head * HEAD;
  const int64_t at = (int64_t)task * args->capacity + args->start[row];
  const int64_t n = min64(args->n_new, args->capacity - args->start[row]);
  for (int64_t i = 0; i < n; i++, from += 3 * state) {
    memcpy(args->keys + (at + i) * HEAD, from, HEAD * sizeof *from);
    memcpy(args->values + (at + i) * HEAD, from + state, HEAD * sizeof *from);
  }
}

static void attend_head(void *data, size_t task) {
  const SelfAttention *args = data;
  const int64_t groups = ceil_div(args->n_new, TASK_TOKENS), state = args->n_head * HEAD;
  const int64_t index = (int64_t)task / groups, row = index / args->n_head, head = index % args->n_head;
  const int64_t first = (int64_t)task % groups * TASK_TOKENS, end = min64(first + TASK_TOKENS, args->n_new);
  const float *keys = args->keys + index * args->capacity * HEAD;
  const float *values = args->values + index * args->capacity * HEAD;
  float scores[ceil_div(args->capacity, WIDTH) * WIDTH] __attribute__((aligned(64)));
  for (int64_t i = first; i < end; i++) {
    const int64_t token = row * args->n_new + i, n = min64(args->start[row] + i + 1, args->capacity);
    attend_past(args->qkv + token * 3 * state + head * HEAD, keys, values, n, scores,
                args->y + token * state + head * HEAD);
  }
}

static void self_attention(const SelfAttention *args, Threads threads) {
  const int64_t heads = args->n_seq * args->n_head, tasks = heads * ceil_div(args->n_new, TASK_TOKENS);
  int64_t pairs = 0;
  for (int64_t row = 0; row < args->n_seq; row++)
    pairs += args->n_head * args->n_new * (args->start[row] + (args->n_new + 1) / 2);
  if (pairs > SERIAL_PAIRS) {
    threads.run(threads.context, append_head, heads, (void *)args);
    threads.run(threads.context, attend_head, tasks, (void *)args);
    return;
  }
  for (int64_t i = 0; i < heads; i++) append_head((void *)args, i);
  for (int64_t i = 0; i < tasks; i++) attend_head((void *)args, i);
}
