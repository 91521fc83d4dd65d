// Memory of outputs: large ones lie on huge pages, in memory that is used again.
//
// malloc returns memory of this size to the system as soon as it is free, and the system clears each page that is
// asked for again: at 100 MB that takes a sixth of the time of the scan that fills it. Memory that is free here is
// only offered to the system, which takes it when it runs short; until then the next large output gets it as it is.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <numeric>
#include <vector>

#include "cpu/tensor.h"

#if defined(__linux__)
#include <sys/mman.h>

// Since torch 2.11. Before, large outputs lie where torch allocates them.
extern "C" __attribute__((weak)) AOTITorchError torch_from_blob(void* data, int64_t axes, const int64_t* sizes,
                                                                const int64_t* strides, int64_t offset, int32_t dtype,
                                                                int32_t device, int32_t device_index,
                                                                AtenTensorHandle* tensor, int32_t layout,
                                                                const uint8_t* metadata, int64_t metadata_bytes,
                                                                void (*free)(void* data, void* context), void* context);
#endif

namespace scanlab {

#if defined(__linux__)
struct Block {
    char* data = nullptr;
    size_t bytes = 0;
};

class LargeMemory {
public:
    // Not destroyed: a tensor may outlive every static.
    static LargeMemory& instance() {
        static LargeMemory* const memory = new LargeMemory;
        return *memory;
    }

    // A block of at least `asked` bytes; none where the system has no more.
    Block allocate(size_t asked) {
        const size_t bytes = (asked + huge_page - 1) / huge_page * huge_page;
        const Block block = reused(bytes);
        return block.data ? block : mapped(bytes);
    }
    void free(const Block& block) {
        if (!keep(block)) munmap(block.data, block.bytes);
    }

private:
    static constexpr size_t huge_page = 2 << 20, max_kept_bytes = 1 << 30;
    std::atomic_flag in_use;  // never waited for: a fork may leave it set for ever
    std::vector<Block> kept;
    size_t kept_bytes = 0;

    struct Turn {
        std::atomic_flag& flag;
        const bool taken;
        explicit Turn(std::atomic_flag& flag) : flag(flag), taken(!flag.test_and_set(std::memory_order_acquire)) {}
        ~Turn() {
            if (taken) flag.clear(std::memory_order_release);
        }
    };

    // The smallest block that serves, less than twice as large as it must be; or none.
    Block reused(size_t bytes) {
        const Turn turn(in_use);
        if (!turn.taken) return {};
        auto best = kept.end();
        for (auto block = kept.begin(); block != kept.end(); ++block)
            if (block->bytes >= bytes && block->bytes / 2 < bytes && (best == kept.end() || block->bytes < best->bytes))
                best = block;
        if (best == kept.end()) return {};
        const Block block = *best;
        kept.erase(best);
        kept_bytes -= block.bytes;
        return block;
    }

