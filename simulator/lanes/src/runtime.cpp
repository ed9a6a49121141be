// Runs kernels on the CPU. The calling thread runs one block after the other. A CUDA thread is a fiber that runs until
// it has to wait for other threads. The simulator reports what is undefined on a GPU: warps that diverge at a
// rendezvous and writes beyond shared memory. Uninitialized shared memory is full of NaN, so that reads of it show in
// results. Running the lanes in both orders exposes most races between barriers.
#include "cuda.hpp"
#include "fiber.hpp"

#include <cstdio>
#include <map>
#include <memory>
#include <string>
#include <sys/mman.h>
#include <vector>

namespace sim {

thread_local Place place;

namespace {

constexpr size_t stack_bytes = 128 << 10;
constexpr size_t guard_bytes = 256;
constexpr unsigned char poison = 0xff; // NaN in every floating-point type

std::map<std::string, Call> &entries()
{
    static std::map<std::string, Call> all;
    return all;
}

std::map<std::string, const size_t *> &parameter_sizes()
{
    static std::map<std::string, const size_t *> all;
    return all;
}

enum class State { Ready, AtBarrier, AtExchange, Over };

struct Copy {
    void *to;
    const void *from;
    size_t bytes;
    bool valid;
    int group;
};

struct Fiber {
    void *stack = nullptr; // saved stack pointer
    State state = State::Ready;
    Place place{};
    const char *kind = nullptr; // kind of the exchange at which it waits
    uint32_t mask = 0;
    unsigned char given[64];
    size_t bytes = 0;
    std::shared_ptr<Given> received;
    std::vector<Copy> copies;
    int groups = 0; // number of committed copy groups
};

struct Stacks {
    ~Stacks()
    {
        for (void *stack : all)
            munmap(stack, stack_bytes);
    }
    void *at(size_t i)
    {
        while (all.size() <= i) {
            void *stack = mmap(nullptr, stack_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
            if (stack == MAP_FAILED)
                return nullptr;
            all.push_back(stack);
        }
        return all[i];
    }
    std::vector<void *> all;
};

struct Block {
    std::vector<Fiber> fibers;
    size_t running = 0;
    void *scheduler = nullptr;
    Call call = nullptr;
    void *const *params = nullptr;
    unsigned char *shared = nullptr;
    bool inside = false; // true while a fiber runs, false in the scheduler
    std::string failure;
};

thread_local Block block;
thread_local Stacks stacks;

Fiber &self() { return block.fibers[block.running]; }

void leave() { cleave_sim_switch(&self().stack, block.scheduler); }

void begin()
{
    block.call(block.params);
    self().state = State::Over;
    if (!self().copies.empty())
        block.failure = "a thread ended with copies to shared memory under way";
    leave();
    __builtin_unreachable();
}

void copy_groups(Fiber &fiber, int below)
{
    std::vector<Copy> later;
    for (const Copy &copy : fiber.copies) {
        if (copy.group >= below)
            later.push_back(copy);
        else if (copy.valid)
            std::memcpy(copy.to, copy.from, copy.bytes);
        else
            std::memset(copy.to, 0, copy.bytes);
    }
    fiber.copies.swap(later);
}

// All fibers that have not ended are at the barrier, so they continue.
void open_barrier()
{
    for (const Fiber &fiber : block.fibers)
        if (fiber.state != State::AtBarrier && fiber.state != State::Over)
            return;
    for (Fiber &fiber : block.fibers)
        if (fiber.state == State::AtBarrier)
            fiber.state = State::Ready;
}

std::string where(const Place &p)
{
    char text[128];
    std::snprintf(text, sizeof text, "block (%u, %u, %u), thread (%u, %u, %u)", p.block.x, p.block.y, p.block.z, p.thread.x,
                  p.thread.y, p.thread.z);
    return text;
}

void run_block(bool reversed)
{
    const size_t n = block.fibers.size();
    for (size_t over = 0; over < n && block.failure.empty();) {
        bool progress = false;
        for (size_t i = 0; i < n && block.failure.empty(); i++) {
            block.running = reversed ? n - 1 - i : i;
            Fiber &fiber = self();
            if (fiber.state != State::Ready)
                continue;
            progress = true;
            place = fiber.place;
            block.inside = true;
            cleave_sim_switch(&block.scheduler, fiber.stack);
            block.inside = false;
            over += fiber.state == State::Over;
            if (fiber.state == State::Over)
                open_barrier();
        }
        if (!progress && block.failure.empty())
            for (const Fiber &fiber : block.fibers)
                if (fiber.state == State::AtBarrier || fiber.state == State::AtExchange)
                    block.failure = where(fiber.place) + " waits for others at " +
                                    (fiber.state == State::AtBarrier ? "a barrier" : fiber.kind) + ", who do not come";
    }
}

} // namespace

Entry::Entry(const char *name, Call call, const size_t *sizes)
{
    entries()[name] = call;
    parameter_sizes()[name] = sizes;
}

void fail(const char *what)
{
    block.failure = where(self().place) + ": " + what;
    leave();
    __builtin_unreachable();
}

void sync_block()
{
    self().state = State::AtBarrier;
    open_barrier();
    leave(); // the last fiber yields too, so the order of lanes is the same after each barrier
}

const Given &exchange(const char *kind, uint32_t mask, const void *given, size_t bytes)
{
    Fiber &mine = self();
    if (!(mask >> mine.place.lane & 1))
        fail("takes part in an exchange whose mask does not name it");
    mine.kind = kind;
    mine.mask = mask;
    mine.bytes = bytes;
    if (bytes > 0)
        std::memcpy(mine.given, given, bytes);
    mine.state = State::AtExchange;
    const size_t first = block.running / 32 * 32;
    bool complete = true;
    for (size_t lane = 0; lane < 32; lane++) {
        if (!(mask >> lane & 1))
            continue;
        if (first + lane >= block.fibers.size() || block.fibers[first + lane].state == State::Over)
            fail("waits for a lane that has ended or never was");
        const Fiber &other = block.fibers[first + lane];
        if (other.state != State::AtExchange) {
            complete = false;
        } else if (other.mask != mask || std::strcmp(other.kind, kind) != 0 || other.bytes != bytes) {
            if (other.mask & mask)
                fail("the lanes of a warp are at different exchanges");
        }
    }
    if (complete) {
        auto all = std::make_shared<Given>();
        for (size_t lane = 0; lane < 32; lane++)
            if (mask >> lane & 1) {
                Fiber &other = block.fibers[first + lane];
                std::memcpy(all->at[lane], other.given, bytes);
                other.received = all;
                other.state = State::Ready;
            }
    } else {
        leave();
    }
    return *self().received;
}

unsigned char *dynamic_shared() { return block.shared; }

void copy_later(void *to, const void *from, size_t bytes, bool valid)
{
    Fiber &mine = self();
    mine.copies.push_back({to, from, bytes, valid, mine.groups});
}

void commit_copies() { self().groups++; }

void wait_for_copies(int but)
{
    Fiber &mine = self();
    copy_groups(mine, mine.groups - but);
}

uint16_t float_to_bf16(float x)
{
    const uint32_t bits = sim_cast<uint32_t>(x);
    if (x != x)
        return 0x7fff;
    return uint16_t((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

uint16_t float_to_f16(float x) { return sim_cast<uint16_t>(static_cast<_Float16>(x)); }
float f16_to_float(uint16_t bits) { return static_cast<float>(sim_cast<_Float16>(bits)); }

} // namespace sim

// Runs a kernel to its end. Returns 0, or -1 and a description in `error`. With `reversed`, lanes run from the last to
// the first.
extern "C" __attribute__((visibility("hidden"))) int32_t cleave_sim_launch(const char *kernel, const uint32_t *grid, const uint32_t *threads, uint32_t shared_bytes,
                                     void *const *params, int32_t reversed, char *error, size_t error_size)
{
    using namespace sim;
    const auto say = [&](const std::string &text) {
        std::snprintf(error, error_size, "%s: %s", kernel, text.c_str());
        return -1;
    };
    const auto entry = entries().find(kernel);
    if (entry == entries().end())
        return say("there is no such kernel");
    const size_t n = size_t(threads[0]) * threads[1] * threads[2];
    if (n == 0 || n > 1024 || n % 32 != 0)
        return say("a block has 32 to 1024 threads, a multiple of 32");
    if (shared_bytes > 227 << 10)
        return say("more than 227 KiB of shared memory");
    if (grid[0] == 0 || grid[1] == 0 || grid[2] == 0 || grid[1] > 65535 || grid[2] > 65535)
        return say("no possible grid");
    std::vector<unsigned char> memory(shared_bytes + 2 * guard_bytes + 128);
    unsigned char *const shared = memory.data() + guard_bytes + (128 - uintptr_t(memory.data() + guard_bytes) % 128) % 128;
    block.call = entry->second;
    block.params = params;
    block.shared = shared;
    block.failure.clear();
    for (uint32_t b = 0; b < grid[0] * grid[1] * grid[2]; b++) {
        std::memset(memory.data(), poison, memory.size());
        block.fibers.clear();
        block.fibers.resize(n);
        for (size_t i = 0; i < n; i++) {
            void *stack = stacks.at(i);
            if (stack == nullptr)
                return say("no memory for stacks");
            Fiber &fiber = block.fibers[i];
            fiber.stack = prepare_stack(stack, stack_bytes, begin);
            fiber.place.thread = {uint32_t(i % threads[0]), uint32_t(i / threads[0] % threads[1]), uint32_t(i / threads[0] / threads[1])};
            fiber.place.block = {b % grid[0], b / grid[0] % grid[1], b / grid[0] / grid[1]};
            fiber.place.block_dim = {threads[0], threads[1], threads[2]};
            fiber.place.grid_dim = {grid[0], grid[1], grid[2]};
            fiber.place.lane = uint32_t(i % 32);
        }
        run_block(reversed != 0);
        for (size_t i = 0; i < guard_bytes && block.failure.empty(); i++)
            if (shared[shared_bytes + i] != poison || (i < 128 && shared[-1 - int(i)] != poison))
                block.failure = where(block.fibers[0].place) + ": wrote outside of its shared memory";
        if (!block.failure.empty())
            break;
    }
    block.fibers.clear();
    return block.failure.empty() ? 0 : say(block.failure);
}

// Writes the sizes of a kernel's parameters, at most `max` of them. Returns their number, or -1 if there is no such
// kernel.
extern "C" __attribute__((visibility("hidden"))) int32_t cleave_sim_params(const char *kernel, size_t *sizes, int32_t max)
{
    const auto found = sim::parameter_sizes().find(kernel);
    if (found == sim::parameter_sizes().end())
        return -1;
    int32_t n = 0;
    for (; found->second[n] != 0; n++)
        if (n < max)
            sizes[n] = found->second[n];
    return n;
}

// Ends the kernel that runs on this thread with the error `what`, and does not return. Meant for signal handlers.
// Returns if no kernel runs.
extern "C" __attribute__((visibility("hidden"))) void cleave_sim_fault(const char *what, const void *address)
{
    if (!sim::block.inside)
        return;
    char text[96];
    std::snprintf(text, sizeof text, "%s %p", what, address);
    sim::fail(text);
}

// Returns the name of the kernel that follows `before` in alphabetical order. Null asks for the first and is returned
// after the last.
extern "C" __attribute__((visibility("hidden"))) const char *cleave_sim_next(const char *before)
{
    const auto &all = sim::parameter_sizes();
    const auto next = before == nullptr ? all.begin() : all.upper_bound(before);
    return next == all.end() ? nullptr : next->first.c_str();
}
