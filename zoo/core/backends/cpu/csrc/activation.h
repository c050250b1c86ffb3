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

// 1 / x for 1 <= x, to the last place but one; 0 for x = inf. A division takes 16 cycles for a vector of AVX-512, this 4.
INLINE vf reciprocal(vf x) {
#if defined(ZOO_AVX512)
    const vf r = (vf)_mm512_maskz_rcp14_ps(0xffff, (__m512)x);
    return r + r * (1.0f - select(x > 1e37f, splat(1.0f), x * r));
#else
    return 1.0f / x;
#endif
}

INLINE vf sigmoid(vf x) { return reciprocal(1.0f + exponential(-x)); }

// Phi(x), with full relative precision in the lower tail too. Phi(-z) = e^(-z^2/2) * t * P(t), t = 1 / (1 + 0.26 z); P is
// the minimax polynomial of degree 8 on 0 <= z <= 14 (Lawson's iteration on Mills' ratio): relative error 2.5e-8.
INLINE vf normal_cdf(vf x) {
    const vf z = select(x < 0.0f, -x, x), t = reciprocal(1.0f + 0.26f * z);
    const float terms[] = {-0.15282910f, 0.25149186f, -0.15094960f, 0.16094829f, 0.05102750f, 0.10303030f, 0.10301674f, 0.10375906f};
    vf p = splat(0.03050494f);
    UNROLL for (float term : terms) p = p * t + term;
    const vf tail = exponential(-0.5f * (z * z)) * (t * p);
    return select(x < 0.0f, tail, 1.0f - tail);
}

// Near zero an odd minimax polynomial (relative error 3e-8 to 0.55), where the quotient would cancel.
INLINE vf hyperbolic_tangent(vf x) {
    const vf z = select(x < 0.0f, -x, x), s = z * z;
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
        case GELU_TANH: return y * sigmoid(y * (1.5957691216f + 0.0713548163f * (y * y)));  // 2 sqrt(2/pi), times 0.044715
        case QUICK_GELU: return y * sigmoid(1.702f * y);
        case SILU: return y * sigmoid(y);
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
