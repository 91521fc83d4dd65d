// The largest errors of the kernel's functions, over every `step`-th float32 and around the places where they
// change their ways; 1 means all of them. Says for each function and instruction set
//
//     error NAME ISA VALUE AT
//
// in the measure that `measures` gives it, and fails where infinities, NaN, underflow or half types go astray.
//
// Usage: math_test [step]
#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

#include "functions.h"
#include "tensors.h"

namespace scanlab::test {

extern const Functions functions_plain;
#if defined(__x86_64__)
extern const Functions functions_avx2, functions_avx512;
#elif defined(__aarch64__)
extern const Functions functions_neon;
#endif

namespace {

// In the order of Isa.
const Functions* const all_functions[] = {&functions_plain,
#if defined(__x86_64__)
                                          &functions_avx2, &functions_avx512
#elif defined(__aarch64__)
                                          &functions_neon
#endif
};
constexpr int chunk = 4096;
constexpr double smallest_normal = 0x1p-126;

std::atomic<int> failures{0};
std::mutex printing;

void fail(const char* isa, const char* name, double x, double got, double want) {
    const std::lock_guard<std::mutex> lock(printing);
    if (failures++ < 20) std::printf("FAILED %s on %s: of %.9g it is %.9g and must be %.9g\n", name, isa, x, got, want);
}

struct Worst {
    double error = 0, at = 0;
    void take(double value, double x) {
        if (value > error) error = value, at = x;
    }
};

// Relative errors; where an argument is far below 0 its own last bit counts -x times as much in exp(x).
double relative(double got, double want) { return std::abs(got - want) / want; }
double conditioned(double got, double want, double x) { return relative(got, want) / (1 + std::max(0.0, -x)); }
double absolute(double got, double want, double) { return std::abs(got - want); }

template <class T>
struct Function {
    const char* name;
    Map<T> Functions::* map;
    long double (*exact)(long double);
    double (*measure)(double got, double want, double x);
};

// Above this softplus is linear, as upstream: in double the logarithm would add 2e-9.
constexpr double linear_above = 20;

long double exact_softplus(long double x) { return x > linear_above ? x : std::log1p(std::exp(x)); }
long double exact_sigmoid(long double x) { return 1 / (1 + std::exp(-x)); }
long double exact_softplus_slope(long double x) { return x > linear_above ? 1 : exact_sigmoid(x); }

// 2^x: without scalef the results are 0 below 2^-126.5 and infinite from 2^127.5 on.
void check_exp(const Functions& of, const char* name, double x, double got, double want, Worst& worst) {
    if (x >= -126 && x < 127.5) return worst.take(relative(got, want), x);
    const bool right = x != x    ? got != got
                       : x < 0   ? got >= 0 && std::abs(got - want) <= smallest_normal
                       : x < 128 ? std::isinf(got) || relative(got, want) < 1e-6
                                 : got == INFINITY;
    if (!right) fail(of.isa, name, x, got, want);
}

// softplus, its slope and sigmoid: below the normal numbers 0 will do.
void check_positive(const Functions& of, const char* name, double x, double got, double want, Worst& worst) {
    if (want >= smallest_normal && std::isfinite(x)) return worst.take(conditioned(got, want, x), x);
    const bool right = x != x          ? got != got
                       : std::isinf(x) ? got == want
                                       : got >= 0 && std::abs(got - want) <= smallest_normal;
    if (!right) fail(of.isa, name, x, got, want);
}

// The worst of each function on each instruction set over some float32.
struct Sweep {
    static constexpr int functions = 7;
    static constexpr const char* names[functions] = {"exp_fast", "exp_exact", "softplus", "softplus_slope",
                                                     "sigmoid",  "sine",      "cosine"};
    static constexpr Map<float> Functions::* maps[functions] = {
        &Functions::exp_fast, &Functions::exp_exact, &Functions::softplus, &Functions::softplus_slope,
        &Functions::sigmoid,  &Functions::sine,      &Functions::cosine};
    Worst worst[std::size(all_functions)][functions];

