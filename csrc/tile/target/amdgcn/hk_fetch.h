// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>

#include "../../concepts.h"
#include "global.h"
#include "hk_matrix.h"
#include "hk_values.h"
#include "lane_reduce.h"
#include "sync.h"
#include "widen.h"

namespace hipdecode::tile::amdgcn {

/// Brings the key rows of a tile into LDS. The row waves of a token wave share its groups; a lane
/// fetches 16 bytes of one token, four lanes 64 contiguous ones. The two means have one form:
/// `aim` takes the addresses, `turn` starts one load, `land` makes sure that all turns are in LDS
/// (for this wave; the block's barrier is the caller's).
template <class Shape, bool kDirect = HkPlan<Shape>::kDirect>
struct HkFetch;

inline TILE_FN const char* zeros() { return reinterpret_cast<const char*>(zero_row); }

/// The row of a key that this lane looked up, zeros where there is none; `known` tells which. An
/// entry of the page table is waited for here and not before.
template <class Element>
TILE_FN const char* row_of(const KeyRef<Element>& key, bool exists, bool& known) {
  const uint32_t page = recomputed(key.page);
  const Element* row = key.page_zero + uint64_t{page} * uniform(key.page_stride);
  known = page < key.pages;
  return exists && known ? reinterpret_cast<const char*>(row) : zeros();
}

/// Which part of a tile is this lane's to fetch.
template <class Shape>
struct HkFetchPlace {
  using P = HkPlan<Shape>;
  int group, share;  // first own group of the token wave; which of the waves that share it
  uint32_t packed;   // lane << 16 | 16 * unit of a chunk << 8 | 4 * token of a group: one register

  TILE_FN HkFetchPlace(int row_wave, uint32_t token, uint32_t unit)
      : group(row_wave / P::kShare * P::kOwn),
        share(row_wave % P::kShare),
        packed(recomputed(static_cast<uint32_t>(tile::lane()) << 16 | unit << 12 | token << 2)) {}

  TILE_FN uint32_t lane() const { return recomputed(packed) >> 16; }

  /// Byte of a chunk where this lane reads.
  TILE_FN uint32_t byte() const { return recomputed(packed) >> 8 & 0xff; }

  /// The key row that another lane of the wave knows: token i by lane i.
  TILE_FN const char* row(const char* known, int own) const {
    const uint32_t first = static_cast<uint32_t>(group + own) * 64;
    return from_lane(known, (recomputed(packed) & 0xff) + first);
  }

  /// The chunk of a turn, and whether there is one: a row of nine chunks is not shared evenly.
  TILE_FN int chunk(int turn) const { return turn * P::kShare + share; }
  TILE_FN bool has(int turn) const {
    return (turn + 1) * P::kShare <= P::kSourceChunks ||
           recomputed_uniform(chunk(turn)) < P::kSourceChunks;
  }
};

/// gfx950: 16 bytes a lane from memory to LDS; LDS takes lanes in order, so the twist of the units
/// is in the addresses.
template <class Shape>
struct HkFetch<Shape, true> {
  using P = HkPlan<Shape>;
  using Key = KeyRef<typename Storage<Shape::kKvDType>::Type>;
  HkFetchPlace<Shape> place;
  const char* source[P::kOwn];
  uint32_t target;  // LDS address of the first own chunk

  TILE_FN HkFetch(int row_wave, uint32_t lane)
      : place(row_wave, lane / 4, lane % 4 ^ P::twist(lane / 4)), source(), target(0) {}

  /// @returns whether there is a key at all
  TILE_FN bool aim(uint32_t tile, const Key& key, bool exists) {
    bool known;
    const char* row = row_of(key, exists, known);
    target = recomputed_uniform(
        tile + static_cast<uint32_t>(place.group * P::kGroupPitch + place.share * 1024));
#pragma unroll
    for (int own = 0; own < P::kOwn; ++own) {
      const uint32_t odd = static_cast<uint32_t>(place.group + own) % 2 * P::kGroupTwist;
      const uint32_t byte = place.byte() ^ 16 * odd;
      source[own] = place.row(row, own) + place.share * 64 + byte;
      if constexpr (P::kSourceRowBytes % 64 != 0)
        past_row_[own] = byte >= static_cast<uint32_t>(P::kSourceRowBytes % 64);
    }
    return known;
  }

