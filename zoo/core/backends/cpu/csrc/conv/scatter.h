// A convolution run backwards: every pixel of x adds its products with all taps to where they belong in y,
//   y[h * spread - k * dilation + pad, o] += sum over c of x[h, c] * w[o, k, c]
// which is conv() of an x with spread - 1 zeros between its pixels, without the zeros: a gradient of a strided convolution, a
// transposed one. Without spread it pays where y is much larger than x: border zeros are not multiplied either.
// layout     a product of pixels x channels x (taps, outputs) for some rows of x, whose results stay in L2 until they are added.
//            Taps are stored as in w; where the kernel is turned round (`flip`), neighbouring taps meet neighbouring pixels of y,
//            and one kernel row is one run to add
// roof       2 * pixels of x * taps * channels * outputs; the sums are 1 / channels as much, through L2
// Images are the tasks, and each is summed in one order.

constexpr i64 SCATTER_FLOATS = 96 << 10;

INLINE void add_run(const float* from, i64 n, float* to) {
    i64 i = 0;
    for (; i + W <= n; i += W) store(to + i, load(to + i) + load(from + i));
    if (i < n) store_first(to + i, load_first(to + i, n - i) + load_first(from + i, n - i), n - i);
}

struct ScatterJob {
    const Scatter* s;
    const float* packed;
};

void scatter_task(void* context, i64 image) {
    const ScatterJob& job = *static_cast<const ScatterJob*>(context);
    const Scatter& c = *job.s;
    const i64 K = c.channels, O = c.outputs, N = c.kernel[0] * c.kernel[1] * O, sign = c.flip ? 1 : -1;
    const i64 lines = at_most(c.size[0], at_least(1, SCATTER_FLOATS / (c.size[1] * N))), k_blocks = divide_up(K, KC);
    float* const products = scratch(SLOT_X, lines * c.size[1] * N + W);
    const float* x = c.x + image * c.size[0] * c.size[1] * K;
    float* const y = c.y + image * c.out[0] * c.out[1] * O;
    for (i64 i = 0; i < c.out[0] * c.out[1] * O; i++) y[i] = 0;
    // where the first stored tap of pixel 0 goes
    const i64 first[2] = {c.pad[0] - (c.flip ? (c.kernel[0] - 1) * c.dilation[0] : 0), c.pad[1] - (c.flip ? (c.kernel[1] - 1) * c.dilation[1] : 0)};
    const bool joined = c.flip && c.dilation[1] == 1;
    for (i64 h0 = 0; h0 < c.size[0]; h0 += lines) {
        const i64 h1 = at_most(c.size[0], h0 + lines), pixels = (h1 - h0) * c.size[1];
        const Panels panels(pixels);
        i64 apart = K;
        const float* a = x + h0 * c.size[1] * K;
        if (K * 4 % 2048 == 0) {  // gemm.h says why
            apart = row_distance(K);
            float* const copy = scratch(SLOT_A, pixels * apart + W);
            for (i64 i = 0; i < pixels; i++) copy_run(a + i * K, K, copy + i * apart);
            a = copy;
        }
        Sweep s{};
        s.b_panel = K * NR, s.b_k = NR, s.n1 = N, s.c_m = N;
        for (i64 block = 0; block < k_blocks; block++) {
            const i64 k = K * block / k_blocks, kc = K * (block + 1) / k_blocks - k;
            s.b = job.packed + k * NR, s.first = block == 0;
            sweep(s, {1, kc, NO_OFFSET}, panels.count, [&](i64 p) {
                const i64 row = panels.start(p);
                return Rows{panels.rows(p), true, a + row * apart + k, apart, products + row * N, nullptr};
            });
        }
        for (i64 h = h0; h < h1; h++) {
            for (i64 w = 0; w < c.size[1]; w++) {
                const float* const from = products + ((h - h0) * c.size[1] + w) * N;
                const i64 left = w * c.spread[1] + first[1];
                for (i64 k0 = 0; k0 < c.kernel[0]; k0++) {
                    const i64 p = h * c.spread[0] + first[0] + sign * k0 * c.dilation[0];
                    if (p < 0 || p >= c.out[0]) continue;
                    const float* const taps = from + k0 * c.kernel[1] * O;
                    if (joined) {
                        const i64 k = at_least(0, -left), end = at_most(c.kernel[1], c.out[1] - left);
                        if (k < end) add_run(taps + k * O, (end - k) * O, y + (p * c.out[1] + left + k) * O);
                    } else {
                        for (i64 k = 0; k < c.kernel[1]; k++) {
                            const i64 q = left + sign * k * c.dilation[1];
                            if (q >= 0 && q < c.out[1]) add_run(taps + k * O, O, y + (p * c.out[1] + q) * O);
                        }
                    }
                }
            }
        }
    }
}

void conv_scatter(const Scatter& s) {
    const i64 N = s.kernel[0] * s.kernel[1] * s.outputs;
    float* const packed = scratch(SLOT_B, divide_up(N, NR) * NR * s.channels);
    pack(s.w, N, 1, N, s.channels, packed);
    ScatterJob job{&s, packed};
    parallel(s.batch, scatter_task, &job);
}
