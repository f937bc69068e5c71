/* Vectors of 16 numbers in pairs of AVX2 registers. Dot products are those of AVX-VNNI if WITH_AVXVNNI is defined;
 * otherwise of 16-bit numbers (vpmaddwd), which are exact: those of bytes (vpmaddubsw) saturate. */
#ifndef WHISPER_OPT_VECTOR_H
#define WHISPER_OPT_VECTOR_H

#include <immintrin.h>
#include <stdint.h>
#include <string.h>

#include "reciprocal.h"

#define INLINE static inline __attribute__((always_inline))

typedef struct {
  __m256 a, b;
} vf;
typedef struct {
  __m256i a, b;
} vi;

#define WIDTH 16
#define TILE 6
#define TILE_COLUMNS 16
#define UNSIGNED_OFFSET 0
#define FEW_ROWS 2
#define FEW_REGISTERS 1

/* x * y + z, rounded once. */
INLINE float fused(float x, float y, float z) { return __builtin_fmaf(x, y, z); }

INLINE vf vf_set1(float x) { return (vf){_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
INLINE vf vf_load(const float *from) { return (vf){_mm256_loadu_ps(from), _mm256_loadu_ps(from + 8)}; }
INLINE void vf_store(float *to, vf x) { _mm256_storeu_ps(to, x.a), _mm256_storeu_ps(to + 8, x.b); }
INLINE vf vf_add(vf x, vf y) { return (vf){_mm256_add_ps(x.a, y.a), _mm256_add_ps(x.b, y.b)}; }
INLINE vf vf_sub(vf x, vf y) { return (vf){_mm256_sub_ps(x.a, y.a), _mm256_sub_ps(x.b, y.b)}; }
INLINE vf vf_mul(vf x, vf y) { return (vf){_mm256_mul_ps(x.a, y.a), _mm256_mul_ps(x.b, y.b)}; }
INLINE vf vf_div(vf x, vf y) { return (vf){_mm256_div_ps(x.a, y.a), _mm256_div_ps(x.b, y.b)}; }
INLINE vf vf_max(vf x, vf y) { return (vf){_mm256_max_ps(x.a, y.a), _mm256_max_ps(x.b, y.b)}; }
INLINE vf vf_min(vf x, vf y) { return (vf){_mm256_min_ps(x.a, y.a), _mm256_min_ps(x.b, y.b)}; }
INLINE vf vf_fma(vf x, vf y, vf z) { return (vf){_mm256_fmadd_ps(x.a, y.a, z.a), _mm256_fmadd_ps(x.b, y.b, z.b)}; }
INLINE vf vf_fnma(vf x, vf y, vf z) { return (vf){_mm256_fnmadd_ps(x.a, y.a, z.a), _mm256_fnmadd_ps(x.b, y.b, z.b)}; }
INLINE vf vf_abs(vf x) {
  const __m256 magnitude = _mm256_castsi256_ps(_mm256_set1_epi32(0x7fffffff));
  return (vf){_mm256_and_ps(x.a, magnitude), _mm256_and_ps(x.b, magnitude)};
}
INLINE vf vf_round(vf x) {
  return (vf){_mm256_round_ps(x.a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC),
              _mm256_round_ps(x.b, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)};
}
INLINE vi vf_to_int(vf x) { return (vi){_mm256_cvtps_epi32(x.a), _mm256_cvtps_epi32(x.b)}; }
INLINE vi vf_bits(vf x) { return (vi){_mm256_castps_si256(x.a), _mm256_castps_si256(x.b)}; }

/* One load per element: the instruction that gathers them is slower on many processors. */
INLINE __m256i lines_of_eight(__m256i segments) {
  uint32_t at[8];
  _mm256_storeu_si256((void *)at, segments);
#define LINE(i) ((int)RECIPROCAL_LINES[at[i]])
  return _mm256_setr_epi32(LINE(0), LINE(1), LINE(2), LINE(3), LINE(4), LINE(5), LINE(6), LINE(7));
#undef LINE
}
INLINE __m256 reciprocal_of_eight(__m256 x) {
  const __m256i bits = _mm256_castps_si256(x), low = _mm256_set1_epi32(1023);
  const __m256i line = lines_of_eight(_mm256_and_si256(_mm256_srli_epi32(bits, 17), _mm256_set1_epi32(63)));
  const __m256i offset = _mm256_and_si256(_mm256_srli_epi32(bits, 7), low);
  const __m256i start = _mm256_slli_epi32(_mm256_srli_epi32(line, 10), 8);
  const __m256i value = _mm256_sub_epi32(start, _mm256_madd_epi16(_mm256_and_si256(line, low), offset));
  const __m256i fraction = _mm256_slli_epi32(_mm256_srli_epi32(value, 9), 7);
  const __m256i exponent = _mm256_sub_epi32(_mm256_set1_epi32(253), _mm256_srli_epi32(bits, 23));
  return _mm256_castsi256_ps(_mm256_or_si256(_mm256_slli_epi32(exponent, 23), fraction));
}
INLINE vf vf_reciprocal_estimate(vf x) { return (vf){reciprocal_of_eight(x.a), reciprocal_of_eight(x.b)}; }

INLINE __m256 power_of_two(__m256 exponent) { /* from 2 ^ -120 to 1 */
  const __m256i whole = _mm256_cvtps_epi32(_mm256_max_ps(exponent, _mm256_set1_ps(-120)));
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(whole, _mm256_set1_epi32(127)), 23));
}
INLINE vf vf_scale(vf x, vf exponent) {
  return (vf){_mm256_mul_ps(x.a, power_of_two(exponent.a)), _mm256_mul_ps(x.b, power_of_two(exponent.b))};
}

