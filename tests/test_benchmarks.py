"""The benchmark's own machinery: what is measured when, what a line says, and where the tables go. No row is measured."""

from __future__ import annotations

import csv
import importlib
import json
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from actstore.engine.capture.scale import file_sizes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module", autouse=True)
def checkout() -> Iterator[None]:
    """`benchmarks` is a folder of the checkout, not of what is installed."""
    sys.path.insert(0, str(ROOT))
    yield
    sys.path.remove(str(ROOT))


def load(name: str) -> Any:
    return importlib.import_module(f"benchmarks.{name}")


class Clock:
    """Time that passes only where a candidate says so."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now, self.calls = 0.0, []
        monkeypatch.setattr(load("registry").time, "perf_counter", lambda: self.now)
        monkeypatch.setattr(load("registry"), "has_counter", lambda: False)

    def takes(self, name: str, *seconds: float) -> Callable[[], None]:
        """Something that takes so long, the last for ever after."""
        left = list(seconds)

        def run() -> None:
            self.calls.append(name)
            self.now += left.pop(0) if len(left) > 1 else left[0]

        return run


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def row(candidates: dict[str, Any], **settings: Any) -> Any:
    """A row of these candidates."""

    @contextmanager
    def prepare(quick: bool) -> Iterator[dict[str, Any]]:
        yield candidates

    return load("registry").Row("a row", prepare, (), **settings)


def test_candidates_take_turns_after_a_warm_up_that_is_not_timed(clock: Clock) -> None:
    registry = load("registry")
    candidates = {
        "A": registry.Candidate(clock.takes("A", 100, 1, 2, 3)),
        "B": registry.Candidate(clock.takes("B", 100, 10, 10, 9), clock.takes("before B", 50)),
    }
    measured = registry.measure(row(candidates, repeats=3), quick=False)
    assert clock.calls == ["A", "B"] + ["A", "before B", "B"] * 3
    assert measured.seconds == {"A": [1, 2, 3], "B": [10, 10, 9]}
    first, second = measured.lines()
    assert (first["row"], first["candidate"], first["ratio"]) == ("a row", "A", 1)
    # The median of the ratios pair by pair, not the ratio of the medians.
    assert (second["median_s"], second["min_s"], second["ratio"]) == (10, 9, 5)
    assert (second["ratio_min"], second["ratio_max"], second["rounds"]) == (3, 10, 3)


def test_a_sample_counts_as_often_as_the_whole_holds_it(clock: Clock) -> None:
    registry = load("registry")
    candidates = {
        "all": registry.Candidate(clock.takes("all", 2)),
        "× 8": registry.Candidate(clock.takes("8", 3), times=8),
    }
    assert registry.measure(row(candidates, repeats=1), quick=False).seconds == {"all": [2], "× 8": [24]}


@pytest.mark.parametrize(
    ("quick", "repeats", "warm_up", "times"),
    [(False, 5, True, 6), (True, 5, True, 4), (True, 1, True, 2), (False, 1, False, 1)],
)  # fmt: skip
def test_how_often_a_candidate_runs(clock: Clock, quick: bool, repeats: int, warm_up: bool, times: int) -> None:
    registry = load("registry")
    one = row({"A": registry.Candidate(clock.takes("A", 1))}, repeats=repeats, warm_up=warm_up)
    registry.measure(one, quick=quick)
    assert len(clock.calls) == times


def test_rows_are_chosen_by_a_word_and_left_out_of_quick_runs() -> None:
    registry = load("registry")
    always, never_quick = row({}), row({}, quick=False)
    assert registry.choose((always, never_quick), quick=True) == [always]
    assert registry.choose((always, never_quick), quick=False) == [always, never_quick]
    assert registry.choose((always, never_quick), quick=False, only="another") == []


def test_every_row_has_a_name_of_its_own_and_tests_that_are_there() -> None:
    run = load("run")
    names = [one.name for one in run.ROWS]
    assert len(set(names)) == len(names)
    for test in {test for one in run.ROWS for test in one.tests} | {*run.QUICK_TESTS, *run.sizes.TESTS}:
        assert (ROOT / test).exists(), test
    named = {test for one in run.ROWS for test in one.tests}
    assert all(any(test.startswith(other) for other in named) for test in run.QUICK_TESTS)


@pytest.mark.parametrize(
    ("arguments", "tested"),
    [
        (["--quick", "--only", "a kernel"], ["tests/kernels/test_new.py"]),
        (["--quick", "--only", "sizes"], []),
        (["--only", "sizes"], ["tests/kernels/test_pack_lossy.py", "tests/store"]),
        (["--only", "a kernel"], ["tests/engine/naica", "tests/kernels/test_new.py"]),
    ],
    ids=["quick", "quick, sizes", "whole, sizes", "whole"],
)
def test_a_run_tests_what_it_measures(arguments: list[str], tested: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    run, commands = load("run"), []
    rows = [
        load("registry").Row(name, lambda quick: None, tests)
        for name, tests in {
            "a kernel": ("tests/kernels/test_new.py", "tests/engine/naica"),
            "another": ("tests/kernels/test_other.py",),
        }.items()
    ]

    def fail(command: list[str], **settings: Any) -> Any:
        commands.append(command)
        return subprocess.CompletedProcess(command, 1)

    monkeypatch.setattr(run, "ROWS", tuple(rows))
    monkeypatch.setattr(run.subprocess, "run", fail)
    monkeypatch.setattr(sys, "argv", ["run.py", *arguments])
    with pytest.raises(SystemExit, match="The tests failed, so nothing was measured"):
        run.main()
    files = {word for word in commands[0] if word.startswith("tests/")}
    assert files == {*tested, *(run.QUICK_TESTS if "--quick" in arguments else ())}


def line(
    candidate: str, median: float, low: float, high: float, ratios: tuple[float, float, float], rounds: int = 5
) -> dict[str, Any]:
    """One line of a row, as results.csv has it."""
    times = {"median_s": median, "min_s": low, "max_s": high, "rounds": rounds}
    return {
        "row": "read",
        "candidate": candidate,
        **times,
        **dict(zip(("ratio", "ratio_min", "ratio_max"), ratios, strict=True)),
    }


def test_the_table_names_a_row_once_and_shows_small_times_and_ratios() -> None:
    full_table = load("full_table")
    lines = [
        line("ours", 0.1, 0.1, 0.1, (1, 1, 1)),
        line("theirs", 2e-5, 1e-5, 3e-5, (0.0002, 0.0001, 0.0003)),
        line("slow", 300, 290, 310, (3000, 2900, 3100)),
    ]
    skipped = {"on a GPU": "a GPU", "read": "what the table has from a run elsewhere"}
    table = full_table.markdown([one | {"machine": "a machine"} for one in lines], skipped)
    assert "| read | ours | 5 | 100.0 ms | 100.0 ms – 100.0 ms | 1.00 |  |" in table
    assert "|  | theirs |  | 20.0 µs | 10.0 µs – 30.0 µs | 0.0002 | 0.0001 – 0.0003 |" in table
    assert "|  | slow |  | 300.00 s | 290.00 s – 310.00 s | 3,000 | 2,900 – 3,100 |" in table
    assert "Measured on a machine. " in table
    assert table.rstrip().endswith("Not measured: a GPU.")


def test_one_round_has_no_range() -> None:
    full_table = load("full_table")
    lines = [line("ours", 1, 1, 1, (1, 1, 1), rounds=1), line("theirs", 9, 9, 9, (9, 9, 9), rounds=1)]
    assert full_table.cells(lines) == [
        ["read", "ours", "1", "1.00 s", "", "1.00", ""],
        ["", "theirs", "", "9.00 s", "", "9.00", ""],
    ]


def test_instructions_are_a_column_where_they_were_counted(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    registry, full_table = load("registry"), load("full_table")
    monkeypatch.setattr(registry, "has_counter", lambda: True)
    monkeypatch.setattr(registry, "count_instructions", lambda run: None if run is uncounted else 2_340_000)
    uncounted = clock.takes("theirs", 4)
    made = row({"ours": registry.Candidate(clock.takes("ours", 1), times=10), "theirs": registry.Candidate(uncounted)})
    lines = list(registry.measure(made, quick=False).lines())
    assert [one["instructions"] for one in lines] == [23_400_000, ""]
    assert full_table.columns(lines) == [*full_table.COLUMNS, "10⁶ instructions"]
    assert [cells[-1] for cells in full_table.cells(lines)] == ["23.4", ""]
    assert [one["instructions"] for one in registry.measure(made, quick=True).lines()] == ["", ""]


PERF = """#!{python}
import os, signal, sys
options = dict(zip(sys.argv[2::2], sys.argv[3::2]))
control, answers = map(int, options["--control"].removeprefix("fd:").split(","))
def end(*_):
    with open(options["--output"], "w") as file:
        file.write("# started on a day\\n\\n{counted};;" + options["--event"] + ";100;100.00;;\\n")
    sys.exit()
