// The HTTP side, the same for every role: routes, errors as OpenAI's API has them, streams, counters.
#pragma once

#include <httplib.h>
#include <nlohmann/json.hpp>

#include <atomic>
#include <chrono>
#include <cstdio>
#include <filesystem>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <stdexcept>
#include <string>

#include <netdb.h>
#include <poll.h>
#include <sys/socket.h>

using json = nlohmann::json;
using Clock = std::chrono::steady_clock;

/// How long to wait for something before looking whether the client is still there.
constexpr std::chrono::milliseconds look_around(50);

/// JSON on one line. What is not UTF-8 becomes U+FFFD.
inline std::string dump(const json &value) { return value.dump(-1, ' ', false, json::error_handler_t::replace); }

inline double ms_since(Clock::time_point start, Clock::time_point end = Clock::now())
{
    return std::chrono::duration<double, std::milli>(end - start).count();
}

/// What goes to a client as {"error": ...}.
struct ApiError : std::runtime_error {
    int status;
    json error;

    ApiError(int status, const char *type, const std::string &message, const json &param = {}, const json &code = {})
        : std::runtime_error(message), status(status),
          error({{"message", message}, {"type", type}, {"param", param}, {"code", code}})
    {
    }
    /// Another server's.
    ApiError(int status, const json &e) : std::runtime_error(e.value("message", "")), status(status), error(e) {}

    std::string text() const { return dump({{"error", error}}); }
};

inline ApiError invalid(const json &param, const std::string &message)
{
    return ApiError(400, "invalid_request_error", message, param);
}
inline ApiError no_such_model(const std::string &name)
{
    const std::string what = "the model '" + name + "' does not exist";
    return ApiError(404, "invalid_request_error", what, "model", "model_not_found");
}
inline ApiError unavailable(const std::string &message) { return ApiError(503, "service_unavailable", message); }
inline ApiError failed(const std::string &message) { return ApiError(500, "server_error", message); }

/// Thrown where an answer is written, or waited for, that nobody reads any more.
struct ClientGone {};

/// A client's request that is in hand. While a copy lives it counts as running.
struct Call {
    std::string path, body, id; // id: X-Request-Id
    bool traced;                // X-Cleave-Trace
    int socket;
    Clock::time_point start;
    std::shared_ptr<void> running;
};

/// Writes a piece of a streamed answer. Throws ClientGone.
using Write = std::function<void(const std::string &)>;

class HttpServer {
public:
    using Handler = std::function<void(const httplib::Request &, httplib::Response &)>;

