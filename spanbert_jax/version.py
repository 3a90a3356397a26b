"""The version of this package, which every file that the package writes carries.

Invariant: this is the one place that names the version; pyproject.toml reads it from here.
"""

VERSION = "0.2.0"
