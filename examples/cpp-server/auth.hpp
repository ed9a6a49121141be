// Authentication between a front and its workers. Requests between them are signed with a key that is derived from the
// cache's secret. See "Workers" in ../README.md.
#pragma once

#include "http.hpp"
#include "secret.hpp"

#include <sstream>

#include <openssl/crypto.h>
#include <openssl/hmac.h>
#include <openssl/rand.h>
#include <openssl/sha.h>

class Authenticator {
public:
    explicit Authenticator(const Secret &secret)
        : key_(hmac({secret.begin(), secret.end()}, "cleave requests between front and workers, version 1"))
    {
    }

    /// The header Authorization of a POST to `path` of `audience`: a worker's URL, or "front".
    std::string sign(const std::string &audience, const std::string &path, const std::string &body) const
    {
        unsigned char random[16];
        if (RAND_bytes(random, sizeof random) != 1)
            throw failed("there are no random numbers");
        const std::string time = std::to_string(now_ms()), nonce = hex({random, random + sizeof random}), sum = digest(body);
        return "Cleave " + time + " " + nonce + " " + sum + " " + mac(audience, path, time, nonce, sum);
    }

    /// Guards a path of `audience`: refuses requests that are not signed, are too old, or were received before.
    Guard guard(const std::string &audience)
    {
        return [=](const httplib::Request &request) {
            const std::string sum = check(request, audience);
            return [=](const std::string &body) {
                if (digest(body) != sum)
                    throw refused("the body is not the one that was signed");
            };
        };
    }

private:
    static constexpr std::int64_t window_ms = 30000; // largest age of a request, by clocks of two processes

    /// Returns the digest that the body must have. Throws ApiError.
    std::string check(const httplib::Request &request, const std::string &audience)
    {
        std::istringstream header(request.get_header_value("Authorization"));
        std::string scheme, time, nonce, sum, sent, more;
        header >> scheme >> time >> nonce >> sum >> sent;
        const std::string right = mac(audience, request.path, time, nonce, sum);
        if (scheme != "Cleave" || sent.size() != right.size() || header >> more ||
            CRYPTO_memcmp(sent.data(), right.data(), right.size()) != 0)
            throw refused("this path is for a front and its workers: the request is not signed with their secret");
        const std::int64_t now = now_ms(), at = std::stoll(time); // the signature is valid, so the time is well-formed
        if (std::abs(now - at) > window_ms)
            throw refused("the request was signed more than 30 s ago, or by a clock that differs by as much");
        const std::lock_guard<std::mutex> lock(mutex_);
        while (!by_time_.empty() && by_time_.begin()->first < now - window_ms) {
            seen_.erase(by_time_.begin()->second);
            by_time_.erase(by_time_.begin());
        }
        if (!seen_.insert(nonce).second)
            throw refused("the request was here before");
        by_time_.emplace(at, nonce);
        return sum;
    }

    std::string mac(const std::string &audience, const std::string &path, const std::string &time,
                    const std::string &nonce, const std::string &sum) const
    {
        return hex(hmac(key_, audience + "\n" + path + "\n" + time + "\n" + nonce + "\n" + sum));
    }
    static ApiError refused(const std::string &why) { return ApiError(401, "authentication_error", why); }
    static std::int64_t now_ms()
    {
        const auto now = std::chrono::system_clock::now().time_since_epoch();
        return std::chrono::duration_cast<std::chrono::milliseconds>(now).count();
    }
    static std::string hmac(const std::string &key, const std::string &message)
    {
        unsigned char out[SHA256_DIGEST_LENGTH];
        HMAC(EVP_sha256(), key.data(), static_cast<int>(key.size()),
             reinterpret_cast<const unsigned char *>(message.data()), message.size(), out, nullptr);
        return {out, out + sizeof out};
    }
    static std::string digest(const std::string &body)
    {
        unsigned char out[SHA256_DIGEST_LENGTH];
        SHA256(reinterpret_cast<const unsigned char *>(body.data()), body.size(), out);
        return hex({out, out + sizeof out});
    }
    static std::string hex(const std::string &bytes)
    {
        std::string out;
        for (const char byte : bytes) {
            out += "0123456789abcdef"[static_cast<unsigned char>(byte) >> 4];
            out += "0123456789abcdef"[static_cast<unsigned char>(byte) & 15];
        }
        return out;
    }

    const std::string key_;
    std::mutex mutex_; // guards the members below: the requests of the last 30 s
    std::set<std::string> seen_;
    std::multimap<std::int64_t, std::string> by_time_;
};
