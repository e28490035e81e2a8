# SPDX-License-Identifier: MIT
"""The `hipdecode` command line; one module per command, imported when it is called."""