INLINE __m256i tail_mask(int64_t n) { /* the first n of eight */
  const int clamped = n > 8 ? 8 : n < 0 ? 0 : (int)n;
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(clamped), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}
INLINE vf vf_load_tail(const float *from, int64_t n) {
  if (n >= WIDTH) return vf_load(from);
  return (vf){_mm256_maskload_ps(from, tail_mask(n)), _mm256_maskload_ps(from + 8, tail_mask(n - 8))};
}
INLINE void vf_store_tail(float *to, int64_t n, vf x) {
  if (n >= WIDTH) {
    vf_store(to, x);
  } else {
    _mm256_maskstore_ps(to, tail_mask(n), x.a);
    _mm256_maskstore_ps(to + 8, tail_mask(n - 8), x.b);
  }
}

INLINE vi vi_set1(int32_t x) { return (vi){_mm256_set1_epi32(x), _mm256_set1_epi32(x)}; }
INLINE vi vi_load(const void *from) {
  const __m256i *at = from;
  return (vi){_mm256_loadu_si256(at), _mm256_loadu_si256(at + 1)};
}
INLINE void vi_store(void *to, vi x) {
  __m256i *at = to;
  _mm256_storeu_si256(at, x.a), _mm256_storeu_si256(at + 1, x.b);
}
INLINE vi vi_add(vi x, vi y) { return (vi){_mm256_add_epi32(x.a, y.a), _mm256_add_epi32(x.b, y.b)}; }
INLINE vi vi_mul(vi x, vi y) { return (vi){_mm256_mullo_epi32(x.a, y.a), _mm256_mullo_epi32(x.b, y.b)}; }
INLINE vi vi_max(vi x, vi y) { return (vi){_mm256_max_epi32(x.a, y.a), _mm256_max_epi32(x.b, y.b)}; }
INLINE vi vi_and(vi x, vi y) { return (vi){_mm256_and_si256(x.a, y.a), _mm256_and_si256(x.b, y.b)}; }
INLINE vi vi_or(vi x, vi y) { return (vi){_mm256_or_si256(x.a, y.a), _mm256_or_si256(x.b, y.b)}; }
INLINE vi vi_shift_left(vi x, int n) {
  const __m256i by = _mm256_set1_epi32(n);
  return (vi){_mm256_sllv_epi32(x.a, by), _mm256_sllv_epi32(x.b, by)};
}
INLINE vi vi_shift_right_3(vi x) { return (vi){_mm256_srli_epi32(x.a, 3), _mm256_srli_epi32(x.b, 3)}; }
INLINE vi vi_shift_right_4(vi x) { return (vi){_mm256_srli_epi32(x.a, 4), _mm256_srli_epi32(x.b, 4)}; }
INLINE vi vi_shift_right_23(vi x) { return (vi){_mm256_srli_epi32(x.a, 23), _mm256_srli_epi32(x.b, 23)}; }
INLINE vf vi_to_float(vi x) { return (vf){_mm256_cvtepi32_ps(x.a), _mm256_cvtepi32_ps(x.b)}; }
INLINE vf vi_as_float(vi x) { return (vf){_mm256_castsi256_ps(x.a), _mm256_castsi256_ps(x.b)}; }
INLINE int vi_any_negative(vi x) { return _mm256_movemask_ps(_mm256_castsi256_ps(_mm256_or_si256(x.a, x.b))) != 0; }

