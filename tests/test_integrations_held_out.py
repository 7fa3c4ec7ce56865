"""The held-out loss in Trainer, Lightning and Accelerate equals that of a plain loop."""

from __future__ import annotations

import copy

import pytest
import torch
from accelerate import Accelerator
from deployed import assert_close, assert_same, constant
from lightning.pytorch import LightningModule
from lightning.pytorch import Trainer as LightningTrainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from transformers import Trainer, TrainingArguments

from lr_gym.integrations.accelerate import policy_optimizer
from lr_gym.integrations.lightning import PolicyCallback as LightningCallback
from lr_gym.integrations.transformers import PolicyCallback as TrainerCallback
from lr_gym.optim import PatienceRule, PolicyOptimizer

STEPS = 90
EVERY = 4  # steps from one validation to the next; so many batches are an epoch, too
# The frameworks warn of much that is right in a test.
pytestmark = pytest.mark.filterwarnings("ignore", "error:PolicyOptimizer")


def data():
    """Sixteen noisy examples to learn by heart, and eight of them without noise to be judged by.

    So the held-out loss falls first, and then rises.
    """
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(16, 4, generator=generator, dtype=torch.float64)
    y = 2.0 + x.sin().sum(1, keepdim=True)
    noise = torch.randn(16, 1, generator=generator, dtype=torch.float64)
    return TensorDataset(x, y + noise), TensorDataset(x[:8], y[:8])


class Net(nn.Module):
    """A model that returns its loss, as those of transformers do."""

    def __init__(self):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.net = nn.Sequential(nn.Linear(4, 64), nn.Tanh(), nn.Linear(64, 1)).double()

    def forward(self, x, y):
        outputs = self.net(x)
        return {"loss": nn.functional.mse_loss(outputs, y), "outputs": outputs}


def optimizer_of(model, rule=True, total_steps=STEPS, **options):
    finish = PatienceRule(patience=2, first_decisions=3, smoothing=1.0) if rule else None
    policy = constant(decisions=20, **options)
    return PolicyOptimizer(model.named_parameters(), policy, 0.02, total_steps, finish=finish)


