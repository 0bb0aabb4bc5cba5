"""Draws what `make demo` prints, when it prints it, as an animated SVG.

`PYTHONPATH=tests python -m support.demo_picture [FILE] [COMMAND …]` runs the command in a terminal of its own. Waits are cut to
LONGEST_WAIT_S. A viewer that has switched animations off sees what stands there in the end.
"""

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterable, Iterator
from html import escape
from itertools import groupby
from pathlib import Path

WIDTH = 96  # characters
LONGEST_WAIT_S, STAYS_S, EVERY_S = 1.2, 6.0, 0.2  # EVERY_S: a bar is redrawn no more often than this
CELL, LINE, LEFT, TOP, SIZE = 7.8, 18, 18, 44, 13
COLOURS = dict(zip("123456", ("#e06c75", "#98c379", "#e5c07b", "#61afef", "#c678dd", "#56b6c2"), strict=True))
PLAIN, DIM, EDGE, WINDOW = "#d7dae0", "#8b919c", "#4b515c", "#1f2329"
FONTS = "ui-monospace,SFMono-Regular,Menlo,Consolas,'DejaVu Sans Mono',monospace"
RULE = "─━╸╺"  # drawn as lines: fonts leave gaps between them
TOKEN = re.compile(r"(?<=token=)[\w-]+")
PART = re.compile(r"\x1b\[([?0-9;]*)([A-Za-z])|(\r\n|\r|\n)|([^\x1b\r\n]+)")

Cell = tuple[str, str]  # a character and its attributes, as SGR names them
Shown = tuple[float, list[Cell]]  # from when on a line looks like this


def record(command: list[str], width: int = WIDTH) -> list[tuple[float, str]]:
    """What it prints on a terminal, with the seconds since it began; raises CalledProcessError when it fails."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 50, width, 0, 0))
    env = os.environ | {"TERM": "xterm-256color", "COLUMNS": str(width)}
    process = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, env=env)
    os.close(theirs)
    began, found, held = time.monotonic(), [], b""
    while chunk := _read(ours):
        held += chunk
        try:
            found.append((time.monotonic() - began, held.decode()))
        except UnicodeDecodeError:  # cut within a character
            continue
        held = b""
    os.close(ours)
    if process.wait():
        raise subprocess.CalledProcessError(process.returncode, command)
    return found


def _read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 65_536)
    except OSError:  # Linux' end of a terminal
        return b""


def lines_over_time(output: Iterable[tuple[float, str]]) -> list[list[Shown]]:
    """Each line with all that stood in it, and from when on; waits are cut."""
    lines: list[list[Shown]] = [[]]
    cells: list[Cell] = []
    style, now, last = "", 0.0, 0.0
    for at, text in output:
        now, last = now + min(at - last, LONGEST_WAIT_S), at
        for code, kind, ending, plain in PART.findall(text):
            if kind == "m":
                style = "" if code in ("", "0") else ";".join(filter(None, (style, code)))
            elif ending == "\r" or kind == "K":
                cells = []  # whoever goes back writes the whole line again
            elif ending:
                lines[-1].append((now, cells))
                lines.append([])
                cells = []
            elif plain:
                cells = cells + [(character, style) for character in plain]
        if cells and (not lines[-1] or now - lines[-1][-1][0] >= EVERY_S):
            lines[-1].append((now, cells))
    return lines if lines[-1] else lines[:-1]


def draw(command: str, lines: list[list[Shown]]) -> str:
    """The SVG: every line's last state stands still, and an animation shows how it came to be."""
    whole = max(shown[-1][0] for shown in lines) + 1 + STAYS_S
    typed: list[Shown] = [(0.0, [(character, "1") for character in f"$ {command}"])]
    width, height = round(2 * LEFT + WIDTH * CELL), TOP + (len(lines) + 1) * LINE + 14
    parts, frames = [], []
    for number, shown in enumerate([typed, *lines]):
        y = TOP + number * LINE + SIZE
        for place, (start, cells) in enumerate(shown):
            stays = place + 1 == len(shown)
            inside = "".join(_runs(_masked(cells), y))
            if not inside:
                continue
            begins = 100 * (start + 0.5) / whole if number else 0.0
            ends = 100.0 if stays else 100 * (shown[place + 1][0] + 0.5) / whole
            name = f"f{len(frames)}"
            frames.append(
                f"@keyframes {name}{{0%{{opacity:{int(not begins)}}}{begins:.2f}%{{opacity:1}}"
                + (f"{ends:.2f}%,100%{{opacity:0}}}}" if not stays else "}")
                + f"#{name}{{animation-name:{name}}}"
            )
            hidden = "" if stays else ' opacity="0"'
            parts.append(f'<g id="{name}"{hidden}>{inside}</g>')
    style = (
        f"g{{animation:{whole:.1f}s step-end infinite}}text{{font-size:{SIZE}px;font-family:{FONTS};white-space:pre}}"
        "@media (prefers-reduced-motion:reduce){g{animation:none}}"
    )
    dots = "".join(f'<circle cx="{22 + 18 * i}" cy="20" r="5.5" fill="{EDGE}"/>' for i in range(3))
    size = f'width="{width}" height="{height}"'
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" {size} fill="{PLAIN}">\n'
        f"<title>{escape(command)}</title><style>{style}{''.join(frames)}</style>\n"
        f'<rect {size} rx="9" fill="{WINDOW}"/>{dots}\n' + "\n".join(parts) + "\n</svg>\n"
    )


