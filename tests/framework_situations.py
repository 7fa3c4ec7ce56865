"""Situations in which a framework owns the training loop, for the matrix of docs/drop_in.md."""

from __future__ import annotations

import copy
import tempfile
from typing import Any

import torch
from situations import STEPS, Make, batch_of, check_learns, check_same, loss_of, model_of
from torch import Tensor, nn


def by_closure(make: Make) -> nn.Module:
    """The model after a plain loop of closures, which is what Lightning does."""
    model = model_of()
    optimizer = make(model.named_parameters())
    for step in range(STEPS):

        def closure(step: int = step) -> Tensor:
            optimizer.zero_grad()
            loss = loss_of(model, step)
            loss.backward()
            return loss

        optimizer.step(closure)
    return model


def lightning(make: Make) -> None:
    import lightning.pytorch as pl

    class Module(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model = model_of()

        def training_step(self, batch: tuple[Tensor, Tensor], index: int) -> Tensor:
            x, y = batch
            return (self.model(x) - y).square().mean()

        def configure_optimizers(self) -> Any:
            return make(self.model.named_parameters())

    batches = [batch_of(step) for step in range(STEPS)]
    loader = torch.utils.data.DataLoader(batches, batch_size=None)
    trainer = pl.Trainer(
        max_epochs=1,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    module = Module()
    trainer.fit(module, loader)
    check_same(module.model, by_closure(make), 1e-6)


class Labelled(nn.Module):
    """A model that computes its own loss, as those of transformers do."""

    def __init__(self) -> None:
        super().__init__()
        self.model = model_of()

    def forward(self, inputs: Tensor, labels: Tensor) -> dict[str, Tensor]:
        outputs = self.model(inputs)
        return {"loss": (outputs - labels).square().mean(), "logits": outputs}


def trainer(make: Make) -> None:
    from transformers import Trainer, TrainingArguments

    model = Labelled()
    x, y = batch_of(0)
    rows = [{"inputs": x[i % 8], "labels": y[i % 8]} for i in range(8 * STEPS)]
    optimizer = make(model.named_parameters())
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            folder,
            max_steps=STEPS,
            per_device_train_batch_size=8,
            use_cpu=True,
            report_to=[],
            disable_tqdm=True,
            save_strategy="no",
            logging_strategy="no",
        )
        Trainer(
            model=model, args=arguments, train_dataset=rows, optimizers=(optimizer, schedule)
        ).train()
    check_learns(model.model)


def accelerate(make: Make) -> None:
    from accelerate import Accelerator

    model = model_of()
    twin = copy.deepcopy(model)
    accelerator = Accelerator(cpu=True)
    prepared, optimizer = accelerator.prepare(model, make(model.named_parameters()))
    other = make(twin.named_parameters())
    for step in range(STEPS):
        x, y = batch_of(step)
        optimizer.zero_grad()
        accelerator.backward((prepared(x) - y).square().mean())
        optimizer.step()
        other.zero_grad()
        loss_of(twin, step).backward()
        other.step()
    check_same(model, twin, 1e-6)


def stable_baselines(make: Make) -> None:
    from stable_baselines3 import PPO

    def optimizer_class(params: Any, lr: float, **options: Any) -> Any:
        return make(params)

    agent = PPO(
        "MlpPolicy",
        "CartPole-v1",
        n_steps=16,
        batch_size=16,
        n_epochs=2,
        policy_kwargs={"optimizer_class": optimizer_class, "net_arch": [8]},
        device="cpu",
        seed=0,
    )
    before = [param.clone() for param in agent.policy.parameters()]
    agent.learn(64)
    after = list(agent.policy.parameters())
    assert all(bool(torch.isfinite(param).all()) for param in after)
    assert any(not torch.equal(p, q) for p, q in zip(before, after, strict=True))


FRAMEWORKS = {
    "Lightning": lightning,
    "Trainer": trainer,
    "Accelerate": accelerate,
    "Stable-Baselines3": stable_baselines,
}
