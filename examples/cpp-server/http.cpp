#include "http.hpp"

#include <cstdio>

#include <dirent.h>
#include <netdb.h>
#include <poll.h>
#include <sys/socket.h>

namespace {

constexpr std::size_t body_limit = 16 << 20;
constexpr int nesting_limit = 64;
constexpr std::size_t threads = 512; // one for each connection

/// Address and port of one end of a connection; an empty address if the descriptor is none.
using End = int (*)(int, sockaddr *, socklen_t *);
std::pair<std::string, int> address_of(int fd, End end)
{
    sockaddr_storage storage{};
    socklen_t size = sizeof storage;
    char host[NI_MAXHOST], port[NI_MAXSERV];
    auto *address = reinterpret_cast<sockaddr *>(&storage);
    if (end(fd, address, &size) != 0 || (storage.ss_family != AF_INET && storage.ss_family != AF_INET6) ||
        getnameinfo(address, size, host, sizeof host, port, sizeof port, NI_NUMERICHOST | NI_NUMERICSERV) != 0)
        return {};
    return {host, std::atoi(port)};
}

template <class Visit> void each_descriptor(Visit visit)
{
    DIR *directory = opendir("/proc/self/fd");
    if (directory == nullptr)
        return;
    while (const dirent *entry = readdir(directory))
        if (entry->d_name[0] >= '0' && entry->d_name[0] <= '9')
            visit(std::atoi(entry->d_name));
    closedir(directory);
}

/// httplib 0.11 does not tell a handler its socket. It is the one between these two addresses.
int socket_of(const httplib::Request &request)
{
    static thread_local int last = -1; // a thread stays with a connection
    const std::pair<std::string, int> peer(request.remote_addr, request.remote_port);
    const std::pair<std::string, int> here(request.local_addr, request.local_port);
    const auto matches = [&](int fd) { return address_of(fd, getpeername) == peer && address_of(fd, getsockname) == here; };
    if (last < 0 || !matches(last)) {
        last = -1;
        each_descriptor([&](int fd) {
            if (last < 0 && matches(fd))
                last = fd;
        });
    }
    return last;
}

void send_error(httplib::Response &response, const ApiError &error)
{
    response.status = error.status;
    if (error.status == 429)
        response.set_header("Retry-After", "1");
    response.set_content(error.text(), "application/json");
}

} // namespace

std::string ApiError::text() const
{
    const auto or_null = [](const std::string &text) { return text.empty() ? json() : json(text); };
    return dump(nlohmann::ordered_json{
        {"error", {{"message", what()}, {"type", type}, {"param", or_null(param)}, {"code", or_null(code)}}}});
}

ApiError invalid(const std::string &param, const std::string &message)
{
    return ApiError(400, "invalid_request_error", message, param);
}
ApiError unavailable(const std::string &message) { return ApiError(503, "service_unavailable", message); }
ApiError failed(const std::string &message) { return ApiError(500, "server_error", message); }

json parse_object(const std::string &text)
{
    json value;
    try {
        value = json::parse(text, [](int depth, json::parse_event_t, json &) {
            if (depth > nesting_limit)
                throw invalid("", "the body is nested too deeply");
            return true;
        });
    } catch (const json::exception &e) {
        throw invalid("", std::string("the body is not JSON: ") + e.what());
    }
    if (!value.is_object())
        throw invalid("", "the body is not a JSON object");
    return value;
}

double ms_since(Clock::time_point start)
{
    return std::chrono::duration<double, std::milli>(Clock::now() - start).count();
}

Client::Client(const httplib::Request &request) : fd_(socket_of(request)) {}

bool Client::gone() const
{
    pollfd end{fd_, POLLRDHUP, 0};
    return fd_ >= 0 && ::poll(&end, 1, 0) > 0;
}

void stream(Exchange &exchange, const char *type, const char *before_error, const char *after_error,
            std::function<void(const Write &)> run)
{
    exchange.response.set_header("Cache-Control", "no-cache");
    exchange.response.set_chunked_content_provider(type, [=, in_hand = exchange.in_hand](std::size_t, httplib::DataSink &sink) {
        const Write write = [&](const std::string &text) {
            if (!sink.write(text.data(), text.size()))
                throw ClientGone();
        };
        const auto write_error = [&](const ApiError &error) { write(before_error + error.text() + after_error); };
        try { // nothing may leave: httplib calls this outside of its own try
            try {
                run(write);
            } catch (const ApiError &error) {
                write_error(error);
            } catch (const std::exception &error) {
                std::fprintf(stderr, "a stream has failed: %s\n", error.what());
                write_error(failed(error.what()));
            }
            sink.done();
            return true;
        } catch (const ClientGone &) {
            return false;
        }
    });
}

HttpServer::HttpServer()
{
    server_.new_task_queue = [] { return new httplib::ThreadPool(threads); };
    server_.set_tcp_nodelay(true);
    server_.set_keep_alive_max_count(1000000);
    server_.set_keep_alive_timeout(5);
    server_.set_read_timeout(60);
    server_.set_write_timeout(30); // a client that reads nothing for so long is gone
    server_.set_socket_options([](int fd) { // httplib's own lets a second server take the port as well
        const int yes = 1;
        setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof yes);
    });

    const char *everything = "[\\s\\S]*"; // dispatch() finds the route, so that 404 and 405 can be told apart
    const auto plain = [this](const auto &request, auto &response) { dispatch(request, response, {}); };
    const auto with_body = [this](const auto &request, auto &response, const auto &reader) {
        read_and_dispatch(request, response, reader);
    };
    server_.Get(everything, plain);
    server_.Options(everything, plain);
    const httplib::Server::HandlerWithContentReader reads = with_body;
    server_.Post(everything, reads).Put(everything, reads).Patch(everything, reads).Delete(everything, reads);
    server_.set_error_handler(httplib::Server::Handler([](const httplib::Request &, httplib::Response &response) {
        if (response.body.empty()) // httplib's own: a request line that is none, a header that is too long
            send_error(response, ApiError(response.status, "invalid_request_error", "the request cannot be read"));
    }));
    server_.set_post_routing_handler([this](const httplib::Request &request, httplib::Response &response) {
        const std::lock_guard<std::mutex> lock(mutex_);
        answered_[{known_path(request.path), response.status}]++;
    });
}

