// What the lanes of a warp do together: shuffles, votes, mma, ldmatrix. Each brings its part to its warp's slots (`together` in
// runtime.cpp), the last one works out the results of all, and each takes its own.

namespace {

// d += a b, by the fragments of mma.m16n8k16 (16 bits; widened makes numbers of them) and m16n8k32 (8 bits; widened is null): PTX
// ISA, "Matrix fragments". Sums are added one by one, in float32 or int32.
void multiply(Warp &warp, float (*widened)(uint16_t)) {
    bool bytes = !widened;
    int ks = bytes ? 32 : 16, each = bytes ? 4 : 2;
    float a[16][32], b[32][8];
    for (int lane = 0; lane < 32; lane++) {
        int g = lane / 4, t = lane % 4;
        const Payload &p = warp.in[lane];
        for (int r = 0; r < 4; r++)
            for (int i = 0; i < each; i++) {
                int k = (r / 2) * ks / 2 + t * each + i;
                auto value = [&](uint32_t word) {
                    return bytes ? float(int8_t(word >> 8 * i)) : widened(word >> 16 * i & 0xffff);
                };
                a[g + 8 * (r % 2)][k] = value(p.a[r]);
                if (r < 2) b[r * ks / 2 + t * each + i][g] = value(p.b[r]);
            }
    }
    for (int lane = 0; lane < 32; lane++)
        for (int i = 0; i < 4; i++) {
            int row = lane / 4 + i / 2 * 8, column = lane % 4 * 2 + i % 2;
            if (bytes) {  // 32 products of at most 2^14 are exact in float
                float sum = 0;
                for (int k = 0; k < ks; k++) sum += a[row][k] * b[k][column];
                warp.out[lane][i] = warp.in[lane].d[i] + uint32_t(int32_t(sum));
            } else {
                float sum;
                memcpy(&sum, &warp.in[lane].d[i], 4);
                for (int k = 0; k < ks; k++) sum += a[row][k] * b[k][column];
                memcpy(&warp.out[lane][i], &sum, 4);
            }
        }
}

}  // namespace

extern "C" {

void emulated_syncwarp(unsigned mask, const char *file, int line) {
    need_all(mask, file, line);
    together(0, line, file, line, [](Warp &) {});
}

void emulated_shuffle(void *value, int bytes, int source, unsigned mask, const char *file, int line) {
    need_all(mask, file, line);
    int lane = current % 32;
    Warp &warp = warps[current / 32];
    memcpy(warp.in[lane].a, value, bytes);
    warp.in[lane].source = source;
    together(1, line, file, line, [](Warp &w) {
        for (int i = 0; i < 32; i++) memcpy(w.out[i], w.in[w.in[i].source & 31].a, 8);
    });
    memcpy(value, warp.out[lane], bytes);
}

unsigned emulated_ballot(int predicate, unsigned mask, const char *file, int line) {
    need_all(mask, file, line);
    Warp &warp = warps[current / 32];
    int lane = current % 32;
    warp.in[lane].source = predicate != 0;
    together(2, line, file, line, [](Warp &w) {
        uint32_t votes = 0;
        for (int i = 0; i < 32; i++) votes |= uint32_t(w.in[i].source) << i;
        for (int i = 0; i < 32; i++) w.out[i][0] = votes;
    });
    return warp.out[lane][0];
}

// widened: what turns 16 bits into a number; null for bytes.
void emulated_mma(float (*widened)(uint16_t), void *d, const unsigned *a, const unsigned *b) {
    Warp &warp = warps[current / 32];
    int lane = current % 32;
    memcpy(warp.in[lane].a, a, 16);
    memcpy(warp.in[lane].b, b, 8);
    memcpy(warp.in[lane].d, d, 16);
    together(3, widened != nullptr, "mma", 0, [widened](Warp &w) { multiply(w, widened); });
    memcpy(d, warp.out[lane], 16);
}

void emulated_ldmatrix(unsigned *r, const void *row, int matrices, int transposed) {
    Warp &warp = warps[current / 32];
    int lane = current % 32;
    if (lane < matrices * 8 && (!within_shared(row, 16) || reinterpret_cast<uintptr_t>(row) % 16))
        fail("ldmatrix from %p, which is not 16 bytes of shared memory on a multiple of 16", row);
    warp.in[lane].row = row;
    together(4, matrices * 2 + transposed, "ldmatrix", matrices, [=](Warp &w) {
        for (int i = 0; i < 32; i++)
            for (int m = 0; m < matrices; m++) {
                uint16_t two[2];
                for (int j = 0; j < 2; j++) {
                    int y = i / 4, x = i % 4 * 2 + j;
                    const char *from = static_cast<const char *>(w.in[m * 8 + (transposed ? x : y)].row);
                    memcpy(&two[j], from + 2 * (transposed ? y : x), 2);
                }
                memcpy(&w.out[i][m], two, 4);
            }
    });
    memcpy(r, warp.out[lane], 4 * matrices);
}

}
