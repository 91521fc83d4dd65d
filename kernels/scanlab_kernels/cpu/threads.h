// Work on several threads, without torch.
#pragma once

#include <pthread.h>

#include <atomic>
#include <exception>
#include <thread>
#include <vector>

#include "cpu/denormals.h"

namespace scanlab {

// OpenMP's threads do not survive a fork: a child that asked for them would wait for ever.
inline std::atomic<bool> forked{false};
// Says that this process is the child of a fork, for forks before this library was loaded: it notices later ones
// itself.
inline void note_fork() { forked = true; }
inline const int fork_watch = pthread_atfork(nullptr, nullptr, note_fork);

struct JoinedThreads {
    std::vector<std::thread> threads;
    ~JoinedThreads() {
        for (std::thread& thread : threads) thread.join();
    }
};

// Calls work(thread) once on each of `threads` threads, the caller's among them, with denormals flushed. Raises what
// the first of them raised.
template <class Work>
void on_threads(int threads, const Work& work) {
    std::atomic_flag failed;
    std::exception_ptr failure;
    const auto guarded = [&](int thread) {
        try {
            const FlushDenormals flush;
            work(thread);
        } catch (...) {
            if (!failed.test_and_set()) failure = std::current_exception();
        }
    };
    const auto run_all = [&] {
        if (threads == 1) return guarded(0);
#if defined(_OPENMP)
        if (!forked) {
#pragma omp parallel for num_threads(threads) schedule(static, 1)
            for (int thread = 0; thread < threads; thread++) guarded(thread);
            return;
        }
#endif
        JoinedThreads others;
        for (int thread = 1; thread < threads; thread++) others.threads.emplace_back(guarded, thread);
        guarded(0);
    };
    run_all();
    if (failure) std::rethrow_exception(failure);
}

}  // namespace scanlab
