// How long a cache line takes from one CPU to another.
#include <pthread.h>
#include <sched.h>

#include <atomic>
#include <chrono>
#include <thread>

#include <torch/library.h>

namespace {

constexpr int turns = 20'000;

void stay_on(int64_t cpu) {
    cpu_set_t one;
    CPU_ZERO(&one);
    CPU_SET(cpu, &one);
    pthread_setaffinity_np(pthread_self(), sizeof(one), &one);
}

// Nanoseconds from CPU `first` to `second` or back: two threads take turns at raising one number.
double handover_ns(int64_t first, int64_t second) {
    std::atomic<int> turn{0};
    const auto raise = [&](int64_t cpu, int own) {
        stay_on(cpu);
        for (int i = own; i < turns; i += 2) {
            while (turn.load(std::memory_order_acquire) != i) {
            }
            turn.store(i + 1, std::memory_order_release);
        }
    };
    const auto start = std::chrono::steady_clock::now();
    std::thread even(raise, first, 0), odd(raise, second, 1);
    even.join();
    odd.join();
    return std::chrono::duration<double, std::nano>(std::chrono::steady_clock::now() - start).count() / turns;
}

}  // namespace

TORCH_LIBRARY(scanlab_handover, m) { m.def("handover_ns(int first, int second) -> float", &handover_ns); }
