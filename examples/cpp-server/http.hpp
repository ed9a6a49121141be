// The HTTP side, the same for every role: routes, and errors in the form of OpenAI's API.
#pragma once

#include "connections.hpp"
#include "service.hpp"

#include <cstdio>
#include <set>

/// Checks the head of a request before its body is read, and returns a check of the body. Both throw ApiError.
using Guard = std::function<std::function<void(const std::string &body)>(const httplib::Request &)>;

class HttpServer {
public:
    using Handler = std::function<void(const httplib::Request &, httplib::Response &)>;
    using GenerationHandler = std::function<void(const Call &, const httplib::Request &, httplib::Response &)>;

    HttpServer(Service &service, std::size_t max_connections)
        : service_(service), connections_(max_connections, [this](Connection &c) { return server_.answer(c); }, too_many())
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
            service_.metrics.count("cleave_server_requests_total", labels("other", status));
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
            service_.metrics.count("cleave_server_requests_total", labels(label, response.status));
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
    void route_generation(const std::string &path, GenerationHandler handler, Guard guard = nullptr)
    {
        const auto count_and_handle = [=](const httplib::Request &request, httplib::Response &response) {
            const auto is_gone = [socket = Connections::current()->socket()] {
                pollfd end{socket, POLLRDHUP, 0};
                return ::poll(&end, 1, 0) > 0;
            };
            const bool traced = request.get_header_value("X-Cleave-Trace") == "1";
            handler(service_.begin(request.get_header_value("X-Request-Id"), traced, is_gone), request, response);
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

    Service &service_;
    Listener server_;
    Connections connections_;
    std::set<std::string> paths_;
};

