#include "openai.hpp"
#include "text.hpp"

#include <cmath>
#include <limits>

namespace {

constexpr std::int64_t any_count = INT64_C(1) << 31; // of tokens: more than any context
constexpr std::size_t most_choices = 1024;           // of all prompts together

/// The members of a JSON object, with strict types.
class Fields {
public:
    explicit Fields(const json &object) : object_(object) {}

    /// NULL if it is missing or null.
    const json *find(const char *name) const
    {
        const auto member = object_.find(name);
        return member == object_.end() || member->is_null() ? nullptr : &*member;
    }

    std::int64_t integer(const char *name, std::int64_t least, std::int64_t most, std::int64_t missing) const
    {
        const json *value = find(name);
        if (value == nullptr)
            return missing;
        const bool fits = value->is_number_unsigned()
                              ? value->get<std::uint64_t>() <= std::numeric_limits<std::int64_t>::max()
                              : value->is_number_integer();
        if (!fits || value->get<std::int64_t>() < least || value->get<std::int64_t>() > most)
            throw invalid(name, std::string(name) + " must be an integer from " + std::to_string(least) + " to " +
                                    std::to_string(most));
        return value->get<std::int64_t>();
    }

    float number(const char *name, double least, double most, double missing) const
    {
        const json *value = find(name);
        if (value == nullptr)
            return static_cast<float>(missing);
        if (!value->is_number() || !(value->get<double>() >= least && value->get<double>() <= most))
            throw invalid(name, std::string(name) + " must be a number from " + json(least).dump() + " to " + json(most).dump());
        return static_cast<float>(value->get<double>());
    }

    bool boolean(const char *name) const
    {
        const json *value = find(name);
        if (value != nullptr && !value->is_boolean())
            throw invalid(name, std::string(name) + " must be true or false");
        return value != nullptr && value->get<bool>();
    }

    std::string string(const char *name) const
    {
        const json *value = find(name);
        if (value != nullptr && !value->is_string())
            throw invalid(name, std::string(name) + " must be a string");
        return value != nullptr ? value->get<std::string>() : std::string();
    }

