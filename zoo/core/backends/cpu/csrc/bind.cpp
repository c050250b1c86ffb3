// Python's door: checks shapes and types, takes pointers out of numpy arrays, releases the interpreter lock, calls a kernel.
// Arrays come by the buffer protocol (0.08 us each; nanobind's own array type takes 0.25, ctypes 1.5).
#include <nanobind/nanobind.h>
#include <nanobind/stl/array.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <string>

#include "dispatch.h"
#include "kernels.h"

namespace nb = nanobind;
using zoo::i64;

namespace {

[[noreturn]] void fail(const std::string& message) { throw nb::value_error(message.c_str()); }

// A float32 array with strides in elements; absent if None was given.
struct Array {
    Py_buffer buffer{};
    float* data = nullptr;
    int nd = 0;
    i64 shape[8] = {}, stride[8] = {};

    Array(nb::handle object, const char* name, bool writable = false) {
        if (object.is_none()) return;
        if (PyObject_GetBuffer(object.ptr(), &buffer, PyBUF_STRIDES | PyBUF_FORMAT | (writable ? PyBUF_WRITABLE : 0)) != 0)
            throw nb::python_error();
        const auto reject = [&](const char* why) {
            PyBuffer_Release(&buffer);
            fail(std::string(name) + why);
        };
        if (buffer.itemsize != 4 || !buffer.format || std::string(buffer.format) != "f") reject(" must be float32");
        if (reinterpret_cast<uintptr_t>(buffer.buf) % alignof(float)) reject(" is not aligned");
        if (buffer.ndim > 8) reject(" has more than 8 axes");
        nd = buffer.ndim;
        data = static_cast<float*>(buffer.buf);
        for (int i = 0; i < nd; i++) {
            shape[i] = buffer.shape[i];
            if (buffer.strides[i] % 4) reject(" has a stride that is no multiple of its item size");
            stride[i] = buffer.strides[i] / 4;
        }
    }
    ~Array() {
        if (buffer.obj) PyBuffer_Release(&buffer);
    }
    Array(const Array&) = delete;
    Array& operator=(const Array&) = delete;

