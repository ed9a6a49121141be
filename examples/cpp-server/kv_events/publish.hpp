// Publishing what enters and leaves the prefix cache: see "KV events" in ../../README.md.
#pragma once

#include "convert.hpp"
#include "source.hpp"

#include <cleave/cache.hpp>

/// Number of events that the cache has to keep for the publisher.
constexpr std::uint32_t kv_events_in_cache = 1 << 16;

/// Publishes the events of a cache at two addresses (HOST:PORT), of which the second may be empty, until the process ends with
/// std::quick_exit. The cache lives as long. Throws std::runtime_error if it cannot listen, or is built without ZeroMQ.
KvEventSource publish_kv_events(const cleave::Cache &cache, const std::string &address, const std::string &replay, SaltText salt_text);
