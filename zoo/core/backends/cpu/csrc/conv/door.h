// Which kernel a convolution goes to.

void pack_conv(const Conv& c, void* packed) {
    if (c.weight == F32) return pack_direct(c, static_cast<float*>(packed));
    pack_direct(c, static_cast<bf16*>(packed));  // float16 too: bits are moved
}

template <class T>
void direct(const Conv& c, const T* packed, const i64 need[2]) {
    const i64 pixels = c.batch * c.out[0] * c.out[1], outputs = c.outputs / c.groups;
    const bool pointwise = c.kernel[0] * c.kernel[1] == 1 && c.stride[0] * c.stride[1] == 1 && c.groups == 1 && c.pad[0] == 0 &&
                           c.pad[1] == 0 && need[0] == c.size[0] && need[1] == c.size[1] &&
                           c.x_stride[1] == c.size[1] * c.x_stride[2] && c.x_stride[0] == c.size[0] * c.x_stride[1];
    if (pointwise) {
        Gemm g{};
        g.M = pixels, g.N = c.outputs, g.K = c.channels / NUMBERS<T>;
        g.a = c.x, g.a_m = c.x_stride[2], g.a_k = c.x_stride[3], g.packed = packed;
        g.c = c.y, g.c_m = c.outputs, g.bias = c.bias, g.residual = c.residual, g.activation = c.activation;
        return gemm_of<T>(g);
    }
    const i64 operations = 2 * pixels * c.outputs * c.kernel[0] * c.kernel[1] * (c.channels / c.groups), rows = c.batch * c.out[0];
    const i64 team = threads(), worth = at_least(1, operations / 1000000);
    ConvJob<T> job{&c, packed, 1, divide_up(c.out[1], TILE), 1};
    job.m = at_most(at_most(worth, divide_up(divide_up(pixels, TILE), team) * team), at_most(pixels / 28, rows));
    job.m = at_least(1, job.m);
    const i64 tasks = job.m * job.chunks * c.groups;
    if (tasks < at_most(team, worth)) job.n = at_most(divide_up(team, tasks), at_least(outputs / 64, 1));
    parallel(tasks * job.n, conv_task<T>, &job);
}

void conv(const Conv& c) {
    if (c.batch * c.out[0] * c.out[1] == 0 || c.outputs == 0) return;
    i64 need[2];
    for (int i = 0; i < 2; i++) need[i] = (c.out[i] - 1) * c.stride[i] + (c.kernel[i] - 1) * c.dilation[i] + 1;
    if (c.winograd && c.weight == BF16) return minimal::winograd<bf16>(c);
#if defined(ZOO_AVX512BF16)
    if (c.weight == BF16_PAIRS) return c.winograd ? minimal::winograd<pair>(c) : direct(c, static_cast<const pair*>(c.packed), need);
#endif
    if (c.winograd && c.weight == F16) return minimal::winograd<f16>(c);
    if (c.winograd) return minimal::winograd<float>(c);
    if (c.k_major) return conv_k_major(c, need);
    if (is_depthwise(c)) return depthwise(c);
    if (c.weight == BF16) return direct(c, static_cast<const bf16*>(c.packed), need);
    if (c.weight == F16) return direct(c, static_cast<const f16*>(c.packed), need);
    const float* packed = static_cast<const float*>(c.packed);
    if (!packed) {
        const i64 panels = c.groups * divide_up(c.outputs / c.groups, NR);
        float* const made = scratch(SLOT_B, panels * NR * c.kernel[0] * c.kernel[1] * (c.channels / c.groups));
        pack_direct(c, made);
        packed = made;
    }
    direct(c, packed, need);
}
