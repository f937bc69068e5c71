/* Six rows of bytes by 64 columns of bytes, the ones unsigned and the others signed, summed in 32 bits: the inner
 * loop of every product here. Sums are variables, not arrays, and multiplied by a line of assembly: so they stay in
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

#define EACH_OF_ROW(DO, r) DO(r, 0) DO(r, 1) DO(r, 2) DO(r, 3)
#define EACH(DO)                                              \
  EACH_OF_ROW(DO, 0) EACH_OF_ROW(DO, 1) EACH_OF_ROW(DO, 2)    \
  EACH_OF_ROW(DO, 3) EACH_OF_ROW(DO, 4) EACH_OF_ROW(DO, 5)

#define TILE_ROW_(r, MULTIPLY)                            \
  if (rows > r) {                                         \
    int32_t quad_;                                        \
    memcpy(&quad_, row_ + r * stride_, 4);                \
    const __m512i quads_ = _mm512_set1_epi32(quad_);      \
    sum##r##0 = MULTIPLY(sum##r##0, quads_, column0_);    \
    sum##r##1 = MULTIPLY(sum##r##1, quads_, column1_);    \
    sum##r##2 = MULTIPLY(sum##r##2, quads_, column2_);    \
    sum##r##3 = MULTIPLY(sum##r##3, quads_, column3_);    \
  }

/* Adds to sum00 to sum53, which are declared, the products of `quads` quads of bytes of `rows` rows by those of
 * a panel. MULTIPLY says which of the two are signed. A few rows read more than they compute: for them the
 * panels that follow are asked for ahead. */
#define TILE_PRODUCTS(bytes, stride, panel, quads, MULTIPLY)                \
  {                                                                         \
    const int8_t *row_ = (const int8_t *)(bytes), *panel_ = (const int8_t *)(panel); \
    const int64_t stride_ = (stride);                                       \
    for (int64_t left_ = (quads); left_ > 0; left_--) {                     \
      const __m512i column0_ = _mm512_loadu_si512(panel_);                   \
      const __m512i column1_ = _mm512_loadu_si512(panel_ + 64);              \
      const __m512i column2_ = _mm512_loadu_si512(panel_ + 128);             \
      const __m512i column3_ = _mm512_loadu_si512(panel_ + 192);             \
      TILE_ROW_(0, MULTIPLY) TILE_ROW_(1, MULTIPLY) TILE_ROW_(2, MULTIPLY)  \
      TILE_ROW_(3, MULTIPLY) TILE_ROW_(4, MULTIPLY) TILE_ROW_(5, MULTIPLY)  \
      row_ += 4;                                                            \
      panel_ += 256;                                                        \
    }                                                                       \
  }
#define SIGNED_PANEL(sum, row, column) dot(sum, row, column)
#define SIGNED_ROW(sum, row, column) dot(sum, column, row)

#endif
