// One unit for each instruction set and arithmetic type: SCANLAB_ISA and SCANLAB_TYPE say which.
#include "native_forward.h"

namespace scanlab {

#define SCANLAB_JOIN(isa, type) kernels_##isa##_##type
#define SCANLAB_NAME(isa, type) SCANLAB_JOIN(isa, type)
extern const Kernels SCANLAB_NAME(SCANLAB_ISA, SCANLAB_TYPE);

namespace {
using namespace SCANLAB_ISA;
using Number = SCANLAB_TYPE;

void forward_of_any_storage(const Scan& scan, const Tile& tile, void* memory) {
    if constexpr (sizeof(Number) == 4) {
        if (scan.type == Type::bfloat16) return forward<Number, bfloat16>(scan, tile, memory);
        if (scan.type == Type::float16) return forward<Number, float16>(scan, tile, memory);
    }
    forward<Number, Number>(scan, tile, memory);
}
}  // namespace

const Kernels SCANLAB_NAME(SCANLAB_ISA, SCANLAB_TYPE) = {lanes<Number>, workspace_bytes<Number>, forward_of_any_storage};

}  // namespace scanlab
