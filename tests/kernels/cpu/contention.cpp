// When a caller whose threads are held up works alone, and for how long.
#include <cstdio>

#include "cpu/threads.h"

using scanlab::Contention;

constexpr int64_t us = 1'000, ms = 1'000'000, s = 1'000'000'000;

int failures = 0;
void expect(bool holds, const char* what) {
    if (!holds) std::printf("%s\n", what), failures++;
}

// Milliseconds that the caller works alone after a region of two threads that took so long and ended at `at`.
int64_t alone_ms(Contention& contention, int64_t region, int64_t one, int64_t other, int64_t at) {
    contention.note(2, region, one + other, std::min(one, other), at);
    int64_t milliseconds = 0;
    while (contention.alone(at + milliseconds * ms)) milliseconds++;
    return milliseconds;
}

int main() {
    Contention contention;
    expect(!contention.alone(s), "a new one is not alone");
    expect(alone_ms(contention, 110 * us, 100 * us, 100 * us, s) == 0, "threads that save time go on");
    expect(alone_ms(contention, 900 * us, 200 * us, 1 * us, s) == 0, "a thread may be a little late");
    expect(alone_ms(contention, 12 * ms, 10 * ms, 12 * ms, s) == 0, "less than is saved may be lost");
    expect(alone_ms(contention, 9 * ms, 100 * us, 9 * ms, s) == 20, "a thread was held up within its work");
    expect(alone_ms(contention, 7 * ms, 200 * us, 1 * us, s + 25 * ms) == 40, "soon after, one began late");
    expect(alone_ms(contention, 7 * ms, 7 * ms, 100 * us, s + 70 * ms) == 80, "and again");
    expect(alone_ms(contention, 7 * ms, 7 * ms, 100 * us, s + 160 * ms) == 160, "and again");
    expect(alone_ms(contention, 7 * ms, 7 * ms, 100 * us, s + 330 * ms) == 160, "no longer than that");
    for (int call = 0; call < 100; call++)
        expect(alone_ms(contention, 110 * us, 100 * us, 100 * us, s + 500 * ms) == 0, "quiet regions save time");
    expect(alone_ms(contention, 4 * ms, 100 * us, 4 * ms, s + 500 * ms) == 0, "and make up for a single late one");
    expect(alone_ms(contention, 9 * ms, 100 * us, 9 * ms, 20 * s) == 20, "much later it begins anew");

    std::atomic<int> done = 0;
    scanlab::on_threads(2, [&](int thread) {
        if (thread == 1) std::this_thread::sleep_for(std::chrono::milliseconds(20));
        done++;
    });
    expect(done == 2, "a caller that is done waits for a thread that is late");

    for (int levels : {1, 0}) {  // with level 0 OpenMP gives no second thread
        omp_set_max_active_levels(levels);
        for (int repeat = 0; repeat < 100; repeat++) {
            std::atomic<int> of_thread[5] = {};
            scanlab::on_threads(5, [&](int thread) { of_thread[thread]++; });
            for (const auto& each : of_thread) expect(each == 1, "every call is made once, whoever makes it");
        }
    }

    int calls = 0;  // of both threads, whoever makes them
    scanlab::contention.note(2, 9 * ms, 9 * ms + 100 * us, 100 * us, Contention::now());
    scanlab::on_threads(2, [&](int) { calls++; });
    expect(calls == 2, "alone the caller does the work of every thread");
    return failures;
}
