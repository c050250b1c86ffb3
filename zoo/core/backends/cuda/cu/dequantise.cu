// Weights of 8 and 4 bits in numbers again. Formats: zoo/core/prims/quant.py. ID: what ids are stored in.
//   floor    1 byte read, sizeof(Y) or, of 4 bits, 2 sizeof(Y) written

#include "quant.cuh"

#if defined(ID)
// The embedding: y[i] = q[ids[i]] scale[ids[i]], a block for each i. A GPU cannot raise: an index outside the table gives NaN.
extern "C" __global__ void __launch_bounds__(128) dequantise_rows(const int8_t *q, const float *scale, const ID *ids, Y *y, int count, int K) {
    const int64_t id = ids[blockIdx.x];
    const bool there = 0 <= id && id < count;
    const float s = there ? scale[id] : NAN;
    for (int k = threadIdx.x; k < K; k += 128) y[blockIdx.x * (int64_t)K + k] = narrow<Y>(there ? (float)q[id * K + k] * s : NAN);
}
#else
// A thread has one byte of q [N][K] at a time.
extern "C" __global__ void __launch_bounds__(256) dequantise8(const int8_t *q, const float *scale, Y *w, int64_t count, int K) {
    for (int64_t i = blockIdx.x * 256LL + threadIdx.x; i < count; i += gridDim.x * 256LL) w[i] = narrow<Y>((float)q[i] * scale[i / K]);
}

extern "C" __global__ void __launch_bounds__(256) dequantise4(const uint8_t *q, const half *scale, Y *w, int64_t count, int K) {
    for (int64_t i = blockIdx.x * 256LL + threadIdx.x; i < count; i += gridDim.x * 256LL) {
        const float s = widen(scale[i / (GROUP / 2)]);
        Vec<Y, 2> pair;
        pair[0] = narrow<Y>(((float)(q[i] & 15) - 8.0f) * s);
        pair[1] = narrow<Y>(((float)(q[i] >> 4) - 8.0f) * s);
        pair.store(w + 2 * i);
    }
}
#endif
