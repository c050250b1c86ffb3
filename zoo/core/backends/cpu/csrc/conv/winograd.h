// 3x3 convolution at stride 1 by minimal filtering, F(M x M, 3 x 3) (Winograd 1980; Lavin & Gray 2016): each tile of M x M outputs
// is made of T x T inputs, T = M + 2, by T * T multiplications for each pair of channels instead of 9 M M:
//   Y = A' [sum over c of (G g G') .* (B' d B)] A      M = 2: 2.25 times fewer, M = 4: 4 times fewer
// which is one product tiles x channels x outputs for each of the T * T places.
// points     M = 2: 0, 1, -1, infinity.  M = 4: 0, +-sqrt(1/2), +-sqrt(2), infinity. The textbook's 0, +-1, +-2 lose a factor of
//            four more (relative error 6.6e-6 against 2.6e-6 in L2 at 640 channels)
// layout     V [T * T][tiles][channels] (rows of A, as gemm.h reads them), U [T * T][outputs/NR][channels][NR], sums
//            [T * T][tiles][columns]; transforms run on W channels at once
// registers  a transform holds T vectors and T results; T * T vectors go through the stack, which is in L1
// cache      a block of tiles keeps V and sums in L2 where U is small; where U is large, more tiles are taken for each reading of it
// roof       M M 9 / (T T) times that of a direct convolution for the products; reaches 1.3 to 1.6 of it at M = 4
// A NaN or an infinity in x makes every output of each tile that reads it NaN or infinite: tiles reach one pixel (M = 2) to three
// (M = 4) further than the kernel does. What is not finite never becomes finite.

template <int M>
struct Winograd;

template <>
struct Winograd<2> {
    static constexpr int T = 4;
    INLINE static void input(const vf (&d)[4], vf (&v)[4]) { v[0] = d[0] - d[2], v[1] = d[1] + d[2], v[2] = d[2] - d[1], v[3] = d[3] - d[1]; }
    INLINE static void filter(const vf (&g)[3], vf (&u)[4]) {
        const vf even = 0.5f * (g[0] + g[2]), odd = 0.5f * g[1];
        u[0] = g[0], u[1] = even + odd, u[2] = even - odd, u[3] = g[2];
    }
    INLINE static void output(const vf (&m)[4], vf (&y)[2]) { y[0] = m[0] + (m[1] + m[2]), y[1] = (m[1] - m[2]) + m[3]; }
};

// Finite points 0, +-P, +-Q: rows of B' are the coefficients of the product of (x - q) over the other points q, rows of G are
// (1, p, p^2) divided by that product at p, columns of A' are (1, p, p^2, p^3).
template <>
struct Winograd<4> {
    static constexpr int T = 6;
    static constexpr float P = 0.70710678f, Q = 1.41421356f, P2 = 0.5f, Q2 = 2.0f;
    INLINE static void input(const vf (&d)[6], vf (&v)[6]) {
        const vf p_even = d[4] - Q2 * d[2], p_odd = P * (d[3] - Q2 * d[1]), q_even = d[4] - P2 * d[2], q_odd = Q * (d[3] - P2 * d[1]);
        v[0] = (d[0] + d[4]) - (P2 + Q2) * d[2];
        v[1] = p_even + p_odd, v[2] = p_even - p_odd, v[3] = q_even + q_odd, v[4] = q_even - q_odd;
        v[5] = (d[1] + d[5]) - (P2 + Q2) * d[3];
    }
    INLINE static void filter(const vf (&g)[3], vf (&u)[6]) {
        constexpr float p = 1 / (2 * P2 * (P2 - Q2)), q = 1 / (2 * Q2 * (Q2 - P2));
        const vf p_even = p * g[0] + (p * P2) * g[2], q_even = q * g[0] + (q * Q2) * g[2];
        u[0] = g[0], u[5] = g[2];
        u[1] = p_even + (p * P) * g[1], u[2] = p_even - (p * P) * g[1];
        u[3] = q_even + (q * Q) * g[1], u[4] = q_even - (q * Q) * g[1];
    }
    INLINE static void output(const vf (&m)[6], vf (&y)[4]) {
        const vf p_sum = m[1] + m[2], p_diff = m[1] - m[2], q_sum = m[3] + m[4], q_diff = m[3] - m[4];
        y[0] = m[0] + (p_sum + q_sum), y[1] = P * p_diff + Q * q_diff;
        y[2] = P2 * p_sum + Q2 * q_sum, y[3] = (P * P2) * p_diff + ((Q * Q2) * q_diff + m[5]);
    }
};

