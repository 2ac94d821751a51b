// The formats that keep their rows as files have them: eight weights at a time, bit for bit those of
// `kernels/src/formats`, which says where each layout comes from.
#pragma once
#include "common.cuh"
#include "grids.cuh"
#include "packed.cuh"

// Weights and bytes of a block.
struct Layout {
    int len, size;
};

DEVICE Layout layout_of(int type) {
    switch (type) {
        case TYPE_Q2_K: return {256, 84};
        case TYPE_Q3_K: return {256, 110};
        case TYPE_IQ2_XXS: return {256, 66};
        case TYPE_IQ2_XS: return {256, 74};
        case TYPE_IQ2_S: return {256, 82};
        case TYPE_IQ3_XXS: return {256, 98};
        case TYPE_IQ3_S: return {256, 110};
        case TYPE_IQ1_S: return {256, 50};
        case TYPE_IQ1_M: return {256, 56};
        case TYPE_IQ4_NL: return {32, 18};
        case TYPE_IQ4_XS: return {256, 136};
        case TYPE_TQ1_0: return {256, 54};
        case TYPE_TQ2_0: return {256, 66};
        case TYPE_MXFP4: return {32, 17};
        default: return {64, 36};
    }
}

using Eight = float[8];

// Where the two-bit quants of a sub-block of 16 start, and which bits of these bytes they are.
DEVICE int two_bit_start(int sub) { return 32 * (sub / 8) + 16 * (sub % 2); }
DEVICE int two_bit_shift(int sub) { return sub % 8 / 2 * 2; }

DEVICE void decode_q2_k(const uint8_t* b, int eight, Eight& out) {
    int sub = eight / 2, first = eight % 2 * 8;
    float scale = half_at(b, 80) * float(b[sub] & 15), min = half_at(b, 82) * float(b[sub] >> 4);
    for (int i = 0; i < 8; i++) {
        int quant = b[16 + two_bit_start(sub) + first + i] >> two_bit_shift(sub) & 3;
        out[i] = scale * float(quant) - min;
    }
}

DEVICE void decode_q3_k(const uint8_t* b, int eight, Eight& out) {
    int sub = eight / 2, first = eight % 2 * 8;
    int low = b[96 + sub % 8] >> 4 * (sub / 8) & 15, high = b[104 + sub % 4] >> 2 * (sub / 4) & 3;
    float scale = half_at(b, 108) * (float(low | high << 4) - 32.0f);
    for (int i = 0; i < 8; i++) {
        int quant = b[32 + two_bit_start(sub) + first + i] >> two_bit_shift(sub) & 3;
        // The third bit is stored inverted: it is the absence of a minus four.
        int third = b[16 * (sub % 2) + first + i] >> sub / 2 & 1;
        out[i] = scale * float(quant - (third ? 0 : 4));
    }
}

TABLE float NON_LINEAR[16] = {-127, -104, -83, -65, -49, -35, -22, -10,
                              1,    13,   25,  38,  53,  69,  89,  113};
// Twice what the quants of E2M1 stand for; the scales are halved instead.
TABLE float E2M1_DOUBLED[16] = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};

// Eight values of `scale * table[quant]`: the low halves of `len` bytes first, then the high halves.
DEVICE void look_up(float scale, const float* table, const uint8_t* b, int len, int eight, Eight& out) {
    int first = eight * 8 % len, shift = eight * 8 / len * 4;
    for (int i = 0; i < 8; i++) out[i] = scale * table[b[first + i] >> shift & 15];
}

DEVICE void decode_iq4_xs(const uint8_t* b, int eight, Eight& out) {
    int sub = eight / 4;
    int low = b[4 + sub / 2] >> sub % 2 * 4 & 15, high = int(u16_at(b, 2)) >> 2 * sub & 3;
    float scale = half_at(b, 0) * (float(low | high << 4) - 32.0f);
    look_up(scale, NON_LINEAR, b + 8 + 16 * sub, 16, eight % 4, out);
}

DEVICE void decode_mxfp4(const uint8_t* b, int eight, Eight& out) {
    uint32_t exponent = b[0];
    // Half of two to the power of `exponent - 127`; the smallest two are subnormal.
    float scale = float_of(exponent < 2 ? 0x00200000u << exponent : (exponent - 1) << 23);
    look_up(scale, E2M1_DOUBLED, b + 1, 16, eight, out);
}

