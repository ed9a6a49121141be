#include "fiber.hpp"

#include <cstdint>

#if !defined(__x86_64__)
#error "the simulator switches stacks on x86-64 only"
#endif

// Saves the registers that a called function must preserve; the return address is on the stack already.
asm(R"(
    .text
    .globl cleave_sim_switch
    .hidden cleave_sim_switch
    .type cleave_sim_switch, @function
cleave_sim_switch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
    .size cleave_sim_switch, . - cleave_sim_switch
)");

namespace sim {

void *prepare_stack(void *memory, size_t bytes, void (*entry)())
{
    void **top = reinterpret_cast<void **>((reinterpret_cast<uintptr_t>(memory) + bytes) & ~uintptr_t(15));
    *--top = nullptr; // where a caller's return address would be
    *--top = reinterpret_cast<void *>(entry);
    for (int i = 0; i < 6; i++)
        *--top = nullptr;
    return top;
}

} // namespace sim
