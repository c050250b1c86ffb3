// Products of integers: each lane of the sum takes four products at a time, codes of A (signed) with codes of W (unsigned bytes, of
// one output in one lane).
//   VNNI     vpdpbusd: one instruction. A is stored in bytes, so a quad of it is one broadcast of 4 bytes
//   others   the bytes of W are taken apart into even and odd ones, 16 bits each, and pmaddwd adds two products exactly in 32 bits:
//            four instructions. (pmaddubsw would add them in 16 bits, where 255 * 127 * 2 saturates.) A is stored in 16 bits, the
//            even inputs of a quad before the odd ones, so that a quad of it is two broadcasts

#if defined(ZOO_AVX512VNNI)
constexpr int QUAD = 4;  // bytes of four codes of A
constexpr int ROWS8 = 14, ROWS4 = 7, ROWS4_DIRECT = 6;
#elif defined(ZOO_AVX512)
constexpr int QUAD = 8;
constexpr int ROWS8 = 12, ROWS4 = 6, ROWS4_DIRECT = 5;
#elif defined(ZOO_NEON)
constexpr int QUAD = 8;
constexpr int ROWS8 = 8, ROWS4 = 5, ROWS4_DIRECT = 4;
#else
constexpr int QUAD = 8;
constexpr int ROWS8 = 4, ROWS4 = 2, ROWS4_DIRECT = 2;
#endif

INLINE vi load_ints(const void* p) {
    vi v;
    __builtin_memcpy(&v, p, sizeof v);
    return v;
}
INLINE void store_ints(void* p, vi v) { __builtin_memcpy(p, &v, sizeof v); }
INLINE vi splat_int(int32_t x) { return vi{} + x; }
INLINE vf to_float(vi v) { return __builtin_convertvector(v, vf); }
INLINE vi shift_right(vi v, int by) { return (vi)((vu)v >> by); }
INLINE int32_t int_at(const char* p) {
    int32_t x;
    __builtin_memcpy(&x, p, 4);
    return x;
}

// Rounded to the nearest integer, halves to the even one.
INLINE vi nearest(vf v) {
#if defined(ZOO_AVX512)
    return (vi)_mm512_cvtps_epi32((__m512)v);
#elif defined(ZOO_AVX2)
    return (vi)_mm256_cvtps_epi32((__m256)v);
#elif defined(__x86_64__)
    return (vi)_mm_cvtps_epi32((__m128)v);
#elif defined(ZOO_NEON)
    return (vi)vcvtnq_s32_f32((float32x4_t)v);
#else
    vi r;
    for (int i = 0; i < W; i++) r[i] = (int32_t)__builtin_rintf(v[i]);
    return r;
#endif
}

// Codes of W as the dot product takes them.
#if defined(ZOO_AVX512VNNI)
struct Codes {
    vi all;
};
INLINE Codes codes(vi bytes) { return {bytes}; }
INLINE void add_dots(vi& sum, const Codes& w, const vi (&a)[QUAD / 4]) {
    sum = (vi)_mm512_dpbusd_epi32((__m512i)sum, (__m512i)w.all, (__m512i)a[0]);
}
#else
struct Codes {
    vi even, odd;
};
INLINE Codes codes(vi bytes) { return {bytes & 0x00FF00FF, shift_right(bytes, 8) & 0x00FF00FF}; }
INLINE vi add_pairs(vi a, vi b) {  // of 16-bit numbers
#if defined(ZOO_AVX512)
    return (vi)_mm512_madd_epi16((__m512i)a, (__m512i)b);
#elif defined(ZOO_AVX2)
    return (vi)_mm256_madd_epi16((__m256i)a, (__m256i)b);
#elif defined(__x86_64__)
    return (vi)_mm_madd_epi16((__m128i)a, (__m128i)b);
#else
    const auto low = [](vi v) INLINE_LAMBDA { return (vi)((vu)v << 16) >> 16; };
    return low(a) * low(b) + (a >> 16) * (b >> 16);
#endif
}
INLINE void add_dots(vi& sum, const Codes& w, const vi (&a)[QUAD / 4]) {
    sum += add_pairs(w.even, a[0]);
    sum += add_pairs(w.odd, a[1]);
}
#endif

INLINE void load_quad(const char* p, vi (&a)[QUAD / 4]) {
    UNROLL for (int i = 0; i < QUAD / 4; i++) a[i] = splat_int(int_at(p + 4 * i));
}
