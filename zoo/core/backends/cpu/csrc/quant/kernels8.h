// C[m,n] = a_scale[m] * w_scale[n] * sum over k of A[m,k] * W[n,k], in integers; W is stored as w + 128, which is corrected by starting
// each sum at -128 * sum over k of A[m,k].
// layout     W packed [N/NR][K/4][NR][4]; A rows of quads (activations.h)
// registers  VNNI 14x32: 28 sums + 2 of W + 1 of A = 31 of 32.  Without: AVX-512 12x32: 24 + 4 + 2 + 1 product; AVX2 and SSE 4 rows:
//            8 + 4 + 2 + 1 = 15 of 16
// cache      as gemm.h: KB x NC bytes of W in half of L2; between blocks of K the integer sums wait in C
// roof       2 M N K operations, 128 per vpdpbusd, for M >= about 32; below, the memory that W is read from

constexpr i64 KB = 4096;

// How long caches keep what of W is asked for, 0 to 3. For one row it is read once, and past the caches they keep what they hold: the
// interpreter, which takes 37 us around a product of 25 to 45 MB that has emptied them, and 30 where it has not.
template <int R>
constexpr int KEPT = R == 1 ? 0 : 3;

struct Tile8 {
    float* c;
    i64 c_m, n;
    const int32_t* start;  // what sums begin at, by row
    const float *a_scale, *w_scale, *bias;
    bool first, last;
    const float* residual;  // its rows c_m apart; null: none
    bool relu;
};

template <int R, int V>
__attribute__((noinline)) void micro8(i64 quads, const char* a, i64 apart, const uint8_t* w, const Tile8& tile) {
    vi acc[R][V];
    float* const c = tile.c;
    if (tile.residual) {  // it comes while the product is made
        UNROLL for (int i = 0; i < R; i++)
            UNROLL for (int j = 0; j < V * W; j += 16) __builtin_prefetch(tile.residual + i * tile.c_m + j);
    }
    UNROLL for (int i = 0; i < R; i++) {
        UNROLL for (int j = 0; j < V; j++) {
            if (tile.first) acc[i][j] = splat_int(tile.start[i]);
            else acc[i][j] = (vi)load_first(c + i * tile.c_m + j * W, at_least(tile.n - j * W, 0));
        }
    }
    constexpr int POINTERS = (R + 2) / 3, STEP = 2;
    const char* at[POINTERS];  // three rows share a pointer, since 14 would not fit the registers
    UNROLL for (int p = 0; p < POINTERS; p++) at[p] = a + 3 * p * apart;
    const auto step = [&](int s) INLINE_LAMBDA {
        Codes x[V];
        UNROLL for (int j = 0; j < V; j++) x[j] = codes(load_ints(w + s * NR * 4 + j * W * 4));
        UNROLL for (int i = 0; i < R; i++) {
            vi y[QUAD / 4];
            load_quad(at[i / 3] + i % 3 * apart + s * QUAD, y);
            UNROLL for (int j = 0; j < V; j++) add_dots(acc[i][j], x[j], y);
        }
    };
    const auto advance = [&](int by) INLINE_LAMBDA {
        w += by * NR * 4;
        UNROLL for (int p = 0; p < POINTERS; p++) {
            at[p] += by * QUAD;
            asm("" : "+r"(at[p]));
        }
    };
    i64 q = 0;
    for (; q + STEP <= quads; q += STEP) {
        UNROLL for (int i = 0; i < STEP * NR * 4; i += 64) __builtin_prefetch(w + 8192 + i, 0, KEPT<R>);
        UNROLL for (int s = 0; s < STEP; s++) step(s);
        advance(STEP);
    }
    if (q < quads) step(0);
    UNROLL for (int j = 0; j < V; j++) {
        const i64 n = at_least(tile.n - j * W, 0);
        const vf scale = tile.last ? load_first(tile.w_scale + j * W, n) : vf{};
        const vf bias = tile.last && tile.bias ? load_first(tile.bias + j * W, n) : vf{};
        UNROLL for (int i = 0; i < R; i++) {
            vf y = (vf)acc[i][j];
            if (tile.last) y = to_float(acc[i][j]) * (scale * tile.a_scale[i]) + bias;
            if (tile.residual) y += load_first(tile.residual + i * tile.c_m + j * W, n);
            if (tile.relu) y = select(y < 0.0f, vf{}, y);
            store_first(c + i * tile.c_m + j * W, y, n);
        }
    }
}

using Micro8 = void (*)(i64, const char*, i64, const uint8_t*, const Tile8&);
struct Micros8 {
    Micro8 of[ROWS8][NV];
};
template <int R>
constexpr void fill8(Micros8& m) {
    m.of[R - 1][0] = micro8<R, 1>;
    m.of[R - 1][1] = micro8<R, 2>;
    if constexpr (R > 1) fill8<R - 1>(m);
}
constexpr Micros8 make_micros8() {
    Micros8 m{};
    fill8<ROWS8>(m);
    return m;
}
constexpr Micros8 MICRO8 = make_micros8();

// Rows 0 .. rows - 1 of A, whose product goes to c, with columns n0 .. n1 of W; n0 is where a panel starts.
void product8(const QuantLinear& q, const Rows8& a, i64 rows, float* c, i64 n0, i64 n1) {
    const Panels panels(rows, ROWS8);
    const i64 quads = divide_up(q.K, 4);
    // one panel: nothing of W is used twice. A few: each line of W comes once from memory, then from L1
    const i64 kb = panels.count == 1 ? at_least(quads, 1) : panels.count <= 4 ? 512 / 4 : KB / 4;
    const i64 nc = panels.count <= 4 ? NR : at_least(4, (512 << 10) / (at_least(1, at_most(kb, quads)) * 4 * NR)) * NR;
    for (i64 nb = n0; nb < n1; nb += nc) {
        const i64 end = at_most(n1, nb + nc);
        for (i64 k = 0; k < at_least(quads, 1); k += kb) {
            const bool last = k + kb >= quads;
            for (i64 p = 0; p < panels.count; p++) {
                const i64 row = panels.start(p);
                for (i64 n = nb; n < end; n += NR) {
                    float* const to = c + row * q.N + n;
                    const float* const residual = last && q.residual ? q.residual + (to - q.c) : nullptr;
                    const Tile8 tile{to, q.N, at_most(NR, end - n), a.sums + row, a.scale + row, q.scale8 + n,
                                     q.bias ? q.bias + n : nullptr, k == 0, last, residual, last && q.activation == RELU};
                    MICRO8.of[panels.rows(p) - 1][tile.n > W](at_most(kb, quads - k), a.codes + row * a.distance + k * QUAD, a.distance,
                                                              q.w + (n / NR * quads + k) * NR * 4, tile);
                }
                if (last && q.activation != NONE && q.activation != RELU)
                    finish(c + row * q.N + nb, q.N, nullptr, 0, panels.rows(p), end - nb, q.activation);
            }
        }
    }
}
