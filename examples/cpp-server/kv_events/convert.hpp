// Events of the prefix cache as vLLM tells them.
#pragma once

#include <cleave/cache_event.hpp>

#include <functional>
#include <optional>
#include <string>
#include <vector>

/// vLLM's name for the memory in which an engine computes, whatever the device is. Routers count blocks in "CPU" as
/// offloaded ones, which have to be loaded first.
constexpr char kv_medium[] = "GPU";

/// Text of a cache salt; empty if it is not known.
using SaltText = std::function<std::string(std::uint64_t salt)>;

struct KvEvent {
    enum Kind {
        Stored,  // blocks of one sequence, one after the other
        Removed, // blocks that are there no more
        Cleared, // no block is there any more
    } kind;
    std::vector<std::uint64_t> hashes{};
    std::uint32_t group = 0;
    // Stored:
    std::optional<std::uint64_t> parent{}; // block before the first one
    std::vector<std::int32_t> tokens{};
    std::uint32_t block_tokens = 0;
    std::uint64_t salt = 0;
    std::string salt_text{};

    /// Whether a block follows the last one of this event.
    bool goes_on(const cleave::CacheEvent &block) const
    {
        return kind == Stored && block.position > 0 && hashes.back() == block.parent_hash && salt == block.cache_salt && group == block.group;
    }
};

/// Returns the text of a salt as routers know it. Dynamo's sidecar marks the salts that it passes on.
inline std::string known_salt(const std::string &text)
{
    const std::string mark = "dynamo-cache-salt:";
    return text.compare(0, mark.size(), mark) == 0 ? text.substr(mark.size()) : text;
}

/// Converts what was read last. Consecutive blocks of a sequence become one event. Blocks with a salt that is not known any
/// more are left out, because a router would find them for requests without a salt.
inline std::vector<KvEvent> to_kv_events(const cleave::CacheEvents &read, bool is_snapshot, const SaltText &salt_text)
{
    std::vector<KvEvent> out;
    if (is_snapshot)
        out.push_back({KvEvent::Cleared});
    for (const cleave::CacheEvent &event : read.events()) {
        switch (event.type()) {
        case cleave::CacheEventType::Stored: {
            const auto tokens = read.tokens(event);
            const std::string text = event.cache_salt != 0 ? known_salt(salt_text(event.cache_salt)) : "";
            if (event.cache_salt != 0 && text.empty())
                continue;
            if (out.empty() || !out.back().goes_on(event)) {
                KvEvent &run = out.emplace_back(KvEvent{KvEvent::Stored});
                run.group = event.group;
                if (event.position > 0)
                    run.parent = event.parent_hash;
                run.block_tokens = event.n_tokens;
                run.salt = event.cache_salt;
                run.salt_text = text;
            }
            out.back().hashes.push_back(event.block_hash);
            out.back().tokens.insert(out.back().tokens.end(), tokens.begin(), tokens.end());
            break;
        }
        case cleave::CacheEventType::Removed:
            if (out.empty() || out.back().kind != KvEvent::Removed || out.back().group != event.group)
                out.emplace_back(KvEvent{KvEvent::Removed}).group = event.group;
            out.back().hashes.push_back(event.block_hash);
            break;
        case cleave::CacheEventType::Cleared: out.push_back({KvEvent::Cleared}); break;
        default: break;
        }
    }
    return out;
}
