/* Weights in the order in which the kernels read them. */
#include "kernels.h"

#include <string.h>

#include "aligned.h"

int pack_weight(Packed *packed, const int8_t *weight, int64_t n_in, int64_t n_out, int64_t width) {
  const int64_t n_panels = ceil_div(n_out, PANEL);
  packed->n_in = n_in;
  packed->n_out = n_out;
  packed->width = width;
  packed->panels = alloc_aligned(n_panels * PANEL * n_in);
  packed->sums = alloc_aligned(n_panels * PANEL * sizeof(int32_t));
  if (!packed->panels || !packed->sums) {
    free_weight(packed);
    return -1;
  }
  memset(packed->panels, 0, n_panels * PANEL * n_in);
  memset(packed->sums, 0, n_panels * PANEL * sizeof(int32_t));
  for (int64_t row = 0; row < n_in; row++) {
    int8_t *to = packed->panels + row / 4 * 4 * width + row % 4;
    const int8_t *from = weight + row * n_out;
    for (int64_t column = 0; column < n_out; column++) {
      to[column / width * width * n_in + column % width * 4] = from[column];
      packed->sums[column] += from[column];
    }
  }
  return 0;
}

void free_weight(Packed *packed) {
  free_aligned(packed->panels);
  free_aligned(packed->sums);
  packed->panels = NULL;
  packed->sums = NULL;
}
