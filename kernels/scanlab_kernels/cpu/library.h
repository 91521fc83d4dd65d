// Helpers of the ops on torch's tensors: descriptions for the kernels, and outputs.
#pragma once

#include <memory>

#include "cpu/binding.h"
#include "cpu/checks.h"
#include "cpu/kernels.h"
#include "cpu/outputs.h"
#include "cpu/parallel.h"

namespace scanlab::mixer {

// The kernels of the instruction set in use, and its products of a dtype; none where this machine has none.
const Kernels& kernels_in_use();
const Products* products_in_use(Dtype dtype);

inline bool is_wide(std::initializer_list<const Tensor*> tensors) {
    for (const Tensor* tensor : tensors)
        if (*tensor && tensor->dtype() == Dtype::float64) return true;
    return false;
}
inline Dtype arithmetic(bool wide) { return wide ? Dtype::float64 : Dtype::float32; }

inline Matrix matrix(const Tensor& tensor) {
    if (!tensor) return {};
    const Shape strides = tensor.strides();
    const int64_t time = strides.size() == 3 ? strides[2] : 0;  // a single step may lack its axis
    return {tensor.data(), type_of(tensor), strides[0], strides[1], time};
}

// In place of an output that was not asked for.
inline Tensor nothing(const Tensor& like) { return empty_output({0}, like.dtype()); }

// (..., columns) as rows of adjacent elements: a copy where they do not lie like that.
inline Tensor rows_of(const Tensor& tensor) {
    const Shape sizes = tensor.sizes(), strides = tensor.strides();
    const int64_t columns = sizes.back(), count = columns ? tensor.numel() / columns : 0;
    int64_t row = columns, rows = 1;
    bool is_view = columns <= 1 || strides.back() == 1;
    for (size_t axis = sizes.size() - 1; axis-- > 0;) {
        if (sizes[axis] == 1) continue;
        if (rows == 1) row = strides[axis];
        is_view &= strides[axis] == row * rows;
        rows *= sizes[axis];
    }
    if (is_view || count == 0) return tensor.strided({count, columns}, {row, 1});
    return dense(tensor, tensor.dtype()).strided({count, columns}, {columns, 1});
}

// Adds all rows of (rows, ...) to the first one, in their order, and returns that.
inline Tensor sum_rows(const Tensor& rows) {
    const auto add_up = [&]<class T>(T* sum) {
        const int64_t size = numel(rows.sizes().subspan(1));  // 0 where the stride is not
        for (int64_t row = 1; row < rows.size(0); row++)
            for (int64_t i = 0; i < size; i++) sum[i] += sum[row * size + i];
    };
    if (rows.dtype() == Dtype::float64) add_up(rows.data<double>());
    else add_up(rows.data<float>());
    return rows.strided(rows.sizes().subspan(1), rows.strides().subspan(1));
}

// Tells autograd that `state` is about to change. torch has no call for that alone: this one exchanges an axis with
// itself.
inline void note_change(const Tensor& state) {
    StableIValue stack[] = {given(state), 0, 0};
    require<std::runtime_error>(aoti_torch_call_dispatcher("aten::transpose_", "", stack) == 0,
                                "the state cannot be changed in place here, as torch logged");
    Argument<Tensor>::take(stack[0]);
}

}  // namespace scanlab::mixer
