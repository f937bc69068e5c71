/* The operators of domain "whisper_opt" for ONNX Runtime. What each computes is said by the function of its
 * name in the graph (whisper_opt/export/operators.py), which ONNX Runtime runs where this library is not. */
#include <stdlib.h>

#include "kernels.h"
#include "ort_abi.h"

#if defined(_WIN32)
#define EXPORT __declspec(dllexport)
#else
#define EXPORT __attribute__((visibility("default")))
#endif

static const OrtApi *api; /* of the process: every session is given the same one */

#define CALL(name, ...) ORT_CALL(api, name, __VA_ARGS__)
#define TRY(name, ...)                                   \
  do {                                                   \
    OrtStatus *status_ = CALL(name, __VA_ARGS__);        \
    if (status_) return status_;                         \
  } while (0)

typedef enum { LINEAR, ATTENTION, ATTENTION_AT } Kind;
enum { MAX_INPUTS = 6, NONE = -1 };

/* An operator: types and places of its inputs. */
typedef struct Operator {
  OrtCustomOp base; /* must be first: ONNX Runtime hands out its address */
  const char *name;
  Kind kind;
  size_t n_inputs;
  int types[MAX_INPUTS];
  int weight;   /* of LINEAR: followed by scale and bias */
  int norm;     /* gain, followed by shift */
  int residual;
  int gelu;
} Operator;

/* An operator in a session. */
typedef struct Kernel {
  const Operator *operator;
  Packed weight;
  int64_t n_head;
} Kernel;

typedef struct Shape {
  int64_t sizes[4];
  size_t n;
} Shape;

static OrtStatus *shape_of(const OrtValue *value, Shape *shape) {
  OrtTensorTypeAndShapeInfo *info = NULL;
  TRY(GetTensorTypeAndShape, value, &info);
  OrtStatus *status = CALL(GetDimensionsCount, info, &shape->n);
  if (!status && shape->n > 4) status = CALL(CreateStatus, ORT_FAIL, "whisper_opt: more than 4 dimensions");
  if (!status) status = CALL(GetDimensions, info, shape->sizes, shape->n);
  CALL(ReleaseTensorTypeAndShapeInfo, info);
  return status;
}

static OrtStatus *input(const OrtKernelContext *context, int i, const void **data, Shape *shape) {
  const OrtValue *value = NULL;
  *data = NULL;
  if (i == NONE) return NULL;
  TRY(KernelContext_GetInput, context, (size_t)i, &value);
  TRY(GetTensorMutableData, (OrtValue *)value, (void **)data);
  return shape ? shape_of(value, shape) : NULL;
}

static OrtStatus *output(OrtKernelContext *context, const Shape *shape, float **data) {
  OrtValue *value = NULL;
  TRY(KernelContext_GetOutput, context, 0, shape->sizes, shape->n, &value);
  return CALL(GetTensorMutableData, value, (void **)data);
}

static void run_on_threads(const void *context, void (*work)(void *, size_t), size_t count, void *data) {
  /* as many batches as calls: whoever is free takes the next. It cannot fail. */
  CALL(KernelContext_ParallelFor, context, work, count, count, data);
}

static OrtStatus *finished(int code) {
  return code ? CALL(CreateStatus, ORT_FAIL, "whisper_opt: out of memory") : NULL;
}

static OrtStatus *pack_constant(const OrtKernelInfo *info, Kernel *kernel) {
  int constant = 0;
  const OrtValue *value = NULL;
  void *weight = NULL;
  Shape shape;
  TRY(KernelInfoGetConstantInput_tensor, info, (size_t)kernel->operator->weight, &constant, &value);
  if (!constant) return CALL(CreateStatus, ORT_FAIL, "whisper_opt: weights must be constant");
  TRY(GetTensorMutableData, (OrtValue *)value, &weight);
  OrtStatus *status = shape_of(value, &shape);
  if (status) return status;
  if (shape.n != 2 || shape.sizes[0] % 16)
    return CALL(CreateStatus, ORT_FAIL, "whisper_opt: weights must be [multiple of 16, any]");
  return finished(pack_weight(&kernel->weight, weight, shape.sizes[0], shape.sizes[1]));
}

static OrtStatus *create(const OrtCustomOp *op, const OrtApi *unused, const OrtKernelInfo *info, void **created) {
  (void)unused;
  Kernel *kernel = calloc(1, sizeof *kernel);
  if (!kernel) return finished(-1);
  kernel->operator=(const Operator *) op;
  OrtStatus *status = kernel->operator->kind == LINEAR
                          ? pack_constant(info, kernel)
                          : CALL(KernelInfoGetAttribute_int64, info, "num_heads", &kernel->n_head);
  if (status)
    free(kernel);
  else
    *created = kernel;
  return status;
}

static void destroy(void *created) {
  Kernel *kernel = created;
  free_weight(&kernel->weight);
  free(kernel);
}

