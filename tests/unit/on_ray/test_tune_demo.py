"""What the demonstration's third stage is taught."""

from collections import Counter

from medv_ray.on_ray.tune_demo import questions


def test_every_closed_question_is_taught_with_both_answers() -> None:
    """Else "yes" is right by itself: asked for its side, a vessel is always there."""
    told: dict[str, Counter[str]] = {}
    for row in questions(120):
        for asked, answer in zip(*[iter(row.conversations)] * 2, strict=True):
            question = asked["value"].removeprefix("<image>\n")
            told.setdefault(question, Counter())[answer["value"]] += 1
    closed = {question: said for question, said in told.items() if question.startswith("Yes or no")}
    assert len(closed) == 18
    for question, said in closed.items():
        assert min(said["yes"], said["no"]) >= 0.2 * said.total(), (question, said)
