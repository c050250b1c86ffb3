#include "../array.h"
#include "../dispatch.h"

namespace zoo {
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

void rows(const char* name, i64 rows, i64 columns, int storage, nb::tuple in, nb::tuple out, nb::tuple x, nb::tuple k) {
    const Op* op = nullptr;
    for (const Op& o : OPS)
        if (std::strcmp(o.name, name) == 0) op = &o;
    check(op && rows >= 0 && columns >= 0 && storage >= 0 && storage <= 2, "unknown op or sizes");
    Rows job{};
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
}

}  // namespace

void bind_rows(nb::module_& m) {
    m.def("rows", rows, nb::arg("op"), nb::arg("rows"), nb::arg("columns"), nb::arg("storage"), nb::arg("inputs"), nb::arg("outputs"),
          nb::arg("numbers") = nb::tuple(), nb::arg("settings") = nb::tuple(),
          "Runs a kernel of csrc/rows/table.h, which says what each takes.");
}

}  // namespace zoo
