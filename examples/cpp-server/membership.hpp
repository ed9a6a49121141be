// A worker's side of "Workers" in ../README.md: it reports to its front, and a decode worker pairs with the prefill
// workers that it hears of.
#ifndef MEMBERSHIP_HPP
#define MEMBERSHIP_HPP

#include "engine.hpp"

#include <map>
#include <string>
#include <thread>

class Membership {
public:
    /// Reports as `url` from now on.
    Membership(EngineHost &host, std::string url);
    ~Membership() { leave(); }

    /// Tells the front that this worker takes no more requests. [BLOCKING] For a second at most, if nobody is there.
    void leave();

private:
    /// A prefill worker, as far as importing from it goes.
    struct Peer {
        std::vector<std::uint8_t> address;
        bool paired = false;
        std::string detail;         // once it is paired
        Clock::time_point next_try; // until then
    };

    void report_until_leaving();
    void pair_until_leaving();
    std::string report();
    void take_list(const std::string &text);
    void pair(const std::string &url, const std::vector<std::uint8_t> &address);

    EngineHost &host_;
    const std::string url_;
    std::mutex mutex_; // over what follows
    std::condition_variable changed_;
    bool leaving_ = false;
    std::map<std::string, Peer> peers_; // by URL
    std::thread reporter_, pairer_;     // pairing blocks, and reports must not wait for it
};

#endif