    HttpServer()
    {
        count("cleave_server_ttft_seconds_sum", 0);
        count("cleave_server_ttft_seconds_count", 0);
        server_.new_task_queue = [] { return new httplib::ThreadPool(512); }; // one thread for each connection
        server_.set_tcp_nodelay(true);
        server_.set_keep_alive_max_count(1000000);
        server_.set_read_timeout(60);
        server_.set_write_timeout(30); // a client that reads nothing for so long is gone
        server_.set_payload_max_length(16 << 20);
        server_.set_socket_options([](int fd) { // httplib's own lets a second server take the port as well
            const int yes = 1;
            setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof yes);
        });
        server_.set_error_handler(httplib::Server::Handler([this](const auto &request, auto &response) {
            if (!response.body.empty())
                return; // one of ours
            const bool other_method = response.status == 404 && paths_.count(request.path) != 0;
            const int status = other_method ? 405 : response.status;
            const std::string what = status == 413 ? "the body is too large for" : "there is no";
            const std::string request_line = " " + request.method + " " + request.path;
            send_error(response, ApiError(status, "invalid_request_error", what + request_line));
            count_answer("other", status);
        }));
    }

    /// `path` is a regular expression. The handler may throw ApiError and ClientGone.
    void route(const std::string &method, const std::string &path, Handler handler)
    {
        const auto answer = [=](const httplib::Request &request, httplib::Response &response) {
            try {
                handler(request, response);
                if (response.status == -1)
                    response.status = 200;
            } catch (const ApiError &error) {
                send_error(response, error);
            } catch (const ClientGone &) {
                send_error(response, ApiError(499, "invalid_request_error", "the client has gone")); // for the counter
            } catch (const std::exception &error) {
                std::fprintf(stderr, "%s: %s\n", path.c_str(), error.what());
                send_error(response, failed(error.what()));
            }
            count_answer(path, response.status);
        };
        paths_.insert(path);
        if (method == "GET")
            server_.Get(path, answer);
        else if (method == "POST") // read here: httplib's own way takes what curl sends for a form, of 8 KiB at most
            server_.Post(path, [=](const auto &request, auto &response, const httplib::ContentReader &reader) {
                httplib::Request whole = request;
                const bool has_body = request.has_header("Content-Length") || request.has_header("Transfer-Encoding");
                const auto append = [&](const char *data, std::size_t n) {
                    whole.body.append(data, n);
                    return true;
                };
                const bool read = !has_body || request.is_multipart_form_data() || reader(append);
                if (read)
                    answer(whole, response);
            });
        else // a DELETE has no body: httplib must not wait for one
            server_.Delete(path, [answer](const auto &request, auto &response, const auto &) {
                answer(request, response);
            });
    }

    /// A GET of what `text` gives.
    void get(const std::string &path, const char *type, std::function<std::string(const httplib::Request &)> text)
    {
        route("GET", path, [=](const httplib::Request &request, httplib::Response &response) {
            response.set_content(text(request), type);
        });
    }

    /// The same for what is waited for at the end, and refused once that has begun.
    void route_generation(const std::string &path, std::function<void(const Call &, httplib::Response &)> handler)
    {
        route("POST", path, [=](const httplib::Request &request, httplib::Response &response) {
            running++;
            const std::shared_ptr<void> in_hand(static_cast<void *>(nullptr), [this](void *) { running--; });
            const bool traced = request.get_header_value("X-Cleave-Trace") == "1";
            const std::string id = request.get_header_value("X-Request-Id");
            const Call call{request.path, request.body, id, traced, socket_of(request), Clock::now(), in_hand};
            if (closing) // looked at after counting: what is counted is waited for
                throw unavailable("the server is shutting down");
            handler(call, response);
        });
    }

    /// Takes the port, 0 for a free one; returns it. Throws std::runtime_error.
    int bind(const std::string &host, int port)
    {
        const int taken = port == 0 ? server_.bind_to_any_port(host) : server_.bind_to_port(host, port) ? port : -1;
        if (taken < 0)
            throw std::runtime_error("cannot listen at " + host + ":" + std::to_string(port));
        server_.deepen_backlog();
        return taken;
    }

    /// Serves until the process ends.
    void serve() { server_.listen_after_bind(); }

    /// From the first signal on: no new generations.
    std::atomic<bool> closing{false};
    /// Ends what still runs.
    std::atomic<bool> aborting{false};
    std::atomic<int> running{0};

    /// Throws if who asked is gone, or the server can wait no longer. Called while an answer is waited for.
    void check(const Call &call) const
    {
        pollfd end{call.socket, POLLRDHUP, 0};
        if (call.socket >= 0 && ::poll(&end, 1, 0) > 0)
            throw ClientGone();
        if (aborting)
            throw unavailable("the server is shutting down");
    }

    void count_first_token(const Call &call)
    {
        count("cleave_server_ttft_seconds_sum", ms_since(call.start) / 1000);
        count("cleave_server_ttft_seconds_count");
    }

    /// Adds to a metric.
    void count(const std::string &name, double more = 1)
    {
        const std::lock_guard<std::mutex> lock(mutex_);
        counters_[name] += more;
    }

    /// OpenMetrics text of what is counted here.
    std::string metrics() const
    {
        const std::lock_guard<std::mutex> lock(mutex_);
        std::string out = "cleave_server_requests_running " + std::to_string(running) + "\n";
        for (const auto &[name, value] : counters_)
            out += name + " " + json(value).dump() + "\n";
        return out;
    }

