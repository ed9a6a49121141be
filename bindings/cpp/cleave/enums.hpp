// The numbers of the C header as types. Each has a fixed underlying type, so a number of a newer library that this header
// does not know is kept. As text it is "UNKNOWN".
// SPDX-License-Identifier: Apache-2.0
#ifndef CLEAVE_ENUMS_HPP
#define CLEAVE_ENUMS_HPP

#include <cleave/cleave.h>

#include <cstdint>

namespace cleave {

/// Purpose of an engine.
enum class Role : std::uint32_t {
    Mixed = CLEAVE_ROLE_MIXED,
    Prefill = CLEAVE_ROLE_PREFILL,
    Decode = CLEAVE_ROLE_DECODE,
};

/// Reason why a request ended.
enum class FinishReason : std::uint32_t {
    None = 0, // of events that are not Finished
    Stop = CLEAVE_FINISH_STOP,
    Length = CLEAVE_FINISH_LENGTH,
    Prefilled = CLEAVE_FINISH_PREFILLED,
    Exported = CLEAVE_FINISH_EXPORTED,
    Error = CLEAVE_FINISH_ERROR,
};

/// Type of an event. Skip types that you do not know.
enum class EventType : std::uint32_t {
    None = 0, // of an Event that no queue has written
    Token = CLEAVE_EVENT_TOKEN,
    Finished = CLEAVE_EVENT_FINISHED,
    KvReady = CLEAVE_EVENT_KV_READY,
    EngineFailed = CLEAVE_EVENT_ENGINE_FAILED,
    TopLogprob = CLEAVE_EVENT_TOP_LOGPROB,
    KvStreamStarted = CLEAVE_EVENT_KV_STREAM_STARTED,
};

/// Type of stored keys and values.
enum class Dtype : std::uint32_t {
    Default = CLEAVE_DTYPE_DEFAULT,
    F32 = CLEAVE_DTYPE_F32,
    F16 = CLEAVE_DTYPE_F16,
    Bf16 = CLEAVE_DTYPE_BF16,
    I8 = CLEAVE_DTYPE_I8,
};

/// Way of KV from one cache to another.
enum class Transport : std::uint32_t {
    Any = CLEAVE_TRANSPORT_ANY,
    Process = CLEAVE_TRANSPORT_PROCESS,
    SharedMemory = CLEAVE_TRANSPORT_SHARED_MEMORY,
    Tcp = CLEAVE_TRANSPORT_TCP,
    Nixl = CLEAVE_TRANSPORT_NIXL,
    Cuda = CLEAVE_TRANSPORT_CUDA,
};

/// Reason why two caches cannot exchange KV. None: they can.
enum class PairReason : std::uint32_t {
    None = CLEAVE_PAIR_NONE,
    Weights = CLEAVE_PAIR_WEIGHTS,
    Tokenizer = CLEAVE_PAIR_TOKENIZER,
    Dtype = CLEAVE_PAIR_DTYPE,
    BlockSize = CLEAVE_PAIR_BLOCK_SIZE,
    Layout = CLEAVE_PAIR_LAYOUT,
    Version = CLEAVE_PAIR_VERSION,
    Secret = CLEAVE_PAIR_SECRET,
    Transport = CLEAVE_PAIR_TRANSPORT,
    Unreachable = CLEAVE_PAIR_UNREACHABLE,
    SelfTest = CLEAVE_PAIR_SELF_TEST,
    Address = CLEAVE_PAIR_ADDRESS,
    Resources = CLEAVE_PAIR_RESOURCES,
};

enum class LogLevel : std::int32_t {
    Off = CLEAVE_LOG_OFF,
    Error = CLEAVE_LOG_ERROR,
    Warn = CLEAVE_LOG_WARN,
    Info = CLEAVE_LOG_INFO,
    Debug = CLEAVE_LOG_DEBUG,
    Trace = CLEAVE_LOG_TRACE,
};

constexpr std::uint32_t to_c(Role value) noexcept { return static_cast<std::uint32_t>(value); }
constexpr std::uint32_t to_c(FinishReason value) noexcept { return static_cast<std::uint32_t>(value); }
constexpr std::uint32_t to_c(EventType value) noexcept { return static_cast<std::uint32_t>(value); }
constexpr std::uint32_t to_c(Dtype value) noexcept { return static_cast<std::uint32_t>(value); }
constexpr std::uint32_t to_c(Transport value) noexcept { return static_cast<std::uint32_t>(value); }
constexpr std::uint32_t to_c(PairReason value) noexcept { return static_cast<std::uint32_t>(value); }
constexpr std::int32_t to_c(LogLevel value) noexcept { return static_cast<std::int32_t>(value); }

constexpr const char *to_string(Role value) noexcept
{
    switch (value) {
    case Role::Mixed: return "MIXED";
    case Role::Prefill: return "PREFILL";
    case Role::Decode: return "DECODE";
    }
    return "UNKNOWN";
}

constexpr const char *to_string(FinishReason value) noexcept
{
    switch (value) {
    case FinishReason::None: return "NONE";
    case FinishReason::Stop: return "STOP";
    case FinishReason::Length: return "LENGTH";
    case FinishReason::Prefilled: return "PREFILLED";
    case FinishReason::Exported: return "EXPORTED";
    case FinishReason::Error: return "ERROR";
    }
    return "UNKNOWN";
}

constexpr const char *to_string(EventType value) noexcept
{
    switch (value) {
    case EventType::None: return "NONE";
    case EventType::Token: return "TOKEN";
    case EventType::Finished: return "FINISHED";
    case EventType::KvReady: return "KV_READY";
    case EventType::EngineFailed: return "ENGINE_FAILED";
    case EventType::TopLogprob: return "TOP_LOGPROB";
    case EventType::KvStreamStarted: return "KV_STREAM_STARTED";
    }
    return "UNKNOWN";
}

constexpr const char *to_string(Dtype value) noexcept
{
    switch (value) {
    case Dtype::Default: return "DEFAULT";
    case Dtype::F32: return "F32";
    case Dtype::F16: return "F16";
    case Dtype::Bf16: return "BF16";
    case Dtype::I8: return "I8";
    }
    return "UNKNOWN";
}

constexpr const char *to_string(Transport value) noexcept
{
    switch (value) {
    case Transport::Any: return "ANY";
    case Transport::Process: return "PROCESS";
    case Transport::SharedMemory: return "SHARED_MEMORY";
    case Transport::Tcp: return "TCP";
    case Transport::Nixl: return "NIXL";
    case Transport::Cuda: return "CUDA";
    }
    return "UNKNOWN";
}

constexpr const char *to_string(PairReason value) noexcept
{
    switch (value) {
    case PairReason::None: return "NONE";
    case PairReason::Weights: return "WEIGHTS";
    case PairReason::Tokenizer: return "TOKENIZER";
    case PairReason::Dtype: return "DTYPE";
    case PairReason::BlockSize: return "BLOCK_SIZE";
    case PairReason::Layout: return "LAYOUT";
    case PairReason::Version: return "VERSION";
    case PairReason::Secret: return "SECRET";
    case PairReason::Transport: return "TRANSPORT";
    case PairReason::Unreachable: return "UNREACHABLE";
    case PairReason::SelfTest: return "SELF_TEST";
    case PairReason::Address: return "ADDRESS";
    case PairReason::Resources: return "RESOURCES";
    }
    return "UNKNOWN";
}

constexpr const char *to_string(LogLevel value) noexcept
{
    switch (value) {
    case LogLevel::Off: return "OFF";
    case LogLevel::Error: return "ERROR";
    case LogLevel::Warn: return "WARN";
    case LogLevel::Info: return "INFO";
    case LogLevel::Debug: return "DEBUG";
    case LogLevel::Trace: return "TRACE";
    }
    return "UNKNOWN";
}

} // namespace cleave

#endif
