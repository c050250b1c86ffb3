// Attention of few queries, up to DECODE_ROWS to a key head, as in decoding: limited by the memory that K and V are read from.
//   split     keys in parts of PART, each a task for all key heads (or some, where there are few parts); parts are joined after
//   layout    K and V as they lie, (B, S, H, D) or any other order of the first three axes; 16-bit numbers widened in registers.
//             W keys at a time, head by head: their rows are read from memory once for all rows of the heads' group
//   registers scores: W accumulators, for 1 row x W keys or 4 rows x W/4 keys, reduced together by shuffles
//   roof      S H / G (D + Dv) numbers at the memory's speed

constexpr i64 DECODE_ROWS = 8;
constexpr i64 PART = 256;
constexpr i64 TOGETHER = 16;  // keys whose values are added while sums are in registers
constexpr i64 AHEAD = 512;     // bytes that are prefetched ahead in every row; up to 1.3x for 16-bit numbers
#if defined(ZOO_AVX512) || defined(ZOO_NEON)
constexpr int VECTORS = 4;  // of values at a time: 4 rows x 4 + 4 + 1 = 21 registers of 32
#else
constexpr int VECTORS = 2;  // 4 rows x 2 + 2 + 1 = 11 of 16
#endif

struct Decode {
    const Attention* a;
    i64 kv_heads, rows;   // rows = L G
    i64 parts, cuts;      // heads are cut into `cuts` ranges
    i64 width;            // of a sum: whole(Dv) numbers, then its peak and its total
    const float* q;       // [B][kv_heads][rows][row_distance(D)]
    float* sums;          // [B][parts][kv_heads][rows][width + W]
};

// Scores of R rows with W keys, W / R keys at a time; rows of scores are PART apart.
template <int R, class T>
INLINE void score(const float* q, i64 q_apart, const T* const (&keys)[W], i64 D, float* to) {
    constexpr int K = W / R;
    for (int first = 0; first < W; first += K) {
        vf acc[W] = {};
        i64 d = 0;
        for (; d + W <= D; d += W) {
            vf x[R];
            UNROLL for (int r = 0; r < R; r++) x[r] = load(q + r * q_apart + d);
            UNROLL for (int i = 0; i < K; i++) {
                if (d * sizeof(T) % 64 == 0) __builtin_prefetch(keys[first + i] + d + AHEAD / (i64)sizeof(T));
                const vf k = load(keys[first + i] + d);
                UNROLL for (int r = 0; r < R; r++) acc[r * K + i] += x[r] * k;
            }
        }
        if (d < D) {
            UNROLL for (int i = 0; i < K; i++) {
                const vf k = load_first(keys[first + i] + d, D - d);
                UNROLL for (int r = 0; r < R; r++) acc[r * K + i] += load(q + r * q_apart + d) * k;
            }
        }
        const vf sums = total_each(acc);
        if constexpr (R == 1) {
            store(to, sums);
        } else {
            UNROLL for (int r = 0; r < R; r++)
                UNROLL for (int i = 0; i < K; i++) to[r * PART + first + i] = sums[r * K + i];
        }
    }
}

// sums[r][j] += weights[r][s] v[s][j], for R rows, V vectors of columns and `keys` keys.
template <int R, int V, class T>
INLINE void add_values(float* sums, i64 apart, const float* weights, const T* v, i64 v_s, i64 keys, i64 columns) {
    vf acc[R][V];
    UNROLL for (int r = 0; r < R; r++)
        UNROLL for (int j = 0; j < V; j++) acc[r][j] = load(sums + r * apart + j * W);
    for (i64 s = 0; s < keys; s++) {
        vf x[V];
        UNROLL for (int j = 0; j < V; j++) {
            if (j * W * sizeof(T) % 64 == 0) __builtin_prefetch(v + s * v_s + j * W + AHEAD / (i64)sizeof(T));
            x[j] = V == 1 ? load_first(v + s * v_s, columns) : load(v + s * v_s + j * W);
        }
        UNROLL for (int r = 0; r < R; r++) {
            const float w = weights[r * PART + s];
            UNROLL for (int j = 0; j < V; j++) acc[r][j] += w * x[j];
        }
    }
    UNROLL for (int r = 0; r < R; r++)
        UNROLL for (int j = 0; j < V; j++) store(sums + r * apart + j * W, acc[r][j]);
}
template <int R, class T>
INLINE void add_all_values(float* sums, i64 apart, const float* weights, const T* v, i64 v_s, i64 keys, i64 Dv) {
    i64 j = 0;
    for (; j + VECTORS * W <= Dv; j += VECTORS * W)
        add_values<R, VECTORS>(sums + j, apart, weights, v + j, v_s, keys, VECTORS * W);
    for (; j < Dv; j += W) add_values<R, 1>(sums + j, apart, weights, v + j, v_s, keys, Dv - j);
}

