#include "../isa.h"
#include "table.h"

namespace zoo {
namespace {
#include "../simd.h"

#include "../activation.h"

#include "functions.h"

#include "tiles.h"
}  // namespace

extern const TileKernels FAMILY_TABLE(tiles);
constexpr TileKernels FAMILY_TABLE(tiles) = {run};

}  // namespace zoo
