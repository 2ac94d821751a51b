// A stand-in for `libcuda.so.1`: the functions that `kernels/src/cuda` asks for, over the memory of the
// CPU and the emulation. For tests. It is strict where a card is quiet: memory starts as 0xFF, must be
// zero when it is given back, and nothing may be left when the context goes.
//
// What it plays is told by the environment:
//   STANDIN_VERSION   the driver's version               STANDIN_DEVICES      how many cards
//   STANDIN_MEMORY    bytes of the card                  STANDIN_CAPABILITY   ten times the capability
//   STANDIN_LAUNCHES  a file that gets each kernel's name
#include <stdio.h>
#include <stdlib.h>

#include <map>
#include <string>

#include "device.h"

namespace {

using Result = int;
using Handle = void*;
using Address = uint64_t;

constexpr Result SUCCESS = 0, INVALID_VALUE = 1, OUT_OF_MEMORY = 2, NO_DEVICE = 100;
constexpr Result INVALID_IMAGE = 200, NOT_FOUND = 500, ILLEGAL_ADDRESS = 700;
constexpr uint32_t IMAGE_MAGIC = 0xBA55ED50;
constexpr int MULTIPROCESSORS = 16, MAJOR = 75, MINOR = 76, MAX_DYNAMIC_SHARED = 8;

size_t setting(const char* name, size_t otherwise) {
    const char* value = getenv(name);
    return value ? strtoull(value, nullptr, 10) : otherwise;
}

// What is allocated: address and size.
std::map<Address, size_t> allocations;
size_t used = 0;

size_t capacity() { return setting("STANDIN_MEMORY", size_t(1) << 30); }

// Whether so many bytes lie in one allocation.
bool is_inside(Address address, size_t size) {
    auto after = allocations.upper_bound(address);
    if (after == allocations.begin()) return false;
    auto found = std::prev(after);
    return address + size <= found->first + found->second;
}

[[noreturn]] void refuse(const char* what) {
    fprintf(stderr, "stand-in: %s\n", what);
    _Exit(4);
}

struct Function {
    const char* name;
    emulated::Entry entry;
    size_t shared_max;
};
std::map<std::string, Function> functions;

void tell_launch(const char* name) {
    const char* path = getenv("STANDIN_LAUNCHES");
    if (!path) return;
    FILE* file = fopen(path, "a");
    if (!file) refuse("the file of launches cannot be written");
    fprintf(file, "%s\n", name);
    fclose(file);
}

}  // namespace

