// The server's own metrics, in OpenMetrics text.
#pragma once

#include <cstdio>
#include <map>
#include <mutex>
#include <string>
#include <vector>

/// Families in the order of the text. A sample's name is its family's, with a suffix if the type requires one.
struct Family {
    const char *name, *type, *help;
};

constexpr Family families[] = {
    {"cleave_server_requests", "counter", "HTTP requests answered, by path and status."},
    {"cleave_server_requests_running", "gauge", "Generation requests that are being answered."},
    {"cleave_server_time_to_first_token_seconds", "summary", "Time from a generation request to its first token."},
    {"cleave_front_workers", "gauge", "Workers of a front that are up, by role."},
    {"cleave_front_moved", "counter", "Requests that went on at another decode worker after theirs was lost."},
};

class Metrics {
public:
    using Samples = std::map<std::string, double>; // by name and labels

    Metrics()
    {
        count("cleave_server_time_to_first_token_seconds_sum", "", 0);
        count("cleave_server_time_to_first_token_seconds_count", "", 0);
    }

    /// Adds to a counter. `labels` are in OpenMetrics form, without braces.
    void count(const std::string &name, const std::string &labels = "", double more = 1)
    {
        const std::lock_guard<std::mutex> lock(mutex_);
        counted_[labels.empty() ? name : name + "{" + labels + "}"] += more;
    }

    /// Returns the counters and `gauges` as text.
    std::string text(const Samples &gauges)
    {
        Samples samples = gauges;
        {
            const std::lock_guard<std::mutex> lock(mutex_);
            samples.insert(counted_.begin(), counted_.end());
        }
        std::string out;
        for (const Family &family : families) {
            std::string lines;
            for (const auto &[name, value] : samples)
                if (is_of(family, name.substr(0, name.find('{'))))
                    lines += name + " " + number(value) + "\n";
            const std::string name = family.name;
            const std::string end = "_seconds";
            const bool timed = name.size() > end.size() && name.compare(name.size() - end.size(), end.size(), end) == 0;
            if (!lines.empty())
                out += "# HELP " + name + " " + family.help + "\n# TYPE " + name + " " + family.type + "\n" +
                       (timed ? "# UNIT " + name + " seconds\n" : "") + lines;
        }
        return out;
    }

private:
    static bool is_of(const Family &family, const std::string &sample)
    {
        const std::string type = family.type, name = family.name;
        if (type == "counter")
            return sample == name + "_total";
        if (type == "summary")
            return sample == name + "_sum" || sample == name + "_count";
        return sample == name;
    }
    static std::string number(double value)
    {
        char text[32];
        std::snprintf(text, sizeof text, "%.17g", value);
        return text;
    }

    std::mutex mutex_; // guards the members below
    Samples counted_;
};
