#include "scan_case.h"

#include <algorithm>

namespace scanlab::test {

namespace {

Channels channels_of(const Tensor& tensor) {
    if (!tensor.exists()) return {};
    return {tensor.data(), tensor.strides[0], tensor.strides[1], tensor.strides[2]};
}
Weights weights_of(const Tensor& tensor, int parts) {
    if (!tensor.exists()) return {};
    return {tensor.data(), tensor.strides[0] / parts, tensor.shape.size() > 1 ? tensor.strides[1] / parts : 0};
}
States states_of(const Tensor& tensor, int parts) {
    if (!tensor.exists()) return {};
    return {tensor.data(), tensor.strides[0] / parts, tensor.strides[1] / parts, tensor.strides[2] / parts};
}
Projection projection_of(const Tensor& tensor, int parts) {
    if (tensor.shape.size() == 3)
        return {tensor.data(), true, 0, 0, tensor.strides[0] / parts, tensor.strides[1] / parts, 0};
    return {tensor.data(), false, tensor.strides[0], tensor.strides[1], 0, tensor.strides[2], tensor.strides[3]};
}

template <class Value>
Value pick(Random& random, std::initializer_list<Value> values) {
    return values.begin()[random() % values.size()];
}
bool coin(Random& random) { return random() % 2; }
double uniform(Random& random, double low, double high) { return low + (high - low) * (random() / 4294967296.0); }

auto between(double low, double high) {
    return [=](Random& random) { return uniform(random, low, high); };
}

}  // namespace

Case draw_case(int number) {
    Random random(number);
    Case drawn;
    Scan& scan = drawn.scan;
    scan.type = Type(random() % 4);
    scan.complex = random() % 4 == 0;
    const int parts = drawn.parts();
    const bool constant_B = random() % 4 == 0, constant_C = random() % 4 == 0;
    scan.groups = constant_B && constant_C ? 1 : pick<int64_t>(random, {1, 1, 2, 3});
    scan.batch = 1 + random() % 3;
    scan.dim = scan.groups * pick<int64_t>(random, {1, 2, 3, 7, 8, 15, 16, 17, 33, 40});
    scan.length = pick<int64_t>(random, {1, 2, 3, 5, 16, 17, 31, 64, 77, 130});
    scan.state =
        random() % 12 ? pick<int64_t>(random, {1, 2, 3, 4, 7, 8, 15, 16, 17}) : pick<int64_t>(random, {64, 255, 256});
    if (scan.state >= 64)
        scan.length = std::min<int64_t>(scan.length, 17), scan.dim = scan.groups * (1 + random() % 20);
    scan.directions = random() % 3 == 0 ? 2 : 1;
    scan.softplus = coin(random);
    scan.exp =
        coin(random) || scan.complex || constant_B || constant_C || scan.type == Type::float64 ? Exp::exact : Exp::fast;
    scan.threads = 1 + random() % 4;
    scan.time_block = pick(random, {1, 3, 16, 64});
    scan.channel_tile = pick(random, {1, 16, 40, 384});
    scan.time_chunks = scan.directions == 1 ? pick(random, {1, 1, 2, 5}) : 1;

    const Type stored = scan.type, real = arithmetic(stored);
    const auto channels = [&] {
        const auto order = pick<std::vector<int>>(random, {{0, 1, 2}, {0, 2, 1}, {1, 0, 2}, {2, 0, 1}});
        return Tensor(stored, {scan.batch, scan.dim, scan.length}, order, 1 + random() % 4 / 3);
    };
    const auto of_states = [&](int64_t rows) {
        std::vector<int64_t> shape = {scan.dim, scan.state, parts};
        std::vector<int> order = coin(random) ? std::vector{0, 1, 2} : std::vector{1, 0, 2};
        if (rows) {
            shape.insert(shape.begin(), rows);
            for (int& axis : order) axis++;
            order.insert(order.begin(), 0);
        }
        return Tensor(real, shape, order, scan.complex ? 1 : 1 + random() % 2);
    };
    const auto projection = [&](bool constant) {
        if (constant) return of_states(0);
        const auto order = pick<std::vector<int>>(random, {{0, 1, 2, 3}, {0, 1, 3, 2}, {3, 0, 1, 2}});
        return Tensor(stored, {scan.batch, scan.groups, scan.state, scan.length * parts}, order, 1 + random() % 2);
    };
    const bool has_z = coin(random), has_D = coin(random), has_bias = coin(random), has_initial = coin(random),
               has_grad_last = coin(random);

    for (int d = 0; d < scan.directions; d++) {
        DirectionTensors& of = drawn.direction[d];
        Direction& direction = scan.direction[d];
        direction.reverse = d == 1 || (scan.directions == 1 && coin(random));
        of.u = channels(), of.u.draw(random, between(-1, 1));
        of.delta = channels(), of.delta.draw(random, scan.softplus ? between(-3, 3) : between(0.01, 0.5));
        if (has_z) of.z = channels(), of.z.draw(random, between(-3, 3));
        of.A = of_states(0), of.A.draw(random, between(-2, -0.01));
        of.B = projection(constant_B), of.B.draw(random, between(-1, 1));
        of.C = projection(constant_C), of.C.draw(random, between(-1, 1));
        const std::vector<int64_t> dim = {scan.dim};
        if (has_D) of.D = Tensor(real, dim, {0}, 1 + random() % 2), of.D.draw(random, between(-1, 1));
        if (has_bias)
            of.delta_bias = Tensor(real, dim, {0}, 1 + random() % 2), of.delta_bias.draw(random, between(0, 0.2));
        if (has_initial) of.initial = of_states(scan.batch), of.initial.draw(random, between(-1, 1));
        of.last = of_states(scan.batch);
        if (has_grad_last) of.grad_last = of_states(scan.batch), of.grad_last.draw(random, between(-1, 1));
        direction.u = channels_of(of.u), direction.delta = channels_of(of.delta), direction.z = channels_of(of.z);
        direction.A = weights_of(of.A, parts), direction.D = weights_of(of.D, 1),
        direction.delta_bias = weights_of(of.delta_bias, 1);
        direction.B = projection_of(of.B, parts), direction.C = projection_of(of.C, parts);
        direction.initial = states_of(of.initial, parts), direction.last = states_of(of.last, parts);
    }
    drawn.out = channels();
    scan.out = channels_of(drawn.out);
    drawn.grad_out = channels(), drawn.grad_out.draw(random, between(-1, 1));
    return drawn;
}

void prepare_gradients(Case& drawn) {
    Scan& scan = drawn.scan;
    const Type real = arithmetic(scan.type);
    const int64_t parts = drawn.parts();
    const auto dense = [](Type type, const std::vector<int64_t>& shape) {
        std::vector<int> order(shape.size());
        for (size_t i = 0; i < order.size(); i++) order[i] = int(i);
        return Tensor(type, shape, order);
    };
    const auto like = [&](const Tensor& tensor) {
        Tensor copy = dense(tensor.type, tensor.shape);
        return copy;
    };
    drawn.checkpoints = dense(real, {scan.directions, scan.batch, blocks(scan), scan.state, parts, scan.dim});
    scan.checkpoints = drawn.checkpoints.data();
    drawn.gradient.out = channels_of(drawn.grad_out);
    drawn.terms = dense(real, {int64_t(terms_bytes(scan)) / item_bytes(real)});
    drawn.gradient.terms = drawn.terms.data();
    for (int d = 0; d < scan.directions; d++) {
        DirectionTensors& of = drawn.direction[d];
        DirectionGradient& to = drawn.gradient.direction[d];
        of.grad_u = like(of.u), of.grad_delta = like(of.delta);
        if (of.z.exists()) of.grad_z = like(of.z);
        const std::vector<int64_t> fixed = {scan.dim, scan.state, parts},
                                   varying = {scan.batch, scan.groups, scan.length, scan.state, parts};
        of.grad_A = dense(real, fixed);
        of.grad_B = dense(real, scan.direction[d].B.constant ? fixed : varying);
        of.grad_C = dense(real, scan.direction[d].C.constant ? fixed : varying);
        if (of.D.exists()) of.grad_D = dense(real, {scan.dim});
        if (of.delta_bias.exists()) of.grad_delta_bias = dense(real, {scan.dim});
        if (of.initial.exists()) of.grad_initial = dense(real, {scan.batch, scan.dim, scan.state, parts});
        to.u = channels_of(of.grad_u), to.delta = channels_of(of.grad_delta), to.z = channels_of(of.grad_z);
        to.initial = states_of(of.grad_initial, int(parts)), to.last = states_of(of.grad_last, int(parts));
        to.A = of.grad_A.data(), to.B = of.grad_B.data(), to.C = of.grad_C.data();
        to.D = of.grad_D.data(), to.delta_bias = of.grad_delta_bias.data();
    }
}

}  // namespace scanlab::test
