// The secret that a front and its workers share.
#pragma once

#include <array>
#include <cstdint>
#include <fstream>
#include <stdexcept>
#include <string>

using Secret = std::array<std::uint8_t, 32>;

/// Throws std::runtime_error.
inline Secret read_secret(const std::string &path)
{
    Secret secret{};
    std::ifstream file(path, std::ios::binary);
    if (!file.read(reinterpret_cast<char *>(secret.data()), secret.size()))
        throw std::runtime_error(path + ": cannot read a secret of 32 bytes from it");
    return secret;
}
