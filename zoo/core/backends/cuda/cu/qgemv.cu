// Few rows times rounded weights: y[m,n] = act(x_scale[m] sum over k of codes[m,k] w[n,k] + bias[n]), m < rows <= MOST <= 8.
//   BITS 8     w[n,k] = q scale[n]: the sum is one of integers
//   BITS 4     w[n,k] = q scale[n, k / 32]: integers within a group of 32, float32 over the groups
//   warps      as gemv.cu: a warp has ROWS outputs n and, with split - 1 others, all k. A lane takes 16 bytes of w at a time, 16 inputs or
//              one group of 32, and as many codes of each row of x, by dp4a: 4 of 8 bits, 8 of 4 bits, for 16 bytes of w
//   registers  MOST ROWS sums + 4 ROWS words of w + 4 or 8 of codes: 32 + 16 + 8
//   floor      N K BITS / 8 bytes (4 bits: + N K / 16 of scales). On their way are 512 ROWS bytes for each warp: see gemv.cu
//   sums       of 8 bits are exact; of 4 bits their order depends on K and split alone

#include "quant.cuh"

typedef Format<BITS>::Sum Sum;
typedef Format<BITS>::Scale Scale;
constexpr int PER = 128 / BITS, WARPS = 4, UNROLLED = MOST > 1 ? 1 : 2;  // PER: inputs in 16 bytes

extern "C" __global__ void __launch_bounds__(32 * WARPS) qgemv(
    const int8_t *codes, const float *x_scale, const uint8_t *w, const Scale *scale, const B *bias, const X *x, X *y, int rows, int N,
    int K, int pitch, int activation, int split) {
    SHARED(Sum, parts, WARPS * MOST * ROWS);
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, part = warp % split, bytes = K * BITS / 8;
    const int n0 = (blockIdx.x * (WARPS / split) + warp / split) * ROWS;
    const bool whole = bytes % 16 == 0 && (uint64_t)w % 16 == 0;

    Sum sum[MOST][ROWS] = {};
#pragma unroll UNROLLED
    for (int k = (lane + 32 * part) * PER; k < K; k += 32 * split * PER) {
        uint32_t of_w[ROWS][4];
#pragma unroll
        for (int r = 0; r < ROWS; r++) {
            const uint8_t *row = w + (int64_t)min(n0 + r, N - 1) * bytes;
            if (whole) {
                Vec<uint32_t, 4> run;
                run.load(reinterpret_cast<const uint32_t *>(row + k * BITS / 8));
                for (int i = 0; i < 4; i++) of_w[r][i] = run[i];
            } else load_bytes(row, k * BITS / 8, bytes, of_w[r]);
        }
#if BITS == 4
        float of_group[ROWS];
#pragma unroll
        for (int r = 0; r < ROWS; r++) of_group[r] = widen(scale[(int64_t)min(n0 + r, N - 1) * (K / GROUP) + k / GROUP]) * 0.0625f;
#endif
#pragma unroll
        for (int m = 0; m < MOST; m++) {
            uint32_t of_x[PER / 4];
#pragma unroll
            for (int i = 0; i < PER / 4; i += 4) {
                Vec<uint32_t, 4> run;
                run.load(reinterpret_cast<const uint32_t *>(codes + (int64_t)min(m, rows - 1) * pitch + k + 4 * i));
                for (int j = 0; j < 4; j++) of_x[i + j] = run[j];
            }
#pragma unroll
            for (int r = 0; r < ROWS; r++) {
#if BITS == 8
#pragma unroll
                for (int i = 0; i < 4; i++) sum[m][r] = dp4a(of_w[r][i], of_x[i], sum[m][r]);
#else
                int whole_sum = 0;
#pragma unroll
                for (int i = 0; i < 4; i++) {
                    whole_sum = dp4a(even_weights(of_w[r][i]), of_x[i], whole_sum);
                    whole_sum = dp4a(odd_weights(of_w[r][i]), of_x[4 + i], whole_sum);
                }
                sum[m][r] += (float)whole_sum * of_group[r];
#endif
            }
        }
    }
#pragma unroll
    for (int m = 0; m < MOST; m++)
#pragma unroll
        for (int r = 0; r < ROWS; r++) {
            const Sum total = warp_sum(sum[m][r]);
            if (lane == 0) parts[(warp * MOST + m) * ROWS + r] = total;
        }
    __syncthreads();
    for (int i = lane; i < MOST * ROWS; i += 32) {
        const int m = i / ROWS, n = n0 + i % ROWS;
        if (part != 0 || m >= rows || n >= N) continue;
        Sum total = parts[warp * MOST * ROWS + i];
        for (int p = 1; p < split; p++) total += parts[(warp + p) * MOST * ROWS + i];
        finish<BITS>(
            total, x_scale[m], x + (int64_t)m * K, w + (int64_t)n * bytes, scale, bias, y + (int64_t)m * N + n, n, K,
            activation);
    }
}