constexpr i64 L2_FLOATS = 128 << 10;  // half of 1 MiB

struct WinogradJob {
    const Conv* c;
    const float* u;
    i64 down, across;  // tiles of one image
    i64 tiles() const { return c->batch * down * across; }
    i64 m, n;             // tasks over tiles and over outputs
    i64 block, columns;   // tiles and outputs that are worked on at once
};

// The transformed input of `count` tiles from `first` on, to v[place * plane + tile * apart + channel].
template <int M>
void winograd_input(const WinogradJob& job, i64 first, i64 count, i64 apart, i64 plane, float* v) {
    constexpr int T = Winograd<M>::T;
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
        for (i64 k = 0; k < c.channels; k += W) {
            const i64 lanes = c.channels - k;
            vf half[T][T];
            UNROLL for (int q = 0; q < T; q++) {
                vf d[T], r[T];
                if (inside && lanes >= W) {
                    UNROLL for (int p = 0; p < T; p++) d[p] = load(x + p * c.x_stride[1] + q * c.x_stride[2] + k);
                } else {
                    for (int p = 0; p < T; p++)
                        d[p] = row_in[p] && column_in[q] ? load_first(x + p * c.x_stride[1] + q * c.x_stride[2] + k, lanes) : vf{};
                }
                Winograd<M>::input(d, r);
                UNROLL for (int p = 0; p < T; p++) half[p][q] = r[p];
            }
            float* const to = v + i * apart + k;
            UNROLL for (int p = 0; p < T; p++) {
                vf r[T];
                Winograd<M>::input(half[p], r);
                UNROLL for (int q = 0; q < T; q++) store(to + (p * T + q) * plane, r[q]);
            }
        }
    }
}

