// C[m,n] = a_scale[m] * sum over groups g of w_scale[n,g] * sum over the 32 k of g of A[m,k] * W[n,k], W in -8 .. 7, stored as w + 8, which
// is corrected by starting the integer sum of a group at -8 * sum of the group's A.
// layout     W packed [N/NR][K/32][4][NR][4]: 16 bytes of an output's group, low halves then high ones (table.h); scales float16
//            [N/NR][K/32][NR]
// registers  VNNI 7x32: 14 integer sums + 14 float32 sums + 2 of W + 1 of A = 31 of 32. With halves of bytes taken apart in registers
//            6x32: 24 + 4 + 1 of A + 1 mask; AVX2 and SSE 2 rows: 4 + 4 + 4 + 2 + 1 = 15 of 16
// rows       for few (tokens being decoded) W is taken apart in registers, again for each panel of A; for more, a panel of W is taken
//            apart into bytes in L2 and every row uses it
// roof       for few rows the memory that W is read from, else 0.8 of 2 M N K operations: a conversion and an FMA per group and
//            tile vector beside 8 dot products

constexpr i64 DIRECT_PANELS = 3;

struct Tile4 {
    float* c;
    i64 c_m, n;
    const int32_t* start;  // by row, `groups` apart: what each group's sum begins at
    const float *a_scale, *bias;
};

template <int R, bool HALVES>
__attribute__((noinline)) void micro4(i64 groups, const char* a, i64 apart, const uint8_t* w, const f16* scale, const Tile4& tile) {
    vf acc[R][NV] = {};
    constexpr int POINTERS = (R + 2) / 3, CHUNK = NR * 4;
    const char* at[POINTERS];
    UNROLL for (int p = 0; p < POINTERS; p++) at[p] = a + 3 * p * apart;
    for (i64 g = 0; g < groups; g++) {
        vi sum[R][NV];
        UNROLL for (int i = 0; i < R; i++)
            UNROLL for (int j = 0; j < NV; j++) sum[i][j] = splat_int(tile.start[i * groups + g]);
        const auto add = [&](int quad, const Codes (&x)[NV]) INLINE_LAMBDA {
            UNROLL for (int i = 0; i < R; i++) {
                vi y[QUAD / 4];
                load_quad(at[i / 3] + i % 3 * apart + quad * QUAD, y);
                UNROLL for (int j = 0; j < NV; j++) add_dots(sum[i][j], x[j], y);
            }
        };
        if constexpr (HALVES) {
            UNROLL for (int t = 0; t < 4; t++) {
                UNROLL for (int i = 0; i < CHUNK; i += 64) __builtin_prefetch(w + 8192 + t * CHUNK + i, 0, KEPT<R>);
                Codes low[NV], high[NV];
                UNROLL for (int j = 0; j < NV; j++) {
                    const vi both = load_ints(w + t * CHUNK + j * W * 4);
                    low[j] = codes(both & 0x0F0F0F0F), high[j] = codes(shift_right(both, 4) & 0x0F0F0F0F);
                }
                add(t, low);
                add(t + 4, high);
            }
            w += 4 * CHUNK;
        } else {
            UNROLL for (int t = 0; t < 8; t++) {
                Codes x[NV];
                UNROLL for (int j = 0; j < NV; j++) x[j] = codes(load_ints(w + t * CHUNK + j * W * 4));
                add(t, x);
            }
            w += 8 * CHUNK;
        }
        UNROLL for (int j = 0; j < NV; j++) {
            const vf s = load(scale + j * W);
            UNROLL for (int i = 0; i < R; i++) acc[i][j] += to_float(sum[i][j]) * s;
        }
        scale += NR;
        UNROLL for (int p = 0; p < POINTERS; p++) {
            at[p] += 8 * QUAD;
            asm("" : "+r"(at[p]));
        }
    }
    UNROLL for (int j = 0; j < NV; j++) {
        const i64 n = at_least(tile.n - j * W, 0);
        const vf bias = tile.bias ? load_first(tile.bias + j * W, n) : vf{};
        UNROLL for (int i = 0; i < R; i++) store_first(tile.c + i * tile.c_m + j * W, acc[i][j] * tile.a_scale[i] + bias, n);
    }
}

using Micro4 = void (*)(i64, const char*, i64, const uint8_t*, const f16*, const Tile4&);
struct Micros4 {
    Micro4 of[ROWS4];
    Micro4 direct[ROWS4_DIRECT];
};
template <int R>
constexpr void fill4(Micros4& m) {
    m.of[R - 1] = micro4<R, false>;
    if constexpr (R <= ROWS4_DIRECT) m.direct[R - 1] = micro4<R, true>;
    if constexpr (R > 1) fill4<R - 1>(m);
}
constexpr Micros4 make_micros4() {
    Micros4 m{};
    fill4<ROWS4>(m);
    return m;
}
constexpr Micros4 MICRO4 = make_micros4();

// A panel's halves of bytes as bytes: [K/32][8][NR][4].
void take_apart(const uint8_t* w, i64 groups, uint8_t* to) {
    constexpr i64 HALF = NR * 4 * 4;
    for (i64 g = 0; g < groups; g++, w += HALF, to += 2 * HALF) {
        UNROLL for (i64 i = 0; i < HALF; i += W * 4) {
            __builtin_prefetch(w + 4096 + i);
            const vi both = load_ints(w + i);
            store_ints(to + i, both & 0x0F0F0F0F);
            store_ints(to + HALF + i, shift_right(both, 4) & 0x0F0F0F0F);
        }
    }
}

void product4(const QuantLinear& q, const Rows8& a, i64 rows, float* c, i64 n0, i64 n1) {
    const bool direct = rows <= DIRECT_PANELS * ROWS4_DIRECT;
    const Panels panels(rows, direct ? ROWS4_DIRECT : ROWS4);
    const i64 groups = q.K / GROUP;
    uint8_t* const bytes = direct ? nullptr : scratch_of<uint8_t>(SLOT_B, q.K * NR + 64);
    for (i64 n = n0; n < n1; n += NR) {
        const i64 columns = at_most(NR, n1 - n);
        const uint8_t* const w = q.w + n / NR * groups * NR * 16;
        const f16* const scale = reinterpret_cast<const f16*>(q.scale4) + n / NR * groups * NR;
        if (!direct) take_apart(w, groups, bytes);
        for (i64 p = 0; p < panels.count; p++) {
            const i64 row = panels.start(p);
            const int count = panels.rows(p);
            const Tile4 tile{c + row * q.N + n, q.N, columns, a.sums + row * groups, a.scale + row, q.bias ? q.bias + n : nullptr};
            const char* const codes = a.codes + row * a.distance;
            if (direct) MICRO4.direct[count - 1](groups, codes, a.distance, w, scale, tile);
            else MICRO4.of[count - 1](groups, codes, a.distance, bytes, scale, tile);
            if (q.residual || q.activation != NONE)
                finish(c + row * q.N + n, q.N, q.residual ? q.residual + (c + row * q.N + n - q.c) : nullptr, q.N, count, columns, q.activation);
        }
    }
}
