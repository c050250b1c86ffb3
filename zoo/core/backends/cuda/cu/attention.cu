// y = softmax(scale * q k^T + bias) v by head, many queries, in float32 (flash attention: Dao et al. 2022). TQ, T: what q and y,
// and what k and v are stored in; numbers are widened on the way into shared memory. For float32, for bfloat16 where there is no
// tensor core for it (sm_75), and for a cache in another dtype than the queries; attention_mma.cu does the rest.
//   grid      a block of 256 threads makes ROWS rows of one key head; of a causal head the longest blocks start first
//   threads   16 x 16: thread (y, x) has rows y R .. y R + R - 1, keys x + 16 j of a tile, numbers 4 (x + 16 c) .. + 3 of a sum
//   shared    queries [ROWS][DIM + 4], a tile of keys, then of values [KEYS][DIM + 4], weights [ROWS][KEYS + 4], float32. Rows of
//             DIM + 4 floats are an odd number of 16-byte words, so that 8 lanes reading 8 rows meet no bank twice
//             DIM           32       64     96, 128     160      256
//             ROWS x KEYS  64 x 64  64 x 64  64 x 32  32 x 32  32 x 16
//             KiB           35       51      47, 59      46       51     (a block of sm_75 may use 64)
//   registers R KEYS/16 scores, R DIM/16 of the sums: 16 + 16 at DIM 64, 8 + 32 at 128, 2 + 32 at 256; 128 (two blocks) at most
//   floor     2 L S (D + Dv) flops per head, half of them if causal. For 4 numbers of 4 x 4 products a warp reads shared memory
//             for 12 cycles and multiplies for 16; 4 x 2 products, beyond DIM 64, take 8 of both

#include "prelude.cuh"
#include "attention_tile.cuh"

extern "C" __global__ void __launch_bounds__(256, 2) attention_tiles(
    const TQ* q, int64_t q_batch, int64_t q_position, int64_t q_head, const T* k, int64_t k_batch, int64_t k_position,
    int64_t k_head, const T* v, int64_t v_batch, int64_t v_position, int64_t v_head, const float* bias_data, int64_t bias_batch,
    int64_t bias_head, int64_t bias_query, int64_t bias_key, const int* lengths, TQ* y, int L, int S, int H, int G, int D, int Dv,
    int causal, float scale) {
    DYNAMIC_SHARED(float, memory);
    float *const queries = memory, *const tile = queries + ROWS * STRIDE, *const weights = tile + KEYS * STRIDE;
    const int blocks = (L * G + ROWS - 1) / ROWS, heads = H / G, x = threadIdx.x % 16, row0 = threadIdx.x / 16 * R;
    const int first = (blocks - 1 - (int)(blockIdx.x % blocks)) * ROWS;
    const int h = blockIdx.x / blocks % heads, b = blockIdx.x / blocks / heads;
    const Heads<TQ> qs{q, q_batch, q_position, q_head};
    const Heads<T> ks{k, k_batch, k_position, k_head}, vs{v, v_batch, v_position, v_head};
    const Bias bias{bias_data, bias_batch, bias_head, bias_query, bias_key};
    const Rows rows(b, L, G, S, lengths, causal);
    const bool q_aligned = qs.aligned(), k_aligned = ks.aligned(), v_aligned = vs.aligned();

    load_tile<ROWS, TQ>(
        queries, [&](int r) { return qs.at(b, (first + r) / G, h * G + (first + r) % G); }, rows.count - first, D, q_aligned,
        scale * LOG2E);
    int seen[R];
    float peak[R], total[R], sum[R][C][4] = {};
#pragma unroll
    for (int i = 0; i < R; i++) seen[i] = rows.seen(first + row0 + i), peak[i] = NOTHING, total[i] = 0.0f;
    const int end = rows.seen(min(first + ROWS, rows.count) - 1);
    for (int key = 0; key < end; key += KEYS) {
        __syncthreads();  // the last tile of values was read
        load_tile<KEYS, T>(tile, [&](int s) { return ks.at(b, key + s, h); }, rows.keys - key, D, k_aligned, 1.0f);
        __syncthreads();
        float score[R][K];
        products(queries + row0 * STRIDE, tile + x * STRIDE, score);
#pragma unroll
        for (int i = 0; i < R; i++) {
            const int r = first + row0 + i;
            float top = NOTHING;
#pragma unroll
            for (int j = 0; j < K; j++) {
                const int s = key + x + 16 * j;
                if (s >= seen[i]) score[i][j] = NOTHING;
                else if (bias.data) score[i][j] += bias.at(b, h * G + r % G, r / G, s) * LOG2E;
                top = fmaxf(top, score[i][j]);
            }
            top = fmaxf(peak[i], group_max<16>(top));
            const float shift = shift_of(top), factor = exp2f(peak[i] - shift);
            peak[i] = top;
            float part = 0.0f;
#pragma unroll
            for (int j = 0; j < K; j++) {
                const float weight = exp2f(score[i][j] - shift);
                weights[(row0 + i) * (KEYS + 4) + x + 16 * j] = weight;
                part += weight;
            }
            total[i] = total[i] * factor + group_sum<16>(part);
#pragma unroll
            for (int c = 0; c < C; c++)
#pragma unroll
                for (int n = 0; n < 4; n++) sum[i][c][n] *= factor;
        }
        __syncthreads();  // the keys were read, the weights are there
        load_tile<KEYS, T>(tile, [&](int s) { return vs.at(b, key + s, h); }, rows.keys - key, Dv, v_aligned, 1.0f);
        __syncthreads();
        add_rows<R, KEYS>(weights + row0 * (KEYS + 4), KEYS + 4, tile, sum);
    }
#pragma unroll
    for (int i = 0; i < R; i++) {
        const int r = first + row0 + i;
        if (r >= rows.count) continue;
        write_row(y + (((int64_t)b * L + r / G) * H + h * G + r % G) * Dv, sum[i], share_of(total[i]), Dv);
    }
}
