// What ThreadSanitizer cannot see of the library, which is not built for it. Nothing in other builds.
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

/// Two promises of cleave.h order what threads do: what was done before a request or an import is done for who gets its
/// events, and a log function is in use from when it is set until it is replaced.
#ifdef CLEAVE_TSAN
inline void before(std::uintptr_t place) noexcept { __tsan_release(reinterpret_cast<void *>(place)); }
inline void after(std::uintptr_t place) noexcept { __tsan_acquire(reinterpret_cast<void *>(place)); }

/// A place for each user_tag, or for few of them: one for all would hide the races of others.
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
