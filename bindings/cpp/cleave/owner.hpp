// Ownership of the library's objects, and helpers for the argument conventions of the C functions.
// SPDX-License-Identifier: Apache-2.0
#ifndef CLEAVE_OWNER_HPP
#define CLEAVE_OWNER_HPP

#include "result.hpp"

#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>

namespace cleave {

/// A timeout that never ends.
inline constexpr std::chrono::milliseconds forever = std::chrono::milliseconds::max();

namespace detail {

/// Owns one C object. The pointer is atomic, so reset() may run while other threads use the object.
template <class T, void (*End)(T *)> class Owner {
public:
    Owner() noexcept = default;
    Owner(Owner &&other) noexcept : object_(other.take()) {}
    Owner &operator=(Owner &&other) noexcept
    {
        if (this != &other)
            reset(other.take());
        return *this;
    }
    ~Owner() { reset(); }

    /// The C object, which stays owned; NULL if there is none.
    T *get() const noexcept { return object_.load(std::memory_order_acquire); }
    explicit operator bool() const noexcept { return get() != nullptr; }

    /// Releases ownership: the caller ends the object.
    [[nodiscard]] T *take() noexcept { return object_.exchange(nullptr, std::memory_order_acq_rel); }

    /// Ends the object, if there is one, and takes ownership of `object`.
    void reset(T *object = nullptr) noexcept
    {
        T *old = object_.exchange(object, std::memory_order_acq_rel);
        if (old != nullptr)
            End(old);
    }

protected:
    explicit Owner(T *object) noexcept : object_(object) {}

private:
    std::atomic<T *> object_{nullptr};
};

/// Milliseconds for C: negative values are 0, too large ones UINT32_MAX.
inline std::uint32_t to_ms(std::chrono::milliseconds time) noexcept
{
    if (time.count() <= 0)
        return 0;
    return time.count() < INT64_C(0xffffffff) ? static_cast<std::uint32_t>(time.count()) : UINT32_MAX;
}

/// A zeroed C struct with its struct_size set.
template <class T> T sized() noexcept
{
    T value{};
    value.struct_size = sizeof value;
    return value;
}

/// Reads an info struct `Info`, derived from the C struct `C`, by `call(C *out, cleave_error_t *err)`.
template <class Info, class C, class Call> Result<Info> read_info(Call call) noexcept
{
    static_assert(sizeof(Info) == sizeof(C), "an info struct adds methods only");
    Info info{};
    info.struct_size = sizeof(C);
    cleave_error_t error;
    if (call(static_cast<C *>(&info), &error) != CLEAVE_OK)
        return Error(error);
    return info;
}

/// Replaces the content of `out` by the result of `call(data, cap, &n, &err)`, which follows the conventions for buffers.
/// One call is made if `guess` elements are enough. The memory of `out` is used again; after a failure `out` is empty.
template <class Container, class Call> Result<void> fill(Container &out, std::size_t guess, Call call)
{
    cleave_error_t error;
    for (out.resize(guess);;) {
        std::size_t n = 0;
        const cleave_status_t status = call(out.data(), out.size(), &n, &error);
        if (status == CLEAVE_ERR_INVALID_ARGUMENT && n > out.size()) {
            out.resize(n);
            continue;
        }
        out.resize(status == CLEAVE_OK ? n : 0);
        return result_of(status, error);
    }
}

} // namespace detail

} // namespace cleave

#endif
