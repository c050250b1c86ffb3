// y[i] = x[i] for views of the same shape, in runs of bytes that are contiguous in both: joining, and repeating pixels.
// roof       memory; one core alone reaches half of it, and numpy's copies use one
// y's places must be different from each other.

void move(const Move& m) {
    i64 runs = 1;
    for (int a = 0; a < m.axes; a++) runs *= m.shape[a];
    in_blocks(runs, 4 * GRAIN / at_least(m.run, 1), [&](i64 i, i64 end) {
        for (; i < end; i++) {
            i64 rest = i, from = 0, to = 0;
            for (int a = m.axes - 1; a >= 0; a--) {
                const i64 at = rest % m.shape[a];
                rest /= m.shape[a], from += at * m.from[a], to += at * m.to[a];
            }
            __builtin_memcpy(m.y + to, m.x + from, (size_t)m.run);
        }
    });
}

void place(const Place& p) {
    for (i64 b = 0; b < p.texts; b++) {
        for (i64 l = 0; l < p.rows; l++) {
            const i64 row = p.positions[b] + l;
            if (row < 0 || row >= p.room) continue;
            __builtin_memcpy(p.x + (b * p.room + row) * p.run, p.update + (b * p.rows + l) * p.run, (size_t)p.run);
        }
    }
}
