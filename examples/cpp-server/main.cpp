// An OpenAI-compatible server over cleave: alone (mixed), or one of the prefill workers, decode workers and fronts that
// share the work. See ../README.md, "The two servers".
#include "completion.hpp"
#include "front.hpp"
#include "membership.hpp"
#include "prefill.hpp"

#include <csignal>

#include <sys/resource.h>

namespace {

/// Blocks the signals that end the server in every thread. One thread receives them with sigwait, so that no handler
/// runs.
sigset_t block_signals()
{
    sigset_t signals;
    sigemptyset(&signals);
    sigaddset(&signals, SIGTERM);
    sigaddset(&signals, SIGINT);
    pthread_sigmask(SIG_BLOCK, &signals, nullptr);
    return signals;
}

/// Raises the limit of open descriptors to the system's maximum: each request of a front takes three.
void raise_descriptor_limit()
{
    rlimit limit{};
    if (getrlimit(RLIMIT_NOFILE, &limit) == 0) {
        limit.rlim_cur = limit.rlim_max;
        setrlimit(RLIMIT_NOFILE, &limit);
    }
}

void wait_until(Clock::time_point end, const std::function<bool()> &done)
{
    while (!done() && Clock::now() < end)
        std::this_thread::sleep_for(std::chrono::milliseconds(10));
}

std::string url_of(const std::string &host, int port)
{
    return "http://" + (host.find(':') == std::string::npos ? host : "[" + host + "]") + ":" + std::to_string(port);
}

/// Serves until a signal arrives. Then it leaves the front and refuses new requests. It waits until no request runs and
/// no handle is `held`, and cancels the rest. Idle connections and the library's objects end with the process.
[[noreturn]] void serve(HttpServer &server, const std::string &url, const sigset_t &signals,
                        Membership *membership, const std::function<bool()> &held)
{
    std::printf("listening on %s\n", url.c_str());
    std::fflush(stdout);
    std::thread([&] { server.serve(); }).detach();
    int signal;
    sigwait(&signals, &signal);
    const auto end = Clock::now() + std::chrono::seconds(10);
    if (membership != nullptr)
        membership->leave(end);
    server.closing = true;
    wait_until(end, [&] { return server.running == 0 && !held(); });
    server.aborting = true;
    wait_until(Clock::now() + std::chrono::seconds(2), [&] { return server.running == 0; });
    std::quick_exit(0);
}

/// Adds the paths that every server has. `models` lists the names of its models; `health` has a status; `metrics` is
/// text.
void route_common(HttpServer &server, const std::string &page, std::function<std::vector<std::string>()> models,
                  std::function<json()> health, std::function<std::string()> metrics)
{
    const auto model = [started = std::time(nullptr)](const std::string &name) {
        return json{{"id", name}, {"object", "model"}, {"created", started}, {"owned_by", "cleave"}};
    };
    server.get("/v1/models", "application/json", [=](const auto &) {
        json data = json::array();
        for (const std::string &name : models())
            data.push_back(model(name));
        return dump({{"object", "list"}, {"data", data}});
    });
    server.get("/v1/models/(.+)", "application/json", [=](const httplib::Request &request) {
        for (const std::string &name : models())
            if (name == request.matches[1])
                return dump(model(name));
        throw no_such_model(request.matches[1]);
    });
    server.route("GET", "/health", [=, &server](const auto &, httplib::Response &response) {
        json body = health();
        if (server.closing)
            body["status"] = "shutting_down";
        response.status = body["status"] == "ok" ? 200 : 503;
        response.set_content(dump(body), "application/json");
    });
    server.get("/metrics", "application/openmetrics-text; version=1.0.0; charset=utf-8",
               [=](const auto &) { return metrics() + "# EOF\n"; });
    if (page.empty())
        return;
    std::ifstream file(page, std::ios::binary);
    std::ostringstream text;
    if (!(text << file.rdbuf()))
        throw std::runtime_error(page + ": cannot read it");
    server.get("/", "text/html; charset=utf-8", [text = text.str()](const auto &) { return text; });
}

/// Answers with `work`: a Completion, or a Passage through other servers.
template <class Work> void answer(const std::shared_ptr<Work> &work, const Call &call, httplib::Response &response)
{
    const auto run = [work](const Write &write) { work->stream(write); };
    if (work->streams())
        stream(call, response, "text/event-stream", "data: ", "\n\n", run);
    else
        send(call, response, work->whole());
}

[[noreturn]] void run_front(const Options &options, const sigset_t &signals)
{
    static HttpServer server(options.max_connections); // lives until the process ends
    static HttpServer inside(options.max_connections); // listener for workers
    static Registry workers{std::chrono::seconds(options.forget_after)};
    static Authenticator authenticator(read_secret(options.secret_file));
    server.metrics.count("cleave_front_moved_total", "", 0);
    for (const char *path : {"/v1/chat/completions", "/v1/completions"})
        server.route_generation(path, [](const Call &call, httplib::Response &response) {
            const auto passage = std::make_shared<Passage>(server, workers, authenticator, call);
            passage->begin();
            answer(passage, call, response);
        });
    const auto list = [](const auto &) { return dump(workers.list()); };
    if (!options.page.empty())
        server.get("/workers", "application/json", list);
    inside.get("/workers", "application/json", list);
    const auto post = [](const char *path, std::function<json(const std::string &)> take) {
        const auto handler = [=](const httplib::Request &request, httplib::Response &response) {
            response.set_content(dump(take(request.body)), "application/json");
        };
        inside.route("POST", path, handler, authenticator.guard("front"));
    };
    post("/workers", [](const std::string &body) { return workers.report(body); });
    post("/workers/leave", [](const std::string &body) {
        workers.leave(body);
        return json::object();
    });
    const auto models = [] { return workers.models(); };
    const auto health = [=]() -> json {
        const auto known = models();
        if (known.empty())
            return {{"status", "no_decode_worker"}, {"role", "front"}, {"model", nullptr}};
        return {{"status", "ok"}, {"role", "front"}, {"model", known[0]}};
    };
    route_common(server, options.page, models, health, [] { return server.metrics_text(workers.metrics()); });
    const int inside_port = inside.bind(options.workers_listen_host, options.workers_listen_port);
    const int port = server.bind(options.host, options.port);
    std::thread([] { inside.serve(); }).detach();
    std::printf("workers join at %s\n", url_of(options.workers_listen_host, inside_port).c_str());
    serve(server, url_of(options.host, port), signals, nullptr, [] { return false; });
}

json audit(const EngineHost &host)
{
    const auto audit = host.cache.audit();
    if (!audit)
        return nullptr;
    return {{"by_requests", audit->by_requests}, {"by_transfers", audit->by_transfers},
            {"by_exports", audit->by_exports},   {"by_prefix_index", audit->by_prefix_index},
            {"leaked", audit->leaked},           {"total", audit->total},
            {"free", audit->free}};
}

[[noreturn]] void run_engine(const Options &options, const sigset_t &signals)
{
    const auto print = [](cleave::LogLevel, const char *part, const char *text) {
        std::fprintf(stderr, "%s: %s\n", part, text);
    };
    static const auto log = cleave::LogSink::install(cleave::LogLevel::Warn, print);
    static HttpServer server(options.max_connections); // before the engine, to fail early on a taken port
    const std::string url = url_of(options.host, server.bind(options.host, options.port));
    static EngineHost host(options);
    const std::string known_as = options.advertise.empty() ? url : options.advertise;
    Guard guard; // a worker serves only its front
    static std::unique_ptr<Authenticator> authenticator;
    if (options.is_worker()) {
        authenticator = std::make_unique<Authenticator>(read_secret(options.secret_file));
        guard = authenticator->guard(known_as);
    }
    const auto generate = [known_as](const Call &call, httplib::Response &response) {
        if (host.options.role == "prefill")
            return answer_prefill(server, host, call, response);
        const auto completion = std::make_shared<Completion>(server, host, known_as, call);
        completion->submit();
        answer(completion, call, response);
    };
    for (const char *path : {"/v1/chat/completions", "/v1/completions"})
        server.route_generation(path, generate, guard);
    const auto models = [] { return std::vector<std::string>{host.options.model_name}; };
    const auto health = []() -> json {
        const char *status = host.has_failed ? "engine_failed" : "ok";
        const Options &o = host.options;
        return {{"status", status}, {"role", o.role}, {"model", o.model_name}, {"audit", audit(host)}};
    };
    route_common(server, options.is_worker() ? "" : options.page, models, health, [] {
        const std::string text = cleave::metrics_text().value_or(std::string());
        return text.substr(0, text.rfind("# EOF")) + server.metrics_text(); // "# EOF" is added at the end
    });
    auto *membership = options.is_worker() ? new Membership(host, *authenticator, known_as) : nullptr;
    serve(server, url, signals, membership, [] { // the process ends once computed prompts are fetched
        const auto metrics = host.engine.metrics();
        return host.options.role == "prefill" && metrics && metrics->exports_open > 0;
    });
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
    raise_descriptor_limit();
    try {
        (options.role == "front" ? run_front : run_engine)(options, signals);
    } catch (const std::exception &error) {
        std::fprintf(stderr, "%s: %s\n", argv[0], error.what());
        std::quick_exit(1);
    }
}
