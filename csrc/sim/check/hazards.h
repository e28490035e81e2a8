// SPDX-License-Identifier: MIT
#pragma once

#include <array>
#include <cstdint>

#include "../state/arch.h"
#include "../state/wave.h"
#include "effects.h"

namespace hipdecode::sim {

/// The dependences that the hardware leaves to the program: so many wait states must lie between
/// two instructions. Every instruction is one wait state, s_nop N is N + 1. The distances are
/// those that LLVM keeps for gfx942 and gfx950 (GCNHazardRecognizer.cpp), which also has the ISA
/// guides' table "Manually Inserted Wait States".
class Hazards {
 public:
  explicit Hazards(const Arch& arch) : gfx950_(arch.gfx950()) {}

  /// Faults if `effects` comes too early.
  void before(const Wave& wave, const Effects& effects);
  void after(const Wave& wave, const Effects& effects);

 private:
  struct Recent {  // one of the last instructions
    const Effects* effects = nullptr;
    uint64_t end = 0;  // clock_ after it
  };
  struct Matrix {  // the last MFMA that wrote a register, or read it as its addend
    uint64_t written = 0, added = 0;  // clock_ after it; 0: none
    uint16_t first = 0, count = 0;    // of its destination
    uint8_t passes = 0, added_passes = 0;
    bool xdl = false;
  };

  void check_matrix(const Wave& wave, const Effects& effects);
  void check_matrix_read(const Wave& wave, const Registers& registers, const Effects& effects,
                         bool addend);
  void check_matrix_write(const Wave& wave, const Registers& registers);
  void check_recent(const Effects& effects);
  int result_distance(const Matrix& matrix) const;
  int addend_distance(const Matrix& matrix, const Registers& addend, int slot,
                      const Effects& reader) const;

  bool gfx950_;
  uint64_t clock_ = 0;       // wait states so far
  uint64_t matrix_end_ = 0;  // clock_ after the last MFMA
  bool any_matrix_ = false;
  std::array<Matrix, kVectorRegisters + kVectorPadding> matrix_{};
  std::array<Recent, 8> recent_{};
  unsigned next_ = 0;
};

}  // namespace hipdecode::sim