INLINE float vf_reduce_add(vf x) {
  const __m256 eight = _mm256_add_ps(x.a, x.b);
  __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  four = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(four, _mm_shuffle_ps(four, four, 1)));
}
INLINE float vf_reduce_max(vf x) {
  const __m256 eight = _mm256_max_ps(x.a, x.b);
  __m128 four = _mm_max_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  four = _mm_max_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_max_ss(four, _mm_shuffle_ps(four, four, 1)));
}
INLINE int32_t vi_reduce_add(vi x) {
  const __m256i eight = _mm256_add_epi32(x.a, x.b);
  __m128i four = _mm_add_epi32(_mm256_castsi256_si128(eight), _mm256_extracti128_si256(eight, 1));
  four = _mm_add_epi32(four, _mm_shuffle_epi32(four, 0x4e));
  return _mm_cvtsi128_si32(_mm_add_epi32(four, _mm_shuffle_epi32(four, 0xb1)));
}
INLINE int32_t vi_reduce_max(vi x) {
  const __m256i eight = _mm256_max_epi32(x.a, x.b);
  __m128i four = _mm_max_epi32(_mm256_castsi256_si128(eight), _mm256_extracti128_si256(eight, 1));
  four = _mm_max_epi32(four, _mm_shuffle_epi32(four, 0x4e));
  return _mm_cvtsi128_si32(_mm_max_epi32(four, _mm_shuffle_epi32(four, 0xb1)));
}

/* Sixteen numbers of 16 bits; saturates. */
INLINE __m256i to_words(vi x) { return _mm256_permute4x64_epi64(_mm256_packs_epi32(x.a, x.b), 0xd8); }
INLINE __m256i low_words(__m256i x) { return _mm256_srai_epi32(_mm256_slli_epi32(x, 16), 16); }
INLINE void store_words(int16_t *to, vi x) {
  _mm256_storeu_si256((void *)to, to_words((vi){low_words(x.a), low_words(x.b)}));
}
INLINE vi low_bytes(vi x) { return vi_and(x, vi_set1(255)); }
INLINE vi saturated(vi x) {
  const __m256i zero = _mm256_setzero_si256(), most = _mm256_set1_epi32(255);
  return (vi){_mm256_min_epi32(_mm256_max_epi32(x.a, zero), most), _mm256_min_epi32(_mm256_max_epi32(x.b, zero), most)};
}
INLINE void store_low_bytes(uint8_t *to, vi x) {
  const __m256i words = to_words(low_bytes(x));
  _mm_storeu_si128((void *)to, _mm_packus_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1)));
}

