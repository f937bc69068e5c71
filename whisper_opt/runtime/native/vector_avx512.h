/* Vectors of 16 numbers in AVX-512 registers, and dot products by AVX-512 VNNI. */
#ifndef WHISPER_OPT_VECTOR_H
#define WHISPER_OPT_VECTOR_H

#include <immintrin.h>
#include <stdint.h>
#include <string.h>

#define INLINE static inline __attribute__((always_inline))

typedef __m512 vf;
typedef __m512i vi;
typedef uint8_t Unsigned; /* element types of the rows of products */
typedef int8_t Signed;
typedef __m512i Group;

#define WIDTH 16
#define TILE 6
#define TILE_COLUMNS 64
#define GROUPS 1
#define UNSIGNED_OFFSET 0
#define FEW_ROWS 0

/* x * y + z, rounded once. */
INLINE float fused(float x, float y, float z) { return __builtin_fmaf(x, y, z); }

INLINE vf vf_set1(float x) { return _mm512_set1_ps(x); }
INLINE vf vf_load(const float *from) { return _mm512_loadu_ps(from); }
INLINE void vf_store(float *to, vf x) { _mm512_storeu_ps(to, x); }
INLINE vf vf_add(vf a, vf b) { return _mm512_add_ps(a, b); }
INLINE vf vf_sub(vf a, vf b) { return _mm512_sub_ps(a, b); }
INLINE vf vf_mul(vf a, vf b) { return _mm512_mul_ps(a, b); }
INLINE vf vf_div(vf a, vf b) { return _mm512_div_ps(a, b); }
INLINE vf vf_max(vf a, vf b) { return _mm512_max_ps(a, b); } /* b if either is NaN */
INLINE vf vf_min(vf a, vf b) { return _mm512_min_ps(a, b); }
INLINE vf vf_fma(vf a, vf b, vf c) { return _mm512_fmadd_ps(a, b, c); }
INLINE vf vf_fnma(vf a, vf b, vf c) { return _mm512_fnmadd_ps(a, b, c); } /* c - a * b */
INLINE vf vf_abs(vf x) { return _mm512_abs_ps(x); }
INLINE vf vf_round(vf x) { return _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
INLINE vi vf_to_int(vf x) { return _mm512_cvtps_epi32(x); } /* INT32_MIN if x is NaN or too large */
INLINE vi vf_bits(vf x) { return _mm512_castps_si512(x); }
INLINE vf vf_reciprocal_estimate(vf x) { return _mm512_rcp14_ps(x); }

/* x * 2 ^ exponent, an integer not above 0; anything below 2 ^ -100 if it is less. */
INLINE vf vf_scale(vf x, vf exponent) { return _mm512_scalef_ps(x, exponent); }

/* The first n elements. */
INLINE __mmask16 tail_mask(int64_t n) { return (__mmask16)(n >= WIDTH ? 0xffff : n > 0 ? (1u << n) - 1 : 0); }
INLINE vf vf_load_tail(const float *from, int64_t n) { return _mm512_maskz_loadu_ps(tail_mask(n), from); }
INLINE void vf_store_tail(float *to, int64_t n, vf x) { _mm512_mask_storeu_ps(to, tail_mask(n), x); }

INLINE vi vi_set1(int32_t x) { return _mm512_set1_epi32(x); }
INLINE vi vi_load(const void *from) { return _mm512_loadu_si512(from); }
INLINE void vi_store(void *to, vi x) { _mm512_storeu_si512(to, x); }
INLINE vi vi_add(vi a, vi b) { return _mm512_add_epi32(a, b); }
INLINE vi vi_mul(vi a, vi b) { return _mm512_mullo_epi32(a, b); }
INLINE vi vi_max(vi a, vi b) { return _mm512_max_epi32(a, b); }
INLINE vi vi_and(vi a, vi b) { return _mm512_and_si512(a, b); }
INLINE vi vi_or(vi a, vi b) { return _mm512_or_si512(a, b); }
INLINE vi vi_shift_left(vi x, int n) { return _mm512_sllv_epi32(x, _mm512_set1_epi32(n)); }
INLINE vi vi_shift_right_3(vi x) { return _mm512_srli_epi32(x, 3); }
INLINE vi vi_shift_right_4(vi x) { return _mm512_srli_epi32(x, 4); }
INLINE vi vi_shift_right_23(vi x) { return _mm512_srli_epi32(x, 23); }
INLINE vf vi_to_float(vi x) { return _mm512_cvtepi32_ps(x); }
INLINE vf vi_as_float(vi x) { return _mm512_castsi512_ps(x); }
INLINE int vi_any_negative(vi x) { return _mm512_movepi32_mask(x) != 0; }

/* Reductions combine halves, then quarters and so on, in every variant. */
INLINE float vf_reduce_add(vf x) {
  const __m256 eight = _mm256_add_ps(_mm512_castps512_ps256(x), _mm512_extractf32x8_ps(x, 1));
  __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  four = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(four, _mm_shuffle_ps(four, four, 1)));
}
INLINE float vf_reduce_max(vf x) {
  const __m256 eight = _mm256_max_ps(_mm512_castps512_ps256(x), _mm512_extractf32x8_ps(x, 1));
  __m128 four = _mm_max_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  four = _mm_max_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_max_ss(four, _mm_shuffle_ps(four, four, 1)));
}
INLINE int32_t vi_reduce_add(vi x) { return _mm512_reduce_add_epi32(x); }
INLINE int32_t vi_reduce_max(vi x) { return _mm512_reduce_max_epi32(x); }

/* Narrowing stores: the low byte; bytes of rows, of which the last saturates to 0 .. 255. */
INLINE void store_low_bytes(uint8_t *to, vi x) { _mm_storeu_si128((void *)to, _mm512_cvtepi32_epi8(x)); }
INLINE void store_unsigned(Unsigned *to, vi x) { store_low_bytes(to, x); }
INLINE void store_signed(Signed *to, vi x) { store_low_bytes((uint8_t *)to, x); }
INLINE void store_saturated(Unsigned *to, vi x) {
  _mm_storeu_si128((void *)to, _mm512_cvtusepi32_epi8(_mm512_max_epi32(x, _mm512_setzero_si512())));
}

INLINE Group read_group(const void *from) {
  int32_t quad;
  memcpy(&quad, from, sizeof quad);
  return _mm512_set1_epi32(quad);
}
INLINE vi dot_signed_columns(vi sum, Group row, vi column) {
  __asm__("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(row), "v"(column));
  return sum;
}
INLINE vi dot_signed_rows(vi sum, Group row, vi column) {
  __asm__("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(column), "v"(row));
  return sum;
}

INLINE void store_words(int16_t *to, vi x) { _mm256_storeu_si256((void *)to, _mm512_cvtepi32_epi16(x)); }
INLINE vi dot_words(vi sum, Group row, vi column) {
  __asm__("vpdpwssd %2, %1, %0" : "+v"(sum) : "v"(row), "v"(column));
  return sum;
}

typedef __m512i SignedQuad;
INLINE SignedQuad read_signed_quad(const void *from) { return read_group(from); }
INLINE vi dot_nibbles(vi sum, SignedQuad row, vi column) { return dot_signed_rows(sum, row, column); }
INLINE vi nibble_sums(vi sum) { return sum; }

#endif
