#include "upstream.hpp"

void Inbox::put(Part part)
{
    const std::lock_guard<std::mutex> lock(mutex_);
    parts_.push_back(std::move(part));
    changed_.notify_one();
}

std::optional<Part> Inbox::take(std::chrono::milliseconds patience)
{
    std::unique_lock<std::mutex> lock(mutex_);
    if (!changed_.wait_for(lock, patience, [this] { return !parts_.empty(); }))
        return std::nullopt;
    Part part = std::move(parts_.front());
    parts_.pop_front();
    return part;
}

Upstream::Upstream(Inbox &inbox, const std::string &url, const std::string &path, httplib::Headers headers, std::string body)
    : inbox_(inbox), id_(inbox.new_id()), client_(url)
{
    client_.set_tcp_nodelay(true);
    client_.set_connection_timeout(1);
    client_.set_read_timeout(24 * 3600); // who waits for the answer knows when it is too long
    httplib::Request request;
    request.method = "POST";
    request.path = path;
    request.headers = std::move(headers);
    request.body = std::move(body);
    reader_ = std::thread([this, request = std::move(request)] { run(request); });
}

void Upstream::run(const httplib::Request &request)
{
    httplib::Request reading = request;
    reading.response_handler = [this](const httplib::Response &response) {
        inbox_.put({Part::Head, id_, response.status});
        return !stopped_;
    };
    reading.content_receiver = [this](const char *data, std::size_t n, std::uint64_t, std::uint64_t) {
        inbox_.put({Part::Data, id_, 0, std::string(data, n)});
        return !stopped_;
    };
    const bool whole = client_.send(reading) != nullptr;
    inbox_.put({whole ? Part::End : Part::Broken, id_});
    ended_ = true;
}

Upstream::~Upstream()
{
    for (stopped_ = true; !ended_; std::this_thread::sleep_for(std::chrono::milliseconds(1)))
        client_.stop(); // does nothing to a request that has not been sent yet: again, then
    reader_.join();
}