def plain_loop(steps=STEPS, **options):
    """Train until the optimizer has finished, and at most for so many steps."""
    model = Net()
    optimizer = optimizer_of(model, **options)
    trained, held_out = data()
    batches = list(DataLoader(trained, batch_size=4))
    told = []
    for step in range(steps):
        loss = model(*batches[step % len(batches)])["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.observe(loss)
        optimizer.step()
        if optimizer.finished:
            break
        if (step + 1) % EVERY == 0:
            optimizer.eval()
            with torch.no_grad():
                told.append(model(*held_out[:])["loss"].item())
            optimizer.train()
            optimizer.observe_validation(told[-1])
    optimizer.eval()
    return model, optimizer, told


def test_the_plain_loop_ends_early_but_not_at_a_validation():
    """So the other tests say something."""
    _, optimizer, told = plain_loop()
    end = optimizer.metrics()["finish/end"]
    assert optimizer.ended_early
    assert 20 < end < STEPS - 8
    assert end % EVERY
    assert min(told) < 0.9 * told[0]
    assert min(told) < told[-1]


def test_ended_early_is_not_finished():
    _, optimizer, _ = plain_loop(rule=False)
    assert optimizer.finished
    assert not optimizer.ended_early
    assert not optimizer.watches_held_out
    assert not optimizer_of(Net()).ended_early


@pytest.fixture
def told(monkeypatch):
    """The losses that optimizers are told from here on."""
    losses = []
    original = PolicyOptimizer.observe_validation

    def observe(self, loss):
        losses.append(float(loss))
        original(self, loss)

    monkeypatch.setattr(PolicyOptimizer, "observe_validation", observe)
    return losses


# --- transformers.Trainer ---


class InOrder(Trainer):
    """A Trainer that does not shuffle."""

    def _get_train_sampler(self, *args, **kwargs):
        return None


def rows(dataset):
    return [{"x": x, "y": y} for x, y in dataset]


def run_trainer(folder, *, resume=None, held_out=None, rule=True, metric=None, **options):
    model = Net()
    kinds = {"average": options.pop("average", None)}
    total_steps = options.pop("total_steps", STEPS)
    arguments = TrainingArguments(
        str(folder),
        **{
            "max_steps": STEPS,
            "per_device_train_batch_size": 4,
            "max_grad_norm": 0.0,
            "lr_scheduler_type": "constant",
            "eval_strategy": "steps",
            "eval_steps": EVERY,
            "save_strategy": "no",
            "report_to": [],
            "use_cpu": True,
            "disable_tqdm": True,
            "dataloader_pin_memory": False,
            "label_names": ["y"],
            "remove_unused_columns": False,
            **options,
        },
    )
    trained, judged = data()
    trainer = InOrder(
        model,
        arguments,
        train_dataset=rows(trained),
        eval_dataset=rows(judged) if held_out is None else held_out,
        optimizers=(optimizer_of(model, rule, total_steps, **kinds), None),
    )
    chosen = {} if metric is None else {"held_out_metric": metric}
    trainer.add_callback(TrainerCallback(trainer, **chosen))
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def evaluated(trainer, metric="eval_loss"):
    return {log["step"]: log[metric] for log in trainer.state.log_history if metric in log}


@pytest.mark.parametrize("average", [None, 8.0])
def test_trainer_tells_stops_and_evaluates_the_end(average, told, tmp_path):
    trainer = run_trainer(tmp_path, average=average)
    told = list(told)
    twin, optimizer, expected = plain_loop(average=average)
    end = int(optimizer.metrics()["finish/end"])
    assert trainer.state.global_step == end
    assert told[:-1] == pytest.approx(expected)
    assert told == pytest.approx(list(evaluated(trainer).values()))
    assert list(evaluated(trainer))[-1] == end
    assert_close(trainer.model, twin)


def test_trainer_resumes_to_the_same_end(tmp_path):
    whole = run_trainer(tmp_path, save_strategy="steps", save_steps=12)
    end = whole.state.global_step
    assert (tmp_path / f"checkpoint-{end}").exists()
    resumed = run_trainer(tmp_path / "other", resume=str(tmp_path / "checkpoint-12"))
    assert resumed.state.global_step == end
    assert_same([list(resumed.model.parameters())], [list(whole.model.parameters())])


def test_trainer_loads_the_best_model_at_the_end(tmp_path):
    trainer = run_trainer(
        tmp_path, save_strategy="steps", save_steps=EVERY, load_best_model_at_end=True
    )
    losses = evaluated(trainer)
    assert trainer.state.global_step == max(losses) < STEPS
    best = min(losses.values())
    assert best < list(losses.values())[-1]
    assert trainer.evaluate()["eval_loss"] == pytest.approx(best)


def test_trainer_goes_on_where_only_total_steps_are_over(told, tmp_path):
    trainer = run_trainer(tmp_path, rule=False, total_steps=8, max_steps=16)
    assert trainer.state.global_step == 16
    before = list(told)
    assert len(before) == 4
    trainer.evaluate()  # no part of the training
    assert told == before


def test_trainer_without_evaluation_is_as_it_was(told, tmp_path):
    trainer = run_trainer(tmp_path, eval_strategy="no", max_steps=12)
    assert told == []
    twin, _, _ = plain_loop(12, rule=False)
    assert_close(trainer.model, twin)


def test_trainer_with_several_evaluations_tells_the_one_that_is_named(told, tmp_path):
    trained, judged = data()
    both = {"seen": rows(trained), "new": rows(judged)}
    options = {"held_out": both, "max_steps": 12}
    trainer = run_trainer(tmp_path, metric="eval_new_loss", **options)
    assert told == pytest.approx(list(evaluated(trainer, "eval_new_loss").values()))
    told.clear()
    run_trainer(tmp_path, rule=False, **options)  # nothing looks at the loss, so nothing is said
    with pytest.warns(UserWarning, match="no metric 'eval_loss'.*'eval_new_loss'") as caught:
        run_trainer(tmp_path, **options)
    assert len([w for w in caught if "no metric" in str(w.message)]) == 1
    assert told == []


# --- Lightning ---


class Module(LightningModule):
    def __init__(self, rule=True, name="val_loss", average=None):
        super().__init__()
        self.net, self.rule, self.name, self.average = Net(), rule, name, average
        self.validated = []

    def training_step(self, batch, index):
        return self.net(*batch)["loss"]

    def validation_step(self, batch, index):
        loss = self.net(*batch)["loss"]
        self.log(self.name, loss)
        if not self.trainer.sanity_checking:
            self.validated.append(loss.item())

    def configure_optimizers(self):
        return optimizer_of(self.net, self.rule, average=self.average)


def run_lightning(folder, module, *, resume=None, callback=None, **options):
    trained, judged = data()
    trainer = LightningTrainer(
        **{
            "max_steps": STEPS,
            "accelerator": "cpu",
            "callbacks": [callback or LightningCallback()],
            "logger": False,
            "enable_checkpointing": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "default_root_dir": folder,
            **options,
        }
    )
    loaders = [DataLoader(trained, batch_size=4), DataLoader(judged, batch_size=8)]
    trainer.fit(module, *loaders[: 1 + (module.name is not None)], ckpt_path=resume)
    return trainer


@pytest.mark.parametrize("average", [None, 8.0])
def test_lightning_tells_stops_and_validates_the_end(average, told, tmp_path):
    module = Module(average=average)
    trainer = run_lightning(tmp_path, module)
    told = list(told)
    twin, optimizer, expected = plain_loop(average=average)
    assert trainer.global_step == int(optimizer.metrics()["finish/end"])
    assert told[:-1] == pytest.approx(expected)  # and so not the sanity check
    assert told == pytest.approx(module.validated)
    assert_close(module.net, twin)


def test_lightning_resumes_to_the_same_end_and_no_further(tmp_path):
    def fit(folder, resume=None):
        saved = ModelCheckpoint(folder, "{epoch}", save_top_k=-1, every_n_epochs=1, save_last=True)
        module = Module()
        callbacks = [LightningCallback(), saved]
        trainer = run_lightning(
            folder, module, resume=resume, callbacks=callbacks, enable_checkpointing=True
        )
        return trainer.global_step, module

    end, whole = fit(tmp_path / "whole")
    step, resumed = fit(tmp_path / "resumed", tmp_path / "whole" / "epoch=2.ckpt")
    assert step == end
    assert_same([list(resumed.parameters())], [list(whole.parameters())])
    step, ended = fit(tmp_path / "ended", tmp_path / "whole" / "last.ckpt")
    assert step == end
    assert_same([list(ended.parameters())], [list(whole.parameters())])


def test_lightnings_min_steps_come_first(tmp_path):
    module = Module()
    with pytest.warns(UserWarning, match="the training has ended"):
        trainer = run_lightning(tmp_path, module, min_steps=STEPS - 7)
    assert trainer.global_step == STEPS - 7
    assert_close(module.net, plain_loop()[0])  # the steps at rate 0 change nothing


def test_lightning_without_validation_is_as_it_was(told, tmp_path):
    module = Module(name=None)
    assert run_lightning(tmp_path, module, max_steps=12).global_step == 12
    assert told == []
    assert_close(module.net, plain_loop(12, rule=False)[0])


def test_lightnings_metric_has_a_name(told, tmp_path):
    options = {"max_steps": 12}
    module = Module(name="judged")
    run_lightning(tmp_path, module, callback=LightningCallback("judged"), **options)
    assert told == pytest.approx(module.validated)
    told.clear()
    run_lightning(tmp_path, Module(rule=False, name="judged"), **options)
    with pytest.warns(UserWarning, match="no metric 'val_loss'.*it has 'judged'") as caught:
        run_lightning(tmp_path, Module(name="judged"), **options)
    assert len([w for w in caught if "no metric" in str(w.message)]) == 1
    assert told == []


# --- Accelerate ---


def test_accelerate_hides_neither_the_loss_nor_the_end():
    accelerator = Accelerator(cpu=True)
    model = Net()
    trained, judged = data()
    prepared, optimizer, loader = accelerator.prepare(
        model, optimizer_of(model), DataLoader(trained, batch_size=4)
    )
    inner = policy_optimizer(optimizer)
    while not inner.finished:
        for batch in loader:
            loss = prepared(*batch)["loss"]
            optimizer.zero_grad()
            accelerator.backward(loss)
            inner.observe(loss)
            optimizer.step()
            if inner.finished:
                break
        with torch.no_grad():
            inner.observe_validation(prepared(*judged[:])["loss"])
    twin, twins, _ = plain_loop()
    assert inner.metrics()["finish/end"] == twins.metrics()["finish/end"]
    assert_close(copy.deepcopy(model), twin)
