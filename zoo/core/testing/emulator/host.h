// CUDA's own words, for a C++ compiler: the text of this file comes before that of a kernel. What has to know about other
// threads (barriers, warps, memory) calls runtime.cpp, which is compiled once. No header is read: a kernel compiles in a
// tenth of a second.

#define __global__
#define __device__
#define __host__
#define __constant__
#define __forceinline__ inline
#define __noinline__
#define __launch_bounds__(...)
#define __align__(n) alignas(n)
#define __restrict__

typedef decltype(sizeof(0)) size_t;

struct emulated_index {
    unsigned x, y, z;
};
struct dim3 {
    unsigned x, y, z;
};

// The door to runtime.cpp. `file`, `line`: where in the kernel, for its errors and to know threads that go different ways.
extern "C" {
extern emulated_index threadIdx, blockIdx, blockDim, gridDim;
void emulated_syncthreads(const char *file, int line);
void emulated_syncwarp(unsigned mask, const char *file, int line);
void emulated_shuffle(void *value, int bytes, int source, unsigned mask, const char *file, int line);
unsigned emulated_ballot(int predicate, unsigned mask, const char *file, int line);
void emulated_mma(float (*widened)(unsigned short), void *d, const unsigned *a, const unsigned *b);
void emulated_ldmatrix(unsigned *r, const void *row, int matrices, int transposed);
void emulated_cp_async16(void *shared, const void *global, int valid);
void emulated_cp_async_commit();
void emulated_cp_async_wait(int pending);
void *emulated_shared(const void *site, size_t bytes);
void *emulated_dynamic_shared();
void emulated_fail(const char *what);
unsigned emulated_lane();
}
constexpr int warpSize = 32;

#define __syncthreads() emulated_syncthreads(__FILE__, __LINE__)
#define __syncwarp(...) emulated_syncwarp(~0u, __FILE__, __LINE__)
#define __shfl_sync(mask, value, lane) emulated_shuffled(mask, value, (lane) & 31, __FILE__, __LINE__)
#define __shfl_xor_sync(mask, value, bits) emulated_shuffled(mask, value, emulated_lane() ^ (bits), __FILE__, __LINE__)
#define __shfl_down_sync(mask, value, by) emulated_shuffled(mask, value, emulated_below(emulated_lane() + (by)), __FILE__, __LINE__)
#define __shfl_up_sync(mask, value, by) emulated_shuffled(mask, value, emulated_below(emulated_lane() - (by)), __FILE__, __LINE__)
#define __ballot_sync(mask, predicate) emulated_ballot(predicate, mask, __FILE__, __LINE__)
#define __any_sync(mask, predicate) (emulated_ballot(predicate, mask, __FILE__, __LINE__) != 0)
#define __all_sync(mask, predicate) (emulated_ballot(predicate, mask, __FILE__, __LINE__) == ~0u)

// A lane that does not exist leaves the value as it is.
inline unsigned emulated_below(unsigned lane) { return lane < 32 ? lane : emulated_lane(); }
template <typename Value>
inline Value emulated_shuffled(unsigned mask, Value value, unsigned source, const char *file, int line) {
    static_assert(sizeof(Value) <= 8, "a shuffle carries up to 8 bytes");
    emulated_shuffle(&value, sizeof(Value), source, mask, file, line);
    return value;
}

inline void __threadfence() {}
inline void __threadfence_block() {}
inline void __trap() { emulated_fail("__trap() was reached"); }

// One thread runs at a time: atomic as it is. Half precision has no atomics here.
template <typename Number, typename Added> inline Number atomicAdd(Number *at, Added value) {
    Number before = *at;
    *at = before + Number(value);
    return before;
}
template <typename Number> inline Number atomicMax(Number *at, Number value) {
    Number before = *at;
    if (value > before) *at = value;
    return before;
}
template <typename Number> inline Number atomicMin(Number *at, Number value) {
    Number before = *at;
    if (value < before) *at = value;
    return before;
}
template <typename Number> inline Number atomicCAS(Number *at, Number compared, Number value) {
    Number before = *at;
    if (before == compared) *at = value;
    return before;
}
template <typename Number> inline Number atomicExch(Number *at, Number value) {
    Number before = *at;
    *at = value;
    return before;
}
template <typename Value> inline Value __ldg(const Value *p) { return *p; }

