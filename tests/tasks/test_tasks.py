import json
import random
import subprocess
import sys
from functools import lru_cache
from types import SimpleNamespace

import lm_eval.utils
import numpy as np
import pytest
import torch

from lrbench.errors import TaskError
from lrbench.tasks import containment
from lrbench.tasks.containment import contained
from lrbench.tasks.lm_eval_index import lm_eval_index
from lrbench.tasks.load import load_tasks
from lrbench.tasks.names import unknown

TASK = """\
task: {name}
dataset_path: json
dataset_kwargs:
  data_files:
    test: {data}
output_type: multiple_choice
test_split: test
num_fewshot: 0
doc_to_text: question
doc_to_choice: choices
doc_to_target: gold
metric_list:
  - metric: acc
"""


def spec(task, limit=None, num_fewshot=None):
    return SimpleNamespace(task=task, limit=limit, num_fewshot=num_fewshot)


@pytest.fixture
def folder(tmp_path):
    """A folder with one task, `colours`, of three documents."""
    rows = [{"question": f"{n} is", "choices": ["red", "green"], "gold": n % 2} for n in range(3)]
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "colours.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "colours.yaml").write_text(TASK.format(name="colours", data="data/colours.jsonl"))
    return tmp_path


def test_relative_data_files_are_found_beside_the_yaml_whatever_the_working_directory(
    folder, tmp_path_factory, monkeypatch
):
    monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))

    tasks = load_tasks([spec("colours")], [folder])

    assert len(tasks.tasks["colours"].eval_docs) == 3


def test_relative_data_files_are_found_through_includes_and_groups(folder, tmp_path_factory, monkeypatch):
    monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))
    (folder / "more").mkdir()
    (folder / "more" / "shades.yaml").write_text("include: ../colours.yaml\ntask: shades\ntag: dyes\n")
    (folder / "all.yaml").write_text("group: paint\ntask:\n  - colours\n  - shades\n")

    tasks = load_tasks([spec("paint")], [folder])

    assert list(tasks.tasks) == ["colours", "shades"]
    assert list(tasks.groups) == ["paint"]
    assert list(load_tasks([spec("dyes")], [folder]).tasks) == ["shades"]


def test_a_data_file_that_is_not_there_is_named(folder):
    (folder / "colours.yaml").write_text(TASK.format(name="colours", data="hues.jsonl"))

    with pytest.raises(TaskError, match=r"colours\.yaml: data file 'hues\.jsonl' is not in "):
        load_tasks([spec("colours")], [folder])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("task: x\ndoc_to_text: {a\nb: 1\n", r"bad\.yaml:3:2: not valid task YAML: "),
        ("task: x\ndoc_to_text: !python/object x\n", r"bad\.yaml:2:14: not valid task YAML: "),
        ("task: x\ndoc_to_txt: question\n", r"bad\.yaml:2:1: unknown key 'doc_to_txt'; did you mean 'doc_to_text'\?"),
        ("output_type: multiple_choice\n", r"bad\.yaml:1: neither 'task' nor 'group'"),
        ("- a\n- b\n", r"bad\.yaml:1: a task file must be a mapping"),
        ("", r"bad\.yaml:1: a task file must be a mapping"),
        ("group: g\ntask: colours\n", r"bad\.yaml:1: 'task' of group 'g' must be a list"),
        ("include: _none.yaml\ntask: x\n", r"bad\.yaml: includes .*_none\.yaml, which is not there"),
        ("task: colours\n", r"'colours' is already defined in .*bad\.yaml"),
        ("task: almanac_text\n", r"bad\.yaml: 'almanac_text' is already defined in .*almanac/text\.yaml"),
    ],
)
def test_a_task_file_that_lm_eval_would_drop_is_an_error_with_its_place(folder, text, message):
    (folder / "bad.yaml").write_text(text)

    with pytest.raises(TaskError, match=message):
        load_tasks([spec("almanac_agreement")], [folder])


def test_a_folder_may_hold_yaml_that_is_not_of_tasks(folder):
    (folder / "suite.yaml").write_text("name: mine\ntasks: [colours]\n")

    assert list(load_tasks([spec("colours")], [folder]).tasks) == ["colours"]


def test_a_folder_that_is_not_there_is_an_error(tmp_path):
    with pytest.raises(TaskError, match="no such folder of tasks"):
        load_tasks([spec("almanac_text")], [tmp_path / "nowhere"])


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("helaswag", "; did you mean 'hellaswag'?"),
        ("facts", "; did you mean 'almanac_facts'?"),  # and not 'atis', of lm-eval's own
        ("rare", "; did you mean 'almanac_facts_rare'?"),
        ("almanac_fact", "; did you mean 'almanac_facts'?"),
        ("colour", "; did you mean 'colours'?"),
        ("nowhere_*", "; there are colours, c4_tokens, "),
    ],
)
def test_an_unknown_task_is_refused_with_the_nearest_name(folder, name, message):
    with pytest.raises(TaskError) as caught:
        load_tasks([spec("almanac_text"), spec(name)], [folder])

    assert str(caught.value).startswith(f"unknown task {name!r}{message}")
    assert caught.value.spec.task == name


def test_a_word_that_is_no_task_is_refused_by_the_index(folder):
    (folder / "more.yaml").write_text("include: colours.yaml\ntask: shades\ndescription:\n  - teal\n")

    with pytest.raises(TaskError, match="unknown task 'teal'"):
        load_tasks([spec("teal")], [folder])


def test_no_task_group_or_tag_of_lm_evals_is_taken_for_unknown():
    assert unknown(["hellaswag", "mmlu", "ai2_arc", "mmlu_*", "arc_e[a]sy", "squad_completion"], []) == []


