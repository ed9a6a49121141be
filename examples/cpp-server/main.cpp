// An OpenAI-compatible server over cleave: alone (mixed), or one of the prefill workers, decode workers and fronts that
// share the work. See ../README.md, "The two servers".
#include "completion.hpp"
#include "front.hpp"
#include "membership.hpp"
#include "prefill.hpp"

#include <csignal>
#include <cstdio>
#include <fstream>
#include <sstream>

namespace {

constexpr std::chrono::seconds drain_timeout(10);

/// Blocks the signals that end the server, in every thread: one waits for them with sigwait, and no handler runs.
sigset_t block_signals()
{
    sigset_t signals;
    sigemptyset(&signals);
    sigaddset(&signals, SIGTERM);
    sigaddset(&signals, SIGINT);
    pthread_sigmask(SIG_BLOCK, &signals, nullptr);
    return signals;
}

void wait_until(Clock::time_point end, const std::function<bool()> &done)
{
    while (!done() && Clock::now() < end)
        std::this_thread::sleep_for(std::chrono::milliseconds(10));
}

/// Serves until a signal comes; then refuses, leaves the front, waits, and cancels what still runs.
bool serve(HttpServer &server, const sigset_t &signals, EngineHost *host, Membership *membership)
{
    std::thread ending([&] {
        int signal;
        sigwait(&signals, &signal);
        server.closing = true;
        const auto end = Clock::now() + drain_timeout;
        if (membership != nullptr)
            membership->leave();
        wait_until(end, [&] {
            if (server.running > 0)
                return false;
            if (host == nullptr || host->options.role != ServerRole::Prefill)
                return true;
            const auto metrics = host->engine.metrics();
            return !metrics || metrics->exports_open == 0; // what was computed has been fetched
        });
        server.aborting = true;
        wait_until(Clock::now() + std::chrono::seconds(2), [&] { return server.running == 0; });
        server.stop();
    });
    const bool right = server.serve();
    if (!right) // the signal has not come
        pthread_kill(ending.native_handle(), SIGTERM);
    ending.join();
    return right;
}

void route_models(HttpServer &server, std::function<std::vector<std::string>()> models)
{
    server.route("GET", "/v1/models", [models, started = std::time(nullptr)](Exchange &exchange) {
        nlohmann::ordered_json data = nlohmann::ordered_json::array();
        for (const std::string &name : models())
            data.push_back({{"id", name}, {"object", "model"}, {"created", started}, {"owned_by", "cleave"}});
        const nlohmann::ordered_json list = {{"object", "list"}, {"data", data}};
        exchange.response.set_content(dump(list), "application/json");
    });
}

/// `problem` says why the server is of no use now; empty: it is.
void answer_health(const HttpServer &server, Exchange &exchange, std::string problem, nlohmann::ordered_json rest)
{
    if (server.closing)
        problem = "shutting_down";
    nlohmann::ordered_json body = {{"status", problem.empty() ? "ok" : problem}};
    body.update(rest);
    exchange.response.status = problem.empty() ? 200 : 503;
    exchange.response.set_content(dump(body), "application/json");
}

void route_metrics(HttpServer &server, std::function<std::string()> of_role)
{
    server.route("GET", "/metrics", [&server, of_role](Exchange &exchange) {
        exchange.response.set_content(of_role() + server.metrics() + "# EOF\n",
                                      "application/openmetrics-text; version=1.0.0; charset=utf-8");
    });
}

void route_page(HttpServer &server, const std::string &path)
{
    if (path.empty())
        return;
    std::ifstream file(path, std::ios::binary);
    std::ostringstream page;
    if (!(page << file.rdbuf()))
        throw std::runtime_error(path + ": cannot read it");
    server.route("GET", "/", [text = page.str()](Exchange &exchange) {
        exchange.response.set_content(text, "text/html; charset=utf-8");
    });
}

std::string url_of(const std::string &host, int port)
{
    const bool v6 = host.find(':') != std::string::npos;
    return "http://" + (v6 ? "[" + host + "]" : host) + ":" + std::to_string(port);
}

void say_listening(const std::string &url)
{
    std::printf("listening on %s\n", url.c_str());
    std::fflush(stdout);
}

bool run_front(const Options &options, const sigset_t &signals)
{
    HttpServer server;
    Front front(server);
    Registry &workers = front.workers();
    server.route_generation("/v1/chat/completions", [&](Exchange &exchange) { front.answer(exchange, true); });
    server.route_generation("/v1/completions", [&](Exchange &exchange) { front.answer(exchange, false); });
    server.route("POST", "/workers", [&](Exchange &exchange) {
        exchange.response.set_content(workers.report(exchange.body), "application/json");
    });
    server.route("DELETE", "/workers", [&](Exchange &exchange) {
        workers.leave(exchange.request.get_param_value("url"));
        exchange.response.set_content("{}", "application/json");
    });
    server.route("GET", "/workers", [&](Exchange &exchange) {
        exchange.response.set_content(workers.list(), "application/json");
    });
    server.route("GET", "/health", [&](Exchange &exchange) {
        const auto models = workers.models();
        answer_health(server, exchange, models.empty() ? "no_decode_worker" : "",
                      {{"role", "front"}, {"model", models.empty() ? json() : json(models[0])}});
    });
    route_models(server, [&] { return workers.models(); });
    route_metrics(server, [&] { return front.metrics(); });
    route_page(server, options.page);
    say_listening(url_of(options.host, server.bind(options.host, options.port)));
    return serve(server, signals, nullptr, nullptr);
}

nlohmann::ordered_json audit(const EngineHost &host)
{
    const auto audit = host.cache.audit();
    if (!audit)
        return nullptr;
    return {{"by_requests", audit->by_requests},         {"by_transfers", audit->by_transfers},
            {"by_exports", audit->by_exports},           {"by_prefix_index", audit->by_prefix_index},
            {"leaked", audit->leaked},                   {"total", audit->total},
            {"free", audit->free}};
}

bool run_engine(const Options &options, const sigset_t &signals)
{
    const auto log = cleave::LogSink::install(cleave::LogLevel::Warn, [](cleave::LogLevel, const char *part, const char *message) {
        std::fprintf(stderr, "%s: %s\n", part, message);
    });
    HttpServer server; // before the engine: a port that is taken is found out at once
    const std::string url = url_of(options.host, server.bind(options.host, options.port));
    EngineHost host(options);
    const std::string known_as = options.advertise.empty() ? url : options.advertise;
    for (const bool chat : {true, false})
        server.route_generation(chat ? "/v1/chat/completions" : "/v1/completions", [&, chat](Exchange &exchange) {
            if (options.role == ServerRole::Prefill)
                answer_prefill(server, host, exchange, chat);
            else
                answer_completion(server, host, known_as, exchange, chat);
        });
    server.route("GET", "/health", [&](Exchange &exchange) {
        answer_health(server, exchange, host.has_failed() ? "engine_failed" : "",
                      {{"role", to_string(options.role)}, {"model", options.model_name}, {"audit", audit(host)}});
    });
    route_models(server, [&] { return std::vector<std::string>{options.model_name}; });
    route_metrics(server, [] {
        std::string text = cleave::metrics_text().value_or(std::string());
        return text.substr(0, text.rfind("# EOF")); // more follows
    });
    if (!options.is_worker())
        route_page(server, options.page);
    std::unique_ptr<Membership> membership;
    if (options.is_worker())
        membership = std::make_unique<Membership>(host, known_as);
    say_listening(url);
    return serve(server, signals, &host, membership.get());
}

} // namespace

int main(int argc, char **argv)
{
    Options options;
    try {
        options = parse_options(argc, argv);
    } catch (const std::invalid_argument &error) {
        std::fprintf(stderr, "%s: %s\n", argv[0], error.what());
        return 2;
    }
    const sigset_t signals = block_signals();
    try {
        return (options.role == ServerRole::Front ? run_front : run_engine)(options, signals) ? 0 : 1;
    } catch (const std::exception &error) {
        std::fprintf(stderr, "%s: %s\n", argv[0], error.what());
        return 1;
    }
}
