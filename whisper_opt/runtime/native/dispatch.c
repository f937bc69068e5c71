/* Which variants this processor supports, whether they compute correctly here, and which one is used. */
#include "dispatch.h"

#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "processor.h"

extern const Kernels kernels_generic;
#if defined(__x86_64__)
extern const Kernels kernels_avx2, kernels_avxvnni, kernels_avx512vnni;
#elif defined(__aarch64__)
extern const Kernels kernels_dotprod, kernels_i8mm;
#endif

/* A variant is chosen automatically unless it is slower than ONNX Runtime's own operators. */
typedef struct Variant {
  const Kernels *kernels;
  int (*supported)(void);
  int automatic;
} Variant;

/* The fastest first. */
static const Variant VARIANTS[] = {
#if defined(__x86_64__)
    {&kernels_avx512vnni, has_avx512vnni, 1},
    {&kernels_avxvnni, has_avxvnni, 1},
    {&kernels_avx2, has_avx2, 1},
#elif defined(__aarch64__)
    {&kernels_i8mm, has_i8mm, 1},
    {&kernels_dotprod, has_dotprod, 1},
#endif
    {&kernels_generic, has_any, 0},
};
enum { N_VARIANTS = sizeof VARIANTS / sizeof *VARIANTS };

/* --- self-test ---------------------------------------------------------------------------------------------------- */

enum { TEST_ROWS = 7, TEST_IN = 64, TEST_OUT = 70, TEST_BLOCKS = TEST_IN / NIBBLE_BLOCK };

static void run_serially(void *context, void (*work)(void *, size_t), size_t count, void *data) {
  (void)context;
  for (size_t i = 0; i < count; i++) work(data, i);
}

/* Products of integers, among them the largest, which are exact: rows, and blocks of them, have a step of 1. */
typedef struct Test {
  int8_t weight[TEST_IN * TEST_OUT];                       /* [n_in, n_out] */
  int8_t limited[TEST_IN * TEST_OUT];                      /* the same; sums of four products fit 16 bits */
  uint8_t nibbles[TEST_OUT * TEST_IN / 2];                 /* [n_out, n_in / 32, 16] */
  uint16_t steps[TEST_OUT * TEST_BLOCKS];                  /* float16, all 1 */
  float x[TEST_ROWS * TEST_IN], ones[TEST_OUT], zeros[TEST_OUT];
} Test;

static void make_test(Test *test) {
  uint32_t random = 1;
  memset(test, 0, sizeof *test);
  for (int i = 0; i < TEST_IN * TEST_OUT; i++) {
    random = random * 1664525 + 1013904223;
    test->weight[i] = (int8_t)(i % TEST_OUT < 2 ? 127 : (int)(random >> 24) % 128 - 64);
    test->limited[i] = (int8_t)(i % TEST_OUT < 2 ? FOUR_LIMIT / 4 : (int)(random >> 24) % 65 - FOUR_LIMIT / 4);
  }
  for (int i = 0; i < TEST_OUT * TEST_IN / 2; i++) {
    random = random * 1664525 + 1013904223;
    test->nibbles[i] = (uint8_t)(i / (TEST_IN / 2) < 2 ? 255 : random >> 24);
  }
  for (int i = 0; i < TEST_ROWS * TEST_IN; i++) {
    random = random * 1664525 + 1013904223;
    test->x[i] = (float)(i % NIBBLE_BLOCK == 0 || i / TEST_IN == 0 ? 127 : (int)(random >> 24) % 255 - 127);
  }
  for (int i = 0; i < TEST_OUT * TEST_BLOCKS; i++) test->steps[i] = 0x3c00;
  for (int i = 0; i < TEST_OUT; i++) test->ones[i] = 1;
}

static int weight_of_8_bits(const Test *test, int i, int column) { return test->weight[i * TEST_OUT + column]; }
static int limited_weight(const Test *test, int i, int column) { return test->limited[i * TEST_OUT + column]; }
static int weight_of_4_bits(const Test *test, int i, int column) {
  return (test->nibbles[(column * TEST_IN + i) / 2] >> i % 2 * 4 & 15) - NIBBLE_ZERO;
}

typedef int (*Product)(const Linear *args, Threads threads);

/* Whether a product is exact; frees the weights. */
static int is_exact(const Test *test, Product product, Packed *packed, int (*weight)(const Test *, int, int)) {
  static const Threads serial = {NULL, run_serially};
  float y[TEST_ROWS * TEST_OUT];
  const Linear args = {
      .weight = packed, .n_rows = TEST_ROWS, .x = test->x, .scale = test->ones, .bias = test->zeros, .y = y};
  int exact = product(&args, serial) == 0;
  free_weight(packed);
  for (int row = 0; row < TEST_ROWS; row++)
    for (int column = 0; column < TEST_OUT; column++) {
      int32_t sum = 0;
      for (int i = 0; i < TEST_IN; i++) sum += (int32_t)test->x[row * TEST_IN + i] * weight(test, i, column);
      exact = exact && y[row * TEST_OUT + column] == (float)sum;
    }
  return exact;
}