def test_a_pattern_that_matches_no_task_is_unknown_though_it_matches_a_group():
    assert lm_eval_index()["ai2_arc"].kind == "TAG"

    [(name, hint)] = unknown(["ai2_ar?"], [])

    assert name == "ai2_ar?"
    assert hint.startswith("; did you mean ")


def test_an_unknown_task_of_a_suite_is_refused_without_importing_lm_eval(tmp_path):
    (tmp_path / "s.yaml").write_text(
        "name: s\nmodel: {name: almanac}\ntasks:\n  - almanac_text\n  - facts\nreducers: [svd]\n"
        "sweep: [{rank: {keep: 0.5}}]\n"
    )
    code = (
        "import sys\nfrom lrbench.cli import main\n"
        "assert main([sys.argv[1], 's.yaml']) == 2\nassert not {'torch', 'lm_eval'} & set(sys.modules)"
    )
    for verb in ("check", "run"):
        done = subprocess.run([sys.executable, "-c", code, verb], cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert done.stderr == "lrbench: s.yaml:5:5: unknown task 'facts'; did you mean 'almanac_facts'?\n"


def test_a_known_task_does_not_read_lm_evals_own(monkeypatch):
    monkeypatch.setattr("lrbench.tasks.load.lm_eval_index", None)

    assert list(load_tasks([spec("almanac_text")]).tasks) == ["almanac_text"]


def test_a_group_that_contains_itself_is_an_error(folder):
    (folder / "g.yaml").write_text("group: g\ntask: [h]\n")
    (folder / "h.yaml").write_text("group: h\ntask: [g]\n")

    with pytest.raises(TaskError, match="group 'g' contains itself, through g -> h -> g"):
        load_tasks([spec("g")], [folder])


@pytest.mark.parametrize("second", ["almanac_facts_rare", "almanac_facts", "almanac_facts_*"])
def test_a_task_named_twice_is_an_error(second):
    with pytest.raises(TaskError, match=r"is named twice, by 'almanac_facts' and by 'almanac_facts.*'; name it once"):
        load_tasks([spec("almanac_facts"), spec(second)])


def test_a_pattern_stands_for_tasks_and_not_for_groups():
    tasks = load_tasks([spec("almanac_facts*")])

    assert list(tasks.tasks) == ["almanac_facts_frequent", "almanac_facts_middle", "almanac_facts_rare"]
    assert tasks.groups == {}


def test_no_tasks_at_all_is_an_error():
    with pytest.raises(TaskError, match="no tasks"):
        load_tasks([])


def test_a_limit_below_one_is_an_error():
    with pytest.raises(TaskError, match="limit 0; it must be 1 or more"):
        load_tasks([spec("almanac_text", limit=0)])


def test_a_number_of_few_shot_examples_overrides_the_tasks_own_zero(folder):
    tasks = load_tasks([spec("colours", num_fewshot=2), spec("almanac_recall")], [folder])

    assert tasks.tasks["colours"].get_config("num_fewshot") == 2
    assert tasks.tasks["almanac_recall"].get_config("num_fewshot") == 0


def test_a_task_without_documents_is_an_error(folder):
    (folder / "empty.py").write_text(
        "import datasets\n"
        "def read(**_):\n"
        "    return {'test': datasets.Dataset.from_dict({'question': [], 'choices': [], 'gold': []})}\n"
    )
    text = TASK.format(name="empty", data="x")
    text = text.replace("dataset_path: json\n", "custom_dataset: !function empty.read\n")
    (folder / "empty.yaml").write_text(text.replace("dataset_kwargs:\n  data_files:\n    test: x\n", ""))

    with pytest.raises(TaskError, match=r"task 'empty' \(.*empty\.yaml\): it has no documents"):
        load_tasks([spec("empty")], [folder])


def test_what_a_task_raises_while_it_loads_names_the_task_and_its_file(folder):
    (folder / "colours.yaml").write_text(TASK.format(name="colours", data="data/colours.jsonl").replace("acc", "accc"))

    with pytest.raises(TaskError, match=r"task 'colours' \(.*colours\.yaml\) cannot be loaded: "):
        load_tasks([spec("colours")], [folder])


def test_a_summary_counts_tasks_documents_and_examples():
    tasks = load_tasks([spec("almanac_facts", limit=20, num_fewshot=2), spec("almanac_recall", limit=1000)])

    assert tasks.summary() == ["almanac_facts: 3 tasks, 60 documents, 2-shot", "almanac_recall: 150 documents, 0-shot"]


def test_lm_evals_seeds_do_not_leak():
    random.seed(5)
    np.random.seed(5)
    torch.manual_seed(5)
    expected = random.random(), np.random.rand(), torch.rand(1)
    random.seed(5)
    np.random.seed(5)
    torch.manual_seed(5)

    with contained():
        first = random.random(), np.random.rand(), torch.rand(1)

    assert (random.random(), np.random.rand(), torch.rand(1)) == expected
    with contained():
        assert (random.random(), np.random.rand(), torch.rand(1)) == first


def test_a_template_is_compiled_once_for_all_documents(monkeypatch):
    compiled = []
    from_string = lm_eval.utils.env.from_string
    monkeypatch.setattr(containment, "_compiled", lru_cache(lambda text: compiled.append(text) or from_string(text)))

    with contained():
        assert [lm_eval.utils.apply_template("{{ n }}!", {"n": n}) for n in range(3)] == ["0!", "1!", "2!"]

    assert compiled == ["{{ n }}!"]
    assert lm_eval.utils.env.from_string == from_string
