/* Weights in the order in which every variant reads them, and memory that is aligned for vectors. */
#include "kernels.h"

#include <stdlib.h>
#include <string.h>

#ifdef _WIN32
#include <malloc.h>
#endif

void *allocate(size_t n_bytes) {
#ifdef _WIN32
  return _aligned_malloc(n_bytes, 64);
#else
  return aligned_alloc(64, (n_bytes + 63) / 64 * 64);
#endif
}

void release(void *memory) {
#ifdef _WIN32
  _aligned_free(memory);
#else
  free(memory);
#endif
}

int pack_weight(Packed *packed, const int8_t *weight, int64_t n_in, int64_t n_out, int64_t width) {
  const int64_t n_panels = ceil_div(n_out, PANEL);
  packed->n_in = n_in;
  packed->n_out = n_out;
  packed->width = width;
  packed->panels = allocate(n_panels * PANEL * n_in);
  packed->sums = allocate(n_panels * PANEL * sizeof(int32_t));
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
  release(packed->panels);
  release(packed->sums);
  packed->panels = NULL;
  packed->sums = NULL;
}
