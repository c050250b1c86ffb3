// Which instruction set is used: the best one that was compiled in, that the processor has (CPUID) and whose registers the
// operating system saves (XGETBV); a processor flag alone does not promise the latter.
#include "dispatch.h"

#include <atomic>
#include <stdexcept>
#if defined(__x86_64__)
#include <cpuid.h>
#endif

namespace zoo {
#define DECLARE(isa)                      \
    extern const GemmKernels gemm_##isa;  \
    extern const ConvKernels conv_##isa;  \
    extern const AttentionKernels attention_##isa; \
    extern const ProbeKernels probe_##isa; \
    extern const RowsKernels rows_##isa; \
    extern const QuantKernels quant_##isa; \
    extern const TileKernels tiles_##isa; \
    static constexpr KernelTable table_##isa = {#isa, &gemm_##isa, &conv_##isa, &attention_##isa, &probe_##isa, &rows_##isa, &quant_##isa, &tiles_##isa};
#if defined(__x86_64__)
DECLARE(baseline)
DECLARE(avx2)
DECLARE(avx512)
// only integer products know VNNI; the other families are those of AVX-512
extern const QuantKernels quant_avx512vnni;
static constexpr KernelTable with_vnni(KernelTable t) {
    t.isa = "avx512vnni", t.quant = &quant_avx512vnni;
    return t;
}
static constexpr KernelTable table_avx512vnni = with_vnni(table_avx512);
// float products, convolutions and attention know dot products of bfloat16
extern const GemmKernels gemm_avx512bf16;
extern const ConvKernels conv_avx512bf16;
extern const AttentionKernels attention_avx512bf16;
static constexpr KernelTable with_bf16(KernelTable t) {
    t.isa = "avx512bf16", t.gemm = &gemm_avx512bf16, t.conv = &conv_avx512bf16, t.attention = &attention_avx512bf16;
    return t;
}
static constexpr KernelTable table_avx512bf16 = with_bf16(table_avx512vnni);
#elif defined(__aarch64__)
DECLARE(neon)
#else
DECLARE(baseline)
#endif

namespace {

#if defined(__x86_64__)
struct Cpu {
    bool avx2 = false, avx512 = false, vnni = false, bf16 = false;
    Cpu() {
        unsigned a, b, c, d;
        constexpr unsigned BASIC = bit_OSXSAVE | bit_AVX | bit_FMA | bit_F16C;
        if (!__get_cpuid(1, &a, &b, &c, &d) || (c & BASIC) != BASIC) return;
        unsigned low, high;
        asm("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
        constexpr unsigned YMM = 0x06, ZMM = 0xE6;  // SSE and AVX state; with opmask and both halves of the ZMM state
        if ((low & YMM) != YMM || !__get_cpuid_count(7, 0, &a, &b, &c, &d)) return;
        avx2 = b & bit_AVX2;
        constexpr unsigned NEEDED = bit_AVX512F | bit_AVX512BW | bit_AVX512DQ | bit_AVX512VL;
        avx512 = avx2 && (low & ZMM) == ZMM && (b & NEEDED) == NEEDED;
        vnni = avx512 && (c & bit_AVX512VNNI);
        if (__get_cpuid_count(7, 1, &a, &b, &c, &d)) bf16 = avx512 && (a & (1u << 5));
    }
};
const Cpu& cpu() {
    static const Cpu found;
    return found;
}
#endif

const std::vector<const KernelTable*>& tables() {  // worst first
    static const std::vector<const KernelTable*> found = [] {
        std::vector<const KernelTable*> t;
#if defined(__x86_64__)
        t.push_back(&table_baseline);
        if (cpu().avx2) t.push_back(&table_avx2);
        if (cpu().avx512) t.push_back(&table_avx512);
        if (cpu().vnni) t.push_back(&table_avx512vnni);
        if (cpu().vnni && cpu().bf16) t.push_back(&table_avx512bf16);
#elif defined(__aarch64__)
        t.push_back(&table_neon);
#else
        t.push_back(&table_baseline);
#endif
        return t;
    }();
    return found;
}

std::atomic<const KernelTable*> chosen{nullptr};

}  // namespace

std::vector<std::string> isas() {
    std::vector<std::string> names;
    for (const KernelTable* t : tables()) names.push_back(t->isa);
    return names;
}

std::vector<std::string> features() {
    std::vector<std::string> names;
#if defined(__x86_64__)
    if (cpu().avx2) names.push_back("avx2");
    if (cpu().avx512) names.push_back("avx512");
    if (cpu().vnni) names.push_back("avx512vnni");
    if (cpu().bf16) names.push_back("avx512bf16");
#elif defined(__aarch64__)
    names.push_back("neon");
#endif
    return names;
}

void set_isa(const std::string& name) {
    for (const KernelTable* t : tables()) {
        if (name == t->isa) {
            chosen = t;
            return;
        }
    }
    std::string known;
    for (const std::string& n : isas()) known += (known.empty() ? "" : ", ") + n;
    throw std::invalid_argument("no kernels for instruction set '" + name + "' on this machine; there are: " + known);
}

const KernelTable& kernels() {
    if (const KernelTable* t = chosen) return *t;
    chosen = tables().back();
    return *chosen;
}

i64 packed_columns(i64 N) {
    const int nr = kernels().gemm->nr;
    return (N + nr - 1) / nr * nr;
}

}  // namespace zoo
