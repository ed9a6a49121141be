#include "front.hpp"
#include "answer.hpp"
#include "openai.hpp"
#include "trace.hpp"
#include "upstream.hpp"

namespace {

constexpr std::chrono::milliseconds look_around(50);
constexpr int most_moves = 2;

/// A request on its way.
class Passage {
public:
    Passage(HttpServer &server, Registry &workers, std::atomic<std::uint64_t> &moved, const Exchange &exchange,
            GenerationRequest q)
        : server_(server), workers_(workers), moved_(moved), path_(exchange.request.path), client_(exchange.client),
          start_(exchange.start), trace_(exchange), q_(std::move(q)), id_(new_id(q_.chat)), sent_(q_.n_prompts() * q_.n)
    {
        q_.body.erase("kv_transfer_params"); // a client's own would be none of a front's
        if (!q_.seed)                        // wherever it is generated, the answer is the same
            q_.body["seed"] = random_number() >> 11;
    }

    /// Takes the request to its workers. The status of the decode worker's answer.
    int begin();
    /// That answer, if it is no stream.
    std::string whole();
    void stream(const Write &write);

private:
    httplib::Headers headers() const;
    void get_ticket();
    void take_prefill_part(const Part &part);
    void take_prefill_line(const json &line);
    void ask_decode();
    int open();
    Part wait();
    void move();
    bool pass_on(const std::string &event);
    void pass_trace_on(json fields);
    void tell(const std::string &event);

    HttpServer &server_;
    Registry &workers_;
    std::atomic<std::uint64_t> &moved_;
    std::string path_;
    Client client_;
    Clock::time_point start_;
    Trace trace_;
    GenerationRequest q_;
    std::string id_;

