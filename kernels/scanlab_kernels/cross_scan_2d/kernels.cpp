// One unit for each instruction set and arithmetic type: the macros SCANLAB_TARGET and SCANLAB_TYPE say which.
#include "cross_scan_2d/kernel.h"

namespace scanlab {

#define SCANLAB_JOIN(isa, type) cross_kernel_##isa##_##type
#define SCANLAB_NAME(isa, type) SCANLAB_JOIN(isa, type)
extern const CrossKernel SCANLAB_NAME(SCANLAB_TARGET, SCANLAB_TYPE);

namespace {
using namespace SCANLAB_TARGET;
using Real = SCANLAB_TYPE;
}  // namespace

const CrossKernel SCANLAB_NAME(SCANLAB_TARGET, SCANLAB_TYPE) = {is_supported, lanes<Real>, cross_scan_workspace<Real>,
                                                                cross_scan<Real>};

}  // namespace scanlab
