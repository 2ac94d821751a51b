// A stand-in for `libcuda.so.1`: the functions that `kernels/src/cuda` asks for, over the memory of the
// CPU and the emulation. For tests. What is asked of the stream waits until somebody waits for it, as late
// as a card may be; in a capture it is recorded, and does not run before the graph is launched. What cannot
// be recorded (to wait, to allocate, to give back) is refused and makes the capture invalid.
//
// It is strict where a card is quiet: memory, of the card and pinned, starts as 0xFF, must be zero when it
// is given back, and not while work waits; nothing may be left when the context goes; a stream, a kernel and
// what it is told of are those of the card that is worked on.
//
// What it plays is told by the environment, or, where there is none, by the text of `settings`, which a test may
// change in the file of the library:
//   STANDIN_VERSION   the driver's version               STANDIN_DEVICES      how many cards
//   STANDIN_MEMORY    bytes of each card                 STANDIN_CAPABILITY   ten times the capability
//   STANDIN_PINNED    bytes of the host that it may pin
//   STANDIN_KERNELS   how many kernels run before one fails, and with it the card
//   STANDIN_LAUNCHES  a file that gets each kernel's name when it runs, `graph` when a graph is launched
//   STANDIN_WAITS     a file that gets a line for each wait for the stream for which something waits
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#include <deque>
#include <functional>
#include <map>
#include <set>
#include <string>

#include "device.h"

namespace {

using Result = int;
using Handle = void*;
using Address = uint64_t;

constexpr Result SUCCESS = 0, INVALID_VALUE = 1, OUT_OF_MEMORY = 2, NO_DEVICE = 100;
constexpr Result INVALID_IMAGE = 200, INVALID_HANDLE = 400, NOT_FOUND = 500, NOT_READY = 600;
constexpr Result LAUNCH_FAILED = 719, CAPTURE_UNSUPPORTED = 900, CAPTURE_INVALIDATED = 901;
constexpr unsigned CAPTURE_THREAD_LOCAL = 1;
constexpr uint32_t IMAGE_MAGIC = 0xBA55ED50;
constexpr int MULTIPROCESSORS = 16, MAJOR = 75, MINOR = 76, MAX_DYNAMIC_SHARED = 8;

// How many cards, and bytes of each.
const volatile char settings[] = "stand-in: 01 cards of 1073741824 bytes";

size_t in_settings(size_t at) {
    size_t value = 0;
    for (; settings[at] >= '0' && settings[at] <= '9'; at++) value = value * 10 + size_t(settings[at] - '0');
    return value;
}
size_t cards() { return in_settings(10); }

size_t setting(const char* name, size_t otherwise) {
    const char* value = getenv(name);
    return value ? strtoull(value, nullptr, 10) : otherwise;
}

// Whether a kernel has failed: nothing runs any more, and nothing can be zeroed.
bool has_failed = false;

// For processes without an environment, a test writes a kernel's name behind the sign: that kernel fails when it
// runs for the second time, and with it the card.
volatile const char failing[] = "STANDIN_FAILING=                        ";

bool is_failing(const char* name) {
    size_t at = strlen("STANDIN_FAILING=");
    while (*name && failing[at] == *name) at++, name++;
    return !*name && failing[at] == ' ';
}

// Takes note of a kernel that is to run; returns whether it does.
bool runs(const char* name) {
    static size_t left = setting("STANDIN_KERNELS", size_t(-1)), left_of_failing = 1;
    if (left == 0 || (is_failing(name) && left_of_failing-- == 0)) has_failed = true;
    else left--;
    return !has_failed;
}

using Work = std::function<void()>;
enum class Capture { None, On, Invalid };

// A card: what is allocated and pinned, address and size, and its one stream, whose handle it is too: what
// waits, and what a capture has recorded.
struct Context {
    int retained = 0;
    std::map<Address, size_t> allocations, pinned;
    size_t used = 0, used_pinned = 0;
    std::deque<Work> waiting;
    std::vector<Work> recorded;
    Capture capture = Capture::None;
    std::set<Handle> graphs, executables, events;
};
std::map<int, Context> contexts;
// The one that is worked on.
Context* current = nullptr;

size_t capacity() { return setting("STANDIN_MEMORY", in_settings(22)); }

// Whether so many bytes lie in one allocation.
bool is_inside(const std::map<Address, size_t>& all, Address address, size_t size) {
    auto after = all.upper_bound(address);
    if (after == all.begin()) return false;
    auto found = std::prev(after);
    return address + size <= found->first + found->second;
}
bool is_inside(Address address, size_t size) { return is_inside(current->allocations, address, size); }
bool is_pinned(const void* address, size_t size) {
    return is_inside(current->pinned, Address(address), size);
}

[[noreturn]] void refuse(const char* what) {
    fprintf(stderr, "stand-in: %s\n", what);
    _Exit(4);
}

bool is_zero(Address address, size_t size) {
    const unsigned char* bytes = reinterpret_cast<unsigned char*>(address);
    for (size_t i = 0; i < size; i++) {
        if (bytes[i] != 0) return false;
    }
    return true;
}

void run_waiting() {
    std::deque<Work>& waiting = current->waiting;
    while (!waiting.empty()) {
        Work work = std::move(waiting.front());
        waiting.pop_front();
        work();
    }
}

Result ask(Handle stream, Work work) {
    if (stream != current) return INVALID_HANDLE;
    if (current->capture == Capture::Invalid) return CAPTURE_INVALIDATED;
    if (current->capture == Capture::On) current->recorded.push_back(std::move(work));
    else current->waiting.push_back(std::move(work));
    return SUCCESS;
}

// What a call gets that a capture cannot hold.
Result outside_capture() {
    if (current->capture == Capture::None) return SUCCESS;
    current->capture = Capture::Invalid;
    return CAPTURE_UNSUPPORTED;
}

struct Graph { std::vector<Work> works; };

struct Event { bool is_asked = false, is_done = false; double at = 0; };

double seconds_now() {
    timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return double(now.tv_sec) + double(now.tv_nsec) * 1e-9;
}

struct Function {
    Context* context;
    const char* name;
    emulated::Entry entry;
    size_t shared_max;
};
std::map<std::pair<Context*, std::string>, Function> functions;

// Refuses arguments that point to memory of another card.
void check_arguments(const std::vector<std::vector<char>>& arguments) {
    for (const std::vector<char>& argument : arguments) {
        for (size_t at = 0; at + 8 <= argument.size(); at += 8) {
            Address address;
            memcpy(&address, argument.data() + at, 8);
            for (const auto& [device, context] : contexts) {
                if (&context != current && is_inside(context.allocations, address, 1)) {
                    refuse("a kernel is told of memory of another card");
                }
            }
        }
    }
}

void tell(const char* where, const char* what) {
    const char* path = getenv(where);
    if (!path) return;
    FILE* file = fopen(path, "a");
    if (!file) refuse("a file of launches or waits cannot be written");
    fprintf(file, "%s\n", what);
    fclose(file);
}
void tell_launch(const char* name) { tell("STANDIN_LAUNCHES", name); }

}  // namespace

