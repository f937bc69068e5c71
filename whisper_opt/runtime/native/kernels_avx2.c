/* The kernels for processors with AVX2 and FMA: exact products in 16 bits. */
#include "kernels.h"

#if defined(__x86_64__)

#include <immintrin.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma"))), apply_to = function)
#elif defined(__GNUC__)
#pragma GCC target("avx2,fma")
#endif

#include "vector_avx2.h"
#include "tile.h"
#include "linear.h"
#include "linear4.h"
#include "convolution.h"
#include "attention.h"
#include "self_attention.h"
#include "log_mel.h"

#if defined(__clang__)
#pragma clang attribute pop
#endif

const Kernels kernels_avx2 = KERNELS("avx2");

#endif
