// SPDX-License-Identifier: MIT
#pragma once

#include <array>
#include <cstdint>

#include "../state/wave.h"
#include "effects.h"

namespace hipdecode::sim {

/// Which lanes of which registers hold a value. Arithmetic on lanes that do not is no error: code
/// computes with the upper half of a pair, or with lanes of the path not taken, and drops the
/// result. Its result does not hold a value either. It is an error where it matters: in an
/// address, in what is stored, in a compare, in a matrix product, in what becomes a scalar.
class Definedness {
 public:
  /// Faults if a value that matters is missing; notes what the result will be.
  void before(const Context& context, const Instruction& instruction, const Effects& effects);
  /// Takes the mark off the lanes of the result that hold no value.
  void after(Wave& wave, const Instruction& instruction, const Effects& effects) const;

 private:
  std::array<uint64_t, 2> defined_{};  // of the result's dword 0, and of the others
};

}  // namespace hipdecode::sim
