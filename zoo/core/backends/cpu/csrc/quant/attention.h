// y = softmax(scale q k^T) v by head, with both products in integers of 16 bits: two products to a lane and instruction where VNNI
// (vpdpwssd) has them, twice as many as float32's FMA. For attention beside weights of 8 bits, whose rounding is coarser.
//   codes     q and k by row in 12 bits (2047 steps to the largest number), v by column of a block of keys in 10 (511), weights in 14
//             (16383 to the largest of a block's row): sums of 512 x 2047^2 and of KEYS x 16383 x 511 fit 32 bits. What a row is divided
//             by is the sum of its codes, so that what was rounded away does not count there either
//   layout    K of a head packed in pairs of inputs [S/NR][D/2][NR][2], V in pairs of keys [S/2][whole vectors of Dv][2], all heads once
//   loops     as attention/prefill.h: heads > blocks of rows > blocks of KEYS keys > panels of ROWS8 rows: scores (in L1) -> codes
//             of weights -> sums
//   registers those of kernels8.h: 14x32 on VNNI
//   roof      L S (D + Dv) of these instructions' 2-products, and about 13 operations on each weight, which is as much as a product at D = 40
// No bit depends on the number of threads. A head that holds NaN or infinity is the reference's.

constexpr i64 KEYS = 256, SCORES = KEYS + 16, BLOCK_ROWS = 8 * ROWS8;
constexpr float ROW_STEPS = 2047, COLUMN_STEPS = 511, WEIGHT_STEPS = 16383;
typedef int16_t vs __attribute__((vector_size(W * 2)));

INLINE void add_products(vi& sum, vi w, vi a) {
#if defined(ZOO_AVX512VNNI)
    sum = (vi)_mm512_dpwssd_epi32((__m512i)sum, (__m512i)w, (__m512i)a);
#else
    sum += add_pairs(w, a);
#endif
}
INLINE void store_shorts(int16_t* to, vi v) {
    const vs narrow = __builtin_convertvector(v, vs);
    __builtin_memcpy(to, &narrow, sizeof narrow);
}

struct Tile16 {
    float* c;  // whole vectors
    i64 c_m;
    const float *row, *keep;  // c = keep[i] c + sums row[i] column[j]; null: no such factor, and for `keep` c is not read
    const float* column;
};

// pairs: of the inputs that are summed over; those of w are `step` lanes apart, rows of a `apart` numbers.
template <int R, int V>
__attribute__((noinline)) void micro16(i64 pairs, const int16_t* a, i64 apart, const int32_t* w, i64 step, const Tile16& tile) {
    vi acc[R][V] = {};
    constexpr int POINTERS = (R + 2) / 3;
    const int16_t* at[POINTERS];  // as in micro8
    UNROLL for (int p = 0; p < POINTERS; p++) at[p] = a + 3 * p * apart;
    for (i64 k = 0; k < pairs; k++) {
        vi x[V];
        UNROLL for (int j = 0; j < V; j++) x[j] = load_ints(w + j * W);
        UNROLL for (int i = 0; i < R; i++) {
            const vi y = splat_int(int_at(reinterpret_cast<const char*>(at[i / 3] + i % 3 * apart)));
            UNROLL for (int j = 0; j < V; j++) add_products(acc[i][j], x[j], y);
        }
        w += step;
        UNROLL for (int p = 0; p < POINTERS; p++) {
            at[p] += 2;
            asm("" : "+r"(at[p]));
        }
    }
    UNROLL for (int j = 0; j < V; j++) {
        const vf column = load(tile.column + j * W);
        UNROLL for (int i = 0; i < R; i++) {
            float* const c = tile.c + i * tile.c_m + j * W;
            vf y = to_float(acc[i][j]) * (tile.row ? column * tile.row[i] : column);
            if (tile.keep) y += load(c) * tile.keep[i];
            store(c, y);
        }
    }
}

using Micro16 = void (*)(i64, const int16_t*, i64, const int32_t*, i64, const Tile16&);
struct Micros16 {
    Micro16 of[ROWS8][NV];
};
template <int R>
constexpr void fill16(Micros16& m) {
    m.of[R - 1][0] = micro16<R, 1>;
    m.of[R - 1][1] = micro16<R, 2>;
    if constexpr (R > 1) fill16<R - 1>(m);
}
constexpr Micros16 make_micros16() {
    Micros16 m{};
    fill16<ROWS8>(m);
    return m;
}
constexpr Micros16 MICRO16 = make_micros16();

