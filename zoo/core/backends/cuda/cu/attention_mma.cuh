// Tiles of 16-bit numbers on their way to tensor cores, for attention and its gradients. Blocks have 4 warps of 16 rows each.
//   stride    rows of DIM + 8 numbers are an odd number of 16-byte words, so that ldmatrix meets no bank twice

#include "attention.cuh"

constexpr int STRIDE = DIM + 8, STEPS = DIM / 16, COLUMNS = DIM / 8;

// Where a lane's row of a 16 x 16 block begins, for ldmatrix: of an operand A, or of B's rows, transposed;
__device__ inline int a_start(int lane) { return lane % 16 * STRIDE + lane / 16 * 8; }
// and where B's columns lie as rows.
__device__ inline int b_start(int lane) { return (lane / 16 * 8 + lane % 8) * STRIDE + lane / 8 % 2 * 8; }

// `count` rows of D numbers, of `all`, on their way into rows of STRIDE; zeros beyond.
template <int all, class Row>
__device__ inline void fetch_tile(T* to, Row row, int count, int D, bool aligned) {
    for (int i = threadIdx.x; i < all * (DIM / 8); i += 128) {
        const int r = i / (DIM / 8), first = i % (DIM / 8) * 8;
        const bool there = r < count && first < D;
        const T* const from = row(there ? r : 0) + (there ? first : 0);
        T* const at = to + r * STRIDE + first;
        if (aligned && (!there || first + 8 <= D)) {
            cp_async16(at, from, there);
        } else {
#pragma unroll
            for (int j = 0; j < 8; j++) at[j] = there && first + j < D ? from[j] : narrow<T>(0.0f);
        }
    }
}

// The lane's first or second row of a sum (which: 0, 1), times factor, to memory.
__device__ inline void write_row(T* to, const float (&sum)[COLUMNS][4], int which, float factor, int D) {
#pragma unroll
    for (int c = 0; c < COLUMNS; c++) {
        const int at = c * 8 + (int)threadIdx.x % 4 * 2;
        const float one = sum[c][2 * which] * factor, next = sum[c][2 * which + 1] * factor;
        if (D % 2 == 0 && at < D) {
            *reinterpret_cast<uint32_t*>(to + at) = pack2<T>(one, next);
        } else {
            if (at < D) to[at] = narrow<T>(one);
            if (at + 1 < D) to[at + 1] = narrow<T>(next);
        }
    }
}
