// One unit for each instruction set and arithmetic type: the macros SCANLAB_TARGET and SCANLAB_TYPE say which.
#include "selective_scan/native/backward.h"
#include "selective_scan/native/forward.h"

namespace scanlab {

#define SCANLAB_JOIN(isa, type) kernels_##isa##_##type
#define SCANLAB_NAME(isa, type) SCANLAB_JOIN(isa, type)
extern const Kernels SCANLAB_NAME(SCANLAB_TARGET, SCANLAB_TYPE);

namespace {
using namespace SCANLAB_TARGET;
using Real = SCANLAB_TYPE;

size_t forward_bytes(const Scan& scan) { return workspace_bytes<Real>(scan, false); }
size_t backward_bytes(const Scan& scan) { return workspace_bytes<Real>(scan, true); }

void forward_all(const Scan& scan, const Tile& tile, const Chunk& chunk, void* memory) {
    for (int d = 0; d < scan.directions; d++) forward<Real>(scan, d, tile, chunk, static_cast<Real*>(memory));
}
void backward_one(const Scan& scan, const Gradient& gradient, const Tile& tile, int d, void* memory) {
    backward<Real>(scan, gradient, tile, d, static_cast<Real*>(memory));
}
}  // namespace

const Kernels SCANLAB_NAME(SCANLAB_TARGET, SCANLAB_TYPE) = {is_supported, lanes<Real>,    forward_bytes,
                                                            forward_all,  backward_bytes, backward_one};

}  // namespace scanlab
