// Layout of requests for the C call, and the effect of every field.
#include "support.hpp"

using namespace cleave;

namespace {

std::vector<std::int32_t> range(const Packer &packer, std::uint32_t begin, std::uint32_t len)
{
    const auto tokens = packer.tokens();
    return std::vector<std::int32_t>(tokens.begin() + begin, tokens.begin() + begin + len);
}

using Ids = std::vector<std::int32_t>;

TEST(PackerOfRequests, CopiesEveryField)
{
    Request request;
    request.prompt = {1, 2, 3};
    request.user_tag = 4;
    request.max_new_tokens = 5;
    request.min_new_tokens = 6;
    request.stop_tokens = {7, 8};
    request.stop_sequences = {{9, 10}, {11}};
    request.logit_bias = {{12, 1.5f}};
    request.temperature = 0.25f;
    request.top_k = 13;
    request.top_p = 0.5f;
    request.min_p = 0.125f;
    request.repetition_penalty = 1.25f;
    request.presence_penalty = 0.75f;
    request.frequency_penalty = 0.0625f;
    request.seed = 14;
    request.top_logprobs = 15;
    request.priority = 16;
    request.deadline = std::chrono::microseconds(17);
    request.cache_salt = 18;
    request.keep_kv = request.recompute = true;
    request.flags = 1u << 30;
    Request other;
    other.prompt = {20};
    other.token_logprobs = other.emit_pending = other.ignore_eos = other.override_sampling = other.stream_kv = true;
    Packer packer;
    packer.add(request);
    packer.add(other);
    ASSERT_EQ(packer.requests().size(), 2u);
    EXPECT_EQ(packer.ids().size(), 2u);
    const cleave_request_desc_t &c = packer.requests()[0];
    EXPECT_EQ(c.struct_size, sizeof c);
    EXPECT_EQ(c.flags, CLEAVE_REQUEST_KEEP_KV | CLEAVE_REQUEST_RECOMPUTE | 1u << 30);
    EXPECT_EQ(c.user_tag, 4u);
    EXPECT_EQ(c.kv, 0u);
    EXPECT_EQ(range(packer, c.prompt_begin, c.prompt_len), (Ids{1, 2, 3}));
    EXPECT_EQ(range(packer, c.stop_begin, c.stop_len), (Ids{7, 8}));
    EXPECT_EQ(range(packer, c.stop_sequences_begin, c.stop_sequences_len), (Ids{2, 9, 10, 1, 11}));
    EXPECT_EQ(range(packer, c.logit_bias_begin, c.logit_bias_len), (Ids{12, 0x3fc00000}));
    EXPECT_EQ(c.max_new_tokens, 5u);
    EXPECT_EQ(c.min_new_tokens, 6u);
    EXPECT_EQ(c.temperature, 0.25f);
    EXPECT_EQ(c.top_k, 13u);
    EXPECT_EQ(c.top_p, 0.5f);
    EXPECT_EQ(c.min_p, 0.125f);
    EXPECT_EQ(c.repetition_penalty, 1.25f);
    EXPECT_EQ(c.presence_penalty, 0.75f);
    EXPECT_EQ(c.frequency_penalty, 0.0625f);
    EXPECT_EQ(c.seed, 14u);
    EXPECT_EQ(c.logprobs, 15);
    EXPECT_EQ(c.priority, 16u);
    EXPECT_EQ(c.deadline_us, 17u);
    EXPECT_EQ(c.cache_salt, 18u);
    const cleave_request_desc_t &d = packer.requests()[1];
    EXPECT_EQ(d.flags, CLEAVE_REQUEST_LOGPROBS | CLEAVE_REQUEST_EMIT_PENDING | CLEAVE_REQUEST_IGNORE_EOS |
                           CLEAVE_REQUEST_OVERRIDE_SAMPLING | CLEAVE_REQUEST_STREAM_KV);
    EXPECT_EQ(range(packer, d.prompt_begin, d.prompt_len), (Ids{20}));
    EXPECT_EQ(d.stop_len + d.stop_sequences_len + d.logit_bias_len, 0u);
    EXPECT_EQ(d.deadline_us, 0u);
    packer.clear();
    EXPECT_TRUE(packer.requests().empty());
    EXPECT_TRUE(packer.tokens().empty());
}

class Requests : public WithModel {
protected:
    std::vector<std::int32_t> run(Engine &engine, Request request, FinishReason reason)
    {
        must(engine.submit(request));
        const Answer answer = answer_of(request.user_tag);
        EXPECT_EQ(answer.finished.finish_reason(), reason);
        return answer.tokens;
    }
};

TEST_F(Requests, StopAndBias)
{
    Engine e = engine();
    const Ids plain = run(e, ask(1, 12), FinishReason::Length);
    Request stop = ask(2, 12);
    stop.stop_tokens = {plain[3]};
    const std::size_t at = static_cast<std::size_t>(std::find(plain.begin(), plain.end(), plain[3]) - plain.begin());
    EXPECT_EQ(run(e, std::move(stop), FinishReason::Stop).size(), at + 1);
    Request sequence = ask(3, 12);
    sequence.stop_sequences = {{700, 701, 702}, {plain[4], plain[5]}};
    EXPECT_LE(run(e, std::move(sequence), FinishReason::Stop).size(), 6u);
    Request bias = ask(4, 5);
    bias.logit_bias = {{42, 1000.0f}};
    EXPECT_EQ(run(e, std::move(bias), FinishReason::Length), Ids(5, 42));
    Request sampled = ask(5, 12), again = ask(6, 12);
    sampled.temperature = again.temperature = 5;
    sampled.seed = again.seed = 99;
    EXPECT_EQ(run(e, std::move(sampled), FinishReason::Length), run(e, std::move(again), FinishReason::Length));
}

TEST_F(Requests, AreRefusedWithTheNameOfTheField)
{
    Engine e = engine();
    Request request = ask(1, 4);
    request.top_p = 1.5f;
    const auto refused = e.submit(request);
    EXPECT_EQ(refused.status(), Status::InvalidArgument);
    EXPECT_NE(std::string(refused.error().message()).find("top_p"), std::string::npos) << refused.error().message();
    request.top_p = 0;
    request.flags = 1u << 30;
    EXPECT_EQ(e.submit(request).status(), Status::Unsupported);
    Packer packer;
    const Submitted none = e.submit(Span<Request>(), packer);
    EXPECT_EQ(none.accepted(), 0u);
}

} // namespace
