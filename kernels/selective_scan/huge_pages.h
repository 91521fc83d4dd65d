// Large outputs on huge pages.
#pragma once

#include <cstddef>
#include <cstdint>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace scanlab {

// Asks for huge pages where memory of this size comes fresh from the system: touching it page by page takes as long
// as a scan of it. Memory that is in use already keeps its pages.
inline void prefer_huge_pages([[maybe_unused]] void* data, [[maybe_unused]] size_t bytes) {
#if defined(__linux__)
    constexpr uintptr_t page = 2 << 20;
    const uintptr_t start = reinterpret_cast<uintptr_t>(data), first = (start + page - 1) / page * page, last = (start + bytes) / page * page;
    if (first < last) madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);
#endif
}

}  // namespace scanlab