def _masked(cells: list[Cell]) -> list[Cell]:
    found = TOKEN.search("".join(character for character, _ in cells))
    return cells if found is None else [*cells[: found.start()], ("…", cells[found.start()][1]), *cells[found.end() :]]


def _runs(cells: list[Cell], y: int) -> Iterator[str]:
    """Neighbours that look alike as one element each; its width is fixed, whatever font the viewer has."""
    places = enumerate(cells)
    for (style, ruled), run in groupby(places, key=lambda place: (place[1][1], place[1][0] in RULE)):
        found = list(run)
        text = "".join(character for _, (character, _) in found)
        x, length = LEFT + found[0][0] * CELL, len(text) * CELL
        if not text.strip():
            continue
        fill, bold = _look(style)
        if ruled:
            yield f'<rect x="{x:.1f}" y="{y - 5}" width="{length:.1f}" height="{3 if text[0] != "─" else 1}" fill="{fill}"/>'
        else:
            more = (f' fill="{fill}"' if fill != PLAIN else "") + (' font-weight="600"' if bold else "")
            yield (
                f'<text x="{x:.1f}" y="{y}" textLength="{length:.1f}" lengthAdjust="spacingAndGlyphs"'
                f"{more}>{escape(text)}</text>"
            )


def _look(style: str) -> tuple[str, bool]:
    """A colour, and whether it is bold."""
    if found := re.search(r"38;5;(\d+)", style):
        return _of_256(int(found[1])), False
    codes = style.split(";")
    colour = next((COLOURS[code[-1]] for code in codes if re.fullmatch("[39][1-6]", code)), None)
    return colour or (DIM if "2" in codes else PLAIN), "1" in codes


def _of_256(number: int) -> str:
    if number >= 232:
        return "#" + 3 * f"{8 + 10 * (number - 232):02x}"
    levels = (0, 95, 135, 175, 215, 255)
    return "#" + "".join(f"{levels[(number - 16) // step % 6]:02x}" for step in (36, 6, 1))


def main(arguments: list[str]) -> int:
    path = Path(arguments[0] if arguments else "docs/demo.svg")
    command = arguments[1:] or ["make", "--no-print-directory", "demo"]
    path.write_text(
        draw("make demo" if not arguments[1:] else " ".join(command), lines_over_time(record(command))), "utf-8"
    )
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
