// The ops on torch's tensors, and what they share.
//
// The Python functions check what users pass and say what is wrong with it; here only what would touch foreign
// memory is refused.
#pragma once

#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/linear.h>
#include <ATen/ops/zeros.h>

#include <memory>

#include "cpu/allocator.h"
#include "cpu/arguments.h"
#include "cpu/denormals.h"
#include "cpu/mixer.h"

namespace scanlab::mixer {

using OptionalTensor = OptionalTensor;
using Two = std::tuple<Tensor, Tensor>;
using Three = std::tuple<Tensor, Tensor, Tensor>;
using Six = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;
using Seven = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

// What each op computes on CPU tensors, and what it returns, which is all that meta tensors need.
Two conv(const Tensor& x, const OptionalTensor& weight, const OptionalTensor& bias, const OptionalTensor& weight_reverse, const OptionalTensor& bias_reverse,
         const OptionalTensor& seq_idx, const OptionalTensor& initial, bool silu);
Two conv_outputs(const Tensor& x, const OptionalTensor& weight, const OptionalTensor& bias, const OptionalTensor& weight_reverse, const OptionalTensor& bias_reverse,
                 const OptionalTensor& seq_idx, const OptionalTensor& initial, bool silu);
Six conv_backward(const OptionalTensor& grad, const OptionalTensor& grad_reverse, const Tensor& x, const OptionalTensor& weight, const OptionalTensor& bias,
                  const OptionalTensor& weight_reverse, const OptionalTensor& bias_reverse, const OptionalTensor& seq_idx, const OptionalTensor& initial, bool silu);
Six conv_gradients(const OptionalTensor& grad, const OptionalTensor& grad_reverse, const Tensor& x, const OptionalTensor& weight, const OptionalTensor& bias,
                   const OptionalTensor& weight_reverse, const OptionalTensor& bias_reverse, const OptionalTensor& seq_idx, const OptionalTensor& initial, bool silu);
Tensor conv_update(const Tensor& x, const Tensor& state, const Tensor& weight, const OptionalTensor& bias, const OptionalTensor& positions,
                   const OptionalTensor& rows, bool silu);
Tensor conv_update_output(const Tensor& x, const Tensor& state, const Tensor& weight, const OptionalTensor& bias,
                          const OptionalTensor& positions, const OptionalTensor& rows, bool silu);
Two add_norm(const Tensor& hidden, const OptionalTensor& residual, const Tensor& weight, const OptionalTensor& bias, double eps, bool centred,
             bool wide_total);
Two norm_outputs(const Tensor& hidden, const OptionalTensor& residual, const Tensor& weight, const OptionalTensor& bias, double eps,
                 bool centred, bool wide_total);
Three add_norm_backward(const Tensor& grad_out, const OptionalTensor& grad_total, const Tensor& total, const Tensor& weight,
                        double eps, bool centred);
Three norm_gradients(const Tensor& grad_out, const OptionalTensor& grad_total, const Tensor& total, const Tensor& weight, double eps,
                     bool centred);
Tensor state_update(const Tensor& state, const Tensor& x, const Tensor& dt, const Tensor& A, const Tensor& B,
                    const Tensor& C, const OptionalTensor& D, const OptionalTensor& z, const OptionalTensor& dt_bias, bool softplus, const OptionalTensor& rows,
                    bool log_A);
Tensor state_update_output(const Tensor& state, const Tensor& x, const Tensor& dt, const Tensor& A, const Tensor& B,
                           const Tensor& C, const OptionalTensor& D, const OptionalTensor& z, const OptionalTensor& dt_bias, bool softplus,
                           const OptionalTensor& rows, bool log_A);
Tensor thin_linear(const Tensor& x, const Tensor& weight, const OptionalTensor& bias);
Tensor thin_linear_output(const Tensor& x, const Tensor& weight, const OptionalTensor& bias);
Tensor pack_linear(const Tensor& weight);
Tensor pack_linear_output(const Tensor& weight);
Tensor packed_linear(const Tensor& x, const Tensor& packed, const OptionalTensor& bias, c10::SymInt features);
Tensor packed_linear_output(const Tensor& x, const Tensor& packed, const OptionalTensor& bias, c10::SymInt features);
Seven before_scan(const Tensor& hidden, const Tensor& into, const OptionalTensor& into_bias, const Tensor& gate, const OptionalTensor& gate_bias,
                  const Tensor& weight, const OptionalTensor& bias, const Tensor& select, const Tensor& step, const OptionalTensor& weight_reverse,
                  const OptionalTensor& bias_reverse, const OptionalTensor& select_reverse, const OptionalTensor& step_reverse, c10::SymInt rank,
                  c10::SymInt selected);
Seven before_scan_outputs(const Tensor& hidden, const Tensor& into, const OptionalTensor& into_bias, const Tensor& gate,
                          const OptionalTensor& gate_bias, const Tensor& weight, const OptionalTensor& bias, const Tensor& select,
                          const Tensor& step, const OptionalTensor& weight_reverse, const OptionalTensor& bias_reverse, const OptionalTensor& select_reverse,
                          const OptionalTensor& step_reverse, c10::SymInt rank, c10::SymInt selected);
Tensor mixer_step(const Tensor& projected, const Tensor& conv_state, const Tensor& state, const Tensor& conv_weight,
                  const OptionalTensor& conv_bias, const Tensor& x_weight, const Tensor& dt_weight, const OptionalTensor& dt_bias,
                  const Tensor& A_log, const Tensor& D);
Tensor mixer_step_output(const Tensor& projected, const Tensor& conv_state, const Tensor& state, const Tensor& conv_weight,
                         const OptionalTensor& conv_bias, const Tensor& x_weight, const Tensor& dt_weight, const OptionalTensor& dt_bias,
                         const Tensor& A_log, const Tensor& D);

// Of float32; beyond, at::linear is as fast.
inline constexpr int64_t max_gemv_rows = 8;

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
inline Tensor output_like(const Tensor& like) { return has_data(like) ? empty_output_like(like) : at::empty_like(like); }

inline Tensor nothing(const Tensor& like) { return at::empty({0}, like.options()); }

// A decoding step whose arguments were checked. The constructor raises before anything is written; `run` writes the
// state and `out`. What is read and lies in the memory of the state was copied before.
struct ConvUpdateCall {
    ConvUpdateCall(const Tensor& x, const Tensor& state, const Tensor& weight, const OptionalTensor& bias, const OptionalTensor& positions,
                   const OptionalTensor& rows, const Tensor& out, bool silu);
    void run();

private:
    ConvUpdate update;
    Tensor state, x, weights, biases, positions, rows;
};
struct StateUpdateCall {
    StateUpdateCall(const Tensor& state, const Tensor& x, const Tensor& dt, const Tensor& A, const Tensor& B, const Tensor& C,
                    const OptionalTensor& D, const OptionalTensor& z, const OptionalTensor& dt_bias, const Tensor& out, bool softplus, const OptionalTensor& rows,
                    bool log_A);
    void run();

private:
    StateUpdate update;
    Tensor state;
    std::vector<Tensor> kept;
};

// Runs tasks on torch's threads, none of them for less than about 20 us of work.
template <class Run>
void spread(int64_t tasks, int64_t elements, const Run& run) {
    constexpr int64_t worth_a_thread = 32768;
    const int64_t grain = std::max<int64_t>(1, tasks * worth_a_thread / std::max<int64_t>(1, elements));
    at::parallel_for(0, tasks, grain, [&](int64_t begin, int64_t end) {
        const FlushDenormals flush;
        run(begin, end);
    });
}

// The sum of a list of rows, in its order.
inline Tensor sum_rows(const Tensor& rows) {
    Tensor sum = rows[0].clone();
    for (int64_t i = 1; i < rows.size(0); i++) sum.add_(rows[i]);
    return sum;
}

}  // namespace scanlab::mixer
