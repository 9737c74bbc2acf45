// Fibers: many stacks in one thread of the operating system.
#pragma once
#include <setjmp.h>
#include <ucontext.h>

#include <memory>

namespace emulator {

// A stack and where it stopped. Begun by makecontext, which is portable; switched by _setjmp and _longjmp afterwards, as swapcontext
// calls the operating system every time.
struct Fiber {
    static constexpr size_t STACK_BYTES = 64 * 1024;

    std::unique_ptr<char[]> stack{new char[STACK_BYTES]};
    ucontext_t context;
    jmp_buf place;
    bool has_begun = false;

    // Makes it begin with `entry`, which must not return.
    void prepare(void (*entry)());
    // Runs it until it calls `leave`.
    void enter();
    // Goes back to whoever entered it.
    void leave();
};

} // namespace emulator