    Inbox inbox_;
    std::unique_ptr<Registry::Lease> prefill_, decode_;
    std::unique_ptr<Upstream> from_prefill_, from_decode_;
    std::string prefill_text_; // what came of a line
    json kv_transfer_params_;  // the ticket; null without one
    std::string decode_text_;  // what came of an event, or of a whole answer
    double decode_asked_ms_ = 0;
    int moves_ = 0;
    std::vector<std::size_t> sent_; // chunks of each choice that the client has
    bool has_token_ = false;
    std::string early_;             // traces of before the stream
    const Write *write_ = nullptr;
};

int Passage::begin()
{
    workers_.require_model(q_.model);
    decode_ = workers_.take_decode(q_.model, {});
    if (!decode_)
        throw unavailable("there is no decode worker");
    if (q_.n_prompts() == 1)
        prefill_ = workers_.take_prefill(*decode_);
    if (prefill_)
        get_ticket();
    ask_decode();
    return open();
}

httplib::Headers Passage::headers() const
{
    httplib::Headers out{{"Content-Type", "application/json"}, {"X-Request-Id", id_}};
    if (trace_.wanted())
        out.emplace("X-Cleave-Trace", "1");
    return out;
}

/// Gives the prompt to the prefill worker, and waits for the ticket. That comes before the prompt is computed: the rest
/// of the answer is read while the decode worker is at work.
void Passage::get_ticket()
{
    json body = q_.body;
    body["kv_transfer_params"] = {{"do_remote_decode", true}};
    tell(trace_.event("prefill", {{"worker", prefill_->url()}}));
    from_prefill_ = std::make_unique<Upstream>(inbox_, prefill_->url(), path_, headers(), body.dump());
    while (prefill_ && kv_transfer_params_.is_null()) {
        server_.check(client_);
        if (const auto part = inbox_.take(look_around))
            take_prefill_part(*part);
        else if (!prefill_->up())
            prefill_.reset();
    }
    if (!prefill_)
        from_prefill_.reset();
}

/// `prefill_` goes once nothing more is to come from there. Without a ticket the decode worker computes the prompt.
void Passage::take_prefill_part(const Part &part)
{
    if (!prefill_)
        return;
    if (part.kind == Part::Broken)
        prefill_->broke();
    if (part.kind == Part::Broken || part.kind == Part::End || (part.kind == Part::Head && part.status != 200))
        prefill_.reset();
    if (part.kind != Part::Data)
        return;
    prefill_text_ += part.data;
    for (std::size_t end; prefill_ && (end = prefill_text_.find('\n')) != std::string::npos;) {
        const json line = json::parse(prefill_text_.substr(0, end), nullptr, false);
        prefill_text_.erase(0, end + 1);
        take_prefill_line(line);
    }
}

void Passage::take_prefill_line(const json &line)
{
    if (!line.is_object() || line.contains("error")) {
        prefill_.reset();
    } else if (line.contains("kv_transfer_params")) {
        kv_transfer_params_ = line["kv_transfer_params"];
    } else if (line.contains("prefilled")) {
        const json &done = line["prefilled"];
        tell(trace_.event("prefilled", {{"worker", prefill_->url()},
                                        {"prompt_tokens", done.value("prompt_tokens", json())},
                                        {"cached_tokens", done.value("cached_tokens", json())},
                                        {"prefill_ms", done.value("ms", json())}}));
        prefill_.reset();
    }
}

void Passage::ask_decode()
{
    json body = q_.body, params = kv_transfer_params_;
    if (!params.is_null()) {
        const std::string ticket = params.value("ticket", "");
        tell(trace_.event("handoff", {{"worker", decode_->url()}, {"ticket_bytes", ticket.size() / 4 * 3}}));
    }
    if (moves_ > 0)
        params["resume"] = sent_;
    if (!params.is_null())
        body["kv_transfer_params"] = params;
    decode_text_.clear();
    decode_asked_ms_ = ms_since(start_);
    from_decode_ = std::make_unique<Upstream>(inbox_, decode_->url(), path_, headers(), body.dump());
}

/// The next part from the decode worker. Broken, also where that is silent.
Part Passage::wait()
{
    for (;;) {
        server_.check(client_);
        auto part = inbox_.take(look_around);
        if (part && part->from == from_decode_->id())
            return std::move(*part);
        if (part && from_prefill_ && part->from == from_prefill_->id())
            take_prefill_part(*part);
        if (!part && !decode_->up())
            return {Part::Broken, from_decode_->id()};
    }
}

/// Waits until a decode worker begins to answer. The status.
int Passage::open()
{
    for (;;) {
        const Part part = wait();
        if (part.kind == Part::Head && part.status != 503)
            return part.status;
        if (part.kind == Part::Broken)
            decode_->broke();
        move(); // also from one that is shutting down
    }
}

/// Goes on with another decode worker. Throws ApiError if there is none.
void Passage::move()
{
    from_decode_.reset();
    const std::string from = decode_->url();
    auto next = moves_ < most_moves ? workers_.take_decode(q_.model, from) : nullptr;
    if (!next)
        throw unavailable("the decode worker is gone, and there is no other");
    decode_ = std::move(next);
    moves_++;
    moved_++;
    tell(trace_.event("moved", {{"worker", decode_->url()}, {"from", from}}));
    ask_decode();
}

std::string Passage::whole()
{
    for (;;) {
        const Part part = wait();
        if (part.kind == Part::End)
            return decode_text_;
        if (part.kind == Part::Broken) {
            decode_->broke();
            move();
            if (open() != 200)
                throw unavailable("the decode worker is gone, and another one refused");
        }
        decode_text_ += part.data;
    }
}

void Passage::stream(const Write &write)
{
    write_ = &write;
    if (!early_.empty())
        write(early_);
    for (;;) {
        const Part part = wait();
        bool gone = part.kind == Part::Broken || part.kind == Part::End; // it ends with [DONE] or an error
        decode_text_ += part.data;
        for (std::size_t end; !gone && (end = decode_text_.find("\n\n")) != std::string::npos;) {
            const std::string event = decode_text_.substr(0, end + 2);
            decode_text_.erase(0, end + 2);
            if (event == "data: [DONE]\n\n") {
                write(event);
                return;
            }
            gone = !pass_on(event);
        }
        if (gone) {
            if (part.kind == Part::Broken)
                decode_->broke();
            move();
            if (open() != 200)
                throw unavailable("the decode worker is gone, and another one refused");
        }
    }
}

/// Passes an event of the decode worker's stream on. False if that says that it cannot go on.
bool Passage::pass_on(const std::string &event)
{
    const std::string trace = "event: trace\ndata: ", data = "data: ";
    if (event.rfind(trace, 0) == 0) {
        pass_trace_on(json::parse(event.substr(trace.size()), nullptr, false));
        return true;
    }
    const json chunk = json::parse(event.substr(std::min(data.size(), event.size())), nullptr, false);
    if (!chunk.is_object())
        throw failed("the decode worker sent something that is no chunk");
    if (chunk.contains("error")) {
        const json &error = chunk["error"];
        if (error.value("type", json()) == "service_unavailable")
            return false;
        throw ApiError(500, error.value("type", "server_error"), error.value("message", ""));
    }
    for (const json &choice : chunk.value("choices", json::array())) {
        const std::size_t index = choice.value("index", std::size_t{0});
        if (index < sent_.size())
            sent_[index]++;
        const json text = q_.chat ? choice.value("delta", json::object()).value("content", json()) : choice.value("text", json());
        if (!has_token_ && text.is_string() && text != "") {
            has_token_ = true;
            server_.count_first_token(start_);
        }
    }
    (*write_)(event);
    return true;
}

/// A worker counts from when it got the request.
void Passage::pass_trace_on(json fields)
{
    if (!fields.is_object())
        return;
    const std::string phase = fields.value("phase", "");
    const double ms = fields.value("ms", 0.0) + decode_asked_ms_;
    tell(trace_.event_at(phase, ms, std::move(fields)));
}

void Passage::tell(const std::string &event)
{
    if (write_ == nullptr)
        early_ += event;
    else if (!event.empty())
        (*write_)(event);
}

} // namespace

void Front::answer(Exchange &exchange, bool chat)
{
    GenerationRequest q = parse_generation(exchange.body, chat);
    const bool streamed = q.stream;
    const auto passage = std::make_shared<Passage>(server_, workers_, moved_, exchange, std::move(q));
    const int status = passage->begin();
    if (streamed && status == 200) {
        ::stream(exchange, "text/event-stream", "data: ", "\n\n", [passage](const Write &write) { passage->stream(write); });
    } else {
        exchange.response.status = status;
        if (status == 429)
            exchange.response.set_header("Retry-After", "1");
        exchange.response.set_content(passage->whole(), "application/json");
    }
}

std::string Front::metrics() const
{
    std::string out = "# TYPE cleave_front_workers gauge\n";
    for (const char *role : {"prefill", "decode"})
        out += "cleave_front_workers{role=\"" + std::string(role) + "\"} " + std::to_string(workers_.count(role)) + "\n";
    return out + "# TYPE cleave_front_moved counter\ncleave_front_moved_total " + std::to_string(moved_) + "\n";
}
