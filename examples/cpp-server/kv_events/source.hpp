// Addresses at which the server publishes the events of its prefix cache.
#pragma once

#include <cstdint>
#include <string>

/// The first frame of every message.
constexpr char kv_events_topic[] = "kv-events";
/// Number of messages that are kept for replay.
constexpr std::uint32_t kv_events_kept = 10000;
/// Number of messages that wait for a slow subscriber. One that is slower misses some, which the numbers show.
constexpr std::uint32_t kv_events_ahead = 1000;

/// Addresses as ZeroMQ writes them ("tcp://HOST:PORT"). HOST is a star if the server listens at all addresses of its
/// machine: a peer puts the machine's name in its place.
struct KvEventSource {
    std::string endpoint; // empty: nothing is published
    std::string replay;   // empty: earlier messages cannot be had again
};
