// The one place where tensors are checked before a kernel sees their memory: device, layout, dtype, shape, overlap.
//
// The Python functions explain faults of arguments to users; here only those that would touch foreign memory, or leave
// a state half written, is refused.
#pragma once

#include <numeric>
#include <vector>

#include "cpu/outputs.h"
#include "cpu/tensor.h"
#include "cpu/types.h"

namespace scanlab {

inline Type type_of(const Tensor& tensor) {
    const Dtype dtype = tensor.dtype();
    switch (dtype) {
        case Dtype::float32: return Type::float32;
        case Dtype::float64: return Type::float64;
        case Dtype::bfloat16: return Type::bfloat16;
        case Dtype::float16: return Type::float16;
        default: throw std::invalid_argument(text_of(dtype) + ": must be float32, float64, bfloat16 or float16");
    }
}

// Raises unless the tensor lies in the memory of this process, element by element. Tensors of a trace say that they are
// on the CPU and have no address.
inline void expect_memory(const char* name, const Tensor& tensor) {
    require(tensor && tensor.is_cpu() && tensor.is_strided() && (tensor.data() || tensor.numel() == 0), name,
            ": must be a strided tensor on the CPU, with data");
    require(tensor.numel() == 0 || tensor.reach_bytes() <= tensor.storage_bytes(), name, " reaches beyond the ",
            tensor.storage_bytes(), " bytes of its memory, which was freed or resized: pass a copy made before");
}
inline void expect_shape(const char* name, const Tensor& tensor, Shape shape) {
    expect_memory(name, tensor);
    const Shape sizes = tensor.sizes();
    require(sizes == shape, name, " ", sizes, ": must be ", shape);
}
// Of any floating type.
inline void expect(const char* name, const Tensor& tensor, Shape shape) {
    expect_shape(name, tensor, shape);
    type_of(tensor);
}
inline void expect(const char* name, const Tensor& tensor, Shape shape, Dtype dtype) {
    expect_shape(name, tensor, shape);
    require(tensor.dtype() == dtype, name, " is ", tensor.dtype(), ": must be ", dtype);
}

// A contiguous copy in `dtype`, or the tensor itself where it is one.
inline Tensor dense(const Tensor& tensor, Dtype dtype) {
    if (!tensor || (tensor.dtype() == dtype && tensor.is_contiguous())) return tensor;
    const Tensor copy = empty_output(tensor.sizes(), dtype);
    copy.copy_from(tensor);
    return copy;
}
inline Tensor dense(const char* name, const Tensor& tensor, Shape shape, Dtype dtype) {
    if (tensor) expect(name, tensor, shape);
    return dense(tensor, dtype);
}

// Indices one after the other in memory; `kept` holds them.
inline const int32_t* indices(const char* name, const Tensor& tensor, int64_t count, Tensor& kept) {
    if (!tensor) return nullptr;
    expect(name, tensor, {count}, Dtype::int32);
    kept = dense(tensor, Dtype::int32);
    return kept.data<int32_t>();
}
// Two sequences of one row would be written at the same moment; a negative row is padding.
inline void expect_rows(const char* name, const int32_t* rows, int64_t count, int64_t limit) {
    if (!rows) return;
    std::vector<bool> taken(size_t(limit), false);
    for (int64_t i = 0; i < count; i++) {
        require<std::out_of_range>(rows[i] < limit, name, "[", i, "]=", rows[i], ": the state has ", limit, " rows");
        if (rows[i] < 0) continue;
        require(!taken[size_t(rows[i])], name, "[", i, "]=", rows[i],
                ": another sequence has this row; give each its own, and -1 to padding");
        taken[size_t(rows[i])] = true;
    }
}

// The addresses between which a tensor lies.
struct Span {
    const char *begin, *end;

    explicit Span(const Tensor& tensor) {
        const Shape sizes = tensor.sizes(), strides = tensor.strides();
        int64_t last = 0;
        for (size_t axis = 0; axis < sizes.size(); axis++) last += (sizes[axis] - 1) * strides[axis];
        begin = tensor.data<char>();
        end = tensor.numel() ? begin + (last + 1) * int64_t(tensor.element_size()) : begin;
    }
    bool meets(const Span& other) const { return begin < other.end && other.begin < end; }
};

// Raises unless each element has an address of its own: each axis must step over all that the narrower ones reach.
inline void expect_no_internal_overlap(const char* name, const Tensor& tensor) {
    const Shape sizes = tensor.sizes(), strides = tensor.strides();
    std::vector<int64_t> axes(sizes.size());
    std::iota(axes.begin(), axes.end(), 0);
    std::sort(axes.begin(), axes.end(), [&](int64_t a, int64_t b) { return strides[a] < strides[b]; });
    int64_t reach = 0;
    for (const int64_t axis : axes) {
        if (sizes[axis] <= 1) continue;
        require(tensor.numel() == 0 || strides[axis] > reach, name, " has sizes ", sizes, " and strides ", strides,
                ": elements of it overlap; pass a contiguous tensor");
        reach += (sizes[axis] - 1) * strides[axis];
    }
}

// A tensor that is read while `state` is written: a copy of it where their memory may overlap.
inline Tensor apart_from(const Tensor& state, const Tensor& tensor) {
    if (!tensor || !Span(tensor).meets(Span(state))) return tensor;
    const Tensor copy = empty_output(tensor.sizes(), tensor.dtype());
    copy.copy_from(tensor);
    return copy;
}

}  // namespace scanlab