// Vectors.
#define EMULATED_VECTORS(type, name)                                                                  \
    struct alignas(2 * sizeof(type)) name##2 {                                                        \
        type x, y;                                                                                    \
    };                                                                                                \
    struct name##3 {                                                                                  \
        type x, y, z;                                                                                 \
    };                                                                                                \
    struct alignas(4 * sizeof(type) < 16 ? 4 * sizeof(type) : 16) name##4 {                           \
        type x, y, z, w;                                                                              \
    };                                                                                                \
    inline name##2 make_##name##2(type x, type y) { return {x, y}; }                                  \
    inline name##3 make_##name##3(type x, type y, type z) { return {x, y, z}; }                       \
    inline name##4 make_##name##4(type x, type y, type z, type w) { return {x, y, z, w}; }
EMULATED_VECTORS(signed char, char)
EMULATED_VECTORS(unsigned char, uchar)
EMULATED_VECTORS(short, short)
EMULATED_VECTORS(unsigned short, ushort)
EMULATED_VECTORS(int, int)
EMULATED_VECTORS(unsigned, uint)
EMULATED_VECTORS(long long, longlong)
EMULATED_VECTORS(unsigned long long, ulonglong)
EMULATED_VECTORS(float, float)
EMULATED_VECTORS(double, double)

// Bits.
template <typename To, typename From> inline To emulated_bits(From x) {
    static_assert(sizeof(To) == sizeof(From), "of one size");
    To y;
    __builtin_memcpy(&y, &x, sizeof(To));
    return y;
}
inline unsigned __float_as_uint(float x) { return emulated_bits<unsigned>(x); }
inline int __float_as_int(float x) { return emulated_bits<int>(x); }
inline float __uint_as_float(unsigned x) { return emulated_bits<float>(x); }
inline float __int_as_float(int x) { return emulated_bits<float>(x); }
inline long long __double_as_longlong(double x) { return emulated_bits<long long>(x); }
inline double __longlong_as_double(long long x) { return emulated_bits<double>(x); }
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __clz(int x) { return x ? __builtin_clz(unsigned(x)) : 32; }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline unsigned __brev(unsigned x) {
    unsigned y = 0;
    for (int i = 0; i < 32; i++) y |= (x >> i & 1) << (31 - i);
    return y;
}
inline unsigned __umulhi(unsigned a, unsigned b) { return unsigned((unsigned long long)a * b >> 32); }
inline int __mulhi(int a, int b) { return int((long long)a * b >> 32); }
inline unsigned __byte_perm(unsigned x, unsigned y, unsigned selector) {
    unsigned long long both = (unsigned long long)y << 32 | x;
    unsigned r = 0;
    for (int i = 0; i < 4; i++) {
        unsigned chosen = selector >> 4 * i & 15, byte = unsigned(both >> 8 * (chosen & 7)) & 255;
        if (chosen & 8) byte = byte & 128 ? 255 : 0;
        r |= byte << 8 * i;
    }
    return r;
}

