"""What every notebook has to be like, so that it reads, runs in a batch and diffs well; and that the lists know it."""

import ast
import json
import re
import statistics
from pathlib import Path

import papermill
import pytest

from cassl_lib import paper
from cassl_lib.tables.definitions import ROWS

REPOSITORY = Path(__file__).resolve().parents[2]
NOTEBOOKS = sorted((REPOSITORY / "notebooks").glob("*.ipynb"))
CHECKED = {"nbval-check-output", "keep_output"}
# What every notebook takes.
COMMON = ("profile", "split", "seed", "labeled", "unlabeled", "val", "size", "masks", "pretrained", "annotation")
FORBIDDEN = ("!pip", "%pip", "%load_ext", "sys.path", "urlretrieve", "requests.", "urlopen", "hub.load", "except:")


@pytest.fixture(params=NOTEBOOKS, ids=lambda path: path.stem)
def notebook(request):
    return request.param


def cells_of(path, kind="code"):
    return [cell for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == kind]


def source(cell):
    return "".join(cell["source"])


def tags(cell):
    return set(cell["metadata"].get("tags", ()))


def parameters_of(path):
    """Name -> value of the parameters cell, which must be nothing but annotated literals."""
    (cell,) = [cell for cell in cells_of(path) if "parameters" in tags(cell)]
    found = {}
    for statement in ast.parse(source(cell)).body:
        assert isinstance(statement, ast.AnnAssign), f"{ast.unparse(statement)} is no annotated assignment"
        found[statement.target.id] = ast.literal_eval(statement.value)
    return found


def test_there_are_notebooks():
    assert [path.name[:2] for path in NOTEBOOKS][:6] == ["01", "02", "03", "04", "05", "06"]


def test_one_cell_of_literal_parameters(notebook):
    found = parameters_of(notebook)
    assert tuple(found)[: len(COMMON)] == COMMON
    chosen = {
        "profile": "auto",
        "split": "tiny",
        "seed": 0,
        "annotation": "entities" if re.match(r"1[3-79]_table", notebook.name) else "objects",
        "target": "instances",
        "devices": 1,
        "class_specific": False,
        "jobs": 1,
    }
    assert all(value == chosen.get(name) for name, value in found.items())


def test_papermill_can_explain_every_parameter(notebook):
    explained = papermill.inspect_notebook(str(notebook))
    assert list(explained) == list(parameters_of(notebook))
    for name, facts in explained.items():
        assert facts["inferred_type_name"] in ("str", "int", "float", "bool"), name
        assert len(facts["help"]) > 10, f"{name} has no comment"


def test_every_parameter_reaches_the_settings(notebook):
    """A parameter that nobody reads would be accepted and ignored."""
    (place,) = [n for n, cell in enumerate(cells_of(notebook)) if "notebook.configure(" in source(cell)]
    tree = ast.parse(source(cells_of(notebook)[place]))
    read = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)}
    assert set(parameters_of(notebook)) <= read
    assert "parameters" in tags(cells_of(notebook)[place - 1])  # papermill puts its values between the two


def test_the_title_asks_a_question_and_names_the_paper(notebook):
    first = json.loads(notebook.read_text())["cells"][0]
    lines = source(first).splitlines()
    assert first["cell_type"] == "markdown" and re.match(rf"# {notebook.name[:2]} .+\?$", lines[0])
    assert "Sec. " in source(first) and "minute" in source(first)
    last = json.loads(notebook.read_text())["cells"][-1]
    assert "## What to read next" in source(last)


def test_it_is_short(notebook):
    lengths = [len([line for line in source(cell).splitlines() if line.strip()]) for cell in cells_of(notebook)]
    assert len(json.loads(notebook.read_text())["cells"]) <= 30
    assert sum(lengths) <= 120 and max(lengths) <= 15 and statistics.median(lengths) <= 5


def test_it_holds_no_library_code(notebook):
    for n, cell in enumerate(cells_of(notebook)):
        tree = ast.parse(source(cell))  # also: no magics and no shell
        kinds = {type(node) for node in ast.walk(tree)}
        assert not kinds & {ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef}, source(cell)
        assert n == 0 or not kinds & {ast.Import, ast.ImportFrom}, "imports belong into the first code cell"
        assert not [word for word in FORBIDDEN if word in source(cell)]


