// What every kernel includes: types by name, half precision widened and narrowed, vectors of 16 bytes, sums and maxima over
// a warp and a block. No header of CUDA's is read (NVRTC brings none), so that nothing but a kernel's own text decides what it is.
//
// A driver has set ARCH (75 for sm_75) and the constants of the kernel before this text. Names in capitals are left to
// those constants: templates here spell theirs out.

typedef signed char int8_t;
typedef unsigned char uint8_t;
typedef short int16_t;
typedef unsigned short uint16_t;
typedef int int32_t;
typedef unsigned int uint32_t;
typedef long long int64_t;
typedef unsigned long long uint64_t;

// Half precision is a storage type: widen(x) calculates, narrow<half>(f) rounds to nearest, ties to even.
struct __align__(2) half {
    uint16_t bits;
};
struct __align__(2) bfloat16 {
    uint16_t bits;
};

#include "intrinsics.cuh"

constexpr uint32_t FULL = 0xffffffff;  // every lane takes part

// The type in which values of `Stored` are calculated: float for half precision, else itself.
template <typename Stored> struct Wide {
    typedef Stored type;
};
template <> struct Wide<half> {
    typedef float type;
};
template <> struct Wide<bfloat16> {
    typedef float type;
};

template <typename Stored> __device__ __forceinline__ Stored widen(Stored x) { return x; }
__device__ __forceinline__ float widen(half x) { return float_of_half(x.bits); }
__device__ __forceinline__ float widen(bfloat16 x) { return float_of_bfloat16(x.bits); }

template <typename To> struct Narrow {
    template <typename From> static __device__ __forceinline__ To of(From x) { return static_cast<To>(x); }
};
template <> struct Narrow<half> {
    static __device__ __forceinline__ half of(float x) { return half{half_of_float(x)}; }
};
template <> struct Narrow<bfloat16> {
    static __device__ __forceinline__ bfloat16 of(float x) { return bfloat16{bfloat16_of_float(x)}; }
};
template <typename To, typename From> __device__ __forceinline__ To narrow(From x) { return Narrow<To>::of(x); }

// Two halves in a register, as mma takes them: the first in the lower bits.
template <typename Half> __device__ __forceinline__ uint32_t pack2(float low, float high) {
    return uint32_t(narrow<Half>(low).bits) | uint32_t(narrow<Half>(high).bits) << 16;
}

// `count` values that are read and written together, by 16 bytes where there are as many: v.load(p); v[0]; v.store(p).
// p lies on a multiple of their size, or of 16.
template <typename Element, int count>
struct __align__(sizeof(Element) * count < 16 ? sizeof(Element) * count : 16) Vec {
    Element value[count];

    __device__ __forceinline__ Element &operator[](int i) { return value[i]; }
    __device__ __forceinline__ const Element &operator[](int i) const { return value[i]; }
    __device__ __forceinline__ void load(const Element *p) {
        check_aligned(p, alignof(Vec));
        *this = *reinterpret_cast<const Vec *>(p);
    }
    __device__ __forceinline__ void store(Element *p) const {
        check_aligned(p, alignof(Vec));
        *reinterpret_cast<Vec *>(p) = *this;
    }
};

// NaN wins, as in numpy (fmaxf and fminf would lose it).
template <typename Number> __device__ __forceinline__ Number maximum(Number a, Number b) { return a > b || a != a ? a : b; }
template <typename Number> __device__ __forceinline__ Number minimum(Number a, Number b) { return a < b || a != a ? a : b; }

template <typename Number> __device__ __forceinline__ Number warp_sum(Number value) {
    for (int apart = 16; apart; apart /= 2) value += __shfl_xor_sync(FULL, value, apart);
    return value;
}

template <typename Number> __device__ __forceinline__ Number warp_max(Number value) {
    for (int apart = 16; apart; apart /= 2) value = maximum(value, __shfl_xor_sync(FULL, value, apart));
    return value;
}

template <typename Number> __device__ __forceinline__ Number warp_min(Number value) {
    for (int apart = 16; apart; apart /= 2) value = minimum(value, __shfl_xor_sync(FULL, value, apart));
    return value;
}

// Over a block of whole warps in one dimension; every thread gets the result. scratch: 32 numbers of shared memory, free
// for others when it returns.
template <typename Number> __device__ __forceinline__ Number block_sum(Number value, Number *scratch) {
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = blockDim.x / 32;
    value = warp_sum(value);
    if (lane == 0) scratch[warp] = value;
    __syncthreads();
    value = warp_sum(lane < warps ? scratch[lane] : Number(0));
    __syncthreads();
    return value;
}

template <typename Number> __device__ __forceinline__ Number block_max(Number value, Number *scratch) {
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = blockDim.x / 32;
    value = warp_max(value);
    if (lane == 0) scratch[warp] = value;
    __syncthreads();
    value = warp_max(scratch[lane < warps ? lane : 0]);
    __syncthreads();
    return value;
}

template <typename Number> __device__ __forceinline__ Number block_min(Number value, Number *scratch) {
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = blockDim.x / 32;
    value = warp_min(value);
    if (lane == 0) scratch[warp] = value;
    __syncthreads();
    value = warp_min(scratch[lane < warps ? lane : 0]);
    __syncthreads();
    return value;
}
