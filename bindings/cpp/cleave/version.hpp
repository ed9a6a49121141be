// Which library is loaded.
// SPDX-License-Identifier: Apache-2.0
#ifndef CLEAVE_VERSION_HPP
#define CLEAVE_VERSION_HPP

#include <cleave/cleave.h>

#include <cstdint>

namespace cleave {

/// The API that the loaded library implements; CLEAVE_API_MAJOR and CLEAVE_API_MINOR are the header's.
struct ApiVersion {
    std::uint32_t major_number;
    std::uint32_t minor_number;
};

inline ApiVersion api_version() noexcept
{
    const std::uint32_t version = cleave_api_version();
    return {version >> 16, version & 0xffff};
}

/// The release, for people: "0.1.0". Static.
inline const char *version_string() noexcept { return cleave_version_string(); }

} // namespace cleave

#endif
