"""Suites that are wrong, one mistake each: one line with file, line and column, a remedy, exit code 2, in no time.

`tests/suite/test_suite.py` has more of them, with their messages whole; here is the command line's part.
"""

import os
import re
import subprocess
import sys
import time

import pytest
import yaml

import lrbench.run.runner  # noqa: F401 - so that importing it is no part of what is timed
from lrbench.cli import main

BASE = """\
name: demo
model: {name: almanac}
tasks: [almanac_facts]
reducers: [svd]
sweep:
  - mode: each
    layers: all
    weights: [mlp]
    rank: {keep: 0.5}
seed: 0
"""

#: A line of the suite, what stands there instead (line 5: instead of the whole sweep), where it is wrong, and what is
#: said of it.
MALFORMED = [
    (1, 'name: [a]', "1:7", "'name' takes a string, not a list"),
    (1, 'name: {a: b}', "1:7", "'name' takes a string, not a mapping"),
    (1, 'name: ~x/..', "1:7",
     "the suite's name '~x/..' also names a directory: at most 64 letters, digits, '.', '_', '-',"),
    (1, 'name: ../up', "1:7",
     "the suite's name '../up' also names a directory: at most 64 letters, digits, '.', '_', '-',"),
    (1, 'name: /abs', "1:7",
     "the suite's name '/abs' also names a directory: at most 64 letters, digits, '.', '_', '-', a"),
    (1, 'name: con', "1:7", "the suite's name 'con' is a device on Windows, whatever follows; choose another"),
    (1, 'name: NUL.txt', "1:7", "the suite's name 'NUL.txt' is a device on Windows, whatever follows; choose another"),
    (1, 'name: "a\\0b"', "1:7", "'a\\x00b' (a string) has the character U+0000 in it; take it out"),
    (1, 'name: ".."', "1:7",
     "the suite's name '..' also names a directory: at most 64 letters, digits, '.', '_', '-', a l"),
    (1, 'name: aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa', "1:7",
     "the suite's name 'aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa' also na"),
    (1, 'name: ""', "1:7", "'name' must not be empty"),
    (1, 'name: -x', "1:7",
     "the suite's name '-x' also names a directory: at most 64 letters, digits, '.', '_', '-', a l"),
    (1, 'name: "\\e[31mred"', "1:7", "'\\x1b[31mred' (a string) has the character U+001B in it; take it out"),
    (1, 'name: é', "1:7",
     "the suite's name 'é' also names a directory: at most 64 letters, digits, '.', '_', '-', a le"),
    (1, 'name: "a\\nb"', "1:7", "'a\\nb' (a string) has the character U+000A in it; take it out"),
    (1, 'name: null x', "1:7",
     "the suite's name 'null x' also names a directory: at most 64 letters, digits, '.', '_', '-',"),
    (1, 'name: COM1.x', "1:7", "the suite's name 'COM1.x' is a device on Windows, whatever follows; choose another"),
    (2, 'model: ', "2:7", "'model' takes a mapping, such as {name: almanac} or {pretrained: org/name}, not null"),
    (2, 'model: null', "2:8", "'model' takes a mapping, such as {name: almanac} or {pretrained: org/name}, not null"),
    (2, 'model: 3', "2:8", "'model' takes a mapping, such as {name: almanac} or {pretrained: org/name}, not 3"),
    (2, 'model: []', "2:8", "'model' takes one model; for several write 'models'"),
    (2, 'model: {name: 3}', "2:15", "'name' takes a string, not 3; quote it"),
    (2, 'model: {name: [almanac]}', "2:15", "'name' takes a string, not a list"),
    (2, 'model: {name: almanak}', "2:8",
     "unknown bundled model 'almanak'; did you mean 'almanac'? (bundled: almanac; for another mode"),
    (2, 'model: {name: Almanac}', "2:8",
     "unknown bundled model 'Almanac'; did you mean 'almanac'? (bundled: almanac; for another mode"),
    (2, 'model: {name: null}', "2:8",
     "a model has either 'name' (a bundled one) or 'pretrained' (a path or hub id), or 'config' fo"),
    (2, "model: {pretrained: ''}", "2:21", "'pretrained' must not be empty"),
    (2, 'model: {pretrained: 3}', "2:21", "'pretrained' takes a string, not 3; quote it"),
    (2, 'model: {pretrained: ../gone}', "2:21", 'no such checkpoint folder: {above}/gone'),
    (2, 'model: {pretrained: a, attn_implementation: org/kernel}', "2:45",
     "a kernel of the hub is untrusted code; name an implementation of transformers' own"),
    (2, 'model: {pretrained: a, revision: [x]}', "2:34", "'revision' takes a string, not a list"),
    (2, 'model: {pretrained: a, revision: 2024-01-01x, revison: b}', "2:47",
     "unknown key 'revison'; did you mean 'revision'?"),
    (2, 'model: {name: almanac, dtype: int8}', "2:31", "unknown dtype 'int8'; known:"),
    (2, 'model: {name: almanac, dtype: 16}', "2:31", 'unknown dtype 16; known:'),
    (2, 'model: {name: almanac, dtype: [float32]}', "2:31", 'unknown dtype a list; known:'),
    (2, 'model: {name: almanac, device: 0}', "2:32", "'device' takes a string, not 0; quote it"),
    (2, "model: {name: almanac, device: ''}", "2:32", "'device' must not be empty"),
    (2, 'model: {name: almanac, device: gpu}', "2:8", "device 'gpu' cannot be used here"),
    (2, "model: {name: almanac, device: 'cuda:99'}", "2:8", "device 'cuda:99' cannot be used here"),
    (2, 'model: {name: almanac, chat_template: on}', "2:39",
     "'chat_template' takes true or false, not 'on' (a string)"),
    (2, 'model: {name: almanac, chat_template: true}', "2:39",
     'the tokenizer has no chat template; leave it out, or take another model'),
    (2, 'model: {name: almanac, max_length: -5}', "2:36", "'max_length' must be at least 1, not -5"),
    (2, 'model: {name: almanac, max_length: 1e3}', "2:36", "'max_length' takes an integer, not 1000.0"),
    (2, 'model: {name: almanac, max_length: 99999999999999999999}', "2:36",
     "'max_length' must be less than 2**63, not 99999999999999999999"),
    (2, 'model: {name: almanac, add_bos: no}', "2:33", "'add_bos' takes true or false, not 'no' (a string)"),
    (2, 'model: {name: almanac, label: 7}', "2:31", "'label' takes a string, not 7; quote it"),
    (2, "model: {name: almanac, label: ''}", "2:31", "'label' must not be empty"),
    (2, 'model: {name: almanac, trust_remote_code: 1}', "2:43", "'trust_remote_code' takes true or false, not 1"),
    (2, 'model: {name: almanac, attn_implementation: fast}', "2:8",
     'cannot be loaded: ValueError: Specified `attn_implementation="fast"` is not supported'),
    (2, 'seeds: 1000000000', "2:8", "'seeds' is how many seeds, at most 10,000, not 1000000000"),
    (2, 'model: {name: almanac, attn_implementation: flash_attention_2}', "2:8",
     "flash_attention_2 is not installed, or has no GPU; set another 'attn_implementation'"),
    (2, 'model: {config: {model_type: llama, attn_implementation: 5}}', "2:8",
     "its configuration has an attn_implementation that is no name; set sdpa or eager"),
    (2, 'model: {config: {model_type: llama, attn_implementation: [x]}}', "2:8",
     "its configuration has an attn_implementation that is no name; set sdpa or eager"),
    (2, 'model: {config: {model_type: llama, attn_implementation: org/kernel}}', "2:8",
     "needs the kernel org/kernel of the hub, which is untrusted code"),
    (2, 'model: {name: almanac, attn_implementation: [eager]}', "2:45",
     "'attn_implementation' takes a string, not a list"),
    (2, 'model: {config: {model_type: lama, hidden_size: 8}}', "2:8",
     "unknown model_type 'lama'; did you mean 'llama'?"),
    (2, 'model: {config: {model_type: 3}}', "2:17",
     "a 'config' needs a model_type: {model_type: llama, hidden_size: 64, ...}"),
    (2, 'model: {config: {}}', "2:17", "a 'config' needs a model_type: {model_type: llama, hidden_size: 64, ...}"),
    (2, 'model: {config: {model_type: llama, hidden_sise: 8}}', "2:8",
     "a random llama: its configuration has no 'hidden_sise'; did you mean 'hidden_size'?"),
    (2, 'model: {config: {model_type: llama, 3: 8}}', "2:37", 'a key must be a word, not 3; quote it'),
    (2, 'model: {config: {model_type: llama}, seed: -1}', "2:44", "'seed' must be at least 0, not -1"),
    (2, 'model: {config: {model_type: llama}, seed: 0.5}', "2:44", "'seed' takes an integer, not 0.5"),
    (2, 'model: {config: {model_type: llama}, seed: 99999999999999999999}', "2:44",
     "'seed' must be less than 2**63, not 99999999999999999999"),
    (2, 'model: {name: almanac, adapter: []}', "2:33", "'adapter' takes a string, not a list"),
    (2, 'model: {name: almanac, tokenizer: 5}', "2:35", "'tokenizer' takes a string, not 5; quote it"),
    (2, 'model: {pretrained: a, device_map: [0]}', "2:36",
     "'device_map' takes auto, balanced or a mapping of modules to devices, not a list"),
    (2, 'model: {pretrained: a, device_map: {}}', "2:36",
     "'device_map' takes auto, balanced or a mapping of modules to devices, not a mapping"),
    (2, 'model: {pretrained: a, device_map: {0: cpu}}', "2:37", 'a key must be a word, not 0; quote it'),
    (2, 'model: {pretrained: a, device_map: {a: true}}', "2:36",
     "'device_map' maps modules to devices, as in {model.layers.0: 1}, not 'a' to True"),
    (2, 'model: {name: almanac, layers: all}', "2:24", "unknown key 'layers'; known keys:"),
    (2, 'model: {name: almanac name: b}', "2:27",
     "not YAML: expected ',' or '}', but got ':' (while parsing a flow mapping); close the bracket"),
    (2, 'model: {name: almanac, tasks: [a]}', "2:24", "unknown key 'tasks'; known keys:"),
    (2, 'model: {name: almanac, config: null, pretrained: b}', "2:8",
     "a model has either 'name' (a bundled one) or 'pretrained' (a path or hub id), or 'config' fo"),
    (2, 'models: {name: almanac}', "2:9", "'models' takes a list, not a mapping"),
    (2, 'models: [almanac]', "2:10",
     "'models' takes a mapping, such as {name: almanac} or {pretrained: org/name}, not 'almanac' ("),
    (2, 'models: [{name: almanac}, {}]', "2:27",
     "a model has either 'name' (a bundled one) or 'pretrained' (a path or hub id), or 'config' fo"),
    (2, 'models: [{name: almanac}, {name: almanac, label: almanac}]', "2:27",
     "two models are called 'almanac'; give one a label"),
    (2, 'models: [[{name: almanac}]]', "2:10",
     "'models' takes a mapping, such as {name: almanac} or {pretrained: org/name}, not a list"),
    (2, 'Model: {name: almanac}', "2:1", "unknown key 'Model'; did you mean 'model'?"),
    (2, 'model : [name, almanac]', "2:9", "'model' takes one model; for several write 'models'"),
    (2, 'model {name: almanac}', "2:1", "unknown key 'model {name'; did you mean 'model'?"),
    (2, 'models: null', "2:9", "'models' takes a list, not null"),
    (3, 'tasks: ', "3:7", "'tasks' takes a list, not null"),
    (3, 'tasks: null', "3:8", "'tasks' takes a list, not null"),
    (3, 'tasks: almanac_facts', "3:8", "'tasks' takes a list, not 'almanac_facts' (a string)"),
    (3, 'tasks: []', "3:8", "'tasks' must not be empty"),
    (3, 'tasks: [null]', "3:9", "'tasks' takes a mapping, such as {task: hellaswag, limit: 100}, not null"),
    (3, 'tasks: [[almanac_facts]]', "3:9",
     "'tasks' takes a mapping, such as {task: hellaswag, limit: 100}, not a list"),
    (3, 'tasks: [almanac_factz]', "3:9", "unknown task 'almanac_factz'; did you mean 'almanac_facts'?"),
    (3, 'tasks: [zzz_nothing]', "3:9",
     "unknown task 'zzz_nothing'; there are c4_tokens, mmlu_math, counterfact, text_tokens, almanac"),
    (3, "tasks: ['']", "3:9", "'task' must not be empty"),
    (3, 'tasks: [{}]', "3:9", "missing key 'task'"),
    (3, 'tasks: [{task: null}]', "3:16", "'task' takes a string, not null"),
    (3, 'tasks: [{limit: 3}]', "3:9", "missing key 'task'"),
    (3, "tasks: [{task: a, limit: '5'}]", "3:26", "'limit' takes an integer, not '5' (a string)"),
    (3, 'tasks: [{task: a, limit: -1}]', "3:26", "'limit' must be at least 1, not -1"),
    (3, 'tasks: [{task: a, limit: 1e400}]', "3:26", '1e400 is not a finite number'),
    (3, 'tasks: [{task: a, num_fewshot: true}]', "3:32", "'num_fewshot' takes an integer, not true"),
    (3, 'tasks: [{task: a, num_fewshot: 1.5}]', "3:32", "'num_fewshot' takes an integer, not 1.5"),
    (3, 'tasks: [{task: a, num_fewshots: 5}]', "3:19", "unknown key 'num_fewshots'; did you mean 'num_fewshot'?"),
    (3, 'tasks: [{name: a}]', "3:10", "unknown key 'name'; known keys:"),
    (3, 'tasks: [almanac_facts, {task: almanac_facts, limit: 5}]', "3:24", "task 'almanac_facts' is listed twice"),
    (3, 'tasks: [almanac_facts, almanac_facts_rare]', "3:24",
     "task 'almanac_facts_rare' is named twice, by 'almanac_facts' and by 'almanac_facts_rare'; na"),
    (3, 'tasks: {almanac_facts: 5}', "3:8", "'tasks' takes a list, not a mapping"),
    (3, 'tasks: [{task: [a, b]}]', "3:16", "'task' takes a string, not a list"),
    (3, 'tasks: [3]', "3:9", "'tasks' takes a mapping, such as {task: hellaswag, limit: 100}, not 3"),
    (3, 'tasks: [{task: a, rank: 3}]', "3:19", "unknown key 'rank'; known keys:"),
    (3, "tasks: ['../../etc/passwd']", "3:9",
     "unknown task '../../etc/passwd'; there are c4_tokens, mmlu_math, counterfact, text_tokens, a"),
    (4, 'reducers: svd', "4:11", "'reducers' takes a list, not 'svd' (a string)"),
    (4, 'reducers: []', "4:11", "'reducers' must not be empty"),
    (4, 'reducers: [null]', "4:12", 'a reducer is a name, or a name with parameters, not null'),
    (4, 'reducers: [svdd]', "4:12", "unknown reducer 'svdd'; did you mean 'svd'?"),
    (4, 'reducers: [SVD]', "4:12", "unknown reducer 'SVD'; known:"),
    (4, 'reducers: [{}]', "4:12", 'a reducer is one name, with its parameters indented below it'),
    (4, 'reducers: [{svd: {}, cr: {}}]', "4:22", 'a reducer is one name, with its parameters indented below it'),
    (4, 'reducers: [{rsvd: {oversampel: 3}}]', "4:32",
     "rsvd: unknown parameter 'oversampel'; did you mean 'oversample'?"),
    (4, 'reducers: [{rsvd: {oversample: x}}]', "4:32", "rsvd: oversample: should be a valid integer, got 'x'"),
    (4, 'reducers: [{rsvd: {oversample: -1}}]', "4:12", 'rsvd: oversample and power_iterations must not be negative'),
    (4, 'reducers: [{rsvd: {oversample: 1.5}}]', "4:32", 'rsvd: oversample: should be a valid integer, got 1.5'),
    (4, 'reducers: [{rsvd: {oversample: null}}]', "4:32", 'rsvd: oversample: should be a valid integer, got None'),
    (4, 'reducers: [{rsvd: [3]}]', "4:19", "the parameters of 'rsvd' are a mapping, not a list"),
    (4, 'reducers: [{svd: {rank: 3}}]', "4:25", "svd: unknown parameter 'rank'; it has store"),
    (4, "reducers: [{svd: {label: ''}}]", "4:26", "'label' must not be empty"),
    (4, 'reducers: [{svd: {label: xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx}}]', "4:26",
     "'label': value should have at most 64 items after validation, not 65, got 'xxxxxxxxxxxxxxxxx"),
    (4, 'reducers: [{svd: {label: [a]}}]', "4:26", "'label' takes a string, not a list"),
    (4, 'reducers: [svd, {cr: {label: svd}}]', "4:17",
     "two reducers are called 'svd'; give one a label: `cr: {label: ...}`"),
    (4, 'reducers: [svd-llm]', "4:12",
     'svd-llm needs calibration (second_moment); add `calibration: {text: FILE}` to the suite'),
    (4, 'reducers: [[svd]]', "4:12", 'a reducer is a name, or a name with parameters, not a list'),
    (4, 'reducers: [true]', "4:12", 'a reducer is a name, or a name with parameters, not true'),
    (4, 'reducers: {svd: {}}', "4:11", "'reducers' takes a list, not a mapping"),
    (4, "reducers: ['']", "4:12", "'name' must not be empty"),
    (4, 'reducers: [{svd: yes}]', "4:18", "the parameters of 'svd' are a mapping, not 'yes' (a string)"),
    (4, 'reducers: [{? [a, b] : 1}]', "4:15", 'a key must be a word, not a list or mapping; quote it'),
    (5, 'sweep: []', "5:8", "'sweep' must not be empty"),
    (5, 'sweep: null', "5:8", "'sweep' takes a list, not null"),
    (5, 'sweep: each', "5:8", "'sweep' takes a list, not 'each' (a string)"),
    (5, 'sweep: [each]', "5:9",
     "'sweep' takes a mapping, such as {weights: [mlp], rank: {keep: 0.5}}, not 'each' (a string)"),
    (5, 'sweep: [[]]', "5:9", "'sweep' takes a mapping, such as {weights: [mlp], rank: {keep: 0.5}}, not a list"),
    (5, 'sweep: [{}]', "5:9", "missing key 'rank'"),
    (5, 'sweep: {mode: each}', "5:8", "'sweep' takes a list, not a mapping"),
    (5, 'sweeps:', "5:1", "unknown key 'sweeps'; did you mean 'sweep'?"),
    (6, '  - mode: Each', "6:11", "unknown mode 'Each'; did you mean 'each'?"),
    (6, '  - mode: [each]', "6:11", 'unknown mode a list; known:'),
    (6, '  - mode: null', "6:11", 'unknown mode null; known:'),
    (6, '  - mode: 1', "6:11", 'unknown mode 1; known:'),
    (6, '  - mode: each together', "6:11", "unknown mode 'each together'; did you mean 'together'?"),
    (6, '  - reducers: []', "6:15", "'reducers' must not be empty"),
    (6, '  - reducers: [svdd]', "6:16", "no reducer is labelled 'svdd'; did you mean 'svd'?"),
    (6, '  - reducers: [[svd]]', "6:16", "'reducers' takes a string, not a list"),
    (6, '  - seed: 3', "6:5", "unknown key 'seed'; known keys:"),
    (6, '  - keep: 0.5', "6:5", "unknown key 'keep'; known keys:"),
    (6, '  - reducers: 3', "6:15", "'reducers' takes a string, not 3; quote it"),
    (7, '    layers: 99', "7:13", 'layer 99 is out of range: the model has 8 blocks, 0 to 7 (or -8 to -1)'),
    (7, '    layers: -9', "7:13", 'layer -9 is out of range: the model has 8 blocks, 0 to 7 (or -8 to -1)'),
    (7, '    layers: []', "7:13", 'a list of layers holds integers such as [0, 3], not an empty list'),
    (7, '    layers: [0, 99]', "7:13", 'layer 99 is out of range: the model has 8 blocks, 0 to 7 (or -8 to -1)'),
    (7, "    layers: '7-99'", "7:13", 'layer 99 is out of range: the model has 8 blocks, 0 to 7 (or -8 to -1)'),
    (7, "    layers: '5-2'", "7:13", "layers '5-2' run backwards; write '2-5'"),
    (7, "    layers: 'last 0'", "7:13", "layers 'last 0' are none"),
    (7, "    layers: 'first 9'", "7:13", "layers 'first 9' are out of range: the model has 8 blocks"),
    (7, '    layers: 4-7-9', "7:13",
     'layers \'4-7-9\' are not one of all, 3, -1, [0, 3], "4-7", "last 2", "first half", "last third"'),
    (7, '    layers: 1.5', "7:13",
     'layers are one of all, 3, -1, [0, 3], "4-7", "last 2", "first half", "last third"; got 1.5'),
    (7, '    layers: null', "7:13",
     'layers are one of all, 3, -1, [0, 3], "4-7", "last 2", "first half", "last third"; got null'),
    (7, '    layers: {a: 1}', "7:13",
     'layers are one of all, 3, -1, [0, 3], "4-7", "last 2", "first half", "last third"; got a mapping'),
    (7, '    layers: [null]', "7:13", 'a list of layers holds integers such as [0, 3], not null'),
    (7, '    layers: [true]', "7:13", 'a list of layers holds integers such as [0, 3], not true'),
    (7, "    layers: ['1']", "7:13", "a list of layers holds integers such as [0, 3], not '1' (a string)"),
    (7, '    layers: last quater', "7:13",
     'layers \'last quater\' are not one of all, 3, -1, [0, 3], "4-7", "last 2", "first half", "last'),
    (7, "    layers: '-'", "7:13",
     'layers \'-\' are not one of all, 3, -1, [0, 3], "4-7", "last 2", "first half", "last third"'),
    (7, '    layers: 1e3', "7:13",
     'layers are one of all, 3, -1, [0, 3], "4-7", "last 2", "first half", "last third"; got 1000.0'),
    (7, '    layers: first', "7:13",
     'layers \'first\' are not one of all, 3, -1, [0, 3], "4-7", "last 2", "first half", "last third'),
    (7, '    layers: 99999999999999999999999', "7:13",
     'layer 99999999999999999999999 is out of range: the model has 8 blocks, 0 to 7 (or -8 to -1)'),
    (7, "    layers: '0-99999999999999999999'", "7:13",
     'layers \'0-99999999999999999999\' are not one of all, 3, -1, [0, 3], "4-7", "last 2", "first h'),
    (8, '    weights: mlpp', "8:14", "unknown role 'mlpp'; did you mean 'mlp'?"),
    (8, '    weights: [mlp, atn]', "8:20", "unknown role 'atn'; did you mean 'attn'?"),
    (8, '    weights: [mlp, 3]', "8:20", "'weights' takes a string, not 3; quote it"),
    (8, "    weights: ['*.nothing.*']", "8:14", "'*.nothing.*' selects no weight"),
    (8, '    weights: [model.layers.0.nothing.weight]', "8:14", "'model.layers.0.nothing.weight' selects no weight"),
    (8, '    weights: [[mlp]]', "8:15", "'weights' takes a string, not a list"),
    (8, '    weights: {mlp: 1}', "8:14", "'weights' takes a string, not a mapping"),
    (8, "    weights: ['']", "8:15", "unknown role ''; known:"),
    (8, "    weights: ['[']", "8:14", "'[' selects no weight"),
    (8, '    weights: true', "8:14", "'weights' takes a string, not true; quote it"),
    (8, '    weights: [null]', "8:15", "'weights' takes a string, not null"),
    (8, '    weights: [mlp.dwon]', "8:15", "unknown role 'mlp.dwon'; did you mean 'mlp.down'?"),
    (8, "    weights: ['*'*]", "8:19",
     "not YAML: expected alphabetic or numeric character, but found ']' (while scanning an alias);"),
    (9, '    rank: ', "9:10", "'rank' takes a mapping, such as {keep: [0.5, 0.25]}, not null"),
    (9, '    rank: 0.5', "9:11", "'rank' takes a mapping, such as {keep: [0.5, 0.25]}, not 0.5"),
    (9, '    rank: [0.5]', "9:11", "'rank' takes a mapping, such as {keep: [0.5, 0.25]}, not a list"),
    (9, '    rank: {keep: null}', "9:11", 'a rank is exactly one of'),
    (9, '    rank: {keep: []}', "9:18", "'keep' must not be empty"),
    (9, '    rank: {keep: [0.5, x]}', "9:24", "'keep' takes a number, not 'x' (a string)"),
    (9, '    rank: {keep: -0.5}', "9:18", "'keep' must be more than 0, not -0.5"),
    (9, '    rank: {keep: 50%}', "9:18", "'keep' takes a number, not '50%' (a string)"),
    (9, '    rank: {keep: 1.0001}', "9:18", "'keep' must be at most 1, not 1.0001"),
    (9, "    rank: {keep: '0.5'}", "9:18", "'keep' takes a number, not '0.5' (a string)"),
    (9, '    rank: {keep: 0,5}', "9:20", 'a key must be a word, not 5; quote it'),
    (9, '    rank: {Keep: 0.5}', "9:12", "unknown key 'Keep'; did you mean 'keep'?"),
    (9, '    rank: {rank: -3}', "9:18", "'rank' must be at least 1, not -3"),
    (9, '    rank: {rank: 2e1}', "9:18", "'rank' takes an integer, not 20.0"),
    (9, '    rank: {rank: [3, 3]}', "9:22", '3 is listed twice'),
    (9, '    rank: {rank: 0x10}', "9:18", "'rank' takes an integer, not '0x10' (a string)"),
    (9, '    rank: {rank: 1_0}', "9:18", "'rank' takes an integer, not '1_0' (a string)"),
    (9, '    rank: {rank: 012}', "9:18", "'rank' takes an integer, not '012' (a string)"),
    (9, '    rank: {rank: +}', "9:18", "'rank' takes an integer, not '+' (a string)"),
    (9, '    rank: {rank: 12:30}', "9:18", "'rank' takes an integer, not '12:30' (a string)"),
    (9, '    rank: {rank: 2024-01-01}', "9:18", "'rank' takes an integer, not '2024-01-01' (a string)"),
    (9, '    rank: {energy: 0}', "9:20", "'energy' must be more than 0, not 0"),
    (9, '    rank: {energy: true}', "9:20", "'energy' takes a number, not true"),
    (9, '    rank: {error: x}', "9:19", "'error' takes a number, not 'x' (a string)"),
    (9, '    rank: {error: -1}', "9:19", "'error' must be at least 0, not -1"),
    (9, '    rank: {fraction: 0}', "9:22", "'fraction' must be more than 0, not 0"),
    (9, '    rank: {fraction: [0.5, 0.5]}', "9:28", '0.5 is listed twice'),
    (9, '    rank: {keep: {a: 1}}', "9:18", "'keep' takes a number, not a mapping"),
    (9, '    rank: {rank: 999999999999999999999}', "9:18", "'rank' must be less than 2**63, not 999999999999999999999"),
    (9, '    rank: {rank: .5}', "9:18", "'rank' takes an integer, not 0.5"),
    (9, '    rank: {keep: !!float x}', "9:18", "'x' is not float; leave the tag out"),
    (9, '    rank: {keep: !!int 3.0}', "9:18", "'3.0' is not int; leave the tag out"),
    (10, 'seed: null', "10:7", "'seed' takes an integer, not null"),
    (10, 'seed: 1.0', "10:7", "'seed' takes an integer, not 1.0"),
    (10, 'seed: -0.0', "10:7", "'seed' takes an integer, not -0.0"),
    (10, 'seed: 9223372036854775808', "10:7", "'seed' must be less than 2**63, not 9223372036854775808"),
    (10, 'seed: [1]', "10:7", "'seed' takes an integer, not a list"),
    (10, 'seeds: 0', "10:8", "'seeds' is how many seeds, or a list of them, not 0"),
    (10, 'seeds: [1, 1]', "10:12", 'seed 1 is listed twice'),
    (10, 'seeds: [1, -1]', "10:12", 'a seed is a whole number from 0 up to 2**63, not -1'),
    (10, 'seeds: []', "10:8", "'seeds' is how many seeds, or a list of them, not none"),
    (10, 'seeds: {a: 1}', "10:8", "'seeds' is how many seeds, or a list of them, not a mapping"),
    (10, "seeds: '3'", "10:8", "'seeds' is how many seeds, or a list of them, not '3' (a string)"),
    (10, 'batch_size: auto', "10:13", "'batch_size' takes an integer, not 'auto' (a string)"),
    (10, 'batch_size: 1.5', "10:13", "'batch_size' takes an integer, not 1.5"),
    (10, 'batch_size: -1', "10:13", "'batch_size' must be at least 1, not -1"),
    (10, 'batchsize: 3', "10:1", "unknown key 'batchsize'; did you mean 'batch_size'?"),
    (10, 'inference: [dense]', "10:12", 'unknown inference a list; known:'),
    (10, 'inference: true', "10:12", 'unknown inference true; known:'),
    (10, 'measure: {}', "10:10", 'unknown measure a mapping; known:'),
    (10, 'measure: 3', "10:10", 'unknown measure 3; known:'),
    (10, 'frontier_memory: .inf', "10:18", '.inf is not a finite number'),
    (10, 'frontier_memory: big', "10:18",
     "'frontier_memory' takes auto, or GiB as a number above 0, not 'big' (a string)"),
    (10, 'task_paths: ./tasks', "10:13", "'task_paths' takes a list, not './tasks' (a string)"),
    (10, 'task_paths: [3]', "10:14", 'a path is a string, not 3'),
    (10, "task_paths: ['']", "10:14", 'a path must not be empty'),
    (10, 'task_paths: [./gone]', "10:14", 'no such folder: {folder}/gone'),
    (10, 'task_paths: ["a\\0b"]', "10:14", "'a\\x00b' (a string) has the character U+0000 in it; take it out"),
    (10, 'task_paths: [' + "x" * 300 + ']', "10:14",
     'a path that cannot be followed: File name too long; give another'),
    (10, 'plugins: {a: b}', "10:10", "'plugins' takes a list, not a mapping"),
    (10, "plugins: ['']", "10:11", 'a path must not be empty'),
    (10, 'plugins: ["a\\0b"]', "10:11", "'a\\x00b' (a string) has the character U+0000 in it; take it out"),
    (10, 'plugins: [' + "x" * 300 + '.py]', "10:11",
     'a path that cannot be followed: File name too long; give another'),
    (10, 'calibration: 3', "10:14", "'calibration' takes a mapping, such as {text: ./text.txt, samples: 128}, not 3"),
    (10, 'calibration: {}', "10:14",
     "a calibration has either 'name' (bundled text) or 'text' (a file, data set or task)"),
    (10, 'calibration: {name: nope}', "10:21", "no bundled calibration text 'nope' (bundled: almanac)"),
    (10, 'calibration: {name: almanac, text: x.txt}', "10:14",
     "a calibration has either 'name' (bundled text) or 'text' (a file, data set or task)"),
    (10, 'calibration: {text: gone.txt}', "10:21",
     'no such file of calibration text: {folder}/gone.txt (a data set is {dataset: NAME})'),
    (10, 'calibration: {text: {}}', "10:21", 'calibration text is exactly one of'),
    (10, 'calibration: {text: {file: a.txt, task: b}}', "10:35", 'calibration text is exactly one of'),
    (10, 'calibration: {text: {task: b, split: c}}', "10:31", "'split' does not go with 'task'"),
    (10, 'calibration: {name: almanac, samples: 0}', "10:39", "'samples' must be at least 1, not 0"),
    (10, 'calibration: {name: almanac, length: 1}', "10:38", "'length' must be at least 2, not 1"),
    (10, 'calibration: {name: almanac, damping: -1}', "10:39", "'damping' must be at least 0, not -1"),
    (10, 'calibration: {name: almanac, damping: .nan}', "10:39", '.nan is not a finite number'),
    (10, 'calibration: {name: almanac, sample: 5}', "10:30", "unknown key 'sample'; did you mean 'samples'?"),
    (10, 'calibration: {text: {files: x}}', "10:22", "unknown key 'files'; did you mean 'file'?"),
    (10, "calibration: {text: ''}", "10:21", "'file' must not be empty"),
    (10, 'calibration: {text: "a\\0.txt"}', "10:21",
     "'a\\x00.txt' (a string) has the character U+0000 in it; take it out"),
    (10, 'delta: 3', "10:8", "'delta' takes a mapping, such as {base: org/name}, not 3"),
    (10, 'delta: {}', "10:8", "missing key 'base'"),
    (10, 'delta: {base: {}}', "10:15",
     "a model has either 'name' (a bundled one) or 'pretrained' (a path or hub id), or 'config' fo"),
    (10, 'delta: {base: almanac, bas: 1}', "10:24", "unknown key 'bas'; did you mean 'base'?"),
    (10, 'delta: {base: ./gone}', "10:15", 'no such checkpoint folder: {folder}/gone'),
    (10, 'delta: {base: {name: almanac, device: cpu}}', "10:31",
     "'device' does not go with a base, which is never run; leave it out"),
    (10, 'delta: {base: {name: almanak}}', "10:15",
     "unknown bundled model 'almanak'; did you mean 'almanac'? (bundled: almanac; for another mode"),
    (10, 'delta: {base: {name: almanac}, bose: 1}', "10:32", "unknown key 'bose'; did you mean 'base'?"),
    (10, 'delta: [x]', "10:8", "'delta' takes a mapping, such as {base: org/name}, not a list"),
    (10, 'include: x.yaml', "10:1", "unknown key 'include'; known keys:"),
    (10, 'version: 2', "10:1", "unknown key 'version'; known keys:"),
    (10, '<<: 3', "10:5", '`<<` takes a mapping or a list of mappings'),
    (10, '<<: [1]', "10:6", '`<<` takes a mapping or a list of mappings'),
    (10, '<<: {seed: 1}\n<<: {seed: 2}', "11:1", "duplicate key '<<'; write one, with a list"),
    (10, '<<: &a {<<: *a}', "10:5", 'an anchor that contains itself; write out what it stands for'),
    (10, '&a seed: *a', "10:1", "'seed' takes an integer, not 'seed' (a string)"),
    (10, 'x: &a [*a]', "10:4", 'an anchor that contains itself; write out what it stands for'),
    (10, 'x: &a {b: *a}', "10:4", 'an anchor that contains itself; write out what it stands for'),
    (10, 'seed: *none', "10:7", "not YAML: found undefined alias 'none'; quote a value that begins with *"),
    (10, 'seed: &a', "10:7", "'seed' takes an integer, not null"),
    (10, 'seed: !x 3', "10:7", "tag '!x' is not allowed here: plain data only; leave it out"),
    (10, 'seed: !!python/object/apply:os.system [ls]', "10:7",
     "tag 'tag:yaml.org,2002:python/object/apply:os.system' is not allowed here: plain data only;"),
    (10, 'seed: !!binary aGk=', "10:7",
     "tag 'tag:yaml.org,2002:binary' is not allowed here: plain data only; leave it out"),
    (10, 'seed: !!set {a}', "10:7", "tag 'tag:yaml.org,2002:set' is not allowed here: plain data only; leave it out"),
    (10, 'seed: !!timestamp 2024-01-01', "10:7",
     "tag 'tag:yaml.org,2002:timestamp' is not allowed here: plain data only; leave it out"),
    (10, 'seed: !!omap [a: 1]', "10:7",
     "tag 'tag:yaml.org,2002:omap' is not allowed here: plain data only; leave it out"),
    (10, 'seed: !!null x', "10:7", "'x' is not null; leave the tag out"),
    (10, 'seed: !!bool yes', "10:7", "'yes' is not bool; leave the tag out"),
    (10, 'seed: !<tag:x> 3', "10:7", "tag 'tag:x' is not allowed here: plain data only; leave it out"),
    (10, '? {a: 1}\n: 2', "10:3", 'a key must be a word, not a list or mapping; quote it'),
    (10, '? - a\n: 2', "10:3", 'a key must be a word, not a list or mapping; quote it'),
    (10, 'null: 3', "10:1", 'a key must be a word, not null; quote it'),
    (10, 'true: 1', "10:1", 'a key must be a word, not true; quote it'),
    (10, '~: 1', "10:1", 'a key must be a word, not ~; quote it'),
    (10, '1.5: 1', "10:1", 'a key must be a word, not 1.5; quote it'),
    (10, '[a]: 1', "10:1", 'a key must be a word, not a list or mapping; quote it'),
    (10, '\'seed\': 1\n"seed": 2', "11:1", "duplicate key 'seed' (first at line 10, column 1); keep one"),
    (10, 'seed : 1\nseed: 2', "11:1", "duplicate key 'seed' (first at line 10, column 1); keep one"),
    (10, 'seed: 1 # fine\n...\nseed: 2', "12:1",
     "not YAML: expected '<document start>', but found '<block mapping start>'; a suite file holds"),
    (10, '--- \nseed: 3', "10:1", "a second document ('---'): a suite file holds one"),
    (10, "seed: 'x", "11:1",
     'not YAML: found unexpected end of stream (in the quotes that open at line 10, column 7); clo'),
    (10, 'seed: "x', "11:1",
     'not YAML: found unexpected end of stream (in the quotes that open at line 10, column 7); clo'),
    (10, 'seed: {a: 1', "11:1",
     "not YAML: expected ',' or '}', but got '<stream end>' (while parsing a flow mapping); close"),
    (10, 'seed: [1, 2', "11:1",
     "not YAML: expected ',' or ']', but got '<stream end>' (while parsing a flow sequence); close"),
    (10, 'seed: ]', "10:7",
     "not YAML: expected the node content, but found ']' (while parsing a block node); write the v"),
    (10, 'seed: @x', "10:7",
     "not YAML: found character '@' that cannot start any token (while scanning for the next token"),
    (10, 'seed: `x`', "10:7",
     "not YAML: found character '`' that cannot start any token (while scanning for the next token"),
    (10, 'seed: %x', "10:7",
     "not YAML: found character '%' that cannot start any token (while scanning for the next token"),
    (10, 'seed: a: b', "10:8",
     'not YAML: mapping values are not allowed here; quote a value that has a colon in it, and ind'),
    (10, 'seed: - 1', "10:7", 'not YAML: sequence entries are not allowed here; begin a list on a line of its own'),
    (10, 'seed:1', "11:1",
     "not YAML: could not find expected ':' (while scanning a simple key); write 'key: value', wit"),
    (10, 'seed: |\n  x', "10:7", "'seed' takes an integer, not 'x\\n' (a string)"),
    (10, 'seed: >\n\tx', "11:1", 'not YAML: a tab where YAML wants spaces; indent with spaces'),
    (10, 'seed:\t1\n\t- x', "10:6", 'not YAML: a tab where YAML wants spaces; indent with spaces'),
    (10, 'seed: "\\q"', "10:9",
     "not YAML: found unknown escape character 'q' (while scanning a double-quoted scalar); write"),
    (10, 'seed: "\\x1"', "10:10",
     'not YAML: expected escape sequence of 2 hexadecimal numbers, but found \'"\' (while scanning a'),
    (10, "seed: 'a\n---\n'", "11:1",
     'not YAML: found unexpected document separator (in the quotes that open at line 10, column 7)'),
    (10, '%YAML 2.0', "10:1",
     'not YAML: found incompatible YAML document (version 1.* is required); leave the directive out'),
    (10, '- seed', "10:1",
     "not YAML: expected <block end>, but found '-' (while parsing a block mapping); indent it as"),
    (10, 'seed', "11:1",
     "not YAML: could not find expected ':' (while scanning a simple key); write 'key: value', wit"),
    (10, 'seed: 1\n- x', "11:1",
     "not YAML: expected <block end>, but found '-' (while parsing a block mapping); indent it as"),
    (10, 'seed: 1\rseed: 2', "11:1", "duplicate key 'seed' (first at line 10, column 1); keep one"),
    (10, 'seed: 1\u2028seed: 2', "11:1", "duplicate key 'seed' (first at line 10, column 1); keep one"),
    (10, 'seed: \x07', "10:7", 'not YAML: character 0x07 is not allowed; take it out, and save the file as UTF-8'),
    (10, 'seed: \ufeff1', "10:7", "'seed' takes an integer, not '\\ufeff1' (a string)"),
    (10, 'seed: \u200b1', "10:7", "'seed' takes an integer, not '\\u200b1' (a string)"),
    (10, 'sеed: 1', "10:1", "unknown key 'sеed'; did you mean 'seed'?"),
    (2, 'model: {name: almanac, label: "a\\nb"}', "2:31",
     "'a\\nb' (a string) has the character U+000A in it; take it out"),
    (2, 'model: {name: almanac, label: "\\u202eb"}', "2:31",
     "'\\u202eb' (a string) has the character U+202E in it; take it out"),
    (2, 'model: {name: almanac, label: "\\ud800"}', "2:31", 'half of a surrogate pair; write the character itself'),
    (2, 'model: {pretrained: "a\\0b"}', "2:21", "'a\\x00b' (a string) has the character U+0000 in it; take it out"),
    (2, 'model: {pretrained: ' + "x" * 300 + '}', "2:21",
     'a path that cannot be followed: File name too long; give another'),
    (2, 'model: {name: almanac, label: "\\e[1m"}', "2:31",
     "'\\x1b[1m' (a string) has the character U+001B in it; take it out"),
    (10, 'calibration: {text: {dataset: ' + "x" * 300 + '}}', "10:31",
     'a path that cannot be followed: File name too long; give another'),
    (10, 'calibration: {text: {task: nope}}', "10:28", "unknown task 'nope'; did you mean 'nq_open'?"),
    (10, '%FOO', "11:1",
     "not YAML: expected '<document start>', but found '<stream end>'; a suite file holds one mapping"),
    (10, '&a', "11:1", "not YAML: could not find expected ':' (while scanning a simple key); write 'key: value', wit"),
]  # fmt: skip

