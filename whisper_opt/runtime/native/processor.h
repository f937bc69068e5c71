/* Instruction sets of the processor, which the operating system must support too. On x86 the instruction cpuid is asked
 * directly: __builtin_cpu_supports() always says no in libraries that zig's clang has linked. */
#ifndef WHISPER_OPT_PROCESSOR_H
#define WHISPER_OPT_PROCESSOR_H

static inline int has_any(void) { return 1; }

#if defined(__x86_64__)

#include <cpuid.h>

#define NO_SUITABLE_PROCESSOR \
  "this processor has no AVX2; the plain C kernels (WHISPER_OPT_KERNELS=generic) are mostly slower than ONNX Runtime"

typedef struct Leaf {
  unsigned eax, ebx, ecx, edx;
} Leaf;

static inline Leaf cpuid(unsigned leaf, unsigned subleaf) {
  Leaf found = {0, 0, 0, 0};
  if (__get_cpuid_max(0, NULL) >= leaf) __cpuid_count(leaf, subleaf, found.eax, found.ebx, found.ecx, found.edx);
  return found;
}

/* Whether the operating system saves these registers when it switches threads. */
static inline int saves(unsigned registers) {
  unsigned low, high;
  if (!(cpuid(1, 0).ecx >> 27 & 1)) return 0; /* OSXSAVE */
  __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return (low & registers) == registers;
}

enum { YMM_STATE = 0x06, ZMM_STATE = 0xe6 };

static inline int has_avx2(void) {
  const unsigned avx_and_fma = 1u << 28 | 1u << 12;
  return saves(YMM_STATE) && (cpuid(1, 0).ecx & avx_and_fma) == avx_and_fma && (cpuid(7, 0).ebx >> 5 & 1);
}

static inline int has_avxvnni(void) { return has_avx2() && cpuid(7, 0).eax >= 1 && (cpuid(7, 1).eax >> 4 & 1); }

static inline int has_avx512vnni(void) {
  const unsigned f_dq_bw_vl = 1u << 16 | 1u << 17 | 1u << 30 | 1u << 31;
  return saves(ZMM_STATE) && has_avx2() && (cpuid(7, 0).ebx & f_dq_bw_vl) == f_dq_bw_vl && (cpuid(7, 0).ecx >> 11 & 1);
}

static inline int has_vnni(void) { return has_avx512vnni() || has_avxvnni(); }

#elif defined(__aarch64__)

#define NO_SUITABLE_PROCESSOR \
  "this processor has no DotProd; the plain C kernels (WHISPER_OPT_KERNELS=generic) are mostly slower than ONNX Runtime"

#if defined(__linux__)

#include <sys/auxv.h>

static inline int has_dotprod(void) { return getauxval(AT_HWCAP) >> 20 & 1; }
static inline int has_i8mm(void) { return has_dotprod() && (getauxval(AT_HWCAP2) >> 13 & 1); }

#elif defined(__APPLE__)

#include <sys/sysctl.h>

static inline int is_set(const char *name) {
  int value = 0;
  size_t size = sizeof value;
  return sysctlbyname(name, &value, &size, NULL, 0) == 0 && value;
}
static inline int has_dotprod(void) { return is_set("hw.optional.arm.FEAT_DotProd"); }
static inline int has_i8mm(void) { return has_dotprod() && is_set("hw.optional.arm.FEAT_I8MM"); }

#elif defined(_WIN32)

#include <windows.h>

/* PF_ARM_V82_DP_INSTRUCTIONS_AVAILABLE; Windows did not report I8MM before 2024 */
static inline int has_dotprod(void) { return IsProcessorFeaturePresent(43) != 0; }
static inline int has_i8mm(void) { return 0; }

#else

static inline int has_dotprod(void) { return 0; }
static inline int has_i8mm(void) { return 0; }

#endif

static inline int has_vnni(void) { return 0; }

#else

#define NO_SUITABLE_PROCESSOR \
  "there are no kernels for this processor; those in plain C (WHISPER_OPT_KERNELS=generic) are mostly slower than" \
  " ONNX Runtime"

static inline int has_vnni(void) { return 0; }

#endif
#endif
