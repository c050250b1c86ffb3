// Memory of large results, kept for the next result of about its size. A fresh array of 21 MB costs as much time in page faults as
// a kernel at memory speed takes to fill it, and malloc gives such blocks back to the system each time.
// layout     blocks of 8 sizes between powers of two, so at most an eighth is unused; from 4 MiB on in pages of 2 MiB, where the
//            system has them
// bounds     idle blocks take a sixteenth of the machine's memory at most, and with those in use no more than those in use once
//            took, or 12 MiB: to give pages of little blocks back and fault them in again would be half of the time of a small
//            network's training step. Where a result of another size would go beyond, the pages of the oldest idle blocks
//            move to it (mremap: no page is given back, faulted in and cleared again)
// The interpreter lock is held wherever a block is taken or given back, so nothing here is locked.
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <new>
#include <vector>

#include "array.h"

namespace zoo {
namespace {

constexpr size_t HUGE_PAGE = 2 << 20, LITTLE = 12 << 20;

struct Block {
    char* data;
    size_t size;
};
std::vector<Block> idle;  // the oldest first
size_t idle_bytes = 0, used_bytes = 0, most_used = 0;

size_t size_class(size_t bytes) {
    size_t step = bytes < 8 * HUGE_PAGE ? 4096 : HUGE_PAGE;
    while (step * 16 <= bytes) step *= 2;
    return (bytes + step - 1) / step * step;
}

size_t limit() {
    static const size_t found = (size_t)sysconf(_SC_PHYS_PAGES) * (size_t)sysconf(_SC_PAGESIZE) / 16;
    return found;
}

// Gives idle blocks back to the system until no more than `most` bytes are idle.
void trim(size_t most) {
    size_t gone = 0;
    for (; idle_bytes > most; gone++) {
        munmap(idle[gone].data, idle[gone].size);
        idle_bytes -= idle[gone].size;
    }
    idle.erase(idle.begin(), idle.begin() + (ptrdiff_t)gone);
}

char* map(size_t size) {
    const size_t extra = size >= 2 * HUGE_PAGE ? HUGE_PAGE : 0;  // so that a block can begin where a large page does
    char* const found = static_cast<char*>(mmap(nullptr, size + extra, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    if (found == MAP_FAILED) return nullptr;
    if (!extra) return found;
    const size_t before = (HUGE_PAGE - reinterpret_cast<uintptr_t>(found) % HUGE_PAGE) % HUGE_PAGE;
    if (before) munmap(found, before);
    if (before < extra) munmap(found + before + size, extra - before);
#if defined(MADV_HUGEPAGE)
    madvise(found + before, size, MADV_HUGEPAGE);
#endif
    return found + before;
}

bool of_huge_pages(const Block& block) { return (reinterpret_cast<uintptr_t>(block.data) | block.size) % HUGE_PAGE == 0; }

// Moves whole large pages to a mapped place; from there they are gone.
void move_pages(char* from, char* to, size_t bytes) {
#if defined(__linux__)
    if (mremap(from, bytes, bytes, MREMAP_MAYMOVE | MREMAP_FIXED, to) != MAP_FAILED) return;
    if (bytes > HUGE_PAGE) {  // a block that pages were moved to is several mappings, and older systems move only one
        const size_t half = bytes / HUGE_PAGE / 2 * HUGE_PAGE;
        move_pages(from, to, half);
        return move_pages(from + half, to + half, bytes - half);
    }
    munmap(from, bytes);  // the failure may have unmapped the place
    if (mmap(to, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == MAP_FAILED) throw std::bad_alloc();
#else
    (void)to;
    munmap(from, bytes);
#endif
}

// Lets no more than `most` bytes be idle; pages that are too many move to the block.
void refill(const Block& block, size_t most) {
    size_t filled = 0;
    for (size_t i = 0; of_huge_pages(block) && i < idle.size() && idle_bytes > most && filled < block.size;) {
        Block& from = idle[i];
        if (!of_huge_pages(from)) {
            i++;
            continue;
        }
        const size_t surplus = (idle_bytes - most + HUGE_PAGE - 1) / HUGE_PAGE * HUGE_PAGE;
        const size_t n = std::min({from.size, block.size - filled, surplus});
        move_pages(from.data, block.data + filled, n);
        filled += n, idle_bytes -= n, from.data += n, from.size -= n;
        if (from.size == 0) idle.erase(idle.begin() + (ptrdiff_t)i);
    }
    trim(most);
}

// Blocks of one owner, which go to nobody else: those of a recording, whose calls write to them again and again. What was given back
// is taken by the next of its size, so that a step of hundreds of calls lies in a few blocks, which stay in the caches.
struct Arena {
    std::vector<Block> all, free;

    Block take(size_t bytes) {
        const size_t size = (bytes + 63) / 64 * 64;
        for (size_t i = free.size(); i-- > 0;) {
            if (free[i].size != size) continue;
            const Block found = free[i];
            free.erase(free.begin() + (ptrdiff_t)i);
            return found;
        }
        all.push_back({nullptr, size});
        all.back().data = static_cast<char*>(aligned_alloc(64, std::max<size_t>(size, 64)));
        if (!all.back().data) throw std::bad_alloc();
        return all.back();
    }
    Arena() = default;
    Arena(const Arena&) = delete;
    ~Arena() {
        for (const Block& block : all) ::free(block.data);
    }
};

// Bytes that an array may lie in.
struct Memory {
    Block block{};
    nb::object owner;  // an Arena; none: all share it
    Arena* arena = nullptr;

    Memory(size_t bytes, nb::object of) : owner(std::move(of)), arena(nb::cast<Arena*>(owner)) { block = arena->take(bytes); }
    explicit Memory(size_t bytes) {
        const size_t size = size_class(bytes);
        used_bytes += size;
        if (used_bytes > most_used) most_used = used_bytes;
        for (size_t i = idle.size(); i-- > 0;) {
            if (idle[i].size != size) continue;
            block = idle[i];
            idle.erase(idle.begin() + (ptrdiff_t)i);
            idle_bytes -= size;
            return;
        }
        char* data = map(size);
        if (!data) {
            trim(0);
            data = map(size);
        }
        if (!data) {
            used_bytes -= size;
            throw std::bad_alloc();
        }
        block = {data, size};
        refill(block, std::max(most_used - used_bytes, LITTLE));
    }
    ~Memory() {
        if (arena) {
            arena->free.push_back(block);
            return;
        }
        idle.push_back(block);
        idle_bytes += block.size, used_bytes -= block.size;
        trim(limit());
    }
    Memory(const Memory&) = delete;
};

int get_buffer(PyObject* self, Py_buffer* view, int flags) {
    const Block& block = nb::inst_ptr<Memory>(self)->block;
    return PyBuffer_FillInfo(view, self, block.data, (Py_ssize_t)block.size, 0, flags);
}

}  // namespace

void bind_memory(nb::module_& m) {
    nb::set_leak_warnings(false);  // arrays may outlive the module when the interpreter ends
    static PyType_Slot slots[] = {{Py_bf_getbuffer, reinterpret_cast<void*>(get_buffer)}, {0, nullptr}};
    nb::class_<Memory>(m, "Memory", nb::type_slots(slots), "Bytes for an array, uninitialised; kept for the next one when nobody holds them.")
        .def(nb::init<size_t>(), nb::arg("bytes"))
        .def(nb::init<size_t, nb::object>(), nb::arg("bytes"), nb::arg("arena"))
        .def_prop_ro("arena", [](const Memory& memory) { return memory.arena ? memory.owner : nb::object(nb::none()); });
    nb::class_<Arena>(m, "Arena", "Memory of one owner, that nobody else is given.").def(nb::init<>());
    m.def("idle_memory", [] { return idle_bytes; }, "Bytes kept for arrays to come.");
    m.def("release_memory", [] { trim(0); }, "Gives all idle memory back to the system.");
}

}  // namespace zoo
