// Memory of outputs: large ones lie on huge pages, in memory that is used again.
//
// malloc returns memory of this size to the system as soon as it is free, and the system clears each page that is
// asked for again: at 100 MB that takes a sixth of the time of the scan that fills it. Memory that is free here is
// only offered to the system, which takes it when it runs short; until then the next large output gets it as it is.
#pragma once

#include <cstddef>
#include <cstdint>
#include <mutex>
#include <vector>

#include <ATen/EmptyTensor.h>
#include <ATen/ExpandUtils.h>
#include <ATen/core/Tensor.h>
#include <c10/core/CPUAllocator.h>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace scanlab {

#if defined(__linux__)
class LargeMemory final : public c10::Allocator {
public:
    // Not destroyed: a tensor may outlive every static.
    static LargeMemory& instance() {
        static LargeMemory* const memory = new LargeMemory;
        return *memory;
    }

    c10::DataPtr allocate(size_t asked) override {
        const size_t bytes = (asked + huge_page - 1) / huge_page * huge_page;
        auto* const block = new Block(reused(bytes));
        if (!block->data) *block = mapped(bytes);
        if (!block->data) {
            delete block;
            c10::profiledCPUMemoryReporter().OutOfMemory(bytes);
            TORCH_CHECK(false, "an output of ", asked, " bytes does not fit into memory.");
        }
        c10::profiledCPUMemoryReporter().New(block->data, bytes);
        return {block->data, block, &give_back, c10::Device(c10::DeviceType::CPU)};
    }

    void copy_data(void* to, const void* from, size_t bytes) const override { default_copy_data(to, from, bytes); }

private:
    struct Block {
        char* data = nullptr;
        size_t bytes = 0;
    };
    static constexpr size_t huge_page = 2 << 20, max_kept_bytes = 1 << 30;
    std::mutex mutex;  // only ever tried: a fork may leave it locked for ever
    std::vector<Block> kept;
    size_t kept_bytes = 0;

    // The smallest block that serves, less than twice as large as it must be; or none.
    Block reused(size_t bytes) {
        const std::unique_lock lock(mutex, std::try_to_lock);
        if (!lock) return {};
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

    static void give_back(void* context) {
        const Block block = *static_cast<Block*>(context);
        delete static_cast<Block*>(context);
        c10::profiledCPUMemoryReporter().Delete(block.data);
        if (!instance().keep(block)) munmap(block.data, block.bytes);
    }

    // Keeps a block in the place of the oldest ones; false where it cannot.
    bool keep(const Block& block) {
        const std::unique_lock lock(mutex, std::try_to_lock);
        if (!lock || block.bytes > max_kept_bytes || madvise(block.data, block.bytes, MADV_FREE)) return false;
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
#endif

// An output on the CPU, its memory not yet written.
inline at::Tensor empty_output(at::IntArrayRef sizes, at::IntArrayRef strides, c10::ScalarType type) {
#if defined(__linux__)
    constexpr size_t large_bytes = 512 << 10;
    if (c10::multiply_integers(sizes) * c10::elementSize(type) >= large_bytes)
        return at::Tensor(at::detail::empty_strided_generic(sizes, strides, &LargeMemory::instance(),
                                                            c10::DispatchKeySet(c10::DispatchKey::CPU), type));
#endif
    return at::Tensor(at::detail::empty_strided_cpu(sizes, strides, type));
}
inline at::Tensor empty_output(at::IntArrayRef sizes, c10::ScalarType type) {
    return empty_output(sizes, at::detail::defaultStrides(sizes), type);
}
inline at::Tensor empty_output_like(const at::Tensor& tensor) {
    if (tensor.is_non_overlapping_and_dense())
        return empty_output(tensor.sizes(), tensor.strides(), tensor.scalar_type());
    return empty_output(tensor.sizes(), at::infer_dense_strides(tensor.sizes(), tensor.strides()),
                        tensor.scalar_type());
}

}  // namespace scanlab
