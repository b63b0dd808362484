"""Tables of images: CSV or Excel, each column by what it holds, nothing guessed."""

from __future__ import annotations

import csv
import io
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath

from preparation.item import clean, identity

# What an entry of the datalist or a layout calls something else: a further column of such a name would contradict it.
RESERVED = {"key", "image", "label", "class", "class_name", "mask", "group", "source", "sources", "burned_in_marks"}
Columns = Mapping[str, str | list[str]]  # what a column holds, and how tables call it


class Names:
    """Finds files by what a table calls them: the path, the file's name, or either without extension."""

    def __init__(self, files: Iterable[str]) -> None:
        self.exact: dict[str, list[str]] = defaultdict(list)
        self.alike: dict[str, list[str]] = defaultdict(list)
        for file in files:
            path = PurePosixPath(file)
            for name in {file, str(path.with_suffix("")), path.name, path.stem}:
                self.exact[name].append(file)
                self.alike[identity(name)].append(file)

    def find(self, name: str) -> list[str]:
        """The files of this name as it is written, else those whose names are the same by `identity`."""
        name = str(PurePosixPath(name.strip().replace("\\", "/")))
        return self.exact.get(name) or self.alike.get(identity(name), [])


def read_table(file: Path, columns: Columns, needed: Iterable[str]) -> tuple[dict[int, dict[str, str]], list[str]]:
    """Read a CSV table (comma, semicolon or tab; UTF-8) or the first fitting sheet of an Excel file.

    Args:
        file: the table; its first row names the columns, in any case and with any spaces around.
        columns: names of columns by what they hold, several where tables differ. Other columns keep their names.
        needed: what must be there.

    Returns:
        the rows by their line, each with the cells, stripped, by what they hold; and a line on each row that cannot be
        used.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it cannot be read, or columns are missing, doubled or contradict each other.
    """
    if not file.is_file():
        raise FileNotFoundError(f"{file}: missing; it lists the images and their classes")
    sheets = _excel(file) if file.suffix.lower() in (".xlsx", ".xlsm") else [_csv(file)]
    names, problems = [], []
    for lines in sheets:
        try:
            names = _names(next(iter(lines.values()), []), columns, needed)
        except ValueError as error:
            problems.append(f"{file}: {error}")
            continue
        break
    else:
        raise ValueError(problems[0])
    rows, refused = {}, []
    for number, cells in list(lines.items())[1:]:
        if not any(cells):
            continue
        if len(cells) != len(names):
            remedy = "quote cells that hold the separator" if len(cells) > len(names) else "add the missing ones"
            refused.append(f"{file.name}, line {number}: {len(cells)} cells, but {len(names)} columns; {remedy}")
        elif any(cell and not name for name, cell in zip(names, cells)):
            refused.append(f"{file.name}, line {number}: a cell in a column without a name; name the column")
        else:
            rows[number] = {name: cell for name, cell in zip(names, cells) if name}
    return rows, refused


def _csv(file: Path) -> dict[int, list[str]]:
    try:
        text = file.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError:
        raise ValueError(f'{file}: not UTF-8; save it as "CSV UTF-8"') from None
    if "\0" in text:
        raise ValueError(f'{file}: no text (it holds NUL characters); save it as "CSV UTF-8"')
    separator = max(",;\t", key=text.partition("\n")[0].count)  # spreadsheets of many countries write semicolons
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator)
    try:
        return {reader.line_num: [cell.strip() for cell in line] for line in reader}
    except csv.Error as error:
        raise ValueError(f'{file}: no table ({error}); save it as "CSV UTF-8"') from None


def _excel(file: Path) -> list[dict[int, list[str]]]:
    try:
        import pandas

        sheets = pandas.read_excel(file, sheet_name=None, header=None, dtype=str, keep_default_na=False)
    except ImportError:
        raise ValueError(f'{file}: pip install openpyxl reads it; or save it as "CSV UTF-8"') from None
    except Exception as error:  # openpyxl raises half a dozen types
        raise ValueError(f'{file}: no Excel file ({error}); save it as "CSV UTF-8"') from None
    return [
        {number: [str(cell).strip() for cell in line] for number, line in enumerate(sheet.values.tolist(), start=1)}
        for sheet in sheets.values()
    ]


def _names(head: list[str], columns: Columns, needed: Iterable[str]) -> list[str]:
    """What each column holds, or its own name.

    Raises:
        ValueError: a column is missing, doubled or contradicts another.
    """
    known = {
        identity(c): name for name, called in columns.items() for c in ([called] if isinstance(called, str) else called)
    }
    names = [known.get(identity(column), column) for column in head]
    found = f"it has {', '.join(map(clean, head))}"
    for name in needed:
        if name not in names:
            called = columns[name] if isinstance(columns[name], str) else " or ".join(columns[name])
            raise ValueError(f"no column {called} ({name}); {found}")
    alike = [identity(name) for name in names if name]
    doubled = next((name for name in names if name and alike.count(identity(name)) > 1), "")
    if doubled:
        raise ValueError(f"two columns say {doubled}; {found}; remove or rename one")
    for column, name in zip(head, names):
        if name not in columns and name in RESERVED:
            raise ValueError(f"column {column} has the name of an entry of the datalist; rename or remove it; {found}")
        if "group" in columns and "group" not in names and any(w in identity(column) for w in ("patient", "subject")):
            called = columns["group"] if isinstance(columns["group"], str) else columns["group"][0]
            raise ValueError(f"column {column} seems to name patients; call it {called}, or something else; {found}")
    return names
