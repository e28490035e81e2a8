// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>

#include "../../abi/mla_decode_params.h"
#include "../../tile/concepts.h"
#include "../../tile/tile.h"

namespace hipdecode::kernels {

/// Compile-time shape of an MLA kernel: V is the first kHeadDimV columns of a key row.
template <int kHeadDimQk_, int kHeadDimV_, abi::DType kQDType_, abi::DType kKvDType_>
struct MlaShape {
  static constexpr int kHeadDimQk = kHeadDimQk_, kHeadDimV = kHeadDimV_;
  static constexpr abi::DType kQDType = kQDType_, kKvDType = kKvDType_;
};

/// Query rows of one request, packed: packed row p is head p % nhead of token p / nhead.
struct QuerySpan {
  int64_t first_row;   // of q and o, of the token behind packed row 0
  int64_t position;    // of that token among the request's q_len tokens
  int64_t q_len;       // of the request
  int64_t begin, end;  // packed rows
};

/// Keys of one request: tokens [begin, end) counted from page entry `first_index`.
struct KeySpan {
  int64_t first_index;  // into kv_indices
  int64_t begin, end;
  int64_t
      causal_end;  // the request's last token sees keys before this; earlier tokens one less each
};

/// Where a span's rows go: o (final) or the partial buffers, row first_row + token * stride.
struct Destination {
  bool partial;
  int64_t first_row, stride;
};

TILE_FN int64_t clamp(int64_t value, int64_t low, int64_t high) {
  return value < low ? low : value > high ? high : value;
}

/// One tile of query rows against a range of keys: the algorithm that `hk` and `persistent` share.
template <class Shape>
struct MlaTile {
  using Params = abi::MlaDecodeParams;
  using Tiles =
      tile::DecodeTiles<Shape::kHeadDimQk, Shape::kHeadDimV, Shape::kQDType, Shape::kKvDType>;
  using KvElement = typename Tiles::KvElement;
  static_assert(tile::DecodeTilesOf<Tiles>,
                "the target lacks an operation of a decode kernel, see concepts.h");
  static constexpr float kLog2E = 1.4426950408889634f, kLn2 = 0.6931471805599453f;

  struct Shared {
    typename Tiles::Shared tiles;
    typename Tiles::TokenRows rows[2];
  };

  struct QueryRow {
    const Params& p;
    const QuerySpan& span;
    TILE_FN const void* operator()(int r) const {
      const int64_t packed = span.begin + r;
      const auto* q = static_cast<const char*>(p.q);
      return q + abi::element_bytes(Shape::kQDType) *
                     ((span.first_row + packed / p.nhead) * p.q_stride_row +
                      packed % p.nhead * p.q_stride_head);
    }
  };

  /// Tokens that packed row r may see, as an end position in the key span.
  static TILE_FN int64_t visible_end(const Params& p, const QuerySpan& rows, const KeySpan& keys,
                                     int r) {
    if (!p.causal) return keys.end;
    const int64_t position = rows.position + (rows.begin + r) / p.nhead;
    const int64_t end = keys.causal_end - (rows.q_len - 1 - position);
    return end < keys.end ? end : keys.end;
  }

  /// Looks up the pages of tokens [begin, end). What the index list gets wrong is skipped, never
  /// read.
  static TILE_FN void gather(const Params& p, const KeySpan& keys, int64_t begin, int64_t end,
                             typename Tiles::TokenRows& rows) {
    const int64_t left = end - begin;
    rows.count = static_cast<int>(clamp(left, 0, Tiles::kTokens));
    rows.skips = false;
    for (int n = 0; n < Tiles::kTokens; ++n) {
      rows.row[n] = nullptr;
      if (n >= rows.count) continue;
      const int64_t token = begin + n, slot = p.page_size == 1 ? token : token / p.page_size;
      const int64_t index = keys.first_index + slot;
      const int64_t page = index >= 0 && index < p.num_kv_indices ? p.kv_indices[index] : -1;
      if (page >= 0 && page < p.num_pages)
        rows.row[n] = static_cast<const KvElement*>(p.kv) + page * p.kv_stride_page +
                      (token - slot * p.page_size) * p.kv_stride_token;
      else
        rows.skips = true;
    }
  }

  /// Hides keys from the rows that may not see them; returns the first token hidden from some row.
  static TILE_FN int hide(const Params& p, const QuerySpan& rows, const KeySpan& keys,
                          int64_t begin, const typename Tiles::TokenRows& tokens, Shared& shared) {
    const int count = static_cast<int>(rows.end - rows.begin);
    const int first =
        static_cast<int>(clamp(visible_end(p, rows, keys, 0) - begin, 0, tokens.count));
    if (first == tokens.count && !tokens.skips) return first;
    for (int r = 0; r < Tiles::padded(count); ++r) {
      const int64_t end = visible_end(p, rows, keys, r < count ? r : count - 1);
      shared.tiles.visible[r] = static_cast<int32_t>(clamp(end - begin, 0, tokens.count));
    }
    Tiles::mask(shared.tiles, tokens, first, count);
    return first;
  }

