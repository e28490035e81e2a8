// SPDX-License-Identifier: MIT
// Runs paged attention and the stand-alone merge of splits on threads over exactly sized heap
// blocks, without torch or Python: shuffled caches of random bytes, tables with entries that are no
// blocks, splits that the last arriver merges; against the definition in double.

#include <algorithm>
#include <cstdio>

#include "kernels/mla_decode_reduce.h"
#include "kernels/paged_attention.h"
#include "launch.h"

namespace hipdecode::sanitize {
namespace {

constexpr int kSplits = 3, kHeadDim = 128, kHeadsKv = 2;
constexpr float kScale = 0.1f;

/// A pool of shuffled blocks, its last one ending where the memory does, and a table.
template <abi::DType kType, bool kTokenScales>
struct Pool {
  using Element = typename tile::Storage<kType>::Type;
  static constexpr int kChunk = 16 / sizeof(Element);

  Pool(const std::vector<int>& contexts, int block_size, std::mt19937& random)
      : block_size(block_size),
        columns((*std::max_element(contexts.begin(), contexts.end()) + block_size - 1) /
                block_size),
        blocks(static_cast<int>(contexts.size()) * columns + 3),
        keys(elements()),
        values(elements()),
        scales(static_cast<size_t>(blocks) * kHeadsKv * block_size),
        table(contexts.size() * columns) {
    for (size_t i = 0; i < elements(); ++i) keys[i] = make(random), values[i] = make(random);
    for (size_t i = 0; i < static_cast<size_t>(blocks) * kHeadsKv * block_size; ++i)
      scales[i] = 0.25f + float(random() % 16) / 8;
    for (size_t i = 0; i < contexts.size() * columns; ++i)
      table[i] = i % 5 == 3 ? blocks + int(i) - 7 : int(random() % blocks);
    if (!contexts.empty() && columns > 1) table[1] = -1;
  }

  size_t elements() const { return static_cast<size_t>(blocks) * kHeadsKv * block_size * kHeadDim; }

  static Element make(std::mt19937& random) {
    const float normal = std::normal_distribution<float>()(random);
    if constexpr (sizeof(Element) == 1)
      return static_cast<Element>(0x20 + random() % 0x18 + (normal < 0 ? 0x80 : 0));
    else
      return tile::float_to_bf16(normal);
  }

  float value(Element bits) const {
    if constexpr (sizeof(Element) == 1)
      return tile::fp8_e4m3fn_to_float(bits);
    else
      return tile::bf16_to_float(bits);
  }

  abi::PagedTensor tensor(const Block<Element>& data) const {
    abi::PagedTensor t{};
    t.blocks = data.data(), t.scale = kTokenScales ? scales.data() : nullptr;
    t.stride_head = int64_t{block_size} * kHeadDim, t.stride_block = kHeadsKv * t.stride_head;
    t.stride_chunk = &data == &keys ? int64_t{block_size} * kChunk : int64_t{kHeadDim} * kChunk;
    t.stride_column = kChunk;
    t.scale_stride_head = block_size, t.scale_stride_block = int64_t{kHeadsKv} * block_size;
    return t;
  }

  /// Key and value of a token in double; false where the table names no block.
  bool read(int request, int head, int token, std::vector<double>& key,
            std::vector<double>& v) const {
    const int block = table[static_cast<size_t>(request) * columns + token / block_size];
    if (block < 0 || block >= blocks) return false;
    const int at = token % block_size;
    const size_t base = (static_cast<size_t>(block) * kHeadsKv + head) * block_size * kHeadDim;
    const double scale =
        kTokenScales ? scales[(static_cast<size_t>(block) * kHeadsKv + head) * block_size + at] : 1;
    for (int d = 0; d < kHeadDim; ++d) {
      const size_t k = (static_cast<size_t>(d) / kChunk * block_size + at) * kChunk + d % kChunk;
      const size_t n = (static_cast<size_t>(at) / kChunk * kHeadDim + d) * kChunk + at % kChunk;
      key[d] = value(keys[base + k]) * scale, v[d] = value(values[base + n]) * scale;
    }
    return true;
  }

