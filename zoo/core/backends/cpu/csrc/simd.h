// Vectors of W floats for one instruction set, by the compilers' own vector types: arithmetic is plain operators, and
// a * b + c becomes one FMA (-ffp-contract=fast). Intrinsics only where the language has no word: masked loads and stores.
// Included inside the anonymous namespace of each instruction set; no STL here (kernels.h says why).

#if defined(ZOO_AVX512)
constexpr int W = 16;
#elif defined(ZOO_AVX2)
constexpr int W = 8;
#else
constexpr int W = 4;
#endif
typedef float vf __attribute__((vector_size(W * 4)));
typedef int32_t vi __attribute__((vector_size(W * 4)));
typedef float vf_unaligned __attribute__((vector_size(W * 4), aligned(4)));

#define INLINE inline __attribute__((always_inline))
#define INLINE_LAMBDA __attribute__((always_inline))
#if defined(__clang__)
#define UNROLL _Pragma("unroll")
#else
#define UNROLL _Pragma("GCC unroll 16")
#endif
// lanes 0 .. W-1 come from a, W .. 2W-1 from b
#if defined(__clang__)
#define SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define SHUFFLE(a, b, ...) __builtin_shuffle(a, b, (vi){__VA_ARGS__})
#endif

INLINE vf load(const float* p) { return *reinterpret_cast<const vf_unaligned*>(p); }
INLINE void store(float* p, vf v) { *reinterpret_cast<vf_unaligned*>(p) = v; }
INLINE vf splat(float x) { return vf{} + x; }
INLINE vf select(vi mask, vf a, vf b) { return (vf)((mask & (vi)a) | (~mask & (vi)b)); }

// The first n lanes, 0 <= n; the others are zero, and memory behind them is not touched.
INLINE vf load_first(const float* p, i64 n) {
    if (n >= W) return load(p);
#if defined(ZOO_AVX512)
    return (vf)_mm512_maskz_loadu_ps((__mmask16)((1u << n) - 1), p);
#elif defined(ZOO_AVX2)
    const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    return (vf)_mm256_maskload_ps(p, _mm256_cmpgt_epi32(_mm256_set1_epi32((int)n), lane));
#else
    vf v = {};
    for (int i = 0; i < n; i++) v[i] = p[i];
    return v;
#endif
}

INLINE void store_first(float* p, vf v, i64 n) {
    if (n >= W) return store(p, v);
#if defined(ZOO_AVX512)
    _mm512_mask_storeu_ps(p, (__mmask16)((1u << n) - 1), (__m512)v);
#elif defined(ZOO_AVX2)
    const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    _mm256_maskstore_ps(p, _mm256_cmpgt_epi32(_mm256_set1_epi32((int)n), lane), (__m256)v);
#else
    for (int i = 0; i < n; i++) p[i] = v[i];
#endif
}

INLINE float sum_lanes(vf v) {
    float s = 0;
    for (int i = 0; i < W; i++) s += v[i];
    return s;
}

#if defined(ZOO_AVX512)
INLINE vf zip_low(vf a, vf b) { return SHUFFLE(a, b, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23); }
INLINE vf zip_high(vf a, vf b) { return SHUFFLE(a, b, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31); }
#elif defined(ZOO_AVX2)
INLINE vf zip_low(vf a, vf b) { return SHUFFLE(a, b, 0, 8, 1, 9, 2, 10, 3, 11); }
INLINE vf zip_high(vf a, vf b) { return SHUFFLE(a, b, 4, 12, 5, 13, 6, 14, 7, 15); }
#else
INLINE vf zip_low(vf a, vf b) { return SHUFFLE(a, b, 0, 4, 1, 5); }
INLINE vf zip_high(vf a, vf b) { return SHUFFLE(a, b, 2, 6, 3, 7); }
#endif

// W x W in registers: log2(W) rounds of a perfect shuffle.
INLINE void transpose(vf (&r)[W]) {
    UNROLL for (int round = 1; round < W; round *= 2) {
        vf t[W];
        UNROLL for (int i = 0; i < W / 2; i++) {
            t[2 * i] = zip_low(r[i], r[i + W / 2]);
            t[2 * i + 1] = zip_high(r[i], r[i + W / 2]);
        }
        UNROLL for (int i = 0; i < W; i++) r[i] = t[i];
    }
}
