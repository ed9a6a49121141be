#include "options.hpp"

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <limits>
#include <stdexcept>
#include <tuple>
#include <utility>

const char *to_string(ServerRole role)
{
    switch (role) {
    case ServerRole::Prefill: return "prefill";
    case ServerRole::Decode: return "decode";
    case ServerRole::Front: return "front";
    default: return "mixed";
    }
}

namespace {

[[noreturn]] void refuse(const std::string &option, const std::string &why)
{
    throw std::invalid_argument(option + ": " + why);
}

template <class Number> Number number(const std::string &option, const std::string &text, Number least)
{
    char *end = nullptr;
    errno = 0;
    const unsigned long long value = std::strtoull(text.c_str(), &end, 10);
    if (text.empty() || text[0] < '0' || text[0] > '9' || *end != '\0' || errno != 0 || value < least ||
        value > static_cast<unsigned long long>(std::numeric_limits<Number>::max()))
        refuse(option, "'" + text + "' is not a number that it can be");
    return static_cast<Number>(value);
}

ServerRole role(const std::string &option, const std::string &text)
{
    for (const ServerRole role : {ServerRole::Mixed, ServerRole::Prefill, ServerRole::Decode, ServerRole::Front})
        if (text == to_string(role))
            return role;
    refuse(option, "'" + text + "' is none of mixed, prefill, decode and front");
}

std::pair<std::string, int> address(const std::string &option, const std::string &text)
{
    const std::size_t colon = text.rfind(':');
    if (colon == std::string::npos || colon == 0)
        refuse(option, "'" + text + "' is not HOST:PORT");
    std::string host = text.substr(0, colon);
    if (host.front() == '[' && host.back() == ']')
        host = host.substr(1, host.size() - 2);
    return {host, number<std::uint16_t>(option, text.substr(colon + 1), 0)};
}

std::string url(const std::string &option, std::string text)
{
    while (!text.empty() && text.back() == '/')
        text.pop_back();
    if (text.rfind("http://", 0) != 0 || text.size() == 7 || text.find('/', 7) != std::string::npos)
        refuse(option, "'" + text + "' is not http://HOST:PORT");
    return text;
}

} // namespace

Options parse_options(int argc, char **argv)
{
    Options out;
    for (int i = 1; i < argc; i++) {
        std::string option = argv[i], value; // "--option value" or "--option=value"
        const std::size_t equals = option.find('=');
        if (equals != std::string::npos) {
            value = option.substr(equals + 1);
            option.erase(equals);
        } else if (i + 1 < argc) {
            value = argv[++i];
        } else {
            refuse(option, "has no value, or is no option: see examples/README.md");
        }
        if (option == "--role")
            out.role = role(option, value);
        else if (option == "--listen")
            std::tie(out.host, out.port) = address(option, value);
        else if (option == "--model")
            out.model = value;
        else if (option == "--model-name")
            out.model_name = value;
        else if (option == "--front")
            out.front = url(option, value);
        else if (option == "--advertise")
            out.advertise = url(option, value);
        else if (option == "--secret-file")
            out.secret_file = value;
        else if (option == "--kv-listen") {
            address(option, value); // the library takes it as it is
            out.kv_listen = value;
        } else if (option == "--kv-mib")
            out.kv_mib = std::min<std::uint64_t>(number<std::uint64_t>(option, value, 1), UINT64_MAX >> 20);
        else if (option == "--max-sequences")
            out.max_sequences = number<std::uint32_t>(option, value, 0);
        else if (option == "--max-batch-tokens")
            out.max_batch_tokens = number<std::uint32_t>(option, value, 0);
        else if (option == "--threads")
            out.threads = number<std::uint32_t>(option, value, 0);
        else if (option == "--page")
            out.page = value;
        else
            refuse(option, "there is no such option: see examples/README.md");
    }
    if (out.role != ServerRole::Front && out.model.empty())
        refuse("--model", "is required");
    if (out.is_worker() && out.front.empty())
        refuse("--front", "is required");
    if (out.is_worker() && out.secret_file.empty())
        refuse("--secret-file", "is required");
    if (out.model_name.empty()) {
        out.model_name = out.model;
        while (out.model_name.size() > 1 && out.model_name.back() == '/')
            out.model_name.pop_back();
        out.model_name.erase(0, out.model_name.rfind('/') + 1);
    }
    return out;
}
