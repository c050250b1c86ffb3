// What both ways of attention share: reading heads, weights e^(score - peak) of one row of scores, and how parts of a softmax
// are joined. A part of a row is its peak m, its total t = sum e^(s - m) and its sum o = sum e^(s - m) v; two parts become one by
//     m = max(m1, m2),  t = t1 e^(m1 - m) + t2 e^(m2 - m),  o likewise         (Milakov & Gimelshein 2018; Dao et al. 2022)
// A row that saw no key yet has m = -inf, t = 0 and o = 0; one that never sees any gives zeros.

constexpr float NOTHING = -__builtin_inff();

// Lane i of the result: the sum of all lanes of r[i].
INLINE vf total_each(vf (&r)[W]) {
    UNROLL for (int n = W / 2; n > 0; n /= 2)
        UNROLL for (int i = 0; i < n; i++) r[i] = zip_low(r[i], r[i + n]) + zip_high(r[i], r[i + n]);
    return r[0];
}

constexpr float LOG2E = 1.44269504088896341f;
constexpr float MAGIC = 12582912.0f;  // added to a number, leaves it rounded to an integer in the lowest bits

// 2^(n + r), where shifted = n + MAGIC and |r| <= 1/2
INLINE vf power_of(vf shifted, vf r) {
    vf p = splat(0.00132764725f);  // minimax polynomial of 2^r: relative error 7.5e-8
    const float terms[] = {0.00967554096f, 0.0555071309f, 0.240221202f, 0.693146944f, 1.0f};
    UNROLL for (float term : terms) p = p * r + term;
    return p * (vf)(((vu)shifted << 23) + 0x3F800000);
}
// 2^t and e^x for t, x <= 0, with a relative error of 2e-7; exactly 0 where subnormal numbers begin: what is masked weighs
// nothing, and no product with a weight is slowed down by them. NaN stays NaN.
INLINE vf power_of_two(vf t) {
    t = maximum_of(splat(-127.0f), t);  // where n = -127, the power in `power_of` has no bits: 0
    const vf shifted = t + MAGIC;
    return power_of(shifted, t - (shifted - MAGIC));
}
INLINE vf weight_of(vf x) {
    const vf shifted = x * LOG2E + MAGIC;
    return x < -87.3f ? vf{} : power_of(shifted, x * LOG2E - (shifted - MAGIC));
}
INLINE float weight_of(float x) { return weight_of(splat(x))[0]; }

// One part of one row: the first `visible` scores become weights, those up to `all`, rounded up to whole vectors, 0.
// Updates peak and total; returns what earlier sums must be multiplied by.
INLINE float weigh(float* s, i64 visible, i64 all, const float* bias, i64 bias_s, float& peak, float& total) {
    if (bias && bias_s == 1) {
        for (i64 j = 0; j < visible; j += W) store(s + j, load(s + j) + load_first(bias + j, visible - j));
    } else if (bias) {
        for (i64 j = 0; j < visible; j++) s[j] += bias[j * bias_s];
    }
    const i64 end = divide_up(all, W) * W;
    for (i64 j = visible; j < end; j++) s[j] = NOTHING;
    vf top = splat(peak);
    for (i64 j = 0; j < end; j += W) top = maximum_of(load(s + j), top);
    const float before = peak;
    peak = max_lanes(top);
    const vf shift = splat(peak == NOTHING ? 0.0f : peak);
    vf sum = {};
    for (i64 j = 0; j < end; j += W) {
        const vf w = weight_of(load(s + j) - shift);
        store(s + j, w);
        sum += w;
    }
    const float factor = before == peak ? 1.0f : weight_of(before - shift[0]);
    total = total * factor + sum_lanes(sum);
    return factor;
}

// 1 / total; a row that saw no key has a total of 0, and its sum is 0 already.
INLINE float share(float total) { return total == 0.0f ? 1.0f : 1.0f / total; }

INLINE void scale_row(float* row, i64 n, float factor) {  // n a multiple of W
    for (i64 j = 0; j < n; j += W) store(row + j, load(row + j) * factor);
}

// ---- heads in memory

template <class T>
INLINE const T* row_of(const Heads& x, i64 b, i64 position, i64 head) {
    return static_cast<const T*>(x.data) + b * x.batch + position * x.position + head * x.head;
}

template <class T>
INLINE void widen(const T* from, i64 n, float factor, float* to) {  // writes up to a multiple of W
    for (i64 j = 0; j < n; j += W) store(to + j, load_first(from + j, n - j) * factor);
}
template <class T>
INLINE void narrow(const float* from, i64 n, float factor, T* to) {
    for (i64 j = 0; j < n; j += W) store_first(to + j, load(from + j) * factor, n - j);
}

// A query's numbers times the scale and `unit`; an output row: the sum over its weights divided by their total.
void read_query(const Attention& a, i64 b, i64 l, i64 head, float unit, float* to) {
    switch (a.q.storage) {
        case BF16: return widen(row_of<bf16>(a.q, b, l, head), a.D, a.scale * unit, to);
        case F16: return widen(row_of<f16>(a.q, b, l, head), a.D, a.scale * unit, to);
        default: return widen(row_of<float>(a.q, b, l, head), a.D, a.scale * unit, to);
    }
}
void write_result(const Attention& a, i64 b, i64 l, i64 head, const float* sum, float total) {
    const i64 at = ((b * a.L + l) * a.H + head) * a.Dv;
    switch (a.q.storage) {
        case BF16: return narrow(sum, a.Dv, share(total), static_cast<bf16*>(a.y) + at);
        case F16: return narrow(sum, a.Dv, share(total), static_cast<f16*>(a.y) + at);
        default: return narrow(sum, a.Dv, share(total), static_cast<float*>(a.y) + at);
    }
}

INLINE const float* bias_row(const Attention& a, i64 b, i64 l, i64 head, i64 key) {
    if (!a.bias) return nullptr;
    return a.bias + b * a.bias_stride[0] + head * a.bias_stride[1] + l * a.bias_stride[2] + key * a.bias_stride[3];
}

// Keys that query l may see.
INLINE i64 keys_seen(const Attention& a, i64 l) { return a.causal ? at_most(a.S, at_least(0, l + 1 + a.S - a.L)) : a.S; }

INLINE i64 size_of(int storage) { return storage == F32 ? 4 : 2; }

INLINE i64 whole(i64 n) { return divide_up(n, W) * W; }
