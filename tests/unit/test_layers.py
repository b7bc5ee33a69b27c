"""The street of docs/layout.md, held over the syntax tree: imports point backwards only."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ROWS = [
    ["medv_kernels"],
    [
        "medv_ray.errors",
        "medv_ray.canvases",
        "medv_ray.disk",
        "medv_ray.files",
        "medv_ray.hub",
        "medv_ray.loopback",
        "medv_ray.markers",
        "medv_ray.prepared",
        "medv_ray.setting_errors",
        "medv_ray.settings",
        "medv_ray.schema",
        "medv_ray.formats",
        "medv_ray.slide_parts",
        "medv_ray.file_parts",
        "medv_ray.dicom_walk",
        "medv_ray.tiff_walk",
        "medv_ray.dicom_objects",
        "medv_ray.windows",
        "medv_ray.tables",
        "medv_ray.dicomweb",
    ],
    ["medv_ray.data", "medv_ray.model", "medv_ray.diffusion", "medv_ray.archive"],
    ["medv_ray.engine", "medv_ray.training", "medv_ray.client"],
    ["medv_ray.serving", "medv_ray.evaluation"],
    ["medv_ray.on_ray"],
    ["medv_ray.cli", "jobs", "medv_ray.lmms_eval"],
]
# inside a row: settings may use errors and formats; a job is the command line's function
WITHIN = {
    ("medv_ray.disk", "medv_ray.errors"),
    ("medv_ray.dicom_walk", "medv_ray.formats"),
    ("medv_ray.slide_parts", "medv_ray.tiff_walk"),
    ("medv_ray.setting_errors", "medv_ray.errors"),
    ("medv_ray.settings", "medv_ray.errors"),
    ("medv_ray.hub", "medv_ray.errors"),
    ("medv_ray.settings", "medv_ray.hub"),
    ("medv_ray.settings", "medv_ray.formats"),
    ("medv_ray.settings", "medv_ray.setting_errors"),
    ("medv_ray.settings", "medv_ray.windows"),
    ("medv_ray.tables", "medv_ray.errors"),
    ("medv_ray.tables", "medv_ray.formats"),
    ("medv_ray.dicomweb", "medv_ray.errors"),
    ("medv_ray.dicomweb", "medv_ray.loopback"),
    ("jobs", "medv_ray.cli"),
}
THIRD_PARTY = {
    "medv_kernels": {"torch", "triton"},
    "medv_ray.errors": set(),
    "medv_ray.canvases": set(),
    "medv_ray.disk": set(),
    "medv_ray.files": set(),
    "medv_ray.hub": {"huggingface_hub", "httpx2"},
    "medv_ray.loopback": set(),
    "medv_ray.markers": set(),
    "medv_ray.prepared": set(),
    "medv_ray.setting_errors": {"pydantic"},
    "medv_ray.settings": {"pydantic", "pydantic_core"},
    "medv_ray.schema": {"pyarrow"},
    "medv_ray.formats": set(),
    "medv_ray.slide_parts": set(),
    "medv_ray.file_parts": set(),
    "medv_ray.dicom_walk": set(),
    "medv_ray.tiff_walk": set(),
    "medv_ray.dicom_objects": {"pydicom"},  # the type of a header
    "medv_ray.windows": set(),
    "medv_ray.tables": {"pyarrow"},
    "medv_ray.dicomweb": {"httpx2"},
    "medv_ray.data": {
        "numpy",
        "PIL",
        "transformers",
        "tokenizers",
        "pyarrow",
        "pydicom",
        "imagecodecs",
        "openslide",
        "pydantic",
    },
    "medv_ray.model": {"yaml", "torch", "safetensors", "peft", "torchao", "huggingface_hub"},
    "medv_ray.diffusion": {"torch", "numpy"},
    "medv_ray.archive": {"pyarrow", "pydantic", "numpy", "huggingface_hub", "httpx2"},
    "medv_ray.engine": {"torch", "numpy", "transformers"},  # transformers: the type of a tokenizer
    "medv_ray.training": {
        *("torch", "numpy", "transformers", "jinja2", "deepspeed", "peft", "tensorboardX"),
        *("pydantic", "pydantic_core", "rich", "safetensors"),
    },
    "medv_ray.client": {"httpx2", "pydantic"},
    "medv_ray.serving": {
        *("fastapi", "starlette", "pydantic", "prometheus_client", "httpx2", "torch", "numpy"),
        "python_multipart",
        "opentelemetry",
    },
    "medv_ray.evaluation": {"numpy", "jinja2", "httpx2", "matplotlib", "pydicom", "highdicom"},
    "medv_ray.on_ray": {
        *("ray", "starlette", "numpy", "pyarrow", "rich", "torch", "pydantic", "yaml"),
    },
    "medv_ray.cli": {"typer", "rich", "yaml", "pyarrow"},
    # an extra: nothing of ours imports this room (it stands in the last row), lmms-eval does
    "medv_ray.lmms_eval": {"lmms_eval", "accelerate", "torch", "PIL"},
    "jobs": {"ray", "typer", "torch", "numpy", "rich", "tokenizers", "transformers"},
}


def room(module: str) -> str | None:
    """The room that a dotted module name lies in; None for anything that is not ours."""
    return next((r for row in ROWS for r in row if module == r or module.startswith(r + ".")), None)


def sources() -> list[tuple[str, Path]]:
    found = [
        *((ROOT / "medv_ray").rglob("*.py")),
        *((ROOT / "kernels").rglob("*.py")),
        *((ROOT / "jobs").glob("*.py")),
    ]
    names = []
    for path in sorted(found):
        parts = path.relative_to(ROOT).with_suffix("").parts
        parts = parts[1:] if parts[0] == "kernels" else parts
        names.append((".".join(p for p in parts if p != "__init__"), path))
    return names


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{path.name}: relative import"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def row_of(name: str) -> int:
    return next(i for i, row in enumerate(ROWS) if name in row)


@pytest.mark.parametrize(
    ("module", "path"), sources(), ids=lambda v: v if isinstance(v, str) else ""
)
def test_imports_point_backwards(module: str, path: Path) -> None:
    own = room(module)
    if own is None:
        assert module == "medv_ray", f"{module} lies in no room of docs/layout.md"
        assert not imports(path), "importing medv_ray must load nothing"
        return
    for name in imports(path):
        top = name.split(".")[0]
        target = room(name)
        if target is not None:
            same = target == own or (own, target) in WITHIN
            assert same or row_of(target) < row_of(own), (
                f"{module} imports {name}, which is not behind it"
            )
        elif top == "medv_ray":
            assert name == "medv_ray.__version__", f"{module} imports {name}"
        elif top not in sys.stdlib_module_names:
            assert top in THIRD_PARTY[own], f"{module} imports {top}"


HEAVY = ["torch", "ray", "transformers", "numpy", "pyarrow", "pydantic", "fastapi", "peft"]


@pytest.mark.parametrize(
    "order",
    [
        [
            ("medv_ray", HEAVY),
            ("medv_ray.model.pickle_child", ["torch", "ray", "transformers", "numpy", "pydantic"]),
            ("medv_ray.settings", ["torch", "ray", "transformers"]),
            ("medv_ray.serving.options", ["torch", "ray", "transformers", "fastapi"]),
            ("medv_ray.archive.run", ["torch", "ray", "transformers"]),
            ("medv_ray.data.images", ["torch", "ray", "transformers"]),
            ("medv_ray.training.plan", ["torch", "ray", "transformers"]),
            ("medv_ray.cli", ["torch", "ray", "transformers"]),
        ],
        pytest.param(
            [
                ("medv_ray.model.lora", ["ray", "peft", "transformers"]),
                ("medv_ray.engine", ["ray", "peft"]),
                ("medv_ray.serving.app", ["ray", "peft"]),
            ],
            marks=pytest.mark.integration,
        ),
    ],
    ids=["without torch", "with torch"],
)
def test_import_stays_light(order: list[tuple[str, list[str]]]) -> None:
    """One process imports them one after the other: what is absent after the later ones, too, no
    earlier one has brought."""
    code = "import sys\n" + "".join(
        f"import {module}\nprint({module!r}, [m for m in {absent!r} if m in sys.modules])\n"
        for module, absent in order
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.splitlines() == [f"{module} []" for module, _ in order]


def test_every_package_is_shipped() -> None:
    import tomllib

    tables = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    on_disk = {
        ".".join(p.parent.relative_to(ROOT).parts).removeprefix("kernels.")
        for p in [
            *(ROOT / "medv_ray").rglob("__init__.py"),
            *(ROOT / "kernels").rglob("__init__.py"),
        ]
    }
    assert set(tables["packages"]) == on_disk


def test_kernels_folder_is_no_package() -> None:
    """transformers imports the hub's package `kernels`; one of ours would shadow and break it."""
    assert not (ROOT / "kernels" / "__init__.py").exists()
