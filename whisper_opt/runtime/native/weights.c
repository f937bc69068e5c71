/* Weights in the order in which the kernels read them. */
#include "kernels.h"

#include <string.h>

#include "aligned.h"

static int make_packed(Packed *packed, int64_t n_in, int64_t n_out, int64_t width, int copied) {
  const int64_t n_columns = ceil_div(n_out, PANEL) * PANEL;
  *packed = (Packed){.n_in = n_in, .n_out = n_out, .width = width};
  packed->sums = alloc_aligned(n_columns * sizeof(int32_t));
  if (copied) packed->copy = alloc_aligned(n_columns * n_in);
  packed->panels = packed->copy;
  if (packed->sums && (packed->copy || !copied)) return 0;
  free_weight(packed);
  return -1;
}

/* Whether sums of four products fit 16 bits (`four_fit`), of columns in panels of `width`. */
static int four_fit(const int8_t *panels, int64_t n_bytes, int64_t width) {
  typedef int8_t Bytes __attribute__((vector_size(16)));
  typedef uint16_t Lanes __attribute__((vector_size(16)));
  Lanes most = {0};
  const int64_t next = 4 * width;
  for (int64_t at = 0; at < n_bytes; at += 2 * next)
    for (int64_t i = 0; i < next; i += 16) {
      Bytes first, second;
      memcpy(&first, panels + at + i, sizeof first);
      memcpy(&second, panels + at + next + i, sizeof second);
      const Lanes p = (Lanes)(first & (first > 0)), q = (Lanes)(second & (second > 0));
      const Lanes m = (Lanes)(-first & (first < 0)), n = (Lanes)(-second & (second < 0));
      const Lanes positive = (p & 0xff) + (p >> 8) + (q & 0xff) + (q >> 8);
      const Lanes negative = (m & 0xff) + (m >> 8) + (n & 0xff) + (n >> 8);
      most = (Lanes)((positive > most) & positive) | (Lanes)((positive <= most) & most);
      most = (Lanes)((negative > most) & negative) | (Lanes)((negative <= most) & most);
    }
  for (int i = 0; i < 8; i++)
    if (most[i] > FOUR_LIMIT) return 0;
  return 1;
}

int pack_weight(Packed *packed, const int8_t *weight, int64_t n_in, int64_t n_out, int64_t width) {
  if (make_packed(packed, n_in, n_out, width, 1)) return -1;
  const int64_t n_columns = ceil_div(n_out, PANEL) * PANEL;
  memset(packed->copy, 0, n_columns * n_in);
  memset(packed->sums, 0, n_columns * sizeof(int32_t));
  for (int64_t row = 0; row < n_in; row++) {
    int8_t *to = packed->copy + row / 4 * 4 * width + row % 4;
    const int8_t *from = weight + row * n_out;
    for (int64_t column = 0; column < n_out; column++) {
      to[column / width * width * n_in + column % width * 4] = from[column];
      packed->sums[column] += from[column];
    }
  }
  packed->four_fit = four_fit(packed->copy, n_columns * n_in, width);
  return 0;
}

/* The sums of the columns of a panel: of bytes in lanes of 16 bits, which hold 128 sums of two bytes. */
static void sum_columns(const int8_t *panel, int64_t n_in, int32_t *sums) {
  typedef uint16_t Lanes __attribute__((vector_size(16)));
  enum { VECTORS = 4 * PANEL / 16, MOST = 128 };
  for (int i = 0; i < PANEL; i++) sums[i] = (int32_t)(-128 * n_in); /* bytes are made unsigned */
  for (int64_t first = 0; first < n_in / 4; first += MOST) {
    const int64_t last = min64(first + MOST, n_in / 4);
    Lanes pairs[VECTORS];
    memset(pairs, 0, sizeof pairs);
    for (int64_t quad = first; quad < last; quad++)
      for (int i = 0; i < VECTORS; i++) {
        Lanes bytes;
        memcpy(&bytes, panel + quad * 4 * PANEL + i * 16, sizeof bytes);
        bytes ^= 0x8080;
        pairs[i] += (bytes & 0xff) + (bytes >> 8);
      }
    for (int i = 0; i < PANEL; i++) sums[i] += pairs[i / 4][i % 4 * 2] + pairs[i / 4][i % 4 * 2 + 1];
  }
}

