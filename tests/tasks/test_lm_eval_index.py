"""The index of lm-eval's own tasks: equal to lm-eval's, and kept in the cache folder."""

import json
import os
import subprocess
import sys
from itertools import combinations
from pathlib import Path
from types import SimpleNamespace

import pytest
from lm_eval.tasks import TaskManager
from lm_eval.tasks._index import TaskIndex

from lrbench.system import files
from lrbench.tasks import lm_eval_index as module
from lrbench.tasks.folders import BUNDLED, PROTOCOLS
from lrbench.tasks.lm_eval_index import lm_eval_folder, lm_eval_index, lm_eval_tasks, read_index, read_tasks
from lrbench.tasks.load import load_tasks

ODD_FILES = {
    "_base": "dataset_path: json\ntag: [from_base, 'quoted']\ntask_list: [x]\n",
    "a.yaml": "task: a\ntag: t\ndoc_to_text: !function utils.text\n",
    "b.yaml": "include: _base\ntask: b\n",
    "c.yaml": "include: [deep/d.yaml, a.yaml]\ntask: c\n",
    "deep/d.yaml": "include: ../b.yaml\ntask: d\ntag: t\n",
    "deep/e.yaml": "include: d.yaml\n",  # a second definition of d
    "deep/python.yaml": "task: p\nclass: !function task.P\ngroup: not_a_group\ntag: [t, t]\n",
    "deep/python_without_a_name.yaml": "class: !function task.P\n",
    "f.yaml": "group: f\ntag: groups\ntask:\n  - a\n  - task: b\n    limit: 2\n  - group: inline\n    task: [c, t]\n",
    "g.yaml": "group: g\ntask: t\n",
    "h_again.yaml": "task: a\ntag: of_a_duplicate\n",
    "i_twice.yaml": "include: [a.yaml, b.yaml, a.yaml]\ntask: twice\n",
    "j_cycle.yaml": "include: j_cycle.yaml\ntask: cycle\n",
    "k_missing.yaml": "include: nowhere.yaml\ntask: missing\n",
    "l_malformed.yaml": "task: malformed\ndoc_to_text: {\n",
    "m_list.yaml": "- task\n",
    "n_empty.yaml": "",
    "o_unknown_tag.yaml": "task: unknown_tag\ndoc_to_text: !other x\n",
    "p_tag.yaml": "task: t2\ntag: a\n",  # a tag with a task's name
    "q_late.yaml": "task: from_base\n",  # a task with a tag's name
    "r_no_include.yaml": "task: no_include\ninclude:\n",
    "s_names.yaml": "task: [a, b]\n",
    "t_neither.yaml": "dataset_path: json\n",
    "u_date.yaml": "group: dated\ntask: [a]\nmetadata: {day: 2024-01-01}\n",
    "not_read.yml": "task: yml\n",
    ".ipynb_checkpoints/a.yaml": "task: checkpoint\n",
    ".hidden/x.yaml": "task: hidden\n",
    "folder.yaml/inside.yaml": "task: inside\n",
}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder of odd task files; the cache folder is empty."""
    monkeypatch.setenv("LRBENCH_CACHE", str(tmp_path / "cache"))
    for name, text in ODD_FILES.items():
        path = tmp_path / "tasks" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    (tmp_path / "tasks" / "broken_link.yaml").symlink_to(tmp_path / "nowhere.yaml")
    return tmp_path / "tasks"


def stored(folder):
    [path] = files.cache_root().glob("tasks/*")
    return path


def comparable(index, folder):
    """Name -> kind, path, tags, and members of a group, of lm-eval's index or of ours."""
    out = {}
    for name, entry in index.items():
        if isinstance(entry, module.IndexEntry):
            path = None if entry.file is None else folder / entry.file
            out[name] = (entry.kind, path, set(entry.tags), json.dumps(entry.members))
            assert len(set(entry.tags)) == len(entry.tags)
        else:
            members = json.dumps(entry.cfg["task"] if entry.kind.name == "GROUP" else None)
            if entry.yaml_path is not None:  # before the name of a function
                members = members.replace(f"{entry.yaml_path.parent}/", "")
            out[name] = (entry.kind.name, entry.yaml_path, entry.tags, members)
    return out


