// SPDX-License-Identifier: MIT
// Runs the CPU kernels on threads over exactly sized heap blocks, for AddressSanitizer, UBSan and
// ThreadSanitizer: hk with split contexts (last arriver merges), then plan, persistent and reduce.
// Both must agree.

#include <atomic>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <memory>
#include <random>
#include <thread>
#include <vector>

#include "kernels/mla_decode_hk.h"
#include "kernels/mla_decode_persistent.h"
#include "kernels/mla_plan.h"
#include "kernels/mla_reduce.h"

namespace {

using namespace hipdecode;

constexpr int kThreads = 4, kSplits = 5, kClusters = 7;

template <class Kernel>
void launch(const typename Kernel::Params& params, int64_t blocks) {
  std::atomic<int64_t> next{0};
  std::vector<std::thread> threads;
  for (int t = 0; t < kThreads; ++t)
    threads.emplace_back([&] {
      std::unique_ptr<void, decltype(&std::free)> shared(
          std::aligned_alloc(64, (sizeof(typename Kernel::Shared) + 63) / 64 * 64), &std::free);
      for (int64_t i; (i = next.fetch_add(1)) < blocks;)
        Kernel::run(params, tile::Block(i, blocks),
                    *static_cast<typename Kernel::Shared*>(shared.get()));
    });
  for (auto& thread : threads) thread.join();
}

struct Shape {
  std::vector<int> kv_lens;
  int nhead, q_len, page_size;
};

template <class T>
T* exact(std::vector<std::unique_ptr<void, decltype(&std::free)>>& owned, size_t count) {
  owned.emplace_back(std::aligned_alloc(64, (count * sizeof(T) + 63) / 64 * 64), &std::free);
  return static_cast<T*>(owned.back().get());
}

template <class Kernels>
int check(const char* name, const Shape& shape, std::mt19937& random) {
  std::vector<std::unique_ptr<void, decltype(&std::free)>> owned;
  const int batch = static_cast<int>(shape.kv_lens.size()), rows = batch * shape.q_len,
            ps = shape.page_size;
  std::vector<int32_t> qo(1), kv(1), last, indices;
  for (int length : shape.kv_lens) {
    const int pages = (length + ps - 1) / ps;
    qo.push_back(qo.back() + shape.q_len);
    kv.push_back(kv.back() + pages);
    last.push_back(length - (pages - 1) * ps);
  }
  const int num_pages = kv.back() + 2;
  for (int i = 0; i < kv.back(); ++i) indices.push_back(static_cast<int32_t>(random() % num_pages));
  if (!indices.empty()) indices[indices.size() / 2] = -1;
  const int64_t q_size = int64_t{rows} * shape.nhead * Kernels::kQk,
                o_size = int64_t{rows} * shape.nhead * Kernels::kV;
  auto* q = exact<typename Kernels::Q>(owned, q_size);
  auto* cache = exact<typename Kernels::Kv>(owned, int64_t{num_pages} * ps * Kernels::kQk);
  for (int64_t i = 0; i < q_size; ++i) q[i] = Kernels::template make<typename Kernels::Q>(random);
  for (int64_t i = 0; i < int64_t{num_pages} * ps * Kernels::kQk; ++i)
    cache[i] = Kernels::template make<typename Kernels::Kv>(random);
  std::vector<uint16_t> o_hk(o_size), o_persistent(o_size);
  std::vector<float> lse_hk(rows * shape.nhead), lse_persistent(rows * shape.nhead);
  abi::MlaDecodeParams p{};
  p.q = q, p.kv = cache, p.o = o_hk.data(), p.lse = lse_hk.data();
  p.qo_indptr = qo.data(), p.kv_indptr = kv.data(), p.kv_indices = indices.data(),
  p.kv_last_page_lens = last.data();
  p.q_stride_head = Kernels::kQk, p.q_stride_row = int64_t{shape.nhead} * Kernels::kQk;
  p.kv_stride_token = Kernels::kQk, p.kv_stride_page = int64_t{ps} * Kernels::kQk;
  p.o_stride_head = Kernels::kV, p.o_stride_row = int64_t{shape.nhead} * Kernels::kV;
  p.num_pages = num_pages, p.num_kv_indices = static_cast<int64_t>(indices.size()), p.rows_q = rows;
  p.batch = batch, p.nhead = shape.nhead, p.max_seqlen_q = shape.q_len, p.page_size = ps,
  p.num_splits = kSplits;
  p.row_tiles = (shape.q_len * shape.nhead + 127) / 128, p.causal = 1, p.o_dtype = abi::DType::bf16,
  p.sm_scale = 0.1f;
  std::vector<float> partial_o(o_size * kSplits), partial_lse(rows * shape.nhead * kSplits);
  std::vector<int32_t> arrivals(batch * p.row_tiles);
  p.partial_o = partial_o.data(), p.partial_lse = partial_lse.data(),
  p.partial_rows = int64_t{rows} * kSplits, p.arrivals = arrivals.data();
  launch<typename Kernels::Hk>(p, int64_t{batch} * p.row_tiles * kSplits);

  const int tiles = batch * shape.q_len, most = tiles + kClusters, row_cap = most * shape.q_len;
  std::vector<uint64_t> metadata(2);
  std::vector<abi::WorkItem> works(most);
  std::vector<int32_t> work_indptr(kClusters + 1), reduce_indptr(tiles + 1), final_map(2 * tiles),
      partial_map(2 * most);
  abi::MlaPlanParams plan{};
  plan.qo_indptr = qo.data(), plan.kv_indptr = kv.data(), plan.kv_last_page_lens = last.data();
  plan.work_metadata = metadata.data(), plan.work_info = works.data(),
  plan.work_indptr = work_indptr.data();
  plan.reduce_indptr = reduce_indptr.data(), plan.reduce_final_map = final_map.data(),
  plan.reduce_partial_map = partial_map.data();
  plan.work_metadata_size = 2, plan.work_info_size = most, plan.work_indptr_size = kClusters + 1,
  plan.reduce_indptr_size = tiles + 1;
  plan.reduce_final_map_size = tiles, plan.reduce_partial_map_size = 2 * most, plan.batch = batch,
  plan.nhead = shape.nhead;
  plan.page_size = ps, plan.kv_granularity = ps == 1 ? 16 : 1, plan.max_seqlen_qo = shape.q_len,
  plan.uni_seqlen_qo = -1, plan.topk = -1;
  plan.max_split_per_batch = -1, plan.causal = 1, plan.num_kv_splits = 32;
  launch<kernels::MlaPlan>(plan, 1);
  std::vector<float> plan_o(int64_t{2} * row_cap * shape.nhead * Kernels::kV),
      plan_lse(int64_t{2} * row_cap * shape.nhead);
  p.o = o_persistent.data(), p.lse = lse_persistent.data(), p.work_indptr = work_indptr.data(),
  p.work_info = works.data(), p.num_works = most;
  p.partial_o = plan_o.data(), p.partial_lse = plan_lse.data(), p.partial_rows = 2 * row_cap;
  launch<typename Kernels::Persistent>(p, kClusters);
  abi::MlaReduceParams r{};
  r.partial_o = plan_o.data(), r.partial_lse = plan_lse.data(),
  r.reduce_indptr = reduce_indptr.data(), r.reduce_final_map = final_map.data();
  r.reduce_partial_map = partial_map.data(), r.o = o_persistent.data(),
  r.lse = lse_persistent.data();
  r.o_stride_row = p.o_stride_row, r.o_stride_head = p.o_stride_head, r.partial_rows = 2 * row_cap,
  r.num_partials = 2 * most;
  r.rows_o = rows, r.tiles = tiles, r.nhead = shape.nhead, r.head_dim_v = Kernels::kV,
  r.o_dtype = abi::DType::bf16;
  launch<kernels::MlaReduce>(r, kThreads);

  double worst = 0;
  for (int64_t i = 0; i < o_size; ++i)
    worst = std::fmax(
        worst, std::fabs(tile::bf16_to_float(o_hk[i]) - tile::bf16_to_float(o_persistent[i])));
  bool lse_equal = true;
  for (size_t i = 0; i < lse_hk.size(); ++i)
    lse_equal &= lse_hk[i] == lse_persistent[i] || std::fabs(lse_hk[i] - lse_persistent[i]) < 1e-4f;
  const bool good = worst < 0.03 && lse_equal;
  std::printf("%s %s batch %d nhead %d q_len %d page %d: hk against persistent %.1e\n",
              good ? "ok  " : "FAIL", name, batch, shape.nhead, shape.q_len, ps, worst);
  return good ? 0 : 1;
}

template <int kQk_, int kV_, abi::DType kQDType, abi::DType kKvDType>
struct KernelSet {
  static constexpr int kQk = kQk_, kV = kV_;
  using Shape = kernels::MlaShape<kQk, kV, kQDType, kKvDType>;
  using Hk = kernels::MlaDecodeHk<Shape>;
  using Persistent = kernels::MlaDecodePersistent<Shape>;
  using Q = typename tile::Storage<kQDType>::Type;
  using Kv = typename tile::Storage<kKvDType>::Type;

