/* The kernels for processors with AVX-512 VNNI: dot products of bytes, 512 bits wide. */
#include "kernels.h"

#if defined(__x86_64__)

#include <immintrin.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#if defined(__clang__)
#pragma clang attribute push( \
    __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512vnni"))), apply_to = function)
#elif defined(__GNUC__)
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")
#endif

#include "vector_avx512.h"
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

const Kernels kernels_avx512vnni = KERNELS("avx512vnni");

#endif
