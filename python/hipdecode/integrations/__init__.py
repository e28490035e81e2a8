# SPDX-License-Identifier: MIT
"""The kernels under the names and signatures of other projects."""
