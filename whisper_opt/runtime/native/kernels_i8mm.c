/* The kernels for 64-bit ARM processors with the extension I8MM. */
#include "kernels.h"

#if defined(__aarch64__)

#include <arm_neon.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("i8mm"))), apply_to = function)
#elif defined(__GNUC__)
#pragma GCC target("arch=armv8.2-a+i8mm")
#endif

#define WITH_I8MM
#include "vector_c.h"
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

const Kernels kernels_i8mm = KERNELS("i8mm");

#endif
