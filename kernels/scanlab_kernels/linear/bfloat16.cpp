// A unit for products in bfloat16: of AVX-512 or of AMX, which not every machine with AVX-512 has; SCANLAB_ISA says
// which.
#include "cpu/kernels.h"
#include "mamba_front/kernel.h"

namespace scanlab::mixer {

#define SCANLAB_JOIN(isa) products_##isa
#define SCANLAB_PRODUCTS(isa) SCANLAB_JOIN(isa)

extern const Products SCANLAB_PRODUCTS(SCANLAB_ISA);
const Products SCANLAB_PRODUCTS(SCANLAB_ISA) = {
    is_supported,
    SCANLAB_ISA::multiply_packed<SCANLAB_ISA::bfloat16>,
    SCANLAB_ISA::convolve_group<SCANLAB_ISA::bfloat16>,
    SCANLAB_ISA::add_shares<SCANLAB_ISA::bfloat16>,
#if defined(__AMX_BF16__)
    2,  // in tiles a share takes longer to store than to multiply
#else
    4,
#endif
};

}  // namespace scanlab::mixer
