// Switching between stacks within one OS thread.
#pragma once

#include <cstddef>

namespace sim {

// Suspends the running stack, saves its stack pointer in `*from`, and continues where `to` was suspended.
extern "C" __attribute__((visibility("hidden"))) void cleave_sim_switch(void **from, void *to);

// Prepares a new stack for cleave_sim_switch and returns its stack pointer. The stack starts at `entry`, which must
// never return.
void *prepare_stack(void *memory, size_t bytes, void (*entry)());

} // namespace sim
