"""LaTeX that compiles and HTML that stands alone, whatever models, tasks and methods are called."""

from __future__ import annotations

import html.parser
import re
import shutil
import subprocess

import pytest

from lrbench.analysis.leaderboard import build
from lrbench.reports.render import FORMATS, renderer
from lrbench.reports.render.templating import html as html_environment
from lrbench.reports.render.templating import latex as latex_environment
from lrbench.reports.render.templating import tex
from tests.support.synthetic_run import demo_run, edit, row, simple_run

HOSTILE = (
    r"\input{/etc/passwd}",
    r"\write18{id} % & # _ ~ ^ { } $ \\",
    "[3pt] * -- '' ,, `` !` ?` << >>",
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "'); alert(1); ('",
    "</td></table><iframe src='http://evil'>",
    "{{ 7 * 7 }} {% raw %} <% for %> << x >> <# y #>",
    "ünïcode ß ŵ Ŵ 模型 \u202eright-to-left",
    "a|b `c` *d* [e](javascript:f)\nnew | line",
    "\x1b[2J\x1b]0;title\x07\x9b31m\x00\x08",
)


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    return build([demo_run(tmp_path_factory.mktemp("demo"))])


@pytest.fixture(scope="module", params=HOSTILE)
def hostile(request, tmp_path_factory):
    name = request.param
    cells = [(row("base", model=name), {name: [1, 0] * 20, "t": [1] * 40})]
    cells += [
        (row(f"c{i}", model=name, reducer="x", label=f"{name}{i}", edits=[edit()]), {name: [0, i] * 20, "t": [i] * 40})
        for i in (0, 1)
    ]
    run = simple_run(tmp_path_factory.mktemp("hostile"), cells)
    run.append(row("failed", model=name, status="failed", reason=name, reducer="y", label=name))
    return build([run])


# --- LaTeX


def commands(text):
    """The control words of a document."""
    return set(re.findall(r"\\([A-Za-z]+)", text))


def check_latex(text):
    """What a compiler would trip over; comments are the template's own."""
    body = re.sub(r"(?m)^%.*\n", "", text)
    assert body.isprintable() or set(filter(lambda c: not c.isprintable(), body)) == {"\n"}
    plain = re.sub(r"\\[\\{}$&#%_]", "", body)
    assert "%" not in plain
    assert "#" not in plain
    assert "~" not in plain
    assert plain.count("$") % 2 == 0
    outside = re.sub(r"\$[^$]*\$", "", plain)
    assert "_" not in outside
    assert "^" not in outside
    depth = 0
    for char in plain:
        depth += (char == "{") - (char == "}")
        assert depth >= 0
    assert depth == 0
    open_ones = []
    for verb, name in re.findall(r"\\(begin|end)\{(\w+)\}", body):
        if verb == "begin":
            open_ones.append(name)
        else:
            assert open_ones.pop() == name
    assert not open_ones
    for table in re.findall(r"\\begin\{tabular\}\{(.*?)\}\n(.*?)\\end\{tabular\}", body, re.S):
        columns = len(re.sub(r"p\{.*", "p", table[0]))
        for line in table[1].splitlines():
            if line.rstrip().endswith(r"\\"):
                assert len(re.findall(r"(?<!\\)&", line)) == columns - 1, line
    assert not re.search(r"(\\\\|rule)\s*[\[*]", plain)


KNOWN = {
    *("begin", "end", "centering", "small", "setlength", "tabcolsep", "toprule", "midrule", "bottomrule", "caption"),
    *("linewidth", "bfseries", "boldmath", "scriptsize", "textsuperscript", "pm", "times", "sigma", "Delta", "Vert"),
    *("infty", "downarrow", "uparrow", "blacklozenge", "hat", "cdot", "textbackslash", "textasciitilde"),
    *("textasciicircum", "textless", "textgreater", "textbar", "textquotedbl", "textasciigrave"),
}


def test_latex_of_any_names_has_only_the_commands_of_the_template(hostile, demo):
    for board in (hostile, demo):
        text = renderer("latex")(board)
        check_latex(text)
        assert commands(re.sub(r"(?m)^%.*\n", "", text)) <= KNOWN


@pytest.mark.latex
@pytest.mark.skipif(
    not shutil.which("pdflatex"), reason="no pdflatex here (make latex); the structure is checked without"
)
def test_latex_of_any_names_compiles(hostile, demo, tmp_path):
    for place, board in enumerate((hostile, demo)):
        head = r"\documentclass{article}\usepackage[T1]{fontenc}\usepackage{booktabs,amssymb,textcomp}\begin{document}"
        (tmp_path / f"{place}.tex").write_text(f"{head}\n{renderer('latex')(board)}\n\\end{{document}}\n")
        command = ["pdflatex", "-halt-on-error", "-interaction=nonstopmode", "-no-shell-escape", f"{place}.tex"]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout[-2000:]


