// 3x3 convolution at stride 1 by minimal filtering, F(4 x 4, 3 x 3) (Winograd 1980; Lavin & Gray 2016): each tile of M x M = 16 outputs
// is made of T x T inputs, T = M + 2, by T * T = 36 multiplications for each pair of channels instead of 144:
//   Y = A' [sum over c of (G g G') .* (B' d B)] A
// which is one product tiles x channels x outputs for each of the T * T places.
// points     0, +-P = +-sqrt(1/2), +-Q = +-sqrt(2), infinity: rows of B' are the coefficients of the product of (x - q) over the other
//            points q, rows of G are (1, p, p^2) divided by that product at p, columns of A' are (1, p, p^2, p^3). The textbook's 0, +-1,
//            +-2 lose a factor of four more (relative error 6.6e-6 against 2.6e-6 in L2 at 640 channels)
// layout     V, the transformed tiles [T * T][tiles][channels] (rows of A, as gemm.h reads them), U, the transformed weights
//            [T * T][outputs/NR][channels][NR], sums [T * T][tiles][columns]. A power of two between the places would put all 36 stores
//            of a transform into one set of L1 (5 times slower), so they are some lines further apart
// registers  a transform holds T vectors and T results; T * T vectors go through the stack, which is in L1
// cache      many tiles (and U of less than 48 MiB): U is made once, blocks of tiles keep V and sums in L2 or, where U is large, in L3.
//            Else by parts: U is made for one panel of outputs and PART channels at a time and stays in L2, while the next taps are asked
//            for from memory; V of a block of tiles is made first, for all panels, in the order in which they read it. At 1,280 channels
//            and 16 x 16 pixels the one form of U would be 236 MB, to write and to read again
// roof       4 times that of a direct convolution for the products; reaches 2.2 to 2.9 of it
// A NaN or an infinity in x makes every output of each tile that reads it NaN or infinite: tiles reach up to three pixels further than the
// kernel does. What is not finite never becomes finite.

