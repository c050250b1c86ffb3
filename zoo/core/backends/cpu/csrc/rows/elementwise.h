// y[i] = f(x[i], ...): one pass, W values at a time.
// roof       memory: 8 bytes a value for y = f(x) in float32, 28 for AdamW (four arrays read, three written). Activations cost
//            14 to 40 instructions a vector and come near it only with every multiplier busy: no branch, no table
// half precision is widened, calculated in float32, rounded once

template <class S, class F>
void map(const Rows& r, const F& f) {
    const auto x = input<S>(r, 0);
    const auto y = output<S>(r, 0);
    each_block(r, [&](i64 begin, i64 end) {
        fill(y, begin, end, [&](i64 i, i64 n) INLINE_LAMBDA { return f(S::load_first(ahead(x + i), n)); });
    });
}
template <class S, class F>
void map2(const Rows& r, const F& f) {
    const auto a = input<S>(r, 0), b = input<S>(r, 1);
    const auto y = output<S>(r, 0);
    each_block(r, [&](i64 begin, i64 end) {
        fill(y, begin, end, [&](i64 i, i64 n) INLINE_LAMBDA { return f(S::load_first(ahead(a + i), n), S::load_first(ahead(b + i), n)); });
    });
}

constexpr int EXP = ACTIVATIONS;  // the functions are the activations, and this

void unary(const Rows& r) {
    by_storage(r.storage, [&](auto s) {
        typedef decltype(s) S;
        switch (r.k[0]) {
            case RELU: return map<S>(r, [](vf x) INLINE_LAMBDA { return activate(x, RELU); });
            case GELU: return map<S>(r, [](vf x) INLINE_LAMBDA { return activate(x, GELU); });
            case GELU_TANH: return map<S>(r, [](vf x) INLINE_LAMBDA { return activate(x, GELU_TANH); });
            case QUICK_GELU: return map<S>(r, [](vf x) INLINE_LAMBDA { return activate(x, QUICK_GELU); });
            case SILU: return map<S>(r, [](vf x) INLINE_LAMBDA { return activate(x, SILU); });
            case SIGMOID: return map<S>(r, [](vf x) INLINE_LAMBDA { return activate(x, SIGMOID); });
            case TANH: return map<S>(r, [](vf x) INLINE_LAMBDA { return activate(x, TANH); });
            case EXP: return map<S>(r, [](vf x) INLINE_LAMBDA { return exponential(x); });
        }
    });
}

// d activation(x) / dx; of relu, sigmoid and tanh in terms of the result.
INLINE vf slope(vf x, int activation) {
    switch (activation) {
        case RELU: return select(x > 0.0f, splat(1.0f), vf{});
        case GELU: return normal_cdf(x) + x * (0.3989422804f * exponential(-0.5f * (x * x)));
        case GELU_TANH: {
            const vf q = x * x, s = sigmoid(x * (1.5957691216f + 0.0713548163f * q));
            return s + x * (s * (1.0f - s)) * (1.5957691216f + 0.2140644489f * q);
        }
        case QUICK_GELU: {
            const vf s = sigmoid(1.702f * x);
            return s + 1.702f * x * (s * (1.0f - s));
        }
        case SILU: {
            const vf s = sigmoid(x);
            return s + x * (s * (1.0f - s));
        }
        case SIGMOID: return x * (1.0f - x);
        default: return 1.0f - x * x;
    }
}

