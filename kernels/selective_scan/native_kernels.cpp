// One unit for each instruction set and arithmetic type: SCANLAB_ISA and SCANLAB_TYPE say which.
#include "native_backward.h"
#include "native_forward.h"

namespace scanlab {

#define SCANLAB_JOIN(isa, type) kernels_##isa##_##type
#define SCANLAB_NAME(isa, type) SCANLAB_JOIN(isa, type)
extern const Kernels SCANLAB_NAME(SCANLAB_ISA, SCANLAB_TYPE);

namespace {
using namespace SCANLAB_ISA;
using Real = SCANLAB_TYPE;

template <class Storage>
void forward_stored(const Scan& scan, const Tile& tile, Real* memory) {
    for (int d = 0; d < scan.directions; d++)
        (scan.complex ? forward<Real, Storage, 2> : forward<Real, Storage, 1>)(scan, d, tile, memory);
}

void forward_any(const Scan& scan, const Tile& tile, void* memory) {
    if constexpr (sizeof(Real) == 4) {
        if (scan.type == Type::bfloat16) return forward_stored<bfloat16>(scan, tile, static_cast<Real*>(memory));
        if (scan.type == Type::float16) return forward_stored<float16>(scan, tile, static_cast<Real*>(memory));
    }
    forward_stored<Real>(scan, tile, static_cast<Real*>(memory));
}

template <class Storage>
void back_stored(const Scan& scan, const Gradient& gradient, const Tile& tile, int d, Real* memory) {
    (scan.complex ? back<Real, Storage, 2> : back<Real, Storage, 1>)(scan, gradient, tile, d, memory);
}

void back_any(const Scan& scan, const Gradient& gradient, const Tile& tile, int d, void* memory) {
    if constexpr (sizeof(Real) == 4) {
        if (scan.type == Type::bfloat16) return back_stored<bfloat16>(scan, gradient, tile, d, static_cast<Real*>(memory));
        if (scan.type == Type::float16) return back_stored<float16>(scan, gradient, tile, d, static_cast<Real*>(memory));
    }
    back_stored<Real>(scan, gradient, tile, d, static_cast<Real*>(memory));
}

size_t forward_bytes(const Scan& scan) { return workspace_bytes<Real>(scan, false); }
size_t back_bytes(const Scan& scan) { return workspace_bytes<Real>(scan, true); }
}  // namespace

const Kernels SCANLAB_NAME(SCANLAB_ISA, SCANLAB_TYPE) = {lanes<Real>, forward_bytes, forward_any, back_bytes, back_any};

}  // namespace scanlab