def test_it_equals_lm_evals_index_of_odd_files(folder):
    expected = comparable(TaskIndex.build([folder]), folder)

    assert {"a", "b", "c", "d", "p", "f", "g", "t", "dated", "hidden", "inside", "from_base"} <= expected.keys()
    assert comparable(read_index(folder, "1"), folder) == expected
    assert comparable(read_index(folder, "1"), folder) == expected  # the stored one


@pytest.mark.slow
def test_it_equals_lm_evals_whole_index():
    expected = comparable(TaskManager().task_index, lm_eval_folder())

    assert len(expected) > 14_000
    assert {kind for kind, *_ in expected.values()} == {"TASK", "PY_TASK", "GROUP", "TAG"}
    assert comparable(lm_eval_index(), lm_eval_folder()) == expected


def test_single_tasks_are_found_without_reading_the_other_files(folder, monkeypatch):
    index, read = read_index(folder, "1"), []
    original = module._read
    monkeypatch.setattr(module, "_read", lambda path: read.append(os.path.relpath(path, folder)) or original(path))

    for names in (*combinations(index, 1), *combinations(index, 2)):
        single = all(index[name].kind in ("TASK", "PY_TASK") for name in names)
        expected = {name: index[name] for name in names} if single else None
        assert read_tasks(folder, "1", frozenset(names)) == expected
        assert read_tasks(folder, "1", frozenset(names)) == expected  # the stored one
    assert read_tasks(folder, "1", frozenset(["a", "nowhere"])) is None
    read.clear()
    assert read_tasks(folder, "2", frozenset(["from_base"])) is None  # it is a tag
    assert {"_base", "b.yaml", "deep/e.yaml", "q_late.yaml"} <= set(read)
    assert not {"deep/python.yaml", "f.yaml", "s_names.yaml"} & set(read)


@pytest.mark.slow
def test_single_tasks_of_lm_evals_are_those_of_its_whole_index():
    index = lm_eval_index()
    names = [name for name, entry in index.items() if entry.kind in ("TASK", "PY_TASK")]

    for chosen in (names[start : start + 5] for start in range(0, len(names), 700)):
        assert lm_eval_tasks(frozenset(chosen)) == {name: index[name] for name in chosen}


def test_it_is_built_once(folder, monkeypatch):
    first = read_index(folder, "1")
    monkeypatch.setattr(module, "_build", None)

    assert read_index(folder, "1") == first


@pytest.mark.parametrize("change", ["edited", "included", "new", "removed"])
def test_it_is_built_again_when_a_file_changes(folder, change):
    before = read_index(folder, "1")

    if change == "edited":
        (folder / "a.yaml").write_text("task: z\n")
    elif change == "included":
        (folder / "_base").write_text("tag: other\n")
    elif change == "new":
        (folder / "deep" / "z.yaml").write_text("task: z\n")
    else:
        (folder / "a.yaml").unlink()

    after = read_index(folder, "1")
    assert after != before
    assert comparable(after, folder) == comparable(TaskIndex.build([folder]), folder)


def test_it_is_built_again_for_another_version_of_lm_eval(folder, monkeypatch):
    read_index(folder, "1")
    monkeypatch.setattr(module, "_build", lambda *_: {})

    assert read_index(folder, "2") == {}


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: b"",
        lambda content: content[:-1],
        lambda content: content[: len(content) // 2],
        lambda content: content.replace(b"from_base", b"from_bass"),
        lambda content: b"0" * 64 + content[64:],
        lambda content: b"\xff\x00{}",
    ],
)
def test_a_damaged_index_is_built_again(folder, damage):
    index = read_index(folder, "1")
    content = stored(folder).read_bytes()
    assert damage(content) != content
    stored(folder).write_bytes(damage(content))

    assert read_index(folder, "1") == index
    assert stored(folder).read_bytes() == content


@pytest.mark.parametrize("place", ["a file", "no home", "read-only"])
def test_an_index_that_cannot_be_stored_is_the_same(folder, tmp_path, monkeypatch, place):
    expected = read_index(folder, "1")
    if place == "a file":
        (tmp_path / "file").write_text("")
        monkeypatch.setenv("LRBENCH_CACHE", str(tmp_path / "file"))
    elif place == "no home":
        monkeypatch.delenv("LRBENCH_CACHE")
        monkeypatch.setattr(Path, "expanduser", lambda self: (_ for _ in ()).throw(RuntimeError("no home")))
    else:
        stored(folder).unlink()

        def refuse(path, content):
            raise PermissionError(13, "Permission denied", str(path))

        monkeypatch.setattr(files, "write", refuse)

    assert read_index(folder, "1") == expected


