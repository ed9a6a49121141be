// The HTTP side, the same for every role: routes, errors in the form of OpenAI's API, streams, counters.
#pragma once

#include "connections.hpp"
#include "metrics.hpp"

#include <nlohmann/json.hpp>

#include <atomic>
#include <cstdio>
#include <set>
#include <stdexcept>

using json = nlohmann::json;

/// Interval between checks whether the client is still connected.
constexpr std::chrono::milliseconds look_around(50);

/// JSON on one line. Bytes that are not UTF-8 become U+FFFD.
inline std::string dump(const json &value) { return value.dump(-1, ' ', false, json::error_handler_t::replace); }

inline double ms_since(Clock::time_point start, Clock::time_point end = Clock::now())
{
    return std::chrono::duration<double, std::milli>(end - start).count();
}

/// The body of an error answer, {"error": ...}.
struct ApiError : std::runtime_error {
    int status;
    json error;

    ApiError(int status, const char *type, const std::string &message, const json &param = {}, const json &code = {})
        : std::runtime_error(message), status(status),
          error({{"message", message}, {"type", type}, {"param", param}, {"code", code}})
    {
    }
    /// An error that another server has returned.
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

/// The client of an answer has closed its connection.
struct ClientGone {};

/// A client's request. It counts as running while a copy of it exists.
struct Call {
    std::string path, body, id; // id: X-Request-Id
    bool traced;                // X-Cleave-Trace
    int socket;
    Clock::time_point start;
    std::shared_ptr<void> running;
};

/// Writes a piece of a streamed answer. Throws ClientGone.
using Write = std::function<void(const std::string &)>;

/// Checks the head of a request before its body is read, and returns a check of the body. Both throw ApiError.
using Guard = std::function<std::function<void(const std::string &body)>(const httplib::Request &)>;

class HttpServer {
public:
    using Handler = std::function<void(const httplib::Request &, httplib::Response &)>;

    explicit HttpServer(std::size_t max_connections)
        : connections_(max_connections, [this](Connection &c) { return server_.answer(c); }, too_many())
    {
        server_.set_keep_alive_timeout(idle_timeout.count()); // sent to clients
        server_.set_keep_alive_max_count(1000000);
        server_.set_payload_max_length(16 << 20);
        server_.set_socket_options([](int fd) { // httplib's default would let a second server share the port
            const int yes = 1;
            setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof yes);
        });
        server_.set_error_handler(httplib::Server::Handler([this](const auto &request, auto &response) {
            if (!response.body.empty())
                return; // a handler has written the answer
            const bool other_method = response.status == 404 && paths_.count(request.path) != 0;
            const int status = other_method ? 405 : response.status;
            const std::string what = status == 413 ? "the body is too large for" : "there is no";
            const std::string request_line = " " + request.method + " " + request.path;
            send_error(response, ApiError(status, "invalid_request_error", what + request_line));
            metrics.count("cleave_server_requests_total", labels("other", status));
        }));
    }

    /// `path` may end in a regular expression behind "/(". The handler may throw ApiError and ClientGone.
    void route(const std::string &method, const std::string &path, Handler handler, Guard guard = nullptr)
    {
        const std::string label = path.substr(0, path.find("/(")); // no patterns: labels must not depend on clients
        const auto answer = [=](httplib::Response &response, const std::function<void(bool &)> &handle) {
            bool read = false; // whether the body was read
            try {
                handle(read);
                if (response.status == -1)
                    response.status = 200;
            } catch (const ApiError &error) {
                send_error(response, error);
            } catch (const ClientGone &) {
                send_error(response, ApiError(499, "invalid_request_error", "the client has gone")); // counted only
            } catch (const std::exception &error) {
                std::fprintf(stderr, "%s: %s\n", path.c_str(), error.what());
                send_error(response, failed(error.what()));
            }
            Connections::current()->must_close = !read;
            metrics.count("cleave_server_requests_total", labels(label, response.status));
        };
        paths_.insert(path);
        if (method == "GET") {
            server_.Get(path, [=](const httplib::Request &request, httplib::Response &response) {
                connections_.answering();
                answer(response, [&](bool &read) {
                    read = true;
                    handler(request, response);
                });
            });
            return;
        }
        // The handler reads the body itself, because httplib limits bodies to 8 KiB if curl labels them as a form.
        server_.Post(path, [=](const auto &request, auto &response, const httplib::ContentReader &reader) {
            answer(response, [&](bool &read) {
                const auto check_body = guard ? guard(request) : nullptr;
                httplib::Request whole = request;
                const bool has_body = request.has_header("Content-Length") || request.has_header("Transfer-Encoding");
                const auto append = [&](const char *data, std::size_t n) {
                    whole.body.append(data, n);
                    return true;
                };
                if (request.is_multipart_form_data())
                    throw invalid(nullptr, "the body is a form, and not JSON");
                if (has_body && !reader(append))
                    throw ApiError(response.status == 413 ? 413 : 400, "invalid_request_error",
                                   response.status == 413 ? "the body is too large" : "the body did not come");
                read = true;
                connections_.answering();
                if (check_body)
                    check_body(whole.body);
                handler(whole, response);
            });
        });
    }

