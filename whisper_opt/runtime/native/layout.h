/* Layouts and constants that the kernels share with the graphs (whisper_opt/export/graphs/operators.py) and with
 * core/dims.py, runtime/padding.py, cross_kv.py and head_bounds.py; tests/runtime/native/test_library.py compares them.
 *
 * Increase WHISPER_OPT_ABI, and ABI in core/native_library.py, with every change of a number here, of a layout in kernels.h or of
 * the inputs and outputs of an operator. Libraries that were compiled before are then refused.
 */
#ifndef WHISPER_OPT_LAYOUT_H
#define WHISPER_OPT_LAYOUT_H

#define WHISPER_OPT_ABI 6

#define N_FFT 400      /* samples per frame of the spectrogram */
#define HOP_LENGTH 160 /* from one frame to the next */

#define HEAD 64   /* channels per attention head */
#define PANEL 64  /* columns of a weight, or keys, that are stored together */
#define BLOCK 128 /* the number of keys is padded to a multiple of this */
#define MASKED -1e30f /* added to the score of a padding key */

#define ZERO 128 /* zero point of inputs of products and of keys */
#define STEPS 127
#define GELU_ZERO 16
#define GELU_STEPS 239
#define GELU_LOW 0.17f /* GELU is never below minus this */
#define LEAST 1e-20f   /* smallest magnitude that is scaled to 8 bits */
#define HEAD_ZERO 64   /* zero point of inputs of the output head */
#define HEAD_STEPS 63

#define CONV_STEPS 2047 /* largest magnitude of an input of a convolution */
#define CONV_LIMIT 1048576 /* sum of the magnitudes of a column's weights: times CONV_STEPS it fits 32 bits */

#define FOUR_LIMIT 128 /* see `four_fit` of Packed */

#define NIBBLE_BLOCK 32 /* 4-bit weights of a column that share a scale */
#define NIBBLE_ZERO 8   /* their zero point */
#define NIBBLE_BYTES 320 /* a block of 16 columns, and its scales in float32 */

/* Limits of arrays on the stack. */
#define MAX_KEYS 4096   /* per audio */
#define MAX_INPUT 16384 /* rows of a weight; sums of products up to this fit 32 bits */
#define MAX_HEADS 1024
#define MAX_CHANNELS 2048 /* of an input of a convolution */

#endif
