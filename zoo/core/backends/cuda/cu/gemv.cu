// Products of few rows: y[m,n] = act(sum over k of x[m,k] w[n,k] + bias[n]), m < rows <= MOST <= 8. X, W, B, Y: what x, w, bias and
// y are stored in.
//   warps      a warp has ROWS outputs n and, with split - 1 others of its block, all k: lane l of part p takes the PER = 16 / sizeof(W)
//              inputs from (l + 32 (p + split i)) PER on. ROWS loads of 16 bytes of w are on their way at once, and x, which is read
//              from L1, is used ROWS times
//   registers  MOST ROWS sums + ROWS PER of w + PER of x: 32 + 32 + 8 of 8 rows in halves
//   floor      N K sizeof(W) bytes. An H100 brings 3.35 TB/s 0.7 us after it was asked: 2.3 MB, 18 KB of each SM, must be on their
//              way. A warp asks for 512 ROWS bytes, so 9 warps of 4 outputs; kernels/gemm.py splits k until each SM has 16; of 8 rows 12 fit
//              its registers
//   sums       in float32, in an order that depends on K, split and the type alone

#include "prelude.cuh"
#include "activation.cuh"

constexpr int PER = 16 / sizeof(W), WARPS = 4, UNROLLED = MOST * ROWS > 16 ? 1 : 2;
constexpr int BLOCKS = MOST == 4 ? 3 : 0;  // on an SM at least. Of 4 rows ptxas, left to choose (0), would spill for a block more

// v = p[0 .. PER - 1]; only `left` of them are there. whole: all, and 16-byte loads may be used.
template <typename T> __device__ __forceinline__ void load_run(const T *p, int left, bool whole, float (&v)[PER]) {
    if (whole) {
        constexpr int each = 16 / sizeof(T) < PER ? 16 / sizeof(T) : PER;
#pragma unroll
        for (int i = 0; i < PER; i += each) {
            Vec<T, each> run;
            run.load(p + i);
#pragma unroll
            for (int j = 0; j < each; j++) v[i + j] = widen(run[j]);
        }
    } else {
#pragma unroll
        for (int i = 0; i < PER; i++) v[i] = i < left ? widen(p[i]) : 0.0f;
    }
}

extern "C" __global__ void __launch_bounds__(32 * WARPS, BLOCKS) gemv(
    const X *x, const W *w, const B *bias, Y *y, int rows, int N, int K, int64_t pitch, int split, int activation) {
    SHARED(float, parts, WARPS * MOST * ROWS);
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, part = warp % split;
    const int n0 = (blockIdx.x * (WARPS / split) + warp / split) * ROWS;
    const bool whole = K % PER == 0 && pitch % PER == 0 && (uint64_t)w % 16 == 0 && (uint64_t)x % 16 == 0;
    const W *row[ROWS];
#pragma unroll
    for (int r = 0; r < ROWS; r++) row[r] = w + (int64_t)min(n0 + r, N - 1) * pitch;

    float sum[MOST][ROWS] = {};
#pragma unroll UNROLLED
    for (int k = (lane + 32 * part) * PER; k < K; k += 32 * split * PER) {
        float of_w[ROWS][PER];
#pragma unroll
        for (int r = 0; r < ROWS; r++) load_run(row[r] + k, K - k, whole, of_w[r]);
#pragma unroll
        for (int m = 0; m < MOST; m++) {
            float of_x[PER];
            load_run(x + (int64_t)min(m, rows - 1) * K + k, K - k, whole, of_x);
#pragma unroll
            for (int r = 0; r < ROWS; r++)
#pragma unroll
                for (int i = 0; i < PER; i++) sum[m][r] += of_x[i] * of_w[r][i];
        }
    }
#pragma unroll
    for (int m = 0; m < MOST; m++)
#pragma unroll
        for (int r = 0; r < ROWS; r++) {
            const float total = warp_sum(sum[m][r]);
            if (lane == 0) parts[(warp * MOST + m) * ROWS + r] = total;
        }
    __syncthreads();
    for (int i = lane; i < MOST * ROWS; i += 32) {  // the first of the warps that share outputs adds up and finishes
        const int m = i / ROWS, n = n0 + i % ROWS;
        if (part != 0 || m >= rows || n >= N) continue;
        float total = parts[warp * MOST * ROWS + i];
        for (int p = 1; p < split; p++) total += parts[(warp + p) * MOST * ROWS + i];
        y[(int64_t)m * N + n] = narrow<Y>(activate(activation, total + (bias ? widen(bias[n]) : 0.0f)));
    }
}