typedef __m256i SignedQuad;
INLINE SignedQuad read_signed_quad(const void *from) {
  int32_t quad;
  memcpy(&quad, from, sizeof quad);
  return _mm256_set1_epi32(quad);
}

#ifdef WITH_AVXVNNI

typedef uint8_t Unsigned;
typedef int8_t Signed;
typedef __m256i Group;
typedef __m256i Quad; /* of one or two rows */
typedef vi Quads;     /* of columns */
typedef vi Partial;   /* sum */
#define GROUPS 1
#define FEW_VECTORS(rows) ((rows) == 1 ? 4 : 2)

INLINE void store_unsigned(Unsigned *to, vi x) { store_low_bytes(to, x); }
INLINE void store_signed(Signed *to, vi x) { store_low_bytes((uint8_t *)to, x); }
INLINE void store_saturated(Unsigned *to, vi x) { store_low_bytes(to, saturated(x)); }

INLINE Group read_group(const void *from) {
  int32_t quad;
  memcpy(&quad, from, sizeof quad);
  return _mm256_set1_epi32(quad);
}
INLINE vi dot_signed_columns(vi sum, Group row, vi column) {
  __asm__("%{vex%} vpdpbusd %2, %1, %0" : "+x"(sum.a) : "x"(row), "x"(column.a));
  __asm__("%{vex%} vpdpbusd %2, %1, %0" : "+x"(sum.b) : "x"(row), "x"(column.b));
  return sum;
}
INLINE vi dot_signed_rows(vi sum, Group row, vi column) {
  __asm__("%{vex%} vpdpbusd %2, %1, %0" : "+x"(sum.a) : "x"(column.a), "x"(row));
  __asm__("%{vex%} vpdpbusd %2, %1, %0" : "+x"(sum.b) : "x"(column.b), "x"(row));
  return sum;
}
INLINE vi dot_words(vi sum, Group row, vi column) {
  __asm__("%{vex%} vpdpwssd %2, %1, %0" : "+x"(sum.a) : "x"(row), "x"(column.a));
  __asm__("%{vex%} vpdpwssd %2, %1, %0" : "+x"(sum.b) : "x"(row), "x"(column.b));
  return sum;
}
INLINE vi dot_nibbles(vi sum, SignedQuad row, vi column) { return dot_signed_rows(sum, row, column); }
INLINE vi nibble_sums(vi sum) { return sum; }

#else

typedef int16_t Unsigned;
typedef int16_t Signed;
typedef const int32_t *Group; /* in memory: the instruction that reads it repeats it */
typedef __m256i Quad;         /* of one or two rows */
typedef struct {              /* of columns */
  __m256i a, b, c, d;
} Quads, Partial; /* and sums: two numbers per column */
#define GROUPS 2
#define FEW_VECTORS(rows) ((rows) == 1 ? 2 : 1)

INLINE void store_unsigned(Unsigned *to, vi x) { _mm256_storeu_si256((void *)to, to_words(low_bytes(x))); }
INLINE void store_signed(Signed *to, vi x) { _mm256_storeu_si256((void *)to, to_words(x)); }
INLINE void store_saturated(Unsigned *to, vi x) { _mm256_storeu_si256((void *)to, to_words(saturated(x))); }

/* Rows of bytes, for weights of which sums of four products fit 16 bits (`four_fit` of kernels.h). */
#define BYTE_TILE 4 /* rows */
INLINE void store_saturated_bytes(uint8_t *to, vi x) { store_low_bytes(to, saturated(x)); }

