/* Layouts and constants that the kernels and the graphs (whisper_opt/export, whisper_opt/runtime/padding.py,
 * whisper_opt/runtime/head_bounds.py) must agree on; tests/runtime/native/test_library.py compares them.
 *
 * Add one to WHISPER_OPT_ABI, and to ABI in __init__.py, with every change of a number here, of a layout in kernels.h
 * or of the inputs and outputs of an operator: a library that was compiled before is then refused.
 */
#ifndef WHISPER_OPT_LAYOUT_H
#define WHISPER_OPT_LAYOUT_H

#define WHISPER_OPT_ABI 1

#define HEAD 64   /* channels per attention head */
#define PANEL 64  /* columns of a weight, or keys, that lie together */
#define BLOCK 128 /* keys are padded to a multiple of this */
#define MASKED -1e30f /* added to the score of a key that is not there */

#define ZERO 128 /* of inputs of products and of keys, rounded to 8 bits */
#define STEPS 127
#define GELU_ZERO 16
#define GELU_STEPS 239
#define GELU_LOW 0.17f /* no GELU is less than minus this */
#define LEAST 1e-20f   /* least magnitude that is scaled to 8 bits */
#define HEAD_ZERO 64   /* of the output head */
#define HEAD_STEPS 63

/* Limits of what is computed on the stack. */
#define MAX_KEYS 4096   /* per audio */
#define MAX_INPUT 16384 /* rows of a weight; sums of products then fit 32 bits */
#define MAX_HEADS 1024

#endif
