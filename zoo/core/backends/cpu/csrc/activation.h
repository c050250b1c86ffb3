// What may follow a GEMM while its tile is still in the L1 cache: y = act(y + residual).
//   relu       max(y, 0); NaN stays NaN
//   gelu       y * Phi(y), Phi the normal distribution function
//   gelu_tanh  y * (1 + tanh(u)) / 2 = y * sigmoid(2 u),  u = sqrt(2 / pi) * (y + 0.044715 y^3)
//   quick_gelu y * sigmoid(1.702 y);  silu y * sigmoid(y);  sigmoid;  tanh

// e^x = 2^n * e^r, |r| <= ln 2 / 2, by a minimax polynomial of degree 6 (relative error 4e-9; with the roundings of float32,
// 1e-7). NaN stays NaN; without AVX-512, what would be below the normal numbers (x < -87.3) is 0.
INLINE vf exponential(vf x) {
    const float terms[] = {0.00836878083f, 0.0416683927f, 0.166665196f, 0.49999994f, 1.0f, 1.0f};
    vf p = splat(0.00138144672f);
#if defined(ZOO_AVX512)
    // of two numbers, max and min give the second if either is NaN
    const __m512 above = _mm512_maskz_max_ps(0xffff, _mm512_set1_ps(-104.0f), (__m512)x);
    const vf y = (vf)_mm512_maskz_min_ps(0xffff, _mm512_set1_ps(89.0f), above);
    const vf n = (vf)_mm512_maskz_roundscale_ps(0xffff, (__m512)(y * 1.44269504088896341f), _MM_FROUND_TO_NEAREST_INT);
    const vf r = y - n * 0.693359375f + n * 2.12194440e-4f;  // ln 2 in two parts: n times the first is exact
    UNROLL for (float term : terms) p = p * r + term;
    return (vf)_mm512_maskz_scalef_ps(0xffff, (__m512)p, (__m512)n);
#else
    const vf low = splat(-87.3f), high = splat(88.7f);
    const vf y = select(x < low, low, select(x > high, high, x));
    const vf magic = splat(12582912.0f);  // 1.5 * 2^23: adding it rounds to an integer, found in the low bits
    const vf shifted = y * 1.44269504088896341f + magic, n = shifted - magic;
    const vf r = y - n * 0.693359375f + n * 2.12194440e-4f;
    UNROLL for (float term : terms) p = p * r + term;
    const vf e = (vf)((vu)p + ((vu)shifted << 23));  // the low bits of `shifted` hold n; the shift drops the others
    return select(x < low, vf{}, select(x > high, splat(__builtin_inff()), select(x != x, x, e)));
#endif
}

// 2^(v - 1/2), exact for infinities and NaN. On AVX-512 seven instructions, 2^n * 2^(r - 1/2) with v = n + r: the first factor's
// instruction takes the integer part n by itself.
INLINE vf power2(vf v) {
#if defined(ZOO_AVX512)
    const vf r = (vf)_mm512_maskz_reduce_ps(0xffff, (__m512)v, _MM_FROUND_TO_NEG_INF);  // v less the integer below it; 0 for infinities
    const float terms[] = {0.00635642372f, 0.0394751690f, 0.169814259f, 0.490133226f, 0.707106709f};
    vf p = splat(0.00132764725f);  // minimax on 0 <= r < 1, relative error 7.5e-8
    UNROLL for (float term : terms) p = p * r + term;
    return (vf)_mm512_maskz_scalef_ps(0xffff, (__m512)p, (__m512)v);
#else
    return exponential((v - 0.5f) * 0.693147181f);
#endif
}

// e^x where relative errors of 6e-8 |x| do no harm: x / ln 2 is rounded once.
INLINE vf power(vf x) {
#if defined(ZOO_AVX512)
    return power2(x * 1.44269504088896341f + 0.5f);
#else
    return exponential(x);
#endif
}

// 1 / x for 1 <= x, to the last place but one; 0 for x = inf. A division takes 16 cycles for a vector of AVX-512, this 2.
INLINE vf reciprocal(vf x) {
#if defined(ZOO_AVX512)
    const __m512 r = _mm512_maskz_rcp14_ps(0xffff, (__m512)x), error = (__m512)(1.0f - x * (vf)r);
    return (vf)_mm512_mask_fmadd_ps(r, _mm512_cmp_ps_mask((__m512)x, _mm512_set1_ps(1e37f), _CMP_NGT_UQ), error, r);
#else
    return 1.0f / x;
#endif
}

INLINE vf sigmoid(vf x) { return reciprocal(1.0f + exponential(-x)); }

// The same as a factor of x: where errors of 6e-8 |x| count, far below zero, there is little of it.
INLINE vf gate(vf x) { return reciprocal(1.0f + power(-x)); }

INLINE vf absolute(vf x) { return (vf)((vi)x & 0x7fffffff); }

// Phi(x), with relative precision in the lower tail too: Phi(-z) = 2^P(z), whose error in Phi is 1e-7 up to z = 5 (and 1e-12 beyond, not
// relative); P by Lawson's iteration. Its first coefficient is negative, so 2^P is 0 for whatever is larger.
INLINE vf normal_cdf(vf x) {
    const float terms[] = {6.93952813e-07f, -9.03142518e-06f, 6.41814258e-05f, -0.000233859115f, -0.000102734208f,
                           0.00708276173f,  -0.0525410995f,   -0.459184796f,   -1.1511091f,      -0.499999911f};
    const vf z = absolute(x);
    vf p = splat(-2.30070523e-08f);
    UNROLL for (float term : terms) p = p * z + term;
    const vf tail = power2(p);
    return select(x < 0.0f, tail, 1.0f - tail);
}

// Near zero an odd minimax polynomial (relative error 3e-8 to 0.55), where the quotient would cancel.
INLINE vf hyperbolic_tangent(vf x) {
    const vf z = absolute(x), s = z * z;
    const float terms[] = {-0.0525893172f, 0.133188769f, -0.33332795f, 1.0f};
    vf p = splat(0.0163154394f);
    UNROLL for (float term : terms) p = p * s + term;
    const vf far = 1.0f - 2.0f * reciprocal(1.0f + exponential(2.0f * z));
    return select(z < 0.55f, p * x, select(x < 0.0f, -far, far));
}

INLINE vf activate(vf y, int activation) {
    switch (activation) {
        case RELU: return select(y < 0.0f, vf{}, y);
        case GELU: return y * normal_cdf(y);
        case GELU_TANH: return y * gate(y * (1.5957691216f + 0.0713548163f * (y * y)));  // 2 sqrt(2/pi), times 0.044715
        case QUICK_GELU: return y * gate(1.702f * y);
        case SILU: return y * gate(y);
        case SIGMOID: return sigmoid(y);
        case TANH: return hyperbolic_tangent(y);
        default: return y;
    }
}

__attribute__((noinline)) void finish(float* c, i64 c_m, const float* residual, i64 residual_m, i64 rows, i64 columns, int activation) {
    for (i64 i = 0; i < rows; i++) {
        for (i64 j = 0; j < columns; j += W) {
            vf y = load_first(c + i * c_m + j, columns - j);
            if (residual) y += load_first(residual + i * residual_m + j, columns - j);
            store_first(c + i * c_m + j, activate(y, activation), columns - j);
        }
    }
}