static int passes_self_test(const Kernels *kernels) {
  Test test;
  Packed packed;
  make_test(&test);
  if (pack_weight(&packed, test.weight, TEST_IN, TEST_OUT, kernels->width)) return 0;
  int passed = is_exact(&test, kernels->linear, &packed, weight_of_8_bits);
  if (pack_weight(&packed, test.limited, TEST_IN, TEST_OUT, kernels->width)) return 0;
  passed = is_exact(&test, kernels->linear, &packed, limited_weight) && passed;
  if (pack_nibbles(&packed, test.nibbles, test.steps, TEST_IN, TEST_OUT)) return 0;
  passed = is_exact(&test, kernels->linear4, &packed, weight_of_4_bits) && passed;
#ifdef WHISPER_OPT_FAULTY /* the name of a variant that shall fail: for tests */
  if (!strcmp(kernels->name, WHISPER_OPT_FAULTY)) passed = 0;
#endif
  return passed;
}

/* --- selection ---------------------------------------------------------------------------------------------------- */

/* Everything below is computed once, by the first caller, while the others wait. */
static atomic_flag busy = ATOMIC_FLAG_INIT;
static int is_known;
static int works[N_VARIANTS];                    /* supported, and the self-test passed */
static char supported[128], failed[128];         /* names, separated by commas */
static char message[256];                        /* why there is no variant */
static const Kernels *_Atomic selected;

static void append(char *names, size_t size, const char *name) {
  const size_t length = strlen(names);
  snprintf(names + length, size - length, "%s%s", length ? "," : "", name);
}

static void test_variants(void) {
  if (is_known) return;
  for (int i = 0; i < N_VARIANTS; i++) {
    const char *name = VARIANTS[i].kernels->name;
    if (!VARIANTS[i].supported()) continue;
    append(supported, sizeof supported, name);
    works[i] = passes_self_test(VARIANTS[i].kernels);
    if (!works[i]) append(failed, sizeof failed, name);
  }
  is_known = 1;
}

/* The variant of that name, if it can be used; otherwise NULL and a message. */
static const Kernels *named(const char *name) {
  char known[128] = "";
  for (int i = 0; i < N_VARIANTS; i++) {
    append(known, sizeof known, VARIANTS[i].kernels->name);
    if (strcmp(VARIANTS[i].kernels->name, name)) continue;
    if (works[i]) return VARIANTS[i].kernels;
    const char *why = VARIANTS[i].supported() ? "they failed their self-test" : "this processor does not support them";
    snprintf(message, sizeof message, "the kernels '%.40s' cannot be used: %s; expected one of %s", name, why,
             supported);
    return NULL;
  }
  snprintf(message, sizeof message, "there are no kernels '%.40s' for this system; expected one of %s", name, known);
  return NULL;
}

static const Kernels *fastest(void) {
  for (int i = 0; i < N_VARIANTS; i++)
    if (VARIANTS[i].automatic && works[i]) return VARIANTS[i].kernels;
  snprintf(message, sizeof message, "%s", NO_SUITABLE_PROCESSOR);
  return NULL;
}

static void lock(void) {
  while (atomic_flag_test_and_set(&busy)) continue;
}

static const Kernels *select_kernels(const char *name) {
  test_variants();
  const Kernels *found = name && *name ? named(name) : fastest();
  if (found) atomic_store(&selected, found);
  return found;
}

const Kernels *kernels_in_use(const char **why) {
  const Kernels *found = atomic_load(&selected);
  if (found) return found;
  lock();
  found = atomic_load(&selected);
  if (!found) found = select_kernels(getenv("WHISPER_OPT_KERNELS"));
  atomic_flag_clear(&busy);
  if (!found) *why = message;
  return found;
}

/* --- for Python (__init__.py) ------------------------------------------------------------------------------------- */

/* WHISPER_OPT_ABI at compile time. */
EXPORT int whisper_opt_abi(void) { return WHISPER_OPT_ABI; }

/* Names of the variants that this processor supports, the fastest first, separated by commas. */
EXPORT const char *whisper_opt_variants(void) {
  lock();
  test_variants();
  atomic_flag_clear(&busy);
  return supported;
}

/* Names of those that failed their self-test; they are not used. */
EXPORT const char *whisper_opt_failed(void) {
  whisper_opt_variants();
  return failed;
}

/* The variant of new sessions, or NULL. */
EXPORT const char *whisper_opt_variant(void) {
  const char *why = NULL;
  const Kernels *found = kernels_in_use(&why);
  return found ? found->name : NULL;
}

/* Why there is no variant; NULL if there is one. */
EXPORT const char *whisper_opt_problem(void) {
  const char *why = NULL;
  kernels_in_use(&why);
  return why;
}

/* Makes the variant of that name, or with an empty name the fastest one, that of new sessions. Returns NULL, or why it
 * cannot be used; then nothing changes. */
EXPORT const char *whisper_opt_select(const char *name) {
  lock();
  const Kernels *found = select_kernels(name);
  atomic_flag_clear(&busy);
  return found ? NULL : message;
}

/* Computes a log-mel spectrogram with the variant of new sessions. Returns 1 if a power is not finite, and -1 if there is
 * no variant. */
EXPORT int whisper_opt_log_mel(const LogMel *args) {
  const char *why = NULL;
  const Kernels *found = kernels_in_use(&why);
  return found ? found->log_mel(args) : -1;
}

/* Whether any variant can be used. */
EXPORT int whisper_opt_supported(void) { return whisper_opt_variant() != NULL; }

/* Whether the variant of new sessions copies weights that are stored in panels. */
EXPORT int whisper_opt_copies_panels(void) {
  const char *why = NULL;
  const Kernels *found = kernels_in_use(&why);
  return found && found->width != PANEL;
}

/* Whether this x86 processor multiplies bytes without 16-bit sums, which overflow: AVX-512 VNNI or AVX-VNNI. */
EXPORT int whisper_opt_has_vnni(void) { return has_vnni(); }
