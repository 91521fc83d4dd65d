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

#include "plain_loop.h"

namespace scanlab::test {
namespace {

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
                  "case %d on %s: batch %d, dim %d, length %d, state %d, groups %d, type %d, complex %d, directions "
                  "%d, exp %d, threads %d, "
                  "time_block %d, channel_tile %d, time_chunks %d",
                  number, isa_names[int(scan.isa)], int(scan.batch), int(scan.dim), int(scan.length), int(scan.state),
                  int(scan.groups), int(scan.type), scan.complex, scan.directions, int(scan.exp), scan.threads,
                  scan.time_block, scan.channel_tile, scan.time_chunks);
    return text;
}

// Everything that a scan and its gradients write.
std::vector<const Tensor*> written(const Case& drawn) {
    std::vector<const Tensor*> tensors = {&drawn.out, &drawn.checkpoints};
    for (const DirectionTensors& of : drawn.direction)
        for (const Tensor* tensor : {&of.last, &of.grad_u, &of.grad_delta, &of.grad_z, &of.grad_A, &of.grad_B,
                                     &of.grad_C, &of.grad_D, &of.grad_delta_bias, &of.grad_initial})
            if (tensor->exists()) tensors.push_back(tensor);
    return tensors;
}

void run_all(Case& drawn) {
    run(drawn.scan);
    run_backward(drawn.scan, drawn.gradient);
}

void check(int number, const std::string& only, Report& report) {
    Case drawn = draw_case(number);
    Truth truth = plain_loop(drawn);
    const std::map<Type, double> of_type = {
        {Type::float64, 1e-13}, {Type::float32, 1e-5}, {Type::float16, 2e-3}, {Type::bfloat16, 1e-2}};
    const double stored = of_type.at(drawn.scan.type), exact = of_type.at(arithmetic(drawn.scan.type));
    for (int isa = 0; isa <= int(best_isa()); isa++) {
        if (!only.empty() && only != isa_names[isa]) continue;
        drawn.scan.isa = Isa(isa);
        const std::string what = described(number, drawn.scan);
        const bool complex = drawn.scan.complex;
        prepare_gradients(drawn);
        run_all(drawn);
        const auto same = [&](const char* name, Array& want, const Tensor& tensor, double tolerance,
                              bool varying = false) {
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
            report.expect(what, first[i]->same_bits(*second[i]),
                          "other threads and chunks of time gave other bits in tensor " + std::to_string(i));
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
