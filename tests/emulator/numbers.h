// bf16 and fp16 in plain integer arithmetic, rounded to nearest even as the GPU does: not every compiler has these types.
#pragma once
#include <cstring>

#include "common/types.cuh"

namespace emulator {

inline u32 bits_of(float x) {
    u32 bits;
    std::memcpy(&bits, &x, sizeof bits);
    return bits;
}

inline float float_of(u32 bits) {
    float x;
    std::memcpy(&x, &bits, sizeof x);
    return x;
}

inline float from_bf16(u16 x) { return float_of(u32(x) << 16); }

inline u16 to_bf16(float x) {
    if (x != x) return 0x7FFF;
    u32 bits = bits_of(x);
    return u16((bits + 0x7FFF + (bits >> 16 & 1)) >> 16);
}

inline float from_f16(u16 x) {
    // Exponent and mantissa at their places in a float; the product moves the bias and is exact, also below the normal numbers.
    float magnitude = float_of(u32(x & 0x7FFF) << 13) * 0x1p112f;
    u32 is_special = (x & 0x7C00) == 0x7C00 ? 0x7F800000u : 0u;
    return float_of(bits_of(magnitude) | is_special | u32(x & 0x8000) << 16);
}

inline u16 to_f16(float x) {
    if (x != x) return 0x7FFF;
    u32 sign = bits_of(x) >> 16 & 0x8000, magnitude = bits_of(x) & 0x7FFFFFFF;
    if (magnitude >= bits_of(65520.0f)) return u16(sign | 0x7C00);
    if (magnitude < bits_of(0x1p-14f)) {
        // Below the normal numbers the unit is 2^-24: one is that of floats near 0.5.
        return u16(sign | (bits_of(float_of(magnitude) + 0.5f) - bits_of(0.5f)));
    }
    u32 rounded = magnitude + 0xFFF + (magnitude >> 13 & 1);
    return u16(sign | ((rounded >> 13) - (112 << 10)));
}

inline float widen(u16 x, bool is_bf16) { return is_bf16 ? from_bf16(x) : from_f16(x); }
inline u16 narrow(float x, bool is_bf16) { return is_bf16 ? to_bf16(x) : to_f16(x); }

} // namespace emulator
