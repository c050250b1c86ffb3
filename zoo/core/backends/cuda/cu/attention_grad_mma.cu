// Gradients of attention in q, k and v in float16 or bfloat16, on tensor cores: the two kernels of attention_grad.cu (formulas
// there) with 16 rows, or 16 keys, to a warp. Weights and slopes are rounded to T for their products; e, m and sums are float32.
//   grid      4 warps make 64 rows of dq, or 64 keys of dk and dv, of one key head
//   shared    tiles of keys and values, or of queries and g, one pair being read while the next arrives, [TILE][DIM + 8] of T;
//             in the second kernel 64 keys and values too
//             DIM             32   64   80   96  128
//             TILE            64   64   32   32   32
//             KiB, rows       20   36   22   26   34
//             KiB, keys       30   54   44   52   68   (sm_75 has 64: attention_grad.cu does 128 there)
//   registers rows: queries and g DIM/4 each, dq DIM/2, scores and A TILE/2 each; keys: dk and dv DIM/2 each, scores and A
//             ptxas, rows    154  200  178  196  226   for sm_90
//             ptxas, keys    174  216  194  212  240   (of 255; nothing spills, on sm_75 and sm_80 neither)
//   floor     9 products of 2 L S D flops per head, half of them if causal

#include "prelude.cuh"
#include "attention_mma.cuh"

constexpr int ROWS = 64;

// What a lane sees of a product of 16 x TILE: rows lane / 4 and 8 below, and of every 8 columns two.
typedef float Product[TILE / 8][4];

// to = a B^T, for 16 rows in registers or, with `step` to step through, in shared memory.
__device__ inline void multiply(Product& to, const uint32_t (&a)[4], const T* b, int step, int b_at) {
#pragma unroll
    for (int n = 0; n < TILE / 8; n += 2) {
        uint32_t two[4];
        ldmatrix_x4(two, b + n * 8 * STRIDE + b_at + step * 16);
        mma_m16n8k16<T>(to[n], a, two);
        mma_m16n8k16<T>(to[n + 1], a, two + 2);
    }
}

// sum += weights B, weights of 16 x TILE rounded to T.
__device__ inline void add_rows(float (&sum)[COLUMNS][4], const Product& weights, const T* b, int a_at) {
#pragma unroll
    for (int n = 0; n < TILE / 8; n += 2) {
        const uint32_t a[4] = {pack2<T>(weights[n][0], weights[n][1]), pack2<T>(weights[n][2], weights[n][3]),
                               pack2<T>(weights[n + 1][0], weights[n + 1][1]), pack2<T>(weights[n + 1][2], weights[n + 1][3])};
#pragma unroll
        for (int c = 0; c < COLUMNS; c += 2) {
            uint32_t two[4];
            ldmatrix_x4_trans(two, b + n * 8 * STRIDE + a_at + c * 8);
            mma_m16n8k16<T>(sum[c], a, two);
            mma_m16n8k16<T>(sum[c + 1], a, two + 2);
        }
    }
}

