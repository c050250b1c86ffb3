// What the kernels of attention share: heads in memory, rows, what a row may see, how its scores are counted.
//   rows      row r = l * G + g of a key head is query l of the g-th of its G query heads: K and V are read once for all of them
//   scores    in base 2, log2(e) (scale * q k + bias), so that a weight is one exp2
//   a part    of a row is its peak m, its total t = sum 2^(s - m) and its sum o = sum 2^(s - m) v; two parts become one by
//                 m = max(m1, m2),  t = t1 2^(m1 - m) + t2 2^(m2 - m),  o likewise       (Milakov & Gimelshein 2018)
//             A row that has seen no key has m = -inf, t = 0 and o = 0, and gives zeros. A NaN or +inf among the scores of a row
//             makes its total NaN, and so all of its result, as in the op's body
//   lengths   where they are given, sequence b has lengths[b] keys of the S that there is room for; the rest is never read

const float LOG2E = 1.4426950408889634f;
#define NOTHING (-INFINITY)

// Heads of a tensor (batch, position, head, number): strides in numbers; the numbers of a head lie side by side.
template <class Stored>
struct Heads {
    const Stored* data;
    int64_t batch, position, head;

    __device__ const Stored* at(int b, int l, int h) const { return data + b * batch + l * position + h * head; }
    // Whether 16 bytes can be read at a time.
    __device__ bool aligned() const {
        const int64_t all = batch | position | head;
        return (reinterpret_cast<uint64_t>(data) & 15) == 0 && (all * (int64_t)sizeof(Stored) & 15) == 0;
    }
};

// What broadcasts to the scores (batch, head, query, key); data may be null.
struct Bias {
    const float* data;
    int64_t batch, head, query, key;

    __device__ float at(int b, int h, int l, int s) const {
        return data[b * batch + h * head + l * query + s * key];
    }
};

// The rows of one key head: L queries for each of the G query heads that share it.
struct Rows {
    int L, G, count, keys;  // count = L G; keys: how many the sequence has
    bool causal;

    __device__ Rows(int b, int L, int G, int S, const int* lengths, int causal)
        : L(L), G(G), count(L * G), keys(lengths ? min(max(lengths[b], 0), S) : S), causal(causal != 0) {}

    __device__ int query(int r) const { return r / G; }
    // How many keys row r sees: the last query sees all. None beyond the last row.
    __device__ int seen(int r) const {
        if (r >= count) return 0;
        return causal ? max(0, min(keys, query(r) + 1 + keys - L)) : keys;
    }
};

// What a peak is taken from: 0 where nothing was seen, for -inf - -inf would be NaN.
__device__ inline float shift_of(float peak) { return peak == NOTHING ? 0.0f : peak; }

// 1 / total; the sum of a row that saw no key is 0 already.
__device__ inline float share_of(float total) { return total == 0.0f ? 1.0f : 1.0f / total; }

// The largest, or the sum, over `lanes` neighbouring lanes.
template <int lanes>
__device__ inline float group_max(float x) {
#pragma unroll
    for (int apart = lanes / 2; apart > 0; apart /= 2) x = fmaxf(x, __shfl_xor_sync(FULL, x, apart));
    return x;
}
template <int lanes>
__device__ inline float group_sum(float x) {
#pragma unroll
    for (int apart = lanes / 2; apart > 0; apart /= 2) x += __shfl_xor_sync(FULL, x, apart);
    return x;
}

// For gradients: `lanes` lanes' parts of a row, with the sum of what its weights weigh in `mean`, become one. ends: log2 of its
// total, +inf for a row that saw no key, so that its weights 2^(s - ends) are 0.
template <int lanes>
__device__ inline void join_row(float& peak, float& total, float& mean, float& ends) {
    const float top = group_max<lanes>(peak), factor = exp2f(peak - shift_of(top));
    total = group_sum<lanes>(total * factor);
    mean = group_sum<lanes>(mean * factor) * share_of(total);
    ends = total == 0.0f ? INFINITY : top + log2f(total);
}

// `count` numbers side by side, 16 bytes or a part of it, widened.
template <int count, class Stored>
__device__ inline void read_vector(const Stored* from, float* to) {
    Vec<Stored, count> numbers;
    numbers.load(from);
#pragma unroll
    for (int i = 0; i < count; i++) to[i] = widen(numbers[i]);
}

// `count` numbers of a row of D from `first` on; zeros beyond. aligned: all of them may be read together.
template <int count, class Stored>
__device__ inline Vec<Stored, count> fetch(const Stored* row, int first, int D, bool aligned) {
    Vec<Stored, count> numbers;
    if (aligned && first + count <= D) {
        numbers.load(row + first);
    } else {
#pragma unroll
        for (int i = 0; i < count; i++) numbers[i] = first + i < D ? row[first + i] : narrow<Stored>(0.0f);
    }
    return numbers;
}
