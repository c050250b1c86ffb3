#include <nanobind/stl/map.h>

#include <algorithm>
#include <map>

#include "../array.h"
#include "../dispatch.h"

namespace zoo {
namespace {

// Name -> number, for who writes programs.
std::map<std::string, int> tile_codes() {
    std::map<std::string, int> codes;
#define TILE_CODE(name) codes[#name] = TILE_##name;
    TILE_CODES(TILE_CODE)
#undef TILE_CODE
    return codes;
}

// Memory of any of the types, as Python's buffer protocol gives it.
struct Memory {
    Py_buffer buffer{};
    Memory(nb::handle object, Stored type, bool writable) {
        static constexpr const char* letters[STORED_COUNT] = {"f", "H", "H", "?", "b", "B", "i"};
        if (PyObject_GetBuffer(object.ptr(), &buffer, PyBUF_STRIDES | PyBUF_FORMAT | (writable ? PyBUF_WRITABLE : 0)) != 0)
            throw nb::python_error();
        if (buffer.ndim > 8 || !buffer.format || std::strcmp(buffer.format, letters[type]) != 0 ||
            reinterpret_cast<uintptr_t>(buffer.buf) % (uintptr_t)buffer.itemsize) {
            PyBuffer_Release(&buffer);
            buffer.obj = nullptr;
            fail("an array has the wrong dtype, more than 8 axes, or is not aligned");
        }
    }
    Memory(Memory&& other) noexcept : buffer(other.buffer) { other.buffer.obj = nullptr; }
    ~Memory() {
        if (buffer.obj) PyBuffer_Release(&buffer);
    }
};

struct TileProgram {
    std::vector<TileStep> steps;
    std::vector<TileSegment> segments;
    std::vector<Stored> inputs, outputs;
    std::vector<bool> row_output;
    Tiles base{};

    // steps: six bytes each. Everything is checked here, once, so that running it touches no other memory.
    TileProgram(nb::bytes code, const std::vector<std::array<int, 3>>& parts, const std::vector<int>& in,
                const std::vector<std::array<int, 2>>& out, int registers, int row_registers, bool by_rows, bool whole) {
        check(code.size() % sizeof(TileStep) == 0 && in.size() <= TILE_INPUTS && out.size() <= TILE_OUTPUTS, "no tile program");
        check(registers >= 0 && registers <= TILE_REGISTERS && row_registers >= 0 && row_registers <= TILE_ROW_REGISTERS, "too many registers");
        check(by_rows || row_registers == 0, "row registers belong to programs by rows");
        steps.resize(code.size() / sizeof(TileStep));
        std::memcpy(steps.data(), code.data(), code.size());
        for (int type : in) check(type >= 0 && type < STORED_COUNT, "no such type"), inputs.push_back((Stored)type);
        for (auto [type, row] : out) {
            check(type >= 0 && type <= STORED_BOOL, "no such type of results");
            outputs.push_back((Stored)type), row_output.push_back(row);
        }
        int at = 0;
        for (auto [row, begin, end] : parts) {
            check(begin == at && end >= begin && end <= (int)steps.size(), "segments must follow each other");
            check(by_rows || !row, "only a program by rows has row segments");
            for (; at < end; at++) check_step(steps[at], row, registers, row_registers);
            segments.push_back({row != 0, begin, end});
        }
        base = {steps.data(), segments.data(), (int)segments.size(), registers, row_registers, by_rows, whole, {}, {}, {}, 0, {}, 0, 0};
    }
    TileProgram(const TileProgram&) = delete;

    void check_step(const TileStep& s, bool row, int registers, int row_registers) const {
        const auto is_register = [&](int k) { return k < registers; };
        const auto is_row = [&](int k) { return k >= TILE_REGISTERS && k < TILE_REGISTERS + row_registers; };
        const auto is_number = [](int k) { return k >= TILE_OPERANDS - TILE_NUMBERS && k < TILE_OPERANDS; };
        const auto here = [&](int k) { return row ? is_row(k) : is_register(k); };
        const auto to = [&](int k) { return k < (int)outputs.size() && row_output[k] == row; };
        bool good = false;
        switch (s.code) {
            case TILE_LOAD: good = here(s.out) && s.a < inputs.size(); break;
            case TILE_STORE: good = to(s.out) && (here(s.a) || is_number(s.a)); break;
            case TILE_SPREAD: good = !row && is_register(s.out) && is_row(s.a); break;
            case TILE_SUM:
            case TILE_MAX:
            case TILE_MIN: good = !row && is_row(s.out) && (is_register(s.a) || is_number(s.a)); break;
            default:
                good = s.code < TILE_LOAD && here(s.out) && (!s.store || to(s.store - 1));
                for (int k : {s.a, s.b, s.c}) good = good && (here(k) || is_number(k));
        }
        check(good, "a step of the tile program is wrong");
    }