extern "C" __global__ void __launch_bounds__(128, 2) attention_grad_rows(
    const T* g, int64_t g_batch, int64_t g_position, int64_t g_head, const T* q, int64_t q_batch, int64_t q_position,
    int64_t q_head, const T* k, int64_t k_batch, int64_t k_position, int64_t k_head, const T* v, int64_t v_batch,
    int64_t v_position, int64_t v_head, const float* bias_data, int64_t bias_batch, int64_t bias_head, int64_t bias_query,
    int64_t bias_key, T* dq, float* of_rows, int L, int S, int H, int G, int D, int Dv, int causal, float scale) {
    DYNAMIC_SHARED(T, memory);
    const int blocks = (L * G + ROWS - 1) / ROWS, heads = H / G;
    const int first = (blocks - 1 - (int)(blockIdx.x % blocks)) * ROWS;
    const int h = blockIdx.x / blocks % heads, b = blockIdx.x / blocks / heads;
    const int lane = threadIdx.x % 32, warp_row = threadIdx.x / 32 * 16;
    const int row0 = first + warp_row + lane / 4, column = lane % 4 * 2;
    const Heads<T> gs{g, g_batch, g_position, g_head}, qs{q, q_batch, q_position, q_head};
    const Heads<T> ks{k, k_batch, k_position, k_head}, vs{v, v_batch, v_position, v_head};
    const Bias bias{bias_data, bias_batch, bias_head, bias_query, bias_key};
    const Rows rows(b, L, G, S, nullptr, causal);
    const bool k_aligned = ks.aligned(), v_aligned = vs.aligned();
    const int a_at = a_start(lane), b_at = b_start(lane);

    const auto row_of = [&](const Heads<T>& of) {
        return [=](int r) { return of.at(b, (first + r) / G, h * G + (first + r) % G); };
    };
    fetch_tile<ROWS>(memory, row_of(qs), rows.count - first, D, qs.aligned());
    fetch_tile<ROWS>(memory + ROWS * STRIDE, row_of(gs), rows.count - first, Dv, gs.aligned());
    cp_async_commit();
    cp_async_wait<0>();
    __syncthreads();
    uint32_t query[STEPS][4], of_g[STEPS][4];
#pragma unroll
    for (int step = 0; step < STEPS; step++) {
        ldmatrix_x4(query[step], memory + warp_row * STRIDE + a_at + step * 16);
        ldmatrix_x4(of_g[step], memory + (ROWS + warp_row) * STRIDE + a_at + step * 16);
    }
    __syncthreads();

    int seen[2];
    float peak[2] = {NOTHING, NOTHING}, total[2] = {}, mean[2] = {}, ends[2] = {}, sum[COLUMNS][4] = {};
#pragma unroll
    for (int i = 0; i < 2; i++) seen[i] = rows.seen(row0 + 8 * i);
    const int end = rows.seen(min(first + ROWS, rows.count) - 1), tiles = (end + TILE - 1) / TILE;
    const float factor = scale * LOG2E;
    const auto fetch_pair = [&](int i) {  // all tiles once, and once again
        T* const keys = memory + i % 2 * 2 * TILE * STRIDE;
        const int key = i % tiles * TILE;
        fetch_tile<TILE>(keys, [&](int s) { return ks.at(b, key + s, h); }, end - key, D, k_aligned);
        fetch_tile<TILE>(keys + TILE * STRIDE, [&](int s) { return vs.at(b, key + s, h); }, end - key, Dv, v_aligned);
        cp_async_commit();
    };
    if (tiles > 0) fetch_pair(0);
    for (int tile = 0; tile < 2 * tiles; tile++) {
        cp_async_wait<0>();
        __syncthreads();  // this pair is there, the last one was read
        if (tile + 1 < 2 * tiles) fetch_pair(tile + 1);
        const T *const keys = memory + tile % 2 * 2 * TILE * STRIDE, *const values = keys + TILE * STRIDE;
        const int key = tile % tiles * TILE;
        Product score = {}, inner = {};
#pragma unroll
        for (int step = 0; step < STEPS; step++) {
            multiply(score, query[step], keys, step, b_at);
            multiply(inner, of_g[step], values, step, b_at);
        }
        float top[2] = {peak[0], peak[1]};
#pragma unroll
        for (int n = 0; n < TILE / 8; n++)
#pragma unroll
            for (int j = 0; j < 4; j++) {
                const int i = j / 2, r = row0 + 8 * i, s = key + n * 8 + column + j % 2;
                float& x = score[n][j];
                x *= factor;
                if (s >= seen[i]) x = NOTHING;
                else if (bias.data) x += bias.at(b, h * G + r % G, r / G, s) * LOG2E;
                top[i] = fmaxf(top[i], x);
            }
        if (tile < tiles) {  // a lane's part of its rows
            float shift[2];
#pragma unroll
            for (int i = 0; i < 2; i++) {
                shift[i] = shift_of(top[i]);
                const float change = exp2f(peak[i] - shift[i]);
                peak[i] = top[i], total[i] *= change, mean[i] *= change;
            }
#pragma unroll
            for (int n = 0; n < TILE / 8; n++)
#pragma unroll
                for (int j = 0; j < 4; j++) {
                    const float weight = exp2f(score[n][j] - shift[j / 2]);
                    total[j / 2] += weight, mean[j / 2] += weight * inner[n][j];
                }
        } else {
#pragma unroll
            for (int n = 0; n < TILE / 8; n++)
#pragma unroll
                for (int j = 0; j < 4; j++) score[n][j] = exp2f(score[n][j] - ends[j / 2]) * (inner[n][j] - mean[j / 2]);
            add_rows(sum, score, keys, a_at);
        }
        if (tile == tiles - 1) {
#pragma unroll
            for (int i = 0; i < 2; i++) join_row<4>(peak[i], total[i], mean[i], ends[i]);
        }
    }
#pragma unroll
    for (int i = 0; i < 2; i++) {
        const int r = row0 + 8 * i;
        if (r >= rows.count) continue;
        if (tiles == 0) ends[i] = INFINITY;
        float* const of_row = of_rows + (((int64_t)b * heads + h) * rows.count + r) * 2;
        if (column == 0) of_row[0] = ends[i], of_row[1] = mean[i];
        write_row(dq + (((int64_t)b * L + r / G) * H + h * G + r % G) * D, sum, i, scale, D);
    }
}

