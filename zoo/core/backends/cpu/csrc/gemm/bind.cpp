#include "../array.h"
#include "../dispatch.h"

namespace zoo {
namespace {

// B, or weights, of float32 (weight = F32), of uint16 views of bfloat16 or float16, or of float32 views of pairs of bfloat16.
template <class T>
void gemm_of(nb::handle a_, nb::handle b_, nb::handle out_, nb::handle bias, nb::handle residual, int activation, i64 packed_n,
             int weight) {
    const Array a(a_, "a"), out(out_, "out", true);
    const ArrayOf<T> b(b_, "b");
    check(a && b && out, "a, b and out must be arrays");
    check(a.nd >= 2 && out.nd >= 2 && out.contiguous(), "a and out need two axes or more, and out must be contiguous");
    const int nd = out.nd;
    Gemm g{};
    g.weight = weight;
    const i64 numbers = weight == BF16_PAIRS ? 2 : 1;
    g.M = a.shape[a.nd - 2], g.K = a.shape[a.nd - 1] / numbers;
    check(a.shape[a.nd - 1] % numbers == 0, "inner sizes differ");
    g.a = a.data, g.a_m = a.stride[a.nd - 2], g.a_k = a.stride[a.nd - 1];
    if (packed_n >= 0) {
        g.N = packed_n, g.packed = b.data;
        check(a.nd == 2, "with packed weights, a must have two axes");
        check(b.nd == 1 && b.contiguous() && b.shape[0] == packed_columns(g.N) * g.K, "packed weights do not fit a");
    } else {
        check(b.nd >= 2 && b.shape[b.nd - 2] == g.K, "inner sizes differ");
        g.N = b.shape[b.nd - 1];
        g.b = b.data, g.b_k = b.stride[b.nd - 2], g.b_n = b.stride[b.nd - 1];
    }
    check(out.shape[nd - 2] == g.M && out.shape[nd - 1] == g.N, "out has the wrong shape");
    g.c = out.data, g.c_m = g.N;
    g.axes = nd - 2;
    check(g.axes <= MAX_BATCH_AXES && a.nd <= nd && b.nd <= nd, "too many batch axes");
    for (int i = 0; i < g.axes; i++) {
        g.batch[i] = out.shape[i];
        const auto along = [&](const auto& x) -> i64 {
            const int axis = i - (nd - x.nd);
            if (axis < 0 || x.shape[axis] == 1) return 0;
            check(x.shape[axis] == g.batch[i], "batch axes do not broadcast to out");
            return x.stride[axis];
        };
        g.a_batch[i] = along(a);
        g.b_batch[i] = packed_n >= 0 ? 0 : along(b);
    }
    const After after(bias, residual, activation, g.N, out);
    check(nd == 2 || !(after.bias || after.residual || activation), "bias, residual and activation need two axes");
    g.bias = after.bias.data, g.residual = after.residual.data, g.activation = activation;
    run(kernels().gemm->gemm, g);
}

void gemm(nb::handle a, nb::handle b, nb::handle out, nb::handle bias, nb::handle residual, int activation, i64 packed_n, int weight) {
    check(weight >= F32 && weight < WEIGHTS, "unknown kind of weight");
    check(weight != BF16_PAIRS || kernels().gemm->pairs, "this instruction set has no dot products of bfloat16");
    (weight == F32 || weight == BF16_PAIRS ? gemm_of<float> : gemm_of<uint16_t>)(a, b, out, bias, residual, activation, packed_n, weight);
}

template <class T>
void pack_of(nb::handle w_, nb::handle out_, int weight) {
    const ArrayOf<T> w(w_, "w"), out(out_, "out", true);
    check(w && out && w.nd == 2 && out.nd == 1 && out.contiguous(), "w needs two axes, out one");
    check(out.shape[0] == packed_columns(w.shape[0]) * w.shape[1], "out has the wrong size");
    nb::gil_scoped_release unlocked;
    kernels().gemm->pack(weight, w.data, w.stride[1], w.stride[0], w.shape[0], w.shape[1], out.data);
}

void pack_linear(nb::handle w, nb::handle out, int weight) { (weight == F32 ? pack_of<float> : pack_of<uint16_t>)(w, out, weight); }

}  // namespace

void bind_gemm(nb::module_& m) {
    m.def("tile", [] { return std::array<int, 2>{kernels().gemm->mr, kernels().gemm->nr}; }, "Rows and columns of the GEMM micro-kernel.");
    m.def("gemm", gemm, nb::arg("a"), nb::arg("b"), nb::arg("out"), nb::arg("bias").none() = nb::none(),
          nb::arg("residual").none() = nb::none(), nb::arg("activation") = 0, nb::arg("packed_n") = -1, nb::arg("weight") = 0,
          "out = act(a @ b + bias + residual). a (..., M, K); b (..., K, N) or, with packed_n = N, packed weights.\n"
          "weight: what b is stored in: 0 float32, 1 bfloat16, 2 float16 (as uint16), 3 pairs of bfloat16 (as float32, K / 2 of them):\n"
          "a is rounded to bfloat16 then.");
    m.def("pairs", [] { return kernels().gemm->pairs; }, "Does the instruction set in use multiply pairs of bfloat16?");
    m.def("pack_linear", pack_linear, nb::arg("w"), nb::arg("out"), nb::arg("weight") = 0);
}

}  // namespace zoo
