// Thread pool: one physical core, one thread; the caller works too.
//
// A worker spins for about 50 us (a hot region starts in under 1 us), then yields for a while (so that it costs little
// when it shares its core), then sleeps (waking takes about 20 us). A pool that only spins is 100 times slower as soon as
// there are more threads than cores.
//
// The state of a region is one 64-bit word: [number of tasks:32][next task:32]. Taking a task is a compare-and-swap on it,
// so a worker that wakes late finds no task instead of an old one, and nobody has to wait for workers that never came.
// What to run may be read after a task was taken: the region cannot end before that task does. A task that throws counts as
// done; its exception (the first one) goes on in the caller when the region has ended.
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <exception>
#include <mutex>
#include <new>
#include <set>
#include <string>
#include <thread>
#include <utility>

#include "common.h"
#if defined(__APPLE__)
#include <sys/sysctl.h>
#endif

namespace zoo {
namespace {

constexpr int MAX_THREADS = 1024;
constexpr auto SPIN = std::chrono::microseconds(50);
constexpr auto YIELD = std::chrono::microseconds(500);

void relax() {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
}

struct Pool {
    alignas(64) std::atomic<uint64_t> word{0};  // in cache lines of their own: every task writes both
    alignas(64) std::atomic<i64> done{0};
    alignas(64) void (*task)(void*, i64) = nullptr;
    void* context = nullptr;
    std::mutex busy;  // held by the caller for the length of a region
    std::mutex mutex;
    std::condition_variable wake, enlist;
    std::atomic<int> asleep{0};  // those that `wake` waits for
    std::atomic<int> wanted{0};  // threads including the caller; 0: not chosen yet
    int workers = 0;             // started so far; workers with an index above wanted - 2 wait for `enlist`
    std::exception_ptr error;

    bool take(i64& index) {
        uint64_t now = word.load(std::memory_order_acquire);
        while (left(now)) {
            if (word.compare_exchange_weak(now, now + 1, std::memory_order_acq_rel, std::memory_order_acquire)) {
                index = static_cast<i64>(static_cast<uint32_t>(now));
                return true;
            }
        }
        return false;
    }

    static bool left(uint64_t w) { return static_cast<uint32_t>(w) < static_cast<uint32_t>(w >> 32); }
    bool has_task() const { return left(word.load(std::memory_order_seq_cst)); }

    bool enrolled(int id) const { return id < wanted.load(std::memory_order_relaxed) - 1; }

    void work_off() {
        i64 index;
        while (take(index)) {
            try {
                task(context, index);
            } catch (...) {
                std::lock_guard<std::mutex> lock(mutex);
                if (!error) error = std::current_exception();
            }
            done.fetch_add(1, std::memory_order_release);
        }
    }

    void work(int id) {
        for (;;) {
            const auto start = std::chrono::steady_clock::now();
            for (int turn = 0; !(enrolled(id) && has_task()); turn++) {
                relax();
                if (turn % 64 != 0) continue;  // reading the clock costs more than a pause
                const auto idle = std::chrono::steady_clock::now() - start;
                if (idle > YIELD || !enrolled(id)) {
                    sleep(id);
                    break;
                }
                if (idle > SPIN) sched_yield();
            }
            if (enrolled(id)) work_off();
        }
    }

    void sleep(int id) {
        std::unique_lock<std::mutex> lock(mutex);
        enlist.wait(lock, [&] { return enrolled(id); });
        asleep.fetch_add(1, std::memory_order_seq_cst);
        wake.wait(lock, [&] { return has_task() || !enrolled(id); });
        asleep.fetch_sub(1, std::memory_order_seq_cst);
    }

    void want(int count) {
        std::lock_guard<std::mutex> lock(mutex);
        wanted = count;
        enlist.notify_all();
        wake.notify_all();
    }

    void start(int count) {
        if (workers >= count - 1) return;
        sigset_t all, before;  // signals belong to Python's main thread
        sigfillset(&all);
        pthread_sigmask(SIG_SETMASK, &all, &before);
        for (; workers < count - 1; workers++) {
            try {
                std::thread([this, id = workers] { work(id); }).detach();
            } catch (const std::exception&) {  // the system gives no more threads: go on with those there are
                break;
            }
        }
        pthread_sigmask(SIG_SETMASK, &before, nullptr);
    }

