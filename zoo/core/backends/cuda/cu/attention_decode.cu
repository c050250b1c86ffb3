// Attention of few queries, as in decoding: limited by the memory that K and V are read from.
//   split     a block of 4 warps reads one of `parts` equal shares of the keys of one key head, for up to ROWS of its rows (the
//             heads of a group times the queries); attention_join joins the shares
//   layout    K and V as they lie, in any order of the first three axes: views of a cache are read in place. LANES lanes read a
//             key, 16 bytes each; a warp reads 32 / LANES keys side by side and AT_ONCE times that before it counts their scores
//             DIM                 32   64   80   96  128  160  256
//             LANES 16-bit         4    8   16   16   16   32   32
//             LANES 32-bit         8   16   32   32   32   32   32  (two reads of 16 bytes to a lane from 160 on)
//   registers ROWS x N queries, as many sums, 8 AT_ONCE of keys and values; N = 8 for 16-bit numbers, 4 or 8 for 32-bit ones.
//             ptxas for sm_90, float16, DIM 128: 128 with ROWS 1, 201 with 4, 224 with 8; float32 at 256 214; nothing spills
//   shared    what the warps found: 4 ROWS (DIM + 2) floats, 33 KiB at the most
//   floor     S (D + Dv) numbers for each key head at the memory's speed; per key and row 2 (D + Dv) flops, R / 2 to a byte of a
//             16-bit cache, where a GPU has 10 and more

#include "prelude.cuh"
#include "attention.cuh"

constexpr int VECTOR = 16 / sizeof(T);  // numbers in a word of 16 bytes
constexpr int WORDS = DIM / VECTOR, LANES = WORDS > 16 ? 32 : WORDS > 8 ? 16 : WORDS > 4 ? 8 : WORDS > 2 ? 4 : 2;
constexpr int CHUNKS = (WORDS + LANES - 1) / LANES, N = CHUNKS * VECTOR;
constexpr int WARPS = 4, AT_ONCE = (ROWS > 4 ? 2 : 4) / CHUNKS, BESIDE = WARPS * 32 / LANES, STEP = BESIDE * AT_ONCE;

// A lane's words of a row: lane, lane + LANES, ...; zeros beyond D.
template <class Stored>
struct Share {
    Vec<Stored, VECTOR> word[CHUNKS];

    __device__ void read(const Stored* row, int lane, int D, bool aligned) {
#pragma unroll
        for (int c = 0; c < CHUNKS; c++) word[c] = fetch<VECTOR>(row, (lane + c * LANES) * VECTOR, D, aligned);
    }
    __device__ float operator[](int n) const { return widen(word[n / VECTOR][n % VECTOR]); }
};

