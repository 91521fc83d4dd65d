// One unit for each instruction set; the macro SCANLAB_TARGET says which.
#include "functions.h"

#include "cpu/math.h"

namespace scanlab::test {

#define SCANLAB_TEXT(name) #name
#define SCANLAB_STRING(name) SCANLAB_TEXT(name)
#define SCANLAB_JOIN(isa) functions_##isa
#define SCANLAB_NAME(isa) SCANLAB_JOIN(isa)
extern const Functions SCANLAB_NAME(SCANLAB_TARGET);

namespace {
namespace isa = SCANLAB_TARGET;

// As many vectors at a time as the scan takes through softplus and the gate.
template <class T, class Function>
void map(const T* x, T* y, int count, const Function& function) {
    constexpr int time_unroll = 2, width = isa::lanes<T>;
    for (int i = 0; i + time_unroll * width <= count; i += time_unroll * width) {
        const isa::Pack<T, time_unroll> result =
            function(isa::Pack<T, time_unroll>{{isa::load<T>(x + i), isa::load<T>(x + i + width)}});
        isa::store<T>(y + i, result.of[0]);
        isa::store<T>(y + i + width, result.of[1]);
    }
}

template <Exp variant, class T>
void exp2(const T* x, T* y, int count) {
    map(x, y, count, [](const auto& v) { return isa::exp2<variant>(v); });
}
template <class T>
void softplus(const T* x, T* y, int count) {
    map(x, y, count, [](const auto& v) { return isa::softplus(v); });
}
template <class T>
void softplus_slope(const T* x, T* y, int count) {
    map(x, y, count, [](const auto& v) { return isa::softplus_slope(v, isa::exp_of_minus_size(v)); });
}
template <class T>
void sigmoid(const T* x, T* y, int count) {
    map(x, y, count, [](const auto& v) { return isa::sigmoid(v); });
}
template <class T, bool of_sine>
void transpose(const T* x, T* y, int count) {
    map(x, y, count, [](const auto& v) {
        auto sine = v, cosine = v;
        isa::sine_and_cosine(v, sine, cosine);
        return of_sine ? sine : cosine;
    });
}

template <class Storage>
void from_half(const uint16_t* bits, float* y, int count) {
    for (int i = 0; i < count; i += isa::lanes<float>)
        isa::store<float>(y + i, isa::load<float>(reinterpret_cast<const Storage*>(bits + i)));
}
template <class Storage>
void to_half(const float* x, uint16_t* bits, int count) {
    for (int i = 0; i < count; i += isa::lanes<float>)
        isa::store<float>(reinterpret_cast<Storage*>(bits + i), isa::load<float>(x + i));
}
}  // namespace

const Functions SCANLAB_NAME(SCANLAB_TARGET) = {
    SCANLAB_STRING(SCANLAB_TARGET), exp2<Exp::fast, float>,   exp2<Exp::exact, float>, softplus<float>,
    softplus_slope<float>,          sigmoid<float>,           transpose<float, true>,  transpose<float, false>,
    exp2<Exp::exact, double>,       softplus<double>,         softplus_slope<double>,  sigmoid<double>,
    transpose<double, true>,        transpose<double, false>, from_half<isa::float16>, to_half<isa::float16>,
    from_half<isa::bfloat16>,       to_half<isa::bfloat16>,
};

}  // namespace scanlab::test
