// Blocks of a model, one after another, as one torch op: norm, front, scan and output projection of each, by the ops
// that serve them, without Python in between. Between small ops Python takes a fifth of the time of a model.
//
// A block is bound once: its weights, as its ops take them, and the settings of its scan. It is called by its number.
#include <pthread.h>

#include <atomic>
#include <map>
#include <mutex>

#include "add_norm/call.h"
#include "cpu/library.h"
#include "linear/call.h"
#include "mamba_front/call.h"

namespace scanlab::mixer {

namespace {

// Takes the arguments of an op in their order.
class Arguments {
public:
    explicit Arguments(const StableIValue* stack) : next(stack) {}
    template <class T>
    T take() {
        return Argument<T>::take(*next++);
    }

private:
    const StableIValue* next;
};

struct NormWeights {
    Tensor weight, bias;
    double eps;
    bool centred, wide_total;

    explicit NormWeights(Arguments& given)
        : weight(given.take<Tensor>()),
          bias(given.take<OptionalTensor>()),
          eps(given.take<double>()),
          centred(given.take<bool>()),
          wide_total(given.take<bool>()) {}
};

struct FrontDirection {
    Tensor weight, bias, select, step;

    FrontDirection() = default;
    explicit FrontDirection(Arguments& given)
        : weight(given.take<OptionalTensor>()),
          bias(given.take<OptionalTensor>()),
          select(given.take<OptionalTensor>()),
          step(given.take<OptionalTensor>()) {}
};

struct ScanDirection {
    Tensor A, D, delta_bias;

    explicit ScanDirection(Arguments& given)
        : A(given.take<OptionalTensor>()), D(given.take<OptionalTensor>()), delta_bias(given.take<OptionalTensor>()) {}
};

// The output projection: its weight as packed_linear reads it, or the plain one and the form of MKL for so many rows.
struct OutProjection {
    Tensor packed, weight, bias;
    int64_t features, rows_of_mkl;

    explicit OutProjection(Arguments& given)
        : packed(given.take<Tensor>()),
          weight(given.take<OptionalTensor>()),
          bias(given.take<OptionalTensor>()),
          features(given.take<int64_t>()),
          rows_of_mkl(given.take<int64_t>()) {}
};

constexpr size_t scan_settings = 6;  // threads, time_block, channel_tile, time_chunks, exp and isa of scanlab::scan

// A value that another op takes: a reference of its own to the tensor.
StableIValue optional(const Tensor& tensor) {
    StableIValue value = 0;
    if (auto* const there = tensor ? new StableIValue(given(tensor)) : nullptr)
        std::memcpy(&value, &there, sizeof(there));
    return value;
}

// One of torch's ops on a stack of its arguments, in whose place its results come.
void call(const char* op, StableIValue* stack) {
    require<std::runtime_error>(aoti_torch_call_dispatcher(op, "", stack) == 0, op, " failed, as torch logged");
}

class Block {
public:
    explicit Block(Arguments given)
        : norm(given),
          into(given.take<Tensor>()),
          into_bias(given.take<OptionalTensor>()),
          gate(given.take<Tensor>()),
          gate_bias(given.take<OptionalTensor>()),
          front{FrontDirection(given), FrontDirection(given)},
          rank(given.take<int64_t>()),
          selected(given.take<int64_t>()),
          scan{ScanDirection(given), ScanDirection(given)},
          out(given) {
        for (int64_t& setting : settings) setting = given.take<int64_t>();
    }

    // A block lives for as long as it is held. std::shared_ptr would count with symbols that older systems lack.
    void hold() const { holders.fetch_add(1, std::memory_order_relaxed); }
    void release() const {
        if (holders.fetch_sub(1, std::memory_order_acq_rel) == 1) delete this;
    }

    // The next hidden and residual.
    NormOutputs run(const Tensor& hidden, const Tensor& residual) const {
        auto [normed, total] =
            add_norm(hidden, residual, norm.weight, norm.bias, norm.eps, norm.centred, norm.wide_total);
        const auto& [forward, reverse] = front;
        const FrontOutputs outputs =
            mamba_front(normed, into, into_bias, gate, gate_bias, forward.weight, forward.bias, forward.select,
                        forward.step, reverse.weight, reverse.bias, reverse.select, reverse.step, rank, selected);
        return {project(scanned(outputs)), std::move(total)};
    }

private:
    NormWeights norm;
    Tensor into, into_bias, gate, gate_bias;
    FrontDirection front[2];
    int64_t rank, selected;
    ScanDirection scan[2];
    OutProjection out;
    int64_t settings[scan_settings];
    mutable std::atomic<int64_t> holders{1};

