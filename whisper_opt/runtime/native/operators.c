/* The operators of domain "whisper_opt" for ONNX Runtime. Each is defined by the ONNX function of the same name in the
 * graph (whisper_opt/export/graphs/operators.py), which ONNX Runtime runs if this library is not registered. */
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "dispatch.h"
#include "ort_abi.h"

/* One of each per process, shared by all sessions. Several threads may create sessions at the same time. */
static const OrtApi *_Atomic api;
static OrtCustomOpDomain *_Atomic domain;

#define CALL(name, ...) ORT_CALL(api, name, __VA_ARGS__)
#define TRY(name, ...)                                   \
  do {                                                   \
    OrtStatus *status_ = CALL(name, __VA_ARGS__);        \
    if (status_) return status_;                         \
  } while (0)

enum { MAX_INPUTS = 6, MAX_OUTPUTS = 3, MAX_DIMS = 6, NONE = -1 };

typedef struct Kernel Kernel;
typedef OrtStatus *(*Compute)(const Kernel *kernel, OrtKernelContext *context, Threads threads);

/* An operator, the types of its inputs and outputs, and the indices of the inputs of products. */
typedef struct Operator {
  OrtCustomOp base; /* must be first: ONNX Runtime passes its address */
  const char *name;
  Compute compute;
  size_t n_inputs, n_outputs;
  int inputs[MAX_INPUTS], outputs[MAX_OUTPUTS];
  int weight;        /* index of an input; 0 if the operator is no product */
  int of_columns[2]; /* scale, and bias or NONE */
  int of_rows[2];    /* gain and shift; the head's shrink and mean */
  int residual;
  int gelu;
  int stride; /* of a convolution */
  int n_attributes; /* num_heads, then layer */
  int looks_up; /* reads single columns of the weight, which is not packed for it */
  int nibbles;  /* index of the scales of 4-bit weights */
  int special;  /* index of the float16 weights of special tokens */
} Operator;

/* An operator in a session. */
struct Kernel {
  const Operator *operator;
  const Kernels *variant;
  Packed weight, special;
  int64_t n_head, layer;
};

typedef struct Shape {
  int64_t sizes[MAX_DIMS];
  size_t n;
} Shape;

static const char TOO_MANY[] = "attention to more than 4096 positions is not supported";

static OrtStatus *refused(const char *why) { return CALL(CreateStatus, ORT_FAIL, why); }

static OrtStatus *shape_of(const OrtValue *value, Shape *shape) {
  OrtTensorTypeAndShapeInfo *info = NULL;
  memset(shape, 0, sizeof *shape);
  TRY(GetTensorTypeAndShape, value, &info);
  OrtStatus *status = CALL(GetDimensionsCount, info, &shape->n);
  if (!status && shape->n > MAX_DIMS) status = refused("an input has too many dimensions");
  if (!status) status = CALL(GetDimensions, info, shape->sizes, shape->n);
  CALL(ReleaseTensorTypeAndShapeInfo, info);
  return status;
}

static int is_shape(const Shape *shape, const int64_t *sizes, size_t n) {
  return shape->n == n && !memcmp(shape->sizes, sizes, n * sizeof *sizes);
}

static OrtStatus *input(const OrtKernelContext *context, int i, const void **data, Shape *shape) {
  const OrtValue *value = NULL;
  *data = NULL;
  if (i == NONE) return NULL;
  TRY(KernelContext_GetInput, context, (size_t)i, &value);
  TRY(GetTensorMutableData, (OrtValue *)value, (void **)data);
  return shape ? shape_of(value, shape) : NULL;
}

static OrtStatus *output(OrtKernelContext *context, size_t i, Shape shape, void **data) {
  OrtValue *value = NULL;
  TRY(KernelContext_GetOutput, context, i, shape.sizes, shape.n, &value);
  return CALL(GetTensorMutableData, value, data);
}

/* One call of a kernel, and the first failure of its tasks. */
typedef struct Run {
  OrtKernelContext *context;
  OrtStatus *failure;
} Run;

static void run_on_threads(void *data_of_run, void (*work)(void *, size_t), size_t count, void *data) {
  Run *run = data_of_run;
  if (run->failure) return;
  /* as many batches as calls: every free thread takes the next */
  run->failure = CALL(KernelContext_ParallelFor, run->context, work, count, count, data);
}

static OrtStatus *finished(int code) { return code ? refused("out of memory") : NULL; }

static OrtStatus *constant(const OrtKernelInfo *info, int i, const OrtValue **value, Shape *shape) {
  int is_constant = 0;
  TRY(KernelInfoGetConstantInput_tensor, info, (size_t)i, &is_constant, value);
  return is_constant ? shape_of(*value, shape) : refused("weights must be constant");
}

/* Checks that a constant input has n elements; they are not counted again at run time. */
static OrtStatus *check_vector(const OrtKernelInfo *info, int i, int64_t n) {
  const OrtValue *value = NULL;
  Shape shape;
  if (i == NONE) return NULL;
  OrtStatus *status = constant(info, i, &value, &shape);
  if (!status && (shape.n != 1 || shape.sizes[0] != n))
    return refused("the length of a vector does not match its weights");
  return status;
}

