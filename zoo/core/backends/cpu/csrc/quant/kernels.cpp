#include "../isa.h"
#include "table.h"

namespace zoo {
namespace {
#include "../simd.h"

#include "../activation.h"

#include "../gemm/pack.h"

#include "dot.h"

#include "activations.h"

#include "kernels8.h"

#include "kernels4.h"

#include "linear.h"

#include "conv.h"

#include "pack.h"

#include "../attention/softmax.h"

#include "attention.h"
}  // namespace

extern const QuantKernels FAMILY_TABLE(quant);
constexpr QuantKernels FAMILY_TABLE(quant) = {NR, pack8, pack4, linear, conv, attention};

}  // namespace zoo