LINES = "".join(f"- {line}\n" for line in range(60_000))

#: Whole files.
FILES = {
    "empty": (b"", "1:1", "the suite is empty"),
    "only-spaces": (b"   \n\n  ", "1:1", "the suite is empty"),
    "only-a-comment": (b"# a suite\n", "1:1", "the suite is empty"),
    "only-a-document-mark": (b"---\n", "1:1", "the suite is empty"),
    "null": (b"null\n", "1:1", "the suite is empty"),
    "byte-order-mark": (b"\xef\xbb\xbf", "1:1", "the suite is empty"),
    "a-list": (b"- name: demo\n- model: x\n", "1:1", "a suite is a mapping of keys (name, model, tasks, ...)"),
    "a-number": (b"3\n", "1:1", "a suite is a mapping of keys (name, model, tasks, ...), not 3"),
    "json-lines": (b'{"name": "a"}\n{"name": "b"}\n', "2:1", "a suite file holds one mapping"),
    "two-documents": (BASE.encode() + b"---\n" + BASE.encode(), "11:1", "a second document ('---')"),
    "utf-16": (BASE.encode("utf-16"), "1:1", "not UTF-8 (byte 0xff); save the file as UTF-8"),
    "utf-16-big-endian": (b"\xfe\xff" + BASE.encode("utf-16-be"), "1:1", "not UTF-8 (byte 0xfe)"),
    "utf-16-without-a-mark": (BASE.encode("utf-16-le"), "1:2", "character 0x00 is not allowed"),
    "utf-32": (BASE.encode("utf-32"), "1:1", "not UTF-8 (byte 0xff)"),
    "latin-1": (BASE.replace("demo", "d\xe9mo").encode("latin-1"), "1:8", "not UTF-8 (byte 0xe9)"),
    "cut-in-a-character": (BASE.encode() + "label: é".encode()[:-1], "11:8", "not UTF-8 (byte 0xc3)"),
    "a-coded-surrogate": (b"name: \xed\xa0\x80\n", "1:7", "not UTF-8 (byte 0xed)"),
    "overlong-nul": (b"name: \xc0\x80\n", "1:7", "not UTF-8 (byte 0xc0)"),
    "a-nul": (BASE.encode() + b"x: \0", "11:4", "character 0x00 is not allowed; take it out"),
    "an-escape-sequence": (BASE.encode() + b"x: \x1b[31m", "11:4", "character 0x1b is not allowed"),
    "a-delete": (BASE.encode() + b"x: \x7f", "11:4", "character 0x7f is not allowed"),
    "binary": (bytes(range(256)), "2:118", "not UTF-8 (byte 0x80)"),
    "a-gzip": (b"\x1f\x8b\x08\x00\x00\x00\x00\x00", "1:2", "not UTF-8 (byte 0x8b)"),
    "a-zip": (b"PK\x03\x04\x14\x00", "1:3", "character 0x03 is not allowed"),
    "toml": (b'[suite]\nname = "demo"\n', "2:1", "a suite file holds one mapping"),
    "python": (b"import lrbench\n", "1:1", "a suite is a mapping of keys"),
    "html": (b"<!doctype html>\n<html>", "1:1", "a suite is a mapping of keys"),
    "megabytes-of-values": (b"[" + b"1," * 2_000_000 + b"]", "1:1", "more than 200,000 bytes; is it another file?"),
    "megabytes-of-text": (b"name: " + b"x" * 5_000_000, "1:1", "more than 200,000 bytes"),
    "megabytes-of-comment": (b"#" * 5_000_000, "1:1", "more than 200,000 bytes"),
    "megabytes-of-lines": (LINES.encode(), "1:1", "more than 200,000 bytes"),
    "many-values": (b"x: [" + b"1," * 20_000 + b"]", "1:19999", "more than 10,000 values, aliases counted; split it"),
    "nested-lists": (b"[" * 10_000, "1:65", "nested more than 64 levels deep"),
    "nested-closed-lists": (b"x: " + b"[" * 10_000 + b"]" * 10_000, "1:67", "nested more than 64 levels deep"),
    "nested-mappings": (b"{a: " * 10_000, "1:254", "nested more than 64 levels deep"),
    "nested-blocks": (b"".join(b" " * depth + b"a:\n" for depth in range(600)), "64:64", "nested more than 64 levels"),
    "nested-items": (b"- " * 10_000, "1:129", "nested more than 64 levels deep"),
    "nested-keys": (b"? " * 10_000, "1:129", "nested more than 64 levels deep"),
    "laughs": (
        ("a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n"
         + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 30))).encode(),
        "1:37", "more than 10,000 values, aliases counted"),
    "merged-laughs": (
        ("m0: &m0 {k: 1}\n"
         + "".join(f"m{i}: &m{i} {{<<: [*m{i - 1}, *m{i - 1}]}}\n" for i in range(1, 40))).encode(),
        "1:5", "more than 10,000 values, aliases counted"),
    "a-chain-of-aliases": (
        ("a0: &a0 [x]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}]\n" for i in range(1, 200))).encode(),
        "1:10", "nested more than 64 levels deep"),
    "a-cycle": (b"&a [*a]\n", "1:1", "an anchor that contains itself; write out what it stands for"),
    "a-cycle-of-mappings": (b"&a\nname: demo\nmodel: *a\n", "1:1", "an anchor that contains itself"),
    "a-cycle-of-merges": (b"&a\nname: demo\n<<: *a\n", "1:1", "an anchor that contains itself"),
    "a-long-number": (b"seed: " + b"9" * 100_000, "1:7", "a number of more than 1000 digits; quote it if it is none"),
    "a-long-key": (b"k" * 100_000 + b": 1", "1:100001", "mapping values are not allowed here; quote a value"),
    "a-long-quoted-key": (b"? '" + b"k" * 100_000 + b"'\n: 1\n", "1:3", "unknown key 'kkkkk"),
    "a-long-tag": (b"seed: !!" + b"a" * 100_000 + b" 1", "1:7", "is not allowed here: plain data only; leave it out"),
    "python-in-yaml": (b"!!python/object/apply:os.system ['touch owned']\n", "1:1", "is not allowed here: plain data"),
    "python-in-a-key": (b"!!python/name:os.system : 1\n", "1:1", "is not allowed here: plain data only"),
    "another-handle": (b"%TAG ! tag:yaml.org,2002:python/\n---\nseed: !name:os.system x\n", "3:7", "not allowed here"),
    "tabs": (BASE.replace("  ", "\t").encode(), "6:1", "a tab where YAML wants spaces; indent with spaces"),
}  # fmt: skip


