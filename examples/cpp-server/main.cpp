// An OpenAI-compatible server over cleave: alone (mixed), or one of the prefill workers, decode workers and fronts that
// share the work. See ../README.md, "The two servers".
#include "completion.hpp"
#include "ending.hpp"
#include "front.hpp"
#include "prefill_answer.hpp"
#include "role_routes.hpp"
#include "routes.hpp"

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

[[noreturn]] void run_front(const Options &options, const sigset_t &signals)
{
    static Service service, service_inside; // these live until the process ends
    static HttpServer server(service, options.max_connections);
    static HttpServer inside(service_inside, options.max_connections); // listener for workers
    static Registry workers{std::chrono::seconds(options.forget_after)};
    static Authenticator authenticator(read_secret(options.secret_file));
    service.metrics.count("cleave_front_moved_total", "", 0);
    route_generations(server, false, nullptr, [](const Call &call, OpenAiRequest request, httplib::Response &response) {
        const auto passage = std::make_shared<Passage>(service, workers, authenticator, call, std::move(request));
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
    route_common(server, service, options.page, models, health, [] { return service.metrics_text(workers.metrics()); });
    const int inside_port = inside.bind(options.workers_listen_host, options.workers_listen_port);
    const int port = server.bind(options.host, options.port);
    std::thread([] { inside.serve(); }).detach();
    std::printf("workers join at %s\n", url_of(options.workers_listen_host, inside_port).c_str());
    serve(server, service, options, url_of(options.host, port), signals, nullptr, nullptr, [] { return false; });
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
    if (!options.grpc.empty())
        need_grpc();
    static Service service;
    static HttpServer server(service, options.max_connections); // before the engine, to fail early on a taken port
    const std::string url = url_of(options.host, server.bind(options.host, options.port));
    static EngineHost host(options);
    const std::string known_as = options.advertise.empty() ? url : options.advertise;
    Guard guard; // a worker with a front serves only that
    static std::unique_ptr<Authenticator> authenticator;
    if (options.has_front()) {
        authenticator = std::make_unique<Authenticator>(read_secret(options.secret_file));
        guard = authenticator->guard(known_as);
    }
    const auto generate = [known_as](const Call &call, OpenAiRequest request, httplib::Response &response) {
        if (host.role == cleave::Role::Prefill || request.do_remote_decode)
            return answer_prefill(service, host, call, request, response);
        const auto completion = std::make_shared<Completion>(service, host, known_as, call, std::move(request));
        completion->submit();
        answer(completion, call, response);
    };
    route_generations(server, options.is_worker() || !options.grpc.empty(), guard, generate); // a role can be given later
    const auto models = [] { return std::vector<std::string>{host.options.model_name}; };
    const auto health = []() -> json {
        const char *status = host.has_failed ? "engine_failed" : "ok";
        return {{"status", status}, {"role", role_name(host.role)}, {"model", host.options.model_name}, {"audit", audit(host)}};
    };
    route_common(server, service, options.is_worker() ? "" : options.page, models, health, [] {
        const std::string text = cleave::metrics_text().value_or(std::string());
        return text.substr(0, text.rfind("# EOF")) + service.metrics_text(); // "# EOF" is added at the end
    });
    if (!host.kv_events.endpoint.empty())
        std::printf("KV events at %s\n", host.kv_events.endpoint.c_str());
    static RoleSwitch roles(host);
    if (options.is_worker() || !options.grpc.empty())
        route_role(server, host, roles, guard);
    auto *membership = options.has_front() ? new Membership(host, *authenticator, known_as) : nullptr;
    GrpcServer *grpc = nullptr;
    if (!options.grpc.empty()) {
        grpc = &serve_grpc(options.grpc, host, service, roles);
        std::printf("gRPC at %s\n", grpc->address().c_str());
    }
    serve(server, service, options, url, signals, membership, grpc, [] { // the process ends once computed prompts are fetched
        const auto metrics = host.engine.metrics();
        return metrics && metrics->exports_open > 0;
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
