#include "../isa.h"
#include "table.h"

namespace zoo {
namespace {
#include "../simd.h"

#include "../stream.h"

#include "../activation.h"

#include "common.h"

#include "elementwise.h"

#include "random.h"

#include "softmax.h"

#include "norm.h"

#include "columns.h"

#include "lookup.h"

#include "window.h"

#include "move.h"
}  // namespace

extern const RowsKernels FAMILY_TABLE(rows);
#define KERNEL(name, signature) name,
constexpr RowsKernels FAMILY_TABLE(rows) = {ROWS_OPS(KERNEL) windows, move, place};
#undef KERNEL

}  // namespace zoo
