// SPDX-License-Identifier: MIT
// Runs the sparse CPU kernels on threads over exactly sized heap blocks, without torch or Python:
// two caches of random bytes, lists with entries that are no slots, splits that the last arriver
// merges beside a sink; against the definition in double.

#include <cstdio>
#include <cstring>

#include "kernels/sparse_mla_decode.h"
#include "launch.h"

namespace hipdecode::sanitize {
namespace {

constexpr int kSplits = 5;
constexpr float kScale = 0.01f;

/// One cache of random bytes and a list for each token; the last block ends where its memory does.
template <tile::KeyFormat kFormat, abi::DType kType>
struct Cache {
  using Layout = tile::KeyLayout<kFormat>;
  using Scale = typename Layout::Scale;
  static constexpr bool kV4 = kFormat == tile::KeyFormat::v4;

  Cache(const std::vector<int>& counts, int block_bits, int gap, std::mt19937& random)
      : bits(block_bits),
        stride(((kV4 ? 584 : 656) << block_bits) + gap),
        memory(static_cast<size_t>(kBlocks) * stride - gap) {
    for (int slot = 0; slot < kBlocks << bits; ++slot) fill(slot, random);
    for (int count : counts) {
      indptr.push_back(indptr.back() + count);
      for (int i = 0; i < count; ++i)
        indices.push_back(i % 7 == 5 ? (kBlocks << bits) + i - 9
                                     : int(random() % (kBlocks << bits)));
    }
    indices.shrink_to_fit();
  }

  abi::SparseCache params() const {
    abi::SparseCache c{};
    c.blocks = memory.data(), c.indices = indices.data(), c.indptr = indptr.data();
    c.stride_block = stride, c.num_indices = static_cast<int64_t>(indices.size());
    c.num_slots = kBlocks << bits, c.block_bits = bits, c.tokens_per_length = 1;
    return c;
  }

  uint8_t* data(int slot) const {
    return memory.data() + (slot >> bits) * stride +
           (slot & ((1 << bits) - 1)) * Layout::kDataBytes;
  }
  uint8_t* scales(int slot) const {
    const int64_t at = Layout::scales_at(slot & ((1 << bits) - 1), 1 << bits);
    return memory.data() + (slot >> bits) * stride + at;
  }

  void fill(int slot, std::mt19937& random) const {
    for (int d = 0; d < Layout::kLatent; ++d)
      data(slot)[d] = static_cast<uint8_t>(0x20 + random() % 0x18 + random() % 2 * 0x80);
    for (int g = 0; g < Layout::kLatent / Layout::kGroup; ++g) {
      const Scale scale = kV4 ? Scale(125 + random() % 4) : Scale(0.3 + random() % 5);
      std::memcpy(scales(slot) + g * sizeof(Scale), &scale, sizeof(Scale));
    }
    for (int d = Layout::kLatent; d < Layout::kHeadDimQk; ++d) {
      const uint16_t word = tile::float_to_bf16(float(random() % 9) - 4);
      std::memcpy(data(slot) + Layout::kRopeOffset + 2 * (d - Layout::kLatent), &word, 2);
    }
  }

  /// Appends the keys that a token's list names.
  void append(int token, std::vector<std::vector<float>>& keys) const {
    for (int i = indptr[token]; i < indptr[token + 1]; ++i) {
      if (indices[i] < 0 || indices[i] >= kBlocks << bits) continue;
      std::vector<float> key(Layout::kHeadDimQk);
      for (int d = 0; d < Layout::kLatent; ++d) {
        Scale scale;
        std::memcpy(&scale, scales(indices[i]) + d / Layout::kGroup * sizeof(Scale), sizeof(Scale));
        const uint8_t code = data(indices[i])[d];
        const float value = kType == abi::DType::fp8_e4m3fn ? tile::fp8_e4m3fn_to_float(code)
                                                            : tile::fp8_e4m3fnuz_to_float(code);
        key[d] = tile::bf16_to_float(tile::float_to_bf16(value * Layout::scale_value(scale)));
      }
      for (int d = Layout::kLatent; d < Layout::kHeadDimQk; ++d) {
        uint16_t word;
        std::memcpy(&word, data(indices[i]) + Layout::kRopeOffset + 2 * (d - Layout::kLatent), 2);
        key[d] = tile::bf16_to_float(word);
      }
      keys.push_back(key);
    }
  }

