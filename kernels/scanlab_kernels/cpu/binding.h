// C++ functions as torch ops. In a unit of its own:
//
//     Tensor half(const Tensor& x, const OptionalTensor& bias, int64_t rows) { ... }
//
//     STABLE_TORCH_LIBRARY_FRAGMENT(scanlab_mixer, library) {
//         library.def("half(Tensor x, Tensor? bias, int rows) -> Tensor");
//     }
//     STABLE_TORCH_LIBRARY_IMPL(scanlab_mixer, CPU, library) { library.impl("half", boxed<half>); }
//
// Arguments are Tensor, OptionalTensor for `Tensor?`, int64_t, double and bool; results are a Tensor or a tuple of
// Tensors, which are None in Python where they are none. torch 2.9 passes no others. Gradients, shapes for tracing and
// vmap are registered in Python (cpu/registration.py).
#pragma once

#include "cpu/tensor.h"  // before torch's headers, for it says which version of torch is meant

#include <torch/csrc/stable/library.h>

#include <cstring>
#include <tuple>

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

// The form of `function` that torch calls.
template <auto function>
inline constexpr void (*boxed)(StableIValue*, uint64_t, uint64_t) = &Boxed<function>::call;

}  // namespace scanlab
