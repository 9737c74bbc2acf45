// How fibers are switched.
#include "fiber.h"

namespace emulator {

// Of whoever runs the fibers.
static ucontext_t outer_context;
static jmp_buf outer_place;

void Fiber::prepare(void (*entry)()) {
    getcontext(&context);
    context.uc_stack.ss_sp = stack.get();
    context.uc_stack.ss_size = STACK_BYTES;
    context.uc_link = nullptr;
    makecontext(&context, entry, 0);
    has_begun = false;
}

void Fiber::enter() {
    if (_setjmp(outer_place) != 0) return;
    if (has_begun) _longjmp(place, 1);
    has_begun = true;
    swapcontext(&outer_context, &context);
}

void Fiber::leave() {
    if (_setjmp(place) == 0) _longjmp(outer_place, 1);
}

} // namespace emulator
