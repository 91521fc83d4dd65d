// The scan and its gradients against a plain loop in double: random shapes, strides, storage types, options and
// cuts into tiles, on every instruction set of this machine or a named one, from several threads at once.
//
// Usage: scan_test [cases [instruction set]]
#include <algorithm>
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <mutex>
#include <string>
#include <thread>

#include "tensors.h"

namespace scanlab::test {
namespace {

// The tensors of one direction, and of their gradients. Complex ones have a last axis of (real, imaginary).
struct DirectionTensors {
    Tensor u, delta, z, A, B, C, D, delta_bias, initial, last, grad_last;
    Tensor grad_u, grad_delta, grad_z, grad_A, grad_B, grad_C, grad_D, grad_delta_bias, grad_initial;
};

// A scan with the memory that it points to.
struct Case {
    Scan scan;
    Gradient gradient;
    DirectionTensors direction[2];
    Tensor out, grad_out, checkpoints, terms;
    int parts() const { return scan.complex ? 2 : 1; }
};

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
    if (tensor.shape.size() == 3) return {tensor.data(), true, 0, 0, tensor.strides[0] / parts, tensor.strides[1] / parts, 0};
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
    scan.state = random() % 12 ? pick<int64_t>(random, {1, 2, 3, 4, 7, 8, 15, 16, 17}) : pick<int64_t>(random, {64, 255, 256});
    if (scan.state >= 64) scan.length = std::min<int64_t>(scan.length, 17), scan.dim = scan.groups * (1 + random() % 20);
    scan.directions = random() % 3 == 0 ? 2 : 1;
    scan.softplus = coin(random);
    scan.exp = coin(random) || scan.complex || constant_B || constant_C || scan.type == Type::float64 ? Exp::exact : Exp::fast;
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
    const bool has_z = coin(random), has_D = coin(random), has_bias = coin(random), has_initial = coin(random), has_grad_last = coin(random);

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
        if (has_bias) of.delta_bias = Tensor(real, dim, {0}, 1 + random() % 2), of.delta_bias.draw(random, between(0, 0.2));
        if (has_initial) of.initial = of_states(scan.batch), of.initial.draw(random, between(-1, 1));
        of.last = of_states(scan.batch);
        if (has_grad_last) of.grad_last = of_states(scan.batch), of.grad_last.draw(random, between(-1, 1));
        direction.u = channels_of(of.u), direction.delta = channels_of(of.delta), direction.z = channels_of(of.z);
        direction.A = weights_of(of.A, parts), direction.D = weights_of(of.D, 1), direction.delta_bias = weights_of(of.delta_bias, 1);
        direction.B = projection_of(of.B, parts), direction.C = projection_of(of.C, parts);
        direction.initial = states_of(of.initial, parts), direction.last = states_of(of.last, parts);
    }
    drawn.out = channels();
    scan.out = channels_of(drawn.out);
    drawn.grad_out = channels(), drawn.grad_out.draw(random, between(-1, 1));
    return drawn;
}

// Memory for checkpoints and gradients; its size depends on the lanes of the instruction set.
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
        const std::vector<int64_t> fixed = {scan.dim, scan.state, parts}, varying = {scan.batch, scan.groups, scan.length, scan.state, parts};
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

// Numbers by their place, in double.
struct Array {
    std::vector<int64_t> shape;
    std::vector<Complex> values;
    explicit Array(std::vector<int64_t> shape) : shape(std::move(shape)) {
        int64_t count = 1;
        for (int64_t size : this->shape) count *= size;
        values.assign(count, 0);
    }
    template <class... Index>
    Complex& operator()(Index... index) {
        int64_t at = 0;
        size_t axis = 0;
        for (int64_t i : {int64_t(index)...}) at = at * shape[axis++] + i;
        return values[at];
    }
};

struct DirectionTruth {
    Array last, u, delta, z, A, B, C, D, delta_bias, initial;
};
struct Truth {
    Array out;
    std::vector<DirectionTruth> direction;
};

