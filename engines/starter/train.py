"""Makes the starter model: text, tokenizer, training, and both file formats.

Decides the recipe. Hidden matrices are trained with Muon and the rest with AdamW; the rate holds,
then falls to zero over the time given; a
moving average of the weights is what is saved. The last part of the time is spent on long
conversations. Time, not steps, is the budget, so that the same command suits any machine.
"""

# ruff: noqa: PLC0415 - heavy or mutual imports stand where they are needed

from __future__ import annotations

import argparse
import os
import sys
import time
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from tokenizers import Tokenizer

    from engines.starter.batches import Batch, Phase
    from engines.starter.model import Llama, Shape

CHECKPOINT = "checkpoint.pt"
HERE = Path(__file__).resolve().parent
EXAMPLES = """\
examples:
  python -m engines.starter.train --out build/starter --seconds 60
      a quick look: one minute of training, then both formats under build/starter
  python -m engines.starter.train --out build/starter --seconds 3900
      about as good as the one that is shipped (one core is enough)
  python -m engines.starter.train --out build/starter --seconds 900 --continue-from build/starter/hf
      another quarter of an hour, starting from the weights of an earlier run

A run that was stopped goes on from its checkpoint when the same command is given again; --fresh
starts over. It needs the packages of `pip install 'nenya[train]'`.
"""


@dataclass
class Run:
    """What the command line asked for."""

    out: Path
    seconds: float
    seed: int
    tokens: int
    rate: float
    threads: int
    report: float
    fresh: bool
    start: Path | None


