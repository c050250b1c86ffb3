// The micro-kernels of a GEMM. Formula, registers and cache: gemm.h.

// Where one tile goes: c = (add ? c : bias or 0) + product + residual, not below 0 if `relu`, in its first n columns.
struct Tile {
    float* c;
    i64 c_m, n;
    const float* bias;  // null: none
    bool add;
    const float* residual = nullptr;  // its rows are c_m apart
    bool relu = false;
};

// The K of one pass: `count` segments of `length` numbers, found in A at these offsets and in B one after the other. One
// segment for a product; for a convolution one for each kernel row, so that A is the picture itself.
struct Depth {
    i64 count, length;
    const i64* offsets;
    i64 total() const { return count * length; }
};
constexpr i64 NO_OFFSET[1] = {0};

// R x (V * W) tile. A is R rows that are `apart` from each other (ROWS), or K columns of R neighbours that are, as in a packed
// panel; B has rows of stride b_k (NR where it is packed).
// KS sets of accumulators over k hide the latency of the FMA where there are few rows.
template <class T, int R, int V, int KS, bool ROWS>
__attribute__((noinline)) void micro(const Depth& depth, const float* a, i64 apart, const T* b, i64 b_k, const Tile& tile) {
    vf acc[KS][R][V] = {};
    float* const c = tile.c;
    if (tile.residual) {  // it comes while the product is made
        UNROLL for (int i = 0; i < R; i++)
            UNROLL for (int j = 0; j < V * W; j += 16) __builtin_prefetch(tile.residual + i * tile.c_m + j);
    }
    if (tile.add) {
        UNROLL for (int i = 0; i < R; i++)
            UNROLL for (int j = 0; j < V; j++) acc[0][i][j] = load_first(c + i * tile.c_m + j * W, at_least(tile.n - j * W, 0));
    } else if (tile.bias) {
        UNROLL for (int j = 0; j < V; j++) {
            const vf bias = load_first(tile.bias + j * W, at_least(tile.n - j * W, 0));
            UNROLL for (int i = 0; i < R; i++) acc[0][i][j] = bias;
        }
    }
    constexpr int POINTERS = ROWS ? (R + 2) / 3 : 1, STEP = KS > 1 ? KS : 4, LINE = 64 / sizeof(T);
    const float* at[POINTERS];  // three rows share a pointer, since 14 would not fit the registers
    const auto step = [&](int s, vf (&sum)[R][V]) INLINE_LAMBDA {
        vf w[V];
        UNROLL for (int j = 0; j < V; j++) w[j] = load(b + s * b_k + j * W);
        UNROLL for (int i = 0; i < R; i++) {
            const float x = ROWS ? at[i / 3][i % 3 * apart + s] : at[0][s * apart + i];
            UNROLL for (int j = 0; j < V; j++) sum[i][j] = multiply_add<T>(sum[i][j], x, w[j]);
        }
    };
    const auto advance = [&](int by) INLINE_LAMBDA {
        b += by * b_k;
        UNROLL for (int p = 0; p < POINTERS; p++) {
            at[p] += ROWS ? by : by * apart;
            asm("" : "+r"(at[p]));  // or the compiler makes a pointer of every row again, and spills
        }
    };
    for (i64 segment = 0; segment < depth.count; segment++) {
        UNROLL for (int p = 0; p < POINTERS; p++) at[p] = a + depth.offsets[segment] + 3 * p * apart;
        i64 k = 0;
        for (; k + STEP <= depth.length; k += STEP) {
            UNROLL for (int s = 0; s < STEP; s++) {
                UNROLL for (int j = 0; j < V * W; j += LINE) __builtin_prefetch(b + (4 * LINE + s) * b_k + j);  // 8 KiB ahead
                step(s, acc[KS > 1 ? s : 0]);
            }
            advance(STEP);
        }
        for (; k < depth.length; k++) {
            step(0, acc[0]);
            advance(1);
        }
    }
    UNROLL for (int s = 1; s < KS; s++)
        UNROLL for (int i = 0; i < R; i++)
            UNROLL for (int j = 0; j < V; j++) acc[0][i][j] += acc[s][i][j];
    if (tile.residual) {
        UNROLL for (int i = 0; i < R; i++)
            UNROLL for (int j = 0; j < V; j++) acc[0][i][j] += load_first(tile.residual + i * tile.c_m + j * W, at_least(tile.n - j * W, 0));
    }
    if (tile.relu) {
        UNROLL for (int i = 0; i < R; i++)
            UNROLL for (int j = 0; j < V; j++) acc[0][i][j] = select(acc[0][i][j] < 0.0f, vf{}, acc[0][i][j]);
    }
    UNROLL for (int i = 0; i < R; i++)
        UNROLL for (int j = 0; j < V; j++) store_first(c + i * tile.c_m + j * W, acc[0][i][j], at_least(tile.n - j * W, 0));
}

