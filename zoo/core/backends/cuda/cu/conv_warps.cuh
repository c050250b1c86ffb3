// How a tile of TILE x TILE results is shared by warps whose tensor cores compute 16 x 8 of them at a time, and how it leaves.
// A warp has 64 x 32 of 128 x 128 (8 warps), 32 x 32 of 64 x 64 (4 warps).

#pragma once

constexpr int WARPS_N = TILE / 32, THREADS = 2 * WARPS_N * 32;
constexpr int WARP_M = TILE / 2, WARP_N = 32, BLOCKS_M = WARP_M / 16, BLOCKS_N = WARP_N / 8;
constexpr int STRIP = WARP_N + 4;  // a row of results on their way out; with 4 more, 8 lanes read 16 bytes each without a conflict

// A warp's sums leave 16 rows at a time through shared memory (TILE / 32 * 2 * 16 * STRIP floats, nobody else's any more), so that
// a lane has 8 neighbours of one row.
template <int code, typename Value, typename Bias>
__device__ __forceinline__ void leave(const Geometry &g, const After<Bias> &after, const Value *residual, Value *y, float *partial,
                                      float *shared, const float (&sums)[BLOCKS_M][BLOCKS_N][4], int m0, int o0, int split,
                                      int group) {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, M = g.N * g.P * g.Q;
    m0 += warp / WARPS_N * WARP_M, o0 += warp % WARPS_N * WARP_N;
    float *const strip = shared + warp * 16 * STRIP;
#pragma unroll
    for (int i = 0; i < BLOCKS_M; i++) {
#pragma unroll
        for (int j = 0; j < BLOCKS_N; j++)
            for (int half_row = 0; half_row < 2; half_row++) {
                Vec<float, 2> pair;
                pair[0] = sums[i][j][half_row * 2], pair[1] = sums[i][j][half_row * 2 + 1];
                pair.store(strip + (lane / 4 + half_row * 8) * STRIP + j * 8 + lane % 4 * 2);
            }
        __syncwarp();
        for (int pass = 0; pass < 2; pass++) {
            const int line = pass * 8 + lane / 4, m = m0 + i * 16 + line, o = o0 + lane % 4 * 8;
            const int there = m < M ? min(8, g.O - o) : 0;
            Vec<float, 4> low, high;
            low.load(strip + line * STRIP + lane % 4 * 8);
            high.load(strip + line * STRIP + lane % 4 * 8 + 4);
            const float eight[8] = {low[0], low[1], low[2], low[3], high[0], high[1], high[2], high[3]};
            if (there > 0 && partial)
                put_part<8>(partial, eight, int64_t(split) * M + m, g.O * g.groups, group * g.O + o, there);
            else if (there > 0)
                put<code, 8>(g, after, residual, y, eight, m, o, there, group);
        }
        __syncwarp();
    }
}
