// Which kernel a convolution goes to.

void pack_conv(const Conv& c, float* packed) {
    if (c.winograd == 4) return winograd_pack<4>(c, packed);
    if (c.winograd == 2) return winograd_pack<2>(c, packed);
    pack_direct(c, packed);
}

void conv(const Conv& given) {
    Conv c = given;
    const i64 pixels = c.batch * c.out[0] * c.out[1], outputs = c.outputs / c.groups, channels = c.channels / c.groups;
    const i64 K = c.kernel[0] * c.kernel[1] * channels;
    if (pixels == 0 || c.outputs == 0) return;
    i64 need[2];
    for (int i = 0; i < 2; i++) need[i] = (c.out[i] - 1) * c.stride[i] + (c.kernel[i] - 1) * c.dilation[i] + 1;
    if (c.winograd == 4) return winograd<4>(c);
    if (c.winograd == 2) return winograd<2>(c);
    if (c.k_major) return conv_k_major(c, need);
    if (is_depthwise(c)) return depthwise(c);

    if (!c.packed) {
        float* const packed = scratch(SLOT_B, c.groups * divide_up(outputs, NR) * NR * K);
        pack_direct(c, packed);
        c.packed = packed;
    }
    const bool pointwise = c.kernel[0] * c.kernel[1] == 1 && c.stride[0] * c.stride[1] == 1 && c.groups == 1 && c.pad[0] == 0 &&
                           c.pad[1] == 0 && need[0] == c.size[0] && need[1] == c.size[1] &&
                           c.x_stride[1] == c.size[1] * c.x_stride[2] && c.x_stride[0] == c.size[0] * c.x_stride[1];
    if (pointwise) {
        Gemm g{};
        g.M = pixels, g.N = c.outputs, g.K = c.channels;
        g.a = c.x, g.a_m = c.x_stride[2], g.a_k = c.x_stride[3], g.packed = c.packed;
        g.c = c.y, g.c_m = c.outputs, g.bias = c.bias, g.residual = c.residual, g.activation = c.activation;
        return gemm_one(g);
    }
    const i64 T = threads(), worth = at_least(1, 2 * pixels * c.outputs * K / 1000000), rows = c.batch * c.out[0];
    ConvJob job{&c, c.packed, 1, divide_up(c.out[1], TILE), 1};
    job.m = at_most(at_most(worth, divide_up(divide_up(pixels, TILE), T) * T), at_most(pixels / 28, rows));
    job.m = at_least(1, job.m);
    const i64 tasks = job.m * job.chunks * c.groups;
    if (tasks < at_most(T, worth)) job.n = at_most(divide_up(T, tasks), at_least(outputs / 64, 1));
    parallel(tasks * job.n, conv_task, &job);
}
