// vllm.Inference: generations, streamed or in one piece.
#pragma once

#include "session.hpp"

#include <inference.grpc.pb.h>

/// The values of a header of a call.
inline std::vector<std::string> header(const grpc::CallbackServerContext &call, const char *name)
{
    std::vector<std::string> values;
    const auto [first, last] = call.client_metadata().equal_range(name);
    for (auto at = first; at != last; ++at)
        values.emplace_back(at->second.data(), at->second.size());
    return values;
}

/// A call of GenerateStream. The headers go out with the first message. Deletes itself when the call is over.
class StreamCall final : public grpc::ServerWriteReactor<vllm::GenerateResponse>, public Sink {
public:
    StreamCall(GrpcContext &context, const grpc::CallbackServerContext &call, const vllm::GenerateRequest &request)
        : session_(std::make_shared<Session>(context, "GenerateStream", *this))
    {
        session_->begin(request, header(call, "x-data-parallel-rank"));
    }

    bool send(vllm::GenerateResponse message) override
    {
        message_ = std::move(message);
        StartWrite(&message_);
        return false;
    }
    void finish(const grpc::Status &status) override { Finish(status); }

    void OnWriteDone(bool ok) override { session_->sent(ok); }
    void OnCancel() override { session_->end(Cause::ClientGone); }
    void OnDone() override { delete this; }

private:
    vllm::GenerateResponse message_;
    const std::shared_ptr<Session> session_;
};

/// A call of Generate, which collects the messages of the answer into one. Deletes itself when the call is over.
class WholeCall final : public grpc::ServerUnaryReactor, public Sink {
public:
    WholeCall(GrpcContext &context, const grpc::CallbackServerContext &call, const vllm::GenerateRequest &request, vllm::GenerateResponse &whole)
        : whole_(whole), session_(std::make_shared<Session>(context, "Generate", *this))
    {
        session_->begin(request, header(call, "x-data-parallel-rank"));
    }

    bool send(vllm::GenerateResponse message) override
    {
        auto &output = *whole_.mutable_outputs();
        std::string text = std::move(*output.mutable_text()) + message.outputs().text();
        const std::uint32_t tokens = output.num_tokens() + message.outputs().num_tokens();
        whole_.MergeFrom(message); // appends lists, and replaces text and number
        output.set_text(std::move(text));
        output.set_num_tokens(tokens);
        return true;
    }
    void finish(const grpc::Status &status) override { Finish(status); }

    void OnCancel() override { session_->end(Cause::ClientGone); }
    void OnDone() override { delete this; }

private:
    vllm::GenerateResponse &whole_;
    const std::shared_ptr<Session> session_;
};

class InferenceService final : public vllm::Inference::CallbackService {
public:
    explicit InferenceService(GrpcContext &context) : context_(context) {}

    grpc::ServerWriteReactor<vllm::GenerateResponse> *GenerateStream(grpc::CallbackServerContext *call, const vllm::GenerateRequest *request) override
    {
        return new StreamCall(context_, *call, *request);
    }

    grpc::ServerUnaryReactor *Generate(grpc::CallbackServerContext *call, const vllm::GenerateRequest *request, vllm::GenerateResponse *response) override
    {
        return new WholeCall(context_, *call, *request, *response);
    }

private:
    GrpcContext &context_;
};
