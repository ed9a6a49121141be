// A value or an error.
// SPDX-License-Identifier: Apache-2.0
#ifndef CLEAVE_RESULT_HPP
#define CLEAVE_RESULT_HPP

#include "status.hpp"

#include <cstdlib>
#include <utility>
#include <variant>

namespace cleave {

/// Result of a function that can fail: a `T` or an Error, like std::expected<T, Error>.
template <class T> class [[nodiscard]] Result {
public:
    using value_type = T;

    Result(T &&value) noexcept : is_(std::in_place_index<0>, std::move(value)) {}
    Result(const T &value) : is_(std::in_place_index<0>, value) {}
    Result(const Error &error) noexcept : is_(std::in_place_index<1>, error) {}

    bool has_value() const noexcept { return is_.index() == 0; }
    explicit operator bool() const noexcept { return has_value(); }

    /// The value. A temporary Result returns it by value, so that `for (x : *f())` is sound. Asking for a value that does
    /// not exist is a bug and aborts the program.
    T &value() & noexcept { return *checked(std::get_if<0>(&is_)); }
    const T &value() const & noexcept { return *checked(std::get_if<0>(&is_)); }
    T value() && noexcept { return std::move(*checked(std::get_if<0>(&is_))); }
    T &operator*() & noexcept { return value(); }
    const T &operator*() const & noexcept { return value(); }
    T operator*() && noexcept { return std::move(*this).value(); }
    T *operator->() noexcept { return &value(); }
    const T *operator->() const noexcept { return &value(); }

    template <class U> T value_or(U &&other) const &
    {
        return has_value() ? value() : static_cast<T>(std::forward<U>(other));
    }
    template <class U> T value_or(U &&other) &&
    {
        return has_value() ? std::move(*this).value() : static_cast<T>(std::forward<U>(other));
    }

    /// The error; its code is Ok if there is a value.
    Error error() const noexcept { return has_value() ? Error() : *std::get_if<1>(&is_); }
    Status status() const noexcept { return has_value() ? Status::Ok : std::get_if<1>(&is_)->code(); }

#ifdef CLEAVE_EXCEPTIONS
    /// Returns the value or throws an Exception.
    T &or_throw() &
    {
        if (!has_value())
            throw Exception(error());
        return value();
    }
    T or_throw() && { return std::move(or_throw()); }
#endif

private:
    template <class P> static P checked(P value) noexcept
    {
        if (value == nullptr)
            std::abort();
        return value;
    }

    std::variant<T, Error> is_;
};

/// Result of a function that returns no value: success or an Error.
template <> class [[nodiscard]] Result<void> {
public:
    using value_type = void;

    Result() noexcept = default;
    Result(const Error &error) noexcept : error_(error) {}

    bool has_value() const noexcept { return error_.code() == Status::Ok; }
    explicit operator bool() const noexcept { return has_value(); }
    void value() const noexcept
    {
        if (!has_value())
            std::abort();
    }
    const Error &error() const noexcept { return error_; }
    Status status() const noexcept { return error_.code(); }

#ifdef CLEAVE_EXCEPTIONS
    void or_throw() const
    {
        if (!has_value())
            throw Exception(error_);
    }
#endif

private:
    Error error_;
};

namespace detail {

/// The result of a C function that returned `status` and, on failure, filled `error`.
inline Result<void> result_of(cleave_status_t status, const cleave_error_t &error) noexcept
{
    return status == CLEAVE_OK ? Result<void>() : Result<void>(Error(error));
}

} // namespace detail

} // namespace cleave

#endif
