// Stacks to switch between, within one OS thread.
#pragma once

#include <cstddef>

namespace sim {

// Leaves the stack that runs, keeps its pointer in `*from`, and goes on where `to` was left.
extern "C" __attribute__((visibility("hidden"))) void cleave_sim_switch(void **from, void *to);

// A pointer as cleave_sim_switch leaves them, for a stack that begins with `entry`. That never returns.
void *prepare_stack(void *memory, size_t bytes, void (*entry)());

} // namespace sim