/* The number of columns of a weight: as many as it has scales. */
static OrtStatus *count_columns(const OrtKernelInfo *info, const Operator *op, int64_t *n) {
  const OrtValue *value = NULL;
  Shape shape;
  OrtStatus *status = constant(info, op->of_columns[0], &value, &shape);
  if (status) return status;
  if (shape.n != 1) return refused("scale is not [n_out]");
  *n = shape.sizes[0];
  return NULL;
}

/* Checks and keeps the sizes of a weight [n_in, n_out], with which the vectors beside it must agree. */
static OrtStatus *take_sizes(const OrtKernelInfo *info, Kernel *kernel, int64_t n_in, int64_t n_out) {
  const Operator *op = kernel->operator;
  OrtStatus *status = NULL;
  if (n_in > MAX_INPUT) return refused("weights must have at most 16384 rows");
  for (int i = 0; !status && i < 2; i++) {
    status = check_vector(info, op->of_columns[i], n_out);
    if (!status) status = check_vector(info, op->of_rows[i], n_in);
  }
  kernel->weight.n_in = n_in;
  kernel->weight.n_out = n_out;
  return status;
}

/* Reads the weight of an operator: panels of 64 columns, or [n_in, n_out] in engines before format 5. */
static OrtStatus *read_weight(const OrtKernelInfo *info, Kernel *kernel) {
  const Operator *op = kernel->operator;
  const OrtValue *value = NULL;
  void *weight = NULL;
  int64_t n_in, n_out = 0;
  Shape shape;
  OrtStatus *status = constant(info, op->weight, &value, &shape);
  if (!status) status = count_columns(info, op, &n_out);
  if (status) return status;
  const int in_panels = shape.n == 4;
  n_in = in_panels ? 4 * shape.sizes[1] : shape.sizes[0];
  if (in_panels ? !is_shape(&shape, (const int64_t[]){ceil_div(n_out, PANEL), n_in / 4, PANEL, 4}, 4)
                : op->looks_up || !is_shape(&shape, (const int64_t[]){n_in, n_out}, 2))
    return refused("the shape of the weight does not match its scales");
  if (n_in % 16) return refused("weights must have a multiple of 16 rows");
  status = take_sizes(info, kernel, n_in, n_out);
  if (status || op->looks_up) return status;
  TRY(GetTensorMutableData, (OrtValue *)value, &weight);
  return finished((in_panels ? use_panels : pack_weight)(&kernel->weight, weight, n_in, n_out, kernel->variant->width));
}

/* Reads 4-bit weights [n_out, n_in / 32, 16] and their scales [n_out, n_in / 32], and packs them. */
static OrtStatus *read_nibbles(const OrtKernelInfo *info, Kernel *kernel) {
  const Operator *op = kernel->operator;
  const OrtValue *value = NULL, *scales = NULL;
  void *weight = NULL, *scale = NULL;
  Shape shape, of_scales;
  OrtStatus *status = constant(info, op->weight, &value, &shape);
  if (!status) status = constant(info, op->nibbles, &scales, &of_scales);
  if (status) return status;
  const int64_t n_out = shape.sizes[0], blocks = shape.sizes[1], n_in = blocks * NIBBLE_BLOCK;
  if (!is_shape(&shape, (const int64_t[]){n_out, blocks, NIBBLE_BLOCK / 2}, 3) ||
      !is_shape(&of_scales, (const int64_t[]){n_out, blocks}, 2))
    return refused("the shape of the weight does not match its scales");
  status = take_sizes(info, kernel, n_in, n_out);
  if (status || op->looks_up) return status;
  TRY(GetTensorMutableData, (OrtValue *)value, &weight);
  TRY(GetTensorMutableData, (OrtValue *)scales, &scale);
  return finished(pack_nibbles(&kernel->weight, weight, scale, n_in, n_out));
}

/* Reads the weights of special tokens, float16 [n, n_in]. */
static OrtStatus *read_special(const OrtKernelInfo *info, Kernel *kernel) {
  const OrtValue *value = NULL;
  void *data = NULL;
  Shape shape;
  OrtStatus *status = constant(info, kernel->operator->special, &value, &shape);
  if (status) return status;
  if (!is_shape(&shape, (const int64_t[]){shape.sizes[0], kernel->weight.n_in}, 2))
    return refused("the weights of special tokens do not match the others");
  kernel->special.n_out = shape.sizes[0];
  if (kernel->operator->looks_up) return NULL;
  TRY(GetTensorMutableData, (OrtValue *)value, &data);
  for (int64_t i = 0; i < shape.sizes[0] * shape.sizes[1]; i++)
    if ((((const uint16_t *)data)[i] & 0x7c00) == 0x7c00) return refused("weights must be finite");
  return finished(pack_halves(&kernel->special, data, kernel->weight.n_in, shape.sizes[0]));
}

static OrtStatus *read_weights(const OrtKernelInfo *info, Kernel *kernel) {
  OrtStatus *status = (kernel->operator->nibbles ? read_nibbles : read_weight)(info, kernel);
  return status || !kernel->operator->special ? status : read_special(info, kernel);
}

/* The weight for one call. Panels that were not copied are read where ONNX Runtime has them. */
static OrtStatus *weight_of(const Kernel *kernel, const OrtKernelContext *context, Packed *weight) {
  *weight = kernel->weight;
  return weight->copy ? NULL : input(context, kernel->operator->weight, (const void **)&weight->panels, NULL);
}

