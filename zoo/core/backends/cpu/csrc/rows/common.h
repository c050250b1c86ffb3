// How the work is cut, for all kernels of this family.

constexpr i64 GRAIN = 1 << 15;  // values of a task: 128 KiB, a few microseconds; less does not pay for waking a thread
// Values from which results go past the caches: 4 MiB. A store that does not first reads the line that it replaces. silu, and layer norm
// of what it made: at 2 MiB 0.6 times as fast with such stores, at 4 and 16 MiB 1.5 times (2 MiB of L2 a core, 32 MiB of L3).
constexpr i64 LARGE = 1 << 20;

INLINE i64 at_most(i64 a, i64 b) { return a < b ? a : b; }
INLINE i64 at_least(i64 a, i64 b) { return a > b ? a : b; }
INLINE i64 divide_up(i64 a, i64 b) { return (a + b - 1) / b; }

template <class F>
void in_parallel(i64 count, const F& f) {
    parallel(count, [](void* context, i64 index) { (*static_cast<const F*>(context))(index); }, const_cast<F*>(&f));
}

// f(begin, end) over 0 .. n - 1 in tasks of about `grain`.
template <class F>
void in_blocks(i64 n, i64 grain, const F& f) {
    grain = at_least(grain, 1);
    in_parallel(divide_up(n, grain), [&](i64 task) { f(task * grain, at_most(n, (task + 1) * grain)); });
}

INLINE bool large(const Rows& r) { return r.rows * r.columns >= LARGE; }

// f(begin, end) for blocks of all values.
template <class F>
void each_block(const Rows& r, const F& f) {
    in_blocks(r.rows * r.columns, GRAIN, [&](i64 begin, i64 end) {
        f(begin, end);
        if (large(r)) stores_arrived();
    });
}

// f(row) for every row.
template <class F>
void each_row(const Rows& r, const F& f) {
    in_blocks(r.rows, GRAIN / at_least(r.columns, 1), [&](i64 row, i64 end) {
        for (; row < end; row++) f(row);
        if (large(r)) stores_arrived();
    });
}

// How values are stored: `T` in memory, float32 in registers. `rounded` is what comes back from memory.
template <class Type>
struct Stored {
    typedef Type T;
    static INLINE vf load_first(const T* p, i64 n) { return zoo::load_first(p, n); }
    static INLINE void store_first(T* p, vf v, i64 n) { zoo::store_first(p, v, n); }
    static INLINE vf rounded(vf v) {
        if constexpr (sizeof(T) == 4) return v;
        T words[W];
        store_first(words, v, W);
        return load_first(words, W);
    }
};
typedef Stored<float> F32;

// f(F32()), or the same for bf16 or f16.
template <class F>
void by_storage(int storage, const F& f) {
    if (storage == 0) return f(F32());
    if (storage == 1) return f(Stored<bf16>());
    f(Stored<f16>());
}

template <class S>
const typename S::T* input(const Rows& r, int i) {
    return static_cast<const typename S::T*>(r.in[i]);
}
INLINE const float* floats(const Rows& r, int i) { return static_cast<const float*>(r.in[i]); }
INLINE float* floats_out(const Rows& r, int i) { return static_cast<float*>(r.out[i]); }

// f(j, n, u) for the vectors of n lanes at begin <= j < end; u = 0 .. 3 in turn, for sums in four chains that hide the latency.
template <class F>
INLINE void each_vector(i64 begin, i64 end, const F& f) {
    i64 j = begin;
    for (; j + 4 * W <= end; j += 4 * W)
        UNROLL for (int u = 0; u < 4; u++) f(j + u * W, (i64)W, u);
    for (; j + W <= end; j += W) f(j, (i64)W, 0);
    if (j < end) f(j, end - j, 0);
}

// A result as large as r: values of it go past the caches if they are many, and float32 that begins at a vector.
template <class S>
struct Output {
    typename S::T* to;
    bool many, past;
    INLINE Output(typename S::T* p, bool large) : to(p), many(large) {
        past = large && sizeof *p == 4 && reinterpret_cast<uintptr_t>(p) % sizeof(vf) == 0;
    }
    INLINE Output from(i64 i) const { return {to + i, many}; }
    INLINE void put(i64 i, vf v, i64 n) const {
        if constexpr (sizeof *to == 4)
            if (past && n >= W) return store_past_caches(to + i, v);
        S::store_first(to + i, v, n);
    }
};
template <class S>
Output<S> output(const Rows& r, int i) {
    return {static_cast<typename S::T*>(r.out[i]), large(r)};
}

// y[i] = f(i, n) for begin <= i < end. Four vectors are calculated before one is stored: a chain such as gelu's is too long for the
// processor to find the next one behind it, so the compiler, told by CMakeLists.txt, gives each its turn.
template <class S, class F>
INLINE void fill(const Output<S>& y, i64 begin, i64 end, const F& f) {
    i64 i = begin;
    for (; i + 4 * W <= end; i += 4 * W) {
        vf v[4];
        UNROLL for (int u = 0; u < 4; u++) v[u] = f(i + u * W, (i64)W);
        UNROLL for (int u = 0; u < 4; u++) y.put(i + u * W, v[u], W);
    }
    for (; i + W <= end; i += W) y.put(i, f(i, (i64)W), W);
    if (i < end) y.put(i, f(i, end - i), end - i);
}

// What lies 4 KiB behind p is fetched: by themselves processors stop at the end of a page, and begin late with the next.
template <class T>
INLINE const T* ahead(const T* p) {
    __builtin_prefetch(reinterpret_cast<const char*>(p) + 4096);
    return p;
}

// v in the first n lanes, `fill` in the others.
INLINE vf only_first(vf v, i64 n, float fill) {
    if (n >= W) return v;
    vi lane;
    for (int i = 0; i < W; i++) lane[i] = i;
    return select(lane < (int)n, v, splat(fill));
}

INLINE float total(const vf (&s)[4]) { return sum_lanes((s[0] + s[1]) + (s[2] + s[3])); }
