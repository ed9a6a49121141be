// Texts of cache salts. Events have a salt's number, and routers know its text.
#pragma once

#include <cstdint>
#include <mutex>
#include <string>
#include <unordered_map>

/// Remembers the texts of the last ten thousand salts or so.
class SaltTexts {
public:
    /// Remembers the text of a salt, unless that is 0, and returns the salt.
    std::uint64_t remember(std::uint64_t salt, const std::string &text)
    {
        if (salt == 0)
            return salt;
        const std::lock_guard<std::mutex> lock(mutex_);
        if (texts_.size() >= most && texts_.count(salt) == 0)
            texts_.erase(texts_.begin());
        texts_[salt] = text;
        return salt;
    }

    /// Returns nothing for a salt that is not known.
    std::string text(std::uint64_t salt) const
    {
        const std::lock_guard<std::mutex> lock(mutex_);
        const auto known = texts_.find(salt);
        return known == texts_.end() ? std::string() : known->second;
    }

private:
    static constexpr std::size_t most = 10000;

    mutable std::mutex mutex_; // guards the member below
    std::unordered_map<std::uint64_t, std::string> texts_;
};
