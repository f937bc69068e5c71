/* Log-mel spectrogram. Every vector holds the same number of 16 neighbouring frames, so that all of it is arithmetic on
 * vectors, in one order. */

enum {
  HALF = N_FFT / 2,
  SPAN = (WIDTH - 1) * HOP_LENGTH + N_FFT, /* samples of 16 frames */
};

#if defined(__clang__)
#define UNROLLED
#else
#define UNROLLED _Pragma("GCC unroll 5")
#endif

typedef struct Complex {
  vf re, im;
} Complex;

INLINE Complex c_add(Complex x, Complex y) { return (Complex){vf_add(x.re, y.re), vf_add(x.im, y.im)}; }
INLINE Complex c_sub(Complex x, Complex y) { return (Complex){vf_sub(x.re, y.re), vf_sub(x.im, y.im)}; }
INLINE Complex c_scale(Complex x, float by) {
  return (Complex){vf_mul(x.re, vf_set1(by)), vf_mul(x.im, vf_set1(by))};
}
INLINE Complex c_fma(Complex x, float by, Complex y) {
  return (Complex){vf_fma(x.re, vf_set1(by), y.re), vf_fma(x.im, vf_set1(by), y.im)};
}
INLINE Complex c_plus_i(Complex x, Complex y) { return (Complex){vf_sub(x.re, y.im), vf_add(x.im, y.re)}; } /* x + i y */
INLINE Complex c_minus_i(Complex x, Complex y) { return (Complex){vf_add(x.re, y.im), vf_sub(x.im, y.re)}; }
INLINE Complex c_turn(Complex x, const float *turn) { /* x * (turn[0] + i turn[1]) */
  const vf re = vf_set1(turn[0]), im = vf_set1(turn[1]);
  return (Complex){vf_fnma(x.im, im, vf_mul(x.re, re)), vf_fma(x.im, re, vf_mul(x.re, im))};
}

/* Discrete Fourier transforms of 2, 4 and 5 numbers. */
INLINE void dft(const int radix, const Complex *x, Complex *y) {
  if (radix == 2) {
    y[0] = c_add(x[0], x[1]);
    y[1] = c_sub(x[0], x[1]);
  } else if (radix == 4) {
    const Complex even = c_add(x[0], x[2]), odd = c_add(x[1], x[3]);
    const Complex across = c_sub(x[0], x[2]), other = c_sub(x[1], x[3]);
    y[0] = c_add(even, odd);
    y[1] = c_minus_i(across, other);
    y[2] = c_sub(even, odd);
    y[3] = c_plus_i(across, other);
  } else {
    const float cos1 = 0.309016994f, cos2 = -0.809016994f, sin1 = 0.951056516f, sin2 = 0.587785252f;
    const Complex outer = c_add(x[1], x[4]), inner = c_add(x[2], x[3]);
    const Complex outer_change = c_sub(x[1], x[4]), inner_change = c_sub(x[2], x[3]);
    const Complex re1 = c_fma(inner, cos2, c_fma(outer, cos1, x[0]));
    const Complex re2 = c_fma(inner, cos1, c_fma(outer, cos2, x[0]));
    const Complex im1 = c_fma(inner_change, sin2, c_scale(outer_change, sin1));
    const Complex im2 = c_fma(inner_change, -sin1, c_scale(outer_change, sin2));
    y[0] = c_add(x[0], c_add(outer, inner));
    y[1] = c_minus_i(re1, im1);
    y[2] = c_minus_i(re2, im2);
    y[3] = c_plus_i(re2, im2);
    y[4] = c_plus_i(re1, im1);
  }
}

/* One pass of a Fourier transform of HALF numbers that keeps them in order (Stockham's): of `stride` transforms of `n`
 * numbers it makes stride * radix transforms of n / radix numbers. */
INLINE void fft_pass(const int radix, const int n, const int stride, const float *turns, const Complex *from,
                     Complex *to) {
  const int n_parts = n / radix;
  for (int part = 0; part < n_parts; part++)
    for (int q = 0; q < stride; q++) {
      Complex x[5], y[5];
      UNROLLED for (int i = 0; i < radix; i++) x[i] = from[q + stride * (part + n_parts * i)];
      dft(radix, x, y);
      UNROLLED for (int i = 0; i < radix; i++)
        to[q + stride * (radix * part + i)] = part && i ? c_turn(y[i], turns + 2 * (part * i * (N_FFT / n))) : y[i];
    }
}

/* The samples of 16 frames, multiplied by the window; 0 where there is no frame. */
static void load_frames(const LogMel *args, int64_t frame, float *to) {
  const int64_t first = frame * HOP_LENGTH - HALF, left = min64(WIDTH, args->n_frames - frame);
  float copy[SPAN];
  const float *from = copy;
  if (first >= 0 && first + SPAN <= args->n_samples)
    from = args->samples + first;
  else
    for (int64_t i = 0; i < SPAN; i++) {
      const int64_t at = first + i < 0 ? -(first + i) : first + i;
      copy[i] = at < args->n_samples ? args->samples[at] : 0;
    }
  for (int64_t i = 0; i < N_FFT; i++)
    for (int64_t j = 0; j < WIDTH; j++) to[i * WIDTH + j] = j < left ? from[j * HOP_LENGTH + i] * args->window[i] : 0;
}

