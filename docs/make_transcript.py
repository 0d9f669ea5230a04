"""Write docs/first-run.md: what the first command of the README shows in its first 30 seconds, and at its end.

    python docs/make_transcript.py

The command runs in the repository's root, on a terminal of its own.
"""

from __future__ import annotations

import argparse
import fcntl
import os
import pty
import re
import shlex
import struct
import sys
import termios
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
COMMAND = "python run_recbole_diffusion.py --model=DiffuRecSys --dataset=ml-100k --config_files=props/quick_start.yaml"
ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
HEAD = """# The first run

What the first command shows on a terminal, with the seconds after which each line was there; written by
`python docs/make_transcript.py`{machine}.

```bash
{command}
```

The first {seconds:g} seconds, the last line as it stood then:

```text
{begin}
```

Its end:

```text
{end}
```

Between them is a line an epoch. The whole log, with every parameter, is in the file that is named; `--verbose` shows it
on the screen.
"""


class Screen:
    """The lines of a terminal, each with the seconds after which it was whole."""

    def __init__(self):
        self.lines: list[tuple[float, str]] = []
        self.current = ""

    def feed(self, text: str, seconds: float) -> None:
        for part in re.split(r"(\r\n|\n|\r)", ESCAPES.sub("", text)):
            if part in ("\n", "\r\n"):
                self.lines.append((seconds, self.current.rstrip()))
                self.current = ""
            elif part == "\r":
                self.current = ""  # what comes is written over it
            else:
                self.current += part


def record(command: list[str], at: float) -> tuple[list[str], list[tuple[float, str]], int]:
    """Run a command on a terminal: its screen after some seconds, all lines in the end, and its exit status."""
    start, screen, begin = time.monotonic(), Screen(), None
    pid, terminal = pty.fork()
    if pid == 0:
        os.environ.update(COLUMNS="100", LINES="40", TERM="dumb")
        # A new terminal has no columns, on which no bar shows.
        fcntl.ioctl(0, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 100, 0, 0))
        os.execvp(command[0], command)
    while True:
        try:
            data = os.read(terminal, 65536)
        except OSError:  # the other side is closed
            break
        seconds = time.monotonic() - start
        if seconds >= at and begin is None:
            begin = [*map(stamped, screen.lines), *([f"         {screen.current}"] if screen.current.strip() else [])]
        screen.feed(data.decode(errors="replace"), seconds)
        sys.stderr.write(data.decode(errors="replace"))
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    return begin or [*map(stamped, screen.lines)], screen.lines, status


def stamped(line: tuple[float, str]) -> str:
    return f"{line[0]:6.1f} s {line[1]}".rstrip()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=30, help="how much of the beginning (default: %(default)s)")
    parser.add_argument(
        "--output", type=Path, default=ROOT / "docs" / "first-run.md", help="(default: docs/first-run.md)"
    )
    parser.add_argument("--add", default="", help="further flags of the command, for a trial")
    args = parser.parse_args()
    command = f"{COMMAND} {args.add}".strip()
    os.chdir(ROOT)
    begin, lines, status = record([sys.executable, *shlex.split(command)[1:]], args.seconds)
    if status:
        raise SystemExit(f"the command ended with {status}")
    end = next(number for number, (_, line) in enumerate(lines) if line.startswith("Test metrics"))
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    text = HEAD.format(
        command=command,
        machine=f" on {cores} CPU core{'s' * (cores > 1)}",
        seconds=args.seconds,
        begin="\n".join(begin),
        end="\n".join(map(stamped, lines[end - 2 :])),
    )
    args.output.write_text(text, encoding="utf-8")
    print(f"{args.output}: {len(begin)} lines of the beginning, {len(lines)} in all")


if __name__ == "__main__":
    main()
