// C[M,N] = act(A[M,K] * B[K,N] + bias[N] + residual[M,N]).  A and C float32; B float32, bfloat16 or float16, widened in registers
// layout     B packed [N/NR][K][NR]. A as it is where its rows are contiguous; the micro-kernel reads one number of each row
//            per step. Panels have at most MR rows and are balanced (15 rows: 8 + 7, not 14 + 1)
// registers  AVX-512 14x32: 28 accumulators + 2 of B + 1 broadcast = 31 of 32;  AVX2 6x16: 12 + 2 + 1 = 15 of 16;
//            NEON 8x8: 16 + 2 + 1 = 19 of 32 (8x12 would need N in twelves);  SSE 4x8: 8 + 2 + 1 = 11 of 16
// cache      KC x NC of B stays in half of L2 (480 KiB) while panels of A (MR x KC) pass through L1. Rows of A whose distance is
//            a multiple of 2 KiB would all fall into the same few sets of L1 (-30 %): they are copied
// loops      K blocks > N blocks > panels of A > panels of B
// pairs      bfloat16 where the processor has vdpbf16ps: all of this with two numbers of K in the place of one (simd.h), half as many
//            steps and bytes; A is rounded to bfloat16 by its task, as rows are copied. Reaches 0.92 of twice the FMA roof at
//            512x4096x4096, and 0.82 at 4096x320x2880, where A alone is 47 MB
// roof       2 M N K operations for M >= about 16; below, the memory that B is read from: for up to three panels of A the loops are
//            panels of B > short blocks of K > panels of A, so that each line of B comes once from memory and then from L1
// The order of additions does not depend on the number of threads, so neither does any bit of the result.

#include "pack.h"

#include "micro.h"

constexpr i64 KC = 768, NC = 160;

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
template <class T>
struct SweepOf {
    const T* b;      // first of the rows of panel 0; panels are b_panel apart, rows b_k
    i64 b_panel, b_k;
    i64 n0, n1;
    i64 c_m;  // of the residual too
    const float* bias;
    int activation;
    bool first, last;
    bool few;  // the whole product has at most FEW rows
};
using Sweep = SweepOf<float>;

template <class T, class PanelAt>
void sweep(const SweepOf<T>& s, const Depth& depth, i64 panels, const PanelAt& panel_at) {
    for (i64 nb = s.n0; nb < s.n1; nb += NC) {
        const i64 end = at_most(s.n1, nb + NC);
        for (i64 p = 0; p < panels; p++) {
            const Rows rows = panel_at(p);
            for (i64 n = nb; n < end; n += NR) {
                const i64 columns = at_most(NR, end - n);
                const auto& micros = s.few ? MICRO<T>.few[rows.by_rows] : MICRO<T>.of[rows.by_rows];
                const float* const residual = s.last && rows.residual ? rows.residual + n : nullptr;
                const bool relu = s.last && s.activation == RELU;
                const Tile tile{rows.c + n, s.c_m, columns, s.bias ? s.bias + n : nullptr, !s.first, residual, relu};
                micros[rows.count - 1][columns > W](depth, rows.a, rows.apart, s.b + n / NR * s.b_panel, s.b_k, tile);
            }
            if (s.last && s.activation != NONE && s.activation != RELU)
                finish(rows.c + nb, s.c_m, nullptr, 0, rows.count, end - nb, s.activation);
        }
    }
}

