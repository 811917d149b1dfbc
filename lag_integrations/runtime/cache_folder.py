"""The folder of files that can be made again: converted models, calibrations."""

from __future__ import annotations

import os
from pathlib import Path

from platformdirs import user_cache_path


def cache_folder() -> Path:
    """Return the folder for converted models and calibrations.

    It is ``$LAG_CACHE``, else the user's cache directory.
    """
    override = os.environ.get("LAG_CACHE")
    return Path(override) if override else user_cache_path("lag_integrations", appauthor=False)
