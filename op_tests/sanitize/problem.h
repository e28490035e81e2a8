// SPDX-License-Identifier: MIT
#pragma once

#include <bit>
#include <cmath>
#include <cstdlib>
#include <memory>
#include <random>
#include <vector>

#include "abi/mla_decode_params.h"
#include "tile/dtypes.h"

namespace hipdecode::sanitize {

struct Shape {
  std::vector<int> kv_lens;
  int nhead, q_len, page_size;
};

/// A heap block of exactly the bytes that are asked for, rounded to a cache line.
template <class T>
class Block {
 public:
  explicit Block(size_t count)
      : data_(static_cast<T*>(std::aligned_alloc(64, (count * sizeof(T) + 63) / 64 * 64)),
              &std::free) {}
  T* data() const { return data_.get(); }
  T& operator[](size_t i) const { return data_.get()[i]; }

 private:
  std::unique_ptr<T, decltype(&std::free)> data_;
};

/// Inputs of one decode step, with a page that does not exist in the middle of the index list.
template <int kQk, int kV, abi::DType kQDType, abi::DType kKvDType>
class Problem {
 public:
  using Q = typename tile::Storage<kQDType>::Type;
  using Kv = typename tile::Storage<kKvDType>::Type;
  static constexpr float kScale = 0.1f;

  Problem(const Shape& shape, std::mt19937& random)
      : shape(shape),
        rows(static_cast<int>(shape.kv_lens.size()) * shape.q_len),
        q_(static_cast<size_t>(rows) * shape.nhead * kQk),
        cache_(fill_index(random) * kQk) {
    for (size_t i = 0; i < static_cast<size_t>(rows) * shape.nhead * kQk; ++i)
      q_[i] = make<Q, kQDType>(random);
    for (size_t i = 0; i < static_cast<size_t>(num_pages_) * shape.page_size * kQk; ++i)
      cache_[i] = make<Kv, kKvDType>(random);
  }

  int batch() const { return static_cast<int>(shape.kv_lens.size()); }

  abi::MlaDecodeParams params() const {
    abi::MlaDecodeParams p{};
    p.q = q_.data(), p.kv = cache_.data();
    p.qo_indptr = qo.data(), p.kv_indptr = kv.data();
    p.kv_indices = indices_.data(), p.kv_last_page_lens = last.data();
    p.q_stride_head = kQk, p.q_stride_row = int64_t{shape.nhead} * kQk;
    p.kv_stride_token = kQk, p.kv_stride_page = int64_t{shape.page_size} * kQk;
    p.o_stride_head = kV, p.o_stride_row = int64_t{shape.nhead} * kV;
    p.num_pages = num_pages_, p.num_kv_indices = static_cast<int64_t>(indices_.size());
    p.rows_q = rows, p.batch = batch(), p.nhead = shape.nhead, p.max_seqlen_q = shape.q_len;
    p.page_size = shape.page_size, p.page_bits = std::countr_zero(unsigned(shape.page_size));
    p.num_splits = 1;
    p.row_tiles = (shape.q_len * shape.nhead + 127) / 128;
    p.causal = 1, p.o_dtype = abi::DType::bf16, p.sm_scale = kScale;
    return p;
  }

  /// One output row by the definition, in double.
  std::vector<double> reference(int row, int head) const {
    const int request = row / shape.q_len, length = shape.kv_lens[request];
    const int visible = length - (shape.q_len - 1 - row % shape.q_len);
    std::vector<double> out(kV), scores;
    std::vector<const Kv*> keys;
    double best = -INFINITY, sum = 0;
    for (int n = 0; n < visible; ++n) {
      const int page = indices_[kv[request] + n / shape.page_size];
      if (page < 0) continue;
      keys.push_back(
          &cache_[(static_cast<size_t>(page) * shape.page_size + n % shape.page_size) * kQk]);
      double score = 0;
      for (int d = 0; d < kQk; ++d)
        score +=
            double{value<kQDType>(q_[(static_cast<size_t>(row) * shape.nhead + head) * kQk + d])} *
            value<kKvDType>(keys.back()[d]);
      scores.push_back(score * kScale);
      best = std::fmax(best, scores.back());
    }
    for (double score : scores) sum += std::exp(score - best);
    for (size_t n = 0; n < keys.size(); ++n)
      for (int d = 0; d < kV; ++d)
        out[d] += std::exp(scores[n] - best) / sum * value<kKvDType>(keys[n][d]);
    return out;
  }

  const Shape shape;
  const int rows;
  std::vector<int32_t> qo{0}, kv{0}, last;

 private:
  /// Random pages for every request; returns the tokens of the cache.
  size_t fill_index(std::mt19937& random) {
    for (int length : shape.kv_lens) {
      const int pages = (length + shape.page_size - 1) / shape.page_size;
      qo.push_back(qo.back() + shape.q_len);
      kv.push_back(kv.back() + pages);
      last.push_back(length - (pages - 1) * shape.page_size);
    }
    num_pages_ = kv.back() + 2;
    for (int i = 0; i < kv.back(); ++i)
      indices_.push_back(static_cast<int32_t>(random() % num_pages_));
    if (indices_.size() > 2) indices_[indices_.size() / 2] = -1;
    return static_cast<size_t>(num_pages_) * shape.page_size;
  }

  template <class T, abi::DType kType>
  static T make(std::mt19937& random) {
    const float normal = std::normal_distribution<float>()(random);
    if constexpr (sizeof(T) == 1)  // magnitudes around one
      return static_cast<T>(0x20 + random() % 0x18 + (normal < 0 ? 0x80 : 0));
    else
      return kType == abi::DType::fp16 ? tile::float_to_fp16(normal) : tile::float_to_bf16(normal);
  }

  template <abi::DType kType>
  static float value(typename tile::Storage<kType>::Type bits) {
    if constexpr (kType == abi::DType::bf16) return tile::bf16_to_float(bits);
    if constexpr (kType == abi::DType::fp16) return tile::fp16_to_float(bits);
    if constexpr (kType == abi::DType::fp8_e4m3fn) return tile::fp8_e4m3fn_to_float(bits);
    if constexpr (kType == abi::DType::fp8_e4m3fnuz) return tile::fp8_e4m3fnuz_to_float(bits);
  }

  std::vector<int32_t> indices_;
  int num_pages_ = 0;
  Block<Q> q_;
  Block<Kv> cache_;
};

}  // namespace hipdecode::sanitize
