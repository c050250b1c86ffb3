// Activations and their slopes, in float32, numbered in the order of ACTIVATIONS in zoo/core/prims/nn.py:
// 0 none, 1 relu, 2 gelu, 3 gelu_tanh, 4 quick_gelu, 5 silu, 6 sigmoid, 7 tanh. NaN stays NaN.

// In (0, 1]: neither branch overflows nor cancels.
__device__ __forceinline__ float sigmoid_of(float x) {
    const float e = expf(-fabsf(x));
    return (x >= 0 ? 1.0f : e) / (1.0f + e);
}

// The normal distribution function; erfc keeps its lower tail.
__device__ __forceinline__ float normal_cdf(float x) { return 0.5f * erfcf(x * -0.707106781f); }

template <int activation> __device__ __forceinline__ float activate(float x) {
    if (activation == 1) return maximum(x, 0.0f);
    if (activation == 2) return x * normal_cdf(x);
    if (activation == 3) return x * sigmoid_of(x * (1.5957691216f + 0.0713548163f * (x * x)));  // 2 sqrt(2 / pi), times 0.044715
    if (activation == 4) return x * sigmoid_of(1.702f * x);
    if (activation == 5) return x * sigmoid_of(x);
    if (activation == 6) return sigmoid_of(x);
    if (activation == 7) return tanhf(x);
    return x;
}

// The slope at x; of relu, sigmoid and tanh where the result is x.
template <int activation> __device__ __forceinline__ float slope_at(float x) {
    if (activation == 1) return x > 0 ? 1.0f : 0.0f;
    if (activation == 6) return x * (1.0f - x);
    if (activation == 7) return 1.0f - x * x;
    if (activation == 2) return normal_cdf(x) + x * expf(x * x * -0.5f) * 0.398942280f;  // 1 / sqrt(2 pi)
    float u = x, du = 1.0f;
    if (activation == 3) {
        u = x * (1.5957691216f + 0.0713548163f * (x * x));
        du = 1.5957691216f + 0.2140644489f * (x * x);
    }
    if (activation == 4) u = 1.702f * x, du = 1.702f;
    const float s = sigmoid_of(u);
    return s + x * s * (1.0f - s) * du;
}

// Chosen at the call, for kernels that are large and apply it once to each number: all threads go the same way.
__device__ inline float activate(int activation, float x) {
    switch (activation) {
        case 1: return activate<1>(x);
        case 2: return activate<2>(x);
        case 3: return activate<3>(x);
        case 4: return activate<4>(x);
        case 5: return activate<5>(x);
        case 6: return activate<6>(x);
        case 7: return activate<7>(x);
        default: return x;
    }
}
