#include "../array.h"
#include "../dispatch.h"

namespace zoo {
namespace {

// q, k or v: float32, or 16-bit numbers as uint16, of which `storage` says what they are.
struct HeadsArray {
    Array wide;
    ArrayOf<uint16_t> half;
    HeadsArray(nb::handle object, const char* name, int storage)
        : wide(storage == F32 ? object : nb::handle(Py_None), name), half(storage == F32 ? nb::handle(Py_None) : object, name) {
        check(nd() == 4, "q, k and v need four axes");
        check(shape(3) <= 1 || stride(3) == 1, "the numbers of a head must lie side by side");
    }
    int nd() const { return wide ? wide.nd : half.nd; }
    i64 shape(int i) const { return wide ? wide.shape[i] : half.shape[i]; }
    i64 stride(int i) const { return wide ? wide.stride[i] : half.stride[i]; }
    Heads heads(int storage) const {
        const void* const data = wide ? static_cast<const void*>(wide.data) : half.data;
        return {data, storage, stride(0), stride(1), stride(2)};
    }
};

void attention(nb::handle q_, nb::handle k_, nb::handle v_, nb::handle out_, nb::handle bias_, bool causal, float scale,
               int q_storage, int kv_storage) {
    check(q_storage >= F32 && q_storage <= F16 && kv_storage >= F32 && kv_storage <= F16, "unknown storage");
    const HeadsArray q(q_, "q", q_storage), k(k_, "k", kv_storage), v(v_, "v", kv_storage);
    const Array bias(bias_, "bias");
    const Array wide(q_storage == F32 ? out_ : nb::handle(Py_None), "out", true);
    const ArrayOf<uint16_t> half(q_storage == F32 ? nb::handle(Py_None) : out_, "out", true);
    Attention a{};
    a.B = q.shape(0), a.L = q.shape(1), a.H = q.shape(2), a.D = q.shape(3);
    a.S = k.shape(1), a.Dv = v.shape(3);
    check(k.shape(0) == a.B && v.shape(0) == a.B && v.shape(1) == a.S && v.shape(2) == k.shape(2) && k.shape(3) == a.D,
          "q, k and v do not fit");
    check(k.shape(2) > 0 && a.H % k.shape(2) == 0, "query heads do not divide among key heads");
    a.G = a.H / k.shape(2);
    const i64 shape[4] = {a.B, a.L, a.H, a.Dv}, scores[4] = {a.B, a.H, a.L, a.S};
    for (int i = 0; i < 4; i++) {
        check(q_storage == F32 ? wide.nd == 4 && wide.shape[i] == shape[i] && wide.contiguous()
                               : half.nd == 4 && half.shape[i] == shape[i] && half.contiguous(),
              "out must be contiguous, of shape (B, L, H, Dv)");
        if (bias) {
            check(bias.nd == 4 && bias.shape[i] == scores[i], "bias must be of shape (B, H, L, S)");
            a.bias_stride[i] = bias.stride[i];
        }
    }
    check(a.S > 0 && a.D > 0, "there are no keys");
    if (a.B * a.L * a.H * a.Dv == 0) return;
    a.q = q.heads(q_storage), a.k = k.heads(kv_storage), a.v = v.heads(kv_storage);
    a.y = q_storage == F32 ? static_cast<void*>(wide.data) : half.data;
    a.bias = bias.data, a.causal = causal, a.scale = scale;
    run(kernels().attention->attention, a);
}

}  // namespace

void bind_attention(nb::module_& m) {
    m.def("attention", attention, nb::arg("q"), nb::arg("k"), nb::arg("v"), nb::arg("out"), nb::arg("bias").none() = nb::none(),
          nb::arg("causal") = false, nb::arg("scale") = 1.0f, nb::arg("q_storage") = 0, nb::arg("kv_storage") = 0,
          "q (B, L, H, D), k (B, S, H_kv, D), v (B, S, H_kv, Dv), bias (B, H, L, S) -> out (B, L, H, Dv), stored as q. "
          "storage: 0 float32, 1 bfloat16, 2 float16 (these two as uint16).");
}

}  // namespace zoo
