"""A factory's module: found in the current folder without hiding others, and known by what it holds."""

import sys

import pytest

from kvdelta.harness.caches.factory import load_factory
from kvdelta.harness.caches.foreign import user_cache
from kvdelta.harness.comparison import compare

CACHE = "from transformers import DynamicCache\n\ndef make(config, window=1): return DynamicCache(config=config)\n"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The current folder; what is imported from it is forgotten afterwards."""
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    forget(*[name for name, module in sys.modules.items() if str(tmp_path) in str(getattr(module, "__file__", ""))])


def forget(*names):
    for name in names:
        del sys.modules[name]


def test_nothing_in_the_folder_hides_what_others_import(folder):
    (folder / "my_caches.py").write_text(CACHE)
    (folder / "colorsys.py").write_text("1 / 0")  # a module of Python's that nothing has imported yet
    path = list(sys.path)
    load_factory("my_caches:make")
    assert sys.path == path
    import colorsys

    assert colorsys.rgb_to_hsv(0, 0, 0) == (0, 0, 0)
    forget("colorsys")


def test_modules_beside_it_are_found_when_it_is_imported_and_called(folder):
    (folder / "beside.py").write_text("SIZE = 3\n")
    (folder / "later.py").write_text("SIZE = 4\n")
    (folder / "my_caches.py").write_text(
        "import beside\n\ndef make(config):\n    import later\n    return beside.SIZE + later.SIZE\n"
    )
    path = list(sys.path)
    assert load_factory("my_caches:make")(None) == 7
    assert sys.path == path


def test_a_module_that_is_hidden_itself_is_refused(folder, refused):
    (folder / "json.py").write_text(CACHE)
    with refused(r"another json \(.*json.__init__.py\) hides the one in this folder; rename the one here"):
        load_factory("json:loads")


def test_an_installed_factory_needs_no_file_here(folder):
    factory = load_factory("transformers:DynamicCache")
    assert factory.name == f"transformers#{factory.sha256[:8]}:DynamicCache"


def names_of(files, folder, path="my_caches:make", modules=("my_caches",)):
    """The name of a factory after each state of its files, as other processes would give it."""
    names = []
    for state in files:
        for name, content in state.items():
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_text(content)
        names.append(load_factory(path).name)
        forget(*modules)
    return names


def test_an_edited_factory_is_another(folder):
    first, edited, back = names_of([{"my_caches.py": text} for text in (CACHE, CACHE + "# x\n", CACHE)], folder)
    assert first == back != edited
    assert first.startswith("my_caches#")


def test_any_file_of_its_package_counts(folder):
    files = {
        "pack/__init__.py": "",
        "pack/caches.py": "from .sizes import SIZE\n" + CACHE,
        "pack/sizes.py": "SIZE = 1\n",
    }
    modules = ("pack", "pack.caches", "pack.sizes")
    states = [files, {"pack/sizes.py": "SIZE = 2\n"}, {"pack/sizes.py": "SIZE = 1\n"}]
    first, edited, back = names_of(states, folder, "pack.caches:make", modules)
    assert first == back != edited


def test_what_was_imported_keeps_its_name(folder):
    (folder / "my_caches.py").write_text(CACHE)
    first = load_factory("my_caches:make").name
    (folder / "my_caches.py").write_text(CACHE + "# x\n")
    assert load_factory("my_caches:make").name == first


def test_a_run_does_not_go_on_with_an_edited_factory(folder, subject, options, refused):
    (folder / "my_caches.py").write_text(CACHE)
    run, _ = compare([user_cache("my_caches:make(window=2)")], options, subject=subject)
    assert run.contenders[1].label == "my_caches:make(window=2)"
    assert run.contenders[1].spec == {"factory": "my_caches:make(window=2)", "sha256": run.contenders[1].spec["sha256"]}
    forget("my_caches")
    (folder / "my_caches.py").write_text(CACHE + "# x\n")
    with refused("holds another run .it differs in contenders"):
        compare([user_cache("my_caches:make(window=2)")], options, subject=subject)
