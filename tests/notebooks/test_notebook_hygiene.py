"""What every notebook must be like to read well, run in a batch and diff well; and that the lists know it."""

import ast
import json
import re
import statistics
from pathlib import Path

import papermill
import pytest
from clean_notebooks import clean

from cassl_lib import notebook as bridge
from cassl_lib import paper, paths
from cassl_lib.report.readme import QUESTIONS
from cassl_lib.tables.definitions import ROWS

REPOSITORY = Path(__file__).resolve().parents[2]
NOTEBOOKS = sorted((REPOSITORY / "notebooks").glob("*.ipynb"))
CHECKED = {"nbval-check-output", "keep_output"}
# Parameters of every notebook but the quickstart, which has the first of them only
COMMON = ("profile", "split", "seed", "labeled", "labeled_images", "unlabeled", "val", "size", "masks", "pretrained")
COMMON += ("annotation",)
FORBIDDEN = ("!pip", "%pip", "%load_ext", "sys.path", "urlretrieve", "requests.get", "urlopen", "hub.load", "except:")
FORBIDDEN += ("os.environ",)


@pytest.fixture(params=NOTEBOOKS, ids=lambda path: path.stem)
def notebook(request):
    return request.param


def cells_of(path, kind="code"):
    return [cell for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == kind]


def source(cell):
    return "".join(cell["source"])


def tags(cell):
    return set(cell["metadata"].get("tags", ()))


def common_of(path):
    return COMMON[:1] if path.name.startswith("00") else COMMON


def parameters_of(path):
    """Name -> value of the parameters cell, which must consist of annotated literals."""
    (cell,) = [cell for cell in cells_of(path) if "parameters" in tags(cell)]
    values = {}
    for statement in ast.parse(source(cell)).body:
        assert isinstance(statement, ast.AnnAssign), f"{ast.unparse(statement)} is not an annotated assignment"
        values[statement.target.id] = ast.literal_eval(statement.value)
    return values


def test_there_are_notebooks():
    assert [path.name[:2] for path in NOTEBOOKS][:7] == ["00", "01", "02", "03", "04", "05", "06"]


def annotation_of(number):
    """Tables 1 and 2 choose their own, the stages use the profile's."""
    return "entities" if number >= "13" else "objects" if number >= "11" else None


def test_one_cell_of_literal_parameters(notebook):
    values, common = parameters_of(notebook), common_of(notebook)
    assert tuple(values)[: len(common)] == common
    chosen = {
        "profile": "auto",
        "seed": 0,
        "annotation": annotation_of(notebook.name[:2]),
        "target": "instances",
        "devices": 1,
        "class_specific": False,
        "jobs": 1,
        "recorded": False,
    }
    assert all(value == chosen.get(name) for name, value in values.items())


def test_papermill_can_explain_every_parameter(notebook):
    explained = papermill.inspect_notebook(str(notebook))
    assert list(explained) == list(parameters_of(notebook))
    for name, facts in explained.items():
        assert facts["inferred_type_name"] in ("str", "int", "float", "bool"), name
        assert len(facts["help"]) > 10, f"{name} has no comment"


def test_every_parameter_is_used(notebook):
    """A parameter that nobody reads would be accepted and ignored."""
    cells = cells_of(notebook)
    (place,) = [n for n, cell in enumerate(cells) if "notebook.configure(" in source(cell)]
    assert re.fullmatch(r"config = notebook\.configure\(globals\(\)(, stage=\"\w+\")?\)\nconfig", source(cells[place]))
    assert "parameters" in tags(cells[place - 1])  # papermill puts its values between the two
    names = set(parameters_of(notebook))
    assert names <= {*bridge.SETTINGS, *bridge.FLAGS, *bridge.COUNTS, *bridge.NAMES}  # these are what `configure` reads
    trees = [ast.walk(ast.parse(source(cell))) for cell in cells[place + 1 :]]
    read = {node.id for tree in trees for node in tree if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)}
    assert names - {*bridge.SETTINGS} <= read


def test_epochs_are_those_of_the_notebooks_stage(notebook):
    configured = next(source(cell) for cell in cells_of(notebook) if "notebook.configure(" in source(cell))
    assert ("stage=" in configured) == ("epochs" in parameters_of(notebook))
    if "stage=" in configured:
        assert f'stage="{notebook.stem[3:]}"' in configured


