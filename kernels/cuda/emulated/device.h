// CUDA's language for a C++ compiler: a fiber for each thread of a block, blocks one after another.
//
// What it checks that a card does not: shared memory, cold registers of a block and everything that
// is allocated start as 0xFF bytes (NaN); a copy that is not waited for never arrives; fibers run in
// a random order between barriers, so that a missing barrier shows; a barrier that some threads
// never reach ends the program. Memory errors are the address sanitizer's. What it does not check:
// time, bank conflicts, the memory model.
#pragma once

#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <deque>
#include <tuple>
#include <utility>
#include <vector>

struct dim3 {
    unsigned x = 1, y = 1, z = 1;
    dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};
struct alignas(8) uint2 { unsigned x, y; };
struct alignas(16) uint4 { unsigned x, y, z, w; };
struct alignas(8) int2 { int x, y; };
struct alignas(8) float2 { float x, y; };
struct alignas(16) float4 { float x, y, z, w; };

#define __device__
#define __restrict__ __restrict
#define __align__(n) alignas(n)
#define DEVICE static inline
#define GRID_CONSTANT const
#define DEVICE_MEMBER inline
#define TABLE static const

namespace emulated {

// What the lanes of a warp show each other.
constexpr int EXCHANGE_WORDS = 8;

struct Barrier {
    unsigned arrived = 0, generation = 0, alive = 0;
    void wait();
    void leave();
};

struct Copy { void* to; const void* from; size_t size; };

struct Fiber {
    void* stack_pointer = nullptr;
    char* stack = nullptr;
    dim3 thread;
    int index = 0;
    bool is_done = false;
    // Copies that were started: the last group is still open.
    std::deque<std::vector<Copy>> copies;
};

struct Warp {
    Barrier barrier;
    uint32_t shown[32][EXCHANGE_WORDS];
};

struct Block {
    dim3 block, block_dim, grid_dim;
    Barrier barrier;
    std::vector<Fiber> fibers;
    std::vector<Warp> warps;
    Fiber* current = nullptr;
    void* main_stack_pointer = nullptr;
    void (*entry)(void*) = nullptr;
    void* argument = nullptr;
    // Allocated at its first use in a block, freed with the block.
    unsigned char* shared = nullptr;
    size_t shared_size = 0, shared_dynamic = 0;
};

extern Block the_block;

// Runs a grid. `seed` decides the order of the fibers.
void launch(dim3 grid, dim3 block, size_t shared, void (*entry)(void*), void* argument);
void set_seed(uint64_t seed);
void* shared_memory(size_t size, bool is_dynamic);
[[noreturn]] void fail(const char* what);

inline Warp& warp() { return the_block.warps[size_t(the_block.current->index) / 32]; }
inline int lane() { return the_block.current->index % 32; }

// Every lane shows words, and reads those of other lanes in `read`.
template <class Read>
inline void exchange(const uint32_t* words, int count, Read read) {
    Warp& w = warp();
    memcpy(w.shown[lane()], words, size_t(count) * 4);
    w.barrier.wait();
    read(w.shown);
    w.barrier.wait();
}

template <class T>
inline T from_lane(T value, int source) {
    static_assert(sizeof(T) % 4 == 0 && sizeof(T) <= 8, "a word or two");
    uint32_t words[2] = {};
    memcpy(words, &value, sizeof(T));
    T result;
    exchange(words, 2, [&](uint32_t (*shown)[EXCHANGE_WORDS]) {
        memcpy(&result, shown[source & 31], sizeof(T));
    });
    return result;
}

// Kernels by name: how to call one, the threads that a block may have, the bytes of each argument.
using Call = void (*)(dim3 grid, dim3 block, size_t shared, void** arguments);
struct Entry {
    Call call = nullptr;
    unsigned threads_max = 0;
    const std::vector<size_t>* sizes = nullptr;
};
struct Registered { Registered(const char* name, Entry entry); };
// An entry without a call if there is no such kernel.
Entry find(const char* name);

template <auto F>
struct Kernel;
template <class... A, void (*F)(A...)>
struct Kernel<F> {
    using Arguments = std::tuple<A...>;
    static inline const std::vector<size_t> sizes{sizeof(A)...};
    static Entry entry(unsigned threads_max) { return {call, threads_max, &sizes}; }
    static void enter(void* arguments) { std::apply(F, *static_cast<Arguments*>(arguments)); }
    template <size_t... I>
    static Arguments read(void** from, std::index_sequence<I...>) {
        return Arguments{*static_cast<A*>(from[I])...};
    }
    static void call(dim3 grid, dim3 block, size_t shared, void** from) {
        Arguments arguments = read(from, std::index_sequence_for<A...>{});
        launch(grid, block, shared, enter, &arguments);
    }
};

}  // namespace emulated

#define KERNEL(threads, blocks, name, ...)                                                   \
    extern "C" void name(__VA_ARGS__);                                                       \
    static emulated::Registered registered_##name(#name, emulated::Kernel<name>::entry(threads)); \
    extern "C" void name(__VA_ARGS__)

