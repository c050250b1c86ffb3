// Runs the blocks of a kernel, one after the other. Each thread of a block is a fiber with a stack of its own; exactly one
// runs at a time, until it comes to a barrier, to something its warp does together, or to its end. Which one runs next is
// drawn at random (and the same in every run): results that hang on an order that CUDA does not promise come out wrong.
//
// Compiled once into a library that the kernels' own libraries find their barriers in.

#include <csetjmp>
#include <cstdarg>
#include <csignal>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <sys/mman.h>
#include <ucontext.h>
#include <unistd.h>
#if defined(__SSE__)
#include <xmmintrin.h>
#endif

struct Index {
    unsigned x, y, z;
};

extern "C" {
Index threadIdx, blockIdx, blockDim, gridDim;
}

namespace {

constexpr int MOST = 1024;                // threads of a block
constexpr size_t STACK = 128 << 10;       // bytes of a fiber, the lowest page a guard
constexpr size_t PAGE = 4096;
constexpr size_t ARENA = 256 << 10;       // shared memory and its gaps
constexpr size_t GAP = 64;
constexpr size_t STATIC_LIMIT = 48 << 10;  // beyond, shared memory has to be dynamic

enum State : uint8_t { READY, BARRIER, WARP, DONE };

struct Payload {  // what a lane brings to what its warp does together
    uint32_t a[4], b[2], d[4];
    const void *row;
    int source;
};

struct Warp {
    int arrived;
    int kind, detail;  // of the operation, and what all lanes must agree on
    Payload in[32];
    uint32_t out[32][4];
};

struct Place {
    const char *file;
    int line;
};

struct Copy {
    void *to;
    const void *from;
    int valid, group;
};

struct Fiber {
    sigjmp_buf here;
    ucontext_t context;
    bool made;
    State state;
    Place at;
    Copy copies[256];
    int copied, groups;
};

struct Region {  // of global memory: lies between guards
    const char *from, *to;
};

Fiber *fibers;
char *stacks;
Warp warps[MOST / 32];
int ready[MOST], ready_count, current, threads, waiting, done;
jmp_buf scheduler;
sigjmp_buf failed;
char *message;
int message_size;
char *arena;
size_t dynamic_bytes, shared_used, shared_static, shared_limit;
const void *sites[64];
size_t site_at[64];
int site_count;
void (*kernel)(void **);
void **arguments;
Region regions[64];
int region_count;
uint64_t chance;

uint32_t draw() {
    chance ^= chance << 13;
    chance ^= chance >> 7;
    chance ^= chance << 17;
    return uint32_t(chance >> 32);
}

[[noreturn]] void fail(const char *format, ...) {
    va_list rest;
    va_start(rest, format);
    int n = vsnprintf(message, message_size, format, rest);
    va_end(rest);
    if (current >= 0 && n < message_size)
        snprintf(message + n, message_size - n, "\nblock (%u, %u, %u), thread (%u, %u, %u)", blockIdx.x, blockIdx.y,
                 blockIdx.z, threadIdx.x, threadIdx.y, threadIdx.z);
    siglongjmp(failed, 1);
}

void wake(int fiber) {
    fibers[fiber].state = READY;
    ready[ready_count++] = fiber;
}

Index index_of(int thread) {
    return {thread % blockDim.x, thread / blockDim.x % blockDim.y, thread / (blockDim.x * blockDim.y)};
}

// Leaves this fiber until somebody wakes it.
void leave(State state) {
    Fiber &f = fibers[current];
    f.state = state;
    if (!_setjmp(f.here)) _longjmp(scheduler, 1);
}

void run_fiber() {
    for (;;) {
        kernel(arguments);
        Fiber &f = fibers[current];
        if (f.copied) fail("a thread ended before its cp.async had arrived");
        done++;
        leave(DONE);
    }
}

void resume(int thread) {
    current = thread;
    threadIdx = index_of(thread);
    Fiber &f = fibers[thread];
    if (_setjmp(scheduler)) return;
    if (f.made) _longjmp(f.here, 1);
    char *stack = stacks + thread * STACK;
    mprotect(stack, PAGE, PROT_NONE);
    getcontext(&f.context);
    f.context.uc_stack.ss_sp = stack + PAGE;
    f.context.uc_stack.ss_size = STACK - PAGE;
    f.context.uc_link = nullptr;
    makecontext(&f.context, run_fiber, 0);
    f.made = true;
    setcontext(&f.context);
}

// All lanes of a warp come here with the same operation; the last one does it for all.
template <typename Operation> void together(int kind, int detail, const char *file, int line, Operation operation) {
    Warp &warp = warps[current / 32];
    if (current / 32 * 32 + 32 > threads) fail("a warp of fewer than 32 threads shuffles, votes or multiplies (%s:%d)", file, line);
    if (warp.arrived == 0) {
        warp.kind = kind;
        warp.detail = detail;
    } else if (warp.kind != kind || warp.detail != detail) {
        fail("lanes of one warp meet in different places, one of them %s:%d", file, line);
    }
    fibers[current].at = {file, line};
    if (++warp.arrived < 32) return leave(WARP);
    operation(warp);
    warp.arrived = 0;
    int first = current / 32 * 32;
    for (int lane = 0; lane < 32; lane++)
        if (first + lane != current) wake(first + lane);
}

void need_all(unsigned mask, const char *file, int line) {
    if (mask != ~0u) fail("a warp's operation with the mask %08x: here all lanes take part (%s:%d)", mask, file, line);
}

bool within_shared(const void *p, size_t bytes) {
    const char *c = static_cast<const char *>(p);
    return c >= arena && c + bytes <= arena + ARENA;
}

void arrive(Fiber &f, int groups_left) {
    int kept = 0;
    for (int i = 0; i < f.copied; i++) {
        const Copy &c = f.copies[i];
        if (c.group < f.groups - groups_left)
            c.valid ? memcpy(c.to, c.from, 16) : memset(c.to, 0, 16);
        else
            f.copies[kept++] = c;
    }
    f.copied = kept;
}

void on_fault(int signal, siginfo_t *info, void *) {
    if (signal == SIGFPE) fail("divides an integer by zero");
    const char *p = static_cast<const char *>(info->si_addr);
    for (int i = 0; i < region_count; i++) {
        const Region &r = regions[i];
        if (p >= r.to && p < r.to + 2 * PAGE) fail("reads or writes %ld bytes beyond the end of argument %d", long(p - r.to) + 1, i);
        if (p < r.from && p >= r.from - 2 * PAGE) fail("reads or writes %ld bytes before the start of argument %d", long(r.from - p), i);
    }
    if (p >= stacks && p < stacks + MOST * STACK) fail("needs more than %zu bytes of stack", STACK - PAGE);
    if (p >= arena + ARENA && p < arena + ARENA + PAGE) fail("reads or writes beyond shared memory");
    fail("reads or writes memory that is none of its arguments (address %p)", static_cast<const void *>(p));
}

void look_at_gap(size_t at, const char *after) {
    for (size_t i = 0; i < GAP; i++)
        if (uint8_t(arena[at + i]) != 0xff) fail("writes %zu bytes beyond the end of %s", i + 1, after);
}

size_t rounded(size_t n) { return (n + 15) / 16 * 16; }

void run_block(uint64_t seed) {
    chance = seed * 0x9e3779b97f4a7c15u | 1;
    for (int i = 0; i < 4; i++) draw();
    memset(arena, 0xff, ARENA);
    site_count = 0;
    shared_used = dynamic_bytes ? rounded(dynamic_bytes) + GAP : 0;
    shared_static = 0;
    ready_count = waiting = done = 0;
    for (int w = 0; w * 32 < threads; w++) warps[w].arrived = 0;
    for (int i = 0; i < threads; i++) {
        fibers[i].copied = fibers[i].groups = 0;
        wake(i);
    }
    for (;;) {
        while (ready_count) {
            int chosen = draw() % ready_count, thread = ready[chosen];
            ready[chosen] = ready[--ready_count];
            resume(thread);
        }
        current = -1;
        if (done == threads) break;
        int stuck = 0;
        while (fibers[stuck].state == DONE) stuck++;
        Index t = index_of(stuck);
        Place at = fibers[stuck].at;
        if (waiting < threads - done)
            for (int i = stuck; i < threads; i++)
                if (fibers[i].state == WARP) {
                    t = index_of(i);
                    at = fibers[i].at;
                    fail("%s:%d: thread (%u, %u, %u) waits for lanes of its warp that do not come", at.file, at.line, t.x, t.y, t.z);
                }
        if (done)
            fail("%s:%d: thread (%u, %u, %u) waits at __syncthreads, which %d of %d threads never reach: they have ended",
                 at.file, at.line, t.x, t.y, t.z, done, threads);
        for (int i = 0; i < threads; i++)
            if (fibers[i].at.line != at.line || strcmp(fibers[i].at.file, at.file))
                fail("threads of one block wait at different __syncthreads: %s:%d and %s:%d", at.file, at.line,
                     fibers[i].at.file, fibers[i].at.line);
        waiting = 0;
        for (int i = 0; i < threads; i++) wake(i);
    }
    if (dynamic_bytes) look_at_gap(rounded(dynamic_bytes), "dynamic shared memory");
    for (int i = 0; i < site_count; i++) look_at_gap(site_at[i], "an array in shared memory");
}

}  // namespace

