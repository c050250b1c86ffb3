// Products of float32 tiles in shared memory, for attention and its gradients. A block has 16 x 16 threads; thread (y, x) makes
// R rows x K keys of a product A B^T, keys x + 16 j, and of a sum its rows x C times 4 columns, 4 (x + 16 c) and on.
//   stride    rows of DIM + 4 floats are an odd number of 16-byte words, so that 8 lanes reading 8 rows meet no bank twice
//   cost      per 4 numbers R + K words are read for 4 R K multiplications; A's are the same for 16 lanes

#include "attention.cuh"

constexpr int STRIDE = DIM + 4, R = ROWS / 16, K = KEYS / 16, C = (DIM + 63) / 64;

// `count` rows of D numbers, times factor, into rows of STRIDE floats; zeros beyond.
template <int all, class Stored, class Row>
__device__ inline void load_tile(float* to, Row row, int count, int D, bool aligned, float factor) {
    constexpr int N = 16 / sizeof(Stored);
    for (int i = threadIdx.x; i < all * (DIM / N); i += 256) {
        const int r = i / (DIM / N), first = i % (DIM / N) * N;
        const Vec<Stored, N> numbers = fetch<N>(row(r < count ? r : 0), first, r < count ? D : 0, aligned);
#pragma unroll
        for (int j = 0; j < N; j++) to[r * STRIDE + first + j] = widen(numbers[j]) * factor;
    }
}

// to[i][j] = A[i] B[16 j], rows of DIM floats.
__device__ inline void products(const float* a, const float* b, float (&to)[R][K]) {
#pragma unroll
    for (int i = 0; i < R; i++)
#pragma unroll
        for (int j = 0; j < K; j++) to[i][j] = 0.0f;
#pragma unroll 2
    for (int d = 0; d < DIM; d += 4) {
        float of_b[K][4];
#pragma unroll
        for (int j = 0; j < K; j++) read_vector<4>(b + 16 * j * STRIDE + d, of_b[j]);
#pragma unroll
        for (int i = 0; i < R; i++) {
            float of_a[4];
            read_vector<4>(a + i * STRIDE + d, of_a);
#pragma unroll
            for (int j = 0; j < K; j++)
#pragma unroll
                for (int n = 0; n < 4; n++) to[i][j] += of_a[n] * of_b[j][n];
        }
    }
}

// sum[i] += weights[i][s] rows[s] over `depth` rows of DIM floats; rows of weights are `apart` floats apart.
template <int count, int depth>
__device__ inline void add_rows(const float* weights, int apart, const float* rows, float (&sum)[count][C][4]) {
    const int x = threadIdx.x % 16;
#pragma unroll 2
    for (int s = 0; s < depth; s += 4) {
        float weight[count][4];
#pragma unroll
        for (int i = 0; i < count; i++) read_vector<4>(weights + i * apart + s, weight[i]);
#pragma unroll
        for (int c = 0; c < C; c++) {
            const int column = 4 * (x + 16 * c);
            if (column >= DIM) break;
#pragma unroll
            for (int m = 0; m < 4; m++) {
                float value[4];
                read_vector<4>(rows + (s + m) * STRIDE + column, value);
#pragma unroll
                for (int i = 0; i < count; i++)
#pragma unroll
                    for (int n = 0; n < 4; n++) sum[i][c][n] += weight[i][m] * value[n];
            }
        }
    }
}

// A row's sum, times factor, to memory.
template <class Stored>
__device__ inline void write_row(Stored* to, const float (&sum)[C][4], float factor, int D) {
#pragma unroll
    for (int c = 0; c < C; c++)
#pragma unroll
        for (int n = 0; n < 4; n++) {
            const int column = 4 * ((int)threadIdx.x % 16 + 16 * c) + n;
            if (column < D) to[column] = narrow<Stored>(sum[c][n] * factor);
        }
}
