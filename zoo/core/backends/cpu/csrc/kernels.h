// The only things that cross between files: plain structs, one table of kernels per instruction set, and the thread pool.
// Kernel code is compiled several times with different flags, so nothing here may be an inline function or a template:
// the linker would keep one copy, perhaps the one with instructions that this processor does not have.
#pragma once
#include <stddef.h>
#include <stdint.h>

namespace zoo {

using i64 = int64_t;

enum Activation : int { NONE = 0, RELU, GELU, GELU_TANH, QUICK_GELU, SILU, SIGMOID, TANH, ACTIVATIONS };

constexpr int MAX_BATCH_AXES = 6;

// C = act(A * B + bias + residual).  All strides in elements.
struct Gemm {
    i64 M, N, K;
    const float* a;  // element (m, k) at a + m * a_m + k * a_k
    i64 a_m, a_k;
    const float* b;  // element (k, n) at b + k * b_k + n * b_n; not read if `packed` is set
    i64 b_k, b_n;
    const float* packed;  // [N/NR][K][NR], made by `pack`; columns beyond N are zero
    float* c;             // rows of N contiguous elements
    i64 c_m;
    const float* bias;      // [N] or null
    const float* residual;  // laid out as c, or null
    int activation;
    // batch axes, outermost first; the strides of a and b may be 0 (broadcast); c is contiguous over them
    int axes;
    i64 batch[MAX_BATCH_AXES], a_batch[MAX_BATCH_AXES], b_batch[MAX_BATCH_AXES];
};

// y[n, p, o] = act(sum over k, c of x[n, p * stride + k * dilation - pad, c] * w[o, k, c] + bias[o] + residual[n, p, o])
// with two spatial axes; x is zero outside its bounds.  `pad` may be negative (it crops).
struct Conv {
    i64 batch, size[2], channels;  // x
    i64 outputs, kernel[2];        // w; takes channels / groups
    i64 out[2];                    // y (batch, out0, out1, outputs), contiguous
    i64 stride[2], dilation[2], pad[2], groups;
    bool flip;     // the kernel is turned round in both spatial axes
    bool k_major;  // x and w are contiguous along batch and outputs, not along channels; then groups == 1 and no flip
    const float* x;
    i64 x_stride[4];
    const float* w;  // not read if `packed` is set
    i64 w_stride[4];
    const float* packed;  // [groups][outputs/groups/NR][kernel0 * kernel1 * channels/groups][NR]
    float* y;
    const float *bias, *residual;
    int activation;
};

struct KernelTable {
    const char* isa;
    int mr, nr;  // rows and columns of the micro-kernel's tile
    // packs element (k, n) at b + k * b_k + n * b_n into [N/NR][K][NR]
    void (*pack)(const float* b, i64 b_k, i64 b_n, i64 N, i64 K, float* packed);
    void (*pack_conv)(const Conv&, float* packed);
    void (*gemm)(const Gemm&);
    void (*conv)(const Conv&);
};

// dispatch.cpp
const KernelTable& kernels();

// pool.cpp: task(context, 0) ... task(context, count - 1), in any order, on the pool's threads and on the caller's
void parallel(i64 count, void (*task)(void* context, i64 index), void* context);
int threads();
void set_threads(int count);  // 0: as many as the machine has for us

// Working memory of the calling thread, 64-byte aligned, valid until the same slot is asked for again; kept between calls
// (fresh pages cost more than small kernels take). Throws std::bad_alloc: inside a task ask only for a few megabytes.
enum Slot : int { SLOT_A, SLOT_B, SLOT_C, SLOT_X, SLOTS };
float* scratch(Slot slot, i64 floats);

}  // namespace zoo