def parse(argv: list[str] | None = None) -> Run:
    """Reads the command line."""
    p = argparse.ArgumentParser(
        prog="python -m engines.starter.train",
        description="Train Nenya's starter model, a very small Llama, on text made by this script.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    p.add_argument("--out", type=Path, required=True, help="folder to write to (made if missing)")
    p.add_argument("--seconds", type=float, default=3900, help="training time (default 3900)")
    p.add_argument("--seed", type=int, default=1, help="seed of the text and weights (default 1)")
    p.add_argument("--tokens", type=int, default=3072, help="tokens in a step (default 3072)")
    p.add_argument("--rate", type=float, default=3e-3, help="highest learning rate (default 0.003)")
    p.add_argument("--threads", type=int, default=1, help="CPU threads (default 1)")
    p.add_argument("--report", type=float, default=15, help="seconds between progress lines")
    p.add_argument("--fresh", action="store_true", help="ignore a checkpoint in --out")
    p.add_argument("--continue-from", type=Path, default=None, metavar="HF",
                   help="start from the weights and tokenizer of this Hugging Face folder")  # fmt: skip
    a = p.parse_args(argv)
    return Run(a.out, a.seconds, a.seed, a.tokens, a.rate, a.threads, a.report, a.fresh,
               a.continue_from)  # fmt: skip


def make_tokenizer(seed: int, size: int) -> Tokenizer:
    """A tokenizer learnt from a sample of the text."""
    from engines.starter import words as w
    from engines.starter.batches import full_text
    from engines.starter.corpus import conversations
    from engines.starter.template import SPECIAL, TAGS
    from engines.starter.tokenizer import learn

    texts = []
    for conversation in islice(conversations(seed + 1000), 30000):
        text = full_text(conversation)
        for mark in SPECIAL + TAGS:
            text = text.replace(mark, "\n")
        texts.append(text)
    copied = {x for many in (w.NAMES, w.CITIES, w.UNKNOWN_NOUNS, w.STORY_WORDS, w.FOODS, w.JOBS)
              for item in many for x in item.split()}  # fmt: skip
    return learn(texts, size, copied)


def optimizers(model: Llama, rate: float) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the layers, AdamW for the embedding and the norms."""
    import torch

    from engines.starter.muon import Muon

    inner = [p for n, p in model.named_parameters() if p.dim() == 2 and "embed" not in n]
    outer = [p for n, p in model.named_parameters() if p.dim() != 2 or "embed" in n]
    return [
        Muon(inner, rate),
        torch.optim.AdamW(outer, lr=rate, betas=(0.9, 0.95), weight_decay=0.0),
    ]


def rate_at(done: float, step: int) -> float:
    """The learning rate as a share of the highest: warm up, hold, then fall in a line."""
    return min(1.0, (step + 1) / 60) * min(1.0, max(0.02, (1.0 - done) / 0.6))


def train_step(
    model: Llama, opts: list[torch.optim.Optimizer], parts: list[Batch], rate: float
) -> float:
    """One step; returns the loss."""
    import torch
    from torch.nn import functional

    learnt = sum(float(weights[:, 1:].sum()) for _, weights in parts)
    total = 0.0
    for ids, weights in parts:
        tokens = torch.from_numpy(ids)
        share = torch.from_numpy(weights)[:, 1:].flatten()
        where = share > 0
        logits = model(tokens[:, :-1], where)
        right = tokens[:, 1:].flatten()[where]
        losses = functional.cross_entropy(logits, right, reduction="none")
        loss = (losses * share[where]).sum() / learnt
        loss.backward()
        total += float(loss.item())
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    for opt in opts:
        for group in opt.param_groups:
            group["lr"] = rate
        opt.step()
        opt.zero_grad(set_to_none=True)
    return total


class Average:
    """A moving average of the weights, which is better than the last ones."""

    def __init__(self, model: Llama) -> None:
        self.weights = {k: v.detach().clone() for k, v in model.state_dict().items()}

    def update(self, model: Llama, step: int) -> None:
        """Mixes the present weights in; early ones are soon forgotten."""
        keep = min(0.995, step / (step + 10))
        for key, value in model.state_dict().items():
            self.weights[key].lerp_(value.detach(), 1 - keep)


def clock(seconds: float) -> str:
    """Seconds as minutes and seconds."""
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"


class Training:
    """One run: its model, its optimizers, and how far it has come."""

    def __init__(self, run: Run, model: Llama, tok: Tokenizer) -> None:
        self.run, self.model, self.tok = run, model, tok
        self.opts = optimizers(model, run.rate)
        self.average = Average(model)
        self.step, self.spent, self.seen = 0, 0.0, 0
        self.loss: float | None = None

    @property
    def file(self) -> Path:
        """The checkpoint."""
        return self.run.out / CHECKPOINT

    def save(self) -> None:
        """Writes the checkpoint, whole or not at all."""
        import torch

        state: dict[str, Any] = {
            "model": self.model.state_dict(), "average": self.average.weights,
            "opts": [o.state_dict() for o in self.opts], "step": self.step, "spent": self.spent,
            "seen": self.seen, "loss": self.loss, "shape": asdict(self.model.shape),
        }  # fmt: skip
        fresh = self.file.with_suffix(".new")
        torch.save(state, fresh)
        fresh.replace(self.file)

    def load(self) -> None:
        """Goes on where a stopped run was."""
        import torch

        state = torch.load(self.file, weights_only=True)
        self.model.load_state_dict(state["model"])
        self.average.weights = state["average"]
        for opt, saved in zip(self.opts, state["opts"], strict=True):
            opt.load_state_dict(saved)
        self.step, self.spent = state["step"], state["spent"]
        self.seen, self.loss = state["seen"], state["loss"]

    def report(self) -> None:
        """One line of progress."""
        left = max(0.0, self.run.seconds - self.spent)
        print(
            f"step {self.step}  loss {self.loss or 0:.4f}  {self.seen / 1e6:.2f} M tokens  "
            f"{self.seen / max(self.spent, 1e-9):.0f} tokens/s  {clock(self.spent)} done, "
            f"{clock(left)} left",
            flush=True,
        )

    def go(self, phase: Phase) -> None:
        """Trains until the phase's share of the time is spent."""
        from engines.starter.batches import batches

        last, begun = time.monotonic(), time.monotonic() - self.spent
        saved = last
        seed = self.run.seed * 1_000_003 + self.step
        for parts in batches(self.tok, seed, self.run.tokens, phase):
            done = self.spent / self.run.seconds
            if done >= phase.until:
                return
            rate = self.run.rate * rate_at(done, self.step)
            loss = train_step(self.model, self.opts, parts, rate)
            self.step += 1
            self.average.update(self.model, self.step)
            self.seen += sum(ids.size for ids, _ in parts)
            self.loss = loss if self.loss is None else 0.98 * self.loss + 0.02 * loss
            now = time.monotonic()
            self.spent = now - begun
            if now - last > self.run.report:
                self.report()
                last = now
            if now - saved > 60:
                self.save()
                saved = now


def phases() -> list[Phase]:
    """First much copying, which everything else builds on; last much that is long."""
    from engines.starter.batches import Phase

    return [
        Phase(until=0.25, longest=256, long_share=0.0, copy_share=0.35),
        Phase(until=0.85, longest=1100, long_share=0.03, copy_share=0.08),
        Phase(until=1.0, longest=1400, long_share=0.14, copy_share=0.02),
    ]


def start(run: Run) -> Training:
    """The model and tokenizer to train: new, given, or from the checkpoint."""
    import torch
    from tokenizers import Tokenizer

    from engines.starter.export import SHARPNESS, load_hf, sharpen
    from engines.starter.model import Llama, Shape

    torch.manual_seed(run.seed)
    shape: Shape = Shape()
    kept = run.out / "hf" / "tokenizer.json"
    if run.start is not None:
        model, tok = load_hf(run.start), Tokenizer.from_file(str(run.start / "tokenizer.json"))
        sharpen(model, 1 / SHARPNESS)
    else:
        again = (run.out / CHECKPOINT).exists() and kept.exists() and not run.fresh
        tok = Tokenizer.from_file(str(kept)) if again else make_tokenizer(run.seed, shape.vocab)
        model = Llama(shape)
    kept.parent.mkdir(parents=True, exist_ok=True)
    tok.save(str(kept), pretty=False)
    training = Training(run, model.train(), tok)
    if training.file.exists() and not run.fresh:
        training.load()
        print(f"going on from {training.file} at {clock(training.spent)}")
    return training


def finish(training: Training) -> None:
    """Writes both formats from the averaged weights; the checkpoint has done its work."""
    from engines.starter.export import SHARPNESS, save_gguf, save_hf, sharpen

    training.model.load_state_dict(training.average.weights)
    sharpen(training.model, SHARPNESS)
    out = training.run.out
    save_hf(out / "hf", training.model, training.tok)
    save_gguf(out / "starter.gguf", training.model, training.tok)
    training.file.unlink(missing_ok=True)
    files = [out / "starter.gguf", *sorted((out / "hf").iterdir())]
    for file in files:
        print(f"{file.stat().st_size:>9}  {file}")
    print(f"{sum(f.stat().st_size for f in files) / 1e6:.2f} MB in all; copy them to {HERE}")


def main(argv: list[str] | None = None) -> int:
    """Runs the training."""
    run = parse(argv)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        import gguf  # noqa: F401
        import safetensors  # noqa: F401
        import tokenizers  # noqa: F401
        import torch
    except ImportError as error:
        print(f"{error}. Install what training needs: pip install 'nenya[train]'", file=sys.stderr)
        return 1
    torch.set_num_threads(run.threads)
    run.out.mkdir(parents=True, exist_ok=True)
    training = start(run)
    count = sum(p.numel() for p in training.model.parameters())
    print(f"{count} parameters, {training.tok.get_vocab_size()} tokens in the vocabulary")
    for phase in phases()[1 if run.start else 0 :]:
        training.go(phase)
    finish(training)
    return 0


if __name__ == "__main__":
    sys.exit(main())