void activation_grad(const Rows& r) {
    by_storage(r.storage, [&](auto s) {
        typedef decltype(s) S;
        switch (r.k[0]) {
            case RELU: return map2<S>(r, [](vf y, vf g) INLINE_LAMBDA { return select(y > 0.0f, g, vf{}); });
            case GELU: return map2<S>(r, [](vf x, vf g) INLINE_LAMBDA { return g * slope(x, GELU); });
            case GELU_TANH: return map2<S>(r, [](vf x, vf g) INLINE_LAMBDA { return g * slope(x, GELU_TANH); });
            case QUICK_GELU: return map2<S>(r, [](vf x, vf g) INLINE_LAMBDA { return g * slope(x, QUICK_GELU); });
            case SILU: return map2<S>(r, [](vf x, vf g) INLINE_LAMBDA { return g * slope(x, SILU); });
            case SIGMOID: return map2<S>(r, [](vf y, vf g) INLINE_LAMBDA { return g * slope(y, SIGMOID); });
            case TANH: return map2<S>(r, [](vf y, vf g) INLINE_LAMBDA { return g * slope(y, TANH); });
        }
    });
}

// silu(gate) is rounded as it is stored, before the product: as the op's body does, and transformers.
void swiglu(const Rows& r) {
    by_storage(r.storage, [&](auto s) {
        typedef decltype(s) S;
        map2<S>(r, [](vf gate, vf up) INLINE_LAMBDA { return S::rounded(gate * sigmoid(gate)) * up; });
    });
}

// Both factors are halves of one row, as a product leaves them.
void geglu(const Rows& r) {
    by_storage(r.storage, [&](auto s) {
        typedef decltype(s) S;
        each_row(r, [&](i64 row) {
            const auto x = input<S>(r, 0) + row * 2 * r.columns;
            fill(output<S>(r, 0).from(row * r.columns), 0, r.columns, [&](i64 j, i64 n) INLINE_LAMBDA {
                const vf gate = activate(S::load_first(ahead(x + r.columns + j), n), GELU);
                return S::load_first(ahead(x + j), n) * S::rounded(gate);
            });
        });
    });
}

void swiglu_grad(const Rows& r) {
    by_storage(r.storage, [&](auto s) {
        typedef decltype(s) S;
        const auto gate = input<S>(r, 0), up = input<S>(r, 1), g = input<S>(r, 2);
        const auto d_gate = output<S>(r, 0), d_up = output<S>(r, 1);
        each_block(r, [&](i64 begin, i64 end) {
            each_vector(begin, end, [&](i64 i, i64 n, int) INLINE_LAMBDA {
                const vf x = S::load_first(ahead(gate + i), n), slopes = S::load_first(ahead(g + i), n), y = sigmoid(x);
                d_gate.put(i, slopes * S::load_first(ahead(up + i), n) * (y + x * (y * (1.0f - y))), n);
                d_up.put(i, slopes * (x * y), n);
            });
        });
    });
}

// ---- two operands: the second as large as the first, one row of it, or one number

template <class S, class F>
void binary_by(const Rows& r, const F& f) {
    const auto a = input<S>(r, 0), b = input<S>(r, 1);
    const auto y = output<S>(r, 0);
    const i64 all = r.rows * r.columns;
    if (r.k[0] == 1) {
        const vf one = splat(b ? S::load_first(b, 1)[0] : (float)r.x[0]);
        return map<S>(r, [one, &f](vf x) INLINE_LAMBDA { return f(x, one); });
    }
    if (r.k[0] == all) return map2<S>(r, f);
    each_row(r, [&](i64 row) {
        const auto line = a + row * r.columns;
        fill(y.from(row * r.columns), 0, r.columns,
             [&](i64 i, i64 n) INLINE_LAMBDA { return f(S::load_first(ahead(line + i), n), S::load_first(b + i, n)); });
    });
}

INLINE vf larger(vf a, vf b) { return select((a > b) | (a != a), a, b); }  // NaN if either is
INLINE vf smaller(vf a, vf b) { return select((a < b) | (a != a), a, b); }

enum Binary : int { ADD, SUB, MUL, DIV, MAXIMUM, MINIMUM };

