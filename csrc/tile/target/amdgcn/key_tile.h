// SPDX-License-Identifier: MIT
#pragma once

#include "lds.h"

namespace hipdecode::tile::amdgcn {

/// How 64 key rows of kRowBytes lie in LDS, so that direct-to-LDS loads can fill them and both
/// kinds of reads (16 bytes of 32 rows; columns of 8 or 4 rows, transposed) are free of bank
/// conflicts.
///
/// A load fills a slab of 1024 bytes: four groups of 16 lanes, group g from tokens 16 g ... 16 g +
/// 15. Slabs are 1040 bytes apart. A row is cut into pieces of 256 bytes (and 128, 64, 32 for the
/// rest), which are `lanes` = 16 (8, 4, 2) lanes of a load, and `lanes` slabs hold one piece of all
/// tokens. Token 16 g + i has rank(i) among its group; its piece is number rank / lanes in slab
/// rank % lanes. So 16-byte chunk c of a piece starts at bank 4 (rank(i) + c), whatever the piece:
/// 16 tokens of a group lie in 16 different places, and so do the 8 (4) tokens of a transposing
/// read.
template <int kRowBytes>
struct KeyTile {
  static constexpr int kTokens = 64, kGroup = 16, kChunk = 16;
  static constexpr int kSlabPitch = 1024 + kChunk;
  static_assert(kRowBytes % 32 == 0 && kRowBytes < 4096);

  struct Piece {
    int byte, lanes, slab;  // first byte of the row, lanes of a load, first slab
  };

  /// The piece that holds `byte` of a row.
  static consteval Piece piece_at(int byte) {
    Piece piece{0, 16, 0};
    for (;;) {
      while (piece.byte + piece.lanes * kChunk > kRowBytes) piece.lanes /= 2;
      if (byte < piece.byte + piece.lanes * kChunk) return piece;
      piece.byte += piece.lanes * kChunk;
      piece.slab += piece.lanes;
    }
  }
  static constexpr int kSlabs = piece_at(kRowBytes - 1).slab + piece_at(kRowBytes - 1).lanes;
  static constexpr int kBytes = kSlabs * kSlabPitch;

  /// Tokens 0 ... 15 of a group and their ranks: a transpose of 4 x 4, its own inverse.
  static TILE_FN constexpr uint32_t rank(uint32_t token) { return token % 4 * 4 + token / 4 % 4; }

  /// Byte of the tile where `byte` of token 0 lies; add token_offset() for the same piece.
  template <int kByte>
  static constexpr int kOffset = piece_at(kByte).slab * kSlabPitch + (kByte - piece_at(kByte).byte);

  /// What token adds to an offset in a piece of `lanes`.
  static TILE_FN uint32_t token_offset(uint32_t token, int lanes) {
    const uint32_t place = rank(token % kGroup), width = static_cast<uint32_t>(lanes);
    return place % width * kSlabPitch + token / kGroup * 256 + place / width * (width * kChunk);
  }
  /// Byte of the tile where `byte` of token 0 lies, in the pieces that are as wide as the first.
  static TILE_FN uint32_t wide_offset(uint32_t byte) {
    constexpr uint32_t kLanesEach = piece_at(0).lanes, kPieceBytes = kLanesEach * kChunk;
    return byte / kPieceBytes * (kLanesEach * kSlabPitch) + byte % kPieceBytes;
  }
  static constexpr int kGroupOffset = 256;             // tokens + 16
  static constexpr int kEightTokens = 2 * kSlabPitch;  // token + 8, of token % 16 < 8

  /// The token whose key lane `lane` of wave `wave` (of four) looks up, so that the 16 lanes of its
  /// group find all that the wave loads by DPP alone.
  static TILE_FN uint32_t token_of_lane(uint32_t lane, uint32_t wave) {
    const uint32_t in_group = lane % kGroup;
    return lane / kGroup * kGroup + rank((in_group & ~3u) | ((in_group + wave) & 3));
  }

  /// The lane that looks `token` up.
  static TILE_FN uint32_t lane_of_token(uint32_t token, uint32_t wave) {
    const uint32_t place = rank(token % kGroup);
    return token / kGroup * kGroup + ((place & ~3u) | ((place - wave) & 3));
  }

#if defined(__gfx950__)
  /// Starts to load this wave's quarter of the tile at `tile`. `row` is the address of the key that
  /// the lane looked up.
  static TILE_FN void load(uint32_t tile, uint64_t row, uint32_t wave) {
    load_from<0>(tile + wave * kSlabPitch, row, wave);
  }

 private:
  template <int kByte>
  static TILE_FN void load_from(uint32_t tile, uint64_t row, uint32_t wave) {
    if constexpr (kByte < kRowBytes) {
      constexpr Piece kPiece = piece_at(kByte);
      constexpr int kSlab = kPiece.slab * kSlabPitch, kNext = kSlab + 4 * kSlabPitch;
      const uint64_t chunk = recomputed(lane_id()) % kPiece.lanes * kChunk;
      if constexpr (kPiece.lanes == 16) {
        unrolled<4>([&](auto i) {
          load_wide<kByte, kSlab + i * 4 * kSlabPitch>(
              tile, dpp64<kDppRowBroadcast + 4 * i>(row) + chunk);
        });
        return load_from<kRowBytes / 256 * 256>(tile, row, wave);
      } else if constexpr (kPiece.lanes == 8) {
        const uint64_t low = dpp64<kDppRowBroadcast>(row), mid = dpp64<kDppRowBroadcast + 4>(row);
        load_to_lds<kByte, kSlab>(tile, dpp64<kDppRowBroadcast + 8, 0xc>(row, low) + chunk);
        load_to_lds<kByte, kNext>(tile, dpp64<kDppRowBroadcast + 12, 0xc>(row, mid) + chunk);
      } else if constexpr (kPiece.lanes == 4) {
        load_to_lds<kByte, kSlab>(tile, dpp64<dpp_quad(0, 0, 0, 0)>(row) + chunk);
      } else if (wave < 2) {
        load_to_lds<kByte, kSlab>(tile, dpp64<dpp_quad(0, 0, 2, 2)>(row) + chunk);
      }
      load_from<kByte + kPiece.lanes * kChunk>(tile, row, wave);
    }
  }

  /// One slab of each of the pieces of 256 bytes.
  template <int kByte, int kSlab>
  static TILE_FN void load_wide(uint32_t tile, uint64_t source) {
    constexpr int kStep = 16 * kSlabPitch;
    if constexpr (kByte + 512 <= kRowBytes) {
      load_two_to_lds<kByte, kSlab, kStep>(tile, source);
      load_wide<kByte + 512, kSlab + 2 * kStep>(tile, source);
    } else if constexpr (kByte + 256 <= kRowBytes) {
      load_to_lds<kByte, kSlab>(tile, source);
    }
  }
#endif
};

}  // namespace hipdecode::tile::amdgcn
