// A program of elementwise steps and reductions along rows, run tile by tile: y = f(x0, x1, ...) in one pass over memory.
//
// layout    the space is rows x columns. A tile is a part of one row, or several whole short rows: at most 512 numbers (one row
//           of up to 4096 where a reduction would otherwise read it twice). A register is one tile in float32, so 16 of them
//           stay in L1; a row register holds one number for each row of the tile.
// step      one loop over a tile, in vectors: a call costs about 5 ns, 512 numbers of an addition about 12 ns, of e^x 80 ns.
//           Dense float32 inputs and outputs are worked on where they are; others are widened and narrowed on the way.
// roof      memory: a chain of n operations reads its inputs and writes its outputs once, where n calls read and write n times.
// threads   tasks of at least 32768 numbers. Each row is reduced by one thread in one order: bits do not depend on threads.

#if defined(ZOO_AVX512)
constexpr vf LANES = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
#elif defined(ZOO_AVX2)
constexpr vf LANES = {0, 1, 2, 3, 4, 5, 6, 7};
#else
constexpr vf LANES = {0, 1, 2, 3};
#endif

struct Value {
    const float* p;
    bool one;  // a single number stands for all lanes
};

// y[i] = f(a[i], b[i], c[i])
template <class F>
INLINE void each(float* y, i64 n, Value a, Value b, Value c, F f) {
    const vf sa = splat(*a.p), sb = splat(*b.p), sc = splat(*c.p);
    i64 i = 0;
    for (; i + W <= n; i += W) store(y + i, f(a.one ? sa : load(a.p + i), b.one ? sb : load(b.p + i), c.one ? sc : load(c.p + i)));
    if (i < n)
        store_first(y + i, f(a.one ? sa : load_first(a.p + i, n - i), b.one ? sb : load_first(b.p + i, n - i),
                             c.one ? sc : load_first(c.p + i, n - i)), n - i);
}

INLINE vf truth(vi mask) { return (vf)(mask & (vi)splat(1.0f)); }

__attribute__((noinline)) void calculate(int code, float* y, i64 n, Value a, Value b, Value c) {
#define CASE(name, expression)                                                                                     \
    case TILE_##name:                                                                                              \
        return each(y, n, a, b, c, [](vf x, vf z, vf w) INLINE_LAMBDA { return (void)x, (void)z, (void)w, expression; });
    switch (code) {
        CASE(NEG, -x)
        CASE(ABS, (vf)((vi)x & 0x7fffffff))
        CASE(SIGN, select(x != x, x, truth(x > 0.0f) - truth(x < 0.0f)))
        CASE(EXP, exp_full(x))
        CASE(LOG, logarithm(x))
        CASE(SQRT, square_root(x))
        CASE(RSQRT, 1.0f / square_root(x))
        CASE(TANH, hyperbolic_tangent(x))
        CASE(ERF, error_function(x))
        CASE(SIGMOID, logistic(x))
        CASE(FLOOR, round_down(x))
        CASE(ROUND, round_even(x))
        CASE(ISNAN, truth(x != x))
        CASE(NOT, truth(x == 0.0f))
        CASE(TO_BF16, rounded<bf16>(x))
        CASE(TO_F16, rounded<f16>(x))
        CASE(ADD, x + z)
        CASE(SUB, x - z)
        CASE(MUL, x * z)
        CASE(DIV, x / z)
        CASE(MAXIMUM, select((x > z) | (x != x), x, z))
        CASE(MINIMUM, select((x < z) | (x != x), x, z))
        CASE(EQUAL, truth(x == z))
        CASE(NOT_EQUAL, truth(x != z))
        CASE(LESS, truth(x < z))
        CASE(LESS_EQUAL, truth(x <= z))
        CASE(AND, truth((x != 0.0f) & (z != 0.0f)))
        CASE(OR, truth((x != 0.0f) | (z != 0.0f)))
        CASE(WHERE, select(x != 0.0f, z, w))
    }
#undef CASE
}

// One row, by a tree from the lanes on: a sum of 2^k equal numbers is exact. A maximum of numbers with a NaN among them is NaN.
__attribute__((noinline)) float reduce(int code, Value v, i64 n) {
    const bool sum = code == TILE_SUM, largest = code == TILE_MAX;
    const auto join = [&](vf m, vf x) INLINE_LAMBDA { return sum ? m + x : select((largest ? x > m : x < m) | (x != x), x, m); };
    const vf same = splat(v.p[0]), start = sum ? vf{} : same;
    vf part[4] = {start, start, start, start};
    i64 i = 0;
    for (; i + 4 * W <= n; i += 4 * W) UNROLL for (int k = 0; k < 4; k++) part[k] = join(part[k], v.one ? same : load(v.p + i + k * W));
    for (; i < n; i += W) {
        const vf filled = load_first(v.p + (v.one ? 0 : i), v.one ? 1 : n - i);
        const vi there = LANES < splat((float)(n - i));
        part[0] = join(part[0], select(there, v.one ? same : filled, start));
    }
    float r[W];
    store(r, join(join(part[0], part[1]), join(part[2], part[3])));
    for (int half = W / 2; half; half /= 2)
        for (int k = 0; k < half; k++) {
            const float m = r[k], x = r[k + half];
            r[k] = sum ? m + x : (largest ? x > m : x < m) || x != x ? x : m;
        }
    return r[0];
}

