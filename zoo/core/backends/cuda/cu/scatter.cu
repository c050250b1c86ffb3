// y[line] = x[line] + the sum of updates[i] over the i with indices[i] = line, in their order, in float32; x (lines, run).
// layout     the indices are sorted first (stable), so that equal ones are a run; a thread for each value of each update, of
//            which those at the first of a run add up all of it. Two runs never meet: no atomics, and the same bits in every run
//            of the program
// floor      bytes: x, y and the updates once, 2 lines run + n run values; and the sorting
// `fault` is set where an index is no line; it is left out then.
//
// Python sets T, INDEX (the integers that indices are).
#include "prelude.cuh"

// y holds x already. sorted: the indices, rising; order: where each of them stood. A thread for each value of each line.
extern "C" __global__ void __launch_bounds__(256) scatter_add(
    const T* x, const INDEX* sorted, const int64_t* order, const T* updates, T* y, int* fault, int64_t n, int64_t lines,
    int64_t run) {
    const int64_t at = (int64_t)blockIdx.x * 256 + threadIdx.x;
    if (at >= n * run) return;
    const int64_t first = at / run, j = at % run;
    const INDEX line = sorted[first];
    if (first && sorted[first - 1] == line) return;
    if ((int64_t)line < 0 || (int64_t)line >= lines) {
        *fault = 1;
        return;
    }
    float sum = widen(x[(int64_t)line * run + j]);
    for (int64_t i = first; i < n && sorted[i] == line; i++) sum += widen(updates[order[i] * run + j]);
    y[(int64_t)line * run + j] = narrow<T>(sum);
}
