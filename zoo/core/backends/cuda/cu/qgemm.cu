// Many rows times rounded weights: y[m,n] = act(x_scale[m] sum over k of codes[m,k] w[n,k] + bias[n]), in integers on tensor cores
// (mma m16n8k32; on sm_75 four of its m8n8k16, which have the same fragments).
//   BITS 8     w[n,k] = q scale[n]: one exact sum of integers
//   BITS 4     w[n,k] = q scale[n, k / 32]: an mma is one group of 32; its exact sum, times the scale, is added in float32
//   tile       a block of WARPS_M WARPS_N warps makes TILE_M x TILE_N of y; a warp TILE_M / WARPS_M x TILE_N / WARPS_N of it. Steps of 64
//              inputs, copied (cp.async) STAGES - 1 steps ahead
//                64 x 64    2 x 2 warps of 32 x 32, 4 stages     128 x 128   2 x 4 warps of 64 x 32, 3 stages
//   shared     codes [TILE_M][64], the 16-byte piece c of row r at place c ^ (r / 2 % 4): eight rows of ldmatrix meet no bank twice.
//              w of 8 bits [TILE_N][64] alike; of 4 bits [TILE_N][48], 32 of them used: rows 12 words apart meet no bank twice.
//              A stage is 8 KB or 16 KB (4 bits: 7 or 14 KB), all stages 32 or 48 KB
//   registers  TILE_M TILE_N / threads sums: 32 or 64; 4 bits as many floats, and 4 integers
//   floor      2 M N K operations: 16384 for each mma of a warp; (M + N) K bytes for each tile, from L2. 4 bits: 4 conversions and 4
//              multiply-adds of each lane beside each mma

#include "quant.cuh"

typedef Format<BITS>::Sum Sum;
typedef Format<BITS>::Scale Scale;
constexpr int STEP = 64, THREADS = 32 * WARPS_M * WARPS_N;
constexpr int W_BYTES = STEP * BITS / 8, W_PITCH = BITS == 8 ? 64 : 48;  // of a row of w in a step: used, and in shared memory
constexpr int A_STAGE = TILE_M * STEP, STAGE = A_STAGE + TILE_N * W_PITCH;
constexpr int MT = TILE_M / WARPS_M / 16, NT = TILE_N / WARPS_N / 8;  // fragments of a warp

constexpr int HALF_STEPS = BITS == 4 && ARCH < 80 ? 1 : 2;  // unrolled: sm_75 would want for registers

// Where piece c of 16 bytes of row r lies.
__device__ __forceinline__ int swizzled(int r, int c) { return r * STEP + (c ^ (r >> 1 & 3)) * 16; }