template <class T>
INLINE float single(T x) {
    if constexpr (sizeof(T) == 2) {
        return load_first(&x, 1)[0];
    } else {
        return (float)x;
    }
}

template <class T>
constexpr bool BY_VECTORS = sizeof(T) == 2;
template <>
constexpr bool BY_VECTORS<float> = true;

// n numbers, `stride` apart, in float32
template <class T>
INLINE void widen(float* y, const char* data, i64 at, i64 stride, i64 n) {
    const T* p = reinterpret_cast<const T*>(data) + at;
    if (stride == 0) {
        const vf same = splat(single(*p));
        for (i64 i = 0; i < n; i += W) store_first(y + i, same, n - i);
    } else if (stride != 1) {
        for (i64 i = 0; i < n; i++) y[i] = single(p[i * stride]);
    } else if constexpr (BY_VECTORS<T>) {
        for (i64 i = 0; i < n; i += W) store_first(y + i, load_first(p + i, n - i), n - i);
    } else {
        for (i64 i = 0; i < n; i++) y[i] = (float)p[i];
    }
}

__attribute__((noinline)) void widen(float* y, const TileInput& x, i64 at, i64 stride, i64 n) {
    switch (x.type) {
        case STORED_F32: return widen<float>(y, x.data, at, stride, n);
        case STORED_BF16: return widen<bf16>(y, x.data, at, stride, n);
        case STORED_F16: return widen<f16>(y, x.data, at, stride, n);
        case STORED_I8: return widen<int8_t>(y, x.data, at, stride, n);
        case STORED_I32: return widen<int32_t>(y, x.data, at, stride, n);
        default: return widen<uint8_t>(y, x.data, at, stride, n);
    }
}

template <class T>
INLINE void narrow(T* y, Value v, i64 n) {
    const vf same = splat(*v.p);
    for (i64 i = 0; i < n; i += W) store_first(y + i, v.one ? same : load_first(v.p + i, n - i), n - i);
}

__attribute__((noinline)) void narrow(const TileOutput& y, i64 at, Value v, i64 n) {
    if (y.type == STORED_F32) {
        narrow(reinterpret_cast<float*>(y.data) + at, v, n);
    } else if (y.type == STORED_BF16) {
        narrow(reinterpret_cast<bf16*>(y.data) + at, v, n);
    } else if (y.type == STORED_F16) {
        narrow(reinterpret_cast<f16*>(y.data) + at, v, n);
    } else {
        uint8_t* p = reinterpret_cast<uint8_t*>(y.data) + at;
        for (i64 i = 0; i < n; i++) p[i] = v.p[v.one ? 0 : i] != 0.0f;
    }
}

struct TileRunner {
    const Tiles& t;
    i64 width, height;  // columns and rows of a tile
    i64 column_tiles, row_blocks;

    explicit TileRunner(const Tiles& tiles) : t(tiles) {
        width = t.columns <= TILE_FLOATS || t.whole ? t.columns : TILE_FLOATS;
        height = width == t.columns && width < TILE_FLOATS ? TILE_FLOATS / width : 1;
        column_tiles = (t.columns + width - 1) / width, row_blocks = (t.rows + height - 1) / height;
    }

    i64 offset(const TileInput& x, i64 row) const {
        i64 at = 0;
        for (int k = t.axes - 1; k > 0; row /= t.size[k--]) at += row % t.size[k] * x.stride[k];
        return t.axes ? at + row * x.stride[0] : 0;
    }

    // The part of the space at hand: `rows` rows from `row` on, `columns` columns from `column` on.
    struct Place {
        i64 row, rows, column, columns;
    };
    struct Machine {
        Value value[TILE_OPERANDS];
        float *registers, *row_registers;
        i64 stride;  // floats of a register
        float* own(int operand) const {
            return operand < TILE_REGISTERS ? registers + operand * stride : row_registers + (operand - TILE_REGISTERS) * TILE_FLOATS;
        }
    };