    // Fresh memory of whole huge pages; or none.
    static Block mapped(size_t bytes) {
        void* const all = mmap(nullptr, bytes + huge_page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (all == MAP_FAILED) return {};
        const size_t before = -reinterpret_cast<uintptr_t>(all) % huge_page;
        char* const data = static_cast<char*>(all) + before;
        if (before) munmap(all, before);
        if (before < huge_page) munmap(data + bytes, huge_page - before);
        madvise(data, bytes, MADV_HUGEPAGE);
        return {data, bytes};
    }

    // Keeps a block instead of the oldest ones; false where it cannot.
    bool keep(const Block& block) {
        const Turn turn(in_use);
        if (!turn.taken || block.bytes > max_kept_bytes || madvise(block.data, block.bytes, MADV_FREE)) return false;
        size_t oldest = 0;
        for (; kept_bytes + block.bytes > max_kept_bytes; oldest++) {
            munmap(kept[oldest].data, kept[oldest].bytes);
            kept_bytes -= kept[oldest].bytes;
        }
        kept.erase(kept.begin(), kept.begin() + oldest);
        kept.push_back(block);
        kept_bytes += block.bytes;
        return true;
    }
};

// Of huge pages; none where torch cannot take foreign memory.
inline Tensor large_output(size_t bytes, Shape sizes, Shape strides, Dtype dtype) {
    if (!torch_from_blob) return {};
    const Block block = LargeMemory::instance().allocate(bytes);
    require<std::runtime_error>(block.data, "an output of ", int64_t(bytes), " bytes does not fit into memory.");
    const auto free = [](void*, void* context) {
        LargeMemory::instance().free(*static_cast<Block*>(context));
        delete static_cast<Block*>(context);
    };
    AtenTensorHandle tensor;
    succeed(torch_from_blob(block.data, sizes.size(), sizes.data(), strides.data(), 0, number_of(dtype),
                            aoti_torch_device_type_cpu(), -1, &tensor, aoti_torch_layout_strided(), nullptr, 0, free,
                            new Block(block)),
            "take an output");
    return Tensor(tensor);
}
#endif

// The bytes of an output; raises where they are too many to count.
inline int64_t output_bytes(Shape sizes, Dtype dtype) {
    int64_t bytes = item_bytes(dtype), all = 1;
    for (const int64_t size : sizes) all = all && size;
    for (const int64_t size : sizes)
        require(!all || !__builtin_mul_overflow(bytes, size, &bytes), "an output of sizes ", sizes, " is too large.");
    return all ? bytes : 0;
}

// An output on the CPU, its memory not yet written.
inline Tensor empty_output(Shape sizes, Shape strides, Dtype dtype) {
    [[maybe_unused]] const size_t bytes = output_bytes(sizes, dtype);
#if defined(__linux__)
    constexpr size_t large_bytes = 512 << 10;
    if (bytes >= large_bytes)
        if (Tensor large = large_output(bytes, sizes, strides, dtype)) return large;
#endif
    AtenTensorHandle tensor;
    succeed(aoti_torch_empty_strided(sizes.size(), sizes.data(), strides.data(), number_of(dtype),
                                     aoti_torch_device_type_cpu(), 0, &tensor),
            "allocate an output");
    return Tensor(tensor);
}

// The strides of a contiguous tensor.
inline std::vector<int64_t> contiguous_strides(Shape sizes) {
    std::vector<int64_t> strides(sizes.size());
    int64_t reach = 1;
    for (size_t axis = sizes.size(); axis-- > 0; reach *= std::max<int64_t>(1, sizes[axis])) strides[axis] = reach;
    return strides;
}
inline Tensor empty_output(Shape sizes, Dtype dtype) {
    output_bytes(sizes, dtype);  // before their product is a stride
    return empty_output(sizes, contiguous_strides(sizes), dtype);
}

// The strides of torch.empty_like: dense, the axes in the order in which those of `tensor` lie.
inline std::vector<int64_t> dense_strides(Shape sizes, Shape strides) {
    // Narrow axes first; torch lets expanded axes stand where they are, beside any other.
    std::vector<int64_t> axes(sizes.size()), dense(sizes.size());
    std::iota(axes.rbegin(), axes.rend(), 0);
    for (size_t sorted = 1; sorted < axes.size(); sorted++)
        for (size_t to = sorted, from = to; from-- > 0;) {
            const int64_t before = axes[from], axis = axes[to];
            if (strides[before] == 0 || strides[axis] == 0) continue;
            if (strides[before] < strides[axis]) break;
            if (strides[before] == strides[axis] && sizes[before] <= sizes[axis]) continue;
            std::swap(axes[from], axes[to]);
            to = from;
        }
    int64_t reach = 1;
    for (const int64_t axis : axes) {
        dense[axis] = reach;
        reach *= std::max<int64_t>(1, sizes[axis]);
    }
    return dense;
}
inline Tensor empty_output_like(const Tensor& tensor) {
    const Shape sizes = tensor.sizes(), strides = tensor.strides();
    const std::vector<int64_t> dense = dense_strides(sizes, strides);
    bool is_dense = true;  // strides of single elements may be any
    for (size_t axis = 0; axis < sizes.size(); axis++) is_dense &= sizes[axis] <= 1 || strides[axis] == dense[axis];
    return empty_output(sizes, is_dense ? strides : Shape(dense), tensor.dtype());
}

}  // namespace scanlab
