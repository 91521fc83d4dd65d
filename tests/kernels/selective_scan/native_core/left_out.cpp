// Tables without kernels, for an instruction set that a build leaves out; the macro SCANLAB_TARGET says which.
#include "selective_scan/native/scan.h"

namespace scanlab {

#define SCANLAB_JOIN(isa, type) kernels_##isa##_##type
#define SCANLAB_NAME(isa, type) SCANLAB_JOIN(isa, type)
extern const Kernels SCANLAB_NAME(SCANLAB_TARGET, float), SCANLAB_NAME(SCANLAB_TARGET, double);

namespace {
constexpr Kernels none = {[] { return false; }, 1, nullptr, nullptr, nullptr, nullptr};
}  // namespace

const Kernels SCANLAB_NAME(SCANLAB_TARGET, float) = none, SCANLAB_NAME(SCANLAB_TARGET, double) = none;

}  // namespace scanlab
