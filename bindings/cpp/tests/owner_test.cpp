// Ownership: moves, adoption, objects that are destroyed twice or in another order.
#include "support.hpp"

#include <thread>
#include <utility>
#include <vector>

using namespace cleave;

namespace {

template <class T> T &same(T &object) { return object; } // hides a self-move from the compiler

template <class T> void check_moves(T object)
{
    ASSERT_TRUE(object);
    auto *const c = object.get();
    T moved = std::move(object);
    EXPECT_EQ(moved.get(), c);
    EXPECT_FALSE(object); // NOLINT: the state after a move is part of the contract
    T assigned;
    EXPECT_EQ(assigned.get(), nullptr);
    assigned = std::move(moved);
    EXPECT_EQ(assigned.get(), c);
    assigned = std::move(same(assigned));
    EXPECT_EQ(assigned.get(), c);
    T adopted = T::adopt(assigned.take());
    EXPECT_EQ(adopted.get(), c);
    EXPECT_FALSE(assigned);
    adopted.reset();
    EXPECT_FALSE(adopted);
    adopted.reset();
    T again = T::adopt(c); // the object is destroyed already: destroying it again does nothing
    static_assert(!std::is_copy_constructible_v<T> && !std::is_copy_assignable_v<T>, "one owner");
    static_assert(std::is_nothrow_move_constructible_v<T> && std::is_nothrow_move_assignable_v<T>, "for containers");
}

class Owners : public WithModel {};

TEST_F(Owners, Move)
{
    check_moves(must(Model::load(model_path())));
    check_moves(must(Cache::create(model, cache_config())));
    check_moves(must(Queue::create()));
    check_moves(must(Engine::create(cache, queue)));
    check_moves(must(Detokenizer::create(model)));
}

TEST_F(Owners, AssignmentEndsWhatWasThere)
{
    Queue first = must(Queue::create());
    const Queue stale = Queue::adopt(first.get());
    first = must(Queue::create());
    EXPECT_EQ(stale.fd().status(), Status::NotFound);
    EXPECT_TRUE(first.fd());
}

TEST_F(Owners, MayEndInAnyOrder)
{
    Engine e = engine();
    Detokenizer d = must(Detokenizer::create(model));
    Request request = ask(1, 4);
    must(e.submit(request));
    model.reset();
    std::string text;
    EXPECT_TRUE(d.push(9, text));
    EXPECT_EQ(answer_of(1).tokens.size(), 4u);
    EXPECT_EQ(model.info().status(), Status::InvalidArgument);
    cache.reset();
    request = ask(2, 4);
    const auto refused = e.submit(request);
    EXPECT_TRUE(refused || refused.status() == Status::Shutdown) << refused.error().message();
    queue.reset();
    e.reset();
}

TEST_F(Owners, EmptyOnesAreRefused)
{
    Engine none;
    Request request = ask(1, 1);
    EXPECT_EQ(none.submit(request).status(), Status::InvalidArgument);
    EXPECT_EQ(none.cancel(1).status(), Status::InvalidArgument);
    EXPECT_EQ(none.export_kv(1).status(), Status::InvalidArgument);
    EXPECT_EQ(none.set_role(Role::Mixed).status(), Status::InvalidArgument);
    EXPECT_EQ(none.drain().status(), Status::InvalidArgument);
    EXPECT_EQ(none.metrics().status(), Status::InvalidArgument);
    EXPECT_EQ(Cache::create(Model()).status(), Status::InvalidArgument);
    EXPECT_EQ(Engine::create(Cache(), queue).status(), Status::InvalidArgument);
    EXPECT_EQ(Engine::create(cache, Queue()).status(), Status::InvalidArgument);
    EXPECT_EQ(Detokenizer::create(Model()).status(), Status::InvalidArgument);
    EXPECT_EQ(Cache().audit().status(), Status::InvalidArgument);
    EXPECT_EQ(Cache().address().status(), Status::InvalidArgument);
    EXPECT_FALSE(Queue().fd());
    Event event;
    EXPECT_EQ(Queue().poll(Span<Event>(&event, 1)).status(), Status::InvalidArgument);
    EXPECT_EQ(KvView().info().status(), Status::InvalidArgument);
}

TEST_F(Owners, ConfigsReachTheLibrary)
{
    CacheConfig config = cache_config();
    config.block_tokens = 257;
    EXPECT_EQ(Cache::create(model, config).status(), Status::InvalidArgument);
    config.block_tokens = 8;
    config.dtype = static_cast<Dtype>(77);
    EXPECT_FALSE(Cache::create(model, config));
    config.dtype = Dtype::F32;
    config.flags = 1u << 31;
    EXPECT_EQ(Cache::create(model, config).status(), Status::Unsupported);
    config.flags = 0;
    config.prefix_cache = false;
    config.convert_imports = false;
    config.share_weights = true;
    config.lease = std::chrono::seconds(1);
    config.peer_timeout = std::chrono::seconds(2);
    const cleave_cache_config_t c = config.to_c();
    EXPECT_EQ(c.flags, CLEAVE_CACHE_NO_PREFIX | CLEAVE_CACHE_NO_CONVERT | CLEAVE_CACHE_SHARE_WEIGHTS);
    EXPECT_EQ(c.lease_ms, 1000u);
    EXPECT_EQ(c.peer_timeout_ms, 2000u);
    EXPECT_EQ(c.secret[31], 0x5e);
    EXPECT_TRUE(Cache::create(model, config));
    const std::int32_t devices[] = {99};
    const auto elsewhere = Cache::create(model, config, devices);
    ASSERT_FALSE(elsewhere);
    EXPECT_NE(std::string(elsewhere.error().message()).find("99"), std::string::npos) << elsewhere.error().message();

    EngineConfig engine_config;
    engine_config.flags = 1;
    EXPECT_EQ(Engine::create(cache, queue, engine_config).status(), Status::Unsupported);
    engine_config = {};
    engine_config.sm_percent = 50;
    EXPECT_EQ(Engine::create(cache, queue, engine_config).status(), Status::Unsupported);
    engine_config = {};
    engine_config.role = static_cast<Role>(7);
    EXPECT_EQ(Engine::create(cache, queue, engine_config).status(), Status::InvalidArgument);
    engine_config.role = Role::Decode;
    engine_config.local_prefill_tokens = 8;
    engine_config.max_waiting = 3;
    engine_config.cpu_mask[0] = 1;
    EXPECT_EQ(engine_config.to_c().cpu_mask[0], 1u);
    EXPECT_EQ(engine_config.to_c().max_waiting, 3u);
    Engine decoder = must(Engine::create(cache, queue, engine_config));
    EXPECT_EQ(decoder.set_sm_percent(101).status(), Status::InvalidArgument);
    EXPECT_EQ(decoder.set_sm_percent(50).status(), Status::Unsupported);
    EXPECT_EQ(decoder.set_sm_percent(0).status(), Status::Ok);
    EXPECT_EQ(must(decoder.metrics()).multiprocessors, 0u);
    Request long_one = ask(1, 2);
    EXPECT_EQ(decoder.submit(long_one).status(), Status::PrefillElsewhere);
    ASSERT_TRUE(succeeded(decoder.set_role(Role::Mixed)));
    EXPECT_TRUE(decoder.submit(long_one));
    answer_of(1);
}

TEST_F(Owners, CreationOfACacheTellsOfTheWeights)
{
    const auto total = must(model.info()).weight_bytes;
    std::vector<std::pair<std::uint64_t, std::uint64_t>> told;
    const auto note = [&](std::uint64_t done, std::uint64_t of) {
        told.emplace_back(done, of);
        EXPECT_EQ(Cache::create(model).status(), Status::InvalidArgument) << "within the function";
        return told.size() > 1;
    };
    EXPECT_EQ(Cache::create(model, cache_config(), {}, note).status(), Status::Cancelled);
    const Cache made = must(Cache::create(model, cache_config(), {}, note));
    // On the CPU the weights are mapped, so all bytes are available at once.
    const std::vector<std::pair<std::uint64_t, std::uint64_t>> expected(2, {total, total});
    EXPECT_EQ(told, expected);
}

// One thread calls reset() while others call functions. Each call returns a plausible status, and every waiting thread
// wakes.
TEST_F(Owners, EndWhileOthersCall)
{
    Engine e = engine();
    std::vector<std::thread> threads;
    for (int i = 0; i < 3; i++)
        threads.emplace_back([this] {
            Event events[4];
            for (;;) {
                const auto got = queue.poll(events);
                if (!got) {
                    EXPECT_TRUE(got.status() == Status::Shutdown || got.status() == Status::NotFound ||
                                got.status() == Status::InvalidArgument) << to_string(got.status());
                    return;
                }
            }
        });
    std::thread submitter([&e] {
        Packer packer;
        for (std::uint64_t tag = 1;; tag++) {
            Request request = ask(tag, 2);
            const auto id = e.submit(request, packer);
            if (id && tag % 3 == 0)
                static_cast<void>(e.cancel(*id));
            if (!id && id.status() != Status::WouldBlock) {
                EXPECT_TRUE(id.status() == Status::Shutdown || id.status() == Status::NotFound ||
                            id.status() == Status::InvalidArgument) << id.error().message();
                return;
            }
        }
    });
    std::this_thread::sleep_for(std::chrono::milliseconds(50));
    std::thread two([&e] { e.reset(); });
    e.reset();
    two.join();
    submitter.join();
    queue.reset();
    for (auto &thread : threads)
        thread.join();
}

} // namespace
