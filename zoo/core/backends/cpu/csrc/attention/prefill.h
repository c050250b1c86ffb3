// Attention of many queries: tiles of the GEMM's micro-kernel, in one pass over the keys (flash attention), with queries along the lanes.
//   rows      row r = l * G + g of a key head is query l of its g-th query head: grouped heads share tiles, and the queries of a
//             panel of NR rows lie close together, so that a causal panel stops where its last query does
//   layout    scores S^T = K Q^T and sums O^T = V^T P^T, [key][NR] and [Dv][NR]: numbers of K and V are broadcast, so neither D nor
//             Dv is rounded up to whole vectors, and a softmax runs down its lane. K [S][D] and V [Dv/MR][S][MR] of a head are copied for a
//             few heads at a time (4 MiB), once for all queries; a panel of queries is packed [D][NR]
//   loops     key heads > blocks of rows > blocks of KEYS keys > panels of NR rows: scores (KEYS x NR, stay in L1) -> weights in place ->
//             sums. K and V of a block stay in L2 for all panels of a block of rows
//   registers those of gemm.h: 14x32 tiles for both products
//   weights   2^(score - peak): queries are scaled by log2 e too, which spares a multiplication for each score
//   roof      2 L S (D + Dv) operations per head, half of them if causal; weights cost about 12 operations more per score
//   bf16      where q, k and v are bfloat16 and the processor multiplies pairs of it: pairs of a head's numbers, then pairs of keys,
//             whose weights are rounded to bfloat16 (their total is not); all else is as above, in steps of two numbers
// The sums of a row do not depend on its panel or block, so no bit of the result depends on the number of threads.

constexpr i64 KEYS = 256;
constexpr i64 ROWS = 4 * NR;

struct Prefill {
    const Attention* a;
    i64 first, heads;   // of the B * H / G key heads, those that are copied now
    i64 rows, blocks;   // a block has `rows` rows
    i64 key_blocks;
    bool pairs;
    i64 k_apart, k_size, v_size;  // of rows, of heads
    i64 v_steps;                  // keys, or pairs of them
    float *k, *v;       // [heads][S][k_apart], [heads][panels of Dv][v_steps][rows of the panel]
    float* finite;  // [heads][key_blocks]: 0, or NaN where V holds a number that 0 times is not 0
};

// A row of V to its panels; `at(j)` is W of its numbers. What 0 times them adds up to.
template <class At>
INLINE vf copy_values(const Prefill& p, i64 head, i64 step, const At& at) {
    const Panels panels(p.a->Dv);
    vf sum = {};
    for (i64 i = 0; i < panels.count; i++) {
        const i64 start = panels.start(i), n = panels.rows(i);
        float* const to = p.v + head * p.v_size + start * p.v_steps + step * n;
        for (i64 j = 0; j < n; j += W) store_first(to + j, at(start + j, n - j, sum), n - j);
    }
    return sum;
}

// Pairs of bfloat16: of neighbours in k, of a key and the next in v.
void copy_pairs(const Prefill& p, i64 head, i64 block) {
    const Attention& a = *p.a;
    const i64 b = (p.first + head) / (a.H / a.G), h = (p.first + head) % (a.H / a.G), end = at_most(a.S, (block + 1) * KEYS);
    vf finite = {};
    for (i64 s = block * KEYS; s < end; s++)
        copy_run(reinterpret_cast<const float*>(row_of<bf16>(a.k, b, s, h)), a.D / 2, p.k + head * p.k_size + s * p.k_apart);
    for (i64 s = block * KEYS; s < end; s += 2) {
        const bf16 *const row = row_of<bf16>(a.v, b, s, h), *const next = s + 1 < end ? row_of<bf16>(a.v, b, s + 1, h) : nullptr;
        finite += copy_values(p, head, s / 2, [&](i64 j, i64 n, vf& sum) INLINE_LAMBDA {
            const vf low = load_first(row + j, n), high = next ? load_first(next + j, n) : vf{};
            sum += low * 0.0f + high * 0.0f;
            return (vf)((vu)low >> 16 | (vu)high);
        });
    }
    p.finite[head * p.key_blocks + block] = sum_lanes(finite);
}

