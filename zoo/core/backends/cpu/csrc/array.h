// Python's door: takes pointers out of numpy arrays, with their shapes and types checked.
// Arrays come by the buffer protocol (0.08 us each; nanobind's own array type takes 0.25, ctypes 1.5).
#pragma once
#include <nanobind/nanobind.h>
#include <nanobind/stl/array.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <cstring>
#include <string>

#include "common.h"
#include "recording.h"

namespace nb = nanobind;

namespace zoo {

[[noreturn]] inline void fail(const std::string& message) { throw nb::value_error(message.c_str()); }

// The buffer protocol's letters for T. Half and bfloat16 numbers come as uint16 views: numpy's bfloat16 has no buffer protocol.
template <class T>
constexpr const char* LETTERS = nullptr;
template <>
constexpr const char* LETTERS<float> = "f";
template <>
constexpr const char* LETTERS<uint16_t> = "H";
template <>
constexpr const char* LETTERS<int8_t> = "b";
template <>
constexpr const char* LETTERS<uint8_t> = "B?";
template <>
constexpr const char* LETTERS<int32_t> = "i";
template <>
constexpr const char* LETTERS<int64_t> = "lq";

// An array of T with strides in elements; absent if None was given.
template <class T>
struct ArrayOf {
    Py_buffer buffer{};
    T* data = nullptr;
    int nd = 0;
    i64 shape[8] = {}, stride[8] = {};

    ArrayOf(nb::handle object, const char* name, bool writable = false) {
        if (object.is_none()) return;
        if (PyObject_GetBuffer(object.ptr(), &buffer, PyBUF_STRIDES | PyBUF_FORMAT | (writable ? PyBUF_WRITABLE : 0)) != 0)
            throw nb::python_error();
        const auto reject = [&](const char* why) {
            PyBuffer_Release(&buffer);
            fail(std::string(name) + why);
        };
        if (buffer.itemsize != sizeof(T) || !buffer.format || !std::strchr(LETTERS<T>, buffer.format[0]) || buffer.format[1])
            reject(" has the wrong dtype");
        if (reinterpret_cast<uintptr_t>(buffer.buf) % alignof(T)) reject(" is not aligned");
        if (buffer.ndim > 8) reject(" has more than 8 axes");
        nd = buffer.ndim;
        data = static_cast<T*>(buffer.buf);
        for (int i = 0; i < nd; i++) {
            shape[i] = buffer.shape[i];
            if (buffer.strides[i] % (i64)sizeof(T)) reject(" has a stride that is no multiple of its item size");
            stride[i] = buffer.strides[i] / (i64)sizeof(T);
        }
    }
    ~ArrayOf() {
        if (buffer.obj) PyBuffer_Release(&buffer);
    }
    ArrayOf(const ArrayOf&) = delete;
    ArrayOf& operator=(const ArrayOf&) = delete;

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
using Array = ArrayOf<float>;

inline void check(bool good, const char* message) {
    if (!good) fail(message);
}

// What follows a product.
struct After {
    Array bias, residual;
    int activation;
    After(nb::handle b, nb::handle r, int act, i64 N, const Array& out) : bias(b, "bias"), residual(r, "residual"), activation(act) {
        check(act >= NONE && act < ACTIVATIONS, "unknown activation");
        if (bias) check(bias.nd == 1 && bias.shape[0] == N && bias.contiguous(), "bias must be contiguous, one value per output");
        if (residual) check(residual.size() == out.size() && residual.contiguous(), "residual must be contiguous, as large as the output");
    }
};

// Calls a kernel with the interpreter lock released.
template <class Args>
void run(void (*kernel)(const Args&), const Args& args) {
    if (Recording* const r = recording()) r->calls.emplace_back([kernel, kept = Kept<Args>(args, *r)] { kernel(kept.get()); });
    nb::gil_scoped_release unlocked;
    kernel(args);
}

}  // namespace zoo
