// What one core can do at most: the roofs that kernels are measured against.
// fma   acc[i] = acc[i] * x + y      CHAINS independent chains, so that two units with a latency of 4 or 5 cycles are never idle.
//       Each starts at a number of its own from memory: GCC merges chains with equal starting values, and then reports a roof
//       1.5 times too high.
// int8  acc[i] += dot4(u8, s8)       the same with vpdpbusd: 64 products and additions per instruction
// bf16  acc[i] += dot2(bf16, bf16)   the same with vdpbf16ps: 32 products and additions
// read  sum of an array, copy        streamed in lines, prefetched 4 KiB ahead; copies by stores that do not read what they replace

#if defined(ZOO_AVX512) || defined(ZOO_NEON)
constexpr int CHAINS = 16;  // + x + y = 18 of 32 registers
#else
constexpr int CHAINS = 12;  // of 16
#endif

i64 fma(i64 rounds, float* numbers) {
    vf acc[CHAINS];
    UNROLL for (int i = 0; i < CHAINS; i++) acc[i] = load(numbers + i * W);
    const vf x = load(numbers) * 1e-6f + 0.999f, y = x * 1e-3f;  // tends to 1: neither overflow nor subnormal numbers
    for (i64 r = 0; r < rounds; r++) {
        UNROLL for (int i = 0; i < CHAINS; i++) acc[i] = acc[i] * x + y;
    }
    UNROLL for (int i = 0; i < CHAINS; i++) store(numbers + i * W, acc[i]);
    return rounds * CHAINS * W * 2;
}

#if defined(ZOO_AVX512)
// Called only where the processor has the instruction (features()).
__attribute__((target("avx512vnni"))) i64 int8_dots(i64 rounds, float* numbers) {
    __m512i acc[CHAINS];
    UNROLL for (int i = 0; i < CHAINS; i++) acc[i] = (__m512i)load(numbers + i * W);
    const __m512i x = (__m512i)load(numbers), y = (__m512i)load(numbers + W);
    for (i64 r = 0; r < rounds; r++) {
        UNROLL for (int i = 0; i < CHAINS; i++) acc[i] = _mm512_dpbusd_epi32(acc[i], x, y);
    }
    // bits of integers are no floats worth keeping: what is stored must only depend on every chain
    __m512i all = acc[0];
    UNROLL for (int i = 1; i < CHAINS; i++) all = _mm512_xor_si512(all, acc[i]);
    store(numbers, (vf)_mm512_and_si512(all, _mm512_set1_epi32(0x3f7fffff)));
    return rounds * CHAINS * W * 4 * 2;
}
// The same.
__attribute__((target("avx512bf16"))) i64 bf16_dots(i64 rounds, float* numbers) {
    __m512 acc[CHAINS];
    UNROLL for (int i = 0; i < CHAINS; i++) acc[i] = (__m512)load(numbers + i * W);
    const __m512i x = _mm512_set1_epi32(0x3C003C00);  // pairs of 2^-7: sums stay normal and grow slowly
    for (i64 r = 0; r < rounds; r++) {
        UNROLL for (int i = 0; i < CHAINS; i++) acc[i] = _mm512_dpbf16_ps(acc[i], (__m512bh)x, (__m512bh)x);
    }
    UNROLL for (int i = 0; i < CHAINS; i++) store(numbers + i * W, (vf)acc[i]);
    return rounds * CHAINS * W * 2 * 2;
}
constexpr auto INT8_DOTS = int8_dots, BF16_DOTS = bf16_dots;
#else
constexpr i64 (*INT8_DOTS)(i64, float*) = nullptr;
constexpr i64 (*BF16_DOTS)(i64, float*) = nullptr;
#endif

float read(const float* from, i64 count) {
    vf sum[8] = {};
    for (i64 k = 0; k + 8 * W <= count; k += 8 * W) {
        UNROLL for (int i = 0; i < 8; i++) {
            if (i * W % 16 == 0) __builtin_prefetch(from + k + i * W + 1024);
            sum[i] += load(from + k + i * W);
        }
    }
    UNROLL for (int i = 1; i < 8; i++) sum[0] += sum[i];
    return sum_lanes(sum[0]);
}

void copy(const float* from, float* to, i64 count) {
    for (i64 k = 0; k < count; k += 8 * W) {
        UNROLL for (int i = 0; i < 8; i++) {
            if (i * W % 16 == 0) __builtin_prefetch(from + k + i * W + 1024);
            store_past_caches(to + k + i * W, load(from + k + i * W));
        }
    }
    stores_arrived();
}
