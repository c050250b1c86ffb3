// One step of AdamW (Loshchilov & Hutter 2019), in float32 whatever parameter and gradient are stored in:
//   m' = beta1 m + (1 - beta1) g    v' = beta2 v + (1 - beta2) g^2    p' = decay p - rate m' / (sqrt(correct v') + eps)
//   with decay = 1 - lr weight_decay, rate = lr / (1 - beta1^step), correct = 1 / (1 - beta2^step)
// floor      bytes: p, g, m, v read, p, m, v written: 28 a parameter in float32, 22 with p and g in half precision
//
// Python sets P and G: how parameter and gradient are stored. A thread has four parameters: 16 bytes of the moments.
#include "prelude.cuh"
#define T float
#include "vectors.cuh"

extern "C" __global__ void __launch_bounds__(256) adamw(
    const P* p, const G* g, const float* m, const float* v, P* new_p, float* new_m, float* new_v, int64_t n, float beta1,
    float rest1, float beta2, float rest2, float correct, float eps, float decay, float rate) {
    const int64_t at = ((int64_t)blockIdx.x * 256 + threadIdx.x) * N, left = n - at;
    if (left <= 0) return;
    float a[N], b[N], c[N], d[N];
    load(p + at, left, left >= N && aligned(p), a);
    load(g + at, left, left >= N && aligned(g), b);
    load(m + at, left, left >= N && aligned(m), c);
    load(v + at, left, left >= N && aligned(v), d);
#pragma unroll
    for (int i = 0; i < N; i++) {
        c[i] = c[i] * beta1 + b[i] * rest1;
        d[i] = d[i] * beta2 + b[i] * b[i] * rest2;
        a[i] = a[i] * decay - c[i] / (sqrtf(d[i] * correct) + eps) * rate;
    }
    store(new_p + at, left, left >= N && aligned(new_p), a);
    store(new_m + at, left, left >= N && aligned(new_m), c);
    store(new_v + at, left, left >= N && aligned(new_v), d);
}
