// Runs launches that come on standard input and gives buffers back on standard output.
//
// Little endian; u32 unless said otherwise:
//   seed: u64
//   buffers: count; each: size: u64, has bytes, is returned, then the bytes if it has any
//   launches: count; each: name length, name, grid x y z, block x y z, shared bytes, arguments: count;
//     each: size, bytes, pointers in it: count; each: at, buffer, offset: u64
// Each buffer is an allocation of its own, so that the address sanitizer sees its bounds; one without
// bytes starts as 0xFF. A kernel that is not there, or a request that is cut short, ends with status 2.
#include <stdio.h>
#include <stdlib.h>

#include <string>

#include "device.h"

namespace {

[[noreturn]] void refuse(const char* what) {
    fprintf(stderr, "emulated: %s\n", what);
    exit(2);
}

void read_bytes(void* to, size_t size) {
    if (fread(to, 1, size, stdin) != size) refuse("the request is cut short");
}

template <class T>
T read() {
    T value;
    read_bytes(&value, sizeof value);
    return value;
}

struct Buffer {
    unsigned char* bytes;
    size_t size;
    bool is_returned;
};

std::vector<Buffer> read_buffers() {
    std::vector<Buffer> buffers(read<uint32_t>());
    for (Buffer& buffer : buffers) {
        buffer.size = read<uint64_t>();
        bool has_bytes = read<uint32_t>();
        buffer.is_returned = read<uint32_t>();
        // The allocator aligns to 16 bytes, as the kernels ask of every buffer.
        buffer.bytes = static_cast<unsigned char*>(malloc(buffer.size));
        if (!buffer.bytes) refuse("no memory");
        if (has_bytes) read_bytes(buffer.bytes, buffer.size);
        else memset(buffer.bytes, 0xFF, buffer.size);
    }
    return buffers;
}

dim3 read_dim() {
    dim3 dim;
    dim.x = read<uint32_t>();
    dim.y = read<uint32_t>();
    dim.z = read<uint32_t>();
    return dim;
}

void read_argument(std::vector<char>& argument, const std::vector<Buffer>& buffers) {
    // Room for the padding of the largest argument, aligned by the allocator.
    argument.resize(read<uint32_t>());
    read_bytes(argument.data(), argument.size());
    for (uint32_t pointers = read<uint32_t>(); pointers > 0; pointers--) {
        uint32_t at = read<uint32_t>(), index = read<uint32_t>();
        uint64_t offset = read<uint64_t>();
        if (at + 8 > argument.size() || index >= buffers.size()) refuse("a pointer to nowhere");
        unsigned char* pointer = buffers[index].bytes + offset;
        memcpy(argument.data() + at, &pointer, 8);
    }
}

void run_launch(const std::vector<Buffer>& buffers) {
    std::string name(read<uint32_t>(), 0);
    read_bytes(name.data(), name.size());
    dim3 grid = read_dim(), block = read_dim();
    size_t shared = read<uint32_t>();
    std::vector<std::vector<char>> arguments(read<uint32_t>());
    std::vector<void*> pointers;
    for (std::vector<char>& argument : arguments) {
        read_argument(argument, buffers);
        pointers.push_back(argument.data());
    }
    emulated::Entry kernel = emulated::find(name.c_str());
    if (!kernel.call) refuse(("no kernel " + name).c_str());
    if (arguments.size() != kernel.sizes->size()) refuse((name + " takes other arguments").c_str());
    for (size_t i = 0; i < arguments.size(); i++) {
        if (arguments[i].size() != (*kernel.sizes)[i]) refuse((name + " takes other arguments").c_str());
    }
    if (block.x * block.y * block.z > kernel.threads_max) refuse((name + " takes fewer threads").c_str());
    kernel.call(grid, block, shared, pointers.data());
}

}  // namespace

int main() {
    emulated::set_seed(read<uint64_t>());
    std::vector<Buffer> buffers = read_buffers();
    for (uint32_t launches = read<uint32_t>(); launches > 0; launches--) run_launch(buffers);
    for (Buffer& buffer : buffers) {
        if (buffer.is_returned) fwrite(buffer.bytes, 1, buffer.size, stdout);
        free(buffer.bytes);
    }
    return fflush(stdout) == 0 ? 0 : 2;
}
