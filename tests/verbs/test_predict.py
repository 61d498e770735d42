"""`predict` from file to file, with real packages of tiny networks."""

from __future__ import annotations

import csv
import errno
import json
import os
import shutil
import sys
import threading
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
from PIL import Image as Picture
from typer.testing import CliRunner

import microtome
from microtome.cli import app
from microtome.errors import OptionError, OutputError, ReadError
from microtome.files import sha256
from microtome.inference.jobs import jobs_of
from microtome.medical.pipeline import Pipeline
from microtome.medical.read import read_image
from microtome.runtimes.openvino import Session
from microtome.tasks import base as predictions
from plain import segment

sys.path.append(str(Path(__file__).parents[1] / "medical"))
from dicom_files import write_series, write_slice

STAGES = {"read", "prepare", "infer", "finish", "write"}
SAME = 0.999  # of voxels: streams sum in another order, and a value on the edge between two integers may fall over it


def with_pipeline(package: Path, folder: Path, **fields: object) -> Path:
    """A copy of a package whose evidence is said to be of another pipeline."""
    shutil.copytree(package, folder)
    pipeline = replace(Pipeline.from_json((package / "pipeline.json").read_text()), **fields)
    (folder / "pipeline.json").write_text(pipeline.to_json())
    result = json.loads((folder / "result.json").read_text())
    result["session"]["pipeline_sha256"] = sha256(folder / "pipeline.json")
    (folder / "result.json").write_text(json.dumps(result))
    return folder


def some(folder: Path, target: Path, count: int = 3) -> Path:
    """A folder with the first few files of another."""
    target.mkdir()
    for file in sorted(folder.iterdir())[:count]:
        shutil.copy2(file, target)
    return target


def names(folder: Path) -> set[str]:
    return {file.name for file in folder.iterdir()}


def record(out: Path) -> dict:
    return json.loads((out / "predict.json").read_text())