DEVICE void decode_nvfp4(const uint8_t* b, int eight, Eight& out) {
    int sub = eight / 2;
    uint32_t byte = b[sub], exponent = byte >> 3 & 15;
    float mantissa = float(byte & 7);
    float scale = exponent == 0 ? mantissa / 1024.0f
                                : (1.0f + mantissa / 8.0f) * float_of((exponent + 127 - 8) << 23);
    if (byte == 0x7F) scale = 0.0f;
    look_up(scale, E2M1_DOUBLED, b + 4 + 8 * sub, 8, eight % 2, out);
}

DEVICE void decode_tq1_0(const uint8_t* b, int eight, Eight& out) {
    float scale = half_at(b, 52);
    for (int i = 0; i < 8; i++) {
        int at = eight * 8 + i, byte, digit;
        if (at < 160) {
            byte = at % 32, digit = at / 32;
        } else if (at < 240) {
            byte = 32 + (at - 160) % 16, digit = (at - 160) / 16;
        } else {
            byte = 48 + (at - 240) % 4, digit = (at - 240) / 4;
        }
        uint32_t power = digit == 0 ? 1 : digit == 1 ? 3 : digit == 2 ? 9 : digit == 3 ? 27 : 81;
        out[i] = scale * (float((b[byte] * power & 0xFF) * 3 >> 8) - 1.0f);
    }
}

DEVICE void decode_tq2_0(const uint8_t* b, int eight, Eight& out) {
    float scale = half_at(b, 64);
    int group = eight / 4;
    for (int i = 0; i < 8; i++) {
        int quant = b[32 * (group / 4) + eight % 4 * 8 + i] >> 2 * (group % 4) & 3;
        out[i] = scale * (float(quant) - 1.0f);
    }
}

// Eight signs from the seven that are stored: their number is even.
DEVICE uint32_t eight_signs(uint32_t seven) {
    seven &= 127;
    uint32_t parity = seven ^ seven >> 4;
    parity ^= parity >> 2;
    parity ^= parity >> 1;
    return seven | (parity & 1) << 7;
}

DEVICE float with_sign(float value, uint32_t signs, int i) { return signs >> i & 1 ? -value : value; }

DEVICE int half_byte(const uint8_t* bytes, int i) { return bytes[i / 2] >> i % 2 * 4 & 15; }

DEVICE void iq2_point(float scale, uint32_t point, uint32_t signs, Eight& out) {
    for (int i = 0; i < 8; i++) {
        uint32_t coordinate = point >> 2 * i & 3;
        float value = coordinate == 0 ? 8.0f : coordinate == 1 ? 25.0f : coordinate == 2 ? 43.0f : 0.0f;
        out[i] = with_sign(scale * value, signs, i);
    }
}

TABLE float IQ3_XXS_VALUES[8] = {4, 12, 20, 28, 36, 44, 52, 62};
TABLE float IQ3_S_VALUES[8] = {1, 3, 5, 7, 9, 11, 13, 15};

DEVICE void iq3_points(float scale, const float* values, uint32_t a, uint32_t b, uint32_t signs,
                       Eight& out) {
    for (int i = 0; i < 8; i++) {
        out[i] = with_sign(scale * values[(i < 4 ? a : b) >> i % 4 * 4 & 7], signs, i);
    }
}

DEVICE void decode_iq2_xxs(const uint8_t* b, int eight, Eight& out) {
    int group = 2 + 8 * (eight / 4);
    uint32_t packed = u32_at(b, group + 4);
    float scale = half_at(b, 0) * (0.5f + float(packed >> 28)) * 0.25f;
    iq2_point(scale, GRID_IQ2_XXS[b[group + eight % 4]], eight_signs(packed >> eight % 4 * 7), out);
}

DEVICE void decode_iq2_xs(const uint8_t* b, int eight, Eight& out) {
    uint32_t packed = u16_at(b, 2 + 2 * eight);
    float scale = half_at(b, 0) * (0.5f + float(half_byte(b + 66, eight / 2))) * 0.25f;
    iq2_point(scale, GRID_IQ2_XS[packed & 511], eight_signs(packed >> 9), out);
}

