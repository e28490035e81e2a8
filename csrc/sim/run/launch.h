// SPDX-License-Identifier: MIT
#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "../load/program.h"
#include "../state/wave.h"

namespace hipdecode::sim {

/// Workgroups in x, y, z.
using Grid = std::array<int64_t, 3>;

/// One launch of a kernel, as the command processor sees it: the kernarg segment with its hidden
/// arguments, and the registers that each wave starts with.
class Launch {
 public:
  /// @param kernarg      explicit arguments; hidden ones are added as the metadata asks for them
  /// @param threads      work items of a workgroup, in x
  /// @param dynamic_lds  bytes past the kernel's own
  /// Throws std::runtime_error for what the kernel or the architecture does not allow.
  Launch(const Program& program, const std::string& symbol, std::span<const uint8_t> kernarg,
         const Grid& grid, int32_t threads, int64_t dynamic_lds);

  const Program& program() const { return program_; }
  const Kernel& kernel() const { return kernel_; }
  const Grid& grid() const { return grid_; }
  int64_t groups() const { return grid_[0] * grid_[1] * grid_[2]; }
  Grid group(int64_t index) const {
    return {index % grid_[0], index / grid_[0] % grid_[1], index / grid_[0] / grid_[1]};
  }
  int waves() const { return (threads_ + kLanes - 1) / kLanes; }
  int64_t lds_bytes() const { return lds_bytes_; }
  int64_t scratch_bytes() const { return kernel_.scratch_bytes(); }  // of a work item
  /// What the launch itself lets the kernel read.
  std::span<const uint8_t> kernarg() const { return kernarg_; }
  std::span<const uint8_t> packet() const { return packet_; }

  /// Sets up wave `index` of a workgroup. `scratch`: where the workgroup's private segments lie.
  void start(Wave& wave, int index, const Grid& group, uint64_t scratch) const;

 private:
  void check(std::span<const uint8_t> kernarg) const;
  void fill_hidden(const ArgumentMetadata& argument, int64_t dynamic_lds);
  void fill_packet();
  void start_scalars(Wave& wave, const Grid& group) const;
  void start_vectors(Wave& wave) const;

  const Program& program_;
  const Kernel& kernel_;
  Grid grid_;
  int32_t threads_;
  int64_t lds_bytes_;
  std::vector<uint8_t> kernarg_;
  std::array<uint8_t, 64> packet_{};  // hsa_kernel_dispatch_packet_t
};

}  // namespace hipdecode::sim