def test_several_processes_may_read_it_at_once(folder):
    code = (
        "import sys, pathlib\nfrom lrbench.tasks.lm_eval_index import read_index\n"
        "for _ in range(20):\n"
        "    index = read_index(pathlib.Path(sys.argv[1]), sys.argv[2])\n"
        "    assert len(index) == int(sys.argv[3])"
    )
    count = str(len(read_index(folder, "0")))
    commands = [
        [sys.executable, "-c", code, str(folder), version, count] for version in "1122"
    ]  # each replaces others'

    processes = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for command in commands]

    assert [process.communicate()[1] for process in processes] == [""] * 4
    assert os.listdir(stored(folder).parent) == [stored(folder).name]


def spec(task, data=None):
    return SimpleNamespace(task=task, limit=None, num_fewshot=None, data=data)


def test_a_task_of_lm_evals_is_loaded_without_lm_evals_own_index(tmp_path, monkeypatch):
    data = tmp_path / "piqa.jsonl"
    data.write_text('{"goal": "Open a door", "sol1": "Push it.", "sol2": "Eat it.", "label": 0}\n')
    indexed, build = [], TaskIndex.build
    monkeypatch.setattr(TaskIndex, "build", staticmethod(lambda paths: indexed.extend(paths) or build(paths)))

    tasks = load_tasks([spec("piqa", str(data))])

    assert tasks.summary() == ["piqa: 1 documents, 0-shot"]
    assert indexed == [BUNDLED, PROTOCOLS]


def configs(tasks):
    return {name: task.dump_config() for name, task in tasks.tasks.items()}


@pytest.mark.parametrize("name", ["letters", "nested", "vowel", "letter_*"])
def test_groups_tags_and_patterns_of_lm_evals_are_those_of_a_folder(tmp_path, monkeypatch, name):
    monkeypatch.setenv("LRBENCH_CACHE", str(tmp_path / "cache"))
    (tmp_path / "tasks").mkdir()
    (tmp_path / "letters.jsonl").write_text('{"text": "a b c"}\n')
    text = (
        "task: letter_{0}\ntag: {1}\noutput_type: loglikelihood_rolling\ntest_split: test\ndoc_to_text: ''\n"
        "doc_to_target: '{{{{text}}}}'\ndataset_path: json\ndataset_kwargs: {{data_files: {{test: {2}}}}}\n"
        "metric_list: [{{metric: word_perplexity}}]\n"
    )
    for letter in "aeb":
        tag = "consonant" if letter == "b" else "vowel"
        (tmp_path / "tasks" / f"{letter}.yaml").write_text(text.format(letter, tag, tmp_path / "letters.jsonl"))
    (tmp_path / "tasks" / "x.yaml").write_text("group: letters\ntask: [vowel, letter_b]\n")
    (tmp_path / "tasks" / "y.yaml").write_text(
        "group: nested\ntask:\n  - group: inline\n    task: [letter_a]\n  - group: letters\n"
        "aggregate_metric_list: [{metric: word_perplexity, weight_by_size: true}]\n"
    )
    expected = load_tasks([spec(name)], [tmp_path / "tasks"])
    monkeypatch.setattr("lrbench.tasks.load.lm_eval_folder", lambda: tmp_path / "tasks")
    monkeypatch.setattr("lrbench.tasks.load.lm_eval_index", lambda: read_index(tmp_path / "tasks", "1"))
    monkeypatch.setattr("lrbench.tasks.load.lm_eval_tasks", lambda names: None)

    tasks = load_tasks([spec(name)])

    assert tasks.named == expected.named
    assert [group.name for group in tasks.groups.values()] == [group.name for group in expected.groups.values()]
    assert {n: t.dump_config() for n, t in tasks.tasks.items()} == {
        n: t.dump_config() for n, t in expected.tasks.items()
    }
    assert len(tasks.tasks) == (2 if name == "vowel" else 3)