extern "C" {

Result cuDriverGetVersion(int* version) {
    *version = int(setting("STANDIN_VERSION", 13000));
    return SUCCESS;
}
Result cuInit(unsigned) { return setting("STANDIN_DEVICES", 1) == 0 ? NO_DEVICE : SUCCESS; }
Result cuDeviceGetCount(int* count) {
    *count = int(setting("STANDIN_DEVICES", 1));
    return SUCCESS;
}
Result cuDeviceGet(int* device, int number) {
    *device = number;
    return SUCCESS;
}
Result cuDeviceGetName(char* name, int len, int) {
    snprintf(name, size_t(len), "CUDA kernels on the CPU");
    return SUCCESS;
}
Result cuDeviceGetAttribute(int* value, int attribute, int) {
    int capability = int(setting("STANDIN_CAPABILITY", 80));
    if (attribute == MULTIPROCESSORS) *value = 1;
    else if (attribute == MAJOR) *value = capability / 10;
    else if (attribute == MINOR) *value = capability % 10;
    else return INVALID_VALUE;
    return SUCCESS;
}
Result cuDeviceTotalMem_v2(size_t* size, int) {
    *size = capacity();
    return SUCCESS;
}
Result cuDevicePrimaryCtxRetain(Handle* context, int) {
    *context = &allocations;
    return SUCCESS;
}
Result cuDevicePrimaryCtxRelease_v2(int) {
    if (!allocations.empty()) refuse("memory is left when the context goes");
    return SUCCESS;
}
Result cuCtxSetCurrent(Handle context) { return context ? SUCCESS : INVALID_VALUE; }
Result cuMemGetInfo_v2(size_t* free, size_t* total) {
    *total = capacity();
    *free = *total - used;
    return SUCCESS;
}
Result cuMemAlloc_v2(Address* address, size_t size) {
    if (size == 0) return INVALID_VALUE;
    if (used + size > capacity()) return OUT_OF_MEMORY;
    void* memory = aligned_alloc(256, (size + 255) / 256 * 256);
    if (!memory) return OUT_OF_MEMORY;
    memset(memory, 0xFF, size);
    *address = Address(memory);
    allocations[*address] = size;
    used += size;
    return SUCCESS;
}
Result cuMemFree_v2(Address address) {
    auto found = allocations.find(address);
    if (found == allocations.end()) return INVALID_VALUE;
    const unsigned char* bytes = reinterpret_cast<unsigned char*>(address);
    for (size_t i = 0; i < found->second; i++) {
        if (bytes[i] != 0) refuse("memory that is given back is not zero");
    }
    used -= found->second;
    allocations.erase(found);
    free(reinterpret_cast<void*>(address));
    return SUCCESS;
}
Result cuMemsetD8Async(Address to, unsigned char byte, size_t size, Handle) {
    if (!is_inside(to, size)) return INVALID_VALUE;
    memset(reinterpret_cast<void*>(to), byte, size);
    return SUCCESS;
}
Result cuMemcpyHtoDAsync_v2(Address to, const void* from, size_t size, Handle) {
    if (!is_inside(to, size)) return INVALID_VALUE;
    memcpy(reinterpret_cast<void*>(to), from, size);
    return SUCCESS;
}
Result cuMemcpyDtoHAsync_v2(void* to, Address from, size_t size, Handle) {
    if (!is_inside(from, size)) return INVALID_VALUE;
    memcpy(to, reinterpret_cast<void*>(from), size);
    return SUCCESS;
}
Result cuStreamCreate(Handle* stream, unsigned) {
    *stream = &used;
    return SUCCESS;
}
Result cuStreamDestroy_v2(Handle) { return SUCCESS; }
Result cuStreamSynchronize(Handle stream) { return stream == &used ? SUCCESS : ILLEGAL_ADDRESS; }
Result cuModuleLoadData(Handle* module, const void* image) {
    uint32_t magic;
    memcpy(&magic, image, 4);
    if (magic != IMAGE_MAGIC) return INVALID_IMAGE;
    *module = &functions;
    return SUCCESS;
}
Result cuModuleUnload(Handle) { return SUCCESS; }
Result cuModuleGetFunction(Handle* function, Handle, const char* name) {
    emulated::Entry entry = emulated::find(name);
    if (!entry.call) return NOT_FOUND;
    auto& known = functions[name];
    known = {functions.find(name)->first.c_str(), entry, 48 * 1024};
    *function = &known;
    return SUCCESS;
}
Result cuFuncLoad(Handle) { return SUCCESS; }
Result cuFuncSetAttribute(Handle function, int attribute, int value) {
    if (attribute != MAX_DYNAMIC_SHARED || value > 99 * 1024) return INVALID_VALUE;
    static_cast<Function*>(function)->shared_max = size_t(value);
    return SUCCESS;
}
Result cuFuncGetParamInfo(Handle function, size_t index, size_t* at, size_t* size) {
    const std::vector<size_t>& sizes = *static_cast<Function*>(function)->entry.sizes;
    if (index >= sizes.size()) return INVALID_VALUE;
    *at = 0;
    *size = sizes[index];
    return SUCCESS;
}
Result cuLaunchKernel(Handle function, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by,
                      unsigned bz, unsigned shared, Handle stream, void** arguments, void**) {
    Function& f = *static_cast<Function*>(function);
    if (gx * gy * gz == 0 || bx * by * bz == 0 || bx * by * bz > f.entry.threads_max) return INVALID_VALUE;
    if (shared > f.shared_max || stream != &used) return INVALID_VALUE;
    tell_launch(f.name);
    f.entry.call(dim3(gx, gy, gz), dim3(bx, by, bz), shared, arguments);
    return SUCCESS;
}

}  // extern "C"
