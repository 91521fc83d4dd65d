// Tensors to be written, large ones in memory that was used before.
#pragma once

#include <ATen/EmptyTensor.h>
#include <ATen/ExpandUtils.h>
#include <ATen/core/Tensor.h>

#include "cpu/large_memory.h"

namespace scanlab {

// On the CPU.
inline at::Tensor empty_output(at::IntArrayRef sizes, at::IntArrayRef strides, c10::ScalarType type) {
#if defined(__linux__)
    constexpr size_t large_bytes = 512 << 10;
    if (c10::multiply_integers(sizes) * c10::elementSize(type) >= large_bytes)
        return at::Tensor(at::detail::empty_strided_generic(sizes, strides, &LargeMemory::instance(),
                                                            c10::DispatchKeySet(c10::DispatchKey::CPU), type));
#endif
    return at::Tensor(at::detail::empty_strided_cpu(sizes, strides, type));
}
inline at::Tensor empty_output(at::IntArrayRef sizes, c10::ScalarType type) { return empty_output(sizes, at::detail::defaultStrides(sizes), type); }
inline at::Tensor empty_output_like(const at::Tensor& tensor) {
    if (tensor.is_non_overlapping_and_dense()) return empty_output(tensor.sizes(), tensor.strides(), tensor.scalar_type());
    return empty_output(tensor.sizes(), at::infer_dense_strides(tensor.sizes(), tensor.strides()), tensor.scalar_type());
}

}  // namespace scanlab
