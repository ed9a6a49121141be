// The paths that every role has, and the way from a generation request to its answer.
#pragma once

#include "answer.hpp"
#include "http.hpp"
#include "openai.hpp"

#include <ctime>
#include <fstream>
#include <sstream>

/// Adds the paths that every server has. `models` lists the names of its models; `health` has a status; `metrics` is
/// text.
inline void route_common(HttpServer &server, const Service &service, const std::string &page, std::function<std::vector<std::string>()> models,
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
    server.route("GET", "/health", [=, &service](const auto &, httplib::Response &response) {
        json body = health();
        if (service.closing)
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
        stream(response, "text/event-stream", "data: ", "\n\n", run);
    else
        send(call, response, work->whole());
}

/// Adds the paths that generate. Only a worker takes the fields of fronts and routers.
inline void route_generations(HttpServer &server, bool is_worker, const Guard &guard,
                              std::function<void(const Call &, OpenAiRequest, httplib::Response &)> generate)
{
    for (const bool chat : {false, true})
        server.route_generation(generation_paths[chat], [=](const Call &call, const auto &request, auto &response) {
            generate(call, parse_openai(chat, request.body, is_worker), response);
        }, guard);
}
