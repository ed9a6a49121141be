// KV handles: their owner before and after a submission, and the ways to move them to another cache.
#include "support.hpp"

#include <cstdio>
#include <unistd.h>

using namespace cleave;

namespace {

class KvHandles : public WithModel {
protected:
    void SetUp() override
    {
        WithModel::SetUp();
        if (IsSkipped())
            return;
        mixed = engine();
        prefiller = engine(Role::Prefill);
        Request whole = ask(900, 8);
        must(mixed.submit(whole));
        reference = answer_of(900).tokens;
    }

    std::uint32_t open_handles() { return must(mixed.metrics()).exports_open; }

    /// Continues `kv` in `engine` with the first token repeated, and expects a mixed engine's tokens.
    void expect_continues(Engine &engine, Kv kv, std::uint64_t tag)
    {
        Request request;
        request.kv = std::move(kv);
        request.user_tag = tag;
        request.emit_pending = true;
        must(engine.submit(request));
        EXPECT_FALSE(request.kv);
        const Answer answer = answer_of(tag);
        EXPECT_EQ(answer.finished.status(), Status::Ok) << to_string(answer.finished.status());
        EXPECT_EQ(answer.tokens, reference);
    }

    Engine mixed, prefiller;
    std::vector<std::int32_t> reference;
};

TEST_F(KvHandles, HaveOneOwner)
{
    const std::uint32_t before = open_handles();
    Kv kv = prefill(prefiller, ask(1, 8));
    EXPECT_EQ(open_handles(), before + 1);
    const KvId id = kv.get();
    Kv moved = std::move(kv);
    EXPECT_FALSE(kv); // NOLINT
    EXPECT_EQ(moved.get(), id);
    Kv &same = moved;
    moved = std::move(same);
    EXPECT_EQ(moved.get(), id);
    EXPECT_EQ(open_handles(), before + 1);

    moved = prefill(prefiller, ask(2, 8)); // the assignment releases the first handle
    EXPECT_NE(moved.get(), id);
    EXPECT_EQ(open_handles(), before + 1);

    const KvId taken = moved.take();
    EXPECT_FALSE(moved);
    moved.reset();
    EXPECT_EQ(open_handles(), before + 1);
    {
        const Kv adopted = Kv::adopt(cache.get(), taken);
        EXPECT_EQ(adopted.cache(), cache.get());
    }
    EXPECT_EQ(open_handles(), before);
    const Kv twice = Kv::adopt(cache.get(), taken); // releases the handle again at the end of the scope, with no effect
    EXPECT_FALSE(twice.info());
}

TEST_F(KvHandles, AreTakenFromAnEventOnce)
{
    Request request = ask(1, 8);
    must(prefiller.submit(request));
    Event finished = answer_of(1).finished;
    const KvId id = finished.kv();
    ASSERT_NE(id, 0u);
    const Kv kv = cache.take_kv(finished);
    EXPECT_EQ(kv.get(), id);
    EXPECT_EQ(finished.kv(), 0u);
    EXPECT_FALSE(cache.take_kv(finished));

    cleave_event_t c{};
    c.type = CLEAVE_EVENT_KV_STREAM_STARTED;
    c.kv = id;
    Event started(c);
    EXPECT_FALSE(cache.take_kv(started)); // the handle still belongs to the request
    EXPECT_EQ(started.kv(), id);
    EXPECT_TRUE(kv.info());
}

TEST_F(KvHandles, StayWithARefusedRequest)
{
    Request request;
    request.kv = prefill(prefiller, ask(1, 8));
    const KvId id = request.kv.get();
    request.user_tag = 2;
    request.emit_pending = true;
    request.override_sampling = true;
    request.ignore_eos = true;
    request.max_new_tokens = 8;
    request.top_p = 2;
    EXPECT_EQ(mixed.submit(request).status(), Status::InvalidArgument);
    EXPECT_EQ(request.kv.get(), id);
    EXPECT_TRUE(request.kv.info());
    request.top_p = 0;
    must(mixed.submit(request));
    EXPECT_FALSE(request.kv);
    EXPECT_EQ(answer_of(2).tokens, reference);
    EXPECT_FALSE(cache.view(id).info()); // consumed
}

TEST_F(KvHandles, OfABatchThatIsAcceptedInPart)
{
    std::vector<Request> batch(3);
    batch[0].kv = prefill(prefiller, ask(1, 8));
    batch[1].kv = prefill(prefiller, ask(2, 8));
    batch[2].kv = prefill(prefiller, ask(3, 8));
    for (std::size_t i = 0; i < batch.size(); i++) {
        batch[i].user_tag = 10 + i;
        batch[i].emit_pending = true;
    }
    batch[1].prompt = {-5};
    Packer packer;
    const Submitted done = mixed.submit(batch, packer);
    EXPECT_FALSE(done);
    EXPECT_EQ(done.status(), Status::InvalidArgument);
    EXPECT_NE(std::string(done.error.message()).find('1'), std::string::npos) << done.error.message();
    ASSERT_EQ(done.accepted(), 1u);
    EXPECT_NE(done.ids[0], 0u);
    EXPECT_FALSE(batch[0].kv);
    EXPECT_TRUE(batch[1].kv.info());
    EXPECT_TRUE(batch[2].kv.info());
    EXPECT_EQ(answer_of(10).tokens, reference);
    EXPECT_EQ(open_handles(), 2u);
    batch.clear();
    EXPECT_EQ(open_handles(), 0u);
}

TEST_F(KvHandles, TellAboutThemselves)
{
    const Kv kv = prefill(prefiller, ask(1, 8));
    const KvInfo info = must(kv.info());
    EXPECT_EQ(info.n_tokens, 41u);
    EXPECT_FALSE(info.importing());
    EXPECT_FALSE(info.streaming());
    EXPECT_GT(info.lease_left(), std::chrono::seconds(1));
    ASSERT_TRUE(succeeded(kv.renew(std::chrono::minutes(10))));
    EXPECT_GT(must(kv.info()).lease_left(), std::chrono::minutes(9));
    EXPECT_EQ(kv.renew(std::chrono::milliseconds(0)).status(), Status::InvalidArgument);
    ASSERT_TRUE(succeeded(kv.renew(std::chrono::milliseconds(1))));
    const auto until = std::chrono::steady_clock::now() + std::chrono::seconds(20);
    while (kv.info() && std::chrono::steady_clock::now() < until) {
    }
    EXPECT_EQ(kv.info().status(), Status::Expired);
    const Kv second = prefill(prefiller, ask(2, 8));
    const KvView view = second;
    cache.reset();
    EXPECT_EQ(second.info().status(), Status::NotFound);
    EXPECT_EQ(view.duplicate().status(), Status::NotFound);
}

TEST_F(KvHandles, CarryTokensAndHostData)
{
    const Kv kv = prefill(prefiller, ask(1, 8));
    const auto tokens = must(kv.tokens());
    EXPECT_EQ(tokens.size(), 41u);
    EXPECT_TRUE(must(kv.host_data()).empty());
    const Bytes most(CLEAVE_KV_HOST_DATA_MAX, 0xc3);
    ASSERT_TRUE(succeeded(kv.set_host_data(most)));
    EXPECT_EQ(must(kv.host_data()), most);
    EXPECT_EQ(kv.set_host_data(Bytes(most.size() + 1)).status(), Status::InvalidArgument);
    const Kv copy = must(kv.duplicate());
    EXPECT_EQ(must(copy.tokens()), tokens);
    EXPECT_EQ(must(copy.host_data()), most);
}

TEST_F(KvHandles, AreDuplicatedAndContinuedTwice)
{
    Kv kv = prefill(prefiller, ask(1, 8));
    Kv copy = must(kv.duplicate());
    EXPECT_NE(copy.get(), kv.get());
    expect_continues(mixed, std::move(kv), 2);
    expect_continues(mixed, std::move(copy), 3);
}

TEST_F(KvHandles, GoToAnotherCacheByTicket)
{
    Cache other = must(Cache::create(model, cache_config()));
    Engine decoder = engine_of(other, Role::Decode);
    const Kv kv = prefill(prefiller, ask(1, 8));
    Bytes ticket = must(kv.ticket());
    EXPECT_EQ(ticket.size(), must(kv.info()).ticket_bytes);
    Kv imported = must(other.import_kv(ticket, queue, 77));
    Event ready = next_event();
    EXPECT_EQ(ready.type(), EventType::KvReady);
    EXPECT_EQ(ready.user_tag(), 77u);
    EXPECT_EQ(ready.status(), Status::Ok);
    EXPECT_EQ(ready.kv(), imported.get());
    expect_continues(decoder, std::move(imported), 2);
    EXPECT_FALSE(kv.info()); // the import has consumed the handle

    Cache stranger = must(Cache::create(model, cache_config(0x77)));
    const auto refused = stranger.import_kv(ticket);
    EXPECT_EQ(refused.status(), Status::Permission);
    EXPECT_STRNE(refused.error().message(), to_string(Status::Permission));
    ticket.resize(ticket.size() / 2);
    EXPECT_EQ(other.import_kv(ticket).status(), Status::Corrupt);
}

TEST_F(KvHandles, AreComputedAnewWhereTheyDoNotCome)
{
    Cache other = must(Cache::create(model, cache_config()));
    Engine decoder = engine_of(other, Role::Decode);
    Request ask_once = ask(1, 8, 5);
    must(mixed.submit(ask_once));
    const std::vector<std::int32_t> wanted = answer_of(1).tokens;
    Kv kv = prefill(prefiller, ask(2, 8, 5));
    const Bytes ticket = must(kv.ticket());
    kv.reset();
    Request request;
    request.kv = must(other.import_kv(ticket));
    request.user_tag = 3;
    request.emit_pending = true;
    request.recompute = true;
    must(decoder.submit(request));
    const Answer answer = answer_of(3);
    EXPECT_EQ(answer.tokens, wanted);
    EXPECT_TRUE(answer.finished.recomputed());
}

TEST_F(KvHandles, StreamWhileTheyAreFilled)
{
    Cache other = must(Cache::create(model, cache_config()));
    Engine decoder = engine_of(other, Role::Decode);
    Request request = ask(1, 8);
    request.stream_kv = true;
    request.cache_salt = 5; // nothing is in the prefix cache
    must(prefiller.submit(request));
    Kv imported;
    Event event;
    do {
        event = next_event();
        if (event.type() == EventType::KvStreamStarted)
            imported = must(other.import_kv(must(cache.view(event.kv()).ticket())));
    } while (event.type() != EventType::Finished);
    ASSERT_TRUE(imported);
    const Kv filled = cache.take_kv(event);
    EXPECT_TRUE(filled);
    expect_continues(decoder, std::move(imported), 2);
}

TEST_F(KvHandles, GoToAnotherCacheAsAnImage)
{
    Cache other = must(Cache::create(model, cache_config()));
    Engine decoder = engine_of(other, Role::Decode);
    const Kv kv = prefill(prefiller, ask(1, 8));
    Bytes image = must(kv.image());
    EXPECT_EQ(image.size(), must(kv.info()).image_bytes);
    std::uint8_t piece[100];
    EXPECT_EQ(must(kv.read_image(50, piece)), 100u);
    EXPECT_TRUE(std::equal(piece, piece + 100, image.begin() + 50));
    EXPECT_EQ(must(kv.read_image(image.size(), piece)), 0u);
    expect_continues(decoder, must(other.import_kv(image, queue, 5)), 2);
    image[image.size() / 2] ^= 1;
    EXPECT_EQ(other.import_kv(image).status(), Status::Corrupt);
    EXPECT_TRUE(kv.info()); // still valid
}

TEST_F(KvHandles, AreParkedInAFile)
{
    const std::string path = ::testing::TempDir() + "cleave-cpp-" + std::to_string(getpid()) + ".kv";
    {
        const Kv kv = prefill(prefiller, ask(1, 8));
        ASSERT_TRUE(succeeded(kv.save(path)));
        EXPECT_EQ(kv.save("/no/such/directory/x.kv").status(), Status::NotFound);
    }
    Cache other = must(Cache::create(model, cache_config()));
    Engine decoder = engine_of(other, Role::Decode);
    expect_continues(decoder, must(other.load_kv(path)), 2);
    EXPECT_EQ(other.load_kv(path + ".none").status(), Status::NotFound);
    std::remove(path.c_str());
}

} // namespace
