#include "completion.hpp"
#include "answer.hpp"
#include "engine_request.hpp"
#include "text.hpp"
#include "trace.hpp"

namespace {

class Completion {
public:
    Completion(HttpServer &server, EngineHost &host, std::string url, const Exchange &exchange, GenerationRequest q,
               std::string id)
        : server_(server), host_(host), url_(std::move(url)), client_(exchange.client), start_(exchange.start),
          trace_(exchange), q_(std::move(q)), prompts_(tokenize(host_, q_)),
          format_(std::move(id), host_.options.model_name, q_.chat), sequences_(host_, prompts_.size() * q_.n)
    {
        for (std::size_t i = 0; i < prompts_.size() * q_.n; i++) {
            auto detokenizer = cleave::Detokenizer::create(host_.model);
            if (!detokenizer)
                throw failed(detokenizer.error().message());
            choices_.emplace_back(std::move(*detokenizer), q_.stop);
        }
        for (const Tokens &prompt : prompts_)
            usage_.prompt_tokens += prompt.size();
        q_.resume.resize(choices_.size());
    }

    void submit();
    std::string whole();
    void stream(const Write &write);

private:
    struct Choice {
        Choice(cleave::Detokenizer d, std::vector<std::string> stop) : detokenizer(std::move(d)), stops(std::move(stop)) {}

        cleave::Detokenizer detokenizer;
        StopMatcher stops;
        std::int32_t token = -1; // the last one, until all is known of it
        Piece next;              // its piece
        std::uint32_t n_tokens = 0;
        std::size_t characters = 0, n_pieces = 0;
        bool over = false; // for the client; the engine may not know yet
    };

    bool submit_ticket();
    void submit_choices(std::size_t first);
    void run();
    void take(cleave::Event event);
    void settle(std::size_t i);
    void finish(std::size_t i, const cleave::Event &event);
    void end(Choice &choice, Piece last);
    Candidate candidate(const cleave::Event &event) const;
    void emit(Choice &choice, Piece piece);
    void tell(const char *phase, json more = json::object());

