// vLLM's messages about cache events, in msgpack.
#pragma once

#include "convert.hpp"

#include <nlohmann/json.hpp>

/// An event as a map, whose fields have vLLM's order.
inline nlohmann::ordered_json to_map(const KvEvent &event)
{
    switch (event.kind) {
    case KvEvent::Stored: {
        nlohmann::ordered_json map = {{"type", "BlockStored"},
                                      {"block_hashes", event.hashes},
                                      {"parent_block_hash", nullptr},
                                      {"token_ids", event.tokens},
                                      {"block_size", event.block_tokens},
                                      {"lora_id", nullptr},
                                      {"medium", kv_medium},
                                      {"lora_name", nullptr}};
        if (event.parent)
            map["parent_block_hash"] = *event.parent;
        if (!event.salt_text.empty())
            map["cache_salt"] = event.salt_text;
        map["group_idx"] = event.group;
        return map;
    }
    case KvEvent::Removed:
        return {{"type", "BlockRemoved"}, {"block_hashes", event.hashes}, {"medium", kv_medium}, {"group_idx", event.group}};
    case KvEvent::Cleared: break;
    }
    return {{"type", "AllBlocksCleared"}};
}

/// The payload of a message: time in seconds, events, data-parallel rank.
inline std::vector<std::uint8_t> encode_kv_events(double time, const std::vector<KvEvent> &events)
{
    nlohmann::ordered_json list = nlohmann::ordered_json::array();
    for (const KvEvent &event : events)
        list.push_back(to_map(event));
    return nlohmann::ordered_json::to_msgpack(nlohmann::ordered_json::array({time, std::move(list), 0}));
}
