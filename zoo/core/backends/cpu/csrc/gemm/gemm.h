// C[M,N] = act(A[M,K] * B[K,N] + bias[N] + residual[M,N])
// layout     B packed [N/NR][K][NR]. A as it is where its rows are contiguous; the micro-kernel reads one number of each row
//            per step. Panels have at most MR rows and are balanced (15 rows: 8 + 7, not 14 + 1)
// registers  AVX-512 14x32: 28 accumulators + 2 of B + 1 broadcast = 31 of 32;  AVX2 6x16: 12 + 2 + 1 = 15 of 16;
//            NEON 8x8: 16 + 2 + 1 = 19 of 32 (8x12 would need N in twelves);  SSE 4x8: 8 + 2 + 1 = 11 of 16
// cache      KC x NC of B stays in half of L2 (480 KiB) while panels of A (MR x KC) pass through L1. Rows of A whose distance is
//            a multiple of 2 KiB would all fall into the same few sets of L1 (-30 %): they are copied
// loops      K blocks > N blocks > panels of A > panels of B
// roof       2 M N K operations for M >= about 16; below, the memory that B is read from
// The order of additions does not depend on the number of threads, so neither does any bit of the result.

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
constexpr int AR = (MR + W - 1) / W * W;  // a packed panel of A is [K][AR], so that its rows are whole vectors
constexpr i64 KC = 768, NC = 160;

INLINE i64 at_most(i64 a, i64 b) { return a < b ? a : b; }
INLINE i64 at_least(i64 a, i64 b) { return a > b ? a : b; }
INLINE i64 divide_up(i64 a, i64 b) { return (a + b - 1) / b; }

// ---- packing

