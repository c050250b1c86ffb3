#include "../array.h"
#include "../dispatch.h"

namespace zoo {

template <>
struct Kept<QuantAttention> {
    QuantAttention args;
    Kept(const QuantAttention& a, Recording& r) : args(a) { args.strange = &r.strange; }
    const QuantAttention& get() const { return args; }
};

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

// Sizes and strides of q (B, L, H, D), k (B, S, H_kv, D), v (B, S, H_kv, Dv) and bias (B, H, L, S).
Attention inputs(const HeadsArray& q, const HeadsArray& k, const HeadsArray& v, const Array& bias, int q_storage, int kv_storage) {
    Attention a{};
    a.B = q.shape(0), a.L = q.shape(1), a.H = q.shape(2), a.D = q.shape(3);
    a.S = k.shape(1), a.Dv = v.shape(3);
    check(k.shape(0) == a.B && v.shape(0) == a.B && v.shape(1) == a.S && v.shape(2) == k.shape(2) && k.shape(3) == a.D,
          "q, k and v do not fit");
    check(k.shape(2) > 0 && a.H % k.shape(2) == 0, "query heads do not divide among key heads");
    check(a.S > 0 && a.D > 0, "there are no keys");
    a.G = a.H / k.shape(2);
    const i64 scores[4] = {a.B, a.H, a.L, a.S};
    for (int i = 0; bias && i < 4; i++) {
        check(bias.nd == 4 && bias.shape[i] == scores[i], "bias must be of shape (B, H, L, S)");
        a.bias_stride[i] = bias.stride[i];
    }
    a.q = q.heads(q_storage), a.k = k.heads(kv_storage), a.v = v.heads(kv_storage), a.bias = bias.data;
    return a;
}

template <class A>
bool fits(const A& out, i64 B, i64 L, i64 H, i64 D) {
    return out.nd == 4 && out.contiguous() && out.shape[0] == B && out.shape[1] == L && out.shape[2] == H && out.shape[3] == D;
}

void attention(nb::handle q_, nb::handle k_, nb::handle v_, nb::handle out_, nb::handle bias_, bool causal, float scale,
               int q_storage, int kv_storage, nb::handle lengths_) {
    check(q_storage >= F32 && q_storage <= F16 && kv_storage >= F32 && kv_storage <= F16, "unknown storage");
    const HeadsArray q(q_, "q", q_storage), k(k_, "k", kv_storage), v(v_, "v", kv_storage);
    const Array bias(bias_, "bias");
    const Array wide(q_storage == F32 ? out_ : nb::handle(Py_None), "out", true);
    const ArrayOf<uint16_t> half(q_storage == F32 ? nb::handle(Py_None) : out_, "out", true);
    Attention a = inputs(q, k, v, bias, q_storage, kv_storage);
    check(q_storage == F32 ? fits(wide, a.B, a.L, a.H, a.Dv) : fits(half, a.B, a.L, a.H, a.Dv),
          "out must be contiguous, of shape (B, L, H, Dv)");
    if (a.B * a.L * a.H * a.Dv == 0) return;
    a.y = q_storage == F32 ? static_cast<void*>(wide.data) : half.data;
    a.causal = causal, a.scale = scale;
    const ArrayOf<int32_t> lengths(lengths_, "lengths");
    if (lengths) check(lengths.nd == 1 && lengths.shape[0] == a.B && lengths.contiguous(), "lengths must be contiguous, one for each text");
    a.lengths = lengths.data;
    run(kernels().attention->attention, a);
}

// Returns whether q, k and v are finite.
bool quant_attention(nb::handle q_, nb::handle k_, nb::handle v_, nb::handle out_, float scale) {
    const HeadsArray q(q_, "q", F32), k(k_, "k", F32), v(v_, "v", F32);
    const Array out(out_, "out", true);
    int strange = 0;
    QuantAttention x{inputs(q, k, v, Array(nb::none(), "bias"), F32, F32), &strange};
    Attention& a = x.attention;
    check(fits(out, a.B, a.L, a.H, a.Dv), "out must be contiguous, of shape (B, L, H, Dv)");
    check(a.G == 1 && a.D <= 512, "as many key heads as query heads, of at most 512 numbers");
    if (a.B * a.L * a.H * a.Dv == 0) return true;
    a.y = out.data, a.scale = scale;
    run(kernels().quant->attention, x);
    return !strange;
}

void attention_gradient(nb::handle g_, nb::handle q_, nb::handle k_, nb::handle v_, nb::handle dq_, nb::handle dk_, nb::handle dv_,
                        nb::handle bias_, bool causal, float scale) {
    const HeadsArray g(g_, "g", F32), q(q_, "q", F32), k(k_, "k", F32), v(v_, "v", F32);
    const Array bias(bias_, "bias"), dq(dq_, "dq", true), dk(dk_, "dk", true), dv(dv_, "dv", true);
    AttentionGradient x{};
    Attention& a = x.forward = inputs(q, k, v, bias, F32, F32);
    a.causal = causal, a.scale = scale;
    check(g.shape(0) == a.B && g.shape(1) == a.L && g.shape(2) == a.H && g.shape(3) == a.Dv, "g must be of shape (B, L, H, Dv)");
    check(fits(dq, a.B, a.L, a.H, a.D) && fits(dk, a.B, a.S, a.H / a.G, a.D) && fits(dv, a.B, a.S, a.H / a.G, a.Dv),
          "gradients must be contiguous and shaped as q, k and v");
    if (a.B * a.L * a.H * a.Dv == 0) fail("there are no queries or no values");
    x.g = g.heads(F32), x.dq = dq.data, x.dk = dk.data, x.dv = dv.data;
    run(kernels().attention->gradient, x);
}

}  // namespace

void bind_attention(nb::module_& m) {
    m.def("attention", attention, nb::arg("q"), nb::arg("k"), nb::arg("v"), nb::arg("out"), nb::arg("bias").none() = nb::none(),
          nb::arg("causal") = false, nb::arg("scale") = 1.0f, nb::arg("q_storage") = 0, nb::arg("kv_storage") = 0,
          nb::arg("lengths").none() = nb::none(),
          "q (B, L, H, D), k (B, S, H_kv, D), v (B, S, H_kv, Dv), bias (B, H, L, S) -> out (B, L, H, Dv), stored as q. "
          "storage: 0 float32, 1 bfloat16, 2 float16 (these two as uint16). lengths (B,), int32: how many of the S keys count.");
    m.def("quant_attention", quant_attention, nb::arg("q"), nb::arg("k"), nb::arg("v"), nb::arg("out"), nb::arg("scale"),
          "The same in integers of 16 bits; as many key heads as query heads. False if q, k or v held NaN or infinity.");
    m.def("attention_gradient", attention_gradient, nb::arg("g"), nb::arg("q"), nb::arg("k"), nb::arg("v"), nb::arg("dq"), nb::arg("dk"),
          nb::arg("dv"), nb::arg("bias").none() = nb::none(), nb::arg("causal") = false, nb::arg("scale") = 1.0f,
          "g (B, L, H, Dv) -> dq, dk, dv; all float32.");
}

}  // namespace zoo
