// SPDX-License-Identifier: MIT
#include "metadata.h"

#include <bit>
#include <cstring>
#include <stdexcept>

namespace hipdecode::sim {
namespace {

constexpr int kMaxDepth = 16;

struct Value {
  enum class Kind : uint8_t { nothing, number, text, list, map } kind = Kind::nothing;
  int64_t number = 0;
  std::string text;
  std::vector<Value> items;              // of a list
  std::map<std::string, Value> entries;  // of a map whose keys are texts

  const Value& operator[](const std::string& key) const {
    static const Value none;
    const auto found = entries.find(key);
    return found == entries.end() ? none : found->second;
  }
};

/// msgpack, as much of it as LLVM writes: no extension types.
class Reader {
 public:
  explicit Reader(std::span<const uint8_t> bytes) : bytes_(bytes) {}

  Value value(int depth = 0) {
    if (depth > kMaxDepth) fail();
    const uint8_t tag = byte();
    if (tag < 0x80) return number(tag);
    if (tag < 0x90) return map(tag & 15, depth);
    if (tag < 0xa0) return list(tag & 15, depth);
    if (tag < 0xc0) return text(tag & 31);
    if (tag >= 0xe0) return number(static_cast<int8_t>(tag));
    switch (tag) {
      case 0xc0:
        return {};
      case 0xc2:
      case 0xc3:
        return number(tag & 1);
      case 0xc4:
      case 0xd9:
        return text(big_endian(1));
      case 0xc5:
      case 0xda:
        return text(big_endian(2));
      case 0xc6:
      case 0xdb:
        return text(big_endian(4));
      case 0xca:
        big_endian(4);
        return {};
      case 0xcb:
        big_endian(8);
        return {};
      case 0xcc:
      case 0xcd:
      case 0xce:
      case 0xcf:
        return number(static_cast<int64_t>(big_endian(1 << (tag - 0xcc))));
      case 0xd0:
        return number(static_cast<int8_t>(big_endian(1)));
      case 0xd1:
        return number(static_cast<int16_t>(big_endian(2)));
      case 0xd2:
        return number(static_cast<int32_t>(big_endian(4)));
      case 0xd3:
        return number(static_cast<int64_t>(big_endian(8)));
      case 0xdc:
        return list(big_endian(2), depth);
      case 0xdd:
        return list(big_endian(4), depth);
      case 0xde:
        return map(big_endian(2), depth);
      case 0xdf:
        return map(big_endian(4), depth);
      default:
        fail();
    }
  }

 private:
  [[noreturn]] static void fail() {
    throw std::runtime_error(
        "kernel metadata: expected a msgpack map, got a note that ends early or holds another "
        "type; rebuild the code object");
  }

  uint8_t byte() {
    if (at_ >= bytes_.size()) fail();
    return bytes_[at_++];
  }
  uint64_t big_endian(int count) {
    uint64_t result = 0;
    for (int i = 0; i < count; ++i) result = result << 8 | byte();
    return result;
  }
  static Value number(int64_t number) {
    Value result;
    result.kind = Value::Kind::number;
    result.number = number;
    return result;
  }
  Value text(uint64_t size) {
    if (size > bytes_.size() - at_) fail();
    Value result;
    result.kind = Value::Kind::text;
    result.text.assign(reinterpret_cast<const char*>(bytes_.data()) + at_, size);
    at_ += size;
    return result;
  }
  Value list(uint64_t size, int depth) {
    Value result;
    result.kind = Value::Kind::list;
    for (uint64_t i = 0; i < size; ++i) result.items.push_back(value(depth + 1));
    return result;
  }
  Value map(uint64_t size, int depth) {
    Value result;
    result.kind = Value::Kind::map;
    for (uint64_t i = 0; i < size; ++i) {
      const Value key = value(depth + 1);
      result.entries[key.text] = value(depth + 1);
    }
    return result;
  }

  std::span<const uint8_t> bytes_;
  size_t at_ = 0;
};

KernelMetadata kernel_metadata(const Value& from) {
  KernelMetadata result{from[".name"].text, from[".symbol"].text, {}, {}};
  for (const auto& [key, value] : from.entries)
    if (value.kind == Value::Kind::number) result.numbers[key] = value.number;
  for (const Value& argument : from[".args"].items)
    result.arguments.push_back({argument[".name"].text, argument[".value_kind"].text,
                                argument[".offset"].number, argument[".size"].number});
  return result;
}

}  // namespace

std::vector<KernelMetadata> read_metadata(std::span<const uint8_t> note) {
  std::vector<KernelMetadata> result;
  const Value root = Reader(note).value();
  for (const Value& kernel : root["amdhsa.kernels"].items)
    result.push_back(kernel_metadata(kernel));
  return result;
}

}  // namespace hipdecode::sim
