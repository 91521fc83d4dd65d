// Denormal numbers, which some processors handle a hundred times more slowly than others.
#pragma once

#include <cstdint>

#if defined(__SSE2__)
#include <xmmintrin.h>
#endif

namespace scanlab {

// Flushes denormal operands and results of the calling thread to zero, until the end of the scope. The mode of the
// thread is then what it was before. Numbers that are stored as float16 or bfloat16 keep their denormals where they
// are converted alone.
class FlushDenormals {
public:
    FlushDenormals() : before(read()) { write(before | flush_bits); }
    ~FlushDenormals() { write(before); }
    FlushDenormals(const FlushDenormals&) = delete;
    FlushDenormals& operator=(const FlushDenormals&) = delete;

private:
#if defined(__SSE2__)
    using Control = uint32_t;
    static constexpr Control flush_bits = 0x8040;  // MXCSR: flush to zero, denormals are zeros
    static Control read() { return _mm_getcsr(); }
    static void write(Control control) { _mm_setcsr(control); }
#elif defined(__aarch64__)
    using Control = uint64_t;
    static constexpr Control flush_bits = uint64_t(1) << 24;  // FPCR.FZ
    static Control read() {
        Control control;
        asm volatile("mrs %0, fpcr" : "=r"(control));
        return control;
    }
    static void write(Control control) { asm volatile("msr fpcr, %0" : : "r"(control) : "memory"); }
#else
    using Control = uint32_t;
    static constexpr Control flush_bits = 0;
    static Control read() { return 0; }
    static void write(Control) {}
#endif
    const Control before;
};

}  // namespace scanlab
