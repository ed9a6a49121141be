// Devices.
// SPDX-License-Identifier: Apache-2.0
#ifndef CLEAVE_DEVICE_HPP
#define CLEAVE_DEVICE_HPP

#include "owner.hpp"

#include <string_view>

namespace cleave {

struct DeviceInfo : cleave_device_info_t {
    std::string_view uuid() const noexcept { return cleave_device_info_t::uuid; }
    std::string_view name() const noexcept { return cleave_device_info_t::name; }
};

/// Number of CUDA devices that this build of the library can use, without the CPU.
inline std::int32_t device_count() noexcept { return cleave_device_count(); }

/// Describes CLEAVE_DEVICE_CPU or a CUDA device. Errors: NotFound (no such device).
inline Result<DeviceInfo> device_info(std::int32_t ordinal) noexcept
{
    return detail::read_info<DeviceInfo, cleave_device_info_t>(
        [&](cleave_device_info_t *out, cleave_error_t *err) { return cleave_device_info(ordinal, out, err); });
}

} // namespace cleave

#endif
