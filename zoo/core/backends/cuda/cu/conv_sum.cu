// y = act(scale * (partial[0] + partial[1] + ...) + bias + residual): what several blocks summed apart, added up in their order.
//
// layout  partial (splits, rows, across) in float32; a thread a result, neighbours beside each other
// floor   (4 splits + size of y) bytes a result
//
// constants  T: of y and residual; TB: of the bias; ACTIVATION

#include "prelude.cuh"
#include "conv.cuh"

extern "C" __global__ void conv_sum(const float *partial, T *y, const float *scale, const TB *bias, const T *residual, int splits,
                                    GEOMETRY) {
    const Geometry g = GIVEN;
    const After<TB> after = {scale, bias};
    const int across = g.O * g.groups;
    const int64_t all = int64_t(g.N) * g.P * g.Q * across, i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i >= all) return;
    const int m = i / across, o = i - int64_t(m) * across;
    float sum = 0;
    for (int split = 0; split < splits; split++) sum += partial[split * all + i];
    const int64_t at = Pixel(g, m).in_y(g) + o;
    y[at] = narrow<T>(after.finish<ACTIVATION>(sum, o, residual ? widen(residual[at]) : 0.f));
}