// The definition of the scan, step by step, and its gradients by the chain rule from the last step to the first.
Truth plain_loop(const Case& drawn) {
    const Scan& scan = drawn.scan;
    const int64_t dim = scan.dim, length = scan.length, state = scan.state, each = dim / scan.groups;
    const double parts = drawn.parts();
    const auto number = [&](const Tensor& tensor, auto... index) {
        return Complex(tensor(index..., 0), scan.complex ? tensor(index..., 1) : 0);
    };
    const auto coefficient = [&](const Tensor& tensor, int64_t b, int64_t c, int64_t n, int64_t t) {
        if (tensor.shape.size() == 3) return number(tensor, c, n);
        return scan.complex ? Complex(tensor(b, c / each, n, 2 * t), tensor(b, c / each, n, 2 * t + 1)) : Complex(tensor(b, c / each, n, t));
    };
    Truth truth{Array({scan.batch, dim, length}), {}};
    for (int d = 0; d < scan.directions; d++) {
        const DirectionTensors& of = drawn.direction[d];
        const Direction& direction = scan.direction[d];
        const std::vector<int64_t> channels = {scan.batch, dim, length}, states = {scan.batch, dim, state}, fixed = {dim, state};
        const std::vector<int64_t> varying = {scan.batch, scan.groups, state, length};
        DirectionTruth to{Array(states), Array(channels), Array(channels), Array(channels), Array(fixed),
                          Array(direction.B.constant ? fixed : varying), Array(direction.C.constant ? fixed : varying),
                          Array({dim}), Array({dim}), Array(states)};
        for (int64_t b = 0; b < scan.batch; b++)
            for (int64_t c = 0; c < dim; c++) {
                const double skip = of.D.exists() ? of.D(c) : 0;
                std::vector<double> raw(length), step(length), y(length, 0), grad_y(length), grad_step(length, 0), grad_drive(length, 0);
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
                        h[i + 1] = std::exp(step[t] * number(of.A, c, n)) * h[i] + step[t] * of.u(b, c, t) * coefficient(of.B, b, c, n, t);
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
                        const Complex decay = std::exp(step[t] * A), B = coefficient(of.B, b, c, n, t), C = coefficient(of.C, b, c, n, t);
                        g += parts * grad_y[t] * std::conj(C);
                        const Complex grad_C = parts * grad_y[t] * std::conj(kept[n][i + 1]), grad_B = step[t] * of.u(b, c, t) * g;
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

class Report {
public:
    // Takes in the largest error of a tensor as a share of its largest value.
    void compare(const std::string& what, Array& want, const std::string& name, double tolerance, const Array& got) {
        double largest = 0, error = 0;
        for (size_t i = 0; i < want.values.size(); i++) {
            largest = std::max(largest, std::abs(want.values[i]));
            const double off = std::abs(want.values[i] - got.values[i]);
            error = std::max(error, off == off ? off : INFINITY);
        }
        const double share = error / (largest ? largest : 1);
        const std::lock_guard<std::mutex> lock(mutex);
        compared++;
        if (share > tolerance) fail(what, name + " is off by " + std::to_string(share) + " of its largest value");
    }
    void expect(const std::string& what, bool holds, const std::string& claim) {
        const std::lock_guard<std::mutex> lock(mutex);
        compared++;
        if (!holds) fail(what, claim);
    }
    int compared = 0, failures = 0;

private:
    std::mutex mutex;
    void fail(const std::string& what, const std::string& how) {
        failures++;
        std::printf("FAILED %s: %s\n", what.c_str(), how.c_str());
    }
};

// The values of a tensor in the shape of the truth.
Array values_of(const Array& like, const Tensor& tensor, bool complex, bool varying = false) {
    Array got(like.shape);
    const auto& shape = tensor.shape;
    const auto number = [&](auto... index) { return Complex(tensor(index..., 0), complex ? tensor(index..., 1) : 0); };
    if (varying) {
        for (int64_t b = 0; b < shape[0]; b++)
            for (int64_t g = 0; g < shape[1]; g++)
                for (int64_t t = 0; t < shape[2]; t++)
                    for (int64_t n = 0; n < shape[3]; n++) got(b, g, n, t) = number(b, g, t, n);
    } else if (shape.size() == 4) {
        for (int64_t b = 0; b < shape[0]; b++)
            for (int64_t c = 0; c < shape[1]; c++)
                for (int64_t n = 0; n < shape[2]; n++) got(b, c, n) = number(b, c, n);
    } else if (shape.size() == 3 && like.shape.size() == 2) {
        for (int64_t c = 0; c < shape[0]; c++)
            for (int64_t n = 0; n < shape[1]; n++) got(c, n) = number(c, n);
    } else if (shape.size() == 3) {
        for (int64_t b = 0; b < shape[0]; b++)
            for (int64_t c = 0; c < shape[1]; c++)
                for (int64_t t = 0; t < shape[2]; t++) got(b, c, t) = tensor(b, c, t);
    } else {
        for (int64_t c = 0; c < shape[0]; c++) got(c) = tensor(c);
    }
    return got;
}

const char* const isa_names[] = {"plain",
#if defined(__x86_64__)
                                 "avx2", "avx512"
#elif defined(__aarch64__)
                                 "neon"
#endif
};

std::string described(int number, const Scan& scan) {
    char text[400];
    std::snprintf(text, sizeof(text),
                  "case %d on %s: batch %d, dim %d, length %d, state %d, groups %d, type %d, complex %d, directions %d, exp %d, threads %d, "
                  "time_block %d, channel_tile %d, time_chunks %d",
                  number, isa_names[int(scan.isa)], int(scan.batch), int(scan.dim), int(scan.length), int(scan.state), int(scan.groups),
                  int(scan.type), scan.complex, scan.directions, int(scan.exp), scan.threads, scan.time_block, scan.channel_tile, scan.time_chunks);
    return text;
}

// Everything that a scan and its gradients write.
std::vector<const Tensor*> written(const Case& drawn) {
    std::vector<const Tensor*> tensors = {&drawn.out, &drawn.checkpoints};
    for (const DirectionTensors& of : drawn.direction)
        for (const Tensor* tensor : {&of.last, &of.grad_u, &of.grad_delta, &of.grad_z, &of.grad_A, &of.grad_B, &of.grad_C, &of.grad_D,
                                     &of.grad_delta_bias, &of.grad_initial})
            if (tensor->exists()) tensors.push_back(tensor);
    return tensors;
}

void run_all(Case& drawn) {
    run(drawn.scan);
    run_back(drawn.scan, drawn.gradient);
}

void check(int number, const std::string& only, Report& report) {
    Case drawn = draw_case(number);
    Truth truth = plain_loop(drawn);
    const std::map<Type, double> of_type = {{Type::float64, 1e-13}, {Type::float32, 1e-5}, {Type::float16, 2e-3}, {Type::bfloat16, 1e-2}};
    const double stored = of_type.at(drawn.scan.type), exact = of_type.at(arithmetic(drawn.scan.type));
    for (int isa = 0; isa <= int(best_isa()); isa++) {
        if (!only.empty() && only != isa_names[isa]) continue;
        drawn.scan.isa = Isa(isa);
        const std::string what = described(number, drawn.scan);
        const bool complex = drawn.scan.complex;
        prepare_gradients(drawn);
        run_all(drawn);
        const auto same = [&](const char* name, Array& want, const Tensor& tensor, double tolerance, bool varying = false) {
            if (tensor.exists()) report.compare(what, want, name, tolerance, values_of(want, tensor, complex, varying));
        };
        same("out", truth.out, drawn.out, 2 * stored);
        for (int d = 0; d < drawn.scan.directions; d++) {
            const DirectionTensors& of = drawn.direction[d];
            DirectionTruth& want = truth.direction[d];
            same("last", want.last, of.last, exact);
            same("grad_u", want.u, of.grad_u, 2 * stored);
            same("grad_delta", want.delta, of.grad_delta, 2 * stored);
            same("grad_z", want.z, of.grad_z, 2 * stored);
            same("grad_A", want.A, of.grad_A, 10 * exact);
            same("grad_B", want.B, of.grad_B, 10 * exact, !drawn.scan.direction[d].B.constant);
            same("grad_C", want.C, of.grad_C, 10 * exact, !drawn.scan.direction[d].C.constant);
            same("grad_D", want.D, of.grad_D, 10 * exact);
            same("grad_delta_bias", want.delta_bias, of.grad_delta_bias, 10 * exact);
            same("grad_initial", want.initial, of.grad_initial, exact);
        }
        // Neither the number of threads nor chunks of time change a bit.
        std::vector<std::vector<char>> before;
        Case again = draw_case(number);
        again.scan.isa = Isa(isa), again.scan.threads = 5 - drawn.scan.threads, again.scan.time_chunks = 1;
        prepare_gradients(again);
        run_all(again);
        const auto first = written(drawn), second = written(again);
        for (size_t i = 0; i < first.size(); i++)
            report.expect(what, first[i]->same_bits(*second[i]), "other threads and chunks of time gave other bits in tensor " + std::to_string(i));
    }
}

}  // namespace
}  // namespace scanlab::test

int main(int count, char** words) {
    const int cases = count > 1 ? std::atoi(words[1]) : 300;
    const std::string only = count > 2 ? words[2] : "";
    scanlab::test::Report report;
    std::atomic<int> next{0};
    std::vector<std::thread> threads;
    for (int i = 0; i < 3; i++)
        threads.emplace_back([&] {
            for (int number; (number = next++) < cases;) check(number, only, report);
        });
    for (std::thread& thread : threads) thread.join();
    std::printf("scan: %d cases, %d comparisons, %d failures\n", cases, report.compared, report.failures);
    return report.failures || !report.compared ? 1 : 0;
}
