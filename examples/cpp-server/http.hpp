// The HTTP side, the same for every role: routes, limits, errors as OpenAI's API has them, the end.
#ifndef HTTP_HPP
#define HTTP_HPP

#include <httplib.h>
#include <nlohmann/json.hpp>

#include <atomic>
#include <chrono>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <stdexcept>
#include <string>
#include <utility>

using json = nlohmann::json;
using Clock = std::chrono::steady_clock;

/// What goes to a client as {"error": ...}.
struct ApiError : std::runtime_error {
    int status;
    std::string type, param, code; // empty: null

    ApiError(int status, std::string type, const std::string &message, std::string param = {}, std::string code = {})
        : std::runtime_error(message), status(status), type(std::move(type)), param(std::move(param)), code(std::move(code))
    {
    }
    std::string text() const; // JSON
};

ApiError invalid(const std::string &param, const std::string &message); // 400
ApiError unavailable(const std::string &message);                      // 503
ApiError failed(const std::string &message);                           // 500

/// Thrown where an answer is written, or waited for, that nobody reads any more.
struct ClientGone {};

/// JSON on one line. What is not UTF-8 becomes U+FFFD.
template <class Json> std::string dump(const Json &value)
{
    return value.dump(-1, ' ', false, Json::error_handler_t::replace);
}

/// A JSON object from outside: depth is limited, as nlohmann::json writes and copies recursively.
/// Throws ApiError.
json parse_object(const std::string &text);

double ms_since(Clock::time_point start);

/// The client's end of a connection.
class Client {
public:
    explicit Client(const httplib::Request &request);
    bool gone() const;

private:
    int fd_; // open for as long as the request is in hand
};

/// A request in hand.
struct Exchange {
    const httplib::Request &request;
    httplib::Response &response;
    std::string body;
    Client client;
    Clock::time_point start;
    std::shared_ptr<void> in_hand{}; // while it lives the request is counted as running
};

/// Writes a piece of a streamed answer. Throws ClientGone.
using Write = std::function<void(const std::string &)>;

/// Gives an answer whose pieces `run` writes, after the handler has returned. An ApiError that it throws is written
/// between `before_error` and `after_error`. What `run` keeps lives until the answer has ended.
void stream(Exchange &exchange, const char *type, const char *before_error, const char *after_error,
            std::function<void(const Write &)> run);

class HttpServer {
public:
    using Handler = std::function<void(Exchange &)>;

    HttpServer();

    /// A handler may throw ApiError and ClientGone.
    void route(const std::string &method, const std::string &path, Handler handler);
    /// The same for what is waited for at the end, and refused once that has begun.
    void route_generation(const std::string &path, Handler handler);

    /// Takes the port, 0 for a free one; returns it. Throws std::runtime_error.
    int bind(const std::string &host, int port);
    /// Serves until stop(). Whether that was how it ended.
    bool serve();
    /// Ends serve(), and every connection.
    void stop();

    /// From the first signal on: no new generations.
    std::atomic<bool> closing{false};
    /// Ends what still runs.
    std::atomic<bool> aborting{false};
    std::atomic<int> running{0};

    /// Throws if who asked is gone, or the server can wait no longer. Called while an answer is waited for.
    void check(const Client &client) const;

    void count_first_token(Clock::time_point start);
    /// OpenMetrics text of what is counted here.
    std::string metrics() const;

private:
    /// httplib's, with a backlog that a burst of clients fits in.
    struct Listener : httplib::Server {
        void deepen_backlog() { ::listen(svr_sock_, 1024); }
    };

    void dispatch(const httplib::Request &request, httplib::Response &response, std::string body);
    void read_and_dispatch(const httplib::Request &request, httplib::Response &response,
                           const httplib::ContentReader &reader);
    std::string known_path(const std::string &path) const;

    Listener server_;
    int port_ = 0;
    std::map<std::string, std::map<std::string, Handler>> routes_; // by path and method
    mutable std::mutex mutex_;                                     // over what follows
    std::map<std::pair<std::string, int>, std::uint64_t> answered_;
    double ttft_seconds_ = 0;
    std::uint64_t ttft_count_ = 0;
};

#endif
