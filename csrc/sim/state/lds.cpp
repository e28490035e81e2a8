// SPDX-License-Identifier: MIT
#include "lds.h"

#include <algorithm>
#include <bit>
#include <string>

namespace hipdecode::sim {
namespace {

constexpr uint32_t kDirect = uint32_t{1} << 31;  // Shadow::sequence counts loads, not LDS writes
constexpr int kReaderShift = 28;                 // Shadow::read_sequence: the wave above it
constexpr uint8_t kAtomic = 0x80;                // Shadow::writer: by atomics only
constexpr uint8_t kMany = 0x7f;                  // Shadow::writer: several waves, other bytes each

std::string hex(uint32_t value) {
  constexpr char kDigits[] = "0123456789abcdef";
  std::string digits;
  do {
    digits.insert(digits.begin(), kDigits[value & 15]);
    value >>= 4;
  } while (value != 0);
  return std::string("0x").append(digits);
}

}  // namespace

Lds::Lds(const Arch& arch, uint32_t checks) : arch_(arch), checks_(checks) {}

void Lds::start(int64_t bytes, int waves) {
  if (bytes > arch_.lds_bytes) {
    throw Fault("LDS: expected at most " + std::to_string(arch_.lds_bytes) + " bytes on " +
                std::string(arch_.name) + ", got " + std::to_string(bytes));
  }
  size_ = bytes;
  bytes_.assign(static_cast<size_t>(bytes), 0xcd);  // what nobody wrote must not look like zeros
  shadow_.assign(static_cast<size_t>(bytes + 3) / 4, Shadow{});
  progress_.assign(static_cast<size_t>(waves), Progress{});
  races_ = (checks_ & kCheckRaces) != 0 && waves > 1;
  epoch_ = 1;
}

void Lds::barrier() {
  ++epoch_;
  for (Progress& progress : progress_) {
    progress.loads_done_at_barrier = progress.loads_done;
    progress.lds_done_at_barrier = progress.lds_done;
  }
}

uint64_t Lds::inside(uint64_t lanes, const uint32_t* address, uint32_t bytes,
                     const char* verb) const {
  uint64_t outside = 0;
  const int64_t limit = size_ - static_cast<int64_t>(bytes);
  for (int lane = 0; lane < kLanes; ++lane) {
    outside |= static_cast<uint64_t>(static_cast<int64_t>(address[lane]) > limit) << lane;
  }
  outside &= lanes;
  if (outside != 0 && (checks_ & kCheckBounds) != 0) {
    int lane = std::countr_zero(outside);
    throw Fault("bounds: " + std::string(verb) + " " + std::to_string(bytes) + " bytes at LDS " +
                hex(address[lane]) + " (lane " + std::to_string(lane) +
                "), but the workgroup has " + std::to_string(size_) + " bytes");
  }
  return lanes & ~outside;
}

template <class Visit>
void Lds::each_dword(uint64_t lanes, const uint32_t* address, uint32_t bytes, Visit visit) {
  for (uint64_t left = lanes; left != 0; left &= left - 1) {
    uint32_t begin = address[std::countr_zero(left)];
    if (begin % 4 == 0 && bytes % 4 == 0) {
      Shadow* shadow = shadow_.data() + begin / 4;
      for (uint32_t i = 0; i < bytes / 4; ++i) visit(shadow[i], begin / 4 + i, 0xfu);
    } else {
      for (uint32_t at = begin; at < begin + bytes;) {
        uint32_t next = std::min((at / 4 + 1) * 4, begin + bytes);
        unsigned mask = ((1u << (next - at)) - 1) << at % 4;
        visit(shadow_[at / 4], at / 4, mask);
        at = next;
      }
    }
  }
}

void Lds::race(const char* kind, int wave, uint32_t dword, const char* verb, int other) const {
  throw Fault("races: " + std::string(kind) + " in LDS: wave " + std::to_string(wave) + " " + verb +
              " " + hex(dword * 4) + ", which wave " + std::to_string(other) + " " +
              (kind[0] == 'W' && kind[2] == 'R' ? "read" : "wrote") + " with no barrier between");
}

void Lds::check_finished(Shadow& shadow, int wave, uint32_t dword, const char* verb) {
  const int writer = shadow.writer & ~kAtomic;
  const uint32_t sequence = shadow.sequence & ~kDirect;
  const bool direct = (shadow.sequence & kDirect) != 0;
  if (writer != kMany && (checks_ & kCheckWaits) != 0) {
    const Progress& from = progress(writer);
    const bool own = writer == wave;
    // The LDS serves one wave in order; only its loads from memory need a wait of its own.
    const uint32_t done = own ? (direct ? from.loads_done : sequence)
                              : (direct ? from.loads_done_at_barrier : from.lds_done_at_barrier);
    if (sequence > done) {
      throw Fault("waits: wave " + std::to_string(wave) + " " + verb + " LDS " + hex(dword * 4) +
                  " before " + (direct ? "the load that goes there directly" : "the write") +
                  " of wave " + std::to_string(writer) + " is known to be done: s_waitcnt " +
                  (direct ? "vmcnt" : "lgkmcnt") + (own ? "" : " and then a barrier in that wave") +
                  " must come first");
    }
  }
  shadow.sequence = 0;
}

/// Overwriting what another wave's read before the barrier may still have to fetch.
void Lds::check_read(Shadow& shadow, int wave, uint32_t dword) {
  const auto reader = static_cast<int>(shadow.read_sequence >> kReaderShift);
  const uint32_t sequence = shadow.read_sequence & ((1u << kReaderShift) - 1);
  shadow.read_sequence = 0;
  if (reader == wave || (checks_ & kCheckWaits) == 0) return;
  if (sequence <= progress(reader).lds_done_at_barrier) return;
  throw Fault("waits: wave " + std::to_string(wave) + " overwrites LDS " + hex(dword * 4) +
              " before the read of wave " + std::to_string(reader) +
              " is known to be done: s_waitcnt lgkmcnt and then a barrier in that wave must come "
              "first");
}

inline void Lds::read_dword(Shadow& shadow, int wave, uint32_t dword, unsigned mask) {
  if (shadow.sequence != 0) [[unlikely]]
    check_finished(shadow, wave, dword, "reads");
  if ((shadow.initialised & mask) != mask && (checks_ & kCheckUninitialised) != 0) [[unlikely]] {
    throw Fault("uninitialised: wave " + std::to_string(wave) + " reads LDS " + hex(dword * 4) +
                ", which the workgroup never wrote");
  }
  if (!races_) return;
  if (shadow.write_epoch == epoch_ && (shadow.written & mask) != 0) {
    int writer = shadow.writer & ~kAtomic;
    if (writer != wave && writer != kMany) race("RAW", wave, dword, "reads", writer);
  }
  if (shadow.read_epoch != epoch_) {
    shadow.read_epoch = epoch_;
    shadow.readers = 0;
  }
  shadow.readers = static_cast<uint16_t>(shadow.readers | 1u << wave);
  shadow.read_sequence = (progress(wave).lds_issued + 1) | static_cast<uint32_t>(wave)
                                                               << kReaderShift;
}

inline void Lds::write_dword(Shadow& shadow, int wave, uint32_t dword, unsigned mask, Kind kind) {
  const uint8_t tag = static_cast<uint8_t>(wave | (kind == Kind::atomic ? kAtomic : 0));
  // What another wave writes at the same time is for the races to judge, not for the waits.
  const bool own = (shadow.writer & ~kAtomic) == wave;
  const bool in_order = own && (kind == Kind::direct || (shadow.sequence & kDirect) == 0);
  if (shadow.sequence != 0 && !in_order && (own || shadow.write_epoch != epoch_)) {
    check_finished(shadow, wave, dword, "overwrites");
  }
  if (shadow.read_sequence != 0 && shadow.read_epoch != epoch_) check_read(shadow, wave, dword);
  if (races_ && shadow.read_epoch == epoch_) {
    unsigned others = shadow.readers & ~(1u << wave);
    if (others != 0) race("WAR", wave, dword, "overwrites", std::countr_zero(others));
  }
  if (shadow.write_epoch != epoch_) {
    shadow.write_epoch = epoch_;
    shadow.written = 0;
    shadow.writer = tag;
  } else if (shadow.writer != tag) {
    const int writer = shadow.writer & ~kAtomic;
    const bool both_atomic = (shadow.writer & tag & kAtomic) != 0;
    if (races_ && writer != wave && !both_atomic && (shadow.written & mask) != 0 &&
        writer != kMany) {
      race("WAW", wave, dword, "overwrites", writer);
    }
    shadow.writer = writer == wave ? tag : static_cast<uint8_t>(kMany | (tag & shadow.writer));
  }
  shadow.written = (shadow.written | mask) & 0xf;
  shadow.initialised = (shadow.initialised | mask) & 0xf;
  const Progress& mine = progress(wave);
  shadow.sequence = kind == Kind::direct ? (mine.loads_issued + 1) | kDirect : mine.lds_issued + 1;
}

template <class Visit>
uint64_t Lds::access(uint64_t lanes, const uint32_t* address, uint32_t bytes, const char* verb,
                     Visit visit) {
  lanes = inside(lanes, address, bytes, verb);
  if (checks_ & (kCheckRaces | kCheckUninitialised | kCheckWaits))
    each_dword(lanes, address, bytes, visit);
  return lanes;
}

uint64_t Lds::reading(int wave, uint64_t lanes, const uint32_t* address, uint32_t bytes) {
  return access(lanes, address, bytes, "reads", [&](Shadow& shadow, uint32_t dword, unsigned mask) {
    read_dword(shadow, wave, dword, mask);
  });
}

uint64_t Lds::writing(int wave, uint64_t lanes, const uint32_t* address, uint32_t bytes) {
  return access(lanes, address, bytes, "writes",
                [&](Shadow& shadow, uint32_t dword, unsigned mask) {
                  write_dword(shadow, wave, dword, mask, Kind::plain);
                });
}

uint64_t Lds::updating(int wave, uint64_t lanes, const uint32_t* address, uint32_t bytes) {
  return access(lanes, address, bytes, "updates",
                [&](Shadow& shadow, uint32_t dword, unsigned mask) {
                  if ((shadow.initialised & mask) != mask && (checks_ & kCheckUninitialised) != 0) {
                    throw Fault("uninitialised: wave " + std::to_string(wave) + " updates LDS " +
                                hex(dword * 4) + ", which the workgroup never wrote");
                  }
                  write_dword(shadow, wave, dword, mask, Kind::atomic);
                });
}

uint64_t Lds::loading(int wave, uint64_t lanes, const uint32_t* address, uint32_t bytes) {
  return access(lanes, address, bytes, "loads to",
                [&](Shadow& shadow, uint32_t dword, unsigned mask) {
                  write_dword(shadow, wave, dword, mask, Kind::direct);
                });
}

}  // namespace hipdecode::sim
