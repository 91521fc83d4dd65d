// torch's tensors through the C functions of LibTorch's stable ABI: code compiled against one version of torch
// runs with every version from 2.9 on.
#pragma once

#include <torch/csrc/inductor/aoti_torch/c/shim.h>

#include <algorithm>
#include <cstdint>
#include <initializer_list>
#include <iterator>
#include <span>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace scanlab {

// Sizes or strides; made of a list in braces it lives as long as the expression that it stands in.
struct Shape : std::span<const int64_t> {
    using span::span;
    Shape(std::span<const int64_t> numbers) : span(numbers) {}
    Shape(std::initializer_list<int64_t> numbers) : span(numbers.begin(), numbers.size()) {}
    bool operator==(const Shape& other) const { return std::equal(begin(), end(), other.begin(), other.end()); }
};

inline int64_t numel(Shape sizes) {
    int64_t product = 1;
    for (const int64_t size : sizes) product *= size;
    return product;
}

enum class Dtype { float32, float64, bfloat16, float16, complex64, complex128, int32, uint8, other };
inline constexpr const char* dtype_names[] = {"float32",    "float64", "bfloat16", "float16",      "complex64",
                                              "complex128", "int32",   "uint8",    "another dtype"};

// torch's own numbers of them, which may differ between its versions.
inline const int32_t* dtype_numbers() {
    static const int32_t numbers[] = {aoti_torch_dtype_float32(),   aoti_torch_dtype_float64(),
                                      aoti_torch_dtype_bfloat16(),  aoti_torch_dtype_float16(),
                                      aoti_torch_dtype_complex64(), aoti_torch_dtype_complex128(),
                                      aoti_torch_dtype_int32(),     aoti_torch_dtype_uint8()};
    return numbers;
}
inline int32_t number_of(Dtype dtype) { return dtype_numbers()[int(dtype)]; }
inline size_t item_bytes(Dtype dtype) { return aoti_torch_dtype_element_size(number_of(dtype)); }

// The words of an error.
inline std::string text_of(const char* text) { return text; }
inline std::string text_of(int64_t number) { return std::to_string(number); }
inline std::string text_of(Dtype dtype) { return dtype_names[int(dtype)]; }
inline std::string text_of(Shape numbers) {
    std::string text = "[";
    for (size_t i = 0; i < numbers.size(); i++) text += (i ? ", " : "") + std::to_string(numbers[i]);
    return text + "]";
}

// Raises an error that Python sees as ValueError, or as IndexError for std::out_of_range, unless `holds`.
template <class Error = std::invalid_argument, class... Parts>
void require(bool holds, const Parts&... parts) {
    if (!holds) [[unlikely]]
        throw Error((... + text_of(parts)));
}

// Raises where a call of torch has failed; torch has logged why.
inline void succeed(AOTITorchError error, const char* what) {
    if (error) [[unlikely]]
        throw std::runtime_error(std::string("torch could not ") + what);
}

// A tensor, or none. A copy is another reference to the same tensor.
class Tensor {
public:
    Tensor() = default;
    explicit Tensor(AtenTensorHandle owned) : handle(owned) {}
    Tensor(const Tensor& other) {
        if (other) succeed(aoti_torch_new_tensor_handle(other.handle, &handle), "refer to a tensor");
    }
    Tensor(Tensor&& other) noexcept : handle(other.release()) {}
    Tensor& operator=(Tensor other) noexcept {
        std::swap(handle, other.handle);
        return *this;
    }
    ~Tensor() {
        if (handle) aoti_torch_delete_tensor_object(handle);
    }

    explicit operator bool() const { return handle; }
    AtenTensorHandle get() const { return handle; }
    AtenTensorHandle release() { return std::exchange(handle, nullptr); }

    Shape sizes() const { return {get<int64_t*>(aoti_torch_get_sizes), size_t(dim())}; }
    Shape strides() const { return {get<int64_t*>(aoti_torch_get_strides), size_t(dim())}; }
    int64_t dim() const { return get<int64_t>(aoti_torch_get_dim); }
    int64_t numel() const { return get<int64_t>(aoti_torch_get_numel); }
    // Axes count from the end where they are negative.
    int64_t size(int64_t axis) const { return sizes()[axis < 0 ? axis + dim() : axis]; }
    int64_t stride(int64_t axis) const { return strides()[axis < 0 ? axis + dim() : axis]; }
    bool is_contiguous() const { return get<bool>(aoti_torch_is_contiguous); }
    bool is_strided() const { return get<int32_t>(aoti_torch_get_layout) == aoti_torch_layout_strided(); }
    bool is_cpu() const { return get<int32_t>(aoti_torch_get_device_type) == aoti_torch_device_type_cpu(); }
    Dtype dtype() const {
        const int32_t* const numbers = dtype_numbers();
        return Dtype(std::find(numbers, numbers + int(Dtype::other), dtype_number()) - numbers);
    }
    int32_t dtype_number() const { return get<int32_t>(aoti_torch_get_dtype); }
    size_t element_size() const { return aoti_torch_dtype_element_size(dtype_number()); }
    // How far the elements reach in the memory that they lie in, and how large that is.
    int64_t reach_bytes() const {
        const Shape lengths = sizes(), steps = strides();
        int64_t last = get<int64_t>(aoti_torch_get_storage_offset);
        for (size_t axis = 0; axis < lengths.size(); axis++) last += (lengths[axis] - 1) * steps[axis];
        return (last + 1) * int64_t(element_size());
    }
    int64_t storage_bytes() const { return get<int64_t>(aoti_torch_get_storage_size); }
    // The address of the first element. Kernels write through those of outputs and states alone.
    void* data() const { return handle ? get<void*>(aoti_torch_get_data_ptr) : nullptr; }
    template <class T>
    T* data() const {
        return static_cast<T*>(data());
    }

    // The same memory with other sizes and strides, from `offset` elements after the first one on.
    Tensor strided(Shape sizes, Shape strides, int64_t offset = 0) const {
        AtenTensorHandle view;
        succeed(aoti_torch__reinterpret_tensor(handle, sizes.size(), sizes.data(), strides.data(), offset, &view),
                "view a tensor");
        return Tensor(view);
    }
    Tensor narrow(int64_t axis, int64_t first, int64_t count) const {
        std::vector<int64_t> narrowed(sizes().begin(), sizes().end());
        narrowed[axis] = count;
        return strided(narrowed, strides(), first * stride(axis));
    }
    // Of three axes, the last two exchanged.
    Tensor transposed() const {
        const Shape from = sizes(), steps = strides();
        return strided({from[0], from[2], from[1]}, {steps[0], steps[2], steps[1]});
    }
    void copy_from(const Tensor& other) const {
        succeed(aoti_torch_copy_(handle, other.handle, /*non_blocking=*/0), "copy a tensor");
    }
    void zero() const { succeed(aoti_torch_zero_(handle), "fill a tensor with zeros"); }

private:
    AtenTensorHandle handle = nullptr;

    template <class T>
    T get(AOTITorchError (*ask)(AtenTensorHandle, T*)) const {
        T answer;
        succeed(ask(handle, &answer), "describe a tensor");
        return answer;
    }
};

// An argument that may be None; torch passes it in another way.
struct OptionalTensor : Tensor {
    using Tensor::Tensor;
    OptionalTensor(Tensor tensor) : Tensor(std::move(tensor)) {}
};

}  // namespace scanlab
