"""The rules of the house hold, and would notice if they did not."""

import configparser
import pathlib
import re

import file_tree
import flag_tables
import licences
import pytest
import rules
from packaging.specifiers import SpecifierSet

DOCUMENT = rules.ROOT / "docs" / "architecture.md"


def test_no_rule_is_broken():
    assert rules.broken() == []


def test_every_exception_is_needed_and_has_a_reason(monkeypatch):
    reasons = dict(rules.EXCEPTIONS)
    monkeypatch.setattr(rules, "EXCEPTIONS", {})
    assert set(rules.broken()) == set(reasons)
    assert all(len(reason) > 20 for reason in reasons.values())


def test_the_document_has_the_tree_as_it_is():
    text = DOCUMENT.read_text(encoding="utf-8")
    written = file_tree.with_tree(text, file_tree.tree())
    assert written == text, "run `python tests/house/file_tree.py`"


def test_the_document_of_the_commands_has_all_flags():
    text = flag_tables.DOCUMENT.read_text(encoding="utf-8")
    written = flag_tables.with_tables(text, flag_tables.tables())
    assert written == text, "run `python tests/house/flag_tables.py`"
    assert all(f"| `--{name}` |" in text for name in ("seed", "checkpoint", "replay_episode"))


def test_the_files_that_the_document_names_exist():
    text = DOCUMENT.read_text(encoding="utf-8")
    named = re.findall(r"`((?:amaml_tf|docs)/[\w/]+\.\w+|[A-Z]+\.md)`", text)
    assert len(named) > 20
    missing = [name for name in named if not (rules.ROOT / name).is_file()]
    walk = re.findall(r"`((?:\w+/)*\w+\.py)`", text.split("## Floors")[0])
    missing += [name for name in walk if not (rules.ROOT / "amaml_tf" / name).is_file()]
    assert missing == []


def test_the_tests_that_the_document_of_reliability_names_exist():
    text = (rules.ROOT / "docs" / "reliability.md").read_text(encoding="utf-8")
    sources = {path.name: path.read_text("utf-8") for path in (rules.ROOT / "tests").rglob("*.py")}
    named = re.findall(r"`(test_\w+\.py)::(test_\w+)`", text)
    assert len(named) > 20
    assert not [each for each in named if f"def {each[1]}(" not in sources.get(each[0], "")]


def test_every_question_is_answered_by_three_files_at_most():
    table = DOCUMENT.read_text(encoding="utf-8").split("## Where to look")[1].split("## Names")[0]
    rows = [line for line in table.splitlines() if line.startswith("| ")][1:]
    assert len(rows) == 12
    for row in rows:
        files = set(re.findall(r"`([\w/]+\.(?:py|md))`", row))
        assert 1 <= len(files) <= 3, row


def test_the_numerics_import_neither_flags_nor_data_sets():
    paths = rules.modules(rules.ROOT)
    for name, path in paths.items():
        if rules.room_of(name) in ("solvers", "functional", "flow", "algorithms", "learner"):
            text = path.read_text(encoding="utf-8")
            assert not re.search(r"^\s*(?:import|from) (?:absl|tensorflow_datasets)", text, re.M)


# -- what breaks a rule is found ----------------------------------------------------------------


def package(root: pathlib.Path, files: dict[str, str]) -> dict[str, pathlib.Path]:
    for name, text in files.items():
        path = root / "amaml_tf" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return rules.modules(root)


def test_a_circle_is_found(tmp_path):
    paths = package(
        tmp_path,
        {
            "__init__.py": "",
            "a/__init__.py": "from amaml_tf.a import one",
            "a/one.py": "from amaml_tf.b import two",
            "b/__init__.py": "",
            "b/two.py": "def f():\n    import amaml_tf.a.one",
        },
    )
    graph = rules.imports(paths)
    assert rules.circle(graph) == ["amaml_tf.a.one", "amaml_tf.b.two", "amaml_tf.a.one"]
    graph["amaml_tf.b.two"] = set()
    assert rules.circle(graph) == []


@pytest.mark.parametrize(
    ("imported", "found"),
    [("low", []), ("high", ["amaml_tf.mid imports amaml_tf.high, which is not below it"])],
)
def test_an_import_against_the_floors_is_found(tmp_path, imported, found):
    files = {"low.py": "", "high.py": "", "mid.py": f"import amaml_tf.{imported}"}
    paths = package(tmp_path, files)
    floors = rules.floors("## Floors\n```\nhigh\nmid\nlow\n```\n")
    assert list(rules.against_the_floors(rules.imports(paths), floors)) == found
    del floors["mid"]
    assert "amaml_tf.mid is on no floor" in rules.against_the_floors(rules.imports(paths), floors)


def test_long_files_and_functions_are_found(tmp_path):
    path = tmp_path / "long.py"
    docstring = '    """' + "line\n    " * 40 + '"""\n'
    path.write_text("def f():\n" + docstring + "    x = 1\n" * 49)
    assert list(rules.too_long(path)) == []
    path.write_text("def f():\n" + docstring + "    x = 1\n" * 50)
    assert list(rules.too_long(path)) == ["f has 51 lines"]
    path.write_text("x = 1\n" * 321)
    assert list(rules.too_long(path)) == ["has 321 lines"]


@pytest.mark.parametrize(
    ("signature", "is_bare"),
    [
        ("def f(x: Any) -> int", True),
        ("def f(x: int) -> Any", True),
        ("def f(x: Any | None) -> int", True),
        ("def f(*x: typing.Any) -> int", True),
        ("def f(x: dict[str, Any]) -> int", False),
        ("def _f(x: Any) -> int", False),
    ],
)
def test_a_bare_any_is_found(tmp_path, signature, is_bare):
    path = tmp_path / "file.py"
    path.write_text(f"{signature}: ...\n")
    assert bool(list(rules.bare_any(path))) == is_bare
    body = signature.replace("(", "(self, ")
    path.write_text(f"class A:\n    {body}: ...\n")
    assert bool(list(rules.bare_any(path))) == is_bare


def test_licences_fit():
    assert not list(licences.unfit())


def test_the_lock_file_satisfies_the_declared_requirements():
    """`make lock` writes it again."""
    lines = (rules.ROOT / "requirements.lock").read_text(encoding="utf-8").splitlines()
    locked = dict(line.replace("_", "-").split("==") for line in lines if "==" in line)
    declared = configparser.ConfigParser()
    declared.read(rules.ROOT / "setup.cfg")
    for text in declared["options"]["install_requires"].splitlines():
        found = re.match(r"([\w-]+)(.*?)(;.*)?$", text.split("#")[0].strip())
        if found and found[1] and not found[3]:
            assert SpecifierSet(found[2]).contains(locked[found[1]]), text


def test_files_of_tests_have_names_of_their_own():
    """Pytest imports them by their names alone."""
    names = [path.name for path in (rules.ROOT / "tests").rglob("test_*.py")]
    assert sorted(set(names)) == sorted(names)
