"""EnhancedSGD as the optimizer of a stable-baselines3 policy, which calls a plain `step()`."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from lr_gym.optim import EnhancedSGD


def test_trains_a_ppo_policy(tmp_path: Any) -> None:
    sb3 = pytest.importorskip("stable_baselines3")
    policy = {
        "optimizer_class": EnhancedSGD,
        "optimizer_kwargs": {"decision_interval": 2},
        "net_arch": [8],
    }
    model = sb3.PPO(
        "MlpPolicy",
        "CartPole-v1",
        n_steps=64,
        batch_size=32,
        n_epochs=2,
        policy_kwargs=policy,
        seed=0,
        device="cpu",
    )
    optimizer = model.policy.optimizer
    assert isinstance(optimizer, EnhancedSGD)
    before = [p.detach().clone() for p in model.policy.parameters()]
    model.learn(192)  # 3 updates of 2 epochs of 2 minibatches
    assert optimizer.param_groups[0]["step"] == 12
    assert optimizer.q_controller.visits.sum() > 0
    after = list(model.policy.parameters())
    assert all(p.isfinite().all() for p in after)
    assert any(not torch.equal(p, old) for p, old in zip(after, before, strict=True))

    model.save(tmp_path / "ppo")
    loaded = sb3.PPO.load(tmp_path / "ppo", env=model.get_env(), device="cpu")
    assert torch.equal(loaded.policy.optimizer.q_controller.q, optimizer.q_controller.q)
    loaded.learn(64)
    assert loaded.policy.optimizer.param_groups[0]["step"] > 12
