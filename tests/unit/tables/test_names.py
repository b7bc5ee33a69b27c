"""Files by the names that rows give them."""

import pytest

from medv_ray.errors import DataError
from medv_ray.tables.names import Folder, Found, find, relative

TREE = {
    "": ["sub", "é.png", "a.png", "A.png", "b.PNG", "x;y.png", "images"],
    "sub": ["C.Png", "12:30.png", "v..2.png"],
    "images": ["a.png"],
}


def found(name: str) -> list[Found]:
    return find(name, "images", lambda at: Folder(TREE.get(at, ())))


CASE = ("image_name_case",)


@pytest.mark.parametrize(
    ("name", "files"),
    [
        ("a.png", [Found("a.png")]),
        (" a.png ", [Found("a.png")]),
        ("./sub//C.Png", [Found("sub/C.Png")]),
        ("SUB\\c.png", [Found("sub/C.Png", CASE)]),
        ("e\u0301.png", [Found("é.png")]),
        ("b.png", [Found("b.PNG", CASE)]),
        ("a.PNG", []),  # may be two files
        ("images/a.png", [Found("images/a.png")]),  # as it is written first
        ("images/b.PNG", [Found("b.PNG")]),
        ("/a.png", [Found("a.png")]),
        ("sub/12:30.png", [Found("sub/12:30.png")]),
        ("sub/v..2.png", [Found("sub/v..2.png")]),
        ("x;y.png", [Found("x;y.png")]),
        ("a.png; b.PNG", [Found("a.png"), Found("b.PNG")]),
        ("a.png|no.png", []),
        ("no.png", []),
    ],
)
def test_the_file_that_a_name_means(name: str, files: list[Found]) -> None:
    assert found(name) == files


@pytest.mark.parametrize(
    "name",
    ["../a", "a/../b", "..\\a", "C:\\a.png", "http://x/a.png", "s3://b/a", "a\0", "\ud800", 7],
)
def test_a_way_out_is_refused(name: object) -> None:
    with pytest.raises(DataError, match="E1108"):
        relative(name)
