// y = softmax(scale * q k^T + bias) v by head, many queries in float16 or bfloat16, on tensor cores (flash attention: Dao 2023).
//   grid      a block of 4 warps makes 64 rows of one key head, each warp 16; of a causal head the longest blocks start first
//   products  mma m16n8k16. The accumulators of the scores are, rounded to T, the A operand of the second product as they lie;
//             peaks, totals and sums are float32, and totals are of weights that were not rounded
//   shared    a tile of keys, one of values, [KEYS][DIM + 8] of T: rows of an odd number of 16-byte words, so that ldmatrix meets
//             no bank twice. Queries pass through the same place into registers, but for DIM 256, whose stay in shared memory
//   overlap   values arrive by cp.async while scores are made, the next keys while weights and sums are
//   registers a lane holds DIM/4 of queries (0 at 256: four at a time), KEYS/2 scores, DIM/2 sums
//             DIM          32   64   80   96  128  160  256
//             KEYS         64   64   64   64   64   32   32 (16 on sm_75)
//             held         56   80   92  104  128  136  148
//             ptxas, sm_90 115  129  167  167  175  216  236    (of 255; nothing spills, on sm_75 and sm_80 neither)
//             KiB          10   18   22   26   34   21   66 (50 on sm_75, where a block may use 64)
//   floor     2 L S (D + Dv) flops per head, half of them if causal; DIM is D rounded up, which D = 40 and 80 pay: 1.2 and 1.0

#include "prelude.cuh"
#include "attention_mma.cuh"

constexpr int ROWS = 64, TILES = KEYS / 8;
constexpr bool IN_REGISTERS = DIM <= 160;

