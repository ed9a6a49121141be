// Requests and their events, on one thread and on many.
#include "support.hpp"

#include <atomic>
#include <map>
#include <memory>
#include <mutex>
#include <poll.h>
#include <string>
#include <thread>

using namespace cleave;

namespace {

class Streams : public WithModel {
protected:
    /// A queue that stalls a long request until the test polls.
    void make_queue_small() { queue = must(Queue::create(8)); }
};

TEST_F(Streams, OneRequest)
{
    Engine e = engine();
    Request request = ask(7, 6);
    request.token_logprobs = true;
    request.top_logprobs = 2;
    const auto before = std::chrono::steady_clock::now();
    const RequestId id = must(e.submit(request));
    std::uint32_t tokens = 0, tops = 0;
    for (bool open = true; open;) {
        const Event event = next_event();
        EXPECT_EQ(event.request(), id);
        EXPECT_EQ(event.user_tag(), 7u);
        EXPECT_GE(event.timestamp(), before);
        EXPECT_LE(event.timestamp(), std::chrono::steady_clock::now());
        switch (event.type()) {
        case EventType::Token:
            EXPECT_EQ(event.index(), tokens++);
            EXPECT_LT(event.logprob(), 0.0f);
            break;
        case EventType::TopLogprob:
            EXPECT_EQ(event.index(), tokens - 1);
            tops++;
            break;
        case EventType::Finished:
            EXPECT_EQ(event.finish_reason(), FinishReason::Length);
            EXPECT_EQ(event.index(), 6u);
            EXPECT_EQ(event.cached_tokens(), 0u);
            EXPECT_EQ(event.kv(), 0u);
            open = false;
            break;
        default:
            FAIL() << to_string(event.type());
        }
    }
    EXPECT_EQ(tokens, 6u);
    EXPECT_EQ(tops, 12u);
    request = ask(8, 6);
    must(e.submit(request));
    EXPECT_GT(answer_of(8).finished.cached_tokens(), 0u);
}

TEST_F(Streams, AQueueIsADescriptor)
{
    pollfd wait{must(queue.fd()), POLLIN, 0};
    EXPECT_EQ(::poll(&wait, 1, 0), 0);
    Event events[4];
    EXPECT_TRUE(must(queue.poll(events, std::chrono::milliseconds(0))).empty());
    Engine e = engine();
    Request request = ask(1, 1);
    must(e.submit(request));
    EXPECT_EQ(::poll(&wait, 1, 60000), 1);
    EXPECT_FALSE(must(queue.poll(events, std::chrono::milliseconds(0))).empty());
    Queue small = must(Queue::create(4));
    EXPECT_TRUE(small.fd());
    EXPECT_EQ(Queue::create(1).status(), Status::InvalidArgument);
}

// Object behind a user_tag. It is written before the request is submitted, and read by any thread that gets its events,
// without another lock between the two. Servers do this, and ThreadSanitizer must be able to follow it.
struct Sequence {
    explicit Sequence(Request what) : request(std::move(what)) {}
    Request request;
    std::atomic<std::uint32_t> left{0};
    std::vector<std::int32_t> tokens; // by index: one thread writes each element
};

TEST_F(Streams, ManyThreadsSubmitAndPoll)
{
    constexpr int submitters = 3, pollers = 3, each = 12;
    constexpr std::uint32_t length = 10;
    Engine e = engine();
    std::map<int, std::vector<std::int32_t>> wanted;
    for (int seed = 0; seed < each; seed++) {
        Request request = ask(1, length, seed);
        must(e.submit(request));
        wanted[seed] = answer_of(1).tokens;
    }

    std::atomic<int> open{submitters * each};
    std::atomic<int> wrong{0};
    std::vector<std::thread> threads;
    for (int p = 0; p < pollers; p++)
        threads.emplace_back([&] {
            Event events[8];
            while (open > 0) {
                const auto got = must(queue.poll(events, std::chrono::milliseconds(20)));
                for (const Event &event : got) {
                    auto *sequence = reinterpret_cast<Sequence *>(event.user_tag());
                    if (event.type() == EventType::Token)
                        sequence->tokens[event.index()] = event.token();
                    // Other threads may still be storing this sequence's last tokens, so the last thread of all
                    // compares them.
                    if (event.type() == EventType::Token || event.type() == EventType::Finished)
                        if (sequence->left.fetch_sub(1) == 1) {
                            const int seed = static_cast<int>(sequence->request.seed) - 1;
                            wrong += sequence->tokens != wanted[seed];
                            delete sequence;
                            open--;
                        }
                }
            }
        });
    for (int s = 0; s < submitters; s++)
        threads.emplace_back([&] {
            Packer packer;
            for (int i = 0; i < each; i++) {
                auto sequence = std::make_unique<Sequence>(ask(0, length, i));
                sequence->request.user_tag = reinterpret_cast<std::uintptr_t>(sequence.get());
                sequence->request.seed = static_cast<std::uint64_t>(i) + 1; // only identifies the sequence
                sequence->tokens.resize(length);
                sequence->left = length + 1;
                Request request = std::move(sequence->request);
                sequence->request.seed = request.seed;
                Sequence *given = sequence.release();
                const auto id = e.submit(request, packer);
                if (!id) {
                    ADD_FAILURE() << id.error().message();
                    delete given;
                    open--;
                }
            }
        });
    for (auto &thread : threads)
        thread.join();
    EXPECT_EQ(wrong, 0);
}

TEST_F(Streams, ABatch)
{
    Engine e = engine();
    std::vector<Request> batch;
    for (std::uint64_t tag = 0; tag < 3; tag++)
        batch.push_back(ask(tag, 3, static_cast<int>(tag)));
    Packer packer;
    const Submitted done = e.submit(batch, packer);
    ASSERT_TRUE(done) << done.error.message();
    EXPECT_EQ(done.accepted(), 3u);
    EXPECT_EQ(done.status(), Status::Ok);
    std::map<std::uint64_t, RequestId> finished;
    while (finished.size() < 3) {
        const Event event = next_event();
        if (event.type() == EventType::Finished)
            finished[event.user_tag()] = event.request();
    }
    for (std::size_t i = 0; i < 3; i++)
        EXPECT_EQ(finished[i], done.ids[i]);
}

TEST_F(Streams, AreCancelled)
{
    make_queue_small();
    Engine e = engine();
    Request request = ask(1, 400);
    const RequestId id = must(e.submit(request));
    EXPECT_EQ(next_event().type(), EventType::Token);
    ASSERT_TRUE(succeeded(e.cancel(id)));
    const Answer answer = answer_of(1);
    EXPECT_EQ(answer.finished.finish_reason(), FinishReason::Error);
    EXPECT_EQ(answer.finished.status(), Status::Cancelled);
    EXPECT_EQ(e.cancel(12345).status(), Status::NotFound);
    const std::string text = e.cancel(12345).error().message();
    EXPECT_NE(text.find("request 0x3039"), std::string::npos) << text;
}

TEST_F(Streams, AreExportedAndGoOn)
{
    make_queue_small();
    Engine e = engine(), other = engine(Role::Decode);
    Request request = ask(1, 100);
    must(e.submit(request));
    const std::vector<std::int32_t> wanted = answer_of(1).tokens;
    request = ask(2, 100);
    const RequestId id = must(e.submit(request));
    Answer first;
    for (bool exported = false; first.finished.type() == EventType::None;) {
        const Event event = next_event();
        if (event.type() == EventType::Token)
            first.tokens.push_back(event.token());
        if (event.type() == EventType::Finished)
            first.finished = event;
        if (!exported) {
            ASSERT_TRUE(succeeded(e.export_kv(id)));
            exported = true;
        }
    }
    ASSERT_EQ(first.finished.finish_reason(), FinishReason::Exported);
    Request go_on;
    go_on.kv = cache.take_kv(first.finished);
    go_on.user_tag = 3;
    must(other.submit(go_on));
    const Answer rest = answer_of(3);
    first.tokens.insert(first.tokens.end(), rest.tokens.begin(), rest.tokens.end());
    EXPECT_EQ(first.tokens, wanted);
}

TEST_F(Streams, DrainRefusesWhatIsNew)
{
    make_queue_small();
    Engine e = engine();
    Request request = ask(1, 400);
    must(e.submit(request));
    EXPECT_EQ(e.drain(std::chrono::milliseconds(0)).status(), Status::Timeout);
    Request late = ask(2, 1);
    const auto refused = e.submit(late);
    EXPECT_EQ(refused.status(), Status::Shutdown);
    EXPECT_EQ(answer_of(1).tokens.size(), 400u);
    EXPECT_TRUE(succeeded(e.drain()));
}

TEST_F(Streams, ADeadlineThatHasPassedIsNotNone)
{
    make_queue_small();
    Engine e = engine();
    Request request = ask(1, 400);
    request.deadline = std::chrono::milliseconds(-5);
    must(e.submit(request));
    EXPECT_EQ(answer_of(1).finished.status(), Status::Timeout);
}

} // namespace
