// A region of zoo/core/fusion in one pass over memory: elementwise ops, casts, reductions along the last axis and what
// spreads their results again. zoo/core/fusion/nvrtc.py prints the constants.
//
// fused_places   y0, y1, ... [place] = STEPS of the arguments there; layout and index as in elementwise.cu
// fused_rows     a block takes a row: PASSES are loops over its columns, a reduction over the block between two of them.
//                A thread takes VECTOR columns that lie side by side; blockDim.x * VECTOR columns at a time
// shared memory  fused_rows: 32 numbers for the reductions
// floor          bytes of the arguments and of the results, each once; a row is read once for each pass, but for the first
//                time from the cache

#include "prelude.cuh"
#include "functions.cuh"

#ifdef STEPS
extern "C" __global__ void __launch_bounds__(256) fused_places(SIZES PARAMETERS OUTPUTS INDEX places) {
    for (INDEX place = INDEX(blockIdx.x) * blockDim.x + threadIdx.x; place < places; place += INDEX(gridDim.x) * blockDim.x) {
        PLACES
        LOADS
        RESULTS
#pragma unroll
        for (int k = 0; k < VECTOR; k++) {
            VALUES
            STEPS
        }
        STORES
    }
}
#endif

#ifdef PASSES
extern "C" __global__ void __launch_bounds__(512) fused_rows(SIZES PARAMETERS OUTPUTS INDEX rows, INDEX columns) {
    SHARED(float, scratch, 32);
    for (INDEX row = blockIdx.x; row < rows; row += gridDim.x) {
        ROW
        PASSES
    }
}
#endif
