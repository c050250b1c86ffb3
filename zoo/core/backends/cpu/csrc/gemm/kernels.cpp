#include "../isa.h"
#include "table.h"

namespace zoo {
namespace {
#include "../simd.h"

#include "../activation.h"

#include "gemm.h"
}  // namespace

extern const GemmKernels FAMILY_TABLE(gemm);
constexpr GemmKernels FAMILY_TABLE(gemm) = {MR, NR, pack, gemm};

}  // namespace zoo
