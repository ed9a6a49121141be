// A pool of KV blocks, imports into it, and pairing with other caches.
// SPDX-License-Identifier: Apache-2.0
#ifndef CLEAVE_CACHE_HPP
#define CLEAVE_CACHE_HPP

#include "cache_event.hpp"
#include "insight.hpp"
#include "kv.hpp"
#include "model.hpp"
#include "queue.hpp"

#include <array>
#include <cstdint>
#include <memory>
#include <type_traits>

namespace cleave {

/// Configuration of a cache. Every field may be left as it is.
struct CacheConfig {
    /// Tokens of a block, at most 256; 0: 16.
    std::uint32_t block_tokens = 0;
    Dtype dtype = Dtype::Default;
    /// Keep blocks for later requests with the same beginning.
    bool prefix_cache = true;
    /// Convert imported KV of another block size or dtype.
    bool convert_imports = true;
    /// One copy of the weights on a CUDA device for all processes of this user that say so: CLEAVE_CACHE_SHARE_WEIGHTS.
    bool share_weights = false;
    /// Further CLEAVE_CACHE_* of the C header.
    std::uint32_t flags = 0;
    /// Memory for KV blocks on each device; 0: 1 GiB.
    std::uint64_t bytes_per_device = 0;
    /// Lease of a handle that is not renewed; 0: 30 s.
    std::chrono::milliseconds lease{0};
    /// Caches with the same secret can import from each other. All zero: a random one, imports within the process only.
    std::array<std::uint8_t, 32> secret{};
    /// A peer that is silent for this long during a transfer counts as gone; 0: 4 s.
    std::chrono::milliseconds peer_timeout{0};
    /// Events about the prefix index that are kept for Cache::events; 0: none are recorded.
    std::uint32_t events_kept = 0;

    cleave_cache_config_t to_c() const noexcept
    {
        auto config = detail::sized<cleave_cache_config_t>();
        config.block_tokens = block_tokens;
        config.dtype = cleave::to_c(dtype);
        config.flags = flags | (prefix_cache ? 0 : CLEAVE_CACHE_NO_PREFIX) | (convert_imports ? 0 : CLEAVE_CACHE_NO_CONVERT) |
            (share_weights ? CLEAVE_CACHE_SHARE_WEIGHTS : 0);
        config.bytes_per_device = bytes_per_device;
        config.lease_ms = detail::to_ms(lease);
        for (std::size_t i = 0; i < secret.size(); i++)
            config.secret[i] = secret[i];
        config.peer_timeout_ms = detail::to_ms(peer_timeout);
        config.events_kept = events_kept;
        return config;
    }
};

/// Result of Cache::pair.
struct PairReport : cleave_pair_report_t {
    /// Ok, or the reason why the pair cannot exchange KV.
    Status status() const noexcept { return static_cast<Status>(cleave_pair_report_t::status); }
    Transport transport() const noexcept { return static_cast<Transport>(cleave_pair_report_t::transport); }
    PairReason reason() const noexcept { return static_cast<PairReason>(cleave_pair_report_t::reason); }
    std::chrono::nanoseconds rtt() const noexcept { return std::chrono::nanoseconds(rtt_ns); }
    /// The transport and its address, or the expected and the found value.
    std::string_view detail() const noexcept { return cleave_pair_report_t::detail; }
};

/// A pool of KV blocks on a device, with its prefix index and handles. Ending it ends every handle in it.
class Cache : public detail::Owner<cleave_cache_t, cleave_cache_destroy> {
public:
    Cache() noexcept = default;
    static Cache adopt(cleave_cache_t *cache) noexcept { return Cache(cache); }

    /// Makes a cache for `model` on `devices` (ordinals; none: the CPU). [BLOCKING]
    /// Errors: InvalidArgument, NotFound (model, device), Unsupported, OutOfMemory.
    static Result<Cache> create(const Model &model, const CacheConfig &config = {},
                                Span<const std::int32_t> devices = {}) noexcept
    {
        cleave_error_t error;
        cleave_cache_t *cache = nullptr;
        const cleave_cache_config_t c = config.to_c();
        if (cleave_cache_create(model.get(), devices.data(), devices.size(), &c, &cache, &error) != CLEAVE_OK)
            return Error(error);
        return Cache(cache);
    }

    /// The same; `progress(std::uint64_t done, std::uint64_t total)` is called by this thread as the weights are loaded, in
    /// bytes, and returns whether to go on. It must not throw, and creates no cache. Where nothing has to be loaded (the
    /// CPU, a device that has the weights) it is called once, with `done` equal to `total`.
    /// Errors: as above, and Cancelled, with everything freed.
    template <class Progress>
    static Result<Cache> create(const Model &model, const CacheConfig &config, Span<const std::int32_t> devices,
                                Progress &&progress) noexcept
    {
        using Function = std::remove_reference_t<Progress>;
        struct Call {
            static std::int32_t of(std::uintptr_t function, std::uint64_t done, std::uint64_t total) noexcept
            {
                return (*reinterpret_cast<Function *>(function))(done, total) ? 0 : 1;
            }
        };
        cleave_error_t error;
        cleave_cache_t *cache = nullptr;
        const cleave_cache_config_t c = config.to_c();
        if (cleave_cache_create_with_progress(model.get(), devices.data(), devices.size(), &c, Call::of,
                                              reinterpret_cast<std::uintptr_t>(std::addressof(progress)), &cache,
                                              &error) != CLEAVE_OK)
            return Error(error);
        return Cache(cache);
    }

