"""A packed set of keys."""

from hashlib import sha256

from medv_ray.archive.key_set import KeySet


def key(number: int) -> str:
    return sha256(str(number).encode()).hexdigest()[:32]


def test_keys_are_found_and_others_are_not():
    keys = KeySet(map(key, range(0, 1000, 2)))
    assert len(keys) == 500
    assert all(key(number) in keys for number in range(0, 1000, 2))
    assert keys.missing(map(key, range(10))) == [key(number) for number in range(1, 10, 2)]


def test_zeros_at_the_ends_are_part_of_a_key():
    keys = KeySet(["00" * 16, "ab" + "00" * 15])
    assert keys.missing(["00" * 16, "ab" + "00" * 15, "00" * 15 + "ab"]) == ["00" * 15 + "ab"]


def test_what_is_no_key_is_in_no_set():
    assert KeySet([key(1)]).missing(["", "no key", key(1)]) == ["", "no key"]
    assert key(1) not in KeySet([])


def test_keys_keep_their_order():
    given = [key(3), "00" * 16, key(1), "ab" + "00" * 15]
    keys = KeySet(given)
    assert [keys.at(index) for index in range(4)] == given
