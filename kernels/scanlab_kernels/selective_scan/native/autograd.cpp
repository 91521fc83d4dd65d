// The gradients of the scan as torch's autograd asks for them. In C++, since a node that calls Python costs a quarter
// of a millisecond with so many arguments: as much as a small scan.
#include "cpu/autograd.h"

namespace scanlab {
namespace {

using at::Tensor;
using c10::IValue;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

constexpr char cure[] =
    "take the backend that has all of them, `reference`, by its name or with SCANLAB_BACKEND=reference.";

// The arguments of the ops: tensors, there or not, then flags, then whole numbers.
constexpr int tensors = 18, flags = 2;

// A scan that keeps its checkpoints, as a function of the tensors that are there.
struct Differentiable : torch::autograd::Function<Differentiable> {
    static variable_list forward(AutogradContext* context, at::TensorList there, c10::ArrayRef<IValue> arguments,
                                 const c10::OperatorHandle& op, c10::DispatchKeySet keys, Transforms& aside) {
        const TransformExchange restored(aside);
        torch::jit::Stack stack(arguments.begin(), arguments.end());
        run_kernels(op, keys, &stack);
        variable_list results, kept(there.begin(), there.end());
        for (const IValue& result : stack) results.push_back(result.toTensor());
        kept.push_back(results.back());
        context->save_for_backward(std::move(kept));
        std::vector<int64_t> rest;  // the settings, and which tensors are there
        for (const IValue& argument : arguments)
            rest.push_back(argument.isInt()    ? argument.toInt()
                           : argument.isBool() ? argument.toBool()
                                               : argument.isTensor());
        context->saved_data["rest"] = std::move(rest);
        context->set_materialize_grads(false);  // outputs that nothing used would get zeros as large as they are
        return results;
    }

    static variable_list backward(AutogradContext* context, const variable_list& gradients) {
        static const auto op = c10::Dispatcher::singleton().findSchemaOrThrow("scanlab::scan_backward", "");
        const variable_list kept = context->get_saved_variables();
        const Tensor &grad_out = gradients[0], &grad_last = gradients[1];
        torch::jit::Stack stack = {grad_out.defined() ? grad_out : at::zeros_like(kept[0]),
                                   grad_last.defined() ? IValue(grad_last) : IValue(), kept.back()};
        const auto rest = context->saved_data["rest"].toIntVector();
        auto next = kept.begin();
        for (int i = 0; i < tensors; i++) stack.push_back(rest[i] ? IValue(*next++) : IValue());
        for (size_t i = tensors; i < rest.size(); i++)
            stack.push_back(i < tensors + flags ? IValue(rest[i] != 0) : IValue(rest[i]));
        op.callBoxed(&stack);
        variable_list results = stack[0].toTensorVector();
        results.resize(results.size() + 4);  // none for what is no tensor among the arguments of forward
        return results;
    }
};

void scan_with_checkpoints(const c10::OperatorHandle& op, c10::DispatchKeySet keys, torch::jit::Stack* stack) {
    const size_t count = op.schema().arguments().size();
    const variable_list there = differentiated(op, *stack, cure);
    Transforms aside;
    const TransformExchange away(aside);
    const variable_list results =
        Differentiable::apply(at::TensorList(there), torch::jit::last(*stack, count), op, keys, aside);
    torch::jit::drop(*stack, count);
    for (const Tensor& result : results) stack->emplace_back(result);
}

}  // namespace
}  // namespace scanlab

// A scan that kept no checkpoints, and gradients, have no derivative.
TORCH_LIBRARY_IMPL(scanlab, Autograd, m) {
    m.impl("scan", scanlab::Undifferentiable<scanlab::cure>::kernel());
    m.impl("scan_with_checkpoints", torch::CppFunction::makeFromBoxedFunction<&scanlab::scan_with_checkpoints>());
    m.impl("scan_backward", scanlab::Undifferentiable<scanlab::cure>::kernel());
}
