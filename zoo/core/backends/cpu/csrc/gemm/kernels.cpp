#include "../isa.h"
#include "table.h"

namespace zoo {
namespace {
#include "../simd.h"

#include "../activation.h"

#include "gemm.h"

void pack_any(int weight, const void* b, i64 b_k, i64 b_n, i64 N, i64 K, void* packed) {
    if (weight == F32) return pack(static_cast<const float*>(b), b_k, b_n, N, K, static_cast<float*>(packed));
    pack(static_cast<const bf16*>(b), b_k, b_n, N, K, static_cast<bf16*>(packed));  // float16 is moved in the same way
}

void gemm(const Gemm& g) {
    i64 batches = 1;
    for (int i = 0; i < g.axes; i++) batches *= g.batch[i];
    auto one = [](void* context, i64 index) {
        Gemm g = *static_cast<const Gemm*>(context);
        g.c += index * g.M * g.c_m;
        i64 b = 0;
        for (int i = g.axes - 1; i >= 0; i--) {
            g.a += index % g.batch[i] * g.a_batch[i];
            b += index % g.batch[i] * g.b_batch[i];
            index /= g.batch[i];
        }
        g.b = static_cast<const char*>(g.b) + b * (g.weight == F32 || g.weight == BF16_PAIRS ? 4 : 2);
        if (g.M == 0 || g.N == 0) return;
        switch (g.weight) {
            case BF16: return gemm_of<bf16>(g);
            case F16: return gemm_of<f16>(g);
#if defined(ZOO_AVX512BF16)
            case BF16_PAIRS: return gemm_of<pair>(g);
#endif
            default: return gemm_of<float>(g);
        }
    };
    Gemm copy = g;
    if (batches < threads() || 2 * g.M * g.N * g.K * batches < 1000000) {
        for (i64 i = 0; i < batches; i++) one(&copy, i);
    } else {
        parallel(batches, one, &copy);  // what is parallel inside runs on one thread there
    }
}
}  // namespace

extern const GemmKernels FAMILY_TABLE(gemm);
constexpr GemmKernels FAMILY_TABLE(gemm) = {MR, NR, PAIRS, pack_any, gemm};

}  // namespace zoo
