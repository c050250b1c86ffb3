#include "../isa.h"
#include "table.h"

namespace zoo {
namespace {
#include "../simd.h"

#include "../gemm/pack.h"

#include "../gemm/micro.h"

#include "softmax.h"

#include "prefill.h"

#include "decode.h"

#include "gradient.h"

void all_keys(const Attention& a) {
    if (a.S > 0) return a.L * a.G <= DECODE_ROWS ? decode(a) : prefill(a);
    __builtin_memset(a.y, 0, (size_t)(a.B * a.L * a.H * a.Dv * size_of(a.q.storage)));
}

Heads from_text(const Heads& x, i64 b) {
    Heads y = x;
    y.data = static_cast<const char*>(x.data) + b * x.batch * size_of(x.storage);
    return y;
}

// Texts of one length at once, as if there were no more keys; others one by one.
void attention(const Attention& a) {
    if (!a.lengths) return all_keys(a);
    bool equal = true;
    for (i64 b = 1; b < a.B; b++) equal = equal && a.lengths[b] == a.lengths[0];
    for (i64 b = 0; b < (equal ? 1 : a.B); b++) {
        Attention part = a;
        part.S = at_most(a.S, at_least(0, a.lengths[b]));
        if (!equal) {
            part.B = 1;
            part.q = from_text(a.q, b), part.k = from_text(a.k, b), part.v = from_text(a.v, b);
            part.y = static_cast<char*>(a.y) + b * a.L * a.H * a.Dv * size_of(a.q.storage);
            if (a.bias) part.bias = a.bias + b * a.bias_stride[0];
        }
        all_keys(part);
    }
}
}  // namespace

extern const AttentionKernels FAMILY_TABLE(attention);
constexpr AttentionKernels FAMILY_TABLE(attention) = {attention, gradient};

}  // namespace zoo
