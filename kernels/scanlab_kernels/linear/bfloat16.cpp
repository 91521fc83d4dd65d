// The unit for the products that AVX-512 has for bfloat16, which not every machine with AVX-512 has.
#include "cpu/kernels.h"
#include "mamba_front/kernel.h"

namespace scanlab::mixer {

extern const Products products_avx512_bfloat16;
const Products products_avx512_bfloat16 = {
    is_supported,
    SCANLAB_ISA::multiply_packed<SCANLAB_ISA::bfloat16>,
    SCANLAB_ISA::convolve_group<SCANLAB_ISA::bfloat16>,
    SCANLAB_ISA::add_shares<SCANLAB_ISA::bfloat16>,
};

}  // namespace scanlab::mixer
