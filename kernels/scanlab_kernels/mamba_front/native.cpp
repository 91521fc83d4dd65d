// The fused front half of a Mamba block as a torch op on CPU tensors.
#include "mamba_front/native.h"

#include "causal_conv1d/call.h"
#include "linear/call.h"
#include "mamba_front/call.h"

namespace scanlab::mixer {

namespace {

// Every sequence in pieces of `steps`.
struct Pieces {
    int64_t batch, length, steps;

    int64_t each_sequence() const { return (length + steps - 1) / steps; }
    int64_t count() const { return batch * each_sequence(); }
    Piece operator[](int64_t piece) const {
        const int64_t first = piece % each_sequence() * steps;
        return {piece / each_sequence(), first, std::min(first + steps, length)};
    }
};

// Groups of channels, whose number is that of the terms of a sum and so must not depend on the threads, and pieces of
// time enough to occupy those.
Pieces cut(MambaFront& front, int64_t max_groups, int64_t threads) {
    const int64_t columns = panels(front.conv.dim);
    front.panels_each = (columns + max_groups - 1) / max_groups;
    front.groups = (columns + front.panels_each - 1) / front.panels_each;
    const Pieces pieces{front.conv.batch, front.conv.length, max_steps};
    const int64_t tasks = front.groups * pieces.count();
    if (tasks % threads == 0 || tasks >= 4 * threads) return pieces;
    return {front.conv.batch, front.conv.length, max_steps / 4};
}

}  // namespace

FrontOutputs mamba_front(const Tensor& hidden, const Tensor& into, const OptionalTensor& into_bias, const Tensor& gate,
                         const OptionalTensor& gate_bias, const Tensor& weight, const OptionalTensor& bias,
                         const Tensor& select, const Tensor& step, const OptionalTensor& weight_reverse,
                         const OptionalTensor& bias_reverse, const OptionalTensor& select_reverse,
                         const OptionalTensor& step_reverse, int64_t rank, int64_t selected) {
    require(hidden.dim() == 3 && weight.dim() == 2, "hidden (batch, length, model) and weight (dim, width)");
    expect("hidden", hidden, hidden.sizes());
    require(0 <= rank && rank <= selected, "rank ", rank, ": must be 0..", selected);
    require(!weight_reverse || (select_reverse && step_reverse), "the reverse direction lacks its weights");
    const int64_t dim = weight.size(0);
    const auto of = [&](int64_t features) {
        return empty_output({hidden.size(0), hidden.size(1), features}, hidden.dtype());
    };
    const auto of_reverse = [&](int64_t features) { return weight_reverse ? of(features) : nothing(hidden); };
    const FrontOutputs outputs = {of(dim),        of(dim), of(selected), of(dim), of_reverse(dim), of_reverse(selected),
                                  of_reverse(dim)};
    const auto& [z, u, all, delta, u_reverse, all_reverse, delta_reverse] = outputs;
    const ConvCall call(u.transposed(), weight, bias, weight_reverse, bias_reverse, {}, {}, true);
    const Tensor rows = rows_of(hidden), into_biases = dense("into_bias", into_bias, {dim}, Dtype::float32),
                 gate_biases = dense("gate_bias", gate_bias, {dim}, Dtype::float32);
    MambaFront front;
    PackedLinear discretize_delta[2];
    front.conv = call.conv;
    front.into = product(rows, into, into_biases, dim, {});
    front.gate = product(rows, gate, gate_biases, dim, rows_of(z));
    const auto direction = [&](int d, const Tensor& u, const Tensor& all, const Tensor& delta, const Tensor& to_all,
                               const Tensor& to_delta) {
        front.conv.direction[d].out = matrix(u.transposed());
        front.select[d] = product(rows_of(u), to_all, {}, selected, rows_of(all));
        discretize_delta[d] = product(rows_of(all).narrow(1, 0, rank), to_delta, {}, dim, rows_of(delta));
    };
    direction(0, u, all, delta, select, step);
    if (weight_reverse) direction(1, u_reverse, all_reverse, delta_reverse, select_reverse, step_reverse);
    const int64_t threads = torch_threads(), length = front.conv.length, model = hidden.size(2);
    const Products& products = products_of(hidden);
    const Pieces pieces = cut(front, products.front_groups, threads);
    const int64_t count = pieces.count(), at_once = std::min(count, std::max<int64_t>(4, threads));
    front.share_row = padded(selected);
    front.share_rows = std::min(at_once * max_steps, front.conv.batch * length);
    const Tensor shares =
        empty_output({front.conv.directions * front.groups * front.share_rows * front.share_row}, Dtype::float32);
    front.shares = shares.data<float>();
    for (int64_t begin = 0; begin < count; begin += at_once) {
        const int64_t end = std::min(begin + at_once, count), some = end - begin, tasks = front.groups * some;
        const auto row = [&](int64_t piece) {
            const Piece at = pieces[piece];
            return piece < count ? at.batch * length + at.first : front.conv.batch * length;
        };
        front.first_row = row(begin);
        const int64_t stop = row(end), all_rows = stop - front.first_row;
        // Groups first, so that a thread keeps its channels from here to the scan.
        spread(tasks, all_rows * dim * model / 8, [&](int64_t first, int64_t last) {
            for (int64_t task = first; task < last; task++)
                products.convolve_group(front, pieces[begin + task % some], task / some);
        });
        spread(all_rows, all_rows * selected * front.groups, [&](int64_t first, int64_t last) {
            products.add_shares(front, front.first_row + first, front.first_row + last);
        });
        spread(tasks, all_rows * dim * (rank / 16 + 1), [&](int64_t first, int64_t last) {
            for (int64_t task = first; task < last; task++) {
                const int64_t piece = begin + task % some, panel = task / some * front.panels_each;
                for (int d = 0; d < front.conv.directions; d++)
                    products.packed_linear(discretize_delta[d], row(piece), row(piece + 1), panel,
                                           std::min(panel + front.panels_each, panels(dim)));
            }
        });
    }
    return outputs;
}

SCANLAB_OPS(scanlab_mixer, library) {
    library.define(
        "mamba_front(Tensor hidden, Tensor into, Tensor? into_bias, Tensor gate, Tensor? gate_bias, Tensor weight,"
        " Tensor? bias, Tensor select, Tensor step, Tensor? weight_reverse, Tensor? bias_reverse, Tensor? "
        "select_reverse,"
        " Tensor? step_reverse, SymInt rank, SymInt selected)"
        " -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)");
}

SCANLAB_KERNELS(scanlab_mixer, CPU, library) { library.implement("mamba_front", boxed<mamba_front>); }

}  // namespace scanlab::mixer
