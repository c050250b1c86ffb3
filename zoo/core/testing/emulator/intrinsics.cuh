// The machine's own instructions, done by a processor: what zoo/core/backends/cuda/cu/intrinsics.cuh defines, with the same
// layouts of registers. A tensor core adds its products in an order of its own; here k goes up, so that results differ in
// the last bits.

#define EMULATED 1

EMULATED_TYPE(half, 'e')
EMULATED_TYPE(bfloat16, 'E')

// Shared memory is one piece, with gaps in between that are looked at after each block.
#define SHARED(type, name, size)       \
    static const char name##_site_ = 0; \
    type(&name)[size] = *static_cast<type(*)[size]>(emulated_shared(&name##_site_, sizeof(type) * (size)))
#define DYNAMIC_SHARED(type, name) type *name = static_cast<type *>(emulated_dynamic_shared())

#define INFINITY __builtin_inff()
#define NAN __builtin_nanf("")

inline void check_aligned(const void *p, int bytes) {
    if (reinterpret_cast<unsigned long long>(p) % bytes) emulated_fail("an address is not a multiple of the size of what is read or written there");
}

inline float float_of_half(uint16_t bits) {
    uint32_t sign = uint32_t(bits & 0x8000) << 16, exponent = bits >> 10 & 31, fraction = bits & 0x3ff;
    if (exponent == 31) return __uint_as_float(sign | 0x7f800000 | fraction << 13);
    if (exponent) return __uint_as_float(sign | (exponent + 112) << 23 | fraction << 13);
    return __uint_as_float(sign | __float_as_uint(float(fraction) * 0x1p-24f));
}

inline uint16_t half_of_float(float f) {
    uint32_t u = __float_as_uint(f), sign = u >> 16 & 0x8000;
    u &= 0x7fffffff;
    if (u > 0x7f800000) return 0x7fff;
    if (u >= 0x477ff000) return sign | 0x7c00;  // 65520 rounds to infinity
    if (u >= 0x38800000) return sign | (u - 0x38000000 + 0xfff + (u >> 13 & 1)) >> 13;
    if (u < 0x33000000) return sign;  // below 2^-25
    uint32_t fraction = (u & 0x7fffff) | 0x800000, shift = 126 - (u >> 23);
    uint32_t kept = fraction >> shift, rest = fraction & ((1u << shift) - 1), tie = 1u << (shift - 1);
    return sign | (kept + (rest > tie || (rest == tie && (kept & 1))));
}

inline float float_of_bfloat16(uint16_t bits) { return __uint_as_float(uint32_t(bits) << 16); }

inline uint16_t bfloat16_of_float(float f) {
    uint32_t u = __float_as_uint(f);
    return (u & 0x7fffffff) > 0x7f800000 ? 0x7fff : (u + 0x7fff + (u >> 16 & 1)) >> 16;
}

template <typename Half> inline void mma_m16n8k16(float d[4], const uint32_t a[4], const uint32_t b[2]) = delete;
template <> inline void mma_m16n8k16<half>(float d[4], const uint32_t a[4], const uint32_t b[2]) { emulated_mma(float_of_half, d, a, b); }
#if ARCH >= 80
template <> inline void mma_m16n8k16<bfloat16>(float d[4], const uint32_t a[4], const uint32_t b[2]) { emulated_mma(float_of_bfloat16, d, a, b); }
#endif
inline void mma_m16n8k32_s8(int d[4], const uint32_t a[4], const uint32_t b[2]) { emulated_mma(nullptr, d, a, b); }

inline void ldmatrix_x4(uint32_t r[4], const void *row) { emulated_ldmatrix(r, row, 4, 0); }
inline void ldmatrix_x4_trans(uint32_t r[4], const void *row) { emulated_ldmatrix(r, row, 4, 1); }
inline void ldmatrix_x2(uint32_t r[2], const void *row) { emulated_ldmatrix(r, row, 2, 0); }
inline void ldmatrix_x2_trans(uint32_t r[2], const void *row) { emulated_ldmatrix(r, row, 2, 1); }

// A copy arrives at any time until it is waited for: half of them at once, the others at the wait.
inline void cp_async16(void *shared, const void *global, bool valid) { emulated_cp_async16(shared, global, valid); }
inline void cp_async_commit() { emulated_cp_async_commit(); }
template <int pending> inline void cp_async_wait() { emulated_cp_async_wait(pending); }

inline int dp4a(int a, int b, int c) {
    for (int i = 0; i < 32; i += 8) c += int((signed char)(a >> i)) * int((signed char)(b >> i));
    return c;
}
