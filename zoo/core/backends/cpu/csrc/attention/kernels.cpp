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

void attention(const Attention& a) { a.L * a.G <= DECODE_ROWS ? decode(a) : prefill(a); }
}  // namespace

extern const AttentionKernels FAMILY_TABLE(attention);
constexpr AttentionKernels FAMILY_TABLE(attention) = {attention, gradient};

}  // namespace zoo