    explicit operator bool() const { return data != nullptr || buffer.obj != nullptr; }
    bool contiguous() const {
        i64 expected = 1;
        for (int i = nd - 1; i >= 0; expected *= shape[i--])
            if (shape[i] > 1 && stride[i] != expected) return false;
        return true;
    }
    i64 size() const {
        i64 n = 1;
        for (int i = 0; i < nd; i++) n *= shape[i];
        return n;
    }
};

void check(bool good, const char* message) {
    if (!good) fail(message);
}

i64 packed_columns(i64 N) {
    const int nr = zoo::kernels().nr;
    return (N + nr - 1) / nr * nr;
}

struct After {  // what follows a product
    Array bias, residual;
    int activation;
    After(nb::handle b, nb::handle r, int act, i64 N, const Array& out) : bias(b, "bias"), residual(r, "residual"), activation(act) {
        check(act >= zoo::NONE && act < zoo::ACTIVATIONS, "unknown activation");
        if (bias) check(bias.nd == 1 && bias.shape[0] == N && bias.contiguous(), "bias must be contiguous, one value per output");
        if (residual) check(residual.size() == out.size() && residual.contiguous(), "residual must be contiguous, as large as the output");
    }
};

template <class Args>
void run(void (*kernel)(const Args&), const Args& args) {
    nb::gil_scoped_release unlocked;
    kernel(args);
}

void gemm(nb::handle a_, nb::handle b_, nb::handle out_, nb::handle bias, nb::handle residual, int activation, i64 packed_n) {
    const Array a(a_, "a"), b(b_, "b"), out(out_, "out", true);
    check(a && b && out, "a, b and out must be arrays");
    check(a.nd >= 2 && out.nd >= 2 && out.contiguous(), "a and out need two axes or more, and out must be contiguous");
    const int nd = out.nd;
    zoo::Gemm g{};
    g.M = a.shape[a.nd - 2], g.K = a.shape[a.nd - 1];
    g.a = a.data, g.a_m = a.stride[a.nd - 2], g.a_k = a.stride[a.nd - 1];
    if (packed_n >= 0) {
        g.N = packed_n, g.packed = b.data;
        check(a.nd == 2, "with packed weights, a must have two axes");
        check(b.nd == 1 && b.contiguous() && b.shape[0] == packed_columns(g.N) * g.K, "packed weights do not fit a");
    } else {
        check(b.nd >= 2 && b.shape[b.nd - 2] == g.K, "inner sizes differ");
        g.N = b.shape[b.nd - 1];
        g.b = b.data, g.b_k = b.stride[b.nd - 2], g.b_n = b.stride[b.nd - 1];
    }
    check(out.shape[nd - 2] == g.M && out.shape[nd - 1] == g.N, "out has the wrong shape");
    g.c = out.data, g.c_m = g.N;
    g.axes = nd - 2;
    check(g.axes <= zoo::MAX_BATCH_AXES && a.nd <= nd && b.nd <= nd, "too many batch axes");
    for (int i = 0; i < g.axes; i++) {
        g.batch[i] = out.shape[i];
        const auto along = [&](const Array& x) -> i64 {
            const int axis = i - (nd - x.nd);
            if (axis < 0 || x.shape[axis] == 1) return 0;
            check(x.shape[axis] == g.batch[i], "batch axes do not broadcast to out");
            return x.stride[axis];
        };
        g.a_batch[i] = along(a);
        g.b_batch[i] = packed_n >= 0 ? 0 : along(b);
    }
    const After after(bias, residual, activation, g.N, out);
    check(nd == 2 || !(after.bias || after.residual || activation), "bias, residual and activation need two axes");
    g.bias = after.bias.data, g.residual = after.residual.data, g.activation = activation;
    run(zoo::kernels().gemm, g);
}

using Pair = std::array<i64, 2>;

void set_weight_shape(zoo::Conv& c, const i64* shape, i64 groups) {
    c.outputs = shape[0], c.kernel[0] = shape[1], c.kernel[1] = shape[2];
    c.channels = shape[3] * groups, c.groups = groups;
    check(groups >= 1 && c.outputs % groups == 0 && c.kernel[0] >= 1 && c.kernel[1] >= 1, "the weights do not fit the groups");
    check(c.channels >= 1, "a convolution needs at least one channel");
}

i64 packed_conv_size(const zoo::Conv& c) {
    return c.groups * packed_columns(c.outputs / c.groups) * c.kernel[0] * c.kernel[1] * (c.channels / c.groups);
}

void conv(nb::handle x_, nb::handle w_, nb::handle out_, nb::handle bias, nb::handle residual, int activation, Pair stride, Pair pad,
          Pair dilation, i64 groups, bool flip, std::array<i64, 4> packed_shape) {
    const Array x(x_, "x"), w(w_, "w"), out(out_, "out", true);
    check(x && w && out && x.nd == 4 && out.nd == 4 && out.contiguous(), "x and out need four axes, and out must be contiguous");
    zoo::Conv c{};
    c.batch = x.shape[0];
    const bool packed = packed_shape[0] >= 0;
    if (!packed) check(w.nd == 4, "w needs four axes");
    set_weight_shape(c, packed ? packed_shape.data() : w.shape, groups);
    check(c.channels == x.shape[3], "the weights do not fit the channels of x");
    check(out.shape[0] == c.batch && out.shape[3] == c.outputs, "out has the wrong shape");
    for (int i : {0, 1}) {
        c.size[i] = x.shape[i + 1], c.out[i] = out.shape[i + 1];
        c.stride[i] = stride[i], c.dilation[i] = dilation[i], c.pad[i] = pad[i];
        check(stride[i] >= 1 && dilation[i] >= 1, "stride and dilation start at 1");
    }
    std::copy(x.stride, x.stride + 4, c.x_stride);
    c.x = x.data, c.y = out.data, c.flip = flip;
    if (packed) {
        check(w.nd == 1 && w.contiguous() && w.shape[0] == packed_conv_size(c), "packed weights have the wrong size");
        c.packed = w.data;
    } else {
        c.w = w.data;
        std::copy(w.stride, w.stride + 4, c.w_stride);
    }
    const auto unit = [](i64 size, i64 stride) { return size == 1 || stride == 1; };
    c.k_major = !packed && groups == 1 && !flip && unit(c.batch, c.x_stride[0]) && unit(c.outputs, c.w_stride[0]) &&
                (c.x_stride[3] != 1 || (c.channels == 1 && c.batch > 1));
    const After after(bias, residual, activation, c.outputs, out);
    c.bias = after.bias.data, c.residual = after.residual.data, c.activation = activation;
    run(zoo::kernels().conv, c);
}

void pack_linear(nb::handle w_, nb::handle out_) {
    const Array w(w_, "w"), out(out_, "out", true);
    check(w && out && w.nd == 2 && out.nd == 1 && out.contiguous(), "w needs two axes, out one");
    check(out.shape[0] == packed_columns(w.shape[0]) * w.shape[1], "out has the wrong size");
    nb::gil_scoped_release unlocked;
    zoo::kernels().pack(w.data, w.stride[1], w.stride[0], w.shape[0], w.shape[1], out.data);
}

void pack_conv(nb::handle w_, nb::handle out_, i64 groups, bool flip) {
    const Array w(w_, "w"), out(out_, "out", true);
    check(w && out && w.nd == 4 && out.nd == 1 && out.contiguous(), "w needs four axes, out one");
    zoo::Conv c{};
    set_weight_shape(c, w.shape, groups);
    check(out.shape[0] == packed_conv_size(c), "out has the wrong size");
    c.w = w.data, c.flip = flip;
    std::copy(w.stride, w.stride + 4, c.w_stride);
    nb::gil_scoped_release unlocked;
    zoo::kernels().pack_conv(c, out.data);
}

}  // namespace