    /// Answers GET with the result of `text`.
    void get(const std::string &path, const char *type, std::function<std::string(const httplib::Request &)> text)
    {
        route("GET", path, [=](const httplib::Request &request, httplib::Response &response) {
            response.set_content(text(request), type);
        });
    }

    /// Adds a POST of a generation request. The shutdown waits for running ones and refuses new ones.
    void route_generation(const std::string &path, std::function<void(const Call &, httplib::Response &)> handler,
                          Guard guard = nullptr)
    {
        const auto count_and_handle = [=](const httplib::Request &request, httplib::Response &response) {
            running++;
            const std::shared_ptr<void> in_hand(static_cast<void *>(nullptr), [this](void *) { running--; });
            const bool traced = request.get_header_value("X-Cleave-Trace") == "1";
            const std::string id = request.get_header_value("X-Request-Id");
            const int socket = Connections::current()->socket();
            const Call call{request.path, request.body, id, traced, socket, Clock::now(), in_hand};
            if (closing) // checked after counting, because the shutdown waits for counted requests
                throw unavailable("the server is shutting down");
            handler(call, response);
        };
        route("POST", path, count_and_handle, guard);
    }

    /// Listens at a port (0: a free one) and returns it. Throws std::runtime_error.
    int bind(const std::string &host, int port)
    {
        const int taken = port == 0 ? server_.bind_to_any_port(host) : server_.bind_to_port(host, port) ? port : -1;
        if (taken < 0)
            throw std::runtime_error("cannot listen at " + host + ":" + std::to_string(port));
        server_.deepen_backlog();
        return taken;
    }

    /// Serves until the process ends.
    [[noreturn]] void serve() { connections_.serve(server_.socket()); }

    /// Set at the first signal: new generation requests are refused.
    std::atomic<bool> closing{false};
    /// Set when the shutdown stops waiting: running requests are cancelled.
    std::atomic<bool> aborting{false};
    std::atomic<int> running{0};

    /// Throws if the client is gone, or the shutdown has stopped waiting. Called while waiting for an answer.
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
        metrics.count("cleave_server_time_to_first_token_seconds_sum", "", ms_since(call.start) / 1000);
        metrics.count("cleave_server_time_to_first_token_seconds_count");
    }

    Metrics metrics;

    /// The server's own counters as OpenMetrics text, without its end.
    std::string metrics_text(Metrics::Samples gauges = {})
    {
        gauges["cleave_server_requests_running"] = running;
        return metrics.text(gauges);
    }

private:
    /// httplib's server, serving connections that it has not accepted itself.
    struct Listener : httplib::Server {
        void deepen_backlog() { ::listen(svr_sock_, 1024); }
        int socket() const { return svr_sock_; }
        bool answer(Connection &connection)
        {
            bool closed = false;
            return process_request(connection, false, closed, nullptr) && !closed;
        }
    };

    static std::string too_many()
    {
        const std::string body = unavailable("too many connections are being answered").text();
        return "HTTP/1.1 503 Service Unavailable\r\nConnection: close\r\nContent-Type: application/json\r\n"
               "Content-Length: " + std::to_string(body.size()) + "\r\n\r\n" + body;
    }

    static std::string labels(const std::string &path, int status)
    {
        return "path=\"" + path + "\",code=\"" + std::to_string(status) + "\"";
    }

    static void send_error(httplib::Response &response, const ApiError &error)
    {
        response.status = error.status;
        if (error.status == 429)
            response.set_header("Retry-After", "1");
        response.set_content(error.text(), "application/json");
    }

    Listener server_;
    Connections connections_;
    std::set<std::string> paths_;
};

/// Sends a whole answer. The request counts as running until the answer is written.
inline void send(const Call &call, httplib::Response &response, const std::string &text)
{
    const auto write = [call, text](std::size_t from, std::size_t n, httplib::DataSink &sink) {
        return sink.write(text.data() + from, n);
    };
    response.set_content_provider(text.size(), "application/json", write);
}

/// Sends an answer whose pieces `run` writes after the handler has returned. An ApiError that it throws is written
/// between `before_error` and `after_error`. `run` is destroyed when the answer has ended.
inline void stream(const Call &call, httplib::Response &response, const char *type, const char *before_error,
                   const char *after_error, std::function<void(const Write &)> run)
{
    response.set_header("Cache-Control", "no-cache");
    response.set_chunked_content_provider(type, [=](std::size_t, httplib::DataSink &sink) {
        const Write write = [&](const std::string &text) {
            if (!sink.write(text.data(), text.size()))
                throw ClientGone();
        };
        try { // httplib does not catch exceptions here
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

    /// Writes the trace events from before the header.
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
