// SPDX-License-Identifier: MIT
#include "launch.h"

#include <algorithm>
#include <cstring>
#include <stdexcept>

namespace hipdecode::sim {
namespace {

// Registers start with patterns that no correct kernel depends on; the fp32 one is a NaN.
constexpr uint32_t kVectorPoison = 0x7fa0dead, kScalarPoison = 0xbad0bad0;
constexpr int64_t kMaxThreads = 1024;
constexpr int64_t kMaxKernarg = 64 * 1024, kMaxScratch = 256 * 1024;
constexpr int64_t kMaxGrid = int64_t{1} << 31;
// compute_pgm_rsrc1 and rsrc2.
constexpr int kFloatMode = 12, kClampNan = 21, kIeee = 23, kFp16Overflow = 26;
constexpr int kGroupIdX = 7, kGroupInfo = 10;

template <class T>
void put(std::span<uint8_t> to, int64_t offset, T value) {
  if (offset >= 0 && offset <= static_cast<int64_t>(to.size()) - static_cast<int64_t>(sizeof value))
    std::memcpy(to.data() + offset, &value, sizeof value);
}

bool is_hidden(const ArgumentMetadata& argument) { return argument.kind.starts_with("hidden_"); }

}  // namespace

Launch::Launch(const Program& program, const std::string& symbol, std::span<const uint8_t> kernarg,
               const Grid& grid, int32_t threads, int64_t dynamic_lds)
    : program_(program),
      kernel_(program.object().kernel(symbol)),
      grid_(grid),
      threads_(threads),
      lds_bytes_(kernel_.lds_bytes() + dynamic_lds) {
  check(kernarg);
  kernarg_.resize(std::max<size_t>(
      kernarg.size(), static_cast<size_t>(std::max<int64_t>(kernel_.kernarg_bytes(), 0))));
  std::copy(kernarg.begin(), kernarg.end(), kernarg_.begin());
  for (const ArgumentMetadata& argument : kernel_.metadata.arguments)
    if (is_hidden(argument)) fill_hidden(argument, dynamic_lds);
  fill_packet();
}

void Launch::check(std::span<const uint8_t> kernarg) const {
  const auto fail = [&](const std::string& expected, const std::string& got) {
    throw std::runtime_error("kernel " + kernel_.name + ": expected " + expected + ", got " + got +
                             "; correct the launch");
  };
  const int64_t most = kernel_.metadata.number(".max_flat_workgroup_size");
  const int64_t limit = most > 0 ? std::min(most, kMaxThreads) : kMaxThreads;
  if (threads_ < 1 || threads_ > limit)
    fail("1 to " + std::to_string(limit) + " threads", std::to_string(threads_));
  for (const int64_t blocks : grid_)
    if (blocks < 1 || blocks >= kMaxGrid)
      fail("1 to 2^31 - 1 workgroups in each direction", std::to_string(blocks));
  if (lds_bytes_ < 0 || lds_bytes_ > program_.arch().lds_bytes)
    fail("at most " + std::to_string(program_.arch().lds_bytes) + " bytes of LDS",
         std::to_string(lds_bytes_));
  if (scratch_bytes() < 0 || scratch_bytes() > kMaxScratch)
    fail("at most " + std::to_string(kMaxScratch) + " bytes of stack for each work item",
         std::to_string(scratch_bytes()));
  if (kernel_.kernarg_bytes() > kMaxKernarg)
    fail("at most " + std::to_string(kMaxKernarg) + " bytes of arguments",
         std::to_string(kernel_.kernarg_bytes()));
  int64_t explicit_end = 0;
  for (const ArgumentMetadata& argument : kernel_.metadata.arguments)
    if (!is_hidden(argument))
      explicit_end = std::max(explicit_end, argument.offset + argument.size);
  if (static_cast<int64_t>(kernarg.size()) < explicit_end)
    fail(std::to_string(explicit_end) + " bytes of arguments", std::to_string(kernarg.size()));
}

void Launch::fill_hidden(const ArgumentMetadata& argument, int64_t dynamic_lds) {
  const std::string& kind = argument.kind;
  const auto direction = static_cast<size_t>(kind.back() - 'x');  // of names that end in _x, _y, _z
  const bool directed = kind[kind.size() - 2] == '_' && direction < 3;
  if (directed && kind.starts_with("hidden_block_count_"))
    put(kernarg_, argument.offset, static_cast<uint32_t>(grid_[direction]));
  if (directed && kind.starts_with("hidden_group_size_"))
    put(kernarg_, argument.offset, static_cast<uint16_t>(direction == 0 ? threads_ : 1));
  if (kind == "hidden_grid_dims")
    put(kernarg_, argument.offset, static_cast<uint16_t>(grid_[2] > 1 ? 3 : grid_[1] > 1 ? 2 : 1));
  if (kind == "hidden_dynamic_lds_size")
    put(kernarg_, argument.offset, static_cast<uint32_t>(dynamic_lds));
  if (kind == "hidden_shared_base") put(kernarg_, argument.offset, kSharedAperture);
  if (kind == "hidden_private_base") put(kernarg_, argument.offset, kPrivateAperture);
}

void Launch::fill_packet() {
  put<uint16_t>(packet_, 2, 3);  // dimensions
  put(packet_, 4, static_cast<uint16_t>(threads_));
  put<uint16_t>(packet_, 6, 1);
  put<uint16_t>(packet_, 8, 1);
  put(packet_, 12, static_cast<uint32_t>(grid_[0] * threads_));
  put(packet_, 16, static_cast<uint32_t>(grid_[1]));
  put(packet_, 20, static_cast<uint32_t>(grid_[2]));
  put(packet_, 24, static_cast<uint32_t>(scratch_bytes()));
  put(packet_, 28, static_cast<uint32_t>(lds_bytes_));
  put(packet_, 40, reinterpret_cast<uint64_t>(kernarg_.data()));
}

void Launch::start(Wave& wave, int index, const Grid& group, uint64_t scratch) const {
  const KernelDescriptor& descriptor = kernel_.descriptor;
  wave.index = index;
  wave.pc = program_.find(program_.base() + static_cast<uint64_t>(descriptor.entry));
  const int lanes = std::min(kLanes, threads_ - index * kLanes);
  wave.exec = lanes == kLanes ? ~uint64_t{0} : (uint64_t{1} << lanes) - 1;
  wave.scc = wave.finished = wave.at_barrier = false;
  wave.mode = (descriptor.rsrc1 >> kFloatMode & 0xff) |
              (descriptor.rsrc1 >> kClampNan & 1 ? kModeClampNan : 0) |
              (descriptor.rsrc1 >> kIeee & 1 ? kModeIeee : 0) |
              (descriptor.rsrc1 >> kFp16Overflow & 1 ? kModeFp16Overflow : 0);
  wave.accumulator_offset = descriptor.accumulator_offset();
  wave.current = nullptr;
  wave.issued = 0;
  wave.scratch_stride = static_cast<uint64_t>(scratch_bytes());
  wave.scratch_base = scratch + static_cast<uint64_t>(index) * kLanes * wave.scratch_stride;
  start_scalars(wave, group);
  start_vectors(wave);
}

void Launch::start_scalars(Wave& wave, const Grid& group) const {
  const KernelDescriptor& descriptor = kernel_.descriptor;
  wave.scalar.fill(kScalarPoison);
  size_t next = 0;
  const auto user = [&](int property, uint64_t value, size_t count) {
    if (!descriptor.has(property)) return;
    wave.scalar[next] = static_cast<uint32_t>(value);
    if (count > 1) wave.scalar[next + 1] = static_cast<uint32_t>(value >> 32);
    next += count;
  };
  user(kPrivateSegmentBuffer, 0, 4);
  user(kDispatchPtr, reinterpret_cast<uint64_t>(packet_.data()), 2);
  user(kQueuePtr, 0, 2);
  user(kKernargSegmentPtr, reinterpret_cast<uint64_t>(kernarg_.data()), 2);
  user(kDispatchId, 0, 2);
  user(kFlatScratchInit, 0, 2);
  user(kPrivateSegmentSize, static_cast<uint64_t>(scratch_bytes()), 1);
  // Preloaded arguments are part of the count; the code before the 256-byte mark loads them.
  next = static_cast<size_t>(descriptor.user_scalars());
  for (size_t i = 0; i < group.size(); ++i)
    if (descriptor.rsrc2 >> (kGroupIdX + static_cast<int>(i)) & 1)
      wave.scalar[next++] = static_cast<uint32_t>(group[i]);
  if (descriptor.rsrc2 >> kGroupInfo & 1) wave.scalar[next] = static_cast<uint32_t>(waves());
}

void Launch::start_vectors(Wave& wave) const {
  wave.vector.resize(kVectorRegisters + kVectorPadding);
  wave.written.assign(wave.vector.size(), 0);
  const auto used = static_cast<std::ptrdiff_t>(kernel_.descriptor.vector_registers());
  std::for_each(wave.vector.begin(),
                wave.vector.begin() + std::min<std::ptrdiff_t>(used, kVectorRegisters),
                [](Lanes& lanes) { lanes.at.fill(kVectorPoison); });
  for (int lane = 0; lane < kLanes; ++lane)  // y and z, packed above x, are zero
    wave.vector[0][lane] = static_cast<uint32_t>(wave.index * kLanes + lane);
  wave.written[0] = ~uint64_t{0};
}

}  // namespace hipdecode::sim