// The same for a few panels that are rows or packed, and all of K: short blocks of K, whose part of B waits in L1 for the next panel.
constexpr i64 FEW_PANELS = 3, SHORT = 64;
template <class T, class PanelAt>
void few_sweep(const SweepOf<T>& s, i64 K, i64 panels, const PanelAt& panel_at) {
    Rows rows[FEW_PANELS];
    for (i64 p = 0; p < panels; p++) rows[p] = panel_at(p);
    float sums[FEW_PANELS][MR * NR];
    for (i64 n = s.n0; n < s.n1; n += NR) {
        const i64 columns = at_most(NR, s.n1 - n);
        i64 k = 0;
        do {  // once for K = 0 too
            const Depth depth{1, at_most(SHORT, K - k), NO_OFFSET};
            for (i64 p = 0; p < panels; p++) {
                const Rows& r = rows[p];
                const Tile tile{sums[p], NR, columns, s.bias ? s.bias + n : nullptr, k > 0};
                const T* const b = s.b + n / NR * s.b_panel + k * NR;
                MICRO<T>.of[r.by_rows][r.count - 1][columns > W](depth, r.a + k * (r.by_rows ? 1 : AR), r.apart, b, NR, tile);
            }
            k += SHORT;
        } while (k < K);
        for (i64 p = 0; p < panels; p++) {
            const Rows& r = rows[p];
            for (int i = 0; i < r.count; i++)
                UNROLL for (int j = 0; j < NR; j += W)
                    store_first(r.c + i * s.c_m + n + j, load(sums[p] + i * NR + j), at_least(columns - j, 0));
            if (r.residual || s.activation != NONE)
                finish(r.c + n, s.c_m, r.residual ? r.residual + n : nullptr, s.c_m, r.count, columns, s.activation);
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

template <class T>
struct GemmJob {
    const Gemm* g;
    Split split;
    const T* b;
    const T* packed;
    float* parts;
};

template <class T>
void gemm_task(void* context, i64 index) {
    const GemmJob<T>& job = *static_cast<const GemmJob<T>*>(context);
    const Gemm& g = *job.g;
    const i64 ki = index % job.split.k, ni = index / job.split.k % job.split.n, mi = index / job.split.k / job.split.n;
    const i64 m0 = g.M * mi / job.split.m, m1 = g.M * (mi + 1) / job.split.m;
    const i64 k0 = g.K * ki / job.split.k, k1 = g.K * (ki + 1) / job.split.k;
    const i64 all = divide_up(g.N, NR);
    const i64 n0 = all * ni / job.split.n * NR, n1 = at_most(g.N, all * (ni + 1) / job.split.n * NR);

    const Panels panels(m1 - m0);
    // one panel: nothing of B would be used twice, so all of K at once; else blocks of nearly equal size
    const bool split = job.split.k > 1, few_panels = job.packed && !split && panels.count > 1 && panels.count <= FEW_PANELS;
    const i64 blocks = job.packed && (panels.count == 1 || few_panels) ? 1 : at_least(1, divide_up(k1 - k0, job.packed ? KC : KC / 2));
    for (i64 block = 0; block < blocks; block++) {
        const i64 kb = k0 + (k1 - k0) * block / blocks, kc = k0 + (k1 - k0) * (block + 1) / blocks - kb;
        const float* a = g.a + m0 * g.a_m + kb * NUMBERS<T> * g.a_k;
        i64 apart = g.a_m;
        const bool rounded = NUMBERS<T> > 1, by_rows = g.a_k == 1 || rounded;
        if (!by_rows) {
            apart = AR;
            float* const to = scratch(SLOT_A, panels.count * AR * kc);
            for (i64 p = 0; p < panels.count; p++)
                pack_a(a + panels.start(p) * g.a_m, g.a_m, g.a_k, panels.rows(p), kc, to + p * AR * kc);
            a = to;
        } else if (rounded || (m1 - m0 > 1 && apart * 4 % 2048 == 0)) {
            apart = row_distance(kc);
            float* const to = scratch(SLOT_A, (m1 - m0) * apart + W);
            for (i64 i = 0; i < m1 - m0; i++) copy_steps<T>(a + i * g.a_m, g.a_k, kc, to + i * apart);
            a = to;
        }
        SweepOf<T> s{};
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
        if (few_panels) {
            s.b = job.packed + kb * NR, s.b_panel = g.K * NR;
            few_sweep(s, kc, panels.count, panel_at);
        } else if (job.packed) {
            s.b = job.packed + kb * NR, s.b_panel = g.K * NR, s.b_k = NR;
            sweep(s, depth, panels.count, panel_at);
        } else {  // B's own rows, and its last, partial panel from a packed copy
            s.b = job.b + kb * g.b_k, s.b_panel = NR, s.b_k = g.b_k;
            s.n1 = n1 / NR * NR;
            sweep(s, depth, panels.count, panel_at);
            if (n1 % NR) {
                T* const to = scratch_of<T>(SLOT_X, kc * NR);
                pack_panel(job.b + kb * g.b_k + s.n1, g.b_k, 1, n1 - s.n1, kc, to);
                s.b = to, s.b_panel = 0, s.b_k = NR;
                s.n0 = s.n1, s.n1 = n1;
                sweep(s, depth, panels.count, panel_at);
            }
        }
    }
}

// Few rows against columns of B that are contiguous along K.
template <class T>
void dots_task(void* context, i64 index) {
    const GemmJob<T>& job = *static_cast<const GemmJob<T>*>(context);
    const Gemm& g = *job.g;
    const i64 n0 = g.N * index / job.split.n, n1 = g.N * (index + 1) / job.split.n;
    const Panels panels(g.M, DOT_ROWS);
    const float* a = g.a;
    i64 a_m = g.a_m;
    if (NUMBERS<T> > 1) {
        a_m = row_distance(g.K);
        float* const to = scratch(SLOT_A, g.M * a_m + W);
        for (i64 i = 0; i < g.M; i++) copy_steps<T>(g.a + i * g.a_m, 1, g.K, to + i * a_m);
        a = to;
    }
    for (i64 n = n0; n < n1;) {
        const i64 columns = n + 4 <= n1 && g.M > 1 ? 4 : 1;
        const float* const bias = g.bias ? g.bias + n : nullptr;
        for (i64 p = 0; p < panels.count; p++) {
            const i64 m = panels.start(p);
            const Dots<T> dots = g.M == 1 ? DOTS<T>.one : DOTS<T>.of[panels.rows(p) - 1][columns == 4];
            dots(g.K, a + m * a_m, a_m, job.b + n * g.b_n, g.b_n, g.c + m * g.c_m + n, g.c_m, bias);
        }
        n += columns;
    }
    if (g.residual || g.activation != NONE)
        finish(g.c + n0, g.c_m, g.residual ? g.residual + n0 : nullptr, g.c_m, g.M, n1 - n0, g.activation);
}

// One product whose B is packed, or so few rows that B is read as it lies.
template <class T>
void run_gemm(const Gemm& g, const T* b, const T* packed) {
    GemmJob<T> job{&g, Split(g.M, g.N, g.K), b, packed, nullptr};
    if (!packed && g.b_k == 1 && g.a_k == 1 && g.M <= MAX_DOTS) {
        job.split.n = at_most(at_most(4 * threads(), g.N), at_least(1, 2 * g.M * g.N * g.K / 1000000));
        return parallel(job.split.n, dots_task<T>, &job);
    }
    if (job.split.k > 1) job.parts = scratch(SLOT_C, job.split.k * g.M * g.N);
    parallel(job.split.m * job.split.n * job.split.k, gemm_task<T>, &job);
    if (job.split.k > 1)
        add_parts(job.parts, job.split.k, g.M * g.N, g.M, g.N, g.c, g.c_m, g.bias, g.residual, g.c_m, g.activation);
}

template <class T>
void gemm_of(const Gemm& g) {
    const T *const b = static_cast<const T*>(g.b), *const packed = static_cast<const T*>(g.packed);
    if (packed || (g.b_k == 1 && g.a_k == 1 && g.M <= MAX_DOTS) || (g.b_n == 1 && g.M <= MR)) return run_gemm(g, b, packed);
    // B is packed by pieces of its columns, which wait in L3 and not in memory
    constexpr i64 PIECE = (8 << 20) / sizeof(T);
    const i64 columns = at_least(NR, PIECE / at_least(1, g.K) / NR * NR);
    for (i64 n = 0; n < g.N; n += columns) {
        Gemm part = g;
        part.N = at_most(columns, g.N - n);
        part.c = g.c + n;
        if (g.bias) part.bias = g.bias + n;
        if (g.residual) part.residual = g.residual + n;
        T* const to = scratch_of<T>(SLOT_B, divide_up(part.N, NR) * NR * g.K);
        pack(b + n * g.b_n, g.b_k, g.b_n, part.N, g.K, to);
        run_gemm(part, b, to);
    }
}

void gemm_one(const Gemm& g) {  // of float32
    if (g.M > 0 && g.N > 0) gemm_of<float>(g);
}
