"""Checkpoint folders: what loads, what is refused by which code, what never runs."""

import json
import math
import pickle
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from medv_ray.errors import CheckpointError, MedvError, SettingsError
from medv_ray.model import weights
from medv_ray.model.config import LanguageConfig, ModelConfig
from medv_ray.model.medv import Medv

OLMO_LAYER = {
    "input_layernorm": "attn_norm",
    "mlp.down_proj": "ff_out",
    "mlp.gate_proj": "ff_proj",
    "mlp.up_proj": "up_proj",
    "post_attention_layernorm": "ff_norm",
    "self_attn.k_proj": "k_proj",
    "self_attn.o_proj": "attn_out",
    "self_attn.q_proj": "q_proj",
    "self_attn.v_proj": "v_proj",
}
OLMO_TOP = {"model.embed_tokens": "wte", "model.norm": "ln_f", "lm_head": "ff_out"}
NORM = "model.norm.weight"


def olmo_name(name: str) -> str:
    name = name.removesuffix(".weight")
    match = re.fullmatch(r"model\.layers\.(\d+)\.(.+)", name)
    below = f"blocks.{match[1]}.{OLMO_LAYER[match[2]]}" if match else OLMO_TOP[name]
    return f"model.transformer.{below}.weight"


def write(folder: Path, config: dict, *shards: dict[str, torch.Tensor]) -> Path:
    """A folder with these files; more than one shard brings an index."""
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    names = (
        [f"part{i}.safetensors" for i in range(len(shards))]
        if len(shards) > 1
        else ["model.safetensors"]
    )
    for name, shard in zip(names, shards, strict=True):
        save_file(shard, folder / name)
    if len(shards) > 1:
        found = {key: name for name, shard in zip(names, shards, strict=True) for key in shard}
        (folder / weights.INDEX).write_text(json.dumps({"weight_map": found}))
    return folder


@pytest.fixture
def folder(toy, tmp_path):
    weights.save(toy, tmp_path / "toy")
    return tmp_path / "toy"


def edit(folder: Path, **changes: torch.Tensor | None) -> None:
    """Replace, add or (None) remove tensors of a single-file folder."""
    state = load_file(folder / "model.safetensors")
    state.update({name: tensor for name, tensor in changes.items() if tensor is not None})
    save_file(
        {n: t for n, t in state.items() if changes.get(n, t) is not None},
        folder / "model.safetensors",
    )


def refuse(folder: Path, code: str, *words: str, **options) -> MedvError:
    with pytest.raises(CheckpointError) as raised:
        weights.load(folder, **options)
    assert raised.value.code == code
    for word in words:
        assert word in str(raised.value)
    assert str(folder.parent) not in str(raised.value)  # no absolute path
    return raised.value


