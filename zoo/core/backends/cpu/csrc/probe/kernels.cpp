#include "../isa.h"
#include "table.h"

namespace zoo {
namespace {
#include "../simd.h"

#include "../stream.h"

#include "probe.h"
}  // namespace

extern const ProbeKernels FAMILY_TABLE(probe);
constexpr ProbeKernels FAMILY_TABLE(probe) = {fma, INT8_DOTS, BF16_DOTS, read, copy};

}  // namespace zoo