def test_counts_are_those_of_one_run_from_top_to_bottom(notebook):
    counts = [cell["execution_count"] for cell in cells_of(notebook)]
    assert counts == list(range(1, len(counts) + 1)), "run `make notebooks`"


def test_checked_cells_have_stored_text_and_no_other_has_any(notebook):
    checked = [cell for cell in cells_of(notebook) if tags(cell) & CHECKED]
    assert 1 <= len(checked) <= 4
    for cell in cells_of(notebook):
        if cell not in checked:
            assert cell["outputs"] == [], f"not stripped: {source(cell)}"
            continue
        assert tags(cell) >= CHECKED
        assert [(output["output_type"], output.get("name")) for output in cell["outputs"]] == [("stream", "stdout")]
        text = source({"source": cell["outputs"][0]["text"]})
        assert text.strip() and len(text.splitlines()) <= 10
        assert not re.search(r"\d\.\d{4}|/|0x|-[0-9a-f]{12}", text), "too many digits, a path, an address or a run"


def test_nothing_of_a_machine_is_in_it(notebook):
    text = notebook.read_text()
    assert "image/png" not in text and '"error"' not in text
    assert not re.search(r"/(home|root|Users|tmp|mnt|work)\b", text) and str(Path.home()) not in text
    data = json.loads(text)
    assert set(data["metadata"]) == {"kernelspec"} and data["metadata"]["kernelspec"]["name"] == "python3"
    assert all(set(cell["metadata"]) <= {"tags"} for cell in data["cells"])
    assert notebook.stat().st_size < 60_000


def numbers_in(table):
    if isinstance(table, dict):
        return {number for value in table.values() for number in numbers_in(value)}
    if isinstance(table, (list, tuple)):
        return {number for value in table for number in numbers_in(value)}
    return {table} if isinstance(table, float) else set()


def test_numbers_quoted_in_prose_are_the_papers(notebook):
    printed = numbers_in([value for name, value in vars(paper).items() if name.startswith("TABLE")])
    assert {48.1, 46.8} < printed
    prose = " ".join(source(cell) for cell in cells_of(notebook, "markdown"))
    assert {float(number) for number in re.findall(r"(?<![\d.])\d\d\.\d\b", prose)} <= printed
    code = " ".join(source(cell) for cell in cells_of(notebook))
    assert not re.findall(r"(?<![\d.])\d\d\.\d\b", code), "a number of the paper belongs into cassl_lib/paper.py"


def test_the_list_of_notebooks_knows_it(notebook):
    rows = [
        line for line in (REPOSITORY / "notebooks" / "README.md").read_text().splitlines() if line.startswith("| [")
    ]
    (row,) = [row for row in rows if f"]({notebook.name})" in row]
    _, _, question, own, minutes, results, _ = (part.strip() for part in row.split("|"))
    title = source(cells_of(notebook, "markdown")[0])
    assert question.lower() in title.lower()
    named = re.findall(r"`(\w+)`", own)
    assert sorted(named) == sorted(set(parameters_of(notebook)) - set(COMMON))
    assert int(minutes) > 0 and results


def test_the_list_of_notebooks_has_no_others():
    text = (REPOSITORY / "notebooks" / "README.md").read_text()
    assert {name for name in re.findall(r"\]\((\w+\.ipynb)\)", text)} == {path.name for path in NOTEBOOKS}


def test_the_demo_runs_the_stages_in_order():
    makefile = (REPOSITORY / "Makefile").read_text()
    stages = re.search(r"^STAGES := (.*)$", makefile, re.M)[1].split()
    assert stages == [path.stem for path in NOTEBOOKS if path.name < "06"]


def test_the_makefile_runs_every_table_in_order():
    makefile = (REPOSITORY / "Makefile").read_text().replace("\\\n", " ")
    tables = re.search(r"^TABLES := (.*)$", makefile, re.M)[1].split()
    assert tables == [path.stem for path in NOTEBOOKS if "_table" in path.name]
    assert sorted(int(re.search(r"_table(\d+)_", name)[1]) for name in tables) == [
        row for row in ROWS if row != "threshold"
    ]


def test_links_lead_somewhere(notebook):
    text = " ".join(source(cell) for cell in cells_of(notebook, "markdown"))
    for link in re.findall(r"\]\(([^)]+)\)", text):
        assert (notebook.parent / link).exists(), link
    for file in re.findall(r"`(cassl_lib/[\w/.]+)`", text):
        assert (REPOSITORY / file).exists(), file
