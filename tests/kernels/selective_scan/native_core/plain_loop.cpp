#include "plain_loop.h"

namespace scanlab::test {

Truth plain_loop(const Case& drawn) {
    const Scan& scan = drawn.scan;
    const int64_t dim = scan.dim, length = scan.length, state = scan.state, each = dim / scan.groups;
    const double parts = drawn.parts();
    const auto number = [&](const Tensor& tensor, auto... index) {
        return Complex(tensor(index..., 0), scan.complex ? tensor(index..., 1) : 0);
    };
    const auto coefficient = [&](const Tensor& tensor, int64_t b, int64_t c, int64_t n, int64_t t) {
        if (tensor.shape.size() == 3) return number(tensor, c, n);
        return scan.complex ? Complex(tensor(b, c / each, n, 2 * t), tensor(b, c / each, n, 2 * t + 1))
                            : Complex(tensor(b, c / each, n, t));
    };
    Truth truth{Array({scan.batch, dim, length}), {}};
    for (int d = 0; d < scan.directions; d++) {
        const DirectionTensors& of = drawn.direction[d];
        const Direction& direction = scan.direction[d];
        const std::vector<int64_t> channels = {scan.batch, dim, length}, states = {scan.batch, dim, state},
                                   fixed = {dim, state};
        const std::vector<int64_t> varying = {scan.batch, scan.groups, state, length};
        DirectionTruth to{Array(states),
                          Array(channels),
                          Array(channels),
                          Array(channels),
                          Array(fixed),
                          Array(direction.B.constant ? fixed : varying),
                          Array(direction.C.constant ? fixed : varying),
                          Array({dim}),
                          Array({dim}),
                          Array(states)};
        for (int64_t b = 0; b < scan.batch; b++)
            for (int64_t c = 0; c < dim; c++) {
                const double skip = of.D.exists() ? of.D(c) : 0;
                std::vector<double> raw(length), step(length), y(length, 0), grad_y(length), grad_step(length, 0),
                    grad_drive(length, 0);
                const auto time_of = [&](int64_t i) { return direction.reverse ? length - 1 - i : i; };
                const auto sigmoid = [](double x) { return 1 / (1 + std::exp(-x)); };
                for (int64_t t = 0; t < length; t++) {
                    raw[t] = of.delta(b, c, t) + (of.delta_bias.exists() ? of.delta_bias(c) : 0);
                    step[t] = scan.softplus && raw[t] <= 20 ? std::log1p(std::exp(raw[t])) : raw[t];
                }
                std::vector<std::vector<Complex>> kept(state, std::vector<Complex>(length + 1));
                for (int64_t n = 0; n < state; n++) {
                    auto& h = kept[n];
                    h[0] = of.initial.exists() ? number(of.initial, b, c, n) : 0;
                    for (int64_t i = 0; i < length; i++) {
                        const int64_t t = time_of(i);
                        h[i + 1] = std::exp(step[t] * number(of.A, c, n)) * h[i] +
                                   step[t] * of.u(b, c, t) * coefficient(of.B, b, c, n, t);
                        y[t] += parts * (coefficient(of.C, b, c, n, t) * h[i + 1]).real();
                    }
                    to.last(b, c, n) = h[length];
                }
                for (int64_t t = 0; t < length; t++) {
                    const double u = of.u(b, c, t), gradient = drawn.grad_out(b, c, t), value = y[t] + skip * u;
                    const double z = of.z.exists() ? of.z(b, c, t) : 0, gate = of.z.exists() ? z * sigmoid(z) : 1;
                    truth.out(b, c, t) += value * gate;
                    to.z(b, c, t) = gradient * value * sigmoid(z) * (1 + z * (1 - sigmoid(z)));
                    grad_y[t] = gradient * gate;
                    to.u(b, c, t) = grad_y[t] * skip;
                    to.D(c) += grad_y[t] * u;
                }
                for (int64_t n = 0; n < state; n++) {
                    const Complex A = number(of.A, c, n);
                    Complex g = of.grad_last.exists() ? number(of.grad_last, b, c, n) : 0;
                    for (int64_t i = length; i-- > 0;) {
                        const int64_t t = time_of(i), group = c / each;
                        const Complex decay = std::exp(step[t] * A), B = coefficient(of.B, b, c, n, t),
                                      C = coefficient(of.C, b, c, n, t);
                        g += parts * grad_y[t] * std::conj(C);
                        const Complex grad_C = parts * grad_y[t] * std::conj(kept[n][i + 1]),
                                      grad_B = step[t] * of.u(b, c, t) * g;
                        (direction.C.constant ? to.C(c, n) : to.C(b, group, n, t)) += grad_C;
                        (direction.B.constant ? to.B(c, n) : to.B(b, group, n, t)) += grad_B;
                        grad_drive[t] += (g * std::conj(B)).real();
                        g *= std::conj(decay);
                        const Complex grad_exponent = g * std::conj(kept[n][i]);
                        to.A(c, n) += step[t] * grad_exponent;
                        grad_step[t] += (grad_exponent * std::conj(A)).real();
                    }
                    to.initial(b, c, n) = g;
                }
                for (int64_t t = 0; t < length; t++) {
                    const double slope = scan.softplus && raw[t] <= 20 ? sigmoid(raw[t]) : 1;
                    const double grad_delta = (grad_step[t] + grad_drive[t] * of.u(b, c, t)) * slope;
                    to.u(b, c, t) += grad_drive[t] * step[t];
                    to.delta(b, c, t) = grad_delta;
                    to.delta_bias(c) += grad_delta;
                }
            }
        truth.direction.push_back(std::move(to));
    }
    return truth;
}

}  // namespace scanlab::test
