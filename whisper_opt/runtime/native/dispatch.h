/* The choice of a variant of the kernels for this processor. */
#ifndef WHISPER_OPT_DISPATCH_H
#define WHISPER_OPT_DISPATCH_H

#include "kernels.h"

#if defined(_WIN32)
#define EXPORT __declspec(dllexport)
#else
#define EXPORT __attribute__((visibility("default")))
#endif

/* The variant for new sessions: the one that was selected, the one that WHISPER_OPT_KERNELS names, or the fastest that
 * this processor supports and that passes its self-test. NULL if there is none; then `why` says why. */
const Kernels *kernels_in_use(const char **why);

#endif
