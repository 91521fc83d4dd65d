// Autograd glue of ops whose gradients are written by hand: missing derivatives are refused, and existing ones also
// work inside the transforms of torch.func.
#pragma once

#include <ATen/FuncTorchTLS.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/core/stack.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/csrc/autograd/functions/utils.h>
#include <torch/library.h>

namespace scanlab {

// Kernels see values alone: a tangent of forward-mode differentiation would be lost without a word.
inline void refuse_tangent(const at::Tensor& tensor, const std::string& op, const char* cure) {
    TORCH_CHECK_NOT_IMPLEMENTED(!tensor.defined() || !tensor._fw_grad(/*level=*/0).defined(), op,
                                " has no forward-mode derivative: ", cure);
}

// torch refuses a torch::autograd::Function in C++ wherever a transform of torch.func is under way, because what its
// forward and backward do to tensors may bypass the transform. Ours call ops and nothing else: they put the transforms
// aside for `apply` and bring them back, by the same exchange, for what `forward` calls.
using Transforms = std::unique_ptr<at::functorch::FuncTorchTLSBase>;
// Exchanges the active transforms of torch.func with `aside`, and exchanges them again at the end of the scope.
class TransformExchange {
public:
    explicit TransformExchange(Transforms& aside) : aside(aside) { exchange(); }
    ~TransformExchange() { exchange(); }
    TransformExchange(const TransformExchange&) = delete;

private:
    Transforms& aside;
    void exchange() { aside.swap(at::functorch::functorchTLSAccessor()); }
};

// Calls the kernels of an op; its arguments on the stack become its results.
inline void run_kernels(const c10::OperatorHandle& op, c10::DispatchKeySet keys, torch::jit::Stack* stack) {
    const at::AutoDispatchBelowADInplaceOrView below;
    op.redispatchBoxed(keys & c10::after_ADInplaceOrView_keyset, stack);
}

// The tensors among the arguments of an op; raises where one carries a tangent.
inline std::vector<at::Tensor> differentiated(const c10::OperatorHandle& op, const torch::jit::Stack& stack,
                                              const char* cure) {
    std::vector<at::Tensor> tensors;
    for (const c10::IValue& argument : torch::jit::last(stack, op.schema().arguments().size()))
        if (argument.isTensor()) {
            tensors.push_back(argument.toTensor());
            refuse_tangent(tensors.back(), op.schema().name(), cure);
        }
    return tensors;
}

// The autograd kernel of an op without a derivative: who asks for one is told so, instead of getting that of a
// constant.
template <const char* cure>
struct Undifferentiable : torch::autograd::Function<Undifferentiable<cure>> {
    using Context = torch::autograd::AutogradContext;
    using Tensors = torch::autograd::variable_list;

    static Tensors forward(Context* context, at::TensorList, const c10::OperatorHandle& op, c10::DispatchKeySet keys,
                           torch::jit::Stack* stack, Transforms& aside) {
        const TransformExchange restored(aside);
        context->saved_data["op"] = op.schema().name();
        run_kernels(op, keys, stack);
        Tensors results;
        for (const c10::IValue& result : torch::jit::last(*stack, op.schema().returns().size())) {
            if (result.isTensor()) results.push_back(result.toTensor());
            else
                for (const at::Tensor& each : result.toTensorVector()) results.push_back(each);
        }
        return results;
    }
    static Tensors backward(Context* context, const Tensors&) {
        TORCH_CHECK_NOT_IMPLEMENTED(false, context->saved_data["op"].toStringRef(), " has no derivative: ", cure);
    }

    static void call(const c10::OperatorHandle& op, c10::DispatchKeySet keys, torch::jit::Stack* stack) {
        const Tensors tensors = differentiated(op, *stack, cure);
        if (!torch::autograd::compute_requires_grad(at::TensorList(tensors))) return run_kernels(op, keys, stack);
        Transforms aside;
        const TransformExchange away(aside);
        const Tensors results = Undifferentiable::apply(at::TensorList(tensors), op, keys, stack, aside);
        auto next = results.begin();
        for (size_t i = stack->size() - op.schema().returns().size(); i < stack->size(); i++) {
            c10::IValue& result = (*stack)[i];
            if (result.isTensor()) result = *next++;
            else {
                const auto count = result.toListRef().size();
                result = Tensors(next, next + count);
                next += count;
            }
        }
    }
    static torch::CppFunction kernel() { return torch::CppFunction::makeFromBoxedFunction<&Undifferentiable::call>(); }
};

}  // namespace scanlab
