// SPDX-License-Identifier: MIT
#pragma once

#include <array>
#include <cstdint>
#include <span>

#include "arch.h"
#include "effects.h"
#include "options.h"
#include "wave.h"

namespace hipdecode::sim {

/// Watches the registers of one wave: values that a load has not been waited for, lanes that were
/// never written, and results that the hardware does not protect (hazards). The scheduler calls
/// before() and after() around each instruction; nobody else needs to look at Wave::pending.
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
  struct Recent {  // one of the last instructions
    const Effects* effects = nullptr;
    uint64_t clock = 0;  // wait states before it
  };
  struct Matrix {  // the last MFMA that wrote a register, or read it as its addend
    uint64_t written = 0, added = 0;  // its clock + 1; 0: none
    uint16_t first = 0, count = 0;    // of its destination
    uint8_t passes = 0, added_passes = 0;
    bool xdl = false;
  };
  struct Pending {
    uint32_t load = 0, lds = 0;  // sequence numbers; 0: none
  };

  void check_waits(const Context& context, const Registers& registers, bool reads,
                   const Effects& effects);
  void check_scalar_waits(const Context& context, const Registers& registers, bool reads);
  void check_written(const Context& context, const Registers& registers, const Effects& effects);
  void check_matrix(const Context& context, const Instruction& instruction,
                    const Effects& effects);
  void check_matrix_read(const Wave& wave, const Registers& registers, const Effects& effects,
                         bool addend);
  void check_matrix_write(const Wave& wave, const Registers& registers, const Effects& effects);
  void check_recent(const Effects& effects);
  void copy_written(Wave& wave, const Effects& effects) const;
  uint64_t since(uint64_t clock_after) const { return clock_ - clock_after; }
  const Effects& of(const Instruction& instruction) const {
    return effects_[static_cast<size_t>(instruction.index)];
  }

  uint32_t checks_;
  const Arch& arch_;
  std::span<const Effects> effects_;
  uint64_t clock_ = 0;  // wait states so far
  uint32_t smem_outstanding_ = 0;
  std::array<Pending, kVectorRegisters> pending_{};
  std::array<Matrix, kVectorRegisters> matrix_{};
  uint64_t last_matrix_ = 0;  // clock after the last MFMA
  std::array<Recent, 8> recent_{};
  unsigned next_recent_ = 0;
};

}  // namespace hipdecode::sim