def test_the_title_asks_a_question_and_names_the_paper(notebook):
    first = json.loads(notebook.read_text())["cells"][0]
    lines = source(first).splitlines()
    assert first["cell_type"] == "markdown" and re.match(rf"# {notebook.name[:2]} .+\?$", lines[0])
    if "_table" in notebook.name:
        number = int(notebook.name[:2]) - 10
        assert lines[0].lower() == f"# {notebook.name[:2]} table {number}: {QUESTIONS[number]}".lower()
    elif notebook.name >= "18":
        assert lines[0].lower() == f"# {notebook.name[:2]} shift: {QUESTIONS['shift']}".lower()
    assert "Sec. " in source(first) and "minute" in source(first)
    last = json.loads(notebook.read_text())["cells"][-1]
    assert "## What to read next" in source(last)


def test_it_is_short(notebook):
    lengths = [len([line for line in source(cell).splitlines() if line.strip()]) for cell in cells_of(notebook)]
    assert len(json.loads(notebook.read_text())["cells"]) <= 30
    assert sum(lengths) <= 120 and max(lengths) <= 16 and statistics.median(lengths) <= 5


def test_it_holds_no_library_code(notebook):
    for n, cell in enumerate(cells_of(notebook)):
        tree = ast.parse(source(cell))  # also: no magics and no shell
        kinds = {type(node) for node in ast.walk(tree)}
        assert not kinds & {ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef}, source(cell)
        assert n == 0 or not kinds & {ast.Import, ast.ImportFrom}, "imports belong in the first code cell"
        assert not [word for word in FORBIDDEN if word in source(cell)]
        modules = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
        assert not modules & {"requests", "urllib", "urllib.request"}


def test_counts_are_those_of_one_run_from_top_to_bottom(notebook):
    counts = [cell["execution_count"] for cell in cells_of(notebook)]
    assert counts == list(range(1, len(counts) + 1)), "run `make notebooks`"


def test_checked_cells_have_short_stored_text(notebook):
    checked = [cell for cell in cells_of(notebook) if tags(cell) & CHECKED]
    assert 1 <= len(checked) <= 4
    for cell in checked:
        assert tags(cell) >= CHECKED
        assert [(output["output_type"], output.get("name")) for output in cell["outputs"]] == [("stream", "stdout")]
        text = source({"source": cell["outputs"][0]["text"]})
        assert text.strip() and len(text.splitlines()) <= 10
        assert not re.search(r"\d\.\d{4}|/|0x|-[0-9a-f]{12}", text), "too many digits, a path, an address or a run"


def outputs_of(path):
    return [output for cell in cells_of(path) for output in cell["outputs"]]


def test_outputs_are_stored_without_errors_and_messages(notebook):
    kinds = {(output["output_type"], output.get("name")) for output in outputs_of(notebook)}
    assert kinds <= {("stream", "stdout"), ("display_data", None), ("execute_result", None)}, "run `make notebooks`"
    # every cell that ends with a value shows it
    for cell in cells_of(notebook):
        last = ast.parse(source(cell)).body[-1]
        if isinstance(last, ast.Expr) and isinstance(last.value, (ast.Name, ast.Attribute)):
            assert [each for each in cell["outputs"] if each["output_type"] == "execute_result"], source(cell)


def test_stored_source_code_is_the_librarys(notebook):
    for output in outputs_of(notebook):
        shown = "".join(output.get("data", {}).get("text/markdown", ""))
        if shown:
            file, code = re.search(r"`([\w/.]+)`\n\n```python\n(.*)\n```", shown, re.S).groups()
            stored, library = map(unindented, (code, (REPOSITORY / file).read_text()))
            assert stored in library, f"{file} has changed, run `make notebooks`"


def unindented(text):
    return "\n".join(line.strip() for line in text.splitlines())


def test_figures_are_stored_as_small_png(notebook):
    data = [output["data"] for output in outputs_of(notebook) if "data" in output]
    kinds = {kind for each in data for kind in each}
    assert kinds <= {"text/plain", "text/html", "text/markdown", "image/png"}
    assert any("image/png" in each for each in data)
    assert not any(isinstance(each.get("image/png"), list) for each in data)


def test_stored_tables_show_the_recorded_numbers():
    for path in (path for path in NOTEBOOKS if path.name > "1"):
        assert "The recorded numbers are shown; no run is made." in path.read_text(), path


def texts(value):
    """Every text in JSON data but images, whose base64 may contain anything."""
    if isinstance(value, dict):
        return [text for key, each in value.items() if not key.startswith("image/") for text in texts(each)]
    if isinstance(value, list):
        return [text for each in value for text in texts(each)]
    return [value] if isinstance(value, str) else []


