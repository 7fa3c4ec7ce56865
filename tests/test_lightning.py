"""PolicyOptimizer within Lightning's Trainer equals a plain loop."""

from __future__ import annotations

import pytest
import torch
from deployed import acting, assert_close, assert_same
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lr_gym.integrations.lightning import PolicyCallback
from lr_gym.optim import PolicyOptimizer

STEPS = 12
POLICIES = {
    "acting": lambda: acting(controls=("lr",)),
    "averaging": lambda: acting(controls=("lr",), average=8.0),
}
# Lightning warns of much that is right in a test.
pytestmark = pytest.mark.filterwarnings("ignore", "error:PolicyOptimizer")


def loader():
    """Eight batches of four examples."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(32, 4, generator=generator, dtype=torch.float64)
    return DataLoader(TensorDataset(x, x.sin().sum(1, keepdim=True)), batch_size=4)


class Module(LightningModule):
    def __init__(self, policy, manual=False):
        super().__init__()
        self.policy, self.automatic_optimization = policy, not manual
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.net = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1)).double()
        self.validated = []

    def loss(self, batch):
        return nn.functional.mse_loss(self.net(batch[0]), batch[1])

    def training_step(self, batch, index):
        loss = self.loss(batch)
        if not self.automatic_optimization:
            optimizer = self.optimizers()
            optimizer.zero_grad()
            self.manual_backward(loss)
            optimizer.observe(loss)  # of Lightning's wrapper
            optimizer.step()
        return loss

    def validation_step(self, batch, index):
        self.validated.append([p.detach().clone() for p in self.net.parameters()])

    def configure_optimizers(self):
        return PolicyOptimizer(self.named_parameters(), self.policy, 0.01, STEPS)


def trainer_of(folder, steps=STEPS, **options):
    return Trainer(
        **{
            "max_steps": steps,
            "accelerator": "cpu",
            "callbacks": [PolicyCallback()],
            "logger": False,
            "enable_checkpointing": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "default_root_dir": folder,
            "num_sanity_val_steps": 0,
            **options,
        }
    )


def plain_loop(policy, accumulated, steps=STEPS):
    module = Module(policy)
    optimizer = module.configure_optimizers()
    batches = [batch for _ in range(100) for batch in loader()]
    for step in range(steps):
        optimizer.zero_grad()
        for batch in batches[step * accumulated : (step + 1) * accumulated]:
            loss = module.loss(batch)
            (loss / accumulated).backward()
            optimizer.observe(loss)
        optimizer.step()
    return module, optimizer


@pytest.mark.parametrize("accumulated", [1, 4])
def test_the_policy_sees_undivided_losses(accumulated, tmp_path):
    module = Module(POLICIES["acting"]())
    trainer_of(tmp_path, accumulate_grad_batches=accumulated).fit(module, loader())
    assert_close(module, plain_loop(POLICIES["acting"](), accumulated)[0])


def test_losses_are_not_scaled_by_gradscaler(tmp_path):
    from lightning.pytorch.plugins import MixedPrecision

    module = Module(POLICIES["acting"]())
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    precision = MixedPrecision("16-mixed", "cpu", scaler=scaler)
    precision.forward_context = torch.enable_grad  # autocast would round
    trainer_of(tmp_path, plugins=[precision]).fit(module, loader())
    assert_close(module, plain_loop(POLICIES["acting"](), 1)[0])


def test_lightnings_wrapper_has_our_methods(tmp_path):
    """In manual optimization the callback shows the loss too; two of the same have its mean."""
    module = Module(POLICIES["acting"](), manual=True)
    trainer_of(tmp_path, callbacks=[]).fit(module, loader())
    assert_close(module, plain_loop(POLICIES["acting"](), 1)[0])
    module = Module(POLICIES["acting"](), manual=True)
    trainer_of(tmp_path).fit(module, loader())
    assert_close(module, plain_loop(POLICIES["acting"](), 1)[0])


def test_applied_rates_are_logged(tmp_path):
    module = Module(POLICIES["acting"]())
    logger = CSVLogger(tmp_path)
    rows = []
    logger.log_metrics = lambda metrics, step: rows.append((step, metrics))
    trainer = trainer_of(tmp_path, logger=logger, log_every_n_steps=4, accumulate_grad_batches=2)
    trainer.fit(module, loader())
    assert [step for step, _ in rows] == [4, 8, 12]
    _, twin = plain_loop(POLICIES["acting"](), 2)
    assert rows[-1][1] == {"applied_lr/0": pytest.approx(twin.applied_lrs()[0])}


def test_averages_are_validated_saved_and_left_and_resume_is_exact(tmp_path):
    def fit(resume=None):
        module = Module(POLICIES["averaging"]())
        within = ModelCheckpoint(tmp_path, "{step}", save_top_k=-1, every_n_train_steps=5)
        # from within an epoch, Lightning resumes with other batches
        at_end = ModelCheckpoint(tmp_path, "{epoch}", save_top_k=-1, every_n_epochs=1)
        trainer = trainer_of(
            tmp_path, callbacks=[PolicyCallback(), within, at_end], enable_checkpointing=True
        )
        trainer.fit(module, loader(), loader(), ckpt_path=resume)
        return module

    module = fit()
    twin, optimizer = plain_loop(POLICIES["averaging"](), 1, steps=8)
    optimizer.eval()
    assert_same([module.validated[0]], [list(twin.net.parameters())])
    twin, optimizer = plain_loop(POLICIES["averaging"](), 1)
    optimizer.eval()
    assert_close(module, twin)
    saved = torch.load(tmp_path / "step=5.ckpt", weights_only=True)["state_dict"]
    twin, optimizer = plain_loop(POLICIES["averaging"](), 1, steps=5)
    optimizer.eval()
    assert_same([list(saved.values())], [list(twin.parameters())])
    resumed = fit(tmp_path / "epoch=0.ckpt")
    assert_same([list(resumed.parameters())], [list(module.parameters())])


def test_another_optimizer_is_refused(tmp_path):
    module = Module(None)
    module.configure_optimizers = lambda: torch.optim.SGD(module.parameters(), lr=0.1)
    with pytest.raises(TypeError, match="PolicyCallback needs a PolicyOptimizer; got SGD"):
        trainer_of(tmp_path).fit(module, loader())
