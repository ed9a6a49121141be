#include "support.hpp"

#include <map>

using namespace cleave;

namespace {

class CacheEventTest : public WithModel {
protected:
    /// Blocks of an index by hash, as a reader knows them.
    using Index = std::map<std::uint64_t, std::vector<std::int32_t>>;

    Cache recording_cache(std::uint32_t events_kept)
    {
        CacheConfig config = cache_config();
        config.events_kept = events_kept;
        return must(Cache::create(model, config));
    }

    void run(Engine &e, Request request)
    {
        const std::uint64_t tag = request.user_tag;
        must(e.submit(request));
        answer_of(tag);
    }

    static void apply(Index &index, const CacheEvents &reader)
    {
        for (const CacheEvent &event : reader.events()) {
            switch (event.type()) {
            case CacheEventType::Stored: {
                const auto tokens = reader.tokens(event);
                EXPECT_EQ(event.medium(), Medium::Cpu);
                EXPECT_TRUE(index.emplace(event.block_hash, std::vector<std::int32_t>(tokens.begin(), tokens.end())).second);
                break;
            }
            case CacheEventType::Removed:
                EXPECT_EQ(index.erase(event.block_hash), 1u);
                break;
            default:
                index.clear();
            }
        }
    }
};

TEST_F(CacheEventTest, EventsAndSnapshotsTellTheSame)
{
    const Cache recording = recording_cache(100);
    Engine e = engine_of(recording, Role::Mixed);
    CacheEvents reader(1, 2, 40);
    EXPECT_TRUE(succeeded(recording.events(reader, std::chrono::milliseconds(0))));
    EXPECT_EQ(reader.events().size(), 0u);
    const Request request = ask(1, 1);
    const std::vector<std::int32_t> prompt(request.prompt.begin(), request.prompt.end());
    run(e, ask(1, 1));
    Request salted = ask(2, 1);
    salted.cache_salt = 9;
    run(e, std::move(salted));
    Index index;
    for (std::uint64_t next = 1; next < 5; next = reader.next()) {
        ASSERT_TRUE(succeeded(recording.events(reader)));
        ASSERT_GT(reader.events().size(), 0u);
        EXPECT_EQ(reader.events()[0].sequence, next);
        EXPECT_EQ(reader.events()[0].cache_salt, next <= 2 ? 0u : 9u);
        apply(index, reader);
    }
    ASSERT_EQ(index.size(), 4u);
    for (const auto &block : index)
        EXPECT_TRUE(std::equal(block.second.begin(), block.second.end(), prompt.begin()) ||
                    std::equal(block.second.begin(), block.second.end(), prompt.begin() + 16));
    CacheEvents late(0, 1, 1);
    EXPECT_EQ(recording.events(late).status(), Status::Expired);
    ASSERT_TRUE(succeeded(recording.event_snapshot(late)));
    EXPECT_EQ(late.next(), reader.next());
    Index found;
    apply(found, late);
    EXPECT_EQ(found, index);
}

TEST_F(CacheEventTest, RefusalsAreErrors)
{
    CacheEvents reader;
    EXPECT_EQ(cache.events(reader).status(), Status::Unsupported);
    EXPECT_EQ(cache.event_snapshot(reader).status(), Status::Unsupported);
    EXPECT_EQ(Cache().events(reader).status(), Status::InvalidArgument);
    EXPECT_EQ(Cache().event_snapshot(reader).status(), Status::InvalidArgument);
    EXPECT_EQ(Engine().load().status(), Status::InvalidArgument);
}

TEST_F(CacheEventTest, TheLoadProvesARoleSwitch)
{
    Engine e = engine();
    run(e, ask(1, 3));
    Load load = must(e.load());
    while (load.running != 0 || load.decode_tokens_per_second == 0) // the last step may not have ended yet
        load = must(e.load());
    EXPECT_EQ(load.role(), Role::Mixed);
    EXPECT_EQ(load.role_requested(), Role::Mixed);
    EXPECT_EQ(load.blocks_cached, 2u);
    EXPECT_FALSE(load.draining() || load.failed());
    ASSERT_TRUE(succeeded(e.set_role(Role::Decode)));
    const auto before = load.role_since();
    while ((load = must(e.load())).role() != Role::Decode)
        EXPECT_EQ(load.role_requested(), Role::Decode);
    EXPECT_EQ(load.role_since_step, load.steps);
    EXPECT_GT(load.role_since(), before);
    ASSERT_TRUE(succeeded(e.drain()));
    EXPECT_TRUE(must(e.load()).draining());
}

} // namespace