signal.signal(signal.SIGINT, end)
if "{counted}" == "nothing":
    sys.exit(129)
while os.read(control, 16):
    os.write(answers, b"ack\\n\\0")
signal.pause()
"""
"""As far as it is spoken to, `perf stat`: machines that run this have no counter of instructions, or no perf."""


@pytest.mark.parametrize(("counted", "found"), [("12345", 12345), ("<not supported>", None), ("nothing", None)])
def test_what_perf_says_is_the_number_of_instructions(
    counted: str, found: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    perf = tmp_path / "perf"
    perf.write_text(PERF.format(python=sys.executable, counted=counted))
    perf.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    ran: list[int] = []
    assert load("instructions").count_instructions(lambda: ran.append(1)) == found
    assert ran == ([] if counted == "nothing" else [1])


def test_perf_counts_what_this_process_and_no_other_does(monkeypatch: pytest.MonkeyPatch) -> None:
    count = load("instructions").count_instructions
    pages = count(lambda: bytearray(64 << 20), "page-faults:u")
    if pages is None:
        pytest.skip("no perf, or it may count nothing")
    assert pages >= (64 << 20) / 4096 / 512  # each page once, or each huge page
    assert count(lambda: None, "page-faults:u") < 100
    monkeypatch.setenv("PATH", "")
    assert count(lambda: None) is None


def test_rows_that_are_measured_again_say_where_and_when() -> None:
    run, full_table, readme_rows = load("run"), load("full_table"), load("readme_rows")
    before = [
        {**line("ours", 1, 1, 2, (1, 1, 1)), "row": row, "machine": "commit 1"}
        for row in ("read", "graphs of a model", "last")
    ]
    again = [
        {**line("actstore", 3, 3, 4, (1, 1, 1)), "row": "graphs of a model", "machine": "commit 2"},
        {**line("actstore", 5, 5, 6, (1, 1, 1)), "row": "new", "machine": "commit 2"},
    ]
    lines = run.merged(before, again)
    assert [(one["row"], one["median_s"]) for one in lines] == [
        ("read", 1),
        ("graphs of a model", 3),
        ("last", 1),
        ("new", 5),
    ]
    # As many rows of each: the first one stands first, the others are named.
    assert "Measured on commit 1; of graphs of a model, new: commit 2. " in full_table.markdown(lines, {})
    assert "Medians of 5 rounds on commit 2." in readme_rows.markdown(lines)


@pytest.mark.parametrize(
    "arguments", [["--update"], ["--quick", "--update", "--only", "pack"]], ids=["all rows", "quick"]
)
def test_only_some_rows_of_a_whole_run_update_the_tables(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["run.py", *arguments])
    with pytest.raises(SystemExit) as ended:
        load("run").main()
    assert ended.value.code == 2
    assert "use it with --only and without --quick" in capsys.readouterr().err


@pytest.mark.parametrize("update", [True, False])
def test_a_part_of_the_rows_is_written_where_asked(
    update: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, clock: Clock
) -> None:
    run, registry = load("run"), load("registry")
    pages: dict[str, str] = {}
    monkeypatch.setattr(run, "rewrite", pages.__setitem__)
    monkeypatch.setattr(run, "RESULTS", tmp_path / "results.csv")
    monkeypatch.setattr(run, "machine", lambda: "commit 2")
    made = row({"actstore": registry.Candidate(clock.takes("actstore", 3))}, repeats=2)
    monkeypatch.setattr(run, "ROWS", (made,))
    old = [{**line("ours", 1, 1, 2, (1, 1, 1)), "row": name, "machine": "commit 1"} for name in ("a row", "another")]
    run.write_tables(old)
    pages.clear()
    monkeypatch.setattr(sys, "argv", ["run.py", "--no-tests", "--only", "a row", *["--update"] * update])
    run.main()
    found = [(one["row"], float(one["median_s"]), one["rounds"], one["machine"]) for one in run.read_csv()]
    if update:
        assert found == [("a row", 3, "2", "commit 2"), ("another", 1, "5", "commit 1")]
        assert "of another: commit 1" in pages["benchmark"]
    else:
        assert found[0] == ("a row", 1, "5", "commit 1")
        assert not pages


def test_the_commit_says_whether_the_code_is_another(tmp_path: Path) -> None:
    commit = load("marked").commit

    def git(*arguments: str) -> None:
        identity = ("-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false")
        subprocess.run(["git", *identity, *arguments], cwd=tmp_path, check=True, capture_output=True)

    for name in ("README.md", "kernel.py"):
        (tmp_path / name).write_text("1\n")
    git("init")
    git("add", ".")
    git("commit", "-m", "1")
    short = commit(tmp_path)
    assert len(short) >= 7
    (tmp_path / "README.md").write_text("what a run wrote\n")
    assert commit(tmp_path) == short
    (tmp_path / "kernel.py").write_text("2\n")
    assert commit(tmp_path) == f"{short} with changes"


@pytest.mark.parametrize(
    ("ratios", "said"),
    [((1.03, 0.96, 1.14), True), ((0.98, 0.9, 1.0), True), ((1.03, 1.01, 1.14), False), ((0.8, 0.7, 0.99), False)],
)
def test_where_rounds_disagree_no_difference_was_seen(ratios: tuple[float, float, float], said: bool) -> None:
    full_table = load("full_table")
    assert (full_table.NO_DIFFERENCE in full_table.difference(line("other", 1, 1, 1, ratios))) is said


def test_the_table_of_the_page_is_that_of_the_results() -> None:
    full_table = load("full_table")
    with full_table.RESULTS.open(newline="") as file:
        lines = list(csv.DictReader(file))
    table = load("marked").table(full_table.columns(lines), full_table.cells(lines), left=2)
    assert f"<!-- benchmark -->\n{table}\n\n" in (ROOT / "docs" / "benchmarks.md").read_text()


def quick_run(ours: list[float], theirs: list[float]) -> list[Any]:
    """What a quick run measured: a row with an alternative, and one without."""
    measurement = load("registry").Measurement
    return [
        measurement("read", {"a limit": theirs, "actstore, all": ours}),
        measurement("growth", {"1,024 tokens": ours, "4,096 tokens": theirs}),
    ]


KIND = ("a processor", 2, "3.11", "2.13.0+cpu", "no GPU")


@pytest.mark.parametrize(
    ("ours", "theirs", "slower", "faster"),
    [
        ([1.0, 1.1, 1.2], [0.5, 0.5, 0.5], 0, 0),  # what it was
        ([10.0, 11.0, 12.0], [5.0, 5.0, 5.0], 0, 0),  # on a machine that is busy
        ([1.5, 1.6, 1.7], [0.5, 0.5, 0.5], 1, 0),
        ([0.5, 0.5, 0.5], [0.5, 0.5, 0.5], 0, 1),
        ([1.1, 1.6, 1.9], [0.5, 0.5, 0.5], 0, 0),  # one round as fast as before
        ([1.21, 1.22, 1.23], [0.5, 0.5, 0.5], 0, 0),  # too little for three rounds
    ],
)
def test_a_quick_run_says_what_changed_against_the_alternative(
    tmp_path: Path, ours: list[float], theirs: list[float], slower: int, faster: int
) -> None:
    verdict = load("verdict")
    kind, file = verdict.Kind(*KIND), tmp_path / "quick.json"
    verdict.record(quick_run([1.0, 1.1, 1.2], [0.5, 0.5, 0.5]), kind, "this machine, commit 1", file)
    *changed, last = verdict.verdict(quick_run(ours, theirs), kind, file)
    assert [text.split(",")[0] for text in changed] == ["slower"] * slower + ["faster"] * faster
    assert all(text.endswith("read: actstore, all") for text in changed)
    assert last.startswith(f"Verdict: of 1 figures that are in both runs, {slower} slower, {faster} faster")
    assert "commit 1" in last


def test_a_quick_run_is_compared_with_nothing_but_its_like(tmp_path: Path) -> None:
    verdict = load("verdict")
    kind, file, measured = verdict.Kind(*KIND), tmp_path / "quick.json", quick_run([1.0], [0.5])
    assert verdict.verdict(measured, kind, file)[0].startswith("No verdict: the checkout has no figures")
    verdict.record(measured, kind, "this machine", file)
    (said,) = verdict.verdict(measured, verdict.Kind("another", *KIND[1:]), file)
    assert said.startswith("No verdict: the figures to compare with are of another kind of machine (a processor, 2 ")


def test_only_a_whole_quick_run_is_recorded(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = load("run")
    for arguments in (["--record"], ["--quick", "--record", "--only", "pack"]):
        monkeypatch.setattr(sys, "argv", ["run.py", *arguments])
        with pytest.raises(SystemExit) as ended:
            run.main()
        assert ended.value.code == 2
        assert "--record keeps the figures of a whole quick run" in capsys.readouterr().err


def test_the_text_between_marks_is_replaced_wherever_it_stands_once(tmp_path: Path) -> None:
    marked = load("marked")
    (tmp_path / "docs").mkdir()
    (tmp_path / "README.md").write_text("above\n<!-- one -->\nold\n\nold\n<!-- /one -->\nbelow\n")
    (tmp_path / "docs" / "page.md").write_text("<!-- two -->\n<!-- /two -->\n")
    assert marked.rewrite("one", r"new \1", tmp_path) == tmp_path / "README.md"
    assert (tmp_path / "README.md").read_text() == "above\n<!-- one -->\nnew \\1\n<!-- /one -->\nbelow\n"
    assert marked.rewrite("two", "new\n\n", tmp_path) == tmp_path / "docs" / "page.md"
    assert (tmp_path / "docs" / "page.md").read_text() == "<!-- two -->\nnew\n<!-- /two -->\n"
    with pytest.raises(SystemExit, match=r"<!-- three -->.*found none"):
        marked.rewrite("three", "new", tmp_path)
    (tmp_path / "docs" / "page.md").write_text("<!-- one -->\n<!-- /one -->\n")
    with pytest.raises(SystemExit, match=r"found README.md, docs/page.md"):
        marked.rewrite("one", "new", tmp_path)


@pytest.mark.parametrize(
    "mark", ["benchmark", "benchmark-rows", "sizes", "host-cost", "gpu-summary", "gpu-kernels", "gpu-capture"]
)
def test_the_documentation_has_a_place_for_what_is_measured(mark: str) -> None:
    pages = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]
    assert (
        sum(f"<!-- {mark} -->\n" in page.read_text() and f"<!-- /{mark} -->" in page.read_text() for page in pages) == 1
    )


def test_the_rows_in_the_readme_are_those_of_the_results() -> None:
    readme_rows = load("readme_rows")
    with readme_rows.RESULTS.open(newline="") as file:
        table = readme_rows.markdown(csv.DictReader(file))
    assert table.count("\n| ") == len(readme_rows.ROWS) == 6
    assert "Not measured" not in table
    assert f"<!-- benchmark-rows -->\n{table}\n<!-- /benchmark-rows -->" in (ROOT / "README.md").read_text()


def test_a_row_that_was_not_measured_is_named_and_not_shown() -> None:
    readme_rows = load("readme_rows")
    lines = [
        {"row": row, "candidate": name, "median_s": median, "machine": "a machine", "rounds": rounds}
        for row, name, median, rounds in (
            ("graphs of a model, demo", "actstore, all", 2e-5, 7),
            ("graphs of a model, demo", "as published: many", 300.0, 7),
            ("capture, 6 layers", "actstore, float16", 1.0, 9),
        )
    ]
    table = readme_rows.markdown(lines)
    assert "| graphs of 2,688 neurons | 20.0 µs | as published: many: 300.00 s |" in table
    capture, *others = [short.title for short in readme_rows.ROWS if short.title != "graphs of 2,688 neurons"]
    assert f"| {capture} | 1.00 s |  |" in table
    assert table.endswith(
        f"Medians of 7 to 9 rounds on a machine. Not measured, or not whole: {'; '.join([capture, *others])}."
    )
    with pytest.raises(ValueError, match="begins with 'actstore', found actstore, one, actstore, two"):
        readme_rows.only_name(["actstore, one", "actstore, two"], "actstore")


def test_made_up_stores_hold_what_their_source_says(tmp_path: Path) -> None:
    import actstore

    synthetic = load("synthetic")
    source = synthetic.Planted(2, 33)
    synthetic.write_capture(source, tmp_path / "store", "corpus", synthetic.BLOCK + 512)
    capture = actstore.open(tmp_path / "store").capture()
    ids = source.windows(2, 1)
    expected = source.values(1, 1, ids)
    assert capture.record.plan.n_tokens == synthetic.BLOCK + 512
    assert capture.tokens()["id"].to_numpy()[synthetic.BLOCK :].tolist() == ids.ravel().tolist()
    assert np.array_equal(capture.activations(1, 32)[synthetic.BLOCK :], expected[:, 32].astype(np.float32))
    assert capture.statistics().sites["mlp.post", 1].count.tolist() == [synthetic.BLOCK + 512] * 33
    assert 0 < (expected > 0.5).mean() < 0.1


def test_splits_and_arrow_rows_hold_what_the_matrix_holds(tmp_path: Path) -> None:
    reading = load("rows.reading")
    rng = np.random.default_rng(0)
    values = rng.standard_normal((2 * reading.WINDOW, reading.N_NEURONS)).astype(np.float16)
    values[rng.random(values.shape) < 0.9] = 0
    rows, splits = reading.ArrowRows.write(tmp_path, values), reading.Splits.write(tmp_path, values)
    assert [file.name for file in splits.files.values()][:2] == ["0_306.safetensors", "307_613.safetensors"]
    for neuron in (0, 306, 307, reading.N_NEURONS - 1):
        for column in (rows.feather_neuron(neuron), rows.parquet_neuron(neuron), splits.neuron(neuron)):
            assert np.array_equal(column, values[:, neuron])
    for token in (0, 255, 256, 511):
        for row_values in (rows.feather_token(token), rows.parquet_token(token), splits.token(token)):
            assert np.array_equal(row_values, values[token])
    expected = reading.numpy_statistics(values)
    for mine, theirs in zip(reading.recount(values), expected, strict=True):
        assert np.allclose(mine, theirs, rtol=1e-6)


def test_entropy_is_that_of_the_stored_patterns(tmp_path: Path) -> None:
    import actstore

    sizes, synthetic = load("rows.sizes"), load("synthetic")

    class Even(synthetic.Planted):
        """Every value one of four, as often."""

        def values(self, layer: int, block: int, ids: np.ndarray) -> np.ndarray:
            return np.tile(np.arange(4, dtype=np.float16), ids.size * self.n_neurons // 4).reshape(ids.size, -1)

    synthetic.write_capture(Even(1, 8), tmp_path / "store", "corpus", 512)
    assert sizes.entropy(actstore.open(tmp_path / "store").capture()) == pytest.approx(2 / 8)


def test_the_plain_coverage_counts_what_the_definitions_say() -> None:
    coverage = load("rows.coverage")
    plain = coverage.Plain(np.zeros(12, np.float32), np.ones(12, np.float32))
    batch = np.linspace(0, 1, 12, dtype=np.float32)[None]
    batch[0, 0], batch[0, 11] = -1, 2
    plain.add(batch)
    plain.add(batch)
    # Scaled to 0 … 1 over -1 … 2, those above 0.5 are beyond 0.5 themselves; two are beyond their range, one of them above.
    assert plain.covered() == [6, 10, 2, 1, 10, 1]


def test_the_page_on_scale_has_the_sums_of_the_functions_that_captures_are_planned_with() -> None:
    scale = load("tables.capture_scale")
    page = (ROOT / "docs" / "scale.md").read_text(encoding="utf-8")
    for mark, text in scale.markdown(scale.read_encoding()).items():
        assert f"<!-- {mark} -->\n{text}\n<!-- /{mark} -->" in page
    record = scale.capture_record("7B", "int8", 10**9)
    assert record.bundled
    assert scale.estimate_objects(record) < 10**6
    assert len(file_sizes(scale.capture_record("7B", "int8", 10**9, bundle=False))) == 97
    assert not scale.capture_record("7B", "int8", 10**6).bundled
    assert not scale.capture_record("7B", "none", 10**9).bundled, "it would have as many objects"


def test_everything_that_a_gpu_is_to_measure_runs_in_the_interpreter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpu, tests = load("gpu"), load("on_gpu.tests")
    (tmp_path / "test_one.py").write_text("def test_passes():\n    pass\n")
    monkeypatch.setattr(tests, "ROOT", tmp_path)
    monkeypatch.setattr(tests, "SMALL_TESTS", ("test_one.py",))
    results = gpu.measure(gpu.PARTS, small=True, output=tmp_path / "gpu.json", isolated=False)
    assert {name: part.get("error") for name, part in results["parts"].items()} == dict.fromkeys(gpu.PARTS)
    rows = {name: part.get("rows", []) for name, part in results["parts"].items()}
    assert all(row["right"] for row in rows["large"])
    assert {row["name"]: row["right"] for row in rows["kernels"] if "right" in row}.keys() >= {"quantise", "sparsify"}
    assert [row["passed"] for row in rows["tests"]] == [1]
    precisions = {row["name"].partition(",")[0] for row in rows["capture"] if "ratio" in row}
    assert precisions == {"bare forward pass", "hooks that do nothing", "exact", "half", "int8", "sparse", "none"}
    tables = load("on_gpu.tables")
    with pytest.raises(SystemExit, match="was not measured on a GPU"):
        tables.read(tmp_path / "gpu.json")
    assert json.loads((tmp_path / "gpu.json").read_text())["small"]
    # With a card's name they would be a table; nobody is shown one otherwise.
    of_card = results | {"machine": results["machine"] | {"card": "H200", "memory_nbytes": 2**37, "driver": "1"}}
    found = tables.markdown(of_card)
    assert "| sparsify |" in found["gpu-kernels"]
    assert "| sparse, written |" in found["gpu-capture"]
    assert "1 of its 32 layers" in found["gpu-capture"]


def test_a_part_that_fails_is_recorded_and_the_next_one_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = load("gpu")

    def run_part(name: str, small: bool, told: Callable[[dict[str, Any]], None]) -> None:
        told({"part": name, "name": "one", "median_s": 1.0})
        if name == "large":
            raise RuntimeError("an illegal memory access was encountered")

    monkeypatch.setattr(gpu, "run_part", run_part)
    results = gpu.measure(["large", "kernels"], small=True, output=None, isolated=False)
    assert results["parts"]["large"]["status"] == "failed"
    assert results["parts"]["large"]["error"] == "RuntimeError: an illegal memory access was encountered"
    assert [row["name"] for row in results["parts"]["large"]["rows"]] == ["one"]
    assert results["parts"]["kernels"]["status"] == "measured"
    assert sum(gpu.PARTS.values()) < 360


def test_a_part_whose_time_is_up_is_ended(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    gpu = load("gpu")
    script = tmp_path / "part.py"
    script.write_text('import time\nprint(\'{"name": "begun"}\', flush=True)\ntime.sleep(600)\n')
    monkeypatch.setattr(gpu, "__file__", str(script))
    monkeypatch.setitem(gpu.PARTS, "kernels", 0.5)
    results = gpu.measure(["kernels"], small=True, output=None)
    part = results["parts"]["kernels"]
    assert (part["status"], part["error"], part["rows"]) == ("failed", "ended after 0.5 s", [{"name": "begun"}])


def test_the_pages_say_of_gpus_what_was_measured() -> None:
    gpu, tables = load("gpu"), load("on_gpu.tables")
    pages = "".join((ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "docs/gpu.md"))
    for mark, text in tables.markdown(tables.read(gpu.RESULTS)).items():
        assert f"<!-- {mark} -->\n{text}\n<!-- /{mark} -->" in pages


def test_the_page_says_how_many_bytes_of_a_sparse_token_leave_the_gpu(tmp_path: Path) -> None:
    cost = load("rows.host_cost")
    folder = cost.Folder(tmp_path, read_only=False)
    width = cost.MODEL_NEURONS // 32
    record = cost.plan_capture(folder, "sparse", "huffman", cost.Planned({0: width}, n_blocks=1))
    statistics = cost.BlockStatistics.empty(record, "cpu")
    nbytes = 32 * cost.copied_nbytes(record, statistics) / cost.SLOTS
    page = (ROOT / "docs" / "gpu.md").read_text(encoding="utf-8")
    assert f"{nbytes / 1e3:.0f} kB per token" in page
    assert f"{32 * statistics.nbytes / cost.SLOTS / 1e3:.0f} of statistics" in page
