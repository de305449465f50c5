"""Pushing to a Hub and loading from it, in processes of their own against a Hub on this machine."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hub_server import HubServer, Repository, StoredFile, python
from huggingface_hub import ModelCard
from pipeline_utils_for_tests import tiny_parts, tiny_pipeline
from safetensors.torch import load, load_file

from melreformer_hf import HifiVocoderConfig, HifiVocoderModel
from melreformer_hf.hub.push import push_folder

GENERATE = """
def music(pipe):
    pipe.set_progress_bar_config(disable=True)
    return pipe(num_inference_steps=2, audio_length_in_s=0.5, generator=torch.Generator().manual_seed(0)).audios
"""
PUSH = f"""
import sys, torch
from safetensors.torch import save_file
from pipeline_utils_for_tests import tiny_pipeline
{GENERATE}
pipe = tiny_pipeline()
save_file({{"music": music(pipe)}}, sys.argv[1] + "/music.safetensors")
print(pipe.push_to_hub("user/pipe", card={{"data": "Sines.", "license": "cc0-1.0"}}))
pipe.vocoder.save_pretrained(sys.argv[1] + "/vocoder", push_to_hub=True, repo_id="user/vocoder", private=True,
                             commit_message="A vocoder", card={{"title": "Quiet"}})
pipe.idea.push_to_hub("unet", tags=["small"], revision="tiny")
"""
LOAD = f"""
import sys, torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModel
from melreformer_hf import IdeaUNetModel, MelReformerPipeline
{GENERATE}
pipe = MelReformerPipeline.from_pretrained("user/pipe")
torch.testing.assert_close(music(pipe), load_file(sys.argv[1] + "/music.safetensors")["music"], rtol=0, atol=1e-4)
config = AutoConfig.from_pretrained("user/vocoder", token=sys.argv[2])
vocoder = AutoModel.from_pretrained("user/vocoder", token=sys.argv[2])
assert config.model_type == vocoder.config.model_type == "melreformer_hifi_vocoder"
IdeaUNetModel.from_pretrained("user/unet", revision="tiny")
print(type(vocoder).__name__)
"""


@pytest.fixture(scope="module")
def hub():
    with HubServer() as server:
        yield server


@pytest.fixture(scope="module")
def pushed(hub, tmp_path_factory) -> Path:
    """Folder with what the pushed pipeline plays; the Hub has it, a private vocoder and a branch of an idea model."""
    folder = tmp_path_factory.mktemp("pushed")
    text = python(hub, folder / "home", "-c", PUSH, str(folder), token=hub.token)
    assert text.startswith(f"{hub.url}/user/pipe/commit/")
    return folder


def card_of(repository: Repository, revision: str = "main") -> ModelCard:
    return ModelCard(repository.files(revision)["README.md"].data.decode())


def test_what_is_pushed_is_whole_and_carries_its_own_card(hub, pushed):
    pipe = hub.repository("models", "user/pipe")
    expected = {"README.md", "model_index.json", "scheduler/scheduler_config.json", ".gitattributes"}
    expected |= {f"{part}/config.json" for part in ("idea", "expansion", "vocoder")}
    files = ("model.safetensors", "preprocessor_config.json")
    expected |= {f"{part}/{file}" for part in ("expansion", "vocoder") for file in files}
    assert set(pipe.files()) == expected | {"idea/diffusion_pytorch_model.safetensors"}
    card = card_of(pipe)
    assert card.data.license == "cc0-1.0" and card.data.library_name == "melreformer_hf" and "Sines." in card.text
    assert 'MelReformerPipeline.from_pretrained("user/pipe")' in card.text
    assert pipe.messages[pipe.branches["main"]] == "Upload MelReformerPipeline"


def test_the_arguments_of_a_push_arrive(hub, pushed):
    vocoder, unet = (hub.repository("models", f"user/{name}") for name in ("vocoder", "unet"))
    assert vocoder.private and vocoder.messages[vocoder.branches["main"]] == "A vocoder"
    assert "# Quiet" in card_of(vocoder).text and (pushed / "vocoder" / "README.md").is_file()
    assert set(unet.files()) == {".gitattributes"} and "small" in card_of(unet, "tiny").data.tags


def test_pipelines_and_models_load_from_the_hub(hub, pushed, tmp_path):
    before = len(hub.log)
    assert python(hub, tmp_path, "-c", LOAD, str(pushed), hub.token).strip() == "HifiVocoderModel"
    fetched = [path for method, path, _, status in hub.log[before:] if method == "GET" and status < 300]
    assert fetched and not [path for path in fetched if path.endswith((".py", ".bin", ".pt", ".pkl"))]


def test_a_second_push_keeps_the_card_and_sends_no_weights_again(hub, pushed, tmp_path):
    pipe = hub.repository("models", "user/pipe")
    files = dict(pipe.files())
    edited = files["README.md"].data.replace(b"Sines.", b"Sines, edited on the Hub.")
    files["README.md"] = StoredFile(edited, False)
    pipe.branches["main"] = pipe.commit(files, "Edit the card")
    uploads = len(hub.requests("PUT", "/lfs/"))
    code = "from pipeline_utils_for_tests import tiny_pipeline; tiny_pipeline().push_to_hub('user/pipe')"
    python(hub, tmp_path, "-c", code, token=hub.token)
    assert pipe.files()["README.md"].data == edited
    assert len(hub.requests("PUT", "/lfs/")) == uploads


def test_the_push_command_uploads_a_folder(hub, tmp_path):
    tiny_pipeline().save_pretrained(tmp_path / "pipe")
    (tmp_path / "pipe/checkpoints/step-00000001").mkdir(parents=True)
    (tmp_path / "pipe/checkpoints/step-00000001/optimizers.pt").write_bytes(b"states")
    words = ("-m", "melreformer_hf.cli", "push", str(tmp_path / "pipe"), "user/by-command")
    message = python(hub, tmp_path / "home", *words, fails=True)
    assert "hf auth login" in message and ("models", "user/by-command") not in hub.repositories
    text = python(hub, tmp_path / "home", *words, token=hub.token)
    assert f"uploaded to {hub.url}/user/by-command/commit/" in text
    files = hub.repository("models", "user/by-command").files()
    assert "vocoder/model.safetensors" in files and not [name for name in files if "checkpoints" in name]
    local = load_file(tmp_path / "pipe/vocoder/model.safetensors")
    assert load(files["vocoder/model.safetensors"].data).keys() == local.keys()


def test_a_download_whose_connection_breaks_goes_on_where_it_stopped(hub, tmp_path):
    config = HifiVocoderConfig(mel=tiny_parts()["vocoder"].config.mel, hidden_size=512, intermediate_size=1536)
    HifiVocoderModel(config).save_pretrained(tmp_path)
    large = (tmp_path / "model.safetensors").read_bytes()
    repository = Repository("models", "user/large", False)
    files = {"config.json": StoredFile((tmp_path / "config.json").read_bytes(), False)}
    repository.branches["main"] = repository.commit({**files, "model.safetensors": StoredFile(large, True)}, "add")
    hub.repositories["models", "user/large"] = repository
    assert len(large) > 25e6
    hub.cuts["model.safetensors"] = [22_000_000]
    code = "from melreformer_hf import HifiVocoderModel as M; print(M.from_pretrained('user/large').num_parameters())"
    before = len(hub.log)
    parameters = python(hub, tmp_path / "home", "-c", code)
    assert int(parameters) == sum(tensor.numel() for tensor in load(large).values())
    ranges = [entry[2] for entry in hub.log[before:] if entry[0] == "GET" and "/cdn/" in entry[1]]
    assert ranges == [None, f"bytes={20 * 2**20}-"]  # the library keeps what it has in pieces of 10 MiB


def test_spaces_branches_and_pull_requests(hub, tmp_path):
    (tmp_path / "demo").mkdir()
    (tmp_path / "demo" / "app.py").write_text("demo = None")
    code = (
        "import sys; from melreformer_hf.hub.push import push_folder as push; folder = sys.argv[1]\n"
        "print(push(folder, 'user/demo', 'space', private=True))\n"
        "print(push(folder, 'user/demo', 'space', revision='next'))\n"
        "print(push(folder, 'user/asked', create_pr=True))"
    )
    space, branch, request = python(hub, tmp_path, "-c", code, tmp_path / "demo", token=hub.token).splitlines()
    assert space.startswith(f"{hub.url}/spaces/user/demo/commit/") and hub.repository("spaces", "user/demo").private
    assert branch.endswith(hub.repository("spaces", "user/demo").branches["next"])
    assert request == f"{hub.url}/user/asked/discussions/1"
    asked = hub.repository("models", "user/asked")
    assert "app.py" not in asked.files() and "app.py" in asked.files("refs/pr/1")


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"repo_id": "a/b/c"}, "form user/name"),
        ({"repo_id": "user/"}, "form user/name"),
        ({"repo_type": "models"}, "repo_type.*'models'"),
        ({"folder": "nowhere"}, "folder must exist"),
    ],
)
def test_bad_uploads_are_refused_before_any_request(tmp_path, arguments, match):
    (tmp_path / "file.json").write_text(json.dumps({}))
    with pytest.raises(ValueError, match=match):
        push_folder(**{"folder": tmp_path, "repo_id": "user/name", **arguments})
