// Gradients of attention in q, k and v, in float32, from weights that are made again (flash attention; Dao et al. 2022):
//     P = 2^(s - e),  e = log2 of a row's total,   A = g v^T,   m = sum over keys of P A,   dS = P (A - m)
//     dq = scale * dS k,     dk = dS^T (scale * q),           dv = P^T g
//   kernels   attention_grad_rows: a block makes e, m and dq of ROWS rows of one key head, in two passes over the keys;
//             attention_grad_keys: a block makes dk and dv of KEYS keys, over the rows that see them, of all heads of the group.
//             Nothing is added by two blocks, so the result is the same in every run
//   threads   those of attention_tile.cuh; in the second kernel thread (y, x) has keys y K and on of dk and dv
//   shared    queries and g [ROWS], keys and values [KEYS] of DIM + 4 floats; weights and slopes [ROWS][KEYS + 4]
//             DIM         32..64   96, 128     160    256
//             ROWS x KEYS  32 x 32  32 x 16  16 x 16  16 x 16
//             KiB          at 64: 43; at 128: 55  44   68        (a block of sm_75 may use 64: there the op's body does it)
//   floor     9 products of 2 L S D flops per head, half of them if causal, where keeping e and the result, and adding dq from
//             several blocks, would need 5
// rows [batch][key head][L G][2]: e and m. A row that sees no key has e = +inf, so that its weights are 0.

#include "prelude.cuh"
#include "attention_tile.cuh"

constexpr int APART = KEYS + 4;

// What both kernels hold in shared memory, and the scores and A of a thread's rows and keys.
struct Tiles {
    float *queries, *g, *keys, *values;

    __device__ explicit Tiles(float* memory)
        : queries(memory), g(memory + ROWS * STRIDE), keys(g + ROWS * STRIDE), values(keys + KEYS * STRIDE) {}

    __device__ void multiply(float (&score)[R][K], float (&inner)[R][K]) const {
        const int x = threadIdx.x % 16, row0 = threadIdx.x / 16 * R;
        products(queries + row0 * STRIDE, keys + x * STRIDE, score);
        products(g + row0 * STRIDE, values + x * STRIDE, inner);
    }
};

extern "C" __global__ void __launch_bounds__(256, 2) attention_grad_rows(
    const T* g, int64_t g_batch, int64_t g_position, int64_t g_head, const T* q, int64_t q_batch, int64_t q_position,
    int64_t q_head, const T* k, int64_t k_batch, int64_t k_position, int64_t k_head, const T* v, int64_t v_batch,
    int64_t v_position, int64_t v_head, const float* bias_data, int64_t bias_batch, int64_t bias_head, int64_t bias_query,
    int64_t bias_key, T* dq, float* of_rows, int L, int S, int H, int G, int D, int Dv, int causal, float scale) {
    DYNAMIC_SHARED(float, memory);
    const Tiles tiles(memory);
    float* const slopes = tiles.values + KEYS * STRIDE;
    const int blocks = (L * G + ROWS - 1) / ROWS, heads = H / G, x = threadIdx.x % 16, row0 = threadIdx.x / 16 * R;
    const int first = (blocks - 1 - (int)(blockIdx.x % blocks)) * ROWS;
    const int h = blockIdx.x / blocks % heads, b = blockIdx.x / blocks / heads;
    const Heads<T> gs{g, g_batch, g_position, g_head}, qs{q, q_batch, q_position, q_head};
    const Heads<T> ks{k, k_batch, k_position, k_head}, vs{v, v_batch, v_position, v_head};
    const Bias bias{bias_data, bias_batch, bias_head, bias_query, bias_key};
    const Rows rows(b, L, G, S, nullptr, causal);
    const bool k_aligned = ks.aligned(), v_aligned = vs.aligned();

    const auto row_of = [&](const Heads<T>& of) {
        return [=](int r) { return of.at(b, (first + r) / G, h * G + (first + r) % G); };
    };
    load_tile<ROWS, T>(tiles.queries, row_of(qs), rows.count - first, D, qs.aligned(), scale * LOG2E);
    load_tile<ROWS, T>(tiles.g, row_of(gs), rows.count - first, Dv, gs.aligned(), 1.0f);
    int seen[R];
    float peak[R], total[R], mean[R], ends[R], sum[R][C][4] = {};
#pragma unroll
    for (int i = 0; i < R; i++) seen[i] = rows.seen(first + row0 + i), peak[i] = NOTHING, total[i] = mean[i] = ends[i] = 0.0f;
    const int end = rows.seen(min(first + ROWS, rows.count) - 1);
    for (int pass = 0; pass < 2; pass++) {
        for (int key = 0; key < end; key += KEYS) {
            __syncthreads();  // the last tiles were read
            load_tile<KEYS, T>(tiles.keys, [&](int s) { return ks.at(b, key + s, h); }, S - key, D, k_aligned, 1.0f);
            load_tile<KEYS, T>(tiles.values, [&](int s) { return vs.at(b, key + s, h); }, S - key, Dv, v_aligned, 1.0f);
            __syncthreads();
            float score[R][K], inner[R][K];
            tiles.multiply(score, inner);
#pragma unroll
            for (int i = 0; i < R; i++) {
                const int r = first + row0 + i;
                float top = peak[i];
#pragma unroll
                for (int j = 0; j < K; j++) {
                    const int s = key + x + 16 * j;
                    if (s >= seen[i]) score[i][j] = NOTHING;
                    else if (bias.data) score[i][j] += bias.at(b, h * G + r % G, r / G, s) * LOG2E;
                    top = fmaxf(top, score[i][j]);
                }
                if (pass == 0) {  // a lane's part of the row
                    const float shift = shift_of(top), factor = exp2f(peak[i] - shift);
                    peak[i] = top, total[i] *= factor, mean[i] *= factor;
#pragma unroll
                    for (int j = 0; j < K; j++) {
                        const float weight = exp2f(score[i][j] - shift);
                        total[i] += weight, mean[i] += weight * inner[i][j];
                    }
                } else {
#pragma unroll
                    for (int j = 0; j < K; j++)
                        slopes[(row0 + i) * APART + x + 16 * j] = exp2f(score[i][j] - ends[i]) * (inner[i][j] - mean[i]);
                }
            }
            if (pass == 1) {
                __syncthreads();
                add_rows<R, KEYS>(slopes + row0 * APART, APART, tiles.keys, sum);
            }
        }
        if (pass == 1) break;
#pragma unroll
        for (int i = 0; i < R; i++) join_row<16>(peak[i], total[i], mean[i], ends[i]);
    }
#pragma unroll
    for (int i = 0; i < R; i++) {
        const int r = first + row0 + i;
        if (r >= rows.count) continue;
        float* const of_row = of_rows + (((int64_t)b * heads + h) * rows.count + r) * 2;
        if (x == 0) of_row[0] = ends[i], of_row[1] = mean[i];
        write_row(dq + (((int64_t)b * L + r / G) * H + h * G + r % G) * D, sum[i], scale, D);
    }
}

