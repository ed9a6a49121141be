// The command line. See "Options" in ../README.md.
#pragma once

#include <cleave/cleave.h>

#include <cstdint>
#include <map>
#include <stdexcept>
#include <string>

struct Options {
    std::string role, host;
    int port; // 0 means a free one
    std::string model, model_name;
    std::string front, advertise; // URLs without a slash at the end
    std::string workers_listen_host;
    int workers_listen_port;
    std::string secret_file, kv_listen, grpc, page;
    std::string kv_events, kv_events_replay; // HOST:PORT, or empty
    std::int32_t device; // number of a GPU, or the CPU
    std::uint32_t max_connections, forget_after, drain, kv_lease; // times in seconds
    std::uint32_t kv_mib, max_sequences, max_batch_tokens, threads; // 0 means the library's default

    bool is_worker() const { return role == "prefill" || role == "decode"; }
    /// Whether requests come from a front of this server's own. Without one, any router may send them.
    bool has_front() const { return is_worker() && !front.empty(); }
};

/// Reads the command line. Throws std::invalid_argument, which names the option.
inline Options parse_options(int argc, char **argv)
{
    std::map<std::string, std::string> values = {
        {"--role", "mixed"}, {"--listen", "127.0.0.1:8000"}, {"--model", ""}, {"--model-name", ""}, {"--front", ""},
        {"--advertise", ""}, {"--secret-file", ""}, {"--kv-listen", ""}, {"--kv-mib", "1024"}, {"--max-sequences", "0"},
        {"--max-batch-tokens", "0"}, {"--threads", "0"}, {"--page", ""}, {"--device", ""}, {"--max-connections", "2048"},
        {"--workers-listen", "127.0.0.1:8001"}, {"--forget-after", "60"}, {"--drain", "10"},
        {"--kv-lease", "10"}, {"--grpc", ""}, {"--kv-events", ""}, {"--kv-events-replay", ""}};
    const auto require = [](bool right, const std::string &option, const std::string &what) {
        if (!right)
            throw std::invalid_argument(option + ": " + what);
    };
    for (int i = 1; i < argc; i += 2) {
        require(values.count(argv[i]) != 0, argv[i], "no such option: see examples/README.md");
        require(i + 1 < argc, argv[i], "has no value");
        values[argv[i]] = argv[i + 1];
    }
    const auto number = [&](const std::string &option, const std::string &text, std::uint64_t most) {
        const bool digits = text.find_first_not_of("0123456789") == std::string::npos && text.size() <= 10;
        const bool right = digits && !text.empty() && std::stoull(text) <= most;
        require(right, option, "'" + text + "' is not a number in its range");
        return static_cast<std::uint32_t>(std::stoull(text));
    };
    const auto url = [&](const std::string &option) {
        const std::string text = values[option].substr(0, values[option].find_last_not_of('/') + 1);
        require(text.empty() || text.rfind("http://", 0) == 0, option, "'" + text + "' is not http://HOST:PORT");
        return text;
    };
    const auto address = [&](const std::string &option, std::string &host, int &port) {
        const std::string text = values[option];
        const std::size_t colon = text.rfind(':');
        require(colon != std::string::npos && colon > 0, option, "'" + text + "' is not HOST:PORT");
        host = text.substr(0, colon);
        if (host.front() == '[' && host.back() == ']')
            host = host.substr(1, host.size() - 2);
        port = static_cast<int>(number(option, text.substr(colon + 1), 65535));
    };
    const auto check_address = [&](const std::string &option) {
        std::string host;
        int port;
        address(option, host, port);
    };
    Options out;
    out.role = values["--role"];
    const bool known = out.role == "mixed" || out.role == "front" || out.is_worker();
    require(known, "--role", "'" + out.role + "' must be mixed, prefill, decode or front");
    address("--listen", out.host, out.port);
    address("--workers-listen", out.workers_listen_host, out.workers_listen_port);
    out.model = values["--model"];
    require(out.role == "front" || !out.model.empty(), "--model", "is required");
    out.model_name = values["--model-name"];
    if (out.model_name.empty()) {
        out.model_name = out.model.substr(0, out.model.find_last_not_of('/') + 1);
        out.model_name.erase(0, out.model_name.rfind('/') + 1);
    }
    out.front = url("--front");
    out.advertise = url("--advertise");
    out.secret_file = values["--secret-file"];
    require(out.role == "mixed" || !out.secret_file.empty(), "--secret-file", "is required");
    out.max_connections = number("--max-connections", values["--max-connections"], 1000000);
    require(out.max_connections > 0, "--max-connections", "must be 1 or more");
    out.forget_after = number("--forget-after", values["--forget-after"], 1000000);
    out.drain = number("--drain", values["--drain"], 1000000);
    out.kv_lease = number("--kv-lease", values["--kv-lease"], 1000000);
    require(out.kv_lease > 0, "--kv-lease", "must be 1 or more");
    out.kv_listen = values["--kv-listen"];
    out.grpc = values["--grpc"];
    if (!out.grpc.empty() && out.grpc.rfind("unix:", 0) != 0)
        check_address("--grpc");
    require(out.grpc.empty() || out.role != "front", "--grpc", "a front has no engine to serve");
    out.kv_events = values["--kv-events"];
    out.kv_events_replay = values["--kv-events-replay"];
    for (const char *option : {"--kv-events", "--kv-events-replay"})
        if (!values[option].empty())
            check_address(option);
    require(out.kv_events.empty() || out.role != "front", "--kv-events", "a front has no engine whose cache could be told about");
    require(out.kv_events_replay.empty() || !out.kv_events.empty(), "--kv-events-replay", "needs --kv-events");
    out.page = values["--page"];
    const std::string device = values["--device"];
    out.device = device.empty() ? CLEAVE_DEVICE_CPU : static_cast<std::int32_t>(number("--device", device, INT32_MAX));
    out.kv_mib = number("--kv-mib", values["--kv-mib"], UINT32_MAX);
    out.max_sequences = number("--max-sequences", values["--max-sequences"], UINT32_MAX);
    out.max_batch_tokens = number("--max-batch-tokens", values["--max-batch-tokens"], UINT32_MAX);
    out.threads = number("--threads", values["--threads"], UINT32_MAX);
    return out;
}