    const json *object(const char *name) const
    {
        const json *value = find(name);
        if (value != nullptr && !value->is_object())
            throw invalid(name, std::string(name) + " must be an object");
        return value;
    }

private:
    const json &object_;
};

void refuse_unsupported(const Fields &fields, const GenerationRequest &out)
{
    for (const char *name : {"tools", "functions", "suffix"})
        if (fields.find(name) != nullptr)
            throw invalid(name, std::string(name) + " is not supported");
    if (fields.boolean("echo"))
        throw invalid("echo", "echo is not supported");
    if (fields.integer("best_of", 1, 128, static_cast<std::int64_t>(out.n)) != static_cast<std::int64_t>(out.n))
        throw invalid("best_of", "best_of must be equal to n");
    const json *format = fields.object("response_format");
    if (format != nullptr && (format->find("type") == format->end() || (*format)["type"] != "text"))
        throw invalid("response_format", "only the response_format text is supported");
}

/// Leaves of each message what a chat template takes: its role, and its content as one string.
std::string parse_messages(const Fields &fields)
{
    const json *messages = fields.find("messages");
    if (messages == nullptr || !messages->is_array() || messages->empty())
        throw invalid("messages", "messages must be an array of messages");
    json out = json::array();
    for (const json &message : *messages) {
        const auto role = message.find("role"), content = message.find("content");
        if (!message.is_object() || role == message.end() || !role->is_string() || content == message.end())
            throw invalid("messages", "each of messages must be an object with role and content");
        std::string text;
        if (content->is_string()) {
            text = content->get<std::string>();
        } else if (content->is_array() && !content->empty()) {
            for (const json &part : *content) {
                const auto part_text = part.find("text");
                const bool is_text = part.is_object() && part.value("type", json()) == "text";
                if (!is_text || part_text == part.end() || !part_text->is_string())
                    throw invalid("messages", "messages may have parts of type text only");
                text += part_text->get<std::string>();
            }
        } else {
            throw invalid("messages", "the content of messages must be a string or an array of text parts");
        }
        out.push_back({{"role", *role}, {"content", text}});
    }
    return out.dump();
}

Tokens parse_tokens(const json &ids)
{
    Tokens out;
    for (const json &id : ids) {
        if (!id.is_number_unsigned() || id.get<std::uint64_t>() > std::numeric_limits<std::int32_t>::max())
            throw invalid("prompt", "prompt has something among its token ids that is none");
        out.push_back(id.get<std::int32_t>());
    }
    return out;
}

void parse_prompts(const Fields &fields, GenerationRequest &out)
{
    const json *prompt = fields.find("prompt");
    if (prompt != nullptr && prompt->is_string()) {
        out.prompts.emplace_back(prompt->get<std::string>());
    } else if (prompt != nullptr && prompt->is_array() && !prompt->empty() && prompt->front().is_number()) {
        out.prompts.emplace_back(parse_tokens(*prompt));
    } else if (prompt != nullptr && prompt->is_array()) {
        for (const json &one : *prompt) {
            if (one.is_string() && prompt->front().is_string())
                out.prompts.emplace_back(one.get<std::string>());
            else if (one.is_array() && !one.empty() && prompt->front().is_array())
                out.prompts.emplace_back(parse_tokens(one));
            else
                throw invalid("prompt", "prompt must be a string, token ids, or an array of either");
        }
    }
    if (out.prompts.empty())
        throw invalid("prompt", "prompt must be a string, token ids, or an array of either");
    if (out.prompts.size() * out.n > most_choices)
        throw invalid("prompt", "prompt and n make more than " + std::to_string(most_choices) + " choices");
}

void parse_stop(const Fields &fields, GenerationRequest &out)
{
    const json *stop = fields.find("stop");
    if (stop == nullptr)
        return;
    const json all = stop->is_string() ? json::array({*stop}) : *stop;
    bool right = all.is_array() && all.size() <= 4;
    for (std::size_t i = 0; right && i < all.size(); i++) {
        right = all[i].is_string() && !all[i].get_ref<const std::string &>().empty();
        if (right)
            out.stop.push_back(all[i].get<std::string>());
    }
    if (!right)
        throw invalid("stop", "stop must be a string or up to 4 of them, none of them empty");
}

void parse_logit_bias(const Fields &fields, GenerationRequest &out)
{
    const json *bias = fields.object("logit_bias");
    if (bias == nullptr)
        return;
    for (const auto &[key, value] : bias->items()) {
        const bool id = !key.empty() && key.size() <= 9 && key.find_first_not_of("0123456789") == std::string::npos;
        if (!id || !value.is_number() || !(std::fabs(value.get<double>()) <= 100))
            throw invalid("logit_bias", "logit_bias must have token ids as keys, and values from -100 to 100");
        out.logit_bias.emplace_back(std::stoi(key), value.get<float>());
    }
}

void parse_sampling(const Fields &fields, GenerationRequest &out)
{
    out.temperature = fields.number("temperature", 0, 2, 1);
    out.top_p = fields.number("top_p", 0, 1, 1);
    if (out.top_p <= 0)
        throw invalid("top_p", "top_p must be above 0 and at most 1");
    out.min_p = fields.number("min_p", 0, 1, 0);
    out.top_k = static_cast<std::uint32_t>(std::max<std::int64_t>(fields.integer("top_k", -1, any_count, 0), 0));
    out.repetition_penalty = fields.number("repetition_penalty", 0, 2, 1);
    if (out.repetition_penalty <= 0)
        throw invalid("repetition_penalty", "repetition_penalty must be above 0 and at most 2");
    out.presence_penalty = fields.number("presence_penalty", -2, 2, 0);
    out.frequency_penalty = fields.number("frequency_penalty", -2, 2, 0);
    if (fields.find("seed") != nullptr)
        out.seed = fields.integer("seed", std::numeric_limits<std::int64_t>::min(), std::numeric_limits<std::int64_t>::max(), 0);
    out.ignore_eos = fields.boolean("ignore_eos");
    out.priority = static_cast<std::uint32_t>(fields.integer("priority", 0, UINT32_MAX, 0));
    parse_logit_bias(fields, out);
}

void parse_lengths(const Fields &fields, GenerationRequest &out)
{
    const std::int64_t old_name = fields.integer("max_tokens", 1, any_count, out.chat ? 0 : 16);
    out.max_tokens = static_cast<std::uint32_t>(fields.integer("max_completion_tokens", 1, any_count, old_name));
    out.min_tokens = static_cast<std::uint32_t>(fields.integer("min_tokens", 0, any_count, 0));
    if (out.max_tokens > 0 && out.min_tokens > out.max_tokens)
        throw invalid("min_tokens", "min_tokens must not be above max_tokens");
}

void parse_logprobs(const Fields &fields, GenerationRequest &out)
{
    if (out.chat) {
        out.logprobs = fields.boolean("logprobs");
        if (!out.logprobs && fields.find("top_logprobs") != nullptr)
            throw invalid("top_logprobs", "top_logprobs needs logprobs to be true");
        out.top_logprobs = static_cast<int>(fields.integer("top_logprobs", 0, 20, 0));
    } else {
        out.logprobs = fields.find("logprobs") != nullptr;
        out.top_logprobs = static_cast<int>(fields.integer("logprobs", 0, 5, 0));
    }
}

void parse_kv_transfer(const Fields &fields, GenerationRequest &out)
{
    const char *const name = "kv_transfer_params";
    const json *params = fields.object(name);
    if (params == nullptr)
        return;
    const Fields kv(*params);
    try {
        out.do_remote_decode = kv.boolean("do_remote_decode");
        out.do_remote_prefill = kv.boolean("do_remote_prefill");
        auto ticket = from_base64(kv.string("ticket"));
        if (!ticket)
            throw invalid(name, "the ticket is not base64");
        out.ticket = std::move(*ticket);
        if (const json *resume = kv.find("resume"))
            for (const json &count : *resume) {
                if (!count.is_number_unsigned())
                    throw invalid(name, "resume must be an array of counts");
                out.resume.push_back(count.get<std::size_t>());
            }
    } catch (const ApiError &error) {
        throw invalid(name, error.what());
    }
}

} // namespace

GenerationRequest parse_generation(const std::string &body, bool chat)
{
    GenerationRequest out;
    out.body = parse_object(body);
    out.chat = chat;
    const Fields fields(out.body);
    out.model = fields.string("model");
    out.n = static_cast<std::size_t>(fields.integer("n", 1, 128, 1));
    refuse_unsupported(fields, out);
    if (chat)
        out.messages = parse_messages(fields);
    else
        parse_prompts(fields, out);
    parse_stop(fields, out);
    out.stream = fields.boolean("stream");
    if (const json *options = fields.object("stream_options"))
        out.include_usage = Fields(*options).boolean("include_usage");
    parse_sampling(fields, out);
    parse_lengths(fields, out);
    parse_logprobs(fields, out);
    parse_kv_transfer(fields, out);
    return out;
}