static OrtStatus *read_attributes(const OrtKernelInfo *info, Kernel *kernel) {
  const int n = kernel->operator->n_attributes;
  if (n == 0) return NULL;
  TRY(KernelInfoGetAttribute_int64, info, "num_heads", &kernel->n_head);
  if (kernel->n_head < 1 || kernel->n_head > MAX_HEADS) return refused("num_heads must be from 1 to 1024");
  return n > 1 ? CALL(KernelInfoGetAttribute_int64, info, "layer", &kernel->layer) : NULL;
}

static void destroy(void *created) {
  Kernel *kernel = created;
  free_weight(&kernel->weight);
  free_weight(&kernel->special);
  free(kernel);
}

static OrtStatus *create(const OrtCustomOp *op, const OrtApi *unused, const OrtKernelInfo *info, void **created) {
  (void)unused;
  Kernel *kernel = calloc(1, sizeof *kernel);
  if (!kernel) return finished(-1);
  const char *why = NULL;
  OrtStatus *status = NULL;
  kernel->operator=(const Operator *) op;
  kernel->variant = kernels_in_use(&why);
  if (!kernel->variant)
    status = refused(why);
  else
    status = kernel->operator->weight ? read_weights(info, kernel) : read_attributes(info, kernel);
  if (status)
    destroy(kernel);
  else
    *created = kernel;
  return status;
}

static OrtStatus *compute_linear(const Kernel *kernel, OrtKernelContext *context, Threads threads) {
  const Operator *op = kernel->operator;
  Packed weight;
  Linear args = {.weight = &weight, .n_rows = 1, .gelu = op->gelu};
  Shape shape, residual;
  OrtStatus *status = weight_of(kernel, context, &weight);
  if (!status) status = input(context, 0, (const void **)&args.x, &shape);
  if (!status) status = input(context, op->of_rows[0], (const void **)&args.gain, NULL);
  if (!status) status = input(context, op->of_rows[1], (const void **)&args.shift, NULL);
  if (!status) status = input(context, op->of_columns[0], (const void **)&args.scale, NULL);
  if (!status) status = input(context, op->of_columns[1], (const void **)&args.bias, NULL);
  if (!status) status = input(context, op->residual, (const void **)&args.residual, &residual);
  if (status) return status;
  if (shape.n == 0 || shape.sizes[shape.n - 1] != kernel->weight.n_in) return refused("x is not [.., n_in]");
  for (size_t i = 0; i + 1 < shape.n; i++) args.n_rows *= shape.sizes[i];
  shape.sizes[shape.n - 1] = kernel->weight.n_out;
  if (args.residual && !is_shape(&residual, shape.sizes, shape.n))
    return refused("residual does not have the shape of the product");
  status = output(context, 0, shape, (void **)&args.y);
  return status ? status : finished((op->nibbles ? kernel->variant->linear4 : kernel->variant->linear)(&args, threads));
}

static OrtStatus *compute_head(const Kernel *kernel, OrtKernelContext *context, Threads threads) {
  const Operator *op = kernel->operator;
  Packed weight;
  Output args = {.weight = &weight, .n_rows = 1, .special = op->special ? &kernel->special : NULL};
  Shape shape;
  OrtStatus *status = weight_of(kernel, context, &weight);
  if (!status) status = input(context, 0, (const void **)&args.x, &shape);
  if (!status) status = input(context, op->of_rows[0], (const void **)&args.shrink, NULL);
  if (!status) status = input(context, op->of_rows[1], (const void **)&args.mean, NULL);
  if (!status) status = input(context, op->of_columns[0], (const void **)&args.scale, NULL);
  if (status) return status;
  if (shape.n == 0 || shape.sizes[shape.n - 1] != kernel->weight.n_in) return refused("hidden is not [.., n_in]");
  for (size_t i = 0; i + 1 < shape.n; i++) args.n_rows *= shape.sizes[i];
  shape.sizes[shape.n - 1] = kernel->weight.n_out + kernel->special.n_out;
  status = output(context, 0, shape, (void **)&args.y);
  if (status) return status;
  return finished((op->special ? kernel->variant->output_head4 : kernel->variant->output_head)(&args, threads));
}

/* Reads the tokens of an embedding, and makes its output [.., n_in]. */
static OrtStatus *read_tokens(const Kernel *kernel, OrtKernelContext *context, const int64_t **tokens,
                              int64_t *n_tokens, float **y) {
  const int64_t n_vocab = kernel->weight.n_out + kernel->special.n_out;
  Shape shape;
  OrtStatus *status = input(context, 0, (const void **)tokens, &shape);
  if (status) return status;
  if (shape.n == MAX_DIMS) return refused("tokens have too many dimensions");
  *n_tokens = 1;
  for (size_t i = 0; i < shape.n; i++) *n_tokens *= shape.sizes[i];
  for (int64_t i = 0; i < *n_tokens; i++)
    if ((*tokens)[i] < 0 || (*tokens)[i] >= n_vocab) return refused("a token is out of range");
  shape.sizes[shape.n++] = kernel->weight.n_in;
  return output(context, 0, shape, (void **)y);
}