template <class T>
void decode_part(const Decode& d, i64 b, i64 part, i64 h0, i64 h1) {
    const Attention& a = *d.a;
    const i64 key = part * PART, keys = at_most(PART, a.S - key), apart = d.width + W, q_apart = row_distance(a.D);
    const i64 rows = (h1 - h0) * d.rows;
    float* const scores = scratch(SLOT_A, rows * PART);
    for (i64 s = 0; s < keys; s += W) {
        for (i64 h = h0; h < h1; h++) {
            const T* at[W];
            UNROLL for (int i = 0; i < W; i++) at[i] = row_of<T>(a.k, b, key + at_most(s + i, keys - 1), h);
            const float* const q = d.q + (b * d.kv_heads + h) * d.rows * q_apart;
            float* const to = scores + (h - h0) * d.rows * PART + s;
            i64 r = 0;
            for (; r + 4 <= d.rows; r += 4) score<4>(q + r * q_apart, q_apart, at, a.D, to + r * PART);
            for (; r < d.rows; r++) score<1>(q + r * q_apart, q_apart, at, a.D, to + r * PART);
        }
    }
    float* const sums = d.sums + ((b * d.parts + part) * d.kv_heads + h0) * d.rows * apart;
    for (i64 i = 0; i < rows; i++) {
        const i64 r = i % d.rows, l = r / a.G, head = (h0 + i / d.rows) * a.G + r % a.G;
        float* const sum = sums + i * apart;
        float &peak = sum[d.width], &total = sum[d.width + 1];
        peak = NOTHING, total = 0.0f;
        for (i64 j = 0; j < d.width; j += W) store(sum + j, vf{});
        const i64 visible = at_most(keys, at_least(0, keys_seen(a, l) - key));
        weigh(scores + i * PART, visible, keys, bias_row(a, b, l, head, key), a.bias_stride[3], peak, total);
    }
    for (i64 s = 0; s < keys; s += TOGETHER) {
        const i64 count = at_most(TOGETHER, keys - s);
        for (i64 h = h0; h < h1; h++) {
            const T* const v = row_of<T>(a.v, b, key + s, h);
            float* const sum = sums + (h - h0) * d.rows * apart;
            const float* const weights = scores + (h - h0) * d.rows * PART + s;
            i64 r = 0;
            for (; r + 4 <= d.rows; r += 4)
                add_all_values<4>(sum + r * apart, apart, weights + r * PART, v, a.v.position, count, a.Dv);
            for (; r < d.rows; r++)
                add_all_values<1>(sum + r * apart, apart, weights + r * PART, v, a.v.position, count, a.Dv);
        }
    }
}

void decode_task(void* context, i64 index) {
    const Decode& d = *static_cast<const Decode*>(context);
    const i64 cut = index % d.cuts, part = index / d.cuts % d.parts, b = index / d.cuts / d.parts;
    const i64 h0 = d.kv_heads * cut / d.cuts, h1 = d.kv_heads * (cut + 1) / d.cuts;
    switch (d.a->k.storage) {
        case BF16: return decode_part<bf16>(d, b, part, h0, h1);
        case F16: return decode_part<f16>(d, b, part, h0, h1);
        default: return decode_part<float>(d, b, part, h0, h1);
    }
}

// Joins the parts of the rows of one key head.
void join_task(void* context, i64 index) {
    const Decode& d = *static_cast<const Decode*>(context);
    const Attention& a = *d.a;
    const i64 b = index / d.kv_heads, h = index % d.kv_heads, apart = d.width + W, next = d.kv_heads * d.rows * apart;
    for (i64 r = 0; r < d.rows; r++) {
        float* const first = d.sums + ((b * d.parts * d.kv_heads + h) * d.rows + r) * apart;
        float peak = NOTHING;
        for (i64 p = 0; p < d.parts; p++) peak = first[p * next + d.width] > peak ? first[p * next + d.width] : peak;
        const float shift = peak == NOTHING ? 0.0f : peak;
        float total = 0.0f;
        for (i64 p = 0; p < d.parts; p++) {
            const float factor = weight_of(first[p * next + d.width] - shift);
            total += first[p * next + d.width + 1] * factor;
            for (i64 j = 0; j < d.width; j += W) {
                const vf part = load(first + p * next + j) * factor;
                store(first + j, p == 0 ? part : load(first + j) + part);
            }
        }
        write_result(a, b, r / a.G, h * a.G + r % a.G, first, total);
    }
}

void decode(const Attention& a) {
    Decode d{};
    d.a = &a;
    d.kv_heads = a.H / a.G, d.rows = a.L * a.G;
    d.parts = divide_up(a.S, PART), d.width = whole(a.Dv);
    const bool small = a.B * a.S * d.kv_heads * (a.D + a.Dv) < 1 << 15;  // done before another thread has woken up
    d.cuts = small ? 1 : at_most(d.kv_heads, divide_up(2 * threads(), a.B * d.parts));
    const i64 q_apart = row_distance(a.D), heads = a.B * d.kv_heads;
    float* const q = scratch(SLOT_B, heads * d.rows * (q_apart + d.parts * (d.width + W)));
    d.q = q, d.sums = q + heads * d.rows * q_apart;
    for (i64 i = 0; i < heads * d.rows; i++) {
        const i64 r = i % d.rows, head = i / d.rows;
        read_query(a, head / d.kv_heads, r / a.G, head % d.kv_heads * a.G + r % a.G, 1.0f, q + i * q_apart);
    }
    if (small) {
        for (i64 i = 0; i < a.B * d.parts * d.cuts; i++) decode_task(&d, i);
    } else {
        parallel(a.B * d.parts * d.cuts, decode_task, &d);
    }
    if (heads * d.rows * d.parts * d.width < 1 << 16) {
        for (i64 i = 0; i < heads; i++) join_task(&d, i);
    } else {
        parallel(heads, join_task, &d);
    }
}