def test_latex_has_the_best_in_bold_ties_errors_and_a_caption_that_says_what_they_are(demo):
    text = renderer("latex")(demo)
    assert r"{\bfseries\boldmath 81.8} {\scriptsize $\pm$" in text
    assert r"\textsuperscript{$=$}" in text
    assert r"\begin{tabular}{cll" in text
    caption = text[text.index(r"\caption") :]
    assert "exact sign-flip test" in caption
    assert "over the 18 comparisons" in caption
    assert "one standard error" in caption
    assert "edited: all mlp (24)" in caption


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("a_b & c%", r"a\_b \& c\%"),
        (r"\input{x}", r"\textbackslash{}input\{x\}"),
        ("--", "-{}-"),
        ("[x]", "{[}x{]}"),
        ("~^", r"\textasciitilde{}\textasciicircum{}"),
        ("模", "?"),
        ("−1.2", "$-$1.2"),
    ],
)
def test_text_is_what_tex_sets(text, found):
    assert tex(text) == found
    assert tex(tex(text)) == found


def test_a_template_cannot_print_what_is_not_escaped():
    template = "<< name >>|<% set x = name %><< x ~ name >>|<< [name]|join >>|<< missing|default(name) >>"
    text = latex_environment().from_string(template).render(name="a_b")
    assert text.split("|")[0] == r"a\_b"
    assert "a_b" not in text.replace(r"a\_b", "")
    page = html_environment().from_string("{{ name }}{{ name|upper }}<i title='{{ name }}'>").render(name="<b>'\x1b[1m")
    assert "<b>" not in page.lower()
    assert "\x1b" not in page


# --- HTML


class Page(html.parser.HTMLParser):
    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.tags, self.attributes, self.words, self.stack = [], [], [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, name, value) for name, value in attrs]
        if tag not in ("meta", "link"):
            self.stack.append(tag)

    def handle_endtag(self, tag):
        assert self.stack.pop() == tag

    def handle_data(self, data):
        if self.stack and self.stack[-1] not in ("script", "style"):
            self.words.append(data)


TAGS = {
    *(
        "html",
        "head",
        "meta",
        "link",
        "title",
        "style",
        "body",
        "h1",
        "h2",
        "div",
        "table",
        "thead",
        "tbody",
        "tr",
        "th",
    ),
    *("td", "span", "small", "button", "p", "script"),
}


def test_html_of_any_names_has_only_the_tags_of_the_template(hostile, demo):
    for board in (hostile, demo):
        text = renderer("html")(board)
        page = Page(text)
        assert not page.stack
        assert set(page.tags) <= TAGS
        assert page.tags.count("script") == 1
        assert not [
            name for _, name, _ in page.attributes if name.startswith("on") or name in ("src", "srcset", "action")
        ]
        assert [value for _, name, value in page.attributes if name == "href"] == ["data:,"]
        assert not re.search(r"@import|url\(", text)


def test_html_shows_names_as_they_are(tmp_path):
    name = "<script>alert('x')</script> & \"more\""
    board = build([simple_run(tmp_path, [(row("base", model=name), {"t": [1, 0]})])])
    assert name in "".join(Page(renderer("html")(board)).words)


def test_html_has_every_line_sortable_numbers_and_intervals(demo):
    text = renderer("html")(demo)
    page = Page(text)
    assert page.tags.count("tr") == 1 + len(demo.entries) + 1 + len(demo.failures)
    hints = [value for _, name, value in page.attributes if name == "title"]
    assert any(
        re.fullmatch(r"Δ −[\d.]+, 95 % interval −[\d.]+ to [−+]?[\d.]+; p = \S+ \(Holm\)", hint) for hint in hints
    )
    values = [value for tag, name, value in page.attributes if (tag, name) == ("td", "data-value")]
    assert {"baseline", ""} <= set(values)
    assert {repr(entry.values["score"].value) for entry in demo.entries} <= set(values)
    assert "prefers-color-scheme: dark" in text
    assert "@media print" in text
    assert 'name="viewport"' in text


# --- every format


@pytest.mark.parametrize("name", FORMATS)
def test_no_format_lets_hostile_names_act(hostile, name):
    text = renderer(name)(hostile)
    assert not re.search(r"[\x00-\x09\x0b\x0c\x0e-\x1f\x7f-\x9f\u202e]", text)
    if name == "markdown":
        body = re.sub(r"\\.", "", text)
        assert not re.search(r"<(?!br>)|`|\]\(", body)
        tables = [re.sub(r"\\\|", "", line) for line in text.splitlines() if line.startswith("|")]
        assert len({line.count("|") for line in tables[: 2 + len(hostile.entries)]}) == 1
    if name == "csv":
        assert not re.search(r'(?m)(^|,)"?[=+@\t]', text)
