// A quantised by row: codes = round(a * 127 / max|row|), scale = max|row| / 127. Dynamic and symmetric: the error is at most 1/254 of the
// row's largest number, 0.8 % of the result (relative L2) for normally distributed numbers.
// layout  a row is ceil(K/4) quads (dot.h) followed by zeros up to whole cache lines, an odd number of them, so that the rows of a
//         panel spread over all sets of L1; the sums of its codes, by group for 4-bit weights, correct for W being unsigned

constexpr i64 GROUP = 32;
constexpr float TINY = 1e-36f;  // a row of smaller numbers counts as zero: 127 / max would be infinite
constexpr int32_t INFINITE = 0x7F800000;

struct Rows8 {
    char* codes;
    i64 distance;  // of rows, in bytes
    float* scale;
    int32_t* sums;  // [rows][groups], times -128 or -8
    i64 groups;
};

// The working memory of `rows` rows.
Rows8 rows_in_scratch(i64 rows, i64 K, int bits) {
    Rows8 r{};
    r.distance = (divide_up(divide_up(K, 4) * QUAD, 64) | 1) * 64;
    r.groups = bits == 4 ? K / GROUP : 1;
    r.codes = scratch_of<char>(SLOT_A, rows * r.distance + 64);
    r.scale = scratch(SLOT_X, rows * (1 + r.groups) + W);
    r.sums = reinterpret_cast<int32_t*>(r.scale + rows);
    return r;
}

// All lanes joined by log2(W) perfect shuffles; lane by lane would take longer than a row of 256 inputs.
INLINE vi larger(vi a, vi b) { return a > b ? a : b; }
INLINE vi zipped(vi v, bool high) { return (vi)(high ? zip_high((vf)v, (vf)v) : zip_low((vf)v, (vf)v)); }
INLINE int32_t largest_lane(vi v) {
    UNROLL for (int n = 1; n < W; n *= 2) v = larger(zipped(v, false), zipped(v, true));
    return v[0];
}
INLINE int32_t sum_of(vi v) {
    UNROLL for (int n = 1; n < W; n *= 2) v = zipped(v, false) + zipped(v, true);
    return v[0];
}

// The largest |a|, as bits: these order numbers as their values do, infinity and NaN last.
INLINE int32_t largest_bits(const float* a, i64 K) {
    constexpr int CHAINS = 4;
    vi m[CHAINS] = {};
    i64 k = 0;
    for (; k + CHAINS * W <= K; k += CHAINS * W)
        UNROLL for (int i = 0; i < CHAINS; i++) m[i] = larger((vi)load(a + k + i * W) & 0x7FFFFFFF, m[i]);
    for (; k < K; k += W) m[0] = larger((vi)load_first(a + k, K - k) & 0x7FFFFFFF, m[0]);
    return largest_lane(larger(larger(m[0], m[1]), larger(m[2], m[3])));
}

// W codes, whose place is a multiple of W codes from the start of the row.
INLINE void store_codes(char* to, vi v) {
#if defined(ZOO_AVX512VNNI)
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm512_cvtepi32_epi8((__m512i)v));
#else
    int16_t out[W];
    UNROLL for (int i = 0; i < W; i++) out[(i & ~3) + (i % 4 % 2 * 2) + i % 4 / 2] = (int16_t)v[i];
    __builtin_memcpy(to, out, sizeof out);
#endif
}

// n codes of one scale, to bytes that begin a quad; returns their sum.  Writes up to W - 1 codes past the end.
INLINE int32_t quantise_run(const float* a, i64 n, float inverse, char* to) {
    constexpr i64 BYTES = QUAD / 4;  // of one code
    vi sum{};
    const auto take = [&](i64 k, vf x) INLINE_LAMBDA {
        const vi v = inverse > 0 ? nearest(x * inverse) : vi{};  // NaN * 0 would be no zero
        sum += v;
        store_codes(to + k * BYTES, v);
    };
    i64 k = 0;
    for (; k + W <= n; k += W) take(k, load(a + k));
    if (k < n) take(k, load_first(a + k, n - k));
    return sum_of(sum);
}

// The factor for a largest |a| of these bits, and the scale of the codes; 0 where it is not finite or counts as zero.
INLINE float inverse_of(int32_t largest, float* scale, float steps = 127.0f) {
    float max;
    __builtin_memcpy(&max, &largest, 4);
    const bool usable = largest < INFINITE && max >= TINY;
    *scale = usable ? max / steps : 0.0f;
    return usable ? steps / max : 0.0f;
}

// Returns whether all numbers of the row are finite.
bool quantise_row(const float* a, i64 K, int bits, const Rows8& r, i64 row) {
    const int32_t largest = largest_bits(a, K);
    const float inverse = inverse_of(largest, r.scale + row);
    const i64 length = bits == 4 ? GROUP : K;
    for (i64 g = 0; g < r.groups; g++) {
        char* const to = r.codes + row * r.distance + g * length * (QUAD / 4);
        r.sums[row * r.groups + g] = quantise_run(a + g * length, length, inverse, to) * (bits == 4 ? -8 : -128);
    }
    return largest < INFINITE;
}
