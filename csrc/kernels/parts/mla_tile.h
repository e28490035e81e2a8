// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>

#include "../../abi/mla_decode_params.h"
#include "../../tile/concepts.h"
#include "../../tile/schedule.h"
#include "../../tile/tile.h"
#include "attend.h"
#include "bounds.h"
#include "unowned_rows.h"

namespace hipdecode::kernels {

/// Compile-time shape of an MLA kernel: V is the first kHeadDimV columns of a key row, a tile has
/// up to kRows query rows.
template <int kHeadDimQk_, int kHeadDimV_, abi::DType kQDType_, abi::DType kKvDType_, int kRows_>
struct MlaShape {
  static constexpr int kHeadDimQk = kHeadDimQk_, kHeadDimV = kHeadDimV_, kRows = kRows_;
  static constexpr abi::DType kQDType = kQDType_, kKvDType = kKvDType_;
};

/// Query rows of one request, packed: packed row p is head p % nhead of token p / nhead.
struct QuerySpan {
  int64_t first_row;   // of q and o, of the token behind packed row 0
  int64_t position;    // of that token among the request's q_len tokens
  int64_t q_len;       // of the request
  int32_t begin, end;  // packed rows
};

/// Keys of one request: tokens [begin, end) counted from page entry `first_index`.
struct KeySpan {
  int64_t first_index;  // into kv_indices
  int32_t begin, end;
  int64_t
      causal_end;  // the request's last token sees keys before this; earlier tokens one less each
  int32_t ahead = 0;  // what causal_end counts before page entry first_index, on this rank
};

/// Where a span's rows go: o (final) or the partial buffers, row first_row + token * stride.
struct Destination {
  bool partial;
  int64_t first_row, stride;
};

// Positions within a request fit 32 bits, the sum of two as well: 2^30 tokens are 0.6 TB of keys.
inline constexpr int32_t kMaxTokens = 1 << 30;

TILE_FN int32_t packed_rows(const abi::MlaDecodeParams& p, int64_t tokens) {
  return clamp32(tokens * p.nhead, 0, kMaxTokens);
}

TILE_FN int32_t last_page(const abi::MlaDecodeParams& p, int64_t request) {
  const bool full = p.page_size == 1 || p.kv_last_page_lens == nullptr;
  return full ? p.page_size : clamp32(p.kv_last_page_lens[request], 0, p.page_size);
}

/// Where causality ends the keys of a request: behind its `tokens` keys here, or those of all
/// ranks.
TILE_FN int64_t causal_end(const abi::MlaDecodeParams& p, int64_t request, int64_t tokens) {
  if (p.round == 0) return tokens;
  return int64_t{p.g_kv_indptr[request + 1]} - p.g_kv_indptr[request];
}

/// Tokens of entries [first, end) of the page table, of which the last page holds `last`.
TILE_FN int32_t tokens_of(const abi::MlaDecodeParams& p, int32_t first, int32_t end, int32_t last) {
  // all in 32 bits: the first key waits for it
  const uint32_t known =
      p.num_kv_indices < kMaxTokens ? static_cast<uint32_t>(p.num_kv_indices) : kMaxTokens;
  const uint32_t most = (static_cast<uint32_t>(kMaxTokens) >> p.page_bits) + 1;
  uint32_t pages = static_cast<uint32_t>(end) - static_cast<uint32_t>(first);
  if (pages > known) pages = known;
  if (pages > most) pages = most;
  if (end <= first || pages == 0) return 0;
  const uint32_t tokens = ((pages - 1) << p.page_bits) + static_cast<uint32_t>(last);
  return static_cast<int32_t>(tokens < kMaxTokens ? tokens : kMaxTokens);
}

/// Of the first `tokens` tokens of a request, those in this rank's share of the cache.
TILE_FN int32_t own_tokens(const abi::MlaDecodeParams& p, int32_t tokens) {
  if (p.round == 0 || tokens <= 0) return tokens;
  const uint64_t product = uint64_t{static_cast<uint32_t>(tokens)} * p.round_factor;
  const auto rounds = static_cast<int32_t>(static_cast<uint32_t>(product >> 32) >> p.round_shift);
  const int32_t rest = tokens - rounds * p.round - p.group_begin;
  return rounds * p.group + (rest < 0 ? 0 : rest > p.group ? p.group : rest);
}

/// How many tokens of a range packed row r may see: non-decreasing in r.
struct Visible {
  static constexpr int32_t kAll = 0x7fffffff;

