#include <algorithm>

#include "../array.h"
#include "../dispatch.h"

namespace zoo {
namespace {

using Pair = std::array<i64, 2>;

void set_weight_shape(Conv& c, const i64* shape, i64 groups) {
    c.outputs = shape[0], c.kernel[0] = shape[1], c.kernel[1] = shape[2];
    c.channels = shape[3] * groups, c.groups = groups;
    check(groups >= 1 && c.outputs % groups == 0 && c.kernel[0] >= 1 && c.kernel[1] >= 1, "the weights do not fit the groups");
    check(c.channels >= 1, "a convolution needs at least one channel");
}

i64 packed_conv_size(const Conv& c) {
    return c.groups * packed_columns(c.outputs / c.groups) * c.kernel[0] * c.kernel[1] * (c.channels / c.groups);
}

void conv(nb::handle x_, nb::handle w_, nb::handle out_, nb::handle bias, nb::handle residual, int activation, Pair stride, Pair pad,
          Pair dilation, i64 groups, bool flip, std::array<i64, 4> packed_shape, bool winograd, int weight) {
    check(weight >= F32 && weight < WEIGHTS, "unknown kind of weight");
    const bool half = weight == BF16 || weight == F16, pairs = weight == BF16_PAIRS;
    check(!pairs || kernels().gemm->pairs, "this instruction set has no dot products of bfloat16");
    const Array x(x_, "x"), w(half ? nb::handle(Py_None) : w_, "w"), out(out_, "out", true);
    const ArrayOf<uint16_t> w16(half ? w_ : nb::handle(Py_None), "w");
    check(x && (w || w16) && out && x.nd == 4 && out.nd == 4 && out.contiguous(), "x and out need four axes, and out must be contiguous");
    Conv c{};
    c.batch = x.shape[0];
    const bool packed = packed_shape[0] >= 0;
    check(packed || (w && w.nd == 4), "w needs four axes and float32, if it is not packed");
    set_weight_shape(c, packed ? packed_shape.data() : w.shape, groups);
    check(c.channels == x.shape[3], "the weights do not fit the channels of x");
    check(out.shape[0] == c.batch && out.shape[3] == c.outputs, "out has the wrong shape");
    for (int i : {0, 1}) {
        c.size[i] = x.shape[i + 1], c.out[i] = out.shape[i + 1];
        c.stride[i] = stride[i], c.dilation[i] = dilation[i], c.pad[i] = pad[i];
        check(stride[i] >= 1 && dilation[i] >= 1, "stride and dilation start at 1");
    }
    std::copy(x.stride, x.stride + 4, c.x_stride);
    c.x = x.data, c.y = out.data, c.flip = flip, c.winograd = winograd;
    if (winograd) {
        check(c.kernel[0] == 3 && c.kernel[1] == 3 && groups == 1, "Winograd's algorithm is for 3x3 kernels in one group");
        check(x.stride[3] == 1 || x.shape[3] == 1, "Winograd's algorithm reads contiguous channels");
        for (int i : {0, 1}) check(stride[i] == 1 && dilation[i] == 1, "Winograd's algorithm has no stride and no dilation");
    }
    check(packed || !pairs, "pairs must be packed");
    if (packed) {
        const auto fits = [&](const auto& w) {
            return w.nd == 1 && w.contiguous() && w.shape[0] * (pairs ? 2 : 1) == packed_conv_size(c);
        };
        check(half ? fits(w16) : fits(w), "packed weights have the wrong size");
        check(!pairs || c.channels / groups % 2 == 0, "pairs need an even number of channels");
        c.packed = half ? static_cast<const void*>(w16.data) : w.data;
        c.weight = weight;
    } else {
        c.w = w.data;
        std::copy(w.stride, w.stride + 4, c.w_stride);
    }
    const auto unit = [](i64 size, i64 stride) { return size == 1 || stride == 1; };
    c.k_major = !packed && groups == 1 && !flip && unit(c.batch, c.x_stride[0]) && unit(c.outputs, c.w_stride[0]) &&
                (c.x_stride[3] != 1 || (c.channels == 1 && c.batch > 1));
    const After after(bias, residual, activation, c.outputs, out);
    c.bias = after.bias.data, c.residual = after.residual.data, c.activation = activation;
    run(kernels().conv->conv, c);
}

void conv_scatter(nb::handle x_, nb::handle w_, nb::handle out_, Pair spread, Pair pad, Pair dilation, bool flip) {
    const Array x(x_, "x"), w(w_, "w"), out(out_, "out", true);
    check(x && w && out && x.nd == 4 && w.nd == 4 && out.nd == 4, "x, w and out need four axes");
    check(x.contiguous() && w.contiguous() && out.contiguous(), "x, w and out must be contiguous");
    check(x.shape[3] == w.shape[0] && out.shape[3] == w.shape[3] && out.shape[0] == x.shape[0], "the shapes do not fit");
    check(w.size() > 0, "a convolution needs at least one weight");
    Scatter s{};
    s.batch = x.shape[0], s.channels = w.shape[0], s.outputs = w.shape[3], s.flip = flip;
    s.x = x.data, s.w = w.data, s.y = out.data;
    for (int i : {0, 1}) {
        s.size[i] = x.shape[i + 1], s.kernel[i] = w.shape[i + 1], s.out[i] = out.shape[i + 1];
        s.spread[i] = spread[i], s.dilation[i] = dilation[i], s.pad[i] = pad[i];
        check(spread[i] >= 1 && dilation[i] >= 1, "spread and dilation start at 1");
    }
    run(kernels().conv->scatter, s);
}

template <class T>
void pack_of(nb::handle w_, nb::handle out_, i64 groups, bool flip, int weight) {
    const ArrayOf<T> w(w_, "w"), out(out_, "out", true);
    check(w && out && w.nd == 4 && out.nd == 1 && out.contiguous(), "w needs four axes, out one");
    Conv c{};
    set_weight_shape(c, w.shape, groups);
    check(out.shape[0] == packed_conv_size(c), "out has the wrong size");
    c.w = w.data, c.flip = flip, c.weight = weight;
    std::copy(w.stride, w.stride + 4, c.w_stride);
    nb::gil_scoped_release unlocked;
    kernels().conv->pack(c, out.data);
}

void pack_conv(nb::handle w, nb::handle out, i64 groups, bool flip, int weight) {
    check(weight >= F32 && weight < WEIGHTS, "unknown kind of weight");
    (weight == F32 ? pack_of<float> : pack_of<uint16_t>)(w, out, groups, flip, weight);
}

}  // namespace

void bind_conv(nb::module_& m) {
    m.def("conv", conv, nb::arg("x"), nb::arg("w"), nb::arg("out"), nb::arg("bias").none() = nb::none(),
          nb::arg("residual").none() = nb::none(), nb::arg("activation") = 0, nb::arg("stride") = Pair{1, 1},
          nb::arg("pad") = Pair{0, 0}, nb::arg("dilation") = Pair{1, 1}, nb::arg("groups") = 1, nb::arg("flip") = false,
          nb::arg("packed_shape") = std::array<i64, 4>{-1, 0, 0, 0}, nb::arg("winograd") = false, nb::arg("weight") = 0,
          "x (N, H, W, C), w (O, h, w, C/groups) or packed -> out (N, H', W', O).");
    m.def("conv_scatter", conv_scatter, nb::arg("x"), nb::arg("w"), nb::arg("out"), nb::arg("spread"), nb::arg("pad"),
          nb::arg("dilation"), nb::arg("flip"), "x (N, H, W, C), w (C, h, w, O) -> out (N, H', W', O): every pixel adds to its surroundings.");
    m.def("pack_conv", pack_conv, nb::arg("w"), nb::arg("out"), nb::arg("groups") = 1, nb::arg("flip") = false,
          nb::arg("weight") = 0);
}

}  // namespace zoo