static OrtStatus *compute_embed(const Kernel *kernel, OrtKernelContext *context, Threads threads) {
  (void)threads;
  const Operator *op = kernel->operator;
  const int64_t n_in = kernel->weight.n_in;
  const int64_t *tokens = NULL;
  const float *scale = NULL, *shrink = NULL, *mean = NULL;
  float *y = NULL;
  int64_t n_tokens = 0;
  Packed weight;
  OrtStatus *status = weight_of(kernel, context, &weight);
  if (!status) status = input(context, op->of_columns[0], (const void **)&scale, NULL);
  if (!status) status = input(context, op->of_rows[0], (const void **)&shrink, NULL);
  if (!status) status = input(context, op->of_rows[1], (const void **)&mean, NULL);
  if (!status) status = read_tokens(kernel, context, &tokens, &n_tokens, &y);
  for (int64_t t = 0; !status && t < n_tokens; t++, y += n_in) {
    const int8_t *column = weight.panels + tokens[t] / PANEL * PANEL * n_in + tokens[t] % PANEL * 4;
    for (int64_t i = 0; i < n_in; i++)
      y[i] = (float)column[i / 4 * 4 * PANEL + i % 4] * scale[tokens[t]] * shrink[i] + mean[i];
  }
  return status;
}

static void embed_word(const uint8_t *pairs, const uint16_t *steps, const float *shrink, const float *mean, int64_t n,
                       float *y) {
  for (int64_t i = 0; i < n; i++) {
    const float value = (float)((pairs[i / 2] >> i % 2 * 4 & 15) - NIBBLE_ZERO);
    y[i] = value * half_as_float(steps[i / NIBBLE_BLOCK]) * shrink[i] + mean[i];
  }
}

static OrtStatus *compute_embed4(const Kernel *kernel, OrtKernelContext *context, Threads threads) {
  (void)threads;
  const int64_t n_in = kernel->weight.n_in, n_words = kernel->weight.n_out;
  const int64_t *tokens = NULL;
  const void *data[MAX_INPUTS];
  float *y = NULL;
  int64_t n_tokens = 0;
  OrtStatus *status = read_tokens(kernel, context, &tokens, &n_tokens, &y);
  for (int i = 1; !status && i < 6; i++) status = input(context, i, &data[i], NULL);
  for (int64_t t = 0; !status && t < n_tokens; t++, y += n_in) {
    const uint8_t *pairs = (const uint8_t *)data[1] + tokens[t] * (n_in / 2);
    const uint16_t *steps = (const uint16_t *)data[2] + tokens[t] * (n_in / NIBBLE_BLOCK);
    const uint16_t *special = (const uint16_t *)data[5] + (tokens[t] - n_words) * n_in;
    if (tokens[t] < n_words)
      embed_word(pairs, steps, data[3], data[4], n_in, y);
    else
      for (int64_t i = 0; i < n_in; i++) y[i] = half_as_float(special[i]);
  }
  return status;
}

static OrtStatus *compute_layer_norm(const Kernel *kernel, OrtKernelContext *context, Threads threads) {
  LayerNorm args = {.n_rows = 1};
  Shape x, gain, shift;
  OrtStatus *status = input(context, 0, (const void **)&args.x, &x);
  if (!status) status = input(context, 1, (const void **)&args.gain, &gain);
  if (!status) status = input(context, 2, (const void **)&args.shift, &shift);
  if (status) return status;
  args.n = x.n ? x.sizes[x.n - 1] : 0;
  if (!is_shape(&gain, &args.n, 1) || !is_shape(&shift, &args.n, 1))
    return refused("the shapes of x, gain and shift do not match");
  if (args.n == 0 || args.n % 16) return refused("rows must have a multiple of 16 numbers");
  for (size_t i = 0; i + 1 < x.n; i++) args.n_rows *= x.sizes[i];
  status = output(context, 0, x, (void **)&args.y);
  if (!status) kernel->variant->layer_norm(&args, threads);
  return status;
}

static OrtStatus *compute_conv(const Kernel *kernel, OrtKernelContext *context, Threads threads) {
  Conv args = {.stride = kernel->operator->stride};
  Shape x, weight, scale, bias;
  OrtStatus *status = input(context, 0, (const void **)&args.x, &x);
  if (!status) status = input(context, 1, (const void **)&args.weight, &weight);
  if (!status) status = input(context, 2, (const void **)&args.scale, &scale);
  if (!status) status = input(context, 3, (const void **)&args.bias, &bias);
  if (status) return status;
  args.n_audio = x.sizes[0];
  args.n_frames = x.sizes[1];
  args.n_channels = x.sizes[2];
  args.n_out = scale.sizes[0];
  const int64_t panels[] = {args.n_out / 16, 3 * args.n_channels / 2, 16, 2};
  if (x.n != 3 || !is_shape(&weight, panels, 4) || !is_shape(&scale, &args.n_out, 1) || !is_shape(&bias, &args.n_out, 1))
    return refused("the shapes of x, weight, scale and bias do not match");
  if (args.n_channels % 16 || args.n_out % PANEL || args.n_channels > MAX_CHANNELS)
    return refused("a convolution needs a multiple of 16 channels, 2048 at most, and gives a multiple of 64");
  const Shape y = {{args.n_audio, ceil_div(args.n_frames, args.stride), args.n_out}, 3};
  status = output(context, 0, y, (void **)&args.y);
  if (!status) kernel->variant->convolution(&args, threads);
  return status;
}