// Outputs n0 .. n1 of the tiles, from sums[place * plane + tile * apart + output - n0].
template <int M>
void winograd_output(const WinogradJob& job, i64 first, i64 count, i64 apart, i64 plane, const float* sums, i64 n0, i64 n1) {
    constexpr int T = Winograd<M>::T;
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
                Winograd<M>::output(m, r);
                UNROLL for (int p = 0; p < M; p++) half[p][q] = r[p];
            }
            const vf bias = c.bias ? load_first(c.bias + n, lanes) : vf{};
            for (i64 p = 0; p < rows; p++) {
                vf r[M];
                Winograd<M>::output(half[p], r);
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

template <int M>
void winograd_task(void* context, i64 index) {
    constexpr int T = Winograd<M>::T;
    const WinogradJob& job = *static_cast<const WinogradJob*>(context);
    const Conv& c = *job.c;
    const i64 ni = index % job.n, mi = index / job.n, panels_n = divide_up(c.outputs, NR), K = c.channels;
    const i64 t0 = job.tiles() * mi / job.m, t1 = job.tiles() * (mi + 1) / job.m;
    const i64 n0 = panels_n * ni / job.n * NR, n1 = at_most(c.outputs, panels_n * (ni + 1) / job.n * NR);
    const i64 blocks = divide_up(t1 - t0, job.block), most = divide_up(t1 - t0, blocks), k_blocks = divide_up(K, KC);
    const i64 apart = row_distance(K), plane = most * apart + (most % 2 ? 0 : 16);  // odd numbers of cache lines, for all sets of L1
    const i64 width = at_most(job.columns, divide_up(n1 - n0, NR) * NR), sum_plane = most * width + 16;
    float* const v = scratch(SLOT_A, T * T * plane + W);
    float* const sums = scratch(SLOT_X, T * T * sum_plane + W);
    for (i64 b = 0; b < blocks; b++) {
        const i64 first = t0 + (t1 - t0) * b / blocks, count = t0 + (t1 - t0) * (b + 1) / blocks - first;
        const Panels panels(count);
        winograd_input<M>(job, first, count, apart, plane, v);
        for (i64 n = n0; n < n1; n += width) {
            Sweep s{};
            s.b_panel = K * NR, s.b_k = NR;
            s.n1 = at_most(width, divide_up(n1 - n, NR) * NR);
            s.c_m = width;
            for (int place = 0; place < T * T; place++) {
                const auto panel_at = [&](i64 k) {
                    return [&, k](i64 p) {
                        const i64 row = panels.start(p);
                        const float* const from = v + place * plane + row * apart + k;
                        return Rows{panels.rows(p), true, from, apart, sums + place * sum_plane + row * width, nullptr};
                    };
                };
                // each line of U once from memory, then from L1: 1.1 times as fast at 512 channels, 0.9 at 64 to 256
                if (K >= 512 && panels.count > 1 && panels.count <= FEW_PANELS) {
                    s.b = job.u + (place * panels_n + n / NR) * K * NR;
                    few_sweep(s, K, panels.count, panel_at(0));
                    continue;
                }
                for (i64 block = 0; block < k_blocks; block++) {
                    const i64 k = K * block / k_blocks, kc = K * (block + 1) / k_blocks - k;
                    s.b = job.u + (place * panels_n + n / NR) * K * NR + k * NR;
                    s.first = block == 0;
                    sweep(s, {1, kc, NO_OFFSET}, panels.count, panel_at(k));
                }
            }
            winograd_output<M>(job, first, count, width, sum_plane, sums, n, at_most(n1, n + width));
        }
    }
}

template <class Tap>
INLINE vf tap_numbers(const Tap* p, int which) {
    if constexpr (NUMBERS<Tap> == 1) return load(p);
    else return (vf)(which ? (vu)load(p) & 0xFFFF0000 : (vu)load(p) << 16);
}

// `count` steps (of one or two channels) of each of 9 taps, which are `apart` from each other, to T * T places that are `plane` apart.
template <int M, class Tap>
void winograd_filter(const Tap* taps, i64 apart, i64 count, float* u, i64 plane) {
    constexpr int T = Winograd<M>::T, PER = NUMBERS<Tap>;
    for (i64 i = 0; i < count * PER; i += W) {
        const int which = i / NR % PER;
        const i64 k = i / (NR * PER) * NR + i % NR;
        vf half[T][3];
        UNROLL for (int q = 0; q < 3; q++) {
            vf g[3], r[T];
            UNROLL for (int p = 0; p < 3; p++) g[p] = tap_numbers(taps + (p * 3 + q) * apart + k, which);
            Winograd<M>::filter(g, r);
            UNROLL for (int p = 0; p < T; p++) half[p][q] = r[p];
        }
        UNROLL for (int p = 0; p < T; p++) {
            vf r[T];
            Winograd<M>::filter(half[p], r);
            UNROLL for (int q = 0; q < T; q++) store(u + (p * T + q) * plane + i, r[q]);
        }
    }
}

// U of all panels of outputs, from packed taps (stored as T), or from w.
template <int M, class T>
void winograd_pack(const Conv& c, float* u) {
    struct Job {
        const Conv* c;
        float* u;
    } job{&c, u};
    parallel(divide_up(c.outputs, NR), [](void* context, i64 panel) {
        const Job& j = *static_cast<Job*>(context);
        const i64 size = j.c->channels * NR, plane = divide_up(j.c->outputs, NR) * size;
        const i64 steps = size / NUMBERS<T>;
        if (j.c->taps) return winograd_filter<M>(static_cast<const T*>(j.c->packed) + panel * 9 * steps, steps, steps, j.u + panel * size, plane);
        float* const taps = scratch(SLOT_X, 9 * size);
        pack_conv_panel(*j.c, panel, taps);
        winograd_filter<M>(taps, size, size, j.u + panel * size, plane);
    }, &job);
}

// Where U would be large (36/9 of the weights: it comes from memory at every call, if it is kept at all), it is made from the packed
// taps for one panel of outputs and FUSED_K channels at a time, and stays in L2; V of a block of tiles is made first, for all panels.
// At 1,280 channels and 16 x 16 pixels that is as fast as reading U, and takes none of its 236 MB.
constexpr i64 FUSED_K = 128, FUSED_TILES = 128, FUSED_V = 6 << 20;  // the last in floats: V in L3

struct FusedJob {
    WinogradJob w;
    i64 first, count, apart, plane;
    float* v;
};

template <class T>
void fused_task(void* context, i64 panel) {
    constexpr int M = 4, S = Winograd<M>::T;
    const FusedJob& job = *static_cast<const FusedJob*>(context);
    const Conv& c = *job.w.c;
    const i64 K = c.channels, sum_plane = job.count * NR + 16, n0 = panel * NR;
    constexpr i64 STEP = NR / NUMBERS<T>;  // of packed taps, for each channel
    const T* const taps = static_cast<const T*>(c.packed) + panel * 9 * K * STEP;
    float* const u = scratch(SLOT_B, S * S * FUSED_K * NR);
    float* const sums = scratch(SLOT_X, S * S * sum_plane + W);
    const Panels panels(job.count);
    for (i64 k = 0; k < K; k += FUSED_K) {
        const i64 kc = at_most(FUSED_K, K - k);
        winograd_filter<M>(taps + k * STEP, K * STEP, kc * STEP, u, kc * NR);
        for (int place = 0; place < S * S; place++) {
            Sweep s{};
            s.b = u + place * kc * NR, s.b_panel = kc * NR, s.b_k = NR;
            s.n1 = NR, s.c_m = NR, s.first = k == 0;
            sweep(s, {1, kc, NO_OFFSET}, panels.count, [&](i64 p) {
                const i64 row = panels.start(p);
                const float* const from = job.v + place * job.plane + row * job.apart + k;
                return Rows{panels.rows(p), true, from, job.apart, sums + place * sum_plane + row * NR, nullptr};
            });
        }
    }
    winograd_output<M>(job.w, job.first, job.count, NR, sum_plane, sums, n0, at_most(c.outputs, n0 + NR));
}

template <class T>
void winograd_fused(const Conv& c) {
    constexpr int M = 4, S = Winograd<M>::T;
    FusedJob job{{&c, nullptr, divide_up(c.out[0], M), divide_up(c.out[1], M), 1, 1, 0, 0}, 0, 0, row_distance(c.channels), 0, nullptr};
    const i64 tiles = job.w.tiles(), most = at_least(MR, at_most(FUSED_TILES, FUSED_V / (S * S * c.channels)));
    const i64 blocks = divide_up(tiles, most);
    for (i64 b = 0; b < blocks; b++) {
        job.first = tiles * b / blocks, job.count = tiles * (b + 1) / blocks - job.first;
        job.plane = job.count * job.apart + 16;
        job.v = scratch(SLOT_A, S * S * job.plane + W);
        parallel(divide_up(job.count, 4), [](void* context, i64 i) {
            const FusedJob& j = *static_cast<const FusedJob*>(context);
            winograd_input<M>(j.w, j.first + 4 * i, at_most(4, j.count - 4 * i), j.apart, j.plane, j.v + 4 * i * j.apart);
        }, &job);
        parallel(divide_up(c.outputs, NR), fused_task<T>, &job);
    }
}

template <int M, class Tap>
void winograd(const Conv& c) {
    constexpr int T = Winograd<M>::T;
    const i64 panels_n = divide_up(c.outputs, NR), u_size = T * T * panels_n * NR * c.channels;
    const float* u = static_cast<const float*>(c.packed);
    if (!u || c.taps) {
        float* const made = scratch(SLOT_B, u_size);
        winograd_pack<M, Tap>(c, made);
        u = made;
    }
    WinogradJob job{&c, u, divide_up(c.out[0], M), divide_up(c.out[1], M), 1, 1, 0, 0};
    const i64 tiles = job.tiles(), threads_ = threads();
    job.columns = at_most(panels_n * NR, divide_up(128, NR) * NR);
    const i64 fit = L2_FLOATS / (T * T * (c.channels + job.columns));
    // where U does not stay in L3 either, it is worth V and sums that leave L2 (1.1 to 1.4 times)
    const i64 many = u_size > 4 << 20 ? at_most(8 * MR, (4 << 20) / (T * T * c.channels)) : 0;
    job.block = at_most(at_least(at_least(fit, many), 2 * MR), 16 * MR);
    const i64 worth = at_least(1, 2 * tiles * T * T * c.outputs * c.channels / 1000000);
    if (tiles >= 2 * MR * threads_) {
        job.m = at_most(worth, divide_up(divide_up(tiles, job.block), threads_) * threads_);
    } else {
        job.n = at_most(at_most(threads_, worth), panels_n);
    }
    parallel(job.m * job.n, winograd_task<M>, &job);
}
