// Normalisation of rows, by statistics of the row (layer, rms) or of the columns (batch), in float32.
// layout     a row stays in L1 over its passes: mean, squared deviations (two passes, since one cancels), result
// roof       memory: 8 bytes a value forward, 12 backward; gradients of weight and bias are summed row by row into one line of
//            columns per block of rows, and blocks, which depend on the shape only, are added up in their order

template <class S>
INLINE float row_mean(const typename S::T* x, i64 n) {
    vf s[4] = {};
    each_vector(0, n, [&](i64 j, i64 k, int u) INLINE_LAMBDA { s[u] += S::load_first(x + j, k); });
    return total(s) / (float)n;
}

// Mean of (x - mean)^2.
template <class S>
INLINE float row_variance(const typename S::T* x, i64 n, float mean) {
    vf s[4] = {};
    each_vector(0, n, [&](i64 j, i64 k, int u) INLINE_LAMBDA {
        __builtin_prefetch(x + n + j);  // the next row: memory works while this one is calculated with
        const vf d = only_first(S::load_first(x + j, k) - mean, k, 0.0f);
        s[u] += d * d;
    });
    return total(s) / (float)n;
}

INLINE float inverse_root(float variance, double eps) { return 1.0f / __builtin_sqrtf(variance + (float)eps); }
INLINE vf weights(const float* w, i64 j, i64 n, float absent) { return w ? load_first(w + j, n) : splat(absent); }

void layer_norm(const Rows& r) {
    const float *const w = floats(r, 1), *const b = floats(r, 2);
    by_storage(r.storage, [&](auto s) {
        typedef decltype(s) S;
        each_row(r, [&](i64 row) {
            const auto x = input<S>(r, 0) + row * r.columns;
            const float mean = row_mean<S>(x, r.columns), scale = inverse_root(row_variance<S>(x, r.columns, mean), r.x[0]);
            fill(output<S>(r, 0).from(row * r.columns), 0, r.columns, [&](i64 j, i64 n) INLINE_LAMBDA {
                const vf h = (S::load_first(x + j, n) - mean) * scale;
                return h * weights(w, j, n, 1.0f) + weights(b, j, n, 0.0f);
            });
        });
    });
}

// As transformers' LlamaRMSNorm, the normalised value is rounded as it is stored, then multiplied by the weight.
void rms_norm(const Rows& r) {
    const float* const w = floats(r, 1);
    by_storage(r.storage, [&](auto s) {
        typedef decltype(s) S;
        each_row(r, [&](i64 row) {
            const auto x = input<S>(r, 0) + row * r.columns;
            const float scale = inverse_root(row_variance<S>(x, r.columns, 0.0f), r.x[0]);
            fill(output<S>(r, 0).from(row * r.columns), 0, r.columns,
                 [&](i64 j, i64 n) INLINE_LAMBDA { return S::rounded(S::load_first(x + j, n) * scale) * load_first(w + j, n); });
        });
    });
}

// f(row, line, other) for every row; the two lines of `columns` sums of each block are then added up into `first` and `second`.
template <class F>
void with_column_sums(const Rows& r, float* first, float* second, const F& f) {
    const i64 blocks = at_most(64, divide_up(r.rows * r.columns, GRAIN));
    float* const lines = scratch(SLOT_A, blocks * 2 * r.columns);
    in_parallel(blocks, [&](i64 block) {
        float* const line = lines + block * 2 * r.columns;
        __builtin_memset(line, 0, (size_t)(2 * r.columns) * sizeof(float));
        for (i64 row = r.rows * block / blocks; row < r.rows * (block + 1) / blocks; row++) f(row, line, line + r.columns);
        if (large(r)) stores_arrived();
    });
    for (int k = 0; k < 2; k++) {
        float* const sums = k ? second : first;
        if (!sums) continue;
        each_vector(0, r.columns, [&](i64 j, i64 n, int) INLINE_LAMBDA {
            vf s = {};
            for (i64 block = 0; block < blocks; block++) s += load_first(lines + (block * 2 + k) * r.columns + j, n);
            store_first(sums + j, s, n);
        });
    }
}

// With h the normalised row and v = g weight:  layer  (v - mean(v) - h mean(v h)) scale,  rms  (v - h mean(v h)) scale.
template <bool CENTRED>
void norm_grad(const Rows& r) {
    const float* const w = floats(r, 1);
    with_column_sums(r, floats_out(r, 1), CENTRED ? floats_out(r, 2) : nullptr, [&](i64 row, float* d_weight, float* d_bias) {
        const float *const x = floats(r, 0) + row * r.columns, *const g = floats(r, 2) + row * r.columns;
        const float mean = CENTRED ? row_mean<F32>(x, r.columns) : 0.0f;
        const float scale = inverse_root(row_variance<F32>(x, r.columns, mean), r.x[0]);
        vf plain[4] = {}, turned[4] = {};
        each_vector(0, r.columns, [&](i64 j, i64 n, int u) INLINE_LAMBDA {
            const vf slope = load_first(ahead(g + j), n), h = (load_first(x + j, n) - mean) * scale, v = slope * weights(w, j, n, 1.0f);
            plain[u] += v;
            turned[u] += v * h;
            store_first(d_weight + j, load_first(d_weight + j, n) + slope * h, n);
            if (CENTRED) store_first(d_bias + j, load_first(d_bias + j, n) + slope, n);
        });
        const float a = CENTRED ? total(plain) / (float)r.columns : 0.0f, b = total(turned) / (float)r.columns;
        fill(output<F32>(r, 0).from(row * r.columns), 0, r.columns, [&](i64 j, i64 n) INLINE_LAMBDA {
            const vf h = (load_first(x + j, n) - mean) * scale, v = load_first(g + j, n) * weights(w, j, n, 1.0f);
            return (v - a - h * b) * scale;
        });
    });
}
void layer_norm_grad(const Rows& r) { norm_grad<true>(r); }
void rms_norm_grad(const Rows& r) { norm_grad<false>(r); }

void batch_norm(const Rows& r) {
    const float *const mean = floats(r, 1), *const variance = floats(r, 2), *const w = floats(r, 3), *const b = floats(r, 4);
    float* const scale = scratch(SLOT_A, r.columns + W);
    for (i64 j = 0; j < r.columns; j++) scale[j] = inverse_root(variance[j], r.x[0]) * (w ? w[j] : 1.0f);
    by_storage(r.storage, [&](auto s) {
        typedef decltype(s) S;
        each_row(r, [&](i64 row) {
            const auto x = input<S>(r, 0) + row * r.columns;
            fill(output<S>(r, 0).from(row * r.columns), 0, r.columns, [&](i64 j, i64 n) INLINE_LAMBDA {
                const vf h = (S::load_first(ahead(x + j), n) - load_first(mean + j, n)) * load_first(scale + j, n);
                return h + weights(b, j, n, 0.0f);
            });
        });
    });
}
