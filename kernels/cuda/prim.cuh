// What differs between the card and the CPU emulation. The only file with PTX: everything else is
// C++ that both compilers read. Sums and products are rounded one by one (`-fmad=false`); where a
// fused multiply-add is meant, `fmaf` says so.
#pragma once

#ifdef CLOISTER_EMULATED
#include "emulated/device.h"
#else

#include <cuda_fp16.h>
#include <stddef.h>
#include <stdint.h>

#define DEVICE __device__ __forceinline__
// An argument that is read where it lies.
#define GRID_CONSTANT const __grid_constant__
// The same for a member of a type.
#define DEVICE_MEMBER __device__ __forceinline__
// A table in the memory of the card.
#define TABLE __device__ const

// A kernel of up to `threads` threads a block, of which `blocks` or more share a multiprocessor.
#define KERNEL(threads, blocks, name, ...) \
    extern "C" __global__ void __launch_bounds__(threads, blocks) name(__VA_ARGS__)

// The block's shared memory, one declaration a kernel.
#define SHARED(Type, name) __shared__ __align__(16) Type name
// The same where it may be more than 48 KB: the launch must ask for `sizeof(Type)` bytes.
#define SHARED_LARGE(Type, name)                               \
    extern __shared__ __align__(128) unsigned char raw_##name[]; \
    Type& name = *reinterpret_cast<Type*>(raw_##name)

DEVICE float half_to_float(uint16_t bits) { return __half2float(__ushort_as_half(bits)); }
// To the nearest, ties to even.
DEVICE uint16_t float_to_half(float x) { return __half_as_ushort(__float2half_rn(x)); }
DEVICE uint32_t bits_of(float x) { return __float_as_uint(x); }
DEVICE float float_of(uint32_t bits) { return __uint_as_float(bits); }

// Four products of signed bytes, added to `sum`.
DEVICE int dot4(uint32_t a, uint32_t b, int sum) { return __dp4a(int(a), int(b), sum); }

DEVICE uint32_t shared_address(const void* p) { return uint32_t(__cvta_generic_to_shared(p)); }

// Starts a copy of 16 bytes from global to shared memory, past the first-level cache.
DEVICE void copy_async_16(void* shared, const void* global) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;\n" ::"r"(shared_address(shared)),
                 "l"(global)
                 : "memory");
}

// The same for 8 bytes.
DEVICE void copy_async_8(void* shared, const void* global) {
    asm volatile("cp.async.ca.shared.global [%0], [%1], 8;\n" ::"r"(shared_address(shared)),
                 "l"(global)
                 : "memory");
}

// Ends a group of copies.
DEVICE void copy_async_commit() { asm volatile("cp.async.commit_group;\n" ::: "memory"); }

// Waits until at most `groups` groups of this thread's copies are under way.
template <int groups>
DEVICE void copy_async_wait() {
    asm volatile("cp.async.wait_group %0;\n" ::"n"(groups) : "memory");
}

// Loads four matrices of 8 rows of 16 bytes. Lane `l` gives the address of row `l % 8` of matrix
// `l / 8`, and gets of each matrix the four bytes `4 * (l % 4)` of row `l / 4`.
DEVICE void load_matrices_4(uint32_t (&r)[4], const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];\n"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared_address(row))
                 : "memory");
}

// The products of tensor cores on signed bytes: `c[16 x 8] += a[16 x k] * b[k x 8]`, exact. With
// `g = lane / 4`, `t = lane % 4`:
//   a[0], a[1]   rows g, g + 8, columns 4t..4t+3       a[2], a[3]   the same, columns 16 further
//   b[0]         rows 4t..4t+3 of column g             b[1]         the same, 16 rows further
//   c[0], c[1]   row g, columns 2t, 2t + 1             c[2], c[3]   row g + 8
DEVICE void mma_32(int (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
    asm volatile(
        "mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 "
        "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};\n"
        : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

DEVICE void mma_16(int (&c)[4], uint32_t a0, uint32_t a1, uint32_t b0) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.s32.s8.s8.s32 "
        "{%0,%1,%2,%3}, {%4,%5}, {%6}, {%0,%1,%2,%3};\n"
        : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3])
        : "r"(a0), "r"(a1), "r"(b0));
}

#endif
