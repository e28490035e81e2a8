// SPDX-License-Identifier: MIT
#pragma once

#include <array>
#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "../load/instruction.h"

namespace hipdecode::sim {

inline constexpr int kClasses = static_cast<int>(Class::atomic) + 1;

/// The name that a class has in the JSON.
std::string_view class_name(Class kind);

/// What the executors of one workgroup count while they run. Instructions are counted by their
/// index alone: classes, mnemonics and passes follow from that when the workgroup is done.
struct Counts {
  explicit Counts(size_t instructions = 0) : executed(instructions) {}

  std::vector<int64_t> executed;  // per Program::instructions, by all waves
  int64_t global_bytes_read = 0, global_bytes_written = 0;
  int64_t direct_to_lds_bytes = 0;  // also part of global_bytes_read
  int64_t lds_bytes_read = 0, lds_bytes_written = 0;
  int64_t lds_cycles = 0;           // modelled, see lds_banks.h
  int64_t lds_conflict_cycles = 0;  // the part of lds_cycles that an ideal layout would not need

  /// Ready for the next workgroup.
  void clear();
};

/// Everything that is reported, of one workgroup or summed.
struct Totals {
  std::array<int64_t, kClasses> by_class{};
  int64_t instructions = 0, barriers = 0, mfma_passes = 0;
  int64_t global_bytes_read = 0, global_bytes_written = 0, direct_to_lds_bytes = 0;
  int64_t lds_bytes_read = 0, lds_bytes_written = 0, lds_cycles = 0, lds_conflict_cycles = 0;
};

/// The counts of a launch: summed over its workgroups, and the largest of each.
class LaunchCounts {
 public:
  /// Adds one workgroup. Not thread-safe: one object per host thread, then merge().
  void add(const Counts& counts, std::span<const Instruction> instructions);
  void merge(const LaunchCounts& other);
  std::string json() const;
  const Totals& sum() const { return sum_; }

 private:
  int64_t workgroups_ = 0;
  Totals sum_, max_;
  std::map<std::string_view, int64_t> by_mnemonic_;
};

/// 4-cycle passes that an MFMA occupies the matrix unit for; f8f6f4 depends on its formats.
int mfma_passes(const Instruction& instruction);

}  // namespace hipdecode::sim
