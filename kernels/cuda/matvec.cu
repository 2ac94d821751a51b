// Products of few tokens with matrices in the integer formats: a decode step is limited by how fast
// the weights come, so that every byte is read once, 16 at a time, and many reads are under way.
//
//   out[token][row] = sum over columns of weight[row][column] * x[token][column] + bias[row]
//
// for each block of 32 columns (16 in Q6_K), as on the CPU:
//   dot = sum of (byte - zero) * quant                      exact, in integers
//   sum = fma(dot * x_scale, scale, sum)
//   sum = fma(x_scale * sum of the quants, minimum, sum)    where there are minima
// Blocks of a segment of 128 columns in order, then segments in order: `gemm.cu` gives the same bits.
#include "packed.cuh"

namespace matvec {

// The matrices of a launch, which share their input; `count` of them.
struct Products {
    Matrix matrices[3];
    int count;
};

constexpr int THREADS = 128;
// Segments that a block works on at a time: a thread takes four rows of one.
constexpr int SEGMENTS = THREADS / 4;

template <int N>
struct MatvecShared {
    // `[segment][token][row]`
    float parts[SEGMENTS][N][TILE_ROWS];
};

// Activations as `quantize` writes them: `[tokens][cols]` and `[tokens][cols / 32]`.
struct Activations {
    const int8_t* quants;
    const BlockScale* scales;
    int cols, tokens;
};

// The words of four rows in a line.
DEVICE uint4 four_rows(const uint8_t* line, int quarter) {
    return load<uint4>(line + quarter * 16);
}

// Reads a block of four rows: eight groups of four columns each.
template <class F>
DEVICE void read_block(const Tile& tile, int block, int quarter, uint32_t (&quads)[4][8]) {
    const uint8_t* low = tile.low + size_t(block) * F::LOW_STEP;
    const uint8_t* high = tile.high + size_t(block) * F::HIGH_STEP;
    uint4 high_lines[2] = {};
    if (F::BITS == 5 || F::BITS == 6) high_lines[0] = four_rows(high, quarter);
    if (F::BITS == 6) high_lines[1] = four_rows(high + LINE, quarter);
#pragma unroll
    for (int group = 0; group < 8; group++) {
        uint4 line = four_rows(low + (F::BITS == 8 ? group : group / 2) * LINE, quarter);
#pragma unroll
        for (int row = 0; row < 4; row++) {
            uint32_t bits = word(high_lines[F::BITS == 6 ? group / 4 : 0], row);
            quads[row][group] = quad<F>(word(line, row), bits, group);
        }
    }
}

// Adds one block of one token to the sums of four rows.
template <class F>
DEVICE void add_block(const uint32_t (&quads)[4][8], const Activations& x, int token, int block,
                      const float (&scales)[2][4], const float (&minima)[4], float (&sums)[4]) {
    const uint4* from = reinterpret_cast<const uint4*>(x.quants + size_t(token) * x.cols + block * BLOCK_LEN);
    uint4 first = from[0], second = from[1];
    BlockScale s = x.scales[size_t(token) * (x.cols / BLOCK_LEN) + block];
    float quant_sum = s.scale * float(whole_sum(s));
#pragma unroll
    for (int row = 0; row < 4; row++) {
        int left = -F::ZERO * first_sum(s), right = -F::ZERO * second_sum(s);
#pragma unroll
        for (int group = 0; group < 4; group++) {
            left = dot4(quads[row][group], word(first, group), left);
            right = dot4(quads[row][group + 4], word(second, group), right);
        }
        if (F::KIND == Scales::SuperPlain) {
            sums[row] = fmaf(float(left) * s.scale, scales[0][row], sums[row]);
            sums[row] = fmaf(float(right) * s.scale, scales[1][row], sums[row]);
        } else {
            sums[row] = fmaf(float(left + right) * s.scale, scales[0][row], sums[row]);
        }
        if (F::HAS_MIN) sums[row] = fmaf(quant_sum, minima[row], sums[row]);
    }
}

// Sums up a segment of four rows for each token; tokens beyond the last are those of the last.
template <class F, int N>
DEVICE void add_segment(const Tile& tile, int segment, int quarter, const Activations& x, int token,
                        float (&sums)[N][4]) {
    int first = segment * SEGMENT_BLOCKS, blocks = x.cols / BLOCK_LEN;
    int end = first + SEGMENT_BLOCKS < blocks ? first + SEGMENT_BLOCKS : blocks;
    // With few tokens there are registers for the reads of several blocks at once.
#pragma unroll(N <= 2 ? SEGMENT_BLOCKS : 1)
    for (int block = first; block < end; block++) {
        uint32_t quads[4][8];
        read_block<F>(tile, block, quarter, quads);
        int per_step = F::SCALE_LEN / BLOCK_LEN;
        const uint8_t* from = tile.scales + size_t(block / per_step) * F::SCALE_STEP;
        int sub = block % per_step * (F::KIND == Scales::SuperPlain ? 2 : 1);
        float scales[2][4], minima[4];
#pragma unroll
        for (int row = 0; row < 4; row++) {
            int in_tile = quarter * 4 + row;
            scales[0][row] = scale_of<F>(from, in_tile, sub);
            if (F::KIND == Scales::SuperPlain) scales[1][row] = scale_of<F>(from, in_tile, sub + 1);
            if (F::HAS_MIN) minima[row] = minimum_of<F>(from, in_tile, sub);
        }
#pragma unroll
        for (int n = 0; n < N; n++) {
            int of = token + n < x.tokens ? token + n : x.tokens - 1;
            add_block<F>(quads, x, of, block, scales, minima, sums[n]);
        }
    }
}

// One tile of a matrix, `N` tokens from `token` on.
template <class F, int N>
DEVICE void multiply_tile(const Matrix& matrix, int index, const Activations& x, int token,
                          MatvecShared<N>& shared) {
    Tile tile = tile_of<F>(matrix.bytes, x.cols, index);
    int segments = (x.cols + SEGMENT_LEN - 1) / SEGMENT_LEN;
    int thread = threadIdx.x, quarter = thread % 4, slot = thread / 4;
    // This thread adds up one row of one token.
    int row = thread % TILE_ROWS, n = thread / TILE_ROWS;
    float total = 0;
    for (int start = 0; start < segments; start += SEGMENTS) {
        int here = segments - start < SEGMENTS ? segments - start : SEGMENTS;
        if (slot < here) {
            float sums[N][4] = {};
            add_segment<F, N>(tile, start + slot, quarter, x, token, sums);
#pragma unroll
            for (int i = 0; i < N; i++) {
                float4 four = {sums[i][0], sums[i][1], sums[i][2], sums[i][3]};
                *reinterpret_cast<float4*>(&shared.parts[slot][i][quarter * 4]) = four;
            }
        }
        __syncthreads();
        if (n < N) {
            for (int i = 0; i < here; i++) total += shared.parts[i][n][row];
        }
        __syncthreads();
    }
    int at = index * TILE_ROWS + row;
    if (n >= N || token + n >= x.tokens || at >= matrix.rows) return;
    if (matrix.bias) total += matrix.bias[at];
    matrix.out[size_t(token + n) * matrix.rows + at] = total;
}

template <int N>
DEVICE void multiply(const Products& products, const Activations& x, MatvecShared<N>& shared) {
    int tile = blockIdx.x, which = 0;
    for (; which + 1 < products.count; which++) {
        int tiles = (products.matrices[which].rows + TILE_ROWS - 1) / TILE_ROWS;
        if (tile < tiles) break;
        tile -= tiles;
    }
    const Matrix& matrix = products.matrices[which];
    int token = blockIdx.y * N;
    with_form(matrix.type, [&](auto form) {
        multiply_tile<decltype(form), N>(matrix, tile, x, token, shared);
    });
}

// Grid: (tiles of all matrices, tokens / N), 128 threads.
#define MATVEC(N, blocks)                                                                        \
    KERNEL(128, blocks, matvec_##N, GRID_CONSTANT Products products, const int8_t* quants,                     \
           const BlockScale* scales, int cols, int tokens) {                                     \
        SHARED(MatvecShared<N>, shared);                                                         \
        multiply<N>(products, Activations{quants, scales, cols, tokens}, shared);                \
    }
MATVEC(1, 4)
MATVEC(2, 4)
MATVEC(4, 3)
MATVEC(8, 2)

}  // namespace matvec
