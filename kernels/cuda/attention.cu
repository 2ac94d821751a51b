// Grouped-query attention over the paged cache, split at multiples of 128 positions.
//
// For a row (one token, one query head) and a split:
//   s[p] = scale * sum over d of q[d] K[d][p]      d in order; outside the token's window: -infinity
//   m = max s;  e[p] = exp(s[p] - m);  l = sum of e
//   o[d] = sum over p of e[p] V[p][d]              p in order
// Splits are put together in order:
//   M' = max(M, m);  a = exp(M - M');  b = exp(m - M');  L = L a + l b;  O = O a + o b
// and the output is O / L. A decode step gives each split a block and puts them together afterwards;
// a prompt's rows go through their splits one by one. Both take these steps: the same bits, whatever
// the batch, the chunk or the number of splits that run at once.
#include "pages.cuh"

namespace attention {

constexpr int SPLIT_LEN = 128;
constexpr int SPLIT_PAGES = SPLIT_LEN / PAGE_LEN;
// A run of neighbours in one sequence whose rows share reads: at most `8 / group` tokens, at least one.
struct Run {
    int first_token, n_tokens;
};

struct Attention {
    // `[tokens][n_heads][head_dim]`
    const float* q;
    float* out;
    // The pages of this layer; of 8 bits: the scales too.
    const void* pages;
    const uint16_t* scales;
    const uint32_t* tables;
    const Place* places;
    // Prompts: `[runs]`.
    const Run* runs;
    // Decode: `[tokens][n_heads][splits_max][head_dim + 2]`, m and l last.
    float* parts;
    int n_heads, n_kv_heads, head_dim;
    float scale;
    // Positions that a token sees, itself included; 0: all.
    int window;
    // Splits of the longest text of the batch: those that its window touches.
    int splits_max;
    int runs_len;
};

DEVICE int first_position(const Attention& a, int position) {
    int first = position + 1 - a.window;
    return a.window == 0 || first < 0 ? 0 : first;
}

DEVICE int first_split(const Attention& a, int position) { return first_position(a, position) / SPLIT_LEN; }

// The rows of a run for one KV head.
struct Rows {
    int token, kv_head, first_head, heads, len;
    // Positions of the sequence that any of them sees: from, to (exclusive).
    int table, position, from, to;

