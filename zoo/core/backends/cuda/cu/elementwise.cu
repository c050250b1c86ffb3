// y[place] = FORMULA(a, b, ...), arguments broadcast by strides of 0.
//
// layout     y contiguous; a thread takes VECTOR values of it, which lie side by side in every argument or are one value
//            for all of them. With 16 bytes for the widest type (VECTOR = 1 where an argument has gaps or sizes do not divide).
// index      the place of a vector, taken apart into i0, i1, ... over the axes left after collapsing: of contiguous arguments one
// floor      bytes of the arguments and of y, each once
// kernels/elementwise.py prints the constants: SIZES and PARAMETERS (in the signature), PLACES (addresses of this thread's
// vectors), LOADS, VALUES (a, b, ... of the k-th value, widened), FORMULA; INDEX is 32 bits wide where that is enough.

#include "prelude.cuh"
#include "functions.cuh"

extern "C" __global__ void __launch_bounds__(256) elementwise(SIZES PARAMETERS OUT *__restrict__ y, INDEX places) {
    for (INDEX place = INDEX(blockIdx.x) * blockDim.x + threadIdx.x; place < places; place += INDEX(gridDim.x) * blockDim.x) {
        PLACES
        LOADS
        Vec<OUT, VECTOR> results;
#pragma unroll
        for (int k = 0; k < VECTOR; k++) {
            VALUES
            results[k] = narrow<OUT>(FORMULA);
        }
        results.store(y + place * VECTOR);
    }
}
