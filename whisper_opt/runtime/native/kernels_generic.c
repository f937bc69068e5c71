/* The kernels for any processor, in plain C. */
#include "kernels.h"

#include "vector_c.h"
#include "tile.h"
#include "linear.h"
#include "linear4.h"
#include "convolution.h"
#include "attention.h"
#include "self_attention.h"
#include "log_mel.h"

const Kernels kernels_generic = KERNELS("generic");