void binary(const Rows& r) {
    if (r.k[0] != 1 && r.k[0] != r.columns && r.k[0] != r.rows * r.columns) return;
    const bool turned = r.k[2];
    by_storage(r.storage, [&](auto s) {
        typedef decltype(s) S;
        switch (r.k[1]) {
            case ADD: return binary_by<S>(r, [](vf a, vf b) INLINE_LAMBDA { return a + b; });
            case SUB:
                return turned ? binary_by<S>(r, [](vf a, vf b) INLINE_LAMBDA { return b - a; })
                              : binary_by<S>(r, [](vf a, vf b) INLINE_LAMBDA { return a - b; });
            case MUL: return binary_by<S>(r, [](vf a, vf b) INLINE_LAMBDA { return a * b; });
            case DIV:
                return turned ? binary_by<S>(r, [](vf a, vf b) INLINE_LAMBDA { return b / a; })
                              : binary_by<S>(r, [](vf a, vf b) INLINE_LAMBDA { return a / b; });
            case MAXIMUM: return binary_by<S>(r, [](vf a, vf b) INLINE_LAMBDA { return larger(a, b); });
            case MINIMUM: return binary_by<S>(r, [](vf a, vf b) INLINE_LAMBDA { return smaller(a, b); });
        }
    });
}

void where(const Rows& r) {
    const uint8_t* const hit = static_cast<const uint8_t*>(r.in[0]);
    const float *const a = floats(r, 1), *const b = floats(r, 2), one = (float)r.x[0], other = (float)r.x[1];
    float* const y = floats_out(r, 0);
    in_blocks(r.rows * r.columns, GRAIN, [&](i64 begin, i64 end) {
        if (a && b)
            for (i64 i = begin; i < end; i++) y[i] = hit[i] ? a[i] : b[i];
        else if (a)
            for (i64 i = begin; i < end; i++) y[i] = hit[i] ? a[i] : other;
        else if (b)
            for (i64 i = begin; i < end; i++) y[i] = hit[i] ? one : b[i];
        else
            for (i64 i = begin; i < end; i++) y[i] = hit[i] ? one : other;
    });
}

// ---- storage

template <class From, class To>
void recast(const Rows& r) {
    const auto x = input<From>(r, 0);
    const auto y = output<To>(r, 0);
    each_block(r, [&](i64 begin, i64 end) {
        fill(y, begin, end, [&](i64 i, i64 n) INLINE_LAMBDA { return From::load_first(ahead(x + i), n); });
    });
}
void widen(const Rows& r) {
    by_storage(r.storage, [&](auto s) { recast<decltype(s), F32>(r); });
}
void narrow(const Rows& r) {
    by_storage(r.storage, [&](auto s) { recast<F32, decltype(s)>(r); });
}

// ---- AdamW (Loshchilov & Hutter 2019): p, m, v from p, g, m, v.
// x: beta1, 1 - beta1, beta2, 1 - beta2, 1 / (1 - beta2^t), eps, 1 - lr * decay, lr / (1 - beta1^t)

void adamw(const Rows& r) {
    const float *const p = floats(r, 0), *const g = floats(r, 1), *const m = floats(r, 2), *const v = floats(r, 3);
    float *const p1 = floats_out(r, 0), *const m1 = floats_out(r, 1), *const v1 = floats_out(r, 2);
    float x[8];
    for (int i = 0; i < 8; i++) x[i] = (float)r.x[i];
    in_blocks(r.rows * r.columns, GRAIN / 4, [&](i64 begin, i64 end) {
        each_vector(begin, end, [&](i64 i, i64 n, int) INLINE_LAMBDA {
            const vf slope = load_first(ahead(g + i), n), m0 = load_first(ahead(m + i), n), v0 = load_first(ahead(v + i), n);
            const vf first = m0 * x[0] + slope * x[1], second = v0 * x[2] + slope * slope * x[3];
            const vf step = first / (square_root(second * x[4]) + x[5]);
            store_first(p1 + i, load_first(ahead(p + i), n) * x[6] - step * x[7], n);
            store_first(m1 + i, first, n);
            store_first(v1 + i, second, n);
        });
    });
}
