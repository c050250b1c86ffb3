#pragma once
#include "../common.h"

namespace zoo {

// Loops of one thread; bind.cpp runs and times them on all threads at once.
struct ProbeKernels {
    // `rounds` steps of every chain, which start at numbers[0 ...] (PROBE_NUMBERS of them, written back) -> operations
    i64 (*fma)(i64 rounds, float* numbers);
    i64 (*int8)(i64 rounds, float* numbers);  // null where no dot product of bytes was compiled in
    i64 (*bf16)(i64 rounds, float* numbers);  // nor of bfloat16
    float (*read)(const float* from, i64 count);
    void (*copy)(const float* from, float* to, i64 count);  // past the caches; 64-byte aligned, count a multiple of 128
};
constexpr int PROBE_NUMBERS = 512;

}  // namespace zoo
