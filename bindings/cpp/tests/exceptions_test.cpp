// Tests or_throw(), which CLEAVE_EXCEPTIONS enables.
#ifndef CLEAVE_EXCEPTIONS
#error "for a program that is built with CLEAVE_EXCEPTIONS"
#endif
#include "support.hpp"

#include <memory>

using namespace cleave;

namespace {

TEST(OrThrow, GivesTheValueOrThrows)
{
    EXPECT_EQ(Result<int>(3).or_throw(), 3);
    Result<std::unique_ptr<int>> held = std::make_unique<int>(4);
    EXPECT_EQ(*held.or_throw(), 4);
    const std::unique_ptr<int> taken = std::move(held).or_throw();
    EXPECT_EQ(*taken, 4);
    Result<void>().or_throw();
    try {
        Model::load("/no/such/directory").or_throw();
        FAIL() << "nothing was thrown";
    } catch (const Exception &e) {
        EXPECT_EQ(e.code(), Status::NotFound);
        EXPECT_NE(std::string(e.what()).find("/no/such/directory"), std::string::npos) << e.what();
    }
    EXPECT_THROW(Result<void>(Error(Status::Io)).or_throw(), std::runtime_error);
}

TEST(OrThrow, ObjectsEndWhileTheStackUnwinds)
{
    cleave_queue_t *c = nullptr;
    try {
        const Queue queue = Queue::create().or_throw();
        c = queue.get();
        Queue::create(1).or_throw();
    } catch (const Exception &e) {
        EXPECT_EQ(e.code(), Status::InvalidArgument);
    }
    ASSERT_NE(c, nullptr);
    EXPECT_EQ(Queue::adopt(c).fd().status(), Status::NotFound);
}

} // namespace