static OrtStatus *attend_self(const Kernel *kernel, OrtKernelContext *context, Threads threads, int chosen) {
  Attention args = {.n_head = kernel->n_head};
  Shape shape, other;
  const void *second = NULL;
  OrtStatus *status = input(context, 0, (const void **)&args.qkv, &shape);
  if (!status) status = input(context, 1, &second, &other);
  if (status) return status;
  if (shape.n != 3 || shape.sizes[2] != 3 * HEAD * kernel->n_head)
    return refused("qkv is not [n_audio, n, 3 * num_heads * 64]");
  if (shape.sizes[1] > MAX_KEYS) return refused(TOO_MANY);
  args.n_audio = shape.sizes[0];
  args.n_keys = shape.sizes[1];
  args.n_queries = chosen ? other.sizes[0] : args.n_keys;
  if (chosen && other.n != 1) return refused("positions is not [n]");
  for (int64_t i = 0; chosen && i < args.n_queries; i++)
    if (((const int64_t *)second)[i] < 0 || ((const int64_t *)second)[i] >= args.n_keys)
      return refused("a position is out of range");
  if (!chosen && (other.n != 1 || other.sizes[0] != args.n_keys)) return refused("added is not [n]");
  if (chosen)
    args.positions = second;
  else
    args.added = second;
  const Shape mixed = {{args.n_audio, args.n_queries, HEAD * kernel->n_head}, 3};
  status = output(context, 0, mixed, (void **)&args.y);
  return status ? status : finished(kernel->variant->attention(&args, threads));
}

static OrtStatus *compute_attention(const Kernel *kernel, OrtKernelContext *context, Threads threads) {
  return attend_self(kernel, context, threads, 0);
}

static OrtStatus *compute_attention_at(const Kernel *kernel, OrtKernelContext *context, Threads threads) {
  return attend_self(kernel, context, threads, 1);
}

/* The new contents of a cache: its memory, if ONNX Runtime has the same for input and output, or else a copy. */
static OrtStatus *updated(OrtKernelContext *context, size_t i, const float *past, Shape shape, float **present) {
  OrtStatus *status = output(context, i, shape, (void **)present);
  if (!status && *present != past) {
    size_t n = 1;
    for (size_t axis = 0; axis < shape.n; axis++) n *= (size_t)shape.sizes[axis];
    memmove(*present, past, n * sizeof *past);
  }
  return status;
}

static OrtStatus *compute_self(const Kernel *kernel, OrtKernelContext *context, Threads threads) {
  SelfAttention args = {.n_head = kernel->n_head};
  Shape qkv, keys, values, start;
  const float *past[2];
  OrtStatus *status = input(context, 0, (const void **)&args.qkv, &qkv);
  if (!status) status = input(context, 1, (const void **)&past[0], &keys);
  if (!status) status = input(context, 2, (const void **)&past[1], &values);
  if (!status) status = input(context, 3, (const void **)&args.start, &start);
  if (status) return status;
  args.n_seq = qkv.sizes[0];
  args.n_new = qkv.sizes[1];
  args.capacity = keys.sizes[2];
  const int64_t rows[] = {args.n_seq, args.n_new, 3 * HEAD * args.n_head};
  const int64_t cache[] = {args.n_seq, args.n_head, args.capacity, HEAD};
  if (!is_shape(&qkv, rows, 3) || !is_shape(&keys, cache, 4) || !is_shape(&values, cache, 4) ||
      !is_shape(&start, rows, 1))
    return refused("the shapes of qkv, key, value and start do not match");
  if (args.capacity > MAX_KEYS) return refused(TOO_MANY);
  for (int64_t row = 0; row < args.n_seq; row++)
    if (args.start[row] < 0 || args.start[row] >= args.capacity) return refused("a start is not in the cache");
  const Shape mixed = {{args.n_seq, args.n_new, HEAD * args.n_head}, 3};
  status = output(context, 0, mixed, (void **)&args.y);
  if (!status) status = updated(context, 1, past[0], keys, &args.keys);
  if (!status) status = updated(context, 2, past[1], values, &args.values);
  if (!status && args.n_seq && args.n_new) kernel->variant->self_attention(&args, threads);
  return status;
}

static OrtStatus *pack(const Kernel *kernel, OrtKernelContext *context, Threads threads, int keys) {
  Pack args = {.n_head = kernel->n_head, .keys = keys};
  Shape shape;
  OrtStatus *status = input(context, 0, (const void **)&args.x, &shape);
  if (status) return status;
  if (shape.n != 3 || shape.sizes[2] != HEAD * kernel->n_head) return refused("x is not [n_audio, n, num_heads * 64]");
  if (shape.sizes[1] > MAX_KEYS) return refused(TOO_MANY);
  args.n_audio = shape.sizes[0];
  args.n = shape.sizes[1];
  const int64_t n = ceil_div(args.n, BLOCK) * BLOCK;
  const Shape panels = {{args.n_audio, args.n_head, n / 64, HEAD / 4, 64, 4}, 6};
  const Shape quads = {{args.n_audio, args.n_head, n / 4, HEAD, 4}, 5};
  const Shape step = {{args.n_audio, args.n_head, HEAD}, 3};
  status = output(context, 0, keys ? panels : quads, (void **)&args.packed);
  if (!status) status = output(context, 1, step, (void **)&args.step);
  if (!status) kernel->variant->pack_heads(&args, threads);
  return status;
}

