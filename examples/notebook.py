"""A few questions about one synthetic tile, and how sure each token is. No server, no Ray.

    python examples/notebook.py

Every `# %%` begins a cell for editors that know them (VS Code, Spyder, PyCharm); in a notebook,
copy the cells.
"""

# %% A tile with questions whose answers are known
from medv_ray.data import synthetic
from medv_ray.engine import Predictor, Request
from medv_ray.settings import TOY, AnswerSettings, ModelSettings, SamplerSettings

rows = list(synthetic.rows(3, seed=2026))
tile = rows[0].image

# %% The embedded toy; path="/models/LLaDA-MedV" is a real checkpoint
sampler = SamplerSettings(gen_length=8, block_length=8, steps=8)
predictor = Predictor.load(ModelSettings(path=str(TOY)), AnswerSettings(sampler=sampler))

# %% Ask
answers = predictor.answer([Request(row.question, (tile,)) for row in rows])
for row, answer in zip(rows, answers, strict=True):
    print(f"{row.question}\n  {answer.text!r}, known: {row.answer!r}, {answer.confidence:.3f} sure")

# %% How sure is each token, and at which step of the denoising was it committed?
for answer in answers:
    for token, sure, step in zip(
        answer.token_ids, answer.token_confidence, answer.token_step, strict=True
    ):
        print(f"step {step}  {sure:.3f}  {predictor.engine.token_text(token)!r}")

# %% The response after every step of one more question
for view in predictor.watch(Request("Describe the picture.", (tile,))):
    print(f"step {view.step}  {''.join(token or '·' for token in view.tokens)}")

# %% End the image decoder's child processes
predictor.close()
