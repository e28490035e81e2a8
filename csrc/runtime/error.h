// SPDX-License-Identifier: MIT
#pragma once

#include <sstream>
#include <stdexcept>
#include <string>

namespace hipdecode::runtime {

/// A request that cannot be served as it stands. Messages read `subject: expected X, got Y; do Z`.
class Error : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

/// A kernel would have to be loaded where that is not possible (graph capture).
class NotWarmed : public Error {
 public:
  using Error::Error;
};

template <class... Parts>
std::string join(const Parts&... parts) {
  std::ostringstream text;
  (text << ... << parts);
  return text.str();
}

}  // namespace hipdecode::runtime

/// Throws runtime::Error with the remaining arguments as its message unless `condition` holds.
#define HIPDECODE_CHECK(condition, ...)                                                           \
  do {                                                                                            \
    if (!(condition)) throw ::hipdecode::runtime::Error(::hipdecode::runtime::join(__VA_ARGS__)); \
  } while (false)