  static constexpr int kBlocks = 9;
  const int bits;
  const int64_t stride;
  std::vector<int32_t> indices, indptr{0};
  Block<uint8_t> memory;
};

/// One output row by the definition, in double.
__attribute__((noinline)) std::vector<double> reference(const std::vector<std::vector<float>>& keys,
                                                        const uint16_t* q, double sink) {
  std::vector<double> out(512), scores;
  double best = sink, sum = 0;
  for (const auto& key : keys) {
    double score = 0;
    for (size_t d = 0; d < key.size(); ++d) score += double{tile::bf16_to_float(q[d])} * key[d];
    scores.push_back(score * kScale);
    best = std::fmax(best, scores.back());
  }
  for (double score : scores) sum += std::exp(score - best);
  for (size_t n = 0; n < keys.size(); ++n)
    for (int d = 0; d < 512; ++d)
      out[d] += std::exp(scores[n] - best) / (sum + std::exp(sink - best)) * keys[n][d];
  return out;
}

template <tile::KeyFormat kFormat, abi::DType kKv, abi::DType kExtra>
int check(const char* name, int nhead, std::mt19937& random) {
  using Layout = tile::KeyLayout<kFormat>;
  using Kernel =
      kernels::SparseMlaDecode<kernels::SparseShape<kFormat, abi::DType::bf16, kKv, kExtra, 128>>;
  const std::vector<int> mine{0, 1, 95, 300, 64}, more{0, 33, 0, 97, 1};
  const int tokens = static_cast<int>(mine.size());
  const Cache<kFormat, kKv> main(mine, 3, 0, random);
  const Cache<kFormat, kExtra> extra(more, 2, 48, random);
  const Block<uint16_t> q(static_cast<size_t>(tokens) * nhead * Layout::kHeadDimQk);
  for (int i = 0; i < tokens * nhead * Layout::kHeadDimQk; ++i)
    q[i] = tile::float_to_bf16(std::normal_distribution<float>()(random));
  const size_t rows = static_cast<size_t>(tokens) * nhead;
  std::vector<uint16_t> o(rows * 512);
  std::vector<float> sink(nhead, 1.5f), lse(rows), partial_o(rows * kSplits * 512);
  std::vector<float> partial_lse(rows * kSplits);
  std::vector<int32_t> arrivals(tokens);
  abi::SparseMlaParams p{};
  p.q = q.data(), p.o = o.data(), p.lse = lse.data(), p.attn_sink = sink.data();
  p.partial_o = partial_o.data(), p.partial_lse = partial_lse.data(), p.arrivals = arrivals.data();
  p.main = main.params(), p.extra = extra.params();
  p.q_stride_head = Layout::kHeadDimQk, p.q_stride_row = int64_t{nhead} * Layout::kHeadDimQk;
  p.o_stride_head = 512, p.o_stride_row = int64_t{nhead} * 512;
  p.tokens = tokens, p.nhead = nhead, p.num_splits = kSplits, p.row_tiles = 1;
  p.o_dtype = abi::DType::bf16, p.sm_scale = kScale;
  launch<Kernel>(p, int64_t{tokens} * kSplits);
  double worst = 0;
  bool good = true;
  for (int token = 0; token < tokens; ++token) {
    std::vector<std::vector<float>> keys;
    main.append(token, keys);
    extra.append(token, keys);
    for (int head = 0; head < nhead; head += 5) {  // every fifth: the reference is slow
      const size_t row = static_cast<size_t>(token) * nhead + head;
      const std::vector<double> want = reference(keys, &q[row * Layout::kHeadDimQk], sink[head]);
      for (int d = 0; d < 512; ++d) {
        const double got = tile::bf16_to_float(o[row * 512 + d]);
        const double error = std::fabs(got - want[d]) / (1 + std::fabs(want[d]));
        good &= error < 0.05;
        if (error > worst) worst = error;
      }
    }
  }
  std::printf("%s %s nhead %d: worst error %.1e\n", good ? "ok  " : "FAIL", name, nhead, worst);
  return good ? 0 : 1;
}

int run() {
  using enum abi::DType;
  using tile::KeyFormat;
  std::mt19937 random(7);
  int failures = 0;
  for (int nhead : {1, 7, 20, 128}) {
    failures += check<KeyFormat::v32, fp8_e4m3fn, fp8_e4m3fn>("v32", nhead, random);
    failures += check<KeyFormat::v4, fp8_e4m3fnuz, fp8_e4m3fn>("v4", nhead, random);
  }
  return failures;
}

}  // namespace
}  // namespace hipdecode::sanitize

int main() { return hipdecode::sanitize::run(); }