struct Attention16 {
    const QuantAttention* q;
    i64 blocks, rows;        // of rows of a head
    i64 key_blocks, width, pairs;  // whole vectors of Dv; pairs of D
    int32_t *k, *v;                // packed, of all heads
    float *k_scale, *v_scale;      // [heads][S/NR * NR], [heads][key_blocks][width]
};

// A row's codes, up to whole vectors; false if it is not finite.
INLINE bool quantise16(const float* a, i64 n, int16_t* to, float* scale) {
    const int32_t largest = largest_bits(a, n);
    const float inverse = inverse_of(largest, scale, ROW_STEPS);
    for (i64 k = 0; k < n; k += W) store_shorts(to + k, inverse > 0 ? nearest(load_first(a + k, n - k) * inverse) : vi{});
    return largest < INFINITE;
}

void pack_keys(void* context, i64 index) {
    const Attention16& p = *static_cast<const Attention16*>(context);
    const Attention& a = p.q->attention;
    const i64 head = index / p.key_blocks, block = index % p.key_blocks, b = head / a.H, h = head % a.H;
    const i64 begin = block * KEYS, end = at_most(a.S, begin + KEYS), padded = divide_up(a.S, NR) * NR, apart = whole(a.D);
    int16_t* const codes = scratch_of<int16_t>(SLOT_A, NR * apart);
    bool finite = true;
    for (i64 s = begin; s < end; s += NR) {
        const int count = (int)at_most(NR, end - s);
        const float* rows[NR];
        float* const scale = p.k_scale + head * padded + s;
        for (int i = 0; i < NR; i++) {
            rows[i] = reinterpret_cast<const float*>(codes + i * apart);
            scale[i] = 0.0f;
            if (i < count) finite = quantise16(row_of<float>(a.k, b, s + i, h), a.D, codes + i * apart, scale + i) && finite;
        }
        pack_rows(rows, count, p.pairs, reinterpret_cast<float*>(p.k + (head * padded + s) * p.pairs));
    }
    for (i64 j = 0; j < a.Dv; j += W) {
        const i64 lanes = a.Dv - j;
        vi largest{};
        for (i64 s = begin; s < end; s++) {
            const vi x = (vi)load_first(row_of<float>(a.v, b, s, h) + j, lanes) & 0x7FFFFFFF;
            largest = (vi)select(x > largest, (vf)x, (vf)largest);
        }
        for (int i = 0; i < W; i++) finite = finite && largest[i] < INFINITE;
        const vi used = (vf)largest >= TINY;
        const vf inverse = select(used, COLUMN_STEPS / (vf)largest, vf{});
        store(p.v_scale + index * p.width + j, select(used, (vf)largest * (1 / COLUMN_STEPS), vf{}));
        const auto code = [&](i64 s) INLINE_LAMBDA {
            return s < end ? nearest(load_first(row_of<float>(a.v, b, s, h) + j, lanes) * inverse) : vi{};
        };
        for (i64 s = begin; s < end; s += 2)
            store_ints(p.v + (head * divide_up(a.S, 2) + s / 2) * p.width + j, (code(s) & 0xFFFF) | code(s + 1) << 16);
    }
    if (!finite) __atomic_store_n(p.q->strange, 1, __ATOMIC_RELAXED);
}

// The codes of one row's weights in one block. s: its scores, in which `scale` is left out. What earlier sums are multiplied by, and these.
INLINE void weigh16(float* s, i64 keys, float scale, int16_t* codes, float& peak, float& total, float& keep, float& factor) {
    const i64 end = divide_up(keys, W) * W;
    for (i64 j = keys; j < end; j++) s[j] = s[0];  // weighs nothing, and is no peak
    vf top = splat(NOTHING);
    for (i64 j = 0; j < end; j += W) top = maximum_of(load(s + j), top);
    const float log2e = 1.44269504f, highest = max_lanes(top), before = peak, now = highest * scale;
    peak = now > before ? now : before;
    vi sum{}, lane{};
    for (int i = 0; i < W; i++) lane[i] = i;
    for (i64 j = 0; j < end; j += W) {
        vi code = nearest(power2((load(s + j) - highest) * (scale * log2e) + (13.9999119f + 0.5f)));  // 2^13.9999119 = 16383
        if (j + W > keys) code &= lane < splat_int((int)(keys - j));
        store_shorts(codes + j, code);
        sum += code;
    }
    keep = weight_of(before - peak);
    factor = weight_of(now - peak) * (1 / WEIGHT_STEPS);
    total = total * keep + sum_lanes(to_float(sum)) * factor;
}