def identifier(case):
    line, text = case[:2]
    return f"{line}-{re.sub('[^a-zA-Z0-9]+', '-', text)[:40]}"


def refused(path, capsys):
    """What the command line says of a suite, in one line and with exit code 2, not after minutes (YAML's aliases and
    nesting can ask for exponential work)."""
    began = time.process_time()
    code = main(["check", str(path)])
    seconds = time.process_time() - began
    shown = capsys.readouterr()
    assert code == 2
    assert shown.out == ""
    assert shown.err.count("\n") == 1
    assert shown.err.endswith("\n")
    assert len(shown.err) < 2200
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]|Traceback|bug in lrbench", shown.err)
    assert seconds < 60
    return shown.err.removeprefix("lrbench: ").removesuffix("\n")


@pytest.mark.parametrize("case", MALFORMED, ids=identifier)
def test_a_malformed_suite_is_one_line_at_its_place(case, tmp_path, monkeypatch, capsys):
    number, text, place, said = case
    lines = BASE.splitlines()
    lines[4:9] = [text] if number == 5 else lines[4:9]
    if number != 5:
        lines[number - 1] = text
    folder = tmp_path / "suites"
    folder.mkdir()
    (folder / "suite.yaml").write_text("\n".join(lines) + "\n", encoding="utf-8")
    monkeypatch.chdir(folder)
    message = refused("suite.yaml", capsys)
    assert message.startswith(f"suite.yaml:{place}: ")
    assert said.replace("{folder}", str(folder)).replace("{above}", str(tmp_path)) in message


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_is_no_suite_is_one_line_at_its_place(name, tmp_path, monkeypatch, capsys):
    content, place, said = FILES[name]
    (tmp_path / "suite.yaml").write_bytes(content)
    monkeypatch.chdir(tmp_path)
    message = refused("suite.yaml", capsys)
    assert message.startswith(f"suite.yaml:{place}: ")
    assert said in message
    assert not (tmp_path / "owned").exists()