  const abi::MlaDecodeParams& p;
  int32_t end;    // tokens that row 0 of the request would see if rows counted none, on all ranks
  int32_t begin;  // the range, in tokens of this rank
  int32_t count;
  uint32_t first;      // packed row 0
  int32_t first_seen;  // the tokens of this rank that it sees; kAll: every row sees all

  TILE_FN int operator()(int r) const {
    const bool same = r == 0 || first_seen == kAll;
    const int32_t seen = (same ? first_seen : seen_by(r)) - begin;
    return seen < 0 ? 0 : seen > count ? count : seen;
  }

  TILE_FN int32_t seen_by(int r) const {
    const abi::MlaDecodeParams& now = tile::reread(p);
    const uint32_t token = (first + static_cast<uint32_t>(r)) / static_cast<uint32_t>(now.nhead);
    return own_tokens(now, end + static_cast<int32_t>(token));
  }

  /// The same of `tokens` tokens from `from` on.
  TILE_FN Visible part(int32_t from, int32_t tokens) const {
    return {p, end, begin + from, tokens, first, first_seen};
  }
};

/// One tile of query rows against a range of keys: the algorithm that `hk` and `persistent` share.
template <class Shape, tile::Schedule kSchedule>
struct MlaTile {
  using Params = abi::MlaDecodeParams;
  using Tiles = tile::DecodeTiles<Shape, kSchedule>;
  using Tokens = typename Tiles::Tokens;
  using KvElement = typename Tiles::KvElement;
  static_assert(tile::DecodeTilesOf<Tiles, tile::Block>,
                "the target lacks an operation of a decode kernel, see concepts.h");

  /// Packed row r of a span, counted from its begin.
  struct QueryRow {
    const Params& p;
    const QuerySpan& span;

    TILE_FN const void* operator()(int r) const {
      const auto packed = static_cast<uint32_t>(span.begin + r), nhead = uint32_t(p.nhead);
      const auto* q = static_cast<const char*>(p.q);
      return q + abi::element_bytes(Shape::kQDType) *
                     ((span.first_row + packed / nhead) * p.q_stride_row +
                      int64_t{packed % nhead} * p.q_stride_head);
    }
  };

  /// The key of token n of a tile. What the index list gets wrong is skipped, never read.
  struct KeyRow {
    const Params& p;
    uint32_t first_slot;  // of kv_indices, for the page of token 0
    int32_t begin;        // position of token 0 in that page

    TILE_FN tile::KeyRef<KvElement> operator()(int n) const {
      const int32_t token = begin + n, slot = token >> p.page_bits;
      // entries before the list are far behind it as unsigned numbers, and so are negative page ids
      const uint32_t index = first_slot + static_cast<uint32_t>(slot);
      const bool known = index < limit(p.num_kv_indices);
      const uint32_t pages = limit(p.num_pages);
      const auto in_page = static_cast<uint32_t>(token - (slot << p.page_bits));
      return {.page_zero = static_cast<const KvElement*>(p.kv) +
                           uint64_t{in_page} * static_cast<uint32_t>(p.kv_stride_token),
              .page = static_cast<uint32_t>(p.kv_indices[known ? index : 0]),
              .pages = known ? pages : 0,
              .page_stride = static_cast<uint32_t>(p.kv_stride_page)};
    }

    static TILE_FN uint32_t limit(int64_t count) {
      return static_cast<uint32_t>(count < (int64_t{1} << 31) ? count : int64_t{1} << 31);
    }
  };

  /// Row r of a span as a place to write to.
  struct Place {
    const Params& p;
    const QuerySpan& span;
    const Destination& to;

