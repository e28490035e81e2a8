// SPDX-License-Identifier: MIT
#pragma once

namespace hipdecode::abi {

/// Raised whenever a POD of this folder changes; every artefact carries it and is refused when it
/// differs.
inline constexpr int kAbiVersion = 6;

}  // namespace hipdecode::abi
