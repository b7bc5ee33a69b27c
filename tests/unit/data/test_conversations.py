"""Training conversations: slots, roles, labels, refusals; batches."""

from pathlib import Path

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from medv_ray.data.conversations import encode_conversation
from medv_ray.data.prompts import SPECIAL_TOKENS, Turn, build, load_tokenizer
from medv_ray.errors import DataError
from medv_ray.markers import IGNORE, IMAGE_SLOT
from medv_ray.settings import PromptSettings

BARE = PromptSettings(system="none", token_after_image="training")


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory):
    """Bytes and special tokens only."""
    folder: Path = tmp_path_factory.mktemp("tokenizer")
    vocab = {char: index for index, char in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(n, special=True) for n in SPECIAL_TOKENS.values()])
    tokenizer.save(str(folder / "tokenizer.json"))
    return load_tokenizer(folder)


def talk(*texts: str) -> list[dict[str, str]]:
    return [{"from": ("human", "gpt")[i % 2], "value": text} for i, text in enumerate(texts)]


def shown(tokenizer, ids: list[int]) -> str:
    """Ids as text: `#` for an image slot, `.` for an ignored label."""
    out = ""
    for token in ids:
        out += {IMAGE_SLOT: "#", IGNORE: "."}.get(token) or tokenizer.decode([token])
    return out


def user(tokenizer, conversation: list[dict[str, str]], num_images: int) -> str:
    """The first user message as the model is to see it."""
    ids, labels = encode_conversation(tokenizer, conversation, BARE, num_images)
    assert len(ids) == len(labels)
    return shown(tokenizer, ids).split("user<|end_header_id|>\n\n", 1)[1].split("<|eot_id|>")[0]


@pytest.mark.parametrize(
    ("text", "num_images", "want"),
    [
        ("<image>\nQ", 1, "#\nQ"),
        ("Q\n<image>", 1, "#\nQ"),
        ("  <image> Q ", 1, "#\nQ"),
        ("<image>Q ", 1, "#Q "),
        ("<image> and <image>", 2, "# and #"),
        ("a<image><image>", 2, "a##"),
        ("Q", 1, "#\nQ"),
        ("Q", 2, "# #\nQ"),
        ("what is <image>?", 0, "what is <image>?"),
    ],
)
def test_image_places(tokenizer, text: str, num_images: int, want: str) -> None:
    assert user(tokenizer, talk(text, "A"), num_images) == want


def test_images_in_a_later_turn(tokenizer) -> None:
    ids, _ = encode_conversation(tokenizer, talk("<image>\na", "b", "c <image>", "d"), BARE, 2)
    assert shown(tokenizer, ids).count("#") == 2
    assert "#\nc<|eot_id|>" in shown(tokenizer, ids)


def test_words_in_an_answer_never_become_an_image(tokenizer) -> None:
    ids, labels = encode_conversation(tokenizer, talk("<image>\nQ", "see <image>"), BARE, 1)
    assert ids.count(IMAGE_SLOT) == 1
    assert shown(tokenizer, labels).endswith("see <image><|eot_id|>")


def test_labels(tokenizer) -> None:
    ids, labels = encode_conversation(tokenizer, talk("<|eot_id|>?", "yes"), BARE, 0)
    question = "\n\n<|eot_id|>?"  # typed, hence plain text and no target
    assert shown(tokenizer, ids).startswith(
        f"<|startoftext|><|start_header_id|>user<|end_header_id|>{question}<|eot_id|>"
    )
    assert shown(tokenizer, labels) == (
        "<|startoftext|><|start_header_id|>....<|end_header_id|>"
        + "." * len(question)
        + "<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\nyes<|eot_id|>"
    )
    assert all(label in (token, IGNORE) for token, label in zip(ids, labels, strict=True))


def test_training_begins_with_what_scoring_asks(tokenizer) -> None:
    """Prompt of the setting `training`, then the answer."""
    for system in ("general", "medical", "none"):
        settings = PromptSettings(system=system, token_after_image="training")
        ids, _ = encode_conversation(tokenizer, talk("<image>\nQ?", "yes", "R?", "no"), settings, 1)
        turns = [Turn("user", "Q?"), Turn("assistant", "yes"), Turn("user", "R?")]
        prompt = build(tokenizer, turns, 1, settings)
        assert ids[: len(prompt)] == prompt
        assert shown(tokenizer, ids[len(prompt) :]) == "no<|eot_id|>"


def test_plain(tokenizer) -> None:
    for text in ("<image>\nDescribe.", "Describe.\n<image>", "Describe."):
        ids, labels = encode_conversation(tokenizer, talk(text, "a caption"), BARE, 1, "plain")
        assert shown(tokenizer, ids) == "#a caption\n"
        assert shown(tokenizer, labels) == ".a caption\n"


def test_pairs_are_questions_and_answers_without_roles(tokenizer) -> None:
    conversation = talk("<image>\nQ? ", " yes", "R?", "no")
    ids, labels = encode_conversation(tokenizer, conversation, BARE, 1, "pairs")
    assert shown(tokenizer, ids) == "#Q?yes<|eot_id|>R?no<|eot_id|>"
    assert shown(tokenizer, labels) == "...yes<|eot_id|>..no<|eot_id|>"
    ids, labels = encode_conversation(tokenizer, talk("<image>", "a cell"), BARE, 1, "pairs")
    assert shown(tokenizer, ids) == "#a cell<|eot_id|>"
    assert shown(tokenizer, labels) == ".a cell<|eot_id|>"


def test_a_first_message_from_gpt_is_dropped(tokenizer) -> None:
    extra = [{"from": "gpt", "value": "hello"}, *talk("Q", "A")]
    assert encode_conversation(tokenizer, extra, BARE, 0) == encode_conversation(
        tokenizer, talk("Q", "A"), BARE, 0
    )


@pytest.mark.parametrize(
    ("conversation", "num_images", "code"),
    [
        ([], 0, "E1109"),
        (talk("Q"), 0, "E1109"),
        (talk("Q", "A", "R"), 0, "E1109"),
        ([{"from": "gpt", "value": "A"}], 0, "E1109"),
        ([*talk("Q", "A"), {"from": "gpt", "value": "A"}], 0, "E1109"),
        ([{"from": "system", "value": "S"}, *talk("Q", "A")], 0, "E1109"),
        ([{"from": "human"}, *talk("Q", "A")[1:]], 0, "E1109"),
        ([{"from": "human", "value": None}, *talk("Q", "A")[1:]], 0, "E1109"),
        (talk("<image><image>", "A"), 1, "E1109"),
        (talk("<image>", "A"), 2, "E1109"),
        (talk("a\0", "A"), 0, "E1304"),
        (talk("Q", "\udc80"), 0, "E1304"),
    ],
)
def test_bad_conversations(tokenizer, conversation: list, num_images: int, code: str) -> None:
    with pytest.raises(DataError) as caught:
        encode_conversation(tokenizer, conversation, BARE, num_images)
    assert caught.value.code == code


def test_plain_needs_one_pair_and_an_image(tokenizer) -> None:
    for conversation, num_images in ((talk("Q", "A"), 0), (talk("<image>Q", "A", "R", "B"), 1)):
        with pytest.raises(DataError):
            encode_conversation(tokenizer, conversation, BARE, num_images, "plain")
