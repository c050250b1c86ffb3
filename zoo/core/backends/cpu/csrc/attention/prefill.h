// Attention of many queries: tiles of the GEMM's micro-kernel, in one pass over the keys (flash attention).
//   rows      row r = l * G + g of a key head is query l of its g-th query head: grouped heads share tiles, and the queries of a
//             panel of MR rows lie close together, so that a causal panel stops where its last query does
//   layout    K of a head packed [S/NR][D][NR], V [S][whole vectors of Dv], for a few heads at a time (4 MiB), once for all queries
//   loops     key heads > blocks of rows > blocks of KEYS keys > panels of MR rows: scores = Q K (MR x KEYS, stays in L1) -> weights
//             in place -> sums += weights V. K and V of a block stay in L2 for all panels of a block of rows
//   registers those of gemm.h: 14x32 tiles for both products
//   roof      2 L S (D + Dv) operations per head, half of them if causal; weights cost about 14 operations more per score
//   bf16      where q, k and v are bfloat16 and the processor multiplies pairs of it: pairs of a head's numbers, then pairs of keys,
//             whose weights are rounded to bfloat16 (their total is not); all else is as above, in steps of two numbers
// The sums of a row do not depend on its panel or block, so no bit of the result depends on the number of threads.

constexpr i64 KEYS = 512;
constexpr i64 SCORES = KEYS + 16;  // distance of rows of scores: not a power of two, or 14 rows fall into one set of L1
constexpr i64 ROWS = 8 * MR;

struct Prefill {
    const Attention* a;
    i64 first, heads;   // of the B * H / G key heads, those that are packed now
    i64 rows, blocks;   // a block has `rows` rows
    i64 key_blocks;
    bool pairs;
    float *k, *v;
    float* finite;  // [heads][key_blocks]: 0, or NaN where V holds a number that 0 times is not 0
};

// Pairs of bfloat16, which lie in k as they are needed.
void pack_pairs(const Prefill& p, i64 head, i64 block) {
    const Attention& a = *p.a;
    const i64 b = (p.first + head) / (a.H / a.G), h = (p.first + head) % (a.H / a.G);
    const i64 end = at_most(a.S, (block + 1) * KEYS), width = whole(a.Dv), steps = a.D / 2;
    for (i64 s = block * KEYS; s < end; s += NR) {
        const int count = (int)at_most(NR, end - s);
        const float* rows[NR];
        for (int i = 0; i < count; i++) rows[i] = reinterpret_cast<const float*>(row_of<bf16>(a.k, b, s + i, h));
        pack_rows(rows, count, steps, p.k + head * divide_up(a.S, NR) * NR * steps + s * steps);
    }
    vf finite = {};
    for (i64 s = block * KEYS; s < end; s += 2) {
        const bf16 *const row = row_of<bf16>(a.v, b, s, h), *const next = s + 1 < end ? row_of<bf16>(a.v, b, s + 1, h) : nullptr;
        float* const to = p.v + (head * divide_up(a.S, 2) + s / 2) * width;
        for (i64 j = 0; j < a.Dv; j += W) {
            const vf low = load_first(row + j, a.Dv - j), high = next ? load_first(next + j, a.Dv - j) : vf{};
            finite += low * 0.0f + high * 0.0f;
            store(to + j, (vf)((vu)low >> 16 | (vu)high));
        }
    }
    p.finite[head * p.key_blocks + block] = sum_lanes(finite);
}

template <class T>
void pack_block(const Prefill& p, i64 head, i64 block) {
    const Attention& a = *p.a;
    const i64 b = (p.first + head) / (a.H / a.G), h = (p.first + head) % (a.H / a.G);
    const i64 end = at_most(a.S, (block + 1) * KEYS), width = whole(a.Dv), apart = row_distance(a.D);
    float* const wide = scratch(SLOT_A, NR * apart);
    for (i64 s = block * KEYS; s < end; s += NR) {
        const int count = (int)at_most(NR, end - s);
        const float* rows[NR];
        for (int i = 0; i < count; i++) {
            const T* const row = row_of<T>(a.k, b, s + i, h);
            if constexpr (sizeof(T) == 4) {
                rows[i] = row;
            } else {
                widen(row, a.D, 1.0f, wide + i * apart);
                rows[i] = wide + i * apart;
            }
        }
        pack_rows(rows, count, a.D, p.k + head * divide_up(a.S, NR) * NR * a.D + s * a.D);
    }
    vf finite = {};
    for (i64 s = block * KEYS; s < end; s++) {
        const T* const row = row_of<T>(a.v, b, s, h);
        float* const to = p.v + (head * a.S + s) * width;
        for (i64 j = 0; j < a.Dv; j += W) {
            const vf v = load_first(row + j, a.Dv - j);
            finite += v * 0.0f;
            store(to + j, v);
        }
    }
    p.finite[head * p.key_blocks + block] = sum_lanes(finite);
}

void pack_task(void* context, i64 index) {
    const Prefill& p = *static_cast<const Prefill*>(context);
    const i64 head = index / p.key_blocks, block = index % p.key_blocks;
    if (p.pairs) return pack_pairs(p, head, block);
    switch (p.a->k.storage) {
        case BF16: return pack_block<bf16>(p, head, block);
        case F16: return pack_block<f16>(p, head, block);
        default: return pack_block<float>(p, head, block);
    }
}