/* Adds the products of eight bytes of a row with two quads of columns. */
INLINE vi dot_eight(vi sum, const uint8_t *row, vi first, vi second) {
  static const int16_t ones[16] __attribute__((aligned(32))) = {1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1};
  typedef const int32_t __attribute__((may_alias)) *Four;
  __m256i a, b, c, d;
  __asm__("vpbroadcastd %6, %2\n\tvpbroadcastd %7, %3\n\t"
          "vpmaddubsw %8, %2, %4\n\tvpmaddubsw %9, %2, %2\n\t"
          "vpmaddubsw %10, %3, %5\n\tvpmaddubsw %11, %3, %3\n\t"
          "vpaddw %5, %4, %4\n\tvpaddw %3, %2, %2\n\t"
          "vpmaddwd %12, %4, %4\n\tvpmaddwd %12, %2, %2\n\t"
          "vpaddd %4, %0, %0\n\tvpaddd %2, %1, %1"
          : "+x"(sum.a), "+x"(sum.b), "=&x"(a), "=&x"(b), "=&x"(c), "=&x"(d)
          : "m"(*(Four)row), "m"(*(Four)(row + 4)), "x"(first.a), "x"(first.b), "x"(second.a), "x"(second.b),
            "m"(*(const __m256i *)ones));
  return sum;
}

/* Writes bytes of 16 columns in 16 bits: of every quad the first two of all columns, then the other two. */
INLINE void widen_columns(int is_signed, const void *columns, int64_t quads, int64_t next, void *to) {
  const char *from = columns;
  const int64_t count = quads;
  __m256i *at = to;
  const __m256i lanes = _mm256_setr_epi32(0, 1, 2, 3, 0, 1, 2, 3);
  const __m256i quad = _mm256_mullo_epi32(lanes, _mm256_set1_epi32(is_signed ? 0x04000400 : 0x00040004));
  const __m256i first = _mm256_add_epi32(_mm256_set1_epi32(is_signed ? 0x01800080 : (int)0x80018000), quad);
  const __m256i second = _mm256_add_epi32(_mm256_set1_epi32(is_signed ? 0x03800280 : (int)0x80038002), quad);
  for (; quads > 0; quads--, from += next, at += 4) {
    __builtin_prefetch(from + next * count); /* the panel after this one */
    const __m256i low = _mm256_loadu_si256((const void *)from), high = _mm256_loadu_si256((const void *)(from + 32));
    const __m256i first_low = _mm256_shuffle_epi8(low, first), first_high = _mm256_shuffle_epi8(high, first);
    const __m256i second_low = _mm256_shuffle_epi8(low, second), second_high = _mm256_shuffle_epi8(high, second);
    _mm256_storeu_si256(at, is_signed ? _mm256_srai_epi16(first_low, 8) : first_low);
    _mm256_storeu_si256(at + 1, is_signed ? _mm256_srai_epi16(first_high, 8) : first_high);
    _mm256_storeu_si256(at + 2, is_signed ? _mm256_srai_epi16(second_low, 8) : second_low);
    _mm256_storeu_si256(at + 3, is_signed ? _mm256_srai_epi16(second_high, 8) : second_high);
  }
}

/* Two sums of 16 bits per column: 8 times two products of at most 127 * 15 fit. */
INLINE vi dot_nibbles(vi sum, SignedQuad row, vi column) {
  return (vi){_mm256_add_epi16(sum.a, _mm256_maddubs_epi16(column.a, row)),
              _mm256_add_epi16(sum.b, _mm256_maddubs_epi16(column.b, row))};
}
INLINE vi nibble_sums(vi sum) {
  const __m256i ones = _mm256_set1_epi16(1);
  return (vi){_mm256_madd_epi16(sum.a, ones), _mm256_madd_epi16(sum.b, ones)};
}

#define SEVEN_BITS 1
/* Sums of two products of at most 127 * 127 fit 16 bits. */
INLINE vi dot_seven_bits(vi sum, SignedQuad row, vi column) {
  const __m256i ones = _mm256_set1_epi16(1);
  return (vi){_mm256_add_epi32(sum.a, _mm256_madd_epi16(_mm256_maddubs_epi16(row, column.a), ones)),
              _mm256_add_epi32(sum.b, _mm256_madd_epi16(_mm256_maddubs_epi16(row, column.b), ones))};
}