static OrtStatus *compute_pack_keys(const Kernel *kernel, OrtKernelContext *context, Threads threads) {
  return pack(kernel, context, threads, 1);
}

static OrtStatus *compute_pack_values(const Kernel *kernel, OrtKernelContext *context, Threads threads) {
  return pack(kernel, context, threads, 0);
}

/* Reads the inputs that both operators of the cross-attention share; `steps` is the index of the input of that name,
 * and `added` follows it. */
static OrtStatus *read_cross(const Kernel *kernel, OrtKernelContext *context, int steps, Cross *args) {
  Shape queries, keys, all, added;
  OrtStatus *status = input(context, 0, (const void **)&args->queries, &queries);
  if (!status) status = input(context, 1, (const void **)&args->keys, &keys);
  if (!status) status = input(context, steps, (const void **)&args->steps, &all);
  if (!status) status = input(context, steps + 1, (const void **)&args->added, &added);
  if (status) return status;
  if (keys.sizes[2] > MAX_KEYS / PANEL) return refused(TOO_MANY);
  args->n_head = kernel->n_head;
  args->layer = kernel->layer;
  args->n_audio = queries.sizes[0];
  args->n_queries = queries.sizes[1];
  args->n_keys = keys.sizes[2] * PANEL;
  args->n_layer = all.sizes[1];
  const int64_t n = args->n_keys, n_audio = args->n_audio, n_head = args->n_head;
  const int64_t panels[] = {n_audio, n_head, n / 64, HEAD / 4, 64, 4}, masked[] = {n_audio, n};
  const int64_t steps_of[] = {n_audio, args->n_layer, 2, n_head, HEAD};
  const int64_t rows[] = {n_audio, args->n_queries, n_head * HEAD};
  if (!is_shape(&queries, rows, 3) || !is_shape(&keys, panels, 6) || !is_shape(&all, steps_of, 5) ||
      !is_shape(&added, masked, 2) || n % BLOCK || args->layer < 0 || args->layer >= args->n_layer)
    return refused("the shapes of queries, keys, steps and added do not match");
  return NULL;
}

static OrtStatus *compute_cross(const Kernel *kernel, OrtKernelContext *context, Threads threads) {
  Cross args = {0};
  Shape values;
  OrtStatus *status = read_cross(kernel, context, 3, &args);
  if (!status) status = input(context, 2, (const void **)&args.values, &values);
  if (status) return status;
  const int64_t quads[] = {args.n_audio, args.n_head, args.n_keys / 4, HEAD, 4};
  if (!is_shape(&values, quads, 5)) return refused("the shapes of values and keys do not match");
  const Shape mixed = {{args.n_audio, args.n_queries, HEAD * args.n_head}, 3};
  status = output(context, 0, mixed, (void **)&args.y);
  if (!status) kernel->variant->cross_attention(&args, threads);
  return status;
}

static OrtStatus *compute_scores(const Kernel *kernel, OrtKernelContext *context, Threads threads) {
  (void)threads; /* one call per window: threads would not pay off */
  Cross args = {0};
  Shape heads, rows;
  const int64_t *chosen = NULL, *wanted = NULL;
  OrtStatus *status = read_cross(kernel, context, 2, &args);
  if (!status) status = input(context, 4, (const void **)&chosen, &heads);
  if (!status) status = input(context, 5, (const void **)&wanted, &rows);
  if (status) return status;
  if (heads.n != 1 || rows.n != 1) return refused("heads or rows is not [n]");
  for (int64_t i = 0; i < heads.sizes[0]; i++)
    if (chosen[i] < 0 || chosen[i] >= args.n_head) return refused("a head is out of range");
  for (int64_t i = 0; i < rows.sizes[0]; i++)
    if (wanted[i] < 0 || wanted[i] >= args.n_queries) return refused("a query is out of range");
  const Shape shape = {{args.n_audio, heads.sizes[0], rows.sizes[0], args.n_keys}, 4};
  status = output(context, 0, shape, (void **)&args.y);
  if (!status) kernel->variant->cross_scores(&args, chosen, heads.sizes[0], wanted, rows.sizes[0]);
  return status;
}

static OrtStatus *compute(void *created, OrtKernelContext *context) {
  const Kernel *kernel = created;
  Run run = {context, NULL};
  const Threads threads = {&run, run_on_threads};
  OrtStatus *status = kernel->operator->compute(kernel, context, threads);
  if (!status) return run.failure;
  if (run.failure) CALL(ReleaseStatus, run.failure);
  return status;
}

