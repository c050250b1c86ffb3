#pragma once
#include <string>
#include <vector>

#include "attention/table.h"
#include "conv/table.h"
#include "gemm/table.h"
#include "probe/table.h"
#include "quant/table.h"
#include "rows/table.h"
#include "tiles/table.h"

namespace zoo {

// Everything that was compiled for one instruction set.
struct KernelTable {
    const char* isa;
    const GemmKernels* gemm;
    const ConvKernels* conv;
    const AttentionKernels* attention;
    const ProbeKernels* probe;
    const RowsKernels* rows;
    const QuantKernels* quant;
    const TileKernels* tiles;
};

const KernelTable& kernels();         // those in use
i64 packed_columns(i64 N);           // N rounded up to whole panels of the GEMM
std::vector<std::string> isas();      // that kernels exist for, and this machine runs; the best one last
std::vector<std::string> features();  // of the processor, whether kernels use them or not
void set_isa(const std::string& name);

}  // namespace zoo
