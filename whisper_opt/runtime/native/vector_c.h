/* Vectors of 16 numbers in plain C (with the vector extensions of GCC and clang, which any processor can run): the
 * fall-back, and the definition that all other variants equal bit for bit. Products are of 16-bit numbers.
 *
 * On 64-bit ARM a few functions are instructions that every such processor has. With WITH_DOTPROD products are those of
 * the extension DotProd (sdot), with WITH_I8MM those of I8MM (usdot). */
#ifndef WHISPER_OPT_VECTOR_H
#define WHISPER_OPT_VECTOR_H

#include <stdint.h>
#include <string.h>

#if defined(__aarch64__)
#include <arm_neon.h>
#endif

#include "reciprocal.h"

#define INLINE static inline __attribute__((always_inline))
#define OUT_OF_LINE static __attribute__((noinline, unused)) /* long, and used often: speed matters less than size */

typedef float f32x4 __attribute__((vector_size(16)));
typedef int32_t i32x4 __attribute__((vector_size(16)));
typedef uint32_t u32x4 __attribute__((vector_size(16)));
typedef int16_t i16x8 __attribute__((vector_size(16)));
typedef struct {
  f32x4 a, b, c, d;
} vf;
typedef struct {
  i32x4 a, b, c, d;
} vi;

#define WIDTH 16
#define TILE 6
#define TILE_COLUMNS 16

/* Functions of vectors from those of their quarters. */
#define MAP1(result, name, one, type) \
  INLINE result name(type x) { return (result){one(x.a), one(x.b), one(x.c), one(x.d)}; }
#define MAP2(result, name, one, type) \
  INLINE result name(type x, type y) { return (result){one(x.a, y.a), one(x.b, y.b), one(x.c, y.c), one(x.d, y.d)}; }
#define MAP3(result, name, one, type)                                                                   \
  INLINE result name(type x, type y, type z) {                                                          \
    return (result){one(x.a, y.a, z.a), one(x.b, y.b, z.b), one(x.c, y.c, z.c), one(x.d, y.d, z.d)};     \
  }
#define OPERATOR(type, name, sign) \
  INLINE type name(type x, type y) { return x sign y; }

INLINE f32x4 f4_set1(float x) { return (f32x4){x, x, x, x}; }
INLINE i32x4 i4_set1(int32_t x) { return (i32x4){x, x, x, x}; }
INLINE i32x4 f4_bits(f32x4 x) { return (i32x4)x; }
INLINE f32x4 i4_as_float(i32x4 x) { return (f32x4)x; }
INLINE i32x4 i4_select(i32x4 mask, i32x4 yes, i32x4 no) { return (mask & yes) | (~mask & no); }
INLINE f32x4 f4_select(i32x4 mask, f32x4 yes, f32x4 no) { return (f32x4)i4_select(mask, (i32x4)yes, (i32x4)no); }
OPERATOR(f32x4, f4_add, +) OPERATOR(f32x4, f4_sub, -) OPERATOR(f32x4, f4_mul, *) OPERATOR(f32x4, f4_div, /)
OPERATOR(i32x4, i4_and, &) OPERATOR(i32x4, i4_or, |)
/* Integers wrap, as in all processors. */
INLINE i32x4 i4_add(i32x4 x, i32x4 y) { return (i32x4)((u32x4)x + (u32x4)y); }
INLINE i32x4 i4_mul(i32x4 x, i32x4 y) { return (i32x4)((u32x4)x * (u32x4)y); }
INLINE i32x4 i4_left(i32x4 x, int n) { return (i32x4)((u32x4)x << n); }
INLINE f32x4 f4_max(f32x4 x, f32x4 y) { return f4_select(x > y, x, y); } /* y if either is NaN */
INLINE f32x4 f4_min(f32x4 x, f32x4 y) { return f4_select(x < y, x, y); }
INLINE i32x4 i4_max(i32x4 x, i32x4 y) { return i4_select(x > y, x, y); }
INLINE f32x4 f4_abs(f32x4 x) { return (f32x4)((i32x4)x & 0x7fffffff); }
INLINE f32x4 i4_to_float(i32x4 x) { return __builtin_convertvector(x, f32x4); }
#if defined(__aarch64__)
INLINE f32x4 f4_round(f32x4 x) { return (f32x4)vrndnq_f32((float32x4_t)x); }
INLINE i32x4 f4_to_int(f32x4 x) { /* INT32_MIN if x is NaN or too large */
  const i32x4 fits = f4_abs(x) < f4_set1(2147483648.f);
  return i4_select(fits, (i32x4)vcvtnq_s32_f32((float32x4_t)x), i4_set1(INT32_MIN));
}
#else
INLINE f32x4 f4_round(f32x4 x) {
  const i32x4 sign = (i32x4)x & INT32_MIN;
  const f32x4 magnitude = f4_abs(x), shift = f4_set1(8388608); /* floats above 2^23 are integers */
  const f32x4 rounded = (f32x4)((i32x4)((magnitude + shift) - shift) | sign);
  return f4_select(magnitude < shift, rounded, x);
}
OUT_OF_LINE i32x4 f4_to_int(f32x4 x) {
  const f32x4 rounded = f4_round(x);
  const i32x4 fits = f4_abs(rounded) < f4_set1(2147483648.f);
  return i4_select(fits, __builtin_convertvector(f4_select(fits, rounded, f4_set1(0)), i32x4), i4_set1(INT32_MIN));
}
#endif