  TILE_FN void turn(int own, int i) {
    if (!place.has(i)) return;
    const char* from = source[own];
    if constexpr (P::kSourceRowBytes % 64 != 0)
      if (place.chunk(i) == P::kSourceChunks - 1 && past_row_[own]) from = zeros();
    load_turn<0>(own * P::kTurns + i, reinterpret_cast<uint64_t>(from));
  }

  TILE_FN void land(uint32_t) { wait_for_loads<0>(); }

 private:
  bool past_row_[P::kOwn];

  /// Offsets are constants of the code.
  template <int kTurn>
  TILE_FN void load_turn(int turn, uint64_t from) const {
    if constexpr (kTurn < P::kOwn * P::kTurns) {
      constexpr int kOwn = kTurn / P::kTurns, kChunk = kTurn % P::kTurns * P::kShare;
      if (turn == kTurn)
        return load_to_lds<kChunk * 64, kOwn * P::kGroupPitch + kChunk * 1024>(target, from);
      load_turn<kTurn + 1>(turn, from);
    }
  }
};

/// gfx942, and 8-bit keys for 16-bit queries: through registers, which hold the tile while it is
/// under way, and are widened on their way out.
template <class Shape>
struct HkFetch<Shape, false> {
  using P = HkPlan<Shape>;
  using Key = KeyRef<typename Storage<Shape::kKvDType>::Type>;
  HkFetchPlace<Shape> place;
  const char* source[P::kOwn];
  U32x4 stage[P::kOwn][P::kTurns];
  uint32_t first;  // LDS offset of this lane's first unit in a group

  TILE_FN HkFetch(int row_wave, uint32_t lane) : place(row_wave, lane / 4, lane % 4), source() {
    const uint32_t token = lane / 4, chunk = P::kWidens ? lane % 4 / 2 : 0;
    const uint32_t unit = P::kWidens ? lane % 2 * 2 : lane % 4;
    first =
        recomputed(token * P::kTokenPitch + chunk * P::kChunkPitch + 16 * (unit ^ P::twist(token)) +
                   static_cast<uint32_t>(place.group * P::kGroupPitch));
  }

  TILE_FN bool aim(uint32_t, const Key& key, bool exists) {
    bool known;
    const char* row = row_of(key, exists, known);
#pragma unroll
    for (int own = 0; own < P::kOwn; ++own)
      source[own] = place.row(row, own) + place.share * 64 + place.byte();
    return known;
  }

  TILE_FN bool past_row(int i) const {
    return P::kSourceRowBytes % 64 != 0 && place.chunk(i) == P::kSourceChunks - 1 &&
           place.byte() >= static_cast<uint32_t>(P::kSourceRowBytes % 64);
  }

  TILE_FN void turn(int own, int i) {
    if (!place.has(i)) return;
    const char* from = past_row(i) ? zeros() : source[own] + i * P::kShare * 64;
    stage[own][i] = global_read<U32x4>(from);
  }

  TILE_FN void land(uint32_t tile) {
#pragma unroll
    for (int own = 0; own < P::kOwn; ++own)
#pragma unroll
      for (int i = 0; i < P::kTurns; ++i) {
        if (!place.has(i)) continue;
        const uint32_t to =
            tile + first +
            static_cast<uint32_t>(own * P::kGroupPitch +
                                  place.chunk(i) * P::kChunkPitch * (P::kWidens ? 2 : 1));
        put(to, stage[own][i], i);
      }
  }

 private:
  TILE_FN void put(uint32_t to, U32x4 from, int i) const {
    if constexpr (!P::kWidens) {
      lds_write(to, from);
    } else {
      if (past_row(i)) return;
      lds_write(to,
                U32x4{widen<Shape::kQDType, false>(from.x), widen<Shape::kQDType, true>(from.x),
                      widen<Shape::kQDType, false>(from.y), widen<Shape::kQDType, true>(from.y)});
      lds_write(to ^ 16,
                U32x4{widen<Shape::kQDType, false>(from.z), widen<Shape::kQDType, true>(from.z),
                      widen<Shape::kQDType, false>(from.w), widen<Shape::kQDType, true>(from.w)});
    }
  }
};

}  // namespace hipdecode::tile::amdgcn