// sums: null where there is one part, else [batch][key head][row][part][Dv + 2]: sum, peak, total.
extern "C" __global__ void __launch_bounds__(128) attention_decode(
    const TQ* q, int64_t q_batch, int64_t q_position, int64_t q_head, const T* k, int64_t k_batch, int64_t k_position,
    int64_t k_head, const T* v, int64_t v_batch, int64_t v_position, int64_t v_head, const float* bias_data, int64_t bias_batch,
    int64_t bias_head, int64_t bias_query, int64_t bias_key, const int* lengths, TQ* y, int L, int S, int H, int G, int D, int Dv,
    int causal, float scale, float* sums, int parts) {
    SHARED(float, found, WARPS * ROWS * (DIM + 2));
    const int heads = H / G, slices = (L * G + ROWS - 1) / ROWS;
    int block = blockIdx.x;
    const int part = block % parts;
    block /= parts;
    const int first = block % slices * ROWS, h = block / slices % heads, b = block / slices / heads;
    const int warp = threadIdx.x / 32, lane = threadIdx.x % LANES, place = threadIdx.x / LANES;
    const Heads<TQ> qs{q, q_batch, q_position, q_head};
    const Heads<T> ks{k, k_batch, k_position, k_head}, vs{v, v_batch, v_position, v_head};
    const Bias bias{bias_data, bias_batch, bias_head, bias_query, bias_key};
    const Rows rows(b, L, G, S, lengths, causal);
    const bool k_aligned = ks.aligned(), v_aligned = vs.aligned();

    float query[ROWS][N], sum[ROWS][N] = {}, peak[ROWS], total[ROWS];
    int seen[ROWS];
#pragma unroll
    for (int i = 0; i < ROWS; i++) {
        const int r = min(first + i, rows.count - 1);
        Share<TQ> numbers;
        numbers.read(qs.at(b, r / G, h * G + r % G), lane, D, false);
#pragma unroll
        for (int n = 0; n < N; n++) query[i][n] = numbers[n] * (scale * LOG2E);
        seen[i] = rows.seen(first + i), peak[i] = NOTHING, total[i] = 0.0f;
    }
    const int all = rows.seen(min(first + ROWS, rows.count) - 1);
    const int share = ((all + parts - 1) / parts + STEP - 1) / STEP * STEP;
    const int end = min(all, (part + 1) * share);
    for (int key = part * share; key < end; key += STEP) {
        Share<T> keys[AT_ONCE], values[AT_ONCE];
        float score[ROWS][AT_ONCE];
#pragma unroll
        for (int s = 0; s < AT_ONCE; s++) {
            const int at = key + s * BESIDE + place, last = min(at, end - 1);  // zeros beyond
            keys[s].read(ks.at(b, last, h), lane, at < end ? D : 0, k_aligned);
            values[s].read(vs.at(b, last, h), lane, at < end ? Dv : 0, v_aligned);
        }
#pragma unroll
        for (int i = 0; i < ROWS; i++) {
            float top = peak[i];
#pragma unroll
            for (int s = 0; s < AT_ONCE; s++) {
                const int at = key + s * BESIDE + place;
                float x = 0.0f;
#pragma unroll
                for (int n = 0; n < N; n++) x += query[i][n] * keys[s][n];
                x = group_sum<LANES>(x);
                if (at >= min(end, seen[i])) x = NOTHING;
                else if (bias.data) x += bias.at(b, h * G + (first + i) % G, (first + i) / G, at) * LOG2E;
                score[i][s] = x, top = fmaxf(top, x);
            }
            const float shift = shift_of(top), factor = exp2f(peak[i] - shift);
            peak[i] = top, total[i] *= factor;
#pragma unroll
            for (int n = 0; n < N; n++) sum[i][n] *= factor;
#pragma unroll
            for (int s = 0; s < AT_ONCE; s++) {
                const float weight = exp2f(score[i][s] - shift);
                total[i] += weight;
#pragma unroll
                for (int n = 0; n < N; n++) sum[i][n] += weight * values[s][n];
            }
        }
    }
#pragma unroll
    for (int i = 0; i < ROWS; i++) {  // the keys that a warp read side by side
        float top = peak[i];
#pragma unroll
        for (int offset = LANES; offset < 32; offset *= 2) top = fmaxf(top, __shfl_xor_sync(FULL, top, offset));
        const float factor = exp2f(peak[i] - shift_of(top));
        float* const to = found + (warp * ROWS + i) * (DIM + 2);
        total[i] *= factor;
#pragma unroll
        for (int offset = LANES; offset < 32; offset *= 2) total[i] += __shfl_xor_sync(FULL, total[i], offset);
        if (threadIdx.x % 32 == 0) to[DIM] = top, to[DIM + 1] = total[i];
#pragma unroll
        for (int n = 0; n < N; n++) {
            float x = sum[i][n] * factor;
#pragma unroll
            for (int offset = LANES; offset < 32; offset *= 2) x += __shfl_xor_sync(FULL, x, offset);
            const int column = (lane + n / VECTOR * LANES) * VECTOR + n % VECTOR;
            if (threadIdx.x % 32 < LANES && column < DIM) to[column] = x;
        }
    }
    __syncthreads();
    for (int j = threadIdx.x; j < ROWS * (Dv + 2); j += 128) {
        const int i = j / (Dv + 2), column = j % (Dv + 2), r = first + i;
        if (r >= rows.count || (!sums && column >= Dv)) continue;
        const float* const of_row = found + i * (DIM + 2);
        float top = NOTHING, x = 0.0f, all_weights = 0.0f;
#pragma unroll
        for (int w = 0; w < WARPS; w++) top = fmaxf(top, of_row[w * ROWS * (DIM + 2) + DIM]);
#pragma unroll
        for (int w = 0; w < WARPS; w++) {
            const float* const of_warp = of_row + w * ROWS * (DIM + 2);
            const float factor = exp2f(of_warp[DIM] - shift_of(top));
            all_weights += of_warp[DIM + 1] * factor;
            x += of_warp[column < Dv ? column : DIM + 1] * factor;
        }
        if (sums) {
            const int64_t row = ((int64_t)b * heads + h) * rows.count + r;
            sums[(row * parts + part) * (Dv + 2) + column] = column == Dv ? top : x;
        } else {
            y[(((int64_t)b * L + r / G) * H + h * G + r % G) * Dv + column] = narrow<TQ>(x * share_of(all_weights));
        }
    }
}

// One block for each row of each key head; its threads are columns.
extern "C" __global__ void __launch_bounds__(64) attention_join(
    const float* sums, TQ* y, int L, int H, int G, int Dv, int parts) {
    const int heads = H / G, r = blockIdx.x % (L * G), h = blockIdx.x / (L * G) % heads, b = blockIdx.x / (L * G) / heads;
    const float* const of_row = sums + (int64_t)blockIdx.x * parts * (Dv + 2);
    float top = NOTHING;
    for (int p = 0; p < parts; p++) top = fmaxf(top, of_row[p * (Dv + 2) + Dv]);
    for (int j = threadIdx.x; j < Dv; j += 64) {
        float x = 0.0f, total = 0.0f;
        for (int p = 0; p < parts; p++) {
            const float* const of_part = of_row + p * (Dv + 2);
            const float factor = exp2f(of_part[Dv] - shift_of(top));
            total += of_part[Dv + 1] * factor, x += of_part[j] * factor;
        }
        y[(((int64_t)b * L + r / G) * H + h * G + r % G) * Dv + j] = narrow<TQ>(x * share_of(total));
    }
}
