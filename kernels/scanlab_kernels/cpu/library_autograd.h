// Autograd glue that the ops of a Mamba block share.
#pragma once

#include "cpu/arguments.h"
#include "cpu/autograd.h"

namespace scanlab::mixer {

// The advice of ops that lack a derivative.
inline constexpr char cure[] = "call it inside scanlab.runtime.ops.in_torch().";

inline OptionalTensor given(const Tensor& tensor) { return tensor.defined() ? OptionalTensor(tensor) : std::nullopt; }

template <class Function>
auto op(const char* name) {
    return c10::Dispatcher::singleton().findSchemaOrThrow(name, "").typed<Function>();
}

template <class... Arguments>
void refuse_tangents(const char* op, const Arguments&... arguments) {
    const auto refuse = [op](const auto& argument) {
        using Argument = std::decay_t<decltype(argument)>;
        if constexpr (std::is_same_v<Argument, Tensor>) refuse_tangent(argument, op, cure);
        else if constexpr (std::is_same_v<Argument, OptionalTensor>) refuse_tangent(value_of(argument), op, cure);
    };
    (refuse(arguments), ...);
}

// A decoding step: it has no gradient, as upstream.
template <const char* name, class Function>
struct Step;
template <const char* name, class Result, class... Arguments>
struct Step<name, Result(Arguments...)> {
    static Result run(c10::DispatchKeySet keys, Arguments... arguments) {
        static const auto kernels = op<Result(Arguments...)>(name);
        refuse_tangents(name, arguments...);
        return kernels.redispatch(keys & c10::after_autograd_keyset, arguments...);
    }
};

}  // namespace scanlab::mixer
