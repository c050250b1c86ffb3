// Gradients of attention, from tiles that are computed again (flash attention's backward pass; Dao et al. 2022):
//     P = weights / total,   A = g V^T,   m = sum over keys of P * A,   dS = P * (A - m)
//     dq = scale * dS K,     dk = dS^T (scale * q),           dv = P^T g
//   layout    one key head is one task. K and V packed [S/NR][D][NR] for Q K^T and g V^T, K as rows for dS K; a block of rows of
//             q and g; P and A of BACK rows x BACK_KEYS keys (240 KiB) stay in L2. dk and dv of the head are summed in place
//   loops     blocks of rows > (peak, total and m over all keys) > blocks of keys > panels
//   roof      7 products where the forward pass has 2; 5 where all keys that are seen fit one tile, which is then made once
// Sums run over rows and keys in their order, in one task: no bit depends on the number of threads.

constexpr i64 BACK_KEYS = 256;
constexpr i64 TILE = BACK_KEYS + 16;  // distance of rows of a tile: not a power of two, or 14 rows fall into one set of L1
constexpr i64 BACK = 8 * MR;

INLINE void clear(float* p, i64 n) {
    for (i64 i = 0; i < n; i += W) store(p + i, vf{});
}

// rows[i][j] for `count` rows against keys first .. first + keys: A times a packed head.
INLINE void times_packed(const float* a, i64 apart, i64 count, i64 depth, const float* packed, i64 first, i64 keys, float* to) {
    const Depth d{1, depth, NO_OFFSET};
    const Panels panels(count);
    for (i64 p = 0; p < panels.count; p++) {
        for (i64 s = 0; s < keys; s += NR) {
            const Tile tile{to + panels.start(p) * TILE + s, TILE, NR, nullptr, false};
            const float* const b = packed + (first + s) * depth;
            MICRO<float>.of[1][panels.rows(p) - 1][NV - 1](d, a + panels.start(p) * apart, apart, b, NR, tile);
        }
    }
}

// c (count x width) += A B, or A^T B where A is stored [depth][count].
INLINE void add_product(bool by_rows, const float* a, i64 count, i64 depth, const float* b, i64 width, float* c) {
    const Depth d{1, depth, NO_OFFSET};
    const Panels panels(count);
    for (i64 p = 0; p < panels.count; p++) {
        const i64 at = panels.start(p);
        for (i64 j = 0; j < width; j += NR) {
            const i64 columns = at_most(NR, width - j);
            const Tile tile{c + at * width + j, width, columns, nullptr, true};
            const auto kernel = MICRO<float>.of[by_rows][panels.rows(p) - 1][columns > W];
            kernel(d, a + (by_rows ? at * TILE : at), TILE, b + j, width, tile);
        }
    }
}

void pack_head(const Heads& x, i64 b, i64 h, i64 S, i64 D, float* packed) {
    for (i64 s = 0; s < S; s += NR) {
        const float* rows[NR];
        const int count = (int)at_most(NR, S - s);
        for (int i = 0; i < count; i++) rows[i] = row_of<float>(x, b, s + i, h);
        pack_rows(rows, count, D, packed + s * D);
    }
}

