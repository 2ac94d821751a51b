// Queries, keys and values between their products and attention: norms of heads, rotations, and the
// pages of the cache.
//
// Pages are those of the CPU (`kernels/src/ops/kv_pages.rs`): 32 positions; for each KV head the keys,
// `[head_dim][32]`, then the values, `[32][head_dim]`. Pages of 8 bits have a 16-bit scale for 32
// dimensions of a position beside them, `[K, V][head_dim / 32][32]`. Which page and place a token has
// depends on positions alone.
#include "pages.cuh"

namespace heads {

constexpr int WARPS = 4;

// Inputs of a batch, in place. Head `h` of a token is a query below `n_heads`, then a key, then a value.
struct Heads {
    // `[tokens][n_heads * head_dim]`, `[tokens][n_kv_heads * head_dim]` twice.
    float *q, *k, *v;
    // Weights of the norms of queries and keys, `[head_dim]`, or null.
    const float *q_norm, *k_norm;
    // `[tokens][pairs]`: cosine and sine.
    const float2* turns;
    // The page lists, and where each token stands.
    const uint32_t* tables;
    const Place* places;
    // The pages of this layer; of 8 bits: the scales too.
    void* pages;
    uint16_t* scales;
    int n_heads, n_kv_heads, head_dim;
    // Pairs that turn; whether a pair is two neighbours, or `i` and `i + pairs`.
    int pairs, are_neighbours;
    float epsilon;
};

struct HeadsShared {
    float rows[WARPS][HEAD_DIM_MAX];
};

DEVICE void normalize(float* row, const float* weight, int dim, float epsilon) {
    int lane = threadIdx.x % 32;
    float squares = 0;
    for (int i = lane; i < dim; i += 32) squares = fmaf(row[i], row[i], squares);
    float scale = 1.0f / sqrtf(warp_sum(squares) / float(dim) + epsilon);
    for (int i = lane; i < dim; i += 32) row[i] = row[i] * scale * weight[i];
    __syncwarp();
}

DEVICE void turn(float* row, const float2* turns, int pairs, bool are_neighbours) {
    for (int i = threadIdx.x % 32; i < pairs; i += 32) {
        int a = are_neighbours ? 2 * i : i, b = are_neighbours ? 2 * i + 1 : i + pairs;
        float x = row[a], y = row[b], cosine = turns[i].x, sine = turns[i].y;
        row[a] = x * cosine - y * sine;
        row[b] = x * sine + y * cosine;
    }
    __syncwarp();
}

// Where the values of a head go: the first item of keys or values, how far the next dimension is,
// and the same for scales.
struct Target {
    size_t first, step, scale, scale_step;
};

DEVICE Target target_of(const Heads& h, int token, int kv_head, bool is_value) {
    Place place = h.places[token];
    int slot = place.position % PAGE_LEN;
    size_t head = size_t(h.tables[place.table + place.position / PAGE_LEN]) * h.n_kv_heads + kv_head;
    size_t page = head * 2 * PAGE_LEN * h.head_dim, scales = head * 2 * h.head_dim + slot;
    if (is_value) return {page + size_t(PAGE_LEN + slot) * h.head_dim, 1, scales + h.head_dim, PAGE_LEN};
    return {page + slot, PAGE_LEN, scales, PAGE_LEN};
}

DEVICE void store_row(const Heads& h, const Target& to, const float* row, PageF32) {
    float* pages = static_cast<float*>(h.pages);
    for (int d = threadIdx.x % 32; d < h.head_dim; d += 32) pages[to.first + d * to.step] = row[d];
}

DEVICE void store_row(const Heads& h, const Target& to, const float* row, PageF16) {
    uint16_t* pages = static_cast<uint16_t*>(h.pages);
    for (int d = threadIdx.x % 32; d < h.head_dim; d += 32) {
        float low = row[d] < -65504.0f ? -65504.0f : row[d];
        pages[to.first + d * to.step] = float_to_half(low > 65504.0f ? 65504.0f : low);
    }
}

DEVICE void store_row(const Heads& h, const Target& to, const float* row, PageQ8) {
    int8_t* pages = static_cast<int8_t*>(h.pages);
    int lane = threadIdx.x % 32;
    for (int block = 0; block < h.head_dim / 32; block++) {
        int d = block * 32 + lane;
        float wanted = warp_max(fabsf(row[d])) / 127.0f;
        uint16_t scale = float_to_half(wanted > 65504.0f ? 65504.0f : wanted);
        float held = half_to_float(scale);
        float value = row[d] * (held > 0.0f ? 1.0f / held : 0.0f);
        float low = value < -127.0f ? -127.0f : value;
        float quant = low > 127.0f ? 127.0f : low;
        pages[to.first + d * to.step] = int8_t(bits_of(quant + ROUND));
        if (lane == 0) h.scales[to.scale + block * to.scale_step] = scale;
    }
}

// Normalises and turns queries (in place) and keys, and stores keys and values.
template <class P>
DEVICE void prepare(const Heads& h, HeadsShared& shared) {
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32, token = blockIdx.y;
    int head = blockIdx.x * WARPS + warp, dim = h.head_dim;
    if (head >= h.n_heads + 2 * h.n_kv_heads) return;
    bool is_query = head < h.n_heads, is_value = head >= h.n_heads + h.n_kv_heads;
    int kv_head = is_query ? 0 : (head - h.n_heads) % h.n_kv_heads;
    float* from = is_query ? h.q + (size_t(token) * h.n_heads + head) * dim
                           : (is_value ? h.v : h.k) + (size_t(token) * h.n_kv_heads + kv_head) * dim;
    float* row = shared.rows[warp];
    for (int i = lane; i < dim; i += 32) row[i] = from[i];
    __syncwarp();
    const float* weight = is_query ? h.q_norm : h.k_norm;
    if (!is_value && weight) normalize(row, weight, dim, h.epsilon);
    if (!is_value) turn(row, h.turns + size_t(token) * h.pairs, h.pairs, h.are_neighbours);
    if (is_query) {
        for (int i = lane; i < dim; i += 32) from[i] = row[i];
    } else {
        store_row(h, target_of(h, token, kv_head, is_value), row, P{});
    }
}

// Grid: ((n_heads + 2 * n_kv_heads) / 4, tokens), 128 threads. `head_dim` is at most 256, and with
// pages of 8 bits a multiple of 32.
#define PREPARE(name, P)                                  \
    KERNEL(128, 8, prepare_heads_##name, Heads h) {       \
        SHARED(HeadsShared, shared);                      \
        prepare<P>(h, shared);                            \
    }
PREPARE(f32, PageF32)
PREPARE(f16, PageF16)
PREPARE(q8_0, PageQ8)

}  // namespace heads
