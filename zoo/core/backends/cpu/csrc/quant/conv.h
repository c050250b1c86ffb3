// y[p, o] = act(scale[o] * s * sum over k, c of X[p * stride + k * dilation - pad, c] * w[o, k, c] + bias[o] + residual[p, o])
// with X in 8 bits of one scale s for a tile: some lines of one picture's output. A scale for each pixel of x, as a product has for
// each row, cannot be taken out of a sum over pixels, and quantising x again for each output pixel would cost nine times as much;
// one scale for a picture would be coarser, and would need another pass over x.
// layout     the part of x under a tile as codes [lines][wide][channels], with its border of zeros, and the sums of each pixel's
//            codes; from these the rows of A (im2col: bytes, so a tile of it fits L2), as kernels8.h reads them
// roof       that of the product of 8 bits; copying the rows costs 64 / outputs of it (VNNI, 3x3)
// Tiles depend on shapes only, so no bit depends on the number of threads, nor on the other pictures.

constexpr i64 TILE_ROWS = 256, TILE_CODES = 512 << 10;  // half of L2

struct ConvJob8 {
    const QuantConv* c;
    QuantLinear product;
    i64 down, across, n;  // tiles of a picture; tasks over outputs
};

void conv_tile(void* context, i64 index) {
    const ConvJob8& job = *static_cast<const ConvJob8*>(context);
    const QuantConv& c = *job.c;
    const QuantLinear& q = job.product;
    const i64 ni = index % job.n, tile = index / job.n % (job.down * job.across), image = index / job.n / (job.down * job.across);
    const i64 h0 = c.out[0] * (tile / job.across) / job.down, h1 = c.out[0] * (tile / job.across + 1) / job.down;
    const i64 w0 = c.out[1] * (tile % job.across) / job.across, w1 = c.out[1] * (tile % job.across + 1) / job.across;
    const i64 lines = (h1 - h0 - 1) * c.stride[0] + (c.kernel[0] - 1) * c.dilation[0] + 1;
    const i64 wide = (w1 - w0 - 1) * c.stride[1] + (c.kernel[1] - 1) * c.dilation[1] + 1;
    const i64 top = h0 * c.stride[0] - c.pad[0], left = w0 * c.stride[1] - c.pad[1];  // of what is read; maybe outside of x
    const i64 first = at_most(wide, at_least(0, -left)), end = at_least(first, at_most(wide, c.size[1] - left));
    const auto inside = [&](i64 line) { return top + line >= 0 && top + line < c.size[0]; };
    const auto x_at = [&](i64 line) { return c.x + ((image * c.size[0] + top + line) * c.size[1] + left + first) * c.channels; };

    int32_t largest = 0;
    for (i64 line = 0; line < lines; line++)
        if (inside(line)) largest = (int32_t)at_least(largest, largest_bits(x_at(line), (end - first) * c.channels));
    float scale;
    const float inverse = inverse_of(largest, &scale);
    if (largest >= INFINITE) __atomic_store_n(c.strange, 1, __ATOMIC_RELAXED);

    const i64 pixel = c.channels * (QUAD / 4);  // bytes
    char* const codes = scratch_of<char>(SLOT_C, lines * wide * pixel + 64);
    int32_t* const sums = scratch_of<int32_t>(SLOT_B, lines * wide);
    for (i64 line = 0; line < lines; line++) {
        for (i64 w = 0; w < wide; w++) {
            const i64 i = line * wide + w;
            if (inside(line) && w >= first && w < end) {
                sums[i] = quantise_run(x_at(line) + (w - first) * c.channels, c.channels, inverse, codes + i * pixel);
            } else {
                sums[i] = 0;
                __builtin_memset(codes + i * pixel, 0, pixel);
            }
        }
    }

    const i64 pixels = (h1 - h0) * (w1 - w0), joined = c.dilation[1] == 1 ? c.kernel[1] : 1;  // taps that are neighbours
    const Rows8 rows = rows_in_scratch(pixels, q.K, 8);
    for (i64 p = 0; p < pixels; p++) {
        const i64 corner = p / (w1 - w0) * c.stride[0] * wide + p % (w1 - w0) * c.stride[1];
        char* to = rows.codes + p * rows.distance;
        int32_t sum = 0;
        for (i64 kh = 0; kh < c.kernel[0]; kh++) {
            for (i64 kw = 0; kw < c.kernel[1]; kw++) {
                const i64 from = corner + kh * c.dilation[0] * wide + kw * c.dilation[1];
                sum += sums[from];
                if (kw % joined) continue;
                __builtin_memcpy(to, codes + from * pixel, joined * pixel);
                to += joined * pixel;
            }
        }
        rows.scale[p] = scale;
        rows.sums[p] = sum * -128;
    }
    const i64 panels = divide_up(q.N, NR), at = (image * c.out[0] + h0) * c.out[1] + w0;
    product(q, rows, pixels, q.c + at * q.N, panels * ni / job.n * NR, at_most(q.N, panels * (ni + 1) / job.n * NR));
}

void conv(const QuantConv& c) {
    const i64 pixels = c.out[0] * c.out[1], K = c.kernel[0] * c.kernel[1] * c.channels;
    if (c.batch * pixels == 0 || c.outputs == 0) return;
    ConvJob8 job{&c, {}, 0, 0, 1};
    QuantLinear& q = job.product;
    q.M = c.batch * pixels, q.N = c.outputs, q.K = K, q.bits = 8;
    q.w = c.w, q.scale8 = c.scale, q.c = c.y, q.bias = c.bias, q.residual = c.residual, q.activation = c.activation;
    const i64 room = at_least(4 * ROWS8, at_most(TILE_ROWS, TILE_CODES / K)), T = threads();  // pixels of a tile
    job.across = divide_up(c.out[1], room);  // if more than one, a tile is one line
    job.down = divide_up(c.out[0], at_least(1, room / divide_up(c.out[1], job.across)));
    const i64 tiles = c.batch * job.down * job.across, worth = at_least(1, 2 * q.M * q.N * K / WORTH);
    if (tiles < T) job.n = at_most(at_most(divide_up(T, tiles), worth), divide_up(q.N, NR));
    parallel(tiles * job.n, conv_tile, &job);
}