static OrtStatus *compute_linear(const Kernel *kernel, OrtKernelContext *context, Threads threads) {
  const Operator *op = kernel->operator;
  Linear what = {.weight = &kernel->weight, .n_rows = 1, .gelu = op->gelu};
  Shape shape;
  OrtStatus *status = input(context, 0, (const void **)&what.x, &shape);
  if (!status) status = input(context, op->norm, (const void **)&what.gain, NULL);
  if (!status) status = input(context, op->norm == NONE ? NONE : op->norm + 1, (const void **)&what.shift, NULL);
  if (!status) status = input(context, op->weight + 1, (const void **)&what.scale, NULL);
  if (!status) status = input(context, op->weight + 2, (const void **)&what.bias, NULL);
  if (!status) status = input(context, op->residual, (const void **)&what.residual, NULL);
  if (status) return status;
  if (shape.n == 0 || shape.sizes[shape.n - 1] != kernel->weight.n_in)
    return CALL(CreateStatus, ORT_FAIL, "whisper_opt: x is not [.., n_in]");
  for (size_t i = 0; i + 1 < shape.n; i++) what.n_rows *= shape.sizes[i];
  shape.sizes[shape.n - 1] = kernel->weight.n_out;
  status = output(context, &shape, &what.y);
  return status ? status : finished(linear(&what, threads));
}

static OrtStatus *compute_attention(const Kernel *kernel, OrtKernelContext *context, Threads threads) {
  Attention what = {.n_head = kernel->n_head};
  Shape shape, chosen;
  OrtStatus *status = input(context, 0, (const void **)&what.qkv, &shape);
  if (status) return status;
  if (shape.n != 3 || shape.sizes[2] != 3 * HEAD * kernel->n_head)
    return CALL(CreateStatus, ORT_FAIL, "whisper_opt: qkv is not [n_audio, n, 3 * num_heads * 64]");
  what.n_audio = shape.sizes[0];
  what.n_keys = what.n_queries = shape.sizes[1];
  if (kernel->operator->kind == ATTENTION_AT) {
    status = input(context, 1, (const void **)&what.positions, &chosen);
    if (!status) what.n_queries = chosen.sizes[0];
  } else {
    status = input(context, 1, (const void **)&what.unscaled, NULL);
  }
  if (status) return status;
  const Shape mixed = {{what.n_audio, what.n_queries, HEAD * kernel->n_head}, 3};
  status = output(context, &mixed, &what.y);
  return status ? status : finished(attention(&what, threads));
}

static OrtStatus *compute(void *created, OrtKernelContext *context) {
  const Kernel *kernel = created;
  const Threads threads = {context, run_on_threads};
  return (kernel->operator->kind == LINEAR ? compute_linear : compute_attention)(kernel, context, threads);
}

static const char *name_of(const OrtCustomOp *op) { return ((const Operator *)op)->name; }
static const char *on_cpu(const OrtCustomOp *op) {
  (void)op;
  return NULL;
}
static int type_of_input(const OrtCustomOp *op, size_t i) { return ((const Operator *)op)->types[i]; }
static size_t count_inputs(const OrtCustomOp *op) { return ((const Operator *)op)->n_inputs; }
static int type_of_output(const OrtCustomOp *op, size_t i) {
  (void)op, (void)i;
  return ORT_FLOAT;
}
static size_t count_outputs(const OrtCustomOp *op) {
  (void)op;
  return 1;
}
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
static const Operator OPERATORS[] = {
    {BASE, "Linear8", LINEAR, 4, {ORT_FLOAT, WEIGHTS}, 1, NONE, NONE, 0},
    {BASE, "NormLinear8", LINEAR, 6, {ORT_FLOAT, ORT_FLOAT, ORT_FLOAT, WEIGHTS}, 3, 1, NONE, 0},
    {BASE, "Linear8Add", LINEAR, 5, {ORT_FLOAT, WEIGHTS, ORT_FLOAT}, 1, NONE, 4, 0},
    {BASE, "GeluLinear8Add", LINEAR, 5, {ORT_FLOAT, WEIGHTS, ORT_FLOAT}, 1, NONE, 4, 1},
    {BASE, "EncoderAttention", ATTENTION, 3, {ORT_FLOAT, ORT_FLOAT, ORT_BOOL}, NONE, NONE, NONE, 0},
    {BASE, "EncoderAttentionAt", ATTENTION_AT, 2, {ORT_FLOAT, ORT_INT64}, NONE, NONE, NONE, 0},
};

/* Whether this processor has the instructions that the kernels are made of. */
EXPORT int whisper_opt_supported(void) {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
         __builtin_cpu_supports("avx512vnni");
}

/* ONNX Runtime calls this for every session that is made with the library. */
EXPORT OrtStatus *RegisterCustomOps(OrtSessionOptions *options, const OrtApiBase *base) {
  OrtCustomOpDomain *domain = NULL;
  api = base->GetApi(ORT_VERSION);
  TRY(CreateCustomOpDomain, "whisper_opt", &domain);
  for (size_t i = 0; i < sizeof OPERATORS / sizeof *OPERATORS; i++)
    TRY(CustomOpDomain_Add, domain, &OPERATORS[i].base);
  return CALL(AddCustomOpDomain, options, domain);
}
