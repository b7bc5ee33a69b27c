"""Folders of pickles into folders that load: names, digests, licence, and what is refused."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from medv_ray.errors import CheckpointError, MedvError, RunError, SettingsError
from medv_ray.model import importing, weights
from medv_ray.model.importing import import_folder
from tests.unit.model.conftest import TOY, make_model
from tests.unit.model.test_pickles import Call
from tests.unit.model.test_weights import NORM, olmo_name

pytestmark = pytest.mark.integration

ROOT = Path(__file__).parents[3]
Tensors = dict[str, torch.Tensor]


def write(folder: Path, config: dict, files: dict[str, object], zipped: bool = True) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer.json").write_text("{}")
    for name, value in files.items():
        torch.save(value, folder / name, _use_new_zipfile_serialization=zipped)
    return folder


def shards(state: Tensors, count: int = 3) -> dict[str, Tensors]:
    names = list(state)
    return {
        f"pytorch_model-{i + 1:05d}-of-{count:05d}.bin": {n: state[n] for n in names[i::count]}
        for i in range(count)
    }


def add_index(folder: Path, files: dict[str, Tensors]) -> None:
    owner = {name: file for file, state in files.items() for name in state}
    (folder / importing.INDEX).write_text(json.dumps({"weight_map": owner}))


@pytest.fixture
def state() -> Tensors:
    return {name: t.clone() for name, t in make_model().bfloat16().state_dict().items()}


def refuse(tmp_path: Path, code: str, *words: str, kind: type[MedvError] = CheckpointError) -> None:
    with pytest.raises(kind) as raised:
        import_folder(tmp_path / "in", tmp_path / "out")
    assert raised.value.code == code, raised.value
    for word in words:
        assert word in str(raised.value), raised.value
    assert str(tmp_path) not in str(raised.value)  # no absolute path
    assert [place.name for place in tmp_path.iterdir()] == ["in"]  # nothing is left behind


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("form", ["single", "numbered", "index", "projector", "ddp", "trainer"])
def test_an_imported_folder_loads_to_the_bit(tmp_path, state, form, zipped):
    projector = {n: t for n, t in state.items() if "mm_projector" in n}
    files: dict[str, object] = {
        "single": {"pytorch_model.bin": state},
        "numbered": shards(state),
        "index": shards(state),
        "projector": {
            "pytorch_model.bin": {n: t for n, t in state.items() if n not in projector},
            "mm_projector.bin": projector,
        },
        "ddp": {"model.pt": {f"module.{n}": t for n, t in state.items()}},
        "trainer": {"last.pth": {"state_dict": state, "epoch": 3}},
    }[form]
    source = write(tmp_path / "in", TOY.to_json() | {"auto_map": {"AutoModel": "evil.M"}}, files,
                   zipped)  # fmt: skip
    if form == "index":
        add_index(source, files)
    (source / "training_args.bin").write_bytes(b"never opened")
    done = import_folder(source, tmp_path / "out", max_shard_bytes=20_000)
    out = tmp_path / "out"
    assert len(list(out.glob("*.safetensors"))) > 1
    assert done.num_tensors == len(state)
    loaded = weights.load(out, torch.bfloat16)
    assert loaded.config == TOY
    got = loaded.state_dict()
    assert got.keys() == state.keys()
    assert all(torch.equal(got[name], state[name]) for name in state)
    stored = [load_file(file) for file in out.glob("*.safetensors")]
    assert {t.dtype for part in stored for t in part.values()} == {torch.bfloat16}
    assert "auto_map" not in json.loads((out / "config.json").read_text())
    assert (out / "tokenizer.json").read_text() == "{}"


def test_both_key_layouts(tmp_path):
    config = replace(TOY, vision=None)
    state = {name: t.clone() for name, t in make_model(config).state_dict().items()}
    language = config.language
    olmo_config = {
        "model_type": "llada",
        "d_model": language.hidden_size,
        "embedding_size": language.vocab_size,
        "mlp_hidden_size": language.intermediate_size,
        "n_heads": language.num_attention_heads,
        "n_kv_heads": language.num_key_value_heads,
        "n_layers": language.num_hidden_layers,
        "vocab_size": language.vocab_size,
    }
    olmo = {olmo_name(name): t for name, t in state.items()}
    write(tmp_path / "olmo", olmo_config, shards(olmo))
    write(tmp_path / "llama", config.to_json(), {"pytorch_model.bin": state})
    for layout in ("olmo", "llama"):
        import_folder(tmp_path / layout, tmp_path / f"{layout}-out")
        got = weights.load(tmp_path / f"{layout}-out").state_dict()
        assert got.keys() == state.keys()
        assert all(torch.equal(got[name], state[name]) for name in state)
    assert load_file(tmp_path / "olmo-out/model.safetensors").keys() == olmo.keys()


def test_tensors_that_share_memory_become_copies(tmp_path, state):
    names = [name for name in state if name.endswith("input_layernorm.weight")]
    state[names[1]] = state[names[0]]
    flat = torch.randn(64, dtype=torch.bfloat16)
    state[NORM] = flat[16:48]
    write(tmp_path / "in", TOY.to_json(), {"pytorch_model.bin": state})
    import_folder(tmp_path / "in", tmp_path / "out")
    got = weights.load(tmp_path / "out", torch.bfloat16).state_dict()
    assert all(torch.equal(got[name], state[name]) for name in state)


def test_what_is_recorded(tmp_path, state):
    source = write(tmp_path / "in", TOY.to_json(), {"pytorch_model.bin": state})
    (source / "LICENSE").write_text("for study only")
    note = import_folder(source, tmp_path / "out").note
    assert note == json.loads((tmp_path / "out/import.json").read_text())
    assert note["sha256"] == weights.digest(tmp_path / "out")  # the note itself does not count
    assert note["sources"].keys() == {"pytorch_model.bin"}
    assert len(note["sources"]["pytorch_model.bin"]) == 64
    assert note["licence"] == {"text": "for study only", "from": "LICENSE"}
    assert (tmp_path / "out/LICENSE").read_text() == "for study only"
    assert str(tmp_path) not in json.dumps(note)
    assert {file.stat().st_mode & 0o044 for file in (tmp_path / "out").iterdir()} == {0o044}
    again = import_folder(source, tmp_path / "again", licence="mine").note
    assert again["licence"] == {"text": "mine", "from": "--licence"}
    assert again["sha256"] == note["sha256"]


def test_the_licence_of_a_model_card_and_none(tmp_path):
    assert importing.licence_of(tmp_path, None) == {"text": None, "from": None}
    (tmp_path / "README.md").write_text("---\nlicense: cc-by-nc-4.0\n---\n# Model\n")
    assert importing.licence_of(tmp_path, None) == {"text": "cc-by-nc-4.0", "from": "README.md"}


def test_folders_with_nothing_to_import(tmp_path, state):
    source = write(tmp_path / "in", TOY.to_json(), {})
    refuse(tmp_path, "E1001", "no .bin", kind=SettingsError)
    weights.save(make_model(), source / "x")
    os.replace(source / "x/model.safetensors", source / "model.safetensors")
    refuse(tmp_path, "E1001", "safetensors already", kind=SettingsError)
    (source / "model.safetensors").unlink()
    (source / "config.json").unlink()
    refuse(tmp_path, "E1401", "config.json")


def test_an_output_folder_in_use(tmp_path, state):
    source = write(tmp_path / "in", TOY.to_json(), {"pytorch_model.bin": state})
    (tmp_path / "out").mkdir()
    import_folder(source, tmp_path / "out")  # empty is as good as none
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(SettingsError, match="'out' is in use"):
        import_folder(source, tmp_path / "out")
    assert sorted(tmp_path.rglob("*")) == before


def test_missing_shards_are_named(tmp_path, state):
    files = shards(state)
    source = write(tmp_path / "in", TOY.to_json(), files)
    second = list(files)[1]
    (source / second).unlink()
    refuse(tmp_path, "E1401", second)
    add_index(source, files)
    refuse(tmp_path, "E1401", second)
    (source / importing.INDEX).write_text(json.dumps({"weight_map": {NORM: "../x.bin"}}))
    refuse(tmp_path, "E1409", "../x.bin")
    (source / importing.INDEX).write_text("{}")
    refuse(tmp_path, "E1407", "weight_map")


def test_tensors_that_do_not_fit_the_config(tmp_path, state):
    def case(changes: dict[str, object], code: str, *words: str) -> None:
        changed = {n: t for n, t in (state | changes).items() if t is not None}
        write(tmp_path / "in", TOY.to_json(), {"pytorch_model.bin": changed})
        refuse(tmp_path, code, *words)

    case({NORM: None}, "E1402", NORM)
    case({"model.extra.weight": torch.ones(2)}, "E1403", "model.extra.weight")
    case({NORM: torch.ones(31)}, "E1404", NORM, "[31]")
    case({NORM: torch.ones(32, dtype=torch.int64)}, "E1410", NORM, "I64")
    case({NORM: torch.full((32,), float("nan"))}, "E1405", NORM)
    case({NORM: torch.eye(32).to_sparse()}, "E1412", "sparse")
    case({f"base_model.model.{NORM}": torch.ones(1)}, "E1403", "LoRA")


def test_a_tensor_in_two_files(tmp_path, state):
    twice = {NORM: state[NORM].clone()}
    files = {"pytorch_model.bin": state, "mm_projector.bin": twice}
    write(tmp_path / "in", TOY.to_json(), files)
    import_folder(tmp_path / "in", tmp_path / "out")
    twice[NORM][0] += 1
    write(tmp_path / "in", TOY.to_json(), files)
    (tmp_path / "out").rename(tmp_path / "in/old")
    refuse(tmp_path, "E1403", NORM, "mm_projector.bin", "differ")


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_a_payload_in_one_shard(tmp_path, state, zipped):
    sprung = tmp_path / "in/sprung"
    files = shards(state)
    files["pytorch_model-00002-of-00003.bin"]["x"] = Call(os.system, f"touch {sprung}")
    write(tmp_path / "in", TOY.to_json(), files, zipped)
    refuse(tmp_path, "E1412", "pytorch_model-00002-of-00003.bin", "posix.system")
    assert not sprung.exists()


def test_a_cut_shard(tmp_path, state):
    source = write(tmp_path / "in", TOY.to_json(), shards(state))
    last = source / "pytorch_model-00003-of-00003.bin"
    last.write_bytes(last.read_bytes()[:-100])
    refuse(tmp_path, "E1407", last.name)


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (OSError(28, "No space left on device"), "E1503"),
        (SafetensorError("I/O error: No space left on device (os error 28)"), "E1503"),
        (OSError(30, "Read-only file system"), "E1511"),
    ],
)
def test_an_output_that_cannot_be_written(tmp_path, state, monkeypatch, error, code):
    write(tmp_path / "in", TOY.to_json(), {"pytorch_model.bin": state})

    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(importing.weights, "write_shards", fail)
    refuse(tmp_path, code, "GB", kind=RunError)


@pytest.mark.slow
@pytest.mark.integration
def test_the_job(tmp_path, state):
    source = write(tmp_path / "in", TOY.to_json(), {"pytorch_model.bin": state})
    command = [sys.executable, str(ROOT / "jobs/import_checkpoint.py"), "--source", str(source)]
    env = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "kernels")])}

    given = [*command, "--out", str(tmp_path / "out"), "--licence", "non-commercial"]
    done = subprocess.run(given, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "licence of these weights (from --licence): non-commercial" in done.stdout
    assert "ASU Non-Commercial License" in done.stdout
    said = json.loads(done.stdout.splitlines()[-1])
    assert said["sha256"] == weights.digest(tmp_path / "out")
