// Shared by the tests: a model to run, unwrapping of values that must exist, and the usual calls of an engine.
#ifndef CLEAVE_TESTS_SUPPORT_HPP
#define CLEAVE_TESTS_SUPPORT_HPP

#include <cleave/cleave.hpp>
#include <gtest/gtest.h>

#include <cstdlib>
#include <fstream>
#include <string>
#include <utility>
#include <vector>

/// Returns a value that must exist. Aborts otherwise, because the rest of the test would make no sense.
template <class T> T must(cleave::Result<T> result, int line = __builtin_LINE())
{
    if (!result) {
        ADD_FAILURE() << "line " << line << ": " << result.error().message() << " (" << to_string(result.status()) << ")";
        std::abort();
    }
    return std::move(result).value();
}

inline ::testing::AssertionResult succeeded(const cleave::Result<void> &result)
{
    if (result)
        return ::testing::AssertionSuccess();
    return ::testing::AssertionFailure() << result.error().message() << " (" << to_string(result.status()) << ")";
}

/// Outcome of a request.
struct Answer {
    std::vector<std::int32_t> tokens;
    cleave::Event finished;
};

/// Provides a model, a cache and a queue. Skips the test if there is no model.
class WithModel : public ::testing::Test {
protected:
    static std::string model_path()
    {
        const char *path = std::getenv("CLEAVE_TEST_MODEL");
        return path != nullptr ? path : "models/tiny";
    }

    static cleave::CacheConfig cache_config(std::uint8_t secret = 0x5e)
    {
        cleave::CacheConfig config;
        config.bytes_per_device = 16u << 20;
        config.secret.fill(secret);
        return config;
    }

    void SetUp() override
    {
        if (!std::ifstream(model_path() + "/config.json"))
            GTEST_SKIP() << "no model at CLEAVE_TEST_MODEL or models/tiny";
        model = must(cleave::Model::load(model_path()));
        cache = must(cleave::Cache::create(model, cache_config()));
        queue = must(cleave::Queue::create());
    }

    void TearDown() override
    {
        if (!cache)
            return;
        const auto audit = must(cache.audit());
        EXPECT_EQ(audit.leaked, 0u);
        EXPECT_EQ(audit.by_requests + audit.by_transfers + audit.by_exports + audit.by_prefix_index + audit.free, audit.total);
    }

    cleave::Engine engine(cleave::Role role = cleave::Role::Mixed) { return engine_of(cache, role); }

    cleave::Engine engine_of(const cleave::Cache &of, cleave::Role role)
    {
        cleave::EngineConfig config;
        config.role = role;
        config.threads = 1;
        config.max_sequences = 8;
        config.max_batch_tokens = 64;
        return must(cleave::Engine::create(of, queue, config));
    }

    /// Returns a greedy request for a number of tokens. Equal seeds give equal requests.
    static cleave::Request ask(std::uint64_t user_tag, std::uint32_t max_new_tokens, int seed = 1, int prompt_len = 40)
    {
        cleave::Request request;
        for (int i = 0; i < prompt_len; i++)
            request.prompt.push_back((i * 7 + seed * 31 + 3) % 64);
        request.user_tag = user_tag;
        request.max_new_tokens = max_new_tokens;
        request.ignore_eos = true;
        return request;
    }

    cleave::Event next_event()
    {
        cleave::Event event;
        const auto got = must(queue.poll(cleave::Span<cleave::Event>(&event, 1), std::chrono::minutes(1)));
        if (got.size() != 1) {
            ADD_FAILURE() << "no event within a minute";
            std::abort();
        }
        return event;
    }

    /// Collects the tokens of one request until it has finished, and drops events of others.
    Answer answer_of(std::uint64_t user_tag)
    {
        Answer answer;
        for (;;) {
            const cleave::Event event = next_event();
            if (event.user_tag() != user_tag)
                continue;
            if (event.type() == cleave::EventType::Token)
                answer.tokens.push_back(event.token());
            if (event.type() == cleave::EventType::Finished) {
                answer.finished = event;
                return answer;
            }
        }
    }

    /// Prefills `request` and returns the handle.
    cleave::Kv prefill(cleave::Engine &engine, cleave::Request request, Answer *answer = nullptr)
    {
        must(engine.submit(request));
        Answer got = answer_of(request.user_tag);
        EXPECT_EQ(got.finished.finish_reason(), cleave::FinishReason::Prefilled);
        cleave::Kv kv = cache.take_kv(got.finished);
        EXPECT_TRUE(kv);
        if (answer != nullptr)
            *answer = got;
        return kv;
    }

    cleave::Model model;
    cleave::Cache cache;
    cleave::Queue queue;
};

#endif
