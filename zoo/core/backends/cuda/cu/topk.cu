// The k largest of each row, falling; of equals the first; NaN last, as numpy sorts. With k = columns: a sort.
//   Each value becomes a key of 64 bits: above, 32 that rise as values fall; below, its place. No two keys are equal, so the k
//   smallest are one set, in one order, whatever threads do first: the atomics below count and hand out slots, and change no
//   result.
// layout     a block of 1024 for each row. Rows of up to SLOTS values are sorted as they are. Of longer ones the k-th key is found
//            8 bits at a time, from above: a histogram over the row of those that agree in the bits before, until the bin that
//            holds the k-th is wanted whole (4 passes if no two values near it are equal, 8 at most); then the keys up to it are
//            collected. The sort is bitonic, in shared memory
// shared     SLOTS keys, 32 KiB, and 8 * 256 counts, 8 KiB
// floor      bytes: the row once, sizeof(T) columns; a long row is read 5 times or more, mostly from L2
//
// Python sets T and SLOTS (a power of 2, at least k; 4096).
#include "prelude.cuh"

// Rises as v falls; NaN is above all.
__device__ __forceinline__ uint64_t key_of(T stored, int place) {
    const float v = widen(stored) + 0.0f;  // -0 equals 0
    const uint32_t bits = __float_as_uint(v);
    const uint32_t falling = v != v ? 0xffffffffu : bits & 0x80000000u ? bits : ~(bits | 0x80000000u);
    return (uint64_t)falling << 32 | (uint32_t)place;
}

extern "C" __global__ void __launch_bounds__(1024) topk(const T* x, T* values, int32_t* places, int columns, int k) {
    SHARED(uint64_t, keys, SLOTS);
    SHARED(int, counts, 8 * 256);  // [of every eighth thread][bin]: values alike would else wait for each other
    SHARED(int, slots, 2);  // slots taken; whether the last bin is wanted whole
    SHARED(uint64_t, found, 2);  // the bits of the k-th key so far; how many are wanted of those that agree in them
    const int t = threadIdx.x;
    const T* const row = x + (int64_t)blockIdx.x * columns;
    int size = columns;  // keys to sort
    if (columns <= SLOTS) {
        for (int j = t; j < columns; j += 1024) keys[j] = key_of(row[j], j);
    } else {
        size = k;
        if (t == 0) found[0] = 0, found[1] = k, slots[0] = 0;
        int shift = 64;
        for (bool whole = false; !whole && shift > 0;) {
            shift -= 8;
            for (int i = t; i < 8 * 256; i += 1024) counts[i] = 0;
            __syncthreads();
            const uint64_t above = found[0];
            for (int j = t; j < columns; j += 1024) {
                const uint64_t key = key_of(row[j], j);
                if (shift == 56 || key >> (shift + 8) == above) atomicAdd(&counts[t % 8 * 256 + (int)(key >> shift & 255)], 1);
            }
            __syncthreads();
            if (t < 32) {  // lane t sums bins 8 t .. 8 t + 7; the lane whose bins reach `wanted` looks among them
                int bins[8], sum = 0;
#pragma unroll
                for (int i = 0; i < 8; i++) {
                    bins[i] = 0;
                    for (int copy = 0; copy < 8; copy++) bins[i] += counts[copy * 256 + 8 * t + i];
                    sum += bins[i];
                }
                int upto = sum;
                for (int apart = 1; apart < 32; apart *= 2) {
                    const int other = __shfl_sync(FULL, upto, t >= apart ? t - apart : t);
                    if (t >= apart) upto += other;
                }
                int wanted = (int)found[1] - (upto - sum), bin = 0, size_of_bin = bins[0];
                __syncwarp();
                if (wanted > 0 && wanted <= sum) {
#pragma unroll
                    for (int i = 1; i < 8; i++)  // bins[bin] would lie in memory
                        if (bin == i - 1 && size_of_bin < wanted) wanted -= size_of_bin, bin = i, size_of_bin = bins[i];
                    found[0] = above << 8 | (uint64_t)(8 * t + bin);
                    found[1] = wanted;
                    slots[1] = size_of_bin == wanted;
                }
            }
            __syncthreads();
            whole = slots[1];
            __syncthreads();
        }
        const uint64_t last = found[0];
        for (int j = t; j < columns; j += 1024) {
            const uint64_t key = key_of(row[j], j);
            if (key >> shift <= last) keys[atomicAdd(&slots[0], 1)] = key;
        }
    }
    int whole = 1;  // the next power of 2
    while (whole < size) whole *= 2;
    for (int j = size + t; j < whole; j += 1024) keys[j] = ~(uint64_t)0;
    __syncthreads();
    for (int run = 2; run <= whole; run *= 2)
        for (int apart = run / 2; apart > 0; apart /= 2) {
            for (int i = t; i < whole / 2; i += 1024) {
                const int a = i / apart * 2 * apart + i % apart, b = a + apart;
                const uint64_t one = keys[a], other = keys[b];
                if ((one > other) == ((a & run) == 0)) keys[a] = other, keys[b] = one;
            }
            __syncthreads();
        }
    for (int j = t; j < k; j += 1024) {
        const int place = (int)(uint32_t)keys[j];
        values[(int64_t)blockIdx.x * k + j] = row[place];
        places[(int64_t)blockIdx.x * k + j] = place;
    }
}