    TILE_FN tile::RowTarget operator()(int r) const {
      const auto packed = static_cast<uint32_t>(span.begin + r), nhead = uint32_t(p.nhead);
      const uint32_t token = packed < nhead ? 0 : packed / nhead;  // one token: nothing to divide
      const int64_t row = to.first_row + token * to.stride, head = packed - token * nhead;
      const int64_t at = row * p.nhead + head;
      if (to.partial) {
        if (row >= p.partial_rows) return {nullptr, nullptr, abi::DType::fp32};
        return {p.partial_o + at * Shape::kHeadDimV, p.partial_lse + at, abi::DType::fp32};
      }
      auto* o = static_cast<uint16_t*>(p.o) + row * p.o_stride_row + head * p.o_stride_head;
      return {o, p.lse == nullptr ? nullptr : p.lse + at, p.o_dtype};
    }
  };

  /// Looks up the pages of the tile of tokens that starts at `begin`.
  static TILE_FN Tokens gather(const Params& p, const KeySpan& keys, int32_t begin, int32_t end,
                               const Tiles& tiles) {
    const int32_t count = end - begin < Tiles::kTokens ? end - begin : Tiles::kTokens;
    const int32_t slot = begin >> p.page_bits;
    const auto first_slot = static_cast<uint32_t>(keys.first_index) + static_cast<uint32_t>(slot);
    return tiles.gather(KeyRow{p, first_slot, begin - (slot << p.page_bits)},
                        count > 0 ? count : 0);
  }

  static TILE_FN Visible visible_in(const Params& p, const QuerySpan& rows, const KeySpan& keys) {
    const int64_t end = keys.causal_end - (rows.q_len - 1 - rows.position);
    Visible visible{.p = p,
                    .end = tile::own(clamp32(end, -kMaxTokens, kMaxTokens)),
                    .begin = keys.begin + keys.ahead,
                    .count = keys.end - keys.begin,
                    .first = tile::own(static_cast<uint32_t>(rows.begin)),
                    .first_seen = Visible::kAll};
    const bool causal = p.causal != 0 && rows.q_len > 1;  // one token sees all
    if (causal) visible.first_seen = tile::uniform(visible.seen_by(0));
    return visible;
  }

  static TILE_FN float scale_of(const float* scale, bool used) {
    return used && scale != nullptr ? *scale : 1.0f;
  }

  /// Attends `rows` to `keys`; leaves the unnormalised output, maximum and sum in `tiles`.
  /// @param place where the rows go, for tiles that want to know early
  static TILE_FN void attend(const Params& p, const QuerySpan& rows, const KeySpan& keys,
                             const Place& place, Tiles& tiles) {
    const int count = rows.end - rows.begin;
    const float scale = tile::uniform(
        tile::own(p.sm_scale * tile::kLog2E * scale_of(p.q_scale, tile::kIsFp8<Shape::kQDType>) *
                  scale_of(p.kv_scale, tile::kIsFp8<Shape::kKvDType>)));
    const Visible seen_of = visible_in(p, rows, keys);
    const int32_t seen = tile::uniform(seen_of(count - 1));
    const int32_t end = keys.begin + seen;  // no row looks further
    // stage 0: queries become resident
    tiles.load_queries(QueryRow{p, rows}, count);
    if constexpr (requires { tiles.aim(count, place); }) tiles.aim(count, place);
    if (seen <= 0) return;
    attend_keys(
        tiles, keys.begin, end, scale,
        [&](int32_t begin) { return gather(p, keys, begin, end, tiles); },
        [&](int32_t begin, int32_t count) { return seen_of.part(begin - keys.begin, count); });
  }

  /// Attends packed rows of any number and writes them with their LSE; a row that saw nothing is
  /// zero with LSE -inf. A tile of rows begins every `step` rows.
  static TILE_FN void run(const Params& p, QuerySpan rows, const KeySpan& keys,
                          const Destination& to, Tiles& tiles, int32_t step = Tiles::kRows) {
    const float kv_scale = scale_of(p.kv_scale, tile::kIsFp8<Shape::kKvDType>);
    const int32_t end = rows.end;
    for (; rows.begin < end; rows.begin += step) {
      rows.end = rows.begin + Tiles::kRows < end ? rows.begin + Tiles::kRows : end;
      attend(tile::reread(p), rows, keys, Place{tile::reread(p), rows, to}, tiles);
      tiles.store(rows.end - rows.begin, Place{tile::reread(p), rows, to}, kv_scale);
    }
  }
};

}  // namespace hipdecode::kernels
