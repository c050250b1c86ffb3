// How a product with quantised weights is cut into tasks. Few rows: they are quantised first, then tasks share the columns, so that
// each byte of W is read once. Many rows: each task quantises its own, which then stay in its L2, and reads all of W. Integer sums are
// exact and the order of float32 sums is that of the groups, so no bit depends on the number of threads.
// Several products with the same few rows (a layer's q, k and v) share the rows' codes and one start of the threads: a start, and the
// first bytes of each stream, cost as much as 1 MB of weights.

constexpr i64 FEW_ROWS = 256;
constexpr i64 WORTH = 2000000;  // operations that are worth a task's start

struct LinearJob {
    const QuantLinear* q;
    i64 count;  // of products
    Rows8 rows;  // of few rows
    i64 panels, tasks;
};

// Rows m0 .. m1 of A, the first of `to` being row `first`.
void quantise_rows(const QuantLinear& q, const Rows8& to, i64 first, i64 m0, i64 m1) {
    for (i64 m = m0; m < m1; m++) {
        const float* const a = q.line ? q.a + m / q.line * q.a_line + m % q.line * q.a_m : q.a + m * q.a_m;
        if (!quantise_row(a, q.K, q.bits, to, m - first)) __atomic_store_n(q.strange, 1, __ATOMIC_RELAXED);
    }
}

void product(const QuantLinear& q, const Rows8& a, i64 rows, float* c, i64 n0, i64 n1) {
    if (rows > 0 && n1 > n0) (q.bits == 4 ? product4 : product8)(q, a, rows, c, n0, n1);
}

void few_rows(const QuantLinears& all) {
    const QuantLinear& q = *all.each;
    LinearJob job{all.each, all.count, {}, 0, q.M * q.K < 1 << 16 ? 1 : at_most(q.M, 2 * threads())};
    for (i64 k = 0; k < all.count; k++) job.panels += divide_up(all.each[k].N, NR);
    if (job.panels == 0) return;
    job.rows = rows_in_scratch(q.M, q.K, q.bits);
    parallel(job.tasks, [](void* context, i64 i) {
        const LinearJob& j = *static_cast<const LinearJob*>(context);
        quantise_rows(*j.q, j.rows, 0, j.q->M * i / j.tasks, j.q->M * (i + 1) / j.tasks);
    }, &job);
    const i64 worth = at_least(1, 2 * q.M * q.K * job.panels * NR / WORTH);
    job.tasks = at_most(at_most(worth, job.panels), threads() == 1 ? 1 : 4 * threads());
    parallel(job.tasks, [](void* context, i64 i) {
        const LinearJob& j = *static_cast<const LinearJob*>(context);
        i64 p0 = j.panels * i / j.tasks, p1 = j.panels * (i + 1) / j.tasks;  // counted from the first panel of product k
        for (i64 k = 0; k < j.count; k++) {
            const QuantLinear& q = j.q[k];
            const i64 panels = divide_up(q.N, NR);
            product(q, j.rows, q.M, q.c, at_least(0, p0) * NR, at_most(q.N, p1 * NR));
            p0 -= panels, p1 -= panels;
        }
    }, &job);
}

void many_rows(const QuantLinear& q) {
    const i64 T = threads(), rows = at_least(4 * ROWS8, at_most(256, (512 << 10) / at_least(1, q.K)));  // whose codes fill half of L2
    const i64 worth = at_least(1, 2 * q.M * q.N * q.K / WORTH);
    LinearJob job{&q, 1, {}, 0, at_most(worth, divide_up(divide_up(q.M, rows), T) * T)};
    parallel(job.tasks, [](void* context, i64 i) {
        const LinearJob& j = *static_cast<const LinearJob*>(context);
        const QuantLinear& q = *j.q;
        const i64 m0 = q.M * i / j.tasks, m1 = q.M * (i + 1) / j.tasks;
        const Rows8 to = rows_in_scratch(m1 - m0, q.K, q.bits);
        quantise_rows(q, to, m0, m0, m1);
        product(q, to, m1 - m0, q.c + m0 * q.N, 0, q.N);
    }, &job);
}

void linear(const QuantLinears& all) {
    if (all.each->M == 0) return;
    if (all.each->M <= FEW_ROWS) return few_rows(all);
    for (i64 k = 0; k < all.count; k++)
        if (all.each[k].N > 0) many_rows(all.each[k]);
}
