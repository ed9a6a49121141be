// Text to tokens and back; information about models and devices.
#include "support.hpp"

using namespace cleave;

namespace {

class Text : public WithModel {
protected:
    std::string whole(const std::vector<std::int32_t> &tokens)
    {
        Detokenizer d = must(Detokenizer::create(model));
        std::string text;
        for (std::int32_t token : tokens)
            EXPECT_TRUE(succeeded(d.push(token, text)));
        EXPECT_TRUE(succeeded(d.flush(text)));
        return text;
    }
};

TEST_F(Text, ThereAndBack)
{
    const std::string text = "the red box holds a k\xc3\xa9y \xf0\x9f\x94\x91.";
    std::vector<std::int32_t> tokens;
    ASSERT_TRUE(succeeded(model.tokenize(text, tokens, Special::None)));
    EXPECT_EQ(whole(tokens), text);
    const auto with_special = must(model.tokenize(text));
    EXPECT_EQ(with_special.size(), tokens.size() + 1);
    EXPECT_TRUE(must(model.tokenize("", Special::None)).empty());
    EXPECT_EQ(must(model.tokenize("</s>", Special::None)).size(), 1u);
    EXPECT_GT(must(model.tokenize("</s>", Special::Plain)).size(), 1u);

    const auto bad = model.tokenize("\xff");
    EXPECT_EQ(bad.status(), Status::InvalidArgument);
    EXPECT_STRNE(bad.error().message(), "INVALID_ARGUMENT");
    EXPECT_FALSE(model.tokenize("\xff", tokens));
    EXPECT_TRUE(tokens.empty());
}

TEST_F(Text, ReplacesWhatWasThere)
{
    std::vector<std::int32_t> tokens(1000, 7);
    ASSERT_TRUE(succeeded(model.tokenize("anna", tokens, Special::None)));
    EXPECT_EQ(tokens, must(model.tokenize("anna", Special::None)));
    EXPECT_GE(tokens.capacity(), 1000u);
}

TEST_F(Text, AChatBecomesAPrompt)
{
    const auto prompt = must(model.chat_prompt(R"([{"role": "user", "content": "hello"}])"));
    EXPECT_NE(prompt.find("hello"), std::string::npos);
    const std::string long_text(5000, 'x');
    const auto long_prompt = must(model.chat_prompt("[{\"role\": \"user\", \"content\": \"" + long_text + "\"}]"));
    EXPECT_NE(long_prompt.find(long_text), std::string::npos);
    EXPECT_EQ(model.chat_prompt("{").status(), Status::InvalidArgument);

    ChatOptions open;
    open.continue_final_message = true;
    const auto continued = must(model.chat_prompt(R"([{"role": "assistant", "content": "well, I"}])", open));
    EXPECT_EQ(continued.substr(continued.size() - 7), "well, I");
    ChatOptions ended;
    ended.generation_prompt = false;
    ended.tools_json = "[]";
    ended.arguments_json = R"({"enable_thinking": false})";
    EXPECT_LT(must(model.chat_prompt(R"([{"role": "user", "content": "hello"}])", ended)).size(), prompt.size());
    ended.tools_json = "{}";
    EXPECT_EQ(model.chat_prompt("[]", ended).status(), Status::InvalidArgument);
}

TEST_F(Text, BytesOfATokenAreNotAlwaysCharacters)
{
    const std::string umlaut = "\xe2\x82\xac";
    std::string bytes, piece = "what was there";
    for (std::int32_t token : must(model.tokenize(umlaut, Special::None))) {
        ASSERT_TRUE(succeeded(model.token_bytes(token, piece)));
        EXPECT_EQ(must(model.token_bytes(token)), piece);
        bytes += piece;
    }
    EXPECT_EQ(bytes, umlaut);
    EXPECT_EQ(model.token_bytes(-1).status(), Status::InvalidArgument);
}

TEST_F(Text, ADetokenizerWritesIntoTheCallersMemory)
{
    Detokenizer d = must(Detokenizer::create(model));
    const auto tokens = must(model.tokenize("the red box", Special::None));
    std::string text;
    for (std::int32_t token : tokens) {
        char buffer[64], small[1];
        const std::size_t n = must(d.push(token, Span<char>(small).first(0)));
        EXPECT_EQ(must(d.push(token, Span<char>(small).first(0))), n); // asking for the length takes no text
        EXPECT_EQ(must(d.push(token, buffer)), n);
        text.append(buffer, n);
    }
    EXPECT_EQ(text, "the red box");
    char rest[8];
    EXPECT_EQ(must(d.flush(rest)), 0u);

    // An unfinished character at the end becomes U+FFFD.
    const auto pieces = must(model.tokenize("\xe2\x82\xac", Special::None));
    ASSERT_GT(pieces.size(), 1u);
    EXPECT_EQ(must(d.push(pieces[0], rest)), 0u);
    EXPECT_EQ(must(d.flush(rest)), 3u);
    EXPECT_EQ(d.push(-1, rest).status(), Status::InvalidArgument);
    EXPECT_EQ(d.push(-1, text).status(), Status::InvalidArgument);
    EXPECT_EQ(text, "the red box");
}

TEST_F(Text, AModelIsDescribed)
{
    const ModelInfo info = must(model.info());
    EXPECT_FALSE(info.architecture().empty());
    EXPECT_GT(info.vocab_size, 0u);
    EXPECT_GT(info.n_layers, 0u);
}

TEST(Device, TheCpuIsAlwaysThere)
{
    const DeviceInfo cpu = must(device_info(CLEAVE_DEVICE_CPU));
    EXPECT_EQ(cpu.uuid(), "CPU");
    EXPECT_FALSE(cpu.name().empty());
    EXPECT_GT(cpu.total_bytes, 0u);
    EXPECT_GE(device_count(), 0);
    EXPECT_EQ(device_info(4096).status(), Status::NotFound);
}

} // namespace
