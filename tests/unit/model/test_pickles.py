"""Torch files read as tables of numbers: what comes out, what is refused, what never runs."""

import io
import os
import pickle
import struct
import zipfile
from argparse import Namespace
from collections import OrderedDict
from pathlib import Path

import pytest
import torch

from medv_ray.errors import CheckpointError
from medv_ray.model import pickle_child, pickles

pytestmark = pytest.mark.integration

ZIP = pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])


def store(file: Path, value: object, zipped: bool) -> Path:
    torch.save(value, file, _use_new_zipfile_serialization=zipped)
    return file


def read(file: Path) -> dict[str, torch.Tensor]:
    entries, _ = pickles.contents(file)
    pickles.check_storages(entries.values())
    return {name: pickles.read_tensor(entry) for name, entry in entries.items()}


def refuse(file: Path, code: str, *words: str) -> None:
    with pytest.raises(CheckpointError) as raised:
        read(file)
    assert raised.value.code == code, raised.value
    for word in words:
        assert word in str(raised.value)
    assert str(file.parent) not in str(raised.value)


def same(got: dict[str, torch.Tensor], want: dict[str, torch.Tensor]) -> None:
    assert got.keys() == want.keys()
    for name, tensor in want.items():
        assert got[name].dtype == tensor.dtype
        assert got[name].shape == tensor.shape
        assert torch.equal(got[name], tensor.detach()), name


@ZIP
def test_tensors_come_out_to_the_bit(tmp_path, zipped):
    wide = torch.randn(7, 5)
    values = {
        "f32": wide,
        "f64": wide.double(),
        "f16": wide.half(),
        "bf16": wide.bfloat16(),
        "turned": wide.T,
        "shared": wide,
        "part": wide[2:5, 1::2],
        "row": wide[-1],
        "expanded": torch.randn(1, 4).expand(3, 4),
        "empty": torch.empty(0, 3),
        "scalar": torch.tensor(2.5),
        "parameter": torch.nn.Parameter(torch.randn(3)),
    }
    got = read(store(tmp_path / "w.bin", OrderedDict(values), zipped))
    same(got, values)
    places = {got[name].untyped_storage().data_ptr() for name in ("f32", "shared", "part")}
    assert len(places) == 3  # copies of their own
    assert all(tensor.is_contiguous() for tensor in got.values())


@ZIP
@pytest.mark.parametrize("key", ["state_dict", "module", "model", "model_state_dict"])
def test_a_state_inside_a_trainer_s_dictionary(tmp_path, zipped, key):
    model = torch.nn.Linear(3, 2)
    saved = {key: model.state_dict(), "epoch": 3, "loss": 0.5, "name": "x", "betas": (0.9, 1)}
    file = store(tmp_path / "w.pt", saved, zipped)
    same(read(file), model.state_dict())
    assert pickles.contents(file)[1] == ["epoch", "loss", "name", "betas"]


@ZIP
def test_plain_values_beside_tensors_are_named(tmp_path, zipped):
    file = store(tmp_path / "w.pt", {"a": torch.ones(2), "step": 3, "note": "x"}, zipped)
    same(read(file), {"a": torch.ones(2)})
    assert pickles.contents(file)[1] == ["step", "note"]


class Call:
    """Calls something when it is unpickled."""

    def __init__(self, what: object, *given: object) -> None:
        self.what, self.given = what, given

    def __reduce__(self):
        return self.what, self.given


def attacks(sprung: Path) -> dict[str, object]:
    touch = f"touch {sprung}"
    return {
        "posix.system": Call(os.system, touch),
        "builtins.eval": Call(eval, f"open({str(sprung)!r}, 'w')"),
        "builtins.exec": Call(exec, f"open({str(sprung)!r}, 'w')"),
        "builtins.getattr": Call(getattr, "x", "upper"),
        "torch.serialization.load": Call(torch.load, str(sprung)),
        "torch._utils._rebuild_sparse_tensor": torch.eye(3).to_sparse(),
        "torch._utils._rebuild_meta_tensor_no_storage": torch.ones(3, device="meta"),
        "torch._utils._rebuild_tensor_v3": torch.ones(3, dtype=torch.uint16),
        "argparse.Namespace": Namespace(lr=1.0),
        "torch.nn.modules.linear.Linear": torch.nn.Linear(2, 2),
    }