private:
    /// httplib's, with a backlog that a burst of clients fits in.
    struct Listener : httplib::Server {
        void deepen_backlog() { ::listen(svr_sock_, 1024); }
    };

    static void send_error(httplib::Response &response, const ApiError &error)
    {
        response.status = error.status;
        if (error.status == 429)
            response.set_header("Retry-After", "1");
        response.set_content(error.text(), "application/json");
    }

    /// httplib 0.11 does not tell a handler its socket. It is the one between these two addresses.
    static int socket_of(const httplib::Request &request)
    {
        using Address = std::pair<std::string, int>;
        const auto address = [](int fd, int (*end)(int, sockaddr *, socklen_t *)) -> Address {
            sockaddr_storage storage{};
            socklen_t size = sizeof storage;
            auto *where = reinterpret_cast<sockaddr *>(&storage);
            char host[NI_MAXHOST], port[NI_MAXSERV];
            if (end(fd, where, &size) != 0 ||
                getnameinfo(where, size, host, sizeof host, port, sizeof port, NI_NUMERICHOST | NI_NUMERICSERV) != 0)
                return {};
            return {host, std::atoi(port)};
        };
        for (const auto &entry : std::filesystem::directory_iterator("/proc/self/fd")) {
            const int fd = std::atoi(entry.path().filename().c_str());
            if (address(fd, getpeername) == Address(request.remote_addr, request.remote_port) &&
                address(fd, getsockname) == Address(request.local_addr, request.local_port))
                return fd;
        }
        return -1;
    }

    void count_answer(const std::string &path, int status)
    {
        count("cleave_server_requests_total{path=\"" + path + "\",code=\"" + std::to_string(status) + "\"}");
    }

    Listener server_;
    std::set<std::string> paths_;
    mutable std::mutex mutex_; // over counters_
    std::map<std::string, double> counters_; // by name and labels
};

/// Gives a whole answer. The request runs until it is written.
inline void send(const Call &call, httplib::Response &response, const std::string &text)
{
    const auto write = [call, text](std::size_t from, std::size_t n, httplib::DataSink &sink) {
        return sink.write(text.data() + from, n);
    };
    response.set_content_provider(text.size(), "application/json", write);
}

/// Gives an answer whose pieces `run` writes, after the handler has returned. An ApiError that it throws is written
/// between `before_error` and `after_error`. What `run` keeps lives until the answer has ended.
inline void stream(const Call &call, httplib::Response &response, const char *type, const char *before_error,
                   const char *after_error, std::function<void(const Write &)> run)
{
    response.set_header("Cache-Control", "no-cache");
    response.set_chunked_content_provider(type, [=](std::size_t, httplib::DataSink &sink) {
        const Write write = [&](const std::string &text) {
            if (!sink.write(text.data(), text.size()))
                throw ClientGone();
        };
        try { // nothing may leave: httplib calls this outside of its own try
            try {
                run(write);
            } catch (const ApiError &error) {
                write(before_error + error.text() + after_error);
            } catch (const std::exception &error) {
                std::fprintf(stderr, "%s: %s\n", call.path.c_str(), error.what());
                write(before_error + failed(error.what()).text() + after_error);
            }
            sink.done();
            return true;
        } catch (const ClientGone &) {
            return false;
        }
    });
}

/// A stream of server-sent events, with the trace of its request among them if the client asked for that.
class Events {
public:
    explicit Events(const Call &call) : traced_(call.traced), start_(call.start) {}

    /// What was traced before comes first.
    void begin(const Write &write)
    {
        write_ = write;
        if (!early_.empty())
            write_(early_);
    }
    void write(const std::string &event) { write_(event); }

    void trace(const std::string &phase, json fields) { trace_at(phase, ms_since(start_), std::move(fields)); }
    void trace_at(const std::string &phase, double ms, json fields)
    {
        if (!traced_)
            return;
        fields["phase"] = phase;
        fields["ms"] = ms;
        const std::string event = "event: trace\ndata: " + dump(fields) + "\n\n";
        if (write_)
            write_(event);
        else
            early_ += event;
    }

private:
    bool traced_;
    Clock::time_point start_;
    std::string early_;
    Write write_;
};
