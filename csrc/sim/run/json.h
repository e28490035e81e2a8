// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>
#include <cstdio>
#include <string>
#include <string_view>

namespace hipdecode::sim {

/// Builds JSON text: `Json().add("a", 1).add("b", "x").object()`. Values that are JSON themselves
/// are given to raw().
class Json {
 public:
  Json& raw(std::string_view key, std::string_view json) {
    if (!text_.empty()) text_ += ", ";
    text_ += quote(key);
    text_ += ": ";
    text_ += json;
    return *this;
  }
  Json& add(std::string_view key, int64_t value) { return raw(key, std::to_string(value)); }
  Json& add(std::string_view key, std::string_view value) { return raw(key, quote(value)); }
  std::string object() const { return std::string("{").append(text_).append("}"); }

  static std::string quote(std::string_view text) {
    std::string result = "\"";
    for (const char letter : text) {
      if (letter == '"' || letter == '\\') result += '\\';
      if (static_cast<unsigned char>(letter) < 0x20) {
        char escaped[8];
        std::snprintf(escaped, sizeof escaped, "\\u%04x", static_cast<unsigned>(letter));
        result += escaped;
      } else {
        result += letter;
      }
    }
    return result + "\"";
  }

 private:
  std::string text_;
};

/// "[a, b]" of what `describe` makes of each item.
template <class Items, class Describe>
std::string json_list(const Items& items, Describe describe) {
  std::string result = "[";
  for (const auto& item : items) {
    if (result.size() > 1) result += ",\n ";
    result += describe(item);
  }
  return result += "]";
}

}  // namespace hipdecode::sim