    HttpServer &server_;
    EngineHost &host_;
    std::string url_;
    Client client_;
    Clock::time_point start_;
    Trace trace_;
    GenerationRequest q_;
    std::vector<Tokens> prompts_;
    AnswerFormat format_;
    std::vector<Choice> choices_; // n of each prompt
    std::size_t n_submitted_ = 0, n_finished_ = 0;
    bool has_token_ = false;
    Usage usage_;
    std::string early_;                               // traces of before the stream
    const Write *write_ = nullptr;                    // of a stream
    std::vector<std::vector<Piece>> pieces_;          // of a whole answer
    Sequences sequences_;
};

/// Submits what can be: with a ticket only the first choice, whose KV the others will find in the prefix cache.
void Completion::submit()
{
    if (!q_.seed)
        q_.seed = static_cast<std::int64_t>(random_number());
    if (q_.do_remote_prefill && !q_.ticket.empty() && prompts_.size() == 1 && submit_ticket())
        return;
    submit_choices(0);
    tell("prefill");
}

/// Goes on from what a prefill worker computes. False if its ticket is no good.
bool Completion::submit_ticket()
{
    auto kv = sequences_.import_ticket(0, q_.ticket);
    if (!kv) {
        std::fprintf(stderr, "a ticket was refused: %s\n", kv.error().message());
        return false;
    }
    std::vector<cleave::Request> first(1); // sampling, stops and lengths are in the ticket
    first[0].kv = std::move(*kv);
    first[0].emit_pending = true; // the first token was sampled there, and has not been sent to anybody
    first[0].recompute = true;    // if the KV does not come, the answer is the same, later
    sequences_.submit(0, std::move(first));
    n_submitted_ = 1;
    return true;
}

void Completion::submit_choices(std::size_t first)
{
    std::vector<cleave::Request> requests;
    for (std::size_t i = first; i < choices_.size(); i++)
        requests.push_back(engine_request(host_, q_, prompts_[i / q_.n], i % q_.n));
    sequences_.submit(first, std::move(requests));
    n_submitted_ = choices_.size();
}

std::string Completion::whole()
{
    pieces_.resize(choices_.size());
    run();
    return format_.whole(pieces_, usage_);
}

void Completion::stream(const Write &write)
{
    write_ = &write;
    if (!early_.empty())
        write(early_);
    for (std::size_t i = 0; q_.chat && i < choices_.size(); i++) {
        Piece role;
        role.choice = i;
        role.role = true;
        emit(choices_[i], std::move(role));
    }
    run();
    tell("done");
    if (q_.include_usage)
        write(format_.usage_chunk(usage_));
    write("data: [DONE]\n\n");
}

void Completion::run()
{
    for (Clock::time_point looked = Clock::now(); n_finished_ < choices_.size();) {
        if (const auto event = sequences_.next(look_around))
            take(*event);
        if (Clock::now() - looked >= look_around) {
            server_.check(client_);
            looked = Clock::now();
        }
    }
}

void Completion::take(cleave::Event event)
{
    const std::size_t i = sequences_.of(event);
    Choice &choice = choices_[i];
    switch (event.type()) {
    case cleave::EventType::Token:
        if (!has_token_) {
            has_token_ = true;
            server_.count_first_token(start_);
            tell("decode");
        }
        settle(i);
        choice.token = event.token();
        if (q_.logprobs)
            choice.next.token = candidate(event);
        if (q_.top_logprobs == 0)
            settle(i);
        break;
    case cleave::EventType::TopLogprob: // follow their token
        choice.next.top.push_back(candidate(event));
        if (choice.next.top.size() == static_cast<std::size_t>(q_.top_logprobs))
            settle(i);
        break;
    case cleave::EventType::Finished:
        settle(i);
        finish(i, event);
        break;
    case cleave::EventType::KvReady:
        tell("kv_ready", {{"ok", event.status() == cleave::Status::Ok}});
        if (n_submitted_ < choices_.size())
            submit_choices(n_submitted_);
        break;
    default: break;
    }
}

/// All is known of a choice's last token: gives its piece.
void Completion::settle(std::size_t i)
{
    Choice &choice = choices_[i];
    if (choice.token < 0)
        return;
    std::string text;
    const auto pushed = choice.detokenizer.push(choice.token, text);
    if (!pushed)
        throw failed(pushed.error().message());
    choice.token = -1;
    Piece piece = std::exchange(choice.next, {});
    if (choice.over)
        return;
    choice.n_tokens++;
    piece.choice = i;
    piece.offset = choice.characters;
    choice.characters += characters(text);
    piece.text = choice.n_tokens <= q_.min_tokens ? text : choice.stops.push(text);
    if (!piece.text.empty() || piece.token)
        emit(choice, std::move(piece));
    if (choice.stops.found()) {
        sequences_.cancel(i);
        Piece last;
        last.choice = i;
        last.finish_reason = "stop";
        end(choice, std::move(last));
    }
}

void Completion::finish(std::size_t i, const cleave::Event &event)
{
    Choice &choice = choices_[i];
    n_finished_++;
    if (i % q_.n == 0) // the others find what the first has left
        usage_.cached_tokens += event.cached_tokens();
    if (choice.over)
        return;
    if (event.finish_reason() == cleave::FinishReason::Error)
        throw event.status() == cleave::Status::Shutdown ? unavailable("the server is shutting down")
                                                         : failed(to_string(event.status()));
    std::string rest;
    static_cast<void>(choice.detokenizer.flush(rest));
    Piece tail;
    tail.choice = i;
    tail.text = choice.stops.push(rest);
    tail.text += choice.stops.flush();
    if (!tail.text.empty())
        emit(choice, std::move(tail));
    Piece last;
    last.choice = i;
    last.finish_reason = event.finish_reason() == cleave::FinishReason::Length ? "length" : "stop";
    end(choice, std::move(last));
}

void Completion::end(Choice &choice, Piece last)
{
    choice.over = true;
    usage_.completion_tokens += choice.n_tokens;
    emit(choice, std::move(last));
}

Candidate Completion::candidate(const cleave::Event &event) const
{
    return {host_.model.token_bytes(event.token()).value_or(std::string()), event.logprob()};
}

/// Gives a piece to the client, unless it has it from a worker that is gone.
void Completion::emit(Choice &choice, Piece piece)
{
    const std::size_t i = piece.choice;
    if (choice.n_pieces++ < q_.resume[i])
        return;
    if (write_ != nullptr)
        (*write_)(format_.chunk(piece));
    else
        pieces_[i].push_back(std::move(piece));
}

void Completion::tell(const char *phase, json more)
{
    more["worker"] = url_;
    const std::string event = trace_.event(phase, std::move(more));
    if (write_ == nullptr)
        early_ += event;
    else if (!event.empty())
        (*write_)(event);
}

/// A front names the answer; a client cannot.
std::string answer_id(const EngineHost &host, const Exchange &exchange, bool chat)
{
    const std::string given = exchange.request.get_header_value("X-Request-Id");
    return host.options.is_worker() && !given.empty() ? given : new_id(chat);
}

} // namespace

void answer_completion(HttpServer &server, EngineHost &host, const std::string &url, Exchange &exchange, bool chat)
{
    GenerationRequest q = parse_generation(exchange.body, chat);
    check_model(host, q);
    const bool streamed = q.stream;
    if (!streamed)
        q.resume.clear(); // a whole answer is sent whole
    const auto completion =
        std::make_shared<Completion>(server, host, url, exchange, std::move(q), answer_id(host, exchange, chat));
    completion->submit();
    if (streamed)
        stream(exchange, "text/event-stream", "data: ", "\n\n",
               [completion](const Write &write) { completion->stream(write); });
    else
        exchange.response.set_content(completion->whole(), "application/json");
}