def test_there_are_many_of_them():
    assert len(MALFORMED) + len(FILES) >= 300
    assert len({case[:2] for case in MALFORMED}) == len(MALFORMED)


@pytest.mark.parametrize("path", ["/dev/zero", "/proc/self/mem"])
def test_what_has_no_end_is_not_read_to_its_end(path, capsys):
    if not os.path.exists(path):
        pytest.skip("not on this system")
    refused(path, capsys)


@pytest.mark.parametrize("text", ["seed: 1e3", "sede: 1", "seed: [", "model: {nam: x}"])
def test_a_suite_that_is_wrong_in_itself_is_refused_before_torch_is_imported(tmp_path, text):
    path = tmp_path / "suite.yaml"
    path.write_text(BASE.replace("seed: 0", text) if "model" not in text else text)
    for verb in ("check", "run"):
        code = (
            f"import sys; from lrbench.cli import main; code = main([{verb!r}, {str(path)!r}]); "
            "assert code == 2, code; assert 'torch' not in sys.modules"
        )
        subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


@pytest.mark.parametrize(
    "override", ["seed=\x1b[31m", "name=\u202ex", "model.label=\tx", "x\ny=1", "seed=[" * 999, "=", "a.b.c"]
)
def test_an_override_is_shown_without_what_a_terminal_would_act_on(tmp_path, override, capsys):
    path = tmp_path / "suite.yaml"
    path.write_text(BASE)
    assert main(["check", str(path), "--set", override]) == 2
    shown = capsys.readouterr().err
    assert shown.startswith("lrbench: --set ")
    assert shown.count("\n") == 1
    assert shown[:-1].isprintable()


def test_the_suite_that_all_are_made_of_is_in_order(tmp_path, capsys):
    path = tmp_path / "suite.yaml"
    path.write_text(BASE)
    assert yaml.safe_load(BASE)["name"] == "demo"
    assert main(["check", str(path)]) == 0
    assert capsys.readouterr().err == ""
