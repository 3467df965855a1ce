"""Which code made a record, and in which folder it may go on."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from kvdelta.harness import settings as settings_module
from kvdelta.harness.comparison import compare
from kvdelta.harness.records import provenance
from kvdelta.harness.records.provenance import commit, open_folder
from kvdelta.harness.records.run import Settings
from kvdelta.harness.records.run_folder import RUN_FILE, load_run, save_run
from kvdelta.harness.settings import settings_of

ROOT = Path(provenance.__file__).parents[2]


def git(folder, *words):
    identity = ["-c", "user.name=someone", "-c", "user.email=someone@example.org"]
    return subprocess.run(
        ["git", *identity, *words], cwd=folder, check=True, capture_output=True, text=True
    ).stdout.strip()


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A git checkout with the package's file in it; git knows of no other repository."""
    for name in [name for name in os.environ if name.startswith("GIT_")]:
        monkeypatch.delenv(name)
    here = tmp_path / "checkout" / Path(provenance.__file__).relative_to(ROOT)
    here.parent.mkdir(parents=True)
    shutil.copy(provenance.__file__, here)
    (tmp_path / "checkout" / "README.md").write_text("about")
    git(tmp_path / "checkout", "init", "-q")
    git(tmp_path / "checkout", "add", "-A")
    git(tmp_path / "checkout", "commit", "-qm", "all")
    yield tmp_path / "checkout"
    commit.cache_clear()


def commit_of(root):
    commit.cache_clear()
    return commit(root)


def test_the_commit_of_a_checkout(checkout):
    head = git(checkout, "rev-parse", "HEAD")
    assert commit_of(checkout) == head
    (checkout / "README.md").write_text("changed: no code")
    (checkout / "notes.txt").write_text("untracked: no code")
    assert commit_of(checkout) == head


def test_changed_code_is_known_by_what_it_holds(checkout):
    head = git(checkout, "rev-parse", "HEAD")
    file = checkout / "harness" / "records" / "provenance.py"
    clean = file.read_text()
    file.write_text(clean + "# one\n")
    first = commit_of(checkout)
    assert first.startswith(f"{head}-dirty-")
    assert commit_of(checkout) == first
    file.write_text(clean + "# two\n")
    second = commit_of(checkout)
    (checkout / "schemes").mkdir()
    (checkout / "schemes" / "new.py").write_text("")
    third = commit_of(checkout)
    assert len({head, first, second, third}) == 4
    file.write_text(clean + "# one\n")
    (checkout / "schemes" / "new.py").unlink()
    assert commit_of(checkout) == first


def test_an_installed_package_has_no_commit(checkout):
    """Not that of the repository that its environment lies in."""
    installed = checkout / ".venv" / "site-packages"
    shutil.copytree(checkout / "harness", installed / "harness")
    assert commit_of(installed) is None
    assert commit_of(checkout.parent) is None


def test_a_hook_of_another_repository_is_not_asked(checkout, tmp_path, monkeypatch):
    other = tmp_path / "other"
    other.mkdir()
    git(other, "init", "-q")
    head = git(checkout, "rev-parse", "HEAD")
    monkeypatch.setenv("GIT_DIR", str(other / ".git"))
    assert commit_of(checkout) == head


def test_without_git(checkout, monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert commit_of(checkout) is None


@pytest.mark.parametrize(("field", "name"), [("commit", "commit"), ("MEASURES", "measures")])
def test_a_run_does_not_go_on_under_other_code(subject, options, monkeypatch, refused, field, name):
    monkeypatch.setattr(settings_module, "commit", lambda: "1" * 40)
    run, folder = compare(["int8:group_size=16"], options, subject=subject)
    assert (run.commit, run.settings.commit, run.settings.measures) == ("1" * 40, "1" * 40, provenance.MEASURES)
    run.status, run.windows, run.batches = "running", run.windows[:1], [1]
    save_run(run, folder)
    monkeypatch.setattr(settings_module, field, (lambda: "2" * 40) if field == "commit" else provenance.MEASURES + 1)
    with refused(f"holds another run \\(it differs in {name}\\)"):
        compare(["int8:group_size=16"], options, subject=subject)


@pytest.fixture
def settings(subject, options):
    return settings_of(options, subject, ["exact"])


def test_records_from_before_still_load(settings):
    content = settings.model_dump()
    del content["commit"], content["measures"]
    before = Settings.model_validate(content)
    assert (before.commit, before.measures) == (None, 0)


def test_what_cannot_be_a_run_folder(settings, tmp_path, refused, monkeypatch):
    (tmp_path / "file").write_text("x")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").write_text("x")
    for name, reason in {
        "file": "cannot be used: it is no folder",
        "file/below": "cannot be used: Not a directory",
        "x" * 300: "cannot be used: File name too long",
        "full": "is not empty and holds no run",
    }.items():
        with refused(f"{reason}; choose another.* with --out"):
            open_folder(str(tmp_path / name), RUN_FILE, settings, load_run)
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with refused("the run folder .+ cannot be written; choose another with --out"):
        open_folder(str(tmp_path / "new"), RUN_FILE, settings, load_run)
    monkeypatch.setattr(os, "listdir", denied)
    with refused("the run folder .+ cannot be used: Permission denied; choose another with --out"):
        open_folder(str(tmp_path / "new"), RUN_FILE, settings, load_run)


def denied(path):
    raise PermissionError(13, "Permission denied", str(path))


def test_a_complete_record_is_read_where_nothing_can_be_written(subject, options, monkeypatch):
    run, folder = compare(["int8:group_size=16"], options, subject=subject)
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    assert open_folder(str(folder), RUN_FILE, run.settings, load_run) == (folder, run)
