# SPDX-License-Identifier: MIT
"""A small trained DeepSeek-V3 model that decodes on hipdecode; `hipdecode demo` runs it."""