/* x * y + z, rounded once. */
#if defined(__FMA__) || defined(__aarch64__)
INLINE float fused(float x, float y, float z) { return __builtin_fmaf(x, y, z); }
#else
/* The product is exact in double. The sum is rounded to odd, so that rounding it again does no harm (Boldo and
 * Melquiond, "Emulation of FMA and correctly rounded sums: proved algorithms using rounding to odd", 2008). */
INLINE float fused(float x, float y, float z) {
  const double product = (double)x * y;
  double sum = product + z;
  int64_t bits;
  memcpy(&bits, &sum, sizeof bits);
  const int64_t low = bits & 0x1fffffff;
  if (__builtin_expect(low == 0x10000000 || (sum < 1e-37 && sum > -1e-37), 0)) { /* half-way, or perhaps subnormal */
    const double part = sum - product, rest = (product - (sum - part)) + (z - part);
    if (rest != 0 && rest - rest == 0 && !(bits & 1)) {
      bits += (rest > 0) == (sum > 0) ? 1 : -1;
      memcpy(&sum, &bits, sizeof bits);
    }
  }
  return (float)sum;
}
#endif
#if defined(__aarch64__)
INLINE f32x4 f4_fma(f32x4 x, f32x4 y, f32x4 z) {
  return (f32x4)vfmaq_f32((float32x4_t)z, (float32x4_t)x, (float32x4_t)y);
}
#else
OUT_OF_LINE f32x4 f4_fma(f32x4 x, f32x4 y, f32x4 z) {
  return (f32x4){fused(x[0], y[0], z[0]), fused(x[1], y[1], z[1]), fused(x[2], y[2], z[2]), fused(x[3], y[3], z[3])};
}
#endif
INLINE f32x4 f4_fnma(f32x4 x, f32x4 y, f32x4 z) { return f4_fma(-x, y, z); }
INLINE f32x4 f4_reciprocal_estimate(f32x4 x) {
  const i32x4 bits = (i32x4)x;
  return (f32x4)(i32x4){(int32_t)reciprocal_bits((uint32_t)bits[0]), (int32_t)reciprocal_bits((uint32_t)bits[1]),
                        (int32_t)reciprocal_bits((uint32_t)bits[2]), (int32_t)reciprocal_bits((uint32_t)bits[3])};
}
INLINE f32x4 f4_scale(f32x4 x, f32x4 exponent) {
  const i32x4 whole = f4_to_int(f4_max(exponent, f4_set1(-120)));
  return x * (f32x4)i4_left(i4_add(whole, i4_set1(127)), 23);
}

MAP2(vf, vf_add, f4_add, vf) MAP2(vf, vf_sub, f4_sub, vf) MAP2(vf, vf_mul, f4_mul, vf) MAP2(vf, vf_div, f4_div, vf)
MAP2(vf, vf_max, f4_max, vf) MAP2(vf, vf_min, f4_min, vf) MAP3(vf, vf_fma, f4_fma, vf) MAP3(vf, vf_fnma, f4_fnma, vf)
MAP1(vf, vf_abs, f4_abs, vf) MAP1(vf, vf_round, f4_round, vf)
MAP1(vf, vf_reciprocal_estimate, f4_reciprocal_estimate, vf)
MAP2(vf, vf_scale, f4_scale, vf) MAP1(vi, vf_to_int, f4_to_int, vf) MAP1(vi, vf_bits, f4_bits, vf)
MAP2(vi, vi_add, i4_add, vi) MAP2(vi, vi_mul, i4_mul, vi) MAP2(vi, vi_max, i4_max, vi) MAP2(vi, vi_and, i4_and, vi)
MAP2(vi, vi_or, i4_or, vi) MAP1(vf, vi_to_float, i4_to_float, vi) MAP1(vf, vi_as_float, i4_as_float, vi)