template <class T>
void copy_block(const Prefill& p, i64 head, i64 block) {
    const Attention& a = *p.a;
    const i64 b = (p.first + head) / (a.H / a.G), h = (p.first + head) % (a.H / a.G), end = at_most(a.S, (block + 1) * KEYS);
    vf finite = {};
    for (i64 s = block * KEYS; s < end; s++) {
        widen(row_of<T>(a.k, b, s, h), a.D, 1.0f, p.k + head * p.k_size + s * p.k_apart);
        const T* const row = row_of<T>(a.v, b, s, h);
        finite += copy_values(p, head, s, [&](i64 j, i64 n, vf& sum) INLINE_LAMBDA {
            const vf v = load_first(row + j, n);
            sum += v * 0.0f;
            return v;
        });
    }
    p.finite[head * p.key_blocks + block] = sum_lanes(finite);
}

void copy_task(void* context, i64 index) {
    const Prefill& p = *static_cast<const Prefill*>(context);
    const i64 head = index / p.key_blocks, block = index % p.key_blocks;
    if (p.pairs) return copy_pairs(p, head, block);
    switch (p.a->k.storage) {
        case BF16: return copy_block<bf16>(p, head, block);
        case F16: return copy_block<f16>(p, head, block);
        default: return copy_block<float>(p, head, block);
    }
}

// One panel of rows, first .. first + count of a key head.
struct Panel {
    const Attention* a;
    i64 b, h0, first;
    int count;
    i64 query(i64 i) const { return (first + i) / a->G; }
    i64 head(i64 i) const { return h0 + (first + i) % a->G; }
};

// scores = scores * unit + bias, of W x W at a time, since a bias lies by rows.
void add_bias(const Panel& p, i64 key, i64 keys, float unit, float* scores) {
    const i64 step = p.a->bias_stride[3];
    for (i64 s = 0; s < keys; s += W) {
        for (i64 g = 0; g < p.count; g += W) {
            vf t[W];
            const i64 lanes = at_most(W, keys - s);
            for (int i = 0; i < W; i++) {
                t[i] = vf{};
                if (g + i >= p.count) continue;
                const float* const from = bias_row(*p.a, p.b, p.query(g + i), p.head(g + i), key + s);
                if (step == 1) t[i] = load_first(from, lanes);
                else for (i64 j = 0; j < lanes; j++) t[i][j] = from[j * step];
            }
            transpose(t);
            for (i64 j = 0; j < lanes; j++) {
                float* const at = scores + (s + j) * NR + g;
                store(at, load(at) * unit + t[j] * LOG2E);
            }
        }
    }
}

// W lanes of a panel: scores of `seen` keys, times unit, become weights, those of keys up to `used` 0; lane i sees the first visible[i].
// Updates peaks and totals; what earlier sums must be multiplied by.
template <class T>
INLINE vf weigh_lanes(float* s, i64 seen, i64 used, vi visible, i64 least, float unit, float* peaks, float* totals) {
    for (i64 j = least; j < seen; j++) store(s + j * NR, select((vi{} + (int)j) < visible, load(s + j * NR), splat(NOTHING)));
    const auto score = [&](i64 j) INLINE_LAMBDA { return NUMBERS<T> > 1 ? load(s + j * NR) * unit : load(s + j * NR); };
    const vf before = load(peaks);
    vf top[4] = {before, before, before, before};
    i64 j = 0;
    for (; j + 4 <= seen; j += 4)
        UNROLL for (int i = 0; i < 4; i++) top[i] = maximum_of(score(j + i), top[i]);
    for (; j < seen; j++) top[0] = maximum_of(score(j), top[0]);
    const vf peak = maximum_of(maximum_of(top[0], top[1]), maximum_of(top[2], top[3]));
    const vf shift = select(peak == NOTHING, vf{}, peak);
    vf sum = {};
    if constexpr (NUMBERS<T> == 1) {
        for (j = 0; j < seen; j++) {
            const vf w = power_of_two(score(j) - shift);
            store(s + j * NR, w);
            sum += w;
        }
        for (; j < used; j++) store(s + j * NR, vf{});
    } else {
        for (j = 0; j < used; j += 2) {
            const vf low = j < seen ? power_of_two(score(j) - shift) : vf{}, high = j + 1 < seen ? power_of_two(score(j + 1) - shift) : vf{};
            const vu a = (vu)low + 0x7FFF + ((vu)low >> 16 & 1), b = (vu)high + 0x7FFF + ((vu)high >> 16 & 1);
            store(s + j / 2 * NR, (vf)(a >> 16 | (b & 0xFFFF0000)));
            sum += low + high;
        }
    }
    const vf factor = select(before == peak, splat(1.0f), power_of_two(before - shift));
    store(peaks, peak);
    store(totals, load(totals) * factor + sum);
    return factor;
}

