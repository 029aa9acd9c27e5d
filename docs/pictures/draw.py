"""Draw the pictures of replay_buffer.md: python docs/pictures/draw.py [folder]"""

from __future__ import annotations

import sys
from pathlib import Path
from xml.sax.saxutils import escape

INK, PALE, LINE = "#222222", "#f2f2f2", "#8a8a8a"
FIRST_WRITER, SECOND_WRITER, THIRD_WRITER, OLD = "#9ecae1", "#fdd49e", "#c7e9c0", "#dddddd"
WRONG, RIGHT = "#b2182b", "#1a7a3a"


class Picture:
    """Rectangles, words and arrows on white."""

    def __init__(self, width: int, height: int, title: str) -> None:
        """Begin an empty picture; `title` is what a screen reader says."""
        self.parts = [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
            'font-family="Helvetica, Arial, sans-serif" font-size="13" role="img">',
            f"<title>{escape(title)}</title>",
            f'<defs><marker id="head" markerWidth="8" markerHeight="8" refX="7" refY="4" orient="auto">'
            f'<path d="M0,0 L8,4 L0,8 z" fill="{INK}"/></marker></defs>',
            f'<rect width="{width}" height="{height}" fill="white"/>',
        ]

    def box(self, x: float, y: float, width: float, height: float, fill: str = PALE, words: str = "", edge: str = LINE) -> None:
        """Draw a rectangle with words in its middle."""
        self.parts.append(f'<rect x="{x}" y="{y}" width="{width}" height="{height}" fill="{fill}" stroke="{edge}"/>')
        if words:
            self.words(x + width / 2, y + height / 2 + 4.5, words, anchor="middle")

    def words(self, x: float, y: float, words: str, *, anchor: str = "start", size: int = 13, fill: str = INK) -> None:
        """Write one line."""
        self.parts.append(
            f'<text x="{x}" y="{y}" text-anchor="{anchor}" font-size="{size}" fill="{fill}">{escape(words)}</text>'
        )

    def line(
        self, x: float, y: float, to_x: float, to_y: float, *, arrow: bool = False, width: float = 1, fill: str = INK
    ) -> None:
        """Draw a line, or an arrow."""
        head = ' marker-end="url(#head)"' if arrow else ""
        self.parts.append(f'<line x1="{x}" y1="{y}" x2="{to_x}" y2="{to_y}" stroke="{fill}" stroke-width="{width}"{head}/>')

    def bracket(self, x: float, to_x: float, y: float, words: str, fill: str = INK) -> None:
        """Draw a bracket below something, with words under it."""
        for points in ((x, y - 6, x, y), (x, y, to_x, y), (to_x, y, to_x, y - 6)):
            self.line(*points, width=2, fill=fill)
        if words:
            self.words((x + to_x) / 2, y + 16, words, anchor="middle", fill=fill)

    def __str__(self) -> str:
        return "\n".join([*self.parts, "</svg>", ""])


def processes() -> Picture:
    """Who reaches the rows, and how."""
    picture = Picture(760, 250, "Two actors and an evaluator are attached to the memory of a learner's replay buffer")
    picture.box(230, 20, 300, 150, "#ffffff", edge=INK)
    picture.words(380, 40, "one segment of shared memory", anchor="middle")
    for k, (fill, name) in enumerate(((FIRST_WRITER, "rows of actor 1"), (SECOND_WRITER, "rows of actor 2"), (PALE, "free"))):
        picture.box(250, 52 + 36 * k, 260, 28, fill, name)
    picture.box(20, 46, 130, 40, FIRST_WRITER, "actor 1")
    picture.box(20, 106, 130, 40, SECOND_WRITER, "actor 2")
    picture.box(610, 46, 130, 40, PALE, "learner")
    picture.box(610, 106, 130, 40, PALE, "evaluator")
    picture.line(150, 66, 248, 66, arrow=True)
    picture.line(150, 126, 248, 102, arrow=True)
    picture.words(198, 58, "insert", anchor="middle", size=12)
    picture.words(190, 134, "insert", anchor="middle", size=12)
    picture.line(532, 80, 608, 66, arrow=True)
    picture.line(532, 110, 608, 126, arrow=True)
    picture.words(566, 58, "sample", anchor="middle", size=12)
    picture.words(562, 142, "sample", anchor="middle", size=12)
    picture.words(
        20, 205, "Each process is attached by the buffer's name and copies for itself. No process serves the others, none"
    )
    picture.words(
        20, 225, "waits for another, and there is no lock in the memory: a process that is killed leaves nothing locked."
    )
    return picture