extern "C" __global__ void __launch_bounds__(128, 2) attention_grad_keys(
    const T* g, int64_t g_batch, int64_t g_position, int64_t g_head, const T* q, int64_t q_batch, int64_t q_position,
    int64_t q_head, const T* k, int64_t k_batch, int64_t k_position, int64_t k_head, const T* v, int64_t v_batch,
    int64_t v_position, int64_t v_head, const float* bias_data, int64_t bias_batch, int64_t bias_head, int64_t bias_query,
    int64_t bias_key, T* dk, T* dv, const float* of_rows, int L, int S, int H, int G, int D, int Dv, int causal, float scale) {
    DYNAMIC_SHARED(T, memory);
    T *const keys = memory, *const values = keys + ROWS * STRIDE, *const pairs = values + ROWS * STRIDE;
    const int blocks = (S + ROWS - 1) / ROWS, heads = H / G;
    const int key = (int)(blockIdx.x % blocks) * ROWS, h = blockIdx.x / blocks % heads, b = blockIdx.x / blocks / heads;
    const int lane = threadIdx.x % 32, warp_row = threadIdx.x / 32 * 16, key0 = key + warp_row + lane / 4, column = lane % 4 * 2;
    const Heads<T> gs{g, g_batch, g_position, g_head}, qs{q, q_batch, q_position, q_head};
    const Heads<T> ks{k, k_batch, k_position, k_head}, vs{v, v_batch, v_position, v_head};
    const Bias bias{bias_data, bias_batch, bias_head, bias_query, bias_key};
    const Rows rows(b, L, G, S, nullptr, causal);
    const bool q_aligned = qs.aligned(), g_aligned = gs.aligned();
    const int a_at = a_start(lane), b_at = b_start(lane);
    const float factor = scale * LOG2E;

    fetch_tile<ROWS>(keys, [&](int s) { return ks.at(b, key + s, h); }, S - key, D, ks.aligned());
    fetch_tile<ROWS>(values, [&](int s) { return vs.at(b, key + s, h); }, S - key, Dv, vs.aligned());
    const auto fetch_pair = [&](int first, int stage) {
        const auto row_of = [&](const Heads<T>& of) {
            return [=](int r) { return of.at(b, (first + r) / G, h * G + (first + r) % G); };
        };
        T* const queries = pairs + stage * 2 * TILE * STRIDE;
        fetch_tile<TILE>(queries, row_of(qs), rows.count - first, D, q_aligned);
        fetch_tile<TILE>(queries + TILE * STRIDE, row_of(gs), rows.count - first, Dv, g_aligned);
        cp_async_commit();
    };
    float for_keys[COLUMNS][4] = {}, for_values[COLUMNS][4] = {};
    const int begin = causal ? max(0, key + L - S) * G / TILE * TILE : 0;  // rows before see none of these keys
    if (begin < rows.count) fetch_pair(begin, 0);
    for (int first = begin, stage = 0; first < rows.count; first += TILE, stage = 1 - stage) {
        cp_async_wait<0>();
        __syncthreads();  // this pair is there, the last one was read
        if (first + TILE < rows.count) fetch_pair(first + TILE, 1 - stage);
        const T *const queries = pairs + stage * 2 * TILE * STRIDE, *const of_g = queries + TILE * STRIDE;
        Product score = {}, inner = {};
#pragma unroll
        for (int step = 0; step < STEPS; step++) {
            uint32_t a[4];
            ldmatrix_x4(a, keys + warp_row * STRIDE + a_at + step * 16);
            multiply(score, a, queries, step, b_at);
            ldmatrix_x4(a, values + warp_row * STRIDE + a_at + step * 16);
            multiply(inner, a, of_g, step, b_at);
        }
#pragma unroll
        for (int n = 0; n < TILE / 8; n++)
#pragma unroll
            for (int c = 0; c < 2; c++) {  // a row, and what it sees of the lane's two keys
                const int r = first + n * 8 + column + c, seen = rows.seen(r);
                const float* const of_row = of_rows + (((int64_t)b * heads + h) * rows.count + min(r, rows.count - 1)) * 2;
                const float ends = of_row[0], mean = of_row[1];
#pragma unroll
                for (int j = c; j < 4; j += 2) {
                    const int s = key0 + j / 2 * 8;
                    float weight = 0.0f, slope = 0.0f;
                    if (s < seen) {
                        weight = score[n][j] * factor;
                        if (bias.data) weight += bias.at(b, h * G + r % G, r / G, s) * LOG2E;
                        weight = exp2f(weight - ends), slope = weight * (inner[n][j] - mean);
                    }
                    score[n][j] = weight, inner[n][j] = slope;
                }
            }
        add_rows(for_values, score, of_g, a_at);
        add_rows(for_keys, inner, queries, a_at);
    }
    cp_async_wait<0>();  // where there was no pair, the keys are still on their way
#pragma unroll
    for (int i = 0; i < 2; i++) {
        const int s = key0 + 8 * i;
        if (s >= S) continue;
        const int64_t at = ((int64_t)b * S + s) * heads + h;
        write_row(dk + at * D, for_keys, i, scale, D);
        write_row(dv + at * Dv, for_values, i, 1.0f, Dv);
    }
}