/* Powers of N_FFT real numbers in 0 to HALF turns per window, four times as large. The transform is that of half as many
 * complex numbers, whose real and imaginary parts are the even and the odd ones. */
static void power_spectrum(const float *turns, Complex *x, Complex *y, vf *power) {
  fft_pass(5, 200, 1, turns, x, y);
  fft_pass(5, 40, 5, turns, y, x);
  fft_pass(4, 8, 25, turns, x, y);
  fft_pass(2, 2, 100, turns, y, x);
  const vf four = vf_set1(4), sum = vf_add(x[0].re, x[0].im), difference = vf_sub(x[0].re, x[0].im);
  power[0] = vf_mul(four, vf_mul(sum, sum));
  power[HALF] = vf_mul(four, vf_mul(difference, difference));
  for (int k = 1; k <= HALF / 2; k++) {
    const Complex a = x[k], b = {x[HALF - k].re, vf_sub(vf_set1(0), x[HALF - k].im)};
    const Complex even = c_add(a, b), odd = c_turn(c_sub(a, b), turns + 2 * k);
    const Complex low = c_minus_i(even, odd), high = c_plus_i(even, odd);
    power[k] = vf_fma(low.re, low.re, vf_mul(low.im, low.im));
    power[HALF - k] = vf_fma(high.re, high.re, vf_mul(high.im, high.im));
  }
}

/* log10 of positive normal numbers: that of 2^e * m with m from sqrt(1/2) to sqrt(2), where ln m = 2 artanh(s) with
 * s = (m - 1) / (m + 1), by its series. */
INLINE vf log10_of(vf x) {
  const int32_t root = 0x3f3504f3; /* bits of sqrt(1/2) */
  const vi bits = vi_add(vf_bits(x), vi_set1(0x3f800000 - root));
  const vf exponent = vi_to_float(vi_add(vi_shift_right_23(bits), vi_set1(-127)));
  const vf m = vi_as_float(vi_add(vi_and(bits, vi_set1(0x7fffff)), vi_set1(root)));
  const vf rest = vf_sub(m, vf_set1(1)), s = vf_div(rest, vf_add(rest, vf_set1(2))), square = vf_mul(s, s);
  vf sum = vf_fma(square, vf_set1(1 / 11.f), vf_set1(1 / 9.f));
  sum = vf_fma(sum, square, vf_set1(1 / 7.f));
  sum = vf_fma(sum, square, vf_set1(1 / 5.f));
  sum = vf_fma(sum, square, vf_set1(1 / 3.f));
  const vf twice = vf_add(s, s), log_m = vf_fma(vf_mul(sum, square), twice, twice);
  /* log10(2) in two parts, of which the first has few bits */
  const vf low = vf_fma(exponent, vf_set1(0.000248745664f), vf_mul(log_m, vf_set1(0.434294482f)));
  return vf_fma(exponent, vf_set1(0.30078125f), low);
}

static int log_mel(const LogMel *args) {
  Complex x[HALF], y[HALF];
  vf power[HALF + 1];
  vi max = vi_set1(0);
  const int64_t n = args->n_frames;
  for (int64_t frame = 0; frame < n; frame += WIDTH) {
    load_frames(args, frame, (float *)x);
    power_spectrum(args->turns, x, y, power);
    const float *weight = args->weights;
    for (int64_t mel = 0; mel < args->n_mels; mel++) {
      vf sum = vf_set1(0);
      for (int64_t i = 0; i < args->n_bins[mel]; i++)
        sum = vf_fma(power[args->first_bin[mel] + i], vf_set1(*weight++), sum);
      sum = vf_max(vf_set1(1e-10f), vf_mul(sum, vf_set1(0.25f))); /* a NaN stays */
      max = max_bits(max, vf_abs(sum)); /* which may be negative */
      vf_store_tail(args->frames + mel * n + frame, n - frame, log10_of(sum));
    }
  }
  const float peak = reduce_max_bits(max);
  if (n && !(peak < INFINITY)) return 1;
  float logs[WIDTH];
  vf_store(logs, log10_of(vf_max(vf_set1(1e-10f), vf_set1(peak))));
  *args->floor = logs[0] - 8;
  for (int64_t i = 0; i < n * args->n_mels; i += WIDTH) {
    const vf value = vf_max(vf_set1(*args->floor), vf_load_tail(args->frames + i, n * args->n_mels - i));
    vf_store_tail(args->frames + i, n * args->n_mels - i, vf_mul(vf_add(value, vf_set1(4)), vf_set1(0.25f)));
  }
  return 0;
}