INLINE Group read_group(const void *from) { return from; }
INLINE vi dot_signed_columns(vi sum, Group row, vi column) {
  __m256i numbers, products;
  __asm__("vpbroadcastd %4, %2\n\tvpmaddwd %2, %5, %3\n\tvpaddd %3, %0, %0\n\t"
          "vpmaddwd %2, %6, %2\n\tvpaddd %2, %1, %1"
          : "+x"(sum.a), "+x"(sum.b), "=&x"(numbers), "=&x"(products)
          : "m"(*row), "x"(column.a), "x"(column.b));
  return sum;
}
INLINE vi dot_signed_rows(vi sum, Group row, vi column) { return dot_signed_columns(sum, row, column); }
INLINE vi dot_words(vi sum, Group row, vi column) { return dot_signed_columns(sum, row, column); }

/* Two rows at once: processors share the additions out better if they do not follow each product. */
#define PAIR_ROWS 4
INLINE void dot_pair(vi *first, vi *second, Group row, Group other, vi column) {
  __m256i a, b, c, d;
  __asm__("vpbroadcastd %8, %4\n\tvpbroadcastd %9, %6\n\t"
          "vpmaddwd %4, %10, %5\n\tvpmaddwd %4, %11, %4\n\tvpmaddwd %6, %10, %7\n\tvpmaddwd %6, %11, %6\n\t"
          "vpaddd %5, %0, %0\n\tvpaddd %4, %1, %1\n\tvpaddd %7, %2, %2\n\tvpaddd %6, %3, %3"
          : "+x"(first->a), "+x"(first->b), "+x"(second->a), "+x"(second->b), "=&x"(a), "=&x"(b), "=&x"(c), "=&x"(d)
          : "m"(*row), "m"(*other), "x"(column.a), "x"(column.b));
}

INLINE Quad read_quad(const void *from) {
  int64_t quad;
  memcpy(&quad, from, sizeof quad);
  return _mm256_set1_epi64x(quad);
}
INLINE Quads read_signed_quads(const void *from) {
  const __m128i *at = from;
  return (Quads){_mm256_cvtepi8_epi16(_mm_loadu_si128(at)), _mm256_cvtepi8_epi16(_mm_loadu_si128(at + 1)),
                 _mm256_cvtepi8_epi16(_mm_loadu_si128(at + 2)), _mm256_cvtepi8_epi16(_mm_loadu_si128(at + 3))};
}
INLINE Quads read_unsigned_quads(const void *from) {
  const __m128i *at = from;
  return (Quads){_mm256_cvtepu8_epi16(_mm_loadu_si128(at)), _mm256_cvtepu8_epi16(_mm_loadu_si128(at + 1)),
                 _mm256_cvtepu8_epi16(_mm_loadu_si128(at + 2)), _mm256_cvtepu8_epi16(_mm_loadu_si128(at + 3))};
}
INLINE Partial partial_zero(void) {
  const __m256i zero = _mm256_setzero_si256();
  return (Partial){zero, zero, zero, zero};
}
INLINE Partial dot_quads_signed_columns(Partial sum, Quad row, Quads columns) {
  return (Partial){_mm256_add_epi32(sum.a, _mm256_madd_epi16(row, columns.a)),
                   _mm256_add_epi32(sum.b, _mm256_madd_epi16(row, columns.b)),
                   _mm256_add_epi32(sum.c, _mm256_madd_epi16(row, columns.c)),
                   _mm256_add_epi32(sum.d, _mm256_madd_epi16(row, columns.d))};
}
INLINE Partial dot_quads_signed_rows(Partial sum, Quad row, Quads columns) {
  return dot_quads_signed_columns(sum, row, columns);
}
INLINE vi partial_sum(Partial sum) {
  return (vi){_mm256_permute4x64_epi64(_mm256_hadd_epi32(sum.a, sum.b), 0xd8),
              _mm256_permute4x64_epi64(_mm256_hadd_epi32(sum.c, sum.d), 0xd8)};
}

#endif
#endif
