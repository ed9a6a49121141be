// Polling, reading a token's event and turning it into text do not allocate. Nor does a request whose buffers are
// reused. Only this thread's allocations are counted, not those of the library's threads.
#include "support.hpp"

#include <new>

static thread_local std::size_t allocations = 0;

void *operator new(std::size_t size)
{
    allocations++;
    if (void *memory = std::malloc(size != 0 ? size : 1))
        return memory;
    std::abort();
}
void *operator new[](std::size_t size) { return operator new(size); }
void operator delete(void *memory) noexcept { std::free(memory); }
void operator delete[](void *memory) noexcept { std::free(memory); }
void operator delete(void *memory, std::size_t) noexcept { std::free(memory); }
void operator delete[](void *memory, std::size_t) noexcept { std::free(memory); }

using namespace cleave;

namespace {

class Allocations : public WithModel {
protected:
    std::size_t run(Engine &e, Detokenizer &d, Request &request, Packer &packer, std::string &text, std::size_t &tokens)
    {
        const std::size_t before = allocations;
        bool fine = static_cast<bool>(e.submit(request, packer));
        Event events[16];
        for (bool open = fine; open;) {
            const auto got = queue.poll(events, std::chrono::minutes(1));
            fine = fine && got;
            for (const Event &event : got ? *got : Span<Event>()) {
                if (event.type() == EventType::Token) {
                    char piece[256];
                    fine = fine && (tokens % 2 == 0 ? static_cast<bool>(d.push(event.token(), text))
                                                    : static_cast<bool>(d.push(event.token(), piece)));
                    tokens++;
                }
                open = open && event.type() != EventType::Finished;
            }
            open = open && fine;
        }
        const std::size_t after = allocations;
        EXPECT_TRUE(fine);
        return after - before;
    }
};

TEST_F(Allocations, AreCounted)
{
    const std::size_t before = allocations;
    const std::vector<int> one(1);
    EXPECT_EQ(allocations, before + 1);
}

TEST_F(Allocations, NoneForATokenNoneForAWarmRequest)
{
    Engine e = engine();
    Detokenizer d = must(Detokenizer::create(model));
    Request request = ask(1, 200);
    request.stop_tokens = {700};
    request.stop_sequences = {{701, 702}};
    request.logit_bias = {{5, 0.5f}};
    Packer packer;
    std::string text;
    text.reserve(8192);
    std::size_t tokens = 0;
    EXPECT_GT(run(e, d, request, packer, text, tokens), 0u); // the first run allocates the packer's memory
    EXPECT_EQ(run(e, d, request, packer, text, tokens), 0u);
    EXPECT_EQ(tokens, 400u);
}

TEST_F(Allocations, NoneForAnError)
{
    const std::size_t before = allocations;
    const auto bad = Queue::create(1);
    const Error error = bad.error();
    EXPECT_EQ(allocations, before);
    EXPECT_NE(error.message()[0], '\0');
}

} // namespace
