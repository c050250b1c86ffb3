#include "array.h"
#include "dispatch.h"

namespace zoo {
void bind_memory(nb::module_&);
void bind_recording(nb::module_&);
void bind_gemm(nb::module_&);
void bind_conv(nb::module_&);
void bind_attention(nb::module_&);
void bind_probe(nb::module_&);
void bind_rows(nb::module_&);
void bind_quant(nb::module_&);
void bind_tiles(nb::module_&);
}  // namespace zoo

NB_MODULE(_native, m) {
    m.def("isas", zoo::isas, "Instruction sets with kernels that this machine runs; the best one last.");
    m.def("isa", [] { return std::string(zoo::kernels().isa); }, "The instruction set in use.");
    m.def("set_isa", zoo::set_isa, nb::arg("name"));
    m.def("features", zoo::features, "Instruction sets of the processor, used by kernels or not.");
    m.def("threads", zoo::threads);
    m.def("set_threads", zoo::set_threads, nb::arg("count"), "0: one per physical core that this process may use.");
    zoo::bind_memory(m);
    zoo::bind_recording(m);
    zoo::bind_gemm(m);
    zoo::bind_conv(m);
    zoo::bind_attention(m);
    zoo::bind_probe(m);
    zoo::bind_rows(m);
    zoo::bind_quant(m);
    zoo::bind_tiles(m);
}
