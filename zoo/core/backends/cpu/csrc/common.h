// What every file of the kernels sees: plain types and the thread pool.
// Kernel code is compiled several times with different flags, so nothing here or in a table.h may be an inline function or a
// template: the linker would keep one copy, perhaps the one with instructions that this processor does not have.
#pragma once
#include <stddef.h>
#include <stdint.h>

namespace zoo {

using i64 = int64_t;

enum Activation : int { NONE = 0, RELU, GELU, GELU_TANH, QUICK_GELU, SILU, SIGMOID, TANH, ACTIVATIONS };

// pool.cpp: task(context, 0) ... task(context, count - 1), in any order, on the pool's threads and on the caller's
void parallel(i64 count, void (*task)(void* context, i64 index), void* context);
int threads();
void set_threads(int count);  // 0: as many as the machine has for us

// Working memory of the calling thread, 64-byte aligned, valid until the same slot is asked for again; kept between calls
// (fresh pages cost more than small kernels take). Throws std::bad_alloc: inside a task ask only for a few megabytes.
enum Slot : int { SLOT_A, SLOT_B, SLOT_C, SLOT_X, SLOTS };
float* scratch(Slot slot, i64 floats);

}  // namespace zoo
