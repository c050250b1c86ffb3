// What follows a product by cuBLAS: y[m,n] = act(c[m,n] scale[m] + bias[n]); in place if Y is float.
//   floor      4 + sizeof(Y) bytes for each number

#include "prelude.cuh"
#include "activation.cuh"

// A block of 256 threads has 1024 columns of one row at a time.
extern "C" __global__ void __launch_bounds__(256) finish(const float *c, const float *scale, const B *bias, Y *y, int M, int N, int activation) {
    const int n = (blockIdx.x * 256 + threadIdx.x) * 4;
    if (n >= N) return;
    const bool whole = N % 4 == 0;
    float added[4];
    for (int i = 0; i < 4; i++) added[i] = bias && n + i < N ? widen(bias[n + i]) : 0.0f;
    for (int64_t m = blockIdx.y; m < M; m += gridDim.y) {
        const float factor = scale ? scale[m] : 1.0f;
        Vec<float, 4> in;
        Vec<Y, 4> out;
        if (whole) in.load(c + m * N + n);
        for (int i = 0; i < 4; i++) {
            if (!whole) in[i] = n + i < N ? c[m * N + n + i] : 0.0f;
            out[i] = narrow<Y>(activate(activation, in[i] * factor + added[i]));
            if (!whole && n + i < N) y[m * N + n + i] = out[i];
        }
        if (whole) out.store(y + m * N + n);
    }
}
