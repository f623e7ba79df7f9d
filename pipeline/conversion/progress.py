"""How far a conversion is."""

import logging
import time

from tqdm import tqdm

log = logging.getLogger(__name__)

LOG_SECONDS = 30  # between lines of progress without a terminal


class ConversionProgress:
    """Images/s, MB/s, remaining time and odd files so far: a bar on a terminal, otherwise a line every 30 s."""

    def __init__(self, split: str, total: int) -> None:
        self._bar = tqdm(desc=split, total=total, unit="img", disable=None)
        self._split, self._total = split, total
        self._started = self._logged = time.monotonic()
        self._images = self._resumed = self._bytes = self._odd = 0

    def add_resumed(self, images: int, odd: int) -> None:
        """Count images that an earlier attempt has written."""
        self._resumed, self._odd = self._resumed + images, self._odd + odd
        self._bar.initial = self._bar.n = self._resumed

    def add_image(self, size: int, odd: bool) -> None:
        """Count one image of `size` bytes."""
        self._images, self._bytes, self._odd = self._images + 1, self._bytes + size, self._odd + odd
        now = time.monotonic()
        if not self._bar.disable:
            self._bar.set_postfix_str(f"{self._rate(now)}, {self._odd} odd", refresh=False)
        elif now - self._logged > LOG_SECONDS:
            self._logged = now
            log.info("%s", self._line(now))
        self._bar.update()

    def close(self) -> None:
        """End the bar."""
        self._bar.close()

    def _rate(self, now: float) -> str:
        return f"{self._bytes / 1e6 / max(now - self._started, 1e-3):.0f} MB/s"

    def _line(self, now: float) -> str:
        per_second = self._images / (now - self._started)
        seconds_left = (self._total - self._resumed - self._images) / per_second
        return (
            f"{self._split}: {self._resumed + self._images} of {self._total} images, {per_second:.0f} images/s, "
            f"{self._rate(now)}, {seconds_left / 60:.0f} min left, {self._odd} odd"
        )