int use_panels(Packed *packed, const int8_t *panels, int64_t n_in, int64_t n_out, int64_t width) {
  if (make_packed(packed, n_in, n_out, width, width != PANEL)) return -1;
  for (int64_t panel = 0; panel < ceil_div(n_out, PANEL); panel++) {
    const int8_t *from = panels + panel * PANEL * n_in;
    sum_columns(from, n_in, packed->sums + panel * PANEL);
    if (!packed->copy) continue;
    int8_t *to = packed->copy + panel * PANEL * n_in;
    for (int64_t quad = 0; quad < n_in / 4; quad++)
      for (int64_t part = 0; part < PANEL / width; part++)
        memcpy(to + (part * n_in + quad * 4) * width, from + quad * 4 * PANEL + part * 4 * width, 4 * width);
  }
  if (packed->copy)
    packed->four_fit = four_fit(packed->copy, ceil_div(n_out, PANEL) * PANEL * n_in, width);
  else
    packed->panels = panels;
  return 0;
}

float half_as_float(uint16_t half) {
  uint32_t bits = (half & 0x7fffu) << 13;
  float value;
  if ((half & 0x7c00) == 0x7c00) bits |= 0x7f800000; /* infinity or NaN */
  memcpy(&value, &bits, sizeof value);
  if (bits < 0x7f800000) value *= 0x1p112f;
  return half & 0x8000 ? -value : value;
}

int pack_nibbles(Packed *packed, const uint8_t *weight, const uint16_t *scale, int64_t n_in, int64_t n_out) {
  enum { WIDTH = 16, HALF = NIBBLE_BLOCK / 2 };
  const int64_t blocks = n_in / NIBBLE_BLOCK, n_columns = ceil_div(n_out, PANEL) * PANEL;
  const int64_t size = n_columns / WIDTH * blocks * NIBBLE_BYTES;
  uint8_t *to = alloc_aligned(size);
  if (!to) return -1;
  *packed = (Packed){.n_in = n_in, .n_out = n_out, .width = WIDTH, .panels = (int8_t *)to, .copy = (int8_t *)to};
  memset(to, 0, size);
  for (int64_t column = 0; column < n_out; column++)
    for (int64_t block = 0; block < blocks; block++, weight += HALF, scale++) {
      uint8_t *at = to + (column / WIDTH * blocks + block) * NIBBLE_BYTES;
      const float value = half_as_float(*scale);
      memcpy(at + NIBBLE_BYTES - (WIDTH - column % WIDTH) * sizeof value, &value, sizeof value);
      at += 4 * (column % WIDTH);
      for (int64_t i = 0; i < HALF; i += 4, at += 4 * WIDTH) /* eight inputs */
        for (int b = 0; b < 4; b++) {
          const int shift = b % 2 * 4;
          at[b] = (uint8_t)((weight[i + b / 2] >> shift & 15) | (weight[i + 2 + b / 2] >> shift & 15) << 4);
        }
    }
  return 0;
}

int pack_halves(Packed *packed, const uint16_t *weight, int64_t n_in, int64_t n_out) {
  enum { WIDTH = 16 };
  const int64_t n_columns = ceil_div(n_out, PANEL) * PANEL, size = n_columns * n_in * sizeof *weight;
  uint16_t *to = alloc_aligned(size);
  if (!to) return -1;
  *packed = (Packed){.n_in = n_in, .n_out = n_out, .width = WIDTH, .panels = (int8_t *)to, .copy = (int8_t *)to};
  memset(to, 0, size);
  for (int64_t column = 0; column < n_out; column++)
    for (int64_t i = 0; i < n_in; i++, weight++)
      to[column / WIDTH * WIDTH * n_in + (i / 2 * WIDTH + column % WIDTH) * 2 + i % 2] = *weight;
  return 0;
}

void free_weight(Packed *packed) {
  free_aligned(packed->copy);
  free_aligned(packed->sums);
  *packed = (Packed){0};
}
