"""Every metric loads with `evaluate.load`, by folder and by Hub id, and gives what its card shows."""

from __future__ import annotations

import ast
import doctest
import re
from pathlib import Path

import pytest
import yaml
from hub_server import HubServer, python

from melreformer_hf.metrics import module_folder, module_names

evaluate = pytest.importorskip("evaluate")
NAMES = ["bits_per_second", "codebook_usage", "crps", "drift", "duration_ks", "frechet_audio_distance", "log_mel_l1"]
NAMES += ["multi_resolution_stft", "nearest_neighbor_distance", "note_f1", "seam", "sharpness", "si_sdr"]


def test_the_list_of_metrics():
    assert module_names() == NAMES
    with pytest.raises(ValueError, match="no metric 'fid'.*crps"):
        module_folder("fid")


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    """`evaluate` copies modules into a cache, which becomes a package of its own, and writes inputs there."""
    folder = tmp_path_factory.mktemp("evaluate")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluate.config, "HF_MODULES_CACHE", folder / "modules")
        patch.setattr(evaluate.config, "HF_METRICS_CACHE", folder / "metrics")
        yield


@pytest.mark.parametrize("name", NAMES)
def test_every_card_shows_what_its_metric_gives(name):
    card = (Path(module_folder(name)) / "README.md").read_text(encoding="utf-8")
    header = yaml.safe_load(card.split("---")[1])
    assert {"evaluate", "metric"} <= set(header["tags"]) and header["license"] == "apache-2.0"
    (example,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    test = doctest.DocTestParser().get_doctest(example, {}, name, f"{name}/README.md", 0)
    found = []
    runner = doctest.DocTestRunner(verbose=False)
    runner.run(test, out=found.append)
    assert runner.summarize(verbose=False).failed == 0, "".join(found)


@pytest.mark.parametrize("name", NAMES)
def test_modules_import_one_name_per_line(name):
    """`evaluate` reads import statements line by line and takes `import a, b` for a package `a,`."""
    tree = ast.parse((Path(module_folder(name)) / f"{name}.py").read_text(encoding="utf-8"))
    statements = [node for node in ast.walk(tree) if isinstance(node, (ast.Import, ast.ImportFrom))]
    assert statements and all(isinstance(node, ast.Import) and len(node.names) == 1 for node in statements)


def test_a_metric_loads_by_its_hub_id(tmp_path):
    with HubServer() as hub:
        code = (
            "from melreformer_hf.hub.push import push_folder; from melreformer_hf.metrics import module_folder\n"
            "print(push_folder(module_folder('crps'), 'user/crps', 'space'))"
        )
        assert "/spaces/user/crps/commit/" in python(hub, tmp_path / "pushing", "-c", code, token=hub.token)
        code = (
            "import evaluate; metric = evaluate.load('user/crps')\n"
            "print(metric.compute(predictions=[[[0.0], [4.0]]], references=[[1.0]])['crps'])"
        )
        # (1 + 3) / 2 - 2 * 4 / (2 * 2 * 1)
        assert float(python(hub, tmp_path / "loading", "-c", code).splitlines()[-1]) == 0.0


def test_the_guide_s_examples_run(capsys):
    guide = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text(encoding="utf-8")
    for block in re.findall(r"```python\n(.*?)```", guide, re.DOTALL):
        exec(compile(block, "metrics.md", "exec"), {})
    told = capsys.readouterr().out
    assert "real against real" in told and str(NAMES) in told and "{'crps': 0.0}" in told