namespace minimal {

constexpr int M = 4, T = M + 2, PLACES = T * T;
constexpr float P = 0.70710678f, Q = 1.41421356f, P2 = 0.5f, Q2 = 2.0f;

INLINE void transform_input(const vf (&d)[T], vf (&v)[T]) {
    const vf p_even = d[4] - Q2 * d[2], p_odd = P * (d[3] - Q2 * d[1]), q_even = d[4] - P2 * d[2], q_odd = Q * (d[3] - P2 * d[1]);
    v[0] = (d[0] + d[4]) - (P2 + Q2) * d[2];
    v[1] = p_even + p_odd, v[2] = p_even - p_odd, v[3] = q_even + q_odd, v[4] = q_even - q_odd;
    v[5] = (d[1] + d[5]) - (P2 + Q2) * d[3];
}
INLINE void transform_filter(const vf (&g)[3], vf (&u)[T]) {
    constexpr float p = 1 / (2 * P2 * (P2 - Q2)), q = 1 / (2 * Q2 * (Q2 - P2));
    const vf p_even = p * g[0] + (p * P2) * g[2], q_even = q * g[0] + (q * Q2) * g[2];
    u[0] = g[0], u[5] = g[2];
    u[1] = p_even + (p * P) * g[1], u[2] = p_even - (p * P) * g[1];
    u[3] = q_even + (q * Q) * g[1], u[4] = q_even - (q * Q) * g[1];
}
INLINE void transform_output(const vf (&m)[T], vf (&y)[M]) {
    const vf p_sum = m[1] + m[2], p_diff = m[1] - m[2], q_sum = m[3] + m[4], q_diff = m[3] - m[4];
    y[0] = m[0] + (p_sum + q_sum), y[1] = P * p_diff + Q * q_diff;
    y[2] = P2 * p_sum + Q2 * q_sum, y[3] = (P * P2) * p_diff + ((Q * Q2) * q_diff + m[5]);
}

constexpr i64 L2_FLOATS = 128 << 10;  // half of 1 MiB
constexpr i64 PART = 64, FEW_TILES = 256, BLOCK_TILES = 128, LARGE_U = 12 << 20, V_FLOATS = 6 << 20;  // the last: V in L3

struct WinogradJob {
    const Conv* c;
    i64 down, across;  // tiles of one image
    i64 tiles() const { return c->batch * down * across; }
};

// The transformed channels k0 .. k1 of `count` tiles from `first` on, to v[place * plane + tile * apart + channel - k0].
void winograd_input(const WinogradJob& job, i64 first, i64 count, i64 k0, i64 k1, i64 apart, i64 plane, float* v) {
    const Conv& c = *job.c;
    for (i64 i = 0; i < count; i++) {
        const i64 tile = first + i, image = tile / (job.down * job.across), h = tile / job.across % job.down * M - c.pad[0];
        const i64 w = tile % job.across * M - c.pad[1];
        const float* const x = c.x + image * c.x_stride[0] + h * c.x_stride[1] + w * c.x_stride[2];
        bool row_in[T], column_in[T];
        bool inside = true;
        for (int t = 0; t < T; t++) {
            row_in[t] = h + t >= 0 && h + t < c.size[0], column_in[t] = w + t >= 0 && w + t < c.size[1];
            inside = inside && row_in[t] && column_in[t];
        }
        for (i64 k = k0; k < k1; k += W) {
            const i64 lanes = k1 - k;
            vf half[T][T];
            UNROLL for (int q = 0; q < T; q++) {
                vf d[T], r[T];
                if (inside && lanes >= W) {
                    UNROLL for (int p = 0; p < T; p++) d[p] = load(x + p * c.x_stride[1] + q * c.x_stride[2] + k);
                } else {
                    for (int p = 0; p < T; p++)
                        d[p] = row_in[p] && column_in[q] ? load_first(x + p * c.x_stride[1] + q * c.x_stride[2] + k, lanes) : vf{};
                }
                transform_input(d, r);
                UNROLL for (int p = 0; p < T; p++) half[p][q] = r[p];
            }
            float* const to = v + i * apart + k - k0;
            UNROLL for (int p = 0; p < T; p++) {
                vf r[T];
                transform_input(half[p], r);
                UNROLL for (int q = 0; q < T; q++) store(to + (p * T + q) * plane, r[q]);
            }
        }
    }
}

// Outputs n0 .. n1 of the tiles, from sums[place * plane + tile * apart + output - n0].
void winograd_output(const WinogradJob& job, i64 first, i64 count, i64 apart, i64 plane, const float* sums, i64 n0, i64 n1) {
    const Conv& c = *job.c;
    for (i64 i = 0; i < count; i++) {
        const i64 tile = first + i, image = tile / (job.down * job.across), h = tile / job.across % job.down * M, w = tile % job.across * M;
        const i64 rows = at_most(M, c.out[0] - h), columns = at_most(M, c.out[1] - w), at = ((image * c.out[0] + h) * c.out[1] + w) * c.outputs;
        for (i64 n = n0; n < n1; n += W) {
            const i64 lanes = n1 - n;
            const float* const from = sums + i * apart + n - n0;
            vf half[M][T];
            UNROLL for (int q = 0; q < T; q++) {
                vf m[T], r[M];
                UNROLL for (int p = 0; p < T; p++) m[p] = load(from + (p * T + q) * plane);
                transform_output(m, r);
                UNROLL for (int p = 0; p < M; p++) half[p][q] = r[p];
            }
            const vf bias = c.bias ? load_first(c.bias + n, lanes) : vf{};
            for (i64 p = 0; p < rows; p++) {
                vf r[M];
                transform_output(half[p], r);
                UNROLL for (int q = 0; q < M; q++) {
                    if (q >= columns) break;
                    const i64 to = at + (p * c.out[1] + q) * c.outputs + n;
                    vf y = r[q] + bias;
                    if (c.residual) y += load_first(c.residual + to, lanes);
                    store_first(c.y + to, activate(y, c.activation), lanes);
                }
            }
        }
    }
}

template <class Tap>
INLINE vf tap_numbers(const Tap* p, int which) {
    if constexpr (NUMBERS<Tap> == 1) return load(p);
    else return (vf)(which ? (vu)load(p) & 0xFFFF0000 : (vu)load(p) << 16);
}

// `count` steps (of one or two channels) of each of 9 taps, which are `apart` from each other, to places that are `plane` apart.
template <class Tap>
void winograd_filter(const Tap* taps, i64 apart, i64 count, float* u, i64 plane) {
    constexpr int PER = NUMBERS<Tap>;
    for (i64 i = 0; i < count * PER; i += W) {
        const int which = i / NR % PER;
        const i64 k = i / (NR * PER) * NR + i % NR;
        vf half[T][3];
        UNROLL for (int q = 0; q < 3; q++) {
            vf g[3], r[T];
            UNROLL for (int p = 0; p < 3; p++) g[p] = tap_numbers(taps + (p * 3 + q) * apart + k, which);
            transform_filter(g, r);
            UNROLL for (int p = 0; p < T; p++) half[p][q] = r[p];
        }
        UNROLL for (int p = 0; p < T; p++) {
            vf r[T];
            transform_filter(half[p], r);
            UNROLL for (int q = 0; q < T; q++) store(u + (p * T + q) * plane + i, r[q]);
        }
    }
}

// ---- U as a whole

struct WholeJob : WinogradJob {
    float* u;
    i64 plane;           // between places of U
    i64 m, n;            // tasks over tiles and over outputs
    i64 block, columns;  // tiles and outputs that are worked on at once
};

void whole_task(void* context, i64 index) {
    const WholeJob& job = *static_cast<const WholeJob*>(context);
    const Conv& c = *job.c;
    const i64 ni = index % job.n, mi = index / job.n, panels_n = divide_up(c.outputs, NR), K = c.channels;
    const i64 t0 = job.tiles() * mi / job.m, t1 = job.tiles() * (mi + 1) / job.m;
    const i64 n0 = panels_n * ni / job.n * NR, n1 = at_most(c.outputs, panels_n * (ni + 1) / job.n * NR);
    const i64 blocks = divide_up(t1 - t0, job.block), most = divide_up(t1 - t0, blocks), k_blocks = divide_up(K, KC);
    const i64 apart = row_distance(K), plane = most * apart + (most % 2 ? 0 : 16);  // odd numbers of cache lines, for all sets of L1
    const i64 width = at_most(job.columns, divide_up(n1 - n0, NR) * NR), sum_plane = most * width + 16;
    float* const v = scratch(SLOT_A, PLACES * plane + W);
    float* const sums = scratch(SLOT_X, PLACES * sum_plane + W);
    for (i64 b = 0; b < blocks; b++) {
        const i64 first = t0 + (t1 - t0) * b / blocks, count = t0 + (t1 - t0) * (b + 1) / blocks - first;
        const Panels panels(count);
        winograd_input(job, first, count, 0, K, apart, plane, v);
        for (i64 n = n0; n < n1; n += width) {
            Sweep s{};
            s.b_panel = K * NR, s.b_k = NR;
            s.n1 = at_most(width, divide_up(n1 - n, NR) * NR);
            s.c_m = width;
            for (int place = 0; place < PLACES; place++) {
                for (i64 block = 0; block < k_blocks; block++) {
                    const i64 k = K * block / k_blocks, kc = K * (block + 1) / k_blocks - k;
                    s.b = job.u + place * job.plane + n * K + k * NR;
                    s.first = block == 0;
                    sweep(s, {1, kc, NO_OFFSET}, panels.count, [&](i64 p) {
                        const i64 row = panels.start(p);
                        const float* const from = v + place * plane + row * apart + k;
                        return Rows{panels.rows(p), true, from, apart, sums + place * sum_plane + row * width, nullptr};
                    });
                }
            }
            winograd_output(job, first, count, width, sum_plane, sums, n, at_most(n1, n + width));
        }
    }
}

// From packed taps (stored as Tap), or from w.
template <class Tap>
void winograd_whole(const WinogradJob& tiling) {
    const Conv& c = *tiling.c;
    const i64 panels_n = divide_up(c.outputs, NR), tiles = tiling.tiles(), team = threads();
    WholeJob job{tiling, nullptr, panels_n * NR * c.channels + 16, 1, 1, 0, 0};
    job.u = scratch(SLOT_B, PLACES * job.plane);
    parallel(panels_n, [](void* context, i64 panel) {
        const WholeJob& j = *static_cast<WholeJob*>(context);
        const i64 size = j.c->channels * NR, steps = size / NUMBERS<Tap>;
        if (j.c->packed)
            return winograd_filter(static_cast<const Tap*>(j.c->packed) + panel * 9 * steps, steps, steps, j.u + panel * size, j.plane);
        float* const taps = scratch(SLOT_X, 9 * size);
        pack_conv_panel(*j.c, panel, taps);
        winograd_filter(taps, size, size, j.u + panel * size, j.plane);
    }, &job);
    job.columns = at_most(panels_n * NR, divide_up(128, NR) * NR);
    const i64 fit = L2_FLOATS / (PLACES * (c.channels + job.columns));
    // where U does not stay in L3 either, it is worth V and sums that leave L2 (1.1 to 1.4 times)
    const i64 many = PLACES * job.plane > 4 << 20 ? at_most(8 * MR, (4 << 20) / (PLACES * c.channels)) : 0;
    job.block = at_most(at_least(at_least(fit, many), 2 * MR), 16 * MR);
    const i64 worth = at_least(1, 2 * tiles * PLACES * c.outputs * c.channels / 1000000);
    if (tiles >= 2 * MR * team) {
        job.m = at_most(worth, divide_up(divide_up(tiles, job.block), team) * team);
    } else {
        job.n = at_most(at_most(team, worth), panels_n);
    }
    parallel(job.m * job.n, whole_task, &job);
}

// ---- U by parts

struct PartsJob : WinogradJob {
    const void* taps;          // packed
    i64 first, count, groups;  // tiles; tasks over them for each panel
    i64 plane;
    float* v;  // [channels/PART][PLACES][count][PART]
    float* part(i64 k) const { return v + k / PART * PLACES * plane; }
};

template <class Tap>
void parts_task(void* context, i64 index) {
    const PartsJob& job = *static_cast<const PartsJob*>(context);
    const Conv& c = *job.c;
    const i64 panel = index / job.groups, group = index % job.groups, K = c.channels, n0 = panel * NR;
    const i64 t0 = job.count * group / job.groups, count = job.count * (group + 1) / job.groups - t0, sum_plane = count * NR + 16;
    constexpr i64 PLANE = PART * NR + 16, LINE = 64 / sizeof(Tap), STEP = NR / NUMBERS<Tap>;  // the last: of taps, for each channel
    const Tap* const taps = static_cast<const Tap*>(job.taps) + panel * 9 * K * STEP;
    float* const u = scratch(SLOT_B, PLACES * PLANE);
    float* const sums = scratch(SLOT_X, PLACES * sum_plane + W);
    const Panels panels(count);
    for (i64 k = 0; k < K; k += PART) {
        const i64 kc = at_most(PART, K - k), lines = at_most(PART, K - k - kc) * STEP / LINE;  // of each of the next taps
        winograd_filter(taps + k * STEP, K * STEP, kc * STEP, u, PLANE);
        for (int place = 0; place < PLACES; place++) {
            for (i64 i = 9 * lines * place / PLACES; i < 9 * lines * (place + 1) / PLACES; i++)
                __builtin_prefetch(taps + i / lines * K * STEP + (k + kc) * STEP + i % lines * LINE, 0, 2);
            Sweep s{};
            s.b = u + place * PLANE, s.b_panel = PLANE, s.b_k = NR;
            s.n1 = NR, s.c_m = NR, s.first = k == 0;
            const float* const v = job.part(k) + place * job.plane + t0 * PART;
            sweep(s, {1, kc, NO_OFFSET}, panels.count, [&](i64 p) {
                const i64 row = panels.start(p);
                return Rows{panels.rows(p), true, v + row * PART, PART, sums + place * sum_plane + row * NR, nullptr};
            });
        }
    }
    winograd_output(job, job.first + t0, count, NR, sum_plane, sums, n0, at_most(c.outputs, n0 + NR));
}

template <class Tap>
void winograd_by_parts(const WinogradJob& tiling) {
    const Conv& c = *tiling.c;
    const i64 panels_n = divide_up(c.outputs, NR), tiles = tiling.tiles(), parts = divide_up(c.channels, PART);
    const i64 blocks = divide_up(tiles, at_least(MR, at_most(BLOCK_TILES, V_FLOATS / (PLACES * parts * PART))));
    PartsJob job{tiling, c.packed, 0, 0, 1, 0, nullptr};
    if (!c.packed) {
        float* const packed = scratch(SLOT_C, panels_n * 9 * c.channels * NR);
        pack_direct(c, packed);
        job.taps = packed;
    }
    for (i64 b = 0; b < blocks; b++) {
        job.first = tiles * b / blocks, job.count = tiles * (b + 1) / blocks - job.first;
        job.groups = at_least(1, at_most(divide_up(threads(), panels_n), job.count / MR));
        job.plane = job.count * PART + 16;
        job.v = scratch(SLOT_A, PLACES * parts * job.plane + W);
        parallel(divide_up(job.count, 16) * parts, [](void* context, i64 index) {
            const PartsJob& j = *static_cast<const PartsJob*>(context);
            const i64 groups = divide_up(j.count, 16), i = index % groups * 16, k = index / groups * PART;
            winograd_input(j, j.first + i, at_most(16, j.count - i), k, at_most(k + PART, j.c->channels), PART, j.plane, j.part(k) + i * PART);
        }, &job);
        parallel(panels_n * job.groups, parts_task<Tap>, &job);
    }
}

template <class Tap>
void winograd(const Conv& c) {
    const WinogradJob job{&c, divide_up(c.out[0], M), divide_up(c.out[1], M)};
    if (job.tiles() <= FEW_TILES || PLACES * c.channels * c.outputs > LARGE_U) return winograd_by_parts<Tap>(job);
    winograd_whole<Tap>(job);
}

}  // namespace minimal
