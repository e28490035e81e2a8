// SPDX-License-Identifier: MIT
#pragma once

#include <torch/csrc/stable/library.h>

#include <array>
#include <cstddef>
#include <optional>
#include <tuple>
#include <utility>

#include "tensor.h"

// Operators as torch's dispatcher calls them: a stack of values, of which the callee owns the
// tensors. TORCH_BOX does the same with a shared pointer and a C call for every fact of a tensor.
namespace hipdecode::torch_ops {

/// Owns the tensors of one call.
template <size_t kMost>
class Handles {
 public:
  Handles() = default;
  ~Handles() {
    for (size_t i = 0; i < count_; ++i) aoti_torch_delete_tensor_object(held_[i]);
  }
  Handles(const Handles&) = delete;
  Handles& operator=(const Handles&) = delete;

  void take(AtenTensorHandle handle) { held_[count_++] = handle; }

 private:
  std::array<AtenTensorHandle, kMost> held_;
  size_t count_ = 0;
};

/// What a value of the stack is before it is given its type in the operator.
template <class T>
struct Boxed {
  using Raw = T;
  template <class H>
  static void keep(H&, const Raw&) {}
  static T open(const Raw& raw) { return raw; }
};
template <>
struct Boxed<Tensor> {
  using Raw = AtenTensorHandle;
  template <class H>
  static void keep(H& handles, const Raw& raw) {
    handles.take(raw);
  }
  static Tensor open(const Raw& raw) { return Tensor(raw); }
};
template <>
struct Boxed<OptionalTensor> {
  using Raw = std::optional<AtenTensorHandle>;
  template <class H>
  static void keep(H& handles, const Raw& raw) {
    if (raw) handles.take(*raw);
  }
  static OptionalTensor open(const Raw& raw) {
    return raw ? OptionalTensor(Tensor(*raw)) : std::nullopt;
  }
};

template <auto kOperator, class... Args, size_t... I>
void call_boxed(void (*)(Args...), StableIValue* stack, std::index_sequence<I...>) {
  const std::tuple<typename Boxed<Args>::Raw...> raw{
      torch::stable::detail::to<typename Boxed<Args>::Raw>(stack[I])...};
  Handles<sizeof...(Args)> handles;  // of all arguments, before one of them can throw
  (Boxed<Args>::keep(handles, std::get<I>(raw)), ...);
  kOperator(Boxed<Args>::open(std::get<I>(raw))...);
}

template <class... Args>
constexpr auto arguments_of(void (*)(Args...)) {
  return std::index_sequence_for<Args...>{};
}

/// The operator for StableLibrary::impl(); it returns nothing.
template <auto kOperator>
void boxed(StableIValue* stack, uint64_t, uint64_t) {
  call_boxed<kOperator>(kOperator, stack, arguments_of(kOperator));
}

}  // namespace hipdecode::torch_ops
