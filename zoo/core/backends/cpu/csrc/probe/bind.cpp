#include <algorithm>
#include <atomic>
#include <chrono>
#include <memory>

#include "../array.h"
#include "../dispatch.h"

namespace zoo {
namespace {

using Clock = std::chrono::steady_clock;
double since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

enum Kind { FMA, INT8, BF16, READ, COPY };
constexpr i64 BLOCK = 16384;  // floats between two looks at the clock; arithmetic: rounds / 64

struct Job {
    Kind kind;
    double seconds;
    i64 start;  // floats into each thread's part of the buffer, so that a probe finds memory that the last one left alone
    Array* buffer;
    int threads;
    std::atomic<int> arrived{0};
    std::atomic<i64> work{0};
    std::atomic<double> rate{0};
    std::atomic<float> sink{0};
};

// All threads begin together; one that does not come within 20 ms (no core is free) is not waited for.
void task(void* context, i64 index) {
    Job& job = *static_cast<Job*>(context);
    const ProbeKernels& kernel = *kernels().probe;
    const auto arithmetic = job.kind == FMA ? kernel.fma : job.kind == INT8 ? kernel.int8 : kernel.bf16;
    job.arrived++;
    for (const auto came = Clock::now(); job.arrived < job.threads && since(came) < 0.02;) {
    }
    alignas(64) float numbers[PROBE_NUMBERS];
    for (int i = 0; i < PROBE_NUMBERS; i++) numbers[i] = 0.5f + 0.001f * (float)(i + index);
    const i64 all = job.buffer->size() / (job.kind == COPY ? 2 : 1), part = all / job.threads / BLOCK * BLOCK;
    float* const mine = job.buffer->data + index * part;
    i64 at = part ? job.start / BLOCK * BLOCK % part : 0, work = 0;
    float sum = 0;
    double took;
    const auto begun = Clock::now();
    do {
        if (job.kind < READ) {
            work += arithmetic(BLOCK / 64, numbers);
        } else {
            if (job.kind == READ) sum += kernel.read(mine + at, BLOCK);
            if (job.kind == COPY) kernel.copy(mine + at, mine + all + at, BLOCK);
            work += BLOCK * (i64)sizeof(float) * (job.kind == COPY ? 2 : 1);
            at = at + BLOCK < part ? at + BLOCK : 0;
        }
        took = since(begun);
    } while (took < job.seconds);
    job.work += work;
    job.sink = sum + numbers[0];
    for (double rate = job.rate; !job.rate.compare_exchange_weak(rate, rate + (double)work / took);) {
    }
}

// Work per second on all threads: operations (fma, int8, bf16) or bytes, of copies those read and those written.
double probe(const std::string& kind, double seconds, nb::handle buffer_, i64 start) {
    static constexpr const char* KINDS[] = {"fma", "int8", "bf16", "read", "copy"};
    Array buffer(buffer_, "buffer", true);
    Job job{};
    const auto found = std::find(std::begin(KINDS), std::end(KINDS), kind);
    check(found != std::end(KINDS), "a probe is fma, int8, bf16, read or copy");
    job.kind = (Kind)(found - KINDS);
    check(seconds >= 0 && seconds <= 60 && start >= 0, "a probe takes from 0 to 60 seconds");
    job.seconds = seconds, job.start = start, job.buffer = &buffer, job.threads = threads();
    if (job.kind == INT8 || job.kind == BF16) {
        const auto has = features();
        const bool int8 = job.kind == INT8, compiled = int8 ? kernels().probe->int8 : kernels().probe->bf16;
        if (!compiled || std::find(has.begin(), has.end(), int8 ? "avx512vnni" : "avx512bf16") == has.end()) return 0;
    }
    if (job.kind >= READ) {
        check(buffer && buffer.nd == 1 && buffer.contiguous() && buffer.size() >= 2 * BLOCK * job.threads, "the buffer is too small");
        check(reinterpret_cast<uintptr_t>(buffer.data) % 64 == 0 && buffer.size() % (2 * BLOCK) == 0, "the buffer must be aligned");
    }
    nb::gil_scoped_release unlocked;
    parallel(job.threads, task, &job);
    return job.rate;
}

}  // namespace

void bind_probe(nb::module_& m) {
    m.def("probe", probe, nb::arg("kind"), nb::arg("seconds"), nb::arg("buffer").none() = nb::none(), nb::arg("start") = 0,
          "This machine's ceiling on all threads: fma, int8 and bf16 operations, or bytes that are read or copied, per second; int8 "
          "and bf16 are 0 where the processor has no such dot product. buffer: float32, 64-byte aligned, a multiple of 32768 numbers.");
}

}  // namespace zoo