static const char *name_of(const OrtCustomOp *op) { return ((const Operator *)op)->name; }
static const char *on_cpu(const OrtCustomOp *op) {
  (void)op;
  return NULL;
}
static int type_of_input(const OrtCustomOp *op, size_t i) { return ((const Operator *)op)->inputs[i]; }
static size_t count_inputs(const OrtCustomOp *op) { return ((const Operator *)op)->n_inputs; }
static int type_of_output(const OrtCustomOp *op, size_t i) { return ((const Operator *)op)->outputs[i]; }
static size_t count_outputs(const OrtCustomOp *op) { return ((const Operator *)op)->n_outputs; }
static int required(const OrtCustomOp *op, size_t i) { /* and: memory of the device itself */
  (void)op, (void)i;
  return 0;
}
static int one(const OrtCustomOp *op) {
  (void)op;
  return 1;
}
static int newest(const OrtCustomOp *op) {
  (void)op;
  return INT32_MAX;
}

#define BASE                                                                                              \
  .base = {.version = ORT_VERSION, .GetName = name_of, .GetExecutionProviderType = on_cpu,                \
           .GetInputType = type_of_input, .GetInputTypeCount = count_inputs,                              \
           .GetOutputType = type_of_output, .GetOutputTypeCount = count_outputs,                          \
           .KernelDestroy = destroy, .GetInputCharacteristic = required,                                  \
           .GetOutputCharacteristic = required, .GetInputMemoryType = required,                           \
           .GetVariadicInputMinArity = one, .GetVariadicInputHomogeneity = one,                           \
           .GetVariadicOutputMinArity = one, .GetVariadicOutputHomogeneity = one,                         \
           .CreateKernelV2 = create, .KernelComputeV2 = compute, .GetStartVersion = one,                  \
           .GetEndVersion = newest}
#define WEIGHTS ORT_INT8, ORT_FLOAT, ORT_FLOAT
#define PRODUCT(label, n, types, weight_, gain, shift, residual_, gelu_)                               \
  {BASE, .name = label, .compute = compute_linear, .n_inputs = n, .n_outputs = 1, .inputs = types,     \
   .outputs = {ORT_FLOAT}, .weight = weight_, .of_columns = {weight_ + 1, weight_ + 2},                \
   .of_rows = {gain, shift}, .residual = residual_, .gelu = gelu_}
#define NIBBLES ORT_UINT8, ORT_FLOAT16, ORT_FLOAT
#define PRODUCT4(label, n, types, weight_, gain, shift, residual_, gelu_)                              \
  {BASE, .name = label, .compute = compute_linear, .n_inputs = n, .n_outputs = 1, .inputs = types,     \
   .outputs = {ORT_FLOAT}, .weight = weight_, .nibbles = weight_ + 1, .of_columns = {NONE, weight_ + 2}, \
   .of_rows = {gain, shift}, .residual = residual_, .gelu = gelu_}
