#include "../array.h"
#include "../dispatch.h"

#include <algorithm>

namespace zoo {

template <>
struct Kept<Rows> {
    Rows args;
    Kept(const Rows& a, Recording& r) : args(a) { args.strange = &r.strange; }
    const Rows& get() const { return args; }
};

namespace {

struct Op {
    const char* name;
    const char* signature;
    void (*RowsKernels::*kernel)(const Rows&);
};
#define OP(name, signature) {#name, signature, &RowsKernels::name},
constexpr Op OPS[] = {ROWS_OPS(OP)};
#undef OP

// A contiguous array of any type, looked at as the signature's letter says.
struct Flat {
    Py_buffer buffer{};
    ~Flat() {
        if (buffer.obj) PyBuffer_Release(&buffer);
    }
    void open(nb::handle object, bool writable, const char* letters, i64 size) {
        if (PyObject_GetBuffer(object.ptr(), &buffer, PyBUF_C_CONTIGUOUS | PyBUF_FORMAT | (writable ? PyBUF_WRITABLE : 0)) != 0)
            throw nb::python_error();
        check(buffer.format && std::strchr(letters, buffer.format[0]) && !buffer.format[1], "an array has the wrong dtype");
        check(reinterpret_cast<uintptr_t>(buffer.buf) % (uintptr_t)buffer.itemsize == 0, "an array is not aligned");
        check(buffer.len == size * buffer.itemsize, "an array has the wrong size");
    }
};

bool rows(const char* name, i64 rows, i64 columns, int storage, nb::tuple in, nb::tuple out, nb::tuple x, nb::tuple k) {
    const Op* op = nullptr;
    for (const Op& o : OPS)
        if (std::strcmp(o.name, name) == 0) op = &o;
    check(op && rows >= 0 && columns >= 0 && storage >= 0 && storage <= 2, "unknown op or sizes");
    int strange = 0;
    Rows job{};
    job.strange = &strange;
    job.rows = rows, job.columns = columns, job.storage = storage;
    check(x.size() <= 8 && k.size() <= 4, "too many numbers");
    for (size_t i = 0; i < x.size(); i++) job.x[i] = nb::cast<double>(x[i]);
    for (size_t i = 0; i < k.size(); i++) job.k[i] = nb::cast<i64>(k[i]);
    Flat arrays[8];
    size_t at = 0, opened = 0;
    bool writes = false;
    for (const char* s = op->signature; *s; s++) {
        if (*s == '>') {
            check(at == in.size(), "wrong number of inputs");
            writes = true, at = 0;
            continue;
        }
        const nb::tuple& from = writes ? out : in;
        check(at < from.size(), "an array is missing");
        const nb::handle object = from[at];
        const bool optional = s[1] == '?';
        void* data = nullptr;
        if (!object.is_none()) {
            const i64 all = rows * columns;
            Flat& array = arrays[opened++];
            switch (*s) {
                case 'e': array.open(object, writes, storage ? "H" : "f", all); break;
                case 'f': array.open(object, writes, "f", all); break;
                case 'b': array.open(object, writes, "?", all); break;
                case 'c': array.open(object, writes, "f", columns); break;
                case 'r': array.open(object, writes, "f", rows); break;
                case 'i': array.open(object, writes, "i", rows); break;
                case 's': array.open(object, writes, "f", job.k[0] * columns); break;
                case 'm': array.open(object, writes, "f", job.k[0] * job.k[1]); break;
                case 'a': array.open(object, writes, "f", job.k[0]); break;
                case 'h': array.open(object, writes, storage ? "H" : "f", job.k[0]); break;
                case 'o': array.open(object, writes, "lq", 1); break;
                case 'v': array.open(object, writes, "f", rows * job.k[0]); break;
                default: array.open(object, writes, "i", rows * job.k[0]);
            }
            data = array.buffer.buf;
        } else {
            check(optional, "an array is missing");
        }
        if (writes) {
            job.out[at++] = data;
        } else {
            job.in[at++] = data;
        }
        s += optional;
    }
    check(at == out.size(), "wrong number of outputs");
    run(kernels().rows->*op->kernel, job);
    return !strange;
}

void windows(nb::handle x_, nb::handle y_, nb::handle g_, nb::handle dx_, std::array<i64, 2> window, std::array<i64, 2> stride,
             std::array<i64, 2> pad, bool maximum) {
    const Array x(x_, "x"), y(y_, "y", g_.is_none()), g(g_, "g"), dx(dx_, "dx", true);
    check(x && y && x.nd == 4 && y.nd == 4 && x.contiguous() && y.contiguous(), "x and y must be contiguous, with four axes");
    const auto like = [](const Array& a, const Array& b) {
        return a.nd == 4 && a.contiguous() && std::equal(a.shape, a.shape + 4, b.shape);
    };
    check(bool(g) == bool(dx) && (!g || (like(g, y) && like(dx, x))), "g must be as y, and dx as x");
    Windows w{};
    w.batch = x.shape[0], w.channels = x.shape[3], w.x = x.data, w.y = y.data, w.g = g.data, w.dx = dx.data, w.maximum = maximum;
    check(y.shape[0] == w.batch && y.shape[3] == w.channels, "y has the wrong shape");
    for (int i = 0; i < 2; i++) {
        w.size[i] = x.shape[1 + i], w.out[i] = y.shape[1 + i];
        w.window[i] = window[i], w.stride[i] = stride[i], w.pad[i] = pad[i];
        check(window[i] > 0 && stride[i] > 0 && pad[i] >= 0 && pad[i] < window[i], "window or stride is out of range");
        check((w.out[i] - 1) * stride[i] - pad[i] < w.size[i], "y has windows outside x");
    }
    run(kernels().rows->windows, w);
}

struct View {
    Py_buffer buffer{};
    View(nb::handle object, int flags) {
        if (PyObject_GetBuffer(object.ptr(), &buffer, flags) != 0) throw nb::python_error();
    }
    ~View() { PyBuffer_Release(&buffer); }
};

void move(nb::handle x_, nb::handle y_) {
    const View x(x_, PyBUF_STRIDES), y(y_, PyBUF_STRIDES | PyBUF_WRITABLE);
    const Py_buffer &from = x.buffer, &to = y.buffer;
    const int last = from.ndim - 1;
    check(last >= 0 && last <= 8 && to.ndim == from.ndim && from.itemsize == to.itemsize, "x and y must be alike, with 1 to 9 axes");
    check(std::equal(from.shape, from.shape + from.ndim, to.shape), "x and y must have the same shape");
    const auto unit = [&](const Py_buffer& b) { return b.shape[last] < 2 || b.strides[last] == b.itemsize; };
    check(unit(from) && unit(to), "the last axis must be contiguous");
    Move m{};
    m.axes = last, m.run = from.shape[last] * from.itemsize;
    m.x = static_cast<const char*>(from.buf), m.y = static_cast<char*>(to.buf);
    std::copy(from.shape, from.shape + last, m.shape);
    std::copy(from.strides, from.strides + last, m.from);
    std::copy(to.strides, to.strides + last, m.to);
    run(kernels().rows->move, m);
}

void place(nb::handle x_, nb::handle update_, nb::handle positions_) {
    const View x(x_, PyBUF_C_CONTIGUOUS | PyBUF_WRITABLE), update(update_, PyBUF_C_CONTIGUOUS);
    const ArrayOf<int32_t> positions(positions_, "positions");
    const Py_buffer &to = x.buffer, &from = update.buffer;
    check(to.ndim >= 2 && to.ndim == from.ndim && to.itemsize == from.itemsize && to.shape[0] == from.shape[0] &&
              std::equal(to.shape + 2, to.shape + to.ndim, from.shape + 2),
          "x and update must be alike but for their rows");
    check(positions.nd == 1 && positions.shape[0] == to.shape[0] && positions.contiguous(), "there must be one position for each text");
    Place p{to.shape[0], to.shape[1], from.shape[1], to.itemsize, static_cast<char*>(to.buf), static_cast<const char*>(from.buf),
            positions.data};
    for (int i = 2; i < to.ndim; i++) p.run *= to.shape[i];
    run(kernels().rows->place, p);
}

}  // namespace

void bind_rows(nb::module_& m) {
    m.def("rows", rows, nb::arg("op"), nb::arg("rows"), nb::arg("columns"), nb::arg("storage"), nb::arg("inputs"), nb::arg("outputs"),
          nb::arg("numbers") = nb::tuple(), nb::arg("settings") = nb::tuple(),
          "Runs a kernel of csrc/rows/table.h, which says what each takes. False if it met what it has no code for.");
    m.def("move", move, nb::arg("x"), nb::arg("y"), "y[...] = x for views of one shape whose last axes are contiguous.");
    m.def("place", place, nb::arg("x"), nb::arg("update"), nb::arg("positions"),
          "x[b, positions[b] + l] = update[b, l], both contiguous; rows outside x are left out.");
    m.def("windows", windows, nb::arg("x"), nb::arg("y"), nb::arg("g").none(), nb::arg("dx").none(), nb::arg("window"), nb::arg("stride"),
          nb::arg("pad"), nb::arg("maximum"), "y = maximum or sum under each window of x; with g, dx = the gradient of the maximum.");
}

}  // namespace zoo
