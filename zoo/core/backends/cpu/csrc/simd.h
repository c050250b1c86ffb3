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
typedef float vf_unaligned __attribute__((vector_size(W * 4), aligned(2)));  // 2: a lane may be a pair of bfloat16

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
INLINE vf select(vi mask, vf a, vf b) { return mask ? a : b; }

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

// Half precision is storage: widened when it is read, rounded to nearest even when it is written.
struct bf16 {
    uint16_t bits;
};
struct f16 {
    uint16_t bits;
};
typedef uint32_t vu __attribute__((vector_size(W * 4)));
typedef uint16_t vh __attribute__((vector_size(W * 2)));

// W numbers as they are in memory, each in the low bits of a lane: to be moved, not calculated with.
template <class T>
INLINE vf load_bits(const T* p, i64 n) {
    if constexpr (sizeof(T) == 4) {
        return load_first(p, n);
    } else {
        vh v = {};
        if (n >= W) {
            __builtin_memcpy(&v, p, sizeof v);
        } else {
#if defined(ZOO_AVX512)
            v = (vh)_mm256_maskz_loadu_epi16((__mmask16)((1u << n) - 1), p);
#else
            for (int i = 0; i < n; i++) v[i] = p[i].bits;
#endif
        }
        return (vf)__builtin_convertvector(v, vu);
    }
}
template <class T>
INLINE void store_bits(T* p, vf bits, i64 n) {
    if constexpr (sizeof(T) == 4) {
        store_first(p, bits, n);
    } else {
        const vh v = __builtin_convertvector((vu)bits, vh);
        if (n >= W) {
            __builtin_memcpy(p, &v, sizeof v);
        } else {
            for (int i = 0; i < n; i++) p[i].bits = v[i];
        }
    }
}

INLINE vf load_first(const bf16* p, i64 n) { return (vf)((vu)load_bits(p, n) << 16); }
INLINE void store_first(bf16* p, vf v, i64 n) {
    const vu u = (vu)v;
    const vu rounded = (u + 0x7FFF + (u >> 16 & 1)) >> 16;
    store_bits(p, select(v != v, (vf)(u >> 16 | 0x40), (vf)rounded), n);
}

INLINE vf load_first(const f16* p, i64 n) {
    const vu h = (vu)load_bits(p, n);
#if defined(ZOO_AVX512)
    return (vf)_mm512_cvtph_ps(_mm512_cvtepi32_epi16((__m512i)h));
#elif defined(ZOO_AVX2)
    const __m256i pairs = _mm256_packus_epi32((__m256i)h, (__m256i)h);
    return (vf)_mm256_cvtph_ps(_mm256_castsi256_si128(_mm256_permute4x64_epi64(pairs, 0x08)));
#else
    const vu magnitude = (h & 0x7FFF) << 13;  // 2^112 corrects the bias of the exponent, and makes subnormal numbers normal
    const vf number = (vf)magnitude * 0x1p112f;
    return (vf)((vu)select((vi)(magnitude >= 0x0F800000u), (vf)(magnitude | 0x7F800000u), number) | (h & 0x8000) << 16);
#endif
}
INLINE void store_first(f16* p, vf v, i64 n) {
#if defined(ZOO_AVX512)
    store_bits(p, (vf)_mm512_cvtepu16_epi32(_mm512_cvtps_ph((__m512)v, _MM_FROUND_TO_NEAREST_INT)), n);
#elif defined(ZOO_AVX2)
    store_bits(p, (vf)_mm256_cvtepu16_epi32(_mm256_cvtps_ph((__m256)v, _MM_FROUND_TO_NEAREST_INT)), n);
#else
    const vu u = (vu)v & 0x7FFFFFFF;
    const vu normal = (u + 0xC8000FFFu + (u >> 13 & 1)) >> 13;  // the exponent's bias less 112; ties to even
    const vu tiny = (vu)((vf)u + 0.5f) - 0x3F000000u;           // the addition rounds at 2^-24
    const vu special = (vu)select((vi)(u > 0x7F800000u), (vf)(vu{} + 0x7E00), (vf)(vu{} + 0x7C00));
    const vu finite = (vu)select((vi)(u < 0x38800000u), (vf)tiny, (vf)normal);
    const vu all = (vu)select((vi)(u >= 0x47800000u), (vf)special, (vf)finite);
    store_bits(p, (vf)(all | ((vu)v >> 16 & 0x8000)), n);
#endif
}
INLINE vf load(const bf16* p) { return load_first(p, W); }

// Two bf16 numbers that follow each other along K: one step of a product by vdpbf16ps, moved about as if they were a float.
struct pair {
    uint32_t bits;
};
template <class T>
constexpr int NUMBERS = 1;  // in one step along K
template <>
constexpr int NUMBERS<pair> = 2;
INLINE vf load(const pair* p) { return load(reinterpret_cast<const float*>(p)); }
INLINE vf load_first(const pair* p, i64 n) { return load_first(reinterpret_cast<const float*>(p), n); }
INLINE vf load_bits(const pair* p, i64 n) { return load_first(p, n); }
INLINE void store_bits(pair* p, vf bits, i64 n) { store_first(reinterpret_cast<float*>(p), bits, n); }

// sum + x * y, where y is W steps stored as T, and x is as many or one for all.
template <class T, class X>
INLINE vf multiply_add(vf sum, X x, vf y) {
#if defined(ZOO_AVX512BF16)
    if constexpr (NUMBERS<T> == 2 && sizeof(X) == 4) return (vf)_mm512_dpbf16_ps((__m512)sum, (__m512bh)_mm512_set1_ps(x), (__m512bh)y);
    else if constexpr (NUMBERS<T> == 2) return (vf)_mm512_dpbf16_ps((__m512)sum, (__m512bh)x, (__m512bh)y);
#endif
    return sum + x * y;
}
INLINE vf load(const f16* p) {  // straight from memory where the instruction does that
#if defined(ZOO_AVX512)
    return (vf)_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
#elif defined(ZOO_AVX2)
    return (vf)_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
#elif defined(ZOO_NEON)
    vh h;
    __builtin_memcpy(&h, p, sizeof h);
    return (vf)vcvt_f32_f16(vreinterpret_f16_u16((uint16x4_t)h));
#else
    return load_first(p, W);
#endif
}

template <class T>
INLINE T* scratch_of(Slot slot, i64 count) {
    return reinterpret_cast<T*>(scratch(slot, (count * (i64)sizeof(T) + 3) / 4));
}

INLINE vf square_root(vf v) {
#if defined(ZOO_AVX512)
    return (vf)_mm512_maskz_sqrt_ps(0xffff, (__m512)v);  // GCC 12 warns of the form without a mask
#elif defined(ZOO_AVX2)
    return (vf)_mm256_sqrt_ps((__m256)v);
#else
    for (int i = 0; i < W; i++) v[i] = __builtin_sqrtf(v[i]);
    return v;
#endif
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

INLINE vf maximum_of(vf a, vf b) {  // b where a is NaN
#if defined(ZOO_AVX512)
    return (vf)_mm512_maskz_max_ps(0xffff, (__m512)a, (__m512)b);
#else
    return a > b ? a : b;
#endif
}

// All lanes joined, by log2(W) perfect shuffles.
INLINE float max_lanes(vf v) {
    UNROLL for (int n = 1; n < W; n *= 2) v = maximum_of(zip_low(v, v), zip_high(v, v));
    return v[0];
}
INLINE float sum_lanes(vf v) {
    UNROLL for (int n = 1; n < W; n *= 2) v = zip_low(v, v) + zip_high(v, v);
    return v[0];
}

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
