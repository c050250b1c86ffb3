// One product of a warp's tensor core, and the roundings: the registers' layouts against numpy.

#include "prelude.cuh"

__device__ void put(const uint32_t *from, uint32_t *to, int words) {
    for (int i = threadIdx.x; i < words; i += 32) to[i] = from[i];
    __syncthreads();
}


// d (16, 8) += a (16, 16) b (16, 8)
extern "C" __global__ void product(const HALF *a, const HALF *b, float *d) {
    SHARED(HALF, tile_a, 256);
    SHARED(HALF, tile_b, 128);
    put((const uint32_t *)a, (uint32_t *)tile_a, 128);
    put((const uint32_t *)b, (uint32_t *)tile_b, 64);
    int lane = threadIdx.x;
    uint32_t ra[4], rb[2];
    float rd[4];
    ldmatrix_x4(ra, tile_a + lane % 16 * 16 + lane / 16 * 8);
    ldmatrix_x2_trans(rb, tile_b + lane % 16 * 8);
    for (int i = 0; i < 4; i++) rd[i] = d[(lane / 4 + i / 2 * 8) * 8 + lane % 4 * 2 + i % 2];
    mma_m16n8k16<HALF>(rd, ra, rb);
    for (int i = 0; i < 4; i++) d[(lane / 4 + i / 2 * 8) * 8 + lane % 4 * 2 + i % 2] = rd[i];
}

// the same of b's transpose (8, 16)
extern "C" __global__ void product_of_transposed(const HALF *a, const HALF *b, float *d) {
    SHARED(HALF, tile_a, 256);
    SHARED(HALF, tile_b, 128);
    put((const uint32_t *)a, (uint32_t *)tile_a, 128);
    put((const uint32_t *)b, (uint32_t *)tile_b, 64);
    int lane = threadIdx.x;
    uint32_t ra[4], rb[2];
    float rd[4];
    ldmatrix_x4(ra, tile_a + lane % 16 * 16 + lane / 16 * 8);
    ldmatrix_x2(rb, tile_b + lane % 8 * 16 + lane / 8 % 2 * 8);
    for (int i = 0; i < 4; i++) rd[i] = d[(lane / 4 + i / 2 * 8) * 8 + lane % 4 * 2 + i % 2];
    mma_m16n8k16<HALF>(rd, ra, rb);
    for (int i = 0; i < 4; i++) d[(lane / 4 + i / 2 * 8) * 8 + lane % 4 * 2 + i % 2] = rd[i];
}

// d (16, 8) += a (16, 32) b^T, b (8, 32)
extern "C" __global__ void product_of_bytes(const int8_t *a, const int8_t *b, int *d) {
    int g = threadIdx.x / 4, t = threadIdx.x % 4, rd[4];
    const uint32_t *wa = (const uint32_t *)a, *wb = (const uint32_t *)b;
    uint32_t ra[4] = {wa[g * 8 + t], wa[(g + 8) * 8 + t], wa[g * 8 + t + 4], wa[(g + 8) * 8 + t + 4]};
    uint32_t rb[2] = {wb[g * 8 + t], wb[g * 8 + t + 4]};
    for (int i = 0; i < 4; i++) rd[i] = d[(g + i / 2 * 8) * 8 + t * 2 + i % 2];
    mma_m16n8k32_s8(rd, ra, rb);
    for (int i = 0; i < 4; i++) d[(g + i / 2 * 8) * 8 + t * 2 + i % 2] = rd[i];
}

extern "C" __global__ void widened(const HALF *x, float *y, HALF *back) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    y[i] = widen(x[i]);
    back[i] = narrow<HALF>(y[i]);
}

extern "C" __global__ void narrowed(const float *x, HALF *y) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    y[i] = narrow<HALF>(x[i]);
}
