"""What a search shows while it runs: one live panel on a terminal, plain lines anywhere else.

Plain lines hold no control codes, whatever is asked of the terminal. A reader that leaves (`| head`) ends
the display, not the search.
"""

from __future__ import annotations

import os
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from types import TracebackType
from typing import Any, Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from ..spaces.genotype import Genotype
from ..spaces.space import CHAIN

LINE_EVERY_S, REFRESH_EVERY_S = 10.0, 0.1
# Steps that the time still to go is estimated from: long enough to hold an epoch's end now and then.
ETA_STEPS = 256
GIB, MIB = 1 << 30, 1 << 20
SHORT = {
    "none": "none",
    "max_pool_3x3": "max3",
    "avg_pool_3x3": "avg3",
    "skip_connect": "skip",
    "sep_conv_3x3": "sep3",
    "sep_conv_5x5": "sep5",
    "dil_conv_3x3": "dil3",
    "dil_conv_5x5": "dil5",
    "nor_conv_1x1": "conv1",
    "nor_conv_3x3": "conv3",
}


class _Console(Console):
    """A console that does not end the program when its reader leaves."""

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError("the reader of the progress left")


class Progress:
    """Context manager that shows the rows of metrics.jsonl as they are written.

    Args:
        total_steps: W steps of the whole search.
        title: recipe, method, K and mode.
        start_step: W steps done before, in a resumed search.
        console: where to; standard output by default, live if that is a terminal.
        clock: seconds, for the time to go and the pace of lines.
    """

    def __init__(
        self,
        total_steps: int,
        title: str,
        start_step: int = 0,
        console: Console | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._console = _Console(force_terminal=_is_terminal()) if console is None else console
        self._total, self._title, self._step = total_steps, title, start_step
        self._clock = clock
        self._ends: deque[float] = deque(maxlen=ETA_STEPS)
        self._row: Mapping[str, Any] = {}
        self._epoch_row: Mapping[str, Any] = {}
        self._peaks: dict[str, int] = {}
        self._shown_at = clock()
        self._open = False
        self._live: Live | None = None
        if self._console.is_terminal and not self._console.is_dumb_terminal:
            # Standard error may be a file although standard output is a terminal; then it stays one.
            self._live = Live(
                get_renderable=self._panel,
                console=self._console,
                auto_refresh=False,
                redirect_stderr=sys.stderr is not None and sys.stderr.isatty(),
            )

    def __enter__(self) -> Self:
        self._open = True
        if self._live is not None:
            live = self._live
            self._attempt(lambda: live.start(refresh=True))
            # A search that is killed could not give a hidden cursor back.
            self._attempt(lambda: self._console.show_cursor(True))
        else:
            self._line(f"{self._title}: {self._total} steps")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def step(self, row: Mapping[str, Any]) -> None:
        """Show a row of kind `step`."""
        self._row, self._step = row, row["step"]
        self._ends.append(self._clock())
        pause_s = LINE_EVERY_S if self._live is None else REFRESH_EVERY_S
        if self._ends[-1] - self._shown_at < pause_s:
            return
        if self._live is None:
            facts = (f"step {self._step}/{self._total}", f"epoch {row['epoch'] + 1}", *_step_facts(row))
            self._line(", ".join((*facts, *self._peak_facts(), *self._eta_facts())))
        else:
            self._refresh()

    def memory(self, row: Mapping[str, Any]) -> None:
        """Take note of a row of kind `memory`; later lines show the largest peak of each phase."""
        self._peaks[row["phase"]] = max(row["peak_bytes"], self._peaks.get(row["phase"], 0))

    def epoch(self, row: Mapping[str, Any]) -> None:
        """Show a row of kind `epoch`."""
        self._epoch_row = row
        if self._live is not None:
            self._refresh()
            return
        facts = (f"epoch {row['epoch'] + 1} done", *_epoch_facts(row), *self._peak_facts(), *self._eta_facts())
        self._line(", ".join(facts))
        for line in cell_lines(row["genotype"]) if "genotype" in row else ():
            self._line(f"  {line}")

    def note(self, text: str) -> None:
        """Show one line that stays."""
        if self._live is not None and self._open:
            self._attempt(lambda: self._console.print(self._text(text), soft_wrap=True))
        else:
            self._line(text)

    def close(self) -> None:
        """Leave the terminal as it was, with the last state on it; a second call does nothing."""
        if self._open and self._live is not None:
            live = self._live
            self._attempt(live.stop)
        self._open = False

    def _refresh(self) -> None:
        self._shown_at = self._clock()
        if self._open and self._live is not None:
            live = self._live
            self._attempt(live.refresh)

    def _line(self, text: str) -> None:
        self._shown_at = self._clock()
        if not self._console.quiet:
            file = self._console.file
            self._attempt(lambda: print(self._printable(text), file=file, flush=True))

    def _attempt(self, show: Callable[[], object]) -> None:
        """Show something; if it cannot be shown, show nothing from now on."""
        try:
            show()
        except OSError as error:
            self._go_silent(error)

    def _go_silent(self, error: OSError) -> None:
        """Turn the stream to nowhere, as Python's note on SIGPIPE advises: what it still holds would fail at exit."""
        self._console.quiet = True
        if self._live is not None:
            self._live.stop()
        # A stream of the caller's own may have no file descriptor, and then nothing to flush at exit.
        with suppress(OSError), open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), self._console.file.fileno())
        if not isinstance(error, BrokenPipeError):
            print(f"warning: cannot show the progress ({error}); the search goes on", file=sys.stderr)

    def _printable(self, text: str) -> str:
        """The text in what the stream can encode, without control characters."""
        kept = "".join(character if character.isprintable() else "?" for character in text)
        return kept.encode(self._console.encoding, "replace").decode(self._console.encoding)

    def _text(self, text: str, style: str = "") -> Text:
        return Text(self._printable(text), style=style, overflow="fold")

    def _panel(self) -> RenderableType:
        head = Table.grid(padding=(0, 1), expand=True)
        head.add_column(no_wrap=True)
        head.add_column(ratio=1)
        head.add_column(no_wrap=True)
        bar = ProgressBar(total=max(1, self._total), completed=self._step)
        share = f"{self._step / max(1, self._total):4.0%}"
        ends = f"step {self._step}/{self._total}", "  ".join((share, *self._eta_facts()))
        head.add_row(self._text(ends[0], "bold"), bar, self._text(ends[1]))
        lines: list[RenderableType] = [head]
        if self._row:
            facts = (f"epoch {self._row['epoch'] + 1}", *_step_facts(self._row))
            lines.append(self._text("  ".join(facts)))
        if self._peaks:
            lines.append(self._text("  ".join((*self._peak_facts(), *_resident_facts(self._row)))))
        if self._epoch_row:
            facts = (f"after epoch {self._epoch_row['epoch'] + 1}:", *_epoch_facts(self._epoch_row))
            lines.append(self._text("  ".join(facts)))
            if "genotype" in self._epoch_row:
                lines += [self._text(line, "cyan") for line in cell_lines(self._epoch_row["genotype"])]
        else:
            lines.append(self._text("what it comes to: after the first epoch", "dim"))
        return Panel(Group(*lines), title=self._text(self._title, "bold"), title_align="left")

    def _peak_facts(self) -> tuple[str, ...]:
        return tuple(f"peak of {phase} step {_size(count)}" for phase, count in sorted(self._peaks.items()))

    def _eta_facts(self) -> tuple[str, ...]:
        remaining = self.remaining_s
        return () if remaining is None else (f"ETA {_clock_time(remaining)}",)

    @property
    def remaining_s(self) -> float | None:
        """Seconds to go at the pace of the last steps; the first, which warms up, does not count. None if not known."""
        if len(self._ends) < 2 or self._step >= self._total:
            return None
        pace_s = (self._ends[-1] - self._ends[0]) / (len(self._ends) - 1)
        return pace_s * max(0, self._total - self._step)