DEVICE void decode_iq2_s(const uint8_t* b, int eight, Eight& out) {
    int upper = b[66 + eight / 4] >> eight % 4 * 2 & 3;
    float scale = half_at(b, 0) * (0.5f + float(half_byte(b + 74, eight / 2))) * 0.25f;
    iq2_point(scale, GRID_IQ2_S[b[2 + eight] | upper << 8], b[34 + eight], out);
}

DEVICE void decode_iq3_xxs(const uint8_t* b, int eight, Eight& out) {
    uint32_t packed = u32_at(b, 66 + eight / 4 * 4);
    float scale = half_at(b, 0) * (0.5f + float(packed >> 28)) * 0.5f;
    uint32_t first = GRID_IQ3_XXS[b[2 + 2 * eight]], second = GRID_IQ3_XXS[b[3 + 2 * eight]];
    iq3_points(scale, IQ3_XXS_VALUES, first, second, eight_signs(packed >> eight % 4 * 7), out);
}

DEVICE void decode_iq3_s(const uint8_t* b, int eight, Eight& out) {
    float scale = half_at(b, 0) * float(1 + 2 * half_byte(b + 106, eight / 4));
    int at = 2 * eight;
    int upper = b[66 + at / 8] >> at % 8 & 1, next = b[66 + at / 8] >> (at % 8 + 1) & 1;
    uint32_t first = GRID_IQ3_S[b[2 + at] | upper << 8], second = GRID_IQ3_S[b[3 + at] | next << 8];
    iq3_points(scale, IQ3_S_VALUES, first, second, b[74 + eight], out);
}

// The coordinates 0, 1, 2 stand for -1, 0, 1; the whole point is shifted by an eighth.
DEVICE void iq1_point(float scale, int index, bool is_down, Eight& out) {
    uint32_t point = GRID_IQ1[index];
    float delta = is_down ? -0.125f : 0.125f;
    for (int i = 0; i < 8; i++) out[i] = scale * (float(point >> 2 * i & 3) - 1.0f + delta);
}

DEVICE void decode_iq1_s(const uint8_t* b, int eight, Eight& out) {
    uint32_t packed = u16_at(b, 34 + eight / 4 * 2);
    float scale = half_at(b, 0) * float(2 * (packed >> 12 & 7) + 1);
    iq1_point(scale, int(b[2 + eight] | (packed >> eight % 4 * 3 & 7) << 8), packed >> 15, out);
}

DEVICE void decode_iq1_m(const uint8_t* b, int eight, Eight& out) {
    uint32_t bits = 0;
    for (int i = 3; i >= 0; i--) bits = bits << 4 | u16_at(b, 48 + 2 * i) >> 12;
    int group = eight / 2, upper = half_byte(b + 32, eight);
    uint32_t packed = u16_at(b, 48 + 2 * (group / 4));
    float scale = half_to_float(uint16_t(bits)) * float(2 * (packed >> group % 4 * 3 & 7) + 1);
    iq1_point(scale, b[eight] | (upper & 7) << 8, upper & 8, out);
}

// The weights `8 * eight` to `8 * eight + 7` of a block.
DEVICE void decode(int type, const uint8_t* b, int eight, Eight& out) {
    switch (type) {
        case TYPE_Q2_K: return decode_q2_k(b, eight, out);
        case TYPE_Q3_K: return decode_q3_k(b, eight, out);
        case TYPE_IQ2_XXS: return decode_iq2_xxs(b, eight, out);
        case TYPE_IQ2_XS: return decode_iq2_xs(b, eight, out);
        case TYPE_IQ2_S: return decode_iq2_s(b, eight, out);
        case TYPE_IQ3_XXS: return decode_iq3_xxs(b, eight, out);
        case TYPE_IQ3_S: return decode_iq3_s(b, eight, out);
        case TYPE_IQ1_S: return decode_iq1_s(b, eight, out);
        case TYPE_IQ1_M: return decode_iq1_m(b, eight, out);
        case TYPE_IQ4_NL: return look_up(half_at(b, 0), NON_LINEAR, b + 2, 16, eight, out);
        case TYPE_IQ4_XS: return decode_iq4_xs(b, eight, out);
        case TYPE_TQ1_0: return decode_tq1_0(b, eight, out);
        case TYPE_TQ2_0: return decode_tq2_0(b, eight, out);
        case TYPE_MXFP4: return decode_mxfp4(b, eight, out);
        case TYPE_NVFP4: return decode_nvfp4(b, eight, out);
    }
}
