// SPDX-License-Identifier: MIT
#pragma once

#include <array>
#include <cstdint>
#include <span>

#include "../run/options.h"
#include "../state/arch.h"
#include "../state/wave.h"
#include "definedness.h"
#include "effects.h"
#include "hazards.h"

namespace hipdecode::sim {

/// Watches the registers of one wave: values that a load has not been waited for, lanes that were
/// never written (Definedness), and results that the hardware does not protect (Hazards). The
/// scheduler calls before() and after() around each instruction.
class Checks {
 public:
  /// @param effects  of the whole program, by Instruction::index
  Checks(uint32_t checks, const Arch& arch, std::span<const Effects> effects);

  /// Faults if the instruction may not run now.
  void before(const Context& context, const Instruction& instruction);
  /// Records what it left pending.
  void after(const Context& context, const Instruction& instruction);
  /// s_waitcnt: at most so many operations outstanding; -1: any number. Its executor calls this.
  void wait(const Context& context, int vmcnt, int lgkmcnt);

 private:
  struct Pending {
    uint32_t load = 0, lds = 0;  // sequence numbers of Lds::Progress; 0: none
  };

  void check_waits(const Context& context, const Registers& registers, bool reads,
                   const Effects& effects);
  void check_scalar_waits(const Registers& registers, bool reads) const;
  const Effects& of(const Instruction& instruction) const {
    return effects_[static_cast<size_t>(instruction.index)];
  }

  uint32_t checks_;
  Hazards hazards_;
  Definedness definedness_;
  std::span<const Effects> effects_;
  bool idle_ = true;  // nothing is outstanding
  uint32_t smem_outstanding_ = 0;
  std::array<uint64_t, kVectorRegisters / 64 + 1> pending_vector_{};  // bits: look at pending_
  std::array<uint64_t, 2> pending_scalar_{};
  std::array<Pending, kVectorRegisters + kVectorPadding> pending_{};
};

}  // namespace hipdecode::sim