#define SHARED(Type, name) Type& name = *static_cast<Type*>(emulated::shared_memory(sizeof(Type), false))
#define SHARED_LARGE(Type, name) Type& name = *static_cast<Type*>(emulated::shared_memory(sizeof(Type), true))

#define threadIdx (emulated::the_block.current->thread)
#define blockIdx (emulated::the_block.block)
#define blockDim (emulated::the_block.block_dim)
#define gridDim (emulated::the_block.grid_dim)

inline void __syncthreads() { emulated::the_block.barrier.wait(); }
inline void __syncwarp() { emulated::warp().barrier.wait(); }
template <class T>
inline T __shfl_xor_sync(unsigned, T value, int mask) {
    return emulated::from_lane(value, emulated::lane() ^ mask);
}
template <class T>
inline T __shfl_up_sync(unsigned, T value, int by) {
    int lane = emulated::lane();
    return emulated::from_lane(value, lane >= by ? lane - by : lane);
}
template <class T>
inline T __shfl_sync(unsigned, T value, int source) {
    return emulated::from_lane(value, source);
}
inline int min(int a, int b) { return a < b ? a : b; }
inline int max(int a, int b) { return a > b ? a : b; }
inline unsigned atomicOr(unsigned* p, unsigned value) {
    unsigned old = *p;
    *p = old | value;
    return old;
}

DEVICE uint32_t bits_of(float x) {
    uint32_t bits;
    memcpy(&bits, &x, 4);
    return bits;
}
DEVICE float float_of(uint32_t bits) {
    float x;
    memcpy(&x, &bits, 4);
    return x;
}
DEVICE float half_to_float(uint16_t bits) {
    uint32_t sign = uint32_t(bits & 0x8000) << 16, exponent = bits >> 10 & 31, rest = bits & 1023;
    if (exponent == 0) {
        float x = float(rest) * 0x1p-24f;
        return sign ? -x : x;
    }
    return float_of(sign | (exponent == 31 ? 0x7F800000 : (exponent + 112) << 23) | rest << 13);
}
DEVICE uint16_t float_to_half(float x) {
    uint32_t bits = bits_of(x), sign = bits >> 16 & 0x8000, size = bits & 0x7FFFFFFF;
    if (size > 0x7F800000) return uint16_t(sign | 0x7E00);
    // Adding a power of two whose last place is that of the result rounds to it.
    float held = float_of(size);
    if (held < 0x1p-14f) return uint16_t(sign | (bits_of(held + 0.5f) - bits_of(0.5f)));
    uint32_t rounded = size + 0xFFF + (size >> 13 & 1);
    if (rounded >= 0x47800000) return uint16_t(sign | 0x7C00);
    return uint16_t(sign | ((rounded >> 13) - (112 << 10)));
}

DEVICE int dot4(uint32_t a, uint32_t b, int sum) {
    for (int i = 0; i < 4; i++) sum += int(int8_t(a >> 8 * i)) * int(int8_t(b >> 8 * i));
    return sum;
}

void copy_async(void* shared, const void* global, size_t size);
inline void copy_async_16(void* shared, const void* global) { copy_async(shared, global, 16); }
inline void copy_async_8(void* shared, const void* global) { copy_async(shared, global, 8); }
void copy_async_commit();
void copy_async_wait_for(size_t groups);
template <int groups>
inline void copy_async_wait() { copy_async_wait_for(groups); }

inline void load_matrices_4(uint32_t (&r)[4], const void* row) {
    int lane = emulated::lane();
    uint32_t words[4];
    memcpy(words, row, 16);
    uint32_t(&result)[4] = r;
    emulated::exchange(words, 4, [&](uint32_t (*shown)[emulated::EXCHANGE_WORDS]) {
        for (int m = 0; m < 4; m++) result[m] = shown[m * 8 + lane / 4][lane % 4];
    });
}

// `a` is `[16][k]` and `b` `[k][8]`, as the lanes hold them: words `a0..a3`, then `b0, b1`.
inline void mma_of(int (&c)[4], const uint32_t* words, int depth) {
    int lane = emulated::lane(), g = lane / 4, t = lane % 4;
    emulated::exchange(words, 6, [&](uint32_t (*shown)[emulated::EXCHANGE_WORDS]) {
        for (int i = 0; i < 4; i++) {
            int column = 2 * t + i % 2, high_row = i / 2;
            for (int k = 0; k < depth; k += 4) {
                int part = k / 4 % 4, further = k / 16;
                uint32_t a = shown[g * 4 + part][high_row + 2 * further];
                uint32_t b = shown[column * 4 + part][4 + further];
                c[i] = dot4(a, b, c[i]);
            }
        }
    });
}
inline void mma_32(int (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
    uint32_t words[6] = {a[0], a[1], a[2], a[3], b0, b1};
    mma_of(c, words, 32);
}
inline void mma_16(int (&c)[4], uint32_t a0, uint32_t a1, uint32_t b0) {
    uint32_t words[6] = {a0, a1, 0, 0, b0, 0};
    mma_of(c, words, 16);
}
