// Tells ThreadSanitizer about synchronisation inside the library, which is not instrumented. Empty in other builds.
// SPDX-License-Identifier: Apache-2.0
#ifndef CLEAVE_SYNC_HPP
#define CLEAVE_SYNC_HPP

#include <cstddef>
#include <cstdint>

#if defined(__SANITIZE_THREAD__)
#define CLEAVE_TSAN 1
#elif defined(__has_feature)
#if __has_feature(thread_sanitizer)
#define CLEAVE_TSAN 1
#endif
#endif

#ifdef CLEAVE_TSAN
#include <sanitizer/tsan_interface.h>
#endif

namespace cleave {
namespace detail {

/// cleave.h promises two orders between threads: everything before a submission or an import happens before its events are
/// received, and a log function is called only between being set and being replaced.
#ifdef CLEAVE_TSAN
inline void before(std::uintptr_t place) noexcept { __tsan_release(reinterpret_cast<void *>(place)); }
inline void after(std::uintptr_t place) noexcept { __tsan_acquire(reinterpret_cast<void *>(place)); }

/// One address for each user_tag, or for a few of them. One address for all would hide races.
inline std::uintptr_t place_of(std::uint64_t user_tag) noexcept
{
    static std::uint64_t places[4096];
    return reinterpret_cast<std::uintptr_t>(&places[(user_tag * UINT64_C(0x9e3779b97f4a7c15)) >> 52]);
}
#else
inline void before(std::uintptr_t) noexcept {}
inline void after(std::uintptr_t) noexcept {}
inline std::uintptr_t place_of(std::uint64_t) noexcept { return 0; }
#endif

} // namespace detail
} // namespace cleave

#endif