extern "C" __global__ void __launch_bounds__(128) attention_mma(
    const T* q, int64_t q_batch, int64_t q_position, int64_t q_head, const T* k, int64_t k_batch, int64_t k_position,
    int64_t k_head, const T* v, int64_t v_batch, int64_t v_position, int64_t v_head, const float* bias_data, int64_t bias_batch,
    int64_t bias_head, int64_t bias_query, int64_t bias_key, const int* lengths, T* y, int L, int S, int H, int G, int D, int Dv,
    int causal, float scale) {
    DYNAMIC_SHARED(T, memory);
    T *const keys = memory + (IN_REGISTERS ? 0 : ROWS * STRIDE), *const values = keys + KEYS * STRIDE;
    const int blocks = (L * G + ROWS - 1) / ROWS, heads = H / G;
    const int first = (blocks - 1 - (int)(blockIdx.x % blocks)) * ROWS;
    const int h = blockIdx.x / blocks % heads, b = blockIdx.x / blocks / heads;
    const int lane = threadIdx.x % 32, warp_row = threadIdx.x / 32 * 16, column = lane % 4 * 2;
    const Heads<T> qs{q, q_batch, q_position, q_head};
    const Heads<T> ks{k, k_batch, k_position, k_head}, vs{v, v_batch, v_position, v_head};
    const Bias bias{bias_data, bias_batch, bias_head, bias_query, bias_key};
    const Rows rows(b, L, G, S, lengths, causal);
    const bool k_aligned = ks.aligned(), v_aligned = vs.aligned();
    const int a_at = a_start(lane), b_at = b_start(lane);

    fetch_tile<ROWS>(
        memory, [&](int r) { return qs.at(b, (first + r) / G, h * G + (first + r) % G); }, rows.count - first, D, qs.aligned());
    cp_async_commit();
    cp_async_wait<0>();
    __syncthreads();
    uint32_t query[IN_REGISTERS ? STEPS : 1][4];
    if (IN_REGISTERS) {
#pragma unroll
        for (int step = 0; step < STEPS; step++) ldmatrix_x4(query[step], memory + warp_row * STRIDE + a_at + step * 16);
        __syncthreads();
    }

    // a lane has two rows of the warp's, lane / 4 and 8 below, and of every 8 columns two
    int seen[2];
    float peak[2] = {NOTHING, NOTHING}, total[2] = {}, sum[COLUMNS][4] = {};
#pragma unroll
    for (int i = 0; i < 2; i++) seen[i] = rows.seen(first + warp_row + lane / 4 + 8 * i);
    const int all_see = bias_data || first + ROWS > rows.count ? 0 : rows.seen(first);  // no mask for keys before
    const int end = rows.seen(min(first + ROWS, rows.count) - 1);
    const float factor = scale * LOG2E;

    const auto fetch_keys = [&](int key) {
        fetch_tile<KEYS>(keys, [&](int s) { return ks.at(b, key + s, h); }, end - key, D, k_aligned);
        cp_async_commit();
    };
    if (end > 0) fetch_keys(0);
    for (int key = 0; key < end; key += KEYS) {
        cp_async_wait<0>();
        __syncthreads();  // the keys are there, the last values were read
        fetch_tile<KEYS>(values, [&](int s) { return vs.at(b, key + s, h); }, end - key, Dv, v_aligned);
        cp_async_commit();

        float score[TILES][4] = {};
#pragma unroll
        for (int step = 0; step < STEPS; step++) {
            uint32_t a[4];
            if (!IN_REGISTERS) ldmatrix_x4(a, memory + warp_row * STRIDE + a_at + step * 16);
#pragma unroll
            for (int n = 0; n < TILES; n += 2) {
                uint32_t two[4];
                ldmatrix_x4(two, keys + n * 8 * STRIDE + b_at + step * 16);
                const uint32_t(&rows_of_q)[4] = IN_REGISTERS ? query[IN_REGISTERS ? step : 0] : a;
                mma_m16n8k16<T>(score[n], rows_of_q, two);
                mma_m16n8k16<T>(score[n + 1], rows_of_q, two + 2);
            }
        }
        cp_async_wait<0>();
        __syncthreads();  // the values are there, the keys were read
        if (key + KEYS < end) fetch_keys(key + KEYS);

        float top[2] = {NOTHING, NOTHING}, shift[2], change[2];
        const bool masked = key + KEYS > all_see;
#pragma unroll
        for (int n = 0; n < TILES; n++)
#pragma unroll
            for (int j = 0; j < 4; j++) {
                const int i = j / 2, s = key + n * 8 + column + j % 2;
                float& x = score[n][j];
                x *= factor;
                if (masked) {
                    const int r = first + warp_row + lane / 4 + 8 * i;
                    if (s >= seen[i]) x = NOTHING;
                    else if (bias.data) x += bias.at(b, h * G + r % G, r / G, s) * LOG2E;
                }
                top[i] = fmaxf(top[i], x);
            }
#pragma unroll
        for (int i = 0; i < 2; i++) {
            top[i] = fmaxf(peak[i], group_max<4>(top[i]));
            shift[i] = shift_of(top[i]), change[i] = exp2f(peak[i] - shift[i]);
            peak[i] = top[i], total[i] *= change[i];
        }
#pragma unroll
        for (int c = 0; c < COLUMNS; c++)
#pragma unroll
            for (int j = 0; j < 4; j++) sum[c][j] *= change[j / 2];
#pragma unroll
        for (int n = 0; n < TILES; n += 2) {  // 16 keys
#pragma unroll
            for (int j = 0; j < 4; j++) {
                score[n][j] = exp2f(score[n][j] - shift[j / 2]), score[n + 1][j] = exp2f(score[n + 1][j] - shift[j / 2]);
                total[j / 2] += score[n][j] + score[n + 1][j];
            }
            const uint32_t weights[4] = {pack2<T>(score[n][0], score[n][1]), pack2<T>(score[n][2], score[n][3]),
                                         pack2<T>(score[n + 1][0], score[n + 1][1]), pack2<T>(score[n + 1][2], score[n + 1][3])};
#pragma unroll
            for (int c = 0; c < COLUMNS; c += 2) {
                uint32_t two[4];
                ldmatrix_x4_trans(two, values + n * 8 * STRIDE + a_at + c * 8);
                mma_m16n8k16<T>(sum[c], weights, two);
                mma_m16n8k16<T>(sum[c + 1], weights, two + 2);
            }
        }
    }
#pragma unroll
    for (int i = 0; i < 2; i++) {
        const float share = share_of(group_sum<4>(total[i]));
        const int r = first + warp_row + lane / 4 + 8 * i;
        if (r >= rows.count) continue;
        write_row(y + (((int64_t)b * L + r / G) * H + h * G + r % G) * Dv, sum, i, share, Dv);
    }
}