    void run(i64 count, void (*what)(void*, i64), void* with) {
        start(wanted.load());
        task = what;
        context = with;
        done.store(0, std::memory_order_relaxed);
        word.store(static_cast<uint64_t>(count) << 32, std::memory_order_seq_cst);
        if (asleep.load(std::memory_order_seq_cst) > 0) {
            { std::lock_guard<std::mutex> lock(mutex); }  // who has looked for a task and found none is waiting by now
            const i64 sleepers = std::min<i64>(asleep.load(), count - 1);
            for (i64 i = 0; i < sleepers; i++) wake.notify_one();  // without the lock, which it would have to wait for
        }
        work_off();
        const auto start = std::chrono::steady_clock::now();
        for (int turn = 0; done.load(std::memory_order_acquire) < count; turn++) {
            relax();
            if (turn % 64 == 0 && std::chrono::steady_clock::now() - start > SPIN) sched_yield();
        }
    }

    // Every worker has left the region, or will find no task: nobody else touches `error`.
    std::exception_ptr take_error() { return std::exchange(error, nullptr); }
};

Pool* pool = nullptr;  // never destroyed: workers may outlive main()
thread_local bool inside = false;

// A forked child has none of the threads. `busy` is taken before the fork, so that no region is under way in the copy; the
// old pool is abandoned and its threads are started anew when first needed.
void before_fork() { pool->busy.lock(); }
void after_fork_in_parent() { pool->busy.unlock(); }
void after_fork_in_child() {
    const int wanted = pool->wanted.load();
    pool = new Pool;
    pool->wanted = wanted;
}

const bool created = [] {
    pool = new Pool;
    pthread_atfork(before_fork, after_fork_in_parent, after_fork_in_child);
    return true;
}();

#if defined(__linux__)
std::string read_line(const std::string& path) {
    char line[256] = "";
    if (FILE* f = fopen(path.c_str(), "r")) {
        if (!fgets(line, sizeof line, f)) line[0] = 0;
        fclose(f);
    }
    return line;
}

// Physical cores in the affinity mask (two hardware threads of one core share its multipliers), and not more than the
// container's CPU quota.
int machine_threads() {
    cpu_set_t mask;
    if (sched_getaffinity(0, sizeof mask, &mask) != 0) return static_cast<int>(sysconf(_SC_NPROCESSORS_ONLN));
    std::set<std::string> cores;
    for (int cpu = 0; cpu < CPU_SETSIZE; cpu++) {
        if (!CPU_ISSET(cpu, &mask)) continue;
        const std::string siblings =
            read_line("/sys/devices/system/cpu/cpu" + std::to_string(cpu) + "/topology/thread_siblings_list");
        cores.insert(siblings.empty() ? std::to_string(cpu) : siblings);
    }
    int count = static_cast<int>(cores.size());
    long quota, period;
    if (sscanf(read_line("/sys/fs/cgroup/cpu.max").c_str(), "%ld %ld", &quota, &period) == 2 && quota > 0 && period > 0)
        count = std::min<int>(count, static_cast<int>((quota + period - 1) / period));
    return count;
}
#else
int machine_threads() {
#if defined(__APPLE__)
    int count = 0;
    size_t size = sizeof count;  // performance cores only: an efficiency core would be waited for
    for (const char* name : {"hw.perflevel0.physicalcpu", "hw.physicalcpu"})
        if (sysctlbyname(name, &count, &size, nullptr, 0) == 0 && count > 0) return count;
#endif
    return static_cast<int>(std::thread::hardware_concurrency());
}
#endif

struct Buffer {
    float* data = nullptr;
    i64 size = 0;
    ~Buffer() { free(data); }
};

}  // namespace

int threads() {
    if (pool->wanted.load() == 0) set_threads(0);
    return pool->wanted.load();
}

void set_threads(int count) {
    if (count <= 0) count = machine_threads();
    pool->want(std::max(1, std::min(count, MAX_THREADS)));
}

void parallel(i64 count, void (*task)(void*, i64), void* context) {
    // Called from a task, or while another Python thread has the pool: that one uses the cores already, so go on alone.
    if (count > 1 && count <= INT32_MAX && !inside && threads() > 1 && pool->busy.try_lock()) {
        inside = true;
        pool->run(count, task, context);
        inside = false;
        const std::exception_ptr error = pool->take_error();
        pool->busy.unlock();
        if (error) std::rethrow_exception(error);
        return;
    }
    for (i64 i = 0; i < count; i++) task(context, i);
}

float* scratch(Slot slot, i64 floats) {
    constexpr i64 KEEP = 16 << 20;  // floats
    static thread_local Buffer buffers[SLOTS];
    Buffer& b = buffers[slot];
    if (b.size < floats || (b.size > KEEP && floats < KEEP)) {
        free(b.data);
        const i64 size = (std::max<i64>(floats, 4096) + 63) / 64 * 64;
        b.data = static_cast<float*>(aligned_alloc(64, static_cast<size_t>(size) * sizeof(float)));
        b.size = b.data ? size : 0;
        if (!b.data) throw std::bad_alloc();
    }
    return b.data;
}

}  // namespace zoo
