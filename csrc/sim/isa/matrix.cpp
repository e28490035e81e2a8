// SPDX-License-Identifier: MIT
#include "matrix.h"

#include <bit>
#include <cstring>
#include <type_traits>

#include "conversions.h"

namespace hipdecode::sim {
namespace {

/// A small format to fp32: its exponent and mantissa bits are moved into place, which is the value
/// too small by a power of two. Exact, denormals included.
template <Format kFormat>
void widen(const std::array<uint32_t, kLanes>& codes, std::array<float, kLanes>& result) {
  constexpr uint32_t kSign = 1u << kFormat.bits(), kOnes = kSign - 1;
  constexpr uint32_t kInfinity = kOnes & ~((1u << kFormat.mantissa) - 1);
  constexpr int kSignShift = 31 - kFormat.bits();
  constexpr float kFactor =
      std::bit_cast<float>(static_cast<uint32_t>(127 + 127 - kFormat.bias) << 23);
  for (size_t lane = 0; lane < kLanes; ++lane) {
    const uint32_t code = codes[lane], magnitude = code & kOnes;
    const float value = std::bit_cast<float>(magnitude << (23 - kFormat.mantissa)) * kFactor;
    uint32_t bits = std::bit_cast<uint32_t>(value) | (code & kSign) << kSignShift;
    if constexpr (kFormat.specials == Specials::ieee) {
      bits |= magnitude >= kInfinity ? 0x7f800000u : 0u;
    } else if constexpr (kFormat.specials == Specials::fn) {
      bits |= magnitude == kOnes ? 0x7fc00000u : 0u;
    } else if constexpr (kFormat.specials == Specials::fnuz) {
      bits = (code & (kSign | kOnes)) == kSign ? 0x7fc00000u : bits;
    }
    result[lane] = std::bit_cast<float>(bits);
  }
}

/// Elements of kBits in order, which may straddle dwords (6 bits).
template <Format kFormat>
void unpack_small(const Lanes* registers, int elements, Elements<float>& result) {
  constexpr int kBits = kFormat.bits() + 1;
  std::array<uint32_t, kLanes> codes;
  for (int e = 0; e < elements; ++e) {
    const int dword = e * kBits / 32, shift = e * kBits % 32;
    const Lanes& low = registers[dword];
    if (shift + kBits > 32) {
      const Lanes& high = registers[dword + 1];
      for (int lane = 0; lane < kLanes; ++lane) {
        codes[static_cast<size_t>(lane)] = low[lane] >> shift | high[lane] << (32 - shift);
      }
    } else {
      for (int lane = 0; lane < kLanes; ++lane) {
        codes[static_cast<size_t>(lane)] = low[lane] >> shift;
      }
    }
    widen<kFormat>(codes, result.at[static_cast<size_t>(e)]);
  }
}

void unpack_single(const Lanes* registers, int elements, uint32_t rounding, uint32_t mask,
                   Elements<float>& result) {
  for (int e = 0; e < elements; ++e) {
    for (int lane = 0; lane < kLanes; ++lane) {
      const uint32_t bits = registers[e][lane];
      const uint32_t odd = rounding == 0 ? 0 : rounding + (bits >> 13 & 1);
      result.at[static_cast<size_t>(e)][static_cast<size_t>(lane)] =
          std::bit_cast<float>((bits + odd) & mask);
    }
  }
}

void unpack_bfloat(const Lanes* registers, int elements, Elements<float>& result) {
  for (int e = 0; e < elements; e += 2) {
    const Lanes& from = registers[e / 2];
    auto& low = result.at[static_cast<size_t>(e)];
    auto& high = result.at[static_cast<size_t>(e + 1)];
    for (int lane = 0; lane < kLanes; ++lane) {
      const auto l = static_cast<size_t>(lane);
      low[l] = std::bit_cast<float>(from[lane] << 16);
      high[l] = std::bit_cast<float>(from[lane] & 0xffff0000);
    }
  }
}

// Some columns of one row of the result, consecutive lanes of a register: the host's widest vector.
// Eight rows of them leave registers for the operands.
constexpr int kColumns = __BIGGEST_ALIGNMENT__ / 4, kRows = 8;
template <class T>
struct RowOf {
  using type [[gnu::vector_size(sizeof(T) * kColumns)]] = T;
};
template <class T>
using Row = typename RowOf<T>::type;

/// Adds the products of one group of lanes to kRows x kColumns sums, which stay in registers while
/// k runs. Products of 16-bit and smaller elements are exact in fp32.
template <class T>
void accumulate(const T* a, const T* b, int elements, Row<T> (&sum)[kRows]) {
  for (int e = 0; e < elements; ++e, a += kLanes, b += kLanes) {
    Row<T> b_row;
    std::memcpy(&b_row, b, sizeof(b_row));
    for (int row = 0; row < kRows; ++row) sum[row] += a[row] * b_row;
  }
}

/// The lanes that hold row `row` of a block: register and first lane.
struct Place {
  int index, lane;
};
template <int kSize>
constexpr Place place_of(int row) {
  constexpr int kGroups = kLanes / kSize;  // of lanes: each has 4 consecutive rows
  return {row / (4 * kGroups) * 4 + row % 4, row / 4 % kGroups * kSize};
}

/// One block: `groups` groups of lanes from first_group on hold A; those of B lie b_shift further.
template <int kSize, class T>
void multiply_block(const Elements<T>& a, const Elements<T>& b, int elements, int first_group,
                    int groups, int b_shift, Lanes* result) {
  for (int corner = 0; corner < kSize * kSize; corner += kRows * kColumns) {
    const int first = corner / (kRows * kSize) * kRows, column = corner / kRows % kSize;
    Row<T> sum[kRows];
    for (int row = 0; row < kRows; ++row) {
      const Place place = place_of<kSize>(first + row);
      std::memcpy(&sum[row], &result[place.index].at[static_cast<size_t>(place.lane + column)],
                  sizeof(sum[row]));
    }
    for (int group = first_group; group < first_group + groups; ++group) {
      accumulate(a.at[0].data() + group * kSize + first,
                 b.at[0].data() + (group + b_shift) * kSize + column, elements, sum);
    }
    for (int row = 0; row < kRows; ++row) {
      const Place place = place_of<kSize>(first + row);
      std::memcpy(&result[place.index].at[static_cast<size_t>(place.lane + column)], &sum[row],
                  sizeof(sum[row]));
    }
  }
}

}  // namespace

void unpack(Element element, const Lanes* registers, int elements, bool fnuz,
            Elements<float>& result) {
  switch (element) {
    case Element::f32:
      return unpack_single(registers, elements, 0, ~0u, result);
    case Element::xf32:  // 10 bits of mantissa, rounded to nearest even
      return unpack_single(registers, elements, 0xfff, ~0x1fffu, result);
    case Element::f16:
      return unpack_small<kHalf>(registers, elements, result);
    case Element::bf16:
      return unpack_bfloat(registers, elements, result);
    case Element::fp8:
      return fnuz ? unpack_small<kE4m3fnuz>(registers, elements, result)
                  : unpack_small<kE4m3fn>(registers, elements, result);
    case Element::bf8:
      return fnuz ? unpack_small<kE5m2fnuz>(registers, elements, result)
                  : unpack_small<kE5m2>(registers, elements, result);
    case Element::fp6:
      return unpack_small<kE2m3>(registers, elements, result);
    case Element::bf6:
      return unpack_small<kE3m2>(registers, elements, result);
    case Element::fp4:
      return unpack_small<kE2m1>(registers, elements, result);
    case Element::i8:
      break;
  }
  throw Fault("matrix: expected floating-point elements, got integers");
}

void unpack_bytes(const Lanes* registers, int elements, Elements<uint32_t>& result) {
  for (int e = 0; e < elements; ++e) {
    for (int lane = 0; lane < kLanes; ++lane) {
      result.at[static_cast<size_t>(e)][static_cast<size_t>(lane)] =
          static_cast<uint32_t>(static_cast<int8_t>(registers[e / 4][lane] >> e % 4 * 8));
    }
  }
}

void apply_scales(const Lanes& codes, int byte, int elements, Elements<float>& values) {
  std::array<float, kLanes> factor;
  bool any = false;
  for (int lane = 0; lane < kLanes; ++lane) {
    const uint32_t code = codes[lane] >> byte * 8 & 0xff;
    // 2^-127 is a denormal: its exponent field is 0.
    const uint32_t bits = code == 0 ? 0x400000u : code == 255 ? 0x7fc00000u : code << 23;
    factor[static_cast<size_t>(lane)] = std::bit_cast<float>(bits);
    any |= code != 127;
  }
  if (!any) return;
  for (int e = 0; e < elements; ++e) {
    auto& row = values.at[static_cast<size_t>(e)];
    for (size_t lane = 0; lane < kLanes; ++lane) row[lane] *= factor[lane];
  }
}

template <int kSize, class T>
void multiply(const Elements<T>& a, const Elements<T>& b, int elements, Lanes* result) {
  multiply_block<kSize>(a, b, elements, 0, kLanes / kSize, 0, result);
}

template <int kSize, int kBlocks, class T>
void multiply_blocks(const Elements<T>& a, const Elements<T>& b, int elements, int cbsz, int abid,
                     Lanes* result) {
  constexpr int kRegisters = kSize == 4 ? 0 : kSize * kSize / kLanes;  // of one block
  for (int block = 0; block < kBlocks; ++block) {
    const int a_block = cbsz == 0 ? block : (block >> cbsz << cbsz) + abid;
    if constexpr (kSize == 4) {
      for (int row = 0; row < kSize; ++row) {
        for (int column = 0; column < kSize; ++column) {
          const auto lane = static_cast<size_t>(block * kSize + column);
          T sum = std::bit_cast<T>(result[row].at[lane]);
          for (int e = 0; e < elements; ++e) {
            const auto& from = a.at[static_cast<size_t>(e)];
            sum += from[static_cast<size_t>(a_block * kSize + row)] *
                   b.at[static_cast<size_t>(e)][lane];
          }
          result[row].at[lane] = std::bit_cast<uint32_t>(sum);
        }
      }
    } else {
      multiply_block<kSize>(a, b, elements, a_block, 1, block - a_block,
                            result + block * kRegisters);
    }
  }
}

template void multiply<16, float>(const Elements<float>&, const Elements<float>&, int, Lanes*);
template void multiply<32, float>(const Elements<float>&, const Elements<float>&, int, Lanes*);
template void multiply<16, uint32_t>(const Elements<uint32_t>&, const Elements<uint32_t>&, int,
                                     Lanes*);
template void multiply<32, uint32_t>(const Elements<uint32_t>&, const Elements<uint32_t>&, int,
                                     Lanes*);
template void multiply_blocks<4, 16, float>(const Elements<float>&, const Elements<float>&, int,
                                            int, int, Lanes*);
template void multiply_blocks<16, 4, float>(const Elements<float>&, const Elements<float>&, int,
                                            int, int, Lanes*);
template void multiply_blocks<32, 2, float>(const Elements<float>&, const Elements<float>&, int,
                                            int, int, Lanes*);
template void multiply_blocks<4, 16, uint32_t>(const Elements<uint32_t>&, const Elements<uint32_t>&,
                                               int, int, int, Lanes*);
template void multiply_blocks<16, 4, uint32_t>(const Elements<uint32_t>&, const Elements<uint32_t>&,
                                               int, int, int, Lanes*);
template void multiply_blocks<32, 2, uint32_t>(const Elements<uint32_t>&, const Elements<uint32_t>&,
                                               int, int, int, Lanes*);

}  // namespace hipdecode::sim
