"""Writing a report: one directory with the data, a page and pictures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import get_args

from nncontrol_prune.files import replacing_directory, write_synced
from nncontrol_prune.service.charts import ChartName
from nncontrol_prune.service.report import Report
from nncontrol_prune.service.report_charts import charts_of
from nncontrol_prune.service.report_page import page
from nncontrol_prune.service.report_pictures import write_pictures

DATA, PAGE = "report.json", "report.html"


def write_report(report: Report, directory: Path) -> list[Path]:
    """Write `report.json`, `report.html` and a PNG for each chart into a directory, which is there whole or not at all.

    An older report in its place goes once the new one is complete.

    Args:
        report: What to write.
        directory: Does not exist, is empty, or holds a report.

    Returns:
        The files, the data and the page first.

    Raises:
        FileExistsError: The directory holds something that no report does.
        OSError: It cannot be written.
    """
    check_directory(directory)
    charts = charts_of(report)
    there = directory.resolve()  # a link to a directory stays one
    there.mkdir(parents=True, exist_ok=True)  # so that two at once replace each other's
    with replacing_directory(there) as temporary:
        write_synced(temporary / DATA, report.model_dump_json(indent=1).encode())
        write_synced(temporary / PAGE, page(report, charts).encode())
        pictures = write_pictures(charts, temporary)
    return [directory / DATA, directory / PAGE, *(directory / picture.name for picture in pictures)]


def check_directory(directory: Path) -> None:
    """Check that a report may be written to a directory.

    Raises:
        FileExistsError: It holds something that no report does.
    """
    if not directory.exists():
        return
    if not directory.is_dir():
        raise FileExistsError(f"{directory} is there already, and is no directory")
    names = sorted(path.name for path in directory.iterdir())
    known = (DATA, PAGE, *(f"{name}.png" for name in get_args(ChartName)))
    strange = [name for name in names if name not in known]
    if names and not strange and not _is_report(directory / DATA):
        strange = [DATA] if DATA in names else names
    if strange:
        raise FileExistsError(
            f"{directory} is there already and no report (it holds {strange[0]}); move that away or name another "
            "directory"
        )


def _is_report(data: Path) -> bool:
    """Return whether a file is a report's data, of this version or another one."""
    try:
        found = json.loads(data.read_bytes())
    except (FileNotFoundError, ValueError):
        return False
    return isinstance(found, dict) and {"format_version", "verdict", "dense", "pruned", "curve"} <= found.keys()