def rows(out: Path) -> list[dict[str, str]]:
    with (out / "predictions.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_volumes_come_out_as_nifti_on_their_own_grid(volumes, tmp_path: Path):
    package, folder = volumes
    inputs = some(folder, tmp_path / "in")
    result = microtome.predict(package, [inputs], tmp_path / "out", threads=2)
    assert names(tmp_path / "out") == names(inputs) | {"predict.json"}
    assert (result["cases"], result["skipped"], result["failed"]) == (3, 0, [])
    assert set(result["stages"]) == STAGES
    assert result["peak_memory_mib"] > 50
    opened = microtome.open_package(package, threads=1)
    for file in inputs.iterdir():
        image, labels = nibabel.load(file), nibabel.load(tmp_path / "out" / file.name)
        assert np.array_equal(labels.affine, image.affine)
        expected = segment(opened.session.run, read_image([file]), opened.pipeline)
        actual = np.asarray(labels.dataobj)
        assert actual.dtype == np.uint8
        assert expected.any()
        assert np.mean(actual == expected) >= SAME
        assert np.mean(opened.predict(read_image([file])) == expected) >= SAME


def test_volumes_whose_forms_differ_and_that_have_no_unit(volumes, tmp_path: Path):
    package, folder = volumes
    voxels = np.asarray(nibabel.load(next(iter(sorted(folder.iterdir())))).dataobj)
    (tmp_path / "in").mkdir()
    for name, unit in (("a", 3), ("b", 0), ("c", 0)):
        header = nibabel.Nifti1Header()
        header.set_qform(np.diag([2.0, 3, 4, 1]), 1)
        header.set_sform(np.array([[-2.0, 0, 0, 10], [0, -3, 0, 0], [0, 0, 4, 0], [0, 0, 0, 1]]), 4)
        header["xyzt_units"] = unit
        nibabel.save(nibabel.Nifti1Image(voxels, None, header), tmp_path / "in" / f"{name}.nii.gz")
    sitk.WriteImage(sitk.ReadImage(str(tmp_path / "in" / "a.nii.gz")), str(tmp_path / "in" / "d.mha"))
    done = CliRunner().invoke(app, ["predict", str(package), str(tmp_path / "in"), "-o", str(tmp_path / "out")])
    assert done.exit_code == 0, done.output
    assert "Note: 2 cases: the NIfTI header does not say in which unit" in done.output
    assert len(record(tmp_path / "out")["notes"]) == 1
    for name in ("a.nii.gz", "b.nii.gz", "c.nii.gz", "d.mha"):
        image = sitk.ReadImage(str(tmp_path / "in" / name))
        labels = sitk.ReadImage(str(tmp_path / "out" / f"{name[0]}.nii.gz"))
        for place in ("GetSpacing", "GetOrigin", "GetDirection"):
            np.testing.assert_allclose(getattr(labels, place)(), getattr(image, place)(), rtol=1e-5, atol=1e-5)


def test_pictures_come_out_as_png(pictures, tmp_path: Path):
    package, folder = pictures
    inputs = some(folder, tmp_path / "in", 5)
    microtome.predict(package, [inputs], tmp_path / "out", threads=1)
    assert names(tmp_path / "out") == names(inputs) | {"predict.json"}
    opened = microtome.open_package(package, threads=1)
    for file in inputs.iterdir():
        labels = np.asarray(Picture.open(tmp_path / "out" / file.name))
        assert np.array_equal(labels, opened.predict(read_image([file])))


def test_classes_come_out_as_a_table(classes, tmp_path: Path):
    package, folder = classes
    result = microtome.predict(package, [folder, folder.parent / "dark"], tmp_path / "out", threads=1)
    assert result["cases"] == len(rows(tmp_path / "out")) == 60
    assert names(tmp_path / "out") == {"predictions.csv", "predict.json"}
    opened = microtome.open_package(package, threads=1)
    threshold = opened.result["operating_point"]["threshold"]
    files = {file.stem: file for file in folder.parent.glob("*/*.png")}
    for row in rows(tmp_path / "out"):
        expected = opened.predict(read_image([files[row["name"]]]))
        assert list(row) == ["name", "decision", "probability dark", "probability light"]
        np.testing.assert_allclose([float(row[f"probability {c}"]) for c in ("dark", "light")], expected, rtol=1e-8)
        assert row["decision"] == ("light" if expected[1] >= threshold else "dark")
    assert {row["decision"] for row in rows(tmp_path / "out")} == {"dark", "light"}


def test_the_package_decides_at_its_operating_point(classes, tmp_path: Path):
    package = shutil.copytree(classes[0], tmp_path / "package")
    result = json.loads((package / "result.json").read_text())
    for threshold, decision in ((0.0, "light"), (1.1, "dark")):
        result["operating_point"]["threshold"] = threshold
        (package / "result.json").write_text(json.dumps(result))
        microtome.predict(package, [classes[1]], tmp_path / "out", overwrite=True)
        assert {row["decision"] for row in rows(tmp_path / "out")} == {decision}


def test_a_dicom_series_is_one_volume(volumes, tmp_path: Path):
    package, _ = volumes
    voxels = np.random.default_rng(0).integers(0, 200, (18, 20, 22)).astype(np.int16)
    write_series(tmp_path / "study" / "first", voxels)
    write_series(tmp_path / "study" / "second", voxels + 1)
    microtome.predict(package, [tmp_path / "study"], tmp_path / "out", threads=1)
    assert names(tmp_path / "out") == {"first.nii.gz", "second.nii.gz", "predict.json"}
    labels = nibabel.load(tmp_path / "out" / "first.nii.gz")
    image = read_image([tmp_path / "study" / "first"])
    assert labels.shape == image.spatial == (22, 20, 18)
    np.testing.assert_allclose(labels.affine, image.affine, rtol=0, atol=1e-5)


def test_what_is_finished_is_kept(volumes, tmp_path: Path):
    package, folder = volumes
    inputs, out = some(folder, tmp_path / "in", 4), tmp_path / "out"
    files = sorted(inputs.iterdir())
    microtome.predict(package, files[:2], out, threads=1)
    before = {file.name: file.stat().st_mtime_ns for file in out.glob("*.nii.gz")}
    result = microtome.predict(package, files, out, threads=2)  # another number of threads is the same task
    assert (result["cases"], result["skipped"]) == (2, 2)
    assert all((out / name).stat().st_mtime_ns == changed for name, changed in before.items())
    assert {case["name"] for case in record(out)["cases"]} == {file.name.split(".")[0] for file in files}
    (out / files[0].name).unlink()
    assert microtome.predict(package, files, out, threads=1)["cases"] == 1
    again = microtome.predict(package, files, out, threads=1, overwrite=True)
    assert (again["cases"], again["skipped"]) == (4, 0)


def test_rows_that_are_finished_are_kept(classes, tmp_path: Path):
    package, folder = classes
    files, out = sorted(folder.iterdir())[:6], tmp_path / "out"
    microtome.predict(package, files[:3], out, threads=1)
    with (out / "predictions.csv").open("a") as file:
        file.write("IM-1003-0001,li")  # the process was killed while it wrote
    result = microtome.predict(package, files, out, threads=1)
    assert (result["cases"], result["skipped"]) == (3, 3)
    assert [row["name"] for row in rows(out)] == [file.stem for file in files]
    (out / "predictions.csv").unlink()
    assert microtome.predict(package, files, out, threads=1)["cases"] == 6


def test_an_interruption_leaves_finished_files(volumes, tmp_path: Path):
    package, folder = volumes
    inputs, out = some(folder, tmp_path / "in", 6), tmp_path / "out"

    class Interrupted:
        def track(self, items: Iterable, title: str, total: int | None = None) -> Iterator:
            for number, item in enumerate(items):
                if number == 3:
                    raise KeyboardInterrupt
                yield item

        def say(self, text: str) -> None: ...

    before = threading.active_count()
    with pytest.raises(KeyboardInterrupt):
        microtome.predict(package, [inputs], out, threads=1, progress=Interrupted())
    assert threading.active_count() == before
    assert len(list(out.glob("*.nii.gz"))) == len(record(out)["cases"]) == 3
    assert microtome.predict(package, [inputs], out, threads=1)["cases"] == 3


def test_a_broken_image_does_not_stop_the_others(volumes, tmp_path: Path):
    package, folder = volumes
    inputs, out = some(folder, tmp_path / "in", 4), tmp_path / "out"
    files = sorted(inputs.iterdir())
    good = files[0].read_bytes()
    files[0].write_bytes(good[: len(good) // 2])
    nibabel.save(nibabel.Nifti1Image(np.full((8, 8, 8), np.nan, np.float32), np.eye(4)), files[2])
    said: list[str] = []

    class Heard:
        def track(self, items: Iterable, title: str, total: int | None = None) -> Iterator:
            return iter(items)

        def say(self, text: str) -> None:
            said.append(text)

    result = microtome.predict(package, [inputs], out, threads=1, progress=Heard())
    assert result["cases"] == 2
    assert [failure["name"] for failure in result["failed"]] == ["v_000", "v_002"]
    assert "truncated" in result["failed"][0]["problem"]
    assert "NaN" in result["failed"][1]["problem"]
    assert record(out)["failed"] == result["failed"]
    assert [text.split(":")[0] for text in said] == ["case 1", "case 3"]
    files[0].write_bytes(good)
    again = microtome.predict(package, [inputs], out, threads=1)
    assert (again["cases"], again["skipped"], len(again["failed"])) == (1, 2, 1)


def test_another_package_or_setting_is_refused(pictures, classes, volumes, tmp_path: Path):
    package, folder = volumes
    files, out = sorted(folder.iterdir())[:2], tmp_path / "out"
    microtome.predict(package, files, out, threads=1)
    for other, options in ((package, {"extension": "nii"}), (pictures[0], {})):
        with pytest.raises(OutputError, match="another package or of other settings") as caught:
            microtome.predict(other, files, out, **options)
        assert "--overwrite" in caught.value.hint
    assert microtome.predict(package, files, out, extension="nii", overwrite=True)["cases"] == 2
    strange = tmp_path / "strange"
    strange.mkdir()
    (strange / "thesis.doc").write_text("important")
    with pytest.raises(OutputError, match="something else than predictions"):
        microtome.predict(package, files, strange)


def test_another_image_of_the_same_name_is_refused(volumes, tmp_path: Path):
    package, folder = volumes
    files = sorted(folder.iterdir())[:2]
    other = tmp_path / "other" / files[0].name
    other.parent.mkdir()
    shutil.copy(files[1], other)
    microtome.predict(package, files[:1], tmp_path / "out")
    with pytest.raises(OutputError, match="another image called v_000"):
        microtome.predict(package, [other], tmp_path / "out")
    both = microtome.predict(package, [files[0], other], tmp_path / "both")
    assert both["cases"] == 2
    assert names(tmp_path / "both") == {"v_000.nii.gz", "v_000-2.nii.gz", "predict.json"}


def test_an_input_is_never_replaced(volumes, tmp_path: Path):
    package, folder = volumes
    inputs = some(folder, tmp_path / "in", 2)
    before = {file.name: file.read_bytes() for file in inputs.iterdir()}
    with pytest.raises(OutputError, match="is an input"):
        microtome.predict(package, [inputs], inputs, overwrite=True)
    assert {file.name: file.read_bytes() for file in inputs.glob("*.nii.gz")} == before


def test_a_full_disk_ends_it_and_keeps_what_is_finished(volumes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    package, folder = volumes
    out, write, written = tmp_path / "out", predictions.write_labels, []

    def full(labels: np.ndarray, image: object, path: Path) -> None:
        written.append(path)
        if len(written) == 3:  # later ones would fit, but must not be written any more
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        write(labels, image, path)

    monkeypatch.setattr(predictions, "write_labels", full)
    with pytest.raises(OutputError, match="is full"):
        microtome.predict(package, sorted(folder.iterdir())[:6], out, threads=1)
    assert len(record(out)["cases"]) == len(list(out.glob("*.nii.gz"))) == 2
    monkeypatch.undo()
    assert microtome.predict(package, sorted(folder.iterdir())[:6], out, threads=1)["cases"] == 4


def test_mirroring_and_overlap_reach_the_network(volumes, tmp_path: Path):
    package, folder = volumes
    file = sorted(folder.iterdir())[0]
    for name, fields in (("plain", {}), ("mirrored", {"mirror": (0, 2)}), ("dense", {"overlap": 0.75})):
        changed = with_pipeline(package, tmp_path / f"{name}-package", **fields)
        result = microtome.predict(changed, [file], tmp_path / name, extension="nii")
        assert (tmp_path / name / "v_000.nii").exists()
        assert result["cases"] == 1


def test_a_pipeline_that_was_changed_after_the_evidence_is_refused(volumes, tmp_path: Path):
    package, folder = volumes
    changed = with_pipeline(package, tmp_path / "changed")
    text = (changed / "pipeline.json").read_text()
    (changed / "pipeline.json").write_text(text.replace('"overlap": 0.5', '"overlap": 0.25'))
    with pytest.raises(ReadError, match=r"pipeline\.json is not the file that was measured"):
        microtome.predict(changed, [folder], tmp_path / "out")


def test_windows_without_content_are_left_out_when_asked(volumes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    package, _ = volumes
    voxels = np.zeros((64, 20, 18), np.float32)
    voxels[30:38, 5:12, 5:12] = 200 + np.random.default_rng(0).normal(0, 8, (8, 7, 7))
    nibabel.save(nibabel.Nifti1Image(voxels, np.eye(4)), tmp_path / "v.nii")
    given: list[int] = []
    stream = Session.stream

    def counted(self: Session, batches: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        given.append(0)
        for batch in batches:
            given[-1] += 1
            yield from stream(self, [batch])

    monkeypatch.setattr(Session, "stream", counted)
    for name, skip in (("all", False), ("some", True)):
        changed = with_pipeline(package, tmp_path / f"{name}-package", skip_empty=skip)
        microtome.predict(changed, [tmp_path / "v.nii"], tmp_path / name, extension="nii")
    everything, content = (np.asarray(nibabel.load(tmp_path / name / "v.nii").dataobj) for name in ("all", "some"))
    assert 0 < given[1] < given[0]
    assert everything.any()
    assert np.array_equal(content, everything)


def test_an_extension_that_nobody_writes_is_refused(volumes, tmp_path: Path):
    package, folder = volumes
    with pytest.raises(OptionError, match="extension must be"):
        microtome.predict(package, [folder], tmp_path / "out", extension="mha")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("option", [("--overlap", "0.25"), ("--mirror", "0"), ("--skip-empty",)])
def test_what_evidence_was_not_measured_with_is_refused(option: tuple[str, ...], volumes, tmp_path: Path):
    package, folder = volumes
    call = ["predict", str(package), str(folder), "-o", str(tmp_path / "out"), *option]
    said = CliRunner().invoke(app, call)
    assert said.exit_code == 2
    assert "no evidence was measured with it" in " ".join(said.output.split())
    assert not (tmp_path / "out").exists()


def test_inputs_become_jobs(tmp_path: Path):
    scans = tmp_path / "scans"
    (scans / "deep" / "deeper").mkdir(parents=True)
    voxels = np.zeros((3, 4, 4), np.int16)
    write_series(scans / "series", voxels)
    write_series(scans / "two", voxels, SeriesInstanceUID="1.1")
    for number, path in enumerate(write_series(tmp_path / "more", voxels, SeriesInstanceUID="1.2")):
        shutil.copy(path, scans / "two" / f"B{number}")
    write_series(scans / "deep" / "deeper", voxels)
    write_slice(scans / "xray.dcm", voxels[0], SeriesInstanceUID="1.9")
    for name in ("a.nii.gz", "b.nii", "notes.txt", ".hidden.nii", "c.png"):
        (scans / name).write_bytes(b"x")
    np.savez(scans / "many.npz", test_images=np.zeros((2, 4, 4), np.uint8))
    jobs = jobs_of([scans, scans / "a.nii.gz", scans / "series"])
    found = [job.name for job in jobs]
    assert found == [
        "scans", "a", "b", "c", "many-00000", "many-00001", "series", "two", "two-2", "a-2", "series-2",
    ]  # fmt: skip
    assert [len(job.files) for job in jobs if job.name in ("series", "two", "two-2")] == [3, 3, 3]
    assert jobs_of([scans / "xray.dcm"])[0].name == "xray"
    assert len({job.source for job in jobs}) == len(jobs) - 2


def test_missing_inputs_are_refused(tmp_path: Path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ReadError, match="does not exist"):
        jobs_of([tmp_path / "nothing"])
    with pytest.raises(ReadError, match="no images found"):
        jobs_of([tmp_path / "empty"])


def test_on_the_command_line(volumes, tmp_path: Path):
    package, folder = volumes
    inputs = some(folder, tmp_path / "in", 2)
    call = ["predict", str(package), str(inputs), "-o", str(tmp_path / "out"), "--threads", "1"]
    result = CliRunner().invoke(app, call)
    assert result.exit_code == 0, result.output
    assert "2 images in" in result.output
    (inputs / "v_009.nii.gz").write_bytes(b"broken")
    result = CliRunner().invoke(app, [*call, "--json"])
    assert result.exit_code == 2
    said = json.loads(result.output)
    assert (said["cases"], said["skipped"], len(said["failed"])) == (0, 2, 1)
    help_ = " ".join(CliRunner().invoke(app, ["predict", "--help"]).output.split())
    assert "Example: microtome predict" in help_


def test_predict_loads_no_torch(volumes, tmp_path: Path):
    import subprocess

    package, folder = volumes
    code = (
        "import sys, microtome\n"
        "microtome.predict(sys.argv[1], [sys.argv[2]], sys.argv[3], threads=1)\n"
        "print('torch' in sys.modules, 'pandas' in sys.modules)"
    )
    call = [sys.executable, "-c", code, str(package), str(sorted(folder.iterdir())[0]), str(tmp_path / "out")]
    result = subprocess.run(call, capture_output=True, text=True, check=False)
    assert result.stdout.split() == ["False", "False"], result.stderr