    // Row `r` is head `first_head + r % heads` of token `token + r / heads`.
    DEVICE_MEMBER int token_of(int r) const { return token + r / heads; }
    DEVICE_MEMBER int position_of(int r) const { return position + r / heads; }
    DEVICE_MEMBER size_t at(const Attention& a, int r) const {
        return (size_t(token_of(r)) * a.n_heads + first_head + r % heads) * a.head_dim;
    }
};

// The rows of a run that `index` names: a KV head and, where a group has more than `rows_max` heads,
// a part of them.
DEVICE Rows rows_of(const Attention& a, Run run, int index, int rows_max) {
    int group = a.n_heads / a.n_kv_heads, parts = (group + rows_max - 1) / rows_max;
    Rows r;
    r.token = run.first_token;
    r.kv_head = index / parts;
    int part = index % parts, left = group - part * rows_max;
    r.first_head = r.kv_head * group + part * rows_max;
    r.heads = left < rows_max ? left : rows_max;
    r.len = run.n_tokens * r.heads;
    Place place = a.places[run.first_token];
    r.table = place.table;
    r.position = place.position;
    r.from = first_position(a, place.position);
    r.to = place.position + run.n_tokens;
    return r;
}

template <class P>
DEVICE P page_of(const Attention& a, const Rows& rows, int page) {
    size_t head = size_t(a.tables[rows.table + page]) * a.n_kv_heads + rows.kv_head;
    return P::of(a.pages, a.scales, head, a.head_dim);
}

// What a team of warps has of its rows.
template <int N, int DIM_MAX>
struct alignas(16) TeamShared {
    // `[dimension][row]`
    float q[DIM_MAX][N];
    // `[position of the split][row]`: scores, then weights.
    float e[SPLIT_LEN][N];
    float m[N], l[N];
};

// A team is one warp, or a block of four.
template <int TEAM>
DEVICE void team_barrier() {
    if (TEAM == 1) __syncwarp();
    else __syncthreads();
}

template <int TEAM, int N, int D>
DEVICE void load_queries(const Attention& a, const Rows& rows, int thread, TeamShared<N, D>& shared) {
    for (int i = thread; i < N * a.head_dim; i += TEAM * 32) {
        int r = i / a.head_dim, d = i % a.head_dim;
        shared.q[d][r] = r < rows.len ? a.q[rows.at(a, r) + d] : 0.0f;
    }
    team_barrier<TEAM>();
}

// The scores of a page of a split: a position a lane. Pages that no row sees are not read.
template <class P, int N, int D>
DEVICE void score_page(const Attention& a, const Rows& rows, int split, int page,
                       TeamShared<N, D>& shared) {
    int lane = threadIdx.x % 32, start = split * SPLIT_LEN + page * PAGE_LEN, position = start + lane;
    float s[N] = {};
    bool is_seen = start < rows.to && start + PAGE_LEN > rows.from;
    if (is_seen) {
        P keys = page_of<P>(a, rows, start / PAGE_LEN);
#pragma unroll 16
        for (int d = 0; d < a.head_dim; d++) {
            float key = keys.key(a.head_dim, d, lane);
#pragma unroll
            for (int r = 0; r < N; r++) s[r] = fmaf(shared.q[d][r], key, s[r]);
        }
    }
#pragma unroll
    for (int r = 0; r < N; r++) {
        int last = rows.position_of(r);
        bool sees = is_seen && position <= last && position >= first_position(a, last);
        shared.e[page * PAGE_LEN + lane][r] = sees ? s[r] * a.scale : -INFINITY;
    }
}

// Turns the scores of a row into weights.
template <int N, int D>
DEVICE void weigh_row(int r, TeamShared<N, D>& shared) {
    int lane = threadIdx.x % 32;
    float e[SPLIT_PAGES], m = -INFINITY;
    for (int i = 0; i < SPLIT_PAGES; i++) m = larger(e[i] = shared.e[i * PAGE_LEN + lane][r], m);
    m = warp_max(m);
    for (int i = 0; i < SPLIT_PAGES; i++) {
        e[i] = m == -INFINITY ? 0.0f : exponential(e[i] - m);
        shared.e[i * PAGE_LEN + lane][r] = e[i];
    }
    float l = warp_sum((e[0] + e[1]) + (e[2] + e[3]));
    if (lane == 0) {
        shared.m[r] = m;
        shared.l[r] = l;
    }
}

// Adds the weighted values of a split in dimension `d` to each row's sum.
template <class P, int N, int D>
DEVICE void add_values(const Attention& a, const Rows& rows, int split, int d,
                       const TeamShared<N, D>& shared, float (&o)[N]) {
    for (int page = 0; page < SPLIT_PAGES; page++) {
        int start = split * SPLIT_LEN + page * PAGE_LEN;
        if (start >= rows.to || start + PAGE_LEN <= rows.from) continue;
        P values = page_of<P>(a, rows, start / PAGE_LEN);
#pragma unroll 8
        for (int slot = 0; slot < PAGE_LEN; slot++) {
            float value = d < a.head_dim ? values.value(a.head_dim, slot, d) : 0.0f;
#pragma unroll
            for (int r = 0; r < N; r++) o[r] = fmaf(shared.e[page * PAGE_LEN + slot][r], value, o[r]);
        }
    }
}

// What a row knows of its splits so far.
struct State {
    float m, l;
};

// How a state and a split are put together: what each is multiplied by.
struct Factors {
    float old, added;
};

DEVICE Factors merge(State& state, float m, float l) {
    float both = larger(m, state.m);
    Factors f = {exponential(state.m - both), exponential(m - both)};
    state = {both, fmaf(l, f.added, state.l * f.old)};
    return f;
}

// One split of one token's rows: decode. Four warps share the rows: a page of scores, then 32
// dimensions at a time each.
template <class P, int N>
DEVICE void decode_split(const Attention& a, TeamShared<N, HEAD_DIM_MAX>& shared) {
    int token = blockIdx.z, warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    Rows rows = rows_of(a, Run{token, 1}, blockIdx.y, N);
    int split = first_split(a, rows.position) + blockIdx.x;
    if (split * SPLIT_LEN >= rows.to) return;
    load_queries<4>(a, rows, threadIdx.x, shared);
    score_page<P>(a, rows, split, warp, shared);
    __syncthreads();
    for (int r = warp; r < N; r += 4) weigh_row(r, shared);
    __syncthreads();
    int part_len = a.head_dim + 2;
    float* parts = a.parts + blockIdx.x * size_t(part_len);
    for (int d = warp * 32 + lane; d - lane < a.head_dim; d += 128) {
        float o[N] = {};
        add_values<P>(a, rows, split, d, shared, o);
#pragma unroll
        for (int r = 0; r < N; r++) {
            size_t row = size_t(token) * a.n_heads + rows.first_head + r;
            if (r < rows.len && d < a.head_dim) parts[row * a.splits_max * part_len + d] = o[r];
        }
    }
    if (int(threadIdx.x) < rows.len) {
        size_t row = size_t(token) * a.n_heads + rows.first_head + threadIdx.x;
        parts[row * a.splits_max * part_len + a.head_dim] = shared.m[threadIdx.x];
        parts[row * a.splits_max * part_len + a.head_dim + 1] = shared.l[threadIdx.x];
    }
}

// Grid: (splits_max, n_kv_heads * parts of a group, tokens), 128 threads; N is 1, 2, 4 or 8, and a
// group of heads has `ceil(group / N)` parts.
#define DECODE(name, P, N)                                                  \
    KERNEL(128, 4, attention_decode_##name##_##N, GRID_CONSTANT Attention a) { \
        using Shared = TeamShared<N, HEAD_DIM_MAX>;                         \
        SHARED(Shared, shared);                                             \
        decode_split<P, N>(a, shared);                                      \
    }
#define DECODES(name, P) DECODE(name, P, 1) DECODE(name, P, 2) DECODE(name, P, 4) DECODE(name, P, 8)
DECODES(f32, PageF32)
DECODES(f16, PageF16)
DECODES(q8_0, PageQ8)

// Puts the splits of a row together. Grid: (n_heads, tokens), 128 threads.
KERNEL(128, 8, attention_combine, GRID_CONSTANT Attention a) {
    int token = blockIdx.y, position = a.places[token].position, part_len = a.head_dim + 2;
    int splits = position / SPLIT_LEN + 1 - first_split(a, position);
    size_t row = size_t(token) * a.n_heads + blockIdx.x;
    const float* parts = a.parts + row * a.splits_max * part_len;
    for (int d = threadIdx.x; d < a.head_dim; d += 128) {
        State state = {-INFINITY, 0};
        float out = 0;
        for (int i = 0; i < splits; i++) {
            const float* part = parts + size_t(i) * part_len;
            Factors f = merge(state, part[a.head_dim], part[a.head_dim + 1]);
            out = fmaf(part[d], f.added, out * f.old);
        }
        a.out[row * a.head_dim + d] = out / state.l;
    }
}

template <int N, int D>
struct PromptShared {
    TeamShared<N, D> warps[4];
};

// All splits of a run's rows: prompts. A warp has a run; lane `l` has the dimensions `l + 32 i`.
template <class P, int N, int DIMS>
DEVICE void prompt_rows(const Attention& a, PromptShared<N, DIMS * 32>& shared) {
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    int run = blockIdx.x * 4 + warp;
    if (run >= a.runs_len) return;
    Rows rows = rows_of(a, a.runs[run], blockIdx.y, N);
    TeamShared<N, DIMS * 32>& mine = shared.warps[warp];
    load_queries<1>(a, rows, lane, mine);
    State states[N];
    float out[DIMS][N] = {};
#pragma unroll
    for (int r = 0; r < N; r++) states[r] = {-INFINITY, 0};
    for (int split = rows.from / SPLIT_LEN; split * SPLIT_LEN < rows.to; split++) {
        for (int page = 0; page < SPLIT_PAGES; page++) score_page<P>(a, rows, split, page, mine);
        __syncwarp();
        for (int r = 0; r < N; r++) weigh_row(r, mine);
        __syncwarp();
        Factors f[N];
#pragma unroll
        for (int r = 0; r < N; r++) {
            // A split that a row does not see takes no part.
            f[r] = mine.m[r] == -INFINITY ? Factors{1, 0} : merge(states[r], mine.m[r], mine.l[r]);
        }
#pragma unroll
        for (int i = 0; i < DIMS; i++) {
            float o[N] = {};
            add_values<P>(a, rows, split, lane + 32 * i, mine, o);
#pragma unroll
            for (int r = 0; r < N; r++) out[i][r] = fmaf(o[r], f[r].added, out[i][r] * f[r].old);
        }
        __syncwarp();
    }
#pragma unroll
    for (int i = 0; i < DIMS; i++) {
#pragma unroll
        for (int r = 0; r < N; r++) {
            int d = lane + 32 * i;
            if (r < rows.len && d < a.head_dim) a.out[rows.at(a, r) + d] = out[i][r] / states[r].l;
        }
    }
}

// Grid: (runs / 4, n_kv_heads * ceil(group / N)), 128 threads. N is 8, or 4 for heads of more than 128
// dimensions; DIMS * 32 is the longest head.
#define PROMPT(name, P, N, DIMS, LEN)                                            \
    KERNEL(128, 2, attention_prompt_##name##_##LEN, GRID_CONSTANT Attention a) { \
        using Shared = PromptShared<N, LEN>;                                     \
        SHARED(Shared, shared);                                                  \
        prompt_rows<P, N, DIMS>(a, shared);                                      \
    }
#define PROMPTS(name, P) PROMPT(name, P, 8, 2, 64) PROMPT(name, P, 8, 4, 128) PROMPT(name, P, 4, 8, 256)
PROMPTS(f32, PageF32)
PROMPTS(f16, PageF16)
PROMPTS(q8_0, PageQ8)

}  // namespace attention
