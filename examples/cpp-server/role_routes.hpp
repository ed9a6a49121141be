// GET and POST /role, which show and switch the engine's role. See "Roles" in ../README.md.
#pragma once

#include "http.hpp"
#include "role.hpp"

#include <ctime>

/// A moment in UTC, as RFC 3339 writes it.
inline std::string rfc3339(std::chrono::nanoseconds since_1970)
{
    const auto whole = std::chrono::duration_cast<std::chrono::seconds>(since_1970);
    const std::time_t seconds = whole.count();
    std::tm parts{};
    gmtime_r(&seconds, &parts);
    char text[32], out[64];
    std::strftime(text, sizeof text, "%Y-%m-%dT%H:%M:%S", &parts);
    std::snprintf(out, sizeof out, "%s.%09lldZ", text, static_cast<long long>((since_1970 - whole).count()));
    return out;
}

/// Proves the role in effect: since when, and the requests that were open then.
inline json role_state(const RoleSwitch &roles, const cleave::Load &load)
{
    return {{"role", role_name(load.role())},
            {"since_step", load.role_since_step},
            {"since", rfc3339(roles.since_1970(load))},
            {"in_flight", {{"prefilling", load.prefilling_at_switch},
                           {"decoding", load.decoding_at_switch},
                           {"waiting", load.waiting_at_switch},
                           {"importing", load.importing_at_switch}}}};
}

/// Returns once the role is in effect. Throws ApiError.
inline cleave::Load switch_role(RoleSwitch &roles, cleave::Role role)
{
    const int caller = 0; // its address is this caller's own
    const std::shared_ptr<const void> turn(&caller, [&](const void *who) { roles.done(who); });
    for (;;) {
        if (const auto load = roles.ask(role, &caller))
            return *load;
        std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
}

inline void route_role(HttpServer &server, EngineHost &host, RoleSwitch &roles, const Guard &guard)
{
    server.get("/role", "application/json", [&](const auto &) {
        const auto load = host.engine.load();
        if (!load)
            throw to_api_error(load.error());
        return dump(role_state(roles, *load));
    });
    const auto post = [&](const httplib::Request &request, httplib::Response &response) {
        const json body = json::parse(request.body, nullptr, false);
        const std::string name = body.is_object() && body.contains("role") && body["role"].is_string() ? body["role"] : json("");
        for (const cleave::Role role : {cleave::Role::Mixed, cleave::Role::Prefill, cleave::Role::Decode})
            if (name == role_name(role))
                return response.set_content(dump(role_state(roles, switch_role(roles, role))), "application/json");
        throw invalid("role", "role must be mixed, prefill or decode");
    };
    server.route("POST", "/role", post, guard);
}
