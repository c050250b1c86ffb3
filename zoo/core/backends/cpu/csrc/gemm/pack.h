// Packing for a GEMM: B as [N/NR][K][NR], so that the micro-kernel streams through memory; A by panels where its rows are not
// contiguous. Tiles and registers: gemm.h.

#if defined(ZOO_AVX512)
constexpr int MR = 14;
#elif defined(ZOO_AVX2)
constexpr int MR = 6;
#elif defined(ZOO_NEON)
constexpr int MR = 8;
#else
constexpr int MR = 4;
#endif
constexpr int NV = 2, NR = NV * W;
#if defined(ZOO_AVX512BF16)
constexpr bool PAIRS = true;
#else
constexpr bool PAIRS = false;
#endif
constexpr int AR = (MR + W - 1) / W * W;  // a packed panel of A is [K][AR], so that its rows are whole vectors

INLINE i64 at_most(i64 a, i64 b) { return a < b ? a : b; }
INLINE i64 at_least(i64 a, i64 b) { return a > b ? a : b; }
INLINE i64 divide_up(i64 a, i64 b) { return (a + b - 1) / b; }

// How `count` rows are cut into panels of at most `tallest`, as equal as can be.
struct Panels {
    i64 count, base, longer;  // the first `longer` panels have base + 1 rows
    explicit Panels(i64 rows, i64 tallest = MR)
        : count(divide_up(rows, tallest)), base(count ? rows / count : 0), longer(count ? rows % count : 0) {}
    i64 start(i64 p) const { return p * base + at_most(p, longer); }
    int rows(i64 p) const { return (int)(base + (p < longer)); }
};

// to[k][i] = rows[i][k] for k < length, i < NR; zero for given <= i. `next`, if given, is packed after it, and asked for
// meanwhile in the order in which it lies in memory: NR rows at once are more streams than the hardware follows.
template <class T>
void pack_rows(const T* const* rows, int given, i64 length, T* to, const T* next = nullptr) {
    constexpr int LINE = 64 / sizeof(T);
    for (i64 k = 0; k < length; k += W) {
        if (next) {
            UNROLL for (int j = 0; j < NR * W; j += LINE) __builtin_prefetch(next + k * NR + j, 0, 2);
        }
        const i64 count = at_most(W, length - k);
        for (int g = 0; g < NR; g += W) {
            vf t[W];
            UNROLL for (int i = 0; i < W; i++) t[i] = g + i < given ? load_bits(rows[g + i] + k, count) : vf{};
            transpose(t);
            if (count == W) {
                UNROLL for (int i = 0; i < W; i++) store_bits(to + (k + i) * NR + g, t[i], W);
            } else {
                for (i64 i = 0; i < count; i++) store_bits(to + (k + i) * NR + g, t[i], W);
            }
        }
    }
}

// One panel of r rows of A that are not contiguous: to[k][i] = a[i][k].
void pack_a(const float* a, i64 a_m, i64 a_k, int r, i64 K, float* to) {
    for (i64 k = 0; k < K; k++, to += AR) {
        if (a_m == 1) {
            UNROLL for (int i = 0; i < AR; i += W) store(to + i, load_first(a + k * a_k + i, at_least(r - i, 0)));
        } else {
            for (int i = 0; i < r; i++) to[i] = a[i * a_m + k * a_k];
        }
    }
}

// The distance of copied rows: a whole number of cache lines, and an odd one, so that rows spread over all sets.
INLINE i64 row_distance(i64 K) { return (divide_up(K, 16) | 1) * 16; }

// to[0 .. n-1] = from.  Writes up to W - 1 floats past the end.
INLINE void copy_run(const float* from, i64 n, float* to) {
    i64 i = 0;
    for (; i + W <= n; i += W) store(to + i, load(from + i));
    if (i < n) store(to + i, load_first(from + i, n - i));
}

#if defined(ZOO_AVX512BF16)
// to[0 .. n-1] = pairs of numbers that are `stride` apart, rounded to the nearest even (vcvtne2ps2bf16: subnormal ones to zero).
// Writes up to W - 1 pairs past the end.
INLINE void round_run(const float* from, i64 stride, i64 n, float* to) {
    for (i64 i = 0; i < n; i += W, from += 2 * W * stride) {
        const i64 count = at_most(2 * W, 2 * (n - i));
        float gathered[2 * W];
        if (stride != 1)
            for (i64 j = 0; j < count; j++) gathered[j] = from[j * stride];
        const float* const at = stride == 1 ? from : gathered;
        const vf low = load_first(at, count), high = load_first(at + W, at_least(count - W, 0));
        store(to + i, (vf)_mm512_cvtne2ps_pbh((__m512)high, (__m512)low));
    }
}
#endif

// A run of n steps along K as the micro-kernel reads it: as it is, or rounded to pairs.
template <class T>
INLINE void copy_steps(const float* from, [[maybe_unused]] i64 stride, i64 n, float* to) {
#if defined(ZOO_AVX512BF16)
    if constexpr (NUMBERS<T> == 2) return round_run(from, stride, n, to);
#endif
    copy_run(from, n, to);
}

// One panel of n <= NR columns of B: [K][NR], zero beyond n.
template <class T>
void pack_panel(const T* b, i64 b_k, i64 b_n, i64 n, i64 K, T* to) {
    if (b_k == 1) {
        const T* columns[NR];
        for (int j = 0; j < n; j++) columns[j] = b + j * b_n;
        pack_rows(columns, (int)n, K, to, b + NR * b_n);
    } else if (b_n == 1) {
        for (i64 k = 0; k < K; k++)
            UNROLL for (int j = 0; j < NR; j += W) store_bits(to + k * NR + j, load_bits(b + k * b_k + j, at_least(n - j, 0)), W);
    } else {
        for (i64 k = 0; k < K; k++)
            for (i64 j = 0; j < NR; j++) to[k * NR + j] = j < n ? b[k * b_k + j * b_n] : T{};
    }
}

template <class T>
void pack(const T* b, i64 b_k, i64 b_n, i64 N, i64 K, T* packed) {
    struct Job {
        const T* b;
        i64 b_k, b_n, N, K;
        T* packed;
        i64 tasks;
    } job{b, b_k, b_n, N, K, packed, N * K < 1 << 15 ? 1 : at_most(divide_up(N, NR), 4 * threads())};
    auto range = [](void* context, i64 index) {
        const Job& j = *static_cast<Job*>(context);
        const i64 panels = divide_up(j.N, NR);
        for (i64 p = panels * index / j.tasks; p < panels * (index + 1) / j.tasks; p++)
            pack_panel(j.b + p * NR * j.b_n, j.b_k, j.b_n, at_most(NR, j.N - p * NR), j.K, j.packed + p * NR * j.K);
    };
    parallel(job.tasks, range, &job);
}
