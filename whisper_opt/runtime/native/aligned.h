/* Memory at a multiple of 64 bytes; to be released by free_aligned. Windows has no aligned_alloc. */
#ifndef WHISPER_OPT_ALIGNED_H
#define WHISPER_OPT_ALIGNED_H

#include <stdlib.h>
#if defined(_WIN32)
#include <malloc.h>
#endif

/* NULL if there is no memory; n_bytes is a multiple of 64 */
static inline void *alloc_aligned(size_t n_bytes) {
#if defined(_WIN32)
  return _aligned_malloc(n_bytes, 64);
#else
  return aligned_alloc(64, n_bytes);
#endif
}

static inline void free_aligned(void *memory) {
#if defined(_WIN32)
  _aligned_free(memory);
#else
  free(memory);
#endif
}

#endif