// Arithmetic, by the C library's functions under their CUDA names.
#define EMULATED_UNARY(name)                                           \
    inline float name##f(float x) { return __builtin_##name##f(x); }   \
    inline double name(double x) { return __builtin_##name(x); }       \
    inline float name(float x) { return __builtin_##name##f(x); }
EMULATED_UNARY(exp)
EMULATED_UNARY(exp2)
EMULATED_UNARY(expm1)
EMULATED_UNARY(log)
EMULATED_UNARY(log2)
EMULATED_UNARY(log1p)
EMULATED_UNARY(sqrt)
EMULATED_UNARY(sin)
EMULATED_UNARY(cos)
EMULATED_UNARY(tan)
EMULATED_UNARY(tanh)
EMULATED_UNARY(erf)
EMULATED_UNARY(erfc)
EMULATED_UNARY(floor)
EMULATED_UNARY(ceil)
EMULATED_UNARY(trunc)
EMULATED_UNARY(rint)
EMULATED_UNARY(round)
EMULATED_UNARY(fabs)
#define EMULATED_BINARY(name)                                                            \
    inline float name##f(float x, float y) { return __builtin_##name##f(x, y); }         \
    inline double name(double x, double y) { return __builtin_##name(x, y); }            \
    inline float name(float x, float y) { return __builtin_##name##f(x, y); }
EMULATED_BINARY(pow)
EMULATED_BINARY(fmod)
EMULATED_BINARY(fmax)
EMULATED_BINARY(fmin)
EMULATED_BINARY(copysign)
EMULATED_BINARY(atan2)
inline float fmaf(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
inline double fma(double a, double b, double c) { return __builtin_fma(a, b, c); }
inline float rsqrtf(float x) { return 1 / sqrtf(x); }
inline double rsqrt(double x) { return 1 / sqrt(x); }
inline float __expf(float x) { return expf(x); }
inline float __logf(float x) { return logf(x); }
inline float __log2f(float x) { return log2f(x); }
inline float __sinf(float x) { return sinf(x); }
inline float __cosf(float x) { return cosf(x); }
inline float __fdividef(float a, float b) { return a / b; }
inline float __frcp_rn(float x) { return 1 / x; }
inline float __saturatef(float x) { return x > 0 ? x < 1 ? x : 1 : 0; }
inline int __float2int_rn(float x) { return int(__builtin_rintf(x)); }
inline int __float2int_rz(float x) { return int(x); }
inline float __int2float_rn(int x) { return float(x); }
inline void sincosf(float x, float *s, float *c) {
    *s = sinf(x);
    *c = cosf(x);
}
inline int abs(int x) { return x < 0 ? -x : x; }
inline bool isnan(float x) { return x != x; }
inline bool isnan(double x) { return x != x; }
inline bool isinf(float x) { return __builtin_isinf(x); }
inline bool isinf(double x) { return __builtin_isinf(x); }
inline bool isfinite(float x) { return __builtin_isfinite(x); }
inline float max(float a, float b) { return fmaxf(a, b); }
inline float min(float a, float b) { return fminf(a, b); }
inline double max(double a, double b) { return fmax(a, b); }
inline double min(double a, double b) { return fmin(a, b); }
#define EMULATED_EXTREMES(type)                                     \
    inline type max(type a, type b) { return a > b ? a : b; }       \
    inline type min(type a, type b) { return a < b ? a : b; }
EMULATED_EXTREMES(int)
EMULATED_EXTREMES(unsigned)
EMULATED_EXTREMES(long long)
EMULATED_EXTREMES(unsigned long long)

// How runtime.cpp calls a kernel: with the addresses of its arguments. Python reads what they are from `emulated_types`.
template <typename Type> struct emulated_type {
    static constexpr char code = 's';  // some struct
};
#define EMULATED_TYPE(type, letter)              \
    template <> struct emulated_type<type> {     \
        static constexpr char code = letter;     \
    };
EMULATED_TYPE(void, 'v')
EMULATED_TYPE(bool, '?')
EMULATED_TYPE(signed char, 'b')
EMULATED_TYPE(unsigned char, 'B')
EMULATED_TYPE(short, 'h')
EMULATED_TYPE(unsigned short, 'H')
EMULATED_TYPE(int, 'i')
EMULATED_TYPE(unsigned, 'I')
EMULATED_TYPE(long, 'q')
EMULATED_TYPE(unsigned long, 'Q')
EMULATED_TYPE(long long, 'q')
EMULATED_TYPE(unsigned long long, 'Q')
EMULATED_TYPE(float, 'f')
EMULATED_TYPE(double, 'd')
template <typename Type> struct emulated_type<const Type> : emulated_type<Type> {};

template <typename Type> struct emulated_argument {
    static constexpr char kind = ' ', code = emulated_type<Type>::code;
};
template <typename Type> struct emulated_argument<Type *> {
    static constexpr char kind = '*', code = emulated_type<Type>::code;  // may be written to
};
template <typename Type> struct emulated_argument<const Type *> {
    static constexpr char kind = 'c', code = emulated_type<Type>::code;
};
template <typename Type> struct emulated_argument<Type *const> : emulated_argument<Type *> {};

template <int... places> struct emulated_places {};
template <int count, int... places> struct emulated_counted : emulated_counted<count - 1, count - 1, places...> {};
template <int... places> struct emulated_counted<0, places...> {
    typedef emulated_places<places...> type;
};

template <typename... Types> struct emulated_signature {
    static constexpr char text[] = {emulated_argument<Types>::kind..., emulated_argument<Types>::code..., 0};
    template <int... places> static void call(void (*kernel)(Types...), void **arguments, emulated_places<places...>) {
        kernel(*static_cast<Types *>(arguments[places])...);
    }
};
template <typename... Types> constexpr const char *emulated_text(void (*)(Types...)) {
    return emulated_signature<Types...>::text;
}
template <typename... Types> void emulated_call(void (*kernel)(Types...), void **arguments) {
    emulated_signature<Types...>::call(kernel, arguments, typename emulated_counted<sizeof...(Types)>::type());
}
#define EMULATED_KERNEL(name)                                                                      \
    extern "C" void emulated_call_##name(void **arguments) { emulated_call(&name, arguments); }    \
    extern "C" const char *emulated_types_##name() { return emulated_text(&name); }
