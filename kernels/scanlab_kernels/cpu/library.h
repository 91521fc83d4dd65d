// Helpers of the ops on torch's tensors: descriptions for the kernels, and outputs.
#pragma once

#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>

#include <memory>

#include "cpu/allocator.h"
#include "cpu/arguments.h"
#include "cpu/kernels.h"
#include "cpu/parallel.h"

namespace scanlab::mixer {

// The kernels of the instruction set in use, and its products of a storage type; none where this machine has none.
const Kernels& kernels_in_use();
const Products* products_in_use(at::ScalarType type);

inline bool is_wide(std::initializer_list<const Tensor*> tensors) {
    for (const Tensor* tensor : tensors)
        if (tensor->defined() && tensor->scalar_type() == at::kDouble) return true;
    return false;
}
inline at::ScalarType arithmetic(bool wide) { return wide ? at::kDouble : at::kFloat; }

// The kernels write through the pointers of outputs only.
inline Matrix matrix(const Tensor& tensor) {
    if (!tensor.defined()) return {};
    const int64_t time = tensor.dim() == 3 ? tensor.stride(2) : 0;  // a single step may lack its axis
    return {const_cast<void*>(tensor.const_data_ptr()), type_of(tensor), tensor.stride(0), tensor.stride(1), time};
}

// Outputs, of tensors with data and of those without.
inline Tensor output(c10::SymIntArrayRef sizes, const Tensor& like, at::ScalarType type) {
    if (has_data(like)) return empty_output(C10_AS_INTARRAYREF_SLOW(sizes), type);
    return at::empty_symint(sizes, like.options().dtype(type));
}
inline Tensor output(c10::SymIntArrayRef sizes, const Tensor& like) { return output(sizes, like, like.scalar_type()); }
inline Tensor output_like(const Tensor& like) {
    return has_data(like) ? empty_output_like(like) : at::empty_like(like);
}

inline Tensor nothing(const Tensor& like) { return at::empty({0}, like.options()); }

// The sum of a list of rows, in its order.
inline Tensor sum_rows(const Tensor& rows) {
    Tensor sum = rows[0].clone();
    for (int64_t i = 1; i < rows.size(0); i++) sum.add_(rows[i]);
    return sum;
}

}  // namespace scanlab::mixer
