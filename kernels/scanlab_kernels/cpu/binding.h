// C++ functions as torch ops, registered through the C functions of LibTorch's stable ABI:
//
//     Tensor half(const Tensor& x, const OptionalTensor& bias, int64_t rows) { ... }
//
//     SCANLAB_OPS(scanlab_mixer, library) {
//         library.define("half(Tensor x, Tensor? bias, int rows) -> Tensor");
//     }
//     SCANLAB_KERNELS(scanlab_mixer, CPU, library) { library.implement("half", boxed<half>); }
//
// Arguments are Tensor, OptionalTensor for `Tensor?`, int64_t, double and bool; results are a Tensor or a tuple of
// Tensors, which are None in Python where they are none. torch 2.9 passes no others. Gradients, shapes for tracing and
// vmap are registered in Python (cpu/registration.py).
#pragma once

#include <cstring>
#include <tuple>

#include "cpu/tensor.h"

namespace scanlab {

// Takes an argument off torch's stack, which gives it up.
template <class T>
struct Argument {
    static T take(StableIValue value) {
        T result;
        static_assert(sizeof(T) <= sizeof(value));
        std::memcpy(&result, &value, sizeof(result));
        return result;
    }
};
template <>
struct Argument<Tensor> {
    static Tensor take(StableIValue value) { return Tensor(Argument<AtenTensorHandle>::take(value)); }
};
template <>
struct Argument<OptionalTensor> {
    static OptionalTensor take(StableIValue value) {
        const auto* const there = Argument<StableIValue*>::take(value);
        if (!there) return {};
        OptionalTensor tensor = Argument<Tensor>::take(*there);
        delete there;
        return tensor;
    }
};

// A result as torch's stack holds it.
inline StableIValue given(Tensor result) {
    AtenTensorHandle handle = result.release();
    if (!handle) succeed(aoti_torch_new_uninitialized_tensor(&handle), "return no tensor");
    StableIValue value = 0;
    std::memcpy(&value, &handle, sizeof(handle));
    return value;
}
inline StableIValue given(int64_t result) { return StableIValue(result); }

template <auto function>
struct Boxed;
template <class Result, class... Arguments, Result (*function)(Arguments...)>
struct Boxed<function> {
    static void call(StableIValue* stack, uint64_t, uint64_t) { call(stack, std::index_sequence_for<Arguments...>()); }

private:
    template <size_t... index>
    static void call(StableIValue* stack, std::index_sequence<index...>) {
        std::tuple<std::decay_t<Arguments>...> arguments{Argument<std::decay_t<Arguments>>::take(stack[index])...};
        if constexpr (std::is_void_v<Result>) std::apply(function, arguments);
        else put(stack, std::apply(function, arguments));
    }
    template <class... Tensors>
    static void put(StableIValue* stack, std::tuple<Tensors...> results) {
        std::apply([&](auto&... each) { ((*stack++ = given(std::move(each))), ...); }, results);
    }
    template <class T>
    static void put(StableIValue* stack, T result) {
        *stack = given(std::move(result));
    }
};

// The function that torch calls.
using BoxedFunction = void(StableIValue* stack, uint64_t arguments, uint64_t results);

// The form of `function` that torch calls.
template <auto function>
inline constexpr BoxedFunction* boxed = &Boxed<function>::call;

// The ops that a unit registers with torch, for as long as its library is loaded.
class Library {
public:
    // The ops of a namespace, or their kernels for a dispatch key.
    Library(const char* name, const char* key, const char* file, int line, void (*fill)(Library&)) {
        succeed(key ? aoti_torch_library_init_impl(name, key, file, uint32_t(line), &handle)
                    : aoti_torch_library_init_fragment(name, file, uint32_t(line), &handle),
                "register a library");
        fill(*this);
    }
    Library(const Library&) = delete;
    Library& operator=(const Library&) = delete;
    ~Library() { aoti_torch_delete_library_object(handle); }

    void define(const std::string& schema) {
        succeed(aoti_torch_library_def(handle, schema.c_str()), ("define " + schema).c_str());
    }
    void implement(const char* op, BoxedFunction* function) {
        succeed(aoti_torch_library_impl(handle, op, function), "register a kernel");
    }

private:
    TorchLibraryHandle handle;
};

}  // namespace scanlab

#define SCANLAB_OPS(name, library) SCANLAB_LIBRARY(name, nullptr, ops_##name, library)
#define SCANLAB_KERNELS(name, key, library) SCANLAB_LIBRARY(name, #key, kernels_##name##_##key, library)
#define SCANLAB_LIBRARY(name, key, unique, library)                                             \
    static void unique(scanlab::Library&);                                                      \
    static const scanlab::Library registered_##unique(#name, key, __FILE__, __LINE__, &unique); \
    static void unique(scanlab::Library& library)