def rows() -> Picture:
    """Rows, chunks, writers, episodes, windows."""
    picture = Picture(
        760, 330, "Rows come in chunks; each chunk has one writer; episodes go on from chunk to chunk of their writer"
    )
    cell, left, top = 20, 60, 56
    chunks = [
        (FIRST_WRITER, "a a a a a b b b"),
        (SECOND_WRITER, "p p p q q q q q"),
        (FIRST_WRITER, "b b b b c c . ."),
        (OLD, "x x x y y y y z"),
    ]
    for number, (fill, episodes) in enumerate(chunks):
        x = left + number * (8 * cell + 10)
        picture.words(x + 4 * cell, top - 10, f"chunk {number}", anchor="middle", size=12)
        for k, episode in enumerate(episodes.split()):
            picture.box(x + k * cell, top, cell, 30, "#ffffff" if episode == "." else fill, episode.replace(".", ""))
    second = left + 2 * (8 * cell + 10)
    picture.words(20, 120, "actor 1 wrote chunk 0, then chunk 2. Its episode b begins in one and goes on in the other:")
    strip, y = "aaaaabbbbbbbcc", 134
    for k, episode in enumerate(strip):
        picture.box(left + k * cell, y, cell, 30, FIRST_WRITER, episode)
    picture.bracket(left + 5 * cell, left + 9 * cell, y + 44, "a window of 4 steps", RIGHT)
    picture.bracket(left + 10 * cell, left + 14 * cell, y + 44, "", WRONG)
    picture.words(left + 14 * cell + 10, y + 48, "never: two episodes", fill=WRONG)
    picture.words(
        20, 222, "actor 2 wrote chunk 1. Its rows are never in one window with those of actor 1, though they lie between them."
    )
    picture.words(20, 246, "The free rows of chunk 2 are the next ones that actor 1 writes.")
    picture.words(
        20, 270, "Chunk 3 was claimed longest ago, so it is the next one to be written anew, by whoever needs a chunk first."
    )
    picture.words(20, 294, "Its rows x, y and z can be sampled until then, and go one after the other while it is written.")
    picture.line(second + 7 * cell, top + 48, second + 7 * cell, top + 33, arrow=True)
    return picture


def frames() -> Picture:
    """Observations stored once."""
    picture = Picture(760, 340, "Each observation, or each frame of a stack, lies once in memory; rows point at it")
    cell, left = 74, 150
    picture.words(20, 28, "n_stack=1: four steps, five observations")
    for k in range(5):
        picture.box(left + k * cell, 44, cell - 8, 28, FIRST_WRITER, f"s{k}")
    for k in range(4):
        picture.box(left + k * cell + 37, 104, cell - 8, 28, PALE, f"step {k}")
        middle = left + k * cell + 70
        picture.line(middle - 8, 104, middle - 34, 74, arrow=True)
        picture.line(middle + 8, 104, middle + 32, 74, arrow=True)
    picture.words(20, 62, "frames")
    picture.words(20, 122, "rows")
    picture.words(left + 4 * cell + 80, 112, "left arrow: observations", size=12)
    picture.words(left + 4 * cell + 80, 128, "right arrow: next_observations", size=12)
    picture.words(20, 172, "n_stack=3: four steps, seven frames instead of 4 x 2 x 3 = 24")
    for k in range(7):
        picture.box(left + k * cell, 188, cell - 8, 28, SECOND_WRITER, f"frame {k}")
    for k, (name, first) in enumerate(
        (("step 0, observations", 0), ("step 0, next_observations", 1), ("step 3, next_observations", 4))
    ):
        y = 240 + 30 * k
        picture.line(left + first * cell, y, left + (first + 3) * cell - 8, y, width=6, fill="#e6ab5c")
        picture.words(
            left + (first + 3) * cell + 2 if first < 2 else left + first * cell - 8,
            y + 5,
            name,
            anchor="start" if first < 2 else "end",
            size=12,
        )
    picture.words(20, 206, "frames")
    return picture


def sample() -> Picture:
    """How a sample is drawn and checked."""
    picture = Picture(760, 330, "A sample is drawn, copied and checked; what was overwritten meanwhile is drawn anew")
    steps = [
        ("1  look", "which rows are whole now?", "a list of runs"),
        ("2  draw", "anchors, uniformly over all windows that fit", "rows, and a stamp for each"),
        ("3  copy", "all fields of all rows, into a batch of one's own", "no lock is held"),
        ("4  check", "was a row overwritten while it was copied?", "compare the stamps"),
    ]
    for k, (name, question, answer) in enumerate(steps):
        y = 24 + 66 * k
        picture.box(30, y, 90, 42, FIRST_WRITER, name)
        picture.words(136, y + 18, question)
        picture.words(136, y + 36, answer, size=12, fill="#666666")
        if k < 3:
            picture.line(75, y + 42, 75, y + 64, arrow=True)
    picture.box(480, 222, 240, 42, "#c7e9c0", "none was: hand the batch out")
    picture.line(440, 243, 478, 243, arrow=True)
    picture.box(480, 120, 240, 42, "#fbb4ae", "some were: draw only these anew")
    picture.line(440, 236, 478, 164, arrow=True)
    picture.line(478, 132, 432, 106, arrow=True)
    picture.words(30, 312, "The writer goes on all the while. It does not know who reads, so it never waits for a reader.")
    return picture


PICTURES = {"processes": processes, "rows": rows, "frames": frames, "sample": sample}

if __name__ == "__main__":
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent
    for name, draw in PICTURES.items():
        (folder / f"{name}.svg").write_text(str(draw()), encoding="utf-8")
