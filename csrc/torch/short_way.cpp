// SPDX-License-Identifier: MIT
#include "short_way.h"

#include <algorithm>
#include <array>
#include <cmath>

#include "launches.h"
#include "objects.h"
#include "plan_params.h"
#include "route_memo.h"

namespace hipdecode::torch_ops {
namespace {

enum class Choice : int8_t { free = 0, hk = 1, persistent = 2 };

/// A plan's memory and what it was made for; checked when it was packed.
struct PlanFacts {
  int32_t *work_indptr, *reduce_indptr, *reduce_final_map, *reduce_partial_map;
  abi::WorkItem* work_info;
  float *partial_o, *partial_lse;
  int64_t clusters, works, partial_rows, tiles, partials;
  int64_t batch, nhead, head_dim_v, max_seqlen_q, page_size;
  int32_t device, index;
  int64_t causal;
};

struct ScratchFacts {
  float* floats;
  int32_t* counters;
  int64_t float_count, counter_count;
  int32_t device, index;
};

constexpr int64_t kMostChoice = 0x7fffffff;
constexpr int64_t kMostRows = 128;  // of a tile
constexpr intptr_t kDecodeArguments = 6, kPackArguments = 12;

/// A call's objects, read and checked.
struct Call {
  std::array<PyObject*, 14> step;   // as _Step of python/hipdecode/decode.py
  std::array<PyObject*, 5> choice;  // kv_len, batch_invariant, route, num_splits, tile_rows
  Tensor q, kv_buffer, o;
  OptionalTensor lse;
  Tensor qo_indptr, kv_indptr, kv_indices;
  OptionalTensor kv_last_page_lens, q_scale, kv_scale;
  const ScratchFacts* scratch;
  const PlanFacts* plan;
  const Planning* planning;
  runtime::Place place;
  abi::MlaDecodeParams p;
  bool trims;  // keys that only later tiles of a request see may be missing from its works
  RouteKey key{};

  explicit Call(PyObject* const* a)
      : step(items_of<14>(a[0])),
        choice(items_of<5>(a[1])),
        q(tensor_of(step[0])),
        kv_buffer(tensor_of(step[1])),
        o(tensor_of(step[2])),
        lse(optional_tensor_of(step[3])),
        qo_indptr(tensor_of(step[4])),
        kv_indptr(tensor_of(step[5])),
        kv_indices(tensor_of(step[6])),
        kv_last_page_lens(optional_tensor_of(step[7])),
        q_scale(optional_tensor_of(step[8])),
        kv_scale(optional_tensor_of(step[9])),
        scratch(packed_of<ScratchFacts>(a[2])),
        plan(packed_of<PlanFacts>(a[3])),
        planning(packed_of<Planning>(a[5])),
        place(begin_call(q)) {
    if (place.device.kind == runtime::DeviceKind::sim) throw Unusual{};  // it wants extents
    check_dim("q", q, 3);
    const Shard shard = shard_of(step[13]);
    const double scale = float_of(step[11], std::pow(static_cast<double>(q.size(2)), -0.5));
    p = checked_params({q, kv_buffer, o, lse, qo_indptr, kv_indptr, kv_indices, kv_last_page_lens,
                        q_scale, kv_scale, int_of(step[10]), scale, bool_of(step[12]), &shard});
    trims = p.causal != 0 && (step[13] == python().none || p.max_seqlen_q == 1);
    make_key(bool_of(a[4]));
  }

 private:
  void make_key(bool planned) {
    const std::string_view route = text_of(choice[2]);
    if (!route.empty() && route != "hk" && route != "persistent") throw Unusual{};
    key.route = static_cast<int8_t>(route.empty()   ? Choice::free
                                    : route == "hk" ? Choice::hk
                                                    : Choice::persistent);
    key.num_splits = static_cast<int32_t>(choice_of(choice[3]));
    key.tile_rows = static_cast<int16_t>(rows_of(choice[4]));
    key.batch_invariant = bool_of(choice[1]);
    key.planned = planned;
    key.batch = p.batch;
    key.kv_len = choice_of(choice[0]);
    const int32_t requests = std::max(p.batch, 1);
    if (choice[0] == python().none && !planned && !captured())
      key.kv_len = (p.num_kv_indices * p.page_size + requests - 1) / requests;
    key.units = q.is_cpu() ? runtime::driver(place.device.kind).compute_units(0) : 0;
    key.kind = static_cast<int32_t>(place.device.kind);
    key.index = place.device.index;
    key.nhead = p.nhead;
    key.max_seqlen_q = p.max_seqlen_q;
    key.page_size = p.page_size;
    key.head_dim_qk = static_cast<int32_t>(q.size(2));
    key.head_dim_v = static_cast<int32_t>(o.size(2));
    key.q_dtype = static_cast<int32_t>(q.scalar_type());
    key.kv_dtype = static_cast<int32_t>(kv_buffer.scalar_type());
  }