    void load_input(Machine& m, const TileStep& s, const TileInput& x, const Place& at, bool row) const {
        float* own = m.own(s.out);
        const bool wide = x.type != STORED_F32;
        if (row) {
            for (i64 r = 0; r < at.rows; r++) widen(own + r, x, offset(x, at.row + r), 0, 1);
        } else if (x.dense || at.rows == 1) {
            const i64 from = x.dense ? at.row * t.columns + at.column : offset(x, at.row) + at.column * x.column;
            const i64 step = x.dense ? 1 : x.column, n = at.rows * at.columns;
            if (!wide && step <= 1 && step >= 0) {
                m.value[s.out] = {reinterpret_cast<const float*>(x.data) + from, step == 0};
                return;
            }
            widen(own, x, from, step, step == 0 ? 1 : n);
            m.value[s.out] = {own, step == 0};
            return;
        } else {
            for (i64 r = 0; r < at.rows; r++) widen(own + r * at.columns, x, offset(x, at.row + r), x.column, at.columns);
        }
        m.value[s.out] = {own, false};
    }

    void run_segment(Machine& m, const TileSegment& segment, const Place& at) const {
        const i64 n = segment.row ? at.rows : at.rows * at.columns;
        const i64 flat = segment.row ? at.row : at.row * t.columns + at.column;
        for (int i = segment.begin; i < segment.end; i++) {
            const TileStep& s = t.steps[i];
            const Value a = m.value[s.a];
            switch (s.code) {
                case TILE_LOAD: load_input(m, s, t.input[s.a], at, segment.row); break;
                case TILE_STORE: narrow(t.output[s.out], flat, a, n); break;
                case TILE_SPREAD:
                    if (at.rows == 1) {
                        m.value[s.out] = {a.p, true};
                    } else {
                        float* y = m.own(s.out);
                        for (i64 r = 0; r < at.rows; r++) each(y + r * at.columns, at.columns, {a.p + (a.one ? 0 : r), true}, a, a, [](vf x, vf, vf) INLINE_LAMBDA { return x; });
                        m.value[s.out] = {y, false};
                    }
                    break;
                case TILE_SUM:
                case TILE_MAX:
                case TILE_MIN: {
                    float* y = m.own(s.out);
                    for (i64 r = 0; r < at.rows; r++) {
                        const float part = reduce(s.code, {a.p + (a.one ? 0 : r * at.columns), a.one}, at.columns);
                        const float both[2] = {y[r], part};
                        y[r] = at.column == 0 ? part : reduce(s.code, {both, false}, 2);
                    }
                    m.value[s.out] = {y, false};
                    break;
                }
                default: {
                    const bool direct = s.store && t.output[s.store - 1].type == STORED_F32;
                    float* y = direct ? reinterpret_cast<float*>(t.output[s.store - 1].data) + flat : m.own(s.out);
                    calculate(s.code, y, n, a, m.value[s.b], m.value[s.c]);
                    m.value[s.out] = {y, false};
                    if (s.store && !direct) narrow(t.output[s.store - 1], flat, m.value[s.out], n);
                }
            }
        }
    }

    void run_units(i64 begin, i64 end) const {
        Machine m;
        m.stride = (width * height + 15) / 16 * 16;
        m.registers = scratch(SLOT_A, t.registers * m.stride + t.row_registers * TILE_FLOATS);
        m.row_registers = m.registers + t.registers * m.stride;
        for (int k = 0; k < TILE_OPERANDS - TILE_NUMBERS; k++) m.value[k] = {t.number, true};
        for (int k = 0; k < TILE_NUMBERS; k++) m.value[TILE_OPERANDS - TILE_NUMBERS + k] = {t.number + k, true};
        for (i64 unit = begin; unit < end; unit++) {
            const i64 block = t.by_rows ? unit : unit / column_tiles;
            Place at{block * height, 0, 0, 0};
            at.rows = t.rows - at.row < height ? t.rows - at.row : height;
            for (int k = 0; k < t.segment_count; k++) {
                const i64 first = t.by_rows ? 0 : unit % column_tiles;
                const i64 last = t.segments[k].row ? first + 1 : t.by_rows ? column_tiles : first + 1;
                for (i64 tile = first; tile < last; tile++) {
                    at.column = tile * width;
                    at.columns = t.columns - at.column < width ? t.columns - at.column : width;
                    run_segment(m, t.segments[k], at);
                }
            }
        }
    }
};

void run(const Tiles& t) {
    const TileRunner runner(t);
    const i64 units = t.by_rows ? runner.row_blocks : runner.row_blocks * runner.column_tiles;
    const i64 unit_floats = runner.height * (t.by_rows ? t.columns : runner.width);
    constexpr i64 GRAIN = 32768;
    struct Work {
        const TileRunner* runner;
        i64 units, each;
    } work{&runner, units, unit_floats < GRAIN ? GRAIN / unit_floats : 1};
    parallel((units + work.each - 1) / work.each, [](void* context, i64 index) {
        const Work& w = *static_cast<const Work*>(context);
        const i64 begin = index * w.each, end = begin + w.each;
        w.runner->run_units(begin, end < w.units ? end : w.units);
    }, &work);
}
