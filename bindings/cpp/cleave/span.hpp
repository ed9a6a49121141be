// Views of arrays that they do not own.
// SPDX-License-Identifier: Apache-2.0
#ifndef CLEAVE_SPAN_HPP
#define CLEAVE_SPAN_HPP

#include <cstddef>
#include <cstdint>
#include <iterator>
#include <type_traits>
#include <utility>
#include <vector>

#if __cplusplus >= 202002L
#include <ranges>
#endif

namespace cleave {

namespace detail {

/// Rejects arrays of char: they are usually literals, whose NUL does not belong to the text. Use std::string_view.
template <class C>
inline constexpr bool is_text = std::is_array_v<C> && std::is_same_v<std::remove_cv_t<std::remove_extent_t<C>>, char>;

/// Type of the elements that std::data of a `C` points to.
template <class C> using ElementOf = std::remove_pointer_t<decltype(std::data(std::declval<C &>()))>;

} // namespace detail

/// A std::span for C++17. It is made from C arrays, std::vector, std::array, std::string, std::span and everything else
/// with data() and size(). In C++20 it converts to std::span.
template <class T> class Span {
public:
    constexpr Span() noexcept = default;
    constexpr Span(T *data, std::size_t size) noexcept : data_(data), size_(size) {}

    /// Accepts a temporary if elements are only read, or if the temporary is itself a view.
    template <class C, class = std::enable_if_t<!std::is_same_v<std::decay_t<C>, Span> &&
                                                std::is_convertible_v<detail::ElementOf<C> (*)[], T (*)[]> &&
                                                (std::is_lvalue_reference_v<C> || std::is_const_v<T> ||
                                                 std::is_trivially_copyable_v<C>)>>
    constexpr Span(C &&container) noexcept : data_(std::data(container)), size_(std::size(container))
    {
    }

    constexpr T *data() const noexcept { return data_; }
    constexpr std::size_t size() const noexcept { return size_; }
    constexpr bool empty() const noexcept { return size_ == 0; }
    constexpr T *begin() const noexcept { return data_; }
    constexpr T *end() const noexcept { return data_ + size_; }
    constexpr T &operator[](std::size_t i) const noexcept { return data_[i]; }
    constexpr Span first(std::size_t n) const noexcept { return Span(data_, n); }

private:
    T *data_ = nullptr;
    std::size_t size_ = 0;
};

/// Tickets, images and addresses.
using Bytes = std::vector<std::uint8_t>;

/// Bytes to read: made from containers and views of char, unsigned char and std::byte.
class ByteView {
public:
    ByteView() noexcept = default;
    ByteView(const void *data, std::size_t size) noexcept : data_(data), size_(size) {}

    template <class C, class = std::enable_if_t<!std::is_same_v<std::decay_t<C>, ByteView> &&
                                                !detail::is_text<C> &&
                                                sizeof(detail::ElementOf<C>) == 1>>
    ByteView(const C &container) noexcept : data_(std::data(container)), size_(std::size(container))
    {
    }

    const void *data() const noexcept { return data_; }
    std::size_t size() const noexcept { return size_; }

private:
    const void *data_ = nullptr;
    std::size_t size_ = 0;
};

} // namespace cleave

#if __cplusplus >= 202002L
template <class T> inline constexpr bool std::ranges::enable_borrowed_range<cleave::Span<T>> = true;
#endif

#endif