  /// As KvShard of python/hipdecode/shard.py.
  static Shard shard_of(PyObject* object) {
    if (object == python().none) return {};
    const std::array<PyObject*, 4> items = items_of<4>(object);
    return {optional_tensor_of(items[0]), int_of(items[1]), int_of(items[2]), int_of(items[3])};
  }

  /// -1 for None; a caller's own number is never that.
  static int64_t choice_of(PyObject* object) {
    const int64_t value = int_of(object, -1);
    if (object != python().none && (value < 0 || value > kMostChoice)) throw Unusual{};
    return value;
  }

  static int64_t rows_of(PyObject* object) {
    const int64_t rows = int_of(object, 0);
    if (object != python().none && (rows < 1 || rows > kMostRows)) throw Unusual{};
    return rows;
  }

  /// Lengths seen during a capture mean nothing to its replays.
  bool captured() const {
    return q.is_cuda() && runtime::driver(place.device.kind).is_capturing(place.stream);
  }
};

int32_t device_of(const Tensor& t) { return t.is_cpu() ? 0 : 1; }

template <class Facts>
bool is_elsewhere(const Facts& facts, const Tensor& q) {
  return facts.device != device_of(q) || facts.index != q.get_device_index();
}

bool is_for(const PlanFacts& plan, const Call& call) {
  const abi::MlaDecodeParams& p = call.p;
  return !is_elsewhere(plan, call.q) && plan.batch == p.batch && plan.nhead == p.nhead &&
         plan.page_size == p.page_size && plan.head_dim_v == call.o.size(2) &&
         plan.max_seqlen_q >= p.max_seqlen_q && (plan.causal == 0 || call.trims);
}

/// Whether the arguments of mla_plan are those that fill this plan for this call.
bool is_for(const Planning& planning, const PlanFacts& plan, const Call& call) {
  return planning.p.work_info == plan.work_info &&
         planning.p.max_seqlen_qo == call.p.max_seqlen_q &&
         (planning.p.causal != 0) == call.trims &&
         (call.key.units == 0 || call.key.units == plan.clusters);
}

/// Fills the plan, where its arguments are there, then decodes and merges by it.
void run_planned(Call& call, const RouteEntry& entry) {
  const PlanFacts& plan = *call.plan;
  abi::MlaDecodeParams& p = call.p;
  p.work_indptr = plan.work_indptr;
  p.work_info = plan.work_info;
  p.num_works = plan.works;
  p.partial_o = plan.partial_o;
  p.partial_lse = plan.partial_lse;
  p.partial_rows = plan.partial_rows;
  const abi::MlaReduceParams merge{.partial_o = plan.partial_o,
                                   .partial_lse = plan.partial_lse,
                                   .reduce_indptr = plan.reduce_indptr,
                                   .reduce_final_map = plan.reduce_final_map,
                                   .reduce_partial_map = plan.reduce_partial_map,
                                   .o = p.o,
                                   .lse = p.lse,
                                   .o_stride_row = p.o_stride_row,
                                   .o_stride_head = p.o_stride_head,
                                   .partial_rows = plan.partial_rows,
                                   .num_partials = plan.partials,
                                   .rows_o = p.rows_q,
                                   .tiles = static_cast<int32_t>(plan.tiles),
                                   .nhead = p.nhead,
                                   .head_dim_v = static_cast<int32_t>(plan.head_dim_v),
                                   .o_dtype = p.o_dtype};
  const PythonUnlocked unlocked;
  if (call.planning != nullptr) {
    abi::MlaPlanParams lists = call.planning->p;
    lists.qo_indptr = p.qo_indptr;
    lists.kv_indptr = p.kv_indptr;
    lists.kv_last_page_lens = p.kv_last_page_lens;
    launch_plan(lists, call.place);
  }
  launch_persistent(*entry.decode, p, plan.clusters, call.place);
  // one cluster cuts nothing, so there is nothing to merge
  if (plan.clusters > 1) launch_reduce(*entry.reduce, merge, p.max_seqlen_q, call.place);
}

Outcome run_hk(Call& call, const RouteEntry& entry) {
  SplitMemory memory;
  abi::MlaDecodeParams& p = call.p;
  p.num_splits = static_cast<int32_t>(entry.num_splits);
  if (p.num_splits > 1) {
    if (call.scratch == nullptr) return Outcome::scratch_missing;
    const ScratchFacts& scratch = *call.scratch;
    const int64_t partials = p.rows_q * p.num_splits * p.nhead, width = call.o.size(2);
    if (is_elsewhere(scratch, call.q) || scratch.float_count < partials * (width + 1))
      throw Unusual{};
    memory = {.partial_o = scratch.floats,
              .partial_lse = scratch.floats + partials * width,
              .arrivals = scratch.counters,
              .outputs = partials * width,
              .lses = partials,
              .counters = scratch.counter_count};
  }
  const PythonUnlocked unlocked;
  launch_hk(*entry.decode, p, memory, call.o.size(2), call.place);
  return Outcome::served;
}

Outcome run(PyObject* const* arguments) {
  Call call(arguments);
  const std::optional<RouteEntry> entry = find_route(call.key);
  if (!entry) return Outcome::long_way;
  if (entry->reduce == nullptr) return call.p.rows_q == 0 ? Outcome::served : run_hk(call, *entry);
  const bool fits = call.plan != nullptr && is_for(*call.plan, call);
  if (!fits || (call.planning != nullptr && !is_for(*call.planning, *call.plan, call)))
    return call.key.planned ? Outcome::long_way : Outcome::plan_missing;
  if (call.p.rows_q > 0) run_planned(call, *entry);
  return Outcome::served;
}

}  // namespace

PyObject* decode(PyObject*, PyObject* const* arguments, intptr_t count) {
  PyObject* result = unless_unusual([&] {
    return python().new_int(
        static_cast<long>(count == kDecodeArguments ? run(arguments) : Outcome::long_way));
  });
  return result ? result : python().new_int(static_cast<long>(Outcome::long_way));
}

PyObject* learn(PyObject*, PyObject* const* arguments, intptr_t count) {
  return or_none(unless_unusual([&]() -> PyObject* {
    if (count != kDecodeArguments + 3) return nullptr;
    const Call call(arguments);
    const bool persistent = text_of(arguments[kDecodeArguments]) == "persistent";
    RouteEntry entry;
    entry.num_splits = int_of(arguments[kDecodeArguments + 1]);
    entry.decode = &decode_kernel(
        call.place, persistent ? "mla_decode_persistent" : "mla_decode_hk", call.q, call.kv_buffer,
        call.o.size(2), call.p, int_of(arguments[kDecodeArguments + 2]));
    if (persistent) entry.reduce = &runtime::find_kernel(call.place, "mla_reduce");
    keep_route(call.key, entry);
    return nullptr;
  }));
}

PyObject* pack_plan(PyObject*, PyObject* const* a, intptr_t count) {
  return or_none(unless_unusual([&]() -> PyObject* {
    if (count != kPackArguments) return nullptr;
    const Tensor work_indptr = tensor_of(a[0]), work_info = tensor_of(a[1]);
    const Tensor indptr = tensor_of(a[2]), final_map = tensor_of(a[3]);
    const Tensor partial_map = tensor_of(a[4]), output = tensor_of(a[5]);
    const Tensor lse = tensor_of(a[6]);
    for (const Tensor* t : {&work_info, &indptr, &final_map, &partial_map, &output, &lse})
      check_same_device("plan", *t, work_indptr);
    check_dim("work_info_set", work_info, 2);
    check_dim("partial_output", output, 3);
    const int64_t tiles = indptr.numel() - 1, partials = output.size(0) * output.size(1);
    if (work_info.size(1) != 8 || output.size(1) != int_of(a[8])) throw Unusual{};
    return pack(PlanFacts{
        .work_indptr = mutable_int32_data("work_indptr", work_indptr, 1),
        .reduce_indptr = mutable_int32_data("reduce_indptr", indptr, 1),
        .reduce_final_map = mutable_int32_data("reduce_final_map", final_map, 2 * tiles),
        .reduce_partial_map = mutable_int32_data("reduce_partial_map", partial_map, 0),
        .work_info =
            reinterpret_cast<abi::WorkItem*>(mutable_int32_data("work_info_set", work_info, 0)),
        .partial_o = float_data("partial_output", output, 0),
        .partial_lse = float_data("partial_lse", lse, partials),
        .clusters = work_indptr.numel() - 1,
        .works = work_info.size(0),
        .partial_rows = output.size(0),
        .tiles = tiles,
        .partials = partial_map.numel(),
        .batch = int_of(a[7]),
        .nhead = int_of(a[8]),
        .head_dim_v = output.size(2),
        .max_seqlen_q = int_of(a[9]),
        .page_size = int_of(a[10]),
        .device = device_of(work_indptr),
        .index = work_indptr.get_device_index(),
        .causal = bool_of(a[11])});
  }));
}

PyObject* pack_scratch(PyObject*, PyObject* const* a, intptr_t count) {
  return or_none(unless_unusual([&]() -> PyObject* {
    if (count != 2) return nullptr;
    const Tensor floats = tensor_of(a[0]), counters = tensor_of(a[1]);
    check_same_device("workspace", counters, floats);
    return pack(ScratchFacts{.floats = float_data("floats", floats, 0),
                             .counters = mutable_int32_data("counters", counters, 0),
                             .float_count = floats.numel(),
                             .counter_count = counters.numel(),
                             .device = device_of(floats),
                             .index = floats.get_device_index()});
  }));
}

}  // namespace hipdecode::torch_ops
