// An event loop of a server's: cleave's completion queue is one descriptor beside its others. Several questions run
// at once; the loop sleeps in epoll_wait and calls cleave_poll without waiting.
//
//     epoll MODEL_DIRECTORY
#include <cleave/cleave.h>

#include <cstdio>
#include <cstdlib>
#include <memory>
#include <string>
#include <vector>

#include <sys/epoll.h>
#include <sys/timerfd.h>
#include <unistd.h>

namespace {

void check(cleave_status_t status, const cleave_error_t &err, const char *doing)
{
    if (status != CLEAVE_OK) {
        std::fprintf(stderr, "epoll: %s: %s (%s)\n", doing, err.message, cleave_status_string(status));
        std::exit(1);
    }
}

template <class T, void (*end)(T *)> struct End {
    void operator()(T *object) const { end(object); }
};
template <class T, void (*end)(T *)> using Owned = std::unique_ptr<T, End<T, end>>;
using Model = Owned<cleave_model_t, cleave_model_release>;
using Cache = Owned<cleave_cache_t, cleave_cache_destroy>;
using Queue = Owned<cleave_queue_t, cleave_queue_destroy>;
using Engine = Owned<cleave_engine_t, cleave_engine_destroy>;
using Detokenizer = Owned<cleave_detokenizer_t, cleave_detokenizer_destroy>;

struct Conversation {
    std::string question, answer;
    Detokenizer text;
};

void watch(int epoll, int fd)
{
    epoll_event event{};
    event.events = EPOLLIN;
    event.data.fd = fd;
    if (fd < 0 || epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event) != 0) {
        std::perror("epoll_ctl");
        std::exit(1);
    }
}

} // namespace

int main(int argc, char **argv)
{
    if (argc != 2) {
        std::fprintf(stderr, "usage: %s MODEL_DIRECTORY\n", argv[0]);
        return 2;
    }
    cleave_error_t err{};
    cleave_model_t *m;
    cleave_cache_t *c;
    cleave_queue_t *q;
    cleave_engine_t *e;
    check(cleave_model_load(argv[1], &m, &err), err, "load the model");
    Model model(m);
    check(cleave_cache_create(m, nullptr, 0, nullptr, &c, &err), err, "create the cache");
    Cache cache(c);
    check(cleave_queue_create(0, &q, &err), err, "create the queue");
    Queue queue(q);
    check(cleave_engine_create(c, q, nullptr, &e, &err), err, "create the engine");
    Engine engine(e);

    const std::string facts = "the red box holds a key. the blue jar holds a coin. anna lives in paris. ";
    std::vector<Conversation> all;
    for (const char *question : {"what does the red box hold?", "what does the blue jar hold?", "where does anna live?"}) {
        cleave_detokenizer_t *d;
        check(cleave_detokenizer_create(m, &d, &err), err, "make a detokenizer");
        all.push_back({question, "", Detokenizer(d)});
    }
    for (size_t i = 0; i < all.size(); i++) {
        const std::string prompt = facts + all[i].question;
        std::vector<int32_t> tokens(prompt.size() + 2);
        size_t n = 0;
        check(cleave_tokenize(m, prompt.data(), prompt.size(), 0, tokens.data(), tokens.size(), &n, &err), err, "tokenise");
        cleave_request_desc_t desc{};
        desc.struct_size = sizeof desc;
        desc.user_tag = i;
        desc.prompt_len = static_cast<uint32_t>(n);
        desc.max_new_tokens = 16;
        cleave_request_t id;
        size_t accepted;
        check(cleave_submit(e, &desc, 1, tokens.data(), n, &id, &accepted, &err), err, "submit");
    }

    const int epoll = epoll_create1(EPOLL_CLOEXEC);
    const int timer = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC); // stands for what else a server waits for
    itimerspec tick{};
    tick.it_value.tv_nsec = tick.it_interval.tv_nsec = 100000000;
    timerfd_settime(timer, 0, &tick, nullptr);
    watch(epoll, timer);
    watch(epoll, cleave_queue_fd(q));

    for (size_t open = all.size(); open > 0;) {
        epoll_event ready[4];
        const int n_ready = epoll_wait(epoll, ready, 4, -1);
        for (int i = 0; i < n_ready; i++) {
            if (ready[i].data.fd == timer) {
                uint64_t ticks;
                if (read(timer, &ticks, sizeof ticks) == sizeof ticks)
                    std::printf("(tick)\n");
                continue;
            }
            cleave_event_t events[16];
            size_t n = 0;
            check(cleave_poll(q, events, sizeof events[0], 16, 0, &n), err, "poll");
            for (size_t k = 0; k < n; k++) {
                auto &conversation = all[events[k].user_tag];
                char piece[256];
                size_t len = 0;
                if (events[k].type == CLEAVE_EVENT_TOKEN &&
                    cleave_detokenizer_push(conversation.text.get(), events[k].token, piece, sizeof piece, &len) == CLEAVE_OK)
                    conversation.answer.append(piece, len);
                if (events[k].type == CLEAVE_EVENT_FINISHED) {
                    std::printf("%s%s\n", conversation.question.c_str(), conversation.answer.c_str());
                    open--;
                }
            }
        }
    }
    close(timer);
    close(epoll);
    return 0;
}