  const int block_size, columns, blocks;
  Block<Element> keys, values;
  Block<float> scales;
  Block<int32_t> table;
};

template <class AnyPool>
std::vector<double> reference(const AnyPool& pool, int request, int head, int visible,
                              const uint16_t* q) {
  std::vector<double> out(kHeadDim), key(kHeadDim), v(kHeadDim);
  double sum = 0;  // scores are small here: no maximum is needed
  for (int token = 0; token < visible; ++token) {
    if (!pool.read(request, head, token, key, v)) continue;
    double score = 0;
    for (int d = 0; d < kHeadDim; ++d) score += double{tile::bf16_to_float(q[d])} * key[d];
    const double weight = std::exp(score * kScale);
    sum += weight;
    for (int d = 0; d < kHeadDim; ++d) out[d] += weight * v[d];
  }
  for (double& x : out) x = sum == 0 ? 0 : x / sum;
  return out;
}

template <abi::DType kKv, tile::PagedScales kScales, tile::PagedLayout kLayout, int kRows>
int check(const char* name, int block_size, int gqa, int q_len, std::mt19937& random) {
  using Kernel = kernels::PagedAttention<
      kernels::PagedShape<kHeadDim, abi::DType::bf16, kKv, kScales, kLayout, kRows>>;
  const std::vector<int> contexts{250, 0, 33, 2, 161};
  const int batch = static_cast<int>(contexts.size()), nhead = gqa * kHeadsKv;
  const Pool<kKv, kScales == tile::PagedScales::token> pool(contexts, block_size, random);
  const size_t rows = static_cast<size_t>(batch) * q_len * nhead;
  const Block<uint16_t> q(rows * kHeadDim), o(rows * kHeadDim);
  for (size_t i = 0; i < rows * kHeadDim; ++i)
    q[i] = tile::float_to_bf16(std::normal_distribution<float>()(random));
  const Block<float> lse(rows), partial_o(rows * kSplits * kHeadDim), partial_lse(rows * kSplits);
  abi::PagedAttentionParams p{};
  p.row_tiles = (gqa * q_len + kRows - 1) / kRows;
  std::vector<int32_t> arrivals(static_cast<size_t>(batch) * kHeadsKv * p.row_tiles);
  p.q = q.data(), p.o = o.data(), p.lse = lse.data(), p.partial_o = partial_o.data();
  p.partial_lse = partial_lse.data(), p.arrivals = arrivals.data();
  p.block_tables = pool.table.data(), p.context_lens = contexts.data();
  p.k = pool.tensor(pool.keys), p.v = pool.tensor(pool.values);
  p.q_stride_row = p.o_stride_row = int64_t{nhead} * kHeadDim;
  p.q_stride_head = p.o_stride_head = kHeadDim;
  p.table_stride = p.max_blocks = pool.columns, p.num_blocks = pool.blocks;
  p.rows_q = int64_t{batch} * q_len, p.batch = batch, p.nhead = nhead, p.nhead_kv = kHeadsKv;
  p.gqa = gqa, p.max_seqlen_q = q_len, p.block_size = block_size, p.num_splits = kSplits;
  p.group_shift = 31, p.group_multiplier = (1u << 31) / (block_size / 16);  // powers of two only
  p.o_dtype = abi::DType::bf16, p.sm_scale = kScale;
  launch<Kernel>(p, int64_t{batch} * kHeadsKv * p.row_tiles * kSplits);
  double worst = 0;
  for (int row = 0; row < batch * q_len; ++row)
    for (int head = 0; head < nhead; ++head) {
      const int visible = contexts[row / q_len] - (q_len - 1 - row % q_len);
      const size_t at = (static_cast<size_t>(row) * nhead + head) * kHeadDim;
      const auto want = reference(pool, row / q_len, head / gqa, visible, &q[at]);
      for (int d = 0; d < kHeadDim; ++d) {
        const double got = tile::bf16_to_float(o[at + d]);
        const double error = std::fabs(got - want[d]) / (1 + std::fabs(want[d]));
        if (error > worst) worst = error;
      }
    }
  const bool good = worst < 0.02;
  std::printf("%s %s block %d gqa %d q_len %d: worst error %.1e\n", good ? "ok  " : "FAIL", name,
              block_size, gqa, q_len, worst);
  return good ? 0 : 1;
}

template <int kPieces, int kAhead, int kVec>
int check_merge(int nhead, int head_dim, std::mt19937& random) {
  const std::vector<int32_t> tokens{0, 5000, 5000, 5065, 5066};
  const int batch = static_cast<int>(tokens.size()) - 1;
  const size_t rows = static_cast<size_t>(batch) * kPieces * nhead;
  const Block<float> partial(rows * head_dim), logs(rows);
  for (size_t i = 0; i < rows * head_dim; ++i)
    partial[i] = std::normal_distribution<float>()(random);
  for (size_t i = 0; i < rows; ++i) logs[i] = std::normal_distribution<float>()(random);
  const Block<uint16_t> o(static_cast<size_t>(batch) * nhead * head_dim);
  abi::MlaDecodeReduceParams p{};
  p.partial_o = partial.data(), p.partial_lse = logs.data(), p.kv_indptr = tokens.data();
  p.o = o.data(), p.o_stride_head = head_dim, p.o_stride_row = int64_t{nhead} * head_dim;
  p.rows = p.batch = batch, p.nhead = nhead, p.head_dim_v = head_dim;
  p.o_dtype = abi::DType::bf16;
  launch<kernels::MlaDecodeReduce<kPieces, kAhead, kVec>>(p, kThreads);
  double worst = 0;
  for (int request = 0; request < batch; ++request)
    for (int head = 0; head < nhead; ++head) {
      const int used = std::min((tokens[request + 1] - tokens[request] + 63) / 64, kPieces);
      const auto row = [&](int k) {
        return (static_cast<size_t>(request) * kPieces + k) * nhead + head;
      };
      double sum = 0;
      for (int k = 0; k < used; ++k) sum += std::exp(logs[row(k)]);
      for (int d = 0; d < head_dim; ++d) {
        double want = 0;
        for (int k = 0; k < used; ++k)
          want += std::exp(logs[row(k)]) / sum * partial[row(k) * head_dim + d];
        const size_t at = (static_cast<size_t>(request) * nhead + head) * head_dim + d;
        const double error = std::fabs(tile::bf16_to_float(o[at]) - want);
        if (error > worst) worst = error;
      }
    }
  const bool good = worst < 0.02;
  std::printf("%s merge of %d, nhead %d, %d columns: worst error %.1e\n", good ? "ok  " : "FAIL",
              kPieces, nhead, head_dim, worst);
  return good ? 0 : 1;
}

int run() {
  using enum abi::DType;
  using enum tile::PagedScales;
  using enum tile::PagedLayout;
  std::mt19937 random(7);
  int failures = 0;
  for (int q_len : {1, 4}) {
    failures += check<fp8_e4m3fn, token, block16, 16>("fp8", 16, 8, q_len, random);
    failures += check<fp8_e4m3fn, token, any, 128>("fp8", 64, 10, q_len, random);
    failures += check<bf16, tensor, any, 32>("bf16", 32, 16, q_len, random);
  }
  failures += check_merge<1, 1, 4>(3, 512, random);
  failures += check_merge<4, 2, 2>(5, 70, random);
  failures += check_merge<16, 8, 1>(2, 33, random);
  return failures;
}

}  // namespace
}  // namespace hipdecode::sanitize

int main() { return hipdecode::sanitize::run(); }