def cell_lines(genotype: object) -> list[str]:
    """A genotype's cells, one line each: `normal: 2<-sep3(0) skip(1) | 3<-...`."""
    found = Genotype.from_json_dict(genotype)
    lines = []
    for kind in found.kinds:
        nodes = enumerate(found.node_pairs(kind), start=found.spec(kind).inputs)
        parts = (
            f"{node}<-{' '.join(f'{SHORT.get(name, name)}({source})' for name, source in pairs)}"
            for node, pairs in nodes
        )
        lines.append(f"{kind}: {' | '.join(parts)}")
    return lines


def _is_terminal() -> bool:
    """Whether standard output is one; FORCE_COLOR and the like do not make a file a terminal."""
    return sys.stdout is not None and not sys.stdout.closed and sys.stdout.isatty()


def _step_facts(row: Mapping[str, Any]) -> tuple[str, ...]:
    facts = [f"loss {row['loss']:.3f}", f"accuracy {row['accuracy']:.1%}"]
    if row.get("alpha_loss") is not None:
        facts.append(f"alpha loss {row['alpha_loss']:.3f}")
    facts.append(f"{row['time']['samples_per_s']:.0f} samples/s")
    if "tau" in row:
        facts.append(f"tau {row['tau']:.2f}")
    return tuple(facts)


def _epoch_facts(row: Mapping[str, Any]) -> tuple[str, ...]:
    facts = [f"validation loss {row['val_loss']:.3f}", f"validation accuracy {row['val_accuracy']:.1%}"]
    if CHAIN in row.get("skips", ()):
        facts.append(f"{row['skips'][CHAIN]} layers left out")
    elif "skips" in row:
        facts.append("skips " + " ".join(f"{kind} {count}" for kind, count in row["skips"].items()))
    return tuple(facts)


def _resident_facts(row: Mapping[str, Any]) -> tuple[str, ...]:
    resident = row.get("time", {}).get("rss_bytes")
    return () if resident is None else (f"RSS {_size(resident)}",)


def _size(count: float) -> str:
    return f"{count / GIB:.2f} GiB" if count >= GIB else f"{count / MIB:.1f} MiB"


def _clock_time(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
