"""The whole report: its files, and that it stands alone."""

from __future__ import annotations

import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from helpers.records import block, measurement, trial
from scanlab.contract.machine import this_machine
from scanlab.contract.problem import ScanProblem
from scanlab.errors import ResultsError
from scanlab.report.formatting import TIMES
from scanlab.report.write import write_report

MS = 1_000_000
PROBLEM = ScanProblem(batch=1, dim=4, length=8, state=2)


def timed(speedup: float, **changes):
    return trial(**({"measurement": measurement(block([round(8 * MS / speedup)], [8 * MS]))} | changes))


TRIALS = [
    timed(2.0, config={"chunk": 8, "threads": 1}, id="a", started_at=1.0),
    timed(3.0, config={"chunk": 16, "threads": 2}, id="b", started_at=2.0),
    timed(2.8, config={"chunk": 16, "threads": 2}, id="c", started_at=3.0, phase="comparison"),
    timed(31.4, backend="native", config={"threads": 2}, id="d", started_at=4.0, phase="comparison"),
    trial(backend="<b>", config={}, state="rejected", verdict=None, measurement=None, reason="<i>no</i>", id="e"),
    *(
        timed(2.0, phase="lengths", problem=PROBLEM.replace(length=length), id=f"f{length}", started_at=90_000.0)
        for length in (64, 128)
    ),
]


class Page(HTMLParser):
    """References of a page, and its tags in order."""

    def __init__(self, text):
        super().__init__()
        self.sources, self.links, self.open, self.tags = [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.sources += [value for name, value in attrs if name == "src"]
        self.links += [value for name, value in attrs if name == "href"]
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    return folder, write_report(TRIALS, this_machine(), folder, {"chunked": {"chunk": 0.4, "threads": 0.6}})


def test_it_returns_what_it_wrote(written):
    folder, paths = written
    assert paths[0] == folder / "report.md"
    assert sorted(paths) == sorted(path for path in folder.rglob("*") if path.is_file())
    assert {path.suffix for path in paths} == {".md", ".html", ".csv", ".png", ".svg"}


def test_the_markdown_names_the_fastest_and_shows_pictures_that_are_there(written):
    folder, _ = written
    text = (folder / "report.md").read_text()
    assert (
        "Fastest: native threads=2, 255 µs a call, 31.4 times as fast as reference threads=1 (too few blocks"
        " for an interval), which took 8.00 ms." in text
    )
    assert this_machine().describe() in text
    assert "measured from 1970-01-01 to 1970-01-02" in text
    linked = re.findall(r"\]\(([^)]+)\)", text)
    assert len(linked) == 9
    assert all((folder / target).is_file() for target in linked)


def test_the_page_stands_alone(written):
    folder, _ = written
    text = (folder / "index.html").read_text()
    page = Page(text)
    assert page.open == []
    assert not page.sources
    pictures = re.findall(r"<svg.*?</svg>", text, flags=re.DOTALL)
    assert len(pictures) == 5  # the bars of the speed-up are part of the page itself
    assert all(ElementTree.fromstring(picture).tag.endswith("svg") for picture in pictures)
    assert [link.partition(";")[0] for link in page.links if not link.startswith("#")] == ["data:text/csv"] * 3
    assert not {"script", "link", "iframe", "img"} & set(page.tags)
    assert set(re.findall(r"url\((.)", text)) <= {"#"}


def test_the_pictures_follow_the_page_into_its_dark_scheme(written):
    folder, _ = written
    text = (folder / "index.html").read_text()
    assert "prefers-color-scheme: dark" in text
    pictures = "".join(re.findall(r"<svg.*?</svg>", text, flags=re.DOTALL))
    assert "fill: var(--paper)" in pictures
    assert not re.search("#1f2328|#ffffff", pictures, flags=re.IGNORECASE)


def test_the_page_opens_with_the_winner_and_by_how_much(written):
    folder, _ = written
    text = (folder / "index.html").read_text()
    assert text.index(f"native is 31.4{TIMES} as fast as the reference loop") < text.index("<svg")
    assert "1 of 3 backends" in text
    assert "&lt;b&gt;: takes no part, &lt;i&gt;no" in text


def test_names_and_reasons_are_escaped_in_the_page(written):
    folder, _ = written
    text = (folder / "index.html").read_text()
    assert "&lt;i&gt;no&lt;/i&gt;" in text
    assert "<i>no</i>" not in text


def test_every_trial_is_in_the_csv_of_trials(written):
    folder, _ = written
    assert len((folder / "tables" / "trials.csv").read_text().splitlines()) == 1 + len(TRIALS)


def test_the_same_trials_in_any_order_give_the_same_report(written, tmp_path):
    folder, paths = written
    again = write_report(TRIALS[::-1], this_machine(), tmp_path, {"chunked": {"chunk": 0.4, "threads": 0.6}})
    assert [path.relative_to(folder) for path in paths] == [path.relative_to(tmp_path) for path in again]
    assert [path.read_bytes() for path in paths] == [path.read_bytes() for path in again]


def test_without_trials_of_this_machine_it_says_what_to_do(tmp_path):
    with pytest.raises(ResultsError, match="none of the 0 trials is of this machine.*scanlab tune"):
        write_report([], this_machine(), tmp_path)


def test_a_folder_that_cannot_be_written_is_named_with_the_cure(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ResultsError, match=r"file: cannot write the report: .*Name a folder"):
        write_report(TRIALS[:1], this_machine(), tmp_path / "file")


def test_where_every_backend_failed_the_report_says_so(tmp_path):
    write_report([TRIALS[4]], this_machine(), tmp_path)
    text = (tmp_path / "report.md").read_text()
    assert "No backend has numbers" in text
    assert "takes no part: <i>no</i>" in text


def test_the_report_does_not_load_optuna_or_pyplot():
    program = (
        "import sys; import scanlab.report.write; print([name for name in sys.modules"
        " if name == 'optuna' or name == 'matplotlib.pyplot'])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_reason_that_backends_share_is_said_once(tmp_path):
    rejected = [replace(TRIALS[4], backend=name, reason="no time left") for name in ("chunked", "native")]
    write_report(rejected, this_machine(), tmp_path)
    (line,) = (line for line in (tmp_path / "report.md").read_text().splitlines() if "Not measured" in line)
    assert "chunked, native: takes no part, no time left" in line.replace("\\", "")


def test_what_other_processes_disturbed_is_one_reason_for_all(tmp_path):
    names = ("chunked", "native", "two_phase")
    disturbed = [timed(2.0, backend=name, state="disturbed", reason="1 of 1 blocks") for name in names]
    write_report([*disturbed, TRIALS[4]], this_machine(), tmp_path)
    (line,) = (line for line in (tmp_path / "report.md").read_text().splitlines() if "Not measured" in line)
    assert "4 of 4 backends" in line
    assert "disturbed by other processes: chunked, native, two_phase; <b>: takes no part" in line.replace("\\", "")
