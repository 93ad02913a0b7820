"""Progress bars for people, silence for tests, logs and committed notebooks."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator
from typing import TypeVar

from tqdm import tqdm

Item = TypeVar("Item")
PATIENCE_SECONDS = 2.0  # shorter work shows no bar


def progress(
    items: Iterable[Item], total: int | None = None, describe: str = "", show: bool | None = None
) -> Iterator[Item]:
    """Iterate with a bar that appears once the work has lasted two seconds.

    Args:
        items: what to iterate over.
        total: number of items, where it cannot be asked of ``items``.
        describe: words before the bar.
        show: True or False to decide; by default a bar is drawn on a terminal and on Colab, never
            under CI. The variable ``GPTHEORY_PROGRESS`` (0 or 1) overrides the default.

    Yields:
        The items.
    """
    visible = _has_watcher() if show is None else show
    yield from tqdm(
        items, total=total, desc=describe, disable=not visible, delay=PATIENCE_SECONDS, leave=False
    )


def _has_watcher() -> bool:
    wish = os.environ.get("GPTHEORY_PROGRESS")
    if wish is not None:
        return wish != "0"
    on_screen = sys.stderr.isatty() or "google.colab" in sys.modules
    return on_screen and not os.environ.get("CI")