extern "C" {

Result cuDriverGetVersion(int* version) {
    *version = int(setting("STANDIN_VERSION", 13000));
    return SUCCESS;
}
Result cuInit(unsigned) { return setting("STANDIN_DEVICES", cards()) == 0 ? NO_DEVICE : SUCCESS; }
Result cuDeviceGetCount(int* count) {
    *count = int(setting("STANDIN_DEVICES", cards()));
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
Result cuDevicePrimaryCtxRetain(Handle* context, int device) {
    contexts[device].retained++;
    *context = &contexts[device];
    return SUCCESS;
}
Result cuDevicePrimaryCtxRelease_v2(int device) {
    Context& gone = contexts[device];
    if (--gone.retained > 0) return SUCCESS;
    if (!gone.allocations.empty()) refuse("memory is left when the context goes");
    if (!gone.pinned.empty()) refuse("pinned memory is left when the context goes");
    if (!gone.graphs.empty() || !gone.executables.empty()) refuse("a graph is left when the context goes");
    if (!gone.events.empty()) refuse("an event is left when the context goes");
    if (!gone.waiting.empty()) refuse("work waits when the context goes");
    if (current == &gone) current = nullptr;
    return SUCCESS;
}
Result cuCtxSetCurrent(Handle context) {
    for (auto& [device, known] : contexts) {
        if (context != &known || known.retained == 0) continue;
        current = &known;
        return SUCCESS;
    }
    return INVALID_VALUE;
}
Result cuMemGetInfo_v2(size_t* free, size_t* total) {
    *total = capacity();
    *free = *total - current->used;
    return SUCCESS;
}
Result cuMemAlloc_v2(Address* address, size_t size) {
    if (Result refused = outside_capture()) return refused;
    if (size == 0) return INVALID_VALUE;
    if (current->used + size > capacity()) return OUT_OF_MEMORY;
    void* memory = aligned_alloc(256, (size + 255) / 256 * 256);
    if (!memory) return OUT_OF_MEMORY;
    memset(memory, 0xFF, size);
    *address = Address(memory);
    current->allocations[*address] = size;
    current->used += size;
    return SUCCESS;
}
Result cuMemFree_v2(Address address) {
    if (Result refused = outside_capture()) return refused;
    auto found = current->allocations.find(address);
    if (found == current->allocations.end()) return INVALID_VALUE;
    if (!current->waiting.empty()) refuse("memory is given back while work waits");
    if (!has_failed && !is_zero(address, found->second)) refuse("memory that is given back is not zero");
    current->used -= found->second;
    current->allocations.erase(found);
    free(reinterpret_cast<void*>(address));
    return SUCCESS;
}
Result cuMemHostAlloc(void** address, size_t size, unsigned flags) {
    if (Result refused = outside_capture()) return refused;
    if (size == 0 || flags != 0) return INVALID_VALUE;
    if (current->used_pinned + size > setting("STANDIN_PINNED", size_t(1) << 30)) return OUT_OF_MEMORY;
    *address = aligned_alloc(4096, (size + 4095) / 4096 * 4096);
    if (!*address) return OUT_OF_MEMORY;
    memset(*address, 0xFF, size);
    current->pinned[Address(*address)] = size;
    current->used_pinned += size;
    return SUCCESS;
}
Result cuMemFreeHost(void* address) {
    if (Result refused = outside_capture()) return refused;
    auto found = current->pinned.find(Address(address));
    if (found == current->pinned.end()) return INVALID_VALUE;
    if (!current->waiting.empty()) refuse("pinned memory is given back while work waits");
    if (!is_zero(found->first, found->second)) refuse("pinned memory that is given back is not zero");
    current->used_pinned -= found->second;
    current->pinned.erase(found);
    free(address);
    return SUCCESS;
}
Result cuMemsetD8Async(Address to, unsigned char byte, size_t size, Handle stream) {
    if (!is_inside(to, size)) return INVALID_VALUE;
    return ask(stream, [=] { memset(reinterpret_cast<void*>(to), byte, size); });
}
// What is not pinned is read before the call returns, but by a graph when it is launched.
Result cuMemcpyHtoDAsync_v2(Address to, const void* from, size_t size, Handle stream) {
    if (!is_inside(to, size)) return INVALID_VALUE;
    if (current->capture == Capture::None && !is_pinned(from, size)) {
        const char* bytes = static_cast<const char*>(from);
        std::vector<char> copy(bytes, bytes + size);
        return ask(stream, [=] { memcpy(reinterpret_cast<void*>(to), copy.data(), size); });
    }
    return ask(stream, [=] { memcpy(reinterpret_cast<void*>(to), from, size); });
}
// What is not pinned is written before the call returns, but by a graph when it is launched.
Result cuMemcpyDtoHAsync_v2(void* to, Address from, size_t size, Handle stream) {
    if (!is_inside(from, size)) return INVALID_VALUE;
    Result asked = ask(stream, [=] { memcpy(to, reinterpret_cast<void*>(from), size); });
    if (!asked && current->capture == Capture::None && !is_pinned(to, size)) run_waiting();
    return asked;
}
Result cuStreamCreate(Handle* stream, unsigned) {
    *stream = current;
    return SUCCESS;
}
Result cuStreamDestroy_v2(Handle stream) {
    if (stream != current) return INVALID_HANDLE;
    if (!current->waiting.empty()) refuse("a stream is destroyed while work waits");
    return SUCCESS;
}
Result cuStreamSynchronize(Handle stream) {
    if (stream != current) return INVALID_HANDLE;
    if (Result refused = outside_capture()) return refused;
    if (!current->waiting.empty()) tell("STANDIN_WAITS", "wait");
    run_waiting();
    return has_failed ? LAUNCH_FAILED : SUCCESS;
}
Result cuStreamBeginCapture_v2(Handle stream, unsigned mode) {
    if (stream != current) return INVALID_HANDLE;
    if (current->capture != Capture::None || mode != CAPTURE_THREAD_LOCAL) return INVALID_VALUE;
    current->capture = Capture::On;
    return SUCCESS;
}
Result cuStreamEndCapture(Handle stream, Handle* graph) {
    if (stream != current) return INVALID_HANDLE;
    if (current->capture == Capture::None) return INVALID_VALUE;
    bool is_valid = current->capture == Capture::On;
    current->capture = Capture::None;
    *graph = is_valid ? new Graph{current->recorded} : nullptr;
    if (is_valid) current->graphs.insert(*graph);
    current->recorded.clear();
    return is_valid ? SUCCESS : CAPTURE_INVALIDATED;
}
Result cuGraphInstantiateWithFlags(Handle* executable, Handle graph, unsigned long long flags) {
    if (!current->graphs.count(graph) || flags != 0) return INVALID_VALUE;
    *executable = new Graph(*static_cast<Graph*>(graph));
    current->executables.insert(*executable);
    return SUCCESS;
}
Result cuGraphUpload(Handle executable, Handle stream) {
    if (!current->executables.count(executable) || stream != current) return INVALID_VALUE;
    return outside_capture();
}
Result cuGraphLaunch(Handle executable, Handle stream) {
    if (!current->executables.count(executable)) return INVALID_VALUE;
    if (Result asked = ask(stream, [] { tell_launch("graph"); })) return asked;
    for (const Work& work : static_cast<Graph*>(executable)->works) {
        if (Result asked = ask(stream, work)) return asked;
    }
    return SUCCESS;
}
Result cuGraphExecDestroy(Handle executable) {
    if (!current->executables.erase(executable)) return INVALID_VALUE;
    delete static_cast<Graph*>(executable);
    return SUCCESS;
}
Result cuGraphDestroy(Handle graph) {
    if (!current->graphs.erase(graph)) return INVALID_VALUE;
    delete static_cast<Graph*>(graph);
    return SUCCESS;
}
Result cuEventCreate(Handle* event, unsigned flags) {
    if (flags != 0) return INVALID_VALUE;
    *event = new Event;
    current->events.insert(*event);
    return SUCCESS;
}
Result cuEventRecord(Handle event, Handle stream) {
    if (!current->events.count(event)) return INVALID_HANDLE;
    if (Result refused = outside_capture()) return refused;
    Event* e = static_cast<Event*>(event);
    e->is_asked = true;
    e->is_done = false;
    return ask(stream, [=] { e->is_done = true, e->at = seconds_now(); });
}
Result cuEventSynchronize(Handle event) {
    if (!current->events.count(event)) return INVALID_HANDLE;
    if (Result refused = outside_capture()) return refused;
    Event* e = static_cast<Event*>(event);
    if (e->is_asked && !e->is_done) run_waiting();
    return SUCCESS;
}
Result cuEventElapsedTime_v2(float* milliseconds, Handle start, Handle end) {
    if (!current->events.count(start) || !current->events.count(end)) return INVALID_HANDLE;
    const Event &from = *static_cast<Event*>(start), &to = *static_cast<Event*>(end);
    if (!from.is_asked || !to.is_asked) return INVALID_HANDLE;
    if (!from.is_done || !to.is_done) return NOT_READY;
    *milliseconds = float((to.at - from.at) * 1e3);
    return SUCCESS;
}
Result cuEventDestroy_v2(Handle event) {
    if (!current->events.erase(event)) return INVALID_HANDLE;
    // Work that waits may mark it yet.
    run_waiting();
    delete static_cast<Event*>(event);
    return SUCCESS;
}
Result cuModuleLoadData(Handle* module, const void* image) {
    uint32_t magic;
    memcpy(&magic, image, 4);
    if (magic != IMAGE_MAGIC) return INVALID_IMAGE;
    *module = current;
    return SUCCESS;
}
Result cuModuleUnload(Handle module) { return module == current ? SUCCESS : INVALID_HANDLE; }
Result cuModuleGetFunction(Handle* function, Handle module, const char* name) {
    if (module != current) return INVALID_HANDLE;
    emulated::Entry entry = emulated::find(name);
    if (!entry.call) return NOT_FOUND;
    auto known = functions.try_emplace({current, name}).first;
    known->second = {current, known->first.second.c_str(), entry, 48 * 1024};
    *function = &known->second;
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
    if (shared > f.shared_max) return INVALID_VALUE;
    if (f.context != current) return INVALID_HANDLE;
    // The arguments are copied before the call returns; what they point to is read when the kernel runs.
    std::vector<std::vector<char>> held;
    for (size_t i = 0; i < f.entry.sizes->size(); i++) {
        const char* from = static_cast<const char*>(arguments[i]);
        held.emplace_back(from, from + (*f.entry.sizes)[i]);
    }
    check_arguments(held);
    return ask(stream, [=, &f]() mutable {
        std::vector<void*> pointers;
        for (std::vector<char>& argument : held) pointers.push_back(argument.data());
        if (!runs(f.name)) return;
        tell_launch(f.name);
        f.entry.call(dim3(gx, gy, gz), dim3(bx, by, bz), shared, pointers.data());
    });
}

}  // extern "C"
