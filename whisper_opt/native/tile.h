/* Six rows of unsigned bytes by 64 columns of signed bytes, summed in 32 bits: the inner loop of every
 * product here. Sums are variables, not arrays, and multiplied by a line of assembly: so they stay in
 * registers, which GCC 12 does with neither arrays nor the intrinsic.
 *
 * Rows are contiguous. Columns lie in panels of 64: for every four rows of the matrix the four bytes of
 * column 0, those of column 1 and so on, 256 bytes.
 */
#ifndef WHISPER_OPT_TILE_H
#define WHISPER_OPT_TILE_H

#include <immintrin.h>
#include <stdint.h>
#include <string.h>

#define VNNI __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")))
#define VNNI_INLINE static inline __attribute__((always_inline)) VNNI

enum { TILE = 6, PANEL = 64, LANES = 16 };

VNNI_INLINE __m512i dot(__m512i sums, __m512i bytes, __m512i signed_bytes) {
  __asm__("vpdpbusd %2, %1, %0" : "+v"(sums) : "v"(bytes), "v"(signed_bytes));
  return sums;
}

#define EACH_ROW(DO) DO(0) DO(1) DO(2) DO(3) DO(4) DO(5)
#define EACH_OF_ROW(DO, r) DO(r, 0) DO(r, 1) DO(r, 2) DO(r, 3)
#define EACH(DO)                                              \
  EACH_OF_ROW(DO, 0) EACH_OF_ROW(DO, 1) EACH_OF_ROW(DO, 2)    \
  EACH_OF_ROW(DO, 3) EACH_OF_ROW(DO, 4) EACH_OF_ROW(DO, 5)

#define TILE_DECLARE_(r, j) __m512i sum##r##j = from##j;
#define TILE_ROW_(r)                                      \
  if (rows > r) {                                         \
    int32_t quad_;                                        \
    memcpy(&quad_, bytes_ + r * stride_, 4);              \
    const __m512i quads_ = _mm512_set1_epi32(quad_);      \
    sum##r##0 = dot(sum##r##0, quads_, column0_);         \
    sum##r##1 = dot(sum##r##1, quads_, column1_);         \
    sum##r##2 = dot(sum##r##2, quads_, column2_);         \
    sum##r##3 = dot(sum##r##3, quads_, column3_);         \
  }

/* Declares sum00 to sum53: from0 to from3 and the products of `quads` quads of bytes of `rows` rows. */
#define TILE_PRODUCTS(bytes, stride, panel, quads)                          \
  EACH(TILE_DECLARE_) {                                                     \
    const uint8_t *bytes_ = (bytes);                                        \
    const int64_t stride_ = (stride);                                       \
    const int8_t *panel_ = (panel);                                         \
    for (int64_t left_ = (quads); left_ > 0; left_--) {                     \
      const __m512i column0_ = _mm512_load_si512(panel_);                   \
      const __m512i column1_ = _mm512_load_si512(panel_ + 64);              \
      const __m512i column2_ = _mm512_load_si512(panel_ + 128);             \
      const __m512i column3_ = _mm512_load_si512(panel_ + 192);             \
      EACH_ROW(TILE_ROW_)                                                   \
      bytes_ += 4;                                                          \
      panel_ += 256;                                                        \
    }                                                                       \
  }

#endif
