// Runs the blocks of a grid: fibers, barriers, shared memory, copies. See `device.h`.
#include "device.h"

#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>

#include <map>
#include <string>

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#else
#define ASAN_UNPOISON_MEMORY_REGION(address, size) ((void)(address), (void)(size))
#endif

// Saves the callee's registers and the stack pointer, and goes on where `to` was saved.
asm(R"(
.pushsection .text
.globl emulated_switch
.type emulated_switch, @function
emulated_switch:
    push %rbp
    push %rbx
    push %r12
    push %r13
    push %r14
    push %r15
    mov %rsp, (%rdi)
    mov %rsi, %rsp
    pop %r15
    pop %r14
    pop %r13
    pop %r12
    pop %rbx
    pop %rbp
    ret
.size emulated_switch, .-emulated_switch
.popsection
)");
extern "C" void emulated_switch(void** from, void* to);

namespace emulated {

Block the_block;

namespace {

// Bytes of a fiber's stack: sanitized frames are large.
constexpr size_t STACK_SIZE = 512 * 1024;
constexpr unsigned THREADS_MAX = 1024;
// What a card of compute capability 8.6 gives one block.
constexpr size_t SHARED_MAX = 99 * 1024, SHARED_STATIC_MAX = 48 * 1024;
constexpr unsigned char POISON = 0xFF;

uint64_t random_state = 1;

uint64_t random_number() {
    random_state += 0x9E3779B97F4A7C15;
    uint64_t mix = random_state;
    mix = (mix ^ mix >> 30) * 0xBF58476D1CE4E5B9;
    mix = (mix ^ mix >> 27) * 0x94D049BB133111EB;
    return mix ^ mix >> 31;
}

// What a fiber waits for, by its index: a barrier, and the generation that it saw.
struct Waiting { Barrier* barrier; unsigned generation; };
Waiting waiting[THREADS_MAX];

void give_way() {
    Fiber* fiber = the_block.current;
    emulated_switch(&fiber->stack_pointer, the_block.main_stack_pointer);
}

void run_fiber() {
    the_block.entry(the_block.argument);
    Fiber* fiber = the_block.current;
    if (fiber->copies.size() > 1 || !fiber->copies.back().empty()) fail("a copy was never waited for");
    fiber->is_done = true;
    warp().barrier.leave();
    the_block.barrier.leave();
    give_way();
    abort();
}

void prepare(Fiber& fiber, int index, dim3 dim) {
    if (!fiber.stack) {
        void* stack = mmap(nullptr, STACK_SIZE, PROT_READ | PROT_WRITE,
                           MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (stack == MAP_FAILED) fail("no memory for a stack");
        fiber.stack = static_cast<char*>(stack);
    }
    ASAN_UNPOISON_MEMORY_REGION(fiber.stack, STACK_SIZE);
    unsigned i = unsigned(index);
    fiber.index = index;
    fiber.thread = dim3(i % dim.x, i / dim.x % dim.y, i / dim.x / dim.y);
    fiber.is_done = false;
    fiber.copies.assign(1, {});
    // A return address of 0 below the entry keeps the stack aligned as after a call.
    void** top = reinterpret_cast<void**>(fiber.stack + STACK_SIZE - 72);
    *top = nullptr;
    *--top = reinterpret_cast<void*>(run_fiber);
    for (int saved = 0; saved < 6; saved++) *--top = nullptr;
    fiber.stack_pointer = top;
    waiting[index] = {nullptr, 0};
}

// Most rounds that a warp is held back while the others go on.
constexpr unsigned ROUNDS_HELD_MAX = 64;

// Runs every fiber of the block to its end, in rounds. Now and then a warp is held back as long as
// others can run, so that what it should have waited for, or others for it, comes late.
void run_block(unsigned threads) {
    std::vector<unsigned> order(threads);
    for (unsigned i = 0; i < threads; i++) order[i] = i;
    const unsigned warps = unsigned(the_block.warps.size());
    // The warp that is held back, `warps` for none, and for how many rounds.
    unsigned left = threads, held = warps, rounds = 0;
    while (left > 0) {
        if (rounds == 0) {
            held = unsigned(random_number() % (warps + 1));
            rounds = 1 + unsigned(random_number() % ROUNDS_HELD_MAX);
        }
        rounds--;
        for (unsigned i = threads - 1; i > 0; i--) std::swap(order[i], order[random_number() % (i + 1)]);
        bool has_run = false;
        for (unsigned i : order) {
            Fiber& fiber = the_block.fibers[i];
            Waiting& wait = waiting[i];
            if (fiber.is_done || i / 32 == held) continue;
            if (wait.barrier && wait.barrier->generation == wait.generation) continue;
            wait.barrier = nullptr;
            the_block.current = &fiber;
            emulated_switch(&the_block.main_stack_pointer, fiber.stack_pointer);
            has_run = true;
            left -= fiber.is_done;
        }
        if (!has_run && held == warps) fail("threads wait for others that never come");
        if (!has_run) {
            // A round for all, then the next warp.
            held = warps;
            rounds = 1;
        }
    }
}

std::map<std::string, Entry>& kernels() {
    static std::map<std::string, Entry> table;
    return table;
}

}  // namespace

[[noreturn]] void fail(const char* what) {
    Block& b = the_block;
    fprintf(stderr, "emulated: %s (block %u %u %u", what, b.block.x, b.block.y, b.block.z);
    if (b.current) fprintf(stderr, ", thread %d", b.current->index);
    fprintf(stderr, ")\n");
    fflush(stderr);
    _Exit(3);
}

void set_seed(uint64_t seed) { random_state = seed; }

void Barrier::wait() {
    if (++arrived >= alive) {
        arrived = 0;
        generation++;
        return;
    }
    waiting[the_block.current->index] = {this, generation};
    give_way();
}

void Barrier::leave() {
    alive--;
    if (alive > 0 && arrived >= alive) {
        arrived = 0;
        generation++;
    }
}

void* shared_memory(size_t size, bool is_dynamic) {
    Block& b = the_block;
    if (is_dynamic && size > b.shared_dynamic) fail("the launch gives too little shared memory");
    if (size > (is_dynamic ? SHARED_MAX : SHARED_STATIC_MAX)) fail("more shared memory than a block has");
    if (!b.shared) {
        b.shared = static_cast<unsigned char*>(aligned_alloc(128, (size + 127) / 128 * 128));
        b.shared_size = size;
        memset(b.shared, POISON, size);
    }
    if (b.shared_size != size) fail("two declarations of shared memory");
    return b.shared;
}

void launch(dim3 grid, dim3 block, size_t shared, void (*entry)(void*), void* argument) {
    unsigned threads = block.x * block.y * block.z;
    Block& b = the_block;
    b.current = nullptr;
    if (threads == 0 || threads > THREADS_MAX) fail("a block has 1 to 1024 threads");
    if (grid.x == 0 || grid.y == 0 || grid.z == 0) fail("an empty grid");
    if (grid.y > 65535 || grid.z > 65535) fail("a grid beyond the card's bounds");
    b.block_dim = block;
    b.grid_dim = grid;
    b.entry = entry;
    b.argument = argument;
    b.shared_dynamic = shared;
    if (b.fibers.size() < threads) b.fibers.resize(threads);
    for (unsigned z = 0; z < grid.z; z++)
        for (unsigned y = 0; y < grid.y; y++)
            for (unsigned x = 0; x < grid.x; x++) {
                b.block = dim3(x, y, z);
                b.barrier = Barrier{0, 0, threads};
                b.warps.assign((threads + 31) / 32, Warp{});
                for (unsigned i = 0; i < threads; i++) {
                    prepare(b.fibers[i], int(i), block);
                    b.warps[i / 32].barrier.alive++;
                }
                run_block(threads);
                free(b.shared);
                b.shared = nullptr;
                b.current = nullptr;
            }
}

Registered::Registered(const char* name, Entry entry) {
    if (!kernels().emplace(name, entry).second) fail("two kernels of one name");
}

Entry find(const char* name) {
    auto found = kernels().find(name);
    return found == kernels().end() ? Entry{} : found->second;
}

}  // namespace emulated

void copy_async(void* shared, const void* global, size_t size) {
    if (uintptr_t(shared) % size != 0 || uintptr_t(global) % size != 0) {
        emulated::fail("a copy that is not aligned to its size");
    }
    emulated::the_block.current->copies.back().push_back({shared, global, size});
}

void copy_async_commit() { emulated::the_block.current->copies.emplace_back(); }

void copy_async_wait_for(size_t groups) {
    auto& copies = emulated::the_block.current->copies;
    while (copies.size() - 1 > groups) {
        for (const emulated::Copy& copy : copies.front()) memcpy(copy.to, copy.from, copy.size);
        copies.pop_front();
    }
}