#include "collectives.h"

extern "C" {

unsigned emulated_lane() { return current % 32; }

void emulated_fail(const char *what) { fail("%s", what); }

void emulated_syncthreads(const char *file, int line) {
    fibers[current].at = {file, line};
    waiting++;
    leave(BARRIER);
}

void emulated_cp_async16(void *shared, const void *global, int valid) {
    if (!within_shared(shared, 16) || reinterpret_cast<uintptr_t>(shared) % 16)
        fail("cp.async to %p, which is not 16 bytes of shared memory on a multiple of 16", shared);
    if (valid && reinterpret_cast<uintptr_t>(global) % 16) fail("cp.async from %p, which is not a multiple of 16", global);
    if (valid) (void)*static_cast<const volatile char *>(global), (void)static_cast<const volatile char *>(global)[15];
    Fiber &f = fibers[current];
    if (draw() % 2) {
        valid ? memcpy(shared, global, 16) : memset(shared, 0, 16);
        return;
    }
    if (f.copied == 256) fail("more than 256 copies by cp.async are on their way");
    f.copies[f.copied++] = {shared, global, valid, f.groups};
}

void emulated_cp_async_commit() { fibers[current].groups++; }

void emulated_cp_async_wait(int pending) { arrive(fibers[current], pending); }

void *emulated_dynamic_shared() {
    if (!dynamic_bytes) fail("dynamic shared memory is used; the launch gave none (shared=)");
    return arena;
}

void *emulated_shared(const void *site, size_t bytes) {
    for (int i = 0; i < site_count; i++)
        if (sites[i] == site) return arena + site_at[i] - rounded(bytes);
    shared_static += rounded(bytes);
    if (shared_static > STATIC_LIMIT) fail("%zu bytes of static shared memory; a block has %zu", shared_static, STATIC_LIMIT);
    if (shared_static + dynamic_bytes > shared_limit)
        fail("%zu bytes of shared memory; a block has %zu", shared_static + dynamic_bytes, shared_limit);
    if (site_count == 64) fail("more than 64 arrays in shared memory");
    char *at = arena + shared_used;
    shared_used += rounded(bytes) + GAP;
    if (shared_used > ARENA) fail("%zu bytes of shared memory", shared_used);
    sites[site_count] = site;
    site_at[site_count++] = size_t(at - arena) + rounded(bytes);
    return at;
}

// Memory whose last byte lies just before a page that cannot be read, and whose first page has one before it too.
char *emulated_guarded(size_t pages) {
    char *p = static_cast<char *>(mmap(nullptr, (pages + 2) * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    if (p == MAP_FAILED || mprotect(p + PAGE, pages * PAGE, PROT_READ | PROT_WRITE)) return nullptr;
    return p + PAGE;
}

void emulated_unguard(char *p, size_t pages) { munmap(p - PAGE, (pages + 2) * PAGE); }

// 0, or 1 with what went wrong in `text`. bounds: first byte and end of the memory of each argument.
int emulated_launch(void (*call)(void **), void **values, const unsigned *grid, const unsigned *block, size_t shared,
                    size_t limit, uint64_t seed, char *const *bounds, int bounds_count, char *text, int size) {
    if (!fibers) {
        auto map = [](size_t bytes) {
            return static_cast<char *>(mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
        };
        fibers = reinterpret_cast<Fiber *>(map(MOST * sizeof(Fiber)));
        stacks = map(MOST * STACK);
        arena = map(ARENA + PAGE);
        mprotect(arena + ARENA, PAGE, PROT_NONE);
    }
    kernel = call;
    arguments = values;
    message = text;
    message_size = size;
    gridDim = {grid[0], grid[1], grid[2]};
    blockDim = {block[0], block[1], block[2]};
    threads = block[0] * block[1] * block[2];
    dynamic_bytes = shared;
    shared_limit = limit;
    region_count = bounds_count < 64 ? bounds_count : 64;
    for (int i = 0; i < region_count; i++) regions[i] = {bounds[2 * i], bounds[2 * i + 1]};

    stack_t own{}, before_stack;
    static char *handler_stack = static_cast<char *>(malloc(64 << 10));
    own.ss_sp = handler_stack;
    own.ss_size = 64 << 10;
    sigaltstack(&own, &before_stack);
    struct sigaction action{}, before_segv, before_bus, before_fpe;
    action.sa_sigaction = on_fault;
    action.sa_flags = SA_SIGINFO | SA_ONSTACK;
    sigaction(SIGSEGV, &action, &before_segv);
    sigaction(SIGBUS, &action, &before_bus);
    sigaction(SIGFPE, &action, &before_fpe);
#if defined(__SSE__)
    unsigned floats = _mm_getcsr();
    _mm_setcsr(floats | 0x8040);  // as -ftz=true: no subnormal numbers
#endif
    volatile int wrong = 0;
    current = -1;
    if (sigsetjmp(failed, 1)) {
        wrong = 1;
        for (int i = 0; i < MOST; i++) fibers[i].made = false;
    } else {
        // Blocks in an order that hops about: none may wait for what an earlier one wrote.
        uint64_t blocks = uint64_t(grid[0]) * grid[1] * grid[2], step = blocks / 2 + 1;
        auto common = [](uint64_t a, uint64_t b) {
            while (b) {
                uint64_t r = a % b;
                a = b;
                b = r;
            }
            return a;
        };
        while (common(step, blocks) != 1) step++;
        for (uint64_t i = 0, b = seed % blocks; i < blocks; i++, b = (b + step) % blocks) {
            blockIdx = {unsigned(b % grid[0]), unsigned(b / grid[0] % grid[1]), unsigned(b / (uint64_t(grid[0]) * grid[1]))};
            run_block(seed * 1000003 + b + 1);
        }
    }
#if defined(__SSE__)
    _mm_setcsr(floats);
#endif
    sigaction(SIGSEGV, &before_segv, nullptr);
    sigaction(SIGBUS, &before_bus, nullptr);
    sigaction(SIGFPE, &before_fpe, nullptr);
    sigaltstack(&before_stack, nullptr);
    return wrong;
}
}
