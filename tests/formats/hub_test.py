"""hf: paths: pushed and read back, from the cache when offline, and refused where they differ."""

import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from fsq_jax import export
from fsq_jax.formats import hub, torch_file, weights_file
from fsq_jax.pretrained import weights
from fsq_jax.runtime.user_error import UserError
from tests import hub_server, tiny

constants = pytest.importorskip("huggingface_hub.constants")

REPOSITORY = "someone/tokenizer"


@pytest.fixture
def server(tmp_path, monkeypatch):
    """A hub with an empty cache, as HF_ENDPOINT and HF_HOME would set it before the import."""
    with hub_server.serve() as running:
        template = running.address + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "ENDPOINT", running.address)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)  # a protocol of its own
        monkeypatch.setenv("HF_TOKEN", "hf_test")
        yield running


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """(folder, its files, the weights) of a tokenizer's export."""
    folder = tmp_path_factory.mktemp("export")
    workdir = tiny.untrained_tokenizer(folder / "run")
    files = export.export(workdir, "safetensors", str(folder / "out"))
    return folder / "out", [file.rpartition("/")[2] for file in files], weights.load(workdir)


def test_what_is_pushed_comes_back(server, exported, monkeypatch):
    folder, files, ours = exported
    assert hub.push(str(folder), files, REPOSITORY) == f"{server.address}/{REPOSITORY}"
    assert sorted(server.files[REPOSITORY]) == ["README.md", "model.safetensors"]
    card = server.files[REPOSITORY]["README.md"].decode()
    assert card.startswith("---\nlibrary_name: fsq_jax\n") and "levels=(4, 3)" in card
    commit = server.commit(REPOSITORY)
    for path in (
        f"hf:{REPOSITORY}",
        f"hf:{REPOSITORY}/model.safetensors",
        f"hf:{REPOSITORY}@{commit}",
    ):
        theirs = weights.load(path)
        assert theirs.fingerprint == ours.fingerprint and theirs.config == ours.config
        assert theirs.path == path
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    server.requests.clear()
    assert weights.load(f"hf:{REPOSITORY}").fingerprint == ours.fingerprint
    assert not server.requests
    with pytest.raises(UserError, match="neither the hub nor the cache here has other.npz"):
        weights.load(f"hf:{REPOSITORY}/other.npz")


def test_a_file_that_is_not_the_cards_is_refused(server, exported):
    folder, files, _ = exported
    hub.push(str(folder), files, REPOSITORY)
    held = server.files[REPOSITORY]
    held["model.safetensors"] = held["model.safetensors"][:-1] + b"\x01"
    with pytest.raises(UserError, match="model.safetensors has the SHA-256 .* its card says"):
        weights.load(f"hf:{REPOSITORY}")


def test_repositories_of_others_have_no_checksums_and_nothing_is_unpickled(server, tmp_path):
    np.savez(tmp_path / "w.npz", **{"params/a": np.arange(3.0)})
    server.files["others/model"] = {
        "sub/w.npz": (tmp_path / "w.npz").read_bytes(),
        "README.md": b"# A model\n",
        "evil.pkl": b"\x80\x04cos\nsystem\n",
        "pytorch.pth": b"\x80\x04cos\nsystem\n",
    }
    tree = weights_file.read("hf:others/model/sub/w.npz")[0]
    np.testing.assert_array_equal(tree["params"]["a"], np.arange(3.0))
    with pytest.raises(UserError, match="pickle, which is never loaded"):
        weights.load("hf:others/model/evil.pkl")
    with pytest.raises(UserError, match="cannot be read"):
        torch_file.read_state_dict("hf:others/model/pytorch.pth")


def test_a_new_process_reads_the_hub_that_the_environment_names(tmp_path):
    """Where nothing has imported the client yet; a file is in the cache for the second process."""
    code = "import sys; from fsq_jax.formats import hub; print(hub.local_path(sys.argv[1]))"

    def fetch(path, **environment):
        return subprocess.run(
            [sys.executable, "-c", code, path],
            cwd=tiny.ROOT,
            capture_output=True,
            text=True,
            env=os.environ | {"HF_HOME": str(tmp_path)} | environment,
        )

    with hub_server.serve() as running:
        running.files["others/model"] = {"w.npz": b"weights"}
        first = fetch("hf:others/model/w.npz", HF_ENDPOINT=running.address)
        assert first.returncode == 0, first.stderr
        unknown = fetch("hf:others/nothing/w.npz", HF_ENDPOINT=running.address)
        assert "UserError: hf:others/nothing/w.npz: there is no repository" in unknown.stderr
    second = fetch("hf:others/model/w.npz", HF_HUB_OFFLINE="1")
    assert second.stdout == first.stdout
    assert pathlib.Path(second.stdout.strip()).read_bytes() == b"weights"


@pytest.mark.parametrize(
    "path, message",
    [
        ("hf:one", "is not of the form hf:OWNER/NAME"),
        ("hf:a/b@", "is not of the form hf:OWNER/NAME"),
        ("hf:nobody/nothing", "there is no repository nobody/nothing"),
        ("hf:others/model@v9", "others/model has no revision 'v9'"),
        ("hf:others/model", "has model.safetensors or model.msgpack or model.npz"),
    ],
)
def test_mistakes_are_one_sentence(server, path, message):
    server.files["others/model"] = {"README.md": b""}
    with pytest.raises(UserError, match=message):
        weights.load(path)


def test_a_hub_that_refuses_says_so(server, exported):
    folder, files, _ = exported
    with pytest.raises(UserError, match="two/slashes/many"):
        hub.push(str(folder), files, "two/slashes/many")
