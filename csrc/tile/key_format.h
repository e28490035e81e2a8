// SPDX-License-Identifier: MIT
#pragma once

#include <bit>
#include <cstdint>

namespace hipdecode::tile {

/// How the keys of sparse MLA lie in memory: a latent part as fp8 with a scale for each group of
/// columns, then a rotary part as bf16. A key is fp8 * scale in fp32, rounded to bf16.
enum class KeyFormat { v32, v4 };

template <KeyFormat kFormat>
struct KeyLayout;

/// DeepSeek-V3.2 (FlashMLA's fp8 cache): a token is 512 fp8, 4 fp32 scales, 64 bf16.
template <>
struct KeyLayout<KeyFormat::v32> {
  static constexpr int kHeadDimQk = 576, kHeadDimV = 512;
  static constexpr int kLatent = 512, kGroup = 128;  // fp8 columns, columns of a scale
  static constexpr int kRopeOffset = 528;            // bytes
  static constexpr int kDataBytes = 656;             // from token to token of a block
  using Scale = float;

  static constexpr float scale_value(float scale) { return scale; }

  /// Where the scales of token `position` lie, counted from its block's first byte.
  static constexpr int64_t scales_at(int32_t position, int32_t) {
    return int64_t{position} * kDataBytes + kLatent;
  }
};

/// DeepSeek-V4: a block is its tokens' data, 448 fp8 and 64 bf16 each, then for each token 7 UE8M0
/// scales and a byte of padding. The rotary part belongs to the value.
template <>
struct KeyLayout<KeyFormat::v4> {
  static constexpr int kHeadDimQk = 512, kHeadDimV = 512;
  static constexpr int kLatent = 448, kGroup = 64;
  static constexpr int kRopeOffset = 448;
  static constexpr int kDataBytes = 576;
  static constexpr int kScaleBytes = 8;
  using Scale = uint8_t;

  /// 2^(byte - 127); 255 is NaN, and 0 is a number.
  static constexpr float scale_value(uint8_t byte) {
    return std::bit_cast<float>(byte == 0     ? 0x00400000u
                                : byte == 255 ? 0x7fc00000u
                                              : uint32_t{byte} << 23);
  }

  static constexpr int64_t scales_at(int32_t position, int32_t block_size) {
    return int64_t{block_size} * kDataBytes + int64_t{position} * kScaleBytes;
  }
};

/// Whether the keys of a kernel's shape are packed.
template <class Shape>
constexpr bool kIsPacked = requires { Shape::kFormat; };

/// Where a key of such a format lies; null: there is none.
struct PackedKey {
  const uint8_t* data;
  const uint8_t* scales;
  bool extra;  // it is of the extra cache, whose fp8 may have another flavour

  constexpr operator const uint8_t*() const { return data; }
};

/// The same by a slot that may still be on its way: what asks for the key waits for it.
template <KeyFormat kFormat>
struct PackedKeyRef {
  const uint8_t* blocks;
  int64_t stride_block;  // bytes
  int32_t block_bits;    // log2 of the tokens of a block
  uint32_t slots;        // slots from here on name no key
  uint32_t slot;
  bool extra;

  constexpr bool exists() const { return slot < slots; }

  constexpr PackedKey unchecked() const {
    const auto block = slot >> block_bits;
    const auto position = static_cast<int32_t>(slot - (block << block_bits));
    const uint8_t* bytes = blocks + static_cast<int64_t>(block) * stride_block;
    using Layout = KeyLayout<kFormat>;
    return {bytes + int64_t{position} * Layout::kDataBytes,
            bytes + Layout::scales_at(position, 1 << block_bits), extra};
  }

  constexpr operator PackedKey() const {
    return exists() ? unchecked() : PackedKey{nullptr, nullptr, false};
  }
};

}  // namespace hipdecode::tile