def test_nothing_of_a_machine_is_in_it(notebook):
    data = json.loads(notebook.read_text())
    text = "\n".join(texts(data))
    assert not re.search(r"/(home|root|Users|tmp|mnt|work)\b", text) and str(Path.home()) not in text
    assert not any(str(folder) in text for folder in (REPOSITORY, paths.runs(), paths.datasets()))
    assert set(data["metadata"]) == {"kernelspec"} and data["metadata"]["kernelspec"]["name"] == "python3"
    assert all(set(cell["metadata"]) <= {"tags"} for cell in data["cells"])


def test_a_cleaned_notebook_is_stored_as_it_is(notebook):
    data = json.loads(notebook.read_text())
    assert clean(json.loads(notebook.read_text())) == data


def test_it_is_small(notebook):
    assert notebook.stat().st_size < 400_000


def test_all_are_small_together():
    assert sum(path.stat().st_size for path in NOTEBOOKS) < 4_000_000


def test_cleaning_removes_messages_metadata_and_machine_paths(monkeypatch):
    monkeypatch.setenv("CASSL_RUNS", "/store/of/runs")
    bar = {"output_type": "stream", "name": "stderr", "text": ["10%"]}
    printed = [{"output_type": "stream", "name": "stdout", "text": text} for text in (["a\n", "b"], ["c\n"])]
    result = {"output_type": "execute_result"}
    data = {"text/html": ["<b>/store/of/runs/a</b>"], "image/png": "/store/of/runs"}
    cell = {
        "cell_type": "code",
        "id": "a1b2",
        "metadata": {"tags": ["keep_output"], "execution": {"iopub.status.busy": "now"}},
        "outputs": [printed[0], bar, printed[1], result | {"data": data}],
    }
    metadata = {"kernelspec": {"name": "python3"}, "language_info": {"version": "3.11"}}
    cleaned = clean({"cells": [{"cell_type": "markdown", "id": "x", "metadata": {}}, cell], "metadata": metadata})
    assert cleaned["metadata"] == {"kernelspec": {"name": "python3"}}
    text, output = cleaned["cells"][1]["outputs"]
    assert text["text"] == ["a\n", "bc\n"]
    assert output == result | {"data": {"text/html": ["<b>runs/a</b>"], "image/png": "/store/of/runs"}}
    assert cleaned["cells"][1]["metadata"] == {"tags": ["keep_output"]}
    assert [each["id"] for each in cleaned["cells"]] == ["0", "1"]


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
    assert not re.findall(r"(?<![\d.])\d\d\.\d\b", code), "a number of the paper belongs in cassl_lib/paper.py"


def test_the_list_of_notebooks_knows_it(notebook):
    rows = [
        line for line in (REPOSITORY / "notebooks" / "README.md").read_text().splitlines() if line.startswith("| [")
    ]
    (row,) = [row for row in rows if f"]({notebook.name})" in row]
    _, _, question, own, minutes, results, _ = (part.strip() for part in row.split("|"))
    title = source(cells_of(notebook, "markdown")[0])
    assert question.lower() in title.lower()
    named = re.findall(r"`(\w+)`", own)
    assert sorted(named) == sorted(set(parameters_of(notebook)) - set(common_of(notebook)))
    assert int(minutes) > 0 and results


def test_the_list_of_notebooks_has_no_others():
    text = (REPOSITORY / "notebooks" / "README.md").read_text()
    assert {name for name in re.findall(r"\]\((\w+\.ipynb)\)", text)} == {path.name for path in NOTEBOOKS}


def test_the_demo_runs_the_stages_in_order():
    makefile = (REPOSITORY / "Makefile").read_text()
    stages = re.search(r"^STAGES := (.*)$", makefile, re.M)[1].split()
    assert stages == [path.stem for path in NOTEBOOKS if "01" <= path.name < "06"]


def test_the_makefile_runs_every_table_in_order():
    makefile = (REPOSITORY / "Makefile").read_text().replace("\\\n", " ")
    tables = re.search(r"^TABLES := (.*)$", makefile, re.M)[1].split()
    assert tables == [path.stem for path in NOTEBOOKS if "11" <= path.name < "20"]
    numbers = sorted(int(found[1]) for name in tables if (found := re.search(r"_table(\d+)_", name)))
    assert numbers == [row for row in ROWS if isinstance(row, int)]


def test_links_lead_somewhere(notebook):
    text = " ".join(source(cell) for cell in cells_of(notebook, "markdown"))
    for link in re.findall(r"\]\(([^)]+)\)", text):
        assert (notebook.parent / link).exists(), link
    for file in re.findall(r"`(cassl_lib/[\w/.]+)`", text):
        assert (REPOSITORY / file).exists(), file