extern "C" __global__ void __launch_bounds__(THREADS, 1) qgemm(
    const int8_t *codes, const float *x_scale, const uint8_t *w, const Scale *scale, const B *bias, const X *x, X *y, int M, int N, int K,
    int pitch, int activation) {
    SHARED(uint8_t, memory, STAGES * STAGE);
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const int m0 = blockIdx.x * TILE_M, n0 = blockIdx.y * TILE_N, bytes = K * BITS / 8;
    const int wm = warp / WARPS_N * (TILE_M / WARPS_M), wn = warp % WARPS_N * (TILE_N / WARPS_N);  // the warp's place in the tile
    const bool whole = bytes % 16 == 0 && (uint64_t)w % 16 == 0;

    const auto copy = [&](int step) {
        uint8_t *const a = memory + step % STAGES * STAGE, *const b = a + A_STAGE;
        for (int i = threadIdx.x; i < TILE_M * (STEP / 16); i += THREADS) {
            const int r = i / (STEP / 16), c = i % (STEP / 16);
            cp_async16(a + swizzled(r, c), codes + (int64_t)min(m0 + r, M - 1) * pitch + step * STEP + c * 16, true);
        }
        for (int i = threadIdx.x; i < TILE_N * (W_BYTES / 16); i += THREADS) {
            const int r = i / (W_BYTES / 16), c = i % (W_BYTES / 16), at = step * W_BYTES + c * 16;
            const uint8_t *const row = w + (int64_t)min(n0 + r, N - 1) * bytes;
            uint8_t *const to = b + (BITS == 8 ? swizzled(r, c) : r * W_PITCH + c * 16);
            if (whole) cp_async16(to, at < bytes ? row + at : w, at < bytes);
            else {
                uint32_t words[4];
                load_bytes(row, at, bytes, words);
                for (int j = 0; j < 4; j++) reinterpret_cast<uint32_t *>(to)[j] = words[j];
            }
        }
    };

    Sum sum[MT][NT][4] = {};
    const int steps = (K + STEP - 1) / STEP;
    for (int s = 0; s < STAGES - 1; s++) {
        if (s < steps) copy(s);
        cp_async_commit();
    }
    for (int step = 0; step < steps; step++) {
        cp_async_wait<STAGES - 2>();
        __syncthreads();  // this step has arrived, and all are done with the last one, whose place the next copy takes
        if (step + STAGES - 1 < steps) copy(step + STAGES - 1);
        cp_async_commit();
        const uint8_t *const a = memory + step % STAGES * STAGE, *const b = a + A_STAGE;
#pragma unroll HALF_STEPS
        for (int half_step = 0; half_step < 2; half_step++) {  // 32 inputs
            uint32_t of_x[MT][4];
#pragma unroll
            for (int i = 0; i < MT; i++) ldmatrix_x4(of_x[i], a + swizzled(wm + i * 16 + lane % 16, half_step * 2 + lane / 16));
#if BITS == 8
            uint32_t of_w[NT][2];
#pragma unroll
            for (int j = 0; j < NT; j += 2) {
                uint32_t two[4];
                ldmatrix_x4(two, b + swizzled(wn + j * 8 + lane / 16 * 8 + lane % 8, half_step * 2 + lane / 8 % 2));
                of_w[j][0] = two[0], of_w[j][1] = two[1], of_w[j + 1][0] = two[2], of_w[j + 1][1] = two[3];
            }
#pragma unroll
            for (int i = 0; i < MT; i++)
#pragma unroll
                for (int j = 0; j < NT; j++) mma_m16n8k32_s8(sum[i][j], of_x[i], of_w[j]);
#else
            const int group = step * 2 + half_step;
#pragma unroll
            for (int j = 0; j < NT; j++) {
                const uint8_t *const words = b + (wn + j * 8 + lane / 4) * W_PITCH + half_step * 16 + lane % 4 * 4;
                const uint32_t word = *reinterpret_cast<const uint32_t *>(words);
                const uint32_t of_w[2] = {even_weights(word), odd_weights(word)};
                float of_group[2];
#pragma unroll
                for (int c = 0; c < 2; c++) {
                    const int n = min(n0 + wn + j * 8 + lane % 4 * 2 + c, N - 1);
                    of_group[c] = group * GROUP < K ? widen(scale[(int64_t)n * (K / GROUP) + group]) * 0.0625f : 0.0f;
                }
#pragma unroll
                for (int i = 0; i < MT; i++) {
                    int of_integers[4] = {};
                    mma_m16n8k32_s8(of_integers, of_x[i], of_w);
#pragma unroll
                    for (int c = 0; c < 4; c++) sum[i][j][c] += (float)of_integers[c] * of_group[c % 2];
                }
            }
#endif
        }
    }
    // 16 rows of each warp at a time go through shared memory, so that neighbours store side by side, and the end is written once
    constexpr int COLUMNS = NT * 8;
    Sum *const slab = reinterpret_cast<Sum *>(memory) + warp * 16 * COLUMNS;
    __syncthreads();
#pragma unroll
    for (int i = 0; i < MT; i++) {
#pragma unroll
        for (int j = 0; j < NT; j++)
#pragma unroll
            for (int c = 0; c < 4; c++) slab[(lane / 4 + c / 2 * 8) * COLUMNS + j * 8 + lane % 4 * 2 + c % 2] = sum[i][j][c];
        __syncwarp();
#pragma unroll 1
        for (int e = lane; e < 16 * COLUMNS; e += 32) {
            const int m = m0 + wm + i * 16 + e / COLUMNS, n = n0 + wn + e % COLUMNS;
            if (m < M && n < N)
                finish<BITS>(
                    slab[e], x_scale[m], x + (int64_t)m * K, w + (int64_t)n * bytes, scale, bias, y + (int64_t)m * N + n, n, K, activation);
        }
        __syncwarp();
    }
}
