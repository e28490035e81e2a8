// SPDX-License-Identifier: MIT
// Runs the CPU kernels on threads over exactly sized heap blocks, without torch or Python: for the
// sanitizers, and for machines that are emulated. hk with split contexts (the last arriver merges),
// then plan, persistent and reduce; both against the definition in double.

#include <cstdio>

#include "kernels/mla_decode_hk.h"
#include "kernels/mla_decode_persistent.h"
#include "kernels/mla_plan.h"
#include "kernels/mla_reduce.h"
#include "launch.h"

namespace hipdecode::sanitize {
namespace {

constexpr int kSplits = 5, kClusters = 7;

struct Output {
  std::vector<uint16_t> o;
  std::vector<float> lse;
};

template <class Kernel, class Problem>
Output run_split(const Problem& problem, int head_dim_v) {
  const size_t row = problem.shape.nhead, rows = problem.rows;
  Output out{std::vector<uint16_t>(rows * row * head_dim_v), std::vector<float>(rows * row)};
  std::vector<float> partial_o(out.o.size() * kSplits), partial_lse(out.lse.size() * kSplits);
  abi::MlaDecodeParams p = problem.params();
  std::vector<int32_t> arrivals(static_cast<size_t>(p.batch) * p.row_tiles);
  p.o = out.o.data(), p.lse = out.lse.data(), p.num_splits = kSplits;
  p.partial_o = partial_o.data(), p.partial_lse = partial_lse.data();
  p.partial_rows = problem.rows * kSplits, p.arrivals = arrivals.data();
  launch<Kernel>(p, int64_t{p.batch} * p.row_tiles * kSplits);
  return out;
}

template <class Kernel, class Problem>
Output run_planned(const Problem& problem, int head_dim_v) {
  const Shape& shape = problem.shape;
  const size_t row = shape.nhead, rows = problem.rows;
  const int tiles = problem.rows, most = tiles + kClusters, partials = 2 * most;
  std::vector<uint64_t> metadata(2);
  std::vector<abi::WorkItem> works(most);
  std::vector<int32_t> work_indptr(kClusters + 1), reduce_indptr(tiles + 1);
  std::vector<int32_t> final_map(2 * tiles), partial_map(partials);
  abi::MlaPlanParams plan{};
  plan.qo_indptr = problem.qo.data(), plan.kv_indptr = problem.kv.data();
  plan.kv_last_page_lens = problem.last.data(), plan.work_metadata = metadata.data();
  plan.work_info = works.data(), plan.work_indptr = work_indptr.data();
  plan.reduce_indptr = reduce_indptr.data(), plan.reduce_final_map = final_map.data();
  plan.reduce_partial_map = partial_map.data(), plan.work_metadata_size = 2;
  plan.work_info_size = most, plan.work_indptr_size = kClusters + 1;
  plan.reduce_indptr_size = tiles + 1, plan.reduce_final_map_size = tiles;
  plan.reduce_partial_map_size = partials, plan.batch = problem.batch(), plan.nhead = shape.nhead;
  plan.page_size = shape.page_size, plan.kv_granularity = shape.page_size == 1 ? 16 : 1;
  plan.max_seqlen_qo = shape.q_len, plan.uni_seqlen_qo = -1, plan.topk = -1;
  plan.max_split_per_batch = -1, plan.causal = 1, plan.num_kv_splits = 32;
  launch<kernels::MlaPlan>(plan, 1);

  Output out{std::vector<uint16_t>(rows * row * head_dim_v), std::vector<float>(rows * row)};
  const size_t partial_rows = static_cast<size_t>(partials) * shape.q_len;
  std::vector<float> partial_o(partial_rows * row * head_dim_v), partial_lse(partial_rows * row);
  abi::MlaDecodeParams p = problem.params();
  p.o = out.o.data(), p.lse = out.lse.data();
  p.work_indptr = work_indptr.data(), p.work_info = works.data(), p.num_works = most;
  p.partial_o = partial_o.data(), p.partial_lse = partial_lse.data();
  p.partial_rows = static_cast<int64_t>(partial_rows);
  p.row_tiles = 1;  // blocks of a cluster
  launch<Kernel>(p, kClusters);
  abi::MlaReduceParams r{};
  r.partial_o = p.partial_o, r.partial_lse = p.partial_lse, r.reduce_indptr = plan.reduce_indptr;
  r.reduce_final_map = plan.reduce_final_map, r.reduce_partial_map = plan.reduce_partial_map;
  r.o = p.o, r.lse = p.lse, r.o_stride_row = p.o_stride_row, r.o_stride_head = p.o_stride_head;
  r.partial_rows = p.partial_rows, r.num_partials = partials, r.rows_o = p.rows_q;
  r.tiles = tiles, r.nhead = p.nhead, r.head_dim_v = head_dim_v, r.o_dtype = p.o_dtype;
  launch<kernels::MlaReduce>(r, kThreads);
  return out;
}

template <int kQk, int kV, abi::DType kQDType, abi::DType kKvDType>
int check(const char* name, const Shape& shape, std::mt19937& random) {
  using KernelShape = kernels::MlaShape<kQk, kV, kQDType, kKvDType, 128>;
  const Problem<kQk, kV, kQDType, kKvDType> problem(shape, random);
  const Output split = run_split<kernels::MlaDecodeHk<KernelShape>>(problem, kV);
  const Output planned = run_planned<kernels::MlaDecodePersistent<KernelShape>>(problem, kV);
  double worst = 0, worst_lse = 0;
  for (int row = 0; row < problem.rows; ++row)
    for (int head = 0; head < shape.nhead; head += 5) {  // every fifth: the reference is slow
      const std::vector<double> want = problem.reference(row, head);
      const size_t at = static_cast<size_t>(row) * shape.nhead + head;
      for (int d = 0; d < kV; ++d)
        for (const Output* got : {&split, &planned})
          worst = std::fmax(worst, std::fabs(tile::bf16_to_float(got->o[at * kV + d]) - want[d]));
      if (split.lse[at] != planned.lse[at])
        worst_lse = std::fmax(worst_lse, std::fabs(split.lse[at] - planned.lse[at]));
    }
  const bool good = worst < 0.02 && worst_lse < 1e-4;
  std::printf("%s %s batch %d nhead %d q_len %d page %d: worst error %.1e\n",
              good ? "ok  " : "FAIL", name, problem.batch(), shape.nhead, shape.q_len,
              shape.page_size, worst);
  return good ? 0 : 1;
}

int run() {
  using enum abi::DType;
  std::mt19937 random(7);
  int failures = 0;
  const Shape shapes[] = {{{0, 1, 95, 96, 97, 700}, 3, 1, 1},
                          {{300, 0, 65}, 17, 4, 16},
                          {{400}, 128, 2, 64},
                          {{513, 24}, 48, 3, 1}};
  for (const Shape& shape : shapes) {
    failures += check<576, 512, bf16, bf16>("bf16", shape, random);
    failures += check<576, 512, bf16, fp8_e4m3fn>("bf16/e4m3fn", shape, random);
    failures += check<96, 64, fp8_e4m3fnuz, fp8_e4m3fnuz>("e4m3fnuz", shape, random);
    failures += check<96, 64, fp16, fp16>("fp16", shape, random);
  }
  return failures;
}

}  // namespace
}  // namespace hipdecode::sanitize

int main() { return hipdecode::sanitize::run(); }
