// KV handles: live sequences between engines.
// SPDX-License-Identifier: Apache-2.0
#ifndef CLEAVE_KV_HPP
#define CLEAVE_KV_HPP

#include "event.hpp"
#include "owner.hpp"
#include "span.hpp"

#include <string>
#include <vector>

namespace cleave {

class Kv;

struct KvInfo : cleave_kv_info_t {
    /// Time until the handle expires, unless it is renewed.
    std::chrono::milliseconds lease_left() const noexcept
    {
        return std::chrono::milliseconds(static_cast<std::int64_t>(lease_left_ms));
    }
    bool importing() const noexcept { return (flags & CLEAVE_KV_IMPORTING) != 0; }
    bool streaming() const noexcept { return (flags & CLEAVE_KV_STREAMING) != 0; }
};

/// A handle that somebody else owns: another part of the program, or the request that streams it (KvStreamStarted). After
/// the end of the handle or its cache, calls return NotFound or Expired.
class KvView {
public:
    KvView() noexcept = default;
    KvView(cleave_cache_t *cache, KvId id) noexcept : cache_(cache), id_(id) {}

    KvId id() const noexcept { return id_; }
    cleave_cache_t *cache() const noexcept { return cache_; }
    explicit operator bool() const noexcept { return id_ != 0; }

    /// Describes the handle. Every function of this class may return NotFound or Expired.
    Result<KvInfo> info() const noexcept
    {
        return detail::read_info<KvInfo, cleave_kv_info_t>(
            [&](cleave_kv_info_t *out, cleave_error_t *err) { return cleave_kv_info(cache_, id_, out, err); });
    }

    /// Replaces the content of `tokens` by the token ids of the sequence. A pending token (sampled, but not yet run through
    /// the model) is the last. For an import they are the tokens of its ticket.
    Result<void> tokens(std::vector<std::int32_t> &tokens) const
    {
        return detail::fill(tokens, 256, [&](std::int32_t *out, std::size_t cap, std::size_t *n, cleave_error_t *err) {
            return cleave_kv_tokens(cache_, id_, out, cap, n, err);
        });
    }
    Result<std::vector<std::int32_t>> tokens() const
    {
        std::vector<std::int32_t> out;
        const auto done = tokens(out);
        if (!done)
            return done.error();
        return out;
    }

    /// Attaches up to CLEAVE_KV_HOST_DATA_MAX bytes of the host's own to the sequence, in place of those before. Tickets and
    /// images carry them, signed but readable. Errors: also InvalidArgument (too long, or the image was read already).
    Result<void> set_host_data(Span<const std::uint8_t> data) const noexcept
    {
        cleave_error_t error;
        return detail::result_of(cleave_kv_set_host_data(cache_, id_, data.data(), data.size(), &error), error);
    }

    /// Returns the bytes that set_host_data attached, here or where the sequence came from; empty if there are none.
    Result<Bytes> host_data() const
    {
        Bytes out;
        const auto call = [&](std::uint8_t *data, std::size_t cap, std::size_t *n, cleave_error_t *err) {
            return cleave_kv_host_data(cache_, id_, data, cap, n, err);
        };
        const auto done = detail::fill(out, 64, call);
        if (!done)
            return done.error();
        return out;
    }

    /// Replaces the content of `out` by the ticket, with which Cache::import_kv of another cache fetches the blocks. The
    /// tokens can be read in it.
    Result<void> ticket(Bytes &out) const
    {
        return detail::fill(out, 1024, [&](std::uint8_t *data, std::size_t cap, std::size_t *n, cleave_error_t *err) {
            return cleave_kv_ticket(cache_, id_, data, cap, n, err);
        });
    }
    Result<Bytes> ticket() const
    {
        Bytes out;
        const auto done = ticket(out);
        if (!done)
            return done.error();
        return out;
    }

    /// Reads a piece of the image, which contains the KV itself: from `offset`, as much as `out` has room for. Returns the
    /// number of bytes, 0 at the end. [BLOCKING]
    Result<std::size_t> read_image(std::uint64_t offset, Span<std::uint8_t> out) const noexcept
    {
        cleave_error_t error;
        std::size_t n = 0;
        if (cleave_kv_read_image(cache_, id_, offset, out.data(), out.size(), &n, &error) != CLEAVE_OK)
            return Error(error);
        return n;
    }

    /// Reads the whole image. [BLOCKING]
    Result<Bytes> image() const
    {
        const auto about = info();
        if (!about)
            return about.error();
        Bytes out(static_cast<std::size_t>(about->image_bytes));
        for (std::size_t at = 0; at < out.size();) {
            const auto n = read_image(at, Span<std::uint8_t>(out.data() + at, out.size() - at));
            if (!n)
                return n.error();
            if (*n == 0)
                return Error(Status::Internal);
            at += *n;
        }
        return out;
    }

    /// Writes the image to a file, whole or not at all. [BLOCKING] Errors: also Io.
    Result<void> save(const std::string &path) const noexcept
    {
        cleave_error_t error;
        return detail::result_of(cleave_kv_save(cache_, id_, path.c_str(), &error), error);
    }

    /// Makes a second handle to the same snapshot, which shares its blocks.
    Result<Kv> duplicate() const noexcept;

    /// Sets the lease to `lease` from now on.
    Result<void> renew(std::chrono::milliseconds lease) const noexcept
    {
        cleave_error_t error;
        return detail::result_of(cleave_kv_renew(cache_, id_, detail::to_ms(lease), &error), error);
    }

private:
    cleave_cache_t *cache_ = nullptr;
    KvId id_ = 0;
};

/// Owns a handle and releases it at its end. An accepted request consumes it: see Request::kv. Converts to a KvView,
/// which does not own.
class Kv : public KvView {
public:
    Kv() noexcept = default;
    static Kv adopt(cleave_cache_t *cache, KvId id) noexcept { return Kv(cache, id); }

    Kv(Kv &&other) noexcept : KvView(other) { other.forget(); }
    Kv &operator=(Kv &&other) noexcept
    {
        if (this != &other) {
            reset();
            KvView::operator=(other);
            other.forget();
        }
        return *this;
    }
    ~Kv() { reset(); }

    KvId get() const noexcept { return id(); }

    /// Releases ownership: the caller submits or releases the handle.
    [[nodiscard]] KvId take() noexcept
    {
        const KvId id = this->id();
        forget();
        return id;
    }

    /// Releases the handle. Its blocks are free once no transfer uses them.
    void reset() noexcept
    {
        if (id() != 0)
            cleave_kv_release(cache(), id(), nullptr);
        forget();
    }

private:
    Kv(cleave_cache_t *cache, KvId id) noexcept : KvView(cache, id) {}
    void forget() noexcept { KvView::operator=(KvView()); }
};

inline Result<Kv> KvView::duplicate() const noexcept
{
    cleave_error_t error;
    KvId id = 0;
    if (cleave_kv_duplicate(cache_, id_, &id, &error) != CLEAVE_OK)
        return Error(error);
    return Kv::adopt(cache_, id);
}

} // namespace cleave

#endif
