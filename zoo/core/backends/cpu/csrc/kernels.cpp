// The kernels of one instruction set. CMakeLists.txt compiles this file once for each, with its flags and its ZOO_ISA.
#include "kernels.h"
#if defined(ZOO_AVX512) || defined(ZOO_AVX2)
#include <immintrin.h>
#endif

namespace zoo {
namespace {
#include "simd.h"

#include "activation.h"

#include "gemm.h"

#include "conv.h"
}  // namespace

#define TEXT_OF(x) #x
#define TEXT(x) TEXT_OF(x)
#define JOIN_OF(a, b) a##b
#define JOIN(a, b) JOIN_OF(a, b)
extern const KernelTable JOIN(table_, ZOO_ISA);
constexpr KernelTable JOIN(table_, ZOO_ISA) = {TEXT(ZOO_ISA), MR, NR, pack, pack_conv, gemm, conv};

}  // namespace zoo