// One block of rows of one key head.  T: float, or pair.
template <class T>
void prefill_task(void* context, i64 index) {
    const Prefill& p = *static_cast<const Prefill*>(context);
    const Attention& a = *p.a;
    const i64 head = index / p.blocks, first = (p.blocks - 1 - index % p.blocks) * p.rows;  // causal: the longest blocks first
    const i64 b = (p.first + head) / (a.H / a.G), h0 = (p.first + head) % (a.H / a.G) * a.G;
    const i64 rows = at_most(p.rows, a.L * a.G - first), width = whole(a.Dv), steps = a.D / NUMBERS<T>, q_apart = row_distance(steps);
    const Panels panels(rows);
    float* const q = scratch(SLOT_A, rows * (q_apart + width + 2) + MR * SCORES);
    float *const sums = q + rows * q_apart, *const scores = sums + rows * width;
    float *const peaks = scores + MR * SCORES, *const totals = peaks + rows;
    for (i64 i = 0; i < rows; i++) {
        const i64 l = (first + i) / a.G, h = h0 + (first + i) % a.G;
        if (NUMBERS<T> == 1) read_query(a, b, l, h, q + i * q_apart);
        else __builtin_memcpy(q + i * q_apart, row_of<bf16>(a.q, b, l, h), (size_t)a.D * sizeof(bf16));
        peaks[i] = NOTHING, totals[i] = 0.0f;
    }
    const T* const k = reinterpret_cast<const T*>(p.k + head * divide_up(a.S, NR) * NR * steps);
    const T* const v = reinterpret_cast<const T*>(p.v + head * divide_up(a.S, NUMBERS<T>) * width);
    for (i64 block = 0; block < p.key_blocks; block++) {
        const i64 key = block * KEYS, keys = at_most(KEYS, a.S - key);
        const bool finite = p.finite[head * p.key_blocks + block] == 0.0f;  // else weights of 0 must meet V, and give NaN
        for (i64 panel = 0; panel < panels.count; panel++) {
            const i64 row = panels.start(panel);
            const int count = panels.rows(panel);
            const i64 seen = at_most(keys, at_least(0, keys_seen(a, (first + row + count - 1) / a.G) - key));
            const i64 used = finite ? seen : keys;
            if (used == 0 && block > 0) continue;
            const Depth over_d{1, steps, NO_OFFSET}, over_keys{1, divide_up(used, NUMBERS<T>), NO_OFFSET};
            for (i64 s = 0; s < seen; s += NR) {
                const Tile tile{scores + s, SCORES, NR, nullptr, false};
                MICRO<T>.of[1][count - 1][NV - 1](over_d, q + row * q_apart, q_apart, k + (key + s) * steps, NR, tile);
            }
            for (int i = 0; i < count; i++) {
                const i64 r = row + i, l = (first + r) / a.G, visible = at_most(seen, at_least(0, keys_seen(a, l) - key));
                const float* const bias = bias_row(a, b, l, h0 + (first + r) % a.G, key);
                float* const weights = scores + i * SCORES;
                if (NUMBERS<T> > 1) scale_row(weights, whole(visible), a.scale);  // a scaled query would have to be rounded again
                const float factor = weigh(weights, visible, used, bias, a.bias_stride[3], peaks[r], totals[r]);
                if (NUMBERS<T> > 1) copy_steps<T>(weights, 1, over_keys.length, weights);
                if (block > 0 && factor != 1.0f) scale_row(sums + r * width, width, factor);
            }
            for (i64 j = 0; j < width; j += NR) {
                const i64 columns = at_most(NR, width - j);
                const Tile tile{sums + row * width + j, width, columns, nullptr, block > 0};
                MICRO<T>.of[1][count - 1][columns > W](over_keys, scores, SCORES, v + key / NUMBERS<T> * width + j, width, tile);
            }
        }
    }
    for (i64 i = 0; i < rows; i++)
        write_result(a, b, (first + i) / a.G, h0 + (first + i) % a.G, sums + i * width, totals[i]);
}

void prefill(const Attention& a) {
    const i64 all = a.B * (a.H / a.G), rows = a.L * a.G, key_blocks = divide_up(a.S, KEYS);
    const bool pairs = PAIRS && a.q.storage == BF16 && a.k.storage == BF16 && a.D % 2 == 0;
    const i64 numbers = pairs ? 2 : 1, k_size = divide_up(a.S, NR) * NR * a.D / numbers, v_size = divide_up(a.S, numbers) * whole(a.Dv);
    const i64 at_once = at_most(all, at_least(threads(), (1 << 20) / (k_size + v_size)));
    const i64 wanted = divide_up(rows * at_once, 4 * threads());  // four blocks for each thread, if there are so many rows
    Prefill p{};
    p.a = &a, p.pairs = pairs;
    p.rows = at_most(ROWS, divide_up(wanted, MR) * MR);
    p.blocks = divide_up(rows, p.rows), p.key_blocks = key_blocks;
    p.k = scratch(SLOT_B, at_once * (k_size + v_size + key_blocks) + NR * W);
    p.v = p.k + at_once * k_size, p.finite = p.v + at_once * v_size;
    for (p.first = 0; p.first < all; p.first += at_once) {
        p.heads = at_most(at_once, all - p.first);
        parallel(p.heads * key_blocks, pack_task, &p);
#if defined(ZOO_AVX512BF16)
        if (pairs) {
            parallel(p.heads * p.blocks, prefill_task<pair>, &p);
            continue;
        }
#endif
        parallel(p.heads * p.blocks, prefill_task<float>, &p);
    }
}
