// SPDX-License-Identifier: MIT
#include "checks.h"

#include <algorithm>
#include <bit>
#include <string>

#include "../state/lds.h"

namespace hipdecode::sim {
namespace {

int slot_of(const Wave& wave, const Registers& registers, int i) {
  return registers.first + i +
         (registers.where == Where::accumulator ? wave.accumulator_offset : 0);
}

template <size_t N>
void set_bit(std::array<uint64_t, N>& bits, int slot) {
  bits[static_cast<size_t>(slot) / 64] |= uint64_t{1} << slot % 64;
}

template <size_t N>
void clear_bit(std::array<uint64_t, N>& bits, int slot) {
  bits[static_cast<size_t>(slot) / 64] &= ~(uint64_t{1} << slot % 64);
}

template <size_t N>
bool has_bit(const std::array<uint64_t, N>& bits, int slot) {
  return bits[static_cast<size_t>(slot) / 64] >> slot % 64 & 1;
}

}  // namespace

Checks::Checks(uint32_t checks, const Arch& arch, std::span<const Effects> effects)
    : checks_(checks), hazards_(arch), effects_(effects) {}

void Checks::before(const Context& context, const Instruction& instruction) {
  if ((checks_ & (kCheckWaits | kCheckUninitialised | kCheckHazards)) == 0) return;
  if (context.wave.relative_registers()) return;  // the operands do not say which registers
  const Effects& effects = of(instruction);
  if (!idle_ && (checks_ & kCheckWaits) != 0) {
    for (int i = 0; i < effects.read_count; ++i) {
      check_waits(context, effects.reads[static_cast<size_t>(i)], true, effects);
    }
    for (int i = 0; i < effects.write_count; ++i) {
      check_waits(context, effects.writes[static_cast<size_t>(i)], false, effects);
    }
  }
  if ((checks_ & kCheckUninitialised) != 0 && effects.flow != Flow::none) {
    definedness_.before(context, instruction, effects);
  }
  if (checks_ & kCheckHazards) hazards_.before(context.wave, effects);
}

void Checks::check_waits(const Context& context, const Registers& registers, bool reads,
                         const Effects& effects) {
  if (registers.where == Where::scalar) return check_scalar_waits(registers, reads);
  const Wave& wave = context.wave;
  const Lds::Progress& progress = context.lds.progress(wave.index);
  for (int i = 0; i < registers.count; ++i) {
    const int slot = slot_of(wave, registers, i);
    if (!has_bit(pending_vector_, slot)) continue;
    const Pending& pending = pending_[static_cast<size_t>(slot)];
    const bool load = pending.load > progress.loads_done;
    const bool lds = pending.lds > progress.lds_done;
    if (!load && !lds) {
      clear_bit(pending_vector_, slot);
      continue;
    }
    // Loads of one kind land in the order of their issue: overwriting is safe among them.
    if (!reads && (!load || (effects.vmem && !effects.flat)) && (!lds || effects.lds)) continue;
    throw Fault("waits: " + name_of(registers, i) + " is " + (reads ? "read" : "overwritten") +
                " before the load to it is known to be done: " + "s_waitcnt " +
                (load ? "vmcnt" : "lgkmcnt") + " must come first, to leave at most " +
                std::to_string(load ? progress.loads_issued - pending.load
                                    : progress.lds_issued - pending.lds) +
                " outstanding");
  }
}

void Checks::check_scalar_waits(const Registers& registers, bool reads) const {
  if (smem_outstanding_ == 0) return;
  for (int i = 0; i < registers.count; ++i) {
    const int number = registers.first + i;
    if (number >= kExec || !has_bit(pending_scalar_, number)) continue;
    throw Fault("waits: " + name_of(registers, i) + " is " + (reads ? "read" : "overwritten") +
                " before the scalar load to it is known to be done: s_waitcnt lgkmcnt(0) must "
                "come first (scalar loads return in any order)");
  }
}

void Checks::after(const Context& context, const Instruction& instruction) {
  const Effects& effects = of(instruction);
  Wave& wave = context.wave;
  if (checks_ & kCheckHazards) hazards_.after(wave, effects);
  if (checks_ & kCheckUninitialised) definedness_.after(wave, instruction, effects);
  if (effects.vmem || effects.lds) {
    Lds::Progress& progress = context.lds.progress(wave.index);
    Pending pending;
    if (effects.vmem) pending.load = ++progress.loads_issued;
    if (effects.lds || effects.flat) pending.lds = ++progress.lds_issued;
    idle_ = false;
    for (int i = 0; i < effects.write_count; ++i) {
      const Registers& registers = effects.writes[static_cast<size_t>(i)];
      for (int j = 0; j < registers.count; ++j) {
        const int slot = slot_of(wave, registers, j);
        set_bit(pending_vector_, slot);
        pending_[static_cast<size_t>(slot)] = pending;
      }
    }
  } else if (effects.smem) {
    ++smem_outstanding_;
    idle_ = false;
    for (int i = 0; i < effects.write_count; ++i) {
      const Registers& registers = effects.writes[static_cast<size_t>(i)];
      for (int j = 0; j < registers.count; ++j) set_bit(pending_scalar_, registers.first + j);
    }
  }
}

void Checks::wait(const Context& context, int vmcnt, int lgkmcnt) {
  Lds::Progress& progress = context.lds.progress(context.wave.index);
  const auto at_most = [](uint32_t issued, uint32_t& done, int outstanding) {
    const auto left = static_cast<uint32_t>(outstanding);
    if (issued > left) done = std::max(done, issued - left);
  };
  if (vmcnt >= 0) at_most(progress.loads_issued, progress.loads_done, vmcnt);
  if (lgkmcnt >= 0) at_most(progress.lds_issued, progress.lds_done, lgkmcnt);
  if (lgkmcnt == 0) {
    smem_outstanding_ = 0;
    pending_scalar_ = {};
  }
  idle_ = smem_outstanding_ == 0 && progress.loads_done == progress.loads_issued &&
          progress.lds_done == progress.lds_issued;
  if (idle_) pending_vector_ = {};
}

}  // namespace hipdecode::sim
