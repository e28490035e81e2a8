// SPDX-License-Identifier: MIT
// Sparse decode of DeepSeek-V4 keys in the structure that vllm-project/vllm pull request 43306
// tells of, to be counted beside ours: a block of four waves for 16 heads of a token, 32 keys a
// step; all waves gather and widen; wave 0 makes the scores with 16x16x32 products and shares them;
// every wave repeats the softmax and multiplies the values of 8 of the 32 tiles of 16 columns. What
// the description leaves open is done in the cheapest way known here. Slots that are none count for
// nothing, as the contract asks; there is no extra cache, no sink and no split.
#include <cstdint>

using Bf16x8 = __bf16 __attribute__((ext_vector_type(8)));
using Bf16x2 = __bf16 __attribute__((ext_vector_type(2)));
using F32x4 = float __attribute__((ext_vector_type(4)));
using F32x2 = float __attribute__((ext_vector_type(2)));
using U32x4 = uint32_t __attribute__((ext_vector_type(4)));
using S16x4 = short __attribute__((ext_vector_type(4)));
template <class T>
using Lds = __attribute__((address_space(3))) T*;
#define DEVICE static __attribute__((device)) inline __attribute__((always_inline))

constexpr int kStep = 32, kColumns = 512, kLatent = 448, kPitch = kColumns * 2 + 16;
constexpr int kWaves = 4, kTiles = kColumns / 16 / kWaves, kScorePitch = kStep + 4;

__attribute__((shared)) char keys_lds[kStep * kPitch];
__attribute__((shared)) float scores_lds[16 * kScorePitch];
__attribute__((shared)) int known_lds[kStep];
__attribute__((shared)) float fades_lds[kWaves * 16];

struct Arguments {
  const char *q, *cache;
  const int32_t* slots;
  char* out;
  int64_t block_bytes;
  int32_t count, block_bits, num_slots;
  float scale_log2;
};

DEVICE void meet() {
  __builtin_amdgcn_fence(__ATOMIC_RELEASE, "workgroup");
  __builtin_amdgcn_s_barrier();
  __builtin_amdgcn_fence(__ATOMIC_ACQUIRE, "workgroup");
}

DEVICE float over_groups(float x, bool largest) {
  const auto both = [&](uint32_t a, uint32_t b) {
    const float p = __builtin_bit_cast(float, a), q = __builtin_bit_cast(float, b);
    return largest ? __builtin_fmaxf(p, q) : p + q;
  };
  const auto bits = __builtin_bit_cast(uint32_t, x);
  const auto halves = __builtin_amdgcn_permlane32_swap(bits, bits, false, false);
  const auto once = __builtin_bit_cast(uint32_t, both(halves[0], halves[1]));
  const auto rows = __builtin_amdgcn_permlane16_swap(once, once, false, false);
  return both(rows[0], rows[1]);
}

DEVICE uint32_t widen(uint32_t codes, bool high, float scale) {
  const F32x2 pair = high ? __builtin_amdgcn_cvt_pk_f32_fp8(codes, true)
                          : __builtin_amdgcn_cvt_pk_f32_fp8(codes, false);
  const F32x2 wide = pair * scale;
  return __builtin_bit_cast(uint32_t,
                            Bf16x2{static_cast<__bf16>(wide.x), static_cast<__bf16>(wide.y)});
}

/// Eight lanes have a key: its units of 16 bytes go round them.
DEVICE void gather(const Arguments& a, int first, int thread) {
  const int key = thread / 8, part = thread % 8;
  const int slot = first + key < a.count ? a.slots[first + key] : -1;
  const bool known = static_cast<uint32_t>(slot) < static_cast<uint32_t>(a.num_slots);
  if (part == 0) known_lds[key] = known;
  char* row = keys_lds + key * kPitch;
  if (!known) {
#pragma unroll
    for (int i = 0; i < 8; ++i) *reinterpret_cast<U32x4*>(row + 128 * i + 16 * part) = U32x4{};
    return;
  }
  const int size = 1 << a.block_bits, place = slot & (size - 1);
  const char* block = a.cache + (slot >> a.block_bits) * a.block_bytes;
  const char* data = block + place * 576;
  const auto* scales = reinterpret_cast<const uint8_t*>(block + size * 576 + place * 8);
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const int unit = part + 8 * i;
    if (unit >= kLatent / 16) break;
    const auto codes = *reinterpret_cast<const U32x4*>(data + 16 * unit);
    const float scale = __builtin_bit_cast(float, uint32_t(scales[unit / 4]) << 23);
    auto* to = reinterpret_cast<U32x4*>(row + 32 * unit);
    to[0] = U32x4{widen(codes.x, false, scale), widen(codes.x, true, scale),
                  widen(codes.y, false, scale), widen(codes.y, true, scale)};
    to[1] = U32x4{widen(codes.z, false, scale), widen(codes.z, true, scale),
                  widen(codes.w, false, scale), widen(codes.w, true, scale)};
  }
  *reinterpret_cast<U32x4*>(row + 2 * kLatent + 16 * part) =
      *reinterpret_cast<const U32x4*>(data + kLatent + 16 * part);
}

