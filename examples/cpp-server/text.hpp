// Small things done to text: stop strings, base64.
#ifndef TEXT_HPP
#define TEXT_HPP

#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

/// Ends a text at the first stop string, and withholds what could become one.
class StopMatcher {
public:
    explicit StopMatcher(std::vector<std::string> stops) : stops_(std::move(stops)) {}

    /// Takes the next piece of the text and gives what is decided with it. Once a stop string is found the text is over.
    std::string push(const std::string &piece);
    /// What was withheld, when the text ends without a stop string.
    std::string flush() { return std::exchange(held_, {}); }
    bool found() const { return found_; }

private:
    std::vector<std::string> stops_;
    std::string held_;
    bool found_ = false;
};

std::string to_base64(const std::vector<std::uint8_t> &bytes);
std::optional<std::vector<std::uint8_t>> from_base64(const std::string &text);

/// Unicode characters in UTF-8.
std::size_t characters(const std::string &text);

#endif