    // (batch, length, dim)
    Tensor scanned(const FrontOutputs& outputs) const {
        const auto& [z, u, all, delta, u_reverse, all_reverse, delta_reverse] = outputs;
        const int64_t state = (selected - rank) / 2;
        StableIValue stack[32], *next = stack;
        const auto direction = [&](const Tensor& u, const Tensor& delta, const Tensor& all,
                                   const ScanDirection& weights, const auto& put) {
            const Tensor B = all.narrow(2, rank, state), C = all.narrow(2, rank + state, state);
            *next++ = put(u.transposed()), *next++ = put(delta.transposed()), *next++ = put(weights.A);
            *next++ = put(B.transposed()), *next++ = put(C.transposed());
            *next++ = optional(weights.D), *next++ = optional(z.transposed()), *next++ = optional(weights.delta_bias);
            *next++ = optional({});  // no initial state
        };
        direction(u, delta, all, scan[0], [](const Tensor& tensor) { return given(tensor); });
        if (scan[1].A) direction(u_reverse, delta_reverse, all_reverse, scan[1], optional);
        else
            for (int absent = 0; absent < 9; absent++) *next++ = optional({});
        *next++ = given(int64_t(true));   // softplus
        *next++ = given(int64_t(false));  // reverse
        for (const int64_t setting : settings) *next++ = given(setting);
        call("scanlab::scan", stack);
        const Tensor y = Argument<Tensor>::take(stack[0]), last_state = Argument<Tensor>::take(stack[1]);
        return y.transposed();
    }

    Tensor project(const Tensor& y) const {
        if (!out.weight) return packed_linear(y, out.packed, out.bias, out.features);
        StableIValue stack[] = {given(y), given(out.packed), given(out.weight), optional(out.bias),
                                given(out.rows_of_mkl)};
        call("mkl::_mkl_linear", stack);
        return Argument<Tensor>::take(stack[0]);
    }
};

// The blocks that are bound, by their numbers.
class Blocks {
public:
    // Not destroyed: a model may outlive every static.
    static Blocks& instance() {
        static Blocks* const blocks = new Blocks;
        return *blocks;
    }

    int64_t add(const Block* block) {
        const std::lock_guard lock(mutex);
        bound[++last] = block;
        return last;
    }
    // The block is destroyed without the mutex: freeing a tensor may wait for Python's lock, which a fork holds while
    // it waits for the mutex.
    void remove(int64_t number) {
        if (const Block* const removed = taken(number)) removed->release();
    }
    // The block of that number, held once more; none where there is none.
    const Block* find(int64_t number) {
        const std::lock_guard lock(mutex);
        const auto found = bound.find(number);
        if (found == bound.end()) return nullptr;
        found->second->hold();
        return found->second;
    }

private:
    std::mutex mutex;
    std::map<int64_t, const Block*> bound;
    int64_t last = 0;

    const Block* taken(int64_t number) {
        const std::lock_guard lock(mutex);
        const auto found = bound.find(number);
        if (found == bound.end()) return nullptr;
        const Block* const block = found->second;
        bound.erase(found);
        return block;
    }

    // A fork waits for whoever holds the mutex, which no thread of the child would release.
    Blocks() {
        pthread_atfork([] { instance().mutex.lock(); }, [] { instance().mutex.unlock(); },
                       [] { instance().mutex.unlock(); });
    }
};

// A block that cannot be destroyed for now.
class Held {
public:
    explicit Held(int64_t number) : block(Blocks::instance().find(number)) {
        require<std::out_of_range>(block, "block ", number, " is not bound");
    }
    Held(const Held&) = delete;
    ~Held() { block->release(); }
    const Block* operator->() const { return block; }

private:
    const Block* const block;
};

void bind_block(StableIValue* stack, uint64_t, uint64_t) {
    *stack = given(Blocks::instance().add(new Block(Arguments(stack))));
}

void release_block(int64_t number) { Blocks::instance().remove(number); }

NormOutputs run_blocks(const Tensor& numbers, const Tensor& hidden, const OptionalTensor& residual) {
    require(numbers.dim() == 1 && numbers.dtype() == Dtype::int32 && numbers.is_contiguous(),
            "the numbers of the blocks must be int32, in one dense axis");
    const int32_t* const all = numbers.data<int32_t>();
    NormOutputs now{hidden, residual};
    for (int64_t i = 0; i < numbers.numel(); i++) {
        const Held block(all[i]);
        now = block->run(std::get<0>(now), std::get<1>(now));
    }
    return now;
}

}  // namespace

SCANLAB_OPS(scanlab_mixer, library) {
    library.define(
        "bind_block(Tensor norm_weight, Tensor? norm_bias, float eps, bool centred, bool wide_total, Tensor into,"
        " Tensor? into_bias, Tensor gate, Tensor? gate_bias, Tensor? weight, Tensor? bias, Tensor? select, Tensor? "
        "step,"
        " Tensor? weight_reverse, Tensor? bias_reverse, Tensor? select_reverse, Tensor? step_reverse, int rank,"
        " int selected, Tensor? A, Tensor? D, Tensor? delta_bias, Tensor? A_reverse, Tensor? D_reverse,"
        " Tensor? delta_bias_reverse, Tensor out_packed, Tensor? out_weight, Tensor? out_bias, int features,"
        " int rows_of_mkl, int threads, int time_block, int channel_tile, int time_chunks, int exp, int isa) -> int");
    library.define("release_block(int number) -> ()");
    library.define("run_blocks(Tensor numbers, Tensor hidden, Tensor? residual) -> (Tensor, Tensor)");
}

SCANLAB_KERNELS(scanlab_mixer, CompositeExplicitAutograd, library) {
    library.implement("bind_block", bind_block);
    library.implement("release_block", boxed<release_block>);
}

SCANLAB_KERNELS(scanlab_mixer, CPU, library) { library.implement("run_blocks", boxed<run_blocks>); }

}  // namespace scanlab::mixer
