"""What names, captions and errors hold does not steer the terminal on which they are shown."""

from __future__ import annotations

import io

import pytest
from rich.table import Table

from launch.console import Console, print_error, shown

HOSTILE = "a\x1b[2Jb\x1b]0;title\x07c\x9b31md\u202ee"
ESCAPED = r"a\x1b[2Jb\x1b]0;title\x07c\x9b31md\u202ee"


def test_control_characters_are_shown_escaped_and_text_as_it_is() -> None:
    assert shown(HOSTILE) == ESCAPED
    assert shown("ein Gesicht\n\t微笑 'x'") == "ein Gesicht\n\t微笑 'x'"


@pytest.mark.parametrize("terminal", [True, False])
def test_the_console_prints_no_escape_but_its_own_colours(terminal: bool) -> None:
    out = io.StringIO()
    colors = "standard" if terminal else None
    console = Console(file=out, highlight=False, force_terminal=terminal, color_system=colors, width=200)
    console.print(f"[bold]{HOSTILE}[/bold]")
    console.print(HOSTILE, markup=False)
    table = Table("name")
    table.add_row(HOSTILE)
    console.print(table)
    printed = out.getvalue()
    # rich itself drops the bell, and cuts a table's cell at the width that its text would have unescaped.
    assert (
        printed.count(ESCAPED.replace(r"\x07", "")) == 2
        and printed.count(r"a\x1b[2Jb\x1b") == 3
        and "\x1b[2J" not in printed
        and "\x1b]0" not in printed
    )
    assert ("\x1b[1m" in printed) == terminal


def test_errors_are_printed_escaped(capsys: pytest.CaptureFixture[str]) -> None:
    print_error(ValueError(HOSTILE))
    assert capsys.readouterr().err == f"error: {ESCAPED}\n"
