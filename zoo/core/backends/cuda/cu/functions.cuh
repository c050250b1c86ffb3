// The functions of the op table's expressions, as numpy has them: NaN goes through maximum and minimum, the remainder has
// the sign of the divisor, whole numbers wrap and have no infinities. Half precision has been widened before.

namespace op {

template <typename Number> __device__ __forceinline__ Number abs(Number x) { return x < 0 ? Number(-x) : x; }
__device__ __forceinline__ float abs(float x) { return fabsf(x); }
__device__ __forceinline__ double abs(double x) { return fabs(x); }

template <typename Number> __device__ __forceinline__ Number sign(Number x) {
    return x > 0 ? Number(1) : x < 0 ? Number(-1) : x;  // NaN and zero as they are
}

#define ZOO_FLOATS(name, single, dual)                                            \
    __device__ __forceinline__ float name(float x) { return single(x); }          \
    __device__ __forceinline__ double name(double x) { return dual(x); }
ZOO_FLOATS(exp, expf, ::exp)
ZOO_FLOATS(log, logf, ::log)
ZOO_FLOATS(sqrt, sqrtf, ::sqrt)
ZOO_FLOATS(rsqrt, 1 / sqrtf, 1 / ::sqrt)
ZOO_FLOATS(sin, sinf, ::sin)
ZOO_FLOATS(cos, cosf, ::cos)
ZOO_FLOATS(tanh, tanhf, ::tanh)
ZOO_FLOATS(erf, erff, ::erf)

template <typename Number> __device__ __forceinline__ Number floor(Number x) { return x; }
template <> __device__ __forceinline__ float floor(float x) { return floorf(x); }
template <> __device__ __forceinline__ double floor(double x) { return ::floor(x); }
template <typename Number> __device__ __forceinline__ Number round(Number x) { return x; }
template <> __device__ __forceinline__ float round(float x) { return rintf(x); }
template <> __device__ __forceinline__ double round(double x) { return rint(x); }

// e lies in (0, 1]: neither branch overflows nor cancels.
template <typename Number> __device__ __forceinline__ Number sigmoid(Number x) {
    Number e = exp(-abs(x));
    return (x >= 0 ? Number(1) : e) / (1 + e);
}

template <typename Number> __device__ __forceinline__ bool isnan(Number x) { return x != x; }
template <typename Number, typename Other> __device__ __forceinline__ Number maximum(Number a, Other b) {
    return ::maximum(a, Number(b));
}
template <typename Number, typename Other> __device__ __forceinline__ Number minimum(Number a, Other b) {
    return ::minimum(a, Number(b));
}
template <typename Number> __device__ __forceinline__ Number where(bool condition, Number a, Number b) {
    return condition ? a : b;
}
__device__ __forceinline__ bool logical_not(bool a) { return !a; }
__device__ __forceinline__ bool logical_and(bool a, bool b) { return a && b; }
__device__ __forceinline__ bool logical_or(bool a, bool b) { return a || b; }

__device__ __forceinline__ float pow(float a, float b) { return powf(a, b); }
__device__ __forceinline__ double pow(double a, double b) { return ::pow(a, b); }

// Of whole numbers by 0: 0, as numpy says.
template <typename Number> __device__ __forceinline__ Number remainder(Number a, Number b) {
    if (b == 0 || b == Number(-1)) return 0;
    Number r = a % b;
    return r != 0 && (r < 0) != (b < 0) ? r + b : r;
}
__device__ __forceinline__ float remainder(float a, float b) {
    float r = fmodf(a, b);
    return r != 0 ? (r < 0) != (b < 0) ? r + b : r : copysignf(0, b);
}
__device__ __forceinline__ double remainder(double a, double b) {
    double r = fmod(a, b);
    return r != 0 ? (r < 0) != (b < 0) ? r + b : r : copysign(0.0, b);
}

}  // namespace op