// One block of rows of one key head.  T: float, or pair.
template <class T>
void prefill_task(void* context, i64 index) {
    const Prefill& p = *static_cast<const Prefill*>(context);
    const Attention& a = *p.a;
    const i64 head = index / p.blocks, first = (p.blocks - 1 - index % p.blocks) * p.rows;  // causal: the longest blocks first
    const i64 b = (p.first + head) / (a.H / a.G), h0 = (p.first + head) % (a.H / a.G) * a.G;
    const i64 rows = at_most(p.rows, a.L * a.G - first), panels = divide_up(rows, NR), steps = a.D / NUMBERS<T>;
    const i64 apart = row_distance(at_least(a.D, a.Dv));  // of single rows, as they come and go
    float* const q = scratch(SLOT_A, NR * (panels * (steps + a.Dv + 2) + KEYS + apart));
    float *const sums = q + panels * steps * NR, *const scores = sums + panels * a.Dv * NR, *const by_row = scores + KEYS * NR;
    float *const peaks = by_row + NR * apart, *const totals = peaks + panels * NR;
    const auto panel_at = [&](i64 i) { return Panel{&a, b, h0, first + i * NR, (int)at_most(NR, rows - i * NR)}; };
    for (i64 i = 0; i < panels; i++) {
        const Panel panel = panel_at(i);
        const float* from[NR];
        for (int r = 0; r < panel.count; r++) {
            from[r] = by_row + r * apart;
            if (NUMBERS<T> == 1) read_query(a, b, panel.query(r), panel.head(r), LOG2E, by_row + r * apart);
            else from[r] = reinterpret_cast<const float*>(row_of<bf16>(a.q, b, panel.query(r), panel.head(r)));
        }
        pack_rows(from, panel.count, steps, q + i * steps * NR);
        for (i64 r = i * NR; r < (i + 1) * NR; r++) peaks[r] = NOTHING, totals[r] = 0.0f;
    }
    for (i64 block = 0; block < p.key_blocks; block++) {
        const i64 key = block * KEYS, keys = at_most(KEYS, a.S - key);
        const float* const k = p.k + head * p.k_size + key * p.k_apart;
        const float* const v = p.v + head * p.v_size;
        const bool finite = p.finite[head * p.key_blocks + block] == 0.0f;  // else weights of 0 must meet V, and give NaN
        for (i64 i = 0; i < panels; i++) {
            const Panel panel = panel_at(i);
            const i64 columns = panel.count > W ? NR : W;
            const i64 least = at_most(keys, at_least(0, keys_seen(a, panel.query(0)) - key));
            const i64 seen = at_most(keys, at_least(0, keys_seen(a, panel.query(panel.count - 1)) - key)), used = finite ? seen : keys;
            if (used == 0 && block > 0) continue;
            const Depth over_d{1, steps, NO_OFFSET}, over_keys{1, divide_up(used, NUMBERS<T>), NO_OFFSET};
            const Panels by_key(seen), by_value(a.Dv);
            for (i64 s = 0; s < by_key.count; s++) {
                const Tile tile{scores + by_key.start(s) * NR, NR, columns, nullptr, false};
                const auto product = MICRO<T>.of[1][by_key.rows(s) - 1][columns > W];
                product(over_d, k + by_key.start(s) * p.k_apart, p.k_apart, reinterpret_cast<const T*>(q) + i * steps * NR, NR, tile);
            }
            float unit = NUMBERS<T> > 1 ? a.scale * LOG2E : 1.0f;  // a scaled query of bfloat16 would have to be rounded again
            if (a.bias) add_bias(panel, key, seen, unit, scores), unit = 1.0f;
            float* const sum = sums + i * a.Dv * NR;
            for (i64 g = 0; g < columns; g += W) {
                vi visible;
                for (int r = 0; r < W; r++) visible[r] = (int)(keys_seen(a, panel.query(at_most(g + r, panel.count - 1))) - key);
                const vf factor = weigh_lanes<T>(scores + g, seen, used, visible, least, unit, peaks + i * NR + g, totals + i * NR + g);
                if (block == 0 || sum_lanes(factor) == W) continue;
                for (i64 j = 0; j < a.Dv; j++) store(sum + j * NR + g, load(sum + j * NR + g) * factor);
            }
            for (i64 j = 0; j < by_value.count; j++) {
                const i64 start = by_value.start(j), n = by_value.rows(j);
                const Tile tile{sum + start * NR, NR, columns, nullptr, block > 0};
                const float* const from = v + start * p.v_steps + key / NUMBERS<T> * n;
                MICRO<T>.of[0][n - 1][columns > W](over_keys, from, n, reinterpret_cast<const T*>(scores), NR, tile);
            }
        }
    }
    for (i64 i = 0; i < panels; i++) {
        const Panel panel = panel_at(i);
        for (i64 g = 0; g < panel.count; g += W) {
            for (i64 j = 0; j < a.Dv; j += W) {
                vf t[W];
                for (int d = 0; d < W; d++) t[d] = j + d < a.Dv ? load(sums + (i * a.Dv + j + d) * NR + g) : vf{};
                transpose(t);
                UNROLL for (int r = 0; r < W; r++) store(by_row + (g + r) * apart + j, t[r]);
            }
        }
        for (int r = 0; r < panel.count; r++)
            write_result(a, b, panel.query(r), panel.head(r), by_row + r * apart, totals[i * NR + r]);
    }
}