  template <class T>
  static T make(std::mt19937& random) {
    const float value = std::normal_distribution<float>()(random);
    if constexpr (sizeof(T) == 1)
      return static_cast<T>(0x20 + random() % 0x18 + (value < 0 ? 0x80 : 0));
    return kQDType == abi::DType::fp16 ? tile::float_to_fp16(value) : tile::float_to_bf16(value);
  }
};

}  // namespace

int main() {
  using enum abi::DType;
  std::mt19937 random(7);
  int failures = 0;
  const Shape shapes[] = {{{0, 1, 95, 96, 97, 700}, 3, 1, 1},
                          {{300, 0, 65}, 17, 4, 16},
                          {{1000}, 128, 2, 64},
                          {{513, 24}, 48, 3, 1}};
  for (const Shape& shape : shapes) {
    failures += check<KernelSet<576, 512, bf16, bf16>>("bf16/bf16", shape, random);
    failures += check<KernelSet<576, 512, bf16, fp8_e4m3fn>>("bf16/e4m3fn", shape, random);
    failures += check<KernelSet<96, 64, fp8_e4m3fnuz, fp8_e4m3fnuz>>("e4m3fnuz", shape, random);
    failures += check<KernelSet<96, 64, fp16, fp16>>("fp16", shape, random);
  }
  return failures;
}
