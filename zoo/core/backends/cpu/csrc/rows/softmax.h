// Along each row: softmax, its logarithm, log-sum-exp and cross-entropy, with the maximum taken out so that nothing overflows.
// layout     a row (up to some 10,000 values) stays in L1 or L2 over its three passes: maximum; powers and their sum; scaling
// roof       memory: a row is read and written once. 17 instructions for a vector of powers keep up with it
// A NaN makes the whole row NaN, through the sum; so does +inf, or a row of -inf, as in numpy.

template <class S>
INLINE float row_maximum(const typename S::T* x, i64 n) {
    const float least = -__builtin_inff();
    vf m[4] = {splat(least), splat(least), splat(least), splat(least)};
    each_vector(0, n, [&](i64 j, i64 k, int u) INLINE_LAMBDA {
        const vf v = only_first(S::load_first(x + j, k), k, least);
        m[u] = maximum_of(v, m[u]);
    });
    return max_lanes(maximum_of(maximum_of(m[0], m[1]), maximum_of(m[2], m[3])));
}

// Sum of e^(x - peak); each power is also given to `keep`.
template <class S, class F>
INLINE float row_powers(const typename S::T* x, i64 n, float peak, const F& keep) {
    vf s[4] = {};
    each_vector(0, n, [&](i64 j, i64 k, int u) INLINE_LAMBDA {
        __builtin_prefetch(x + n + j);  // the next row, while this one keeps the arithmetic busy
        const vf e = only_first(power(S::load_first(x + j, k) - peak), k, 0.0f);
        s[u] += e;
        keep(j, k, e);
    });
    return total(s);
}

void softmax(const Rows& r) {
    by_storage(r.storage, [&](auto s) {
        typedef decltype(s) S;
        each_row(r, [&](i64 row) {
            const auto x = input<S>(r, 0) + row * r.columns;
            float* const e = scratch(SLOT_X, r.columns);
            const auto keep = [&](i64 j, i64 n, vf v) INLINE_LAMBDA { store_first(e + j, v, n); };
            const float share = 1.0f / row_powers<S>(x, r.columns, row_maximum<S>(x, r.columns), keep);
            fill(output<S>(r, 0).from(row * r.columns), 0, r.columns,
                 [&](i64 j, i64 n) INLINE_LAMBDA { return load_first(e + j, n) * share; });
        });
    });
}

// log(sum(e^x)); -inf for a row of -inf, inf where the largest is.
template <class S>
INLINE float row_logsumexp(const typename S::T* x, i64 n) {
    float peak = row_maximum<S>(x, n);
    if (__builtin_isinf(peak)) peak = 0.0f;
    return __builtin_logf(row_powers<S>(x, n, peak, [](i64, i64, vf) INLINE_LAMBDA {})) + peak;
}

void log_softmax(const Rows& r) {
    by_storage(r.storage, [&](auto s) {
        typedef decltype(s) S;
        each_row(r, [&](i64 row) {
            const auto x = input<S>(r, 0) + row * r.columns;
            const float all = row_logsumexp<S>(x, r.columns);
            fill(output<S>(r, 0).from(row * r.columns), 0, r.columns,
                 [&](i64 j, i64 n) INLINE_LAMBDA { return S::load_first(x + j, n) - all; });
        });
    });
}

void logsumexp(const Rows& r) {
    each_row(r, [&](i64 row) { floats_out(r, 0)[row] = row_logsumexp<F32>(floats(r, 0) + row * r.columns, r.columns); });
}

// d softmax: y (g - sum(g y)).  d log_softmax: g - e^y sum(g).
template <bool LOG>
void normalised_grad(const Rows& r) {
    by_storage(r.storage, [&](auto s) {
        typedef decltype(s) S;
        each_row(r, [&](i64 row) {
            const auto y = input<S>(r, 0) + row * r.columns, g = input<S>(r, 1) + row * r.columns;
            vf parts[4] = {};
            each_vector(0, r.columns, [&](i64 j, i64 n, int u) INLINE_LAMBDA {
                const vf a = S::load_first(ahead(y + j), n), b = S::load_first(ahead(g + j), n);
                parts[u] += LOG ? b : a * b;
            });
            const float sum = total(parts);
            fill(output<S>(r, 0).from(row * r.columns), 0, r.columns, [&](i64 j, i64 n) INLINE_LAMBDA {
                const vf a = S::load_first(y + j, n), b = S::load_first(g + j, n);
                return LOG ? b - exponential(a) * sum : a * (b - sum);
            });
        });
    });
}
void softmax_grad(const Rows& r) { normalised_grad<false>(r); }
void log_softmax_grad(const Rows& r) { normalised_grad<true>(r); }

// Whether the row's target is one of its columns.
INLINE bool within(const Rows& r, i64 row) {
    const int32_t target = static_cast<const int32_t*>(r.in[1])[row];
    if (target >= 0 && target < r.columns) return true;
    __atomic_store_n(r.strange, 1, __ATOMIC_RELAXED);
    return false;
}

// -log softmax(x)[target]
void cross_entropy(const Rows& r) {
    const int32_t* const target = static_cast<const int32_t*>(r.in[1]);
    each_row(r, [&](i64 row) {
        if (!within(r, row)) return;
        const float* const x = floats(r, 0) + row * r.columns;
        floats_out(r, 0)[row] = row_logsumexp<F32>(x, r.columns) - x[target[row]];
    });
}

// (softmax(x) - 1 at the target) g
void cross_entropy_grad(const Rows& r) {
    const int32_t* const target = static_cast<const int32_t*>(r.in[1]);
    each_row(r, [&](i64 row) {
        if (!within(r, row)) return;
        const float* const x = floats(r, 0) + row * r.columns;
        float* const e = scratch(SLOT_X, r.columns);
        const auto keep = [&](i64 j, i64 n, vf v) INLINE_LAMBDA { store_first(e + j, v, n); };
        const float sum = row_powers<F32>(x, r.columns, row_maximum<F32>(x, r.columns), keep);
        const float share = floats(r, 2)[r.k[0] > 1 ? row : 0] / sum;
        e[target[row]] -= sum;
        fill(output<F32>(r, 0).from(row * r.columns), 0, r.columns,
             [&](i64 j, i64 n) INLINE_LAMBDA { return load_first(e + j, n) * share; });
    });
}
