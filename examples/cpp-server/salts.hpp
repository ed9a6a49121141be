// Cache salts. No protocol is known here.
#pragma once

#include "errors.hpp"

#include <cstdint>
#include <string>

#include <openssl/rand.h>
#include <openssl/sha.h>

/// The salt in the first bytes of `bytes`. It is not 0, which would be none.
inline std::uint64_t to_salt(const unsigned char *bytes)
{
    std::uint64_t salt = 0;
    for (int i = 7; i >= 0; i--)
        salt = salt << 8 | bytes[i];
    return salt | 1;
}

/// A salt that separates the prefixes of a request in the cache from those of all others.
inline std::uint64_t random_salt()
{
    unsigned char bytes[8];
    if (RAND_bytes(bytes, sizeof bytes) != 1)
        throw failed("there are no random numbers");
    return to_salt(bytes);
}

/// The salt of a text, which separates prefixes from those of requests with other texts; 0 for no text.
inline std::uint64_t salt_of(const std::string &text)
{
    if (text.empty())
        return 0;
    unsigned char digest[SHA256_DIGEST_LENGTH];
    SHA256(reinterpret_cast<const unsigned char *>(text.data()), text.size(), digest);
    return to_salt(digest);
}