template <class T>
using Micro = void (*)(const Depth&, const float*, i64, const T*, i64, const Tile&);
constexpr int FEW = 3;  // rows of a whole product for which KS > 1; not of a panel, which depends on the number of threads
template <class T>
struct Micros {
    Micro<T> of[2][MR][NV];  // [A is rows][rows - 1][vectors - 1]
    Micro<T> few[2][FEW][NV];
};
template <class T, int R, bool ROWS>
constexpr void fill(Micros<T>& m) {
    m.of[ROWS][R - 1][0] = micro<T, R, 1, 1, ROWS>;
    m.of[ROWS][R - 1][1] = micro<T, R, 2, 1, ROWS>;
    if constexpr (R <= FEW) {
        m.few[ROWS][R - 1][0] = micro<T, R, 1, R == 1 ? 4 : 2, ROWS>;
        m.few[ROWS][R - 1][1] = micro<T, R, 2, R == 1 ? 4 : 2, ROWS>;
    }
    if constexpr (R > 1) fill<T, R - 1, ROWS>(m);
}
template <class T>
constexpr Micros<T> make_micros() {
    Micros<T> m{};
    fill<T, MR, false>(m);
    fill<T, MR, true>(m);
    return m;
}
// constexpr, for code that runs when the library is loaded must not use this instruction set yet
template <class T>
constexpr Micros<T> MICRO = make_micros<T>();

// Dot products of R rows of A with S columns of B, both contiguous along K: for few rows, where packing B would cost more than
// the product. KS * R * S accumulators. The next S columns, or 8 KiB, are asked for meanwhile, in the order in which they lie in
// memory: one stream, which pages of 4 KiB (a mapped file's) do not stop. Without it, S at once reach two thirds of the bandwidth.
template <class T, int R, int S, int KS>
__attribute__((noinline)) void dots(i64 K, const float* a, i64 a_m, const T* b, i64 b_n, float* c, i64 c_m, const float* bias) {
    constexpr int LINE = 64 / sizeof(T);
    vf acc[KS][R][S] = {};
    const auto step = [&](i64 k, i64 count, vf (&sum)[R][S]) INLINE_LAMBDA {
        vf x[R];
        UNROLL for (int i = 0; i < R; i++) x[i] = load_first(a + i * a_m + k, count);
        UNROLL for (int j = 0; j < S; j++) {
            const vf y = count >= W ? load(b + j * b_n + k) : load_first(b + j * b_n + k, count);
            UNROLL for (int i = 0; i < R; i++) sum[i][j] = multiply_add<T>(sum[i][j], x[i], y);
        }
    };
    const T* next = b + at_least(S > 1 ? S * b_n : 0, 128 * LINE);
    i64 k = 0;
    for (; k + KS * W <= K; k += KS * W, next += KS * S * W) {
        UNROLL for (int j = 0; j < KS * S * W; j += LINE) __builtin_prefetch(next + j);
        UNROLL for (int s = 0; s < KS; s++) step(k + s * W, W, acc[s]);
    }
    for (; k < K; k += W) step(k, K - k, acc[0]);
    UNROLL for (int s = 1; s < KS; s++)
        UNROLL for (int i = 0; i < R; i++)
            UNROLL for (int j = 0; j < S; j++) acc[0][i][j] += acc[s][i][j];
    for (int i = 0; i < R; i++)
        for (int j = 0; j < S; j++) c[i * c_m + j] = sum_lanes(acc[0][i][j]) + (bias ? bias[j] : 0.0f);
}
template <class T>
using Dots = void (*)(i64, const float*, i64, const T*, i64, float*, i64, const float*);
#if defined(ZOO_AVX512) || defined(ZOO_NEON)
constexpr i64 DOT_ROWS = 6;  // 24 accumulators + 6 + 1 = 31 of 32 registers
#else
constexpr i64 DOT_ROWS = 3;  // 12 accumulators + 3 + 1 = 16 registers
#endif
template <class T>
struct AllDots {
    Dots<T> of[DOT_ROWS][2];  // [rows - 1][four columns]
    Dots<T> one = dots<T, 1, 1, 8>;  // for a product of one row: the weight is a single stream
};
template <class T, int R>
constexpr void fill(AllDots<T>& d) {
    d.of[R - 1][0] = dots<T, R, 1, 1>, d.of[R - 1][1] = dots<T, R, 4, 1>;
    if constexpr (R > 1) fill<T, R - 1>(d);
}
template <class T>
constexpr AllDots<T> make_dots() {
    AllDots<T> d{};
    fill<T, DOT_ROWS>(d);
    return d;
}
template <class T>
constexpr AllDots<T> DOTS = make_dots<T>();
constexpr i64 MAX_DOTS = 24;  // rows up to which dot products beat packing B for one product; measured
