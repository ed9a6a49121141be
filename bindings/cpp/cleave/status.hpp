// Status codes and errors.
// SPDX-License-Identifier: Apache-2.0
#ifndef CLEAVE_STATUS_HPP
#define CLEAVE_STATUS_HPP

#include <cleave/cleave.h>

#include <cstdint>

#ifdef CLEAVE_EXCEPTIONS
#include <stdexcept>
#endif

namespace cleave {

/// Outcome of a call or a request. Other negative numbers of a newer library are kept as they are.
enum class Status : std::int32_t {
    Ok = CLEAVE_OK,
    InvalidArgument = CLEAVE_ERR_INVALID_ARGUMENT,
    NotFound = CLEAVE_ERR_NOT_FOUND,
    Unsupported = CLEAVE_ERR_UNSUPPORTED,
    WouldBlock = CLEAVE_ERR_WOULD_BLOCK,
    OutOfMemory = CLEAVE_ERR_OUT_OF_MEMORY,
    Io = CLEAVE_ERR_IO,
    Incompatible = CLEAVE_ERR_INCOMPATIBLE,
    Permission = CLEAVE_ERR_PERMISSION,
    Expired = CLEAVE_ERR_EXPIRED,
    Corrupt = CLEAVE_ERR_CORRUPT,
    Cancelled = CLEAVE_ERR_CANCELLED,
    Timeout = CLEAVE_ERR_TIMEOUT,
    Device = CLEAVE_ERR_DEVICE,
    Peer = CLEAVE_ERR_PEER,
    Shutdown = CLEAVE_ERR_SHUTDOWN,
    Internal = CLEAVE_ERR_INTERNAL,
    PrefillElsewhere = CLEAVE_ERR_PREFILL_ELSEWHERE,
};

/// Name in the C header without its prefix, such as "NOT_FOUND"; "UNKNOWN" for a number that the library does not know.
inline const char *to_string(Status status) noexcept
{
    return cleave_status_string(static_cast<cleave_status_t>(status));
}

constexpr cleave_status_t to_c(Status status) noexcept { return static_cast<cleave_status_t>(status); }

/// Description of a failure: the C struct by value. Never allocates.
class Error {
public:
    Error() noexcept : Error(Status::Ok) {}
    explicit Error(Status status) noexcept
    {
        error_.code = to_c(status);
        error_.message[0] = '\0';
    }
    explicit Error(const cleave_error_t &error) noexcept : error_(error) {}

    Status code() const noexcept { return static_cast<Status>(error_.code); }

    /// Text that names what is at fault: UTF-8, NUL-terminated. Without a text, as in events, the name of the code.
    const char *message() const noexcept { return error_.message[0] != '\0' ? error_.message : to_string(code()); }

    const cleave_error_t &get() const noexcept { return error_; }

private:
    cleave_error_t error_;
};

#ifdef CLEAVE_EXCEPTIONS
/// Thrown by Result<T>::or_throw().
class Exception : public std::runtime_error {
public:
    explicit Exception(const Error &error) : std::runtime_error(error.message()), code_(error.code()) {}

    Status code() const noexcept { return code_; }

private:
    Status code_;
};
#endif

} // namespace cleave

#endif
