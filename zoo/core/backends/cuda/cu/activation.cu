// y = act(x);  d x = g act'(x);  swiglu y = silu(gate) up and its gradients;  geglu y = h gelu(gate), h and gate the halves of
// each row of x (rows, 2 columns). Value by value, a thread for each 16 bytes of the result.
// floor      bytes: sizeof(T) for each array: 2 forward, 3 for swiglu, geglu and a slope, 5 for both gradients of swiglu
//
// Python sets T and ACTIVATION.
#include "prelude.cuh"
#include "vectors.cuh"
#include "activation.cuh"

extern "C" __global__ void __launch_bounds__(256) activation(const T* x, T* y, int64_t n) {
    const int64_t at = ((int64_t)blockIdx.x * 256 + threadIdx.x) * N;
    if (at >= n) return;
    float v[N];
    load(x + at, n - at, at + N <= n && aligned(x), v);
#pragma unroll
    for (int i = 0; i < N; i++) v[i] = activate<ACTIVATION>(v[i]);
    store(y + at, n - at, at + N <= n && aligned(y), v);
}

// relu chooses g or 0 (an infinite g where the slope is 0 is 0, not NaN).
extern "C" __global__ void __launch_bounds__(256) activation_grad(const T* x, const T* g, T* dx, int64_t n) {
    const int64_t at = ((int64_t)blockIdx.x * 256 + threadIdx.x) * N;
    if (at >= n) return;
    float v[N], s[N];
    load(x + at, n - at, at + N <= n && aligned(x), v);
    load(g + at, n - at, at + N <= n && aligned(g), s);
#pragma unroll
    for (int i = 0; i < N; i++) v[i] = ACTIVATION == 1 ? (v[i] > 0 ? s[i] : 0.0f) : s[i] * slope_at<ACTIVATION>(v[i]);
    store(dx + at, n - at, at + N <= n && aligned(dx), v);
}

extern "C" __global__ void __launch_bounds__(256) swiglu(const T* gate, const T* up, T* y, int64_t n) {
    const int64_t at = ((int64_t)blockIdx.x * 256 + threadIdx.x) * N;
    if (at >= n) return;
    float a[N], b[N];
    load(gate + at, n - at, at + N <= n && aligned(gate), a);
    load(up + at, n - at, at + N <= n && aligned(up), b);
#pragma unroll
    for (int i = 0; i < N; i++) a[i] = activate<5>(a[i]) * b[i];
    store(y + at, n - at, at + N <= n && aligned(y), a);
}

extern "C" __global__ void __launch_bounds__(256) swiglu_grad(
    const T* gate, const T* up, const T* g, T* d_gate, T* d_up, int64_t n) {
    const int64_t at = ((int64_t)blockIdx.x * 256 + threadIdx.x) * N;
    if (at >= n) return;
    float a[N], b[N], s[N];
    load(gate + at, n - at, at + N <= n && aligned(gate), a);
    load(up + at, n - at, at + N <= n && aligned(up), b);
    load(g + at, n - at, at + N <= n && aligned(g), s);
#pragma unroll
    for (int i = 0; i < N; i++) {
        b[i] = s[i] * b[i] * slope_at<5>(a[i]);
        a[i] = s[i] * activate<5>(a[i]);
    }
    store(d_gate + at, n - at, at + N <= n && aligned(d_gate), b);
    store(d_up + at, n - at, at + N <= n && aligned(d_up), a);
}

extern "C" __global__ void __launch_bounds__(256) geglu(const T* x, T* y, int64_t rows, int columns) {
    const int64_t vectors = (columns + N - 1) / N, at = (int64_t)blockIdx.x * 256 + threadIdx.x, row = at / vectors;
    if (row >= rows) return;
    const int j = (int)(at % vectors) * N, left = columns - j;
    const bool whole = columns % N == 0 && aligned(x);
    float h[N], gate[N];
    load(x + row * 2 * columns + j, left, whole, h);
    load(x + (row * 2 + 1) * columns + j, left, whole, gate);
#pragma unroll
    for (int i = 0; i < N; i++) h[i] *= activate<2>(gate[i]);
    store(y + row * columns + j, left, columns % N == 0 && aligned(y), h);
}
