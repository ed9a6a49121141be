// A server's event loop: cleave's completion queue is one descriptor among others. Several questions run at once; the
// loop sleeps in epoll_wait and polls the queue without blocking.
//
//     epoll MODEL_DIRECTORY
#define CLEAVE_EXCEPTIONS // for or_throw()
#include <cleave/cleave.hpp>

#include <cerrno>
#include <cstdio>
#include <string>
#include <system_error>
#include <vector>

#include <sys/epoll.h>
#include <sys/timerfd.h>
#include <unistd.h>

namespace {

struct Conversation {
    std::string question, answer;
    cleave::Detokenizer text;
};

void watch(int epoll, int fd)
{
    epoll_event event{};
    event.events = EPOLLIN;
    event.data.fd = fd;
    if (fd < 0 || epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event) != 0)
        throw std::system_error(errno, std::generic_category(), "epoll_ctl");
}

void run(const char *directory)
{
    const auto model = cleave::Model::load(directory).or_throw();
    const auto cache = cleave::Cache::create(model).or_throw();
    auto queue = cleave::Queue::create().or_throw();
    auto engine = cleave::Engine::create(cache, queue).or_throw();

    const std::string facts = "the red box holds a key. the blue jar holds a coin. anna lives in paris. ";
    std::vector<Conversation> all;
    for (const char *question : {"what does the red box hold?", "what does the blue jar hold?", "where does anna live?"}) {
        cleave::Request request;
        request.prompt = model.tokenize(facts + question).or_throw();
        request.user_tag = all.size();
        request.max_new_tokens = 16;
        engine.submit(request).or_throw();
        all.push_back({question, "", cleave::Detokenizer::create(model).or_throw()});
    }

    const int epoll = epoll_create1(EPOLL_CLOEXEC);
    const int timer = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC); // represents a server's other descriptors
    itimerspec tick{};
    tick.it_value.tv_nsec = tick.it_interval.tv_nsec = 100000000;
    timerfd_settime(timer, 0, &tick, nullptr);
    watch(epoll, timer);
    watch(epoll, queue.fd().or_throw());

    for (size_t open = all.size(); open > 0;) {
        epoll_event ready;
        if (epoll_wait(epoll, &ready, 1, -1) != 1)
            continue; // a signal interrupted the wait
        uint64_t ticks;
        if (ready.data.fd == timer && read(timer, &ticks, sizeof ticks) == sizeof ticks)
            std::printf("(tick)\n");
        cleave::Event events[16];
        for (const cleave::Event &event : queue.poll(events, std::chrono::milliseconds(0)).or_throw()) {
            auto &conversation = all[event.user_tag()];
            if (event.type() == cleave::EventType::Token)
                conversation.text.push(event.token(), conversation.answer).or_throw();
            if (event.type() == cleave::EventType::Finished) {
                std::printf("%s%s\n", conversation.question.c_str(), conversation.answer.c_str());
                open--;
            }
        }
    }
    close(timer);
    close(epoll);
}

} // namespace

int main(int argc, char **argv)
{
    if (argc != 2) {
        std::fprintf(stderr, "usage: %s MODEL_DIRECTORY\n", argv[0]);
        return 2;
    }
    try {
        run(argv[1]);
    } catch (const std::exception &e) {
        std::fprintf(stderr, "epoll: %s\n", e.what());
        return 1;
    }
}