@ZIP
@pytest.mark.parametrize("name", attacks(Path("x")))
@pytest.mark.parametrize("where", ["value", "whole", "beside"])
def test_whatever_is_no_dense_tensor_is_refused_and_never_runs(tmp_path, zipped, name, where):
    sprung = tmp_path / "sprung"
    attack = attacks(sprung)[name]
    value = {
        "value": {"a": torch.ones(2), "b": attack},
        "whole": attack,
        "beside": {"state_dict": {"a": torch.ones(2)}, "args": attack},
    }[where]
    file = store(tmp_path / "w.bin", value, zipped)
    word = name.rpartition(".")[2]
    with file.open("rb") as stream, pytest.raises(pickle_child.Refused, match=word):
        pickle_child.read(stream)  # here, where a payload would find an environment
    if where == "value" and name.endswith("system"):
        refuse(file, "E1412", "posix.system", "w.bin")
    assert not sprung.exists()


@pytest.mark.parametrize("protocol", range(6))
def test_a_bare_pickle_with_a_payload(tmp_path, protocol):
    sprung = tmp_path / "sprung"
    (tmp_path / "w.bin").write_bytes(pickle.dumps(Call(os.system, f"touch {sprung}"), protocol))
    with pytest.raises(CheckpointError):
        read(tmp_path / "w.bin")
    assert not sprung.exists()


def test_a_payload_in_every_pickle_of_the_older_format(tmp_path):
    """Magic number, version and system come before the tensors, the list of storages behind."""
    sprung = tmp_path / "sprung"
    attack = pickle.dumps(Call(os.system, f"touch {sprung}"), 2)
    store(tmp_path / "good.bin", {"a": torch.ones(2)}, zipped=False)
    stream = io.BytesIO((tmp_path / "good.bin").read_bytes())
    cuts = [0]
    for _ in range(5):
        pickle_child.Unpickler(stream).load()
        cuts.append(stream.tell())
    data = stream.getvalue()
    for first, last in zip(cuts, cuts[1:], strict=False):
        (tmp_path / "w.bin").write_bytes(data[:first] + attack + data[last:])
        refuse(tmp_path / "w.bin", "E1412", "posix.system")
    assert not sprung.exists()


BUILDS = {
    # BUILD with attributes on each harmless thing that a pickle may name
    "function": b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n}X\x08\x00\x00\x00__call__K\x01sb.",
    "slots": b"\x80\x02ctorch._utils\n_rebuild_parameter\nN}X\x05\x00\x00\x00shapeK\x01s\x86b.",
    "storage type": b"\x80\x02ctorch\nFloatStorage\n}X\x01\x00\x00\x00aK\x01sb.",
    "called type": b"\x80\x02ctorch\nFloatStorage\n)R.",
    "new object": b"\x80\x02ccollections\nOrderedDict\n)\x81.",
    "dotted": b"\x80\x04\x8c\x0ccollections\x8c\x14OrderedDict.__init__\x93.",
    "module": b"\x80\x02cos\nsystem\n.",
    "extension": b"\x80\x02\x82\x01.",
    "no reference": b"\x80\x02K\x01Q.",
}


@pytest.mark.parametrize("name", BUILDS)
def test_odd_opcodes(name):
    with pytest.raises((pickle_child.Refused, AttributeError, TypeError, ValueError,
                        pickle.UnpicklingError)):  # fmt: skip
        pickle_child.Unpickler(io.BytesIO(BUILDS[name])).load()