extern "C" __global__ void __launch_bounds__(256, 2) attention_grad_keys(
    const T* g, int64_t g_batch, int64_t g_position, int64_t g_head, const T* q, int64_t q_batch, int64_t q_position,
    int64_t q_head, const T* k, int64_t k_batch, int64_t k_position, int64_t k_head, const T* v, int64_t v_batch,
    int64_t v_position, int64_t v_head, const float* bias_data, int64_t bias_batch, int64_t bias_head, int64_t bias_query,
    int64_t bias_key, T* dk, T* dv, const float* of_rows, int L, int S, int H, int G, int D, int Dv, int causal, float scale) {
    DYNAMIC_SHARED(float, memory);
    const Tiles tiles(memory);
    float *const weights = tiles.values + KEYS * STRIDE, *const slopes = weights + KEYS * (ROWS + 4);  // [key][row]
    const int blocks = (S + KEYS - 1) / KEYS, heads = H / G;
    const int x = threadIdx.x % 16, row0 = threadIdx.x / 16 * R, key0 = threadIdx.x / 16 * K;
    const int key = (int)(blockIdx.x % blocks) * KEYS, h = blockIdx.x / blocks % heads, b = blockIdx.x / blocks / heads;
    const Heads<T> gs{g, g_batch, g_position, g_head}, qs{q, q_batch, q_position, q_head};
    const Heads<T> ks{k, k_batch, k_position, k_head}, vs{v, v_batch, v_position, v_head};
    const Bias bias{bias_data, bias_batch, bias_head, bias_query, bias_key};
    const Rows rows(b, L, G, S, nullptr, causal);
    const bool q_aligned = qs.aligned(), g_aligned = gs.aligned();

    load_tile<KEYS, T>(tiles.keys, [&](int s) { return ks.at(b, key + s, h); }, S - key, D, ks.aligned(), 1.0f);
    load_tile<KEYS, T>(tiles.values, [&](int s) { return vs.at(b, key + s, h); }, S - key, Dv, vs.aligned(), 1.0f);
    float for_keys[K][C][4] = {}, for_values[K][C][4] = {};
    const int begin = causal ? max(0, key + L - S) * G / ROWS * ROWS : 0;  // rows before see none of these keys
    for (int first = begin; first < rows.count; first += ROWS) {
        const auto row_of = [&](const Heads<T>& of) {
            return [=](int r) { return of.at(b, (first + r) / G, h * G + (first + r) % G); };
        };
        __syncthreads();  // the last tiles were read
        load_tile<ROWS, T>(tiles.queries, row_of(qs), rows.count - first, D, q_aligned, scale * LOG2E);
        load_tile<ROWS, T>(tiles.g, row_of(gs), rows.count - first, Dv, g_aligned, 1.0f);
        __syncthreads();
        float score[R][K], inner[R][K];
        tiles.multiply(score, inner);
#pragma unroll
        for (int i = 0; i < R; i++) {
            const int r = first + row0 + i, seen = rows.seen(r);
            const float* const of_row = of_rows + (((int64_t)b * heads + h) * rows.count + min(r, rows.count - 1)) * 2;
#pragma unroll
            for (int j = 0; j < K; j++) {
                const int s = key + x + 16 * j;
                float weight = 0.0f, slope = 0.0f;
                if (s < seen) {
                    if (bias.data) score[i][j] += bias.at(b, h * G + r % G, r / G, s) * LOG2E;
                    weight = exp2f(score[i][j] - of_row[0]), slope = weight * (inner[i][j] - of_row[1]);
                }
                weights[(x + 16 * j) * (ROWS + 4) + row0 + i] = weight, slopes[(x + 16 * j) * (ROWS + 4) + row0 + i] = slope;
            }
        }
        __syncthreads();
        add_rows<K, ROWS>(weights + key0 * (ROWS + 4), ROWS + 4, tiles.g, for_values);
        add_rows<K, ROWS>(slopes + key0 * (ROWS + 4), ROWS + 4, tiles.queries, for_keys);
    }
#pragma unroll
    for (int j = 0; j < K; j++) {
        const int s = key + key0 + j;
        if (s >= S) continue;
        const int64_t at = ((int64_t)b * S + s) * heads + h;
        write_row(dk + at * D, for_keys[j], 1.0f / LOG2E, D);  // the queries in shared memory were scaled
        write_row(dv + at * Dv, for_values[j], 1.0f, Dv);
    }
}