void gradient_task(void* context, i64 index) {
    const AttentionGradient& x = *static_cast<const AttentionGradient*>(context);
    const Attention& a = x.forward;
    const i64 kv_heads = a.H / a.G, b = index / kv_heads, hk = index % kv_heads;
    const i64 width = whole(a.D), v_width = whole(a.Dv), padded = divide_up(a.S, NR) * NR, all = a.L * a.G;
    // the head's K, V, dk and dv
    float* const k_packed = scratch(SLOT_B, padded * (a.D + a.Dv) + a.S * (2 * width + v_width));
    float *const v_packed = k_packed + padded * a.D, *const k_rows = v_packed + padded * a.Dv;
    float *const dk = k_rows + a.S * width, *const dv = dk + a.S * width;
    pack_head(a.k, b, hk, a.S, a.D, k_packed);
    pack_head(a.v, b, hk, a.S, a.Dv, v_packed);
    for (i64 s = 0; s < a.S; s++) widen(row_of<float>(a.k, b, s, hk), a.D, 1.0f, k_rows + s * width);
    clear(dk, a.S * (width + v_width));
    // a block of rows: q, g, dq, two tiles, three numbers a row
    float* const q = scratch(SLOT_A, BACK * (2 * width + v_width + 2 * TILE + 3));
    float *const g = q + BACK * width, *const dq = g + BACK * v_width, *const p = dq + BACK * width, *const ds = p + BACK * TILE;
    float *const peaks = ds + BACK * TILE, *const totals = peaks + BACK, *const means = totals + BACK;

    for (i64 first = 0; first < all; first += BACK) {
        const i64 rows = at_most(BACK, all - first);
        const auto query = [&](i64 i) INLINE_LAMBDA { return (first + i) / a.G; };
        const auto head = [&](i64 i) INLINE_LAMBDA { return hk * a.G + (first + i) % a.G; };
        for (i64 i = 0; i < rows; i++) {
            widen(row_of<float>(a.q, b, query(i), head(i)), a.D, a.scale, q + i * width);
            widen(row_of<float>(x.g, b, query(i), head(i)), a.Dv, 1.0f, g + i * v_width);
            means[i] = 0.0f, peaks[i] = NOTHING, totals[i] = 0.0f;
        }
        clear(dq, rows * width);
        const i64 seen = keys_seen(a, query(rows - 1));
        const auto tiles = [&](i64 key, i64 keys, bool again) {  // p: weights under the row's peak so far;  ds: A
            times_packed(q, width, rows, a.D, k_packed, key, keys, p);
            times_packed(g, v_width, rows, a.Dv, v_packed, key, keys, ds);
            for (i64 i = 0; i < rows; i++) {
                const i64 visible = at_most(keys, at_least(0, keys_seen(a, query(i)) - key));
                const float* const bias = bias_row(a, b, query(i), head(i), key);
                const float total = totals[i];
                const float factor = weigh(p + i * TILE, visible, keys, bias, a.bias_stride[3], peaks[i], totals[i]);
                if (again) {  // the peak was final, and the total too
                    totals[i] = total;
                    continue;
                }
                vf sum = {};
                for (i64 j = i * TILE; j < i * TILE + keys; j += W) sum += load(p + j) * load(ds + j);
                means[i] = means[i] * factor + sum_lanes(sum);
            }
        };
        for (i64 key = 0; key < seen; key += BACK_KEYS) tiles(key, at_most(BACK_KEYS, seen - key), false);
        for (i64 key = 0; key < seen; key += BACK_KEYS) {
            const i64 keys = at_most(BACK_KEYS, seen - key);
            if (seen > BACK_KEYS) tiles(key, keys, true);
            for (i64 i = 0; i < rows; i++) {
                const float part = share(totals[i]), mean = means[i] * part;
                for (i64 j = i * TILE; j < i * TILE + keys; j += W) {
                    const vf weight = load(p + j) * part;
                    store(p + j, weight);
                    store(ds + j, weight * (load(ds + j) - mean));
                }
            }
            add_product(true, ds, rows, keys, k_rows + key * width, width, dq);
            add_product(false, p, keys, rows, g, v_width, dv + key * v_width);
            add_product(false, ds, keys, rows, q, width, dk + key * width);
        }
        for (i64 i = 0; i < rows; i++)
            narrow(dq + i * width, a.D, a.scale, x.dq + ((b * a.L + query(i)) * a.H + head(i)) * a.D);
    }
    for (i64 s = 0; s < a.S; s++) {
        narrow(dk + s * width, a.D, 1.0f, x.dk + ((b * a.S + s) * kv_heads + hk) * a.D);
        narrow(dv + s * v_width, a.Dv, 1.0f, x.dv + ((b * a.S + s) * kv_heads + hk) * a.Dv);
    }
}

void gradient(const AttentionGradient& x) {
    AttentionGradient copy = x;
    parallel(x.forward.B * (x.forward.H / x.forward.G), gradient_task, &copy);
}
