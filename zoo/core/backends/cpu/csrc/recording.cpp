#include "recording.h"

#include "array.h"

namespace zoo {
namespace {

thread_local Recording* current = nullptr;

// Makes the calls first .. last again. Returns whether none of them met NaN or infinity where it has no code for it.
bool replay(Recording& r, size_t first, size_t last) {
    check(first <= last && last <= r.calls.size(), "there are no such calls");
    nb::gil_scoped_release unlocked;
    r.strange = 0;
    for (size_t i = first; i < last; i++) r.calls[i]();
    return !r.strange;
}

}  // namespace

Recording* recording() { return current; }

void bind_recording(nb::module_& m) {
    nb::class_<Recording>(m, "Recording", "Calls of kernels, to be made again. Whoever replays them keeps their arrays alive.")
        .def(nb::init<>())
        .def("start", [](Recording& r) { current = &r; }, "What this thread calls is added from here on.")
        .def("stop", [](Recording& r) { if (current == &r) current = nullptr; })
        .def("__len__", [](const Recording& r) { return r.calls.size(); })
        .def("cut", [](Recording& r, size_t count) { if (count < r.calls.size()) r.calls.resize(count); }, nb::arg("count"),
             "Forgets all calls but the first so many.")
        .def("replay", replay, nb::arg("first"), nb::arg("last"), "False if a kernel met NaN or infinity that it has no code for.");
}

}  // namespace zoo