void prefill(const Attention& a) {
    const i64 all = a.B * (a.H / a.G), rows = a.L * a.G;
    Prefill p{};
    p.a = &a, p.key_blocks = divide_up(a.S, KEYS);
    p.pairs = PAIRS && a.q.storage == BF16 && a.k.storage == BF16 && a.D % 2 == 0;
    const i64 numbers = p.pairs ? 2 : 1;
    p.k_apart = row_distance(a.D / numbers), p.v_steps = divide_up(a.S, numbers);
    p.k_size = a.S * p.k_apart, p.v_size = p.v_steps * a.Dv;
    const i64 at_once = at_most(all, at_least(threads(), (1 << 20) / (p.k_size + p.v_size)));
    const i64 wanted = divide_up(rows * at_once, 4 * threads());  // four blocks for each thread, if there are so many rows
    p.rows = at_most(ROWS, divide_up(wanted, NR) * NR);
    p.blocks = divide_up(rows, p.rows);
    p.k = scratch(SLOT_B, at_once * (p.k_size + p.v_size + p.key_blocks) + W);
    p.v = p.k + at_once * p.k_size, p.finite = p.v + at_once * p.v_size;
    for (p.first = 0; p.first < all; p.first += at_once) {
        p.heads = at_most(at_once, all - p.first);
        parallel(p.heads * p.key_blocks, copy_task, &p);
#if defined(ZOO_AVX512BF16)
        if (p.pairs) {
            parallel(p.heads * p.blocks, prefill_task<pair>, &p);
            continue;
        }
#endif
        parallel(p.heads * p.blocks, prefill_task<float>, &p);
    }
}
