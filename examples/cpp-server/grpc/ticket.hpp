// The kv_transfer_params of requests and answers: how a prefill worker's ticket reaches a decode worker.
#pragma once

#include "../text.hpp"
#include "status.hpp"

#include <google/protobuf/struct.pb.h>

/// KV of a prompt at another worker.
struct RemoteKv {
    std::vector<std::uint8_t> ticket;
    std::vector<std::uint8_t> address; // of the worker's cache; may be missing
};

constexpr char ticket_key[] = "cleave_ticket", address_key[] = "cleave_address";

/// The member `key`; null if it is missing.
inline const google::protobuf::Value *member(const google::protobuf::Struct &params, const char *key)
{
    const auto found = params.fields().find(key);
    return found == params.fields().end() ? nullptr : &found->second;
}

inline bool is_true(const google::protobuf::Struct &params, const char *key)
{
    const auto *value = member(params, key);
    return value != nullptr && value->bool_value();
}

/// Reads the member `key` of `field`, which is base64; empty if it is missing. Throws StatusError.
inline std::vector<std::uint8_t> bytes_of(const char *field, const google::protobuf::Struct &params, const char *key)
{
    using Value = google::protobuf::Value;
    const Value *value = member(params, key);
    if (value == nullptr || value->kind_case() == Value::kNullValue || value->kind_case() == Value::KIND_NOT_SET)
        return {};
    if (value->kind_case() != Value::kStringValue)
        throw refused(field, std::string(key) + " is not a string");
    auto bytes = from_base64(value->string_value());
    if (!bytes)
        throw refused(field, std::string(key) + " is not base64");
    return std::move(*bytes);
}

/// Without a ticket in `params` the result has none. Throws StatusError.
inline RemoteKv parse_remote_kv(const char *field, const google::protobuf::Struct &params)
{
    return {bytes_of(field, params, ticket_key), bytes_of(field, params, address_key)};
}

/// Writes the kv_transfer_params with which a decode worker continues.
inline void write_remote_kv(const RemoteKv &kv, google::protobuf::Struct &params)
{
    auto &fields = *params.mutable_fields();
    fields["do_remote_prefill"].set_bool_value(true);
    fields[ticket_key].set_string_value(to_base64(kv.ticket));
    fields[address_key].set_string_value(to_base64(kv.address));
}
