// Philox4x32-10 (Salmon et al. 2011), the numbers of zoo/core/philox.py bit by bit: block b of a stream is a function of (seed, b).
// registers  four counters of W / 2 blocks, one 32-bit word to a 64-bit lane; what is above it is ignored by the products
// roof       arithmetic: 80 instructions make 2 W words

typedef uint64_t vl __attribute__((vector_size(W * 4)));
#if defined(__clang__)
#define SHUFFLE_WIDE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define SHUFFLE_WIDE(a, b, ...) __builtin_shuffle(a, b, (vl){__VA_ARGS__})
#endif

INLINE vl multiply_low_words(vl a, uint64_t b) {
#if defined(ZOO_AVX512)
    return (vl)_mm512_maskz_mul_epu32(0xff, (__m512i)a, _mm512_set1_epi64((long long)b));
#elif defined(ZOO_AVX2)
    return (vl)_mm256_mul_epu32((__m256i)a, _mm256_set1_epi64x((long long)b));
#else
    return (a & 0xffffffffull) * b;
#endif
}

struct Stream {
    uint32_t key[2];
    uint64_t block;  // of value 0
    explicit Stream(const Rows& r) : key{(uint32_t)r.k[0], (uint32_t)r.k[1]}, block((uint64_t)r.k[2]) {}

    // Words at .. at + 2 W - 1 of the stream; `at` is a multiple of 4.
    INLINE void words(i64 at, vu (&u)[2]) const {
        vl lane;
        for (int i = 0; i < W / 2; i++) lane[i] = (uint64_t)i;
        vl c0 = lane + (block + (uint64_t)at / 4), c1 = c0 >> 32, c2 = {}, c3 = {};
        uint32_t k0 = key[0], k1 = key[1];
        UNROLL for (int round = 0; round < 10; round++) {
            const vl p0 = multiply_low_words(c0, 0xD2511F53u), p1 = multiply_low_words(c2, 0xCD9E8D57u);
            c0 = (p1 >> 32) ^ c1 ^ (uint64_t)k0, c1 = p1;
            c2 = (p0 >> 32) ^ c3 ^ (uint64_t)k1, c3 = p0;
            k0 += 0x9E3779B9u, k1 += 0xBB67AE85u;
        }
        const vl low = (c0 & 0xffffffffull) | c1 << 32, high = (c2 & 0xffffffffull) | c3 << 32;
#if defined(ZOO_AVX512)
        const vl first = SHUFFLE_WIDE(low, high, 0, 8, 1, 9, 2, 10, 3, 11), second = SHUFFLE_WIDE(low, high, 4, 12, 5, 13, 6, 14, 7, 15);
#elif defined(ZOO_AVX2)
        const vl first = SHUFFLE_WIDE(low, high, 0, 4, 1, 5), second = SHUFFLE_WIDE(low, high, 2, 6, 3, 7);
#else
        const vl first = SHUFFLE_WIDE(low, high, 0, 2), second = SHUFFLE_WIDE(low, high, 1, 3);
#endif
        u[0] = (vu)first, u[1] = (vu)second;
    }

    // The same as numbers in [0, 1).
    INLINE void uniform(i64 at, vf (&u)[2]) const {
        vu bits[2];
        words(at, bits);
        UNROLL for (int j = 0; j < 2; j++) u[j] = __builtin_convertvector((vi)(bits[j] >> 8), vf) * 0x1p-24f;  // every value is exact
    }
};

void uniform(const Rows& r) {
    const Stream stream(r);
    float* const y = floats_out(r, 0);
    in_blocks(r.rows * r.columns, GRAIN, [&](i64 begin, i64 end) {
        for (i64 i = begin; i < end; i += 2 * W) {
            vf u[2];
            stream.uniform(i, u);
            store_first(y + i, u[0], end - i);
            if (i + W < end) store_first(y + i + W, u[1], end - i - W);
        }
    });
}

// x / (1 - p) where the stream's value is at least p, else 0.
void dropout(const Rows& r) {
    Stream stream(r);
    if (r.in[1]) stream.block += (uint64_t)*static_cast<const int64_t*>(r.in[1]);
    const float *const x = floats(r, 0), p = (float)r.x[0], scale = (float)r.x[1];
    float* const y = floats_out(r, 0);
    in_blocks(r.rows * r.columns, GRAIN, [&](i64 begin, i64 end) {
        for (i64 i = begin; i < end; i += 2 * W) {
            vf u[2];
            stream.uniform(i, u);
            UNROLL for (int j = 0; j < 2; j++) {
                const i64 at = i + j * W;
                if (at < end) store_first(y + at, select(u[j] >= p, load_first(x + at, end - at) * scale, vf{}), end - at);
            }
        }
    });
}

// Pairs of words of the stream, by Box & Muller, in float64 and rounded once: zoo/core/philox.py says why.
void normal(const Rows& r) {
    const Stream stream(r);
    float* const y = floats_out(r, 0);
    in_blocks(r.rows * r.columns, GRAIN / 8, [&](i64 begin, i64 end) {
        for (i64 i = begin; i < end; i += 2 * W) {
            vu words[2];
            stream.words(i, words);
            for (int j = 0; j < W && i + 2 * j < end; j++) {
                const double first = words[2 * j / W][2 * j % W], second = words[2 * j / W][2 * j % W + 1];
                const double radius = __builtin_sqrt(-2.0 * __builtin_log((first + 1.0) * 0x1p-32));
                const double angle = second * (2.0 * 3.14159265358979323846 * 0x1p-32);
                y[i + 2 * j] = (float)(radius * __builtin_cos(angle));
                if (i + 2 * j + 1 < end) y[i + 2 * j + 1] = (float)(radius * __builtin_sin(angle));
            }
        }
    });
}
