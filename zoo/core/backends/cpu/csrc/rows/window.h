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

template <bool MAXIMUM>
void window_rows(const Windows& w) {
    const i64 C = w.channels, line = w.size[1] * C;
    in_blocks(w.batch * w.out[0], GRAIN / at_least(w.out[1] * C * w.stride[0], 1), [&](i64 row, i64 end) {
        for (; row < end; row++) {
            const Span h(w, 0, row % w.out[0]);
            const float* const picture = w.x + row / w.out[0] * w.size[0] * line;
            for (i64 q = 0; q < w.out[1]; q++) {
                const Span v(w, 1, q);
                float* const y = w.y + (row * w.out[1] + q) * C;
                each_vector(0, C, [&](i64 c, i64 n, int) INLINE_LAMBDA {
                    vf s = MAXIMUM ? splat(-__builtin_inff()) : vf{};
                    for (i64 i = h.first; i < h.last; i++)
                        for (i64 j = v.first; j < v.last; j++) {
                            const vf x = load_first(picture + i * line + j * C + c, n);
                            s = MAXIMUM ? larger(x, s) : s + x;
                        }
                    store_first(y + c, s, n);
                });
            }
        }
    });
}

// Windows that do not overlap write each place once; others add, one picture to a task, so that no two tasks meet.
void window_max_grad(const Windows& w) {
    const i64 C = w.channels, line = w.size[1] * C;
    const bool apart = w.stride[0] >= w.window[0] && w.stride[1] >= w.window[1];
    in_blocks(w.batch, GRAIN / at_least(w.size[0] * line, 1), [&](i64 picture, i64 end) {
        for (; picture < end; picture++) {
            const float* const x = w.x + picture * w.size[0] * line;
            float* const dx = w.dx + picture * w.size[0] * line;
            __builtin_memset(dx, 0, (size_t)(w.size[0] * line) * sizeof(float));
            for (i64 p = 0; p < w.out[0]; p++)
                for (i64 q = 0; q < w.out[1]; q++) {
                    const Span h(w, 0, p), v(w, 1, q);
                    const i64 at = ((picture * w.out[0] + p) * w.out[1] + q) * C;
                    each_vector(0, C, [&](i64 c, i64 n, int) INLINE_LAMBDA {
                        const vf y = load_first(w.y + at + c, n);
                        vf g = load_first(w.g + at + c, n);
                        vi open = ~vi{};
                        for (i64 i = h.first; i < h.last; i++)
                            for (i64 j = v.first; j < v.last; j++) {
                                const i64 place = i * line + j * C + c;
                                const vi hit = (load_first(x + place, n) == y) & open;
                                const vf part = select(hit, g, vf{});
                                store_first(dx + place, apart ? part : load_first(dx + place, n) + part, n);
                                open &= ~hit;
                            }
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