std::string HttpServer::known_path(const std::string &path) const { return routes_.count(path) != 0 ? path : "other"; }

void HttpServer::route(const std::string &method, const std::string &path, Handler handler)
{
    routes_[path][method] = std::move(handler);
}

void HttpServer::route_generation(const std::string &path, Handler handler)
{
    route("POST", path, [this, handler = std::move(handler)](Exchange &exchange) {
        running++;
        exchange.in_hand.reset(static_cast<void *>(nullptr), [this](void *) { running--; });
        if (closing) // looked at after counting: what is counted is waited for
            throw unavailable("the server is shutting down");
        handler(exchange);
    });
}

void HttpServer::read_and_dispatch(const httplib::Request &request, httplib::Response &response,
                                   const httplib::ContentReader &reader)
{
    std::string body;
    std::size_t size = 0;
    const auto keep = [&](const char *data, std::size_t n) { // reads on where it is too much: then the client hears why
        size += n;
        if (size <= body_limit)
            body.append(data, n);
        return true;
    };
    bool read = true;
    if (request.is_multipart_form_data())
        read = reader([](const httplib::MultipartFormData &) { return true; }, keep);
    else if (request.has_header("Content-Length") || request.has_header("Transfer-Encoding"))
        read = reader(keep);
    if (!read)
        send_error(response, invalid("", "the body did not come whole"));
    else if (size > body_limit)
        send_error(response, ApiError(413, "invalid_request_error", "the body is larger than 16 MiB"));
    else
        dispatch(request, response, std::move(body));
}

void HttpServer::dispatch(const httplib::Request &request, httplib::Response &response, std::string body)
{
    try {
        const auto methods = routes_.find(request.path);
        if (methods == routes_.end())
            throw ApiError(404, "invalid_request_error", "there is nothing at " + request.path);
        const auto handler = methods->second.find(request.method == "HEAD" ? "GET" : request.method);
        if (handler == methods->second.end()) {
            std::string allowed;
            for (const auto &method : methods->second)
                allowed += (allowed.empty() ? "" : ", ") + method.first;
            response.set_header("Allow", allowed);
            throw ApiError(405, "invalid_request_error", request.method + " is not for this path");
        }
        Exchange exchange{request, response, std::move(body), Client(request), Clock::now()};
        handler->second(exchange);
        if (response.status == -1)
            response.status = 200;
    } catch (const ApiError &error) {
        send_error(response, error);
    } catch (const ClientGone &) {
        send_error(response, ApiError(499, "invalid_request_error", "the client has gone")); // for the counter
    } catch (const std::exception &error) {
        std::fprintf(stderr, "%s: %s\n", request.path.c_str(), error.what());
        send_error(response, failed(error.what()));
    }
}

int HttpServer::bind(const std::string &host, int port)
{
    port_ = port;
    if (port == 0)
        port_ = server_.bind_to_any_port(host);
    else if (!server_.bind_to_port(host, port))
        port_ = -1;
    if (port_ < 0)
        throw std::runtime_error("cannot listen at " + host + ":" + std::to_string(port));
    server_.deepen_backlog();
    return port_;
}

bool HttpServer::serve() { return server_.listen_after_bind() && closing; }

void HttpServer::stop()
{
    server_.stop();
    // Else their threads wait for the next request as long as keep-alive lasts, or for a client that reads nothing.
    each_descriptor([&](int fd) {
        if (address_of(fd, getsockname).second == port_ && address_of(fd, getpeername).second != 0)
            ::shutdown(fd, SHUT_RDWR);
    });
}

void HttpServer::check(const Client &client) const
{
    if (client.gone())
        throw ClientGone();
    if (aborting)
        throw unavailable("the server is shutting down");
}

void HttpServer::count_first_token(Clock::time_point start)
{
    const std::lock_guard<std::mutex> lock(mutex_);
    ttft_seconds_ += ms_since(start) / 1000;
    ttft_count_++;
}

std::string HttpServer::metrics() const
{
    const std::lock_guard<std::mutex> lock(mutex_);
    std::string out = "# TYPE cleave_server_requests counter\n";
    for (const auto &[key, count] : answered_)
        out += "cleave_server_requests_total{path=\"" + key.first + "\",code=\"" + std::to_string(key.second) + "\"} " +
               std::to_string(count) + "\n";
    out += "# TYPE cleave_server_requests_running gauge\ncleave_server_requests_running " + std::to_string(running) + "\n";
    out += "# TYPE cleave_server_ttft_seconds summary\n# UNIT cleave_server_ttft_seconds seconds\n";
    out += "cleave_server_ttft_seconds_sum " + std::to_string(ttft_seconds_) + "\n";
    out += "cleave_server_ttft_seconds_count " + std::to_string(ttft_count_) + "\n";
    return out;
}
