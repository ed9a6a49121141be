// Spans, results, errors and enumerations.
#include "support.hpp"

#include <array>
#include <memory>
#include <string_view>
#if __cplusplus >= 202002L
#include <span>
#endif

using namespace cleave;

namespace {

std::size_t length(Span<const int> numbers) { return numbers.size(); }
int sum(Span<const int> numbers)
{
    int sum = 0;
    for (int number : numbers)
        sum += number;
    return sum;
}

TEST(Span, IsMadeFromWhateverIsContiguous)
{
    int c_array[] = {1, 2, 3};
    const std::array<int, 2> array{4, 5};
    std::vector<int> vector{6};
    Span<int> mutable_span(vector);
    mutable_span[0] = 7;
    EXPECT_EQ(sum(c_array), 6);
    EXPECT_EQ(sum(array), 9);
    EXPECT_EQ(sum(vector), 7);
    EXPECT_EQ(sum(std::vector<int>{8, 9}), 17);
    EXPECT_EQ(sum(mutable_span), 7);
    EXPECT_EQ(length({}), 0u);
    EXPECT_TRUE(Span<int>().empty());
    EXPECT_EQ(sum(Span<const int>(c_array).first(2)), 3);
    static_assert(!std::is_constructible_v<Span<int>, const std::vector<int> &>, "elements of a const vector are const");
    static_assert(!std::is_constructible_v<Span<int>, std::vector<int>>, "would dangle");
    static_assert(!std::is_constructible_v<Span<const int>, std::vector<long> &>, "another type");
#if __cplusplus >= 202002L
    std::span<int> standard = mutable_span;
    EXPECT_EQ(sum(standard), 7);
    EXPECT_EQ(Span<int>(std::span<int>(vector)).data(), vector.data());
#endif
}

TEST(Span, BytesComeFromTextAndFromBytes)
{
    const auto size = [](ByteView bytes) { return bytes.size(); };
    const std::byte bytes[3]{};
    const std::uint8_t octets[4]{};
    EXPECT_EQ(size(std::string("ab")), 2u);
    EXPECT_EQ(size(std::string_view("abc")), 3u);
    EXPECT_EQ(size(bytes), 3u);
    EXPECT_EQ(size(octets), 4u);
    EXPECT_EQ(size(Bytes{1, 2, 3, 4, 5}), 5u);
    EXPECT_EQ(size(ByteView(octets, 1)), 1u);
    EXPECT_EQ(ByteView().data(), nullptr);
    static_assert(!std::is_constructible_v<ByteView, const char (&)[4]>, "with or without the NUL?");
    static_assert(!std::is_constructible_v<ByteView, std::vector<int>>, "not bytes");
}

TEST(Result, HoldsAValueOrAnError)
{
    Result<std::unique_ptr<int>> good = std::make_unique<int>(3);
    ASSERT_TRUE(good);
    EXPECT_EQ(good.status(), Status::Ok);
    EXPECT_EQ(good.error().code(), Status::Ok);
    EXPECT_EQ(**good, 3);
    EXPECT_EQ(*good->get(), 3);
    const std::unique_ptr<int> taken = std::move(good).value();
    EXPECT_EQ(*taken, 3);

    const Result<int> bad = Error(Status::Expired);
    EXPECT_FALSE(bad.has_value());
    EXPECT_EQ(bad.status(), Status::Expired);
    EXPECT_STREQ(bad.error().message(), "EXPIRED");
    EXPECT_EQ(bad.value_or(5), 5);
    EXPECT_EQ(Result<int>(4).value_or(5), 4);
    EXPECT_EQ(Result<std::string>(Error(Status::Io)).value_or("none"), "none");

    EXPECT_TRUE(Result<void>());
    EXPECT_FALSE(Result<void>(Error(Status::Io)));
    EXPECT_EQ(Result<void>(Error(Status::Io)).error().code(), Status::Io);
    Result<void>().value();
}

TEST(ResultDeathTest, ValueOfAnErrorEndsTheProgram)
{
    const Result<int> bad = Error(Status::Io);
    EXPECT_DEATH(static_cast<void>(*bad), "");
    EXPECT_DEATH(Result<void>(Error(Status::Io)).value(), "");
}

TEST(Error, KeepsTheTextOfTheLibrary)
{
    const auto none = Model::load("/no/such/directory");
    ASSERT_FALSE(none);
    EXPECT_EQ(none.status(), Status::NotFound);
    const Error error = none.error();
    EXPECT_NE(std::string(error.message()).find("/no/such/directory"), std::string::npos) << error.message();
    EXPECT_EQ(error.get().code, CLEAVE_ERR_NOT_FOUND);
}

TEST(Enums, HaveTheNamesOfTheHeaderAndKeepWhatTheyDoNotKnow)
{
    EXPECT_STREQ(to_string(Status::PrefillElsewhere), "PREFILL_ELSEWHERE");
    EXPECT_STREQ(to_string(Role::Decode), "DECODE");
    EXPECT_STREQ(to_string(FinishReason::Exported), "EXPORTED");
    EXPECT_STREQ(to_string(EventType::KvStreamStarted), "KV_STREAM_STARTED");
    EXPECT_STREQ(to_string(Dtype::I8), "I8");
    EXPECT_STREQ(to_string(Transport::SharedMemory), "SHARED_MEMORY");
    EXPECT_STREQ(to_string(PairReason::SelfTest), "SELF_TEST");
    EXPECT_STREQ(to_string(LogLevel::Trace), "TRACE");

    cleave_event_t c{};
    c.type = 1000;
    c.finish_reason = 2000;
    c.status = -3000;
    const Event event(c);
    EXPECT_EQ(to_c(event.type()), 1000u);
    EXPECT_EQ(to_c(event.finish_reason()), 2000u);
    EXPECT_EQ(to_c(event.status()), -3000);
    EXPECT_STREQ(to_string(event.type()), "UNKNOWN");
    EXPECT_STREQ(to_string(event.finish_reason()), "UNKNOWN");
    EXPECT_STREQ(to_string(event.status()), "UNKNOWN");
    EXPECT_STREQ(to_string(static_cast<Role>(9)), "UNKNOWN");
    EXPECT_STREQ(to_string(static_cast<Dtype>(99)), "UNKNOWN");
    EXPECT_STREQ(to_string(static_cast<Transport>(99)), "UNKNOWN");
    EXPECT_STREQ(to_string(static_cast<PairReason>(99)), "UNKNOWN");
    EXPECT_STREQ(to_string(static_cast<LogLevel>(99)), "UNKNOWN");
}

TEST(Event, ShowsEveryField)
{
    cleave_event_t c{};
    c.type = CLEAVE_EVENT_FINISHED;
    c.finish_reason = CLEAVE_FINISH_ERROR;
    c.status = CLEAVE_ERR_TIMEOUT;
    c.token = 5;
    c.user_tag = 6;
    c.request = 7;
    c.kv = 8;
    c.timestamp_ns = 9;
    c.index = 10;
    c.logprob = -0.5f;
    c.cached_tokens = 11;
    c.flags = CLEAVE_EVENT_RECOMPUTED;
    const Event event(c);
    EXPECT_EQ(event.type(), EventType::Finished);
    EXPECT_EQ(event.finish_reason(), FinishReason::Error);
    EXPECT_EQ(event.status(), Status::Timeout);
    EXPECT_EQ(event.token(), 5);
    EXPECT_EQ(event.user_tag(), 6u);
    EXPECT_EQ(event.request(), 7u);
    EXPECT_EQ(event.kv(), 8u);
    EXPECT_EQ(event.timestamp().time_since_epoch(), std::chrono::nanoseconds(9));
    EXPECT_EQ(event.index(), 10u);
    EXPECT_EQ(event.logprob(), -0.5f);
    EXPECT_EQ(event.cached_tokens(), 11u);
    EXPECT_TRUE(event.recomputed());
    EXPECT_FALSE(Event().recomputed());
    EXPECT_EQ(event.get().request, 7u);
}

TEST(Times, SaturateOnTheWayToC)
{
    EXPECT_EQ(detail::to_ms(std::chrono::milliseconds(-1)), 0u);
    EXPECT_EQ(detail::to_ms(std::chrono::seconds(2)), 2000u);
    EXPECT_EQ(detail::to_ms(std::chrono::milliseconds(0xfffffffe)), 0xfffffffeu);
    EXPECT_EQ(detail::to_ms(std::chrono::milliseconds(0xffffffff)), UINT32_MAX);
    EXPECT_EQ(detail::to_ms(forever), UINT32_MAX);
}

TEST(Version, IsThatOfTheHeader)
{
    EXPECT_EQ(api_version().major_number, unsigned(CLEAVE_API_MAJOR));
    EXPECT_GE(api_version().minor_number, unsigned(CLEAVE_API_MINOR));
    EXPECT_STREQ(version_string(), cleave_version_string());
}

} // namespace
