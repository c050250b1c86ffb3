// Calls of kernels kept with their arguments, to be made again without Python (zoo/core/backends/cpu/recorder.py).
// What a step of decoding costs in Python, some 8 us an op, is more than a small kernel takes; a call from this list costs 20 ns.
#pragma once
#include <functional>
#include <vector>

#include "common.h"

namespace zoo {

struct Recording {
    std::vector<std::function<void()>> calls;
    int strange = 0;  // what kernels set that met NaN or infinity where they have no code for it
};

// To which calls of this thread are added; null where none is under way.
Recording* recording();

// A kernel's arguments as a recording keeps them. Where they point to what lives only for the call, a family has its own.
template <class Args>
struct Kept {
    Args args;
    Kept(const Args& a, Recording&) : args(a) {}
    const Args& get() const { return args; }
};

}  // namespace zoo