def zip_with(file: Path, pickled: bytes, compress: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(file, "w", compress) as made:
        made.writestr("archive/data.pkl", pickled)
        made.writestr("archive/data/0", b"\0" * 16)
    return file


def pickled_tensor(tmp_path: Path, *given: object) -> bytes:
    """A pickle that rebuilds one tensor from these arguments over a storage of four floats."""

    class Storage:
        pass

    class Pickler(pickle.Pickler):
        def persistent_id(self, value):
            return ("storage", torch.FloatStorage, "0", "cpu", 4) if value is Storage else None

    stream = io.BytesIO()
    call = Call(torch._utils._rebuild_tensor_v2, Storage, *given, False, OrderedDict())
    Pickler(stream, 2).dump({"a": call})
    return stream.getvalue()


@pytest.mark.parametrize(
    ("given", "code"),
    [
        ((0, (4,), (1,)), None),
        ((0, (5,), (1,)), "E1407"),
        ((1, (4,), (1,)), "E1407"),
        ((0, (2, 2), (3, 1)), "E1407"),
        ((0, (4,), (2**40,)), "E1407"),
        ((0, (2**62,), (0,)), "E1407"),
        ((-1, (4,), (1,)), "E1412"),
        ((0, (4,), (-1,)), "E1412"),
        ((0, (4, 1), (1,)), "E1412"),
        ((0, (4.0,), (1,)), "E1412"),
        ((0, (True,), (1,)), "E1412"),
        ((0, "4", "1"), "E1412"),
    ],
)
def test_views_outside_their_storage(tmp_path, given, code):
    file = zip_with(tmp_path / "w.bin", pickled_tensor(tmp_path, *given))
    if code is None:
        same(read(file), {"a": torch.zeros(4)})
    else:
        refuse(file, code)


def test_zips_that_are_odd(tmp_path):
    good = pickled_tensor(tmp_path, 0, (4,), (1,))
    refuse(zip_with(tmp_path / "w.bin", good, zipfile.ZIP_DEFLATED), "E1412", "compressed")
    refuse(zip_with(tmp_path / "w.bin", b""), "E1407", "data.pkl")
    with zipfile.ZipFile(zip_with(tmp_path / "w.bin", good), "a") as made:
        made.writestr("archive/byteorder", b"big")
    refuse(tmp_path / "w.bin", "E1412", "big-endian")
    with zipfile.ZipFile(tmp_path / "w.bin", "w") as made:
        made.writestr("archive/data.pkl", good)
    refuse(tmp_path / "w.bin", "E1407", "lacks the data")


@ZIP
@pytest.mark.parametrize("share", [0.0, 0.02, 0.3, 0.9, 0.999])
def test_half_written_files(tmp_path, zipped, share):
    file = store(tmp_path / "w.bin", {f"t{i}": torch.randn(30) for i in range(9)}, zipped)
    data = file.read_bytes()
    file.write_bytes(data[: int(share * len(data))])
    refuse(file, "E1407", "w.bin")


def test_a_flipped_bit_of_a_zip_is_found(tmp_path):
    file = store(tmp_path / "w.bin", {"a": torch.zeros(1000)}, zipped=True)
    data = bytearray(file.read_bytes())
    data[data.index(b"\0" * 2000) + 1000] ^= 1
    file.write_bytes(data)
    refuse(file, "E1407", "checksums")
    torch.serialization.set_crc32_options(False)
    try:  # torch may be told to write none
        same(read(store(file, {"a": torch.ones(9)}, zipped=True)), {"a": torch.ones(9)})
    finally:
        torch.serialization.set_crc32_options(True)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "no torch file"),
        (b"<html>404</html>", "no torch file"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n", "Git LFS"),
        (b"PK\x03\x04" + b"\0" * 99, "half-written"),
    ],
)
def test_files_of_another_kind(tmp_path, data, words):
    (tmp_path / "w.bin").write_bytes(data)
    refuse(tmp_path / "w.bin", "E1407", words)


@pytest.mark.parametrize(
    "value", [{}, [], {"a": 1}, [torch.ones(2)], {"a": {"b": torch.ones(2)}}, torch.ones(2),
              {"state_dict": {}}, {"model": {"a": torch.ones(1)}, "module": {"a": torch.ones(1)}},
              {"a": torch.ones(1), "b": {}}, {"a": torch.ones(1), 3: torch.ones(1)}],
)  # fmt: skip
def test_what_is_no_table_of_tensors(tmp_path, value):
    refuse(store(tmp_path / "w.bin", value, True), "E1412")


def test_a_pickle_that_asks_for_memory_or_time_is_ended(tmp_path):
    hungry = b"\x80\x04\x8e" + struct.pack("<Q", 2**40)  # BINBYTES8 of a terabyte
    refuse(zip_with(tmp_path / "w.bin", hungry + b"x" * 99), "E1413", "limits")
    growing = b"\x80\x02]" + b"(" + b"]" * 2**25 + b"e."  # a list of 33 million lists
    refuse(zip_with(tmp_path / "w.bin", growing), "E1413", "limits")


def test_the_child_has_no_environment_and_cannot_open_files(tmp_path):
    """Were the unpickler to be broken, this is what is left to it."""
    import subprocess
    import sys

    code = (
        "import os, sys\nfrom medv_ray.model.pickle_child import limit\n"
        "limit(2**30, 5)\nprint(len(os.environ))\n"
        "for path, mode in (('/etc/hostname', 'r'), ('x', 'w')):\n"
        "    try:\n        open(path, mode)\n        print('opened')\n"
        "    except OSError:\n        print('refused')\n"
    )
    env = {"PYTHONPATH": os.pathsep.join(sys.path), "LC_ALL": "C.UTF-8"}
    done = subprocess.run(
        [sys.executable, "-s", "-P", "-c", code], env=env, cwd=tmp_path, capture_output=True,
        text=True, check=True,
    )  # fmt: skip
    assert done.stdout.split() == ["2", "refused", "refused"]