    void over(const float (&x)[chunk], int isas) {
        static thread_local double want[functions][chunk];
        float got[chunk];
        for (int i = 0; i < chunk; i++) {
            const double at = x[i];
            want[0][i] = want[1][i] = std::exp2(at);
            const double exponential = std::exp(-std::abs(at)), larger = std::max(at, 0.0);
            want[2][i] = at == at ? larger + std::log1p(exponential) : at;
            want[4][i] = at >= 0 ? 1 / (1 + exponential) : exponential / (1 + exponential);
            want[3][i] = at > linear_above ? 1 : want[4][i];
            want[5][i] = std::abs(at) < 1e4 ? std::sin(at) : NAN;
            want[6][i] = std::abs(at) < 1e4 ? std::cos(at) : NAN;
        }
        for (int isa = 0; isa < isas; isa++) {
            const Functions& of = *all_functions[isa];
            for (int f = 0; f < functions; f++) {
                (of.*maps[f])(x, got, chunk);
                Worst& here = worst[isa][f];
                for (int i = 0; i < chunk; i++) {
                    if (f < 2) check_exp(of, names[f], x[i], got[i], want[f][i], here);
                    else if (f < 5) check_positive(of, names[f], x[i], got[i], want[f][i], here);
                    else if (want[f][i] == want[f][i]) here.take(absolute(got[i], want[f][i], x[i]), x[i]);
                }
            }
        }
    }
};

float from_bits(uint32_t bits) {
    float value;
    std::memcpy(&value, &bits, 4);
    return value;
}
uint32_t bits_of(float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, 4);
    return bits;
}

void sweep_floats(int64_t step, int isas) {
    const int workers = std::max(1u, std::thread::hardware_concurrency());
    std::vector<Sweep> sweeps(workers);
    std::atomic<int64_t> next{0};
    const int64_t chunks = ((int64_t(1) << 32) / step + chunk - 1) / chunk;
    std::vector<float> special;
    for (float at : {0.f,    -0.f,   1.f,     20.f,   -20.f,    87.f,      -87.f, 104.f,     -104.f,     126.f,
                     -126.f, 126.5f, -126.5f, 127.f,  -127.f,   127.5f,    128.f, -128.f,    150.f,      -150.f,
                     1e4f,   -1e4f,  1e30f,   -1e30f, INFINITY, -INFINITY, NAN,   0x1p-126f, -0x1p-126f, 0x1p-149f})
        for (int64_t off = -2000; off <= 2000; off++) special.push_back(from_bits(uint32_t(bits_of(at) + off)));
    for (int64_t sixteenth = -2100; sixteenth <= 2100; sixteenth++)  // where tables and roundings change
        for (int off = -3; off <= 3; off++) special.push_back(from_bits(uint32_t(bits_of(sixteenth / 32.f) + off)));
    special.resize((special.size() + chunk - 1) / chunk * chunk, 1.f);
    const int64_t special_chunks = int64_t(special.size()) / chunk;
    std::vector<std::thread> threads;
    for (int worker = 0; worker < workers; worker++)
        threads.emplace_back([&, worker] {
            float x[chunk];
            for (int64_t index; (index = next++) < chunks + special_chunks;) {
                for (int i = 0; i < chunk; i++)
                    x[i] = index < chunks ? from_bits(uint32_t((index * chunk + i) * step))
                                          : special[(index - chunks) * chunk + i];
                sweeps[worker].over(x, isas);
            }
        });
    for (std::thread& thread : threads) thread.join();
    for (int isa = 0; isa < isas; isa++)
        for (int f = 0; f < Sweep::functions; f++) {
            Worst worst;
            for (const Sweep& sweep : sweeps) worst.take(sweep.worst[isa][f].error, sweep.worst[isa][f].at);
            std::printf("error %s %s %.3g %.9g\n", Sweep::names[f], all_functions[isa]->isa, worst.error, worst.at);
        }
}

// The same for double, over numbers drawn at random from where each function is not constant.
void sweep_doubles(int isas) {
    const Function<double> functions[] = {
        {"exp_double", &Functions::exp_double, std::exp2,
         [](double got, double want, double) { return relative(got, want); }},
        {"softplus_double", &Functions::softplus_double, exact_softplus, conditioned},
        {"softplus_slope_double", &Functions::softplus_slope_double, exact_softplus_slope, conditioned},
        {"sigmoid_double", &Functions::sigmoid_double, exact_sigmoid, conditioned},
        {"sine_double", &Functions::sine_double, std::sin, absolute},
        {"cosine_double", &Functions::cosine_double, std::cos, absolute},
    };
    Random random(1);
    double x[chunk], got[chunk];
    long double want[chunk];
    for (const auto& function : functions) {
        Worst worst[std::size(all_functions)];
        for (int round = 0; round < 16; round++) {
            const double reach = std::ldexp(1, 9 - round);  // 512, 256, ...
            for (int i = 0; i < chunk; i++) {
                x[i] = reach * (random() / 2147483648.0 - 1 + random() * 0x1p-63);
                want[i] = function.exact(x[i]);
            }
            for (int isa = 0; isa < isas; isa++) {
                (all_functions[isa]->*function.map)(x, got, chunk);
                for (int i = 0; i < chunk; i++) worst[isa].take(function.measure(got[i], double(want[i]), x[i]), x[i]);
            }
        }
        for (int isa = 0; isa < isas; isa++)
            std::printf("error %s %s %.3g %.17g\n", function.name, all_functions[isa]->isa, worst[isa].error,
                        worst[isa].at);
    }
}

// The nearest half of a number, ties to the even one, found among all halves of its sign.
uint16_t nearest(double x, double (*value)(uint16_t), uint16_t infinity) {
    const uint16_t sign = std::signbit(x) ? 0x8000 : 0;
    uint16_t low = 0, high = infinity;
    while (high - low > 1) {
        const uint16_t middle = low + (high - low) / 2;
        (value(middle) <= std::abs(x) ? low : high) = middle;
    }
    // Beyond the largest number infinity stands where the next number would.
    const double below = value(low), step = below - value(low - (low > 0)),
                 above = high == infinity ? below + step : value(high);
    const double down = std::abs(x) - below, up = above - std::abs(x);
    return sign | (down < up || (down == up && low % 2 == 0) ? low : high);
}

void check_halves(int isas, int64_t step) {
    struct Half {
        const char* name;
        double (*value)(uint16_t);
        uint16_t infinity;
        void (*Functions::*from)(const uint16_t*, float*, int);
        void (*Functions::*to)(const float*, uint16_t*, int);
    };
    const Half halves[] = {{"float16", from_float16, 0x7c00, &Functions::from_float16, &Functions::to_float16},
                           {"bfloat16", from_bfloat16, 0x7f80, &Functions::from_bfloat16, &Functions::to_bfloat16}};
    std::vector<uint16_t> bits(1 << 16), back(1 << 16);
    std::vector<float> values(1 << 16);
    for (size_t i = 0; i < bits.size(); i++) bits[i] = uint16_t(i);
    for (const Half& half : halves)
        for (int isa = 0; isa < isas; isa++) {
            const Functions& of = *all_functions[isa];
            (of.*half.from)(bits.data(), values.data(), 1 << 16);
            (of.*half.to)(values.data(), back.data(), 1 << 16);
            for (int i = 0; i < 1 << 16; i++) {
                const double want = half.value(bits[i]);
                const bool is_nan = want != want;
                if (is_nan ? values[i] == values[i] : values[i] != want) fail(of.isa, half.name, i, values[i], want);
                if (is_nan ? half.value(back[i]) == half.value(back[i]) : back[i] != bits[i])
                    fail(of.isa, half.name, i, back[i], bits[i]);
            }
            // Around every half and every middle between two of them, and far beyond.
            std::vector<float> x;
            for (int64_t i = 0; i < half.infinity; i += step) {
                const double low = half.value(uint16_t(i)), high = i + 1 == half.infinity
                                                                       ? 2 * low - half.value(uint16_t(i - 1))
                                                                       : half.value(uint16_t(i + 1));
                for (const double at : {low, (low + high) / 2})
                    for (const float sign : {1.f, -1.f})
                        for (const float toward : {-INFINITY, float(at), INFINITY})
                            x.push_back(sign * std::nextafter(float(at), toward));
            }
            for (const float at : {1e38f, -1e38f, 1e-40f, INFINITY, -INFINITY}) x.push_back(at);
            x.resize((x.size() + 31) / 32 * 32, 1.f);
            std::vector<uint16_t> rounded(x.size());
            (of.*half.to)(x.data(), rounded.data(), int(x.size()));
            for (size_t i = 0; i < x.size(); i++)
                if (rounded[i] != nearest(x[i], half.value, half.infinity))
                    fail(of.isa, half.name, x[i], rounded[i], nearest(x[i], half.value, half.infinity));
            // Quiet NaNs from the smallest to the largest, which must not round to another number.
            std::vector<uint32_t> nans;
            for (uint32_t payload = 0; payload <= 0x3fffff; payload += 0x7ff)
                nans.insert(nans.end(), {0x7fc00000 | payload, 0xffc00000 | payload});
            nans.resize((nans.size() + 31) / 32 * 32, 0xffffffff);
            x.resize(nans.size()), rounded.resize(nans.size());
            std::memcpy(x.data(), nans.data(), nans.size() * sizeof(float));
            (of.*half.to)(x.data(), rounded.data(), int(x.size()));
            for (size_t i = 0; i < x.size(); i++)
                if (const double got = half.value(rounded[i]); got == got) fail(of.isa, half.name, nans[i], got, NAN);
        }
}

}  // namespace
}  // namespace scanlab::test

int main(int count, char** words) {
    using namespace scanlab::test;
    const int64_t step = count > 1 ? std::atoll(words[1]) : 997;
    const int isas = int(scanlab::best_isa()) + 1;
    sweep_floats(step, isas);
    sweep_doubles(isas);
    check_halves(isas, step > 1 ? 5 : 1);
    std::printf("math: every %lld-th float32, %d instruction sets, %d failures\n", static_cast<long long>(step), isas,
                int(failures));
    return failures ? 1 : 0;
}
