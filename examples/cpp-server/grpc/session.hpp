// One request for a generation, from the message that asks for it to the status that ends it.
#pragma once

#include "../run.hpp"
#include "context.hpp"
#include "messages.hpp"

/// Where the messages of an answer go. All calls come from one session, one at a time.
class Sink {
public:
    virtual ~Sink() = default;
    /// Sends a message. Returns whether the sink takes the next one at once; otherwise it calls Session::sent when it does.
    virtual bool send(vllm::GenerateResponse message) = 0;
    virtual void finish(const grpc::Status &status) = 0;
};

/// Runs on the executor's threads when there are events, and on those of gRPC when a message is sent. While a client does not
/// read, events wait in the mailbox of its run: never more than fit into the context.
class Session : public Endable, public std::enable_shared_from_this<Session> {
public:
    /// The sink must stay valid until it is told to finish.
    Session(GrpcContext &context, const char *method, Sink &sink) : context_(context), method_(method), sink_(sink) {}

    /// Begins with a request, which must stay valid until the sink is told to finish.
    void begin(const vllm::GenerateRequest &request, std::vector<std::string> ranks)
    {
        context_.executor.post([self = shared_from_this(), &request, ranks = std::move(ranks)] { self->submit(request, ranks); });
    }

    /// The sink takes the next message, unless the client is gone.
    void sent(bool ok)
    {
        const std::lock_guard<std::mutex> lock(mutex_);
        sending_ = false;
        if (ok)
            is_sent();
        else if (!cause_)
            cause_ = Cause::ClientGone;
        if (cause_)
            conclude();
        else if (complete_)
            finish(grpc::Status::OK);
        else
            advance();
    }

    void end(Cause cause) override
    {
        const std::lock_guard<std::mutex> lock(mutex_);
        if (finished_ || cause_)
            return;
        cause_ = cause;
        run_.reset(); // cancels the request at the next step
        if (!sending_)
            conclude();
    }

private:
    void submit(const vllm::GenerateRequest &request, const std::vector<std::string> &ranks)
    {
        const std::lock_guard<std::mutex> lock(mutex_);
        if (finished_)
            return; // the client is gone already, and the request with it
        finish_unless_ok(guarded(method_, [&] {
            for (const std::string &rank : ranks)
                if (rank != "0")
                    throw refused("x-data-parallel-rank", "this worker is rank 0 and has no other");
            request_ = parse(context_.host, request);
            if (context_.leaving)
                throw unavailable(shutting_down);
            call_ = context_.service.begin(request.request_id(), false, [] { return false; });
            registered_ = context_.requests.add(request.request_id(), weak_from_this());
            context_.service.check(*call_); // the server may have ended the others before it knew of this one
            context_.pairs.pair(request_.exporter);
            run_.emplace(context_.host, std::move(request_.generation), [self = weak_from_this()] { wake(self); });
            run_->submit();
        }));
        if (!finished_)
            advance();
    }

    /// Called by the poller.
    static void wake(const std::weak_ptr<Session> &weak)
    {
        const auto self = weak.lock();
        if (self && !self->woken_.exchange(true))
            self->context_.executor.post([self] {
                self->woken_ = false;
                const std::lock_guard<std::mutex> lock(self->mutex_);
                if (self->run_ && !self->sending_ && !self->complete_)
                    self->advance();
            });
    }

    /// Sends what has come, until the sink is busy or there is no more. Called with the lock.
    void advance()
    {
        finish_unless_ok(guarded(method_, [&] {
            while (!sending_ && !complete_) {
                auto piece = run_->next(std::chrono::milliseconds(0));
                if (!piece)
                    return;
                take(*piece);
            }
        }));
        if (!finished_ && complete_ && !sending_)
            finish(grpc::Status::OK);
    }

    void take(Piece &piece)
    {
        complete_ = piece.kind == Piece::End;
        if (!request_.for_another) {
            if (auto message = messages_.take(piece))
                send(std::move(*message));
            return;
        }
        if (!complete_)
            return messages_.keep(piece);
        if (!piece.kv)
            throw invalid(nullptr, "the context has no room for another token");
        auto ticket = piece.kv.ticket();
        auto address = context_.host.cache.address();
        if (!ticket || !address)
            throw to_api_error(ticket ? address.error() : ticket.error());
        prefilled_ = std::move(piece.kv);
        send(messages_.prefilled(piece, {std::move(*ticket), std::move(*address)}));
    }

    void send(vllm::GenerateResponse message)
    {
        sending_ = !sink_.send(std::move(message));
        if (!sending_)
            is_sent();
    }

    /// A message is on its way to the client: whoever gets a ticket fetches the KV.
    void is_sent() { static_cast<void>(prefilled_.take()); }

    /// Ends the call for which there is a cause.
    void conclude()
    {
        if (*cause_ == Cause::ShuttingDown)
            return finish({grpc::StatusCode::UNAVAILABLE, shutting_down});
        if (*cause_ == Cause::ClientGone)
            return finish({grpc::StatusCode::CANCELLED, "the client is gone"});
        if (!std::exchange(complete_, true))
            send(messages_.aborted());
        if (!sending_)
            finish(grpc::Status::OK);
    }

    void finish_unless_ok(const grpc::Status &status)
    {
        if (!status.ok())
            finish(status);
    }

    void finish(const grpc::Status &status)
    {
        if (std::exchange(finished_, true))
            return;
        run_.reset();
        prefilled_.reset(); // nobody has the ticket
        registered_.reset();
        sink_.finish(status); // may end this session
    }

    GrpcContext &context_;
    const char *const method_;
    Sink &sink_;
    std::atomic<bool> woken_{false};

    std::mutex mutex_; // guards the members below
    VllmRequest request_;
    Messages messages_{request_};
    std::optional<Call> call_; // counts as running until the client has the status
    std::shared_ptr<void> registered_;
    std::optional<Run> run_;
    cleave::Kv prefilled_; // of the ticket in the message that is being sent
    std::optional<Cause> cause_;
    bool sending_ = false, complete_ = false, finished_ = false;
};
