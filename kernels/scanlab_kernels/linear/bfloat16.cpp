// Products in bfloat16, one unit for AVX-512 and one for AMX; the macro SCANLAB_ISA says which. Not every machine with
// AVX-512 has the instructions of either.
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
    2,  // with AMX it takes longer to store a group's share than to compute it
#else
    4,
#endif
};

}  // namespace scanlab::mixer