// to[k][i] = rows[i][k] for k < length, i < NR; zero for given <= i.
void pack_rows(const float* const* rows, int given, i64 length, float* to) {
    for (i64 k = 0; k < length; k += W) {
        const i64 count = at_most(W, length - k);
        for (int g = 0; g < NR; g += W) {
            vf t[W];
            UNROLL for (int i = 0; i < W; i++) t[i] = g + i < given ? load_first(rows[g + i] + k, count) : vf{};
            transpose(t);
            if (count == W) {
                UNROLL for (int i = 0; i < W; i++) store(to + (k + i) * NR + g, t[i]);
            } else {
                for (i64 i = 0; i < count; i++) store(to + (k + i) * NR + g, t[i]);
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

// One panel of n <= NR columns of B: [K][NR], zero beyond n.
void pack_panel(const float* b, i64 b_k, i64 b_n, i64 n, i64 K, float* to) {
    if (b_k == 1) {
        const float* columns[NR];
        for (int j = 0; j < n; j++) columns[j] = b + j * b_n;
        pack_rows(columns, (int)n, K, to);
    } else if (b_n == 1) {
        for (i64 k = 0; k < K; k++)
            UNROLL for (int j = 0; j < NR; j += W) store(to + k * NR + j, load_first(b + k * b_k + j, at_least(n - j, 0)));
    } else {
        for (i64 k = 0; k < K; k++)
            for (i64 j = 0; j < NR; j++) to[k * NR + j] = j < n ? b[k * b_k + j * b_n] : 0.0f;
    }
}

void pack(const float* b, i64 b_k, i64 b_n, i64 N, i64 K, float* packed) {
    struct Job {
        const float* b;
        i64 b_k, b_n, N, K;
        float* packed;
    } job{b, b_k, b_n, N, K, packed};
    auto panel = [](void* context, i64 p) {
        const Job& j = *static_cast<Job*>(context);
        pack_panel(j.b + p * NR * j.b_n, j.b_k, j.b_n, at_most(NR, j.N - p * NR), j.K, j.packed + p * NR * j.K);
    };
    const i64 panels = divide_up(N, NR);
    if (N * K < 1 << 15) {
        for (i64 p = 0; p < panels; p++) panel(&job, p);
    } else {
        parallel(panels, panel, &job);
    }
}

// ---- micro-kernels

// Where one tile goes: c = (add ? c : bias or 0) + product, in its first n columns.
struct Tile {
    float* c;
    i64 c_m, n;
    const float* bias;  // null: none
    bool add;
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
template <int R, int V, int KS, bool ROWS>
__attribute__((noinline)) void micro(const Depth& depth, const float* a, i64 apart, const float* b, i64 b_k, const Tile& tile) {
    vf acc[KS][R][V] = {};
    float* const c = tile.c;
    if (tile.add) {
        UNROLL for (int i = 0; i < R; i++)
            UNROLL for (int j = 0; j < V; j++) acc[0][i][j] = load_first(c + i * tile.c_m + j * W, at_least(tile.n - j * W, 0));
    } else if (tile.bias) {
        UNROLL for (int j = 0; j < V; j++) {
            const vf bias = load_first(tile.bias + j * W, at_least(tile.n - j * W, 0));
            UNROLL for (int i = 0; i < R; i++) acc[0][i][j] = bias;
        }
    }
    constexpr int POINTERS = ROWS ? (R + 2) / 3 : 1, STEP = KS > 1 ? KS : 4;
    const float* at[POINTERS];  // three rows share a pointer, since 14 would not fit the registers
    const auto step = [&](int s, vf (&sum)[R][V]) INLINE_LAMBDA {
        vf w[V];
        UNROLL for (int j = 0; j < V; j++) w[j] = load(b + s * b_k + j * W);
        UNROLL for (int i = 0; i < R; i++) {
            const float x = ROWS ? at[i / 3][i % 3 * apart + s] : at[0][s * apart + i];
            UNROLL for (int j = 0; j < V; j++) sum[i][j] += x * w[j];
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
                UNROLL for (int j = 0; j < V * W; j += 16) __builtin_prefetch(b + (32 + s) * b_k + j);  // 32 rows ahead: +6 %
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
    UNROLL for (int i = 0; i < R; i++)
        UNROLL for (int j = 0; j < V; j++) store_first(c + i * tile.c_m + j * W, acc[0][i][j], at_least(tile.n - j * W, 0));
}

using Micro = void (*)(const Depth&, const float*, i64, const float*, i64, const Tile&);
constexpr int FEW = 3;  // rows of a whole product for which KS > 1; not of a panel, which depends on the number of threads
struct Micros {
    Micro of[2][MR][NV];  // [A is rows][rows - 1][vectors - 1]
    Micro few[2][FEW][NV];
};
template <int R, bool ROWS>
constexpr void fill(Micros& m) {
    m.of[ROWS][R - 1][0] = micro<R, 1, 1, ROWS>;
    m.of[ROWS][R - 1][1] = micro<R, 2, 1, ROWS>;
    if constexpr (R <= FEW) {
        m.few[ROWS][R - 1][0] = micro<R, 1, R == 1 ? 4 : 2, ROWS>;
        m.few[ROWS][R - 1][1] = micro<R, 2, R == 1 ? 4 : 2, ROWS>;
    }
    if constexpr (R > 1) fill<R - 1, ROWS>(m);
}
constexpr Micros make_micros() {
    Micros m{};
    fill<MR, false>(m);
    fill<MR, true>(m);
    return m;
}
// constexpr, for code that runs when the library is loaded must not use this instruction set yet
constexpr Micros MICRO = make_micros();

// Dot products of R rows of A with S columns of B, both contiguous along K: for few rows, where packing B would cost more than
// the product. R * S accumulators.
template <int R, int S>
__attribute__((noinline)) void dots(i64 K, const float* a, i64 a_m, const float* b, i64 b_n, float* c, i64 c_m, const float* bias) {
    vf acc[R][S] = {};
    i64 k = 0;
    for (; k + W <= K; k += W) {
        vf x[R];
        UNROLL for (int i = 0; i < R; i++) x[i] = load(a + i * a_m + k);
        UNROLL for (int j = 0; j < S; j++) {
            const vf y = load(b + j * b_n + k);
            UNROLL for (int i = 0; i < R; i++) acc[i][j] += x[i] * y;
        }
    }
    if (k < K) {
        vf x[R];
        UNROLL for (int i = 0; i < R; i++) x[i] = load_first(a + i * a_m + k, K - k);
        UNROLL for (int j = 0; j < S; j++) {
            const vf y = load_first(b + j * b_n + k, K - k);
            UNROLL for (int i = 0; i < R; i++) acc[i][j] += x[i] * y;
        }
    }
    for (int i = 0; i < R; i++)
        for (int j = 0; j < S; j++) c[i * c_m + j] = sum_lanes(acc[i][j]) + (bias ? bias[j] : 0.0f);
}
using Dots = void (*)(i64, const float*, i64, const float*, i64, float*, i64, const float*);
constexpr Dots DOTS[4][2] = {{dots<1, 1>, dots<1, 4>}, {dots<2, 1>, dots<2, 4>}, {dots<3, 1>, dots<3, 4>}, {dots<4, 1>, dots<4, 4>}};
#if defined(ZOO_AVX512) || defined(ZOO_NEON)
constexpr i64 DOT_ROWS = 4;
#else
constexpr i64 DOT_ROWS = 3;  // 12 accumulators + 3 + 1 = 16 registers
#endif
constexpr i64 MAX_DOTS = 24;  // rows up to which dot products beat packing B for one product; measured

// ---- loops

// How `count` rows are cut into panels of at most MR, as equal as can be.
struct Panels {
    i64 count, base, longer;  // the first `longer` panels have base + 1 rows
    explicit Panels(i64 rows) : count(divide_up(rows, MR)), base(count ? rows / count : 0), longer(count ? rows % count : 0) {}
    i64 start(i64 p) const { return p * base + at_most(p, longer); }
    int rows(i64 p) const { return (int)(base + (p < longer)); }
};

// One panel of A and where its product goes.
struct Rows {
    int count;
    bool by_rows;  // else by columns
    const float* a;
    i64 apart;
    float* c;
    const float* residual;
};

// What all panels of a sweep share: columns n0 .. n1 of packed B, the same depth, what follows the sum if this is its `last` part.
struct Sweep {
    const float* b;  // first of the rows of panel 0; panels are b_panel apart, rows b_k
    i64 b_panel, b_k;
    i64 n0, n1;
    i64 c_m;  // of the residual too
    const float* bias;
    int activation;
    bool first, last;
    bool few;  // the whole product has at most FEW rows
};

template <class PanelAt>
void sweep(const Sweep& s, const Depth& depth, i64 panels, const PanelAt& panel_at) {
    for (i64 nb = s.n0; nb < s.n1; nb += NC) {
        const i64 end = at_most(s.n1, nb + NC);
        for (i64 p = 0; p < panels; p++) {
            const Rows rows = panel_at(p);
            for (i64 n = nb; n < end; n += NR) {
                const i64 columns = at_most(NR, end - n);
                const auto& kernels = s.few ? MICRO.few[rows.by_rows][rows.count - 1] : MICRO.of[rows.by_rows][rows.count - 1];
                const Tile tile{rows.c + n, s.c_m, columns, s.bias ? s.bias + n : nullptr, !s.first};
                kernels[columns > W](depth, rows.a, rows.apart, s.b + n / NR * s.b_panel, s.b_k, tile);
            }
            if (s.last && (rows.residual || s.activation != NONE))
                finish(rows.c + nb, s.c_m, rows.residual ? rows.residual + nb : nullptr, s.c_m, rows.count, end - nb, s.activation);
        }
    }
}

// c[m, n] = act(sum over p < count of parts[p * distance + m * columns + n] + bias[n] + residual[m, n]): ends a product that
// was split over K.
void add_parts(const float* parts, i64 count, i64 distance, i64 rows, i64 columns, float* c, i64 c_m, const float* bias,
               const float* residual, i64 residual_m, int activation) {
    for (i64 i = 0; i < rows; i++) {
        for (i64 j = 0; j < columns; j += W) {
            const float* const part = parts + i * columns + j;
            vf y = load_first(part, columns - j);
            for (i64 p = 1; p < count; p++) y += load_first(part + p * distance, columns - j);
            if (bias) y += load_first(bias + j, columns - j);
            store_first(c + i * c_m + j, y, columns - j);
        }
    }
    if (residual || activation != NONE) finish(c, c_m, residual, residual_m, rows, columns, activation);
}

// How a product is cut into tasks. Small ones are not: a task is worth its start at about a million operations.
struct Split {
    i64 m, n, k;
    Split(i64 M, i64 N, i64 K) : m(1), n(1), k(1) {
        const i64 T = threads(), worth = at_least(1, 2 * M * N * at_least(K, 1) / 1000000);
        if (divide_up(M, MR) * divide_up(N, NR) <= 8) k = at_least(1, at_most(8, K / 2048));  // not by T: see the bits above
        if (k > 1 || T == 1) return;
        if (M <= 192) {
            n = at_most(at_most(worth, 4 * T), at_least(T, N / 128));
        } else {
            m = at_most(at_most(worth, divide_up(divide_up(M, 512), T) * T), at_least(M / 56, 1));
            if (m < T) n = at_most(divide_up(T, m), at_least(N / 64, 1));
        }
        n = at_most(n, divide_up(N, NR));
    }
};

struct GemmJob {
    const Gemm* g;
    Split split;
    const float* packed;
    float* parts;
};

void gemm_task(void* context, i64 index) {
    const GemmJob& job = *static_cast<const GemmJob*>(context);
    const Gemm& g = *job.g;
    const i64 ki = index % job.split.k, ni = index / job.split.k % job.split.n, mi = index / job.split.k / job.split.n;
    const i64 m0 = g.M * mi / job.split.m, m1 = g.M * (mi + 1) / job.split.m;
    const i64 k0 = g.K * ki / job.split.k, k1 = g.K * (ki + 1) / job.split.k;
    const i64 all = divide_up(g.N, NR);
    const i64 n0 = all * ni / job.split.n * NR, n1 = at_most(g.N, all * (ni + 1) / job.split.n * NR);

    const Panels panels(m1 - m0);
    // one panel: nothing of B would be used twice, so all of K at once; else blocks of nearly equal size
    const i64 blocks = panels.count == 1 && job.packed ? 1 : at_least(1, divide_up(k1 - k0, job.packed ? KC : KC / 2));
    const bool split = job.split.k > 1;
    for (i64 block = 0; block < blocks; block++) {
        const i64 kb = k0 + (k1 - k0) * block / blocks, kc = k0 + (k1 - k0) * (block + 1) / blocks - kb;
        const float* a = g.a + m0 * g.a_m + kb * g.a_k;
        i64 apart = g.a_m;
        const bool by_rows = g.a_k == 1;
        if (!by_rows) {
            apart = AR;
            float* const to = scratch(SLOT_A, panels.count * AR * kc);
            for (i64 p = 0; p < panels.count; p++)
                pack_a(a + panels.start(p) * g.a_m, g.a_m, g.a_k, panels.rows(p), kc, to + p * AR * kc);
            a = to;
        } else if (m1 - m0 > 1 && apart * 4 % 2048 == 0) {
            apart = row_distance(kc);
            float* const to = scratch(SLOT_A, (m1 - m0) * apart + W);
            for (i64 i = 0; i < m1 - m0; i++) copy_run(a + i * g.a_m, kc, to + i * apart);
            a = to;
        }
        Sweep s{};
        s.n0 = n0, s.n1 = n1;
        s.first = block == 0, s.last = block + 1 == blocks && !split;
        float* const c = split ? job.parts + (ki * g.M + m0) * g.N : g.c + m0 * g.c_m;
        s.c_m = split ? g.N : g.c_m;
        s.bias = split ? nullptr : g.bias;
        s.activation = g.activation;
        s.few = g.M <= FEW;
        const auto panel_at = [&](i64 p) {
            const i64 row = panels.start(p);
            const float* const residual = g.residual && !split ? g.residual + (m0 + row) * g.c_m : nullptr;
            return Rows{panels.rows(p), by_rows, a + (by_rows ? row * apart : p * AR * kc), apart, c + row * s.c_m, residual};
        };
        const Depth depth{1, kc, NO_OFFSET};
        if (job.packed) {
            s.b = job.packed + kb * NR, s.b_panel = g.K * NR, s.b_k = NR;
            sweep(s, depth, panels.count, panel_at);
        } else {  // B's own rows, and its last, partial panel from a packed copy
            s.b = g.b + kb * g.b_k, s.b_panel = NR, s.b_k = g.b_k;
            s.n1 = n1 / NR * NR;
            sweep(s, depth, panels.count, panel_at);
            if (n1 % NR) {
                float* const to = scratch(SLOT_X, kc * NR);
                pack_panel(g.b + kb * g.b_k + s.n1, g.b_k, 1, n1 - s.n1, kc, to);
                s.b = to, s.b_panel = 0, s.b_k = NR;
                s.n0 = s.n1, s.n1 = n1;
                sweep(s, depth, panels.count, panel_at);
            }
        }
    }
}

// Few rows against columns of B that are contiguous along K.
void dots_task(void* context, i64 index) {
    const GemmJob& job = *static_cast<const GemmJob*>(context);
    const Gemm& g = *job.g;
    const i64 n0 = g.N * index / job.split.n, n1 = g.N * (index + 1) / job.split.n;
    for (i64 n = n0; n < n1;) {
        const i64 columns = n + 4 <= n1 ? 4 : 1;
        const float* const b = g.b + n * g.b_n;
        const float* const bias = g.bias ? g.bias + n : nullptr;
        for (i64 m = 0; m < g.M;) {
            const i64 rows = at_most(DOT_ROWS, g.M - m);
            const float* const a = g.a + m * g.a_m;
            float* const c = g.c + m * g.c_m + n;
            DOTS[rows - 1][columns == 4](g.K, a, g.a_m, b, g.b_n, c, g.c_m, bias);
            m += rows;
        }
        n += columns;
    }
    if (g.residual || g.activation != NONE)
        finish(g.c + n0, g.c_m, g.residual ? g.residual + n0 : nullptr, g.c_m, g.M, n1 - n0, g.activation);
}

void gemm_one(const Gemm& g) {
    if (g.M == 0 || g.N == 0) return;
    GemmJob job{&g, Split(g.M, g.N, g.K), g.packed, nullptr};
    if (!g.packed && g.b_k == 1 && g.a_k == 1 && g.M <= MAX_DOTS) {
        job.split.n = at_most(at_most(4 * threads(), g.N), at_least(1, 2 * g.M * g.N * g.K / 1000000));
        return parallel(job.split.n, dots_task, &job);
    }
    if (!g.packed && !(g.b_n == 1 && g.M <= MR)) {
        float* const packed = scratch(SLOT_B, divide_up(g.N, NR) * NR * g.K);
        pack(g.b, g.b_k, g.b_n, g.N, g.K, packed);
        job.packed = packed;
    }
    if (job.split.k > 1) job.parts = scratch(SLOT_C, job.split.k * g.M * g.N);
    parallel(job.split.m * job.split.n * job.split.k, gemm_task, &job);
    if (job.split.k > 1)
        add_parts(job.parts, job.split.k, g.M * g.N, g.M, g.N, g.c, g.c_m, g.bias, g.residual, g.c_m, g.activation);
}

void gemm(const Gemm& g) {
    i64 batches = 1;
    for (int i = 0; i < g.axes; i++) batches *= g.batch[i];
    auto one = [](void* context, i64 index) {
        Gemm g = *static_cast<const Gemm*>(context);
        g.c += index * g.M * g.c_m;
        for (int i = g.axes - 1; i >= 0; i--) {
            g.a += index % g.batch[i] * g.a_batch[i];
            g.b += index % g.batch[i] * g.b_batch[i];
            index /= g.batch[i];
        }
        gemm_one(g);
    };
    Gemm copy = g;
    if (batches < threads() || 2 * g.M * g.N * g.K * batches < 1000000) {
        for (i64 i = 0; i < batches; i++) one(&copy, i);
    } else {
        parallel(batches, one, &copy);  // what is parallel inside runs on one thread there
    }
}