  /// weights x values, and never a value that its row may not see: zero times NaN is NaN, so where
  /// the hidden tail holds one, each query token gets its own cut of the values.
  static TILE_FN void weigh(const Params& p, const QuerySpan& rows, int first_hidden,
                            const typename Tiles::TokenRows& tokens, Shared& shared) {
    const int count = static_cast<int>(rows.end - rows.begin);
    if (!Tiles::has_special_values(shared.tiles, first_hidden, tokens.count))
      return Tiles::accumulate(shared.tiles, tokens.count, 0, count, count);
    for (int begin = 0; begin < count;) {
      const int64_t next = ((rows.begin + begin) / p.nhead + 1) * p.nhead - rows.begin;
      const int end = next < count ? static_cast<int>(next) : count;
      const int limit = shared.tiles.visible[begin];
      Tiles::cut_values(shared.tiles, limit);
      Tiles::accumulate(shared.tiles, limit, begin, end, count);
      begin = end;
    }
  }

  static TILE_FN float scale_of(const float* scale, bool used) {
    return used && scale != nullptr ? *scale : 1.0f;
  }

  /// Attends `rows` to `keys`; leaves the unnormalised output, maximum and sum in `shared`.
  static TILE_FN void attend(const Params& p, const QuerySpan& rows, const KeySpan& keys,
                             Shared& shared) {
    const int count = static_cast<int>(rows.end - rows.begin);
    const float scale = p.sm_scale * kLog2E * scale_of(p.q_scale, tile::kIsFp8<Shape::kQDType>) *
                        scale_of(p.kv_scale, tile::kIsFp8<Shape::kKvDType>);
    const int64_t end = visible_end(p, rows, keys, count - 1);
    // stage 0: queries stay resident, the first tile's pages are looked up
    Tiles::load_queries(shared.tiles, QueryRow{p, rows}, count);
    gather(p, keys, keys.begin, end, shared.rows[0]);
    int current = 0;
    for (int64_t begin = keys.begin; begin < end; begin += Tiles::kTokens, current ^= 1) {
      const auto& tokens = shared.rows[current];
      auto& next = shared.rows[current ^ 1];
      // stage 1: page lookup of tile i + 1
      gather(p, keys, begin + Tiles::kTokens, end, next);
      // stage 2: scores of tile i, its values staged, tile i + 1 fetched behind them
      Tiles::score(shared.tiles, tokens, next, count);
      // stage 3: hidden keys leave before the maximum is taken
      const int first_hidden = hide(p, rows, keys, begin, tokens, shared);
      // stage 4: weights, maximum, sum
      Tiles::softmax(shared.tiles, tokens.count, count, scale);
      // stage 5: output = output * rescale + weights x values
      weigh(p, rows, first_hidden, tokens, shared);
    }
  }

  /// Normalises the rows and writes them with their LSE; a row that saw nothing is zero with LSE
  /// -inf.
  static TILE_FN void finish(const Params& p, const QuerySpan& rows, const Destination& to,
                             Shared& shared) {
    const float kv_scale = scale_of(p.kv_scale, tile::kIsFp8<Shape::kKvDType>);
    const int count = static_cast<int>(rows.end - rows.begin);
    for (int r = 0; r < count; ++r) {
      const int64_t token = (rows.begin + r) / p.nhead, head = (rows.begin + r) % p.nhead;
      const int64_t row = to.first_row + token * to.stride;
      const float sum = shared.tiles.running_sum[r];
      const float scale = sum == 0 ? 0.0f : kv_scale / sum;
      const float lse =
          sum == 0 ? -tile::kInfinity : (shared.tiles.running_max[r] + tile::log2(sum)) * kLn2;
      if (to.partial) {
        if (row >= p.partial_rows) continue;
        Tiles::store_row(shared.tiles, r, scale,
                         p.partial_o + (row * p.nhead + head) * Shape::kHeadDimV, abi::DType::fp32);
        p.partial_lse[row * p.nhead + head] = lse;
      } else {
        auto* o = static_cast<uint16_t*>(p.o) + row * p.o_stride_row + head * p.o_stride_head;
        Tiles::store_row(shared.tiles, r, scale, o, p.o_dtype);
        if (p.lse != nullptr) p.lse[row * p.nhead + head] = lse;
      }
    }
  }

  /// attend() and finish() over packed rows of any number.
  static TILE_FN void run(const Params& p, QuerySpan rows, const KeySpan& keys,
                          const Destination& to, Shared& shared) {
    const int64_t end = rows.end;
    for (; rows.begin < end; rows.begin += Tiles::kRows) {
      rows.end = rows.begin + Tiles::kRows < end ? rows.begin + Tiles::kRows : end;
      attend(p, rows, keys, shared);
      finish(p, rows, to, shared);
    }
  }
};

/// Rows that no request owns (padding of a captured batch) come out as zero with LSE -inf.
TILE_FN void clear_unowned_rows(const abi::MlaDecodeParams& p, int head_dim_v, tile::Block block) {
  const int64_t owned = clamp(p.qo_indptr[p.batch], 0, p.rows_q);
  for (int64_t row = owned + block.index(); row < p.rows_q; row += block.count())
    for (int64_t head = 0; head < p.nhead; ++head) {
      auto* o = static_cast<uint16_t*>(p.o) + row * p.o_stride_row + head * p.o_stride_head;
      for (int i = 0; i < head_dim_v; ++i) o[i] = 0;
      if (p.lse != nullptr) p.lse[row * p.nhead + head] = -tile::kInfinity;
    }
}

}  // namespace hipdecode::kernels