NB_MODULE(_native, m) {
    m.def("isas", zoo::isas, "Instruction sets with kernels that this machine runs; the best one last.");
    m.def("isa", [] { return std::string(zoo::kernels().isa); }, "The instruction set in use.");
    m.def("set_isa", zoo::set_isa, nb::arg("name"));
    m.def("features", zoo::features, "Instruction sets of the processor, used by kernels or not.");
    m.def("threads", zoo::threads);
    m.def("set_threads", zoo::set_threads, nb::arg("count"), "0: one per physical core that this process may use.");
    m.def("tile", [] { return std::array<int, 2>{zoo::kernels().mr, zoo::kernels().nr}; }, "Rows and columns of the GEMM micro-kernel.");
    m.def("gemm", gemm, nb::arg("a"), nb::arg("b"), nb::arg("out"), nb::arg("bias").none() = nb::none(),
          nb::arg("residual").none() = nb::none(), nb::arg("activation") = 0, nb::arg("packed_n") = -1,
          "out = act(a @ b + bias + residual). a (..., M, K); b (..., K, N) or, with packed_n = N, packed weights.");
    m.def("conv", conv, nb::arg("x"), nb::arg("w"), nb::arg("out"), nb::arg("bias").none() = nb::none(),
          nb::arg("residual").none() = nb::none(), nb::arg("activation") = 0, nb::arg("stride") = Pair{1, 1},
          nb::arg("pad") = Pair{0, 0}, nb::arg("dilation") = Pair{1, 1}, nb::arg("groups") = 1, nb::arg("flip") = false,
          nb::arg("packed_shape") = std::array<i64, 4>{-1, 0, 0, 0},
          "x (N, H, W, C), w (O, h, w, C/groups) or packed -> out (N, H', W', O).");
    m.def("pack_linear", pack_linear, nb::arg("w"), nb::arg("out"));
    m.def("pack_conv", pack_conv, nb::arg("w"), nb::arg("out"), nb::arg("groups") = 1, nb::arg("flip") = false);
}
