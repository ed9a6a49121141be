#include "text.hpp"

#include <algorithm>
#include <string_view>

std::string StopMatcher::push(const std::string &piece)
{
    std::string text = flush() + piece;
    std::size_t end = std::string::npos, keep = 0;
    for (const std::string &stop : stops_)
        end = std::min(end, text.find(stop));
    if (end != std::string::npos) {
        found_ = true;
        return text.substr(0, end);
    }
    for (const std::string &stop : stops_)
        for (std::size_t n = std::min(stop.size() - 1, text.size()); n > keep; n--)
            if (text.compare(text.size() - n, n, stop, 0, n) == 0)
                keep = n;
    held_ = text.substr(text.size() - keep);
    return text.substr(0, text.size() - keep);
}

static const char digits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

std::string to_base64(const std::vector<std::uint8_t> &bytes)
{
    std::string out;
    for (std::size_t i = 0; i < bytes.size(); i += 3) {
        std::uint32_t group = 0;
        for (std::size_t k = 0; k < 3; k++)
            group = group << 8 | (i + k < bytes.size() ? bytes[i + k] : 0u);
        for (std::size_t k = 0; k < 4; k++)
            out += i + k > bytes.size() ? '=' : digits[group >> (18 - 6 * k) & 63];
    }
    return out;
}

std::optional<std::vector<std::uint8_t>> from_base64(const std::string &text)
{
    std::vector<std::uint8_t> out;
    std::uint32_t bits = 0;
    int n = 0;
    const std::size_t length = std::min(text.find('='), text.size());
    if (text.size() % 4 != 0 || text.size() - length > 2)
        return std::nullopt;
    for (std::size_t i = 0; i < length; i++) {
        const std::size_t digit = std::string_view(digits).find(text[i]);
        if (digit == std::string::npos)
            return std::nullopt;
        bits = bits << 6 | static_cast<std::uint32_t>(digit);
        n += 6;
        if (n >= 8) {
            n -= 8;
            out.push_back(static_cast<std::uint8_t>(bits >> n));
        }
    }
    return out;
}

std::size_t characters(const std::string &text)
{
    return static_cast<std::size_t>(
        std::count_if(text.begin(), text.end(), [](char c) { return (static_cast<unsigned char>(c) & 0xc0) != 0x80; }));
}
