// From logits to a token, as `src/engine/sampler.rs` does it: bias, penalties, top-k, top-p, min-p,
// temperature, draw. A block has one sequence.
//
// No branch and no address depends on a logit or on a token that was chosen: thresholds are found by
// bisection over the bits of ordered keys, counts are kept by passes over the whole vocabulary. What is
// asked for (which penalties, which cuts) is public.
#include "common.cuh"

namespace selection {

constexpr int THREADS = 1024;
constexpr int WARPS = THREADS / 32;
// Tokens that the repeat penalty looks back on.
constexpr int REPEAT_WINDOW = 64;

// How a sequence is sampled.
struct Sampling {
    // 0 takes the best token.
    float temperature;
    // 1 is off.
    float top_p;
    // ln(min_p); minus infinity is off.
    float min_p_log;
    // 1 is off.
    float repeat_penalty;
    float presence_penalty, frequency_penalty;
    // 0 is off.
    int top_k;
};

// The last tokens of prompt and answer: token `i` is in `tokens[i % 64]`.
struct History {
    int len;
    int tokens[REPEAT_WINDOW];
};

// Buffers of a launch; those with `[n][vocab]` have a row for each sequence.
struct Select {
    // `[n][vocab]`; changed.
    float* logits;
    // `[n][vocab]`, for itself.
    float* weights;
    // `[n][vocab]`, or null.
    const float* bias;
    // `[n][vocab]`: how often a token is in the history, and in the answer; null if no sequence asks.
    uint32_t *recent_counts, *answer_counts;
    // `[n]`; null with `recent_counts`.
    History* history;
    // `[n]`
    const Sampling* sampling;
    // `[n]`: SplitMix64.
    uint64_t* random;
    // `[n]`: the tokens chosen.
    uint32_t* tokens;
    int vocab;
};

struct SelectShared {
    float floats[3][WARPS];
    int ints[3][WARPS];
    double sums[THREADS];
    double parts[WARPS];
};

// Sums over the block, the same in every thread.
template <int N>
DEVICE void block_sum(int (&x)[N], SelectShared& shared) {
#pragma unroll
    for (int i = 0; i < N; i++) {
        for (int mask = 16; mask > 0; mask /= 2) x[i] += __shfl_xor_sync(ALL_LANES, x[i], mask);
        if (threadIdx.x % 32 == 0) shared.ints[i][threadIdx.x / 32] = x[i];
        x[i] = 0;
    }
    __syncthreads();
    for (int warp = 0; warp < WARPS; warp++) {
#pragma unroll
        for (int i = 0; i < N; i++) x[i] += shared.ints[i][warp];
    }
    __syncthreads();
}

template <int N>
DEVICE void block_sum(float (&x)[N], SelectShared& shared) {
#pragma unroll
    for (int i = 0; i < N; i++) {
        x[i] = warp_sum(x[i]);
        if (threadIdx.x % 32 == 0) shared.floats[i][threadIdx.x / 32] = x[i];
        x[i] = 0;
    }
    __syncthreads();
    for (int warp = 0; warp < WARPS; warp++) {
#pragma unroll
        for (int i = 0; i < N; i++) x[i] += shared.floats[i][warp];
    }
    __syncthreads();
}

DEVICE int block_max(int x, SelectShared& shared) {
    for (int mask = 16; mask > 0; mask /= 2) x = max(x, __shfl_xor_sync(ALL_LANES, x, mask));
    if (threadIdx.x % 32 == 0) shared.ints[0][threadIdx.x / 32] = x;
    __syncthreads();
    for (int warp = 0; warp < WARPS; warp++) x = max(x, shared.ints[0][warp]);
    __syncthreads();
    return x;
}

struct Best {
    float value;
    int token;
};

// The better of two: of equals the lower token.
DEVICE Best better(Best a, Best b) {
    bool is_b = (b.value > a.value) | ((b.value == a.value) & (b.token < a.token));
    return {is_b ? b.value : a.value, is_b ? b.token : a.token};
}

// The largest logit and its token; token 0 if all are minus infinity.
DEVICE Best best_of(const float* logits, int vocab, SelectShared& shared) {
    Best best = {-INFINITY, vocab};
    for (int i = threadIdx.x; i < vocab; i += THREADS) {
        float value = logits[i];
        bool is_better = value > best.value;
        best = {is_better ? value : best.value, is_better ? i : best.token};
    }
    for (int mask = 16; mask > 0; mask /= 2) {
        Best other = {__shfl_xor_sync(ALL_LANES, best.value, mask), __shfl_xor_sync(ALL_LANES, best.token, mask)};
        best = better(best, other);
    }
    if (threadIdx.x % 32 == 0) {
        shared.floats[0][threadIdx.x / 32] = best.value;
        shared.ints[0][threadIdx.x / 32] = best.token;
    }
    __syncthreads();
    for (int warp = 0; warp < WARPS; warp++) best = better(best, {shared.floats[0][warp], shared.ints[0][warp]});
    __syncthreads();
    return {best.value, best.token == vocab ? 0 : best.token};
}

// A key that orders as the float does.
DEVICE uint32_t key_of(float x) {
    uint32_t bits = bits_of(x);
    return bits ^ ((0 - (bits >> 31)) | 0x80000000);
}

DEVICE float value_of(uint32_t key) { return float_of(key ^ (((key >> 31) - 1) | 0x80000000)); }

// The largest key for which `is_enough` holds, which it does up to some key: two bits a pass.
// `is_enough(keys, results)` tells it for three keys at once.
template <class Enough>
DEVICE float bisect(Enough is_enough) {
    uint32_t found = 0;
    for (int shift = 30; shift >= 0; shift -= 2) {
        uint32_t keys[3] = {found | 1u << shift, found | 2u << shift, found | 3u << shift};
        int results[3];
        is_enough(keys, results);
        found |= uint32_t(results[0] + results[1] + results[2]) << shift;
    }
    return value_of(found);
}

DEVICE float nth_largest(const float* x, int vocab, int n, SelectShared& shared) {
    return bisect([&](const uint32_t(&keys)[3], int(&results)[3]) {
        int counts[3] = {};
        for (int i = threadIdx.x; i < vocab; i += THREADS) {
            uint32_t key = key_of(x[i]);
            for (int j = 0; j < 3; j++) counts[j] += key >= keys[j];
        }
        block_sum(counts, shared);
        for (int j = 0; j < 3; j++) results[j] = counts[j] >= n;
    });
}

// The largest value whose weight, with that of all larger ones, is at least `target`.
DEVICE float threshold_of_weight(const float* x, const float* weights, int vocab, float target,
                                 SelectShared& shared) {
    return bisect([&](const uint32_t(&keys)[3], int(&results)[3]) {
        float sums[3] = {};
        for (int i = threadIdx.x; i < vocab; i += THREADS) {
            uint32_t key = key_of(x[i]);
            for (int j = 0; j < 3; j++) sums[j] += key >= keys[j] ? weights[i] : 0.0f;
        }
        block_sum(sums, shared);
        for (int j = 0; j < 3; j++) results[j] = sums[j] >= target;
    });
}

// weights = e^((x - largest) * factor) where x >= floor, else 0; returns their sum.
DEVICE float weigh(const float* x, int vocab, float floor, float largest, float factor, float* weights,
                   SelectShared& shared) {
    float sum[1] = {};
    for (int i = threadIdx.x; i < vocab; i += THREADS) {
        float weight = exponential((x[i] - largest) * factor);
        weights[i] = x[i] >= floor ? weight : 0.0f;
        sum[0] += weights[i];
    }
    block_sum(sum, shared);
    return sum[0];
}

// Applies bias and penalties; a NaN counts as minus infinity.
DEVICE void adjust(float* logits, const float* bias, const uint32_t* recent, const uint32_t* answer,
                   const Sampling& s, int vocab) {
    for (int i = threadIdx.x; i < vocab; i += THREADS) {
        float x = logits[i];
        x = x == x ? x : -INFINITY;
        if (bias) x += bias[i];
        if (recent) {
            float punished = x > 0.0f ? x / s.repeat_penalty : x * s.repeat_penalty;
            x = recent[i] > 0 ? punished : x;
        }
        if (answer) {
            float present = answer[i] > 0 ? 1.0f : 0.0f;
            x -= s.presence_penalty * present + s.frequency_penalty * float(answer[i]);
        }
        logits[i] = x;
    }
    __syncthreads();
}

// The smallest logit that top-k, top-p and min-p keep.
DEVICE float floor_of(const float* logits, float* weights, int vocab, const Sampling& s, float largest,
                      SelectShared& shared) {
    float floor = -INFINITY;
    if (s.top_k > 0 && s.top_k < vocab) floor = nth_largest(logits, vocab, s.top_k, shared);
    if (s.top_p < 1.0f) {
        float total = weigh(logits, vocab, floor, largest, 1.0f, weights, shared);
        float share = s.top_p > 1.17549435e-38f ? s.top_p : 1.17549435e-38f;
        float threshold = threshold_of_weight(logits, weights, vocab, total * share, shared);
        floor = threshold > floor ? threshold : floor;
    }
    float threshold = largest + s.min_p_log;
    return threshold > floor ? threshold : floor;
}

// A number from 0 to below 1.
DEVICE double uniform(uint64_t state) {
    uint64_t mix = state;
    mix = (mix ^ mix >> 30) * 0xBF58476D1CE4E5B9;
    mix = (mix ^ mix >> 27) * 0x94D049BB133111EB;
    return double((mix ^ mix >> 31) >> 11) * 0x1p-53;
}

// The token before which the weights have not reached `uniform * total`; the last one that weighs
// anything if rounding kept all from it. Thread `i` has the `i`-th part of the vocabulary.
DEVICE int draw(const float* weights, int vocab, double random, SelectShared& shared) {
    int part = (vocab + THREADS - 1) / THREADS, thread = threadIdx.x, warp = thread / 32;
    int first = min(thread * part, vocab), end = min(first + part, vocab);
    double sum = 0;
    for (int i = first; i < end; i++) sum += double(weights[i]);
    shared.sums[thread] = sum;
    __syncthreads();
    if (thread < WARPS) {
        double of_warp = 0;
        for (int i = 0; i < 32; i++) of_warp += shared.sums[thread * 32 + i];
        shared.parts[thread] = of_warp;
    }
    __syncthreads();
    double before = 0, total = 0;
    for (int i = 0; i < WARPS; i++) {
        before = i == warp ? total : before;
        total += shared.parts[i];
    }
    for (int i = warp * 32; i < thread; i++) before += shared.sums[i];
    double target = random * total;
    int passed[1] = {}, last = 0;
    for (int i = first; i < end; i++) {
        before += double(weights[i]);
        passed[0] += before <= target;
        last = weights[i] > 0.0f ? i : last;
    }
    block_sum(passed, shared);
    return min(passed[0], block_max(last, shared));
}

// Takes note of a token.
DEVICE void accept(int token, uint32_t* recent, uint32_t* answer, History* history, int vocab) {
    int len = history ? history->len : 0;
    int leaving = len >= REPEAT_WINDOW ? history->tokens[len % REPEAT_WINDOW] : -1;
    for (int i = threadIdx.x; i < vocab; i += THREADS) {
        if (recent) recent[i] += uint32_t(i == token) - uint32_t(i == leaving);
        if (answer) answer[i] += i == token;
    }
    __syncthreads();
    if (history && threadIdx.x == 0) {
        history->tokens[len % REPEAT_WINDOW] = token;
        history->len = len + 1;
    }
}

// Chooses a token for each sequence and takes note of it. Grid: (n), 1024 threads.
KERNEL(1024, 1, select_token, GRID_CONSTANT Select s) {
    SHARED(SelectShared, shared);
    size_t sequence = blockIdx.x, row = sequence * s.vocab;
    Sampling sampling = s.sampling[sequence];
    float *logits = s.logits + row, *weights = s.weights + row;
    uint32_t* recent = s.recent_counts ? s.recent_counts + row : nullptr;
    uint32_t* answer = s.answer_counts ? s.answer_counts + row : nullptr;
    adjust(logits, s.bias ? s.bias + row : nullptr, recent, answer, sampling, s.vocab);
    Best best = best_of(logits, s.vocab, shared);
    int token = best.token;
    if (sampling.temperature > 0.0f) {
        float floor = floor_of(logits, weights, s.vocab, sampling, best.value, shared);
        weigh(logits, s.vocab, floor, best.value, 1.0f / sampling.temperature, weights, shared);
        uint64_t state = s.random[sequence] + 0x9E3779B97F4A7C15;
        token = draw(weights, s.vocab, uniform(state), shared);
        if (threadIdx.x == 0) s.random[sequence] = state;
    }
    accept(token, recent, answer, s.history ? s.history + sequence : nullptr, s.vocab);
    if (threadIdx.x == 0) s.tokens[sequence] = uint32_t(token);
}

}  // namespace selection
