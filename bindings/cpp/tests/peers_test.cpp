// Pairing, listening, and the counters.
#include "support.hpp"

#include <thread>

using namespace cleave;

namespace {

class Peers : public WithModel {};

TEST_F(Peers, PairInOneProcess)
{
    Cache other = must(Cache::create(model, cache_config()));
    const Bytes address = must(other.address());
    const PairReport report = must(cache.pair(address));
    EXPECT_EQ(report.status(), Status::Ok);
    EXPECT_EQ(report.transport(), Transport::Process);
    EXPECT_EQ(report.reason(), PairReason::None);
    EXPECT_GT(report.bytes_per_second, 0u);
    EXPECT_GE(report.rtt(), std::chrono::nanoseconds(0));
    EXPECT_FALSE(report.detail().empty());
}

TEST_F(Peers, PairOverTcp)
{
    Cache other = must(Cache::create(model, cache_config()));
    const auto port = must(other.listen("127.0.0.1:0"));
    EXPECT_NE(port, 0);
    EXPECT_NE(must(other.listen("127.0.0.1:0", "localhost:" + std::to_string(port), CLEAVE_LISTEN_ENCRYPT)), port);
    const auto report = must(cache.pair(must(other.address()), Transport::Tcp));
    EXPECT_EQ(report.status(), Status::Ok) << report.detail();
    EXPECT_EQ(report.transport(), Transport::Tcp);
    const auto taken = other.listen("127.0.0.1:" + std::to_string(port));
    EXPECT_EQ(taken.status(), Status::Io);
    EXPECT_EQ(other.listen("nonsense").status(), Status::InvalidArgument);
}

TEST_F(Peers, ARefusalIsAReport)
{
    Cache stranger = must(Cache::create(model, cache_config(0x77)));
    const auto report = must(cache.pair(must(stranger.address())));
    EXPECT_EQ(report.status(), Status::Permission);
    EXPECT_EQ(report.reason(), PairReason::Secret);
    EXPECT_FALSE(report.detail().empty());
    const auto damaged = must(cache.pair(std::string("no address")));
    EXPECT_EQ(damaged.reason(), PairReason::Address);
    EXPECT_EQ(Cache().pair(must(stranger.address())).status(), Status::InvalidArgument);
}

TEST_F(Peers, CountersAreRead)
{
    Engine e = engine();
    Request request = ask(1, 5);
    must(e.submit(request));
    answer_of(1);
    const auto until = std::chrono::steady_clock::now() + std::chrono::seconds(20);
    Metrics metrics = must(e.metrics()); // the last step may not have ended yet
    while (metrics.running != 0 && std::chrono::steady_clock::now() < until)
        metrics = must(e.metrics());
    EXPECT_EQ(metrics.role(), Role::Mixed);
    EXPECT_EQ(metrics.prompt_tokens, 40u);
    EXPECT_EQ(metrics.generated_tokens, 5u);
    EXPECT_GT(metrics.busy().count(), 0);
    EXPECT_GT(metrics.last_step_age().count(), 0);
    EXPECT_GT(metrics.step_last().count(), 0);
    EXPECT_GE(metrics.step_max(), metrics.step_last());
    EXPECT_GE(metrics.handoff_total(), metrics.handoff_last());
    EXPECT_GE(metrics.kv_exposed_total(), metrics.kv_exposed_last());
    EXPECT_EQ(metrics.export_last().count(), 0);
    EXPECT_GE(metrics.role_switch_last().count(), 0);
    EXPECT_GT(must(cache.audit()).total, 0u);

    std::string text(10, 'x');
    ASSERT_TRUE(succeeded(metrics_text(text)));
    EXPECT_EQ(text.find("xxx"), std::string::npos);
    EXPECT_NE(text.find("cleave_"), std::string::npos);
    EXPECT_EQ(must(metrics_text()).find("# EOF"), std::string::npos);
}

} // namespace
