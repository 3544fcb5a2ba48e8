"""What a benchmark shows while it runs: one line that changes, in a terminal; elsewhere a line now and then."""

from __future__ import annotations

import shutil
from typing import Self, TextIO

from benchmarks.measure.drive import Drive
from benchmarks.measure.drive import Stage as Doing
from benchmarks.measure.result import Stage
from benchmarks.measure.slo import shown_time
from benchmarks.simulate.measures import percentile
from router.cli.terminal import clean

PLAIN_S = 5.0
"""Between lines where nobody watches them change."""
RECENT = 200
"""First tokens that the shown percentiles are of."""
_CLEAR = "\r\x1b[K"


class Progress:
    """Shows one run's stages on a stream."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._live = stream.isatty()
        self._shown_at = 0.0
        self._shown = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._wipe()

    def begins(self, doing: Doing) -> None:
        """A stage begins."""
        self._shown_at = 0.0
        if not self._live:
            self.say(f"{doing.name} begins")

    def __call__(self, drive: Drive, now_s: float) -> None:
        """A stage goes on."""
        if self._live:
            width = shutil.get_terminal_size().columns - 1
            self._stream.write(_CLEAR + clean(line(drive, now_s))[:width])
            self._stream.flush()
            self._shown = True
        elif now_s - self._shown_at >= PLAIN_S:
            self._shown_at = now_s
            self.say(line(drive, now_s))

    def ends(self, stage: Stage) -> None:
        """A stage has ended."""
        found = stage.figures
        ttft = shown_time(found.ttft.p50) if found.ttft is not None else "-"
        mark = "" if stage.met is None else "  ✓" if stage.met else "  ✗"
        note = f"  {stage.ended}" if stage.ended != "done" else ""
        failed = sum(found.errors.values())
        counts = f"{found.ok} answered, {failed} failed, {found.achieved_rate:.2f}/s"
        self.say(f"{stage.name}: {counts}, TTFT p50 {ttft}{mark}{note}")

    def say(self, text: str) -> None:
        """A line that stays."""
        self._wipe()
        self._stream.write(clean(text) + "\n")
        self._stream.flush()

    def _wipe(self) -> None:
        if self._shown:
            self._stream.write(_CLEAR)
            self._shown = False


def line(drive: Drive, now_s: float) -> str:
    """How a stage stands."""
    stage = drive.stage
    waits = sorted(ttft for _, ttft in drive.tally.firsts[-RECENT:])
    until = f" of {stage.duration_s:.0f} s" if stage.duration_s is not None else " s"
    parts = [
        f"{stage.name}: {now_s:.0f}{until}",
        f"{len(drive.records)} sent",
        f"{drive.done} done",
        f"{drive.inflight} in flight",
    ]
    if waits:
        parts.append(
            f"TTFT p50 {shown_time(percentile(waits, 0.5))} p99 {shown_time(percentile(waits, 0.99))}"
        )
    parts.append(f"{drive.tally.pieces / max(now_s, 1e-9):.0f} pieces/s")
    if drive.failed:
        parts.append(f"{drive.failed} failed")
    return "  ".join(parts)
