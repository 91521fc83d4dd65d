// The functions of the scan on packs of vectors: exp2, softplus, sigmoid, sine and cosine.
#pragma once

#include "cpu/simd.h"

namespace scanlab::SCANLAB_TARGET {

// Several independent vectors that take the same operations, so that none waits for its own results.
template <class T, int count>
struct Pack {
    Vec<T> of[count];
};
template <class T, int count, class Function>
SCANLAB_INLINE Pack<T, count> each(const Pack<T, count>& a, Function function) {
    Pack<T, count> result;
#pragma GCC unroll 8
    for (int i = 0; i < count; i++) result.of[i] = function(a.of[i]);
    return result;
}
template <class T, int count, class Function>
SCANLAB_INLINE Pack<T, count> each(const Pack<T, count>& a, const Pack<T, count>& b, Function function) {
    Pack<T, count> result;
#pragma GCC unroll 8
    for (int i = 0; i < count; i++) result.of[i] = function(a.of[i], b.of[i]);
    return result;
}
template <class T, int count>
SCANLAB_INLINE Pack<T, count> operator+(const Pack<T, count>& a, const Pack<T, count>& b) {
    return each(a, b, [](Vec<T> x, Vec<T> y) { return x + y; });
}
template <class T, int count>
SCANLAB_INLINE Pack<T, count> operator-(const Pack<T, count>& a, const Pack<T, count>& b) {
    return each(a, b, [](Vec<T> x, Vec<T> y) { return x - y; });
}
template <class T, int count>
SCANLAB_INLINE Pack<T, count> operator*(const Pack<T, count>& a, const Pack<T, count>& b) {
    return each(a, b, [](Vec<T> x, Vec<T> y) { return x * y; });
}
template <class T, int count>
SCANLAB_INLINE Pack<T, count> operator+(const Pack<T, count>& a, T b) {
    return each(a, [b](Vec<T> x) { return x + b; });
}
template <class T, int count>
SCANLAB_INLINE Pack<T, count> operator*(const Pack<T, count>& a, T b) {
    return each(a, [b](Vec<T> x) { return x * b; });
}

// c[0] + c[1] f + c[2] f^2 + ..., each further coefficient with one multiply-add.
template <class T, int count, int terms>
SCANLAB_INLINE Pack<T, count> polynomial(const Pack<T, count>& f, const T (&c)[terms]) {
    Pack<T, count> p = f * c[terms - 1] + c[terms - 2];
#pragma GCC unroll 16
    for (int k = terms - 3; k >= 0; k--) p = p * f + c[k];
    return p;
}

// Polynomials for (2^f - 1) / f on [-1/2, 1/2], so that the error of 2^f vanishes with f: a decay near 1 keeps
// its distance from 1. Relative errors of 2^f before rounding: fast 1.6e-7, float 4.5e-9, double 2e-17.
inline constexpr float exp2_fast[] = {0.69314706f, 0.24022369f, 0.055507038f, 0.009665354f, 0.0013255808f};
inline constexpr float exp2_float[] = {0.6931472f,   0.24022649f,   0.05550368f,
                                       0.009618401f, 0.0013387045f, 0.00015341799f};
inline constexpr double exp2_double[] = {0.69314718055994530942,   0.2402265069591009822,    0.055504108664821594339,
                                         0.0096181291076068885273, 0.001333355814641693531,  0.00015403530441736050155,
                                         1.5252733829836118394e-5, 1.3215442587921689653e-6, 1.0178062445845773521e-7,
                                         7.0725859492692236999e-9, 4.4549605981865183938e-10};

#if defined(__AVX512F__)
// x - round(x 2^bits) / 2^bits, 0 for infinite x; and x 2^floor(k).
template <int bits>
SCANLAB_INLINE Vec<float> remainder(Vec<float> x) {
    return _mm512_reduce_ps(x, bits << 4 | 8);
}
template <int bits>
SCANLAB_INLINE Vec<double> remainder(Vec<double> x) {
    return _mm512_reduce_pd(x, bits << 4 | 8);
}
SCANLAB_INLINE Vec<float> scaled(Vec<float> x, Vec<float> k) { return _mm512_scalef_ps(x, k); }
SCANLAB_INLINE Vec<double> scaled(Vec<double> x, Vec<double> k) { return _mm512_scalef_pd(x, k); }
#endif

// 2^x for every x. Without scalef the exponent is written by integer arithmetic: below 2^-126 the result is
// 0, and infinity begins half an octave early.
template <class T, int count, int terms>
SCANLAB_INLINE Pack<T, count> exp2_polynomial(Pack<T, count> x, const T (&coefficients)[terms]) {
#if defined(__AVX512F__)
    const auto f = each(x, [](Vec<T> v) { return remainder<0>(v); });
    return each(polynomial(f, coefficients) * f + T(1), x - f, [](Vec<T> p, Vec<T> k) { return scaled(p, k); });
#else
    constexpr int mantissa = Integer<T>::mantissa_bits, bias = Integer<T>::bias;
    constexpr T magic = T(1.5) * (int64_t(1) << mantissa) + bias;  // adding it rounds, and biases the exponent
    x = each(x, [](Vec<T> v) { return at_most<T>(at_least<T>(v, T(-bias)), T(bias + 1)); });
    const auto shifted = x + magic;
    const auto f = x - (shifted + -magic);
    const auto power = each(shifted, [](Vec<T> v) { return bits_as<Vec<T>>(bits_as<IntVec<T>>(v) << mantissa); });
    return (polynomial(f, coefficients) * f + T(1)) * power;
#endif
}

// 2^x = 2^k T[j] 2^f with x = k + j / entries + f: a table in a register saves terms of the polynomial.
// Relative errors before rounding: 16 entries 2.3e-9, 8 entries 2.7e-8. Without scalef a result below 2^-126 is another
// number below 2^-126, and infinity begins a sixteenth of an octave early.
#if defined(__AVX2__)
template <int count>
SCANLAB_INLINE Pack<float, count> exp2_table(Pack<float, count> x) {
#if defined(__AVX512F__)
    constexpr float c[] = {0.6931472f, 0.24023354f, 0.055501826f};
    const auto f = each(x, [](Vec<float> v) { return remainder<4>(v); });
    const auto root = each(x - f, [](Vec<float> k) {
        const Vec<float> roots = {1.f,           1.0442737824f, 1.0905077327f, 1.1387886348f,
                                  1.189207115f,  1.2418578121f, 1.2968395547f, 1.3542555469f,
                                  1.4142135624f, 1.4768261459f, 1.5422108254f, 1.6104903319f,
                                  1.6817928305f, 1.7562521604f, 1.8340080864f, 1.9152065614f};
        const Vec<float> shifted = k + 0x1.8p19f;  // the last four bits count sixteenths
        return scaled(_mm512_permutexvar_ps(_mm512_castps_si512(shifted), roots), k);
    });
#else
    constexpr float c[] = {0.69314724f, 0.24025764f, 0.055496223f};
    constexpr float magic = 0x1.8p20f + 127;  // adding it rounds to eighths, and biases the exponent
    x = each(x, [](Vec<float> v) { return at_most<float>(at_least<float>(v, -127.f), 128.f); });
    const auto shifted = x + magic;
    const auto f = x - (shifted + -magic);
    const auto root = each(shifted, [](Vec<float> v) {
        // The mantissa of 2^(j/8) less j << 20, which is added with the exponent.
        const IntVec<float> index = bits_as<IntVec<float>>(v),
                            roots = {0, -289342, -509968, -655657, -719629, -694486, -572163, -343865};
        const __m256i root =
            _mm256_permutevar8x32_epi32(reinterpret_cast<__m256i>(roots), reinterpret_cast<__m256i>(index));
        return bits_as<Vec<float>>(reinterpret_cast<IntVec<float>>(root) + (index << 20));
    });
#endif
    return (polynomial(f, c) * f + 1.f) * root;  // not root + root (2^f - 1), which is NaN where the root is infinite
}
#endif

// The exponential that a scan asked for. `fast` is for float; `exact` is the table where registers hold it.
template <Exp variant, class T, int count>
SCANLAB_INLINE Pack<T, count> exp2(const Pack<T, count>& x) {
    if constexpr (sizeof(T) == 8) return exp2_polynomial(x, exp2_double);
    else if constexpr (variant == Exp::fast) return exp2_polynomial(x, exp2_fast);
#if defined(__AVX2__)
    else return exp2_table(x);
#else
    else return exp2_polynomial(x, exp2_float);
#endif
}

template <class T>
inline constexpr T log2_e = T(1.4426950408889634074);

// log(1 + e) for e in [0, 1]: in float e times a polynomial (relative error 6e-8), in double
// 2 atanh(s) = 2 s (1 + s^2/3 + ...) with s = e / (2 + e).
template <int count>
SCANLAB_INLINE Pack<float, count> log1p_unit(const Pack<float, count>& e) {
    constexpr float c[] = {0.99999994f, -0.49999094f, 0.33310285f,   -0.24769403f, 0.1880604f,
                           -0.1300231f, 0.07018988f,  -0.024433995f, 0.0039361375f};
    return polynomial(e, c) * e;
}
template <int count>
SCANLAB_INLINE Pack<double, count> log1p_unit(const Pack<double, count>& e) {
    constexpr double c[] = {1.0,
                            0.33333333333333341662,
                            0.1999999999999643338,
                            0.14285714286311463983,
                            0.11111111059551837201,
                            0.090909117112476262459,
                            0.076922235302299837772,
                            0.066684384078719176769,
                            0.058576373340552126418,
                            0.054883083189737470326,
                            0.034901952491662160103,
                            0.082441429656947843109};
    const auto s = each(e, [](Vec<double> v) { return v / (2.0 + v); });
    return polynomial(s * s, c) * (s + s);
}

// exp(-|x|).
template <class T, int count>
SCANLAB_INLINE Pack<T, count> exp_of_minus_size(const Pack<T, count>& x) {
    return exp2<Exp::exact>(each(x, [](Vec<T> v) { return absolute<T>(v); }) * -log2_e<T>);
}

// log(1 + exp(x)) from exp(-|x|); linear above 20, where upstream leaves the logarithm out (in float it rounds away).
template <class T, int count>
SCANLAB_INLINE Pack<T, count> softplus(const Pack<T, count>& x, const Pack<T, count>& exp_of_minus_size) {
    return each(x, log1p_unit(exp_of_minus_size), [](Vec<T> v, Vec<T> rest) {
        if constexpr (sizeof(T) == 8) rest = v > T(20) ? Vec<T>{} : rest;
        return at_least<T>(v, T(0)) + rest;
    });
}
template <class T, int count>
SCANLAB_INLINE Pack<T, count> softplus(const Pack<T, count>& x) {
    return softplus(x, exp_of_minus_size(x));
}

// 1 / q for q of at least 1.
template <class T, int count>
SCANLAB_INLINE Pack<T, count> reciprocal(const Pack<T, count>& q) {
    return each(q, [](Vec<T> q) {
#if defined(__AVX512F__)
        if constexpr (sizeof(T) == 4) {
            const Vec<T> r = _mm512_rcp14_ps(q);
            const __mmask16 normal = _mm512_cmp_ps_mask(q, broadcast<T>(0x1p126f), _CMP_NGE_UQ);  // or not a number
            return Vec<T>(_mm512_maskz_mul_ps(normal, r, T(2) - q * r));  // one Newton step: 14 bits become 28
        } else
#endif
            return T(1) / q;
    });
}

// 1 / (1 + exp(-x)).
template <class T, int count>
SCANLAB_INLINE Pack<T, count> sigmoid(const Pack<T, count>& x) {
    return reciprocal(exp2<Exp::exact>(x * -log2_e<T>) + T(1));
}

// The derivative of softplus at x from exp(-|x|): sigmoid, and 1 where softplus is linear.
template <class T, int count>
SCANLAB_INLINE Pack<T, count> softplus_slope(const Pack<T, count>& x, const Pack<T, count>& exp_of_minus_size) {
    const auto large = reciprocal(exp_of_minus_size + T(1)),
               small = exp_of_minus_size * large;  // sigmoid(|x|), sigmoid(-|x|)
    Pack<T, count> slope;
#pragma GCC unroll 8
    for (int i = 0; i < count; i++) {
        const Vec<T> v = x.of[i], part = v >= T(0) ? large.of[i] : small.of[i];
        slope.of[i] = v > T(20) ? broadcast(T(1)) : part;
    }
    return slope;
}

// sin(x) and cos(x): x less its multiple of pi/2, then Taylor series on [-pi/4, pi/4], whose remainders are
// below 3e-10 in float and 1e-17 in double. Exact to rounding while |x| < 10^4 in float, 10^8 in double.
template <class T, int count>
SCANLAB_INLINE void sine_and_cosine(const Pack<T, count>& x, Pack<T, count>& sine, Pack<T, count>& cosine) {
    using I = typename Integer<T>::type;
    constexpr T magic = T(1.5) * (I(1) << Integer<T>::mantissa_bits);
    // pi/2 in parts so short that multiples of the first ones are exact.
    constexpr T parts[] = {sizeof(T) == 4 ? T(0x1.92p0) : T(0x1.921fb54p0),
                           sizeof(T) == 4 ? T(0x1.fb4p-12) : T(0x1.10b4611ap-30),
                           sizeof(T) == 4 ? T(0x1.4442dp-24) : T(0x1.898cc51701b83p-64)};
    const auto shifted = x * T(0.63661977236758134308) + magic;
    const auto turns = shifted + -magic;
    const auto r = each(each(each(x, turns, [](Vec<T> v, Vec<T> k) { return v - k * parts[0]; }), turns,
                             [](Vec<T> v, Vec<T> k) { return v - k * parts[1]; }),
                        turns, [](Vec<T> v, Vec<T> k) { return v - k * parts[2]; });
    constexpr T odd[] = {T(1),
                         T(-1.0 / 6),
                         T(1.0 / 120),
                         T(-1.0 / 5040),
                         T(1.0 / 362880),
                         T(-1.0 / 39916800),
                         T(1.0 / 6227020800),
                         T(-1.0 / 1307674368000),
                         T(1.0 / 355687428096000)};
    constexpr T even[] = {T(1),
                          T(-1.0 / 2),
                          T(1.0 / 24),
                          T(-1.0 / 720),
                          T(1.0 / 40320),
                          T(-1.0 / 3628800),
                          T(1.0 / 479001600),
                          T(-1.0 / 87178291200),
                          T(1.0 / 20922789888000),
                          T(-1.0 / 6402373705728000)};
    constexpr int terms = sizeof(T) == 4 ? 6 : 9;
    T odd_terms[terms], even_terms[terms];
    for (int k = 0; k < terms; k++) odd_terms[k] = odd[k], even_terms[k] = even[k];
    const auto square = r * r, s = polynomial(square, odd_terms) * r, c = polynomial(square, even_terms);
#pragma GCC unroll 8
    for (int i = 0; i < count; i++) {
        const IntVec<T> quarter = bits_as<IntVec<T>>(shifted.of[i]);
        const auto odd_quarter = (quarter & 1) != 0;
        const IntVec<T> sine_sign = (quarter & 2) << (8 * sizeof(T) - 2), cosine_sign = ((quarter ^ quarter << 1) & 2)
                                                                                        << (8 * sizeof(T) - 2);
        sine.of[i] = bits_as<Vec<T>>(bits_as<IntVec<T>>(odd_quarter ? c.of[i] : s.of[i]) ^ sine_sign);
        cosine.of[i] = bits_as<Vec<T>>(bits_as<IntVec<T>>(odd_quarter ? s.of[i] : c.of[i]) ^ cosine_sign);
    }
}

}  // namespace scanlab::SCANLAB_TARGET
