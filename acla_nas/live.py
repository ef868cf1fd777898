"""The live display of a run: a line at the foot of a terminal, with the time left and the newest figures."""

from __future__ import annotations

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text


class _Figures(ProgressColumn):
    """The newest figures; the one column that gives way in a narrow terminal."""

    def render(self, task: Task) -> Text:
        return Text(task.fields["figures"], no_wrap=True, overflow="ellipsis")


class LiveDisplay:
    """A bar of the epochs or trials that are done; nothing at all where the output is no terminal.

    Lines that are printed meanwhile appear above it. It goes away when it is closed.

    Args:
        unit: what is counted: "epoch" or "trial".
        total: how many there are.
        done: of them, before this display.
        console: where to; standard output where None.

    Example:
        >>> display = LiveDisplay("epoch", 10)
        >>> display.update(2.5, "PSNR 30.10 dB")
        >>> display.close()
    """

    def __init__(self, unit: str, total: int, *, done: float = 0, console: Console | None = None) -> None:
        self.total, self._figures = total, ""
        self._progress: Progress | None = None
        console = console or Console()
        if not console.is_interactive:
            return
        self._progress = Progress(
            TextColumn(f"{unit} {{task.fields[at]}}/{total}"),
            BarColumn(bar_width=5),  # with it the line fits into 80 columns
            TimeRemainingColumn(compact=True),
            TextColumn("[dim]left[/]"),
            _Figures(),
            console=console,
            transient=True,
            speed_estimate_period=3600,  # whole epochs, with the scoring at their ends
        )
        self._task = self._progress.add_task(unit, total=total, at=self._at(done), figures="")
        self._progress.update(self._task, completed=done)
        self._progress.start()

    def update(self, done: float, figures: str | None = None) -> None:
        """Say how much is done, and what the newest figures are, if there are new ones."""
        if self._progress is not None:
            if figures is not None:
                self._figures = figures
            self._progress.update(self._task, completed=done, at=self._at(done), figures=self._figures)

    def close(self) -> None:
        """Remove it; to be called once nothing more is to come, whatever has happened."""
        if self._progress is not None:
            self._progress.stop()

    def _at(self, done: float) -> int:
        """Return the number of the epoch or trial that is under way."""
        return min(int(done) + 1, self.total)


def shown_duration(seconds: float) -> str:
    """Return a duration in words, as precisely as an estimate is worth.

    Example:
        >>> shown_duration(12.3), shown_duration(3600), shown_duration(36_000), shown_duration(950_000)
        ('12 s', '60 min', '10.0 h', '11 days')
    """
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 48 * 3600 else f"{seconds / 86400:.0f} days"