/// Wave 0: scores of 16 heads and 32 keys, heads across lanes.
DEVICE void score(const Bf16x8 (&q)[kColumns / 32], float scale, int lane) {
#pragma unroll
  for (int tile = 0; tile < kStep / 16; ++tile) {
    F32x4 sum = {};
    const char* row = keys_lds + (16 * tile + lane % 16) * kPitch + lane / 16 * 16;
#pragma unroll
    for (int k = 0; k < kColumns / 32; ++k)
      sum = __builtin_amdgcn_mfma_f32_16x16x32_bf16(*reinterpret_cast<const Bf16x8*>(row + 64 * k),
                                                    q[k], sum, 0, 0, 0);
    const auto* known = known_lds + 16 * tile + lane / 16 * 4;
    auto* to = scores_lds + lane % 16 * kScorePitch + 16 * tile + lane / 16 * 4;
    F32x4 scores;
#pragma unroll
    for (int i = 0; i < 4; ++i) scores[i] = known[i] ? sum[i] * scale : -1e30f;
    *reinterpret_cast<F32x4*>(to) = scores;
  }
}

/// Keys of 16 columns, 8 of them a lane, from rows of keys.
DEVICE Bf16x8 values(int column, int lane) {
  const int key = lane / 16 * 8 + lane % 16 / 4;
  const char* from = keys_lds + key * kPitch + 2 * column + lane % 4 * 8;
  const auto low = __builtin_amdgcn_ds_read_tr16_b64_v4i16((Lds<S16x4>)from);
  const auto high = __builtin_amdgcn_ds_read_tr16_b64_v4i16((Lds<S16x4>)(from + 4 * kPitch));
  const auto both = __builtin_shufflevector(low, high, 0, 1, 2, 3, 4, 5, 6, 7);
  return __builtin_bit_cast(Bf16x8, both);
}

struct Softmax {
  float top = -1e30f, sum = 0;
};

/// Weights of a lane's 8 keys of head lane % 16; values so far fade where a maximum has grown.
DEVICE Bf16x8 soften(Softmax& s, F32x4 (&acc)[kTiles], int wave, int lane) {
  const auto* from =
      reinterpret_cast<const F32x4*>(scores_lds + lane % 16 * kScorePitch + lane / 16 * 8);
  const F32x4 a = from[0], b = from[1];
  const float x[8] = {a.x, a.y, a.z, a.w, b.x, b.y, b.z, b.w};
  float top = s.top;
#pragma unroll
  for (const float one : x) top = __builtin_fmaxf(top, one);
  top = over_groups(top, true);
  if (__builtin_amdgcn_ballot_w64(top > s.top) != 0) {
    const float fade = __builtin_amdgcn_exp2f(s.top - top);
    s.sum *= fade;
    s.top = top;
    float* mine = fades_lds + wave * 16;
    if (lane < 16) mine[lane] = fade;
    __builtin_amdgcn_fence(__ATOMIC_ACQ_REL, "wavefront");
    const auto fades = *reinterpret_cast<const F32x4*>(mine + lane / 16 * 4);
#pragma unroll
    for (F32x4& tile : acc) tile *= fades;
  }
  float sum = 0;
  Bf16x8 weights;
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    const float weight = __builtin_amdgcn_exp2f(x[i] - s.top);
    sum += weight;
    weights[i] = static_cast<__bf16>(weight);
  }
  s.sum += over_groups(sum, false);
  return weights;
}

extern "C" __attribute__((global, amdgpu_flat_work_group_size(256, 256))) void sparse_structure(
    Arguments a) {
  const int thread = __builtin_amdgcn_workitem_id_x(), lane = thread % 64;
  const int wave = __builtin_amdgcn_readfirstlane(thread / 64);
  const int head = __builtin_amdgcn_workgroup_id_x() * 16;
  Bf16x8 q[kColumns / 32];
  const char* row = a.q + (head + lane % 16) * kColumns * 2 + lane / 16 * 16;
#pragma unroll
  for (int k = 0; k < kColumns / 32; ++k)
    if (wave == 0) q[k] = *reinterpret_cast<const Bf16x8*>(row + 64 * k);
  F32x4 acc[kTiles] = {};
  Softmax softmax;
  for (int first = 0; first < a.count; first += kStep) {
    gather(a, first, thread);
    meet();
    if (wave == 0) score(q, a.scale_log2, lane);
    meet();
    const Bf16x8 weights = soften(softmax, acc, wave, lane);
#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile)
      acc[tile] = __builtin_amdgcn_mfma_f32_16x16x32_bf16(
          weights, values((wave * kTiles + tile) * 16, lane), acc[tile], 0, 0, 0);
    meet();
  }
  float* mine = fades_lds + wave * 16;
  if (lane < 16) mine[lane] = 1 / softmax.sum;
  __builtin_amdgcn_fence(__ATOMIC_ACQ_REL, "wavefront");
  const auto shares = *reinterpret_cast<const F32x4*>(mine + lane / 16 * 4);
#pragma unroll
  for (int tile = 0; tile < kTiles; ++tile)
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int64_t at = (head + lane / 16 * 4 + i) * kColumns + (wave * kTiles + tile) * 16;
      reinterpret_cast<__bf16*>(a.out)[at + lane % 16] =
          static_cast<__bf16>(acc[tile][i] * shares[i]);
    }
}
