// Pooling: the maximum or the sum under each window, x (N, H, W, C) -> y (N, H', W', C), and the gradient of the maximum.
// layout     channels are neighbours, so a vector holds W channels of one pixel; what lies in the padding is skipped
// roof       memory: x is read once (windows that overlap find it in L1) and y written; the gradient also writes x's size once
// NaN wins a maximum, as in numpy. The gradient goes to the first place, row by row, that equals the maximum.

// The part of an axis that the window at `out` covers.
struct Span {
    i64 first, last;
    Span(const Windows& w, int axis, i64 out) {
        const i64 start = out * w.stride[axis] - w.pad[axis];
        first = at_least(start, 0), last = at_most(start + w.window[axis], w.size[axis]);
    }
};

// One window and a vector of channels: the maximum or the sum of high x wide places. SIDE: 2 where that is 2 x 2, the commonest
// window, whose places the compiler then knows; else 0.
template <bool MAXIMUM, int SIDE>
INLINE vf over(const float* x, i64 line, i64 C, i64 high, i64 wide, i64 n) {
    if (SIDE) high = wide = SIDE;
    vf s = MAXIMUM ? splat(-__builtin_inff()) : vf{};
    for (i64 i = 0; i < high; i++)
        for (i64 j = 0; j < wide; j++) {
            const vf v = load_first(x + i * line + j * C, n);
            s = MAXIMUM ? larger(v, s) : s + v;
        }
    return s;
}

template <bool MAXIMUM>
void window_rows(const Windows& w) {
    const i64 C = w.channels, line = w.size[1] * C;
    in_blocks(w.batch * w.out[0], GRAIN / at_least(w.out[1] * C * w.stride[0], 1), [&](i64 row, i64 end) {
        for (; row < end; row++) {
            const Span h(w, 0, row % w.out[0]);
            const float* const picture = w.x + row / w.out[0] * w.size[0] * line;
            for (i64 q = 0; q < w.out[1]; q++) {
                const Span v(w, 1, q);
                const i64 high = h.last - h.first, wide = v.last - v.first;
                const float* const x = picture + h.first * line + v.first * C;
                float* const y = w.y + (row * w.out[1] + q) * C;
                if (high == 2 && wide == 2)
                    each_vector(0, C, [&](i64 c, i64 n, int) INLINE_LAMBDA { store_first(y + c, over<MAXIMUM, 2>(x + c, line, C, 2, 2, n), n); });
                else
                    each_vector(0, C, [&](i64 c, i64 n, int) INLINE_LAMBDA { store_first(y + c, over<MAXIMUM, 0>(x + c, line, C, high, wide, n), n); });
            }
        }
    });
}

// dx gets, or, where windows overlap, is added, g at the first place that equals y, and 0 elsewhere.
template <int SIDE, bool ADD>
INLINE void to_first(const float* x, float* dx, i64 line, i64 C, i64 high, i64 wide, vf y, vf g, i64 n) {
    if (SIDE) high = wide = SIDE;
    vi open = ~vi{};
    for (i64 i = 0; i < high; i++)
        for (i64 j = 0; j < wide; j++) {
            const i64 place = i * line + j * C;
            const vi hit = (load_first(x + place, n) == y) & open;
            const vf part = select(hit, g, vf{});
            store_first(dx + place, ADD ? load_first(dx + place, n) + part : part, n);
            open &= ~hit;
        }
}

// Windows that do not overlap write each place once; others add, one picture to a task, so that no two tasks meet.
void window_max_grad(const Windows& w) {
    const i64 C = w.channels, line = w.size[1] * C;
    const bool apart = w.stride[0] >= w.window[0] && w.stride[1] >= w.window[1];
    in_blocks(w.batch, GRAIN / at_least(w.size[0] * line, 1), [&](i64 picture, i64 end) {
        for (; picture < end; picture++) {
            float* const all = w.dx + picture * w.size[0] * line;
            __builtin_memset(all, 0, (size_t)(w.size[0] * line) * sizeof(float));
            for (i64 p = 0; p < w.out[0]; p++)
                for (i64 q = 0; q < w.out[1]; q++) {
                    const Span h(w, 0, p), v(w, 1, q);
                    const i64 high = h.last - h.first, wide = v.last - v.first, from = h.first * line + v.first * C;
                    const i64 at = ((picture * w.out[0] + p) * w.out[1] + q) * C;
                    const float* const x = w.x + picture * w.size[0] * line + from;
                    float* const dx = all + from;
                    each_vector(0, C, [&](i64 c, i64 n, int) INLINE_LAMBDA {
                        const vf y = load_first(w.y + at + c, n), g = load_first(w.g + at + c, n);
                        if (apart && high == 2 && wide == 2) to_first<2, false>(x + c, dx + c, line, C, 2, 2, y, g, n);
                        else if (apart) to_first<0, false>(x + c, dx + c, line, C, high, wide, y, g, n);
                        else to_first<0, true>(x + c, dx + c, line, C, high, wide, y, g, n);
                    });
                }
        }
    });
}

void windows(const Windows& w) {
    if (w.g) return window_max_grad(w);
    if (w.maximum) return window_rows<true>(w);
    window_rows<false>(w);
}