    /// Takes the handle out of a Finished event, so that it has one owner. Empty for other events and without a handle.
    Kv take_kv(Event &event) const noexcept
    {
        if (event.type() != EventType::Finished)
            return Kv();
        const KvId id = event.kv();
        event.get().kv = 0;
        return id != 0 ? Kv::adopt(get(), id) : Kv();
    }

    /// Views a handle that the caller does not own, such as that of a KvStreamStarted event.
    KvView view(KvId id) const noexcept { return KvView(get(), id); }

    /// Takes in a ticket or an image. The handle can be submitted at once; a request waits for the blocks. Once they
    /// have landed, or not, KvReady with `user_tag` and the status goes to `queue`.
    /// Errors: Corrupt, Incompatible, Permission, Expired, Peer, OutOfMemory, WouldBlock, InvalidArgument, NotFound.
    Result<Kv> import_kv(ByteView data, const Queue &queue, std::uint64_t user_tag = 0) noexcept
    {
        return import_kv(data, queue.get(), user_tag);
    }
    /// The same without an event.
    Result<Kv> import_kv(ByteView data) noexcept { return import_kv(data, nullptr, 0); }

    /// Reads an image from a file that KvView::save wrote. [BLOCKING]
    /// Errors: NotFound (file), Corrupt, Incompatible, Permission, OutOfMemory, Io.
    Result<Kv> load_kv(const std::string &path) noexcept
    {
        cleave_error_t error;
        cleave_cache_t *cache = get();
        KvId id = 0;
        if (cleave_kv_load(cache, path.c_str(), &id, &error) != CLEAVE_OK)
            return Error(error);
        return Kv::adopt(cache, id);
    }

    /// Lets caches on other machines import: listens for TCP at `address` ("host:port", port 0 takes a free one).
    /// `advertise` is how peers reach it, empty: the address itself. `flags`: CLEAVE_LISTEN_*. The result is the port.
    /// [BLOCKING] Errors: InvalidArgument (address, or a cache without a secret), Permission, Io, NotFound.
    Result<std::uint16_t> listen(const std::string &address, const std::string &advertise = {},
                                 std::uint32_t flags = 0) noexcept
    {
        cleave_error_t error;
        std::uint16_t port = 0;
        const char *name = advertise.empty() ? nullptr : advertise.c_str();
        if (cleave_cache_listen(get(), address.c_str(), name, flags, &port, &error) != CLEAVE_OK)
            return Error(error);
        return port;
    }

    /// Where other caches find this one and what it holds: for `pair` of a peer. Changes with listen.
    Result<Bytes> address() const
    {
        Bytes out;
        const auto done = detail::fill(out, 512, [&](std::uint8_t *data, std::size_t cap, std::size_t *n, cleave_error_t *err) {
            return cleave_cache_address(get(), data, cap, n, err);
        });
        if (!done)
            return done.error();
        return out;
    }

    /// Checks whether this cache can import from the one at `address`, and warms the way. A pair that is refused is a
    /// report as well: look at its status. [BLOCKING] Errors, where there is no report: InvalidArgument, NotFound.
    Result<PairReport> pair(ByteView address, Transport required = Transport::Any) noexcept
    {
        cleave_error_t error;
        PairReport report{};
        report.struct_size = sizeof report;
        const cleave_status_t status =
            cleave_cache_pair(get(), address.data(), address.size(), cleave::to_c(required), &report, &error);
        if (status != CLEAVE_OK && report.status() == Status::Ok)
            return Error(error);
        return report;
    }

    /// Reads what entered and left the prefix index since `reader` read last, and waits at most `timeout` for the first event.
    /// After a timeout the reader has no events. [BLOCKING] up to the timeout. Errors: Expired (the reader fell behind: take
    /// a snapshot), Unsupported (events_kept is 0), InvalidArgument, NotFound, Shutdown (ended meanwhile).
    Result<void> events(CacheEvents &reader, std::chrono::milliseconds timeout = forever) const noexcept
    {
        return reader.read(get(), timeout);
    }
    /// Puts the blocks that are in the prefix index now into `reader`, as Stored events, each after its parent if that is in the
    /// index too. Reading continues from there. Errors: Unsupported (events_kept is 0), NotFound, InvalidArgument.
    Result<void> event_snapshot(CacheEvents &reader) const { return reader.snapshot(get()); }

    /// Counts the blocks by owner.
    Result<Audit> audit() const noexcept
    {
        return detail::read_info<Audit, cleave_audit_t>(
            [&](cleave_audit_t *out, cleave_error_t *err) { return cleave_cache_audit(get(), out, err); });
    }

private:
    explicit Cache(cleave_cache_t *cache) noexcept : Owner(cache) {}

    Result<Kv> import_kv(ByteView data, cleave_queue_t *queue, std::uint64_t user_tag) noexcept
    {
        cleave_error_t error;
        cleave_cache_t *cache = get();
        KvId id = 0;
        detail::before(detail::place_of(user_tag));
        if (cleave_kv_import(cache, queue, data.data(), data.size(), user_tag, &id, &error) != CLEAVE_OK)
            return Error(error);
        return Kv::adopt(cache, id);
    }
};

} // namespace cleave

#endif
