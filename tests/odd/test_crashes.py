"""No crash may end with the exit code of a verdict: 70, one sentence without names of files, and where the trace is."""

from __future__ import annotations

import errno
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

import microtome.cli
from microtome import crash
from microtome.cli import app
from microtome.errors import OptionError

PATIENT = "DOE^JOHN_1950.nii.gz"
DEMO = "microtome.demo.network:demo_network"
# A command, and what it calls.
COMMANDS = {
    "inspect": (["inspect", DEMO], "microtome.verbs.inspect.inspect"),
    "bench": (["bench", DEMO], "microtome.verbs.bench.bench"),
    "compress": (["compress", DEMO, ".", "-o", "x"], "microtome.verbs.compress.compress"),
    "evaluate": (["evaluate", DEMO, ".", "-o", "x"], "microtome.verbs.evaluate.evaluate"),
    "predict": (["predict", "p", "i", "-o", "x"], "microtome.verbs.predict.predict"),
    "report": (["report", "p"], "microtome.verbs.report.report"),
    "demo": (["demo", "-o", "x"], "microtome.demo.run.demo"),
    "recipes": (["recipes"], "microtome.recipes.files.load"),
    "recipes show": (["recipes", "show", "int8"], "microtome.recipes.files.find"),
}
FAULTS = [
    IndexError(PATIENT),
    MemoryError(),
    RecursionError(PATIENT),
    BrokenPipeError(errno.EPIPE, PATIENT),  # of another pipe than standard output
    OSError(errno.EIO, "broken", PATIENT),
    SystemExit(1),
    SystemExit(PATIENT),
    SystemExit(0),
    EOFError(),
    AssertionError(),
    StopIteration(),
    GeneratorExit(),
    UnicodeDecodeError("utf-8", b"\xff", 0, 1, PATIENT),
    ModuleNotFoundError(PATIENT, name="nothing"),
]


@pytest.fixture(autouse=True)
def traces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder for temporary files."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    return folder


def raising(error: BaseException):
    def run(*_, **__):
        raise error

    return run


def kept(said: str) -> str:
    """The trace that a sentence points to."""
    (path,) = re.findall(r"is in (\S+)", said.replace("\n", ""))
    assert oct(Path(path).stat().st_mode & 0o777) == "0o600"
    return Path(path).read_text()


