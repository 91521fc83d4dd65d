// Products in bfloat16, one unit for AVX-512 and one for AMX; the macro SCANLAB_TARGET says which. Not every machine
// with AVX-512 has the instructions of either.
#include "cpu/kernels.h"
#include "mamba_front/kernel.h"

namespace scanlab::mixer {

#define SCANLAB_JOIN(isa) products_##isa
#define SCANLAB_PRODUCTS(isa) SCANLAB_JOIN(isa)

extern const Products SCANLAB_PRODUCTS(SCANLAB_TARGET);
const Products SCANLAB_PRODUCTS(SCANLAB_TARGET) = {
    is_supported,
    SCANLAB_TARGET::multiply_packed<SCANLAB_TARGET::bfloat16>,
    SCANLAB_TARGET::convolve_group<SCANLAB_TARGET::bfloat16>,
    SCANLAB_TARGET::add_shares<SCANLAB_TARGET::bfloat16>,
#if defined(__AMX_BF16__)
    2,  // with AMX it takes longer to store a group's share than to compute it
#else
    4,
#endif
};

}  // namespace scanlab::mixer
