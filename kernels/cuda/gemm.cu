// Products of many tokens with a matrix in an integer format, on tensor cores: prompts and batches.
//
// A block computes 128 rows of 64 tokens. It goes through the columns a segment of 128 at a time:
// while one segment is multiplied, the next is copied to shared memory as it lies in global memory.
// Warp `w` has the tiles `2 * (w % 4)`, `2 * (w % 4) + 1` and 32 tokens from `32 * (w / 4)` on.
//
// Integer sums are exact and scales are applied as in `matvec.cu`, block by block: the same bits.
#include "packed.cuh"

namespace gemm {

constexpr int GEMM_THREADS = 256;
constexpr int GEMM_TILES = 8;
constexpr int GEMM_TOKENS = 64;
// Bytes from one token to the next in shared memory: a multiple of 16, and eight tokens lie in
// different banks.
constexpr int TOKEN_STRIDE = SEGMENT_LEN + 16;

// What a block has of one segment.
template <class F>
struct alignas(128) Stage {
    uint8_t low[GEMM_TILES][SEGMENT_BLOCKS * F::LOW_STEP];
    uint8_t high[GEMM_TILES][F::HIGH_STEP ? SEGMENT_BLOCKS * F::HIGH_STEP : 16];
    uint8_t scales[GEMM_TILES][F::SEGMENT_SCALES];
    int8_t quants[GEMM_TOKENS][TOKEN_STRIDE];
    BlockScale quant_scales[GEMM_TOKENS][SEGMENT_BLOCKS];
};

template <class F>
struct GemmShared {
    Stage<F> stages[2];
    // Of the segments so far: 32 of each thread. They are touched once a segment, and registers are
    // what two blocks on a multiprocessor lack.
    float totals[32][GEMM_THREADS];
};

// What a block multiplies.
struct Gemm {
    Matrix matrix;
    const int8_t* quants;
    const BlockScale* scales;
    int cols, tokens;
    int first_tile, first_token;
};

// Starts copies of `size` bytes, a multiple of 16, for each of the block's tiles that exist.
template <int ROOM>
DEVICE void copy_plane(uint8_t (&to)[GEMM_TILES][ROOM], const uint8_t* from, size_t stride, int size,
                       int tiles) {
    constexpr int PIECES = ROOM / 16;
    for (int i = threadIdx.x; i < GEMM_TILES * PIECES; i += GEMM_THREADS) {
        int tile = i / PIECES, at = i % PIECES * 16;
        if (tile < tiles && at < size) copy_async_16(&to[tile][at], from + tile * stride + at);
    }
}

// Starts the copies of a segment.
template <class F>
DEVICE void copy_segment(const Gemm& g, int segment, Stage<F>& stage) {
    int first = segment * SEGMENT_BLOCKS, all_blocks = g.cols / BLOCK_LEN;
    int blocks = all_blocks - first < SEGMENT_BLOCKS ? all_blocks - first : SEGMENT_BLOCKS;
    int tiles = (g.matrix.rows + TILE_ROWS - 1) / TILE_ROWS - g.first_tile;
    Tile tile = tile_of<F>(g.matrix.bytes, g.cols, g.first_tile);
    size_t stride = tile_of<F>(g.matrix.bytes, g.cols, g.first_tile + 1).low - tile.low;
    copy_plane(stage.low, tile.low + size_t(first) * F::LOW_STEP, stride, blocks * F::LOW_STEP, tiles);
    if (F::HIGH_STEP) {
        const uint8_t* from = tile.high + size_t(first) * F::HIGH_STEP;
        copy_plane(stage.high, from, stride, blocks * F::HIGH_STEP, tiles);
    }
    int steps = F::IS_SUPER ? 1 : blocks;
    const uint8_t* from = tile.scales + size_t(first * BLOCK_LEN / F::SCALE_LEN) * F::SCALE_STEP;
    copy_plane(stage.scales, from, stride, steps * F::SCALE_STEP, tiles);
    for (int i = threadIdx.x; i < GEMM_TOKENS * SEGMENT_LEN / 16; i += GEMM_THREADS) {
        int token = i / (SEGMENT_LEN / 16), at = i % (SEGMENT_LEN / 16) * 16;
        size_t of = g.first_token + token;
        if (of < size_t(g.tokens) && at < blocks * BLOCK_LEN) {
            copy_async_16(&stage.quants[token][at], g.quants + of * g.cols + segment * SEGMENT_LEN + at);
        }
    }
    for (int i = threadIdx.x; i < GEMM_TOKENS * SEGMENT_BLOCKS; i += GEMM_THREADS) {
        int token = i / SEGMENT_BLOCKS, block = i % SEGMENT_BLOCKS;
        size_t of = g.first_token + token;
        if (of < size_t(g.tokens) && block < blocks) {
            copy_async_8(&stage.quant_scales[token][block], g.scales + of * all_blocks + first + block);
        }
    }
    copy_async_commit();
}

// A warp's 32 rows and 32 tokens: `[tile][eight tokens][as a lane has them, see mma_32]`.
using Sums = float[2][4][4];

// The weights of a block of a tile as `mma_32` takes them.
template <class F>
DEVICE void read_weights(const Stage<F>& stage, int tile, int block, int lane, uint32_t (&a)[4]) {
    int row = lane / 4, group = lane % 4;
#pragma unroll
    for (int i = 0; i < 4; i++) {
        int of = group + i / 2 * 4, at = (row + i % 2 * 8) * 4;
        int line = block * F::LOW_STEP + (F::BITS == 8 ? of : of / 2) * LINE;
        uint32_t high = 0;
        if (F::BITS == 5) high = load<uint32_t>(&stage.high[tile][block * F::HIGH_STEP + at]);
        if (F::BITS == 6) high = load<uint32_t>(&stage.high[tile][block * F::HIGH_STEP + i / 2 * LINE + at]);
        a[i] = quad<F>(load<uint32_t>(&stage.low[tile][line + at]), high, of);
    }
}

// Adds integer sums times their scales: `c` as `mma_32` gives it, `x` of the tokens `2t`, `2t + 1`,
// `scales` of the rows `g`, `g + 8`.
DEVICE void add_scaled(const int (&c)[4], const BlockScale (&x)[2], const float (&scales)[2], float (&sums)[4]) {
#pragma unroll
    for (int i = 0; i < 4; i++) sums[i] = fmaf(float(c[i]) * x[i % 2].scale, scales[i / 2], sums[i]);
}

// Multiplies a block of one tile and eight tokens.
template <class F>
DEVICE void multiply_block(const uint32_t (&a)[4], uint32_t b0, uint32_t b1, const BlockScale (&x)[2],
                           const float (&scales)[2][2], const float (&minima)[2], float (&sums)[4]) {
    int starts[2][2];
#pragma unroll
    for (int i = 0; i < 2; i++) {
        starts[0][i] = -F::ZERO * first_sum(x[i]);
        starts[1][i] = -F::ZERO * second_sum(x[i]);
    }
    if (F::KIND == Scales::SuperPlain) {
        int left[4] = {starts[0][0], starts[0][1], starts[0][0], starts[0][1]};
        mma_16(left, a[0], a[1], b0);
        add_scaled(left, x, scales[0], sums);
        int right[4] = {starts[1][0], starts[1][1], starts[1][0], starts[1][1]};
        mma_16(right, a[2], a[3], b1);
        add_scaled(right, x, scales[1], sums);
        return;
    }
    int even = starts[0][0] + starts[1][0], odd = starts[0][1] + starts[1][1];
    int dots[4] = {even, odd, even, odd};
    mma_32(dots, a, b0, b1);
    add_scaled(dots, x, scales[0], sums);
    if (F::HAS_MIN) {
#pragma unroll
        for (int i = 0; i < 4; i++) {
            float quant_sum = x[i % 2].scale * float(whole_sum(x[i % 2]));
            sums[i] = fmaf(quant_sum, minima[i / 2], sums[i]);
        }
    }
}

// Adds one block of 32 columns to a warp's sums.
template <class F>
DEVICE void add_block(const Stage<F>& stage, int block, int sub_block, Sums& sums) {
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    int first_token = warp / 4 * 32, first_tile = warp % 4 * 2;
    // Two words for each eight tokens.
    uint32_t b[8];
#pragma unroll
    for (int pair = 0; pair < 2; pair++) {
        int token = first_token + pair * 16 + lane / 16 * 8 + lane % 8;
        uint32_t four[4];
        load_matrices_4(four, &stage.quants[token][block * BLOCK_LEN + lane / 8 % 2 * 16]);
#pragma unroll
        for (int i = 0; i < 4; i++) b[pair * 4 + i] = four[i];
    }
#pragma unroll
    for (int i = 0; i < 2; i++) {
        int tile = first_tile + i, row = lane / 4;
        uint32_t a[4];
        read_weights<F>(stage, tile, block, lane, a);
        const uint8_t* from = stage.scales[tile] + (F::IS_SUPER ? 0 : block * F::SCALE_STEP);
        int sub = F::KIND == Scales::SuperPlain ? sub_block * 2 : F::IS_SUPER ? sub_block : 0;
        float scales[2][2] = {{scale_of<F>(from, row, sub), scale_of<F>(from, row + 8, sub)}};
        if (F::KIND == Scales::SuperPlain) {
            scales[1][0] = scale_of<F>(from, row, sub + 1);
            scales[1][1] = scale_of<F>(from, row + 8, sub + 1);
        }
        float minima[2] = {};
        if (F::HAS_MIN) {
            minima[0] = minimum_of<F>(from, row, sub);
            minima[1] = minimum_of<F>(from, row + 8, sub);
        }
#pragma unroll
        for (int eight = 0; eight < 4; eight++) {
            int token = first_token + eight * 8 + lane % 4 * 2;
            BlockScale x[2] = {stage.quant_scales[token][block], stage.quant_scales[token + 1][block]};
            multiply_block<F>(a, b[eight * 2], b[eight * 2 + 1], x, scales, minima, sums[i][eight]);
        }
    }
}

template <class F>
DEVICE void add_segment(const Gemm& g, int segment, const Stage<F>& stage,
                        float (&totals)[32][GEMM_THREADS]) {
    int first = segment * SEGMENT_BLOCKS, all_blocks = g.cols / BLOCK_LEN;
    int blocks = all_blocks - first < SEGMENT_BLOCKS ? all_blocks - first : SEGMENT_BLOCKS;
    Sums sums = {};
#pragma unroll 1
    for (int block = 0; block < blocks; block++) {
        add_block<F>(stage, block, (first + block) % (F::SCALE_LEN / BLOCK_LEN), sums);
    }
#pragma unroll
    for (int i = 0; i < 32; i++) totals[i][threadIdx.x] += sums[i / 16][i / 4 % 4][i % 4];
}

// Writes a warp's sums: rows and tokens that do not exist are left out.
DEVICE void store(const Gemm& g, const float (&totals)[32][GEMM_THREADS]) {
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
#pragma unroll
    for (int i = 0; i < 32; i++) {
        int tile = i / 16, eight = i / 4 % 4, part = i % 4;
        int row = (g.first_tile + warp % 4 * 2 + tile) * TILE_ROWS + lane / 4 + part / 2 * 8;
        int token = g.first_token + warp / 4 * 32 + eight * 8 + lane % 4 * 2 + part % 2;
        if (row >= g.matrix.rows || token >= g.tokens) continue;
        float total = totals[i][threadIdx.x];
        if (g.matrix.bias) total += g.matrix.bias[row];
        g.matrix.out[size_t(token) * g.matrix.rows + row] = total;
    }
}

template <class F>
DEVICE void multiply(const Gemm& g, GemmShared<F>& shared) {
    int segments = (g.cols + SEGMENT_LEN - 1) / SEGMENT_LEN;
    for (int i = 0; i < 32; i++) shared.totals[i][threadIdx.x] = 0;
    copy_segment<F>(g, 0, shared.stages[0]);
    for (int segment = 0; segment < segments; segment++) {
        if (segment + 1 < segments) {
            copy_segment<F>(g, segment + 1, shared.stages[(segment + 1) % 2]);
            copy_async_wait<1>();
        } else {
            copy_async_wait<0>();
        }
        __syncthreads();
        add_segment<F>(g, segment, shared.stages[segment % 2], shared.totals);
        __syncthreads();
    }
    store(g, shared.totals);
}

// Bytes of shared memory of a multiprocessor.
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ == 800
constexpr int SHARED_SIZE = 164 * 1024;
#elif __CUDA_ARCH__ < 900
constexpr int SHARED_SIZE = 100 * 1024;
#else
constexpr int SHARED_SIZE = 228 * 1024;
#endif

// Blocks that share a multiprocessor, each with 1 KB for the system: two where they fit.
template <class F>
constexpr int blocks_of() {
    return 2 * (sizeof(GemmShared<F>) + 1024) <= SHARED_SIZE ? 2 : 1;
}

// Grid: (tokens / 64, rows / 128), 256 threads; shared memory: `README.md`.
#define GEMM(name, Form)                                                                            \
    KERNEL(256, blocks_of<Form>(), gemm_##name, Matrix matrix, const int8_t* quants, const BlockScale* scales,      \
           int cols, int tokens) {                                                                  \
        SHARED_LARGE(GemmShared<Form>, shared);                                                     \
        Gemm g{matrix, quants, scales, cols, tokens, int(blockIdx.y) * GEMM_TILES,                  \
               int(blockIdx.x) * GEMM_TOKENS};                                                      \
        multiply<Form>(g, shared);                                                                  \
    }
GEMM(q8_0, Q8_0)
GEMM(q4_0, Q4_0)
GEMM(q4_1, Q4_1)
GEMM(q5_0, Q5_0)
GEMM(q5_1, Q5_1)
GEMM(q4_k, Q4_K)
GEMM(q5_k, Q5_K)
GEMM(q6_k, Q6_K)

}  // namespace gemm
