#include "../gemm/table.h"
#include "../isa.h"
#include "table.h"

namespace zoo {
namespace {
#include "../simd.h"

#include "../activation.h"

#include "../gemm/gemm.h"

#include "conv.h"

#include "winograd.h"

#include "depthwise.h"

#include "scatter.h"

#include "door.h"
}  // namespace

extern const ConvKernels FAMILY_TABLE(conv);
constexpr ConvKernels FAMILY_TABLE(conv) = {pack_conv, conv, conv_scatter};

}  // namespace zoo