    void run(const nb::list& in, const nb::list& out, const nb::list& numbers, const std::vector<i64>& shape) {
        check(in.size() == inputs.size() && out.size() == outputs.size() && numbers.size() <= TILE_NUMBERS && shape.size() <= 8,
              "the arguments do not fit the program");
        Tiles t = base;
        for (size_t i = 0; i < numbers.size(); i++) t.number[i] = (float)nb::cast<double>(numbers[i]);
        const int nd = (int)shape.size();
        i64 size = 1;
        for (i64 n : shape) check(n > 0, "the space is empty"), size *= n;
        const i64 last = nd ? shape[nd - 1] : 1;
        std::vector<Memory> held;
        held.reserve(inputs.size() + outputs.size());
        i64 stride[TILE_INPUTS][8];
        for (size_t i = 0; i < inputs.size(); i++) {
            const Py_buffer& b = held.emplace_back(in[i], inputs[i], false).buffer;
            t.input[i].data = static_cast<const char*>(b.buf), t.input[i].type = inputs[i];
            const int missing = nd - b.ndim;
            check(missing >= 0, "an input has more axes than the space");
            for (int k = 0; k < nd; k++) {
                stride[i][k] = 0;
                if (k < missing || b.shape[k - missing] == 1) continue;
                check(b.shape[k - missing] == shape[k] && b.strides[k - missing] % b.itemsize == 0, "an input does not fit the space");
                stride[i][k] = b.strides[k - missing] / b.itemsize;
            }
        }
        for (size_t i = 0; i < outputs.size(); i++) {
            const Py_buffer& b = held.emplace_back(out[i], outputs[i], true).buffer;
            check(PyBuffer_IsContiguous(&b, 'C') && b.len / b.itemsize == (row_output[i] ? size / last : size), "an output has the wrong size");
            t.output[i] = {static_cast<char*>(b.buf), outputs[i], (bool)row_output[i]};
        }
        collapse(t, shape, stride);
        nb::gil_scoped_release unlocked;
        kernels().tiles->run(t);
    }

    // Axes that all inputs walk through as through one become one; the last axis is the columns, kept as it is if the program
    // works by rows.
    void collapse(Tiles& t, const std::vector<i64>& shape, i64 (&stride)[TILE_INPUTS][8]) const {
        const int count = (int)inputs.size();
        int axes = 0;  // of the collapsed shape, in t.size
        for (int k = 0; k < (int)shape.size(); k++) {
            const bool last = k + 1 == (int)shape.size();
            if (shape[k] == 1 && !(last && t.by_rows)) continue;
            bool joins = axes > 0 && !(last && t.by_rows);
            for (int i = 0; i < count && joins; i++) joins = stride[i][axes - 1] == stride[i][k] * shape[k];
            if (!joins) t.size[axes++] = 1;
            t.size[axes - 1] *= shape[k];
            for (int i = 0; i < count; i++) stride[i][axes - 1] = stride[i][k];
        }
        const bool any = axes > 0;
        t.columns = any ? t.size[axes - 1] : 1;
        t.axes = any ? axes - 1 : 0;
        t.rows = 1;
        for (int k = 0; k < t.axes; k++) t.rows *= t.size[k];
        for (int i = 0; i < count; i++) {
            TileInput& x = t.input[i];
            x.column = any ? stride[i][axes - 1] : 0;
            std::copy(stride[i], stride[i] + t.axes, x.stride);
            i64 expected = 1;
            x.dense = true;
            for (int k = axes - 1; k >= 0; expected *= t.size[k--]) x.dense = x.dense && (t.size[k] == 1 || stride[i][k] == expected);
            x.dense = x.dense && t.rows * t.columns > 1;
        }
        check(!t.whole || t.columns <= TILE_WHOLE_FLOATS, "a row is too long for a tile");
    }
};

}  // namespace

void bind_tiles(nb::module_& m) {
    m.def("tile_codes", tile_codes);
    m.attr("TILE_WHOLE") = (i64)TILE_WHOLE_FLOATS;
    nb::class_<TileProgram>(m, "TileProgram")
        .def(nb::init<nb::bytes, const std::vector<std::array<int, 3>>&, const std::vector<int>&, const std::vector<std::array<int, 2>>&, int, int, bool, bool>(),
             nb::arg("steps"), nb::arg("segments"), nb::arg("inputs"), nb::arg("outputs"), nb::arg("registers"), nb::arg("row_registers"),
             nb::arg("by_rows"), nb::arg("whole"))
        .def("run", &TileProgram::run, nb::arg("inputs"), nb::arg("outputs"), nb::arg("numbers"), nb::arg("shape"));
}

}  // namespace zoo
