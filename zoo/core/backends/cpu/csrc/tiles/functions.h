// Functions of the whole range of float32, NaN and infinities included; errors in units of the last place, measured.

// e^x as in activation.h, but down through the subnormal numbers: 2^n in two factors, neither of which overflows alone. 1 ulp.
INLINE vf exp_full(vf x) {
    const vf low = splat(-104.0f), high = splat(89.0f), magic = splat(12582912.0f);
    const vf y = select(x < low, low, select(x > high, high, x));
    const vf shifted = y * 1.44269504088896341f + magic, n = shifted - magic;
    const vf r = y - n * 0.693359375f + n * 2.12194440e-4f;
    vf p = splat(1.0f / 5040);
    const float terms[] = {1.0f / 720, 1.0f / 120, 1.0f / 24, 1.0f / 6, 0.5f, 1.0f, 1.0f};
    UNROLL for (float term : terms) p = p * r + term;
    const vi whole = (vi)((vu)shifted - (vu)magic), half = whole >> 1;
    const vf e = p * (vf)(((vu)half + 127) << 23) * (vf)(((vu)whole - (vu)half + 127) << 23);
    return select(x != x, x, e);
}

// ln x = e ln 2 + ln(1 + f), 1 + f in [sqrt(1/2), sqrt(2)); ln(1 + f) = f - f^2 / 2 + f^3 P(f), P the minimax polynomial of
// degree 8 (relative error of the logarithm 7.5e-10). 1 ulp.
INLINE vf logarithm(vf x) {
    const vi tiny = x < 1.17549435e-38f;
    const vu bits = (vu)select(tiny, x * 8388608.0f, x);
    const vi e = (vi)(bits - 0x3f3504f3u) >> 23;  // 0x3f3504f3 is sqrt(1/2)
    const vf f = (vf)(bits - ((vu)e << 23)) - 1.0f;
    const vf exponent = __builtin_convertvector(e, vf) - select(tiny, splat(23.0f), vf{});
    const float terms[] = {-0.116756413f, 0.118881746f, -0.124055914f, 0.142195509f, -0.166679957f, 0.200021187f, -0.250000096f, 0.333333126f};
    vf p = splat(0.0674660132f);
    UNROLL for (float term : terms) p = p * f + term;
    const vf z = f * f;
    const vf small = f * z * p - exponent * 2.12194440e-4f - 0.5f * z;
    const vf y = f + small + exponent * 0.693359375f;
    const float infinity = __builtin_inff(), nan = __builtin_nanf("");
    return select(x == 0.0f, splat(-infinity), select(x < 0.0f, splat(nan), select(x < infinity, y, x)));
}

// Below 1 an odd minimax polynomial (relative error 1.2e-9), beyond it 1 - 2 Phi(-sqrt(2) |x|). 2 ulp.
INLINE vf error_function(vf x) {
    const vf z = select(x < 0.0f, -x, x), s = z * z;
    const float terms[] = {-0.000801019252f, 0.00518832756f, -0.0268538119f, 0.112835851f, -0.376126258f, 1.12837917f};
    vf p = splat(7.85385771e-05f);
    UNROLL for (float term : terms) p = p * s + term;
    const vf far = 1.0f - 2.0f * normal_cdf(z * -1.41421356f);
    return select(z < 1.0f, p * x, select(x < 0.0f, -far, far));
}

// From e^-|x|, which does not overflow, and keeps full precision in the lower tail.
INLINE vf logistic(vf x) {
    const vf e = exp_full(select(x < 0.0f, x, -x));
    return select(x < 0.0f, e, splat(1.0f)) / (1.0f + e);
}

INLINE vf round_down(vf x) {
#if defined(ZOO_AVX512)
    return (vf)_mm512_roundscale_ps((__m512)x, 0x09);
#elif defined(ZOO_AVX2)
    return (vf)_mm256_floor_ps((__m256)x);
#else
    for (int i = 0; i < W; i++) x[i] = __builtin_floorf(x[i]);
    return x;
#endif
}
INLINE vf round_even(vf x) {
#if defined(ZOO_AVX512)
    return (vf)_mm512_roundscale_ps((__m512)x, 0x08);
#elif defined(ZOO_AVX2)
    return (vf)_mm256_round_ps((__m256)x, 0x08);
#else
    for (int i = 0; i < W; i++) x[i] = __builtin_rintf(x[i]);
    return x;
#endif
}

template <class T>
INLINE vf rounded(vf x) {
    T stored[W];
    store_first(stored, x, W);
    return load(stored);
}
