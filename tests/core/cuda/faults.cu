// Kernels with one fault each, and the same without it: what the emulator must find.

#include "prelude.cuh"

// y[i] = x[n - 1 - i] through shared memory
extern "C" __global__ void turned(const float *x, float *y) {
    SHARED(float, kept, 64);
    kept[threadIdx.x] = x[threadIdx.x];
#if FAULT != 1
    __syncthreads();
#endif
    y[threadIdx.x] = kept[63 - threadIdx.x];
}

extern "C" __global__ void beyond(const float *x, float *y, int n) {
    y[threadIdx.x] = x[threadIdx.x + (FAULT == 2 ? 1 : 0)];
    if (FAULT == 3 && threadIdx.x == 0) y[n] = 0;
    if (FAULT == 4 && threadIdx.x == 0) y[-1] = 0;
}

extern "C" __global__ void barriers(float *y) {
    if (FAULT == 5 && threadIdx.x == 3) return;
    if (FAULT == 6 && threadIdx.x < 32)
        __syncthreads();
    else
        __syncthreads();
    y[threadIdx.x] = 1;
}

extern "C" __global__ void warps(float *y) {
    if (FAULT == 7 && threadIdx.x % 32 == 5) return;
    float sum = warp_sum(1.0f);
    if (FAULT == 8 && threadIdx.x % 32 < 16)
        sum = __shfl_sync(FULL, sum, 0);
    else
        sum = __shfl_sync(FULL, sum, 1);
    y[threadIdx.x] = sum;
}

extern "C" __global__ void shared_arrays(float *y) {
    SHARED(float, first, 64);
    SHARED(float, second, 64);
    if (FAULT != 9) first[threadIdx.x] = second[threadIdx.x] = 1;
    if (FAULT == 10 && threadIdx.x == 63) first[64] = 1;
    y[threadIdx.x] = first[threadIdx.x] + second[threadIdx.x];
}

extern "C" __global__ void too_much_shared(float *y) {
    SHARED(float, kept, FAULT == 11 ? 13000 : 12000);
    kept[threadIdx.x] = 1;
    y[threadIdx.x] = kept[threadIdx.x];
}

extern "C" __global__ void misaligned(const half *x, half *y) {
    Vec<half, 8> v;
    v.load(x + (FAULT == 12 ? 1 : 0));
    v.store(y);
}

extern "C" __global__ void dynamic(float *y) {
    DYNAMIC_SHARED(float, kept);
    kept[threadIdx.x] = 2;
    if (FAULT == 13 && threadIdx.x == 0) kept[blockDim.x] = 1;
    y[threadIdx.x] = kept[threadIdx.x];
}

// sum over a block of what each thread brought by cp.async
extern "C" __global__ void copied(const float *x, float *y) {
    SHARED(float, kept, 256);
    cp_async16(kept + 4 * threadIdx.x, x + 4 * threadIdx.x, threadIdx.x != 1);
    cp_async_commit();
#if FAULT != 14
    cp_async_wait<0>();
#endif
    __syncthreads();
    for (int i = 0; i < 4; i++) y[64 * i + threadIdx.x] = kept[64 * i + (threadIdx.x + 1) % 64];
#if FAULT == 14
    cp_async_wait<0>();
#endif
}
