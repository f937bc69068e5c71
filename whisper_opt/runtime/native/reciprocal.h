/* The estimate of 1 / x that AVX-512 processors compute (VRCP14PS), for those that lack the instruction: so GELU has
 * the same bits everywhere. The mantissa selects one of 64 straight lines by its first six bits, and the next ten are
 * the offset in it: the mantissa of the result, in 16 bits, is (256 * start - slope * offset) / 512, rounded down.
 * Measured with all mantissas on an AMD EPYC (Zen 5); relative error 2^-14. Powers of two have their own exact result
 * there, which the Newton step that follows every use gives here too.
 */
#ifndef WHISPER_OPT_RECIPROCAL_H
#define WHISPER_OPT_RECIPROCAL_H

#include <stdint.h>

#define LINE_(start, slope) ((uint32_t)(start) << 10 | (slope))
#define LINES_(a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p) \
  LINE_(a, b), LINE_(c, d), LINE_(e, f), LINE_(g, h), LINE_(i, j), LINE_(k, l), LINE_(m, n), LINE_(o, p)

/* start << 10 | slope */
static const uint32_t RECIPROCAL_LINES[64] = {
    LINES_(131065, 1009, 127030, 977, 123122, 949, 119328, 921, 115643, 893, 112071, 869, 108595, 843, 105222, 821),
    LINES_(101938, 797, 98748, 777, 95640, 755, 92618, 735, 89676, 717, 86811, 699, 84017, 681, 81292, 663),
    LINES_(78639, 647, 76049, 631, 73526, 617, 71059, 601, 68653, 587, 66303, 573, 64010, 561, 61765, 547),
    LINES_(59574, 535, 57432, 523, 55341, 513, 53290, 501, 51287, 491, 49325, 479, 47406, 469, 45527, 459),
    LINES_(43690, 451, 41887, 441, 40124, 433, 38392, 423, 36698, 415, 35037, 407, 33408, 399, 31811, 391),
    LINES_(30248, 385, 28709, 377, 27201, 369, 25723, 363, 24273, 357, 22845, 349, 21446, 343, 20072, 337),
    LINES_(18723, 331, 17397, 325, 16094, 319, 14818, 315, 13558, 309, 12321, 303, 11108, 299, 9911, 293),
    LINES_(8738, 289, 7583, 285, 6445, 279, 5331, 275, 4233, 271, 3151, 267, 2085, 263, 1035, 259),
};

#undef LINES_
#undef LINE_

/* The same in integers, for a positive normal number given by its bits. */
static inline uint32_t reciprocal_bits(uint32_t bits) {
  const uint32_t line = RECIPROCAL_LINES[bits >> 17 & 63];
  const uint32_t value = (line >> 10 << 8) - (line & 1023) * (bits >> 7 & 1023);
  return (253 - (bits >> 23)) << 23 | value >> 9 << 7;
}

#endif