#define TYPES(...) {__VA_ARGS__}
static const Operator OPERATORS[] = {
    PRODUCT("Linear8", 4, TYPES(ORT_FLOAT, WEIGHTS), 1, NONE, NONE, NONE, 0),
    PRODUCT("NormLinear8", 6, TYPES(ORT_FLOAT, ORT_FLOAT, ORT_FLOAT, WEIGHTS), 3, 1, 2, NONE, 0),
    PRODUCT("Linear8Add", 5, TYPES(ORT_FLOAT, WEIGHTS, ORT_FLOAT), 1, NONE, NONE, 4, 0),
    PRODUCT("GeluLinear8Add", 5, TYPES(ORT_FLOAT, WEIGHTS, ORT_FLOAT), 1, NONE, NONE, 4, 1),
    {BASE, .name = "Head8", .compute = compute_head, .n_inputs = 5, .n_outputs = 1,
     .inputs = {ORT_FLOAT, ORT_FLOAT, ORT_INT8, ORT_FLOAT, ORT_FLOAT}, .outputs = {ORT_FLOAT}, .weight = 2,
     .of_columns = {3, NONE}, .of_rows = {1, 4}},
    {BASE, .name = "Embed8", .compute = compute_embed, .n_inputs = 5, .n_outputs = 1,
     .inputs = {ORT_INT64, ORT_INT8, ORT_FLOAT, ORT_FLOAT, ORT_FLOAT}, .outputs = {ORT_FLOAT}, .weight = 1,
     .of_columns = {2, NONE}, .of_rows = {3, 4}, .looks_up = 1},
    PRODUCT4("Linear4", 4, TYPES(ORT_FLOAT, NIBBLES), 1, NONE, NONE, NONE, 0),
    PRODUCT4("NormLinear4", 6, TYPES(ORT_FLOAT, ORT_FLOAT, ORT_FLOAT, NIBBLES), 3, 1, 2, NONE, 0),
    PRODUCT4("Linear4Add", 5, TYPES(ORT_FLOAT, NIBBLES, ORT_FLOAT), 1, NONE, NONE, 4, 0),
    PRODUCT4("GeluLinear4Add", 5, TYPES(ORT_FLOAT, NIBBLES, ORT_FLOAT), 1, NONE, NONE, 4, 1),
    {BASE, .name = "Head4", .compute = compute_head, .n_inputs = 6, .n_outputs = 1,
     .inputs = {ORT_FLOAT, ORT_FLOAT, ORT_UINT8, ORT_FLOAT16, ORT_FLOAT, ORT_FLOAT16}, .outputs = {ORT_FLOAT},
     .weight = 2, .nibbles = 3, .of_columns = {NONE, NONE}, .of_rows = {1, 4}, .special = 5},
    {BASE, .name = "Embed4", .compute = compute_embed4, .n_inputs = 6, .n_outputs = 1,
     .inputs = {ORT_INT64, ORT_UINT8, ORT_FLOAT16, ORT_FLOAT, ORT_FLOAT, ORT_FLOAT16}, .outputs = {ORT_FLOAT},
     .weight = 1, .nibbles = 2, .of_columns = {NONE, NONE}, .of_rows = {3, 4}, .special = 5, .looks_up = 1},
    {BASE, .name = "LayerNorm", .compute = compute_layer_norm, .n_inputs = 3, .n_outputs = 1,
     .inputs = {ORT_FLOAT, ORT_FLOAT, ORT_FLOAT}, .outputs = {ORT_FLOAT}},
    {BASE, .name = "Conv16Gelu", .compute = compute_conv, .n_inputs = 4, .n_outputs = 1,
     .inputs = {ORT_FLOAT, ORT_INT16, ORT_FLOAT, ORT_FLOAT}, .outputs = {ORT_FLOAT}, .stride = 1},
    {BASE, .name = "Conv16GeluStride2", .compute = compute_conv, .n_inputs = 4, .n_outputs = 1,
     .inputs = {ORT_FLOAT, ORT_INT16, ORT_FLOAT, ORT_FLOAT}, .outputs = {ORT_FLOAT}, .stride = 2},
    {BASE, .name = "EncoderAttention", .compute = compute_attention, .n_inputs = 3, .n_outputs = 1,
     .inputs = {ORT_FLOAT, ORT_FLOAT, ORT_BOOL}, .outputs = {ORT_FLOAT}, .n_attributes = 1},
    {BASE, .name = "EncoderAttentionAt", .compute = compute_attention_at, .n_inputs = 2, .n_outputs = 1,
     .inputs = {ORT_FLOAT, ORT_INT64}, .outputs = {ORT_FLOAT}, .n_attributes = 1},
    {BASE, .name = "SelfAttention", .compute = compute_self, .n_inputs = 4, .n_outputs = 3,
     .inputs = {ORT_FLOAT, ORT_FLOAT, ORT_FLOAT, ORT_INT64}, .outputs = {ORT_FLOAT, ORT_FLOAT, ORT_FLOAT},
     .n_attributes = 1},
    {BASE, .name = "PackKeys", .compute = compute_pack_keys, .n_inputs = 1, .n_outputs = 2,
     .inputs = {ORT_FLOAT}, .outputs = {ORT_UINT8, ORT_FLOAT}, .n_attributes = 1},
    {BASE, .name = "PackValues", .compute = compute_pack_values, .n_inputs = 1, .n_outputs = 2,
     .inputs = {ORT_FLOAT}, .outputs = {ORT_INT8, ORT_FLOAT}, .n_attributes = 1},
    {BASE, .name = "CrossAttention", .compute = compute_cross, .n_inputs = 5, .n_outputs = 1,
     .inputs = {ORT_FLOAT, ORT_UINT8, ORT_INT8, ORT_FLOAT, ORT_FLOAT}, .outputs = {ORT_FLOAT}, .n_attributes = 2},
    {BASE, .name = "CrossScores", .compute = compute_scores, .n_inputs = 6, .n_outputs = 1,
     .inputs = {ORT_FLOAT, ORT_UINT8, ORT_FLOAT, ORT_FLOAT, ORT_INT64, ORT_INT64}, .outputs = {ORT_FLOAT},
     .n_attributes = 2},
};

/* The domain with all operators, created once: ONNX Runtime uses its address as long as there are sessions. */
static OrtStatus *find_domain(OrtCustomOpDomain **found) {
  OrtCustomOpDomain *made = NULL, *before = NULL;
  if ((*found = domain)) return NULL;
  TRY(CreateCustomOpDomain, "whisper_opt", &made);
  OrtStatus *status = NULL;
  for (size_t i = 0; !status && i < sizeof OPERATORS / sizeof *OPERATORS; i++)
    status = CALL(CustomOpDomain_Add, made, &OPERATORS[i].base);
  if (!status && atomic_compare_exchange_strong(&domain, &before, made)) {
    *found = made;
    return NULL;
  }
  CALL(ReleaseCustomOpDomain, made);
  *found = before; /* another thread was first */
  return status;
}

/* ONNX Runtime calls this for every session that registers the library. */
EXPORT OrtStatus *RegisterCustomOps(OrtSessionOptions *options, const OrtApiBase *base) {
  const OrtApi *given = base->GetApi(ORT_VERSION), *first = base->GetApi(1), *before = NULL;
  const char *why = NULL;
  OrtCustomOpDomain *found = NULL;
  if (!given && !first) return NULL;
  if (!given) return ORT_CALL(first, CreateStatus, ORT_FAIL, "the kernels need ONNX Runtime 1.17 or later");
  if (!atomic_compare_exchange_strong(&api, &before, given) && before != given)
    return ORT_CALL(given, CreateStatus, ORT_FAIL, "another ONNX Runtime of this process uses the kernels");
  if (!kernels_in_use(&why)) return ORT_CALL(given, CreateStatus, ORT_FAIL, why);
  OrtStatus *status = find_domain(&found);
  return status ? status : CALL(AddCustomOpDomain, options, found);
}