void attend_rows(void* context, i64 index) {
    const Attention16& p = *static_cast<const Attention16*>(context);
    const Attention& a = p.q->attention;
    const i64 head = index / p.blocks, first = index % p.blocks * p.rows, b = head / a.H, h = head % a.H;
    const i64 rows = at_most(p.rows, a.L - first), apart = whole(a.D), padded = divide_up(a.S, NR) * NR;
    const Panels panels(rows, ROWS8);
    float* const sums = scratch(SLOT_X, rows * (p.width + 5) + ROWS8 * SCORES + apart);
    float *const scores = sums + rows * p.width, *const query = scores + ROWS8 * SCORES, *const scale = query + apart;
    float *const peaks = scale + rows, *const totals = peaks + rows, *const keep = totals + rows, *const factor = keep + rows;
    int16_t* const q = scratch_of<int16_t>(SLOT_A, rows * apart + ROWS8 * SCORES);
    int16_t* const codes = q + rows * apart;
    for (i64 i = 0; i < rows; i++) {
        read_query(a, b, first + i, h, 1.0f, query);
        if (!quantise16(query, a.D, q + i * apart, scale + i)) __atomic_store_n(p.q->strange, 1, __ATOMIC_RELAXED);
        peaks[i] = NOTHING, totals[i] = 0.0f;
    }
    for (i64 block = 0; block < p.key_blocks; block++) {
        const i64 key = block * KEYS, keys = at_most(KEYS, a.S - key);
        const int32_t* const k = p.k + (head * padded + key) * p.pairs;
        const int32_t* const v = p.v + (head * divide_up(a.S, 2) + key / 2) * p.width;
        for (i64 panel = 0; panel < panels.count; panel++) {
            const i64 row = panels.start(panel);
            const int count = panels.rows(panel);
            for (i64 s = 0; s < keys; s += NR) {
                const Tile16 tile{scores + s, SCORES, nullptr, nullptr, p.k_scale + head * padded + key + s};
                MICRO16.of[count - 1][NV - 1](p.pairs, q + row * apart, apart, k + s * p.pairs, NR, tile);
            }
            for (i64 r = row; r < row + count; r++)
                weigh16(scores + (r - row) * SCORES, keys, scale[r], codes + (r - row) * SCORES, peaks[r], totals[r], keep[r], factor[r]);
            for (i64 j = 0; j < p.width; j += NR) {
                const Tile16 tile{sums + row * p.width + j, p.width, factor + row, block > 0 ? keep + row : nullptr,
                                  p.v_scale + (head * p.key_blocks + block) * p.width + j};
                MICRO16.of[count - 1][p.width - j > W](divide_up(keys, 2), codes, SCORES, v + j, p.width, tile);
            }
        }
    }
    for (i64 i = 0; i < rows; i++) write_result(a, b, first + i, h, sums + i * p.width, totals[i]);
}

void attention(const QuantAttention& job) {
    const Attention& a = job.attention;
    const i64 heads = a.B * a.H, padded = divide_up(a.S, NR) * NR, width = whole(a.Dv), key_blocks = divide_up(a.S, KEYS);
    const i64 blocks = divide_up(a.L, BLOCK_ROWS), pairs = divide_up(a.D, 2), halves = divide_up(a.S, 2);
    int32_t* const k = scratch_of<int32_t>(SLOT_B, heads * (padded * (pairs + 1) + (halves + key_blocks) * width));
    int32_t* const v = k + heads * padded * pairs;
    float* const k_scale = reinterpret_cast<float*>(v + heads * halves * width);
    Attention16 p{&job, blocks, divide_up(a.L, blocks), key_blocks, width, pairs, k, v, k_scale, k_scale + heads * padded};
    parallel(heads * key_blocks, pack_keys, &p);
    parallel(heads * blocks, attend_rows, &p);
}
