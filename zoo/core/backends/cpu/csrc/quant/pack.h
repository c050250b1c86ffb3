// Packing of quantised weights (layouts: table.h).

struct PackJob {
    const void* from;
    i64 from_n, N, K;
    void* to;
    void (*panel)(const PackJob&, i64 index);
};

void pack_panels(const PackJob& job) {
    parallel(divide_up(job.N, NR), [](void* context, i64 index) {
        const PackJob& j = *static_cast<const PackJob*>(context);
        j.panel(j, index);
    }, const_cast<PackJob*>(&job));
}

// to[q][i] = quad q of row i, for the first n of NR rows and `quads` whole quads; others are not touched.
void transpose_quads(const char* rows, i64 apart, i64 n, i64 quads, char* to) {
    for (i64 q = 0; q < quads; q += W) {
        const i64 count = at_most(W, quads - q);
        for (int g = 0; g < NR; g += W) {
            vf t[W];
            UNROLL for (int i = 0; i < W; i++) {
                t[i] = vf{};
                if (g + i >= n) continue;
                const char* const from = rows + (g + i) * apart + q * 4;
                if (count == W) __builtin_memcpy(&t[i], from, W * 4);
                else __builtin_memcpy(&t[i], from, count * 4);
            }
            transpose(t);
            for (i64 i = 0; i < count; i++) __builtin_memcpy(to + ((q + i) * NR + g) * 4, &t[i], W * 4);
        }
    }
}

void pack8(const int8_t* q, i64 q_n, i64 N, i64 K, uint8_t* packed) {
    pack_panels({q, q_n, N, K, packed, [](const PackJob& j, i64 index) {
        const i64 quads = divide_up(j.K, 4), whole = j.K / 4, n = at_most(NR, j.N - index * NR);
        const char* const from = static_cast<const char*>(j.from) + index * NR * j.from_n;
        char* const to = static_cast<char*>(j.to) + index * quads * NR * 4;
        transpose_quads(from, j.from_n, n, whole, to);
        if (whole < quads) {
            char* const tail = to + whole * NR * 4;
            for (i64 i = 0; i < NR * 4; i++) tail[i] = i / 4 < n && whole * 4 + i % 4 < j.K ? from[i / 4 * j.from_n + whole * 4 + i % 4] : 0;
        }
        for (i64 i = 0; i < quads * NR * 4; i += W * 4) store_ints(to + i, load_ints(to + i) ^ splat_int((int32_t)0x80808080));
    }});
}

void pack4(const uint8_t* q, i64 q_n, i64 N, i64 K, uint8_t* packed) {
    pack_panels({q, q_n, N, K, packed, [](const PackJob& j, i64 index) {
        const i64 quads = j.K / 8, n = at_most(NR, j.N - index * NR);  // of stored bytes: 8 inputs
        char* const to = static_cast<char*>(j.to) + index * quads * NR * 4;
        transpose_quads(static_cast<const char*>(j.from) + index * NR * j.from_n, j.from_n, n, quads, to);
        // a quad of stored bytes holds inputs 01 23 45 67, the first of each pair in the low half; of its group, quads 0 and 1 hold
        // inputs 0 .. 15, which go to low halves, and 2 and 3 inputs 16 .. 31, which go to high ones
        for (i64 g = 0; g < quads / 4; g++) {
            for (i64 i = 0; i < NR; i += W) {
                vi even[4], odd[4];  // the first two pairs of each quad as bytes a0 a1 a2 a3, and the last two
                UNROLL for (int p = 0; p < 4; p++) {
                    const vi v = load_ints(to + ((g * 4 + p) * NR + i) * 4);
                    const vi low = v & 0x0F0F0F0F, high = shift_right(v, 4) & 0x0F0F0F0F;
                    const vi first = low & 0xFF, second = high & 0xFF, third = shift_right(low, 8) & 0xFF, fourth = shift_right(high, 8) & 0xFF;
                    even[p] = first | second << 8 | third << 16 | fourth << 24;
                    odd[p] = (shift_right(low, 16) & 0xFF) | (shift_right(high, 16) & 0xFF) << 8 | (shift_right(low, 24) << 16) |
                             (shift_right(high, 24) << 24);
                }
                UNROLL for (int p = 0; p < 2; p++) {
                    store_ints(to + ((g * 4 + 2 * p) * NR + i) * 4, even[p] | even[p + 2] << 4);
                    store_ints(to + ((g * 4 + 2 * p + 1) * NR + i) * 4, odd[p] | odd[p + 2] << 4);
                }
            }
        }
    }});
}
