// The command line. See "Options" in ../README.md.
#ifndef OPTIONS_HPP
#define OPTIONS_HPP

#include <cstdint>
#include <string>

enum class ServerRole { Mixed, Prefill, Decode, Front };

const char *to_string(ServerRole role);

struct Options {
    ServerRole role = ServerRole::Mixed;
    std::string host = "127.0.0.1";
    int port = 8000; // 0: a free one
    std::string model, model_name;
    std::string front, advertise; // URLs without a slash at the end
    std::string secret_file, kv_listen;
    std::uint64_t kv_mib = 1024;
    std::uint32_t max_sequences = 0, max_batch_tokens = 0, threads = 0; // 0: the library's
    std::string page;

    bool is_worker() const { return role == ServerRole::Prefill || role == ServerRole::Decode; }
};

/// Throws std::invalid_argument, which names the option.
Options parse_options(int argc, char **argv);

#endif