@pytest.mark.parametrize("max_shard_bytes", [10**9, 4000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_saved_folder_loads_back_to_the_bit(toy, tmp_path, dtype, max_shard_bytes):
    toy.to(dtype)
    weights.save(toy, tmp_path, max_shard_bytes=max_shard_bytes)
    assert (tmp_path / weights.INDEX).exists() == (max_shard_bytes == 4000)
    again = weights.load(tmp_path, dtype)
    assert again.config == toy.config
    assert not again.training
    state = again.state_dict()
    assert state.keys() == toy.state_dict().keys()
    for name, tensor in toy.state_dict().items():
        assert state[name].dtype == dtype
        assert torch.equal(state[name], tensor), name
    ids = torch.arange(9)[None]
    assert torch.equal(again.logits(ids), toy.logits(ids))


def test_a_loaded_model_saves_again_and_its_file_is_never_written_to(folder, tmp_path):
    model = weights.load(folder)
    before = (folder / "model.safetensors").read_bytes()
    weights.save(model, tmp_path / "second")
    assert (tmp_path / "second/model.safetensors").read_bytes() == before
    model.lm_head.weight.zero_()  # the map is private
    assert (folder / "model.safetensors").read_bytes() == before


def test_the_folder_is_llada_vs_own_layout(folder):
    config = json.loads((folder / "config.json").read_text())
    assert config["model_type"] == "llava_llada"
    assert config["torch_dtype"] == "float32"
    assert (
        config["vision_config"]["num_hidden_layers"] == 3
    )  # SigLIP's own count, of which 2 are kept
    names = load_file(folder / "model.safetensors").keys()
    assert "model.vision_tower.vision_tower.vision_model.encoder.layers.1.mlp.fc2.bias" in names
    assert {
        "model.mm_projector.0.weight",
        "model.mm_projector.2.bias",
        "model.image_newline",
    } <= names


def test_both_key_layouts_give_one_model(toy_config, tmp_path):
    text_only = replace(toy_config, vision=None)
    model = Medv(text_only).requires_grad_(False)
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    language = text_only.language
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
    olmo = write(tmp_path / "olmo", olmo_config, {olmo_name(name): t for name, t in state.items()})
    llama = write(tmp_path / "llama", text_only.to_json(), state)
    for path in (olmo, llama):
        loaded = weights.load(path).state_dict()
        assert loaded.keys() == state.keys()
        assert all(torch.equal(loaded[name], state[name]) for name in state)


def test_shards_may_hold_tensors_of_several_dtypes_and_old_rotary_tables(toy, tmp_path):
    state = {name: tensor.clone() for name, tensor in toy.state_dict().items()}
    names = list(state)
    first = {name: state[name].bfloat16() for name in names[::2]}
    first["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(4)
    second = {name: state[name].double() for name in names[1::2]}
    loaded = weights.load(write(tmp_path, toy.config.to_json(), first, second)).state_dict()
    assert all(torch.equal(loaded[name], state[name].bfloat16().float()) for name in names[::2])
    assert all(torch.equal(loaded[name], state[name]) for name in names[1::2])


def test_logit_size(folder):
    assert weights.load(folder, logit_size=50).head.shape == (50, 32)
    refuse(folder, "E1408", "62", "61", logit_size=62)


def test_missing_files(folder, tmp_path, toy):
    refuse(tmp_path / "nowhere", "E1401", "no folder 'nowhere'", "config.json")
    (tmp_path / "README.md").touch()
    refuse(tmp_path / "README.md", "E1401", "'README.md' is a file", "config.json")
    (folder / "config.json").rename(tmp_path / "config.json")
    refuse(folder, "E1401", "config.json")
    (tmp_path / "config.json").rename(folder / "config.json")
    (folder / "model.safetensors").unlink()
    refuse(folder, "E1401", "model.safetensors")
    weights.save(toy, tmp_path / "sharded", max_shard_bytes=4000)
    shards = sorted((tmp_path / "sharded").glob("*.safetensors"))
    shards[3].unlink()
    refuse(tmp_path / "sharded", "E1401", shards[3].name)
    (tmp_path / "sharded" / weights.INDEX).unlink()
    refuse(tmp_path / "sharded", "E1401", weights.INDEX)


def test_missing_and_unexpected_tensors_are_named(folder):
    edit(folder, **{NORM: None})
    refuse(folder, "E1402", NORM)
    edit(folder, **{NORM: torch.ones(32), "model.layers.2.self_attn.q_proj.weight": torch.ones(2)})
    refuse(folder, "E1403", "model.layers.2.self_attn.q_proj.weight")


def test_of_many_missing_tensors_five_are_named(folder):
    state = load_file(folder / "model.safetensors")
    edit(folder, **{name: None for name in state if "model.layers.1." in name})
    assert str(refuse(folder, "E1402")).count("model.layers.1.") == 5
    refuse(folder, "E1402", "and 4 more")


def test_a_tower_without_its_last_layer_is_not_taken_for_a_smaller_one(folder):
    state = load_file(folder / "model.safetensors")
    edit(folder, **{name: None for name in state if "encoder.layers.1." in name})
    refuse(folder, "E1402", "encoder.layers.1.")


def test_a_tensor_stored_twice(toy, tmp_path):
    state = toy.state_dict()
    write(tmp_path, toy.config.to_json(), state, {NORM: torch.zeros(32)})
    refuse(tmp_path, "E1403", NORM, "twice")


def test_wrong_shapes_name_both(folder):
    edit(folder, **{NORM: torch.ones(31)})
    refuse(folder, "E1404", NORM, "[31]", "[32]")


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_that_are_not_finite(folder, value, dtype):
    weight = torch.ones(32)
    weight[17] = value
    edit(folder, **{NORM: weight})
    refuse(folder, "E1405", NORM, dtype=dtype)


def test_weights_too_large_for_the_wanted_dtype(folder):
    edit(folder, **{NORM: torch.full((32,), 1e6)})
    weights.load(folder, torch.bfloat16)
    refuse(folder, "E1405", NORM, "float16", dtype=torch.float16)


def test_quantised_weights(folder):
    edit(folder, **{NORM: torch.ones(32, dtype=torch.int8)})
    refuse(folder, "E1410", NORM, "I8")


@pytest.mark.parametrize("damage", ["cut", "empty", "html", "header"])
def test_corrupt_files(folder, damage):
    file = folder / "model.safetensors"
    data = file.read_bytes()
    damaged = {
        "cut": data[:-7],
        "empty": b"",
        "html": b"<html>" * 99,
        "header": data[:8] + b"}" * 99 + data[107:],
    }
    file.write_bytes(damaged[damage])
    refuse(folder, "E1407", "model.safetensors")


@pytest.mark.parametrize(
    "name", ["../model.safetensors", "/etc/model.safetensors", "a/b.safetensors", "..", "", "x.py"]
)
def test_an_index_cannot_leave_the_folder(folder, name):
    (folder / "model.safetensors").rename(folder.parent / "model.safetensors")
    (folder / weights.INDEX).write_text(json.dumps({"weight_map": {NORM: name}}))
    refuse(folder, "E1409")


@pytest.mark.parametrize("content", ["", "[]", "{", '{"weight_map": []}', '{"weight_map": {}}'])
def test_damaged_indices(folder, content):
    (folder / "model.safetensors").unlink()
    (folder / weights.INDEX).write_text(content)
    with pytest.raises(CheckpointError):
        weights.load(folder)


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b"\xff\xfe", b"[" * 100_000])
def test_a_config_that_is_no_object(folder, content):
    (folder / "config.json").write_bytes(content)
    refuse(folder, "E1410", "config.json")


def test_a_shard_may_be_a_link_as_in_the_hub_cache(folder, tmp_path):
    (folder / "model.safetensors").rename(tmp_path / "blob")
    (folder / "model.safetensors").symlink_to(tmp_path / "blob")
    weights.load(folder)


class Trap:
    """Touches a file when unpickled."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self):
        return Path.touch, (self.file,)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "weights.pth", "last.ckpt"])
def test_pickles_are_refused_and_code_is_never_run(folder, tmp_path, name):
    sprung = tmp_path / "sprung"
    (folder / name).write_bytes(pickle.dumps(Trap(sprung)))
    (folder / "evil.py").write_text(f"open({str(sprung)!r}, 'w')")
    config = json.loads((folder / "config.json").read_text())
    config |= {
        "auto_map": {"AutoConfig": "evil.Config", "AutoModel": "evil.Model"},
        "trust_remote_code": True,
    }
    (folder / "config.json").write_text(json.dumps(config))
    weights.load(folder)  # beside safetensors it is left alone
    weights.digest(folder)
    (folder / "model.safetensors").unlink()
    refuse(folder, "E1406", name)
    (folder / weights.INDEX).write_text(json.dumps({"weight_map": {NORM: name}}))
    refuse(folder, "E1406", name)
    assert not sprung.exists()
    assert "evil" not in sys.modules


def test_save_does_not_mix_with_weights_that_are_there(toy, folder):
    before = {file: file.read_bytes() for file in folder.iterdir()}
    with pytest.raises(SettingsError, match="already holds weights"):
        weights.save(toy, folder, max_shard_bytes=4000)
    assert {file: file.read_bytes() for file in folder.iterdir()} == before


def test_save_brings_the_tokenizer_along(toy, tmp_path):
    (tmp_path / "from").mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json", "evil.py", "README.md"):
        (tmp_path / "from" / name).write_text("{}")
    weights.save(toy, tmp_path / "to", tokenizer_files_from=tmp_path / "from")
    names = {file.name for file in (tmp_path / "to").iterdir()}
    assert names == {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}


def test_the_digest_follows_weights_config_and_tokenizer_only(folder, tmp_path):
    want = weights.digest(folder)
    assert re.fullmatch(r"[0-9a-f]{64}", want)
    (folder / "README.md").write_text("notes")
    assert weights.digest(folder) == want
    for name in ("model.safetensors", "config.json"):
        data = (folder / name).read_bytes()
        (folder / name).write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
        assert weights.digest(folder) != want
        (folder / name).write_bytes(data)
    (folder / "tokenizer.json").write_text("{}")
    assert weights.digest(folder) != want
    with pytest.raises(CheckpointError, match="E1401"):
        weights.digest(tmp_path / "nowhere")


MEASURE = """
import json, os, sys, torch
from medv_ray.model import weights

def status(field):
    return next(int(l.split()[1]) * 1024 for l in open("/proc/self/status") if l.startswith(field))

small, *cases = json.loads(sys.argv[1])
torch.set_num_threads(1)  # threads would not outlive the fork
for path, name in cases:
    if os.fork():  # each case in a process of its own
        os.wait()
        continue
    dtype = getattr(torch, name)
    weights.load(small, dtype)  # what the first load imports and maps is not weights
    open("/proc/self/clear_refs", "w").write("5")  # the high-water mark starts here
    before = status("VmRSS")
    model = weights.load(path, dtype)
    size = sum(t.nbytes for t in model.state_dict().values())
    print((status("VmHWM") - before) / size, flush=True)
    os._exit(0)
"""


@pytest.mark.slow
@pytest.mark.integration
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux's /proc")
def test_host_memory_stays_within_a_tenth_of_the_weights(tmp_path, folder):
    """Resident memory, mapped pages of the file included, of a process that loads 285 MB."""
    language = LanguageConfig(8192, 1024, 3072, 4, 8, 8)
    with torch.device("meta"):
        model = Medv(ModelConfig(language=language, vision=None))
    model = model.to(torch.bfloat16).to_empty(device="cpu").requires_grad_(False)
    for parameter in model.parameters():
        parameter.fill_(0.01)
    weights.save(model, tmp_path / "one")
    weights.save(model, tmp_path / "three", max_shard_bytes=60 * 10**6)
    weights.save(model.float(), tmp_path / "wide")
    cases = [
        (str(tmp_path / "one"), "float32"),
        (str(tmp_path / "three"), "float32"),
        (str(tmp_path / "one"), "bfloat16"),
        (str(tmp_path / "wide"), "bfloat16"),
    ]
    command = [sys.executable, "-c", MEASURE, json.dumps([str(folder), *cases])]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    shares = [float(line) for line in done.stdout.split()]
    assert len(shares) == len(cases)
    assert all(0.5 < share <= 1.1 for share in shares), shares


def test_a_saved_folder_can_be_read_by_other_users(toy, tmp_path):
    weights.save(toy, tmp_path / "out")
    assert {file.stat().st_mode & 0o044 for file in (tmp_path / "out").iterdir()} == {0o044}
