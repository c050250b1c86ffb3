#include "../array.h"
#include "../dispatch.h"

#include <memory>

namespace zoo {

template <>
struct Kept<QuantLinears> {
    std::shared_ptr<std::vector<QuantLinear>> each;  // a call is copied
    QuantLinears args;
    Kept(const QuantLinears& a, Recording& r)
        : each(std::make_shared<std::vector<QuantLinear>>(a.each, a.each + a.count)), args{each->data(), a.count} {
        for (QuantLinear& q : *each) q.strange = &r.strange;
    }
    const QuantLinears& get() const { return args; }
};

template <>
struct Kept<QuantConv> {
    QuantConv args;
    Kept(const QuantConv& a, Recording& r) : args(a) { args.strange = &r.strange; }
    const QuantConv& get() const { return args; }
};

namespace {

i64 panels(i64 N) { return (N + kernels().quant->columns - 1) / kernels().quant->columns * kernels().quant->columns; }

// The rows of a, and what one product needs beside them.
QuantLinear rows_of(const Array& a, int bits) {
    check(a && (a.nd == 2 || a.nd == 3), "a needs two axes or three");
    const int k = a.nd - 1;
    check(a.shape[k] <= 1 || a.stride[k] == 1, "rows of a must be contiguous");
    check(bits == 8 || bits == 4, "weights have 8 bits or 4");
    QuantLinear q{};
    q.M = a.shape[0] * (k == 2 ? a.shape[1] : 1), q.K = a.shape[k], q.bits = bits;
    check(q.K <= 1 << 17, "more than 131,072 inputs overflow 32 bits");
    q.a = a.data, q.a_m = a.stride[k - 1];
    if (k == 2) q.line = a.shape[1], q.a_line = a.stride[0];
    return q;
}

void set_weight(QuantLinear& q, nb::handle w_, nb::handle scale, const Array& out) {
    check(out && out.nd == 2 && out.contiguous() && out.shape[0] == q.M, "out has the wrong shape, or is not contiguous");
    q.N = out.shape[1], q.c = out.data;
    const ArrayOf<uint8_t> w(w_, "w");
    check(w && w.nd == 1 && w.contiguous(), "w must be packed");
    q.w = w.data;
    if (q.bits == 8) {
        const Array s(scale, "scale");
        check(s && s.nd == 1 && s.shape[0] == q.N && s.contiguous(), "there must be one scale for each output");
        check(w.shape[0] == panels(q.N) * ((q.K + 3) / 4 * 4), "w does not fit a");
        q.scale8 = s.data;
    } else {
        const ArrayOf<uint16_t> s(scale, "scale");
        check(q.K % 32 == 0 && s && s.nd == 1 && s.contiguous() && s.shape[0] == panels(q.N) * (q.K / 32), "scale does not fit a");
        check(w.shape[0] == panels(q.N) * (q.K / 2), "w does not fit a");
        q.scale4 = s.data;
    }
}

// Returns whether all rows of a were finite.
bool quant_linear(nb::handle a_, nb::handle w, nb::handle scale, nb::handle out_, nb::handle bias, int activation, int bits,
                  nb::handle residual) {
    const Array a(a_, "a"), out(out_, "out", true);
    QuantLinear q = rows_of(a, bits);
    set_weight(q, w, scale, out);
    const After after(bias, residual, activation, q.N, out);
    int strange = 0;
    q.bias = after.bias.data, q.residual = after.residual.data, q.activation = activation, q.strange = &strange;
    run(kernels().quant->linear, QuantLinears{&q, 1});
    return !strange;
}

bool quant_linears(nb::handle a_, const std::vector<std::array<nb::handle, 4>>& weights, int bits) {
    const Array a(a_, "a");
    std::vector<QuantLinear> each(weights.size(), rows_of(a, bits));
    check(!each.empty(), "there is no weight");
    int strange = 0;
    for (size_t k = 0; k < each.size(); k++) {
        const auto& [w, scale, out_, bias] = weights[k];
        const Array out(out_, "out", true);
        set_weight(each[k], w, scale, out);
        each[k].bias = After(bias, nb::none(), 0, each[k].N, out).bias.data;
        each[k].strange = &strange;
    }
    run(kernels().quant->linear, QuantLinears{each.data(), i64(each.size())});
    return !strange;
}

using Pair = std::array<i64, 2>;

// Returns whether all of x that was read is finite.
bool quant_conv(nb::handle x_, nb::handle w_, nb::handle scale_, nb::handle out_, nb::handle bias, nb::handle residual, int activation,
                Pair kernel, Pair stride, Pair pad, Pair dilation) {
    const Array x(x_, "x"), scale(scale_, "scale"), out(out_, "out", true);
    const ArrayOf<uint8_t> w(w_, "w");
    check(x && out && x.nd == 4 && out.nd == 4 && x.contiguous() && out.contiguous(), "x and out need four axes, and must be contiguous");
    QuantConv c{};
    c.batch = x.shape[0], c.channels = x.shape[3], c.outputs = out.shape[3];
    check(out.shape[0] == c.batch, "out has the wrong shape");
    check(c.channels > 0 && c.channels % 4 == 0, "channels come in fours");
    for (int i : {0, 1}) {
        c.size[i] = x.shape[i + 1], c.out[i] = out.shape[i + 1];
        c.kernel[i] = kernel[i], c.stride[i] = stride[i], c.dilation[i] = dilation[i], c.pad[i] = pad[i];
        check(kernel[i] >= 1 && stride[i] >= 1 && dilation[i] >= 1, "kernel, stride and dilation start at 1");
    }
    const i64 K = kernel[0] * kernel[1] * c.channels;
    check(K <= 1 << 17, "more than 131,072 inputs overflow 32 bits");
    check(w && w.nd == 1 && w.contiguous() && w.shape[0] == panels(c.outputs) * K, "w must be packed, and fit x and the kernel");
    check(scale && scale.nd == 1 && scale.shape[0] == c.outputs && scale.contiguous(), "there must be one scale for each output");
    const After after(bias, residual, activation, c.outputs, out);
    int strange = 0;
    c.x = x.data, c.w = w.data, c.scale = scale.data, c.y = out.data;
    c.bias = after.bias.data, c.residual = after.residual.data, c.activation = activation, c.strange = &strange;
    run(kernels().quant->conv, c);
    return !strange;
}

template <class T, class Pack>
void pack_rows(nb::handle from_, nb::handle to_, i64 each, Pack pack) {
    const ArrayOf<T> from(from_, "from");
    const ArrayOf<uint8_t> to(to_, "to", true);
    check(from && to && from.nd == 2 && to.nd == 1 && to.contiguous(), "from needs two axes, to one");
    check(from.shape[1] <= 1 || from.stride[1] == 1, "rows must be contiguous");
    check(to.shape[0] == panels(from.shape[0]) * ((from.shape[1] + each - 1) / each * each), "to has the wrong size");
    nb::gil_scoped_release unlocked;
    pack(from.data, from.stride[0], from.shape[0], from.shape[1], to.data);
}

}  // namespace

void bind_quant(nb::module_& m) {
    m.def("quant_linear", quant_linear, nb::arg("a"), nb::arg("w"), nb::arg("scale"), nb::arg("out"), nb::arg("bias").none() = nb::none(),
          nb::arg("activation") = 0, nb::arg("bits") = 8, nb::arg("residual").none() = nb::none(),
          "out = act(a @ w.T + bias + residual), a (rows, K) or (lines, rows, K) quantised by row. Packed w and, for 4 bits, packed\n"
          "scales. False if a row of a held NaN or infinity: its results are meaningless.");
    m.def("quant_linears", quant_linears, nb::arg("a"), nb::arg("weights"), nb::arg("bits"),
          "The same for several (w, scale, out, bias): a is quantised once.");
    m.def("quant_conv", quant_conv, nb::arg("x"), nb::arg("w"), nb::arg("scale"), nb::arg("out"), nb::arg("bias").none(),
          nb::arg("residual").none(), nb::arg("activation"), nb::arg("kernel"), nb::arg("stride"), nb::arg("pad"), nb::arg("dilation"),
          "x (N, H, W, C), packed w (O, h * w * C) of 8 bits -> out (N, H', W', O). False if x held NaN or infinity.");
    m.def("pack_int8", [](nb::handle q, nb::handle to) { pack_rows<int8_t>(q, to, 4, kernels().quant->pack8); });
    m.def("pack_int4", [](nb::handle q, nb::handle to) {
        pack_rows<uint8_t>(q, to, 16, [](const uint8_t* q, i64 q_n, i64 N, i64 pairs, uint8_t* packed) {
            check(pairs % 16 == 0, "inputs come in groups of 32");
            kernels().quant->pack4(q, q_n, N, pairs * 2, packed);
        });
    });
}

}  // namespace zoo