INLINE vf vf_set1(float x) { return (vf){f4_set1(x), f4_set1(x), f4_set1(x), f4_set1(x)}; }
INLINE vi vi_set1(int32_t x) { return (vi){i4_set1(x), i4_set1(x), i4_set1(x), i4_set1(x)}; }
INLINE vi vi_shift_left(vi x, int n) {
  return (vi){i4_left(x.a, n), i4_left(x.b, n), i4_left(x.c, n), i4_left(x.d, n)};
}
#define SHIFT_RIGHT(n)                                                                               \
  INLINE i32x4 i4_right_##n(i32x4 x) { return (i32x4)((u32x4)x >> n); }                              \
  MAP1(vi, vi_shift_right_##n, i4_right_##n, vi)
SHIFT_RIGHT(3) SHIFT_RIGHT(4) SHIFT_RIGHT(23)
INLINE vi vi_load(const void *from) {
  vi x;
  memcpy(&x, from, sizeof x);
  return x;
}
INLINE void vi_store(void *to, vi x) { memcpy(to, &x, sizeof x); }
INLINE vf vf_load(const float *from) {
  vf x;
  memcpy(&x, from, sizeof x);
  return x;
}
INLINE void vf_store(float *to, vf x) { memcpy(to, &x, sizeof x); }
OUT_OF_LINE vf vf_load_tail(const float *from, int64_t n) { /* zeros after the first n elements */
  vf x = vf_set1(0);
  if (n > 0) memcpy(&x, from, n < WIDTH ? (size_t)n * sizeof *from : sizeof x);
  return x;
}
OUT_OF_LINE void vf_store_tail(float *to, int64_t n, vf x) {
  if (n > 0) memcpy(to, &x, n < WIDTH ? (size_t)n * sizeof *to : sizeof x);
}
INLINE int vi_any_negative(vi x) {
  const i32x4 all = x.a | x.b | x.c | x.d;
  return (all[0] | all[1] | all[2] | all[3]) < 0;
}

/* Reductions combine halves, then quarters and so on, in every variant. */
#define REDUCE(type, element, name, two, one)                                                    \
  INLINE element name(type x) {                                                                  \
    const __typeof__(x.a) four = two(two(x.a, x.c), two(x.b, x.d));                              \
    const element even = one(four[0], four[2]), odd = one(four[1], four[3]);                     \
    return one(even, odd);                                                                       \
  }
#define SUM(x, y) ((x) + (y))
#define WRAPPED_SUM(x, y) ((int32_t)((uint32_t)(x) + (uint32_t)(y)))
#define LARGER(x, y) ((x) > (y) ? (x) : (y))
REDUCE(vf, float, vf_reduce_add, f4_add, SUM)
REDUCE(vf, float, vf_reduce_max, f4_max, LARGER)
REDUCE(vi, int32_t, vi_reduce_add, i4_add, WRAPPED_SUM)
REDUCE(vi, int32_t, vi_reduce_max, i4_max, LARGER)

/* The low byte of every number. */
#if defined(__aarch64__)
INLINE uint8x16_t to_bytes(vi x) {
  const uint16x8_t low = vcombine_u16(vmovn_u32((uint32x4_t)x.a), vmovn_u32((uint32x4_t)x.b));
  const uint16x8_t high = vcombine_u16(vmovn_u32((uint32x4_t)x.c), vmovn_u32((uint32x4_t)x.d));
  return vcombine_u8(vmovn_u16(low), vmovn_u16(high));
}
INLINE void store_low_bytes(uint8_t *to, vi x) { vst1q_u8(to, to_bytes(x)); }
#else
INLINE void store_low_bytes(uint8_t *to, vi x) {
  int32_t all[WIDTH];
  vi_store(all, x);
  for (int i = 0; i < WIDTH; i++) to[i] = (uint8_t)all[i];
}
#endif

INLINE i32x4 i4_saturated(i32x4 x) { return i4_select(x > 255, i4_set1(255), x & (x > 0)); }
MAP1(vi, saturated, i4_saturated, vi)

INLINE void store_words(int16_t *to, vi x) {
  int32_t all[WIDTH];
  vi_store(all, x);
  for (int i = 0; i < WIDTH; i++) to[i] = (int16_t)all[i];
}
/* Adds the products of two pairs of 16-bit numbers; `row` is the same pair four times. */
#if defined(__aarch64__)
INLINE i32x4 i4_dot_words(i32x4 sum, i32x4 row, i32x4 column) {
  const int16x8_t x = (int16x8_t)row, y = (int16x8_t)column;
  const int32x4_t low = vmull_s16(vget_low_s16(x), vget_low_s16(y)), high = vmull_high_s16(x, y);
  return i4_add(sum, (i32x4)vpaddq_s32(low, high));
}
#else
INLINE i32x4 i4_dot_words(i32x4 sum, i32x4 row, i32x4 column) {
  const i32x4 high = i4_mul(row >> 16, column >> 16);
  return i4_add(i4_add(sum, i4_mul(i4_left(row, 16) >> 16, i4_left(column, 16) >> 16)), high);
}
#endif

#if defined(WITH_DOTPROD) || defined(WITH_I8MM)

typedef int8_t Signed;
typedef int8x16_t Group;
typedef int8x16_t Quad; /* of one or two rows */
typedef vi Quads;       /* of columns */
typedef vi Partial;     /* sum */
#define GROUPS 1
#define FEW_ROWS 2
#define FEW_VECTORS(rows) ((rows) == 1 ? 4 : 2)

INLINE void store_signed(Signed *to, vi x) { store_low_bytes((uint8_t *)to, x); }

INLINE Group read_group(const void *from) {
  int32_t quad;
  memcpy(&quad, from, sizeof quad);
  return vreinterpretq_s8_s32(vdupq_n_s32(quad));
}
#ifdef WITH_I8MM

typedef uint8_t Unsigned;
#define UNSIGNED_OFFSET 0

INLINE void store_unsigned(Unsigned *to, vi x) { store_low_bytes(to, x); }
INLINE void store_saturated(Unsigned *to, vi x) { store_low_bytes(to, saturated(x)); }

INLINE i32x4 i4_dot(i32x4 sum, Group row, i32x4 column) {
  return (i32x4)vusdotq_s32((int32x4_t)sum, vreinterpretq_u8_s8(row), (int8x16_t)column);
}
INLINE i32x4 i4_dot_signed_rows(i32x4 sum, Group row, i32x4 column) {
  return (i32x4)vusdotq_s32((int32x4_t)sum, (uint8x16_t)column, row);
}

INLINE i32x4 i4_dot_nibbles(i32x4 sum, Group row, i32x4 column) { return i4_dot_signed_rows(sum, row, column); }

#else

/* Both operands are signed: unsigned numbers are stored less 128, and keys are changed as they are read. */
typedef int8_t Unsigned;
#define UNSIGNED_OFFSET 128

INLINE void store_unsigned(Unsigned *to, vi x) {
  vst1q_u8((uint8_t *)to, veorq_u8(to_bytes(x), vdupq_n_u8(128)));
}
INLINE void store_saturated(Unsigned *to, vi x) { store_unsigned(to, saturated(x)); }

INLINE i32x4 i4_dot(i32x4 sum, Group row, i32x4 column) {
  return (i32x4)vdotq_s32((int32x4_t)sum, row, (int8x16_t)column);
}
INLINE i32x4 i4_dot_signed_rows(i32x4 sum, Group row, i32x4 column) {
  return i4_dot(sum, row, (i32x4)veorq_u8((uint8x16_t)column, vdupq_n_u8(128)));
}
INLINE i32x4 i4_dot_nibbles(i32x4 sum, Group row, i32x4 column) { return i4_dot(sum, row, column); }

#endif

INLINE vi dot_signed_columns(vi sum, Group row, vi column) {
  return (vi){i4_dot(sum.a, row, column.a), i4_dot(sum.b, row, column.b), i4_dot(sum.c, row, column.c),
              i4_dot(sum.d, row, column.d)};
}
typedef Group SignedQuad;
INLINE SignedQuad read_signed_quad(const void *from) { return read_group(from); }
INLINE vi dot_signed_rows(vi sum, Group row, vi column) {
  return (vi){i4_dot_signed_rows(sum.a, row, column.a), i4_dot_signed_rows(sum.b, row, column.b),
              i4_dot_signed_rows(sum.c, row, column.c), i4_dot_signed_rows(sum.d, row, column.d)};
}

#else

typedef int16_t Unsigned;
typedef int16_t Signed;
typedef i16x8 Group;
#define GROUPS 2
#define FEW_ROWS 0
#define UNSIGNED_OFFSET 0

INLINE void store_signed(Signed *to, vi x) { store_words(to, x); }
INLINE void store_unsigned(Unsigned *to, vi x) { store_signed(to, vi_and(x, vi_set1(255))); }
INLINE void store_saturated(Unsigned *to, vi x) { store_signed(to, saturated(x)); }

/* Writes bytes of 16 columns in 16 bits: of every quad the first two of all columns, then the other two. */
INLINE i32x4 i4_pair(int is_signed, i32x4 x) { /* the low two bytes in 16 bits each */
  if (!is_signed) return (x & 0xff) | i4_left(x & 0xff00, 8);
  return (i4_left(x, 24) >> 24 & 0xffff) | i4_left(i4_left(x, 16) >> 24, 16);
}
INLINE vi vi_pair(int is_signed, vi x, int shift) {
  return (vi){i4_pair(is_signed, x.a >> shift), i4_pair(is_signed, x.b >> shift), i4_pair(is_signed, x.c >> shift),
              i4_pair(is_signed, x.d >> shift)};
}
INLINE void widen_columns(int is_signed, const void *columns, int64_t quads, int64_t next, void *to) {
  const char *from = columns;
  char *at = to;
  for (; quads > 0; quads--, from += next, at += 128) {
    vi_store(at, vi_pair(is_signed, vi_load(from), 0));
    vi_store(at + 64, vi_pair(is_signed, vi_load(from), 16));
  }
}

INLINE Group read_group(const void *from) {
  int32_t pair;
  memcpy(&pair, from, sizeof pair);
  return (i16x8)i4_set1(pair);
}
/* Adds the products of pairs; a product of an unsigned and a signed byte fits 16 bits. */
INLINE i32x4 i4_dot(i32x4 sum, i16x8 x, i32x4 y) {
  const i32x4 products = (i32x4)(x * (i16x8)y);
  return i4_add(sum, i4_add(products >> 16, i4_left(products, 16) >> 16));
}
INLINE vi dot_signed_columns(vi sum, Group row, vi column) {
  return (vi){i4_dot(sum.a, row, column.a), i4_dot(sum.b, row, column.b), i4_dot(sum.c, row, column.c),
              i4_dot(sum.d, row, column.d)};
}
INLINE vi dot_signed_rows(vi sum, Group row, vi column) { return dot_signed_columns(sum, row, column); }

typedef struct {
  i32x4 bytes[4];
} SignedQuad;
INLINE SignedQuad read_signed_quad(const void *from) {
  const int8_t *x = from;
  return (SignedQuad){{i4_set1(x[0]), i4_set1(x[1]), i4_set1(x[2]), i4_set1(x[3])}};
}
INLINE i32x4 i4_dot_nibbles(i32x4 sum, SignedQuad row, i32x4 column) {
  return sum + row.bytes[0] * (column & 15) + row.bytes[1] * (column >> 8 & 15) + row.bytes[2] * (column >> 16 & 15) +
         row.bytes[3] * (column >> 24);
}

#endif

INLINE vi dot_words(vi sum, Group row, vi column) {
  return (vi){i4_dot_words(sum.a, (i32x4)row, column.a), i4_dot_words(sum.b, (i32x4)row, column.b),
              i4_dot_words(sum.c, (i32x4)row, column.c), i4_dot_words(sum.d, (i32x4)row, column.d)};
}
INLINE vi dot_nibbles(vi sum, SignedQuad row, vi column) {
  return (vi){i4_dot_nibbles(sum.a, row, column.a), i4_dot_nibbles(sum.b, row, column.b),
              i4_dot_nibbles(sum.c, row, column.c), i4_dot_nibbles(sum.d, row, column.d)};
}
INLINE vi nibble_sums(vi sum) { return sum; }

#endif
