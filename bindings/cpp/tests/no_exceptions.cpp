// The wrapper needs neither exceptions nor RTTI. This program is built with -fno-exceptions -fno-rtti and without
// GoogleTest, and uses every part of the wrapper once.
#include <cleave/cleave.hpp>

#include <cstdio>
#include <cstdlib>
#include <string>

using namespace cleave;

#ifdef __cpp_exceptions
#error "built with exceptions"
#endif
#ifdef __cpp_rtti
#error "built with RTTI"
#endif

static int fail(const char *doing, const Error &error)
{
    std::fprintf(stderr, "%s: %s (%s)\n", doing, error.message(), to_string(error.code()));
    return 1;
}

int main()
{
    const char *path = std::getenv("CLEAVE_TEST_MODEL");
    auto model = Model::load(path != nullptr ? path : "models/tiny");
    if (!model) {
        std::fprintf(stderr, "skipped: %s\n", model.error().message());
        return model.status() == Status::NotFound ? 77 : 1;
    }
    auto sink = LogSink::install(LogLevel::Info, [](LogLevel, const char *, const char *) {});
    auto cache = Cache::create(*model);
    auto queue = Queue::create();
    if (!sink || !cache || !queue)
        return fail("create", cache.error());
    auto engine = Engine::create(*cache, *queue);
    auto detokenizer = Detokenizer::create(*model);
    auto prompt = model->tokenize("the red box holds a key. what does the red box hold?");
    if (!engine || !detokenizer || !prompt)
        return fail("create", engine.error());
    Request request;
    request.prompt = std::move(*prompt);
    request.max_new_tokens = 8;
    request.keep_kv = true;
    if (auto id = engine->submit(request); !id)
        return fail("submit", id.error());
    std::string text;
    Event events[8];
    for (;;) {
        const auto got = queue->poll(events);
        if (!got)
            return fail("poll", got.error());
        for (Event &event : *got) {
            if (event.type() == EventType::Token && !detokenizer->push(event.token(), text))
                return 1;
            if (event.type() == EventType::Finished) {
                const Kv kv = cache->take_kv(event);
                return event.status() == Status::Ok && kv && !text.empty() ? 0 : 1;
            }
        }
    }
}
