// Text: stop strings, base64.
#pragma once

#include <algorithm>
#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

/// Ends a text at the first stop string, and holds back text that could become one.
class StopMatcher {
public:
    /// With `keep` the stop string is part of the text.
    explicit StopMatcher(std::vector<std::string> stops, bool keep = false) : stops_(std::move(stops)), keep_(keep) {}

    /// Takes the next piece of the text and returns the part that may be sent. Once a stop string is found, the text
    /// ends there.
    std::string push(const std::string &piece)
    {
        const std::string text = flush() + piece;
        std::size_t end = std::string::npos, held = 0;
        for (const std::string &stop : stops_) {
            const std::size_t at = text.find(stop);
            if (at < end) {
                end = at;
                found_ = stop;
            }
            for (std::size_t n = std::min(stop.size() - 1, text.size()); n > held; n--)
                if (text.compare(text.size() - n, n, stop, 0, n) == 0)
                    held = n;
        }
        if (found())
            return text.substr(0, keep_ ? end + found_.size() : end);
        held_ = text.substr(text.size() - held);
        return text.substr(0, text.size() - held);
    }
    /// Text that was held back, for when the text ends without a stop string.
    std::string flush() { return std::exchange(held_, {}); }
    bool holds() const { return !held_.empty(); }
    bool found() const { return !found_.empty(); }
    /// The stop string that has ended the text; empty if none has.
    const std::string &stop() const { return found_; }

private:
    std::vector<std::string> stops_;
    bool keep_;
    std::string held_, found_;
};

inline const std::string base64_digits = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

inline std::string to_base64(const std::vector<std::uint8_t> &bytes)
{
    std::string out;
    for (std::size_t i = 0; i < bytes.size(); i += 3) {
        std::uint32_t group = 0;
        for (std::size_t k = 0; k < 3; k++)
            group = group << 8 | (i + k < bytes.size() ? bytes[i + k] : 0u);
        for (std::size_t k = 0; k < 4; k++)
            out += i + k > bytes.size() ? '=' : base64_digits[group >> (18 - 6 * k) & 63];
    }
    return out;
}

/// Returns nothing if `text` is not base64.
inline std::optional<std::vector<std::uint8_t>> from_base64(const std::string &text)
{
    std::vector<std::uint8_t> out;
    const std::size_t length = std::min(text.find('='), text.size());
    if (text.size() % 4 != 0 || text.size() - length > 2)
        return std::nullopt;
    std::uint32_t bits = 0;
    for (std::size_t i = 0; i < length; i++) {
        const std::size_t digit = base64_digits.find(text[i]);
        if (digit == std::string::npos)
            return std::nullopt;
        bits = bits << 6 | static_cast<std::uint32_t>(digit);
        if (i % 4 != 0)
            out.push_back(static_cast<std::uint8_t>(bits >> (6 - 2 * (i % 4))));
    }
    return out;
}

/// Number of Unicode characters in UTF-8.
inline std::size_t characters(const std::string &text)
{
    return static_cast<std::size_t>(
        std::count_if(text.begin(), text.end(), [](char c) { return (static_cast<unsigned char>(c) & 0xc0) != 0x80; }));
}