@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.parametrize("as_json", [False, True])
def test_each_command_that_crashes(name: str, as_json: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments, verb = COMMANDS[name]
    if as_json and name in ("report", "recipes", "recipes show"):
        pytest.skip("has no --json")
    monkeypatch.setattr(verb, raising(IndexError(f"no voxel in {PATIENT}")))
    result = CliRunner().invoke(app, [*arguments, *(["--json"] if as_json else [])])
    assert result.exit_code == 70
    assert PATIENT not in result.output
    assert "internal error: IndexError at " in result.stderr
    assert len(re.findall("internal error", result.output)) == 1
    assert not result.stdout
    assert f"IndexError: no voxel in {PATIENT}" in kept(result.stderr)


@pytest.mark.parametrize("error", FAULTS, ids=lambda error: type(error).__name__)
def test_each_kind_of_crash(error: BaseException, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("microtome.verbs.inspect.inspect", raising(error))
    result = CliRunner().invoke(app, ["inspect", DEMO, "--json"])
    assert result.exit_code == 70
    assert PATIENT not in result.output
    assert "Traceback" not in result.output
    what = "out of memory" if isinstance(error, MemoryError) else type(error).__name__
    assert f"internal error: {what} at " in result.stderr
    assert type(error).__name__ in kept(result.stderr)


@pytest.mark.parametrize("place", ["microtome.terminal.inspect_table", "microtome.cli.inspect.show"])
def test_a_crash_outside_of_the_verb(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("microtome.verbs.inspect.inspect", lambda *_, **__: {})
    monkeypatch.setattr(place, raising(KeyError(PATIENT)))
    assert CliRunner().invoke(app, ["inspect", DEMO]).exit_code == 70


def test_a_crash_while_options_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("typer.core.TyperGroup.parse_args", raising(RuntimeError(PATIENT)))
    result = CliRunner().invoke(app, ["inspect", DEMO])
    assert (result.exit_code, PATIENT in result.output) == (70, False)


@pytest.mark.parametrize("place", ["microtome.verbs.inspect.inspect", "microtome.cli.inspect.show"])
def test_ctrl_c_is_130_everywhere(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("microtome.verbs.inspect.inspect", lambda *_, **__: {})
    monkeypatch.setattr(place, raising(KeyboardInterrupt()))
    assert CliRunner().invoke(app, ["inspect", DEMO]).exit_code == 130


def test_what_users_get_wrong_is_still_2(monkeypatch: pytest.MonkeyPatch) -> None:
    assert CliRunner().invoke(app, ["inspect"]).exit_code == 2
    assert CliRunner().invoke(app, ["inspect", DEMO, "--no-such-option"]).exit_code == 2
    assert CliRunner().invoke(app, ["inspect", DEMO, "--input-shape", "none"]).exit_code == 2
    assert CliRunner().invoke(app, ["no-such-command"]).exit_code == 2
    monkeypatch.setattr("microtome.verbs.inspect.inspect", raising(OptionError("no.", "yes.")))
    assert CliRunner().invoke(app, ["inspect", DEMO]).exit_code == 2


def test_what_users_can_mend_is_2_outside_of_a_verb_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("microtome.recipes.files.load", raising(OptionError("the recipe is broken.", "Mend it.")))
    result = CliRunner().invoke(app, ["recipes"])
    assert (result.exit_code, "error: the recipe is broken." in result.stderr) == (2, True)


def test_what_a_users_code_prints_is_no_part_of_the_result(monkeypatch: pytest.MonkeyPatch) -> None:
    def inspect(*_, **__):
        print("building the network")
        return {"title": "x"}

    monkeypatch.setattr("microtome.verbs.inspect.inspect", inspect)
    result = CliRunner().invoke(app, ["inspect", DEMO, "--json"])
    assert (result.stdout, "building" in result.stderr) == ('{"title": "x"}\n', True)


def test_an_inferior_network_is_still_1(monkeypatch: pytest.MonkeyPatch) -> None:
    result = {"verdict": {"non_inferior": False}}
    monkeypatch.setattr("microtome.verbs.evaluate.evaluate", lambda *_, **__: result)
    assert CliRunner().invoke(app, ["evaluate", DEMO, ".", "-o", "x", "--json"]).exit_code == 1


def test_no_place_for_the_trace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.setattr("tempfile.mkstemp", raising(OSError(errno.ENOSPC, "full")))
    assert crash.ended_by(ValueError(PATIENT)) == 70
    said = capsys.readouterr().err
    assert "could be written neither" in said
    assert PATIENT not in said


def test_the_trace_goes_here_where_there_is_no_temporary_folder(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "gone"))
    monkeypatch.chdir(tmp_path)
    assert crash.ended_by(ValueError(PATIENT)) == 70
    assert f"is in {tmp_path}/microtome-crash-" in capsys.readouterr().err


# As programs of their own.


def started(code: str, **more) -> subprocess.CompletedProcess[str]:
    """Run Python code with ours first on the path."""
    source = str(Path(microtome.cli.__file__).parents[2])
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([source, *sys.path])}
    return subprocess.run(
        [sys.executable, "-c", code],
        text=True,
        stderr=subprocess.PIPE,
        env=environment,
        timeout=60,
        check=False,
        **more,
    )


MODULE = "import runpy, sys; sys.argv = {argv}; {before}; runpy.run_module('microtome', run_name='__main__')"


def test_python_m_that_crashes_and_one_that_cannot_be_imported() -> None:
    broken = "import microtome.recipes.files as f; f.load = lambda *_: 1 / 0"
    run = started(MODULE.format(argv=["microtome", "recipes"], before=broken), stdout=subprocess.PIPE)
    assert run.returncode == 70
    assert "ZeroDivisionError" in kept(run.stderr)
    unimportable = "sys.modules['rich'] = sys.modules['typer'] = None"
    run = started(MODULE.format(argv=["microtome", "--version"], before=unimportable), stdout=subprocess.PIPE)
    assert run.returncode == 70
    assert "internal error: ModuleNotFoundError" in run.stderr
    assert "Traceback" not in run.stderr


SHORT = {"title": "t", "target": "t", "recipe": "r", "compressed": {"metrics": {}}, "parent": {}}
RICH = f"import microtome.verbs.evaluate as v; v.evaluate = lambda *_, **__: {SHORT}"
EVALUATE = ["evaluate", DEMO, ".", "-o", "x"]


@pytest.mark.parametrize(
    ("argv", "unbuffered"),
    [(["--version"], ""), (["compress", "--help"], "1"), (["recipes"], ""), (["recipes"], "1"), (EVALUATE, "")],
)
def test_a_pipe_that_nobody_reads(argv: list[str], unbuffered: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONUNBUFFERED", unbuffered)
    reading, writing = os.pipe()
    os.close(reading)
    try:
        run = started(MODULE.format(argv=["microtome", *argv], before=RICH), stdout=writing)
    finally:
        os.close(writing)
    assert run.returncode == 141
    assert not run.stderr.strip()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_full_disk_behind_standard_output(unbuffered: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONUNBUFFERED", unbuffered)
    with Path("/dev/full").open("w") as full:
        run = started(MODULE.format(argv=["microtome", "recipes"], before="pass"), stdout=full)
    assert run.returncode == 70
    assert "internal error: OSError" in run.stderr


def test_standard_output_that_is_closed() -> None:
    closed = "import os; os.close(1)"
    run = started(MODULE.format(argv=["microtome", "recipes"], before=closed), stdout=subprocess.PIPE)
    assert run.returncode == 70


def test_a_recursion_without_end_is_70() -> None:
    endless = "import microtome.recipes.files as f\ndef load(*_): return load()\nf.load = load"
    code = MODULE.format(argv=["microtome", "recipes"], before="exec(" + repr(endless) + ")")
    run = started(code, stdout=subprocess.PIPE)
    assert (run.returncode, "internal error: RecursionError" in run.stderr) == (70, True)
